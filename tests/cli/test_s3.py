"""Inputs and results on S3: moto's server on loopback, which fails as it is told to.

Needs the extra `remote` and moto (`make test-remote`).
"""

from __future__ import annotations

import gzip
import io
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from helpers.stub import ran, without_time
from seqloss_cli.inputs import remote

pytestmark = pytest.mark.remote
BUCKET = "corpus"
LINES = b"".join(b'{"id": "%d", "text": "row number %d"}\n' % (n, n) for n in range(300))


class Faults:
    """A server's application whose answers fail as often as `left` says, by kind."""

    def __init__(self, app: Any) -> None:
        self._app, self.left, self.seen = app, Counter[str](), Counter[str]()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        method = environ["REQUEST_METHOD"]
        self.seen[method] += 1
        if self._due(f"{method} 503"):
            start("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>slow down</Message></Error>"]
        if self._due(f"{method} 403"):
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
        if self._due(f"{method} 500"):
            start("500 Internal Server Error", [("Content-Type", "application/xml")])
            return [b"<Error><Code>InternalError</Code><Message>again</Message></Error>"]
        answer = b"".join(self._app(environ, start))
        # The length was told, and half of it comes.
        return [answer[: len(answer) // 2] if answer and self._due(f"{method} cut") else answer]

    def _due(self, kind: str) -> bool:
        if self.left[kind] <= 0:
            return False
        self.left[kind] -= 1
        return True


@pytest.fixture(scope="module")
def server() -> Iterator[Faults]:
    """moto's S3 with a bucket."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app = Faults(DomainDispatcherApplication(create_backend_app))
    running = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "any")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "any")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{running.server_port}")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        patch.setattr(remote, "WAITS", (0.0, 0.0, 0.0))
        system, _ = remote.file_system(f"s3://{BUCKET}/a")
        system.retries = 1
        system.mkdir(BUCKET, acl="public-read")
        table = pa.table({"text": [f"row number {n}" for n in range(300)]})
        sink = io.BytesIO()
        pa.parquet.write_table(table, sink, row_group_size=50)
        for name, raw in (
            ("in/a.jsonl", LINES), ("in/b.jsonl.gz", gzip.compress(LINES)),
            ("tables/a.parquet", sink.getvalue()), ("notes.md", b"no rows"),
        ):  # fmt: skip
            access = "private" if name == "notes.md" else "public-read"
            system.pipe_file(f"{BUCKET}/{name}", raw, ACL=access)
        yield app
    running.shutdown()
    thread.join()


def rows(raw: bytes) -> list[bytes]:
    return [line for line in raw.splitlines() if line.startswith(b'{"type":"sequence"')]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(LINES)
    return tmp_path


def test_rows_of_s3_are_those_of_files(server: Faults, folder: Path) -> None:
    here = rows(ran("score in/a.jsonl --jsonl", folder).stdout_bytes)
    assert len(here) == 300
    for kind in ("", "GET 503", "GET 500", "GET cut", "HEAD 503"):
        server.left = Counter({kind: 2} if kind else {})
        found = rows(ran(f"score s3://{BUCKET}/in/a.jsonl --jsonl", folder).stdout_bytes)
        assert [row.replace(b"s3://corpus/", b"") for row in found] == here, kind
        assert not +server.left, kind
    found = rows(ran(f"score s3://{BUCKET}/in --jsonl", folder).stdout_bytes)
    assert len(found) == 600
    found = rows(ran(f"score s3://{BUCKET}/tables/*.parquet --jsonl", folder).stdout_bytes)
    assert [re.search(rb'"text":"([^"]*)"', row)[1] for row in found] == [
        b"row number %d" % n for n in range(300)
    ]  # type: ignore[index]


def test_rows_over_http(server: Faults, folder: Path) -> None:
    here = rows(ran("score in/a.jsonl --jsonl", folder).stdout_bytes)
    url = f"{os.environ['AWS_ENDPOINT_URL_S3']}/{BUCKET}"
    server.left = Counter({"GET 503": 1, "GET cut": 1})
    found = rows(ran(f"score {url}/in/a.jsonl?token=x --jsonl", folder).stdout_bytes)
    assert [row.replace(f"{url}/".encode(), b"") for row in found] == here
    found = rows(ran(f"score {url}/tables/a.parquet --shard 1/3 --jsonl", folder).stdout_bytes)
    assert len(found) == 100
    assert "no such file" in ran(f"score {url}/in/gone.jsonl", folder, 2).stderr
    assert "403" in ran(f"score {url}/notes.md", folder, 2).stderr
    server.left = Counter({"GET 503": 99, "HEAD 503": 99})
    assert "after 4 attempts" in ran(f"score {url}/in/a.jsonl", folder, 2).stderr
    server.left = Counter()


def test_results_are_put_there_over_faults(server: Faults, folder: Path) -> None:
    url = f"s3://{BUCKET}/out/results.jsonl"
    system, _ = remote.file_system(url)
    for kind in ("PUT 503", "PUT 500"):
        server.left = Counter({kind: 2})
        ran(f"score in/a.jsonl -o {url} --force", folder)
        assert not +server.left
        raw = system.cat_file(f"{BUCKET}/out/results.jsonl")
        assert len(rows(raw)) == 300
        system.rm(f"{BUCKET}/out/results.jsonl")
    server.left = Counter({"PUT 503": 99})
    done = ran(f"score in/a.jsonl -o {url}", folder, 1)
    assert "the results are in" in done.stderr
    system.invalidate_cache()
    assert not system.exists(f"{BUCKET}/out/results.jsonl")
    server.left = Counter()
    assert "nothing to do" in ran(f"score in/a.jsonl -o {url} --resume", folder).stderr
    assert len(rows(system.cat_file(f"{BUCKET}/out/results.jsonl"))) == 300


def test_what_takes_no_results_is_found_before_the_first_row(server: Faults, folder: Path) -> None:
    system, _ = remote.file_system(f"s3://{BUCKET}/a")
    before = system.find(BUCKET)
    done = ran("score in/a.jsonl -o s3://gone/results.jsonl", folder, 2)
    assert "-o s3://gone/results.jsonl: cannot be written to: The specified bucket" in done.stderr
    server.left = Counter({"POST 403": 1})
    done = ran(f"score in/a.jsonl -o s3://{BUCKET}/out/no.jsonl --force", folder, 2)
    assert "no.jsonl: cannot be written to: Access" in done.stderr
    server.left, server.seen = Counter(), Counter()
    remote.try_to_write(f"s3://{BUCKET}/out/no.jsonl")
    assert server.seen == {"POST": 1, "DELETE": 1}
    system.invalidate_cache()
    assert system.find(BUCKET) == before
    assert "Uploads" not in system.call_s3("list_multipart_uploads", Bucket=BUCKET)
    assert [*(folder / "tmp").iterdir()] == []


def test_large_results_come_in_parts(server: Faults, folder: Path) -> None:
    """A file of more than one part is there only when all parts are."""
    url = f"s3://{BUCKET}/out/large.bin"
    system, _ = remote.file_system(url)
    large = folder / "large.bin"
    large.write_bytes(bytes(range(256)) * (440 << 10))  # 110 MiB: more than one part
    server.left, server.seen = Counter({"POST 500": 1}), Counter()
    remote.put_whole(large, url)
    assert server.seen["POST"] >= 2  # begun, and made whole
    assert not +server.left
    assert system.cat_file(f"{BUCKET}/out/large.bin") == large.read_bytes()
    system.rm(f"{BUCKET}/out/large.bin")
    server.left, server.seen = Counter({"PUT 500": 99}), Counter()
    with pytest.raises(OSError, match="after 4 attempts"):
        remote.put_whole(large, url)
    server.left = Counter()
    system.invalidate_cache()
    assert not system.exists(f"{BUCKET}/out/large.bin")


def test_shards_on_s3_are_merged(server: Faults, folder: Path) -> None:
    line = f"score s3://{BUCKET}/in/a.jsonl s3://{BUCKET}/tables/a.parquet"
    whole = ran(f"{line} --jsonl", folder).stdout_bytes
    for n in range(3):
        server.left = Counter({"GET cut": 1, "PUT 503": 1})
        ran(f"{line} --shard {n}/3 -o s3://{BUCKET}/shards/{n}.jsonl", folder)
    names = " ".join(f"s3://{BUCKET}/shards/{n}.jsonl" for n in range(3))
    merged = ran(f"merge {names}", folder).stdout_bytes
    assert without_time(merged) == without_time(whole)
