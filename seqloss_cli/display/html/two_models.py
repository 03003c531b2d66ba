"""The page of two results files: both models' losses side by side, and B − A."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from seqloss_cli.analysis.aligning import AlignedLosses
from seqloss_cli.analysis.compare import Comparison
from seqloss_cli.analysis.summarize import Summary
from seqloss_cli.core.byte_spans import spans_of
from seqloss_cli.display.html.charts import Cell, Chart, differences
from seqloss_cli.display.html.joined import GatheredPair, ShownPair
from seqloss_cli.display.html.numbers import number, signed
from seqloss_cli.display.html.one_model import charts_of
from seqloss_cli.display.html.page import (
    Column,
    Metric,
    Page,
    PageOptions,
    ShownSequence,
    Table,
    Words,
    about_selection,
    about_sequence,
    lacking_in,
    metrics_of,
    model_name,
    notes_of,
    run_table,
    where,
)
from seqloss_cli.display.html.panes import (
    Names,
    Pane,
    difference_pane,
    places_in,
    token_pane,
)
from seqloss_cli.display.html.shown import Shown
from seqloss_cli.display.html.worst import Worst, place_of
from seqloss_cli.display.scales import DIFFERENCE_EDGES, step_of
from seqloss_cli.metrics.intervals import Estimate
from seqloss_cli.results.files import ResultsFile

SIDES = ["A", "B"]
_WORDS = Words(
    places="Largest differences",
    about="Losses are −ln of the probability that the model gave each token, in nats.",
)
_PER = "absolute difference, on the whole or of a token"


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
    aligned = [pair.aligned() if pair.has_text else None for pair in pairs]
    sequences, anchors = [], dict[tuple[int, int], str]()
    for n, (pair, each) in enumerate(zip(pairs, aligned, strict=True)):
        spans = _spans_with(pair, each, found.worst)
        sequences.append(_sequence(n, pair, each, names, set(spans.values())))
        for stretch, span in spans.items():
            anchors[pair.a.order, stretch] = f"t{n}-2-{span}"
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
        charts=_charts(found, compared.unit == "token", options),
        places=[
            place_of(each, anchors, f"d{step_of(each.values[-1], DIFFERENCE_EDGES)}")
            for each in found.worst
        ],
        places_header=["A", "B", "B − A"],
        columns=_columns(compared.unit),
        sequences=sequences,
        chosen=about_selection(found.chosen, options.limits, options.seed, _PER),
        provenance=[(t, run_table(f.run)) for t, f in zip(titles, files, strict=True)],
        data={"names": names.all(), "panes": [pane.data for pane in panes]},
        metrics=[*metrics_of(panes), Metric("difference", "difference, B − A")],
        has_masked=any("k" in pane.data for pane in panes),
        words=_WORDS,
        lacking=lacking_in(panes),
    )


def _title(file: ResultsFile, side: str) -> str:
    return f"{side}: {model_name(file.run)} ({PurePath(file.name).name})"


def verdict(compared: Comparison, confidence: float) -> str:
    value, unit = compared.difference.value, compared.unit
    if value is None:
        return "No row of the two files can be compared."
    low, high = compared.difference.low, compared.difference.high
    share = f"{100 * confidence:g} %"
    between = ""
    if low is not None and high is not None:
        between = f", {share} interval {number(low, 4)} to {number(high, 4)}"
    p = f"{compared.p_adjusted:.2g}".replace("-", "−")
    said = f"{signed(value, 4)} nats per {unit}{between}; p = {p}"
    if not compared.is_significant:
        return f"No difference beyond noise: B − A is {said}."
    return f"B is {'better' if value < 0 else 'worse'} than A: B − A is {said}."


def _charts(found: GatheredPair, by_token: bool, options: PageOptions) -> list[Chart]:
    """Positions of other tokens are other positions: they are not held against each other."""
    drawn_by = f"values of {options.cluster}" if options.cluster else "documents"
    charts = charts_of(found.summaries, found.losses, SIDES, options.confidence, drawn_by)
    if not by_token:
        charts = [chart for chart in charts if chart.name != "positions"]
    own = differences(found.differences, found.n_differences)
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
    number: int, pair: ShownPair, aligned: AlignedLosses | None, names: Names, marked: set[int]
) -> ShownSequence:
    panes, about = list[Pane](), _about(pair)
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


def _about(pair: ShownPair) -> list[str]:
    of_a, of_b = about_sequence(pair.a), about_sequence(pair.b)
    if of_a == of_b:
        return of_a
    return [f"A: {said}" for said in of_a] + [f"B: {said}" for said in of_b]


def _side(side: Shown, label: str, names: Names, aligned: AlignedLosses | None) -> Pane:
    """With the stretch that each span lies in, where these are not the spans themselves."""
    pane = token_pane(side, label, names, "", (), label.lower())
    if aligned is not None:
        pane.data["g"] = places_in(spans_of(side.text, side.offsets), aligned)
    return pane


def _spans_with(
    pair: ShownPair, aligned: AlignedLosses | None, worst: Sequence[Worst]
) -> dict[int, int]:
    """For each of these stretches that the page shows the number of its span: by its bytes, for
    what is shown of two texts can be cut alike where the whole is not."""
    own = [each for each in worst if each.order == pair.a.order]
    if aligned is None or not own:
        return {}
    spans = {span[2:]: n for n, span in enumerate(aligned.spans)}
    return {each.number: spans[each.place] for each in own if each.place in spans}
