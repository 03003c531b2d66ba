"""Models in parts: sums over parts of a vocabulary, and two processes against one."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from helpers.architectures import ARCHITECTURES, FURTHER, build
from helpers.builders import byte_tokenizer, lazy_logits, save_checkpoint
from helpers.oracles import assert_true
from helpers.program import ROOT, document, in_process, strictly
from helpers.runs import random_rows, scores_by
from seqloss_cli.backends.opening import open_backend
from seqloss_cli.backends.torch import processes, torchrun
from seqloss_cli.backends.torch.head import LazyLogits, score_logits
from seqloss_cli.core.backend import Requested, TokenScores, WordBoundaryIds
from seqloss_cli.core.columns import COLUMNS, LOGIT_SHAPE, MEAN_LOG_PROB
from seqloss_cli.core.errors import RunError, UsageError
from seqloss_cli.core.policies import BatchPolicy, ModelChoice, SpeedPolicy
from seqloss_cli.models import parts

UNEVEN = {"vocab_size": 259}
pytestmark = pytest.mark.skipif(
    list(map(int, transformers.__version__.split(".")[:2])) < parts.LEAST_TRANSFORMERS,
    reason="earlier versions cut models in another way",
)
TWO = SpeedPolicy(tensor_parallel=2)

# -- any split of the vocabulary gives what the whole gives ----------------------------------------


class Meeting:
    """Threads in the place of processes: each gets what all of them brought, in order."""

    def __init__(self, n: int) -> None:
        self._brought: list[Any] = [None] * n
        self._barrier = threading.Barrier(n)

    def gather(self, rank: int, own: torch.Tensor) -> list[torch.Tensor]:
        self._brought[rank] = own.clone()
        self._barrier.wait(60)
        found = list(self._brought)
        self._barrier.wait(60)
        return found


def in_parts(
    logits: torch.Tensor, cuts: list[int], targets: torch.Tensor, asked: Requested, width: int
) -> list[TokenScores]:
    """What each of the processes makes of the whole that has the ids between two cuts."""
    edges = [0, *sorted(cuts), logits.shape[1]]
    meeting = Meeting(len(edges) - 1)

    def part(rank: int) -> TokenScores:
        whole = lazy_logits(logits)
        own = slice(edges[rank], edges[rank + 1])
        lazy = LazyLogits(
            whole.compute, whole.vocab_size, True, own, lambda x: meeting.gather(rank, x)
        )
        return score_logits(lazy, targets, asked, width)

    with ThreadPoolExecutor(len(edges) - 1) as pool:
        return list(pool.map(part, range(len(edges) - 1)))


def everything(n_ids: int, top_k: int) -> Requested:
    members = np.zeros((n_ids, 2), dtype=np.float32)
    members[::2, 0] = members[::3, 1] = 1
    spaces = np.arange(0, n_ids, 2)
    return Requested(
        top_k=top_k,
        internal=(LOGIT_SHAPE, MEAN_LOG_PROB),
        word_boundary_ids=WordBoundaryIds(
            np.zeros(n_ids, bool), np.zeros(n_ids, bool), members, spaces, (spaces + 1) % n_ids
        ),
        **{column.option: True for column in COLUMNS if column.option != "top_k"},
    )


@st.composite
def split_rows(draw: st.DrawFn) -> Any:
    """Logits, M x V float64, each row with a finite one; targets, cuts, and alternatives."""
    width = draw(st.integers(1, 14))
    kinds = st.one_of(
        st.floats(-60, 60), st.sampled_from([0.0, 1.0, 5.0, -3.0]), st.just(-math.inf)
    )
    row = st.lists(kinds, min_size=width, max_size=width)
    rows = draw(st.lists(row.filter(lambda z: max(z) > -math.inf), min_size=1, max_size=4))
    targets = [draw(st.integers(0, width - 1)) for _ in rows]
    cuts = draw(st.lists(st.integers(0, width), min_size=1, max_size=3))
    return rows, targets, cuts, draw(st.integers(0, width)), draw(st.integers(1, 5))


@given(split_rows())
def test_any_split_of_the_vocabulary_gives_the_figures_of_the_whole(case: Any) -> None:
    rows, ids, cuts, top_k, width = case
    logits, targets = torch.tensor(rows, dtype=torch.float64), torch.tensor(ids)
    asked = everything(logits.shape[1], top_k)
    whole = score_logits(lazy_logits(logits, in_blocks=False), targets, asked)
    split = in_parts(logits, cuts, targets, asked, width)
    for name, expected in {"losses": whole.losses, **whole.columns}.items():
        # All processes go on with the same numbers, whichever of them writes.
        found = [(each.columns | {"losses": each.losses})[name] for each in split]
        assert all(np.array_equal(each, found[0], equal_nan=True) for each in found), name
        assert found[0].shape == expected.shape, name
        exact = not np.issubdtype(expected.dtype, np.floating)
        np.testing.assert_allclose(
            found[0], expected, rtol=0 if exact else 1e-9, atol=0 if exact else 1e-9, err_msg=name
        )
    assert (split[0].losses >= 0).all()


def test_an_alternative_that_is_impossible_is_one_of_the_vocabulary() -> None:
    """Parts with fewer ids than alternatives bring none that do not exist."""
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, -math.inf, -math.inf]])
    found = in_parts(logits, [1, 4], torch.tensor([1]), Requested(top_k=5), 2)[0]
    assert found.columns["top_ids"].tolist() == [[1, 0, 2, 3, 4]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_logit_in_any_part_breaks_the_loss(bad: float) -> None:
    logits = torch.zeros(2, 6)
    logits[1, 4] = bad
    found = in_parts(logits, [3], torch.tensor([0, 0]), Requested(entropy=True), 2)
    assert [np.isnan(each.losses).tolist() for each in found] == [[False, True]] * 2


# -- two processes against one --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("qwen3", {}),
        ("mixtral", {}),
        ("gemma2", {}),
    ],
)
def test_two_processes_have_the_figures_of_float64(
    name: str, settings: Any, tmp_path: Path
) -> None:
    """Windows, ragged batches, ranks, entropies and alternatives; parts of 129 and of 130 ids."""
    model = build(name, **settings, **UNEVEN)
    path = save_checkpoint(tmp_path, model, byte_tokenizer())
    opened = open_backend(ModelChoice(name=str(path)), 64, 32, BatchPolicy(), TWO)
    backend, _ = opened.start()
    assert backend.describe()["tensor_parallel"] == 2
    assert backend.vocab_size() == 259
    # Products of experts have no float64.
    exact = model if name == "mixtral" else copy.deepcopy(model).double()
    for score in scores_by(backend, random_rows(1, 8), BatchPolicy(tokens=300)):
        assert_true(exact, score, tolerance=1e-5)


def test_all_types_that_are_said_to_be_checked_are() -> None:
    builders = {**ARCHITECTURES, **FURTHER}
    types = {build(name).config.model_type for name in builders}
    assert types >= parts.CHECKED
    assert parts.unchecked(build("llama").config) is None
    assert "type gpt2" in str(parts.unchecked(build("gpt2").config))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ARCHITECTURES, *FURTHER])
def test_parts_of_every_type_have_the_figures_of_the_whole(name: str, tmp_path: Path) -> None:
    model = build(name)
    if model.config.model_type not in parts.CHECKED:
        pytest.skip("has no plan")
    path = save_checkpoint(tmp_path, model, byte_tokenizer())
    rows, scores = random_rows(1, 12), []
    for speed in (SpeedPolicy(), TWO):
        opened = open_backend(ModelChoice(name=str(path)), 64, 32, BatchPolicy(), speed)
        backend, _ = opened.start()
        scores.append(scores_by(backend, rows, BatchPolicy(tokens=300)))
    for one, two in zip(*scores, strict=True):
        np.testing.assert_allclose(two.losses, one.losses, rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(two.entropies, one.entropies, rtol=1e-5, atol=1e-5)


STATISTICS = ("--ranks", "--entropy", "--varentropy", "--top-k", 3, "--json")


@pytest.mark.parametrize(
    "words",
    [
        ("score", "samples/sentences.jsonl", "--words", "--word-correction", *STATISTICS),
        ("score", "samples/text.txt", "--context", 32, "--stride", 20, *STATISTICS),
        ("cond", "samples/pairs.jsonl", "--pmi", *STATISTICS),
        ("rank", "samples/choices.jsonl", "--pmi", "--json"),
    ],
)
def test_commands_print_the_figures_of_one_process(words: Any) -> None:
    one, two = (
        document(in_process(*words, "--tensor-parallel", n, "--model", "demo")) for n in (1, 2)
    )
    assert two["run"].pop("tensor_parallel") == 2
    assert "tensor_parallel" not in one["run"]
    for each in (one, two):
        each["run"].pop("started_at")
        each["run"].pop("threads")
    assert_like(two, one)


def assert_like(found: Any, expected: Any, place: str = "") -> None:
    """All is equal, but figures by up to 1e-5 a token."""
    assert type(found) is type(expected), place
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for key, value in expected.items():
            assert_like(found[key], value, f"{place}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for n, value in enumerate(expected):
            assert_like(found[n], value, f"{place}[{n}]")
    elif ".ranks[" in place and expected is not None:
        assert abs(found - expected) <= 1, place  # of logits as near to each other as rounding
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5), place
    else:
        assert found == expected, place


# -- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--quantize", "int8"), "--quantize int8 packs whole weights"),
        (("--adapter", "lora"), "--adapter lora is put on whole layers"),
        (("--compile", "on"), "--compile on does not know sums over processes"),
        (("--devices", 2), "--devices 2 has the whole model on each device"),
        (("--device", "cuda:1"), "--device cuda:1 is one device"),
        (("--device", "cuda"), "the parts are put on cpu here; there is no cuda"),
        (("--engine", "http://127.0.0.1:1"), "is for a model that is run here"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_loaded(
    words: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "lead_processes", None)
    result = in_process("score", "--text", "x", "--tensor-parallel", 2, *words, "--model", "demo")
    assert result.exit_code == 2
    assert "--tensor-parallel" in result.stderr
    assert said in result.stderr


def test_heads_that_cannot_be_shared_out_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "lead_processes", None)
    result = in_process("score", "--text", "x", "--tensor-parallel", 3, "--model", "demo")
    assert (result.exit_code, "4 heads of attention" in result.stderr) == (2, True)


def test_gguf_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    result = in_process("score", "--text", "x", "--tensor-parallel", 2, "-m", tmp_path / "x.gguf")
    assert (result.exit_code, "(GGUF)" in result.stderr) == (2, True)


def test_torchrun_with_a_command_of_one_process_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or one process would run the whole model, and the others nothing."""
    monkeypatch.setattr(torchrun, "meeting", torchrun.Meeting(torchrun.Place(0, 2, 0)))
    result = in_process("diverge", "--text", "x", "--teacher", "demo")
    assert result.exit_code == 2
    assert "diverge runs its models in one process, and torchrun started 2" in result.stderr
    result = in_process("score", "--text", "x", "--tensor-parallel", 4, "-m", "demo")
    assert (result.exit_code, "torchrun started 2 processes" in result.stderr) == (2, True)


def test_a_model_without_a_plan_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, build("gpt2"), byte_tokenizer())
    with pytest.raises(UsageError, match="has no plan of how layers of gpt2 are cut"):
        open_backend(ModelChoice(name=str(path)), None, None, BatchPolicy(), TWO)


# -- ends -----------------------------------------------------------------------------------------


def test_errors_of_other_processes_are_raised_here() -> None:
    good, bad = ("", ""), ("error", "no such layer")
    processes._raise_first(None, [good, good])
    with pytest.raises(RunError, match="process 1 of 2: no such layer"):
        processes._raise_first(None, [good, bad])
    with pytest.raises(KeyError):
        processes._raise_first(KeyError("x"), [("error", "x"), bad])
    for own in (None, ValueError("x")):
        with pytest.raises(torch.OutOfMemoryError, match="process 1: full"):
            processes._raise_first(own, [good, ("memory", "full")])


class Told(processes.Leader):
    """A leader whose others are made up: what they say is given."""

    def __init__(self, *answers: tuple[str, str]) -> None:
        self.place, self._others, self._folder = torchrun.Place(0, 2, 0), [], None
        self._lock, self._gone = threading.RLock(), []
        self.is_in_step, self._waits, self._ended = True, False, False
        self.told, self._given = list[Any](), list(answers)

    def _tell(self, *commands: Any) -> None:
        self.told += commands

    def answer(self, error: Exception | None, slow: bool) -> list[tuple[str, str]]:
        if not self._given:
            raise RuntimeError("timed out")
        return [super().kind_of(error), self._given.pop(0)]


def full() -> None:
    raise torch.OutOfMemoryError("full")


def test_a_batch_that_fits_in_no_process_may_be_halved() -> None:
    leader = Told(("memory", "full"), ("", ""))
    with pytest.raises(torch.OutOfMemoryError):
        leader.lead("a batch", full)
    assert leader.lead("half of it", lambda: 7) == 7
    assert leader.told == ["a batch", "half of it"]


def test_processes_that_are_out_of_step_end_the_run() -> None:
    """Memory did not suffice here, and the others wait for this one in the midst of a layer."""
    leader = Told()
    with pytest.raises(RunError, match=r"out of memory in one .* lower --batch-tokens"):
        leader.lead("a batch", full)
    with pytest.raises(RunError, match="out of step"):
        leader.lead("the next", lambda: 7)
    assert leader.told == ["a batch"]


def test_an_interrupt_leaves_them_out_of_step() -> None:
    leader = Told()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leader.lead("a batch", interrupt)
    leader.close()  # does not wait for them
    assert leader.told == ["a batch"]


def test_parts_of_models_that_are_gone_go_from_all_processes() -> None:
    leader = Told(("", ""), ("", ""))
    leader._gone.append(3)
    leader.lead("a batch", lambda: None)
    leader.lead("another", lambda: None)
    assert leader.told == [("drop", (3,)), "a batch", "another"]


def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    """Even where that one is killed: its end of the pipe closes."""
    folder = tmp_path / "meeting"
    folder.mkdir()
    process = processes._start(1, 2, "cpu", folder)
    processes._wait_until_ready([process], folder)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == 0
    assert not folder.exists()


def test_a_process_that_does_not_start_is_named(tmp_path: Path) -> None:
    (tmp_path / "process-1.log").write_text("Traceback:\n  there\nImportError: no torch\n")
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
    process.wait()
    with pytest.raises(RunError, match=r"process 1 .* did not start: ImportError: no torch"):
        processes._wait_until_ready([process], tmp_path)


def test_a_process_that_is_killed_ends_the_run_with_a_message(tmp_path: Path) -> None:
    leader = processes.lead_processes(2, "cpu")
    opened = open_backend(ModelChoice(name="demo"), None, None, BatchPolicy(), TWO)
    backend, _ = opened.start()
    rows = random_rows(1, 2)
    assert len(scores_by(backend, rows, BatchPolicy(), Requested())) == 2
    leader._others[0].kill()
    for _ in range(2):
        with pytest.raises(RunError, match=r"process 1 of --tensor-parallel 2 ended \(SIGKILL"):
            scores_by(backend, rows, BatchPolicy(), Requested())
    assert processes.lead_processes(2, "cpu") is not leader


# -- torchrun -------------------------------------------------------------------------------------

OF_TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip


def test_variables_of_others_are_not_those_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's prologues set some of them, and torchrun's reach programs that it did not start."""
    for name, value in OF_TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert torchrun.place_of_torchrun() is None  # pytest is not a child of torchrun's
    monkeypatch.setattr(torchrun, "_is_launcher", lambda pid: True)
    assert torchrun.place_of_torchrun() == torchrun.Place(1, 2, 1)
    for name in OF_TORCHRUN:
        with monkeypatch.context() as patch:
            patch.delenv(name)
            assert torchrun.place_of_torchrun() is None, name
    monkeypatch.setenv("RANK", "first")
    assert torchrun.place_of_torchrun() is None


def test_torchrun_is_known_by_its_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = {
        b"/usr/bin/python\0/opt/bin/torchrun\0--nproc-per-node\0002\0": True,
        b"python\0-m\0torch.distributed.run\0-m\0seqloss_cli\0": True,
        b"bash\0job.sh\0": False,
        b"python\0train.py\0": False,
    }
    for line, expected in lines.items():
        monkeypatch.setattr(Path, "read_bytes", lambda path, line=line: line)
        assert torchrun._is_launcher(1) == expected, line


def test_torchrun_runs_one_program_in_two_processes(tmp_path: Path) -> None:
    words = ("--nproc-per-node", "2", "-m", "seqloss_cli", "score", "-", "--json", "-m", "demo")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        input=b"The cat sat on the mat.",
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "SLURM_PROCID": "1", "SLURM_NTASKS": "4", "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = strictly(done.stdout)  # of one process: two documents would be no JSON
    assert found["run"]["tensor_parallel"] == 2
    one = document(in_process("score", "--text", "The cat sat on the mat.", "--json", "-m", "demo"))
    assert found["totals"]["total_loss"] == pytest.approx(one["totals"]["total_loss"], abs=1e-5)


# -- GPUs, which are none here ---------------------------------------------------------------------


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert parts.device_of_parts(ModelChoice(), 2) == "cuda"
    with pytest.raises(UsageError, match="there are 2 CUDA devices"):
        parts.device_of_parts(ModelChoice(), 4)
    with pytest.raises(UsageError, match="the parts are put on cuda here; CUDA_VISIBLE_DEVICES="):
        parts.device_of_parts(ModelChoice(device="cpu"), 2)
    called: list[Any] = []
    monkeypatch.setattr(torch.cuda, "set_device", called.append)
    monkeypatch.setattr(
        processes.dist, "init_process_group", lambda backend, **named: called.append(backend)
    )
    monkeypatch.setattr(
        processes.dist, "new_group", lambda **named: called.append(named["backend"])
    )
    processes.Processes(torchrun.Place(3, 4, 3), None, "cuda")
    assert called == [3, "cpu:gloo,cuda:nccl", "gloo", "gloo"]
