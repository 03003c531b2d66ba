"""The README, the site and examples of the help name what exists, and examples run."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from helpers.program import ROOT
from helpers.results import diverged_row, ranked_row, row, write, write_divergences, write_rankings
from helpers.shown import commands, shell
from seqloss_cli.cli import main

README = (ROOT / "README.md").read_text()
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
WRITTEN = "".join(text for name, text in PAGES.items() if name != "commands")


def examples(command: str) -> list[str]:
    """The examples of a command's help."""
    found = main.examples_of(getattr(main, command))
    assert found
    return found


SHORT = 5_000
"""Characters of a text that commands are tried on: several windows."""


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A directory that looks like the repository's root, with shorter texts, for writing to."""
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    for name in ("README.md", "CHANGELOG.md", "LICENSE"):
        (tmp_path / name).write_text((ROOT / name).read_text()[:SHORT])
    return tmp_path


def test_a_real_shell_runs_pipelines_too(workplace: Path) -> None:
    command = next(line for line, _ in commands(PAGES["score"]) if line.startswith("cat "))
    program = f'seqloss() {{ {sys.executable} -m seqloss_cli "$@"; }}; '
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", program + command],
        capture_output=True, text=True, cwd=workplace, timeout=120, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"type":"totals"' in (workplace / "results.jsonl").read_text()


@pytest.mark.parametrize(
    "example",
    [*examples("cond"), *examples("rank"), *examples("diverge"), *examples("check"),
     *examples("mask")[:2],
     *examples("score")[:3], *examples("summarize")[1:], *examples("compare")[:1],
     examples("objective")[0], *examples("plot")[1:], *examples("report")[1:]],
    ids=str.split,
)  # fmt: skip
def test_examples_of_the_help_run(example: str, workplace: Path) -> None:
    metas = [{"document": n // 2, "kind": "ab"[n % 2], "member": n % 2} for n in range(6)]
    rows = [row(f"d{n}", [None, 1.0 + n, 2.0], meta=meta) for n, meta in enumerate(metas)]
    for name in ("results", "a", "b", "shard-1"):
        write(workplace / f"{name}.jsonl", rows)
    write_divergences(workplace / "divergences.jsonl", [diverged_row(["a", "b"], [0.25, 0.5])])
    write_rankings(workplace / "rankings.jsonl", [ranked_row("a", ["b", "c"], [-1.0, -2.0])])
    done = shell(example, workplace)
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize(
    ("command", "n"),
    [("mask", 4), ("summarize", 3), ("compare", 4), ("plot", 2), ("report", 2), ("select", 4)],
)
def test_what_an_example_reads_is_a_sample_or_of_one_before_it(
    command: str, n: int, workplace: Path
) -> None:
    (workplace / "LICENSE").write_text("".join(f"Line {n} of a text.\n" for n in range(3)))
    for example in examples(command)[:n]:
        done = shell(example, workplace)
        assert done.exit_code == 0, done.stderr


def test_totals_of_the_readme_are_those_of_the_oracle(workplace: Path) -> None:
    """`seqloss score README.md --json | jq .totals` against a plain float64 forward per window."""
    readme = README[:SHORT]
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    totals = json.loads(shell("seqloss score README.md --json | jq -c .totals", workplace).stdout)
    folder = ROOT / "seqloss_cli" / "demo"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    ids = AutoTokenizer.from_pretrained(folder)(readme)["input_ids"]
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
    assert totals["n_tokens"] == len(ids) > 2 * context
    assert totals["n_scored"] == len(losses) == len(ids) - 1
    assert totals["total_loss"] == pytest.approx(math.fsum(losses), abs=1e-4 * len(losses))
    assert totals["n_scored_bytes"] == len(readme.encode())
    expected = math.fsum(losses) / math.log(2) / len(readme.encode())
    assert totals["bits_per_byte"] == pytest.approx(expected, abs=1e-4)


def test_the_python_example_runs(workplace: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", example],
        capture_output=True, text=True, cwd=workplace, timeout=120, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2


def test_the_page_on_python_shows_what_its_examples_print(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", PAGES["python"], re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for example, shown in blocks:
        exec(example, names)
        assert capsys.readouterr().out == shown


def test_the_configuration_example_is_valid(workplace: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGES["configuration"], re.DOTALL)
    (workplace / "seqloss.yaml").write_text(example)
    done = shell("seqloss score --text x --json", workplace)
    run = json.loads(done.stdout)["run"]
    assert run["model"] == "samples/checkpoints/step-600"
    assert run["batch_tokens"] == 2048
    assert "built-in" not in done.stderr


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 160


OF_OTHERS = {
    *("--array", "--from", "--gres", "--ids", "--logits_all", "--logprobs-mode", "--mean-life"),
    "--nproc-per-node",
    *(
        "--n_ctx",
        "--num_fewshot",
        "--no-enable-prefix-caching",
        "--requeue",
        "--tasks",
        "--torch-backend",
        "--type_k",
    ),
    *("--model_args", "--rate", "--type_v"),
}
"""Options of other programs that pages name."""


def test_options_that_pages_name_exist() -> None:
    group: Any = typer.main.get_command(main.app)
    parameters = [each for command in group.commands.values() for each in command.params]
    known = {name for each in parameters for name in each.opts} | {"--help", "--install-completion"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]*\w(?![\w-])", README + WRITTEN))
    assert sorted(named - known - OF_OTHERS) == []


def test_the_table_of_speed_is_that_of_the_report() -> None:
    made = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "summary.py")],
        capture_output=True,
        text=True,
        check=True,
    )
    shown = (
        PAGES["speed"].split("<!-- made by benchmarks/summary.py -->")[1].split("<!-- end -->")[0]
    )
    assert shown.strip() == made.stdout.strip()
