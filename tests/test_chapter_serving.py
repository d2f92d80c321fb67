"""The promises of the serving chapter, checked on its own functions with small synthetic data."""

import os
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import onnxruntime
import pytest
from chapters import NOTEBOOKS, definitions
from keras import ops
from scipy.special import logsumexp

from rectutor import PADDING_ID, artefact
from rectutor.baselines import EASE, Popularity
from rectutor.data import synthetic
from rectutor.evaluation import Queries, evaluate, queries_for
from rectutor.splits import leave_one_out

CHAPTER = definitions("serving")
NUM_MOVIES = 60
SETTINGS = SimpleNamespace(
    context=6, width=8, units=12, dropout=0.3, rate=0.005, batch=16, regularization=50.0, tau=3.0
)


@pytest.fixture(scope="module")
def split():
    return leave_one_out(synthetic(50, NUM_MOVIES, 800, seed=3))


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    return CHAPTER.next_movie(SETTINGS, NUM_MOVIES)


def scores_of(table):
    """A recommender that says the same to all."""
    return lambda queries: np.broadcast_to(np.array(table, float), (len(queries), len(table)))


def windows(rows=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(1, NUM_MOVIES + 1, (rows, SETTINGS.context)).astype(np.int32)


class TestSequenceModel:
    def test_a_later_movie_changes_no_earlier_score(self, model):
        ids = windows()
        before = ops.convert_to_numpy(model(ids))
        changed = ids.copy()
        changed[:, 4] = changed[:, 4] % NUM_MOVIES + 1
        after = ops.convert_to_numpy(model(changed))
        np.testing.assert_array_equal(after[:, :4], before[:, :4])
        assert np.abs(after[:, 4] - before[:, 4]).max() > 1e-6

    def test_scores_are_inner_products_of_the_state_and_the_items(self, model, split):
        queries = queries_for(split)
        last = ops.convert_to_numpy(model(queries.last(SETTINGS.context)))[:, -1]
        np.testing.assert_allclose(CHAPTER.recommender_of(model)(queries), last, atol=1e-5)

    def test_padding_before_the_movies_changes_nothing(self, model):
        ids = windows()
        ids[:, :3] = PADDING_ID
        longer = CHAPTER.NextMovie(NUM_MOVIES, SETTINGS.context + 4, 8, 12, 0.3)
        longer.set_weights(model.get_weights())
        padded = np.pad(ids, ((0, 0), (4, 0)))
        np.testing.assert_allclose(
            ops.convert_to_numpy(longer.encoder(padded)),
            ops.convert_to_numpy(model.encoder(ids)),
            atol=1e-6,
        )

    def test_the_loss_is_a_softmax_over_the_catalogue_at_every_real_position(self, split):
        keras.utils.set_random_seed(1)
        model = CHAPTER.next_movie(SETTINGS, NUM_MOVIES)
        CHAPTER.fit(model, split.histories(before="validation"), SETTINGS, epochs=1)
        inputs, targets = windows(), windows(seed=1)
        inputs[1, :4] = targets[1, :4] = PADDING_ID
        logits = ops.convert_to_numpy(model(inputs)).astype(float)
        log_p = logits - logsumexp(logits, axis=-1, keepdims=True)
        rows, places = np.nonzero(targets)
        expected = -log_p[rows, places, targets[rows, places]].mean()
        found = model.evaluate(inputs, targets, verbose=0)
        assert found == pytest.approx(expected, rel=1e-4)

    def test_a_later_fit_goes_on_at_a_tenth_of_the_rate(self, split):
        keras.utils.set_random_seed(1)
        model = CHAPTER.next_movie(SETTINGS, NUM_MOVIES)
        CHAPTER.fit(model, split.histories(before="validation"), SETTINGS, epochs=2)
        optimizer, done = model.optimizer, int(model.optimizer.iterations)
        CHAPTER.fit(model, split.histories(before="test"), SETTINGS, epochs=1)
        assert model.optimizer is optimizer
        assert int(optimizer.iterations) > done
        assert float(optimizer.learning_rate) == pytest.approx(SETTINGS.rate / 10)

    def test_batches_are_whole_and_hold_every_row(self):
        rows, labels = np.arange(14).reshape(7, 2), np.arange(7)
        rows, labels = CHAPTER.whole_batches((rows, labels), 4)
        assert labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 0]
        assert rows.tolist() == [[2 * row, 2 * row + 1] for row in labels]
        assert len(CHAPTER.whole_batches((labels,), 4)[0]) == 8


class TestFirstStage:
    def test_the_lists_are_taken_in_turns(self, split):
        nobody = Queries(np.array([0]), split.histories())
        first, second = np.zeros((2, NUM_MOVIES + 1))
        first[[1, 2, 3]], second[[3, 4, 1]] = (9, 8, 7), (9, 8, 7)
        found, *scores = CHAPTER.retrieve(scores_of(first), scores_of(second), nobody, 4)
        assert found.tolist() == [[1, 3, 2, 4]]
        assert scores[0].tolist() == [[9, 7, 8, 0]]
        assert scores[1].tolist() == [[7, 9, 0, 8]]

    def test_nothing_seen_and_no_padding_is_retrieved(self, split, model):
        queries = queries_for(split)
        ease = EASE(tau=3.0).fit(split)
        movies = CHAPTER.retrieve(CHAPTER.recommender_of(model), ease, queries, 10)[0]
        for row, found in enumerate(movies):
            assert len(set(found)) == 10
            assert PADDING_ID not in found
            assert not np.isin(found, queries.history(row)).any()

    def test_recall_counts_the_targets_among_the_first(self):
        ordered = np.array([[4, 5, 6], [7, 8, 9]])
        assert CHAPTER.recall_at((1, 2, 3), ordered, np.array([5, 7])) == {
            "1": 0.5,
            "2": 1.0,
            "3": 1.0,
        }


class TestRanker:
    @pytest.mark.parametrize("rng", [None, 7])
    def test_examples_hold_the_target_at_its_place(self, split, rng):
        """With a retriever that is the target's popularity, features tell which one it is."""
        popularity = Popularity().fit(split)
        counts = CHAPTER.popularity_of(split.train, NUM_MOVIES)
        draw = None if rng is None else np.random.default_rng(rng)
        told, labels = CHAPTER.examples(popularity, popularity, split, counts, [15], draw)[15]
        assert told.shape == (len(labels), 15, len(artefact.FEATURES))
        asked = [counts[CHAPTER.target_movies(split, on)] for on in ("validation", "test")]
        own = np.rint(np.expm1(told[np.arange(len(labels)), labels, 4])).astype(int)
        if rng is not None:
            assert own.tolist() == np.concatenate(asked).tolist()
        else:
            assert 0 < len(own) < sum(map(len, asked))
            assert set(own) <= set(np.concatenate(asked).tolist())

    def test_random_rivals_are_unseen(self, split):
        queries = queries_for(split, "validation")
        seen = np.zeros((split.num_users + 1, NUM_MOVIES + 1))
        seen[queries.user_ids[queries.rows], queries.items] = 1.0
        later = queries_for(split, "test")
        seen_then = np.zeros_like(seen)
        seen_then[later.user_ids[later.rows], later.items] = 1.0

        def known(queries):
            is_later = len(queries.items) == len(later.items)
            return (seen_then if is_later else seen)[queries.user_ids]

        counts = np.zeros(NUM_MOVIES + 1)
        rng = np.random.default_rng(0)
        told, _ = CHAPTER.examples(known, known, split, counts, [10], rng)[10]
        assert (told[..., 0] == 0).all()  # no score but that of the unseen

    def test_it_learns_to_rank_by_a_feature(self):
        told = np.random.default_rng(0).normal(size=(400, 12, 5)).astype("float32")
        labels = told[..., 2].argmax(axis=1)
        ranker = CHAPTER.train_ranker(told, labels, 30, seed=1)
        found = ranker.predict(told, verbose=0).argmax(axis=1)
        assert np.mean(found == labels) > 0.9


class TestWhole:
    def test_only_candidates_are_recommended_and_by_the_ranker(self, split):
        popularity, ease = Popularity().fit(split), EASE(tau=3.0).fit(split)
        counts = CHAPTER.popularity_of(split.train, NUM_MOVIES)
        told = CHAPTER.examples(ease, popularity, split, counts, [15])[15]
        ranker = CHAPTER.train_ranker(*told, 1, seed=1)
        whole = CHAPTER.two_stages(ease, popularity, ranker, counts, 15)
        found = evaluate(whole, split, num_resamples=1)
        movies = CHAPTER.retrieve(ease, popularity, queries_for(split), 15)[0]
        for row, kept in enumerate(movies):
            assert np.isin(found.recommendations[row], kept).all()

    def test_without_a_history_the_popular_movies_come(self, split):
        counts = CHAPTER.popularity_of(split.train, NUM_MOVIES)
        ease = EASE(tau=3.0).fit(split)
        whole = CHAPTER.two_stages(ease, ease, None, counts, 15)
        np.testing.assert_array_equal(whole(Queries(np.array([0]), split.histories()))[0], counts)

    def test_newcomers_are_asked_for_what_follows_and_trained_on_nowhere(self, split):
        steps = CHAPTER.first_steps(split, [10, 20], 3, num_asked=4)
        assert not steps.train["user_id"].isin([10, 20]).any()
        for user in (10, 20):
            movies = np.append(split.histories()[user], split.targets()[user])
            assert steps.histories()[user].tolist() == movies[:3].tolist()
            assert steps.targets()[user].tolist() == movies[3:7].tolist()

    def test_leaving_users_out_leaves_their_questions(self, split):
        kept = CHAPTER.without(split, [10])
        assert 10 not in set(kept.train["user_id"])
        assert 10 in set(kept.test["user_id"])


class TestExport:
    def answers(self, blob, **given):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(blob, options, ["CPUExecutionProvider"])
        return session.run(None, given)[0]

    def test_onnx_answers_as_keras_does(self, model):
        ids = windows()
        ids[0, :4] = PADDING_ID
        blob = artefact.to_onnx(model.encoder)
        np.testing.assert_allclose(
            self.answers(blob, history=ids), ops.convert_to_numpy(model.encoder(ids)), atol=1e-5
        )
        assert sys.modules.get("equinox", sys) is not None  # hidden from the exporter alone
        smaller = artefact.in_int8(blob)
        assert len(smaller) < len(blob)
        found = self.answers(smaller, history=ids)
        np.testing.assert_allclose(found, ops.convert_to_numpy(model.encoder(ids)), atol=0.05)

    def test_so_does_the_gru_by_its_own_operator(self, model):
        ids = windows(7)
        for row in range(1, 7):
            ids[row, : row - 1] = PADDING_ID
        wanted = ops.convert_to_numpy(model.encoder(ids))
        weights = model.encoder.get_weights()
        blob = artefact.gru_to_onnx(*weights, context=SETTINGS.context)
        np.testing.assert_allclose(self.answers(blob, history=ids), wanted, atol=1e-5)
        found = self.answers(artefact.in_int8(blob), history=ids)
        np.testing.assert_allclose(found, wanted, atol=0.05)

    def test_a_ranker_takes_any_number_of_candidates(self):
        told = np.random.default_rng(0).normal(size=(20, 12, 5)).astype("float32")
        ranker = CHAPTER.train_ranker(told, np.zeros(20, int), 1, seed=1)
        blob = artefact.to_onnx(ranker)
        for depth in (1, 12, 33):
            given = told[:1, np.arange(depth) % 12]
            np.testing.assert_allclose(
                self.answers(blob, features=given), ops.convert_to_numpy(ranker(given)), atol=1e-5
            )


def test_every_model_of_the_chapter_says_what_it_was_trained_on():
    text = (NOTEBOOKS / "serving.py").read_text(encoding="utf-8")
    assert text.count("Trained(") == 3
    assert "allow_leak" not in text


@pytest.mark.long
def test_a_small_table_gives_half_of_its_items_as_candidates_at_most(tmp_path):
    table = synthetic(60, 52, 1500, seed=1).ratings.rename(
        columns={"user_id": "user", "movie_id": "item"}
    )
    table[["user", "item", "timestamp"]].to_csv(tmp_path / "small.csv", index=False)
    settings = {"DATA": str(tmp_path / "small.csv"), "RESULTS": str(tmp_path), "PROFILE": "smoke"}
    done = subprocess.run(
        [sys.executable, NOTEBOOKS / "serving.py"],
        env=os.environ | {f"RECTUTOR_{name}": value for name, value in settings.items()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "among 26 retrieved rivals" in done.stdout
    assert "among 40" not in done.stdout
