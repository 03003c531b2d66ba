"""Servers of OpenAI's shape: those that take texts only, and what shows that values are of other
tokens than they stand beside."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.program import ROOT, document, in_process
from helpers.servers import (
    Broken,
    FakeServer,
    demo_tokenizer,
    log_probs_after,
    losses_of,
    openai_answer,
    serving,
    shown,
)
from seqloss_cli.core.errors import RowError

BOS = 0


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes are kept for this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SEQLOSS_MODEL", "demo")  # its tokenizer


@pytest.fixture(params=[True, False], ids=["adds-bos", "adds-none"])
def texts_only(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    """A server as llama-cpp-python's."""
    with serving(FakeServer("openai", takes_ids=False, adds_bos=request.param)) as found:
        yield found


@pytest.fixture
def takes_ids() -> Iterator[FakeServer]:
    with serving(FakeServer("openai")) as found:
        yield found


def run(server: FakeServer, command: str, *words: object) -> Any:
    return in_process(command, *words, "--engine", f"openai+{server.url}")


def scored(server: FakeServer, *words: object, code: int = 0) -> Any:
    return document(run(server, "score", *words, "--json"), code)


def refused(server: FakeServer, *words: object) -> str:
    """The message of a run that ends before its first row."""
    result = run(server, "score", "--text", "The cat sat.", *words)
    assert result.exit_code == 1, result.stderr
    return " ".join(result.stderr.split())


# -- texts in the place of ids ---------------------------------------------------------------------


def test_texts_are_sent_and_the_token_after_bos_is_unscored(
    texts_only: FakeServer, tmp_path: Path
) -> None:
    file = tmp_path / "texts.txt"
    # Blanks at both ends, a character of three tokens, and a control token that a text spells.
    lines = ["The cat sat.", "  two,  three  ", "a 日 b", "x<|end_of_text|>y"]
    file.write_text("\n".join(lines))
    found = scored(texts_only, file, "--lines")
    assert [row["text"] for row in found["sequences"]] == lines
    for row in found["sequences"]:
        assert row["token_losses"][:2] == [None, None]
        assert row["token_losses"][2:] == pytest.approx(losses_of(row["token_ids"])[1:], abs=1e-12)
        assert row["n_scored"] == row["n_tokens"] - 2
        assert row["n_unscored_text_tokens"] == 1
        assert row["flags"]["first_token_unscored"]
    assert found["totals"]["flags"]["first_token_unscored"] == 4
    engine = found["run"]["engine"]
    assert engine["prompts"] == "texts"
    assert engine["after_bos"] == "unscored"
    assert engine["version"] == "llama.cpp Python API 0.3.36"
    spelled = "" if texts_only.adds_bos else "<|begin_of_text|>"
    sent = [body["prompt"] for body in texts_only.asked if isinstance(body["prompt"], str)]
    assert set(sent) >= {spelled + line for line in lines}


def test_a_row_of_bos_and_one_token_has_nothing_scored(texts_only: FakeServer) -> None:
    (row,) = scored(texts_only, "--text", "a")["sequences"]
    assert row["token_losses"] == [None, None]
    assert row["n_scored"] == 0
    assert row["total_loss"] is None


@pytest.mark.parametrize(("context", "stride"), [(2, 1), (3, 2), (7, 3), (7, 6)])
def test_windows_of_texts(texts_only: FakeServer, context: int, stride: int) -> None:
    """Some of them end within a run of blanks, where a text alone would have other tokens."""
    text = "One line.\n\n- An item\n\n\n  ends here,   or there."
    words = ("--text", text, "--context", context, "--stride", stride)
    (row,) = scored(texts_only, *words)["sequences"]
    assert row["token_losses"][2:] == pytest.approx(losses_of(row["token_ids"])[1:], abs=1e-12)


@pytest.mark.parametrize(("context", "stride"), [(1, 1), (7, 7)])
def test_no_window_scores_what_comes_right_after_bos(
    texts_only: FakeServer, context: int, stride: int
) -> None:
    words = ("--text", "a b", "--context", context, "--stride", stride)
    result = run(texts_only, "score", *words)
    assert result.exit_code == 2
    assert "--stride is less than --context" in " ".join(result.stderr.split())


def test_pairs_and_choices(texts_only: FakeServer, tmp_path: Path) -> None:
    words = ("--prompt", "A list is", "--response", " sorted.", "--pmi")
    (row,) = document(run(texts_only, "cond", *words, "--json"))["sequences"]
    losses, n = losses_of(row["token_ids"]), sum(row["loss_mask"])
    assert row["log_prob_y_given_x"] == pytest.approx(-sum(losses[-n:]), abs=1e-9)
    assert row["log_prob_x"] == pytest.approx(-sum(losses[1:-n]), abs=1e-9)
    # Of the response alone the first token would be missing.
    assert row["log_prob_y"] is None
    assert row["pmi"] is None
    ranked = run(texts_only, "rank", *words[:-1], "--response", " wet.", "--json")
    scores = document(ranked)["sequences"][0]["choices"][0]["scores"]
    assert scores["sum"] == pytest.approx(row["log_prob_y_given_x"], abs=1e-9)
    file = tmp_path / "choices.jsonl"
    file.write_text(json.dumps({"prompt": "", "choices": ["It is", "They are"]}))
    (rejected,) = document(run(texts_only, "rank", file, "--json"), 3)["rejected"]
    assert rejected["reason"] == "first_token_unscored"
    assert "right after BOS" in rejected["message"]


def test_without_bos_the_values_of_such_a_server_are_not_used(texts_only: FakeServer) -> None:
    (rejected,) = scored(texts_only, "--text", "The cat sat.", "--bos", "never", code=3)["rejected"]
    assert rejected["reason"] == "server_position"


def test_a_tokenizer_without_bos_ends_the_run(texts_only: FakeServer, tmp_path: Path) -> None:
    tokenizer = json.loads((ROOT / "seqloss_cli" / "demo" / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    config = json.loads((ROOT / "seqloss_cli" / "demo" / "config.json").read_text())
    config["bos_token_id"] = None
    (tmp_path / "config.json").write_text(json.dumps(config))
    message = refused(texts_only, "--model", tmp_path)
    if texts_only.adds_bos:
        assert "(usage.prompt_tokens)" in message
    else:
        assert "depend on that token" in message
        assert "--tokenizer names another" in message


def test_known_rows_among_texts(texts_only: FakeServer, tmp_path: Path) -> None:
    """A text has no drawn end, which may have other tokens."""
    file = tmp_path / "lines.txt"
    file.write_text("\n".join(f"The cat {n} sat on the mat." for n in range(40)) + "\n")
    scored(texts_only, "--text", "a b")
    texts_only.asked.clear()
    assert scored(texts_only, file, "--lines")["rejected"] == []
    asked = [body["prompt"] for body in texts_only.asked]
    at_the_start, after_blocks, among_rows = 3, 6, 4 + 40 // 16
    n_known = sum(each[:40] == asked[0][:40] for each in asked)
    assert n_known == at_the_start + after_blocks + among_rows


def test_a_bos_within_a_text_is_not_shown(texts_only: FakeServer) -> None:
    text = "The cat<|begin_of_text|> sat."
    (rejected,) = scored(texts_only, "--text", text, code=3)["rejected"]
    assert rejected["reason"] == "server_ids"


def test_special_tokens_that_are_to_be_text_are_not_sent(texts_only: FakeServer) -> None:
    words = ("--text", "x<|end_of_text|>y", "--special-tokens", "text")
    (rejected,) = scored(texts_only, *words, code=3)["rejected"]
    assert rejected["reason"] == "server_text"


def cut_elsewhere(answer: Any) -> Any:
    found = answer["choices"][0]["logprobs"]
    found["tokens"][1:3] = [found["tokens"][1] + found["tokens"][2][:1], found["tokens"][2][1:]]
    return answer


def without_usage(answer: Any) -> Any:
    del answer["usage"]
    return answer


def longer(answer: Any) -> Any:
    answer["usage"]["prompt_tokens"] += 1
    return answer


def of_another_model(answer: Any) -> Any:
    return answer | {"model": "another"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [(cut_elsewhere, "server_ids"), (without_usage, "server_length"), (longer, "server_length"),
     (of_another_model, "server_model")],
)  # fmt: skip
def test_an_answer_about_other_tokens_rejects_its_row(
    texts_only: FakeServer, tmp_path: Path, change: Callable[[Any], Any], reason: str
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("The cat sat.\nA dog ran.")

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        return change(right) if "dog" in str(body["prompt"]) else right

    texts_only.fault = fault
    found = scored(texts_only, file, "--lines", code=3)
    assert [(each["line"], each["reason"]) for each in found["rejected"]] == [(2, reason)]


def test_more_tokens_than_were_asked_for_are_left_out(texts_only: FakeServer) -> None:
    """llama-cpp-python's server goes on where what it generates is part of a character."""

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        if not isinstance(right, Broken):
            for values in right["choices"][0]["logprobs"].values():
                values += values[-1:] * 3
            right["usage"]["completion_tokens"] += 3
        return right

    texts_only.fault = fault
    (row,) = scored(texts_only, "--text", "The cat sat.")["sequences"]
    assert row["token_losses"][2:] == pytest.approx(losses_of(row["token_ids"])[1:], abs=1e-12)


def test_a_text_that_is_too_long_says_what_mends_it(texts_only: FakeServer) -> None:
    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        too_long = len(body["prompt"]) > 1000 and isinstance(body["prompt"], str)
        return Broken(400, content=b'{"error": "maximum context length"}') if too_long else right

    texts_only.fault, texts_only.max_model_len = fault, None
    (rejected,) = scored(texts_only, "--text", "a b " * 300, code=3)["rejected"]
    assert rejected["reason"] == "server_refused"
    assert "--context N" in rejected["message"]


def test_a_server_without_logits_of_all_tokens_is_told_what_it_lacks(
    texts_only: FakeServer,
) -> None:
    content = b'{"error": {"message": "not supported for models created with logits_all=False"}}'
    texts_only.fault = lambda number, body, right: Broken(500, content=content)
    message = refused(texts_only)
    assert "--logits_all true" in message
    assert len(texts_only.asked) == 3, "an answer that no other attempt changes"


# -- values of other tokens ------------------------------------------------------------------------


def lists(change: Callable[[list[Any], list[Any]], tuple[Any, Any]]) -> Callable[..., Any]:
    """A fault: other values and alternatives beside the tokens."""

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        found = right["choices"][0]["logprobs"]
        own, tops = change(found["token_logprobs"], found["top_logprobs"])
        found["token_logprobs"], found["top_logprobs"] = own, tops
        return right

    return fault


def without_echo(number: int, body: dict[str, Any], right: Any) -> Any:
    found = right["choices"][0]["logprobs"]
    for name, values in found.items():
        found[name] = values[-1:]
    return right


def of_these(make: Callable[[list[int]], list[int]]) -> Callable[..., Any]:
    """A fault: the answer is about other ids, and says nothing of usage."""

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        found = openai_answer(body | {"prompt": make(body["prompt"])})
        return {"choices": found["choices"]}

    return fault


def made_again(ids: list[int]) -> list[int]:
    text = demo_tokenizer().decode(ids[1:])
    return [BOS, *demo_tokenizer().encode(text, add_special_tokens=False).ids]


def after_sampling(number: int, body: dict[str, Any], right: Any) -> Any:
    return scaled(1 / (body["temperature"] or 1))(number, body, right)


def scaled(factor: float) -> Callable[..., Any]:
    """A fault: all values are others."""
    return lists(
        lambda own, tops: (
            [p and p * factor for p in own],
            [top and {text: p * factor for text, p in top.items()} for top in tops],
        )
    )


FAULTS: dict[str, tuple[Callable[..., Any], str]] = {
    # The value of each token given itself, as of llama-cpp-python without BOS.
    "a place early": (
        lists(lambda own, tops: ([None, *own[2:], -1.0], [None, *tops[2:], {"x": -1.0}])),
        "depend on that token|alternatives do not say",
    ),
    "a place late": (
        lists(lambda own, tops: ([None, -1.0, *own[1:-1]], [None, {"x": -1.0}, *tops[1:-1]])),
        "alternatives do not say",
    ),
    "values alone are late": (
        lists(lambda own, tops: ([None, -1.0, *own[1:-1]], tops)),
        "alternatives do not say",
    ),
    "no alternatives": (lists(lambda own, tops: (own, None)), "has no top_logprobs"),
    "no echo": (without_echo, "entries in token_logprobs.*llama-server"),
    "cut from the left": (of_these(lambda ids: ids[-8:]), "entries in token_logprobs"),
    "a BOS too many": (of_these(lambda ids: [BOS, *ids]), "tokens|entries"),
    "ids taken modulo": (of_these(lambda ids: [i % 1000 for i in ids]), "other tokens"),
    "ids made anew of a text": (of_these(made_again), "entries|other tokens"),
    "values after sampling": (after_sampling, "options of sampling"),
    "logits": (scaled(1 / 4), "add up to"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_server_with_values_of_other_tokens_ends_the_run(
    takes_ids: FakeServer, name: str
) -> None:
    import re

    takes_ids.fault, said = FAULTS[name]
    message = refused(takes_ids)
    assert re.search(said, message), message


def test_a_value_of_the_token_itself_is_found_out(takes_ids: FakeServer) -> None:
    """The distribution after a token stands beside it: all that is said agrees with itself."""

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        ids, found = body["prompt"], right["choices"][0]["logprobs"]
        own = [float(log_probs_after(i)[i]) for i in ids]
        tops = [{shown(int(log_probs_after(i).argmax())): float(log_probs_after(i).max()),
                 shown(i): p} for i, p in zip(ids, own, strict=True)]  # fmt: skip
        found.update(token_logprobs=[None, *own[1:]], top_logprobs=[None, *tops[1:]])
        found["tokens"] = found["tokens"][: len(ids)]
        return right

    takes_ids.fault = fault
    assert "depend on that token" in refused(takes_ids)


def test_a_prompt_s_beginning_that_is_remembered_wrongly_ends_the_run(
    texts_only: FakeServer,
) -> None:
    before: list[str] = []

    def fault(number: int, body: dict[str, Any], right: Any) -> Any:
        if any(body["prompt"][:60] == text[:60] and body["prompt"] != text for text in before[-1:]):
            found = right["choices"][0]["logprobs"]
            found["token_logprobs"][3] -= 0.5
            found["top_logprobs"][3][found["tokens"][3]] -= 0.5
        before.append(body["prompt"])
        return right

    texts_only.fault = fault
    assert "in another order" in refused(texts_only)


# -- the proof that texts were cut alike -----------------------------------------------------------


@pytest.fixture(scope="module")
def pieces() -> Any:
    """Of a byte-level vocabulary with parts of characters of two bytes, and a letter before one."""
    from transformers import PreTrainedTokenizerFast

    from helpers.builders import byte_tokenizer
    from seqloss_cli.backends.server.pieces import Pieces
    from seqloss_cli.core.policies import TokenPolicy
    from seqloss_cli.tokenization.tokenizer import Tokenization

    parts = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    letters = {byte: chr(letter) for letter, byte in _letters().items()}
    for merge in ([0xE6, 0x97], [0x97, 0xA5], [0x61, 0xE6], [0x61, 0x62]):
        left, right = (letters[byte] for byte in merge)
        parts["model"]["vocab"][left + right] = len(parts["model"]["vocab"])
        parts["model"]["merges"].append([left, right])
    from tokenizers import Tokenizer

    own = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(parts)), bos_token="<bos>", eos_token="<eos>"
    )
    return Pieces(Tokenization(own, TokenPolicy(), len(parts["model"]["vocab"])))


def _letters() -> dict[int, int]:
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {b: b for b in plain} | {256 + n: b for n, b in enumerate(others)}


SPELLED = [b"a", b"b", b"ab", b"\xe6", b"\x97", b"\xa5", b"\xe6\x97", b"\x97\xa5", b"a\xe6"]


@given(st.lists(st.sampled_from(SPELLED), min_size=1, max_size=5))
def test_a_cut_is_proven_where_no_other_would_be_shown_alike(pieces: Any, cut: list[bytes]) -> None:
    """The oracle tries all cuts of the same bytes into as many tokens."""
    ids_by_bytes = {pieces._vocabulary.bytes_of(n): n for n in range(262)}
    ids = [ids_by_bytes[raw] for raw in cut]
    told = [raw.decode(errors="ignore") for raw in cut]
    alike = [
        other for other in product(SPELLED, repeat=len(cut))
        if b"".join(other) == b"".join(cut)
        and [raw.decode(errors="ignore") for raw in other] == told
    ]  # fmt: skip
    if len(alike) == 1:
        pieces.require_same_cut(told, ids, "tokens")
        return
    with pytest.raises(RowError) as raised:
        pieces.require_same_cut(told, ids, "tokens")
    assert raised.value.reason == "server_text"


def test_a_text_that_is_shown_for_another_token_is_none_of_ours(pieces: Any) -> None:
    ids_by_bytes = {pieces._vocabulary.bytes_of(n): n for n in range(262)}
    for raw, theirs, is_shown in [
        (b"a", "a", True), (b"a", " a", True), (b"a", "", False), (b"a", "b", False),
        (b"[", "]", False), (b"<", ">", False), (b" ", "", True), (b" ", " ", True),
        (b" ", "\n", False),
        (b"\xe6", "", True), (b"\xa5", "日", True), (b"\xa5", "é", False),
        (b"\xe6", "\ufffd", True), (b"\xe6", "<0xE6>", True), (b"a", "\ufffd", False),
        (b"a", None, False), (b"a", 1, False), (b"<bos>", "", True), (b"<bos>", "a", False),
    ]:  # fmt: skip
        token_id = ids_by_bytes[raw]
        if is_shown:
            pieces.require_shown([theirs], [token_id], "tokens")
        else:
            with pytest.raises(RowError):
                pieces.require_shown([theirs], [token_id], "tokens")
