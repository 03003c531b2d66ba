"""The README's pictures: a page of results, docs/report.png, and a heat map, docs/heat.svg.

`make picture` scores sample texts with the built-in model, makes the page, and takes its picture in
the Chromium of the system (see `make test-browser`), with the pointer on a token. The heat map is
what `--view heat` prints to a terminal of all colours.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "report.png"
HEAT_MAP, COLUMNS, LINES = ROOT / "docs" / "heat.svg", 88, 14
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
WIDTH, HEIGHT, POINTED_AT = 1320, 1210, 17


def make_page(folder: Path) -> Path:
    results, page = folder / "results.jsonl", folder / "report.html"
    program = [sys.executable, "-m", "seqloss_cli"]
    score = ["score", "samples/text.txt", "samples/texts.jsonl", "--limit", "3", "--ranks"]
    score += ["--entropy", "--top-k", "5", "--context-lengths", "-o", str(results)]
    report = ["report", results.name, "-o", page.name, "--worst", "0"]
    for words, folder in ((score, ROOT), (report, results.parent)):
        subprocess.run([*program, *words], cwd=folder, check=True)
    return page


def draw_heat_map() -> None:
    words = ["score", "samples/text.txt", "--view", "heat", "--theme", "dark"]
    colours = {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "COLUMNS": str(COLUMNS)}
    printed = subprocess.run(
        [sys.executable, "-m", "seqloss_cli", *words],
        cwd=ROOT, env=os.environ | colours, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    console = Console(file=io.StringIO(), record=True, width=COLUMNS, force_terminal=True)
    for line in printed.splitlines()[:LINES]:
        console.print(Text.from_ansi(line))
    drawn = console.export_svg(title="seqloss " + " ".join(words[:4]), theme=SVG_EXPORT_THEME)
    # The picture loads nothing: without rich's fonts of elsewhere it takes those of the reader.
    HEAT_MAP.write_text(re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL))


def main() -> None:
    draw_heat_map()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = make_page(Path(folder))
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=list(FLAGS)
        )
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        tab.goto(page.as_uri())
        tab.locator(".pane span").nth(POINTED_AT).hover()
        # Texts take their place only once they are near: the heading is looked for after that.
        tab.evaluate("document.getElementById('h-charts').scrollIntoView({behavior: 'instant'})")
        tab.screenshot(path=PICTURE)
        browser.close()
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
