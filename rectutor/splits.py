"""Three ways to split interactions into what a model may know and what it is tested on.

Every function works on whole arrays, keeps the rows of each part in the order (and with the
index labels) they have in the ratings, and puts every row in exactly one part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from rectutor import checks
from rectutor.sequences import Histories, order_by_user_and_time

if TYPE_CHECKING:
    from rectutor.data import Dataset

#: The parts of a split, in the order of time where time plays a part.
PARTS = ("train", "validation", "test")
_ASKED = ("validation", "test")


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Interactions in three parts, and the size of the world they come from.

    Attributes:
        train: the interactions a model learns from.
        validation: those its settings are chosen on; empty when the split has no such part.
        test: those its final figure is computed on, once.
        num_users: the highest user id.
        num_movies: the highest movie id, the size of the catalogue that competes.
        titles: `(num_movies + 1,)` what each movie is called, where that is known.
        order: the row numbers of `train`, `validation` and `test`, one after the other, by user
            and time. A function that has sorted anyway gives it; else it is found when needed.

    Raises:
        TypeError: a part is no DataFrame, or its ids are no integers.
        ValueError: a column is missing, an id is out of range, or `order` is of other rows.
    """

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    num_users: int
    num_movies: int
    titles: np.ndarray | None = None
    order: np.ndarray | None = None

    def __post_init__(self) -> None:
        checks.integer(self.num_users, "Split: num_users", 0)
        checks.integer(self.num_movies, "Split: num_movies", 0)
        for part in PARTS:
            frame = checks.frame(getattr(self, part), f"Split({part}=...)")
            for column, limit in (("user_id", self.num_users), ("movie_id", self.num_movies)):
                highest = checks.ids(frame, column, f"Split.{part}").max(initial=0)
                if highest > limit:
                    raise ValueError(
                        f"Split.{part} has {column} {highest}, but the split is said to "
                        f"have only {limit}; raise num_users or num_movies"
                    )

        total = sum(len(getattr(self, part)) for part in PARTS)
        if self.order is not None and len(self.order) != total:
            raise ValueError(
                f"Split got an order of {len(self.order)} rows for {total}; leave it out where the "
                "parts are put together anew"
            )

    def __repr__(self) -> str:
        rows = ", ".join(f"{part}={len(getattr(self, part)):,} rows" for part in PARTS)
        return f"Split({rows}, num_users={self.num_users:,}, num_movies={self.num_movies:,})"

    def histories(self, before: str = "test") -> Histories:
        """What is known of every user when a part is asked about.

        Args:
            before: `"test"`: `train` and `validation`; `"validation"`: `train` alone.

        Returns:
            The `Histories` by user id, in order of `timestamp`; rows of equal timestamp keep the
            order they have in the ratings (in a split put together by hand, `train` comes before
            `validation`). Without that column they go by the order of the rows. The arrays are
            shared and read-only.

        Raises:
            ValueError: `before` is something else, or a time is missing.
        """
        return self._by_user[checks.choice(before, "Split.histories: before", _ASKED)][0]

    def targets(self, on: str = "test") -> Histories:
        """The movies of the part asked about, by user id and in the order of `histories`."""
        return self._by_user[checks.choice(on, "Split.targets: on", _ASKED)][1]

    @cached_property
    def _by_user(self) -> dict[str, tuple[Histories, Histories]]:
        """What is known before each part, and what it asks."""
        frames = [self.train, self.validation, self.test]
        filled = [(f"Split.{name}", f) for name, f in zip(PARTS, frames, strict=True) if len(f)]
        users, movies = (
            np.concatenate([frame[column].to_numpy(np.int64) for frame in frames])
            for column in ("user_id", "movie_id")
        )
        times = np.zeros(len(users), np.int64)
        if any("timestamp" in frame.columns for _, frame in filled):
            times = np.concatenate([checks.times(frame, place) for place, frame in filled])
        order = order_by_user_and_time(users, times) if self.order is None else self.order
        users, movies, times = users[order], movies[order], times[order]
        later, same = np.diff(times) >= 0, np.diff(users) == 0
        if not (np.diff(users) >= 0).all() or not later[same].all():
            raise ValueError(
                "Split got an order of other rows: by it users or their times do not ascend; leave "
                "it out where the parts are put together anew"
            )
        part = np.repeat(np.arange(3), [len(frame) for frame in frames])[order]

        def rows(chosen: np.ndarray) -> Histories:
            found = Histories.of_rows(users[chosen], movies[chosen], self.num_users)
            found.items.setflags(write=False)
            found.offsets.setflags(write=False)
            return found

        return {
            name: (rows(part < number), rows(part == number))
            for number, name in enumerate(_ASKED, start=1)
        }


class _World(NamedTuple):
    """The ratings a split is made of, checked, and the size of the world they come from."""

    ratings: pd.DataFrame
    users: np.ndarray
    num_users: int
    num_movies: int
    titles: np.ndarray | None

    def split(self, part: np.ndarray, order: np.ndarray | None = None) -> Split:
        """Its rows by the part (0 train, 1 validation, 2 test) each belongs to."""
        train, validation, test = (self.ratings[part == number] for number in range(3))
        return Split(train, validation, test, self.num_users, self.num_movies, self.titles, order)


def _world(
    data: Dataset | pd.DataFrame | Split,
    place: str,
    num_users: int | None,
    num_movies: int | None,
) -> _World:
    """What `data` holds; the sizes given go before those it has, and these before its ids."""
    sizes: tuple[int | None, int | None] = (None, None)
    titles = None
    if isinstance(data, pd.DataFrame):
        ratings = data
    else:
        found = data.train if isinstance(data, Split) else getattr(data, "ratings", data)
        ratings = checks.frame(found, place)
        sizes, titles = (data.num_users, data.num_movies), data.titles
    if len(ratings) == 0:
        raise ValueError(f"{place} got a frame without rows; give at least one interaction")
    users = checks.ids(ratings, "user_id", place)
    movies = checks.ids(ratings, "movie_id", place)
    num_users, num_movies = (
        next(int(size) for size in (given, own, ids.max()) if size is not None)
        for given, own, ids in zip((num_users, num_movies), sizes, (users, movies), strict=True)
    )
    return _World(ratings, users, num_users, num_movies, titles)


def random_split(
    data: Dataset | pd.DataFrame | Split,
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
        data: a `Dataset`, a frame of ratings with `user_id` and `movie_id`, or a `Split`, whose
            `train` is then dealt out.
        test_fraction: the share of the rows, between 0 and 1, that goes to `test`; `validation`
            is then empty. Default 0.2 when `sizes` is not given either.
        sizes: instead of a fraction, the number of rows of each part: `(train, test)` or
            `(train, validation, test)`. They add up to the number of rows.
        seed: the same seed on the same rows gives the same split.
        num_users: the highest user id; that of `data`, or of its rows, when omitted.
        num_movies: the highest movie id; likewise.

    Returns:
        A `Split` of frames with the columns of the ratings.

    Raises:
        TypeError: `data` is something else, or ids, a fraction or sizes are no numbers.
        ValueError: a column is missing, there are no rows, an id is below 1, a fraction is not
            between 0 and 1, both `test_fraction` and `sizes` are given, or they leave `train` or
            `test` empty.

    Example:
        >>> import pandas as pd
        >>> ratings = pd.DataFrame({"user_id": [1, 1, 2, 2], "movie_id": [1, 2, 1, 3]})
        >>> random_split(ratings, sizes=(3, 1))
        Split(train=3 rows, validation=0 rows, test=1 rows, num_users=2, num_movies=3)
    """
    world = _world(data, "random_split", num_users, num_movies)
    total = len(world.users)
    if sizes is not None and test_fraction is not None:
        raise ValueError(
            f"random_split got both test_fraction={test_fraction} and sizes={tuple(sizes)}; "
            "give one of them"
        )
    if sizes is None:
        share = 0.2 if test_fraction is None else test_fraction
        num_test = round(total * checks.number(share, "random_split: test_fraction", 0, 1))
        parts = (total - num_test, 0, num_test)
    else:
        parts = _three_sizes(sizes, total)
    if parts[0] < 1 or parts[2] < 1:
        raise ValueError(
            f"random_split would make train {parts[0]} and test {parts[2]} rows of {total}; "
            "each needs at least one: change test_fraction or sizes, or give more rows"
        )
    part = np.empty(total, np.int64)
    part[np.random.default_rng(seed).permutation(total)] = np.repeat(np.arange(3), parts)
    return world.split(part)


def leave_one_out(
    data: Dataset | pd.DataFrame, *, num_users: int | None = None, num_movies: int | None = None
) -> Split:
    """Hold out each user's last interaction for test and the one before for validation.

    Args:
        data: a `Dataset`, or a frame of ratings with `user_id`, `movie_id` and `timestamp`
            (seconds), in any order. Rows of equal timestamp keep their order.
        num_users: the highest user id; that of `data`, or of its rows, when omitted.
        num_movies: the highest movie id; likewise.

    Returns:
        `Split(train, validation, test)`: three frames with the columns of the ratings.
        Users with fewer than three interactions are in `train` only.

    Raises:
        TypeError: `data` is something else, or an id is no integer or a timestamp no number.
        ValueError: a column is missing, there are no rows, an id is below 1 or a timestamp not
            finite.

    Example:
        >>> import pandas as pd
        >>> ratings = pd.DataFrame(
        ...     {"user_id": [1, 1, 1], "movie_id": [5, 6, 7], "timestamp": [30, 10, 20]}
        ... )
        >>> leave_one_out(ratings).test["movie_id"].tolist()
        [5]
    """
    world = _world(data, "leave_one_out", num_users, num_movies)
    order = order_by_user_and_time(world.users, checks.times(world.ratings, "leave_one_out"))
    lengths = np.bincount(world.users)
    ends = np.repeat(np.cumsum(lengths), lengths)
    from_the_end = ends - 1 - np.arange(len(order))
    held_out = (from_the_end < 2) & (np.repeat(lengths, lengths) >= 3)
    part = np.zeros(len(order), np.int64)
    part[order] = np.where(held_out, 2 - from_the_end, 0)
    place = np.empty_like(order)  # of each row, when the parts stand one after the other
    place[np.argsort(part, kind="stable")] = np.arange(len(order))
    return world.split(part, place[order])


def temporal_split(
    data: Dataset | pd.DataFrame,
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
        data: a `Dataset`, or a frame of ratings with `user_id`, `movie_id` and `timestamp`
            (seconds), in any order.
        cutoff: the moment, in the unit of `timestamp`: rows before it are `train`, rows at or
            after it `test`.
        fraction: instead of a moment, the share of the rows, between 0 and 1, to test on: the
            latest. Rows of equal timestamp stay together, so `test` may be a little larger.
        validation_fraction: the share of all rows to take for `validation` from the end of
            `train`, again keeping equal timestamps together.
        num_users: the highest user id; that of `data`, or of its rows, when omitted.
        num_movies: the highest movie id; likewise.

    Returns:
        A `Split` of frames with the columns of the ratings.

    Raises:
        TypeError: `data` is something else, or an id is no integer or a time or share no number.
        ValueError: a column is missing, there are no rows, an id is below 1 or a time not finite;
            not exactly one of `cutoff` and `fraction` is given; or they leave `train` or `test`
            empty.

    Example:
        >>> import pandas as pd
        >>> ratings = pd.DataFrame(
        ...     {"user_id": [1, 2, 1], "movie_id": [5, 6, 7], "timestamp": [30, 10, 20]}
        ... )
        >>> temporal_split(ratings, cutoff=20).test["movie_id"].tolist()
        [5, 7]
    """
    world = _world(data, "temporal_split", num_users, num_movies)
    times = checks.times(world.ratings, "temporal_split")
    if (cutoff is None) == (fraction is None):
        raise ValueError(
            f"temporal_split got cutoff={cutoff} and fraction={fraction}; give exactly one of them"
        )
    if fraction is not None:
        cutoff = _moment(times, len(times), fraction, "fraction")
    checks.number(cutoff, "temporal_split: cutoff, a moment in the unit of timestamp,", -np.inf)
    part = np.where(times >= cutoff, 2, 0)
    before = times[part == 0]
    if not 0 < len(before) < len(times):
        raise ValueError(
            f"temporal_split at {cutoff} leaves {'train' if len(before) == 0 else 'test'} empty: "
            f"the timestamps run from {times.min()} to {times.max()}; choose a moment after the "
            "first and not after the last"
        )
    if validation_fraction:
        start = _moment(before, len(times), validation_fraction, "validation_fraction")
        if start <= before.min():
            raise ValueError(
                f"temporal_split with validation_fraction={validation_fraction} leaves train "
                "empty; lower it"
            )
        part[(part == 0) & (times >= start)] = 1
    return world.split(part)


def _moment(times: np.ndarray, total: int, fraction: float, name: str) -> float:
    """The time from which the last `fraction * total` of `times` begin."""
    count = round(total * checks.number(fraction, f"temporal_split: {name}", 0, 1))
    if not 0 < count <= len(times):
        raise ValueError(
            f"temporal_split with {name}={fraction} asks for {count} of {len(times)} rows; each "
            "part needs at least one"
        )
    return float(np.partition(times, len(times) - count)[len(times) - count])


def _three_sizes(sizes: Sequence[int], total: int) -> tuple[int, int, int]:
    """`sizes` as (train, validation, test), checked."""
    given = checks.integers(sizes, "random_split: sizes", 0).tolist()
    if len(given) not in (2, 3):
        raise ValueError(
            f"random_split got sizes={tuple(given)}; give (train, test) or (train, validation, "
            "test), whole numbers of rows"
        )
    if sum(given) != total:
        raise ValueError(
            f"random_split got sizes={tuple(given)}, {sum(given):,} rows in all, for {total:,} "
            "ratings; the sizes add up to the number of rows"
        )
    return (given[0], 0 if len(given) == 2 else given[1], given[-1])
