"""Sphinx extension: the words under which a reader looks for a page lead to it.

`search_words` in `_config.yml` names them, page by page. They become entries of the index, which
the search puts before pages that merely contain the word, in code for example.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.transforms import SphinxTransform


class AddEntries(SphinxTransform):
    """Add the words of a page to its index entries; they lead to its title."""

    default_priority = 800  # before the domains collect them, at 850

    def apply(self, **kwargs: Any) -> None:
        """Put the entries before the title."""
        words = self.config.search_words.get(self.env.docname, ())
        title = self.document.next_node(nodes.section)
        if words and title is not None:
            entries = [("single", word, title["ids"][0], "main", None) for word in words]
            self.document.insert(0, addnodes.index(entries=entries))


def check_pages(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Refuse words for a page that the book does not have; have pages with entries written.

    Sphinx puts the entries of the pages it writes into the search, and of no others: a render that
    finds them unchanged would lose theirs.

    Raises:
        ExtensionError: `search_words` names such a page.
    """
    unknown = sorted(set(app.config.search_words) - env.found_docs)
    if unknown:
        raise ExtensionError(f"search_words: the book has no page {unknown[0]!r}")
    return [page for page, entries in env.domains["index"].entries.items() if entries]


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to Sphinx."""
    app.add_config_value("search_words", {}, "env", [dict])
    app.add_transform(AddEntries)
    app.connect("env-updated", check_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
