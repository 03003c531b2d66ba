"""The scores of a sequence from its windows: what a backend leaves out, or gives as NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers.builders import byte_tokenizer
from helpers.losses_only import LossesOnly
from seqloss_cli import Sample, SequenceScore
from seqloss_cli.core.backend import Capabilities, Requested, TokenScores
from seqloss_cli.core.columns import COLUMNS, DIVERGENCES, MEAN_LOG_PROB
from seqloss_cli.core.policies import BatchPolicy, TokenPolicy, WindowPolicy
from seqloss_cli.core.records import Outcome, Rejected
from seqloss_cli.scoring.pipeline import score_samples
from seqloss_cli.tokenization.tokenizer import Tokenization

NAN = np.full(3, np.nan)


def outcome(requested: Requested, **columns: Any) -> Outcome:
    """Score three targets with these columns."""

    class Backend(LossesOnly):
        capabilities = Capabilities(quantities=frozenset(c.name for c in requested.columns))

        def score(self, batch: Any, requested: Requested) -> TokenScores:
            return TokenScores(super().score(batch, requested).losses, columns)

    tokenization = Tokenization(byte_tokenizer(), TokenPolicy(), 258, None, None)
    arguments = WindowPolicy(64, "test", 32), requested, BatchPolicy()
    samples = [Sample("a", "a", text="abc")]
    (found,) = score_samples(samples, tokenization.tokenize, Backend(), *arguments)
    return found


def test_a_figure_of_a_distribution_that_is_nan_rejects_no_row() -> None:
    wide = {"top_ids": np.zeros((3, 2), int), "top_log_probs": np.full((3, 2), np.nan)}
    found = outcome(Requested(entropy=True, top_k=2, varentropy=True),
                    entropies=NAN, varentropies=NAN, **wide)  # fmt: skip
    assert isinstance(found, SequenceScore)
    assert np.isnan(found.columns["entropies"][1:]).all()


def test_a_nan_of_what_a_loss_is_made_of_does() -> None:
    found = outcome(Requested(internal=(MEAN_LOG_PROB,)), mean_log_prob=NAN)
    assert isinstance(found, Rejected)
    assert found.message.startswith("the model gives NaN at 3 tokens, first at token 1")
    figures = {name: np.zeros(3) for name in DIVERGENCES.array_names}
    found = outcome(Requested(internal=(DIVERGENCES,)), **figures, kls_at_most=NAN)
    assert isinstance(found, Rejected)
    assert found.message.startswith("the model or its teacher gives NaN")


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
def test_a_column_that_nobody_declared_is_a_bug(column: Any) -> None:
    with pytest.raises(RuntimeError, match="made_up"):
        outcome(Requested(), made_up=NAN)
    with pytest.raises(RuntimeError, match=column.array_names[0]):
        outcome(Requested(**{column.option: 1}))


def test_an_array_that_only_some_windows_of_a_text_have_is_a_bug() -> None:
    """Zeros would stand for it at the targets of the others."""

    class Backend(LossesOnly):
        capabilities = Capabilities(quantities=frozenset({DIVERGENCES.name}))

        def score(self, batch: Any, requested: Requested) -> TokenScores:
            losses = super().score(batch, requested).losses
            names = DIVERGENCES.array_names
            if batch.parts[0].targets[0] == 1:
                names = (*names, *DIVERGENCES.optional_arrays)
            return TokenScores(losses, {name: np.zeros(len(losses)) for name in names})

    tokenization = Tokenization(byte_tokenizer(), TokenPolicy(), 258, None, None)
    arguments = WindowPolicy(4, "test", 2), Requested(internal=(DIVERGENCES,)), BatchPolicy(4)
    samples = [Sample("a", "a", text="abcdefgh")]
    with pytest.raises(RuntimeError, match="other arrays for one window of a text"):
        list(score_samples(samples, tokenization.tokenize, Backend(), *arguments))
