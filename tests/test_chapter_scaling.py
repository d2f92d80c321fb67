"""The promises of the scaling chapter: the same windows, the same losses, an end without a hang."""

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import duckdb
import keras
import numpy as np
import pandas as pd
import pytest
from chapters import ROOT, definitions

from benchmarks import scaling as benchmark
from rectutor.data import synthetic
from rectutor.sequences import training_windows
from rectutor.splits import leave_one_out

CHAPTER = definitions("scaling")
LENGTH = 5
NUM_USERS, NUM_MOVIES = 60, 40
LIMIT = 150  # seconds for a pair of processes


@pytest.fixture(scope="module")
def log():
    """Ratings with many ties in time, and users with one, two and three of them."""
    ratings = synthetic(NUM_USERS - 3, NUM_MOVIES, 1_500, seed=3).ratings
    ratings = ratings[["user_id", "movie_id", "timestamp"]].copy()
    ratings["timestamp"] //= 200_000
    few = {"user_id": [58, 59, 59, 60, 60, 60], "movie_id": [1, 2, 3, 4, 5, 6], "timestamp": 9}
    ratings = pd.concat([ratings, pd.DataFrame(few)]).sample(frac=1, random_state=1)
    return ratings.reset_index(drop=True)


@pytest.fixture(scope="module")
def prepared(log, tmp_path_factory):
    """A folder with what the chapter's preparation writes."""
    place = tmp_path_factory.mktemp("prepared")
    halves = np.array_split(np.arange(len(log)), 2)  # the log comes in two files
    for number, rows in enumerate(halves):
        piece = log.iloc[rows].assign(event=rows)
        duckdb.from_df(piece).write_parquet(str(place / f"log-{number}.parquet"))
    CHAPTER.prepare(place / "log-*.parquet", place / "out", NUM_USERS, 4, LENGTH, "256MB")
    return place / "out"


def windows_of(folder):
    files = sorted(folder.glob("windows-*.parquet"))
    assert len(files) == 4
    parts = [CHAPTER.read_windows(file, LENGTH) for file in files]
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


class TestPreparation:
    def test_windows_are_those_in_memory_row_for_row(self, log, prepared):
        split = leave_one_out(log, num_users=NUM_USERS, num_movies=NUM_MOVIES)
        expected = training_windows(split.histories(before="validation"), LENGTH)
        for ours, theirs in zip(windows_of(prepared), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)

    def test_what_is_held_out_is_that_of_the_protocol(self, log, prepared):
        split = leave_one_out(log, num_users=NUM_USERS, num_movies=NUM_MOVIES)
        found = duckdb.sql(f"SELECT * FROM '{prepared}/held_out-*.parquet'").df()
        for part, is_test in [(split.validation, False), (split.test, True)]:
            ours = found[found["is_test"] == is_test].sort_values("user_id")
            theirs = part.sort_values("user_id")
            assert ours["user_id"].tolist() == theirs["user_id"].tolist()
            assert ours["movie_id"].tolist() == theirs["movie_id"].tolist()

    def test_the_benchmark_does_the_chapters_job_by_every_engine(self, tmp_path, monkeypatch):
        monkeypatch.setattr(benchmark, "PIECE", 2_000)
        monkeypatch.setattr(benchmark, "PART", 2_500)
        rows, log = 10_000, tmp_path / "log"
        benchmark.make_log(rows, log)
        benchmark.by_duckdb(log, tmp_path / "duckdb", rows)
        benchmark.by_pandas(log, tmp_path / "pandas", rows)
        read = benchmark.chapter_functions()["read_windows"]
        files = sorted((tmp_path / "duckdb").glob("windows-*"))
        assert len(files) == 4
        ours = np.concatenate([read(file, benchmark.LENGTH)[0] for file in files])
        np.testing.assert_array_equal(ours, np.load(tmp_path / "pandas" / "windows.npz")["inputs"])

    def test_what_the_page_shows_is_what_the_benchmark_stored(self):
        included = ROOT / "rectutor" / "included" / "scaling.json"
        assert included.read_text() == benchmark.RESULTS.read_text()
        rows = {(row["rows"], row["engine"]): row for row in json.loads(included.read_text())}
        assert rows[100_000_000, "duckdb"]["peak_gb"] < 2
        assert rows[1_000_000_000, "duckdb"]["peak_gb"] < 4


@pytest.fixture(scope="module")
def job(prepared, tmp_path_factory):
    """A small training, on one device unless told otherwise."""
    files = sorted(map(str, prepared.glob("windows-*.parquet")))
    made = {"files": files, "context": LENGTH, "rows": 44, "width": 8, "seed": 1}
    made |= {"batch": 8, "steps": 3, "epochs": 4, "table_over": 0, "save": False}
    place = tmp_path_factory.mktemp("checkpoints") / "none"
    return SimpleNamespace(**made, checkpoints=str(place))


def changed(job, **changes):
    return SimpleNamespace(**vars(job) | changes)


@pytest.fixture(scope="module")
def losses(job):
    """Of one device, without a stop."""
    try:
        return CHAPTER.train(job)[1]
    finally:
        keras.distribution.set_distribution(None)


class TestBatches:
    def test_parts_of_the_processes_are_one_batch(self, job):
        whole = list(CHAPTER.batches(job, [0], 0, 1))
        halves = [list(CHAPTER.batches(job, [0], part, 2)) for part in (0, 1)]
        joined = zip(*halves, strict=True)
        assert len(whole) == job.steps
        for (inputs, targets), (first, second) in zip(whole, joined, strict=True):
            np.testing.assert_array_equal(inputs, np.concatenate([first[0], second[0]]))
            np.testing.assert_array_equal(targets, np.concatenate([first[1], second[1]]))

    def test_who_goes_on_gets_the_batches_he_would_have_got(self, job):
        whole = list(CHAPTER.batches(job, range(3), 0, 1))
        later = list(CHAPTER.batches(job, range(2, 3), 0, 1))
        for one, other in zip(whole[2 * job.steps :], later, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_a_batch_larger_than_a_file_is_filled_up(self, job):
        ((inputs, _),) = CHAPTER.batches(changed(job, batch=500, steps=1), [0], 0, 1)
        assert inputs.shape == (500, LENGTH)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    file = tmp_path_factory.mktemp("job") / "train.py"
    CHAPTER.write_script(file)
    return file


@pytest.mark.long
class TestTwoProcesses:
    """Every wait has its limit: a hang is a failure."""

    def test_by_the_variables_of_slurm_they_train_as_one_device_does(
        self, script, job, losses, tmp_path
    ):
        told = tmp_path / "job.json"
        told.write_text(json.dumps(vars(changed(job, table_over=1))))
        number = 10_000 + os.getpid() % 4_000  # the port follows from it
        slurm = {"SLURM_JOB_ID": number, "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": 2}
        children, logs = [], []
        for process in range(2):
            own = slurm | {"SLURM_PROCID": process, "SLURM_LOCALID": process}
            env = os.environ | {"JAX_NUM_CPU_DEVICES": "2"} | {k: str(v) for k, v in own.items()}
            logs.append(tmp_path / f"{process}.log")
            with logs[-1].open("w") as log:
                how = {"stdout": log, "stderr": subprocess.STDOUT, "env": env}
                children.append(subprocess.Popen([sys.executable, script, told], **how))
        found = CHAPTER.finish(children, logs, LIMIT)
        assert len(found) == 2, logs[0].read_text()[-2000:]
        for each in found:
            np.testing.assert_allclose(each["losses"], losses, atol=1e-5)
            assert each["rows"] == [[0, 44]]  # all rows on every device

    def test_one_dies_the_other_ends_and_the_run_goes_on_where_it_was(
        self, script, job, losses, tmp_path
    ):
        kept = tmp_path / "kept"
        cut = changed(job, table_over=2, save=True, checkpoints=str(kept), epochs=500)
        children, logs = CHAPTER.start(script, cut, tmp_path / "killed")
        try:
            end = time.monotonic() + LIMIT
            while not CHAPTER.kept_epochs(kept):
                waiting = children[0].poll() is None and time.monotonic() < end
                assert waiting, logs[0].read_text()[-2000:]
                time.sleep(0.02)
            children[1].kill()
            killed = time.monotonic()
            assert children[0].wait(30) != 0
            assert time.monotonic() - killed < 30
        finally:
            CHAPTER.finish(children, logs, 1)

        cut.epochs = max(CHAPTER.kept_epochs(kept)) + 3
        found = CHAPTER.finish(*CHAPTER.start(script, cut, tmp_path / "again"), LIMIT)
        assert [each["rows"] for each in found] == [[[0, 22]], [[22, 44]]]  # a half each
        try:
            whole = CHAPTER.train(changed(job, epochs=cut.epochs))[1]
        finally:
            keras.distribution.set_distribution(None)
        np.testing.assert_allclose(whole[: len(losses)], losses[: len(whole)], atol=1e-6)
        for each in found:
            np.testing.assert_allclose(each["losses"], whole[-2:], atol=1e-5)


TOP = """
import os
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
import jax
import numpy as np
from chapters import definitions

chapter = definitions("scaling")
how = chapter.distribution({table_over})
place = jax.sharding.NamedSharding(how.device_mesh.backend_mesh, chapter.P("table", None))
rng = np.random.default_rng(0)
for table in (rng.normal(size=(40, 6)), np.ones((40, 6))):  # and where all scores are equal
    table, states = np.float32(table), np.float32(rng.normal(size=(7, 6)))
    cut = jax.device_put(table, place)
    assert len({{s.index[0].start for s in cut.addressable_shards}}) == {table_over}
    found = jax.jit(chapter.top_of_parts, static_argnums=(2, 3))(states, cut, place.mesh, 5)
    _, plain = jax.lax.top_k(states @ table.T, 5)
    np.testing.assert_array_equal(found, plain)
print("equal")
"""


@pytest.mark.long
@pytest.mark.parametrize("table_over", [2, 4])
def test_the_best_of_parts_are_the_best_of_the_whole(table_over):
    """In a process of its own, which has four devices."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", TOP.format(table_over=table_over)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.stdout.strip() == "equal", done.stderr[-2000:]
