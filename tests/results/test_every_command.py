"""Every command writes every format that can hold its rows, and goes on with a file of its own.

Losses come from the stub of the net, and so does its corpus: infinite ones and NaN are among them.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import stub
from helpers.program import document, strictly
from seqloss_cli.cli.main import app
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.metrics.divergence import MEASURES
from seqloss_cli.results.formats import FORMATS, LEVELS
from seqloss_cli.results.formats.parquet import read_parquet_rows
from seqloss_cli.results.resume import require_same_run

SMALL = "-m samples/checkpoints/step-600"
BOTH = "diverge corpus.jsonl broken.jsonl --keep-meta"
COMMANDS = {
    "score": f"score corpus.jsonl broken.jsonl {stub.ALL}",
    "cond": f"cond mixed.jsonl {stub.CHAT} {stub.ALL} --pmi --boundary compare",
    "rank": "rank questions.jsonl samples/choices.jsonl --separator ' ' --keep-meta",
    "rank-pmi": "rank questions.jsonl samples/choices.jsonl --pmi --tokens",
    "rank-no-bos": "rank questions.jsonl samples/choices.jsonl --bos never --tokens",
    "diverge": f"{BOTH} {SMALL} --teacher demo",
    "diverge-saved": f"{BOTH} --limit 8 {SMALL} --teacher teacher.jsonl",
    "diverge-smoothing": f"{BOTH} --label-smoothing 0",
    "mask": f"mask mixed.jsonl {stub.CHAT} --keep-meta",
    "mask-loss": f"mask mixed.jsonl {stub.CHAT} --loss",
    "mask-check": "mask mixed.jsonl --eos --check labels.jsonl",
    "check": "check samples/rollouts.jsonl --field rollout_log_probs --limit 5 --keep-meta",
    "mask-like": f"mask samples/chats.jsonl mixed.jsonl {stub.CHAT} --like trl --loss",
}
LINES = {
    name: command
    for name, command in COMMANDS.items()
    if name not in ("score", "cond", "rank-pmi", "rank-no-bos")
}
"""Commands whose default lines hold all that is asked for."""
NOT_IN_LINES = {
    *(f"{name}s" for name in MEASURES), *(f"{name}s_at_most" for name in MEASURES[1:4]),
    "inf_reverse_kls",
    "choices", "orders", "tied", "answers", "correct", "turns", "regions", "words", "word_losses",
    "word_byte_offsets", "top_logprobs", "ranks", "entropies", "context_lengths", "inf_losses",
    "inf_teacher_losses", "inf_kls", "token_ids", "tokens", "token_losses", "byte_offsets",
    "loss_mask", "labels", "teacher_entropies", "kls", "kls_at_most", "student_losses",
    "teacher_losses", "token_delta_p", "token_same_top1", "recorded_log_probs", "scored_log_probs",
    "deltas", "sampled_mask",
}  # fmt: skip
"""Keys that no line of a whole row holds: arrays, of which other levels are made, and what is
nested. A new key stands here, or has a column."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with inputs, a teacher's file, and labels that differ."""
    found = tmp_path_factory.mktemp("every")
    stub.furnish(found)
    save = f"{BOTH} {SMALL} --teacher demo --save-teacher teacher.jsonl --teacher-top-k 4"
    assert stub.run(save + " --json", found).exit_code == 3
    labels = found / "labels.jsonl"
    labels.write_bytes(stub.run("mask mixed.jsonl --eos --jsonl", found).stdout_bytes)
    labels.write_text(re.sub(r'("labels":\[)(-100)', r"\1 7", labels.read_text(), count=1))
    return found


def written(line: str, folder: Path, name: str) -> bytes:
    """The file that a command writes, which is new."""
    path = folder / name
    for old in (path, folder / f"{name}.partial"):
        old.unlink(missing_ok=True)
    done = stub.run(f"{line} -o {name}", folder)
    assert done.exit_code in (0, 3), done.stderr
    return path.read_bytes()


def records(jsonl: bytes) -> list[Any]:
    """The lines of JSONL, the run's without its time."""
    found = [strictly(line) for line in jsonl.splitlines()]
    del found[0]["started_at"]
    return found


# -- every format says what JSONL says --------------------------------------------------------


@pytest.mark.parametrize("case", COMMANDS)
def test_json_and_parquet_hold_the_records_of_jsonl(case: str, folder: Path) -> None:
    line = COMMANDS[case]
    expected = records(written(line, folder, "out.jsonl"))
    assert {"sequence"} < {record["type"] for record in expected}
    written(line, folder, "out.parquet")
    found = list(read_parquet_rows(folder / "out.parquet"))
    del found[0]["started_at"]
    assert found == expected
    assert [type(v) for row in found for _, v in sorted(row.items())] == [
        type(v) for row in expected for _, v in sorted(row.items())
    ]
    whole = strictly(written(line, folder, "out.json"))
    run, *rows, totals = expected
    for kind, key in (("sequence", "sequences"), ("rejected", "rejected")):
        kept = [
            {k: v for k, v in row.items() if k != "type"} for row in rows if row["type"] == kind
        ]
        assert whole[key] == kept
    assert {"type": "totals", **whole["totals"]} == totals
    del whole["run"]["started_at"]
    assert {"type": "run", "schema_version": 1, **whole["run"]} == run


def lines_of(text: bytes, delimiter: str = ",") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text.decode(), newline=""), delimiter=delimiter))


def cell(value: Any) -> str:
    """A value as CSV has it, where JSON has it plain."""
    return "" if value is None else str(value)


def kinds(findings: list[Any]) -> str:
    return ";".join(finding["kind"] for finding in findings)


def expected_cell(row: dict[str, Any], column: str) -> str:
    name, _, child = column.partition(".")
    value = row.get(name)
    if value is None:
        return ""
    if name == "flags":
        return ";".join(k if v is True else f"{k}={v}" for k, v in value.items())
    if column == "check" or column == "trainer.differences":
        return kinds(value if column == "check" else value["differences"])
    return cell(value[child] if child else value)


@pytest.mark.parametrize("case", [name for name in LINES if not name.startswith("rank")])
@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_a_line_holds_the_cells_of_a_row(
    case: str, suffix: str, delimiter: str, folder: Path
) -> None:
    rows = records(written(LINES[case], folder, "out.jsonl"))[1:-1]
    lines = lines_of(written(LINES[case], folder, f"out.{suffix}"), delimiter)
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        for column, found in line.items():
            if column == "meta":
                assert (json.loads(found) if found else None) == row.get("meta")
            else:
                assert found.removeprefix("'") == expected_cell(row, column), column


@pytest.mark.parametrize("case", COMMANDS)
def test_no_key_is_left_out_of_a_header_in_silence(case: str, folder: Path) -> None:
    command = case.partition("-")[0]
    rows = records(written(COMMANDS[case], folder, "out.jsonl"))[1:-1]
    keys = {key for row in rows for key in row} - {"type"}
    lean = re.sub("--(words|ranks|entropy|context-lengths|tokens|top-k 2)( |$)", "", COMMANDS[case])
    header = written(lean, folder, "out.csv").decode().split("\n")[0].split(",")
    assert len(header) == len(set(header))
    assert keys - {name.partition(".")[0] for name in header} - NOT_IN_LINES <= {"message"}
    assert command == "rank" or "message" in header
    choices = {key for row in rows for choice in row.get("choices", ()) for key in choice}
    assert choices - {*header} <= {"scores", "text", *NOT_IN_LINES}
    assert {f"score.{name}" for row in rows for name in row.get("orders", ())} <= {*header}


TOKEN_COLUMNS = {
    "token_id": "token_ids", "token": "tokens", "loss": "token_losses", "label": "labels",
    "rank": "ranks", "entropy": "entropies", "context_length": "context_lengths",
    "teacher_entropy": "teacher_entropies", "kl": "kls", "kl_at_most": "kls_at_most",
    "student_loss": "student_losses", "teacher_loss": "teacher_losses", "delta_p": "token_delta_p",
    "same_top1": "token_same_top1", "loss_mask": "loss_mask",
    **{name: f"{name}s" for name in MEASURES},
    **{f"{name}_at_most": f"{name}s_at_most" for name in MEASURES[1:4]},
}  # fmt: skip
TOKENS = {
    "score": "score corpus.jsonl broken.jsonl --ranks --entropy --context-lengths",
    "cond": f"cond mixed.jsonl {stub.CHAT} --entropy",
    **{name: COMMANDS[name] for name in COMMANDS if name.startswith(("rank-", "diverge", "mask"))},
}


@pytest.mark.parametrize("case", TOKENS)
def test_a_line_for_each_token(case: str, folder: Path) -> None:
    rows = records(written(TOKENS[case], folder, "out.jsonl"))[1:-1]
    written(f"{TOKENS[case]} --level token", folder, "out.csv")
    lines = iter(lines_of((folder / "out.csv").read_bytes()))
    for row in rows:
        if row["type"] == "rejected":
            assert next(lines)["reason"] == row["reason"]
            continue
        parts = row["choices"] if case.startswith("rank") else [row]
        for number, part in enumerate(parts):
            own = [next(lines) for _ in part["tokens"]]
            assert {line["id"] for line in own} <= {row["id"]}
            if case.startswith("rank"):
                assert {line["choice"] for line in own} == {str(number)}
            check_tokens(own, part)
    assert next(lines, None) is None


def check_tokens(lines: list[dict[str, str]], part: dict[str, Any]) -> None:
    assert [line["position"] for line in lines] == [str(n) for n in range(len(part["tokens"]))]
    for column, name in TOKEN_COLUMNS.items():
        if column in lines[0] and name in part:
            values = [int(v) if isinstance(v, bool) else v for v in part[name]]
            found = [line[column] for line in lines]
            shown = [re.sub(r"^'(?=[=+@\t\r-])", "", each) for each in found]
            assert (shown if column == "token" else found) == list(map(cell, values)), column
    offsets = part["byte_offsets"]
    spans = [(str(a), str(b)) for a, b in pairwise(offsets)] if offsets else [("", "")] * len(lines)
    assert [(line["start"], line["end"]) for line in lines] == spans


def test_a_line_for_each_choice(folder: Path) -> None:
    command = f"{COMMANDS['rank']} --pmi"
    rows = records(written(command, folder, "out.jsonl"))[1:-1]
    lines = iter(lines_of(written(command, folder, "out.csv")))
    for row in rows:
        if row["type"] == "rejected":
            assert next(lines)["reason"] == row["reason"]
            continue
        for number, choice in enumerate(row["choices"]):
            line = next(lines)
            assert (line["id"], line["choice"]) == (row["id"], str(number))
            assert line["prompt"] == row["prompt"]
            assert (json.loads(line["meta"]) if line["meta"] else None) == row.get("meta")
            right = "" if row["answers"] is None else str(int(number in row["answers"]))
            assert line["answer"] == right
            for name in ("response", "log_prob", "probability", "n_tokens", "boundary", "flags"):
                assert line[name] == expected_cell(choice, name)
            for score, value in choice["scores"].items():
                assert line[f"score.{score}"] == cell(value)
                place = row["orders"][score].index(number) + 1 if score in row["orders"] else ""
                assert line[f"order.{score}"] == str(place)
    assert next(lines, None) is None


# -- what a format or level cannot hold --------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("rank questions.jsonl --format openai", "rank writes json, jsonl, parquet, csv, tsv"),
        ("diverge lines.txt --label-smoothing 0 --format openai", "diverge writes json, jsonl"),
        ("mask mixed.jsonl --format openai", "mask writes json, jsonl, parquet, csv, tsv"),
        (
            "rank questions.jsonl --format csv --level token",
            "--level token is made of tokens; give",
        ),
        ("rank questions.jsonl --format csv --tokens", "--tokens with --level token only"),
        (
            "rank questions.jsonl --level token",
            "--level says what a line of --format csv or tsv is",
        ),
        ("mask mixed.jsonl --format csv --level word", "a line of mask is a sequence or a token"),
        ("mask mixed.jsonl --format csv --level token --no-tokens", "leave --no-tokens out"),
        ("diverge lines.txt --label-smoothing 0 --format csv --level region", "is a sequence or a"),
        (
            "score lines.txt --format csv --level choice",
            "sequence or a token or a word or a region",
        ),
        ("mask mixed.jsonl --format csv --summary", "--summary goes with --json"),
        ("diverge lines.txt --label-smoothing 0 --format parquet", "needs -o FILE"),
        ("rank questions.jsonl --resume", "give -o FILE.jsonl"),
        ("mask mixed.jsonl -o out.csv --resume", "which csv does not have"),
        ("rank questions.jsonl -o new.jsonl --resume --no-text", "leave --no-text out"),
        (
            "rank questions.jsonl -o new.jsonl --resume --output-ranked best.jsonl",
            "--resume goes on with one file: leave --output-ranked out",
        ),
        (
            "diverge lines.txt --teacher demo -o new.jsonl --resume --save-teacher t.jsonl",
            "--resume goes on with one file: leave --save-teacher out",
        ),
        (
            "diverge lines.txt --teacher demo -o new.jsonl --resume --no-tokens",
            "--resume makes intervals of the rows' tokens: leave --no-tokens out",
        ),
    ],
)
def test_what_cannot_be_held_is_refused_before_a_model_is_loaded(
    line: str, words: str, folder: Path
) -> None:
    before = {*folder.iterdir()}
    done = stub.run(line, folder)
    shown = " ".join(re.sub("[│╭╮╰╯─]", " ", done.stderr).split())
    assert done.exit_code == 2
    assert words in shown
    assert "built-in" not in shown
    assert {*folder.iterdir()} == before


def test_levels_are_those_of_the_rows(folder: Path) -> None:
    """What the command line knows without loading anything is what rows have."""
    for command, levels in LEVELS.items():
        line = next(line for name, line in COMMANDS.items() if name.startswith(command))
        header: set[str] = set()
        for level in levels:
            flags = {"word": "--words", "region": "--regions samples/regions.jsonl"}.get(level, "")
            flags += " --tokens" * (command == "rank" and level == "token")
            bare = re.sub(f"{stub.ALL}|--keep-meta", "", line)
            first = written(f"{bare} {flags} --level {level}", folder, "out.csv").split(b"\n")[0]
            assert first.decode() not in header
            header.add(first.decode())


# -- --resume ------------------------------------------------------------------------------------

LONG = {n: line for n, line in COMMANDS.items() if n not in ("score", "cond", "check")}


@pytest.mark.parametrize("case", LONG)
def test_a_file_cut_anywhere_becomes_the_whole_one(case: str, folder: Path) -> None:
    whole = written(LONG[case], folder, "out.jsonl")
    ends = [n + 1 for n, byte in enumerate(whole) if byte == ord("\n")]
    rng = random.Random(5)
    anywhere = [rng.randrange(ends[0], len(whole)) for _ in range(6)]
    out, partial = folder / "out.jsonl", folder / "out.jsonl.partial"
    for at in (*ends, *anywhere):
        out.unlink(missing_ok=True)
        partial.write_bytes(whole[:at])
        done = stub.run(f"{LONG[case]} -o out.jsonl --resume", folder)
        assert done.exit_code in (0, 3), done.stderr
        assert out.read_bytes() == whole, (at, done.stderr)
        assert f"{sum(end <= at for end in ends[1:-1])} rows are kept" in done.stderr
        assert not partial.exists()
    again = stub.run(f"{LONG[case]} -o out.jsonl --resume", folder)
    assert "nothing to do" in again.stderr
    assert again.exit_code == done.exit_code
    assert out.read_bytes() == whole


def test_the_questions_that_are_kept_are_not_scored_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks have 256 pairs: questions of finished blocks cost nothing."""
    rows = [
        {"id": n, "prompt": f"The {n}", "choices": [f"is {k} of {n}" for k in range(5)]}
        for n in range(120)
    ]
    (folder / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = written("rank many.jsonl --pmi", folder, "out.jsonl")
    lines = whole.splitlines(keepends=True)
    for n_kept in (25, 51, 52, 110, 120):
        (folder / "out.jsonl").unlink()
        (folder / "out.jsonl.partial").write_bytes(b"".join(lines[: 1 + n_kept]))
        done = stub.run("rank many.jsonl --pmi -o out.jsonl --resume", folder)
        assert done.exit_code == 0, done.stderr
        assert (folder / "out.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    ("case", "before", "after", "named"),
    [
        ("rank", "on the moon.", "on the roof.", "choices is"),
        ("rank", '"prompt": "The list is"', '"prompt": "The list was"', "prompt is"),
        ("rank", '"answer": 0', '"answer": 1', "answers is"),
        ("rank", '"kind": "a"', '"kind": "b"', "meta is"),
        ("rank", '["b", "b"]', '["b", "b", "c"]', "choices is"),
        ("diverge", "list of the names", "list of the games", "text_sha256 is"),
        ("diverge-smoothing", "[0, 450, 271", "[0, 451, 271", "ids_sha256 is"),
        ("mask", " sorted.", " mixed.", "text_sha256 is"),
        ("mask-loss", '"response": "turn', '"response": "burn', "text_sha256 is"),
    ],
)
def test_an_input_that_changed(
    case: str, before: str, after: str, named: str, folder: Path, tmp_path: Path
) -> None:
    stub.furnish(tmp_path)
    whole = written(LONG[case], tmp_path, "out.jsonl")
    (tmp_path / "out.jsonl").unlink()
    partial = tmp_path / "out.jsonl.partial"
    partial.write_bytes(b"".join(whole.splitlines(keepends=True)[:7]))
    inputs = tmp_path / LONG[case].split()[1]
    text = inputs.read_text()
    assert before in text
    inputs.write_text(text.replace(before, after))
    done = stub.run(f"{LONG[case]} -o out.jsonl --resume", tmp_path)
    assert done.exit_code == 2
    assert "belongs to another input than what is read now" in done.stderr
    assert named in done.stderr


@pytest.mark.parametrize(
    ("case", "flags", "named"),
    [
        ("rank", "--pmi", "rows.pmi is False there and True here (leave --pmi out)"),
        ("rank", "--by char", "rows.by is 'sum' there and 'char' here (--by sum)"),
        ("rank", "--tokens", "rows.tokens is False there and True here (leave --tokens out)"),
        ("rank", "--answer 0", "reading.answer is None there and 0 here (leave --answer out)"),
        (
            "rank",
            "--answer 0",
            "answer_field is 'answer' there and None here (--answer-field answer)",
        ),
        (
            "rank",
            "--choices-field choices,choices",
            "choices_field is ['choices'] there and ['choices', 'choices'] here "
            "(--choices-field choices)",
        ),
        ("rank", "--no-prompt", "prompt_field is 'prompt' there and None here (leave --no-prompt"),
        ("diverge", f"--teacher {SMALL[3:]}", "' here (the same --teacher and its options)"),
        (
            "diverge-smoothing",
            "--label-smoothing 0.5",
            "smoothing 0.5' here (the same --teacher or --label-smoothing)",
        ),
        ("diverge", "--no-text", "rows.text is True there and False here (leave --no-text out)"),
        ("diverge-smoothing", "--limit 2", "reading.limit is None there and 2 here"),
        ("mask", "--loss", "model is None there and 'demo' here"),
        ("mask", "--no-text", "out.jsonl.partial:2 holds texts (leave --no-text out)"),
        ("mask-loss", "--no-text", "out.jsonl.partial:2 holds texts (leave --no-text out)"),
        ("mask", "--no-tokens", "out.jsonl.partial:2 holds tokens (leave --no-tokens out)"),
        ("mask", "--like trl", "trainer is None there and {"),
        ("mask", "--check labels.jsonl", "check is None there and ["),
        ("mask-check", "--eos", ""),
    ],
)
def test_other_settings(case: str, flags: str, named: str, folder: Path) -> None:
    whole = written(LONG[case], folder, "out.jsonl")
    (folder / "out.jsonl").unlink()
    partial = folder / "out.jsonl.partial"
    partial.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    # In the place of the value that was given, where the option had one.
    given = re.sub(rf"{flags.split()[0]} (?!-)\S+", "", LONG[case])
    done = stub.run(f"{given} {flags} -o out.jsonl --resume", folder)
    if not named:
        assert done.exit_code == 3
        return
    assert done.exit_code == 2
    assert named in " ".join(done.stderr.split())
    partial.unlink()


def test_the_advice_is_an_option_of_the_command(folder: Path) -> None:
    """`rank` has `--tokens` where others have `--no-tokens`."""
    (folder / "out.jsonl.partial").write_bytes(
        written("rank questions.jsonl --tokens", folder, "out.jsonl")
    )
    (folder / "out.jsonl").unlink()
    done = stub.run("rank questions.jsonl -o out.jsonl --resume", folder)
    assert "rows.tokens is True there and False here (give --tokens)" in done.stderr
    (folder / "out.jsonl.partial").unlink()


@pytest.mark.parametrize("part", ["text", "tokens"])
@pytest.mark.parametrize("case", ["mask", "mask-loss"])
def test_what_rows_of_mask_leave_out(case: str, part: str, folder: Path) -> None:
    """Its run record says nothing of it, so that files of before can be gone on with."""
    lines = written(f"{LONG[case]} --no-{part}", folder, "out.jsonl").splitlines(keepends=True)
    (folder / "out.jsonl").unlink()
    partial = folder / "out.jsonl.partial"
    partial.write_bytes(b"".join(lines[:3]))
    done = stub.run(f"{LONG[case]} -o out.jsonl --resume", folder)
    assert done.exit_code == 2
    named = f"out.jsonl.partial:2 holds no {part.removesuffix('s')}s (give --no-{part})"
    assert named in " ".join(done.stderr.split())
    done = stub.run(f"{LONG[case]} --no-{part} -o out.jsonl --resume", folder)
    assert done.exit_code in (0, 3), done.stderr
    assert (folder / "out.jsonl").read_bytes() == b"".join(lines)


NOT_RECORDED = {
    "all_tokens", "allow_pickle", "api_key_file", "concurrency", "config", "debug", "distribute",
    "engine_timeout", "fail_above", "force", "format", "gpus_per_worker", "insecure_http", "json",
    "jsonl", "level", "offline", "output", "probe", "probe_tolerance", "prompt", "ray_address",
    "report", "response", "resume", "shard_dir", "show_whitespace", "strict", "text", "theme",
    "trust_remote_code", "unit", "verify", "view", "workers", "worst",
}  # fmt: skip
"""Options that change no row, and texts in place of files, which the rows hold."""
NOT_RESUMED = {
    "dataset", "dataset_config", "dataset_revision", "engine", "output_ranked", "save_teacher",
    "shard", "split", "teacher_top_k", "tensor_parallel",
}  # fmt: skip
"""Options of second files, which --resume does not go on with; and the server, the shard, the data
set and the parts of a model, which are recorded where there are such
(tests/backends/test_server.py, tests/results/test_merging.py, tests/inputs/test_datasets.py,
tests/backends/test_tensor_parallel.py)."""
RECORDED_TOGETHER = {"no_prompt", "teacher_adapter", "teacher_dtype", "teacher_revision"}
"""Options that are recorded as those of the prompts' field and of the teacher."""


@pytest.mark.parametrize("command", ["score", "cond", "rank", "diverge", "check"])
def test_every_option_is_recorded_or_changes_no_row(command: str, folder: Path) -> None:
    """Rows of two values of an option that no record names could be mixed in one file."""
    words = " --words --word-correction --varentropy" if command in ("score", "cond") else ""
    drafts = " --draft-length 3 --overlap-k 4" if command == "diverge" else ""
    regions = " --regions samples/regions.jsonl" if words else ""
    template = f" {stub.CHAT}" if command == "check" else ""
    line = f"{COMMANDS[command]}{words}{drafts}{regions}{template} --json"
    run = document(stub.run(line, folder), 0 if command == "check" else 3)["run"]
    own = RunInfo(**{name: value for name, value in run.items() if name != "schema_version"})
    # Of another value: whatever the record holds is named with its option.
    other = {
        name: dict.fromkeys(value, "other") if isinstance(value, dict) else "other"
        for name, value in run.items()
    }
    if command in ("cond", "rank"):  # recorded where a template reads the clock
        other["pairs"]["template_date"] = "other"
    cli: Any = typer.main.get_command(app)
    flags = {str(each.name): each.opts[0] for each in cli.commands[command].params}
    with pytest.raises(UsageError) as refusal:
        require_same_run(folder / "out.jsonl", other, own, flags)
    named = {*re.findall("--[a-z][a-z-]*", str(refusal.value))}
    missing = {name for name, flag in flags.items() if flag not in named and flag[0] == "-"}
    assert missing - NOT_RECORDED - NOT_RESUMED - RECORDED_TOGETHER == set()


def test_a_kept_row_with_impossible_figures(folder: Path) -> None:
    for case, before, after in (
        ("rank", b'"log_prob":-', b'"log_prob":1-'),
        ("diverge-smoothing", b'"n_scored":', b'"n_scored":1'),
        ("mask", b'"n_response_tokens":', b'"n_response_tokens":9'),
    ):
        lines = written(LONG[case], folder, "out.jsonl").splitlines(keepends=True)
        (folder / "out.jsonl").unlink()
        lines[1] = lines[1].replace(before, after.replace(b"1-", b"-1"), 1)
        partial = folder / "out.jsonl.partial"
        partial.write_bytes(b"".join(lines[:3]))
        done = stub.run(f"{LONG[case]} -o out.jsonl --resume", folder)
        assert done.exit_code == 2, case
        assert "partial:2 " in done.stderr
        partial.unlink()


@settings(max_examples=25)
@given(data=st.data())
def test_any_corpus_cut_anywhere(data: st.DataObject, tmp_path_factory: Any) -> None:
    """Totals with intervals and reservoirs of diverge, counts of rank: as in one whole run."""
    words = st.text("ab é🐕", max_size=12)
    rows = data.draw(
        st.lists(
            st.fixed_dictionaries(
                {"prompt": words, "text": words, "choices": st.lists(words, min_size=1, max_size=4)}
            ),
            min_size=1,
            max_size=9,
        )
    )
    command = data.draw(
        st.sampled_from(
            [
                "rank rows.jsonl --pmi",
                "diverge rows.jsonl --label-smoothing 0",
                f"diverge rows.jsonl {SMALL} --teacher demo",
            ]
        )
    )
    place = tmp_path_factory.mktemp("any")
    (place / "samples").symlink_to(stub.ROOT / "samples")
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = written(command, place, "out.jsonl")
    at = data.draw(st.integers(whole.index(b"\n") + 1, len(whole)))
    (place / "out.jsonl").unlink()
    (place / "out.jsonl.partial").write_bytes(whole[:at])
    done = stub.run(f"{command} -o out.jsonl --resume", place)
    assert done.exit_code in (0, 3), done.stderr
    assert (place / "out.jsonl").read_bytes() == whole


# -- pages and other readers ----------------------------------------------------------------------


def test_a_page_is_made_of_a_parquet_file_of_rankings(folder: Path) -> None:
    line = "rank questions.jsonl --tokens -o out.parquet --force --report page.html --force"
    assert stub.run(line, folder).exit_code == 3
    assert stub.run("report out.parquet -o again.html", folder).exit_code == 0
    (folder / "again.html").unlink()
    (folder / "page.html").unlink()


def test_formats_say_what_they_can(folder: Path) -> None:
    assert [name for name, format in FORMATS.items() if format.resumable] == ["jsonl"]
    assert [name for name, format in FORMATS.items() if format.read] == ["json", "jsonl", "parquet"]
    assert document(stub.run("mask mixed.jsonl --json", folder), 3)["run"]["command"] == "mask"
