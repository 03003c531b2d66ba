"""How long a page of results with 50,000 tokens takes in the Chromium of the system: until it is
there, for a frame while it is scrolled, and to colour it anew. `make bench-page`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.pages import large_results  # noqa: E402

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
DRAWN = "new Promise((done) => requestAnimationFrame(() => setTimeout(done)))"
SCROLL = """async () => {
  document.documentElement.style.scrollBehavior = 'auto';
  const times = [];
  document.getElementById('texts').scrollIntoView();
  let last = null;
  for (let i = 0; i < 90; i += 1) {
    scrollBy(0, 120);
    const now = await new Promise((done) => requestAnimationFrame(done));
    if (last !== null) times.push(now - last);
    last = now;
  }
  times.sort((a, b) => a - b);
  return [times[Math.floor(times.length / 2)], times[Math.floor(times.length * 0.95)]];
}"""


def measure(browser: Any, page: Path) -> str:
    tab = browser.new_page(viewport={"width": 1600, "height": 1000})
    start = time.perf_counter()
    tab.goto(page.as_uri())
    tab.evaluate(DRAWN)
    loaded = time.perf_counter() - start
    median, slowest = tab.evaluate(SCROLL)
    before = time.perf_counter()
    tab.select_option("#scale", "own")
    tab.evaluate(DRAWN)
    recoloured = time.perf_counter() - before
    tab.close()
    return (
        f"{page.stat().st_size / 1e6:.1f} MB: there after {loaded:.2f} s; frames while scrolling: "
        f"median {median:.0f} ms, slowest of 20 {slowest:.0f} ms; recoloured in {recoloured:.2f} s"
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=list(FLAGS)
        )
        for n_sequences in (1, 2000):
            page = Path(folder) / f"{n_sequences}.html"
            results = large_results(Path(folder) / f"{n_sequences}.jsonl", n_sequences)
            words = ["report", str(results), "-o", str(page)]
            subprocess.run([sys.executable, "-m", "seqloss_cli", *words], cwd=ROOT, check=True)
            print(f"{n_sequences} sequences, {measure(browser, page)}")
        browser.close()


if __name__ == "__main__":
    main()
