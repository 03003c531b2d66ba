"""Start-up: `seqloss` against bare scripts that do the least. Prints medians of paired ratios.

Both sides of a pair run in turn, as whole processes, so that a machine whose speed drifts does not
decide. `python benchmarks/startup.py [--rounds N]`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "seqloss_cli" / "demo"
TEXT = "The keeper wrote one line for every ship that passed."

BARE_IMPORT = "import typer, rich"
BARE_FORWARD = f"""
import rich, typer, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(DEMO)!r})
model = AutoModelForCausalLM.from_pretrained({str(DEMO)!r}, dtype=torch.float32)
with torch.inference_mode():
    print(model(**tokenizer({TEXT!r}, return_tensors="pt")).logits.shape)
"""
PROGRAM = [sys.executable, "-m", "seqloss_cli"]
PAIRS = (
    ("seqloss --help / bare import of typer and rich", [*PROGRAM, "--help"], BARE_IMPORT, 3.0),
    (
        "seqloss score / bare load and one forward",
        [*PROGRAM, "score", "--model", "demo", "--text", TEXT],
        BARE_FORWARD,
        1.3,
    ),
)


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env=os.environ)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    print("| pair | ours s | bare s | median ratio | goal |\n|---|---|---|---|---|")
    for name, ours, bare_script, goal in PAIRS:
        bare = [sys.executable, "-c", bare_script]
        seconds(ours), seconds(bare)  # warm the disk cache
        pairs = [(seconds(ours), seconds(bare)) for _ in range(rounds)]
        mine, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"| {name} | {mine:.3f} | {theirs:.3f} | {ratio:.2f} | {goal} |", flush=True)


if __name__ == "__main__":
    main()
