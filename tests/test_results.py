"""Results files: whole or not at all, and of one schema."""

import copy
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from rectutor import results

RECORD = {
    "schema": 1,
    "chapter": "toy",
    "profile": "quick",
    "seed": 42,
    "backend": "jax",
    "device": "CPU (2 cores)",
    "versions": {"python": "3.11.7"},
    "data": {
        "name": "100k",
        "source": "grouplens",
        "num_users": 943,
        "num_movies": 1682,
        "num_ratings": 100_000,
    },
    "models": [
        {
            "model": "Popularity",
            "recipe": "baseline",
            "protocol": "leave-one-out",
            "metrics": {"ndcg": {"value": 0.045, "low": 0.035, "high": 0.055}},
            "seconds": None,
        }
    ],
    "facts": {"c2_stars_off": 0.41},
}


def changed(path, value):
    """RECORD with one field replaced (or removed, for `...`)."""
    record = copy.deepcopy(RECORD)
    place = record
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return record


def test_what_is_written_is_read_back(tmp_path):
    path = results.write(RECORD, tmp_path / "new" / "toy.json")
    assert results.read(path) == RECORD


def test_reading_leaves_out_chapters_that_have_not_run(tmp_path):
    results.write(RECORD, tmp_path / "toy.json")
    assert list(results.read_all(["ranking", "toy"], tmp_path)) == ["toy"]


def test_a_missing_file_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="make chapter NAME=sasrec"):
        results.read(tmp_path / "sasrec.json")


def test_a_broken_file_names_the_remedy(tmp_path):
    (tmp_path / "toy.json").write_text('{"schema": 1,', encoding="utf-8")
    with pytest.raises(ValueError, match=r"is not JSON .* run the chapter again"):
        results.read(tmp_path / "toy.json")


@pytest.mark.bad_input
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
    record = changed(path, value)
    with pytest.raises(ValueError, match=message):
        results.write(record, tmp_path / "toy.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault
def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = results.write(RECORD, tmp_path / "toy.json")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        results.write(changed(["seed"], 7), path)
    assert results.read(path) == RECORD
    assert [file.name for file in tmp_path.iterdir()] == ["toy.json"]


@pytest.mark.fault
def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    """SIGKILL at a random moment of a loop that writes: the file on disk is always whole."""
    path = results.write(RECORD, tmp_path / "toy.json")
    script = (
        "import json, pathlib, sys; from rectutor import results\n"
        f"path = pathlib.Path({str(path)!r}); record = json.loads(path.read_text())\n"
        "print('go', flush=True)\n"
        "while True:\n"
        "    record['seed'] += 1; results.write(record, path)\n"
    )
    for delay in (0.01, 0.03, 0.07):
        writer = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=tmp_path
        )
        writer.stdout.readline()
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        results.read(path)


def test_the_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("RECTUTOR_RESULTS", str(tmp_path))
    assert results.folder() == tmp_path


def test_the_folder_is_beside_the_notebooks(tmp_path, monkeypatch):
    monkeypatch.delenv("RECTUTOR_RESULTS", raising=False)
    (tmp_path / "_toc.yml").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert results.folder() == tmp_path / "results"


def test_versions_name_python_and_keras():
    assert {"python", "keras", "numpy"} <= results.versions().keys()


def test_written_files_are_plain_json(tmp_path):
    path = results.write(RECORD, tmp_path / "toy.json")
    assert json.loads(path.read_text(encoding="utf-8"))["models"][0]["model"] == "Popularity"
