"""Sphinx extension: links to the glossary lead to the term, and tell its definition on hover.

A chapter links to the glossary's page, which works wherever a notebook is read; in the book, such a
link goes to the entry that its text names.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

#: The page of the glossary, and how many characters of a definition are told on hover.
GLOSSARY, LONGEST = "book/glossary", 300


def definitions(glossary: nodes.document) -> dict[str, tuple[str, str]]:
    """The terms in small letters: each one's anchor and the text of its definition."""
    found = {}
    for item in glossary.findall(nodes.definition_list_item):
        text = plain(item.children[-1])
        if len(text) > LONGEST:
            text = text[:LONGEST].rsplit(" ", 1)[0] + " ..."
        for term in item.findall(nodes.term):
            if term["ids"]:
                found[term.astext().lower()] = (term["ids"][0], text)
    return found


def plain(entry: nodes.Element) -> str:
    """The words of an entry: no citations, and of formulas what can be read in a line."""
    entry = entry.deepcopy()
    for node in list(entry.findall(nodes.Element)):
        if node.get("refdomain") == "cite":
            node.parent.remove(node)
        elif isinstance(node, nodes.math):
            words = re.sub(r"\\(?:text|mathrm)?|[{}$]", "", node.astext())
            node.parent.replace(node, nodes.Text(words))
    return re.sub(r" (?=[.,;:)])", "", " ".join(entry.astext().split()))


def entry_of(text: str, terms: dict[str, tuple[str, str]]) -> tuple[str, str] | None:
    """The entry that a link's text names: the term, its plural, or how one term begins."""
    text = " ".join(text.lower().split())
    for name in (text, text.removesuffix("s")):
        if name in terms:
            return terms[name]
    begin = [entry for name, entry in terms.items() if name.startswith(text)]
    return begin[0] if len(begin) == 1 else None


def lead_to_terms(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Give links to the glossary their anchor, and the definition as their title."""
    if docname == GLOSSARY or GLOSSARY not in app.env.found_docs:
        return
    terms: dict[str, tuple[str, str]] = {}
    page = f"{GLOSSARY.rpartition('/')[2]}.html"
    for link in doctree.findall(nodes.reference):
        target, _, anchor = link.get("refuri", "").partition("#")
        if target.rpartition("/")[2] != page:
            continue
        terms = terms or definitions(app.env.get_doctree(GLOSSARY))
        entry = entry_of(link.astext(), terms)
        if anchor:
            entry = next((each for each in terms.values() if each[0] == anchor), None)
        elif entry is None and link.astext().lower() != "glossary":
            text = link.astext()
            logger.warning("no single entry of the glossary is called %r", text, location=link)
        if entry:
            link["refuri"] = f"{target}#{entry[0]}"
            link["reftitle"] = entry[1]


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to Sphinx."""
    app.connect("doctree-resolved", lead_to_terms)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
