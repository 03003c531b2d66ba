"""Score a Parquet file by an array of tasks, as Slurm would start them, kill some of them on the
way, run again what is missing, and compare what is merged with a plain run:
`python tools/array_kills.py --rows 1000000`.

xargs starts the tasks, each with its number in SLURM_ARRAY_TASK_ID; the model is a checkpoint of
samples/. Of half of the killed tasks the end of the file is torn, as a machine leaves it that is
lost with them.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from ray_kills import MODEL, Tell, differences, environment, program, run_in_folder

SCORE = ("score", "rows.parquet", "-m", MODEL, "--threads", 1)
_TASK = """SLURM_ARRAY_TASK_ID={{}} {command} --shard auto/{of} -o shards/{{}}.jsonl --resume \
2>>array.log & echo $! >pids/{{}}.new && mv pids/{{}}.new pids/{{}} && wait $! || true"""
_TORN = 100
"""Bytes that a lost machine takes with it."""


class Array:
    """An array of tasks, of which each is a shard."""

    def __init__(self, folder: Path, of: int, tell: Tell) -> None:
        self.folder, self.of, self.tell = folder, of, tell
        for name in ("shards", "pids"):
            (folder / name).mkdir()

    def submit(self, numbers: Sequence[int]) -> subprocess.Popen[str]:
        """Start the tasks of these numbers, two at a time."""
        task = _TASK.format(command=shlex.join(program(*SCORE)), of=self.of)
        array = subprocess.Popen(
            ["xargs", "-P", "2", "-I{}", "sh", "-c", task],
            cwd=self.folder, env=environment(), stdin=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert array.stdin is not None
        array.stdin.write("".join(f"{n}\n" for n in numbers))
        array.stdin.close()
        return array

    def kill_some(self, array: subprocess.Popen[str], chosen: Sequence[int]) -> list[int]:
        """Kill the tasks that are chosen once they have rows; returns those that were caught."""
        killed, draw = list[int](), random.Random(1)
        least = {n: draw.randrange(1, 1 << 16) for n in chosen}
        while array.poll() is None:
            for n in set(chosen).difference(killed):
                partial = self.folder / "shards" / f"{n}.jsonl.partial"
                try:
                    if partial.stat().st_size < least[n]:
                        continue
                    os.kill(int((self.folder / "pids" / str(n)).read_text()), signal.SIGKILL)
                except (FileNotFoundError, ProcessLookupError):
                    continue  # not begun, or whole
                killed.append(n)
                torn = _TORN if len(killed) % 2 else 0
                time.sleep(0.1)
                os.truncate(partial, partial.stat().st_size - torn)
                self.tell(f"task {n} killed" + (", the end of its file torn" if torn else ""))
            time.sleep(0.02)
        return sorted(killed)

    def missing(self) -> list[int]:
        """Return the numbers that `merge --missing` prints."""
        said = self.run("merge", "--missing", "shards/*.jsonl")
        return [int(n) for n in said.stdout.strip().split(",") if n]

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Run the program there."""
        return subprocess.run(
            program(*words), cwd=self.folder, env=environment(), stdout=subprocess.PIPE, text=True
        )


def kill_and_merge(folder: Path, n_shards: int, tell: Tell) -> list[str]:
    """Run the array of `rows.parquet`, and return what is not the same in a plain run."""
    array = Array(folder, n_shards, tell)
    chosen = random.Random(0).sample(range(n_shards), max(1, n_shards // 4))
    killed = array.kill_some(array.submit(range(n_shards)), chosen)
    missing = array.missing()
    tell(f"the array has ended; missing: {missing}")
    assert killed
    assert missing == killed
    array.submit(missing).wait()
    assert array.missing() == []
    merged = array.run("merge", "shards/*.jsonl", "-o", "merged.jsonl")
    tell(f"merged: exit code {merged.returncode}")
    plain = array.run(*SCORE, "-o", "plain.jsonl")
    tell(f"plain run: exit code {plain.returncode}")
    assert merged.returncode == plain.returncode
    return list(differences(folder / "plain.jsonl", folder / "merged.jsonl"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=int, default=16)
    run_in_folder(
        parser, lambda folder, options, tell: kill_and_merge(folder, options.shards, tell)
    )


if __name__ == "__main__":
    main()
