"""Pages of results as a browser would see them, and rows that try to break them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from helpers.results import row, write

EVIL = [
    "</script><script>alert(1)</script>", "<!--", "-->", "<img src=x onerror=alert(1)>",
    "\u2028\u2029", "\u202eabc", "\u2066", "&lt;", '"onclick="x', "\r\n", "\x1b[31m", "日本", "🐕",
    " ", "\n", "<![CDATA[",
    "\x85", "\x9b", "\u200b", "\ufeff", "'", "`", "{{ 7 * 7 }}", "{% raw %}",
]  # fmt: skip


def text_row(id: str, tokens: list[str], losses: list[float | None], **fields: Any) -> Any:
    """With a text: BOS, then tokens that are its pieces."""
    text, ends = "".join(tokens), [0, 0]
    for token in tokens:
        ends.append(ends[-1] + len(token.encode()))
    made = row(id, [None, *losses], text or " ", **fields)
    known = [x for x in losses if x is not None]
    return made | {
        "text": text, "tokens": ["<s>", *tokens], "byte_offsets": ends, "n_bytes": ends[-1],
        "n_scored_bytes": ends[-1], "n_chars": len(text), "n_scored_chars": len(text),
        "total_loss": math.fsum(known) if known else None,
    }  # fmt: skip


Run = Callable[..., Any]


class Page(HTMLParser):
    """What a browser would see of the page: elements, texts of panes, scripts."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.panes: list[str] = []
        self.spans: list[list[tuple[str, str]]] = []
        self.raw: dict[str, str] = {}
        self._depth, self._kind = 0, ""
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag in ("script", "style"):
            self._kind = found.get("type") or tag
        if self._depth:
            self._depth += 1
            self.spans[-1].append((found.get("class") or "", ""))
        elif tag == "div" and "pane" in (found.get("class") or "").split():
            self._depth = 1
            self.panes.append("")
            self.spans.append([])

    def handle_endtag(self, tag: str) -> None:
        self._kind = ""
        self._depth = max(0, self._depth - 1)

    def handle_data(self, data: str) -> None:
        if self._kind:
            self.raw[self._kind] = self.raw.get(self._kind, "") + data
        elif self._depth:
            self.panes[-1] += data
            if self._depth == 2:
                kind, text = self.spans[-1][-1]
                self.spans[-1][-1] = (kind, text + data)
        else:
            self.text += data

    @property
    def data(self) -> Any:
        return json.loads(self.raw["application/json"])


def large_results(path: Path, n_sequences: int) -> Path:
    """A results file of 50,000 tokens in so many sequences."""
    generator = np.random.default_rng(0)
    words = [f" w{n}" if n % 17 else "\n" for n in range(400)]
    n_tokens, rows = 50_000 // n_sequences - 1, []
    for n in range(n_sequences):
        tokens = [words[k] for k in generator.integers(0, len(words), n_tokens)]
        rows.append(text_row(f"r{n}", tokens, generator.exponential(2.5, n_tokens).tolist()))
    return write(path, rows)


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def values_of(page: Page) -> list[float]:
    return [float(a["value"] or 0) for tag, a in page.tags if tag == "data"]


def page_of(run_cli: Run, results: Path, *words: object) -> Page:
    path = results.with_suffix(".html")
    done = run_cli("report", results, "-o", path, "--force", *words)
    assert done.exit_code == 0, done.stderr
    return Page(path.read_bytes().decode())
