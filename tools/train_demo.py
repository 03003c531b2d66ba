"""Train the built-in demo model and its two earlier checkpoints: `python tools/train_demo.py`.

A Llama of about 1.6 million parameters with a byte-level BPE of 4096 tokens, on the text of
`demo_corpus`. Seeded, CPU only, under an hour on two cores. Writes `seqloss_cli/demo/` and
`samples/checkpoints/step-*/`; `tools/model_card.py` then measures and writes the model card.
`--output DIR --stop-after 100` makes the first checkpoint again, to compare it with the one here:
byte for byte the same with the same Python, torch, number of threads and kind of processor.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo_corpus import Document, documents, held_out_text

ROOT = Path(__file__).resolve().parents[1]
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
VOCABULARY, CONTEXT = 4096, 512
STEPS, BATCH, WARMUP, PEAK_RATE = 2200, 8, 150, 4e-3
SPLIT_RATE = 0.1  # other splits of the same words: a small corpus lasts longer
SPLIT_PASSES = 3
SPLIT_AGAIN_EVERY = 130  # steps, about one pass over the corpus
SAVED_EARLY = (100, 600)  # the checkpoints that `samples/checkpoints` keeps
SEED = 20261121


def train_tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos_id)]
    )
    return tokenizer


def training_stream(tokenizer: Tokenizer, train: list[Document]) -> torch.Tensor:
    """All training documents in one row of ids, each between BOS and EOS."""
    ids: list[int] = []
    eos_id = tokenizer.token_to_id(EOS)
    for encoding in tokenizer.encode_batch([document.text for document in train]):
        ids += [*encoding.ids, eos_id]
    return torch.tensor(ids)


def merge_parents(tokenizer: Tokenizer) -> torch.Tensor:
    """For each id the two ids that BPE merged into it, -1 where it is no merge; shape V x 2."""
    parents = torch.full((VOCABULARY, 2), -1)
    for left, right in json.loads(tokenizer.to_str())["model"]["merges"]:
        pair = torch.tensor([tokenizer.token_to_id(left), tokenizer.token_to_id(right)])
        parents[tokenizer.token_to_id(left + right)] = pair
    return parents


def split_some(
    stream: torch.Tensor, parents: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Undo a random tenth of the merges, three times over: the idea of BPE dropout (Provilkov et
    al. 2020), whose implementation in `tokenizers` cannot be seeded."""
    for _ in range(SPLIT_PASSES):
        chosen = torch.rand(len(stream), generator=generator) < SPLIT_RATE
        chosen &= parents[stream, 0] >= 0
        pairs = torch.stack([stream, torch.full_like(stream, -1)], dim=1)
        pairs[chosen] = parents[stream[chosen]]
        stream = pairs[pairs >= 0]
    return stream


def crops(stream: torch.Tensor, bos_id: int, generator: torch.Generator) -> torch.Tensor:
    """BATCH crops of CONTEXT tokens that begin with BOS, as the windows of a long text do."""
    starts = torch.randint(len(stream) - CONTEXT, (BATCH,), generator=generator)
    rows = torch.stack([stream[start : start + CONTEXT - 1] for start in starts.tolist()])
    return torch.cat([torch.full((BATCH, 1), bos_id), rows], dim=1)


def learning_rate(step: int) -> float:
    """Linear warm-up, then a cosine to a fiftieth of the peak."""
    if step < WARMUP:
        return PEAK_RATE * (step + 1) / WARMUP
    progress = (step - WARMUP) / (STEPS - WARMUP)
    return PEAK_RATE * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def new_model(bos_id: int, eos_id: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=bos_id,
            eos_token_id=eos_id,
        )
    )


def optimizer_for(model: LlamaForCausalLM) -> torch.optim.Optimizer:
    """AdamW; vectors (the norms' scales) are not decayed."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95))


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, tokenizer: Tokenizer, text: str) -> float:
    """Rough figure for the log: disjoint windows, mean nats per token."""
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)
    bos = torch.tensor([tokenizer.token_to_id(BOS)])
    total = torch.zeros(())
    for chunk in ids.split(CONTEXT - 1):
        row = torch.cat([bos, chunk])[None]
        logits = model(row).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum")
    return float(total) / len(ids)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    half = LlamaForCausalLM(model.config).half()
    half.load_state_dict(model.state_dict())
    half.save_pretrained(folder)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, model_max_length=CONTEXT
    )
    wrapped.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT, help="where the folders are written")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stop-after", type=int, default=STEPS, help="for a check of the start")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)

    found = documents()
    train = [document for document in found if not document.held_out]
    held_out = held_out_text(found)
    tokenizer = train_tokenizer([document.text for document in train])
    bos_id, eos_id = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    model = new_model(bos_id, eos_id)
    print(f"{len(train)} documents, {sum(p.numel() for p in model.parameters()):,} parameters")
    optimizer = optimizer_for(model)
    whole, parents = training_stream(tokenizer, train), merge_parents(tokenizer)

    started = time.monotonic()
    for step in range(arguments.stop_after):
        if step % SPLIT_AGAIN_EVERY == 0:
            stream = split_some(whole, parents, generator)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        batch = crops(stream, bos_id, generator)
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step + 1 in SAVED_EARLY:
            folder = arguments.output / "samples" / "checkpoints" / f"step-{step + 1}"
            save(model, tokenizer, folder)
        if (step + 1) % 100 == 0:
            loss_now = held_out_loss(model, tokenizer, held_out)
            minutes = (time.monotonic() - started) / 60
            print(
                f"step {step + 1}: train {loss.item():.4f}, held out {loss_now:.4f} nats per "
                f"token, {minutes:.1f} min",
                flush=True,
            )
    if arguments.stop_after == STEPS:
        save(model, tokenizer, arguments.output / "seqloss_cli" / "demo")


if __name__ == "__main__":
    main()
