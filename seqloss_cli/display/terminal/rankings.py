"""Rankings for a terminal: the choices of a few rows, a line each for many, then the totals."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from seqloss_cli.core.escaping import escape
from seqloss_cli.display.terminal import formatting as fmt
from seqloss_cli.display.terminal.formatting import TableOptions
from seqloss_cli.display.terminal.writer import Rows, TerminalWriter, run_rows
from seqloss_cli.metrics.accuracy import RankTotals, accuracies
from seqloss_cli.metrics.ranking import ACCURACIES, Ranking

_HEADERS = {"token": "per token", "byte": "per byte", "char": "per char", "pmi": "pmi"}
_RIGHT, _LONGEST = "✓", 200
_JUDGED_BY = {
    "acc": "best by sum",
    "acc_norm": "per char",
    "acc_bytes": "per byte",
    "acc_tokens": "per token",
    "acc_pmi": "by pmi, ids as after the prompt",
    "acc_mutual_info": "by pmi, choices tokenized alone",
}


class RankTableWriter(TerminalWriter[Ranking, RankTotals]):
    """Writes rankings to a terminal."""

    def __init__(self, console: Console, options: TableOptions, by: str) -> None:
        """`by` is the score that orders the choices."""
        super().__init__(console, options)
        self._by = by

    def _show(self, ranking: Ranking, sums: RankTotals) -> None:
        self._console.print(choices_table(ranking, self._options, self._by))
        for remark in _remarks(ranking, self._by):
            self._console.print(Text(remark, style="yellow"))
        self._console.print()

    def _begin_lines(self, ranking: Ranking, sums: RankTotals) -> None:
        self._console.print(Text("a line each from here; --all-tokens shows tables"))

    def _show_line(self, ranking: Ranking, sums: RankTotals) -> None:
        self._console.print(_line(ranking, self._by), soft_wrap=True)

    def _totals(self, sums: RankTotals, n_rejected: int, n_empty_lines: int) -> Rows:
        yield "rows", f"{sums.n_rows}, rejected {n_rejected}"
        if n_empty_lines:
            yield "empty lines", str(n_empty_lines)
        yield (
            "choices",
            f"{sums.n_choices}, {fmt.count_of(sums.n_tokens, 'token')} with their prompts",
        )
        found = accuracies(sums)
        for name, estimate in found.items():
            yield name, f"{fmt.number(estimate.value)} {fmt.interval(estimate)} {_JUDGED_BY[name]}"
        if found:
            n_judged = fmt.count_of(sums.n_with_answer, "row")
            yield "by guessing", f"{fmt.number(sums.chance)}, {n_judged} judged"
            yield "intervals", "95%, Wilson's score interval over rows"
        if n := sums.n_tied.get(self._by, 0):
            yield (
                "ties",
                f"{fmt.count_of(n, 'row')} by {self._by}; the first of equals counts as best",
            )
        if sums.boundaries:
            yield "boundaries", fmt.counts_text(sums.boundaries)
        if sums.flags:
            yield "flags", fmt.counts_text(sums.flags)
        yield from run_rows(self._run)


def choices_table(ranking: Ranking, options: TableOptions, by: str) -> Table:
    """Return the choices with all their scores, best first by the score that was asked for. Scores
    per byte are left out where they are those per character, and those that equal `pmi`."""
    log, unit = "log2" if options.bits else "ln", options.unit
    same = all(choice.n_bytes == choice.n_chars for choice in ranking.scored)
    hidden = ["sum", *(["byte"] if same else [])]
    if all(each.score_by("pmi") == each.score_by("mutual_information") for each in ranking.scored):
        hidden.append("mutual_information")
    names = [name for name in ranking.score_names if name not in hidden]
    headers = [f"{log} Pr(y|x)", *(_HEADERS.get(name, "mutual") for name in names), "share"]
    title = f"{escape(ranking.sample.id)}  (in {unit}, by {by})"
    answers = ranking.choices.answers
    right = (_RIGHT,) if answers is not None else ()
    table = fmt.figures_table(title, ("#", *right), ("choice",), headers)
    # Without an order (a score is unknown of a choice) they stand as they came.
    order = ranking.orders.get(by, tuple(range(len(ranking.scored))))
    shares = ranking.probabilities
    for rank, n in enumerate(order, start=1):
        choice = ranking.scored[n]
        style = "bold" if rank == 1 and by in ranking.orders else ""
        row = [Text(str(n), style="dim")]
        if answers is not None:
            row.append(Text(_RIGHT if n in answers else "", style="green"))
        row.append(Text(_shortened(ranking.choices.responses[n]), style=style))
        row.append(Text(unit.text(choice.log_prob, 3), style=style))
        row += [Text(unit.text(choice.score_by(name), 3)) for name in names]
        row.append(Text("-" if shares is None else f"{shares[n]:.3f}"))
        table.add_row(*row)
    return table


def _shortened(text: str) -> str:
    return fmt.visible(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…")


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
        yield f"flags: {fmt.counts_text(flags)}"


def _line(ranking: Ranking, by: str) -> Text:
    """Id, the best choice, its share, and whether it is right."""
    line = Text(escape(ranking.sample.id), style="dim")
    if by not in ranking.orders:
        return line.append("  no order", style="yellow")
    best, shares = ranking.orders[by][0], ranking.probabilities
    share = "-" if shares is None else f"{shares[best]:.3f}"
    line.append(f"  {best}  {share}  ", style="not dim")
    right = (ranking.correct or {}).get(_accuracy_of(by))
    if right is not None:
        line.append("right  " if right else "wrong  ", style="green" if right else "yellow")
    return line.append(_shortened(ranking.choices.responses[best]), style="not dim")


def _accuracy_of(score: str) -> str:
    return next(name for name, of in ACCURACIES.items() if of == score)
