"""The page of a results file of `diverge`: texts coloured by how far the model is from gold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import numpy as np

from seqloss_cli.analysis.summarize import Summarizer, Summary, SummaryOptions
from seqloss_cli.core.records import Floats
from seqloss_cli.display.html.charts import Cell, by_position
from seqloss_cli.display.html.divergence_charts import divergence_histogram
from seqloss_cli.display.html.one_model import peak, select, subtitle_of
from seqloss_cli.display.html.page import (
    Column,
    Figure,
    Metric,
    Page,
    PageOptions,
    ShownSequence,
    Table,
    Words,
    about_selection,
    about_sequence,
    flags_text,
    notes_of,
    run_table,
    where,
)
from seqloss_cli.display.html.panes import Names, Pane, token_pane
from seqloss_cli.display.html.selecting import Chosen
from seqloss_cli.display.html.shown import Shown, shown
from seqloss_cli.display.html.worst import Worst, WorstTokens, anchors_of, place_of
from seqloss_cli.display.scales import KL_EDGES, step_of
from seqloss_cli.metrics.divergence import DivergenceTotals, Documents
from seqloss_cli.metrics.intervals import Estimate
from seqloss_cli.metrics.resampling import Reservoir
from seqloss_cli.results.files import ResultsOf
from seqloss_cli.results.schema.divergences import DivergenceRow

_METRICS = [
    Metric("kl", "KL(gold ‖ model)"),
    Metric("cross", "cross-entropy"),
    Metric("gold_entropy", "gold entropy"),
    Metric("loss", "model's loss"),
    Metric("gold_loss", "gold's loss"),
    Metric("gap", "difference of losses"),
]
_FIGURES = (
    ("kl", "KL"),
    ("kl_at_most", "KL ≤"),
    ("cross_entropy", "cross-entropy"),
    ("cross_entropy_at_most", "cross-entropy ≤"),
    ("teacher_entropy", "gold entropy"),
    ("student_loss", "model's loss"),
    ("teacher_loss", "gold's loss"),
    ("loss_difference", "difference"),
)
_PLAIN = (
    ("same_top1", "same favourite"),
    ("delta_p", "Δp"),
    ("rms_delta_p", "Δp, RMS"),
    ("student_cut", "model cut"),
    ("teacher_cut", "gold cut"),
)
_SUMS = "sums"
_SHOWN = (0.01, 0.05, 0.5, 0.95, 0.99)
_WORDS = Words(
    charts="Divergences",
    places="Tokens that diverge most",
    about=(
        "Figures are means per scored token, in nats; difference is the model's loss less gold's, "
        "Δp the model's probability of the text's token less gold's; intervals are 95 %, over "
        "sequences."
    ),
)


@dataclass(frozen=True, slots=True)
class GatheredDivergences:
    """All that is known once the rows were read."""

    documents: Documents
    sums: DivergenceTotals
    by_kl: Summary
    kls: Floats
    worst: list[Worst]
    """Tokens, of all rows."""
    chosen: Chosen[Shown]
    """Each with its own sums in the field `_SUMS`."""


def gather_divergences(rows: Iterable[DivergenceRow], options: PageOptions) -> GatheredDivergences:
    """One pass; what is kept of the rows is what the page shows."""
    documents, sums = Documents(), DivergenceTotals()
    by_kl = Summarizer(SummaryOptions(n_extremes=0, seed=options.seed))
    worst_tokens = WorstTokens(options.n_worst)
    kls, selection = Reservoir(seed=options.seed), select(options)
    for order, row in enumerate(rows):
        tokens = row.counted_values()
        documents.add(row.sums, tokens)
        with_kls, item = row.with_kls(), _shown(row, order)
        by_kl.add(with_kls)
        worst_tokens.add(with_kls, item)
        if tokens is not None:
            kls.add(tokens["kl"])
        sums += row.sums
        mean = row.sums.mean("kl")
        worst = float("inf") if row.sums.n_infinite.get("kl") else -1.0
        selection.add(item, worst if mean is None else mean, peak(with_kls))
    return GatheredDivergences(
        documents, sums, by_kl.summary(), kls.values(), worst_tokens.items(), selection.chosen()
    )


def _shown(row: DivergenceRow, order: int) -> Shown:
    found = shown(row.row, order)
    found = replace(found, fields={**found.fields, _SUMS: row.sums})
    if found.why_plain or row.columns is None or row.row.tokens is None:
        return found
    scored = row.row.tokens.scored
    columns = {"kl": "kl", "km": "kl_at_most", "ce": "cross_entropy", "te": "teacher_entropy"}
    columns["tl"] = "teacher_loss"
    further = {
        name: _known(row.columns[column], scored)
        for name, column in columns.items()
        if column in row.columns
    }
    with np.errstate(invalid="ignore"):
        gaps = row.columns["student_loss"] - row.columns["teacher_loss"]
    further["gap"] = _known(gaps, scored & np.isfinite(gaps))
    further["same"] = tuple(
        None if value is None else int(value) for value in row.row.fields["token_same_top1"]
    )
    return replace(found, further=further)


def _known(values: Floats, known: Any) -> tuple[float | None, ...]:
    pairs = zip(values.tolist(), known.tolist(), strict=True)
    return tuple(value if keep else None for value, keep in pairs)


def page_of_divergences(
    file: ResultsOf[DivergenceRow],
    found: GatheredDivergences,
    options: PageOptions,
    n_unusable: int = 0,
) -> Page:
    chosen, names = found.chosen, Names()
    marked, anchors = anchors_of(chosen.items, found.worst)
    means = found.documents.means()
    in_part = "kl_at_most" in means
    sequences = [
        _sequence(n, item, found, names, marked[n], in_part) for n, item in enumerate(chosen.items)
    ]
    panes = [pane for sequence in sequences for pane in sequence.panes]
    kl = "KL at least" if in_part else "KL"
    positions = by_position([found.by_kl.positions], [], "95 % interval over documents", kl)
    charts = (divergence_histogram(found.kls), positions)
    notes = [*notes_of(file, n_unusable), *_bounds(in_part), *found.by_kl.whole.notes]
    return Page(
        title=options.title or f"Divergences of {PurePath(file.name).name}",
        subtitle=subtitle_of(file),
        is_comparison=False,
        notes=notes,
        verdict="",
        figures=figures_of(means, found.sums, in_part),
        tables=_quantiles(found.documents, kl),
        charts=[chart for chart in charts if chart is not None],
        places=[
            place_of(each, anchors, f"s{step_of(each.values[0], KL_EDGES)}") for each in found.worst
        ],
        places_header=[kl],
        columns=_columns(kl, in_part, bool(found.sums.flags)),
        sequences=sequences,
        chosen=about_selection(
            chosen, options.limits, options.seed, f"mean {kl} or {kl} of a token"
        ),
        provenance=_provenance(file.run),
        data={"names": names.all(), "panes": [pane.data for pane in panes]},
        metrics=_METRICS,
        has_masked=any("k" in pane.data for pane in panes),
        words=_WORDS,
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
    own = {name: value for name, value in run.items() if name != "teacher"}
    found = [("The model and the run", run_table(own))]
    return found + ([("The teacher", run_table(teacher))] if teacher else [])


# -- figures -------------------------------------------------------------------------------------


def figures_of(
    means: Mapping[str, Estimate], sums: DivergenceTotals, in_part: bool
) -> list[Figure]:
    found = []
    for name, said in _FIGURES:
        if name in means:
            said += " ≥" if in_part and f"{name}_at_most" in means else ""
            found.append(Figure(said, _cell(means[name]), means[name].method, is_loss=True))
    found += [
        Figure(said, _cell(means[name]), means[name].method)
        for name, said in _PLAIN
        if name in means
    ]
    found.append(Figure("scored tokens", f"{sums.n_scored:,}", f"of {sums.n_tokens:,}"))
    found.append(Figure("sequences", f"{sums.n_sequences:,}"))
    return found


def _cell(estimate: Estimate) -> Cell:
    return Cell(estimate.value, 4, estimate.low, estimate.high)


def _quantiles(documents: Documents, kl: str) -> list[Table]:
    kls, deltas = documents.quantiles("kl"), documents.quantiles("delta_p")
    rows: list[list[Cell | str]] = [
        [f"{share:.0%}", _cell(kls[share]), _cell(deltas[share])]
        for share in _SHOWN
        if share in kls
    ]
    header = [Column("share of tokens", is_text=True), Column(kl, is_loss=True), Column("Δp")]
    return [Table("Quantiles of tokens", header, rows)] if rows else []


# -- sequences -----------------------------------------------------------------------------------


def _columns(kl: str, in_part: bool, has_flags: bool) -> list[Column]:
    at_most = [Column("KL at most", is_loss=True)] if in_part else []
    flags = [Column("flags", is_text=True)] if has_flags else []
    return [
        Column("scored tokens"), Column(f"mean {kl}", is_loss=True), *at_most,
        Column("model's loss", is_loss=True), Column("gold's loss", is_loss=True),
        Column("same favourite"), *flags,
    ]  # fmt: skip


def _sequence(
    number: int,
    item: Shown,
    found: GatheredDivergences,
    names: Names,
    marked: set[int],
    in_part: bool,
) -> ShownSequence:
    sums, panes = item.fields[_SUMS], list[Pane]()
    if not item.why_plain:
        panes = [token_pane(item, "", names, f"t{number}-0-", marked, "", "kl", KL_EDGES)]
    at_most: list[Cell | str] = [Cell(sums.mean("kl_at_most"))] if in_part else []
    flags = [flags_text(item.flags)] if found.sums.flags else []
    cells: list[Cell | str] = [
        f"{sums.n_scored:,}", Cell(sums.mean("kl")), *at_most, Cell(sums.mean("student_loss")),
        Cell(sums.mean("teacher_loss")), Cell(sums.same_top1), *flags,
    ]  # fmt: skip
    return ShownSequence(number, item.id, where(item), cells, panes, about_sequence(item))
