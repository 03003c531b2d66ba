"""What rows of chats hold beside plain messages: parts, weights, tools, reasoning, prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.builders import EOS, N_BYTE_IDS, byte_tokenizer
from seqloss_cli import PairPolicy, Rejected, TokenPolicy
from seqloss_cli.core.records import TokenSequence
from seqloss_cli.inputs.reading import ReadOptions, ReadStats, read_inputs
from seqloss_cli.inputs.rows import PairFields
from seqloss_cli.tokenization.pairs import PairTokenization
from seqloss_cli.tokenization.tokenizer import Tokenization
from seqloss_cli.tokenization.trl import TrlTrainer

OPEN = "{% for m in messages %}[{{ m.role }}]"
CLOSE = EOS + "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
TRIMMED = OPEN + "{{ m.content | trim }}" + CLOSE
ADDED = OPEN + "{{ '' + m.content }}" + CLOSE
PARTS = OPEN + "{% for part in m.content %}{{ part.text }}{% endfor %}" + CLOSE
JSON = OPEN + "{{ m.content if m.content is string else m.content | tojson }}" + CLOSE
BOTH = (
    OPEN
    + "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    + "{{ part.text | trim }}|{% endfor %}{% endif %}"
    + CLOSE
)
Q = {"role": "user", "content": "Hi"}
A = {"role": "assistant", "content": "Yo"}
Read = Callable[..., Any]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """The sequence that a row makes under a template, or its rejection."""

    def go(row: dict[str, Any], template: str = TRIMMED, **options: Any) -> Any:
        path, response = tmp_path / "rows.jsonl", options.pop("response", "response")
        path.write_text(json.dumps(row))
        fields = PairFields(response=response, chat=options.pop("chat", False))
        (sample,) = read_inputs([str(path)], ReadOptions(pairs=fields), ReadStats())
        if isinstance(sample, Rejected):
            return sample
        tokens = Tokenization(byte_tokenizer(), TokenPolicy(), N_BYTE_IDS)
        policy = PairPolicy(chat_template=template, **options)
        (outcome,) = PairTokenization(tokens, policy, None).tokenize([sample])
        return outcome

    return go


def scored(sequence: TokenSequence) -> str:
    """The text of the tokens that count."""
    assert sequence.text is not None
    assert sequence.byte_offsets is not None
    raw, edges = sequence.text.encode(), sequence.byte_offsets.tolist()
    parts = [
        raw[edges[t] : edges[t + 1]] for t in range(sequence.n_tokens) if sequence.loss_mask[t]
    ]
    return b"".join(parts).decode()


def part(text: str, kind: str = "text") -> dict[str, str]:
    return {"type": kind, "text": text}


def odd(sequence: TokenSequence) -> dict[str, int]:
    """Flags, but for the control tokens of templates."""
    return {name: n for name, n in sequence.flags.items() if name != "special_tokens"}


def assert_rejected(outcome: Any, reason: str, *said: str) -> None:
    assert isinstance(outcome, Rejected)
    assert outcome.reason == reason
    for words in said:
        assert words in outcome.message


# -- contents in parts ----------------------------------------------------------------------------


@pytest.mark.parametrize("template", [TRIMMED, ADDED, JSON, PARTS, BOTH])
def test_contents_have_the_form_that_the_template_takes(read: Read, template: str) -> None:
    end = f"|{EOS}" if template is BOTH else f"{EOS}"
    of_texts = read({"messages": [Q, A]}, template)
    for text in ("Yo", "Y 'o' \"é\"\n\\x"):
        answer = {"role": "assistant", "content": [part(text)]}
        outcome = read({"messages": [{**Q, "content": [part("Hi")]}, answer]}, template)
        assert scored(outcome) == text + end
        assert odd(outcome) == {}
    assert scored(of_texts) == f"Yo{EOS}"
    assert odd(of_texts) == {}
    assert of_texts.text == f"[user]Hi{EOS}[assistant]Yo{EOS}"


@pytest.mark.parametrize("template", [TRIMMED, ADDED, JSON, PARTS])
def test_several_parts_are_one_text(read: Read, template: str) -> None:
    parts = [part("a "), "b", {"text": " c"}, part("d", "output_text")]
    parts += [{"type": "refusal", "refusal": "e"}] if template is not PARTS else []
    parts = parts if template is not PARTS else [part("a "), part("bc d")]
    outcome = read({"messages": [Q, {"role": "assistant", "content": parts}]}, template)
    assert scored(outcome) == (f"a bc d{EOS}" if template is PARTS else f"a b cde{EOS}")
    # Templates for parts write them themselves; where we join them, that is said.
    assert odd(outcome) == ({} if template is PARTS else {"parts_joined": 1})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([part("a"), {"type": "image_url", "image_url": {"url": "x"}}], "'image_url'"),
        ([{"type": "image"}], "'image'"),
        ([{"type": "input_audio", "input_audio": {}}], "'input_audio'"),
        ([{"type": "text", "text": None}], "'text'"),
        ([{"type": "thinking", "thinking": "a"}], "'thinking'"),
        ([7], "'int'"),
        ([{"type": {}}], "{}"),
    ],
)
def test_a_part_that_is_no_text_is_rejected(read: Read, content: Any, said: str) -> None:
    for messages in ([{**Q, "content": content}, A], [Q, {**A, "content": content}]):
        assert_rejected(read({"messages": messages}), "unsupported_part", said)
        assert_rejected(read({"messages": messages}, PARTS), "unsupported_part", said)


@pytest.mark.parametrize("row", [{"images": ["x"]}, {"audio": {"path": "x"}}])
def test_pictures_beside_a_chat_are_rejected(read: Read, row: dict[str, Any]) -> None:
    name = next(iter(row))
    assert_rejected(read({"messages": [Q, A], **row}), "unsupported_part", name)
    assert_rejected(read({"messages": [{**Q, **row}, A]}), "unsupported_part", name)
    assert scored(read({"messages": [Q, A], name: None})) == f"Yo{EOS}"
    assert scored(read({"messages": [Q, A], name: []})) == f"Yo{EOS}"


# -- messages that do not count -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "no", "yes"),
    [
        *(("weight", 0, 1), ("train", False, True), ("training", False, True), ("loss", 0, 1)),
        *(("trainable", 0.0, 1.0), ("step_loss_mask", 0, 1), ("masked", True, False)),
    ],
)
@pytest.mark.parametrize("turns", ["assistant", "last", "all"])
def test_a_message_may_say_that_it_does_not_count(
    read: Read, key: str, no: Any, yes: Any, turns: str
) -> None:
    messages = [Q, {**A, key: no}, {**Q, key: no}, {**A, "content": "B", key: yes}, Q, A]
    expected = {"assistant": f"B{EOS}Yo{EOS}", "last": f"Yo{EOS}"}
    outcome = read({"messages": messages}, turns=turns)
    assert scored(outcome) == expected.get(turns, outcome.text)
    outcome = read({"messages": [*messages[:-1], {**A, key: no}]}, turns=turns)
    if turns == "last":
        assert_rejected(outcome, "all_masked")
    else:
        assert scored(outcome) == (f"B{EOS}" if turns == "assistant" else outcome.text)


@pytest.mark.parametrize(
    "messages",
    [
        *([Q, {**A, "weight": 0.5}], [Q, {**A, "weight": "1"}], [{**Q, "weight": 1}, A]),
        *([Q, {**A, "train": "false"}], [Q, {**A, "train_detail": [{"train": False}]}]),
        [Q, {**A, "weight": 1, "masked": True}],
    ],
)
def test_weights_that_are_no_masks_are_rejected(read: Read, messages: Any) -> None:
    assert_rejected(read({"messages": messages}), "bad_weight", "0 and 1 are taken")


PART = {"type": "text", "text": "a"}


@pytest.mark.parametrize("field", [{"train": False}, {"weight": 0}, {"loss": 0.5}, {"mask": 1}])
def test_parts_that_do_not_count_are_rejected(read: Read, field: dict[str, Any]) -> None:
    """A message counts as a whole; where all its parts say the same as it, nothing is lost."""
    parts = [{**PART, **field}, {**PART, "train": True}]
    messages = [Q, {"role": "assistant", "content": parts}]
    assert_rejected(read({"messages": messages}), "bad_weight", "parts with")
    counted = [{**PART, "train": True}, {**PART, "weight": 1}, {**PART, "masked": 0}]
    whole = read({"messages": [Q, {"role": "assistant", "content": counted}]})
    plain = read({"messages": [Q, {"role": "assistant", "content": "aaa"}]})
    assert scored(whole) == scored(plain)
    unheard = [{**PART, "train": False}]
    assert scored(read({"messages": [{**Q, "content": unheard}, {**A}]}))


# -- what a template leaves out -------------------------------------------------------------------

THOUGHT = "{{ '<' + m.reasoning_content + '>' if m.reasoning_content }}"
REASONED = TRIMMED.replace("{{ m.content", THOUGHT + "{{ m.content")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("reasoning_content", "hm"),
        ("name", "Ann"),
        ("function_call", {"name": "f", "arguments": "{}"}),
        ("prefix", True),
        ("channel", "analysis"),
        ("tools", [{"name": "f"}]),
        ("reasoning_details", [{"type": "reasoning.text", "text": "hm"}]),
    ],
)
def test_a_field_that_the_template_leaves_out_is_flagged(read: Read, key: str, value: Any) -> None:
    messages = [Q, {**A, key: value}, {**Q, key: None}, {**A, key: value, "id": "m4"}]
    assert odd(read({"messages": messages})) == {"fields_not_rendered": 2}
    rendered = read({"messages": messages}, REASONED)
    if key == "reasoning_content":
        assert odd(rendered) == {}
        assert scored(rendered) == f"<hm>Yo{EOS}<hm>Yo{EOS}"
    else:
        assert odd(rendered) == {"fields_not_rendered": 2}


def test_documents_are_given_to_the_template(read: Read) -> None:
    template = "{% for d in documents %}({{ d.text }}){% endfor %}" + TRIMMED
    row = {"messages": [Q, A], "documents": [{"text": "D"}]}
    outcome = read(row, template)
    assert outcome.text == f"(D)[user]Hi{EOS}[assistant]Yo{EOS}"
    assert odd(outcome) == {}
    assert odd(read(row)) == {"fields_not_rendered": 1}
    assert_rejected(read({**row, "documents": "D"}), "wrong_type", "'documents'")


def test_context_that_is_not_used_is_flagged(read: Read) -> None:
    assert odd(read({"messages": [Q, A], "system": "Be kind.", "context": ""})) == {
        "unused_context": 1
    }
    pair = {"prompt": "a", "response": "b", "input": "c", "history": [["d", "e"]]}
    assert odd(read(pair)) == {"unused_context": 2}
    assert odd(read(pair, chat=True)) == {"unused_context": 2}
    assert odd(read({"input": "a", "response": "b", "prompt": "c"}, response="input")) == {}
    settings = {"enable_thinking": False, "prompt": "Hi", "weight": 0.5, "token_ids": [1]}
    assert odd(read({"messages": [Q, A], **settings})) == {
        "unused_context": 1, "unused_weights": 1, "unused_ids": 1,
    }  # fmt: skip
    assert odd(read({"messages": [Q, A], "prompt": "another"})) == {"unused_context": 1}
    pair = {"prompt": "a", "response": "b", "images": ["c"], "suffix": "d", "id": "e"}
    assert odd(read(pair)) == {"unused_context": 2}


def test_what_a_message_does_not_say_is_not_flagged(read: Read) -> None:
    about = {"id": "1", "timestamp": "2", "tool_call_id": "3", "toxic": False, "score": 4, "n": []}
    assert odd(read({"messages": [{**Q, **about}, {**A, **about}]})) == {}


def test_a_deep_field_of_a_message_costs_no_run(read: Read) -> None:
    deep: Any = "hm"
    for _ in range(200):
        deep = [deep]
    assert odd(read({"messages": [Q, {**A, "thought": deep}]})) == {"fields_not_rendered": 1}


# -- tools ----------------------------------------------------------------------------------------

TOOLS = [{"type": "function", "function": {"name": "f"}}]
WITH_TOOLS = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    + OPEN
    + "{{ m.content }}{% for c in m.tool_calls %}<{{ c.function.arguments | tojson }}>{% endfor %}"
    + CLOSE
)
RAW = WITH_TOOLS.replace("arguments | tojson", "arguments")


def test_tools_may_be_json_in_a_string(read: Read) -> None:
    row = {"messages": [Q, A]}
    given, as_text = (read({**row, "tools": t}, WITH_TOOLS) for t in (TOOLS, json.dumps(TOOLS)))
    assert given.text == as_text.text
    assert given.text.startswith(json.dumps(TOOLS[0]) + "[user]")
    assert_rejected(read({"messages": [Q, A], "tools": "none"}), "wrong_type", "no JSON")


def test_arguments_in_a_string_are_not_quoted_once_more(read: Read) -> None:
    def row(arguments: Any) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        return {"messages": [Q, {"role": "assistant", "content": "", "tool_calls": [call]}]}

    given, expected = '{"city": "東京"}', f'<{{"city": "東京"}}>{EOS}'
    as_object, as_text = (read(row(each), WITH_TOOLS) for each in (json.loads(given), given))
    assert scored(as_object) == scored(as_text) == expected
    assert odd(as_object) == {}
    assert odd(as_text) == {"tool_arguments_parsed": 1}
    raw = read(row(given), RAW)
    assert (scored(raw), odd(raw)) == (expected, {})
    assert scored(read(row("no JSON"), WITH_TOOLS)) == f'<"no JSON">{EOS}'
    # Templates that go through the arguments do not take a text at all (Qwen 3).
    items = WITH_TOOLS.replace("arguments | tojson", "arguments | items | list | tojson")
    assert items != WITH_TOOLS
    found = read(row(given), items)
    assert scored(found) == scored(read(row(json.loads(given)), items))
    assert odd(found) == {"tool_arguments_parsed": 1}
    assert_rejected(read(row("no JSON"), items), "chat_template_error", "mapping")


# -- prompts and completions of messages ----------------------------------------------------------


@pytest.mark.parametrize("chat", [False, True])
def test_a_completion_of_messages_counts_without_its_prompt(read: Read, chat: bool) -> None:
    row = {"prompt": [Q, A, Q], "completion": [{"role": "assistant", "content": "B"}]}
    outcome = read(row, response="completion", chat=chat)
    assert outcome.text == f"[user]Hi{EOS}[assistant]Yo{EOS}[user]Hi{EOS}[assistant]B{EOS}"
    assert scored(outcome) == f"B{EOS}"
    several = {"prompt": [Q], "completion": [A, Q, A]}
    assert scored(read(several, response="completion")) == f"Yo{EOS}Yo{EOS}"
    assert scored(read(several, response="completion", turns="last")) == f"Yo{EOS}"


def test_a_prompt_of_messages_is_as_one_of_a_text(read: Read) -> None:
    of_messages = read({"prompt": [Q], "response": [A]})
    of_texts = read({"prompt": "Hi", "response": "Yo"}, chat=True)
    mixed = [read({"prompt": "Hi", "response": [A]}), read({"prompt": [Q], "response": "Yo"})]
    assert of_messages.text == of_texts.text == mixed[0].text == mixed[1].text
    assert scored(mixed[0]) == scored(mixed[1]) == f"Yo{EOS}"
    assert scored(of_messages) == scored(of_texts) == f"Yo{EOS}"


@pytest.mark.parametrize(
    ("row", "reason", "said"),
    [
        ({"prompt": 1, "response": [A]}, "wrong_type", "'prompt'"),
        ({"prompt": [], "response": [A]}, "empty", "'prompt'"),
        ({"conversations": [Q, A]}, "missing_field", "'conversations' may be a chat"),
        ({"messages": [{"from": "human", "value": "x"}]}, "missing_field", "ShareGPT"),
        ({"prompt": [Q], "response": ["Yo"]}, "wrong_type", "'response'"),
        ({"prompt": [A], "response": [Q]}, "ends_without_response", "user"),
    ],
)
def test_halves_of_a_conversation_are_rejected(
    read: Read, row: dict[str, Any], reason: str, said: str
) -> None:
    assert_rejected(read(row), reason, said)


def test_trl_trains_on_the_completion(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": [Q, A, Q], "completion": [A]}))
    fields = ReadOptions(pairs=PairFields(response="completion"))
    (sample,) = read_inputs([str(path)], fields, ReadStats())
    assert not isinstance(sample, Rejected)
    labels = TrlTrainer(byte_tokenizer(), TRIMMED).labels(sample).labels
    assert labels is not None
    counted = (labels.labels != -100).tolist()
    assert counted == [False] * (len(counted) - 3) + [True] * 3  # Y, o and EOS
