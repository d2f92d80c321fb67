"""Contracts on the retrieval chapter's own classes and functions."""

import keras
import numpy as np
import pandas as pd
import pytest
from chapters import definitions
from keras import ops

from rectutor import PADDING_ID
from rectutor.evaluation import queries_for, recommend
from rectutor.splits import leave_one_out

NUM_USERS, NUM_MOVIES, WIDTH = 30, 40, 8


@pytest.fixture(scope="module")
def chapter():
    return definitions("retrieval")


@pytest.fixture(scope="module")
def ratings():
    rng = np.random.default_rng(0)
    rows = [
        (user, movie, rng.integers(1, 6), when)
        for user in range(1, NUM_USERS + 1)
        for when, movie in enumerate(rng.choice(NUM_MOVIES, 12, replace=False) + 1)
    ]
    return pd.DataFrame(rows, columns=["user_id", "movie_id", "rating", "timestamp"])


@pytest.fixture(scope="module")
def split(ratings):
    return leave_one_out(ratings, num_users=NUM_USERS, num_movies=NUM_MOVIES)


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(7)


def catalogue_inputs(rng, rows=6):
    watched = (rng.random((rows, NUM_MOVIES + 1)) < 0.2).astype(np.int8)
    watched[:, PADDING_ID] = 0
    watched[:, 1] = 1
    return {"user_id": np.arange(1, rows + 1, dtype=np.int32), "watched": watched}


def in_batch_inputs(rng, rows=9):
    movies = rng.integers(1, 5, rows).astype(np.int32)  # few movies: many accidental hits
    return {
        "user_id": rng.integers(1, NUM_USERS + 1, rows).astype(np.int32),
        "movie_id": movies,
        "chance": np.array([0.0, 0.4, 0.3, 0.2, 0.1], np.float32)[movies],
    }


def log_softmax(scores):
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def pair_inputs(rng):
    return {key: in_batch_inputs(rng)[key] for key in ("user_id", "movie_id")}


def model_of(chapter, name, width=WIDTH, dropout=0.5):
    """A fresh model of the kind, and what makes its inputs."""
    sizes = (NUM_USERS, NUM_MOVIES, width)
    if name == "documented":
        return chapter.DocumentedRetrieval(*sizes), pair_inputs
    if name == "in-batch":
        return chapter.InBatchRetrieval(*sizes, dropout, True, True), in_batch_inputs
    return chapter.CatalogueRetrieval(*sizes, dropout), catalogue_inputs


def recommender(chapter, name, model):
    return chapter.by_catalogue(model) if name == "catalogue" else chapter.by_towers(model)


NAMES = ("documented", "in-batch", "catalogue")


@pytest.mark.parametrize("name", NAMES)
def test_recommends_neither_padding_nor_seen_movies(chapter, split, name):
    model, make = model_of(chapter, name)
    model(make(np.random.default_rng(1)))
    queries = queries_for(split)
    lists = recommend(recommender(chapter, name, model), queries, 10)
    assert lists.shape == (len(queries), 10)
    assert (lists != PADDING_ID).all()
    for row, movies in enumerate(lists):
        assert not np.isin(movies, queries.history(row)).any()


def test_documented_list_competes_with_the_padding_row(chapter):
    candidates = np.zeros((5, 2), np.float32)
    candidates[PADDING_ID] = 1
    assert chapter.top_of_table(np.ones((1, 2)), candidates, 2)[0, 0] == PADDING_ID


def test_what_is_left_out_of_the_table_is_not_listed(chapter):
    candidates = np.arange(10, dtype=np.float32).reshape(5, 2)[::-1]  # row 0 is the highest
    found = chapter.top_of_table(np.ones((1, 2)), candidates, 2, [PADDING_ID, 1])
    assert found.tolist() == [[2, 3]]


@pytest.mark.parametrize("remove_hits", [False, True])
@pytest.mark.parametrize("correct", [False, True])
def test_in_batch_loss_equals_numpy(chapter, remove_hits, correct):
    inputs = in_batch_inputs(np.random.default_rng(3))
    model = chapter.InBatchRetrieval(
        NUM_USERS, NUM_MOVIES, WIDTH, 0.0, remove_hits=remove_hits, correct=correct
    )
    loss = model.compute_loss(x=inputs, y_pred=model(inputs))
    scores = (
        ops.convert_to_numpy(model.queries(inputs["user_id"]))
        @ ops.convert_to_numpy(model.candidates())[inputs["movie_id"]].T
    ).astype(float)
    if correct:
        scores -= np.log(inputs["chance"])
    movies = inputs["movie_id"]
    if remove_hits:
        hits = (movies[:, None] == movies[None, :]) & ~np.eye(len(movies), dtype=bool)
        assert hits.any()
        scores[hits] = -np.inf
    expected = -np.diag(log_softmax(scores)).mean()
    assert float(ops.convert_to_numpy(loss)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_catalogue_loss_equals_numpy_pair_by_pair(chapter, smoothing):
    rng = np.random.default_rng(4)
    watched = catalogue_inputs(rng)["watched"]
    scores = rng.normal(size=watched.shape).astype(np.float32)
    scores[:, PADDING_ID] = 50  # the padding takes no part in the softmax
    counts = watched.sum(axis=1).astype(np.float32)
    loss = chapter.CatalogueSoftmax(smoothing)(watched, scores, counts / counts.mean())
    log_p = log_softmax(scores[:, 1:].astype(float))
    pairs = [
        (1 - smoothing) * log_p[user, movie] + smoothing * log_p[user].mean()
        for user, movie in np.argwhere(watched[:, 1:])
    ]
    assert float(ops.convert_to_numpy(loss)) == pytest.approx(-np.mean(pairs), rel=1e-5)


def test_history_is_a_bag_of_movies(chapter, split):
    model, make = model_of(chapter, "catalogue")
    rng = np.random.default_rng(5)
    model(make(rng))
    model.movie_bias.assign(rng.normal(size=NUM_MOVIES + 1))
    queries = queries_for(split, user_ids=[3])
    scores = ops.convert_to_numpy(chapter.by_catalogue(model)(queries))[0]
    table = ops.convert_to_numpy(model.candidates())
    user = ops.convert_to_numpy(model.user_embedding(np.array([3])))[0]
    history = queries.history(0)
    query = user + table[history].sum(axis=0) / np.sqrt(len(history))
    expected = table @ query + ops.convert_to_numpy(model.movie_bias)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_rows_mark_what_was_watched(chapter):
    rows = chapter.watched_rows([0, 0, 1], [2, 2, 1], (3, 4))
    assert rows.tolist() == [[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def train(chapter, name, model, frame, epochs):
    how = {"epochs": epochs, "seed": 0}
    if name == "documented":
        return chapter.train_documented(model, frame, batch_size=64, **how)
    adam = keras.optimizers.Adam(0.03)
    if name == "in-batch":
        return chapter.train_in_batch(model, frame, adam, batch_size=64, **how)
    return chapter.train_catalogue(model, frame, adam, users_per_batch=16, smoothing=0.1, **how)


@pytest.mark.parametrize("name", NAMES)
def test_training_reaches_every_weight(chapter, ratings, name):
    model, make = model_of(chapter, name)
    model(make(np.random.default_rng(6)))
    before = [ops.convert_to_numpy(weight).copy() for weight in model.trainable_weights]
    assert train(chapter, name, model, ratings, epochs=1) > 0
    assert before
    for old, weight in zip(before, model.trainable_weights, strict=True):
        assert not np.array_equal(old, ops.convert_to_numpy(weight)), weight.path


def test_ratings_are_learned_as_labels_of_their_scale(chapter):
    """From half a star to five; the held-out part is looked at every five epochs."""
    frame = pd.DataFrame({"user_id": [1, 2], "movie_id": [1, 1], "rating": [0.5, 5.0]})
    model, _ = model_of(chapter, "documented")
    how = {"optimizer": keras.optimizers.Adam(0.1), "scale": (0.5, 5)}
    chapter.train_ratings(model, frame, frame, epochs=60, batch_size=2, seed=0, **how)
    assert len(model.history.history["val_rmse"]) == 12
    predicted = model.predict(chapter.pairs(frame), verbose=0)
    np.testing.assert_allclose(np.ravel(predicted), [0, 1], atol=0.05)


@pytest.mark.parametrize(("stars", "scale"), [([1, 5], (1, 5)), ([0.5, 5], (0.5, 5))])
def test_an_error_is_told_in_labels_and_in_stars(chapter, stars, scale):
    frame = pd.DataFrame({"user_id": [1, 2], "rating": stars})
    error = chapter.error_of(np.array([0.0, 0.5], np.float32), frame, scale)
    assert error["rmse"].value == pytest.approx(np.sqrt(0.125))
    assert error["rmse_stars"].value == pytest.approx((stars[1] - stars[0]) * np.sqrt(0.125))


@pytest.mark.long
def test_in_batch_overfits_one_batch(chapter):
    frame = pd.DataFrame({"user_id": range(1, 17), "movie_id": range(1, 17)})
    model, _ = model_of(chapter, "in-batch", dropout=0.0)
    train(chapter, "in-batch", model, frame, epochs=150)
    scores = ops.matmul(model.queries(np.arange(1, 17)), ops.transpose(model.candidates()[1:17]))
    assert (ops.convert_to_numpy(scores).argmax(axis=1) == np.arange(16)).all()


@pytest.mark.long
def test_catalogue_overfits_one_batch(chapter, ratings):
    few = ratings[ratings["user_id"] <= 8]
    model, _ = model_of(chapter, "catalogue", width=32, dropout=0.0)
    train(chapter, "catalogue", model, few, epochs=150)
    watched = chapter.watched_rows(few["user_id"], few["movie_id"], (9, NUM_MOVIES + 1))[1:]
    scores = model({"user_id": np.arange(1, 9, dtype=np.int32), "watched": watched})
    best = np.argsort(-ops.convert_to_numpy(scores)[:, 1:], axis=1)[:, :12] + 1
    assert np.take_along_axis(watched, best, axis=1).all()


@pytest.mark.parametrize(
    ("epochs", "stalled", "said"), [(30, True, "stopped by the rule"), (3, False, "BY THE CAP")]
)
def test_one_rule_ends_a_training_and_it_says_so_if_the_cap_did(
    chapter, split, capsys, epochs, stalled, said
):
    """Scores that never get better stall at once; the cap must not be mistaken for the rule."""
    trained_on = []

    def train(model, frame, epochs, callbacks):
        trained_on.append(len(frame))
        one = np.zeros((1, 1), np.float32)
        model.fit(one, one, epochs=epochs, callbacks=callbacks, verbose=0)

    def scores(queries):
        return np.zeros((len(queries), NUM_MOVIES + 1))

    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    how = {"epochs": epochs, "every": 2, "patience": 3}
    watch, found = chapter.train_until_stalled(train, model, scores, split, **how)
    assert trained_on == [len(split.train)]
    assert found == stalled
    assert said in capsys.readouterr().out
    if stalled:
        assert (watch.best_epoch, watch.history[-1]["epoch"]) == (2, 8)


def test_all_losses_wait_for_equally_many_looks_and_the_caps_are_far(chapter):
    settings = chapter.SETTINGS
    assert isinstance(settings["patience"], int)
    assert settings["in_batch_epochs"][0] > 10 * settings["patience"]
    assert settings["catalogue_epochs"][0] > 10 * settings["patience"] * 5


@pytest.mark.parametrize("name", NAMES)
def test_saved_model_recommends_the_same(chapter, split, tmp_path, name):
    model, _ = model_of(chapter, name)
    train(chapter, name, model, split.train, epochs=1)
    path = tmp_path / "model.keras"
    model.save(path)
    queries = queries_for(split)
    lists = [
        recommend(recommender(chapter, name, each), queries, 10)
        for each in (model, keras.models.load_model(path))
    ]
    np.testing.assert_array_equal(*lists)


def test_nearest_leaves_out_the_movie_itself_and_the_padding(chapter):
    angles = np.array([0.1, 0.0, 0.2, 0.5, 3.0])
    candidates = np.stack([np.cos(angles), np.sin(angles)], axis=1) * [[9], [1], [5], [2], [3]]
    assert chapter.nearest(candidates, 1, 2, np.arange(1, 5)).tolist() == [2, 3]
