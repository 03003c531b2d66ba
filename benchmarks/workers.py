"""Parts of the benchmark as processes of their own, so that none works in another's memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from settings import HERE, ROOT, Settings


def in_process(part: str, settings: Settings, **arguments: Any) -> dict[str, Any]:
    """What `part` hands back. Raises RuntimeError, with its last words, when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        task = {"part": part, "settings": settings.as_json(), "arguments": arguments}
        command = [sys.executable, str(HERE / "bench.py"), "--task", json.dumps(task)]
        environment = os.environ | {
            "OMP_NUM_THREADS": str(settings.threads),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        done = subprocess.run(
            [*command, "--result", str(result)],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode or not result.exists():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            sys.stderr.write(done.stderr)
            last = lines[-1] if lines else f"exit code {done.returncode}"
            raise RuntimeError(f"{part} {arguments}: {last}")
        found: dict[str, Any] = json.loads(result.read_text())
        return found


def do(task: str, result: Path) -> None:
    """What the process does that `in_process` starts."""
    asked = json.loads(task)
    settings, arguments = Settings.from_json(asked["settings"]), asked["arguments"]
    import torch

    torch.set_num_threads(settings.threads)
    found = _part(asked["part"], settings, arguments)
    result.write_text(json.dumps(found if isinstance(found, dict) else found.as_json()))


def _part(name: str, settings: Settings, arguments: dict[str, Any]) -> Any:
    if name == "documents":
        import documents

        return documents.run(settings, **arguments)
    if name in ("lm-eval", "shared"):
        import harness

        return (harness.run if name == "lm-eval" else harness.run_shared)(settings, **arguments)
    if name in ("memory", "memory_point"):
        import memory

        return (memory.run if name == "memory" else memory.point)(settings, **arguments)
    import rows

    return (rows.run_around if name == "around" else rows.run_corpus)(settings)
