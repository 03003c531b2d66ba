"""Options are declared once: at fields of records, and their conflicts in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer.main

from helpers.program import document, in_process
from seqloss_cli import BatchPolicy, ModelChoice, PairPolicy, TokenPolicy, UsageError
from seqloss_cli.cli.conflicts import CONFLICTS
from seqloss_cli.cli.inputs import ChoiceArguments
from seqloss_cli.cli.main import app
from seqloss_cli.cli.options import SEVERAL, OutputSettings
from seqloss_cli.core.options import Option, option_fields
from seqloss_cli.core.policies import SpeedPolicy

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
PARAMETERS = {name: {p.name: p for p in command.params} for name, command in COMMANDS.items()}
DERIVED = {"writes", "draws", "suffix", "objective", "n_files", "n_models"}
"""Parameters that a command works out for the table."""


@pytest.mark.parametrize("row", CONFLICTS, ids=lambda row: " ".join(row.where))
def test_a_row_of_the_table_is_for_a_command_that_has_its_options(row: Any) -> None:
    assert set(row.commands) <= set(COMMANDS)
    names = row.where.keys() - DERIVED
    having = {name for name, parameters in PARAMETERS.items() if names <= parameters.keys()}
    assert having >= set(row.commands)
    assert having


def test_a_file_is_not_compared_with_itself(tmp_path: Path) -> None:
    path, link = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    path.touch()
    link.symlink_to(path)
    page = ("-o", tmp_path / "page.html")
    for command in (("compare",), ("report", *page)):
        for other, said in ((path, "is named twice"), (link, f"and {link} are one file")):
            done = in_process(*command, path, other)
            assert (done.exit_code, done.stdout) == (2, "")
            assert f"{path} {said}: it does not differ from itself" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_of_one_value_is_not_given_two(name: str) -> None:
    options = [each for each in COMMANDS[name].params if each.param_type_name == "option"]
    # All go one way: some of each command.
    for each in [each for each in options if not (each.is_flag or each.multiple)][::9]:
        if (name, each.name) in SEVERAL:
            continue
        # By any of its names, and before a value is looked at.
        done = in_process(name, each.opts[0], "first", each.opts[-1], "second")
        assert (done.exit_code, done.stdout) == (2, "")
        assert f"{each.opts[0]} takes one value, and is given 2: 'first', 'second'" in done.stderr
        assert f"leave all but one out, or run {name} once for each" in done.stderr


def test_what_may_be_given_twice_is(tmp_path: Path) -> None:
    summary = ("score", "--text", "a", "--json", "--summary")
    once = document(in_process(*summary))
    assert document(in_process(*summary, "--json", "--summary"))["totals"] == once["totals"]
    # A flag goes before a variable and a file, and is one value.
    (tmp_path / "a.yaml").write_text("model: nowhere\n")
    flags = ("--model", "demo", "--config", tmp_path / "a.yaml")
    done = in_process(*summary, *flags, SEQLOSS_MODEL="elsewhere")
    assert document(done)["totals"] == once["totals"]
    # Help is given whatever else there is.
    assert "Usage" in in_process("score", "--text", "a", "--text", "b", "--help").stdout


def test_of_two_values_no_secret_is_shown_and_commands_that_take_them_are_named() -> None:
    done = in_process("score", "--model", "https://me:secret@host/a?token=b", "-m", "b")
    assert "'https://host/a', 'b'" in done.stderr
    assert "diverge and compare can take several" in done.stderr


@pytest.mark.parametrize("record", [BatchPolicy, ModelChoice, PairPolicy, SpeedPolicy, TokenPolicy])
def test_a_value_that_its_option_does_not_take_is_refused(record: type) -> None:
    for field in option_fields(record):
        assert isinstance(field.declaration, Option)
        with pytest.raises(UsageError, match=f"{field.declaration.flag} (takes|is true or false)"):
            record(**{field.name: 7.5})


def test_a_batch_is_of_auto_or_of_a_number_that_may_be_text() -> None:
    assert BatchPolicy("512") == BatchPolicy(512)  # type: ignore[arg-type]
    assert BatchPolicy("auto").auto  # type: ignore[arg-type]
    for wrong in ("0", "-1", "1.5", "٣", " 3", "1_000", ""):
        with pytest.raises(UsageError, match="--batch-tokens takes a whole number"):
            BatchPolicy(wrong)  # type: ignore[arg-type]


def test_a_flag_that_begins_with_no_turns_its_field_off() -> None:
    for record in (BatchPolicy, PairPolicy, OutputSettings):
        for field in option_fields(record):
            assert field.is_negative == field.parameter.startswith("no_")
    assert not any(field.is_negative for field in option_fields(ChoiceArguments))  # --no-prompt


def test_a_level_of_other_commands_is_no_error_where_no_lines_are_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SEQLOSS_LEVEL", "sequence")
    words = ["rank", "--prompt", "A", "--response", " b", "--response", " c", "--model", "demo"]
    assert document(in_process(*words, "--json"))["sequences"]
    refused = in_process(*words, "--format", "csv")
    assert refused.exit_code == 2
    assert "a line of rank is a choice or a token: --level sequence is not" in refused.stderr
