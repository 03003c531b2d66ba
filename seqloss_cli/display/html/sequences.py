"""Take from rows what a page shows of them: sequences, questions, and sentences about both.

A sequence of a page holds its figures and, where the file has them, its text and tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from seqloss_cli.analysis.extremes import Chosen
from seqloss_cli.analysis.joining import LossesOnBytes
from seqloss_cli.core.byte_spans import TokenBytes
from seqloss_cli.core.columns import TokenColumn, cell_columns
from seqloss_cli.display.html.page import Metric, PageOptions, Pane
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.results.files import ResultsOf
from seqloss_cli.results.schema.rankings import RankedChoice, RankedRow
from seqloss_cli.results.schema.scores import ResultRow

NO_TOKENS = "written without tokens (--no-tokens): there is nothing to colour"
NO_TEXT = "written without texts (--no-text): there is nothing to colour"
OTHER_TEXT = "the byte offsets of its tokens are not those of its text"
_NO_BYTES = TokenBytes(b"", np.zeros(1, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class PageSequence:
    """A row of results as a page shows it: N tokens, or none where no text can be coloured."""

    order: int
    """Number among the rows of its file."""
    id: str
    source: str
    line: int | None
    totals: Totals
    flags: Mapping[str, int]
    fields: Mapping[str, Any]
    """Values of the fields that rows are grouped by."""
    why_plain: str = ""
    """Why no text is coloured; empty where it is."""
    token_bytes: TokenBytes = _NO_BYTES
    """The text, and what its tokens cover; of ids without a text, the names of the tokens."""
    losses: tuple[float | None, ...] = ()
    """(N) nats; None where unscored."""
    counted: tuple[bool, ...] = ()
    """(N)"""
    tokens: tuple[str, ...] = ()
    """(N) as tables show them."""
    ids: tuple[int, ...] | None = None
    """(N) ids of the vocabulary."""
    columns: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    """The quantities of one number a token that the file has, (N) each, by name."""
    contexts: tuple[float | None, ...] | None = None
    """(N) tokens that each token could see."""
    alternatives: tuple[Any, ...] | None = None
    """(N) lists of name, log-probability in nats, and id."""
    extra: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    """Other quantities, (N) each, by their keys in the data of a pane."""
    is_ids: bool = False
    """Token ids without a text."""
    n_left_out: int = 0
    """Tokens at its end that the page does not show."""

    @property
    def size(self) -> int:
        """Return how many tokens the page would show."""
        return len(self.losses)

    @property
    def text(self) -> bytes:
        """Return the text in UTF-8."""
        return self.token_bytes.text

    @property
    def where(self) -> str:
        """Return `file:line`, where it says more than the id does."""
        return where_text(self.id, self.source, self.line)

    def about(self) -> list[str]:
        """Say what a reader must know of its text."""
        said = []
        if self.why_plain:
            said.append(f"No coloured text: {self.why_plain}.")
        if self.is_ids:
            said.append(
                "Token ids without a text: the tokens stand here as their tokenizer has them."
            )
        if self.n_left_out:
            said.append(
                f"The first {self.size:,} tokens of {self.size + self.n_left_out:,}, for which "
                "there is room; figures, charts and lists are of all of them."
            )
        return said

    def counted_losses(self) -> LossesOnBytes:
        """Return the losses that count, with the bytes of their tokens."""
        pairs = zip(self.losses, self.counted, strict=True)
        return LossesOnBytes(self.token_bytes, [loss if counts else None for loss, counts in pairs])

    def cut(self, n_tokens: int) -> PageSequence:
        """Return its first tokens, and as many more as the last character needs."""
        if self.size <= n_tokens:
            return self
        # within a character there is no text to show
        _, n_tokens = self.token_bytes.snap(0, n_tokens)
        parts: dict[str, Any] = {}
        for name in ("losses", "counted", "tokens", "ids", "contexts", "alternatives"):
            array = getattr(self, name)
            parts[name] = None if array is None else array[:n_tokens]
        for name in ("columns", "extra"):
            parts[name] = {key: array[:n_tokens] for key, array in getattr(self, name).items()}
        part, n_left_out = self.token_bytes.head(n_tokens), self.size - n_tokens
        return replace(self, token_bytes=part, n_left_out=self.n_left_out + n_left_out, **parts)


def page_sequence(row: ResultRow, order: int, fields: tuple[str, ...] = ()) -> PageSequence:
    """Return what a page shows of a row; `fields` are those that rows are grouped by."""
    found = PageSequence(
        order=order,
        id=row.id,
        source=str(row.fields.get("source") or ""),
        line=row.fields.get("line"),
        totals=row.totals,
        flags=row.fields.get("flags") or {},
        fields={name: row.field(name) for name in fields},
    )
    if row.tokens is None or not row.fields.get("tokens"):
        return replace(found, why_plain=NO_TOKENS)
    is_ids = row.fields.get("text_sha256") is None
    token_bytes = _bytes_of_ids(row) if is_ids else _bytes_of_text(row)
    if token_bytes is None:
        return replace(found, why_plain=NO_TEXT)
    # a file may have been edited: offsets that do not fit would colour other text
    if not token_bytes.is_valid:
        return replace(found, why_plain=OTHER_TEXT)
    return replace(found, token_bytes=token_bytes, is_ids=is_ids, **_arrays(row))


def _bytes_of_ids(row: ResultRow) -> TokenBytes:
    """Return the names of the tokens, which stand for a text that there is not."""
    return TokenBytes.join(
        [str(token).encode("utf-8", "replace") for token in row.fields["tokens"]]
    )


def _bytes_of_text(row: ResultRow) -> TokenBytes | None:
    """Return the text, and what its tokens cover; None where the row does not hold it."""
    fields = row.fields
    # rows of pairs hold their parts; joined they are the text that the offsets are of
    text, offsets = fields.get("text"), fields.get("byte_offsets")
    if not isinstance(text, str):
        parts = (fields.get("prompt"), fields.get("separator", ""), fields.get("response"))
        if not all(isinstance(part, str) for part in parts):
            return None
        text = "".join(map(str, parts))
    # halves of surrogate pairs can be in JSON, but not in UTF-8
    return None if offsets is None else TokenBytes(text.encode("utf-8", "replace"), offsets)


def _arrays(row: ResultRow) -> dict[str, Any]:
    """Return the arrays beside the row's N tokens."""
    assert row.tokens is not None
    n, tokens = len(row.tokens.losses), row.tokens
    losses = zip(tokens.losses.tolist(), tokens.scored.tolist(), strict=True)
    ids = row.fields.get("token_ids")
    return {
        "losses": tuple(loss if scored else None for loss, scored in losses),
        "counted": tuple(tokens.counted.tolist()),
        "tokens": tuple(map(str, row.fields["tokens"])),
        "ids": None if ids is None else tuple(ids.tolist()),
        "columns": {
            column.name: values
            for column in cell_columns()
            if (values := _read(row, column.name, n, _number)) is not None
        },
        "contexts": _read(row, "context_lengths", n, _number),
        "alternatives": _read(row, "top_logprobs", n, _alternatives),
    }


def _read(row: ResultRow, name: str, n: int, take: Callable[[Any], Any]) -> tuple[Any, ...] | None:
    """Return an array beside the n tokens; None where it is missing or not as long as they are."""
    values = row.fields.get(name)
    if not isinstance(values, list) or len(values) != n:
        return None
    return tuple(map(take, values))


def _number(value: Any) -> float | None:
    # True is an int to Python, and NaN a float: neither is a figure
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def _alternatives(value: Any) -> list[tuple[str, float | None, Any]] | None:
    """Return name, log-probability and id of each alternative."""
    if not isinstance(value, list):
        return None
    return [
        (str(each.get("token")), _number(each.get("log_prob")), each.get("id"))
        for each in value
        if isinstance(each, Mapping)
    ]


_SHORT_KEYS = {"ranks": "r", "entropies": "e"}


def data_key(column: TokenColumn) -> str:
    """Return where a column's values stand in the data of a pane."""
    return _SHORT_KEYS.get(column.name, column.csv)


def metrics_of(panes: Sequence[Pane]) -> list[Metric]:
    """Return loss, and what else the tokens have, or would have with an option."""
    found = [Metric("loss", "loss")]
    for column in cell_columns():
        known = any(data_key(column) in pane.data for pane in panes)
        if known or column.is_standard:
            found.append(Metric(column.csv, column.csv, "" if known else column.flag))
    return found


def lacking_in(panes: Sequence[Pane]) -> list[str]:
    """Return what no token has, with the flag that adds it; nothing where no text is shown."""
    texts = [pane.data for pane in panes if pane.kind == "tokens"]
    standard = [column for column in cell_columns() if column.is_standard]
    added = [(data_key(column), f"{column.name} ({column.flag})") for column in standard]
    added += [("a", "alternatives (--top-k N)"), ("c", "context lengths (--context-lengths)")]
    return [said for key, said in added if texts and not any(key in data for data in texts)]


_BYTES_A_TOKEN = 4
"""For the size of a prompt, whose tokens are not known."""


@dataclass(frozen=True, slots=True)
class PageQuestion:
    """A question that a page shows."""

    order: int
    row: RankedRow
    size: int
    """Tokens that the page would show, its prompt's guessed from its bytes."""
    n_left_out: int = 0
    """The size of a question whose texts are left out."""

    @classmethod
    def of(cls, row: RankedRow, order: int) -> PageQuestion:
        """Return a row with its size."""
        prompt = row.fields.get("prompt")
        n_bytes = len(prompt.encode("utf-8", "replace")) if isinstance(prompt, str) else 0
        return cls(order, row, sum(map(_n_tokens, row.choices)) + n_bytes // _BYTES_A_TOKEN)

    def cut(self, most: int) -> PageQuestion:
        """Leave out its texts where they have more tokens than that."""
        if self.size <= most:
            return self
        choices = tuple(
            replace(each, response=None,
                    row=replace(each.row, fields={"id": each.row.id}, tokens=None))
            for each in self.row.choices
        )  # fmt: skip
        # the row stays in the table, and its figures with it
        fields = {name: value for name, value in self.row.fields.items() if name != "prompt"}
        row = replace(self.row, fields=fields, choices=choices)
        return PageQuestion(self.order, row, 0, self.n_left_out or self.size)


def _n_tokens(choice: RankedChoice) -> int:
    return choice.figures.n_tokens if choice.row.tokens is None else len(choice.row.tokens.losses)


def about_selection(
    chosen: Chosen[Any], options: PageOptions, per: str, of: str = "sequences"
) -> str:
    """Say which sequences are shown; nothing where all are, or where one is that was cut."""
    if not chosen.n_worst or chosen.n_seen == 1:
        return ""
    limits, sample = options.limits, ""
    if chosen.n_sampled:
        sample = f" and {chosen.n_sampled:,} drawn at random (seed {options.seed})"
    return (
        f"Of {chosen.n_seen:,} {of} these are the {chosen.n_worst:,} with the highest {per}"
        f"{sample}: a page holds at most {limits.tokens:,} tokens of {limits.sequences:,} "
        f"{of}. Totals, charts and lists are of all of them."
    )


def notes_of(file: ResultsOf[Any], n_unusable: int, name: str = "") -> list[str]:
    """Say what went wrong with, or was left out of, a file that was read."""
    prefix = f"{name}: " if name else ""
    found = []
    if not file.complete:
        found.append("The run did not come to its end: rows may be missing.")
    if file.n_rejected:
        found.append(f"{file.n_rejected:,} inputs were rejected by the run, and are in no figure.")
    if n_unusable:
        found.append(f"{n_unusable:,} rows of the file could not be used, and are in no figure.")
    return [prefix + note for note in found]


def run_table(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return keys and values of a run, nested ones by dotted keys, without those that are None."""
    found: list[tuple[str, str]] = []
    for key, value in run.items():
        if isinstance(value, Mapping):
            found += [(f"{key}.{name}", text) for name, text in run_table(value)]
        elif value is not None:
            found.append((key, _value_text(value)))
    return found


def _value_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def model_name(run: Mapping[str, Any]) -> str:
    """Return the model, with what makes it another one than its name says."""
    name = str(run.get("model"))
    parts = [str(run[key]) for key in ("revision", "adapter", "quantization") if run.get(key)]
    return f"{name} ({', '.join(parts)})" if parts else name


def subtitle_of(file: ResultsOf[Any]) -> str:
    """Say which model it is, what it was asked, and when."""
    run = file.run
    when = str(run.get("started_at") or "")[:16].replace("T", " ")
    parts = (model_name(run), f"seqloss {run.get('command')}", when and f"{when} UTC", file.name)
    return " · ".join(part for part in parts if part)


def where_text(id: str, source: str, line: int | None) -> str:
    """Return `file:line`, where it says more than the id does."""
    place = source if line is None else f"{source}:{line}"
    return "" if place == id else place


def flags_text(flags: Mapping[str, Any]) -> str:
    """Return flags as `name`, or `name count`."""
    return ", ".join(name if n is True else f"{name} {n}" for name, n in flags.items())
