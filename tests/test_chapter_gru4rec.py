"""The promises of the GRU4Rec chapter, checked on its own classes with small synthetic data."""

import keras
import numpy as np
import pandas as pd
import pytest
from chapters import NOTEBOOKS, definitions
from keras import ops
from scipy.special import logsumexp

from rectutor import PADDING_ID
from rectutor.baselines import EASE, Popularity
from rectutor.data import synthetic, synthetic_oracle
from rectutor.evaluation import Trained, evaluate, queries_for, recommend
from rectutor.sequences import histories, last_window, sliding_windows, training_windows
from rectutor.splits import leave_one_out

CHAPTER = definitions("gru4rec")
NUM_MOVIES = 30


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(1)


def made_right(**changes):
    """A small model with random weights, bias included."""
    model = CHAPTER.GRU4Rec(NUM_MOVIES, **{"width": 8, "units": 12, "dropout": 0.3} | changes)
    model.build((None, 6))
    model.bias.assign(np.random.default_rng(0).normal(size=NUM_MOVIES + 1))
    return model


def documented(**changes):
    model = CHAPTER.InBatchGRU4Rec(NUM_MOVIES, width=8, **changes)
    model.build((None, 6))
    return model


def windows(rows=5, length=6, seed=0):
    return np.random.default_rng(seed).integers(1, NUM_MOVIES + 1, (rows, length)).astype(np.int32)


def states(model, ids):
    return ops.convert_to_numpy(model(ids, training=False))


@pytest.fixture(scope="module")
def small_split():
    return leave_one_out(synthetic(40, NUM_MOVIES, 500, seed=3))


class TestMadeRight:
    def test_a_later_movie_changes_no_earlier_state(self):
        model, ids = made_right(), windows()
        before = states(model, ids)
        for place in range(1, ids.shape[1]):
            changed = ids.copy()
            changed[:, place] = changed[:, place] % NUM_MOVIES + 1
            after = states(model, changed)
            np.testing.assert_array_equal(after[:, :place], before[:, :place])
            assert np.abs(after[:, place] - before[:, place]).max(axis=-1).min() > 1e-6

    @pytest.mark.parametrize("margins", [(3, 0), (0, 3), (7, 0), (2, 2)])
    def test_padding_changes_nothing(self, margins):
        model, ids = made_right(), windows()
        padded = np.pad(ids, ((0, 0), margins))
        kept = slice(margins[0], margins[0] + ids.shape[1])
        np.testing.assert_allclose(states(model, padded)[:, kept], states(model, ids), atol=1e-6)
        np.testing.assert_allclose(model.score(padded), model.score(ids), atol=1e-5)

    def test_left_and_right_padding_give_the_same_scores(self, small_split):
        model = made_right()
        found = small_split.histories(before="validation")
        left, right = (last_window(found, 20, padding) for padding in ("before", "after"))
        assert (left != right).any()
        np.testing.assert_allclose(model.score(left), model.score(right), atol=1e-5)

    @pytest.mark.parametrize(("ahead", "decay"), [(1, 0.6), (3, 0.6), (9, 1.0)])
    def test_loss_equals_a_numpy_reference(self, ahead, decay):
        model = made_right(ahead=ahead, decay=decay)
        inputs, targets = windows(), windows(seed=1)
        inputs[1, :4] = targets[1, :4] = PADDING_ID
        inputs[3] = targets[3] = PADDING_ID
        h = states(model, inputs)
        table, bias = (ops.convert_to_numpy(w) for w in (model.movies.embeddings, model.bias))
        losses = []
        for row, place in zip(*np.nonzero(targets), strict=True):
            logits = h[row, place].astype(float) @ table.T.astype(float) + bias
            log_p = logits - np.log(np.exp(logits).sum())
            following = targets[row, place : place + ahead]
            weights = decay ** np.arange(len(following))
            losses.append(-np.sum(weights * log_p[following]) / weights.sum())
        loss = model.compute_loss(x=inputs, y=targets, y_pred=ops.convert_to_tensor(h))
        assert float(loss) == pytest.approx(np.mean(losses), rel=1e-5)

    def test_one_step_moves_every_weight(self):
        model = made_right()
        before = [ops.convert_to_numpy(weight).copy() for weight in model.trainable_variables]
        assert len(before) == 7  # table, three of the GRU, two of the projection, bias
        model.compile(optimizer=keras.optimizers.SGD(1.0))
        model.train_on_batch(windows(), windows(seed=1))
        for weight, old in zip(model.trainable_variables, before, strict=True):
            moved = np.abs(ops.convert_to_numpy(weight) - old)
            assert moved.max() > 1e-7, weight.path
            if any(weight is one for one in model.gru.trainable_variables):
                gates = moved.reshape(-1, 3, 12).max(axis=(0, 2))  # each of the three
                assert (gates > 0).all(), weight.path

    def test_a_batch_is_learned_by_heart(self):
        model = made_right(dropout=0.0, ahead=1, units=32, width=16)
        inputs = windows(rows=4)
        targets = np.roll(inputs, -1, axis=1)
        model.compile(optimizer=keras.optimizers.Adam(0.02))
        losses = [float(model.train_on_batch(inputs, targets)) for _ in range(300)]
        assert losses[0] > 2.0
        assert losses[-1] < 0.02

    def test_no_padding_and_nothing_seen_is_recommended(self, small_split):
        model = made_right()
        model.bias.assign(np.where(np.arange(NUM_MOVIES + 1) == PADDING_ID, 100.0, 0.0))
        queries = queries_for(small_split)
        found = recommend(CHAPTER.recommender_of(model, 6, "before"), queries, k=5)
        for row, ids in enumerate(found):
            real = ids[ids != PADDING_ID]  # fills the list of a user with fewer than 5 left
            unseen = NUM_MOVIES - len(np.unique(queries.history(row)))
            assert len(real) == min(5, unseen)
            assert not np.isin(real, queries.history(row)).any()

    def test_what_is_saved_recommends_the_same(self, small_split, tmp_path):
        model = made_right()
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        assert loaded.config == model.config
        lists = [
            recommend(CHAPTER.recommender_of(one, 6, "before"), queries_for(small_split))
            for one in (model, loaded)
        ]
        np.testing.assert_array_equal(*lists)


class TestDocumented:
    def test_loss_equals_a_numpy_reference(self):
        model, ids, labels = documented(), windows(), windows()[:, 0]
        q = states(model, ids).astype(float)
        c = ops.convert_to_numpy(model.movies.embeddings)[labels]
        scores = q @ c.T
        expected = np.mean(np.log(np.exp(scores).sum(axis=1)) - np.diag(scores))
        loss = model.compute_loss(x=ids, y=labels, y_pred=ops.convert_to_tensor(q, "float32"))
        assert float(loss) == pytest.approx(expected, rel=1e-5)

    def test_a_model_that_knows_nothing_scores_chance(self):
        model = documented()
        model.movies.embeddings.assign(np.zeros((NUM_MOVIES + 1, 8)))
        model.compile(optimizer="sgd")
        ids = windows(rows=10)
        loss = model.evaluate(ids, ids[:, 0], batch_size=4, verbose=0)
        assert loss == pytest.approx(CHAPTER.chance(10, 4), rel=1e-5)

    def test_one_step_moves_every_weight(self):
        model = documented()
        before = [ops.convert_to_numpy(weight).copy() for weight in model.trainable_variables]
        model.compile(optimizer=keras.optimizers.SGD(1.0))
        model.train_on_batch(windows(), windows()[:, 0])
        for weight, old in zip(model.trainable_variables, before, strict=True):
            assert np.abs(ops.convert_to_numpy(weight) - old).max() > 1e-7, weight.path

    def test_corrected_loss_leaves_out_accidental_hits_and_takes_off_log_q(self):
        log_q = np.log(np.linspace(0.01, 0.2, NUM_MOVIES + 1))
        model = documented(log_q=log_q.tolist())
        ids, labels = windows(), np.array([4, 7, 4, 4, 2], np.int32)
        q = states(model, ids).astype(float)
        table = ops.convert_to_numpy(model.movies.embeddings).astype(float)
        scores = q @ table[labels].T - log_q[labels]
        losses = []
        for row in range(5):
            kept = [at for at in range(5) if at == row or labels[at] != labels[row]]
            losses.append(logsumexp(scores[row, kept]) - scores[row, row])
        loss = model.compute_loss(x=ids, y=labels, y_pred=ops.convert_to_tensor(q, "float32"))
        assert float(loss) == pytest.approx(np.mean(losses), rel=1e-4)

    def test_batches_stay_the_same_unless_they_are_drawn_anew(self):
        def trained(**fit):
            recipe = {"width": 4, "rate": 0.05, "seed": 3, "batch_size": 8, "epochs": 3, **fit}
            ids = windows(rows=40)
            model, losses = CHAPTER.train_as_documented(NUM_MOVIES, ids, ids[:, 0], **recipe)
            assert len(losses["loss"]) == 3
            return model.score(windows())

        np.testing.assert_array_equal(trained(), trained(shuffle=False))
        assert np.abs(trained() - trained(shuffle=True)).max() > 1e-4

    def test_padding_at_the_end_does_change_the_query(self):
        """The flaw of correction C9 is really there."""
        model, ids = documented(), windows()
        assert (
            np.abs(states(model, np.pad(ids, ((0, 0), (0, 3)))) - states(model, ids)).max() > 1e-4
        )

    @pytest.mark.parametrize("log_q", [None, [-2.0] * (NUM_MOVIES + 1)])
    def test_what_is_saved_scores_the_same(self, tmp_path, log_q):
        model = documented(log_q=log_q)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(loaded.score(windows()), model.score(windows()))


def test_adding_log_q_to_ratios_ranks_by_probability():
    """Why correction C11 helps: an in-batch softmax learns p(i | w) / p(i)."""
    movies = np.repeat(np.arange(1, 6), [40, 30, 15, 10, 5])
    share = CHAPTER.log_share(movies, 5)
    np.testing.assert_allclose(np.exp(share[1:]), [0.4, 0.3, 0.15, 0.1, 0.05])
    after = np.array([0.5, 0.2, 0.1, 0.12, 0.08])  # p(i | w)
    ratios = np.log(after) - share[1:]
    assert ratios.argmax() != after.argmax()
    np.testing.assert_allclose(np.exp(ratios + share[1:]), after)


def test_the_leak_of_the_documented_split_is_counted_and_refused(small_split):
    """All windows shuffled, nine tenths to train on: the test movies are labels (C8)."""
    rows = pd.concat([small_split.train, small_split.validation, small_split.test])
    _, labels, owners = sliding_windows(histories(rows), 6, return_users=True)
    order = np.random.default_rng(0).permutation(len(labels))
    learned = order[: int(0.9 * len(order))]
    labelled = pd.DataFrame({"user_id": owners[learned], "movie_id": labels[learned]})
    model = CHAPTER.recommender_of(documented(), 6, "after")
    leaking = Trained(model, labelled)
    test = small_split.test.set_index("user_id")["movie_id"]
    pairs = set(map(tuple, labelled.to_numpy()))
    assert set(leaking.leaked(small_split, "test")) == {
        user for user, movie in test.items() if (user, movie) in pairs
    }
    assert len(leaking.leaked(small_split, "test")) > 0.7 * len(test)
    with pytest.raises(ValueError, match="allow_leak"):
        evaluate(leaking, small_split)
    found = evaluate(leaking, small_split, allow_leak=True, num_resamples=1)
    fair = evaluate(Trained(model, small_split.train), small_split, num_resamples=1)
    assert found.ndcg == fair.ndcg


def test_every_model_of_the_chapter_says_what_it_was_trained_on():
    """A model that is asked without `Trained` could leak unseen: only baselines go bare."""
    text = (NOTEBOOKS / "gru4rec.py").read_text(encoding="utf-8")
    for name in ("from_documented", "from_fair", "from_model", "from_final"):
        assert f"{name} = Trained(" in text
    assert text.count("allow_leak=True)") == 1


def test_the_weight_of_a_mixture_is_the_best_on_validation(small_split):
    ease = EASE(50.0).fit(small_split)

    def constant(queries):
        return np.zeros((len(queries), NUM_MOVIES + 1))

    weight, tried = CHAPTER.choose_weight(constant, ease, small_split, (0.0, 1.0))
    alone = evaluate(ease, small_split, on="validation", num_resamples=1).ndcg
    assert tried[1.0] == pytest.approx(alone)
    assert weight == max(tried, key=tried.get)
    assert list(CHAPTER.WEIGHTS) == sorted(CHAPTER.WEIGHTS)
    assert CHAPTER.WEIGHTS[0] == 0


def test_refreshing_trains_a_copy_and_leaves_the_model():
    model = made_right()
    before = [ops.convert_to_numpy(weight).copy() for weight in model.weights]
    ids = windows(rows=8)
    copy = CHAPTER.refreshed(model, ids, np.roll(ids, -1, 1), rate=0.01, batch_size=4, epochs=1)
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, ops.convert_to_numpy(weight))
    assert np.abs(copy.score(ids) - model.score(ids)).max() > 1e-4
    assert float(copy.optimizer.learning_rate) == pytest.approx(0.01)  # stays


@pytest.mark.long
def test_the_order_of_a_known_world_is_recovered():
    """On data with a Markov order the model gets near the law it was drawn from."""
    users, movies = 800, 100
    data = synthetic(users, movies, 32_000, seed=5)
    split = leave_one_out(data)
    laws = synthetic_oracle(users, movies, seed=5)

    def oracle(queries):
        return laws.probabilities(queries.user_ids, queries.last(1)[:, 0])

    windows = training_windows(split.histories(before="validation"), 20)
    model = CHAPTER.GRU4Rec(movies, width=32, units=64, dropout=0.1, ahead=1)
    CHAPTER.train(model, *windows, rate=0.01, batch_size=64, epochs=15)
    best = evaluate(oracle, split).hit_rate
    popularity = evaluate(Popularity().fit(split), split).hit_rate
    found = evaluate(CHAPTER.recommender_of(model, 20, "before"), split).hit_rate
    print(f"oracle {best:.3f}, model {found:.3f}, popularity {popularity:.3f}")
    assert popularity < 0.6 * best
    assert found > popularity + 0.7 * (best - popularity)
