"""Open a server as a backend: its kind, its tokenizer, its windows, a probe of its numbers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from seqloss_cli.backends.server import probing
from seqloss_cli.backends.server.backend import Server, ServerBackend
from seqloss_cli.backends.server.protocols import OpenAi, ServerProtocol, Sglang, Vllm
from seqloss_cli.backends.server.transport import Transport
from seqloss_cli.core.backend import (
    Backend,
    LoadedTokenizer,
    OpenedModel,
)
from seqloss_cli.core.errors import RunError, UsageError
from seqloss_cli.core.policies import (
    BatchPolicy,
    ModelChoice,
    SpeedPolicy,
    TokenPolicy,
    WindowPolicy,
)
from seqloss_cli.models.checkpoint import load_tokenizer_only, window_policy
from seqloss_cli.tokenization.tokenizer import Tokenization

KINDS = ("vllm", "sglang", "openai")
TOLERANCES = {"float32": 1e-4, "float64": 1e-4}
DEFAULT_TOLERANCE = 0.05
"""Nats, where the server does not say that it computes in float32."""
_PROBE_TEXT = (
    "A harbour keeps two clocks: one for the tide and one for the trains. On Mondays the keeper "
    "winds both, writes 17:45 in a book (page 203), and walks home along the quay. Nobody asks "
    "why the hands disagree, for the boats leave with the water and the letters with the rails. "
)
"""For probes: two halves of it begin rows that have a common beginning."""
_LONGEST_PROBE = 96


def open_model(
    choice: ModelChoice,
    context: int | None,
    stride: int | None,
    batches: BatchPolicy,
    speed: SpeedPolicy,
) -> OpenedModel:
    """Find the server, and load the tokenizer alone. `speed` is the server's own matter.

    Raises RunError when it gives no log-probabilities, UsageError when options do not fit it.
    """
    assert choice.engine is not None
    assert choice.engine.url is not None
    kind, url = _parts(choice.engine.url)
    loaded = load_tokenizer_only(choice)
    transport = Transport(url, choice.engine)
    found = probing.identify(transport, kind)
    server = Server(
        transport=transport,
        protocol=_protocol(found.kind, loaded),
        model=found.model,
        version=found.version,
        max_model_len=found.max_model_len,
        dtype=found.dtype,
    )
    # C + 1 ids are sent; ours generates nothing, others one token.
    n_more = 1 if found.kind == "seqloss" else 2
    longest = None if found.max_model_len is None else found.max_model_len - n_more
    windows = _windows(loaded, longest, context, stride)
    start = partial(_start, server, loaded, windows, choice, batches)
    return OpenedModel(loaded, windows, start)


def _parts(url: str) -> tuple[str | None, str]:
    """Return the kind that a URL names, None where it names none, and the URL without it."""
    prefix, plus, rest = url.partition("+")
    if not plus or "/" in prefix:
        return None, url
    if prefix not in KINDS:
        raise UsageError(f"--engine {url}: {prefix}+… is none of {', '.join(KINDS)}")
    return prefix, rest


def _protocol(kind: str, loaded: LoadedTokenizer) -> ServerProtocol:
    if kind in ("vllm", "seqloss"):
        return Vllm(kind)
    if kind == "sglang":
        return Sglang(loaded.n_ids)
    tokens = Tokenization(loaded.tokenizer, TokenPolicy(), loaded.n_ids)
    return OpenAi(tokens.name_token)


def _windows(
    loaded: LoadedTokenizer, longest: int | None, context: int | None, stride: int | None
) -> WindowPolicy:
    """Return windows that the server takes, of `longest` fed tokens; None where it says nothing."""
    if longest is None:
        return window_policy(loaded, context, stride)
    if longest < 1:
        raise RunError("the server's max_model_len is too short to score a token")
    key = "the server's max_model_len"
    if loaded.max_context is not None and loaded.max_context <= longest:
        longest, key = loaded.max_context, str(loaded.max_context_key)
    return window_policy(replace(loaded, max_context=longest, max_context_key=key), context, stride)


def _start(
    server: Server,
    loaded: LoadedTokenizer,
    windows: WindowPolicy,
    choice: ModelChoice,
    batches: BatchPolicy,
) -> tuple[Backend, BatchPolicy]:
    """Probe the server, unless it was probed before. Raises RunError where it is not believed."""
    engine = choice.engine
    assert engine is not None
    tolerance = engine.probe_tolerance
    if tolerance is None:
        tolerance = TOLERANCES.get(server.dtype or "", DEFAULT_TOLERANCE)
    tokens = Tokenization(loaded.tokenizer, TokenPolicy(), loaded.n_ids)
    found = None if engine.probe else probing.kept_probe(server, tokens.sha256)
    if found is None or found.worst_difference > tolerance:
        found = probing.probe(server, _probe_rows(tokens, windows.context), tolerance)
        probing.keep_probe(server, tokens.sha256, found)
    warnings = []
    if not found.normalised and not engine.verify:
        warnings.append(
            f"{server.transport.url}: nothing shows that its numbers are log-probabilities of the "
            "whole vocabulary; --verify N scores N rows here, too"
        )
    record = {
        "url": engine.url,
        "kind": server.protocol.name,
        "version": server.version,
        "max_model_len": server.max_model_len,
        "probed_at": found.at,
        "probe_tolerance": tolerance,
        "probe_worst_difference": found.worst_difference,
        "normalised": found.normalised,
    }
    return ServerBackend(server, loaded.n_ids, record, warnings), batches


def _probe_rows(tokens: Tokenization, context: int) -> list[list[int]]:
    """Return rows of ids, some with a common beginning, each at most `context` + 1 long."""
    text = next(iter(tokens.encode([_PROBE_TEXT * 3])))
    if not isinstance(text, list) or len(text) < 2:
        raise RunError("the tokenizer makes no tokens of a plain text; name one with --tokenizer")
    before = [] if tokens.bos_id is None else [tokens.bos_id]
    n = min(_LONGEST_PROBE, len(text), context + 1 - len(before))
    whole = text[:n]
    half = whole[: max(1, n // 2)]
    rows = [whole, half + whole[::-1][: n - len(half)], whole[::-1], half, whole[: max(2, n - 1)]]
    return [before + row for row in rows if len(before) + len(row) >= 2]
