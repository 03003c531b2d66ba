"""`seqloss select`: rows of results, or of their inputs, that are worth keeping."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli import results_io as r
from seqloss_cli.cli.failures import REJECTED, say
from seqloss_cli.cli.inputs import STDIN
from seqloss_cli.cli.progress import STATUS
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.options import INPUT, STATISTICS, command_record, option
from seqloss_cli.results.formats import extensions

if TYPE_CHECKING:
    from seqloss_cli.analysis.select import Buckets, Chooser, Chosen, Sampling
    from seqloss_cli.inputs.options import ReadOptions
    from seqloss_cli.results.files import ResultsOf
    from seqloss_cli.results.schema.scores import ResultRow

_GROUPS_SHOWN = 5


@command_record
class SelectSettings:
    """The rows that are kept, and where they are taken from."""

    PANEL = INPUT

    where: str | None = option(
        None, "Keep rows of which this holds: 'n_tokens > 64 and meta.lang == \"en\"'."
    )
    sample: int | None = option(None, "Keep N of them, drawn at random.", min=1)
    by: str | None = option(
        None, "With --sample: N of each value of this column.", metavar="COLUMN"
    )
    inputs: list[str] | None = option(
        None,
        "Write the rows of FILE, a pattern or a directory that the results came from; may be "
        "given several times.",
    )
    buckets: int | None = option(
        None, "Number N equal parts of --reference; a row gets its `bucket`.", min=2, max=1000
    )
    bucket_by: str | None = option(None, "Column that buckets are cut by.", metavar="COLUMN")
    reference: str | None = option(None, "RESULTS whose quantiles are the cuts.", metavar="FILE")
    seed: int = option(0, "Of the draw.", panel=STATISTICS, min=0)


@o.with_options(
    o.only(r.ResultsArguments, "results"),
    SelectSettings,
    o.only(r.ResultsArguments, "allow_different"),
    o.only(o.OutputSettings, "output", "force", output="Write to FILE (.jsonl)."),
    o.CONFIG,
    o.only(o.OtherSettings, "debug"),
)
def select(ctx: typer.Context) -> None:
    """Choose rows: by a condition on their columns, a sample of each group, buckets.

    Rows are kept as they were written, in their order: those of results, as a results file again,
    or with --inputs those of the data that was scored. A comparison with null is false.

    Examples:
        seqloss score samples/members.jsonl --keep-meta -o results.jsonl
        seqloss select results.jsonl --where 'mean_loss < 3 and n_tokens >= 8'
        seqloss select results.jsonl --sample 2 --by meta.python -o kept.jsonl
        seqloss select results.jsonl --sample 2 --inputs samples/members.jsonl

    """
    from seqloss_cli.analysis.conditions import Condition
    from seqloss_cli.analysis.select import Chooser
    from seqloss_cli.results.sinks import open_sink

    settings, output = o.given(ctx, SelectSettings), o.given(ctx, o.OutputSettings)
    _check_output(ctx, settings)
    condition = None if settings.where is None else Condition(settings.where, "--where")
    run = _Run(o.given(ctx, r.ResultsArguments))
    buckets = _buckets(settings, run)
    chooser = Chooser(condition, buckets, _sampling(settings))
    # Rows of a file that fails are not all that hold: nothing is left of it.
    with open_sink(output.output, output.force, warn=say, keeps=False) as sink:
        STATUS.clear()
        if settings.inputs:
            missing = run.write_inputs(sink, chooser, settings.inputs)
        else:
            missing = run.write_rows(sink, chooser, _described(settings, chooser))
    _say_counts(chooser, run.n_written, output.output)
    if run.reader.n_unusable or missing:
        raise typer.Exit(REJECTED)


class _Run:
    """Results files that are read once, or twice for a sample, and what is written of them."""

    def __init__(self, arguments: r.ResultsArguments) -> None:
        self._names, self.n_written, self._n_by_id = arguments.results, 0, 0
        self._line: bytes | None = None
        files = self._open()
        found = r.differences(files)
        if not arguments.allow_different:
            r.require_same(files, found, "rows that are kept together are of one run")
        r.say_differences(files, found)
        self.run: Mapping[str, Any] = files[0].run
        self.reader, self._files = r.ResultsReader(files), files

    def _open(self) -> list[ResultsOf[ResultRow]]:
        from seqloss_cli.analysis.select import select_kinds

        return [r.open_of(name, select_kinds(), on_line=self._keep) for name in self._names]

    def _keep(self, line: bytes | None) -> None:
        self._line = line

    def _rows(self, files: Sequence[ResultsOf[ResultRow]], quiet: bool) -> Iterator[ResultRow]:
        for file in files:
            self._line = None
            yield from self.reader.rows(file, quiet)

    def write_rows(self, sink: Any, chooser: Chooser, described: Mapping[str, Any]) -> int:
        """Write the rows that are chosen, as a results file; 0, since none of them is missing."""
        from seqloss_cli.analysis.select import row_bytes
        from seqloss_cli.core.records import SCHEMA_VERSION
        from seqloss_cli.metrics.totals import Totals
        from seqloss_cli.results.schema import json_bytes
        from seqloss_cli.results.schema.score_keys import totals_row

        record = {"type": "run", "schema_version": SCHEMA_VERSION, **self.run}
        header = json_bytes({**record, "selection": described}) + b"\n"
        totals, adds = Totals(), chooser.buckets is not None
        for row in self._chosen(chooser):
            # Not before: a column that no row has is found at the first, and nothing is written.
            if not self.n_written:
                sink.write(header)
            line = row_bytes(self._line, row.fields, chooser.bucket_of(row), adds)
            sink.write(line + b"\n")
            totals, self.n_written = totals + row.totals, self.n_written + 1
        chooser.require_seen(self.reader.drops_fields)
        if not self.n_written:
            sink.write(header)
        sink.write(json_bytes({"type": "totals", **totals_row(totals, {}, 0)}) + b"\n")
        return 0

    def _chosen(self, chooser: Chooser) -> Iterator[ResultRow]:
        """Yield the rows that are chosen, in order; of a sample the second time they are read."""
        if chooser.sampling is None:
            yield from (row for row in self._rows(self._files, False) if chooser.holds(row))
            return
        for row in self._rows(self._files, False):
            if chooser.holds(row):
                chooser.draw(row)
        chooser.require_seen(self.reader.drops_fields)
        numbers, _ = chooser.drawn()
        for number, row in enumerate(self._rows(self._open(), True)):
            if number in numbers:
                yield row

    def _held(self, chooser: Chooser) -> Iterator[Chosen]:
        """Yield the keys of rows of which the condition holds, after they took part in a draw."""
        from seqloss_cli.analysis.select import key_of_row

        for row in self._rows(self._files, False):
            if chooser.holds(row):
                key, has_text = key_of_row(row.fields)
                self._n_by_id += not has_text
                told = key, chooser.bucket_of(row)
                if chooser.sampling is not None:
                    chooser.draw(row, told)
                yield told

    def write_inputs(self, sink: Any, chooser: Chooser, names: Sequence[str]) -> int:
        """Write the inputs whose rows are chosen; returns how many of those were not found."""
        from seqloss_cli.analysis.select import ChosenInputs
        from seqloss_cli.inputs.reading import read_written

        options = _read_options(self.run)
        names = [file for name in names for file in _files_with_rows(name, options)]
        # Lines of text have no place for it.
        adds = chooser.buckets is not None and not options.lines
        held = self._held(chooser)
        if chooser.sampling is not None:
            deque(held, maxlen=0)
            held = iter(chooser.drawn()[1])
        chosen = ChosenInputs(held, adds)
        chooser.require_seen(self.reader.drops_fields)
        for name in names:
            for line in chosen.lines(read_written(name, options)):
                sink.write(line + b"\n")
        self.n_written = chosen.n_written
        if self._n_by_id:
            say(
                f"note: {self._n_by_id:,} rows are of chats or ids: joined without a hash of "
                "their text"
            )
        if chosen.n_alike:
            say(
                f"note: inputs left out that have the id and text of one that is written: "
                f"{chosen.n_alike:,}; the first are written"
            )
        if missing := chosen.n_missing:
            if not chosen.n_written:
                raise UsageError(
                    f"--inputs {names[0]}: none of the {missing:,} rows that are kept came from "
                    "it: no input has their id and text"
                )
            say(f"warning: rows that are kept and are in none of --inputs: {missing:,}")
        return missing


def _files_with_rows(name: str, options: ReadOptions) -> list[str]:
    """Return the files of a name, a pattern or a directory; texts among the latter are left out.

    Raises UsageError where all are texts.
    """
    from seqloss_cli.inputs.names import expanded
    from seqloss_cli.inputs.options import Kind

    files = expanded([name], say)
    with_rows = [each for each in files if options.kind_of(each) is not Kind.text]
    if not with_rows:
        raise UsageError(f"--inputs {name}: was scored as one text, and has no rows")
    if n := len(files) - len(with_rows):
        say(f"note: --inputs {name}: {n} files that were scored as one text each are left out")
    return with_rows


def _read_options(run: Mapping[str, Any]) -> Any:
    """Return how the run read its inputs."""
    from seqloss_cli.inputs.options import ReadOptions
    from seqloss_cli.inputs.rows import PairFields

    reading = run.get("reading")
    if reading is None:
        raise UsageError(
            "--inputs: the results do not say how their inputs were read (from Python)"
        )
    pairs = None
    if reading.get("prompt_field") is not None:
        names = ("prompt_field", "response_field", "separator", "chat")
        pairs = PairFields(*(reading[name] for name in names))
    own = {name: reading[name] for name in ("lines", "jsonl", "text_field", "max_bytes")}
    return ReadOptions(**own, pairs=pairs)


def _check_output(context: typer.Context, settings: SelectSettings) -> None:
    """Raises UsageError for a file that rows cannot be written to."""
    path, known = o.given(context, o.OutputSettings).output, extensions()
    if path is not None and path.suffix in known and path.suffix != ".jsonl":
        raise UsageError(f"-o {path}: rows are kept as they were written: JSON lines, .jsonl")
    r.check_places(context, "output")
    if settings.sample and STDIN in context.params["results"] and not settings.inputs:
        raise UsageError("--sample reads results twice: put what comes on stdin in a file")


def _sampling(settings: SelectSettings) -> Sampling | None:
    from seqloss_cli.analysis.select import Sampling, column_path

    by = None if settings.by is None else column_path(settings.by)
    return None if settings.sample is None else Sampling(settings.sample, by, settings.seed)


def _buckets(settings: SelectSettings, run: _Run) -> Buckets | None:
    """Return the cuts of the reference set, which are reported."""
    from seqloss_cli.analysis.select import buckets_of, column_path, select_kinds

    if settings.buckets is None or settings.bucket_by is None or settings.reference is None:
        return None
    file = r.open_of(settings.reference, select_kinds())
    if found := [each for each in r.differences([_as_file(run), file]).values() if each]:
        for difference in found[0]:
            say(f"note: --reference {file.name} against the results: {difference}")
    reader = r.ResultsReader([file])
    by = column_path(settings.bucket_by)
    buckets, n_null = buckets_of(reader.rows(file), by, settings.buckets)
    cuts = ", ".join(f"{cut:.6g}" for cut in buckets.cuts.tolist())
    left = f"; {n_null:,} rows without a value" if n_null else ""
    say(f"{settings.bucket_by} is cut at {cuts} by {file.name}{left}")
    return buckets


def _as_file(run: _Run) -> Any:
    return run.reader.files[0]


def _described(settings: SelectSettings, chooser: Chooser) -> dict[str, Any]:
    """Return what the run's record says of the selection."""
    found: dict[str, Any] = {"where": settings.where}
    if chooser.sampling is not None:
        found |= {"sample": settings.sample, "by": settings.by, "seed": settings.seed}
    if chooser.buckets is not None:
        found |= {"bucket_by": settings.bucket_by, "reference": settings.reference}
        found |= {"cuts": chooser.buckets.cuts.tolist()}
    return found


def _say_counts(chooser: Chooser, n_written: int, path: Any) -> None:
    counts, sampling = chooser.counts, chooser.sampling
    to = "" if path is None else f": {path}"
    drawn = f", drawn from {counts.n_held:,}" if sampling else ""
    say(f"kept {n_written:,} of {counts.n_rows:,} rows{drawn}{to}")
    if counts.n_null_rows:
        columns = ", ".join(f"{name} {n:,}" for name, n in counts.nulls.most_common())
        say(
            f"note: in {counts.n_null_rows:,} rows a comparison was with null, and false: null is "
            f"{columns or 'what is divided by 0, or too large'}"
        )
    if flags := ", ".join(chooser.unseen_flags):
        say(f"note: no row has {flags}, which is 0 then")
    if counts.n_without_bucket:
        say(f"note: {counts.n_without_bucket:,} rows have no bucket: the column is null")
    if sampling is None or sampling.by is None:
        if sampling and counts.n_held < sampling.n:
            say(f"note: fewer rows than --sample {sampling.n} are there")
        return
    few = {value: n for (_, value), n in counts.groups.items() if n < sampling.n}
    if few:
        named = ", ".join(f"{value} {n:,}" for value, n in [*few.items()][:_GROUPS_SHOWN])
        more = ", …" if len(few) > _GROUPS_SHOWN else ""
        say(
            f"note: {len(few):,} of {len(counts.groups):,} groups have fewer rows than --sample "
            f"{sampling.n}: {named}{more}"
        )
    if counts.n_without_group:
        say(f"note: {counts.n_without_group:,} rows without a value of --by are a group")
