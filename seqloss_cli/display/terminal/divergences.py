"""Divergences for a terminal: the tokens of a few sequences, a line each for many, the totals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from seqloss_cli.core.escaping import escape
from seqloss_cli.core.records import Rejected
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.display.terminal.options import TableOptions
from seqloss_cli.display.terminal.panel import policies
from seqloss_cli.display.terminal.reports import interval
from seqloss_cli.display.terminal.tables import add_rows
from seqloss_cli.display.terminal.theme import (
    figures_table,
    flags_text,
    kl_style,
    many,
    number,
    visible,
)
from seqloss_cli.metrics.divergence import DivergenceScore, DivergenceTotals, Documents

_MOST_TABLES = 5
_FIGURES = (
    ("cross_entropy", "cross-entropy", "H(gold, model)"),
    ("teacher_entropy", "gold entropy", "H(gold)"),
    ("kl", "KL divergence", "KL(gold ‖ model)"),
    ("kl_at_most", "KL at most", "gold is known in part"),
    ("student_loss", "model's loss", "on the text"),
    ("teacher_loss", "gold's loss", "on the text"),
    ("loss_difference", "difference", "model's loss - gold's"),
)
_SHARES = (
    ("student_cut", "model cut", "probability of words that the gold has not"),
    ("teacher_cut", "gold cut", "probability of words that the model has not"),
)
_SHOWN = (0.01, 0.05, 0.5, 0.95, 0.99)


class DivergenceTableWriter:
    """A `Writer` of divergences for a terminal."""

    def __init__(
        self,
        console: Console,
        options: TableOptions,
        documents: Documents,
        measured: Callable[[], dict[str, Any] | None],
    ) -> None:
        self._console, self._options = console, options
        self._documents, self._measured = documents, measured
        self._n_shown = 0

    def begin(self, run: RunInfo) -> None:
        self._run = run

    def sequence(self, diverged: DivergenceScore, sums: DivergenceTotals) -> None:
        if self._options.summary:
            return
        self._n_shown += 1
        if self._n_shown <= _MOST_TABLES or self._options.all_tokens:
            self._console.print(token_table(diverged, self._options))
            self._console.print()
        else:
            self._console.print(_line(diverged, sums, self._options), soft_wrap=True)

    def reject(self, rejected: Rejected) -> None:
        """Rejected inputs are named on stderr as they come, and counted in the panel."""

    def end(self, sums: DivergenceTotals, n_rejected: int, n_empty_lines: int) -> None:
        if self._n_shown > _MOST_TABLES and not self._options.all_tokens:
            self._console.print()
        self._console.print(self._quantiles())
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(justify="right", no_wrap=True)
        grid.add_column(overflow="fold")
        rejected = f"rejected {n_rejected}" if n_rejected else ""
        grid.add_row("sequences", str(sums.n_sequences), rejected)
        if n_empty_lines:
            grid.add_row("empty lines", str(n_empty_lines), "")
        grid.add_row("scored tokens", str(sums.n_scored), f"of {sums.n_tokens}")
        for row in self._figures(sums):
            grid.add_row(*row)
        if sums.flags:
            grid.add_row("flags", "", escape(flags_text(sums.flags)))
        for name, value in self._provenance():
            grid.add_row(name, "", escape(value))
        self._console.print(Panel(grid, title="totals", title_align="left", expand=False))

    def _figures(self, sums: DivergenceTotals) -> Iterator[tuple[str, str, str]]:
        options, means = self._options, self._documents.means()
        for name, shown, note in _FIGURES:
            if name in means:
                if f"{name}_at_most" in means:  # gold is known in part
                    shown += " ≥"
                unit = f"{options.unit} per token, {note}"
                between = interval(means[name], options.in_unit)
                yield shown, number(options.in_unit(means[name].value)), f"{between} {unit}"
        for name, shown, note in _SHARES:
            if name in means:
                yield shown, number(means[name].value), note
        rest = (
            ("same_top1", "same favourite", "share of tokens"),
            ("delta_p", "delta p", "mean of p(model) - p(gold) of the text's token"),
            ("rms_delta_p", "delta p, RMS", "root of its mean square"),
        )
        for name, shown, note in rest:
            if name in means:
                between = interval(means[name])
                yield shown, number(means[name].value), f"{between} {note}"
        if "kl" in means:
            yield "intervals", "95%", means["kl"].method

    def _quantiles(self) -> Table:
        """Of tokens, with their intervals."""
        options = self._options
        table = figures_table("tokens", ("share",), (), ("KL", "interval", "delta p", "interval"))
        kls, deltas = (self._documents.quantiles(name) for name in ("kl", "delta_p"))
        for share in _SHOWN:
            if share in kls:
                table.add_row(
                    f"{share:.0%}",
                    number(options.in_unit(kls[share].value)),
                    interval(kls[share], options.in_unit),
                    number(deltas[share].value),
                    interval(deltas[share]),
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
                f"with {measured['model']}: KL {number(measured['mean_kl'])}, "
                f"{number(measured['mean_kl_in_part'])} by the top {measured['top_k']} (nats "
                "per token)",
            )
        yield from policies(run)


def token_table(diverged: DivergenceScore, options: TableOptions) -> Table:
    """Position, token, both losses, KL, the change of its probability, whether favourites agree."""
    title = f"{escape(diverged.sample.id)}  (in {options.unit})"
    figures = ("loss", "gold's", "KL", "delta p", "top")
    table = figures_table(title, ("pos",), ("token",), figures)
    n_tokens = diverged.score.sequence.n_tokens
    add_rows(table, _rows(diverged, options), n_tokens, options, "tokens")
    return table


def _rows(diverged: DivergenceScore, options: TableOptions) -> Iterator[list[Text]]:
    score, found = diverged.score, diverged.divergences
    deltas = found.delta_p
    for t, text in enumerate(options.token_texts(score.sequence)):
        if not score.counted[t]:
            yield [Text(str(t), style="dim"), Text(visible(text), style="dim"), *[Text("-")] * 5]
            continue
        kl = float(found.kls[t])
        style = kl_style(kl)
        yield [
            Text(str(t), style="dim"),
            Text(visible(text), style=style),
            Text(number(options.in_unit(float(found.student_losses[t])))),
            Text(number(options.in_unit(float(found.reference_losses[t])))),
            Text(number(options.in_unit(kl)), style=style),
            Text(f"{deltas[t]:+.4f}"),
            Text("=" if found.same_top1[t] else "≠", style="dim" if found.same_top1[t] else ""),
        ]


def _line(diverged: DivergenceScore, sums: DivergenceTotals, options: TableOptions) -> Text:
    kl, same = sums.mean("kl"), sums.same_top1
    line = Text(escape(diverged.sample.id))
    mean = number(options.in_unit(kl))
    figures = f"{many(sums.n_scored, 'token')}, mean KL {mean}, same favourite {number(same)}"
    return line.append(f"  {figures}", style=kl_style(kl))
