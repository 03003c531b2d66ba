"""From the options of a command to the model, policies and output of a run: the same for every
command that has them."""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast, get_args

import typer
from rich.console import Console

from seqloss_cli.cli.conflicts import is_from, is_typed, refuse_conflicts
from seqloss_cli.cli.failures import say
from seqloss_cli.cli.options import OtherSettings, OutputSettings, ShowSettings, given
from seqloss_cli.cli.places import prepare
from seqloss_cli.cli.progress import draws, waiting
from seqloss_cli.core import policies as p
from seqloss_cli.core.backend import Requested, WordBoundaryIds
from seqloss_cli.core.columns import COLUMNS
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.display.terminal.formatting import HeatOptions, TableOptions
from seqloss_cli.display.terminal.palette import choose_theme
from seqloss_cli.models.files import missing_hub, require_names, require_there
from seqloss_cli.results import RowContents
from seqloss_cli.results.formats import FORMATS, LEVELS, Format, extensions
from seqloss_cli.results.resume import recorded_run
from seqloss_cli.results.schema import RowOptions
from seqloss_cli.results.sinks import earlier_output, local_path, refuse_to_overwrite
from seqloss_cli.tokenization.tokenizer import Tokenization

if TYPE_CHECKING:
    from seqloss_cli.scoring.scorer import Scorer

HELD = "seqloss.held"
"""Key of a context to the scorer that a worker keeps from one shard to the next."""
_FILE_WIDTH = 120
"""Columns of tables that go to a file: no terminal says how wide they may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPlan(RowContents):
    """The place, format and contents of results, as the options of a command ask for them."""

    format: Format | None
    """None for tables, or coloured texts."""
    force: bool = False
    bits: bool = False
    all_tokens: bool = False
    strict: bool = False
    resume: bool = False
    flags: Mapping[str, str] = field(default_factory=dict)
    """The command's flags, by their parameters: for what --resume advises."""
    heat: HeatOptions | None = None
    """Texts in colours, in place of tables."""
    worst: int = 0
    """Tokens of the highest losses that are listed."""
    place: Path | None = None
    """The file that -o names, where it is elsewhere: it is put there when it is whole."""
    page_rows: Path | None = None
    """A second file of the rows, JSONL with texts and tokens: for a page of them."""


def load_scorer(
    context: typer.Context,
    pairs: p.PairPolicy | None = None,
    model: str | None = None,
    has_prompts: bool = False,
) -> Scorer:
    """The model (or `model`) and policies that the options name; its warnings are reported."""
    from seqloss_cli.scoring.scorer import Scorer

    held: dict[str, Scorer] | None = context.meta.get(HELD)
    if held:
        return held["scorer"]
    values, windows = context.params, given(context, p.WindowChoice)
    batches, speed = _measured_before(context)
    # mask --loss has pairs and no option for their prefixes: they are shared there.
    share_prefix = (pairs is not None or has_prompts) and not values.get("no_share_prefix", False)
    names = None if values.get("limit") else values.get("files") or values.get("data")
    choice = model_choice(context, model)
    require_names(choice)
    refuse_windows(context, choice)
    with loading(choice.name or choice.tokenizer or p.DEFAULT_MODEL):
        scorer = Scorer(
            choice,
            given(context, p.TokenPolicy),
            windows.context,
            windows.stride,
            replace(batches, share_prefix=share_prefix, prefetch=True),
            pairs,
            replace(speed, work_bytes=_work_bytes(names)),
        )
    if choice.engine:
        _say_kind(choice.engine.url or "", scorer)
    say_warnings(scorer.warnings)
    if held is not None:
        held["scorer"] = scorer
    return scorer


def _say_kind(url: str, scorer: Scorer) -> None:
    """Say which kind of server a plain URL was found to be."""
    if url.startswith(("http:", "https:")):
        found = scorer.backend.describe()["engine"]
        version = "" if found["version"] is None else f", version {found['version']}"
        say(f"note: {url} is a server of kind {found['kind']}{version}")


def refuse_windows(context: typer.Context, choice: p.ModelChoice) -> None:
    """Raises UsageError for windows that the model's configuration does not allow, before it is
    loaded."""
    windows = given(context, p.WindowChoice)
    # A server has a context of its own: the directory is of the tokenizer alone.
    if choice.engine is not None or (windows.context is None and windows.stride is None):
        return
    from seqloss_cli.models import checkpoint

    checkpoint.refuse_windows(choice.name, windows.context, windows.stride)


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Show on a terminal what is loaded, and report how long it took."""
    # Imports make hundreds of thousands of objects that stay: looking for garbage among them again
    # and again takes a tenth of the time.
    gc.disable()
    try:
        with waiting("loading", name) as wait:
            yield
    finally:
        gc.enable()
    if draws():
        say(f"loaded {name} in {wait.seconds:.1f} s")


def _measured_before(context: typer.Context) -> tuple[p.BatchPolicy, p.SpeedPolicy]:
    """The policies that `auto` may settle by measuring."""
    # A second measurement may come out otherwise, and numbers would differ in their last digits
    # within one file: with --resume, what the earlier run settled on stays.
    batches, speed = given(context, p.BatchPolicy), given(context, p.SpeedPolicy)
    earlier = earlier_run(context)
    tokens, compiled = earlier.get("batch_tokens"), earlier.get("compiled")
    if isinstance(tokens, int) and (batches.auto or not is_typed(context, "batch_tokens")):
        batches = replace(batches, tokens=tokens, auto=False)
    if isinstance(compiled, bool) and speed.compile == "auto":
        speed = replace(speed, compile="on" if compiled else "off")
    return batches, speed


def earlier_run(context: typer.Context) -> Mapping[str, Any]:
    """The run that --resume goes on with; empty where there is none."""
    output = given(context, OutputSettings)
    path = local_path(output.output)
    left = earlier_output(path) if output.resume and path else None
    return {} if left is None else recorded_run(left) or {}


def _work_bytes(names: Sequence[str] | None) -> int | None:
    """Size of the inputs, where all are files that are not compressed."""
    from seqloss_cli.inputs.options import COMPRESSED, PARQUET

    packed = (*COMPRESSED, *PARQUET)
    # A name may be too long for the system: pathlib's own tests would raise OSError then.
    if not names or any(n.endswith(packed) or not os.path.isfile(n) for n in names):  # noqa: PTH113
        return None
    return sum(os.path.getsize(name) for name in names)  # noqa: PTH202


def say_warnings(warnings: Iterable[str]) -> None:
    """Report each on stderr."""
    for warning in warnings:
        say(f"warning: {warning}")


def model_choice(context: typer.Context, name: str | None = None) -> p.ModelChoice:
    """The checkpoint `name`, or the one that the options name; reported when they name none."""
    choice = given(context, p.ModelChoice)
    if context.params.get("engine"):
        choice = replace(choice, engine=given(context, p.EngineChoice))
    if name and "://" in name:
        return _engine_choice(context, choice, name)
    if name:
        return _as_stored(replace(choice, name=name))
    if not _names_model(context):
        if choice.engine and choice.tokenizer:
            return replace(choice, name="")
        what = "tokenizer" if choice.engine else "model"
        say(f"no --model, SEQLOSS_MODEL or configuration: the built-in '{p.DEFAULT_MODEL}' {what}")
        # Of a server: what it is tells whether that tokenizer may be its own.
        return replace(choice, name="" if choice.engine else p.DEFAULT_MODEL)
    return choice if choice.engine else _as_stored(choice)


def _as_stored(choice: p.ModelChoice) -> p.ModelChoice:
    """The checkpoint as `NAME#int8` or `NAME#bfloat16` has it: one model in several kinds."""
    name, mark, kind = str(choice.name).rpartition("#")
    if not mark or Path(str(choice.name)).exists():
        return choice
    if kind in get_args(p.QuantizeChoice):
        return replace(choice, name=name, quantize=cast(Any, kind))
    if kind in get_args(p.DtypeChoice):
        return replace(choice, name=name, dtype=cast(Any, kind))
    known = ", ".join((*get_args(p.QuantizeChoice), *get_args(p.DtypeChoice)))
    raise UsageError(f"--model {choice.name}: {kind!r} after # is none of {known}")


def _engine_choice(context: typer.Context, choice: p.ModelChoice, name: str) -> p.ModelChoice:
    """The server and the tokenizer that `URL#TOKENIZER` names, as an argument among models."""
    url, _, tokenizer = name.partition("#")
    if not tokenizer:
        raise UsageError(
            f"{name}: a server among models needs its tokenizer: {url}#DIRECTORY (or a hub name)"
        )
    engine = replace(given(context, p.EngineChoice), url=url)
    return replace(choice, name=tokenizer, engine=engine)


def _names_model(context: typer.Context) -> bool:
    # `--model ''`, as scripts write it for an empty variable, names none.
    return bool(context.params["model"]) and not is_from(context, "model", "DEFAULT")


def tokenizer_choice(context: typer.Context) -> p.ModelChoice | None:
    """The checkpoint of --tokenizer alone, for commands that need no model; None without it."""
    choice = given(context, p.ModelChoice)
    if _names_model(context) or not choice.tokenizer:
        return None
    require_there(choice.tokenizer, "--tokenizer")
    missing_hub(replace(choice, name=p.DEFAULT_MODEL, adapter=None))
    # No weights are loaded: options of their own, such as --revision, are not the tokenizer's.
    return p.ModelChoice(
        name=choice.tokenizer,
        trust_remote_code=choice.trust_remote_code,
        offline=choice.offline,
    )


def requested(context: typer.Context) -> Requested:
    """The quantities that the options ask for at each token."""
    return Requested(**{column.option: context.params[column.option] for column in COLUMNS})


def output_choice(context: typer.Context) -> OutputPlan:
    """The output that the options ask for. Raises UsageError, before a model is loaded, for
    contents that the format has no place for and for a file that is taken."""
    values, output = context.params, given(context, OutputSettings)
    format = format_choice(context, output)
    name = "table" if format is None else format.name
    refuse_conflicts(context, writes=name)
    command = str(context.command.name)
    show, obstacle = given(context, ShowSettings), f"is for the terminal, and {name} is not"
    choice = OutputPlan(
        command=command,
        path=local_path(output.output),
        place=output.output,
        level=str(values.get("level") or LEVELS[command][0]),
        text=output.text,
        # rank alone has --tokens: its rows hold no losses of tokens unless they are asked for.
        tokens=values.get("tokens", output.tokens),
        summary=show.summary,
        words=show.words,
        word_correction=show.word_correction,
        regions=values.get("regions") is not None,
        context_lengths=output.context_lengths,
        pmi=given(context, p.PairPolicy).pmi,
        columns=tuple(column for column in COLUMNS if values.get(column.option)),
        format=format,
        force=output.force,
        bits=show.unit == "bits",
        all_tokens=show.all_tokens,
        strict=given(context, OtherSettings).strict,
        resume=output.resume,
        flags={str(each.name): each.opts[0] for each in context.command.params},
        heat=heat_options(context, obstacle if format else None),
    )
    if format is not None:
        if (conflict := next(format.conflicts(choice), None)) is not None:
            raise UsageError(conflict)
        # A package last: installing it would not help what the format cannot hold.
        format.require_package()
    choice = replace(choice, worst=_n_worst(context, choice))
    prepare(output.output, choice.force, choice.resume)
    if choice.path is not None and choice.resume:
        earlier_output(choice.path)
    elif choice.path is not None:
        resumable = "resume" in values and format is not None and format.resumable
        # Rows of a check that is no shard lack what its diagnosis is made of.
        resumable = resumable and (command != "check" or bool(values["shard"]))
        resumable = resumable and not choice.summary
        refuse_to_overwrite(choice.path, choice.force, resumable)
    return choice


def _n_worst(context: typer.Context, choice: OutputPlan) -> int:
    """Number of worst tokens to list on stdout, or in the file of a table; 0 for no list.

    Raises UsageError where the command line asks for a list that could not be shown; where a
    variable or a file does, that is reported.
    """
    n = given(context, ShowSettings).worst
    if not n or ((choice.format is None or choice.path is not None) and not choice.resume):
        return n
    why = "knows no losses of rows that --resume keeps: `seqloss summarize` lists those of all"
    if choice.path is None and choice.format is not None:
        why = f"is for stdout, and {choice.format.name} goes there: give -o FILE, too"
    if is_typed(context, "worst"):
        raise UsageError(f"--worst {why}")
    say(f"note: --worst {why}; left out")
    return 0


def format_choice(context: typer.Context, settings: OutputSettings) -> Format | None:
    """Return the format that --json, --jsonl or --format ask for, else the one of -o's extension.

    None is for what a person is shown. The command line goes before a variable, and that before a
    file. Raises UsageError when flags contradict each other or the extension says nothing.
    """
    output = settings.output
    known = extensions()
    # -o x.csv on the command line is stronger than a variable that asks for JSON.
    for level in ("COMMANDLINE", "ENVIRONMENT", "DEFAULT_MAP"):
        asked = {
            str(settings.format) if name == "format" else name
            for name in ("json", "jsonl", "format")
            if getattr(settings, name) and is_from(context, name, level)
        }
        if len(asked) > 1:
            raise UsageError("choose one of --json, --jsonl and --format")
        if asked:
            return FORMATS.get(asked.pop())
        if is_from(context, "output", level) and output and output.suffix in known:
            return known[output.suffix]
    if output is None:
        return None
    raise UsageError(
        f"-o {output}: its extension names no format; use {', '.join(known)}, or "
        "say --json, --jsonl or --format"
    )


def heat_options(context: typer.Context, obstacle: str | None) -> HeatOptions | None:
    """The look of coloured texts; None for tables. `obstacle` is why a text cannot be coloured.

    Raises UsageError where the command line asks for heat and there is an obstacle; where a
    variable or a file asks for it, that is reported and tables are taken.
    """
    settings, values = given(context, ShowSettings), context.params
    if settings.view != "heat":
        return None
    if obstacle is not None:
        if is_typed(context, "view"):
            raise UsageError(f"--view heat {obstacle}")
        say(f"note: --view heat {obstacle}; left out")
        return None
    if left := [column.flag for column in COLUMNS if values.get(column.option)]:
        say(f"note: --view heat shows losses only; {', '.join(left)}: in tables and JSON")
    theme, note = choose_theme(settings.theme, os.environ.get("COLORFGBG"))
    return HeatOptions(theme, note, settings.show_whitespace)


def row_options(
    tokenization: Tokenization,
    choice: OutputPlan,
    run: RunInfo,
    word_boundary_ids: WordBoundaryIds | None = None,
) -> RowOptions:
    """Return the content of the rows of a run, as the choice has it."""
    return RowOptions(
        # Both records are made of RowContents: no field of it can be missing in one of them.
        **{each.name: getattr(choice, each.name) for each in fields(RowContents)},
        run=run,
        token_texts=tokenization.token_texts,
        name_token=tokenization.name_token,
        word_boundary_ids=word_boundary_ids,
    )


def table_options(
    tokenization: Tokenization, choice: OutputPlan, word_boundary_ids: WordBoundaryIds | None
) -> TableOptions:
    """Return the content of tables, as the choice has it."""
    return TableOptions(
        token_texts=tokenization.token_texts,
        name_token=tokenization.name_token,
        bits=choice.bits,
        all_tokens=choice.all_tokens,
        summary=choice.summary,
        words=choice.words,
        word_boundary_ids=word_boundary_ids,
        pmi=choice.pmi,
        heat=choice.heat,
        strict=choice.strict,
    )


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Let the error go on to where exit codes are decided: rich would exit with 1 here."""
        # Called while rich handles it, so there is an error to be raised again.
        raise


def console(path: Path | None, sink: BinaryIO) -> Console:
    """Return a console that writes to stdout, or to the sink of a file."""
    if path is not None:
        text = io.TextIOWrapper(sink, encoding="utf-8", write_through=True)
        return _Console(file=text, width=_FILE_WIDTH, markup=False, highlight=False, emoji=False)
    # A terminal of ASCII is to show \u2026, and not a traceback.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return _Console(markup=False, highlight=False, emoji=False)
