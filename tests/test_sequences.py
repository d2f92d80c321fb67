import itertools
import time
import tracemalloc
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectutor import PADDING_ID, sequences
from rectutor.sequences import (
    Histories,
    histories,
    last_window,
    sample_negatives,
    sliding_windows,
    training_windows,
)

LISTS = st.lists(st.lists(st.integers(1, 9), max_size=12), min_size=1, max_size=6)


def flat(lists):
    """Histories of users 1, 2, ... from plain lists."""
    items = np.array([movie for movies in lists for movie in movies], np.int32)
    return Histories(items, np.cumsum([0, 0, *map(len, lists)]))


def frame(users, movies, times):
    return pd.DataFrame({"user_id": users, "movie_id": movies, "timestamp": times})


def ratings_of(count, seed=0):
    """Random interactions, unsorted, of the shape of MovieLens 1M."""
    rng = np.random.default_rng(seed)
    return frame(
        rng.integers(1, 6041, count).astype(np.int32),
        rng.integers(1, 3707, count).astype(np.int32),
        rng.integers(950_000_000, 1_050_000_000, count),
    )


def loop_training_windows(ratings, length):
    """The same as `training_windows(histories(ratings), length)`, a row at a time."""
    movies_of = {}
    for row in ratings.itertuples():
        movies_of.setdefault(row.user_id, []).append((row.timestamp, row.movie_id))
    inputs, targets = [], []
    for user in sorted(movies_of):
        movies = [movie for _, movie in sorted(movies_of[user], key=lambda pair: pair[0])]
        for end in reversed(range(len(movies) - 1, 0, -length)):
            start = max(0, end - length)
            padding = [PADDING_ID] * (length - (end - start))
            inputs.append(padding + movies[start:end])
            targets.append(padding + movies[start + 1 : end + 1])
    return inputs, targets


class TestHistories:
    def test_movies_are_in_time_order_and_ties_keep_theirs(self):
        found = histories(frame([2, 1, 2, 2, 1], [5, 6, 7, 8, 9], [30, 20, 10, 30, 20]))
        assert [found[user].tolist() for user in range(3)] == [[], [6, 9], [7, 5, 8]]
        assert found.num_users == 2
        assert found.lengths.tolist() == [0, 2, 3]
        assert found.items.dtype == np.int32
        assert found.offsets.dtype == np.int64

    def test_users_without_movies_have_empty_rows(self):
        found = histories(frame([3], [5], [1]), num_users=5)
        assert found.lengths.tolist() == [0, 0, 0, 1, 0, 0]
        empty = frame([1], [1], [1]).iloc[:0]
        assert histories(empty, num_users=2).lengths.tolist() == [0, 0, 0]
        assert histories(empty, num_users=0).lengths.tolist() == [0]

    def test_ids_may_be_as_large_as_32_bits_hold(self):
        assert histories(frame([1], [2**31 - 2], [1]))[1].tolist() == [2**31 - 2]

    def test_times_that_just_do_not_fit_one_key_with_user_and_row(self):
        """Two bits for the user, 60 for the time and two for the row are one too many."""
        found = histories(frame([2, 1, 1], [5, 6, 7], [2**59, 3, 0]))
        assert [found[user].tolist() for user in (1, 2)] == [[7, 6], [5]]

    @pytest.mark.parametrize(
        "times",
        [
            [0.25, 0.5, 0.125],
            [np.int64(2**62), np.int64(2**62) + 5, -(2**62)],
            pd.to_datetime(["1998-03-01", "1999-01-01", "1970-01-01"]),
            [-5, -4, -6],
        ],
    )
    def test_any_clock_will_do(self, times):
        assert histories(frame([1, 1, 1], [7, 8, 9], times))[1].tolist() == [9, 7, 8]

    @given(
        st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(0, 3)), min_size=1),
        st.sampled_from([1, 2**40, 2**58, 2**60]),
    )
    def test_same_as_sorting_rows(self, rows, step):
        users, movies, times = map(list, zip(*rows, strict=True))
        found = histories(frame(users, movies, [time * step for time in times]))
        for user in range(1, max(users) + 1):
            own = sorted((time, n) for n, time in enumerate(times) if users[n] == user)
            assert found[user].tolist() == [movies[n] for _, n in own]


class TestSlidingWindows:
    def test_worked_example(self):
        contexts, targets = sliding_windows(flat([[4, 5, 6, 7], [8, 9]]), length=2)
        assert contexts.tolist() == [[4, 0], [4, 5], [5, 6]]
        assert targets.tolist() == [5, 6, 7]

    def test_users_of_the_windows(self):
        _, _, users = sliding_windows(flat([[1, 2, 3], [4], [5, 6, 7]]), 2, return_users=True)
        assert users.tolist() == [1, 1, 3, 3]
        assert users.dtype == np.int32

    @given(LISTS, st.integers(1, 14), st.integers(2, 6), st.sampled_from(["before", "after"]))
    def test_same_as_slicing_lists(self, lists, length, min_length, padding):
        contexts, targets = sliding_windows(flat(lists), length, min_length, padding)
        expected = []
        for movies in lists:
            for at in range(1, len(movies) if len(movies) >= min_length else 0):
                context = movies[max(0, at - length) : at]
                zeros = [PADDING_ID] * (length - len(context))
                row = zeros + context if padding == "before" else context + zeros
                expected.append((row, movies[at]))
        assert list(zip(contexts.tolist(), targets.tolist(), strict=True)) == expected
        assert contexts.shape == (len(expected), length)
        assert contexts.dtype == targets.dtype == np.int32


class TestTrainingWindows:
    def test_worked_example(self):
        inputs, targets = training_windows(flat([[1, 2, 3, 4, 5, 6], [7]]), length=3)
        assert inputs.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert targets.tolist() == [[0, 2, 3], [4, 5, 6]]

    def test_a_smaller_stride_overlaps_and_keeps_the_latest(self):
        inputs, targets = training_windows(flat([[1, 2, 3, 4, 5, 6]]), length=3, stride=1)
        assert inputs.tolist() == [[1, 2, 3], [2, 3, 4], [3, 4, 5]]
        assert targets.tolist() == [[2, 3, 4], [3, 4, 5], [4, 5, 6]]

    def test_users_of_the_windows(self):
        _, _, users = training_windows(flat([[1, 2, 3], [4], [5, 6]]), 1, return_users=True)
        assert users.tolist() == [1, 1, 3]

    @given(LISTS, st.integers(1, 14), st.data())
    def test_targets_follow_inputs_and_padding_is_left(self, lists, length, data):
        stride = data.draw(st.integers(1, length))
        inputs, targets, users = training_windows(flat(lists), length, stride, return_users=True)
        assert inputs.shape == targets.shape == (len(users), length)
        assert inputs.dtype == targets.dtype == users.dtype == np.int32
        assert ((inputs == PADDING_ID) == (targets == PADDING_ID)).all()
        assert (np.diff(inputs != PADDING_ID, axis=1) >= 0).all()
        assert (inputs[:, 1:][inputs[:, :-1] > 0] == targets[:, :-1][inputs[:, :-1] > 0]).all()
        for user, movies in enumerate(lists, start=1):
            own = inputs[users == user], targets[users == user]
            assert len(own[0]) == (len(movies) > 1) * (
                max(0, -(-(len(movies) - 1 - length) // stride)) + 1
            )
            if len(movies) > 1:
                tail = movies[-length - 1 :]
                assert own[1][-1][own[1][-1] > 0].tolist() == tail[1:]
                assert own[0][-1][own[0][-1] > 0].tolist() == tail[:-1]

    @given(LISTS, st.integers(1, 14))
    def test_without_overlap_every_pair_is_there_once(self, lists, length):
        inputs, targets = training_windows(flat(lists), length)
        found = Counter(zip(inputs.ravel().tolist(), targets.ravel().tolist(), strict=True))
        found.pop((PADDING_ID, PADDING_ID), None)
        assert found == Counter(pair for one in lists for pair in itertools.pairwise(one))

    def test_same_as_a_loop_on_real_sizes(self):
        ratings = ratings_of(20_000)
        expected = loop_training_windows(ratings, 7)
        for found, loop in zip(training_windows(histories(ratings), 7), expected, strict=True):
            assert found.tolist() == loop

    def test_a_million_ratings_in_half_a_second(self):
        """The loop's time is scaled up from a tenth of the ratings; the rest is in benchmarks/."""
        ratings = ratings_of(1_000_000)
        small = ratings.iloc[:100_000]
        best = min(timed(lambda: training_windows(histories(ratings), 50)) for _ in range(10))
        loop = 10 * timed(lambda: loop_training_windows(small, 50))
        assert best < 0.5
        assert loop / best > 15  # a loaded machine's bound; see benchmarks/ for the real ratio

    def test_memory_stays_below_six_times_the_input(self):
        ratings = ratings_of(300_000)
        tracemalloc.start()
        training_windows(histories(ratings), 50)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 6 * ratings.memory_usage(index=False).sum()


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class TestLastWindow:
    @given(LISTS, st.integers(1, 14))
    def test_same_as_slicing_lists(self, lists, length):
        left = last_window(flat(lists), length)
        right = last_window(flat(lists), length, padding="after")
        for row, movies in enumerate([[], *lists]):
            kept = movies[-length:]
            zeros = [PADDING_ID] * (length - len(kept))
            assert left[row].tolist() == zeros + kept
            assert right[row].tolist() == kept + zeros
        chosen = [len(lists), 0, 1, 1]
        np.testing.assert_array_equal(last_window(flat(lists), length, users=chosen), left[chosen])

    def test_rows_are_of_32_bits_whatever_the_movies_are(self):
        wide = Histories(np.array([4, 5, 6], np.int64), np.array([0, 0, 3]))
        assert last_window(wide, 2).dtype == np.int32
        assert all(part.dtype == np.int32 for part in sliding_windows(wide, 2))


class TestSampleNegatives:
    @given(LISTS, st.integers(0, 5), st.sampled_from([0.0, 0.75, 1.0, -1.0, 40.0]))
    def test_never_a_positive_and_always_a_movie(self, lists, count, alpha):
        found = sample_negatives(flat(lists), 10, count, seed=1, alpha=alpha)
        assert (found.shape, found.dtype) == ((len(lists) + 1, count), np.int32)
        assert ((found >= 1) & (found <= 10)).all()
        for row, movies in enumerate(lists, start=1):
            assert not set(found[row]) & set(movies)

    def test_rows_for_chosen_users(self):
        found = sample_negatives(flat([[1, 2], [2, 3]]), 3, 4, seed=0, users=[2, 1, 2])
        assert found.tolist() == [[1] * 4, [3] * 4, [1] * 4]

    def test_a_catalogue_of_one_movie(self):
        nobody = Histories(np.zeros(0, np.int32), np.array([0, 0]))
        assert sample_negatives(nobody, 1, 2, seed=0).tolist() == [[1, 1]]

    def test_draws_are_uniform_unless_asked(self):
        popular = flat([[1, 2, 3], [1, 2], [1, 2], [4]])
        uniform = sample_negatives(popular, 9, 50, seed=0, alpha=0.0)
        assert np.array_equal(sample_negatives(popular, 9, 50, seed=0), uniform)
        assert not np.array_equal(sample_negatives(popular, 9, 50, seed=0, alpha=1.0), uniform)

    def test_weights_of_a_large_catalogue_neither_overflow_nor_round_away(self):
        """Movie 1 of 2,000 is watched nine times, the others never."""
        many = flat([[1]] * 9 + [[2]])
        draws = sample_negatives(many, 2000, 100_000, seed=3, alpha=1.0, users=[10])
        assert ((draws >= 1) & (draws <= 2000)).all()
        assert np.mean(draws == 1) == pytest.approx(9 / 2007, rel=0.15)
        assert len(np.unique(draws)) > 1950

    def test_a_steep_power_of_popularity_neither_overflows_nor_loses_a_movie(self):
        steep = sample_negatives(flat([[1]] * 1000 + [[2]]), 5, 20, 0, users=[1, 1001], alpha=60.0)
        assert set(steep[1]) == {1}
        assert set(steep[0]) == {2, 3, 4, 5}

    def test_weights_leave_room_for_many_users(self):
        many = flat([[1 + user % 5, 6 + user % 3] for user in range(20_000)])
        draws = sample_negatives(many, 20, 2, seed=0, alpha=1.0)
        watched = [(1 + user % 5, 6 + user % 3) for user in range(20_000)]
        assert ((draws >= 1) & (draws <= 20)).all()
        assert not (draws[1:, :, None] == np.array(watched)[:, None, :]).any()

    @given(LISTS, st.integers(1, 60), st.sampled_from([0.0, 1.0]))
    def test_however_many_users_share_a_table(self, lists, cells, alpha):
        users = [*range(len(lists)), *reversed(range(len(lists)))]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sequences, "_TABLE_CELLS", cells)
            found = sample_negatives(flat(lists), 10, 3, seed=1, users=users, alpha=alpha)
        for row, user in enumerate(users):
            watched = set(lists[user - 1]) if user else set()
            assert not set(found[row]) & watched

    def test_one_movie_left_among_many(self):
        everything = list(range(1, 3000))
        assert set(sample_negatives(flat([everything]), 3000, 50, seed=0)[1]) == {3000}

    @pytest.mark.parametrize("tries", [0, 1, 8])
    @pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
    def test_draws_follow_the_weights(self, alpha, tries, monkeypatch):
        """However many are drawn again from all movies, and however few from the line."""
        monkeypatch.setattr(sequences, "_TRIES", tries)
        lists = [[1, 2, 3, 4], [1, 2, 3], [1, 2], [1], [5]]
        counts = np.array([4, 3, 2, 1, 1, 1])  # of movies 1 to 6; nobody watched movie 6
        draws = sample_negatives(flat(lists), 6, 60_000, seed=3, alpha=alpha)
        expected = counts[[1, 2, 3, 4, 5]] ** alpha
        shares = np.bincount(draws[4], minlength=7)[2:] / 60_000
        np.testing.assert_allclose(shares, expected / expected.sum(), atol=0.01)

    def test_the_seed_decides(self):
        one = flat([[1, 2]])
        same = [sample_negatives(one, 50, 20, seed=seed) for seed in (5, 5, 6)]
        assert (same[0] == same[1]).all()
        assert (same[0] != same[2]).any()
        generator = np.random.default_rng(5)
        assert (sample_negatives(one, 50, 20, generator) == same[0]).all()
        assert (sample_negatives(one, 50, 20, generator) != same[0]).any()

    def test_a_user_who_has_seen_everything_is_named(self):
        with pytest.raises(ValueError, match="user 2 has watched all 3 movies"):
            sample_negatives(flat([[1], [1, 2, 3]]), 3, 1, seed=0)
        assert sample_negatives(flat([[1], [1, 2, 3]]), 3, 1, seed=0, users=[1]).shape == (1, 1)
        assert sample_negatives(flat([[1, 2, 3]]), 3, 0, seed=0).shape == (2, 0)

    def test_a_million_interactions_quickly(self):
        found = histories(ratings_of(1_000_000))
        assert min(timed(lambda: sample_negatives(found, 3706, 100, seed=0)) for _ in range(3)) < 2


ONE = flat([[1, 2, 3]])


RATING = frame([1], [1], [1])
REFUSED = [
    (lambda: histories([1, 2]), TypeError, "got a list; give a pandas DataFrame"),
    (lambda: histories(RATING.drop(columns="user_id")), ValueError, "user_id"),
    (lambda: histories(RATING.drop(columns="movie_id")), ValueError, "movie_id"),
    (lambda: histories(RATING.drop(columns="timestamp")), ValueError, "timest"),
    (lambda: histories(RATING.iloc[:0]), ValueError, "pass num_users"),
    (lambda: histories(frame([1.5], [1], [1])), TypeError, "column user_id is float64, as in"),
    (lambda: histories(frame([1], ["Jaws"], [1])), TypeError, "column movie_id is"),
    (lambda: histories(frame([1, 0], [1, 1], [1, 1])), ValueError, "user_id 0 in row 1"),
    (lambda: histories(frame([1], [-7], [1])), ValueError, "movie_id -7 in row 0 is no id"),
    (lambda: histories(frame([1], [2**40], [1])), ValueError, "movie_id 1099511627776 in row 0"),
    (lambda: histories(frame([1], [1], [np.nan])), ValueError, "timestamp is missing in row 0"),
    (
        lambda: histories(frame([1, 1], [1, 2], [1.0, np.nan])),
        ValueError,
        "timestamp is missing in row 1",
    ),
    (lambda: histories(frame([1], [1], [pd.NaT])), ValueError, "timestamp is missing in row 0"),
    (lambda: histories(frame([1], [1], ["noon"])), TypeError, "column timestamp is"),
    (lambda: histories(frame([5], [1], [1]), num_users=3), ValueError, "above num_users=3"),
    (lambda: histories(RATING, num_users=-1), ValueError, "num_users is -1; it must be at least 0"),
    (lambda: ONE[-1], IndexError, "no user -1"),
    (lambda: ONE[2], IndexError, "ids run from 0 to 1"),
    (lambda: Histories(np.arange(3), np.array([0, 2])), ValueError, "end with the number"),
    (lambda: Histories(np.arange(3), np.array([0, 2, 1, 3])), ValueError, "never decrease"),
    (lambda: Histories(np.arange(3), np.array([], int)), ValueError, "must not be empty"),
    (lambda: Histories(np.zeros((2, 2)), np.array([0, 2])), ValueError, "flat arrays"),
    (lambda: sliding_windows(ONE, 0), ValueError, "length is 0; it must be at least 1"),
    (
        lambda: sliding_windows(ONE, 2, min_length=1),
        ValueError,
        "min_length is 1; it must be at least 2",
    ),
    (
        lambda: sliding_windows(ONE, 2, padding="left"),
        ValueError,
        r"is 'left'; choose from \['before', 'after'\]",
    ),
    (lambda: sliding_windows(ONE, 2.0), TypeError, "length is 2.0; give a whole number"),
    (lambda: training_windows(ONE, 0), ValueError, "length is 0"),
    (lambda: training_windows(ONE, True), TypeError, "length is True"),
    (lambda: training_windows(ONE, 2, stride=0), ValueError, "stride is 0"),
    (lambda: training_windows(ONE, 2, stride=3), ValueError, "would skip movies"),
    (lambda: last_window(ONE, 0), ValueError, "length is 0"),
    (lambda: last_window(ONE, "5"), TypeError, "length is '5'"),
    (lambda: last_window(ONE, 5, users=[2]), ValueError, "users holds 2"),
    (lambda: last_window(ONE, 5, padding="pre"), ValueError, "padding is 'pre'"),
    (lambda: sample_negatives(ONE, 2, 1, 0), ValueError, "movie 3, above num_movies=2"),
    (lambda: sample_negatives(ONE, 0, 1, 0), ValueError, "num_movies is 0"),
    (lambda: sample_negatives(ONE, 5, -1, 0), ValueError, "count is -1"),
    (
        lambda: sample_negatives(ONE, 5, 1, 0, users=[2]),
        ValueError,
        "users holds 2; each must be from 0 to 1",
    ),
    (lambda: sample_negatives(ONE, 5, 1, 0, users=[0.5]), TypeError, "dtype float64"),
    (lambda: sample_negatives(ONE, 5, 1, 0, users=[[1]]), TypeError, r"shape \(1, 1\)"),
    (
        lambda: sample_negatives(ONE, 5, 1, 0, alpha=np.nan),
        ValueError,
        "alpha is nan; it must be finite",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_bad_input_is_named_with_its_remedy(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_empty_histories_give_empty_arrays():
    nobody = flat([[]])
    assert training_windows(nobody, 5)[0].shape == (0, 5)
    assert sliding_windows(nobody, 5)[0].shape == (0, 5)
    assert last_window(nobody, 5).tolist() == [[0] * 5] * 2
    assert sample_negatives(nobody, 4, 3, seed=0, users=[]).shape == (0, 3)
