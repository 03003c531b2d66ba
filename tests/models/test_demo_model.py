"""The built-in model is small, trained, and complete."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest
from safetensors import safe_open

from demo_corpus import documents, held_out_text
from seqloss_cli import Sample, Totals, totals_of
from seqloss_cli.models.files import DEMO_FOLDER

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [DEMO_FOLDER, *sorted((ROOT / "samples" / "checkpoints").glob("step-*"))]


@pytest.fixture(scope="module")
def corpus():
    return documents()


def test_it_predicts_held_out_text_better_than_xz(demo, corpus):
    """Whole documents it was not trained on; xz sees them all in one piece."""
    held_out = [Sample(d.name, d.name, text=d.text) for d in corpus if d.held_out]
    totals = sum(map(totals_of, demo.score(held_out)), Totals())
    text = held_out_text(corpus).encode()
    xz_bits_per_byte = 8 * len(lzma.compress(text, preset=9)) / len(text)
    assert totals.n_sequences == len(held_out) > 50
    assert totals.n_scored_bytes == sum(len(sample.text.encode()) for sample in held_out)
    assert totals.bits_per_byte < 0.9 * xz_bits_per_byte


def test_held_out_paragraphs_are_not_in_the_training_text(corpus):
    train = {p for d in corpus if not d.held_out for p in d.text.split("\n\n")}
    held_out = {p for d in corpus if d.held_out for p in d.text.split("\n\n")}
    assert len(held_out) > 500
    assert not train & held_out


def test_three_checkpoints_ship_in_half_precision_and_are_small():
    assert len(FOLDERS) == 3
    for folder in FOLDERS:
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 4_000_000
        with safe_open(folder / "model.safetensors", "pt") as weights:
            dtypes = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
            n_parameters = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118
        assert dtypes == {"F16"}
        assert 1_000_000 <= n_parameters <= 2_000_000


def test_loss_falls_over_the_run():
    from seqloss_cli import score

    text = (ROOT / "samples" / "text.txt").read_text()
    means = []
    for folder in (FOLDERS[1], FOLDERS[2], "demo"):
        (outcome,) = score(text, model=str(folder))
        means.append(totals_of(outcome).mean_loss)
    assert "step-100" in str(FOLDERS[1])
    assert means == sorted(means, reverse=True)


def test_the_tokenizer_has_about_4k_ids_and_adds_its_bos(demo):
    assert demo.tokenization.n_ids == 4096
    assert demo.windows.context == 512
    assert demo.tokenization.bos_id == 0
    (score,) = demo.score([Sample("x", "x", text="a")])
    assert score.sequence.bos == "tokenizer"
    assert demo.warnings == []
