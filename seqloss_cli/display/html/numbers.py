"""How figures are written on a page; `report.js` writes those in bits likewise."""

from __future__ import annotations

import math


def number(value: float, digits: int) -> str:
    """Fixed digits and a true minus; large and tiny ones in powers of ten."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value != 0 and not 10**-digits <= abs(value) < 1e9:
        return f"{value:.4g}".replace("-", "−")
    return f"{value:,.{digits}f}".replace("-", "−")


def signed(value: float, digits: int) -> str:
    return number(value, digits) if value < 0 else f"+{number(value, digits)}"
