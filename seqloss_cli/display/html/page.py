"""What a page shows, as plain data for the templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from seqloss_cli.core.columns import cell_columns
from seqloss_cli.display.html.charts import Cell, Chart
from seqloss_cli.display.html.panes import Pane, data_key
from seqloss_cli.display.html.selecting import Chosen, Limits
from seqloss_cli.display.html.shown import Shown
from seqloss_cli.display.scales import LOSS_EDGES
from seqloss_cli.results.files import ResultsOf

NEAR = 32
"""Characters of text shown before and after a token of a list."""


@dataclass(frozen=True, slots=True)
class PageOptions:
    title: str | None = None
    n_worst: int = 25
    by: tuple[str, ...] = ()
    seed: int = 0
    confidence: float = 0.95
    """Of the intervals of a comparison."""
    cluster: str | None = None
    """Field of rows that were not drawn independently."""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    value: Cell | str
    about: str = ""
    is_loss: bool = False
    """In nats, to be shown in bits, too."""


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    is_text: bool = False
    is_loss: bool = False
    unit: bool = False
    """Its name is the unit that the page shows."""


@dataclass(frozen=True, slots=True)
class Place:
    """A token, or a stretch of text, of a list."""

    href: str
    """Empty where its text is not shown."""
    sequence: str
    token: str
    before: str
    after: str
    cells: list[Cell]
    step: str
    """The class of its colour."""
    where: str = ""
    """Which token it is, where its text is not shown."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A figure of a choice."""

    name: str
    value: Cell | str
    is_loss: bool = False


@dataclass(frozen=True, slots=True)
class ShownChoice:
    number: int
    marks: list[tuple[str, str]]
    """Class and words of each thing that it is: right, preferred."""
    pane: Pane
    scores: list[Scored]
    share: float | None
    """Its probability among the choices."""


@dataclass(frozen=True, slots=True)
class Question:
    prompt: Markup | None
    """None where it is not known."""
    direction: str
    choices: list[ShownChoice]


@dataclass(frozen=True, slots=True)
class ShownSequence:
    number: int
    """Of the page's sequences, from 0."""
    id: str
    where: str
    cells: list[Cell | str]
    panes: list[Pane]
    about: list[str]
    question: Question | None = None
    """Its panes are those of the choices."""


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    header: list[Column]
    rows: list[list[Cell | str]]
    about: str = ""


@dataclass(frozen=True, slots=True)
class Metric:
    """What colours can stand for."""

    name: str
    said: str
    needs: str = ""
    """The option that the results would need."""


@dataclass(frozen=True, slots=True)
class Words:
    """What the parts of the page are called."""

    charts: str = "Losses"
    places: str = "Worst tokens"
    sequences: str = "Sequences"
    sequence: str = "sequence"
    texts: str = "Texts"
    about: str = (
        "Losses are −ln of the probability that the model gave each token, in nats; intervals are "
        "95 %, over sequences, of a single text over its blocks."
    )


@dataclass(frozen=True, slots=True)
class Page:
    title: str
    subtitle: str
    is_comparison: bool
    notes: list[str]
    """What to bear in mind before reading anything else."""
    verdict: str
    figures: list[Figure]
    tables: list[Table]
    charts: list[Chart]
    places: list[Place]
    places_header: list[str]
    columns: list[Column]
    sequences: list[ShownSequence]
    chosen: str
    """Which sequences these are, where they are not all."""
    provenance: list[tuple[str, list[tuple[str, str]]]]
    data: dict[str, Any]
    metrics: list[Metric]
    """The first is the one that the texts are coloured by."""
    has_masked: bool
    lacking: list[str] = field(default_factory=list)
    """What no token has that it could, with the flag that adds it."""
    words: Words = field(default_factory=Words)
    edges: Sequence[float] = LOSS_EDGES
    """Of the first metric."""

    @property
    def has_texts(self) -> bool:
        return any(sequence.panes for sequence in self.sequences)


def where(shown: Shown) -> str:
    """`file:line`, where it says more than the id does."""
    place = shown.source if shown.line is None else f"{shown.source}:{shown.line}"
    return "" if place == shown.id else place


def about_sequence(shown: Shown) -> list[str]:
    """What a reader must know of its text."""
    said = []
    if shown.why_plain:
        said.append(f"No coloured text: {shown.why_plain}.")
    if shown.of_ids:
        said.append("Token ids without a text: the tokens stand here as their tokenizer has them.")
    if shown.n_left_out:
        said.append(
            f"The first {shown.size:,} tokens of {shown.size + shown.n_left_out:,}, for which "
            "there is room; figures, charts and lists are of all of them."
        )
    return said


def about_selection(
    chosen: Chosen[Any], limits: Limits, seed: int, per: str, of: str = "sequences"
) -> str:
    """Empty where all are shown; of a text that is cut, `about_sequence` tells."""
    if not chosen.n_worst or chosen.n_seen == 1:
        return ""
    sample = f" and {chosen.n_sampled:,} drawn at random (seed {seed})" if chosen.n_sampled else ""
    return (
        f"Of {chosen.n_seen:,} {of} these are the {chosen.n_worst:,} with the highest {per}"
        f"{sample}: a page holds at most {limits.tokens:,} tokens of {limits.sequences:,} "
        f"{of}. Totals, charts and lists are of all of them."
    )


def notes_of(file: ResultsOf[Any], n_unusable: int, name: str = "") -> list[str]:
    """What went wrong, or was left out, of a file that was read."""
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
    """Keys and values of a run, nested ones by dotted keys; what was not used is left out."""
    found: list[tuple[str, str]] = []
    for key, value in run.items():
        if isinstance(value, Mapping):
            found += [(f"{key}.{name}", text) for name, text in run_table(value)]
        elif value is not None:
            found.append((key, _said(value)))
    return found


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def surroundings(text: bytes, start: int, end: int) -> tuple[str, str]:
    """The characters before and after a stretch of bytes, on its own line."""
    before = text[max(0, start - 4 * NEAR) : start].decode("utf-8", "ignore")[-NEAR:]
    after = text[end : end + 4 * NEAR].decode("utf-8", "ignore")[:NEAR]
    return before, after


def model_name(run: Mapping[str, Any]) -> str:
    name = str(run.get("model"))
    parts = [str(run[key]) for key in ("revision", "adapter", "quantization") if run.get(key)]
    return f"{name} ({', '.join(parts)})" if parts else name


def flags_text(flags: Mapping[str, Any]) -> str:
    """`name`, or `name count`."""
    return ", ".join(name if n is True else f"{name} {n}" for name, n in flags.items())


def metrics_of(panes: Sequence[Pane]) -> list[Metric]:
    """Loss, and what else the tokens have, or would have with an option."""
    found = [Metric("loss", "loss")]
    for column in cell_columns():
        known = any(data_key(column) in pane.data for pane in panes)
        if known or column.is_standard:
            found.append(Metric(column.csv, column.csv, "" if known else column.flag))
    return found


_ADDED = (
    *(
        (data_key(column), f"{column.name} ({column.flag})")
        for column in cell_columns()
        if column.is_standard
    ),
    ("a", "alternatives (--top-k N)"),
    ("c", "context lengths (--context-lengths)"),
)


def lacking_in(panes: Sequence[Pane]) -> list[str]:
    """Nothing where no text is shown."""
    texts = [pane.data for pane in panes if pane.kind == "tokens"]
    return [said for key, said in _ADDED if texts and not any(key in data for data in texts)]
