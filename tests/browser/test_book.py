"""The rendered book in a browser: loads alone, finds, fits a phone, reads well in both modes."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, ViewportSize

from rectutor.data import load_movielens
from tools import book

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]


PAGES = [*book.pages(), "search", "genindex"]
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

#: Code, outputs and tables of which a part is out of sight until somebody scrolls.
CUT = """() => [...document.querySelectorAll(
    '.bd-article pre, .bd-article .cell_output, .bd-article .table-scroll')]
  .filter(e => e.getClientRects().length)
  .filter(e => {
    const style = getComputedStyle(e);
    const clips = /auto|scroll|hidden/.test(style.overflowY) && e.scrollHeight > e.clientHeight + 1;
    return clips || e.scrollWidth > e.clientWidth + 1;
  }).map(e => `${innerWidth}: ${e.tagName} ${e.textContent.trim().slice(0, 60)}`)"""

#: Formulas of which a part is out of sight on a desk; on a phone they scroll.
CUT_FORMULAS = """() => [...document.querySelectorAll('mjx-container[display="true"]')]
  .filter(e => e.getClientRects().length && e.scrollWidth > e.clientWidth + 1)
  .map(e => `formula: ${e.textContent.trim().slice(0, 60)}`)"""

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
    cut: list[str] = field(default_factory=list)
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
                    page.evaluate("new Promise(done => requestAnimationFrame(done))")
                    seen.cut += page.evaluate(CUT)
                    seen.cut += page.evaluate(CUT_FORMULAS) if size is DESK else []
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


WHAT = ("missing", "console", "foreign", "broken_images", "too_wide", "cut")


@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize("name", PAGES)
def test_page_loads_alone_is_drawn_and_has_nothing_cut_or_too_wide(
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


#: What readers look for, and where they should land first.
WANTED = {
    "NDCG": "book/glossary",
    "cold start": "notebooks/retrieval",
    "serve": "notebooks/serving",
    "my own data": "book/your_data",
    "GPU": "book/getting_started",
    "install": "book/getting_started",
}


@pytest.mark.parametrize("words", WANTED)
def test_search_finds_the_right_page_first(words: str, site: str, page: Page) -> None:
    page.goto(f"{site}search.html?q={words}")
    page.wait_for_selector(SEARCH_DONE, timeout=20_000)
    found = page.eval_on_selector_all(
        "#search-results ul.search li a", "links => links.map(a => a.pathname)"
    )
    assert found[0] == f"/{WANTED[words]}.html", found[:5]


def long_table(site: str, page: Page) -> Any:
    """The leaderboard's table of all models."""
    page.goto(f"{site}notebooks/leaderboard.html")
    page.evaluate("document.querySelector('.table-more').previousElementSibling.id = 'long'")
    return page.locator("#long")


def test_a_long_table_begins_with_a_dozen_rows_and_opens(site: str, page: Page) -> None:
    table = long_table(site, page)
    rows = table.locator("tbody tr")
    visible = "rows => rows.filter(row => row.getClientRects().length).length"
    assert rows.evaluate_all(visible) == 12
    page.locator(".table-more").first.click()
    assert rows.evaluate_all(visible) == rows.count() > 12


def test_a_click_on_a_header_sorts_by_its_column(site: str, page: Page) -> None:
    table = long_table(site, page)
    header = table.locator("th:has-text('HR@10')")
    column = header.evaluate("th => th.cellIndex")
    values = f"rows => rows.map(row => parseFloat(row.cells[{column}].textContent))"
    for order, falls in (("descending", True), ("ascending", False)):
        header.locator("button").click()
        assert header.get_attribute("aria-sort") == order
        shown = [each for each in table.locator("tbody tr").evaluate_all(values) if each == each]
        assert shown == sorted(shown, reverse=falls)
        assert len(set(shown)) > 3


#: Tables whose headers lie over their first row although the page stands at its top.
COVERED = """() => [...document.querySelectorAll('.bd-article table')]
  .filter(t => t.tHead && t.tBodies[0]?.rows.length && t.getClientRects().length)
  .filter(t => t.getBoundingClientRect().top > 60)
  .filter(t => t.tHead.getBoundingClientRect().bottom
    > t.tBodies[0].rows[0].getBoundingClientRect().top + 1)
  .map(t => t.textContent.trim().slice(0, 60))"""


@pytest.mark.parametrize("size", [DESK, PHONE])
@pytest.mark.parametrize("name", [*CHAPTERS, "book/evaluation"])
def test_no_header_lies_over_the_first_row(
    name: str, size: ViewportSize, site: str, page: Page
) -> None:
    page.set_viewport_size(size)
    page.goto(f"{site}{name}.html")
    page.evaluate("window.MathJax?.startup?.promise.then(() => true)")
    assert page.evaluate(COVERED) == []


def test_the_headers_of_a_long_table_stay_while_the_page_goes_on(site: str, page: Page) -> None:
    table = long_table(site, page)
    page.locator(".table-more").first.click()
    table.locator("tbody tr").nth(20).evaluate("row => row.scrollIntoView({block: 'center'})")
    top = table.locator("thead").evaluate("head => head.getBoundingClientRect().top")
    assert 0 <= top < 100


def test_a_phone_shows_a_diagram_whole_and_on_request_as_large_as_drawn(
    site: str, page: Page
) -> None:
    page.goto(f"{site}notebooks/sasrec.html")
    picture = page.locator("img[src*='model-sasrec.svg']")
    button = page.locator("p:has(img[src*='model-sasrec.svg']) + .picture-more")
    width = "element => element.getBoundingClientRect().width"
    assert button.count() == 0
    page.set_viewport_size(PHONE)
    button.wait_for()
    assert picture.evaluate(width) < PHONE["width"]
    button.click()
    drawn = picture.evaluate("image => image.naturalWidth")
    assert picture.evaluate(width) == drawn > 1.5 * PHONE["width"]
    assert page.locator(".picture-large").get_attribute("tabindex") == "0"
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    button.click()
    assert picture.evaluate(width) < PHONE["width"]
    button.click()
    page.set_viewport_size(DESK)
    button.wait_for(state="detached")
    assert page.locator(".picture-large").count() == 0


@pytest.mark.parametrize("name", [*CHAPTERS, "book/evaluation"])
def test_a_table_has_six_columns_at_most(name: str, site: str, page: Page) -> None:
    page.goto(f"{site}{name}.html")
    wide = page.eval_on_selector_all(
        ".bd-article table",
        "tables => tables.map(t => [t.rows[0].cells.length, t.textContent.trim().slice(0, 60)])",
    )
    assert [each for each in wide if each[0] > 6] == []


def test_nothing_runs_that_a_title_says(tmp_path: Path, page: Page) -> None:
    title = "<img src=x onerror=\"document.title='ran'\"><script>document.title='ran'</script> $x$"
    made = tmp_path / "page.py"
    made.write_text(
        "import pandas as pd, IPython.display, sys\n"
        "from rectutor import display\n"
        "display.in_notebook = lambda: True\n"
        "IPython.display.display = lambda table: print(table.to_html())\n"
        f"display.show_table(pd.DataFrame({{'title': [{title!r}]}}), {title!r}, 1)\n"
    )
    told = subprocess.run([sys.executable, made], capture_output=True, text=True, check=True).stdout
    (tmp_path / "page.html").write_text(f"<!doctype html><title>still</title>{told}")
    page.goto((tmp_path / "page.html").as_uri())
    assert page.title() == "still"
    assert page.locator("td").inner_text() == title
    assert page.locator("caption").inner_text() == title


def picked_and_answered(page: Page) -> tuple[list[str], list[str]]:
    """The titles in the two lists of the page to try."""
    lists = (".try-picked li", ".try-answer li")
    read = "items => items.map(item => item.firstChild.textContent.trim())"
    picked, answered = (page.eval_on_selector_all(each, read) for each in lists)
    return picked, answered


@pytest.mark.parametrize("size", [DESK, PHONE])
def test_five_movies_picked_by_keyboard_give_ten_others(
    size: ViewportSize, site: str, page: Page
) -> None:
    page.set_viewport_size(size)
    page.goto(f"{site}book/try_it.html")
    search = page.locator("#try-search")
    for typed in ("matrix", "toy story", "fargo", "alien", "amelie"):
        search.press_sequentially(typed)
        search.press("ArrowDown")
        search.press("Enter")
    picked, answered = picked_and_answered(page)
    assert len(set(picked)) == 5
    assert len(set(answered)) == 10
    assert not set(picked) & set(answered)
    assert violations(page) == []


def test_what_was_picked_can_be_taken_back(site: str, page: Page) -> None:
    page.goto(f"{site}book/try_it.html")
    page.fill("#try-search", "matrix")
    page.locator("[role=option]").first.click()
    (first,), alone = picked_and_answered(page)
    page.fill("#try-search", "bambi")
    page.locator("[role=option]").first.click()
    assert picked_and_answered(page)[1] != alone
    page.locator(".try-picked button").last.click()
    assert picked_and_answered(page) == ([first], alone)


def test_the_page_to_try_gives_what_the_package_gives(site: str, page: Page) -> None:
    """By hand: the sum of the weights of what was picked, in the fitted model itself."""
    page.goto(f"{site}book/try_it.html")
    titles = page.evaluate("tryItModel.titles")
    places = [0, 20, 200]
    for place in places:
        page.fill("#try-search", titles[place])
        page.locator("[role=option]", has_text=titles[place]).first.click()
    data = load_movielens("latest-small")
    counts = data.ratings["movie_id"].value_counts()
    kept = counts.index[counts >= 20].to_numpy()
    assert data.titles[kept].tolist() == titles
    rows = data.ratings[data.ratings["movie_id"].isin(kept)]
    watched = pd.crosstab(rows["user_id"], rows["movie_id"])[kept].to_numpy(float).clip(max=1)
    inverse = np.linalg.inv(watched.T @ watched + 200.0 * np.eye(len(kept)))
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    scores = weights[places].sum(axis=0)
    scores[places] = -np.inf
    wanted = [titles[place] for place in np.argsort(-scores)[:10]]
    # a movie keeps its 64 strongest neighbours only, to four decimals
    assert len(set(wanted) & set(picked_and_answered(page)[1])) >= 8


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
    page.goto(f"{site}book/data.html")
    links = page.eval_on_selector_all("a", LINKS)
    assert [link for link in links if "colab.research" in link] == []
    assert [link for link in links if link.endswith("_sources/book/data.ipynb")]


def test_your_own_data_opens_a_notebook_of_its_own_in_colab(site: str, page: Page) -> None:
    place = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["rectutor"]
    page.goto(f"{site}book/your_data.html")
    (link,) = page.eval_on_selector_all(".page-actions a.colab", LINKS)
    assert link.endswith(f"github/{place['repository']}/blob/{place['ref']}/colab/your_data.ipynb")
    assert (ROOT / "colab" / "your_data.ipynb").is_file()


def test_solutions_are_folded_and_open(site: str, page: Page) -> None:
    page.goto(f"{site}{CHAPTERS[0]}.html")
    inside = page.locator("div.solution.dropdown > section, div.solution.dropdown > div").first
    assert not inside.is_visible()
    page.locator("div.solution.dropdown button.toggle-button").first.click()
    assert inside.is_visible()


def test_pages_are_printed_to_one_pdf_whose_links_lead_within_it(
    site: str, chromium: Browser, tmp_path: Path
) -> None:
    to = tmp_path / "book.pdf"
    pages = ["book/evaluation", "book/glossary"]
    command = [sys.executable, "-m", "tools.pdf", *pages, "--to", str(to)]
    subprocess.run(command, check=True, timeout=300, cwd=ROOT)
    content = to.read_bytes()
    assert content.startswith(b"%PDF-")
    assert content.count(b"/Type /Page\n") > 4
    assert b"book--glossary--term-NDCG" in content
