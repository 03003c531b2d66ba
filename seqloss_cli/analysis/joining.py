"""Join rows of several files that are of one input; align losses within one text.

Files are read side by side. While they have the same inputs in the same order, nothing waits; a row
that has not met its partners yet is kept until it does, or the files end, on disk where many are.
Losses of two models are aligned on the bytes of a text, whatever its tokens are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np

from seqloss_cli.core.byte_spans import TokenBytes, TokenSpan
from seqloss_cli.core.errors import UsageError
from seqloss_cli.inputs.duplicates import Waiting
from seqloss_cli.results.schema.scores import ResultRow

Key = tuple[Any, ...]
JoinedRows = tuple[ResultRow, ...]
"""One row of each file, of the same input."""
MOST_IDS = 20
"""Ids that are remembered of rows in no figure."""
UNSPELLED = "text that no token of a model stands for"
WhyNot = Callable[[JoinedRows, bool], str | None]
"""Returns in a few words why joined rows are of no use, or None. The flag says whether the files
have one tokenizer: then tokens are compared, else bytes of the text."""


@dataclass(frozen=True, slots=True)
class RowsUsed:
    """Counts of joined rows: those that a figure was made of, and those that were left out."""

    n_joined: int
    """Rows that all files have."""
    n_used: int
    """Rows that the figure is made of."""
    left_out: dict[str, int]
    """Rows that all files have and that are of no use, by reason."""
    n_alone: list[int]
    """For each file, rows that some other file lacks."""

    @property
    def n_missing(self) -> int:
        """Return the number of rows that are not used, over all files."""
        return sum(self.left_out.values()) + sum(self.n_alone)


@dataclass(slots=True)
class SomeIds:
    """Counts rows of a kind, and remembers the ids of the first."""

    first: list[str] = field(default_factory=list)
    n: int = 0

    def __len__(self) -> int:
        return self.n

    def add(self, identity: str) -> None:
        """Count a row."""
        self.n += 1
        if len(self.first) < MOST_IDS:
            self.first.append(identity)


@dataclass(slots=True)
class JoinReport:
    """The fate of the rows of several files; complete once all of them were read."""

    n_joined: int = 0
    n_joined_by_order: int = 0
    """Rows with one text whose ids agree in no two files: joined in the order of the files."""
    without_partner: list[SomeIds] = field(default_factory=list)
    """For each file the rows that some other file lacks."""
    left_out: dict[str, SomeIds] = field(default_factory=dict)
    """Joined rows that could not be used, by reason."""
    n_without_cluster: int = 0
    """Joined rows that lack the field of clusters in every file."""

    def used(self) -> RowsUsed:
        """Return the counts."""
        left_out = {reason: len(ids) for reason, ids in self.left_out.items()}
        n_used = self.n_joined - sum(left_out.values())
        return RowsUsed(self.n_joined, n_used, left_out, [len(ids) for ids in self.without_partner])


def join(files: Sequence[Iterable[ResultRow]], report: JoinReport) -> Iterator[JoinedRows]:
    """Yield rows with the same text, one of each file. Rows with the same id, too, come first.

    Losses are compared for the same text only (docs/numbers.md, rule 15). Files are read side by
    side, so that a row waits no longer than until its last partner arrives.
    """
    waiting = [Waiting[ResultRow]() for _ in files]
    for step in zip_longest(*files):
        arrived = [(n, row) for n, row in enumerate(step) if row is not None]
        # rows of one step often have one key: it is tried once, in the order of the files
        names = dict.fromkeys((repr(text_key(row)), row.id) for _, row in arrived)
        is_one = len(names) == 1 and len(arrived) == len(files)
        if is_one and not any(own.has(*name) for own in waiting for name in names):
            report.n_joined += 1
            yield tuple(row for _, row in arrived)
            continue
        for n, row in arrived:
            waiting[n].add(repr(text_key(row)), row.id, row, row.totals.n_tokens)
        for key, identity in names:
            if all(own.has(key, identity) for own in waiting):
                report.n_joined += 1
                yield tuple(own.take(key, identity) for own in waiting)
    # rows remain whose ids differ between the files: by their text they belong together
    for key in waiting[0].all_keys():
        while all(own.has(key) for own in waiting):
            report.n_joined += 1
            report.n_joined_by_order += 1
            yield tuple(own.take(key) for own in waiting)
    report.without_partner = [SomeIds(own.ids(MOST_IDS), len(own)) for own in waiting]


def text_key(row: ResultRow) -> Key:
    """Return the identity of a row's input.

    That is the text and, of a pair, its response; for ids without a text the ids and their mask.
    """
    fields = row.fields
    # hashes, and not texts: files written with --no-text can be joined, too
    if (sha := fields.get("text_sha256")) is None:
        return ("ids", fields.get("ids_sha256") or row.id)
    return (sha, fields.get("response_sha256"))


def why_not_comparable(rows: JoinedRows, same_tokenizer: bool) -> str | None:
    """Return in a few words why losses of one input are not comparable."""
    for row in rows:
        if row.totals.total_loss is None:
            return "an infinite loss" if row.totals.n_scored else "nothing scored"
    return why_scored_differently(rows, same_tokenizer)


def why_scored_differently(rows: JoinedRows, same_tokenizer: bool) -> str | None:
    """Return in which way the rows do not score the same tokens (or bytes), if they do not."""
    if not same_tokenizer and any(row.totals.unspelled_bytes for row in rows):
        return UNSPELLED
    for row in rows[1:]:
        if same_tokenizer and not _same_tokens(row, rows[0]):
            return "other tokens are scored"
        if not same_tokenizer and row.totals.n_without_text:
            return "ids without a text, across tokenizers"
        if not same_tokenizer and not _same_bytes(row, rows[0]):
            return "other bytes are scored"
    return None


def join_usable(
    files: Sequence[Iterable[ResultRow]],
    report: JoinReport,
    same_tokenizer: bool,
    why_not: WhyNot = why_not_comparable,
) -> Iterator[JoinedRows]:
    """Yield the joined rows that are of use; the report holds the others by reason.

    Raises UsageError where none is, for text that no token stands for.
    """
    n_used = 0
    for rows in join(files, report):
        if reason := why_not(rows, same_tokenizer):
            report.left_out.setdefault(reason, SomeIds()).add(rows[0].id)
        else:
            n_used += 1
            yield rows
    if not n_used and (ids := report.left_out.pop(UNSPELLED, None)):
        others = (f"; of {len(ids)} {why}" for why, ids in report.left_out.items())
        raise UsageError(
            f"nothing to compare: {len(ids)} rows hold {UNSPELLED}, first {ids.first[0]!r}; a loss "
            "per byte of text that was not predicted means nothing (see unspelled_bytes in rows)"
            f"{''.join(others)}"
        )


def n_units(row: ResultRow, same_tokenizer: bool) -> int:
    """Return what its losses are divided by: scored tokens, across tokenizers scored bytes."""
    return row.totals.n_scored if same_tokenizer else row.totals.n_scored_bytes


def cluster_of(rows: JoinedRows, name: str | None) -> Any:
    """Return the value of the field `name`; None where no row has it, or `name` is None.

    Rows are of one input: a field that only some of the files have holds for all. Raises UsageError
    where they have different values.
    """
    if name is None:
        return None
    found = {repr(value): value for row in rows if (value := row.field(name)) is not None}
    if len(found) > 1:
        raise UsageError(
            f"the files say different things of the {name} of row {rows[0].id!r} "
            f"({', '.join(found)}): --cluster takes a field that they agree on"
        )
    return next(iter(found.values()), None)


def _same_tokens(a: ResultRow, b: ResultRow) -> bool:
    """Compare ids and masks where both rows have them, else how many there are."""
    if (a.totals.n_tokens, a.totals.n_scored) != (b.totals.n_tokens, b.totals.n_scored):
        return False
    if a.tokens is None or b.tokens is None:  # written with --no-tokens: counts are all there is
        return True
    ids_a, ids_b = a.fields.get("token_ids"), b.fields.get("token_ids")
    same_ids = ids_a is None or ids_b is None or np.array_equal(ids_a, ids_b)
    return same_ids and np.array_equal(a.tokens.counted, b.tokens.counted)


def _same_bytes(a: ResultRow, b: ResultRow) -> bool:
    """Compare stretches of bytes where both rows have tokens, else how many bytes there are."""
    if not a.totals.n_scored_bytes or a.totals.n_scored_bytes != b.totals.n_scored_bytes:
        return False
    bytes_a, bytes_b = scored_bytes(a), scored_bytes(b)
    return bytes_a is None or bytes_b is None or bytes_a == bytes_b


def scored_bytes(row: ResultRow) -> list[int] | None:
    """Return the edges of the stretches of bytes that scored tokens cover, start and end in turn.

    None where the row was written without its tokens.
    """
    tokens, offsets = row.tokens, row.fields.get("byte_offsets")
    if tokens is None or offsets is None:
        return None
    covered = TokenBytes(b"", offsets)  # only widths are asked for: the text is not needed
    # a token of no bytes (a prefix space) lies in no stretch: counted, it would cut one in two
    scored = tokens.counted & (covered.widths > 0)
    starts, ends = covered.starts[scored], covered.ends[scored]
    edges = np.stack([starts, ends], axis=1).ravel()
    # an end and a start at the same byte are inside a stretch
    is_edge = np.ones(len(edges), dtype=bool)
    is_edge[1:-1] = np.repeat(ends[:-1] != starts[1:], 2)
    found: list[int] = edges[is_edge].tolist()
    return found


def bytes_of_text(row: ResultRow) -> TokenBytes | None:
    """Return a row's text, and what its tokens cover; None where the row does not hold it."""
    fields = row.fields
    # rows of pairs hold their parts; joined they are the text that the offsets are of
    text, offsets = fields.get("text"), fields.get("byte_offsets")
    if not isinstance(text, str):
        parts = (fields.get("prompt"), fields.get("separator", ""), fields.get("response"))
        if not all(isinstance(part, str) for part in parts):
            return None
        text = "".join(map(str, parts))
    # halves of surrogate pairs can be in JSON, but not in UTF-8
    return None if offsets is None else TokenBytes(text.encode("utf-8", "replace"), offsets)


@dataclass(frozen=True, slots=True)
class LossesOnBytes:
    """The losses of a model's N tokens, and the bytes of the text that they cover."""

    token_bytes: TokenBytes
    losses: Sequence[float | None]
    """Shape N, nats; None where a token does not count."""


@dataclass(frozen=True, slots=True)
class AlignedLosses:
    """The M smallest stretches of a text at whose ends both models have the end of a token."""

    spans: list[TokenSpan]
    """Tokens of A and bytes of each stretch, shape M."""
    losses_a: list[float | None]
    """Losses of A, shape M, nats; None where no token of the stretch counts."""
    losses_b: list[float | None]
    differences: list[float | None]
    """B - A, shape M, nats; None where not both count there, or one is infinite."""
    n_merged: int
    """Stretches that several tokens of A, or of B, cover together."""


def align(a: LossesOnBytes, b: LossesOnBytes) -> AlignedLosses:
    """Return the losses of both models on the stretches of their common text.

    With the same tokens in both, each token has its own stretch, one of no bytes (BOS) included.
    """
    tokens_a, tokens_b = a.token_bytes, b.token_bytes
    if np.array_equal(tokens_a.offsets, tokens_b.offsets):
        spans = spans_b = tokens_a.char_spans()
    else:
        # a stretch that ends within a character could be neither shown nor copied as text
        uncut = tokens_a.offsets[tokens_a.breaks_no_char()]
        edges = np.intersect1d(uncut, tokens_b.offsets).tolist()
        spans, spans_b = (_between(each.offsets.tolist(), edges) for each in (tokens_a, tokens_b))
    losses_a = [sum_of_known(a.losses[span[0] : span[1]]) for span in spans]
    losses_b = [sum_of_known(b.losses[span[0] : span[1]]) for span in spans_b]
    # of two infinite losses the difference is NaN, of one it is infinite: neither can be drawn
    differences = [
        None if x is None or y is None or not math.isfinite(y - x) else y - x
        for x, y in zip(losses_a, losses_b, strict=True)
    ]
    counts = zip(_n_covering(tokens_a, spans), _n_covering(tokens_b, spans_b), strict=True)
    return AlignedLosses(
        spans, losses_a, losses_b, differences, n_merged=sum(max(pair) > 1 for pair in counts)
    )


def _between(offsets: Sequence[int], edges: Sequence[int]) -> list[TokenSpan]:
    """Return the tokens that cover what lies between neighbouring edges.

    Tokens of no bytes go with the token after them, at the end of the text with the one before.
    """
    found, first = list[TokenSpan](), 0
    for start, end in pairwise(edges):
        last = first
        while last < len(offsets) - 1 and offsets[last] < end:
            last += 1
        found.append((first, last, start, end))
        first = last
    if found and first < len(offsets) - 1:
        found[-1] = (found[-1][0], len(offsets) - 1, *found[-1][2:])
    return found


def _n_covering(tokens: TokenBytes, spans: Sequence[TokenSpan]) -> Iterator[int]:
    """Yield for each span how many of its tokens cover any bytes."""
    covers = (tokens.widths > 0).tolist()
    for first, last, _, _ in spans:
        yield sum(covers[first:last])


def sum_of_known(losses: Sequence[float | None]) -> float | None:
    """Return the sum of the losses that are known, in nats; None, and not 0, where none is."""
    known = [loss for loss in losses if loss is not None]
    return math.fsum(known) if known else None
