"""The README's table of speed, made from the last report: `python benchmarks/summary.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from settings import HERE, MODELS, MODES

NAMES = {"gpt2": "GPT-2 small's shape", "llama": "a small Llama's shape"}
KINDS = {
    "products": "share of plain `F.linear`'s rate",
    "textbook": "times the textbook loop",
    "lm-eval": "times lm-evaluation-harness",
    "minicons": "times minicons",
}
OTHERS = ("shared", "around", "corpus")


def summary(report: dict[str, Any]) -> Iterator[str]:
    """Lines of Markdown: eager / compiled of each model and dtype, then the figures beside, of
    memory the worst. What was not measured is left out."""
    columns = [(model, dtype) for model in MODELS for dtype in ("float32", "bfloat16")]
    heads = [f"{NAMES[model]}, {dtype}" for model, dtype in columns]
    yield "| eager / compiled | " + " | ".join(heads) + " |"
    yield "|---" * (1 + len(heads)) + "|"
    for section, name in KINDS.items():
        cells = [_cell(report, section, *column) for column in columns]
        if not any(cells):
            continue
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield ""
    for section in OTHERS:
        for figure in report["figures"]:
            if figure["section"] == section and figure["goal"] is not None:
                unit = f" {figure['unit']}" if figure["unit"] else ""
                digits = 0 if unit else 2
                yield (
                    f"- {figure['name']}: {figure['value']:.{digits}f}{unit} "
                    f"(goal {'at most' if figure['at_most'] else 'at least'} {figure['goal']:g})"
                )
    memory = [figure for figure in report["figures"] if figure["section"] == "memory"]
    if memory:
        worst = max(memory, key=lambda figure: figure["value"])
        yield f"- memory, {worst['name']}: {worst['value']:.0f} MB (at most {worst['goal']:g})"


def _cell(report: dict[str, Any], section: str, model: str, dtype: str) -> str:
    """The worst figure of each mode; a goal that was missed stands behind it."""
    found = [_worst(report, section, f"{model}, {dtype}, {mode}") for mode in MODES]
    return " / ".join(found) if any(found) else ""


def _worst(report: dict[str, Any], section: str, name: str) -> str:
    figures = [
        figure
        for figure in report["figures"]
        if figure["section"] == section and figure["name"].split(";")[0] == name
    ]
    if not figures:
        return ""
    worst = min(figures, key=lambda figure: figure["value"])
    missed = "" if worst["met"] in (True, None) else f" (goal {worst['goal']:g})"
    return f"{worst['value']:.2f}{missed}"


if __name__ == "__main__":
    print("\n".join(summary(json.loads((HERE / "report" / "report.json").read_text()))))
