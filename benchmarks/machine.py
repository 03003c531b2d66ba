"""What the figures were measured on and with."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from settings import ROOT

_PACKAGES = (
    "seqloss", "torch", "transformers", "tokenizers", "numpy", "lm_eval", "minicons", "accelerate",
)  # fmt: skip
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile")


def describe(threads: int) -> dict[str, Any]:
    lines = _lines("/proc/cpuinfo")
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    memory = next((line for line in _lines("/proc/meminfo") if "MemTotal" in line), "MemTotal: 0")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": next((x.split(":")[1].strip() for x in lines if "model name" in x), "?"),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gb": round(int(memory.split()[1]) * 1024 / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": _git("rev-parse", "--short", "HEAD"),
        "changed_files": len(_git("status", "--porcelain", "--untracked-files=no").splitlines()),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()
