"""Show texts: as coloured spans, and as lists of the tokens where losses are highest.

A text is one span for each token, and its content is the text to the last character. Tokens that
share a character are one span. A token that covers nothing is an empty span, with a mark that is
no part of the text: BOS, EOS, a space that the tokenizer put in. What a browser shows for hovering
and keys stands in the data of a pane, by the number of the span.

Lists are over all rows that are read: also of texts that a page has no room for.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from seqloss_cli.analysis.extremes import NEAR, Largest, token_text
from seqloss_cli.analysis.joining import AlignedLosses, sum_of_known
from seqloss_cli.core.byte_spans import TokenSpan
from seqloss_cli.core.columns import cell_columns
from seqloss_cli.core.records import Floats
from seqloss_cli.display.html import page
from seqloss_cli.display.html.sequences import PageSequence, number_of
from seqloss_cli.display.scales import DIFFERENCE_EDGES, LOSS_EDGES, step_of
from seqloss_cli.results.schema.scores import ResultRow

_INFINITE = -1
"""Stands for an infinite loss in the data, as JSON has no infinity: no loss is below 0."""
_LONGEST = 48
"""Characters of a stretch of text in a list."""


def token_pane(
    sequence: PageSequence,
    label: str,
    names: page.TokenNames,
    anchors: str = "",
    marked: Collection[int] = (),
    colour: str = "",
    edges: Sequence[float] = LOSS_EDGES,
) -> page.Pane:
    """Return a text coloured by its losses, or by the quantity `colour` of `sequence.extra`.

    The spans `marked` can be linked to, by `anchors` and their number.
    """
    losses, names_of_tokens = sequence.losses(), sequence.row.fields["tokens"]
    assert sequence.row.tokens is not None, "a text without tokens is not coloured"
    counted = sequence.row.tokens.counted.tolist()
    values = sequence.extra[colour] if colour else losses
    spans, looks = sequence.token_bytes.char_spans(), list[tuple[str, str]]()
    for first, last, _, _ in spans:
        loss = sum_of_known(values[first:last])
        step = "u" if loss is None else f"s{step_of(loss, edges)}"
        is_masked = loss is not None and not any(counted[first:last])
        looks.append((f"{step} m" if is_masked else step, "".join(names_of_tokens[first:last])))
    markup, exact = _spans(sequence.text, spans, looks, anchors, marked)
    data = _token_data(sequence, losses, counted, names)
    # the first tokens of the spans, where some have more than one
    firsts = {} if len(spans) == sequence.size else {"n": [first for first, *_ in spans]}
    direction = page.direction_of(sequence.text.decode())
    return page.Pane(label, "tokens", markup, data | firsts | exact, label.lower(), direction)


def _token_data(
    sequence: PageSequence,
    losses: Sequence[float | None],
    counted: Sequence[bool],
    names: page.TokenNames,
) -> dict[str, Any]:
    """Return arrays by token, under the keys that `report.js` reads."""
    n, fields = sequence.size, sequence.row.fields
    # one letter a key: a page holds tens of thousands of values of some panes
    data: dict[str, Any] = {
        "l": [loss_or_mark(loss) for loss in losses],
        "t": [names.number(token) for token in fields["tokens"][:n]],
    }
    ids = None if fields.get("token_ids") is None else fields["token_ids"][:n].tolist()
    if ids is not None:
        data["i"] = ids
    # a mask only where it hides a loss: BOS, unscored in any case, makes none
    if not all(counts or loss is None for counts, loss in zip(counted, losses, strict=True)):
        data["k"] = [int(counts) for counts in counted]
    for column in cell_columns():
        if (values := sequence.array(column.name, number_of)) is not None:
            is_whole = column.kind == "whole"
            data[column.page_key] = values if is_whole else [_short(value) for value in values]
    if (contexts := sequence.array("context_lengths", number_of)) is not None:
        data["c"] = contexts
    if (alternatives := sequence.array("top_logprobs", _objects)) is not None:
        data["a"] = [_flat(each, names) for each in alternatives]
        data["h"] = _own_places(ids or [None] * n, alternatives)
    for name, extra in sequence.extra.items():
        data[name] = [loss_or_mark(value) for value in extra[:n]]
    return data


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _flat(alternatives: Sequence[Mapping[str, Any]], names: page.TokenNames) -> list[Any] | None:
    """Return names and log-probabilities (nats) in turn."""
    flat = list[Any]()
    for each in alternatives:
        flat += [names.number(str(each.get("token"))), _short(number_of(each.get("log_prob")), 6)]
    return flat or None


def _own_places(
    ids: Sequence[Any], alternatives: Sequence[Sequence[Mapping[str, Any]]]
) -> list[int]:
    """Return where each token stands among its alternatives, -1 where it is not among them.

    By ids: several tokens can have one name.
    """
    return [
        next((n for n, other in enumerate(each) if own is not None and other.get("id") == own), -1)
        for own, each in zip(ids, alternatives, strict=True)
    ]


def loss_or_mark(loss: float | None) -> float | None:
    """Return a loss, nats, as the data of a pane hold it."""
    return _INFINITE if loss is not None and math.isinf(loss) else _short(loss)


def _short(value: float | None, digits: int = 9) -> float | None:
    # a float32 needs nine digits, and half of the bytes of the float64 that it was made
    return None if value is None else float(f"{value:.{digits}g}")


def difference_pane(
    text: bytes, aligned: AlignedLosses, anchors: str, marked: Collection[int]
) -> page.Pane:
    """Return the text that two models share, coloured by B - A."""
    steps = (
        "u" if value is None else f"d{step_of(value, DIFFERENCE_EDGES)}"
        for value in aligned.differences
    )
    markup, exact = _spans(text, aligned.spans, ((step, "·") for step in steps), anchors, marked)
    data: dict[str, Any] = {
        "d": [_short(value) for value in aligned.differences],
        "l": [loss_or_mark(value) for value in aligned.losses_a],
        "b": [loss_or_mark(value) for value in aligned.losses_b],
    }
    side, direction = "difference", page.direction_of(text.decode())
    return page.Pane("B − A", "difference", markup, data | exact, side, direction)


def stretches_of(spans: Sequence[TokenSpan], aligned: AlignedLosses) -> list[int]:
    """Return for each span of a text the number of the stretch that it lies in."""
    # by its end: an empty span where a stretch begins is of the one before
    ends = [end for *_, end in aligned.spans]
    return [min(bisect_left(ends, end), len(ends) - 1) for *_, end in spans]


def _spans(
    text: bytes,
    spans: Sequence[TokenSpan],
    looks: Iterable[tuple[str, str]],
    anchors: str,
    marked: Collection[int],
) -> tuple[Markup, dict[str, Any]]:
    """Return the text as spans, and data with the pieces that HTML cannot hold as they are.

    `looks` are the classes of each span, and the name of its tokens.
    """
    start, exact = spans[0][2] if spans else 0, dict[int, str]()
    parts = [Markup(page.escape_text(text[:start].decode()))]
    for n, ((*_, first, last), (classes, name)) in enumerate(zip(spans, looks, strict=True)):
        piece = text[first:last].decode()
        if "\0" in piece:
            exact[n] = piece
        parts.append(span_markup(piece, classes, f"{anchors}{n}" if n in marked else "", name))
    return Markup("").join(parts), {"x": exact} if exact else {}


def span_markup(text: str, classes: str, anchor: str, name: str) -> Markup:
    """Return a span; `name` is what a token that covers nothing is called."""
    kind, mark = page.mark_of(text, name)
    classes = f"{classes} {kind}" if kind else classes
    # no quotes where HTML needs none: a long text has many spans
    attributes = f'class="{classes}"' if " " in classes else f"class={classes}"
    if anchor:
        attributes += f" id={anchor}"
    if mark:
        attributes += f' data-m="{escape(mark)}"'
    return Markup(f"<span {attributes}>{page.escape_text(text)}</span>")


class WorstPlaces:
    """Collects the tokens of the highest losses, or the stretches of the largest differences."""

    def __init__(self, size: int) -> None:
        self._top = Largest(size)

    def add_tokens(self, row: ResultRow, sequence: PageSequence) -> None:
        """Consider the tokens of a row; infinite losses are the worst."""

        def place(number: int, loss: float) -> page.Place:
            name = page.visible(token_text(row, number) or "") or f"token {number}"
            ends, part = (0, 0), ""
            if not sequence.why_plain:
                # the characters that the token is of
                first, last = sequence.token_bytes.snap(number, number + 1)
                start, end = sequence.token_bytes.offsets[[first, last]].tolist()
                ends = start, end
                if whole := sequence.token_bytes.near(number, 0)[1]:
                    name, part = page.visible(whole), name
            found = _place(sequence, number, name, f"token {number:,}", ends, page.Cell(loss))
            return replace(found, part=part)

        if row.tokens is not None:
            self._add(np.where(row.tokens.counted, row.tokens.losses, -1.0), place)

    def add_stretches(self, sequence: PageSequence, aligned: AlignedLosses) -> None:
        """Consider the stretches of a text that two models share."""

        def place(number: int, size: float) -> page.Place:
            start, end = aligned.spans[number][2:]
            text = page.visible(sequence.text[start:end].decode()) or "·"
            text = f"{text[:_LONGEST]}…" if len(text) > _LONGEST else text
            losses = (aligned.losses_a, aligned.losses_b, aligned.differences)
            cells = (page.Cell(each[number]) for each in losses)
            return _place(sequence, number, text, f"byte {start:,}", (start, end), *cells)

        self._add(np.array([abs(d) if d else -1.0 for d in aligned.differences]), place)

    def _add(self, sizes: Floats, place: Callable[[int, float], page.Place]) -> None:
        """Keep the places of the largest sizes, shape n, nats; those below 0 do not count."""
        keys = np.where(sizes < 0, -np.inf, sizes)
        self._top.add_highest(keys, lambda number: place(number, float(sizes[number])))

    def items(self) -> list[page.Place]:
        """Return them, those of the highest losses or largest differences first."""
        return self._top.items()


def _place(
    sequence: PageSequence,
    number: int,
    token: str,
    where: str,
    ends: tuple[int, int],
    *cells: page.Cell,
) -> page.Place:
    """Return a place with the text before and after its bytes [start, end)."""
    before, after = map(page.visible, sequence.token_bytes.around(*ends, NEAR))
    return page.Place(
        sequence.order, number, sequence.id, token, before, after, [*cells], where, ends
    )


Anchors = Mapping[tuple[int, int], str]
"""Anchors of the listed tokens that a page shows, by the order of the row and the token."""


def text_sections(
    sequences: Sequence[PageSequence],
    places: Sequence[page.Place],
    columns: Sequence[page.Column],
    names: page.TokenNames,
    colour: str = "",
    edges: Sequence[float] = LOSS_EDGES,
) -> tuple[list[page.Section], Anchors]:
    """Return a section with one pane for each sequence, and the anchors of the listed places."""
    sections, anchors = [], dict[tuple[int, int], str]()
    for n, each in enumerate(sequences):
        linked, prefix = _spans_of(each, places), f"t{n}-0-"
        anchors |= {(each.order, place): f"{prefix}{span}" for place, span in linked.items()}
        panes, marked = list[page.Pane](), set(linked.values())
        if not each.why_plain:
            panes = [token_pane(each, "", names, prefix, marked, colour, edges)]
        cells = page.row_of(each, columns)
        sections.append(page.Section(n, each.id, each.where, cells, panes, each.about()))
    return sections, anchors


def _spans_of(sequence: PageSequence, places: Sequence[page.Place]) -> dict[int, int]:
    """Return the number of the span of each listed token that the page shows."""
    numbers = [each.number for each in places if each.order == sequence.order]
    if sequence.why_plain or not numbers:
        return {}
    firsts = [first for first, *_ in sequence.token_bytes.char_spans()]
    return {n: bisect_right(firsts, n) - 1 for n in numbers if n < sequence.size}


def linked(
    places: Sequence[page.Place],
    anchors: Anchors,
    letter: str,
    edges: Sequence[float],
) -> list[page.Place]:
    """Return the places: linked where the page has an anchor, else with where they stand.

    `letter` is that of the palette, `edges` the steps of the last value.
    """
    found = []
    for each in places:
        href, value = anchors.get((each.order, each.number), ""), each.cells[-1].value
        step = f"{letter}{step_of(value or 0.0, edges)}"
        found.append(replace(each, href=href, step=step, where="" if href else each.where))
    return found
