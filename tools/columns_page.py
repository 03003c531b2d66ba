"""Write docs/columns.md and docs/schemas/ from the declarations of keys: all that commands write.

`python tools/columns_page.py`. The page shows the schemas that `seqloss schema` prints.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqloss_cli.analysis.schemas import DOCUMENTS, FORMATS, ROWS, schema_of
from seqloss_cli.results.formats import LEVELS

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "columns.md"
FOLDER = ROOT / "docs" / "schemas"
Schema = dict[str, Any]

INTRODUCTION = """# Columns of results

Every key and column that commands write for machines: its type, unit and meaning, when it is
null, and the option that adds it. This page is made by `python tools/columns_page.py` from the
declarations that rows are written by, as are the JSON Schemas that `seqloss schema` prints. The
definitions behind the meanings stand in [What the numbers mean](numbers.md), the rules of the
formats in [Results files](results.md).

- **JSON** (`--json`) is one object: `schema_version`, `run`, `sequences`, `rejected`, `totals`.
- **JSONL** (`--jsonl`, `-o FILE.jsonl`) has these one a line, told apart by `type`: `run` (with
  `schema_version`), `sequence`, `rejected`, `totals`.
- **Parquet** has a row for each `sequence` and `rejected` input, told apart by `type`. Arrays of
  numbers and texts are lists; objects, and arrays of objects, are JSON in a text. `null_keys` names
  keys that the row has and that are null; other nulls are keys that it does not have. Run and
  totals are JSON in the metadata `seqloss.run` and `seqloss.totals`.
- **CSV** and TSV have a line for each sequence, or for each of its parts (`--level`). Null is an
  empty cell. A rejected input has a line with its `id`, `source`, `line` and `reason`.

A figure is null where it is *unknown*: nothing is scored, or a loss is infinite (`flags` tell
which). An entry of an array is null where its token is not scored, or its figure is infinite.
*Missing* means that a row lacks the key; in Parquet and CSV it is null or empty. Where nothing is
said, a value is there and not null. `LIST[].KEY` is a key of the entries of a list.
"""
HEAD = "| key | meaning | type, unit | null or missing | option |\n|---|---|---|---|---|"

UNITS = (
    *(r"nats²", r"nats per \w+", r"nats", r"bits per (?:UTF-8 )?(?:byte|code point)", r"\bbits\b"),
    *(r"\bshare\b", r"\bprobability\b(?! of)", r"\bratio\b"),
)
"""Units of numbers, as meanings name them; the first one that is found."""
COUNTED = (
    "tokens|bytes|code points|words|sequences|rows|inputs|characters|choices|documents|pairs|"
    "points|groups|processes|devices"
)
"""What whole numbers count, where a meaning begins with it."""
NOT_KNOWN, NOT_SCORED = "unknown", "unscored, infinite"
REASONS = ("reason", "message")
LONG, OTHER = 8, 2
"""Objects of as many keys refer to a table that has all of these, but for so many."""


@dataclass(frozen=True, slots=True)
class Line:
    """What a line of a table says of one key."""

    name: str
    type: str
    unit: str
    meaning: str
    null: str
    option: str

    def __str__(self) -> str:
        kind = ", ".join(filter(None, (self.type, self.unit)))
        cells = (f"`{self.name}`", self.meaning, kind, self.null, self.option)
        return "| " + " | ".join(_escaped(each) for each in cells) + " |"


def _escaped(text: str) -> str:
    code = re.sub(r"(?<![`\w-])(--[\w-]+)(?!`)", r"`\1`", text)
    return code.replace("|", "\\|")


class Tables:
    """Makes lines of schemas, and knows which tables there are."""

    def __init__(self) -> None:
        self._places: dict[str, frozenset[str]] = {}

    def add(self, title: str, schema: Schema) -> None:
        """Remember a table: objects of its keys refer to it."""
        self._places[title] = frozenset(schema["properties"])

    def lines(self, schema: Schema, under: str = "", cells: bool = False) -> Iterator[Line]:
        """Yield a line for each key; `cells` are of CSV, where anything may be empty."""
        required = schema.get("required", ())
        for name, each in schema["properties"].items():
            if cells:
                yield _cell(name, each)
            else:
                yield from self._lines(under + name, each, name in required)

    def _lines(self, name: str, schema: Schema, sure: bool) -> Iterator[Line]:
        meaning, null, option = told(schema)
        kind, inner = type_of(schema), [*objects(schema)]
        nullable, has_null_entries = nulls(schema)
        if nullable:
            null = "; ".join(filter(None, (NOT_KNOWN * ("number" in kind), null)))
        elif has_null_entries:
            null = f"entries: {null or NOT_SCORED}"
        if not sure and not option:
            null = f"{null}; or missing" if null else "may be missing"
        title = next(filter(None, (self._place_of(part) for _, part in inner)), "")
        shown = f"{kind}: [{title}](#{slug(title)})" if title else kind
        yield Line(name, shown, unit_of(meaning, kind), meaning, null, option)
        for suffix, part in inner:
            known = self._places.get(title, frozenset())
            new = {n: each for n, each in part["properties"].items() if n not in known}
            yield from self.lines({**part, "properties": new}, f"{name}{suffix}.")

    def _place_of(self, part: Schema) -> str:
        keys = part["properties"].keys()
        if len(keys) < LONG:
            return ""
        fits = (title for title, known in self._places.items() if len(keys - known) <= OTHER)
        return next(fits, "")


def _cell(name: str, schema: Schema) -> Line:
    meaning, null, option = told(schema)
    kind = type_of(schema)
    unknown = "of scored inputs" if name in REASONS else NOT_SCORED * ("number" in kind)
    return Line(name, kind, unit_of(meaning, kind), meaning, null or unknown, option)


def type_of(schema: Schema) -> str:
    """Return the type of a value, without null."""
    options = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    if options:
        return " or ".join(dict.fromkeys(map(type_of, options)))
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{slug(name)})"
    if "enum" in schema:
        return " or ".join(f"`{each}`" for each in schema["enum"] if each is not None)
    kinds = schema.get("type", "any")
    kind = " or ".join(k for k in ([kinds] if isinstance(kinds, str) else kinds) if k != "null")
    if "prefixItems" in schema:
        return "array of " + " and ".join(map(type_of, schema["prefixItems"]))
    if kind == "array":
        return f"array of {type_of(schema['items'])}"
    if kind == "object" and isinstance(inner := schema.get("additionalProperties"), dict) and inner:
        return f"object of {type_of(inner)}"
    return kind


def slug(title: str) -> str:
    """Return the anchor of a heading."""
    return re.sub(r"[^\w]+", "-", title.lower())


def told(schema: Schema) -> tuple[str, str, str]:
    """Return meaning, when it is null, and the option that adds it."""
    text, option = schema.get("description", ""), schema.get("$comment", "")
    if found := re.match(r"With (--[\w-]+)(?:: |\.)", text):
        option, text = f"with {found[1]}", text[found.end() :].capitalize()
    null = ""
    if found := re.search(r"[;,.]\s+[Nn]ull (?=of|where|without|from|\w)(.*?)\.?$", text):
        null, text = found[1], text[: found.start()] + "."
    elif found := re.match(r"Null (.*)\.$", text):
        null, text = found[1], ""
    return text, null, option


def nulls(schema: Schema) -> tuple[bool, bool]:
    """Return whether a value may be null, and whether an entry of it may be."""
    kinds = schema.get("type", ())
    options = schema.get("anyOf", ())
    own = "null" in ([kinds] if isinstance(kinds, str) else kinds) or None in schema.get("enum", ())
    own = own or any(each.get("type") == "null" for each in options)
    inner = any(nulls(part["items"])[0] for part in (schema, *options) if "items" in part)
    return own, inner


def objects(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Yield the objects with keys of their own in a value, each with the suffix of its name."""
    for part in (schema, *schema.get("anyOf", ())):
        if "properties" in part:
            yield "", part
        for suffix, key in (("[]", "items"), (".*", "additionalProperties")):
            if isinstance(inner := part.get(key), dict):
                for more, found in objects(inner):
                    yield suffix + more, found


def unit_of(meaning: str, kind: str) -> str:
    """Return the unit that a meaning tells."""
    if "number" in kind:
        for unit in UNITS:
            if found := re.search(unit, meaning, flags=re.IGNORECASE):
                return found[0].lower().replace("utf-8 ", "")
    if "integer" in kind and (found := re.match(COUNTED, meaning, flags=re.IGNORECASE)):
        return found[0].lower()
    return ""


# -- the page --------------------------------------------------------------------------------------

FURTHER = {
    "openai": "`--format openai`",
    "ranked": "Lines of `--output-ranked`",
    "scores": "Lines of `--scores`",
}
"""Formats that have a table of their own."""
REJECTED, RUN = "Rejected inputs", "The run"


def page() -> str:
    """Return the page."""
    whole = {command: schema_of(command, "json") for command in (*ROWS, *DOCUMENTS, "plot")}
    records = {name: each for schema in whole.values() for name, each in schema["$defs"].items()}
    tables, run = Tables(), whole["score"]["properties"]["run"]
    tables.add(RUN, run)
    parts = [INTRODUCTION]
    for command in FORMATS:
        parts += [f"## seqloss {command}", "", _links(command), ""]
        if command in ROWS:
            parts += _rows(tables, command, whole[command])
        elif command in DOCUMENTS:
            parts += _table(tables.lines(whole[command]))
            if command == "compare":
                pairs = whole[command]["properties"]["comparisons"]["items"]
                tables.add(f"seqloss {command}", pairs)
        elif command == "plot":
            for kind in whole[command]["oneOf"]:
                title = f"Plot: {kind['properties']['kind']['enum'][0]}"
                parts += [f"### {title}", "", *_table(tables.lines(kind))]
        else:
            parts += _others(tables, command)
        for name in FORMATS[command][-1:]:
            if name in FURTHER:
                parts += [f"### {FURTHER[name]} of {command}", ""]
                parts += _table(tables.lines(schema_of(command, name)))
    parts += [f"## {RUN}", "", "In the JSON document and in the first line of JSONL.", ""]
    parts += _table(tables.lines(run))
    parts += [f"## {REJECTED}", "", *_table(tables.lines(_rejected()))]
    parts += ["## Objects", "", "Types that are named above.", ""]
    for name, schema in sorted(records.items()):
        parts += [f"### {name}", "", schema["description"], "", *_table(tables.lines(schema))]
    return "\n".join(parts)


def _rejected() -> Schema:
    found: Schema = schema_of("score", "json")["properties"]["rejected"]["items"]
    return found


def _links(command: str) -> str:
    files = (
        f"[{name.removesuffix('.schema.json')}](schemas/{name})" for name in schemas_of(command)
    )
    return f"JSON Schema: {', '.join(files)}."


def _rows(tables: Tables, command: str, schema: Schema) -> list[str]:
    own = schema["properties"]
    rows, totals = own["sequences"]["items"], own["totals"]
    parts = [f"### Rows of {command}", "", "In JSON, JSONL and Parquet.", ""]
    parts += _table(tables.lines(rows))
    for kind in totals.get("anyOf", [totals]):
        title = f"Totals of {command}" + " with several models" * ("models" in kind["properties"])
        parts += [f"### {title}", "", *_table(tables.lines(kind))]
        tables.add(title, kind)
    for level in LEVELS[command]:
        found = schema_of(command, "csv", level)
        parts += [f"### CSV of {command}: a {level} each", "", f"With `--level {level}`.", ""]
        if level == "sequence":
            parts += _columns_of_rows(tables, rows, found)
        else:
            parts += _table(tables.lines(found, cells=True))
    return parts


def _columns_of_rows(tables: Tables, rows: Schema, found: Schema) -> list[str]:
    """Return the columns of lines that are rows: most are keys of these."""
    own = {n: each for n, each in found["properties"].items() if n not in rows["properties"]}
    same = ", ".join(f"`{n}`" for n in found["properties"] if n not in own)
    parts = [f"The keys of rows that a cell can hold: {same}. And these:", ""]
    return [*parts, *_table(tables.lines({**found, "properties": own}, cells=True))]


def _others(tables: Tables, command: str) -> list[str]:
    """Return what commands write that copy rows of others."""
    if command == "merge":
        return ["The keys of the command whose files are merged.", ""]
    run, row = (each["properties"] for each in schema_of(command)["oneOf"][:2])
    own = {"run.selection": run["selection"], "bucket": row["bucket"]}
    added = {"properties": own, "required": ["run.selection"]}
    return ["Rows of `score` or `cond`, and these keys:", "", *_table(tables.lines(added))]


def _table(lines: Iterable[Line]) -> list[str]:
    return [HEAD, *map(str, lines), ""]


def schemas_of(command: str) -> Mapping[str, Schema]:
    """Return the schemas of a command by the names of their files."""
    found = {}
    for name in FORMATS[command]:
        for level in LEVELS[command] if name == "csv" else (None,):
            file = ".".join(filter(None, (command, name, level, "schema.json")))
            found[file] = schema_of(command, name, level)
    return found


def main() -> None:
    """Write the page, and the schemas as files."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    for command in FORMATS:
        for name, schema in schemas_of(command).items():
            (FOLDER / name).write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n")
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
