"""Rows of several results files that are of the same input, and whether they can be compared.

Files are read side by side. As long as they have the same inputs in the same order, nothing waits;
rows that have not met their partners yet are kept until they do, or the files end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np

from seqloss_cli.results import ResultRow

Key = tuple[Any, ...]
Joined = tuple[ResultRow, ...]
"""One row of each file, of the same input."""


@dataclass(slots=True)
class JoinReport:
    n_joined: int = 0
    n_joined_by_order: int = 0
    """Of those, rows with one text whose ids did not tell them apart: taken as they came."""
    alone: list[list[str]] = field(default_factory=list)
    """For each file the ids of rows that have no partner in some other."""


def join(files: Sequence[Iterable[ResultRow]], report: JoinReport) -> Iterator[Joined]:
    """Rows with the same text (rule 15 of the numbers contract compares the same text), and of
    these the ones with the same id first."""
    waiting: list[dict[Key, list[ResultRow]]] = [{} for _ in files]
    for step in zip_longest(*files):
        arrived = [(n, row) for n, row in enumerate(step) if row is not None]
        for n, row in arrived:
            waiting[n].setdefault(text_key(row), []).append(row)
        for _, row in arrived:
            if met := _met(waiting, text_key(row), row.id):
                report.n_joined += 1
                yield met
    yield from _by_order(waiting, report)
    report.alone = [[row.id for rows in own.values() for row in rows] for own in waiting]


def text_key(row: ResultRow) -> Key:
    """What a row is of: its text and, of a pair, what of it is the response; ids without a text by
    the ids."""
    fields = row.fields
    sha = fields.get("text_sha256")
    if sha is None:
        return ("ids", *_of_ids(row))
    return (sha, fields.get("response_sha256"))


def _of_ids(row: ResultRow) -> Key:
    ids = row.fields.get("token_ids")
    if ids is None:
        return (row.id, row.totals.n_tokens)
    return (hashlib.sha256(repr(ids).encode()).hexdigest(),)


def _met(waiting: list[dict[Key, list[ResultRow]]], key: Key, identity: str) -> Joined | None:
    """A row of each file with this text and id, taken out of those that wait."""
    places = []
    for own in waiting:
        rows = own.get(key, ())
        place = next((n for n, row in enumerate(rows) if row.id == identity), None)
        if place is None:
            return None
        places.append(place)
    return tuple(_taken(own, key, place) for own, place in zip(waiting, places, strict=True))


def _by_order(waiting: list[dict[Key, list[ResultRow]]], report: JoinReport) -> Iterator[Joined]:
    """What has the same text under other ids."""
    for key in list(waiting[0]):
        while all(key in own for own in waiting):
            report.n_joined += 1
            report.n_joined_by_order += 1
            yield tuple(_taken(own, key, 0) for own in waiting)


def _taken(own: dict[Key, list[ResultRow]], key: Key, place: int) -> ResultRow:
    row = own[key].pop(place)
    if not own[key]:
        del own[key]
    return row


# -- whether their numbers can be compared ------------------------------------------------------


def not_comparable(rows: Joined, same_tokenizer: bool) -> str | None:
    """Why rows of one input cannot be compared, in a few words."""
    first = rows[0].totals
    for row in rows:
        totals = row.totals
        if totals.total_loss is None:
            return "an infinite loss" if totals.n_scored else "nothing scored"
        if same_tokenizer:
            if (totals.n_tokens, totals.n_scored) != (first.n_tokens, first.n_scored):
                return "other tokens are scored"
            own, others = row.tokens, rows[0].tokens
            if own and others and not np.array_equal(own.counted, others.counted):
                return "other tokens are scored"
        elif totals.n_without_text:
            return "ids without a text, across tokenizers"
        elif not totals.n_scored_bytes:
            return "no byte is scored"
        elif scored_bytes(row) != scored_bytes(rows[0]):
            return "other bytes are scored"
    return None


def scored_bytes(row: ResultRow) -> tuple[Any, ...]:
    """The stretches of bytes that scored tokens cover; only how many where the row was written
    without its tokens."""
    tokens, offsets = row.tokens, row.fields.get("byte_offsets")
    if tokens is None or offsets is None:
        return (row.totals.n_scored_bytes,)
    edges, found = np.array(offsets), list[int]()
    for start, end in zip(edges[:-1][tokens.counted], edges[1:][tokens.counted], strict=True):
        if start == end:
            continue
        if found and found[-1] == start:
            found[-1] = int(end)
        else:
            found += [int(start), int(end)]
    return tuple(found)
