"""What the SASRec chapter's own classes and functions promise, on small synthetic data."""

import keras
import numpy as np
import pytest
from chapters import definitions
from keras.ops import convert_to_numpy as to_numpy
from numpy.testing import assert_allclose, assert_array_equal

from rectutor import PADDING_ID
from rectutor.baselines import Popularity
from rectutor.chapter import Run
from rectutor.data import synthetic, synthetic_oracle
from rectutor.evaluation import evaluate, queries_for, recommend
from rectutor.sequences import Histories, histories, training_windows
from rectutor.splits import leave_one_out

NUM_MOVIES, CONTEXT = 30, 8


@pytest.fixture(scope="module")
def chapter():
    return definitions("sasrec")


@pytest.fixture(scope="module")
def rows():
    """Histories of 8, 5 and 2 movies, padded before."""
    rng = np.random.default_rng(0)
    result = np.zeros((3, CONTEXT), np.int32)
    for row, length in enumerate([8, 5, 2]):
        result[row, CONTEXT - length :] = rng.permutation(NUM_MOVIES)[:length] + 1
    return result


def make(chapter, kind="SASRec", **changes):
    keras.utils.set_random_seed(7)
    settings = {"width": 16, "blocks": 2, "heads": 2, "dropout": 0.0, **changes}
    model = getattr(chapter, kind)(NUM_MOVIES, CONTEXT, **settings)
    model.build((None, CONTEXT))
    return model


def states(model, item_ids):
    return to_numpy(model(item_ids))


#: What the chapter's final model switches on.
FINAL = {"DocumentedSASRec": {}, "SASRec": {"direct": 3, "repeat_bias": True}, "SampledSASRec": {}}


@pytest.mark.parametrize(
    ("kind", "changes"), [("DocumentedSASRec", {}), ("SASRec", {}), ("SASRec", {"direct": 3})]
)
def test_changing_a_later_movie_changes_no_earlier_state(chapter, rows, kind, changes):
    model = make(chapter, kind, **changes)
    before = states(model, rows)
    for place in [3, 7]:
        changed = rows.copy()
        changed[:, place] = changed[:, place] % NUM_MOVIES + 1
        after = states(model, changed)
        real = rows[:, :place] != PADDING_ID
        assert_allclose(after[:, :place][real], before[:, :place][real], atol=1e-5)
        assert np.abs(after[0, place] - before[0, place]).max() > 1e-3


@pytest.mark.parametrize("direct", [0, 4])
def test_padding_on_either_side_and_more_of_it_give_the_same_states(chapter, rows, direct):
    model = make(chapter, direct=direct)
    left = states(model, rows)
    for row, length in enumerate([8, 5, 2]):
        after = np.zeros_like(rows[:1])
        after[0, :length] = rows[row, CONTEXT - length :]
        right = states(model, after)[0, :length]
        assert_allclose(right, left[row, CONTEXT - length :], atol=1e-5)
    longer = states(model, np.pad(rows, ((0, 0), (4, 0))))
    assert_allclose(longer[:, -1], left[:, -1], atol=1e-5)


def test_the_latest_movies_are_summed_by_age(chapter, rows):
    model = make(chapter, direct=3)
    table = to_numpy(model.movies.embeddings)
    weights = to_numpy(model.recency)
    assert_allclose(weights[:, 0], np.exp(-np.arange(3) / 3), rtol=1e-6)
    found = to_numpy(model.latest(rows))
    for row, place in [(0, 7), (0, 1), (1, 3), (2, 7), (2, 6)]:
        expected = np.zeros(16)
        for age in range(min(3, place + 1)):
            movie = rows[row, place - age]
            if movie != PADDING_ID:
                expected += weights[age] * table[movie]
        assert_allclose(found[row, place], expected, atol=1e-6)
    added = states(model, rows) - states(make(chapter), rows)
    assert_allclose(added, found, atol=1e-5)  # the same seed: the other weights are the same


@pytest.fixture(scope="module")
def split():
    return leave_one_out(synthetic(60, NUM_MOVIES, 700, seed=3))


def test_neither_padding_nor_a_seen_movie_is_recommended(chapter, split):
    model = make(chapter)
    queries = queries_for(split)
    k = NUM_MOVIES - int(queries.lengths.max())
    lists = recommend(chapter.score_latest_movies(model), queries, k=k)
    assert (lists != PADDING_ID).all()
    for row, movies in enumerate(lists):
        assert not set(movies) & set(queries.history(row))
        assert len(set(movies)) == k


def log_sum_exp(scores):
    top = scores.max(axis=-1, keepdims=True)
    return (top + np.log(np.exp(scores - top).sum(axis=-1, keepdims=True)))[..., 0]


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def loss_of(model, inputs, targets):
    return float(model.compute_loss(inputs, targets, model(inputs)))


@pytest.fixture(scope="module")
def targets(rows):
    rng = np.random.default_rng(1)
    drawn = rng.integers(1, NUM_MOVIES + 1, rows.shape)
    return np.where(rows != PADDING_ID, drawn, PADDING_ID).astype(np.int32)


def reference(model, rows):
    """States and the movie table, in double precision."""
    table = to_numpy(model.movies.embeddings).astype(np.float64)
    return states(model, rows).astype(np.float64), table


@pytest.mark.parametrize(
    ("ahead", "fade", "bias"),
    [(1, 0.6, None), (3, 0.5, None), (20, 1.0, None), (3, 0.5, -2.0), (3, 0.5, 0.5)],
)
def test_the_softmax_loss_is_that_of_numpy(chapter, rows, targets, ahead, fade, bias):
    """A bias is added once to what a row holds so far: also where a movie comes back, or is due."""
    model = make(chapter, ahead=ahead, fade=fade, repeat_bias=bias is not None)
    rows, targets = rows.copy(), targets.copy()
    rows[0, 3] = rows[0, 5] = rows[0, 1]
    targets[0, 4] = rows[0, 2]
    if bias is not None:
        model.repeat_bias.assign(bias)
    h, table = reference(model, rows)
    scores = h @ table.T
    losses = []
    for b, t in np.argwhere(targets != PADDING_ID):
        scores[b, t, np.unique(rows[b, : t + 1])] += bias or 0.0
        log_p = scores[b, t] - log_sum_exp(scores[b, t, 1:])
        window = targets[b, t : t + ahead]
        weights = fade ** np.arange(len(window)) * (window != PADDING_ID)
        losses.append(-(weights * log_p[window]).sum() / weights.sum())
    assert_allclose(loss_of(model, rows, targets), np.mean(losses), rtol=1e-5)


def test_the_repeat_bias_moves_the_scores_of_the_latest_movies_alone(chapter, split):
    queries = queries_for(split)
    plain, biased = make(chapter), make(chapter, repeat_bias=True)
    recommender = chapter.score_latest_movies(biased)
    biased.repeat_bias.assign(-3.0)
    moved = recommender(queries) - chapter.score_latest_movies(plain)(queries)
    held = np.zeros(moved.shape, bool)
    np.put_along_axis(held, queries.last(CONTEXT), True, axis=1)
    assert_allclose(moved, np.where(held, -3.0, 0.0), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "count", "beta"),
    [
        ("DocumentedSASRec", 1, 1.0),
        ("SampledSASRec", 1, 1.0),
        ("SampledSASRec", 4, 1.0),
        ("SampledSASRec", 4, 0.3),
    ],
)
def test_the_two_way_loss_is_that_of_numpy(chapter, rows, targets, kind, count, beta):
    model = make(chapter, kind, **({"beta": beta} if kind == "SampledSASRec" else {}))
    negatives = np.random.default_rng(2).integers(1, NUM_MOVIES + 1, (*rows.shape, count))
    h, table = reference(model, rows)
    positive = (h * table[targets]).sum(axis=-1)
    negative = (h[:, :, None] * table[negatives]).sum(axis=-1)
    each = -beta * np.log(sigmoid(positive)) - np.log(1 - sigmoid(negative)).sum(axis=-1)
    real = targets != PADDING_ID
    y = {"targets": targets, "negatives": negatives.astype(np.int32)}
    if kind == "DocumentedSASRec":
        y = {"positives": targets, "negatives": y["negatives"][..., 0], "weights": real * 1.0}
    assert_allclose(loss_of(model, rows, y), each[real].mean() / 2, rtol=1e-5)


def test_the_documented_model_holds_a_penalty_its_loss_leaves_out(chapter):
    assert float(sum(make(chapter, "DocumentedSASRec").losses)) > 0


def test_the_sampled_softmax_is_that_of_numpy_and_skips_accidental_hits(chapter):
    rng = np.random.default_rng(3)
    positive, negative = rng.normal(size=5), rng.normal(size=(5, 4))
    targets, drawn = np.array([3, 9, 0, 5, 9]), np.array([9, 1, 1, 2])
    losses = []
    for n in [0, 1, 3, 4]:
        kept = negative[n][drawn != targets[n]]
        losses.append(log_sum_exp(np.append(kept, positive[n])) - positive[n])
    arrays = (positive.astype("float32"), negative.astype("float32"), targets, drawn)
    found = chapter.sampled_softmax_loss(*(chapter.ops.convert_to_tensor(x) for x in arrays))
    assert_allclose(float(found), np.mean(losses), rtol=1e-5)


def test_gbce_with_all_movies_drawn_is_plain_bce_and_calibration_0_too(chapter):
    assert chapter.gbce_beta(99, 100, calibration=1.0) == pytest.approx(1.0)
    assert chapter.gbce_beta(10, 100, calibration=0.0) == pytest.approx(1.0)
    assert 0 < chapter.gbce_beta(16, 1682) < 1


@pytest.mark.parametrize("kind", ["DocumentedSASRec", "SASRec"])
def test_gradients_reach_every_weight(chapter, rows, targets, kind):
    model = make(chapter, kind, **FINAL[kind])
    rng = np.random.default_rng(4)
    for weight in model.trainable_weights:  # nothing may hide behind a zero or a one
        weight.assign(rng.normal(0.0, 0.3, weight.shape))
    y = targets
    if kind == "DocumentedSASRec":
        real = (targets != PADDING_ID).astype("float32")
        y = {"positives": targets, "negatives": targets[:, ::-1].copy(), "weights": real}
    before = [to_numpy(weight) for weight in model.trainable_weights]
    model.compile(optimizer=keras.optimizers.SGD(1.0))
    model.train_on_batch(rows, y)
    for weight, old in zip(model.trainable_weights, before, strict=True):
        if weight.path.endswith("key/bias"):
            continue  # shifts all scores of a query alike, which the softmax ignores
        moved = np.abs(to_numpy(weight) - old).max()
        assert moved > 1e-6, f"{weight.path} does not learn"


@pytest.mark.parametrize("kind", list(FINAL))
def test_a_saved_model_comes_back_with_the_same_states(chapter, rows, tmp_path, kind):
    model = make(chapter, kind, **FINAL[kind])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    assert_array_equal(states(loaded, rows), states(model, rows))


@pytest.mark.long
def test_one_batch_is_learned_by_heart(chapter):
    rng = np.random.default_rng(5)
    sequences = np.stack([rng.permutation(NUM_MOVIES)[: CONTEXT + 1] + 1 for _ in range(6)])
    inputs, targets = sequences[:, :-1].astype(np.int32), sequences[:, 1:].astype(np.int32)
    model = make(chapter, width=32)
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    log = model.fit(inputs, targets, batch_size=6, epochs=150, verbose=0)
    assert log.history["loss"][-1] < 0.02
    table = to_numpy(model.movies.embeddings)
    predicted = (states(model, inputs)[:, -1] @ table[1:].T).argmax(axis=-1) + 1
    assert_array_equal(predicted, targets[:, -1])


@pytest.mark.long
def test_the_markov_order_of_synthetic_data_is_recovered(chapter):
    split = leave_one_out(synthetic(500, 100, 20_000, seed=5))
    law = synthetic_oracle(500, 100, seed=5)

    def oracle(queries):
        return law.probabilities(queries.user_ids, queries.last(1)[:, 0])

    keras.utils.set_random_seed(5)
    model = chapter.SASRec(100, 20, width=32, heads=1, dropout=0.1, direct=2)
    model.compile(optimizer=keras.optimizers.Adam(0.005))
    inputs, targets = training_windows(split.histories("validation"), 20)
    model.fit(inputs, targets, batch_size=64, epochs=20, verbose=0)
    found = evaluate(chapter.score_latest_movies(model), split)
    best = evaluate(oracle, split)
    popularity = evaluate(Popularity().fit(split), split)
    assert found.hit_rate > 0.8 * best.hit_rate
    assert found.ndcg > 0.8 * best.ndcg
    assert found.ndcg > 1.5 * popularity.ndcg


def test_documented_arrays_cut_the_end_and_weigh_the_last_target(chapter):
    sequences = Histories(np.arange(1, 8, dtype=np.int32), np.array([0, 0, 4, 7]))
    train, validation = chapter.documented_arrays(sequences, 20, context=3, seed=0)
    assert train[0].tolist() == [[1, 2, 3], [5, 6, 0]]
    assert train[1]["positives"].tolist() == [[2, 3, 0], [6, 0, 0]]
    assert train[1]["weights"].tolist() == [[1, 1, 0], [1, 0, 0]]
    assert validation[1]["positives"].tolist() == [[2, 3, 4], [6, 7, 0]]
    assert validation[1]["weights"].tolist() == [[0, 0, 1], [0, 1, 0]]
    for inputs, y in [train, validation]:
        assert inputs.shape == y["negatives"].shape
        for row, watched in enumerate([range(1, 5), range(5, 8)]):
            assert not set(y["negatives"][row]) & set(watched)
    train, validation = chapter.documented_arrays(sequences, 20, context=2, seed=0)
    assert train[0].tolist() == [[1, 2], [5, 6]]  # the first movies of a history that is longer
    assert validation[1]["weights"].tolist() == [[0, 0], [0, 1]]


def test_row_by_row_and_arrays_prepare_the_same(chapter):
    ratings = synthetic(40, NUM_MOVIES, 400, seed=1).ratings
    by_row, drawn = chapter.prepare_row_by_row(ratings, NUM_MOVIES, seed=0)
    sequences = histories(ratings, num_users=40)
    negatives = chapter.one_negative_each(sequences, NUM_MOVIES, seed=0)
    assert_array_equal(negatives.lengths, sequences.lengths)
    for user, watched in enumerate(by_row, start=1):
        assert list(sequences[user]) == watched
        assert not set(negatives[user]) & set(watched)
        assert not set(drawn[user - 1]) & set(watched)


def test_the_documented_place_counts_padding(chapter):
    mask = np.array([[1, 1, 1, 0, 0, 0, 0], [1] * 7], bool)
    assert chapter.documented_place(mask).tolist() == [3, 0]
    assert chapter.last_real_place(mask).tolist() == [2, 6]


def test_fresh_negatives_change_with_the_epoch_and_others_do_not(chapter, split):
    known = split.histories("validation")
    windows = training_windows(known, CONTEXT, return_users=True)
    for fresh in [True, False]:
        draw = chapter.with_negatives(windows, known, NUM_MOVIES, 2, seed=0, fresh=fresh)
        first, second = draw(0)[1]["negatives"], draw(1)[1]["negatives"]
        assert first.shape == (*windows[1].shape, 2)
        assert np.array_equal(first, second) != fresh
        for row, user in enumerate(windows[2]):
            assert not set(first[row].ravel()) & set(known[user])


def test_the_latest_window_of_each_user_is_kept(chapter, split):
    known = split.histories("validation")
    inputs, targets, users = chapter.latest_window_only(known, CONTEXT)
    assert users.tolist() == [user for user in range(1, 61) if known.lengths[user] > 1]
    for row, user in enumerate(users):
        assert targets[row, -1] == known[user][-1]
        assert inputs[row, -1] == known[user][-2]


def test_shuffled_ties_keep_the_order_of_time(chapter):
    ratings = synthetic(30, NUM_MOVIES, 400, seed=2).ratings.copy()
    ratings["timestamp"] = ratings["timestamp"] // 3600
    draw = chapter.windows_with_shuffled_ties(ratings, 30, CONTEXT, seed=0)
    assert_array_equal(draw(0)[0], draw(0)[0])
    assert not np.array_equal(draw(0)[0], draw(1)[0])
    ratings["timestamp"] = np.arange(len(ratings))
    draw = chapter.windows_with_shuffled_ties(ratings, 30, CONTEXT, seed=0)
    assert_array_equal(draw(0)[1], draw(1)[1])


def windows_of(rows, targets):
    """Nine windows, the same each epoch."""
    return lambda epoch: (np.tile(rows, (3, 1)), np.tile(targets, (3, 1)))


def test_training_stops_after_the_steps_asked_for(chapter, rows, targets):
    model = make(chapter)
    batches = chapter.DrawnEachEpoch(windows_of(rows, targets), batch_size=3, seed=0)
    log = chapter.train_steps(model, batches, keras.optimizers.SGD(0.0), steps=4)
    assert int(model.optimizer.iterations) == 4
    assert log.epoch == [0, 1]


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_training_ends_with_the_averaged_weights_and_shows_them(chapter, rows, targets, average):
    """A step an epoch, of which an average takes the second with a tenth of its weight."""
    model, moved = make(chapter), []
    start = to_numpy(model.movies.embeddings).copy()

    def note(*_):
        moved.append(np.abs(to_numpy(model.movies.embeddings) - start).max())

    recipe = {"learning_rate": 0.01, "batch_size": 9, "epochs": 2, "seed": 0, "average": average}
    watch = keras.callbacks.LambdaCallback(on_epoch_end=note)
    log = chapter.train_sasrec(model, windows_of(rows, targets), **recipe, callbacks=[watch])
    note()
    assert log.epoch == [0, 1]
    assert moved == pytest.approx([0.01, *[0.01 * (2.0 - average)] * 2], rel=0.05)


def test_the_settings_make_the_model_made_right(chapter):
    settings = Run("sasrec", "smoke", 42, "jax", "CPU").settings(**chapter.SETTINGS)
    config = chapter.made_right(NUM_MOVIES, settings, seed=0).config
    expected = chapter.made_right_settings(settings) | {"context": settings.context}
    assert config == expected | {"num_movies": NUM_MOVIES, "fade": 0.6}


@pytest.mark.parametrize("number", [0, 1])
def test_the_attention_shown_is_causal_leaves_padding_out_and_sums_to_1(chapter, rows, number):
    attention = chapter.attention_of(make(chapter), number, rows)
    assert attention.shape == (3, CONTEXT, CONTEXT)
    assert (np.triu(attention[0], k=1) == 0).all()
    assert attention[2, -1, :-2].max() == 0
    assert_allclose(attention[0].sum(axis=-1), 1.0, rtol=1e-5)


def test_the_attention_shown_is_that_of_the_block(chapter, rows):
    """Rebuild the block's output from the weights shown, its feed-forward part switched off."""
    model = make(chapter, blocks=1, heads=1)
    block = model.blocks[0]
    weights = {"/".join(weight.path.split("/")[-2:]): to_numpy(weight) for weight in block.weights}
    for name in ["feedforward_output_dense/kernel", "feedforward_output_dense/bias"]:
        weight = next(w for w in block.weights if w.path.endswith(name))
        weight.assign(np.zeros(weight.shape))
    x = to_numpy(model.read(rows[:1], 0))[0]
    spread = np.sqrt(x.var(-1, keepdims=True) + block.layer_norm_epsilon)
    value = np.einsum(
        "ld,dhk->lhk", (x - x.mean(-1, keepdims=True)) / spread, weights["value/kernel"]
    )
    shares = chapter.attention_of(model, 0, rows[:1])[0]
    out = x + np.einsum("lk,kd->ld", shares @ value[:, 0], weights["attention_output/kernel"][0])
    assert_allclose(to_numpy(model.read(rows[:1], 1))[0], out, atol=1e-4)
