"""Write a page as one HTML file that needs nothing else: style, script and data are in it.

Its content security policy lets nothing be loaded, and lets only this very style and script work,
by their SHA-256; text that should be taken for markup would still do nothing.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import orjson
from markupsafe import Markup, escape

from seqloss_cli.core.columns import cell_columns
from seqloss_cli.display import scales
from seqloss_cli.display.html.page import Cell, Page, number
from seqloss_cli.display.scales import decimals

if TYPE_CHECKING:
    from jinja2 import Environment

_ACTIVE = re.compile("[<>&\u2028\u2029]")
_EDGES = {
    "loss": scales.LOSS_EDGES,
    "kl": scales.KL_EDGES,
    "difference": scales.DIFFERENCE_EDGES,
    "rank": scales.RANK_EDGES,
}
_PALETTES = {"s": scales.SEQUENTIAL, "d": scales.DIVERGING, "r": scales.RANKED}


def page_bytes(page: Page) -> bytes:
    """Return the page in UTF-8."""
    # the policy holds hashes of the very texts between the tags: nothing may be put beside them
    style, script = _style(), _asset("report.js")
    template = _environment().get_template("report.html.j2")
    made = template.render(
        page=page,
        style=Markup(style),
        script=Markup(script),
        policy=policy(style, script),
        data=Markup(json_text({**page.data, "columns": _columns(page), "edges": _EDGES})),
        difference_edges=scales.DIFFERENCE_EDGES,
    )
    # a title from the command line may hold bytes that were no UTF-8
    return made.encode("utf-8", "backslashreplace")


def _columns(page: Page) -> list[dict[str, Any]]:
    """Return the columns that the page's tokens have, as the script shows them."""
    return [
        {
            "name": column.csv,
            "key": column.page_key,
            "whole": column.kind == "whole",
            "power": column.power,
        }
        for column in cell_columns()
        if any(column.page_key in pane.data for pane in page.panes)
    ]


def policy(style: str, script: str) -> str:
    """Return the content security policy that lets only this style and this script work."""
    return (
        f"default-src 'none'; style-src 'sha256-{_sha256(style)}'; "
        f"script-src 'sha256-{_sha256(script)}'; img-src data:; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def json_text(value: Any) -> str:
    """Return JSON in which nothing can end the element that it stands in."""
    # `</script>` in a text would end the script, U+2028 a line of it
    raw = orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
    return _ACTIVE.sub(lambda match: f"\\u{ord(match[0]):04x}", raw)


@cache
def _asset(name: str) -> str:
    folder = resources.files("seqloss_cli.display.html") / "assets"
    return (folder / name).read_text(encoding="utf-8")


@cache
def _style() -> str:
    """Return the colours of the scales, then the style sheet that uses them."""
    light, dark = _variables("light"), _variables("dark")
    themes = (
        f":root{{{light}}}\n"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}\n"
        f":root[data-theme=dark]{{{dark}}}\n"
        f"@media print{{:root:root,:root:root[data-theme=dark]{{{light}}}}}\n"
    )
    return themes + _asset("report.css") + "".join(_rules())


def _variables(theme: scales.Theme) -> str:
    parts = [f"color-scheme:{theme};"]
    for letter, palette in _PALETTES.items():
        for n, paint in enumerate(palette[theme]):
            parts += _paint(f"{letter}{n}", paint)
    return "".join(parts)


def _paint(name: str, paint: scales.Paint) -> list[str]:
    # `transparent` and `inherit` keep the page's own colours, in both themes
    ground, text = paint.background or "transparent", paint.text or "inherit"
    return [f"--{name}:{ground};", f"--{name}t:{text};"]


def _rules() -> list[str]:
    """Return a class for each step of each palette, and one for each fill of bars."""
    found = [
        f".{letter}{n}{{background:var(--{letter}{n});color:var(--{letter}{n}t)}}\n"
        for letter, palette in _PALETTES.items()
        for n in range(len(palette["light"]))
    ]
    found += [f".f{n}{{fill:var(--s{n})}}\n" for n in range(1, len(scales.LOSS_EDGES) + 1)]
    n_edges = len(scales.DIFFERENCE_EDGES)
    # the middle step is transparent, as the first of the others: it gets no fill
    steps = (n for n in range(n_edges + 1) if n != n_edges // 2)
    return found + [f".g{n}{{fill:var(--d{n})}}\n" for n in steps]


@cache
def _environment() -> Environment:
    # imported here: commands import other modules of this room that never write a page
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("seqloss_cli.display.html"),
        autoescape=True,
        # a misspelt name would leave a figure out of the page without a word
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["figure"] = figure
    made.tests["cell"] = lambda value: isinstance(value, Cell)
    return made


def figure(value: Cell | str, is_loss: bool = False) -> Markup:
    """Return a figure with its interval; the script turns losses into bits."""
    if isinstance(value, str):
        return escape(value)
    digits = value.digits
    if value.low is not None and value.high is not None:
        digits = decimals([value.value, value.low, value.high], digits)
    shown = _value(value.value, digits, is_loss)
    if value.low is None or value.high is None:
        return shown
    low, high = (_value(end, digits, is_loss) for end in (value.low, value.high))
    return Markup('{} <span class="interval">[{}, {}]</span>').format(shown, low, high)


def _value(value: float | None, digits: int, is_loss: bool) -> Markup:
    if value is None:
        return Markup("–")
    # the script reads the value, nine digits of it, and not what is shown
    kind = Markup(" class=l") if is_loss else Markup("")
    return Markup('<data value="{}"{}>{}</data>').format(
        f"{value:.9g}".replace("inf", "Infinity"), kind, number(value, digits)
    )
