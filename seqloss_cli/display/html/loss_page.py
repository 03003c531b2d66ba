"""Make the page of one results file of `score` or `cond`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from seqloss_cli.analysis.extremes import Chosen, Selection
from seqloss_cli.analysis.summarize import GroupSummary, Summarizer, Summary, SummaryOptions
from seqloss_cli.core.records import Floats
from seqloss_cli.display.html import charts, page, sequences, spans
from seqloss_cli.display.html.page import Cell, Column
from seqloss_cli.display.scales import LOSS_EDGES
from seqloss_cli.metrics.resampling import Reservoir
from seqloss_cli.results.files import ResultsFile
from seqloss_cli.results.schema.scores import ResultRow

_FIGURES = (
    ("total_loss", "total loss", 3),
    ("mean_loss", "mean loss", 4),
    ("perplexity", "perplexity", 4),
    ("bits_per_byte", "bits per byte", 4),
)
_LOSSES = ("total_loss", "mean_loss")


@dataclass(frozen=True, slots=True)
class LossPageData:
    """All that the page needs once the rows were read."""

    summary: Summary
    losses: Floats
    """Shape n, nats, of the scored tokens or of a sample of them."""
    worst: list[page.Place]
    """Tokens of all rows."""
    chosen: Chosen[sequences.PageSequence]
    groups: dict[str, list[GroupSummary]]
    """By field."""


class LossGatherer:
    """`add` rows as they come, then ask for what a page needs of them."""

    def __init__(self, options: page.PageOptions) -> None:
        self._summarizer = Summarizer(SummaryOptions(n_extremes=0, seed=options.seed))
        self._by = {name: Summarizer(SummaryOptions(by=name, n_extremes=0)) for name in options.by}
        self._losses, self._worst = Reservoir(seed=options.seed), spans.WorstPlaces(options.n_worst)
        self._selection = Selection(
            options.limits, options.seed, lambda each: each.size, sequences.cut_sequence
        )

    def add(self, row: ResultRow, sequence: sequences.PageSequence) -> None:
        """Add a row, and what a page shows of it."""
        # one pass for all: rows may come from a run that is still going on
        for summarizer in (self._summarizer, *self._by.values()):
            summarizer.add(row)
        peak = -1.0
        if row.tokens is not None:
            # of tokens that count: a masked one may have the highest loss of all
            losses = row.tokens.losses[row.tokens.counted]
            self._losses.add(losses)
            peak = float(losses.max(initial=-1.0))
        self._worst.add_tokens(row, sequence)
        self._selection.add(sequence, _badness(row), peak)

    def found(self) -> LossPageData:
        """Return what was found in the rows."""
        groups = {name: summarizer.summary().groups for name, summarizer in self._by.items()}
        return LossPageData(
            self._summarizer.summary(), self._losses.values(), self._worst.items(),
            self._selection.chosen(), groups,
        )  # fmt: skip


def gather_losses(rows: Iterable[ResultRow], options: page.PageOptions) -> LossPageData:
    """Read the rows once; what is kept of them is what the page shows."""
    gatherer = LossGatherer(options)
    for order, row in enumerate(rows):
        gatherer.add(row, sequences.page_sequence(row, order, options.by))
    return gatherer.found()


def _badness(row: ResultRow) -> float:
    """Return the mean loss, nats; an infinite one is the worst, a row without any the best."""
    if row.totals.n_infinite:
        return float("inf")
    mean = row.totals.mean_loss
    return -1.0 if mean is None else mean


def loss_page(
    file: ResultsFile, found: LossPageData, options: page.PageOptions, n_unusable: int = 0
) -> page.Page:
    """Return the page; `n_unusable` rows of the file could not be read back."""
    chosen, names = found.chosen, page.TokenNames()
    marked, anchors = spans.anchors_of(chosen.items, found.worst)
    sections = [_section(n, each, options, names, marked[n]) for n, each in enumerate(chosen.items)]
    panes = [pane for section in sections for pane in section.panes]
    notes = [*sequences.notes_of(file, n_unusable), *_about_infinite(found.summary)]
    return page.Page(
        title=options.title or f"Losses of {PurePath(file.name).name}",
        subtitle=sequences.subtitle_of(file),
        notes=[*notes, *found.summary.whole.notes],
        figures=_figures(found.summary),
        tables=[_group_table(field, groups) for field, groups in found.groups.items()],
        charts=charts_of([found.summary], [found.losses], []),
        places=spans.linked(found.worst, anchors, "s", LOSS_EDGES),
        places_header=["loss"],
        columns=_columns(options.by),
        sequences=sections,
        chosen=sequences.about_selection(chosen, options, "mean loss or loss of a token"),
        provenance=[("", sequences.run_table(file.run))],
        names=names,
        metrics=sequences.metrics_of(panes),
        lacking=sequences.lacking_in(panes),
    )


def charts_of(
    summaries: Sequence[Summary],
    losses: Sequence[Floats],
    sides: list[str],
    confidence: float = 0.95,
    drawn_by: str = "documents",
) -> list[page.Chart]:
    """Return the charts of one or two models.

    `losses` are (n) nats for each, `drawn_by` names what the intervals are over.
    """
    n_seen = max(summary.n_tokens_seen for summary in summaries)
    positions = [summary.positions for summary in summaries]
    interval = f"{100 * confidence:g} % interval over {drawn_by}"
    made = (
        charts.loss_chart(losses, sides, n_seen),
        charts.position_chart(positions, sides, interval),
        charts.concentration_chart(losses, sides, n_seen),
    )
    return [chart for chart in made if chart is not None]


def _figures(summary: Summary) -> list[page.Figure]:
    totals, estimates = summary.whole.totals, summary.whole.estimates
    found = []
    for name, label, digits in _FIGURES:
        estimate, value = estimates.get(name), getattr(totals, name)
        # totals are known where an interval is not, as with a single short text
        low, high = (estimate.low, estimate.high) if estimate else (None, None)
        cell = Cell(value, _digits(value, digits), low, high)
        about = estimate.method if estimate else ""
        if name == "bits_per_byte" and totals.n_without_text:
            about = "not known: some rows have no text"
        found.append(page.Figure(label, cell, about, name in _LOSSES))
    found.append(page.Figure("scored tokens", f"{totals.n_scored:,}", f"of {totals.n_tokens:,}"))
    found.append(page.Figure("sequences", f"{totals.n_sequences:,}", ""))
    if totals.word_perplexity is not None:
        about = f"over {totals.n_words:,} words"
        cell = Cell(totals.word_perplexity, _digits(totals.word_perplexity, 4))
        found.append(page.Figure("word perplexity", cell, about))
    return found


def _digits(value: float | None, most: int) -> int:
    """Return how many digits stand after the point: fewer where there are many before it."""
    return most if value is None or value < 100 else 2 if value < 10_000 else 1


def _group_table(field: str, groups: Sequence[GroupSummary]) -> page.Table:
    rows: list[page.TableRow] = []
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
    return page.Table(f"By {field}", header, rows)


def _about_infinite(summary: Summary) -> list[str]:
    """Say what infinite losses do to the figures of the page."""
    totals = summary.whole.totals
    if not totals.n_infinite:
        return []
    return [
        f"Infinite losses, of tokens of probability 0, in {totals.n_infinite:,} of "
        f"{totals.n_sequences:,} sequences: totals that hold one are not known, and the charts "
        "leave these tokens out, with the positions where they stand."
    ]


def _columns(by: tuple[str, ...]) -> list[Column]:
    return [
        *(Column(name, is_text=True) for name in by), Column("scored tokens"),
        Column("total loss", is_loss=True), Column("mean loss", is_loss=True),
        Column("bits per byte"), Column("flags", is_text=True),
    ]  # fmt: skip


def _section(
    number: int,
    sequence: sequences.PageSequence,
    options: page.PageOptions,
    names: page.TokenNames,
    marked: set[int],
) -> page.Section:
    totals, panes = sequence.totals, list[page.Pane]()
    if not sequence.why_plain:
        panes = [spans.token_pane(sequence, "", names, f"t{number}-0-", marked)]
    groups = [sequence.fields[name] for name in options.by]
    cells: page.TableRow = [
        *("" if value is None else str(value) for value in groups), f"{totals.n_scored:,}",
        Cell(totals.total_loss, 3), Cell(totals.mean_loss), Cell(totals.bits_per_byte),
        sequences.flags_text(sequence.flags),
    ]  # fmt: skip
    about = sequences.about_sequence(sequence)
    return page.Section(number, sequence.id, sequences.where_of(sequence), cells, panes, about)
