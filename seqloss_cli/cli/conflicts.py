"""Which options exclude or need each other: one table, read before anything is loaded.

A row names parameters with what holds of each where the row applies, and the message. Three of them
are derived by their command: `writes` is the format that the options of output settle on, `draws`
the kind of plot, `suffix` that of the plot's file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import typer

from seqloss_cli.cli.inputs import STDIN
from seqloss_cli.cli.options import is_typed
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.options import option_fields
from seqloss_cli.core.policies import (
    BatchPolicy,
    ModelChoice,
    Reading,
    SpeedPolicy,
    TokenPolicy,
    WindowChoice,
)

Condition = Callable[[Any], bool] | None
"""A test of a parameter's value; or `TYPED`."""
TYPED = None
"""The command line itself gives the option: variables and files are defaults for other runs, too,
where it may do something."""


def present(value: Any) -> bool:
    """The option has a value, be it an empty text or 0, or the flag is set."""
    is_empty_list = isinstance(value, list | tuple) and not value
    return not (value is None or value is False or is_empty_list)


def absent(value: Any) -> bool:
    """The option is not given."""
    return not present(value)


def one_of(*values: Any) -> Callable[[Any], bool]:
    """The value is one of these."""
    return lambda value: value in values


def other_than(*values: Any) -> Callable[[Any], bool]:
    """The value is none of these."""
    return lambda value: value not in values


def more_than(n: int) -> Callable[[Any], bool]:
    """The list is longer."""
    return lambda values: len(values or ()) > n


def fewer_than(n: int) -> Callable[[Any], bool]:
    """The list is shorter, or not given."""
    return lambda values: len(values or ()) < n


def names_stdin(values: Any) -> bool:
    """The list has `-`."""
    return STDIN in (values or ())


def names_no_model(teacher: str | None) -> bool:
    """There is no teacher, or what a teacher said is read from a file."""
    from seqloss_cli.backends.teacher_files import looks_saved

    return teacher is None or looks_saved(teacher)


@dataclass(frozen=True, slots=True)
class Conflict:
    """Options that do not go together."""

    where: Mapping[str, Condition]
    """By parameter, all at once. The row is for commands that have all of them."""
    message: str
    """`{name}` stands for a parameter's value."""
    commands: tuple[str, ...] = ()
    """Only these; without names, every command that has the parameters."""


def idle(
    names: Iterable[str], where: Mapping[str, Condition], message: str, *commands: str
) -> list[Conflict]:
    """A row for each option that would do nothing, though the command line gives it."""
    return [
        Conflict({name: TYPED, **where}, f"--{name.replace('_', '-')} {message}", commands)
        for name in names
    ]


_STDIN_ONCE = "'-' (stdin) can be read once only"
_ONE_TEXT = "--text is one text; --lines and --jsonl-input are for FILES and stdin"
_TOGETHER = "--prompt and --response go together; an empty prompt is --prompt ''"
_CHOICES = "--prompt goes with two or more --response; an empty prompt is --prompt ''"
_NO_PROMPT = "--no-prompt excludes --prompt and --chat"
_TOKENS = "--tokens is for rows: they need --json, --jsonl or -o FILE.jsonl"
_REFERENCE = "say what is gold: --teacher MODEL, or --label-smoothing E"
_TWO_MODELS = "--report shows two models; name two, or leave it out"
_NO_DATA = "--data FILE says what is scored"
_DATA_ONCE = "--data - can be read once only: put it in a file for several models"
_SCORING = [
    field.parameter
    for record in (Reading, ModelChoice, TokenPolicy, WindowChoice, BatchPolicy, SpeedPolicy)
    for field in option_fields(record)
    # compare names its models itself, and its rows share no prompts
    if field.parameter not in ("model", "no_share_prefix")
]
WITH_METRICS = ("curve", "groups")

CONFLICTS: tuple[Conflict, ...] = (
    # inputs
    Conflict({"text": present, "files": present}, "--text and FILES exclude each other"),
    Conflict({"text": present, "lines": present}, _ONE_TEXT),
    Conflict({"text": present, "jsonl_input": present}, _ONE_TEXT),
    Conflict(
        {"lines": present, "jsonl_input": present},
        "choose one of --lines and --jsonl-input",
        ("score", "diverge"),
    ),
    Conflict({"prompt": present, "response": absent}, _TOGETHER, ("cond", "mask")),
    Conflict({"prompt": absent, "response": present}, _TOGETHER, ("cond", "mask")),
    Conflict({"prompt": present, "response": fewer_than(2)}, _CHOICES, ("rank",)),
    Conflict({"prompt": absent, "response": present}, _CHOICES, ("rank",)),
    Conflict({"prompt": present, "files": present}, "--prompt and --response exclude FILES"),
    *idle(
        ("choices_field", "answer_field", "prompt_field"),
        {"prompt": present},
        "is for rows of FILES, not --prompt",
        "rank",
    ),
    Conflict(
        {"prompt_field": TYPED, "no_prompt": present},
        "--no-prompt and --prompt-field exclude each other",
    ),
    Conflict(
        {"answer_field": TYPED, "answer": present},
        "--answer is the same for all rows; --answer-field is each row's own",
    ),
    Conflict({"no_prompt": present, "prompt": present}, _NO_PROMPT),
    Conflict({"no_prompt": present, "chat": present}, _NO_PROMPT),
    Conflict({"check": one_of(STDIN), "prompt": one_of(STDIN)}, _STDIN_ONCE),
    Conflict({"check": one_of(STDIN), "response": one_of(STDIN)}, _STDIN_ONCE),
    # policies
    Conflict(
        {"separator": other_than(""), "chat": present},
        "--separator is for plain pairs; with --chat the template separates them",
    ),
    Conflict(
        {"eos": present, "chat": present},
        "--eos is for plain pairs; with --chat the template ends the turns",
    ),
    Conflict(
        {"boundary": one_of("compare")},
        "--boundary compare is for cond; rank goes by joint or separate",
        ("rank",),
    ),
    Conflict(
        {"boundary": one_of("compare")},
        "mask shows one boundary policy at a time: joint or separate",
        ("mask",),
    ),
    Conflict(
        {"by": one_of("pmi", "mutual_information"), "pmi": absent},
        "--by {by} needs the responses alone: --pmi",
    ),
    Conflict(
        {"pmi": present, "chat": present}, "--pmi is for plain prompts: without --chat", ("rank",)
    ),
    Conflict(
        {"like": present, "special_tokens": other_than("parse")},
        "--like trl parses control tokens, as TRL does; leave --special-tokens out",
    ),
    *idle(("max_length",), {"like": absent}, "is the trainer's; it goes with --like"),
    *(
        Conflict(
            {name: present, "loss": absent},
            f"--{name} is for the model's numbers: mask loads none without --loss",
        )
        for name in ("adapter", "quantize")
    ),
    # diverge
    Conflict({"teacher": absent, "label_smoothing": absent}, _REFERENCE),
    Conflict({"teacher": present, "label_smoothing": present}, _REFERENCE),
    *(
        Conflict(
            {name: present, "teacher": names_no_model},
            f"--{name.replace('_', '-')} is for a --teacher that is a model",
        )
        for name in ("teacher_dtype", "teacher_adapter", "teacher_revision")
    ),
    *idle(("teacher_top_k",), {"save_teacher": absent}, "goes with --save-teacher"),
    Conflict(
        {"save_teacher": present, "teacher": names_no_model},
        "--save-teacher needs a --teacher that is a model",
    ),
    # what is shown
    *idle(("theme", "show_whitespace"), {"view": other_than("heat")}, "goes with --view heat"),
    *idle(
        ("all_tokens",),
        {"view": other_than("heat")},
        "is of texts in colours; it goes with --view heat",
        "compare",
    ),
    Conflict({"tokens": present, "writes": one_of("table")}, _TOKENS, ("rank",)),
    Conflict({"tokens": present, "summary": present}, _TOKENS, ("rank",)),
    # results, or models that are scored first
    Conflict({"report": present, "models": more_than(2)}, _TWO_MODELS),
    Conflict({"report": present, "results": more_than(2)}, _TWO_MODELS),
    Conflict(
        {"models": present, "results": present},
        "name either RESULTS files, or --model A --model B with --data FILE",
    ),
    Conflict(
        {"models": lambda names: len(names or ()) == 1}, "--model: name two or more to compare"
    ),
    Conflict(
        {"models": absent, "results": fewer_than(2)},
        "name two or more RESULTS files, or --model A --model B --data FILE",
    ),
    Conflict({"models": present, "data": absent}, _NO_DATA),
    Conflict({"checkpoints": present, "data": absent}, _NO_DATA),
    Conflict({"models": more_than(1), "data": names_stdin}, _DATA_ONCE),
    Conflict({"checkpoints": more_than(1), "data": names_stdin}, _DATA_ONCE),
    *idle(
        ("data", *_SCORING),
        {"models": absent},
        "is for --model A --model B; RESULTS are scored already",
    ),
    Conflict({"output": absent}, "-o FILE.html says where the page goes", ("report",)),
    Conflict(
        {"results": more_than(2)},
        "a page is of one results file, or of two that it compares",
        ("report",),
    ),
    Conflict(
        {"by": present, "results": more_than(1)},
        "--by is for the page of one results file",
        ("report",),
    ),
    Conflict(
        {"results": lambda names: len(names) > 1 and STDIN in names},
        "two results files are read twice: put what comes on stdin in a file",
        ("report",),
    ),
    # plots
    Conflict(
        {"output": absent, "json": absent},
        "-o FILE says where the plot goes (.svg, .png, .pdf), --json prints numbers",
        ("plot",),
    ),
    *idle(("by",), {"draws": other_than("groups")}, "is for --kind groups"),
    *idle(("metric",), {"draws": other_than(*WITH_METRICS)}, "is for --kind curve and groups"),
    *idle(("level",), {"draws": other_than("scatter")}, "is for --kind scatter"),
    *idle(("bins", "bins_by"), {"draws": other_than("calibration")}, "is for --kind calibration"),
    *idle(
        ("unit",),
        {"draws": one_of("calibration")},
        "is for losses, not for --kind calibration: probabilities have no unit",
    ),
    *idle(
        ("unit",),
        {"draws": one_of(*WITH_METRICS), "metric": other_than("mean_loss")},
        "is for --metric mean_loss: perplexity has no unit, and bits_per_byte is in bits",
    ),
    *idle(
        ("cluster", "confidence", "seed", "allow_different"),
        {"objective": present},
        "is for results files; a report of objective has its intervals already",
    ),
    *idle(
        ("cluster", "confidence"),
        {"draws": other_than("curve", "position", "groups", "calibration")},
        "is for intervals: --kind curve, position, groups or calibration",
    ),
    *idle(
        ("seed",),
        {"draws": other_than("curve", "scatter", "calibration")},
        "is for what is drawn at random: --kind curve, scatter or calibration",
    ),
    *idle(
        ("allow_different",),
        {"draws": present, "results": fewer_than(2)},
        "is for two RESULTS files or more",
    ),
    *idle(
        ("title", "width", "height", "dpi", "force"),
        {"draws": present, "suffix": one_of("")},
        "is for the plot: say where with -o FILE",
    ),
    *idle(
        ("dpi",),
        {"draws": other_than("scatter"), "suffix": other_than(".png")},
        "is for pixels: -o FILE.png, or the points of --kind scatter",
    ),
)


def refuse_conflicts(context: typer.Context, **derived: Any) -> None:
    """Raises UsageError for the first row that applies: with `derived`, of those that name one of
    these parameters; else of those that name none."""
    command, values = str(context.command.name), {**context.params, **derived}
    for row in CONFLICTS:
        if row.commands and command not in row.commands:
            continue
        if not row.where.keys() <= values.keys() or (
            derived and row.where.keys().isdisjoint(derived)
        ):
            continue
        if all(_holds(context, values, name, condition) for name, condition in row.where.items()):
            raise UsageError(row.message.format_map(values))


def _holds(
    context: typer.Context, values: Mapping[str, Any], name: str, condition: Condition
) -> bool:
    return is_typed(context, name) if condition is TYPED else condition(values[name])
