"""Results as they come: whole for a few sequences, a line each for many, then the totals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from rich.cells import cell_len, split_graphemes
from rich.console import Console, RenderableType
from rich.text import Text

from seqloss_cli.core.escaping import escape
from seqloss_cli.core.records import Rejected, Rejections, SequenceScore
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.display.scales import count_of
from seqloss_cli.display.terminal import formatting as fmt
from seqloss_cli.display.terminal import tables
from seqloss_cli.display.terminal.formatting import Column, TableOptions, Unit
from seqloss_cli.metrics.chain_rule import (
    boundary_difference,
    chain_rule,
    pointwise_mutual_information,
)
from seqloss_cli.metrics.totals import Totals, corpus_flags, overflow_flags, score_flags
from seqloss_cli.metrics.words import region_losses, word_losses

Result = TypeVar("Result")
Sums = TypeVar("Sums")
Rows = Iterable[Sequence[str | Text]]
"""Names, figures where there are three parts, and notes of totals."""
_LEAST_ID_WIDTH, _MOST_ID_WIDTH = 12, 60


class LineFigure(NamedTuple):
    """A figure of a result that is shown in one line."""

    name: str
    cells: int
    """Width of its column, with the blanks before it."""
    text: str
    spare: int = 0
    """Order in which figures are left out, that of the highest number first; 0 stays."""


class TerminalWriter(Generic[Result, Sums]):
    """Shows the first results whole and the others as a line each; its calls are those of the
    writers of JSON. Subclasses say what a result, a line and the totals look like."""

    _most_whole = 10
    _head_of_rest = ""
    """Header of what stands behind the figures of a line."""
    _in_unit = "losses in"
    """Words before the unit above the lines; empty where they have none."""

    def __init__(self, console: Console, options: TableOptions) -> None:
        self._console, self._options, self._unit = console, options, options.unit
        self._n_shown = self._n_results = 0

    def begin(self, run: RunInfo) -> None:
        """Take the run's record, which the totals name."""
        self._run = run

    def sequence(self, result: Result, sums: Sums) -> None:
        """Print one result."""
        self._n_results += 1
        if self._options.summary:
            return
        self._n_shown += 1
        if not self._in_lines:
            self._show(result, sums)
            return
        if self._n_shown == self._most_whole + 1:
            self._begin_lines(result, sums)
        self._show_line(result, sums)

    def reject(self, rejected: Rejected) -> None:
        """Do nothing: rejected inputs are named on stderr as they come, and counted in the end."""

    def end(self, sums: Sums, rejected: Rejections, n_empty_lines: int) -> None:
        """Print the totals, if there are any: of nothing all figures would be dashes."""
        self._before_totals()
        if not (self._n_results or self._n_shown):
            return
        title, rows = "totals", self._totals(sums, rejected, n_empty_lines)
        if rejected and self._options.strict:
            title = "totals up to the first rejected input, where --strict stopped"
        self._console.print(fmt.figures_panel(title, rows))

    @property
    def _in_lines(self) -> bool:
        return self._n_shown > self._most_whole and not self._options.all_tokens

    def _before_totals(self) -> None:
        if self._in_lines:
            self._console.print()

    def _begin_lines(self, result: Result, sums: Sums) -> None:
        """Print the unit and the header of the lines, and what they have no room for; this is the
        first result among them."""
        figures = [each._replace(text=each.name) for each in self._figures(result, sums)]
        head = f"  {self._head_of_rest}" if self._head_of_rest else ""
        in_unit = f"{self._in_unit} {self._unit}" if self._in_unit else ""
        notes = (in_unit, fmt.left_out(*_fitting(figures, self._console.width)))
        if note := "; ".join(filter(None, notes)):
            self._console.print(Text(note, style="dim italic"))
        self._print_line(_line_of("sequence", figures, self._console.width), "bold", Text(head))

    def _show_line(self, result: Result, sums: Sums) -> None:
        line = _line_of(self._name(result), self._figures(result, sums), self._console.width)
        self._print_line(line, self._style(result, sums), self._rest(result, sums))

    def _print_line(self, line: tuple[str, str], style: str, rest: Text) -> None:
        # Not wrapped by rich: one line a result, for grep, whatever the width.
        self._console.print(Text.assemble(line[0], (line[1], style), rest), soft_wrap=True)

    def _show(self, result: Result, sums: Sums) -> None:
        raise NotImplementedError

    def _name(self, result: Result) -> str:
        """The id of a result, escaped."""
        raise NotImplementedError

    def _figures(self, result: Result, sums: Sums) -> list[LineFigure]:
        """The figures of a result in one line."""
        raise NotImplementedError

    def _style(self, result: Result, sums: Sums) -> str:
        """A style for these figures."""
        return ""

    def _rest(self, result: Result, sums: Sums) -> Text:
        """Words behind them."""
        return Text()

    def _totals(self, sums: Sums, rejected: Rejections, n_empty_lines: int) -> Rows:
        raise NotImplementedError


class ScoreWriter(TerminalWriter[SequenceScore, Totals]):
    """Shows losses of texts and pairs."""

    def _show(self, score: SequenceScore, totals: Totals) -> None:
        options, below = self._options, list[RenderableType]()
        self._show_tokens(score, totals)
        flags = score_flags(score) | overflow_flags(totals)
        if (boundary := score.sequence.prompt_boundary) is not None:
            if boundary.turns:
                below.append(tables.turn_table(score, options))
            below.append(tables.chain_rule_table(score, totals, options))
        if options.words and (words := word_losses(score, options.word_boundary_ids)):
            below.append(tables.word_table(words, options))
            flags |= words.flags
        if (regions := region_losses(score, options.word_boundary_ids)) is not None:
            below.append(tables.region_table(regions, options))
            flags |= regions.flags
        for table in below:
            self._console.print()
            self._console.print(table)
        if flags:
            self._console.print(Text("flags: " + fmt.counts_text(flags), style="yellow"))
        self._console.print()

    def _show_tokens(self, score: SequenceScore, totals: Totals) -> None:
        self._console.print(tables.token_table(score, self._options))

    def _name(self, score: SequenceScore) -> str:
        return escape(score.sequence.sample.id)

    def _figures(self, score: SequenceScore, totals: Totals) -> list[LineFigure]:
        if score.sequence.prompt_boundary is not None:
            return _pair_figures(score, totals, self._options)
        return [
            LineFigure("tokens", 8, f"{totals.n_tokens:,}", 4),
            LineFigure("scored", 8, f"{totals.n_scored:,}", 3),
            LineFigure("total loss", 12, self._unit.text(totals.total_loss, 3), 1),
            LineFigure("mean", 9, self._unit.text(totals.mean_loss)),
            LineFigure("bits/byte", 10, fmt.number(totals.bits_per_byte), 2),
        ]

    def _style(self, score: SequenceScore, totals: Totals) -> str:
        return fmt.loss_style(totals.mean_loss)

    def _rest(self, score: SequenceScore, totals: Totals) -> Text:
        flags = score_flags(score) | overflow_flags(totals)
        boundary = score.sequence.prompt_boundary
        if boundary is not None and boundary.boundary not in ("clean", None):
            flags[f"boundary {boundary.boundary}"] = True
        return Text(f"\n  {fmt.counts_text(flags)}" if flags else "", style="yellow")

    def _totals(self, totals: Totals, rejected: Rejections, n_empty_lines: int) -> Rows:
        return totals_rows(totals, rejected, n_empty_lines, self._run, self._unit)


class TableWriter(ScoreWriter):
    """Writes scores to a terminal: tables of up to ten, or a line for each of more."""

    def __init__(self, console: Console, options: TableOptions) -> None:
        super().__init__(console, options)
        self._waiting: list[tuple[SequenceScore, Totals]] = []

    def sequence(self, score: SequenceScore, totals: Totals) -> None:
        """Print one result, or keep it until it is known whether there are more than ten."""
        if self._options.summary or self._options.all_tokens:
            super().sequence(score, totals)
            return
        # Nothing is printed before the eleventh, so that all look alike: at most ten are held.
        self._n_shown += 1
        self._waiting.append((score, totals))
        if self._n_shown == self._most_whole + 1:
            self._begin_lines(*self._waiting[0])
        if self._in_lines:
            for each in self._waiting:
                self._show_line(*each)
            self._waiting.clear()

    def _before_totals(self) -> None:
        for each in self._waiting:
            self._show(*each)
        super()._before_totals()


def _pair_figures(score: SequenceScore, totals: Totals, options: TableOptions) -> list[LineFigure]:
    """Tokens of prompt and response, log-probabilities, and what else was asked for."""
    rule, unit = chain_rule(score, totals), options.unit
    figures = [
        LineFigure("x", 8, f"{totals.n_prompt_tokens:,}", 6),
        LineFigure("y", 8, f"{totals.n_response_tokens:,}", 5),
        LineFigure("ln Pr(x)", 12, unit.text(rule.log_prob_x, 3), 4),
        LineFigure("ln Pr(y|x)", 12, unit.text(rule.log_prob_y_given_x, 3)),
        LineFigure("mean loss", 10, unit.text(totals.mean_loss), 3),
    ]
    if options.pmi:
        pmi = pointwise_mutual_information(totals)
        figures.append(LineFigure("pmi", 10, unit.text(pmi, 3), 1))
    if totals.separate_tokenization is not None:
        difference = fmt.signed(unit.of(boundary_difference(totals)), 3)
        figures.append(LineFigure("apart−joint", 12, difference, 2))
    return figures


def _fitting(figures: Sequence[LineFigure], room: int) -> tuple[list[Column], Mapping[int, int]]:
    """The columns of lines, of which the first is the id, and the widths of those that fit."""
    columns = [Column("sequence", least=_LEAST_ID_WIDTH)]
    columns += [Column(each.name, spare=each.spare) for each in figures]
    natural = (_MOST_ID_WIDTH, *(each.cells for each in figures))
    return columns, fmt.fit(columns, natural, room, gap=0)


def _line_of(name: str, figures: Sequence[LineFigure], room: int) -> tuple[str, str]:
    """An id in its column, and the figures for which there is room."""
    _, widths = _fitting(figures, room)
    # The end is kept: it tells the rows of one file apart (`rows.jsonl:7`). In cells, not
    # characters: after wide ones the columns would not stand under each other.
    if cell_len(name) > widths[0]:
        name = "…" + _last_cells(name, widths[0] - 1)
    shown = (f"{each.text:>{each.cells}}" for n, each in enumerate(figures, 1) if n in widths)
    return fmt.in_cells(Text(name), widths[0]).plain, "".join(shown)


def _last_cells(text: str, width: int) -> str:
    """The end of a text: whole graphemes, at most `width` terminal cells of them."""
    spans, cells = split_graphemes(text)
    for start, _, n in spans:
        if cells <= width:
            return text[start:]
        cells -= n
    return ""


def loss_answer(totals: Totals, unit: Unit) -> str:
    """Return what a run comes to in a few words."""
    if not totals.n_scored:
        return "nothing was scored"
    mean = unit.figure(totals.mean_loss, "per token")
    scored = f"{totals.n_scored:,} tokens scored"
    return f"mean loss {mean}, perplexity {fmt.number(totals.perplexity)}, {scored}"


def totals_rows(
    totals: Totals, rejected: Rejections, n_empty_lines: int, run: RunInfo, unit: Unit
) -> Iterator[tuple[str, str]]:
    """Yield names and values of the totals of texts or pairs, and what the run did."""
    # With one sequence "1, rejected 0" says nothing; with a rejected one it does.
    if totals.n_sequences != 1 or rejected:
        yield "sequences", f"{totals.n_sequences:,}, {fmt.rejected_text(rejected)}"
    if n_empty_lines:
        yield "empty lines", f"{n_empty_lines:,}"
    yield "tokens", f"{totals.n_tokens:,}, scored {totals.n_scored:,}"
    yield from _pair_counts(totals)
    yield "total loss", unit.figure(totals.total_loss)
    if totals.response_only is not None:
        pmi = pointwise_mutual_information(totals)
        yield "pmi", unit.figure(pmi, "in all") + fmt.more_probable(pmi)
    if (apart := totals.separate_tokenization) is not None:
        loss = unit.figure(apart.total_loss, f"over {apart.n_scored:,}")
        yield "loss, apart", f"{loss} tokens"
        difference = boundary_difference(totals)
        way = fmt.way(difference, "the same")
        yield "apart - joint", unit.figure(difference, f"(apart the loss is {way})")
    yield "mean loss", unit.figure(totals.mean_loss, "per token")
    yield "perplexity", fmt.number(totals.perplexity)
    yield from _text_rates(totals)
    if totals.n_sequences > 1:
        yield "mean sequence loss", unit.figure(totals.mean_sequence_loss, "per sequence")
        yield "mean of mean losses", unit.figure(totals.mean_of_mean_losses, "per token")
    if flags := corpus_flags(totals):
        yield "flags", fmt.counts_text(flags)
    yield from run_rows(run)


def _pair_counts(totals: Totals) -> Iterator[tuple[str, str]]:
    """Tokens on each side of pairs, and how texts meet."""
    if totals.n_pairs:
        yield "prompts", count_of(totals.n_prompt_tokens, "token")
        yield "responses", count_of(totals.n_response_tokens, "token")
        if totals.boundaries:
            yield "boundaries", fmt.counts_text(totals.boundaries)


def _text_rates(totals: Totals) -> Iterator[tuple[str, str]]:
    if n := totals.n_without_text:
        yield "rates of text", f"- (ids without a text: {count_of(n, 'sequence')})"
        return
    if n := totals.n_unspelled_sequences:
        left_out = count_of(totals.unspelled_bytes, "byte")
        yield "unspelled", f"{left_out} in {count_of(n, 'sequence')}, not in the rates below"
    totals = totals.spelled
    n_bytes, n_chars = totals.n_scored_bytes, totals.n_scored_chars
    yield "bits per byte", _figure(totals.bits_per_byte, f"over {count_of(n_bytes, 'byte')}")
    yield "bits per char", _figure(totals.bits_per_char, f"over {count_of(n_chars, 'char')}")
    words = _figure(totals.word_perplexity, f"over {count_of(totals.n_words, 'word')}")
    if n := totals.n_unscored_text_tokens:
        words = f"- (unscored: {count_of(n, 'token')} of the text)"
    yield "word perplexity", words


def _figure(value: float | None, what: str) -> str:
    return "-" if value is None else f"{fmt.number(value)} {what}"


def run_rows(run: RunInfo) -> Iterator[tuple[str, str]]:
    """Yield what the run did, a name and a line each."""
    if shard := (run.reading or {}).get("shard"):
        yield "inputs", f"a part of them: shard {shard['index']}/{shard['of']}"
    bos = f"{run.bos} ({run.bos_token})" if run.bos_token else f"{run.bos} (model has none)"
    stride = "" if run.stride is None else f", stride {run.stride}"
    yield "model", f"{run.model}{run.made_of}, {_place(run)}"
    yield "window", f"context {run.context} ({run.context_source}){stride}"
    if run.pairs is not None:
        yield "pairs", _pair_policies(run, run.pairs)
    eos = "scored" if run.eos else "no"
    yield "policies", f"BOS {bos}, EOS {eos}, special tokens {run.special_tokens}"


def _place(run: RunInfo) -> str:
    """Name what ran the model: a server, or this machine."""
    if (engine := run.engine) is not None:
        version = f" {engine['version']}" if engine["version"] else ""
        return f"{run.dtype or 'dtype unknown'} by {engine['kind']}{version} at {engine['url']}"
    return f"{run.dtype} on {_device(run)}"


def _device(run: RunInfo) -> str:
    n_others = (run.devices or 1) - 1
    devices = f" and {n_others} more" if n_others else ""
    parts = f" in {run.tensor_parallel} parts" if run.tensor_parallel else ""
    return f"{run.device}{devices}{parts}, {run.path}" + (", compiled" if run.compiled else "")


def _pair_policies(run: RunInfo, pairs: Mapping[str, Any]) -> str:
    policies = [f"boundary {run.boundary}", f"too long: {pairs['truncate']}"]
    if not pairs["marginal"]:
        policies.append("prompts not scored")
    if run.share_prefix:
        policies.append("common prompts computed once")
    return ", ".join(policies)
