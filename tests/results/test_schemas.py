"""`seqloss schema`: what it prints is valid, says what keys mean, and refuses what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import columns_page
from helpers.program import in_process
from helpers.schemas import hold, hold_csv, hold_text
from seqloss_cli.analysis.schemas import FORMATS, ROWS, schema_of
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.records import SCHEMA_VERSION
from seqloss_cli.results.formats import LEVELS
from seqloss_cli.results.schema.json_schema import closed

EVERY = [(command, name) for command, formats in FORMATS.items() for name in formats]
ROW = {"id": "a", "source": "a.txt", "line": 1, "choice": 0, "position": 0}


@pytest.mark.parametrize(("command", "name"), EVERY)
def test_schemas_are_valid_and_their_references_lead_somewhere(command: str, name: str) -> None:
    found = schema_of(command, name)
    Draft202012Validator.check_schema(found)
    assert found["$comment"] == f"schema_version {SCHEMA_VERSION}"
    named = {ref.removeprefix("#/$defs/") for ref in references(found)}
    assert named <= set(found.get("$defs", {}))


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


PLAIN = {
    *("perplexity", "word_perplexity", "p", "p_adjusted", "correlation", "min_k_percent"),
    # Counts on average; of any figure; of an axis.
    *("accepted_draft_tokens", "accepted_draft_tokens_at_most", "accepted_draft_tokens_if_alike"),
    *("tokens_per_step", "value", "low", "high", "standard_error", "baseline", "mean"),
    "confidence",
}
"""Numbers without a unit, or in one that the place tells."""
ENVELOPE = ("run", "sequences", "rejected", "totals", "response", "type")
"""Keys that need no words."""


def properties(schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key of the objects of a schema, but for those of CSV and of records that were read."""
    if isinstance(schema, list):
        schema = dict(enumerate(schema))
    if isinstance(schema, dict):
        if isinstance(own := schema.get("properties"), dict) and "type" in schema:
            yield from own.items()
        for each in schema.values():
            yield from properties(each)


def test_keys_say_what_they_mean_in_which_unit_and_when_they_are_null() -> None:
    silent, unitless, unsaid = set(), set(), set()
    for command in FORMATS:
        schema = schema_of(command, "json" if command in ROWS else None)
        for name, each in properties(schema):
            text, null, _ = columns_page.told(each)
            kind = columns_page.type_of(each)
            if not text and "$ref" not in each and name not in ENVELOPE:
                silent.add((command, name))
            if kind == "number" and name not in PLAIN and not columns_page.unit_of(text, kind):
                unitless.add((command, name, text))
            if columns_page.nulls(each)[0] and "number" not in kind and not null:
                unsaid.add((command, name, text))
    assert silent == set()
    assert unitless == set()
    assert unsaid == set()


def test_the_page_of_columns_has_every_column_of_csv() -> None:
    made = columns_page.page()
    for command in LEVELS:
        for level in LEVELS[command]:
            _, _, section = made.partition(f"### CSV of {command}: a {level} each\n")
            section, _, _ = section.partition("\n#")
            for name, each in schema_of(command, "csv", level)["properties"].items():
                assert f"`{name}`" in section, (command, level, name)
                assert columns_page.told(each)[0], (command, level, name)


@pytest.mark.parametrize("command", ROWS)
def test_every_key_is_in_the_schema_that_a_run_of_its_command_can_have(command: str) -> None:
    rows = ROWS[command]
    properties = schema_of(command, "json")["properties"]["sequences"]["items"]["properties"]
    possible = {k.name for k in rows.keys if all(rows.known.get(n, True) for n in k.when.split())}
    assert set(properties) == possible
    assert "pmi" not in schema_of("score", "json")["properties"]["totals"]["required"]


@pytest.mark.parametrize("command", LEVELS)
def test_lines_of_csv_have_a_schema_for_each_level(command: str) -> None:
    for level in LEVELS[command]:
        found = schema_of(command, "csv", level)
        assert {"id", "line", "reason"} <= set(found["properties"])
    with pytest.raises(AssertionError, match="'many' is not of type"):
        hold({**ROW, "n_tokens": "many"}, "score", "csv", "sequence")
    with pytest.raises(AssertionError, match="is a required property"):
        hold_csv("id,line\na,1\n", "score", "token")


def test_a_wrong_row_is_found() -> None:
    run = b'{"type":"run","command":"score"}\n'
    with pytest.raises(AssertionError, match="is a required property"):
        hold_text(run)
    assert hold_text(b"The cat.\n") == 0


def test_other_keys_are_allowed_but_not_by_tests() -> None:
    rejected = {"type": "rejected", "id": "a", "source": "a", "line": None, "reason": "empty_line",
                "message": "is empty"}  # fmt: skip
    printed = Draft202012Validator(schema_of("score"))
    assert printed.is_valid({**rejected, "later": 1})
    assert not Draft202012Validator(closed(schema_of("score"))).is_valid({**rejected, "later": 1})
    assert not printed.is_valid({**rejected, "line": "1"})


def test_the_command_prints_one_schema_or_all() -> None:
    one = json.loads(in_process("schema", "rank", "--format", "parquet").stdout)
    assert one == schema_of("rank", "parquet")
    choices = one["properties"]["choices"]
    assert choices["contentMediaType"] == "application/json"
    assert "log_prob" in choices["contentSchema"]["items"]["properties"]
    every = json.loads(in_process("schema").stdout)
    assert list(every) == list(FORMATS)
    assert set(json.loads(in_process("schema", "--format", "csv").stdout)) == set(LEVELS)


def test_a_format_or_level_that_is_not_there_is_refused() -> None:
    for words, said in (
        (("summarize", "--format", "csv"), "summarize has no format csv: json"),
        (("score", "--level", "token"), "--level token"),
        (("rank", "--format", "csv", "--level", "word"), "choice or token"),
        (("scare",), "scare"),
    ):
        done = in_process("schema", *words)
        assert done.exit_code == 2
        assert said in done.stderr
    with pytest.raises(UsageError):
        schema_of("select", "parquet")
