"""`--distribute ray` without Ray: plans, refusals, workers in this process (tests/cli/test_ray.py
has a real one)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import stub
from helpers.program import strictly
from helpers.servers import FakeServer, serving
from seqloss_cli.cli import cluster, distribute
from seqloss_cli.cli.cluster import Node, Pool, RayMessages, Wanted, n_fitting, pool_here, pool_of
from seqloss_cli.cli.distribute import FREE, n_shards_of
from seqloss_cli.cli.shard_worker import MOST_TRIES, Call, ShardWorker
from seqloss_cli.core.errors import UsageError
from seqloss_cli.results.formats.parquet import read_parquet_rows
from seqloss_cli.results.shard_folders import ShardFolder, note_try

RAY = "--distribute ray"
COMMANDS = {
    "score": f"score corpus.jsonl broken.jsonl {stub.ALL}",
    "cond": f"cond mixed.jsonl {stub.CHAT} --pmi --boundary compare",
    "rank": "rank questions.jsonl samples/choices.jsonl --pmi --tokens",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with inputs."""
    stub.furnish(tmp_path)
    return tmp_path


class Workers:
    """Workers in this process, in the place of Ray's; `before` is told of each shard."""

    def __init__(self) -> None:
        self.pool = Pool(2, 1, 0, None)
        self.before: Callable[[Call, int], None] = lambda call, index: None
        self.n_scored = 0

    @contextmanager
    def connected(self, *_: Any) -> Iterator[Any]:
        yield self.pool, [], RayMessages(print)

    def answers(self, call: Call, shards: Sequence[int], pool: Pool) -> Iterator[Mapping[str, Any]]:
        workers = [ShardWorker(call) for _ in range(pool.workers)]
        # Not in order: whichever is done first.
        for n, index in enumerate(reversed(shards)):
            self.before(call, index)
            batch = workers[n % len(workers)]({"shard": [index]})
            self.n_scored += 1
            yield json.loads(batch["answer"][0])


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    """Whoever scores shards in place of a cluster."""
    found = Workers()
    monkeypatch.setattr(cluster, "connected", found.connected)
    monkeypatch.setattr(cluster, "answers", found.answers)
    # Few: each is a file of its own.
    monkeypatch.setattr(distribute, "_PER_WORKER", 4)
    return found


def ran(line: str, folder: Path, *codes: int) -> Any:
    done = stub.run(line, folder)
    assert done.exit_code in (codes or (0, 3)), (done.exit_code, done.stderr)
    return done


def records(raw: bytes) -> list[Any]:
    """The lines of JSONL, the run's without its time and how it was distributed."""
    found = [strictly(line) for line in raw.splitlines()]
    found[0].pop("started_at")
    found[0].pop("distributed", None)
    return found


@pytest.mark.parametrize("case", COMMANDS)
def test_a_distributed_run_is_the_plain_run(case: str, folder: Path, workers: Workers) -> None:
    line = COMMANDS[case]
    whole = ran(f"{line} --jsonl", folder)
    done = ran(f"{line} -o out.jsonl {RAY}", folder, whole.exit_code)
    assert records((folder / "out.jsonl").read_bytes()) == records(whole.stdout_bytes)
    assert "2 workers score 8 shards: out.jsonl.shards" in done.stderr
    run = strictly((folder / "out.jsonl").read_bytes().splitlines()[0])
    assert run["distributed"]["shards"] == workers.n_scored == 8
    assert run["distributed"]["by"] == "ray"
    assert not (folder / "out.jsonl.shards").exists()
    # Inputs that were rejected are named, as by a plain run.
    said = [line for line in whole.stderr.splitlines() if "rejected " in line and ":" in line[17:]]
    assert {each for each in said if each.startswith("seqloss: rejected")} <= {
        *done.stderr.splitlines()
    }


def test_formats_and_stdout(folder: Path, workers: Workers) -> None:
    line = "score corpus.jsonl"
    whole = records(ran(f"{line} --jsonl", folder).stdout_bytes)
    ran(f"{line} -o out.parquet {RAY}", folder)
    found = list(read_parquet_rows(folder / "out.parquet"))
    assert [row for row in found if row["type"] == "sequence"] == [
        row for row in whole if row["type"] == "sequence"
    ]
    ran(f"{line} -o out.json {RAY}", folder)
    assert strictly((folder / "out.json").read_bytes())["totals"]["n_sequences"] == 5
    done = ran(f"{line} --jsonl --shard-dir parts {RAY}", folder)
    assert records(done.stdout_bytes) == whole
    assert "the shards stay in parts" in done.stderr
    again = ran(f"{line} --jsonl --shard-dir parts {RAY} --resume", folder)
    assert records(again.stdout_bytes) == whole
    assert "8 of 8 shards are whole" in again.stderr
    assert workers.n_scored == 3 * 8


def test_shards_under_a_url(
    folder: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not whole grows in the directory for temporary files of its machine."""
    import fsspec

    (folder / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder / "tmp"))
    system = fsspec.filesystem("memory")
    whole = records(ran("score corpus.jsonl --jsonl", folder).stdout_bytes)
    line = f"score corpus.jsonl -o memory://bucket/out.jsonl {RAY} --resume"

    def end(call: Call, index: int) -> None:
        if index == 3:
            raise KeyboardInterrupt

    workers.before = end
    ran(line, folder, 130)
    assert len(system.ls("/bucket/out.jsonl.shards")) == 1 + 4
    workers.before = lambda call, index: None
    done = ran(line, folder)
    assert "4 of 8 shards are whole" in done.stderr
    assert records(system.cat("/bucket/out.jsonl")) == whole
    assert system.find("/bucket") == ["/bucket/out.jsonl"]
    assert "nothing to do" in ran(line, folder).stderr
    assert list((folder / "tmp").glob("seqloss*")) == []
    system.rm("/bucket", recursive=True)


def test_workers_that_ask_a_server(
    folder: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    write_rows(folder / "rows.jsonl", [{"text": f"The cat number {n}."} for n in range(12)])
    with serving(FakeServer()) as server:
        line = f"score rows.jsonl -m demo --engine {server.url}"
        whole = records(ran(f"{line} --jsonl", folder).stdout_bytes)
        ran(f"{line} -o out.jsonl {RAY}", folder)
    found = records((folder / "out.jsonl").read_bytes())
    assert found[1:] == whole[1:]
    assert found[0]["engine"]["url"] == server.url
    assert found[0]["device"] is None


def test_parquet_and_files_that_are_read_through(folder: Path, workers: Workers) -> None:
    table = pa.table({"text": [f"text number {n}" for n in range(30)]})
    pa.parquet.write_table(table, folder / "rows.parquet", row_group_size=4)
    (folder / "rows.csv").write_text("text\n" + "".join(f"text {n}\n" for n in range(9)))
    for name, n in (("rows.parquet", 8), ("rows.csv", 4)):
        whole = records(ran(f"score {name} --jsonl", folder).stdout_bytes)
        ran(f"score {name} -o out.jsonl {RAY} --force", folder)
        raw = (folder / "out.jsonl").read_bytes()
        assert strictly(raw.splitlines()[0])["distributed"]["shards"] == n
        assert records(raw) == whole


# -- ends in the middle, and second runs -----------------------------------------------------------


def test_a_second_run_scores_what_is_missing(folder: Path, workers: Workers) -> None:
    whole = records(ran("score corpus.jsonl --jsonl", folder).stdout_bytes)
    line = f"score corpus.jsonl -o out.jsonl {RAY}"

    def end(call: Call, index: int) -> None:
        if index == 3:
            raise KeyboardInterrupt

    workers.before = end
    stopped = ran(line, folder, 130)
    assert "shards that are finished are in out.jsonl.shards: --resume goes on" in stopped.stderr
    assert workers.n_scored == 4
    workers.before = lambda call, index: None
    refused = ran(line, folder, 2)
    assert "holds shards of an earlier run: --resume goes on with them" in refused.stderr
    # Another number of workers goes on with the same shards.
    workers.pool = Pool(3, 1, 0, None)
    done = ran(f"{line} --resume", folder)
    assert "4 of 8 shards are whole" in done.stderr
    assert workers.n_scored == 8
    assert records((folder / "out.jsonl").read_bytes()) == whole
    again = ran(f"{line} --resume", folder)
    assert "nothing to do" in again.stderr
    assert again.exit_code == done.exit_code == 3
    assert workers.n_scored == 8


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--bos never", "--bos not given there and never here"),
        ("-m samples/checkpoints/step-600", "--model not given there and samples/check"),
        ("--no-tokens", "--no-tokens not given there and True here"),
    ],
)
def test_shards_of_other_options_are_refused(
    more: str, said: str, folder: Path, workers: Workers
) -> None:
    line = f"score corpus.jsonl --shard-dir parts --jsonl {RAY}"
    ran(line, folder)
    assert said in ran(f"{line} --resume {more}", folder, 2).stderr
    ran(f"score corpus.jsonl -o out.jsonl {RAY}", folder)
    refused = ran(f"score corpus.jsonl -o out.jsonl {RAY} --resume {more}", folder, 2)
    assert said in refused.stderr


def test_shards_of_files_that_changed_are_refused(folder: Path, workers: Workers) -> None:
    line = f"score corpus.jsonl --shard-dir parts --jsonl {RAY}"
    ran(line, folder)
    with (folder / "corpus.jsonl").open("a") as stream:
        stream.write('{"text": "more"}\n')
    assert "input bytes" in ran(f"{line} --resume", folder, 2).stderr
    assert len(records(ran(f"{line} --force", folder).stdout_bytes)) == 9


def test_a_shard_of_another_run_ends_the_run_at_once(folder: Path, workers: Workers) -> None:
    """Weights under a name changed: not seen in any option."""

    def change(call: Call, index: int) -> None:
        if index == 6:
            file = folder / call.folder.shard(7, 8)
            raw = file.read_bytes().replace(b'"tokenizer_sha256":"', b'"tokenizer_sha256":"0')
            file.write_bytes(raw)

    workers.before = change
    line = f"score corpus.jsonl --shard-dir parts --jsonl {RAY}"
    refused = ran(line, folder, 2)
    assert "is of another run than" in refused.stderr


def test_a_driver_that_was_killed_while_it_merged(folder: Path, workers: Workers) -> None:
    line = f"score corpus.jsonl -o out.jsonl {RAY}"
    ran(line, folder)
    whole = (folder / "out.jsonl").read_bytes()
    (folder / "out.jsonl").unlink()
    (folder / "out.jsonl.partial").write_bytes(whole[:1500])
    assert "out.jsonl.partial exists" in ran(line, folder, 2).stderr
    ran(f"{line} --resume", folder)
    assert records((folder / "out.jsonl").read_bytes()) == records(whole)
    # Rows of a plain run are not thrown away without a word.
    (folder / "out.jsonl").unlink()
    ran("score corpus.jsonl -o out.jsonl", folder)
    (folder / "out.jsonl").rename(folder / "out.jsonl.partial")
    refused = ran(f"{line} --resume", folder, 2)
    assert "is of a run without --distribute, which alone goes on with it" in refused.stderr


def test_shards_that_are_there_are_held_to_new_ones(folder: Path, workers: Workers) -> None:
    """An engine may be at another address, but its losses are not those of a model here."""
    line = f"score corpus.jsonl --shard-dir parts --jsonl {RAY}"
    ran(line, folder)
    names = sorted((folder / "parts").glob("0*"))
    raw = names[0].read_bytes().replace(b'"dtype":"float32"', b'"dtype":"bfloat16"')
    names[0].write_bytes(raw)
    names[5].unlink()
    refused = ran(f"{line} --resume", folder, 2)
    assert "dtype bfloat16 and float32" in refused.stderr
    assert workers.n_scored == 9


def test_force_keeps_shards_until_others_are_begun(folder: Path, workers: Workers) -> None:
    line = f"score corpus.jsonl --shard-dir parts --jsonl {RAY}"
    ran(line, folder)
    ran(f"{line} --force -m ./nowhere", folder, 2)
    assert "8 of 8 shards are whole" in ran(f"{line} --resume", folder).stderr


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_regions_that_fit_no_row_of_a_shard(folder: Path, workers: Workers) -> None:
    """Rejections tell of the file of regions: where nothing else is in a shard, too."""
    write_rows(folder / "many.jsonl", [{"id": n, "text": "a " * (n + 1)} for n in range(24)])
    fits = {0, 1, 2, 5, 23}
    regions = [{"id": n, "regions": ["a " * (n + 1) if n in fits else "b"]} for n in range(24)]
    write_rows(folder / "regions.jsonl", regions)
    line = "score many.jsonl --regions regions.jsonl"
    whole = records(ran(f"{line} --jsonl", folder).stdout_bytes)
    ran(f"{line} -o out.jsonl {RAY}", folder)
    found = records((folder / "out.jsonl").read_bytes())
    assert len(found) == len(whole) == 26
    assert sorted(map(str, found)) == sorted(map(str, whole))
    scored = [[row for row in each if row["type"] == "sequence"] for each in (found, whole)]
    assert scored[0] == scored[1]


def test_messages_of_workers_are_told_once(folder: Path, workers: Workers) -> None:
    pairs = [{"prompt": "The list", "response": f"is number {n}."} for n in range(24)]
    write_rows(folder / "pairs.jsonl", pairs)
    done = ran(f"cond pairs.jsonl -o out.jsonl {RAY}", folder)
    said = [line for line in done.stderr.splitlines() if "warning" in line]
    assert len(said) == 2, done.stderr
    assert "no white space parts two words" in said[0]
    assert "7 more of other shards like 'warning: in N of N rows" in said[1]


# -- workers ---------------------------------------------------------------------------------------


def test_a_worker_takes_over_what_a_lost_one_began(folder: Path, workers: Workers) -> None:
    whole = records(ran("score corpus.jsonl --jsonl", folder).stdout_bytes)
    ran("score corpus.jsonl --shard 3/8 -o three.jsonl", folder)

    def lose(call: Call, index: int) -> None:
        if index == 3:
            file = folder / call.folder.shard(index, call.n_shards)
            note_try(file, call.run, "elsewhere")
            lines = (folder / "three.jsonl").read_bytes().splitlines(True)
            Path(f"{file}.partial").write_bytes(b"".join(lines[:1]) + b'{"type"')

    workers.before = lose
    done = ran(f"score corpus.jsonl -o out.jsonl {RAY}", folder)
    assert "warning: shard 3/8: its worker (process " in done.stderr
    assert (
        " on elsewhere) was lost (killed, out of memory, or lost with its machine)" in done.stderr
    )
    assert records((folder / "out.jsonl").read_bytes()) == whole


def test_a_shard_that_ends_every_worker_is_given_up(folder: Path, workers: Workers) -> None:
    def lose(call: Call, index: int) -> None:
        if index == 3:
            for _ in range(MOST_TRIES):
                note_try(folder / call.folder.shard(index, call.n_shards), call.run, "elsewhere")

    workers.before = lose
    done = ran(f"score corpus.jsonl -o out.jsonl {RAY}", folder, 1)
    assert "error: shard 3/8 (process " in done.stderr
    assert f"{MOST_TRIES} workers ended without a word" in done.stderr
    assert "keeps what is finished, and --resume goes on" in done.stderr
    workers.before = lambda call, index: None
    ran(f"score corpus.jsonl -o out.jsonl {RAY} --resume", folder)


def test_rows_of_a_machine_of_another_kind_are_scored_again(folder: Path, workers: Workers) -> None:
    """Not mixed in one file: their last digits differ."""
    ran("score corpus.jsonl --shard 3/8 -o three.jsonl", folder)

    def begin(call: Call, index: int) -> None:
        if index == 3:
            raw = (folder / "three.jsonl").read_bytes()
            raw = raw.replace(b'"device":"cpu"', b'"device":"cuda"')
            partial = folder / f"{call.folder.shard(index, call.n_shards)}.partial"
            partial.write_bytes(b"".join(raw.splitlines(True)[:-1]))

    workers.before = begin
    done = ran(f"score corpus.jsonl -o out.jsonl {RAY}", folder)
    assert "note: shard 3 is begun anew on " in done.stderr
    assert "device cuda there, cpu here" in done.stderr


def test_what_fails_in_a_worker_is_told(folder: Path, workers: Workers) -> None:
    done = ran(f"score corpus.jsonl -m nowhere -o out.jsonl {RAY}", folder, 2)
    assert "nowhere" in done.stderr
    line = f"score corpus.jsonl -o out.jsonl --top-k 9999 {RAY}"
    done = ran(line, folder, 2)
    assert "error: shard 7/8 (process " in done.stderr
    assert "--top-k 9999 is more than the model's 4096 ids" in done.stderr
    # Nothing was scored: nothing is left that would ask for --resume.
    assert not (folder / "out.jsonl.shards").exists()


def call_of(folder: Path, **others: Any) -> Call:
    from seqloss_cli.cli.score import score_texts

    place = ShardFolder(str(folder))
    return Call(score_texts, "score", {}, {}, {}, place, 4, "run", **others)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"seqloss": "9.9"}, "and the driver 9.9: install one version on all nodes"),
        ({"directory": "/no/such/place"}, "has no directory /no/such/place"),
    ],
)
def test_a_machine_that_is_not_like_the_drivers(
    others: dict[str, str], said: str, tmp_path: Path
) -> None:
    answer = ShardWorker(call_of(tmp_path, **others)).score(0)
    assert answer["exit_code"] == 2
    assert said in answer["error"]


def test_a_machine_that_does_not_see_the_shards(tmp_path: Path) -> None:
    answer = ShardWorker(call_of(tmp_path / "gone")).score(0)
    assert "does not see the shards' directory" in answer["error"]


def test_keys_are_not_shown(tmp_path: Path) -> None:
    assert "sesame" not in repr(call_of(tmp_path, key="sesame"))


# -- plans -----------------------------------------------------------------------------------------

COUNTS = st.integers(1, 64)


@given(cores=COUNTS, n=st.none() | COUNTS, gpus=st.integers(0, 8))
def test_threads_of_workers_here_are_not_more_than_cores(
    cores: int, n: int | None, gpus: int
) -> None:
    pool = pool_here(Wanted(None if gpus else n, None, None, True), cores, gpus)
    if gpus:
        assert (pool.workers, pool.gpus, pool.threads) == (gpus, 1, None)
        return
    assert pool.threads is not None
    assert pool.workers * pool.threads <= max(cores, pool.workers)
    assert pool.workers == (n or min(2, cores))


@given(
    nodes=st.lists(st.builds(Node, COUNTS, st.integers(0, 8)), min_size=1, max_size=9),
    n=st.none() | COUNTS,
)
def test_workers_of_a_cluster_fit_and_leave_a_cpu(nodes: list[Node], n: int | None) -> None:
    pool = pool_of(Wanted(n, None, None, True), nodes)
    n_gpus = sum(node.gpus for node in nodes)
    assert n_fitting(pool, nodes) <= pool.workers
    if n_gpus:
        assert pool.workers == (n or n_gpus)
        assert pool.gpus == 1
        return
    assert pool.workers == (n or len(nodes))
    smallest = min(node.cpus for node in nodes)
    if smallest > 1 + pool.workers // len(nodes):
        each = -(-pool.workers // len(nodes))
        assert each * pool.cpus <= smallest - 1
        assert n_fitting(pool, nodes) == pool.workers


def test_gpus_that_are_not_there() -> None:
    with pytest.raises(UsageError, match="this machine has 0 GPUs"):
        pool_here(Wanted(None, None, 1, True), 8, 0)
    with pytest.raises(UsageError, match="they need 3, and this machine has 2"):
        pool_here(Wanted(3, None, 1, True), 8, 2)
    assert pool_here(Wanted(None, None, 0.5, True), 8, 2).workers == 4
    assert pool_of(Wanted(None, None, None, False), [Node(8, 4)]) == Pool(1, 1, 0, None)


def test_there_are_more_shards_than_workers() -> None:
    for n in (1, 2, 100):
        assert n_shards_of(n, is_cut=True) > n_shards_of(n, is_cut=False) > n


def test_what_ray_says_is_not_for_stdout() -> None:
    told = list[str]()
    messages = RayMessages(told.append)
    end = "Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a "
    print(
        f"\x1b[33m(raylet)\x1b[0m A worker died. Worker PID: 15 {end}connection error code 2. End "
        "of file. Some common causes include: (1) the process was killed",
        file=messages,
    )
    print("Task f failed. There are infinite retries remaining, so the task will be retried.",
          file=messages)  # fmt: skip
    assert (
        messages.cause(15)
        == "Worker unexpectedly exits with a connection error code 2. End of file"
    )
    assert messages.cause(16) == ""
    assert told == []
    print("(autoscaler) No node has room", file=messages)
    assert told == ["note: Ray: (autoscaler) No node has room"]


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("score --text a", "--distribute is for files, not for what the command line gives"),
        ("cond --prompt a --response b", "--distribute is for files"),
        ("score corpus.jsonl --shard 0/2 -o a.jsonl", "--shard and --distribute both cut"),
        ("score corpus.jsonl --limit 2 -o a.jsonl", "--limit takes the first of all inputs"),
        ("score corpus.jsonl --strict -o a.jsonl", "--strict stops at the first rejected input"),
        ("score corpus.jsonl --summary -o a.jsonl", "--summary has no rows to merge"),
        ("score corpus.jsonl --report a.html -o a.jsonl", "--report is made of results"),
        ("rank questions.jsonl --output-ranked b.jsonl -o a.jsonl", "--output-ranked is a second"),
        ("score corpus.jsonl --batch-tokens auto -o a.jsonl", "--batch-tokens auto is measured"),
        ("score corpus.jsonl --worst 3 -o a.jsonl", "--worst is for the terminal"),
        ("score corpus.jsonl --devices 2 -o a.jsonl", "--devices is of one process"),
        ("score corpus.jsonl --device cuda:1 -o a.jsonl", "--device cuda:1: with --distribute"),
        ("score corpus.jsonl -o a.csv", "merges JSON lines, a JSON document or Parquet, not csv"),
        ("score corpus.jsonl --shard-dir d", "merges JSON lines, a JSON document or Parquet, not "),
        ("score corpus.jsonl --jsonl", "keeps shards in a directory beside -o FILE"),
        ("score - -o a.jsonl", "workers on other machines cannot read stdin"),
        ("score corpus.jsonl --engine vllm+http://127.0.0.1:9 --verify 2 -o a.jsonl",
         "--verify is of one process"),
    ],
)  # fmt: skip
def test_options_that_workers_cannot_honour(line: str, said: str, folder: Path) -> None:
    done = ran(f"{line} {RAY}", folder, 2)
    assert said in done.stderr
    assert done.stdout == ""
    assert not list(folder.glob("a.*"))


@pytest.mark.parametrize("flag", ["--workers 2", "--ray-address a", "--gpus-per-worker 1",
                                  "--shard-dir d"])  # fmt: skip
def test_options_of_a_cluster_alone(flag: str, folder: Path) -> None:
    done = ran(f"score corpus.jsonl {flag}", folder, 2)
    assert f"{flag.split()[0]} goes with --distribute ray" in done.stderr


def test_ray_is_not_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    done = ran(f"score corpus.jsonl -o a.jsonl {RAY}", folder, 2)
    assert "--distribute ray needs ray: pip install 'seqloss[ray]'" in done.stderr
    assert not list(folder.glob("a.*"))


def test_a_directory_of_something_else(folder: Path, workers: Workers) -> None:
    (folder / "parts").mkdir()
    (folder / "parts" / "plan.json").write_text("[]")
    done = ran(f"score corpus.jsonl --shard-dir parts --jsonl {RAY}", folder, 2)
    assert "parts/plan.json is no plan of shards" in done.stderr


def test_parameters_that_may_differ_are_parameters() -> None:
    import typer

    from seqloss_cli.cli.main import app

    program: Any = typer.main.get_command(app)
    names = {each.name for name in COMMANDS for each in program.commands[name].params}
    assert {*FREE} <= names
