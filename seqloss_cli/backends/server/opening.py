"""Open a server as a backend: its kind, its tokenizer, its windows, a probe of its numbers."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial
from random import SystemRandom
from urllib.parse import unquote

import numpy as np

from seqloss_cli.backends.server import alignment, probing
from seqloss_cli.backends.server.asking import Server
from seqloss_cli.backends.server.backend import ServerBackend
from seqloss_cli.backends.server.known_rows import Watch, ask_again
from seqloss_cli.backends.server.openai import OpenAi, Way
from seqloss_cli.backends.server.pieces import Pieces
from seqloss_cli.backends.server.protocols import ServerProtocol, Sglang, Vllm
from seqloss_cli.backends.server.transport import Transport
from seqloss_cli.core.backend import (
    Backend,
    LoadedTokenizer,
    OpenedModel,
)
from seqloss_cli.core.errors import RowError, RunError, UsageError
from seqloss_cli.core.policies import (
    DEFAULT_MODEL,
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
"""For probes, as often as rows are to be long."""
_LONGEST_PROBE = 288
"""Tokens: vLLM's cache has blocks of 128 on CPUs, and a row has two of them and a part."""
_LONGEST_TEXT = 96
"""Tokens of a row that is sent as a text: such servers know no blocks, and are slow."""


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
    kind, url, model = _parts(choice.engine.url)
    is_named = bool(choice.name or choice.tokenizer)
    loaded = load_tokenizer_only(_with_name(choice)) if is_named else None
    transport = Transport(url, choice.engine)
    found = probing.identify(transport, kind, model)
    if loaded is None:
        if found.kind != "seqloss":
            raise UsageError(f"--engine: {url} serves {found.model} by {found.kind}: {_NAME_ONE}")
        loaded = load_tokenizer_only(_with_name(choice))
    tokens = Tokenization(
        # Its own: the run's policy on special tokens is set in the tokenizer itself.
        deepcopy(loaded.tokenizer), TokenPolicy(), loaded.n_ids, loaded.bos_ids, loaded.eos_ids
    )  # fmt: skip
    has_same = found.tokenizer_sha256 == tokens.sha256
    if not has_same and not is_named:
        raise UsageError(f"--engine: the tokenizer of {url} is not the demo's: {_NAME_ONE}")
    if not has_same and found.tokenizer_sha256 is not None:
        other = f"{url}: its tokenizer is not that of {loaded.tokenizer_name} (tokenizer_sha256)"
        other += ": rows are rejected with a token that is shown to be another there"
        loaded = replace(loaded, warnings=(*loaded.warnings, other))
    server = Server(
        transport=transport,
        protocol=_protocol(found.kind, loaded.n_ids, Pieces(tokens), has_same),
        model=found.model,
        version=found.version,
        max_model_len=found.max_model_len,
        dtype=found.dtype,
        weights=found.weights,
        fingerprint=found.fingerprint,
    )
    if server.protocol.takes_several:
        transport.gate.begin_with(4)  # of many rows each: two are scored, two wait
    # C + 1 ids are sent; ours generates nothing, others one token.
    n_more = 1 if found.kind == "seqloss" else 2
    longest = None if found.max_model_len is None else found.max_model_len - n_more
    windows = _windows(loaded, longest, context, stride)
    # Of a server that does not say what it takes, the option is the only word on it.
    longest = min(longest or windows.context, loaded.max_context or _LONGEST_PROBE, _LONGEST_PROBE)
    start = partial(_start, server, tokens, windows, choice, batches, longest)
    return OpenedModel(loaded, windows, start)


_NAME_ONE = "name its tokenizer, a directory or hub name, with --model or --tokenizer"


def _with_name(choice: ModelChoice) -> ModelChoice:
    """Return the choice with a name: of the tokenizer, where nothing else is named, or the demo."""
    # The demo's configuration beside another's tokenizer would be wrong: of lengths, and of ids.
    if choice.name:
        return choice
    return replace(choice, name=choice.tokenizer or DEFAULT_MODEL, tokenizer=None)


def _parts(url: str) -> tuple[str | None, str, str | None]:
    """Return the kind that a URL names, the URL alone, and the model that it names; None where it
    names none."""
    address, _, model = url.partition("?model=")
    if "?model=" in url and not model:
        raise UsageError(f"--engine {url}: no name after ?model=")
    prefix, plus, rest = address.partition("+")
    if not plus or "/" in prefix:
        return None, address, unquote(model) or None
    if prefix not in KINDS:
        raise UsageError(f"--engine {url}: {prefix}+… is none of {', '.join(KINDS)}")
    return prefix, rest, unquote(model) or None


def _protocol(kind: str, n_ids: int, pieces: Pieces, is_known: bool) -> ServerProtocol:
    """`is_known` says that the server's tokenizer is ours, so that no token need show it."""
    if kind in ("vllm", "seqloss"):
        return Vllm(None if is_known else pieces, kind)
    return Sglang(n_ids, pieces) if kind == "sglang" else OpenAi(pieces)


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
    found, warnings, asked = None, list[str](), server
    if not engine.probe:
        found, warnings, asked = _kept(server, tokens, tolerance)
    if found is None:
        found, asked = _probed(server, tokens, longest, tolerance)
        probing.keep_probe(server, tokens.sha256, found)
    server = asked  # which has seen what such answers hold
    if found.way is not None and found.way.drops_bos and windows.stride >= windows.context:
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
    warnings += _warnings(server.transport.url, found, choice)
    after_bos = found.way is None or not found.way.drops_bos

    def keep_longest(n: int) -> None:
        if tolerance <= found.tolerance:  # else stricter runs would believe what was loosely held
            probing.keep_probe(server, tokens.sha256, replace(found, longest=n))

    server = replace(server, is_settled=True)
    watch = Watch(server, found.known, tolerance, found.longest, keep_longest)
    known = found.known[0]
    return ServerBackend(server, tokens.n_ids, record, warnings, known, watch, after_bos), batches


def _kept(
    server: Server, tokens: Tokenization, tolerance: float
) -> tuple[probing.Probe | None, list[str], Server]:
    """Return the result of an earlier probe with its row as the server gives it now, warnings, and
    the server as it was asked; None where there is none, or it gives other numbers since."""
    found = probing.kept_probe(server, tokens.sha256)
    # Not its worst difference, which is that of orders alone: other checks have theirs.
    if found is None or found.tolerance > tolerance:
        return None, [], server
    asked = server
    if found.way is not None:
        asked = alignment.with_way(server, Pieces(tokens), found.way)
    try:
        known, apart = ask_again(found.known, asked)
    except RowError:  # which the probe says better
        return None, [], server
    if apart <= tolerance:
        return replace(found, known=known), [], asked
    since = (
        f"{server.transport.url}: log-probabilities of the same row differ by {apart:.2g} nats "
        f"from those of {found.at}: another model, or other weights, which were probed anew"
    )
    return None, [since], server


def _probed(
    server: Server, tokens: Tokenization, longest: int, tolerance: float
) -> tuple[probing.Probe, Server]:
    """Return a probe's result, and the server as it was asked: in the way that was found."""
    rows, way, first = _probe_rows(tokens, longest), None, 1
    if server.protocol.name == OpenAi.name:
        pieces = Pieces(tokens)
        short = _probe_rows(tokens, min(longest, _LONGEST_TEXT))
        way = alignment.find_way(server, pieces, short, tolerance)
        server = alignment.with_way(server, pieces, way)
        first = 1 + way.drops_bos
        if way.as_text:
            rows = short
    # What a cache keeps of an earlier probe would agree with itself.
    drawn = _probe_rows(tokens, len(rows[0]) - 1, are_drawn=True)
    if way is None or not way.as_text:
        drawn.append(_any_ids(tokens, len(rows[0])))
    found = probing.probe(server, drawn, rows, first, tolerance)
    if way is None:
        alignment.require_placed(server, Pieces(tokens), rows, tolerance)
    if not server.processes:  # of which each answer of `seqloss serve` names its own
        found = probing.require_one(server, found)
    return replace(found, way=way), server


def _any_ids(tokens: Tokenization, n: int) -> list[int]:
    """Return a row of `n` ids, from all over the vocabulary.

    No tokenizer gives them: a server that makes a text of them gets others. One of another
    vocabulary shows it, as far as it has the same tokens for plain words.
    """
    known = tokens.vocabulary
    before = [] if tokens.bos_id is None else [tokens.bos_id]
    places = np.linspace(0, tokens.n_ids - 1, n).astype(int).tolist()
    ids = [i for i in places if i not in known.special and known.written(i) is not None]
    return (before + ids)[:n]


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


def _probe_rows(tokens: Tokenization, longest: int, are_drawn: bool = False) -> list[list[int]]:
    """Return rows of ids of texts, some with a common beginning, each at most `longest` + 1 long.
    With `are_drawn` they are others each time.

    Raises RunError where the tokenizer makes no tokens of a text.
    """
    before = [] if tokens.bos_id is None else [tokens.bos_id]
    n = longest + 1 - len(before)
    words = (_PROBE_TEXT * (1 + n // 50)).split()
    if are_drawn:
        SystemRandom().shuffle(words)
    plain = tokens.encode([" ".join(words)])
    # Two rows have all but a sixteenth in common: blocks of a cache, if they are so long.
    n_tokens = max(1, len(plain[0]) if isinstance(plain[0], list) else 0)
    alike, back = words[: max(1, len(words) * n * 15 // 16 // n_tokens)], words[::-1]
    encoded = [*plain, *tokens.encode([" ".join(each) for each in (alike + back, back)])]
    if not all(isinstance(each, list) and len(each) > 2 for each in encoded):
        raise RunError("the tokenizer makes no tokens of a plain text; name one with --tokenizer")
    whole, others, backwards = ([*each][:n] for each in encoded if isinstance(each, list))
    rows = [whole, others, backwards, whole[: max(2, n // 2)], whole[: max(2, n - 1)]]
    return [before + row for row in rows if len(before) + len(row) >= 2]
