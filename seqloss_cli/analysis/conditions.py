"""Read and evaluate conditions on rows: `bits_per_byte < 1.2 and meta.lang in ["en", "de"]`.

The language is that of simpleeval, a library that walks Python's syntax trees and runs no code, cut
down to columns, numbers, texts, arithmetic, comparisons, `and`, `or` and `not`. Two rules are our
own. A comparison with null is false, and nulls that were met are told of; `is null` asks for them.
And a text is never compared with a number: in files of many hands the same field is both.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from simpleeval import SimpleEval

from seqloss_cli.core.errors import UsageError

Path = tuple[str, ...]
"""Names of a column: `("meta", "lang")`."""
_LITERALS: Mapping[str, Any] = {"true": True, "false": False, "null": None}
_MOST_CHARS = 10_000
_ARITHMETIC: Mapping[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISONS: Mapping[type[ast.AST], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_OTHERS = (
    *(ast.Expr, ast.Name, ast.Load, ast.Constant, ast.Attribute, ast.Subscript, ast.List),
    *(ast.BinOp, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.Compare),
    *(ast.Is, ast.IsNot, ast.In, ast.NotIn),
)
_ALLOWED = (*_ARITHMETIC, *_COMPARISONS, *_OTHERS)


class ConditionError(Exception):
    """A row whose values a condition cannot be asked of."""


class Condition:
    """A condition on the columns of a row. Raises UsageError for what is none."""

    def __init__(self, text: str, flag: str) -> None:
        """`flag` begins messages."""
        self._text, self._flag = text, flag
        self._tree = self._parsed()
        try:
            self._paths = dict(self._columns(self._tree))
        except RecursionError:
            raise self._error("is nested too deep") from None
        self.columns = tuple(dict.fromkeys(self._paths.values()))
        """The columns that it names, in order."""
        self.met_null = False
        """A comparison of the last row was with null, and so false."""
        self._value_of: Callable[[Path], Any] = lambda path: None
        self._evaluator = self._made_evaluator()

    def holds(self, value_of: Callable[[Path], Any]) -> bool:
        """Return whether it holds of a row whose columns have these values.

        Raises ConditionError where a text meets a number, and the like.
        """
        self.met_null, self._value_of = False, value_of
        try:
            return self._truth(self._evaluator.eval(self._text, self._tree))
        except RecursionError:
            raise ConditionError("the condition is nested too deep") from None

    def _parsed(self) -> ast.Expr:
        try:
            if len(self._text) > _MOST_CHARS:
                raise ValueError(f"it has more than {_MOST_CHARS:,} characters")
            tree = ast.parse(self._text.strip(), mode="exec").body
        # The parser gives up on deep nesting by any of the last three.
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            why = error.msg if isinstance(error, SyntaxError) else str(error) or "too deep"
            raise self._error(f"is no condition: {why}") from None
        if len(tree) == 1 and isinstance(tree[0], ast.Expr) and _is_null(tree[0].value):
            raise self._error("is neither true nor false")
        if len(tree) != 1 or not isinstance(tree[0], ast.Expr):
            near = "; == compares" if tree and isinstance(tree[0], ast.Assign) else ""
            raise self._error(f"is no condition{near}")
        return tree[0]

    def _columns(self, node: ast.AST) -> Iterator[tuple[ast.AST, Path]]:
        """Yield the nodes that are columns; raises UsageError for what no condition has."""
        if not isinstance(node, _ALLOWED):
            part = ast.get_source_segment(self._text.strip(), node) if _has_place(node) else None
            raise self._error(f"may not hold {part or type(node).__name__!r}")
        if isinstance(node, ast.Compare):
            self._refuse_null(node)
        if isinstance(node, ast.Name) and node.id in _LITERALS:
            return
        if isinstance(node, ast.Constant) and not isinstance(node.value, str | int | float | None):
            raise self._error(f"may not hold {ast.unparse(node)!r}")
        if isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
            yield node, self._path(node)
            return
        for child in ast.iter_child_nodes(node):
            yield from self._columns(child)

    def _refuse_null(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        for at, op in enumerate(node.ops):
            nulls = [_is_null(each) for each in sides[at : at + 2]]
            if any(nulls) and not isinstance(op, ast.Is | ast.IsNot):
                raise self._error("compares with null, which is never true: `is null` asks for it")
            if isinstance(op, ast.Is | ast.IsNot) and not nulls[1]:
                raise self._error("has `is`, which is for null; == compares")

    def _path(self, node: ast.AST) -> Path:
        if isinstance(node, ast.Name):
            return (node.id,)
        if isinstance(node, ast.Attribute):
            return (*self._path(node.value), node.attr)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            return (*self._path(node.value), str(node.slice.value))
        raise self._error('names columns as meta.NAME or meta["a name"]')

    def _made_evaluator(self) -> SimpleEval:
        found: Any = SimpleEval(operators=self._operators(), functions={}, names={})

        def column(node: ast.AST) -> Any:
            return self._value_of(self._paths[node])

        # What is not here is refused before anything is evaluated.
        found.nodes = {
            ast.Expr: lambda node: found._eval(node.value),
            ast.Name: lambda node: _LITERALS[node.id] if node.id in _LITERALS else column(node),
            ast.Attribute: column,
            ast.Subscript: column,
            ast.Constant: lambda node: node.value,
            ast.List: lambda node: [found._eval(each) for each in node.elts],
            ast.BinOp: found._eval_binop,
            ast.UnaryOp: found._eval_unaryop,
            ast.Compare: found._eval_compare,
            ast.BoolOp: lambda node: self._junction(found, node),
        }
        return found

    def _operators(self) -> dict[type[ast.AST], Callable[..., Any]]:
        def arithmetic(of: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
            def found(a: Any, b: Any) -> Any:
                if a is None or b is None:
                    return None
                if not (_is_number(a) and _is_number(b)):
                    raise ConditionError(f"{a!r:.40} and {b!r:.40} are not two numbers")
                try:
                    return of(a, b)
                except (ZeroDivisionError, OverflowError):
                    return None

            return found

        def comparison(of: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
            return lambda a, b: self._both(a, b) and of(a, b)

        operators: dict[type[ast.AST], Callable[..., Any]] = {}
        operators |= {each: arithmetic(of) for each, of in _ARITHMETIC.items()}
        operators |= {each: comparison(of) for each, of in _COMPARISONS.items()}
        return operators | {
            ast.USub: lambda a: arithmetic(operator.sub)(0, a),
            ast.Not: lambda a: (a is not None and not self._truth(a)) or self._null(a),
            ast.Is: lambda a, b: a is None,
            ast.IsNot: lambda a, b: a is not None,
            ast.In: self._is_in,
            ast.NotIn: lambda a, b: self._known(a, b) and not self._is_in(a, b),
        }

    def _junction(self, evaluator: SimpleEval, node: ast.BoolOp) -> bool:
        values = (self._truth(evaluator._eval(each)) for each in node.values)
        return all(values) if isinstance(node.op, ast.And) else any(values)

    def _truth(self, value: Any) -> bool:
        if value is None:
            self.met_null = True
            return False
        if not isinstance(value, bool):
            raise ConditionError(f"{value!r:.40} is neither true nor false: compare it")
        return value

    def _null(self, value: Any) -> bool:
        self.met_null |= value is None
        return False

    def _known(self, a: Any, b: Any) -> bool:
        self.met_null |= a is None or b is None
        return a is not None and b is not None

    def _both(self, a: Any, b: Any) -> bool:
        """Return whether two values can be compared."""
        if not self._known(a, b):
            return False
        if not _alike(a, b):
            raise ConditionError(f"{a!r:.40} cannot be compared with {b!r:.40}")
        return True

    def _is_in(self, a: Any, b: Any) -> bool:
        if not self._known(a, b):
            return False
        if isinstance(b, str) and isinstance(a, str):
            return a in b
        others = [each for each in b if each is not None] if isinstance(b, list) else None
        # One of its kind is enough: a column that is both has lists of both.
        if others is None or (others and not any(_alike(a, each) for each in others)):
            raise ConditionError(f"{a!r:.40} cannot be in {b!r:.40}")
        return a in others

    def _error(self, what: str) -> UsageError:
        return UsageError(f"{self._flag} {self._text!r:.200} {what}")


def _has_place(node: ast.AST) -> bool:
    return isinstance(node, ast.expr | ast.stmt)


def _is_null(node: ast.AST) -> bool:
    is_name = isinstance(node, ast.Name) and node.id == "null"
    return is_name or (isinstance(node, ast.Constant) and node.value is None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _alike(a: Any, b: Any) -> bool:
    """Return whether two values are texts, or numbers."""
    return any(isinstance(a, kind) and isinstance(b, kind) for kind in (str, (int, float)))
