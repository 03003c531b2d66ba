"""Comparisons and objectives for a terminal, with what they say in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from seqloss_cli.analysis.compare import Comparison, Comparisons
from seqloss_cli.core.escaping import escape
from seqloss_cli.display.terminal.reports import Scale, interval
from seqloss_cli.display.terminal.theme import figures_table, many, number, visible
from seqloss_cli.metrics.statistics import Estimate, interval_notes
from seqloss_cli.metrics.totals import Totals

_LEVELS = "▁▂▃▄▅▆▇█"


def plain_words(pair: Comparison, names: Sequence[str], scale: Scale) -> str:
    """`B is lower by 0.0310 ± 0.0080 nats per token; lower on 612 of 1000 documents; p = 0.0001`"""
    a, b = _names(pair, names)
    difference = scale(pair.difference.value)
    if difference is None:
        return f"{b} and {a}: nothing to compare"
    lower = b if difference <= 0 else a
    n_lower = pair.n_lower if difference <= 0 else pair.n_higher
    reach = pair.difference.half_width
    sure = "" if reach is None else f" ± {number(scale(reach))}"
    size = f"{number(abs(difference))}{sure} {scale.unit} per {pair.unit}"
    share = f"lower on {n_lower} of {many(pair.n_documents, 'document')}"
    p = f"p = {_p(pair.p_adjusted)}" if pair.n_documents > 1 else "one document: no test"
    if not pair.shown:
        signed = f"{difference:+.4f}{sure} {scale.unit} per {pair.unit}"
        return f"no difference shown between {b} and {a}: {signed}; {p}"
    return f"{lower} is lower by {size}; {share}; {p}"


def _names(pair: Comparison, names: Sequence[str]) -> tuple[str, str]:
    return escape(names[pair.first]), escape(names[pair.second])


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else f"{value:.1g}"


def comparison_view(
    found: Comparisons, names: Sequence[str], confidence: float, bits: bool
) -> Iterator[RenderableType]:
    scale = Scale(bits)
    for pair in found.pairs:
        yield Text(plain_words(pair, names, scale), style="bold" if pair.shown else "")
    for pair in found.pairs:
        yield _figures(pair, names, scale, len(found.pairs), confidence)
        yield from _where(pair, names, scale)


def _figures(
    pair: Comparison, names: Sequence[str], scale: Scale, n: int, confidence: float
) -> RenderableType:
    a, b = _names(pair, names)
    table = figures_table(f"{b} against {a}", (), ("figure",), ("value", "interval"))
    for name, side in ((a, pair.a), (b, pair.b)):
        shown = f"{name}, {scale.unit} per {pair.unit}"
        value = number(scale(side.per_unit.value))
        table.add_row(Text(shown), value, interval(side.per_unit, scale))
    table.add_row(
        f"difference, {scale.unit} per {pair.unit}",
        number(scale(pair.difference.value)),
        interval(pair.difference, scale),
    )
    table.add_row("  by bootstrap", "", interval(pair.bootstrap, scale))
    if pair.n_documents > 1:
        table.add_row("p of sign flips", _p(pair.test.p), "exact" if pair.test.exact else "")
        if n > 1:
            table.add_row(f"  adjusted for {n} comparisons (Holm)", _p(pair.p_adjusted), "")
    table.add_row(
        f"documents: {b} lower, tied, higher",
        f"{pair.n_lower}, {pair.n_tied}, {pair.n_higher}",
        "",
    )
    table.add_row("correlation of documents", number(pair.correlation), "")
    lines = [f"{100 * confidence:g}% intervals", pair.difference.method, *pair.notes]
    table.caption = Text("; ".join(line for line in lines if line))
    return table


def _where(pair: Comparison, names: Sequence[str], scale: Scale) -> Iterator[RenderableType]:
    a, b = _names(pair, names)
    if pair.n_documents > 1 and pair.documents:
        title = f"documents that differ most, {scale.unit} per {pair.unit}"
        table = figures_table(title, (), ("sequence",), (a, b, "difference"))
        for entry in pair.documents:
            values = (entry.first, entry.second, entry.difference)
            table.add_row(Text(escape(entry.id)), *(number(scale(value)) for value in values))
        yield table
    if pair.tokens:
        title = f"tokens that differ most, {scale.unit}"
        table = figures_table(title, (), ("sequence", "token"), ("pos", a, b, "difference"))
        for found in pair.tokens:
            values = (found.first, found.second, found.difference)
            text = "" if found.token is None else visible(found.token)
            figures = (number(scale(value)) for value in values)
            table.add_row(Text(escape(found.id)), Text(text), str(found.position), *figures)
        yield table


def objective_view(
    names: Sequence[str],
    steps: Sequence[int | None],
    totals: Sequence[Totals],
    estimates: Sequence[Estimate],
    best: int | None,
    confidence: float,
    bits: bool,
) -> Iterator[RenderableType]:
    """A line for each checkpoint, and the curve over training steps."""
    scale = Scale(bits)
    table = figures_table(
        f"total loss over the data set, {scale.unit}",
        (),
        ("checkpoint",),
        ("step", "total loss", "per token", "interval", "above least"),
    )
    least = None if best is None else totals[best].total_loss
    for n, (name, step, sums, mean) in enumerate(zip(names, steps, totals, estimates, strict=True)):
        total = sums.total_loss
        above = None if total is None or least is None else total - least
        table.add_row(
            Text(escape(name), style="bold green" if n == best else ""),
            "-" if step is None else str(step),
            number(scale(total), 3),
            number(scale(sums.mean_loss)),
            interval(mean, scale),
            Text("← least" if n == best else number(scale(above), 3)),
        )
    notes = interval_notes(estimates[0], totals[0].n_sequences)
    table.caption = Text("; ".join([f"{100 * confidence:g}%", estimates[0].method, *notes]))
    yield table
    known = zip(steps, totals, strict=True)
    curve = sorted((s, t.mean_loss) for s, t in known if s is not None and t.mean_loss is not None)
    if len(curve) > 1:
        means = [mean for _, mean in curve]
        ends = f"{number(scale(means[0]))} to {number(scale(means[-1]))} {scale.unit} per token"
        yield Text(f"steps {curve[0][0]} to {curve[-1][0]}  {_sparkline(means)}  {ends}")


def _sparkline(values: Sequence[float]) -> str:
    """Between the lowest and the highest of them."""
    low, high = min(values), max(values)
    top = len(_LEVELS) - 1
    return "".join(_LEVELS[round(top * (v - low) / ((high - low) or 1.0))] for v in values)
