"""Keep control characters of texts, paths and errors away from the terminal; show white space."""

from __future__ import annotations

WHITE_SPACE = {" ": "·", "\n": "↵", "\r": "␍", "\t": "→"}
"""Signs that make white space visible."""


def escape(text: str) -> str:
    """Escape characters that are not printable as Python would: ESC, C1, lone surrogates."""
    # rich passes ESC, OSC and bidirectional controls through: a text could paint over others.
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def shown_path(name: str) -> str:
    r"""Return a path as text that can be encoded: bytes that are not UTF-8 become `\xff`."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
