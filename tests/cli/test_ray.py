"""A real Ray on this machine: workers, nodes and drivers are killed (`make test-ray`)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ray_kills as k
from helpers.services import Listening
from seqloss_cli.core.policies import ModelChoice
from seqloss_cli.scoring.scorer import Scorer

pytestmark = pytest.mark.ray
SCORE = ("score", "rows.parquet", "-m", k.MODEL, "--threads", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with rows, and the results of a plain run."""
    found = tmp_path_factory.mktemp("ray")
    k.make_rows(found / "rows.parquet", 12_000)
    assert ran(found, *SCORE, "-o", "plain.jsonl").returncode == 3
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with k.cluster(2) as made:
        yield made


def ran(folder: Path, *words: object) -> Any:
    return subprocess.run(
        k.program(*words), cwd=folder, env=k.environment(), capture_output=True, text=True
    )


def same(folder: Path, name: str) -> list[str]:
    return list(k.differences(folder / "plain.jsonl", folder / name))


def test_this_machine_out_of_the_box(folder: Path) -> None:
    """A worker is killed, then the driver, and with it the cluster that it made."""
    words = (*SCORE, "-o", "here.jsonl", "--distribute", "ray", "--resume")
    driver = k.Driver(folder, *words)
    driver.wait_for_shards(2)
    os.kill(pid := driver.worker(), signal.SIGKILL)
    driver.wait_for_shards(8)
    driver.kill()
    assert "2 workers of 1 threads score 16 shards" in driver.said()
    n_whole = len(driver.shards())
    done = ran(folder, *words)
    assert done.returncode == 3, done.stderr
    assert f"{n_whole} of 16 shards are whole" in done.stderr
    assert done.stdout == ""
    assert same(folder, "here.jsonl") == []
    assert pid


def test_a_lost_worker_is_told_with_rays_reason(folder: Path) -> None:
    words = (*SCORE, "-o", "told.jsonl", "--distribute", "ray", "--workers", 1)
    driver = k.Driver(folder, *words)
    driver.wait_for_shards(1)
    os.kill(pid := driver.worker(), signal.SIGKILL)
    assert driver.end() == 3
    assert f"its worker (process {pid} on " in driver.said().split("told.jsonl.shards")[-1]
    assert "was lost (Worker unexpectedly exits with a connection error" in driver.said()
    assert same(folder, "told.jsonl") == []


def test_a_cluster_that_loses_and_gains_nodes(folder: Path, cluster: Any) -> None:
    words = (*SCORE, "-o", "merged.jsonl", "--resume", "--distribute", "ray",
             "--ray-address", cluster.address, "--workers", 2)  # fmt: skip
    assert k.kill_all_kinds(cluster, folder, words, print) == 3
    assert same(folder, "merged.jsonl") == []


def test_pairs_and_choices_on_a_cluster(folder: Path, cluster: Any) -> None:
    pairs = [{"prompt": "The list is", "response": f" item {n}."} for n in range(40)]
    choices = [{"prompt": "A", "choices": [" b", f" {n}"], "answer": 0} for n in range(40)]
    for name, rows in (("cond", pairs), ("rank", choices)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = (name, f"{name}.jsonl", "-m", k.MODEL, "--threads", 1)
        plain = ran(folder, *words, "-o", "plain-one.jsonl", "--force")
        assert plain.returncode == 0, plain.stderr
        done = ran(folder, *words, "--jsonl", "--shard-dir", f"{name}-parts", "--distribute",
                   "ray", "--ray-address", cluster.address)  # fmt: skip
        assert done.returncode == 0, done.stderr
        (folder / "merged-one.jsonl").write_text(done.stdout)
        found = k.differences(folder / "plain-one.jsonl", folder / "merged-one.jsonl")
        assert list(found) == []


def test_workers_that_ask_a_server(folder: Path) -> None:
    """One service for all of them; a worker is killed."""
    k.make_rows(folder / "asked.parquet", 3_000)
    with Listening(Scorer(ModelChoice(name=str(k.MODEL)))) as server:
        words = ("score", "asked.parquet", "-m", k.MODEL, "--engine", server.url)
        assert ran(folder, *words, "-o", "one-asks.jsonl").returncode == 3
        driver = k.Driver(folder, *words, "-o", "workers-ask.jsonl", "--distribute", "ray")
        driver.wait_for_shards(2)
        os.kill(driver.worker(), signal.SIGKILL)
        assert driver.end() == 3, driver.said()
    found = k.differences(folder / "one-asks.jsonl", folder / "workers-ask.jsonl")
    assert list(found) == []


def test_more_workers_than_a_cluster_has_room_for(folder: Path, cluster: Any) -> None:
    done = ran(folder, *SCORE, "-o", "many.jsonl", "--distribute", "ray", "--ray-address",
               cluster.address, "--workers", 9)  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "note: the cluster has room for " in done.stderr
    assert same(folder, "many.jsonl") == []


def test_a_cluster_that_is_not_there(folder: Path) -> None:
    done = ran(folder, *SCORE, "-o", "none.jsonl", "--distribute", "ray", "--ray-address",
               "127.0.0.1:9")  # fmt: skip
    assert done.returncode == 1
    assert "error: Ray (127.0.0.1:9): " in done.stderr
