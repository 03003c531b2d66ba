"""What the package's sources promise, read from their syntax: docstrings, comments, imports.

`python tests/helpers/sources.py [ROOM]` lists what is missing.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "seqloss_cli"
ARRAYS = {"Ints", "Floats", "Bools", "NDArray", "ndarray", "Tensor"}
SHAPE = re.compile(r"\b[Ss]hapes?\b|\b[A-Z]\d? [x×] ([A-Z0-9]|[a-z]\b)|\b[a-z]+_[A-Z]{1,4}\b")
UNIT = re.compile(
    r"\b(nats²?|bits|units?|(log-)?probabilit(y|ies)|logits?|shares?|bytes|cells|seconds)\b",
    re.IGNORECASE,
)
BAD_BEGINNINGS = re.compile(r"(Of|What|Those|Whether|Where|Which|How|As|That|The same)\b")


@dataclass(frozen=True)
class Described:
    """A module, class, function or field with its docstring."""

    place: str
    """File and line."""
    kind: str
    """`module`, `class`, `function` or `field`."""
    name: str
    docstring: str | None
    is_public: bool
    annotations: str = ""
    """What it takes and gives."""
    above: str = ""
    """The docstring of its class."""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else "."


def described(path: Path) -> Iterator[Described]:
    """Everything in a module that has, or could have, a docstring."""
    tree = ast.parse(path.read_text())
    shown = str(path.relative_to(PACKAGE.parent))
    yield Described(f"{shown}:1", "module", "", ast.get_docstring(tree), True)
    yield from _described_in(tree, shown, "", True, "")


def _described_in(
    scope: ast.Module | ast.ClassDef, shown: str, prefix: str, public: bool, above: str
) -> Iterator[Described]:
    for node, follower in zip(scope.body, [*scope.body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            is_public = public and not node.name.startswith("_")
            name, doc = prefix + node.name, ast.get_docstring(node)
            place = f"{shown}:{node.lineno}"
            if isinstance(node, ast.ClassDef):
                yield Described(place, "class", name, doc, is_public)
                yield from _described_in(node, shown, f"{name}.", is_public, doc or "")
            elif not any("overload" in ast.unparse(each) for each in node.decorator_list):
                yield Described(place, "function", name, doc, is_public, _signature(node), above)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            is_field = isinstance(node, ast.AnnAssign)
            annotation = ast.unparse(node.annotation) if is_field else ""
            name = ast.unparse(node.target if is_field else node.targets[0])
            doc = _string(follower)
            is_public = public and not name.startswith("_") and isinstance(scope, ast.ClassDef)
            place = f"{shown}:{node.lineno}"
            yield Described(place, "field", prefix + name, doc, is_public, annotation, above)


def _signature(node: ast.FunctionDef) -> str:
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    parts = [*(each.annotation for each in every), node.returns]
    return " | ".join(ast.unparse(part) for part in parts if part is not None)


def _string(node: ast.stmt | None) -> str | None:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return node.value.value if isinstance(node.value.value, str) else None
    return None


# -- what is wrong --------------------------------------------------------------------------------


def undocumented(path: Path) -> list[str]:
    """Public functions, classes and records without a docstring."""
    return [
        f"{each.place} {each.name}"
        for each in described(path)
        if each.is_public
        and each.kind != "field"
        and not each.docstring
        and not each.name.rpartition(".")[2].startswith("__")
    ]


def without_shape_or_unit(path: Path) -> list[str]:
    """Public functions and fields with arrays, where neither docstring nor that of their class
    names a shape and, for floats, a unit."""
    found = []
    for each in described(path):
        if not each.is_public or not ARRAYS & set(re.findall(r"\w+", each.annotations)):
            continue
        text = f"{each.docstring or ''} {each.above}"
        lacks = [] if SHAPE.search(text) else ["shape"]
        if re.search(r"\bFloats\b|\bfloat\d\d", each.annotations) and not UNIT.search(text):
            lacks.append("unit")
        if lacks:
            found.append(f"{each.place} {each.name}: {' and '.join(lacks)}")
    return found


def badly_begun(path: Path) -> list[str]:
    """Docstrings that begin with a relative clause, or with a word that points elsewhere."""
    return [
        f"{each.place} {each.name}: {each.docstring[:50]!r}"
        for each in described(path)
        if each.docstring and BAD_BEGINNINGS.match(each.docstring.strip())
    ]


def comment_lines(path: Path) -> tuple[int, int]:
    """Whole lines of comments, and all lines."""
    lines = path.read_text().splitlines()
    stripped = [line.strip() for line in lines]
    return sum(line.startswith("#") and line.strip("# ") != "" for line in stripped), len(lines)


_LAYOUT = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
}


def code_lines(source: str) -> int:
    """How many lines hold code: no blank lines, comments, docstrings or other bare strings."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            if _string(statement) is not None:
                lines.difference_update(range(statement.lineno, statement.end_lineno + 1))
    return len(lines)


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules of a circle of imports; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def report(rooms: list[str]) -> None:
    """Print what is missing in these rooms, or in all."""
    for title, listed in (
        ("no docstring", undocumented),
        ("arrays without", without_shape_or_unit),
        ("begins badly", badly_begun),
    ):
        found = [
            line
            for path in modules()
            if not rooms or room_of(path) in rooms
            for line in listed(path)
        ]
        print(f"\n{title}: {len(found)}", *found, sep="\n  ")


if __name__ == "__main__":
    import sys

    report(sys.argv[1:])
