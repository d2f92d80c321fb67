"""The rendered pages, read as text: links resolve, headings are in order, nothing leaks."""

from __future__ import annotations

import itertools
import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup, Tag

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"

#: Marks of Markdown, MyST or reStructuredText that a reader should never see.
MARKUP = re.compile(
    r":::|```|\{(?:cite|ref|doc|term|admonition|exercise|solution)[\w:-]*\}|\(\w[\w-]*-c\d+\)="
    r"|:label:|\]\(\w|^#{2,} |<module '|<keras\.|\bTraceback\b",
    re.MULTILINE,
)

#: Paths of the machine the book was built on.
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|workspace)/\w")

#: Library chatter that does not belong on a page.
CHATTER = re.compile(r"\w+Warning:|\bWARNING\b|absl::|cuda_|oneDNN|\x1b\[")


def pages() -> list[str]:
    """All pages of the built book but the theme's own; one that is missing fails below."""
    found = sorted(
        path.relative_to(HTML).as_posix()
        for folder in ("book", "notebooks")
        for path in (HTML / folder).glob("*.html")
    )
    return found or ["book/intro.html"]


@cache
def soup(path: Path) -> BeautifulSoup:
    """The parsed page."""
    if not path.is_file():
        pytest.fail(f"{path.name} is not built: run `make html` first")
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@cache
def anchors(path: Path) -> frozenset[str]:
    """All ids of a page."""
    return frozenset(str(tag["id"]) for tag in soup(path).find_all(id=True))


def article(page: str) -> Tag:
    """The part of a page that is the author's."""
    found = soup(HTML / page).select_one("article.bd-article")
    assert found is not None
    return found


def prose(page: str) -> str:
    """The text of a page without its code and without formulas."""
    copy = BeautifulSoup(str(article(page)), "html.parser")
    for tag in copy.select("pre, code, .math, script, style, .headerlink"):
        tag.decompose()
    return copy.get_text()


EACH = pytest.mark.parametrize("page", pages())


@EACH
def test_links_and_images_resolve(page: str) -> None:
    broken = []
    for tag in soup(HTML / page).find_all(["a", "img", "link", "script", "source"]):
        parts = urlsplit(str(tag.get("href") or tag.get("src") or "#"))
        if parts.scheme or parts.netloc:
            continue
        target = (HTML / page).parent / unquote(parts.path) if parts.path else HTML / page
        place = unquote(parts.fragment) if target.suffix == ".html" else ""
        if not target.is_file() or (place and place not in anchors(target.resolve())):
            broken.append(parts.geturl())
    assert broken == []


@EACH
def test_nothing_is_loaded_from_another_host(page: str) -> None:
    loading = soup(HTML / page).select("script[src], img[src], link[rel=stylesheet], iframe")
    loaded = [str(tag.get("src") or tag.get("href")) for tag in loading]
    assert [address for address in loaded if urlsplit(address).netloc] == []


@EACH
def test_headings_are_in_order(page: str) -> None:
    levels = [int(tag.name[1]) for tag in article(page).find_all(re.compile(r"^h[1-6]$"))]
    assert levels.index(1) == 0
    assert levels.count(1) == 1
    assert [(a, b) for a, b in itertools.pairwise(levels) if b > a + 1] == []


@EACH
def test_images_have_a_description(page: str) -> None:
    images = [(str(tag.get("src")), str(tag.get("alt", ""))) for tag in article(page)("img")]
    paths = ("../", "_images")
    assert [src for src, alt in images if not alt.strip() or alt.startswith(paths)] == []


@EACH
def test_markup_does_not_leak(page: str) -> None:
    assert MARKUP.findall(prose(page)) == []


@EACH
def test_outputs_are_clean(page: str) -> None:
    assert [tag.get_text() for tag in article(page).select(".stderr, .traceback")] == []
    outputs = "\n".join(tag.get_text() for tag in article(page).select("div.cell_output"))
    assert CHATTER.findall(outputs) == []
    assert MACHINE_PATHS.findall(article(page).get_text()) == []


@EACH
def test_page_is_light(page: str) -> None:
    figures = [(HTML / page).parent / unquote(str(tag["src"])) for tag in article(page)("img")]
    size = sum(path.stat().st_size for path in [HTML / page, *figures])
    assert size < 3_000_000, f"{size / 1e6:.1f} MB of text and figures"


def test_titles_differ() -> None:
    titles = {page: str(soup(HTML / page).title) for page in pages()}
    assert len(set(titles.values())) == len(titles)


def test_links_to_the_glossary_lead_to_a_term_and_tell_its_definition():
    found = [
        (page, link)
        for page in pages()
        if page != "book/glossary.html"
        for link in article(page).select('a[href*="glossary.html"]')
        if link.get_text().lower() != "glossary"
    ]
    assert len(found) > 10
    bare = [(page, link.get_text()) for page, link in found if "#term-" not in link["href"]]
    assert bare == []
    assert all(len(link["title"]) > 20 for _, link in found)
