"""The multi-task chapter's own classes keep the contracts the text gives them."""

import math

import keras
import numpy as np
import pandas as pd
import pytest
from chapters import definitions
from keras import ops
from scipy.special import logsumexp

from rectutor.baselines import Mixture
from rectutor.data import synthetic
from rectutor.evaluation import Queries, evaluate, queries_for, recommend
from rectutor.ratings import to_label, to_stars
from rectutor.sequences import Histories
from rectutor.splits import leave_one_out, random_split

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
    return chapter.CorrectedMultiTask(**SIZES, hidden=[6, 5], log_q=LOG_Q, seed=1)


def joint(chapter, kind="JointModel", dropout=0.0, **changes):
    options = {**SIZES, "hidden": 6, "dropout": dropout, **changes}
    model = getattr(chapter, kind)(**options, seed=1)
    rng = np.random.default_rng(0)  # the biases start at 0, which would hide mistakes
    head = model.rating_head
    for table in (model.popularity, head.user_bias, head.movie_bias):
        table.embeddings.assign(rng.normal(size=table.embeddings.shape))
    head.mean.assign(0.6)
    return model


def learned(chapter, **changes):
    return joint(chapter, "LearnedWeights", **changes)


def rated(num_users=USERS, num_ratings=150, seed=1):
    """Synthetic ratings with their labels."""
    ratings = synthetic(num_users, MOVIES, num_ratings, seed=seed).ratings
    return ratings.assign(label=to_label(ratings["rating"]))


def adamw():
    return keras.optimizers.AdamW(0.01, weight_decay=0.1)


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
    rated = dense(np.maximum(0, dense(values, first)), last)[:, 0] + float(head.mean)
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


def test_learned_weighting_has_the_uncertainty_form(chapter, x, y):
    model = learned(chapter)
    s = np.array([0.7, -1.3])
    model.log_variances.assign(s)
    model.task_weights.assign([5.0, 7.0])  # takes no part
    cross_entropy, errors = joint_by_hand(model, x, y)
    expected = np.exp(-s) @ [cross_entropy, np.mean(errors) / 2] + s.sum() / 2
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


@pytest.mark.parametrize("make", [documented, joint])
@pytest.mark.parametrize(("weights", "silent"), [((1, 0), "rating_head"), ((0, 1), "popularity")])
def test_weight_zero_leaves_the_other_heads_own_weights_without_gradient(
    chapter, x, y, make, weights, silent
):
    model = make(chapter)
    moved = by_weight(chapter, model, x, y, weights)
    layer = getattr(model, silent, None)  # the documented model's retrieval has none of its own
    own = {id(weight) for weight in layer.trainable_variables} if layer else set()
    assert own <= set(moved)
    for weight in model.trainable_variables:
        assert np.any(moved[id(weight)]) == (id(weight) not in own), weight.path


@pytest.mark.parametrize("make", [documented, corrected, joint, learned])
def test_positive_weights_reach_every_weight_and_leave_the_model_as_it_was(chapter, x, y, make):
    model = make(chapter)
    before = [array(weight) for weight in model.weights]
    moved = by_weight(chapter, model, x, y, (1, 1))
    assert len(moved) == len(model.trainable_variables)
    assert all(np.any(gradient) for gradient in moved.values())
    assert id(model.task_weights) not in moved
    if make is learned:
        assert id(model.log_variances) in moved
    if make in (joint, learned):
        assert id(model.rating_head.mean) not in moved
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
        expected.append(logsumexp(scores[b, kept]) - scores[b, b])
    found = chapter.in_batch_cross_entropy(queries, candidates, movies, log_q.astype("float32"))
    np.testing.assert_allclose(array(found), expected, rtol=1e-4)
    plain = queries @ candidates.T
    found = chapter.in_batch_cross_entropy(queries, candidates)
    np.testing.assert_allclose(array(found), logsumexp(plain, axis=1) - np.diag(plain), rtol=1e-4)


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
    model = corrected(chapter)
    model.task_weights.assign([1.0, 0.0])
    query = array(model.user_table.embeddings)[x["user_id"]].astype("float32")
    candidate = array(model.movie_table.embeddings)[x["movie_id"]].astype("float32")
    log_q = np.array(LOG_Q, "float32")[x["movie_id"]]
    losses = chapter.in_batch_cross_entropy(query, candidate, x["movie_id"], log_q)
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


def test_squared_errors_do_not_depend_on_the_chunk(chapter):
    frame = rated()
    model = joint(chapter)
    whole = chapter.squared_errors(model, frame)
    np.testing.assert_allclose(whole, chapter.squared_errors(model, frame, chunk=7), atol=1e-6)
    x, y = chapter.pairs(frame)
    np.testing.assert_allclose(whole, joint_by_hand(model, x, y)[1], atol=1e-5)


@pytest.mark.parametrize("scale", [(1, 5), (0.5, 5)])
def test_the_documented_stars_are_off_by_the_lowest_times_one_minus_p(scale):
    unit = np.linspace(0, 1, 11)
    gap = to_stars(unit, scale) - scale[1] * unit
    np.testing.assert_allclose(gap, scale[0] * (1 - unit), atol=1e-6)


@pytest.mark.parametrize("make", [documented, corrected, joint, learned])
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


@pytest.mark.long
def test_training_starts_from_the_same_place_each_time(chapter):
    frame = rated()
    model, start = chapter.compiled(joint(chapter, dropout=0.5), adamw())
    recipe = {"epochs": 2, "batch_size": 32, "seed": 7}
    results = []
    for weights in ((0.1, 3.0), (1.0, 1.0), (0.1, 3.0)):
        assert chapter.train(model, start, frame, weights, **recipe) > 0
        results.append([array(weight) for weight in model.weights])
    for first, last in zip(results[0], results[2], strict=True):
        np.testing.assert_array_equal(first, last)
    assert any(not np.array_equal(a, b) for a, b in zip(*results[:2], strict=True))
    np.testing.assert_allclose(float(model.rating_head.mean), frame["label"].mean(), rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("batch_size", [1, 64, 149, 150, 10_000])
def test_training_takes_any_batch_size(chapter, batch_size):
    frame = rated()
    model, start = chapter.compiled(documented(chapter), keras.optimizers.Adagrad(0.1))
    chapter.train(model, start, frame, (1, 1), epochs=1, batch_size=batch_size, seed=0)
    assert np.isfinite(array(model.user_table.embeddings)).all()


@pytest.mark.long
def test_measure_leaves_out_the_task_of_weight_zero(chapter):
    ratings = rated(30, 400)
    sizes = {"num_users": 30, "num_movies": MOVIES}
    watches = leave_one_out(ratings, **sizes)
    stars = random_split(ratings, sizes=(len(ratings) - 80, 40, 40), **sizes)
    model, start = chapter.compiled(joint(chapter, **sizes), adamw())
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
        "blended": lambda: Mixture(chapter.by_affinity(model), chapter.by_stars(model), 0.5),
    }[order]()
    queries = queries_for(split)
    lists = recommend(recommender, queries, k=5)
    for b, recommended in enumerate(lists):
        history = set(queries.history(b).tolist())
        real = [movie for movie in recommended.tolist() if movie]
        assert len(set(real)) == len(real) == min(5, split.num_movies - len(history))
        assert not history & set(real)
    assert 0 <= evaluate(recommender, split, num_resamples=10).ndcg <= 1


def asked_by(user, history):
    """The query of one user of `USERS`; the others have watched nothing."""
    offsets = np.where(np.arange(USERS + 2) > user, len(history), 0)
    return Queries(np.array([user]), Histories(np.array(history, "int32"), offsets))


def test_two_stages_order_the_retrieved_by_predicted_rating(chapter):
    model = joint(chapter)
    queries = asked_by(3, [2, 9])
    retrieved = recommend(chapter.by_affinity(model), queries, k=9)[0]
    ranked, beyond = (recommend(chapter.two_stages(model, 6), queries, k=k)[0] for k in (6, 9))
    assert set(ranked) == set(retrieved[:6])
    rated = array(model.rate(np.full(6, 3), ranked))
    assert (np.diff(rated) <= 0).all()
    np.testing.assert_array_equal(beyond, [*ranked, *retrieved[6:]])


def test_stars_of_every_movie_are_the_rating_heads_whatever_the_chunk(chapter):
    model = joint(chapter)
    queries = Queries(np.array([3, 5]), asked_by(5, [2]).histories)
    stars = chapter.by_stars(model)(queries)
    np.testing.assert_allclose(chapter.by_stars(model, chunk=1)(queries), stars, atol=1e-5)
    expected = to_stars(array(model.rate(np.array([3, 5]), np.array([7, 7]))))
    np.testing.assert_allclose(stars[:, 7], expected, rtol=1e-4)
    half = chapter.by_stars(model, (0.5, 5))(queries)
    np.testing.assert_allclose((half - 0.5) / 4.5, (stars - 1) / 4, atol=1e-5)


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
    gap = chapter.rmse_difference(first, second, pd.Series({"a": 0.2, "b": 0.3}), draws)
    assert abs(gap.value) == pytest.approx(0.1)
    ends = sorted(abs(0.2 - np.quantile(np.linspace(*spread, 101), [0.025, 0.975])))
    np.testing.assert_allclose(sorted(np.abs([gap.low, gap.high])), ends, atol=1e-12)
    assert chapter.say_difference(first, second, gap).startswith(verdict)
