"""`seqloss` with a stub for the model: losses cost nothing, and all else is the real program.

    python benchmarks/stub_engine.py score rows.jsonl --shard 0/8 -o 0.jsonl

The backend takes the place of torch's; losses are made of ids alone. With STUB_TOKENS_PER_SECOND
the tokens that it is fed are counted as time that never passes; with STUB_DIES_AT the process is
killed (SIGKILL) when so many seconds of that time are over. STUB_REPORT names a file that gets a
line of JSON when the process ends or dies: tokens, windows, seconds, peak of memory.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from seqloss_cli.backends import opening
from seqloss_cli.core.backend import Batch, Capabilities, OpenedModel, Requested, TokenScores
from seqloss_cli.core.policies import BatchPolicy, ModelChoice, WindowPolicy
from seqloss_cli.models.checkpoint import load_tokenizer_only, window_policy

_BEGAN = time.perf_counter()


class StubEngine:
    """A backend whose losses are sixteenths made of a target and the id before it."""

    warnings: tuple[str, ...] = ()
    n_too_large = 0
    capabilities = Capabilities(longest_packed=1 << 30, prefetch_helps=False)

    def __init__(self, name: str) -> None:
        self._name, self._rate = name, float(os.environ.get("STUB_TOKENS_PER_SECOND", "inf"))
        self._dies_at = float(os.environ.get("STUB_DIES_AT", "inf"))
        self.n_tokens = self.n_windows = 0

    @property
    def seconds(self) -> float:
        """Time that the tokens so far would have taken."""
        return self.n_tokens / self._rate

    def vocab_size(self) -> int:
        return 4096

    def describe(self) -> dict[str, Any]:
        return {"model": self._name, "weights_sha256": "0" * 64, "dtype": "float32"}

    def score(self, batch: Batch, requested: Requested) -> TokenScores:
        self.n_tokens += batch.n_fed
        self.n_windows += len(batch.parts)
        if self.seconds >= self._dies_at:
            self.report(died=True)
            os.kill(os.getpid(), signal.SIGKILL)
        before = batch.input_ids[batch.source_positions]
        return TokenScores(0.0625 * ((31 * batch.targets + 17 * before) % 97))

    def report(self, died: bool = False) -> None:
        """Append what this process did to the file of reports."""
        if (path := os.environ.get("STUB_REPORT")) is None:
            return
        used = resource.getrusage(resource.RUSAGE_SELF)
        found = {
            "died": died, "tokens": self.n_tokens, "windows": self.n_windows,
            "served": self.seconds if self._rate < float("inf") else None,
            "wall": time.perf_counter() - _BEGAN, "cpu": used.ru_utime + used.ru_stime,
            "peak_mb": used.ru_maxrss / 1000,
        }  # fmt: skip
        with Path(path).open("a") as file:
            file.write(json.dumps(found) + "\n")


ENGINES: list[StubEngine] = []
"""Those of this process."""


def open_model(
    choice: ModelChoice, context: int | None, stride: int | None, batches: BatchPolicy, *_: object
) -> OpenedModel:
    """In place of `backends.torch.opening`: the tokenizer is real."""
    loaded = load_tokenizer_only(choice, spare_torch=True)
    windows: WindowPolicy = window_policy(loaded, context, stride)
    engine = StubEngine(choice.name)
    ENGINES.append(engine)
    return OpenedModel(loaded, windows, lambda: (engine, batches))


def main() -> None:
    """Run a command of the program."""
    from seqloss_cli.cli.main import main as program

    # Under its own name: `python FILE` would make a second module of this one.
    opening.BACKENDS["torch"] = "stub_engine"
    import stub_engine

    try:
        program()
    finally:
        for engine in stub_engine.ENGINES or [StubEngine("none")]:
            engine.report()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    main()
