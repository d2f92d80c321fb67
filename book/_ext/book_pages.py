"""Sphinx extension: what every page of the book has beyond the theme.

- MathJax and its fonts from the book itself (the files of `sphinx-mathjax-offline`).
- On every chapter: "Open in Colab", the notebook and the script to download, in the page and in the
  header's menu; a page that Colab cannot open may have a notebook that it can. "Suggest edit" leads
  to the script, which is the chapter's source. On every page it leads to the branch that is edited,
  whichever edition the page is of.
- Under a chapter's title, what it costs: words, code, and the seconds that it ran.
- No request to another host: scripts the book has no use for are taken out.
- Roles that assistive technology would stumble over are taken off.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

#: The parts of MathJax the book's pages can ask for, of the 24 MB the package holds.
MATHJAX_PARTS = ("tex-chtml.js", "output/chtml", "input/tex/extensions", "a11y", "ui", "sre")

#: How fast prose is read.
WORDS_A_MINUTE = 200

#: Scripts that JupyterBook adds for live code and comments, which the book does not have.
UNUSED_SCRIPTS = re.compile(r"thebe|THEBE|requirejs|require\.min|hypothes")


def copy_mathjax(app: Sphinx, exception: Exception | None) -> None:
    """Copy MathJax into the built book, once.

    Raises:
        ExtensionError: `sphinx-mathjax-offline` is not installed.
    """
    if exception is not None or app.builder.format != "html":
        return
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    if package is None or package.origin is None:
        raise ExtensionError("MathJax is missing: pip install sphinx-mathjax-offline")
    source = Path(package.origin).parent / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    for part in MATHJAX_PARTS:
        if (target / part).exists():
            continue
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part)
        else:
            shutil.copy2(source / part, target / part)


def is_notebook(app: Sphinx, pagename: str) -> bool:
    """Whether a page comes from a notebook, be it `.ipynb` or Markdown with code cells."""
    return pagename in app.env.metadata and "kernelspec" in app.env.metadata[pagename]


def copy_scripts(app: Sphinx, exception: Exception | None) -> None:
    """Put the script of every notebook page beside the notebook in `_sources`.

    A chapter has one in the tree; for a Markdown page it is made from the page.
    """
    if exception is not None or app.builder.format != "html":
        return
    for pagename in app.env.found_docs:
        if not is_notebook(app, pagename):
            continue
        source = Path(app.env.doc2path(pagename))
        target = Path(app.outdir) / "_sources" / f"{pagename}.py"
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.with_suffix(".py").is_file():
            shutil.copy2(source.with_suffix(".py"), target)
        else:
            import jupytext

            jupytext.write(jupytext.read(source), target, fmt="py:percent")


def add_notebook_buttons(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict[str, Any],
    doctree: nodes.document | None,
) -> None:
    """Offer the page as a script, and lead "suggest edit" to the script."""
    for group in context.get("header_buttons", ()):
        for button in group.get("buttons", ()):
            if button.get("label") == "source-edit-button":
                button["url"] = edit_link(button["url"], app.config.edit_branch)
    if doctree is None or not is_notebook(app, pagename):
        return
    sources = context["pathto"]("_sources", 1)
    script = f"{sources}/{pagename}.py"
    links = {"script": script, "notebook": f"{sources}/{pagename}.ipynb"}
    if not str(app.env.doc2path(pagename)).endswith(".ipynb"):  # Colab opens nothing else
        context["header_buttons"] = [
            button for button in context["header_buttons"] if button["label"] != "launch-buttons"
        ]
    if pagename in app.config.colab_notebooks:
        links["colab"] = colab_link(app, app.config.colab_notebooks[pagename])
    for group in context["header_buttons"]:
        for button in group.get("buttons", ()):
            if button.get("text") == "Colab":
                links["colab"] = button["url"]
        if group.get("label") == "download-buttons":
            group["buttons"] = [b for b in group["buttons"] if b["text"] in (".ipynb", ".pdf")]
            group["buttons"].insert(
                1,
                {
                    "type": "link",
                    "url": script,
                    "text": ".py",
                    "tooltip": "Download the script",
                    "icon": "fas fa-file-code",
                    "label": "download-script-button",
                },
            )
    told = cost(doctree, seconds_of(app, pagename))
    context["body"] = insert_actions(context["body"], links, told)


def colab_link(app: Sphinx, notebook: str) -> str:
    """Where Colab opens a notebook of the repository."""
    options = app.config.html_theme_options
    place = options["repository_url"].partition("github.com/")[2].strip("/")
    colab = options["launch_buttons"]["colab_url"]
    return f"{colab}/github/{place}/blob/{options['repository_branch']}/{notebook}"


def edit_link(url: str, branch: str) -> str:
    """Where a page is edited: its source, on the branch and not in an edition, which is fixed."""
    url = re.sub(r"/edit/[^/]+/", f"/edit/{branch}/", url)
    return re.sub(r"(/notebooks/[^/]+)\.ipynb$", r"\1.py", url)


def seconds_of(app: Sphinx, pagename: str) -> float | None:
    """How long the chapter took when it was executed; None where that is not known."""
    times = Path(app.srcdir) / "notebooks" / "times.json"
    folder, _, name = pagename.rpartition("/")
    if folder != "notebooks" or not times.is_file():
        return None
    cells = json.loads(times.read_text(encoding="utf-8")).get(name)
    return sum(cells) if cells else None


def lines_of_cells(part: nodes.Element) -> list[int]:
    """How many lines of code each cell in a part of a page has: no comments, none blank."""
    cells = [each for each in part.findall(nodes.container) if "cell_input" in each["classes"]]
    return [len(re.findall(r"^[^\S\n]*[^\s#]", each.astext(), re.M)) for each in cells]


def cost(doctree: nodes.document, seconds: float | None) -> str:
    """What a page of code asks of its reader, in words."""
    words = sum(len(text.astext().split()) for text in doctree.findall(nodes.paragraph))
    cells = lines_of_cells(doctree)
    folded = sum(sum(lines_of_cells(each)) for each in doctree.findall(HideCodeCellNode))
    minutes = max(round(words / WORDS_A_MINUTE), 1)
    code = f"{sum(cells)} lines of code" + (f" ({folded} of them folded)" if folded else "")
    told = f"{words:,} words (about {minutes} min), {code} in {len(cells)} cells"
    return told + (f", executed in {seconds:.0f} s" if seconds else "")


def insert_actions(body: str, links: dict[str, str], told: str) -> str:
    """Put a row of links, and what the page costs, under its title.

    Args:
        body: the page's HTML.
        links: `notebook` and `script`, and `colab` where the page can be opened there.
        told: what the page costs, in words.
    """
    row = []
    if "colab" in links:
        row.append(
            f'<a class="page-action colab" href="{escape(links["colab"])}">Open in Colab</a>'
        )
    for kind, ending in (("notebook", "ipynb"), ("script", "py")):
        row.append(
            f'<a class="page-action {kind}" href="{escape(links[kind])}" download>'
            f"Download .{ending}</a>"
        )
    actions = f'<nav class="page-actions" aria-label="Run this page">{"".join(row)}</nav>'
    costs = f'<p class="page-cost">{escape(told)}</p>'
    return body.replace("</h1>", f"</h1>\n{actions}\n{costs}", 1)


def drop_unused_scripts(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict[str, Any],
    doctree: nodes.document | None,
) -> None:
    """Take out scripts and styles for live code, which the book does not have."""
    for kind in ("script_files", "css_files"):
        context[kind] = [
            asset
            for asset in context.get(kind, ())
            if not UNUSED_SCRIPTS.search(
                f"{getattr(asset, 'filename', asset)} {getattr(asset, 'attributes', '')}"
            )
        ]


def repair_roles(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict[str, Any],
    doctree: nodes.document | None,
) -> None:
    """Take ARIA roles off the bibliography that docutils puts where they may not stand."""
    if "body" in context:
        context["body"] = (
            context["body"]
            .replace('<div role="list" class="citation-list">', '<div class="citation-list">')
            .replace(' role="doc-biblioentry"', "")
        )


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to Sphinx; the theme's own handlers run at priority 500 and 501."""
    # pages are written anew when an extension changes
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    app.add_config_value("book_ext_digest", hashlib.sha256(sources).hexdigest(), "html", [str])
    app.add_config_value("edit_branch", "main", "html", [str])
    app.add_config_value("colab_notebooks", {}, "html", [dict])
    app.connect("html-page-context", add_notebook_buttons, priority=502)
    app.connect("html-page-context", repair_roles, priority=503)
    app.connect("html-page-context", drop_unused_scripts, priority=900)
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", copy_scripts)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
