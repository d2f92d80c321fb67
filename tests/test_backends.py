"""Every chapter as a script, in its short setting: three backends, the same twice, odd data."""

import functools
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
from chapters import NOTEBOOKS, names

from rectutor import results

BACKENDS = ("jax", "tensorflow", "torch")
MODEL_CHAPTERS = [name for name in names() if name != "leaderboard"]

# one worker runs all of a chapter's scripts, so that two tests can share a run
each_chapter = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in MODEL_CHAPTERS]
)

# the chapters with the most to compile take minutes: they are left to `make test-nightly`
LONG = ("ranking", "retrieval", "sasrec")
each_chapter_long_ones_nightly = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[pytest.mark.xdist_group(name)] + [pytest.mark.nightly] * (name in LONG),
        )
        for name in MODEL_CHAPTERS
    ],
)
pytestmark = pytest.mark.slow


@functools.cache
def compiled():
    """Where JAX keeps what it has compiled, so that a chapter's second run need not wait for it.

    The nightly runs compile anew in every process, as a reader's runs do.
    """
    if os.environ.get("RECTUTOR_HYPOTHESIS") == "nightly":
        return {}
    return {
        "JAX_COMPILATION_CACHE_DIR": tempfile.mkdtemp(prefix="jax-compiled-"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def start_script(name, folder, **environment):
    """Start a chapter as a reader would, from a folder that is not the repository's."""
    variables = {
        **os.environ,
        **compiled(),
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


@each_chapter
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_chapter_runs_on_each_backend(name, backend):
    stored, models = measured(name, backend, 42)
    folder, _, out, err = run_script(name, backend, 42)
    assert stored["backend"] == backend
    assert models
    assert f"backend {backend}" in out
    assert "Warning" not in err
    assert list((folder / "results" / "figures").glob(f"{name}-*.svg"))


@each_chapter
def test_two_runs_in_fresh_processes_measure_exactly_the_same(name):
    assert measured(name, "jax", 42)[1] == measured(name, "jax", 42, 1)[1]


@pytest.mark.nightly  # the other chapters are not promised to repeat on these backends
@pytest.mark.xdist_group("ranking")
@pytest.mark.parametrize("backend", ["tensorflow", "torch"])
def test_the_ranking_chapter_repeats_on_the_other_backends_too(backend):
    assert measured("ranking", backend, 42)[1] == measured("ranking", backend, 42, 1)[1]


@each_chapter_long_ones_nightly
def test_another_seed_measures_something_else(name):
    assert measured(name, "jax", 42)[1] != measured(name, "jax", 43)[1]


@each_chapter_long_ones_nightly
def test_the_stored_results_name_seed_and_versions(name):
    stored, _ = measured(name, "jax", 43)
    assert stored["seed"] == 43
    assert {"python", "rectutor", "keras", "jax", "numpy"} <= stored["versions"].keys()


def own_table(folder, users, movies, timestamps=True):
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


def works_or_says_why(name, folder, users, movies, timestamps):
    file = own_table(folder, users, movies, timestamps)
    process = start_script(name, folder, KERAS_BACKEND="jax", RECTUTOR_DATA=str(file))
    out, err = process.communicate(timeout=600)
    if process.returncode == 0:
        stored = results.read(folder / "results" / f"{name}.json")
        assert stored["data"]["source"] == "dataframe"
        return
    reason = err.strip().splitlines()[-1]
    assert re.match(r"ValueError: .*\b(timestamp|movies|users|interactions|ratings)\b", reason), err
    assert len(out.splitlines()) <= 5, f"the reason came after {len(out.splitlines())} lines"


@each_chapter_long_ones_nightly
def test_a_table_of_fifty_users_works_or_the_first_lines_say_why(name, tmp_path):
    works_or_says_why(name, tmp_path, users=50, movies=60, timestamps=True)


@each_chapter
@pytest.mark.parametrize(
    ("movies", "timestamps"), [(5, True), (60, False)], ids=["5 movies", "no timestamps"]
)
def test_a_smaller_table_works_or_the_first_lines_say_why(name, movies, timestamps, tmp_path):
    works_or_says_why(name, tmp_path, users=40, movies=movies, timestamps=timestamps)


@each_chapter
def test_a_stopped_chapter_leaves_the_older_results_as_they_were(name, tmp_path):
    """Ctrl-C in the middle of the training."""
    (tmp_path / "results").mkdir()
    file = tmp_path / "results" / f"{name}.json"
    file.write_text(json.dumps({"older": "results"}), encoding="utf-8")
    process = start_script(name, tmp_path, KERAS_BACKEND="jax")
    for line in process.stdout:
        if line.startswith("epoch "):
            process.send_signal(signal.SIGINT)
            break
    process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert json.loads(file.read_text(encoding="utf-8")) == {"older": "results"}
    assert [path.name for path in file.parent.glob("*.json")] == [file.name]
