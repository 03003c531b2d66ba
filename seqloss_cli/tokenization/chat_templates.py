"""Render chats with a chat template, whole or in part, and see what it writes around a message."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import Chat

Span = tuple[int, int]
"""Characters [start, end) of a rendered text."""
_GENERATION_BLOCK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
# Private use: no template treats it as anything but content.
_STAND_IN = "\ue000seqloss\ue001"
_RESERVED = (
    *("conversations", "messages", "tools", "chat_template", "add_generation_prompt"),
    *("continue_final_message", "return_assistant_tokens_mask"),
)
"""Names that render_jinja_template itself takes, and a row's own settings must not."""


class ChatTemplate:
    """A tokenizer's chat template, or another one given as text."""

    def __init__(self, tokenizer: Any, given: str | None) -> None:
        self._tokenizer, self._given = tokenizer, given

    def text_for(self, tools: object) -> str:
        """The template as text; some tokenizers have another one for chats with tools.

        Raises RowError when there is none.
        """
        if self._given is not None:
            return self._given
        try:
            return str(self._tokenizer.get_chat_template(None, tools))
        except ValueError as error:
            raise RowError(
                "no_chat_template",
                "the tokenizer has no chat template for it; --chat-template FILE names one",
            ) from error

    @property
    def sha256(self) -> str | None:
        """Hash of the template; None where there is none."""
        text = _or_none(lambda: self.text_for(None))
        return None if text is None else hashlib.sha256(text.encode()).hexdigest()

    def text_of(self, chat: Chat) -> str | None:
        """The chat rendered; None where the template does not take it."""
        return _or_none(lambda: self.render(chat).text)

    def render(self, chat: Chat) -> Rendering:
        """Renders a chat. Raises RowError without a template, or when it does not take the chat."""
        return Rendering(self._tokenizer, self.text_for(chat.tools), chat)


class Rendering:
    """A chat as the template writes it."""

    def __init__(self, tokenizer: Any, template: str, chat: Chat) -> None:
        self._tokenizer, self._template, self._chat = tokenizer, template, chat
        # A template that only mentions the block in a comment has none.
        without_comments = _COMMENT.sub("", template)
        self._has_blocks = _GENERATION_BLOCK.search(without_comments) is not None
        for name in _RESERVED:
            if name in chat.template_kwargs:
                raise RowError("chat_template_error", f"chat_template_kwargs must not hold {name}")
        self.text, spans = self._render(chat.messages, False)
        self.generation_spans = _merged(spans) if self._has_blocks else None
        """The text that `{% generation %}` blocks wrote; None for a template without such."""
        if not self.text:
            raise RowError("no_tokens", "the chat template makes nothing of it")

    def beginning(self, n_messages: int, prompt: bool = False) -> str | None:
        """The first messages rendered, with `prompt` and the prompt for an answer.

        None where the template does not take them alone.
        """
        return _or_none(lambda: self._render(self._chat.messages[:n_messages], prompt)[0])

    def around(self, n: int) -> tuple[str, str] | None:
        """The text before and after the content of message n, when that is the last one.

        None where something other than the content depends on it.
        """
        messages = [dict(message) for message in self._chat.messages[: n + 1]]
        messages[n]["content"] = _STAND_IN
        written = _or_none(lambda: self._render(messages, False)[0])
        parts = () if written is None else written.split(_STAND_IN)
        return (parts[0], parts[1]) if len(parts) == 2 else None

    def _render(self, messages: Sequence[Any], prompt: bool) -> tuple[str, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        # Data sets with columns write null for what a message has not; templates that ask whether
        # a key is there would take it for a tool call.
        known = [{key: v for key, v in message.items() if v is not None} for message in messages]
        try:
            # Characters, not tokens: the text alone is rendered, and tokenized once, by us.
            texts, found = render_jinja_template(
                conversations=[known],
                tools=self._chat.tools,
                chat_template=self._template,
                return_assistant_tokens_mask=self._has_blocks,
                add_generation_prompt=prompt,
                **{**self._tokenizer.special_tokens_map, **self._chat.template_kwargs},
            )
            texts[0].encode()
        except Exception as error:  # whatever a template does
            reason = " ".join(str(error).split())[:200]
            raise RowError(
                "chat_template_error", f"the chat template does not take it: {reason}"
            ) from error
        return texts[0], found[0] if self._has_blocks else []


def _or_none(make: Callable[[], str]) -> str | None:
    """The text; None where making it raises RowError."""
    try:
        return make()
    except RowError:
        return None


def _merged(spans: list[Span]) -> list[Span]:
    """The spans, with those that touch as one."""
    merged: list[Span] = []
    for start, end in spans:
        if merged and merged[-1][1] == start:
            start = merged.pop()[0]
        merged.append((start, end))
    return merged
