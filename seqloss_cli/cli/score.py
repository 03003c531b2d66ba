"""`seqloss score`: the losses of whole texts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli.failures import exit_codes
from seqloss_cli.config import DEFAULT_BATCH_TOKENS, DEFAULT_MAX_BYTES
from seqloss_cli.errors import UsageError
from seqloss_cli.paths import partial_path

if TYPE_CHECKING:
    from seqloss_cli.reading import ReadOptions, ReadStats
    from seqloss_cli.records import Rejected, Sample

EXAMPLES = (
    "seqloss score README.md",
    'seqloss score --text "The cat sat on the mat." --top-k 3 --ranks',
    "cat corpus.jsonl | seqloss score --jsonl-input --json --no-tokens | jq .totals",
)


def score(
    ctx: typer.Context,
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[FILES…|-]", help="Texts or JSONL; .gz, .zst.")
    ] = None,
    text: Annotated[
        str | None, o.option(o.INPUT, "--text", "Score this text.", show_default=False)
    ] = None,
    lines: Annotated[bool, o.flag(o.INPUT, "--lines", "Each non-empty line is a text.")] = False,
    jsonl_input: Annotated[
        bool, o.flag(o.INPUT, "--jsonl-input", "Inputs are JSONL, whatever they are called.")
    ] = False,
    text_field: Annotated[
        str, o.option(o.INPUT, "--text-field", "Field of a JSONL row that holds the text.")
    ] = "text",
    keep_meta: Annotated[
        bool, o.flag(o.INPUT, "--keep-meta", "Carry a row's other fields through as meta.")
    ] = False,
    limit: Annotated[
        int | None, o.option(o.INPUT, "--limit", "Take the first N inputs.", min=1)
    ] = None,
    max_bytes: Annotated[
        int, o.option(o.INPUT, "--max-bytes", "Longest text or line that is taken.", min=1)
    ] = DEFAULT_MAX_BYTES,
    model: o.Model = None,
    revision: o.Revision = None,
    tokenizer: o.Tokenizer = None,
    dtype: o.DtypeOption = o.Dtype.auto,
    device: o.Device = "auto",
    threads: o.Threads = None,
    allow_pickle: o.AllowPickle = False,
    trust_remote_code: o.TrustRemoteCode = False,
    offline: o.Offline = False,
    bos: o.BosOption = o.Bos.auto,
    bos_token: o.BosToken = None,
    eos: o.Eos = False,
    special_tokens: o.SpecialTokensOption = o.SpecialTokens.parse,
    context: o.ContextOption = None,
    stride: o.Stride = None,
    batch_tokens: o.BatchTokens = DEFAULT_BATCH_TOKENS,
    ranks: o.Ranks = False,
    entropy: o.Entropy = False,
    top_k: o.TopK = 0,
    words: o.Words = False,
    unit: o.UnitOption = o.Unit.nats,
    all_tokens: o.AllTokens = False,
    summary: o.Summary = False,
    json: o.Json = False,
    jsonl: o.Jsonl = False,
    format: o.FormatOption = None,
    output: o.Output = None,
    force: o.Force = False,
    no_text: o.NoText = False,
    no_tokens: o.NoTokens = False,
    context_lengths: o.ContextLengths = False,
    config: o.Config = None,
    strict: o.Strict = False,
    debug: o.Debug = False,
) -> None:
    """Score texts: the loss of every token, and totals.

    Reads files, stdin (-) or --text. A plain file is one text; .jsonl and .ndjson are one row a
    line. Long texts are scored in windows: nothing is cut, every token is scored once.
    """
    with exit_codes(debug, partial_path(output) if output else None):
        from seqloss_cli.cli.choices import choose_output, load_scorer
        from seqloss_cli.cli.output import run_to_end
        from seqloss_cli.reading import ReadOptions, ReadStats
        from seqloss_cli.records import Wants

        choice = choose_output(ctx, output)
        names = _input_names(files, text)
        if text is not None and (lines or jsonl_input):
            raise UsageError(
                "--text is one text; --lines and --jsonl-input are for FILES and stdin"
            )
        if lines and jsonl_input:
            raise UsageError("choose one of --lines and --jsonl-input")
        scorer = load_scorer(ctx)
        stats = ReadStats()
        reading = ReadOptions(lines, jsonl_input, text_field, keep_meta, limit, max_bytes)
        items = _items(names, text, reading, stats)
        run_to_end(scorer, items, stats, names, Wants(ranks, entropy, top_k), choice, "score")


def _input_names(files: list[str] | None, text: str | None) -> list[str]:
    if text is not None:
        if files:
            raise UsageError("--text and FILES exclude each other")
        return []
    if files:
        if files.count("-") > 1:
            raise UsageError("'-' (stdin) can be read once only")
        return files
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("nothing to score: name FILES, pipe a text in, or give --text")
    return ["-"]


def _items(
    names: list[str], text: str | None, reading: ReadOptions, stats: ReadStats
) -> Iterator[Sample | Rejected] | Iterable[Sample | Rejected]:
    from seqloss_cli.reading import read_inputs, text_sample

    if text is not None:
        return [text_sample(text, max_bytes=reading.max_bytes)]
    return read_inputs(names, reading, stats)
