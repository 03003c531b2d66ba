"""Pages of results in a real Chromium (`make test-browser`): what a browser makes of them.

Pictures of every view are written to a folder whose name is printed; SEQLOSS_PICTURES may name one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.colours import GROUND, contrast, luminance
from helpers.pages import EVIL, large_results, text_row
from helpers.program import ROOT, in_process
from helpers.results import ranked_row, write, write_rankings

pytestmark = pytest.mark.browser
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
_STUDENT = ("-m", ROOT / "samples/checkpoints/step-600")


class Watched:
    """A page with what it asked for and complained of."""

    def __init__(self, page: Any) -> None:
        self.page, self.requests, self.complaints = page, list[str](), list[str]()
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield found
        found.close()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("SEQLOSS_PICTURES")
    folder = Path(named) if named else tmp_path_factory.mktemp("pictures")
    folder.mkdir(exist_ok=True)
    print(f"\npictures: {folder}")
    return folder


@pytest.fixture
def opened(browser: Any) -> Callable[..., Any]:
    @contextmanager
    def opening(path: Path, width: int = 1600, height: int = 1000, **context: Any) -> Iterator[Any]:
        made = browser.new_context(viewport={"width": width, "height": height}, **context)
        watched = Watched(made.new_page())
        watched.page.goto(path.as_uri())
        yield watched
        assert watched.requests == [path.as_uri()]
        assert watched.complaints == []
        made.close()

    return opening


def report(*arguments: object) -> Path:
    path = Path(str(arguments[-1]))
    done = in_process("report", *arguments[:-1], "-o", path, "--force")
    assert done.exit_code == 0, done.stderr
    return path


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind."""
    folder, found = tmp_path_factory.mktemp("pages"), {}
    extras = ("--ranks", "--entropy", "--top-k", "5", "--context-lengths")
    texts = (ROOT / "samples/text.txt", ROOT / "samples/texts.jsonl")
    runs = {
        "demo": ("score", *texts, *extras),
        "earlier": ("score", *texts, *extras, *_STUDENT),
        "pairs": ("cond", ROOT / "samples/pairs.jsonl", *extras),
        "plain": ("score", texts[1], "--no-tokens"),
        "diverged": ("diverge", *texts, *_STUDENT, "--teacher", "demo"),
        "ranked": ("rank", ROOT / "samples/choices.jsonl", "--separator", " ", "--pmi", "--tokens"),
    }
    for name, words in runs.items():
        done = in_process(*words, "-o", folder / f"{name}.jsonl")
        assert done.exit_code == 0, done.stderr
        found[name] = report(folder / f"{name}.jsonl", folder / f"{name}.html")
    found["two"] = report(folder / "earlier.jsonl", folder / "demo.jsonl", folder / "two.html")
    losses = [float(n) / 2 for n in range(len(EVIL))]
    rows = [text_row("<b>evil</b>\u202e", [*EVIL, "nul\0"], [*losses, 1.0])]
    evil = write(folder / "evil.jsonl", rows, model="</title><script>alert(3)</script>")
    found["evil"] = report(evil, folder / "evil.html")
    rows = [ranked_row("".join(EVIL), ["nul\0", *EVIL], [-1.0] * (len(EVIL) + 1), [3])]
    wholes = write_rankings(folder / "wholes.jsonl", rows)
    found["wholes"] = report(wholes, folder / "wholes.html")
    return found


# -- safe ----------------------------------------------------------------------------------------


def test_nothing_breaks_out(pages: dict[str, Path], opened: Any) -> None:
    with opened(pages["evil"]) as watched:
        page, text = watched.page, "".join([*EVIL, "nul\0"])
        assert page.evaluate("document.querySelector('.pane').textContent") == text
        assert page.evaluate("document.scripts.length") == 2
        assert page.locator("img, iframe, [onclick], [onerror]").count() == 0
        assert page.title().startswith("Losses of ")
        for n in range(len(EVIL)):
            page.evaluate(f"document.querySelectorAll('.pane span')[{n + 1}].focus()")
            page.locator(".pane span").nth(n + 1).hover(force=True)


def test_choices_stay_texts(pages: dict[str, Path], opened: Any) -> None:
    with opened(pages["wholes"]) as watched:
        page = watched.page
        shown = page.evaluate("[...document.querySelectorAll('.pane')].map((p) => p.textContent)")
        assert shown == ["nul\0", *EVIL]
        assert page.evaluate("document.querySelector('.prompt p').textContent") == "".join(EVIL)
        assert page.evaluate("document.scripts.length") == 2
        assert page.locator("img, iframe, [onclick], [onerror]").count() == 0
        page.locator(".pane span").first.hover()
        assert "mean loss per token\n1.0000 nats" in page.locator("#details").inner_text()


def test_the_policy_stops_what_would_get_in(
    pages: dict[str, Path], browser: Any, tmp_path: Path
) -> None:
    path = tmp_path / "broken.html"
    bad = "<script>window.bad=1</script><img src=x onerror='window.bad=2'></body>"
    path.write_text(pages["demo"].read_text().replace("</body>", bad))
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_timeout(200)
    assert page.evaluate("window.bad") is None
    page.close()


def test_texts_are_the_sources_and_are_copied_as_they_are(
    pages: dict[str, Path], opened: Any
) -> None:
    source = (ROOT / "samples/text.txt").read_text()
    with opened(pages["demo"]) as watched:
        page = watched.page
        assert page.evaluate("document.querySelector('.pane').textContent") == source
        selected, copied = page.evaluate(COPY)
        assert selected.rstrip("\n") == source.rstrip("\n")
        assert copied == source


COPY = """(() => {
  const pane = document.querySelector('.pane');
  getSelection().selectAllChildren(pane);
  const event = new ClipboardEvent('copy', {
    clipboardData: new DataTransfer(), bubbles: true, cancelable: true });
  pane.dispatchEvent(event);
  return [getSelection().toString(), event.clipboardData.getData('text/plain')];
})()"""


# -- seen and used -------------------------------------------------------------------------------


def test_hover_and_keys(pages: dict[str, Path], opened: Any) -> None:
    with opened(pages["demo"]) as watched:
        page = watched.page
        spans = page.locator(".pane").first.locator("span")
        spans.nth(5).hover()
        shown = page.locator("#details").inner_text()
        for word in ("position", "id", "loss", "nats", "bits", "probability", "rank", "entropy",
                     "context", "favourites"):  # fmt: skip
            assert word in shown
        assert page.locator("#details").get_attribute("aria-live") == "polite"
        page.locator("#texts").scroll_into_view_if_needed()
        stops = page.evaluate("document.querySelectorAll('.pane [tabindex=\"0\"]').length")
        assert stops == 1
        page.evaluate("document.querySelector('.pane [tabindex=\"0\"]').focus()")
        before = page.evaluate(FOCUS)
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert page.evaluate(FOCUS) == [before[0], before[1] + 2]
        assert f"position\n{before[1] + 2}\n" in page.locator("#details").inner_text()
        spans.nth(8).hover()
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowRight")
        for top in (24, -48):
            page.evaluate(f"scrollBy({{ top: {top}, behavior: 'instant' }})")
            page.wait_for_timeout(200)  # another token is under the pointer, which rests
            assert f"position\n{before[1] + 2}\n" in page.locator("#details").inner_text()
        page.keyboard.press("ArrowDown")
        assert page.evaluate(FOCUS)[1] > before[1] + 2
        here = page.evaluate(FOCUS)
        page.keyboard.press("Tab")
        page.keyboard.press("Shift+Tab")
        assert page.evaluate(FOCUS) == here
        page.keyboard.press("Escape")
        assert page.locator("#details").is_hidden()


FOCUS = """(() => {
  const span = document.activeElement, pane = span.parentElement;
  return [[...document.querySelectorAll('.pane')].indexOf(pane), [...pane.children].indexOf(span)];
})()"""


STOPS = """document.activeElement.closest('.pane') ? 'texts'
  : document.activeElement.closest('.places') ? 'places'
  : document.activeElement.closest('thead') ? 'header'
  : document.activeElement.closest('#sequences') ? 'sequences' : document.activeElement.tagName"""


def stops_of(page: Any) -> list[str]:
    """Where Tab stops, until it leaves the page."""
    page.evaluate("document.body.focus()")
    found = list[str]()
    for _ in range(400):
        page.keyboard.press("Tab")
        if (stop := page.evaluate(STOPS)) == "BODY":
            return found
        found.append(stop)
    return found


@pytest.mark.parametrize("name", ["pairs", "two", "ranked", "diverged", "plain"])
def test_tab_goes_by_regions(pages: dict[str, Path], opened: Any, name: str) -> None:
    """Of a table's links, its headers and all texts it reaches one each."""
    with opened(pages[name]) as watched:
        seen = stops_of(watched.page)
        assert seen[0] == "A"  # to the texts at once
        assert len(seen) <= 32, seen
        for region in ("texts", "places", "header", "sequences"):
            assert seen.count(region) <= (2 if region == "header" else 1), seen
        n_texts = watched.page.locator(".pane").count()
        assert seen.count("texts") == min(1, n_texts)
        assert ("sequences" in seen) == bool(n_texts)


def test_many_texts_are_no_more_stops(opened: Any, tmp_path: Path) -> None:
    path = report(large_results(tmp_path / "r.jsonl", 300), tmp_path / "r.html")
    with opened(path) as watched:
        assert len(stops_of(watched.page)) <= 32


def test_keys_walk_through_tables_and_texts(pages: dict[str, Path], opened: Any) -> None:
    with opened(pages["demo"]) as watched:
        page = watched.page
        active = "document.activeElement"
        for body in (".places", "#sequences"):
            page.locator(f"{body} a").first.focus()
            for key, place in (("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1), ("End", -1)):
                page.keyboard.press(key)
                link = page.locator(f"{body} a").nth(place)
                assert link.evaluate(f"link => link === {active}"), (body, key)
                assert link.get_attribute("tabindex") == "0"
                assert page.locator(f"{body} a[tabindex='0']").count() == 1
        page.locator("#sequences th button").first.focus()
        page.keyboard.press("ArrowRight")
        assert page.evaluate(f"{active}.textContent") == "sequence"
        page.evaluate("document.querySelector('.pane [tabindex=\"0\"]').focus()")
        page.keyboard.press("PageDown")
        assert page.evaluate(FOCUS)[0] == 1
        page.keyboard.press("Home")
        page.keyboard.press("ArrowLeft")
        n_first = page.locator(".pane").first.locator("span").count()
        assert page.evaluate(FOCUS) == [0, n_first - 1]
        page.keyboard.press("ArrowRight")
        assert page.evaluate(FOCUS)[0] == 1
        page.keyboard.press("PageUp")
        assert page.evaluate(FOCUS)[0] == 0


def test_tab_reaches_what_a_search_leaves(pages: dict[str, Path], opened: Any) -> None:
    with opened(pages["demo"]) as watched:
        page = watched.page
        page.fill("#search", "gulls")
        page.locator("#search").focus()
        seen = [page.keyboard.press("Tab") or page.evaluate(STOPS) for _ in range(4)]
        assert seen[:3] == ["header", "sequences", "texts"]
        page.fill("#search", "no such word")
        assert page.locator("#found").inner_text() == (
            "No hits: none of 5 sequences has “no such word” in its id or text"
        )
        assert page.locator("#no-hits").is_visible()
        page.fill("#search", "")
        assert page.locator("#no-hits").is_hidden()
        assert page.locator("#found").inner_text() == ""


def test_worst_tokens_lead_to_their_places(pages: dict[str, Path], opened: Any) -> None:
    for name in ("demo", "two"):
        with opened(pages[name]) as watched:
            page = watched.page
            link = page.locator(".places a").nth(3)
            target = link.get_attribute("href").removeprefix("#")
            link.click()
            assert page.evaluate("document.activeElement.id") == target
            assert page.evaluate(
                "(() => { const box = document.activeElement.getBoundingClientRect();"
                " return box.top >= 0 && box.bottom <= innerHeight; })()"
            )


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("metric", ["loss", "rank", "entropy"])
@pytest.mark.parametrize("scale", ["fixed", "own"])
def test_colours_are_monotone(
    pages: dict[str, Path], opened: Any, theme: str, metric: str, scale: str
) -> None:
    with opened(pages["demo"], color_scheme=theme) as watched:
        page = watched.page
        page.select_option("#metric", metric)
        page.select_option("#scale", scale)
        page.uncheck("#marks")
        found = page.evaluate(SHADES, {"loss": "l", "rank": "r", "entropy": "e"}[metric])
    colours: dict[float, set[float]] = {}
    for value, colour in found:
        colours.setdefault(value, set()).add(shade_of(colour, theme))
    assert all(len(each) == 1 for each in colours.values())
    shades = [next(iter(colours[value])) for value in sorted(colours)]
    assert shades == sorted(shades, reverse=theme == "light")
    assert len(set(shades)) >= 3


def shade_of(colour: str, theme: str) -> float:
    """Of a colour as browsers name it; what is transparent is the ground."""
    parts = [float(x) for x in colour.removeprefix("rgba(").removeprefix("rgb(")[:-1].split(",")]
    if len(parts) == 4 and not parts[3]:
        return luminance(GROUND[theme])
    return luminance("#{:02x}{:02x}{:02x}".format(*(int(p) for p in parts[:3])))


SHADES = """(key) => {
  const data = JSON.parse(document.getElementById('data').textContent), found = [];
  for (const pane of document.querySelectorAll('.pane')) {
    const own = data.panes[Number(pane.dataset.p)];
    if (own.n || !own[key]) continue;
    [...pane.children].forEach((span, n) => {
      if (own[key][n] !== null) found.push([own[key][n], getComputedStyle(span).backgroundColor]);
    });
  }
  return found;
}"""


def test_switches(pages: dict[str, Path], opened: Any) -> None:
    with opened(pages["demo"]) as watched:
        page = watched.page
        figure = page.locator(".figure dd").nth(1).locator("data").first
        nats = figure.inner_text()
        page.select_option("#unit", "bits")
        assert float(figure.inner_text()) == pytest.approx(float(nats) / np.log(2), abs=1e-4)
        assert page.locator("svg .nats").first.is_hidden()
        page.select_option("#unit", "nats")
        assert figure.inner_text() == nats
        page.select_option("#theme", "dark")
        assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == (
            "rgb(12, 13, 15)"
        )
    with opened(pages["pairs"]) as watched:
        page = watched.page
        prompt = page.locator(".pane .m").first
        colour = "el => getComputedStyle(el).backgroundColor"
        assert prompt.evaluate(colour) == "rgba(0, 0, 0, 0)"
        page.uncheck("#marks")
        assert prompt.evaluate(colour) != "rgba(0, 0, 0, 0)"
    with opened(pages["two"]) as watched:
        page = watched.page
        page.select_option("#metric", "difference")
        assert page.locator(".pane-box.a span[class^=d]").count() > 10
        page.locator(".pane.difference span[class^=d]").nth(3).hover()
        details = page.locator("#details").inner_text()
        sign = details.split("B − A\n")[1][0]
        assert f"B’s loss is {dict(zip('+−', ('higher', 'lower'), strict=True))[sign]}" in details
        page.uncheck("[data-shows=a]")
        assert page.locator(".pane-box.a").first.is_hidden()
        assert page.locator(".pane-box.b").first.is_visible()


def test_divergences(pages: dict[str, Path], opened: Any) -> None:
    source = (ROOT / "samples/text.txt").read_text()
    with opened(pages["diverged"]) as watched:
        page = watched.page
        assert page.evaluate("document.querySelector('.pane').textContent") == source
        page.locator(".pane").first.locator("span").nth(5).hover()
        shown = page.locator("#details").inner_text()
        for word in ("position", "KL", "cross-entropy", "gold entropy", "model’s loss", "p(gold)",
                     "Δp", "same favourite"):  # fmt: skip
            assert word in shown
        assert "The model’s probability of it is" in shown
        page.locator(".pane span.u").first.hover()
        assert "KL\nnot scored" in page.locator("#details").inner_text()
        keys = {"kl": "kl", "cross": "ce", "gold_entropy": "te", "loss": "l", "gold_loss": "tl"}
        page.uncheck("#marks")
        for metric, key in keys.items():
            page.select_option("#metric", metric)
            found = sorted((value, shade_of(c, "light")) for value, c in page.evaluate(SHADES, key))
            shades = [shade for _, shade in found]
            assert shades == sorted(shades, reverse=True)
            assert len(set(shades)) >= 3
        page.select_option("#metric", "gap")
        assert page.locator(".pane span[class^=d]").count() > 20
        assert page.locator("#legend li").count() == 9
        page.locator(".places a").first.click()
        assert page.evaluate("document.activeElement.closest('.pane') !== null")
    with opened(pages["diverged"], java_script_enabled=False) as watched:
        assert watched.page.locator(".pane span.s4").first.is_visible()
        assert watched.page.locator("#legend .key").count() == 7


def test_rankings(pages: dict[str, Path], opened: Any) -> None:
    with opened(pages["ranked"]) as watched:
        page = watched.page
        assert page.locator(".choice").count() == 14
        gold = page.locator(".choice.gold").first
        assert "right answer" in gold.inner_text()
        assert "preferred by sum" in gold.inner_text()
        page.locator(".pane").first.locator("span").nth(1).hover()
        assert "probability" in page.locator("#details").inner_text()
        score = gold.locator(".scores data").first
        nats = float(score.inner_text().replace("−", "-"))
        page.select_option("#unit", "bits")
        bits = float(score.inner_text().replace("−", "-"))
        assert bits == pytest.approx(nats / np.log(2), abs=1e-3)
        header = page.locator("#sequences th", has_text="margin")
        header.locator("button").click()
        cells = "rows => rows.map(r => Number(r.cells[4].querySelector('data').value))"
        values = page.locator("#sequences tbody tr").evaluate_all(cells)
        assert values == sorted(values, reverse=True)
        page.fill("#search", "banana")
        assert page.locator(".sequence:visible").count() == 1
        assert page.locator("#found").inner_text() == "1 of 5 questions"
    with opened(pages["ranked"], java_script_enabled=False) as watched:
        assert watched.page.locator(".choice .pane span.s5").first.is_visible()
        assert watched.page.locator(".mark.gold", has_text="right answer").count() == 5


def test_every_figure_turns_into_bits(opened: Any, tmp_path: Path) -> None:
    """Also those that are written in powers of ten."""
    losses = [1234.567891, 1e12, 3.3e-5, 1e-7, 0.0, 2.5]
    rows = [text_row("huge", list("abcdef"), losses), text_row("tiny", list("xy"), [2e-6, 7e-5])]
    path = report(write(tmp_path / "r.jsonl", rows), tmp_path / "r.html")
    with opened(path) as watched:
        page = watched.page
        page.select_option("#unit", "bits")
        figures = page.evaluate(
            "[...document.querySelectorAll('data.l')].map((e) => [e.value, e.textContent])"
        )
        assert len(figures) > 15
        for nats, shown in figures:
            bits = float(shown.replace(",", "").replace("−", "-"))
            assert bits == pytest.approx(float(nats) / np.log(2), rel=1e-3, abs=5e-5)
            assert bits or not float(nats)


def test_what_is_the_same_is_of_one_colour_on_either_side(opened: Any, tmp_path: Path) -> None:
    """On the scale of equal shares, too: what does not differ is not coloured, and what differs as
    much in the other direction is as far from the middle."""
    sides = []
    for name, losses in (("a", [1.0, 1.0, 1.0, 5.0, 2.0]), ("b", [1.0, 1.0, 1.0, 2.0, 5.0])):
        rows = [text_row("x", list("uvxyz"), losses)]
        sides.append(write(tmp_path / f"{name}.jsonl", rows, model=name, weights_sha256=name * 64))
    with opened(report(*sides, tmp_path / "two.html")) as watched:
        page = watched.page
        page.select_option("#scale", "own")
        classes = "spans => spans.map((span) => span.className.split(' ')[0])"
        found = page.locator(".pane.difference span").evaluate_all(classes)
        assert found == ["u", "d4", "d4", "d4", "d0", "d8"]
    same = write(tmp_path / "s.jsonl", [text_row("x", list("uvxyz"), [3.0] * 5)])
    with opened(report(same, tmp_path / "one.html")) as watched:
        page = watched.page
        page.select_option("#scale", "own")
        assert page.locator(".pane span").evaluate_all(classes) == ["u", *["s0"] * 5]


def test_details_are_the_figures_of_the_results(pages: dict[str, Path], opened: Any) -> None:
    """To the last digit that is shown."""
    lines = map(json.loads, (pages["pairs"].with_suffix(".jsonl")).read_text().splitlines())
    rows = [line for line in lines if line["type"] == "sequence"]
    n_checked = 0
    with opened(pages["pairs"]) as watched:
        page = watched.page
        for number, row in enumerate(rows):
            for found in page.evaluate(DETAILS, number):
                if found.get("loss", "not scored") == "not scored":
                    continue
                t = int(found["position"])
                loss, n_checked = row["token_losses"][t], n_checked + 1
                assert found["id"] == str(row["token_ids"][t])
                assert found["loss"] == f"{loss:.4f} nats"
                assert found["in bits"] == f"{loss / np.log(2):.4f} bits"
                assert found["rank"] == f"{row['ranks'][t]:,}"
                assert found["entropy"] == f"{row['entropies'][t]:.4f} nats"
                assert found["context"] == f"{row['context_lengths'][t]} tokens"
    assert n_checked > 40


DETAILS = """(number) => [...document.querySelectorAll('.pane')[number].children].map((span) => {
  span.tabIndex = -1;
  span.focus();
  const names = [...document.querySelectorAll('#details dt')];
  return Object.fromEntries(names.map((dt) => [dt.textContent, dt.nextSibling.textContent]));
})"""


def test_details_can_be_closed_without_keys(pages: dict[str, Path], opened: Any) -> None:
    with opened(pages["demo"], 360, 800, has_touch=True) as watched:
        page = watched.page
        page.locator(".pane").first.locator("span").nth(4).tap()
        page.locator("#details .close").tap()
        assert page.locator("#details").is_hidden()


def test_sort_and_search(pages: dict[str, Path], opened: Any) -> None:
    with opened(pages["demo"]) as watched:
        page = watched.page
        header = page.locator("#sequences th", has_text="mean loss")
        cells = "rows => rows.map(r => Number(r.cells[4].querySelector('data').value))"
        header.locator("button").click()
        assert header.get_attribute("aria-sort") == "descending"
        values = page.locator("#sequences tbody tr").evaluate_all(cells)
        assert values == sorted(values, reverse=True)
        header.locator("button").focus()
        page.keyboard.press("Enter")
        assert header.get_attribute("aria-sort") == "ascending"
        assert page.locator("#sequences tbody tr").evaluate_all(cells) == values[::-1]
        page.fill("#search", "unicode")
        assert page.locator("#sequences tbody tr:visible").count() == 1
        assert page.locator(".sequence:visible").count() == 1
        assert "1 of" in page.locator("#found").inner_text()
        page.fill("#search", "")
        assert page.locator(".sequence:visible").count() == len(values)
        page.fill("#search", "docs11")  # its id, and its number of tokens
        assert page.locator(".sequence:visible").count() == 0


def test_without_a_script_texts_and_tables_are_there(pages: dict[str, Path], opened: Any) -> None:
    with opened(pages["demo"], java_script_enabled=False) as watched:
        page = watched.page
        assert page.locator(".pane span.s5").first.is_visible()
        assert page.locator("#sequences tbody tr").count() > 3
        assert page.locator("#metric").is_hidden()
        assert page.locator("#legend .key").count() == 7


WIDTHS = (320, 360, 400, 560, 768, 1000, 1024, 1280, 1440, 1600)
CHARTS = """(() => [...document.querySelectorAll('.chart')].flatMap((card) => {
  const edge = card.getBoundingClientRect();
  return [...card.querySelectorAll('svg text, .axis-name')].filter((e) => e.getClientRects().length
    && e.getBoundingClientRect().width).map((e) => {
    const box = e.getBoundingClientRect(), own = e.getScreenCTM ? e.getScreenCTM() : { a: 1, d: 1 };
    return {
      words: e.textContent, svg: Boolean(e.getScreenCTM),
      size: parseFloat(getComputedStyle(e).fontSize) * Math.min(own.a, own.d),
      inside: box.left >= edge.left && box.right <= edge.right,
      chart: card.className, left: box.left, right: box.right, top: box.top, bottom: box.bottom,
    };
  });
}))()"""


@pytest.mark.parametrize("name", ["demo", "two", "diverged", "ranked"])
def test_letters_of_charts_can_be_read_at_every_width(
    pages: dict[str, Path], opened: Any, name: str
) -> None:
    """11 pixels at least, within their card, and none on another."""
    with opened(pages[name]) as watched:
        page = watched.page
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            for unit in ("nats", "bits"):
                page.select_option("#unit", unit)
                found = page.evaluate(CHARTS)
                assert len(found) > 15
                assert page.evaluate(LEGENDS) == [], width
                assert [each for each in found if each["size"] < 11] == [], width
                assert [each for each in found if not each["inside"]] == [], width
                assert list(overlapping(found)) == [], width


LEGENDS = """[...document.querySelectorAll('.legend li, .legend p')].filter((e) =>
  e.scrollWidth > e.clientWidth || parseFloat(getComputedStyle(e).fontSize) < 11)
  .map((e) => e.textContent)"""


def overlapping(found: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Pairs of the texts of one chart that lie upon each other."""
    texts = [each for each in found if each["svg"]]
    for n, one in enumerate(texts):
        for other in texts[n + 1 :]:
            apart = (
                one["right"] <= other["left"] or other["right"] <= one["left"]
                or one["bottom"] <= other["top"] + 4 or other["bottom"] <= one["top"] + 4
            )  # fmt: skip
            if one["chart"] == other["chart"] and not apart:
                yield one["words"], other["words"]


OUTSIDE = """(() => {
  const cards = '.card, .figure, .sequence, .choice, .notes, .scroll, .prompt';
  const signs = (e) => {
    const style = getComputedStyle(e);
    return style.maskImage !== 'none' || style.textOverflow === 'ellipsis' || e.matches('.scroll')
      && style.backgroundImage.includes('gradient');
  };
  const found = [];
  for (const card of document.querySelectorAll(cards)) {
    const edge = card.getBoundingClientRect();
    if (!card.checkVisibility() || !edge.width) continue;
    if (edge.right > innerWidth + 0.5) found.push(['wider than the window', card.className]);
    for (const each of card.querySelectorAll('*')) {
      const seen = each.checkVisibility() && each.getClientRects().length;
      if (!seen || each.closest('svg *')) continue;
      const box = each.getBoundingClientRect();
      const clips = getComputedStyle(each).overflowX !== 'visible';
      if (clips && each.scrollWidth > each.clientWidth + 1 && each.clientWidth && !signs(each)
        && !each.matches('svg, select, .meter')) found.push(['cut', each.outerHTML.slice(0, 90)]);
      let up = each.parentElement;
      while (up !== card && getComputedStyle(up).overflowX === 'visible') up = up.parentElement;
      if (up !== card || card.matches('.scroll')) continue;
      if (box.right > edge.right + 0.5 || box.left < edge.left - 0.5) {
        found.push(['sticks out', each.outerHTML.slice(0, 90)]);
      }
    }
  }
  return found;
})()"""


@pytest.mark.parametrize(
    "name", ["demo", "pairs", "two", "evil", "plain", "diverged", "ranked", "wholes"]
)
def test_nothing_is_cut_without_a_sign(pages: dict[str, Path], opened: Any, name: str) -> None:
    """Every part lies in its card; what scrolls has shades at its sides."""
    with opened(pages[name]) as watched:
        page = watched.page
        page.evaluate(
            "document.querySelectorAll('details').forEach((each) => { each.open = true; })"
        )
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate(OUTSIDE) == [], width


def test_losses_of_worst_tokens_are_on_the_screen_of_a_telephone(
    pages: dict[str, Path], opened: Any
) -> None:
    for name, n_cells in (("demo", 1), ("two", 3), ("diverged", 1)):
        with opened(pages[name], 400, 900) as watched:
            rows = watched.page.locator(".places tbody tr").evaluate_all(
                "rows => rows.map((row) => [...row.querySelectorAll('.num')]"
                ".map((cell) => [cell.getBoundingClientRect().right,"
                " getComputedStyle(cell, '::before').content]))"
            )
            assert len(rows) > 3
            for row in rows:
                assert len(row) == n_cells
                assert all(right <= 388 for right, _ in row)
                assert [said for _, said in row][-1].startswith(
                    {"demo": '"loss', "two": '"B − A', "diverged": '"KL'}[name]
                )
    with opened(pages["two"], 400, 900) as watched:
        table = watched.page.locator("#h-totals ~ .scroll").first
        assert table.evaluate("e => e.scrollWidth <= e.clientWidth")
        assert "B − A" in table.inner_text()


@pytest.mark.parametrize(
    "name", ["demo", "pairs", "two", "evil", "plain", "diverged", "ranked", "wholes"]
)
@pytest.mark.parametrize("width", [360, 1600])
def test_nothing_is_wider_than_the_window(
    pages: dict[str, Path], opened: Any, pictures: Path, name: str, width: int
) -> None:
    for theme in ("light", "dark"):
        with opened(pages[name], width, 900, color_scheme=theme) as watched:
            page = watched.page
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            page.screenshot(path=pictures / f"{name}-{width}-{theme}.png", full_page=True)
            if page.locator(".pane").count():
                page.locator(".pane span").nth(4).hover()
                page.screenshot(path=pictures / f"{name}-{width}-{theme}-token.png")


def test_print(pages: dict[str, Path], opened: Any, pictures: Path) -> None:
    for name in ("demo", "two", "diverged", "ranked"):
        with opened(pages[name], 800, 1100, color_scheme="dark") as watched:
            page = watched.page
            page.emulate_media(media="print")
            colour = "getComputedStyle(document.querySelector('.pane .s5')).backgroundColor"
            assert page.evaluate(colour) == "rgb(180, 80, 26)"  # light, whatever the screen is
            assert page.locator("#metric").is_hidden()
            assert page.evaluate("document.documentElement.scrollWidth") <= 800, name
            page.screenshot(path=pictures / f"{name}-print.png", full_page=True)
            page.pdf(path=pictures / f"{name}.pdf", print_background=True)


def test_labels(pages: dict[str, Path], opened: Any) -> None:
    for name in ("demo", "two", "ranked"):
        with opened(pages[name]) as watched:
            assert watched.page.evaluate(UNLABELLED) == []


UNLABELLED = """[...document.querySelectorAll(
  'select, input, button, [role=img], [role=region], svg:not([aria-hidden], svg svg)')]
  .filter((e) => !(e.labels && e.labels.length) && !e.getAttribute('aria-label')
    && !e.getAttribute('aria-labelledby') && !e.textContent.trim()).map((e) => e.outerHTML)"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_can_be_read(pages: dict[str, Path], opened: Any, theme: str) -> None:
    """A contrast of 4.5, as WCAG 2.2 asks of text of this size."""
    for name in ("demo", "pairs", "two", "plain", "evil", "diverged", "ranked", "wholes"):
        with opened(pages[name], color_scheme=theme) as watched:
            page = watched.page
            if page.locator(".pane").count():
                page.locator(".pane span").nth(4).hover()
            pairs = page.evaluate(COLOURS)
        assert len(pairs) > 5
        for text, ground in pairs:
            ratio = contrast(*(f"#{''.join(f'{round(x):02x}' for x in c)}" for c in (text, ground)))
            assert ratio >= 4.5, (name, text, ground)


COLOURS = """(() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const found = new Map();
  const elements = [...document.querySelectorAll('body *:not(script):not(svg *)')];
  const marks = elements.filter((e) => getComputedStyle(e, '::before').content !== 'none');
  const styled = [...elements.map((e) => [e, null]), ...marks.map((e) => [e, '::before'])];
  for (const [element, part] of styled) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!(own || part) || !element.checkVisibility()) continue;
    const style = getComputedStyle(element, part);
    let ground = null;
    for (let up = element; up && !ground; up = up.parentElement) {
      const [r, g, b, a = 1] = parts(getComputedStyle(up).backgroundColor);
      if (a === 1) ground = [r, g, b];
    }
    const [r, g, b] = parts(element.closest('svg') ? style.fill : style.color);
    const light = Number(style.opacity);
    const text = [r, g, b].map((x, i) => x * light + ground[i] * (1 - light));
    found.set(String([text, ground]), [text, ground]);
  }
  return [...found.values()];
})()"""


# -- large ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_sequences", [1, 2000])
def test_fifty_thousand_tokens(
    opened: Any, tmp_path: Path, pictures: Path, n_sequences: int
) -> None:
    """An element for each token, and few for each sequence; how long that takes is measured by
    `make bench-page`."""
    path = report(large_results(tmp_path / "r.jsonl", n_sequences), tmp_path / "r.html")
    with opened(path) as watched:
        page = watched.page
        n_spans = page.evaluate("document.querySelectorAll('.pane span').length")
        n_elements = page.evaluate("document.querySelectorAll('*').length")
        assert n_spans == 50_000
        assert n_elements <= 50_000 + 25 * n_sequences + 2_000
        page.select_option("#scale", "own")
        assert page.evaluate("document.querySelectorAll('*').length") <= n_elements + 100
        page.screenshot(path=pictures / f"large-{n_sequences}.png")
