"""Texts and models to measure with: text that every Python installation carries, random weights.

The text is that of `tools/demo_corpus.py`. Everything is made once, below `benchmarks/.cache`.
"""

from __future__ import annotations

import json
import random
import sys
from bisect import bisect_left
from functools import cached_property
from pathlib import Path
from typing import Any

from settings import CACHE, ROOT, STRATA
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
VOCABULARY = 49_152  # both models have at least as many ids
DOCUMENTS, SHORTEST = 256, 20
DEMO = ROOT / "seqloss_cli" / "demo"
ROW_TOKENS, DISTINCT_ROWS = 20, 200
PLACE = f"v1-py{sys.version_info.major}{sys.version_info.minor}"  # the text is this Python's


def cache() -> Path:
    folder = CACHE / PLACE
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def corpus() -> str:
    path = cache() / "corpus.txt"
    if not path.exists():
        sys.path.insert(0, str(ROOT / "tools"))
        from demo_corpus import documents

        path.write_text("\n".join(d.text for d in documents()), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def tokenizer() -> Tokenizer:
    """A byte-level BPE trained on the corpus, which puts BOS in front of every text."""
    path = cache() / "tokenizer.json"
    if path.exists():
        return Tokenizer.from_file(str(path))
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(corpus().split("\n\n"), trainer)
    made.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, made.token_to_id(BOS))]
    )
    made.save(str(path))
    return made


class Cutter:
    """Cuts a text at white space into pieces of about so many tokens."""

    def __init__(self, text: str, tokens: Tokenizer) -> None:
        self.text = text
        self._offsets = [
            start for start, _ in tokens.encode(text, add_special_tokens=False).offsets
        ]

    @cached_property
    def _starts(self) -> list[int]:
        """Tokens that white space begins."""
        return [n for n, at in enumerate(self._offsets) if self.text[at].isspace()]

    def __len__(self) -> int:
        return len(self._offsets)

    def piece(self, first: int, n_tokens: int) -> str:
        """Begins with its white space."""
        first = self._starts[bisect_left(self._starts, first)]
        last = self._starts[bisect_left(self._starts, first + n_tokens)]
        return self.text[self._offsets[first] : self._offsets[last]]


def strata(longest: int) -> list[list[str]]:
    """16 lists of 16 texts, shorter ones first, pieces from all the corpus: many short ones and few
    long ones, half of them below 80 tokens where the longest has 1000, 190 on the average."""
    path = cache() / f"texts-{longest}.json"
    if not path.exists():
        tokens = tokenizer()
        cutter, chance = Cutter(corpus(), tokens), random.Random(4)
        step = (len(cutter) - 2 * longest) // DOCUMENTS
        shares = [(n + 0.5) / DOCUMENTS for n in range(DOCUMENTS)]
        chance.shuffle(shares)
        lengths = [round(SHORTEST * (longest / SHORTEST) ** share**1.5) for share in shares]
        texts = [cutter.piece(n * step, length).strip() for n, length in enumerate(lengths)]
        texts.sort(key=lambda text: len(tokens.encode(text).ids))
        width = DOCUMENTS // STRATA
        cut = [texts[n : n + width] for n in range(0, DOCUMENTS, width)]
        for stratum in cut:
            chance.shuffle(stratum)
        path.write_text(json.dumps(cut))
    found: list[list[str]] = json.loads(path.read_text())
    return found


def ragged(longest: int, number: int) -> list[str]:
    """The texts of a round: one of each length stratum, others in each of 16 rounds."""
    texts = [stratum[number % len(stratum)] for stratum in strata(longest)]
    random.Random(number).shuffle(texts)
    return texts


def neighbours(longest: int, n_rounds: int) -> list[list[str]]:
    """For each round the 16 texts of a stratum: strata spread evenly, in a mixed order."""
    chosen = [int((n + 0.5) * STRATA / n_rounds) for n in range(n_rounds)]
    random.Random(1).shuffle(chosen)
    found = strata(longest)
    return [found[n] for n in chosen]


def is_clean(tokens: Tokenizer, prompt: str, response: str) -> bool:
    """Whether the joint tokenization is that of the two, one after another."""
    a, b, both = (
        tokens.encode(text, add_special_tokens=False).ids
        for text in (prompt, response, prompt + response)
    )
    return bool(a and b) and a + b == both


def split_cleanly(tokens: Tokenizer, texts: list[str]) -> list[tuple[str, str]]:
    """Those of the texts that can be split at a clean seam."""
    return [pair for pair in (_split(tokens, text) for text in texts) if pair]


def _split(tokens: Tokenizer, text: str) -> tuple[str, str] | None:
    """A prompt and a response that begins with a space, as near to halves as can be."""
    spots = [
        n
        for n in range(1, len(text) - 1)
        if text[n] == " " and not text[n - 1].isspace() and not text[n + 1].isspace()
    ]
    for n in sorted(spots, key=lambda n: abs(n - len(text) / 2)):
        if is_clean(tokens, text[:n], text[n:]):
            return text[:n], text[n:]
    return None


def prompts_with_endings(shape: tuple[int, int, int, int], seed: int) -> list[tuple[str, str]]:
    """Prompts, each with several endings from elsewhere, whose seams are clean."""
    n_prompts, prompt_tokens, n_endings, ending_tokens = shape
    tokens, chance = tokenizer(), random.Random(seed)
    cutter = Cutter(" ".join(corpus().split()), tokens)
    last = len(cutter) - 2 * (prompt_tokens + ending_tokens) - 64
    rows: list[tuple[str, str]] = []
    for _ in range(n_prompts):
        prompt = cutter.piece(chance.randrange(last), prompt_tokens).strip()
        endings: list[str] = []
        while len(endings) < n_endings:
            ending = cutter.piece(chance.randrange(last), ending_tokens)
            if ending not in endings and is_clean(tokens, prompt, ending):
                endings.append(ending)
        rows += [(prompt, ending) for ending in endings]
    return rows


def jsonl(n_rows: int) -> Path:
    """A file of short rows: the same few over and over, so that ten times the rows are exactly ten
    times the tokens. Ids differ."""
    path = cache() / f"rows-{n_rows}-of-{DISTINCT_ROWS}.jsonl"
    if not path.exists():
        tokens = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
        cutter = Cutter(" ".join(corpus().split()), tokens)
        step = (len(cutter) - 1000) // DISTINCT_ROWS
        texts = [cutter.piece(n * step, ROW_TOKENS).strip() for n in range(DISTINCT_ROWS)]
        lines = (json.dumps({"id": n, "text": texts[n % len(texts)]}) for n in range(n_rows))
        with path.with_suffix(".partial").open("w") as file:
            file.writelines(line + "\n" for line in lines)
        path.with_suffix(".partial").rename(path)
    return path


def checkpoint(name: str) -> Path:
    """A folder with random weights and the tokenizer: `gpt2` or `llama`."""
    from transformers import GPT2Config, LlamaConfig

    if name == "gpt2":
        return _saved(name, GPT2Config(**_special_ids()))
    return _saved(name, LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=2048,
        tie_word_embeddings=True, **_special_ids(),
    ))  # fmt: skip


def wide_checkpoint(vocabulary: int, n_positions: int) -> Path:
    """Hidden 1024, two layers, and a vocabulary of any size."""
    from transformers import LlamaConfig

    return _saved(f"wide-{vocabulary}", LlamaConfig(
        vocab_size=vocabulary, hidden_size=1024, intermediate_size=2816, num_hidden_layers=2,
        num_attention_heads=16, num_key_value_heads=8, max_position_embeddings=n_positions,
        tie_word_embeddings=True, **_special_ids(),
    ))  # fmt: skip


def _special_ids() -> dict[str, int]:
    tokens = tokenizer()
    return {"bos_token_id": tokens.token_to_id(BOS), "eos_token_id": tokens.token_to_id(EOS)}


def _saved(name: str, config: Any) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    folder = cache() / name
    if not (folder / "done").exists():
        torch.manual_seed(4)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer(), bos_token=BOS, eos_token=EOS
        ).save_pretrained(folder)
        (folder / "done").touch()
    return folder
