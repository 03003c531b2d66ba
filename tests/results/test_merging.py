"""Shards that are merged are the run that was not cut: rows, order, flags, totals, run."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from helpers import stub
from helpers.program import strictly
from seqloss_cli.cli.merge import allow_open_files
from seqloss_cli.inputs.duplicates import DuplicateIds
from seqloss_cli.results import merging
from seqloss_cli.results.formats.parquet import read_parquet_rows
from seqloss_cli.results.merging import Merged
from seqloss_cli.results.shards import open_shard, records_of

SMALL = "-m samples/checkpoints/step-600"
COMMANDS = {
    "score": f"score corpus.jsonl broken.jsonl {stub.ALL}",
    "score-packed": "score corpus.jsonl.gz corpus.jsonl --keep-meta",
    "score-texts": "score samples/text.txt corpus.jsonl lines.txt --no-text --no-tokens",
    "cond": f"cond mixed.jsonl {stub.CHAT} --pmi --boundary compare",
    "rank": "rank questions.jsonl samples/choices.jsonl --pmi --tokens",
    "diverge": f"diverge corpus.jsonl broken.jsonl --keep-meta {SMALL} --teacher demo",
    "diverge-saved": f"diverge corpus.jsonl {SMALL} --teacher teacher.jsonl",
    "mask": f"mask mixed.jsonl {stub.CHAT} --keep-meta",
    "mask-loss": f"mask samples/chats.jsonl mixed.jsonl {stub.CHAT} --like trl --loss",
    "check": "check samples/rollouts.jsonl --field rollout_log_probs --keep-meta",
    "check-against": "check samples/rollouts.jsonl --field rollout_log_probs "
    "--against samples/rollouts.jsonl --against-field old_log_probs",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with inputs, and a teacher's file."""
    found = tmp_path_factory.mktemp("merging")
    stub.furnish(found)
    for name in ("corpus.jsonl", "broken.jsonl"):
        (found / f"{name}.gz").write_bytes(gzip.compress((found / name).read_bytes()))
    save = f"diverge corpus.jsonl {SMALL} --teacher demo --save-teacher teacher.jsonl --json"
    assert stub.run(f"{save} --teacher-top-k 4", found).exit_code in (0, 3)
    return found


def records(raw: bytes) -> list[Any]:
    """The lines of JSONL, the run's without its time."""
    found = [strictly(line) for line in raw.splitlines()]
    assert found[0].pop("started_at")
    return found


def ran(line: str, folder: Path, code: tuple[int, ...] = (0, 3)) -> Any:
    done = stub.run(line, folder)
    assert done.exit_code in code, done.stderr
    return done


def shards_of(line: str, folder: Path, n: int, suffix: str = "jsonl") -> list[str]:
    """Run each shard; the names of their files."""
    names = [f"shard-{index}-of-{n}.{suffix}" for index in range(n)]
    for index, name in enumerate(names):
        ran(f"{line} --shard {index}/{n} -o {name} --force", folder)
    return names


@pytest.mark.parametrize("case", COMMANDS)
def test_merged_shards_are_the_whole_run(case: str, folder: Path) -> None:
    line = COMMANDS[case]
    whole = records(ran(f"{line} --jsonl", folder).stdout_bytes)
    names = shards_of(line, folder, 3)
    merged = ran(f"merge {' '.join(reversed(names))}", folder)
    found = records(merged.stdout_bytes)
    assert found == whole
    assert [*found[-1].get("flags", {})] == [*whole[-1].get("flags", {})]
    # Lines as they were written: not a digit is another, of no number.
    rows = [each for name in names for each in (folder / name).read_bytes().splitlines()]
    same = [each for each in merged.stdout_bytes.splitlines()[1:-1] if b"duplicate_id" not in each]
    assert case == "check" or {*same} <= {*rows}


@pytest.mark.parametrize(
    ("files", "most"), [("corpus.jsonl broken.jsonl", 1), ("corpus.jsonl.gz broken.jsonl.gz", 4)]
)
def test_of_shards_that_were_cut_by_bytes_one_is_open_at_a_time(
    files: str, most: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_open, at_once = 0, 0

    def counted(name: str) -> Iterator[Any]:
        nonlocal n_open, at_once
        n_open += 1
        at_once = max(at_once, n_open)
        try:
            yield from records_of(name)
        finally:
            n_open -= 1

    names = shards_of(f"score {files}", folder, 4)
    merged = Merged([open_shard(str(folder / name)) for name in names])
    monkeypatch.setattr(merging, "records_of", counted)
    assert len(list(merged.records())) == 9
    assert (at_once, n_open) == (most, 0)


def test_ids_that_come_twice_are_found_on_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = COMMANDS["score-packed"]
    whole = records(ran(f"{line} --jsonl", folder).stdout_bytes)
    names = shards_of(line, folder, 3)
    monkeypatch.setattr(merging, "DuplicateIds", partial(DuplicateIds, 2))
    assert records(ran(f"merge {' '.join(names)}", folder).stdout_bytes) == whole


def test_merged_formats_hold_the_same(folder: Path) -> None:
    line = "score corpus.jsonl broken.jsonl --keep-meta"
    names = " ".join(shards_of(line, folder, 3))
    ran(f"merge {names} -o whole.jsonl --force", folder)
    expected = records((folder / "whole.jsonl").read_bytes())
    ran(f"merge {names} -o whole.json --force", folder)
    ran(f"merge {names} -o whole.parquet --force", folder)
    found = list(read_parquet_rows(folder / "whole.parquet"))
    del found[0]["started_at"]
    assert found == expected
    document = strictly((folder / "whole.json").read_bytes())
    assert document["totals"] == {k: v for k, v in expected[-1].items() if k != "type"}
    packed = " ".join(shards_of(line, folder, 2, "parquet"))
    assert records(ran(f"merge {packed}", folder).stdout_bytes) == expected
    # What was merged is results like any other, and a run that is whole.
    assert ran("summarize whole.jsonl --json", folder).stdout
    assert "nothing to do" in ran(f"{line} -o whole.jsonl --resume", folder).stderr


def test_parquet_is_cut_by_groups_and_merged(folder: Path) -> None:
    table = pa.table(
        {"text": [f"text number {n}" for n in range(30)], "id": [*map(str, range(30))]}
    )
    pa.parquet.write_table(table, folder / "rows.parquet", row_group_size=4)
    whole = records(ran("score rows.parquet --jsonl", folder).stdout_bytes)
    for n in (2, 9):
        names = " ".join(shards_of("score rows.parquet", folder, n))
        assert records(ran(f"merge {names}", folder).stdout_bytes) == whole


def test_an_id_in_two_shards_is_flagged(folder: Path) -> None:
    rows = [{"id": "same" if n in (0, 5) else str(n), "text": "a b", "x": 1.10} for n in range(6)]
    raw = "".join(json.dumps(row) + "\n" for row in rows).replace("1.1}", "1.10}")
    (folder / "twice.jsonl").write_text(raw)
    line = "score twice.jsonl --keep-meta"
    whole = ran(f"{line} --jsonl", folder)
    merged = ran(f"merge {' '.join(shards_of(line, folder, 2))}", folder)
    assert records(merged.stdout_bytes) == records(whole.stdout_bytes)
    assert merged.stdout.count('"x":1.10') == 6
    assert "1 ids came before" in merged.stderr


def test_a_file_that_breaks_off_is_rejected_once(folder: Path) -> None:
    lines = b"".join(b'{"text": "row %d"}\n' % n for n in range(40))
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(lines)[:-12])
    whole = records(ran("score cut.jsonl.gz --jsonl", folder).stdout_bytes)
    names = " ".join(shards_of("score cut.jsonl.gz", folder, 3))
    found = records(ran(f"merge {names}", folder).stdout_bytes)
    assert [row for row in found if row["type"] == "sequence"] == [
        row for row in whole if row["type"] == "sequence"
    ]
    assert found[-1]["rejections"] == whole[-1]["rejections"]


@pytest.mark.parametrize("command", ["compare", "objective"])
def test_models_whose_shards_are_merged_are_compared_as_those_that_are_scored(
    command: str, folder: Path
) -> None:
    models = ["samples/checkpoints/step-600", "demo"]
    for name, model in zip("ab", models, strict=True):
        names = shards_of(f"score corpus.jsonl broken.jsonl -m {model} --keep-meta", folder, 3)
        ran(f"merge {' '.join(names)} -o {name}.jsonl --force", folder)
    named = " ".join(models) if command == "objective" else f"-m {models[0]} -m {models[1]}"
    data = "--data corpus.jsonl --data broken.jsonl --keep-meta --bootstrap 100"
    direct = ran(f"{command} {named} {data} --json", folder)
    of_files = ran(f"{command} a.jsonl b.jsonl --bootstrap 100 --json", folder)
    found, expected = (strictly(done.stdout) for done in (of_files, direct))
    for name, model in zip("ab", models, strict=True):
        text = json.dumps(found).replace(f'"{name}.jsonl"', f'"{model}"')
        found = json.loads(text)
    for document in (found, expected):
        for run in document["runs"]:
            assert run.pop("started_at")
            run.pop("rows")
    assert found == expected
    refused = ran(f"{command} {named} {data} --shard 0/2", folder, (2,))
    assert f"`seqloss {command} A.jsonl B.jsonl`" in refused.stderr


def test_the_objective_of_results(folder: Path) -> None:
    for name, more in (("a", ""), ("b", SMALL), ("c", "--eos")):
        ran(f"score corpus.jsonl {more} -o {name}.jsonl --force", folder)
    shown = ran("objective a.jsonl b.jsonl", folder).stdout
    assert "step-600     600" in shown
    for words, said in (
        ("a.jsonl c.jsonl", "totals are not of the same tokens"),
        ("a.jsonl demo", "--data FILE says what is scored; without it all names are of RESULTS"),
        ("a.jsonl ./a.jsonl", "are one file"),
        ("a.jsonl b.jsonl --lines", "RESULTS are scored already"),
        ("a.jsonl b.jsonl --data corpus.jsonl", "a.jsonl is a file, and no CHECKPOINT"),
        ("a.jsonl corpus.jsonl", "corpus.jsonl: holds no results"),
    ):
        assert said in ran(f"objective {words}", folder, (2,)).stderr, words


def test_patterns_of_data_are_recorded_as_their_files(folder: Path) -> None:
    done = ran("objective demo --data 'corpu[s].jsonl' --json", folder)
    found = strictly(done.stdout)
    assert found["data"] == found["runs"][0]["reading"]["inputs"] == ["corpus.jsonl"]
    assert found["checkpoints"][0]["n_rejected"] == 1


# -- resuming --------------------------------------------------------------------------------------


def test_a_shard_goes_on_where_it_stopped(folder: Path) -> None:
    line = "score corpus.jsonl --shard 1/3"
    ran(f"{line} -o one.jsonl --force", folder)
    whole = (folder / "one.jsonl").read_bytes()
    (folder / "one.jsonl").unlink()
    (folder / "one.jsonl.partial").write_bytes(b"".join(whole.splitlines(True)[:3]) + b'{"ty')
    other = ran("score corpus.jsonl --shard 2/3 -o one.jsonl --resume", folder, (2,))
    assert "reading.shard" in other.stderr
    assert "the same --shard" in other.stderr
    ran(f"{line} -o one.jsonl --resume", folder)
    assert records((folder / "one.jsonl").read_bytes()) == records(whole)


# -- what is refused -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def names(folder: Path) -> list[str]:
    return shards_of("score corpus.jsonl", folder, 4)


def refusal(words: str, folder: Path, code: int = 2) -> str:
    done = ran(f"merge {words}", folder, (code,))
    assert done.stdout == "" or code == 1
    return done.stderr


def test_shards_that_are_missing_doubled_or_foreign(folder: Path, names: list[str]) -> None:
    assert "2 of 4 shards are missing: 1,3" in refusal(f"{names[0]} {names[2]}", folder)
    (folder / "copy.jsonl").write_bytes((folder / names[1]).read_bytes())
    message = refusal(" ".join([*names, "copy.jsonl"]), folder)
    assert f"{names[1]} and copy.jsonl are both shard 1/4" in message
    ran("score corpus.jsonl --shard 3/5 -o five.jsonl --force", folder)
    assert "must be of one number" in refusal(f"{' '.join(names[:3])} five.jsonl", folder)
    for more, said in (
        ("--eos", "eos False and true"), ("--no-text", "rows"), (SMALL, "weights_sha256"),
        ("--max-bytes 99999", "reading.max_bytes"),
    ):  # fmt: skip
        if more == SMALL:
            raw = (
                (folder / names[3])
                .read_bytes()
                .replace(b'"weights_sha256":"0', b'"weights_sha256":"1')
            )
            (folder / "other.jsonl").write_bytes(raw)
        else:
            ran(f"score corpus.jsonl {more} --shard 3/4 -o other.jsonl --force", folder)
        message = refusal(f"{' '.join(names[:3])} other.jsonl", folder)
        assert "other.jsonl is of another run" in message
        assert said in message, more


@pytest.mark.parametrize("names", ["grows.jsonl", "grows.csv", "grows.jsonl.gz", "a.txt grows.txt"])
def test_a_file_that_changed_between_shards(names: str, folder: Path) -> None:
    *_, last = names.split()

    def write(n_rows: int) -> None:
        lines = b"text\n" + b"a b\n" * n_rows
        if "jsonl" in last:
            lines = b"".join(b'{"text": "a %d"}\n' % n**9 for n in range(n_rows))
        (folder / last).write_bytes(gzip.compress(lines) if last.endswith("gz") else lines)
        # All files together are of one size.
        (folder / "a.txt").write_bytes(b"a b\n" * (9 - n_rows))

    write(4)
    ran(f"score {names} --shard 0/2 -o grown-0.jsonl --force", folder)
    write(6)
    ran(f"score {names} --shard 1/2 -o grown-1.jsonl --force", folder)
    message = refusal("grown-0.jsonl grown-1.jsonl", folder)
    assert f"{names.split()[0]} changed between runs: " in message


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda lines: lines[:-1], "is not whole"),
        (lambda lines: [*lines[:1], *lines[2:]], "totals are of"),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], "out of order"),
        (lambda lines: [*lines[:1], lines[1][:50] + b"\n", *lines[2:]], "line 2"),
        (lambda lines: [*lines, lines[1]], "behind its totals"),
    ],
)
def test_damaged_shards(
    damage: Callable[[list[bytes]], list[bytes]], said: str, folder: Path, names: list[str]
) -> None:
    lines = (folder / names[0]).read_bytes().splitlines(True)
    (folder / "damaged.jsonl").write_bytes(b"".join(damage(lines)))
    message = refusal(f"damaged.jsonl {' '.join(names[1:])} -o never.jsonl", folder, 1)
    assert said in message
    assert "damaged.jsonl" in message
    assert not (folder / "never.jsonl").exists()
    assert not (folder / "never.jsonl.partial").exists()


def test_a_row_of_another_shard_is_found(folder: Path, names: list[str]) -> None:
    # The numbers of one shard are put in the place of another's: its rows come twice.
    raw = (folder / names[2]).read_bytes().replace(b'"index":2', b'"index":1')
    (folder / "twin.jsonl").write_bytes(raw)
    words = f"{names[0]} twin.jsonl {names[2]} {names[3]}"
    assert "came before" in refusal(words, folder, 1)


def test_other_files_are_refused(folder: Path, names: list[str]) -> None:
    ran("score corpus.jsonl -o plain.jsonl --force", folder)
    ran("score corpus.jsonl --shard 0/1 --summary -o sums.jsonl --force", folder)
    assert "stdin" in refusal("-", folder)
    assert "without --shard" in refusal("plain.jsonl", folder)
    assert "with --summary" in refusal("sums.jsonl", folder)
    assert "no such file" in refusal("gone.jsonl", folder)
    assert "holds no" in refusal("corpus.jsonl", folder)
    assert "merge writes" in refusal(f"{' '.join(names)} -o a.csv", folder)
    ran("merge sums.jsonl --missing", folder, (2,))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'"schema_version":1', b'"schema_version":9', "by a newer seqloss"),
        (b'"index":1', b'"index":4', "record is damaged"),
        (b'"index":1', b'"index":"1"', "record is damaged"),
        (b'"index":1,', b"", "record is damaged"),
    ],
)
def test_records_that_cannot_be_read(
    old: bytes, new: bytes, said: str, folder: Path, names: list[str]
) -> None:
    raw = (folder / names[1]).read_bytes()
    assert raw.count(old) == 1
    (folder / "odd.jsonl").write_bytes(raw.replace(old, new))
    assert said in refusal("odd.jsonl", folder)
    assert said in ran(f"merge --missing {names[0]} odd.jsonl", folder).stderr


def test_patterns_name_shards(folder: Path, names: list[str]) -> None:
    whole = ran(f"merge {' '.join(names)}", folder).stdout_bytes
    assert ran("merge 'shard-?-of-4.jsonl'", folder).stdout_bytes == whole
    assert "no file fits" in refusal("'none-*.jsonl'", folder)
    assert "0 of 4" in ran("merge --missing 'shard-*-of-4.jsonl'", folder).stderr


def test_what_merge_missing_does_not_take(folder: Path, names: list[str]) -> None:
    for option in ("-o a.jsonl", "--json", "--force"):
        assert "--missing merges nothing" in refusal(f"--missing {option} {names[0]}", folder)


def test_parts_of_a_run_are_not_taken_for_it(folder: Path, names: list[str]) -> None:
    one = ran("score corpus.jsonl --shard 1/4", folder).stdout
    assert "a part of them: shard 1/4" in one
    assert "a part of them" in ran("mask mixed.jsonl --shard 0/2 --summary", folder).stdout
    assert "is shard 1/4, a part" in ran(f"summarize {names[1]}", folder).stderr
    parts = [(folder / name).read_bytes() for name in names]
    for numbers, said in (
        ("0123", ""), ("013", "holds 3 of 4 shards"), ("01223", "and 2 more than once"),
    ):  # fmt: skip
        (folder / "joined.jsonl").write_bytes(b"".join(parts[int(n)] for n in numbers))
        told = ran("summarize joined.jsonl", folder).stderr
        assert (said in told) if said else ("shard" not in told)
    ran("report joined.jsonl -o joined.html --force", folder)
    assert "and 2 more than once" in (folder / "joined.html").read_text()
    others = (folder / shards_of("score corpus.jsonl", folder, 2)[0]).read_bytes()
    (folder / "joined.jsonl").write_bytes(parts[0] + others)
    assert "shards of several runs" in ran("summarize joined.jsonl", folder).stderr


def test_missing_shards_are_printed(folder: Path, names: list[str]) -> None:
    done = ran(f"merge --missing {' '.join(names)}", folder)
    assert (done.stdout, done.exit_code) == ("", 0)
    assert "0 of 4" in done.stderr
    torn = (folder / names[1]).read_bytes()[:-5]
    (folder / "torn.jsonl").write_bytes(torn)
    done = ran(f"merge --missing gone.jsonl torn.jsonl {names[0]} {names[2]}", folder)
    assert done.stdout == "1,3\n"
    assert "torn.jsonl: shard 1/4 is not whole" in done.stderr
    packed = shards_of("score corpus.jsonl", folder, 2, "parquet")
    assert ran(f"merge --missing {packed[1]}", folder).stdout == "0\n"
    raw = gzip.compress((folder / names[1]).read_bytes())
    (folder / "packed.jsonl.gz").write_bytes(raw)
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress((folder / names[3]).read_bytes())[:-20])
    done = ran(f"merge --missing packed.jsonl.gz cut.jsonl.gz {names[0]}", folder)
    assert done.stdout == "2,3\n"
    assert ran(f"merge {names[0]} packed.jsonl.gz {names[2]} {names[3]}", folder).stdout
    ran("score corpus.jsonl --shard 3/4 --ranks -o ranks.jsonl --force", folder)
    done = ran(f"merge --missing {names[0]} ranks.jsonl", folder)
    assert "ranks.jsonl is of another run" in done.stderr
    assert "how many shards" in ran("merge --missing gone.jsonl", folder, (2,)).stderr


def test_more_shards_than_files_may_be_open() -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, limits[1]))
    try:
        allow_open_files(100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (500, limits[1])
        allow_open_files(400)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 400
        allow_open_files(1 << 40)  # as many as the system allows
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
