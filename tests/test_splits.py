"""Splits put every row in exactly one part, and the right one."""

import dataclasses

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given

from rectutor import splits
from rectutor.data import synthetic
from rectutor.splits import Split, leave_one_out, random_split, temporal_split


def frame(*rows):
    """(user, movie, time) triples as ratings, with a label for each row."""
    ratings = pd.DataFrame(rows, columns=["user_id", "movie_id", "timestamp"])
    return ratings.assign(row=np.arange(len(rows)))


def rows_of(split):
    """The row labels of (train, validation, test)."""
    return tuple(part["row"].tolist() for part in (split.train, split.validation, split.test))


triples = st.lists(
    st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(0, 5)), min_size=1, max_size=40
)


# leave_one_out ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([(1, 5, 10), (1, 6, 20), (1, 7, 30), (1, 8, 40)], ([0, 1], [2], [3])),
        ([(1, 1, 0), (1, 2, 1), (1, 3, 2)], ([0], [1], [2])),  # three are enough,
        ([(2, 1, 0), (7, 1, 0), (7, 2, 1)], ([0, 1, 2], [], [])),  # one or two are not
        ([(2, 1, 0), (2, 2, 1), (7, 1, 0), (7, 2, 1)], ([0, 1, 2, 3], [], [])),
        (
            [(2, 1, 3), (1, 5, 30), (2, 2, 1), (1, 6, 10), (1, 7, 20), (2, 3, 2)],
            ([2, 3], [4, 5], [0, 1]),
        ),
        ([(1, 9, 7), (1, 3, 7), (1, 5, 7), (1, 1, 7)], ([0, 1], [2], [3])),  # ties: file order
    ],
)
def test_leave_one_out_holds_out_the_last_and_the_one_before(rows, parts):
    split = leave_one_out(frame(*rows))
    assert rows_of(split) == parts
    assert split.num_users == max(user for user, _, _ in rows)
    assert split.num_movies == max(movie for _, movie, _ in rows)


@given(triples)
def test_leave_one_out_matches_the_loop_that_defines_it(rows):
    ratings = frame(*rows)
    expected = ([], [], [])
    for _, group in ratings.groupby("user_id"):
        labels = group.sort_values("timestamp", kind="stable")["row"].tolist()
        if len(labels) < 3:
            expected[0].extend(labels)
        else:
            expected[0].extend(labels[:-2])
            expected[1].append(labels[-2])
            expected[2].append(labels[-1])
    assert rows_of(leave_one_out(ratings)) == tuple(sorted(part) for part in expected)


# every split --------------------------------------------------------------------------------


@given(triples, st.data())
def test_no_row_is_lost_or_duplicated_and_columns_stay(rows, data):
    ratings = frame(*rows)
    splits = [leave_one_out(ratings)]
    if len(rows) > 1:
        sizes = data.draw(st.integers(1, len(rows) - 1))
        splits.append(random_split(ratings, sizes=(sizes, len(rows) - sizes), seed=1))
    times = sorted({time for _, _, time in rows})
    if len(times) > 1:
        splits.append(temporal_split(ratings, cutoff=data.draw(st.sampled_from(times[1:]))))
    for split in splits:
        parts = (split.train, split.validation, split.test)
        pd.testing.assert_frame_equal(pd.concat(parts).sort_values("row"), ratings)
        for part in parts:
            assert part["row"].is_monotonic_increasing
            assert (part.dtypes == ratings.dtypes).all()


def test_splits_keep_index_labels_and_do_not_touch_the_ratings():
    ratings = frame((1, 1, 3), (1, 2, 2), (1, 3, 1))
    ratings.index = pd.Index(["a", "b", "c"])
    before = ratings.copy()
    assert leave_one_out(ratings).test.index.tolist() == ["a"]
    assert temporal_split(ratings, cutoff=3).test.index.tolist() == ["a"]
    pd.testing.assert_frame_equal(ratings, before)


@pytest.mark.parametrize(
    "make", [leave_one_out, random_split, lambda r, **more: temporal_split(r, cutoff=2, **more)]
)
def test_the_world_may_be_larger_than_the_ratings(make):
    ratings = frame((1, 1, 1), (1, 2, 2), (1, 3, 3), (2, 4, 1))
    assert (make(ratings).num_users, make(ratings).num_movies) == (2, 4)
    larger = make(ratings, num_users=10, num_movies=20)
    assert (larger.num_users, larger.num_movies) == (10, 20)
    with pytest.raises(ValueError, match="movie_id 4, but the split is said to have only 3"):
        make(ratings, num_movies=3)
    with pytest.raises(ValueError, match=r"user_id \d, but the split is said to have only 0"):
        make(ratings, num_users=0)


def test_ids_may_be_as_large_as_32_bits_hold():
    largest = 2**31 - 2
    split = random_split(frame((1, 1, 0), (1, largest, 1), (largest, 1, 2)))
    assert (split.num_users, split.num_movies) == (largest, largest)


# random_split -------------------------------------------------------------------------------


def ten_rows():
    return frame(*[(1 + row % 3, 1 + row, row) for row in range(10)])


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({}, (8, 0, 2)),
        ({"test_fraction": 0.3}, (7, 0, 3)),
        ({"test_fraction": 0.26}, (7, 0, 3)),
        ({"sizes": (6, 4)}, (6, 0, 4)),
        ({"sizes": [5, 2, 3]}, (5, 2, 3)),
        ({"sizes": np.array([9, 1])}, (9, 0, 1)),
    ],
)
def test_random_split_makes_the_sizes_asked_for(settings, counts):
    split = random_split(ten_rows().drop(columns="timestamp"), **settings)
    assert tuple(len(part) for part in rows_of(split)) == counts


def test_random_split_depends_on_the_seed_and_on_nothing_else():
    ratings = ten_rows()
    assert rows_of(random_split(ratings)) == rows_of(random_split(ratings, seed=42))
    assert len({str(rows_of(random_split(ratings, seed=seed))) for seed in range(20)}) > 10


def test_random_split_deals_every_row_out_evenly():
    ratings = ten_rows()
    drawn = np.zeros(10)
    for seed in range(400):
        drawn[rows_of(random_split(ratings, sizes=(5, 5), seed=seed))[2]] += 1
    assert np.all(np.abs(drawn - 200) < 50)


# temporal_split -----------------------------------------------------------------------------


def test_temporal_split_tests_on_what_happens_at_or_after_the_cutoff():
    ratings = frame((1, 1, 5), (2, 2, 4), (1, 3, 3), (2, 4, 6))
    assert rows_of(temporal_split(ratings, cutoff=5)) == ([1, 2], [], [0, 3])


def test_temporal_split_by_fraction_takes_the_latest_and_keeps_ties_together():
    ratings = frame(*[(1, movie + 1, time) for movie, time in enumerate([1, 2, 3, 4, 4, 4, 5, 6])])
    assert rows_of(temporal_split(ratings, fraction=0.25))[2] == [6, 7]
    assert rows_of(temporal_split(ratings, fraction=0.375))[2] == [3, 4, 5, 6, 7]


def test_temporal_split_takes_validation_from_the_end_of_train():
    ratings = frame(*[(1, movie + 1, movie) for movie in range(10)])
    split = temporal_split(ratings, fraction=0.2, validation_fraction=0.3)
    assert rows_of(split) == ([0, 1, 2, 3, 4], [5, 6, 7], [8, 9])
    tied = frame((1, 1, 1), (1, 2, 2), (1, 3, 2), (1, 4, 3))
    split = temporal_split(tied, cutoff=3, validation_fraction=0.25)
    assert rows_of(split) == ([0], [1, 2], [3])


@given(triples, st.floats(0.05, 0.95))
def test_temporal_split_never_trains_on_the_future(rows, fraction):
    ratings = frame(*rows)
    try:
        split = temporal_split(ratings, fraction=fraction)
    except ValueError as error:
        assert "empty" in str(error) or "at least one" in str(error)  # noqa: PT017
        return
    assert split.train["timestamp"].max() < split.test["timestamp"].min()
    assert len(split.test) >= round(fraction * len(rows))


# Split --------------------------------------------------------------------------------------


def test_split_reads_as_its_sizes():
    sizes = "train=1 rows, validation=1 rows, test=1 rows, num_users=1, num_movies=3"
    assert repr(leave_one_out(frame((1, 1, 0), (1, 2, 1), (1, 3, 2)))) == f"Split({sizes})"


def test_split_checks_each_part():
    good = frame((1, 1, 0))
    bad = frame((1, 9, 0))
    for part in ("train", "validation", "test"):
        parts = {"train": good, "validation": good, "test": good, part: bad}
        with pytest.raises(ValueError, match=rf"Split\.{part} has movie_id 9"):
            Split(**parts, num_users=1, num_movies=8)
        with pytest.raises(TypeError, match=rf"Split\({part}=\.\.\.\) got a list"):
            Split(**{**parts, part: []}, num_users=1, num_movies=9)


def test_a_dataset_brings_its_sizes_and_titles():
    data = synthetic(20, 12, 150, seed=0)
    for split in (
        leave_one_out(data),
        random_split(data),
        temporal_split(data, fraction=0.2),
        random_split(leave_one_out(data), test_fraction=0.1, seed=43),
    ):
        assert (split.num_users, split.num_movies) == (20, 12)
        assert split.titles is data.titles
    assert leave_one_out(data, num_movies=15).num_movies == 15
    assert leave_one_out(data.ratings).titles is None


def test_a_split_is_dealt_out_anew_from_its_train_part():
    first = random_split(ten_rows(), num_movies=20)
    again, by_hand = random_split(first, 0.25, seed=3), random_split(first.train, 0.25, seed=3)
    assert rows_of(again) == rows_of(by_hand)
    assert again.num_movies == 20


# histories and targets ----------------------------------------------------------------------


def by_the_loop(parts, num_users):
    """Each user's movies by time, then by part, then by row."""
    known = pd.concat(parts).sort_values("timestamp", kind="stable")
    return [known.loc[known["user_id"] == u, "movie_id"].tolist() for u in range(num_users + 1)]


@given(triples, st.booleans())
def test_histories_and_targets_are_those_of_the_definition(rows, by_hand):
    split = leave_one_out(frame(*rows))
    if by_hand:  # without what the sort of the split has found
        split = Split(split.train, split.validation, split.test, 6, 9)
    for found, parts in [
        (split.histories("validation"), [split.train]),
        (split.histories("test"), [split.train, split.validation]),
        (split.targets("validation"), [split.validation]),
        (split.targets("test"), [split.test]),
    ]:
        expected = by_the_loop(parts, split.num_users)
        assert [found[user].tolist() for user in range(split.num_users + 1)] == expected


def test_equal_times_keep_the_order_of_the_ratings_or_else_of_the_parts():
    ratings = frame((1, 5, 7), (1, 6, 7), (1, 7, 7), (1, 8, 7))
    assert leave_one_out(ratings).histories()[1].tolist() == [5, 6, 7]
    by_hand = Split(ratings[2:3], ratings[:2], ratings[3:], 1, 8)
    assert by_hand.histories()[1].tolist() == [7, 5, 6]
    timeless = ratings.drop(columns="timestamp")
    without = Split(timeless[1:3], timeless[:1], timeless[3:], 1, 8)
    assert without.histories()[1].tolist() == [6, 7, 5]


def test_an_order_of_other_rows_is_refused():
    split = leave_one_out(frame((2, 5, 1), (1, 6, 2), (1, 7, 1), (1, 8, 4), (2, 6, 3), (2, 7, 9)))
    shuffled = dataclasses.replace(split, train=split.train.iloc[::-1])
    with pytest.raises(ValueError, match=r"an order of other rows: .*; leave it out"):
        shuffled.histories()
    assert dataclasses.replace(shuffled, order=None).histories()[1].tolist() == [7, 6]


def test_dates_of_two_units_are_one_time():
    rows = frame((1, 5, 1), (1, 6, 2), (1, 7, 3))
    dates = pd.to_datetime(rows["timestamp"], unit="D")
    fine, coarse = (rows.assign(timestamp=dates.astype(f"datetime64[{u}]")) for u in ("ns", "s"))
    split = Split(fine[1:2], coarse[:1], fine[2:], 1, 7)
    assert split.histories()[1].tolist() == [5, 6]


def test_a_split_sorts_once_and_gives_what_nobody_can_change(monkeypatch):
    sorts = []
    sort = splits.order_by_user_and_time
    monkeypatch.setattr(splits, "order_by_user_and_time", lambda *a: sorts.append(1) or sort(*a))
    split = leave_one_out(frame((1, 5, 1), (1, 6, 2), (1, 7, 3), (1, 8, 4)))
    for _ in range(3):
        found = [split.histories(name) for name in ("validation", "test")]
        assert found[0] is split.histories("validation")
        assert split.targets("test")[1].tolist() == [8]
    assert len(sorts) == 1
    for array in (found[1].items, found[1].offsets, split.targets("test").items):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 3


@pytest.mark.long
def test_ten_million_rows_are_split_in_seconds():
    count = 10_000_000
    rng = np.random.default_rng(0)
    columns = {
        "user_id": rng.integers(1, 100_001, count, dtype=np.int32),
        "movie_id": rng.integers(1, 10_001, count, dtype=np.int32),
        "timestamp": rng.integers(0, 10**9, count),
    }
    split = leave_one_out(pd.DataFrame(columns))
    assert len(split.train) + len(split.validation) + len(split.test) == count
    assert len(split.test) == 100_000
