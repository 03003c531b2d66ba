"""No table loses or starves a column: what does not fit is named, and the rest is whole."""

from __future__ import annotations

import io
import re
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from helpers.terminals import PAIRED, pair_of, score_of, shown
from seqloss_cli.display.scales import count_of
from seqloss_cli.display.terminal.formatting import (
    Column,
    FiguresGrid,
    FiguresTable,
    Unit,
    figures_panel,
    fit,
    interval,
    letter,
    number,
    signed,
    value_of,
)
from seqloss_cli.metrics.intervals import Estimate

WIDTHS = st.integers(40, 240)
NAMES = st.one_of(
    st.text("abcdef/-_.", min_size=1, max_size=120),
    st.text("日本語検査한국어", min_size=1, max_size=60),
    st.text("שלוםعربيabc 12/", min_size=1, max_size=90).filter(str.strip),
    st.just("/very/long/directory" * 5 + "/checkpoint-1000"),
)
FIGURES = st.floats(-1e9, 1e9).map(number)


def drawn(renderable: object, width: int) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, markup=False, highlight=False, emoji=False)
    console.print(renderable)
    return file.getvalue().splitlines()


@st.composite
def tables(draw: st.DrawFn) -> FiguresTable:
    columns = [Column("sequence", least=12), Column("loss")]
    columns += [Column(f"f{n}", spare=1 + n % 3) for n in range(draw(st.integers(0, 12)))]
    columns += [Column("beside", least=14, spare=draw(st.integers(1, 3)))]
    table = FiguresTable("title", columns)
    for _ in range(draw(st.integers(1, 3))):
        table.add_row(*(draw(NAMES if column.least else FIGURES) for column in columns))
    return table


@given(tables(), WIDTHS)
def test_each_column_is_whole_or_named_below(table: FiguresTable, width: int) -> None:
    lines = drawn(table, width)
    assert all(cell_len(line) <= width for line in lines)
    header, below = lines[1].split(), " ".join(" ".join(lines[3:]).split())
    _, _, missing = below.partition("no room here for ")
    left = missing.split(", ") if missing else []
    assert sorted(header + left) == sorted(column.name for column in table.columns)
    assert {"sequence", "loss"} <= set(header)
    body = re.sub(r"[\s\u200e]", "", " ".join(lines[3:]))
    for row in table.rows:
        for column, cell in zip(table.columns, row, strict=True):
            if column.name in header and not column.least:
                assert any(f" {cell.plain}" in line for line in lines), "a figure is in one piece"
            elif column.name in header:
                assert set(cell.plain) - {" "} <= set(body)


@given(tables(), WIDTHS)
def test_no_text_is_starved_and_no_room_is_wasted(table: FiguresTable, width: int) -> None:
    rows = [[column.name for column in table.columns]]
    rows += [[cell.plain for cell in row] for row in table.rows]
    natural = [max(map(cell_len, cells)) for cells in zip(*rows, strict=True)]
    widths = fit(table.columns, natural, width, gap=2)
    used = sum(widths.values()) + 2 * (len(widths) - 1)
    assert used <= width
    for n, cells in widths.items():
        column = table.columns[n]
        assert cells >= min(natural[n], column.least or natural[n])
    short = any(cells < natural[n] for n, cells in widths.items())
    assert used == width or not short
    # What is left out had to go: it would not have fitted beside those that come before it.
    out = [n for n in range(len(natural)) if n not in widths]
    last = min(out, key=lambda n: (table.columns[n].spare, n), default=None)
    if last is not None:
        kept = [min(natural[n], table.columns[n].least or natural[n]) for n in (*widths, last)]
        assert sum(kept) + 2 * (len(kept) - 1) > width


@given(st.lists(NAMES, min_size=1, max_size=4), WIDTHS)
def test_figures_stay_behind_texts_from_right_to_left(names: list[str], width: int) -> None:
    table = FiguresTable("title", [Column("name", least=12), Column("loss")])
    for name in names:
        table.add_row(name, "12.3456")
    for line in drawn(table, width)[3:]:
        before, _, figure = line.partition("  12.3456")
        directions = [unicodedata.bidirectional(char) for char in before.rstrip()]
        turned = bool({"R", "AL", "AN"} & set(directions))
        assert (before.rstrip()[-1:] == "\u200e") == turned
        assert figure == ""


@given(
    st.lists(st.tuples(NAMES.map(lambda name: name[:20]), FIGURES, NAMES), min_size=1, max_size=4),
    WIDTHS,
)
def test_notes_of_a_grid_are_beside_or_below(rows: list[tuple[str, str, str]], width: int) -> None:
    for renderable in (FiguresGrid(rows), figures_panel("totals", rows)):
        lines = drawn(renderable, width)
        assert all(cell_len(line) <= width for line in lines)
        for _, figure, note in rows:
            assert any(figure in line for line in lines)
            # At least four characters beside each other: no note is a letter a line.
            piece = note.split()[0][:4]
            assert any(piece in line for line in lines)


@settings(max_examples=20)
@given(st.lists(NAMES, min_size=11, max_size=11), WIDTHS, st.booleans())
def test_lines_of_many_results_fit(names: list[str], width: int, pairs: bool) -> None:
    if pairs:
        scores = [pair_of(identity=name) for name in names]
        output = shown(*scores, width=width, run=PAIRED, pmi=True)
    else:
        output = shown(*(score_of(identity=name) for name in names), width=width)
    lines = output[: output.index("╭─ totals")].splitlines()
    assert all(cell_len(line) <= width for line in lines)
    header = next(line for line in lines if line.startswith("sequence"))
    note = " ".join(" ".join(lines[: lines.index(header)]).split())
    known = ["x", "y", "ln Pr(x)", "ln Pr(y|x)", "mean loss", "pmi"]
    if not pairs:
        known = ["tokens", "scored", "total loss", "mean", "bits/byte"]
    left = [name for name in known if f" {name}" not in header]
    missing = f"; no room here for {', '.join(left)}" if left else ""
    assert note == f"losses in nats{missing}"


def test_a_narrow_terminal_gets_the_text_whole() -> None:
    table = FiguresTable("title", [Column("name", least=12), Column("loss"), Column("id", spare=1)])
    table.add_row("abcdefghijklmnop", "12.3456", "151643")
    for width in (5, 10, 20):
        text = re.sub(r"\s", "", "".join(drawn(table, width)[2:]))
        assert "12.3456" in text.replace("\n", "")
        assert set("abcdefghijklmnop") <= set(text)
        assert "noroomhereforid" in text


def test_letters_of_models() -> None:
    assert [letter(n) for n in (0, 1, 25, 26, 51, 52)] == ["A", "B", "Z", "A2", "Z2", "A3"]


def test_digits_of_large_and_tiny_figures() -> None:
    figures = (0.0, 2.30258, 999.9999, 1000.5, 54321.9, 2421693.1408, 3.2e-6, float("inf"))
    texts = [
        "0.0000",
        "2.3026",
        "999.9999",
        "1,000.500",
        "54,321.90",
        "2,421,693",
        "3.2e-06",
        "inf",
    ]
    figures += (502512.3, 3e9)
    texts += ["502,512.3", "3.000000e+09"]
    assert [number(figure) for figure in figures] == texts
    assert number(None) == signed(None) == "-"
    assert [signed(x) for x in (0.5, -0.5, 0.0)] == ["+0.5000", "-0.5000", "+0.0000"]


def test_a_figure_and_its_interval_have_as_many_decimals() -> None:
    small = Estimate(0.000123456, 0.000101, 0.000146, 0.00001, 9, "")
    assert f"{value_of(small)} {interval(small)}" == "0.000123 [0.000101, 0.000146]"
    tiny = Estimate(0.00003, 0.00001, 0.00005)
    assert f"{value_of(tiny)} {interval(tiny)}" == "0.0000300 [0.0000100, 0.0000500]"
    large = Estimate(12345.678, 999.5, 23691.4, 1.0, 9, "")
    assert f"{value_of(large)} {interval(large)}" == "12,345.68 [999.50, 23,691.40]"
    bits = Unit(bits=True)
    assert f"{value_of(small, bits)} {interval(small, bits)}" == "0.000178 [0.000146, 0.000211]"


def test_a_column_of_totals_has_one_number_of_decimals() -> None:
    totals = (615.5641, 3841.6, 502512.34)
    digits = Unit().decimals(totals)
    assert [number(each, digits) for each in totals] == ["615.6", "3,841.6", "502,512.3"]


def test_counts_in_words() -> None:
    assert [count_of(n, "row") for n in (0, 1, 79628)] == ["0 rows", "1 row", "79,628 rows"]
