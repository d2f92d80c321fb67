"""SASRec on a million ratings: what is read, what is held out, and a run that goes on."""

import json
import zipfile
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from chapters import definitions

from benchmarks import million, rectools_peer, report
from rectutor.data import from_dataframe
from rectutor.splits import leave_one_out

MORE = " ".join(map(str, range(7, 20)))  # a catalogue of more than ten movies
LINES = ["1 2 3 4 5", "3 1", f"{MORE} 5 4 3 2 1 6"]


@pytest.fixture
def archive(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / million.ARCHIVE, "w") as file:
        file.writestr("ml-1m-sequences.txt", "\n".join(LINES) + "\n")
    monkeypatch.setenv("RECTUTOR_ARCHIVES", str(tmp_path))


def test_a_line_is_a_user_and_its_last_movie_is_the_test(archive):
    split = million.leave_one_out()
    assert split.num_users == 3
    assert split.test["movie_id"].tolist() == [5, 6]  # a user with two movies has none
    assert split.validation["movie_id"].tolist() == [4, 1]


def test_the_peer_is_asked_for_the_same_movies(archive):
    rows = million.sequences()
    for last, ours in [(0, million.leave_one_out().test), (1, million.leave_one_out().validation)]:
        history, theirs = rectools_peer.held_out(rows, last)
        theirs = theirs[theirs["user"].isin(ours["user_id"])]
        assert theirs["item"].tolist() == ours["movie_id"].tolist()
        assert len(history) == len(rows) - 3 * (last + 1)


def test_a_file_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("RECTUTOR_ARCHIVES", str(tmp_path))
    with pytest.raises(SystemExit, match=million.ARCHIVE):
        million.sequences()


class TestProgress:
    def rows(self, *ndcgs):
        return [{"epoch": n, "ndcg": x, "seconds": 60.0} for n, x in enumerate(ndcgs, start=1)]

    def progress(self, folder, *ndcgs):
        made = million.Progress(folder, SimpleNamespace(width=8))
        for row in self.rows(*ndcgs):
            made.add(row)
        return made

    def test_a_run_is_over_when_validation_stalls_or_time_is_up(self, tmp_path):
        assert not self.progress(tmp_path).is_over(1.0)
        stalled = self.progress(tmp_path, 0.1, 0.2, *[0.15] * million.PATIENCE)
        assert stalled.is_over(1.0)
        assert stalled.best["epoch"] == 2
        rising = self.progress(tmp_path / "rising", 0.1, 0.2, 0.3)
        assert not rising.is_over(1.0)
        assert rising.is_over(0.05)  # three minutes

    def test_what_was_kept_is_read_again_and_other_settings_are_refused(self, tmp_path):
        kept = self.progress(tmp_path, 0.1, 0.2).epochs
        assert million.Progress(tmp_path, SimpleNamespace(width=8)).epochs == kept
        with pytest.raises(SystemExit, match="other settings"):
            million.Progress(tmp_path, SimpleNamespace(width=9))


@pytest.mark.long
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="the benchmark is JAX's")
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"user": rng.integers(1, 60, 1500), "item": rng.integers(1, 30, 1500)})
    table["timestamp"] = np.arange(1500)
    columns = {"user": "user", "item": "item", "timestamp": "timestamp"}
    split = leave_one_out(from_dataframe(table.drop_duplicates(["user", "item"]), **columns))
    code = definitions("sasrec_levers")
    settings = million.settings_of(code)
    sizes = {"context": 8, "width": 8, "heads": 1, "batch_size": 16, "average": 0.9}
    settings = SimpleNamespace(**vars(settings) | sizes)

    def ran(folder, *ends):
        """The kept epochs and the best weights of a run that is stopped at each of these."""
        folder.mkdir()
        for end in ends:
            progress = million.Progress(folder, settings)
            monkeypatch.setattr(
                progress, "is_over", lambda hours, p=progress, e=end: len(p.epochs) >= e
            )
            model = code.levers_model(split.num_movies, settings, million.SEED)
            model.build((None, settings.context))
            million.train(split, model, code.lever_scores(model), progress, 1.0, code)
        model.load_weights(folder / "best.weights.h5")
        kept = [{k: v for k, v in row.items() if k != "seconds"} for row in progress.epochs]
        return kept, model.get_weights()

    whole, stopped = ran(tmp_path / "whole", 4), ran(tmp_path / "stopped", 2, 4)
    assert [row["epoch"] for row in stopped[0]] == [1, 2, 3, 4]
    assert stopped[0] == whole[0]
    for ours, theirs in zip(stopped[1], whole[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_test_is_asked_beside_the_baselines(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(million, "RESULTS", tmp_path)
    code = definitions("sasrec_levers")
    settings = SimpleNamespace(**vars(million.settings_of(code)) | {"context": 4, "width": 4})
    split = million.leave_one_out()
    model = code.levers_model(split.num_movies, settings, million.SEED)
    model.build((None, settings.context))
    progress = million.Progress(tmp_path, settings)
    progress.add({"epoch": 1, "ndcg": 0.5, "seconds": 1.0})
    model.save_weights(tmp_path / "best.weights.h5")
    stored = json.loads(million.test(split, model, code.lever_scores(model), progress).read_text())
    assert [row["model"] for row in stored["test"]][:2] == ["SASRec, levers", "popularity"]
    assert all(low <= value <= high for row in stored["test"] for value, low, high in [row["ndcg"]])
    assert stored["best"]["epoch"] == 1
    assert stored["asked"] == million.Progress(tmp_path, settings).kept["asked"] == [1]


RUN = {
    "data": {"users": 6040, "movies": 3416, "interactions": 987531},
    "patience": 5,
    "settings": {"patience": 10, "width": 128},
    "epochs": [
        {"epoch": 1, "ndcg": 0.16, "seconds": 1800.0},
        {"epoch": 2, "ndcg": 0.17, "seconds": 1800.0},
    ],
    "best": {"epoch": 2, "ndcg": 0.17},
    "test": [
        {"model": "EASE", "hit_rate": [0.2, 0.19, 0.21], "ndcg": [0.1, 0.09, 0.11]},
        {"model": "SASRec, levers", "hit_rate": [0.3, 0.29, 0.31], "ndcg": [0.19, 0.18, 0.2]},
    ],
}
PEER = {
    "machine": {"versions": {"RecTools": "0.19.0"}},
    "epochs": [{"epoch": 1, "seconds": 7200.0}],
    "test": [{"model": "RecTools, SASRec", "hit_rate": [0.4, 0.3, 0.5], "ndcg": [0.2, 0.1, 0.3]}],
}


class TestPage:
    def test_the_best_comes_first_and_hours_are_of_training(self):
        rows = report.million_rows(RUN, PEER)
        assert [row["model"] for row in rows] == [
            "RecTools, SASRec",
            "SASRec, levers, 128 wide",
            "EASE",
        ]
        assert [row.get("hours") for row in rows] == [2.0, 1.0, None]

    def test_an_earlier_run_is_a_row_and_its_settings_are_told(self):
        earlier = RUN | {"settings": {"width": 64, "patience": 10}, "best": {"ndcg": 0.16}}
        earlier["test"] = [RUN["test"][0], dict(RUN["test"][1], ndcg=[0.18, 0.17, 0.19])]
        rows = report.million_rows(RUN, None, earlier)
        assert [row["model"] for row in rows] == [
            "SASRec, levers, 128 wide",
            "SASRec, levers, 64 wide",
            "EASE",
        ]
        text = report.million_page(RUN, None, earlier)
        assert "Four sets have been tried" in text
        assert "64 wide and reached\n0.160 on validation" in text
        assert "Four sets" not in report.million_page(RUN, None)

    def test_how_often_the_test_was_asked_is_told(self):
        assert "The test was asked once" in report.million_page(RUN, None)
        text = report.million_page(RUN | {"asked": [1, 2]}, None)
        assert "The test was asked after 1 and after 2 epochs" in text

    def test_an_aim_that_is_not_reached_is_told(self):
        text = report.million_page(RUN, None)
        assert "0.205: not reached" in text
        assert "0.190 [0.180, 0.200]" in text
        assert "RecTools'" not in text
        best = RUN | {"test": [dict(RUN["test"][1], ndcg=[0.21, 0.2, 0.22])]}
        assert "0.205: reached" in report.million_page(best, PEER)
