"""Where prompt, separator and response meet: words that become one, and blanks that meet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqloss_cli.core.records import Chat, Choices, Pair, Sample
from seqloss_cli.inputs.reading import ReadStats

Run = Callable[..., Any]
WORD = "no white space parts two words"


def counts(*samples: Sample) -> tuple[int, int, int]:
    stats = ReadStats()
    for sample in samples:
        stats.note_seams(sample)
    return stats.n_pairs, stats.n_run_together, stats.n_double_blanks


def pair(prompt: str, response: str, separator: str = "") -> Sample:
    return Sample("a", "rows.jsonl", 1, pair=Pair(prompt, response, separator))


@pytest.mark.parametrize(
    ("prompt", "response", "expected"),
    [
        ("The list is", "sorted.", True),
        ("The answer is", "42", True),
        ("cafe\u0301", "ouvert", True),  # a mark ends the word
        ("The list is", " sorted.", False),
        ("The list is ", "sorted.", False),
        ("The list is\n", "sorted.", False),
        ("Is it?", "Yes", False),
        ("He do", "n't", True),
        ("He can", "'t", False),
        ("答えは", "東京です", False),
        ("The answer is", "東京", False),
        ("คำตอบคือ", "ใช่", False),
        ("ответ", "да", True),
        ("답은", "서울", True),  # Korean puts blanks between words
        ("", "Nothing before.", False),
    ],
)
def test_words_that_run_together(prompt: str, response: str, expected: bool) -> None:
    assert counts(pair(prompt, response))[1:] == (int(expected), 0)
    # One of the choices is enough.
    choices = Choices(prompt, (" x", response))
    assert counts(Sample("a", "rows.jsonl", 1, choices=choices))[1] == int(expected)


def test_blanks_meet_only_where_the_separator_puts_one() -> None:
    assert counts(pair("A ", " b")) == (1, 0, 0)
    assert counts(pair("A", " b", " "), pair("A ", "b", " "), pair("A", "b", " ")) == (3, 0, 2)
    assert counts(pair("A", "b", "x")) == (1, 1, 0)


def test_the_template_of_a_chat_separates() -> None:
    as_chat = Choices("a", ("b", "c"), as_chat=True)
    wrapped = Sample("a", "x", 1, pair=Pair("a", "b"), chat=Chat([]))
    assert counts(wrapped, Sample("a", "x", 1, choices=as_chat)) == (0, 0, 0)


@given(st.text(min_size=1), st.text(min_size=1), st.sampled_from([" ", "\n", "\t", "\u3000"]))
def test_white_space_parts_whatever_stands_there(before: str, after: str, blank: str) -> None:
    parted = [pair(before + blank, after), pair(before, blank + after), pair(before, after, blank)]
    assert counts(*parted)[:2] == (3, 0)


@pytest.mark.parametrize("command", ["cond", "rank", "mask"])
def test_every_command_says_it_once_and_in_how_many_rows(
    run_cli: Run, tmp_path: Path, command: str
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": "The list is", "response": blank + "x", "choices": [blank + "x", "."]}
        for blank in ("", " ", "")
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    said = run_cli(command, str(path), "--summary").stderr
    assert said.count(WORD) == 1
    assert "in 2 of 3 rows" in said
    assert "rows.jsonl:1" in said
    assert "--separator ' ' puts a blank there, and in all other rows, too" in said
    parted = run_cli(command, str(path), "--summary", "--separator", " ").stderr
    assert WORD not in parted
    assert "in 1 of 3 rows the blank of --separator meets another one" in parted


def test_a_pair_of_the_command_line_is_a_row(run_cli: Run) -> None:
    words = ("cond", "--prompt", "The list is", "--response", "sorted", "--json", "--no-tokens")
    done = run_cli(*words)
    assert "in 1 of 1 rows" in done.stderr
    assert WORD not in done.stdout
