"""The README's picture of a page of results, docs/report.png: `make picture`.

Scores a sample text with the built-in model, makes the page, and takes its picture in the Chromium
of the system (see `make test-browser`), with the pointer on a token.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "report.png"
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


def main() -> None:
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
