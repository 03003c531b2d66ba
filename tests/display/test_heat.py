"""Texts coloured by their losses: whole outputs, and what holds for every text and terminal.

On snapshots see tests/helpers/terminals.py.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.color import EIGHT_BIT_PALETTE, WINDOWS_PALETTE
from rich.console import Console
from rich.palette import Palette as Colours
from rich.text import Text

from helpers.colours import GROUND, contrast, luminance
from helpers.program import document
from helpers.results import row, write
from helpers.terminals import (
    LOSSES,
    PAIRED,
    RUN,
    UNSAFE,
    VOCABULARY,
    assert_snapshot,
    chat_of,
    pair_of,
    score_of,
    shown,
)
from seqloss_cli.analysis.compare import (
    CompareOptions,
    DocumentDifference,
    DocumentRows,
    compare,
    documents_of,
)
from seqloss_cli.analysis.histograms import count_by_step
from seqloss_cli.core.byte_spans import show_bytes, spelled_bytes
from seqloss_cli.core.escaping import escape
from seqloss_cli.core.records import SequenceScore, TokenSequence
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.display.scales import step_of
from seqloss_cli.display.terminal.comparisons import (
    AlignedDifference,
    NotColoured,
    align_pieces,
    align_tokens,
    difference_views,
)
from seqloss_cli.display.terminal.formatting import HeatOptions, TableOptions, Unit
from seqloss_cli.display.terminal.heat import Drawing, DrawnLines, HeatWriter
from seqloss_cli.display.terminal.masks import MaskTableWriter
from seqloss_cli.display.terminal.palette import (
    ASCII,
    COUNTS,
    DIFFERENCES,
    UNICODE,
    Scale,
    bar_of,
    choose_theme,
    sparkline,
)
from seqloss_cli.display.terminal.palette import LOSSES as LOSS_SCALE
from seqloss_cli.display.terminal.token_text import TokenText
from seqloss_cli.metrics.masks import Mask, mask_totals
from seqloss_cli.metrics.totals import Totals, totals_of
from seqloss_cli.results.schema.scores import read_row

Run = Callable[..., Any]
ESC = re.compile(r"\x1b\[[\d;]*m")
STEPS = (0.1, 0.5, 1.0, 2.0, 4.0, 7.0, 10.0)
"""A loss of each step."""
XTERM_16 = Colours(
    [(0, 0, 0), (205, 0, 0), (0, 205, 0), (205, 205, 0), (0, 0, 238), (205, 0, 205), (0, 205, 205),
     (229, 229, 229), (127, 127, 127), (255, 0, 0), (0, 255, 0), (255, 255, 0), (92, 92, 255),
     (255, 0, 255), (0, 255, 255), (255, 255, 255)]
)  # fmt: skip


@pytest.fixture(autouse=True)
def _colours_are_chosen_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORFGBG"):
        monkeypatch.delenv(name, raising=False)


def token_texts(sequence: TokenSequence) -> list[str]:
    assert sequence.text is not None
    assert sequence.byte_offsets is not None
    source, edges = sequence.text.encode(), sequence.byte_offsets.tolist()
    return ["<s>", *(show_bytes(source[a:b]) for a, b in pairwise(edges[1:]))]


def a_console(width: int = 80, colour: str | None = None, encoding: str = "utf-8") -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True, newline="")
    return Console(
        file=file, width=width, force_terminal=colour is not None, markup=False, highlight=False,
        color_system=colour, emoji=False, legacy_windows=False,  # type: ignore[arg-type]
    )  # fmt: skip


def output_of(console: Console) -> str:
    file: Any = console.file
    return str(file.buffer.getvalue().decode(file.encoding))


def heat(
    *scores: SequenceScore,
    width: int = 80,
    colour: str | None = None,
    encoding: str = "utf-8",
    run: RunInfo = RUN,
    look: HeatOptions | None = None,
    **options: Any,
) -> str:
    console = a_console(width, colour, encoding)
    asked = TableOptions(token_texts, VOCABULARY.__getitem__, heat=look or HeatOptions(), **options)
    writer = HeatWriter(console, asked)
    writer.begin(run)
    for score in scores:
        writer.sequence(score, totals_of(score))
    writer.end(_sum(map(totals_of, scores)), {}, 0)
    return output_of(console)


def _sum(parts: Iterable[Totals]) -> Totals:
    return sum(parts, Totals())


def in_bytes(text: str, edges: Sequence[int], losses: Sequence[float]) -> SequenceScore:
    """BOS and tokens that end at these bytes."""
    score = score_of([text], [0.0])
    n = len(edges) + 1
    sequence = replace(
        score.sequence,
        token_ids=np.arange(1, n + 1),
        byte_offsets=np.array([0, 0, *edges]),
        loss_mask=np.ones(n, dtype=bool),
        score_mask=np.ones(n, dtype=bool),
    )
    return replace(
        score, sequence=sequence, losses=np.array([0.0, *losses]), scored=np.arange(n) > 0
    )


def text_lines(output: str) -> list[str]:
    """The lines of the text in the form without colour, its margin taken off."""
    lines = _below_title(output)
    return [line[2:] for line in lines[: lines.index("")] if line.startswith("  ")]


def mark_lines(output: str) -> list[str]:
    return [line[2:] for line in _below_title(output) if line.startswith("^ ")]


def _below_title(output: str) -> list[str]:
    lines = output.splitlines()
    title = next(n for n, line in enumerate(lines) if re.search(r"(nats|bits)\)$", line))
    return lines[title + 1 :]


# -- whole outputs ------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("colour", [None, "truecolor"])
def test_a_text_its_legend_and_figures(width: int, colour: str | None) -> None:
    name = f"heat-{width}{'-colour' if colour else ''}"
    assert_snapshot(name, heat(score_of(), width=width, colour=colour))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("colour", ["standard", "256"])
def test_fewer_colours(theme: Any, colour: str) -> None:
    score = score_of([f" step{n}" for n in range(7)], STEPS)
    look = HeatOptions(theme, "--theme")
    assert_snapshot(f"heat-{theme}-{colour}", heat(score, colour=colour, look=look, summary=False))


@pytest.mark.parametrize("colour", [None, "standard"])
def test_a_pair_and_a_chat(colour: str | None) -> None:
    output = heat(pair_of(), chat_of(), colour=colour, run=PAIRED, bits=True)
    assert_snapshot(f"heat-pairs{'-colour' if colour else ''}", output)


@pytest.mark.parametrize("losses", [True, False], ids=["", "-counts"])
@pytest.mark.parametrize("colour", [None, "standard"])
def test_a_mask(colour: str | None, losses: bool) -> None:
    score = chat_of()
    output = masked(Mask(score.sequence, score if losses else None), colour)
    name = f"heat-mask{'' if losses else '-counts'}{'-colour' if colour else ''}"
    assert_snapshot(name, output)


def masked(mask: Mask, colour: str | None = None) -> str:
    """What a mask looks like; without a score, as a run that loaded no model."""
    console = a_console(80, colour)
    options = TableOptions(token_texts, VOCABULARY.__getitem__, heat=HeatOptions())
    writer = MaskTableWriter(console, options, None)
    writer.begin(PAIRED if mask.score is not None else replace(PAIRED, model=None))
    writer.sequence(mask, mask_totals(mask))
    writer.end(mask_totals(mask), {}, 0)
    return output_of(console)


def test_counted_tokens_of_no_text_are_said_of_a_mask() -> None:
    sequence = in_bytes("ab", [0, 1, 2], [1.0, 1.0, 1.0]).sequence
    assert "1 token of no text: not shown, but counted" in masked(Mask(sequence, None))


def test_white_space_is_visible_on_request() -> None:
    score = score_of(("a b", "\tc", "\r\n", "  d"), (1.0, 2.0, 3.0, 4.0))
    look = HeatOptions(white_space=True)
    assert text_lines(heat(score, look=look)) == ["<s>a·b→ c␍↵", "··d"]
    assert text_lines(heat(score)) == ["<s>a b  c\\r ", "  d"]
    assert text_lines(heat(score, look=look, encoding="ascii")) == ["<s>a_b> c\\r$", "__d"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_terminals_that_lack_signs_and_characters(encoding: str) -> None:
    output = heat(score_of(), encoding=encoding)
    assert r"\u65e5\u672c" in output
    assert "##" in output
    assert_snapshot(f"heat-{encoding}", output)


# -- the text -----------------------------------------------------------------------------------


def test_marks_stand_under_the_first_cell_of_their_tokens() -> None:
    score = score_of(("日本", "語", "🐕", "e\u0301", "x", " ab"), (0.1, 1.5, 3, 5, 8, 20))
    output = heat(score)
    assert text_lines(output) == ["<s>日本語🐕e\u0301x ab"]
    assert mark_lines(output) == ["-  0   2 3 456"]


def test_a_character_has_the_highest_loss_of_the_tokens_that_share_it() -> None:
    score = in_bytes("a🐕b", [1, 3, 4, 6], [0.1, 1.5, 8.0, 5.0])
    output = heat(score)
    assert text_lines(output) == ["<s>a🐕b"]
    assert mark_lines(output) == ["-  05 4"]
    assert re.search(r"5 7 to 10 .* 1 +25.0 %", output), "each token counts in the figures"


def test_differences_that_share_a_character_are_told_by_their_size() -> None:
    dog = TokenText.of(
        ["<0xF0><0x9F>", "<0x90><0x95>"],
        ["🐕".encode()[:2], "🐕".encode()[2:]],
        [0.5, -3.0],
        weight=abs,
    )
    assert list(dog.characters(range(2))) == [("🐕", range(2))]
    assert dog.owner(range(2)) == 1


def test_spelled_out_bytes_are_told_from_bytes() -> None:
    texts = ["<0xF0>", "<0x9F>", "<s>"]
    covered = spelled_bytes(texts, np.array([0, 6, 7, 7]))
    assert covered == [b"<0xF0>", b"\x9f", b""]
    text = TokenText.of(texts, covered, [1.0, 2.0, None])
    assert text.named == {2}
    assert "".join(char for char, _ in text.characters(range(3))) == "<0xF0><0x9F><s>"


def test_tokens_of_no_text_are_said() -> None:
    output = heat(in_bytes("ab", [0, 1, 2], [9.0, 1.0, 1.0]))
    assert "1 scored token of no text: in the figures only" in output


def test_ids_without_a_text_are_shown_by_name() -> None:
    score = score_of(("a", "b"), (1.0, 2.0))
    score = replace(score, sequence=replace(score.sequence, byte_offsets=None))
    console = a_console()
    options = TableOptions(lambda _: ["<s>", "one\n", "\x1btwo"], str, heat=HeatOptions())
    HeatWriter(console, options).sequence(score, totals_of(score))
    output = output_of(console)
    assert r"<s>one\n\x1btwo" in output
    assert mark_lines(output) == ["-  2    3"]


def test_prompts_are_dim_and_have_no_background() -> None:
    output = heat(pair_of(), colour="truecolor", run=PAIRED)
    assert "\x1b[2m<s>The cat" in output
    assert re.search(r"\x1b\[[\d;]*48;2;[\d;]*m日", output) is None
    assert re.search(r"\x1b\[[\d;]*48;2;[\d;]*m語", output)


def test_lines_of_a_prompt_have_no_marks() -> None:
    score = pair_of(4)
    score = replace(score, sequence=replace(score.sequence, loss_mask=np.arange(11) >= 9))
    output = heat(score, run=PAIRED)
    assert len(text_lines(output)) == 2
    assert len(mark_lines(output)) == 1


@pytest.mark.parametrize("mark", ["\u0301", "\u3164", "\ufe0f", "\u200d", "\U0001f3fb", "\u1161"])
def test_marks_that_nothing_carries_are_spelled_out(mark: str) -> None:
    if cell_len(mark):
        pytest.skip("this version of rich gives it a cell")
    assert text_lines(heat(score_of((f"\n{mark}x",), (1.0,))))[1] == f"{_spelled(mark)}x"


FAMILY = "👨\u200d👩\u200d👧"


@pytest.mark.parametrize(
    "text",
    [
        FAMILY, "❤\ufe0f\u200d🔥", "👩🏽\u200d🚀", "🐈\u200d⬛", "می\u200cخواهم", "क्\u200dष",
        "ක්\u200dර", "1\ufe0f\u20e3", "🇩🇪🇫🇷", "✊🏻", "全\u3000角", "a\u00a0b\u2009c\u202fd",
    ],
)  # fmt: skip
def test_what_a_text_needs_to_look_as_it_does_stands_as_written(text: str) -> None:
    assert text_lines(heat(score_of((text, "x"), (1.0, 8.0)))) == [f"<s>{text}x"]


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("a\u200db", r"a\u200db"),
        ("👨\u200d", r"👨\u200d"),
        ("👨\u200dx", r"👨\u200dx"),
        ("👨\u200d\u200d👩", r"👨\u200d\u200d👩"),
        ("ب\u200c\u200cب", "ب\u200c\\u200cب"),
        ("ب\u200d👩", "ب\u200d👩"),
        ("١\u200c2", r"١\u200c2"),
        ("🏴\U000e0067\U000e007f", r"🏴\U000e0067\U000e007f"),
        ("a\u200b\u2060\u2028b", r"a\u200b\u2060\u2028b"),
        ("א\u202e\u2066ב", r"א\u202e\u2066ב"),
        ("a\U0001f3fb", r"a\U0001f3fb"),
        ("→\u200d→", r"→\u200d→"),
    ],
)
def test_what_could_hide_a_text_is_spelled_out(text: str, spelled: str) -> None:
    assert text_lines(heat(score_of((text,), (1.0,)))) == [f"<s>{spelled}"]


def test_blanks_are_told_apart_on_request() -> None:
    look = HeatOptions(white_space=True)
    assert text_lines(heat(score_of(("全\u3000\u00a0 角",), (1.0,)), look=look)) == [
        r"<s>全\u3000\xa0·角"
    ]
    assert text_lines(heat(score_of(("\u3000\u00a0",), (1.0,)), encoding="latin-1")) == [
        "<s>\\u3000\u00a0"
    ]


def test_joined_pictures_have_the_cells_of_one_and_the_highest_loss() -> None:
    """Eight of 2 cells in lines of 20 less margin and last cell; their tokens cut them anywhere."""
    score = in_bytes(f"{FAMILY}b", [4, 7, 11, 18, 19], [0.1, 8.0, 3.0, 0.1, 5.0])
    assert mark_lines(heat(score)) == ["-  5 4"]
    lines = text_lines(heat(score_of((FAMILY * 10,), (1.0,)), width=20))
    assert lines == [f"<s>{FAMILY * 7}", FAMILY * 3]
    narrow = text_lines(heat(score_of((FAMILY,), (1.0,)), width=5))
    assert narrow[-1] == FAMILY


def test_a_flag_is_one_character() -> None:
    flag = "🇩🇪"
    assert mark_lines(heat(in_bytes(f"{flag}b", [4, 8, 9], [0.1, 8.0, 5.0]))) == ["-  5 4"]
    assert text_lines(heat(score_of((flag * 3,), (1.0,)), width=9)) == ["<s>" + flag, flag * 2]


def test_letters_that_are_joined_have_the_cells_of_each() -> None:
    """rich alone would find 11 cells in 22 letters, since it counts none after a joiner."""
    text = "क्\u200dष" * 11
    lines = text_lines(heat(score_of((text,), (1.0,)), width=9))
    assert "".join(lines) == f"<s>{text}"
    assert all(len(re.sub("[\u094d\u200d]", "", line)) <= 6 for line in lines)


# -- long and many ------------------------------------------------------------------------------


def test_a_long_text_is_folded_and_says_so() -> None:
    score = score_of([f"w{n:04} " for n in range(2000)], [1.0] * 2000)
    output = heat(score)
    assert "⋮ 1,401 tokens folded; --all-tokens shows them" in output
    assert "w0398" in output
    assert "w0399" not in output
    assert "w1800" in output
    assert re.search(r"2 1 to 2 .* 2,000 100.0 %", output), "the figures are of the whole text"
    assert "folded" not in heat(score, all_tokens=True)


def test_no_character_is_folded_in_two() -> None:
    text = "🐕" * 400
    score = in_bytes(text, range(1, 1601), [1.0] * 1600)
    output = heat(score)
    dogs = sum(line.count("🐕") for line in text_lines(output))
    folded = re.search(r"([\d,]+) tokens folded", output)
    assert folded
    assert 4 * dogs + int(folded[1].replace(",", "")) == 1600
    assert "<0x" not in output


def test_the_text_around_the_seam_is_never_folded() -> None:
    score = score_of([f"w{n:04} " for n in range(2000)], [1.0] * 2000)
    assert score.sequence.text is not None
    prompt_boundary = pair_of().sequence.prompt_boundary
    mask = np.arange(2001) >= 1001
    output = heat(
        replace(
            score, sequence=replace(score.sequence, loss_mask=mask, prompt_boundary=prompt_boundary)
        ),
        run=PAIRED,
    )
    text = "".join(text_lines(output))
    assert all(f"w{n:04} " in text for n in range(850, 1150))
    assert output.count("tokens folded") == 2


def test_eleven_texts_are_ten_and_a_line() -> None:
    scores = [score_of(identity=f"row {n}") for n in range(12)]
    output = heat(*scores)
    assert output.count("scored, mean") == 10
    assert "After 10 texts the others are a line each; --all-tokens shows them." in output
    assert re.search(r"^row 11 .* 11 ", output, re.M)
    assert "tokens by loss, 12 sequences" in output
    assert heat(*scores, all_tokens=True).count("scored, mean") == 12


def test_a_summary_is_the_totals_alone() -> None:
    assert heat(score_of(), summary=True) == shown(score_of(), summary=True)


# -- what holds for every text ------------------------------------------------------------------


def _spelled(text: str) -> str:
    return text.encode("unicode_escape").decode()


@pytest.mark.parametrize("colour", [None, "truecolor"])
@pytest.mark.parametrize("width", [1, 5, 8, 12, 16, 20, 24, 30, 40])
def test_figures_lose_no_digit_on_a_narrow_terminal(width: int, colour: str | None) -> None:
    """Asked for directly: a console would crop what is too long."""
    drawing = Drawing(a_console(width, colour), HeatOptions(), Unit())
    counts = [12, 0, 3456, 7, 99, 1, 20]
    lines = [line.plain for line in drawing.histogram(counts)]
    assert all(cell_len(line) <= max(width, 5) for line in lines)
    shown = re.sub(r"\s|#|[█-▏]", "", "".join(lines))
    for label, count in zip(LOSS_SCALE.labels(Unit()), counts, strict=True):
        figure = f"{label}{count:,}{100 * count / sum(counts):.1f}%"
        assert figure.replace(" ", "") in shown


def test_signs_of_the_other_view_are_refused(run_cli: Any) -> None:
    for flag in (["--theme", "light"], ["--show-whitespace"]):
        result = run_cli("score", "--text", "a", "-m", "demo", *flag)
        assert result.exit_code == 2
        assert "--view heat" in result.stderr


characters = st.one_of(
    st.characters(),
    st.sampled_from(
        " \n\r日🐕\u0301\u200d\ufe0f\x1b\x9b\u202e\u2028\u1100\u1161🇩🇪👩🏽🏴\U000e0067\U000e007f"
        "बب\u200c\u3000\xa0"
    ),
)


some_tokens = st.lists(st.text(characters, min_size=1, max_size=30), min_size=1, max_size=9)
some_colours = st.sampled_from([None, "standard", "truecolor"])


@given(tokens=some_tokens, colour=some_colours)
def test_nothing_a_terminal_acts_on(tokens: list[str], colour: str | None) -> None:
    tokens = [token.encode(errors="replace").decode() for token in tokens]
    output = ESC.sub("", heat(score_of(tokens, LOSSES[: len(tokens)]), width=80, colour=colour))
    assert not UNSAFE.search(output)


CONTROLS = "".join(
    map(chr, (
        *range(9), *range(11, 32), *range(127, 160), 0xAD, 0x61C, 0x200B, 0x200E, 0x200F,
        *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF,
    ))
)  # fmt: skip
SURROGATES = "\ud800\udbff\udc80\udfff"


@pytest.mark.parametrize("spaces", [False, True])
@pytest.mark.parametrize("colour", [None, "standard", "256", "truecolor"])
def test_no_control_character_reaches_the_terminal(colour: str | None, spaces: bool) -> None:
    """In texts, tokens, ids, and what a run says of itself, as texts and as the line of an 11th."""
    evil = CONTROLS + SURROGATES
    said = ("model", "tokenizer", "revision", "device", "adapter", "quantization", "bos_token")
    run = replace(PAIRED, **dict.fromkeys(said, evil))
    score = score_of(CONTROLS, [1.0] * len(CONTROLS), identity=evil)
    unspelled = replace(score, sequence=replace(score.sequence, byte_offsets=None))
    look = HeatOptions(white_space=spaces)

    def names(sequence: TokenSequence) -> list[str]:
        if sequence.byte_offsets is not None:
            return token_texts(sequence)
        return [evil] * sequence.n_tokens

    for scores in ([score, unspelled], [score] * 11):
        console = a_console(80, colour)
        writer = HeatWriter(console, TableOptions(names, str, heat=look))
        writer.begin(run)
        for each in scores:
            writer.sequence(each, totals_of(each))
        writer.end(_sum(map(totals_of, scores)), {}, 0)
        assert_nothing_raw(output_of(console))
    for has_losses in (True, False):
        console = a_console(80, colour)
        masks = MaskTableWriter(console, TableOptions(names, str, heat=look), None)
        masks.begin(run if has_losses else replace(run, model=None))
        for each in (score, unspelled):
            mask = Mask(each.sequence, each if has_losses else None)
            masks.sequence(mask, mask_totals(mask))
        masks.end(mask_totals(mask), {}, 0)
        assert_nothing_raw(output_of(console))


def assert_nothing_raw(output: str) -> None:
    assert not set(ESC.sub("", output)) & {*CONTROLS, *SURROGATES}


@given(tokens=some_tokens, width=st.integers(1, 200), colour=some_colours, spaces=st.booleans())
def test_no_line_is_too_long_and_none_is_cropped(
    tokens: list[str], width: int, colour: str | None, spaces: bool
) -> None:
    """Measured before they are printed: a console could crop what is too long. Narrower than 5
    cells there is no room for what is drawn; the terminal breaks its lines."""
    tokens = [token.encode(errors="replace").decode() for token in tokens]
    console = a_console(width, colour)
    drawing = Drawing(console, HeatOptions(white_space=spaces), Unit())
    values = [*LOSSES[: len(tokens)]]
    text = TokenText.of(tokens, [token.encode() for token in tokens], values)
    lines = [
        *drawing.legend("loss of 日本 model"),
        *Drawing(console, HeatOptions(), Unit(), COUNTS).legend(dim="masked"),
        *drawing.prose("日本語 identity", "bold"),
        *drawing.text(text, all_tokens=False),
        *drawing.by_position(values),
        *drawing.histogram(drawing.counts(values)),
    ]
    assert all(line.cell_len <= max(width, 5) for line in lines)
    drawing.show(lines)
    assert ESC.sub("", output_of(console)) == "".join(line.plain + "\n" for line in lines)


@given(tokens=st.lists(st.text(characters, min_size=1, max_size=30), min_size=1, max_size=9))
def test_without_wraps_it_is_the_escaped_text(tokens: list[str]) -> None:
    tokens = [token.encode(errors="replace").decode().replace("\t", "") for token in tokens]
    output = heat(score_of(tokens, LOSSES[: len(tokens)]), width=10_000)
    lines = text_lines(output)
    source = "<s>" + "".join(tokens)
    parts = source.split("\n")
    assert len(lines) == len(parts) - (parts[-1] == "")
    for line, part in zip(lines, parts, strict=False):
        spelled = iter(line)
        for char in part:  # as it is, or where nothing carries it, spelled out
            taken = next(spelled)
            if taken != char or char == "\\":
                rest = _spelled(char) if escape(char) == char else escape(char)
                rest = "\\" if char == "\\" else rest
                assert taken + "".join(next(spelled) for _ in rest[1:]) == rest
        assert "".join(spelled).strip() == ""


@given(
    tokens=st.lists(st.text(characters, min_size=1, max_size=30), min_size=1, max_size=9),
    width=st.integers(20, 60),
)
def test_wrapping_changes_nothing_but_lines(tokens: list[str], width: int) -> None:
    tokens = [token.encode(errors="replace").decode().replace("\t", "") for token in tokens]
    score = score_of([token.replace("\n", "") or "x" for token in tokens], LOSSES[: len(tokens)])
    wide, narrow = text_lines(heat(score, width=10_000)), text_lines(heat(score, width=width))
    assert "".join(narrow) == "".join(wide)


words = st.lists(st.text("abc日", min_size=1, max_size=9), min_size=1, max_size=30)


@given(words=words, width=st.integers(20, 60))
def test_lines_are_broken_at_words(words: list[str], width: int) -> None:
    tokens = [words[0], *(f" {word}" for word in words[1:])]
    shown = text_lines(heat(score_of(tokens, [1.0] * len(tokens)), width=width))
    room, source = width - 3, "<s>" + "".join(tokens)
    assert "".join(shown) == source
    for line, after in pairwise(shown):
        inner = cell_len(line[-1]) == 2 or cell_len(after[0]) == 2
        assert line.endswith(" ") or inner, "no word of these is longer than a line"
        # The word that begins the next line had no room in this one.
        first = re.match(r"[a-c]+ ?|.", after)
        assert first
        assert cell_len(line) + cell_len(first[0].rstrip()) > room
        assert cell_len(line) <= room + line.endswith(" ")


def test_a_word_that_is_longer_than_a_line_is_broken_where_the_line_is_full() -> None:
    shown = text_lines(heat(score_of([" abcdefghij" * 1, "klmnopqrstuvw"], [1.0, 2.0]), width=20))
    assert shown == ["<s> ", "abcdefghijklmnopq", "rstuvw"]


def test_what_closes_does_not_begin_a_line() -> None:
    shown = text_lines(heat(score_of(["日本語日本語「日」。"], [1.0]), width=20))
    assert shown == ["<s>日本語日本語", "「日」。"]


def underlined_in(output: str) -> list[str]:
    """Parts of the text that are under- or overlined, in colour."""
    line = next(line for line in output.splitlines() if "<s>" in line)
    parts = re.findall(r"\x1b\[([\d;]*)m([^\x1b]*)", line)
    return [words for codes, words in parts if {"4", "53"} & set(codes.split(";"))]


@pytest.mark.parametrize("colour", ["truecolor", "256", "standard"])
def test_neighbours_of_one_step_are_told_apart(colour: str) -> None:
    losses = [1.5, 1.6, 1.7, 5.0, 1.8, 1.9, 0.1, 0.2, 0.3]
    tokens = ["a", " b", " c", " d", " e", " f", " g", " h", " i"]
    output = heat(score_of(tokens, losses), colour=colour)
    assert underlined_in(output) == [" b", " f", " h"]
    assert "underlined: the second of two neighbours of one step" in ESC.sub("", output)


def test_a_step_that_is_underlined_is_overlined() -> None:
    """Among 16 colours: those of the last step are told by their line."""
    console = a_console(colour="standard")
    drawing = Drawing(console, HeatOptions("dark", ""), Unit(), LOSS_SCALE)
    text = TokenText.of(["x", "y", "z"], [b"x", b"y", b"z"], [20.0, 20.0, 20.0])
    drawing.show(drawing.text(text, all_tokens=True))
    codes = re.findall(r"\x1b\[([\d;]+)m[xyz]", output_of(console))
    assert ["53" in each.split(";") for each in codes] == [False, True, False]
    assert all("4" in each.split(";") for each in codes)


@pytest.mark.parametrize("colour", ["truecolor", "256", "standard"])
def test_bars_have_the_colours_of_their_steps(colour: str) -> None:
    output = heat(score_of(["x"] * 7, list(STEPS)), colour=colour)
    bars = [line for line in output.splitlines() if "█" in line and "%" in line]
    assert len(bars) == 7
    for line in bars[1:]:
        drawn = Text.from_ansi(line)
        at = drawn.plain.index("█")
        label, bar = (
            drawn.get_style_at_offset(Console(), 1),
            drawn.get_style_at_offset(Console(), at),
        )
        assert label.bgcolor is not None
        assert bar.color == label.bgcolor


def test_colour_is_the_only_difference_between_themes() -> None:
    light, dark = (
        heat(score_of(), colour="truecolor", look=HeatOptions(theme, "x"))
        for theme in ("light", "dark")
    )
    assert light != dark
    assert ESC.sub("", light).replace("a light", "a dark") == ESC.sub("", dark)


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    output = heat(score_of(), colour="truecolor")
    assert not re.search(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m", output)
    assert mark_lines(ESC.sub("", output))


# -- colours and figures ------------------------------------------------------------------------


def hex_of(palette: Colours, n: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*palette[n])


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("scale", [LOSS_SCALE, DIFFERENCES])
def test_256_colours_keep_the_order_of_lightness(theme: Any, scale: Scale) -> None:
    entries = scale.entries_256[theme]
    middle = entries.index(None)
    for side in (entries[middle:], entries[middle::-1]):
        shades = [GROUND[theme], *(hex_of(EIGHT_BIT_PALETTE, e[0]) for e in side if e)]
        lightness = [luminance(shade) for shade in shades]
        assert lightness == sorted(lightness, reverse=theme == "light")
        assert all(contrast(a, b) >= 1.12 for a, b in pairwise(shades))
    for entry in filter(None, entries):
        background, text = (hex_of(EIGHT_BIT_PALETTE, n) for n in entry[:2])
        assert contrast(background, text) >= 4.5


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("scale", [LOSS_SCALE, DIFFERENCES])
@pytest.mark.parametrize("palette", [XTERM_16, WINDOWS_PALETTE], ids=["xterm", "windows"])
def test_16_colours_keep_the_order_of_lightness(theme: Any, scale: Scale, palette: Colours) -> None:
    entries = scale.entries_16[theme]
    assert len(set(entries)) == len(entries)
    middle = entries.index(None)
    for side in (entries[middle:], entries[middle::-1]):
        shades = [luminance(hex_of(palette, entry[0])) for entry in side if entry]
        assert shades == sorted(shades, reverse=theme == "light")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_counts_can_be_read(theme: Any) -> None:
    background, text = (hex_of(EIGHT_BIT_PALETTE, n) for n in COUNTS.entries_256[theme][0][:2])
    paint = COUNTS.true_colours[theme][0]
    assert contrast(background, text) >= 4.5
    assert contrast(paint.background, paint.text) >= 4.5
    assert all(contrast(GROUND[theme], each) >= 1.5 for each in (background, paint.background))


def test_every_step_has_its_own_colour() -> None:
    for scale in (LOSS_SCALE, DIFFERENCES):
        for by_theme in (scale.true_colours, scale.entries_256, scale.entries_16):
            for entries in by_theme.values():
                assert len(set(entries)) == len(scale.edges) + 1


@pytest.mark.parametrize(
    ("wanted", "colorfgbg", "theme"),
    [
        ("auto", None, "dark"), ("auto", "", "dark"), ("auto", "15;0", "dark"),
        ("auto", "0;15", "light"), ("auto", "0;default;7", "light"), ("auto", "7;8", "dark"),
        ("auto", "15;default", "dark"), ("light", "15;0", "light"), ("dark", "0;15", "dark"),
    ],
)  # fmt: skip
def test_the_theme_is_asked_for_or_guessed(wanted: str, colorfgbg: str, theme: str) -> None:
    assert choose_theme(wanted, colorfgbg)[0] == theme


def test_a_sparkline_has_a_fixed_height() -> None:
    assert sparkline([0.0, 5.0, 9.99, 10.0, math.inf, None, 1.5], 80, UNICODE) == "▁▄▇██ ▂"
    assert sparkline([0.0, 2.0, 9.0, 11.0], 2, UNICODE) == "▁█"
    assert sparkline([0.0, 20.0], 80, ASCII) == "_#"
    assert sparkline([], 80, UNICODE) == ""


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.integers(1, 80))
def test_a_sparkline_has_a_cell_for_each_bin(values: list[float], width: int) -> None:
    assert len(sparkline(values, width, UNICODE)) == min(width, len(values))


@given(st.lists(st.none() | st.floats(0, 20) | st.sampled_from(LOSS_SCALE.edges)))
def test_tokens_are_counted_by_their_steps(values: list[float | None]) -> None:
    steps = [step_of(value, LOSS_SCALE.edges) for value in values if value is not None]
    assert count_by_step(values, LOSS_SCALE.edges) == [steps.count(n) for n in range(7)]


def test_what_is_more_than_nothing_has_a_bar() -> None:
    assert bar_of(0.0, 40, UNICODE) == ""
    assert bar_of(1e-9, 40, UNICODE) == "▏"
    assert bar_of(1.0, 40, UNICODE) == "█" * 40
    assert bar_of(0.5, 3, UNICODE) == "█▌"
    assert bar_of(1e-9, 40, ASCII) == "#"


def test_an_infinite_loss_is_of_the_last_step() -> None:
    output = heat(score_of(("a", "b"), (1.0, math.inf)))
    assert mark_lines(output) == ["-  26"]
    assert "inf_loss 1" in output


# -- the commands -------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [["--json"], ["--jsonl"], ["--format", "openai"]])
def test_heat_is_for_the_terminal(run_cli: Run, flags: list[str]) -> None:
    result = run_cli("score", "--text", "x", "--view", "heat", *flags)
    assert result.exit_code == 2
    assert "--view heat is for the terminal" in result.stderr


def test_a_variable_gives_way_aloud(run_cli: Run) -> None:
    result = run_cli("score", "--text", "x", "--json", SEQLOSS_VIEW="heat")
    assert result.exit_code == 0
    assert "--view heat is for the terminal, and json is not; left out" in result.stderr


def test_a_mask_needs_no_losses(run_cli: Run) -> None:
    """The marks are the labels that the same command writes."""
    words = ("mask", "samples/pairs.jsonl", "--limit", "3", "-m", "demo")
    output = run_cli(*words, "--view", "heat", COLUMNS="120").stdout
    marks = [line[2:].split() for line in output.splitlines() if line.startswith("^ ")]
    rows = document(run_cli(*words, "--json"))["sequences"]
    assert marks == [["+" if counts else "-" for counts in row["loss_mask"]] for row in rows]
    assert "nats" not in output
    assert "by position" not in output


def test_what_only_tables_show_is_said(run_cli: Run) -> None:
    result = run_cli("score", "--text", "x", "--view", "heat", "--ranks", "--top-k", "2")
    assert "shows losses only; --ranks, --top-k" in result.stderr
    assert mark_lines(result.stdout)


def test_themes_of_the_terminal(run_cli: Run) -> None:
    colours = {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    words = ("score", "--text", "x", "--view", "heat")
    assert "light terminal (by COLORFGBG" in run_cli(*words, COLORFGBG="0;15", **colours).stdout
    assert "light terminal (--theme)" in run_cli(*words, SEQLOSS_THEME="light", **colours).stdout
    assert "dark terminal" in run_cli(*words, COLORFGBG="", **colours).stdout


# -- comparisons --------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Two documents and one that was written without tokens; what is in them tries to break out."""
    monkeypatch.setenv("COLUMNS", "80")
    pieces = ["<s>", "日本", "<0xF0><0x9F>", "<0x90><0x95>", "\n", "\x1b[31m", "\u202e", " x", "."]
    sizes = [0, 6, 2, 2, 1, 5, 3, 2, 1]
    edges = [0, *np.cumsum(sizes).tolist()]
    for name, shift in (("a", 0.0), ("b", 0.6)):
        rows = []
        for n in range(3):
            losses = [9 + (t - 4) * shift * (n + 1) for t in range(8)]
            made = row(f"d{n}\x1b[2J", [None, *losses], tokens=pieces, byte_offsets=edges)
            if n == 2:
                for field in ("tokens", "token_losses", "token_ids", "byte_offsets"):
                    del made[field]
            rows.append(made)
        write(tmp_path / f"{name}.jsonl", rows, model=f"models/{name}\x9b2J", weights_sha256=name)
    return str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")


def test_documents_that_differ_most(run_cli: Run, files: tuple[str, str]) -> None:
    result = run_cli("compare", *files, "--view", "heat")
    output = result.stdout
    assert result.exit_code == 0, result.stderr
    assert not UNSAFE.search(output)
    assert all(cell_len(line) <= 80 for line in output.splitlines())
    assert_snapshot("heat-compare-80", output[output.index("Steps of") :])
    assert (
        run_cli("compare", *files, "--view", "heat", "--worst", "1").stdout.count("scored tok") == 1
    )


@pytest.mark.parametrize("tokenizer", ["t", "u"])
@pytest.mark.parametrize("colours", [{}, {"FORCE_COLOR": "1", "TERM": "xterm-256color"}])
def test_no_control_character_of_a_file_reaches_the_terminal(
    run_cli: Run, tmp_path: Path, tokenizer: str, colours: dict[str, str]
) -> None:
    """In its name, its model's, ids, tokens and texts; labels are models, or files where these are
    of one name."""
    evil = "".join(char for char in CONTROLS if char != "\0")
    ends = np.cumsum([len(char.encode()) for char in CONTROLS]).tolist()
    n = len(ends)
    for models in (("a", "b"), ("a", "a")):
        paths = []
        for side, shift in (("a", 1.0), ("b", 2.0)):
            made = spelled_row(CONTROLS, ends, [shift + at / n for at in range(n)], id=CONTROLS)
            path = tmp_path / f"{evil[: n // 2 if side == 'a' else None][-60:]}\udcff{side}.jsonl"
            run = {"model": models[side == "b"] + CONTROLS, "weights_sha256": side}
            digest = "t" if side == "a" else tokenizer
            paths.append(write(path, [made], tokenizer_sha256=digest * 64, **run))
        result = run_cli("compare", *paths, "--view", "heat", COLUMNS="80", **colours)
        assert result.exit_code == 0, result.stderr
        assert "by position" in result.stdout
        assert_nothing_raw(result.stdout)
        assert_nothing_raw(result.stderr)


@pytest.mark.parametrize("same_tokens", [True, False])
@pytest.mark.parametrize("width", [1, 5, 9, 20, 40, 80])
def test_no_line_of_a_comparison_is_too_long(width: int, same_tokens: bool) -> None:
    text, edges = "日本 and\n🐕 so on", [3, 6, 11, 12, 15, 21]
    made = [
        spelled_row(text, edges, [n * shift for n in range(6)], id="日本語 document")
        for shift in (1.0, 1.5)
    ]
    files = [[read_row(each, "made:1", whole=True)] for each in made]
    found = compare(files, same_tokens, CompareOptions(bootstrap=10))
    documents = documents_of(files, found, same_tokens)
    pairs = [(found.pairs[0], documents[0])]
    views = difference_views(pairs, HeatOptions(), Unit(), False)
    for view in views:
        assert isinstance(view, DrawnLines)
        lines = [*view.draw(a_console(width))]
        assert lines
        assert all(line.cell_len <= max(width, 5) for line in lines)


def test_differences_in_colour(run_cli: Run, files: tuple[str, str]) -> None:
    colours = {"FORCE_COLOR": "1", "TERM": "xterm", "COLORTERM": "truecolor"}
    output = run_cli("compare", *files, "--view", "heat", "--unit", "bits", **colours).stdout
    assert_snapshot("heat-compare-colour", output[output.index("Background") :])


def spelled_row(
    text: str, edges: Sequence[int], losses: Sequence[float], bos: bool = True, **fields: Any
) -> dict[str, Any]:
    """Of a text whose tokens end at these bytes, the last at its end."""
    source, edges = text.encode(), [0, *edges]
    tokens = [show_bytes(source[a:b]) for a, b in pairwise(edges)]
    counts = dict.fromkeys(("n_bytes", "n_scored_bytes", "n_chars", "n_scored_chars"), len(source))
    arrays = {
        "tokens": ["<s>", *tokens] if bos else tokens,
        "byte_offsets": [0, *edges] if bos else edges,
    }
    return row("d", [None, *losses] if bos else losses, text, **counts, **arrays) | fields


def document_of(a: dict[str, Any], b: dict[str, Any]) -> DocumentRows:
    rows = [read_row(each, "made:1", whole=True) for each in (a, b)]
    return DocumentRows(DocumentDifference("d", 1, 0.0, 0.0, 0.0), *rows)


@given(text=st.text(characters, min_size=1, max_size=40), bos=st.booleans(), data=st.data())
def test_pieces_of_two_tokenizers_add_up(text: str, bos: bool, data: st.DataObject) -> None:
    """By plain arithmetic: what tokens lose between two places where both models end one."""
    source = (text := text.encode(errors="replace").decode()).encode()
    sides: list[list[tuple[int, float]]] = []
    for _ in "ab":
        ends = {len(source)} | data.draw(st.sets(st.integers(1, len(source))))
        sides.append([(end, data.draw(st.floats(0, 20))) for end in sorted(ends)])
    (ends_a, a), (ends_b, b) = (zip(*side, strict=True) for side in sides)
    made = align_pieces(
        document_of(spelled_row(text, ends_a, a, bos), spelled_row(text, ends_b, b))
    )
    assert isinstance(made, AlignedDifference)
    assert b"".join(made.text.pieces) == source
    start, n_merged = 0, 0
    for piece, value in zip(made.text.pieces, made.text.values, strict=True):
        end = start + len(piece)
        if piece:
            assert piece.decode()
            assert end in ends_a
            assert end in ends_b
            inside = [[loss for at, loss in side if start < at <= end] for side in sides]
            assert value == pytest.approx(sum(inside[1]) - sum(inside[0]), abs=1e-9)
            n_merged += max(map(len, inside)) > 1
        start = end
    total = sum(value for value in made.text.values if value is not None)
    assert total == pytest.approx(sum(b) - sum(a), abs=1e-9)
    assert made.note.startswith(f"{n_merged} of its {len(made.text.pieces)} pieces")


@pytest.mark.parametrize("colour", [False, True])
def test_other_tokenizers_meet_in_pieces(run_cli: Run, tmp_path: Path, colour: bool) -> None:
    text = "日本 go🐕\r\nan unknown\x1b[31m end"
    n = len(text.encode())
    a = spelled_row(text, [3, 9, 11, 13, 15, 16, 26, n], [3, 5, 1, 2, 3, 0.25, 8, 6])
    b = spelled_row(text, [6, 9, 13, 16, 18, 26, n], [7, 1, 6.5, 0.5, 5, 1, 6.1])
    mine = write(tmp_path / "a.jsonl", [a], model="a\x1b[2J", weights_sha256="a")
    other = write(tmp_path / "b.jsonl", [b], model="b", tokenizer_sha256="u" * 64)
    look = {"FORCE_COLOR": "1", "TERM": "xterm", "COLORTERM": "truecolor"} if colour else {}
    result = run_cli("compare", mine, other, "--view", "heat", COLUMNS="80", **look)
    assert result.exit_code == 0, result.stderr
    assert not UNSAFE.search(ESC.sub("", result.stdout))
    output = result.stdout[result.stdout.index("Background" if colour else "Steps of") :]
    assert f"({n} scored bytes, B − A: {(27.1 - 28.25) / n:+.4f} nats per byte)" in output
    assert_snapshot(f"heat-compare-pieces{'-colour' if colour else ''}", output)


def test_pieces_of_a_long_text_are_folded_as_pieces(run_cli: Run, tmp_path: Path) -> None:
    n = 2000
    a = spelled_row("ab" * n, range(2, 2 * n + 1, 2), [1.0] * n)
    b = spelled_row("ab" * n, range(1, 2 * n + 1), [1.0] * 2 * n)
    mine = write(tmp_path / "a.jsonl", [a], weights_sha256="a")
    other = write(tmp_path / "b.jsonl", [b], tokenizer_sha256="u" * 64)
    output = run_cli("compare", mine, other, "--view", "heat", COLUMNS="80").stdout
    assert "1,400 pieces folded; --all-tokens shows them" in output
    assert "2,000 of its 2,000 pieces are several tokens of a model" in output
    assert "folded" not in run_cli("compare", mine, other, "--view", "heat", "--all-tokens").stdout


def test_bytes_are_those_of_the_text_where_the_names_of_tokens_do_not_tell_them() -> None:
    """A source that spells out a byte, and then a part of a character in the same token."""
    text = "<0xE2>é"
    a = spelled_row(text, [7, 8], [1.0, 2.0]) | {"text": text}
    b = spelled_row(text, [8], [4.0]) | {"text": text}
    assert a["tokens"] == ["<s>", "<0xE2><0xC3>", "<0xA9>"]
    made = align_pieces(document_of(a, b))
    assert isinstance(made, AlignedDifference)
    assert (b"".join(made.text.pieces).decode(), made.text.values) == (text, [1.0])
    same = align_tokens(document_of(a, a | {"token_losses": [None, 1.5, 1.5]}))
    assert isinstance(same, AlignedDifference)
    assert same.text.named == {0}
    assert b"".join(same.text.pieces[1:]).decode() == text


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tokens": ["<s>", "a", "…"]}, "tokens do not spell the bytes"),
        ({"tokens": ["<s>", "x", "b"]}, "spell other bytes"),
        (dict.fromkeys(("tokens", "token_losses", "byte_offsets")), "without tokens"),
    ],
)
def test_pieces_that_cannot_be_coloured(change: dict[str, Any], why: str) -> None:
    whole = spelled_row("ab", [1, 2], [1.0, 2.0])
    for pair in ((whole, whole | change), (whole | change, whole)):
        made = align_pieces(document_of(*pair))
        assert isinstance(made, NotColoured)
        assert why in made.reason


def test_comparisons_that_cannot_be_coloured(run_cli: Run, files: tuple[str, str]) -> None:
    result = run_cli("compare", *files, "--view", "heat", "--json")
    assert result.exit_code == 2
    assert "--view heat is for the terminal" in result.stderr
    result = run_cli("compare", files[0], "-", "--view", "heat")
    assert result.exit_code == 2
    assert "reads its files twice" in result.stderr


@pytest.mark.parametrize(
    ("flags", "mends"),
    [(["--all-tokens"], "--view heat"), (["--view", "heat", "--worst", "0"], "--worst 1")],
)
def test_flags_that_change_no_text_are_refused(
    run_cli: Run, files: tuple[str, str], flags: list[str], mends: str
) -> None:
    result = run_cli("compare", *files, *flags)
    assert result.exit_code == 2
    assert mends in result.stderr


def test_a_variable_that_asks_for_heat_of_no_document_gives_way(
    run_cli: Run, files: tuple[str, str]
) -> None:
    result = run_cli("compare", *files, "--worst", "0", SEQLOSS_VIEW="heat")
    assert result.exit_code == 0
    assert "give --worst 1 or more; left out" in result.stderr


@pytest.mark.parametrize("columns", [1, 2, 4])
def test_the_narrowest_terminals_lose_nothing(
    run_cli: Run, files: tuple[str, str], columns: int
) -> None:
    text = "日本🐕 x"
    for words in (
        ("score", "--text", text, "-m", "demo"),
        ("cond", "--prompt", "p", "--response", text, "-m", "demo"),
        ("mask", "--prompt", "p", "--response", text, "-m", "demo"),
        ("compare", *files),
    ):
        result = run_cli(*words, "--view", "heat", COLUMNS=str(columns))
        assert result.exit_code == 0, result.stderr
        lines = [line[2:] for line in result.stdout.splitlines() if line.startswith("  ")]
        shown = "".join(lines)
        assert ("日本🐕" if words[0] == "compare" else text) in shown


def test_models_scored_in_turn(run_cli: Run) -> None:
    models = ("-m", "samples/checkpoints/step-600", "-m", "demo")
    result = run_cli("compare", *models, "--data", "samples/text.txt", "--view", "heat")
    assert result.exit_code == 0, result.stderr
    assert "FileNotFoundError" in result.stdout
    assert "\nB  demo\n" in result.stdout
    assert "loss of B by position" in result.stdout
