"""Open a server as a backend: its kind, its tokenizer, its windows, a probe of its numbers."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial

from seqloss_cli.backends.server import alignment, probing
from seqloss_cli.backends.server.backend import Server, ServerBackend
from seqloss_cli.backends.server.openai import OpenAi, Way
from seqloss_cli.backends.server.pieces import Pieces
from seqloss_cli.backends.server.protocols import ServerProtocol, Sglang, Vllm
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
    tokens = Tokenization(
        # Its own: the run's policy on special tokens is set in the tokenizer itself.
        deepcopy(loaded.tokenizer), TokenPolicy(), loaded.n_ids, loaded.bos_ids, loaded.eos_ids
    )  # fmt: skip
    server = Server(
        transport=transport,
        protocol=_protocol(found.kind, loaded.n_ids, Pieces(tokens)),
        model=found.model,
        version=found.version,
        max_model_len=found.max_model_len,
        dtype=found.dtype,
    )
    if found.kind == "seqloss":
        transport.gate.begin_with(4)  # of many rows each: two are scored, two wait
    # C + 1 ids are sent; ours generates nothing, others one token.
    n_more = 1 if found.kind == "seqloss" else 2
    longest = None if found.max_model_len is None else found.max_model_len - n_more
    windows = _windows(loaded, longest, context, stride)
    longest = min(filter(None, (longest, loaded.max_context, _LONGEST_PROBE)))
    start = partial(_start, server, tokens, windows, choice, batches, longest)
    return OpenedModel(loaded, windows, start)


def _parts(url: str) -> tuple[str | None, str]:
    """Return the kind that a URL names, None where it names none, and the URL without it."""
    prefix, plus, rest = url.partition("+")
    if not plus or "/" in prefix:
        return None, url
    if prefix not in KINDS:
        raise UsageError(f"--engine {url}: {prefix}+… is none of {', '.join(KINDS)}")
    return prefix, rest


def _protocol(kind: str, n_ids: int, pieces: Pieces) -> ServerProtocol:
    if kind in ("vllm", "seqloss"):
        return Vllm(kind)
    return Sglang(n_ids) if kind == "sglang" else OpenAi(pieces)


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
    tokens: Tokenization,
    windows: WindowPolicy,
    choice: ModelChoice,
    batches: BatchPolicy,
    longest: int,
) -> tuple[Backend, BatchPolicy]:
    """Probe the server with rows of at most `longest` fed tokens, unless it was probed before.

    Raises RunError where it is not believed, UsageError where no window has a value.
    """
    engine = choice.engine
    assert engine is not None
    tolerance = engine.probe_tolerance
    if tolerance is None:
        tolerance = TOLERANCES.get(server.dtype or "", DEFAULT_TOLERANCE)
    found = None if engine.probe else probing.kept_probe(server, tokens.sha256)
    # Not its worst difference, which is that of orders alone: other checks have theirs.
    if found is None or found.tolerance > tolerance:
        found = _probed(server, tokens, longest, tolerance)
        probing.keep_probe(server, tokens.sha256, found)
    if found.way is not None:
        server = alignment.with_way(server, Pieces(tokens), found.way)
        if found.way.drops_bos and windows.stride >= windows.context:
            raise UsageError(
                f"--context {windows.context} with --stride {windows.stride}: the server gives no "
                "log-probability of a token right after BOS, so --stride is less than --context"
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
        **_described(found.way),
    }
    warnings = _warnings(server.transport.url, found, choice)
    after_bos = found.way is None or not found.way.drops_bos
    return ServerBackend(server, tokens.n_ids, record, warnings, after_bos), batches


def _probed(server: Server, tokens: Tokenization, longest: int, tolerance: float) -> probing.Probe:
    rows, way, first = _probe_rows(tokens, longest), None, 1
    if server.protocol.name == OpenAi.name:
        pieces = Pieces(tokens)
        way = alignment.find_way(server, pieces, rows, tolerance)
        server = alignment.with_way(server, pieces, way)
        first = 1 + way.drops_bos
    if way is None or not way.as_text:
        # Ids that no tokenizer gives: a server that makes a text of them gets other ones.
        n_before = int(tokens.bos_id is not None)
        rows.append(rows[0][:n_before] + rows[0][n_before:][::-1])
    return replace(probing.probe(server, rows, first, tolerance), way=way)


def _described(way: Way | None) -> dict[str, str]:
    """Return the keys of a run record that say how a server of OpenAI's shape was asked."""
    if way is None:
        return {}
    return {
        **({"prompts": "texts"} if way.as_text else {}),
        **({"after_bos": "unscored"} if way.drops_bos else {}),
    }


def _warnings(url: str, found: probing.Probe, choice: ModelChoice) -> list[str]:
    warnings = []
    assert choice.engine is not None
    if not found.normalised and not choice.engine.verify:
        warnings.append(
            f"{url}: nothing shows that its numbers are log-probabilities of the whole vocabulary; "
            "--verify N scores N rows here, too"
        )
    if found.way is not None and found.way.as_text:
        warnings.append(
            f"{url} takes no ids: texts are sent, and rows are rejected whose tokens there are not "
            "shown to be ours"
        )
    if found.way is not None and found.way.drops_bos:
        warnings.append(
            f"{url} gives no log-probability of the token after BOS: it is unscored in each row "
            "(flag first_token_unscored)"
        )
    return warnings


def _probe_rows(tokens: Tokenization, longest: int) -> list[list[int]]:
    """Return rows of ids of texts, some with a common beginning, each at most `longest` + 1 long.

    Raises RunError where the tokenizer makes no tokens of a text.
    """
    words = (_PROBE_TEXT * 3).split()
    half, back = words[: len(words) // 6], words[::-1]
    encoded = tokens.encode([" ".join(each) for each in (words, half + back, back)])
    if not all(isinstance(each, list) and len(each) > 2 for each in encoded):
        raise RunError("the tokenizer makes no tokens of a plain text; name one with --tokenizer")
    before = [] if tokens.bos_id is None else [tokens.bos_id]
    n = longest + 1 - len(before)
    whole, others, backwards = ([*each][:n] for each in encoded if isinstance(each, list))
    rows = [whole, others, backwards, whole[: max(2, n // 2)], whole[: max(2, n - 1)]]
    return [before + row for row in rows if len(before) + len(row) >= 2]
