"""Make the page of a file that `check` wrote: texts coloured by |Δ| or Δ, figures and faults."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import numpy as np

from seqloss_cli.core.records import Floats
from seqloss_cli.display.html import charts, page, sequences, spans
from seqloss_cli.display.html.page import Cell, Column
from seqloss_cli.display.html.text_pages import LossGatherer, LossPageData
from seqloss_cli.display.scales import KL_EDGES
from seqloss_cli.metrics.intervals import Estimate
from seqloss_cli.results.files import ResultsOf
from seqloss_cli.results.schema.checks import CheckRow

_KEYS = {"dl": "deltas", "sc": "scored_log_probs", "re": "recorded_log_probs"}
"""Keys in the data of a pane, and the arrays that stand there."""
_FIGURES = {
    "mean_delta": "mean Δ",
    "mean_abs_delta": "mean |Δ|",
    "median_abs_delta": "median |Δ|",
    "p99_abs_delta": "99 % of |Δ|",
    "k1": "KL, k1",
    "k2": "KL, k2",
    "k3": "KL, k3",
    "share_beyond": "share beyond",
}
_PLAIN = ("share_beyond", "k2")
"""Figures that are not in nats."""
_HEADINGS = page.Headings(
    charts="Differences",
    places="Tokens that differ most",
    about=(
        "Δ is ln p as scored less ln p as recorded, in nats; KL is estimated over sampled tokens; "
        "intervals are 95 %, over sequences."
    ),
)


def gather_checks(rows: Iterable[CheckRow], options: page.PageOptions) -> LossPageData:
    """Read the rows once, as if |Δ| were their losses."""
    gatherer = LossGatherer(options)
    for order, row in enumerate(rows):
        found = sequences.page_sequence(row.row, order)
        if not found.why_plain and row.columns is not None:
            arrays = {key: _known(row.columns[name]) for key, name in _KEYS.items()}
            found = replace(found, extra=arrays)
        gatherer.add(row.row, found)
    return gatherer.found()


def _known(values: Floats) -> tuple[float | None, ...]:
    """Return the values (N, nats) with None where there is none."""
    return tuple(each if np.isfinite(each) else None for each in values.tolist())


def check_page(
    file: ResultsOf[CheckRow],
    found: LossPageData,
    options: page.PageOptions,
    words: Callable[[Mapping[str, Any]], list[str]],
    n_unusable: int = 0,
) -> page.Page:
    """Return the page; `words` says what totals name as faults, `n_unusable` rows of the file could
    not be read back."""
    names, totals = page.TokenNames(), file.totals or {}
    columns = [
        Column("compared tokens", lambda each: f"{each.totals.n_scored:,}"),
        Column("mean |Δ|", lambda each: Cell(each.totals.mean_loss), is_loss=True),
    ]
    sections, anchors = spans.text_sections(
        found.chosen.items, found.worst, columns, names, "", KL_EDGES
    )
    over = "95 % interval over documents"
    drawn = charts.position_chart([found.summary.positions], [], over, "|Δ|")
    return page.Page(
        title=options.title or f"Recorded log-probabilities of {PurePath(file.name).name}",
        subtitle=sequences.subtitle_of(file),
        notes=[*words(totals), *sequences.notes_of(file, n_unusable)],
        figures=_figures(totals),
        tables=[],
        charts=[drawn] if drawn else [],
        places=spans.linked(found.worst, anchors, "s", KL_EDGES),
        places_header=["|Δ|"],
        columns=columns,
        sequences=sections,
        chosen=sequences.about_selection(found.chosen, options, "mean |Δ| or |Δ| of a token"),
        provenance=[("", sequences.run_table(file.run))],
        names=names,
        metrics=[page.Metric("abs_delta", "|Δ|"), page.Metric("delta", "Δ")],
        headings=_HEADINGS,
        edges=KL_EDGES,
    )


def _figures(totals: Mapping[str, Any]) -> list[page.Figure]:
    written, found, told = totals.get("estimates") or {}, list[page.Figure](), set[str]()
    for name, label in _FIGURES.items():
        if name in written and written[name]["value"] is not None:
            each = Estimate(**written[name])
            about = "" if each.low is None and each.method in told else each.method
            told.add(each.method)
            found.append(page.Figure(label, Cell.of(each), about, name not in _PLAIN))
    for name, label in (("n_compared", "compared tokens"), ("n_sequences", "sequences")):
        if name in totals:
            found.append(page.Figure(label, f"{totals[name]:,}"))
    return found
