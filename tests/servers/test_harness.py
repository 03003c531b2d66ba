"""lm-evaluation-harness' `local-completions` against `seqloss serve`, beside its `HFLM`."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.program import ROOT
from helpers.real_servers import program_of, serve

pytestmark = pytest.mark.servers
DEMO = ROOT / "seqloss_cli" / "demo"
TOLERANCE = 1e-4
"""Nats per token, in float32."""
LONGEST = 510
"""Tokens of a window: the harness takes two of `max_length` for a first token and one that is
generated."""
SHORT = ["Return a list of the names.", "The list is sorted in place. ", "naïve 日本語 größer"]
LONG = [*SHORT, (ROOT / "LICENSE").read_text()[:6000]]


def made_rows() -> list[dict[str, Any]]:
    """Prompts with four endings, some of them of one token."""
    draw = random.Random(0)
    words = [word for word in (ROOT / "README.md").read_text().split() if word.isalpha()]
    words += ["naïve", "größer", "日本語"]
    rows: list[dict[str, Any]] = []
    for _ in range(30):
        endings = [" ".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(4)]
        prompt = " ".join(draw.choices(words, k=draw.randint(1, 20)))
        rows.append({"prompt": prompt, "choices": endings, "answer": draw.randrange(4)})
    # What the model would say itself, so that some endings are greedy.
    rows.append({"prompt": "Raises ValueError if", "choices": ["the", "an", "no"], "answer": 0})
    return rows


WAYS = [(as_ids, batch, at_once, bos)
        for as_ids in (True, False) for batch in (1, 4) for at_once in (1, 4)
        for bos in (True, False)]  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    """What the harness finds with its own model, with and without BOS, and in each way of asking.

    Texts go to a server that puts nothing before them: the harness writes BOS itself."""
    logs = tmp_path_factory.mktemp("serve")
    with serve(logs / "ids") as ids, serve(logs / "texts", "--bos", "never") as plain:
        sides: list[dict[str, Any]] = [
            {"settings": {"batch_size": 4, "add_bos_token": bos, "max_length": LONGEST},
             "texts": LONG} for bos in (True, False)
        ]  # fmt: skip
        for as_ids, batch, at_once, bos in WAYS:
            settings = {
                "base_url": f"{ids if as_ids else plain}/v1/completions", "model": "demo",
                "tokenized_requests": as_ids, "batch_size": batch, "num_concurrent": at_once,
                "max_length": LONGEST + 2, "add_bos_token": bos,
            }  # fmt: skip
            # A second window of a text need not have its tokens when it is sent as a text.
            sides.append({"settings": settings, "texts": LONG if as_ids else SHORT})
        asked = {"model": str(DEMO), "rows": made_rows(), "sides": sides}
        script = Path(__file__).parents[1] / "helpers" / "harness_side.py"
        done = subprocess.run(
            [program_of("PEERS_VENV", ".venv-bench", "python"), str(script)],
            input=json.dumps(asked), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-5000:]
        yield json.loads(done.stdout)


def n_tokens(text: str) -> int:
    from tokenizers import Tokenizer

    return len(Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode(text).ids)


@pytest.mark.parametrize("n", range(len(WAYS)), ids=[
    f"{'ids' if as_ids else 'texts'}-{batch}-{at_once}{'-bos' * bos}"
    for as_ids, batch, at_once, bos in WAYS
])  # fmt: skip
def test_the_harness_finds_what_it_finds_with_its_own_model(found: list[Any], n: int) -> None:
    as_ids, batch, at_once, bos = WAYS[n]
    own, there = found[0 if bos else 1], found[2 + n]
    worst, count = 0.0, 0
    for row, ours, theirs in zip(
        made_rows(), own["samples"]["choice"], there["samples"]["choice"], strict=True
    ):
        assert len(ours) == len(theirs) == 2 * len(row["choices"])
        for ending, (a,), (b,) in zip(row["choices"] * 2, ours, theirs, strict=True):
            worst = max(worst, abs(a[0] - b[0]) / n_tokens(ending))
            assert a[1] == b[1], (row["prompt"], ending)
            count += 1
    texts = LONG if as_ids else SHORT
    rolling = [side["samples"]["rolling"][: len(texts)] for side in (own, there)]
    for text, [[ours]], [[theirs]] in zip(texts, *rolling, strict=True):
        worst, count = max(worst, abs(ours - theirs) / n_tokens(text)), count + 1
    print(f"\nharness, {'ids' if as_ids else 'texts'}, {batch} a request, {at_once} at once, BOS "
          f"{bos}: {worst:.2g} nats per token at most over {count} log-likelihoods")  # fmt: skip
    assert worst <= TOLERANCE
    assert count == (4 * 30 + 3) * 2 + len(texts)
    for metric in ("acc,none", "acc_norm,none", "acc_mutual_info,none"):
        assert own["results"]["choice"][metric] == there["results"]["choice"][metric]


def test_some_endings_are_what_the_model_says_itself(found: list[Any]) -> None:
    greedy = {bool(each[0][1]) for row in found[0]["samples"]["choice"] for each in row}
    assert greedy == {False, True}
