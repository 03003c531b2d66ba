"""Rows of choices as data sets have them: messages, labels, and answers of several kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from seqloss_cli.core.records import Choices, Rejected
from seqloss_cli.inputs.choices import ChoiceFields
from seqloss_cli.inputs.reading import ReadOptions, ReadStats, read_inputs

U = {"role": "user", "content": "Hi"}


def a(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def read(path: Path, row: dict[str, Any], **fields: Any) -> Choices | str:
    """The choices, or the reason of the rejection."""
    path.write_text(json.dumps(row))
    options = ReadOptions(pairs=ChoiceFields(**fields))
    (item,) = read_inputs([str(path)], options, ReadStats())
    if isinstance(item, Rejected):
        return item.reason
    assert item.choices is not None
    return item.choices


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (1, (1,)),
        ("1", (1,)),
        ("c", (2,)),
        ([0, 2], (0, 2)),
        ([True, False, True], (0, 2)),
        ([0, 1, 0], "bad_answer"),  # places, or whether each is right?
        ([1, 0, 0], "bad_answer"),
        ([False, False, False], "bad_answer"),
        ([1, 2, 0], (1, 2, 0)),
        (True, "bad_answer"),
        (1.0, "bad_answer"),
        ("A", "bad_answer"),
        ({"text": ["a"]}, "bad_answer"),
        (None, None),
    ],
)
def test_answers(path: Path, answer: Any, expected: Any) -> None:
    found = read(path, {"prompt": "p", "choices": ["a", "b", "c"], "answer": answer})
    assert (found if isinstance(found, str) else found.answers) == expected


@pytest.mark.parametrize(
    ("labels", "answer", "expected"),
    [
        (["A", "B"], "B", (1,)),
        (["1", "2"], "1", (0,)),
        (["1", "2"], "2", (1,)),
        (["1", "2"], 1, "bad_answer"),  # the label of the first, the place of the second
        (["0", "1"], 1, (1,)),
        (["A", "B"], "1", "bad_answer"),  # SIQA counts from 1, others from 0
        ([1, 2], 1, (0,)),
        (["A", "B"], "y", (1,)),
        (["A", "B"], 0, (0,)),
        (["A", "B"], "C", "bad_answer"),
        (["x", "y"], "y", (1,)),
        (["y", "x"], "y", "bad_answer"),  # a label and the text of another
        (["A"], "A", "wrong_type"),
    ],
)
def test_choices_with_labels(path: Path, labels: Any, answer: Any, expected: Any) -> None:
    row = {"prompt": "p", "choices": {"text": ["x", "y"], "label": labels}, "answer": answer}
    found = read(path, row)
    assert (found if isinstance(found, str) else found.answers) == expected
    assert isinstance(found, str) or found.responses == ("x", "y")
    if not isinstance(found, str) and labels != [1, 2]:  # MedQA and its like
        row["choices"] = dict(zip(labels, ["x", "y"], strict=True))
        assert read(path, row) == found


@pytest.mark.parametrize(
    ("names", "answer", "expected"),
    [
        (("good", "bad"), "bad", (1,)),
        (("good", "bad"), "1", (1,)),
        (("option1", "option2"), "1", "bad_answer"),  # the place of option2, the name of option1
        (("option1", "option2"), "2", "bad_answer"),
        (("option1", "option2"), "option1", (0,)),
        (("sol1", "sol2"), 1, (1,)),
        (("ending0", "ending1"), "1", (1,)),
        (("answerA", "answerB"), "1", "bad_answer"),
        (("answerA", "answerB"), 1, (1,)),
    ],
)
def test_fields_of_choices(path: Path, names: Any, answer: Any, expected: Any) -> None:
    row = {"prompt": "p", names[0]: "x", names[1]: "y", "answer": answer}
    found = read(path, row, choices=names)
    assert (found if isinstance(found, str) else found.answers) == expected


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [U], "chosen": [a("x")], "rejected": [a("y")]},
        {"prompt": "Hi", "chosen": [a("x")], "rejected": [a("y")]},
        {"prompt": "Hi", "chosen": [U, a("x")], "rejected": [U, a("y")]},
        {"prompt": [U], "chosen": [U, a("x")], "rejected": [U, a("y")]},
        {"prompt": [U], "chosen": "x", "rejected": [a([{"type": "text", "text": "y"}])]},
        {"prompt": [U], "chosen": "x", "rejected": "y"},
        {"prompt": [U], "chosen": a("x"), "rejected": a("y", id="1")},
    ],
)
def test_preferences_of_messages(path: Path, row: dict[str, Any]) -> None:
    """TRL's explicit and implicit prompts, and a prompt that is the text of the first message."""
    found = read(path, row, choices=("chosen", "rejected"))
    expected = Choices("Hi", ("x", "y"), as_chat=True, messages=[U], template=TEMPLATE)
    assert found == expected


TEMPLATE = {"tools": None, "template_kwargs": {}}


def test_implicit_prompts_may_be_long(path: Path) -> None:
    shared = [U, a("Yo"), U]
    row = {"chosen": [*shared, a("x")], "rejected": [*shared, a("y")], "tools": [{"a": 1}]}
    found = read(path, row, choices=("chosen", "rejected"), prompt=None)
    assert isinstance(found, Choices)
    assert (found.messages, found.responses, found.as_chat) == (shared, ("x", "y"), True)
    assert found.template == {"tools": [{"a": 1}], "template_kwargs": {}}
    assert json.loads(found.prompt) == shared


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": [U], "choices": [[a("x")], [a("y"), U, a("z")]]}, "wrong_type"),
        ({"prompt": [U], "choices": [[a("x")], [a("y", tool_calls=[{}])]]}, "wrong_type"),
        ({"prompt": [U], "choices": [[a("x")], [U]]}, "wrong_type"),
        ({"prompt": [U], "choices": [[a("x", thinking="hm")], [a("y")]]}, "wrong_type"),
        ({"prompt": [U], "choices": [[a("x")], []]}, "empty"),
        ({"prompt": "", "choices": [[a("x")], [a("y")]]}, "missing_field"),
        ({"prompt": "Ha", "choices": [[U, a("x")], [U, a("y")]]}, "ambiguous"),
        ({"prompt": [U], "choices": [[a([{"type": "image"}])], [a("y")]]}, "unsupported_part"),
        ({"prompt": "p", "choices": [{"output": {"text": "x"}}]}, "wrong_type"),
        ({"prompt": {"text": "p"}, "choices": ["x", "y"]}, "wrong_type"),
        ({"prompt": "p", "choices": [["x"], ["y"]]}, "wrong_type"),
    ],
)
def test_other_messages_are_rejected(path: Path, row: dict[str, Any], reason: str) -> None:
    assert read(path, row) == reason


def test_a_separator_has_no_place_in_a_chat(path: Path) -> None:
    row = {"prompt": [U], "choices": ["x", "y"]}
    assert read(path, row, separator=" ") == "separator_with_chat"
