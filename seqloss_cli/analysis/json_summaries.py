"""Write summaries, comparisons and objectives as JSON documents.

Field names of the records of this room that go through `asdict` are keys of these documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from seqloss_cli.analysis.compare import TIE, CompareOptions, Comparison, Comparisons
from seqloss_cli.analysis.joining import JoinReport
from seqloss_cli.analysis.objective import Objective, training_step
from seqloss_cli.analysis.summarize import GroupSummary, Summary, SummaryOptions
from seqloss_cli.core.records import SCHEMA_VERSION
from seqloss_cli.metrics.intervals import Estimate
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.results.files import Difference, ResultsFile
from seqloss_cli.results.schema import json_bytes
from seqloss_cli.results.schema.score_keys import totals_row

Row = dict[str, Any]
_MOST_IDS = 20
"""Ids of rows that are left out, of each kind; all of them are counted."""


def summary_bytes(report: Row) -> bytes:
    """Return a document as a line of JSON, its version first."""
    return json_bytes({"schema_version": SCHEMA_VERSION, **report}) + b"\n"


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
    # to which group a rejected input would have belonged is not known
    unknown = {"n_rejected": None, "n_empty_lines": None}
    return {
        "files": [file_row(file) for file in files],
        "run": files[0].run,
        "runs_differ": _differences(differences),
        "by": options.by,
        "cluster": options.cluster,
        "confidence": options.confidence,
        "n_unusable": n_unusable,
        "n_duplicates": summary.n_duplicates,
        "totals": totals_row(summary.whole.totals, rejected, n_empty_lines),
        **_estimates(summary.whole),
        "groups": [
            {"value": group.value, "totals": totals_row(group.totals, {}, 0) | unknown}
            | _estimates(group)
            for group in summary.groups
        ],
        "token_quantiles": {str(q): value for q, value in summary.token_quantiles.items()},
        "token_quantiles_of": {
            "n": len(summary.token_losses),
            "n_tokens": summary.n_tokens_seen,
            "method": "descriptive: no interval, as tokens of a text are not independent",
        },
        "positions": [asdict(position) for position in summary.positions],
        **({} if summary.membership is None else {"membership": asdict(summary.membership)}),
        **{kind: [asdict(each) for each in found] for kind, found in summary.extremes.items()},
    }


def _differences(differences: Mapping[str, list[Difference]]) -> Row:
    # by file: a difference is of one run from the first, not of all from each other
    return {name: [asdict(each) for each in found] for name, found in differences.items()}


def file_row(file: ResultsFile) -> Row:
    """Return what a document says of a results file that it is made of."""
    return {
        "file": file.name,
        "model": file.run.get("model"),
        "complete": file.complete,
        "n_sequences": file.n_sequences,
        "n_rejected": file.rejected.total(),
    }


def _estimates(group: GroupSummary) -> Row:
    return {
        "estimates": {name: asdict(estimate) for name, estimate in group.estimates.items()},
        "sequence_quantiles": {str(q): asdict(value) for q, value in group.quantiles.items()},
        "notes": group.notes,
    }


def comparison_json(
    found: Comparisons,
    files: Sequence[ResultsFile],
    differences: Mapping[str, list[Difference]],
    options: CompareOptions,
) -> Row:
    """Return the document of `compare`; `differences` as in `summary_json`."""
    return {
        "files": [file_row(file) for file in files],
        "runs_differ": _differences(differences),
        **_settings(options),
        "n_joined": found.joined.n_joined,
        "n_joined_by_order": found.joined.n_joined_by_order,
        **_left_out(found.joined, files),
        "comparisons": [comparison_row(pair, files) for pair in found.pairs],
        "runs": [file.run for file in files],
    }


def _settings(options: CompareOptions) -> Row:
    return {
        "confidence": options.confidence,
        "bootstrap": options.bootstrap,
        "seed": options.seed,
        "cluster": options.cluster,
        "tie": TIE,
    }


def _left_out(report: JoinReport, files: Sequence[ResultsFile]) -> Row:
    """Return the rows that are in no figure, with the first ids of each kind."""
    return {
        "not_joined": [
            {"file": file.name, "n": len(ids), "ids": ids[:_MOST_IDS]}
            for file, ids in zip(files, report.without_partner, strict=True)
        ],
        "left_out": [
            {"reason": reason, "n": len(ids), "ids": ids[:_MOST_IDS]}
            for reason, ids in report.left_out.items()
        ],
        "n_without_cluster": report.n_without_cluster,
    }


def comparison_row(pair: Comparison, files: Sequence[ResultsFile]) -> Row:
    """Return what a document says of two models."""
    return {
        "a": _side(files[pair.first], pair.totals[0], pair.means[0]),
        "b": _side(files[pair.second], pair.totals[1], pair.means[1]),
        "unit": f"nats per {pair.unit}",
        "n_documents": pair.n_documents,
        f"n_{pair.unit}s": pair.n_units,
        "difference": asdict(pair.difference),
        "bootstrap": asdict(pair.bootstrap),
        "p": pair.test.p,
        "p_adjusted": pair.p_adjusted,
        "p_method": test_method(pair),
        "n_b_lower": pair.n_lower,
        "n_tied": pair.n_tied,
        "n_b_higher": pair.n_higher,
        "correlation": pair.correlation,
        "difference_shown": pair.is_significant,
        "notes": pair.notes,
        "documents": [asdict(entry) for entry in pair.documents],
        "tokens": [asdict(entry) for entry in pair.tokens],
    }


def test_method(pair: Comparison) -> str:
    """Return the name of the test that gave the p value."""
    how = "every choice of signs" if pair.test.exact else f"{pair.test.n_flips} choices of signs"
    return f"sign-flip permutation of documents, {how}, two-sided"


def _side(file: ResultsFile, total: float | None, mean: Estimate) -> Row:
    run = {"file": file.name, "model": file.run.get("model")}
    return run | {"total_loss": total, "loss_per_unit": asdict(mean)}


def objective_json(
    found: Objective, files: Sequence[ResultsFile], data: list[str], options: CompareOptions
) -> Row:
    """Return the document of `objective`; `data` are the names of its inputs."""
    lead, best = found.lead, found.best
    return {
        "data": data,
        "checkpoints": [
            checkpoint_row(*each) for each in zip(files, found.totals, found.means, strict=True)
        ],
        "best": None if best is None else _checkpoint_name(files[best]),
        "lead": None if lead is None else comparison_row(lead, files),
        "n_joined": found.comparisons.joined.n_joined,
        **_left_out(found.comparisons.joined, files),
        **_settings(options),
        "runs": [file.run for file in files],
    }


def _checkpoint_name(file: ResultsFile) -> str:
    """Return the model's name; of a server URL#TOKENIZER, as its own name may be another's, too."""
    engine = file.run.get("engine")
    return f"{engine['url']}#{file.run['tokenizer']}" if engine else str(file.run.get("model"))


def checkpoint_row(file: ResultsFile, totals: Totals, mean: Estimate) -> Row:
    """Return what a document says of a checkpoint, over the rows that every checkpoint has."""
    model = _checkpoint_name(file)
    return {
        "model": model,
        "step": training_step(model),
        "total_loss": totals.total_loss,
        # of the exact sums (rule 1): the estimate's own value is a mean of floats
        "mean_loss": totals.mean_loss,
        "mean_loss_low": mean.low,
        "mean_loss_high": mean.high,
        "interval_method": mean.method,
        "perplexity": totals.perplexity,
        "bits_per_byte": totals.bits_per_byte,
        "n_sequences": totals.n_sequences,
        "n_scored": totals.n_scored,
        "n_rejected": file.rejected.total(),
        "weights_sha256": file.run.get("weights_sha256"),
    }
