"""Rankings for a terminal: the choices of a few rows, a line each for many, then the totals."""

from __future__ import annotations

from collections.abc import Iterator

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
from seqloss_cli.display.terminal.theme import figures_table, flags_text, many, number, visible
from seqloss_cli.metrics.accuracy import RankTotals, accuracies
from seqloss_cli.metrics.ranking import ACCURACIES, Ranking

MOST_TABLES = 10
_PER = {"token": "per token", "byte": "per byte", "char": "per char", "pmi": "pmi"}
_RIGHT, _LONGEST = "✓", 200
_JUDGED = {
    "acc": "best by sum",
    "acc_norm": "per char",
    "acc_bytes": "per byte",
    "acc_tokens": "per token",
    "acc_pmi": "by pmi, ids as after the prompt",
    "acc_mutual_info": "by pmi, choices tokenized alone",
}


class RankTableWriter:
    """A `Writer` of rankings for a terminal."""

    def __init__(self, console: Console, options: TableOptions, by: str) -> None:
        """`by` is the score that orders the choices."""
        self._console, self._options, self._by = console, options, by
        self._n_shown = 0

    def begin(self, run: RunInfo) -> None:
        self._run = run

    def sequence(self, ranking: Ranking, sums: RankTotals) -> None:
        if self._options.summary:
            return
        self._n_shown += 1
        if self._n_shown <= MOST_TABLES or self._options.all_tokens:
            self._console.print(choices_table(ranking, self._options, self._by))
            for remark in _remarks(ranking, self._by):
                self._console.print(Text(remark, style="yellow"))
            self._console.print()
            return
        if self._n_shown == MOST_TABLES + 1:
            self._console.print(Text("a line each from here; --all-tokens shows tables"))
        self._console.print(_line(ranking, self._by), soft_wrap=True)

    def reject(self, rejected: Rejected) -> None:
        """Rejected inputs are named on stderr as they come, and counted in the panel."""

    def end(self, sums: RankTotals, n_rejected: int, n_empty_lines: int) -> None:
        if self._n_shown > MOST_TABLES and not self._options.all_tokens:
            self._console.print()
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in self._totals(sums, n_rejected, n_empty_lines):
            grid.add_row(name, escape(value))
        self._console.print(Panel(grid, title="totals", title_align="left", expand=False))

    def _totals(
        self, sums: RankTotals, n_rejected: int, n_empty_lines: int
    ) -> Iterator[tuple[str, str]]:
        yield "rows", f"{sums.n_rows}, rejected {n_rejected}"
        if n_empty_lines:
            yield "empty lines", str(n_empty_lines)
        yield "choices", f"{sums.n_choices}, {many(sums.n_tokens, 'token')} with their prompts"
        found = accuracies(sums)
        for name, estimate in found.items():
            figure = f"{number(estimate.value)} {interval(estimate)}"
            yield name, f"{figure} {_JUDGED[name]}"
        if found:
            yield "by guessing", f"{number(sums.chance)}, {many(sums.n_with_answer, 'row')} judged"
            yield "intervals", "95%, Wilson's score interval over rows"
        if n := sums.n_tied.get(self._by, 0):
            yield "ties", f"{many(n, 'row')} by {self._by}; the first of equals counts as best"
        if sums.boundaries:
            yield "boundaries", ", ".join(f"{name} {n}" for name, n in sums.boundaries.items())
        if sums.flags:
            yield "flags", flags_text(sums.flags)
        yield from policies(self._run)


def choices_table(ranking: Ranking, options: TableOptions, by: str) -> Table:
    """The choices, best first by the score that was asked for, with all their scores; those per
    byte where they are not those per character, and those that equal `pmi` left out."""
    log = "log2" if options.bits else "ln"
    same = all(choice.n_bytes == choice.n_chars for choice in ranking.scored)
    hidden = ["sum", *(["byte"] if same else [])]
    if all(each.score_by("pmi") == each.score_by("mutual_information") for each in ranking.scored):
        hidden.append("mutual_information")
    names = [name for name in ranking.score_names if name not in hidden]
    headers = [f"{log} Pr(y|x)", *(_PER.get(name, "mutual") for name in names), "share"]
    title = f"{escape(ranking.sample.id)}  (in {options.unit}, by {by})"
    right = (_RIGHT,) if ranking.choices.answers is not None else ()
    table = figures_table(title, ("#", *right), ("choice",), headers)
    order = ranking.orders.get(by, tuple(range(len(ranking.scored))))
    chances = ranking.probabilities
    for rank, n in enumerate(order, start=1):
        choice = ranking.scored[n]
        style = "bold" if rank == 1 and by in ranking.orders else ""
        row = [Text(str(n), style="dim")]
        if ranking.choices.answers is not None:
            row.append(Text(_RIGHT if n in ranking.choices.answers else "", style="green"))
        row.append(Text(_shortened(ranking.choices.responses[n]), style=style))
        row.append(Text(number(options.in_unit(choice.log_prob), 3), style=style))
        row += [Text(number(options.in_unit(choice.score_by(name)), 3)) for name in names]
        row.append(Text("-" if chances is None else f"{chances[n]:.3f}"))
        table.add_row(*row)
    return table


def _shortened(text: str) -> str:
    return visible(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…")


def _remarks(ranking: Ranking, by: str) -> Iterator[str]:
    if by not in ranking.orders:
        yield f"no order by {by}: it is not known of every choice"
    if by in ranking.tied:
        yield f"tied by {by}: the first of equals counts as best"
    orders = {name: order[0] for name, order in ranking.orders.items()}
    best = orders.get(by)
    others = [f"{n} by {name}" for name, n in orders.items() if n != best]
    if others and best is not None:
        yield f"other scores prefer choice {', '.join(others)}"
    if flags := ranking.flags:
        yield f"flags: {flags_text(flags)}"


def _line(ranking: Ranking, by: str) -> Text:
    """Id, the best choice, whether it is right, and its share."""
    line = Text(escape(ranking.sample.id), style="dim")
    if by not in ranking.orders:
        return line.append("  no order", style="yellow")
    best, chances = ranking.orders[by][0], ranking.probabilities
    share = "-" if chances is None else f"{chances[best]:.3f}"
    line.append(f"  {best}  {share}  ", style="not dim")
    right = (ranking.correct or {}).get(_accuracy_of(by))
    if right is not None:
        line.append("right  " if right else "wrong  ", style="green" if right else "yellow")
    return line.append(_shortened(ranking.choices.responses[best]), style="not dim")


def _accuracy_of(score: str) -> str:
    return next(name for name, of in ACCURACIES.items() if of == score)
