"""A new format is a module and an entry of `FORMATS`: all else follows from that entry."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.program import ROOT

PROGRAM = '''
import sys
from seqloss_cli.results.formats import FORMATS, Format


def write(sink, rows, level):
    from seqloss_cli.results.schema import RowWriter, json_bytes

    class Items(RowWriter):
        """A list for people who write Markdown."""

        def begin(self, run):
            self.sink.write(f"# {run.command}\\n".encode())

        def write_row(self, kind, row):
            self.sink.write(f"- {kind} {row['id']}\\n".encode())

        def write_totals(self, row):
            self.sink.write(f"\\n{row['n_sequences']} in all\\n".encode())

    return Items(sink, rows)


def conflicts(asked):
    if asked.words:
        yield "items have no place for --words"


FORMATS["items"] = Format("items", write, conflicts=conflicts)
from seqloss_cli.cli.main import main

sys.argv = ["seqloss", *sys.argv[1:]]
main()
'''


def seqloss(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("command", ["score", "mask"])
def test_the_help_names_it(command: str, tmp_path: Path) -> None:
    assert "|tsv|items\n" in seqloss(tmp_path, command, "--help").stdout


def test_it_is_written_and_refused_by_what_it_says(tmp_path: Path) -> None:
    pair = ("mask", "--prompt", "A list", "--response", " is sorted.")
    done = seqloss(tmp_path, *pair, "-o", "out.items")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.items").read_text() == "# mask\n- sequence <pair>\n\n1 in all\n"
    shown = seqloss(tmp_path, *pair, "--format", "items")
    assert shown.stdout == (tmp_path / "out.items").read_text()
    refused = seqloss(tmp_path, "score", "--text", "a", "--words", "--format", "items")
    assert "items have no place for --words" in refused.stderr
    assert (
        "which items does not have"
        in seqloss(tmp_path, *pair, "-o", "out.items", "--resume").stderr
    )
    other = seqloss(tmp_path, *pair, "-o", "out.txt")
    assert ".tsv, .items, or say" in " ".join(other.stderr.split())
