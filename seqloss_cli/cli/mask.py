"""`seqloss mask`: which tokens a training loss falls on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from seqloss_cli.cli import inputs as i
from seqloss_cli.cli import options as o
from seqloss_cli.cli.failures import ALONE, REJECTED, say
from seqloss_cli.core import policies as p
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.options import INPUT, POLICIES, SHOW, command_record, option

if TYPE_CHECKING:
    from seqloss_cli.scoring.scorer import PairTokens, Scorer
    from seqloss_cli.tokenization.trl import TrlTrainer

Like = Literal["trl", "trl-assistant-only"]


@command_record
class MaskSettings:
    """The labels that the mask is compared with."""

    PANEL = POLICIES

    check: str | None = option(
        None, "JSONL of input_ids and labels to compare with.", panel=INPUT, metavar="FILE"
    )
    like: Like | None = option(None, "Also the labels that TRL's SFTTrainer makes.")
    max_length: int = option(1024, "With --like: the trainer's; 0: none.", min=0)
    loss: bool = option(False, "Load the model, and say what the loss is.", panel=SHOW)


@o.with_options(
    o.only(i.PairArguments, "files", "prompt", "response", "prompt_field", "response_field"),
    o.only(p.PairPolicy, "separator"),
    o.only(p.Reading, "keep_meta", "limit", "max_bytes", *p.ROWS_ELSEWHERE),
    MaskSettings,
    o.only(i.PairArguments, "chat", "chat_template"),
    o.only(p.PairPolicy, "turns", "end_of_turn", "template_date"),
    p.ModelChoice,
    p.TokenPolicy,
    o.only(p.WindowChoice, "context"),
    o.only(p.PairPolicy, "boundary", "truncate"),
    o.only(p.BatchPolicy, "tokens"),
    p.SpeedPolicy,
    o.only(o.ShowSettings, "unit", "all_tokens", "summary", "view", "theme", "show_whitespace"),
    o.only(o.OutputSettings, "json", "jsonl", "format"),
    o.only(o.OutputSettings, "level", level="What a line of CSV or TSV is: sequence or token."),
    o.only(o.OutputSettings, "output", "force", "text", "tokens", "resume"),
    o.CONFIG,
    o.OtherSettings,
)
def mask(ctx: typer.Context) -> None:
    """Show which tokens a training loss falls on, and where other labels differ.

    Needs a tokenizer only; --loss loads the model. Labels are unshifted, -100 where masked.
    --check compares with labels that a training pipeline wrote; a difference exits with 3.

    Examples:
        seqloss mask --prompt "The list is" --response " sorted in place."
        seqloss mask samples/chats.jsonl --chat-template samples/chat.jinja --like trl
        seqloss mask samples/pairs.jsonl --eos -o labels.jsonl
        seqloss mask samples/pairs.jsonl --eos --check labels.jsonl

    """
    from seqloss_cli.cli.run import Command
    from seqloss_cli.cli.settings import output_choice
    from seqloss_cli.display.terminal.masks import MaskTableWriter, mask_answer
    from seqloss_cli.inputs.side_files import LabelFile
    from seqloss_cli.results.schema.masks import mask_rows
    from seqloss_cli.scoring.tasks import mask_task
    from seqloss_cli.tokenization.trl import NAME as TRAINER_NAME

    choice, own = output_choice(ctx), o.given(ctx, MaskSettings)
    inputs, pairs = i.pair_inputs(ctx), i.pair_policy(ctx)
    _refuse(own.check, inputs.names)
    source = _source(ctx, own, pairs)
    reading = o.given(ctx, p.Reading)
    labels = None
    if own.check:
        labels = LabelFile(own.check, reading.max_bytes, is_part=reading.shard is not None)
    trainer = _trainer(own, pairs, source)
    name = None if trainer is None else TRAINER_NAME
    command = Command(
        mask_task(source, trainer, None if labels is None else labels.find),
        lambda options: mask_rows(options, labels is not None, trainer is not None),
        lambda console, options: MaskTableWriter(console, options, name),
        mask_answer,
    )
    # Rows follow from the inputs; how these were cut is told, so that shards can be merged.
    written = command.run(inputs if reading.shard else replace(inputs, reading=None), choice, None)
    if labels is not None:
        i.say_unused(labels, labels.source, limited=reading.shard is not None)
    totals = written.totals
    if totals.n_different:
        say(f"{totals.n_different:,} of {totals.n_checked:,} rows differ from {own.check}")
    if written.n_rejected or totals.n_different:
        raise typer.Exit(REJECTED)


def _refuse(check: str | None, names: Sequence[str]) -> None:
    """Raises UsageError for a file of labels that cannot be read, before anything is loaded."""
    if check == i.STDIN and i.STDIN in names:
        raise UsageError("'-' (stdin) can be read once only")
    if check not in (None, i.STDIN) and not Path(check).exists():
        raise UsageError(f"--check {check}: no such file")


def _source(ctx: typer.Context, own: MaskSettings, pairs: p.PairPolicy) -> Scorer | PairTokens:
    """Return what makes sequences of the inputs: with --loss a scorer, else a tokenizer alone."""
    from seqloss_cli.cli import settings as s
    from seqloss_cli.scoring.scorer import PairTokens

    if own.loss:
        return s.load_scorer(ctx, pairs)
    # Where there is a tokenizer of its own, no model has to be named, nor its default reported.
    choice = s.tokenizer_choice(ctx) or s.model_choice(ctx)
    s.refuse_windows(ctx, choice)
    context = o.given(ctx, p.WindowChoice).context
    policy = o.given(ctx, p.TokenPolicy)
    with s.loading(choice.tokenizer or choice.name):
        tokens = PairTokens(choice, policy, pairs, context, spare_torch=ctx.obj is ALONE)
    s.say_warnings(tokens.warnings)
    return tokens


def _trainer(
    own: MaskSettings, pairs: p.PairPolicy, source: Scorer | PairTokens
) -> TrlTrainer | None:
    from seqloss_cli.tokenization.trl import TrlTrainer

    if own.like is None:
        return None
    return TrlTrainer(
        source.tokenization.vocabulary.tokenizer,
        pairs.chat_template,
        use_clock=None if source.pairing is None else source.pairing.template.use_clock,
        assistant_only=own.like == "trl-assistant-only",
        max_length=own.max_length or None,
    )
