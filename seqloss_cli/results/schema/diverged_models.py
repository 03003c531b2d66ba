"""Totals of `seqloss diverge` with several models: of each, and of what lies between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import filterfalse
from typing import Any

from seqloss_cli.core.records import Rejections
from seqloss_cli.metrics.divergence import DocumentSums, ModelsTotals
from seqloss_cli.metrics.intervals import Estimate
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.results import schema as s
from seqloss_cli.results.schema import sequences as q
from seqloss_cli.results.schema.divergences import (
    TOTALS_KEYS,
    Asked,
    divergence_rows,
    divergence_totals_row,
)


@dataclass(frozen=True)
class _ModelsView(s.TotalsView):
    """The sums of a run with several models: keys of its totals take their values from here."""

    names: Sequence[str]
    documents: Sequence[DocumentSums]
    in_part: bool
    asked: Asked


def models_rows(
    options: s.RowOptions, documents: Sequence[DocumentSums], in_part: bool
) -> s.Rows[Any, Any, Any]:
    """Return the rows of a run, of an input and a model each. Arguments are those of
    `divergence_rows`, with the documents of each model."""
    run = options.run
    asked, names = Asked.of(run.teacher, run.rows), [each["name"] for each in run.models or ()]

    def totals_row(sums: ModelsTotals, rejected: Rejections, n_empty_lines: int) -> s.Row:
        view = _ModelsView(sums, rejected, n_empty_lines, names, documents, in_part, asked)
        return s.row_of(MODELS_TOTALS_KEYS, view)

    # A row is of one model, as a run with it alone has it; totals are of all.
    of_one: s.Rows[Any, Any, Any] = divergence_rows(options, documents[0], lambda: None, in_part)
    return replace(of_one, totals=totals_row)


def _models(view: _ModelsView) -> list[s.Row]:
    """Return the totals of each model; what was not scored is of all, and stands beside."""
    unscored, found = {key.name for key in s.UNSCORED}, []
    for name, part, own in zip(view.names, view.sums.parts, view.documents, strict=True):
        totals = divergence_totals_row(s.TotalsView(part, {}, 0), own, view.in_part, view.asked)
        found.append({"model": name, **{k: v for k, v in totals.items() if k not in unscored}})
    return found


def _best(view: _ModelsView) -> str | None:
    best = view.sums.best
    return None if best is None else view.names[best]


def _differences(view: _ModelsView) -> list[s.Row]:
    """Return how much more each of the others has than the best, nats per token."""
    names, documents, best = view.names, view.documents, view.sums.best
    if best is None:
        return []
    others = filterfalse(best.__eq__, range(len(names)))
    return [
        {"model": names[n], "less": names[best], **asdict(documents[n].kl_less(documents[best]))}
        for n in others
    ]


_NAME = s.text("model", str, about="Its name, as it was typed.")
_ESTIMATE_KEYS = (
    s.real("value", float, about="Difference of mean KL, nats per token."),
    *(s.real(name, float, about=about) for name, about in (
        ("low", "Lower end of its interval, nats per token."),
        ("high", "Upper end of its interval, nats per token."),
    )),
    s.real("standard_error", float, about="Of the difference, nats per token."),
    s.whole("n", int, about=(Estimate, "n")),
    s.text("method", str, about="How the interval was made."),
)  # fmt: skip
assert [key.name for key in _ESTIMATE_KEYS] == [each.name for each in fields(Estimate)]
MODELS_TOTALS_KEYS = (
    s.whole("n_sequences", lambda v: v.sums.parts[0].n_sequences, about=(Totals, "n_sequences")),
    *s.UNSCORED,
    s.text(
        "best",
        _best,
        of=str | None,
        about="Name of the model of the least mean KL; null where none is known.",
    ),
    s.nested(
        "models",
        _models,
        of=[(_NAME, *(key for key in TOTALS_KEYS if key not in s.UNSCORED))],
        about="Totals of each model.",
    ),
    s.nested(
        "kl_differences",
        _differences,
        of=[(_NAME, s.text("less", str, about="The best, which is taken off."), *_ESTIMATE_KEYS)],
        about="Mean KL of each of the others, less that of the best, over documents in pairs.",
    ),
    q.flags_key(lambda v: {**v.sums.flags}),
)
"""Keys of the totals of several models, in their order."""
