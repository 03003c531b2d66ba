"""Inputs and results at hf://, on an imitation of the hub on loopback (`make test-remote`)."""

from __future__ import annotations

import gzip
import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from helpers.hub import Hub, serving_hub
from helpers.stub import ran, without_time
from seqloss_cli.inputs import remote

pytestmark = pytest.mark.remote
LINES = b"".join(b'{"id": "%d", "text": "row number %d"}\n' % (n, n) for n in range(12))
PLACE = "hf://datasets/owner/rows"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub's package with that imitation, and a token that may write."""
    from huggingface_hub import HfFileSystem, constants

    table = pa.table({"text": [f"row number {n}" for n in range(12)]})
    sink = io.BytesIO()
    pa.parquet.write_table(table, sink, row_group_size=3)
    files = {"in/a.jsonl": LINES, "in/b.jsonl.gz": gzip.compress(LINES),
             "tables/a.parquet": sink.getvalue(), "notes.md": b"no rows"}  # fmt: skip
    with serving_hub(Hub(files)) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        at = f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", at)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", running.token)
        monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
        HfFileSystem.clear_instance_cache()
        yield running
        HfFileSystem.clear_instance_cache()


@pytest.fixture
def folder(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    for name, raw in hub.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(raw)
    return tmp_path


def rows(raw: bytes) -> list[bytes]:
    return [line for line in raw.splitlines() if line.startswith(b'{"type":"sequence"')]


def texts(raw: bytes) -> list[bytes]:
    return [re.search(rb'"text":"([^"]*)"', row)[1] for row in rows(raw)]  # type: ignore[index]


def test_rows_of_the_hub_are_those_of_files(hub: Hub, folder: Path) -> None:
    here = rows(ran("score in/a.jsonl --jsonl", folder).stdout_bytes)
    assert len(here) == 12
    for word in ("", "resolve", "tree"):
        hub.faults = Counter({word: 1} if word else {})
        found = rows(ran(f"score {PLACE}/in/a.jsonl --jsonl", folder).stdout_bytes)
        assert [row.replace(f"{PLACE}/".encode(), b"") for row in found] == here, word
        assert not +hub.faults, word
    there = ran(f"score {PLACE}@main/in --jsonl", folder)
    assert texts(there.stdout_bytes) == 2 * texts(b"\n".join(here))
    options = "tables/*.parquet --shard 1/2 --jsonl"
    there = texts(ran(f"score {PLACE}/{options}", folder).stdout_bytes)
    assert there == texts(ran(f"score {options}", folder).stdout_bytes) != []


def test_each_byte_is_asked_for_once(hub: Hub) -> None:
    hub.files["large.txt"] = bytes(range(256)) * (40 << 10)  # 10 MiB: three ranges
    with remote.open_remote(f"{PLACE}/large.txt") as stream:
        assert stream.read() == hub.files["large.txt"]
    ends = [tuple(map(int, each.removeprefix("bytes=").split("-"))) for each in hub.ranges]
    assert [first for first, _ in ends] == [0, *(last + 1 for _, last in ends[:-1])]
    assert ends[-1][1] == (10 << 20) - 1


def test_what_is_not_there_is_said(hub: Hub, folder: Path) -> None:
    done = ran(f"score {PLACE}/in/gone.jsonl", folder, 2)
    assert f"{PLACE}/in/gone.jsonl: no such file" in done.stderr
    done = ran("score hf://datasets/owner/none/a.jsonl", folder, 2)
    assert "repository not found" in done.stderr
    assert "HF_TOKEN" in done.stderr
    done = ran(f"score {PLACE}@gone/in/a.jsonl", folder, 2)
    assert "revision not found" in done.stderr
    assert f"{PLACE}/in/*.csv: no file fits" in ran(f"score {PLACE}/in/*.csv", folder, 2).stderr
    done = ran("score hf://datasets/rows", folder, 2)
    assert "got 'rows'" in done.stderr
    assert "attempts" not in done.stderr
    hub.faults = Counter({"resolve": 999})
    done = ran(f"score {PLACE}/in/a.jsonl", folder, 2)
    assert "after 3 attempts" in done.stderr


def test_what_is_private_needs_a_token(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.private = True
    assert len(rows(ran(f"score {PLACE}/in/a.jsonl --jsonl", folder).stdout_bytes)) == 12
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    remote.file_system(PLACE)[0].invalidate_cache()
    done = ran(f"score {PLACE}/in/a.jsonl", folder, 2)
    assert "repository not found" in done.stderr


def test_results_are_one_commit(hub: Hub, folder: Path) -> None:
    ran(f"score in/a.jsonl -o {PLACE}/out/all.jsonl", folder)
    assert hub.commits == [["out/all.jsonl"]]
    assert len(rows(hub.files["out/all.jsonl"])) == 12
    done = ran(f"score in/a.jsonl -o {PLACE}/out/all.jsonl", folder, 2)
    assert "exists; --force writes over it" in done.stderr
    assert "nothing to do" in ran(
        f"score in/a.jsonl -o {PLACE}/out/all.jsonl --resume", folder
    ).stderr  # fmt: skip
    whole = ran("score in/a.jsonl --jsonl", folder).stdout_bytes
    for n in range(2):
        ran(f"score in/a.jsonl --shard {n}/2 -o {PLACE}/shards/{n}.jsonl", folder)
    merged = ran(f"merge {PLACE}/shards/0.jsonl {PLACE}/shards/1.jsonl", folder).stdout_bytes
    assert without_time(merged) == without_time(whole)


def test_what_takes_no_commits_is_found_before_the_first_row(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = ran("score in/a.jsonl -o hf://datasets/owner/none/a.jsonl", folder, 2)
    assert "-o hf://datasets/owner/none/a.jsonl: cannot be written to:" in done.stderr
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    done = ran(f"score in/a.jsonl -o {PLACE}/out/a.jsonl", folder, 2)
    assert f"-o {PLACE}/out/a.jsonl: cannot be written to: " in done.stderr
    assert "HF_TOKEN" in done.stderr
    assert hub.commits == []
    assert [*(folder / "tmp").iterdir()] == []


def test_offline_nothing_is_asked(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    done = ran(f"score {PLACE}/in/a.jsonl", folder, 2)
    assert "HF_HUB_OFFLINE: the hub is not asked" in done.stderr
    assert hub.asked == []
