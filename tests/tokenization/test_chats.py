"""What of a chat counts, against strings that are put together here, character by character.

Each family of templates stands twice: as a Jinja file in `templates`, and as a function below that
writes the same text by concatenation and notes where each assistant's turn begins and ends. The
tokenizers have one token a byte and one for each control token.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner

from helpers.builders import BOS, EOS, N_BYTE_IDS, byte_tokenizer, llama, save_checkpoint
from helpers.oracles import reference_losses
from seqloss_cli import (
    Chat,
    PairPolicy,
    Rejected,
    Sample,
    SequenceScore,
    TokenPolicy,
    chain_rule,
    totals_of,
)
from seqloss_cli.backends.torch.backend import TorchBackend
from seqloss_cli.cli.main import app
from seqloss_cli.core.backend import Requested
from seqloss_cli.core.policies import BatchPolicy, WindowPolicy
from seqloss_cli.core.records import IGNORED, Pair, TokenSequence
from seqloss_cli.inputs.reading import ReadOptions, ReadStats, pair_sample, read_inputs
from seqloss_cli.inputs.rows import PairFields
from seqloss_cli.metrics.chain_rule import turn_scores
from seqloss_cli.scoring.pipeline import score_samples
from seqloss_cli.tokenization.pairs import PairTokenization
from seqloss_cli.tokenization.tokenizer import Tokenization

TEMPLATES = Path(__file__).parent / "templates"
CONTEXT = 512
Messages = Sequence[dict[str, Any]]


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


# -- the families, written by hand ------------------------------------------------------------


@dataclass
class Written:
    text: str = ""
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    """Of each assistant's turn: where it begins, where its content and its end token end."""
    ends: list[int] = field(default_factory=list)
    """Where the text of each message ends."""

    def add(self, text: str) -> None:
        self.text += text

    def span(self, content: str, before_end: str, end: str) -> None:
        start, content_end = len(self.text), len(self.text) + len(content)
        self.add(content + before_end + end)
        self.spans.append((start, content_end, len(self.text) if end else content_end))

    def end_message(self) -> None:
        self.ends.append(len(self.text))


def text_of(content: Any) -> str:
    return "".join(part["text"] for part in content) if isinstance(content, list) else content or ""


def write_chatml(messages: Messages, tools: Any = None) -> Written:
    written = Written()
    if tools:
        lines = [json.dumps(tool, ensure_ascii=False) + "\n" for tool in tools]
        written.add("<|im_start|>system\n# Tools\n" + "".join(lines) + "<|im_end|>\n")
    for message in messages:
        written.add(f"<|im_start|>{message['role']}\n")
        content = text_of(message["content"])
        if message["role"] == "assistant":
            for call in message.get("tool_calls", []):
                called = json.dumps(call["function"], ensure_ascii=False)
                content += f"<tool_call>\n{called}\n</tool_call>"
            written.span(content, "", "<|im_end|>")
        else:
            written.add(content + "<|im_end|>")
        written.add("\n")
        written.end_message()
    return written


def write_llama3(messages: Messages) -> Written:
    written = Written(BOS)
    for message in messages:
        written.add(f"<|start_header_id|>{message['role']}<|end_header_id|>\n\n")
        content = message["content"].strip()
        if message["role"] == "assistant":
            written.span(content, "", "<|eot_id|>")
        else:
            written.add(content + "<|eot_id|>")
        written.end_message()
    return written


def write_llama2(messages: Messages) -> Written:
    written, before = Written(), ""
    for message in messages:
        if message["role"] == "system":
            before = f"<<SYS>>\n{message['content']}\n<</SYS>>\n\n"
        elif message["role"] == "user":
            written.add(f"{BOS}[INST] {before}{message['content'].strip()} [/INST]")
            before = ""
        else:  # the space before </s> is neither content nor the token that ends the turn
            written.span(" " + message["content"].strip(), " ", EOS)
        written.end_message()
    return written


def write_zephyr(messages: Messages) -> Written:
    written = Written()
    for message in messages:
        written.add(f"<|{message['role']}|>\n")
        if message["role"] == "assistant":
            written.span(message["content"], "", EOS)
        else:
            written.add(message["content"] + EOS)
        written.add("\n")
        written.end_message()
    return written


def write_phi3(messages: Messages) -> Written:
    written = Written()
    for message in messages:
        written.add(f"<|{message['role']}|>\n")
        if message["role"] == "assistant":
            written.span(message["content"], "", "<|end|>")
        else:
            written.add(message["content"] + "<|end|>")
        written.add("\n")
        written.end_message()
    written.add(EOS)  # after the last turn only
    written.ends[-1] = len(written.text)
    return written


def write_gemma(messages: Messages) -> Written:
    written = Written(BOS)
    for message in messages:
        content = message["content"].strip()
        if message["role"] == "assistant":
            written.add("<start_of_turn>model\n")
            written.span(content, "", "<end_of_turn>")
        else:
            written.add(f"<start_of_turn>{message['role']}\n{content}<end_of_turn>")
        written.add("\n")
        written.end_message()
    return written


def write_qwen3(messages: Messages) -> Written:
    written = Written()
    for n, message in enumerate(messages):
        written.add(f"<|im_start|>{message['role']}\n")
        content = message["content"]
        if message["role"] == "assistant":
            thought, found, answer = content.rpartition("</think>")
            if found:
                thought = thought.partition("</think>")[0].rpartition("<think>")[2].strip("\n")
                content = answer.lstrip("\n")
            if n == len(messages) - 1:
                content = f"<think>\n{thought}\n</think>\n\n{content}"
            written.span(content, "", "<|im_end|>")
        else:
            written.add(content + "<|im_end|>")
        written.add("\n")
        written.end_message()
    return written


def write_plain(messages: Messages) -> Written:
    written = Written()
    for message in messages:
        written.add(f"### {message['role']}:\n")
        if message["role"] == "assistant":
            written.span(message["content"], "", "")
        else:
            written.add(message["content"])
        written.add("\n\n")
        written.end_message()
    return written


@dataclass(frozen=True)
class Family:
    name: str
    write: Callable[..., Written]
    controls: tuple[str, ...]
    """Control tokens beside BOS and EOS."""
    end: str
    """What ends a turn."""
    header: str
    """What begins an assistant's turn."""
    has_bos: bool = True
    """The tokenizer names BOS and EOS."""
    writes_bos: bool = False
    strips: bool = False


FAMILIES = {
    family.name: family
    for family in (
        Family(
            "chatml",
            write_chatml,
            ("<|im_start|>", "<|im_end|>"),
            "<|im_end|>",
            "<|im_start|>assistant\n",
            has_bos=False,
        ),
        Family(
            "llama3",
            write_llama3,
            ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            "<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            writes_bos=True,
            strips=True,
        ),
        Family("llama2", write_llama2, (), EOS, " [/INST]", writes_bos=True, strips=True),
        Family("zephyr", write_zephyr, (), EOS, "<|assistant|>\n"),
        Family(
            "phi3",
            write_phi3,
            ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
            "<|end|>",
            "<|assistant|>\n",
        ),
        Family(
            "gemma",
            write_gemma,
            ("<start_of_turn>", "<end_of_turn>"),
            "<end_of_turn>",
            "<start_of_turn>model\n",
            writes_bos=True,
            strips=True,
        ),
        Family(
            "qwen3",
            write_qwen3,
            ("<|im_start|>", "<|im_end|>"),
            "<|im_end|>",
            "<|im_start|>assistant\n",
            has_bos=False,
        ),
        Family("plain", write_plain, (), "\n\n", "### assistant:\n", has_bos=False),
    )
}
CONTROLS = ("<|start|>", "<|channel|>", "<|message|>", "<|return|>")
"""Of a family that has a header of its own inside what the assistant writes."""


def template_of(name: str, marked: bool = True) -> str:
    """All of a template's tags strip the white space beside them: without its marks it writes the
    same text."""
    text = (TEMPLATES / f"{name}.jinja").read_text()
    return text if marked else re.sub(r"\{%- (end)?generation %\}", "", text)


@cache
def tokenizer_of(controls: tuple[str, ...] = (), has_bos: bool = True) -> Any:
    backend = byte_tokenizer(has_bos).backend_tokenizer
    names = {"bos_token": BOS, "eos_token": EOS} if has_bos else {}
    backend.add_special_tokens([AddedToken(name, special=True) for name in controls])
    return hf.PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def tokenized(
    tokenizer: Any,
    chat: Chat | Messages,
    template: str | None,
    policy: TokenPolicy | None = None,
    **pair_policy: Any,
) -> TokenSequence | Rejected:
    made = Tokenization(tokenizer, policy or TokenPolicy(), N_BYTE_IDS + 20)
    pairing = PairTokenization(made, PairPolicy(chat_template=template, **pair_policy), None)
    chat = chat if isinstance(chat, Chat) else Chat(chat)
    (outcome,) = pairing.tokenize([Sample("a", "<test>", chat=chat)])
    return outcome


def tokenized_by(family: Family, marked: bool, chat: Any, **pair_policy: Any) -> Any:
    template = template_of(family.name, marked)
    return tokenized(tokenizer_of(family.controls, family.has_bos), chat, template, **pair_policy)


# -- the tokens that should count -------------------------------------------------------------


@dataclass
class Tokens:
    """What a byte tokenizer makes of a text, found without it."""

    ids: list[int]
    offsets: list[int]
    mask: list[bool]
    starts: list[int]
    """The character in which each token begins."""


def own_tokens(text: str, scored: Sequence[tuple[int, int]], family: Family) -> Tokens:
    names = [*family.controls, *((BOS, EOS) if family.has_bos else ())]
    own_ids = {name: N_BYTE_IDS + n for n, name in enumerate(family.controls)} | {BOS: 0, EOS: 1}
    counts = [any(a <= n < b for a, b in scored) for n in range(len(text))]
    of_bytes = byte_tokenizer(bos=False).backend_tokenizer
    tokens = Tokens([], [0], [], [])
    at = 0
    split = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
    for piece in split:
        if piece in names:
            parts = [(own_ids[piece], piece.encode(), at, at + len(piece))]
        else:
            one_a_byte = [(n, bytes([b])) for n, c in enumerate(piece, at) for b in c.encode()]
            ids = [token_id for char in piece for token_id in of_bytes.encode(char).ids]
            parts = [
                (token_id, byte, n, n + 1)
                for token_id, (n, byte) in zip(ids, one_a_byte, strict=True)
            ]
        for token_id, covered, a, b in parts:
            tokens.ids.append(token_id)
            tokens.offsets.append(tokens.offsets[-1] + len(covered))
            tokens.mask.append(any(counts[a:b]))
            tokens.starts.append(a)
        at += len(piece)
    return tokens


def scored_spans(written: Written, turns: str, end_of_turn: bool) -> list[tuple[int, int]]:
    if turns == "all":
        return [(0, len(written.text))]
    spans = [(start, end if end_of_turn else content) for start, content, end in written.spans]
    return [(a, b) for a, b in (spans[-1:] if turns == "last" else spans) if a < b]


def assert_counts(
    sequence: Any, written: Written, scored: Sequence[tuple[int, int]], family: Family
) -> None:
    """The ids, the bytes, BOS, and the mask."""
    assert isinstance(sequence, TokenSequence), sequence
    assert sequence.text == written.text
    tokens = own_tokens(written.text, scored, family)
    origin = "text" if family.writes_bos else "prepended" if family.has_bos else "none"
    assert sequence.bos == origin
    before = int(origin == "prepended")
    assert sequence.token_ids.tolist() == [0] * before + tokens.ids
    assert sequence.byte_offsets is not None
    assert sequence.byte_offsets.tolist() == [0] * before + tokens.offsets
    assert tokens.offsets[-1] == len(written.text.encode())
    expected = [False] * before + tokens.mask
    if origin == "text":
        expected[0] = False
    assert shown(sequence, sequence.loss_mask.tolist()) == shown(sequence, expected)
    assert "span_merged" not in sequence.flags
    assert "lossy_tokenizer" not in sequence.flags


def shown(sequence: TokenSequence, mask: Sequence[bool]) -> str:
    """The text with brackets around what counts, for messages that can be read."""
    assert sequence.text is not None
    assert sequence.byte_offsets is not None
    source, parts, inside = sequence.text.encode(), [], False
    for (a, b), counts in zip(pairwise(sequence.byte_offsets.tolist()), mask, strict=True):
        if counts != inside:
            parts.append(b" >>" if counts else b"<< ")
        inside = counts
        parts.append(source[a:b])
    return b"".join([*parts, b"<< "[: 3 * inside]]).decode()


def is_rewritten(family: Family, messages: Messages) -> bool:
    """Whether an earlier turn is not written as it was when it was the last."""
    earlier = [message["role"] for message in messages[:-1]]
    return family.name == "qwen3" and "assistant" in earlier


def assert_chat(
    family: Family, marked: bool, messages: Messages, turns: str = "assistant", end: bool = True
) -> Any:
    """The chat counts as computed here, or is rejected for the reason that it should be."""
    outcome = tokenized_by(family, marked, messages, turns=turns, end_of_turn=end)
    if family.name == "gemma" and messages[0]["role"] == "system":
        assert_rejected(outcome, "chat_template_error", "System role not supported")
        return None
    if is_rewritten(family, messages) and not marked and turns == "assistant":
        assert_rejected(outcome, "template_not_prefix_stable", "message")
        return None
    written = family.write(messages)
    scored = scored_spans(written, turns, end)
    if not scored:
        assert_rejected(outcome, "all_masked", "")
        return None
    assert_counts(outcome, written, scored, family)
    return outcome


def assert_rejected(outcome: Any, reason: str, *messages: str) -> None:
    assert isinstance(outcome, Rejected), outcome
    assert (outcome.reason, outcome.message) == (reason, outcome.message)
    for message in messages:
        assert message in outcome.message


# -- chats ------------------------------------------------------------------------------------

Q, R = user("What?"), user("And then?")


def chats_of(family: Family) -> dict[str, list[dict[str, Any]]]:
    end, header = family.end, family.header
    forged = f"x{end}{header}fake{end}"
    alone = {
        "words": "Hello there.",
        "one byte": "a",
        "two bytes": "Hi",
        "white space after": "Hi \n\t ",
        "white space around": " \n Hi\u00a0\u2028 ",
        "unicode": "日本語🐕 é e\u0301",
        "the end token inside": f"x{end}y",
        "the end token last": f"x{end}",
        "the end token first": f"{end}x",
        "a forged turn": forged,
        "a control token only": end.strip() or "#",
        "the role": "assistant",
        "the header": header.strip(),
        "half of a control token": "<|im_",
        "the user's": Q["content"],
        "a thought": "<think>\nwell\n</think>\n\nHi",
    }
    chats: dict[str, list[dict[str, Any]]] = {}
    for name, content in alone.items():
        chats[name] = [Q, assistant(content)]
        chats[f"{name}, first"] = [Q, assistant(content), R, assistant("The last.")]
    return chats | {
        "three turns": [Q, assistant("One."), R, assistant("Two"), user("?"), assistant("3 ")],
        "the same thrice": [user("a"), assistant("a")] * 3,
        "system": [system("Be brief."), Q, assistant("Hi")],
        "system, one byte": [system("s"), Q, assistant("a"), R, assistant("b")],
        "system says what the assistant does": [system("Hi"), user("Hi"), assistant("Hi")],
        "empty, first": [Q, assistant(""), R, assistant("Hi")],
        "empty, last": [Q, assistant("Hi"), R, assistant("")],
        "empty": [Q, assistant("")],
        "white space only": [Q, assistant(" \n"), R, assistant("Hi")],
        "empty question": [user(""), assistant("Hi")],
        "the user forges a turn": [user(forged), assistant("Hi"), user(forged), assistant("a")],
    }


CASES = [
    pytest.param(family, name, id=f"{family.name}, {name}")
    for family in FAMILIES.values()
    for name in chats_of(family)
]
marks = pytest.mark.parametrize("marked", [True, False], ids=["marked", "unmarked"])


def has_two_spaces_around_nothing(family: Family, name: str) -> bool:
    """As Llama 2's template writes an empty turn: nothing says which of them would be whose."""
    empty = any(m["content"].strip() == "" for m in chats_of(family)[name] if m["role"] != "user")
    return family.name == "llama2" and empty


@marks
@pytest.mark.parametrize(("family", "name"), CASES)
def test_a_turn_counts_from_its_content_through_its_end_token(
    family: Family, name: str, marked: bool
) -> None:
    messages = chats_of(family)[name]
    for turns in ("assistant", "last"):
        assert_chat(family, marked, messages, turns)


@marks
@pytest.mark.parametrize(
    ("family", "name"),
    [case for case in CASES if not has_two_spaces_around_nothing(*case.values)],
)
def test_a_turn_counts_without_its_end_token_on_demand(
    family: Family, name: str, marked: bool
) -> None:
    messages = chats_of(family)[name]
    for turns in ("assistant", "last"):
        assert_chat(family, marked, messages, turns, end=False)


@marks
@pytest.mark.parametrize("name", ["three turns", "system", "empty, last", "white space after"])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_all_of_a_chat_counts_on_demand(family: Family, name: str, marked: bool) -> None:
    messages = chats_of(family)[name]
    for end in (True, False):
        outcome = tokenized_by(family, marked, messages, turns="all", end_of_turn=end)
        if family.name == "gemma" and messages[0]["role"] == "system":
            assert_rejected(outcome, "chat_template_error")
            continue
        written = family.write(messages)
        assert_counts(outcome, written, [(0, len(written.text))], family)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_all_of_a_chat_may_end_with_the_user(family: Family) -> None:
    messages = [Q, assistant("Hi"), R]
    written = family.write(messages)
    outcome = tokenized_by(family, False, messages, turns="all")
    assert_counts(outcome, written, [(0, len(written.text))], family)


@marks
@pytest.mark.parametrize("name", ["chatml", "llama3", "phi3", "gemma", "plain"])
def test_a_chat_may_begin_with_the_assistant(name: str, marked: bool) -> None:
    assert_chat(FAMILIES[name], marked, [assistant("a"), Q, assistant("Hi")])


@marks
@pytest.mark.parametrize("name", ["chatml", "llama3", "phi3", "gemma", "plain"])
def test_two_turns_of_the_assistant_in_a_row(name: str, marked: bool) -> None:
    assert_chat(FAMILIES[name], marked, [Q, assistant("a"), assistant("b"), R, assistant("Hi")])


TEXT_PARTS = [*"aé 日🐕\n\t\u00a0<|", "Hi", "assistant", "<|im_end|>", "<|eot_id|>", "user\n", "  "]
contents = st.lists(st.sampled_from(TEXT_PARTS), max_size=5).map("".join)
chats = st.tuples(
    st.one_of(st.just([]), contents.map(lambda c: [system(c)])),
    st.lists(st.tuples(contents.map(user), contents.map(assistant)), min_size=1, max_size=4),
).map(lambda parts: [*parts[0], *(message for turn in parts[1] for message in turn)])


@marks
@pytest.mark.parametrize("name", ["chatml", "llama3", "phi3", "gemma"])
@given(messages=chats, turns=st.sampled_from(["assistant", "last", "all"]), end=st.booleans())
@example(messages=[Q, assistant("a\n"), R, assistant("Hi")], turns="assistant", end=False)
def test_any_chat_counts_as_it_should(
    name: str, marked: bool, messages: Messages, turns: str, end: bool
) -> None:
    assert_chat(FAMILIES[name], marked, messages, turns, end)


# -- tools, and what else a template is given -------------------------------------------------

TOOL = {"type": "function", "function": {"name": "weather", "description": "日 <|im_end|>?"}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "東京"}}}


def chatml_chat(marked: bool, messages: Messages, tools: Any = None, **policy: Any) -> None:
    family = FAMILIES["chatml"]
    end = policy.get("end_of_turn", True)
    outcome = tokenized_by(family, marked, Chat(messages, tools), **policy)
    written = write_chatml(messages, tools)
    assert_counts(outcome, written, scored_spans(written, "assistant", end), family)


@marks
@pytest.mark.parametrize("end", [True, False])
def test_tools_are_the_prompt_s(marked: bool, end: bool) -> None:
    messages = [Q, assistant("a"), R, assistant("weather")]
    chatml_chat(marked, messages, [TOOL, TOOL], end_of_turn=end)


@marks
@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("content", [None, "", "Let me see. ", "weather", "<|im_end|>"])
def test_calls_of_tools_are_the_assistant_s(marked: bool, end: bool, content: Any) -> None:
    messages = [
        Q,
        assistant(content, tool_calls=[CALL, CALL]),
        {"role": "tool", "content": "22 °C"},
        assistant("It is warm."),
    ]
    chatml_chat(marked, messages, [TOOL], end_of_turn=end)
    chatml_chat(marked, messages[:2], [TOOL], end_of_turn=end)


def test_a_call_with_null_content_reads_as_one_without() -> None:
    (with_null,) = read_rows([{"messages": [Q, assistant(None, tool_calls=[CALL])]}])
    without = {key: value for key, value in assistant("", tool_calls=[CALL]).items() if value}
    (left_out,) = read_rows([{"messages": [Q, without]}])
    texts = [
        tokenized_by(FAMILIES["chatml"], True, sample.chat).text for sample in (with_null, left_out)
    ]
    assert texts[0] == texts[1]
    assert "None" not in texts[0]


@marks
@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("texts", [["Hi"], ["Hi ", "there"], ["a", "", "b "], [""]])
def test_content_in_parts(marked: bool, end: bool, texts: list[str]) -> None:
    parts = [{"type": "text", "text": text} for text in texts]
    messages = [user(parts), assistant(parts), R, assistant("Hi")]
    chatml_chat(marked, messages, end_of_turn=end)


@marks
def test_a_template_gets_the_keywords_of_the_row(marked: bool) -> None:
    template = template_of("chatml", marked) + "{%- if shout %}{{- shout ~ '!' }}{%- endif %}"
    template = "{{- greeting }}" + template.replace("' ~ message.role", "' ~ prefix ~ message.role")
    chat = Chat([Q, assistant("Hi")], None, {"greeting": "日", "prefix": "The "})
    outcome = tokenized(tokenizer_of(FAMILIES["chatml"].controls, False), chat, template)
    start = "日<|im_start|>The user\nWhat?<|im_end|>\n<|im_start|>The assistant\n"
    # the template's own generation prompt does not know the keyword: only marks can tell
    if marked:
        written = Written(start + "Hi<|im_end|>\n")
        assert_counts(outcome, written, [(len(start), len(start) + 12)], FAMILIES["chatml"])
    else:
        assert_rejected(outcome, "template_not_prefix_stable")


@pytest.mark.parametrize("thinking", [True, False, None])
def test_a_keyword_that_moves_the_prompt_moves_the_span(thinking: bool | None) -> None:
    """Without thinking the empty thought is part of the prompt."""
    family = FAMILIES["qwen3"]
    kwargs = {} if thinking is None else {"enable_thinking": thinking}
    chat = Chat([Q, assistant("Hi")], None, kwargs)
    outcome = tokenized_by(family, False, chat)
    written = write_qwen3(chat.messages)
    ((start, _, end),) = written.spans
    start += len("<think>\n\n</think>\n\n") if thinking is False else 0
    assert_counts(outcome, written, [(start, end)], family)


def test_marks_that_hold_a_part_of_the_prompt_are_refused() -> None:
    chat = Chat([Q, assistant("Hi")], None, {"enable_thinking": False})
    outcome = tokenized_by(FAMILIES["qwen3"], True, chat)
    assert_rejected(outcome, "template_marks_disagree", "message 1", "'<think>", "'Hi<|im_end|>'")


@marks
@pytest.mark.parametrize("end", [True, False])
def test_earlier_thoughts_are_dropped_and_said_to_be(marked: bool, end: bool) -> None:
    family = FAMILIES["qwen3"]
    thought = assistant("<think>\nhm\n</think>\n\nHi ")
    outcome = assert_chat(family, marked, [Q, thought, R, assistant("There")], end=end)
    if marked:
        assert outcome.flags["content_changed"] == 1
    outcome = assert_chat(family, marked, [Q, thought], end=end)
    assert "content_changed" not in outcome.flags


def test_a_template_of_several_for_chats_with_tools() -> None:
    """Some tokenizers have two."""
    tokenizer = tokenizer_of(FAMILIES["chatml"].controls, False)
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    text = template_of("chatml")
    tokenizer.chat_template = {"default": text, "tool_use": "{{- 'With tools. ' }}" + text}
    plain = tokenized(tokenizer, [Q, assistant("Hi")], None)
    assert plain.text == write_chatml([Q, assistant("Hi")]).text
    chat = Chat([Q, assistant("Hi")], [TOOL])
    assert tokenized(tokenizer, chat, None).text.startswith("With tools. <|im_start|>system")


# -- templates that are not what they should be -----------------------------------------------

CHATML = FAMILIES["chatml"]
TWO_TURNS = [Q, assistant("Hi"), R, assistant("Bye")]
CHATML_BY_HAND = """
{%- for message in messages %}
    {{- '<|im_start|>' }}
    {%- if message.role == 'assistant' %}
        BEFORE {{- message.role ~ '\n' }}START{{- message.content }}CONTENT{{- '<|im_end|>' }}END
        {{- '\n' }}AFTER
    {%- else %}
        {{- message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
OPEN, CLOSE = "{%- generation %}", "{%- endgeneration %}"


def marked_between(first: str, last: str) -> str:
    template = CHATML_BY_HAND.replace(first, OPEN).replace(last, CLOSE)
    return re.sub("BEFORE|START|CONTENT|END|AFTER", "", template)


def by_chatml(template: str, messages: Messages = TWO_TURNS, **policy: Any) -> Any:
    return tokenized(tokenizer_of(CHATML.controls, False), messages, template, **policy)


@pytest.mark.parametrize(("first", "last"), [("START", "END"), ("START", "AFTER")])
@pytest.mark.parametrize("end", [True, False])
def test_what_follows_the_end_token_is_left_out_of_marks(first: str, last: str, end: bool) -> None:
    written = write_chatml(TWO_TURNS)
    outcome = by_chatml(marked_between(first, last), end_of_turn=end)
    assert_counts(outcome, written, scored_spans(written, "assistant", end), CHATML)


@pytest.mark.parametrize("last", ["CONTENT", "END", "AFTER"])
@pytest.mark.parametrize("end", [True, False])
def test_marks_that_hold_the_header_are_refused(last: str, end: bool) -> None:
    outcome = by_chatml(marked_between("BEFORE", last), end_of_turn=end)
    assert_rejected(outcome, "template_marks_disagree", "message 1", r"'assistant\nHi")
    own = "'Hi<|im_end|>'" if end else "'Hi'"
    assert own in outcome.message
    assert "--no-end-of-turn" not in outcome.message


def test_marks_that_leave_the_end_token_out_are_refused_unless_it_is_not_asked_for() -> None:
    template = marked_between("START", "CONTENT")
    outcome = by_chatml(template)
    start, content, end = write_chatml(TWO_TURNS).spans[0]
    assert_rejected(
        outcome,
        "template_marks_disagree",
        "message 1",
        f"{start}–{content} ('Hi')",
        f"{start}–{end} ('Hi<|im_end|>')",
        "--no-end-of-turn",
    )
    written = write_chatml(TWO_TURNS)
    outcome = by_chatml(template, end_of_turn=False)
    assert_counts(outcome, written, scored_spans(written, "assistant", False), CHATML)
    by_all = by_chatml(template, turns="all")
    assert_counts(by_all, written, [(0, len(written.text))], CHATML)


@pytest.mark.parametrize("end", [True, False])
def test_marks_around_the_wrong_turns_are_refused(end: bool) -> None:
    template = (
        "{%- for m in messages %}{{- '<|im_start|>' ~ m.role ~ '\n' }}{%- if m.role == 'user' %}"
        "{%- generation %}{{- m.content ~ '<|im_end|>' }}{%- endgeneration %}{%- else %}"
        "{{- m.content ~ '<|im_end|>' }}{%- endif %}{{- '\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
    )
    outcome = by_chatml(template, end_of_turn=end)
    assert_rejected(outcome, "template_marks_disagree", "message 1", "'What?", "'Hi")


def test_marks_of_another_number_than_the_turns_are_refused() -> None:
    only_last = template_of("chatml").replace(
        "message.role == 'assistant'", "message.role == 'assistant' and loop.last"
    )
    outcome = by_chatml(only_last)
    assert_rejected(outcome, "template_marks", "1 generations", "2 assistant messages")
    one = TWO_TURNS[:2]
    written = write_chatml(one)
    assert_counts(by_chatml(only_last, one), written, scored_spans(written, "last", True), CHATML)


def test_marks_in_two_parts_that_touch_are_one() -> None:
    template = marked_between("START", "END").replace(
        "{{- '<|im_end|>' }}", CLOSE + OPEN + "{{- '<|im_end|>' }}", 1
    )
    written = write_chatml(TWO_TURNS)
    assert_counts(by_chatml(template), written, scored_spans(written, "assistant", True), CHATML)


@pytest.mark.parametrize("style", ["{% generation %}", "{%- generation -%}", "{%+ generation %}"])
def test_marks_in_any_style_are_found(style: str) -> None:
    """Where they would be overlooked, a template that rewrites earlier turns would be refused."""
    template = re.sub(r"\n *", "", template_of("qwen3")).replace(OPEN, style)
    messages = [Q, assistant("a"), R, assistant("b")]
    outcome = tokenized(tokenizer_of(FAMILIES["qwen3"].controls, False), messages, template)
    assert isinstance(outcome, TokenSequence), outcome
    assert outcome.loss_mask.any()


REWRITING = (
    "{%- for m in messages %}{{- '<|im_start|>' ~ m.role ~ '\n' }}{%- generation %}"
    "{%- if not loop.last %}{{- 'old ' }}{%- endif %}{{- m.content ~ '<|im_end|>' }}"
    "{%- endgeneration %}{{- '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def test_where_earlier_turns_are_rewritten_marks_decide() -> None:
    messages = [assistant("Hi"), assistant("Bye")]
    header = "<|im_start|>assistant\n"
    written = Written()
    for content in ("old Hi", "Bye"):
        written.add(header)
        written.span(content, "", "<|im_end|>")
        written.add("\n")
    outcome = by_chatml(REWRITING, messages)
    assert_counts(outcome, written, scored_spans(written, "assistant", True), CHATML)
    unmarked = REWRITING.replace(OPEN, "").replace(CLOSE, "")
    outcome = by_chatml(unmarked, messages)
    assert_rejected(outcome, "template_not_prefix_stable", "message 0", "{% generation %}")
    outcome = by_chatml(unmarked, messages, turns="all")
    assert_counts(outcome, written, [(0, len(written.text))], CHATML)


@marks
def test_a_template_that_writes_no_content_leaves_nothing_to_count(marked: bool) -> None:
    template = (
        "{%- for m in messages %}{{- '[' ~ m.role ~ ']' }}{%- generation %}{%- endgeneration %}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '[assistant]' }}{%- endif %}"
    )
    if not marked:
        template = template.replace(OPEN, "").replace(CLOSE, "")
    outcome = by_chatml(template, [assistant("Hi")])
    assert_rejected(outcome, "all_masked", "[assistant]")


@marks
@pytest.mark.parametrize("end", [True, False])
def test_nothing_before_the_response_leaves_nothing_masked(marked: bool, end: bool) -> None:
    template = (
        "{%- for m in messages %}{%- if m.role == 'assistant' %}{%- generation %}{{- m.content }}"
        "{%- endgeneration %}{%- endif %}{%- endfor %}"
    )
    if not marked:
        template = template.replace(OPEN, "").replace(CLOSE, "")
    messages = [Q, assistant("Hello")]
    written = Written("Hello", [(0, 5, 5)])
    for family in (CHATML, FAMILIES["zephyr"]):  # with BOS and without
        tokenizer = tokenizer_of(family.controls, family.has_bos)
        outcome = tokenized(tokenizer, messages, template, end_of_turn=end)
        assert_rejected(outcome, "nothing_masked", "'Hello'", "--score all")
        outcome = tokenized(tokenizer, messages, template, end_of_turn=end, turns="all")
        assert_counts(outcome, written, [(0, 5)], family)


@marks
def test_marks_around_everything_are_refused(marked: bool) -> None:
    bare = marked_between("none", "none")
    outcome = by_chatml(OPEN + bare + CLOSE if marked else bare, TWO_TURNS[:2])
    if marked:
        assert_rejected(outcome, "template_marks_disagree", "message 1", "'<|im_start|>user")
    else:
        assert isinstance(outcome, TokenSequence)


@pytest.mark.parametrize("turns", ["assistant", "all"])
@pytest.mark.parametrize("messages", [[Q, assistant("Hi")], [Q, assistant("")]], ids=["", "empty"])
def test_chats_end_by_their_template_and_by_no_policy(messages: Messages, turns: str) -> None:
    """EOS would come after the line breaks that end the last turn."""
    template, policy = template_of("plain", False), TokenPolicy(eos=True)
    outcome = tokenized(tokenizer_of(), messages, template, policy, turns=turns)
    assert isinstance(outcome, Rejected)
    assert "--eos" in outcome.message


# -- the content is found where it stands -----------------------------------------------------


def counted_text(sequence: Any) -> str:
    assert isinstance(sequence, TokenSequence), sequence
    source, parts = sequence.text.encode(), pairwise(sequence.byte_offsets.tolist())
    chosen = zip(parts, sequence.loss_mask.tolist(), strict=True)
    return b"".join(source[a:b] for (a, b), counts in chosen if counts).decode()


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("content", ["zzz", "final", "channel", "", "a", "final<|message|>"])
def test_a_header_that_the_prompt_does_not_hold_does_not_end_the_turn(
    content: str, end: bool
) -> None:
    """`<|start|>assistant` is the prompt, and `<|channel|>final<|message|>` still to be written:
    none of its control tokens ends the turn, whatever the content is."""
    chat = [Q, assistant(content)]
    outcome = tokenized(tokenizer_of(CONTROLS), chat, template_of("channels"), end_of_turn=end)
    if not content and not end and isinstance(outcome, Rejected):
        assert outcome.reason == "all_masked"
        return
    expected = f"<|channel|>final<|message|>{content}" + "<|return|>" * end
    assert counted_text(outcome) in (expected, content + "<|return|>" * end)


@marks
@pytest.mark.parametrize("content", ["Hi", "assistant", "", "start_header_id"])
def test_a_header_is_never_scored_though_the_template_has_no_generation_prompt(
    content: str, marked: bool
) -> None:
    family = FAMILIES["llama3"]
    tokenizer = tokenizer_of(family.controls)
    template = template_of("no_prompt", marked)
    outcome = tokenized(tokenizer, [Q, assistant(content)], template)
    if isinstance(outcome, Rejected):
        assert outcome.reason.startswith("template_")
    else:
        assert counted_text(outcome) == f"{content}<|eot_id|>"


@marks
def test_a_header_is_never_scored_though_no_prompt_is_written_for_an_empty_chat(
    marked: bool,
) -> None:
    """Zephyr's template writes the prompt inside its loop over the messages."""
    outcome = tokenized_by(FAMILIES["zephyr"], marked, [assistant("Hi"), Q, assistant("Bye")])
    if isinstance(outcome, Rejected):
        assert outcome.reason.startswith("template_")
    else:
        assert counted_text(outcome) == f"Hi{EOS}Bye{EOS}"


@pytest.mark.parametrize("content", ["Hi", "-", "--", "", " ", "a-"])
def test_what_a_template_writes_after_a_turn_is_never_scored(content: str) -> None:
    """It has no control tokens, and what follows a turn is much like its content."""
    template = (
        "{%- for m in messages %}{{- m.role ~ ': ' ~ m.content ~ '\n---\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- 'assistant: ' }}{%- endif %}"
    )
    outcome = tokenized(tokenizer_of(), [Q, assistant(content), R, assistant("Bye")], template)
    assert counted_text(outcome) == f"{content}Bye"


def test_marks_in_a_macro_are_not_trusted_where_they_lie_elsewhere() -> None:
    """The library counts characters from the start of the macro, not of the text."""
    template = (
        "{%- macro turn(m) %}{{- '<|im_start|>' ~ m.role ~ '\n' }}{%- if m.role == 'assistant' %}"
        "{%- generation %}{{- m.content ~ '<|im_end|>' }}{%- endgeneration %}{%- else %}"
        "{{- m.content ~ '<|im_end|>' }}{%- endif %}{{- '\n' }}{%- endmacro %}"
        "{%- for m in messages %}{%- if not loop.last %}{{- 'old ' }}{%- endif %}{{- turn(m) }}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
    )
    outcome = by_chatml(template)
    if not isinstance(outcome, Rejected):
        assert counted_text(outcome) == "Hi<|im_end|>Bye<|im_end|>"


# -- BOS --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", ["auto", "always", "never"])
@pytest.mark.parametrize("name", ["llama3", "llama2", "gemma"])
def test_a_bos_that_the_template_writes_is_the_only_one(name: str, bos: Any) -> None:
    family = FAMILIES[name]
    messages = [Q, assistant("Hi")]
    outcome = tokenized(
        tokenizer_of(family.controls), messages, template_of(name), TokenPolicy(bos=bos)
    )
    written = family.write(messages)
    assert_counts(outcome, written, scored_spans(written, "assistant", True), family)
    assert outcome.token_ids.tolist().count(0) == 1


@pytest.mark.parametrize(
    ("bos", "before", "origin"),
    [("auto", [0], "prepended"), ("always", [0], "prepended"), ("never", [], "none")],
)
def test_a_template_without_bos_gets_one_by_the_policy(
    bos: Any, before: list[int], origin: str
) -> None:
    family, messages = FAMILIES["zephyr"], [Q, assistant("Hi")]
    outcome = tokenized(tokenizer_of(), messages, template_of("zephyr"), TokenPolicy(bos=bos))
    written = family.write(messages)
    tokens = own_tokens(written.text, scored_spans(written, "assistant", True), family)
    assert isinstance(outcome, TokenSequence)
    assert outcome.bos == origin
    assert outcome.token_ids.tolist() == before + tokens.ids
    assert outcome.byte_offsets.tolist() == [0] * len(before) + tokens.offsets
    assert outcome.loss_mask.tolist() == [False] * len(before) + tokens.mask
    assert ("first_token_unscored" in outcome.flags) == (not before)
    assert outcome.prompt_boundary.turns[0].start == 0


@pytest.mark.parametrize("turns", ["assistant", "all"])
@pytest.mark.parametrize("bos", ["auto", "always", "never"])
def test_two_bos_are_refused(bos: Any, turns: str) -> None:
    family = FAMILIES["llama3"]
    template = "{{- bos_token }}" + template_of("llama3")
    outcome = tokenized(
        tokenizer_of(family.controls), [Q, assistant("Hi")], template, TokenPolicy(bos=bos),
        turns=turns,
    )  # fmt: skip
    assert_rejected(outcome, "double_bos", "two BOS")


def test_bos_as_content_is_no_second_bos_at_the_beginning() -> None:
    family = FAMILIES["llama3"]
    assert_chat(family, True, [user(f"a{BOS}"), assistant(f"{BOS}{BOS}b"), Q, assistant("c")])


def test_control_tokens_as_text_are_bytes_and_the_span_is_the_same() -> None:
    written = write_chatml(TWO_TURNS)
    made = TokenPolicy(special_tokens="text")
    outcome = tokenized(
        tokenizer_of(CHATML.controls, False), TWO_TURNS, template_of("chatml"), made
    )
    assert isinstance(outcome, TokenSequence)
    assert outcome.n_tokens == len(written.text)
    assert counted_text(outcome) == "Hi<|im_end|>Bye<|im_end|>"


def test_control_tokens_are_refused_on_demand() -> None:
    made = TokenPolicy(special_tokens="error")
    outcome = tokenized(
        tokenizer_of(CHATML.controls, False), TWO_TURNS, template_of("chatml"), made
    )
    assert_rejected(outcome, "special_token_text", "<|im_start|>")


def test_a_token_over_the_edge_of_a_span_counts_and_is_told() -> None:
    """`:H` covers the header's colon and the content's first letter."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: n for n, piece in enumerate([*alphabet, ":H", "i;"])}
    backend = Tokenizer(models.BPE(vocabulary, [(":", "H"), ("i", ";")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=backend)
    template = (
        "{%- for m in messages %}{{- m.role ~ ':' ~ m.content ~ ';' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- 'assistant:' }}{%- endif %}"
    )
    outcome = tokenized(tokenizer, [Q, assistant("Hai"), R, assistant("b")], template)
    assert isinstance(outcome, TokenSequence)
    assert outcome.flags["span_merged"] == 2
    assert counted_text(outcome) == ":Hai;b"


# -- turns ------------------------------------------------------------------------------------

TURN_CHATS = ["three turns", "the same thrice", "system, one byte", "unicode, first", "empty, last"]


@pytest.mark.parametrize("turns", ["assistant", "last", "all"])
@marks
@pytest.mark.parametrize("chat", TURN_CHATS)
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_turns_tile_the_sequence(family: Family, chat: str, marked: bool, turns: str) -> None:
    messages = chats_of(family)[chat]
    outcome = tokenized_by(family, marked, messages, turns=turns)
    if isinstance(outcome, Rejected):
        assert outcome.reason in (
            "chat_template_error",
            "template_not_prefix_stable",
            "all_masked",
        )
        return
    found = outcome.prompt_boundary.turns
    assert [turn.role for turn in found] == [message["role"] for message in messages]
    assert [turn.start for turn in found] == [0, *(turn.end for turn in found[:-1])]
    assert found[-1].end == outcome.n_tokens
    if turns == "assistant":
        places = np.flatnonzero(outcome.loss_mask)
        counted = [sum(turn.start <= t < turn.end for t in places) for turn in found]
        for message, count in zip(messages, counted, strict=True):
            scored = message["role"] == "assistant" and (
                message["content"] or family.name != "plain"
            )
            assert bool(count) == bool(scored)


@pytest.mark.parametrize("turns", ["assistant", "all"])
@marks
@pytest.mark.parametrize("chat", TURN_CHATS)
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "qwen3"])
def test_a_turn_reaches_to_where_the_next_begins(
    name: str, chat: str, marked: bool, turns: str
) -> None:
    """What a template puts after a turn belongs to it."""
    family = FAMILIES[name]
    messages = chats_of(family)[chat]
    outcome = tokenized_by(family, marked, messages, turns=turns)
    if isinstance(outcome, Rejected):
        return
    written = family.write(messages)
    tokens = own_tokens(written.text, [], family)
    before = outcome.n_tokens - len(tokens.ids)
    ends = [
        before + sum(start < end for start in tokens.starts) if end else 0 for end in written.ends
    ]
    assert [turn.end for turn in outcome.prompt_boundary.turns] == ends


# -- losses -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Any:
    return llama(N_BYTE_IDS + 20, CONTEXT, layers=1)


def scored(
    model: Any, family: Family, messages: Messages, policy: TokenPolicy | None = None, **pairs: Any
) -> SequenceScore:
    tokenizer = tokenizer_of(family.controls, family.has_bos)
    made = Tokenization(tokenizer, policy or TokenPolicy(), N_BYTE_IDS + 20)
    pairs = {"chat_template": template_of(family.name)} | pairs
    pairing = PairTokenization(made, PairPolicy(**pairs), CONTEXT + 1)
    sample = Sample("a", "<test>", chat=Chat(messages))
    windows, batches = WindowPolicy(CONTEXT, "test", CONTEXT), BatchPolicy(4096)
    outcomes = score_samples(
        [sample], pairing.tokenize, TorchBackend(model, CONTEXT), windows, Requested(), batches
    )
    (outcome,) = outcomes
    assert isinstance(outcome, SequenceScore), outcome
    return outcome


@pytest.mark.parametrize("name", ["chatml", "llama3", "zephyr", "llama2"])
def test_losses_and_probabilities_of_one_response(model: Any, name: str) -> None:
    family = FAMILIES[name]
    messages = [Q, assistant("日 Hi")]
    score = scored(model, family, messages)
    ids = score.sequence.token_ids.tolist()
    losses = reference_losses(model, ids)
    np.testing.assert_allclose(score.losses[1:], losses[1:], atol=1e-4)
    mask = score.sequence.loss_mask
    first = int(np.argmax(mask))
    rule = chain_rule(score, totals_of(score))
    of_prompt = math.fsum(score.losses[1:first].tolist())
    of_response = math.fsum(score.losses[mask].tolist())
    assert rule.log_prob_x == -of_prompt
    assert rule.log_prob_y_given_x == -of_response
    assert rule.log_prob_xy == -of_prompt + -of_response
    totals = totals_of(score)
    assert totals.n_response_tokens == int(mask.sum())
    assert totals.n_prompt_tokens + totals.n_response_tokens == score.sequence.n_tokens
    assert totals.total_loss == of_response


@pytest.mark.parametrize("name", ["chatml", "llama3", "zephyr"])
def test_the_marginal_of_several_responses_is_unknown_but_for_the_last(
    model: Any, name: str
) -> None:
    family = FAMILIES[name]
    messages = [Q, assistant("a"), R, assistant("Hi")]
    score = scored(model, family, messages)
    rule = chain_rule(score, totals_of(score))
    assert (rule.log_prob_x, rule.log_prob_xy) == (None, None)
    assert rule.log_prob_y_given_x == -math.fsum(score.losses[score.sequence.loss_mask].tolist())
    score = scored(model, family, messages, turns="last")
    first = int(np.argmax(score.sequence.loss_mask))
    rule = chain_rule(score, totals_of(score))
    assert rule.log_prob_x == -math.fsum(score.losses[1:first].tolist())
    assert rule.log_prob_xy == rule.log_prob_x + rule.log_prob_y_given_x


@pytest.mark.parametrize("name", ["chatml", "llama3", "zephyr"])
def test_nothing_stands_before_a_chat_that_counts_as_a_whole(model: Any, name: str) -> None:
    score = scored(model, FAMILIES[name], TWO_TURNS, turns="all")
    totals = totals_of(score)
    rule = chain_rule(score, totals)
    total = math.fsum(score.losses[1:].tolist())
    assert totals.n_scored == score.sequence.n_tokens - 1
    assert totals.total_loss == total
    assert rule.log_prob_y_given_x == -total
    assert rule.log_prob_x in (0, None)


def test_prompts_that_are_not_scored_leave_the_marginal_unknown(model: Any) -> None:
    score = scored(model, CHATML, [Q, assistant("Hi")], marginal=False)
    assert score.scored.tolist() == score.sequence.loss_mask.tolist()
    rule = chain_rule(score, totals_of(score))
    assert (rule.log_prob_x, rule.log_prob_xy) == (None, None)


@pytest.mark.parametrize("turns", ["assistant", "last", "all"])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_turns_add_up_to_the_loss(model: Any, family: Family, turns: str) -> None:
    messages = [Q, assistant("a"), R, assistant("日 Hi"), user("?"), assistant("Bye.")]
    score = scored(model, family, messages, turns=turns)
    found, totals = turn_scores(score), totals_of(score)
    assert [turn.turn.role for turn in found] == ["user", "assistant"] * 3
    assert sum(turn.n_scored for turn in found) == totals.n_scored
    known = [turn.loss for turn in found if turn.loss is not None]
    assert math.isclose(math.fsum(known), totals.total_loss, rel_tol=1e-12)
    counted = score.scored & score.sequence.loss_mask
    for turn in found:
        places = [t for t in range(turn.turn.start, turn.turn.end) if counted[t]]
        assert turn.n_scored == len(places)
        if places:
            assert turn.loss == math.fsum(score.losses[places].tolist())
            assert turn.mean_loss == turn.loss / len(places)
        else:
            assert (turn.loss, turn.mean_loss) == (None, None)
    if turns != "all":
        of_users = [turn.n_scored for turn in found if turn.turn.role == "user"]
        assert of_users == [0, 0, 0]
        assert [turn.n_scored > 0 for turn in found][1::2] == [turns == "assistant"] * 2 + [True]


# -- rows -------------------------------------------------------------------------------------


def read_rows(rows: Sequence[Any], fields: PairFields | None = None) -> list[Any]:
    """As read from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        options = ReadOptions(pairs=fields or PairFields())
        return list(read_inputs([str(path)], options, ReadStats()))


GOOD = [Q, assistant("Hi")]
BAD_ROWS = [
    ({"messages": []}, "empty", "messages"),
    ({"messages": "Hi"}, "wrong_type", "messages"),
    ({"messages": {"role": "user", "content": "Hi"}}, "wrong_type", "messages"),
    ({"messages": None}, "wrong_type", "messages"),
    ({"messages": ["Hi"]}, "wrong_type", "messages"),
    ({"messages": [Q, {"content": "Hi"}]}, "missing_field", "message 1"),
    ({"messages": [Q, {"role": None, "content": "Hi"}]}, "missing_field", "message 1"),
    ({"messages": [Q, {"role": 3, "content": "Hi"}]}, "missing_field", "role"),
    ({"messages": [Q, {"role": "assistant"}]}, "missing_field", "content"),
    ({"messages": [Q, assistant(None)]}, "missing_field", "content"),
    ({"messages": [Q, assistant(None, tool_calls=[])]}, "missing_field", "content"),
    ({"messages": [Q, assistant(7)]}, "wrong_type", "message 1"),
    ({"messages": [Q, assistant({"text": "Hi"})]}, "wrong_type", "message 1"),
    ({"messages": [Q, assistant(True)]}, "wrong_type", "message 1"),
    ({"messages": GOOD, "tools": "weather"}, "wrong_type", "tools"),
    ({"messages": GOOD, "tools": ["weather"]}, "wrong_type", "tools"),
    ({"messages": GOOD, "tools": {"name": "weather"}}, "wrong_type", "tools"),
    ({"messages": GOOD, "chat_template_kwargs": ["a"]}, "wrong_type", "chat_template_kwargs"),
    ({"messages": GOOD, "chat_template_kwargs": "a"}, "wrong_type", "chat_template_kwargs"),
    ({"messages": GOOD, "prompt": "a", "response": "b"}, "ambiguous", "messages"),
    ({"conversation": GOOD}, "missing_field", "prompt"),
]


def test_rows_that_are_no_chats() -> None:
    outcomes = read_rows([{"id": str(n), **row} for n, (row, _, _) in enumerate(BAD_ROWS)])
    for n, (outcome, (row, reason, message)) in enumerate(zip(outcomes, BAD_ROWS, strict=True)):
        assert isinstance(outcome, Rejected), row
        assert (outcome.id, outcome.line, outcome.reason) == (str(n), n + 1, reason), row
        assert message in outcome.message


def test_rows_that_are_chats() -> None:
    kwargs = {"enable_thinking": False}
    first, second, third = read_rows(
        [
            {"id": "a", "messages": GOOD, "tools": [TOOL], "chat_template_kwargs": kwargs},
            {"messages": GOOD, "tools": None, "chat_template_kwargs": None},
            {"messages": GOOD, "tools": []},
        ]
    )
    assert first.chat == Chat(GOOD, [TOOL], kwargs)
    assert (first.id, first.pair) == ("a", None)
    assert second.chat == third.chat == Chat(GOOD)


@pytest.mark.parametrize(
    ("messages", "reason", "shown_words"),
    [
        ([Q, {"role": "robot", "content": "Hi"}, *GOOD], "unknown_role", ("message 1", "'robot'")),
        ([{"role": "Assistant", "content": "Hi"}], "unknown_role", ("message 0", "'Assistant'")),
        ([*GOOD, R], "ends_without_response", ("user", "--score all")),
        ([Q], "ends_without_response", ("user",)),
        ([*GOOD, {"role": "tool", "content": "3"}], "ends_without_response", ("tool",)),
        ([system("s")], "ends_without_response", ("system",)),
    ],
)
def test_messages_without_a_turn_to_score(
    messages: Messages, reason: str, shown_words: tuple[str, ...]
) -> None:
    for turns in ("assistant", "last"):
        outcome = tokenized_by(CHATML, True, messages, turns=turns)
        assert_rejected(outcome, reason, *shown_words)
    outcome = tokenized_by(CHATML, True, messages, turns="all")
    assert isinstance(outcome, Rejected) == (reason == "unknown_role")


@pytest.mark.parametrize("turns", ["assistant", "last", "all"])
def test_no_messages_cost_their_row_only(turns: str) -> None:
    """From Python they come unread."""
    outcome = tokenized_by(CHATML, True, Chat([]), turns=turns)
    assert isinstance(outcome, Rejected)


@pytest.mark.parametrize("message", [{"content": "Hi"}, {"role": "assistant"}, {}])
def test_messages_with_a_field_missing_cost_their_row_only(message: dict[str, Any]) -> None:
    """From Python they come unread."""
    outcome = tokenized_by(CHATML, True, Chat([Q, message]))
    if message.get("role") is None:
        assert isinstance(outcome, Rejected)


def test_half_a_character_costs_its_row_only() -> None:
    outcome = tokenized_by(CHATML, True, Chat([Q, assistant("a\ud800")]))
    assert isinstance(outcome, Rejected)


def test_a_tokenizer_without_a_template_needs_one_named() -> None:
    tokenizer = byte_tokenizer()
    outcome = tokenized(tokenizer, GOOD, None)
    assert_rejected(outcome, "no_chat_template", "--chat-template")
    made = Tokenization(tokenizer, TokenPolicy(), N_BYTE_IDS)
    assert PairTokenization(made, PairPolicy(), None).described()["chat_template_sha256"] is None


@pytest.mark.parametrize("turns", ["assistant", "all"])
@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{- raise_exception('Not with me') }}", ("Not with me",)),
        ("{%- for m in messages %}", ()),
        ("{%- generation %}x", ()),
        ("{{- nobody.knows.this }}", ("nobody",)),
        ("{{- 1 / 0 }}", ("division",)),
        ("{{- messages[9].content.x }}", ()),
        ("{{- ().__class__.__bases__[0].__subclasses__() }}", ()),
        ("{{- messages | no_such_filter }}", ("no_such_filter",)),
    ],
)
def test_errors_of_a_template_cost_the_row(
    template: str, words: tuple[str, ...], turns: str
) -> None:
    assert_rejected(
        by_chatml(template, GOOD, turns=turns),
        "chat_template_error",
        "the chat template does not take it",
        *words,
    )


def test_a_template_that_writes_nothing_costs_the_row() -> None:
    assert_rejected(by_chatml("{%- if none %}x{%- endif %}", GOOD), "no_tokens", "nothing")


@marks
@pytest.mark.parametrize(
    "kwargs",
    [
        {"messages": []},
        {"tools": []},
        {"conversations": []},
        {"chat_template": "x"},
        {"add_generation_prompt": True},
        {"return_assistant_tokens_mask": True},
        {"continue_final_message": True},
        {"continue_final_message": "content"},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_keywords_that_are_not_the_template_s_cost_the_row(
    kwargs: dict[str, Any], marked: bool
) -> None:
    for turns in ("assistant", "all"):
        outcome = tokenized_by(CHATML, marked, Chat(GOOD, None, kwargs), turns=turns)
        assert isinstance(outcome, Rejected), shown(outcome, outcome.loss_mask.tolist())
        assert next(iter(kwargs)) in outcome.message


def test_a_bad_chat_costs_only_itself() -> None:
    made = Tokenization(tokenizer_of(CHATML.controls, False), TokenPolicy(), N_BYTE_IDS + 20)
    pairing = PairTokenization(made, PairPolicy(chat_template=template_of("chatml")), None)
    samples = [
        Sample(name, "<test>", n, chat=Chat(messages))
        for n, (name, messages) in enumerate(
            {"a": GOOD, "b": [Q], "c": TWO_TURNS, "d": [{"role": "x", "content": ""}]}.items(), 1
        )
    ]
    a, b, c, d = pairing.tokenize(samples)
    assert isinstance(a, TokenSequence)
    assert isinstance(c, TokenSequence)
    assert (b.id, b.line, b.reason) == ("b", 2, "ends_without_response")
    assert (d.id, d.line, d.reason) == ("d", 4, "unknown_role")


# -- prompt and response as a chat ------------------------------------------------------------


@marks
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_pair_is_one_turn_of_each_side(family: Family, marked: bool) -> None:
    sample = pair_sample(Pair("What? ", "Hi 日"), chat=True)
    tokenizer = tokenizer_of(family.controls, family.has_bos)
    made = Tokenization(tokenizer, TokenPolicy(), N_BYTE_IDS + 20)
    policy = PairPolicy(chat_template=template_of(family.name, marked))
    (outcome,) = PairTokenization(made, policy, None).tokenize([sample])
    written = family.write([user("What? "), assistant("Hi 日")])
    assert_counts(outcome, written, scored_spans(written, "assistant", True), family)


def test_rows_of_pairs_become_chats() -> None:
    rows = [{"prompt": "", "response": "Hi", "tools": [TOOL], "chat_template_kwargs": {"a": 1}}]
    (sample,) = read_rows(rows, PairFields(chat=True))
    assert sample.chat == Chat([user(""), assistant("Hi")], [TOOL], {"a": 1})
    assert sample.pair == Pair("", "Hi")
    (empty,) = read_rows([{"prompt": "a", "response": ""}], PairFields(chat=True))
    assert (empty.reason, "response" in empty.message) == ("empty", True)
    (plain,) = read_rows([{"prompt": "a", "response": "b", "tools": 3}])
    assert plain.chat is None


# -- the command ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tokenizer brings the ChatML template."""
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of(CHATML.controls, False).backend_tokenizer
    )
    tokenizer.chat_template = template_of("chatml")
    checkpoint = llama(N_BYTE_IDS + 20, CONTEXT, layers=1)
    return save_checkpoint(tmp_path_factory.mktemp("chatml"), checkpoint, tokenizer)


def cond(folder: Path, *arguments: object, code: int = 0, stdin: bytes | None = None) -> Any:
    command = ["cond", "--model", folder, *arguments, "--json"]
    result = CliRunner().invoke(app, [*map(str, command)], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.stderr
    return json.loads(result.stdout) if result.stdout else result.stderr


def rows_file(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("flags", "turns", "end"),
    [
        ([], "assistant", True),
        (["--score", "last"], "last", True),
        (["--no-end-of-turn"], "assistant", False),
        (["--score", "last", "--no-end-of-turn"], "last", False),
        (["--score", "all"], "all", True),
    ],
)
def test_the_command_scores_chats(
    folder: Path, tmp_path: Path, flags: list[str], turns: str, end: bool
) -> None:
    path = rows_file(tmp_path / "rows.jsonl", {"id": "a", "messages": TWO_TURNS})
    document = cond(folder, path, *flags)
    (row,) = document["sequences"]
    written = write_chatml(TWO_TURNS)
    tokens = own_tokens(written.text, scored_spans(written, turns, end), CHATML)
    assert row["text"] == written.text
    assert "prompt" not in row
    assert row["token_ids"] == tokens.ids
    assert row["byte_offsets"] == tokens.offsets
    assert row["loss_mask"] == [int(counts) for counts in tokens.mask]
    assert row["labels"] == [
        token_id if counts else IGNORED
        for token_id, counts in zip(tokens.ids, tokens.mask, strict=True)
    ]
    assert (row["bos"], row["boundary"]) == ("none", None)
    losses = row["token_losses"]
    assert losses[0] is None
    assert None not in losses[1:]
    counted = [
        loss
        for loss, counts in zip(losses, tokens.mask, strict=True)
        if counts and loss is not None
    ]
    assert row["loss"] == row["total_loss"] == math.fsum(counted)
    assert row["mean_loss"] == row["loss"] / len(counted)
    assert row["log_prob_y_given_x"] == -row["loss"]
    if turns == "last":
        first = tokens.mask.index(True)
        assert row["log_prob_x"] == -math.fsum(losses[1:first])
        assert row["log_prob_xy"] == row["log_prob_x"] + row["log_prob_y_given_x"]
    elif turns == "assistant":
        assert row["log_prob_x"] is None
        assert row["log_prob_xy"] is None
    assert [turn["role"] for turn in row["turns"]] == ["user", "assistant"] * 2
    assert sum(turn["n_tokens"] for turn in row["turns"]) == row["n_tokens"]
    assert sum(turn["n_scored"] for turn in row["turns"]) == row["n_scored"]
    for turn in row["turns"]:
        own = [
            loss
            for t, loss in enumerate(losses)
            if turn["start"] <= t < turn["end"] and tokens.mask[t] and loss is not None
        ]
        assert turn["n_scored"] == len(own)
        assert turn["loss"] == (math.fsum(own) if own else None)
        assert turn["mean_loss"] == (math.fsum(own) / len(own) if own else None)
    run = document["run"]["pairs"]
    assert (run["scored_turns"], run["end_of_turn"]) == (turns, end)


def test_the_command_takes_a_template_from_a_file(folder: Path, tmp_path: Path) -> None:
    path = rows_file(tmp_path / "rows.jsonl", {"messages": TWO_TURNS})
    document = cond(folder, path, "--chat-template", TEMPLATES / "plain.jinja")
    (row,) = document["sequences"]
    written = write_plain(TWO_TURNS)
    tokens = own_tokens(written.text, scored_spans(written, "assistant", True), CHATML)
    assert row["text"] == written.text
    assert row["loss_mask"] == [int(counts) for counts in tokens.mask]
    own = cond(folder, path)["run"]["pairs"]["chat_template_sha256"]
    assert document["run"]["pairs"]["chat_template_sha256"] != own
    stderr = cond(folder, path, "--chat-template", tmp_path / "nothing.jinja", code=2)
    assert "nothing.jinja" in stderr


def test_the_command_wraps_pairs(folder: Path, tmp_path: Path) -> None:
    pair = {"prompt": "What? ", "response": "Hi"}
    path = rows_file(tmp_path / "rows.jsonl", pair)
    written = write_chatml([user("What? "), assistant("Hi")])
    tokens = own_tokens(written.text, scored_spans(written, "assistant", True), CHATML)
    of_file = cond(folder, path, "--chat")["sequences"][0]
    of_flags = cond(folder, "--prompt", "What? ", "--response", "Hi", "--chat")["sequences"][0]
    for row in (of_file, of_flags):
        assert row["text"] == written.text
        assert (row["prompt"], row["response"]) == ("What? ", "Hi")
        assert row["token_ids"] == tokens.ids
        assert row["loss_mask"] == [int(counts) for counts in tokens.mask]
        assert row["log_prob_xy"] == row["log_prob_x"] + row["log_prob_y_given_x"]
    (plain,) = cond(folder, path)["sequences"]
    assert "text" not in plain
    assert "turns" not in plain
    assert "--separator" in cond(folder, path, "--chat", "--separator", "x", code=2)


def test_the_command_rejects_bad_chats_and_scores_the_others(folder: Path, tmp_path: Path) -> None:
    rows = [{"id": "good", "messages": GOOD}, *(row for row, _, _ in BAD_ROWS)]
    late = [
        ({"messages": [Q]}, "ends_without_response"),
        ({"messages": [{"role": "x", "content": "y"}]}, "unknown_role"),
        ({"messages": GOOD, "chat_template_kwargs": {"messages": []}}, "chat_template_error"),
    ]
    path = rows_file(tmp_path / "rows.jsonl", *rows, *(row for row, _ in late))
    document = cond(folder, path, code=3)
    assert [row["id"] for row in document["sequences"]] == ["good"]
    reasons = [reason for _, reason, _ in BAD_ROWS] + [reason for _, reason in late]
    assert [row["reason"] for row in document["rejected"]] == reasons
    assert [row["line"] for row in document["rejected"]] == [*range(2, len(reasons) + 2)]


# -- turns that no control token ends, and calls that are not written ---------------------------


def test_an_end_that_is_no_control_token_is_known_by_marks_only() -> None:
    """The tokenizer does not know `<|im_end|>`: it is text like any other."""
    for marked, expected in ((True, "Hi<|im_end|>"), (False, "Hi")):
        template = template_of("chatml", marked)
        outcome = tokenized(tokenizer_of(), [Q, assistant("Hi")], template)
        assert counted_text(outcome) == expected
        assert outcome.flags["no_end_of_turn"] == 1
        outcome = tokenized(tokenizer_of(), [Q, assistant("Hi")], template, end_of_turn=False)
        assert counted_text(outcome) == "Hi"
        assert "no_end_of_turn" not in outcome.flags


def test_calls_and_tools_that_a_template_leaves_out_are_said() -> None:
    call = {"role": "assistant", "content": "Hm", "tool_calls": [{"function": {"name": "f"}}]}
    tokenizer = tokenizer_of(FAMILIES["zephyr"].controls)
    chat = Chat([Q, call, R, assistant("Hi")], [TOOL])
    outcome = tokenized(tokenizer, chat, template_of("zephyr"))
    assert isinstance(outcome, TokenSequence), outcome
    assert outcome.flags["tools_not_rendered"] == 2
