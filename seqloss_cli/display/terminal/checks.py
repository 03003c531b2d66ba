"""Checked recordings for a terminal: a few whole, a line each for many, then totals and faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from seqloss_cli.core.escaping import escape
from seqloss_cli.core.records import Rejections
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.display.scales import count_of
from seqloss_cli.display.terminal import formatting as fmt
from seqloss_cli.display.terminal.formatting import Column, FiguresTable, TableOptions, Unit
from seqloss_cli.display.terminal.heat import Drawing
from seqloss_cli.display.terminal.palette import DIFFERENCES
from seqloss_cli.display.terminal.tables import with_rows
from seqloss_cli.display.terminal.token_text import TokenText
from seqloss_cli.display.terminal.writer import LineFigure, Rows, TerminalWriter, run_rows
from seqloss_cli.metrics.deltas import DeltaTotals, RecordedScore, sequence_deltas
from seqloss_cli.metrics.faults import Checking, Diagnosis, Fault

_FIGURES = (
    ("mean_delta", "mean Δ", "scored less recorded"),
    ("median_delta", "median Δ", ""),
    ("mean_abs_delta", "mean |Δ|", ""),
    ("median_abs_delta", "median |Δ|", ""),
    ("p99_abs_delta", "99 % of |Δ|", "are no greater"),
)
_KLS = (
    ("k1", "KL, k1", "mean of -Δ over sampled tokens"),
    ("k2", "KL, k2", "mean of Δ²/2"),
    ("k3", "KL, k3", "mean of e^Δ - 1 - Δ"),
)
_SIGNED = ("mean_delta", "median_delta", "k1")
_VERDICTS = {
    "nothing": "no token has both values",
    "exact": "the recording is right, to the digits of float32",
    "noise": "no fault: differences are as small as arithmetic in bfloat16 makes them",
    "explained": "",
    "in part": "what was found leaves more than rounding: something else differs, too",
    "unknown": "not known: no fault that this command knows explains the differences",
}
_FAULTS = {
    "shift": "values are those of the token {by:+d}",
    "temperature": "temperature {temperature:g}, not 1",
    "top_k": "renormalised over the {top_k} most probable ids",
    "top_p": "renormalised after top-p {top_p:g}",
    "min_p": "renormalised after min-p {min_p:g}",
    "logits": "logits, not log-probabilities",
    "base": "logarithms to base {base}",
    "probabilities": "probabilities, not their logarithms",
    "bfloat16": "rounded to bfloat16 ({significant_bits} significant bits)",
    "beginning": "another BOS or chat template: the first {n_tokens} tokens differ, then it fades",
    "padding": "{n_tokens} zeros at the ends of rows stand for no value",
    "prompt_included": "the response's values are those of the prompt's tokens",
    "eos_missing": "the last token, EOS, has no value in {n_sequences} sequences",
}


def fault_words(fault: Fault) -> str:
    """Say in words what a fault is, and how much it explains."""
    parameters = fault.parameters
    if fault.name == "clamped":
        ((name, edge),) = ((k, v) for k, v in parameters.items() if k != "tokens")
        words = f"clamped: no value is {'below' if name == 'least' else 'above'} {edge:g}"
    else:
        words = _FAULTS[fault.name].format_map(parameters)
    if parameters.get("tokens") == "sampled":
        words += ", of sampled tokens alone"
    if fault.explains is None:
        return words
    return f"{words}; explains {100 * fault.explains:.3g} % of Σ|Δ|"


def diagnosis_words(totals: Mapping[str, Any]) -> list[str]:
    """Say in sentences what totals of a file name as faults; nothing of a file without totals."""
    if "diagnosis" not in totals:
        return []
    faults = [Fault(e["fault"], e["parameters"], e["explains"]) for e in totals["diagnosis"]]
    words = [fault_words(each) for each in faults] + [_VERDICTS.get(totals["verdict"], "")]
    return [f"{each[0].upper()}{each[1:]}." for each in words if each]


def check_answer(diagnosis: Callable[[], Diagnosis]) -> Callable[[DeltaTotals, Unit], str]:
    """Return what says in a few words what a run comes to."""

    def answer(sums: DeltaTotals, unit: Unit) -> str:
        found = diagnosis()
        if found.mean_abs is None:
            return "nothing was compared"
        named = ", ".join(each.name for each in found.faults)
        mean = unit.figure(found.mean_abs, "per token")
        words = f"{found.verdict}: {named}" if named else found.verdict
        return f"mean |Δ| {mean}, {sums.n_compared:,} tokens compared, {words}"

    return answer


class CheckTableWriter(TerminalWriter[RecordedScore, DeltaTotals]):
    """Writes checks to a terminal."""

    _most_whole, _in_unit = 3, "Δ in"

    def __init__(
        self,
        console: Console,
        options: TableOptions,
        checking: Checking,
        against: str | None,
    ) -> None:
        """`checking` gives the figures of all rows when all are there; `against` is the file of the
        other recording."""
        super().__init__(console, options)
        self._documents, self._diagnosis = checking.documents, checking.diagnosis
        self._against = against
        self._drawing: Drawing | None = None
        if options.heat is not None:
            self._drawing = Drawing(console, options.heat, self._unit, DIFFERENCES)

    def begin(self, run: RunInfo) -> None:
        """Print the legend of colours."""
        super().begin(run)
        if self._drawing is not None and not self._options.summary:
            legend = self._drawing.legend("Δ, scored less recorded,", "not compared")
            self._drawing.show([*legend, Text()])

    def _show(self, found: RecordedScore, sums: DeltaTotals) -> None:
        if self._drawing is None:
            self._console.print(check_table(found, self._options))
        else:
            self._show_heat(self._drawing, found, sums)
        self._console.print()

    def _show_heat(self, drawing: Drawing, found: RecordedScore, sums: DeltaTotals) -> None:
        """Print the text of a row, coloured by the Δ of each token, and how many are of each
        step."""
        pairs = zip(found.deltas.tolist(), found.compared.tolist(), strict=True)
        values = [delta if known else None for delta, known in pairs]
        texts = self._options.token_texts(found.score.sequence)
        if self._against is not None:  # ids, which would run together
            texts = [f"{each} " for each in texts]
        # Of two tokens that share a character the greater difference is shown.
        text = TokenText.of(texts, [each.encode() for each in texts], values, abs)
        mean = self._unit.figure(sequence_deltas(found).mean_abs)
        title = f"{escape(found.sample.id)}  ({sums.n_compared:,} compared, mean |Δ| {mean})"
        boundary = found.n_prompt or None
        drawing.show(drawing.prose(title, "bold"))
        drawing.show(drawing.text(text, self._options.all_tokens, boundary))
        sizes = [None if each is None else abs(each) for each in values]
        figures = (drawing.by_position(sizes, "|Δ|"), drawing.histogram(drawing.counts(values)))
        drawing.show([Text(), *(line for part in figures for line in part)])

    def _name(self, found: RecordedScore) -> str:
        return escape(found.sample.id)

    def _figures(self, found: RecordedScore, sums: DeltaTotals) -> list[LineFigure]:
        figures, unit = sequence_deltas(found), self._unit
        worst = "-" if figures.max_abs_at is None else str(figures.max_abs_at)
        return [
            LineFigure("compared", 10, f"{sums.n_compared:,}", 3),
            LineFigure("mean Δ", 12, fmt.signed(unit.of(figures.mean)), 2),
            LineFigure("mean |Δ|", 11, unit.text(figures.mean_abs)),
            LineFigure("max |Δ|", 11, unit.text(figures.max_abs), 1),
            LineFigure("at", 6, worst, 4),
        ]

    def _style(self, found: RecordedScore, sums: DeltaTotals) -> str:
        return fmt.kl_style(sequence_deltas(found).mean_abs)

    def _totals(self, sums: DeltaTotals, rejected: Rejections, n_empty_lines: int) -> Rows:
        beside = fmt.rejected_text(rejected) if rejected else ""
        yield "sequences", f"{sums.n_sequences:,}", beside
        if n_empty_lines:
            yield "empty lines", f"{n_empty_lines:,}", ""
        of = f"of {sums.n_recorded:,} recorded, {sums.n_sampled:,} sampled"
        yield "compared tokens", f"{sums.n_compared:,}", of
        if sums.n_compared:
            yield from self._estimates(sums)
        if sums.flags:
            yield "flags", "", fmt.counts_text(sums.flags)
        yield from self._named()
        if self._against is not None:
            yield "scored by", "", f"another recording, {self._against}"
        else:
            yield from ((name, "", value) for name, value in run_rows(self._run))

    def _estimates(self, sums: DeltaTotals) -> Iterator[tuple[str, str, str]]:
        unit, found, worst = self._unit, self._documents.estimates(), self._documents.max_abs
        for name, label, note in _FIGURES + (_KLS if sums.n_sampled else ()):
            each = found[name]
            text = fmt.signed if name in _SIGNED else fmt.number
            of_unit = unit if name != "k2" else Unit()
            figure = text(of_unit.of(each.value), fmt.digits_of(each, of_unit))
            yield label, figure, f"{of_unit.interval(each)} {note}".strip()
        if worst is not None:
            yield "max |Δ|", unit.text(worst[0]), f"at token {worst[2]} of {worst[1]}"
        share = found["share_beyond"]
        beyond = f"of the tokens beyond {self._documents.threshold:g} nats"
        yield "share", fmt.value_of(share), f"{fmt.interval(share)} {beyond}".strip()
        if sums.n_sampled:
            yield from self._weights(self._documents.weights())
        means = (found["mean_abs_delta"], found["mean_delta"])
        with_interval = next((each for each in means if each.low is not None), means[0])
        yield "intervals", "-" if with_interval.low is None else "95%", with_interval.method

    def _weights(self, found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
        sizes, quantiles = found["effective_sample_size"], found["weight_quantiles"]
        for name in ("tokens", "sequences"):
            own = quantiles.get(name, {})
            yield "effective size", fmt.number(sizes[name]), f"of {name}, as a share of them"
            ends = ", ".join(f"{float(q):.0%} {fmt.number(value)}" for q, value in own.items())
            yield f"w of {name}", fmt.number(own.get("0.5")), f"median; {ends}"

    def _named(self) -> Iterator[tuple[str, str, str]]:
        found = self._diagnosis()
        for n, fault in enumerate(found.faults):
            yield "" if n else "diagnosis", "", fault_words(fault)
        if words := _VERDICTS[found.verdict]:
            if found.verdict == "unknown" and self._against is not None:
                words += " (temperature, truncation and logits are told with a model only)"
            yield "" if found.faults else "diagnosis", "", words
        left = found.mean_abs_left
        if found.faults and left is not None:
            of = count_of(found.n_tokens, "token")
            yield "left", self._unit.text(left), f"mean |Δ| without it, of {of}"


def check_table(found: RecordedScore, options: TableOptions) -> FiguresTable:
    """Return position, token, both log-probabilities and Δ of each token."""
    title = f"{escape(found.sample.id)}  (in {options.unit})"
    columns = [Column("pos"), Column("token", least=8), Column("scored", spare=1)]
    columns += [Column("recorded"), Column("Δ"), Column("sampled", spare=2)]
    table = FiguresTable(title, columns)
    rows, n = _rows(found, options), found.score.sequence.n_tokens
    return with_rows(table, rows, n, options, "tokens")


def _rows(found: RecordedScore, options: TableOptions) -> Iterator[list[Text]]:
    unit, scored, sampled = options.unit, found.score.scored, found.sampled
    for t, text in enumerate(options.token_texts(found.score.sequence)):
        delta = float(found.deltas[t]) if found.compared[t] else None
        style = "dim" if delta is None else fmt.kl_style(abs(delta))
        own = unit.text(float(found.scored_log_probs[t])) if scored[t] else "-"
        theirs = unit.text(float(found.log_probs[t])) if found.recorded[t] else "-"
        yield [
            Text(str(t), style="dim"),
            Text(fmt.visible(text), style=style),
            Text(own),
            Text(theirs),
            Text(fmt.signed(unit.of(delta)), style=style),
            Text("" if sampled is None or not sampled[t] else "yes", style="dim"),
        ]
