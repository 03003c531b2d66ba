"""Files of a checkpoint: where they lie, which of them hold weights, and their SHA-256.

A checkpoint is a directory, one GGUF file, or a name of the Hugging Face hub. Nothing here reads a
tensor: `model_loading`, `adapters`, `gguf` and `tokenizer_loading` do.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from seqloss_cli.core.errors import (
    LFS_MESSAGE,
    LFS_POINTER,
    RunError,
    SeqlossError,
    UsageError,
    did_you_mean,
    did_you_mean_file,
)
from seqloss_cli.core.policies import DEFAULT_MODEL, ModelChoice

_OF_THE_HUB = re.compile(r"(?=.{1,96}$)(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
CONFIGURATION = "config.json"
ADAPTER_CONFIGURATION = "adapter_config.json"
_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json")
_HUB_SECONDS = 3.0
_HUB_ERRORS = {
    "GatedRepoError": "is gated: ask for access on its page of the hub, then `hf auth login` or "
    "HF_TOKEN shows who you are",
    "RepositoryNotFoundError": "neither a directory nor one of the hub, which shows private ones "
    "only to those that `hf auth login` or HF_TOKEN names",
    "RevisionNotFoundError": "the hub has no revision {revision} of it (--revision)",
    "OfflineModeIsEnabled": "neither a directory nor in the hub's local cache, which alone is "
    "asked (--offline or HF_HUB_OFFLINE)",
    "LocalEntryNotFoundError": "neither a directory nor in the hub's local cache, which alone is "
    "asked (--offline or HF_HUB_OFFLINE)",
    "HFValidationError": "neither a directory nor a name that the hub could have",
}
"""Class of an error of huggingface_hub to what it means; the first of an error's classes counts."""
_NOT_THERE = ("RepositoryNotFoundError", "RevisionNotFoundError", "HFValidationError")
"""Classes of errors by which a name is surely that of nothing."""
OF_MODEL = ("--model", "--tokenizer", "--adapter")
"""Flags of a model, its tokenizer and its adapter, for messages."""
# Not importlib.resources, whose import takes 20 ms.
DEMO_FOLDER = Path(__file__).parents[1] / "demo"


def checkpoint_path(name: str) -> str:
    """Return the built-in model's directory for its name, and other names as they are."""
    return str(DEMO_FOLDER) if name == DEFAULT_MODEL else name


def require_names(choice: ModelChoice, flags: Sequence[str] = OF_MODEL) -> None:
    """Raise UsageError for a name that is nothing here, and nothing of the hub either. Reads no
    file, and imports nothing."""
    if choice.name or choice.engine is None:  # a server may need no name, or a tokenizer's alone
        require_checkpoint(choice.name, flags[0])
    for name, other in ((choice.tokenizer, flags[1]), (choice.adapter, flags[2])):
        if name is not None:
            require_there(name, other)
    if choice.adapter is not None and Path(choice.adapter).exists():
        file = Path(choice.adapter) / ADAPTER_CONFIGURATION
        if not file.is_file():
            raise UsageError(f"{flags[2]} {choice.adapter}: no {ADAPTER_CONFIGURATION} in it")


def require_checkpoint(name: str, flag: str) -> None:
    """Raise UsageError for a name that is no checkpoint here, and none of the hub either."""
    path = checkpoint_path(name)
    require_there(path, flag)
    folder = Path(path)
    if folder.is_file() and not is_gguf(path):
        raise UsageError(
            f"{flag} {path} is a file; it takes the directory of a checkpoint, or a .gguf"
        )
    if not folder.is_dir() or (folder / CONFIGURATION).is_file():
        return
    if (folder / ADAPTER_CONFIGURATION).is_file():
        raise UsageError(
            f"{flag} {path} is an adapter: name the model that it was made for with --model, "
            f"and give --adapter {path}"
        )
    inner = sorted(each.name for each in folder.iterdir() if (each / CONFIGURATION).is_file())
    hint = f": name one of those in it, such as {folder / inner[-1]}" if inner else ""
    raise UsageError(f"{flag} {path}: no config.json in it, so it is no checkpoint{hint}")


def require_there(name: str, flag: str) -> None:
    """Raise UsageError for a path that is not there. A hub name has at most one slash."""
    path, wants_file = Path(name), name.lower().endswith(".gguf")
    if not name.strip():
        raise UsageError(f"{flag} '': an empty name")
    is_path = name.startswith((".", "~", os.sep)) or name.count("/") > 1 or wants_file
    is_path = is_path or (name.count("/") == 1 and path.parent.is_dir())
    if path.exists() or not (is_path or not _OF_THE_HUB.fullmatch(name)):
        return
    near = did_you_mean_file(path)
    raise UsageError(f"{flag} {name}: no such {'file' if wants_file else 'directory'}{near}")


def _nearest(name: str) -> str:
    """Return the end of a message about a name that is nothing: the nearest that is something."""
    return did_you_mean(name, [DEFAULT_MODEL]) or did_you_mean_file(Path(name))


def lacks_chat_template(path: str) -> bool:
    """Tell whether a directory is surely without a chat template: of other names nothing is
    known without their files."""
    folder = Path(path)
    settings = folder / "tokenizer_config.json"
    if not settings.is_file() or any(folder.glob("chat_template*")):
        return False
    return b'"chat_template"' not in settings.read_bytes()


def is_gguf(name: str) -> bool:
    """Tell whether a name is that of a GGUF file which exists."""
    return name.lower().endswith(".gguf") and Path(name).is_file()


def find_file(name: str, file: str, offline: bool, revision: str | None = None) -> Path | None:
    """Find a file of a directory or of a hub name; None where there is none.

    A hub file is fetched first, unless `offline` keeps to the local cache.
    """
    if Path(name).exists():
        path = Path(name) / file
        return path if path.is_file() else None
    from transformers.utils import cached_file

    try:
        found = cached_file(name, file, revision=revision, local_files_only=offline)
    except OSError:  # the hub has none under this name
        return None
    return None if found is None else Path(found)


def offline_hint(offline: bool) -> str:
    """Return the end of a message about a name that was not found."""
    return "; --offline looks into the local cache only" if offline else ""


def missing_hub(choice: ModelChoice, flags: Sequence[str] = OF_MODEL) -> str | None:
    """Return what to say where the hub does not answer and its cache has all that is named; None
    where it answers, or is not asked.

    Where the cache has not, raises RunError, and UsageError where it alone is asked. Nothing heavy
    is imported: it is found out before.
    """
    # Of some tokenizers the model's configuration is all that has a known name.
    named = [
        (choice.name, choice.revision, (CONFIGURATION, *_TOKENIZER_FILES)),
        (choice.tokenizer, None, (CONFIGURATION, *_TOKENIZER_FILES)),
        (choice.adapter, None, (ADAPTER_CONFIGURATION,)),
    ]
    asked = [
        (flag, name, revision, known)
        for flag, (name, revision, known) in zip(flags, named, strict=True)
        if name and name != DEFAULT_MODEL and not Path(name).exists()
    ]
    if not asked:
        return None
    from huggingface_hub import constants

    # It is switched off by this function, too: then the next name is looked for in the cache.
    switched_off = constants.HF_HUB_OFFLINE and not _hub_problem.cache_info().currsize
    offline = choice.offline or switched_off
    problem = None if offline else _hub_problem(constants.ENDPOINT)
    if problem is None and not offline:
        return None
    hub = f"the hub ({constants.ENDPOINT}) {problem}"
    for flag, name, revision, known in asked:
        if _is_cached(name, known, revision):
            continue
        near = _nearest(name)
        if offline:
            raise UsageError(f"{flag} {name}: {_HUB_ERRORS['OfflineModeIsEnabled']}{near}")
        raise RunError(
            f"{flag} {name}: is no directory, {hub}, and its local cache does not have it "
            f"(--offline asks the cache alone){near}"
        )
    if offline:
        return None
    # Whatever libraries ask the hub from here on would be asked in vain, again and again.
    constants.HF_HUB_OFFLINE = True
    return f"{hub}: taken from its local cache (--offline asks that alone)"


def _is_cached(name: str, known: Sequence[str], revision: str | None) -> bool:
    """Tell whether the hub's local cache has one of the files of a name."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = [try_to_load_from_cache(name, file, revision=revision) for file in known]
    except HFValidationError:  # a name that the hub could not have
        return False
    return any(isinstance(path, str) for path in found)


@cache
def _hub_problem(endpoint: str) -> str | None:
    """Return why a hub is of no use, in words that follow its name; None where it answers."""
    # The library would try six times, which takes half a minute and more, and report each.
    seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or _HUB_SECONDS)
    found: list[str | None] = [f"does not answer within {seconds:g} s"]

    def ask() -> None:
        from huggingface_hub import get_session

        try:
            status = get_session().head(endpoint, timeout=seconds).status_code
        except Exception as error:  # of whichever library asks for huggingface_hub
            if "Timeout" not in type(error).__name__:
                reason = re.sub(r"^\[Errno -?\d+\] ", "", " ".join(str(error).split()))
                found[0] = f"cannot be reached ({reason})"
        else:
            found[0] = f"answers {status}" if status >= 500 else None

    # On a thread: nothing else bounds how long a name server is waited for.
    thread = threading.Thread(target=ask, name="seqloss-hub", daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0]


def hub_error(
    kind: str, name: str, revision: str | None, offline: bool, error: Exception
) -> SeqlossError:
    """Return what transformers says of a name that is no directory, as one sentence: a UsageError
    where there is surely nothing of that name."""
    cause: BaseException | None = error
    while cause is not None:
        for each in type(cause).__mro__:
            if each.__name__ in _HUB_ERRORS:
                wrong = UsageError if each.__name__ in _NOT_THERE else RunError
                said = _HUB_ERRORS[each.__name__].format(revision=revision)
                return wrong(f"{kind} {name}: {said}{_nearest(name)}")
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(error).split())
    why = f"neither a directory nor one of the hub{offline_hint(offline)}"
    return RunError(f"{kind} {name}: {why} ({text})")


def hub_settings(choice: ModelChoice) -> dict[str, Any]:
    """Return the arguments of each `from_pretrained` that say what it may fetch and run."""
    return {
        "revision": choice.revision,
        # Never None: that asks on the terminal, and takes the answer from texts that are piped in.
        "trust_remote_code": choice.trust_remote_code,
        "local_files_only": choice.offline,
    }


def require_weights(what: str, file: str, safe: bool, pickled: bool, choice: ModelChoice) -> None:
    """Raise RunError for a model or adapter without weights, or with pickled ones that may not be.

    `safe` and `pickled` tell what it has; `file` names what it should have.
    """
    # Unpickling runs whatever code the file names: it is never a silent second choice.
    if not safe and pickled and not choice.allow_pickle:
        raise RunError(
            f"{what} has pickled weights only, which can run code when they are loaded; "
            "--allow-pickle takes them"
        )
    if not safe and not pickled:
        raise RunError(f"{what}: no weights in it (no {file})")


def first_problem(problems: Sequence[str]) -> str:
    """Return the first of some problems, and how many more there are."""
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"{problems[0]}{more}"


def weights_path(path: str, revision: str | None) -> Path:
    """Return a checkpoint's own directory or file, or the hub cache's snapshot of that commit."""
    if Path(path).exists():
        return Path(path)
    found = find_file(path, CONFIGURATION, offline=True, revision=revision)
    assert found is not None
    return found.parent


def weights_sha256(*places: Path) -> str:
    """Return the SHA-256 of weights, rule 12: over the hexadecimal SHA-256 of each file, a line
    each. Files of a directory go by name, places in the order given."""
    digests = (file_sha256(path) for place in places for path in weight_files(place))
    return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()


def weight_files(place: Path) -> list[Path]:
    """List the files that transformers reads weights from; of a file, the file itself.

    Safetensors come first, and shards are those of the index.
    """
    if place.is_file():
        return [place]
    for single in ("model.safetensors", "pytorch_model.bin"):
        # transformers takes the single file where both are there.
        index = place / f"{single}.index.json"
        if (place / single).is_file():
            return [place / single]
        if index.is_file():
            require_whole_files(index)
            try:
                names = json.loads(index.read_text())["weight_map"].values()
                return [place / name for name in sorted(set(names))]
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise RunError(f"{index} is no index of weights: {error}") from error
    return sorted([*place.glob("*.safetensors"), *place.glob("*.bin")])


def require_whole_files(*paths: Path) -> None:
    """Raise RunError for a file that is missing, cut off, or a pointer to its content."""
    # Libraries tell of neither by the file's name: `header too large`, `failed finding central
    # directory`.
    for path in paths:
        if (fault := _fault(path)) is not None:
            raise RunError(f"{path} {fault}")


def _fault(path: Path) -> str | None:
    if not path.is_file():
        return "is not there, though the index of the weights names it"
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
        if start.startswith(LFS_POINTER):
            return LFS_MESSAGE
        if not start:
            return "is empty"
        if path.suffix != ".safetensors":
            is_cut_zip = start.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path)
            return "is cut off: its end is missing" if is_cut_zip else None
        # Eight bytes with the length of a JSON header, which says where each tensor ends.
        length = int.from_bytes(start[:8], "little")
        if not start[8:].startswith(b"{"):
            return f"is no safetensors file: it begins with {start[:16]!r}"
        file.seek(8)
        header = file.read(length) if 8 + length <= size else b""
    try:
        tensors = {} if not header else json.loads(header)
        ends = [t["data_offsets"][1] for name, t in tensors.items() if name != "__metadata__"]
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        return f"has a damaged header: {error}"
    whole = 8 + length + max(ends, default=0)
    return None if size >= whole else f"is cut off: {size} of {whole} bytes are there"


def file_sha256(path: Path) -> str:
    """Return a file's hexadecimal SHA-256, from the cache where path, size and time are known."""
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    cached = _read_cache()
    if key not in cached:
        with path.open("rb") as file:
            cached[key] = hashlib.file_digest(file, "sha256").hexdigest()
        _write_cache(cached)
    return cached[key]


def _cache_path() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "seqloss" / "sha256.json"


def _read_cache() -> dict[str, str]:
    try:
        found = json.loads(_cache_path().read_text())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: no home directory
        return {}
    return found if isinstance(found, dict) else {}


def _write_cache(cached: dict[str, str]) -> None:
    """Write the cache whole or not at all; one that is not writable costs time only."""
    try:
        path = _cache_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Another process may read or write it now: only a rename swaps the whole file at once.
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(cached, indent=0))
        fresh.replace(path)
    except (OSError, RuntimeError):
        return
