"""The multi-task chapter's own classes keep the contracts the text gives them."""

import math

import keras
import numpy as np
import pandas as pd
import pytest
from chapters import definitions
from keras import ops

from rectutor.data import synthetic
from rectutor.evaluation import Queries, evaluate, queries_for, recommend
from rectutor.sequences import Histories
from rectutor.splits import leave_one_out

USERS, MOVIES = 12, 20


@pytest.fixture(scope="module")
def chapter():
    return definitions("multi_task")


@pytest.fixture
def x():
    rng = np.random.default_rng(3)
    return {
        "user_id": rng.integers(1, USERS + 1, 16).astype("int32"),
        "movie_id": rng.integers(1, MOVIES + 1, 16).astype("int32"),
    }


@pytest.fixture
def y():
    return np.random.default_rng(4).random(16).astype("float32")


def documented(chapter, **changes):
    sizes = {"num_users": USERS, "num_movies": MOVIES, "width": 4, "hidden": (6, 5)}
    return chapter.DocumentedMultiTask(**{**sizes, **changes}, seed=1)


def joint(chapter, **changes):
    sizes = {"num_users": USERS, "num_movies": MOVIES, "width": 4, "hidden": 6, "dropout": 0.0}
    model = chapter.JointModel(**{**sizes, **changes}, seed=1)
    rng = np.random.default_rng(0)  # the biases start at 0, which would hide mistakes
    for table in (model.popularity, model.user_bias, model.movie_bias):
        table.embeddings.assign(rng.normal(size=table.embeddings.shape))
    model.mean_rating.assign(0.6)
    return model


def array(tensor):
    return np.asarray(ops.convert_to_numpy(tensor), "float64")


def loss_of(model, x, y):
    return float(model.compute_loss(x, y, model(x)))


def relu(values):
    return np.maximum(values, 0)


def dense(values, layer):
    out = values @ array(layer.kernel)
    return out + array(layer.bias) if layer.use_bias else out


def logsumexp(scores):
    top = scores.max(axis=1)
    return top + np.log(np.exp(scores - top[:, None]).sum(axis=1))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.3, 2.5)])
def test_documented_loss_is_a_sum_plus_a_mean_with_its_weights(chapter, x, y, weights):
    model = documented(chapter)
    model.task_weights.assign(np.array(weights, "float32"))
    query = array(model.user_table.embeddings)[x["user_id"]]
    candidate = array(model.movie_table.embeddings)[x["movie_id"]]
    scores = query @ candidate.T
    retrieval = np.sum(logsumexp(scores) - np.diag(scores))
    values = np.concatenate([query, candidate], axis=1)
    first, second, last = model.rating_head.layers
    rated = dense(relu(dense(relu(dense(values, first)), second)), last)[:, 0]
    expected = weights[0] * retrieval + weights[1] * np.mean((y - rated) ** 2)
    np.testing.assert_allclose(loss_of(model, x, y), expected, rtol=1e-5)
    np.testing.assert_allclose(array(model.rate(**ids(x))), rated, atol=1e-6)


def ids(x):
    return {"user_ids": x["user_id"], "movie_ids": x["movie_id"]}


def joint_by_hand(model, x):
    """Mean cross-entropy over the catalogue, and predicted ratings, in NumPy."""
    users, movies = array(model.user_table.embeddings), array(model.movie_table.embeddings)
    query, candidate = users[x["user_id"]], movies[x["movie_id"]]
    scores = query @ movies[1:].T + array(model.popularity.embeddings)[1:, 0]
    own = scores[np.arange(len(query)), x["movie_id"] - 1]
    first, _, last = model.rating_head.layers
    values = np.concatenate([query, candidate, query * candidate], axis=1)
    rated = dense(relu(dense(values, first)), last)[:, 0] + float(model.mean_rating)
    rated += array(model.user_bias.embeddings)[x["user_id"], 0]
    rated += array(model.movie_bias.embeddings)[x["movie_id"], 0]
    return np.mean(logsumexp(scores) - own), rated


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_joint_loss_is_the_two_means_on_one_scale(chapter, x, y, alpha):
    model = joint(chapter)
    variance = 0.08
    weights = chapter.task_weights_for(alpha, MOVIES, variance)
    model.task_weights.assign(np.array(weights, "float32"))
    cross_entropy, rated = joint_by_hand(model, x)
    squared_error = np.mean((y - rated) ** 2)
    expected = (1 - alpha) * cross_entropy / math.log(MOVIES) + alpha * squared_error / variance
    np.testing.assert_allclose(loss_of(model, x, y), expected, rtol=1e-5)


def test_learned_weighting_has_the_uncertainty_form(chapter, x, y):
    model = joint(chapter, learn_weights=True)
    s = np.array([0.7, -1.3])
    model.log_variances.assign(s)
    model.task_weights.assign([5.0, 7.0])  # takes no part
    cross_entropy, rated = joint_by_hand(model, x)
    squared_error = np.mean((y - rated) ** 2)
    expected = np.exp(-s[0]) * cross_entropy + s[0] / 2
    expected += np.exp(-s[1]) * squared_error / 2 + s[1] / 2
    np.testing.assert_allclose(loss_of(model, x, y), expected, rtol=1e-5)


def test_learned_variances_settle_at_twice_the_cross_entropy_and_at_the_squared_error(chapter):
    def loss(s):
        return float(chapter.uncertainty_loss(6.0, 0.05, np.asarray(s, "float32")))

    best = [math.log(2 * 6.0), math.log(0.05)]
    for step in ([0.1, 0.0], [-0.1, 0.0], [0.0, 0.1], [0.0, -0.1]):
        assert loss(best) < loss(np.add(best, step))


def by_weight(chapter, model, x, y, weights):
    """The gradient of every trainable weight, by the weight's identity."""
    _, moved = chapter.gradients(model, x, y, weights)
    return {id(w): g for w, g in zip(model.trainable_variables, moved, strict=True)}


def own_weights(model, head):
    """The weights that only one head reads."""
    names = {"rating": ("rating_head", "user_bias", "movie_bias"), "retrieval": ("popularity",)}
    layers = [getattr(model, name) for name in names[head] if hasattr(model, name)]
    return {id(weight) for layer in layers for weight in layer.trainable_variables}


@pytest.mark.parametrize("make", [documented, joint])
@pytest.mark.parametrize(("weights", "silent"), [((1, 0), "rating"), ((0, 1), "retrieval")])
def test_weight_zero_leaves_the_other_heads_own_weights_without_gradient(
    chapter, x, y, make, weights, silent
):
    model = make(chapter)
    moved = by_weight(chapter, model, x, y, weights)
    own = own_weights(model, silent)
    assert own <= set(moved)
    for weight in model.trainable_variables:
        assert np.any(moved[id(weight)]) == (id(weight) not in own), weight.path


@pytest.mark.parametrize("make", [documented, joint])
def test_positive_weights_reach_every_weight(chapter, x, y, make):
    model = make(chapter)
    moved = by_weight(chapter, model, x, y, (1, 1))
    assert len(moved) == len(model.trainable_variables)
    assert all(np.any(gradient) for gradient in moved.values())


def test_learned_weights_get_a_gradient_and_the_factors_of_train_get_none(chapter, x, y):
    model = joint(chapter, learn_weights=True)
    moved = by_weight(chapter, model, x, y, (1, 1))
    assert all(np.any(gradient) for gradient in moved.values())
    assert id(model.log_variances) in moved
    assert id(model.task_weights) not in moved
    assert id(model.mean_rating) not in moved


def test_gradients_leave_the_model_as_it_was(chapter, x, y):
    model = documented(chapter)
    before = [array(weight) for weight in model.weights]
    chapter.gradients(model, x, y, (1, 1))
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, array(weight))


def test_shared_pull_is_the_length_of_both_tables_gradients(chapter, x, y):
    model = documented(chapter)
    loss, pull = chapter.shared_pull(model, x, y, (1, 0))
    by_hand, moved = chapter.gradients(model, x, y, (1, 0))
    tables = [g for g in moved if g.shape in ((USERS + 1, 4), (MOVIES + 1, 4))]
    assert len(tables) == 2
    np.testing.assert_allclose(pull**2, sum((table**2).sum() for table in tables), rtol=1e-5)
    assert loss == by_hand


def test_padding_gets_no_gradient(chapter, x, y):
    for make in (documented, joint):
        _, moved = chapter.gradients(make(chapter), x, y, (1, 1))
        tables = [g for g in moved if g.shape[0] in (USERS + 1, MOVIES + 1)]
        assert len(tables) in (2, 5)
        assert not any(np.any(gradient[0]) for gradient in tables)


def test_in_batch_loss_leaves_out_accidental_hits_and_subtracts_log_q(chapter):
    rng = np.random.default_rng(0)
    queries, candidates = rng.normal(size=(2, 5, 3)).astype("float32")
    movies, log_q = np.array([4, 7, 4, 4, 2]), np.log([0.5, 0.2, 0.5, 0.5, 0.1])
    candidates = candidates[[0, 1, 0, 0, 4]]  # the same movie has the same row
    scores = queries @ candidates.T - log_q
    expected = []
    for b in range(5):
        kept = [j for j in range(5) if j == b or movies[j] != movies[b]]
        expected.append(np.log(np.exp(scores[b, kept]).sum()) - scores[b, b])
    found = chapter.in_batch_cross_entropy(queries, candidates, movies, log_q.astype("float32"))
    np.testing.assert_allclose(array(found), expected, rtol=1e-4)
    plain = queries @ candidates.T
    found = chapter.in_batch_cross_entropy(queries, candidates)
    np.testing.assert_allclose(array(found), logsumexp(plain) - np.diag(plain), rtol=1e-4)


def test_log_q_agrees_with_the_layer_of_keras_rs(chapter):
    # accidental hits are not compared: RemoveAccidentalHits of keras-rs 0.4.0 adds 1e-40 to their
    # logits instead of a large negative number, and so removes nothing
    import keras_rs

    rng = np.random.default_rng(1)
    queries, candidates = rng.normal(size=(2, 6, 3)).astype("float32")
    chances = np.array([0.3, 0.2, 0.3, 0.1, 0.2, 0.3], "float32")
    logits = ops.convert_to_tensor(queries @ candidates.T)
    logits = keras_rs.layers.SamplingProbabilityCorrection(epsilon=0.0)(logits, chances)
    expected = keras.losses.categorical_crossentropy(ops.eye(6), logits, from_logits=True)
    found = chapter.in_batch_cross_entropy(queries, candidates, log_q=np.log(chances))
    np.testing.assert_allclose(array(found), array(expected), rtol=1e-4)


def test_corrected_model_uses_movie_ids_and_log_q(chapter, x, y):
    log_q = np.log(np.linspace(0.01, 0.2, MOVIES + 1)).tolist()
    model = documented(chapter, log_q=log_q)
    model.task_weights.assign([1.0, 0.0])
    query = array(model.user_table.embeddings)[x["user_id"]].astype("float32")
    candidate = array(model.movie_table.embeddings)[x["movie_id"]].astype("float32")
    losses = chapter.in_batch_cross_entropy(
        query, candidate, x["movie_id"], np.array(log_q, "float32")[x["movie_id"]]
    )
    np.testing.assert_allclose(loss_of(model, x, y), array(losses).sum(), rtol=1e-5)


def test_documented_metric_equals_brute_force(chapter):
    model = documented(chapter)
    rng = np.random.default_rng(2)
    frame = pd.DataFrame(
        {
            "user_id": rng.integers(1, USERS + 1, 60),
            "movie_id": rng.integers(1, MOVIES + 1, 60),
            "rating": rng.integers(1, 6, 60),
        }
    )
    retrieved = chapter.top_movies(model, frame["user_id"].to_numpy())
    scores = array(model.user_table.embeddings) @ array(model.movie_table.embeddings).T
    hits = []
    for row in frame[frame["rating"] == 5].itertuples():
        own = scores[row.user_id]
        hits.append((own > own[row.movie_id]).sum() < 10)
    for k in (10, 100):  # the name promises a hundred, the list holds ten
        found = chapter.documented_accuracy(retrieved, frame, k=k)
        np.testing.assert_allclose(found, np.mean(hits), atol=1e-6)
    assert retrieved.shape == (60, 10)


def test_squared_errors_do_not_depend_on_the_chunk(chapter):
    frame = synthetic(USERS, MOVIES, 150, seed=1).ratings
    model = joint(chapter)
    whole = chapter.squared_errors(model, frame)
    np.testing.assert_allclose(whole, chapter.squared_errors(model, frame, chunk=7), atol=1e-6)
    _, rated = joint_by_hand(model, chapter.pairs(frame)[0])
    np.testing.assert_allclose(whole, (rated - chapter.pairs(frame)[1]) ** 2, atol=1e-5)


def test_stars_and_labels_are_inverse_and_the_documented_formula_is_off_by_one_minus_p(chapter):
    stars = np.arange(1, 6)
    np.testing.assert_allclose(chapter.to_unit(stars), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(chapter.to_stars(chapter.to_unit(stars)), stars)
    unit = np.linspace(0, 1, 11)
    np.testing.assert_allclose(chapter.to_stars(unit) - 5 * unit, 1 - unit)


def test_task_weights_put_ignorant_guesses_at_one(chapter):
    first, second = chapter.task_weights_for(0.3, MOVIES, 0.08)
    np.testing.assert_allclose([first * math.log(MOVIES), second * 0.08], [0.7, 0.3])


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (documented, {}),
        (documented, {"log_q": [-2.0] * (MOVIES + 1)}),
        (joint, {}),
        (joint, {"learn_weights": True, "dropout": 0.5}),
    ],
)
def test_a_saved_model_comes_back_the_same(chapter, x, y, tmp_path, make, changes):
    model = make(chapter, **changes)
    model.task_weights.assign([0.2, 0.9])
    model.compile(optimizer=keras.optimizers.Adagrad(0.1))
    model.fit(x, y, batch_size=8, epochs=1, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.get_config() == model.get_config()
    for name, value in model(x).items():
        np.testing.assert_array_equal(array(value), array(again(x)[name]))
    np.testing.assert_array_equal(
        array(model.affinities(x["user_id"])), array(again.affinities(x["user_id"]))
    )
    np.testing.assert_allclose(array(again.task_weights), [0.2, 0.9], rtol=1e-6)


def test_training_starts_from_the_same_place_each_time(chapter):
    frame = synthetic(USERS, MOVIES, 150, seed=1).ratings
    model, start = chapter.compiled(
        joint(chapter, dropout=0.5), keras.optimizers.AdamW(0.01, weight_decay=0.1)
    )
    recipe = {"epochs": 2, "batch_size": 32, "seed": 7}
    results = []
    for weights in ((0.1, 3.0), (1.0, 1.0), (0.1, 3.0)):
        assert chapter.train(model, start, frame, weights, **recipe) > 0
        results.append([array(weight) for weight in model.weights])
    for first, last in zip(results[0], results[2], strict=True):
        np.testing.assert_array_equal(first, last)
    assert any(not np.array_equal(a, b) for a, b in zip(*results[:2], strict=True))
    np.testing.assert_allclose(float(model.mean_rating), chapter.pairs(frame)[1].mean(), rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 64, 149, 150, 10_000])
def test_training_takes_any_batch_size(chapter, batch_size):
    frame = synthetic(USERS, MOVIES, 150, seed=1).ratings
    model, start = chapter.compiled(documented(chapter), keras.optimizers.Adagrad(0.1))
    chapter.train(model, start, frame, (1, 1), epochs=1, batch_size=batch_size, seed=0)
    assert np.isfinite(array(model.user_table.embeddings)).all()


def test_measure_leaves_out_the_task_of_weight_zero(chapter):
    from rectutor.splits import random_split

    ratings = synthetic(30, MOVIES, 400, seed=1).ratings
    watches = leave_one_out(ratings, num_users=30, num_movies=MOVIES)
    stars = random_split(
        ratings, sizes=(len(ratings) - 80, 40, 40), num_users=30, num_movies=MOVIES
    )
    model, start = chapter.compiled(
        joint(chapter, num_users=30), keras.optimizers.AdamW(0.01, weight_decay=0.1)
    )
    recipe = {"epochs": 1, "batch_size": 64, "seed": 7}
    for weights, missing in {(1.0, 0.0): "RMSE", (0.0, 1.0): "NDCG@10", (1.0, 1.0): None}.items():
        found, values = chapter.measure(model, start, weights, watches, stars, recipe)
        assert (values is None) == (missing == "NDCG@10")
        assert {name for name, value in found.items() if math.isnan(value)} == ({missing} - {None})


@pytest.mark.parametrize("order", ["by_affinity", "two_stages", "blended"])
@pytest.mark.parametrize("make", [documented, joint])
def test_neither_padding_nor_seen_movies_are_recommended(chapter, make, order):
    model = make(chapter)
    split = leave_one_out(synthetic(USERS, MOVIES, 150, seed=5).ratings, num_users=USERS)
    recommender = {
        "by_affinity": lambda: chapter.by_affinity(model),
        "two_stages": lambda: chapter.two_stages(model, 8),
        "blended": lambda: chapter.blended(model, 0.5),
    }[order]()
    queries = queries_for(split)
    lists = recommend(recommender, queries, k=5)
    for b, recommended in enumerate(lists):
        history = set(queries.histories[b].tolist())
        real = [movie for movie in recommended.tolist() if movie]
        assert len(set(real)) == len(real) == min(5, split.num_movies - len(history))
        assert not history & set(real)
    assert 0 <= evaluate(recommender, split, num_resamples=10).ndcg <= 1


def test_two_stages_order_the_retrieved_by_predicted_rating(chapter):
    model = joint(chapter)
    queries = Queries(
        np.array([3], "int32"), Histories(np.array([2, 9], "int32"), np.array([0, 2]))
    )
    retrieved = recommend(chapter.by_affinity(model), queries, k=6)[0]
    ranked = recommend(chapter.two_stages(model, 6), queries, k=6)[0]
    assert set(ranked) == set(retrieved)
    rated = array(model.rate(np.full(6, 3), ranked))
    assert (np.diff(rated) <= 0).all()
    beyond = recommend(chapter.two_stages(model, 6), queries, k=9)[0]
    np.testing.assert_array_equal(beyond[:6], ranked)
    np.testing.assert_array_equal(
        beyond[6:], recommend(chapter.by_affinity(model), queries, k=9)[0][6:]
    )


def test_blend_of_weight_zero_is_the_affinity(chapter):
    model = joint(chapter)
    queries = Queries(
        np.array([3, 5], "int32"), Histories(np.array([2], "int32"), np.array([0, 1, 1]))
    )
    affinity = chapter.by_affinity(model)(queries)
    np.testing.assert_array_equal(chapter.blended(model, 0.0)(queries), affinity)
    stars = chapter.blended(model, 2.0)(queries) - affinity
    expected = 2 * chapter.to_stars(array(model.rate(np.array([3, 5]), np.array([7, 7]))))
    np.testing.assert_allclose(stars[:, 7], expected, rtol=1e-4)


def test_resampled_rmse_is_paired_and_draws_users(chapter):
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(1, 41), 5)
    squared = rng.random((200, 1)) ** 2 * np.array([[1.0, 0.81]])
    value, draws = chapter.resampled_rmse(squared, users, num_resamples=400)
    np.testing.assert_allclose(value, np.sqrt(squared.mean(axis=0)))
    np.testing.assert_allclose(draws[:, 1] / draws[:, 0], 0.9)  # the same users for both
    low, high = np.quantile(draws[:, 0], [0.025, 0.975])
    assert low < value[0] < high
    constant = np.full((200, 1), 0.25)
    np.testing.assert_allclose(chapter.resampled_rmse(constant, users)[1], 0.5)


def test_rmse_sentence_follows_the_interval(chapter):
    names, rmse = ["a", "b"], np.array([0.2, 0.3])
    draws = np.column_stack([np.full(100, 0.2), np.linspace(0.28, 0.32, 100)])
    assert chapter.say_rmse_difference("a", "b", names, rmse, draws).startswith("a beats b")
    assert chapter.say_rmse_difference("b", "a", names, rmse, draws).startswith("b loses to a")
    draws[:, 1] = np.linspace(0.1, 0.3, 100)
    assert "is not told from" in chapter.say_rmse_difference("a", "b", names, rmse, draws)
