"""Options and inputs of the commands that take prompts with responses, or chats."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli.inputs import STDIN, file_text, input_names, text_of
from seqloss_cli.core.errors import UsageError

if TYPE_CHECKING:
    from seqloss_cli.core.policies import PairPolicy
    from seqloss_cli.core.records import Rejected, Sample
    from seqloss_cli.inputs import ReadOptions, ReadStats


class BoundaryPolicy(StrEnum):
    joint = "joint"
    separate = "separate"
    compare = "compare"


class Truncate(StrEnum):
    error = "error"
    left = "left"


class ScoredTurns(StrEnum):
    assistant = "assistant"
    last = "last"
    all = "all"


CHAT = "Chats"
_BOUNDARY = (
    "joint: both texts tokenized as one; separate: each by itself; compare: both ways, and the "
    "difference."
)
PAIR_INPUTS: o.Group = {
    "files": (
        Annotated[
            list[str] | None,
            typer.Argument(metavar="[FILES…|-]", help="JSONL rows; .gz, .zst."),
        ],
        None,
    ),
    "prompt": (
        Annotated[
            str | None,
            o.option(o.INPUT, "--prompt", "The prompt: a text, @FILE or - (stdin)."),
        ],
        None,
    ),
    "response": (
        Annotated[
            str | None,
            o.option(o.INPUT, "--response", "The response: a text, @FILE or - (stdin)."),
        ],
        None,
    ),
    "prompt_field": (
        Annotated[str, o.option(o.INPUT, "--prompt-field", "Field of a row with the prompt.")],
        "prompt",
    ),
    "response_field": (
        Annotated[str, o.option(o.INPUT, "--response-field", "Field of a row with the response.")],
        "response",
    ),
    "separator": (
        Annotated[
            str,
            o.option(o.INPUT, "--separator", "Put between the two; scored with the response."),
        ],
        "",
    ),
    **o.INPUT_OPTIONS,
}
CHAT_OPTIONS: o.Group = {
    "chat": (
        Annotated[
            bool,
            o.flag(CHAT, "--chat", "Wrap prompt and response as a turn of user and assistant."),
        ],
        False,
    ),
    "chat_template": (
        Annotated[
            Path | None,
            o.option(CHAT, "--chat-template", "Jinja file in place of the tokenizer's template."),
        ],
        None,
    ),
    "score": (
        Annotated[
            ScoredTurns,
            o.option(CHAT, "--score", "Turns that count: every assistant's, the last, all text."),
        ],
        ScoredTurns.assistant,
    ),
    "no_end_of_turn": (
        Annotated[
            bool,
            o.flag(CHAT, "--no-end-of-turn", "Leave out the token that ends a scored turn."),
        ],
        False,
    ),
}
SEAM_OPTIONS: o.Group = {
    "boundary": (
        Annotated[BoundaryPolicy, o.option(o.POLICY, "--boundary", _BOUNDARY)],
        BoundaryPolicy.joint,
    ),
    "truncate": (
        Annotated[
            Truncate,
            o.option(o.POLICY, "--truncate", "Too long: reject it, or cut its prompt's start."),
        ],
        Truncate.error,
    ),
}

NO_SHARE_PREFIX = (
    Annotated[
        bool, o.flag(o.SPEED, "--no-share-prefix", "Compute a common beginning for each row.")
    ],
    False,
)


def choose_pairs(context: typer.Context, marginal: bool = True) -> PairPolicy:
    """`marginal` where no option says it. Raises UsageError when flags exclude each other or a
    template cannot be read."""
    from seqloss_cli.core.policies import PairPolicy

    values = context.params
    if values["separator"] and values["chat"]:
        raise UsageError("--separator is for plain pairs; with --chat the template separates them")
    if values["eos"] and values["chat"]:
        raise UsageError("--eos is for plain pairs; with --chat the template ends the turns")
    template: Path | None = values["chat_template"]
    return PairPolicy(
        separator=values["separator"],
        boundary=str(values["boundary"]),  # type: ignore[arg-type]  # typer knows the choices
        truncate=str(values["truncate"]),  # type: ignore[arg-type]
        marginal=not values.get("no_marginal", not marginal),
        pmi=values.get("pmi", False),
        turns=str(values.get("score", ScoredTurns.assistant)),  # type: ignore[arg-type]
        end_of_turn=not values["no_end_of_turn"],
        chat_template=None if template is None else file_text("--chat-template", template),
    )


def pair_names(context: typer.Context) -> list[str]:
    """The names of input files; none when the pair stands on the command line."""
    values = context.params
    given = [values["prompt"], values["response"]]
    if given == [None, None]:
        return input_names(values["files"], "give --prompt and --response")
    if None in given:
        raise UsageError("--prompt and --response go together; an empty prompt is --prompt ''")
    if values["files"]:
        raise UsageError("--prompt and --response exclude FILES")
    if given == [STDIN, STDIN]:
        raise UsageError("'-' (stdin) can be read once only")
    return []


def pair_items(
    context: typer.Context, names: list[str], stats: ReadStats
) -> Iterable[Sample | Rejected]:
    """Samples of the files, or the one pair of the command line."""
    from seqloss_cli.core.records import Pair
    from seqloss_cli.inputs import pair_sample, read_inputs

    values = context.params
    if not names:
        prompt = text_of("--prompt", values["prompt"])
        response = text_of("--response", values["response"])
        pair = Pair(prompt, response, values["separator"])
        return [pair_sample(pair, "<pair>", values["chat"], values["max_bytes"])]
    return read_inputs(names, pair_reading(context), stats)


def pair_reading(context: typer.Context) -> ReadOptions:
    """How rows are read."""
    from seqloss_cli.cli.choices import choose_reading
    from seqloss_cli.inputs import PairFields

    values = context.params
    fields = PairFields(
        values["prompt_field"], values["response_field"], values["separator"], values["chat"]
    )
    return choose_reading(context, pairs=fields)
