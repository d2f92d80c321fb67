"""Star ratings as labels from 0 to 1 and back, and how far predictions of them are off."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rectutor import checks
from rectutor.evaluation import Interval

#: Counts of drawn users that are held at once, in `resampled_rmse`.
_COUNTS_AT_ONCE = 8_000_000


def to_label(stars: Any, scale: tuple[float, float] = (1, 5)) -> np.ndarray:
    """Map ratings to labels, the lowest rating to 0 and the highest to 1.

    Args:
        stars: ratings of any shape.
        scale: the lowest and the highest rating there is, as `Dataset.rating_scale` has them.

    Returns:
        Their shape, float32.

    Raises:
        TypeError: `stars` or `scale` are no numbers.
        ValueError: a rating is off the scale, or the scale does not rise.

    Example:
        >>> to_label([1, 2, 5])
        array([0.  , 0.25, 1.  ], dtype=float32)
        >>> to_label(0.5, scale=(0.5, 5)).item()
        0.0
    """
    low, high = _ends(scale, "to_label")
    given = _numbers(stars, "to_label: stars")
    off = ~((given >= low) & (given <= high))
    if off.any():
        raise ValueError(
            f"to_label: {given[off].flat[0]} stars are not from {low:g} to {high:g}; "
            "give scale=data.rating_scale"
        )
    return (given.astype(np.float32) - low) / (high - low)


def to_stars(label: Any, scale: tuple[float, float] = (1, 5)) -> np.ndarray:
    """Map labels or predictions back to ratings, the inverse of `to_label`.

    Args:
        label: any shape. What is below 0 or above 1 ends off the scale, as it was predicted.
        scale: the lowest and the highest rating there is.

    Returns:
        Their shape, float32.

    Raises:
        TypeError: `label` or `scale` are no numbers.
        ValueError: the scale does not rise.

    Example:
        >>> to_stars([0, 0.5, 1])
        array([1., 3., 5.], dtype=float32)
    """
    low, high = _ends(scale, "to_stars")
    return low + (high - low) * _numbers(label, "to_stars: label").astype(np.float32)


def rmse(
    predicted: Any, actual: Any, user_ids: Any, num_resamples: int = 1000, seed: int = 0
) -> Interval:
    """Root mean squared error over ratings, with a 95 % bootstrap interval over users.

    A user's ratings are drawn all together, because a user's errors go together.

    Args:
        predicted: `(n,)` or `(n, 1)` predictions, or one number for all.
        actual: `(n,)` or `(n, 1)` what they should have been, in the same unit. The error is
            computed in the precision of the two.
        user_ids: `(n,)` whose ratings they are.
        num_resamples: how often the users are drawn again, with replacement.
        seed: of the draws.

    Raises:
        TypeError: something is no number.
        ValueError: lengths disagree, there is no rating, or a number is not finite.

    Example:
        >>> print(rmse([3.5, 4.0, 2.0], [3.0, 4.5, 2.5], user_ids=[1, 1, 2]))
        0.500 [0.500, 0.500]
    """
    expected = np.ravel(_numbers(actual, "rmse: actual"))
    guess = np.ravel(_numbers(predicted, "rmse: predicted"))
    if np.ndim(predicted) and len(guess) != len(expected):
        raise ValueError(
            f"rmse: {len(guess)} predicted for {len(expected)} actual; give one for each"
        )
    squared = (guess - expected) ** 2
    _, draws = resampled_rmse(squared[:, None], user_ids, num_resamples, seed)
    low, high = np.quantile(draws[:, 0], [0.025, 0.975])
    return Interval(float(np.sqrt(squared.mean())), float(low), float(high))


def resampled_rmse(
    squared_errors: Any, user_ids: Any, num_resamples: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The RMSE of several models, and its paired bootstrap over users.

    Two columns of the draws belong together: every resample has the same users for all models,
    so the quantiles of their difference are the interval of the difference.

    Args:
        squared_errors: `(n, models)` on the same `n` ratings.
        user_ids: `(n,)` whose ratings they are.
        num_resamples: how often the users are drawn again, with replacement.
        seed: of the draws.

    Returns:
        `(models,)` the RMSE, and `(num_resamples, models)` the RMSE of each resample.

    Raises:
        TypeError: something is no number.
        ValueError: lengths disagree, there is no rating, or an error is negative or not finite.
    """
    squared = _numbers(squared_errors, "resampled_rmse: squared_errors")
    ids = np.asarray(user_ids)
    if squared.ndim != 2 or ids.shape != squared.shape[:1] or not squared.size:
        raise ValueError(
            f"resampled_rmse: squared_errors {squared.shape} and user_ids {ids.shape}; give "
            "(n, models) and (n,), one row a rating and at least one"
        )
    wrong = ~((squared >= 0) & (squared < np.inf))
    if wrong.any():
        raise ValueError(
            f"resampled_rmse: squared_errors are {squared[wrong][0]} in row "
            f"{wrong.any(axis=1).argmax()}; give finite predictions and ratings"
        )
    num_resamples = checks.integer(num_resamples, "resampled_rmse: num_resamples", 1)
    users, index = np.unique(ids, return_inverse=True)
    sums = np.zeros((len(users), squared.shape[1] + 1))  # of errors, and of ratings
    np.add.at(sums, index, np.column_stack([squared, np.ones(len(squared))]))
    rng = np.random.default_rng(checks.integer(seed, "resampled_rmse: seed", 0))
    at_once = max(1, _COUNTS_AT_ONCE // len(users))
    drawn = np.concatenate(
        [  # how often each user is drawn, times what they bring along
            rng.multinomial(
                len(users),
                np.full(len(users), 1 / len(users)),
                size=min(at_once, num_resamples - start),
            )
            @ sums
            for start in range(0, num_resamples, at_once)
        ]
    )
    return np.sqrt(squared.mean(axis=0)), np.sqrt(drawn[:, :-1] / drawn[:, -1:])


def _numbers(values: Any, place: str) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{place} are {array.dtype}; give numbers")
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def _ends(scale: tuple[float, float], place: str) -> tuple[float, float]:
    if np.shape(scale) != (2,):
        raise ValueError(f"{place}: scale is {scale!r}; give the lowest and the highest rating")
    low = checks.number(scale[0], f"{place}: scale[0]", -math.inf)
    return low, checks.number(scale[1], f"{place}: scale[1]", low)
