"""The options that exclude or need each other: one table, read before anything is loaded.

A row is a message with a condition for each parameter. Six parameters are derived by their
command. `writes` is the format that its options settle on, `n_models` the models of `diverge`. The
others are of plots: `draws` is the kind, `suffix` the ending of the file's name, `n_files` the
number of results. `objective` is true where the plot is of a report of `objective`.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import typer

from seqloss_cli.core.errors import UsageError, did_you_mean
from seqloss_cli.core.options import option_fields
from seqloss_cli.core.policies import (
    ROWS_ELSEWHERE,
    BatchPolicy,
    ModelChoice,
    Reading,
    SpeedPolicy,
    TokenPolicy,
    WindowChoice,
)
from seqloss_cli.display.scales import SERIES
from seqloss_cli.inputs.streams import STDIN
from seqloss_cli.results.formats import FORMATS
from seqloss_cli.results.sinks import partial_path

Condition = Callable[[Any], bool] | tuple[Any, ...] | str | None
"""A test of a parameter's value, the values that it may have, the one that it has, or `TYPED`."""
TYPED = None
"""The command line itself gives the option. Variables and files are defaults for other runs, too,
where an option that is idle in this one does something."""


def present(value: Any) -> bool:
    """The option has a value, be it an empty text or 0, or the flag is set."""
    is_empty_list = isinstance(value, list | tuple) and not value
    return not (value is None or value is False or is_empty_list)


def absent(value: Any) -> bool:
    """The option is not given."""
    return not present(value)


def other_than(*values: Any) -> Callable[[Any], bool]:
    """The value is none of these."""
    return lambda value: value not in values


def more_than(n: int) -> Callable[[list[str] | None], bool]:
    """The list has more than `n` entries."""
    return lambda values: len(values or ()) > n


def fewer_than(n: int) -> Callable[[list[str] | None], bool]:
    """The list has fewer than `n` entries, or is not given."""
    return lambda values: len(values or ()) < n


def several(n: int) -> bool:
    """There are two or more."""
    return n > 1


def names_stdin(values: list[str] | None) -> bool:
    """The list has `-`."""
    return STDIN in (values or ())


def names_server(teacher: str | None) -> bool:
    """The teacher is a URL."""
    return "://" in (teacher or "")


def names_models(names: list[str] | None) -> bool:
    """One of the names is of a checkpoint, and not of a results file."""
    return not all(Path(name).is_file() and not name.endswith(".gguf") for name in names or ())


def names_no_model(teacher: str | None) -> bool:
    """There is no teacher, or its distributions are read from a file."""
    from seqloss_cli.backends.teacher_files import looks_saved

    return teacher is None or looks_saved(teacher)


@dataclass(frozen=True, slots=True)
class Conflict:
    """Options that do not go together."""

    message: str
    """`{name}` stands for a parameter's value."""
    commands: tuple[str, ...]
    """Only these; without names, every command that has the parameters."""
    where: Mapping[str, Condition]
    """A condition for each parameter. Options conflict where all of these hold, in a command that
    has all of the parameters."""


def conflict(message: str, commands: str = "", /, **where: Condition) -> Conflict:
    """A row; `commands` are separated by blanks."""
    return Conflict(message, tuple(commands.split()), where)


def either(message: str, commands: str, /, *cases: Mapping[str, Condition]) -> list[Conflict]:
    """A row for each case, with one message."""
    return [conflict(message, commands, **where) for where in cases]


def each(
    names: str, message: str, commands: str = "", /, when: Condition = present, **where: Condition
) -> list[Conflict]:
    """A row for each option, whose flag begins its message."""
    return [
        conflict(f"--{name.replace('_', '-')} {message}", commands, **{name: when, **where})
        for name in names.split()
    ]


idle = partial(each, when=TYPED)
"""A row for each option that would do nothing, though the command line gives it."""
_PREFIX, _KEY = "SEQLOSS_", "SEQLOSS_API_KEY"
WITH_METRICS = ("curve", "groups")
"""Kinds of plots that have a choice of figures."""
_WITH_LEVELS = [name for name, format in FORMATS.items() if format.has_levels]
_RESUMABLE = [name for name, format in FORMATS.items() if format.resumable]


def _options_of(*records: type) -> str:
    """Return the parameters of records, but those that the commands of several models lack."""
    found = (field.parameter for record in records for field in option_fields(record))
    # compare names its models itself, its rows share no prompts, and it has no data sets or shards
    not_of_these = ("model", "no_share_prefix", *ROWS_ELSEWHERE)
    return " ".join(name for name in found if name not in not_of_these)


_OF_MODEL = _options_of(ModelChoice, TokenPolicy, WindowChoice, BatchPolicy, SpeedPolicy)
_OF_CHECKED_MODEL = " ".join(
    name for name in _OF_MODEL.split() if name not in ("eos", "eos_token", "special_tokens")
)
"""`check` takes ids: no text is tokenized there."""
_SCORING = f"{_options_of(Reading)} {_OF_MODEL}"

# fmt: off
CONFLICTS: tuple[Conflict, ...] = (
    # inputs
    conflict("--text and files exclude each other ({files[0]})", text=present, files=present),
    *either("--text is one text; --lines and --jsonl-input are for files and stdin", "",
            {"text": present, "lines": present}, {"text": present, "jsonl_input": present}),
    conflict("choose one of --lines and --jsonl-input", "score diverge",
             lines=present, jsonl_input=present),
    *idle("choices_field answer_field prompt_field", "is for rows of files, not --prompt", "rank",
          prompt=present),
    conflict("--no-prompt and --prompt-field exclude each other",
             no_prompt=present, prompt_field=TYPED),
    conflict("--answer is the same for all rows; --answer-field is each row's own",
             answer=present, answer_field=TYPED),
    *either("--no-prompt excludes --prompt and --chat", "",
            {"no_prompt": present, "prompt": present}, {"no_prompt": present, "chat": present}),
    *either("--prompt and --response go together; an empty prompt is --prompt ''", "cond mask",
            {"prompt": present, "response": absent}, {"prompt": absent, "response": present}),
    *either("--prompt goes with two or more --response; an empty prompt is --prompt ''", "rank",
            {"prompt": present, "response": fewer_than(2)},
            {"prompt": absent, "response": present}),
    conflict("--prompt and --response exclude files ({files[0]})", prompt=present, files=present),
    *either("'-' (stdin) can be read once only", "",
            {"check": STDIN, "prompt": STDIN}, {"check": STDIN, "response": STDIN}),
    conflict("--limit takes the first of all inputs, and --shard a part of them: leave one out",
             shard=present, limit=present),
    conflict("--dataset and files exclude each other ({files[0]})", dataset=present, files=present),
    *either("--dataset has rows: leave the text of the command line out", "",
            {"dataset": present, "text": present}, {"dataset": present, "prompt": present}),
    *either("--dataset has rows: leave --lines and --jsonl-input out", "",
            {"dataset": present, "lines": present}, {"dataset": present, "jsonl_input": present}),
    conflict("--split says which rows of --dataset {dataset} are read, such as --split train",
             dataset=present, split=absent),
    *idle("split dataset_config dataset_revision", "goes with --dataset", dataset=absent),
    *either("--shard is a part of files, not of what the command line gives", "",
            {"shard": present, "text": present}, {"shard": present, "prompt": present}),
    *idle("output json force", "is for what is merged, and --missing merges nothing", "merge",
          missing=present),
    # workers of a cluster
    *idle("ray_address workers gpus_per_worker shard_dir", "goes with --distribute ray",
          distribute=absent),
    *either("--distribute is for files, not for what the command line gives", "",
            {"distribute": present, "text": present}, {"distribute": present, "prompt": present}),
    *each("shard", "and --distribute both cut the inputs: leave one out", distribute=present),
    *each("limit", "takes the first of all inputs, and workers read them side by side: leave it "
          "out of --distribute", distribute=present),
    *each("strict", "stops at the first rejected input, and with --distribute there is no first: "
          "leave it out", distribute=present),
    *each("summary", "has no rows to merge: leave it out of --distribute, and `seqloss summarize "
          "RESULTS` shows totals", distribute=present),
    *each("report", "is made of results that are there: leave it out of --distribute, and "
          "`seqloss report RESULTS -o FILE.html` makes it", distribute=present),
    *each("output_ranked", "is a second file, which workers do not write: leave it out of "
          "--distribute", distribute=present),
    *each("verify", "is of one process: leave it out of --distribute, and score the first rows "
          "with --limit N --verify N before", when=other_than(0), distribute=present),
    *each("batch_tokens", "auto is measured, and workers may measure otherwise: with --distribute "
          "give a number", when="auto", distribute=present),
    *idle("worst", "is for the terminal: with --distribute leave it out, and `seqloss summarize "
          "RESULTS` lists them", distribute=present),
    *each("tensor_parallel", "starts processes that Ray does not count: leave --distribute out",
          when=other_than(1), distribute=present),
    *idle("devices", "is of one process: with --distribute give --gpus-per-worker",
          distribute=present),
    conflict("--device {device}: with --distribute each worker is given its GPUs: leave it out, "
             "or --device cpu", distribute=present, device=other_than("auto", "cpu", "cuda")),
    *idle("gpus_per_worker", "is for a model that workers load, and --engine has one of its own",
          engine=present),
    conflict("--distribute merges JSON lines, a JSON document or Parquet, not {writes}: give "
             "-o FILE.jsonl, or --jsonl for stdout",
             distribute=present, writes=other_than("jsonl", "json", "parquet")),
    conflict("--distribute keeps shards in a directory beside -o FILE: give one, or --shard-dir "
             "DIR", distribute=present, output=absent, shard_dir=absent),
    # policies
    conflict("--separator is for plain pairs; with --chat the template separates them",
             separator=other_than(""), chat=present),
    conflict("--eos is for plain pairs; with --chat the template ends the turns",
             eos=present, chat=present),
    conflict("--boundary compare is for cond; rank goes by joint or separate", "rank",
             boundary="compare"),
    conflict("mask shows one boundary policy at a time: joint or separate", "mask",
             boundary="compare"),
    conflict("--by {by} needs the responses alone: --pmi",
             by=("pmi", "mutual_information"), pmi=absent),
    conflict("--pmi is for plain prompts: without --chat", "rank", pmi=present, chat=present),
    conflict("--like trl parses control tokens, as TRL does; leave --special-tokens out",
             like=present, special_tokens=other_than("parse")),
    *idle("max_length", "is the trainer's; it goes with --like", like=absent),
    *each("adapter quantize", "is for the model's numbers: mask loads none without --loss",
          loss=absent),
    # a server in the model's place
    *idle("concurrency verify probe_tolerance probe engine_timeout insecure_http",
          "goes with --engine", "score cond rank", engine=absent),
    *idle("api_key_file", "goes with --engine", "score cond rank", engine=absent),
    *idle("dtype device threads quantize adapter allow_pickle",
          "is for a model that is loaded here; --engine has one of its own, which --verify loads, "
          "too", engine=present, verify=(0,)),
    *idle("compile devices tensor_parallel batch_tokens no_share_prefix",
          "is for a model that is run here, and --engine runs it elsewhere", engine=present),
    # recordings
    *idle(f"model {_OF_CHECKED_MODEL} chat_template", "is for a model, and --against has none",
          "check", against=present),
    conflict("--against-field goes with --against", against_field=present, against=absent),
    conflict("shards of check are merged by their tokens: leave --no-tokens out", "check",
             shard=present, no_tokens=present),
    conflict("--fail-above is of all rows, and --shard is a part of them: leave it out, and look "
             "at share_beyond of what `seqloss merge` writes", "check",
             shard=present, fail_above=present),
    conflict("--resume goes on with a shard, whose rows hold what the diagnosis is made of: give "
             "--shard, too (--shard 0/1 is all of it)", "check", resume=present, shard=absent),
    # diverge
    conflict("--teacher {teacher}: servers give 20 alternatives at most, and no whole "
             "distributions; name a model", teacher=names_server),
    *either("say what is gold: --teacher MODEL, or --label-smoothing E", "",
            {"teacher": absent, "label_smoothing": absent},
            {"teacher": present, "label_smoothing": present}),
    *each("teacher_dtype teacher_adapter teacher_revision", "is for a --teacher that is a model",
          teacher=names_no_model),
    *idle("teacher_top_k", "goes with --save-teacher", save_teacher=absent),
    *idle("draft_length overlap_k", "is for two models: give --teacher", "diverge",
          teacher=absent),
    conflict("{n_models} --model are compared with a teacher: give --teacher", "diverge",
             n_models=several, label_smoothing=present),
    *either("of {n_models} --model rows belong to no single run: leave --resume and --shard out, "
            "or run diverge once for each model", "diverge",
            {"n_models": several, "resume": present}, {"n_models": several, "shard": present}),
    conflict("--save-teacher is measured with one model, and {n_models} are named", "diverge",
             n_models=several, save_teacher=present),
    conflict("--report shows one model, and {n_models} are named: run diverge once for each",
             "diverge", n_models=several, report=present),
    conflict("--save-teacher needs a --teacher that is a model",
             save_teacher=present, teacher=names_no_model),
    # what is shown
    *idle("theme show_whitespace", "goes with --view heat", view=other_than("heat")),
    *idle("all_tokens", "is of texts in colours; it goes with --view heat", "compare",
          view=other_than("heat")),
    *either("--tokens is for rows: they need --json, --jsonl or -o FILE.jsonl", "rank",
            {"tokens": present, "writes": "table"}, {"tokens": present, "summary": present}),
    conflict("--word-correction corrects the losses of words: give --words, too",
             word_correction=present, words=absent),
    conflict("--summary shows totals, which --regions has none of; leave one out",
             summary=present, regions=present),
    conflict("--summary shows totals, which --word-correction has none of; leave one out",
             summary=present, word_correction=present),
    *idle("level", f"says what a line of --format {' or '.join(_WITH_LEVELS)} is",
          writes=other_than(*_WITH_LEVELS)),
    # what an interrupted run cannot go on with
    conflict("--resume goes on with a file: give -o FILE.jsonl", "check diverge mask",
             resume=present, output=absent),
    conflict("--resume goes on with a file: give -o FILE.jsonl",
             resume=present, output=absent, distribute=absent),
    conflict("--resume keeps what --force writes over: choose one of them",
             resume=present, force=present),
    conflict("--resume goes on line by line, which {writes} does not have: give -o FILE.jsonl or "
             "--jsonl", "check diverge mask", resume=present, writes=other_than(*_RESUMABLE)),
    # Shards are lines, whatever they are merged to.
    conflict("--resume goes on line by line, which {writes} does not have: give -o FILE.jsonl or "
             "--jsonl", resume=present, writes=other_than(*_RESUMABLE), distribute=absent),
    conflict("--resume needs the rows in the file: leave --summary out",
             resume=present, summary=present, writes=present),
    conflict("--resume makes intervals of the rows' tokens: leave --no-tokens out", "diverge",
             resume=present, no_tokens=present),
    conflict("--resume compares rows with inputs by their texts: leave --no-text out", "rank",
             resume=present, no_text=present),
    conflict("--resume goes on with one file: leave --save-teacher out",
             resume=present, save_teacher=present),
    conflict("--resume goes on with one file: leave --output-ranked out",
             resume=present, output_ranked=present),
    # results, or models that are scored first
    *either("--report shows two models; name two, or leave it out", "",
            {"report": present, "models": more_than(2)},
            {"report": present, "results": more_than(2)}),
    conflict("name either RESULTS files, or --model A --model B with --data FILE",
             models=present, results=present),
    conflict("--model: name two or more to compare",
             models=lambda names: len(names or ()) == 1),
    conflict("name two or more RESULTS files, or --model A --model B --data FILE",
             models=absent, results=fewer_than(2)),
    conflict("--data FILE says what is scored", models=present, data=absent),
    conflict("--data FILE says what is scored; without it all names are of RESULTS that are there",
             checkpoints=names_models, data=absent),
    *either("--data - can be read once only: put it in a file for several models", "",
            {"models": more_than(1), "data": names_stdin},
            {"checkpoints": more_than(1), "data": names_stdin}),
    *idle(f"data {_SCORING}", "is for --model A --model B; RESULTS are scored already",
          models=absent),
    *idle(_SCORING, "is for checkpoints and --data; RESULTS are scored already", "objective",
          data=absent),
    conflict("-o FILE.html says where the page goes", "report", output=absent),
    *idle("min_k label pair scores", "is for scores of membership: give --membership, too",
          "summarize", membership=absent),
    conflict("a page is of one results file, or of two that it compares", "report",
             results=more_than(2)),
    conflict("--by is for the page of one results file", "report",
             by=present, results=more_than(1)),
    conflict("two results files are read twice: put what comes on stdin in a file", "report",
             results=lambda names: len(names) > 1 and STDIN in names),
    # rows that are kept
    conflict("say what is kept: --where CONDITION, --sample N, or --buckets N", "select",
             where=absent, sample=absent, buckets=absent),
    *idle("by seed", "is for a sample: give --sample N, too", "select", sample=absent),
    *idle("bucket_by reference", "is for buckets: give --buckets N, too", "select",
          buckets=absent),
    *either("--buckets N needs --bucket-by COLUMN and --reference RESULTS", "select",
            {"buckets": present, "bucket_by": absent}, {"buckets": present, "reference": absent}),
    # plots
    conflict("-o FILE says where the plot goes (.svg, .png, .pdf), --json prints numbers", "plot",
             output=absent, json=absent),
    *idle("by", "is for --kind groups", draws=other_than("groups")),
    *idle("metric", "is for --kind curve and groups", draws=other_than(*WITH_METRICS)),
    *idle("level", "is for --kind scatter", draws=other_than("scatter")),
    *idle("bins bins_by", "is for --kind calibration", draws=other_than("calibration")),
    *idle("unit", "is for losses, not for --kind {draws}: probabilities have no unit",
          draws=("calibration", "roc")),
    *idle("unit",
          "is for --metric mean_loss: perplexity has no unit, and bits_per_byte is in bits",
          draws=WITH_METRICS, metric=other_than("mean_loss")),
    *idle("cluster confidence seed allow_different",
          "is for results files; a report of objective has its intervals already",
          objective=present),
    *idle("cluster confidence",
          "is for intervals: --kind curve, position, groups, calibration or roc",
          draws=other_than("curve", "position", "groups", "calibration", "roc")),
    *idle("seed", "is for what is drawn at random: --kind curve, scatter, calibration or roc",
          draws=other_than("curve", "scatter", "calibration", "roc")),
    *idle("allow_different", "is for two RESULTS files or more",
          draws=present, results=fewer_than(2)),
    *idle("title width height dpi force", "is for the plot: say where with -o FILE", suffix=""),
    *idle("dpi", "is for pixels: -o FILE.png, or the points of --kind scatter",
          draws=other_than("scatter"), suffix=other_than(".png")),
    conflict("--kind scatter is of two RESULTS files, A and B; {n_files} given",
             draws="scatter", n_files=other_than(2)),
    conflict("--kind curve needs RESULTS of two checkpoints or more, or what objective --json "
             "wrote", draws="curve", n_files=(1,)),
    conflict(f"--kind {{draws}} shows {len(SERIES)} RESULTS files at most; {{n_files}} given",
             draws=other_than("curve"), n_files=lambda n: n > len(SERIES)),
    *idle("min_k label pair", "is for --kind roc", "plot", draws=other_than("roc")),
    conflict("--kind roc is of members and others: --label FIELD says which is which",
             draws="roc", label=lambda field: not field),
    conflict("--kind roc is of one RESULTS file; {n_files} given",
             draws="roc", n_files=other_than(1)),
    conflict("--by FIELD says which groups the bars are of", draws="groups", by=lambda by: not by),
)
# fmt: on


def refuse_unknown_variables(context: typer.Context) -> None:
    """Raises UsageError for a variable that no command reads: a slip would change nothing."""
    group: Any = context.find_root().command
    parameters = (each for command in group.commands.values() for each in command.params)
    known = {each.envvar for each in parameters if getattr(each, "envvar", None)} | {_KEY}
    for name, value in os.environ.items():
        if name.startswith(_PREFIX) and value and name not in known:
            near = did_you_mean(name, known)
            # A key that is misspelt is a key still.
            shown = "" if "KEY" in name or "API" in name else f" (={value!r:.40})"
            raise UsageError(f"the variable {name}{shown} is none of seqloss{near}")


def idle_engine(context: typer.Context, of_file: str | None) -> str | None:
    """Return what to say where a server is named that a command which runs models does not ask;
    `of_file` is the file that names it. None where there is nothing to say."""
    values = context.params
    place = "SEQLOSS_ENGINE" if os.environ.get("SEQLOSS_ENGINE") else of_file
    runs_models = values.get("models") or values.get("checkpoints") or "model" in values
    # Without --loss mask loads none.
    if not place or "engine" in values or not runs_models or values.get("loss") is False:
        return None
    hint = "" if "model" in values else "; a server among models is URL#TOKENIZER"
    return f"{place} is for score, cond and rank: {context.command.name} runs models here{hint}"


def refuse_idle_processes(context: typer.Context) -> None:
    """Raises UsageError where torchrun started processes for a command that runs models in one."""
    torchrun = sys.modules.get("seqloss_cli.backends.torch.torchrun")
    meeting, values = getattr(torchrun, "meeting", None), context.params
    runs_models = any(name in values for name in ("model", "models", "checkpoints"))
    if meeting is not None and runs_models and "tensor_parallel" not in values:
        raise UsageError(
            f"{context.command.name} runs its models in one process, and torchrun started "
            f"{meeting.place.size}: start it without"
        )


def refuse_conflicts(context: typer.Context, **derived: Any) -> None:
    """Raises UsageError for the first row that applies: with `derived`, of those that name one of
    these parameters; else of those that name none."""
    command, values = str(context.command.name), {**context.params, **derived}
    for row in CONFLICTS:
        names = row.where.keys()
        is_for_command = not row.commands or command in row.commands
        is_due = names <= values.keys() and (not derived or not names.isdisjoint(derived))
        if is_for_command and is_due and all(_holds(context, values, name, row) for name in names):
            raise UsageError(row.message.format_map(values))


def _holds(context: typer.Context, values: Mapping[str, Any], name: str, row: Conflict) -> bool:
    condition = row.where[name]
    if condition is None:
        return is_typed(context, name)
    if callable(condition):
        return condition(values[name])
    return values[name] in condition if isinstance(condition, tuple) else values[name] == condition


def is_typed(context: typer.Context, parameter: str) -> bool:
    """The command line itself gives the option, not a variable, a file or its default."""
    return is_from(context, parameter, "COMMANDLINE")


def is_from(context: typer.Context, parameter: str, level: str) -> bool:
    """`level` (of click's ParameterSource) is what gave the option its value."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == level


# -- files that are read and files that are written -----------------------------------------------

WRITTEN = {
    "report": "--report",
    "output": "-o",
    "output_ranked": "--output-ranked",
    "save_teacher": "--save-teacher",
    "scores": "--scores",
}
_READ = (
    *("files", "data", "results", "prompt", "response", "regions", "check", "chat_template"),
    *("config", "model", "models", "checkpoints", "tokenizer", "adapter"),
    *("teacher", "teacher_adapter", "inputs", "reference", "against"),
)
"""Parameters that name files; `prompt` and `response` do so after an @."""
_OF_CHECKPOINTS = (
    *("*.safetensors", "*.bin", "*.gguf", "*.model", "*.py", "*.jinja", "*.index.json"),
    *("config.json", "*_config.json", "token*.json", "*_token*.json", "chat_template.*"),
    *("vocab.*", "merges.txt"),
)
"""Files of a directory that are read where it is named as a model."""


def refuse_shared_files(context: typer.Context) -> None:
    """Raises UsageError where a file that is to be written is read, too, or written twice: by
    whatever name, links included."""
    written = {
        flag: Path(path)
        for name, flag in WRITTEN.items()
        if (path := context.params.get(name)) is not None
    }
    for (flag, path), (other, its) in combinations(written.items(), 2):
        if not _names_of(path).isdisjoint(_names_of(its)):
            raise UsageError(f"{flag} {path} and {other} are one file")
    for name in (*_names_read(context.params), *context.meta.get("seqloss.models", ())):
        for flag, path in written.items():
            # While it grows it has another name, under which something may be there, too.
            if any(_reads(name, each) for each in (path, partial_path(path))):
                shown = "stdin" if name == STDIN else name
                raise UsageError(
                    f"{flag} {path} is one of the inputs ({shown}), which not even --force "
                    "writes over: name another file"
                )
        if _is_stdout(name):
            raise UsageError(f"stdout is one of the inputs ({name}): write to another file")


def refuse_repeated_results(context: typer.Context) -> None:
    """Raises UsageError where a file is to be compared with itself, by whatever name."""
    values = context.params
    # A checkpoint may be named twice.
    names = values.get("results") if "checkpoints" not in values else values["checkpoints"]
    if context.command.name not in ("compare", "report", "objective") or values.get("data"):
        return
    for name, other in combinations(names or [], 2):
        if STDIN not in (name, other) and _reads(other, Path(name)):
            twice = (
                f"{name} is named twice" if name == other else f"{name} and {other} are one file"
            )
            raise UsageError(f"{twice}: it does not differ from itself; name another run's RESULTS")


def _names_of(path: Path) -> set[str]:
    return {os.path.normcase(os.path.realpath(each)) for each in (path, partial_path(path))}


def _names_read(values: Mapping[str, Any]) -> Iterator[str]:
    for parameter in _READ:
        found = values.get(parameter)
        for value in found if isinstance(found, list) else [found]:
            name = "" if value is None else str(value)
            if parameter in ("prompt", "response") and name != STDIN:
                name = name[1:] if name.startswith("@") else ""
            if name:
                yield name
    if not any(values.get(name) for name in ("files", "results", "data", "text", "prompt")):
        yield STDIN


def _reads(name: str, path: Path) -> bool:
    """The file is there and is the one that `name` names, or one of a checkpoint of that name."""
    # By what the system says: names differ by links, case and much else. What cannot be asked for
    # is no file.
    with suppress(OSError, ValueError):
        if name == STDIN:
            return os.path.samestat(os.fstat(0), path.stat())
        if not Path(name).is_dir():
            # An input that is not there yet would be our own output.
            return os.path.realpath(path) == os.path.realpath(name) or path.samefile(name)
        is_of_checkpoint = any(fnmatch(path.name.lower(), each) for each in _OF_CHECKPOINTS)
        return path.exists() and is_of_checkpoint and path.parent.samefile(name)
    return False


def _is_stdout(name: str) -> bool:
    """Stdout was redirected to the file itself: its rows would be read as they are written."""
    with suppress(OSError, ValueError):
        stdout = os.fstat(1)
        file = os.fstat(0) if name == STDIN else Path(name).stat()
        return stat.S_ISREG(stdout.st_mode) and os.path.samestat(stdout, file)
    return False
