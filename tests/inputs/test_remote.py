"""Inputs of other file systems, patterns and directories; on one in memory whose requests fail."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from helpers.elsewhere import FlakyFileSystem, flaky
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.records import Item, Rejected
from seqloss_cli.core.urls import bare_name, is_url, shown_name, url_of
from seqloss_cli.inputs import remote
from seqloss_cli.inputs.first_look import first_look
from seqloss_cli.inputs.names import expanded
from seqloss_cli.inputs.options import ReadOptions
from seqloss_cli.inputs.reading import ReadStats, read_inputs
from seqloss_cli.inputs.shards import Cuts, Shard

LINES = b"".join(b'{"id": "%d", "text": "row %d"}\n' % (n, n) for n in range(100))


@pytest.fixture
def fs() -> Iterator[FlakyFileSystem]:
    with flaky() as system:
        yield system


def parquet(n_rows: int = 100) -> bytes:
    sink = io.BytesIO()
    table = pa.table(
        {"id": [str(n) for n in range(n_rows)], "text": [f"row {n}" for n in range(n_rows)]}
    )
    pa.parquet.write_table(table, sink, row_group_size=30)
    return sink.getvalue()


def read(*names: str, shard: Shard | None = None, **options: Any) -> list[Item]:
    settings = ReadOptions(**options)
    return list(read_inputs(names, settings, ReadStats(), Cuts(names, settings, shard)))


def ids(items: list[Item]) -> list[str]:
    assert not [item for item in items if isinstance(item, Rejected)], items
    return [item.id for item in items]


ALL = [str(n) for n in range(100)]
FILES = {"a.jsonl": LINES, "a.jsonl.gz": gzip.compress(LINES), "a.parquet": parquet()}


@pytest.mark.parametrize("name", FILES)
def test_files_are_read_over_faults(name: str, fs: FlakyFileSystem) -> None:
    fs.pipe_file(f"/in/{name}", FILES[name])
    url = f"flaky://in/{name}"
    assert ids(read(url)) == ALL
    for fault in ("cat_file", "short", "info"):
        fs.faults[fault] = 2
        assert ids(read(url)) == ALL, fault
        assert not +fs.faults
    found = [id for n in range(3) for id in ids(read(url, shard=Shard(n, 3)))]
    assert sorted(found, key=int) == ALL


def test_a_server_that_stays_away_costs_the_file(fs: FlakyFileSystem) -> None:
    fs.pipe_file("/in/a.jsonl", LINES)
    fs.faults["cat_file"] = 99
    (found,) = read("flaky://in/a.jsonl")
    assert isinstance(found, Rejected)
    assert found.reason == "unreadable"
    assert "after 3 attempts" in found.message
    fs.faults.clear()
    (found,) = read("flaky://in/gone.jsonl")
    assert isinstance(found, Rejected)
    assert found.reason == "no_such_file"
    with pytest.raises(UsageError, match="no such file"):
        first_look(["flaky://in/gone.jsonl"], ReadOptions())


@pytest.mark.parametrize("content", [LINES[: len(LINES) // 2], LINES + LINES, None])
def test_a_file_that_changes_while_it_is_read(
    content: bytes | None, fs: FlakyFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "changed" if content else "removed"
    monkeypatch.setattr(remote, "BLOCK", 1000)
    fs.pipe_file("/in/a.jsonl", LINES)
    items = iter(read_inputs(["flaky://in/a.jsonl"], ReadOptions(), ReadStats()))
    next(items)
    if content is None:
        # What was read ahead holds the rest.
        monkeypatch.setattr(type(fs), "info", _gone)
    else:
        fs.pipe_file("/in/a.jsonl", content)
    *_, last = items
    assert isinstance(last, Rejected)
    assert (last.line, last.reason) == (None, "unreadable")
    assert f"{told} while it was read" in last.message


def _gone(*args: Any, **kwargs: Any) -> Any:
    raise FileNotFoundError


def test_reading_holds_one_range(fs: FlakyFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BLOCK", 1000)
    fs.pipe_file("/in/a.jsonl", LINES)
    ids(read("flaky://in/a.jsonl"))
    assert sum(fs.ranges) == len(LINES)
    assert max(fs.ranges) <= 1000


def test_servers_without_ranges_and_sizes(fs: FlakyFileSystem, monkeypatch: Any) -> None:
    fs.pipe_file("/in/a.jsonl", LINES * 3)
    monkeypatch.setattr(remote, "BLOCK", 1000)
    whole = lambda self, path, start=None, end=None: LINES * 3  # noqa: E731
    monkeypatch.setattr(FlakyFileSystem, "cat_file", whole)
    (found,) = read("flaky://in/a.jsonl")
    assert "no ranges of bytes" in found.message
    monkeypatch.setattr(FlakyFileSystem, "info", lambda self, path, **k: {"type": "file"})
    (found,) = read("flaky://in/a.jsonl")
    assert "curl -L flaky://in/a.jsonl" in found.message


# -- names -----------------------------------------------------------------------------------------


def test_patterns_and_directories_elsewhere(fs: FlakyFileSystem) -> None:
    for name in ("b/2.jsonl", "b/10.jsonl", "a/1.jsonl", "a/notes.md", "a/.hidden.jsonl"):
        fs.pipe_file(f"/in/{name}", b'{"text": "t"}\n')
    said: list[str] = []
    pattern = expanded(["flaky://in/*/*.jsonl"], said.append)
    assert [each.partition("in/")[2] for each in pattern if "hidden" not in each] == [
        "a/1.jsonl", "b/10.jsonl", "b/2.jsonl",
    ]  # fmt: skip
    assert said == []
    found = expanded(["flaky://in"], said.append)
    assert [each.partition("in/")[2] for each in found] == ["a/1.jsonl", "b/10.jsonl", "b/2.jsonl"]
    assert "1 files of other kinds are left out, first " in said[0]
    assert len(read(*found)) == 3
    with pytest.raises(UsageError, match="no file fits"):
        expanded(["flaky://in/*.csv"], said.append)


def test_patterns_and_directories_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("d/b.jsonl", "d/a.parquet", "d/sub/c.csv", "d/x.png", "d/.git/z.jsonl", "[1].txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("x")
    said: list[str] = []
    assert expanded(["d", "d/*.jsonl", "-", "gone.txt"], said.append) == [
        "d/a.parquet", "d/b.jsonl", "d/sub/c.csv", "d/b.jsonl", "-", "gone.txt",
    ]  # fmt: skip
    assert said == ["note: d: 1 files of other kinds are left out, first d/x.png"]
    assert expanded(["[1].txt", "d/**/*.csv"], said.append) == ["[1].txt", "d/sub/c.csv"]
    with pytest.raises(UsageError, match="no file fits"):
        expanded(["d/*.tsv"], said.append)
    Path("empty").mkdir()
    with pytest.raises(UsageError, match="without a file to read"):
        expanded(["empty"], said.append)
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    assert expanded(["model"], said.append) == ["model"]


class _StatusError(Exception):
    """An error of a package that tells the status of HTTP."""

    def __init__(self, status: int) -> None:
        super().__init__(f"answer {status}")
        self.code = status


def test_only_what_may_pass_is_asked_for_again(
    fs: FlakyFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def ask(status: int) -> None:
        calls.append(status)
        raise _StatusError(status)

    for status, kind, n in (
        (400, remote.LastingError, 1), (401, PermissionError, 1), (403, PermissionError, 1),
        (404, FileNotFoundError, 1), (408, OSError, 3), (429, OSError, 3), (503, OSError, 3),
    ):  # fmt: skip
        calls.clear()
        with pytest.raises(kind, match=f"answer {status}") as caught:
            remote.retried(lambda status=status: ask(status), "hf://datasets/a/b")  # type: ignore[misc]
        assert type(caught.value) is kind
        assert len(calls) == n
        assert ("HF_TOKEN" in str(caught.value)) is (kind is PermissionError)
        assert ("after 3 attempts" in str(caught.value)) is (n == 3)
    # A package that made attempts of its own, which took longer than this.
    monkeypatch.setattr(remote, "LONGEST", -1.0)
    calls.clear()
    with pytest.raises(OSError, match=r"answer 503$"):
        remote.retried(lambda: ask(503))
    assert len(calls) == 1


def test_requests_to_an_emulator_of_google_are_anonymous(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.config import conf

    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "true")  # put back after the test
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    monkeypatch.delenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT")
    asked = remote._google_options.__wrapped__
    assert asked() == {"token": "anon"}
    monkeypatch.setitem(conf, "gcs", {"token": "mine"})
    assert asked() == {}


def test_urls_are_shown_without_what_lets_others_in() -> None:
    assert shown_name("https://u:p@host/a.jsonl?X-Amz-Signature=1") == "https://host/a.jsonl"
    assert shown_name("https://host/get?id=1") == "https://host/get?id=1"
    assert shown_name("s3://bucket/a@b.jsonl") == "s3://bucket/a@b.jsonl"
    assert bare_name("https://host/a.jsonl.gz?token=1") == "https://host/a.jsonl.gz"
    assert bare_name("what?.jsonl") == "what?.jsonl"
    assert url_of(Path("s3://bucket/a.jsonl")) == "s3://bucket/a.jsonl"
    assert url_of(Path("C:/a")) is None
    assert is_url("hf://datasets/a")
    assert not is_url("a/b://c")


def test_file_systems_that_nobody_knows() -> None:
    with pytest.raises(UsageError, match=r"seqloss\[remote\]"):
        read("nosuch://bucket/a.jsonl")
