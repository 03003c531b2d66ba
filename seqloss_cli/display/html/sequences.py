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
from seqloss_cli.analysis.joining import LossesOnBytes, bytes_of_text
from seqloss_cli.core.byte_spans import TokenBytes
from seqloss_cli.core.columns import cell_columns
from seqloss_cli.display.html.page import Metric, PageOptions, Pane
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.results.files import ResultsOf
from seqloss_cli.results.schema.rankings import RankedChoice, RankedRow
from seqloss_cli.results.schema.scores import ResultRow, TokenLosses

NO_TOKENS = "written without tokens (--no-tokens): there is nothing to colour"
NO_TEXT = "written without texts (--no-text): there is nothing to colour"
OTHER_TEXT = "the byte offsets of its tokens are not those of its text"
_NO_BYTES = TokenBytes(b"", np.zeros(1, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class PageSequence:
    """A row of results as a page shows it: its first N tokens, or none if no text is coloured."""

    order: int
    """Number among the rows of its file."""
    row: ResultRow
    why_plain: str = ""
    """Why no text is coloured; empty where it is."""
    token_bytes: TokenBytes = _NO_BYTES
    """The text, and what its tokens cover; of ids without a text, the names of the tokens."""
    is_ids: bool = False
    """Token ids without a text."""
    extra: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    """Other quantities of its N tokens, by their keys in the data of a pane."""
    n_left_out: int = 0
    """Tokens at its end that the page does not show: the arrays of the row end before them."""
    sums: Any = None
    """Other sums of it."""

    @property
    def id(self) -> str:
        """Return the input's id."""
        return self.row.id

    @property
    def totals(self) -> Totals:
        """Return the sums of all its tokens."""
        return self.row.totals

    @property
    def size(self) -> int:
        """Return how many tokens the page would show."""
        return self.token_bytes.n_tokens

    @property
    def text(self) -> bytes:
        """Return the text in UTF-8."""
        return self.token_bytes.text

    @property
    def where(self) -> str:
        """Return `file:line`, where it says more than the id does."""
        return where_text(self.row.fields)

    @property
    def flags(self) -> str:
        """Return its flags with their counts."""
        return flags_text(self.row.fields.get("flags") or {})

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

    def losses(self, counted_only: bool = False) -> list[float | None]:
        """Return the N losses, nats; None where a token is not scored, or does not count."""
        if (tokens := self.row.tokens) is None:
            return []
        known = tokens.counted if counted_only else tokens.scored
        pairs = zip(tokens.losses.tolist(), known.tolist(), strict=True)
        return [loss if is_known else None for loss, is_known in pairs]

    def counted_losses(self) -> LossesOnBytes:
        """Return the losses that count, with the bytes of their tokens."""
        return LossesOnBytes(self.token_bytes, self.losses(counted_only=True))

    def array(self, name: str, take: Callable[[Any], Any]) -> list[Any] | None:
        """Return what the row's field holds of the N tokens; None where it is no such array."""
        values = self.row.fields.get(name)
        if not isinstance(values, list) or len(values) != self.size:
            return None
        return [take(value) for value in values]

    def cut(self, most: int) -> PageSequence:
        """Return its first tokens, and as many more as the last character needs."""
        if self.size <= most:
            return self
        # within a character there is no text to show
        _, most = self.token_bytes.snap(0, most)
        return replace(
            self,
            row=_first_tokens(self.row, most),
            token_bytes=self.token_bytes.head(most),
            extra={key: values[:most] for key, values in self.extra.items()},
            n_left_out=self.n_left_out + self.size - most,
        )


def _first_tokens(row: ResultRow, n: int) -> ResultRow:
    """Return a row whose arrays end after n tokens.

    A page keeps some thousand rows: what it does not show of them may not stay in memory.
    """
    fields = {
        # A copy: the slice of an array would keep all of it.
        name: value[:n].copy() if isinstance(value, list | np.ndarray) else value
        for name, value in row.fields.items()
    }
    tokens = row.tokens
    if tokens is not None:
        tokens = TokenLosses(
            tokens.losses[:n].copy(), tokens.scored[:n].copy(), tokens.counted[:n].copy()
        )
    return replace(row, fields=fields, tokens=tokens, top1=None)


def page_sequence(row: ResultRow, order: int) -> PageSequence:
    """Return what a page shows of a row."""
    why_plain, token_bytes, is_ids = _shown_bytes(row)
    if why_plain:
        return PageSequence(order, _first_tokens(row, 0), why_plain)
    return PageSequence(order, row, "", token_bytes, is_ids)


def _shown_bytes(row: ResultRow) -> tuple[str, TokenBytes, bool]:
    """Return why nothing is coloured, or what is; and whether it is names of ids."""
    if row.tokens is None or not row.fields.get("tokens"):
        return NO_TOKENS, _NO_BYTES, False
    is_ids = row.fields.get("text_sha256") is None
    # of ids without a text the names of the tokens stand for one
    names = [name.encode("utf-8", "replace") for name in row.fields["tokens"]]
    token_bytes = TokenBytes.join(names) if is_ids else bytes_of_text(row)
    if token_bytes is None:
        return NO_TEXT, _NO_BYTES, False
    # a file may have been edited: offsets that do not fit would colour other text
    if not token_bytes.is_valid:
        return OTHER_TEXT, _NO_BYTES, False
    return "", token_bytes, is_ids


def number_of(value: Any) -> float | None:
    """Return a value of a row as a figure; None where it is none."""
    # True is an int to Python, and NaN a float: neither is a figure
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def metrics_of(panes: Sequence[Pane]) -> list[Metric]:
    """Return loss, and what else the tokens have, or would have with an option."""
    found = [Metric("loss", "loss")]
    for column in cell_columns():
        known = any(column.page_key in pane.data for pane in panes)
        if known or column.is_standard:
            found.append(Metric(column.csv, column.csv, "" if known else column.flag))
    return found


def lacking_in(panes: Sequence[Pane]) -> list[str]:
    """Return what no token has, with the flag that adds it; nothing where no text is shown."""
    texts = [pane.data for pane in panes if pane.kind == "tokens"]
    standard = [column for column in cell_columns() if column.is_standard]
    added = [(column.page_key, f"{column.name} ({column.flag})") for column in standard]
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

    @property
    def id(self) -> str:
        """Return the question's id."""
        return str(self.row.fields["id"])

    @property
    def where(self) -> str:
        """Return `file:line`, where it says more than the id does."""
        return where_text(self.row.fields)

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
    if file.part:
        found.append(f"The file {file.part}.")
    if n := file.rejected.total():
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in file.rejected.items())
        found.append(f"{n:,} inputs were rejected by the run ({reasons}), and are in no figure.")
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


def where_text(fields: Mapping[str, Any]) -> str:
    """Return `file:line` of a row, where it says more than the id does."""
    place, line = str(fields.get("source") or ""), fields.get("line")
    place = place if line is None else f"{place}:{line}"
    return "" if place == str(fields["id"]) else place


def flags_text(flags: Mapping[str, Any]) -> str:
    """Return flags as `name`, or `name count`."""
    return ", ".join(name if n is True else f"{name} {n}" for name, n in flags.items())
