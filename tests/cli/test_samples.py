"""`samples/` under the demo model, as it was when it was last looked at.

`python tests/cli/test_samples.py` writes the golden files anew; a changed number needs its own
heading in the changelog.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from seqloss_cli.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
EVERYTHING = (
    *("--model", "demo", "--json", "--keep-meta", "--ranks", "--entropy", "--top-k", "2"),
    *("--words", "--context-lengths"),
)
TEMPLATE = ("--chat-template", "samples/chat.jinja")
COMMANDS: dict[str, tuple[str, ...]] = {
    "samples": (
        *("score", "samples/text.txt", "samples/texts.jsonl", *EVERYTHING),
        *("--eos", "--context", "48", "--stride", "16"),
    ),
    "pairs": (
        *("cond", "samples/pairs.jsonl", *EVERYTHING, "--eos", "--pmi"),
        *("--boundary", "compare", "--context", "16", "--truncate", "left"),
    ),
    "chats": ("cond", "samples/chats.jsonl", *EVERYTHING, *TEMPLATE),
    "masks": ("mask", "samples/chats.jsonl", "--json", *TEMPLATE, "--like", "trl", "--loss"),
}
VOLATILE = ("started_at", "versions", "threads")


def current(command: tuple[str, ...]) -> dict[str, Any]:
    previous = Path.cwd()
    os.chdir(ROOT)
    try:
        done = CliRunner().invoke(app, list(command))
    finally:
        os.chdir(previous)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    for name in VOLATILE:
        del document["run"][name]
    return document


def assert_alike(found: Any, expected: Any, where: str) -> None:
    """Equal, floats to 1e-4 nats per token (more for sums, which have more tokens)."""
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key, value in expected.items():
            assert_alike(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for n, value in enumerate(expected):
            assert_alike(found[n], value, f"{where}[{n}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4), where
    else:
        assert found == expected, where


@pytest.mark.parametrize("name", COMMANDS)
def test_samples_are_scored_as_before(name: str) -> None:
    expected = json.loads((GOLDEN / f"{name}.json").read_text())
    assert_alike(current(COMMANDS[name]), expected, "document")


if __name__ == "__main__":
    for name, command in COMMANDS.items():
        written = json.dumps(current(command), indent=1, ensure_ascii=False)
        (GOLDEN / f"{name}.json").write_text(written + "\n")
