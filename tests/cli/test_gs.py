"""Inputs and results on Google Cloud Storage: an emulator on loopback, which fails as told.

Needs the extra `remote` and gcp-storage-emulator (`make test-remote`).
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from helpers.stub import ran, without_time
from seqloss_cli.inputs import remote

pytestmark = pytest.mark.remote
BUCKET = "corpus"
LINES = b"".join(b'{"id": "%d", "text": "row number %d"}\n' % (n, n) for n in range(300))
left, seen = Counter[str](), Counter[str]()
"""Method and status to how often a request is answered so from now on; methods that were asked."""


def _serve() -> Any:
    """An emulator with a bucket, on a free port."""
    from gcp_storage_emulator.handlers import buckets
    from gcp_storage_emulator.server import RequestHandler
    from gcp_storage_emulator.storage import Storage

    class Handler(RequestHandler):  # type: ignore[misc]
        def log_message(self, *args: Any) -> None:
            """Write nothing."""

        def _fails(self) -> bool:
            seen[self.command] += 1
            for kind, n in left.items():
                method, status = kind.split()
                if n > 0 and method == self.command:
                    left[kind] -= 1
                    refused = status.startswith("40")
                    self._send(int(status), "caller has no access" if refused else "busy")
                    return True
            return False

        def _send(self, status: int, message: str) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            content = json.dumps({"error": {"code": status, "message": message}}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:  # noqa: N802
            if not self._fails():
                super().do_GET()

        def do_POST(self) -> None:  # noqa: N802
            if not self._fails():
                super().do_POST()

        def do_DELETE(self) -> None:  # noqa: N802
            if "upload_id=" in self.path:  # an upload that is given up: the emulator knows no such
                seen["given up"] += 1
                self._send(499, "")
            elif not self._fails():
                super().do_DELETE()

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Write nothing: gcsfs asks for an object and a directory at once, and drops one."""

    storage = Storage(use_memory_fs=True)
    buckets.create_bucket(BUCKET, storage)
    return Server(("127.0.0.1", 0), partial(Handler, storage))


@pytest.fixture(scope="module")
def system() -> Iterator[Any]:
    """The file system of that bucket."""
    running = _serve()
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{running.server_port}")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "")
        patch.delenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT")
        patch.setattr(remote, "WAITS", (0.0, 0.0, 0.0))
        found, _ = remote.file_system(f"gs://{BUCKET}/a")
        waits = SimpleNamespace(sleep=lambda _, sleep=asyncio.sleep: sleep(0))
        patch.setattr("gcsfs.retry.asyncio", waits)
        table = pa.table({"text": [f"row number {n}" for n in range(300)]})
        sink = io.BytesIO()
        pa.parquet.write_table(table, sink, row_group_size=50)
        for name, raw in (
            ("in/a.jsonl", LINES), ("in/b.jsonl.gz", gzip.compress(LINES)),
            ("tables/a.parquet", sink.getvalue()), ("notes.md", b"no rows"),
        ):  # fmt: skip
            found.pipe_file(f"{BUCKET}/{name}", raw)
        yield found
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    left.clear()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(LINES)
    return tmp_path


def rows(raw: bytes) -> list[bytes]:
    return [line for line in raw.splitlines() if line.startswith(b'{"type":"sequence"')]


def texts(raw: bytes) -> list[bytes]:
    return [re.search(rb'"text":"([^"]*)"', row)[1] for row in rows(raw)]  # type: ignore[index]


def objects(system: Any) -> list[str]:
    system.invalidate_cache()
    return list(system.find(BUCKET))


def test_rows_are_those_of_files(system: Any, folder: Path) -> None:
    here = rows(ran("score in/a.jsonl --jsonl", folder).stdout_bytes)
    assert len(here) == 300
    for kind in ("", "GET 503", "GET 500", "GET 429"):
        left.update({kind: 2} if kind else {})
        done = ran(f"score gs://{BUCKET}/in/a.jsonl --jsonl", folder)
        found = rows(done.stdout_bytes)
        assert [row.replace(b"gs://corpus/", b"") for row in found] == here, kind
        assert not +left, kind
        assert done.stderr.count("\n") == 1, done.stderr  # the model's name alone
    there = ran(f"score gs://{BUCKET}/in --jsonl", folder).stdout_bytes
    assert texts(there) == 2 * texts(b"\n".join(here))
    there = ran(f"score gs://{BUCKET}/tables/*.parquet --jsonl", folder).stdout_bytes
    assert texts(there) == texts(b"\n".join(here))


def test_what_is_not_there_is_said(system: Any, folder: Path) -> None:
    for name in (f"{BUCKET}/in/gone.jsonl", "gone/a.jsonl"):
        assert f"gs://{name}: no such file" in ran(f"score gs://{name}", folder, 2).stderr
    done = ran(f"score gs://{BUCKET}/in/*.csv", folder, 2)
    assert "no file fits the pattern" in done.stderr
    for status in (401, 403):
        left.update({f"GET {status}": 99})
        done = ran(f"score gs://{BUCKET}/in/a.jsonl", folder, 2)
        assert "caller has no access" in done.stderr
        assert "no credentials of Google Cloud are here: `gcloud auth" in done.stderr
        assert left[f"GET {status}"] > 80  # it is not asked again and again
        left.clear()
    left.update({"GET 503": 999})
    done = ran(f"score gs://{BUCKET}/in/a.jsonl", folder, 2)
    assert "busy" in done.stderr
    assert "Traceback" not in done.stderr


def test_results_are_put_there(system: Any, folder: Path) -> None:
    for name in ("all.jsonl", "all.parquet"):
        url = f"gs://{BUCKET}/out/{name}"
        left.update({"POST 503": 2})
        seen.clear()
        ran(f"score in/a.jsonl -o {url}", folder)
        assert seen["given up"] == 1
        assert [*(folder / "tmp").iterdir()] == []
        done = ran(f"score in/a.jsonl -o {url}", folder, 2)
        assert "exists; --force writes over it" in done.stderr
    raw = system.cat_file(f"{BUCKET}/out/all.jsonl")
    here = ran("score in/a.jsonl --jsonl", folder).stdout_bytes
    assert without_time(raw) == without_time(here)
    table = pa.parquet.read_table(io.BytesIO(system.cat_file(f"{BUCKET}/out/all.parquet")))
    assert table.num_rows >= 300
    url = f"gs://{BUCKET}/out/all.jsonl"
    assert "nothing to do" in ran(f"score in/a.jsonl -o {url} --resume", folder).stderr


def test_what_takes_no_results_is_found_before_the_first_row(system: Any, folder: Path) -> None:
    before = objects(system)
    done = ran("score in/a.jsonl -o gs://gone/a.jsonl", folder, 2)
    assert "-o gs://gone/a.jsonl: cannot be written to: " in done.stderr
    left.update({"POST 403": 1})
    done = ran(f"score in/a.jsonl -o gs://{BUCKET}/out/no.jsonl", folder, 2)
    assert "out/no.jsonl: cannot be written to: Forbidden" in done.stderr
    assert "gcloud auth" in done.stderr
    seen.clear()
    remote.try_to_write(f"gs://{BUCKET}/out/no.jsonl")
    assert seen == {"POST": 1, "given up": 1}
    assert objects(system) == before
    assert [*(folder / "tmp").iterdir()] == []


def test_a_file_of_credentials_that_is_none_is_said(
    system: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setattr(remote, "_google_options", remote._google_options.__wrapped__)
    file = folder / "key.json"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    for content in (None, "", "{}"):
        if content is not None:
            file.write_text(content)
        done = ran(f"score gs://{BUCKET}/in/a.jsonl", folder, 2)
        assert f"GOOGLE_APPLICATION_CREDENTIALS={file} cannot be used: " in done.stderr


def test_large_results_come_in_parts(system: Any, folder: Path) -> None:
    large = folder / "large.bin"
    large.write_bytes(bytes(range(256)) * (56 << 10))  # 14 MiB
    url = f"gs://{BUCKET}/large.bin"
    remote.put_whole(large, url)
    with remote.open_remote(url) as stream:
        assert stream.read() == large.read_bytes()
    system.rm_file(f"{BUCKET}/large.bin")


def test_shards_are_merged(system: Any, folder: Path) -> None:
    line = f"score gs://{BUCKET}/in/a.jsonl gs://{BUCKET}/tables/a.parquet"
    whole = ran(f"{line} --jsonl", folder).stdout_bytes
    for n in range(3):
        ran(f"{line} --shard {n}/3 -o gs://{BUCKET}/shards/{n}.jsonl", folder)
    names = " ".join(f"gs://{BUCKET}/shards/{n}.jsonl" for n in range(3))
    merged = ran(f"merge {names}", folder).stdout_bytes
    assert without_time(merged) == without_time(whole)
