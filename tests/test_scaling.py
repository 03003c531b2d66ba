"""docs/scaling.md: its tables are the formula's, and the formula is near what is simulated."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from helpers.program import ROOT
from seqloss_cli.backends.windows import plan_windows
from seqloss_cli.inputs import remote
from seqloss_cli.results import sinks

BENCHMARKS = ROOT / "benchmarks"
FOUND: Any = json.loads((BENCHMARKS / "scaling.json").read_text())


@pytest.fixture
def scaling() -> Iterator[Any]:
    """The script of the page."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import scaling as found

        yield found
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_the_tables_of_the_page_are_those_of_the_script(scaling: Any) -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    made = list(scaling.tables(FOUND, simulates=False))
    assert sum(line.startswith("|") for line in made) >= 20
    for line in made:
        assert line in page.splitlines()


def test_simulated_runs_take_what_the_formula_says(scaling: Any) -> None:
    costs = scaling.Costs(**FOUND["costs"])
    for work in scaling.WORKLOADS[::2]:
        cluster = replace(scaling.Cluster(8), failures=0.2, stragglers=0.1)
        formula = scaling.predict(work, cluster, costs).score_s
        found, _ = scaling.simulated(work, cluster, costs, 5)
        assert found == pytest.approx(formula, rel=0.2)


def test_without_risks_a_run_is_its_work_and_the_last_shard(scaling: Any) -> None:
    costs = scaling.Costs(**FOUND["costs"])
    work = scaling.WORKLOADS[0]
    safe = replace(scaling.Cluster(8), failures=0.0, stragglers=0.0)
    found = scaling.predict(work, safe, costs)
    # By hand: forward passes are 2 operations a parameter and token.
    assert found.gpu_s == pytest.approx(2 * 8e9 * (1e9 - 1e6) / (989e12 * 0.4) / 8)
    assert found.host_s == pytest.approx((1e6 * costs.row + 1e9 * costs.token) / 8)
    assert found.failures_s == 0
    exact, longest = scaling.simulated(work, safe, costs, 2)
    assert exact == longest == pytest.approx(found.score_s - found.tail_s)


def test_windows_overlap_as_rule_7_says(scaling: Any) -> None:
    for n in (2, 5, 8, 9, 30):
        work = replace(scaling.WORKLOADS[0], tokens=n, rows=1, context=4, stride=2)
        planned = sum(window.n_fed for window in plan_windows(n, 4, 2, False))
        assert work.fed * n == pytest.approx(planned)


def test_the_figures_of_the_code_are_those_of_the_model(scaling: Any) -> None:
    model: Any = sys.modules["cost_model"]
    assert (model.BLOCK, model.SYNC) == (remote.BLOCK, sinks.SYNC_SECONDS)
