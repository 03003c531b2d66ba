"""The labels that TRL's SFTTrainer would train on, without TRL.

Written from the behaviour of TRL 1.16 with the defaults of `SFTConfig`, unless noted here, and held
to it by `make test-trl`.

- A pair: prompt and prompt + completion are each tokenized with the tokenizer's special tokens; the
  loss falls on the tokens after their longest common beginning. EOS is put after a completion that
  does not end with it.
- A chat: the template's rendering; the loss falls on every token, or with `assistant_only` on the
  template's `{% generation %}` blocks.
- Then the sequence is cut to `max_length` at its end, and dropped if nothing that counts is left.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqloss_cli.core.alignment import common_prefix
from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import IGNORED, Chat, Pair, Sample
from seqloss_cli.tokenization.labels import Labels

NAME = "TRL 1.16"
DEFAULT_MAX_LENGTH = 1024
# As transformers looks for them: it knows no `{%+ generation %}`, and does look into comments.
_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True)
class TrainerLabels:
    """The labels of a row, or why the trainer leaves it out."""

    labels: Labels | None
    """None where the row is not trained on."""
    note: str | None = None
    """Why it is not."""


@dataclass(frozen=True, slots=True)
class TrlTrainer:
    """Settings of an SFTTrainer that its labels depend on."""

    tokenizer: Any
    """The one that `AutoTokenizer` gives."""
    chat_template: str | None = None
    use_clock: Callable[[str], None] | None = None
    """Has a template told the time that ours is told."""
    assistant_only: bool = False
    max_length: int | None = DEFAULT_MAX_LENGTH

    def labels(self, sample: Sample) -> TrainerLabels:
        """The labels of one row, as if it were the first of its data set."""
        try:
            ids, counted = self._tokenized(sample)
        except RowError as error:
            return TrainerLabels(None, error.message)
        except Exception as error:  # whatever templates and tokenizers raise, training stops
            return TrainerLabels(None, f"the trainer stops: {' '.join(str(error).split())[:200]}")
        labels = np.where(counted, ids, IGNORED)
        if self.max_length is not None:
            ids, labels = ids[: self.max_length], labels[: self.max_length]
            if not (labels != IGNORED).any():
                return TrainerLabels(
                    None, f"dropped: nothing that counts is in its first {len(ids)} tokens"
                )
        return TrainerLabels(Labels(ids, labels))

    def _tokenized(self, sample: Sample) -> tuple[Any, Any]:
        if sample.chat is None:
            assert sample.pair is not None
            if self.assistant_only:
                raise RowError("refused", "the trainer stops: assistant_only_loss is for chats")
            return self._pair(sample.pair)
        if sample.pair is not None or sample.chat.n_prompt:
            return self._chat_pair(sample.chat)
        return self._rendered(sample.chat, sample.chat.messages)

    def _pair(self, pair: Pair) -> tuple[Any, Any]:
        completion, eos = pair.separator + pair.response, self.tokenizer.eos_token
        if eos is None:
            raise RowError("refused", "the trainer stops: the tokenizer has no EOS to append")
        if not completion.endswith(eos):
            completion += eos
        prompt = np.array(self.tokenizer(pair.prompt)["input_ids"], dtype=np.int64)
        joint = np.array(self.tokenizer(pair.prompt + completion)["input_ids"], dtype=np.int64)
        return joint, np.arange(len(joint)) >= common_prefix(prompt, joint)

    def _chat_pair(self, chat: Chat) -> tuple[Any, Any]:
        before = chat.messages[: chat.n_prompt or -1]
        prompt, _ = self._rendered(chat, before, generation_prompt=True)
        joint, mask = self._rendered(chat, chat.messages)
        return joint, mask & (np.arange(len(joint)) >= common_prefix(prompt, joint))

    def _rendered(
        self, chat: Chat, messages: Any, generation_prompt: bool = False
    ) -> tuple[Any, Any]:
        """The ids of a rendered chat, and which of them stand in generation blocks."""
        masked = self.assistant_only and not generation_prompt
        template = self.chat_template
        if template is None:
            template = self.tokenizer.get_chat_template(None, chat.tools)
        if self.assistant_only and not _GENERATION_BLOCK.search(template):
            raise RowError(
                "refused",
                "the trainer stops, or replaces the chat template if it knows it: it has no "
                "{% generation %} marks for assistant_only_loss",
            )
        if self.use_clock is not None:
            self.use_clock(template)
        # A trainer makes EOS the pad token where there is none, and templates may write either.
        padding = {} if self.tokenizer.pad_token else {"pad_token": self.tokenizer.eos_token}
        found = self.tokenizer.apply_chat_template(
            list(messages),
            tools=chat.tools,
            chat_template=template,
            add_generation_prompt=generation_prompt,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=masked,
            **{**padding, **chat.template_kwargs},
        )
        ids = np.array(found["input_ids"], dtype=np.int64)
        if not masked:
            return ids, np.ones(len(ids), dtype=bool)
        # Taken as it is, with its faults (a first span of one token marks the whole sequence):
        # the trainer trains on this.
        mask = np.array(found["assistant_masks"], dtype=bool)
        if not mask.any():
            raise RowError("refused", "the trainer stops: no token is the assistant's")
        return ids, mask
