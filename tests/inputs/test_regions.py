"""Losses of regions: by spans and by strings, as rows and as tables for statistics packages."""

from __future__ import annotations

import csv
import io
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.program import ROOT, document, in_process, strictly
from seqloss_cli import Sample, SequenceScore
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.records import Region, Regions, Rejected, TokenSequence
from seqloss_cli.inputs.side_files import RegionFile
from seqloss_cli.metrics.words import region_losses

SENTENCES, REGIONS = ROOT / "samples" / "sentences.jsonl", ROOT / "samples" / "regions.jsonl"
DEMO = ("--model", "demo")


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def scored(
    text: str, widths: list[int], losses: list[float | None], *regions: tuple[int, int]
) -> SequenceScore:
    """A text whose tokens are of some bytes and losses, after BOS; spans of its regions."""
    asked = Regions(tuple(Region(str(n), *span) for n, span in enumerate(regions)))
    n = len(widths) + 1
    offsets = np.array([0, *np.cumsum([0, *widths]).tolist()], dtype=np.int64)
    everything = np.ones(n, dtype=bool)
    sequence = TokenSequence(
        Sample("x", "test", text=text, regions=asked),
        text,
        np.zeros(n, dtype=np.int64),
        offsets,
        everything,
        everything,
        "prepended",
        "none",
        {},
    )
    known = [False, *(loss is not None for loss in losses)]
    return SequenceScore(
        sequence,
        np.array([0.0, *(loss or 0.0 for loss in losses)]),
        np.array(known),
        np.zeros(n, dtype=np.int64),
    )


def losses_of(*arguments: Any) -> list[float | None]:
    found = region_losses(scored(*arguments))
    assert found is not None
    return found.losses


# -- which tokens are whose -------------------------------------------------------------------


def test_a_token_belongs_where_its_first_character_that_is_no_white_space_lies() -> None:
    """`the` ` cat` `  ` `sat` `.`: white space goes to what comes next."""
    case = ("the cat  sat.", [3, 4, 2, 3, 1], [1.0, 2.0, 4.0, 8.0, 16.0])
    assert losses_of(*case, (0, 3), (4, 7), (9, 13)) == [1.0, 2.0, 28.0]
    assert losses_of(*case, (0, 4), (4, 9), (9, 12), (12, 13)) == [1.0, 2.0, 12.0, 16.0]
    assert losses_of(*case, (0, 13), (4, 7)) == [31.0, 2.0]  # regions may hold others
    assert losses_of(*case, (3, 4), (0, 0)) == [None, None]  # nothing begins there


def test_white_space_at_the_end_goes_to_the_last_word() -> None:
    case = ("a b\n", [1, 2, 1], [1.0, 2.0, 4.0])
    assert losses_of(*case, (0, 1), (2, 3)) == [1.0, 6.0]
    assert losses_of("  ", [1, 1], [1.0, 2.0], (0, 1), (0, 2)) == [1.0, 3.0]


def test_a_token_that_reaches_into_a_second_region_counts_on_the_first_and_is_flagged() -> None:
    found = region_losses(scored("cats", [1, 2, 1], [1.0, 2.0, 4.0], (0, 2), (2, 4)))
    assert found is not None
    assert found.losses == [3.0, 4.0]
    assert found.shared == [False, True]
    assert found.flags == {"shared_region_token": 1}
    apart = region_losses(scored("cats", [2, 2], [1.0, 2.0], (0, 2), (2, 4)))
    assert apart is not None
    assert not apart.flags


def test_a_region_with_a_token_without_loss_has_none() -> None:
    case = ("a b c", [1, 2, 2], [None, math.inf, 1.0])
    assert losses_of(*case, (0, 1), (2, 3), (4, 5), (0, 5)) == [None, None, 1.0, None]


def test_spans_are_code_points() -> None:
    assert losses_of("🐕 日x", [4, 4, 1], [1.0, 2.0, 4.0], (0, 1), (2, 3), (3, 4)) == [
        1.0,
        2.0,
        4.0,
    ]


@given(st.text(min_size=1, max_size=30), st.lists(st.integers(0, 30), max_size=4), st.data())
def test_regions_that_cover_a_text_add_up_to_its_total(
    text: str, cuts: list[int], data: st.DataObject
) -> None:
    text = text.encode("utf-8", "replace").decode()
    n_bytes = len(text.encode())
    edges = sorted({0, n_bytes, *data.draw(st.lists(st.integers(0, n_bytes), max_size=6))})
    widths = np.diff(edges).tolist()
    losses = [float(2**n) for n in range(len(widths))]
    places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    found = losses_of(text, widths, losses, *pairwise(places))
    assert math.fsum(loss for loss in found if loss is not None) == math.fsum(losses)


# -- files of regions -------------------------------------------------------------------------


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def attached(path: Path, *texts: str) -> list[Any]:
    items = [Sample(str(n), "in.jsonl", n, text=text) for n, text in enumerate(texts, start=1)]
    return list(RegionFile(str(path), 1 << 20).attach(items))


def spans_of(sample: Sample) -> list[tuple[str, int, int]]:
    assert sample.regions is not None
    return [(r.name, r.start, r.end) for r in sample.regions.regions]


@pytest.mark.parametrize(
    ("text", "strings", "expected"),
    [
        ("As it  shot  her.", ["As it", " shot", " her."], ["As it", "shot", "her."]),
        ("a b\tc", ["a ", " b ", " c "], ["a ", "b", "c"]),
        ("a b", [" a", " ", "b"], ["a", " ", "b"]),
        ("un do", ["un ", "do"], ["un ", "do"]),
        ("undo", ["un ", "do"], None),
        ("undo", ["un", " do"], None),
    ],
)
def test_blanks_at_the_ends_of_strings_match_blanks_of_the_text(
    tmp_path: Path, text: str, strings: list[str], expected: list[str] | None
) -> None:
    (tmp_path / "r.jsonl").write_text(json.dumps({"regions": strings}))
    file = RegionFile(str(tmp_path / "r.jsonl"), 1 << 20)
    (item,) = file.attach([Sample("a", "test", text=text)])
    found = None
    if isinstance(item, Sample):
        assert item.regions is not None
        found = [text[r.start : r.end] for r in item.regions.regions]
    assert found == expected


def test_strings_are_found_in_order_with_white_space_between(tmp_path: Path) -> None:
    rows = [
        {"regions": ["The cat", "", "sat", "."]},
        {"regions": [{"region_number": 1, "content": "The cat"}, {"content": " sat."}]},
        {"regions": [{"name": "all", "content": "The  cat\nsat."}]},
    ]
    path = write(tmp_path / "r.jsonl", *rows)
    found = attached(path, "The cat sat.", "The cat sat.", " The  cat\nsat. \n")
    assert [spans_of(sample) for sample in found] == [
        [("1", 0, 7), ("2", 7, 7), ("3", 8, 11), ("4", 11, 12)],
        [("1", 0, 7), ("2", 7, 12)],
        [("all", 1, 14)],
    ]


def test_rows_are_matched_by_id_or_by_order(tmp_path: Path) -> None:
    rows = [{"id": n, "item": n, "regions": [text]} for n, text in ((2, "b"), (1, "a"))]
    found = attached(write(tmp_path / "ids.jsonl", *rows), "a", "b")
    assert [sample.regions.item for sample in found] == [1, 2]
    path = write(tmp_path / "order.jsonl", {"regions": ["a"]}, {"regions": ["b"]})
    assert all(isinstance(item, Sample) for item in attached(path, "a", "b"))
    assert [item.reason for item in attached(path, "b", "a")] == ["regions_mismatch"] * 2


def test_a_bad_row_before_rows_with_ids_belongs_to_no_input(tmp_path: Path) -> None:
    file = RegionFile(
        str(write(tmp_path / "regions.jsonl", {"regions": []}, {"id": "b", "regions": ["b"]})),
        1 << 20,
        is_part=True,
    )
    samples = [Sample("a", "a", text="a"), Sample("b", "b", text="b")]
    first, second = file.attach(samples)
    assert isinstance(first, Rejected)
    assert first.reason == "no_regions"
    assert spans_of(second) == [("1", 0, 1)]  # type: ignore[arg-type]
    assert "regions.jsonl:1" in file.unmatched[0]


def test_shards_take_no_ids_that_come_twice(tmp_path: Path) -> None:
    rows = [{"id": each, "regions": ["a"]} for each in "abca"]
    path = str(write(tmp_path / "regions.jsonl", *rows))
    with pytest.raises(UsageError, match="has the id 'a' twice"):
        RegionFile(path, 1 << 20, is_part=True)
    assert not RegionFile(path, 1 << 20).unmatched


@pytest.mark.parametrize(
    ("regions", "reason", "message"),
    [
        (["The", "dog"], "regions_mismatch", "'dog', the text goes on with 'cat' at character 4"),
        (["The"], "regions_mismatch", "end before 'cat' at character 4"),
        (["The cat sat"], "regions_mismatch", "region '1' is 'The cat sat'"),
        ([{"start": 0, "end": 8}], "regions_mismatch", "characters 0 to 8 of a text of 7"),
        ([{"start": 3, "end": 2}], "regions_mismatch", "characters 3 to 2"),
        ([{"start": -1, "end": 2}], "regions_mismatch", "characters -1 to 2"),
        ([{"start": 0.0, "end": 2}], "wrong_type", "no whole numbers"),
        ([{"start": 0}], "wrong_type", "no whole numbers"),
        ([{"content": 5}], "wrong_type", "region 1 is neither a string"),
        ([["The"]], "wrong_type", "region 1 is neither a string"),
        ([{"content": "The cat", "name": []}], "wrong_type", "field 'name'"),
        ([], "missing_field", "no field 'regions'"),
        ("The cat", "missing_field", "no field 'regions'"),
        (None, "missing_field", "no field 'regions'"),
    ],
)
def test_regions_that_do_not_fit_are_rejected_with_their_place(
    tmp_path: Path, regions: Any, reason: str, message: str
) -> None:
    path = write(tmp_path / "r.jsonl", {"regions": ["a"]}, {"regions": regions})
    (_, rejected) = attached(path, "a", "The cat")
    assert isinstance(rejected, Rejected)
    assert (rejected.source, rejected.line, rejected.reason) == (str(path), 2, reason)
    assert message in rejected.message


def test_rows_with_one_id_are_taken_one_after_another(tmp_path: Path) -> None:
    rows = [{"id": 2, "regions": [text]} for text in ("b", "c")] + [{"id": 1, "regions": ["a"]}]
    file = RegionFile(str(write(tmp_path / "r.jsonl", *rows)), 1 << 20)
    items = [Sample(str(n), "in", n, text=text) for n, text in ((1, "a"), (2, "b"))]
    assert all(isinstance(item, Sample) for item in file.attach(items))
    assert file.count_unused() == 1


def test_inputs_without_text_or_without_regions_are_rejected(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", {"id": "ids", "regions": ["a"]})
    found = [*attached(path, "a")]
    assert [item.reason for item in found] == ["no_regions"]
    items = [Sample("ids", "in", 1, input_ids=np.array([1, 2]))]
    (rejected,) = RegionFile(str(path), 1 << 20).attach(items)
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "regions_mismatch"


# -- the command line -------------------------------------------------------------------------


def test_regions_in_json_sum_to_the_total() -> None:
    found = document(in_process("score", SENTENCES, "--regions", REGIONS, *DEMO, "--json"))
    assert found["run"]["reading"]["regions"] == str(REGIONS)
    assert len(found["run"]["reading"]["regions_sha256"]) == 64
    for row in found["sequences"]:
        assert "shared_region_token" not in row["flags"]
        sums = [region["loss"] for region in row["regions"]]
        assert math.fsum(sums) == pytest.approx(row["total_loss"], rel=1e-12)
        assert sum(region["n_tokens"] for region in row["regions"]) == row["n_scored"]
        for region in row["regions"]:
            assert list(region) == ["name", "start", "end", "text", "n_tokens", "loss", "mean_loss"]
            assert region["text"] == row["text"][region["start"] : region["end"]]
            assert region["mean_loss"] == region["loss"] / region["n_tokens"]
    assert [r["name"] for r in found["sequences"][2]["regions"]] == ["subject", "verb", "object"]
    plain = document(in_process("score", SENTENCES, *DEMO, "--json"))
    assert "regions" not in plain["sequences"][0]
    assert "regions" not in plain["run"]["reading"]


def table(text: str, delimiter: str = "\t") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text), delimiter=delimiter))


def test_a_tsv_of_regions_is_what_the_json_says() -> None:
    words = ("score", SENTENCES, "--regions", REGIONS, *DEMO)
    rows = table(in_process(*words, "--format", "tsv", "--level", "region").stdout)
    expected = document(in_process(*words, "--json"))["sequences"]
    regions = [(row, region) for row in expected for region in row["regions"]]
    assert len(rows) == len(regions) == 14
    for line, (row, region) in zip(rows, regions, strict=True):
        assert line["id"] == row["id"]
        assert float(line["loss"]) == region["loss"]
        assert float(line["bits"]) == region["loss"] / math.log(2)
        for name in ("name", "start", "end", "text", "n_tokens"):
            assert line[name] == str(region[name])
        assert (line["shared"], line["reason"]) == ("0", "")
    assert [r["condition"] for r in rows[::4]] == ["likely", "unlikely", "agrees", "differs"]
    assert [r["region"] for r in rows[:4]] == ["1", "2", "3", "4"]


def test_texts_in_a_tsv_are_quoted_and_no_formulas(tmp_path: Path) -> None:
    """As `read.delim` of R and pandas read it: doubled quotes, line breaks within quotes."""
    texts = ['=1+1 "b"\tc\nd', "plain"]
    inputs = write(tmp_path / "in.jsonl", *({"text": text} for text in texts))
    regions = write(tmp_path / "r.jsonl", {"regions": ["=1+1", '"b"\tc\nd']}, {"regions": ["no"]})
    out = tmp_path / "out.tsv"
    done = in_process(
        *("score", inputs, "--regions", regions, *DEMO, "--level", "region", "-o", out)
    )
    assert done.exit_code == 3
    assert f"rejected {regions}:2: " in done.stderr
    rows = table(out.read_text())
    assert [row["text"] for row in rows] == ["'=1+1", '"b"\tc\nd', ""]
    assert [row["reason"] for row in rows] == ["", "", "regions_mismatch"]
    assert rows[0]["item"] == rows[2]["loss"] == ""
    assert float(rows[0]["loss"]) > 0


def test_pandas_reads_the_tsv(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    out = tmp_path / "out.tsv"
    words = ("score", SENTENCES, "--regions", REGIONS, *DEMO, "--level", "region", "-o", out)
    assert in_process(*words).exit_code == 0
    frame = pandas.read_csv(out, sep="\t")
    assert frame["loss"].dtype == float
    assert frame.groupby("condition")["loss"].sum().min() > 0


def test_regions_of_whole_words_have_corrected_losses(tmp_path: Path) -> None:
    words = ("score", SENTENCES, "--limit", "1", *DEMO, "--words", "--word-correction")
    (row,) = document(in_process(*words, "--regions", REGIONS, "--json"))["sequences"]
    assert math.fsum(r["corrected_loss"] for r in row["regions"]) == pytest.approx(
        math.fsum(row["corrected_word_losses"])
    )
    cut = [{"start": 0, "end": 8}, {"start": 8, "end": 17}, {"start": 18, "end": 47}]
    path = write(tmp_path / "r.jsonl", {"regions": cut})
    (row,) = document(in_process(*words, "--regions", path, "--json"))["sequences"]
    corrected = [region["corrected_loss"] for region in row["regions"]]
    assert corrected[:2] == [None, None]
    assert corrected[2] == pytest.approx(math.fsum(row["corrected_word_losses"][2:]))
    lines = in_process(*words, "--regions", path, "--format", "tsv", "--level", "region").stdout
    assert [r["corrected_loss"] for r in table(lines)][:2] == ["", ""]
    assert float(table(lines)[2]["corrected_loss"]) == corrected[2]


def test_words_as_lines() -> None:
    words = ("score", SENTENCES, "samples/texts.jsonl", *DEMO, "--words", "--word-correction")
    rows = table(in_process(*words, "--format", "csv", "--level", "word").stdout, ",")
    found = document(in_process(*words, "--json"))["sequences"]
    expected = [
        (row["id"], word, loss, corrected)
        for row in found
        if row["words"] is not None
        for word, loss, corrected in zip(
            row["words"], row["word_losses"], row["corrected_word_losses"], strict=True
        )
    ]
    assert rows[-1]["id"] == "ids"
    assert rows[-1]["word"] == rows[-1]["loss"] == ""
    assert [(r["id"], r["word"]) for r in rows[:-1]] == [case[:2] for case in expected]
    for row, (_, _, loss, corrected) in zip(rows, expected, strict=False):
        assert float(row["loss"]) == loss
        assert row["corrected_loss"] == ("" if corrected is None else repr(corrected))
    plain = in_process(*words[:-1], "--format", "csv", "--level", "word").stdout
    assert "corrected_loss" not in plain.splitlines()[0]


def test_regions_of_pairs_are_of_prompt_and_response(tmp_path: Path) -> None:
    rows = [{"id": "sorted", "regions": ["The list is", "sorted in place."]}]
    rows += [{"id": "chat", "regions": ["The list is", "sorted in place."]}]
    path = write(tmp_path / "r.jsonl", *rows)
    words = ("cond", "samples/pairs.jsonl", "--limit", "1", "--regions", path, *DEMO, "--json")
    (row,) = document(in_process(*words))["sequences"]
    assert row["regions"][1]["loss"] == pytest.approx(row["loss"])
    assert row["regions"][0]["loss"] == pytest.approx(-row["log_prob_x"])
    done = in_process(
        *("cond", "samples/chats.jsonl", "--limit", "1", "--chat-template", "samples/chat.jinja"),
        *("--regions", write(tmp_path / "c.jsonl", {"regions": ["a"]}), *DEMO, "--json"),
    )
    assert done.exit_code == 3
    assert strictly(done.stdout)["rejected"][0]["reason"] == "regions_mismatch"


def test_what_belongs_to_no_input_is_said(tmp_path: Path) -> None:
    rows = [{"id": "raises-1", "regions": [{"start": 0, "end": 6}]}, {"id": "x", "regions": ["a"]}]
    path = write(tmp_path / "r.jsonl", *rows)
    done = in_process("score", SENTENCES, "--regions", path, *DEMO, "--jsonl")
    assert done.exit_code == 3
    assert f"warning: 1 rows of {path} belong to no input" in done.stderr
    assert "has no regions for it (no_regions)" in done.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--regions", "nowhere.jsonl"), "--regions nowhere.jsonl: no such file"),
        (("--regions", REGIONS, "--format", "csv"), "--level region go together"),
        (("--format", "csv", "--level", "region"), "--level region go together"),
        (("--format", "csv", "--level", "word"), "give --words, too"),
        (("--format", "csv", "--words"), "--level word"),
        (("--regions", REGIONS, "--format", "openai"), "no place for --regions"),
        (
            ("--regions", REGIONS, "--format", "csv", "--level", "region", "--words"),
            "--level region with --word-correction",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(more: tuple[Any, ...], message: str) -> None:
    done = in_process("score", SENTENCES, *DEMO, *more)
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_run_is_resumed_with_the_same_regions_only(tmp_path: Path) -> None:
    out, path = tmp_path / "out.jsonl", tmp_path / "r.jsonl"
    path.write_bytes(REGIONS.read_bytes())
    words = ("score", SENTENCES, "--regions", path, *DEMO, "-o", out, "--resume")
    assert in_process(*words).exit_code == 0
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.unlink()
    Path(f"{out}.partial").write_bytes(b"".join(lines[:3]))
    assert in_process(*words).exit_code == 0
    assert [strictly(line) for line in out.read_bytes().splitlines()[1:]] == [
        strictly(line) for line in lines[1:]
    ]
    path.write_bytes(REGIONS.read_bytes() + b"\n")
    done = in_process(*words)
    assert done.exit_code == 2
    assert "--regions FILE with the same content" in done.stderr
    assert in_process("summarize", out).exit_code == 0


def test_parquet_holds_regions(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "out.parquet"
    words = ("score", SENTENCES, "--regions", REGIONS, *DEMO, "--words", "--word-correction")
    assert in_process(*words, "-o", out).exit_code == 0
    columns = parquet.read_table(out).to_pydict()
    found = document(in_process(*words, "--json"))["sequences"]
    assert [json.loads(cell) for cell in columns["regions"]] == [row["regions"] for row in found]
    assert columns["corrected_word_losses"] == [row["corrected_word_losses"] for row in found]
    assert in_process("summarize", out).exit_code == 0


def test_the_table_of_regions() -> None:
    shown = in_process("score", SENTENCES, "--regions", REGIONS, *DEMO).stdout
    assert "regions, nats" in shown
    header = next(line for line in shown.splitlines() if line.split()[:1] == ["region"])
    assert header.split() == ["region", "text", "tokens", "loss", "mean"]
