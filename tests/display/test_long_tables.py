"""A table of a long text costs what is shown of it, not what is folded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.program import in_process
from helpers.stub import stubbed
from seqloss_cli.core.records import SequenceScore
from seqloss_cli.display.terminal import formatting


def test_folded_tokens_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = dict.fromkeys(("visible", "counted"), 0)
    visible, counted = formatting.visible, SequenceScore.counted.fget  # type: ignore[attr-defined]

    def counting(name: str, function: Any) -> Any:
        def called(*arguments: Any) -> Any:
            calls[name] += 1
            return function(*arguments)

        return called

    monkeypatch.setattr(formatting, "visible", counting("visible", visible))
    monkeypatch.setattr(SequenceScore, "counted", property(counting("counted", counted)))
    (tmp_path / "long.txt").write_text("a b " * 2000)
    with stubbed():
        done = in_process("score", tmp_path / "long.txt", "--model", "demo")
    assert "folded" in done.stdout
    assert calls["visible"] < 200
    assert calls["counted"] < 50
