"""SHA-256 of weights, cached by path, size and time, since large files take a while."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path


def weights_sha256(*places: Path) -> str:
    """SHA-256 over the hexadecimal SHA-256 of each weight file, a line each, by file name: of a
    folder, and of files that are named by themselves, in their order."""
    files = [path for place in places for path in weight_files(place)]
    return combined(file_sha256(path) for path in files)


def combined(digests: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads weights from: safetensors first, shards by their index; a
    file by itself."""
    if folder.is_file():
        return [folder]
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{single}.index.json"
        if (folder / single).is_file():
            return [folder / single]
        if index.is_file():
            names = json.loads(index.read_text())["weight_map"].values()
            return [folder / name for name in sorted(set(names))]
    return sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])


def file_sha256(path: Path) -> str:
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
    """Whole or not at all; a cache that cannot be written costs time only."""
    try:
        path = _cache_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(cached, indent=0))
        fresh.replace(path)
    except (OSError, RuntimeError):
        return
