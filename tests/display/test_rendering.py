"""Tables and totals as a terminal shows them: whole outputs, and what holds for every output.

On snapshots see tests/helpers/terminals.py.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from helpers.terminals import (
    COLOUR,
    LOSSES,
    PAIRED,
    RUN,
    TOKENS,
    UNSAFE,
    VOCABULARY,
    asked_for,
    assert_snapshot,
    chat_of,
    pair_of,
    score_of,
    shown,
    token_texts,
    without_own_marks,
)
from seqloss_cli.core.records import PromptBoundary, SequenceScore
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.display.terminal.formatting import TableOptions
from seqloss_cli.display.terminal.masks import MaskTableWriter
from seqloss_cli.metrics.masks import Mask, mask_totals
from seqloss_cli.tokenization.labels import Finding
from seqloss_cli.tokenization.trl import TrainerLabels


@pytest.fixture(autouse=True)
def _colours_are_chosen_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)


def many_scores(n: int) -> list[SequenceScore]:
    return [
        score_of(TOKENS[: 1 + i % 9], LOSSES[: 1 + i % 9], identity=f"rows.jsonl:{i + 1}")
        for i in range(n)
    ]


# -- whole outputs ------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 200])
def test_a_table_and_its_totals(width: int) -> None:
    assert_snapshot(f"table-{width}", shown(score_of(), width=width))


@pytest.mark.parametrize("width", [80, 200])
def test_ranks_entropies_and_alternatives(width: int) -> None:
    score = score_of(**asked_for(len(TOKENS), (0, 1, 2)))
    assert_snapshot(f"everything-{width}", shown(score, width=width))


def test_words_in_bits() -> None:
    assert_snapshot("words-bits", shown(score_of(), words=True, bits=True))


@pytest.mark.parametrize("width", [80, 200])
def test_many_sequences_are_a_line_each(width: int) -> None:
    odd = [
        score_of(identity="文書" * 3 + ":7"),
        score_of(identity="a/rather/long/path/" * 3 + "x.txt", flags={"bom_dropped": True}),
        score_of(("a", "b"), (np.inf, 1.0), identity="impossible"),
    ]
    output = shown(*many_scores(9), *odd, width=width, rejected={"bad_json": 2}, n_empty_lines=3)
    assert_snapshot(f"lines-{width}", output)


def test_colours() -> None:
    output = shown(score_of(), colour=True)
    assert COLOUR.search(output)
    assert_snapshot("colour", output)


def test_a_long_sequence_is_folded() -> None:
    tokens = [f" w{n}" for n in range(60)]
    assert_snapshot("folded", shown(score_of(tokens, [1.0] * 60), words=True))


# -- pairs, chats and masks -----------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 200])
def test_a_pair_and_the_chain_rule(width: int) -> None:
    assert_snapshot(f"pair-{width}", shown(pair_of(), width=width, run=PAIRED, pmi=True))


def test_a_chat_and_its_turns() -> None:
    assert_snapshot("chat", shown(chat_of(), run=PAIRED, bits=True))


def test_many_pairs_are_a_line_each() -> None:
    pairs = [pair_of(2 + n % 8, f"pairs.jsonl:{n + 1}") for n in range(12)]
    assert_snapshot("pair-lines", shown(*pairs, run=PAIRED, pmi=True))


def test_masked_tokens_are_dim_and_responses_coloured() -> None:
    output = shown(pair_of(), colour=True, run=PAIRED)
    assert "\x1b[2mThe" in output
    assert "\x1b[1;91m" in output
    assert "\x1b[32m" in output, "a low loss that counts is not dim"


@pytest.mark.parametrize("n_prompt", [12, 25, 30, 43, 44, 55])
def test_the_rows_around_the_seam_are_never_folded(n_prompt: int) -> None:
    score = score_of([f" w{n}" for n in range(60)], [1.0] * 60)
    mask = np.arange(61) >= n_prompt
    prompt_boundary = PromptBoundary(boundary="clean", empty_prompt=False, n_words=3)
    pair = replace(
        score, sequence=replace(score.sequence, loss_mask=mask, prompt_boundary=prompt_boundary)
    )
    output = shown(pair, run=PAIRED)
    for t in range(n_prompt - 4, n_prompt + 4):
        assert re.search(rf"^ *{t} +{'y' if t >= n_prompt else 'x'} ", output, re.M), t
    rows = len(re.findall(r"^ *\d+ +[xy] ", output, re.M))
    folded = re.search(r"(\d+) tokens folded", output)
    assert rows + int(folded[1] if folded else 0) == 61


def masked(score: SequenceScore, colour: bool = False, **options: Any) -> str:
    file = io.StringIO()
    console = Console(
        file=file, width=80, force_terminal=colour, markup=False, highlight=False, emoji=False,
        color_system="standard" if colour else None, legacy_windows=False,
    )  # fmt: skip
    table = TableOptions(token_texts, VOCABULARY.__getitem__, **options)
    theirs = TrainerLabels(None, "dropped: \x1b[2J")
    finding = Finding("loss_on_prompt", 0, 3, "the loss falls on 3 tokens of the prompt")
    mask = Mask(score.sequence, score, theirs, (), True, (finding,))
    writer = MaskTableWriter(console, table, "TRL")
    writer.begin(PAIRED)
    writer.sequence(mask, mask_totals(mask))
    writer.end(mask_totals(mask), {"wrong_type": 1}, 0)
    return file.getvalue()


@pytest.mark.parametrize(("name", "score"), [("pair", pair_of()), ("chat", chat_of())])
def test_what_counts_is_in_brackets_or_highlighted(name: str, score: SequenceScore) -> None:
    assert_snapshot(f"mask-{name}", masked(score))
    assert_snapshot(f"mask-{name}-colour", masked(score, colour=True))
    assert not UNSAFE.search(masked(score))


# -- what is shown and what is not --------------------------------------------------------------


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = shown(score_of())
    monkeypatch.setenv("NO_COLOR", "1")
    output = shown(score_of(), colour=True)
    assert not COLOUR.search(output)
    assert re.sub(r"\x1b\[[\d;]*m", "", output) == plain


def test_colour_is_the_only_difference() -> None:
    assert re.sub(r"\x1b\[[\d;]*m", "", shown(score_of(), colour=True)) == shown(score_of())


@pytest.mark.parametrize(("n", "folded"), [(40, False), (41, True)])
def test_folding_begins_where_it_saves_rows(n: int, folded: bool) -> None:
    output = shown(score_of(["a"] * n, [1.0] * n))
    assert ("folded" in output) == folded
    assert ("2 tokens folded; --all-tokens" in output) == folded


def test_all_tokens_folds_nothing() -> None:
    tokens = [f" w{n}" for n in range(60)]
    output = shown(score_of(tokens, [1.0] * 60), all_tokens=True, words=True)
    assert "folded" not in output
    assert all(f"·w{n} " in output and f" w{n} " in output for n in range(60))


def test_ten_sequences_are_tables_and_eleven_are_lines() -> None:
    assert shown(*many_scores(10)).count("(losses in nats)") == 10
    assert "(losses in nats)" not in shown(*many_scores(11))
    assert shown(*many_scores(11), all_tokens=True).count("(losses in nats)") == 11


def test_a_summary_is_the_totals_alone() -> None:
    summary = shown(score_of(), summary=True)
    assert summary.startswith("╭─ totals")
    assert shown(score_of()).endswith(summary)


def test_totals_of_nothing() -> None:
    """No panel of dashes: the command says on stderr that nothing was scored."""
    assert shown(rejected={"missing_field": 1}) == ""


def test_an_infinite_loss_is_shown_and_its_sums_are_not() -> None:
    output = shown(score_of(("a", "b"), (1.0, np.inf)))
    assert re.search(r"2  b +101 +inf +0\.0000 +inf", output)
    assert re.search(r"total loss +- +│", output)
    assert "inf_loss 1" in output


def test_figures_in_bits() -> None:
    output = shown(score_of(("a",), (2 * np.log(2),)), bits=True)
    assert re.search(r"a +100 +2\.0000 +0\.2500 +2\.000", output)
    assert "2.0000 bits per token" in output
    assert re.search(r"perplexity +4\.0000", output)


# -- what holds for every output ----------------------------------------------------------------


def loss_columns(output: str, losses: Iterable[float]) -> set[int]:
    """The cells in which the losses end, each loss being found as a whole."""
    ends = set()
    for loss in losses:
        line = next(line for line in output.splitlines() if f" {loss:.4f} " in line)
        ends.add(cell_len(line[: line.index(f" {loss:.4f} ") + 7]))
    return ends


def test_wide_and_narrow_characters_keep_the_columns_aligned() -> None:
    tokens = ["日本語", "🐕", "한국어", "e\u0301", "ａ", " x", "\u200d", "\ufeff", "👨‍👩‍👧", "−"]
    losses = [1 + n / 16 for n in range(len(tokens))]
    for width in (80, 200):
        output = shown(score_of(tokens, losses), width=width)
        assert len(loss_columns(output, losses)) == 1
        assert all(cell_len(line) <= width for line in output.splitlines())


@given(
    tokens=st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=9),
    width=st.sampled_from([80, 200]),
    words=st.booleans(),
)
def test_nothing_a_terminal_acts_on_and_no_line_too_long(
    tokens: list[str], width: int, words: bool
) -> None:
    output = shown(score_of(tokens, LOSSES[: len(tokens)]), width=width, words=words)
    assert not UNSAFE.search(without_own_marks(output))
    assert all(cell_len(line) <= width for line in output.splitlines())
    assert "…" in "".join(tokens) or "…" not in output


def test_names_from_outside_are_escaped() -> None:
    evil = "\x1b]0;title\x07\x9b2J\u202e"
    scores = [score_of(identity=f"{evil}{n}") for n in range(11)]
    run = RunInfo(**{name: getattr(RUN, name) for name in RUN.__slots__} | {"model": evil})
    for output in (shown(*scores, run=run), shown(scores[0], run=run)):
        assert not UNSAFE.search(output)
        assert r"\x1b]0;title\x07\x9b2J\u202e" in output


@pytest.mark.parametrize("width", [80, 200])
def test_every_figure_of_a_wide_table_is_complete(width: int) -> None:
    tokens = [" international"] * 30
    losses = [100 + n / 16 for n in range(30)]
    asked = asked_for(30, (0, 5, 4), largest_rank=151_936)
    output = shown(score_of(tokens, losses, first_id=151_000, **asked), width=width)
    rows = output[: output.index("╭─ totals")]
    sums = np.cumsum(losses)
    for t, loss in enumerate(losses):
        identity = (151_000 + t,) if width > 80 else ()  # else named below, as is seen here
        figures = (*identity, f"{loss:.4f}", f"{np.exp(-loss):.1e}", f"{sums[t]:,.3f}")
        asked_figures = (f"{asked['ranks'][t + 1]:,}", f"{asked['entropies'][t + 1]:.3f}")
        row = r" +".join(re.escape(str(figure)) for figure in (*figures, *asked_figures))
        assert re.search(rf" {row} ", rows), (t, row)
    assert ("no room here for id" in rows) == (width == 80)
    assert "…" not in rows
    for probability in ("0.5000", "0.2500", "0.1250"):
        found = re.findall(rf"(?<![\d.]){probability}(?!\d)", rows)
        assert len(found) == 30, "none is broken in two"


def test_lines_end_in_the_same_column() -> None:
    identities = ["short", "x" * 200, "語" * 100, "e\u0301" * 50, "🐕" * 17, "a" * 33, "語" * 16]
    scores = [score_of(identity=identity) for identity in identities]
    for width in (80, 200):
        output = shown(*scores, *many_scores(5), width=width)
        lines = output[: output.index("╭─ totals")].splitlines()
        assert lines.pop() == ""
        assert lines.pop(0) == "losses in nats"
        assert {cell_len(line) for line in lines} == {min(width, 60 + 47)}


@pytest.mark.parametrize("name", ["x" * 200, "語" * 100], ids=["narrow", "wide"])
def test_a_long_name_keeps_its_end(name: str) -> None:
    scores = [score_of(identity=f"{name}:{n + 1}") for n in range(11)]
    output = shown(*scores)
    assert all(f":{n + 1} " in output for n in range(11))


def test_a_long_model_path_is_folded_whole() -> None:
    path = "/".join(["a-folder-of-some-length"] * 8)
    run = RunInfo(**{name: getattr(RUN, name) for name in RUN.__slots__} | {"model": path})
    output = shown(score_of(), run=run, summary=True)
    assert {cell_len(line) for line in output.splitlines()} == {80}
    assert path in re.sub(r"[│\s]", "", output)
