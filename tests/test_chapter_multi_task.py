"""The multi-task chapter's own classes keep the contracts the text gives them."""

import math

import keras
import numpy as np
import pandas as pd
import pytest
from chapters import NOTEBOOKS, definitions
from keras import ops
from scipy.special import logsumexp

from rectutor.data import synthetic
from rectutor.evaluation import evaluate, queries_for, recommend
from rectutor.ratings import to_label, to_stars
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


SIZES = {"num_users": USERS, "num_movies": MOVIES, "width": 4}
LOG_Q = np.log(np.linspace(0.01, 0.2, MOVIES + 1)).tolist()


def documented(chapter):
    return chapter.DocumentedMultiTask(**SIZES, hidden=[6, 5], seed=1)


def corrected(chapter):
    return chapter.DocumentedMultiTask(**SIZES, hidden=[6, 5], log_q=LOG_Q, seed=1)


def joint(chapter, dropout=0.0, **changes):
    options = {**SIZES, "hidden": 6, "dropout": dropout, "mean": 0.6, **changes}
    model = chapter.JointModel(**options, seed=1)
    rng = np.random.default_rng(0)  # the biases start at 0, which would hide mistakes
    head = model.rating_head
    for table in (model.popularity, head.user_bias, head.movie_bias):
        table.embeddings.assign(rng.normal(size=table.embeddings.shape))
    return model


def rated(num_users=USERS, num_ratings=150, seed=1):
    """Synthetic ratings with their labels."""
    ratings = synthetic(num_users, MOVIES, num_ratings, seed=seed).ratings
    return ratings.assign(label=to_label(ratings["rating"]))


def array(tensor):
    return np.asarray(ops.convert_to_numpy(tensor), "float64")


def loss_of(model, x, y):
    return float(model.compute_loss(x, y, model(x)))


def dense(values, layer):
    out = values @ array(layer.kernel)
    return out + array(layer.bias) if layer.use_bias else out


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.3, 2.5)])
def test_documented_loss_is_a_sum_plus_a_mean_with_its_weights(chapter, x, y, weights):
    model = documented(chapter)
    model.task_weights.assign(np.array(weights, "float32"))
    query = array(model.user_table.embeddings)[x["user_id"]]
    candidate = array(model.movie_table.embeddings)[x["movie_id"]]
    scores = query @ candidate.T
    retrieval = np.sum(logsumexp(scores, axis=1) - np.diag(scores))
    values = np.concatenate([query, candidate], axis=1)
    first, second, last = model.rating_head.layers
    rated = dense(np.maximum(0, dense(np.maximum(0, dense(values, first)), second)), last)[:, 0]
    expected = weights[0] * retrieval + weights[1] * np.mean((y - rated) ** 2)
    np.testing.assert_allclose(loss_of(model, x, y), expected, rtol=1e-5)
    np.testing.assert_allclose(array(model.rate(x["user_id"], x["movie_id"])), rated, atol=1e-6)


def joint_by_hand(model, x, y):
    """Mean cross-entropy over the catalogue, and squared errors, in NumPy."""
    users, movies = array(model.user_table.embeddings), array(model.movie_table.embeddings)
    query, candidate = users[x["user_id"]], movies[x["movie_id"]]
    scores = query @ movies[1:].T + array(model.popularity.embeddings)[1:, 0]
    own = scores[np.arange(len(query)), x["movie_id"] - 1]
    head = model.rating_head
    first, _, last = head.network.layers
    values = np.concatenate([query, candidate, query * candidate], axis=1)
    rated = dense(np.maximum(0, dense(values, first)), last)[:, 0] + head.mean
    rated += array(head.user_bias.embeddings)[x["user_id"], 0]
    rated += array(head.movie_bias.embeddings)[x["movie_id"], 0]
    return np.mean(logsumexp(scores, axis=1) - own), (y - rated) ** 2


def test_task_weights_put_ignorant_guesses_at_one(chapter):
    first, second = chapter.task_weights_for(0.3, MOVIES, 0.08)
    np.testing.assert_allclose([first * math.log(MOVIES), second * 0.08], [0.7, 0.3])


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_joint_loss_is_the_two_means_on_one_scale(chapter, x, y, alpha):
    model = joint(chapter)
    variance = 0.08
    weights = chapter.task_weights_for(alpha, MOVIES, variance)
    model.task_weights.assign(np.array(weights, "float32"))
    cross_entropy, errors = joint_by_hand(model, x, y)
    expected = (1 - alpha) * cross_entropy / math.log(MOVIES) + alpha * np.mean(errors) / variance
    np.testing.assert_allclose(loss_of(model, x, y), expected, rtol=1e-5)


def by_weight(model, x, y, weights):
    """The gradient of every trainable weight, by the weight's identity: a step of SGD, undone."""
    before = [array(weight) for weight in model.weights]
    model.task_weights.assign(np.array(weights, "float32"))
    model.compile(optimizer=keras.optimizers.SGD(1.0))
    old = [array(weight) for weight in model.trainable_weights]
    model.train_on_batch(x, y)
    moved = {
        id(weight): value - array(weight)
        for weight, value in zip(model.trainable_weights, old, strict=True)
    }
    for weight, value in zip(model.weights, before, strict=True):
        weight.assign(value)
    return moved


@pytest.mark.parametrize("make", [documented, joint])
@pytest.mark.parametrize(("weights", "silent"), [((1, 0), "rating_head"), ((0, 1), "popularity")])
def test_weight_zero_leaves_the_other_heads_own_weights_without_gradient(
    chapter, x, y, make, weights, silent
):
    model = make(chapter)
    moved = by_weight(model, x, y, weights)
    layer = getattr(model, silent, None)  # the documented model's retrieval has none of its own
    own = {id(weight) for weight in layer.trainable_variables} if layer else set()
    assert own <= set(moved)
    for weight in model.trainable_variables:
        assert np.any(moved[id(weight)]) == (id(weight) not in own), weight.path


@pytest.mark.parametrize("make", [documented, corrected, joint])
def test_positive_weights_reach_every_weight(chapter, x, y, make):
    model = make(chapter)
    moved = by_weight(model, x, y, (1, 1))
    assert len(moved) == len(model.trainable_weights)
    assert all(np.any(gradient) for gradient in moved.values())
    assert id(model.task_weights) not in moved


def test_shared_pull_is_the_length_of_both_tables_gradients(chapter, x, y):
    model = documented(chapter)
    before = [array(weight) for weight in model.weights]
    loss, pull = chapter.shared_pull(model, x, y, (1, 0))
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, array(weight))  # it moves a copy
    _, half = chapter.shared_pull(model, x, y, (0.5, 0))
    assert half == pytest.approx(pull / 2, rel=1e-3)
    moved = by_weight(model, x, y, (1, 0))
    tables = [moved[id(each.embeddings)] for each in (model.user_table, model.movie_table)]
    np.testing.assert_allclose(pull**2, sum((table**2).sum() for table in tables), rtol=1e-3)
    model.task_weights.assign([1.0, 0.0])
    np.testing.assert_allclose(loss, loss_of(model, x, y), rtol=1e-5)


def test_padding_gets_no_gradient(chapter, x, y):
    for make in (documented, joint):
        moved = by_weight(make(chapter), x, y, (1, 1)).values()
        tables = [g for g in moved if len(g) in (USERS + 1, MOVIES + 1)]
        assert len(tables) in (2, 5)
        assert not any(np.any(gradient[0]) for gradient in tables)


def test_in_batch_loss_leaves_out_accidental_hits_and_subtracts_log_q(chapter):
    rng = np.random.default_rng(0)
    queries, candidates = rng.normal(size=(2, 5, 3)).astype("float32")
    movies, log_q = np.array([4, 7, 4, 4, 2]), np.array(LOG_Q)
    candidates = candidates[[0, 1, 0, 0, 4]]  # the same movie has the same row
    scores = queries @ candidates.T - log_q[movies]
    expected = []
    for b in range(5):
        kept = [j for j in range(5) if j == b or movies[j] != movies[b]]
        expected.append(logsumexp(scores[b, kept]) - scores[b, b])
    found = chapter.in_batch_cross_entropy(queries, candidates, movies, LOG_Q)
    np.testing.assert_allclose(array(found), expected, rtol=1e-4)
    plain = queries @ candidates.T
    found = chapter.in_batch_cross_entropy(queries, candidates, movies)
    np.testing.assert_allclose(array(found), logsumexp(plain, axis=1) - np.diag(plain), rtol=1e-4)


def test_log_q_agrees_with_the_layer_of_keras_rs(chapter):
    # no movie comes twice: RemoveAccidentalHits of keras-rs 0.4.0 adds 1e-40 to the logits of
    # accidental hits instead of a large negative number, and so removes nothing
    import keras_rs

    rng = np.random.default_rng(1)
    queries, candidates = rng.normal(size=(2, 6, 3)).astype("float32")
    movies = np.arange(1, 7)
    chances = np.exp(np.array(LOG_Q)[movies]).astype("float32")
    logits = ops.convert_to_tensor(queries @ candidates.T)
    logits = keras_rs.layers.SamplingProbabilityCorrection(epsilon=0.0)(logits, chances)
    expected = keras.losses.categorical_crossentropy(ops.eye(6), logits, from_logits=True)
    found = chapter.in_batch_cross_entropy(queries, candidates, movies, LOG_Q)
    np.testing.assert_allclose(array(found), array(expected), rtol=1e-4)


def test_corrected_model_uses_movie_ids_and_log_q(chapter, x, y):
    model = corrected(chapter)
    model.task_weights.assign([1.0, 0.0])
    query = array(model.user_table.embeddings)[x["user_id"]].astype("float32")
    candidate = array(model.movie_table.embeddings)[x["movie_id"]].astype("float32")
    losses = chapter.in_batch_cross_entropy(query, candidate, x["movie_id"], LOG_Q)
    np.testing.assert_allclose(loss_of(model, x, y), array(losses).sum(), rtol=1e-5)


def test_documented_metric_equals_brute_force(chapter):
    model = documented(chapter)
    rng = np.random.default_rng(2)
    highest = {"user_id": USERS, "movie_id": MOVIES, "rating": 5}
    frame = pd.DataFrame({name: rng.integers(1, top + 1, 60) for name, top in highest.items()})
    retrieved = chapter.top_movies(model, frame["user_id"].to_numpy())
    scores = array(model.user_table.embeddings) @ array(model.movie_table.embeddings).T
    fives = frame[frame["rating"] == 5]
    own = scores[fives["user_id"], fives["movie_id"]][:, None]
    hits = (scores[fives["user_id"]] > own).sum(axis=1) < 10
    for k in (10, 100):  # the name promises a hundred, the list holds ten
        found = chapter.documented_accuracy(retrieved, frame, k=k)
        np.testing.assert_allclose(found, np.mean(hits), atol=1e-6)
    assert retrieved.shape == (60, 10)


def test_predicted_labels_do_not_depend_on_the_chunk(chapter):
    frame = rated()
    model = joint(chapter)
    whole = chapter.predicted_labels(model, frame)
    np.testing.assert_allclose(whole, chapter.predicted_labels(model, frame, chunk=7), atol=1e-6)
    x, y = chapter.pairs(frame)
    errors = joint_by_hand(model, x, y)[1]
    np.testing.assert_allclose((whole - y) ** 2, errors, atol=1e-5)
    assert chapter.root_mean_square(model, frame) == pytest.approx(errors.mean() ** 0.5, rel=1e-5)


@pytest.mark.parametrize("scale", [(1, 5), (0.5, 5)])
def test_the_documented_stars_are_off_by_the_lowest_times_one_minus_p(scale):
    unit = np.linspace(0, 1, 11)
    gap = to_stars(unit, scale) - scale[1] * unit
    np.testing.assert_allclose(gap, scale[0] * (1 - unit), atol=1e-6)


@pytest.mark.parametrize("make", [documented, corrected, joint])
def test_a_saved_model_comes_back_the_same(chapter, x, y, tmp_path, make):
    model = make(chapter)
    model.task_weights.assign([0.2, 0.9])
    model.compile(optimizer=keras.optimizers.Adagrad(0.1))
    model.fit(x, y, batch_size=8, epochs=1, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.get_config() == model.get_config()
    for name, value in model(x).items():
        np.testing.assert_array_equal(array(value), array(again(x)[name]))
    one, other = (array(each.affinities(x["user_id"])) for each in (model, again))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(array(again.task_weights), [0.2, 0.9], rtol=1e-6)


def test_the_seed_decides_the_weights_the_order_and_the_dropout(chapter):
    frame, sizes = rated(), {"num_users": USERS, "num_movies": MOVIES, "width": 4}
    recipe = {"rate": 0.01, "decay": 0.1, "epochs": 2, "batch_size": 32}
    found = []
    for seed in (7, 7, 8):
        model, seconds = chapter.train_joint(frame, 0.1, sizes, seed=seed, **recipe)
        assert seconds > 0
        assert model.rating_head.mean == pytest.approx(frame["label"].mean(), rel=1e-5)
        found.append(array(model.user_table.embeddings))
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 1e-3


def test_no_order_of_the_batches_is_chosen(chapter):
    """The order follows from the run's seed alone, with no further number to tune it by."""
    text = (NOTEBOOKS / "multi_task.py").read_text(encoding="utf-8")
    orders = [line for line in text.splitlines() if "default_rng" in line]
    assert orders
    assert all("default_rng(seed)" in line for line in orders)
    assert "was chosen because" not in text


@pytest.mark.parametrize("batch_size", [64, 149, 10_000])
def test_training_takes_any_batch_size(chapter, batch_size):
    recipe = {"epochs": 1, "batch_size": batch_size, "seed": 0}
    model, _ = chapter.train_documented(rated(), (1, 1), USERS, MOVIES, **recipe)
    assert np.isfinite(array(model.user_table.embeddings)).all()


def test_the_retrieval_specialists_rating_head_is_never_trained(chapter):
    """Correction C20."""
    recipe = {"epochs": 2, "batch_size": 50, "seed": 3}
    new = chapter.DocumentedMultiTask(USERS, MOVIES, seed=3)
    for weights, moves in (((1, 0), False), ((1, 1), True)):
        model, _ = chapter.train_documented(rated(), weights, USERS, MOVIES, **recipe)
        pairs = zip(new.rating_head.weights, model.rating_head.weights, strict=True)
        assert any(np.any(array(a) != array(b)) for a, b in pairs) == moves


@pytest.mark.long
def test_the_sweep_leaves_out_the_task_of_weight_zero_and_chooses_an_inner_balance(chapter):
    ratings, sizes = rated(30, 400), {"num_users": 30, "num_movies": MOVIES}
    watches = leave_one_out(ratings, **sizes)
    stars = chapter.split_for_stars(ratings, **sizes, seed=1)
    assert len(stars.train) + len(stars.validation) + len(stars.test) == len(ratings)
    recipe = {"sizes": {**sizes, "width": 4}, "rate": 0.01, "decay": 0.1}
    recipe |= {"epochs": 1, "batch_size": 64, "seed": 7}
    found, alpha = chapter.sweep_alphas((0.1, 0.5), watches, stars, recipe)
    assert found["alpha"].tolist() == [0, 0.1, 0.5, 1]
    assert found["NDCG@10"].isna().tolist() == [False, False, False, True]
    assert found["RMSE"].isna().tolist() == [True, False, False, False]
    assert alpha in (0.1, 0.5)


@pytest.mark.parametrize("make", [documented, joint])
def test_neither_padding_nor_seen_movies_are_recommended(chapter, make):
    model = make(chapter)
    split = leave_one_out(synthetic(USERS, MOVIES, 150, seed=5).ratings, num_users=USERS)
    recommender = chapter.by_affinity(model)
    queries = queries_for(split)
    lists = recommend(recommender, queries, k=5)
    for b, recommended in enumerate(lists):
        history = set(queries.history(b).tolist())
        real = [movie for movie in recommended.tolist() if movie]
        assert len(set(real)) == len(real) == min(5, split.num_movies - len(history))
        assert not history & set(real)
    assert 0 <= evaluate(recommender, split, num_resamples=10).ndcg <= 1


def test_every_model_asked_under_p_says_what_it_was_trained_on():
    text = (NOTEBOOKS / "multi_task.py").read_text(encoding="utf-8")
    assert text.count("by_affinity(") - 1 == text.count("Trained(by_affinity(") == 3


def test_rmse_intervals_resample_users(chapter):
    """A user's errors go together: one user with large errors makes a wide interval."""
    users = np.repeat([1, 2, 3, 4], 50)
    frame = pd.DataFrame({"user_id": users, "label": 0.5})
    noise = np.random.default_rng(0).normal(size=200) * 0.1
    alike = np.full(200, 0.6)
    apart = np.where(users == 1, 0.7, 0.5)
    found, draws = chapter.rmse_table({"a": alike, "b": apart, "c": 0.5 + noise}, frame)
    assert found["RMSE"]["a"] == pytest.approx(0.1)
    assert found["high"]["a"] - found["low"]["a"] == pytest.approx(0, abs=1e-9)
    assert found["high"]["b"] - found["low"]["b"] > 0.1
    assert list(draws) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("first", "second", "spread", "verdict"),
    [
        ("a", "b", (0.28, 0.32), "a beats b"),
        ("b", "a", (0.28, 0.32), "b loses to a"),
        ("a", "b", (0.1, 0.3), "a is not told from b"),
    ],
)
def test_rmse_sentence_follows_the_paired_interval(chapter, first, second, spread, verdict):
    noise = np.random.default_rng(0).normal(size=101)  # the same users for both
    draws = pd.DataFrame({"a": 0.2 + noise, "b": np.linspace(*spread, 101) + noise})
    found = pd.DataFrame({"RMSE": [0.2, 0.3]}, index=["a", "b"])
    said = chapter.compare_rmse(first, second, found, draws)
    assert said.startswith(f"{verdict}: RMSE {'-' if first == 'a' else '+'}0.1000 [")
