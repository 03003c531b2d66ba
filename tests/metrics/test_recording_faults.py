"""Faults of recorded log-probabilities: each is found where it is, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from helpers.recordings import Made, bfloat16, kept
from seqloss_cli.core.columns import TEMPERATURES
from seqloss_cli.metrics import faults
from seqloss_cli.metrics.faults import Diagnosis, diagnose
from seqloss_cli.metrics.sampling_fits import LogitShapes, truncations

N = 40
"""Tokens of a row."""


def found(diagnosis: Diagnosis) -> list[tuple[str, dict[str, Any]]]:
    return [(each.name, dict(each.parameters)) for each in diagnosis.faults]


def diagnosed(made: Made, recorded: Any, **changes: Any) -> Diagnosis:
    return diagnose(made.observed(recorded, **changes))


def at_the_end(made: Made, n: int, value: float) -> Any:
    return np.where(made.places >= N - n, value, made.log_probs)


def of_the_prompt(made: Made) -> Any:
    """The response's values are those of the row's first tokens but the very first."""
    places = np.arange(len(made.ids)) - made.n_prompt + 1
    return np.where(made.sampled, made.log_probs[places], np.nan)


def fading(made: Made) -> Any:
    noise = np.random.default_rng(1).normal(0, 3, len(made.ids))
    return made.log_probs + noise * 0.5**made.places


FAULTS: dict[str, tuple[Callable[[Made], Any], list[tuple[str, dict[str, Any]]]]] = {
    "shift": (lambda m: np.roll(m.log_probs, -1), [("shift", {"by": 1})]),
    "shift-back": (lambda m: np.roll(m.log_probs, 1), [("shift", {"by": -1})]),
    "temperature": (lambda m: m.drawn(0.7), [("temperature", {"temperature": 0.7})]),
    "temperature-high": (lambda m: m.drawn(1.25), [("temperature", {"temperature": 1.25})]),
    "logits": (lambda m: m.of_ids(m.logits), [("logits", {})]),
    "base-2": (lambda m: m.log_probs / np.log(2), [("base", {"base": 2})]),
    "base-10": (lambda m: m.log_probs / np.log(10), [("base", {"base": 10})]),
    "probabilities": (lambda m: np.exp(m.log_probs), [("probabilities", {})]),
    "bfloat16": (lambda m: bfloat16(m.log_probs), [("bfloat16", {"significant_bits": 8})]),
    "beginning": (fading, [("beginning", {"n_tokens": 4})]),
    "padding": (lambda m: at_the_end(m, 5, 0.0), [("padding", {"value": 0.0, "n_tokens": 60})]),
    "prompt_included": (of_the_prompt, [("prompt_included", {"first": 1})]),
    "clamped": (lambda m: np.maximum(m.log_probs, -3), [("clamped", {"least": -3.0})]),
    "clamped-above": (lambda m: np.minimum(m.log_probs, -1), [("clamped", {"most": -1.0})]),
}
TRUNCATED = {
    "top_k": {"top_k": 10},
    "top_k-of-many": {"top_k": 30},
    "top_p": {"top_p": 0.9},
    "top_p-half": {"top_p": 0.5},
    "min_p": {"min_p": 0.1},
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found(name: str) -> None:
    recorded, expected = FAULTS[name]
    made = Made.of(1)
    diagnosis = diagnosed(made, recorded(made))
    assert found(diagnosis) == expected
    assert diagnosis.verdict == "explained"
    assert diagnosis.faults[0].explains is not None
    assert diagnosis.faults[0].explains > (0.9 if name == "beginning" else 0.998)


@pytest.mark.parametrize("case", TRUNCATED)
def test_truncations_are_found(case: str) -> None:
    truncation = TRUNCATED[case]
    ((name, value),) = truncation.items()
    made = Made.of(2, **truncation)
    assert found(diagnosed(made, made.drawn(**truncation))) == [(name, {name: value})]


@pytest.mark.parametrize("case", TRUNCATED)
def test_temperature_and_truncation_are_told_apart(case: str) -> None:
    truncation = TRUNCATED[case]
    ((name, value),) = truncation.items()
    made = Made.of(3, temperature=0.7, **truncation)
    diagnosis = diagnosed(made, made.drawn(0.7, **truncation))
    assert found(diagnosis) == [("temperature", {"temperature": 0.7}), (name, {name: value})]
    assert sum(each.explains or 0 for each in diagnosis.faults) > 0.998


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_top_p_of_what_top_k_keeps(temperature: float) -> None:
    """Both stand in the defaults of many models: neither alone explains it, nor does min-p."""
    made = Made.of(15, temperature=temperature, top_k=20, top_p=0.8)
    diagnosis = diagnosed(made, made.drawn(temperature, top_k=20, top_p=0.8))
    names = [("top_k", {"top_k": 20}), ("top_p", {"top_p": 0.8})]
    if temperature != 1:
        names.insert(0, ("temperature", {"temperature": temperature}))
    assert found(diagnosis) == names
    assert diagnosis.verdict == "explained"
    assert (diagnosis.mean_abs_left or 0) < 1e-3


def test_truncations_that_leave_more_than_rounding_do_not_explain_it() -> None:
    """Of rows of two engines the better half is not all, though it is four fifths."""
    made = Made.of(16, temperature=0.5, top_p=0.9)
    two = np.where(made.rows % 2, made.drawn(0.5, top_p=0.9), made.drawn(0.5, top_p=0.75))
    diagnosis = diagnosed(made, np.where(np.isfinite(two), two, np.nan))
    assert diagnosis.mean_abs is not None
    assert diagnosis.mean_abs_left is not None
    assert 0.03 < diagnosis.mean_abs_left < 0.2 * diagnosis.mean_abs
    assert diagnosis.verdict == "in part"


def test_faults_of_sampled_tokens_alone() -> None:
    """Engines leave the log-probabilities of prompts as they are."""
    made = Made.of(4, temperature=0.7, top_p=0.9)
    recorded = np.where(made.sampled, made.drawn(0.7, top_p=0.9), made.log_probs)
    assert found(diagnosed(made, recorded)) == [
        ("temperature", {"temperature": 0.7, "tokens": "sampled"}),
        ("top_p", {"top_p": 0.9, "tokens": "sampled"}),
    ]


def test_logits_over_a_temperature() -> None:
    made = Made.of(5)
    assert found(diagnosed(made, made.of_ids(made.logits) / 0.7)) == [
        ("logits", {}), ("temperature", {"temperature": 0.7}),
    ]  # fmt: skip


def test_probabilities_of_a_sampler() -> None:
    made = Made.of(6)
    assert found(diagnosed(made, np.exp(made.drawn(0.7)))) == [
        ("probabilities", {}), ("temperature", {"temperature": 0.7}),
    ]  # fmt: skip


def test_one_fault_upon_another() -> None:
    made = Made.of(7)
    assert found(diagnosed(made, bfloat16(made.drawn(0.7)))) == [
        ("temperature", {"temperature": 0.7}), ("bfloat16", {"significant_bits": 8}),
    ]  # fmt: skip


@pytest.mark.parametrize("knows_eos", [True, False])
def test_a_missing_eos(knows_eos: bool) -> None:
    made = Made.of(8)
    ids = np.where(made.places == N - 1, 3, made.ids)
    known = {"ids": ids, "eos_id": 3 if knows_eos else None}
    zeros = diagnosed(made, at_the_end(made, 1, 0.0), **known)
    assert found(zeros) == [("eos_missing", {"value": 0.0, "n_sequences": 12})]
    assert zeros.faults[0].explains == pytest.approx(1)
    nulls = diagnosed(made, at_the_end(made, 1, np.nan), **known)
    expected = [("eos_missing", {"value": None, "n_sequences": 12})] if knows_eos else []
    assert found(nulls) == expected
    assert all(each.explains is None for each in nulls.faults)


def test_minus_infinity_as_vllm_writes_it() -> None:
    made = Made.of(9)
    recorded = np.where(made.places % 9 == 4, -9999.0, made.log_probs)
    assert found(diagnosed(made, recorded)) == [("clamped", {"least": -9999.0})]


# -- recordings that are right, and mixtures ------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_recordings_that_are_right_are_not_accused(seed: int) -> None:
    made = Made.of(100 + seed, n_rows=3 + 2 * seed, n=20 + 5 * seed)
    single = diagnosed(made, made.of_ids(log_softmax(made.logits.astype(np.float32), axis=1)))
    assert (single.verdict, single.faults) == ("exact", ())
    half = diagnosed(made, made.of_ids(log_softmax(bfloat16(made.logits), axis=1)))
    assert (half.verdict, half.faults) == ("noise", ())
    grain = diagnosed(made, bfloat16(made.log_probs))
    assert [name for name, _ in found(grain)] in ([], ["bfloat16"])


def test_noise_leaves_every_fit_far_from_an_accusation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason of `EXPLAINS`: the best fit of a hundred takes less than a tenth of noise away."""
    gains = []
    gain = faults._Search.gain
    monkeypatch.setattr(
        faults._Search, "gain", lambda self, r: gains.append(g := gain(self, r)) or g
    )
    for seed in range(6):
        random = np.random.default_rng(seed)
        made = Made.of(200 + seed, n_rows=4, n=25)
        scale = 10.0 ** random.uniform(-2, 0)
        noise = random.normal(0, scale, len(made.ids)) * random.choice([1, 5], len(made.ids))
        diagnosis = diagnosed(made, made.log_probs + noise)
        assert diagnosis.faults == ()
        assert diagnosis.verdict == ("noise" if (diagnosis.mean_abs or 0) <= 0.03 else "unknown")
    assert len(gains) > 60
    assert max(gains) < 0.1


MIXTURES: dict[str, Callable[[Made], Any]] = {
    "rows at temperature, rows shifted": lambda m: np.where(
        m.rows % 2, m.drawn(0.7), np.roll(m.log_probs, -1)
    ),
    "two temperatures": lambda m: np.where(m.rows % 2, m.drawn(0.6), m.drawn(1.5)),
    "bits and probabilities": lambda m: np.where(
        m.rows % 2, m.log_probs / np.log(2), np.exp(m.log_probs)
    ),
    "another order": lambda m: np.random.default_rng(0).permutation(m.log_probs),
    "another model": lambda m: Made.of(77).log_probs,
    "half of it at a temperature": lambda m: np.where(m.rows % 2, m.log_probs, m.drawn(0.6)),
}


@pytest.mark.parametrize("case", MIXTURES)
def test_of_mixtures_it_says_that_it_does_not_know(case: str) -> None:
    made = Made.of(10)
    diagnosis = diagnosed(made, MIXTURES[case](made))
    assert (diagnosis.verdict, diagnosis.faults) == ("unknown", ())


def test_what_is_left_is_told() -> None:
    made = Made.of(11)
    noise = np.random.default_rng(0).normal(0, 0.6, len(made.ids))
    shifted = diagnosed(made, np.roll(made.log_probs, -1) + np.where(made.rows == 0, noise, 0))
    assert found(shifted) == [("shift", {"by": 1})]
    assert shifted.mean_abs_left == pytest.approx(float(np.abs(noise[:N]).sum()) / 468, rel=0.1)


def test_faults_of_logits_need_logits() -> None:
    made = Made.of(12)
    assert diagnosed(made, made.drawn(0.7), with_logits=False).verdict == "unknown"
    assert found(diagnosed(made, np.exp(made.log_probs), with_logits=False)) == [
        ("probabilities", {})
    ]


def test_nothing_and_little() -> None:
    made = Made.of(13)
    nothing = diagnosed(made, np.full(len(made.ids), np.nan))
    assert (nothing.verdict, nothing.mean_abs) == ("nothing", None)
    few = Made.of(14, n_rows=1, n=8, n_prompt=2)
    assert diagnosed(few, few.drawn(0.7)).faults == ()


# -- numbers that fits are made of ----------------------------------------------------------------


def shapes_of(logits: Any, target: Any, n_top: int = 128) -> LogitShapes:
    sums = np.stack([logsumexp(logits / t, axis=1) for t in TEMPERATURES], axis=1)
    top = -np.sort(-logits, axis=1)[:, :n_top]
    return LogitShapes(target, sums, top, top.shape[1] == logits.shape[1])


@pytest.mark.parametrize("spread", [0.3, 2.0, 6.0])
@pytest.mark.parametrize("vocab", [5, 60, 2000])
def test_log_sums_between_the_temperatures(spread: float, vocab: int) -> None:
    logits = np.random.default_rng(vocab).normal(0, spread, (30, vocab))
    shapes = shapes_of(logits, logits[:, 0])
    tried = np.exp(np.linspace(np.log(0.21), np.log(3.0), 37))
    errors = [np.abs(shapes.log_sum(t) - logsumexp(logits / t, axis=1)) for t in tried]
    assert np.max(errors) < 3e-3  # at the ends
    assert np.median(np.mean(errors, axis=1)) < 2e-5


@pytest.mark.parametrize("kind", ["top_k", "top_p", "min_p"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_truncated_log_probabilities(kind: str, temperature: float) -> None:
    random = np.random.default_rng(3)
    logits = random.normal(0, 2, (50, 40))
    (truncation,) = [each for each in truncations(40) if each.name == kind]
    for value in truncation.values[2::9]:
        cut = log_softmax(kept(logits, temperature, **{kind: value}), axis=1)
        ids = np.array([random.choice(np.flatnonzero(np.isfinite(row))) for row in cut])
        rows = np.arange(len(ids))
        shapes = shapes_of(logits, logits[rows, ids])
        ours = truncation.log_probs(shapes, temperature, np.array([value]))[:, 0]
        assert np.abs(ours - cut[rows, ids]).max() < 2e-3
        outside = shapes_of(logits, logits.min(axis=1))
        is_cut = ~np.isfinite(cut).all(axis=1)
        plain = log_softmax(logits / temperature, axis=1).min(axis=1)
        theirs = truncation.log_probs(outside, temperature, np.array([value]))[:, 0]
        assert np.abs(theirs - plain)[is_cut].max(initial=0) < 2e-3


def test_bfloat16_numbers() -> None:
    values = np.array([1.0, -0.5, -1.0078125, -1.00390625, -0.1, np.pi])
    assert faults.is_bfloat16(values).tolist() == [True, True, True, False, False, False]
