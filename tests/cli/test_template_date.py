"""Chat templates that read the clock: what they are told stands in the record, and can be fixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.program import in_process
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.policies import PairPolicy
from seqloss_cli.core.run_record import POLICIES
from seqloss_cli.results.files import TEMPLATE_DATE, run_differences
from seqloss_cli.tokenization.chat_templates import ChatTemplate

TEMPLATE = (
    '{{ strftime_now("%d %b %Y%TIME") }}{% for m in messages %}[{{ m.role }}]{{ m.content }}'
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
ROWS = [
    {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "Yes."}]}
    for n in range(3)
]
COND = ("cond", "rows.jsonl", "--model", "demo", "--chat-template", "clock.jinja")


@pytest.fixture(autouse=True)
def _inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    Path("clock.jinja").write_text(TEMPLATE.replace("%TIME", ""))


def lines(name: str) -> list[Any]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def test_a_template_is_told_the_date_that_is_given() -> None:
    done = in_process(*COND, "--template-date", "2024-02-03", "-o", "a.jsonl")
    assert "clock" not in done.stderr
    run, row, *_ = lines("a.jsonl")
    assert run["pairs"]["template_date"] == "2024-02-03"
    assert row["text"].removeprefix("<|begin_of_text|>").startswith("03 Feb 2024[user]0?")
    # A run that goes on tells the same, whatever day it is.
    whole = Path("a.jsonl").read_bytes()
    Path("a.jsonl").unlink()
    Path("a.jsonl.partial").write_bytes(b"".join(whole.splitlines(True)[:3]))
    assert in_process(*COND, "-o", "a.jsonl", "--resume").exit_code == 0
    assert Path("a.jsonl").read_bytes().splitlines()[1:] == whole.splitlines()[1:]
    done = in_process(*COND, "-o", "a.jsonl", "--resume", "--template-date", "2024-02-04")
    assert done.exit_code == 2
    assert "--template-date 2024-02-03" in done.stderr


def test_the_clock_is_warned_of_where_a_chat_was_rendered() -> None:
    assert in_process(*COND).stderr.count("reads the clock") == 1
    assert in_process("mask", *COND[1:]).stderr.count("reads the clock") == 1
    Path("rows.jsonl").write_text(json.dumps({"prompt": "a", "response": "b"}))
    for command in ("cond", "mask"):
        assert "clock" not in in_process(command, *COND[1:]).stderr


def test_labels_of_a_trainer_are_of_the_same_date() -> None:
    words = ("mask", *COND[1:], "--like", "trl", "--template-date", "1999-12-31", "--jsonl")
    done = in_process(*words)
    row = json.loads(done.stdout.splitlines()[1])
    assert row["text"].removeprefix("<|begin_of_text|>").startswith("31 Dec 1999")
    assert "tokens_differ" not in done.stdout


def test_now_is_told_warned_of_and_recorded() -> None:
    for time, length in (("", 10), (" %H:%M:%S", 19)):
        template = ChatTemplate(None, text := TEMPLATE.replace("%TIME", time))
        assert template.warnings == []
        template.use_clock(text)
        assert template.date is not None
        assert len(template.date) == length
        assert f"--template-date {template.date}" in template.warnings[0]
    without = TEMPLATE.partition("}}")[2]
    for text in (without, "{# strftime_now() #}" + without):
        assert ChatTemplate(None, text).date is None


@pytest.mark.parametrize("date", ["tomorrow", "2024-13-01", "12:00", "03.02.2024"])
def test_what_is_no_date_is_refused(date: str) -> None:
    with pytest.raises(UsageError, match="--template-date"):
        PairPolicy(template_date=date)


def test_other_dates_are_said_and_no_other_policy() -> None:
    a, b = ({"pairs": {"separator": "", "template_date": date}} for date in ("x", "y"))
    assert run_differences(a, b, POLICIES) == []
    assert [str(d) for d in run_differences(a, b, (TEMPLATE_DATE,))] == [
        "pairs.template_date x and y"
    ]
    assert run_differences(a, {"pairs": {"separator": " "}}, POLICIES)


def test_older_files_are_gone_on_with() -> None:
    in_process(*COND, "--template-date", "2024-02-03", "-o", "a.jsonl")
    left = Path("a.jsonl").read_text().splitlines(True)
    old = json.loads(left[0])
    del old["pairs"]["template_date"]
    first = json.dumps(old, separators=(",", ":")) + "\n"
    Path("b.jsonl.partial").write_text("".join([first, *left[1:3]]))
    done = in_process(*COND, "-o", "b.jsonl", "--resume", "--template-date", "2024-02-03")
    assert done.exit_code == 0, done.stderr
