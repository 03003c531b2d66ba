"""`--like trl` against TRL itself, whose trainer prepares and collates the same rows.

Behind the marker `trl`, since it needs TRL: `make test-trl` installs it in an environment of its
own and runs this file.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from helpers.program import ROOT
from seqloss_cli.core.records import Chat, Pair, Sample
from seqloss_cli.tokenization.trl import TrlTrainer

pytestmark = pytest.mark.trl
DEMO = ROOT / "seqloss_cli" / "demo"
PARTS = (
    *("The re", "turn value", " a", "list", "  ", "\n", "é", "😀", "x", "|", "<|im", "日本", "\t"),
    *(" names.", "<|end_of_text|>", "<|begin_of_text|>", "."),
)
MARKED = (ROOT / "samples" / "chat.jinja").read_text()
BARE = MARKED.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")


def words(source: random.Random, least: int = 0) -> str:
    return "".join(source.choice(PARTS) for _ in range(source.randint(least, 4)))


def pairs(n: int, seed: int) -> list[Sample]:
    source = random.Random(seed)
    return [Sample(str(k), "test", pair=Pair(words(source), words(source, 1))) for k in range(n)]


def chats(n: int, seed: int) -> list[Sample]:
    source = random.Random(seed)
    samples = []
    for k in range(n):
        messages = [{"role": "system", "content": words(source)}] * (source.random() < 0.3)
        for _ in range(source.randint(1, 3)):
            messages += [
                {"role": "user", "content": words(source)},
                {"role": "assistant", "content": "z" + words(source)},
            ]
        samples.append(Sample(str(k), "test", chat=Chat(messages)))
    return samples


def wrapped(n: int, seed: int) -> list[Sample]:
    """Pairs as one turn of each side: TRL's conversational prompt-completion rows."""
    samples = []
    for sample in pairs(n, seed):
        assert sample.pair is not None
        messages = [
            {"role": "user", "content": sample.pair.prompt},
            {"role": "assistant", "content": sample.pair.response},
        ]
        samples.append(Sample(sample.id, "test", pair=sample.pair, chat=Chat(messages)))
    return samples


def row_of(sample: Sample) -> dict[str, Any]:
    """The row as TRL's documentation has it."""
    if sample.chat is None:
        assert sample.pair is not None
        return {"prompt": sample.pair.prompt, "completion": sample.pair.response}
    messages = list(sample.chat.messages)
    if sample.pair is not None:
        return {"prompt": messages[:-1], "completion": messages[-1:]}
    return {"messages": messages}


def trained_on(
    samples: list[Sample], folder: Path, template: str | None, assistant_only: bool,
    max_length: int | None,
) -> dict[int, tuple[list[int], list[int]]]:  # fmt: skip
    """What TRL's trainer would be fed: by row, ids and labels. Rows that it drops are not there."""
    from datasets import load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row_of(sample)) + "\n" for sample in samples))
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    tokenizer.chat_template = template
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    arguments = SFTConfig(
        output_dir=str(folder / "out"), report_to="none", use_cpu=True, bf16=False,
        assistant_only_loss=assistant_only, max_length=max_length,
    )  # fmt: skip
    rows = load_dataset("json", data_files=str(data), split="train", cache_dir=str(folder))
    rows = rows.add_column("row", list(range(len(samples))))
    trainer = SFTTrainer(
        model=LlamaForCausalLM(config), args=arguments, train_dataset=rows,
        processing_class=tokenizer,
    )  # fmt: skip
    found = {}
    for row in trainer.train_dataset:
        fed = trainer.data_collator([{k: row[k] for k in ("input_ids", "labels")}])
        found[row["row"]] = (fed["input_ids"][0].tolist(), fed["labels"][0].tolist())
    return found


@pytest.mark.parametrize("max_length", [1024, 16, None])
@pytest.mark.parametrize(
    ("samples", "template", "assistant_only"),
    [
        pytest.param(pairs(200, 1), None, False, id="pairs"),
        pytest.param(chats(100, 2), BARE, False, id="chats"),
        pytest.param(chats(100, 3), MARKED, True, id="chats, marks"),
        pytest.param(wrapped(100, 4), BARE, False, id="wrapped pairs"),
        pytest.param(wrapped(100, 5), MARKED, True, id="wrapped pairs, marks"),
    ],
)
def test_labels_are_those_of_the_trainer(
    samples: list[Sample], template: str | None, assistant_only: bool, max_length: int | None,
    tmp_path: Path,
) -> None:  # fmt: skip
    from transformers import AutoTokenizer

    expected = trained_on(samples, tmp_path, template, assistant_only, max_length)
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    trainer = TrlTrainer(tokenizer, template, assistant_only, max_length)
    assert expected, "the trainer dropped everything"
    for n, sample in enumerate(samples):
        ours = trainer.labels(sample)
        if n not in expected:
            assert ours.labels is None
            assert ours.note is not None
            assert ours.note.startswith("dropped")
            continue
        assert ours.labels is not None, ours.note
        assert (ours.labels.input_ids.tolist(), ours.labels.labels.tolist()) == expected[n]
