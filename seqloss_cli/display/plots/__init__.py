"""Give plots their look, and make the bytes of their files: the same for the same results.

The font is one that matplotlib brings, nothing is read from a user's matplotlibrc, and no date is
written. Texts stay texts: SVG has them as such, PDF embeds the font as TrueType. What all kinds of
plots draw alike, series with intervals and legends, stands here, too.
"""

from __future__ import annotations

import io
import logging
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from seqloss_cli.core.errors import load_extra
from seqloss_cli.core.escaping import escape
from seqloss_cli.display.scales import SERIES
from seqloss_cli.metrics.intervals import Estimate, unknown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["svg", "png", "pdf"]
MUTED = "#707070"
"""Colour of what is not data."""
LINES = ("-", "--", "-.", ":", (0, (4, 1, 1, 1)), (0, (1, 1)))
_MARKERS = "osD^vP"
_LETTERS_PER_INCH, _HANDLE = 15, 6
"""Letters of a legend; and those that the piece of line before a name takes up."""
_LINE = 0.135
"""Height of a line of a legend, inches."""
GAP = unknown(None, 0, "nothing is there")
"""Stands among estimates where the line is broken."""
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
    """The paper that a plot is printed on."""

    width: float
    """Inches."""
    height: float
    dpi: int
    title: str | None
    """Stands above the plot; by default there is none."""


def require_matplotlib() -> None:
    """Raise UsageError when it is not installed."""
    # matplotlib warns where it has no folder for its cache, which is no concern of the user's
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    load_extra("plot", "seqloss plot -o", "matplotlib", "matplotlib.figure")


def file_bytes(
    draw: Callable[[Figure], None],
    paper: Paper,
    format: Format,
    metadata: Mapping[str, str],
    warn: Callable[[str], None],
) -> bytes:
    """Return the bytes of a plot's file; `metadata` has a title, a creator and a description."""
    require_matplotlib()
    # imported here: it takes a second, which no other command should pay
    import matplotlib
    from matplotlib.figure import Figure

    made = io.BytesIO()
    with matplotlib.rc_context(), _warnings_to(warn, format):
        # first the defaults: a user's matplotlibrc would change the bytes
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(paper.width, paper.height), layout="constrained")
        draw(figure)
        if paper.title:
            figure.suptitle(escape(paper.title), fontsize=9)
        figure.savefig(made, format=format, dpi=paper.dpi, metadata=_keys(format, metadata))
    return made.getvalue()


def label_text(label: str) -> str:
    """Return a label that is not too long, and safe for terminals and for matplotlib."""
    text = escape(label)
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 3]}…{text[-(_LONGEST * 2 // 3 - 1) :]}"
    # matplotlib leaves labels that begin with an underscore out of the legend
    return f" {text}" if text.startswith("_") else text


def _keys(format: Format, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the metadata under the names of the format, without a date."""
    names = {"svg": ("Title", "Creator", "Description"), "pdf": ("Title", "Creator", "Subject"),
             "png": ("Title", "Software", "Description")}  # fmt: skip
    values = (escape(metadata[key]) for key in ("title", "creator", "description"))
    no_date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    return dict(zip(names[format], values, strict=True)) | no_date[format]


@contextmanager
def _warnings_to(warn: Callable[[str], None], format: Format) -> Iterator[None]:
    """Pass on matplotlib's warnings, each once; letters that the font lacks in one line."""
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


def legend(axes: Axes) -> None:
    """Put the legend above the axes, where it covers no data."""
    # `best`, matplotlib's own choice, depends on the data and is slow with many points
    handles, labels = axes.get_legend_handles_labels()
    width = axes.figure.bbox.width / axes.figure.dpi
    labels = _fitting(labels, width)
    columns = _columns(labels, width)
    axes.legend(handles, labels, loc="lower right", bbox_to_anchor=(1, 1.01), ncols=columns)


def legend_height(labels: Sequence[str], width: float) -> float:
    """Return about how high a legend is in a figure of that width, inches."""
    labels = _fitting(labels, width)
    lines = max(label.count("\n") + 1 for label in labels)
    rows = -(-len(labels) // _columns(labels, width))
    return _LINE * rows * lines


def _fitting(labels: Sequence[str], width: float) -> list[str]:
    """Return the labels in lines that a figure of that width, in inches, has room for."""
    room = max(8, int(_LETTERS_PER_INCH * width) - _HANDLE)
    parts = ([textwrap.fill(line, room) for line in label.split("\n")] for label in labels)
    return ["\n".join(lines) for lines in parts]


def _columns(labels: Sequence[str], width: float) -> int:
    longest = max(len(line) for label in labels for line in label.split("\n"))
    return max(1, min(3, len(labels), int(_LETTERS_PER_INCH * width / (longest + _HANDLE))))


def remark(axes: Axes, text: str) -> None:
    """Put a text in small letters above the axes, on the right."""
    axes.set_title(text, loc="right", fontsize=7, color=MUTED)


def draw_series(
    axes: Axes,
    x: Sequence[float],
    estimates: Sequence[Estimate],
    n: int,
    line: str,
    label: str | None = None,
) -> None:
    """Draw the n-th series, with an error bar where there is an interval."""
    axes.errorbar(
        x, [value_of(e) for e in estimates], yerr=reach_of(estimates), color=SERIES[n],
        marker=_MARKERS[n], linestyle=line, elinewidth=0.9, capsize=1.5, label=label,
    )  # fmt: skip


def draw_dots(
    axes: Axes, y: Sequence[float], estimates: Sequence[Estimate], n: int, label: str | None = None
) -> None:
    """Draw the n-th series as dots in rows, with a bar across where there is an interval."""
    axes.errorbar(
        [value_of(e) for e in estimates], y, xerr=reach_of(estimates), color=SERIES[n],
        marker=_MARKERS[n], linestyle="", elinewidth=0.9, capsize=1.5, label=label,
    )  # fmt: skip


def value_of(estimate: Estimate) -> float:
    """Return the value; not a number where there is none: nothing is drawn."""
    return math.nan if estimate.value is None else estimate.value


def reach_of(estimates: Iterable[Estimate]) -> list[list[float]]:
    """Return how far the N intervals reach below and above the values, (2, N).

    Not a number where there is no interval: nothing is drawn.
    """
    found: list[list[float]] = [[], []]
    for e in estimates:
        known = e.value is not None and e.low is not None and e.high is not None
        found[0].append(max(0.0, (e.value or 0) - (e.low or 0)) if known else math.nan)
        found[1].append(max(0.0, (e.high or 0) - (e.value or 0)) if known else math.nan)
    return found
