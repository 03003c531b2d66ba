"""A text as coloured spans, one for each token, whose content is the text to the last character.

Tokens that share a character are one span. A token that covers nothing (BOS, EOS, a space that the
tokenizer put in) is an empty span with a mark that is no part of the text. What a browser shows
for hovering and keys stands in `data`, by the number of the span.
"""

from __future__ import annotations

import math
import unicodedata
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from seqloss_cli.analysis.aligning import AlignedLosses, sum_of_known
from seqloss_cli.core.byte_spans import TokenSpan, spans_of
from seqloss_cli.core.columns import TokenColumn, cell_columns
from seqloss_cli.display.html.shown import Shown
from seqloss_cli.display.scales import DIFFERENCE_EDGES, LOSS_EDGES, step_of

_SPACES = "\n\r\t "
_NAMES = {
    "\x1b": "ESC", "\u202a": "LRE", "\u202b": "RLE", "\u202c": "PDF", "\u202d": "LRO",
    "\u202e": "RLO", "\u2066": "LRI", "\u2067": "RLI", "\u2068": "FSI", "\u2069": "PDI",
    "\u200e": "LRM", "\u200f": "RLM", "\u061c": "ALM", "\u200b": "ZWSP", "\u00ad": "SHY",
    "\ufeff": "BOM", "\u2028": "LSEP", "\u2029": "PSEP", "\x00": "NUL", "\x7f": "DEL",
}  # fmt: skip
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_SHORT_KEYS = {"ranks": "r", "entropies": "e"}
_INFINITE = -1
"""Stands for an infinite loss in the data: no loss is below 0."""


class Names:
    """Texts of tokens, each once."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def place(self, name: str) -> int:
        return self._places.setdefault(name, len(self._places))

    def all(self) -> list[str]:
        return list(self._places)


@dataclass(frozen=True, slots=True)
class Pane:
    label: str
    kind: str
    """`tokens`, or `difference`."""
    spans: Markup
    data: dict[str, Any]
    side: str = ""
    """`a`, `b` or `difference`, where there are several."""
    direction: str = "ltr"
    """That of the first letter. (`dir=auto` takes a browser seconds in a long text.)"""


def data_key(column: TokenColumn) -> str:
    """Return where a column's values stand in the data of a page."""
    return _SHORT_KEYS.get(column.name, column.csv)


def token_pane(
    shown: Shown,
    label: str,
    names: Names,
    anchors: str,
    marked: Collection[int],
    side: str = "",
    colour: str = "",
    edges: Sequence[float] = LOSS_EDGES,
) -> Pane:
    """`marked` are the spans that can be linked to, as `anchors` and their number. Coloured by the
    losses, or by what is called `colour` of `shown.further`."""
    values = shown.further[colour] if colour else shown.losses
    spans = spans_of(shown.text, shown.offsets)
    parts = [Markup(escape_text(shown.text[: shown.offsets[0]].decode()))]
    exact: dict[int, str] = {}
    for n, (first, last, start, end) in enumerate(spans):
        text = shown.text[start:end].decode()
        if "\0" in text:
            exact[n] = text
        loss = sum_of_known(values[first:last])
        step = "u" if loss is None else f"s{step_of(loss, edges)}"
        masked = loss is not None and not any(shown.counted[first:last])
        more = "m" if masked else ""
        anchor = f"{anchors}{n}" if n in marked else ""
        parts.append(span_markup(text, step, more, anchor, "".join(shown.tokens[first:last])))
    data = _token_data(shown, names) | _groups(spans, shown.size)
    if exact:
        data["x"] = exact
    return Pane(label, "tokens", Markup("").join(parts), data, side, direction_of(shown.text))


def direction_of(text: bytes) -> str:
    for char in text.decode():
        kind = unicodedata.bidirectional(char)
        if kind in ("L", "R", "AL"):
            return "ltr" if kind == "L" else "rtl"
    return "ltr"


def _token_data(shown: Shown, names: Names) -> dict[str, Any]:
    data: dict[str, Any] = {
        "l": [loss_or_mark(loss) for loss in shown.losses],
        "t": [names.place(token) for token in shown.tokens],
    }
    if shown.ids is not None:
        data["i"] = shown.ids
    if not all(c or loss is None for c, loss in zip(shown.counted, shown.losses, strict=True)):
        data["k"] = [int(counted) for counted in shown.counted]
    for column in cell_columns():
        if (values := shown.columns.get(column.name)) is not None:
            is_whole = column.kind == "whole"
            data[data_key(column)] = values if is_whole else [_short(value) for value in values]
    if shown.contexts is not None:
        data["c"] = shown.contexts
    if shown.alternatives is not None:
        data["a"] = [_flat(each, names) for each in shown.alternatives]
        data["h"] = _own_places(shown)
    for name, values in shown.further.items():
        data[name] = [loss_or_mark(value) for value in values]
    return data


def _groups(spans: Sequence[TokenSpan], n_tokens: int) -> dict[str, Any]:
    """First tokens of the spans, where some have more than one."""
    return {} if len(spans) == n_tokens else {"n": [first for first, *_ in spans]}


def _flat(alternatives: Any, names: Names) -> list[Any] | None:
    if not alternatives:
        return None
    return [x for name, value, _ in alternatives for x in (names.place(name), _short(value, 6))]


def _own_places(shown: Shown) -> list[int]:
    """Where each token stands among its alternatives, by its id: several tokens can have one name.
    -1 where it is not among them."""
    assert shown.alternatives is not None
    if shown.ids is None:
        return [-1] * shown.size
    pairs = zip(shown.ids, shown.alternatives, strict=True)
    return [
        next((n for n, (*_, other) in enumerate(each or ()) if other == own), -1)
        for own, each in pairs
    ]


def loss_or_mark(loss: float | None) -> float | None:
    """As it stands in the data."""
    return _INFINITE if loss is not None and math.isinf(loss) else _short(loss)


def _short(value: float | None, digits: int = 9) -> float | None:
    """So many digits that those which the page shows are those of the value itself: a float32
    needs nine, and half of the bytes."""
    return None if value is None else float(f"{value:.{digits}g}")


# -- two models ----------------------------------------------------------------------------------


def places_in(spans: Sequence[TokenSpan], aligned: AlignedLosses) -> list[int]:
    """For each span of a text the stretch that it lies in, by where it ends."""
    ends = [end for *_, end in aligned.spans]
    return [min(bisect_left(ends, end), len(ends) - 1) for *_, end in spans]


def difference_pane(
    text: bytes, aligned: AlignedLosses, anchors: str, marked: Collection[int]
) -> Pane:
    start = aligned.spans[0][2] if aligned.spans else 0
    parts, exact = [Markup(escape_text(text[:start].decode()))], dict[int, str]()
    for n, (span, value) in enumerate(zip(aligned.spans, aligned.differences, strict=True)):
        piece = text[span[2] : span[3]].decode()
        if "\0" in piece:
            exact[n] = piece
        step = "u" if value is None else f"d{step_of(value, DIFFERENCE_EDGES)}"
        anchor = f"{anchors}{n}" if n in marked else ""
        parts.append(span_markup(piece, step, "", anchor, "·"))
    data = {
        "d": [_short(value) for value in aligned.differences],
        "l": [loss_or_mark(value) for value in aligned.losses_a],
        "b": [loss_or_mark(value) for value in aligned.losses_b],
    } | ({"x": exact} if exact else {})
    direction = direction_of(text)
    return Pane("B − A", "difference", Markup("").join(parts), data, "difference", direction)


# -- texts in HTML -------------------------------------------------------------------------------


def span_markup(text: str, step: str, more: str, anchor: str, name: str) -> Markup:
    """`name` is what a token that covers nothing is called."""
    kind, mark = _mark(text, name)
    classes = " ".join(part for part in (step, more, kind) if part)
    attributes = f'class="{classes}"' if " " in classes else f"class={classes}"
    if anchor:
        attributes += f" id={anchor}"
    if mark:
        attributes += f' data-m="{escape(mark)}"'
    return Markup(f"<span {attributes}>{escape_text(text)}</span>")


def escape_text(text: str) -> str:
    """So that the page's text is this text. A NUL cannot be in HTML: the script puts it in."""
    return str(escape(text)).replace("\r", "&#13;").replace("\0", "\ufffd")


def _mark(text: str, name: str) -> tuple[str, str]:
    """A class and a mark for what cannot be seen: no text at all, line ends, controls."""
    if not text:
        return "z", visible(name) or "∅"
    if all(char in _SPACES for char in text):
        return ("n", "") if "\n" in text or "\r" in text else ("", "")
    hidden = [char for char in text if _is_hidden(char)]
    is_blank = all(_is_hidden(char) or char in _SPACES for char in text)
    if any(char in _BIDI or unicodedata.category(char) == "Cc" for char in hidden) or is_blank:
        return "c", " ".join(_named(char) for char in dict.fromkeys(hidden))
    return "", ""


def _is_hidden(char: str) -> bool:
    if char in _SPACES:
        return False
    return unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp")


def _named(char: str) -> str:
    return _NAMES.get(char) or f"U+{ord(char):04X}"


def visible(text: str) -> str:
    """For labels and lists: white space as marks, hidden characters by name."""
    shown = {" ": "·", "\n": "↵", "\r": "␍", "\t": "→"}
    return "".join(
        shown.get(char) or (f"⟨{_named(char)}⟩" if _is_hidden(char) else char) for char in text
    )
