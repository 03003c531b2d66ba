"""Keep control characters of texts, paths and errors away from the terminal."""

from __future__ import annotations


def escape(text: str) -> str:
    """Escape what is not printable (ESC, C1, bidi controls, lone surrogates) as Python would."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
