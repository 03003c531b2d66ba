"""The page of one results file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from seqloss_cli.analysis.summarize import GroupSummary, Summarizer, Summary, SummaryOptions
from seqloss_cli.core.records import Floats
from seqloss_cli.display.html.charts import Cell, Chart, by_position, concentration, histogram
from seqloss_cli.display.html.page import (
    Column,
    Figure,
    Page,
    PageOptions,
    ShownSequence,
    Table,
    about_selection,
    about_sequence,
    flags_text,
    lacking_in,
    metrics_of,
    model_name,
    notes_of,
    run_table,
    where,
)
from seqloss_cli.display.html.panes import Names, Pane, token_pane
from seqloss_cli.display.html.selecting import Chosen, Selection
from seqloss_cli.display.html.shown import Shown, cut, shown
from seqloss_cli.display.html.worst import Worst, WorstTokens, anchors_of, place_of
from seqloss_cli.display.scales import LOSS_EDGES, step_of
from seqloss_cli.metrics.resampling import Reservoir
from seqloss_cli.results.files import ResultsFile, ResultsOf
from seqloss_cli.results.schema.scores import ResultRow

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
    worst: list[Worst]
    """Tokens, of all rows."""
    chosen: Chosen[Shown]


def gather(rows: Iterable[ResultRow], options: PageOptions) -> Gathered:
    """One pass; what is kept of the rows is what the page shows."""
    whole = Summarizer(SummaryOptions(n_extremes=0, seed=options.seed))
    by = {name: Summarizer(SummaryOptions(by=name, n_extremes=0)) for name in options.by}
    losses, selection = Reservoir(seed=options.seed), select(options)
    worst = WorstTokens(options.n_worst)
    for order, row in enumerate(rows):
        for summarizer in (whole, *by.values()):
            summarizer.add(row)
        if row.tokens is not None:
            losses.add(row.tokens.losses[row.tokens.counted])
        item = shown(row, order, options.by)
        worst.add(row, item)
        selection.add(item, badness(row), peak(row))
    groups = {name: summarizer.summary().groups for name, summarizer in by.items()}
    return Gathered(whole.summary(), groups, losses.values(), worst.items(), selection.chosen())


def select(options: PageOptions) -> Selection[Shown]:
    return Selection(options.limits, options.seed, lambda item: item.size, cut)


def badness(row: ResultRow) -> float:
    """The mean loss; an infinite one is the worst, a row without any the least."""
    if row.totals.n_infinite:
        return float("inf")
    mean = row.totals.mean_loss
    return -1.0 if mean is None else mean


def peak(row: ResultRow) -> float:
    """The highest loss of a token that counts."""
    tokens = row.tokens
    return -1.0 if tokens is None else float(tokens.losses[tokens.counted].max(initial=-1.0))


def page_of(file: ResultsFile, found: Gathered, options: PageOptions, n_unusable: int = 0) -> Page:
    chosen, names = found.chosen, Names()
    marked, anchors = anchors_of(chosen.items, found.worst)
    sequences = [
        _sequence(n, item, options, names, marked[n]) for n, item in enumerate(chosen.items)
    ]
    panes = [pane for sequence in sequences for pane in sequence.panes]
    return Page(
        title=options.title or f"Losses of {PurePath(file.name).name}",
        subtitle=subtitle_of(file),
        is_comparison=False,
        notes=[
            *notes_of(file, n_unusable),
            *_about_infinite(found.summary),
            *found.summary.whole.notes,
        ],
        verdict="",
        figures=figures_of(found.summary),
        tables=[_group_table(field, groups) for field, groups in found.groups.items()],
        charts=charts_of([found.summary], [found.losses], []),
        places=[
            place_of(each, anchors, f"s{step_of(each.values[0], LOSS_EDGES)}")
            for each in found.worst
        ],
        places_header=["loss"],
        columns=_columns(options.by),
        sequences=sequences,
        chosen=about_selection(
            chosen, options.limits, options.seed, "mean loss or loss of a token"
        ),
        provenance=[("", run_table(file.run))],
        data={"names": names.all(), "panes": [pane.data for pane in panes]},
        metrics=metrics_of(panes),
        has_masked=any("k" in pane.data for pane in panes),
        lacking=lacking_in(panes),
    )


def subtitle_of(file: ResultsOf[Any]) -> str:
    """Which model, how it was asked, and when."""
    run = file.run
    when = str(run.get("started_at") or "")[:16].replace("T", " ")
    parts = (model_name(run), f"seqloss {run.get('command')}", when and f"{when} UTC", file.name)
    return " · ".join(part for part in parts if part)


def charts_of(
    summaries: Sequence[Summary],
    losses: Sequence[Floats],
    sides: list[str],
    confidence: float = 0.95,
    drawn_by: str = "documents",
) -> list[Chart]:
    """`drawn_by` are what the intervals are over."""
    n_seen = max(summary.n_tokens_seen for summary in summaries)
    positions = [summary.positions for summary in summaries]
    made = (
        histogram(losses, sides, n_seen),
        by_position(positions, sides, f"{100 * confidence:g} % interval over {drawn_by}"),
        concentration(losses, sides, n_seen),
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


# -- infinite losses ------------------------------------------------------------------------------


def _about_infinite(summary: Summary) -> list[str]:
    """What they do to the figures of the page."""
    totals = summary.whole.totals
    if not totals.n_infinite:
        return []
    return [
        f"Infinite losses, of tokens of probability 0, in {totals.n_infinite:,} of "
        f"{totals.n_sequences:,} sequences: totals that hold one are not known, and the charts "
        "leave these tokens out, with the positions where they stand."
    ]


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
