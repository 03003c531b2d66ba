"""Every command of the README runs, and its tables name what exists."""

from __future__ import annotations

import json
import math
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.results import diverged_row, ranked_row, row, write, write_divergences, write_rankings
from seqloss_cli.cli import (
    compare,
    cond,
    diverge,
    mask,
    objective,
    plot,
    rank,
    report,
    score,
    summarize,
)

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]
_JQ = f"""#!{sys.executable}
import json, sys
value = json.load(sys.stdin)
for key in sys.argv[1].strip(".").split("."):
    value = value[key]
print(json.dumps(value))
"""


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A directory that looks like the repository's root, and can be written to."""
    for name in ("README.md", "CHANGELOG.md", "samples"):
        (tmp_path / name).symlink_to(ROOT / name)
    program = tmp_path / "bin"
    program.mkdir()
    (program / "seqloss").write_text(f'#!/bin/sh\nexec {sys.executable} -m seqloss_cli "$@"\n')
    (program / "jq").write_text(_JQ)  # the real one may not be installed
    for script in program.iterdir():
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def shell(command: str, workplace: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PATH": f"{workplace / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "80",
    }
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        cwd=workplace,
        env=environment,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command: str, workplace: Path) -> None:
    done = shell(command, workplace)
    assert done.returncode == 0, done.stderr
    shown = done.stdout or (workplace / "results.jsonl").read_text()
    assert "total" in shown or "nats per token" in shown or "\tloss\t" in shown
    for name in re.findall(r"-o (\S+\.(?:svg|png|pdf))", command):
        assert (workplace / name).stat().st_size


@pytest.mark.parametrize(
    "example",
    [*cond.EXAMPLES, *rank.EXAMPLES, *diverge.EXAMPLES, *mask.EXAMPLES[:2],
     *score.EXAMPLES[:3], *summarize.EXAMPLES, *compare.EXAMPLES[:2], objective.EXAMPLES[0],
     *plot.EXAMPLES, *report.EXAMPLES],
    ids=str.split,
)  # fmt: skip
def test_examples_of_the_help_run(example: str, workplace: Path) -> None:
    rows = [row(f"d{n}", [None, 1.0 + n, 2.0], meta={"document": n // 2}) for n in range(6)]
    for name in ("results", "a", "b", "shard-1"):
        write(workplace / f"{name}.jsonl", rows)
    write_divergences(workplace / "divergences.jsonl", [diverged_row(["a", "b"], [0.25, 0.5])])
    write_rankings(workplace / "rankings.jsonl", [ranked_row("a", ["b", "c"], [-1.0, -2.0])])
    done = shell(example, workplace)
    assert done.returncode == 0, done.stderr


def test_totals_of_the_readme_are_those_of_the_oracle(workplace: Path, demo: object) -> None:
    """`seqloss score README.md --json | jq .totals` against a plain float64 forward per window."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    totals = json.loads(shell("seqloss score README.md --json | jq .totals", workplace).stdout)
    folder = ROOT / "seqloss_cli" / "demo"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    ids = AutoTokenizer.from_pretrained(folder)(README)["input_ids"]
    context, stride, losses, scored_to = 512, 256, [], 0
    while scored_to < len(ids) - 1:
        last = min(scored_to + (stride if scored_to else context), len(ids) - 1)
        fed = ids[:last] if last <= context else [ids[0], *ids[last - context + 1 : last]]
        n_targets = last - scored_to
        with torch.no_grad():
            log_probs = model(torch.tensor([fed])).logits[0, -n_targets:].log_softmax(-1)
        targets = torch.tensor(ids[scored_to + 1 : last + 1])
        losses += (-log_probs.gather(1, targets[:, None])[:, 0]).tolist()
        scored_to = last
    assert totals["n_tokens"] == len(ids)
    assert totals["n_scored"] == len(losses) == len(ids) - 1
    assert totals["total_loss"] == pytest.approx(math.fsum(losses), abs=1e-4 * len(losses))
    assert totals["n_scored_bytes"] == len(README.encode())
    expected = math.fsum(losses) / math.log(2) / len(README.encode())
    assert totals["bits_per_byte"] == pytest.approx(expected, abs=1e-4)


def test_the_python_example_runs(workplace: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = shell(f"{sys.executable} -c '{example}'", workplace)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2


def test_the_configuration_example_is_valid(workplace: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (workplace / "seqloss.yaml").write_text(example)
    done = shell("seqloss score --text x --json", workplace)
    run = json.loads(done.stdout)["run"]
    assert run["model"] == "samples/checkpoints/step-600"
    assert run["batch_tokens"] == 2048
    assert "built-in" not in done.stderr


def test_options_named_in_the_readme_exist(workplace: Path) -> None:
    known = "".join(
        shell(f"COLUMNS=200 seqloss {name} --help", workplace).stdout
        for name in (
            "score",
            "cond",
            "rank",
            "diverge",
            "mask",
            "summarize",
            "compare",
            "objective",
            "plot",
            "report",
        )
    )
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)):
        assert option in known, option


def test_the_table_of_speed_is_that_of_the_report() -> None:
    made = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "summary.py")],
        capture_output=True,
        text=True,
        check=True,
    )
    shown = README.split("<!-- made by benchmarks/summary.py -->")[1].split("<!-- end -->")[0]
    assert shown.strip() == made.stdout.strip()
