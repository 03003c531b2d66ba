"""`seqloss select`: the rows that it keeps are those that a list comprehension would."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.program import document
from helpers.results import row, write
from seqloss_cli.analysis.select import Chooser, Sampling
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.results.schema.scores import ResultRow

Run = Callable[..., Any]
Rows = list[dict[str, Any]]


def made(n: int = 60) -> Rows:
    draw = random.Random(n)
    rows = []
    for k in range(n):
        losses = [draw.uniform(0, 6) for _ in range(1 + k % 9)]
        meta = {"lang": ["en", "de", None][k % 3], "k": k, "exact": 1.10}
        if k % 3 == 2:
            del meta["lang"]
        rate = None if k % 5 == 4 else losses[0]
        rows.append(row(f"r{k}", [None, *losses], f"Text {k}", meta, bits_per_byte=rate))
    return rows


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write(tmp_path / "results.jsonl", made())


def kept(done: Any) -> Rows:
    assert done.exit_code == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [lines[0]["type"], lines[-1]["type"]] == ["run", "totals"]
    return lines[1:-1]


def ids(rows: Rows) -> list[str]:
    return [each["id"] for each in rows]


# -- conditions ------------------------------------------------------------------------------------


def test_rows_that_hold_are_kept_in_order_as_they_were_written(run_cli: Run, results: Path) -> None:
    text = results.read_text().replace('"exact": 1.1', '"exact":  1.10')
    results.write_text(text)
    where = "bits_per_byte < 3 and n_tokens > 3 or meta.lang == 'de'"
    done = run_cli("select", str(results), "--where", where)
    wanted = [
        each["id"] for each in made()
        if ((each["bits_per_byte"] or 9) < 3 and each["n_tokens"] > 3)
        or each["meta"].get("lang") == "de"
    ]  # fmt: skip
    assert ids(kept(done)) == wanted
    written = done.stdout.splitlines()[1:-1]
    assert set(written) <= set(text.splitlines())
    assert '"exact":  1.10' in written[0]
    assert f"kept {len(wanted)} of 60 rows" in done.stderr


def test_nulls_are_counted(run_cli: Run, results: Path) -> None:
    where = "meta.lang == 'en' and bits_per_byte > 0"
    done = run_cli("select", str(results), "--where", where)
    n_lang = sum("lang" not in each["meta"] for each in made())
    n_rate = sum(
        each["meta"].get("lang") == "en" and each["bits_per_byte"] is None for each in made()
    )
    assert n_rate > 0
    said = f"in {n_lang + n_rate} rows a comparison was with null, and false: null is meta.lang"
    assert said in " ".join(done.stderr.split())


def test_what_is_null_without_a_column_and_flags_of_no_row(run_cli: Run, results: Path) -> None:
    done = run_cli("select", str(results), "--where", "n_tokens / 0 > 1 or flags.typo > 0")
    assert "null is what is divided by 0" in done.stderr
    assert "no row has flags.typo, which is 0 then" in done.stderr


def test_groups_of_objects_are_named_as_json(run_cli: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", [row("a", [None, 1.0], "A", {"nest": {"b": 1}})])
    done = run_cli("select", str(path), "--sample", "9", "--by", "meta.nest")
    assert done.stderr.rstrip().endswith('--sample 9: {"b":1} 1')


def test_what_is_kept_is_a_results_file(run_cli: Run, results: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept.jsonl"
    done = run_cli("select", str(results), "--where", "meta.k >= 50", "-o", str(out))
    assert done.exit_code == 0, done.stderr
    assert done.stdout == ""
    found = document(run_cli("summarize", str(out), "--json"))
    assert found["totals"]["n_sequences"] == 10
    total = sum(each["total_loss"] for each in made()[50:])
    assert found["totals"]["total_loss"] == pytest.approx(total)
    assert found["files"][0]["complete"]
    assert found["run"]["selection"] == {"where": "meta.k >= 50"}
    again = run_cli("select", str(out), "--where", "meta.k < 55")
    assert ids(kept(again)) == [f"r{k}" for k in range(50, 55)]


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_other_formats_are_read(run_cli: Run, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"r.{suffix}"
    words = ("score", "samples/texts.jsonl", "--keep-meta", "-o", str(path))
    assert run_cli(*words).exit_code == 0
    done = run_cli("select", str(path), "--where", "meta.kind == 'python'")
    (found,) = kept(done)
    assert (found["id"], found["type"]) == ("docs", "sequence")


def test_several_files_and_stdin(run_cli: Run, results: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", made(70)[60:])
    done = run_cli("select", str(results), str(other), "--where", "meta.k > 57")
    assert ids(kept(done)) == [f"r{k}" for k in range(58, 70)]
    done = run_cli("select", "-", "--where", "meta.k > 57", stdin=results.read_bytes())
    assert ids(kept(done)) == ["r58", "r59"]
    different = write(tmp_path / "different.jsonl", made(2), eos=True)
    done = run_cli("select", str(results), str(different), "--where", "meta.k > 57")
    assert (done.exit_code, "--allow-different" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--where", "losses < 3"], "results.jsonl has no column 'losses'"),
        (["--where", "mean_los < 3"], "did you mean mean_loss?"),
        (["--where", "lang == 'en'"], "did you mean meta.lang?"),
        (["--where", "pmi > 0"], "has no column 'pmi'"),
        (["--where", "token_losses == 1"], "has no column 'token_losses'"),
        (["--where", "meta == 1"], "has no column 'meta'"),
        (["--where", "meta.colour == 1"], "no row has meta.colour"),
        (["--where", "meta.colour is null"], "no row has meta.colour"),
        (["--where", "bucket == 1"], "has no column 'bucket'"),
        (["--where", "id < 3"], "results.jsonl:2: 'r0' cannot be compared with 3"),
        (["--where", "f(id)"], "may not hold 'f(id)'"),
        (["--sample", "3", "--by", "meta.colour"], "--by: no row has meta.colour"),
        (["--sample", "3", "--by", "colour"], "--by: "),
        ([], "say what is kept"),
        (["--where", "n_tokens > 1", "--by", "id"], "is for a sample"),
        (["--buckets", "3"], "needs --bucket-by COLUMN and --reference"),
        (["--where", "n_tokens > 1", "-o", "kept.csv"], "JSON lines, .jsonl"),
        (["--where", "n_tokens > 1", "--inputs", "nothing.jsonl"], "--inputs"),
    ],
)
def test_what_is_refused(
    run_cli: Run, results: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    out = ["-o", str(tmp_path / "kept.jsonl")] if "-o" not in words else []
    done = run_cli("select", str(results), *words, *out)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert [*tmp_path.iterdir()] == [results]
    # Rows without the field go out before the last of them is read.
    if out and "meta.colour is null" not in words:
        assert run_cli("select", str(results), *words).stdout == ""


def test_a_column_that_few_rows_have_is_known(run_cli: Run, tmp_path: Path) -> None:
    rows = [row("a", [None, 1.0]), row("b", [None, 2.0], unspelled_bytes=3)]
    path = write(tmp_path / "r.jsonl", rows)
    found = kept(run_cli("select", str(path), "--where", "unspelled_bytes > 0"))
    assert ids(found) == ["b"]
    rows[1]["flags"] = {"unspelled_text": 3}
    write(path, rows)
    found = kept(run_cli("select", str(path), "--where", "flags.unspelled_text == 0"))
    assert ids(found) == ["a"]


def test_bad_rows_are_named_and_left_out(run_cli: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", made(4), complete=False)
    path.write_text(path.read_text() + '{"type":"sequence","id":"x"}\n')
    done = run_cli("select", str(path), "--where", "n_tokens > 0")
    assert done.exit_code == 3
    assert len(done.stdout.splitlines()) == 6
    assert "r.jsonl:6" in done.stderr


# -- samples ---------------------------------------------------------------------------------------


def test_a_sample_has_as_many_of_each_group(run_cli: Run, results: Path) -> None:
    words = ("select", str(results), "--sample", "7", "--by", "meta.lang")
    first, second, other = (run_cli(*words, "--seed", seed) for seed in ("1", "1", "2"))
    found = kept(first)
    assert Counter(each["meta"].get("lang") for each in found) == {"en": 7, "de": 7, None: 7}
    places = [each["meta"]["k"] for each in found]
    assert places == sorted(places)
    assert first.stdout_bytes == second.stdout_bytes
    assert ids(kept(other)) != ids(found)
    assert "20 rows without a value of --by are a group" in first.stderr


def test_small_groups_are_whole_and_said(run_cli: Run, results: Path) -> None:
    words = ("--where", "meta.k < 13 or meta.lang == 'de'", "--sample", "5", "--by", "meta.lang")
    done = run_cli("select", str(results), *words)
    counts = Counter(each["meta"].get("lang") for each in kept(done))
    assert counts == {"en": 5, "de": 5, None: 4}
    assert "1 of 3 groups have fewer rows than --sample 5: None 4" in done.stderr
    done = run_cli("select", str(results), "--sample", "100")
    assert len(kept(done)) == 60
    assert "fewer rows than --sample 100" in done.stderr


def test_every_row_is_as_likely() -> None:
    rows = [ResultRow("r:1", each, Totals(), None) for each in made(8)]
    drawn: Counter[int] = Counter()
    for seed in range(400):
        chooser = Chooser(None, None, Sampling(2, None, seed))
        for each in rows:
            assert chooser.holds(each)
            chooser.draw(each)
        drawn.update(chooser.drawn()[0])
    # 800 draws of 8 rows: 100 each, with a standard deviation of 8.7.
    assert all(65 <= n <= 135 for n in drawn.values())
    assert len(drawn) == 8


def test_a_sample_of_stdin_is_refused(run_cli: Run, results: Path) -> None:
    done = run_cli("select", "-", "--sample", "2", stdin=results.read_bytes())
    assert (done.exit_code, "put what comes on stdin in a file" in done.stderr) == (2, True)


# -- buckets ---------------------------------------------------------------------------------------


def test_buckets_are_cut_at_the_quantiles_of_the_reference(
    run_cli: Run, results: Path, tmp_path: Path
) -> None:
    reference = made(40)
    path = write(tmp_path / "reference.jsonl", reference)
    words = ("--buckets", "3", "--bucket-by", "bits_per_byte", "--reference", str(path))
    done = run_cli("select", str(results), *words)
    values = [each["bits_per_byte"] for each in reference if each["bits_per_byte"] is not None]
    cuts = [float(np.quantile(values, q)) for q in (1 / 3, 2 / 3)]
    found = kept(done)
    assert len(found) == 60
    for each in found:
        value = each["bits_per_byte"]
        wanted = None if value is None else 1 + sum(value > cut for cut in cuts)
        assert each["bucket"] == wanted
    assert list(found[0])[-1] == "bucket"
    run = json.loads(done.stdout.splitlines()[0])
    assert run["selection"]["cuts"] == pytest.approx(cuts)
    assert "12 rows have no bucket: the column is null" in done.stderr
    assert "bits_per_byte is cut at" in done.stderr
    head = kept(run_cli("select", str(results), *words, "--where", "bucket == 1"))
    assert ids(head) == [each["id"] for each in found if each["bucket"] == 1]
    sample = kept(run_cli("select", str(results), *words, "--sample", "4", "--by", "bucket"))
    assert Counter(each["bucket"] for each in sample) == {1: 4, 2: 4, 3: 4, None: 4}


def test_buckets_again_replace_those_before(run_cli: Run, results: Path, tmp_path: Path) -> None:
    words = ("--bucket-by", "meta.k", "--reference", str(results))
    out = tmp_path / "kept.jsonl"
    assert run_cli("select", str(results), "--buckets", "2", *words, "-o", str(out)).exit_code == 0
    assert len(kept(run_cli("select", str(out), "--where", "bucket == 2"))) == 30
    again = run_cli("select", str(out), "--buckets", "4", *words).stdout.splitlines()[1:-1]
    assert all(line.count('"bucket":') == 1 for line in again)
    assert Counter(json.loads(line)["bucket"] for line in again) == {1: 15, 2: 15, 3: 15, 4: 15}


def test_a_column_without_numbers_is_no_bucket(run_cli: Run, results: Path) -> None:
    words = ("--buckets", "2", "--reference", str(results))
    done = run_cli("select", str(results), *words, "--bucket-by", "id")
    assert (done.exit_code, "has 'r0', and no number" in done.stderr) == (2, True)
    done = run_cli("select", str(results), *words, "--bucket-by", "meta.nothing")
    assert (done.exit_code, "no row has meta.nothing" in done.stderr) == (2, True)


# -- inputs ----------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Rows with numbers that no float keeps, one of them twice, and one without an id."""
    path = tmp_path / "data.jsonl"
    lines = [f'{{"id": "d{k}", "text": "Row {k} of it.", "n": 1.{k}0}}' for k in range(8)]
    lines += ["", lines[3], '{"text": "No id here.", "n": 12345678901234567890123}']
    path.write_text("\n".join(lines) + "\n")
    return path


def scored(run_cli: Run, tmp_path: Path, command: str, *words: str) -> Path:
    out = tmp_path / "scored.jsonl"
    done = run_cli(command, *words, "-o", str(out), "--force", "--no-tokens")
    assert done.exit_code in (0, 3), done.stderr
    return out


def test_inputs_are_written_byte_for_byte(run_cli: Run, data: Path, tmp_path: Path) -> None:
    results = scored(run_cli, tmp_path, "score", str(data))
    done = run_cli("select", str(results), "--where", "n_tokens > 0", "--inputs", str(data))
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines() == [line for line in data.read_text().splitlines() if line]
    rows = [json.loads(line) for line in results.read_text().splitlines()[1:-1]]
    least = sorted(each["mean_loss"] for each in rows)[4]
    done = run_cli(
        "select", str(results), "--where", f"mean_loss < {least!r}", "--inputs", str(data)
    )
    lines = data.read_text().splitlines()
    assert done.stdout.splitlines() == [
        lines[each["line"] - 1] for each in rows if each["mean_loss"] < least
    ]


def test_files_that_were_moved_or_packed_are_found(
    run_cli: Run, data: Path, tmp_path: Path
) -> None:
    results = scored(run_cli, tmp_path, "score", str(data))
    packed = tmp_path / "moved.jsonl.gz"
    packed.write_bytes(gzip.compress(data.read_bytes()))
    done = run_cli("select", str(results), "--where", "n_tokens > 0", "--inputs", str(packed))
    assert done.exit_code == 0, done.stderr
    assert len(done.stdout.splitlines()) == 10


def test_inputs_of_other_texts_are_none(run_cli: Run, data: Path, tmp_path: Path) -> None:
    results = scored(run_cli, tmp_path, "score", str(data))
    data.write_text(data.read_text().replace("Row 5", "Row five"))
    done = run_cli("select", str(results), "--where", "n_tokens > 0", "--inputs", str(data))
    assert done.exit_code == 3
    assert "rows that are kept and are in none of --inputs: 1" in done.stderr
    assert len(done.stdout.splitlines()) == 9
    data.write_text('{"id": "d0", "text": "Another."}\n')
    done = run_cli("select", str(results), "--where", "n_tokens > 0", "--inputs", str(data))
    assert done.exit_code == 2
    assert "no input has their id and text" in done.stderr


def test_inputs_that_differ_in_other_fields_alone_are_said(run_cli: Run, tmp_path: Path) -> None:
    data = tmp_path / "alike.jsonl"
    rows = [{"id": "a", "text": "One text.", "k": k} for k in range(3)]
    data.write_text("".join(json.dumps(each) + "\n" for each in rows))
    results = scored(run_cli, tmp_path, "score", str(data), "--keep-meta")
    words = ("select", str(results), "--inputs", str(data), "--where")
    done = run_cli(*words, "meta.k == 2")
    assert [json.loads(line)["k"] for line in done.stdout.splitlines()] == [0]
    assert "have the id and text of one that is written: 2; the first" in done.stderr
    assert "first are written" not in run_cli(*words, "meta.k < 9").stderr


def test_inputs_may_be_a_directory(run_cli: Run, data: Path, tmp_path: Path) -> None:
    results = scored(run_cli, tmp_path, "score", str(data))
    (folder := tmp_path / "folder").mkdir()
    (folder / "a.jsonl").write_bytes(data.read_bytes())
    done = run_cli("select", str(results), "--where", "n_tokens > 0", "--inputs", str(folder))
    assert done.exit_code == 0, done.stderr
    assert len(done.stdout.splitlines()) == 10


def test_inputs_may_be_a_pattern(run_cli: Run, data: Path, tmp_path: Path) -> None:
    results = scored(run_cli, tmp_path, "score", str(data))
    (folder := tmp_path / "folder").mkdir()
    (folder / "a.jsonl").write_bytes(data.read_bytes())
    (folder / "b.jsonl").write_text('{"id": "else", "text": "Of no row."}\n')
    (folder / "note.txt").write_text("One text.")
    for name in (f"{folder}/*", str(folder)):
        done = run_cli("select", str(results), "--where", "n_tokens > 0", "--inputs", name)
        assert done.exit_code == 0, done.stderr
        assert done.stdout.encode() == data.read_bytes().replace(b"\n\n", b"\n")
        assert f"--inputs {name}: 1 files that were scored as one text" in done.stderr
    for name, said in ((f"{folder}/*.txt", "was scored as one text"), ("*.none", "no file fits")):
        done = run_cli("select", str(results), "--where", "n_tokens > 0", "--inputs", name)
        assert (done.exit_code, said in done.stderr) == (2, True)


def test_pairs_chats_lines_and_tables(run_cli: Run, tmp_path: Path) -> None:
    pairs = scored(run_cli, tmp_path, "cond", "samples/pairs.jsonl", "--pmi")
    where = ("--where", "pmi > 0", "--inputs", "samples/pairs.jsonl")
    done = run_cli("select", str(pairs), *where)
    rows = [json.loads(line) for line in pairs.read_text().splitlines()[1:-1]]
    lines = Path("samples/pairs.jsonl").read_text().splitlines()
    wanted = [lines[each["line"] - 1] for each in rows if each["pmi"] > 0]
    assert done.stdout.splitlines() == wanted
    assert len(wanted) > 0
    template = ("--chat-template", "samples/chat.jinja")
    chats = scored(run_cli, tmp_path, "cond", "samples/chats.jsonl", *template)
    done = run_cli(
        "select", str(chats), "--where", "n_tokens > 0", "--inputs", "samples/chats.jsonl"
    )
    assert done.stdout == Path("samples/chats.jsonl").read_text()
    assert "2 rows are of chats or ids: joined without a hash of their text" in done.stderr
    texts = tmp_path / "texts.txt"
    texts.write_text("One line.\n\nAnother line, longer.\n")
    lines_of = scored(run_cli, tmp_path, "score", str(texts), "--lines")
    done = run_cli("select", str(lines_of), "--where", "n_bytes > 10", "--inputs", str(texts))
    assert done.stdout == "Another line, longer.\n"
    table = tmp_path / "t.csv"
    table.write_text('id,text\n1,"One, two"\n2,Three\n')
    of_table = scored(run_cli, tmp_path, "score", str(table))
    done = run_cli("select", str(of_table), "--where", "id == '1'", "--inputs", str(table))
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"id": "1", "text": "One, two"}
    ]


def test_samples_and_buckets_of_inputs(run_cli: Run, data: Path, tmp_path: Path) -> None:
    results = scored(run_cli, tmp_path, "score", str(data))
    words = ("select", str(results), "--inputs", str(data))
    done = run_cli(*words, "--sample", "3")
    found = done.stdout.splitlines()
    lines = data.read_text().splitlines()
    assert len(found) == 3
    assert [lines.index(each) for each in found] == sorted(lines.index(each) for each in found)
    buckets = ("--buckets", "2", "--bucket-by", "mean_loss", "--reference", str(results))
    done = run_cli(*words, *buckets)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    scores = [json.loads(line)["mean_loss"] for line in results.read_text().splitlines()[1:-1]]
    cut = float(np.quantile(scores, 0.5))
    assert [each["bucket"] for each in rows] == [1 + (loss > cut) for loss in scores]
    assert done.stdout.splitlines()[0].startswith(lines[0][:-1])
    data.write_text(data.read_text().replace('"n":', '"bucket":'))
    done = run_cli(*words, *buckets)
    assert (done.exit_code, "has a 'bucket' already" in done.stderr) == (2, True)


def test_one_text_has_no_rows(run_cli: Run, tmp_path: Path) -> None:
    results = scored(run_cli, tmp_path, "score", "samples/text.txt")
    done = run_cli(
        "select", str(results), "--where", "n_tokens > 0", "--inputs", "samples/text.txt"
    )
    assert (done.exit_code, "was scored as one text" in done.stderr) == (2, True)
