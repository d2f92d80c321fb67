"""Three ways to split interactions into what a model may know and what it is tested on.

Every function works on whole arrays, keeps the rows of each part in the order (and with the
index labels) they have in `ratings`, and puts every row in exactly one part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

_MAX_ID = np.iinfo(np.int32).max


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Interactions in three parts, and the size of the world they come from.

    Attributes:
        train: the interactions a model learns from.
        validation: those its settings are chosen on; empty when the split has no such part.
        test: those its final figure is computed on, once.
        num_users: the highest user id.
        num_movies: the highest movie id, the size of the catalogue that competes.
    """

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    num_users: int
    num_movies: int

    def __post_init__(self) -> None:
        for part in ("train", "validation", "test"):
            frame = getattr(self, part)
            if not isinstance(frame, pd.DataFrame):
                raise TypeError(
                    f"Split({part}=...) is a {type(frame).__name__}; give a pandas DataFrame "
                    "with the columns user_id and movie_id"
                )
            for column, limit in (("user_id", self.num_users), ("movie_id", self.num_movies)):
                if len(frame):
                    ids = _ids(frame, column, f"Split.{part}")
                    if ids.max() > limit:
                        raise ValueError(
                            f"Split.{part} has {column} {ids.max()}, but the split is said to "
                            f"have only {limit}; raise num_users or num_movies"
                        )

    def __repr__(self) -> str:
        rows = ", ".join(
            f"{part}={len(getattr(self, part)):,} rows" for part in ("train", "validation", "test")
        )
        return f"Split({rows}, num_users={self.num_users:,}, num_movies={self.num_movies:,})"


def random_split(
    ratings: pd.DataFrame,
    test_fraction: float | None = None,
    sizes: Sequence[int] | None = None,
    seed: int = 42,
    *,
    num_users: int | None = None,
    num_movies: int | None = None,
) -> Split:
    """Deal the interactions out at random: the split for rating prediction.

    Time plays no part, so a user's later ratings may train a model that is tested on earlier
    ones. That is the usual protocol for predicting ratings; for recommending what comes next use
    `leave_one_out`.

    A user may end up in one part only, and one with a single interaction always does. The order
    of the rows decides which row is dealt where, so an unsorted frame gives another, equally
    valid split.

    Args:
        ratings: one row an interaction, with `user_id` and `movie_id`.
        test_fraction: the share of the rows, between 0 and 1, that goes to `test`; `validation`
            is then empty. Default 0.2 when `sizes` is not given either.
        sizes: instead of a fraction, the number of rows of each part: `(train, test)` or
            `(train, validation, test)`. They add up to `len(ratings)`.
        seed: the same seed on the same rows gives the same split.
        num_users: the highest user id; the highest in `ratings` when omitted.
        num_movies: the highest movie id; the highest in `ratings` when omitted.

    Returns:
        A `Split` of frames with the columns of `ratings`.

    Raises:
        TypeError: `ratings` is no DataFrame.
        ValueError: a column is missing, `ratings` is empty, an id is no positive integer, both
            `test_fraction` and `sizes` are given, or they leave `train` or `test` empty.

    Example:
        >>> import pandas as pd
        >>> ratings = pd.DataFrame({"user_id": [1, 1, 2, 2], "movie_id": [1, 2, 1, 3]})
        >>> random_split(ratings, sizes=(3, 1))
        Split(train=3 rows, validation=0 rows, test=1 rows, num_users=2, num_movies=3)
    """
    users, movies = _check(ratings, "random_split")
    total = len(ratings)
    if sizes is not None and test_fraction is not None:
        raise ValueError(
            f"random_split got both test_fraction={test_fraction} and sizes={tuple(sizes)}; "
            "give one of them"
        )
    if sizes is None:
        fraction = _fraction(0.2 if test_fraction is None else test_fraction, "test_fraction")
        num_test = round(total * fraction)
        parts = (total - num_test, 0, num_test)
    else:
        parts = _three_sizes(sizes, total)
    if parts[0] < 1 or parts[2] < 1:
        raise ValueError(
            f"random_split would make train {parts[0]} and test {parts[2]} rows of {total}; "
            "each needs at least one: change test_fraction or sizes, or give more rows"
        )
    part = np.repeat(np.arange(3), parts)
    dealt = np.empty(total, np.int64)
    dealt[np.random.default_rng(seed).permutation(total)] = part
    return _split(ratings, dealt, users, movies, num_users, num_movies)


def leave_one_out(
    ratings: pd.DataFrame, *, num_users: int | None = None, num_movies: int | None = None
) -> Split:
    """Hold out each user's last interaction for test and the one before for validation.

    Args:
        ratings: one row an interaction, with `user_id`, `movie_id` and `timestamp`
            (seconds), in any order. Rows of equal timestamp keep their order.
        num_users: the highest user id; the highest in `ratings` when omitted.
        num_movies: the highest movie id; the highest in `ratings` when omitted.

    Returns:
        `Split(train, validation, test)`: three frames with the columns of `ratings`.
        Users with fewer than three interactions are in `train` only.

    Raises:
        TypeError: `ratings` is no DataFrame.
        ValueError: a column is missing, `ratings` is empty, an id is no positive integer or a
            timestamp no finite number.

    Example:
        >>> import pandas as pd
        >>> ratings = pd.DataFrame(
        ...     {"user_id": [1, 1, 1], "movie_id": [5, 6, 7], "timestamp": [30, 10, 20]}
        ... )
        >>> leave_one_out(ratings).test["movie_id"].tolist()
        [5]
    """
    users, movies = _check(ratings, "leave_one_out")
    order = np.lexsort((_timestamps(ratings, "leave_one_out"), users))
    by_user = users[order]
    starts = np.flatnonzero(np.diff(by_user, prepend=by_user[0] - 1))
    counts = np.diff(starts, append=len(users))
    from_the_end = np.repeat(starts + counts, counts) - 1 - np.arange(len(users))
    held_out = (from_the_end < 2) & (np.repeat(counts, counts) >= 3)
    part = np.zeros(len(users), np.int64)
    part[order] = np.where(held_out, 2 - from_the_end, 0)
    return _split(ratings, part, users, movies, num_users, num_movies)


def temporal_split(
    ratings: pd.DataFrame,
    cutoff: float | None = None,
    fraction: float | None = None,
    *,
    validation_fraction: float = 0.0,
    num_users: int | None = None,
    num_movies: int | None = None,
) -> Split:
    """Train on what happened before one moment, test on what happened from then on.

    The moment is the same for all users. A user whose interactions all lie on one side, as with a
    single interaction, is on that side only; the users and movies of `test` may be new.

    Args:
        ratings: one row an interaction, with `user_id`, `movie_id` and `timestamp`
            (seconds), in any order.
        cutoff: the moment, in the unit of `timestamp`: rows before it are `train`, rows at or
            after it `test`.
        fraction: instead of a moment, the share of the rows, between 0 and 1, to test on: the
            latest. Rows of equal timestamp stay together, so `test` may be a little larger.
        validation_fraction: the share of all rows to take for `validation` from the end of
            `train`, again keeping equal timestamps together.
        num_users: the highest user id; the highest in `ratings` when omitted.
        num_movies: the highest movie id; the highest in `ratings` when omitted.

    Returns:
        A `Split` of frames with the columns of `ratings`.

    Raises:
        TypeError: `ratings` is no DataFrame.
        ValueError: a column is missing, `ratings` is empty, an id is no positive integer or a
            timestamp no finite number; not exactly one of `cutoff` and `fraction` is given; or
            they leave `train` or `test` empty.

    Example:
        >>> import pandas as pd
        >>> ratings = pd.DataFrame(
        ...     {"user_id": [1, 2, 1], "movie_id": [5, 6, 7], "timestamp": [30, 10, 20]}
        ... )
        >>> temporal_split(ratings, cutoff=20).test["movie_id"].tolist()
        [5, 7]
    """
    users, movies = _check(ratings, "temporal_split")
    times = _timestamps(ratings, "temporal_split")
    if (cutoff is None) == (fraction is None):
        raise ValueError(
            f"temporal_split got cutoff={cutoff} and fraction={fraction}; give exactly one of them"
        )
    if fraction is not None:
        cutoff = _moment(times, len(times), _fraction(fraction, "fraction"), "fraction")
    if cutoff is None or not np.isfinite(cutoff):
        raise ValueError(
            f"temporal_split got cutoff={cutoff}; give a moment in the unit of timestamp"
        )
    part = np.where(times >= cutoff, 2, 0)
    before = times[part == 0]
    if not 0 < len(before) < len(times):
        raise ValueError(
            f"temporal_split at {cutoff} leaves {'train' if len(before) == 0 else 'test'} empty: "
            f"the timestamps run from {times.min()} to {times.max()}; choose a moment after the "
            "first and not after the last"
        )
    if validation_fraction:
        share = _fraction(validation_fraction, "validation_fraction")
        start = _moment(before, len(times), share, "validation_fraction")
        if start <= before.min():
            raise ValueError(
                f"temporal_split with validation_fraction={validation_fraction} leaves train "
                "empty; lower it"
            )
        part[(part == 0) & (times >= start)] = 1
    return _split(ratings, part, users, movies, num_users, num_movies)


def _moment(times: np.ndarray, total: int, fraction: float, name: str) -> float:
    """The time from which the last `fraction * total` of `times` begin."""
    count = round(total * fraction)
    if not 0 < count <= len(times):
        raise ValueError(
            f"temporal_split with {name}={fraction} asks for {count} of {len(times)} rows; each "
            "part needs at least one"
        )
    return float(np.partition(times, len(times) - count)[len(times) - count])


def _three_sizes(sizes: Sequence[int], total: int) -> tuple[int, int, int]:
    """`sizes` as (train, validation, test), checked."""
    given = tuple(sizes)
    if len(given) not in (2, 3) or not all(isinstance(n, int | np.integer) for n in given):
        raise ValueError(
            f"random_split got sizes={given}; give (train, test) or (train, validation, test), "
            "whole numbers of rows"
        )
    if min(given) < 0 or sum(given) != total:
        raise ValueError(
            f"random_split got sizes={given}, {sum(given):,} rows in all, for {total:,} ratings; "
            "the sizes are not negative and add up to the number of rows"
        )
    return (int(given[0]), 0 if len(given) == 2 else int(given[1]), int(given[-1]))


def _fraction(value: float, name: str) -> float:
    if not isinstance(value, int | float | np.number) or not 0 < value < 1:
        raise ValueError(f"{name}={value!r} is no share; give a number between 0 and 1, as 0.2")
    return float(value)


def _check(ratings: pd.DataFrame, place: str) -> tuple[np.ndarray, np.ndarray]:
    """The user and movie ids of `ratings`, after checking that it is what it should be."""
    if not isinstance(ratings, pd.DataFrame):
        raise TypeError(
            f"{place} got a {type(ratings).__name__}; give a pandas DataFrame, "
            "as the ratings of rectutor.data.load_movielens()"
        )
    if len(ratings) == 0:
        raise ValueError(f"{place} got a frame without rows; give at least one interaction")
    return _ids(ratings, "user_id", place), _ids(ratings, "movie_id", place)


def _ids(frame: pd.DataFrame, column: str, place: str) -> np.ndarray:
    values = _column(frame, column, place)
    if not pd.api.types.is_integer_dtype(values.dtype):
        raise ValueError(
            f"{place}: column {column} is {values.dtype}, as in {values.iloc[0]!r}; ids are "
            "integers from 1: number them with rectutor.data.from_dataframe"
        )
    ids = values.to_numpy(dtype=np.int64)
    low, high = ids.min(), ids.max()
    if low < 1 or high > _MAX_ID:
        raise ValueError(
            f"{place}: {column} {low if low < 1 else high} is no id; ids run from 1 (0 is "
            f"padding) to {_MAX_ID:,}: number them with rectutor.data.from_dataframe"
        )
    return ids


def _timestamps(ratings: pd.DataFrame, place: str) -> np.ndarray:
    values = _column(ratings, "timestamp", place)
    if not pd.api.types.is_numeric_dtype(values.dtype) or values.dtype == bool:
        raise ValueError(
            f"{place}: column timestamp is {values.dtype}, as in {values.iloc[0]!r}; give "
            "seconds: rectutor.data.from_dataframe converts dates"
        )
    times = values.to_numpy()
    if not np.isfinite(times).all():
        row = int(np.flatnonzero(~np.isfinite(times))[0])
        raise ValueError(
            f"{place}: timestamp {times[row]} in row {row} is no time; fill it in or drop the row"
        )
    return times


def _column(frame: pd.DataFrame, column: str, place: str) -> pd.Series:
    if column not in frame.columns:
        remedy = (
            "without times use random_split"
            if column == "timestamp"
            else "rename yours, or use rectutor.data.from_dataframe"
        )
        raise ValueError(
            f"{place}: no column {column!r} among {[str(name) for name in frame.columns]}; {remedy}"
        )
    values = frame[column]
    missing = values.isna().to_numpy()
    if missing.any():
        raise ValueError(
            f"{place}: {column} is missing in row {int(missing.argmax())} "
            f"({int(missing.sum())} in all); fill it in or drop the rows"
        )
    return values


def _split(
    ratings: pd.DataFrame,
    part: np.ndarray,
    users: np.ndarray,
    movies: np.ndarray,
    num_users: int | None,
    num_movies: int | None,
) -> Split:
    """The rows of `ratings` by the part (0 train, 1 validation, 2 test) each belongs to."""
    return Split(
        train=ratings[part == 0],
        validation=ratings[part == 1],
        test=ratings[part == 2],
        num_users=int(users.max()) if num_users is None else num_users,
        num_movies=int(movies.max()) if num_movies is None else num_movies,
    )
