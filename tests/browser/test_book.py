"""The rendered book in a browser: loads alone, finds, fits a phone, reads well in both modes."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, ViewportSize

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]


def documents() -> list[str]:
    """The book's pages, as `_toc.yml` lists them."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    parts = [chapter["file"] for part in contents["parts"] for chapter in part["chapters"]]
    return [contents["root"], *parts]


PAGES = [*documents(), "search", "genindex"]
CHAPTERS = [page for page in PAGES if page.startswith("notebooks/")]
MODES = ("light", "dark")
PHONE: ViewportSize = {"width": 390, "height": 844}
DESK: ViewportSize = {"width": 1280, "height": 900}
LINKS = "links => links.map(a => a.href)"

#: Parts of the text that reach beyond the right edge, not counting those in a box that scrolls.
TOO_WIDE = """() => {
  const article = document.querySelector('.bd-article-container');
  const scrolls = (e) => {
    for (let p = e; p && p !== article; p = p.parentElement)
      if (/auto|scroll/.test(getComputedStyle(p).overflowX)) return true;
    return false;
  };
  return [...article.querySelectorAll('*:not(mjx-assistive-mml, mjx-assistive-mml *)')]
    .filter(e => e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 1)
    .filter(e => !scrolls(e)).slice(0, 5)
    .map(e => `${e.tagName.toLowerCase()}.${e.className}`);
}"""

#: Leaves one code token of each kind, which is enough to judge the colours and takes a tenth of the
#: time: a chapter has thousands.
THIN_OUT_CODE = """() => {
  const seen = new Set();
  for (const token of document.querySelectorAll('.highlight pre span[class]')) {
    const kind = token.className + Boolean(token.closest('.cell_output'));
    if (seen.has(kind)) token.replaceWith(token.textContent);
    seen.add(kind);
  }
  for (const block of document.querySelectorAll('.highlight pre')) block.normalize();
}"""

#: What the search page shows after the last of its results; they come one by one.
SEARCH_DONE = "#search-results p.search-summary:has-text('found')"

#: Images that the browser could not draw.
BROKEN_IMAGES = """() => [...document.images]
  .filter(i => i.complete && i.naturalWidth === 0).map(i => i.currentSrc || i.src)"""


@dataclass
class Visit:
    """What one page did in the browser."""

    console: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    broken_images: list[str] = field(default_factory=list)
    too_wide: list[str] = field(default_factory=list)
    scrolls_sideways: dict[int, int] = field(default_factory=dict)
    violations: dict[str, list[str]] = field(default_factory=dict)
    raw_math: int = 0


def watch(page: Page, site: str, visit: Visit) -> None:
    """Note errors, requests to other hosts and requests that fail."""
    own = (site, "data:", "blob:")
    page.on("console", lambda m: visit.console.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: visit.console.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith(own) else visit.foreign.append(r.url))
    page.on("response", lambda r: visit.missing.append(r.url) if r.status >= 400 else None)


def violations(page: Page) -> list[str]:
    """What axe-core finds serious or critical: rule, and the first element.

    Formulas are left out: they are MathJax's own, and carry MathML for screen readers.
    """
    page.evaluate(THIN_OUT_CODE)
    # what was opened a moment ago still fades in: half transparent text has less contrast
    page.evaluate("document.getAnimations().forEach(animation => animation.finish())")
    # preload: axe would fetch the style sheets again, from the wrong folder
    report = Axe().run(
        page,
        context={"exclude": [["mjx-container"]]},
        options={"resultTypes": ["violations"], "preload": False},
    )
    return [
        f"{rule['id']} ({rule['impact']}, {len(rule['nodes'])} times): {rule['nodes'][0]['html']}"
        f" {rule['nodes'][0].get('failureSummary', '')}"
        for rule in report.response["violations"]
        if rule["impact"] in ("serious", "critical")
    ]


@pytest.fixture(scope="session")
def visited(site: str, chromium: Browser) -> Callable[[str], Visit]:
    """Visits a page once, in both modes and at both widths, and remembers."""
    known: dict[str, Visit] = {}
    contexts = {mode: chromium.new_context(viewport=DESK) for mode in MODES}
    for mode, context in contexts.items():
        for key in ("mode", "theme"):
            context.add_init_script(f"localStorage.setItem('{key}', '{mode}')")

    def visit(name: str) -> Visit:
        if name in known:
            return known[name]
        seen = known[name] = Visit()
        for mode, context in contexts.items():
            page = context.new_page()
            watch(page, site, seen)
            page.goto(f"{site}{name}.html")
            page.evaluate("window.MathJax?.startup?.promise.then(() => true)")
            if mode == "light":
                for size in (DESK, PHONE):
                    page.set_viewport_size(size)
                    seen.scrolls_sideways[size["width"]] = page.evaluate(
                        "document.documentElement.scrollWidth"
                    )
                seen.too_wide = page.evaluate(TOO_WIDE)
                seen.raw_math = page.evaluate(
                    "document.querySelectorAll('.math:not(:has(mjx-container))').length"
                )
                page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
                seen.broken_images = page.evaluate(BROKEN_IMAGES)
                page.set_viewport_size(DESK)
            seen.violations[mode] = violations(page)
            page.close()
        return seen

    return visit


@pytest.mark.parametrize("what", ["missing", "console", "foreign", "broken_images", "too_wide"])
@pytest.mark.parametrize("name", PAGES)
def test_page_loads_alone_is_drawn_and_has_nothing_too_wide(
    name: str, what: str, visited: Callable[[str], Visit]
) -> None:
    assert getattr(visited(name), what) == []


@pytest.mark.parametrize("name", PAGES)
def test_page_fits_a_phone(name: str, visited: Callable[[str], Visit]) -> None:
    for width, needed in visited(name).scrolls_sideways.items():
        assert needed <= width, f"{name} is {needed} pixels wide on a screen of {width}"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(name: str, mode: str, visited: Callable[[str], Visit]) -> None:
    assert visited(name).violations[mode] == []


@pytest.mark.parametrize("name", PAGES)
def test_formulas_are_drawn(name: str, visited: Callable[[str], Visit]) -> None:
    assert visited(name).raw_math == 0


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page of a browser that knows nothing yet."""
    with chromium.new_context(viewport=DESK) as context:
        yield context.new_page()


@pytest.mark.parametrize("words", ["NDCG", "log-Q"])
def test_search_finds(words: str, site: str, page: Page) -> None:
    page.goto(f"{site}search.html?q={words}")
    page.wait_for_selector(SEARCH_DONE, timeout=20_000)
    found = page.eval_on_selector_all(
        "#search-results ul.search li a", "links => links.map(a => a.pathname)"
    )
    assert any("/book/glossary" in path for path in found), found
    assert any("/notebooks/" in path for path in found), found


def test_search_box_leads_to_results(site: str, page: Page) -> None:
    page.goto(f"{site}index.html")
    page.wait_for_url("**/book/intro.html")  # where the front page leads
    page.keyboard.press("Control+k")
    page.keyboard.type("catalogue")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results ul.search li a", timeout=20_000)


def test_dark_mode_toggles(site: str, page: Page) -> None:
    page.goto(f"{site}book/intro.html")
    colours = {}
    for _ in range(3):
        page.click(".theme-switch-button:visible")
        mode = page.evaluate("document.documentElement.dataset.theme")
        colours[mode] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert set(colours) == {"light", "dark"}
    assert colours["light"] != colours["dark"]


def test_dark_mode_lasts_to_the_next_page(site: str, page: Page) -> None:
    page.goto(f"{site}book/intro.html")
    while page.evaluate("document.documentElement.dataset.mode") != "dark":
        page.click(".theme-switch-button:visible")
    page.click("a.right-next")
    page.wait_for_url("**/book/getting_started.html")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_opens_in_colab_and_downloads(name: str, site: str, page: Page) -> None:
    place = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["rectutor"]
    page.goto(f"{site}{name}.html")
    links = page.eval_on_selector_all("a", LINKS)
    shown = page.eval_on_selector_all(".page-actions a", LINKS)
    own = [link for link in shown if link.startswith(site)]
    script = page.request.get(next(link for link in own if link.endswith(".py"))).text()
    notebook = page.request.get(next(link for link in own if link.endswith(".ipynb"))).json()

    where = f"{place['repository']}/blob/{place['ref']}/{name}.ipynb"
    assert f"https://colab.research.google.com/github/{where}" in shown
    edit = f"https://github.com/{place['repository']}/edit/{place['branch']}/{name}.py"
    assert edit in links
    assert script == (ROOT / f"{name}.py").read_text(encoding="utf-8")
    assert notebook["cells"][0]["cell_type"] == "markdown"


def test_page_that_colab_cannot_open_has_no_colab_button(site: str, page: Page) -> None:
    page.goto(f"{site}book/your_data.html")
    links = page.eval_on_selector_all("a", LINKS)
    assert [link for link in links if "colab.research" in link] == []
    assert [link for link in links if link.endswith("_sources/book/your_data.ipynb")]


def test_solutions_are_folded_and_open(site: str, page: Page) -> None:
    page.goto(f"{site}{CHAPTERS[0]}.html")
    inside = page.locator("div.solution.dropdown > section, div.solution.dropdown > div").first
    assert not inside.is_visible()
    page.locator("div.solution.dropdown button.toggle-button").first.click()
    assert inside.is_visible()
