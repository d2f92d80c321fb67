"""The shared callbacks: a tidy line an epoch, and the best weights by validation NDCG."""

import keras
import numpy as np
import pytest

from rectutor import data, splits
from rectutor.training import BestByNDCG, EpochLog


@pytest.fixture(scope="module")
def split():
    return splits.leave_one_out(data.synthetic(40, 30, 800, seed=1))


def model_of():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def fit(model, callbacks, epochs=4):
    x, y = np.ones((8, 2), "float32"), np.ones((8, 4), "float32")
    return model.fit(x, y, epochs=epochs, verbose=0, callbacks=callbacks)


def scores_that_peak(split, at):
    """A recommender that is best at its `at`-th evaluation: right for the most users then."""
    calls = []
    target = dict(zip(split.validation["user_id"], split.validation["movie_id"], strict=True))

    def recommender(queries):
        calls.append(None)
        right = len(queries.user_ids) - 4 * abs(len(calls) - at)
        scores = np.zeros((len(queries.user_ids), 31))
        for row, user in enumerate(queries.user_ids[:right]):
            scores[row, target[user]] = 1
        return scores

    return recommender


def test_one_line_an_epoch_with_an_estimate_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("rectutor.training.in_notebook", lambda: False)
    fit(model_of(), [EpochLog()])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("epoch 1/4  loss ")
    assert "s left)" in lines[0]
    assert "left" not in lines[-1]


def test_a_notebook_shows_no_estimate_and_every_other_epoch_when_asked(capsys, monkeypatch):
    monkeypatch.setattr("rectutor.training.in_notebook", lambda: True)
    fit(model_of(), [EpochLog(every=2)], epochs=5)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/5", "2/5", "4/5", "5/5"]
    assert "left" not in "".join(lines)


def test_large_losses_stay_readable(capsys):
    model = model_of()
    model.fit(np.ones((2, 2)), np.full((2, 4), 1e4), epochs=1, verbose=0, callbacks=[EpochLog()])
    assert " s" in capsys.readouterr().out


def test_stops_when_ndcg_stalls_and_keeps_the_best_weights(split, capsys):
    model = model_of()
    best = BestByNDCG(scores_that_peak(split, at=3), split, patience=2)
    kept = []
    spy = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: kept.append(model.get_weights())
    )
    history = fit(model, [best, spy, EpochLog()], epochs=20)
    assert best.best_epoch == 3
    assert [row["epoch"] for row in best.history] == [1, 2, 3, 4, 5]
    assert best.history[2]["ndcg"] == max(row["ndcg"] for row in best.history)
    assert best.history[2]["hit_rate"] > 0
    assert np.all(np.diff([row["seconds"] for row in best.history]) > 0)
    for now, then in zip(model.get_weights(), kept[2], strict=True):
        np.testing.assert_array_equal(now, then)
    assert history.history["val_ndcg"] == [row["ndcg"] for row in best.history]
    assert "val_ndcg" in capsys.readouterr().out


@pytest.mark.parametrize(("every", "epochs"), [(2, [2, 4]), (10, [])])
def test_evaluates_only_every_few_epochs(split, every, epochs):
    best = BestByNDCG(scores_that_peak(split, at=9), split, patience=5, every=every)
    fit(model_of(), [best], epochs=5)
    assert [row["epoch"] for row in best.history] == epochs
    assert best.best_epoch in (epochs or [0])


@pytest.mark.parametrize("bad", [{"patience": 0}, {"every": 0}])
def test_counts_below_one_are_refused(split, bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} is 0"):
        BestByNDCG(lambda queries: None, split, **bad)
    with pytest.raises(ValueError, match="every is 0"):
        EpochLog(every=0)
