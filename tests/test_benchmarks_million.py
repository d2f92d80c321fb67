"""SASRec on a million ratings: what is read, what is held out, and a run that goes on."""

import json
import zipfile
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest

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
@pytest.mark.parametrize("name", million.CHAPTERS)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(name, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"user": rng.integers(1, 60, 1500), "item": rng.integers(1, 30, 1500)})
    table["timestamp"] = np.arange(1500)
    columns = {"user": "user", "item": "item", "timestamp": "timestamp"}
    split = leave_one_out(from_dataframe(table.drop_duplicates(["user", "item"]), **columns))
    code = million.code_of(name)
    sizes = {"context": 8, "width": 8, "heads": 1, "batch_size": 16}
    if name == "sasrec_levers":
        sizes["average"] = 0.9
    settings = SimpleNamespace(**vars(code.settings) | sizes)

    def ran(folder, *ends):
        """The kept epochs and the best weights of a run that is stopped at each of these."""
        folder.mkdir()
        for end in ends:
            progress = million.Progress(folder, settings)
            monkeypatch.setattr(
                progress, "is_over", lambda hours, p=progress, e=end: len(p.epochs) >= e
            )
            model = code.model(split.num_movies, settings, million.SEED)
            model.build((None, settings.context))
            million.choose(split, model, progress, 1.0, code)
        model.load_weights(folder / "best.weights.h5")
        kept = [{k: v for k, v in row.items() if k != "seconds"} for row in progress.epochs]
        return kept, model.get_weights()

    whole, stopped = ran(tmp_path / "whole", 4), ran(tmp_path / "stopped", 2, 4)
    assert [row["epoch"] for row in stopped[0]] == [1, 2, 3, 4]
    assert stopped[0] == whole[0]
    for ours, theirs in zip(stopped[1], whole[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)

    seen = []
    monkeypatch.setattr(code, "windows", spy(code.windows, seen))
    progress = million.Progress(tmp_path / "whole", settings)
    model = code.model(split.num_movies, settings, million.SEED)
    model.build((None, settings.context))
    million.refit(split, model, progress, code)
    assert len(progress.refit().epochs) == progress.best["epoch"]
    assert "ndcg" not in progress.refit().epochs[0]  # validation is learned from, not asked
    assert [len(rows) for rows in seen] == [len(split.train) + len(split.validation)]
    assert (tmp_path / "whole" / "refit" / "best.weights.h5").is_file()
    million.refit(split, model, progress, code)  # it is over: nothing more is trained
    assert len(progress.refit().epochs) == progress.best["epoch"]


def spy(function, seen):
    """The function, its first arguments kept."""

    def asked(first, *args, **kwargs):
        seen.append(first)
        return function(first, *args, **kwargs)

    return asked


def test_the_test_is_asked(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(million, "RESULTS", tmp_path)
    code = million.code_of("sasrec_levers")
    settings = SimpleNamespace(**vars(code.settings) | {"context": 4, "width": 4})
    split = million.leave_one_out()
    model = code.model(split.num_movies, settings, million.SEED)
    model.build((None, settings.context))
    progress = million.Progress(tmp_path, settings)
    progress.add({"epoch": 1, "ndcg": 0.5, "seconds": 1.0})
    model.save_weights(tmp_path / "best.weights.h5")
    stored = json.loads(million.test(split, model, progress, code).read_text())
    assert [row["model"] for row in stored["test"]] == ["SASRec, levers"]
    assert all(low <= value <= high for row in stored["test"] for value, low, high in [row["ndcg"]])
    assert stored["best"]["epoch"] == 1
    assert stored["asked"] == ["after 1 epochs"]

    progress.add({"epoch": 2, "ndcg": 0.6, "seconds": 1.0})
    progress.refit().add({"epoch": 1, "seconds": 1.0})
    with pytest.raises(SystemExit, match="anew for 1 of 2"):  # half trained
        million.test(split, model, progress, code)
    progress.refit().add({"epoch": 2, "seconds": 1.0})
    model.set_weights([weights + 1 for weights in model.get_weights()])
    model.save_weights(tmp_path / "refit" / "best.weights.h5")
    expected = model.get_weights()
    stored = json.loads(million.test(split, model, progress, code).read_text())
    np.testing.assert_array_equal(model.get_weights()[0], expected[0])  # of the model trained anew
    assert [row["epoch"] for row in stored["refit"]] == [1, 2]
    asked = ["after 1 epochs", "after 2 epochs, of a model trained anew for 2"]
    assert stored["asked"] == million.Progress(tmp_path, settings).kept["asked"] == asked


def test_baselines_are_chosen_on_validation_and_asked(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(million, "RESULTS", tmp_path)
    stored = json.loads(million.baselines(million.leave_one_out()).read_text())
    tried = {row["model"]: row["settings_tried"] for row in stored["test"]}
    assert tried["popularity"] == 1
    assert tried["EASE, recency"] > tried["EASE"] > 1
    assert "ALS" not in tried
    assert all(low <= value <= high for row in stored["test"] for value, low, high in [row["ndcg"]])


def test_a_run_that_has_chosen_nothing_is_not_trained_anew(archive, tmp_path):
    code = million.code_of("sasrec_levers")
    progress = million.Progress(tmp_path, code.settings)
    with pytest.raises(SystemExit, match="train first"):
        million.refit(million.leave_one_out(), None, progress, code)


RUN = {
    "data": {"users": 6040, "movies": 3416, "interactions": 987531},
    "patience": 5,
    "settings": {"patience": 10, "width": 128},
    "epochs": [
        {"epoch": 1, "ndcg": 0.16, "seconds": 1800.0},
        {"epoch": 2, "ndcg": 0.17, "seconds": 1800.0},
    ],
    "best": {"epoch": 2, "ndcg": 0.17},
    "asked": ["after 2 epochs"],
    "refit": [],
    "date": "2026-11-30",
    "machine": {"cpu": "Xeon", "cores": 2},
    "test": [
        {"model": "SASRec, levers", "hit_rate": [0.3, 0.29, 0.31], "ndcg": [0.19, 0.18, 0.2]},
    ],
}
EASE = {"model": "EASE", "hit_rate": [0.2, 0.19, 0.21], "ndcg": [0.1, 0.09, 0.11]}
BASELINES = {"test": [EASE | {"settings_tried": 8}]}
PEER = {
    "machine": {"versions": {"RecTools": "0.19.0"}},
    "settings": {"model": "SASRecModel()"},
    "epochs": [{"epoch": 1, "seconds": 7200.0}],
    "best": {"epoch": 1, "ndcg": 0.2},
    "asked": ["after 1 epochs"],
    "refit": [{"epoch": 1, "seconds": 0.0}],
    "test": [{"model": "RecTools, SASRec", "hit_rate": [0.4, 0.3, 0.5], "ndcg": [0.2, 0.1, 0.3]}],
}


class TestPage:
    def test_the_best_comes_first_and_hours_are_of_training(self):
        rows = report.million_rows((RUN, PEER, BASELINES))
        assert [row["model"] for row in rows] == [
            "RecTools, SASRec",
            "SASRec, levers, 128 wide",
            "EASE",
        ]
        assert [row.get("hours") for row in rows] == [2.0, 1.0, None]

    def test_an_earlier_run_is_a_row_and_its_settings_are_told(self):
        earlier = RUN | {"settings": {"width": 64, "patience": 10}, "best": {"ndcg": 0.16}}
        earlier["test"] = [dict(RUN["test"][0], ndcg=[0.18, 0.17, 0.19])]
        rows = report.million_rows((RUN, None, earlier, BASELINES))
        assert [row["model"] for row in rows] == [
            "SASRec, levers, 128 wide",
            "SASRec, levers, 64 wide",
            "EASE",
        ]
        text = report.million_page(RUN, None, earlier)
        assert "Four sets have been tried" in text
        assert "64 wide and reached\n0.160 on validation" in text
        assert "Four sets" not in report.million_page(RUN)

    def test_how_often_the_test_was_asked_is_told(self):
        text = report.million_page(RUN | {"asked": ["after 1 epochs", "after 2 epochs"]}, None)
        assert "The test was asked after 1 epochs; after 2 epochs" in " ".join(text.split())

    def test_what_was_trained_anew_counts_its_hours(self):
        again = RUN | {"refit": [{"epoch": 1, "seconds": 3600.0}]}
        rows = report.million_rows((again, BASELINES))
        assert [row.get("hours") for row in rows] == [2.0, None]
        assert "a new model was trained" in report.million_page(again)
        assert "was not trained anew" in report.million_page(RUN)

    def test_the_model_without_levers_is_a_row_and_its_training_is_told(self):
        plain = RUN | {"test": [dict(RUN["test"][0], model="SASRec", ndcg=[0.17, 0.16, 0.18])]}
        rows = report.million_rows((RUN, None, None, plain))
        assert [row["model"] for row in rows][:2] == [
            "SASRec, levers, 128 wide",
            "SASRec, 128 wide",
        ]
        text = " ".join(report.million_page(RUN, plain=plain).split())
        assert "reached 0.170 on validation in epoch 2 of 2. It was not trained anew" in text
        assert "of [the first page]" not in report.million_page(RUN)

    def test_how_many_settings_of_baselines_were_tried_is_told(self):
        more = {"test": [*BASELINES["test"], EASE | {"model": "popularity", "settings_tried": 1}]}
        text = " ".join(report.million_page(RUN, baselines=more).split())
        assert "of 9 tried in all" in text
        assert "0.100 [0.090, 0.110]" in text

    def test_how_the_run_ended_is_told(self):
        assert "stopped before validation stood still" in report.million_page(RUN)
        stalled = RUN | {"epochs": [*RUN["epochs"], *[RUN["epochs"][0]] * 5]}
        text = " ".join(report.million_page(stalled).split())
        assert "the end came when 5 epochs brought nothing better (10 in a notebook)" in text

    def test_when_and_where_is_told(self):
        text = " ".join(report.million_page(RUN).split())
        assert "measured on 2026-11-30 on Xeon" in text

    def test_whether_the_peer_was_trained_anew_is_told(self):
        text = " ".join(report.million_page(RUN, PEER).split())
        assert "it was trained anew, and the test was asked after 1 epochs" in text
        assert "it was not trained anew" in report.million_page(RUN, PEER | {"refit": []})

    def test_an_aim_that_is_not_reached_is_told(self):
        text = report.million_page(RUN)
        assert "0.205: not reached" in text
        assert "0.190 [0.180, 0.200]" in text
        assert "RecTools'" not in text
        best = RUN | {"test": [dict(RUN["test"][0], ndcg=[0.21, 0.2, 0.22])]}
        assert "0.205: reached" in report.million_page(best, PEER)
        assert "0.205: reached" in report.million_page(RUN, plain=best)
