"""Fit temperature and truncation of a sampler to recorded log-probabilities.

A sampler at temperature T has ln p_T(x) = z_x / T - ln Σ exp(z / T). One that keeps a set of ids S
(top-k, top-p, min-p) renormalises: ln p(x) = ln p_T(x) - ln p_T(S). What is known of the logits of
each token is in the columns of `LOGIT_SHAPE`.

Shapes: M tokens, Q temperatures, K greatest logits, C values of a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from seqloss_cli.core.columns import N_TOP_LOGITS, TEMPERATURES
from seqloss_cli.core.records import Floats, Ints

_MOST_FITTED = 256
"""Tokens that parameters are fitted to; the fit is judged by all."""
_ZOOMS = ((25, None, 2), (13, 0.13, 2), (13, 0.022, 1), (13, 0.004, 1), (9, 0.0007, 1))
"""Number of temperatures tried, how far from the best of those before (in ln T), and of how many
tokens one is looked at."""
_HOPELESS = 0.6
"""Share of the differences that temperatures 2 % apart may leave for nearer ones to be tried."""
TOP_PS = (*(round(0.01 * n, 2) for n in range(5, 100)), 0.995, 0.999)
TOP_KS = (5, 10, 20, 30, 40, 50, 64, 100)
"""Values of k that stand before a top-p: of other k's only a k alone is told."""
MIN_PS = (0.001, 0.002, 0.005, *(round(0.01 * n, 2) for n in range(1, 51)))
"""Values that people write: finer ones are not told apart."""
_FAR = 256.0
"""Logits that are farther from the greatest than this, nats, have no probability in a float32."""
_TIE = 1e-4
"""Logits as near as this are taken for the same: one of them was made of rounded parts."""


@dataclass(frozen=True)
class LogitShapes:
    """Logits of M tokens, as far as `LOGIT_SHAPE` tells of them."""

    target: Floats
    """Shape M: the token's own logit."""
    log_sums: Floats
    """Shape M x Q: ln Σ exp(z / T) at each of `TEMPERATURES`."""
    top: Floats
    """Shape M x K: the greatest logits, greatest first."""
    knows_all: bool
    """K is the whole vocabulary."""

    @classmethod
    def of(cls, log_probs: Floats, columns: dict[str, Any]) -> LogitShapes:
        """Return what columns of M tokens tell; `log_probs` are the tokens' own, shape M, nats."""
        top = columns["top_logits"].astype(np.float64)
        target = log_probs + columns["log_normalisers"]
        return cls(target, columns["tempered_log_sums"], top, top.shape[1] < N_TOP_LOGITS)

    def take(self, places: Any) -> LogitShapes:
        """Return the tokens at these places (indexes or a mask of shape M)."""
        return LogitShapes(
            self.target[places], self.log_sums[places], self.top[places], self.knows_all
        )

    @cached_property
    def _spline(self) -> Any:
        from scipy.interpolate import CubicSpline

        # Less the greatest logit: what is left is smooth, and bounded by the logarithm of V.
        rest = self.log_sums - self.top[:, :1] / np.array(TEMPERATURES)
        return CubicSpline(np.log(TEMPERATURES), rest, axis=1)

    def log_sum(self, temperature: float) -> Floats:
        """Return ln Σ exp(z / T), shape M, nats."""
        found: Floats = self._spline(math.log(temperature)) + self.top[:, 0] / temperature
        return found

    def log_probs(self, temperature: float) -> Floats:
        """Return ln p_T of the tokens, shape M, nats."""
        return self.target / temperature - self.log_sum(temperature)

    @cached_property
    def ranks(self) -> Ints:
        """Shape M: number of greater logits, up to K."""
        found: Ints = (self.top > self.target[:, None] + _TIE).sum(axis=1)
        return found

    def masses(self, temperature: float) -> Floats:
        """Return the probability of the first 1, 2, … K ids, shape M x K."""
        each = np.exp(self.top / temperature - self.log_sum(temperature)[:, None])
        found: Floats = np.minimum(np.cumsum(each, axis=1), 1.0)
        return found


@dataclass(frozen=True, slots=True)
class Truncation:
    """A way to keep some of the ids, with the values of its parameter that are tried."""

    name: str
    values: Sequence[float]
    kept: Callable[[LogitShapes, Floats, float, Floats], tuple[Ints, Floats]]
    """Gives of shapes, masses (M x K), T and C values the number of ids that are kept, and their
    probability where that number is beyond K (NaN: not known), both M x C."""
    top_k: int = 0
    """Ids that a top-k before it keeps; 0 without one."""

    def log_probs(self, shapes: LogitShapes, temperature: float, values: Floats) -> Floats:
        """Return ln p of the tokens, M x C, nats, for C values; as without truncation where the
        token is not kept: no sampler drew it."""
        masses = shapes.masses(temperature)
        n_kept, beyond = self.kept(shapes, masses, temperature, values)
        inside = np.clip(n_kept, 1, masses.shape[1])
        mass = np.take_along_axis(masses, inside - 1, axis=1)
        mass = np.where(n_kept > masses.shape[1], beyond, mass)
        is_drawn = (shapes.ranks[:, None] < n_kept) & np.isfinite(mass)
        log_mass = np.log(np.where(is_drawn, mass, 1.0))
        found: Floats = shapes.log_probs(temperature)[:, None] - log_mass
        return found


def _top_k(
    shapes: LogitShapes, masses: Floats, temperature: float, values: Floats
) -> tuple[Ints, Floats]:
    return np.broadcast_to(values.astype(np.int64), (len(masses), len(values))), np.array(np.nan)


def _top_p(
    shapes: LogitShapes, masses: Floats, temperature: float, values: Floats
) -> tuple[Ints, Floats]:
    """The fewest ids with p together: beyond K of them, p is exceeded by less than 1/K."""
    return 1 + _count_below(masses, values, "left"), values[None, :]


def _top_p_of(top_k: int) -> Callable[..., tuple[Ints, Floats]]:
    """Return what keeps the fewest of `top_k` ids with p of what these have together."""

    def kept(
        shapes: LogitShapes, masses: Floats, temperature: float, values: Floats
    ) -> tuple[Ints, Floats]:
        shares = masses[:, :top_k] / masses[:, top_k - 1 : top_k]
        return 1 + _count_below(shares, values, "left"), np.array(np.nan)

    return kept


def _min_p(
    shapes: LogitShapes, masses: Floats, temperature: float, values: Floats
) -> tuple[Ints, Floats]:
    below = np.minimum(shapes.top[:, :1] - shapes.top, _FAR)
    n_kept = _count_below(below, np.minimum(_TIE - temperature * np.log(values), _FAR), "right")
    # As many as are known may be fewer than there are.
    more = (n_kept == shapes.top.shape[1]) & (not shapes.knows_all)
    return np.where(more, n_kept + 1, n_kept), np.array(np.nan)


def _count_below(ascending: Floats, values: Floats, side: Literal["left", "right"]) -> Ints:
    """Return how many of each row (M x K, from 0 to `_FAR`) are below each of C values, M x C."""
    # All rows in one ascending array: a comparison of each with each takes ten times as long.
    n, k = ascending.shape
    rows = 2 * _FAR * np.arange(n)[:, None]
    found = np.searchsorted((ascending + rows).ravel(), (values + rows).ravel(), side)
    counts: Ints = found.reshape(n, -1) - k * np.arange(n)[:, None]
    return counts


def truncations(n_known: int) -> tuple[Truncation, ...]:
    """Return the kinds; `n_known` logits of each token are known."""
    ks = tuple(float(k) for k in range(1, n_known))
    return (
        Truncation("top_k", ks, _top_k),
        Truncation("top_p", TOP_PS, _top_p),
        Truncation("min_p", MIN_PS, _min_p),
    )


def top_ps_after_top_k(n_known: int) -> tuple[Truncation, ...]:
    """Return top-p of the ids that a top-k keeps, as engines have both by default."""
    ks = [k for k in TOP_KS if k <= n_known]
    return tuple(Truncation("top_p", TOP_PS, _top_p_of(k), k) for k in ks)


@dataclass(frozen=True, slots=True)
class SamplerFit:
    """A sampler that recorded values were fitted to."""

    temperature: float
    truncation: Truncation | None = None
    value: float = 0.0
    """The truncation's parameter."""

    def log_probs(self, shapes: LogitShapes) -> Floats:
        """Return ln p of the tokens, shape M, nats."""
        if self.truncation is None:
            return shapes.log_probs(self.temperature)
        # A few at a time: each value takes K numbers of a token.
        parts = np.array_split(np.arange(len(shapes.target)), 1 + len(shapes.target) // 4096)
        values = np.array([self.value])
        found = [
            self.truncation.log_probs(shapes.take(part), self.temperature, values)[:, 0]
            for part in parts
        ]
        return np.concatenate(found)


def fit_samplers(shapes: LogitShapes, recorded: Floats) -> Iterator[tuple[int, SamplerFit]]:
    """Yield samplers fitted to recorded values, shape M, nats, with the number of parameters."""
    step = max(1, len(recorded) // _MOST_FITTED)
    some, values = shapes.take(slice(None, None, step)), recorded[::step]
    kinds = truncations(shapes.top.shape[1])
    yield 1, _zoom(some, values, None)
    for kind in kinds:
        yield 1, _best_at(some, values, 1.0, kind)[1]
    both = top_ps_after_top_k(shapes.top.shape[1])
    yield 2, _best_of(some, values, [1.0], both)
    of_two = list[SamplerFit]()
    for kind in kinds:
        yield 2, (found := _zoom(some, values, kind))
        of_two.append(found)
    # Near the temperatures that one truncation alone is found with.
    rough = _best_of(some, values, [each.temperature for each in of_two], both)
    yield 3, _zoom(some, values, rough.truncation, rough)


def fit_scale(shapes: LogitShapes, recorded: Floats) -> float:
    """Return the T at which z / T is nearest to recorded values, shape M, nats."""
    known = np.abs(shapes.target) > 1e-3
    if not known.any():
        return 1.0
    # The weighted median of z / v minimises Σ |z / T - v| over 1 / T.
    slopes, weights = recorded[known] / shapes.target[known], np.abs(shapes.target[known])
    order = np.argsort(slopes)
    total = np.cumsum(weights[order])
    slope = float(slopes[order][np.searchsorted(total, total[-1] / 2)])
    return 1 / slope if slope > 0 else 1.0


def _best_of(
    shapes: LogitShapes, recorded: Floats, temperatures: Sequence[float], kinds: Any
) -> SamplerFit:
    """Return the best sampler of some temperatures and kinds of truncation."""
    tried = [_best_at(shapes, recorded, t, kind) for t in temperatures for kind in kinds]
    return min(tried, key=lambda one: one[0])[1] if tried else SamplerFit(1.0)


def _zoom(
    shapes: LogitShapes, recorded: Floats, kind: Truncation | None, near: SamplerFit | None = None
) -> SamplerFit:
    """Return the best sampler, of temperatures nearer and nearer to the best so far, or to one that
    is near."""
    low, high = math.log(TEMPERATURES[0]), math.log(TEMPERATURES[-1])
    plain, best = SamplerFit(1.0), (math.inf, SamplerFit(1.0) if near is None else near)
    for n, reach, step in _ZOOMS if near is None else _ZOOMS[1:]:
        tried = np.linspace(low, high, n)
        if reach is not None:
            centre = math.log(best[1].temperature)
            tried = np.clip(np.linspace(centre - reach, centre + reach, n), low, high)
        some, values = shapes.take(slice(None, None, step)), recorded[::step]
        found = [_best_at(some, values, math.exp(each), kind) for each in tried]
        best = min(found, key=lambda one: one[0])
        before = float(np.abs(plain.log_probs(some) - values).mean())
        if reach is not None and best[0] > _HOPELESS * before:
            break
    return best[1]


def _best_at(
    shapes: LogitShapes, recorded: Floats, temperature: float, kind: Truncation | None
) -> tuple[float, SamplerFit]:
    """Return the mean error of the best parameter at a temperature, nats, and the sampler."""
    if kind is None:
        error = float(np.abs(shapes.log_probs(temperature) - recorded).mean())
        return error, SamplerFit(temperature)
    values = np.array(kind.values)
    errors = np.abs(kind.log_probs(shapes, temperature, values) - recorded[:, None]).mean(axis=0)
    best = int(np.argmin(errors))
    return float(errors[best]), SamplerFit(temperature, kind, float(values[best]))
