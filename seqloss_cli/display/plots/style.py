"""How plots look, and the bytes of their files: the same for the same results.

The font is one that matplotlib brings, nothing is read from a user's matplotlibrc, and no date is
written. Texts stay texts: SVG has them as such, PDF embeds the font as TrueType.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from seqloss_cli.core.escaping import escape
from seqloss_cli.core.extras import load_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Format = Literal["svg", "png", "pdf"]
MUTED = "#707070"
"""Of what is not data."""
_LONGEST = 40
_LACKS = re.compile(r"Glyph (\d+) .*missing from font")
_STYLE: Mapping[Any, Any] = {
    "font.family": ["sans-serif"],  # with the next line in that order: what SVG falls back to
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 9,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "text.parse_math": False,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.minor.size": 1.8,
    "ytick.minor.size": 1.8,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.6,
    "patch.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "seqloss",
    "pdf.fonttype": 42,
}


@dataclass(frozen=True, slots=True)
class Paper:
    """What a plot is printed on."""

    width: float
    """Inches."""
    height: float
    dpi: int
    title: str | None
    """Above the plot; by default there is none."""


def require_matplotlib() -> None:
    """Raises UsageError when it is not installed."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # of caches that it cannot keep
    load_extra("plot", "seqloss plot -o", "matplotlib", "matplotlib.figure")


def drawn(
    draw: Callable[[Figure], None],
    paper: Paper,
    format: Format,
    metadata: Mapping[str, str],
    warn: Callable[[str], None],
) -> bytes:
    """The file's bytes. `metadata` has a title, a creator and a description."""
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    made = io.BytesIO()
    with matplotlib.rc_context(), _warnings_to(warn, format):
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(paper.width, paper.height), layout="constrained")
        draw(figure)
        if paper.title:
            figure.suptitle(escape(paper.title), fontsize=9)
        figure.savefig(made, format=format, dpi=paper.dpi, metadata=_keys(format, metadata))
    return made.getvalue()


def named(label: str) -> str:
    """A label that is neither too long nor taken for a command by a terminal or by matplotlib."""
    text = escape(label)
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 3]}…{text[-(_LONGEST * 2 // 3 - 1) :]}"
    return f" {text}" if text.startswith("_") else text


def _keys(format: Format, metadata: Mapping[str, str]) -> dict[str, Any]:
    """As the format calls them; what would name a date is left out."""
    title, creator, description = (
        escape(metadata[key]) for key in ("title", "creator", "description")
    )
    if format == "png":
        return {"Title": title, "Software": creator, "Description": description}
    if format == "pdf":
        keys = {"Title": title, "Creator": creator, "Subject": description}
        return {**keys, "CreationDate": None}
    return {"Title": title, "Creator": creator, "Description": description, "Date": None}


@contextmanager
def _warnings_to(warn: Callable[[str], None], format: Format) -> Iterator[None]:
    """Matplotlib's warnings, each once, in a line of ours; letters that the font lacks in one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    lacking: dict[str, None] = {}
    for message in dict.fromkeys(str(each.message) for each in caught):
        if found := _LACKS.match(message):
            lacking[chr(int(found[1]))] = None
        else:
            warn(f"warning: {message}")
    if lacking and format != "svg":  # there texts are texts, in the reader's fonts
        warn(
            f"warning: the font has no {escape(''.join(lacking))}: boxes stand in their place; "
            "-o FILE.svg keeps them"
        )
