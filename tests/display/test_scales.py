"""Colours that everybody can tell apart, and read a text on."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.colours import GROUND, contrast, luminance
from seqloss_cli.display.scales import (
    DIFFERENCE_EDGES,
    DIVERGING,
    KL_EDGES,
    LOSS_EDGES,
    RANK_EDGES,
    RANKED,
    SEQUENTIAL,
    SERIES,
    Paint,
    step_of,
)
from seqloss_cli.display.terminal.formatting import kl_style, loss_style


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_can_be_read_on_every_step(theme: str) -> None:
    for palette in (SEQUENTIAL, DIVERGING, RANKED):
        for paint in palette[theme]:  # type: ignore[index]
            if paint != Paint(None, None):
                assert contrast(paint.background, paint.text) >= 4.5


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lightness_alone_tells_the_order(theme: str) -> None:
    sign = -1 if theme == "light" else 1
    for paints in (SEQUENTIAL[theme], RANKED[theme], DIVERGING[theme][4:], DIVERGING[theme][4::-1]):  # type: ignore[index]
        shades = [sign * luminance(p.background or GROUND[theme]) for p in paints]
        assert all(b > a for a, b in pairwise(shades))
        assert all(contrast(p.background or GROUND[theme], q.background) >= 1.12
                   for p, q in pairwise(paints))  # fmt: skip


def test_series_differ_in_lightness_or_in_blue() -> None:
    """What people who confuse red and green still see."""
    assert all(contrast(colour, "#ffffff") >= 2 for colour in SERIES)
    for a, b in combinations(SERIES, 2):
        assert contrast(a, b) >= 1.4 or abs(int(a[5:], 16) - int(b[5:], 16)) >= 0x40


def test_there_is_a_colour_for_every_step() -> None:
    for theme in ("light", "dark"):
        assert len(SEQUENTIAL[theme]) == len(LOSS_EDGES) + 1  # type: ignore[index]
        assert len(SEQUENTIAL[theme]) == len(KL_EDGES) + 1  # type: ignore[index]
        assert len(DIVERGING[theme]) == len(DIFFERENCE_EDGES) + 1  # type: ignore[index]
        assert len(RANKED[theme]) == len(RANK_EDGES) + 1  # type: ignore[index]


@given(st.lists(st.floats(allow_nan=False), min_size=2))
def test_steps_never_fall_as_values_rise(values: list[float]) -> None:
    for edges in (LOSS_EDGES, KL_EDGES, DIFFERENCE_EDGES, RANK_EDGES):
        steps = [step_of(value, edges) for value in sorted(values)]
        assert steps == sorted(steps)
    assert [step_of(rank, RANK_EDGES) for rank in (1, 2, 10, 11, 100, 101, 1000, 1001)] == [
        *(0, 1, 1, 2, 2, 3, 3, 4),
    ]


def test_the_terminal_s_styles_are_of_the_same_steps() -> None:
    """Losses that were styled by bounds of 0.5, 2, 4 and 7 nats; divergences by their own edges."""
    losses = [0.0, 0.49, 0.5, 1.99, 2.0, 3.99, 4.0, 6.99, 7.0, 50.0, math.inf, math.nan]
    hot = "bold bright_red"
    expected = ["dim"] * 2 + [""] * 2 + ["cyan"] * 2 + ["yellow"] * 2 + [hot] * 4
    assert [loss_style(loss) for loss in losses] == expected
    kls = [0.0, 0.009, 0.01, 0.09, 0.1, 0.29, 0.3, 0.99, 1.0, 9.0]
    assert [kl_style(kl) for kl in kls] == [*expected[:9], hot]
    assert loss_style(None) == kl_style(None) == "dim"
    assert loss_style(None, True) == "dim"
    assert loss_style(0.1, True) == "green"
