"""`seqloss summarize`: what results come to, and how sure that is."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli import results_io as r
from seqloss_cli.cli.failures import REJECTED, say
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.options import INPUT, STATISTICS, command_record, option, values_of


@command_record
class SummarizeSettings:
    """Groups of rows, and resampling."""

    PANEL = STATISTICS

    by: str | None = option(
        None,
        "Also by the values of this field (id, source, meta.NAME).",
        panel=INPUT,
        metavar="FIELD",
    )
    bootstrap: int = option(0, "Resamples, in place of the standard error.", min=0)
    block: int | None = option(None, "Tokens of a block where there is one text.", min=1)

    def __post_init__(self) -> None:
        """Raises UsageError for resamples that are too few for an interval."""
        if 0 < self.bootstrap < r.LEAST_RESAMPLES:
            raise UsageError(f"--bootstrap takes 0, or {r.LEAST_RESAMPLES} and more")


@o.with_options(
    o.only(r.ResultsArguments, "results"),
    o.only(SummarizeSettings, "by"),
    r.INTERVALS,
    o.only(SummarizeSettings, "bootstrap", "block"),
    r.MembershipSettings,
    o.only(r.ResultsArguments, "allow_different"),
    o.only(r.StatisticsSettings, "n_extremes"),
    o.only(o.ShowSettings, "unit"),
    r.SUMMARY_OUTPUT,
    o.CONFIG,
    o.only(o.OtherSettings, "debug"),
)
def summarize(ctx: typer.Context) -> None:
    """Totals, means, quantiles and extremes of results, without a model.

    Each mean has an interval: documents are what was drawn at random, tokens never. One long text
    is resampled in blocks. The totals are those that the run itself printed.

    Examples:
        seqloss score samples/texts.jsonl --keep-meta -o results.jsonl
        seqloss summarize results.jsonl
        seqloss summarize results.jsonl --by meta.kind --worst 20 --json
        seqloss summarize shard-*.jsonl --cluster meta.document --bootstrap 2000
        seqloss summarize results.jsonl --membership --label meta.member

    """
    from seqloss_cli.analysis.json_summaries import summary_json
    from seqloss_cli.analysis.membership import MembershipScores
    from seqloss_cli.analysis.summarize import SummaryOptions
    from seqloss_cli.analysis.summarize import summarize as summed
    from seqloss_cli.display.terminal.summaries import summary_view
    from seqloss_cli.display.terminal.writer import loss_answer
    from seqloss_cli.results.schema import json_bytes

    arguments, own = o.given(ctx, r.ResultsArguments), o.given(ctx, SummarizeSettings)
    r.check_output(ctx)
    r.check_places(ctx, "scores")
    settings, asked = o.given(ctx, r.MembershipSettings), r.membership_options(ctx)
    membership = MembershipScores(asked, settings.scores is not None)
    options = SummaryOptions(**values_of(o.given(ctx, r.StatisticsSettings)) | values_of(own))
    reader = r.ResultsReader([r.open_one(name, whole=True) for name in arguments.results])
    files = reader.files
    shown = r.differences(files)
    if not arguments.allow_different:
        r.require_same(files, shown, "a summary is of one run")
    r.say_differences(files, shown)
    summary = summed(
        chain.from_iterable(reader.each()), options, membership if settings.membership else None
    )
    totals = summary.whole.totals
    r.require_field("--by", options.by, summary.n_without_by, totals.n_sequences, reader)
    r.require_field(
        "--cluster", options.cluster, summary.n_without_cluster, totals.n_sequences, reader
    )
    r.require_membership_fields(asked, membership, reader)
    # Of several documents it is documents that are resampled: tokens of one depend on each other.
    if options.block and totals.n_sequences_scored != 1:
        say("warning: --block is for one text; the intervals are over documents")
    if summary.n_duplicates:
        say(f"warning: {summary.n_duplicates:,} rows came before, with the same id and text")
    rejected = sum((file.rejected for file in files), Counter[str]())
    with r.open_second(ctx, settings.scores) as sink:
        if sink is not None:
            sink.writelines(json_bytes(row) + b"\n" for row in membership.rows())
    unit = r.unit_of(ctx)
    r.write_summary(
        ctx,
        summary_json(summary, files, options, reader.n_unusable, shown),
        lambda: summary_view(summary, options, unit, rejected),
        [loss_answer(totals, unit)],
    )
    if reader.n_unusable:
        raise typer.Exit(REJECTED)
