"""`seqloss mask`: which tokens a training loss falls on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from seqloss_cli.cli import inputs as i
from seqloss_cli.cli.commands import (
    CONFIG,
    OtherSettings,
    OutputSettings,
    ShowSettings,
    with_options,
)
from seqloss_cli.cli.failures import REJECTED, say
from seqloss_cli.cli.inputs import STDIN
from seqloss_cli.cli.options import given, only
from seqloss_cli.core import policies as p
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.options import INPUT, POLICIES, SHOW, command_record, option

if TYPE_CHECKING:
    from seqloss_cli.cli.output import OutputChoice
    from seqloss_cli.scoring.scorer import PairTokens, Scorer
    from seqloss_cli.tokenization.tokenizer import Tokenization
    from seqloss_cli.tokenization.trl import TrlTrainer

EXAMPLES = (
    'seqloss mask --prompt "The list is" --response " sorted in place."',
    "seqloss mask samples/chats.jsonl --chat-template samples/chat.jinja --like trl",
    "seqloss mask samples/pairs.jsonl --eos --check labels.jsonl",
)


Like = Literal["trl", "trl-assistant-only"]


@command_record
class MaskSettings:
    """The labels that the mask is compared with."""

    PANEL = POLICIES

    check: str | None = option(None, "JSONL of input_ids and labels to compare with.", panel=INPUT)
    like: Like | None = option(None, "Also the labels that TRL's SFTTrainer makes.")
    max_length: int = option(1024, "With --like: the trainer's; 0: none.", min=0)
    loss: bool = option(False, "Load the model, and say what the loss is.", panel=SHOW)


@with_options(
    only(i.PairArguments, "files", "prompt", "response", "prompt_field", "response_field"),
    only(p.PairPolicy, "separator"),
    only(p.Reading, "keep_meta", "limit", "max_bytes"),
    MaskSettings,
    only(i.PairArguments, "chat", "chat_template"),
    only(p.PairPolicy, "turns", "end_of_turn"),
    p.ModelChoice,
    p.TokenPolicy,
    only(p.WindowChoice, "context"),
    only(p.PairPolicy, "boundary", "truncate"),
    only(p.BatchPolicy, "tokens"),
    p.SpeedPolicy,
    only(ShowSettings, "unit", "all_tokens", "summary", "view", "theme", "show_whitespace"),
    only(OutputSettings, "json", "jsonl", "format"),
    only(OutputSettings, "level", level="What a line of CSV or TSV is: sequence or token."),
    only(OutputSettings, "output", "force", "text", "tokens", "resume"),
    CONFIG,
    OtherSettings,
)
def mask(ctx: typer.Context) -> None:
    """Show which tokens a training loss falls on, and where other labels differ.

    Needs a tokenizer only; --loss loads the model. Labels are unshifted, -100 where masked.
    --check compares with labels that a training pipeline wrote; a difference exits with 3.
    """
    from seqloss_cli.cli.run import Command, Inputs, run
    from seqloss_cli.cli.settings import output_choice
    from seqloss_cli.display.terminal.masks import MaskTableWriter
    from seqloss_cli.inputs.reading import ReadStats
    from seqloss_cli.inputs.side_files import LabelFile
    from seqloss_cli.results.schema.masks import mask_rows
    from seqloss_cli.scoring.tasks import mask_task
    from seqloss_cli.tokenization.trl import NAME as TRAINER_NAME

    settings, choice = given(ctx, MaskSettings), output_choice(ctx)
    names, stats = i.pair_names(ctx), ReadStats()
    _refuse(ctx, choice, names)
    items, pairs = i.pair_items(ctx, names, stats), i.pair_policy(ctx)
    source, check = _source(ctx, settings, pairs), settings.check
    labels = LabelFile(check, given(ctx, p.Reading).max_bytes) if check else None
    trainer = _trainer(settings, pairs, source.tokenization)
    name = None if trainer is None else TRAINER_NAME
    command = Command(
        mask_task(source, trainer, None if labels is None else labels.find),
        lambda options: mask_rows(options, labels is not None, trainer is not None),
        lambda console, options: MaskTableWriter(console, options, name),
    )
    written = run(command, Inputs(items, stats, names, None), choice, None)
    if labels is not None:
        i.say_unused(labels, labels.source)
    totals = written.totals
    if totals.n_different:
        say(f"{totals.n_different} of {totals.n_checked} rows differ from {check}")
    if written.n_rejected or totals.n_different:
        raise typer.Exit(REJECTED)


def _refuse(ctx: typer.Context, choice: OutputChoice, names: list[str]) -> None:
    """Raises UsageError for what this command cannot do, before anything is loaded."""
    check, pair = given(ctx, MaskSettings).check, given(ctx, i.PairArguments)
    if check == STDIN and STDIN in (*names, pair.prompt, pair.response):
        raise UsageError("'-' (stdin) can be read once only")
    if check not in (None, STDIN) and not Path(check).exists():
        raise UsageError(f"--check {check}: no such file")


def _source(ctx: typer.Context, settings: MaskSettings, pairs: p.PairPolicy) -> Scorer | PairTokens:
    """Return what makes sequences of the inputs: with --loss a scorer, else a tokenizer alone."""
    from seqloss_cli.cli.settings import (
        load_scorer,
        model_choice,
        say_warnings,
        tokenizer_choice,
    )
    from seqloss_cli.scoring.scorer import PairTokens

    if settings.loss:
        return load_scorer(ctx, pairs)
    # Where there is a tokenizer of its own, no model has to be named, nor its default reported.
    choice = tokenizer_choice(ctx) or model_choice(ctx)
    tokens = PairTokens(
        choice, given(ctx, p.TokenPolicy), pairs, given(ctx, p.WindowChoice).context
    )
    say_warnings(tokens.warnings)
    return tokens


def _trainer(
    settings: MaskSettings, pairs: p.PairPolicy, tokens: Tokenization
) -> TrlTrainer | None:
    from seqloss_cli.tokenization.trl import TrlTrainer

    if settings.like is None:
        return None
    return TrlTrainer(
        tokens.vocabulary.tokenizer,
        pairs.chat_template,
        assistant_only=settings.like == "trl-assistant-only",
        max_length=settings.max_length or None,
    )
