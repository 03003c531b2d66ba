"""`--resume`: a run that ended anywhere goes on, and its file is that of a run that never ended.

Most runs are in this process, with models that are loaded once; kills and locks need real ones.
"""

from __future__ import annotations

import errno
import json
import os
import random
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.program import ROOT, in_process
from seqloss_cli import ModelChoice, Scorer
from seqloss_cli.cli import settings
from seqloss_cli.core.errors import RunError, UsageError
from seqloss_cli.core.policies import BatchPolicy, PairPolicy
from seqloss_cli.results import sinks
from seqloss_cli.results.resume import inspect_partial, recorded_run
from seqloss_cli.results.sinks import open_sink

TEMPLATE = ROOT / "samples" / "chat.jinja"
ROWS: list[Any] = [
    {"id": "first", "text": "The list is sorted in place."},
    {"text": "Raises ValueError if 🐕 is not a string.", "topic": "dogs"},
    {"input_ids": [450, 271, 12, 700], "labels": [-100, 271, -100, 700]},
    {"no": "text"},
    *({"id": n, "text": f"row {n} " + "of some text " * (n % 5)} for n in range(8)),
    {"id": "first", "text": "An id that came before."},
    {"text": "日本語 déjà vu\u2028\x7f"},
    {"id": "long", "text": "a text of more than one window. " * 12},
    {"input_ids": [5, 999_999]},
    {"id": "last", "text": "The end."},
]
PAIRS: list[Any] = [
    {"id": "clean", "prompt": "The list is", "response": " sorted in place."},
    {"id": "merged", "prompt": "The re", "response": "turn value is a number."},
    {"id": "empty", "prompt": "", "response": "No prompt."},
    {"id": "none", "prompt": "No response", "response": ""},
    {"id": "chat", "messages": [{"role": "user", "content": "Is a tuple mutable?"}]},
    *(
        {
            "id": f"chat {n}",
            "messages": [
                {"role": "user", "content": "Is a tuple mutable?"},
                {"role": "assistant", "content": f"No, {n} times no."},
            ],
        }
        for n in range(3)
    ),
    {"id": "last", "prompt": "The list is", "response": " a kind of tea."},
]
SCORE = ("score", "rows.jsonl", "--keep-meta", "--ranks", "--words", "--context-lengths")
COND = ("cond", "pairs.jsonl", "--pmi", "--boundary", "compare", "--chat-template", TEMPLATE)
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def scorers() -> dict[bool, Scorer]:
    """Of texts, and of pairs; small batches, so that a block has several."""
    choice, batches = ModelChoice(device="cpu"), BatchPolicy(64, prefetch=True)
    pairs = PairPolicy(pmi=True, boundary="compare", chat_template=TEMPLATE.read_text())
    sharing = replace(batches, share_prefix=True)
    return {
        False: Scorer(choice, context=48, batches=batches),
        True: Scorer(choice, batches=sharing, pairs=pairs),
    }


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scorers: dict[bool, Scorer]) -> Run:
    """The program in a directory with inputs; its model is loaded already, whatever it is asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "load_scorer", lambda _, pairs=None: scorers[pairs is not None])
    lines = [json.dumps(row) for row in ROWS]
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines[:6], "", *lines[6:]]) + "\n")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))

    def go(*arguments: object, exit_code: int = 3, stdin: bytes | None = None) -> Any:
        result = in_process(*arguments, "-o", "out.jsonl", stdin=stdin)
        assert result.exit_code == exit_code, result.stderr
        return result

    return go


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl.partial"


def move_back(out: Path, partial: Path, content: bytes) -> None:
    out.unlink(missing_ok=True)
    partial.write_bytes(content)


def without_start(file: bytes) -> tuple[Any, bytes]:
    """The run line but for its time, and all other lines."""
    first, rest = file.split(b"\n", 1)
    found = json.loads(first)
    del found["started_at"]
    return found, rest


def timed(file: bytes, when: str) -> bytes:
    """The file as if its run had begun at another time."""
    first, rest = file.split(b"\n", 1)
    head, tail = first.split(b'"started_at":"', 1)
    return head + b'"started_at":"' + when.encode() + tail[len(when) :] + b"\n" + rest


THEN = "2001-02-03T04:05:06+00:00"


@pytest.fixture
def whole(run: Run, out: Path) -> bytes:
    """What `SCORE` writes, and began long ago."""
    run(*SCORE)
    return timed(out.read_bytes(), THEN)


# -- wherever it ended -------------------------------------------------------------------------


@pytest.mark.parametrize("command", [SCORE, COND, (*SCORE, "--no-tokens", "--no-text")])
def test_a_file_cut_anywhere_becomes_the_whole_one(
    run: Run, out: Path, partial: Path, command: tuple[Any, ...]
) -> None:
    run(*command)
    whole = timed(out.read_bytes(), THEN)
    ends = [n + 1 for n, byte in enumerate(whole) if byte == ord("\n")]
    rng = random.Random(7)
    anywhere = [rng.randrange(len(whole)) for _ in range(50 if command == SCORE else 12)]
    for at in (*ends, *anywhere, 0, 1, ends[0] - 1, len(whole) - 1):
        move_back(out, partial, whole[:at])
        result = run(*command, "--resume")
        found = out.read_bytes()
        assert not partial.exists()
        if at < ends[0]:
            assert without_start(found) == without_start(whole), at
        else:
            assert found == whole, at
            n_kept = sum(end <= at for end in ends[1:-1])
            assert f"{n_kept} rows are kept" in result.stderr


GARBAGE = [b"\0" * 5000, b"\0" * 100 + b"\n", b"\xff\xfe\x00garbage", b'{"type":"sequence","id"\n']
GARBAGE += [b"{\0\0\0}\n", b'{"type":"what"}\n', b"[1]\n", b"17\n", b'{"type":"sequence"}', b"\n"]


@pytest.mark.parametrize("n_lines", [1, 4, 12])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_after_the_rows_is_cut_off(
    run: Run, out: Path, partial: Path, whole: bytes, garbage: bytes, n_lines: int
) -> None:
    lines = whole.splitlines(keepends=True)
    move_back(out, partial, b"".join(lines[:n_lines]) + garbage)
    result = run(*SCORE, "--resume")
    assert out.read_bytes() == whole
    assert f"cut {len(garbage)} bytes of a torn end off out.jsonl.partial" in result.stderr


@pytest.mark.parametrize("n_lines", [1, 4, 12])
@pytest.mark.parametrize("garbage", [*GARBAGE, b"{" + b"\0" * 3_000_000])
def test_whole_rows_behind_garbage_are_counted_as_they_are_cut_off(
    run: Run, out: Path, partial: Path, whole: bytes, garbage: bytes, n_lines: int
) -> None:
    lines = whole.splitlines(keepends=True)
    rest = garbage.removesuffix(b"\n") + b"\n" + b"".join(lines[n_lines + 1 :])
    move_back(out, partial, b"".join(lines[:n_lines]) + rest)
    n_whole = len(lines) - n_lines - 2
    if garbage == b'{"type":"sequence"}':  # with its newline it is a row, of another input
        assert f":{n_lines + 1} belongs to another input" in refusal(run, partial, *SCORE)
        return
    result = run(*SCORE, "--resume")
    assert out.read_bytes() == whole
    assert (
        f"out.jsonl.partial:{n_lines + 1} is damaged: cut {len(rest)} bytes off, with {n_whole} "
        "whole rows behind it, which are scored again"
    ) in result.stderr


STARTS = [b"", b"\0" * 700, b'{"type":"run","sch', b'{"ty', b"{\0\0"]


@pytest.mark.parametrize("start", STARTS)
def test_rows_behind_a_damaged_run_line_are_not_given_up(
    run: Run, out: Path, partial: Path, whole: bytes, start: bytes
) -> None:
    lines = whole.splitlines(keepends=True)
    move_back(out, partial, b"".join([start + b"\n", *lines[1:]]))
    found = refusal(run, partial, *SCORE)
    if len(start) < 10:  # the newline makes it something else than the start of a run
        assert "holds no results of seqloss" in found
    else:
        assert "out.jsonl.partial:1 is damaged" in found
        assert f"{len(lines) - 2} whole rows after it are; --force" in found
    run(*SCORE, "--force")
    assert without_start(out.read_bytes()) == without_start(whole)


def test_a_damaged_run_line_is_found_before_a_model_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl.partial"
    with path.open("wb") as stream:
        stream.truncate(1 << 36)
        stream.seek(0, os.SEEK_END)
        stream.write(b'\n{"type":"sequence"}\n')
    with pytest.raises(UsageError, match=r"partial:1 is damaged.* the 1 whole rows"):
        recorded_run(path)


@pytest.mark.parametrize("start", STARTS)
def test_without_a_whole_run_line_it_begins_anew(
    run: Run, out: Path, partial: Path, whole: bytes, start: bytes
) -> None:
    move_back(out, partial, start)
    run(*SCORE, "--resume")
    assert without_start(out.read_bytes()) == without_start(whole)


def test_with_nothing_there_it_begins(run: Run, out: Path, whole: bytes) -> None:
    out.unlink()
    result = run(*SCORE, "--resume")
    assert without_start(out.read_bytes()) == without_start(whole)
    assert "kept" not in result.stderr


def test_the_finished_rows_are_not_scored_again(
    run: Run, out: Path, partial: Path, whole: bytes, scorers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks have 1, 2, 4 and 8 rows: of 8 rows that are kept, 7 are in finished blocks."""
    fed: list[int] = []
    score = scorers[False].backend.score

    def watched(batch: Any, requested: Any) -> Any:
        fed.append(len(batch.targets))
        return score(batch, requested)

    monkeypatch.setattr(scorers[False].backend, "score", watched)
    lines = whole.splitlines(keepends=True)
    losses = [json.loads(line).get("token_losses", ()) for line in lines[1:-1]]
    n_targets = [sum(loss is not None for loss in some) for some in losses]
    for n_kept, first in ((0, 0), (7, 7), (8, 7), (15, 15), (len(lines) - 2, len(lines) - 2)):
        fed.clear()
        move_back(out, partial, b"".join(lines[: 1 + n_kept]))
        result = run(*SCORE, "--resume")
        assert out.read_bytes() == whole
        assert sum(fed) == sum(n_targets[first:])
        assert f"({n_kept} row" in result.stderr or not n_kept


def test_a_row_that_scoring_rejected_is_kept(
    run: Run, out: Path, partial: Path, scorers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*SCORE)
    rows = [json.loads(line) for line in out.read_bytes().splitlines()[1:-1]]
    others = {i for row in rows[:1] + rows[2:] for i in row.get("token_ids", ())}
    own = next(i for i in rows[1]["token_ids"] if i not in others)
    out.unlink()
    score = scorers[False].backend.score

    def broken(batch: Any, requested: Any) -> Any:
        scores = score(batch, requested)
        scores.losses[np.asarray(batch.targets) == own] = np.nan
        return scores

    monkeypatch.setattr(scorers[False].backend, "score", broken)
    run(*SCORE)
    whole = timed(out.read_bytes(), THEN)
    lines = whole.splitlines(keepends=True)
    assert b"nan_loss" in lines[2]
    for n_lines in range(2, len(lines)):
        move_back(out, partial, b"".join(lines[:n_lines]))
        run(*SCORE, "--resume")
        assert out.read_bytes() == whole


def test_what_strict_left_goes_on_without_it(
    run: Run, out: Path, partial: Path, whole: bytes
) -> None:
    out.unlink()
    run(*SCORE, "--strict")
    left = timed(partial.read_bytes(), THEN)
    assert left.splitlines()[-1].startswith(b'{"type":"totals"')
    partial.write_bytes(left)
    again = run(*SCORE, "--strict", "--resume")
    assert "leave --strict out" in again.stderr
    assert partial.read_bytes() == left
    run(*SCORE, "--resume")
    assert out.read_bytes() == whole


def test_strict_stops_at_the_first_rejected_row_after_those_kept(
    run: Run, out: Path, partial: Path, whole: bytes
) -> None:
    lines = whole.splitlines(keepends=True)
    move_back(out, partial, b"".join(lines[:3]))
    run(*SCORE, "--strict", "--resume")
    found = partial.read_bytes().splitlines(keepends=True)
    assert found[:5] == lines[:5]
    assert [json.loads(line)["type"] for line in found[4:]] == ["rejected", "totals"]


def test_stdin_is_piped_in_again(run: Run, out: Path, partial: Path, tmp_path: Path) -> None:
    command, rows = ("score", "-", "--jsonl-input"), (tmp_path / "rows.jsonl").read_bytes()
    run(*command, stdin=rows)
    whole = out.read_bytes()
    for at in (len(whole) // 3, len(whole) - 10):
        move_back(out, partial, whole[:at])
        run(*command, "--resume", stdin=rows)
        assert out.read_bytes() == whole
    move_back(out, partial, whole[: len(whole) // 2])
    result = run(*command, "--resume", stdin=b"", exit_code=2)
    assert "belongs to another input" in result.stderr
    move_back(out, partial, whole)
    run(*command, "--resume", stdin=rows)
    finished = out.read_bytes()
    run(*command, "--resume", stdin=rows)
    assert out.read_bytes() == finished
    other = run(*command, "--resume", stdin=rows.replace(b"sorted", b"mixed"), exit_code=2)
    assert "out.jsonl:2 belongs to another input" in other.stderr


def test_a_single_text_and_a_single_pair(run: Run, out: Path, partial: Path) -> None:
    pair = ("cond", "--prompt", "The list is", "--response", " sorted.", "--pmi")
    for command in (("score", "--text", "A text."), pair):
        out.unlink(missing_ok=True)
        run(*command, exit_code=0)
        whole = out.read_bytes()
        for n_lines in (1, 2, 3):
            move_back(out, partial, b"".join(whole.splitlines(keepends=True)[:n_lines]))
            run(*command, "--resume", exit_code=0)
            assert out.read_bytes() == whole


# -- what is whole already ---------------------------------------------------------------------


def test_a_finished_file_is_left_alone(
    run: Run, out: Path, partial: Path, whole: bytes, scorers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out.write_bytes(whole)
    monkeypatch.setattr(scorers[False].backend, "score", None)
    result = run(*SCORE, "--resume")
    assert "out.jsonl is whole: 15 sequences, 2 rejected; nothing to do" in result.stderr
    assert out.read_bytes() == whole
    assert not partial.exists()
    different = run(*SCORE, "--resume", "--entropy", exit_code=2)
    assert "rows.entropy is False there and True here (leave --entropy out)" in different.stderr


def lines_changed(path: Path, change: Callable[[list[str]], object]) -> None:
    lines = path.read_text().splitlines(keepends=True)
    change(lines)
    path.write_text("".join(lines))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda lines: lines.append('{"text": "One more."}\n'), "now there are more, first rows."),
        (lambda lines: lines.append("no JSON\n"), "now there are more, first rows.jsonl:19 (id"),
        (lambda lines: lines.pop(), "the inputs end after 16, and out.jsonl has rows of 17"),
        (lambda lines: lines.pop(0), "out.jsonl:2 belongs to another input"),
        (lambda lines: lines.insert(0, "\n"), "out.jsonl:2 belongs to another input"),
        (lambda lines: lines.reverse(), "out.jsonl:2 belongs to another input"),
        (
            lambda lines: lines.append(lines.pop().replace("The end", "An end")),
            "out.jsonl:18 belongs to another input than what is read now: text_sha256 is",
        ),
    ],
)
def test_a_finished_file_of_other_inputs(
    run: Run,
    out: Path,
    whole: bytes,
    tmp_path: Path,
    scorers: Any,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[list[str]], object],
    named: str,
) -> None:
    out.write_bytes(whole)
    monkeypatch.setattr(scorers[False].backend, "score", None)
    lines_changed(tmp_path / "rows.jsonl", change)
    found = refusal(run, out, *SCORE)
    assert named in found
    assert "nothing to do" not in found


def test_a_finished_file_of_pairs(run: Run, out: Path, tmp_path: Path) -> None:
    run(*COND)
    assert "nothing to do" in run(*COND, "--resume").stderr
    replaced(tmp_path / "pairs.jsonl", "of tea", "of fish")
    assert f"out.jsonl:{len(PAIRS) + 1} belongs to another input" in refusal(run, out, *COND)


def test_a_machine_that_stopped_while_renaming(
    run: Run, out: Path, partial: Path, whole: bytes
) -> None:
    for flag in ("--resume", "--force"):
        move_back(out, partial, whole)
        out.hardlink_to(partial)
        run(*SCORE, flag)
        assert without_start(out.read_bytes()) == without_start(whole)
        assert not partial.exists()


def test_a_file_without_totals_is_not_whole(run: Run, out: Path, whole: bytes) -> None:
    for content in (whole[:-1], b"".join(whole.splitlines(keepends=True)[:-1]), whole + b"\0"):
        out.write_bytes(content)
        result = run(*SCORE, "--resume", exit_code=2)
        assert "out.jsonl is not whole; rename it to out.jsonl.partial" in result.stderr
        assert out.read_bytes() == content


def test_a_finished_file_beside_another_partial_one(
    run: Run, out: Path, partial: Path, whole: bytes
) -> None:
    partial.write_bytes(whole[:-9])
    result = run(*SCORE, "--resume", exit_code=2)
    assert "both out.jsonl and out.jsonl.partial exist" in result.stderr


# -- refusals ----------------------------------------------------------------------------------


def refusal(run: Run, partial: Path, *command: object) -> str:
    """Why it is refused, and that nothing was touched."""
    before = partial.read_bytes()
    result = run(*command, "--resume", exit_code=2)
    assert partial.read_bytes() == before
    return " ".join(result.stderr.split())


@pytest.fixture
def half(run: Run, out: Path, partial: Path, whole: bytes) -> Path:
    """A partial file with seven rows."""
    move_back(out, partial, b"".join(whole.splitlines(keepends=True)[:8]))
    return partial


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--entropy",), "rows.entropy is False there and True here (leave --entropy out)"),
        (("--no-text",), "rows.text is True there and False here (leave --no-text out)"),
        (("--limit", 3), "reading.limit is None there and 3 here (leave --limit out)"),
        (("--top-k", 2), "rows.top_k is 0 there and 2 here (--top-k 0)"),
        (("--text-field", "a"), "reading.text_field is 'text' there and 'a' here (--text-field"),
        ((ROOT / "samples" / "text.txt",), "here (name the same files)"),
    ],
)
def test_other_rows_or_inputs(run: Run, half: Path, flags: tuple[object, ...], named: str) -> None:
    assert named in refusal(run, half, *SCORE, *flags)


def test_every_difference_is_named_with_its_flag(run: Run, half: Path) -> None:
    command = [word for word in SCORE if word != "--ranks"]
    found = refusal(run, half, *command, "--no-tokens")
    assert "rows.ranks is True there and False here (give --ranks)" in found
    assert "rows.tokens is True there and False here (leave --no-tokens out)" in found
    assert "--force" in found


def test_another_command(run: Run, half: Path) -> None:
    assert "command is 'score' there and 'cond' here" in refusal(run, half, *COND)


def replaced(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("The list is sorted", "The list is not sorted", ":2 belongs to another input"),
        ("dogs", "cats", ":3 belongs to another input than what is read now: meta is"),
        ("271, 12, 700]", "271, 13, 700]", ":4 belongs to another input"),
        ("-100, 271, -100", "-100, -100, -100", ":4 belongs to another input"),
        ('"no"', '"text"', "type is 'rejected' there and 'sequence' here"),
        ('{"id": 0,', '{"id": 1,', ":6 belongs to another input than what is read now: id is '0'"),
        ("\n", "\n\n", "line is 1"),
    ],
)
def test_an_input_that_changed(
    run: Run, half: Path, tmp_path: Path, before: str, after: str, named: str
) -> None:
    if before == "\n":
        rows = tmp_path / "rows.jsonl"
        rows.write_text("\n" + rows.read_text())
    else:
        replaced(tmp_path / "rows.jsonl", before, after)
    result = run(*SCORE, "--resume", exit_code=2)
    assert named in result.stderr


def test_an_input_that_became_shorter(run: Run, half: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:3]))
    found = refusal(run, half, *SCORE)
    assert "the inputs end after 3, and out.jsonl.partial has rows of 7, the next in" in found


def test_a_refusal_cuts_nothing_off(run: Run, half: Path, whole: bytes, tmp_path: Path) -> None:
    """Neither what is torn, nor rows that are whole and the totals."""
    replaced(tmp_path / "rows.jsonl", '{"id": 0,', '{"id": 1,')
    rest = whole.splitlines(keepends=True)[8:]
    for more in ([b'{"type":'], [b"{}\n", *rest], rest):
        before = half.read_bytes()
        half.write_bytes(before + b"".join(more))
        found = refusal(run, half, *SCORE)
        assert ":6 belongs to another input" in found
        assert "cut" not in found
        half.write_bytes(before)


def test_what_the_model_cannot_give_is_refused_before_a_file_is_touched(
    run: Run, partial: Path
) -> None:
    partial.write_bytes(b'{"type":"run","sche')
    result = run(*SCORE, "--top-k", 1_000_000, "--resume", exit_code=2)
    assert "more than the model's" in result.stderr
    assert partial.read_bytes() == b'{"type":"run","sche'


@pytest.mark.parametrize(
    ("before", "after"),
    [("271, 12, 700]", "271, 13, 700]"), ("-100, 271, -100, 700", "-100, -100, 12, 700")],
)
def test_ids_that_changed_where_rows_do_not_hold_them(
    run: Run, out: Path, partial: Path, tmp_path: Path, before: str, after: str
) -> None:
    """As many of them count as before."""
    command = ("score", "rows.jsonl", "--no-text", "--no-tokens")
    run(*command)
    whole = out.read_bytes()
    move_back(out, partial, b"".join(whole.splitlines(keepends=True)[:8]))
    run(*command, "--resume")
    assert out.read_bytes() == whole
    replaced(tmp_path / "rows.jsonl", before, after)
    assert "out.jsonl:4 belongs to another input" in refusal(run, out, *command)
    move_back(out, partial, b"".join(whole.splitlines(keepends=True)[:8]))
    found = refusal(run, partial, *command)
    assert ":4 belongs to another input than what is read now: ids_sha256 is" in found


def total_loss(change: Callable[[float], object]) -> Callable[[dict[str, Any]], None]:
    return lambda row: row.update(total_loss=change(row["total_loss"]))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (total_loss(lambda loss: -loss), "no loss is below 0"),
        (total_loss(lambda loss: loss + 0.5), "and its tokens' losses sum to"),
        (total_loss(str), "field 'total_loss' is not a number"),
        (lambda row: row.pop("total_loss"), "no field 'total_loss'"),
        (lambda row: row["token_losses"].pop(), "token_losses is not as long"),
    ],
)
def test_kept_figures_that_cannot_be_right(
    run: Run, half: Path, damage: Callable[[dict[str, Any]], object], named: str
) -> None:
    lines = half.read_bytes().splitlines(keepends=True)
    row = json.loads(lines[2])
    damage(row)
    lines[2] = json.dumps(row).encode() + b"\n"
    half.write_bytes(b"".join(lines))
    found = refusal(run, half, *SCORE)
    assert "out.jsonl.partial:3 is damaged: " in found
    assert named in found


def test_a_seam_that_moved_within_the_same_text(
    run: Run, out: Path, partial: Path, tmp_path: Path
) -> None:
    command = ("cond", "pairs.jsonl", "--no-text", "--no-tokens")
    run(*command)
    move_back(out, partial, b"".join(out.read_bytes().splitlines(keepends=True)[:3]))
    replaced(tmp_path / "pairs.jsonl", 'The re", "response": "turn', 'The ret", "response": "urn')
    result = run(*command, "--resume", exit_code=2)
    assert ":3 belongs to another input" in result.stderr


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("-o", "out.json"), "--resume goes on line by line, which json does not have"),
        (("-o", "out.jsonl", "--force"), "choose one"),
        (("-o", "out.jsonl", "--summary"), "leave --summary out"),
        (("--jsonl",), "give -o FILE.jsonl"),
        (("-o", "nowhere/out.jsonl"), "there is no directory nowhere"),
    ],
)
def test_what_cannot_be_resumed(run: Run, flags: tuple[str, ...], named: str) -> None:
    result = in_process(*SCORE, *flags, "--resume")
    assert result.exit_code == 2
    assert named in " ".join(result.stderr.split())


def test_a_file_of_something_else(run: Run, partial: Path) -> None:
    for content in (b"precious\n", b'{"type":"sequence"}\n', b'{"type":"running"}\n', b"[]"):
        partial.write_bytes(content)
        assert "holds no results of seqloss" in refusal(run, partial, *SCORE)


def test_the_refusal_to_overwrite_names_resume(run: Run, half: Path) -> None:
    result = run(*SCORE, exit_code=2)
    assert "--resume goes on with it, --force writes over it" in result.stderr
    (half.parent / "out.csv.partial").touch()
    lines = in_process("score", "rows.jsonl", "-o", "out.csv")
    assert "out.csv.partial exists; --force writes over it" in lines.stderr


# -- with the model that the options name ------------------------------------------------------


def load_anew(*arguments: object, exit_code: int = 0) -> Any:
    result = in_process("score", *arguments, "-o", "out.jsonl", "--device", "cpu")
    assert result.exit_code == exit_code, result.stderr
    return result


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Of a run with a budget that was not the default, the file; half of it is left."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.txt").write_text("".join(f"row {n} of text\n" for n in range(12)))
    load_anew("rows.txt", "--lines", "--model", "demo", "--batch-tokens", "100")
    whole = (tmp_path / "out.jsonl").read_bytes()
    move_back(tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial", whole[: len(whole) // 2])
    return whole


@pytest.mark.parametrize("flags", [(), ("--batch-tokens", "auto"), ("--batch-tokens", "100")])
def test_the_recorded_budget_is_used(begun: bytes, tmp_path: Path, flags: tuple[str, ...]) -> None:
    load_anew("rows.txt", "--lines", "--model", "demo", "--resume", *flags)
    assert (tmp_path / "out.jsonl").read_bytes() == begun


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--batch-tokens", "99"), "batch_tokens is 100 there and 99 here (--batch-tokens 100)"),
        (("--bos", "never"), "bos is 'auto' there and 'never' here (--bos auto)"),
        (("--eos",), "eos is False there and True here (leave --eos out)"),
        (("--dtype", "float64"), "dtype is 'float32' there and 'float64' here (--dtype float32)"),
        (("--context", "64"), "(--context 512)"),
        (("--model", str(ROOT / "samples" / "checkpoints" / "step-600")), "(--model demo)"),
    ],
)
def test_another_model_or_policy(
    begun: bytes, tmp_path: Path, flags: tuple[str, ...], named: str
) -> None:
    model = () if "--model" in flags else ("--model", "demo")
    result = load_anew("rows.txt", "--lines", *model, "--resume", *flags, exit_code=2)
    assert named in " ".join(result.stderr.split())


# -- one writer at a time ----------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from seqloss_cli.results.sinks import open_sink
with open_sink(Path("out.jsonl"), False) as sink:
    sink.write(b'{"type":"run"')
    sink.flush()
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_write_one_file(
    run: Run, tmp_path: Path, out: Path, partial: Path, whole: bytes
) -> None:
    out.unlink()
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        for flag in ("--resume", "--force"):
            result = run(*SCORE, flag, exit_code=2)
            assert "another process is writing out.jsonl.partial" in result.stderr
            assert partial.read_bytes() == b'{"type":"run"'
    finally:
        other.kill()
        other.communicate()
    run(*SCORE, "--resume")
    assert without_start(out.read_bytes()) == without_start(whole)


def test_a_file_that_another_finished_before_it_was_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    for resume in (True, False):
        partial.write_bytes(b"rows")
        monkeypatch.setattr(sinks, "try_to_lock", lambda _: partial.rename(path))
        with (
            pytest.raises(UsageError, match="just finished"),
            open_sink(path, not resume, resume),
        ):
            pass
        assert path.read_bytes() == b"rows"
        assert not partial.exists()
        path.unlink()


def test_a_file_system_without_locks_is_told_of(
    run: Run, out: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("seqloss_cli.results.sinks.fcntl.flock", no_locks)
    result = run(*SCORE, "--force")
    warning = "warning: out.jsonl.partial cannot be locked on this file system"
    assert result.stderr.count(warning) == 1
    assert without_start(out.read_bytes()) == without_start(whole)


@pytest.mark.parametrize("force", [False, True])
def test_a_file_system_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    def write(meanwhile: bytes | None) -> None:
        with open_sink(path, force) as sink:
            sink.write(b"ours")
            if meanwhile is not None:
                path.write_bytes(meanwhile)

    path = tmp_path / "out.jsonl"
    monkeypatch.setattr(Path, "hardlink_to", no_links)
    write(None)
    assert path.read_bytes() == b"ours"
    assert [*tmp_path.iterdir()] == [path]
    path.unlink()
    if force:
        write(b"precious")
        assert path.read_bytes() == b"ours"
        return
    with pytest.raises(RunError, match="came into being meanwhile; the results are in"):
        write(b"precious")
    assert path.read_bytes() == b"precious"
    assert (tmp_path / "out.jsonl.partial").read_bytes() == b"ours"


def test_nobody_gets_in_before_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rename = tmp_path / "out.jsonl", sinks.rename_partial

    def watched(partial: Path, path: Path, force: bool) -> None:
        with pytest.raises(UsageError, match="another process is writing"), open_sink(path, True):
            pass
        rename(partial, path, force)

    monkeypatch.setattr(sinks, "rename_partial", watched)
    with open_sink(path, False) as sink:
        sink.write(b"rows")
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_bytes() == b"rows"


class Syncs:
    """What was forced to the disk: of files how long they were, of directories their names."""

    def __init__(self) -> None:
        self.files: list[int] = []
        self.folders: list[list[str]] = []

    def __call__(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            self.folders.append(sorted(os.listdir(descriptor)))
        else:
            self.files.append(found.st_size)


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    found = Syncs()
    monkeypatch.setattr(sinks, "SYNC_SECONDS", 0.02)
    monkeypatch.setattr(sinks.os, "fsync", found)
    return found


def sync_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name == "seqloss-sync"]


def wait_for(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_rows_reach_the_disk_though_no_other_follows(tmp_path: Path, syncs: Syncs) -> None:
    """A burst of rows, and nothing after it: the last one gets there, and once is enough."""
    with open_sink(tmp_path / "out.jsonl", False) as sink:
        for n in (3, 6):
            for _ in range(3):
                sink.write(b"a row\n")
                sink.flush()
            wait_for(lambda n=n: syncs.files[-1:] == [6 * n])  # type: ignore[misc]
        assert len(sync_threads()) == 1
        n_syncs = len(syncs.files)
        time.sleep(0.2)
        assert len(syncs.files) <= n_syncs + 1, "what is on the disk is left in peace"
    assert syncs.files[-1] == 36
    assert sync_threads() == []


def test_names_reach_the_disk(tmp_path: Path, syncs: Syncs) -> None:
    for force in (False, True):
        syncs.folders.clear()
        with open_sink(tmp_path / "out.jsonl", force) as sink:
            sink.write(b"a row\n")
        first, last = syncs.folders
        assert "out.jsonl.partial" in first
        assert last == ["out.jsonl"]


def test_a_disk_that_fails_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although no write notices: the rows were only flushed so far."""
    tried: list[int] = []

    def fail(descriptor: int) -> None:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            tried.append(descriptor)
        raise OSError(errno.EIO, "Input/output error")

    def write() -> None:
        with open_sink(tmp_path / "out.jsonl", False) as sink:
            sink.write(b"a row\n")
            sink.flush()
            wait_for(lambda: bool(tried) and not sync_threads())
            sink.write(b"a row\n")
            sink.flush()
            pytest.fail("the second row was taken as if nothing had happened")

    monkeypatch.setattr(sinks, "SYNC_SECONDS", 0.02)
    monkeypatch.setattr(sinks.os, "fsync", fail)
    with pytest.raises(RunError, match=r"partial cannot be written: Input/output error"):
        write()
    assert len(tried) == 1
    assert (tmp_path / "out.jsonl.partial").read_bytes() == b"a row\n" * 2
    assert not (tmp_path / "out.jsonl").exists()


def test_what_nothing_was_written_to_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with pytest.raises(KeyError), open_sink(path, False):
        raise KeyError
    assert [*tmp_path.iterdir()] == []

    def write_and_fail() -> None:
        with open_sink(path, False) as sink:
            sink.write(b"something")
            raise KeyError

    with pytest.raises(KeyError):
        write_and_fail()
    assert (tmp_path / "out.jsonl.partial").read_bytes() == b"something"


def test_looking_at_a_large_hole_reads_none_of_it(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl.partial"
    path.write_bytes(b'{"type":"run"}\n{"type":"sequence"}\n')
    os.truncate(path, 1 << 36)
    found = inspect_partial(path)
    assert (found.n_rows, found.length) == (1, 35)
    assert found.n_torn == (1 << 36) - 35
    os.truncate(path, 0)
    os.truncate(path, 1 << 36)
    assert recorded_run(path) is None


# -- kill -9 -----------------------------------------------------------------------------------

KILLER = """
import os, random, signal, sys, time
from seqloss_cli.cli.main import main
# once for all
import seqloss_cli.cli.settings, seqloss_cli.models.checkpoint, seqloss_cli.backends.torch.backend
from transformers import AutoModelForCausalLM, AutoTokenizer

seed, n_kills = map(int, sys.argv[1:3])
sys.argv = ["seqloss", *sys.argv[3:]]
partial = "out.jsonl.partial"
rng = random.Random(seed)


def size():
    return os.path.getsize(partial) if os.path.exists(partial) else 0


def attempt(kill_at):
    child = os.fork()
    if not child:
        try:
            main()
        except SystemExit as stop:
            os._exit(stop.code or 0)
        os._exit(99)
    end = time.monotonic() + 60
    while kill_at is not None and size() < kill_at and not os.path.exists("out.jsonl"):
        time.sleep(0.0005)
        if time.monotonic() > end or os.waitpid(child, os.WNOHANG)[0]:
            sys.exit("the child came to no good")
    if kill_at is not None:
        time.sleep(rng.random() * 0.002)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


assert attempt(None) == 0
os.rename("out.jsonl", "whole.jsonl")
n_bytes, n_hit = os.path.getsize("whole.jsonl"), 0
for n in range(n_kills):
    left = size()
    found = attempt(left + rng.randrange(1, max(2, 2 * (n_bytes - left) // (n_kills - n + 1))))
    assert found in (-signal.SIGKILL, 0), found
    n_hit += found < 0
assert attempt(None) == 0
print(n_hit)
"""
"""Forks the program from a process that has torch in memory: lets it finish once, then kills it
again and again once its file has grown to a random size, and lets it finish at the end."""


def killed_again_and_again(folder: Path, seed: int, n_kills: int) -> None:
    """The file of a run that was killed so often is that of a run that never was."""
    rows = [f"row {n} " + "of some text " * (n % 7) for n in range(600)]
    (folder / "rows.txt").write_text("".join(f"{row}\n" for row in rows))
    command = ("score", "rows.txt", "--lines", "--model", "demo", "--device", "cpu")
    command += ("--threads", "1", "--batch-tokens", "512", "-o", "out.jsonl", "--resume")

    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(seed), str(n_kills), *command],
        capture_output=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) > n_kills // 2, "few were killed before their end"
    whole, found = ((folder / name).read_bytes() for name in ("whole.jsonl", "out.jsonl"))
    assert without_start(found) == without_start(whole)
    assert not (folder / "out.jsonl.partial").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_9_at_random_moments(tmp_path: Path) -> None:
    killed_again_and_again(tmp_path, seed=1, n_kills=6)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("seed", range(2, 7))
def test_kill_9_at_fifty_random_moments(tmp_path: Path, seed: int) -> None:
    killed_again_and_again(tmp_path, seed, n_kills=10)
