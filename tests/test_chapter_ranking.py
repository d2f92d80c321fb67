"""The contracts of the ranking chapter's models: what must hold whatever the data."""

from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from chapters import definitions

NUM_USERS, NUM_MOVIES = 12, 9
RECIPE = {"epochs": 20, "batch_size": 50, "seed": 0}


@pytest.fixture(scope="module")
def chapter():
    return definitions("ranking")


def some_pairs(rows=64):
    pairs = np.random.default_rng(0).permutation(NUM_USERS * NUM_MOVIES)[:rows]
    return tuple((each + 1).astype(np.int32) for each in np.divmod(pairs, NUM_MOVIES))


def some_labels(rows=64):
    return (np.random.default_rng(1).integers(0, 5, rows) / 4).astype(np.float32)


KINDS = ("documented", "ensemble", "features")


def inputs(kind, rows=64):
    """Pairs; of features, a moment beside them."""
    pairs = some_pairs(rows)
    return (*pairs, np.arange(rows, dtype=np.int32) % 206) if kind == "features" else pairs


def make(chapter, kind, members=3):
    keras.utils.set_random_seed(3)
    sizes, how = (NUM_USERS, NUM_MOVIES), {"members": members, "dim": 4, "seed": 3}
    if kind == "documented":
        return chapter.RankingModel(*sizes, 4)
    if kind == "ensemble":
        return chapter.new_ensemble(some_labels(), sizes, **how)
    random, features = np.random.default_rng(2), []
    links = np.zeros((NUM_USERS + 1, NUM_MOVIES + 1))
    links[some_pairs()] = 0.5
    for linked, columns in ((links, 5), (links.T, 3)):
        own = random.integers(0, 2, (len(linked), columns))
        features.append(np.hstack([own, linked]).astype(np.float32))
    return chapter.new_feature_ensemble(some_labels(), features, **how)


def scores(model, x):
    return keras.ops.convert_to_numpy(model(x, training=False))


every_model = pytest.mark.parametrize("kind", KINDS)
averaged = pytest.mark.parametrize("kind", KINDS[1:])


@every_model
def test_one_score_a_pair(chapter, kind):
    found = scores(make(chapter, kind), inputs(kind, 7))
    assert found.shape == (7, 1)
    assert np.isfinite(found).all()


@averaged
def test_predictions_are_possible_ratings(chapter, kind):
    model = make(chapter, kind)
    model(inputs(kind))
    for table in model.tables:
        table.set_weights([np.random.default_rng(0).normal(size=table.embeddings.shape) * 10])
    found = scores(model, inputs(kind))
    assert (found.min(), found.max()) == (0, 1)


def test_a_member_is_mean_and_biases_and_a_dot_product(chapter):
    model, (users, movies) = make(chapter, "ensemble"), some_pairs()
    model((users, movies))
    p, q = (table.get_weights()[0].reshape(-1, 3, 5) for table in model.tables)
    p, q = p[users], q[movies]
    expected = some_labels().mean() + p[..., 4] + q[..., 4] + (p * q)[..., :4].sum(axis=-1)
    found = keras.ops.convert_to_numpy(model((users, movies), training=True))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    mean = np.clip(expected.mean(axis=1, keepdims=True), 0, 1)
    np.testing.assert_allclose(scores(model, (users, movies)), mean, rtol=1e-5)


def test_members_are_trained_each_by_its_own_error(chapter):
    """One step moves a member's columns as far as if it were alone."""
    both, alone = make(chapter, "ensemble", 2), make(chapter, "ensemble", 1)
    pairs, labels = some_pairs(), some_labels()
    for model in (both, alone):
        model(pairs)
    starts = [table.get_weights()[0] for table in both.tables]
    for table, start in zip(alone.tables, starts, strict=True):
        table.set_weights([start[:, 5:]])
    for model in (both, alone):
        model.compile(keras.optimizers.SGD(0.5))
        model.fit(pairs, labels, batch_size=64, epochs=1, verbose=0)
    for two, one, start in zip(both.tables, alone.tables, starts, strict=True):
        found = two.get_weights()[0][:, 5:]
        assert np.abs(found - start[:, 5:]).max() > 1e-4
        np.testing.assert_allclose(found, one.get_weights()[0], atol=1e-6)


@every_model
def test_training_moves_every_weight(chapter, kind):
    model, x, labels = make(chapter, kind), inputs(kind), some_labels()
    model(x)
    before = [keras.ops.convert_to_numpy(each) for each in model.trainable_weights]
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
    model.fit(x, labels, batch_size=32, epochs=5, verbose=0)
    assert len(before) == {"documented": 8, "ensemble": 2, "features": 5}[kind]
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert np.abs(keras.ops.convert_to_numpy(weight) - old).max() > 0, weight.path


@every_model
def test_a_batch_can_be_learned_by_heart(chapter, kind):
    model, x, labels = make(chapter, kind), inputs(kind, 16), some_labels(16)
    model.compile(optimizer=keras.optimizers.Adam(0.02), loss="mse")
    history = model.fit(x, labels, batch_size=16, epochs=150, verbose=0)
    assert history.history["loss"][-1] < 0.1 * history.history["loss"][0]


@every_model
def test_a_saved_model_predicts_the_same(chapter, kind, tmp_path):
    model, x = make(chapter, kind), inputs(kind)
    expected = scores(model, x)
    model.save(tmp_path / "model.keras")
    found = scores(keras.saving.load_model(tmp_path / "model.keras"), x)
    assert np.array_equal(found, expected)


def test_the_documented_training_repeats_and_calls_back(chapter):
    epochs = []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(epoch))
    sizes, pairs = (NUM_USERS, NUM_MOVIES), some_pairs()
    first, second = (
        chapter.documented(pairs, some_labels(), sizes, dim=4, **RECIPE, callbacks=callbacks)[0]
        for callbacks in ([watch], [])
    )
    assert epochs == list(range(RECIPE["epochs"]))
    assert np.array_equal(scores(first, pairs), scores(second, pairs))


@pytest.mark.parametrize(
    ("scale", "stars", "labels"),
    [((1, 5), [1.0, 4.0], [0, 0.75]), ((0.5, 5), [0.5, 2.75], [0, 0.5])],
)
def test_arrays_of_ratings_use_the_scale_of_the_data(chapter, scale, stars, labels):
    ratings = pd.DataFrame({"user_id": [1, 2], "movie_id": [3, 4], "rating": stars})
    (users, movies), found = chapter.arrays(ratings, scale)
    assert (users.tolist(), movies.tolist(), found.tolist()) == ([1, 2], [3, 4], labels)
    assert {each.dtype for each in (users, movies)} == {np.dtype("int32")}
    assert found.dtype == np.float32


def test_the_pair_itself_is_left_out_of_the_sums(chapter):
    """What a pair's own link says must not reach its prediction, and what others say must."""
    model, x = make(chapter, "features"), inputs("features")
    model(x)
    before = scores(model, x)
    links = [table.get_weights()[0] for table in model.x]
    user, movie = x[0][0], x[1][0]
    for table, of_pair, size in (
        (model.x[0], (user, 5 + movie), NUM_MOVIES),
        (model.x[1], (movie, 3 + user), NUM_USERS),
    ):
        changed = table.get_weights()[0]
        assert changed.shape[1] - size - 1 in (3, 5)
        changed[of_pair] = 0
        table.set_weights([changed])
    after = scores(model, x)
    np.testing.assert_allclose(after[0], before[0], rtol=1e-5)
    same_user = (x[0] == user) & (x[1] != movie)
    assert np.abs(after - before)[same_user].min() > 1e-6
    assert links[0].shape == (NUM_USERS + 1, 5 + NUM_MOVIES + 1)


def test_biases_without_shrinkage_recover_an_additive_table(chapter):
    users, movies = (each.ravel() + 1 for each in np.indices((6, 5)))
    random = np.random.default_rng(0)
    labels = 0.5 + random.normal(size=7)[users] + random.normal(size=6)[movies]
    mean, user_bias, movie_bias = chapter.fit_biases(
        (users, movies), labels, (6, 5), shrinkage=1e-9
    )
    np.testing.assert_allclose(mean + user_bias[users] + movie_bias[movies], labels, atol=1e-6)


def test_features_of_movies_and_users(chapter):
    movies = pd.DataFrame(
        {
            "genres": ["Action|Sci-Fi", "", "Action"],
            "year": pd.array([1977, None, 1995], dtype="Int16"),
        }
    )
    found = chapter.movie_features(movies)
    assert (found[0] == 0).all()
    assert found.sum(axis=1).tolist() == [0, 3, 0, 2]  # genres, and a year if known
    users = pd.DataFrame({"age": [24, 53], "gender": ["M", "F"], "occupation": ["other", "writer"]})
    assert chapter.user_features(users, 2).sum(axis=1).tolist() == [0, 3, 3]
    assert chapter.user_features(None, 2).shape == (3, 0)


def test_adagrad_and_adamw_start_from_the_same_documented_network(chapter):
    """What lies between their rows is the training, so all else must be the same."""
    sizes, pairs = (NUM_USERS, NUM_MOVIES), some_pairs()
    how = {"dim": 4, "epochs": 0, "batch_size": 50, "seed": 3}
    by_adagrad, _ = chapter.documented(pairs, some_labels(), sizes, **how)
    for_adamw = chapter.new_documented_model(sizes, dim=4, seed=3)
    assert np.array_equal(scores(by_adagrad, pairs), scores(for_adamw, pairs))


def test_links_are_worth_one_over_the_root_of_their_number(chapter):
    ratings = pd.DataFrame({"user_id": [1, 1, 1, 1, 2], "movie_id": [1, 2, 3, 4, 4]})
    movies = pd.DataFrame({"genres": [""] * 4, "year": pd.array([None] * 4, dtype="Int16")})
    data = SimpleNamespace(users=None, movies=movies, num_users=2, num_movies=4)
    of_users, of_movies = chapter.all_features(data, ratings)
    assert of_users.tolist() == [[0] * 5, [0, 0.5, 0.5, 0.5, 0.5], [0, 0, 0, 0, 1]]
    np.testing.assert_allclose(of_movies[4, -3:], [0, 0.5**0.5, 0.5**0.5])
    assert of_movies[0].sum() == 0


def test_moments_are_counted_from_what_is_learned_from(chapter):
    day = 86_400
    learn = pd.DataFrame({"user_id": [1, 2], "timestamp": [0, 8 * day]})
    asked = pd.DataFrame({"user_id": [1, 2, 3, 2], "timestamp": [0, 10 * day, 9 * day, -day]})
    weeks, stay = chapter.moments(asked, learn)
    assert weeks.tolist() == [0, 1, 1, 0]
    assert stay.tolist() == [200, 203, 200, 200]
    assert {weeks.dtype, stay.dtype} == {np.dtype("int32")}
