"""Parquet, CSV and TSV say what JSON says, as far as they can, and refuse what they cannot."""

from __future__ import annotations

import csv
import gc
import io
import json
import math
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from helpers.program import ROOT, document, in_process, strictly
from seqloss_cli.core.errors import RowError, UsageError
from seqloss_cli.core.records import Rejected
from seqloss_cli.results.formats import parquet as parquet_module
from seqloss_cli.results.formats.parquet import ParquetWriter, read_parquet_rows
from seqloss_cli.results.schema import ABSENT, Key, Kind, RowOptions, Rows

TRICKY = 'a "quote", a comma;\ta tab\r\nand\rlines\n日本 🐕 \x00\x1b[31m'
FORMULAS = ("=1+1", "+1", "-1", "@x", "\tx", "\rx")
TEXTS = [
    {"id": "plain", "text": "The cat sat on the mat.", "note": {"deep": [1, None, 0.1]}},
    {"id": "tricky", "text": TRICKY},
    {"no": "text"},
    {"id": "ids", "input_ids": [5, 6, 7, 8]},
    {"id": "labels", "input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]},
    {"id": "one", "input_ids": [5]},
    {"text": "<|end_of_text|> inside", "empty": {}},
]
PAIRS = [
    {"id": "a", "prompt": "The list is", "response": " sorted in place.", "extra": 1},
    {"id": "b", "prompt": "", "response": "Nothing before."},
    {"id": "c", "prompt": "The re", "response": "turn value."},
    {"prompt": 3, "response": "x"},
]
CHATS = [
    {"id": "chat", "messages": [{"role": "user", "content": "1?"}]},
    {
        "id": "two",
        "messages": [
            {"role": "user", "content": "Is a tuple mutable?"},
            {"role": "assistant", "content": "No."},
        ],
    },
]
EVERYTHING = ("--words", "--ranks", "--entropy", "--top-k", 3, "--context-lengths")
TEMPLATE = ("--chat-template", ROOT / "samples" / "chat.jinja")
CASES = {
    "texts": ("score", TEXTS, ()),
    "meta": ("score", TEXTS, ("--keep-meta",)),
    "everything": ("score", TEXTS, EVERYTHING),
    "no tokens": ("score", TEXTS, ("--no-tokens", *EVERYTHING)),
    "no text": ("score", TEXTS, ("--no-text",)),
    "no bos": ("score", TEXTS, ("--bos", "never", "--eos", "--context", 4)),
    "summary": ("score", TEXTS, ("--summary",)),
    "pairs": ("cond", PAIRS, ("--keep-meta",)),
    "pmi": ("cond", PAIRS, ("--pmi", *EVERYTHING)),
    "compare": ("cond", PAIRS, ("--boundary", "compare", "--separator", " ", "--no-marginal")),
    "no bos for pairs": ("cond", PAIRS, ("--pmi", "--bos", "never", "--no-text")),
    "chats": ("cond", CHATS, TEMPLATE),
    "mixed": ("cond", [*PAIRS, *CHATS], (*TEMPLATE, "--boundary", "compare", "--pmi")),
}

Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return in_process


def write_rows(path: Path, rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def unwrapped(stderr: str) -> str:
    """Without the box that usage errors stand in."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", stderr).split())


def table(text: str, delimiter: str = ",") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))


# -- Parquet ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_parquet_reads_back_as_the_lines_of_jsonl(case: str, run: Run, tmp_path: Path) -> None:
    command, rows, options = CASES[case]
    inputs = write_rows(tmp_path / "rows.jsonl", [*rows, {"id": "bad"}])
    for name in ("out.jsonl", "out.parquet"):
        result = run(command, inputs, "-o", name, *options)
        assert result.exit_code == 3, result.stderr
    expected = [strictly(line) for line in Path("out.jsonl").read_text().splitlines()]
    found = list(read_parquet_rows("out.parquet"))
    assert [row["type"] for row in found] == [row["type"] for row in expected]
    assert any(row["type"] == "rejected" for row in found)
    for record in (found[0], expected[0]):
        assert record.pop("started_at")
    assert found == expected
    assert [type(value) for row in found for value in row.values()] == [
        type(row[name]) for row, other in zip(expected, found, strict=True) for name in other
    ]


def test_other_tools_find_the_columns_and_the_metadata(run: Run, tmp_path: Path) -> None:
    inputs = write_rows(tmp_path / "rows.jsonl", TEXTS)
    run("score", inputs, "--format", "parquet", "-o", "out.pq", "--entropy")
    file = pq.ParquetFile("out.pq")
    types = {field.name: str(field.type) for field in file.schema_arrow}
    assert types["total_loss"] == "double"
    assert types["line"] == types["n_scored"] == "int64"
    assert [types[name].split("<")[0] for name in ("token_losses", "entropies")] == ["list"] * 2
    assert types["flags"] == types["text"] == types["reason"] == "string"
    assert not {"ranks", "top_logprobs", "words", "prompt", "pmi", "turns"} & set(types)
    stored = file.metadata.metadata
    assert json.loads(stored[b"seqloss.run"])["command"] == "score"
    assert json.loads(stored[b"seqloss.run"])["schema_version"] == 1
    assert json.loads(stored[b"seqloss.totals"])["n_rejected"] == 1
    column = file.read(["total_loss", "type"]).to_pydict()
    assert column["type"] == ["rejected" if "no" in row else "sequence" for row in TEXTS]
    assert column["total_loss"][2] is column["total_loss"][5] is None


class FakeRun:
    """A record with no fields."""

    pairs, boundary, model, teacher, models, reading = None, None, None, None, None, None

    def as_json(self) -> dict[str, Any]:
        return {}


KEYS = {"id": Kind.text, "source": Kind.text, "line": Kind.whole, "total_loss": Kind.real}
KEYS |= {"token_ids": Kind.wholes, "token_losses": Kind.reals}


def writer_of(sink: Any, row: Callable[[Any], dict[str, Any]]) -> Any:
    keys = [Key(k, kind, lambda v, k=k: v.get(k, ABSENT)) for k, kind in KEYS.items()]  # type: ignore[misc]
    run: Any = FakeRun()
    rows: Any = Rows(
        RowOptions(run=run, token_texts=lambda sequence: [], name_token=str),
        tuple(keys),
        {},
        lambda result, sums: row(result),
        lambda *counts: {"n": sum(counts[1].values())},
        lambda entry, row: {},
        lambda row, place, entry: None,  # type: ignore[arg-type,return-value]
    )
    return ParquetWriter(sink, rows)


def test_row_groups_are_bounded_by_rows_and_by_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, most in (("MOST_ROWS", 10), ("MOST_WEIGHT", 1000)):
        monkeypatch.setattr(parquet_module, name, most)
        monkeypatch.setattr(parquet_module, name.replace("MOST", "GROUP"), 2 * most)
    sizes = [1] * 25 + [400, 400, 400, 5000, 1, 1]
    with (tmp_path / "x.parquet").open("wb") as sink:
        writer = writer_of(sink, lambda n: {"id": "", "token_ids": list(range(n))})
        writer.begin(FakeRun())
        for size in sizes:
            writer.sequence(size, None)
        writer.end(None, {}, 0)
    file = pq.ParquetFile(tmp_path / "x.parquet")
    groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert groups == [20, 8, 1, 2]
    _, *rows, totals = read_parquet_rows(tmp_path / "x.parquet")
    assert [len(row["token_ids"]) for row in rows] == sizes
    assert totals == {"type": "totals", "n": 0}


def test_any_float64_reads_back_as_itself(tmp_path: Path) -> None:
    values = [5e-324, math.nextafter(1, 2), 1.7976931348623157e308, 0.1 + 0.2, -0.0, None, 3.0]
    with (tmp_path / "x.parquet").open("wb") as sink:
        writer = writer_of(sink, lambda _: {"token_losses": values, "total_loss": 0.1 + 0.7})
        writer.begin(FakeRun())
        writer.sequence(None, None)
        writer.end(None, {}, 0)
    row = [*read_parquet_rows(tmp_path / "x.parquet")][1]
    assert [repr(value) for value in row["token_losses"]] == [repr(value) for value in values]
    assert row["total_loss"] == 0.1 + 0.7


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            if not self.tell():
                return super().write(data)  # the first bytes still fit
            raise OSError(28, "No space left on device")

    writer = writer_of(Full(), lambda _: {})
    writer.begin(FakeRun())
    writer.reject(Rejected("x", "x", None, "bad", "bad"))
    with pytest.raises(OSError, match="No space left"):
        writer.end(None, {}, 0)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_pyarrow_is_quiet_about_a_run_that_was_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_module, "MOST_ROWS", 1)
    monkeypatch.setattr(parquet_module, "GROUP_ROWS", 1)
    with io.BytesIO() as sink:
        writer = writer_of(sink, lambda n: {"line": n})
        writer.begin(FakeRun())
        for n in range(3):
            writer.sequence(n, None)
    del writer
    gc.collect()


def test_a_file_without_rows(tmp_path: Path) -> None:
    with (tmp_path / "x.parquet").open("wb") as sink:
        writer = writer_of(sink, lambda _: {})
        writer.begin(FakeRun())
        writer.end(None, {}, 0)
    found = list(read_parquet_rows(tmp_path / "x.parquet"))
    assert found == [{"type": "run", "schema_version": 1}, {"type": "totals", "n": 0}]


def test_a_row_without_a_text_is_all(run: Run, tmp_path: Path) -> None:
    nothing = write_rows(tmp_path / "rows.jsonl", [{"id": "a", "text": ""}])
    for name in ("out.parquet", "out.csv", "out.jsonl"):
        assert run("score", nothing, "-o", name).exit_code == 3
    found = list(read_parquet_rows("out.parquet"))
    assert [row["type"] for row in found] == ["run", "rejected", "totals"]
    header, line = Path("out.csv").read_text().splitlines()
    assert header.startswith("id,source,line,text_sha256,ids_sha256,text,")
    assert line.startswith(f"a,{nothing},1,,,,")
    tokens = run("score", nothing, "--format", "csv", "--level", "token").stdout.splitlines()
    assert tokens[0] == "id,line,position,token_id,token,loss,scored,loss_mask,start,end,reason"
    assert tokens[1:] == ["a,1,,,,,,,,,empty"]


def test_without_pyarrow_the_user_is_told_before_a_model_is_loaded(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = run("score", "--text", "x", "-o", "out.parquet")
    assert result.exit_code == 2
    assert "pip install 'seqloss[parquet]'" in unwrapped(result.stderr)
    assert "built-in" not in result.stderr, "no model was loaded"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="pip install"):
        next(read_parquet_rows("out.parquet"))
    assert run("score", "--text", "x", "--format", "csv").exit_code == 0


def test_what_is_no_results_file_is_refused(run: Run, tmp_path: Path) -> None:
    run("score", "--text", "x", "-o", "out.parquet")
    whole = Path("out.parquet").read_bytes()
    Path("torn.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RowError, match="no whole Parquet file"):
        list(read_parquet_rows("torn.parquet"))
    pq.write_table(pq.read_table("out.parquet").replace_schema_metadata(None), "other.parquet")
    with pytest.raises(RowError, match="no results of seqloss"):
        list(read_parquet_rows("other.parquet"))


# -- CSV and TSV --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "delimiter"), [("out.csv", ","), ("out.tsv", "\t")])
def test_a_line_for_each_input(name: str, delimiter: str, run: Run, tmp_path: Path) -> None:
    inputs = write_rows(tmp_path / "rows.jsonl", TEXTS)
    expected = run("score", inputs, "--jsonl", "--keep-meta").stdout.splitlines()[1:-1]
    assert run("score", inputs, "-o", name, "--keep-meta").exit_code == 3
    raw = Path(name).read_bytes()
    assert not raw.splitlines(keepends=True)[0].endswith(b"\r\n")
    lines = table(raw.decode(), delimiter)
    assert len(lines) == len(expected)
    for line, row in zip(lines, map(json.loads, expected), strict=True):
        assert {"n_scored", "total_loss", "log_prob", "reason", "message"} <= set(line)
        for column, cell in line.items():
            value = row.get(column)
            if column == "flags":
                flags = (value or {}).items()
                assert cell == ";".join(k if v is True else f"{k}={v}" for k, v in flags)
            elif column == "meta":
                assert (json.loads(cell) if cell else None) == value
            elif isinstance(value, float):
                assert float(cell) == value
            else:
                assert cell == ("" if value is None else str(value)), column
    assert [line["text"] for line in lines][1] == TRICKY
    assert [line["flags"] for line in lines][3:6] == [
        "first_token_unscored",
        "first_token_unscored",
        "first_token_unscored;nothing_scored",
    ]


def test_a_line_for_each_pair(run: Run, tmp_path: Path) -> None:
    inputs = write_rows(tmp_path / "rows.jsonl", PAIRS)
    options = ("--pmi", "--boundary", "compare")
    expected = map(json.loads, run("cond", inputs, "--jsonl", *options).stdout.splitlines()[1:-1])
    lines = table(run("cond", inputs, "--format", "csv", *options).stdout)
    for line, row in zip(lines, expected, strict=True):
        apart = row.get("separate", {})
        flat = row | {f"separate.{name}": value for name, value in apart.items()}
        for column in ("loss", "pmi", "log_prob_xy", "separate.loss", "separate_minus_joint"):
            assert (float(line[column]) if line[column] else None) == flat.get(column), column
        for column in ("prompt", "response", "boundary", "reason"):
            assert line[column] == flat.get(column, "")
    assert lines[0]["log_prob_xy"].startswith("-")
    without = run("cond", inputs, "--format", "csv", "--no-text").stdout.splitlines()[0].split(",")
    assert not {"prompt", "response", "separator", "text", "pmi", "separate.loss"} & set(without)


def test_a_line_for_each_token(run: Run, tmp_path: Path) -> None:
    inputs = write_rows(tmp_path / "rows.jsonl", TEXTS)
    options = ("--ranks", "--entropy", "--context-lengths")
    expected = map(json.loads, run("score", inputs, "--jsonl", *options).stdout.splitlines()[1:-1])
    lines = table(run("score", inputs, "--format", "csv", "--level", "token", *options).stdout)
    start = 0
    for row in expected:
        if row["type"] == "rejected":
            filled = {name: cell for name, cell in lines[start].items() if cell}
            assert filled == {"id": row["id"], "line": "3", "reason": "missing_field"}
            start += 1
            continue
        own = lines[start : start + row["n_tokens"]]
        start += row["n_tokens"]
        check_tokens(own, row)
    assert start == len(lines)


def check_tokens(lines: list[dict[str, str]], row: dict[str, Any]) -> None:
    assert {line["id"] for line in lines} == {row["id"]}
    assert [int(line["position"]) for line in lines] == list(range(row["n_tokens"]))
    assert [int(line["token_id"]) for line in lines] == row["token_ids"]
    shown = [re.sub(r"^'(?=[=+@\t\r-])", "", line["token"]) for line in lines]
    assert shown == row["tokens"]
    names = {"loss": "token_losses", "entropy": "entropies"}
    names |= {"rank": "ranks", "context_length": "context_lengths"}
    for column, name in names.items():
        assert [float(line[column]) if line[column] else None for line in lines] == row[name]
    assert [line["scored"] for line in lines] == [
        "0" if loss is None else "1" for loss in row["token_losses"]
    ]
    if "loss_mask" in row:
        assert [int(line["loss_mask"]) for line in lines] == row["loss_mask"]
    offsets = row["byte_offsets"]
    spans = [(str(a), str(b)) for a, b in pairwise(offsets)] if offsets else [("", "")] * len(lines)
    assert [(line["start"], line["end"]) for line in lines] == spans


def test_tokens_of_pairs_say_which_part_they_are_of(run: Run) -> None:
    pair = ("--prompt", "The list is", "--response", " sorted in place.")
    row = document(run("cond", *pair, "--json"))["sequences"][0]
    lines = table(run("cond", *pair, "--format", "tsv", "--level", "token").stdout, "\t")
    parts = [line["part"] for line in lines]
    assert parts == ["y" if counts else "x" for counts in row["loss_mask"]]
    assert parts.count("y") == row["n_response_tokens"]
    losses = [float(line["loss"]) for line in lines if line["part"] == "y"]
    assert math.fsum(losses) == row["loss"]
    assert lines[0]["loss"] == ""


def test_no_text_is_a_formula_and_numbers_stay_numbers(run: Run, tmp_path: Path) -> None:
    rows = [{"id": text, "text": text} for text in FORMULAS]
    inputs = write_rows(tmp_path / "rows.jsonl", rows)
    for level in ("sequence", "token"):
        lines = table(run("score", inputs, "--format", "csv", "--level", level).stdout)
        for line in lines:
            for column, cell in line.items():
                if column in ("id", "text", "token"):
                    assert not cell.startswith(FORMULAS)
                elif column in ("log_prob", "loss") and cell:
                    float(cell)
        if level == "sequence":
            assert [line["text"] for line in lines] == ["'" + text for text in FORMULAS]
            assert all(line["log_prob"].startswith("-") for line in lines)


def test_that_there_are_no_totals_is_said_once(run: Run) -> None:
    result = run("score", "--text", "x", "--format", "csv")
    told = [line for line in result.stderr.splitlines() if "totals" in line]
    assert told == ["seqloss: csv holds neither the run nor the totals; --jsonl holds both"]
    assert "totals" not in run("score", "--text", "x", "--jsonl").stderr


# -- what cannot be -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--format", "parquet"), "needs -o FILE"),
        (("--format", "csv", "--summary"), "--summary goes with --json"),
        (("--format", "tsv", "--words"), "no place for --words"),
        (("--format", "tsv", "--top-k", "2"), "no place for --top-k"),
        (("--format", "csv", "--ranks"), "--level token only"),
        (("--format", "csv", "--entropy"), "--level token only"),
        (("--format", "csv", "--context-lengths"), "--level token only"),
        (("--format", "csv", "--level", "token", "--no-tokens"), "leave --no-tokens out"),
        (("--json", "--level", "token"), "--level says"),
        (("-o", "x.txt"), "use .json, .jsonl, .parquet, .csv, .tsv"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(run: Run, arguments: Any, words: str) -> None:
    result = run("score", "--text", "x", *arguments)
    assert result.exit_code == 2
    assert words in unwrapped(result.stderr)
    assert "built-in" not in result.stderr, "no model was loaded"


@pytest.mark.parametrize("command", ["score", "cond"])
def test_the_help_names_formats_and_levels(run: Run, command: str) -> None:
    shown = unwrapped(run(command, "--help", COLUMNS="200").stdout)
    assert "--level" in shown
    assert "--format table|json|jsonl|openai|parquet|csv|tsv " in shown
    assert "choice or token" in unwrapped(run("rank", "--help", COLUMNS="200").stdout)
