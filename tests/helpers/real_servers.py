"""Servers in processes of their own, on free ports of loopback: vLLM, llama-cpp-python's, and
`seqloss serve`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx

from helpers.program import ROOT

SECONDS_TO_START = 900
MAX_MODEL_LEN = 512
"""Of vLLM in these tests."""


def program_of(variable: str, default: str, name: str) -> str:
    """A program of an environment that `make test-servers` makes, or that a variable names."""
    path = ROOT / os.environ.get(variable, default) / "bin" / name
    assert path.exists(), f"{path} is not there: make test-servers makes it"
    return str(path)


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@contextmanager
def running(
    words: list[str], url: str, log: Path, path: str = "/health", **variables: str
) -> Iterator[str]:
    """Run a server until the end, and yield its URL once it answers at a path."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1"} | variables,
            cwd=ROOT,
            start_new_session=True,  # its own children end with it
        )
    try:
        _wait(process, url + path, log)
        yield url
    finally:
        _stop(process)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"no answer: {log.read_text(errors='replace')[-3000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(60)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


@contextmanager
def vllm(model: Path, log: Path, *flags: str) -> Iterator[str]:
    """A vLLM on the CPU, in float32; without a prefix cache unless `flags` ask for one."""
    port = free_port()
    cache = () if "--enable-prefix-caching" in flags else ("--no-enable-prefix-caching",)
    words = [
        program_of("VLLM_VENV", ".venv-vllm", "vllm"), "serve", str(model),
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
        "--max-model-len", str(MAX_MODEL_LEN), "--enforce-eager", *cache, *flags,
    ]  # fmt: skip
    n_cores = len(os.sched_getaffinity(0))
    variables = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # `all`, the default, fails on some machines.
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{n_cores - 1}",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with running(words, f"http://127.0.0.1:{port}", log, **variables) as url:
        yield url


@contextmanager
def serve(log: Path, *flags: str) -> Iterator[str]:
    """A `seqloss serve` of this environment."""
    port = free_port()
    words = [sys.executable, "-m", "seqloss_cli", "serve", "--port", str(port), *flags]
    with running(words, f"http://127.0.0.1:{port}", log) as url:
        yield url


@contextmanager
def llama_cpp(model: Path, log: Path, *flags: str) -> Iterator[str]:
    """A server of llama-cpp-python with a GGUF file."""
    port = free_port()
    words = [
        program_of("LLAMA_CPP_VENV", ".venv-llama-cpp", "python"), "-m", "llama_cpp.server",
        "--model", str(model), "--host", "127.0.0.1", "--port", str(port), *flags,
    ]  # fmt: skip
    with running(words, f"http://127.0.0.1:{port}", log, "/v1/models") as url:
        yield url
