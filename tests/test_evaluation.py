"""The evaluator ranks the whole catalogue, counts ties against the model, and says how sure it is.

Several of these tests exist to catch one planted fault each: seen movies that compete, a rank off
by one, a target that leaks into its own query, a wrong logarithm in NDCG, ties for the model.
"""

import dataclasses
import itertools
import json
import math
import re
import time
import tracemalloc
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given

from rectutor.baselines import Mixture, Popularity
from rectutor.evaluation import (
    Interval,
    Queries,
    Trained,
    compare,
    discounts,
    evaluate,
    queries_for,
    recommend,
    win_rate,
)
from rectutor.sequences import Histories
from rectutor.splits import Split, leave_one_out, random_split, temporal_split


def frame(rows):
    """(user, movie) pairs in time order."""
    ratings = pd.DataFrame(rows, columns=["user_id", "movie_id"]).astype(np.int32)
    return ratings.assign(timestamp=np.arange(len(rows)))


def one_user(num_movies=6, history=(1, 2), validation=3, target=4):
    """A split with one user: two movies to train on, one to validate, one to test."""
    rows = [(1, movie) for movie in (*history, validation, target)]
    return leave_one_out(frame(rows), num_movies=num_movies)


def scorer(*scores):
    """A recommender that gives every query the scores of movies 1, 2, ..."""
    return lambda queries: np.tile([0.0, *scores], (len(queries), 1))


# what a query knows ---------------------------------------------------------------------------


def test_queries_know_what_is_before_their_part():
    queries = queries_for(one_user())
    assert queries.user_ids.tolist() == [1]
    assert queries.history(0).tolist() == [1, 2, 3]
    assert queries.lengths.tolist() == [3]
    assert queries_for(one_user(), on="validation").history(0).tolist() == [1, 2]


def test_no_target_leaks_into_its_own_query():
    """A model that recommends what it is shown scores exactly nothing."""
    rng = np.random.default_rng(0)
    ratings = frame([(user, m + 1) for user in range(1, 30) for m in rng.permutation(40)[:9]])
    split = leave_one_out(ratings)
    for on in ("test", "validation"):
        target = getattr(split, on).set_index("user_id")["movie_id"]
        queries = queries_for(split, on)
        for row, user in enumerate(queries.user_ids):
            assert target[user] not in queries.history(row)

        def remembers(queries):
            scores = np.zeros((len(queries), split.num_movies + 1))
            scores[queries.rows, queries.items] = 1.0
            return scores

        assert evaluate(remembers, split, on=on, exclude_seen=False, k=5).hit_rate == 0.0


def test_histories_are_in_time_order_whatever_the_order_of_the_rows():
    ratings = frame([(1, 5), (2, 6), (1, 3), (2, 1), (1, 4), (2, 2), (1, 1), (2, 7)])
    shuffled = ratings.iloc[[7, 2, 5, 0, 4, 1, 6, 3]]
    queries = queries_for(leave_one_out(shuffled))
    assert [queries.history(row).tolist() for row in (0, 1)] == [[5, 3, 4], [6, 1, 2]]


def test_histories_without_times_follow_the_rows():
    split = random_split(frame([(1, 3), (1, 1), (1, 2), (1, 4)]).drop(columns="timestamp"), 0.25)
    queries = queries_for(split)
    assert queries.history(0).tolist() == split.train["movie_id"].tolist()


def test_queries_may_ask_about_chosen_users_in_any_order():
    ratings = frame([(1, 1), (1, 2), (1, 3), (2, 4), (4, 5), (4, 6), (4, 2)])
    queries = queries_for(leave_one_out(ratings), user_ids=[4, 3, 2])
    assert queries.user_ids.tolist() == [4, 3, 2]
    assert queries.user_ids.dtype == np.int32
    assert [queries.history(row).tolist() for row in range(3)] == [[5, 6], [], [4]]
    assert queries_for(leave_one_out(ratings), user_ids=2).history(0).tolist() == [4]


def test_batches_cover_all_queries_once():
    everybody = Histories(np.arange(1, 7, dtype=np.int32), np.array([0, 0, 1, 1, 4, 5, 6]))
    queries = Queries([3, 1, 2, 5, 3], everybody)
    batches = list(queries.batches(2))
    assert [batch.user_ids.tolist() for batch in batches] == [[3, 1], [2, 5], [3]]
    for some in (queries, *batches):
        histories = [everybody[user].tolist() for user in some.user_ids]
        assert [some.history(row).tolist() for row in range(len(some))] == histories
        assert some.items.tolist() == [*itertools.chain(*histories)]
        assert some.rows.tolist() == [b for b, row in enumerate(histories) for _ in row]
        assert some.lengths.tolist() == [len(row) for row in histories]
        assert some.offsets.tolist() == [0, *np.cumsum(some.lengths)]
        assert some.last(2).tolist() == [[0, 0, *row][-2:] for row in histories]
        assert some.last(2, padding="after").tolist() == [
            [*row[-2:], 0, 0][:2] for row in histories
        ]
        assert some.histories is everybody
    assert repr(queries) == "Queries(5 users, 8 movies known)"


# the rank and the metrics ---------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_metrics_of_a_target_at_a_known_rank(rank):
    """Movies 4, 5 and 6 compete; the target is 4."""
    above = [9.0 if place < rank - 1 else 1.0 for place in range(2)]
    result = evaluate(scorer(99, 99, 99, 5.0, *above), one_user(), k=3)
    assert result.hit_rate == 1.0
    assert result.mrr == pytest.approx(1 / rank)
    assert result.ndcg == pytest.approx([1.0, 0.6309297535714575, 0.5][rank - 1])
    assert result.recommendations[0].tolist().index(4) == rank - 1


def test_the_logarithm_of_ndcg_has_base_two():
    """Another base cancels against the best possible list, so look at the discounts themselves."""
    np.testing.assert_allclose(discounts(7), [1 / math.log2(place + 1) for place in range(1, 8)])
    assert discounts(1).tolist() == [1.0]


@pytest.mark.parametrize(
    ("scores", "settings", "lists", "mrr"),
    [
        ((0, 0, 0, 2, 3, 1), {"k": 2}, [5, 4], 1 / 2),  # the target at rank k is a hit,
        ((0, 0, 0, 2, 3, 1), {"k": 1}, [5], 0.0),  # at rank k + 1 it is not
        ((9, 9, 9, 1, 0, 0), {"k": 1}, [4], 1.0),  # seen movies do not compete
        ((9, 8, 7, 6, 0, 0), {"k": 4, "exclude_seen": False}, [1, 2, 3, 4], 1 / 4),
        ((9, 9, 5, 1, 0, 0), {"k": 1, "on": "validation"}, [3], 1.0),  # nor does movie 3 on test
        ((9, 9, 5, 1, 0, 0), {"k": 1, "on": "test"}, [4], 1.0),
        ((0, 0, 0, 5, 5, 1), {"k": 1}, [5], 0.0),  # a tie goes against the target
        ((0, 0, 0, 5, 5, 1), {"k": 2}, [5, 4], 1 / 2),
    ],
)
def test_who_competes_and_who_wins(scores, settings, lists, mrr):
    result = evaluate(scorer(*scores), one_user(), **settings)
    assert result.recommendations.tolist() == [lists]
    assert (result.mrr, result.hit_rate) == (mrr, float(mrr > 0))
    assert (result.ndcg > 0) == (mrr > 0)


def test_tied_movies_are_listed_by_id():
    queries = queries_for(one_user())
    assert recommend(scorer(0, 0, 0, 5, 5, 1), queries, k=1).tolist() == [[4]]
    assert recommend(scorer(0, 0, 0, 5, 5, 5), queries, k=3).tolist() == [[4, 5, 6]]


def test_padding_never_competes():
    def loves_padding(queries):
        return np.tile([1e9, 0, 0, 0, 3.0, 2, 1], (len(queries), 1))

    for exclude_seen in (True, False):
        lists = evaluate(loves_padding, one_user(), 3, exclude_seen).recommendations
        assert lists.tolist() == [[4, 5, 6]]
    assert recommend(loves_padding, queries_for(one_user()), 3).tolist() == [[4, 5, 6]]


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, np.inf, -np.inf])
def test_a_constant_scorer_gets_no_hits(value):
    split = one_user(num_movies=20)
    result = evaluate(lambda q: np.full((len(q), 21), value), split, k=10)
    assert (result.hit_rate, result.ndcg, result.mrr) == (0.0, 0.0, 0.0)
    assert result.recommendations.tolist() == [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14]]


def test_lists_are_filled_with_padding_when_nothing_is_left():
    lists = recommend(scorer(1, 2, 3, 4, 5, 6), queries_for(one_user()), k=5)
    assert lists.tolist() == [[6, 5, 4, 0, 0]]
    result = evaluate(scorer(1, 2, 3, 4, 5, 6), one_user(), k=5)
    assert result.recommendations.tolist() == [[6, 5, 4, 0, 0]]
    assert result.coverage == 0.5


def test_a_target_seen_before_is_a_miss_and_is_counted():
    split = one_user(target=1)
    result = evaluate(scorer(9, 0, 0, 0, 0, 0), split, k=1)
    assert result.hit_rate == 0.0
    assert result.num_seen_targets == 1
    assert str(result).splitlines()[-1] == (
        "1 users, test; 95 % bootstrap intervals over users; 1 targets were seen before and "
        "count as misses (exclude_seen=False lets them compete)"
    )
    again = evaluate(scorer(9, 0, 0, 0, 0, 0), split, k=1, exclude_seen=False)
    assert (again.hit_rate, again.num_seen_targets) == (1.0, 0)
    assert "seen before" not in str(again)


def test_seen_targets_are_counted_over_all_batches():
    ratings = frame([(user, movie) for user in (1, 2, 3) for movie in (1, 2, 3, 1)])
    result = evaluate(scorer(9, 0, 0), leave_one_out(ratings), k=1, batch_size=1)
    assert result.num_seen_targets == 3


def test_several_targets_a_user():
    """Targets 4 and 5 at ranks 1 and 3 of 3, and only two of three targets fit in k = 2."""
    train, test = frame([(1, 1)]), frame([(1, 4), (1, 5)])
    split = Split(train, train.iloc[:0], test, num_users=1, num_movies=6)
    result = evaluate(scorer(0, 1, 2, 9, 3, 5), split, k=3)
    assert result.recommendations.tolist() == [[4, 6, 5]]
    assert (result.hit_rate, result.mrr) == (1.0, 1.0)
    assert result.ndcg == pytest.approx((1 + 1 / 2) / (1 + 1 / math.log2(3)))
    three = Split(train, train.iloc[:0], frame([(1, 4), (1, 5), (1, 6)]), 1, 6)
    assert evaluate(scorer(0, 1, 2, 9, 3, 5), three, k=2).ndcg == 1.0
    twice = Split(train, train.iloc[:0], frame([(1, 4), (1, 4)]), 1, 6)
    assert evaluate(scorer(0, 0, 0, 9, 0, 0), twice, k=2).ndcg == 1.0


def test_users_without_a_history_are_evaluated():
    ratings = frame([(1, 1), (1, 2), (2, 3), (1, 4)])
    result = evaluate(scorer(0, 0, 9, 8), temporal_split(ratings, cutoff=2), k=1)
    assert result.user_ids.tolist() == [1, 2]
    assert result.per_user["hit_rate"].tolist() == [0.0, 1.0]


def brute_force(scores, histories, targets, k, exclude_seen):
    """Hit, NDCG and MRR of each user, from the definitions, one movie at a time."""
    rows = []
    for row, history, wanted in zip(scores, histories, targets, strict=True):
        allowed = [movie for movie in range(1, len(row)) if not (exclude_seen and movie in history)]
        places = []
        for target in wanted & set(allowed):
            ahead = sum(
                row[movie] > row[target]
                or (row[movie] == row[target] and (movie not in wanted or movie < target))
                for movie in allowed
                if movie != target
            )
            places.append(ahead + 1)
        places = sorted(place for place in places if place <= k)
        gain = sum(1 / math.log2(place + 1) for place in places)
        best = sum(1 / math.log2(place + 1) for place in range(1, min(len(wanted), k) + 1))
        rows.append((float(bool(places)), gain / best, 1 / places[0] if places else 0.0))
    return np.array(rows)


@st.composite
def cases(draw):
    num_users, num_movies = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    movies = st.integers(1, num_movies)
    histories = [draw(st.lists(movies, max_size=6)) for _ in range(num_users)]
    targets = [draw(st.sets(movies, min_size=1, max_size=4)) for _ in range(num_users)]
    level = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 1.0, 1.0 + 2**-50, 7.0, np.inf])
    row = st.lists(level, min_size=num_movies + 1, max_size=num_movies + 1)
    scores = [draw(row) for _ in range(num_users)]
    return np.array(scores), histories, targets, draw(st.integers(1, num_movies))


@given(cases(), st.booleans(), st.integers(1, 4))
def test_the_evaluator_agrees_with_brute_force(case, exclude_seen, batch_size):
    scores, histories, targets, k = case
    train = frame([(user + 1, m) for user, row in enumerate(histories) for m in row])
    test = frame([(user + 1, m) for user, row in enumerate(targets) for m in sorted(row)])
    split = Split(train, train.iloc[:0], test, len(scores), scores.shape[1] - 1)
    settings = {"exclude_seen": exclude_seen, "batch_size": batch_size, "num_resamples": 2}
    result = evaluate(lambda queries: scores[queries.user_ids - 1], split, k, **settings)
    expected = brute_force(scores, histories, targets, k, exclude_seen)
    actual = np.stack([result.per_user[name] for name in ("hit_rate", "ndcg", "mrr")], axis=1)
    np.testing.assert_allclose(actual, expected, atol=1e-12)
    means = [result.hit_rate, result.ndcg, result.mrr]
    np.testing.assert_allclose(means, expected.mean(axis=0), atol=1e-12)
    listed = set(result.recommendations.ravel().tolist()) - {0}
    assert result.coverage == pytest.approx(len(listed) / split.num_movies)
    for history, row in zip(histories, result.recommendations.tolist(), strict=True):
        real = [movie for movie in row if movie]
        assert len(set(real)) == len(real)
        assert not (exclude_seen and set(real) & set(history))


@given(cases())
def test_recommend_lists_the_best_allowed_movies_in_order(case):
    scores, histories, _, k = case
    items = np.array([m for row in histories for m in row], np.int32)
    offsets = np.cumsum([0, 0, *(len(row) for row in histories)])
    queries = Queries(np.arange(1, len(scores) + 1, dtype=np.int32), Histories(items, offsets))
    lists = recommend(lambda q: scores[q.user_ids - 1], queries, k, batch_size=2)
    assert lists.dtype == np.int32
    for row, history, best in zip(scores, histories, lists, strict=True):
        allowed = [m for m in range(1, len(row)) if m not in history]
        expected = sorted(allowed, key=lambda m: (-row[m], m))[:k]
        assert best.tolist() == expected + [0] * (k - len(expected))


@pytest.mark.parametrize("levels", [2, 30, 10_000])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_the_best_of_a_large_catalogue_are_found_with_and_without_ties(k, levels):
    """A catalogue large enough to be looked through group by group."""
    rng = np.random.default_rng([k, levels])
    scores = rng.integers(levels, size=(40, 401)).astype(np.float32)
    scores[0], scores[1], scores[2, 7:] = 1.0, -np.inf, -np.inf
    test = frame([(u, m) for u in range(1, 40) for m in (9, u)])
    split = Split(frame([]), frame([]), test, 39, 400)
    result = evaluate(lambda q: scores[q.user_ids], split, k, num_resamples=1)
    for user, best in zip(result.user_ids, result.recommendations, strict=True):
        row, late = scores[user], {9, user}
        expected = sorted(range(1, 401), key=lambda m: (-row[m], m in late, m))
        assert best.tolist() == expected[:k]


# agreement with other libraries ---------------------------------------------------------------


def random_case(num_users=60, num_movies=40, seed=0):
    rng = np.random.default_rng(seed)
    ratings = frame([(u + 1, m + 1) for u in range(num_users) for m in rng.permutation(40)[:8]])
    split = leave_one_out(ratings, num_movies=num_movies)
    return split, rng.normal(size=(num_users + 1, num_movies + 1)).astype(np.float32)


def test_the_numbers_agree_with_keras_rs():
    keras_rs = pytest.importorskip("keras_rs")
    split, scores = random_case()
    result = evaluate(lambda q: scores[q.user_ids], split, k=10)
    queries = queries_for(split)
    allowed = scores[queries.user_ids].copy()
    allowed[:, 0] = -1e9
    for row in range(len(queries)):
        allowed[row, queries.history(row)] = -1e9
    truth = np.zeros_like(allowed)
    truth[np.arange(len(queries)), split.test.sort_values("user_id")["movie_id"]] = 1.0
    for name, metric in (
        ("hit_rate", keras_rs.metrics.RecallAtK(k=10)),
        ("ndcg", keras_rs.metrics.NDCG(k=10)),
        ("mrr", keras_rs.metrics.MeanReciprocalRank(k=10)),
    ):
        metric.update_state(truth, allowed)
        assert float(metric.result()) == pytest.approx(getattr(result, name), abs=1e-6), name


def test_the_numbers_agree_with_ranx():
    """Another evaluator's figures of the lists of a case, both stored; see tests/data/README.md."""
    split, scores = random_case(seed=1)
    result = evaluate(lambda q: scores[q.user_ids], split, k=10)
    stored = json.loads((Path(__file__).parent / "data" / "ranx.json").read_text())
    lists = [stored["lists"][str(user)] for user in result.user_ids]
    assert lists == result.recommendations.tolist()
    targets = dict(zip(split.test["user_id"].astype(str), split.test["movie_id"], strict=True))
    assert targets == stored["targets"]
    for name, value in stored["metrics"].items():
        assert value == pytest.approx(getattr(result, name)), name


def test_win_rate_is_the_share_of_unseen_movies_behind_the_target():
    """Against one drawn movie a user, on average over many draws; exactly, a tie counting half."""
    split = one_user(num_movies=8)
    assert win_rate(scorer(9, 9, 9, 5, 6, 5, 4, 3), split) == (2 + 0.5) / 4
    assert win_rate(scorer(9, 9, 5, 6, 4, 5, 4, 3), split, on="validation") == (3 + 0.5) / 5
    assert win_rate(scorer(*[1.0] * 8), split) == 0.5
    assert win_rate(scorer(9, 0, 0, 0, 0, 0), one_user(target=1)) == 0.0
    split, scores = random_case()
    rng, queries = np.random.default_rng(0), queries_for(split)
    wins = []
    for row, user in enumerate(queries.user_ids):
        target = split.targets("test")[user]
        others = np.setdiff1d(np.arange(1, 41), [*queries.history(row), *target])
        wins.append(scores[user, target] > scores[user, rng.choice(others, 4000)])
    rates = [win_rate(lambda q: scores[q.user_ids], split, batch_size=n) for n in (1, 7, 512)]
    assert rates[0] == rates[1] == rates[2] == pytest.approx(np.mean(wins), abs=0.005)


# what a recommender may return ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "int8", "bool"])
def test_scores_of_any_number_type_are_ranked(dtype):
    result = evaluate(lambda q: scorer(0, 0, 0, 1, 0, 0)(q).astype(dtype), one_user(), k=1)
    assert result.hit_rate == 1.0


def test_scores_may_be_a_list_a_read_only_array_or_a_frame():
    split = one_user()
    row = [[0.0, 9, 9, 9, 5, 1, 1]]
    locked = np.array(row)
    locked.setflags(write=False)
    for scores in (row, locked, np.broadcast_to(locked[0], (1, 7)), pd.DataFrame(row)):
        assert evaluate(lambda q, scores=scores: scores, split, k=1).hit_rate == 1.0


def test_scores_of_a_recommender_are_left_as_they_were():
    scores = np.array([[0.0, 9, 9, 9, 5, 1, 1]])
    evaluate(lambda q: scores, one_user(), k=1)
    recommend(lambda q: scores, queries_for(one_user()), k=1)
    assert scores.tolist() == [[0.0, 9, 9, 9, 5, 1, 1]]


def test_whole_numbers_too_large_for_32_bit_floats_do_not_tie():
    large = 2**24  # the next float32 is two above
    scores = np.array([[0, 0, 0, 0, large + 1, large, 0]])
    assert evaluate(lambda q: scores, one_user(), k=1).hit_rate == 1.0


class TorchLike:
    """A tensor as PyTorch has them: NumPy reads it off the graph only, and no two-byte floats."""

    def __init__(self, rows, size=4, attached=True):
        self.rows, self.size, self.attached = rows, size, attached

    def detach(self):
        return TorchLike(self.rows, self.size, attached=False)

    def cpu(self):
        return self

    def element_size(self):
        return self.size

    def float(self):
        return TorchLike(self.rows, 4, self.attached)

    def __array__(self, dtype=None, copy=None):
        if self.attached or self.size == 2:
            raise TypeError("detach and widen it first")
        return np.array(self.rows, {4: np.float32, 8: np.float64}[self.size])


@pytest.mark.parametrize(("size", "tied"), [(2, True), (4, True), (8, False)])
def test_tensors_are_detached_and_widened_only_where_numpy_needs_it(size, tied):
    close = 1 + 1e-9  # more than 1 in eight bytes only
    scores = TorchLike([[0.0, 0, 0, 0, close, 1, 0]], size)
    assert evaluate(lambda q: scores, one_user(), k=1).hit_rate == (0.0 if tied else 1.0)


def test_a_score_that_is_no_number_is_reported_for_the_user_it_is_of():
    def second_is_nan(queries):
        scores = np.zeros((len(queries), 5))
        scores[1, 3] = np.nan
        return scores

    split = leave_one_out(frame([(user, movie) for user in (4, 7) for movie in (1, 2, 3, 4)]))
    with pytest.raises(ValueError, match="scored movie 3 NaN for user 7; look for a division"):
        evaluate(second_is_nan, split, k=1)


def test_scores_may_be_jax_tensors():
    jax_numpy = pytest.importorskip("jax.numpy")
    split, row = one_user(), [[0.0, 9, 9, 9, 5, 1, 1]]
    for scores in (jax_numpy.array(row), jax_numpy.array(row, dtype="bfloat16")):
        assert evaluate(lambda q, scores=scores: scores, split, k=1).hit_rate == 1.0


@pytest.mark.torch
def test_scores_may_be_torch_tensors_that_still_have_a_gradient():
    import torch

    split, row = one_user(), [[0.0, 9, 9, 9, 5, 1, 1]]
    for scores in (
        torch.tensor(row, requires_grad=True),
        torch.tensor(row, dtype=torch.bfloat16),
        torch.tensor(row, dtype=torch.float64),
        torch.tensor([[0, 9, 9, 9, 5, 1, 1]]),
    ):
        assert evaluate(lambda q, scores=scores: scores, split, k=1).hit_rate == 1.0


# intervals ------------------------------------------------------------------------------------


def half_hits():
    """Users 1, 3, 5, ... of 400 have their target on top; the others never."""
    ratings = frame([(u, m) for u in range(1, 401) for m in (1, 2, 3, 4)])
    split = leave_one_out(ratings, num_movies=20)

    def recommender(queries):
        scores = np.zeros((len(queries), 21))
        scores[:, 5:] = 1.0
        scores[:, 4] = np.where(queries.user_ids % 2, 2.0, 0.0)
        return scores

    return split, recommender


def test_intervals_are_those_of_a_binomial_share():
    split, recommender = half_hits()
    result = evaluate(recommender, split, num_resamples=4000)
    interval = result.metrics["hit_rate"]
    deviation = 1.96 * math.sqrt(0.25 / 400)
    assert interval.value == 0.5
    assert interval.low == pytest.approx(0.5 - deviation, abs=0.006)
    assert interval.high == pytest.approx(0.5 + deviation, abs=0.006)


def test_intervals_depend_on_the_seed_alone():
    split, recommender = half_hits()
    first, same, other = (
        evaluate(recommender, split, seed=seed, batch_size=size).metrics
        for seed, size in ((0, 1024), (0, 7), (1, 1024))
    )
    assert first == same
    assert first != other


@given(cases())
def test_intervals_hold_their_value(case):
    scores, _, targets, k = case
    test = frame([(user + 1, m) for user, row in enumerate(targets) for m in sorted(row)])
    split = Split(test.iloc[:0], test.iloc[:0], test, len(scores), scores.shape[1] - 1)
    result = evaluate(lambda q: scores[q.user_ids - 1], split, k, num_resamples=200)
    for interval in (result.metrics[name] for name in result.per_user):
        assert 0 <= interval.low <= interval.value + 1e-12
        assert interval.value <= interval.high + 1e-12 <= 1 + 2e-12


def test_coverage_is_a_share_without_an_interval():
    """Movies 1 to 3 are in everybody's list; 60 others in one list each."""
    ratings = frame([(user, 100) for user in range(1, 61)])
    split = Split(ratings.iloc[:0], ratings.iloc[:0], ratings, 60, 100)

    def recommender(queries):
        scores = np.zeros((len(queries), 101))
        scores[:, 1:4] = 2.0
        scores[np.arange(len(queries)), 10 + queries.user_ids] = 1.0
        return scores

    result = evaluate(recommender, split, k=4)
    assert result.metrics["coverage"] == Interval(0.63, None, None)
    everybody = evaluate(lambda q: np.tile(np.arange(101.0), (len(q), 1)), split, k=4)
    assert everybody.metrics["coverage"] == Interval(0.04)
    assert np.isnan(everybody.to_frame().loc["coverage@4", ["low", "high"]].astype(float)).all()


def test_intervals_are_those_of_the_definition():
    """Draw the users as the evaluator does, and look each resample up."""
    split, scores = random_case(num_users=9)
    result = evaluate(
        lambda q: scores[q.user_ids], split, 2, exclude_seen=False, num_resamples=70, seed=5
    )
    rng = np.random.default_rng(5)
    drawn = np.concatenate([rng.integers(9, size=(64, 9)), rng.integers(9, size=(6, 9))])
    for name, values in result.per_user.items():
        low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
        assert result.metrics[name].low == pytest.approx(low)
        assert result.metrics[name].high == pytest.approx(high)


# display --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results():
    split, good = half_hits()
    return {
        "good": evaluate(good, split),
        "bad <1>": evaluate(lambda q: np.zeros((len(q), 21)), split),
    }


def test_an_interval_reads_as_value_and_bounds():
    assert str(Interval(0.2081, 0.1829, 0.2341)) == "0.208 [0.183, 0.234]"
    assert str(Interval(0.2081)) == "0.208"


def test_an_evaluation_displays_in_a_terminal_and_in_a_notebook():
    split, good = half_hits()
    result = evaluate(good, split, name="mine & yours", k=10)
    lines = str(result).splitlines()
    assert lines[0].strip() == "mine & yours"
    intervals = list(map(str, result.metrics.values()))
    headings = ["HR@10", "NDCG@10", "MRR@10", "coverage@10"]
    pairs = list(zip(headings, intervals, strict=True))
    assert [tuple(line.split(maxsplit=1)) for line in lines[1:5]] == pairs
    assert lines[5] == "400 users, test; 95 % bootstrap intervals over users"
    assert repr(result) == str(result)
    page = result._repr_html_()
    assert "<th>mine &amp; yours</th>" in page
    assert "<caption>400 users, test; 95 % bootstrap intervals over users</caption>" in page
    assert re.findall(r"<th>(.+)</th>\s*<td>(.+)</td>", page) == pairs
    table = result.to_frame()
    assert table.columns.tolist() == ["value", "low", "high"]
    assert table.loc["NDCG@10", "value"] == result.ndcg
    assert (result.num_users, result.k, result.on) == (400, 10, "test")


def test_a_comparison_marks_the_best_of_each_column(results):
    table = compare(results)
    assert table.to_frame().loc["good", "HR@10"] == 0.5
    assert table.to_frame().columns.tolist() == ["HR@10", "NDCG@10", "MRR@10", "coverage@10"]
    assert table.intervals().loc["good", "HR@10"] == results["good"].metrics["hit_rate"]
    assert table.to_frame().index.name == table.intervals().index.name == "model"
    head, good, bad = str(table).splitlines()[:3]
    assert head.split() == table.to_frame().columns.tolist()
    assert good.startswith("good")
    assert re.findall(r"\](\*?)", good) == ["*", "*", "*"]
    assert good.endswith(f"{results['good'].coverage:.3f}*")
    assert "*" not in bad
    assert str(table).endswith("bootstrap intervals over users; * best of its column")
    assert repr(table) == str(table)
    page = table._repr_html_()
    intervals = [*map(str, results["good"].metrics.values())]
    assert re.findall("<strong>(.+)</strong>", page) == intervals
    assert "bootstrap intervals over users; bold: best of its column</caption>" in page
    assert re.search(r"<th>bad &lt;1&gt;</th>\s*<td>0.000 \[0.000, 0.000\]</td>", page)


def test_a_long_name_is_not_cut(results):
    name = "a name that is much longer than the fifty characters of a pandas cell, and more"
    good = results["good"]
    for table in (compare({name: good}), dataclasses.replace(good, name=name)):
        assert name in str(table)
        assert name in table._repr_html_()


@pytest.mark.parametrize("ahead", [0.0, 1e-4])
def test_the_best_are_all_that_look_best(results, ahead):
    """0.5001 and 0.5002 both read 0.500."""
    one = results["good"]
    better = {**one.metrics, "ndcg": Interval(one.ndcg + ahead, 0.0, 1.0)}
    table = compare({"a": one, "b": dataclasses.replace(one, metrics=better)})
    assert [row.count("*") for row in str(table).splitlines()[1:3]] == [4, 4]


def test_the_defaults_are_those_the_book_states():
    split, good = half_hits()
    result = evaluate(good, split)
    assert (result.k, result.on, result.recommendations.shape) == (10, "test", (400, 10))
    assert result.metrics == evaluate(good, split, num_resamples=1000, seed=0).metrics
    assert recommend(good, queries_for(split)).shape == (400, 10)
    table = compare({"a": result, "b": evaluate(lambda q: 1.0 * good(q)[:, ::-1], split)})
    assert table.better("a", "b") == table.better("a", "b", "ndcg", num_resamples=1000, seed=0)
    nobody = Queries(np.zeros(0, np.int32), Histories(np.zeros(0, np.int32), np.array([0])))
    assert recommend(good, nobody).dtype == np.int32


def test_results_may_be_a_list_a_dict_or_one(results):
    first, second = (dataclasses.replace(results["good"], name=name) for name in "ab")
    assert list(compare([first, second]).evaluations) == ["a", "b"]
    assert list(compare({"x": first, "y": second}).evaluations) == ["x", "y"]
    assert list(compare(first).evaluations) == ["a"]


def test_a_recommender_is_called_by_its_name():
    def function(queries):
        return np.zeros((len(queries), 7))

    class Model:
        __call__ = staticmethod(function)

    class Named(Model):
        name = "my model"

    split = one_user()
    names = [evaluate(model, split, k=1).name for model in (Model(), Named(), function)]
    assert names == ["Model", "my model", "function"]
    assert evaluate(Named(), split, k=1, name="given").name == "given"


# paired comparison ----------------------------------------------------------------------------


def test_better_finds_a_clear_winner(results):
    table = compare(results)
    won = table.better("good", "bad <1>", "hit_rate")
    assert won.value == 0.5
    assert won.low == pytest.approx(0.45, abs=0.01)
    assert won.high == pytest.approx(0.55, abs=0.01)
    assert (won.probability, won.is_clear) == (1.0, True)
    assert str(won).startswith("good beats bad <1>: HR@10 differs by +0.500 [+0.4")
    assert "good is ahead in 100.0% of the resamples" in str(won)
    lost = table.better("bad <1>", "good", "hit_rate")
    assert (lost.value, lost.probability, lost.is_clear) == (-0.5, 0.0, True)
    assert (lost.low, lost.high) == (-won.high, -won.low)
    assert str(lost).startswith("bad <1> loses to good: ")


def test_a_model_is_not_better_than_itself(results):
    tie = compare({"a": results["good"], "b": results["good"]}).better("a", "b")
    assert (tie.value, tie.low, tie.high, tie.probability) == (0.0, 0.0, 0.0, 0.5)
    assert not tie.is_clear
    assert str(tie).startswith("a is not told from b: NDCG@10")


def test_better_pairs_the_users():
    """Two models that differ on few users: pairing gives a far narrower interval than each has."""
    split, good = half_hits()

    def slightly_better(queries):
        scores = good(queries)
        scores[queries.user_ids % 20 == 0, 4] = 2.0
        return scores

    table = compare({"a": evaluate(slightly_better, split), "b": evaluate(good, split)})
    difference = table.better("a", "b", "hit_rate")
    assert difference.value == pytest.approx(0.05)
    assert difference.low > 0.025
    alone = table.evaluations["a"].metrics["hit_rate"]
    assert difference.high - difference.low < 0.6 * (alone.high - alone.low)
    assert difference == table.better("a", "b", "hit_rate")
    few = [table.better("a", "b", "hit_rate", num_resamples=3, seed=seed) for seed in (0, 1)]
    assert few[0] != few[1]


# what a model says it was trained on ---------------------------------------------------------


def says(interactions, name="mine"):
    return Trained(lambda q: np.zeros((len(q), 11)), interactions, name)


@pytest.fixture(scope="module")
def three_users():
    """Each watches five of ten movies; the last is test, the one before validation."""
    return leave_one_out(frame([(u, u + m) for u in (1, 2, 3) for m in range(5)]), num_movies=10)


def test_what_was_trained_on_the_past_is_measured(three_users):
    split = three_users
    past = pd.concat([split.train, split.validation])
    assert evaluate(says(split.train), split, on="validation").name == "mine"
    assert evaluate(says(split.train), split).num_users == 3
    assert evaluate(says(past), split).num_users == 3
    assert win_rate(says(past), split) == 0.5
    assert says(past).leaked(split, "test").tolist() == []
    assert says(past).leaked(split, "validation").tolist() == [1, 2, 3]


@pytest.mark.parametrize("on", ["test", "validation"])
def test_one_pair_of_the_part_asked_about_is_a_leak(three_users, on):
    split = three_users
    leaking = says(pd.concat([split.train, getattr(split, on).query("user_id == 2")]))
    message = f"mine was trained on the {on} target of 1 of 3 users, user 2 first; .*allow_leak"
    for measure in (evaluate, win_rate):
        with pytest.raises(ValueError, match=message):
            measure(leaking, split, on=on)
    result = evaluate(leaking, split, on=on, allow_leak=True)
    assert (result.num_users, result.on) == (3, on)


def test_the_same_movie_of_another_user_is_no_leak(three_users):
    other = frame([(1, 7), (3, 6)])  # the targets of users 3 and 2, watched by somebody else
    assert three_users.test["movie_id"].tolist() == [5, 6, 7]
    assert says(other).leaked(three_users, "test").tolist() == []


def test_a_movie_beyond_the_catalogue_accuses_nobody(three_users):
    other = frame([(1, 16)])  # of 10 movies: 1 * 11 + 16 is the number of user 2 and movie 5
    beyond = dataclasses.replace(three_users, test=three_users.test.assign(movie_id=[5, 5, 5]))
    assert says(other).leaked(beyond, "test").tolist() == []


def test_a_part_without_interactions_has_no_leak_and_is_refused(three_users):
    none = dataclasses.replace(three_users, validation=three_users.validation[:0], order=None)
    assert says(none.train).leaked(none, "validation").tolist() == []
    with pytest.raises(ValueError, match="validation has no interactions"):
        evaluate(says(none.train), none, on="validation")


def test_a_movie_known_before_is_no_leak_until_it_is_counted_once_more():
    split = leave_one_out(frame([(1, 4), (1, 2), (1, 3), (1, 4)]), num_movies=10)
    past = pd.concat([split.train, split.validation])
    assert split.test["movie_id"].tolist() == [4]
    assert says(past).leaked(split, "test").tolist() == []
    twice = says(pd.concat([past, split.test]))
    assert twice.leaked(split, "test").tolist() == [1]
    with pytest.raises(ValueError, match="the test target of 1 of 1 users, user 1 first"):
        evaluate(twice, split)
    assert says(past.iloc[:0]).leaked(split, "test").tolist() == []


def test_a_leak_among_several_targets_counts_its_user_once():
    rows = frame([(1, 1), (2, 1), (1, 2), (1, 3), (2, 3)])
    split = temporal_split(rows, cutoff=2, num_movies=10)
    assert says(rows).leaked(split, "test").tolist() == [1, 2]
    with pytest.raises(ValueError, match="the test target of 1 of 2 users, user 2 first"):
        evaluate(says(rows.iloc[[0, 1, 4]]), split)


def test_the_parts_of_a_mixture_are_asked_however_deep(three_users):
    honest, leaking = says(three_users.train), says(three_users.test, "the leaking part")
    for mixture in (
        Mixture(honest, leaking, 0.5),
        Mixture(leaking, honest, 0.5),
        Mixture(Mixture(honest, leaking, 1.0), honest, 2.0),
    ):
        with pytest.raises(ValueError, match="the leaking part was trained on the test target"):
            evaluate(mixture, three_users)
        assert evaluate(mixture, three_users, on="validation").num_users == 3
        assert evaluate(mixture, three_users, allow_leak=True).num_users == 3
    assert evaluate(Mixture(honest, honest, 0.5), three_users).num_users == 3


def test_allow_leak_lets_a_baseline_through_as_well(three_users):
    model = Popularity().fit(three_users, include_validation=True)
    with pytest.raises(ValueError, match="was fitted on train and validation"):
        evaluate(model, three_users, on="validation")
    assert evaluate(model, three_users, on="validation", allow_leak=True).num_users == 3


def test_trained_is_called_and_named_as_what_it_holds(three_users):
    def scorer_of_mine(queries):
        return np.tile(np.arange(11.0), (len(queries), 1))

    model = Trained(scorer_of_mine, three_users.train)
    assert model.name == "scorer_of_mine"
    queries = queries_for(three_users)
    np.testing.assert_array_equal(model(queries), scorer_of_mine(queries))


# cost -----------------------------------------------------------------------------------------


def large_split(num_users):
    users = np.repeat(np.arange(1, num_users + 1), 30)
    movies = np.random.default_rng(0).integers(1, 3707, len(users))
    return leave_one_out(frame(np.stack([users, movies], axis=1)), num_movies=3706)


def peak_of_evaluating(split):
    row = np.random.default_rng(0).normal(size=split.num_movies + 1).astype(np.float32)
    tracemalloc.start()
    scores = np.broadcast_to(row, (64, len(row)))
    evaluate(lambda q: scores[: len(q)], split, batch_size=64, num_resamples=64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_goes_with_the_batch_and_not_with_users_times_movies():
    few, many = (peak_of_evaluating(large_split(users)) for users in (500, 4000))
    dense = 4000 * 3706 * 4
    assert many < dense / 2
    assert many - few < 0.2 * dense


def test_a_catalogue_of_movielens_1m_is_evaluated_in_seconds():
    split = large_split(6040)
    row = np.random.default_rng(0).normal(size=(6041, 32)).astype(np.float32)
    movies = np.random.default_rng(1).normal(size=(32, 3707)).astype(np.float32)
    start = time.process_time()
    evaluate(lambda q: row[q.user_ids] @ movies, split)
    assert time.process_time() - start < 10  # about one second; generous for a busy machine


def test_evaluating_in_batches_of_any_size_gives_the_same():
    split, scores = random_case()
    one, *others = (
        evaluate(lambda q: scores[q.user_ids], split, batch_size=size) for size in (1, 7, 60, 999)
    )
    for other in others:
        assert one.metrics == other.metrics
        np.testing.assert_array_equal(one.recommendations, other.recommendations)
