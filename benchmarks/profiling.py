"""Where the time of a round goes, by torch.profiler."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rates import Shapes
from torch.profiler import ProfilerActivity, profile

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "_linear_pointwise", "dot")
_COPIES = (
    "copy_", "cat", "clone", "contiguous", "index", "index_select", "gather", "embedding", "fill_",
    "zero_", "empty", "zeros", "_to_copy", "to", "stack", "split", "scatter", "new_empty",
)  # fmt: skip
PARTS = (
    "products of layers",
    "products of the head",
    "attention",
    "element-wise and normalisation",
    "copies and gathering",
    "Python and other",
)


def profile_round(side: Callable[[], Any], shapes: Shapes) -> dict[str, float]:
    """Shares of the time on the calling thread, which waits for the others, of a side that is warm.
    The profiler itself makes Python slower, so its share is rather too large."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, acc_events=True) as seen:
        started = time.perf_counter()
        side()
        whole = time.perf_counter() - started
    seconds = dict.fromkeys(PARTS, 0.0)
    for event in seen.key_averages(group_by_input_shape=True):
        part = _part_of(event.key, event.input_shapes or [], shapes)
        seconds[part] += event.self_cpu_time_total / 1e6
    rest = whole - sum(seconds.values())
    seconds["Python and other"] += max(0.0, rest)
    return {part: value / sum(seconds.values()) for part, value in seconds.items()}


def without_the_rest(ratio: float, shares: dict[str, float]) -> tuple[float, float]:
    """What a ratio of ours would be if all but its products took no time, and if all but products
    and attention took none."""
    products = shares["products of layers"] + shares["products of the head"]
    return ratio / products, ratio / (products + shares["attention"])


def limits(ratio: float, shares: dict[str, float]) -> str:
    """A goal above the second figure is out of reach on the machine, unless its products or its
    attention get faster."""
    products, both = without_the_rest(ratio, shares)
    return (
        f"eager, ours would be {products:.2f} times as fast if it did nothing but its products, "
        f"and {both:.2f} times with its attention"
    )


def _part_of(name: str, inputs: list[Any], shapes: Shapes) -> str:
    operation = name.split("::")[-1]
    if "attention" in name or "seqloss::attend" in name:
        return "attention"
    if operation in _PRODUCTS or "mkldnn_linear" in name:
        return "products of layers" if _of_layer(inputs, shapes) else "products of the head"
    if not name.startswith(("aten::", "mkldnn", "torch")):
        return "Python and other"
    if operation in _COPIES:
        return "copies and gathering"
    return "element-wise and normalisation"


def _of_layer(inputs: list[Any], shapes: Shapes) -> bool:
    """Whether the weight has the shape of a layer; the head's blocks have other widths."""
    return any(
        len(size) == 2 and (tuple(size) in shapes.layers or tuple(size[::-1]) in shapes.layers)
        for size in inputs
    )
