"""Fit a transformation of the scored values to the recorded ones: shifts, units, samplers, edges.

Shapes: M tokens of all rows together, one row after another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from seqloss_cli.core.records import Bools, Floats, Ints
from seqloss_cli.metrics.sampling_fits import (
    LogitShapes,
    SamplerFit,
    fit_samplers,
    fit_scale,
    truncations,
)

LEAST_TOKENS = 16
"""Fewer tokens are too few to fit anything to."""
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Observed:
    """Rows of a recording side by side."""

    recorded: Floats
    """Shape M: as written, nats if it is right; NaN where there is none."""
    scored: Floats
    """Shape M: ln p, nats; NaN where not scored or infinite."""
    sampled: Bools
    """Shape M."""
    rows: Ints
    """Shape M: the number of the row, from 0 on, ascending."""
    prompts: Ints
    """Shape M: tokens of the row's prompt; -1 where that is not known."""
    ids: Ints
    """Shape M."""
    eos_id: int | None = None
    shapes: LogitShapes | None = None
    """Logits of the compared tokens alone, in their order."""

    @cached_property
    def compared(self) -> Bools:
        """Shape M: both values are there."""
        return np.isfinite(self.recorded) & np.isfinite(self.scored)

    @cached_property
    def last(self) -> Bools:
        """Shape M: the last token of a row."""
        return np.append(self.rows[1:] != self.rows[:-1], True) if len(self.rows) else self.sampled

    @cached_property
    def starts(self) -> Ints:
        """Shape M: the place of the first token of the row."""
        first = np.flatnonzero(np.append(True, self.rows[1:] != self.rows[:-1]))
        found: Ints = first[self.rows - self.rows[0]] if len(self.rows) else self.rows
        return found

    def at(self, places: Ints) -> Floats:
        """Return ln p at other places of the same rows, shape M, nats; NaN beyond a row."""
        inside = (places >= 0) & (places < len(self.rows))
        safe = np.where(inside, places, 0)
        return np.where(inside & (self.rows[safe] == self.rows), self.scored[safe], np.nan)


@dataclass(frozen=True, slots=True)
class Fit:
    """Faults with the differences that they leave."""

    faults: tuple[tuple[str, Mapping[str, Any]], ...]
    residuals: tuple[Floats, ...]
    """After each of the faults, shape M, nats: NaN where a fault gives no value."""

    @property
    def left(self) -> Floats:
        """Differences that all of them leave, shape M, nats."""
        return self.residuals[-1]


def fits(observed: Observed, residual: Floats) -> Iterator[tuple[int, Fit]]:
    """Yield all fits with the number of their parameters, simple ones first: each that comes later
    takes longer to make. `residual` is what remains to be explained, shape M, nats; NaN elsewhere.
    """
    whole, sampled = np.isfinite(residual), observed.sampled & np.isfinite(residual)
    scopes: list[tuple[Bools, Mapping[str, Any]]] = [(whole, {})]
    # Engines that process the logits of what they sample leave those of prompts as they are.
    if LEAST_TOKENS <= sampled.sum() < whole.sum():
        scopes.append((sampled, {"tokens": "sampled"}))
    for make in (_without_logits, _of_logits, _of_samplers, _of_probabilities):
        for scope, told in scopes:
            for n, fit in make(observed, scope):
                residuals = tuple(np.where(scope, each, residual) for each in fit.residuals)
                faults = tuple((name, {**parameters, **told}) for name, parameters in fit.faults)
                yield n, Fit(faults, residuals)


def _without_logits(observed: Observed, scope: Bools) -> Iterator[tuple[int, Fit]]:
    recorded, scored, places = observed.recorded, observed.scored, np.arange(len(observed.rows))
    yield from ((0, fit) for fit in clamps(recorded, scored, scope))
    for step in (1, -1):
        yield 0, _fit("shift", {"by": step}, recorded - observed.at(places + step))
    # The response's values are those of the row's first tokens, with or without the very first.
    offset = places - (observed.starts + observed.prompts)
    is_response = (observed.prompts > 1) & (offset >= 0)
    for first in (1, 0):
        beginning = observed.at(np.where(is_response, observed.starts + first + offset, -1))
        yield 0, _fit("prompt_included", {"first": first}, recorded - beginning)
    values = recorded[scope]
    if (fit := _probabilities(observed, scope)) is not None:
        yield 0, fit
    if (values <= 0).all():
        for base in (2, 10):
            yield 0, _fit("base", {"base": base}, recorded * math.log(base) - scored)


def _fit(name: str, parameters: Mapping[str, Any], residual: Floats) -> Fit:
    return Fit(((name, parameters),), (residual,))


def clamps(recorded: Floats, scored: Floats, scope: Bools) -> Iterator[Fit]:
    """Yield fits of values, shape M, nats, that were cut at the least or the greatest of them."""
    values = recorded[scope]
    for name, edge, beyond in (
        ("least", values.min(initial=np.inf), np.less_equal),
        ("most", values.max(initial=-np.inf), np.greater_equal),
    ):
        at = scope & (recorded == edge)
        if at.sum() >= 2:
            cut = at & beyond(scored, edge + (TOLERANCE if name == "least" else -TOLERANCE))
            residual = np.where(cut, 0.0, recorded - scored)
            yield _fit("clamped", {name: float(edge)}, residual)


def _probabilities(observed: Observed, scope: Bools) -> Fit | None:
    """Return the fit of probabilities; None where one of the values is none."""
    values = observed.recorded[scope]
    if not ((values >= 0) & (values <= 1)).all():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(observed.recorded)
    residual = np.where(np.isfinite(logs), logs - observed.scored, np.nan)
    return _fit("probabilities", {}, residual)


def _of_probabilities(observed: Observed, scope: Bools) -> Iterator[tuple[int, Fit]]:
    """Yield fits of a sampler's probabilities."""
    if (fit := _probabilities(observed, scope)) is not None:
        for n, sampler in _of_samplers(observed, scope, fit.left + observed.scored):
            yield n, Fit((*fit.faults, *sampler.faults), (*fit.residuals, *sampler.residuals))


def _of_samplers(
    observed: Observed, scope: Bools, logs: Floats | None = None
) -> Iterator[tuple[int, Fit]]:
    """Yield fits of a sampler's temperature and truncation to the recorded values, or to `logs`,
    shape M, nats."""
    if observed.shapes is None:
        return
    recorded = (observed.recorded if logs is None else logs)[observed.compared]
    in_scope = scope[observed.compared] & np.isfinite(recorded)
    if in_scope.sum() < LEAST_TOKENS:
        return
    values, own = recorded[in_scope], observed.shapes.take(in_scope)

    def residual(sampler: SamplerFit) -> Floats:
        return _spread(observed, in_scope, values - sampler.log_probs(own))

    for n, sampler in fit_samplers(own, values):
        faults, residuals = list[tuple[str, Mapping[str, Any]]](), list[Floats]()
        kind = sampler.truncation
        if kind is None or n > 1 + bool(kind.top_k):
            faults.append(("temperature", {"temperature": _rounded(sampler.temperature)}))
            residuals.append(residual(replace(sampler, truncation=None)))
        if kind is not None and kind.top_k:
            of_k = next(each for each in truncations(kind.top_k + 1) if each.name == "top_k")
            faults.append(("top_k", {"top_k": kind.top_k}))
            residuals.append(residual(replace(sampler, truncation=of_k, value=float(kind.top_k))))
        if kind is not None:
            value = int(sampler.value) if kind.name == "top_k" else sampler.value
            faults.append((kind.name, {kind.name: value}))
            residuals.append(residual(sampler))
        yield n, Fit(tuple(faults), tuple(residuals))


def _of_logits(observed: Observed, scope: Bools) -> Iterator[tuple[int, Fit]]:
    """Yield fits of logits in the place of log-probabilities, also of those over a temperature."""
    if observed.shapes is None:
        return
    in_scope = scope[observed.compared]
    values, own = observed.recorded[observed.compared][in_scope], observed.shapes.take(in_scope)
    plain = _spread(observed, in_scope, values - own.target)
    yield 0, _fit("logits", {}, plain)
    scopes: list[tuple[Bools, Mapping[str, Any]]] = [(scope, {})]
    if LEAST_TOKENS <= (sampled := scope & observed.sampled).sum() < scope.sum():
        # Those of the prompt are logits, too, but as they are.
        scopes.append((sampled, {"tokens": "sampled"}))
    for some, told in scopes:
        chosen = some[observed.compared][in_scope]
        scale = fit_scale(own.take(chosen), values[chosen])
        tempered = _spread(observed, in_scope, values - own.target / scale)
        parts: Any = (("logits", {}), ("temperature", {"temperature": _rounded(scale), **told}))
        yield 2, Fit(parts, (plain, np.where(some, tempered, plain)))


def _spread(observed: Observed, in_scope: Bools, values: Floats) -> Floats:
    """Return values of compared tokens in scope at their places, shape M; NaN elsewhere."""
    found = np.full(len(observed.rows), np.nan)
    found[np.flatnonzero(observed.compared)[in_scope]] = values
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
