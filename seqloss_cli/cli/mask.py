"""`seqloss mask`: which tokens a training loss falls on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli import pairs as p
from seqloss_cli.cli.enums import Format
from seqloss_cli.cli.failures import REJECTED, command_errors, say
from seqloss_cli.cli.inputs import STDIN
from seqloss_cli.cli.views import VIEW_OPTIONS
from seqloss_cli.core.errors import UsageError

if TYPE_CHECKING:
    from seqloss_cli.cli.output import OutputChoice
    from seqloss_cli.cli.progress import ProgressBar
    from seqloss_cli.core.policies import PairPolicy
    from seqloss_cli.core.records import Rejected, Sample, SequenceScore, TokenSequence
    from seqloss_cli.core.run_record import RunInfo
    from seqloss_cli.inputs import LabelFile
    from seqloss_cli.metrics.masks import Mask, MaskTotals
    from seqloss_cli.results.formats import Writer
    from seqloss_cli.scoring.scorer import Scorer
    from seqloss_cli.tokenization.tokenizer import Tokenization
    from seqloss_cli.tokenization.trl import TrlTrainer

EXAMPLES = (
    'seqloss mask --prompt "The list is" --response " sorted in place."',
    "seqloss mask samples/chats.jsonl --chat-template samples/chat.jinja --like trl",
    "seqloss mask samples/pairs.jsonl --eos --check labels.jsonl",
)


class Like(StrEnum):
    trl = "trl"
    trl_assistant = "trl-assistant-only"


@o.with_options(
    p.PAIR_INPUTS,
    {
        "check": (
            Annotated[
                str | None,
                o.option(o.INPUT, "--check", "JSONL of input_ids and labels to compare with."),
            ],
            None,
        ),
        "like": (
            Annotated[
                Like | None,
                o.option(o.POLICY, "--like", "Also the labels that TRL's SFTTrainer makes."),
            ],
            None,
        ),
        "max_length": (
            Annotated[
                int,
                o.option(o.POLICY, "--max-length", "With --like: the trainer's; 0: none.", min=0),
            ],
            1024,
        ),
        "loss": (
            Annotated[bool, o.flag(o.SHOW, "--loss", "Load the model, and say what the loss is.")],
            False,
        ),
    },
    p.CHAT_OPTIONS,
    o.MODEL_OPTIONS,
    o.POLICY_OPTIONS,
    p.SEAM_OPTIONS,
    o.SPEED_OPTIONS,
    {name: o.SHOW_OPTIONS[name] for name in ("unit", "all_tokens", "summary")},
    VIEW_OPTIONS,
    {n: value for n, value in o.OUTPUT_OPTIONS.items() if n not in ("level", "context_lengths")},
    o.OTHER_OPTIONS,
)
def mask(ctx: typer.Context) -> None:
    """Show which tokens a training loss falls on, and where other labels differ.

    Needs a tokenizer only; --loss loads the model. Labels are unshifted, -100 where masked.
    --check compares with labels that a training pipeline wrote; a difference exits with 3.
    """
    with command_errors(ctx):
        from seqloss_cli.cli.choices import choose_output
        from seqloss_cli.cli.output import (
            Work,
            say_what_did_not_fit,
            say_what_was_written,
            write_all,
        )
        from seqloss_cli.cli.progress import ProgressBar
        from seqloss_cli.inputs import LabelFile, ReadStats
        from seqloss_cli.metrics.masks import MaskTotals, mask_totals, masks
        from seqloss_cli.results.sinks import open_sink
        from seqloss_cli.tokenization.trl import NAME as TRAINER_NAME

        values, choice = ctx.params, choose_output(ctx)
        names, stats = p.pair_names(ctx), ReadStats()
        _refuse(ctx, choice, names)
        items = p.pair_items(ctx, names, stats)
        bar = ProgressBar(names)
        pairs = p.choose_pairs(ctx)
        tokens, run, entries, scorer = _entries(ctx, pairs, items, bar)
        labels = LabelFile(values["check"], values["max_bytes"]) if values["check"] else None
        find = None if labels is None else labels.find
        found = masks(entries, tokens.vocabulary, _trainer(ctx, pairs, tokens), find)
        trainer = TRAINER_NAME if values["like"] else None
        with open_sink(choice.path, choice.force, warn=say) as sink:
            writer = _writer(sink, tokens, choice, trainer)
            work = Work(found, mask_totals, MaskTotals(), run, writer)
            written = write_all(work, stats, bar, choice)
        totals = written.totals
        say_what_was_written(written, stats, choice)
        if scorer is not None:
            say_what_did_not_fit(scorer)
        _say_what_is_left(labels, values["check"])
        if totals.n_different:
            say(f"{totals.n_different} of {totals.n_checked} rows differ from {values['check']}")
        if written.n_rejected or totals.n_different:
            raise typer.Exit(REJECTED)


def _refuse(ctx: typer.Context, choice: OutputChoice, names: list[str]) -> None:
    """Raises UsageError for what this command cannot do, before anything is loaded."""
    values = ctx.params
    if choice.format is Format.openai:
        raise UsageError("--format openai is made of losses; mask writes --json or --jsonl")
    if choice.format not in (Format.table, Format.json, Format.jsonl):
        raise UsageError(f"mask does not write {choice.format.value}, but --json and --jsonl")
    if values["boundary"] == "compare":
        raise UsageError("mask shows one boundary policy at a time: joint or separate")
    if values["like"] and values["special_tokens"] != "parse":
        raise UsageError(
            "--like trl parses control tokens, as TRL does; leave --special-tokens out"
        )
    given = ctx.get_parameter_source("max_length")
    if not values["like"] and given is not None and given.name == "COMMANDLINE":
        raise UsageError("--max-length is the trainer's; it goes with --like")
    for flag in ("adapter", "quantize"):
        if values[flag] and not values["loss"]:
            raise UsageError(f"--{flag} is for the model's numbers: mask loads none without --loss")
    check = values["check"]
    if check == STDIN and STDIN in (*names, values["prompt"], values["response"]):
        raise UsageError("'-' (stdin) can be read once only")
    if check not in (None, STDIN) and not Path(check).exists():
        raise UsageError(f"--check {check}: no such file")


def _say_what_is_left(labels: LabelFile | None, name: str) -> None:
    if labels is None:
        return
    if unused := labels.count_unused():
        say(f"warning: {unused} rows of {name} belong to no input")
    for message in labels.unmatched:
        say(f"warning: {message}")


def _entries(
    ctx: typer.Context, pairs: PairPolicy, items: Iterable[Sample | Rejected], bar: ProgressBar
) -> tuple[
    Tokenization, RunInfo, Iterator[TokenSequence | SequenceScore | Rejected], Scorer | None
]:
    """The tokenization, what the run's record says, and sequences: with --loss their scores, and
    who makes them."""
    from seqloss_cli.cli.choices import (
        choose_model,
        choose_tokenizer,
        choose_tokens,
        load_scorer,
        say_warnings,
    )
    from seqloss_cli.scoring.scorer import PairTokens

    if ctx.params["loss"]:
        scorer = load_scorer(ctx, pairs)
        return (
            scorer.tokenization,
            scorer.run_info("mask"),
            scorer.score(items, None, bar.on_progress),
            scorer,
        )
    choice = choose_tokenizer(ctx) or choose_model(ctx)
    tokens = PairTokens(choice, choose_tokens(ctx), pairs, ctx.params["context"])
    say_warnings(tokens.warnings)
    return tokens.tokenization, tokens.run_info("mask"), tokens.sequences(items), None


def _trainer(ctx: typer.Context, pairs: PairPolicy, tokens: Tokenization) -> TrlTrainer | None:
    from seqloss_cli.tokenization.trl import TrlTrainer

    values = ctx.params
    if values["like"] is None:
        return None
    return TrlTrainer(
        tokens.vocabulary.tokenizer,
        pairs.chat_template,
        assistant_only=values["like"] == Like.trl_assistant,
        max_length=values["max_length"] or None,
    )


def _writer(
    sink: BinaryIO, tokens: Tokenization, choice: OutputChoice, trainer: str | None
) -> Writer[Mask, MaskTotals]:
    from seqloss_cli.cli.writers import JSON_WRITERS, console, row_options, table_options
    from seqloss_cli.display.terminal import MaskTableWriter
    from seqloss_cli.results.schema.masks import mask_rows

    if choice.format is Format.table:
        return MaskTableWriter(console(choice.path, sink), table_options(tokens, choice), trainer)
    writer: Writer[Mask, MaskTotals] = JSON_WRITERS[choice.format](
        sink, mask_rows(row_options(tokens, choice))
    )
    return writer
