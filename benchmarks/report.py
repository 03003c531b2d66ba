"""The report: JSON with everything, Markdown for people. Written anew after each part."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from settings import SECTIONS

TITLES = {
    "products": "Useful matrix-product FLOP/s / those of plain `F.linear` at the model's shapes",
    "textbook": "Times as fast as the textbook loop",
    "lm-eval": "Times as fast as lm-evaluation-harness, batch 16",
    "minicons": "Times as fast as minicons, batch 16",
    "shared": "Rows that begin alike: times as fast as lm-evaluation-harness, batch 16",
    "memory": "Peak memory above weights",
    "around": "Everything around the forward",
    "corpus": "A corpus as it grows",
    "profile": "Where the time goes",
}
NOTES = {
    "products": "Ours is timed from strings to losses, tokenization included; FLOP are those of "
    "tokens that were fed (layers) and scored (head). The plain rates are taken in every round, "
    "before ours in one and after it in the next. Ours can be above them: its products are "
    "oneDNN's where torch's own way is slower (`products.py`).",
    "textbook": "One text at a time, `model(ids).logits`, log-softmax in float32; transformers' "
    "default attention. The float32 goals are 1.4 eager and 1.8 compiled, the bfloat16 goal is 3.",
    "lm-eval": "A round is 16 documents of neighbouring lengths, as the harness's own sorting of "
    "256 documents would batch them: 16 of all lengths in a batch would be mostly its padding "
    "(`--full` measures that, too). Documents are split in halves at a clean seam; both sides "
    "score the second half, from strings to numbers. Rounds differ in work, so the ratio of the "
    "summed times is taken, too, and the lower of the two is held against the goal.",
    "minicons": "minicons keeps the order that texts come in, so its batches are of all lengths; "
    "by default texts of up to 300 tokens, as it pads all to the longest and holds all logits.",
    "memory": "VmHWM less VmRSS after loading, each point a process of its own. Freed memory is "
    "handed back at once, so that memory in use is measured; a run keeps it for the next batch, "
    "and takes more by the gaps between blocks, which differ from run to run (second table).",
    "around": "The engine alone is given the batches that the whole run made. The output is "
    "written without texts and tokens.",
    "profile": "By torch.profiler, eager; it makes Python slower than it is.",
}


class Report:
    def __init__(
        self,
        folder: Path,
        machine: dict[str, Any],
        settings: dict[str, Any],
        kept: Sequence[str] = (),
    ) -> None:
        """`kept` are sections of the last report in the folder that stay in this one."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._all: dict[str, Any] = {
            "machine": machine,
            "settings": settings,
            "parts": [],
            "figures": [],
            "checks": [],
            "tables": [],
        }
        if kept:
            self._keep(json.loads((folder / "report.json").read_text()), kept)

    def _keep(self, last: dict[str, Any], sections: Sequence[str]) -> None:
        """Raises ValueError when it is of another processor: its rates are others."""
        if last["machine"]["processor"] != self._all["machine"]["processor"]:
            raise ValueError("the last report is of another processor")
        for kind in ("figures", "checks", "tables"):
            self._all[kind] = [e for e in last[kind] if e["section"] in sections]
        run = {"date": last["machine"]["date"], "commit": last["machine"]["commit"]}
        self._all["parts"] = [
            run | part for part in last["parts"] if set(_sections_of(part["name"])) & set(sections)
        ]

    def add(self, name: str, seconds: float, found: dict[str, Any], error: str | None) -> None:
        part = {"name": name, "seconds": round(seconds, 1), "error": error}
        self._all["parts"].append(part)
        for kind in ("figures", "checks", "tables"):
            self._all[kind] += found.get(kind, [])
        self.write()

    def write(self) -> None:
        for name, text in (
            ("report.json", json.dumps(self._all, indent=1, ensure_ascii=False) + "\n"),
            ("report.md", "\n".join(markdown(self._all)) + "\n"),
        ):
            partial = self._folder / (name + ".partial")
            partial.write_text(text, encoding="utf-8")
            partial.rename(self._folder / name)


def markdown(everything: dict[str, Any]) -> Iterator[str]:
    yield from _head(everything)
    for section in SECTIONS:
        figures, checks, tables = (
            [entry for entry in everything[kind] if entry["section"] == section]
            for kind in ("figures", "checks", "tables")
        )
        if not figures and not tables:
            continue
        yield from ["", f"## {TITLES[section]}", ""]
        if section in NOTES:
            yield from [NOTES[section], ""]
        if figures:
            columns = ["figure", "value", "goal", "met", "rounds", "range", "notes"]
            yield from _table(columns, [_figure_row(figure) for figure in figures])
        if checks:
            yield from ["", "Do both sides give the same numbers?", ""]
            yield from _table(
                ["sides", "worst difference, nats per token", "tolerance", "same"],
                [[c["name"], f"{c['worst']:.1e}", f"{c['tolerance']:.0e}", _yes(c["agrees"])]
                 for c in checks],
            )  # fmt: skip
        for one in tables:
            yield from ["", one["title"], ""]
            yield from _table(one["columns"], one["rows"])
    yield from _parts(everything["parts"])


def _head(everything: dict[str, Any]) -> Iterator[str]:
    machine, settings = everything["machine"], everything["settings"]
    judged = [figure for figure in everything["figures"] if figure["met"] is not None]
    missed = [figure for figure in judged if not figure["met"]]
    yield "# Benchmark report"
    yield ""
    if settings["name"] == "quick":
        yield from ["A `--quick` run: short documents and few rounds. It shows that all works.", ""]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v)
    yield f"{machine['date']}, {machine['processor']} ({', '.join(machine['flags'])}), "
    yield f"{machine['cores']} cores, {machine['threads']} threads, {machine['memory_gb']} GB; "
    yield f"Python {machine['python']}, {versions}; commit {machine['commit']}"
    if machine["changed_files"]:
        yield f"with {machine['changed_files']} changed files"
    yield ""
    yield f"**{len(judged) - len(missed)} of {len(judged)} goals met.**"
    if missed:
        yield ""
        yield "Missed:"
        yield ""
        for figure in missed:
            value, goal = _number(figure, "value"), _goal(figure)
            yield f"- {figure['section']}: {figure['name']}: {value}, goal {goal}"
    yield ""
    yield "Both sides of a ratio ran in one process, taking turns at who goes first; values are "
    yield "medians of the rounds' ratios. While ours runs, the C library keeps freed memory, as "
    yield "loading our model has it (`tuning.py`); peers run as in a process of their own. "
    yield "Ours plans the texts of a round together, as in the middle of a long run. The harness "
    yield "also finds out whether each response is the greedy one, which ours was not asked for."


def _figure_row(figure: dict[str, Any]) -> list[str]:
    ratios = figure["ratios"]
    span = f"{min(ratios):.2f} – {max(ratios):.2f}" if len(ratios) > 1 else ""
    met = "" if figure["met"] is None else "yes" if figure["met"] else "**no**"
    rounds = str(len(ratios)) if ratios else ""
    return [figure["name"], _number(figure, "value"), _goal(figure), met, rounds, span,
            figure["note"]]  # fmt: skip


def _goal(figure: dict[str, Any]) -> str:
    if figure["goal"] is None:
        return ""
    return f"{'≤' if figure['at_most'] else '≥'} {_number(figure, 'goal')}"


def _number(figure: dict[str, Any], key: str) -> str:
    value = figure[key]
    if value is None:
        return "—"
    return f"{value:.0f} {figure['unit']}" if figure["unit"] else f"{value:.2f}"


def _yes(value: bool) -> str:
    return "yes" if value else "**no**"


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(str(cell) for cell in row) + " |"


def _sections_of(part: str) -> list[str]:
    return part.split()[0].split("/")


def _parts(parts: list[dict[str, Any]]) -> Iterator[str]:
    total = sum(part["seconds"] for part in parts) / 60
    yield from ["", f"## Parts of this run ({total:.1f} minutes)", ""]
    rows = [
        [p["name"], f"{p['seconds']:.0f}", p.get("date", ""), p.get("commit", ""), p["error"] or ""]
        for p in parts
    ]
    yield from _table(["part", "seconds", "of an earlier run", "commit", "failed with"], rows)
