"""Rankings and divergences for a terminal: a few whole, a line each for many, then the totals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from seqloss_cli.core.escaping import escape
from seqloss_cli.core.records import Rejections
from seqloss_cli.display.scales import count_of
from seqloss_cli.display.terminal import formatting as fmt
from seqloss_cli.display.terminal.formatting import Column, FiguresTable, TableOptions, Unit
from seqloss_cli.display.terminal.tables import with_rows
from seqloss_cli.display.terminal.writer import LineFigure, Rows, TerminalWriter, run_rows
from seqloss_cli.metrics import divergence as d
from seqloss_cli.metrics.accuracy import RankTotals, accuracies
from seqloss_cli.metrics.divergence import DivergenceScore, DivergenceTotals, DocumentSums
from seqloss_cli.metrics.intervals import Estimate
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


def rank_answer(totals: RankTotals, unit: Unit) -> str:
    """Return what a run comes to in a few words."""
    found = [f"{name} {fmt.number(each.value)}" for name, each in accuracies(totals).items()]
    if not found:
        return f"{count_of(totals.n_rows, 'row')} without a known answer"
    return f"{', '.join(found)} of {count_of(totals.n_with_answer, 'row')}"


def divergence_answer(sums: DivergenceTotals, unit: Unit) -> str:
    """Return what a run comes to in a few words."""
    if not sums.n_scored:
        return "nothing was scored"
    bound = "at least " if "kl_at_most" in sums.units else ""
    kl = f"{bound}{unit.figure(sums.mean('kl'), 'per token')}"
    same = f"same favourite {fmt.number(sums.same_top1)}"
    if "acceptance" in sums.units:
        same = f"acceptance {bound}{fmt.number(sums.mean('acceptance'))}, {same}"
    return f"mean KL {kl}, {same}, {sums.n_scored:,} tokens scored"


class RankTableWriter(TerminalWriter[Ranking, RankTotals]):
    """Writes rankings to a terminal."""

    _head_of_rest, _in_unit = "best choice", ""

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
        super()._begin_lines(ranking, sums)

    def _name(self, ranking: Ranking) -> str:
        return escape(ranking.sample.id)

    def _figures(self, ranking: Ranking, sums: RankTotals) -> list[LineFigure]:
        best, shares = _best(ranking, self._by), ranking.probabilities
        share = "-" if shares is None or best is None else f"{shares[best]:.3f}"
        figures = [LineFigure("best", 6, "-" if best is None else str(best))]
        figures.append(LineFigure("share", 8, share, 1))
        right = (ranking.correct or {}).get(_accuracy_of(self._by))
        known = right is not None and best is not None
        figures.append(LineFigure("judged", 8, ("right" if right else "wrong") if known else "-"))
        return figures

    def _style(self, ranking: Ranking, sums: RankTotals) -> str:
        right = (ranking.correct or {}).get(_accuracy_of(self._by))
        return "" if right is None else "green" if right else "yellow"

    def _rest(self, ranking: Ranking, sums: RankTotals) -> Text:
        best = _best(ranking, self._by)
        return Text(
            "  no order" if best is None else f"  {_shortened(ranking.choices.responses[best])}"
        )

    def _totals(self, sums: RankTotals, rejected: Rejections, n_empty_lines: int) -> Rows:
        yield "rows", f"{sums.n_rows:,}, {fmt.rejected_text(rejected)}"
        if n_empty_lines:
            yield "empty lines", f"{n_empty_lines:,}"
        n_tokens = count_of(sums.n_tokens, "token")
        yield "choices", f"{sums.n_choices:,}, {n_tokens} with their prompts"
        found = accuracies(sums)
        for name, estimate in found.items():
            yield name, f"{fmt.value_of(estimate)} {fmt.interval(estimate)} {_JUDGED_BY[name]}"
        if found:
            n_judged = count_of(sums.n_with_answer, "row")
            yield "by guessing", f"{fmt.number(sums.chance)}, {n_judged} judged"
            yield "intervals", "95%, Wilson's score interval over rows"
        if n := sums.n_tied.get(self._by, 0):
            rows = count_of(n, "row")
            yield "ties", f"{rows} by {self._by}; the first of equals counts as best"
        if sums.boundaries:
            yield "boundaries", fmt.counts_text(sums.boundaries)
        if sums.flags:
            yield "flags", fmt.counts_text(sums.flags)
        yield from run_rows(self._run)


def choices_table(ranking: Ranking, options: TableOptions, by: str) -> FiguresTable:
    """Return the choices with all their scores, best first by the score that was asked for. Scores
    per byte are left out where they are those per character, and those that equal `pmi`."""
    log, unit = "log2" if options.bits else "ln", options.unit
    same = all(choice.n_bytes == choice.n_chars for choice in ranking.scored)
    hidden = ["sum", *(["byte"] if same else [])]
    if all(each.score_by("pmi") == each.score_by("mutual_information") for each in ranking.scored):
        hidden.append("mutual_information")
    names = [name for name in ranking.score_names if name not in hidden]
    title = f"{escape(ranking.sample.id)}  (in {unit}, by {by})"
    answers = ranking.choices.answers
    columns = [Column("#"), *([Column(_RIGHT)] if answers is not None else [])]
    columns += [Column("choice", least=14), Column(f"{log} Pr(y|x)")]
    # The score that orders them stays.
    columns += [Column(_HEADERS.get(name, "mutual"), spare=2 * (name != by)) for name in names]
    table = FiguresTable(title, [*columns, Column("share", spare=1)])
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


def _best(ranking: Ranking, by: str) -> int | None:
    return ranking.orders[by][0] if by in ranking.orders else None


def _accuracy_of(score: str) -> str:
    return next(name for name, of in ACCURACIES.items() if of == score)


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
    ("reverse_kl", "reverse KL", "KL(model ‖ gold)"),
    ("jensen_shannon", "Jensen-Shannon", "of both and their mean; ln 2 at most"),
    ("jensen_shannon_at_most", "Jensen-Shannon at most", "gold is known in part"),
    ("total_variation", "total variation", "½ Σ |p - q|"),
    ("total_variation_at_most", "total variation at most", ""),
    ("acceptance", "acceptance", "of a token that the model drafts, by gold at temperature 1"),
    ("acceptance_at_most", "acceptance at most", ""),
    ("top_k_overlap", "top-k overlap", "share of the most probable ids"),
    ("same_top1", "same favourite", "share of tokens"),
    ("delta_p", "delta p", "mean of p(model) - p(gold) of the text's token"),
    ("rms_delta_p", "delta p, RMS", "root of its mean square"),
)
_WITHOUT_UNIT = (
    *("student_cut", "teacher_cut", "same_top1", "delta_p", "rms_delta_p", "total_variation"),
    *("total_variation_at_most", "acceptance", "acceptance_at_most", "top_k_overlap"),
)
_DIFFERENCES = ("loss_difference", "delta_p")
_WITHOUT_INTERVAL = ("student_cut", "teacher_cut")
_QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)


class DivergenceTableWriter(TerminalWriter[DivergenceScore, DivergenceTotals]):
    """Writes divergences to a terminal."""

    _most_whole, _in_unit = 5, "KL in"

    def __init__(
        self,
        console: Console,
        options: TableOptions,
        documents: DocumentSums,
        measured: Callable[[], dict[str, Any] | None],
        draft_length: int = 0,
        overlap_k: int = 0,
    ) -> None:
        """`documents` gives means and quantiles with intervals when all are scored, and `measured`
        what a teacher that is saved in part leaves out. Drafts are of `draft_length` tokens, and
        `overlap_k` ids are compared."""
        super().__init__(console, options)
        self._documents, self._measured = documents, measured
        self._draft_length, self._overlap_k = draft_length, overlap_k

    def _show(self, scored: DivergenceScore, sums: DivergenceTotals) -> None:
        self._console.print(divergence_table(scored, self._options))
        self._console.print()

    def _name(self, scored: DivergenceScore) -> str:
        return escape(scored.sample.id)

    def _figures(self, scored: DivergenceScore, sums: DivergenceTotals) -> list[LineFigure]:
        return [
            LineFigure("scored", 8, f"{sums.n_scored:,}", 2),
            LineFigure("mean KL", 10, self._unit.text(sums.mean("kl"))),
            LineFigure("same favourite", 16, fmt.number(sums.same_top1), 1),
        ]

    def _style(self, scored: DivergenceScore, sums: DivergenceTotals) -> str:
        return fmt.kl_style(sums.mean("kl"))

    def _before_totals(self) -> None:
        super()._before_totals()
        # Quantiles are of all tokens of the run, so they come last, whatever was shown before.
        self._console.print(self._quantiles())
        self._console.print()
        for title, bins in (
            ("by position in the sequence", self._documents.positions.means(d.position_ends)),
            ("by gold's entropy, nats", self._documents.entropies.means(d.entropy_ends)),
        ):
            if bins:
                self._console.print(self._binned(title, bins))
                self._console.print()

    def _totals(self, sums: DivergenceTotals, rejected: Rejections, n_empty_lines: int) -> Rows:
        beside = fmt.rejected_text(rejected) if rejected else ""
        yield "sequences", f"{sums.n_sequences:,}", beside
        if n_empty_lines:
            yield "empty lines", f"{n_empty_lines:,}", ""
        yield "scored tokens", f"{sums.n_scored:,}", f"of {sums.n_tokens:,}"
        yield from self._means()
        yield from self._drafts(sums)
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
            if name == "top_k_overlap":
                label = f"top-{self._overlap_k} overlap"
            text, digits = fmt.number, fmt.digits_of(mean, None if name in _WITHOUT_UNIT else unit)
            if name in _DIFFERENCES:
                text = fmt.signed
                note += _way_of(mean)
            if name not in _WITHOUT_UNIT:
                note = f"{unit.interval(mean)} {unit} per token, {note}".lstrip()
                yield label, text(unit.of(mean.value), digits), note
            else:
                note = (
                    note if name in _WITHOUT_INTERVAL else f"{fmt.interval(mean)} {note}".lstrip()
                )
                yield label, text(mean.value, digits), note
        if "kl" in means:
            # Of a divergence with an infinite term there is none, of others there is.
            kl = means["kl"]
            mean = next((mean for mean in (kl, *means.values()) if mean.low is not None), kl)
            yield "intervals", "-" if mean.low is None else "95%", mean.method

    def _drafts(self, sums: DivergenceTotals) -> Iterator[tuple[str, str, str]]:
        length, means = self._draft_length, self._documents.means()
        if not length or (accepted := means.get(d.DRAFTS)) is None:
            return
        bound = " ≥" if d.DRAFTS_AT_MOST in means else ""
        what = f"of {length} that the model drafts, over {count_of(sums.n_draft_starts, 'start')}"
        yield (
            f"accepted{bound}", fmt.value_of(accepted), f"{fmt.interval(accepted)} {what}".lstrip()
        )  # fmt: skip
        if bound:
            yield "accepted at most", fmt.value_of(means[d.DRAFTS_AT_MOST]), ""
        if accepted.value is not None:
            yield (
                f"tokens per step{bound}",
                fmt.number(accepted.value + 1),
                "accepted, and one more",
            )
        if (acceptance := sums.mean("acceptance")) is not None:
            alike = d.accepted_if_alike(acceptance, length)
            yield (
                f"accepted if alike{bound}",
                fmt.number(alike),
                "if acceptance were the same at each token",
            )

    def _binned(self, title: str, bins: list[d.BinMeans]) -> FiguresTable:
        columns = [Column("from"), Column("to"), Column("scored", spare=3), Column("KL")]
        columns += [Column("KL interval", spare=2), Column("acceptance")]
        columns += [Column("same favourite", spare=1)]
        table = FiguresTable(f"{title}; KL in {self._unit}", columns)
        for each in bins:
            ends = f"{each.low:g}", "" if each.high is None else f"{each.high:g}"
            kl = fmt.value_of(each.mean_kl, self._unit), self._unit.interval(each.mean_kl)
            shares = fmt.value_of(each.mean_acceptance), fmt.value_of(each.same_top1)
            table.add_row(*ends, f"{each.n_scored:,}", *kl, *shares)
        return table

    def _quantiles(self) -> FiguresTable:
        """Quantiles of tokens, with their intervals."""
        unit = self._unit
        columns = [Column("share"), Column("KL"), Column("KL interval", spare=1)]
        columns += [Column("delta p"), Column("delta p interval", spare=2)]
        table = FiguresTable(f"quantiles of tokens, KL in {unit}", columns)
        kls, deltas = (self._documents.quantiles(name) for name in ("kl", "delta_p"))
        for share in _QUANTILES:
            if share in kls:
                kl, delta = kls[share], deltas[share]
                of_kl = (fmt.value_of(kl, unit), unit.interval(kl))
                of_delta = (fmt.signed(delta.value, fmt.digits_of(delta)), fmt.interval(delta))
                table.add_row(f"{share:.0%}", *of_kl, *of_delta)
        return table

    def _provenance(self) -> Iterator[tuple[str, str]]:
        run, teacher = self._run, self._run.teacher
        yield "gold", str(run.gold)
        if teacher is not None:
            saved = f", top {teacher['top_k']} of {teacher['n_words']}, from {teacher['saved_as']}"
            known = saved if teacher["saved_as"] else ""
            yield "teacher", f"{teacher['model']}, {teacher['dtype']}{known}"
        if measured := self._measured() or (teacher or {}).get("measured"):
            whole, part = (fmt.number(measured[key]) for key in ("mean_kl", "mean_kl_in_part"))
            by_top = f"{part} by the top {measured['top_k']} (nats per token)"
            yield "saved in part", f"with {measured['model']}: KL {whole}, {by_top}"
        yield from run_rows(run)


def _way_of(difference: Estimate) -> str:
    """Say in words which way a difference points, and whether its interval reaches over 0."""
    if not (way := fmt.way(difference.value)):
        return ""
    low, high = difference.low, difference.high
    if low is None or high is None:
        return f": the model's is {way}"
    return f": the model's is {way}{', not beyond noise' if low <= 0 <= high else ''}"


def divergence_table(scored: DivergenceScore, options: TableOptions) -> FiguresTable:
    """Return position, token, both losses, KL, the change of its probability, and whether both
    models have the same top-1, for each token."""
    title = f"{escape(scored.sample.id)}  (in {options.unit})"
    columns = [Column("pos"), Column("token", least=8), Column("loss", spare=2)]
    columns += [Column("gold's", spare=3), Column("KL"), Column("delta p", spare=1)]
    table = FiguresTable(title, [*columns, Column("top", spare=4)])
    return with_rows(
        table, _rows(scored, options), scored.score.sequence.n_tokens, options, "tokens"
    )


def _rows(scored: DivergenceScore, options: TableOptions) -> Iterator[list[Text]]:
    score, found, unit = scored.score, scored.divergences.arrays, options.unit
    counted = score.counted
    for t, text in enumerate(options.token_texts(score.sequence)):
        if not counted[t]:
            unscored = (Text(each, style="dim") for each in (str(t), fmt.visible(text)))
            yield [*unscored, *[Text("-")] * 5]
            continue
        kl, same = float(found["kl"][t]), bool(scored.divergences.same_top1[t])
        yield [
            Text(str(t), style="dim"),
            Text(fmt.visible(text), style=fmt.kl_style(kl)),
            Text(unit.text(float(found["student_loss"][t]))),
            Text(unit.text(float(found["teacher_loss"][t]))),
            Text(unit.text(kl), style=fmt.kl_style(kl)),
            Text(fmt.signed(float(found["delta_p"][t]))),
            Text("=" if same else "≠", style="dim" if same else ""),
        ]
