"""An imitation of the hub on loopback: what `hf://` of its package asks, for data sets.

Files above a size are redirected to another path, as those of the hub are to its stores.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

Answer = tuple[int, dict[str, str], bytes]


def _json(found: Any, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(found).encode()


def _error(status: int, code: str) -> Answer:
    return status, {"X-Error-Code": code, "X-Error-Message": code}, b""


@dataclass
class Hub:
    """The files of one data set, `owner/rows`, and what was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    token: str = "hf_rightful"
    """Whose bearer may write, and see what is private."""
    private: bool = False
    faults: Counter[str] = field(default_factory=Counter)
    """Word of a request to how often requests with it get the status 503 from now on."""
    asked: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    commits: list[list[str]] = field(default_factory=list)
    url: str = ""

    def answer(self, method: str, target: str, headers: Any, body: bytes) -> Answer:
        """Return status, headers and content."""
        self.asked.append(f"{method} {target}")
        for word in [word for word, left in self.faults.items() if left > 0 and word in target]:
            self.faults[word] -= 1
            return 503, {}, b"busy"
        url = urlsplit(target)
        path, query = url.path, parse_qs(url.query)
        may_write = headers.get("Authorization") == f"Bearer {self.token}"
        if (found := re.fullmatch(r"/store/(.+)", path)) is not None:
            return self._content(unquote(found[1]), headers)
        found = re.fullmatch(r"/(?:api/)?datasets/(\w+/\w+)(?:/(.*))?", path)
        if found is None or found[1] != "owner/rows" or (self.private and not may_write):
            # The hub does not tell who may not see a repository that there is one.
            return _error(404 if may_write else 401, "RepoNotFound")
        rest = found[2] or ""
        if path.startswith("/datasets/"):
            return self._resolved(unquote(rest.removeprefix("resolve/main/")), headers)
        return self._api(rest, query, body, may_write)

    def _api(self, rest: str, query: dict[str, list[str]], body: bytes, may_write: bool) -> Answer:
        if rest in ("", "revision/main"):
            return _json({"id": "owner/rows", "sha": "0" * 40})
        if rest.startswith("revision/"):
            return _error(404, "RevisionNotFound")
        if rest == "tree/main" or rest.startswith("tree/main/"):
            folder = unquote(rest.removeprefix("tree/main").removeprefix("/"))
            return self._tree(folder, query["recursive"] == ["true"])
        if rest == "paths-info/main":
            names = parse_qs(body.decode())["paths"]
            return _json([self._about(name) for name in names if name in self.files])
        if not may_write:
            return 403, {}, b'{"error": "no rights to write"}'
        if rest == "preupload/main":
            asked = json.loads(body)["files"]
            return _json({"files": [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in asked
            ]})  # fmt: skip
        if rest == "commit/main":
            return self._commit(body)
        return _json({}) if rest == "auth-check/write" else _error(404, "EntryNotFound")

    def _about(self, name: str) -> dict[str, Any]:
        data = self.files[name]
        return {"type": "file", "path": name, "size": len(data),
                "oid": hashlib.sha1(data).hexdigest()}  # fmt: skip

    def _tree(self, folder: str, recursive: bool) -> Answer:
        start = f"{folder}/" if folder else ""
        inside = [name for name in sorted(self.files) if name.startswith(start)]
        if not inside:
            return _error(404, "EntryNotFound")
        found: list[dict[str, Any]] = []
        folders = {
            name[: len(start) + at.start()]
            for name in inside
            for at in re.finditer("/", name[len(start) :])
        }
        found += [
            {"type": "directory", "path": each, "oid": "1" * 40}
            for each in sorted(folders)
            if recursive or "/" not in each[len(start) :]
        ]
        found += [self._about(n) for n in inside if recursive or "/" not in n[len(start) :]]
        return _json(found)

    def _resolved(self, name: str, headers: Any) -> Answer:
        if name in self.files and name.endswith(".parquet"):
            return 302, {"Location": f"{self.url}/store/{quote(name)}"}, b""
        return self._content(name, headers)

    def _content(self, name: str, headers: Any) -> Answer:
        if (data := self.files.get(name)) is None:
            return _error(404, "EntryNotFound")
        if (asked := headers.get("Range")) is None:
            return 200, {}, data
        self.ranges.append(asked)
        first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", asked).groups()  # type: ignore[union-attr]
        part = data[int(first) : int(last) + 1]
        return 206, {"Content-Range": f"bytes {first}-{last}/{len(data)}"}, part

    def _commit(self, body: bytes) -> Answer:
        lines = [json.loads(line) for line in body.splitlines()]
        for line in lines:
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.commits.append([line["value"]["path"] for line in lines if line["key"] != "header"])
        url = f"{self.url}/datasets/owner/rows/commit/{'2' * 40}"
        return _json({"commitUrl": url, "commitOid": "2" * 40, "success": True})


@contextmanager
def serving_hub(hub: Hub) -> Iterator[Hub]:
    """Let it answer on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else headers wait 40 ms for a delayed ACK

        def log_message(self, *args: Any) -> None:
            """Write nothing."""

        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else self._chunks()
            status, headers, content = hub.answer(self.command, self.path, self.headers, body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _chunks(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return b""
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        hub.url = f"http://127.0.0.1:{listening.server_address[1]}"
        try:
            yield hub
        finally:
            listening.shutdown()
            thread.join()
