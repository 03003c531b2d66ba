"""Conditions of `select --where`: what they say of a row, and what they refuse."""

from __future__ import annotations

import operator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqloss_cli.analysis.conditions import Condition, ConditionError
from seqloss_cli.core.errors import UsageError

ROW: dict[tuple[str, ...], Any] = {
    ("n",): 3, ("x",): 1.5, ("id",): "a b", ("none",): None, ("meta", "ok"): True,
    ("meta", "tags"): ["x", 2, None], ("meta", "a-b"): "c", ("meta", "deep", "er"): 7,
}  # fmt: skip
OPERATORS = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq,
    "!=": operator.ne,
}  # fmt: skip
NUMBERS = st.one_of(st.none(), st.integers(-3, 3), st.sampled_from([0.5, -1.5]))


def asked(text: str, row: dict[tuple[str, ...], Any] = ROW) -> tuple[bool, bool]:
    """Whether it holds, and whether a comparison met null."""
    condition = Condition(text, "--where")
    return condition.holds(row.get), condition.met_null


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("n == 3", True), ("n < 3", False), ("1 < n <= 3", True), ("1 < n < 3", False),
        ("n > 1 and x < 1", False), ("n > 1 or x < 1", True), ("not n > 1", False),
        ("n * 2 - 1 == 5 and n / 2 == x", True), ("-x < 0", True), ("id == 'a b'", True),
        ('"b" in id', True), ("n in [1, 3]", True), ("n not in [1, 3]", False),
        ("n in []", False), ("n in ['3', 3]", True), ("2 in meta.tags", True),
        ("meta.ok", True), ("meta.ok == true and not meta.ok == false", True),
        ("meta['a-b'] == 'c'", True), ("meta.deep.er > 6", True), ("'x' in meta.tags", True),
        ("none is null", True), ("n is null", False), ("n is not null", True),
        ("  n == 3 \n", True), ("true", True), ("id < 'b'", True),
    ],
)  # fmt: skip
def test_what_holds(text: str, holds: bool) -> None:
    assert asked(text) == (holds, False)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("none < 1", False), ("none == none", False), ("none != 3", False), ("none in [1]", False),
        ("none not in [1]", False), ("n in none", False), ("none + 1 > 0", False),
        ("not none < 1", True), ("not none", False), ("none", False), ("n > 1 or none > 1", True),
        ("n > 1 and none > 1", False), ("n / 0 > 1", False), ("-none < 1", False),
    ],
)  # fmt: skip
def test_a_comparison_with_null_is_false_and_told_of(text: str, holds: bool) -> None:
    # Of `or` the second part is not asked where the first one holds.
    assert asked(text) == (holds, text != "n > 1 or none > 1")


@given(NUMBERS, NUMBERS, st.sampled_from(sorted(OPERATORS)))
def test_comparisons_are_those_of_numbers(a: Any, b: Any, name: str) -> None:
    is_null = a is None or b is None
    wanted = False if is_null else OPERATORS[name](a, b)
    assert asked(f"a {name} b", {("a",): a, ("b",): b}) == (wanted, is_null)


@pytest.mark.parametrize(
    "text",
    ["id < 3", "n == 'x'", "n", "n and true", "id + 'x' == 'y'", "n in 3", "meta.tags == 1",
     "meta.ok + 1 > 0", "not n", "n in ['3', '4']", "id in [1, 2]", "id not in [1]"],
)  # fmt: skip
def test_texts_are_no_numbers(text: str) -> None:
    with pytest.raises(ConditionError):
        asked(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n = 3", "== compares"), ("", "is no condition"), ("n <", "is no condition"),
        ("n; x", "is no condition"), ("open('x')", "may not hold \"open('x')\""),
        ("().__class__", "names columns as"), ("[n for n in x]", "may not hold"),
        ("lambda: 1", "may not hold"), ("n if x else id", "may not hold"), ("n ** 9", "may not"),
        ("n == null", "`is null` asks for it"), ("null < n", "`is null` asks for it"),
        ("n is 3", "`is`, which is for null"), ("f'{n}' == 'x'", "may not hold"),
        ("meta[n] == 1", "names columns as"), ("(n := 3)", "may not hold"),
        ("... is null", "may not hold"), ("n < 1j", "may not hold '1j'"), ("id == b'a'", "may not"),
        ("null", "is neither true nor false"), ("None", "is neither true nor false"),
        ("n == 3 " + "or n == 3 " * 2000, "more than 10,000 characters"),
        ("(" * 500 + "n" + ")" * 500, "is no condition"), ("import os", "is no condition"),
    ],
)  # fmt: skip
def test_what_is_no_condition(text: str, message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        Condition(text, "--where")
    assert message in str(refusal.value)
    assert str(refusal.value).startswith("--where ")


def test_columns_are_named_once_in_order() -> None:
    condition = Condition("x > 1 and meta.a.b == x or meta['c d'] is null and 'n' == id", "")
    assert condition.columns == (("x",), ("meta", "a", "b"), ("meta", "c d"), ("id",))


@given(st.text(max_size=40))
def test_any_text_is_a_condition_or_refused(text: str) -> None:
    try:
        condition = Condition(text, "--where")
    except UsageError:
        return
    with suppress(ConditionError):
        assert condition.holds(ROW.get) in (True, False)


def test_nesting_has_an_end() -> None:
    with pytest.raises((ConditionError, UsageError), match="deep"):
        asked("not " * 2400 + "meta.ok")
