"""Packages that only some formats need: loaded when asked for, and missed in words that help."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from seqloss_cli.errors import UsageError


def load_pyarrow() -> ModuleType:
    """`pyarrow`, with `pyarrow.parquet` in it. Raises UsageError when it is not installed."""
    try:
        module = import_module("pyarrow")
        import_module("pyarrow.parquet")
    except ImportError as error:
        raise UsageError("Parquet needs pyarrow: pip install 'seqloss[parquet]'") from error
    return module
