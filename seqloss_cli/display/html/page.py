"""The content of a page as plain data, which the templates in `templates/` lay out.

Also what every part of a page needs: figures and texts as a page writes them. `report.js` writes
figures in bits likewise.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup, escape

from seqloss_cli.analysis.extremes import Limits
from seqloss_cli.core.escaping import WHITE_SPACE
from seqloss_cli.display import scales
from seqloss_cli.display.scales import LOSS_EDGES
from seqloss_cli.metrics.intervals import Estimate


@dataclass(frozen=True, slots=True)
class PageOptions:
    """The settings of a page."""

    title: str | None = None
    n_worst: int = 25
    """Tokens, or stretches of text, that are listed."""
    by: tuple[str, ...] = ()
    """Fields of rows, or of their meta, that groups are made by."""
    seed: int = 0
    confidence: float = 0.95
    """Confidence of the intervals of a comparison."""
    cluster: str | None = None
    """Field of rows that were not drawn independently."""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure of a table."""

    value: float | None
    """Nats in columns of losses, else a plain figure; `low` and `high` of an interval likewise."""
    digits: int = 4
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, estimate: Estimate, digits: int = 4) -> Cell:
        """Return an estimate with its interval."""
        return cls(estimate.value, digits, estimate.low, estimate.high)


TableRow = list[str | Cell]


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing, and its figures as a table."""

    name: str
    title: str
    drawing: Markup
    about: str
    """A sentence or two on reading it."""
    header: list[str] = field(default_factory=list)
    rows: list[TableRow] = field(default_factory=list)
    sides: list[str] = field(default_factory=list)
    """Names of the lines, where there are two."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of the totals, or of a choice."""

    name: str
    value: Cell | str
    about: str = ""
    is_loss: bool = False
    """In nats; the page can show it in bits."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its head, and what stands in it."""

    name: str
    cell: Callable[[Any], str | Cell]
    """Returns the text or figure of one of the things that rows are of."""
    is_text: bool = False
    is_loss: bool = False
    unit: bool = False
    """Its name is the unit that the page shows."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the totals."""

    title: str
    columns: list[Column]
    items: Sequence[Any]
    """The things that rows are of."""
    about: str = ""

    @property
    def rows(self) -> list[TableRow]:
        """Return the cells of each row."""
        return [row_of(item, self.columns) for item in self.items]


def row_of(item: Any, columns: Sequence[Column]) -> TableRow:
    """Return the cells of the row of one thing."""
    return [column.cell(item) for column in columns]


@dataclass(frozen=True, slots=True)
class Place:
    """A token, or a stretch of text, that a page lists."""

    order: int
    """Number of its row among those of the file."""
    number: int
    """Number of the token in its sequence, or of the stretch in its text."""
    sequence: str
    """Id of the sequence."""
    token: str
    before: str
    after: str
    cells: list[Cell]
    """Nats: the loss; or that of A, that of B, and B - A."""
    where: str
    """The number in words, or the first byte; empty where the text is shown."""
    ends: tuple[int, int] = (0, 0)
    """Bytes [start, end) of a stretch."""
    href: str = ""
    """Empty where its text is not shown."""
    step: str = ""
    """The class of its colour."""
    part: str = ""
    """The name of a token of which `token` shows the whole characters that it is in part of."""


@dataclass(frozen=True, slots=True)
class Pane:
    """A text as coloured spans, with what a browser shows for hovering and keys."""

    label: str
    kind: str
    """`tokens`, or `difference`."""
    spans: Markup
    data: dict[str, Any]
    """Arrays by token or span, under the short keys that `report.js` reads."""
    side: str = ""
    """`a`, `b` or `difference`, where there are several."""
    direction: str = "ltr"
    """Direction of the first letter. (`dir=auto` takes a browser seconds in a long text.)"""


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice of a question."""

    number: int
    marks: list[tuple[str, str]]
    """Class and words of each thing that it is: right, preferred."""
    pane: Pane
    scores: list[Figure]
    share: float | None
    """Its probability among the choices."""


@dataclass(frozen=True, slots=True)
class QuestionPanel:
    """A prompt and its choices."""

    prompt: Markup | None
    """None where it is not known."""
    direction: str
    choices: list[Choice]


@dataclass(frozen=True, slots=True)
class Section:
    """A sequence: its row in the table, and its texts."""

    number: int
    """Among the page's sequences, from 0."""
    id: str
    where: str
    cells: TableRow
    panes: list[Pane]
    about: list[str]
    question: QuestionPanel | None = None
    """Its panes are those of the choices."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A quantity that colours can stand for."""

    name: str
    label: str
    needs: str = ""
    """The option that the results would need."""


@dataclass(frozen=True, slots=True)
class Headings:
    """The names of a page's parts."""

    charts: str = "Losses"
    places: str = "Worst tokens"
    sequences: str = "Sequences"
    sequence: str = "sequence"
    texts: str = "Texts"
    about: str = (
        "Losses are −ln of the probability that the model gave each token, in nats; intervals are "
        "95 %, over sequences, of a single text over its blocks, and none from fewer than 5."
    )


class TokenNames:
    """The texts of tokens, each once: the data of panes hold their numbers."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, name: str) -> int:
        """Return the number of a text, a new one where it is new."""
        return self._numbers.setdefault(name, len(self._numbers))

    def all(self) -> list[str]:
        """Return the texts by number."""
        return list(self._numbers)


@dataclass(frozen=True, slots=True)
class Page:
    """All that a page shows."""

    title: str
    subtitle: str
    notes: list[str]
    """Sentences to bear in mind before reading anything else."""
    figures: list[Figure]
    tables: list[Table]
    charts: list[Chart]
    columns: list[Column]
    sequences: list[Section]
    chosen: str
    """Says which sequences these are, where they are not all."""
    provenance: list[tuple[str, list[tuple[str, str]]]]
    metrics: list[Metric]
    """The first is the one that the texts are coloured by."""
    names: TokenNames
    is_comparison: bool = False
    verdict: str = ""
    places: list[Place] = field(default_factory=list)
    places_header: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    """Quantities that no token has, with the flags that add them."""
    headings: Headings = field(default_factory=Headings)
    edges: Sequence[float] = LOSS_EDGES
    """Steps of the first metric."""

    @property
    def panes(self) -> list[Pane]:
        """Return the panes of all sequences, in their order."""
        return [pane for sequence in self.sequences for pane in sequence.panes]

    @property
    def has_texts(self) -> bool:
        """Tell whether any text is shown."""
        return bool(self.panes)

    @property
    def has_masked(self) -> bool:
        """Tell whether some tokens are scored, but do not count."""
        return any("k" in pane.data for pane in self.panes)

    @property
    def data(self) -> dict[str, Any]:
        """Return what the script reads."""
        return {"names": self.names.all(), "panes": [pane.data for pane in self.panes]}


def number(value: float, digits: int) -> str:
    """Return a figure as `scales.number` does, with a true minus and the sign of infinity."""
    return scales.number(value, digits).replace("-", "−").replace("inf", "∞")


def signed(value: float, digits: int) -> str:
    """Return a figure that has a sign in any case."""
    return number(value, digits) if value < 0 else f"+{number(value, digits)}"


_SPACES = "\n\r\t "
_NAMES = {
    "\x1b": "ESC", "\u202a": "LRE", "\u202b": "RLE", "\u202c": "PDF", "\u202d": "LRO",
    "\u202e": "RLO", "\u2066": "LRI", "\u2067": "RLI", "\u2068": "FSI", "\u2069": "PDI",
    "\u200e": "LRM", "\u200f": "RLM", "\u061c": "ALM", "\u200b": "ZWSP", "\u00ad": "SHY",
    "\ufeff": "BOM", "\u2028": "LSEP", "\u2029": "PSEP", "\x00": "NUL", "\x7f": "DEL",
}  # fmt: skip
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def escape_text(text: str) -> str:
    """Return HTML whose text is this one; the script puts in the NULs that HTML cannot hold."""
    # a browser would read a carriage return as a line feed, and copied text would be another
    return str(escape(text)).replace("\r", "&#13;").replace("\0", "\ufffd")


def direction_of(text: str) -> str:
    """Return `rtl` where the first letter is of a script that is written from right to left."""
    # half of a surrogate pair, which is no character, would count as a letter
    for char in text.encode("utf-8", "replace").decode():
        kind = unicodedata.bidirectional(char)
        if kind in ("L", "R", "AL"):
            return "ltr" if kind == "L" else "rtl"
    return "ltr"


def visible(text: str) -> str:
    """Return a text for labels and lists: white space as marks, hidden characters by name."""
    return "".join(
        WHITE_SPACE.get(char) or (f"⟨{_name_of(char)}⟩" if _is_hidden(char) else char)
        for char in text
    )


def mark_of(text: str, name: str) -> tuple[str, str]:
    """Return a class and a mark for invisible text: nothing at all, line ends, controls.

    `name` is the mark of a token that covers nothing.
    """
    if not text:
        return "z", visible(name) or "∅"
    if all(char in _SPACES for char in text):
        return ("n", "") if "\n" in text or "\r" in text else ("", "")
    # joiners, which pictures and letters are made with, are hidden, too: among these no mark
    hidden = [char for char in text if _is_hidden(char)]
    is_blank = all(_is_hidden(char) or char in _SPACES for char in text)
    # a character that turns the direction of a line can make code look like other code
    if any(char in _BIDI or unicodedata.category(char) == "Cc" for char in hidden) or is_blank:
        return "c", " ".join(_name_of(char) for char in dict.fromkeys(hidden))
    return "", ""


def _is_hidden(char: str) -> bool:
    if char in _SPACES:
        return False
    return unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp")


def _name_of(char: str) -> str:
    return _NAMES.get(char) or f"U+{ord(char):04X}"
