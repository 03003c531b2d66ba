"""The budget of the fuzzers.

`make test` gives each a fixed number of examples. SEQLOSS_FUZZ_EXAMPLES=100000 in the environment
runs them all for longer; hypothesis draws other examples each time.
"""

from __future__ import annotations

import os


def examples(usual: int) -> int:
    """How many examples a fuzzer tries, `usual` in `make test`."""
    return int(os.environ.get("SEQLOSS_FUZZ_EXAMPLES", usual))
