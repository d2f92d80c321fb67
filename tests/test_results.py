"""Results files: whole or not at all, and of one schema."""

import copy
import functools
import json
import operator
import os
import signal
import subprocess
import sys
import time
from unittest.mock import Mock

import numpy as np
import pytest

from rectutor import results
from rectutor.evaluation import Interval

RECORD = {
    "schema": 1,
    "chapter": "toy",
    "profile": "quick",
    "seed": 42,
    "backend": "jax",
    "device": "CPU (2 cores)",
    "versions": {"python": "3.11.7"},
    "data": {"name": "100k", "source": "grouplens"}
    | {"num_users": 943, "num_movies": 1682, "num_ratings": 100_000},
    "models": [
        {"model": "Popularity", "recipe": "baseline", "protocol": "leave-one-out", "seconds": None}
        | {"metrics": {"ndcg": {"value": 0.045, "low": 0.035, "high": 0.055}}}
    ],
    "facts": {"c2_stars_off": 0.41},
}


def changed(path, value):
    """RECORD with one field replaced (or removed, for `...`)."""
    record = copy.deepcopy(RECORD)
    *steps, last = path
    place = functools.reduce(operator.getitem, steps, record)
    place[last] = value
    if value is ...:
        del place[last]
    return record


def test_what_is_written_is_read_back(tmp_path):
    path = results.write(RECORD, tmp_path / "new" / "toy.json")
    assert results.read(path) == RECORD == json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository of the book, seen from its notebooks."""
    monkeypatch.delenv("RECTUTOR_RESULTS", raising=False)
    (tmp_path / "_toc.yml").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


def test_what_has_run_lies_over_what_is_committed_in_a_stable_order(checkout, tmp_path):
    for name in ("ranking", "gru4rec"):
        results.write(RECORD, checkout / "results" / f"{name}.json")
    for name in ("sasrec", "gru4rec"):
        results.write(changed(["seed"], 7), results.folder() / f"{name}.json")
    found = {name: record["seed"] for name, record in results.read_all().items()}
    assert list(found.items()) == [("gru4rec", 7), ("ranking", 42), ("sasrec", 7)]
    assert list(results.read_all(checkout / "results")) == ["gru4rec", "ranking"]
    assert results.read_all(tmp_path / "nowhere") == {}


def test_a_missing_or_broken_file_names_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="make chapter NAME=sasrec"):
        results.read(tmp_path / "sasrec.json")
    (tmp_path / "toy.json").write_text('{"schema": 1,', encoding="utf-8")
    with pytest.raises(ValueError, match=r"is not JSON .* run the chapter again"):
        results.read(tmp_path / "toy.json")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["schema"], 2, "schema is 2"),
        (["schema"], ..., "'schema' is missing"),
        (["chapter"], 3, "'chapter' is 3"),
        (["seed"], True, "'seed' is True"),
        (["data", "num_users"], "many", "'num_users' is 'many'"),
        (["data"], [], "'data' is \\[\\]"),
        (["models", 0, "recipe"], "magic", "recipe is 'magic', choose one of"),
        (["models", 0, "protocol"], "P", "protocol is 'P', choose one of"),
        (["models", 0, "metrics"], {}, "metrics are empty"),
        (["models", 0, "metrics", "ndcg"], 0.045, "expected an object"),
        (["models", 0, "metrics", "ndcg", "value"], float("nan"), "must be finite"),
        (["models", 0], "Popularity", "expected an object"),
        (["facts", "c2_stars_off"], float("inf"), "store a finite number"),
        (["facts", "c2_stars_off"], [1], "store an int"),
        (["facts", "c2_stars_off"], True, "store an int"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_and_nothing_written(tmp_path, path, value, message):
    with pytest.raises(ValueError, match=message):
        results.write(changed(path, value), tmp_path / "toy.json")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = results.write(RECORD, tmp_path / "toy.json")

    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        results.write(changed(["seed"], 7), path)
    assert results.read(path) == RECORD
    assert [file.name for file in tmp_path.iterdir()] == ["toy.json"]


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    """SIGKILL at a random moment of a loop that writes: the file on disk is always whole."""
    path = results.write(RECORD, tmp_path / "toy.json")
    script = (
        "import json, pathlib; from rectutor import results\n"
        f"path = pathlib.Path({str(path)!r}); record = json.loads(path.read_text())\n"
        "print('go', flush=True)\n"
        "while True: record['seed'] += 1; results.write(record, path)\n"
    )
    command = [sys.executable, "-c", script]
    for delay in (0.01, 0.03, 0.07):
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path) as writer:
            writer.stdout.readline()
            time.sleep(delay)
            writer.send_signal(signal.SIGKILL)
        results.read(path)


def test_in_a_checkout_the_folder_is_untracked_or_the_environments(checkout, monkeypatch):
    for place in (checkout / "notebooks", checkout):
        monkeypatch.chdir(place)
        assert results.folder() == checkout / "_build" / "results"
    monkeypatch.setenv("RECTUTOR_RESULTS", str(checkout / "here"))
    assert results.folder() == checkout / "here"


def test_outside_a_checkout_the_folder_is_beside_the_reader(tmp_path, monkeypatch):
    monkeypatch.delenv("RECTUTOR_RESULTS", raising=False)
    monkeypatch.setattr(results, "__file__", str(tmp_path / "site" / "rectutor" / "results.py"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert results.checkout() is None
    assert results.folder() == tmp_path / "elsewhere" / "results"
    assert results.relative(results.folder() / "toy.json").as_posix() == "results/toy.json"


def test_what_ran_on_an_own_table_lies_apart(checkout, monkeypatch):
    results.write(RECORD, checkout / "results" / "ranking.json")
    monkeypatch.setenv("RECTUTOR_DATA", "somewhere/loans.csv.gz")
    assert results.folder() == checkout / "_build" / "results" / "own" / "loans"
    results.write(changed(["seed"], 7), results.folder() / "ranking.json")
    assert [record["seed"] for record in results.read_all().values()] == [7]
    shown = results.relative(results.folder() / "ranking.json").as_posix()
    assert shown == "_build/results/own/loans/ranking.json"
    monkeypatch.setenv("RECTUTOR_RESULTS", str(checkout.parent / "mine"))
    shown = results.relative(results.folder() / "ranking.json").as_posix()
    assert shown == "mine/own/loans/ranking.json"
    monkeypatch.setenv("RECTUTOR_DATA", "")
    assert results.folder() == checkout.parent / "mine"


def test_a_home_is_understood(checkout, monkeypatch, tmp_path):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    monkeypatch.setenv("RECTUTOR_RESULTS", "~/mine")
    assert results.folder() == tmp_path / "home" / "mine"


def test_messages_name_no_place_of_the_machine(checkout, monkeypatch):
    assert results.relative(results.folder() / "a.json").as_posix() == "_build/results/a.json"
    monkeypatch.setenv("RECTUTOR_RESULTS", str(checkout.parent / "mine"))
    assert results.relative(results.folder() / "a.json").as_posix() == "mine/a.json"
    assert results.relative(checkout.parent.parent.parent / "b.json").as_posix() == "b.json"


def test_an_entry_takes_numbers_triples_and_intervals():
    metrics = {"a": np.float32(0.5), "b": (1, 0, 2), "c": Interval(0.2, 0.1, 0.3)}
    names = {"model": "x", "recipe": "step", "protocol": "rating"}
    made = results.entry(**names, metrics=metrics, seconds=0.12345)
    assert made["metrics"] == {
        "a": {"value": 0.5, "low": None, "high": None},
        "b": {"value": 1.0, "low": 0.0, "high": 2.0},
        "c": {"value": 0.2, "low": 0.1, "high": 0.3},
    }
    assert made["seconds"] == 0.123


def test_versions_name_python_and_keras():
    assert {"python", "keras", "numpy"} <= results.versions().keys()
