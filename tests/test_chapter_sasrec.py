"""What the classes and functions of SASRec's two pages promise, on small synthetic data."""

import keras
import numpy as np
import pytest
from chapters import definitions
from keras.ops import convert_to_numpy as to_numpy
from keras.ops import convert_to_tensor
from numpy.testing import assert_allclose, assert_array_equal

from rectutor import PADDING_ID
from rectutor.baselines import Popularity
from rectutor.chapter import Run
from rectutor.data import synthetic, synthetic_oracle
from rectutor.evaluation import Trained, evaluate, queries_for, recommend
from rectutor.sequences import Histories, histories, training_windows
from rectutor.splits import leave_one_out

NUM_MOVIES, CONTEXT = 30, 8


@pytest.fixture(scope="module")
def chapter():
    return definitions("sasrec")


@pytest.fixture(scope="module")
def levers():
    return definitions("sasrec_levers")


@pytest.fixture(scope="module")
def rows():
    """Histories of 8, 5 and 2 movies, padded before; one movie comes back."""
    rng = np.random.default_rng(0)
    result = np.zeros((3, CONTEXT), np.int32)
    for row, length in enumerate([8, 5, 2]):
        result[row, CONTEXT - length :] = rng.permutation(NUM_MOVIES)[:length] + 1
    result[0, 5] = result[0, 1]
    return result


@pytest.fixture(scope="module")
def targets(rows):
    """Any movies; that of row 0, place 4, was watched before."""
    rng = np.random.default_rng(1)
    drawn = rng.integers(1, NUM_MOVIES + 1, rows.shape)
    drawn[0, 4] = rows[0, 2]
    return np.where(rows != PADDING_ID, drawn, PADDING_ID).astype(np.int32)


@pytest.fixture(scope="module")
def split():
    return leave_one_out(synthetic(60, NUM_MOVIES, 700, seed=3))


def make(code, kind="SASRec", **changes):
    keras.utils.set_random_seed(7)
    settings = {"width": 16, "blocks": 2, "dropout": 0.0, **changes}
    model = getattr(code, kind)(NUM_MOVIES, CONTEXT, **settings)
    model.build((None, CONTEXT))
    return model


def states(model, item_ids):
    return to_numpy(model(item_ids))


KINDS = ["DocumentedSASRec", "SASRec", "LeverSASRec"]


@pytest.fixture(params=KINDS)
def model(request, chapter, levers):
    code = levers if request.param == "LeverSASRec" else chapter
    more = {"direct": 3, "ahead": 2} if request.param == "LeverSASRec" else {}
    return make(code, request.param, **more)


def test_changing_a_later_movie_changes_no_earlier_state(model, rows):
    before = states(model, rows)
    for place in [3, 7]:
        changed = rows.copy()
        changed[:, place] = changed[:, place] % NUM_MOVIES + 1
        after = states(model, changed)
        real = rows[:, :place] != PADDING_ID
        assert_allclose(after[:, :place][real], before[:, :place][real], atol=1e-5)
        assert np.abs(after[0, place] - before[0, place]).max() > 1e-3


@pytest.mark.parametrize("direct", [None, 0, 4])
def test_padding_on_either_side_and_more_of_it_give_the_same_states(chapter, levers, rows, direct):
    model = make(chapter) if direct is None else make(levers, "LeverSASRec", direct=direct)
    left = states(model, rows)
    for row, length in enumerate([8, 5, 2]):
        after = np.zeros_like(rows[:1])
        after[0, :length] = rows[row, CONTEXT - length :]
        right = states(model, after)[0, :length]
        assert_allclose(right, left[row, CONTEXT - length :], atol=1e-5)
    longer = states(model, np.pad(rows, ((0, 0), (4, 0))))
    assert_allclose(longer[:, -1], left[:, -1], atol=1e-5)


def log_sum_exp(scores):
    top = scores.max(axis=-1, keepdims=True)
    return (top + np.log(np.exp(scores - top).sum(axis=-1, keepdims=True)))[..., 0]


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def drawn_states(seed=5, scale=1.0):
    """States and a table, not of a model: `(3, L, 4)` and `(V + 1, 4)`."""
    rng = np.random.default_rng(seed)
    found = rng.normal(0, scale, (3, CONTEXT, 4)), rng.normal(0, 1, (NUM_MOVIES + 1, 4))
    return tuple(each.astype("float32") for each in found)


def brute_force(h, table, rows, targets, ahead=1, watched=False):
    """The softmax loss, one position at a time, in double precision."""
    losses = []
    for b, t in np.argwhere(targets != PADDING_ID):
        scores = table.astype(np.float64) @ h[b, t].astype(np.float64)
        gone = set() if watched else {*rows[b, : t + 1]} - {PADDING_ID}
        allowed = [i for i in range(1, NUM_MOVIES + 1) if i not in gone]
        log_z = log_sum_exp(scores[allowed])
        window = targets[b, t : t + ahead]
        weights = np.array(
            [0.6**n * (i != PADDING_ID and i not in gone) for n, i in enumerate(window)]
        )
        if weights.sum() > 0:
            losses.append(log_z - (weights * scores[window]).sum() / weights.sum())
    return np.mean(losses), len(losses)


def value(loss, h, table, *more, **options):
    found = loss(convert_to_tensor(h), convert_to_tensor(table), *more, **options)
    return float(to_numpy(found))


@pytest.mark.parametrize("scale", [0.1, 2.0])
def test_the_loss_leaves_out_what_was_watched(chapter, rows, targets, scale):
    h, table = drawn_states(scale=scale)
    expected, count = brute_force(h, table, rows, targets)
    assert 0 < count < (targets != PADDING_ID).sum()  # a target that was watched takes no part
    assert value(chapter.catalogue_loss, h, table, rows, targets) == pytest.approx(
        expected, rel=1e-4
    )
    everything, _ = brute_force(h, table, rows, targets, watched=True)
    assert abs(everything - expected) > 1e-3


def test_the_loss_ignores_the_vector_of_the_padding(chapter, rows, targets):
    h, table = drawn_states()
    before = value(chapter.catalogue_loss, h, table, rows, targets)
    table[0] = 1e4
    assert value(chapter.catalogue_loss, h, table, rows, targets) == pytest.approx(before, rel=1e-6)


def test_each_watched_movie_counts_once_and_never_before_it_is_watched(chapter, levers, rows):
    counted = to_numpy(chapter.watched_once(rows))
    assert_array_equal(to_numpy(levers.watched_once(rows)), counted)
    for b, t in np.ndindex(rows.shape):
        found = rows[b][counted[b, t]]
        assert sorted(found) == sorted({*rows[b, : t + 1]} - {PADDING_ID})


@pytest.mark.parametrize("ahead", [1, 3, 20])
@pytest.mark.parametrize("watched", [False, True])
def test_the_softmax_of_the_levers_is_that_of_numpy(levers, rows, targets, ahead, watched):
    h, table = drawn_states()
    expected, _ = brute_force(h, table, rows, targets, ahead, watched)
    options = {"ahead": ahead, "watched": watched}
    assert value(levers.softmax_loss, h, table, rows, targets, **options) == pytest.approx(
        expected, rel=1e-4
    )


def test_the_levers_as_they_start_are_the_model_made_right(chapter, levers, rows, targets):
    plain = make(chapter, heads=2)
    model = make(levers, "LeverSASRec", heads=2)
    model.set_weights([*plain.get_weights(), *model.get_weights()[len(plain.get_weights()) :]])
    assert_allclose(states(model, rows), states(plain, rows), atol=1e-6)
    found = [float(m.compute_loss(rows, targets, m(rows))) for m in (plain, model)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.parametrize(("count", "beta"), [(1, 1.0), (4, 1.0), (4, 0.3)])
def test_the_two_way_losses_are_that_of_numpy(chapter, levers, rows, targets, count, beta):
    h, table = drawn_states()
    negatives = np.random.default_rng(2).integers(1, NUM_MOVIES + 1, (*rows.shape, count))
    positive = (h * table[targets]).sum(axis=-1)
    negative = (h[:, :, None] * table[negatives]).sum(axis=-1)
    each = -beta * np.log(sigmoid(positive)) - np.log(1 - sigmoid(negative)).sum(axis=-1)
    real = targets != PADDING_ID
    expected = each[real].mean() / 2
    found = value(levers.two_way_loss, h, table, targets, negatives.astype(np.int32), beta)
    assert found == pytest.approx(expected, rel=1e-5)
    if count == 1:
        arrays = (positive, negative[..., 0], real.astype("float32"))
        found = chapter.two_way_loss(*(convert_to_tensor(each) for each in arrays))
        assert float(to_numpy(found)) == pytest.approx(expected, rel=1e-5)


def test_the_sampled_softmax_is_that_of_numpy_and_skips_accidental_hits(levers, targets):
    h, table = drawn_states()
    drawn = np.array([targets[0, 0], 1, 2, 3], np.int32)
    losses = []
    for b, t in np.argwhere(targets != PADDING_ID):
        scores = table @ h[b, t]
        kept = scores[drawn[drawn != targets[b, t]]]
        own = scores[targets[b, t]]
        losses.append(log_sum_exp(np.append(kept, own)) - own)
    found = value(levers.sampled_softmax_loss, h, table, targets, drawn)
    assert found == pytest.approx(np.mean(losses), rel=1e-5)


def test_gbce_with_all_movies_drawn_is_plain_bce_and_calibration_0_too(levers):
    assert levers.gbce_beta(99, 100, calibration=1.0) == pytest.approx(1.0)
    assert levers.gbce_beta(10, 100, calibration=0.0) == pytest.approx(1.0)
    assert 0 < levers.gbce_beta(16, 1682) < 1


def test_the_latest_movies_are_summed_by_age(levers):
    vectors = np.random.default_rng(3).normal(size=(2, 5, 4)).astype("float32")
    weights = to_numpy(levers.fading_ones((3, 4), "float32"))
    assert_allclose(weights[:, 0], np.exp(-np.arange(3) / 3), rtol=1e-6)
    found = to_numpy(levers.sum_by_age(convert_to_tensor(vectors), convert_to_tensor(weights)))
    for place in range(5):
        ages = range(min(3, place + 1))
        expected = sum(weights[age] * vectors[:, place - age] for age in ages)
        assert_allclose(found[:, place], expected, atol=1e-6)


def test_gradients_reach_every_weight(model, rows, targets):
    rng = np.random.default_rng(4)
    for weight in model.trainable_weights:  # nothing may hide behind a zero or a one
        weight.assign(rng.normal(0.0, 0.3, weight.shape))
    y = targets
    if type(model).__name__ == "DocumentedSASRec":
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


def test_dropout_is_active_where_the_trainer_enters(chapter, rows):
    """The documented model's is not, under JAX (C28); ours is."""
    for kind, active in [("DocumentedSASRec", False), ("SASRec", True)]:
        model = make(chapter, kind, dropout=0.5)
        if keras.backend.backend() != "jax":
            return
        variables = (
            [v.value for v in model.trainable_variables],
            [v.value for v in model.non_trainable_variables],
        )
        with_it, _ = model.stateless_call(*variables, rows, training=True)
        without, _ = model.stateless_call(*variables, rows, training=False)
        assert bool(np.abs(to_numpy(with_it - without)).max() > 0) == active


def test_movies_and_positions_start_equally_wide(chapter):
    keras.utils.set_random_seed(0)
    model = chapter.SASRec(3000, 200, width=32)
    model.build((None, 200))
    spread = [to_numpy(t.embeddings).std() for t in (model.movies, model.positions)]
    assert spread[0] == pytest.approx(spread[1], rel=0.05)


def test_a_saved_model_comes_back_with_the_same_states(model, rows, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    assert_array_equal(states(loaded, rows), states(model, rows))


def test_the_documented_model_holds_a_penalty_its_loss_leaves_out(chapter):
    assert float(sum(make(chapter, "DocumentedSASRec").losses)) > 0


def test_neither_padding_nor_a_seen_movie_is_recommended(chapter, split):
    queries = queries_for(split)
    k = NUM_MOVIES - int(queries.lengths.max())
    lists = recommend(chapter.sasrec_scores(make(chapter)), queries, k=k)
    assert (lists != PADDING_ID).all()
    for row, movies in enumerate(lists):
        assert not set(movies) & set(queries.history(row))
        assert len(set(movies)) == k


def test_the_documented_model_is_not_asked_about_what_it_was_trained_on(chapter):
    """It learns each user's second-last movie, which is what validation asks about."""
    data = synthetic(60, NUM_MOVIES, 700, seed=3)
    split = leave_one_out(data)
    learned = chapter.learned_by_documented(data.ratings)
    liked = histories(chapter.liked_rows(data.ratings), num_users=60)
    (inputs, targets), _ = chapter.documented_arrays(liked, NUM_MOVIES, 100, seed=0)
    for user in range(1, 61):  # what the arrays train on is what `learned` says
        fed = [*inputs[user - 1, :1], *targets["positives"][user - 1]]
        rows = learned.loc[learned["user_id"] == user, "movie_id"]
        if len(rows) > 1:
            assert sorted(movie for movie in fed if movie) == sorted(rows)
    model = make(chapter, "DocumentedSASRec")
    scores = chapter.documented_scores(model, chapter.last_real_place)
    documented = Trained(scores, learned)
    with pytest.raises(ValueError, match="trained on the validation target"):
        evaluate(documented, split, on="validation")
    assert evaluate(documented, split).num_users == 60


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


def test_every_watched_movie_gets_an_unseen_one(chapter):
    ratings = synthetic(40, NUM_MOVIES, 400, seed=1).ratings
    sequences = histories(ratings, num_users=40)
    negatives = chapter.one_negative_each(sequences, NUM_MOVIES, seed=0)
    assert_array_equal(negatives.lengths, sequences.lengths)
    for user in range(1, 41):
        assert not {*negatives[user]} & {*sequences[user]}


def test_the_documented_place_counts_padding(chapter):
    mask = np.array([[1, 1, 1, 0, 0, 0, 0], [1] * 7], bool)
    assert chapter.documented_place(mask).tolist() == [3, 0]
    assert chapter.last_real_place(mask).tolist() == [2, 6]


def test_fresh_negatives_change_with_the_epoch_and_others_do_not(levers, split):
    known = split.histories("validation")
    windows = training_windows(known, CONTEXT, return_users=True)
    for fresh in [True, False]:
        draw = levers.with_negatives(windows, known, NUM_MOVIES, 2, seed=0, fresh=fresh)
        first, second = draw(0)[1]["negatives"], draw(1)[1]["negatives"]
        assert first.shape == (*windows[1].shape, 2)
        assert np.array_equal(first, second) != fresh
        for row, user in enumerate(windows[2]):
            assert not set(first[row].ravel()) & set(known[user])


def test_shuffled_ties_keep_the_order_of_time(chapter, levers):
    ratings = synthetic(30, NUM_MOVIES, 400, seed=2).ratings.copy()
    ratings["timestamp"] = ratings["timestamp"] // 3600
    for make_draw in (chapter.windows_with_shuffled_ties, levers.with_ties):
        draw = make_draw(ratings, 30, CONTEXT, seed=0)
        assert_array_equal(draw(0)[0], draw(0)[0])
        assert not np.array_equal(draw(0)[0], draw(1)[0])
    fixed = levers.with_ties(ratings, 30, CONTEXT, seed=0, shuffled=False)
    assert_array_equal(fixed(0)[0], fixed(1)[0])
    ratings["timestamp"] = np.arange(len(ratings))
    draw = chapter.windows_with_shuffled_ties(ratings, 30, CONTEXT, seed=0)
    assert_array_equal(draw(0)[1], draw(1)[1])


def test_same_batches_hold_every_row_in_one_order(levers):
    rows = np.arange(10)
    batches = levers.SameBatches(lambda epoch: (rows, rows), 4, seed=0)
    met = []
    for _ in range(2):
        met.append([batches[number][0].tolist() for number in range(len(batches))])
        batches.on_epoch_end()
    assert met[0] == met[1]
    assert sorted(row for batch in met[0] for row in batch) == rows.tolist()


def windows_of(rows, targets):
    """Nine windows, the same each epoch."""
    return lambda epoch: (np.tile(rows, (3, 1)), np.tile(targets, (3, 1)))


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_training_ends_with_the_averaged_weights_and_shows_them(levers, rows, targets, average):
    """A step an epoch, of which an average takes the second with a tenth of its weight."""
    model, moved = make(levers, "LeverSASRec"), []
    start = to_numpy(model.movies.embeddings).copy()

    def note(*_):
        moved.append(np.abs(to_numpy(model.movies.embeddings) - start).max())

    recipe = {"learning_rate": 0.01, "batch_size": 9, "epochs": 2, "seed": 0, "average": average}
    watch = keras.callbacks.LambdaCallback(on_epoch_end=note)
    log = levers.train_levers(model, windows_of(rows, targets), **recipe, callbacks=[watch])
    note()
    assert log.epoch == [0, 1]
    assert moved == pytest.approx([0.01, *[0.01 * (2.0 - average)] * 2], rel=0.05)


def test_the_settings_make_the_models(chapter, levers):
    settings = Run("sasrec", "smoke", 42, "jax", "CPU").settings(**chapter.SETTINGS)
    config = chapter.made_right(NUM_MOVIES, settings, seed=0).config
    assert config["num_movies"] == NUM_MOVIES
    for name in ("context", "width", "blocks", "heads", "dropout"):
        assert config[name] == getattr(settings, name)
    # the levers start from the chapter's; twice the width is one of them
    same = set(chapter.SETTINGS) & set(levers.SETTINGS) - {"width"}
    assert {"context", "blocks", "dropout", "learning_rate", "batch_size"} <= same
    for name in same:
        assert levers.SETTINGS[name] == chapter.SETTINGS[name]


@pytest.mark.long
def test_one_batch_is_learned_by_heart(chapter):
    rng = np.random.default_rng(5)
    sequences = np.stack([rng.permutation(NUM_MOVIES)[: CONTEXT + 1] + 1 for _ in range(6)])
    inputs, targets = sequences[:, :-1].astype(np.int32), sequences[:, 1:].astype(np.int32)
    model = make(chapter, width=32)
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    log = model.fit(inputs, targets, batch_size=6, epochs=150, verbose=0)
    assert log.history["loss"][-1] < 0.02
    scores = states(model, inputs)[:, -1] @ to_numpy(model.movies.embeddings).T
    np.put_along_axis(scores, inputs, -np.inf, axis=1)  # what is watched was not learned
    assert_array_equal(scores[:, 1:].argmax(axis=-1) + 1, targets[:, -1])


@pytest.mark.long
def test_the_markov_order_of_synthetic_data_is_recovered(levers):
    split = leave_one_out(synthetic(500, 100, 20_000, seed=5))
    law = synthetic_oracle(500, 100, seed=5)

    def oracle(queries):
        return law.probabilities(queries.user_ids, queries.last(1)[:, 0])

    keras.utils.set_random_seed(5)
    model = levers.LeverSASRec(100, 20, width=32, heads=1, dropout=0.1, direct=2)
    model.compile(optimizer=keras.optimizers.Adam(0.005))
    inputs, targets = training_windows(split.histories("validation"), 20)
    model.fit(inputs, targets, batch_size=64, epochs=20, verbose=0)
    found = evaluate(levers.lever_scores(model), split)
    best = evaluate(oracle, split)
    popularity = evaluate(Popularity().fit(split), split)
    assert found.hit_rate > 0.8 * best.hit_rate
    assert found.ndcg > 0.8 * best.ndcg
    assert found.ndcg > 1.5 * popularity.ndcg
