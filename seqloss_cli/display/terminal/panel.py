"""The totals panel: what was counted, what it sums to, and what the run did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.panel import Panel
from rich.table import Table

from seqloss_cli.core.escaping import escape
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.display.terminal.options import TableOptions
from seqloss_cli.display.terminal.theme import flags_text, many, number
from seqloss_cli.metrics.chain_rule import boundary_difference, pointwise_mutual_information
from seqloss_cli.metrics.totals import Totals, corpus_flags


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
        *_pairs(totals),
        ("total loss", _figure(options.in_unit(totals.total_loss), unit)),
        *_pmi(totals, options),
        *_comparison(totals, options),
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
    rows += policies(run)
    for name, value in rows:
        grid.add_row(name, escape(value))
    return Panel(grid, title="totals", title_align="left", expand=False)


def _pairs(totals: Totals) -> list[tuple[str, str]]:
    """What pairs have beside: tokens on each side, and how texts meet."""
    if not totals.n_pairs:
        return []
    rows = [
        ("prompts", many(totals.n_prompt_tokens, "token")),
        ("responses", many(totals.n_response_tokens, "token")),
    ]
    if totals.boundaries:
        counts = (f"{name} {count}" for name, count in totals.boundaries.items())
        rows.append(("boundaries", ", ".join(counts)))
    return rows


def _pmi(totals: Totals, options: TableOptions) -> list[tuple[str, str]]:
    if totals.response_only is None:
        return []
    pmi = options.in_unit(pointwise_mutual_information(totals))
    return [("pmi", _figure(pmi, f"{options.unit} in all"))]


def _comparison(totals: Totals, options: TableOptions) -> list[tuple[str, str]]:
    """The loss with prompts and responses tokenized apart, where both ways were asked for."""
    if (apart := totals.separate_tokenization) is None:
        return []
    difference = _figure(options.in_unit(boundary_difference(totals)), options.unit)
    loss = _figure(options.in_unit(apart.total_loss), f"{options.unit} over {apart.n_scored}")
    return [("loss, apart", f"{loss} tokens"), ("apart - joint", difference)]


def _text_rates(totals: Totals) -> list[tuple[str, str]]:
    if totals.n_without_text:
        return [("rates of text", f"- ({totals.n_without_text} sequences are ids without a text)")]
    words = _figure(totals.word_perplexity, f"over {many(totals.n_words, 'word')}")
    if totals.n_unscored_text_tokens:
        words = f"- ({totals.n_unscored_text_tokens} tokens of the text are unscored)"
    return [
        (
            "bits per byte",
            _figure(totals.bits_per_byte, f"over {many(totals.n_scored_bytes, 'byte')}"),
        ),
        (
            "bits per char",
            _figure(totals.bits_per_char, f"over {many(totals.n_scored_chars, 'char')}"),
        ),
        ("word perplexity", words),
    ]


def _figure(value: float | None, what: str) -> str:
    return "-" if value is None else f"{number(value)} {what}"


def policies(run: RunInfo) -> list[tuple[str, str]]:
    """What the run did, a name and a line each."""
    bos = f"{run.bos} ({run.bos_token})" if run.bos_token else f"{run.bos} (model has none)"
    stride = "" if run.stride is None else f", stride {run.stride}"
    pairs = [] if run.pairs is None else [("pairs", _pair_policies(run, run.pairs))]
    return [
        ("model", f"{run.model}{run.made_of}, {run.dtype} on {_how(run)}"),
        ("window", f"context {run.context} ({run.context_source}){stride}"),
        *pairs,
        ("policies", f"BOS {bos}, EOS {'scored' if run.eos else 'no'}, special tokens "
                     f"{run.special_tokens}"),
    ]  # fmt: skip


def _how(run: RunInfo) -> str:
    n_others = (run.devices or 1) - 1
    devices = f" and {n_others} more" if n_others else ""
    return f"{run.device}{devices}, {run.path}" + (", compiled" if run.compiled else "")


def _pair_policies(run: RunInfo, pairs: Mapping[str, Any]) -> str:
    said = [f"boundary {run.boundary}", f"too long: {pairs['truncate']}"]
    said += ["prompts not scored"] * (not pairs["marginal"])
    said += ["common prompts computed once"] * run.share_prefix
    return ", ".join(said)
