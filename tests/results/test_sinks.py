"""Files of results: written beside, moved when they are whole, over nothing that is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from seqloss_cli import UsageError
from seqloss_cli.core.errors import RunError
from seqloss_cli.results.sinks import open_sink


def test_a_file_that_comes_meanwhile_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.json"

    def write_while_another_does() -> None:
        with open_sink(path, False) as sink:
            sink.write(b"ours")
            path.write_bytes(b"precious")

    with pytest.raises(RunError, match=r"out\.json\.partial"):
        write_while_another_does()
    assert path.read_bytes() == b"precious"
    assert (tmp_path / "out.json.partial").read_bytes() == b"ours"
    with open_sink(path, True) as sink:
        sink.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_only_regular_files_are_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path / "pipe.json", tmp_path, tmp_path / "none" / "x.json"):
        with pytest.raises(UsageError), open_sink(path, True):
            pass
