"""Reading: what becomes a sample, what is rejected and why, and how much memory it takes."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import tracemalloc
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.records import Rejected, Sample
from seqloss_cli.inputs import first_look, reading
from seqloss_cli.inputs.choices import ChoiceFields
from seqloss_cli.inputs.reading import ReadOptions, ReadStats, read_inputs, text_sample
from seqloss_cli.inputs.rows import PairFields
from seqloss_cli.results.schema import json_bytes

BOM = "\ufeff"
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
# One line of a file that holds several: no line feed, no lone carriage return at its end.
LINES = st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])).map(
        lambda text: text.replace("\n", " ").rstrip("\r")
    ),
    min_size=1,
)


def read(*names: Path | str, **options: Any) -> list[Any]:
    return list(read_inputs([str(name) for name in names], ReadOptions(**options), ReadStats()))


def read_bytes(path: Path, content: bytes, **options: Any) -> list[Any]:
    path.write_bytes(content)
    return read(path, **options)


def read_rows(path: Path, *rows: object, **options: Any) -> list[Any]:
    """Rows are written as JSON; bytes as they are."""
    lines = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    return read_bytes(path.with_suffix(".jsonl"), b"\n".join(lines), **options)


def only(items: list[Any]) -> Any:
    assert len(items) == 1
    return items[0]


def reason(item: Any) -> str | None:
    return item.reason if isinstance(item, Rejected) else None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "input.txt"


# -- whole files --------------------------------------------------------------------------------


@given(text=st.text(min_size=1).filter(lambda text: "\0" not in text and text[0] != BOM))
def test_a_text_file_is_taken_as_it_is(path: Path, text: str) -> None:
    sample = only(read_bytes(path, text.encode()))
    assert (sample.text, sample.id, sample.source) == (text, str(path), str(path))
    assert (sample.line, sample.flags, sample.end) == (None, {}, len(text.encode()))


def test_line_ends_of_a_text_file_are_content(path: Path) -> None:
    assert only(read_bytes(path, b"one\r\ntwo\n\n")).text == "one\r\ntwo\n\n"


@pytest.mark.parametrize("lines", [False, True])
def test_a_bom_is_dropped_and_said(path: Path, lines: bool) -> None:
    sample = only(read_bytes(path, (2 * BOM + "a").encode(), lines=lines))
    assert sample.text == BOM + "a", "the second one is content"
    assert sample.flags == {"bom_dropped": True}


def test_a_bom_before_the_first_row_is_dropped(path: Path) -> None:
    sample = only(read_rows(path, BOM.encode() + b'{"text": "a"}'))
    assert (sample.text, sample.flags) == ("a", {"bom_dropped": True})


@pytest.mark.parametrize(
    ("content", "expected", "said"),
    [
        (b"", "empty", "no text"),
        (BOM.encode(), "empty", "no text"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff", "binary_data", "binary"),
        ("text".encode("utf-16"), "utf_16", "iconv -f UTF-16 -t UTF-8"),
        ("text".encode("utf-16-be"), "utf_16", "is UTF-16BE"),
        ("text".encode("utf-32"), "utf_16", "is UTF-32"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "lfs_pointer", "git lfs pull"),
        (gzip.compress(b"text", mtime=0), "binary_data", "call it FILE.gz"),
        (b"PAR1\x15\x04", "binary_data", "FILE.parquet"),
        (b"a\0b", "binary_data", "NUL at character 1"),
        (b"caf\xe9 au lait", "invalid_utf8", "byte 0xe9 at offset 3"),
        (b"a\xed\xa0\x80", "invalid_utf8", "byte 0xed at offset 1"),
        (b"abc\xf0\x9f\x90", "invalid_utf8", "byte 0xf0 at offset 3"),
    ],
)
def test_a_file_that_is_no_text_is_rejected(
    path: Path, content: bytes, expected: str, said: str
) -> None:
    rejected = only(read_bytes(path, content))
    assert (reason(rejected), rejected.id, rejected.line) == (expected, str(path), None)
    assert said in rejected.message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.jsonl.gz"])
def test_a_file_in_utf_16_is_rejected_once(tmp_path: Path, name: str, encoding: str) -> None:
    rows = ('{"text": "a"}\n' * 3).encode(encoding)
    packed = PACK[Path(name).suffix if name.count(".") > 1 else ""](rows)
    rejected = only(read_bytes(tmp_path / name, packed, lines=name == "a.txt"))
    assert (reason(rejected), rejected.line) == ("utf_16", None)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b'[{"text": "a"}, {"text": "b"}]', "jq -c '.[]' FILE"),
        ("a.json", b'\xef\xbb\xbf [\n{"text": "a"}\n]\n', "jq -c '.[]' FILE"),
        ("a.json", b'["a", "b"]', "jq -c '.[]' FILE"),
        ("a.json", b'{"text": "a"}\n{"text": "b"}\n', "--jsonl-input"),
        ("a.json", b'{\n"version": 1, "my data": [{"text": "a"}]}', """'.["my data"][]'"""),
        ("a.jsonl", b'[{"text": "a"}, {"text": "b"}]', "jq -c '.[]' FILE"),
        ("a.jsonl", b'[\n  {"text": "a"},\n  {"text": "b"}\n]', "jq -c '.[]' FILE"),
        ("a.jsonl", b'[{"text": "a"},\n {"text": "b"}]', "jq -c '.[]' FILE"),
        ("a.jsonl", b'{\n  "text": "a"\n}\n{\n  "text": "b"\n}\n', "jq -c '.' FILE"),
    ],
)
def test_a_json_document_is_rejected_with_what_makes_rows_of_it(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    *lines, rejected = read_bytes(tmp_path / name, content)
    assert (reason(rejected), rejected.line) == ("json_document", None)
    assert said in rejected.message
    assert len(lines) <= 1


def test_a_brace_alone_costs_only_itself(path: Path) -> None:
    items = read_rows(path, b"{", {"text": "a"}, b"}")
    assert [reason(item) for item in items] == ["bad_json", None, "bad_json"]


@pytest.mark.parametrize("content", [b'{\n  "a": "b"\n}\n', b'"a"', b"[sic] a text", b"7"])
def test_other_json_files_are_texts(tmp_path: Path, content: bytes) -> None:
    assert only(read_bytes(tmp_path / "a.json", content)).text == content.decode()


def test_a_text_above_max_bytes_is_rejected_with_what_helps(path: Path) -> None:
    assert only(read_bytes(path, "äb".encode(), max_bytes=3)).text == "äb"
    rejected = only(read_bytes(path, "äbc".encode(), max_bytes=3))
    assert reason(rejected) == "too_long"
    assert "--max-bytes 3" in rejected.message
    assert "--lines" in rejected.message


# -- files that cannot be opened ----------------------------------------------------------------


def test_what_cannot_be_opened_is_rejected_and_the_others_go_on(path: Path) -> None:
    path.write_text("fine")
    folder, missing = path.parent, path.with_name("missing.txt")
    too_long, below_a_file = path.with_name("x" * 300), path / "below"
    items = read(missing, folder, too_long, below_a_file, path)
    found = [reason(item) for item in items]
    assert found == ["no_such_file", "directory", "unreadable", "unreadable", None]
    assert [item.id for item in items[:2]] == [str(missing), str(folder)]
    assert all(item.line is None and item.message for item in items[:4])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_rejected(path: Path) -> None:
    path.write_text("secret")
    path.chmod(0)
    assert reason(only(read(path))) == "unreadable"


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux")
def test_a_file_that_fails_while_it_is_read_is_rejected() -> None:
    rejected = only(read("/proc/self/mem"))
    assert reason(rejected) == "unreadable"
    assert "cannot be read" in rejected.message


# -- lines --------------------------------------------------------------------------------------


def test_lines_without_their_ends(path: Path) -> None:
    path.write_bytes(b"one\r\n\ntwo\rstill two\n\r\n \t\nlast")
    stats = ReadStats()
    samples = list(read_inputs([str(path)], ReadOptions(lines=True), stats))
    assert [sample.text for sample in samples] == ["one", "two\rstill two", " \t", "last"]
    assert [sample.line for sample in samples] == [1, 3, 5, 6]
    assert [sample.id for sample in samples] == [f"{path}:{n}" for n in (1, 3, 5, 6)]
    assert stats.n_empty_lines == 2


@given(lines=LINES, end=st.sampled_from(["\n", "\r\n"]), last_end=st.booleans())
def test_any_lines_come_back(path: Path, lines: list[str], end: str, last_end: bool) -> None:
    lines[0] = lines[0].lstrip(BOM)
    items = read_bytes(path, (end.join(lines) + end * last_end).encode(), lines=True)
    expected = [(number, line) for number, line in enumerate(lines, start=1) if line]
    assert [(item.line, item.text) for item in items if isinstance(item, Sample)] == expected


def test_a_line_with_a_nul_is_binary_data(path: Path) -> None:
    first, broken, last = read_bytes(path, b"one\ntw\0o\nthree\n", lines=True)
    assert (first.text, last.text) == ("one", "three")
    assert (broken.reason, broken.line) == ("binary_data", 2)


def test_a_broken_line_costs_only_itself(path: Path) -> None:
    first, broken, last = read_bytes(path, b"one\ncaf\xe9\nthree\n", lines=True)
    assert (first.text, last.text, last.line) == ("one", "three", 3)
    assert (reason(broken), broken.id, broken.line) == ("invalid_utf8", f"{path}:2", 2)


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n\n"])
@pytest.mark.parametrize("name", ["input.txt", "input.jsonl"])
def test_a_file_without_a_line_that_holds_something_is_rejected(
    tmp_path: Path, name: str, content: bytes
) -> None:
    rejected = only(read_bytes(tmp_path / name, content, lines=name.endswith("txt")))
    assert (reason(rejected), rejected.id) == ("empty", str(tmp_path / name))
    assert rejected.line is None, "lines count from 1"


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    max_bytes=st.integers(1, 30),
    end=st.sampled_from([b"\n", b"\r\n"]),
    last_end=st.booleans(),
)
def test_a_line_above_max_bytes_is_skipped_whole(
    path: Path, sizes: list[int], max_bytes: int, end: bytes, last_end: bool
) -> None:
    lines = [bytes([ord("a") + n]) * size for n, size in enumerate(sizes)]
    content = end.join(lines) + end * last_end
    items = read_bytes(path, content, lines=True, max_bytes=max_bytes)
    expected = [(n, size > max_bytes) for n, size in enumerate(sizes, start=1) if size]
    found = [(i.line, reason(i) == "too_long") for i in items if i.line]
    assert found == expected
    assert all(item.text == lines[item.line - 1].decode() for item in items if not reason(item))


def test_a_row_above_max_bytes_is_skipped_and_the_next_is_right(path: Path) -> None:
    long = {"text": "x" * 200_000}
    first, rejected, last = read_rows(path, {"text": "a"}, long, {"text": "b"}, max_bytes=100)
    assert (first.text, last.text, last.line) == ("a", "b", 3)
    assert (reason(rejected), rejected.line) == ("too_long", 2)
    assert "--max-bytes 100" in rejected.message


# -- JSONL --------------------------------------------------------------------------------------


def test_rows_with_ids_of_their_own(path: Path) -> None:
    rows = [{"text": "a", "id": "ä"}, {"text": "b", "id": 0}, {"text": "c", "id": -(2**63)}]
    items = read_rows(path, *rows, {"text": "d"})
    source = str(path.with_suffix(".jsonl"))
    assert [item.id for item in items] == ["ä", "0", str(-(2**63)), f"{source}:4"]
    assert {item.source for item in items} == {source}


def test_the_text_field_can_be_named(path: Path) -> None:
    row = {"body": "b", "text": "t", "n": 1}
    sample = only(read_rows(path, row, text_field="body", keep_meta=True))
    assert (sample.text, sample.meta) == ("b", {"text": "t", "n": 1})


def test_meta_is_carried_only_when_asked(path: Path) -> None:
    row = {"id": 1, "text": "a", "deep": {"x": [None, 1.5]}}
    assert only(read_rows(path, row)).meta is None
    assert only(read_rows(path, row, keep_meta=True)).meta == {"deep": {"x": [None, 1.5]}}


def test_numbers_of_meta_are_as_they_were_written(path: Path) -> None:
    written = (
        b'{"a":1.10,"b":[12345678901234567890123,-0,1E5,1e-7],"c":9223372036854775808,"d":7,'
        b'"e":18446744073709551615,"f":18446744073709551616,"g":-9223372036854775809}'
    )
    sample = only(read_rows(path, b'{"text": "a", ' + written[1:], keep_meta=True))
    assert json_bytes(sample.meta) == written
    assert sample.meta == orjson.loads(written)  # so that --resume finds what it wrote


@pytest.mark.parametrize(
    "digits", ["9223372036854775808", "-1" + 300 * "0", "18446744073709551616"]
)
def test_an_id_may_be_a_number_of_any_length(path: Path, digits: str) -> None:
    assert only(read_rows(path, f'{{"id": {digits}, "text": "a"}}'.encode())).id == digits


@pytest.mark.parametrize("keep_meta", [False, True])
@pytest.mark.parametrize("depth", [100, 249, 253, 300, 1000, 1022, 2000, 100_000])
def test_a_row_of_any_depth_costs_only_itself(path: Path, depth: int, keep_meta: bool) -> None:
    deep = b'{"text": "b", "x": ' + depth * b"[" + depth * b"]" + b"}"
    first, row, last = read_rows(path, {"text": "a"}, deep, {"text": "c"}, keep_meta=keep_meta)
    assert (first.text, last.text) == ("a", "c")
    if depth > 1022 or (keep_meta and depth > 252):
        assert reason(row) in ("too_deep", "bad_json")
        assert "deep" in row.message or "depth" in row.message
    else:
        assert row.text == "b"
        assert not keep_meta or json_bytes({"meta": row.meta})


@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        ({"completion_mask": [0, 1, 1]}, [-100, 6, 7]),
        ({"completion_mask": [0, 1, 1], "assistant_masks": [1, 1, 0]}, [-100, 6, -100]),
        ({"loss_mask": [1, 1, 0], "labels": [-100, 6, 7]}, [-100, 6, -100]),
        ({"action_mask": [False, True, True]}, [-100, 6, 7]),
        ({"target_mask": [1.0, 0.0, 1.0]}, [5, -100, 7]),
        ({"response_mask": None, "attention_mask": [1, 1, 1]}, None),
        ({"special_tokens_mask": [1, 0, 0], "segment_ids": [2, 2, 2]}, None),
        ({"seq_lengths": [3], "position_ids": [0, 1, 2], "token_type_ids": [0, 0, 0]}, None),
    ],
)
def test_masks_beside_ids_are_taken(path: Path, masks: dict[str, Any], expected: Any) -> None:
    sample = only(read_rows(path, {"input_ids": [5, 6, 7], **masks}))
    assert (None if sample.labels is None else sample.labels.tolist()) == expected


@pytest.mark.parametrize(
    ("row", "flags"),
    [
        ({"weight": 0.5}, {"unused_weights": 1}),
        ({"weight": 0}, {"unused_weights": 1}),
        ({"weight": 1, "loss_mask": [1, 1], "label": 0, "attention_mask": [0, 1]}, {}),
        ({"loss_mask": [0, 1], "labels": [-100, 3]}, {"unused_weights": 2}),
        ({"prompt_token_ids": [1], "token_ids": [2], "doc_id": 3}, {"unused_ids": 2}),
        ({"image": "x.png"}, {"unused_context": 1}),
    ],
)
def test_what_a_text_row_says_of_its_tokens_is_flagged(
    path: Path, row: dict[str, Any], flags: dict[str, int]
) -> None:
    assert only(read_rows(path, {"text": "ab", **row})).flags == flags


def test_weights_of_ids_are_flagged(path: Path) -> None:
    row = {"input_ids": [5, 6], "loss_weights": [0.0, 0.5], "prompt_length": 1, "output_ids": [6]}
    assert only(read_rows(path, row)).flags == {"unused_weights": 2, "unused_ids": 1}


def test_rows_of_ids_and_labels(path: Path) -> None:
    row = {"input_ids": [5, 6, 7], "labels": [-100, 6, -100], "n": 1}
    with_labels, without = read_rows(path, row, {"input_ids": [5]}, keep_meta=True)
    assert with_labels.text is None
    assert with_labels.input_ids.tolist() == [5, 6, 7]
    assert with_labels.labels.tolist() == [-100, 6, -100]
    assert with_labels.meta == {"n": 1}
    assert without.labels is None


def test_a_nul_is_a_character_of_a_json_string(path: Path) -> None:
    assert only(read_rows(path, {"text": "a\0b"})).text == "a\0b"


@pytest.mark.parametrize(
    ("row", "expected", "said"),
    [
        (b"{", "bad_json", "JSON"),
        (b'{"text": "a"} x', "bad_json", "JSON"),
        (b'{"text": "a", "x": NaN}', "bad_json", "JSON"),
        (b'{"text": "a", "x": -Infinity}', "bad_json", "JSON"),
        (b'{"text": "\\ud800"}', "bad_json", "surrogate"),
        (b'{"text": "caf\xe9"}', "bad_json", "UTF-8"),
        (b"   ", "bad_json", "JSON"),
        (b"null", "wrong_type", "object"),
        (b'["a"]', "wrong_type", "object"),
        ({"text": 1}, "wrong_type", "'text'"),
        ({"text": None}, "wrong_type", "'text'"),
        ({"text": ""}, "empty", "no text"),
        ({"body": "a", "n": 1}, "missing_field", "'body', 'n'"),
        ({}, "missing_field", "--text-field"),
        ({"text": "a", "id": True}, "wrong_type", "'id'"),
        ({"text": "a", "id": 1.0}, "wrong_type", "'id'"),
        ({"text": "a", "id": ["x"]}, "wrong_type", "'id'"),
        ({"text": "a", "input_ids": [1]}, "ambiguous", "both"),
        ({"input_ids": "1 2"}, "wrong_type", "'input_ids'"),
        ({"input_ids": [1, 2.0]}, "wrong_type", "'input_ids'"),
        ({"input_ids": [1, True]}, "wrong_type", "'input_ids'"),
        ({"input_ids": [1, None]}, "wrong_type", "'input_ids'"),
        ({"input_ids": [2**63]}, "wrong_type", "'input_ids'"),
        ({"input_ids": [2**64]}, "wrong_type", "'input_ids'"),
        ({"input_ids": []}, "empty", "'input_ids'"),
        ({"input_ids": [1, 2], "labels": [1]}, "bad_labels", "1 labels for 2 input_ids"),
        ({"input_ids": [1, 2], "labels": [2, -100]}, "bad_labels", "labels[0] is 2"),
        ({"input_ids": [1, 2], "labels": [1, "2"]}, "wrong_type", "'labels'"),
        ({"input_ids": [1], "labels": None}, "wrong_type", "'labels'"),
        ({"input_ids": [1, 2], "loss_mask": [1]}, "bad_labels", "loss_mask"),
        ({"input_ids": [1, 2], "loss_mask": [1, 2]}, "bad_labels", "loss_mask"),
        ({"input_ids": [1, 2], "loss_mask": [0, 0.5]}, "bad_labels", "loss_mask"),
        ({"input_ids": [1, 2], "attention_mask": [1, 0]}, "padded", "leave padding out"),
        ({"input_ids": [1, 2], "seq_lengths": [1, 1]}, "packed_row", "seq_lengths"),
        ({"input_ids": [1, 2, 3], "position_ids": [0, 0, 1]}, "packed_row", "position_ids"),
        ({"input_ids": [1, 2, 3], "segment_ids": [0, 0, 1]}, "packed_row", "segment_ids"),
        ({"input_ids": [1, 2, 3], "cu_seqlens": [0, 2, 3]}, "packed_row", "cu_seqlens"),
        ({"input_ids": [1, 2], "prompt_mask": [1, 0]}, "bad_labels", "Call it loss_mask"),
    ],
)
def test_a_wrong_row_is_rejected_and_the_others_go_on(
    path: Path, row: object, expected: str, said: str
) -> None:
    first, rejected, last = read_rows(path, {"text": "a"}, row, {"text": "b"})
    assert (first.text, last.text, last.line) == ("a", "b", 3)
    assert (reason(rejected), rejected.line) == (expected, 2)
    assert rejected.id == f"{path.with_suffix('.jsonl')}:2"
    assert said in rejected.message


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.jsonl.gz", "a.ndjson.zst"])
def test_jsonl_is_known_by_its_name(tmp_path: Path, name: str) -> None:
    packed = PACK[Path(name).suffix if name.count(".") > 1 else ""](b'{"text": "a"}\n')
    assert only(read_bytes(tmp_path / name, packed)).text == "a"


def test_jsonl_under_another_name(path: Path) -> None:
    row = b'{"text": "a"}'
    assert only(read_bytes(path, row)).text == row.decode()
    assert only(read_bytes(path, row, jsonl=True)).text == "a"


# -- compressed files ---------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize(("name", "lines"), [("a.txt", False), ("a.txt", True), ("a.jsonl", False)])
def test_compressed_files_hold_the_same(
    tmp_path: Path, suffix: str, name: str, lines: bool
) -> None:
    rows = [json.dumps({"text": f"row {n} ä\r\n"}).encode() for n in range(3000)]
    content = b"\r\n".join(rows)
    plain = read_bytes(tmp_path / name, content, lines=lines)
    packed = read_bytes(tmp_path / f"{name}{suffix}", PACK[suffix](content), lines=lines)
    assert [item.text for item in packed] == [item.text for item in plain]
    assert [item.line for item in packed] == [item.line for item in plain]
    assert 0 < packed[-1].end <= (tmp_path / f"{name}{suffix}").stat().st_size


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_files_of_several_frames(tmp_path: Path, suffix: str) -> None:
    noise = os.urandom(200_000).hex()  # frames longer than what is read at a time
    content = "\n".join([noise, "ä", "", noise[:70_000]]).encode()
    cuts = [0, 1, 400_002, 400_002, len(content)]  # within a line, within a character, empty
    frames = [content[a:b] for a, b in pairwise(cuts)]
    stored = b"".join(map(PACK[suffix], frames))
    items = read_bytes(tmp_path / f"a.txt{suffix}", stored, lines=True)
    assert [item.text for item in items] == [noise, "ä", noise[:70_000]]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_cut_file_gives_its_good_rows_and_is_rejected(tmp_path: Path, suffix: str) -> None:
    rows = [os.urandom(40).hex() for _ in range(20_000)]
    path = tmp_path / f"a.txt{suffix}"
    stored = PACK[suffix]("\n".join(rows).encode())
    *good, rejected = read_bytes(path, stored[: len(stored) // 2], lines=True)
    assert len(good) > 1000
    assert [item.text for item in good] == rows[: len(good)]
    assert (reason(rejected), rejected.id) == ("unreadable", str(path))
    assert rejected.line != good[-1].line, "that line was good"


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("keep", [1, 3, -1])
def test_a_cut_whole_text_is_rejected(tmp_path: Path, suffix: str, keep: int) -> None:
    stored = PACK[suffix](b"a whole text, cut")[:keep]
    assert reason(only(read_bytes(tmp_path / f"a.txt{suffix}", stored))) == "unreadable"


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("lines", [False, True])
def test_a_file_that_is_not_what_its_name_says(tmp_path: Path, suffix: str, lines: bool) -> None:
    rejected = only(read_bytes(tmp_path / f"a.txt{suffix}", b"plain text\n", lines=lines))
    assert reason(rejected) == "unreadable"
    assert rejected.line is None, "no line was read"


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_decompression_bomb_is_rejected_in_bounded_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACK[suffix](bytes(64 << 20)))
    items, peak = _peak_of(lambda: read(path, max_bytes=1000))
    assert reason(only(items)) == "too_long"
    assert peak < 32 << 20


# -- several inputs, stdin, limits --------------------------------------------------------------


def test_the_first_n_inputs(path: Path) -> None:
    path.write_text("one\ncaf\n\nthree\n")
    missing = path.with_name("missing")
    assert [item.line for item in read(path, missing, lines=True, limit=2)] == [1, 2]
    assert [item.line for item in read(path, missing, lines=True, limit=3)] == [1, 2, 4]
    assert reason(read(path, missing, path, limit=2)[1]) == "no_such_file"


@pytest.mark.parametrize("lines", [False, True])
def test_stdin(monkeypatch: pytest.MonkeyPatch, path: Path, lines: bool) -> None:
    path.write_text("from a file")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("ä\r\n".encode())))
    first, second = read("-", path, lines=lines)
    assert (first.text, first.source) == ("ä" if lines else "ä\r\n", "<stdin>")
    assert first.id == ("<stdin>:1" if lines else "<stdin>")
    assert second.text == "from a file"


def test_a_text_from_the_command_line() -> None:
    sample = text_sample("a\r\n")
    assert isinstance(sample, Sample)
    assert (sample.text, sample.id) == ("a\r\n", "<text>")
    assert reason(text_sample("")) == "empty"
    lone = text_sample("a\udc80")
    assert reason(lone) == "lone_surrogate"
    assert "position 1" in lone.message  # type: ignore[union-attr]


# -- duplicates ---------------------------------------------------------------------------------


def _duplicates(items: list[Any]) -> list[bool]:
    return [bool(item.flags.get("duplicate_id")) for item in items]


def test_ids_that_come_twice_are_flagged(path: Path) -> None:
    rows = [{"text": "a", "id": identity} for identity in ("x", 1, "x", "1", "y", "x")]
    assert _duplicates(read_rows(path, *rows)) == [False, False, True, True, False, True]
    rows_path = path.with_suffix(".jsonl")
    stats = ReadStats()
    names = [str(rows_path), str(rows_path)]
    items = list(read_inputs(names, ReadOptions(), stats))
    assert _duplicates(items[6:]) == [True] * 6
    assert (stats.n_duplicate_ids, stats.duplicate_id) == (9, "x")


def test_the_same_file_twice_is_flagged(path: Path) -> None:
    path.write_text("a\nb\n")
    assert _duplicates(read(path, path)) == [False, True]
    assert _duplicates(read(path, path, lines=True)) == [False, False, True, True]


def test_other_flags_stay_beside_the_duplicate(path: Path) -> None:
    path.write_bytes(BOM.encode() + b"a")
    assert read(path, path)[1].flags == {"bom_dropped": True, "duplicate_id": True}


# -- memory -------------------------------------------------------------------------------------


def _peak_of(action: Any) -> tuple[Any, int]:
    tracemalloc.start()
    try:
        result = action()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def many_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("many") / "rows.jsonl"
    with path.open("w") as file:
        file.writelines(json.dumps({"text": f"row {n} " + "x" * 200}) + "\n" for n in range(50_000))
    return path


def test_rows_are_read_only_when_they_are_asked_for(many_rows: Path) -> None:
    rows = read_inputs([str(many_rows)], ReadOptions(), ReadStats())
    third = list(islice(rows, 3))[-1]
    assert third.end < 1000 < many_rows.stat().st_size


def test_a_long_file_is_read_in_bounded_memory(many_rows: Path) -> None:
    rows = read_inputs([str(many_rows)], ReadOptions(), ReadStats())
    n_rows, peak = _peak_of(lambda: sum(1 for _ in rows))
    assert n_rows == 50_000
    assert peak < 4 << 20 < many_rows.stat().st_size


def refusal(path: Path, *lines: str, pairs: PairFields | ChoiceFields | None = None) -> str:
    path.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(UsageError) as found:
        first_look.first_look([str(path)], reading.ReadOptions(pairs=pairs))
    return str(found.value).removeprefix(str(path))


def test_what_is_said_of_the_first_rows_is_true_of_all_of_them(path: Path) -> None:
    path = path.with_suffix(".jsonl")
    alike = " (all of its first 2 rows are alike)"
    for rows in (('{"txt": "a"}', '{"body": "a"}'), ("{", '{"txt": nul}')):
        assert refusal(path, *rows).endswith(alike)
    mixed = refusal(path, '{"txt": "a"}', '{"txt": nul}', "{}")
    assert mixed.endswith(" (none of its first 3 rows can be scored: missing_field 2, bad_json 1)")
    rows = '{"prompt": "a"}', '{"response": "b"}'
    assert "(none of its first 2 rows can" in refusal(path, *rows, pairs=PairFields())
    assert refusal(path, "{}").endswith("see --text-field")


def test_of_rows_of_another_command_that_alone_is_advised(path: Path) -> None:
    row = '{"prompt": "a", "choices": ["b", "c"], "answer": 0}'
    said = refusal(path.with_suffix(".jsonl"), row, pairs=PairFields())
    assert "did you mean" not in said
    assert said.endswith("; prompts with choices are for `seqloss rank`")


@pytest.mark.parametrize(
    ("row", "fields", "said"),
    [
        ({"prompt": 3, "response": ["x"]}, PairFields(), "'prompt' is neither a text nor a list"),
        ({"prompt": ["x"], "response": "a"}, PairFields(), "'prompt' is not a list of objects"),
        ({"prompt": "a", "choices": ["b"], "answer": 0}, ChoiceFields(), "has 1 choice; two are"),
        ({"prompt": "a", "choices": [], "answer": 0}, ChoiceFields(), "has 0 choices; two are"),
    ],
)
def test_a_message_names_what_is_wrong(
    row: dict[str, Any], fields: PairFields | ChoiceFields, said: str, path: Path
) -> None:
    path.write_text(json.dumps(row))
    options = reading.ReadOptions(pairs=fields)
    (found,) = reading.read_inputs([str(path)], options, reading.ReadStats())
    assert isinstance(found, Rejected)
    assert said in found.message


def test_a_character_may_stand_across_the_end_of_the_block_that_is_looked_at(path: Path) -> None:
    for n in range(4):
        path.write_text("a" * (first_look.FIRST_BYTES - n) + "🐕")
        (item,) = first_look.first_look([str(path)], reading.ReadOptions())
        assert isinstance(item, Sample)
    # A file that ends there is cut off, though.
    path.write_bytes(b"abc\xf0\x9f\x90")
    with pytest.raises(UsageError, match="byte 0xf0 at offset 3"):
        first_look.first_look([str(path)], reading.ReadOptions())
