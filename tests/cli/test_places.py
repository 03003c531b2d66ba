"""Results that go to another file system are there whole or not at all, and can be resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import stub
from helpers.elsewhere import FlakyFileSystem, flaky
from helpers.stub import ran, without_time
from seqloss_cli.cli.progress import ProgressBar
from seqloss_cli.core.records import Sample
from seqloss_cli.results.sinks import local_path

URL = "flaky://out/results.jsonl"


@pytest.fixture
def fs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyFileSystem]:
    """A file system in memory; the directory of temporary files is a new one."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    stub.furnish(tmp_path)
    with flaky() as system:
        yield system


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "tmp").glob("seqloss-*"))


def test_results_are_put_there_when_they_are_whole(fs: FlakyFileSystem, tmp_path: Path) -> None:
    ran("score samples/sentences.jsonl -o here.jsonl", tmp_path)
    expected = without_time((tmp_path / "here.jsonl").read_bytes())
    done = ran(f"score samples/sentences.jsonl -o {URL}", tmp_path)
    assert f"wrote {URL}: " in done.stderr
    assert f": {URL}\n" in done.stderr
    # The file that grew here is of no concern to anyone.
    assert str(tmp_path) not in done.stderr
    assert without_time(fs.cat_file("/out/results.jsonl")) == expected
    assert fs.find("/out") == ["/out/results.jsonl"]
    assert left(tmp_path) == []
    # It is not written over, and a run that goes on finds that it is whole.
    assert "--force" in ran(f"score samples/sentences.jsonl -o {URL}", tmp_path, 2).stderr
    assert (
        "nothing to do" in ran(f"score samples/sentences.jsonl -o {URL} --resume", tmp_path).stderr
    )
    assert (
        "begun in another way"
        in ran(f"score samples/sentences.jsonl --eos -o {URL} --resume", tmp_path, 2).stderr
    )
    assert ran(f"score samples/sentences.jsonl --eos -o {URL} --force", tmp_path)
    assert without_time(fs.cat_file("/out/results.jsonl")) != expected


@pytest.mark.parametrize("fault", ["put_file", "half", "info", "mv"])
def test_faults_while_it_is_put_there(fault: str, fs: FlakyFileSystem, tmp_path: Path) -> None:
    fs.faults[fault] = 2
    ran(f"score samples/sentences.jsonl -o {URL}", tmp_path)
    assert not +fs.faults
    assert fs.find("/out") == ["/out/results.jsonl"]
    assert fs.cat_file("/out/results.jsonl").rpartition(b'{"type":"totals"')[1]


@pytest.mark.parametrize("more", ["", " --force", " --shard 0/2 --resume"])
@pytest.mark.parametrize("fault", ["refused", "missing"])
def test_what_takes_no_results_is_found_before_the_first_row(
    fault: str, more: str, fs: FlakyFileSystem, tmp_path: Path
) -> None:
    fs.faults[fault] = 1
    done = ran(f"score samples/sentences.jsonl -o {URL}{more}", tmp_path, 2)
    assert f"-o {URL}: cannot be written to: {fault}" in done.stderr
    assert "built-in" not in done.stderr  # no model was looked for
    assert (left(tmp_path), fs.find("/")) == ([], [])


def test_an_attempt_to_write_is_made_again_and_leaves_nothing(
    fs: FlakyFileSystem, tmp_path: Path
) -> None:
    fs.faults["pipe_file"] = 2
    ran(f"score samples/sentences.jsonl -o {URL}", tmp_path)
    assert fs.find("/") == ["/out/results.jsonl"]
    assert not +fs.faults
    fs.faults["pipe_file"] = 99
    done = ran("score samples/sentences.jsonl -o flaky://out/b.jsonl", tmp_path, 1)
    assert "flaky://out/b.jsonl: pipe_file: connection reset (after 3 attempts)" in done.stderr


@pytest.mark.parametrize("fault", ["put_file", "half", "mv"])
def test_what_cannot_be_put_there_stays_here(
    fault: str, fs: FlakyFileSystem, tmp_path: Path
) -> None:
    fs.faults[fault] = 99
    done = ran(f"score samples/sentences.jsonl -o {URL}", tmp_path, 1)
    local = local_path(Path(URL))
    assert local is not None
    assert f"the results are in {local}" in done.stderr
    assert "/out/results.jsonl" not in fs.find("/out")
    fs.faults.clear()
    done = ran(f"score samples/sentences.jsonl -o {URL} --resume", tmp_path)
    assert "nothing to do" in done.stderr
    assert fs.cat_file("/out/results.jsonl").rpartition(b'{"type":"totals"')[1]
    assert left(tmp_path) == []


def test_a_run_that_stopped_goes_on(fs: FlakyFileSystem, tmp_path: Path) -> None:
    ran(f"score samples/sentences.jsonl -o {URL}", tmp_path)
    whole = fs.cat_file("/out/results.jsonl")
    fs.rm("/out/results.jsonl")
    local = local_path(Path(URL))
    partial = Path(f"{local}.partial")
    partial.write_bytes(b"".join(whole.splitlines(True)[:3]))
    told = f"{URL} (here {partial})"
    done = ran(f"score samples/sentences.jsonl -o {URL}", tmp_path, 2)
    assert f"{told} exists; --resume goes on with it" in done.stderr
    done = ran(f"score samples/sentences.jsonl --eos -o {URL} --resume", tmp_path, 2)
    assert f"--resume: {told} was begun in another way" in done.stderr
    done = ran(f"score samples/sentences.jsonl -o {URL} --resume", tmp_path)
    assert f"going on with {told}: 2 rows are kept" in done.stderr
    assert fs.cat_file("/out/results.jsonl") == whole


def test_shards_elsewhere_are_merged(fs: FlakyFileSystem, tmp_path: Path) -> None:
    fs.pipe_file("/in/corpus.jsonl", (tmp_path / "samples/sentences.jsonl").read_bytes())
    line = "score flaky://in/*.jsonl"
    whole = ran(f"{line} --jsonl", tmp_path).stdout_bytes
    for n, suffix in enumerate(("jsonl", "parquet", "jsonl")):
        ran(f"{line} --shard {n}/3 -o flaky://out/{n}.{suffix}", tmp_path)
    names = "flaky://out/0.jsonl flaky://out/1.parquet flaky://out/2.jsonl"
    done = ran(f"merge {names} -o flaky://out/all.jsonl", tmp_path)
    assert "wrote flaky://out/all.jsonl\n" in done.stderr
    assert str(tmp_path) not in done.stderr
    assert without_time(fs.cat_file("/out/all.jsonl")) == without_time(whole)
    fs.pipe_file("/out/2.jsonl", fs.cat_file("/out/2.jsonl")[:-9])
    assert ran(f"merge --missing {names}", tmp_path).stdout == "2\n"
    # A store that is down tells of no shard whether it is whole.
    fs.faults["cat_file"] = 99
    done = ran(f"merge --missing {names}", tmp_path, 1)
    assert "whether it is whole is not known" in done.stderr
    assert not done.stdout
    fs.faults.clear()
    assert "all.jsonl exists" in ran(f"merge {names} -o flaky://out/all.jsonl", tmp_path, 2).stderr


def test_places_that_take_no_files(fs: FlakyFileSystem, tmp_path: Path) -> None:
    done = ran("score samples/sentences.jsonl -o https://127.0.0.1/a.jsonl", tmp_path, 2)
    assert "https:// cannot be written to" in done.stderr
    done = ran("score samples/sentences.jsonl -o nosuch://a/b.jsonl", tmp_path, 2)
    assert "seqloss[remote]" in done.stderr


def test_the_bar_of_a_shard_counts_its_own_bytes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"0123456789" * 20)
    bar = ProgressBar([str(path)], span=(100, 200))
    for end, done in ((110, 0.1), (150, 0.5), (200, 1.0)):
        bar.on_input(Sample(str(end), str(path), text="a", end=end))
        assert bar.done == done
