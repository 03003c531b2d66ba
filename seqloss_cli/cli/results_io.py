"""Results as commands read them, and the summaries that they write: as JSON or for a person."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import typer

from seqloss_cli.cli.failures import RejectionReport, say
from seqloss_cli.cli.inputs import STDIN
from seqloss_cli.cli.options import OutputSettings, ShowSettings, given, only
from seqloss_cli.cli.progress import STATUS, Wait, is_typed
from seqloss_cli.core.errors import RowError, RunError, UsageError, did_you_mean, did_you_mean_file
from seqloss_cli.core.options import (
    POLICIES,
    SHOW,
    STATISTICS,
    argument,
    command_record,
    option,
    values_of,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from seqloss_cli.analysis.compare import CompareOptions
    from seqloss_cli.analysis.joining import JoinReport
    from seqloss_cli.analysis.membership import MembershipOptions, MembershipScores
    from seqloss_cli.display.terminal.formatting import Unit
    from seqloss_cli.results.files import Difference, ResultsFile, ResultsOf
    from seqloss_cli.results.schema import RowKind
    from seqloss_cli.results.schema.scores import ResultRow

Row = TypeVar("Row")
_MOST_FIELDS = 20
LEAST_RESAMPLES = 100
"""With fewer, the ends of an interval would be single draws."""


@command_record
class ResultsArguments:
    """The results files of a command, and whether their runs may differ."""

    PANEL = POLICIES

    results: list[str] = argument("RESULTS", "Results: .jsonl, .json or .parquet.", required=True)
    allow_different: bool = option(False, "Take runs whose policies differ together.")


@command_record
class StatisticsSettings:
    """Intervals of figures, and figures that are listed one by one."""

    PANEL = STATISTICS

    cluster: str | None = option(
        None,
        "Field (source, meta.NAME) that rows share which were not drawn independently.",
        metavar="FIELD",
    )
    seed: int = option(0, "Of resampling.", min=0)
    confidence: float = option(0.95, "Of the intervals.", min=0.5, max=0.9999)
    n_extremes: int = option(10, "How many extremes are listed.", flag="--worst", panel=SHOW, min=0)
    bootstrap: int = option(2000, "Resamples.", min=LEAST_RESAMPLES)


@command_record
class MembershipSettings:
    """Scores of membership, and the labels and pairs of documents."""

    PANEL = STATISTICS

    membership: bool = option(False, "Scores that tell texts the model was trained on.")
    min_k: float = option(20.0, "Percentage of tokens, the least likely, of min_k.", max=100)
    label: str | None = option(
        None,
        "Field that is 1 or true of members: AUROC, TPR at 1 % and 0.1 % FPR.",
        metavar="FIELD",
    )
    pair: str | None = option(
        None, "Field that a text and its lower case share (lower_ratio).", metavar="FIELD"
    )
    scores: Path | None = option(None, "Also write each document's scores to FILE (.jsonl).")

    def __post_init__(self) -> None:
        """Raises UsageError for a percentage that is none."""
        if not 0 < self.min_k <= 100:
            raise UsageError(f"--min-k takes a percentage above 0, not {self.min_k:g}")


INTERVALS = only(StatisticsSettings, "cluster", "seed", "confidence")
SUMMARY_OUTPUT = only(
    OutputSettings, "json", "output", "force", output="Write to FILE (.json or .txt)."
)


class ResultsReader:
    """Results files that are being read, and how many rows of them could not be used."""

    def __init__(self, files: Sequence[ResultsFile] = ()) -> None:
        self.files, self.n_unusable = list(files), 0
        self.fields: dict[str, None] = {}
        """Names of fields that rows can be grouped by: those of the first row of each file."""
        self.drops_fields = False
        """Some rows were written without the fields of their inputs."""
        self._wait = Wait("reading", ", ".join(file.name for file in self.files))

    def _show(self, file: ResultsOf[Any]) -> None:
        """Show on a terminal what is read, and how many rows of it were."""
        if not self.files:
            self._wait = Wait("reading", file.name)
        if not is_typed([file.name.replace("<stdin>", STDIN)]):
            STATUS.show(self._wait.line)

    def rows(self, file: ResultsOf[Row], quiet: bool = False) -> Iterator[Row]:
        """The usable rows of a file; the others are reported and counted, unless `quiet`.

        Raises RunError where the file itself is cut off or damaged.
        """
        from seqloss_cli.core.records import Rejected

        self.drops_fields |= not (file.run.get("reading") or {}).get("keep_meta")
        is_first, unusable = True, RejectionReport()
        if not quiet:
            self._show(file)
        try:
            for row in file.rows:
                self._wait.n_done += 1
                if not isinstance(row, Rejected):
                    if is_first:
                        self.fields |= dict.fromkeys(getattr(row, "field_names", ()))
                        is_first = False
                    yield row
                elif not quiet:
                    self.n_unusable += 1
                    unusable.add(row)
        # A bad row is `Rejected`: an error is of the file itself, which is cut off or damaged.
        except RowError as error:
            raise RunError(f"{file.name}: {error.message} ({error.reason})") from error
        unusable.end()
        if not file.complete and not quiet:
            say(f"warning: {file.name} is not complete: its run did not come to its end")
        if file.part and not quiet:
            say(f"warning: {file.name} {file.part}")

    def each(self, quiet: bool = False) -> list[Iterator[ResultRow]]:
        """The usable rows of each file."""
        return [self.rows(file, quiet) for file in self.files]


def open_one(
    name: str, shown: str | None = None, top1: bool = False, whole: bool = False
) -> ResultsFile:
    """Open what `score` or `cond` wrote. `shown` is its name in messages; `whole` reads texts and
    all arrays, too. Raises UsageError when it holds no results."""
    from seqloss_cli.results.schema.scores import loss_kinds

    return open_of(name, loss_kinds(top1, whole), shown)


def open_of(
    name: str,
    kinds: Mapping[str, RowKind[Any]],
    shown: str | None = None,
    on_line: Callable[[bytes | None], object] | None = None,
) -> ResultsOf[Any]:
    """Open what one of the commands in `kinds` wrote; `on_line` is told the bytes of its rows.

    Raises UsageError for what is no results.
    """
    from seqloss_cli.core.escaping import shown_path
    from seqloss_cli.results.files import open_any

    if not name:
        raise UsageError("'' is an empty name, and no file")
    try:
        file = open_any(name, kinds, on_line)
    except RowError as error:
        near = did_you_mean_file(Path(name)) if error.reason == "no_such_file" else ""
        if error.message.startswith("holds no results"):
            near = "; `seqloss score FILE -o results.jsonl` writes results"
        raise UsageError(f"{shown_path(name)}: {error.message}{near}") from error
    file.name = shown or file.name
    return file


def differences(files: Sequence[ResultsFile], *keys: Sequence[str]) -> dict[str, list[Difference]]:
    """Differences of each run from the first, by its file's name: of these keys of its record."""
    from seqloss_cli.results.files import run_differences

    return {file.name: run_differences(files[0].run, file.run, *keys) for file in files[1:]}


def require_same(
    files: Sequence[ResultsFile],
    found: Mapping[str, Sequence[Difference]],
    why: str,
    mend: str = " (--allow-different)",
) -> None:
    """Raises UsageError naming what differs between the first run and another."""
    for name, each in found.items():
        if each:
            named = "; ".join(map(str, each))
            raise UsageError(f"{name} and {files[0].name} differ: {named}; {why}{mend}")


def say_differences(
    files: Sequence[ResultsFile], found: Mapping[str, Sequence[Difference]]
) -> None:
    """Report how each run, by its file's name, differs from the first."""
    for name, each in found.items():
        for difference in each:
            say(f"note: {name} against {files[0].name}: {difference}")


def settle_runs(
    files: list[ResultsFile], allow_different: bool
) -> tuple[dict[str, list[Difference]], bool]:
    """The differences of the runs from the first, by file, and whether all have the same tokens.

    Raises UsageError when their policies differ and that is not allowed.
    """
    from seqloss_cli.core.run_record import POLICIES
    from seqloss_cli.results.files import NUMERICS, TEMPLATE_DATE, TOKENIZER

    if not allow_different:
        why = "their losses are not of the same tokens"
        require_same(files, differences(files, POLICIES), why)
    shown = differences(files, (*POLICIES, *TOKENIZER, *NUMERICS, TEMPLATE_DATE))
    say_differences(files, shown)
    say_servers(files)
    # With other policies other tokens are scored, of the same bytes: they are compared per byte.
    same = not any(differences(files, (*POLICIES, *TOKENIZER)).values())
    return shown, same


def say_servers(files: Sequence[ResultsFile]) -> bool:
    """Report which losses come from a server, where others do not; returns whether any do."""
    servers = [(file.run.get("engine") or {}).get("url") for file in files]
    if any(servers) and not all(servers):
        for file, url in zip(files, servers, strict=True):
            say(f"note: losses of {file.name} come from {url or 'a model that was run here'}")
    return any(servers)


def model_label(run: Mapping[str, Any]) -> str:
    """A model with its adapter and quantisation."""
    adapter, quantization = run.get("adapter"), run.get("quantization")
    with_adapter = f" with {adapter}" if adapter else ""
    return f"{run.get('model')}{with_adapter}" + (f", {quantization}" if quantization else "")


def labels_of(files: list[ResultsFile]) -> list[str]:
    """Models by name where that tells them apart, else the files."""
    models = [model_label(file.run) for file in files]
    if len(set(models)) == len(files):
        return models
    # The same model on other data, or under other policies. One file may be given twice, too.
    names = [file.name for file in files]
    return names if len(set(names)) == len(files) else [chr(65 + n) for n in range(len(files))]


def require_field(
    flag: str, name: str | None, n_without: int, n_rows: int, reader: ResultsReader
) -> None:
    """Raises UsageError when no row has the field that rows are to be grouped by."""
    if name is None or not n_rows:
        return
    if n_without == n_rows:
        of_meta = [each for each in reader.fields if each.startswith("meta.")]
        kept = "; those of the inputs need --keep-meta" if reader.drops_fields else ""
        if of_meta:
            kept = f"; fields: {', '.join(of_meta[:_MOST_FIELDS])}"
        near = did_you_mean(name, of_meta if name.startswith("meta.") else reader.fields)
        raise UsageError(f"{flag} {name}: no row has such a field{kept}{near}")
    if n_without:
        say(f"warning: {flag} {name}: {n_without:,} of {n_rows:,} rows have no such field")
    # The files say nothing of fields that were not kept: one of this name may well be meant.
    if name == "source" and reader.drops_fields:
        say(
            f"note: {flag} source is the file that a row was read from; a field source of the "
            "inputs needs --keep-meta, and is meta.source then"
        )


def say_what_was_left_out(report: JoinReport, files: list[ResultsFile]) -> None:
    """Report rows without a partner, rows that are left out, and rows that are joined by order."""
    for file, ids in zip(files, report.without_partner, strict=True):
        if ids:
            few = ", ".join(ids.first[:3]) + (", …" if len(ids) > 3 else "")
            say(f"warning: {file.name}: {len(ids)} rows have no partner: {few}")
    for reason, ids in report.left_out.items():
        say(f"warning: {len(ids)} rows are left out: {reason} (first {ids.first[0]})")
    if n := report.n_joined_by_order:
        say(f"note: {n} rows of one text under other ids, taken in order")


def membership_options(context: typer.Context) -> MembershipOptions:
    """The settings of scores of membership."""
    from seqloss_cli.analysis.membership import MembershipOptions

    settings = given(context, MembershipSettings)
    return MembershipOptions(settings.min_k, settings.pair, settings.label)


def require_membership_fields(
    options: MembershipOptions, scores: MembershipScores, reader: ResultsReader
) -> None:
    """Raises UsageError when no document has the field of labels, or of pairs."""
    n = scores.n_rows
    require_field("--label", options.label, scores.n_without_label, n, reader)
    require_field("--pair", options.pair, scores.n_without_pair_field, n, reader)


def unit_of(context: typer.Context) -> Unit:
    """The unit of losses in tables."""
    from seqloss_cli.display.terminal.formatting import Unit

    return Unit(given(context, ShowSettings).unit == "bits")


def comparison_options(context: typer.Context) -> CompareOptions:
    """The settings of a comparison of models."""
    from seqloss_cli.analysis.compare import CompareOptions

    return CompareOptions(**values_of(given(context, StatisticsSettings)))


def check_output(context: typer.Context) -> None:
    """Raises UsageError, before any work is done, for a format or file that -o is not to have."""
    wants_json(context)
    check_places(context, "output")


def check_places(context: typer.Context, *parameters: str) -> None:
    """Raises UsageError where a file that an option names is taken or could not be written."""
    from seqloss_cli.cli.conflicts import WRITTEN
    from seqloss_cli.results.sinks import refuse_to_overwrite

    for name in parameters:
        if (path := context.params.get(name)) is not None:
            force = given(context, OutputSettings).force
            refuse_to_overwrite(path, force, flag=WRITTEN[name])


@contextmanager
def open_second(context: typer.Context, path: Path | None) -> Iterator[BinaryIO | None]:
    """Open a file that a command writes beside -o's; None without a path."""
    from seqloss_cli.results.sinks import open_sink

    force = given(context, OutputSettings).force
    if path is None:
        yield None
        return
    with open_sink(path, force, warn=say) as sink:
        yield sink
    say(f"wrote {path}")


def write_summary(
    context: typer.Context,
    report: dict[str, Any],
    views: Callable[[], Iterable[RenderableType]],
    answers: Iterable[str],
) -> None:
    """Write it to -o or stdout, as JSON or as the views for a person; with -o the answers are
    reported."""
    from seqloss_cli.analysis.json_summaries import summary_bytes
    from seqloss_cli.cli.settings import console
    from seqloss_cli.results.sinks import open_sink

    output, as_json = given(context, OutputSettings), wants_json(context)
    with open_sink(output.output, output.force, warn=say) as sink:
        STATUS.clear()
        if as_json:
            sink.write(summary_bytes(report))
        else:
            # Held until the file is whole: a console that goes closes it.
            terminal = console(output.output, sink)
            _print(terminal, views())
    if output.output is not None:
        for answer in answers:
            say(f"{answer}: {output.output}")


def _print(terminal: Console, views: Iterable[RenderableType]) -> None:
    for n, view in enumerate(views):
        if n:
            terminal.print()
        # rich would cut what is too long off: it is to go on in the next line
        terminal.print(view, crop=False)


def wants_json(context: typer.Context) -> bool:
    """--json, or a file of that name. Raises UsageError when the extension of -o says neither."""
    output = given(context, OutputSettings)
    path = output.output
    if output.json or path is None or path.suffix == ".txt":
        return output.json
    if path.suffix == ".json":
        return True
    raise UsageError(f"-o {path}: its extension names no format; use .json or .txt, or say --json")
