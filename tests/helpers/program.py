"""Runs of the program, in this process or in one of its own, and what it prints."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def in_process(*words: object, stdin: bytes | None = None, **env: str) -> Any:
    """Run the program in this process; what is no exit is raised, and a bug is never an exit."""
    from typer.testing import CliRunner

    from seqloss_cli.cli.main import app

    result = CliRunner().invoke(app, [str(word) for word in words], input=stdin, env=env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code != 70, result.stderr
    return result


def strictly(text: str | bytes) -> Any:
    """JSON as its standard has it: no NaN, no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in the output")

    return json.loads(text, parse_constant=refuse)


def document(result: Any, exit_code: int = 0) -> Any:
    assert result.exit_code == exit_code, result.stderr
    return strictly(result.stdout)


Run = Callable[..., subprocess.CompletedProcess[bytes]]
