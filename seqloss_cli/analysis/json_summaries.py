"""Write summaries, comparisons and objectives as JSON documents.

Field names of the records of this room that go through `asdict` are keys of these documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

from seqloss_cli.analysis.compare import (
    TIE,
    CompareOptions,
    Comparison,
    Comparisons,
    DocumentDifference,
    TokenDifference,
)
from seqloss_cli.analysis.extremes import SequenceExtreme, TokenExtreme
from seqloss_cli.analysis.membership import Membership
from seqloss_cli.analysis.objective import Objective, training_step
from seqloss_cli.analysis.summarize import PositionLoss, Summary, SummaryOptions
from seqloss_cli.core.records import SCHEMA_VERSION
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.metrics.intervals import Estimate
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.results import schema as s
from seqloss_cli.results.files import Difference, ResultsFile
from seqloss_cli.results.schema.score_keys import TOTALS_KEYS, totals_row

Row = dict[str, Any]


def summary_bytes(report: Row) -> bytes:
    """Return a document as a line of JSON, its version first."""
    return s.json_bytes({"schema_version": SCHEMA_VERSION, **report}) + b"\n"


def summary_json(
    summary: Summary,
    files: Sequence[ResultsFile],
    options: SummaryOptions,
    n_unusable: int,
    differences: Mapping[str, list[Difference]],
) -> Row:
    """Return the document of `summarize`.

    `n_unusable` rows of the files could not be read back. `differences` hold how the runs differ
    from the first, by the name of the file.
    """
    rejected = sum((file.rejected for file in files), Counter[str]())
    n_empty_lines = sum(file.n_empty_lines for file in files)
    view = SimpleNamespace(
        summary=summary,
        files=files,
        options=options,
        n_unusable=n_unusable,
        differences=differences,
        totals=totals_row(summary.whole.totals, rejected, n_empty_lines),
    )
    return s.row_of(SUMMARY_KEYS, view)


def _group_totals(view: Any) -> Row:
    # To which group a rejected input would have belonged is not known.
    unknown = {"n_rejected": None, "n_empty_lines": None}
    return totals_row(view.group.totals, {}, 0) | unknown


def _differences(view: Any) -> Row:
    # By file: a difference is of one run from the first, not of all from each other.
    return {name: [asdict(each) for each in found] for name, found in view.differences.items()}


def file_row(file: ResultsFile) -> Row:
    """Return what a document says of a results file that it is made of."""
    return s.row_of(FILE_KEYS, file)


def _quantiles(view: Any) -> Row:
    return {str(q): asdict(value) for q, value in view.group.quantiles.items()}


def _of_whole(key: s.Key, view: Any) -> Any:
    """Return what a key of a group has of the whole."""
    return key.value(SimpleNamespace(group=view.summary.whole))


def _token_quantiles_of(view: Any) -> Row:
    return s.row_of(_QUANTILES_OF, view.summary)


def _extremes(name: str, of: Any) -> s.Key:
    figure = "mean loss" if of is SequenceExtreme else "loss"
    about = f"--worst N: the {name.replace('_', ' ')}, by their {figure}."
    return s.nested(
        name, lambda v: [*map(asdict, v.summary.extremes[name])], of=list[of], about=about
    )


_CountOrNull = int | None
_GROUP_TOTALS = tuple(
    replace(key, of=_CountOrNull, about=f"{key.about}"[:-1] + "; null of a group.")
    if key.name in ("n_rejected", "n_empty_lines")
    else key
    for key in TOTALS_KEYS
)
_MODEL = "The model of its run; null where none was loaded."
_REJECTED = "Inputs that its run rejected."
FILE_KEYS = (
    s.text("file", "name", about="Its name."),
    s.text("model", lambda v: v.run.get("model"), of=str | None, about=_MODEL),
    s.nested("complete", "complete", of=bool, about="Its last line, the totals, is there."),
    s.whole("n_sequences", "n_sequences", about="Sequences in it."),
    s.whole("n_rejected", lambda v: v.rejected.total(), about=_REJECTED),
)
"""Keys of a results file, of which a document is made."""
_ESTIMATE_KEYS = (
    s.nested(
        "estimates",
        lambda v: {name: asdict(estimate) for name, estimate in v.group.estimates.items()},
        of=dict[str, Estimate],
        about="Means with their intervals over documents.",
    ),
    s.nested(
        "sequence_quantiles",
        _quantiles,
        of=dict[str, Estimate],
        about="Quantiles of the sequences' mean losses, nats per token.",
    ),
    s.texts("notes", "group.notes", about="What makes an interval doubtful."),
)
_QUANTILES_OF = (
    s.whole("n", lambda v: len(v.token_losses), about="Tokens that the quantiles are of."),
    s.whole("n_tokens", "n_tokens_seen", about="Scored tokens."),
    s.text(
        "method",
        lambda v: "descriptive: no interval, as tokens of a text are not independent",
        about="Why there is no interval.",
    ),
)
_GROUP_KEYS = (
    s.nested("value", "group.value", of=Any, about="Value of the field of --by."),
    s.nested("totals", _group_totals, of=_GROUP_TOTALS, about="Totals of the group."),
    *_ESTIMATE_KEYS,
)
_RUN = s.nested("run", lambda v: v.files[0].run, of=s.ReadBack(RunInfo), about="The first file's.")
_FILES = s.nested(
    "files", lambda v: [*map(file_row, v.files)], of=[FILE_KEYS], about="The results files."
)
_RUNS_DIFFER = s.nested(
    "runs_differ",
    _differences,
    of=dict[str, list[Difference]],
    about="File to what its run has other than the first.",
)
_RUNS = s.nested(
    "runs",
    lambda v: [file.run for file in v.files],
    of=[s.ReadBack(RunInfo)],
    about="Of each file.",
)
_CLUSTER = s.text(
    "cluster",
    "options.cluster",
    of=str | None,
    about="--cluster: what is drawn as one; null without it.",
)
_CONFIDENCE = s.real("confidence", "options.confidence", of=float, about="Of each interval.")
SUMMARY_KEYS = (
    _FILES,
    _RUN,
    _RUNS_DIFFER,
    s.text("by", "options.by", of=str | None, about="--by: the field of groups; null without it."),
    _CLUSTER,
    _CONFIDENCE,
    s.whole("n_unusable", "n_unusable", about="Rows that could not be read back."),
    s.whole("n_duplicates", "summary.n_duplicates", about="Rows that came before."),
    s.nested("totals", "totals", of=TOTALS_KEYS, about="Totals of all files together."),
    *(replace(key, value=partial(_of_whole, key)) for key in _ESTIMATE_KEYS),
    s.nested(
        "groups",
        lambda v: [
            s.row_of(_GROUP_KEYS, SimpleNamespace(group=group)) for group in v.summary.groups
        ],
        of=[_GROUP_KEYS],
        about="With --by: the groups.",
    ),
    s.nested(
        "token_quantiles",
        lambda v: {str(q): value for q, value in v.summary.token_quantiles.items()},
        of=dict[str, float],
        about="Quantiles of the tokens' losses, nats.",
    ),
    s.nested(
        "token_quantiles_of", _token_quantiles_of, of=_QUANTILES_OF, about="What they are of."
    ),
    s.nested(
        "positions",
        lambda v: [*map(asdict, v.summary.positions)],
        of=list[PositionLoss],
        about="Mean losses by position in the sequence.",
    ),
    *s.only_if(
        lambda v: v.summary.membership is not None,
        s.nested(
            "membership",
            lambda v: asdict(v.summary.membership),
            of=Membership,
            about="With --membership.",
        ),
    ),
    _extremes("worst_sequences", SequenceExtreme),
    _extremes("best_sequences", SequenceExtreme),
    _extremes("worst_tokens", TokenExtreme),
    _extremes("best_tokens", TokenExtreme),
)
"""Keys of the document of `summarize`."""


def comparison_json(
    found: Comparisons,
    files: Sequence[ResultsFile],
    differences: Mapping[str, list[Difference]],
    options: CompareOptions,
) -> Row:
    """Return the document of `compare`; `differences` as in `summary_json`."""
    view = SimpleNamespace(found=found, files=files, differences=differences, options=options)
    view.joined = found.joined
    return s.row_of(COMPARISON_KEYS, view)


def _not_joined(view: Any) -> list[Row]:
    """Return the rows that are in no figure, with the first ids of each kind."""
    return [
        {"file": file.name, "n": len(ids), "ids": ids.first}
        for file, ids in zip(view.files, view.joined.without_partner, strict=True)
    ]


def _left_out(view: Any) -> list[Row]:
    return [
        {"reason": reason, "n": len(ids), "ids": ids.first}
        for reason, ids in view.joined.left_out.items()
    ]


def comparison_row(pair: Comparison, files: Sequence[ResultsFile]) -> Row:
    """Return what a document says of two models."""
    return s.row_of(PAIR_KEYS, SimpleNamespace(pair=pair, files=files))


def test_method(pair: Comparison) -> str:
    """Return the name of the test that gave the p value."""
    how = "every choice of signs" if pair.test.exact else f"{pair.test.n_flips} choices of signs"
    return f"sign-flip permutation of documents, {how}, two-sided"


def _side(name: str, place: int) -> s.Key:
    """Return the key of one of two models; `place` is 0 or 1."""

    def value(view: Any) -> Row:
        pair: Comparison = view.pair
        file = view.files[pair.second if place else pair.first]
        run = {"file": file.name, "model": file.run.get("model")}
        return run | {"total_loss": pair.totals[place], "loss_per_unit": asdict(pair.means[place])}

    return s.nested(name, value, of=Side, about=f"Model {name.upper()}.")


def _n_units(unit: str) -> tuple[s.Key, ...]:
    """Return the key of a count, which is named by its unit."""
    return s.only_if(
        lambda v: v.pair.unit == unit,
        s.whole(f"n_{unit}s", "pair.n_units", about=f"{unit.capitalize()}s of these documents."),
    )


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models of a comparison."""

    file: str
    """Name of the file."""
    model: str | None
    """Its model; None where none was loaded."""
    total_loss: float | None
    """Nats."""
    loss_per_unit: Estimate
    """Nats per token or byte."""


@dataclass(frozen=True, slots=True)
class NotJoined:
    """Rows of a file that no other file has."""

    file: str
    """Name of the file."""
    n: int
    """Number of these rows."""
    ids: list[str]
    """The first of them."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Rows that are in no figure."""

    reason: str
    """Why."""
    n: int
    """Number of these rows."""
    ids: list[str]
    """The first of them."""


PAIR_KEYS = (
    _side("a", 0),
    _side("b", 1),
    s.text(
        "unit",
        lambda v: f"nats per {v.pair.unit}",
        of=Literal["nats per token", "nats per byte"],
        about="Unit of losses and differences.",
    ),
    s.whole("n_documents", "pair.n_documents", about=(Comparison, "n_documents")),
    *_n_units("token"),
    *_n_units("byte"),
    s.nested(
        "difference",
        lambda v: asdict(v.pair.difference),
        of=Estimate,
        about=(Comparison, "difference"),
    ),
    s.nested(
        "bootstrap",
        lambda v: asdict(v.pair.bootstrap),
        of=Estimate,
        about=(Comparison, "bootstrap"),
    ),
    s.real("p", "pair.test.p", about="p value that there is no difference; null of few documents."),
    s.real("p_adjusted", "pair.p_adjusted", about=(Comparison, "p_adjusted")),
    s.text("p_method", lambda v: test_method(v.pair), about="The test."),
    s.whole("n_b_lower", "pair.n_lower", about=(Comparison, "n_lower")),
    s.whole("n_tied", "pair.n_tied", about=(Comparison, "n_tied")),
    s.whole("n_b_higher", "pair.n_higher", about=(Comparison, "n_higher")),
    s.real("correlation", "pair.correlation", about=(Comparison, "correlation")),
    s.nested(
        "difference_shown", "pair.is_significant", of=bool, about=(Comparison, "is_significant")
    ),
    s.texts("notes", "pair.notes", about=(Comparison, "notes")),
    s.nested(
        "documents",
        lambda v: [*map(asdict, v.pair.documents)],
        of=list[DocumentDifference],
        about=(Comparison, "documents"),
    ),
    s.nested(
        "tokens",
        lambda v: [*map(asdict, v.pair.tokens)],
        of=list[TokenDifference],
        about=(Comparison, "tokens"),
    ),
)
"""Keys of two models."""
_SETTINGS = (
    _CONFIDENCE,
    s.whole("bootstrap", "options.bootstrap", about="Resamples."),
    s.whole("seed", "options.seed", about="Seed of these."),
    _CLUSTER,
    s.real("tie", lambda v: TIE, of=float, about="Differences below it are ties, nats."),
)
_JOINED = s.whole("n_joined", "joined.n_joined", about="Rows that every file has.")
_LEFT_OUT = (
    s.nested("not_joined", _not_joined, of=list[NotJoined], about="Rows that a file lacks."),
    s.nested("left_out", _left_out, of=list[LeftOut], about="Joined rows that are in no figure."),
    s.whole("n_without_cluster", "joined.n_without_cluster", about="Rows without that field."),
)
COMPARISON_KEYS = (
    _FILES,
    _RUNS_DIFFER,
    *_SETTINGS,
    _JOINED,
    s.whole("n_joined_by_order", "joined.n_joined_by_order", about="Not by their ids."),
    *_LEFT_OUT,
    s.nested(
        "comparisons",
        lambda v: [comparison_row(pair, v.files) for pair in v.found.pairs],
        of=[PAIR_KEYS],
        about="B against A, each pair.",
    ),
    _RUNS,
)
"""Keys of the document of `compare`."""


def objective_json(
    found: Objective, files: Sequence[ResultsFile], data: list[str], options: CompareOptions
) -> Row:
    """Return the document of `objective`; `data` are the names of its inputs."""
    view = SimpleNamespace(found=found, files=files, data=data, options=options)
    view.joined = found.comparisons.joined
    return s.row_of(OBJECTIVE_KEYS, view)


def _checkpoint_name(file: ResultsFile) -> str:
    """Return the model's name; of a server URL#TOKENIZER, as its own name may be another's, too."""
    engine = file.run.get("engine")
    return f"{engine['url']}#{file.run['tokenizer']}" if engine else str(file.run.get("model"))


def checkpoint_row(file: ResultsFile, totals: Totals, mean: Estimate) -> Row:
    """Return what a document says of a checkpoint, over the rows that every checkpoint has."""
    return s.row_of(CHECKPOINT_KEYS, SimpleNamespace(file=file, totals=totals, mean=mean))


def _checkpoints(view: Any) -> list[Row]:
    found: Objective = view.found
    return [
        checkpoint_row(*each) for each in zip(view.files, found.totals, found.means, strict=True)
    ]


def _best(view: Any) -> str | None:
    best = view.found.best
    return None if best is None else _checkpoint_name(view.files[best])


def _lead(view: Any) -> Row | None:
    lead = view.found.lead
    return None if lead is None else comparison_row(lead, view.files)


def _total(name: str, declare: Callable[..., s.Key] = s.real) -> s.Key:
    return declare(name, f"totals.{name}", about=(Totals, name))


CHECKPOINT_KEYS = (
    s.text("model", lambda v: _checkpoint_name(v.file), about="Its name."),
    s.whole(
        "step",
        lambda v: training_step(_checkpoint_name(v.file)),
        of=int | None,
        about="Training step, read off its name; null where that tells none.",
    ),
    _total("total_loss"),
    # Of the exact sums (rule 1): the estimate's own value is a mean of floats.
    _total("mean_loss"),
    s.real("mean_loss_low", "mean.low", about="Low end of its interval, nats per token."),
    s.real("mean_loss_high", "mean.high", about="High end of its interval, nats per token."),
    s.text("interval_method", "mean.method", about="How it was made."),
    _total("perplexity"),
    _total("bits_per_byte"),
    _total("n_sequences", s.whole),
    _total("n_scored", s.whole),
    s.whole("n_rejected", lambda v: v.file.rejected.total(), about=_REJECTED),
    s.text(
        "weights_sha256",
        lambda v: v.file.run.get("weights_sha256"),
        of=str | None,
        about=(RunInfo, "weights_sha256"),
    ),
)
"""Keys of a checkpoint."""
OBJECTIVE_KEYS = (
    s.texts("data", "data", about="Names of the inputs."),
    s.nested("checkpoints", _checkpoints, of=[CHECKPOINT_KEYS], about="In the order of the files."),
    s.text(
        "best",
        _best,
        of=str | None,
        about="The one of the lowest mean loss; null where none is known.",
    ),
    s.nested(
        "lead",
        _lead,
        of=s.Either((PAIR_KEYS, type(None))),
        about="The best against the next; null of one checkpoint.",
    ),
    _JOINED,
    *_LEFT_OUT,
    *_SETTINGS,
    _RUNS,
)
"""Keys of the document of `objective`."""
