"""Make the pages of one results file of `score` or `cond`, and of one of `diverge`.

The page of divergences is that of losses with KL in their place: it says how far a model is from a
teacher, which pages call gold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import numpy as np

from seqloss_cli.analysis.extremes import Chosen, Selection
from seqloss_cli.analysis.summarize import GroupSummary, Summarizer, Summary, SummaryOptions
from seqloss_cli.core.errors import RowError, UsageError
from seqloss_cli.core.records import Bools, Floats
from seqloss_cli.display.html import charts, page, sequences, spans
from seqloss_cli.display.html.page import Cell, Column
from seqloss_cli.display.scales import KL_EDGES, LOSS_EDGES
from seqloss_cli.metrics import divergence as d
from seqloss_cli.metrics.divergence import SHARES, DivergenceTotals, DocumentSums
from seqloss_cli.metrics.intervals import Estimate
from seqloss_cli.results import schema as s
from seqloss_cli.results.files import ResultsFile, ResultsOf
from seqloss_cli.results.schema.divergences import DivergenceRow
from seqloss_cli.results.schema.scores import ResultRow

_FIGURES = (
    ("total_loss", "total loss", 3),
    ("mean_loss", "mean loss", 4),
    ("perplexity", "perplexity", 4),
    ("bits_per_byte", "bits per byte", 4),
)
_LOSSES = ("total_loss", "mean_loss")
_FLAGS = Column("flags", lambda each: each.flags, is_text=True)


@dataclass(frozen=True, slots=True)
class LossPageData:
    """All that the page needs once the rows were read."""

    summary: Summary
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
        self._worst = spans.WorstPlaces(options.n_worst)
        self._selection = Selection[sequences.PageSequence](options.limits, options.seed)

    def add(self, row: ResultRow, sequence: sequences.PageSequence) -> None:
        """Add a row, and what a page shows of it."""
        # one pass for all: rows may come from a run that is still going on
        for summarizer in (self._summarizer, *self._by.values()):
            summarizer.add(row)
        peak = -1.0
        if row.tokens is not None:
            # of tokens that count: a masked one may have the highest loss of all
            peak = float(row.tokens.losses[row.tokens.counted].max(initial=-1.0))
        self._worst.add_tokens(row, sequence)
        self._selection.add(sequence, _badness(row), peak)

    def found(self) -> LossPageData:
        """Return what was found in the rows."""
        groups = {name: summarizer.summary().groups for name, summarizer in self._by.items()}
        summary, chosen = self._summarizer.summary(), self._selection.chosen()
        return LossPageData(summary, self._worst.items(), chosen, groups)


def gather_losses(rows: Iterable[ResultRow], options: page.PageOptions) -> LossPageData:
    """Read the rows once; what is kept of them is what the page shows."""
    gatherer = LossGatherer(options)
    for order, row in enumerate(rows):
        gatherer.add(row, sequences.page_sequence(row, order))
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
    chosen, names, columns = found.chosen, page.TokenNames(), _columns(options.by)
    sections, anchors = spans.text_sections(chosen.items, found.worst, columns, names)
    panes = [pane for section in sections for pane in section.panes]
    notes = [*sequences.notes_of(file, n_unusable), *_about_infinite(found.summary)]
    return page.Page(
        title=options.title or f"Losses of {PurePath(file.name).name}",
        subtitle=sequences.subtitle_of(file),
        notes=[*notes, *found.summary.whole.notes],
        figures=_figures(found.summary),
        tables=[_group_table(field, groups) for field, groups in found.groups.items()],
        charts=charts_of([found.summary], []),
        places=spans.linked(found.worst, anchors, "s", LOSS_EDGES),
        places_header=["loss"],
        columns=columns,
        sequences=sections,
        chosen=sequences.about_selection(chosen, options, "mean loss or loss of a token"),
        provenance=[("", sequences.run_table(file.run))],
        names=names,
        metrics=sequences.metrics_of(panes),
        lacking=sequences.lacking_in(panes),
    )


def charts_of(
    summaries: Sequence[Summary],
    sides: list[str],
    confidence: float = 0.95,
    drawn_by: str = "documents",
) -> list[page.Chart]:
    """Return the charts of one or two models; `drawn_by` names what the intervals are over."""
    n_seen = max(summary.n_tokens_seen for summary in summaries)
    losses = [summary.token_losses for summary in summaries]
    positions = [summary.positions for summary in summaries]
    interval = f"{100 * confidence:g} % interval over {drawn_by}"
    made = (
        charts.loss_chart(losses, sides, n_seen),
        charts.position_chart(positions, sides, interval),
        charts.concentration_chart(losses, sides, n_seen),
    )
    return [*filter(None, made)]


def _figures(summary: Summary) -> list[page.Figure]:
    totals, found = summary.whole.totals, []
    for name, label, digits in _FIGURES:
        estimate = summary.whole.estimate(name)
        cell, about = Cell.of(estimate, digits), estimate.method
        if name == "bits_per_byte" and totals.n_without_text:
            about = "not known: some rows have no text"
        elif name == "bits_per_byte" and (n := totals.n_unspelled_sequences):
            about = f"without {n:,} rows of text that no token stands for. {about}".rstrip()
        found.append(page.Figure(label, cell, about, name in _LOSSES))
    found.append(page.Figure("scored tokens", f"{totals.n_scored:,}", f"of {totals.n_tokens:,}"))
    found.append(page.Figure("sequences", f"{totals.n_sequences:,}", ""))
    if totals.word_perplexity is not None:
        about = f"over {totals.spelled.n_words:,} words"
        found.append(page.Figure("word perplexity", Cell(totals.word_perplexity), about))
    return found


def _of_totals(mean: Callable[[Any], Cell]) -> list[Column]:
    """Return the columns of sequences, or of groups of them, which have such mean losses."""
    return [
        Column("scored tokens", lambda each: f"{each.totals.n_scored:,}"),
        Column("total loss", lambda each: Cell(each.totals.total_loss, 3), is_loss=True),
        Column("mean loss", mean, is_loss=True),
        Column("bits per byte", lambda each: Cell(each.totals.bits_per_byte)),
    ]


def _group_table(field: str, groups: Sequence[GroupSummary]) -> page.Table:
    columns = [
        Column(field, lambda g: "(none)" if g.value is None else str(g.value), is_text=True),
        Column("sequences", lambda group: f"{group.totals.n_sequences:,}"),
        *_of_totals(lambda group: Cell.of(group.estimate("mean_loss"))),
    ]
    return page.Table(f"By {field}", columns, groups)


def _columns(by: tuple[str, ...]) -> list[Column]:
    totals = _of_totals(lambda each: Cell(each.totals.mean_loss))
    return [*(Column(name, _group_of(name), is_text=True) for name in by), *totals, _FLAGS]


def _group_of(name: str) -> Callable[[sequences.PageSequence], str]:
    return lambda each: "" if (value := each.row.field(name)) is None else str(value)


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


_METRICS = {
    "kl": "KL(gold ‖ model)",
    "cross": "cross-entropy",
    "gold_entropy": "gold entropy",
    "loss": "model's loss",
    "gold_loss": "gold's loss",
    "gap": "difference of losses",
}
_MEANS = {
    "kl": "KL",
    "kl_at_most": "KL ≤",
    "cross_entropy": "cross-entropy",
    "cross_entropy_at_most": "cross-entropy ≤",
    "teacher_entropy": "gold entropy",
    "student_loss": "model's loss",
    "teacher_loss": "gold's loss",
    "loss_difference": "difference",
    "reverse_kl": "reverse KL",
    "jensen_shannon": "Jensen-Shannon",
    "jensen_shannon_at_most": "Jensen-Shannon ≤",
    "total_variation": "total variation",
    "total_variation_at_most": "total variation ≤",
    "acceptance": "acceptance",
    "acceptance_at_most": "acceptance ≤",
    "top_k_overlap": "top-k overlap",
    "same_top1": "same favourite",
    "delta_p": "Δp",
    "rms_delta_p": "Δp, RMS",
    "student_cut": "model cut",
    "teacher_cut": "gold cut",
}
_WAYS = {
    "loss_difference": "The model's loss is",
    "delta_p": "The model's probability of the text's tokens is",
}
"""Beginnings of sentences that say which way a difference points."""
_PLAIN = ("same_top1", "delta_p", "rms_delta_p", "student_cut", "teacher_cut", *SHARES)
"""Means that are not in nats."""
_KEYS = {
    "kl": "kl",
    "km": "kl_at_most",
    "ce": "cross_entropy",
    "te": "teacher_entropy",
    "tl": "teacher_loss",
}
"""Keys in the data of a pane, and the columns that stand there."""
_QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)
_HEADINGS = page.Headings(
    charts="Divergences",
    places="Tokens that diverge most",
    about=(
        "Figures are means per scored token, in nats; difference is the model's loss less gold's, "
        "Δp the model's probability of the text's token less gold's; intervals are 95 %, over "
        "sequences."
    ),
)


@dataclass(frozen=True, slots=True)
class DivergencePageData:
    """All that the page needs once the rows were read."""

    documents: DocumentSums
    sums: DivergenceTotals
    by_kl: LossPageData
    """The rows as if divergences were losses; sequences hold their own `sums`."""


def gather_divergences(
    rows: Iterable[DivergenceRow], options: page.PageOptions
) -> DivergencePageData:
    """Read the rows once; what is kept of them is what the page shows."""
    documents, sums, gatherer = DocumentSums(), DivergenceTotals(), LossGatherer(options)
    for order, row in enumerate(rows):
        documents.add(row.sums, row.counted_values())
        sums += row.sums
        gatherer.add(row.with_kls(), _page_sequence(row, order))
    return DivergencePageData(documents, sums, gatherer.found())


def _page_sequence(row: DivergenceRow, order: int) -> sequences.PageSequence:
    """Return what a page shows of a row, with the quantities that compare it with the teacher."""
    found = replace(sequences.page_sequence(row.row, order), sums=row.sums)
    if found.why_plain or row.columns is None or row.row.tokens is None:
        return found
    scored = row.row.tokens.scored
    extra = {
        key: _known(row.columns[column], scored)
        for key, column in _KEYS.items()
        if column in row.columns
    }
    with np.errstate(invalid="ignore"):  # of two infinite losses: no difference is known
        gaps = row.columns["student_loss"] - row.columns["teacher_loss"]
    extra["gap"] = _known(gaps, scored & np.isfinite(gaps))
    extra["same"] = tuple(
        None if value is None else int(value) for value in row.row.fields["token_same_top1"]
    )
    return replace(found, extra=extra)


def _known(values: Floats, known: Bools) -> tuple[float | None, ...]:
    """Return the values (N) with None where the mask (N) is false."""
    pairs = zip(values.tolist(), known.tolist(), strict=True)
    return tuple(value if keep else None for value, keep in pairs)


def divergence_page(
    file: ResultsOf[DivergenceRow],
    found: DivergencePageData,
    options: page.PageOptions,
    n_unusable: int = 0,
) -> page.Page:
    """Return the page; `n_unusable` rows of the file could not be read back."""
    by_kl, names, means = found.by_kl, page.TokenNames(), found.documents.means()
    in_part = "kl_at_most" in means
    # a saved teacher holds its first alternatives only: what is known are bounds
    kl = "KL at least" if in_part else "KL"
    columns = _divergence_columns(kl, in_part, bool(found.sums.flags))
    sections, anchors = spans.text_sections(
        by_kl.chosen.items, by_kl.worst, columns, names, "kl", KL_EDGES
    )
    over, positions = "95 % interval over documents", [by_kl.summary.positions]
    drawn = (
        charts.divergence_chart(by_kl.summary.token_losses),
        charts.position_chart(positions, [], over, kl),
    )
    notes = [*sequences.notes_of(file, n_unusable), *_bounds(in_part), *by_kl.summary.whole.notes]
    return page.Page(
        title=options.title or f"Divergences of {PurePath(file.name).name}",
        subtitle=sequences.subtitle_of(file),
        notes=notes,
        figures=_mean_figures(means, found.sums, in_part),
        tables=[
            *_quantiles(found.documents, kl),
            *_binned(found.documents, kl, in_part),
            *_drafts(file, found.sums),
        ],
        charts=[*filter(None, drawn)],
        places=spans.linked(by_kl.worst, anchors, "s", KL_EDGES),
        places_header=[kl],
        columns=columns,
        sequences=sections,
        chosen=sequences.about_selection(by_kl.chosen, options, f"mean {kl} or {kl} of a token"),
        provenance=_provenance(file.run),
        names=names,
        metrics=[page.Metric(*each) for each in _METRICS.items()],
        headings=_HEADINGS,
        edges=KL_EDGES,
    )


def _bounds(in_part: bool) -> list[str]:
    if not in_part:
        return []
    return [
        "Gold is known in part, from a saved teacher: divergences and cross-entropies are lower "
        "bounds, with upper bounds beside them; texts are coloured by the lower ones."
    ]


def _provenance(run: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    teacher = run.get("teacher")
    # the record of the teacher's own run has the same keys: it gets a table of its own
    own = {name: value for name, value in run.items() if name != "teacher"}
    found = [("The model and the run", sequences.run_table(own))]
    return found + ([("The teacher", sequences.run_table(teacher))] if teacher else [])


def _mean_figures(
    means: Mapping[str, Estimate], sums: DivergenceTotals, in_part: bool
) -> list[page.Figure]:
    # why there is no interval is said once, and not beside each figure
    found, told = [], frozenset[str]()
    for name, label in _MEANS.items():
        if name in means:
            label += " ≥" if in_part and f"{name}_at_most" in means else ""
            cell, is_loss = Cell.of(means[name]), name not in _PLAIN
            way, about = _WAYS.get(name), means[name].method
            if means[name].low is None:
                about, told = "" if about in told else about, told | {about}
            if way and (value := means[name].value):
                about = "; ".join(
                    filter(None, (f"{way} {'higher' if value > 0 else 'lower'}", about))
                )
            found.append(page.Figure(label, cell, about, is_loss))
    found.append(page.Figure("scored tokens", f"{sums.n_scored:,}", f"of {sums.n_tokens:,}"))
    found.append(page.Figure("sequences", f"{sums.n_sequences:,}"))
    return found


def _quantiles(documents: DocumentSums, kl: str) -> list[page.Table]:
    kls, deltas = documents.quantiles("kl"), documents.quantiles("delta_p")
    columns = [
        Column("share of tokens", lambda share: f"{share:.0%}", is_text=True),
        Column(kl, lambda share: Cell.of(kls[share]), is_loss=True),
        Column("Δp", lambda share: Cell.of(deltas[share])),
    ]
    shares = [share for share in _QUANTILES if share in kls]
    return [page.Table("Quantiles of tokens", columns, shares)] if shares else []


def _binned(documents: DocumentSums, kl: str, in_part: bool) -> list[page.Table]:
    columns = [
        Column("from", lambda each: f"{each.low:g}"),
        Column("to", lambda each: "" if each.high is None else f"{each.high:g}"),
        Column("scored tokens", lambda each: f"{each.n_scored:,}"),
        Column(kl, lambda each: Cell.of(each.mean_kl), is_loss=True),
        Column("acceptance" + " ≥" * in_part, lambda each: Cell.of(each.mean_acceptance)),
        Column("same favourite", lambda each: Cell.of(each.same_top1)),
    ]
    bins = {
        "By position in the sequence": documents.positions.means(d.position_ends),
        "By gold's entropy, nats": documents.entropies.means(d.entropy_ends),
    }
    return [page.Table(title, columns, rows) for title, rows in bins.items() if rows]


def _drafts(file: ResultsOf[DivergenceRow], sums: DivergenceTotals) -> list[page.Table]:
    """Return the table of drafts that the run's totals have: rows do not say where drafts begin."""
    totals = file.totals or {}
    # Of shards that stand in one file the last totals are of the last shard.
    if d.DRAFTS not in totals or totals.get("n_scored") != sums.n_scored:
        return []
    length, bound = (file.run.get("rows") or {}).get("draft_length"), d.DRAFTS_AT_MOST in totals
    at_least = " ≥" * bound
    try:
        estimates = s.typed(totals, "estimates", Mapping)
        written = s.typed(estimates, d.DRAFTS, Mapping)
        value, low, high = (s.number(written, name) for name in ("value", "low", "high"))
        figures = {
            "accepted at most": s.number(totals, d.DRAFTS_AT_MOST),
            f"tokens per step{at_least}": s.figure(totals, "tokens_per_step"),
            f"accepted if alike{at_least}": s.figure(totals, f"{d.DRAFTS}_if_alike"),
        }
        starts = s.count(totals, "n_draft_starts")
    except RowError as error:
        raise UsageError(f"{file.name}: its totals: {error}") from error
    rows: list[tuple[str, str | Cell]] = [
        (f"accepted of {length}{at_least}", Cell.of(Estimate(value, low, high))),
        *((name, Cell(value)) for name, value in list(figures.items())[not bound :]),
        ("starts", f"{starts:,}"),
    ]
    columns = [
        Column("figure", lambda row: row[0], is_text=True),
        Column("mean", lambda row: row[1]),
    ]
    return [page.Table(f"Drafts of {length} tokens by the model", columns, rows)]


def _divergence_columns(kl: str, in_part: bool, has_flags: bool) -> list[Column]:
    names = {f"mean {kl}": "kl", **({"KL at most": "kl_at_most"} if in_part else {})}
    names |= {"model's loss": "student_loss", "gold's loss": "teacher_loss"}
    return [
        Column("scored tokens", lambda each: f"{each.sums.n_scored:,}"),
        *(Column(head, _mean_of(name), is_loss=True) for head, name in names.items()),
        Column("same favourite", lambda each: Cell(each.sums.same_top1)),
        *([_FLAGS] if has_flags else []),
    ]


def _mean_of(name: str) -> Callable[[sequences.PageSequence], Cell]:
    return lambda each: Cell(each.sums.mean(name))
