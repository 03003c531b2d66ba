"""The totals panel: what was counted, what it sums to, and what the run did."""

from __future__ import annotations

from rich.panel import Panel
from rich.table import Table

from seqloss_cli.escaping import escape
from seqloss_cli.metrics import Totals, corpus_flags
from seqloss_cli.records import RunInfo
from seqloss_cli.rendering.options import TableOptions
from seqloss_cli.rendering.theme import flags_text, number


def totals_panel(
    totals: Totals, n_rejected: int, n_empty_lines: int, run: RunInfo, options: TableOptions
) -> Panel:
    """What was counted, what it sums to, and what the run did."""
    unit = options.unit
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    rows: list[tuple[str, str]] = []
    if totals.n_sequences != 1 or n_rejected:
        rows.append(("sequences", f"{totals.n_sequences}, rejected {n_rejected}"))
    if n_empty_lines:
        rows.append(("empty lines", str(n_empty_lines)))
    rows += [
        ("tokens", f"{totals.n_tokens}, scored {totals.n_scored}"),
        ("total loss", _figure(options.in_unit(totals.total_loss), unit)),
        ("mean loss", _figure(options.in_unit(totals.mean_loss), f"{unit} per token")),
        ("perplexity", number(totals.perplexity)),
        *_text_rates(totals),
    ]
    if totals.n_sequences > 1:
        rows += [
            (
                "mean sequence loss",
                _figure(options.in_unit(totals.mean_sequence_loss), f"{unit} per sequence"),
            ),
            (
                "mean of mean losses",
                _figure(options.in_unit(totals.mean_of_mean_losses), f"{unit} per token"),
            ),
        ]
    if flags := corpus_flags(totals):
        rows.append(("flags", flags_text(flags)))
    rows += _policies(run)
    for name, value in rows:
        grid.add_row(name, escape(value))
    return Panel(grid, title="totals", title_align="left", expand=False)


def _text_rates(totals: Totals) -> list[tuple[str, str]]:
    if totals.n_without_text:
        return [("rates of text", f"- ({totals.n_without_text} sequences are ids without a text)")]
    words = _figure(totals.word_perplexity, f"over {totals.n_words} words")
    if totals.n_unscored_text_tokens:
        words = f"- ({totals.n_unscored_text_tokens} tokens of the text are unscored)"
    return [
        ("bits per byte", _figure(totals.bits_per_byte, f"over {totals.n_scored_bytes} bytes")),
        ("bits per char", _figure(totals.bits_per_char, f"over {totals.n_scored_chars} chars")),
        ("word perplexity", words),
    ]


def _figure(value: float | None, what: str) -> str:
    return "-" if value is None else f"{number(value)} {what}"


def _policies(run: RunInfo) -> list[tuple[str, str]]:
    revision = f" at {run.revision[:12]}" if run.revision else ""
    bos = f"{run.bos} ({run.bos_token})" if run.bos_token else f"{run.bos} (model has none)"
    return [
        ("model", f"{run.model}{revision}, {run.dtype} on {run.device}, {run.path}"),
        ("window", f"context {run.context} ({run.context_source}), stride {run.stride}"),
        ("policies", f"BOS {bos}, EOS {'scored' if run.eos else 'no'}, special tokens "
                     f"{run.special_tokens}"),
    ]  # fmt: skip
