"""Scoring here, through `seqloss serve`, through vLLM, and in vLLM's own process: the same rows.

All sides score the same ids of GPT-2 small's shape with random weights, in float32, each in a
process of its own, one after another in every round. Printed are tokens per second, medians of the
ratios of neighbours, the largest difference of a row's log-probability, and bytes of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SERVE, LOCAL, THROUGH_VLLM, INSIDE = "serve + client", "local", "vLLM + client", "inside vLLM"
GOALS = {
    ("documents", SERVE, LOCAL): 0.9,
    ("HellaSwag-like", SERVE, LOCAL): 0.9,
    ("documents", LOCAL, THROUGH_VLLM): 0.95,
    ("HellaSwag-like", LOCAL, THROUGH_VLLM): 2.0,
    ("documents", LOCAL, INSIDE): 0.95,
    ("HellaSwag-like", LOCAL, INSIDE): 2.0,
}
"""A side must be so many times as fast as another one."""
HELLASWAG = (12, 60, 4, 25)
LONGEST = 1000


# -- a side: a process that is told rows, and answers with seconds and log-probabilities -----------


def ours(folder: str, engine: str | None) -> Callable[[str, list[Any]], list[float]]:
    """Return a scorer of rows of ids, and of prompts with responses; through a server or not."""
    from seqloss_cli.core.policies import BatchPolicy, EngineChoice, ModelChoice, PairPolicy
    from seqloss_cli.core.records import Pair, Sample, SequenceScore
    from seqloss_cli.metrics.totals import totals_of
    from seqloss_cli.scoring.scorer import Scorer

    choice = ModelChoice(name=folder, dtype="float32")
    if engine:
        choice = ModelChoice(
            name=folder, backend="server", engine=EngineChoice(url=engine, timeout=600)
        )
    batches = BatchPolicy(share_prefix=True)
    scorers = {
        "documents": Scorer(choice, batches=batches),
        "HellaSwag-like": Scorer(choice, batches=batches, pairs=PairPolicy(marginal=False)),
    }

    def score(kind: str, rows: list[Any]) -> list[float]:
        samples = [
            Sample(str(n), "b", text=row)
            if isinstance(row, str)
            else Sample(str(n), "b", pair=Pair(*row))
            for n, row in enumerate(rows)
        ]
        found = list(scorers[kind].score(samples))
        good = [each for each in found if isinstance(each, SequenceScore)]
        if len(good) != len(found):
            raise ValueError("a row of the benchmark was rejected")
        return [float(totals_of(each).log_prob or 0.0) for each in good]

    return score


def inside_vllm(folder: str) -> Callable[[str, list[Any]], list[float]]:
    """Return the same with vLLM's own `LLM`; texts get BOS from the tokenizer, as ours do."""
    from tokenizers import Tokenizer
    from vllm import LLM, SamplingParams

    model = LLM(folder, dtype="float32", max_model_len=1024, enforce_eager=True,
                enable_prefix_caching=False, disable_log_stats=True)  # fmt: skip
    tokens = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)

    def score(kind: str, rows: list[Any]) -> list[float]:
        prompts = [tokens.encode(row if isinstance(row, str) else "".join(row)).ids for row in rows]
        firsts = [1 if isinstance(row, str) else len(tokens.encode(row[0]).ids) for row in rows]
        found = model.generate(
            [{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False
        )
        return [
            sum(
                entry[token].logprob
                for token, entry in list(zip(ids, each.prompt_logprobs, strict=True))[first:]
            )
            for ids, first, each in zip(prompts, firsts, found, strict=True)
        ]

    return score


def serve_side(folder: str, engine: str | None, inside: bool) -> None:
    """Answer each line of stdin by a line of stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not come between
    n_bytes = [0, 0]
    if engine:
        _count_bytes(n_bytes)
    score = inside_vllm(folder) if inside else ours(folder, engine)
    for line in sys.stdin:
        asked = json.loads(line)
        n_bytes[:] = [0, 0]
        start = time.perf_counter()
        found = score(asked["kind"], asked["rows"])
        seconds = time.perf_counter() - start
        print(json.dumps([seconds, found, n_bytes]), file=answers, flush=True)


def _count_bytes(n_bytes: list[int]) -> None:
    from seqloss_cli.backends.server.transport import Transport

    once = Transport._once

    def counting(self: Any, method: str, path: str, body: Any, most: int) -> Any:
        found = once(self, method, path, body, most)
        n_bytes[0] += len(body or b"")
        n_bytes[1] += len(found[2])
        return found

    Transport._once = counting  # type: ignore[method-assign]


# -- all sides ----------------------------------------------------------------------------------


class Side:
    """A side from outside."""

    def __init__(self, python: str, *words: str) -> None:
        self._process = subprocess.Popen(
            [python, str(HERE / "servers.py"), *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip

    def run(self, kind: str, rows: list[Any]) -> tuple[float, list[float], list[int]]:
        """Return seconds, log-probabilities, and bytes of JSON sent and received."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"kind": kind, "rows": rows}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("a side ended; see its last words above")
        seconds, found, n_bytes = json.loads(answer)
        return seconds, found, n_bytes

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()  # it ends by itself, and so do vLLM's own processes
        self._process.wait(120)


def environment() -> dict[str, str]:
    return os.environ | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # Else it keeps one core for other things.
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "TRANSFORMERS_VERBOSITY": "error",
    }


@contextmanager
def listening(command: list[str], url: str) -> Iterator[None]:
    """Keep a server while it is used."""
    import httpx2 as httpx

    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    try:
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"{command[:3]} did not start")
            try:
                if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait(60)


def rows_of(kind: str, number: int, scale: int) -> tuple[list[Any], int]:
    """Return the rows of a round, and the number of their tokens, BOS included."""
    from workload import prompts_with_endings, ragged, tokenizer

    rows: list[Any] = []
    for n in range(number * scale, (number + 1) * scale):
        rows += (
            ragged(LONGEST, n) if kind == "documents" else prompts_with_endings(HELLASWAG, n % 16)
        )
    texts = [row if isinstance(row, str) else "".join(row) for row in rows]
    return rows, sum(len(tokenizer().encode(text).ids) for text in texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scale", type=int, default=1, metavar="N",
                        help="N times as many rows in a round: 16 documents, 48 pairs")  # fmt: skip
    parser.add_argument("--vllm", metavar="PYTHON", help="Python of an environment with vLLM")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve_side(options.folder, options.engine, options.side == INSIDE)
        return
    from workload import checkpoint

    folder = str(checkpoint("gpt2"))
    with ExitStack() as stack:
        report(measure(start(stack, folder, options.vllm), options.rounds, options.scale))


def start(stack: ExitStack, folder: str, vllm: str | None) -> dict[str, Side]:
    """Return the sides that can be run here, all of them started."""
    ours, theirs = "http://127.0.0.1:8461", "http://127.0.0.1:8462"
    command = [sys.executable, "-m", "seqloss_cli", "serve", "-m", folder, "--dtype", "float32",
               "--port", "8461"]  # fmt: skip
    stack.enter_context(listening(command, ours))
    words = {LOCAL: (), SERVE: ("--engine", ours)}
    pythons = dict.fromkeys(words, sys.executable)
    if vllm:
        command = [str(Path(vllm).with_name("vllm")), "serve", folder, "--host", "127.0.0.1",
                   "--port", "8462", "--dtype", "float32", "--max-model-len", "1024",
                   "--no-enable-prefix-caching", "--enforce-eager"]  # fmt: skip
        stack.enter_context(listening(command, theirs))
        words |= {THROUGH_VLLM: ("--engine", f"vllm+{theirs}"), INSIDE: ()}
        pythons |= {THROUGH_VLLM: sys.executable, INSIDE: vllm}
    sides = {
        name: Side(pythons[name], "--side", name, "--folder", folder, *more)
        for name, more in words.items()
    }
    for side in sides.values():
        stack.callback(side.close)
    return sides


def measure(sides: dict[str, Side], n_rounds: int, scale: int) -> dict[str, Any]:
    """Return rates, differences and bytes of each kind of rows."""
    found: dict[str, Any] = {}
    for kind in ("documents", "HellaSwag-like"):
        rates: dict[str, list[float]] = {name: [] for name in sides}
        worst: dict[str, float] = dict.fromkeys(sides, 0.0)
        n_bytes: dict[str, list[float]] = {}
        for number in range(-1, n_rounds):  # the first one warms up
            rows, n_tokens = rows_of(kind, number % 16, scale)
            names = list(sides) if number % 2 else list(sides)[::-1]
            runs = {name: sides[name].run(kind, rows) for name in names}
            for name, (seconds, log_probs, sent) in runs.items():
                pairs = zip(log_probs, runs[LOCAL][1], strict=True)
                worst[name] = max(worst[name], *(abs(a - b) for a, b in pairs))
                if number >= 0:
                    rates[name].append(n_tokens / seconds)
                if sent[0]:
                    n_bytes[name] = [n / n_tokens for n in sent]
        found[kind] = {"rates": rates, "worst": worst, "bytes": n_bytes}
    return found


def report(found: dict[str, Any]) -> None:
    for kind, each in found.items():
        print(f"\n{kind}")
        for name, rates in each["rates"].items():
            sent = each["bytes"].get(name)
            shown = "" if sent is None else f", JSON: {sent[0]:.1f} + {sent[1]:.1f} bytes a token"
            print(f"  {name}: {statistics.median(rates):,.0f} tokens/s; a row's log-probability "
                  f"within {each['worst'][name]:.2g} nats of local{shown}")  # fmt: skip
        for (goal_kind, above, below), goal in GOALS.items():
            if goal_kind == kind and above in each["rates"] and below in each["rates"]:
                pairs = zip(each["rates"][above], each["rates"][below], strict=True)
                ratios = sorted(a / b for a, b in pairs)
                middle = statistics.median(ratios)
                word = "met" if middle >= goal else "missed"
                print(f"  {above} / {below}: {middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}), "
                      f"goal {goal:g}: {word}")  # fmt: skip


if __name__ == "__main__":
    main()
