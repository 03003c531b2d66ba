"""What tests of several rooms share: builders, oracles, made results, readers of output."""

import pytest

pytest.register_assert_rewrite(*(f"helpers.{name}" for name in ("oracles", "program", "terminals")))
