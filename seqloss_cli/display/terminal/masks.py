"""What a training loss falls on, for a terminal: the text itself, turns, and differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from seqloss_cli.core.escaping import escape
from seqloss_cli.core.records import Rejected
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.display.terminal.heat.drawing import Drawing
from seqloss_cli.display.terminal.heat.palette import COUNTS, LOSSES
from seqloss_cli.display.terminal.heat.writer import show_heat, show_text
from seqloss_cli.display.terminal.options import TableOptions
from seqloss_cli.display.terminal.theme import figures_table, flags_text, number
from seqloss_cli.metrics.masks import Mask, MaskTotals
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.tokenization.labels import Finding

_COUNTED, _MASKED = "bold reverse", "dim"
_OPEN, _CLOSE = "⟦", "⟧"
"""Around what counts, where there is no colour to show it."""
_HEAD, _TAIL = 400, 200
_MOST_TEXTS = 10


class MaskTableWriter:
    """A `Writer` of masks for a terminal."""

    def __init__(self, console: Console, options: TableOptions, trainer: str | None) -> None:
        """`trainer` names whose labels are compared."""
        self._console, self._options, self._trainer = console, options, trainer
        self._marks = console.color_system is None or console.no_color
        self._n_shown = 0
        self._drawing: Drawing | None = None

    def begin(self, run: RunInfo) -> None:
        self._run = run
        has_losses, options = run.model is not None, self._options
        if options.heat is not None:
            scale = LOSSES if has_losses else COUNTS
            self._drawing = Drawing(self._console, options.heat, options.bits, scale)
        if not options.summary:
            self._legend(self._drawing, has_losses)

    def _legend(self, drawing: Drawing | None, has_losses: bool) -> None:
        if drawing is None:
            shown = f"{_OPEN}in brackets{_CLOSE}" if self._marks else "highlighted"
            self._console.print(Text(f"What counts is {shown}; what is masked is not.\n"))
        elif has_losses:
            drawing.show([*drawing.legend(dim="masked, or not scored"), Text()])
        else:
            drawing.show([*drawing.legend_of_counts(), Text()])

    def sequence(self, mask: Mask, sums: MaskTotals) -> None:
        if self._options.summary:
            return
        self._n_shown += 1
        if self._n_shown > _MOST_TEXTS and not self._options.all_tokens:
            self._line(mask, sums)
            return
        identity = escape(mask.sequence.sample.id)
        title = f"{identity}  ({sums.n_counted} of {sums.n_tokens} tokens count)"
        self._show_text(mask, title)
        if mask.sequence.prompt_boundary is not None and mask.sequence.prompt_boundary.turns:
            self._console.print()
            self._console.print(self._turns(mask))
        for line in self._remarks(mask, sums):
            self._console.print(line)
        self._console.print()

    def reject(self, rejected: Rejected) -> None:
        """Rejected inputs are named on stderr as they come, and counted in the panel."""

    def end(self, sums: MaskTotals, n_rejected: int, n_empty_lines: int) -> None:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in self._totals(sums, n_rejected, n_empty_lines):
            grid.add_row(name, escape(value))
        self._console.print(Panel(grid, title="totals", title_align="left", expand=False))

    # -- one sequence -----------------------------------------------------------------------

    def _show_text(self, mask: Mask, title: str) -> None:
        if self._drawing is None:
            self._console.print(Text(title, style="bold"))
            self._console.print(self._text(mask))
            return
        self._drawing.show(self._drawing.title(title))
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
        shown.rstrip()
        return shown

    def _turns(self, mask: Mask) -> Table:
        table = figures_table("turns", ("turn",), ("role",), ("tokens", "count"))
        assert mask.sequence.prompt_boundary is not None
        for n, turn in enumerate(mask.sequence.prompt_boundary.turns):
            counted = int(mask.sequence.loss_mask[turn.start : turn.end].sum())
            table.add_row(str(n), escape(turn.role), str(turn.end - turn.start), str(counted))
        return table

    def _remarks(self, mask: Mask, sums: MaskTotals) -> Iterator[Text]:
        if (
            mask.sequence.prompt_boundary is not None
            and mask.sequence.prompt_boundary.boundary not in (None, "clean")
        ):
            yield Text(f"boundary: {mask.sequence.prompt_boundary.boundary}", style="yellow")
        if mask.sequence.flags:
            yield Text("flags: " + flags_text(mask.sequence.flags), style="yellow")
        if sums.responses is not None and sums.everything is not None:
            yield Text(self._losses(sums, sums.responses, sums.everything))
        if mask.checked:
            yield from _differences("check", mask.findings)
        if mask.trainer is not None:
            if mask.trainer.labels is None:
                yield Text(f"{self._trainer}: {escape(mask.trainer.note or '')}", style="yellow")
            else:
                yield from _differences(str(self._trainer), mask.trainer_findings)

    def _losses(self, sums: MaskTotals, response: Totals, everything: Totals) -> str:
        options = self._options
        means = [number(options.in_unit(t.mean_loss)) for t in (response, everything)]
        return (
            f"loss: response {means[0]} {options.unit} per token, all tokens {means[1]}; "
            f"unmasked, {_percent(sums.prompt_share)} of the tokens that carry a gradient would be "
            "prompt"
        )

    def _line(self, mask: Mask, sums: MaskTotals) -> None:
        kinds = [finding.kind for finding in (*mask.findings, *mask.trainer_findings)]
        if mask.trainer is not None and mask.trainer.labels is None:
            kinds.append("not trained")
        said = f"; {', '.join(kinds)}" if kinds else ""
        identity = escape(mask.sequence.sample.id)
        line = f"{identity}  {sums.n_counted} of {sums.n_tokens} tokens count{said}"
        self._console.print(Text(line), soft_wrap=True)

    # -- totals -----------------------------------------------------------------------------

    def _totals(
        self, sums: MaskTotals, n_rejected: int, n_empty_lines: int
    ) -> Iterator[tuple[str, str]]:
        yield "sequences", f"{sums.n_sequences}, rejected {n_rejected}"
        if n_empty_lines:
            yield "empty lines", str(n_empty_lines)
        share = sums.n_counted / sums.n_tokens if sums.n_tokens else None
        yield "tokens", f"{sums.n_tokens}, {sums.n_counted} count ({_percent(share)})"
        if sums.responses is not None and sums.everything is not None:
            yield "losses", self._losses(sums, sums.responses, sums.everything).split(": ", 1)[1]
        if sums.n_checked:
            yield "check", f"{sums.n_different} of {sums.n_checked} differ{_kinds(sums.findings)}"
        if self._trainer is not None:
            dropped = f", {sums.n_not_trained} not trained on" if sums.n_not_trained else ""
            differ = f"{sums.n_trainer_different} of {sums.n_sequences} differ{dropped}"
            yield self._trainer, differ + _kinds(sums.trainer_findings)
        run, pairs = self._run, self._run.pairs or {}
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
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f": {listed}" if listed else ""


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
