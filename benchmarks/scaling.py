"""Costs measured here, and what they come to on many GPUs: docs/scaling.md.

    python benchmarks/scaling.py costs     # a minute; writes into benchmarks/scaling.json
    python benchmarks/scaling.py rates     # a few minutes; the same
    python benchmarks/scaling.py tables    # prints the tables of the page

Costs around the model are CPU time of one process on the stub engine (stub_engine.py); rates are
those of 1, 2 and 4 shards at a time (xargs -P), with the built-in model in each process, or
with `seqloss serve` in one that all of them ask.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cost_model import Cluster, Costs, Prediction, Workload, predict, simulated
from machine import describe
from many_rows import WORDS

HERE = Path(__file__).resolve().parent
FOUND = HERE / "scaling.json"
WORKERS = (1, 2, 4)
SHORT, LONG = (4000, 6), (400, 300)
"""Rows of the files that costs are fitted to, and the words of each."""
MOST_LOAD = 1.0
"""Load of the machine, before, with which wall time tells anything."""
RATE_ROWS = (3000, 60)
WORKLOADS = (
    Workload("10^9 tokens, rows of 1,000", 1e9, 1e6, 8e9),
    Workload("10^12 tokens, rows of 1,000", 1e12, 1e9, 8e9),
    Workload("10^9 rows of 20 tokens", 2e10, 1e9, 8e9),
    Workload("10^9 tokens, 400 billion parameters", 1e9, 1e6, 400e9, gpus_per_replica=8),
)
GPUS = (8, 1000)


# -- measured ----------------------------------------------------------------------------------


def write(path: Path, n_rows: int, n_words: int) -> int:
    """Write rows of JSONL of so many words; returns the words of all."""
    words = [WORDS[n % len(WORDS)] for n in range(n_words)]
    with path.open("w") as file:
        file.writelines(
            json.dumps({"id": f"doc-{n}", "text": " ".join(words)}) + "\n" for n in range(n_rows)
        )
    return n_rows * n_words


class Bench:
    """Runs the program in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write(folder / "few.jsonl", 16, 6)

    def stub(self, *arguments: str) -> tuple[float, dict[str, Any]]:
        """Return CPU seconds of a run on the stub engine, and its report."""
        report = self.folder / "report"
        report.unlink(missing_ok=True)
        command = [sys.executable, str(HERE / "stub_engine.py"), *arguments]
        self._run(command, {"STUB_REPORT": str(report)})
        found: dict[str, Any] = json.loads(report.read_text())
        return float(found["cpu"]), found

    def _run(self, command: list[str], environment: dict[str, str]) -> None:
        subprocess.run(
            command,
            cwd=self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", **environment},
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=True,
        )

    def around(self, name: str) -> dict[str, float]:
        """Return what a file costs without a model: seconds and bytes, start-up in them."""
        out, bare = self.folder / f"{name}.out", self.folder / f"{name}.bare"
        source = f"{name}.jsonl"
        score, report = self.stub("score", source, "-o", f"{out}.jsonl", "--force")
        self.stub("score", source, "--no-text", "--no-tokens", "-o", f"{bare}.jsonl", "--force")
        lines = Path(f"{out}.jsonl").read_bytes().splitlines(keepends=True)
        kept = self.folder / f"{name}.kept.jsonl"
        Path(f"{kept}.partial").write_bytes(b"".join(lines[:-1]))  # all rows, without totals
        resume, _ = self.stub("score", source, "-o", str(kept), "--resume")
        kept.unlink()
        shards = [str(self.folder / f"{name}.{n}.jsonl") for n in range(2)]
        for n, shard in enumerate(shards):
            self.stub("score", source, "--shard", f"{n}/2", "-o", shard, "--force")
        merged = str(self.folder / f"{name}.merged.jsonl")
        merge, _ = self.stub("merge", *shards, "-o", merged, "--force")
        return {
            "score": score, "resume": resume, "merge": merge, "rows": report["windows"],
            "tokens": report["tokens"], "bytes": Path(f"{out}.jsonl").stat().st_size,
            "bare_bytes": Path(f"{bare}.jsonl").stat().st_size,
        }  # fmt: skip

    def costs(self) -> Costs:
        """Return costs of a row and of a token, fitted to short rows and long ones."""
        write(self.folder / "short.jsonl", *SHORT)
        write(self.folder / "long.jsonl", *LONG)
        few, short, long = (self.around(name) for name in ("few", "short", "long"))

        def fitted(what: str) -> tuple[float, float]:
            (r1, t1, y1), (r2, t2, y2) = (
                (each["rows"], each["tokens"], each[what] - few[what]) for each in (short, long)
            )
            determinant = r1 * t2 - r2 * t1
            return (y1 * t2 - y2 * t1) / determinant, (r1 * y2 - r2 * y1) / determinant

        (row, token), (reread, reread_token), (merge, merge_token), (size, token_size) = map(
            fitted, ("score", "resume", "merge", "bytes")
        )
        bare = (short["bare_bytes"] - few["bare_bytes"]) / (short["rows"] - few["rows"])
        return Costs(
            few["score"], row, token, reread, reread_token, merge, merge_token, size, token_size,
            bare,
        )  # fmt: skip

    def rates(self, engine: str, extra: list[str], server: int | None = None) -> dict[str, Any]:
        """Return tokens per second of 1, 2 and 4 shards at a time, start-up taken off: of CPU time,
        that of a server's process counted, and of wall time."""
        write(self.folder / "rows.jsonl", *RATE_ROWS)
        found: dict[str, Any] = {"engine": engine, "load": os.getloadavg()[0]}
        start, start_cpu, _ = self._shards("few.jsonl", 1, extra, server)
        for n in WORKERS:
            seconds, cpu, tokens = self._shards("rows.jsonl", n, extra, server)
            found[str(n)] = {
                "tokens_per_cpu_s": tokens / (cpu - n * start_cpu),
                "tokens_per_s": tokens / (seconds - start),
            }
        return found | {"start_cpu_s": start_cpu}

    def _shards(
        self, name: str, n: int, extra: list[str], server: int | None
    ) -> tuple[float, float, int]:
        """Return the wall and CPU seconds of n shards at a time, as xargs runs them, and their
        tokens."""
        for old in self.folder.glob("shard-*"):
            old.unlink()
        program = f"{sys.executable} -m seqloss_cli score {name} {' '.join(extra)}"
        line = f"{program} --shard {{}}/{n} -o shard-{{}}.jsonl --no-text"
        began, cpu = time.perf_counter(), _cpu(server)
        self._run(["sh", "-c", f"seq 0 {n - 1} | xargs -P {n} -I{{}} {line}"], {})
        seconds, cpu = time.perf_counter() - began, _cpu(server) - cpu
        ends = [json.loads(p.read_bytes().splitlines()[-1]) for p in self.folder.glob("shard-*")]
        return seconds, cpu, sum(int(each["n_tokens"]) for each in ends)


def _cpu(server: int | None) -> float:
    """Return the CPU seconds of processes that were waited for, and of one that runs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = used.ru_utime + used.ru_stime
    if server is not None:
        fields = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()
        own += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own


def measure(what: str) -> dict[str, Any]:
    """Return costs or rates, measured here, with the machine."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        if what == "costs":
            return {"costs": asdict(bench.costs()), "machine": describe(1)}
        rates = [bench.rates("torch", ["--model", "demo", "--threads", "1"])]
        with Served(Path(folder)) as served:
            extra = ["--model", "demo", "--engine", served.url]
            rates.append(bench.rates("seqloss serve", extra, served.pid))
    return {"rates": rates, "machine": describe(1)}


class Served:
    """`seqloss serve` of the built-in model on loopback, while a block lasts."""

    url: str
    pid: int

    def __init__(self, folder: Path) -> None:
        self._log = folder / "serve.log"

    def __enter__(self) -> Served:
        command = [sys.executable, "-m", "seqloss_cli", "serve", "-m", "demo", "--port", "0"]
        self._process = subprocess.Popen(
            command, stderr=self._log.open("w"), env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        self.pid = self._process.pid
        for _ in range(1200):
            time.sleep(0.1)
            for word in self._log.read_text().split():
                if word.startswith("http://127"):
                    self.url = word.rstrip(",.;:")
                    return self
        self._process.terminate()
        raise RuntimeError(self._log.read_text())

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


# -- tables ------------------------------------------------------------------------------------


def tables(found: dict[str, Any], simulates: bool = True) -> Iterator[str]:
    """Yield the tables of docs/scaling.md, a line each; `simulates` those that take longer, too."""
    costs = Costs(**found["costs"])
    yield from _costs_table(costs)
    yield ""
    yield from _rates_table(found["rates"])
    yield ""
    yield from _predictions(costs)
    if simulates:
        yield ""
        yield from _checks(costs)


def _costs_table(costs: Costs) -> Iterator[str]:
    yield "| step | of a row | of a token |"
    yield "|---|---|---|"
    micro = [
        ("reading, tokenizing, totals, writing", costs.row, costs.token),
        ("a row that `--resume` keeps", costs.reread_row, costs.reread_token),
        ("`merge`", costs.merge_row, costs.merge_token),
    ]
    for name, row, token in micro:
        yield f"| {name} | {1e6 * row:.0f} µs | {1e6 * token:.2f} µs |"
    yield f"| results, JSONL | {costs.bytes_row:.0f} bytes | {costs.bytes_token:.1f} bytes |"
    yield f"| with `--no-text --no-tokens` | {costs.bare_bytes_row:.0f} bytes | |"


def _rates_table(rates: list[dict[str, Any]]) -> Iterator[str]:
    heads = [f"{n} at a time" for n in WORKERS]
    yield "| engine | start, CPU s | tokens per CPU second | to it: " + " | ".join(heads) + " |"
    yield "|---" * (3 + len(WORKERS)) + "|"
    for each in rates:
        some = [each[str(n)] for n in WORKERS]
        one = some[0]["tokens_per_cpu_s"]
        ratios = " | ".join(f"{each['tokens_per_cpu_s'] / one:.2f}" for each in some)
        yield f"| {each['engine']} | {each['start_cpu_s']:.1f} | {one:,.0f} | {ratios} |"
        # Others' work on the machine would be in wall time.
        if each["load"] < MOST_LOAD:
            one = some[0]["tokens_per_s"]
            ratios = " | ".join(f"{each['tokens_per_s'] / one:.2f}" for each in some)
            yield f"| {each['engine']}, wall time | | {one:,.0f} | {ratios} |"


def _predictions(costs: Costs) -> Iterator[str]:
    yield (
        "| work | GPUs | shards | scoring | GPU / host / start-up / tail | lines, one file "
        "| merge | largest | output | GETs | price |"
    )
    yield "|---" * 11 + "|"
    for work in WORKLOADS:
        for gpus in GPUS:
            found = predict(work, Cluster(gpus), costs)
            yield "| " + " | ".join(_cells(work, gpus, found)) + " |"


def _cells(work: Workload, gpus: int, found: Prediction) -> Iterator[str]:
    yield work.name
    yield f"{gpus:,}"
    yield f"{found.shards:,}"
    yield shown(found.score_s)
    parts = found.gpu_s, found.host_s, found.start_s, found.tail_s
    yield " / ".join(f"{each / found.score_s:.0%}" for each in parts)
    yield shown(found.count_s)
    yield shown(found.merge_s)
    yield found.bottleneck
    yield size(found.out_bytes)
    yield f"{found.requests:,.0f}"
    yield f"${found.dollars:,.0f}"


RISKS = (
    ("as above", 1.0, 1.0),
    ("failures x 20, stragglers x 5", 20.0, 5.0),
)


def _checks(costs: Costs) -> Iterator[str]:
    yield "| work | GPUs | risks | formula | 20 simulated runs: mean, longest | mean / formula |"
    yield "|---" * 6 + "|"
    for work in WORKLOADS:
        for gpus in GPUS:
            for name, failures, stragglers in RISKS:
                plain = Cluster(gpus)
                cluster = replace(
                    plain,
                    failures=plain.failures * failures,
                    stragglers=plain.stragglers * stragglers,
                )
                formula = predict(work, cluster, costs).score_s
                n = 20 if predict(work, cluster, costs).shards < 50_000 else 3
                average, longest = simulated(work, cluster, costs, n)
                yield (
                    f"| {work.name} | {gpus:,} | {name} | {shown(formula)} | {shown(average)}, "
                    f"{shown(longest)} | {average / formula:.2f} |"
                )


def shown(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def size(n_bytes: float) -> str:
    """Return a size in the unit that suits it."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= length:
            return f"{n_bytes / length:.1f} {unit}"
    return f"{n_bytes:.0f} bytes"


def main() -> None:
    """Measure, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("costs", "rates", "tables"))
    what, found = parser.parse_args().what, json.loads(FOUND.read_text()) if FOUND.exists() else {}
    if what == "tables":
        print("\n".join(tables(found)))
    else:
        FOUND.write_text(json.dumps(found | measure(what), indent=1) + "\n")


if __name__ == "__main__":
    main()
