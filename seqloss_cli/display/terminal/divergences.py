"""Divergences for a terminal: the tokens of a few sequences, a line each for many, the totals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from seqloss_cli.core.escaping import escape
from seqloss_cli.display.terminal import formatting as fmt
from seqloss_cli.display.terminal.formatting import TableOptions
from seqloss_cli.display.terminal.tables import add_rows
from seqloss_cli.display.terminal.writer import Rows, TerminalWriter, run_rows
from seqloss_cli.metrics.divergence import DivergenceScore, DivergenceTotals, Documents

# Printed words say "gold" where code says teacher or reference: golden outputs pin them.
_MEANS = (
    ("cross_entropy", "cross-entropy", "H(gold, model)"),
    ("teacher_entropy", "gold entropy", "H(gold)"),
    ("kl", "KL divergence", "KL(gold ‖ model)"),
    ("kl_at_most", "KL at most", "gold is known in part"),
    ("student_loss", "model's loss", "on the text"),
    ("teacher_loss", "gold's loss", "on the text"),
    ("loss_difference", "difference", "model's loss - gold's"),
    ("student_cut", "model cut", "probability of words that the gold has not"),
    ("teacher_cut", "gold cut", "probability of words that the model has not"),
    ("same_top1", "same favourite", "share of tokens"),
    ("delta_p", "delta p", "mean of p(model) - p(gold) of the text's token"),
    ("rms_delta_p", "delta p, RMS", "root of its mean square"),
)
_WITHOUT_UNIT = ("student_cut", "teacher_cut", "same_top1", "delta_p", "rms_delta_p")
_WITHOUT_INTERVAL = ("student_cut", "teacher_cut")
_QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)


class DivergenceTableWriter(TerminalWriter[DivergenceScore, DivergenceTotals]):
    """Writes divergences to a terminal."""

    _most_whole = 5

    def __init__(
        self,
        console: Console,
        options: TableOptions,
        documents: Documents,
        measured: Callable[[], dict[str, Any] | None],
    ) -> None:
        """`documents` gives means and quantiles with intervals when all are scored, and `measured`
        what a teacher that is saved in part leaves out."""
        super().__init__(console, options)
        self._documents, self._measured = documents, measured

    def _show(self, scored: DivergenceScore, sums: DivergenceTotals) -> None:
        self._console.print(divergence_table(scored, self._options))
        self._console.print()

    def _show_line(self, scored: DivergenceScore, sums: DivergenceTotals) -> None:
        kl, same = sums.mean("kl"), sums.same_top1
        tokens, mean = fmt.count_of(sums.n_scored, "token"), self._unit.text(kl)
        line = Text(escape(scored.sample.id))
        figures = f"  {tokens}, mean KL {mean}, same favourite {fmt.number(same)}"
        self._console.print(line.append(figures, style=fmt.kl_style(kl)), soft_wrap=True)

    def _before_totals(self) -> None:
        super()._before_totals()
        # Quantiles are of all tokens of the run, so they come last, whatever was shown before.
        self._console.print(self._quantiles())

    def _totals(self, sums: DivergenceTotals, n_rejected: int, n_empty_lines: int) -> Rows:
        rejected = f"rejected {n_rejected}" if n_rejected else ""
        yield "sequences", str(sums.n_sequences), rejected
        if n_empty_lines:
            yield "empty lines", str(n_empty_lines), ""
        yield "scored tokens", str(sums.n_scored), f"of {sums.n_tokens}"
        yield from self._means()
        if sums.flags:
            yield "flags", "", fmt.counts_text(sums.flags)
        for name, value in self._provenance():
            yield name, "", value

    def _means(self) -> Iterator[tuple[str, str, str]]:
        unit, means = self._unit, self._documents.means()
        for name, label, note in _MEANS:
            if (mean := means.get(name)) is None:
                continue
            # Of a teacher that was saved in part, the figure is a bound.
            if f"{name}_at_most" in means:
                label += " ≥"
            if name not in _WITHOUT_UNIT:
                between = f"{unit.interval(mean)} {unit} per token, {note}"
                yield label, unit.text(mean.value), between
            else:
                between = "" if name in _WITHOUT_INTERVAL else f"{fmt.interval(mean)} "
                yield label, fmt.number(mean.value), between + note
        if "kl" in means:
            yield "intervals", "95%", means["kl"].method

    def _quantiles(self) -> Table:
        """Quantiles of tokens, with their intervals."""
        unit = self._unit
        figures = ("KL", "interval", "delta p", "interval")
        table = fmt.figures_table("tokens", ("share",), (), figures)
        kls, deltas = (self._documents.quantiles(name) for name in ("kl", "delta_p"))
        for share in _QUANTILES:
            if share in kls:
                table.add_row(
                    f"{share:.0%}",
                    unit.text(kls[share].value),
                    unit.interval(kls[share]),
                    fmt.number(deltas[share].value),
                    fmt.interval(deltas[share]),
                )
        return table

    def _provenance(self) -> Iterator[tuple[str, str]]:
        run, teacher = self._run, self._run.teacher
        yield "gold", str(run.gold)
        if teacher is not None:
            saved = f", top {teacher['top_k']} of {teacher['n_words']}, from {teacher['saved_as']}"
            known = saved if teacher["saved_as"] else ""
            yield "teacher", f"{teacher['model']}, {teacher['dtype']}{known}"
        measured = self._measured() or (teacher or {}).get("measured")
        if measured:
            yield (
                "saved in part",
                f"with {measured['model']}: KL {fmt.number(measured['mean_kl'])}, "
                f"{fmt.number(measured['mean_kl_in_part'])} by the top {measured['top_k']} (nats "
                "per token)",
            )
        yield from run_rows(run)


def divergence_table(scored: DivergenceScore, options: TableOptions) -> Table:
    """Return position, token, both losses, KL, the change of its probability, and whether both
    models have the same top-1, for each token."""
    title = f"{escape(scored.sample.id)}  (in {options.unit})"
    figures = ("loss", "gold's", "KL", "delta p", "top")
    table = fmt.figures_table(title, ("pos",), ("token",), figures)
    n_tokens = scored.score.sequence.n_tokens
    add_rows(table, _rows(scored, options), n_tokens, options, "tokens")
    return table


def _rows(scored: DivergenceScore, options: TableOptions) -> Iterator[list[Text]]:
    score, found, unit = scored.score, scored.divergences, options.unit
    deltas = found.delta_p
    for t, text in enumerate(options.token_texts(score.sequence)):
        if not score.counted[t]:
            yield [
                Text(str(t), style="dim"),
                Text(fmt.visible(text), style="dim"),
                *[Text("-")] * 5,
            ]
            continue
        kl, same = float(found.kls[t]), bool(found.same_top1[t])
        yield [
            Text(str(t), style="dim"),
            Text(fmt.visible(text), style=fmt.kl_style(kl)),
            Text(unit.text(float(found.student_losses[t]))),
            Text(unit.text(float(found.reference_losses[t]))),
            Text(unit.text(kl), style=fmt.kl_style(kl)),
            Text(f"{deltas[t]:+.4f}"),
            Text("=" if same else "≠", style="dim" if same else ""),
        ]
