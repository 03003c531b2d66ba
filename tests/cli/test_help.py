"""What `-h` and `--help` print, and what a shell is offered."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
from rich.cells import cell_len

from helpers.program import in_process
from seqloss_cli.cli import main
from seqloss_cli.cli.options import model_names

COMMANDS: dict[str, Any] = typer.main.get_command(main.app).commands  # type: ignore[attr-defined]


def help_of(*words: str, columns: int = 80) -> str:
    done = in_process(*words, COLUMNS=str(columns))
    assert (done.exit_code, done.stderr) == (0, "")
    return done.stdout


def flags_in(text: str) -> list[str]:
    return re.findall(r"^  (--[\w-]+)", text, re.MULTILINE)


def flags_of(name: str) -> set[str]:
    options = (each for each in COMMANDS[name].params if each.param_type_name == "option")
    return {each.opts[0] for each in options} | {"--help"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_80_columns(name: str) -> None:
    for flag in ("-h", "--help"):
        assert [line for line in help_of(name, flag).splitlines() if cell_len(line) > 80] == []


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_and_no_choice_is_broken(name: str, columns: int) -> None:
    lines = help_of(name, "--help", columns=columns).splitlines()
    assert sorted(flags_in("\n".join(lines))) == sorted(flags_of(name))
    for option in COMMANDS[name].params:
        if option.metavar and option.param_type_name == "option":
            names = f"  {', '.join(option.opts)} {option.metavar}"
            assert any(line == names or line.startswith(f"{names}  ") for line in lines), names


@pytest.mark.parametrize("name", COMMANDS)
def test_types_are_short(name: str) -> None:
    # A condition among the examples compares.
    lines = help_of(name, "--help").splitlines()
    shown = "\n".join(line for line in lines if not line.startswith("  seqloss "))
    assert "<" not in shown
    assert "range" not in shown
    for option in COMMANDS[name].params:
        if option.param_type_name == "option" and not option.is_flag:
            assert re.fullmatch(r"[A-Z]+|I/N|[\w|-]+", option.metavar), option.opts


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_stand_on_one_line(name: str) -> None:
    examples = main.examples_of(getattr(main, name))
    assert examples
    for flag, columns in (("-h", 80), ("--help", 40)):
        lines = help_of(name, flag, columns=columns).splitlines()
        assert {f"  {example}" for example in examples} <= set(lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_short_help_has_at_most_ten_options_which_the_whole_one_begins_with(name: str) -> None:
    short, whole = flags_in(help_of(name, "-h")), flags_in(help_of(name, "--help"))
    assert whole[: len(short)] == short
    assert len(short) == min(10, len(short))
    assert len(short) >= min(7, len(whole) - 2)
    assert f"--help shows all {len(whole)} options" in help_of(name, "-h")


def test_what_is_needed_first_are_options_of_some_command() -> None:
    known = {each.name for command in COMMANDS.values() for each in command.params}
    assert set(main._FIRST) <= known
    assert len(set(main._FIRST)) == len(main._FIRST)


def test_the_program_names_its_commands() -> None:
    for flag in ("-h", "--help"):
        shown = help_of(flag)
        assert all(re.search(rf"^  {name} ", shown, re.MULTILINE) for name in COMMANDS)
        assert max(map(cell_len, shown.splitlines())) <= 80


def test_without_a_word_the_program_shows_its_help_on_stderr() -> None:
    done = in_process(COLUMNS="80")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == help_of("-h")


def test_a_shell_is_offered_demo_and_directories_for_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    asked = {"COMP_WORDS": "seqloss score --model ", "COMP_CWORD": "3"}
    shown = in_process(_SEQLOSS_COMPLETE="complete_bash", **asked).stdout
    assert shown.split() == ["demo", "run/"]
    (tmp_path / "run").rmdir()
    for name in ("runs/a/config.json", "runs/b/config.json", "other.txt", "x.gguf", ".hidden/y"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    here = f"{tmp_path}/"
    offered = [name.removeprefix(here) for name in model_names(here)]
    assert offered == ["runs/", "x.gguf"]
    # A model is the end; a folder of models is not: a shell goes on within it.
    offered = [name.removeprefix(here) for name in model_names(f"{here}ru")]
    assert offered == ["runs/", "runs/a", "runs/b"]
    assert model_names(f"{here}runs/a") == [f"{here}runs/a"]
    assert model_names(f"{here}missing/") == []
    assert model_names("dem") == ["demo"]
