"""What a cold review found, each kept from coming back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import seqloss_cli
from helpers.builders import byte_tokenizer, llama, save_checkpoint
from seqloss_cli import ModelChoice, Sample, Scorer, TokenPolicy, UsageError
from seqloss_cli.cli.progress import ProgressBar
from seqloss_cli.core.errors import RunError
from seqloss_cli.core.records import Rejected
from seqloss_cli.inputs import ReadOptions, ReadStats, read_inputs
from seqloss_cli.results.sinks import open_sink

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "options",
    [
        {"bos": "nevr"},
        {"special_tokens": "Error"},
        {"eos": "no"},
        {"dtype": "fp16"},
        {"device": "meta"},
        {"revision": "main"},
        {"threads": 0},
        {"context": 0},
        {"context": "64"},
        {"stride": 0},
        {"top_k": -1},
        {"top_k": 5000},
        {"batch_tokens": 0},
        {"colour": "red"},
        {"name": "demo"},
    ],
)
def test_the_api_refuses_what_no_flag_could_say(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        seqloss_cli.score("hello", **options)
    name = next(iter(options)).replace("_", "-")
    assert name in str(caught.value)


@pytest.mark.parametrize("text", [b"hello", 5, None, Sample("x", "x")])
def test_the_api_refuses_what_is_no_text(text: Any, demo: Scorer) -> None:
    with pytest.raises(UsageError):
        list(seqloss_cli.score([text]))


def test_the_api_takes_paths_ids_and_lists() -> None:
    folder = ROOT / "samples" / "checkpoints" / "step-100"
    sample = Sample("x", "x", input_ids=[0, 450, 271], labels=[-100, -100, 271])  # type: ignore[arg-type]
    (by_path,) = seqloss_cli.score([sample], model=folder, bos_token=0)  # type: ignore[arg-type]
    assert by_path.counted.tolist() == [False, False, True]
    (lone,) = seqloss_cli.score(["a\udc80"])
    assert isinstance(lone, Rejected)
    assert lone.reason == "lone_surrogate"


def test_the_api_passes_warnings_on(tmp_path: Path) -> None:
    model = llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    folder = save_checkpoint(tmp_path / "model", model, byte_tokenizer())
    with pytest.warns(UserWarning, match="one sequence at a time"):
        seqloss_cli.score("a", model=str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        seqloss_cli.score("a", model="demo")


def test_a_wrong_tokenizer_class_is_noticed_in_a_hub_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same checkpoint as a directory and as a name in the hub's cache: the same ids."""
    folder = save_checkpoint(tmp_path / "own", llama(), byte_tokenizer())
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "qwen2"}
    config["architectures"] = ["Qwen2ForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").unlink()
    snapshot = tmp_path / "hub" / "models--x--y" / "snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot)
    refs = tmp_path / "hub" / "models--x--y" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    code = """
import json, sys
import seqloss_cli.models.tokenizer_loading as loading
tokenizer, warning = loading.load_tokenizer(sys.argv[1], None, False, True)
print(json.dumps([tokenizer.encode("hello wor", add_special_tokens=False), bool(warning)]))
"""
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "PYTHONPATH": str(ROOT)}
    found = [
        subprocess.run(
            [sys.executable, "-c", code, name],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        ).stdout
        for name in (str(folder), "x/y")
    ]
    ids, warned = json.loads(found[0])
    assert ids == byte_tokenizer().encode("hello wor", add_special_tokens=False)
    assert warned
    assert found[1] == found[0]


def test_fewer_layers_in_the_config_than_in_the_weights_are_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "model", llama(), byte_tokenizer())
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match=r"layers\.1\..*config\.json"):
        Scorer(ModelChoice(name=str(folder)))


def test_a_model_that_does_not_fit_is_a_run_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(self: Any, *args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("transformers.PreTrainedModel.to", no_memory)
    with pytest.raises(RunError, match="--dtype"):
        Scorer(ModelChoice())


def test_a_tokenizer_that_gives_up_costs_only_that_row(demo: Scorer, monkeypatch: Any) -> None:
    vocabulary = demo.tokenization.vocabulary
    encode = vocabulary.encode

    def moody(texts: list[str]) -> list[list[int]]:
        if any("bad" in text for text in texts):
            raise Exception("no such word")
        return encode(texts)

    monkeypatch.setattr(vocabulary, "encode", moody)
    samples = [Sample(text, text, text=text) for text in ("good", "bad", "fine")]
    found = demo.tokenization.tokenize(samples)
    assert [isinstance(entry, Rejected) for entry in found] == [False, True, False]
    assert found[1].reason == "tokenizer_error"


def test_pipes_by_name_and_compressed_stdin(seqloss: Any, tmp_path: Path) -> None:
    import gzip

    done = seqloss("score", "/dev/stdin", "--json", "--no-tokens", stdin=b"hello")
    assert json.loads(done.stdout)["totals"]["n_bytes"] == 5
    done = seqloss("score", "-", "--json", "--no-tokens", stdin=gzip.compress(b"hello"))
    assert json.loads(done.stdout)["totals"]["n_bytes"] == 5


def test_stdin_that_cannot_be_read_is_a_rejected_input(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def read(self, size: int = -1) -> bytes:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=Broken()))
    (rejected,) = read_inputs(["-"], ReadOptions(), ReadStats())
    assert isinstance(rejected, Rejected)
    assert (rejected.source, rejected.reason) == ("<stdin>", "unreadable")


def test_help_into_a_closed_pipe_is_quiet(seqloss: Any, tmp_path: Path) -> None:
    command = f"{sys.executable} -m seqloss_cli score --help | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "80"},
        check=True,
    )
    assert done.stdout.split()[-1] == "0"
    assert done.stderr == ""


def test_a_file_that_comes_meanwhile_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.json"

    def write_while_another_does() -> None:
        with open_sink(path, False) as sink:
            sink.write(b"ours")
            path.write_bytes(b"precious")

    with pytest.raises(RunError, match=r"out\.json\.partial"):
        write_while_another_does()
    assert path.read_bytes() == b"precious"
    assert (tmp_path / "out.json.partial").read_bytes() == b"ours"
    with open_sink(path, True) as sink:
        sink.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_only_regular_files_are_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path / "pipe.json", tmp_path, tmp_path / "none" / "x.json"):
        with pytest.raises(UsageError), open_sink(path, True):
            pass


def test_progress_moves_within_a_block(tmp_path: Path) -> None:
    """Two files of 100 bytes; half of the first block's targets is done."""
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(b"x" * 100)
    names = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    bar = ProgressBar(names)
    bar._console._force_terminal = True
    bar._started -= 10
    last = Sample(names[1], names[1], text="x", end=100)
    bar.on_progress(50, 0.5, last)
    assert bar._progress.tasks[0].total == 200
    assert bar._progress.tasks[0].completed == 100
    bar.on_input(last)
    bar.on_progress(50, 1.0, last)
    assert bar._progress.tasks[0].completed == 200
    bar.stop()


def test_a_corpus_of_rejected_rows_says_that_nothing_was_scored(
    seqloss: Any, tmp_path: Path
) -> None:
    done = seqloss("score", "--model", "demo", "none.txt", "--json")
    totals = json.loads(done.stdout)["totals"]
    assert done.returncode == 3
    assert totals["flags"] == {"nothing_scored": True}
    assert totals["total_loss"] is None


def test_token_policy_takes_an_id() -> None:
    assert TokenPolicy(bos_token=5).bos_token == "5"  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        TokenPolicy(bos_token=True)  # type: ignore[arg-type]


def test_bos_of_rows_of_ids_is_put_in_only_when_asked(demo: Scorer) -> None:
    sample = Sample("x", "x", input_ids=np.array([450, 271]))
    (plain,) = demo.score([sample])
    assert plain.sequence.token_ids.tolist() == [450, 271]
    always = Scorer(ModelChoice(), TokenPolicy(bos="always", eos=True))
    (around,) = always.score([sample])
    assert around.sequence.token_ids.tolist() == [0, 450, 271, 1]
    assert around.sequence.loss_mask.tolist() == [False, True, True, True]


def test_the_bos_of_a_text_is_not_its_eos_as_well(demo: Scorer) -> None:
    """GPT-2 has one token for both: a text that is only its BOS still gets the EOS asked for."""
    policy = TokenPolicy(bos_token="<|end_of_text|>", eos=True)
    scorer = Scorer(ModelChoice(), policy)
    (score,) = scorer.score([Sample("x", "x", text="<|end_of_text|>")])
    assert (score.sequence.bos, score.sequence.eos) == ("text", "appended")
    assert score.sequence.token_ids.tolist() == [1, 1]
    assert score.scored.tolist() == [False, True]


def test_a_context_of_one_token_is_checked_like_any_other() -> None:
    scorer = Scorer(ModelChoice(), context=1)
    assert scorer.backend.path == "packed"
    assert scorer.warnings == []
