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
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ray_kills import MODEL, differences, environment, make_rows, program

SCORE = ("score", "rows.parquet", "-m", MODEL, "--threads", 1)
_TASK = """SLURM_ARRAY_TASK_ID={{}} {command} --shard auto/{of} -o shards/{{}}.jsonl --resume \
2>>array.log & echo $! >pids/{{}}.new && mv pids/{{}}.new pids/{{}} && wait $! || true"""
_TORN = 100
"""Bytes that a lost machine takes with it."""


class Array:
    """An array of tasks, of which each is a shard."""

    def __init__(self, folder: Path, of: int, tell: Callable[..., None]) -> None:
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


def kill_and_merge(folder: Path, n_shards: int, tell: Callable[..., None]) -> list[str]:
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
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--folder", type=Path, help="An empty one, kept; else a temporary one.")
    options = parser.parse_args()
    began = time.monotonic()

    def tell(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        make_rows(folder / "rows.parquet", options.rows)
        tell(f"{options.rows:,} rows, {(folder / 'rows.parquet').stat().st_size:,} bytes")
        found = kill_and_merge(folder, options.shards, tell)
        tell(f"{len(found)} differences")
        print(*found[:20], sep="\n")
        assert not found


if __name__ == "__main__":
    main()
