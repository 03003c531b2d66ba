"""JSON Schema (2020-12) of types, of dataclasses and of declared keys.

Meanings come from where they are written: `about` of keys, docstrings of fields and of classes.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from seqloss_cli.core.columns import COLUMNS
from seqloss_cli.results.schema import Either, Key, Kind, OneOf, ReadBack

Schema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
_ASKED_BY = {
    "text": "not with --no-text",
    "tokens": "not with --no-tokens",
    "words": "with --words",
    "regions": "with --regions",
    "context_lengths": "with --context-lengths",
    "pmi": "with --pmi",
    "corrected": "with --word-correction",
    "pairs": "of prompts and responses",
    "compared": "with --boundary compare",
    "losses": "with --loss",
    "teacher": "with --teacher",
    "drafts": "with --draft-length",
    "models": "with several --model",
    "bounds": "of a saved teacher",
    "shard": "with --shard",
    **{column.name: f"with {column.flag}" for column in COLUMNS},
}
"""Condition of keys to what a user does to have them."""


class Shapes:
    """Makes schemas; those of dataclasses stand once, in `definitions`."""

    def __init__(self, known: Mapping[str, bool] | None = None) -> None:
        """`known` are conditions of keys that are sure to hold, or not to, of this command."""
        self.definitions: dict[str, Schema] = {}
        self._known = known or {}

    def of(self, kind: Any) -> Schema:
        """Return the schema of a type, or of an object with the keys of a tuple."""
        if isinstance(kind, tuple):
            return self.of_keys(kind)
        if isinstance(kind, list):  # objects with the keys of a tuple, in an array
            return {"type": "array", "items": self.of(kind[0])}
        if isinstance(kind, Either):
            return self._union(kind.types)
        if isinstance(kind, ReadBack):
            found = {**self.of_record(kind.record), "additionalProperties": True}
            del found["required"]
            return found
        if isinstance(kind, OneOf):
            return {"enum": [*kind.values]}
        if kind in _PLAIN:
            return {"type": _PLAIN[kind]}
        origin, inner = get_origin(kind), get_args(kind)
        if origin is Literal:
            return {"enum": [*inner]}
        if origin in (Union, types.UnionType):
            return self._union(inner)
        if origin is tuple and inner[-1:] != (...,):
            size = len(inner)
            return {"type": "array", "prefixItems": [*map(self.of, inner)], "minItems": size,
                    "maxItems": size}  # fmt: skip
        if origin is not None and issubclass(origin, Mapping):
            return {"type": "object", "additionalProperties": self.of(inner[1])}
        if origin is not None and issubclass(origin, Sequence):
            return {"type": "array", "items": self.of(inner[0])}
        if isinstance(kind, type) and is_dataclass(kind):
            return self._reference(kind)
        assert kind is Any, kind
        return {}

    def of_keys(self, keys: Iterable[Key]) -> Schema:
        """Return the schema of an object with these keys: those that a run can have."""
        possible = [*filter(self.is_possible, keys)]
        required = [key.name for key in possible if self.is_sure(key)]
        properties: dict[str, Schema] = {}
        for key in possible:
            found = self.of_key(key)
            # Two keys of one name: what is written is one of them.
            before = properties.get(key.name)
            properties[key.name] = found if before is None else {"anyOf": [before, found]}
        return {"type": "object", "properties": properties, "required": [*dict.fromkeys(required)]}

    def is_possible(self, key: Key) -> bool:
        """Return whether a run can have the key."""
        return all(self._known.get(name, True) for name in key.when.split())

    def is_sure(self, key: Key) -> bool:
        """Return whether every row has the key, whatever was asked for."""
        asked = all(self._known.get(name, False) for name in key.when.split())
        return asked and not key.optional

    def of_key(self, key: Key, kind: Any = None) -> Schema:
        """Return the schema of a key's value, with its meaning; `kind` stands for its type."""
        about, asked = (
            meaning(key),
            [_ASKED_BY[n] for n in key.when.split() if n not in self._known],
        )
        found = self.of(key.type if kind is None else kind)
        if about:
            found = {"description": about, **found}
        return {**found, "$comment": ", ".join(asked)} if asked else found

    def _union(self, inner: Sequence[Any]) -> Schema:
        found = [self.of(each) for each in inner]
        if all(set(each) == {"type"} for each in found):
            return {"type": [each["type"] for each in found]}
        return {"anyOf": found}

    def _reference(self, kind: type) -> Schema:
        name = kind.__name__.lstrip("_")
        if name not in self.definitions:
            self.definitions[name] = {}
            self.definitions[name].update(self.of_record(kind))
        return {"$ref": f"#/$defs/{name}"}

    def of_record(self, kind: Any) -> Schema:
        """Return the schema of the fields of a dataclass."""
        hints, told = get_type_hints(kind), meanings(kind)
        own = [each for each in fields(kind) if not each.metadata.get("is_left_out")]
        properties = {}
        for each in own:
            about = {"description": told[each.name]} if told.get(each.name) else {}
            properties[each.name] = about | self.of(hints[each.name])
        optional = [each.name for each in own if each.metadata.get("is_optional")]
        return {
            "description": _paragraph(kind.__doc__ or ""),
            "type": "object",
            "properties": properties,
            "required": [each.name for each in own if each.name not in optional],
        }


def closed(schema: Any) -> Any:
    """Return a schema that allows no other keys than those that it names."""
    if isinstance(schema, list):
        return [*map(closed, schema)]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(value) for name, value in schema.items()}
    # A key called `properties` is an object there, too; `type` tells a schema from it.
    if schema.get("type") == "object" and "properties" in schema:
        found.setdefault("additionalProperties", False)
    return found


def meaning(key: Key) -> str:
    """Return what a key means."""
    if isinstance(key.about, str):
        return key.about
    kind, name, *more = key.about
    text = meanings(kind).get(name, "")
    return "; ".join([text.removesuffix("."), *more]) if more else text


@lru_cache
def meanings(kind: type) -> Mapping[str, str]:
    """Return the docstrings of the fields and properties of a class, by name."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for each, after in zip(tree.body, [*tree.body[1:], None], strict=True):
            if isinstance(each, ast.FunctionDef):
                found[each.name] = _paragraph(ast.get_docstring(each) or "")
            elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                found[each.target.id] = _docstring(after)
    return {name: text for name, text in found.items() if text}


def _docstring(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return _paragraph(str(node.value.value))
    return ""


def _paragraph(text: str) -> str:
    """Return the first paragraph of a docstring, in one line; None is null there."""
    return re.sub(r"\bNone\b", "null", " ".join(text.strip().partition("\n\n")[0].split()))


def element(key: Key) -> Any:
    """Return the type of a cell that holds one entry of an array, or a plain value; may be null."""
    kind = key.type
    options = [each for each in get_args(kind) if each is not type(None)]
    kind = options[0] if get_origin(kind) in (Union, types.UnionType) and options else kind
    if key.kind in (Kind.texts, Kind.wholes, Kind.reals, Kind.bools):
        kind = get_args(kind)[0]
    return kind | None if kind is not Any else Any
