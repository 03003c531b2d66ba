"""Loss masks for a terminal: the text with the tokens that count, turns, and differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.text import Text

from seqloss_cli.core.escaping import escape
from seqloss_cli.core.records import Rejections
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.display.terminal.formatting import (
    Column,
    FiguresTable,
    TableOptions,
    Unit,
    counts_text,
    rejected_text,
)
from seqloss_cli.display.terminal.heat import Drawing, show_heat, show_text
from seqloss_cli.display.terminal.palette import COUNTS, LOSSES, shows_no_colour
from seqloss_cli.display.terminal.writer import LineFigure, Rows, TerminalWriter
from seqloss_cli.metrics.masks import Mask, MaskTotals
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.tokenization.labels import Finding

_COUNTED, _MASKED = "bold reverse", "dim"
_OPEN, _CLOSE = "⟦", "⟧"
"""Around what counts, where there is no colour to show it."""
_HEAD, _TAIL = 400, 200


def mask_answer(sums: MaskTotals, unit: Unit) -> str:
    """Return what a run comes to in a few words."""
    return f"{sums.n_counted:,} of {sums.n_tokens:,} tokens count"


class MaskTableWriter(TerminalWriter[Mask, MaskTotals]):
    """Writes masks to a terminal."""

    _in_unit = ""

    def __init__(self, console: Console, options: TableOptions, trainer: str | None) -> None:
        """`trainer` names whose labels are compared."""
        super().__init__(console, options)
        self._trainer = trainer
        self._marks = shows_no_colour(console)
        self._drawing: Drawing | None = None

    def begin(self, run: RunInfo) -> None:
        """Print the legend."""
        super().begin(run)
        has_losses, options = run.model is not None, self._options
        if options.heat is not None:
            scale = LOSSES if has_losses else COUNTS
            self._drawing = Drawing(self._console, options.heat, self._unit, scale)
        if options.summary:
            return
        if self._drawing is not None:
            dim = "masked, or not scored" if has_losses else "masked"
            self._drawing.show([*self._drawing.legend(dim=dim), Text()])
        else:
            shown = f"{_OPEN}in brackets{_CLOSE}" if self._marks else "highlighted"
            self._console.print(Text(f"What counts is {shown}; what is masked is not.\n"))

    def _show(self, mask: Mask, sums: MaskTotals) -> None:
        identity, boundary = escape(mask.sequence.sample.id), mask.sequence.prompt_boundary
        self._show_text(mask, f"{identity}  ({sums.n_counted:,} of {sums.n_tokens:,} tokens count)")
        if boundary is not None and boundary.turns:
            self._console.print()
            self._console.print(self._turns(mask))
        for line in self._remarks(mask, sums):
            self._console.print(line)
        self._console.print()

    def _show_text(self, mask: Mask, title: str) -> None:
        if self._drawing is None:
            self._console.print(Text(title, style="bold"))
            self._console.print(self._text(mask))
            return
        self._drawing.show(self._drawing.prose(title, "bold"))
        if mask.score is not None:
            show_heat(self._drawing, mask.score, self._options)
        else:
            values = [1.0 if counts else None for counts in mask.sequence.loss_mask.tolist()]
            show_text(self._drawing, mask.sequence, values, self._options)

    def _text(self, mask: Mask) -> Text:
        """The tokens as written, line breaks shown and kept."""
        texts = self._options.token_texts(mask.sequence)
        counts = mask.sequence.loss_mask.tolist()
        folded = range(-1, -1)
        if not self._options.all_tokens and len(texts) > _HEAD + _TAIL:
            folded = range(_HEAD, len(texts) - _TAIL)
        shown, inside = Text(), False
        for t, (token, counted) in enumerate(zip(texts, counts, strict=True)):
            # Within a fold, too: the text goes on inside of brackets after it, or outside.
            if self._marks and counted != inside:
                shown.append(_OPEN if counted else _CLOSE)
            inside = counted
            if t == folded.start:
                shown.append(f"\n⋮ {len(folded)} tokens folded; --all-tokens shows them\n")
            if t not in folded:
                style = "" if self._marks else _COUNTED if counted else _MASKED
                shown.append(_in_lines(token), style=style)
        if self._marks and inside:
            shown.append(_CLOSE)
        # Texts end in line breaks, and `print` adds one.
        shown.rstrip()
        return shown

    def _turns(self, mask: Mask) -> FiguresTable:
        columns = (Column("turn"), Column("role", least=8), Column("tokens"), Column("count"))
        table = FiguresTable("turns", columns)
        assert mask.sequence.prompt_boundary is not None
        for n, turn in enumerate(mask.sequence.prompt_boundary.turns):
            counted = int(mask.sequence.loss_mask[turn.start : turn.end].sum())
            table.add_row(str(n), escape(turn.role), str(turn.end - turn.start), str(counted))
        return table

    def _remarks(self, mask: Mask, sums: MaskTotals) -> Iterator[Text]:
        boundary = mask.sequence.prompt_boundary
        if boundary is not None and boundary.boundary not in (None, "clean"):
            yield Text(f"boundary: {boundary.boundary}", style="yellow")
        if mask.sequence.flags:
            yield Text("flags: " + counts_text(mask.sequence.flags), style="yellow")
        if sums.responses is not None and sums.all_tokens is not None:
            yield Text(f"loss: {self._losses(sums, sums.responses, sums.all_tokens)}")
        if mask.checked:
            yield from _differences("check", mask.findings)
        if mask.trainer is not None:
            if mask.trainer.labels is None:
                yield Text(f"{self._trainer}: {escape(mask.trainer.note or '')}", style="yellow")
            else:
                yield from _differences(str(self._trainer), mask.trainer_findings)

    def _losses(self, sums: MaskTotals, response: Totals, everything: Totals) -> str:
        means = [self._unit.text(t.mean_loss) for t in (response, everything)]
        return (
            f"response {means[0]} {self._unit} per token, all tokens {means[1]}; "
            f"unmasked, {_percent(sums.prompt_share)} of the tokens that carry a gradient would be "
            "prompt"
        )

    def _name(self, mask: Mask) -> str:
        return escape(mask.sequence.sample.id)

    def _figures(self, mask: Mask, sums: MaskTotals) -> list[LineFigure]:
        share = sums.n_counted / sums.n_tokens if sums.n_tokens else None
        return [
            LineFigure("tokens", 8, f"{sums.n_tokens:,}", 2),
            LineFigure("count", 8, f"{sums.n_counted:,}"),
            LineFigure("share", 10, _percent(share), 1),
        ]

    def _rest(self, mask: Mask, sums: MaskTotals) -> Text:
        kinds = [finding.kind for finding in (*mask.findings, *mask.trainer_findings)]
        if mask.trainer is not None and mask.trainer.labels is None:
            kinds.append("not trained")
        return Text(f"  {', '.join(kinds)}" if kinds else "", style="yellow")

    def _totals(self, sums: MaskTotals, rejected: Rejections, n_empty_lines: int) -> Rows:
        yield "sequences", f"{sums.n_sequences:,}, {rejected_text(rejected)}"
        if n_empty_lines:
            yield "empty lines", f"{n_empty_lines:,}"
        share = sums.n_counted / sums.n_tokens if sums.n_tokens else None
        yield "tokens", f"{sums.n_tokens:,}, {sums.n_counted:,} count ({_percent(share)})"
        if sums.responses is not None and sums.all_tokens is not None:
            yield "losses", self._losses(sums, sums.responses, sums.all_tokens)
        if sums.n_checked:
            yield (
                "check",
                f"{sums.n_different:,} of {sums.n_checked:,} differ{_kinds(sums.findings)}",
            )
        if self._trainer is not None:
            dropped = f", {sums.n_not_trained:,} not trained on" if sums.n_not_trained else ""
            differ = f"{sums.n_trainer_different:,} of {sums.n_sequences:,} differ{dropped}"
            yield self._trainer, differ + _kinds(sums.trainer_findings)
        run, pairs = self._run, self._run.pairs or {}
        if shard := (run.reading or {}).get("shard"):
            yield "inputs", f"a part of them: shard {shard['index']}/{shard['of']}"
        yield "tokenizer", run.tokenizer
        if run.model is not None:
            yield "model", f"{run.model}{run.made_of}, {run.dtype} on {run.device}, {run.path}"
        template = pairs.get("chat_template_sha256")
        chats = f", chats: {pairs.get('scored_turns')}, template {str(template)[:12]}"
        yield "policies", f"boundary {run.boundary}, BOS {run.bos}{chats if template else ''}"


def _in_lines(token: str) -> str:
    """A token with control characters escaped, and a real line break after each shown one."""
    return "↵\n".join(escape(part) for part in token.split("\n"))


def _differences(who: str, findings: tuple[Finding, ...]) -> Iterator[Text]:
    if not findings:
        yield Text(f"{who}: the same labels")
    for finding in findings:
        yield Text(escape(f"{who}: {finding.message} ({finding.kind})"), style="yellow")


def _kinds(counts: Mapping[str, int]) -> str:
    return f": {counts_text(counts)}" if counts else ""


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
