"""The documents that differ most, read again with all their tokens.

While two files are compared only figures are kept; the few documents that are to be looked at are
taken from the files in a second reading.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from seqloss_cli.analysis.comparisons.comparing import Comparisons, DocumentDifference
from seqloss_cli.analysis.comparisons.joining import JoinReport, join, not_comparable
from seqloss_cli.results.schema.scores import ResultRow


@dataclass(frozen=True, slots=True)
class DocumentRows:
    """A document of a comparison, as each of the two files tells of it."""

    difference: DocumentDifference
    a: ResultRow
    b: ResultRow


def documents_of(
    files: Sequence[Iterable[ResultRow]], found: Comparisons, same_tokenizer: bool
) -> list[list[DocumentRows]]:
    """For each pair of the comparison its documents, in the order in which it lists them. `files`
    are those that were compared, in the same order."""
    wanted: dict[tuple[str, int | None], list[tuple[int, int]]] = {}
    for n, pair in enumerate(found.pairs):
        for place, document in enumerate(pair.documents):
            wanted.setdefault((document.id, document.line), []).append((n, place))
    rows: dict[tuple[int, int], DocumentRows] = {}
    for joined in join(files, JoinReport()):
        row = joined[0]
        for n, place in wanted.get((row.id, row.fields.get("line")), ()):
            pair = found.pairs[n]
            document, a, b = pair.documents[place], joined[pair.first], joined[pair.second]
            is_it = (n, place) not in rows and _difference(a, b, same_tokenizer)
            if is_it == document.difference and not not_comparable(joined, same_tokenizer):
                rows[n, place] = DocumentRows(document, a, b)
    return [
        [rows[n, place] for place in range(len(pair.documents)) if (n, place) in rows]
        for n, pair in enumerate(found.pairs)
    ]


def _difference(a: ResultRow, b: ResultRow, same_tokenizer: bool) -> float | None:
    """Per token or byte, as the comparison has it."""
    first, second = a.totals.total_loss, b.totals.total_loss
    units = a.totals.n_scored if same_tokenizer else a.totals.n_scored_bytes
    return None if first is None or second is None or not units else (second - first) / units
