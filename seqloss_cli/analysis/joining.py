"""Rows of several results files that are of the same input, and whether they can be compared.

Files are read side by side. As long as they have the same inputs in the same order, nothing waits;
rows that have not met their partners yet are kept until they do, or the files end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np

from seqloss_cli.core.errors import UsageError
from seqloss_cli.results.schema.scores import ResultRow

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


class _Waiting:
    """Rows of a file that have not met their partners, by text and then by id."""

    def __init__(self) -> None:
        self._rows: dict[Key, dict[str, deque[ResultRow]]] = {}

    def add(self, row: ResultRow) -> None:
        self._rows.setdefault(text_key(row), {}).setdefault(row.id, deque()).append(row)

    def has(self, key: Key, identity: str | None = None) -> bool:
        return key in self._rows and (identity is None or identity in self._rows[key])

    def take(self, key: Key, identity: str | None = None) -> ResultRow:
        """With that id, else the one that came first."""
        by_id = self._rows[key]
        identity = next(iter(by_id)) if identity is None else identity
        row = by_id[identity].popleft()
        if not by_id[identity]:
            del by_id[identity]
        if not by_id:
            del self._rows[key]
        return row

    def texts(self) -> list[Key]:
        return list(self._rows)

    def ids(self) -> list[str]:
        return [row.id for by_id in self._rows.values() for rows in by_id.values() for row in rows]


def join(files: Sequence[Iterable[ResultRow]], report: JoinReport) -> Iterator[Joined]:
    """Rows with the same text (rule 15 of the numbers contract compares the same text), and of
    these the ones with the same id first."""
    waiting = [_Waiting() for _ in files]
    for step in zip_longest(*files):
        arrived = [(n, row) for n, row in enumerate(step) if row is not None]
        for n, row in arrived:
            waiting[n].add(row)
        for key, identity in dict.fromkeys((text_key(row), row.id) for _, row in arrived):
            if all(own.has(key, identity) for own in waiting):
                report.n_joined += 1
                yield tuple(own.take(key, identity) for own in waiting)
    for key in waiting[0].texts():
        while all(own.has(key) for own in waiting):
            report.n_joined += 1
            report.n_joined_by_order += 1
            yield tuple(own.take(key) for own in waiting)
    report.alone = [own.ids() for own in waiting]


def text_key(row: ResultRow) -> Key:
    """What a row is of: its text and, of a pair, what of it is the response; ids without a text by
    the ids and which of them count."""
    fields = row.fields
    if (sha := fields.get("text_sha256")) is None:
        return ("ids", fields.get("ids_sha256") or row.id)
    return (sha, fields.get("response_sha256"))


# -- whether their numbers can be compared ------------------------------------------------------


def cluster_of(rows: Joined, name: str | None) -> Any:
    """The value of the field of that name; None where there is none, or none is asked for. Rows are
    of one input: what only some of the files say of it holds for all. UsageError where they say
    different things."""
    if name is None:
        return None
    found = {repr(value): value for row in rows if (value := row.field(name)) is not None}
    if len(found) > 1:
        raise UsageError(
            f"the files say different things of the {name} of row {rows[0].id!r} "
            f"({', '.join(found)}): --cluster takes a field that they agree on"
        )
    return next(iter(found.values()), None)


def not_comparable(rows: Joined, same_tokenizer: bool) -> str | None:
    """Why rows of one input cannot be compared, in a few words."""
    for row in rows:
        if row.totals.total_loss is None:
            return "an infinite loss" if row.totals.n_scored else "nothing scored"
    return scored_apart(rows, same_tokenizer)


def scored_apart(rows: Joined, same_tokenizer: bool) -> str | None:
    """In which way it is not the same that is scored in all of them."""
    for row in rows[1:]:
        if same_tokenizer and not _same_tokens(row, rows[0]):
            return "other tokens are scored"
        if not same_tokenizer and row.totals.n_without_text:
            return "ids without a text, across tokenizers"
        if not same_tokenizer and not _same_bytes(row, rows[0]):
            return "other bytes are scored"
    return None


def _same_tokens(a: ResultRow, b: ResultRow) -> bool:
    """By ids and mask where both rows have them, else by how many there are."""
    if (a.totals.n_tokens, a.totals.n_scored) != (b.totals.n_tokens, b.totals.n_scored):
        return False
    if a.tokens is None or b.tokens is None:
        return True
    of_a, of_b = a.fields.get("token_ids"), b.fields.get("token_ids")
    same_ids = of_a is None or of_b is None or np.array_equal(of_a, of_b)
    return same_ids and np.array_equal(a.tokens.counted, b.tokens.counted)


def _same_bytes(a: ResultRow, b: ResultRow) -> bool:
    """By stretches of bytes where both rows have their tokens, else by how many bytes there are."""
    if not a.totals.n_scored_bytes or a.totals.n_scored_bytes != b.totals.n_scored_bytes:
        return False
    of_a, of_b = scored_bytes(a), scored_bytes(b)
    return of_a is None or of_b is None or of_a == of_b


def scored_bytes(row: ResultRow) -> list[int] | None:
    """Starts and ends of the stretches of bytes that scored tokens cover; None where the row was
    written without its tokens."""
    tokens, edges, found = row.tokens, row.fields.get("byte_offsets"), list[int]()
    if tokens is None or edges is None:
        return None
    for start, end in zip(edges[:-1][tokens.counted], edges[1:][tokens.counted], strict=True):
        if start == end:
            continue
        if found and found[-1] == start:
            found[-1] = int(end)
        else:
            found += [int(start), int(end)]
    return found
