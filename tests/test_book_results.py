"""The roles that quote measured figures on the book's pages."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


sys.path.insert(0, str(ROOT / "book" / "_ext"))
book_results, book_pages = map(importlib.import_module, ("book_results", "book_pages"))


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


def test_best_is_the_highest_ndcg_and_the_lowest_error_of_a_recipe(record: dict[str, Any]) -> None:
    models = record["models"]
    models += [
        {**models[0], "metrics": {"ndcg": {"value": 0.05, "low": None, "high": None}}},
        {**models[1], "metrics": {"rmse": {"value": 0.3, "low": None, "high": None}}},
    ]
    assert book_results.format_best(record, "made right", "ndcg") == "0.096 [0.088, 0.105]"
    assert book_results.format_best(record, "made right", "rmse") == "0.229"
    assert book_results.format_best(record, "documented", "ndcg") == ""


def test_target_without_a_chapter_is_refused() -> None:
    with pytest.raises(ValueError, match="does not read 'chapter:what'"):
        book_results.split_target("ndcg")


def test_actions_follow_the_title_and_only_what_colab_opens_has_its_button() -> None:
    links = {"colab": "https://colab.example/x?a=1&b=2", "notebook": "n.ipynb", "script": "n.py"}
    body = book_pages.insert_actions("<h1>Ranking</h1><p>Text</p>", links)
    assert body.startswith("<h1>Ranking</h1>\n<nav")
    assert "a=1&amp;b=2" in body
    assert body.index("Open in Colab") < body.index("Download .ipynb") < body.index("<p>Text")
    del links["colab"]
    assert "Colab" not in book_pages.insert_actions("<h1>T</h1>", links)


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
