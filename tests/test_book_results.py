"""The roles that quote measured figures on the book's pages."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode

from rectutor import study

ROOT = Path(__file__).resolve().parent.parent
SVG = "{http://www.w3.org/2000/svg}"


sys.path.insert(0, str(ROOT / "book" / "_ext"))
book_results, book_pages, book_terms = map(
    importlib.import_module, ("book_results", "book_pages", "book_terms")
)


@pytest.fixture
def record() -> dict[str, Any]:
    return {
        "schema": 1,
        "chapter": "toy",
        "profile": "quick",
        "seed": 42,
        "backend": "jax",
        "device": "CPU",
        "versions": {},
        "data": {"name": "100k", "source": "x", "num_users": 2, "num_movies": 3, "num_ratings": 4},
        "models": [
            {"model": "SASRec: made right", "recipe": "made right", "protocol": "leave-one-out"}
            | {"metrics": {"ndcg": {"value": 0.09612, "low": 0.0881, "high": 0.1049}}}
            | {"seconds": 264.0},
            {"model": "bias model", "recipe": "made right", "protocol": "rating", "seconds": None}
            | {"metrics": {"rmse": {"value": 0.22891, "low": None, "high": None}}},
        ],
        "facts": {"c8_leaked_targets": 1812, "c8_share": 0.90321, "c1_error": "TypeError"},
    }


@pytest.mark.parametrize(
    ("write", "target", "text"),
    [
        ("format_result", "SASRec: made right:ndcg", "0.096"),
        ("format_result", "bias model:rmse", "0.2289"),
        ("format_interval", "SASRec: made right:ndcg", "0.088 to 0.105"),
        ("format_fact", "c8_leaked_targets", "1,812"),
        ("format_fact", "c8_share:.0%", "90%"),
        ("format_fact", "c8_share", "0.9032"),
        ("format_fact", "c1_error", "TypeError"),
        ("format_run", "data", "100k"),
    ],
)
def test_what_was_measured_is_written_by_its_kind(
    write: str, target: str, text: str, record: dict[str, Any]
) -> None:
    assert getattr(book_results, write)(record, target) == text


@pytest.mark.parametrize(
    ("write", "target", "message"),
    [
        ("format_interval", "bias model:rmse", "without an interval"),
        ("format_result", "nobody:ndcg", "no model 'nobody'; the models are 'SASRec: made right'"),
        ("format_result", "bias model:ndcg", "no metric 'ndcg' of 'bias model'; .* rmse"),
        ("format_fact", "c9", "no fact 'c9'; the facts are c1_error, c8_leaked"),
        ("format_run", "weather", "no field 'weather'; the fields are profile"),
    ],
)
def test_what_is_missing_is_named_with_what_there_is(
    write: str, target: str, message: str, record: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(book_results, write)(record, target)


@pytest.fixture
def found(tmp_path: Path) -> study.Study:
    metric = {"rmse": [0.2289, 0.226, 0.231, 0.228, 0.23]}
    arms = [("toy/plain", 0.05), ("toy/better", 0.0961), ("baselines/one", 0.04)]
    arms += [("baselines/two", 0.06), ("baselines/two | tied", 0.9)]
    stored = {
        "made": {},
        "arms": [
            {"name": name, "runs": 5, "facts": {}, "seconds": 1.0}
            | {"metrics": {"ndcg": [value, value - 0.01, value + 0.01, value, value]}}
            for name, value in arms
        ]
        + [{"name": "toy/stars", "runs": 10, "facts": {}, "seconds": 1.0, "metrics": metric}],
        "effects": [
            {"chapter": "toy", "correction": "C99", "what": "masks", "before": "toy/plain"}
            | {"after": "toy/better", "metric": "ndcg", "runs": 5, "from_value": 0.05}
            | {"to_value": 0.0961, "value": 0.0461, "low": 0.03, "high": 0.06}
            | {"p": 0.0001, "holm": 0.0004}
        ],
        "documented": [],
    }
    file = tmp_path / "study.json"
    file.write_text(json.dumps(stored))
    return study.read(file)


def test_a_figure_of_the_study_has_its_interval_and_its_runs(found: study.Study) -> None:
    assert book_results.format_study(found, "toy:better:ndcg") == "0.096 (0.086 to 0.106, 5 runs)"
    assert book_results.format_study(found, "toy:stars:rmse").startswith("0.2289 (0.2260 to")
    with pytest.raises(ValueError, match="no 'toy:worse'"):
        book_results.format_study(found, "toy:worse:ndcg")
    with pytest.raises(ValueError, match="has no 'ndcg'"):
        book_results.format_study(found, "toy:stars:ndcg")


def test_an_effect_has_its_verdict(found: study.Study) -> None:
    text = "masks: NDCG@10 0.050 to 0.096 (+0.046, +0.030 to +0.060; improves)"
    assert book_results.format_effect(found, "toy:C99") == text
    with pytest.raises(ValueError, match="no comparison of 'C98'"):
        book_results.format_effect(found, "toy:C98")


CORRECTIONS = """# Corrections

### C98: never read

Proof: {ref}`toy <toy-c98>`, {ref}`upstream <upstream-thing>`, {ref}`other <other-c98>`.

### C99: zeros are read

Effect. Proof: {ref}`toy <toy-c99>`.
"""


def test_the_table_of_corrections_has_a_row_a_comparison_and_one_where_there_is_none(
    found: study.Study,
) -> None:
    corrections = book_results.corrections_of(CORRECTIONS)
    severities = book_results.severities_of(["wrong model: C99", "", "slow: C98"], corrections)
    told = "+0.046 (+0.030 to +0.060) NDCG@10: masks"
    toy = "{ref}`toy <toy-c99>`"
    assert book_results.correction_rows(corrections, severities, found.effects) == [
        ["C99", "zeros are read", "wrong model", told, "improves", toy],
        ["C98", "never read", "slow", "", "", "{ref}`toy <toy-c98>`, {ref}`other <other-c98>`"],
    ]


@pytest.mark.parametrize(
    ("lines", "odd"),
    [(["bad: C99"], "C98"), (["bad: C98, C99", "slow: C98"], "C98"), (["x: C97, C98, C99"], "C97")],
)
def test_a_correction_without_a_severity_or_with_two_is_named(lines: list[str], odd: str) -> None:
    corrections = book_results.corrections_of(CORRECTIONS)
    with pytest.raises(ValueError, match=f"without a section: {odd}$"):
        book_results.severities_of(lines, corrections)


def test_a_headline_is_of_the_arms_that_the_chapter_names(found: study.Study) -> None:
    chapter = {"metric": "ndcg", "documented": ["toy/plain"], "made_right": ["toy/better"]}
    assert book_results.headline(found, chapter) == {
        "As documented": "0.050 [0.040, 0.060]",
        "Made right": "0.096 [0.086, 0.106]",
        "Best baseline": "0.060 [0.050, 0.070]",
    }
    chapter = {"metric": "rmse", "documented": ["toy/gone"], "made_right": ["toy/stars"]}
    assert book_results.headline(found, chapter) == {"Made right": "0.2289 [0.2260, 0.2310]"}


def test_a_headlines_picture_has_a_dot_on_the_interval_of_each_model(found: study.Study) -> None:
    chapter = {"metric": "ndcg", "documented": ["toy/plain"], "made_right": ["toy/better"]}
    picture = ElementTree.fromstring(book_results.headline_picture(found, chapter))
    lines, dots = (list(picture.iter(f"{SVG}{kind}")) for kind in ("line", "circle"))
    middles = [float(dot.attrib["cx"]) for dot in dots]
    for line, middle in zip(lines, middles, strict=True):
        ends = [float(line.attrib[end]) for end in ("x1", "x2")]
        assert middle == pytest.approx(sum(ends) / 2, abs=0.1)
    documented, made_right, baseline = middles
    assert documented < baseline < made_right
    assert "made right 0.096 [0.086, 0.106]" in picture.attrib["aria-label"]
    without = {"metric": "ndcg", "documented": [], "made_right": [], "baselines": []}
    assert book_results.headline_picture(found, without) == ""


def test_target_without_a_chapter_is_refused() -> None:
    with pytest.raises(ValueError, match="does not read 'chapter:what'"):
        book_results.split_target("ndcg")


def test_actions_follow_the_title_and_only_what_colab_opens_has_its_button() -> None:
    links = {"colab": "https://colab.example/x?a=1&b=2", "notebook": "n.ipynb", "script": "n.py"}
    body = book_pages.insert_actions("<h1>Ranking</h1><p>Text</p>", links, "12 words")
    assert body.startswith("<h1>Ranking</h1>\n<nav")
    assert "a=1&amp;b=2" in body
    assert body.index("Open in Colab") < body.index("Download .ipynb") < body.index("<p>Text")
    del links["colab"]
    assert "Colab" not in book_pages.insert_actions("<h1>T</h1>", links, "")
    assert '<p class="page-cost">12 words</p>' in body


def test_what_a_page_costs_counts_its_paragraphs_its_code_and_its_seconds() -> None:
    page = nodes.section()
    page += [nodes.paragraph(text="word " * 430), nodes.literal_block(text="no cell")]
    code = "# a comment\na = 1  # said\n\nb = 2\n"
    page += nodes.container("", nodes.literal_block(text=code), classes=["cell_input"])
    told = "430 words (about 2 min), 2 lines of code in 1 cells"
    assert book_pages.cost(page, None) == told
    assert book_pages.cost(page, 61.2) == f"{told}, executed in 61 s"


def test_what_a_page_costs_says_how_much_of_the_code_is_folded() -> None:
    page, fold = nodes.section(), HideCodeCellNode()
    for part, code in ((page, "a = 1\nb = 2\n"), (fold, "c = 3\n")):
        part += nodes.container("", nodes.literal_block(text=code), classes=["cell_input"])
    page += fold
    told = "3 lines of code (1 of them folded) in 2 cells"
    assert book_pages.cost(page, None).endswith(told)


def test_a_definition_on_hover_has_neither_keys_nor_formulas() -> None:
    entry = nodes.paragraph("", "Takes ")
    entry += [nodes.math(text=r"\log Q(i)"), nodes.Text(" off ")]
    entry += [nodes.inline(text="yi2019", refdomain="cite"), nodes.Text(".")]
    assert book_terms.plain(entry) == "Takes log Q(i) off."
    assert "yi2019" in entry.astext()  # the page keeps it


def test_a_link_to_the_glossary_finds_its_term_by_name_plural_or_beginning() -> None:
    terms = {"gru": ("term-GRU", "A unit."), "embedding": ("term-Embedding", "A table.")}
    terms["bootstrap interval"] = ("term-Bootstrap-interval", "How sure.")
    assert book_terms.entry_of("GRU", terms) == terms["gru"]
    assert book_terms.entry_of("embeddings", terms) == terms["embedding"]
    assert book_terms.entry_of("bootstrap", terms) == terms["bootstrap interval"]
    assert book_terms.entry_of("nothing", terms) is None
    assert book_terms.entry_of("", {**terms, "b": terms["gru"]}) is None  # more than one


@pytest.mark.parametrize(
    ("page", "edited"),
    [
        ("v0.2.0/notebooks/ranking.ipynb", "main/notebooks/ranking.py"),
        ("v0.2.0/book/data.md", "main/book/data.md"),
    ],
)
def test_an_editions_page_is_edited_on_the_branch_in_its_source(page: str, edited: str) -> None:
    edit = "https://github.com/me/mybook/edit"
    assert book_pages.edit_link(f"{edit}/{page}", "main") == f"{edit}/{edited}"


def test_missing_figure_fails_a_strict_build(tmp_path: Path, record: dict[str, Any]) -> None:
    from sphinx.application import Sphinx
    from sphinx.errors import SphinxError
    from sphinx.util.docutils import docutils_namespace

    source = tmp_path / "source"
    (source / "results").mkdir(parents=True)
    (source / "results" / "toy.json").write_text(json.dumps(record))
    (source / "conf.py").write_text("extensions = ['book_results']\n")

    def build(text: str) -> str:
        (source / "index.rst").write_text(f"Title\n=====\n\n{text}\n")
        with docutils_namespace():
            places = (source, source, tmp_path / "out", tmp_path / "doctrees")
            quiet: dict[str, Any] = {"status": None, "warning": None}
            Sphinx(*places, "html", **quiet, warningiserror=True, freshenv=True).build()
        return (tmp_path / "out" / "index.html").read_text()

    assert '<span class="measured">0.096</span>' in build(
        ":result:`toy:SASRec: made right:ndcg` and :fact:`toy:c8_share:.0%`"
    )
    with pytest.raises(SphinxError, match=r"no fact 'c99'; the facts are"):
        build(":fact:`toy:c99`")
    own = record | {"data": record["data"] | {"name": "my table"}}
    (source / "results" / "own.json").write_text(json.dumps(own))
    assert "not measured on this data" in build(":fact:`own:c99`")
    with pytest.raises(SphinxError, match=r"nowhere\.json does not exist; `make chapter"):
        build(":result:`nowhere:m:ndcg`")


def test_a_headline_says_where_runs_are_missing(found: study.Study) -> None:
    few = dataclasses.replace(found.arms["toy/better"], runs=2)
    found = dataclasses.replace(found, arms=found.arms | {"toy/better": few})
    chapter = {"metric": "ndcg", "documented": ["toy/plain"], "made_right": ["toy/better"]}
    shown = book_results.headline(found, chapter)["Made right"]
    assert shown == "0.096 [0.086, 0.106] (2 runs so far)"
