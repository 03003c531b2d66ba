"""Score a Parquet file on a Ray cluster of this machine, kill a worker, a node and the driver
on the way, and compare what is merged with a plain run: `python tools/ray_kills.py --rows 1000000`.

The cluster is a real one of several raylets (`ray.cluster_utils.Cluster`), the model a checkpoint
of samples/: all is what a run on many machines does, but for the network.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "samples" / "checkpoints" / "step-600"
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "some", "dogs", "in", "sun"]
NEAR = 1e-4
"""Nats between losses of one token in two batches: rule 11 of docs/numbers.md, in float32."""
_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback alone
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "300",
    "OMP_NUM_THREADS": "1",
}


def program(*words: object) -> list[str]:
    """The command line of the program, from this checkout."""
    return [sys.executable, "-m", "seqloss_cli", *map(str, words)]


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, **_ENVIRONMENT, "PYTHONPATH": path}


def make_rows(path: Path, n: int) -> None:
    """Write short rows, of which every thousandth has no text."""
    import pyarrow as pa
    import pyarrow.parquet

    choose = random.Random(0)
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    with pa.parquet.ParquetWriter(path, schema) as out:
        for at in range(0, n, 5000):
            numbers = range(at, min(at + 5000, n))
            texts = [
                None if k % 1000 == 999 else " ".join(choose.choices(WORDS, k=choose.randint(1, 4)))
                for k in numbers
            ]
            out.write_table(pa.table({"id": [f"row-{k}" for k in numbers], "text": texts}, schema))


@contextmanager
def cluster(n_nodes: int) -> Iterator[Any]:
    """A head with a CPU for reading, and nodes with a CPU each, for a worker."""
    os.environ.update(environment())
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        made.nodes = [made.add_node(num_cpus=1) for _ in range(n_nodes)]
        yield made
    finally:
        made.shutdown()


class Driver:
    """A distributed run in a process of its own."""

    def __init__(self, folder: Path, *words: object) -> None:
        self.folder = folder
        self.log = (folder / "driver.log").open("ab")
        self.process = subprocess.Popen(
            program(*words), cwd=folder, env=environment(), stdout=self.log, stderr=self.log
        )

    def shards(self, ending: str = "jsonl") -> list[Path]:
        return sorted(self.folder.glob(f"*.shards/*.{ending}"))

    def wait_for_shards(self, n: int, seconds: float = 1800) -> None:
        """Wait until so many are whole."""
        end = time.monotonic() + seconds
        while len(self.shards()) < n:
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"{n} shards never came: {self.said()}")
            time.sleep(0.1)

    def worker(self) -> int:
        """Return the process of a worker that has a shard now."""
        while True:
            for path in self.shards("tries"):
                try:
                    pid = int(json.loads(path.read_text().splitlines()[-1])["pid"])
                    os.kill(pid, 0)
                except (OSError, ValueError, IndexError):
                    continue  # it just ended
                return pid
            time.sleep(0.05)

    def end(self) -> int:
        code = self.process.wait()
        self.log.close()
        return code

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def said(self) -> str:
        return (self.folder / "driver.log").read_text(errors="replace")


def kill_all_kinds(
    made: Any, folder: Path, words: Sequence[object], tell: Callable[[str], None]
) -> int:
    """Run the command, and kill a worker, a node and the driver; returns the second run's code."""
    driver = Driver(folder, *words)
    driver.wait_for_shards(2)
    os.kill(pid := driver.worker(), signal.SIGKILL)
    tell(f"{len(driver.shards())} shards whole: worker {pid} killed")
    driver.wait_for_shards(5)
    made.remove_node(made.nodes[0], allow_graceful=False)
    tell(f"{len(driver.shards())} shards whole: a node killed")
    driver.wait_for_shards(7)
    made.add_node(num_cpus=1)
    tell(f"{len(driver.shards())} shards whole: a node added")
    driver.wait_for_shards(10)
    driver.kill()
    tell(f"{len(driver.shards())} shards whole: the driver killed")
    # At once: workers of the killed driver may have their files still.
    return Driver(folder, *words).end()


def differences(plain: Path, merged: Path) -> Iterator[str]:
    """Yield what is not the same in two JSONL files of results, but the last digits of losses."""
    with plain.open() as one, merged.open() as other:
        for number, (a, b) in enumerate(zip(one, other, strict=True), start=1):
            if a != b:
                yield from _row_differences(number, json.loads(a), json.loads(b))


def _row_differences(number: int, a: dict[str, Any], b: dict[str, Any]) -> Iterator[str]:
    own = ("started_at", "distributed", "threads") if a["type"] == "run" else ()
    for key in {**a, **b}:
        one, other = a.get(key), b.get(key)
        if key not in own and not _near(one, other, a["type"] == "totals"):
            yield f"line {number}: {key} {one!r:.60} and {other!r:.60}"


def _near(one: Any, other: Any, is_sum: bool) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        # Sums to a millionth; rates of them, too.
        return abs(one - other) <= (1e-6 * abs(one) if is_sum else NEAR * max(1, abs(one)))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(
            _near(x, y, is_sum) for x, y in zip(one, other, strict=True)
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_near(one[k], other[k], is_sum) for k in one)
    return bool(one == other)


Tell = Callable[[str], None]
"""Prints a line with the seconds since the start."""


def kill_all_kinds_and_merge(folder: Path, tell: Tell) -> list[str]:
    """Run a cluster on `rows.parquet`, and return what is not the same in a plain run."""
    score = ("score", "rows.parquet", "-m", MODEL, "--threads", 1)
    with cluster(2) as made:
        words = (*score, "-o", "merged.jsonl", "--resume", "--distribute", "ray",
                 "--ray-address", made.address, "--workers", 2)  # fmt: skip
        code = kill_all_kinds(made, folder, words, tell)
        tell(f"merged: exit code {code}")
    print((folder / "driver.log").read_text())
    plain = subprocess.run(
        program(*score, "-o", "plain.jsonl", "--force"), cwd=folder, env=environment()
    )
    tell(f"plain run: exit code {plain.returncode}")
    assert code == plain.returncode == 3
    return list(differences(folder / "plain.jsonl", folder / "merged.jsonl"))


def run_in_folder(
    parser: argparse.ArgumentParser,
    run: Callable[[Path, argparse.Namespace, Tell], list[str]],
) -> None:
    """Make rows in a folder, and print what `run` finds there that is not the same."""
    parser.add_argument("--rows", type=int, default=1_000_000)
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
        found = run(folder, options, tell)
        tell(f"{len(found)} differences")
        print(*found[:20], sep="\n")
        assert not found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    run_in_folder(parser, lambda folder, _, tell: kill_all_kinds_and_merge(folder, tell))


if __name__ == "__main__":
    main()
