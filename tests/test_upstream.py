"""The faults that `book/upstream` shows are still there; a failing test says: update it."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import book

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "book" / "upstream.md").read_text(encoding="utf-8")
MENDED = (
    "{} is mended: say so in book/upstream.md (since which version), take the workaround out of "
    "the chapters and this test out of the suite"
)


@pytest.fixture(scope="module")
def output():
    """What the page's cells print, run verbatim in a Python of their own, as the build does."""
    code = "\n".join(re.findall(r"```\{code-cell\} python\n(.*?)```", PAGE, re.DOTALL))
    environment = {key: value for key, value in os.environ.items() if key != "KERAS_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "the build takes what a page writes to stderr for a warning"
    return done.stdout


def printed(output, label):
    return re.search(rf"^{re.escape(label)} (.*)$", output, re.MULTILINE)[1]


def test_the_versions_are_printed(output):
    for name in ("Python", "keras", "keras-rs", "jax"):
        assert re.fullmatch(r"\d+\.\d+\S*", printed(output, name)), name


def test_remove_accidental_hits_still_removes_nothing(output):
    lowest = float(printed(output, "lowest score after the layer:"))
    assert lowest > -1.0, MENDED.format("RemoveAccidentalHits of keras-rs")


def test_training_still_does_not_reach_the_layers_on_jax(output):
    assert printed(output, "model(x, training=True):") == "True"
    ways = "model.stateless_call(..., x, training=True):", "model.fit(x, y) on JAX:"
    assert [printed(output, way) for way in ways] == ["None", "None"], MENDED.format(
        "stateless_call of Keras, which now hands `training` on,"
    )


def test_tensorflow_datasets_still_does_not_ask_for_what_it_imports(output):
    if importlib.util.find_spec("tensorflow_datasets") is None:
        pytest.skip("needs tensorflow-datasets")
    asked = printed(output, "asked for:")
    needed = "import of importlib_resources halted" in output
    assert needed, MENDED.format("tensorflow-datasets, which does without importlib_resources,")
    assert asked == "[]" or "python_version <" in asked, MENDED.format(
        "tensorflow-datasets, which now asks for importlib_resources,"
    )


def test_embedding_still_refuses_the_integers_of_numpy(output):
    assert "Embedding takes it" not in output, MENDED.format("keras.layers.Embedding")
    assert "Dense takes it" not in output, MENDED.format("keras.layers.Dense")
    assert output.count("positive integer") == 2


def test_every_fault_says_what_happens_and_what_to_change():
    faults = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    assert len(faults) == 4
    for fault in faults:
        for part in ("```{code-cell}", "**What happens.**", "**Suggested change.**", "Until then"):
            assert part in re.sub(r"\s+", " ", fault), (fault.splitlines()[0], part)


def test_the_page_is_in_the_book():
    assert "- file: book/upstream" in (book.ROOT / "_toc.yml").read_text(encoding="utf-8")
