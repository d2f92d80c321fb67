"""The multi-task chapter's own classes keep the contracts the text gives them."""

from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from chapters import NOTEBOOKS, definitions
from keras import ops
from scipy.special import logsumexp

from rectutor.data import synthetic
from rectutor.ratings import to_label, to_stars

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
    return chapter.DocumentedMultiTask(**SIZES, hidden=[6, 5])


def corrected(chapter):
    return chapter.DocumentedMultiTask(**SIZES, hidden=[6, 5], log_q=LOG_Q)


def joint(chapter, members=2):
    """With weights at random: those that start at 0 would hide mistakes."""
    model = chapter.JointModel(USERS, MOVIES, members=members, dim=4)
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(0, 0.3, weight.shape))
    model.mean.assign(0.6)
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


@pytest.fixture
def rows(chapter):
    """A row a user, of which some ratings are shown."""
    watched = rated()
    return chapter.rows_of_users(watched, watched[:60], USERS, MOVIES)


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


def joint_by_hand(model, x):
    """Scores and labels `(members, users, movies)` in NumPy, one pair at a time."""
    p, q = array(model.user_table), array(model.movie_table)
    g, v, w = array(model.g)[:, 0], array(model.v)[:, 0], array(model.w)[..., 0]
    kappa, popularity = array(model.kappa)[:, 0, 0], array(model.popularity)[:, 0]
    of_user, of_movie = array(model.user_bias)[..., 0], array(model.movie_bias)[:, 0]
    shape = len(p), len(x["user_id"]), MOVIES + 1
    watch, rating = np.zeros(shape), np.zeros(shape)
    for m, b, i in np.ndindex(*shape):
        u = x["user_id"][b]
        watch[m, b, i] = p[m, u] @ q[m, i] + popularity[m, i]
        rating[m, b, i] = 0.6 + of_user[m, u] + of_movie[m, i] + kappa[m] * popularity[m, i]
        rating[m, b, i] += v[m] @ q[m, i] + w[m] @ p[m, u] + p[m, u] @ ((0.1 + g[m]) * q[m, i])
    return watch, rating


def test_the_joint_model_scores_and_rates_as_its_formula_says(chapter, rows):
    model = joint(chapter)
    watch, rating = joint_by_hand(model, rows[0])
    found = model(rows[0])
    np.testing.assert_allclose(array(found["watch"]), watch, atol=1e-5)
    np.testing.assert_allclose(array(found["rating"]), rating, atol=1e-5)


def prior_by_hand(chapter, model):
    """The squares of all weights that have a prior, over that prior's, summed."""
    kinds = {"table": ("user_table", "movie_table"), "bias": ("user_bias", "movie_bias")}
    kinds["head"] = ("g", "v", "w", "kappa")
    return sum(
        np.sum(array(getattr(model, name)) ** 2) / chapter.SPREADS[kind] ** 2
        for kind, names in kinds.items()
        for name in names
    )


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 2, 1)])
def test_the_joint_loss_adds_up_nats_of_watches_ratings_and_priors(chapter, rows, weights):
    model, (x, y) = joint(chapter), rows
    model.task_weights.assign(np.array(weights, "float32"))
    watch, rating = joint_by_hand(model, x)
    log_p = watch - logsumexp(watch[..., 1:], axis=-1, keepdims=True)
    errors = (y - rating)[:, x["shown"] == 1]
    prior = prior_by_hand(chapter, model)
    spread = chapter.SPREADS["rating"]
    terms = [-np.sum(log_p * x["watched"]), np.sum(errors**2) / 2 / spread**2, prior / 2]
    np.testing.assert_allclose(loss_of(model, x, y), np.dot(weights, terms) / USERS, rtol=1e-4)


def test_rows_hold_every_watch_and_no_rating_that_is_not_shown(rows):
    (x, y), frame = rows, rated()
    pair = frame["user_id"] - 1, frame["movie_id"]
    assert x["watched"].sum() == len(frame)
    assert x["watched"][pair].all()
    assert x["shown"].sum() == 60
    np.testing.assert_allclose(y[pair][:60], frame["label"][:60])
    assert not y[x["shown"] == 0].any()


def test_members_do_not_touch_each_other(chapter, rows):
    model = joint(chapter)
    before = array(model.user_table)

    def of_users():
        pulls = chapter.shared_pulls(model, *rows)[:2, : before.size]
        return pulls.reshape(2, *before.shape)

    once = of_users()
    model.user_table.assign(np.stack([before[0], before[1] + 1]))
    again = of_users()
    np.testing.assert_allclose(once[:, 0], again[:, 0], atol=1e-4)
    assert np.abs(once[:, 1] - again[:, 1]).max() > 1e-3


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


def test_weight_zero_leaves_the_other_heads_own_weights_without_gradient(chapter, x, y, rows):
    model = documented(chapter)
    head = {id(weight) for weight in model.rating_head.trainable_variables}
    moved = by_weight(model, x, y, (1, 0))
    assert all(np.any(moved[each]) == (each not in head) for each in moved)
    model = joint(chapter)
    moved = by_weight(model, *rows, (1, 0, 0))
    shared = {id(each) for each in (model.user_table, model.movie_table, model.popularity)}
    assert all(np.any(moved[each]) == (each in shared) for each in moved)


@pytest.mark.parametrize("make", [documented, corrected])
def test_positive_weights_reach_every_weight_but_the_paddings_row(chapter, x, y, make):
    moved = by_weight(make(chapter), x, y, (1, 1)).values()
    assert all(np.any(gradient) for gradient in moved)
    tables = [g for g in moved if len(g) in (USERS + 1, MOVIES + 1)]
    assert len(tables) == 2
    assert not any(np.any(gradient[0]) for gradient in tables)


def test_shared_pulls_are_both_tables_gradients_task_by_task(chapter, x, y):
    model = documented(chapter)
    before = [array(weight) for weight in model.weights]
    pulls = chapter.shared_pulls(model, x, y)
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, array(weight))
    for pull, task in zip(pulls, np.eye(2), strict=True):
        moved = by_weight(model, x, y, task)
        tables = [moved[id(each.embeddings)] for each in (model.user_table, model.movie_table)]
        expected = np.concatenate([table.ravel() for table in tables])
        np.testing.assert_allclose(pull, expected, atol=1e-5)


def test_the_cosine_is_of_the_two_tasks_and_leaves_the_priors_out(chapter, rows):
    model = joint(chapter)
    first, second, _ = chapter.shared_pulls(model, *rows)
    expected = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert chapter.cosine(model, *rows) == pytest.approx(expected, abs=1e-5)
    assert abs(expected) < 1


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


def test_joint_labels_are_the_members_mean_and_do_not_depend_on_the_chunk(chapter):
    frame, model = rated(), joint(chapter)
    users = np.unique(frame["user_id"])
    _, rating = joint_by_hand(model, {"user_id": users})
    expected = rating.mean(axis=0)[np.searchsorted(users, frame["user_id"]), frame["movie_id"]]
    for chunk in (5, 100):
        found = chapter.joint_labels(model, frame, chunk)
        np.testing.assert_allclose(found, np.clip(expected, 0, 1), atol=1e-5)


@pytest.mark.parametrize("scale", [(1, 5), (0.5, 5)])
def test_the_documented_stars_are_off_by_the_lowest_times_one_minus_p(scale):
    unit = np.linspace(0, 1, 11)
    gap = to_stars(unit, scale) - scale[1] * unit
    np.testing.assert_allclose(gap, scale[0] * (1 - unit), atol=1e-6)


def test_the_seed_decides_the_weights_and_the_order(chapter):
    frame, found = rated(), []
    settings = SimpleNamespace(users_per_batch=5, epochs=2, learning_rate=0.01)
    for seed in (7, 7, 8):
        keras.utils.set_random_seed(seed)
        model = chapter.JointModel(USERS, MOVIES, members=2, dim=4)
        assert chapter.train_joint(model, frame, frame[:50], (1, 1), settings, seed) > 0
        assert float(model.mean) == pytest.approx(frame["label"][:50].mean(), rel=1e-5)
        found.append(array(model.user_table))
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 1e-3


def test_a_larger_share_of_the_ratings_holds_the_smaller_one(chapter):
    frame = rated()
    few, more = (chapter.some_rated(frame, share, seed=3) for share in (0.1, 0.5))
    assert (len(few), len(more)) == (15, 75)
    assert set(few.index) < set(more.index)


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
    keras.utils.set_random_seed(3)
    new = chapter.DocumentedMultiTask(USERS, MOVIES)
    for weights, moves in (((1, 0), False), ((1, 1), True)):
        model, _ = chapter.train_documented(rated(), weights, USERS, MOVIES, **recipe)
        pairs = zip(new.rating_head.weights, model.rating_head.weights, strict=True)
        assert any(np.any(array(a) != array(b)) for a, b in pairs) == moves


def test_the_split_deals_every_rating_out_once(chapter):
    frame = rated()
    split = chapter.split_for_stars(frame, 1, num_users=USERS, num_movies=MOVIES)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [108, 12, 30]
    dealt = pd.concat([chapter.known(split), split.test])
    assert sorted(dealt.index) == sorted(frame.index)


# --- the order of a history


@pytest.fixture
def in_time(chapter):
    """Inputs with histories of four, labels, and what is late; three ratings share a second."""
    frame = rated(seed=5)
    places = frame.groupby("user_id")["timestamp"].rank(method="first").astype(int)
    frame = frame.assign(timestamp=places // 3)
    return chapter.in_time(frame.sample(frac=1, random_state=0), length=4)


@pytest.fixture
def reader(chapter, in_time):
    """A model with weights at random, which drops nothing."""
    x, y, _ = in_time
    model = chapter.HistoryModel(x, y, USERS, MOVIES, dim=4)
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(0, 0.4, weight.shape))
    model.dropout.rate = 0.0
    return model


def test_a_history_is_the_latest_movies_of_earlier_seconds(in_time):
    x, _, _ = in_time
    of_user, now, movies = x["user_id"], x["now"], x["movie_id"]
    ties = 0
    for row, history in enumerate(x["history"]):
        mine = of_user == of_user[row]
        found = history[history != 0]
        earlier = movies[mine & (now < now[row])]
        assert len(found) == min(4, len(earlier))
        assert not {*found} & {*movies[mine & (now >= now[row])]}
        np.testing.assert_array_equal(found, earlier[len(earlier) - len(found) :])
        np.testing.assert_array_equal(history[: 4 - len(found)], 0)  # padding comes first
        ties += np.sum(mine & (now == now[row])) > 1
    assert ties > 20  # else the test says nothing about a shared second
    np.testing.assert_array_equal(np.lexsort((now, of_user)), np.arange(len(now)))


def test_nothing_that_comes_later_changes_a_history(chapter):
    frame = rated(seed=5)
    x, _, _ = chapter.in_time(frame)
    cut = frame["timestamp"].quantile(0.5)
    past, _, _ = chapter.in_time(frame[frame["timestamp"] <= cut])
    both = {pair: row for row, pair in enumerate(zip(x["user_id"], x["movie_id"], strict=True))}
    rows = [both[pair] for pair in zip(past["user_id"], past["movie_id"], strict=True)]
    np.testing.assert_array_equal(past["history"], x["history"][rows])


def test_late_is_the_last_fifth_of_every_user(in_time):
    x, _, late = in_time
    for user in range(1, USERS + 1):
        mine = late[x["user_id"] == user]
        assert mine.sum() == len(mine) // 5
        assert not mine[: len(mine) - len(mine) // 5].any()  # rows are in the order of time
    assert late.sum() > USERS


def read_by_hand(model, x):
    """Scores `(n, movies)` and labels `(n,)` in NumPy, given what the GRU says."""
    p, q = array(model.user_table)[0], array(model.movie_table)[0]
    rows, known = q[x["history"]].astype("float32"), x["history"] != 0
    state = array(model.gru(rows, mask=known)) @ array(model.turn)
    popularity = array(model.popularity)[0, 0]
    g, v, w = array(model.g)[0, 0], array(model.v)[0, 0], array(model.w)[0, :, 0]
    kappa, mean = array(model.kappa)[0, 0, 0], float(model.mean)
    of_user, of_movie = array(model.user_bias)[0, :, 0], array(model.movie_bias)[0, 0]
    watch, rating = np.zeros((len(state), MOVIES + 1)), np.zeros(len(state))
    for row, (u, i) in enumerate(zip(x["user_id"], x["movie_id"], strict=True)):
        vector = p[u] + state[row]
        watch[row] = q @ vector + popularity
        rating[row] = mean + of_user[u] + of_movie[i] + kappa * popularity[i]
        rating[row] += v @ q[i] + w @ vector + vector @ ((0.1 + g) * q[i])
    return watch, rating


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 2, 1)])
def test_the_history_models_loss_is_the_formulas_and_watched_movies_take_no_part(
    chapter, in_time, reader, weights
):
    x, y, _ = in_time
    reader.task_weights.assign(np.array(weights, "float32"))
    watch, rating = read_by_hand(reader, x)
    nats, out = [], 0
    for row, (u, now) in enumerate(zip(x["user_id"], x["now"], strict=True)):
        before = x["movie_id"][(x["user_id"] == u) & (x["now"] < now)]
        rivals = np.setdiff1d(np.arange(1, MOVIES + 1), before)
        nats.append(logsumexp(watch[row, rivals]) - watch[row, x["movie_id"][row]])
        out += len(before)
    assert out > 200
    spread = chapter.SPREADS["rating"]
    prior = prior_by_hand(chapter, reader)
    terms = [np.mean(nats), np.mean((y - rating) ** 2) / 2 / spread**2, prior / 2 / len(y)]
    np.testing.assert_allclose(loss_of(reader, x, y), np.dot(weights, terms), rtol=1e-4)
    found = chapter.labels_in_time(reader, x, chunk=33)
    np.testing.assert_allclose(found, np.clip(rating, 0, 1), atol=1e-5)


def test_the_history_model_reads_the_order_and_no_padding(chapter, in_time, reader):
    from study import histories

    x, y, _ = in_time
    full = chapter.some_rows(x, (x["history"] != 0).all(axis=1))
    turned = {**full, "history": full["history"][:, ::-1]}
    wider = {**full, "history": np.pad(full["history"], ((0, 0), (3, 0)))}
    scores = array(reader(full)["watch"])
    assert np.abs(scores - array(reader(turned)["watch"])).max() > 1e-3
    np.testing.assert_allclose(scores, array(reader(wider)["watch"]), atol=1e-5)
    for rival, reads in ((histories.without_order, True), (histories.without_history, False)):
        model = rival(chapter)(x, y, USERS, MOVIES, dim=4)
        for ours, theirs in zip(model.weights, reader.weights, strict=True):
            ours.assign(array(theirs))
        model.dropout.rate = 0.0
        scores = array(model(full)["rating"])
        np.testing.assert_allclose(scores, array(model(turned)["rating"]), atol=1e-5)
        other = {**full, "history": full["history"] % MOVIES + 1}
        assert (np.abs(scores - array(model(other)["rating"])).max() > 1e-3) == reads


def test_projected_gradients_no_longer_point_against_each_other(chapter):
    rng, conflicts = np.random.default_rng(0), 0
    for _ in range(20):
        first, second = rng.normal(size=(2, 6)).astype("float32")
        one, other = map(array, chapter.without_conflict(first, second))
        if first @ second >= 0:
            np.testing.assert_allclose([one, other], [first, second])
            continue
        conflicts += 1
        assert one @ other >= 0
        np.testing.assert_allclose([one @ second, other @ first], 0, atol=1e-5)
    assert 3 < conflicts < 17


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="the study runs on JAX")
def test_a_projecting_step_moves_what_is_shared_by_the_projected_gradients(
    chapter, in_time, reader
):
    from study import histories

    x, y, _ = in_time
    model = histories.projecting(chapter, chapter.HistoryModel)(x, y, USERS, MOVIES, dim=4)
    for ours, theirs in zip(model.weights, reader.weights, strict=True):
        ours.assign(array(theirs))  # a copy, since a step gives its arrays away
    model.dropout.rate = 0.0
    # opposite demands on the same weights: a conflict for sure
    y = 1 - array(reader(x)["rating"])
    gradients = [by_weight(reader, x, y, task) for task in np.eye(3)]
    watch, rating, prior = (
        {name: each[id(getattr(reader, name))].ravel() for name in ("user_table", "movie_table")}
        | {"turn": each[id(reader.turn)].ravel()}
        | {f"gru {n}": each[id(w)].ravel() for n, w in enumerate(reader.gru.trainable_weights)}
        for each in gradients
    )
    flat = [np.concatenate([*each.values()]) for each in (watch, rating)]
    if flat[0] @ flat[1] > 0:  # turn the rating's demand round
        y = 2 * array(reader(x)["rating"]) - y
        rating = by_weight(reader, x, y, (0, 1, 0))
        names = [reader.user_table, reader.movie_table, reader.turn, *reader.gru.trainable_weights]
        flat[1] = np.concatenate([rating[id(each)].ravel() for each in names])
    assert flat[0] @ flat[1] < 0
    projected = sum(map(array, chapter.without_conflict(*map(ops.convert_to_tensor, flat))))
    expected = projected + np.concatenate([*prior.values()])
    moved = by_weight(model, x, y, (1, 1, 1))
    own = [model.user_table, model.movie_table, model.turn, *model.gru.trainable_weights]
    found = np.concatenate([moved[id(each)].ravel() for each in own])
    np.testing.assert_allclose(found, expected, atol=2e-3, rtol=1e-2)
    assert np.abs(found - sum(flat) - np.concatenate([*prior.values()])).max() > 1e-2
    assert float(model.task_weights[0]) == 1.0
