"""Names of files."""

from __future__ import annotations

from pathlib import Path


def partial_path(path: Path) -> Path:
    """Where an output file grows until it is whole."""
    return Path(f"{path}.partial")


def shown_path(name: str) -> str:
    """A path as text that can be encoded: bytes that are not UTF-8 become `\\xff`."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
