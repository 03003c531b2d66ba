"""The demo model's text: the documentation that every Python installation carries.

Documents are the topics of `pydoc_data.topics`, and for each module of the standard library its
docstrings (read from the source, so nothing is imported but the built-in and extension modules).
A paragraph that stands in several documents is kept in the first only, so that no held-out
paragraph is also a training paragraph. A document is held out when a hash of its name says so.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import importlib.util
import inspect
import pydoc_data.topics
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SKIPPED_DIRS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data"}
HELD_OUT_ONE_IN = 10


@dataclass(frozen=True, slots=True)
class Document:
    name: str
    text: str

    @property
    def held_out(self) -> bool:
        """By a hash of the name: stable when documents come and go between Python versions."""
        return hashlib.sha256(self.name.encode()).digest()[0] % HELD_OUT_ONE_IN == 0


def documents() -> list[Document]:
    """All documents in a fixed order, each paragraph once."""
    seen: set[str] = set()
    found = []
    for name, raw in sorted(_raw_documents()):
        fresh = []
        for paragraph in raw.split("\n\n"):
            key = " ".join(paragraph.split())
            if key and key not in seen:
                seen.add(key)
                fresh.append(paragraph.strip("\n"))
        if fresh:
            found.append(Document(name, "\n\n".join(fresh) + "\n"))
    return found


def held_out_text(found: list[Document]) -> str:
    return "\n".join(document.text for document in found if document.held_out)


def _raw_documents() -> Iterator[tuple[str, str]]:
    for topic, text in pydoc_data.topics.topics.items():
        yield f"topic:{topic}", text
    yield from _source_modules()
    yield from _compiled_modules()


def _source_modules() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_DIRS & set(relative.parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # templates and files kept broken on purpose
            continue
        nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        docs = [ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, nodes)]
        if text := "\n\n".join(doc for doc in docs if doc):
            yield f"module:{'.'.join(relative.with_suffix('').parts)}", text


def _compiled_modules() -> Iterator[tuple[str, str]]:
    """Docstrings of the modules written in C, which have no source to parse."""
    for name in sorted(sys.stdlib_module_names):
        if not _is_compiled(name):
            continue
        try:
            module = importlib.import_module(name)
        except ImportError:  # an extension whose shared library this machine lacks
            continue
        if text := "\n\n".join(_docs_of(module)):
            yield f"compiled:{name}", text


def _is_compiled(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    origin = (spec.origin or "") if spec else ""
    return origin == "built-in" or origin.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES))


def _docs_of(module: object) -> Iterator[str]:
    members = [module]
    for _, value in sorted(vars(module).items()):
        if inspect.isclass(value):
            members += [value, *(v for _, v in sorted(vars(value).items()))]
        elif inspect.isroutine(value):
            members.append(value)
    for member in members:
        doc = getattr(member, "__doc__", None)
        if isinstance(doc, str):
            yield inspect.cleandoc(doc)
