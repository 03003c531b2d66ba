"""`--distribute ray`: inputs are cut into shards; workers score them; the results are merged.

The driver holds no rows and no model. Whatever ends, workers, machines or the driver, shards that
are whole stay, and those that are not have the rows that were finished.
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from seqloss_cli.cli.failures import INTERRUPTED, REJECTED, RejectionReport, say
from seqloss_cli.cli.inputs import STDIN, Inputs
from seqloss_cli.cli.options import OtherSettings, given
from seqloss_cli.cli.places import deliver
from seqloss_cli.cli.progress import STATUS, Wait, waiting
from seqloss_cli.core.errors import RunError, SeqlossError, UsageError
from seqloss_cli.core.options import CLUSTER, command_record, option
from seqloss_cli.core.policies import ModelChoice

if TYPE_CHECKING:
    from seqloss_cli.cli.cluster import Pool, RayMessages, Wanted
    from seqloss_cli.cli.settings import OutputPlan
    from seqloss_cli.cli.shard_worker import Body, Call
    from seqloss_cli.results.shard_folders import ShardFolder
    from seqloss_cli.results.shards import ShardFile

Scheduler = Literal["ray"]
FREE = (
    *("distribute", "ray_address", "workers", "gpus_per_worker", "shard_dir"),
    *("output", "json", "jsonl", "format", "level", "force", "resume", "files", "config", "debug"),
    *("device", "threads", "compile", "devices", "batch_tokens", "concurrency", "probe"),
    *("engine_timeout", "api_key_file", "insecure_http", "offline", "unit", "all_tokens", "worst"),
    *("view", "theme", "show_whitespace", "verify", "probe_tolerance", "engine"),
)
"""Parameters that another run may have otherwise, and go on with the same shards."""
_NUMBERS = re.compile(r"\d[\d,.]*")
_PER_WORKER, _PER_WORKER_READ_THROUGH = 8, 2
"""Shards for each worker: what a lost worker or a slow one costs is a part of one. Of inputs that
each shard reads from their beginning there are few."""


@command_record
class DistributeSettings:
    """The cluster whose workers score, and where they write."""

    PANEL = CLUSTER

    distribute: Scheduler | None = option(
        None, "ray: workers of a Ray cluster score shards of the inputs."
    )
    ray_address: str | None = option(
        None, "A running cluster; by default the cores of this machine.", metavar="ADDRESS"
    )
    workers: int | None = option(None, "Processes with the model each.", min=1)
    gpus_per_worker: float | None = option(
        None, "GPUs of each worker; 1 where there are any.", min=0
    )
    shard_dir: Path | None = option(
        None, "Directory or URL of the shards; FILE.shards by default.", metavar="DIR"
    )


def is_asked(context: typer.Context) -> bool:
    """Return whether the command is to be distributed."""
    return given(context, DistributeSettings).distribute is not None


def n_shards_of(n_workers: int, is_cut: bool) -> int:
    """Return how many shards inputs are cut into; `is_cut` where each is found without reading what
    is before it as rows."""
    return n_workers * (_PER_WORKER if is_cut else _PER_WORKER_READ_THROUGH)


@dataclass(slots=True)
class _Run:
    """A distributed run, from its options to its merged results."""

    context: typer.Context
    choice: OutputPlan
    body: Body
    inputs: Inputs
    folder: ShardFolder
    plan: dict[str, Any]
    """Names what the shards are of; it stands beside them."""
    first: ShardFile | None = None
    """A shard that is whole: others must be of its run."""
    n_replaced: int = 0
    """Shards of an earlier run that --force writes over."""
    told: Counter[str] = field(default_factory=Counter)
    """Messages of workers, without their numbers, and how often each came."""
    wait: Wait = field(default_factory=lambda: Wait("starting", "Ray"))

    @property
    def n_shards(self) -> int:
        """Return the number of shards, once it is settled."""
        return int(self.plan["shards"])


def distribute(
    context: typer.Context,
    choice: OutputPlan,
    body: Body,
    inputs_of: Callable[[typer.Context], Inputs],
) -> int:
    """Score the inputs of a command by workers, and write what came of them; returns the exit code.

    Raises UsageError for shards of another run, and RunError where a shard cannot be scored.
    """
    from seqloss_cli.cli.settings import model_choice
    from seqloss_cli.models.files import require_names

    run = _prepared(context, choice, body, _inputs(context, inputs_of))
    if _is_merged(run):
        return _nothing_to_do(run)
    _drop_half_merged(run)
    require_names(model_choice(context))
    whole = _whole_shards(run)
    try:
        if not whole or len(whole) < run.n_shards:
            _score(run, whole)
        return _merge(run)
    except SeqlossError:
        # As by a slip in an option: nothing is there to go on with.
        if run.plan.get("shards") and not run.folder.has_rows(run.n_shards):
            run.folder.clear(run.n_shards)
        raise
    except KeyboardInterrupt:
        say(f"interrupted; shards that are finished are in {run.folder.shown}: --resume goes on")
        raise typer.Exit(INTERRUPTED) from None


def _inputs(context: typer.Context, inputs_of: Callable[[typer.Context], Inputs]) -> Inputs:
    """The inputs, as one shard would read them. Raises UsageError for those that have no shards."""
    context.params["shard"] = "0/1"
    try:
        inputs = inputs_of(context)
    finally:
        context.params["shard"] = None
    if STDIN in inputs.names:
        raise UsageError(
            "--distribute: workers on other machines cannot read stdin; name files, or URLs"
        )
    return inputs


def _prepared(context: typer.Context, choice: OutputPlan, body: Body, inputs: Inputs) -> _Run:
    """The run, with the plan that its shards have or are to have.

    Raises UsageError where shards of another run, or without --resume, are in its directory.
    """
    from seqloss_cli.results.shard_folders import ShardFolder, require_same_plan

    own = given(context, DistributeSettings)
    place = own.shard_dir or Path(f"{context.params['output']}.shards")
    folder = ShardFolder.of(place)
    plan = {
        "type": "plan",
        "command": choice.command,
        "inputs": [*(inputs.reading or {})["inputs"]],
        "input_bytes": _input_bytes(inputs),
        "options": _options(context),
        "template_date": datetime.now().replace(microsecond=0).isoformat(),
    }
    run = _Run(context, choice, body, inputs, folder, plan)
    there = folder.read_plan()
    if there is None:
        return run
    if choice.force:
        run.n_replaced = int(there["shards"])
        return run
    if not choice.resume:
        raise UsageError(
            f"{folder.shown} holds shards of an earlier run: --resume goes on with them, --force "
            "begins anew"
        )
    require_same_plan(there, run.plan, folder.shown)
    run.plan = dict(there)
    return run


def _input_bytes(inputs: Inputs) -> list[int | None]:
    shard = (inputs.reading or {}).get("shard") or {}
    return [*shard.get("input_bytes", ())]


def _options(context: typer.Context) -> dict[str, Any]:
    """Return what was given of the options that decide what rows hold."""
    from seqloss_cli.cli.conflicts import is_from

    values = {
        each.opts[0]: context.params[each.name]
        for each in context.command.params
        if each.name in context.params
        and each.name not in FREE
        and not is_from(context, each.name, "DEFAULT")
    }
    return {
        name: value if isinstance(value, bool | int | float | list) else str(value)
        for name, value in values.items()
        if value is not None
    }


# -- scoring ---------------------------------------------------------------------------------------


def _whole_shards(run: _Run) -> dict[int, int]:
    """Return the shards that an earlier run finished, with how many rows they have."""
    if "shards" not in run.plan:
        return {}
    with waiting("reading", f"shards in {run.folder.shown}"):
        whole = run.folder.whole(run.n_shards)
    say(f"going on with {run.folder.shown}: {len(whole)} of {run.n_shards} shards are whole")
    run.first = next((_opened(run, index) for index in whole), None)
    return whole


def _score(run: _Run, whole: Mapping[int, int]) -> None:
    """Have workers score the shards that are missing."""
    from seqloss_cli.cli.cluster import answers, connected, n_fitting

    STATUS.show(run.wait.line)
    own, debug = given(run.context, DistributeSettings), given(run.context, OtherSettings).debug
    with connected(own.ray_address, _wanted(run.context), debug) as (pool, nodes, ray):
        if "shards" not in run.plan:
            run.plan["shards"] = n_shards_of(pool.workers, run.inputs.span is not None)
        run.folder.clear(run.n_replaced)
        run.folder.write_plan(run.plan)
        missing = [n for n in range(run.n_shards) if n not in whole]
        _say_pool(run, pool, len(missing))
        if nodes and (n := n_fitting(pool, nodes)) < pool.workers:
            each = f"{pool.cpus} CPUs" + (f" and {pool.gpus:g} GPUs" if pool.gpus else "")
            say(f"note: the cluster has room for {n} of {pool.workers} workers of {each} as it is")
        wait = run.wait = Wait("scoring", f"{len(whole)} of {run.n_shards} shards")
        wait.n_done = sum(whole.values())
        STATUS.show(wait.line)
        for n, answer in enumerate(answers(_call(run, pool), missing, pool), len(whole) + 1):
            _take(run, answer, ray)
            wait.name = f"{n} of {run.n_shards} shards"
            wait.n_done += int(answer["n_rows"])
            STATUS.say_plain(lambda: f"{wait.name}, {wait.n_done:,} rows")
    STATUS.clear()
    _say_more(run)


def _wanted(context: typer.Context) -> Wanted:
    from seqloss_cli.cli.cluster import Wanted

    own, device = given(context, DistributeSettings), given(context, ModelChoice).device
    has_engine = bool(context.params.get("engine"))
    gpus = 0 if device == "cpu" and own.gpus_per_worker is None else own.gpus_per_worker
    threads = given(context, ModelChoice).threads
    return Wanted(own.workers, threads, gpus, uses_gpus=not has_engine)


def _say_pool(run: _Run, pool: Pool, n_missing: int) -> None:
    threads = "" if pool.threads is None else f" of {pool.threads} threads"
    gpus = f" with {pool.gpus:g} GPUs" if pool.gpus else ""
    of = f"{run.n_shards} shards" if n_missing == run.n_shards else f"{n_missing} shards"
    say(f"{pool.workers} workers{threads}{gpus} score {of}: {run.folder.shown}")


def _call(run: _Run, pool: Pool) -> Call:
    """The command, as workers are to run it."""
    from seqloss_cli.cli.shard_worker import Call

    context = run.context
    names = {str(each.name): each.opts[0] for each in context.command.params}
    sources = {name: context.get_parameter_source(name) for name in context.params}
    typed: Any = type(sources["distribute"])
    typed = typed.COMMANDLINE
    params = dict(context.params)
    if pool.threads is not None:
        params["threads"], sources["threads"] = pool.threads, typed
    if pool.gpus > 1:
        params["devices"], sources["devices"] = int(pool.gpus), typed
    if params.get("template_date", "") is None:
        # A template that reads the clock is told one time by all workers.
        params["template_date"] = run.plan["template_date"]
    return Call(
        run.body,
        run.choice.command,
        params,
        sources,
        names,
        run.folder,
        run.n_shards,
        uuid.uuid4().hex,
    )


def _take(run: _Run, answer: Mapping[str, Any], ray: RayMessages) -> None:
    """Report what a worker tells of its shard. Raises RunError where the shard failed."""
    from seqloss_cli.results.shards import require_one_run

    place = f"shard {answer['shard']}/{run.n_shards}"
    worker = f"process {answer['pid']} on {answer['host']}"
    if lost := answer.get("lost"):
        why = ray.cause(int(lost["pid"])) or "killed, out of memory, or lost with its machine"
        say(
            f"warning: {place}: its worker (process {lost['pid']} on {lost['host']}) was lost "
            f"({why}); {worker} went on with it"
        )
    for message in answer["messages"]:
        run.told[kind := _NUMBERS.sub("N", message)] += 1
        if run.told[kind] == 1:
            say(message)
    if "error" in answer:
        kept = run.folder.has_rows(run.n_shards)
        error = RunError if answer["exit_code"] != UsageError.exit_code else UsageError
        raise error(
            f"{place} ({worker}): {answer['error']}"
            + (f"; {run.folder.shown} keeps what is finished, and --resume goes on" if kept else "")
        )
    file = _opened(run, int(answer["shard"]))
    run.first = run.first or file
    require_one_run(run.first, file)


def _say_more(run: _Run) -> None:
    """Report how often messages came of which the first was told."""
    for kind, n in run.told.items():
        if n > 1:
            say(f"{kind.partition(':')[0]}: {n - 1:,} more of other shards like {kind[:60]!r}…")


def _opened(run: _Run, index: int) -> ShardFile:
    from seqloss_cli.core.errors import RowError
    from seqloss_cli.results.shards import open_shard

    name = run.folder.shard(index, run.n_shards)
    try:
        return open_shard(name)
    except RowError as error:
        raise RunError(
            f"{name}: {error.message}: do this machine and its workers see one directory? "
            "--shard-dir names one"
        ) from error


# -- merging ---------------------------------------------------------------------------------------


def _merge(run: _Run) -> int:
    """Write the results of all shards as those of one run."""
    from seqloss_cli.cli.merge import merge_files

    pool = given(run.context, DistributeSettings)
    record = {
        "by": pool.distribute,
        "shards": run.n_shards,
        "input_bytes": run.plan["input_bytes"],
        "options": run.plan["options"],
    }
    files = [_opened(run, index) for index in range(run.n_shards)]
    format = run.choice.format
    assert format is not None
    _drop_half_merged(run)
    output, more = run.context.params["output"], {"distributed": record}
    merged = merge_files(files, format.name, output, run.choice.force, more, RejectionReport())
    if run.choice.place is None:
        say(f"the shards stay in {run.folder.shown}")
    else:
        run.folder.clear(run.n_shards)
    return REJECTED if merged.rejected.total() else 0


def _drop_half_merged(run: _Run) -> None:
    """Remove what a driver that was killed while it merged left of the file.

    Raises UsageError for rows of a run that was not distributed: they would be lost.
    """
    from seqloss_cli.results.resume import recorded_run
    from seqloss_cli.results.sinks import named, partial_path

    path, format = run.choice.path, run.choice.format
    if path is None or not run.choice.resume or not (partial := partial_path(path)).exists():
        return
    # Of other formats none is gone on with.
    if format is not None and format.resumable:
        there = recorded_run(partial)
        if there is not None and "distributed" not in there:
            raise UsageError(
                f"--resume: {named(partial)} is of a run without --distribute, which alone goes on "
                "with it; --force writes over it"
            )
    partial.unlink()


def _is_merged(run: _Run) -> bool:
    path = run.choice.path
    return run.choice.resume and path is not None and path.exists()


def _nothing_to_do(run: _Run) -> int:
    """Say that a finished file is the one that was asked for. Raises UsageError where it is not."""
    from seqloss_cli.results.shard_folders import require_same_plan
    from seqloss_cli.results.sinks import named

    path = "" if run.choice.path is None else named(run.choice.path)
    record, totals = _record_and_totals(run)
    there = record.get("distributed")
    if not isinstance(there, dict) or totals is None:
        raise UsageError(
            f"--resume: {path} is no whole file of a distributed run; --force writes over it"
        )
    reading = record.get("reading") or {}
    plan = {"command": record.get("command"), "inputs": reading.get("inputs"), **there}
    require_same_plan(plan, run.plan, path)
    say(
        f"{path} is whole: {totals['n_sequences']:,} sequences, {totals['n_rejected']:,} rejected; "
        "nothing to do"
    )
    # Of a URL it was fetched, or never put there.
    deliver(run.choice.place, unless_there=True)
    if run.folder.read_plan() is not None:
        run.folder.clear(int(run.plan.get("shards") or there["shards"]))
    return REJECTED if totals["n_rejected"] else 0


def _record_and_totals(run: _Run) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """Return the run record of the finished file, and its totals."""
    from seqloss_cli.results.shards import totals_at_end

    path, format = str(run.choice.path), run.choice.format
    assert format is not None
    assert format.read is not None
    records = (record for _, record in format.read(path))
    first: Any = next(records, None)
    if not isinstance(first, dict):
        return {}, None
    if format.name != "json":
        return first, totals_at_end(path)
    *_, last = records
    return first, last if isinstance(last, dict) and last.get("type") == "totals" else None
