"""`seqloss rank`: scores and orders against oracles, accuracies against their definitions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

import seqloss_cli
from helpers.builders import byte_tokenizer, llama, save_checkpoint
from helpers.oracles import reference_losses
from helpers.program import document, in_process, strictly
from seqloss_cli import ModelChoice, PairPolicy, Scorer
from seqloss_cli.backends.torch.backend import TorchBackend
from seqloss_cli.core.records import Choices, Rejected, Sample
from seqloss_cli.metrics.accuracy import RankTotals, accuracies, rank_totals
from seqloss_cli.metrics.intervals import proportion_estimate
from seqloss_cli.metrics.ranking import ACCURACIES, SCORES, Ranking, rank
from seqloss_cli.results.files import open_any
from seqloss_cli.results.schema.rankings import RANKING_KINDS

TOLERANCE = 1e-4  # nats per token in float32, rule 11
TEXTS = st.text(st.sampled_from("abc é"), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("bytes"), llama(), byte_tokenizer())


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Scorer:
    """Byte tokens, and what `--pmi` asks for."""
    return Scorer(ModelChoice(str(folder)), pairs=PairPolicy(marginal=False, pmi=True))


def row(*responses: str, prompt: str = "ab", separator: str = "", answer: Any = None) -> Sample:
    return Sample("row", "<test>", choices=Choices(prompt, responses, separator, answer))


def ranked(scorer: Scorer, *samples: Sample, alone: bool = True) -> list[Ranking]:
    found = list(rank(samples, scorer.score, alone))
    assert all(isinstance(each, Ranking) for each in found), found
    return found  # type: ignore[return-value]


def log_prob(scorer: Scorer, prompt: str, response: str) -> float:
    """One forward per prefix, in float64."""
    ids = scorer.tokenization.encode([prompt + response])[0]
    n = len(response.encode())
    losses = reference_losses(scorer.backend.model, [0, *ids])
    return -math.fsum(loss for loss in losses[-n:] if loss is not None)


def test_scores_against_one_forward_per_prefix(scorer: Scorer) -> None:
    responses, separator = ("a", "bcé", "c c"), ": "
    found = ranked(scorer, row(*responses, separator=separator))[0]
    for choice, text in zip(found.scored, responses, strict=True):
        whole = log_prob(scorer, "ab", separator + text)
        alone = log_prob(scorer, "", separator + text)
        n = len((separator + text).encode())
        assert choice.log_prob == pytest.approx(whole, abs=n * TOLERANCE)
        assert choice.log_prob_alone == pytest.approx(alone, abs=n * TOLERANCE)
        assert choice.log_prob_y == pytest.approx(alone, abs=n * TOLERANCE)
        expected = {
            "sum": whole,
            "token": whole / len(text.encode()),  # a token a byte; not those of the separator
            "byte": whole / len(text.encode()),
            "char": whole / len(text),
            "pmi": whole - alone,
            "mutual_information": whole - alone,
        }
        for name in SCORES:
            assert choice.score_by(name) == pytest.approx(expected[name], abs=2 * n * TOLERANCE)
    logs = np.array([choice.log_prob for choice in found.scored])
    assert found.probabilities == pytest.approx(np.exp(logs) / np.exp(logs).sum())


def by_definition(found: Ranking, answer: int) -> dict[str, bool]:
    """As lm-evaluation-harness writes it: numpy's argmax, which takes the first of equals."""
    logs = np.array([choice.log_prob for choice in found.scored])
    alone = np.array([choice.log_prob_alone for choice in found.scored])
    texts = found.choices.responses
    return {
        "acc": bool(np.argmax(logs) == answer),
        "acc_norm": bool(np.argmax(logs / [len(t) for t in texts]) == answer),
        "acc_bytes": bool(np.argmax(logs / [len(t.encode()) for t in texts]) == answer),
        "acc_mutual_info": bool(np.argmax(logs - alone) == answer),
    }


@given(st.lists(TEXTS, min_size=2, max_size=5), TEXTS, st.sampled_from(["", " "]), st.data())
def test_accuracies_are_those_of_the_harness(
    scorer: Scorer, responses: list[str], prompt: str, separator: str, data: st.DataObject
) -> None:
    answer = data.draw(st.integers(0, len(responses) - 1))
    sample = row(*responses, prompt=prompt, separator=separator, answer=(answer,))
    found = ranked(scorer, sample)[0]
    right = found.correct
    assert right is not None
    for name, expected in by_definition(found, answer).items():
        assert right[name] == expected
    for name, order in found.orders.items():
        scores = [found.scored[n].score_by(name) for n in order]
        assert sorted(order) == list(range(len(responses)))
        assert all(
            a > b or (a == b and m < n)  # type: ignore[operator]
            for a, b, m, n in zip(scores, scores[1:], order, order[1:], strict=False)
        )


def test_a_choice_that_no_token_stands_for_has_no_score_per_byte_or_character(
    tmp_path: Path,
) -> None:
    tokenizer = byte_tokenizer()
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    parts["model"]["vocab"].pop("q")
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(parts))
    folder = save_checkpoint(tmp_path / "ck", llama(), tokenizer)
    rows = tmp_path / "rows.jsonl"
    # what only the prompt lacks leaves the choices' own rates
    rows.write_text(
        '{"prompt": "ab", "choices": ["cq", "d"], "answer": 0}\n'
        '{"prompt": "aq", "choices": ["c", "d"], "answer": 0}\n'
    )
    out = tmp_path / "out.jsonl"
    done = in_process("rank", rows, "--model", folder, "--separator", " ", "-o", out)
    assert done.exit_code == 0, done.stderr
    assert "2 texts hold what no token stands for" in done.stderr
    _, first, second, totals = map(strictly, out.read_text().splitlines())
    assert first["choices"][0]["unspelled_bytes"] == 1
    assert "unspelled_bytes" not in first["choices"][1]
    assert [*first["orders"]] == ["sum", "token"]
    assert first["correct"]["acc_norm"] is None
    assert [*second["orders"]] == ["sum", "token", "byte", "char"]
    assert totals["n_ordered"]["byte"] == 1
    (read, _) = open_any(str(out), RANKING_KINDS).rows
    assert read.choices[0].figures.score_by("byte") is None


def test_the_same_choice_twice_is_a_tie_and_the_first_wins(scorer: Scorer) -> None:
    found = ranked(scorer, row("b", "ab", "b", "ab", answer=(3,)))[0]
    assert found.tied == SCORES
    assert found.orders["sum"] in ((0, 2, 1, 3), (1, 3, 0, 2))
    assert found.correct == dict.fromkeys(ACCURACIES, False)  # place 3 is never first
    assert rank_totals(found).n_tied == dict.fromkeys(SCORES, 1)


def test_equal_lengths_make_equal_orders_and_an_empty_prompt_no_information(
    scorer: Scorer,
) -> None:
    found = ranked(scorer, row("abc", "cba", "bac", prompt=""))[0]
    assert len({found.orders[name] for name in ("sum", "token", "byte", "char")}) == 1
    assert [choice.score_by("mutual_information") for choice in found.scored] == [0.0] * 3
    assert found.tied == ("pmi", "mutual_information")


def test_several_answers_and_what_a_guess_would_reach(scorer: Scorer) -> None:
    many = ranked(scorer, row("a", "b", "c", "é", answer=(0, 1)), row("a", "b", answer=(0,)))
    totals = rank_totals(many[0]) + rank_totals(many[1]) + RankTotals()
    assert totals.chance == pytest.approx((2 / 4 + 1 / 2) / 2)
    best = many[0].orders["sum"][0]
    assert many[0].correct["acc"] == (best in (0, 1))  # type: ignore[index]
    assert accuracies(totals)["acc"].n == 2


def test_without_bos_an_empty_prompt_is_refused(folder: Path) -> None:
    scorer = Scorer(ModelChoice(str(folder)), pairs=PairPolicy(marginal=False))
    bare = Scorer(
        ModelChoice(str(folder)),
        policy=type(scorer.tokenization.policy)(bos="never"),
        pairs=PairPolicy(marginal=False),
    )
    found = list(rank([row("ab", "b", prompt=""), row("ab", "b")], bare.score))
    assert isinstance(found[0], Rejected)
    assert found[0].reason == "first_token_unscored"
    assert "--bos-token" in found[0].message
    assert isinstance(found[1], Ranking)


def test_what_rejects_a_choice_rejects_its_row_alone(scorer: Scorer) -> None:
    long = "a" * 80
    samples = [row("a", "b"), row("a", long), row("c", "b")]
    found = list(rank(samples, scorer.score))
    assert [type(each) for each in found] == [Ranking, Rejected, Ranking]
    assert isinstance(found[1], Rejected)
    assert found[1].reason == "too_long"
    assert found[1].message.startswith("choice 1: ")


def test_impossible_choices_come_last_and_are_null_in_json(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, impossible_id = TorchBackend.score, byte_tokenizer().convert_tokens_to_ids("c")

    def score(self: TorchBackend, batch: Any, requested: Any) -> Any:
        found = plain(self, batch, requested)
        found.losses[batch.targets == impossible_id] = math.inf
        return found

    monkeypatch.setattr(TorchBackend, "score", score)
    words = ["rank", "-m", folder, "--prompt", "a", "--json", "--pmi", "--answer", 1]
    found = document(in_process(*words, "--response", "c", "--response", "ab"))
    impossible, possible = found["sequences"][0]["choices"]
    assert impossible["log_prob"] is None
    assert impossible["scores"]["sum"] is None
    assert impossible["flags"] == {"inf_loss": 1}
    assert impossible["probability"] == 0
    assert possible["probability"] == 1
    assert found["sequences"][0]["orders"]["sum"] == [1, 0]
    assert "pmi" not in found["sequences"][0]["orders"]  # -inf less -inf is not known
    assert found["totals"]["accuracies"]["acc"]["value"] == 1
    assert "acc_pmi" not in found["totals"]["accuracies"]
    both = document(in_process(*words, "--response", "c", "--response", "cc"))
    assert [c["probability"] for c in both["sequences"][0]["choices"]] == [None, None]
    assert both["sequences"][0]["tied"][0] == "sum"


def test_wilson_by_hand() -> None:
    z = 1.959963984540054
    found = proportion_estimate(7, 10)
    centre = (0.7 + z**2 / 20) / (1 + z**2 / 10)
    reach = z * math.sqrt(0.7 * 0.3 / 10 + z**2 / 400) / (1 + z**2 / 10)
    assert (found.low, found.high) == pytest.approx((centre - reach, centre + reach))
    assert found.standard_error == pytest.approx(np.std([1] * 7 + [0] * 3, ddof=1) / math.sqrt(10))
    assert proportion_estimate(0, 5).low == 0
    assert proportion_estimate(5, 5).high == 1
    assert proportion_estimate(0, 0).value is None


# -- the command --------------------------------------------------------------------------------


def lines(path: Path) -> Iterator[Any]:
    return (json.loads(line) for line in path.read_text().splitlines())


def test_rows_of_the_shapes_that_are_about(tmp_path: Path, folder: Path) -> None:
    """HellaSwag: ctx, endings, and a label that is a string. BLiMP: two sentences, no prompt."""
    made = tmp_path / "hellaswag.jsonl"
    made.write_text('{"ctx": "ab", "endings": ["c", "cc", "a b"], "label": "2"}\n')
    fields = ["--prompt-field", "ctx", "--choices-field", "endings", "--answer-field", "label"]
    found = document(in_process("rank", made, "-m", folder, *fields, "--json"))
    assert found["sequences"][0]["answers"] == [2]
    assert found["run"]["reading"]["choices_field"] == ["endings"]
    pairs = tmp_path / "blimp.jsonl"
    pairs.write_text('{"good": "abc", "bad": "cba"}\n{"good": "b", "bad": "c"}\n')
    fields = ["--no-prompt", "--choices-field", "good,bad", "--answer", "0"]
    found = document(in_process("rank", pairs, "-m", folder, *fields, "--json"))
    assert found["totals"]["n_with_answer"] == 2
    assert found["totals"]["chance"] == 0.5
    sums = [[c["scores"]["sum"] for c in each["choices"]] for each in found["sequences"]]
    expected = sum(good > bad for good, bad in sums) / 2
    assert found["totals"]["accuracies"]["acc"]["value"] == expected


def test_bad_rows_cost_only_themselves(tmp_path: Path, folder: Path) -> None:
    good = {"prompt": "a", "choices": ["b", "c"]}
    bad: list[Any] = [
        {"choices": ["a", "b"]},
        {"prompt": "a"},
        {"prompt": "a", "choices": "b"},
        {"prompt": "a", "choices": ["b"]},
        {"prompt": "a", "choices": ["b", ""]},
        {"prompt": "a", "choices": ["b", 1]},
        good | {"answer": 2},
        good | {"answer": "z"},
        good | {"answer": True},
        good | {"answer": []},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in [*bad, good | {"answer": "c"}]))
    result = in_process("rank", path, "-m", folder, "--jsonl")
    rows = [strictly(line) for line in result.stdout.splitlines()]
    reasons = [each["reason"] for each in rows if each["type"] == "rejected"]
    assert result.exit_code == 3
    assert reasons == [
        *["missing_field"] * 2,
        "wrong_type",
        "too_few_choices",
        "empty",
        "wrong_type",
        *["bad_answer"] * 4,
    ]
    assert [each["answers"] for each in rows if each["type"] == "sequence"] == [[1]]
    assert f"{path}:1" in result.stderr
    assert "--no-prompt" in result.stderr


def test_n_best_lists_are_re_ordered(tmp_path: Path, folder: Path) -> None:
    path, out, ranked = tmp_path / "rows.jsonl", tmp_path / "o.jsonl", tmp_path / "ranked.jsonl"
    given = [
        {"id": "one", "prompt": "a", "choices": ["b", "ccc", "aé"], "answer": 2, "user": "x"},
        {"id": "two", "prompt": "", "choices": ["ab", "ba"]},
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in given))
    words = ["rank", path, "-m", folder, "--by", "byte", "--keep-meta", "-o", out]
    assert in_process(*words, "--output-ranked", ranked).exit_code == 0
    sequences = [each for each in lines(out) if each["type"] == "sequence"]
    for before, found, after in zip(given, sequences, lines(ranked), strict=True):
        order = found["orders"]["byte"]
        choices: Any = before["choices"]
        assert after["choices"] == [choices[n] for n in order]
        assert after["places"] == order
        assert after["scores"] == sorted(after["scores"], reverse=True)
        assert after.get("user") == before.get("user")
        if "answer" in before:
            assert after["choices"][after["answer"]] == choices[before["answer"]]
    again = document(in_process("rank", ranked, "-m", folder, "--by", "byte", "--json"))
    for each in again["sequences"]:
        assert each["orders"]["byte"] == sorted(each["orders"]["byte"])


def test_re_ordered_chats_have_the_same_scores(tmp_path: Path, folder: Path) -> None:
    path, ranked, template = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "chat.jinja"))
    template.write_text(
        "{{ tools | tojson }}{{ documents | tojson }}{% for m in messages %}[{{ m.role }}]"
        "{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    chat = {"prompt": [{"role": "user", "content": "a"}], "choices": ["b", "c"]}
    path.write_text(json.dumps({**chat, "tools": [{"n": 1}], "documents": [{"text": "d"}]}))
    words = ("-m", folder, "--chat-template", template, "--json")
    first = document(in_process("rank", path, *words, "--output-ranked", ranked))
    again = document(in_process("rank", ranked, *words))
    found, expected = (
        sorted(choice["log_prob"] for choice in each["sequences"][0]["choices"])
        for each in (again, first)
    )
    assert found == expected


def test_a_rejected_row_costs_neither_file(tmp_path: Path, folder: Path) -> None:
    path, ranked = tmp_path / "rows.jsonl", tmp_path / "ranked.jsonl"
    path.write_text('{"prompt": "a", "choices": ["b", "c"]}\n{"prompt": "a"}\n')
    words = ["rank", path, "-m", folder, "--output-ranked", ranked, "--json"]
    document(in_process(*words), exit_code=3)
    assert len(list(lines(ranked))) == 1
    strict = in_process(*words[:4], "--jsonl", "--strict")
    assert strictly(strict.stdout.splitlines()[-1])["flags"] == {"stopped_early": 1}


def test_an_answer_that_can_be_read_in_two_ways_is_refused(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [("0", ["1", "0"]), ("1", ["0", "1"]), ("9" * 5000, ["0", "1"])]
    made = [{"prompt": "a", "choices": choices, "answer": answer} for answer, choices in rows]
    path.write_text("".join(json.dumps(each) + "\n" for each in made))
    found = document(in_process("rank", path, "-m", folder, "--json"), exit_code=3)
    assert [each["reason"] for each in found["rejected"]] == ["bad_answer"] * 2
    assert found["sequences"][0]["answers"] == [1]


def test_without_bos_information_is_unknown_not_the_row(folder: Path) -> None:
    words = ["rank", "-m", folder, "--bos", "never", "--pmi", "--json", "--prompt", "ab"]
    found = document(in_process(*words, "--response", "ab", "--response", "b"))["sequences"][0]
    assert [c["log_prob_y"] for c in found["choices"]] == [None, None]
    assert [c["log_prob_alone"] for c in found["choices"]] == [None, None]
    assert sorted(found["orders"]) == ["byte", "char", "sum", "token"]


def test_batches_and_shared_prompts_do_not_matter(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": "ab" * n, "choices": ["a" * (n + 1), "b", "ca"], "answer": 0} for n in range(9)
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    runs = [
        document(in_process("rank", path, "-m", folder, "--json", "--pmi", *flags))
        for flags in ([], ["--batch-tokens", "16"], ["--no-share-prefix"])
    ]
    logs = [[c["log_prob"] for r in run["sequences"] for c in r["choices"]] for run in runs]
    assert logs[0] == pytest.approx(logs[1], abs=9 * TOLERANCE)
    assert logs[0] == pytest.approx(logs[2], abs=9 * TOLERANCE)


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--by", "pmi"], "--pmi"),
        (["--boundary", "compare"], "--boundary"),
        (["--format", "openai"], "openai"),
        (["--prompt", "a", "--response", "b"], "two or more --response"),
        (["--prompt", "a", "--response", "b", "--response", "c", "--answer", "2"], "--answer"),
        (["--prompt", "a", "--response", "b", "--response", "c", "x.jsonl"], "exclude files"),
        (["--pmi", "--chat"], "--chat"),
        (["--no-prompt", "--prompt", "a"], "--no-prompt"),
        (["-o", "a.json", "--output-ranked", "a.json", "x"], "--output-ranked"),
    ],
)
def test_flags_that_contradict_each_other(words: list[str], flag: str) -> None:
    result = in_process("rank", *words)
    assert result.exit_code == 2
    assert flag in result.stderr


def test_chats_are_ranked_by_the_tokens_of_the_answer(run_cli: Any) -> None:
    words = ["rank", "--chat", "--chat-template", "samples/chat.jinja", "-m", "demo", "--json"]
    words += ["--prompt", "What is a list?", "--response", "A sequence.", "--response", "No."]
    found = document(run_cli(*words))
    choice = found["sequences"][0]["choices"][0]
    pair = ["cond", "--chat", "--chat-template", "samples/chat.jinja", "-m", "demo", "--json"]
    pair += ["--prompt", "What is a list?", "--response", "A sequence."]
    alone = document(run_cli(*pair))["sequences"][0]
    assert choice["log_prob"] == pytest.approx(alone["log_prob_y_given_x"], abs=1e-3)
    assert choice["n_tokens"] == alone["n_scored"]


def test_the_table_at_80_columns(run_cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = run_cli("rank", "samples/choices.jsonl", "--separator", " ", "--pmi", "-m", "demo")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "sorted·in·place." in result.stdout
    assert "other scores prefer choice 1 by pmi" in result.stdout
    assert "Wilson" in result.stdout


def test_the_python_api() -> None:
    rows = [("The list is", [" sorted.", " sordid."]), ("x", ["y", ""])]
    found = list(seqloss_cli.rank(rows, pmi=True))
    assert isinstance(found[0], Ranking)
    assert found[0].orders["sum"] == (0, 1)
    assert isinstance(found[1], Rejected)
    with pytest.raises(seqloss_cli.UsageError, match="row 1"):
        list(seqloss_cli.rank([("a", "bc")]))
