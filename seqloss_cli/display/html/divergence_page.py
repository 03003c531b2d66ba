"""Make the page of a results file of `diverge`: texts coloured by how far a model is from gold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import numpy as np

from seqloss_cli.core.records import Bools, Floats
from seqloss_cli.display.html import page, sequences, spans
from seqloss_cli.display.html.charts import divergence_chart, position_chart
from seqloss_cli.display.html.loss_page import LossGatherer, LossPageData
from seqloss_cli.display.html.page import Cell, Column
from seqloss_cli.display.scales import KL_EDGES
from seqloss_cli.metrics.divergence import DivergenceTotals, DocumentSums
from seqloss_cli.metrics.intervals import Estimate
from seqloss_cli.results.files import ResultsOf
from seqloss_cli.results.schema.divergences import DivergenceRow

_METRICS = [
    page.Metric("kl", "KL(gold ‖ model)"),
    page.Metric("cross", "cross-entropy"),
    page.Metric("gold_entropy", "gold entropy"),
    page.Metric("loss", "model's loss"),
    page.Metric("gold_loss", "gold's loss"),
    page.Metric("gap", "difference of losses"),
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
"""The field of a sequence that holds its own sums."""
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
    """The rows as if divergences were losses; sequences hold their sums in the field `_SUMS`."""


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
    found = sequences.page_sequence(row.row, order)
    found = replace(found, fields={**found.fields, _SUMS: row.sums})
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
    by_kl, names = found.by_kl, page.TokenNames()
    marked, anchors = spans.anchors_of(by_kl.chosen.items, by_kl.worst)
    means = found.documents.means()
    in_part = "kl_at_most" in means
    # a saved teacher holds its first alternatives only: what is known are bounds
    kl = "KL at least" if in_part else "KL"
    positions = position_chart([by_kl.summary.positions], [], "95 % interval over documents", kl)
    charts = (divergence_chart(by_kl.losses), positions)
    notes = [*sequences.notes_of(file, n_unusable), *_bounds(in_part), *by_kl.summary.whole.notes]
    return page.Page(
        title=options.title or f"Divergences of {PurePath(file.name).name}",
        subtitle=sequences.subtitle_of(file),
        notes=notes,
        figures=_figures(means, found.sums, in_part),
        tables=_quantiles(found.documents, kl),
        charts=[chart for chart in charts if chart is not None],
        places=spans.linked(by_kl.worst, anchors, "s", KL_EDGES),
        places_header=[kl],
        columns=_columns(kl, in_part, bool(found.sums.flags)),
        sequences=[
            _section(n, each, found, names, marked[n], in_part)
            for n, each in enumerate(by_kl.chosen.items)
        ],
        chosen=sequences.about_selection(by_kl.chosen, options, f"mean {kl} or {kl} of a token"),
        provenance=_provenance(file.run),
        names=names,
        metrics=_METRICS,
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


def _figures(
    means: Mapping[str, Estimate], sums: DivergenceTotals, in_part: bool
) -> list[page.Figure]:
    found = []
    for name, label in (*_FIGURES, *_PLAIN):
        if name in means:
            label += " ≥" if in_part and f"{name}_at_most" in means else ""
            is_loss = name not in dict(_PLAIN)
            found.append(page.Figure(label, Cell.of(means[name]), means[name].method, is_loss))
    found.append(page.Figure("scored tokens", f"{sums.n_scored:,}", f"of {sums.n_tokens:,}"))
    found.append(page.Figure("sequences", f"{sums.n_sequences:,}"))
    return found


def _quantiles(documents: DocumentSums, kl: str) -> list[page.Table]:
    kls, deltas = documents.quantiles("kl"), documents.quantiles("delta_p")
    rows: list[page.TableRow] = [
        [f"{share:.0%}", Cell.of(kls[share]), Cell.of(deltas[share])]
        for share in _QUANTILES
        if share in kls
    ]
    header = [Column("share of tokens", is_text=True), Column(kl, is_loss=True), Column("Δp")]
    return [page.Table("Quantiles of tokens", header, rows)] if rows else []


def _columns(kl: str, in_part: bool, has_flags: bool) -> list[Column]:
    at_most = [Column("KL at most", is_loss=True)] if in_part else []
    flags = [Column("flags", is_text=True)] if has_flags else []
    return [
        Column("scored tokens"), Column(f"mean {kl}", is_loss=True), *at_most,
        Column("model's loss", is_loss=True), Column("gold's loss", is_loss=True),
        Column("same favourite"), *flags,
    ]  # fmt: skip


def _section(
    number: int,
    sequence: sequences.PageSequence,
    found: DivergencePageData,
    names: page.TokenNames,
    marked: set[int],
    in_part: bool,
) -> page.Section:
    sums, panes = sequence.fields[_SUMS], list[page.Pane]()
    if not sequence.why_plain:
        panes = [spans.token_pane(sequence, "", names, f"t{number}-0-", marked, "", "kl", KL_EDGES)]
    at_most = [Cell(sums.mean("kl_at_most"))] if in_part else []
    flags = [sequences.flags_text(sequence.flags)] if found.sums.flags else []
    cells: page.TableRow = [
        f"{sums.n_scored:,}", Cell(sums.mean("kl")), *at_most, Cell(sums.mean("student_loss")),
        Cell(sums.mean("teacher_loss")), Cell(sums.same_top1), *flags,
    ]  # fmt: skip
    about = sequences.about_sequence(sequence)
    return page.Section(number, sequence.id, sequences.where_of(sequence), cells, panes, about)
