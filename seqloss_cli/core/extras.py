"""Packages that only some things need: loaded when asked for, and missed in words that help."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from seqloss_cli.core.errors import UsageError


def load_extra(extra: str, what: str, *modules: str) -> ModuleType:
    """The first of the modules, all of them imported. Raises UsageError when one is not installed;
    `what` needs it, and `seqloss[extra]` brings it."""
    found = []
    for module in modules:
        try:
            found.append(import_module(module))
        except ImportError as error:
            package = module.partition(".")[0]
            raise UsageError(f"{what} needs {package}: pip install 'seqloss[{extra}]'") from error
    return found[0]


def load_pyarrow() -> ModuleType:
    """`pyarrow`, with `pyarrow.parquet` in it. Raises UsageError when it is not installed."""
    return load_extra("parquet", "Parquet", "pyarrow", "pyarrow.parquet")
