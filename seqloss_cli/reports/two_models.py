"""The page of two results files: both models' losses side by side, and B − A."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np

from seqloss_cli.comparisons import Aligned, Comparison, align
from seqloss_cli.reports.charts import Cell, Chart, differences
from seqloss_cli.reports.joined import GatheredPair, ShownPair
from seqloss_cli.reports.one_model import charts_of
from seqloss_cli.reports.page import (
    Column,
    Page,
    PageOptions,
    Place,
    ShownSequence,
    Table,
    about_selection,
    about_sequence,
    metrics_of,
    model_name,
    notes_of,
    run_table,
    surroundings,
    where,
)
from seqloss_cli.reports.panes import (
    Names,
    Pane,
    difference_pane,
    places_in,
    token_pane,
    visible,
)
from seqloss_cli.reports.shown import Shown
from seqloss_cli.results import ResultsFile
from seqloss_cli.scales import DIFFERENCE_EDGES, step_of
from seqloss_cli.spans import spans_of
from seqloss_cli.statistics import Estimate
from seqloss_cli.summaries import Summary

SIDES = ["A", "B"]


def page_of_pair(
    files: Sequence[ResultsFile],
    found: GatheredPair,
    compared: Comparison,
    left_out: Sequence[str],
    options: PageOptions,
    n_unusable: int = 0,
) -> Page:
    """`left_out` says, in sentences, which rows are not compared."""
    names, pairs = Names(), found.chosen.items
    aligned = [_align(pair) if pair.has_text else None for pair in pairs]
    places = _places(pairs, aligned, options.n_worst)
    sequences = [
        _sequence(n, pair, each, names, _marked(places, n))
        for n, (pair, each) in enumerate(zip(pairs, aligned, strict=True))
    ]
    panes = [pane for sequence in sequences for pane in sequence.panes]
    titles = [_title(file, side) for file, side in zip(files, SIDES, strict=True)]
    notes = [
        note for file, side in zip(files, SIDES, strict=True) for note in notes_of(file, 0, side)
    ]
    if n_unusable:
        notes.append(f"{n_unusable:,} rows of the files could not be used, and are in no figure.")
    return Page(
        title=options.title or "Two models on the same texts",
        subtitle=" · ".join(titles),
        is_comparison=True,
        notes=[*notes, *left_out, *compared.notes],
        verdict=verdict(compared, options.confidence),
        figures=[],
        tables=[_totals(compared, found.summaries)],
        charts=_charts(found, aligned, compared.unit == "token"),
        places=places,
        places_header=["A", "B", "B − A"],
        columns=_columns(compared.unit),
        sequences=sequences,
        chosen=about_selection(found.chosen, options.limits, options.seed, "absolute difference"),
        provenance=[(t, run_table(f.run)) for t, f in zip(titles, files, strict=True)],
        data={"names": names.all(), "panes": [pane.data for pane in panes]},
        metrics=metrics_of(panes),
        has_masked=any("k" in pane.data for pane in panes),
    )


def _align(pair: ShownPair) -> Aligned:
    return align(pair.a.text, pair.a.covered(), pair.b.covered())


def _title(file: ResultsFile, side: str) -> str:
    return f"{side}: {model_name(file.run)} ({PurePath(file.name).name})"


def verdict(compared: Comparison, confidence: float) -> str:
    value, unit = compared.difference.value, compared.unit
    if value is None:
        return "No row of the two files can be compared."
    low, high = compared.difference.low, compared.difference.high
    share = f"{100 * confidence:g} %"
    between = "" if low is None or high is None else f", {share} interval {low:.4f} to {high:.4f}"
    said = f"{value:+.4f} nats per {unit}{between}; p = {compared.p_adjusted:.2g}"
    said = said.replace("-", "−")
    if not compared.shown:
        return f"No difference beyond noise: B − A is {said}."
    return f"B is {'better' if value < 0 else 'worse'} than A: B − A is {said}."


def _charts(found: GatheredPair, aligned: Sequence[Aligned | None], by_token: bool) -> list[Chart]:
    """Positions of other tokens are other positions: they are not held against each other."""
    values = [v for each in aligned if each for v in each.difference if v is not None]
    charts = charts_of(found.summaries, found.losses, SIDES)
    if not by_token:
        charts = [chart for chart in charts if chart.name != "positions"]
    own = differences(np.array(values, dtype=np.float64))
    return [own, *charts] if own else charts


# -- figures -------------------------------------------------------------------------------------


def _totals(compared: Comparison, summaries: Sequence[Summary]) -> Table:
    unit, sides = compared.unit, (compared.a, compared.b)
    totals = [side.total_loss for side in sides]
    gap = None if None in totals else (totals[1] or 0.0) - (totals[0] or 0.0)
    rates = [
        [getattr(s.whole.totals, name) for s in summaries]
        for name in ("perplexity", "bits_per_byte")
    ]
    rows: list[list[Cell | str]] = [
        [f"loss per {unit}", *(_cell(side.per_unit) for side in sides), _cell(compared.difference)],
        ["total loss", *(Cell(total, 3) for total in totals), Cell(gap, 3)],
    ]
    header = [
        Column("nats", is_text=True, unit=True),
        *(Column(name, is_loss=True) for name in ("A", "B", "B − A")),
    ]
    about = [
        f"{name}: A {a:.4f}, B {b:.4f}."
        for name, (a, b) in zip(("Perplexity", "Bits per byte"), rates, strict=True)
        if a is not None and b is not None
    ]
    about.append(
        f"{compared.n_documents:,} sequences of {compared.n_units:,} {unit}s: B is lower on "
        f"{compared.n_lower:,}, higher on {compared.n_higher:,}, the same on {compared.n_tied:,}."
    )
    about.append(f"Interval of the difference: {compared.difference.method}.")
    return Table("", header, rows, " ".join(about))


def _cell(estimate: Estimate) -> Cell:
    return Cell(estimate.value, 4, estimate.low, estimate.high)


def _columns(unit: str) -> list[Column]:
    return [
        Column(f"scored {unit}s"),
        *(Column(f"{side}, per {unit}", is_loss=True) for side in ("A", "B")),
        Column("B − A", is_loss=True),
        Column("total B − A", is_loss=True),
    ]


# -- sequences and places ------------------------------------------------------------------------


def _sequence(
    number: int, pair: ShownPair, aligned: Aligned | None, names: Names, marked: set[int]
) -> ShownSequence:
    panes, about = (
        list[Pane](),
        list(dict.fromkeys(about_sequence(pair.a) + about_sequence(pair.b))),
    )
    if aligned is not None:
        panes = [
            _side(pair.a, "A", names, None if pair.same_tokens else aligned),
            _side(pair.b, "B", names, None if pair.same_tokens else aligned),
            difference_pane(pair.a.text, aligned, f"t{number}-2-", marked),
        ]
    elif not about:
        about = ["No coloured text: the two files do not have the same text of it."]
    values = pair.per_unit()
    total = values[2] * pair.n_units
    cells: list[Cell | str] = [f"{pair.n_units:,}", *map(Cell, values), Cell(total, 3)]
    return ShownSequence(number, pair.a.id, where(pair.a), cells, panes, about)


def _side(side: Shown, label: str, names: Names, aligned: Aligned | None) -> Pane:
    """With the stretch that each span lies in, where these are not the spans themselves."""
    pane = token_pane(side, label, names, "", (), label.lower())
    if aligned is not None:
        pane.data["g"] = places_in(spans_of(side.text, side.offsets), aligned)
    return pane


def _places(pairs: Sequence[ShownPair], aligned: Sequence[Aligned | None], n: int) -> list[Place]:
    """The stretches that differ most, of the texts that are shown."""
    every = (
        (abs(value), -number, -span)
        for number, each in enumerate(aligned)
        if each is not None
        for span, value in enumerate(each.difference)
        if value
    )
    found = []
    for _, number, span in heapq.nlargest(n, every):
        each, pair = aligned[-number], pairs[-number]
        assert each is not None
        found.append(_place(pair, each, -number, -span))
    return found


def _place(pair: ShownPair, aligned: Aligned, number: int, span: int) -> Place:
    start, end = aligned.spans[span][2:]
    before, after = surroundings(pair.a.text, start, end)
    value = aligned.difference[span]
    assert value is not None
    cells = [Cell(aligned.first[span]), Cell(aligned.second[span]), Cell(value)]
    token = visible(pair.a.text[start:end].decode()) or "·"
    step = f"d{step_of(value, DIFFERENCE_EDGES)}"
    href = f"t{number}-2-{span}"
    return Place(href, pair.a.id, token, visible(before), visible(after), cells, step)


def _marked(places: Sequence[Place], number: int) -> set[int]:
    start = f"t{number}-2-"
    return {int(p.href.removeprefix(start)) for p in places if p.href.startswith(start)}
