"""What the program writes for machines, held to the schemas that `seqloss schema` prints.

Tests allow no other keys than those that the schemas name.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from seqloss_cli.analysis.schemas import FORMATS, schema_of
from seqloss_cli.results.formats import LEVELS
from seqloss_cli.results.schema.json_schema import closed

_SECOND = (("--output-ranked", "rank", "ranked"), ("--scores", "summarize", "scores"))
_NAMED = ("-o", "--output", "--format", "--level", "--output-ranked", "--scores")
_BRANCHES = {"run": 0, "sequence": 1, "rejected": 2, "totals": 3}
_DOCUMENTS = {"comparisons": "compare", "checkpoints": "objective", "positions": "summarize"}


@lru_cache
def validator(command: str, format: str, part: str | None = None) -> Draft202012Validator:
    """`part` is the type of a line of JSONL, the level of CSV, or the run and totals of Parquet."""
    level = part if format == "csv" else None
    schema = closed(schema_of(command, format, level))
    if format == "jsonl" and part is not None:
        # One of four, which messages of the whole would hide.
        schema = {"$defs": schema.get("$defs", {}), **schema["oneOf"][_BRANCHES[part]]}
    if format == "parquet" and part is not None:
        schema = {**schema["$defs"][part], "$defs": schema["$defs"]}
    return Draft202012Validator(schema)


def hold(value: Any, command: str, format: str, part: str | None = None) -> None:
    """Raise AssertionError where a value is not what the schema says."""
    found = next(validator(command, format, part).iter_errors(value), None)
    if found is not None:
        place = "/".join(map(str, found.absolute_path))
        said = f"{found.message:.300}"
        raise AssertionError(f"schema {command} {format} {part or ''}: at {place!r}: {said}")


def hold_text(text: bytes) -> int:
    """Hold the results of a file or of stdout to their schema; returns how many were there."""
    first = text[:64].lstrip()
    if first.startswith(b'{"type":"run"'):
        return sum(1 for _ in _hold_lines(text))
    if not first.startswith((b'{"schema_version"', b'{"object":"text_completion"')):
        return 0
    try:
        document = json.loads(text)
    except ValueError:  # several documents, or more text: other tests say whether that is right
        return 0
    hold_document(document)
    return 1


def hold_output(words: Sequence[str], stdout: bytes, folder: Path = Path()) -> None:
    """Hold results on stdout, and those in the file of -o, of a command that ran in a folder."""
    if not words or words[0] not in FORMATS:
        return
    hold_text(stdout)
    given = {a: b for a, b in itertools.pairwise(words) if a in _NAMED}
    for option, command, format in _SECOND:
        if words[0] == command and (path := folder / given.get(option, "")).is_file():
            for line in path.read_bytes().splitlines():
                hold(json.loads(line), command, format)
    path = folder / (given.get("-o") or given.get("--output") or "")
    name = given.get("--format") or path.suffix.removeprefix(".")
    made = path.is_file()
    if name in ("csv", "tsv") and words[0] in LEVELS:
        text = (path.read_bytes() if made else stdout).decode()
        hold_csv(text, words[0], given.get("--level"), "," if name == "csv" else "\t")
    elif name == "parquet" and made:
        hold_parquet(path, merged=words[0] == "merge")
    elif made:
        hold_text(path.read_bytes())


def hold_document(document: dict[str, Any]) -> None:
    if "choices" in document:
        hold(document, document["seqloss"]["run"]["command"], "openai")
    elif "sequences" in document:
        hold(document, document["run"]["command"], "json")
    elif "kind" in document:
        hold(document, "plot", "json")
    else:
        (command,) = (name for key, name in _DOCUMENTS.items() if key in document)
        hold(document, command, "json")


def _hold_lines(text: bytes) -> Iterator[None]:
    command = ""
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # cut off: a test of damage
            return
        if row.get("type") == "run":
            command = "select" if "selection" in row else str(row.get("command"))
        if command in FORMATS and row.get("type") in _BRANCHES:
            hold(row, command, "jsonl", row["type"])
            yield


def hold_parquet(path: Path, merged: bool = False) -> None:
    import pyarrow.parquet as pq

    stored = pq.read_metadata(path).metadata
    run = json.loads(stored[b"seqloss.run"])
    merged = merged or "distributed" in run
    hold(run, run["command"], "parquet", "Run")
    hold(json.loads(stored[b"seqloss.totals"]), run["command"], "parquet", "Totals")
    for row in pq.read_table(path).to_pylist():
        hold(row, "merge" if merged else run["command"], "parquet")


def hold_csv(text: str, command: str, level: str | None, delimiter: str = ",") -> int:
    """Hold lines to the schema of their level: numbers are read where the schema has numbers."""
    known = validator(command, "csv", level).schema["properties"]
    rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    for row in rows:
        hold({name: _cell(cell, known.get(name, {})) for name, cell in row.items()},
             command, "csv", level)  # fmt: skip
    return len(rows)


def _cell(cell: str, schema: dict[str, Any]) -> Any:
    if cell == "":
        return None
    kinds = schema.get("type", [])
    if "integer" in kinds:
        return int(cell)
    return float(cell) if "number" in kinds else cell
