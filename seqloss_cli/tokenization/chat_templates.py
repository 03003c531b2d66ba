"""Render chats with a chat template, whole or in part, and see what it writes around a message.

Messages are given to it in the form that it takes: contents as texts or in parts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, time
from typing import Any

from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import Chat

Span = tuple[int, int]
"""Characters [start, end) of a rendered text."""
_GENERATION_BLOCK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_CLOCK = re.compile(r"\bstrftime_now\b")
_TIME = re.compile(r"%[-_]?[HIMSTXcprRsfzZ]")
"""Directives of strftime that are of a time of day."""
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
# Private use: no template treats it as anything but content.
_STAND_IN = "\ue000seqloss\ue001"
_RESERVED = (
    *("conversations", "messages", "tools", "chat_template", "add_generation_prompt"),
    *("continue_final_message", "return_assistant_tokens_mask"),
)
"""Names that render_jinja_template itself takes, and a row's own settings must not."""


MEDIA = ("image", "images", "video", "videos", "audio", "audios")
"""Keys of what no text stands for."""
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
"""Types of parts of a content that are text, under the key `text` or their own."""
_REASONING = (
    *("reasoning_content", "reasoning", "thinking", "thought", "thoughts"),
    *("reasoning_details", "thinking_blocks"),
)
WEIGHTS = re.compile(r"(^|_)(loss|masks?|masked|weights?|train|training|trainable)(_|$)")
"""Keys of a message that say whether its loss counts, such as OpenAI's `weight`,
`train` of Axolotl, `loss` of ms-swift."""
METADATA = re.compile(
    r"(^|_)ids?$|^(role|content|tool_calls|type|object|index|model|usage|time|timestamp|created|date"
    r"|language|source|finish_reason|stop_reason)$|_at$"
)
"""Keys of what a message does not say, or what is looked for elsewhere."""


def content_text(message: Mapping[str, Any]) -> str:
    """The text of a message; of several parts, all of them. RowError for one that is no text."""
    return "".join(_texts_of(message))


def is_written(message: Mapping[str, Any], text: str) -> bool:
    """Return whether a message's content is in the text, but for white space around it."""
    content = message.get("content")
    # A template that expects strings prints parts as Python or JSON writes them.
    parts = (
        [part for part in content if isinstance(part, dict)] if isinstance(content, list) else ()
    )
    printed = any(
        shown in text
        for part in parts
        for shown in (str(part), json.dumps(part, ensure_ascii=False))
    )
    return not printed and all(each.strip() in text for each in _texts_of(message))


def _texts_of(message: Mapping[str, Any]) -> list[str]:
    content = message.get("content")
    if isinstance(content, list):
        return [_text_of_part(part) for part in content]
    return [content] if isinstance(content, str) else []


def _text_of_part(part: object) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
    text = part.get("text", part.get(str(kind))) if isinstance(part, dict) else None
    if kind not in _TEXT_PARTS or not isinstance(text, str):
        raise RowError(
            "unsupported_part",
            f"the content of a message has a part of type {kind!r:.40}, which is no text",
        )
    return text


def _said(value: object) -> str:
    """The longest text in a field's value."""
    # No recursion: values may be nested deeper than Python's stack.
    found, left = "", [value]
    while left:
        match left.pop():
            case str(text):
                found = max(found, text.strip(), key=len)
            case list(parts):
                left.extend(parts)
            case dict(parts):
                left.extend(parts.values())
    return found


def _in_parts(content: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}]


def _as_text(message: Mapping[str, Any]) -> Mapping[str, Any]:
    is_list = isinstance(message.get("content"), list)
    return {**message, "content": content_text(message)} if is_list else message


def _as_parts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    return {**message, "content": _in_parts(content)} if isinstance(content, str) else message


def _n_parts(message: Mapping[str, Any]) -> int:
    content = message.get("content")
    return len(content) if isinstance(content, list) else 0


def _without(chat: Chat, name: str) -> Chat:
    """The chat, its messages without a field."""
    messages = [{k: v for k, v in each.items() if k != name} for each in chat.messages]
    return replace(chat, messages=messages)


def _with_parsed_arguments(chat: Chat, text: str | None) -> tuple[Chat, int]:
    """The chat, arguments of tool calls that were quoted once more in the text as objects, or
    without a text all of them; and the number of messages that changes.

    OpenAI has them as JSON in a string; most templates write what they are given as JSON.
    """
    parsed = [_with_parsed_calls(each, text) for each in chat.messages]
    n_parsed = sum(a is not b for a, b in zip(parsed, chat.messages, strict=True))
    return replace(chat, messages=parsed) if n_parsed else chat, n_parsed


def _with_parsed_calls(message: Mapping[str, Any], text: str | None) -> Mapping[str, Any]:
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    found = [_with_parsed_call(call, text) for call in calls]
    return message if found == calls else {**message, "tool_calls": found}


def _with_parsed_call(call: Any, text: str | None) -> Any:
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _with_parsed_call(call["function"], text)}
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        return call
    if text is not None and json.dumps(arguments, ensure_ascii=False) not in text:
        return call
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return call
    return {**call, "arguments": parsed} if isinstance(parsed, dict) else call


class ChatTemplate:
    """A tokenizer's chat template, or another one given as text."""

    def __init__(self, tokenizer: Any, given: str | None, date: str | None = None) -> None:
        """`date`, ISO 8601, is what a template is told that asks for the time; None: it is now."""
        self._tokenizer, self._given = tokenizer, given
        both: tuple[Any, ...] = (None, [{}])
        texts = [text for tools in both if (text := self._text_or_none(tools))]
        clocks = [text for text in texts if _CLOCK.search(_COMMENT.sub("", text))]
        with_time = any(_TIME.search(text) for text in clocks)
        now = datetime.now() if with_time else datetime.combine(datetime.now(), time())
        now = datetime.fromisoformat(date) if date else now.replace(microsecond=0)
        self._now, self._is_given, self._was_told = now, date is not None, False
        self.date = now.isoformat().removesuffix("T00:00:00") if clocks else None
        """The time that the template is told; None where it does not ask for it."""

    @property
    def warnings(self) -> list[str]:
        """For stderr, once chats were rendered: that their texts depend on when they are."""
        if not self._was_told or self._is_given:
            return []
        return [
            f"the chat template reads the clock: for chats it is told {self.date} "
            f"(--template-date {self.date} gives the same numbers later)"
        ]

    def use_clock(self, template: str) -> None:
        """Have the template told this time, wherever transformers renders it."""
        # Callables among a template's variables are not passed on: the compiled template's own are.
        from transformers.utils.chat_template_utils import _compile_jinja_template

        if self.date is not None:
            self._was_told = True
            _compile_jinja_template(template).globals["strftime_now"] = self._now.strftime

    def _text_or_none(self, tools: object) -> str | None:
        return _or_none(lambda: self.text_for(tools))

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

    def render_fitting(self, chat: Chat) -> tuple[Chat, Rendering, dict[str, int]]:
        """The chat with its contents in the form that the template takes, texts or parts, and with
        arguments of tools as objects where it would quote them or does not take texts; its
        rendering; flags with counts.

        Raises as `render` does.
        """
        try:
            fitted, rendering, n_joined = self._fitting(chat)
            fitted, n_parsed = _with_parsed_arguments(fitted, rendering.text)
            if n_parsed:
                rendering = self.render(fitted)
        except RowError:
            fitted, n_parsed = _with_parsed_arguments(chat, None)
            if not n_parsed:
                raise
            fitted, rendering, n_joined = self._fitting(fitted)
        chat, text = fitted, rendering.text
        counts = {
            "content_changed": sum(not is_written(each, text) for each in chat.messages),
            "tools_not_rendered": self._count_tools_left_out(chat, text),
            "fields_not_rendered": self._count_fields_left_out(chat, text),
            "parts_joined": n_joined,
            "tool_arguments_parsed": n_parsed,
        }
        return chat, rendering, counts

    def _fitting(self, chat: Chat) -> tuple[Chat, Rendering, int]:
        """The chat, its contents in the other form where the template does not write this one; its
        rendering; and how many contents of several parts were joined. Raises as `render` does."""
        said = [n for n, each in enumerate(chat.messages) if content_text(each).strip()]
        texts = [n for n in said if isinstance(chat.messages[n]["content"], str)]
        rendering, found = self._written(chat, said)
        if rendering is not None and len(found) == len(said):
            return chat, rendering, 0
        forms = []
        if len(texts) < len(said):
            forms.append(replace(chat, messages=[*map(_as_text, chat.messages)]))
        # A template for parts goes through the characters of a text, and writes none of them. One
        # that writes some texts, and changes others, is left in peace.
        if found.isdisjoint(texts):
            forms.append(replace(chat, messages=[*map(_as_parts, chat.messages)]))
        best, most = chat, len(found)
        for form in forms:
            written, found = self._written(form, said)
            if len(found) > most:
                best, rendering, most = form, written, len(found)
        pairs = zip(chat.messages, best.messages, strict=True)
        n_joined = sum(isinstance(b.get("content"), str) and _n_parts(a) > 1 for a, b in pairs)
        return best, rendering or self.render(best), n_joined

    def _written(self, chat: Chat, said: Sequence[int]) -> tuple[Rendering | None, set[int]]:
        """Return the rendering, and those of the messages `said` whose content is in it."""
        try:
            rendering = self.render(chat)
        except RowError:
            return None, set()
        return rendering, {n for n in said if is_written(chat.messages[n], rendering.text)}

    def _count_tools_left_out(self, chat: Chat, text: str) -> int:
        """Number of messages with tool calls, and of lists of tools, that change nothing."""
        calls = sum(bool(message.get("tool_calls")) for message in chat.messages)
        left_out = calls and self.text_of(_without(chat, "tool_calls")) == text
        no_tools = chat.tools and self.text_of(replace(chat, tools=None)) == text
        return (calls if left_out else 0) + bool(no_tools)

    def _count_fields_left_out(self, chat: Chat, text: str) -> int:
        """Number of fields of messages, and documents, that are not in the text."""
        count = 0
        for name in dict.fromkeys(name for each in chat.messages for name in each):
            # Numbers and `false` say nothing.
            values = [v for each in chat.messages if (v := each.get(name)) is True or _said(v)]
            if not values or METADATA.search(name) or WEIGHTS.search(name):
                continue
            is_thought = name in _REASONING
            missing = [v for v in values if isinstance(v, str) or is_thought]
            missing = [v for v in missing if _said(v) not in text]
            # A thought may stand under several of its names: without one of them nothing changes.
            if not is_thought and len(missing) < len(values):
                missing = values if self.text_of(_without(chat, name)) == text else missing
            count += len(missing)
        others = {k: v for k, v in chat.template_kwargs.items() if k != "documents"}
        has_documents = len(others) < len(chat.template_kwargs)
        if has_documents and self.text_of(replace(chat, template_kwargs=others)) == text:
            count += 1
        return count

    def render(self, chat: Chat) -> Rendering:
        """Renders a chat. Raises RowError without a template, or when it does not take the chat."""
        template = self.text_for(chat.tools)
        self.use_clock(template)
        return Rendering(self._tokenizer, template, chat)


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
        in_parts = isinstance(messages[n].get("content"), list)
        messages[n]["content"] = _in_parts(_STAND_IN) if in_parts else _STAND_IN
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
