"""Shared fixtures. No test needs a network, a GPU, or a file outside the repository."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from helpers.program import ROOT, Run, in_process
from helpers.schemas import hold_output

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny products wait for each other on busy cores

settings.register_profile(
    "default",
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("default")


# -- tests that take over half a second: `make quick` leaves them out ---------------------------

LONG = ROOT / "tests" / "long.txt"
BY_HAND = "# Many cases, chosen by hand:\n"
"""The line of the list before tests whose cases are short and together take seconds."""
SECONDS = 0.5


def _name(nodeid: str) -> str:
    """Of a test in whatever parameters."""
    return nodeid.partition("[")[0]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-long", action="store_true", help="write tests/long.txt anew")


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    named = set(LONG.read_text().splitlines())
    for item in items:
        if _name(item.nodeid) in named:
            item.add_marker("long")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say which tests should be in the list, or write it; a slow machine fails nobody."""
    longest: dict[str, float] = {}
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport):
            name = _name(report.nodeid)
            longest[name] = max(longest.get(name, 0.0), report.duration)
    found = sorted(name for name, seconds in longest.items() if seconds > SECONDS)
    if config.getoption("--write-long"):
        by_hand = LONG.read_text().partition(BY_HAND)[2]
        LONG.write_text("".join(f"{name}\n" for name in found) + BY_HAND + by_hand)
    elif new := set(found) - set(LONG.read_text().splitlines()):
        known = f"{len(new)} tests took over half a second and are not in tests/long.txt"
        terminalreporter.write_line(f"{known} (--write-long), such as {min(new)}")


# -- fixtures -------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_configuration_from_outside(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name in list(os.environ):
        if name.startswith("SEQLOSS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that a test asked torch for are gone after it: on busy cores threads that wait for
    each other make tiny products a hundred times slower."""
    yield
    if (torch := sys.modules.get("torch")) is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _outputs_are_held_to_their_schemas() -> Iterator[None]:
    """Results of every command that a test runs in this process; `seqloss` has them of others."""
    from typer.testing import CliRunner

    def checked(self: CliRunner, app: Any, args: Any = None, **settings: Any) -> Any:
        done = invoke(self, app, args, **settings)
        if done.exit_code in (0, 3):
            hold_output([*map(str, args or ())], done.stdout_bytes)
        return done

    invoke = CliRunner.invoke
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CliRunner, "invoke", checked)
        yield


@pytest.fixture(scope="session")
def demo() -> Any:
    """The built-in model, loaded once."""
    from seqloss_cli import ModelChoice, Scorer

    return Scorer(ModelChoice())


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`in_process`, in the repository's root."""
    monkeypatch.chdir(ROOT)
    return in_process


@pytest.fixture
def seqloss(tmp_path: Path) -> Run:
    """Run the real program in a process of its own, in an empty directory."""

    def run(
        *arguments: str | Path, stdin: bytes | None = None, cwd: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [sys.executable, "-m", "seqloss_cli", *map(str, arguments)],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            cwd=cwd or tmp_path,
            env=os.environ | {"COLUMNS": "80", "PYTHONPATH": str(ROOT)} | env,
            timeout=120,
            check=False,
        )
        if done.returncode in (0, 3):
            hold_output([*map(str, arguments)], done.stdout, cwd or tmp_path)
        return done

    return run


# -- the demo model behind HTTP --------------------------------------------------------------------


@pytest.fixture(scope="module")
def scorer() -> Any:
    """The demo model."""
    from seqloss_cli.core.policies import ModelChoice
    from seqloss_cli.scoring.scorer import Scorer

    return Scorer(ModelChoice())


@pytest.fixture(scope="module")
def served(scorer: Any) -> Iterator[Any]:
    """The same behind HTTP."""
    from helpers.services import Listening

    with Listening(scorer) as found:
        yield found
