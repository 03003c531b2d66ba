"""How divergences of tokens are spread, over powers of ten."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from seqloss_cli.core.records import Floats
from seqloss_cli.display.html import svg
from seqloss_cli.display.html.charts import Cell, Chart
from seqloss_cli.display.scales import KL_EDGES, step_of

_LOWEST, _HIGHEST, _PER_TEN = -5, 1, 4
"""Powers of ten, nats; bars for each."""


def divergence_histogram(kls: Floats) -> Chart | None:
    """Of finite ones; the outer bars hold what lies beyond."""
    known = kls[np.isfinite(kls)]
    if not len(known):
        return None
    n_bins = (_HIGHEST - _LOWEST) * _PER_TEN
    logs = np.log10(np.maximum(known, 10.0**_LOWEST))
    places = np.clip(((logs - _LOWEST) * _PER_TEN + 1e-9).astype(np.int64), 0, n_bins - 1)
    shares = np.bincount(places, minlength=n_bins) * (100 / len(known))
    frame = svg.Frame(_LOWEST, _HIGHEST, 0, float(shares.max()) * 1.05)
    parts = svg.y_axis(frame, "share of tokens", percent=True)
    for n, share in enumerate(shares.tolist()):
        low, high = _LOWEST + n / _PER_TEN, _LOWEST + (n + 1) / _PER_TEN
        hint = f"{10**low:.2g} to {10**high:.2g} nats: {share:.2f}% of tokens"
        step = step_of(10**low * (1 + 1e-9), KL_EDGES)
        x1, x2 = frame.x(low) + 0.4, frame.x(high) - 0.4
        parts.append(svg.bar(x1, frame.y(share), x2, frame.bottom, f"bar f{step}", hint))
    parts += svg.x_figures(frame, [(power, _said(power)) for power in range(_LOWEST, _HIGHEST + 1)])
    parts.append(svg.x_label(frame, "KL of a token, nats"))
    return Chart(
        "histogram", "How divergences are spread", svg.drawing("Histogram of divergences", parts),
        "Scored tokens by their KL, over powers of ten. The outer bars hold what lies beyond.",
        ["KL", "tokens", "share of the KL"], _step_rows(known),
    )  # fmt: skip


def _said(power: int) -> str:
    """A power of ten without an exponent."""
    return f"{10.0**power:.{-_LOWEST}f}".rstrip("0").rstrip(".")


def _step_rows(known: Floats) -> list[list[str | Cell]]:
    """For each step of the scale the share of tokens and of the divergence."""
    rows: list[list[str | Cell]] = []
    total = known.sum()
    for low, high in pairwise((-math.inf, *KL_EDGES, math.inf)):
        inside = known[(known >= low) & (known < high)]
        name = f"{max(low, 0):g} to {high:g}" if high < math.inf else f"{low:g} and more"
        share = f"{100 * inside.sum() / total:.1f}%" if total else "-"
        rows.append([f"{name} nats", f"{100 * len(inside) / len(known):.1f}%", share])
    return rows
