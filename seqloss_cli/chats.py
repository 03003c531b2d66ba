"""Chats as texts: what a chat template renders, and which characters of it are scored.

The scored span of an assistant's turn is what the template writes after the prompt for it, through
the token that ends the turn. It is found in two ways, which must agree where both exist: from the
template's own `{% generation %}` marks, and from renderings of the chat's beginnings, each of which
begins the next. Text that a template writes after the end of a turn is never scored.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from seqloss_cli.config import TurnChoice
from seqloss_cli.errors import RowError
from seqloss_cli.records import Chat
from seqloss_cli.vocabulary import Vocabulary

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
_MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
Span = tuple[int, int]
"""Characters [start, end) of the rendered text."""


@dataclass(frozen=True, slots=True)
class RenderedChat:
    text: str
    scored: tuple[Span, ...]
    """In order, none empty."""
    turn_ends: tuple[int, ...]
    """For each message the character at which the template is done with it."""
    n_changed: int
    """Messages whose content is not in the text as it was written, but for white space around."""


class ChatTemplate:
    """A tokenizer's chat template, or another one given as text.

    `turns` says which turns count, `end_of_turn` whether the token that ends them does.
    """

    def __init__(
        self, vocabulary: Vocabulary, template: str | None, turns: TurnChoice, end_of_turn: bool
    ) -> None:
        self._tokenizer = vocabulary.tokenizer
        self._special_text = vocabulary.special_text
        self._given = template
        self._turns, self._end_of_turn = turns, end_of_turn

    def text_for(self, tools: object) -> str:
        """The template as text; some tokenizers have another one for chats with tools.

        Raises RowError when there is none.
        """
        if self._given is not None:
            return self._given
        try:
            template: str = self._tokenizer.get_chat_template(None, tools)
        except ValueError as error:
            raise RowError(
                "no_chat_template",
                "the tokenizer has no chat template for it; --chat-template FILE names one",
            ) from error
        return template

    @property
    def sha256(self) -> str | None:
        """Of the template; None where there is none."""
        try:
            return hashlib.sha256(self.text_for(None).encode()).hexdigest()
        except RowError:
            return None

    def render(self, chat: Chat) -> RenderedChat:
        """Raises RowError when the chat cannot be rendered, or what is scored cannot be told."""
        _check_messages(chat, self._turns)
        template = self.text_for(chat.tools)
        text, marks = self._rendered(chat, template, len(chat.messages))
        if not text:
            raise RowError("no_tokens", "the chat template makes nothing of it")
        prefixes = _Prefixes(self, chat, template, text)
        if self._turns == "all":
            return _rendered_chat(chat, text, [(0, len(text))], prefixes.turn_ends([]))
        wanted = [n for n, message in enumerate(chat.messages) if message["role"] == "assistant"]
        spans = [prefixes.span_of(n) for n in wanted]
        if _MARKS.search(template):
            marked = self._marked_spans(chat, text, _joined(marks), wanted)
            found = [
                _agreed(n, text, by_mark, by_prefix)
                for n, by_mark, by_prefix in zip(wanted, marked, spans, strict=True)
            ]
        else:
            found = [_stable(n, span) for n, span in zip(wanted, spans, strict=True)]
        ends = prefixes.turn_ends([(n, end) for n, (_, end) in zip(wanted, found, strict=True)])
        scored = found[-1:] if self._turns == "last" else found
        return _rendered_chat(chat, text, [span for span in scored if span[0] < span[1]], ends)

    def end_of(self, message: Any, written: str) -> int:
        """Where the scored part of a message ends in what the template wrote for it: after the
        first control token that follows its content, or before it; without one, after the content.
        """
        content = _content(message).strip()
        found = -1 if message.get("tool_calls") else written.find(content)
        if found < 0:  # written some other way: the last control token is what ends it
            tokens = list(self._special_text.finditer(written))
            token = tokens[-1] if tokens else None
            after_content = token.start() if token else len(written.rstrip())
        else:
            token = self._special_text.search(written, found + len(content))
            last = written.rfind(content, 0, token.start() if token else None)
            after_content = last + len(content)
        return token.end() if token and self._end_of_turn else after_content

    def beginning(self, chat: Chat, template: str, n_messages: int, prompt: bool) -> str | None:
        """The chat's first messages rendered; None where the template does not take them alone."""
        try:
            return self._rendered(chat, template, n_messages, prompt)[0]
        except RowError:
            return None

    def _rendered(
        self, chat: Chat, template: str, n_messages: int, prompt: bool = False
    ) -> tuple[str, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        messages = [
            {key: value for key, value in message.items() if value is not None}
            for message in chat.messages[:n_messages]
        ]
        marks = _MARKS.search(template) is not None
        try:
            texts, found = render_jinja_template(
                conversations=[messages],
                tools=chat.tools,
                chat_template=template,
                return_assistant_tokens_mask=marks,
                add_generation_prompt=prompt,
                **{**self._tokenizer.special_tokens_map, **chat.template_kwargs},
            )
        except Exception as error:  # whatever a template does
            reason = " ".join(str(error).split())[:200]
            raise RowError(
                "chat_template_error", f"the chat template does not take it: {reason}"
            ) from error
        return texts[0], found[0] if marks else []

    def _marked_spans(
        self, chat: Chat, text: str, marks: list[Span], wanted: list[int]
    ) -> list[Span]:
        if len(marks) != len(wanted):
            raise RowError(
                "template_marks",
                f"the chat template marks {len(marks)} generations in a chat of {len(wanted)} "
                "assistant messages",
            )
        return [
            (start, start + self.end_of(chat.messages[n], text[start:end]))
            for n, (start, end) in zip(wanted, marks, strict=True)
        ]


class _Prefixes:
    """What is known of a rendered chat from the renderings of its beginnings."""

    def __init__(self, template: ChatTemplate, chat: Chat, written: str, text: str) -> None:
        self._template, self._chat, self._written, self._text = template, chat, written, text

    def span_of(self, n: int) -> Span | None:
        """The scored span of message n; None where the renderings do not begin one another."""
        chat, render = self._chat, self._template.beginning
        before = render(chat, self._written, n, True)
        through = render(chat, self._written, n + 1, False)
        if before is None or through is None or not through.startswith(before):
            return None
        start = len(before)
        end = start + self._template.end_of(chat.messages[n], through[start:])
        return (start, end) if self._text.startswith(through[:end]) else None

    def turn_ends(self, known: Sequence[tuple[int, int]]) -> list[int]:
        """Where the text of each message ends: where a rendering of the chat up to it ends, else at
        the end of its scored span (`known`), else after its content."""
        span_ends, ends, end = dict(known), [], 0
        for n, message in enumerate(self._chat.messages[:-1]):
            through = self._template.beginning(self._chat, self._written, n + 1, False)
            content = _content(message).strip()
            if through is not None and self._text.startswith(through):
                end = max(end, len(through))
            elif n in span_ends:
                end = span_ends[n]
            elif (found := self._text.find(content, end)) >= 0:
                end = found + len(content)
            ends.append(end)
        return [*ends, len(self._text)]


def _check_messages(chat: Chat, turns: TurnChoice) -> None:
    for n, message in enumerate(chat.messages):
        if message["role"] not in ROLES:
            raise RowError(
                "unknown_role",
                f"message {n} has the role {message['role']!r:.40}, which is none of "
                f"{', '.join(ROLES)}",
            )
    if turns != "all" and chat.messages[-1]["role"] != "assistant":
        raise RowError(
            "ends_without_response",
            f"the last message is the {chat.messages[-1]['role']}'s: no response to score "
            "(--score all takes it)",
        )


def _content(message: Any) -> str:
    """A message's text; of several parts, those that are text."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _joined(marks: list[Span]) -> list[Span]:
    """Marks that touch are one."""
    joined: list[Span] = []
    for start, end in marks:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, end))
    return joined


def _stable(n: int, by_prefix: Span | None) -> Span:
    if by_prefix is None:
        raise RowError(
            "template_not_prefix_stable",
            f"message {n}: the chat template renders what comes before it, or the message itself, "
            "differently once more follows, and it has no {% generation %} marks: which tokens "
            "the message has cannot be told",
        )
    return by_prefix


def _agreed(n: int, text: str, marked: Span, by_prefix: Span | None) -> Span:
    if by_prefix is None or marked == by_prefix:
        return marked
    shown = [f"{a}–{b} ({text[a:b]!r:.60})" for a, b in (marked, by_prefix)]
    hint = ""
    if marked[0] == by_prefix[0] and marked[1] < by_prefix[1]:
        hint = "; --no-end-of-turn leaves the token that ends the turn out"
    raise RowError(
        "template_marks_disagree",
        f"message {n}: by the chat template's own marks characters {shown[0]} are the "
        f"assistant's, by its rendered beginnings {shown[1]}{hint}",
    )


def _rendered_chat(chat: Chat, text: str, scored: list[Span], ends: list[int]) -> RenderedChat:
    assert all(a[1] <= b[0] for a, b in pairwise(scored))
    changed = sum(_content(message).strip() not in text for message in chat.messages)
    return RenderedChat(text, tuple(scored), tuple(ends), changed)
