"""A model behind HTTP: the numbers of the command line, whoever asks beside, and clear refusals."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest

from helpers.program import ROOT, document, in_process
from helpers.services import Held, Listening
from seqloss_cli.backends.server.transport import Transport
from seqloss_cli.core.policies import ModelChoice, TokenPolicy
from seqloss_cli.core.records import Sample, SequenceScore
from seqloss_cli.scoring.scorer import Scorer

TEXTS = (ROOT / "samples" / "text.txt").read_text().splitlines()[:6]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def numbers(found: Any) -> dict[str, Any]:
    """The totals and rows of a document, without what tells of the run."""
    return {key: found[key] for key in ("sequences", "rejected", "totals")}


def alike(a: Any, b: Any) -> bool:
    """Equal, numbers to 1e-5 nats: rule 11."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return a == pytest.approx(b, rel=1e-5, abs=1e-5)
    return bool(a == b)


@pytest.mark.parametrize(
    "words",
    [
        ("score", "samples/text.txt", "--lines", "--ranks", "--top-k", 3),
        ("score", "README.md", "--limit", 1, "--bos", "never"),
        ("score", "README.md", "--context", 64, "--stride", 16, "--eos"),
        ("cond", "samples/pairs.jsonl", "--pmi", "--boundary", "compare"),
        ("rank", "samples/choices.jsonl", "--separator", " ", "--pmi"),
    ],
    ids=["lines", "long", "windows", "pairs", "choices"],
)
def test_numbers_are_those_of_the_model_here(served: Listening, words: tuple[object, ...]) -> None:
    here = document(in_process(*words, "--json"))
    there = document(in_process(*words, "--json", "--engine", served.url))
    assert alike(numbers(here), numbers(there))
    assert there["run"]["engine"]["kind"] == "seqloss"
    assert there["run"]["context"] == here["run"]["context"]


def spoiled(body: Any, answer: Any, token_id: int) -> Any:
    """The answer, but for rows with a token: the last log-probability of each is missing."""
    rows = body["prompt"]
    # One row is not wrapped in a list.
    for row, choice in zip(rows if isinstance(rows[0], list) else [rows], answer["choices"]):  # noqa: B905
        if token_id in row:
            choice["prompt_logprobs"][-1] = None
    return answer


def test_rows_come_together_and_a_wrong_one_costs_itself_alone(
    served: Listening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{word} is here." for word in ("one", "two", "three", "four", "five", "six")]
    file = tmp_path / "rows.txt"
    file.write_text("\n".join(texts))
    here = document(in_process("score", file, "--lines", "--json"))
    bad = here["sequences"][4]["token_ids"][1]
    sent = list[Any]()
    post = Transport.post

    def noted(self: Transport, path: str, body: Any, *more: Any) -> Any:
        sent.append(body)
        return spoiled(body, post(self, path, body, *more), bad)

    words = ("cond", "samples/pairs.jsonl", "--json", "--engine", served.url)
    in_process(*words)  # the probe is kept
    monkeypatch.setattr(Transport, "post", noted)
    in_process(*words)
    n_pairs = sum(len(body["prompt"]) for body in sent if isinstance(body["prompt"][0], list))
    assert n_pairs > len(sent)
    result = in_process("score", file, "--lines", "--json", "--engine", served.url)
    found = document(result, 3)
    assert [each["line"] for each in found["rejected"]] == [5]
    del here["sequences"][4]
    assert alike(found["sequences"], here["sequences"])


@pytest.mark.parametrize("starts", [[1], [1, 2, 3], [1, -1], [1, "2"], [[1], [2]]])
def test_starts_are_as_many_as_prompts(served: Listening, starts: list[Any]) -> None:
    answer = served.ask(
        prompt=[[1, 2, 3], [4, 5, 6]], max_tokens=0, prompt_logprobs=0, prompt_logprob_start=starts
    )
    assert answer.status_code == 400
    assert "prompt_logprob_start" in answer.json()["error"]["message"]


def test_each_prompt_has_a_start_of_its_own(served: Listening) -> None:
    rows = [[1, 2, 3, 4, 5], [6, 7, 8]]
    asked = {"max_tokens": 0, "prompt_logprobs": 0}
    both = served.ask(prompt=rows, prompt_logprob_start=[3, 1], **asked).json()["choices"]
    for row, start, choice in zip(rows, [3, 1], both, strict=True):
        alone = served.ask(prompt=row, prompt_logprob_start=start, **asked).json()["choices"][0]
        assert alike(choice["prompt_logprobs"], alone["prompt_logprobs"])
        assert [each is None for each in choice["prompt_logprobs"]] == [
            n < start for n in range(len(row))
        ]


def test_the_model_here_agrees(served: Listening) -> None:
    words = ("score", "samples/text.txt", "--lines", "--json", "--engine", served.url)
    found = document(in_process(*words, "--verify", 3))
    engine = found["run"]["engine"]
    assert engine["verified_rows"] == 3
    assert engine["verified_worst_difference"] <= 1e-4 == engine["probe_tolerance"]


def losses_here(scorer: Scorer, row: list[int]) -> list[float]:
    """Losses of a row of ids alone, nats."""
    sample = Sample("0", "", input_ids=np.array(row))
    (found,) = scorer.score([sample])
    assert isinstance(found, SequenceScore)
    return found.losses[1:].tolist()


def test_rows_do_not_see_one_another(served: Listening, scorer: Scorer) -> None:
    random = np.random.default_rng(1)
    rows = [random.integers(2, 4096, random.integers(2, 60)).tolist() for _ in range(60)]
    rows += [rows[0][:5] + row[:20] for row in rows[:20]]  # common beginnings

    def ask(row: list[int]) -> Any:
        return served.ask(prompt=row, max_tokens=1, prompt_logprobs=2).json()["choices"][0]

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, rows))
    for row, answer in zip(rows, answers, strict=True):
        entries = answer["prompt_logprobs"]
        assert entries[0] is None
        found = [-entry[str(i)]["logprob"] for entry, i in zip(entries[1:], row[1:], strict=True)]
        assert found == pytest.approx(losses_here(scorer, row), abs=1e-4)


def test_the_greedy_token_follows(served: Listening, scorer: Scorer) -> None:
    """What is generated is the most probable next token, with its log-probability."""
    row = [0, 450, 271, 289]
    found = served.ask(prompt=row, max_tokens=1, echo=True, logprobs=3).json()["choices"][0]
    logprobs = found["logprobs"]
    assert logprobs["token_logprobs"][0] is None
    assert [-p for p in logprobs["token_logprobs"][1:4]] == pytest.approx(
        losses_here(scorer, row), abs=1e-5
    )
    scores = {i: -losses_here(scorer, [*row, i])[-1] for i in range(0, 4096, 64)}
    assert logprobs["token_logprobs"][4] >= max(scores.values())
    name = logprobs["tokens"][4]
    best = next(i for i in range(4096) if scorer.tokenization.name_token(i) == name)
    assert -losses_here(scorer, [*row, best])[-1] == pytest.approx(
        logprobs["token_logprobs"][4], abs=1e-5
    )
    assert len(logprobs["top_logprobs"][4]) == 3
    assert len(logprobs["tokens"]) == len(logprobs["text_offset"]) == 5


def test_several_prompts_and_texts(served: Listening) -> None:
    found = served.ask(prompt=["The cat", "A list"], max_tokens=0, echo=True, logprobs=1).json()
    assert [choice["index"] for choice in found["choices"]] == [0, 1]
    assert [choice["text"] for choice in found["choices"]] == ["The cat", "A list"]
    ids = served.ask(prompt=[[0, 5], [0, 6, 7]], max_tokens=0, prompt_logprobs=0,
                     return_token_ids=True).json()  # fmt: skip
    assert [choice["prompt_token_ids"] for choice in ids["choices"]] == [[0, 5], [0, 6, 7]]
    assert ids["usage"]["prompt_tokens"] == 5


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"max_tokens": 2}, "max_tokens"),
        ({"max_tokens": None}, "which means 16"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1.0}, "max_tokens"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "0 tokens"),
        ({"prompt": [[0, 5], []]}, "0 tokens"),
        ({"prompt": [5000]}, "no id"),
        ({"prompt": [-1]}, "no id"),
        ({"prompt": [1.5]}, "no id"),
        ({"prompt": [1.0]}, "no id"),
        ({"prompt": [True]}, "no id"),
        ({"prompt": [None]}, "no id"),
        ({"prompt": [1 << 70]}, "no id"),
        ({"prompt": ["a", [5]]}, "not of both"),
        ({"prompt": [[5], "a"]}, "not of both"),
        ({"prompt": [5, "a"]}, "no id"),
        ({"prompt": [0] * 514}, "514 tokens"),
        ({"prompt": [0] * 513, "max_tokens": 1}, "513 tokens"),
        ({"prompt": "cat " * 600}, "tokens: from 1 to 513"),
        ({"prompt": [[0, 1]] * 257}, "at most 256"),
        ({"prompt": ""}, "no text"),
        ({"prompt": "half \ud800"}, "no JSON"),
        ({"prompt_logprobs": 21}, "at most 20"),
        ({"prompt_logprobs": -1}, "whole number"),
        ({"prompt_logprobs": 1.0}, "whole number"),
        ({"logprobs": True}, "whole number"),
        ({"prompt_logprob_start": -1}, "whole number"),
        ({"prompt_logprob_ranks": 1}, "true or false"),
        ({"stream": True}, "answers are whole"),
        ({"n": 2}, "nothing is sampled"),
        ({"best_of": 2}, "nothing is sampled"),
        ({"use_beam_search": True}, "nothing is sampled"),
        ({"suffix": "x"}, "suffix"),
        ({"stop": ["."]}, "stop"),
        ({"logit_bias": {"5": 100}}, "own log-probabilities"),
        ({"presence_penalty": 0.5}, "own log-probabilities"),
        ({"frequency_penalty": 0.5}, "own log-probabilities"),
        ({"repetition_penalty": 1.1}, "own log-probabilities"),
        ({"allowed_token_ids": [5]}, "own log-probabilities"),
        ({"truncate_prompt_tokens": 3}, "scored whole"),
        ({"temperature": 0.7, "max_tokens": 1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"echo": 1}, "echo"),
        ({"add_special_tokens": "no"}, "add_special_tokens"),
        ({"min_tokens": 1}, "nothing is ignored"),
        ({"prompt_embeds": "AAAA"}, "nothing is ignored"),
    ],
    ids=lambda value: " ".join(f"{k} {str(v)[:12]}" for k, v in value.items())
    if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_is_not_done_is_refused(served: Listening, body: dict[str, Any], word: str) -> None:
    import json

    # As ASCII: half of a surrogate pair cannot be sent otherwise.
    content = json.dumps({"prompt": "a", "max_tokens": 0, **body}).encode()
    found = httpx.post(f"{served.url}/v1/completions", content=content, timeout=60)
    assert found.status_code == 400
    assert word in found.json()["error"]["message"]


def test_what_changes_nothing_is_taken(served: Listening) -> None:
    plain = served.ask(prompt="The cat", max_tokens=0, prompt_logprobs=5).json()["choices"]
    taken = {
        "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 1, "ignore_eos": True,
        "stream": False, "n": 1, "best_of": 1, "suffix": None, "stop": None, "logit_bias": {},
        "presence_penalty": 0.0, "frequency_penalty": 0, "repetition_penalty": 1.0, "user": "me",
        "truncate_prompt_tokens": None, "echo": None, "logprobs": None, "model": "demo",
        "add_special_tokens": True, "prompt_embeds": None,
    }  # fmt: skip
    found = served.ask(prompt="The cat", max_tokens=0, prompt_logprobs=5, **taken)
    assert found.json()["choices"] == plain
    assert len(plain[0]["prompt_logprobs"][1]) in (5, 6)
    greedy = served.ask(prompt="The cat", max_tokens=1, temperature=0.0, top_p=0.5, top_k=2)
    assert greedy.json()["choices"][0]["text"]


def ids_of_text(served: Listening, **body: Any) -> list[int]:
    found = served.ask(max_tokens=0, return_token_ids=True, **body).json()
    return found["choices"][0]["prompt_token_ids"]


def test_a_text_has_the_special_tokens_that_its_tokenizer_puts_there(
    served: Listening, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vLLM does: of a tokenizer that puts none before a text there is none."""
    own = ids_of_text(served, prompt="The cat", add_special_tokens=False)
    assert 0 not in own
    assert ids_of_text(served, prompt="The cat") == [0, *own]
    assert ids_of_text(served, prompt="<|begin_of_text|>The cat") == [0, *own]
    assert ids_of_text(served, prompt=own) == own
    monkeypatch.setattr(scorer.tokenization.vocabulary, "prefix_ids", [])
    assert ids_of_text(served, prompt="The cat") == own
    monkeypatch.setattr(scorer.tokenization, "policy", TokenPolicy(bos="always", eos=True))
    assert ids_of_text(served, prompt="The cat") == [0, *own, scorer.tokenization.eos_id]
    assert ids_of_text(served, prompt="The cat", add_special_tokens=False) == own


@pytest.mark.parametrize(
    "text", ["The cat", "naïve 日本語 €5 🙂🙂 end", "\n  x\n", "é<|end_of_text|>é"]
)
@pytest.mark.parametrize("as_ids", [False, True])
def test_offsets_are_characters_of_the_text(served: Listening, text: str, as_ids: bool) -> None:
    prompt = ids_of_text(served, prompt=text) if as_ids else text
    found = served.ask(prompt=prompt, max_tokens=1, echo=True, logprobs=0).json()["choices"][0]
    tokens, offsets = found["logprobs"]["tokens"], found["logprobs"]["text_offset"]
    shown = found["text"]
    # BOS that was put there is none of the text; as an id that was sent it is.
    assert shown.startswith("<|begin_of_text|>" * as_ids + text)
    assert tokens[0] == "<|begin_of_text|>"
    assert offsets[:2] == [0, 17 * as_ids]
    for token, start, end in zip(tokens, offsets, [*offsets[1:], len(shown)], strict=True):
        if not token.startswith("<"):
            assert shown[start:end] == token
    if "日" in text:
        parts = [n for n, token in enumerate(tokens) if token.startswith("<0x")]
        assert parts
        assert all(shown[offsets[n]] in "ï日本語€🙂" for n in parts)


def test_another_model_is_not_there(served: Listening) -> None:
    found = served.ask(prompt="a", max_tokens=0, model="gpt2")
    assert (found.status_code, "gpt2" in found.text, "demo" in found.text) == (404, True, True)
    assert served.ask(prompt="a", max_tokens=0, model="demo").status_code == 200


def test_bodies_that_are_none(served: Listening) -> None:
    url = f"{served.url}/v1/completions"
    assert httpx.post(url, content=b"{").status_code == 400
    assert httpx.post(url, content=b"[]").status_code == 400
    assert httpx.get(url).status_code == 405
    assert httpx.get(f"{served.url}/v1/chat/completions").status_code == 404


def test_a_queue_that_is_full_answers_429(scorer: Scorer) -> None:
    with (
        Listening(scorer, longest_queue=2, most_bytes=1000) as served,
        ThreadPoolExecutor(4) as pool,
    ):
        held = Held(served.service)
        first = pool.submit(served.ask, prompt=[0, 1], max_tokens=0)
        held.begun()
        others = pool.submit(served.ask, prompt=[[0, 1]] * 2, max_tokens=0)
        held.waiting(2)
        full = served.ask(prompt=[0, 1], max_tokens=0)
        assert (full.status_code, full.headers["Retry-After"]) == (429, "1")
        queue = served.service.queue
        queue.n_tokens, queue._seconds = 100, 250.0  # and four tokens wait
        assert served.ask(prompt=[0, 1], max_tokens=0).headers["Retry-After"] == "10"
        queue.n_tokens, queue._seconds = 0, 0.0
        held.let_go()
        assert {first.result().status_code, others.result().status_code} == {200}
        assert served.ask(prompt="a" * 1000, max_tokens=0).status_code == 413
        metrics = httpx.get(f"{served.url}/metrics").text
        assert 'seqloss_answers_total{status="429"} 2' in metrics
        assert "seqloss_tokens_total 6" in metrics


def test_requests_of_all_kinds_together(scorer: Scorer) -> None:
    """Each has the numbers that it has alone, in its own shape."""
    rows = [[0, *range(5 + n, 40)] for n in range(4)]
    asked: list[dict[str, Any]] = [
        {"prompt": rows[0], "max_tokens": 0, "prompt_logprobs": 0},
        {"prompt": rows[0], "max_tokens": 1, "prompt_logprobs": 20},
        {"prompt": rows[1], "max_tokens": 1, "echo": True, "logprobs": 3},
        {"prompt": rows[1], "max_tokens": 0, "prompt_logprobs": 2, "prompt_logprob_start": 20},
        {"prompt": rows[0], "max_tokens": 0, "prompt_logprobs": 0, "prompt_logprob_ranks": False},
        {"prompt": rows[2], "max_tokens": 1},
        {"prompt": rows[2][:1], "max_tokens": 1, "echo": True, "logprobs": 1},
        {"prompt": rows[2][:1], "max_tokens": 0, "prompt_logprobs": 1},
        {"prompt": rows[3], "max_tokens": 0},
        {"prompt": rows, "max_tokens": 1, "prompt_logprobs": 1, "return_token_ids": True},
    ]
    with Listening(scorer) as served, ThreadPoolExecutor(len(asked)) as pool:
        alone = [served.ask(**body).json()["choices"] for body in asked]
        held = Held(served.service)
        answers = []
        for body in asked:
            answers.append(pool.submit(served.ask, **body))
            if len(answers) == 1:
                held.begun()
        held.waiting(len(asked) - 2 + len(rows))
        held.let_go()
        together = [each.result().json()["choices"] for each in answers]
    assert alike(alone, together)
    assert [len(each[0].get("prompt_logprobs") or ()) for each in alone[:2]] == [36, 36]
    assert [alone[3][0]["prompt_logprobs"][n] is None for n in (19, 20)] == [True, False]
    assert len(alone[6][0]["logprobs"]["token_logprobs"]) == 2
    assert alone[7][0]["prompt_logprobs"] == [None]
    ranked, others = (alone[n][0]["prompt_logprobs"][1:] for n in (0, 4))
    for entry, other in zip(ranked, others, strict=True):
        ((_, a),), ((_, b),) = entry.items(), other.items()
        assert (a["rank"] > 0, b["rank"]) == (True, None)
        assert a["logprob"] == pytest.approx(b["logprob"], abs=1e-5)


def test_tokens_by_their_ids(served: Listening) -> None:
    """No two share a name, as parts of characters may."""
    asked = {"prompt": "€ and 日", "max_tokens": 1, "echo": True, "logprobs": 3}
    ids = served.ask(**asked, return_token_ids=True, return_tokens_as_token_ids=True).json()
    (choice,) = ids["choices"]
    all_ids = choice["prompt_token_ids"] + choice["token_ids"]
    assert choice["logprobs"]["tokens"] == [f"token_id:{i}" for i in all_ids]
    names = [name for top in choice["logprobs"]["top_logprobs"][1:] for name in top]
    assert all(name.startswith("token_id:") for name in names)
    (plain,) = served.ask(**asked).json()["choices"]
    for key in ("token_logprobs", "text_offset"):
        assert plain["logprobs"][key] == choice["logprobs"][key]


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_the_longest_prompt(served: Listening, scorer: Scorer, max_tokens: int) -> None:
    row = [0, *np.random.default_rng(3).integers(2, 4096, 512 - max_tokens).tolist()]
    found = served.ask(prompt=row, max_tokens=max_tokens, echo=True, logprobs=0).json()
    values = found["choices"][0]["logprobs"]["token_logprobs"]
    assert len(values) == 513
    here = losses_here(scorer, row)
    assert [-value for value in values[1 : len(row)]] == pytest.approx(here, abs=1e-5)


def test_a_client_that_went_away_is_not_scored(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqloss_cli.service.app.SECONDS_BETWEEN_LOOKS", 0.01)
    with Listening(scorer) as served, ThreadPoolExecutor(2) as pool:
        held = Held(served.service)
        first = pool.submit(served.ask, prompt=[0, 1], max_tokens=0)
        held.begun()
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"{served.url}/v1/completions", timeout=0.05,
                       json={"prompt": [[0, 2], [0, 3]], "max_tokens": 0})  # fmt: skip
        while not served.service._statuses[499]:
            time.sleep(0.001)
        held.let_go()
        assert first.result().status_code == 200
        assert served.ask(prompt=[0, 4], max_tokens=0).status_code == 200
    assert held.scored == [[0, 1], [0, 4]]


def test_an_error_is_told_to_those_who_cause_it(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, told = 77, list[Exception]()
    score = scorer.backend.score

    def failing(batch: Any, requested: Any) -> Any:
        if bad in batch.input_ids:
            raise ValueError("no such luck")
        return score(batch, requested)

    monkeypatch.setattr(scorer.backend, "score", failing)
    with Listening(scorer) as served, ThreadPoolExecutor(3) as pool:
        served.service._on_error = told.append
        held = Held(served.service)
        rows = [[0, 5, 6], [0, bad, 6], [0, 7, 8]]
        bodies = [{"prompt": row, "max_tokens": 0, "prompt_logprobs": 0} for row in rows]
        answers = [pool.submit(served.ask, **bodies[0])]
        held.begun()
        answers += [pool.submit(served.ask, **body) for body in bodies[1:]]
        held.waiting(2)
        held.let_go()
        found = [each.result() for each in answers]
    assert [each.status_code for each in found] == [200, 500, 200]
    assert "no such luck" in found[1].text
    assert [str(each) for each in told] == ["no such luck"]


def test_a_model_that_gives_no_number(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A row of NaN is refused, not asked for again; other rows have their numbers."""
    score = scorer.backend.score
    texts = ["A list.", "The cat sat.", "A dog."]
    first, second, third = (set(ids) for ids in scorer.tokenization.encode(texts))
    bad = min(second - first - third)

    def broken(batch: Any, requested: Any) -> Any:
        found = score(batch, requested)
        if bad in batch.input_ids:
            found.losses[:] = np.nan
            for name in found.columns.keys() & {"top_log_probs"}:
                found.columns[name][:] = np.nan
        return found

    monkeypatch.setattr(scorer.backend, "score", broken)
    with Listening(scorer) as served:
        for body in ({"prompt_logprobs": 0, "max_tokens": 0}, {"max_tokens": 1}):
            found = served.ask(prompt=[0, bad, 5], **body)
            assert (found.status_code, "NaN" in found.text) == (422, True)
        file = tmp_path / "texts.txt"
        file.write_text("\n".join(texts))
        # One at a time: all rows of a broken batch are NaN here.
        words = ("score", file, "--lines", "--json", "--engine", served.url, "--concurrency", 1)
        document_ = document(in_process(*words), 3)
    assert [each["line"] for each in document_["rejected"]] == [2]
    assert document_["rejected"][0]["reason"] == "server_refused"
    assert [each["line"] for each in document_["sequences"]] == [1, 3]


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (["a", "b", ""], "prompt 2 of 3: holds no text"),
        ([[1, 2], [1, -1]], "prompt 1 of 2: -1 is no id"),
        ([[], [1, 2]], "prompt 0 of 2: a prompt of 0 tokens"),
        ([""], "holds no text"),
    ],
)
def test_one_of_several_prompts_is_named(served: Listening, prompts: list[Any], said: str) -> None:
    answer = served.ask(prompt=prompts, max_tokens=0, echo=True, logprobs=0)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(said)


def test_no_more_alternatives_than_ids(
    served: Listening, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer.tokenization, "n_ids", 10)
    found = served.ask(prompt=[0, 5], max_tokens=0, prompt_logprobs=11)
    assert (found.status_code, "at most 10" in found.text) == (400, True)
    found = served.ask(prompt=[0, 11], max_tokens=0, prompt_logprobs=10)
    assert (found.status_code, "0 to 9" in found.text) == (400, True)


def test_a_body_that_does_not_come_is_not_waited_for(scorer: Scorer) -> None:
    import socket

    with Listening(scorer, seconds=0.05) as served:
        host, port = served.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 10) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
            )
            assert connection.recv(1000).startswith(b"HTTP/1.1 503")


def test_a_server_with_a_key(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    with Listening(scorer, key="k3y") as served:
        assert served.ask(prompt="a", max_tokens=0).status_code == 401
        assert httpx.get(f"{served.url}/v1/models").status_code == 401
        assert httpx.get(f"{served.url}/health").status_code == 200
        words = ("score", "--text", TEXTS[0], "--json", "--engine", served.url)
        assert in_process(*words).exit_code == 1
        monkeypatch.setenv("SEQLOSS_API_KEY", "k3y")
        assert in_process(*words).exit_code == 0


def test_what_waits_is_scored_before_the_server_stops(scorer: Scorer) -> None:
    with Listening(scorer) as served, ThreadPoolExecutor(8) as pool:
        row = [0, *range(5, 400)]
        asked = [pool.submit(served.ask, prompt=row, max_tokens=1, prompt_logprobs=0)
                 for _ in range(8)]  # fmt: skip
        while not len(served.service.queue) and not asked[0].done():
            time.sleep(0.001)
        served.service.queue.close()
        statuses = {each.result().status_code for each in asked}
    assert statuses <= {200, 503}
    assert 200 in statuses


def test_another_address_needs_a_key() -> None:
    result = in_process("serve", "--host", "0.0.0.0")
    assert result.exit_code == 2
    assert "SEQLOSS_API_KEY" in result.stderr


def test_a_gguf_file_with_pieces(tmp_path: Path) -> None:
    """Numbers are those of the file here; offsets are of the text, not of the blank before it."""
    from helpers.builders import llama
    from helpers.gguf_files import PIECES, write_pieces

    file = write_pieces(tmp_path / "pieces.gguf", llama(len(PIECES), layers=1))
    scorer = Scorer(ModelChoice(name=str(file)))
    text = "the cat é the"
    (here,) = scorer.score([Sample("0", "", text=text)])
    assert isinstance(here, SequenceScore)
    ids = here.sequence.token_ids.tolist()
    with Listening(scorer) as served:
        asked = {"max_tokens": 0, "echo": True, "logprobs": 0, "return_token_ids": True}
        (by_text,) = served.ask(prompt=text, **asked).json()["choices"]
        (by_ids,) = served.ask(prompt=ids, **asked).json()["choices"]
    assert by_text["prompt_token_ids"] == by_ids["prompt_token_ids"] == ids
    for found in (by_text, by_ids):
        values = found["logprobs"]["token_logprobs"]
        assert [-value for value in values[1:]] == pytest.approx(here.losses[1:].tolist(), abs=1e-9)
    assert by_text["text"] == text
    assert by_text["logprobs"]["tokens"][:2] == ["<s>", " the"]
    assert by_text["logprobs"]["text_offset"][:4] == [0, 0, 3, 7]
    assert by_ids["text"] == f"<s> {text}"
