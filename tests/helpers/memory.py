"""Memory as torch's own allocator counts it, on a CPU."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_of(work: Callable[[], Any]) -> int:
    """Most bytes of tensors at a time while it works, beyond those that were there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [each for each in events if each.get("name") == "[memory]"]
    in_use = peak = 0
    for change in sorted(changes, key=lambda each: each["ts"]):
        in_use += change["args"]["Bytes"]
        peak = max(peak, in_use)
    return peak
