"""Every chapter as a script, end to end, on each backend, in the short setting."""

import json
import os
import subprocess
import sys

import pytest
from chapters import NOTEBOOKS, names

from rectutor import results

BACKENDS = ("jax", "tensorflow", "torch")
MODEL_CHAPTERS = [name for name in names() if name != "leaderboard"]


def run_script(name, folder, **environment):
    """Run a chapter as a reader would, from a folder that is not the repository's."""
    variables = os.environ | {
        "RECTUTOR_PROFILE": "smoke",
        "RECTUTOR_RESULTS": str(folder / "results"),
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-W", "error::Warning:rectutor", str(NOTEBOOKS / f"{name}.py")],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MODEL_CHAPTERS)
def test_the_chapter_runs_as_a_script(name, backend, tmp_path):
    done = run_script(name, tmp_path, KERAS_BACKEND=backend)
    stored = results.read(tmp_path / "results" / f"{name}.json")
    assert stored["backend"] == backend
    assert stored["models"]
    assert f"backend {backend}" in done.stdout
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "results" / "figures").glob(f"{name}-*.svg"))


def metrics(folder, name):
    stored = json.loads((folder / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return [(model["model"], model["metrics"]) for model in stored["models"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODEL_CHAPTERS)
def test_two_runs_measure_the_same_and_another_seed_something_else(name, tmp_path):
    for folder, seed in (("a", "42"), ("b", "42"), ("c", "43")):
        (tmp_path / folder).mkdir()
        run_script(name, tmp_path / folder, KERAS_BACKEND="jax", RECTUTOR_SEED=seed)
    assert metrics(tmp_path / "a", name) == metrics(tmp_path / "b", name)
    assert metrics(tmp_path / "a", name) != metrics(tmp_path / "c", name)
