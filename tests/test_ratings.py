"""Labels and stars, and the RMSE with its interval over users, against plain loops."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectutor import ratings
from rectutor.ratings import resampled_rmse, rmse, to_label, to_stars

SCALES = [(1, 5), (0.5, 5), (0, 100), (-10.0, 10.0)]

some_ratings = st.lists(
    st.tuples(st.integers(1, 5), st.floats(0, 1, width=32), st.floats(0, 1, width=32)), min_size=1
)


@given(st.lists(st.floats(1, 5, width=32)))
def test_the_stars_of_the_book_are_labelled_by_the_documented_formula(stars):
    expected = (np.asarray(stars, np.float32) - 1) / 4
    label = to_label(stars)
    assert label.dtype == np.float32
    assert label.tobytes() == expected.tobytes()
    assert to_stars(label).tobytes() == (1 + 4 * label).tobytes()


@pytest.mark.parametrize("scale", SCALES)
@given(share=st.lists(st.floats(0, 1)))
def test_stars_come_back_from_labels_on_every_scale(scale, share):
    low, high = scale
    stars = np.clip(low + (high - low) * np.array(share), low, high)
    label = to_label(stars, scale)
    assert ((label >= 0) & (label <= 1)).all()
    np.testing.assert_allclose(to_stars(label, scale), stars, atol=1e-5 * (high - low))


def test_half_stars_have_ten_labels_from_0_to_1():
    stars = np.arange(1, 11) / 2
    np.testing.assert_allclose(to_label(stars, (0.5, 5)), np.arange(10) / 9, rtol=1e-6)


@pytest.mark.parametrize("kind", [list, np.array, pd.Series, lambda s: np.array(s, np.uint8)])
def test_any_column_of_numbers_keeps_its_shape(kind):
    assert to_label(kind([1, 3, 5])).tolist() == [0, 0.5, 1]
    assert to_label([[1], [5]]).shape == (2, 1)
    assert to_label(2) == 0.25
    assert to_stars(1.25) == 6  # off the scale, as it was predicted


def drawn_one_by_one(squared, users, num_resamples, seed):
    """What `resampled_rmse` draws, user by user."""
    known = sorted(set(users))
    rng = np.random.default_rng(seed)
    for _ in range(num_resamples):
        total = count = 0
        times = rng.multinomial(len(known), [1 / len(known)] * len(known))
        for user, repeats in zip(known, times, strict=True):
            own = [error for error, whose in zip(squared, users, strict=True) if whose == user]
            total += repeats * np.sum(own, axis=0, dtype=np.float64)
            count += repeats * len(own)
        yield np.sqrt(total / count)


@given(some_ratings, st.integers(0, 2**31), st.sampled_from([1, 7, 10**6]))
def test_the_interval_is_that_of_users_drawn_one_by_one(rows, seed, at_once):
    users, predicted, actual = (np.array(column) for column in zip(*rows, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ratings, "_COUNTS_AT_ONCE", at_once)
        found = rmse(predicted, actual[:, None], users, num_resamples=20, seed=seed)
        value, draws = resampled_rmse(
            np.column_stack([(predicted - actual) ** 2, actual]), users, 20, seed
        )
    squared = np.column_stack([(predicted - actual) ** 2, actual])
    expected = list(drawn_one_by_one(squared, users.tolist(), 20, seed))
    np.testing.assert_allclose(draws, expected, atol=1e-9)
    np.testing.assert_allclose(value, np.sqrt(squared.mean(axis=0)), rtol=1e-6)
    low, high = np.quantile(np.array(expected)[:, 0], [0.025, 0.975])
    np.testing.assert_allclose([found.low, found.high], [low, high], atol=1e-9)
    np.testing.assert_allclose(found.value, np.sqrt(np.mean((predicted - actual) ** 2)), atol=1e-7)


def test_resamples_are_paired_and_cover_the_value():
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(1, 41), 5)
    squared = rng.random((200, 1)) ** 2 * np.array([[1.0, 0.81]])
    value, draws = resampled_rmse(squared, users, num_resamples=400)
    np.testing.assert_allclose(draws[:, 1] / draws[:, 0], 0.9)  # the same users for both
    low, high = np.quantile(draws[:, 0], [0.025, 0.975])
    assert low < value[0] < high


def test_the_interval_knows_that_a_users_errors_go_together():
    errors = np.repeat(np.random.default_rng(0).random(50), 20)  # a user is off everywhere, or not
    over_users = rmse(errors, np.zeros(1_000), np.repeat(np.arange(50), 20))
    over_ratings = rmse(errors, np.zeros(1_000), np.arange(1_000))
    assert over_users.value == over_ratings.value
    assert over_users.high - over_users.low > 3 * (over_ratings.high - over_ratings.low)


def test_one_prediction_for_all_and_whole_stars_are_fine():
    constant = rmse(3, np.array([1, 5], np.uint8), ["ann", "bob"])
    assert (constant.value, constant.low, constant.high) == (2, 2, 2)
    unsigned = np.array([1, 2], np.uint8)
    assert rmse(unsigned, unsigned[::-1], [1, 2]).value == 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: to_label([3, 6]), ValueError, r"6.* stars are not from 1 to 5; give scale="),
        (lambda: to_label([np.nan]), ValueError, "nan stars are not from 1 to 5"),
        (lambda: to_label(0.5), ValueError, "0.5 stars are not from 1 to 5"),
        (lambda: to_label(["3"]), TypeError, "to_label: stars are <U1; give numbers"),
        (lambda: to_label(True), TypeError, "to_label: stars are bool"),
        (lambda: to_label([1], (5, 1)), ValueError, r"to_label: scale\[1\] is 1; .* above 5"),
        (lambda: to_stars([1], (1, 1)), ValueError, r"to_stars: scale\[1\] is 1; .* above 1"),
        (lambda: to_stars([1], ("1", 5)), TypeError, r"to_stars: scale\[0\] is '1'"),
        (lambda: to_stars([1], 5), ValueError, "to_stars: scale is 5; give the lowest and"),
        (lambda: to_stars([None]), TypeError, "to_stars: label are object"),
        (lambda: rmse([1, 2], [1, 2, 3], [1, 2, 3]), ValueError, "2 predicted for 3 actual"),
        (lambda: rmse([1], [1], [1, 2]), ValueError, r"squared_errors \(1, 1\) and .* \(2,\)"),
        (lambda: rmse([], [], []), ValueError, "at least one"),
        (lambda: rmse([1, np.nan], [1, 1], [1, 2]), ValueError, "nan in row 1; give finite"),
        (lambda: rmse(["a"], [1], [1]), TypeError, "rmse: predicted are <U1"),
        (lambda: rmse([1], [1], [1], 0), ValueError, "num_resamples is 0; it must be at least 1"),
        (lambda: rmse([1], [1], [1], 5.0), TypeError, "num_resamples is 5.0; give a whole"),
        (lambda: rmse([1], [1], [1], seed=-1), ValueError, "seed is -1"),
        (lambda: resampled_rmse([1.0], [1]), ValueError, r"give \(n, models\)"),
        (lambda: resampled_rmse([[1.0], [-1.0]], [1, 1]), ValueError, "-1.0 in row 1"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
