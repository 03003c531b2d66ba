"""Every command of the README runs, and its tables name what exists."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.program import ROOT, in_process
from helpers.results import diverged_row, ranked_row, row, write, write_divergences, write_rankings
from seqloss_cli.cli import main

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]


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


@dataclass(frozen=True)
class Done:
    """How the last program of a line ended."""

    exit_code: int
    stdout: str
    stderr: str


def shell(line: str, folder: Path) -> Done:
    """Run a line as bash would, with every program in this process: `seqloss`, `cat` and `jq`."""
    done = Done(0, "", "")
    with chdir(folder):
        for pipeline in line.split(" && "):
            done = _pipeline(pipeline)
            if done.exit_code:
                break
    return done


def _pipeline(line: str) -> Done:
    line, _, target = line.partition(" > ")
    data, said = None, ""
    for program in line.split(" | "):
        name, *words = [each for word in shlex.split(program) for each in _expanded(word)]
        if name == "seqloss":
            done = in_process(*words, stdin=data, COLUMNS="80")
            data, said = done.stdout_bytes, said + done.stderr
            if done.exit_code:
                return Done(done.exit_code, done.stdout, said)
        elif name == "cat":
            data = b"".join(Path(word).read_bytes() for word in words)
        else:
            data = _jq(data or b"", words)
    if target:
        Path(target).write_bytes(data or b"")
    return Done(0, "" if target else (data or b"").decode(), said)


def _expanded(word: str) -> list[str]:
    return sorted(map(str, Path().glob(word))) if "*" in word else [word]


def _jq(data: bytes, words: list[str]) -> bytes:
    """A path of keys, which is all that the README asks of the real one."""
    value, (path,) = json.loads(data), words
    for key in path.strip(".").split("."):
        value = value[key]
    return json.dumps(value).encode()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command: str, workplace: Path) -> None:
    done = shell(command, workplace)
    assert done.exit_code == 0, done.stderr
    shown = done.stdout or (workplace / "results.jsonl").read_text()
    assert "total" in shown or "nats per token" in shown or "\tloss\t" in shown
    for name in re.findall(r"-o (\S+\.(?:svg|png|pdf))", command):
        assert (workplace / name).stat().st_size


def test_a_real_shell_runs_them_too(workplace: Path) -> None:
    (command,) = [each for each in COMMANDS if each.startswith("cat ")]
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

    totals = json.loads(shell("seqloss score README.md --json | jq .totals", workplace).stdout)
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


def test_the_configuration_example_is_valid(workplace: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (workplace / "seqloss.yaml").write_text(example)
    done = shell("seqloss score --text x --json", workplace)
    run = json.loads(done.stdout)["run"]
    assert run["model"] == "samples/checkpoints/step-600"
    assert run["batch_tokens"] == 2048
    assert "built-in" not in done.stderr


def test_options_named_in_the_readme_exist() -> None:
    known = in_process("--help").stdout + "".join(
        in_process(name, "--help", COLUMNS="200").stdout
        for name in ("score", "cond", "rank", "diverge", "mask", "check", "summarize", "compare",
                     "objective", "plot", "report", "select")
    )  # fmt: skip
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
