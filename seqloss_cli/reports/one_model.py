"""The page of one results file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from seqloss_cli.records import Floats
from seqloss_cli.reports.charts import Cell, Chart, by_position, concentration, histogram
from seqloss_cli.reports.page import (
    Column,
    Figure,
    Page,
    PageOptions,
    Place,
    ShownSequence,
    Table,
    about_selection,
    about_sequence,
    flags_text,
    metrics_of,
    model_name,
    notes_of,
    run_table,
    surroundings,
    where,
)
from seqloss_cli.reports.panes import Names, Pane, token_pane, visible
from seqloss_cli.reports.selecting import Chosen, Selection
from seqloss_cli.reports.shown import Shown, cut, shown
from seqloss_cli.results import ResultRow, ResultsFile
from seqloss_cli.scales import LOSS_EDGES, step_of
from seqloss_cli.spans import spans_of
from seqloss_cli.statistics import Reservoir
from seqloss_cli.summaries import (
    GroupSummary,
    Summarizer,
    Summary,
    SummaryOptions,
    TokenExtreme,
)

_FIGURES = (
    ("total_loss", "total loss", 3),
    ("mean_loss", "mean loss", 4),
    ("perplexity", "perplexity", 4),
    ("bits_per_byte", "bits per byte", 4),
)
_LOSSES = ("total_loss", "mean_loss")


@dataclass(frozen=True, slots=True)
class Gathered:
    """All that is known once the rows were read."""

    summary: Summary
    groups: dict[str, list[GroupSummary]]
    """By field."""
    losses: Floats
    """Of the scored tokens, or of a sample."""
    chosen: Chosen[Shown]


def gather(rows: Iterable[ResultRow], options: PageOptions) -> Gathered:
    """One pass; what is kept of the rows is what the page shows."""
    whole = Summarizer(SummaryOptions(n_extremes=options.n_worst, seed=options.seed))
    by = {name: Summarizer(SummaryOptions(by=name, n_extremes=0)) for name in options.by}
    losses, selection = Reservoir(seed=options.seed), select(options)
    for order, row in enumerate(rows):
        for summarizer in (whole, *by.values()):
            summarizer.add(row)
        if row.tokens is not None:
            losses.add(row.tokens.losses[row.tokens.counted])
        selection.add(shown(row, order, options.by), badness(row))
    groups = {name: summarizer.summary().groups for name, summarizer in by.items()}
    return Gathered(whole.summary(), groups, losses.values(), selection.chosen())


def select(options: PageOptions) -> Selection[Shown]:
    return Selection(options.limits, options.seed, lambda item: item.size, cut)


def badness(row: ResultRow) -> float:
    """The mean loss; an infinite one is the worst, a row without any the least."""
    if row.totals.n_infinite:
        return float("inf")
    mean = row.totals.mean_loss
    return -1.0 if mean is None else mean


def page_of(file: ResultsFile, found: Gathered, options: PageOptions, n_unusable: int = 0) -> Page:
    chosen, names = found.chosen, Names()
    places = {key(item): n for n, item in reversed(list(enumerate(chosen.items)))}
    worst = [_place(each, places, chosen.items) for each in found.summary.worst_tokens]
    marked = _marked(worst)
    sequences = [
        _sequence(n, item, options, names, marked.get(n, set()))
        for n, item in enumerate(chosen.items)
    ]
    panes = [pane for sequence in sequences for pane in sequence.panes]
    return Page(
        title=options.title or f"Losses of {PurePath(file.name).name}",
        subtitle=subtitle_of(file),
        is_comparison=False,
        notes=[*notes_of(file, n_unusable), *found.summary.whole.notes],
        verdict="",
        figures=figures_of(found.summary),
        tables=[_group_table(field, groups) for field, groups in found.groups.items()],
        charts=charts_of([found.summary], [found.losses], []),
        places=worst,
        places_header=["loss"],
        columns=_columns(options.by),
        sequences=sequences,
        chosen=about_selection(chosen, options.limits, options.seed, "mean loss"),
        provenance=[("", run_table(file.run))],
        data={"names": names.all(), "panes": [pane.data for pane in panes]},
        metrics=metrics_of(panes),
        has_masked=any("k" in pane.data for pane in panes),
    )


def subtitle_of(file: ResultsFile) -> str:
    """Which model, how it was asked, and when."""
    run = file.run
    when = str(run.get("started_at") or "")[:16].replace("T", " ")
    parts = (model_name(run), f"seqloss {run.get('command')}", when and f"{when} UTC", file.name)
    return " · ".join(part for part in parts if part)


def charts_of(
    summaries: Sequence[Summary], losses: Sequence[Floats], sides: list[str]
) -> list[Chart]:
    made = (
        histogram(losses, sides),
        by_position([summary.positions for summary in summaries], sides),
        concentration(losses, sides),
    )
    return [chart for chart in made if chart is not None]


# -- totals --------------------------------------------------------------------------------------


def figures_of(summary: Summary) -> list[Figure]:
    totals, whole = summary.whole.totals, summary.whole
    found = []
    for name, said, digits in _FIGURES:
        estimate = whole.estimates.get(name)
        low, high = (estimate.low, estimate.high) if estimate else (None, None)
        value = getattr(totals, name)
        cell = Cell(value, _digits(value, digits), low, high)
        about = _method(whole, name)
        if name == "bits_per_byte" and totals.n_without_text:
            about = "not known: some rows have no text"
        found.append(Figure(said, cell, about, name in _LOSSES))
    found.append(Figure("scored tokens", f"{totals.n_scored:,}", f"of {totals.n_tokens:,}"))
    found.append(Figure("sequences", f"{totals.n_sequences:,}", ""))
    if totals.word_perplexity is not None:
        about = f"over {totals.n_words:,} words"
        cell = Cell(totals.word_perplexity, _digits(totals.word_perplexity, 4))
        found.append(Figure("word perplexity", cell, about))
    return found


def _digits(value: float | None, most: int) -> int:
    """Fewer after the point where there are many before it."""
    return most if value is None or value < 100 else 2 if value < 10_000 else 1


def _method(group: GroupSummary, name: str) -> str:
    estimate = group.estimates.get(name)
    return estimate.method if estimate else ""


def _group_table(field: str, groups: Sequence[GroupSummary]) -> Table:
    rows: list[list[Cell | str]] = []
    for group in groups:
        totals, mean = group.totals, group.estimates.get("mean_loss")
        value = "(none)" if group.value is None else str(group.value)
        low, high = (mean.low, mean.high) if mean else (None, None)
        rows.append([
            value, f"{totals.n_sequences:,}", f"{totals.n_scored:,}", Cell(totals.total_loss, 3),
            Cell(totals.mean_loss, 4, low, high), Cell(totals.bits_per_byte),
        ])  # fmt: skip
    header = [
        Column(field, is_text=True), Column("sequences"), Column("scored tokens"),
        Column("total loss", is_loss=True), Column("mean loss", is_loss=True),
        Column("bits per byte"),
    ]  # fmt: skip
    return Table(f"By {field}", header, rows)


# -- the worst tokens ----------------------------------------------------------------------------


def key(item: Shown | TokenExtreme) -> tuple[str, str, int | None]:
    return item.id, item.source or "", item.line


def _place(
    worst: TokenExtreme, places: dict[tuple[str, str, int | None], int], items: Sequence[Shown]
) -> Place:
    step, cells = f"s{step_of(worst.loss, LOSS_EDGES)}", [Cell(worst.loss)]
    token = visible(worst.token or "") or f"token {worst.position}"
    number = places.get(key(worst))
    if number is None or items[number].why_plain or worst.position >= items[number].size:
        return Place("", worst.id, token, "", "", cells, step)
    item = items[number]
    spans = spans_of(item.text, item.offsets)
    span = next(n for n, (first, last, *_) in enumerate(spans) if first <= worst.position < last)
    before, after = surroundings(item.text, *spans[span][2:])
    href = f"t{number}-0-{span}"
    return Place(href, worst.id, token, visible(before), visible(after), cells, step)


def _marked(places: Sequence[Place]) -> dict[int, set[int]]:
    """Numbers of the spans that are linked to, by sequence."""
    found: dict[int, set[int]] = {}
    for place in places:
        if place.href:
            sequence, _, span = place.href.removeprefix("t").split("-")
            found.setdefault(int(sequence), set()).add(int(span))
    return found


# -- sequences -----------------------------------------------------------------------------------


def _columns(by: tuple[str, ...]) -> list[Column]:
    return [
        *(Column(name, is_text=True) for name in by), Column("scored tokens"),
        Column("total loss", is_loss=True), Column("mean loss", is_loss=True),
        Column("bits per byte"), Column("flags", is_text=True),
    ]  # fmt: skip


def _sequence(
    number: int, item: Shown, options: PageOptions, names: Names, marked: set[int]
) -> ShownSequence:
    totals, panes = item.totals, list[Pane]()
    if not item.why_plain:
        panes = [token_pane(item, "", names, f"t{number}-0-", marked)]
    by = ["" if item.fields[name] is None else str(item.fields[name]) for name in options.by]
    cells: list[Cell | str] = [
        *by, f"{totals.n_scored:,}", Cell(totals.total_loss, 3), Cell(totals.mean_loss),
        Cell(totals.bits_per_byte), flags_text(item.flags),
    ]  # fmt: skip
    return ShownSequence(number, item.id, where(item), cells, panes, about_sequence(item))
