"""Runs of the program, in this process or in one of its own, and what it prints."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def in_process(*words: object, stdin: bytes | None = None, **env: str) -> Any:
    """Run the program in this process; what is no exit is raised, and a bug is never an exit.

    Results on stdout and in the file of -o are held to the schema that the program prints.
    """
    from typer.testing import CliRunner

    from seqloss_cli.cli.main import app

    result = CliRunner().invoke(app, [str(word) for word in words], input=stdin, env=env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code != 70, result.stderr
    if result.exit_code in (0, 3):
        _hold_to_schemas([str(word) for word in words], result.stdout_bytes)
    return result


def _hold_to_schemas(words: list[str], stdout: bytes) -> None:
    from helpers.schemas import hold_csv, hold_parquet, hold_text

    hold_text(stdout)
    given = {
        a: b for a, b in itertools.pairwise(words) if a in ("-o", "--output", "--format", "--level")
    }
    path = Path(given.get("-o") or given.get("--output") or "")
    name = given.get("--format") or path.suffix.removeprefix(".")
    made = path.is_file()
    if name in ("csv", "tsv") and words[0] != "schema":
        text = (path.read_bytes() if made else stdout).decode()
        hold_csv(text, words[0], given.get("--level"), "," if name == "csv" else "\t")
    elif name == "parquet" and made:
        hold_parquet(path, merged=words[0] == "merge")
    elif made:
        hold_text(path.read_bytes())


def strictly(text: str | bytes) -> Any:
    """JSON as its standard has it: no NaN, no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in the output")

    return json.loads(text, parse_constant=refuse)


def document(result: Any, exit_code: int = 0) -> Any:
    assert result.exit_code == exit_code, result.stderr
    return strictly(result.stdout)


Run = Callable[..., subprocess.CompletedProcess[bytes]]
