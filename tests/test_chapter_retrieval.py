"""Contracts on the retrieval chapter's own classes and functions."""

from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from chapters import definitions
from keras import ops

from rectutor import PADDING_ID
from rectutor.data import synthetic
from rectutor.evaluation import queries_for, recommend
from rectutor.splits import Split, leave_one_out

NUM_USERS, NUM_MOVIES, WIDTH = 30, 40, 8


@pytest.fixture(scope="module")
def chapter():
    return definitions("retrieval")


@pytest.fixture(scope="module")
def data():
    return synthetic(NUM_USERS, NUM_MOVIES, 360, seed=0)


@pytest.fixture(scope="module")
def split(data):
    return leave_one_out(data)


@pytest.fixture(scope="module")
def settings(chapter):
    """Those of the smoke profile, smaller."""
    smoke = {name: v[2] if isinstance(v, tuple) else v for name, v in chapter.SETTINGS.items()}
    return SimpleNamespace(**smoke | {"width": WIDTH, "users_per_batch": 8, "cold": 0.5})


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(7)


def rows(rng, size=6):
    """What a batch of users has watched, and what was drawn for them."""
    watched = (rng.random((size, NUM_MOVIES + 1)) < 0.2).astype(np.int8)
    watched[:, PADDING_ID] = 0
    watched[:, 1] = 1
    drawn = rng.multinomial(3, np.r_[0, np.full(NUM_MOVIES, 1 / NUM_MOVIES)], size)
    return watched, drawn


def features_of(rng):
    return rng.random((NUM_MOVIES + 1, 5)).astype(np.float32)


def towers(chapter, name):
    parts = {"ids": {}, "no history": {"history": False}}
    parts["features"] = {"ids": False, "features": features_of(np.random.default_rng(1))}
    return chapter.Towers(NUM_USERS, NUM_MOVIES, WIDTH, **parts[name])


TOWERS = ("ids", "no history", "features")
KINDS = (
    "in-batch softmax",
    "in-batch, hits removed",
    "in-batch, log-Q corrected",
    "mixed negatives",
    "full softmax",
    "catalogue softmax",
)


@pytest.mark.parametrize("name", ["documented", *TOWERS])
def test_recommends_neither_padding_nor_seen_movies(chapter, split, name):
    if name == "documented":
        model = chapter.DocumentedRetrieval(NUM_USERS, NUM_MOVIES, WIDTH)
        model(chapter.pairs(split.train))
        recommender = chapter.by_tables(model)
    else:
        recommender = chapter.by_towers(towers(chapter, name))
    queries = queries_for(split)
    lists = recommend(recommender, queries, 10)
    assert lists.shape == (len(queries), 10)
    for row, movies in enumerate(lists):
        assert not np.isin(movies, [PADDING_ID, *queries.history(row)]).any()


@pytest.mark.parametrize("name", KINDS)
def test_every_loss_is_its_formula_pair_by_pair(chapter, name):
    """Over lists of competitors, written out, the pair's own movie among them."""
    rng = np.random.default_rng(3)
    watched, drawn = rows(rng)
    scores = rng.normal(size=watched.shape).astype(np.float32)
    scores[:, PADDING_ID] = 5  # the padding never competes
    log_q = rng.normal(size=NUM_MOVIES + 1)
    kind = chapter.STEPS[name]
    log_q = log_q if "log_q" in kind else 0 * log_q
    of_batch = np.nonzero(watched)[1]
    of_chance = np.repeat(np.arange(NUM_MOVIES + 1), drawn.sum(axis=0))
    expected = []
    for user in range(len(watched)):
        losses = []
        t = scores[user] - log_q
        for movie in np.flatnonzero(watched[user]):
            rivals = [*of_batch, *(of_chance if "drawn" in kind else ())]
            if "all" in kind:
                rivals = np.arange(1, NUM_MOVIES + 1)
            if "own once" in kind:
                rivals = [*(each for each in rivals if each != movie), movie]
            total = np.log(np.exp(t[rivals]).sum())
            loss = total - t[movie]
            if "smooth" in kind:
                loss = 0.9 * loss + 0.1 * (total - t[1:].mean())
            losses.append(loss)
        expected.append(np.mean(losses))
    y = np.stack([watched, drawn], axis=1).astype(np.int8)
    loss = chapter.softmax_loss(kind, log_q, np.arange(NUM_MOVIES + 1) > 0, 0.1)
    found = ops.convert_to_numpy(loss(ops.convert_to_tensor(y), ops.convert_to_tensor(scores)))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("kind", ["ids", "features"])
def test_history_is_a_bag_of_movies(chapter, split, kind):
    model = towers(chapter, kind)
    queries = queries_for(split, user_ids=[3])
    scores = ops.convert_to_numpy(chapter.by_towers(model)(queries))[0]
    vectors, bias = map(ops.convert_to_numpy, model.movies())
    user = ops.convert_to_numpy(model.users(np.array([3])))[0]
    history = queries.history(0)
    query = user + vectors[history].sum(axis=0) / np.sqrt(len(history))
    np.testing.assert_allclose(scores, vectors @ query + bias, atol=1e-5)


def test_movies_of_equal_features_have_equal_scores(chapter, split):
    model = towers(chapter, "features")
    model.features[2] = model.features[1]
    scores = ops.convert_to_numpy(chapter.by_towers(model)(queries_for(split)))
    np.testing.assert_allclose(scores[:, 1], scores[:, 2], rtol=1e-5)
    assert not np.allclose(scores[:, 1], scores[:, 3])


@pytest.mark.parametrize("history", [False, True])
def test_a_history_is_read_only_if_it_is_wanted_after_training_as_before(
    chapter, data, settings, history
):
    model = chapter.Towers(NUM_USERS, NUM_MOVIES, WIDTH, history=history)
    chapter.train_towers(model, data.ratings, settings, 0, ("all",), epochs=1)
    users, watched = np.array([1, 1], np.int32), np.zeros((2, NUM_MOVIES + 1), np.int8)
    watched[1, 3] = 1
    scores = ops.convert_to_numpy(model({"user_id": users, "watched": watched}))
    assert np.allclose(*scores) != history


def test_rows_mark_what_was_watched(chapter):
    found = chapter.watched_rows([0, 0, 1], [2, 2, 1], (3, 4))
    assert found.tolist() == [[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("name", TOWERS)
def test_training_reaches_every_weight(chapter, data, settings, name):
    model = towers(chapter, name)
    chapter.by_towers(model)(queries_for(leave_one_out(data)))  # builds
    before = [ops.convert_to_numpy(weight).copy() for weight in model.trainable_weights]
    kind = chapter.STEPS["catalogue softmax"]
    chapter.train_towers(model, data.ratings, settings, 0, kind, epochs=1)
    assert before
    for old, weight in zip(before, model.trainable_weights, strict=True):
        assert not np.array_equal(old, ops.convert_to_numpy(weight)), weight.path


def test_only_what_competes_is_pushed_down(chapter, data, settings):
    """The bias of a movie that is in no row: among all it falls, among the warm it stays."""
    frame = data.ratings[data.ratings["movie_id"] != 5]
    fallen = []
    for warm in (False, True):
        model = towers(chapter, "no history")
        start = ops.convert_to_numpy(model.movies()[1])[5]
        still = SimpleNamespace(**vars(settings) | {"weight_decay": 0.0})
        chapter.train_towers(model, frame, still, 0, ("all",), warm=warm, epochs=5)
        fallen.append(start - ops.convert_to_numpy(model.movies()[1])[5])
    assert fallen[0] > 0.01
    assert fallen[1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("adamw", [False, True])
def test_ratings_are_learned_as_labels_of_their_scale(chapter, settings, adamw):
    frame = pd.DataFrame({"user_id": [1, 2], "movie_id": [1, 1], "rating": [0.5, 5.0]})
    scale = SimpleNamespace(num_users=2, num_movies=1, rating_scale=(0.5, 5))
    fast = SimpleNamespace(**vars(settings) | {"learning_rate": 0.1, "rating_decay": 0.0})
    model = chapter.fit_ratings(scale, frame, fast, 0, adamw, epochs=80)
    assert len(model.history.history["loss"]) == 80
    predicted = model.predict(chapter.pairs(frame), verbose=0)
    np.testing.assert_allclose(np.ravel(predicted), [0, 1], atol=0.1)


@pytest.mark.long
@pytest.mark.parametrize("step", ["in-batch, log-Q corrected", "full softmax"])
def test_overfits_a_few_users(chapter, data, settings, step):
    few = data.ratings[data.ratings["user_id"] <= 8]
    model = chapter.Towers(NUM_USERS, NUM_MOVIES, 32, 0.0, history=False)
    fast = SimpleNamespace(**vars(settings) | {"learning_rate": 0.03})
    chapter.train_towers(model, few, fast, 0, chapter.STEPS[step], epochs=150)
    watched = chapter.watched_rows(few["user_id"], few["movie_id"], (9, NUM_MOVIES + 1))[1:]
    users = np.arange(1, 9, dtype=np.int32)
    scores = ops.convert_to_numpy(model({"user_id": users, "watched": watched}))[:, 1:]
    for row, marks in zip(scores, watched[:, 1:], strict=True):
        assert marks[np.argsort(-row)[: marks.sum()]].all()


@pytest.mark.parametrize(
    ("epochs", "stalled", "said"), [(30, True, "stopped by the rule"), (3, False, "BY THE CAP")]
)
def test_one_rule_ends_a_training_and_it_says_so_if_the_cap_did(
    chapter, split, settings, capsys, epochs, stalled, said
):
    """Scores that never get better stall at once; the cap must not be mistaken for the rule."""
    rule = SimpleNamespace(**vars(settings) | {"epochs": epochs, "every": 2, "patience": 3})

    def scores(queries):
        return np.zeros((len(queries), NUM_MOVIES + 1))

    model, how = towers(chapter, "ids"), {"seed": 0, "kind": ("all",)}
    watch, found = chapter.train_until_stalled(model, split, rule, scores, **how)
    assert found == stalled
    assert said in capsys.readouterr().out
    if stalled:
        assert (watch.best_epoch, watch.history[-1]["epoch"]) == (2, 8)


def test_the_cap_is_far(chapter):
    settings = chapter.SETTINGS
    assert settings["epochs"][0] > 10 * settings["patience"] * settings["every"][0]


def test_features_are_what_five_known_movies_share(chapter):
    movies = pd.DataFrame(
        {
            "title": [*["The Star (1977)"] * 5, "Moon (1990)", "Moon Again (1991)"],
            "year": pd.array([*[1977] * 4, None, 1990, 1991], "Int16"),
            "genres": [*["War|Drama"] * 4, "War", "", "War"],
        }
    )
    table = chapter.movie_features(movies, np.array([1, 2, 3, 4, 5, 6]))
    assert table.shape == (8, 3)  # War, star, the; Drama and the seventies have four, moon one
    lengths = np.linalg.norm(table, axis=1)
    np.testing.assert_allclose(lengths, [0, 1, 1, 1, 1, 1, 0, 1], atol=1e-6)
    assert (table > 0).sum(axis=1).tolist() == [0, 3, 3, 3, 3, 3, 0, 1]


@pytest.mark.parametrize("on", ["test", "validation"])
def test_no_rating_of_a_cold_movie_is_known_and_the_latest_is_the_target(
    chapter, data, settings, on
):
    split, everything, cold = chapter.hold_out_movies(data.ratings, data, settings, 3, on)
    target = getattr(split, on)
    assert len(split.validation) + len(split.test) == len(target)
    is_cold = cold.any(axis=0)
    held = data.ratings[is_cold[data.ratings["movie_id"]]]
    assert len(held) + len(split.train) == len(data.ratings)
    assert not is_cold[split.train["movie_id"]].any()
    latest = held.groupby("user_id")["timestamp"].max()
    pd.testing.assert_series_equal(target.set_index("user_id")["timestamp"].sort_index(), latest)
    users, movies = target["user_id"], target["movie_id"]
    assert cold[users, movies].all()
    others = held.drop(target.index)
    assert len(others)
    assert not everything[others["user_id"], others["movie_id"]].any()
    assert everything[split.train["user_id"], split.train["movie_id"]].all()
    assert not (cold & ~everything).any()


def test_another_seed_draws_other_movies(chapter, data, settings):
    first, again, other = (
        chapter.hold_out_movies(data.ratings, data, settings, seed)[2] for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_only_what_competes_is_ranked(chapter, split):
    competes = np.zeros((NUM_USERS + 1, NUM_MOVIES + 1), bool)
    competes[:, [4, 5]] = True
    recommender = chapter.among(chapter.by_towers(towers(chapter, "ids")), competes)
    queries = queries_for(split)
    lists = recommend(recommender, queries, 10)
    for row, movies in enumerate(lists):
        unseen = {4, 5} - {*queries.history(row).tolist()}
        assert {*movies[: len(unseen)].tolist()} == unseen


def test_popularity_by_genre_is_the_share_watched_of_a_genres_warm_movies(chapter):
    """Movies 1 to 3 are warm; user 1 has watched one of two dramas and the one comedy."""
    ratings = pd.DataFrame(
        {"user_id": [1, 1, 2, 2], "movie_id": [1, 3, 2, 1], "timestamp": range(4)}
    )
    genres = ["Drama", "Drama", "Comedy", "Comedy", "Comedy|Drama"]
    movies = SimpleNamespace(movies=pd.DataFrame({"genres": genres}))
    empty = ratings[:0]
    split = Split(ratings, empty, ratings[:1].assign(movie_id=5), num_users=2, num_movies=5)
    scores = chapter.by_genre(movies, split, 0)(queries_for(split))
    np.testing.assert_allclose(scores[0, 1:], [0.5, 0.5, 1, 1, 0.75], atol=1e-5)
    assert scores[0, 3] != scores[0, 4]  # ties fall at random
    assert len(empty) == 0


@pytest.mark.long
def test_features_rank_the_cold_movies_of_a_users_genre_first(chapter, settings):
    """Half of the users watch one genre, half the other."""
    rng, rows = np.random.default_rng(0), []
    for user in range(1, 41):
        watched = rng.choice(np.arange(1 + user % 2, 61, 2), 15, replace=False)
        rows += [(user, movie, 5, when) for when, movie in enumerate(watched)]
    ratings = pd.DataFrame(rows, columns=["user_id", "movie_id", "rating", "timestamp"])
    genres = ["War" if movie % 2 else "Drama" for movie in range(1, 61)]
    movies = pd.DataFrame({"title": "", "year": 1990, "genres": genres})
    world = SimpleNamespace(num_users=40, num_movies=60, movies=movies)
    more = {"epochs": 40, "every": 5, "cold": 0.2}
    rule = SimpleNamespace(**vars(settings) | more)
    split, _, cold = chapter.hold_out_movies(ratings, world, rule, 1)
    scores = chapter.cold_tower(world, split, rule, 1, True)(queries_for(split))
    scores = ops.convert_to_numpy(scores)
    is_cold = cold.any(axis=0)
    is_war = np.r_[False, np.array(genres) == "War"]
    ahead = scores[:, is_cold & is_war].mean(axis=1) > scores[:, is_cold & ~is_war].mean(axis=1)
    likes_war = queries_for(split).user_ids % 2 == 0
    assert (ahead == likes_war).mean() > 0.9
