"""Records of servers: by what two are of other models, and the worst of what several say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

FOUND = (
    *("probed_at", "probe_tolerance", "probe_worst_difference", "normalised", "probe_row"),
    *("verified_rows", "verified_worst_difference"),
)
"""Keys of `engine` that tell what was found when a server was asked: other ones each time."""
Engine = Mapping[str, Any]


def engine_differences(first: Engine, second: Engine) -> Iterator[str]:
    """Yield by what the numbers of two servers are not of the same model: a row that both gave."""
    a, b = first.get("probe_row"), second.get("probe_row")
    if a is None or b is None:
        if first and second and a != b:
            yield "engine.probe_row: missing in one of them, so nothing tells of other weights"
        return
    if (a["token_ids"], a["first"]) != (b["token_ids"], b["first"]):
        yield "engine.probe_row: of other tokens"
        return
    # The stricter one: the file that was held to it says so of all its rows.
    tolerance = min(_tolerance(first), _tolerance(second))
    apart = float(np.abs(np.subtract(a["log_probs"], b["log_probs"])).max())
    if not apart <= tolerance:
        yield (
            f"engine.probe_row: the log-probabilities of one row differ by {apart:.2g} nats "
            f"(probe_tolerance {tolerance:g}), as those of other weights do"
        )


def doubts(there: Engine, here: Engine) -> Iterator[str]:
    """Yield why a file that says what was found `there` would not be true of a run that found what
    stands `here`."""
    if _tolerance(here) > _tolerance(there):
        tolerance = _tolerance(there)
        yield (
            f"engine.probe_tolerance is {tolerance:g} there and {_tolerance(here):g} here (give "
            f"--probe-tolerance {tolerance:g})"
        )
    if there.get("normalised") is True and here.get("normalised") is not True:
        yield "engine.normalised is True there, and here nothing shows it"


def worst_of(engines: Sequence[Engine]) -> dict[str, Any]:
    """Return the first server's record with what holds of all, and the addresses of several."""
    found = dict(engines[0])
    if len(urls := list(dict.fromkeys(str(each.get("url")) for each in engines))) > 1:
        found["urls"] = urls
    found["probed_at"] = min(str(each.get("probed_at")) for each in engines)
    found["probe_tolerance"] = max(map(_tolerance, engines))
    found["normalised"] = True if all(each.get("normalised") is True for each in engines) else None
    for name, of_all in (
        ("probe_worst_difference", max),
        ("verified_rows", sum),
        ("verified_worst_difference", max),
    ):
        if values := [each[name] for each in engines if each.get(name) is not None]:
            found[name] = of_all(values)
    return found


def _tolerance(engine: Engine) -> float:
    """Return nats; infinite where JSON had no number for it."""
    value = engine.get("probe_tolerance")
    return math.inf if value is None else float(value)
