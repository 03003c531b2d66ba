"""Rows of Parquet, Arrow, CSV and TSV are those of JSONL with the same objects."""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.records import Item, Rejected, Sample
from seqloss_cli.inputs import tables
from seqloss_cli.inputs.choices import ChoiceFields
from seqloss_cli.inputs.first_look import first_look
from seqloss_cli.inputs.options import Kind, ReadOptions
from seqloss_cli.inputs.reading import ReadStats, read_inputs
from seqloss_cli.inputs.rows import PairFields

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
ROW = st.fixed_dictionaries({"id": WORDS | st.none(), "text": WORDS | st.none(), "n": st.just(1)})
ROWS = st.lists(ROW, min_size=1, max_size=12)


def items(path: Path, **options: Any) -> list[Item]:
    return list(read_inputs([str(path)], ReadOptions(**options), ReadStats()))


def plain(found: list[Item]) -> list[Any]:
    """What items hold, but for the names of files, places in them, and how a null is said."""
    said = []
    for item in found:
        name, number = item.id.replace(item.source, "FILE"), item.line
        if isinstance(item, Sample):
            texts = item.text, item.pair, item.chat, item.choices, item.meta, item.flags
            said.append((name, number, *texts))
        else:
            said.append((name, number, item.reason))
    return said


def table_of(rows: list[dict[str, Any]]) -> Any:
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def write_parquet(path: Path, rows: list[dict[str, Any]], **settings: Any) -> Path:
    pa.parquet.write_table(table_of(rows), path, **settings)
    return path


def write_arrow(path: Path, rows: list[dict[str, Any]]) -> Path:
    pa.feather.write_feather(table_of(rows), path)
    return path


def write_stream(path: Path, rows: list[dict[str, Any]]) -> Path:
    table = table_of(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return path


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*rows[0]], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode())
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


COLUMNS: dict[str, Callable[..., Path]] = {
    "parquet": write_parquet, "arrow": write_stream, "feather": write_arrow,
}  # fmt: skip


@given(ROWS)
def test_columns_give_the_samples_of_jsonl(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    own = plain(items(write_jsonl(folder / "rows.jsonl", rows), keep_meta=True))
    for suffix, write in COLUMNS.items():
        assert plain(items(write(folder / f"rows.{suffix}", rows), keep_meta=True)) == own, suffix


@given(st.lists(st.fixed_dictionaries({"id": WORDS, "text": WORDS}), min_size=1, max_size=9))
def test_delimited_rows_give_the_samples_of_jsonl(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    own = plain(items(write_jsonl(folder / "rows.jsonl", rows)))
    for suffix, delimiter in (("csv", ","), ("tsv", "\t")):
        path = write_csv(folder / f"rows.{suffix}", rows, delimiter)
        path.write_bytes(b"\xef\xbb\xbf" * (len(rows) % 2) + path.read_bytes())
        assert plain(items(path)) == own


CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
CALLS = {"messages": [
    {"role": "user", "content": "Hi", "name": "a"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
]}  # fmt: skip


@pytest.mark.parametrize("suffix", COLUMNS)
def test_nested_rows_of_columns(tmp_path: Path, suffix: str) -> None:
    pairs, rows = PairFields(), [CHAT, CALLS, {"prompt": "Q", "response": "A"}]
    path = COLUMNS[suffix](tmp_path / f"rows.{suffix}", rows)
    lines = write_jsonl(tmp_path / "rows.jsonl", rows)
    # A null is no field: of the second chat only what calls a tool has an empty content.
    assert plain(items(path, pairs=pairs)) == plain(items(lines, pairs=pairs))


def test_ids_and_choices_of_columns(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}]
    (found,) = items(write_parquet(tmp_path / "ids.parquet", rows))
    assert isinstance(found, Sample)
    assert (found.input_ids.tolist(), found.labels.tolist()) == ([1, 2, 3], [-100, 2, 3])
    (found,) = items(
        write_csv(
            tmp_path / "pairs.csv", [{"prompt": "", "good": "a b", "bad": "b", "answer": ""}]
        ),
        pairs=ChoiceFields(choices=("good", "bad")),
    )
    assert isinstance(found, Sample)
    assert (found.choices.prompt, found.choices.responses) == ("", ("a b", "b"))
    assert found.choices.answers is None


def test_values_that_json_does_not_have(tmp_path: Path) -> None:
    row = {
        "text": b"as bytes", "day": datetime.date(2026, 1, 2), "price": decimal.Decimal("1.10"),
        "raw": b"\xff\0", "when": datetime.datetime(2026, 1, 2, 3),
    }  # fmt: skip
    (found,) = items(write_parquet(tmp_path / "odd.parquet", [row]), keep_meta=True)
    assert isinstance(found, Sample)
    assert found.text == "as bytes"
    assert found.meta.pop("price").written == "1.10"
    assert found.meta == {
        "day": "2026-01-02", "raw": "/wA=", "when": "2026-01-02T03:00:00",
    }  # fmt: skip


# -- a bad row costs itself only ---------------------------------------------------------------


def reasons(found: list[Item]) -> list[Any]:
    return [(item.line, item.reason) if isinstance(item, Rejected) else item.line for item in found]


def test_bad_rows_of_columns(tmp_path: Path) -> None:
    texts = [b"good", b"\xff bad", b"good", b"x" * 99]
    wrong = pa.array(texts, pa.binary()).view(pa.string())
    pa.parquet.write_table(pa.table({"text": wrong}), tmp_path / "rows.parquet")
    found = items(tmp_path / "rows.parquet", max_bytes=50)
    assert reasons(found) == [1, (2, "invalid_utf8"), 3, (4, "too_long")]


def test_bad_rows_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'id,text\n1,good\n2,good,more\n\n4,"a" b\n5,\xff\n6,\n"7","last"')
    stats = ReadStats()
    found = list(read_inputs([str(path)], ReadOptions(), stats))
    assert reasons(found) == [
        1, (2, "bad_row"), (4, "bad_row"), (5, "invalid_utf8"), (6, "empty"), 7,
    ]  # fmt: skip
    assert stats.n_empty_lines == 1
    assert "line 5" in found[2].message
    assert "2 cells" not in found[1].message
    assert "3 cells under a header of 2" in found[1].message
    path.write_bytes(b'text\n"never ends\n' + b"a\n" * 99)
    assert "lines 2 to 101" in items(path)[0].message


@pytest.mark.parametrize("piece", [7, 1 << 20])
def test_a_cell_that_is_too_long_ends_where_it_ends(
    piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_PIECE", piece)
    path, most = tmp_path / "rows.csv", 100
    long = 'a line, "quoted"\r\n' * 999 + "one line" * 999
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerows([["id", "text"], [1, "before"], [2, long], [3, "after"], [4, "b" * most]])
    found = items(path, max_bytes=most)
    assert reasons(found) == [1, (2, "too_long"), 3, (4, "too_long")]
    # An unended cell is told as what it is.
    path.write_text('text\n"' + "a line\n" * 9999)
    assert [(each.line, each.reason) for each in items(path, max_bytes=most)] == [(1, "bad_row")]
    path.write_text("text," + "b" * 9999 + "\na,b\n")
    assert "header is longer" in items(path, max_bytes=most)[0].message


def test_headers_of_csv(tmp_path: Path) -> None:
    (tmp_path / "blank.csv").write_text("\n\ntext,n\na,1\n")
    assert [(each.line, each.text) for each in items(tmp_path / "blank.csv")] == [(1, "a")]
    (tmp_path / "semicolons.csv").write_text("id;text\n1;a\n")
    assert "and not ';'" in refused(tmp_path / "semicolons.csv")
    (tmp_path / "commas.tsv").write_text("id,text\n1,a\n")
    assert "and not ','" in refused(tmp_path / "commas.tsv")
    only = items(tmp_path / "semicolons.csv", text_field="id;text")
    assert [each.text for each in only] == ["1;a"]


def test_a_table_that_breaks_off_is_rejected_after_its_rows(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", [{"text": f"t {n}"} for n in range(400)],
                         row_group_size=200, compression="none", use_dictionary=False)  # fmt: skip
    raw = bytearray(path.read_bytes())
    start = pa.parquet.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    raw[start : start + 40] = b"\xff" * 40
    path.write_bytes(raw)
    *good, last = items(path)
    assert len(good) == 200
    assert (last.line, last.reason) == (None, "unreadable")
    assert "(after line 200)" in last.message


# -- refused before anything is loaded ---------------------------------------------------------


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        first_look([str(path)], ReadOptions(**options))
    return str(caught.value)


def test_tables_that_are_none_are_refused(tmp_path: Path) -> None:
    rows = [{"body": "t"}]
    assert "has no field 'text' (its fields: 'body')" in refused(
        write_csv(tmp_path / "a.csv", rows)
    )
    assert "--text-field body" in refused(write_parquet(tmp_path / "a.parquet", rows))
    assert "seqloss cond" in refused(
        write_parquet(tmp_path / "a.parquet", [{"prompt": "a", "response": "b"}])
    )
    (tmp_path / "b.parquet").write_bytes(b"text")
    assert "cannot be read as Parquet" in items(tmp_path / "b.parquet")[0].message
    (tmp_path / "c.csv").write_text("text,text\na,b\n")
    assert "names 'text' twice" in refused(tmp_path / "c.csv")
    (tmp_path / "d.csv").write_text("text\n")
    assert "holds nothing" in refused(tmp_path / "d.csv")
    assert "FILE.parquet" in refused(tmp_path / "a.parquet", jsonl=True)
    assert "FILE.parquet" in refused(tmp_path / "a.parquet", lines=True)


def test_results_in_parquet_are_no_texts(tmp_path: Path) -> None:
    table = pa.table({"text": ["a"]}).replace_schema_metadata({"seqloss.run": "{}"})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    assert "seqloss summarize" in refused(tmp_path / "a.parquet")


def test_the_kind_of_a_file_is_that_of_its_name() -> None:
    kinds = {
        "a.txt": Kind.text, "a.parquet": Kind.table, "a.csv.gz": Kind.table, "a.tsv": Kind.table,
        "a.parquet.gz": Kind.text, "a.jsonl.zst": Kind.lines, "a.feather": Kind.table,
        "a.json": Kind.text, "-": Kind.text,
    }  # fmt: skip
    assert {name: ReadOptions().kind_of(name) for name in kinds} == kinds
    assert ReadOptions(lines=True).kind_of("a.csv") is Kind.lines
    for name, kind in {
        "A.CSV": Kind.table,
        "A.Parquet": Kind.table,
        "A.JSONL.GZ": Kind.lines,
    }.items():
        assert ReadOptions().kind_of(name) is kind


def test_extensions_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "A.CSV").write_text("text\na\nb\n")
    (tmp_path / "A.JSONL.GZ").write_bytes(gzip.compress(b'{"text": "a"}\n{"text": "b"}\n'))
    write_parquet(tmp_path / "A.PARQUET", [{"text": "a"}, {"text": "b"}])
    for path in tmp_path.iterdir():
        assert [each.text for each in items(path)] == ["a", "b"]  # type: ignore[union-attr]
    assert ReadOptions(pairs=PairFields()).kind_of("-") is Kind.lines
