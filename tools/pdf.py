"""Print the rendered book to one PDF: `python -m tools.pdf` writes `_build/book.pdf`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import sync_playwright

from rectutor import results
from tools import book
from tools.browser import launch, served
from tools.extras import has_browser

HTML = book.BUILD / "html"

#: Brings the articles of all pages into the first one; links between them lead within the PDF.
GATHER = """async (pages) => {
  const root = new URL('../', location.href);
  const name = (page) => page.replaceAll('/', '--');
  const body = document.querySelector('article.bd-article').parentElement;
  const articles = [];
  for (const page of pages) {
    const address = new URL(page + '.html', root);
    const text = await (await fetch(address)).text();
    const article = new DOMParser().parseFromString(text, 'text/html')
      .querySelector('article.bd-article');
    article.querySelectorAll('script').forEach(each => each.remove());
    article.querySelectorAll('details').forEach(each => each.open = true);
    article.querySelectorAll('[id]').forEach(each => each.id = `${name(page)}--${each.id}`);
    article.querySelectorAll('img').forEach(
      each => each.src = new URL(each.getAttribute('src'), address));
    article.querySelectorAll('a[href]').forEach(each => {
      const target = new URL(each.getAttribute('href'), address);
      const other = target.href.startsWith(root) &&
        target.pathname.slice(root.pathname.length).replace('.html', '');
      each.href = pages.includes(other)
        ? '#' + name(other) + (target.hash && '--' + target.hash.slice(1)) : target;
    });
    article.id = name(page);
    article.style.breakBefore = articles.length ? 'page' : 'auto';
    articles.push(article);
  }
  body.replaceChildren(...articles);
  await MathJax.startup.promise;
  await MathJax.typesetPromise();
  await Promise.all([...document.images].map(each => each.decode().catch(() => null)));
}"""


def write(names: Sequence[str], to: Path) -> None:
    """Bring pages together in a browser, draw the formulas, open what is folded, print.

    Args:
        names: the pages in their order, as `book/intro`.
        to: the PDF to write.

    Raises:
        SystemExit: there is no Chromium, or the book is not rendered.
    """
    if not has_browser():
        raise SystemExit("a PDF needs a Chromium; `make setup-test` says how to get one")
    first = HTML / f"{names[0]}.html"
    if not first.is_file():
        raise SystemExit("the book is not rendered: run `make book` or `make html` first")
    with served(HTML) as site, sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page()
        page.set_default_timeout(600_000)
        page.goto(f"{site}{first.relative_to(HTML)}")
        page.evaluate(GATHER, list(names))
        margin = {"top": "18mm", "bottom": "18mm", "left": "16mm", "right": "16mm"}
        page.pdf(path=str(to), format="A4", scale=0.8, outline=True, tagged=True, margin=margin)
        browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", help="some pages only, as book/intro")
    parser.add_argument("--to", type=Path, default=book.BUILD / "book.pdf")
    arguments = parser.parse_args()
    write(arguments.pages or book.pages(), arguments.to)
    print(f"{results.relative(arguments.to)}: {arguments.to.stat().st_size / 1e6:.1f} MB")
