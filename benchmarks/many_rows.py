"""Millions of rows through the real program, on a stub engine, with failures drawn at random.

    python benchmarks/many_rows.py --rows 10000000 --shards 4 --workers 2

Shards are processes of their own, as a scheduler would start them. Each is killed at random moments
of the time that the model would have taken, the file of some is torn as a lost machine leaves it,
and the same command with `--resume` goes on. Then `seqloss merge` joins them, and the totals are
held to those that follow from the distinct texts. Peaks of memory are those of each process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WORDS = (
    *("the", "of", "and", "a", "to", "in", "is", "you", "that", "it", "he", "was", "for", "on"),
    *("are", "as", "with", "his", "they", "at", "be", "this", "have", "from", "or", "one", "had"),
)
DISTINCT, SAME_ID_EVERY = 997, 100_003
"""Texts that come again and again; and of so many rows one has an id that came before."""


def contents(ids: bool) -> list[dict[str, Any]]:
    """Return the distinct contents of rows: texts of 3 to 12 words, or as many ids."""
    draw = random.Random(1)
    lengths = [draw.randint(3, 12) for _ in range(DISTINCT)]
    if ids:
        return [{"input_ids": [0, *draw.choices(range(300, 4000), k=k)]} for k in lengths]
    return [{"text": " ".join(draw.choices(WORDS, k=k))} for k in lengths]


def write_rows(path: Path, n_rows: int, ids: bool) -> None:
    """Write rows of JSONL whose contents are those of `contents` in turn."""
    some = [json.dumps(content)[1:] for content in contents(ids)]
    with path.open("w") as file:
        file.writelines(
            f'{{"id":"doc-{7 if n % SAME_ID_EVERY == 7 else n}",{some[n % DISTINCT]}\n'
            for n in range(n_rows)
        )


def n_same_ids(n_rows: int) -> int:
    """Return how many of these rows have an id that came before."""
    return len(range(7, n_rows, SAME_ID_EVERY)) - 1 if n_rows > 7 else 0


def expected(folder: Path, n_rows: int, ids: bool) -> dict[str, Any]:
    """Return the totals that follow from the distinct texts, scored once."""
    path, out = folder / "distinct.jsonl", folder / "distinct.out.jsonl"
    write_rows(path, DISTINCT, ids)
    _program(["score", str(path), "-o", str(out), "--force", "--no-tokens", "--no-text"], {})
    rows = [row for row in map(json.loads, out.open()) if row["type"] == "sequence"]
    times = [len(range(n, n_rows, DISTINCT)) for n in range(DISTINCT)]
    found: dict[str, Any] = {"n_sequences": n_rows, "n_rejected": 0}
    for name in ("n_tokens", "n_scored") + (() if ids else ("n_bytes",)):
        found[name] = sum(n * row[name] for n, row in zip(times, rows, strict=True))
    total = sum(n * Fraction(row["total_loss"]) for n, row in zip(times, rows, strict=True))
    return found | {"total_loss": float(total)}


def _program(arguments: list[str], environment: dict[str, str], out: Any = None) -> int:
    """Run the program with the stub; returns its exit code, negative where a signal ended it."""
    return subprocess.run(
        [sys.executable, str(HERE / "stub_engine.py"), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", **environment},
        stdout=out,
        stderr=subprocess.DEVNULL,
        check=False,
    ).returncode


class Shards:
    """Runs shards as a scheduler does that starts again what was lost."""

    def __init__(self, path: Path, folder: Path, options: argparse.Namespace) -> None:
        self.path, self.folder, self.options = path, folder, options
        self.attempts: list[dict[str, Any]] = []

    def name(self, index: int) -> Path:
        return self.folder / f"{index}.jsonl"

    def run(self, index: int) -> None:
        """Run one shard until it is whole."""
        draw, rate = random.Random(self.options.seed * 1000 + index), self.options.rate
        for attempt in range(100):
            # A straggler is a machine, and the next attempt is on another one.
            slow = self.options.slowness if draw.random() < self.options.stragglers else 1.0
            dies_at = draw.expovariate(1 / self.options.mean_life)
            report = self.folder / f"{index}.{attempt}.report"
            environment = {
                "STUB_TOKENS_PER_SECOND": str(rate / slow),
                "STUB_DIES_AT": str(dies_at if attempt < self.options.most_deaths else 1e18),
                "STUB_REPORT": str(report),
            }
            shard = ["--shard", f"{index}/{self.options.shards}", "-o", str(self.name(index))]
            rows = ["--no-tokens", "--no-text", "--resume"]
            code = _program(["score", str(self.path), *shard, *rows], environment)
            found = json.loads(report.read_text())
            lost = self._tear(index, draw) if code < 0 and draw.random() < 0.5 else 0
            kind = "whole" if not code else "node lost" if lost else "preempted"
            self.attempts.append(found | {"shard": index, "slow": slow, "end": kind, "torn": lost})
            print(json.dumps(self.attempts[-1]), flush=True)
            if not code:
                return
            if code > 0:
                raise RuntimeError(f"shard {index} ended with {code}")
        raise RuntimeError(f"shard {index} never came to its end")

    def _tear(self, index: int, draw: random.Random) -> int:
        """Cut the file as a machine leaves it that lost its power: returns the bytes."""
        partial = Path(f"{self.name(index)}.partial")
        size = partial.stat().st_size if partial.exists() else 0
        n = min(draw.randrange(1, 1 << 20), max(0, size - 4096))
        if n:
            os.truncate(partial, size - n)
            if draw.random() < 0.5:  # the length is there again, and the bytes are not
                os.truncate(partial, size)
        return n


def main() -> None:
    """Run the simulation, and print what it found as JSON."""
    options = _options()
    folder = options.folder / f"rows-{options.rows}"
    folder.mkdir(parents=True, exist_ok=True)
    for old in () if options.keep else folder.glob("*.jsonl*"):
        old.unlink()
    path = options.folder / f"rows-{options.rows}.jsonl"
    if not path.exists():
        write_rows(path, options.rows, options.ids)
    shards, began = Shards(path, folder, options), time.perf_counter()
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(shards.run, range(options.shards)))
    scored = time.perf_counter() - began
    found = _merged(shards, options)
    whole = expected(options.folder, options.rows, options.ids)
    differences = {k: [v, found["totals"].get(k)] for k, v in whole.items()}
    found["differences"] = {k: v for k, v in differences.items() if v[0] != v[1]}
    found |= {"rows": options.rows, "shards": options.shards, "scored_s": scored}
    found |= {"attempts": shards.attempts, "same_ids": n_same_ids(options.rows)}
    (options.folder / f"rows-{options.rows}.json").write_text(json.dumps(found, indent=1))
    print(json.dumps({k: v for k, v in found.items() if k != "attempts"}, indent=1))
    sys.exit(bool(found["differences"]))


def _merged(shards: Shards, options: argparse.Namespace) -> dict[str, Any]:
    """Merge all shards, and return the totals with time and peak of that."""
    report, out = shards.folder / "merge.report", shards.folder / f"merged.{options.format}"
    report.unlink(missing_ok=True)
    out.unlink(missing_ok=True)
    names = [str(shards.name(n)) for n in range(options.shards)]
    code = _program(["merge", *names, "-o", str(out)], {"STUB_REPORT": str(report)})
    if code:
        raise RuntimeError(f"merge ended with {code}")
    used = json.loads(report.read_text())
    sizes = {"shards_mb": sum(Path(each).stat().st_size for each in names) / 1e6}
    sizes["merged_mb"] = out.stat().st_size / 1e6
    return {"totals": _totals(out), "merge": used, **sizes}


def _totals(path: Path) -> dict[str, Any]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        totals: dict[str, Any] = json.loads(parquet.read_metadata(path).metadata[b"seqloss.totals"])
        return totals
    return _last_line(path)


def _last_line(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 16)))
        found: dict[str, Any] = json.loads(file.read().splitlines()[-1])
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument(
        "--ids", action="store_true", help="rows of ids, which cost less than texts"
    )
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2, help="shards at a time")
    parser.add_argument("--rate", type=float, default=20_000, help="tokens per second of the model")
    parser.add_argument("--mean-life", type=float, default=600, help="seconds between failures")
    parser.add_argument("--most-deaths", type=int, default=3, help="of one shard")
    parser.add_argument("--stragglers", type=float, default=0.1, help="share of attempts")
    parser.add_argument("--slowness", type=float, default=3, help="of a straggler")
    parser.add_argument("--keep", action="store_true", help="go on with what is there")
    parser.add_argument("--format", choices=("jsonl", "parquet"), default="jsonl")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=HERE / ".cache")
    return parser.parse_args()


if __name__ == "__main__":
    main()
