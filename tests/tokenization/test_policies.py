"""BOS and EOS by their policies, and tokenizers that give up (rules 4 and 5)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from seqloss_cli import ModelChoice, Sample, Scorer, TokenPolicy, UsageError
from seqloss_cli.core.records import Rejected


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
