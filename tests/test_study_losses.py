"""The study's losses, each with a rate of its own."""

import keras
import numpy as np
import pytest
from keras import ops

from study import core, losses
from tools import book


def test_negatives_shared_by_a_row_cost_what_the_chapters_loss_says():
    code = book.definitions("sasrec_levers")
    model = losses.with_shared_negatives(code)(30, 5, width=8, heads=1, beta=0.4)
    rows = np.array([[0, 0, 3, 4, 5], [1, 2, 3, 4, 5]])
    targets = np.array([[0, 0, 4, 5, 6], [2, 3, 4, 5, 7]])
    negatives = np.random.default_rng(0).integers(1, 31, (2, 9))
    states = model(rows)
    found = model.compute_loss(rows, {"targets": targets, "negatives": negatives}, states)
    at_each = np.repeat(negatives[:, None], 5, axis=1)
    told = code.two_way_loss(states, model.movies.embeddings, targets, at_each, 0.4)
    np.testing.assert_allclose(ops.convert_to_numpy(found), ops.convert_to_numpy(told), rtol=1e-5)


@pytest.fixture
def no_training(monkeypatch, tmp_path):
    """Trainings that are as good on validation as their rate is near 0.003; nothing is stored."""
    asked = []

    def trained(draw, rate, **how):
        asked.append((draw.number, rate))
        top = 1 - abs(rate - 0.003)
        return rate, {"rate": rate, "epochs": 3, "validation_ndcg": top}

    monkeypatch.setattr(losses, "trained", trained)
    monkeypatch.setattr(core, "RAW", tmp_path)
    monkeypatch.setattr("rectutor.evaluation.evaluate", lambda scores, *a, **more: scores)
    monkeypatch.setattr(losses, "ranked", lambda found, **kept: {"test": found, "facts": kept})
    return asked


def test_the_first_run_tries_all_rates_and_the_others_take_its_choice(no_training):
    job = next(each for each in losses.JOBS if each.function is losses.all_movies)
    arms = job.function(core.Draw("sasrec", 1, "smoke"))
    assert [rate for _, rate in no_training] == [0.001, 0.003, 0.01]
    assert arms["loss: softmax"] == {"test": 0.003, "facts": arms["loss: softmax"]["facts"]}
    tried = [arms[f"loss: softmax, rate {rate}"]["facts"] for rate in (0.001, 0.003, 0.01)]
    assert [each["rate"] for each in tried] == [0.001, 0.003, 0.01]
    with pytest.raises(RuntimeError, match=r"run 1 of sasrec/loss, softmax .* run it first"):
        job.function(core.Draw("sasrec", 2, "smoke"))
    core.keep(job, 1, arms, 1.0, "of other code")
    with pytest.raises(RuntimeError, match="run it first"):
        losses.rate_of("softmax")
    core.keep(job, 1, arms, 1.0, core.digest(job))
    no_training.clear()
    assert job.function(core.Draw("sasrec", 2, "smoke")).keys() == {"loss: softmax"}
    assert no_training == [(2, 0.003)]


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (0.003, [0.001, 0.003, 0.01]),
        (0.01, [0.001, 0.003, 0.01, 0.03]),
        (1.0, [0.001, 0.003, 0.01, 0.03, 0.1]),
        (0.0003, [0.0001, 0.0003, 0.001, 0.003, 0.01]),
    ],
)
def test_rates_are_tried_until_the_best_is_at_neither_end(best, tried):
    def train(rate):
        return None, {"rate": rate, "validation_ndcg": -abs(np.log(rate / best))}

    assert [found["rate"] for _, found in losses.search(train)] == tried


def test_a_jobs_name_is_that_of_its_loss(no_training):
    for job in losses.JOBS:
        assert f"loss: {job.name.removeprefix('loss, ')}" in job.function(
            core.Draw("sasrec", 1, "smoke")
        )


def test_negatives_of_a_sampled_softmax_are_those_of_the_run(monkeypatch):
    code, drawn = book.definitions("sasrec_levers"), []

    def one_look(model, draw, *, callbacks, **how):
        drawn.append(ops.convert_to_numpy(keras.random.randint((9,), 1, 99, seed=model.draws)))
        for callback in callbacks:
            callback.set_model(model)
            callback.on_epoch_end(0)

    monkeypatch.setattr(code, "train_levers", one_look)
    for number in (1, 1, 2):
        losses.trained(core.Draw("sasrec", number, "smoke"), 0.003, shared=9)
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()
