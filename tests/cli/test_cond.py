"""Conditional figures against oracles, the identities that define them, and `seqloss cond`.

Most runs are in this process (torch is loaded once); `seqloss` runs the real program.
"""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import seqloss_cli
from helpers.builders import N_BYTE_IDS, bigram_model, byte_tokenizer, llama, save_checkpoint
from helpers.oracles import reference_losses
from helpers.program import document, in_process, strictly
from seqloss_cli import (
    ChainRule,
    ModelChoice,
    Pair,
    PairPolicy,
    Rejected,
    Sample,
    Scorer,
    SequenceScore,
    TokenPolicy,
    chain_rule,
    totals_of,
)
from seqloss_cli.backends.torch.backend import TorchBackend
from seqloss_cli.cli.main import app
from seqloss_cli.core.backend import Requested
from seqloss_cli.core.errors import RowError
from seqloss_cli.core.policies import BatchPolicy, WindowPolicy
from seqloss_cli.metrics.chain_rule import log_prob_y, pointwise_mutual_information
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.scoring.pipeline import score_samples
from seqloss_cli.tokenization.pairs import PairTokenization
from seqloss_cli.tokenization.tokenizer import Tokenization

TOLERANCE = 1e-4  # nats per token in float32, rule 11
CONTEXT = 64
DEMO = Path(seqloss_cli.__file__).parent / "demo"


# -- figures, from Python -----------------------------------------------------------------------


class Counting:
    """An engine that counts the targets it was asked for."""

    def __init__(self, backend: TorchBackend) -> None:
        self.backend, self.n_targets = backend, 0
        self.capabilities = backend.capabilities

    def score(self, batch: Any, requested: Requested) -> Any:
        self.n_targets += len(batch.targets)
        return self.backend.score(batch, requested)


def tokenization(**tokens: Any) -> Tokenization:
    return Tokenization(byte_tokenizer(), TokenPolicy(**tokens), N_BYTE_IDS)


def scores(
    backend: Any, pairs: list[tuple[str, ...]], policy: PairPolicy | None = None, **tokens: Any
) -> list[SequenceScore]:
    """Of pairs, one token a byte."""
    pairing = PairTokenization(tokenization(**tokens), policy or PairPolicy(), CONTEXT + 1)
    samples = [Sample(str(n), "test", pair=Pair(*pair)) for n, pair in enumerate(pairs)]
    windows = WindowPolicy(CONTEXT, "test", CONTEXT)
    batches = BatchPolicy(share_prefix=True)
    found = list(score_samples(samples, pairing.tokenize, backend, windows, Requested(), batches))
    assert all(isinstance(outcome, SequenceScore) for outcome in found), found
    return found  # type: ignore[return-value]


def one(backend: Any, *pair: str, policy: PairPolicy | None = None, **tokens: Any) -> SequenceScore:
    return scores(backend, [pair], policy, **tokens)[0]


def rule_of(score: SequenceScore) -> ChainRule:
    return chain_rule(score, totals_of(score))


@pytest.fixture(scope="module")
def backend() -> TorchBackend:
    return TorchBackend(llama(context=CONTEXT), CONTEXT, share_prefix=True)


def ids_of(text: str) -> list[int]:
    ids: list[int] = byte_tokenizer().encode(text, add_special_tokens=False)
    return ids


def table_of(**probabilities: dict[str, float]) -> torch.Tensor:
    """ln P[next | previous]: of each previous byte (`bos` is BOS) the next ones; others are all
    but impossible."""
    table = torch.full((N_BYTE_IDS, N_BYTE_IDS), -69.0)
    for previous, following in probabilities.items():
        (row,) = [0] if previous == "bos" else ids_of(previous)
        for char, probability in following.items():
            table[row, ids_of(char)[0]] = math.log(probability)
    return table


EXAMPLE = {"bos": {"x": 0.25, "y": 0.5, "z": 0.25}, "x": {"y": 0.8, "z": 0.2}, "y": {"z": 1.0}}


def test_the_worked_examples_of_a_bigram_model() -> None:
    backend = TorchBackend(bigram_model(table_of(**EXAMPLE)), CONTEXT, share_prefix=True)
    likely, unlikely = scores(backend, [("x", "y"), ("x", "z")], PairPolicy(pmi=True))
    assert rule_of(likely).log_prob_y_given_x == pytest.approx(-0.223144, abs=1e-6)
    assert rule_of(unlikely).log_prob_y_given_x == pytest.approx(-1.609438, abs=1e-6)
    assert totals_of(likely).total_loss == pytest.approx(0.223144, abs=1e-6)
    assert totals_of(unlikely).perplexity == pytest.approx(5, abs=1e-5)
    assert rule_of(likely).log_prob_x == pytest.approx(math.log(0.25), abs=1e-6)
    assert rule_of(likely).log_prob_xy == pytest.approx(math.log(0.25 * 0.8), abs=1e-6)
    assert log_prob_y(totals_of(likely)) == pytest.approx(math.log(0.5), abs=1e-6)
    pmi = pointwise_mutual_information(totals_of(likely))
    assert pmi == pytest.approx(math.log(0.8 / 0.5), abs=1e-6)


def test_a_masked_prompt_contributes_nothing() -> None:
    """To a bigram model prompts that end alike are alike: only their own losses differ."""
    table = torch.randn(N_BYTE_IDS, N_BYTE_IDS, generator=torch.manual_seed(3)).mul(3)
    backend = TorchBackend(bigram_model(table.log_softmax(-1)), CONTEXT)
    found = [one(backend, prompt, " and so on") for prompt in ("some x", "other words x", "x")]
    losses = [totals_of(score).total_loss for score in found]
    assert losses[0] == losses[1] == losses[2]
    assert len({rule_of(score).log_prob_x for score in found}) == 3
    for score in found:
        assert totals_of(score).n_scored == len(" and so on")


some_pairs = st.lists(
    st.tuples(st.text("ab 日", max_size=8), st.text("ab 🐕", min_size=1, max_size=5), st.just(" ")),
    min_size=1,
    max_size=6,
)


@given(some_pairs, st.booleans(), st.booleans())
def test_identities(backend: TorchBackend, pairs: list[Any], bos: bool, eos: bool) -> None:
    tokens = {"bos": "auto" if bos else "never", "eos": eos}
    found = scores(backend, pairs, **tokens)
    rows = [Sample("", "", input_ids=score.sequence.token_ids) for score in found]
    windows = WindowPolicy(CONTEXT, "test", CONTEXT)
    whole = score_samples(
        rows, tokenization(**tokens).tokenize, backend, windows, Requested(), BatchPolicy()
    )
    for pair, score, plain in zip(pairs, found, whole, strict=True):
        totals, rule, mask = totals_of(score), rule_of(score), score.sequence.loss_mask
        losses = [
            loss
            for loss, scored, counts in zip(score.losses, score.scored, mask, strict=True)
            if scored and counts
        ]
        assert totals.total_loss == math.fsum(losses)
        assert rule.log_prob_y_given_x == -math.fsum(losses)
        assert totals.n_prompt_tokens == bos + len(pair[0].encode())
        assert totals.n_response_tokens == len(pair[2].encode() + pair[1].encode()) + eos
        assert totals.n_prompt_tokens + totals.n_response_tokens == totals.n_tokens
        if rule.log_prob_x is None:
            assert not bos
            assert len(pair[0].encode()) == 1
            continue
        assert rule.log_prob_xy == rule.log_prob_x + rule.log_prob_y_given_x
        assert rule.log_prob_xy <= rule.log_prob_x <= 0
        assert isinstance(plain, SequenceScore)
        near = TOLERANCE * totals.n_tokens
        assert rule.log_prob_xy == pytest.approx(-totals_of(plain).total_loss, abs=near)


@given(some_pairs, st.integers(0, 6))
def test_totals_of_two_sets_of_pairs_add_up(
    backend: TorchBackend, pairs: list[Any], cut: int
) -> None:
    parts = [totals_of(score) for score in scores(backend, pairs, PairPolicy("compare"))]
    whole = sum(parts, Totals())
    assert sum(parts[:cut], Totals()) + sum(parts[cut:], Totals()) == whole
    assert sum(reversed(parts), Totals()) == whole
    assert whole.total_loss == pytest.approx(math.fsum(p.total_loss for p in parts), rel=1e-15)
    assert whole.separate_tokenization.n_scored == sum(
        p.separate_tokenization.n_scored for p in parts
    )
    assert whole.n_pairs == len(pairs) == sum(whole.boundaries.values())


@pytest.mark.parametrize("name", ["log_prob_x", "log_prob_y_given_x", "log_prob_xy"])
@pytest.mark.parametrize("value", [1e-3, math.inf, math.nan])
def test_no_probability_is_above_one(name: str, value: float) -> None:
    row = {name: value}
    with pytest.raises(RowError, match=name) as error:
        ChainRule.read(row)
    assert error.value.reason == "impossible"


@pytest.mark.parametrize(
    ("x", "y", "xy"),
    [
        (-5.2, None, -3.5),  # the worked example
        (-5.2, 0.0, -3.5),
        (None, -5.2, -3.5),
        (-1.0, -2.0, -3.1),  # not the sum
        (-1.0, -2.0, -3.0 - 1e-6),
    ],
)
def test_impossible_figures_are_refused(x: Any, y: Any, xy: Any) -> None:
    row = {"log_prob_x": x, "log_prob_y_given_x": y, "log_prob_xy": xy}
    for make in (lambda: ChainRule(x, y, xy), lambda: ChainRule.read(row)):
        with pytest.raises(RowError) as error:
            make()
        assert error.value.reason == "impossible"


@given(st.floats(-1e6, 0), st.floats(-1e6, 0))
def test_figures_that_add_up_are_read_back(x: float, y: float) -> None:
    row = {"log_prob_x": x, "log_prob_y_given_x": y, "log_prob_xy": x + y}
    assert ChainRule.read(row) == ChainRule(x, y, x + y)
    assert ChainRule.read({**row, "log_prob_x": None, "log_prob_xy": None}).log_prob_xy is None
    assert ChainRule.read({}) == ChainRule(None, None, None)


@pytest.mark.parametrize("value", ["-1", True, [-1.0]])
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(RowError) as error:
        ChainRule.read({"log_prob_x": value})
    assert error.value.reason == "wrong_type"


PAIRS = [("a shared prompt", " and its end"), ("a shared prompt", "!"), ("", "alone"), ("日", "🐕")]


def test_without_marginals_the_head_sees_no_prompt(backend: TorchBackend) -> None:
    n_rows_of_head = 0

    def count(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal n_rows_of_head
        n_rows_of_head += inputs[0].shape[:-1].numel()

    everything = scores(backend, PAIRS)  # the first run of an engine asks the head for its width
    counting = Counting(backend)
    hook = backend.model.lm_head.register_forward_pre_hook(count)
    found = scores(counting, PAIRS, PairPolicy(marginal=False))
    hook.remove()
    n_responses = sum(len(response.encode()) for _, response in PAIRS)
    assert counting.n_targets == n_rows_of_head == n_responses
    for with_prompt, without in zip(everything, found, strict=True):
        mask = without.sequence.loss_mask
        assert (without.scored == mask).all()
        assert without.losses[mask] == pytest.approx(with_prompt.losses[mask], abs=TOLERANCE)
        assert rule_of(without).log_prob_x is rule_of(without).log_prob_xy is None
        assert totals_of(without).total_loss == pytest.approx(
            totals_of(with_prompt).total_loss, abs=TOLERANCE * len(mask)
        )


# -- the command --------------------------------------------------------------------------------

Cond = Callable[..., Any]


@pytest.fixture
def cond(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cond:
    """Run the command in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, stdin: bytes | None = None, **env: str) -> Any:
        return in_process("cond", *arguments, stdin=stdin, **({"COLUMNS": "80"} | env))

    return run


def sequence(result: Any) -> Any:
    (row,) = document(result)["sequences"]
    return row


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


PROMPT, RESPONSE = "The list is", " sorted in place."
ONE = ("--prompt", PROMPT, "--response", RESPONSE)
ROWS = [
    {"id": "a", "prompt": PROMPT, "response": RESPONSE},
    {"id": 2, "prompt": PROMPT, "response": " 日本 🐕"},
    {"prompt": "", "response": "alone"},
    {"prompt": "The li", "response": "st"},
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Of a name: the --model, its reference in float64, its tokenizer."""

    @cache
    def made(name: str) -> Any:
        if name == "demo":
            reference = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float64).eval()
            return "demo", reference, AutoTokenizer.from_pretrained(DEMO)
        table = torch.randn(N_BYTE_IDS, N_BYTE_IDS, generator=torch.manual_seed(5)).mul(3)
        model = llama() if name == "random" else bigram_model(table.log_softmax(-1))
        folder = tmp_path_factory.mktemp("checkpoints") / name
        save_checkpoint(folder, model, byte_tokenizer())
        return folder, model.double(), byte_tokenizer()

    return made


FIGURES = [
    (PROMPT, RESPONSE, ""),
    ("日本", "🐕 x", ""),
    ("Answer:", "yes or no", " "),
    ("", "no prompt at all", ""),
    ("word", " ", ""),
]


@pytest.mark.parametrize("name", ["bigram", "random", "demo"])
@pytest.mark.parametrize(("prompt", "response", "separator"), FIGURES)
@pytest.mark.parametrize("eos", [False, True])
def test_every_figure_against_one_forward_per_prefix_in_float64(
    cond: Cond, checkpoints: Any, name: str, prompt: str, response: str, separator: str, eos: bool
) -> None:
    model, reference, tokenizer = checkpoints(name)
    arguments = ["--prompt", prompt, "--response", response, "--separator", separator]
    row = sequence(cond(*arguments, "--model", model, "--pmi", "--json", *["--eos"] * eos))
    assert row["boundary"] == "clean"
    before = [0, *tokenizer.encode(prompt, add_special_tokens=False)]
    after = tokenizer.encode(separator + response, add_special_tokens=False) + [1] * eos
    losses = reference_losses(reference, before + after)
    of_x, of_y = losses[1 : len(before)], losses[len(before) :]
    alone = -math.fsum(reference_losses(reference, [0, *after])[1:])
    x, loss = -math.fsum(of_x), math.fsum(of_y)
    n_bytes = len((separator + response).encode())
    near = TOLERANCE * len(losses)
    expected = {
        "log_prob_x": x,
        "log_prob_y_given_x": -loss,
        "log_prob_xy": x - loss,
        "log_prob_y": alone,
        "pmi": -loss - alone,
        "loss": loss,
        "total_loss": loss,
        "log_prob": -loss,
        "mean_loss": loss / len(of_y),
        "bits_per_byte": loss / math.log(2) / n_bytes,
    }
    assert {key: row[key] for key in expected} == pytest.approx(expected, abs=near)
    assert row["perplexity"] == pytest.approx(math.exp(loss / len(of_y)), rel=1e-3)
    n_words = len(response.split())
    assert row["n_words"] == n_words
    if n_words and loss / n_words < 700:
        assert row["word_perplexity"] == pytest.approx(math.exp(loss / n_words), rel=1e-2)
    else:
        assert row["word_perplexity"] is None
    assert row["token_ids"] == before + after
    assert row["token_losses"][0] is None
    assert row["token_losses"][1:] == pytest.approx(losses[1:], abs=TOLERANCE)
    assert row["loss_mask"] == [0] * len(before) + [1] * len(after)
    assert row["labels"] == [-100] * len(before) + after
    assert (row["n_prompt_tokens"], row["n_response_tokens"]) == (len(before), len(after))
    assert (row["n_scored"], row["n_scored_bytes"]) == (len(after), n_bytes)
    assert row["eos"] == ("appended" if eos else "none")


def test_a_scorer_gives_the_figures_of_the_command(cond: Cond) -> None:
    policy = PairPolicy(pmi=True)
    scorer = Scorer(ModelChoice(), pairs=policy, batches=BatchPolicy(share_prefix=True))
    (score,) = scorer.score([Sample("a", "test", pair=Pair(PROMPT, RESPONSE))])
    assert isinstance(score, SequenceScore)
    row = sequence(cond(*ONE, "--pmi", "--json"))
    assert row["log_prob_xy"] == rule_of(score).log_prob_xy
    assert row["token_losses"][1:] == score.losses[1:].tolist()
    assert row["log_prob_y"] == log_prob_y(totals_of(score))
    (outcome,) = seqloss_cli.cond([(PROMPT, RESPONSE)], pmi=True)
    assert rule_of(outcome) == rule_of(score)
    (bad,) = seqloss_cli.cond([(PROMPT, "")])
    assert isinstance(bad, Rejected)


def test_the_joint_is_what_score_gives_for_the_same_text(cond: Cond) -> None:
    row = sequence(cond(*ONE, "--json"))
    result = CliRunner().invoke(app, ["score", "--text", PROMPT + RESPONSE, "--json"])
    whole = strictly(result.stdout)["sequences"][0]
    assert whole["token_ids"] == row["token_ids"]
    near = TOLERANCE * row["n_tokens"]
    assert row["log_prob_xy"] == pytest.approx(-whole["total_loss"], abs=near)


def test_rows_are_written_in_the_manner_of_score(cond: Cond) -> None:
    result = CliRunner().invoke(app, ["score", "--text", "The list", "--json"])
    of_score = strictly(result.stdout)
    of_cond = document(cond(*ONE, "--json"))
    assert list(of_cond) == list(of_score)
    assert set(of_cond["run"]) == set(of_score["run"])
    own = {"prompt", "response", "boundary", "n_prompt_tokens", "n_response_tokens"}
    own |= {
        "response_sha256",
        "log_prob_x",
        "log_prob_y_given_x",
        "log_prob_xy",
        "loss",
        "loss_mask",
        "labels",
    }
    a, b = of_score["sequences"][0], of_cond["sequences"][0]
    assert set(b) == (set(a) - {"text"}) | own
    assert set(of_cond["totals"]) == set(of_score["totals"]) | {
        "n_prompt_tokens", "n_response_tokens", "boundaries", "loss",
    }  # fmt: skip
    assert of_cond["run"]["command"] == "cond"
    assert (of_cond["run"]["boundary"], of_cond["run"]["stride"]) == ("joint", None)
    assert (b["prompt"], b["response"]) == (PROMPT, RESPONSE)
    lengths = {key: len(b[key]) for key in ("token_ids", "tokens", "token_losses", "loss_mask")}
    assert set(lengths.values()) == {b["n_tokens"]}
    assert "".join(b["tokens"][1:]) == PROMPT + RESPONSE
    bare = sequence(cond(*ONE, "--json", "--no-text", "--no-tokens"))
    assert set(b) - set(bare) == {
        *("prompt", "response", "token_ids", "tokens", "token_losses", "byte_offsets"),
        *("loss_mask", "labels"),
    }


def test_lines_and_the_document_say_the_same(cond: Cond, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", *ROWS, {"prompt": "x"})
    found = document(cond(rows, "--json"), 3)
    result = cond(rows, "--jsonl")
    assert result.exit_code == 3
    lines = [strictly(line) for line in result.stdout.splitlines()]
    kinds = [line.pop("type") for line in lines]
    assert kinds == ["run", *["sequence"] * 4, "rejected", "totals"]
    assert lines[1:5] == found["sequences"]
    assert lines[5:] == [*found["rejected"], found["totals"]]
    assert [row["id"] for row in found["sequences"]] == ["a", "2", f"{rows}:3", f"{rows}:4"]


def test_totals_of_a_file(cond: Cond, tmp_path: Path) -> None:
    found = document(cond(write_rows(tmp_path / "rows.jsonl", *ROWS), "--json"))
    rows, totals = found["sequences"], found["totals"]
    losses = [row["loss"] for row in rows]
    assert totals["loss"] == totals["total_loss"] == pytest.approx(math.fsum(losses), rel=1e-15)
    n_scored = sum(row["n_scored"] for row in rows)
    assert totals["mean_loss"] == pytest.approx(math.fsum(losses) / n_scored, rel=1e-15)
    assert totals["mean_sequence_loss"] == pytest.approx(math.fsum(losses) / 4, rel=1e-15)
    means = [row["loss"] / row["n_scored"] for row in rows]
    assert totals["mean_of_mean_losses"] == pytest.approx(math.fsum(means) / 4, rel=1e-15)
    for name in ("n_prompt_tokens", "n_response_tokens", "n_tokens", "n_scored_bytes", "n_words"):
        assert totals[name] == sum(row[name] for row in rows)
    assert totals["n_prompt_tokens"] + totals["n_response_tokens"] == totals["n_tokens"]
    assert totals["boundaries"] == {"clean": 3, "merged": 1}


def test_without_marginals(cond: Cond) -> None:
    row = sequence(cond(*ONE, "--json", "--ranks", "--entropy", "--top-k", 2))
    bare = sequence(cond(*ONE, "--json", "--ranks", "--entropy", "--top-k", 2, "--no-marginal"))
    n = row["n_prompt_tokens"]
    assert bare["log_prob_x"] is bare["log_prob_xy"] is None
    for name in ("token_losses", "ranks", "entropies", "top_logprobs"):
        assert bare[name][:n] == [None] * n
        assert len(bare[name]) == row["n_tokens"]
    assert bare["token_losses"][n:] == pytest.approx(row["token_losses"][n:], abs=TOLERANCE)
    assert bare["ranks"][n:] == row["ranks"][n:]
    assert bare["loss"] == pytest.approx(row["loss"], abs=TOLERANCE * n)
    assert bare["n_scored"] == row["n_scored"] == row["n_response_tokens"]


# -- the boundary -------------------------------------------------------------------------------


def test_compare_scores_both_ways(cond: Cond, checkpoints: Any) -> None:
    """`·list` is one token; apart it is `·li` and `st`, or the like."""
    _, reference, tokenizer = checkpoints("demo")
    pair = ("--prompt", "The li", "--response", "st", "--json")
    row = sequence(cond(*pair, "--boundary", "compare"))
    joint = [0, *tokenizer.encode("The list", add_special_tokens=False)]
    before = [0, *tokenizer.encode("The li", add_special_tokens=False)]
    after = tokenizer.encode("st", add_special_tokens=False)
    assert joint != before + after
    loss = reference_losses(reference, joint)[-1]  # the token that crosses
    apart = math.fsum(reference_losses(reference, before + after)[len(before) :])
    assert row["boundary"] == "merged"
    assert row["token_ids"] == joint
    assert row["loss"] == pytest.approx(loss, abs=TOLERANCE)
    assert row["n_scored_bytes"] == len(" list")
    assert row["separate"]["loss"] == pytest.approx(apart, abs=len(after) * TOLERANCE)
    assert row["separate"]["log_prob_y_given_x"] == -row["separate"]["loss"]
    assert row["separate"]["n_scored"] == len(after)
    assert row["separate_minus_joint"] == row["separate"]["loss"] - row["loss"]
    assert abs(row["separate_minus_joint"]) > 0.1
    for policy, expected in (("joint", row["loss"]), ("separate", row["separate"]["loss"])):
        only = sequence(cond(*pair, "--boundary", policy))
        assert only["loss"] == pytest.approx(expected, abs=TOLERANCE)
        assert "separate" not in only
        assert only["boundary"] == "merged"


def test_totals_of_a_comparison(cond: Cond, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", *ROWS)
    found = document(cond(rows, "--json", "--boundary", "compare"))
    apart = [row["separate"]["loss"] for row in found["sequences"]]
    totals = found["totals"]
    assert totals["separate"]["loss"] == pytest.approx(math.fsum(apart), rel=1e-15)
    n_scored = sum(row["separate"]["n_scored"] for row in found["sequences"])
    assert totals["separate"]["mean_loss"] == pytest.approx(math.fsum(apart) / n_scored, rel=1e-15)
    assert totals["separate_minus_joint"] == totals["separate"]["loss"] - totals["loss"]
    differences = [row["separate_minus_joint"] for row in found["sequences"]]
    assert differences[:3] == pytest.approx([0, 0, 0], abs=1e-3)
    assert abs(differences[3]) > 0.1


# -- inputs -------------------------------------------------------------------------------------


def test_texts_come_from_the_command_line_files_and_stdin(cond: Cond, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_bytes(b"\xef\xbb\xbfa prompt\r\n")
    rows = [
        (sequence(cond(*arguments, "--json", stdin=stdin)), prompt, response)
        for arguments, stdin, prompt, response in [
            (("--prompt", "@prompt.txt", "--response", "b"), None, "a prompt\r\n", "b"),
            (("--prompt", "-", "--response", "b"), "日\n".encode(), "日\n", "b"),
            (("--prompt", "a", "--response", "-"), b" b\n", "a", " b\n"),
            (("--prompt", "@@home", "--response", "@@"), None, "@home", "@"),
            (("--prompt", "", "--response", "b"), None, "", "b"),
        ]
    ]
    for row, prompt, response in rows:
        assert (row["prompt"], row["response"]) == (prompt, response)
        assert row["n_bytes"] == len((prompt + response).encode())


def test_rows_with_other_field_names_ids_and_a_separator(cond: Cond, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(
        gzip.compress(
            b'{"id": "first", "q": "Is it?", "a": "Yes.", "topic": 7}\n'
            b"\n"
            b'{"q": "Is it not?", "a": "No."}\n'
        )
    )
    names = ("--prompt-field", "q", "--response-field", "a", "--separator", "\nA: ")
    found = document(cond("rows.jsonl.gz", *names, "--keep-meta", "--json"))
    first, second = found["sequences"]
    assert (first["id"], second["id"]) == ("first", "rows.jsonl.gz:3")
    assert (first["prompt"], first["response"]) == ("Is it?", "Yes.")
    assert first["separator"] == "\nA: "
    assert first["meta"] == {"topic": 7}
    assert first["n_scored_bytes"] == len("\nA: Yes.")
    assert found["totals"]["n_empty_lines"] == 1
    by_hand = sequence(
        cond("--prompt", "Is it?", "--response", "Yes.", *names[4:], "--json", "--no-share-prefix")
    )
    assert first["token_ids"] == by_hand["token_ids"]
    assert first["loss"] == pytest.approx(by_hand["loss"], abs=TOLERANCE * first["n_tokens"])


def test_several_files_and_stdin(cond: Cond, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS[0])
    done = cond(rows, "-", "--jsonl", stdin=json.dumps(ROWS[1]).encode())
    assert done.exit_code == 0, done.stderr
    lines = [strictly(line) for line in done.stdout.splitlines()]
    assert [line.get("source") for line in lines[1:-1]] == [str(rows), "<stdin>"]
    assert [line.get("id") for line in lines[1:-1]] == ["a", "2"]
    assert lines[-1]["n_sequences"] == 2


def test_an_output_file(cond: Cond, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    done = cond(*ONE, "-o", out)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == ""
    lines = [strictly(line) for line in out.read_text().splitlines()]
    assert [line["type"] for line in lines] == ["run", "sequence", "totals"]
    assert not [*tmp_path.glob("*.partial")]
    again = cond(*ONE, "-o", out)
    assert again.exit_code == 2
    assert "--force" in again.stderr


def test_bad_rows_are_kept_to_themselves(cond: Cond, tmp_path: Path) -> None:
    message = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    bad = [
        ({"prompt": "x"}, "missing_field"),
        ({"response": "x"}, "missing_field"),
        ({}, "missing_field"),
        ({"text": "x"}, "missing_field"),
        ({"prompt": "x", "response": ""}, "empty"),
        ({"prompt": 1, "response": "x"}, "wrong_type"),
        ({"prompt": "x", "response": None}, "wrong_type"),
        ({"prompt": ["x"], "response": "x"}, "wrong_type"),
        ({"prompt": "x", "response": "x", "id": 1.5}, "wrong_type"),
        ([PROMPT, RESPONSE], "wrong_type"),
        ({"prompt": "x", "response": "y", "messages": message}, "ambiguous"),
        ({"prompt": "", "response": "<|begin_of_text|>"}, "no_response_token"),
        ({"prompt": "a b c " * 500, "response": "x"}, "too_long"),
        ({"messages": message}, "no_chat_template"),
    ]
    good = ROWS[0]
    entries = [entry for row, _ in bad for entry in (row, good)]
    found = document(cond(write_rows(tmp_path / "rows.jsonl", *entries), "--json"), 3)
    assert [row["reason"] for row in found["rejected"]] == [reason for _, reason in bad]
    assert [row["line"] for row in found["rejected"]] == [*range(1, 2 * len(bad), 2)]
    assert [row["line"] for row in found["sequences"]] == [*range(2, 2 * len(bad) + 1, 2)]
    losses = [row["loss"] for row in found["sequences"]]
    assert losses == pytest.approx([losses[0]] * len(bad), abs=1e-3)
    assert found["totals"]["n_rejected"] == len(bad)


def test_lines_that_are_no_json_and_files_that_are_not_there(cond: Cond, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS[0])
    rows.write_text(rows.read_text() + '{"prompt": "x", \n')
    found = document(cond(rows, "--json"), 3)
    assert [row["reason"] for row in found["rejected"]] == ["bad_json"]
    assert len(found["sequences"]) == 1
    assert cond(rows, "missing.jsonl", "--json").exit_code == 2


@pytest.mark.parametrize("pair", [("", "<|begin_of_text|>"), ("a b " * 500, "x")], ids=str)
def test_a_bad_pair_on_the_command_line_is_rejected(cond: Cond, pair: tuple[str, str]) -> None:
    result = cond("--prompt", pair[0], "--response", pair[1], "--json")
    found = document(result, 3)
    assert found["sequences"] == []
    assert found["rejected"][0]["id"] == "<pair>"
    assert "seqloss: rejected <pair>" in result.stderr


def test_an_empty_response_on_the_command_line_is_wrong(cond: Cond) -> None:
    result = cond("--prompt", "x", "--response", "", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "error: --prompt and --response: the response is empty" in result.stderr


def test_left_truncation_says_what_it_dropped(cond: Cond, checkpoints: Any) -> None:
    _, reference, tokenizer = checkpoints("demo")
    pair = ("--prompt", "the of and in that", "--response", " a b", "--json", "--context", 4)
    assert document(cond(*pair), 3)["rejected"][0]["reason"] == "too_long"
    row = sequence(cond(*pair, "--truncate", "left"))
    ids = tokenizer.encode("the of and in that a b", add_special_tokens=False)
    assert row["token_ids"] == [0, *ids[-4:]]
    losses = reference_losses(reference, [0, *ids[-4:]])
    assert row["token_losses"][1:] == pytest.approx(losses[1:], abs=TOLERANCE)
    assert row["flags"] == {"truncated_left": len(ids) - 4}
    assert row["log_prob_x"] is row["log_prob_xy"] is None
    assert row["loss"] == pytest.approx(math.fsum(losses[-2:]), abs=2 * TOLERANCE)
    assert (row["byte_offsets"][0], row["byte_offsets"][-1]) == (0, row["n_bytes"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--prompt", "x"), "--prompt and --response go together"),
        (("--response", "x"), "--prompt and --response go together"),
        (("--prompt", "-", "--response", "-"), "once only"),
        (("rows.jsonl", *ONE), "exclude files (rows.jsonl)"),
        (("rows.jsonl", "--prompt", "x"), "go together"),
        (("-", "-"), "once only"),
        ((*ONE, "--separator", " ", "--chat"), "--separator"),
        (("--prompt", "@missing.txt", "--response", "x"), "missing.txt"),
        (("--prompt", "x", "--response", "@latin.txt"), "UTF-8"),
        (("--prompt", "x", "--response", "@wide.txt"), "is UTF-16"),
        ((*ONE, "--boundary", "both"), "--boundary"),
        ((*ONE, "--truncate", "right"), "--truncate"),
        ((*ONE, "--json", "--jsonl"), "--json"),
        ((*ONE, "--top-k", "-1"), "--top-k"),
        ((*ONE, "--context", "0"), "--context"),
    ],
)
def test_mistakes_in_flags(cond: Cond, tmp_path: Path, arguments: Any, words: str) -> None:
    write_rows(tmp_path / "rows.jsonl", *ROWS)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "wide.txt").write_text("text", "utf-16")
    result = cond(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""


def test_what_else_can_be_asked_for(cond: Cond) -> None:
    options = ("--ranks", "--entropy", "--top-k", 3, "--words", "--context-lengths")
    row = sequence(cond(*ONE, "--json", *options))
    n = row["n_tokens"]
    assert row["context_lengths"] == [None, *range(1, n)]
    for name in ("ranks", "entropies", "top_logprobs"):
        assert len(row[name]) == n
        assert row[name][0] is None
        assert None not in row[name][1:], "prompts are scored, too"
    assert all(len(top) == 3 for top in row["top_logprobs"][1:])
    assert row["words"] == (PROMPT + RESPONSE).split()
    of_response = row["word_losses"][len(PROMPT.split()) :]
    assert math.fsum(of_response) == pytest.approx(row["loss"], rel=1e-12)


def test_eos_is_scored_with_the_response(cond: Cond) -> None:
    row, plain = sequence(cond(*ONE, "--eos", "--json")), sequence(cond(*ONE, "--json"))
    assert row["token_ids"] == [*plain["token_ids"], 1]
    assert row["n_response_tokens"] == plain["n_response_tokens"] + 1
    assert row["loss_mask"][-1] == 1
    assert row["loss"] == pytest.approx(plain["loss"] + row["token_losses"][-1], abs=1e-3)
    assert row["n_scored_bytes"] == plain["n_scored_bytes"]
    assert row["log_prob_x"] == pytest.approx(plain["log_prob_x"], abs=1e-3)


# -- tables -------------------------------------------------------------------------------------


def lines_of_table(result: Any, exit_code: int = 0) -> list[str]:
    assert result.exit_code == exit_code, result.stderr
    lines: list[str] = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in result.stdout
    return lines


def number_after(name: str, lines: list[str]) -> float:
    (line,) = [line for line in lines if line.startswith(name)]
    match = re.match(r"\s+(-?[\d.]+)", line.removeprefix(name))
    assert match is not None, line
    return float(match[1])


def test_the_table_of_one_pair_spells_out_the_chain_rule(cond: Cond) -> None:
    lines = lines_of_table(cond(*ONE, "--pmi"))
    row = sequence(cond(*ONE, "--pmi", "--json"))
    for name, key in (
        ("ln Pr(x)", "log_prob_x"),
        ("ln Pr(y|x)", "log_prob_y_given_x"),
        ("ln Pr(x,y)", "log_prob_xy"),
        ("ln Pr(y)", "log_prob_y"),
        ("pmi", "pmi"),
        ("loss", "loss"),
    ):
        assert number_after(name, lines) == pytest.approx(row[key], abs=1e-3), name
    (joint,) = [line for line in lines if line.startswith("ln Pr(x,y)")]
    a, b = re.findall(r"\((-[\d.]+)\)", joint)
    assert float(a) + float(b) == pytest.approx(row["log_prob_xy"], abs=2e-4)
    parts = [line.split()[1] for line in lines if re.match(r" +\d+ +[xy] ", line)]
    assert parts == ["x"] * row["n_prompt_tokens"] + ["y"] * row["n_response_tokens"]
    sums = [line.split()[-1] for line in lines if re.match(r" +\d+ +[xy] ", line)]
    assert sums[: row["n_prompt_tokens"]] == ["-"] * row["n_prompt_tokens"]
    assert float(sums[-1]) == pytest.approx(row["loss"], abs=1e-3)


def test_a_table_in_bits(cond: Cond) -> None:
    nats, bits = (lines_of_table(cond(*ONE, "--unit", unit)) for unit in ("nats", "bits"))
    for name in ("Pr(x)", "Pr(y|x)", "Pr(x,y)"):
        in_nats = number_after(f"ln {name}", nats)
        assert number_after(f"log2 {name}", bits) == pytest.approx(in_nats / math.log(2), abs=1e-3)


def test_the_table_of_a_comparison_shows_the_difference(cond: Cond) -> None:
    pair = ("--prompt", "The li", "--response", "st", "--boundary", "compare")
    lines = lines_of_table(cond(*pair))
    row = sequence(cond(*pair, "--json"))
    assert number_after("loss, apart", lines) == pytest.approx(row["separate"]["loss"], abs=1e-3)
    difference = number_after("apart - joint", lines)
    assert difference == pytest.approx(row["separate_minus_joint"], abs=1e-3)
    assert any("merged" in line for line in lines)


def test_many_pairs_are_a_line_each_with_totals(cond: Cond, tmp_path: Path) -> None:
    rows = [{"id": f"row {n}", "prompt": f"Number {n}", "response": " is a no."} for n in range(12)]
    path = write_rows(tmp_path / "rows.jsonl", *rows, {"prompt": "x"})
    result = cond(path)
    lines = lines_of_table(result, 3)
    found = document(cond(path, "--json"), 3)
    for row in found["sequences"]:
        (line,) = [line for line in lines if re.match(rf"{row['id']} ", line)]
        *_, n_x, n_y, x, y, mean = line.split()
        assert (int(n_x), int(n_y)) == (row["n_prompt_tokens"], row["n_response_tokens"])
        shown = [float(x), float(y), float(mean)]
        expected = [row["log_prob_x"], row["log_prob_y_given_x"], row["mean_loss"]]
        assert shown == pytest.approx(expected, abs=2e-3)
    text = "\n".join(lines)
    for name in ("total loss", "mean loss", "mean sequence loss", "mean of mean losses"):
        assert re.search(rf"│ {name} +[\d.]+", text), name
    assert "rejected 1" in text
    assert f"{path}:13" in result.stderr
    assert not [line for line in lines if re.match(r" +\d+ +[xy] ", line)]


def test_a_summary_is_the_totals_only(cond: Cond, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", *ROWS)
    summary, table = cond(path, "--summary").stdout, cond(path).stdout
    assert "ln Pr" not in summary
    assert summary.startswith("╭─ totals")
    assert table.endswith(summary)
    found = document(cond(path, "--summary", "--json"))
    assert found["sequences"] == []
    assert found["totals"] == document(cond(path, "--json"))["totals"]


def test_figures_that_are_unknown_are_said_to_be(cond: Cond) -> None:
    short = ("--prompt", "The", "--response", RESPONSE)
    for options in ((*ONE, "--no-marginal"), (*short, "--bos", "never")):
        lines = lines_of_table(cond(*options))
        (x,) = [line for line in lines if line.startswith("ln Pr(x) ")]
        (xy,) = [line for line in lines if line.startswith("ln Pr(x,y) ")]
        assert re.match(r"ln Pr\(x\) +- ", x)
        assert re.match(r"ln Pr\(x,y\) +- *", xy)
        assert number_after("ln Pr(y|x)", lines) < 0


# -- what is infinite, and what only one of two boundaries had to lose ----------------------------


class WithInfinity(Counting):
    """An engine to which the byte `~` is impossible."""

    def score(self, batch: Any, requested: Requested) -> Any:
        found = super().score(batch, requested)
        found.losses[batch.targets == ids_of("~")[0]] = math.inf
        return found


def test_an_infinite_loss_makes_null_what_holds_it_and_is_flagged(backend: TorchBackend) -> None:
    in_response = one(WithInfinity(backend), "a prompt", "a ~")
    assert rule_of(in_response).log_prob_x < 0
    assert rule_of(in_response).log_prob_y_given_x is rule_of(in_response).log_prob_xy is None
    assert totals_of(in_response).total_loss is None
    assert totals_of(in_response).flags == {"inf_loss": 1}
    in_prompt = one(WithInfinity(backend), "a ~ prompt", "abc")
    assert rule_of(in_prompt).log_prob_x is rule_of(in_prompt).log_prob_xy is None
    assert rule_of(in_prompt).log_prob_y_given_x < 0
    assert totals_of(in_prompt).total_loss == math.fsum(in_prompt.losses[-3:])
    assert totals_of(in_prompt).flags == {"inf_loss": 1}


def test_what_was_cut_from_the_texts_apart_is_said(cond: Cond) -> None:
    """Joint they fit the context; apart they have a token more."""
    pair = ("--prompt", "of the The li", "--response", "st", "--context", 4, "--json")
    assert sequence(cond(*pair))["flags"] == {}
    only = sequence(cond(*pair, "--truncate", "left", "--boundary", "separate"))
    assert only["flags"] == {"truncated_left": 1}
    row = sequence(cond(*pair, "--truncate", "left", "--boundary", "compare"))
    assert "truncated_left" in json.dumps(row)


def test_instruction_following_difficulty_is_the_ratio_of_both_mean_losses(run_cli: Any) -> None:
    """Li et al. 2024, equation 4: the loss of the response with its prompt over that without."""
    found = document(run_cli("cond", "samples/pairs.jsonl", "--pmi", "--json"))
    for row in [*found["sequences"], found["totals"]]:
        n = row["n_response_tokens"]
        alone = -row["log_prob_y"] / n
        assert row["ifd"] == pytest.approx(row["mean_loss"] / alone)
    without = document(run_cli("cond", "samples/pairs.jsonl", "--pmi", "--json", "--bos", "never"))
    assert {row["ifd"] for row in without["sequences"]} == {None}
    assert without["totals"].get("ifd") is None
    assert "ifd" not in document(run_cli("cond", "samples/pairs.jsonl", "--json"))["totals"]
