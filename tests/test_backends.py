"""Every chapter as a script, in its short setting: three backends, the same twice, odd data."""

import contextlib
import functools
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chapters import NOTEBOOKS, models

from rectutor import results

pytestmark = pytest.mark.long


def start_script(name, folder, **environment):
    """Start a chapter as a reader would, from a folder that is not the repository's."""
    variables = {
        **{key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")},
        "RECTUTOR_PROFILE": "smoke",
        "RECTUTOR_RESULTS": str(folder / "results"),
        "PYTHONUNBUFFERED": "1",
        **environment,
    }
    return subprocess.Popen(
        [sys.executable, str(NOTEBOOKS / f"{name}.py")],
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    )


def hear_ctrl_c():
    """What a shell starts in the background ignores Ctrl-C; the scripts here must not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@functools.cache
def run_script(name, backend, seed, repetition=0):
    """Run a chapter on synthetic data; the same arguments share one run within a test worker."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-{backend}-{seed}-"))
    process = start_script(name, folder, KERAS_BACKEND=backend, RECTUTOR_SEED=str(seed))
    out, err = process.communicate(timeout=600)
    return folder, process.returncode, out, err


def measured(name, *arguments):
    folder, returncode, out, err = run_script(name, *arguments)
    assert returncode == 0, out[-3000:] + err[-3000:]
    stored = results.read(folder / "results" / f"{name}.json")
    return stored, [(model["model"], model["metrics"]) for model in stored["models"]]


def own_table(folder, users, movies, timestamps):
    """A CSV table such as a reader might bring."""
    rng = np.random.default_rng(7)
    frame = pd.DataFrame(
        [(f"user {u}", f"item {m}") for u in range(users) for m in range(movies)],
        columns=["user", "item"],
    )
    frame = frame.sample(frac=0.6 if movies > 5 else 0.9, random_state=7)
    frame["rating"] = rng.integers(1, 6, len(frame))
    if timestamps:
        frame["timestamp"] = rng.integers(1_600_000_000, 1_700_000_000, len(frame))
    frame["title"] = frame["item"].str.replace("item", "Thing")
    file = folder / "own.csv"
    frame.to_csv(file, index=False)
    return file


class Chapter:
    """The runs of one chapter, one after the other in one test worker, so that tests share them."""

    name: str

    @pytest.mark.parametrize("backend", ["jax", "tensorflow"])
    def test_runs_on_each_backend(self, backend):
        stored, _ = measured(self.name, backend, 42)
        folder, _, out, err = run_script(self.name, backend, 42)
        self.check_run(backend, stored, folder, out, err)

    @pytest.mark.torch
    def test_runs_on_torch_with_an_own_table(self, tmp_path):
        """First one without timestamps; a chapter that says it needs them gets them."""
        stored, out, err = self.run_own_table(tmp_path / "odd", "torch", 50, 60, timestamps=False)
        folder = tmp_path / "odd"
        if stored is None:
            folder = tmp_path / "whole"
            stored, out, err = self.run_own_table(folder, "torch", 50, 60)
            assert stored is not None, err
        self.check_run("torch", stored, folder, out, err)

    def test_a_table_of_five_movies_works_or_the_first_lines_say_why(self, tmp_path):
        backend = "torch" if importlib.util.find_spec("torch") else "jax"
        self.run_own_table(tmp_path / "few", backend, 40, 5)

    def run_own_table(self, folder, backend, users, movies, timestamps=True):
        """The stored results, or None where the chapter refused the table for a good reason."""
        folder.mkdir()
        file = own_table(folder, users, movies, timestamps)
        process = start_script(self.name, folder, KERAS_BACKEND=backend, RECTUTOR_DATA=str(file))
        out, err = process.communicate(timeout=600)
        if process.returncode == 0:
            own = folder / "results" / "own" / file.stem
            stored = results.read(own / f"{self.name}.json")
            assert stored["data"]["source"] == "dataframe"
            return stored, out, err
        reason = err.strip().splitlines()[-1]
        wanted = r"ValueError: .*\b(timestamp|movies|users|interactions|ratings)\b"
        assert re.match(wanted, reason), err
        assert len(out.splitlines()) <= 5, f"the reason came after {len(out.splitlines())} lines"
        return None, out, err

    def check_run(self, backend, stored, folder, out, err):
        assert stored["backend"] == backend
        assert stored["models"]
        assert f"backend {backend}" in out
        assert "Warning" not in err
        drawn = list((folder / "results").rglob(f"figures/{self.name}-*.svg"))
        source = (NOTEBOOKS / f"{self.name}.py").read_text(encoding="utf-8")
        assert bool(drawn) == bool(re.search(r"run\.show(_intervals)?\(", source))
        assert {"python", "rectutor", "keras", backend, "numpy"} <= stored["versions"].keys()

    def test_two_runs_in_fresh_processes_measure_exactly_the_same(self):
        assert measured(self.name, "jax", 42)[1] == measured(self.name, "jax", 42, 1)[1]

    def test_another_seed_measures_something_else_and_is_stored(self):
        stored, models = measured(self.name, "jax", 43)
        assert models != measured(self.name, "jax", 42)[1]
        assert stored["seed"] == 43


# one class a chapter: the tests of a class share a worker, and so the runs
for _name in models():
    _class = f"Test{_name.title().replace('_', '')}"
    globals()[_class] = type(_class, (Chapter,), {"name": _name})


@pytest.mark.nightly  # the other chapters are not promised to repeat on these backends
@pytest.mark.parametrize("backend", ["tensorflow", pytest.param("torch", marks=pytest.mark.torch)])
def test_ranking_repeats_on_the_other_backends_too(backend):
    assert measured("ranking", backend, 42)[1] == measured("ranking", backend, 42, 1)[1]


def test_stopped_by_ctrl_c_leaves_the_older_results_as_they_were(tmp_path):
    """Of any one chapter: each writes once, at its end (tests/test_notebooks.py)."""
    name = models()[0]
    (tmp_path / "results").mkdir()
    file = tmp_path / "results" / f"{name}.json"
    file.write_text(json.dumps({"older": "results"}), encoding="utf-8")
    process = start_script(name, tmp_path, KERAS_BACKEND="jax")
    next(line for line in process.stdout if line.startswith("epoch "))
    for _ in range(60):  # JAX loses some (see book/benchmarks.md): press again, as one would
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            _, err = process.communicate(timeout=1)
            break
    else:
        process.kill()
        pytest.fail("Ctrl-C, every second for a minute, did not stop it")
    assert process.returncode == -signal.SIGINT, err
    assert json.loads(file.read_text(encoding="utf-8")) == {"older": "results"}
    assert [path.name for path in file.parent.glob("*.json")] == [file.name]
