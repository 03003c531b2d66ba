"""Find out what a server is, and whether its numbers are to be believed, before a row is sent.

Known to be wrong: prompt log-probabilities that depend on the order of requests, while a prefix
cache is on (vLLM issue 42019); those of another `logprobs_mode` than `raw_logprobs`; zeros.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson

from seqloss_cli.backends.server.asking import Server
from seqloss_cli.backends.server.known_rows import (
    RECORDED_TOKENS,
    KnownRow,
    difference_of_beginnings,
)
from seqloss_cli.backends.server.openai import OpenAi, Way
from seqloss_cli.backends.server.protocols import GIVE_NONE, Answer, Question, hint_of
from seqloss_cli.backends.server.transport import Refused, Transport
from seqloss_cli.core.errors import RowError, RunError, UsageError
from seqloss_cli.core.escaping import escape
from seqloss_cli.core.records import Floats
from seqloss_cli.core.run_record import WEIGHTS

N_ALTERNATIVES = 20
"""Alternatives asked for in a probe: the most that servers give."""
_MOST_SHOWN = 20
"""Models of a server that are listed."""
KEPT_SECONDS = 24 * 3600
"""Seconds for which a probe's result holds: a server may be started again with other options."""
_CHECKS = 5
"""Raised with each check that is added: a result of an older version holds for less."""
_SHORTEST_TWICE = 4
"""Ids of a row of which there is a part to repeat."""
_ALMOST_ALL = 0.9
"""Mass of the alternatives from which on a sum of more than 1 would show."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A server's own word on itself."""

    kind: str
    """`vllm`, `sglang`, `openai`, or `seqloss`, which speaks as vLLM does."""
    model: str
    version: str | None
    max_model_len: int | None
    dtype: str | None
    weights: Mapping[str, str] = field(default_factory=dict)
    """By keys of run records; `seqloss serve` alone tells of them."""
    tokenizer_sha256: str | None = None
    fingerprint: str | None = None
    """`Server` has it, too."""


@dataclass(frozen=True, slots=True)
class Probe:
    """The result of a probe."""

    worst_difference: float
    """Nats, over tokens, between answers for the same row in other company."""
    normalised: bool | None
    """The alternatives' probabilities add up to 1 at most, and to nearly 1 somewhere; None where
    that cannot be told."""
    at: str
    """UTC, ISO 8601."""
    tolerance: float
    """Nats, to which all that was asked was held."""
    known: list[KnownRow]
    """One, or two that begin alike."""
    longest: int
    """Tokens of the longest row that was held to itself."""
    way: Way | None = None
    """The way in which a server of OpenAI's shape is asked; None for others."""


def identify(transport: Transport, kind: str | None, model: str | None) -> Identity:
    """Ask a server what it is; `kind` and `model` are what the URL says, None for any kind, and for
    the only model.

    Raises RunError where it is none that gives log-probabilities of prompts, UsageError where it
    has no such model, or several; and where its words are no texts: JSON may hold halves of
    characters.
    """
    found = _identified(transport, kind, model)
    for each in (found.model, found.version, found.dtype, *found.weights.values()):
        try:
            (each or "").encode()
        except UnicodeEncodeError:
            raise RunError(
                f"{transport.url} says {each!r:.80} of itself, which is no text"
            ) from None
    return found


def _identified(transport: Transport, kind: str | None, model: str | None) -> Identity:
    listed = _asked(transport, "/v1/models")
    models = listed.get("data") if isinstance(listed, dict) else None
    cards = (
        [each for each in models if isinstance(each, dict) and each.get("id")]
        if isinstance(models, list)
        else []
    )
    if kind in (None, "sglang") and not any(map(_is_vllm, cards)):
        found = _asked(transport, "/get_model_info")
        if isinstance(found, dict) and "model_path" in found:
            more = _asked(transport, "/get_server_info")
            served = _sglang(found, more if isinstance(more, dict) else {})
            _require_model(transport, [served.model], model)  # /generate is of no other
            return served
    if not cards:
        what = "names no model at /v1/models" if listed is not None else "has no /v1/models"
        raise RunError(f"{transport.url} {what}: is it the right address? {GIVE_NONE}")
    card = cards[_require_model(transport, [str(each["id"]) for each in cards], model)]
    version = None
    if kind in (None, "vllm", "openai"):
        found = _asked(transport, "/version")
        version = found.get("version") if isinstance(found, dict) else None
        kind = kind or ("vllm" if _is_vllm(card) or version else "openai")
        if kind == "vllm" and card.get("owned_by") == "seqloss":
            kind = "seqloss"
    if kind == "openai" and version is None:
        version = _version_of(_asked(transport, "/openapi.json"))
    # vLLM's cards of LoRA modules name the model that they are for, and no length.
    parents = [each for each in cards if each["id"] == card.get("parent")]
    lengths = [each.get("max_model_len") for each in (card, *parents)]
    said = {name: value for name, value in card.items() if isinstance(value, str)}
    is_ours = card.get("owned_by") == "seqloss"
    return Identity(
        kind, str(card["id"]), version,
        next((each for each in lengths if isinstance(each, int)), None), said.get("dtype"),
        {name: said[name] for name in WEIGHTS if is_ours and name in said},
        said.get("tokenizer_sha256") if is_ours else None,
        said.get("system_fingerprint") if is_ours else None,
    )  # fmt: skip


def _require_model(transport: Transport, served: Sequence[str], named: str | None) -> int:
    """Return the number of the model that is asked; UsageError where none is it, or several."""
    if named is not None and named in served:
        return served.index(named)
    if named is None and len(served) == 1:
        return 0
    shown = ", ".join(escape(each) for each in served[:_MOST_SHOWN])
    more = len(served) - _MOST_SHOWN
    shown += f" and {more} more" if more > 0 else ""
    if named is not None:
        raise UsageError(f"--engine: {transport.url} has no model {named!r}, but {shown}")
    raise UsageError(
        f"--engine: {transport.url} has {len(served)} models: {shown}; name one: "
        f"'{transport.url}?model={quote(served[0])}'"
    )


def _version_of(description: Any) -> str | None:
    """Return name and version of a program that describes its own routes, as FastAPI's do."""
    info = description.get("info") if isinstance(description, dict) else None
    if not isinstance(info, dict) or info.get("title") in (None, "", "FastAPI"):
        return None  # its author gave it no name
    return f"{info['title']} {info.get('version')}"[:80]


def _is_vllm(card: Mapping[str, Any]) -> bool:
    return card.get("owned_by") in ("vllm", "seqloss")


def _sglang(info: Mapping[str, Any], more: Mapping[str, Any]) -> Identity:
    length = more.get("context_length") or more.get("max_total_num_tokens")
    dtype = more.get("dtype")
    return Identity(
        "sglang", str(info["model_path"]), more.get("version"),
        length if isinstance(length, int) else None, dtype if dtype not in (None, "auto") else None,
    )  # fmt: skip


def _asked(transport: Transport, path: str) -> Any:
    try:
        return transport.get(path)
    except (Refused, RowError):
        return None


# -- probes --------------------------------------------------------------------------------------


def probe(
    server: Server,
    rows: Sequence[Sequence[int]],
    known: Sequence[Sequence[int]],
    first: int,
    tolerance: float,
) -> Probe:
    """Ask for the same rows in several orders, alone and at once, and with options of sampling that
    must not matter. `known` are asked for at later starts; `first` is the first target that the
    server has values of.

    Raises RunError where the answers differ by more than `tolerance` nats, or are no
    log-probabilities.
    """
    questions = [Question(row, first, texts=True) for row in rows if len(row) > first]
    questions = [each for each in questions if server.can_be_asked(each)]
    ends = _ends(rows) if server.protocol.sends_first else []
    cold = _answers(server, ends)  # before anything else: nothing of them is remembered
    before = _answers(server, questions)
    orders = [
        _answers(server, questions[::-1])[::-1],
        _at_once(server, questions),
    ]
    worst = max(_difference(before, other) for other in orders)
    if worst > tolerance:
        raise RunError(
            f"{server.transport.url}: the same rows in another order have log-probabilities that "
            f"differ by {worst:.2g} nats (--probe-tolerance {tolerance:g}): {_causes(server)}"
        )
    if ends:
        worst = max(worst, _require_same_ends(server, ends, cold, tolerance))
    if server.protocol.name in ("vllm", "openai"):
        _require_unsampled(server, questions, before, tolerance)
    normalised = _is_normalised(server, rows[0], first)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Probe(
        worst, normalised, now, tolerance, _known(server, known, first), max(map(len, rows))
    )


def _causes(server: Server) -> str:
    """Return what makes numbers of a row depend on others."""
    several = "several servers of other weights behind one address"
    if server.protocol.takes_several:  # ours, which keeps nothing between requests
        return f"{several} do that; name one of them"
    return (
        "vLLM with a prefix cache does that (start it with --no-enable-prefix-caching), and so do "
        f"{several}; batches in half precision may differ, too: then give a larger "
        "--probe-tolerance"
    )


def require_one(server: Server, found: Probe) -> Probe:
    """Return the result with the difference of rows that begin alike; RunError beyond the
    tolerance."""
    try:
        apart = difference_of_beginnings(server, found.known[0])
    except RowError as error:
        raise RunError(f"{server.transport.url}: {error.message}") from None
    if apart > found.tolerance:
        raise RunError(
            f"{server.transport.url}: rows that begin alike have log-probabilities there that "
            f"differ by {apart:.2g} nats (--probe-tolerance {found.tolerance:g}): several servers "
            "of other weights are behind the address; name one of them"
        )
    return replace(found, worst_difference=max(apart, found.worst_difference))


def _known(server: Server, rows: Sequence[Sequence[int]], first: int) -> list[KnownRow]:
    """Return rows with their log-probabilities: two that begin alike, or the beginning of one."""
    # Of what `seqloss serve` computes nothing is kept for another request: a short row does there,
    # and each start is sooner. Caches keep whole blocks: rows for others are as long as may be.
    short = server.protocol.takes_several
    found: list[Question] = []
    for row in rows[: 1 if short else 2]:
        lengths = range(min(len(row), RECORDED_TOKENS) if short else len(row), first, -1)
        questions = [Question(row[:n], first, texts=True) for n in lengths]
        # Of texts, not each beginning can be asked for.
        question = next((each for each in questions if server.can_be_asked(each)), None)
        if question is not None and question not in found:
            found.append(question)
    return [KnownRow(list(q.ids), first, _ask(server, q).log_probs.tolist()) for q in found]


def _ends(rows: Sequence[Sequence[int]]) -> list[Question]:
    """Return questions after ends of rows, whose beginnings a server may remember: of the same row
    twice, of two with a common beginning, and of two that differ in their beginnings alone."""
    whole, alike, other = rows[:3]
    n, half = len(whole), len(whole) // 2
    other_begun = [*other[:half], *whole[len(other[:half]) :]]
    # Beside each other stand places of different numbers of tokens; the last two are of one.
    asked = [(whole, half + 1), (alike, n - 1), (whole, half + 1), (other_begun, n - 1),
             (whole, n - 1), (alike, half + 1), (other_begun, half + 1)]  # fmt: skip
    return [Question(row, first) for row, first in asked if 1 <= first < len(row)]


def _require_same_ends(
    server: Server, ends: Sequence[Question], cold: Sequence[Answer], tolerance: float
) -> float:
    """Return by how much ends of rows have other log-probabilities, nats, where no more of the row
    is asked for. `cold` are answers from before the server knew the rows.

    Raises RunError beyond the tolerance.
    """
    whole = [_ask(server, replace(each, first=1)).log_probs for each in ends]
    right = [Answer(probs[each.first - 1 :]) for probs, each in zip(whole, ends, strict=True)]
    others = [cold, _answers(server, ends), _at_once(server, ends)]
    if server.protocol.takes_several:
        # In three orders: values that two rows of one request exchange show in one of them.
        others += [_together(server, ends), _together(server, ends[::-1])[::-1]]
        rotated = _together(server, [*ends[1:], ends[0]])
        others.append([rotated[-1], *rotated[:-1]])
    worst = max((_difference(right, each) for each in others), default=0.0)
    if worst > tolerance:
        raise RunError(
            f"{server.transport.url}: the end of a row has log-probabilities that differ by "
            f"{worst:.2g} nats where no more of the row is asked for (--probe-tolerance "
            f"{tolerance:g}): a cache of beginnings does that (SGLang: --disable-radix-cache)"
        )
    return worst


def _require_unsampled(
    server: Server, questions: Sequence[Question], before: Sequence[Answer], tolerance: float
) -> None:
    """Raises RunError where options of sampling change the log-probabilities of a prompt."""
    sampled = replace(server, options={"temperature": 0.5, "top_k": 2, "top_p": 0.5})
    try:
        answers = [sampled.ask(question) for question in questions]
    except RowError as error:
        if server.protocol.name == "openai" and error.reason == "server_refused":
            return  # it has no such options
        raise RunError(f"{server.transport.url}: {error.message}") from None
    apart = _difference(before, answers)
    if apart > tolerance:
        raise RunError(
            f"{server.transport.url}: log-probabilities depend on options of sampling (by "
            f"{apart:.2g} nats): start vLLM with --logprobs-mode raw_logprobs, its default"
        )


def _answers(server: Server, questions: Iterable[Question]) -> list[Answer]:
    return [_ask(server, question) for question in questions]


def _at_once(server: Server, questions: Sequence[Question]) -> list[Answer]:
    with ThreadPoolExecutor(min(len(questions), server.transport.gate.most)) as pool:
        return list(pool.map(lambda question: _ask(server, question), questions))


def _ask(server: Server, question: Question) -> Answer:
    try:
        return server.ask(question)
    except RowError as error:
        hint = hint_of(error.reason)
        raise RunError(f"{server.transport.url}: {error.message}; {hint}") from None


def _together(server: Server, questions: Sequence[Question]) -> list[Answer]:
    """Return answers to questions that are sent in one request; raises RunError."""
    try:
        return server.ask_all(questions)
    except RowError as error:
        hint = hint_of(error.reason)
        raise RunError(f"{server.transport.url}: {error.message}; {hint}") from None


def _difference(some: Sequence[Answer], others: Sequence[Answer]) -> float:
    pairs = zip(some, others, strict=True)
    return max(float(np.abs(a.log_probs - b.log_probs).max()) for a, b in pairs)


def _is_normalised(server: Server, row: Sequence[int], first: int) -> bool | None:
    """Tell whether alternatives are probabilities; RunError where they are not."""
    if len(row) < _SHORTEST_TWICE:
        return None
    # A row that repeats itself is predicted well: the alternatives hold nearly all.
    ids = [*row[:1], *list(row[1 : len(row) // 2]) * 2]
    has_ranks = "ranks" in server.protocol.quantities
    try:
        mass = _mass(server, Question(ids, first, N_ALTERNATIVES, has_ranks))
    except RowError as error:
        if error.reason not in ("server_refused", "server_text"):
            raise RunError(
                f"{server.transport.url}: {error.message}; {hint_of(error.reason)}"
            ) from None
        return None  # it gives fewer alternatives
    return True if mass is not None and mass.max() >= _ALMOST_ALL else None


def _mass(server: Server, question: Question) -> Floats | None:
    """Return the probability of all alternatives together, shape M; None where the server gives
    none. Raises RowError."""
    protocol = server.protocol
    if isinstance(protocol, OpenAi):
        found = protocol.alternatives(server.fetch(question), question)
        return np.array([sum(map(math.exp, each.values())) for each in found])
    if "top_logprobs" not in protocol.quantities:
        return None
    answer = server.ask(question)
    assert answer.top_log_probs is not None
    mass: Floats = np.exp(answer.top_log_probs).sum(axis=1)
    return mass


# -- results that are kept -----------------------------------------------------------------------


def kept_probe(server: Server, tokenizer_sha256: str) -> Probe | None:
    """Return the result of a probe of this server, model and version that is not yet too old."""
    try:
        found = orjson.loads(_place(server, tokenizer_sha256).read_bytes())
        way = None if found["way"] is None else Way(**found["way"])
        worst, tolerance = float(found["worst_difference"]), float(found["tolerance"])
        rows = [KnownRow(**each) for each in found["known"]]
        at, longest = str(found["at"]), int(found["longest"])
        kept = Probe(worst, found["normalised"], at, tolerance, rows, longest, way)
        age = (datetime.now(UTC) - datetime.fromisoformat(kept.at)).total_seconds()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return kept if rows and 0 <= age < KEPT_SECONDS else None


def keep_probe(server: Server, tokenizer_sha256: str, found: Probe) -> None:
    """Keep a result for the next call; where there is no place for it, it is asked for again."""
    place = _place(server, tokenizer_sha256)
    text = orjson.dumps(found)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_suffix(f".{os.getpid()}")
        part.write_bytes(text)
        part.replace(place)
    except OSError:
        pass


def _place(server: Server, tokenizer_sha256: str) -> Path:
    facts = (_CHECKS, server.transport.url, server.protocol.name, server.model, server.version,
             server.max_model_len, sorted(server.weights.items()), server.dtype,
             server.fingerprint, tokenizer_sha256)  # fmt: skip
    name = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "seqloss" / "probes" / f"{name}.json"
