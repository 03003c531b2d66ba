"""Find the characters of a rendered chat that are scored, and the ends of its turns.

The scored span of an assistant's turn follows the prompt for it and reaches through the token that
ends the turn. It is found in two ways, which must agree where both exist: from the template's own
`{% generation %}` blocks, and from renderings of the chat's beginnings, each of which begins the
next. The text that a template writes after the end of a turn is never scored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seqloss_cli.core.errors import RowError
from seqloss_cli.core.policies import PairPolicy, TurnChoice
from seqloss_cli.core.records import Chat, Pair
from seqloss_cli.tokenization.chat_templates import (
    MEDIA,
    WEIGHTS,
    ChatTemplate,
    Rendering,
    Span,
    content_text,
)

_MASKED = ("masked", "mask")
"""Keys of a message that say that its loss does not count, such as torchtune's."""
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A chat as text, with the characters of it that are scored."""

    text: str
    scored: tuple[Span, ...]
    """In order, none empty."""
    roles: tuple[str, ...]
    """The role of each message, such as `user`."""
    turn_ends: tuple[int, ...]
    """For each message the character at which its text ends."""
    counts: Mapping[str, int]
    """Flags of its rendering; `no_end_of_turn`: scored turns that no control token ends."""


def pair_as_chat(pair: Pair, messages: Sequence[Mapping[str, Any]] = (), **template: Any) -> Chat:
    """A turn of the user, or `messages` in its place, and one of the assistant; `template` holds
    the chat's other fields."""
    prompt = messages or [{"role": "user", "content": pair.prompt}]
    answer = {"role": "assistant", "content": pair.response}
    return Chat([*prompt, answer], n_prompt=len(messages), **template)


def render_chat(
    template: ChatTemplate, chat: Chat, control: re.Pattern[str], policy: PairPolicy
) -> RenderedChat:
    """Renders a chat and finds the spans that the policy's `turns` ask for.

    With `end_of_turn` a span reaches through the token that ends the turn. `control` matches
    control tokens. Raises RowError when the chat does not render, or its turns are ambiguous.
    """
    turns = policy.turns
    _check_messages(chat, turns)
    chat, rendering, counts = template.render_fitting(chat)
    finder = _TurnFinder(chat, rendering, control, policy.end_of_turn)
    roles = tuple(message["role"] for message in chat.messages)
    answers = [n for n, role in enumerate(roles) if role == "assistant"]
    spans: dict[int, Span] = {}
    scored, n_without_end_token = [(0, len(rendering.text))], 0
    if turns != "all":
        wanted = answers[-1:] if turns == "last" else answers
        wanted = [n for n in wanted if n >= chat.n_prompt and _weights(chat.messages[n])[0]]
        found = finder.turns(answers, wanted)
        spans = {n: turn.span for n, turn in found.items()}
        scored = [span for span in spans.values() if span[0] < span[1]]
        if policy.end_of_turn:
            n_without_end_token = sum(turn.is_open for turn in found.values())
    return RenderedChat(
        text=rendering.text,
        scored=tuple(scored),
        roles=roles,
        turn_ends=tuple(finder.turn_ends(spans)),
        counts={**counts, "no_end_of_turn": n_without_end_token},
    )


@dataclass(frozen=True, slots=True)
class _Turn:
    """The scored characters of a turn."""

    start: int
    end: int
    is_open: bool
    """No control token follows the content to tell where the turn ends."""

    @property
    def span(self) -> Span:
        return self.start, self.end


class _TurnFinder:
    """Finds messages in the text of a rendered chat."""

    def __init__(
        self, chat: Chat, rendering: Rendering, control: re.Pattern[str], end_of_turn: bool
    ) -> None:
        self._messages, self._rendering = chat.messages, rendering
        self._control, self._end_of_turn = control, end_of_turn

    def turns(self, answers: Sequence[int], scored: Sequence[int]) -> dict[int, _Turn]:
        """The turns of the messages `scored`, which are some of the assistant's `answers`."""
        blocks = self._rendering.generation_spans
        if blocks is None:
            return {n: _require_prefix(n, self._by_prefix(n)) for n in scored}
        if len(blocks) != len(answers):
            raise RowError(
                "template_marks",
                f"the chat template marks {len(blocks)} generations in a chat of "
                f"{len(answers)} assistant messages",
            )
        block_of, text = dict(zip(answers, blocks, strict=True)), self._rendering.text
        turns = {}
        for n in scored:
            content = content_text(self._messages[n]).strip()
            by_block = self._by_block(n, block_of[n])
            turns[n] = _check_against_prefix(n, text, content, by_block, self._by_prefix(n))
        return turns

    def _by_prefix(self, n: int) -> _Turn | None:
        """The turn between the prompt for message n and the end of the message, as rendered.

        None where the renderings do not begin one another.
        """
        # Qwen3's template writes a thought into the last turn only, Llama 2's writes the system's
        # message into the first of the user's: what a message is, its neighbours may change.
        render, text = self._rendering.beginning, self._rendering.text
        before, unprompted, through = render(n, True), render(n), render(n + 1)
        if before is None or through is None or not through.startswith(before):
            return None
        before_content, after = self._rendering.around(n) or (None, None)
        if after is not None and not through.endswith(after):
            after = None
        start = len(before)
        # Without a prompt for an answer, the header of the turn stands in the turn itself.
        if before == unprompted:
            if before_content is None or not through.startswith(before_content):
                return None
            header = before_content[start:]
            start += len(header) if header.strip() else 0
        turn = self._turn(n, start, through[start:], after)
        return turn if text.startswith(through[: turn.end]) else None

    def _by_block(self, n: int, block: Span) -> list[_Turn]:
        """The turns that a generation block may stand for, the likeliest first.

        The text alone does not tell how much of it is content, and how much the template wrote
        after the content.
        """
        start, written = block[0], self._rendering.text[slice(*block)]
        content, around = content_text(self._messages[n]), self._rendering.around(n)
        if around is None:
            return [self._turn(n, start, written, None, in_block=True)]
        # The block may end anywhere in what is written after the content: `-%}` strips white
        # space, and the end token stands inside in one template and outside in another.
        afters = [around[1][:size] for size in range(len(around[1]), -1, -1)]
        afters = [after for after in afters if written.endswith(after)]
        afters.sort(key=lambda after: not written.removesuffix(after).endswith(content))
        return [self._turn(n, start, written, after, in_block=True) for after in afters]

    def _turn(
        self, n: int, start: int, written: str, after: str | None, in_block: bool = False
    ) -> _Turn:
        """The scored part of a message's text, which begins at `start` with `written`.

        It reaches through the first control token that follows the content, or up to it. Without
        one it is the content; in a generation block it is all but the white space at the end.
        `after` is the text that the template wrote after the content, where that is known.
        """
        message = self._messages[n]
        # Most templates strip contents, some write them as they are: only the middle is sure.
        content = content_text(message).strip()
        if message.get("tool_calls") or (after is None and content not in written):
            # Calls of tools may hold control tokens of their own; the one that ends them is last.
            tokens = list(self._control.finditer(written))
            token = tokens[-1] if tokens else None
            content_end = token.start() if token else len(written.rstrip())
        else:
            if after is None:
                content_end = written.find(content) + len(content)
            else:
                content_end = len(written) - len(after)
            token = self._control.search(written, content_end)
        end = content_end
        if token is not None and self._end_of_turn:
            end = token.end()
        elif token is None and in_block and self._end_of_turn:
            end = max(content_end, len(written.rstrip()))
        return _Turn(start, start + end, token is None)

    def turn_ends(self, spans: Mapping[int, Span]) -> list[int]:
        """For each message the character at which its text ends.

        A rendering of the chat up to the message agrees with the whole so far; where it does not
        reach the end of the message's scored span, that is taken.
        """
        text, ends, end = self._rendering.text, [], 0
        for n, message in enumerate(self._messages[:-1]):
            through = self._rendering.beginning(n + 1)
            agreed = 0 if through is None else self._agreement(through)
            least = spans[n][1] if n in spans else end
            content = content_text(message).strip()
            if through is None or agreed < least:
                found = text.find(content, end)
                agreed = least if n in spans or found < 0 else found + len(content)
            end = max(end, agreed)
            ends.append(end)
        return [*ends, len(text)]

    def _agreement(self, through: str) -> int:
        """Number of characters that a rendering and the whole begin with, no control token cut."""
        text = self._rendering.text
        # <|im_start|> and <|im_end|> begin alike: such a beginning is nobody's.
        pairs = enumerate(zip(text, through, strict=False))
        agreed = next((n for n, (a, b) in pairs if a != b), min(len(text), len(through)))
        for written in (text, through):
            for token in self._control.finditer(written):
                if token.start() < agreed < token.end():
                    agreed = token.start()
        return agreed


def check_message(n: int, message: Mapping[str, Any]) -> None:
    """Raises RowError for message n of a chat without a role, or without content and calls."""
    if not isinstance(message.get("role"), str):
        hint = " (ShareGPT's 'from' and 'value' are to be 'role' and 'content')" * (
            "from" in message
        )
        raise RowError("missing_field", f"message {n} has no 'role' that is a string{hint}")
    if message.get("content") is None and not message.get("tool_calls"):
        raise RowError("missing_field", f"message {n} has no 'content'")


def _weights(message: Mapping[str, Any]) -> list[Any]:
    """The message's own words on whether its loss counts; without one 1 of the assistant's."""
    found = [weight for _, weight in _written_weights(message)]
    return found or [int(message["role"] == "assistant")]


def _written_weights(fields: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The names of fields of a message, or of a part, that say whether it counts, and what they
    say: of those that mask it, the opposite."""
    return [
        (key, 1 - value if key in _MASKED and value in (0, 1) else value)
        for key, value in fields.items()
        if value is not None and WEIGHTS.search(key)
    ]


def _weights_of_parts(parts: list[Any], weight: Any) -> list[str]:
    """The fields of parts by which they count otherwise than their message."""
    found = [_written_weights(part) for part in parts if isinstance(part, dict)]
    return [key for each in found for key, own in each if own != weight]


def _check_messages(chat: Chat, turns: TurnChoice) -> None:
    if not chat.messages:
        raise RowError("empty", "has no messages")
    for n, message in enumerate(chat.messages):
        check_message(n, message)
        if (role := message["role"]) not in ROLES:
            raise RowError(
                "unknown_role",
                f"message {n} has the role {role!r:.40}, which is none of {', '.join(ROLES)}",
            )
        content_text(message)  # RowError where it holds more than text
        if media := [name for name in MEDIA if message.get(name)]:
            raise RowError("unsupported_part", f"message {n} has {media[0]!r}, which are no text")
        weight, *others = _weights(message)
        is_known = weight in (0, 1) and all(other == weight for other in others)
        if turns != "all" and not (is_known and (role == "assistant" or not weight)):
            keys = ", ".join(key for key in message if WEIGHTS.search(key))
            taken = "of the assistant's 0 and 1 are taken, of others 0"
            weights = f"{weight!r:.40}{' and others' * bool(others)} ({keys})"
            raise RowError("bad_weight", f"message {n} has a weight of {weights}: {taken}")
        parts = message["content"] if isinstance(message.get("content"), list) else []
        if turns != "all" and (own := _weights_of_parts(parts, weight)):
            raise RowError(
                "bad_weight",
                f"message {n} has parts with {own[0]!r}: a message counts as a whole, so give "
                "messages of their own to what counts and what does not",
            )
    if turns != "all" and chat.messages[-1]["role"] != "assistant":
        raise RowError(
            "ends_without_response",
            f"the last message is the {chat.messages[-1]['role']}'s: no response to score "
            "(--score all takes it)",
        )


def _require_prefix(n: int, by_prefix: _Turn | None) -> _Turn:
    if by_prefix is None:
        raise RowError(
            "template_not_prefix_stable",
            f"message {n}: the chat template renders what comes before it, or the message itself, "
            "differently once more follows, and it has no {% generation %} marks: which tokens "
            "the message has cannot be told",
        )
    return by_prefix


def _check_against_prefix(
    n: int, text: str, content: str, by_block: list[_Turn], by_prefix: _Turn | None
) -> _Turn:
    """The turn by the generation block, where the renderings do not contradict it."""
    found = by_block[0]
    shown = _shown(text, found)
    if by_prefix is None:
        if content in text and content not in text[slice(*found.span)]:
            raise RowError(
                "template_marks",
                f"message {n}: what the chat template marks, characters {shown}, does not hold its "
                "content",
            )
        return found
    same = next((turn for turn in by_block if turn.span == by_prefix.span), None)
    if same is None and by_prefix.is_open and found.start == by_prefix.start:
        same = found if found.end >= by_prefix.end else None  # the block alone knows the end
    if same is not None:
        return same
    hint = ""
    if found.start == by_prefix.start and found.end < by_prefix.end:
        hint = "; --no-end-of-turn leaves the token that ends the turn out"
    raise RowError(
        "template_marks_disagree",
        f"message {n}: by the chat template's own marks characters {shown} are the assistant's, by "
        f"its rendered beginnings {_shown(text, by_prefix)}{hint}",
    )


def _shown(text: str, turn: _Turn) -> str:
    return f"{turn.start}–{turn.end} ({text[slice(*turn.span)]!r:.60})"
