"""Users' histories as flat arrays, and the windows that sequence models train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from rectutor import PADDING_ID, checks

Ids = npt.NDArray[np.int32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Histories:
    """Every user's movies in time order, stored as one flat array.

    The movies of user `u` are `items[offsets[u]:offsets[u + 1]]`, oldest first, which is also
    what `histories[u]` gives.

    Attributes:
        items: `(n,)` int32, the movies of all users, user after user.
        offsets: `(num_users + 2,)` int64, where each user's movies begin; row 0 is the padding
            user and is empty.

    Raises:
        ValueError: `offsets` does not cut `items` into rows: it must begin with 0, never
            decrease and end with `len(items)`.

    Example:
        >>> two_users = Histories(np.array([7, 8, 9], np.int32), np.array([0, 0, 2, 3]))
        >>> two_users[1]
        array([7, 8], dtype=int32)
        >>> two_users.lengths
        array([0, 2, 1])
    """

    items: Ids
    offsets: Integers

    def __post_init__(self) -> None:
        items, offsets = self.items, self.offsets
        if np.ndim(items) != 1 or np.ndim(offsets) != 1 or len(offsets) == 0:
            raise ValueError(
                f"Histories: items has shape {np.shape(items)} and offsets {np.shape(offsets)}; "
                "both must be flat arrays, and offsets must not be empty"
            )
        if offsets[0] != 0 or offsets[-1] != len(items) or np.any(offsets[1:] < offsets[:-1]):
            raise ValueError(
                f"Histories: offsets run from {offsets[0]} to {offsets[-1]} over {len(items)} "
                "items; they must begin with 0, never decrease and end with the number of items"
            )

    @classmethod
    def of_rows(cls, users: Integers, movies: npt.NDArray[Any], num_users: int) -> Histories:
        """Of rows that stand in order of user and time already.

        Args:
            users: `(n,)` ascending user ids, at most `num_users`.
            movies: `(n,)` movie ids.
            num_users: the highest user id.
        """
        counts = np.bincount(users, minlength=num_users + 1)
        return cls(movies.astype(np.int32, copy=False), _offsets(counts))

    @property
    def num_users(self) -> int:
        """The highest user id."""
        return len(self.offsets) - 2

    @property
    def lengths(self) -> Integers:
        """`(num_users + 1,)` how many movies each user has, by user id."""
        return np.diff(self.offsets)

    def __getitem__(self, user_id: int) -> Ids:
        if not 0 <= user_id < len(self.offsets) - 1:
            raise IndexError(
                f"Histories: there is no user {user_id}; ids run from 0 to {self.num_users}"
            )
        return self.items[self.offsets[user_id] : self.offsets[user_id + 1]]


def histories(ratings: pd.DataFrame, num_users: int | None = None) -> Histories:
    """Group interactions by user, in time order.

    Args:
        ratings: one row an interaction, with `user_id`, `movie_id` and `timestamp`. Rows of
            equal timestamp keep their order.
        num_users: the highest user id; the highest in `ratings` when omitted.

    Returns:
        The `Histories` of users 0 (padding, empty) to `num_users`.

    Raises:
        TypeError: ids are not integers, or `timestamp` is neither a number nor a time.
        ValueError: a column is missing, an id is below 1, a user id is above `num_users`, a
            timestamp is missing, or `ratings` is empty and `num_users` is not given.

    Example:
        >>> ratings = pd.DataFrame(
        ...     {"user_id": [1, 1, 2], "movie_id": [5, 6, 5], "timestamp": [20, 10, 30]})
        >>> histories(ratings)[1]
        array([6, 5], dtype=int32)
    """
    users = checks.ids(checks.frame(ratings, "histories"), "user_id", "histories")
    movies = checks.ids(ratings, "movie_id", "histories")
    order = order_by_user_and_time(users, checks.times(ratings, "histories"))
    if num_users is None:
        if len(users) == 0:
            raise ValueError(
                "histories: the ratings are empty, so the number of users is unknown; "
                "pass num_users, or check the filter that left no rows"
            )
        num_users = int(users.max())
    num_users = checks.integer(num_users, "histories: num_users", 0)
    if users.max(initial=0) > num_users:
        raise ValueError(
            f"histories: user_id {users.max()} is above num_users={num_users}; "
            "pass the highest user id, or none at all"
        )
    return Histories.of_rows(users[order], movies[order], num_users)


def order_by_user_and_time(users: Integers, times: npt.NDArray[Any]) -> Integers:
    """The order by user, then time, then row: the one sort of the package.

    Value and row number share one 64-bit key where they fit: sorting plain integers is several
    times faster than sorting row numbers by a column.

    Args:
        users: `(n,)` user ids, not negative.
        times: `(n,)` numbers that grow with time.

    Returns:
        `(n,)` int64 row numbers.

    Example:
        >>> order_by_user_and_time(np.array([2, 1, 2]), np.array([5, 9, 3]))
        array([1, 2, 0])
    """
    if len(users) == 0:
        return np.zeros(0, np.int64)
    if times.dtype.kind != "i":
        return np.lexsort((times, users))
    earliest = int(times.min())
    user_bits = int(users.max()).bit_length()
    time_bits = (int(times.max()) - earliest).bit_length()
    row_bits = len(users).bit_length()
    if user_bits + time_bits + row_bits > 63:
        return np.lexsort((times, users))
    keys = users.astype(np.int64) << time_bits
    keys += times
    keys -= earliest
    keys <<= row_bits
    keys += np.arange(len(users))
    keys.sort()
    keys &= (1 << row_bits) - 1
    return keys


def sliding_windows(
    histories: Histories,
    length: int,
    min_length: int = 3,
    padding: str = "after",
    *,
    return_users: bool = False,
) -> tuple[Ids, ...]:
    """For every movie but a user's first: the movies before it, and the movie itself.

    This is the shape of training data in the documented GRU4Rec recipe: one row a position.

    Args:
        histories: the users' movies, oldest first.
        length: how many previous movies a row holds at most.
        min_length: users with fewer movies than this give no rows; at least 2.
        padding: where short contexts get `PADDING_ID`: `"after"` or `"before"` the movies.
        return_users: also return the user id each window is from.

    Returns:
        `(n, length)` int32 contexts, oldest movie first, and `(n,)` int32 targets; the rows of
        a user follow each other in time order. With `return_users`, also `(n,)` int32.

    Raises:
        TypeError: `length` or `min_length` is not an integer.
        ValueError: `length < 1`, `min_length < 2`, or an unknown `padding`.

    Example:
        >>> one_user = Histories(np.array([4, 5, 6], np.int32), np.array([0, 0, 3]))
        >>> contexts, targets = sliding_windows(one_user, length=2)
        >>> contexts.tolist(), targets.tolist()
        ([[4, 0], [4, 5]], [5, 6])
    """
    length = checks.integer(length, "sliding_windows: length", 1)
    min_length = checks.integer(min_length, "sliding_windows: min_length", 2)
    lengths = histories.lengths
    counts = np.where(lengths >= min_length, lengths - 1, 0)
    starts = np.repeat(histories.offsets[:-1], counts)
    targets = starts + 1 + _count_up(counts)
    contexts = _gather(
        histories.items, starts, targets, length, before=_is_before(padding, "sliding_windows")
    )
    movies = histories.items[targets].astype(np.int32, copy=False)
    if return_users:
        return contexts, movies, np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return contexts, movies


def training_windows(
    histories: Histories, length: int, stride: int | None = None, *, return_users: bool = False
) -> tuple[Ids, ...]:
    """Cut whole histories into windows with a next-movie target at every position.

    Windows are laid from the end of each history, so a user's latest movies are always in a
    full window and what is padded (on the left) is the oldest one. With the default stride
    every pair of successive movies is in exactly one window.

    Args:
        histories: the users' movies, oldest first. Users with fewer than two give no window.
        length: positions a window.
        stride: steps between the ends of successive windows of a user, 1 to `length`; below
            `length` windows overlap and movies repeat. `length` when omitted.
        return_users: also return the user id each window is from.

    Returns:
        `(n, length)` int32 inputs and `(n, length)` int32 targets: the target of a position is
        the movie after its input, and `PADDING_ID` where the input is padding. With
        `return_users`, also `(n,)` int32.

    Raises:
        TypeError: `length` or `stride` is not an integer.
        ValueError: `length < 1`, or `stride` is not between 1 and `length`.

    Example:
        >>> one_user = Histories(np.array([4, 5, 6, 7], np.int32), np.array([0, 0, 4]))
        >>> inputs, targets = training_windows(one_user, length=2)
        >>> inputs.tolist(), targets.tolist()
        ([[0, 4], [5, 6]], [[0, 5], [6, 7]])
    """
    length = checks.integer(length, "training_windows: length", 1)
    stride = length if stride is None else checks.integer(stride, "training_windows: stride", 1)
    if stride > length:
        raise ValueError(
            f"training_windows: stride={stride} is above length={length} and would skip movies; "
            "choose a stride of at most the length"
        )
    pairs = np.maximum(histories.lengths - 1, 0)  # (input, target) pairs of each user
    counts = np.where(pairs > 0, np.maximum(-(-(pairs - length) // stride), 0) + 1, 0)
    starts = np.repeat(histories.offsets[:-1], counts)
    # oldest window first: the last of a user's windows ends with the user's last pair
    steps_from_end = np.repeat(counts, counts) - 1 - _count_up(counts)
    ends = np.repeat(histories.offsets[1:] - 1, counts) - steps_from_end * stride
    inputs = _gather(histories.items, starts, ends, length, before=True)
    targets = _gather(histories.items, starts + 1, ends + 1, length, before=True)
    if return_users:
        return inputs, targets, np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return inputs, targets


def last_window(
    histories: Histories,
    length: int,
    padding: str = "before",
    users: npt.ArrayLike | None = None,
) -> Ids:
    """The most recent `length` movies of users, as one padded array.

    Args:
        histories: the users' movies, oldest first.
        length: how many movies a row holds.
        padding: where short histories get `PADDING_ID`: `"before"` or `"after"` the movies.
        users: `(n,)` the user ids wanted; all from 0 to `num_users` when omitted.

    Returns:
        `(n, length)` int32, one row a user.

    Raises:
        TypeError: `length` or `users` are not integers.
        ValueError: `length < 1`, an unknown `padding`, or a user is not in `histories`.

    Example:
        >>> one_user = Histories(np.array([4, 5, 6], np.int32), np.array([0, 0, 3]))
        >>> last_window(one_user, length=2).tolist()
        [[0, 0], [5, 6]]
    """
    length = checks.integer(length, "last_window: length", 1)
    before = _is_before(padding, "last_window")
    rows = _users(users, histories, "last_window")
    starts, ends = histories.offsets[rows], histories.offsets[rows + 1]
    return _gather(histories.items, starts, ends, length, before=before)


def sample_negatives(
    histories: Histories,
    num_movies: int,
    count: int,
    seed: int | Sequence[int] | np.random.Generator,
    *,
    users: npt.ArrayLike | None = None,
    alpha: float = 0.0,
) -> Ids:
    """Draw movies that a user has not watched, exactly as their weights say.

    A movie is drawn from the whole catalogue, and drawn again while the user has watched it, a
    few times. What is left then, of users who have watched nearly everything, is drawn from the
    line of the movies they have not watched, each as wide as its weight. Both give a movie with
    its share of the weight that is left to the user; weights are integers, so the bookkeeping is
    exact, and users who have seen all movies but one cost little more than others.

    Args:
        histories: the users' movies, in any order.
        num_movies: the highest movie id.
        count: draws a row, with replacement.
        seed: seed or generator of the draws.
        users: `(n,)` the user id each row of the result is for; all from 0 to `num_users` when
            omitted.
        alpha: a movie watched `c` times has weight `max(c, 1) ** alpha`: 0 draws uniformly,
            1 in proportion to popularity.

    Returns:
        `(n, count)` int32 movie ids, 1 to `num_movies`.

    Raises:
        TypeError: `num_movies`, `count` or `users` are not integers.
        ValueError: `count` is negative, `num_movies` is below 1 or below a movie of the
            histories, a user is not in `histories` or has watched every movie, or `alpha` is
            not finite.

    Example:
        >>> one_user = Histories(np.array([1, 2, 4], np.int32), np.array([0, 0, 3]))
        >>> sample_negatives(one_user, num_movies=4, count=3, seed=0, users=[1]).tolist()
        [[3, 3, 3]]
    """
    num_movies = checks.integer(num_movies, "sample_negatives: num_movies", 1)
    count = checks.integer(count, "sample_negatives: count", 0)
    highest = int(histories.items.max(initial=0))
    if highest > num_movies:
        raise ValueError(
            f"sample_negatives: the histories hold movie {highest}, above "
            f"num_movies={num_movies}; pass the highest movie id of the catalogue"
        )
    num_rows = len(histories.offsets) - 1
    rows = _users(users, histories, "sample_negatives")
    weights = _integer_weights(histories.items, num_movies, alpha, num_rows)
    ends = np.cumsum(weights)  # movie m spans [ends[m - 2], ends[m - 1])
    rng = np.random.default_rng(seed)
    negatives = _draw(rng, ends, (len(rows), count))

    # a few users at a time, so that the table of who has watched what stays small
    width = num_movies + 1
    users_at_once = max(1, _TABLE_CELLS // width)
    table = np.zeros(min(users_at_once, num_rows) * width, bool)
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    for first in range(0, num_rows, users_at_once):
        last = min(first + users_at_once, num_rows)
        begin, end = np.searchsorted(ordered, [first, last])
        if begin == end:
            continue
        owners = np.repeat(np.arange(last - first), histories.lengths[first:last])
        items = histories.items[histories.offsets[first] : histories.offsets[last]]
        watched = owners * width + items
        table[watched] = True

        chosen = order[begin:end]
        drawn = negatives[chosen]
        lines = (rows[chosen] - first) * width  # where each row's user begins in the table
        hits = np.flatnonzero(table[lines[:, None] + drawn])
        for _ in range(_TRIES):
            drawn.flat[hits] = again = _draw(rng, ends, len(hits))
            hits = hits[table[lines[hits // max(count, 1)] + again]]
        if len(hits):
            drawn.flat[hits] = _draw_unwatched(rng, weights, histories, rows[chosen[hits // count]])
        negatives[chosen] = drawn
        table[watched] = False
    return negatives


#: Cells of the table that tells whether a user has watched a movie: 4 MiB stay in the cache.
_TABLE_CELLS = 2**22
#: How often a watched movie is drawn again before the unwatched ones are lined up.
_TRIES = 8


def _draw(rng: np.random.Generator, ends: Integers, size: int | tuple[int, int]) -> Ids:
    """Movies by weight, whose running sum is `ends`; int32 of the given size."""
    if ends[-1] == len(ends):  # every movie is one wide
        return rng.integers(1, len(ends) + 1, size=size, dtype=np.int32)
    points = rng.integers(0, ends[-1], size=size)
    return np.asarray(np.searchsorted(ends, points, side="right") + 1, np.int32)


def _draw_unwatched(
    rng: np.random.Generator, weights: Integers, histories: Histories, users: Integers
) -> Ids:
    """A movie by weight for each of the `users` that they have not watched.

    The movies a user has not watched are lined up, each as wide as its weight; a draw is a point
    on that line.

    Raises:
        ValueError: a user has watched every movie.
    """
    num_movies = len(weights)
    edges = _offsets(weights)  # movie m spans [edges[m - 1], edges[m])
    asked, rows = np.unique(users, return_inverse=True)
    lengths = histories.lengths[asked]

    # each user's distinct movies in id order, and the line that is left without them
    owners = np.repeat(np.arange(len(asked)), lengths)
    places = np.repeat(histories.offsets[asked], lengths) + _count_up(lengths)
    watched = np.sort(owners * (num_movies + 1) + histories.items[places])
    owners, items = np.divmod(watched, num_movies + 1)
    distinct = (items != PADDING_ID) & (np.diff(watched, prepend=-1) != 0)
    owners, items = owners[distinct], items[distinct]
    removed = _offsets(weights[items - 1])  # before each, all users
    first = np.searchsorted(owners, np.arange(len(asked) + 1))
    free = edges[-1] - (removed[first[1:]] - removed[first[:-1]])  # (len(asked),)
    if not free.all():
        raise ValueError(
            f"sample_negatives: user {asked[np.argmin(free)]} has watched all {num_movies} movies, "
            "so there is no negative to draw; leave the user out or check num_movies"
        )
    cuts = edges[items - 1] - (removed[:-1] - removed[first[owners]])  # where items were cut out
    keys = owners * (edges[-1] + 1) + cuts

    points = rng.integers(0, free[rows])
    passed = np.searchsorted(keys, rows * (edges[-1] + 1) + points, side="right")
    points += removed[passed] - removed[first[rows]]
    return np.asarray(np.searchsorted(edges, points, side="right"), np.int32)


def _gather(items: Ids, starts: Integers, ends: Integers, length: int, *, before: bool) -> Ids:
    """The last `length` of `items[start:end]` for each row, padded before or after.

    Args:
        items: `(m,)` the flat array.
        starts: `(n,)` where each row's span begins.
        ends: `(n,)` where it ends (exclusive), at least `starts`.
        length: width of the result.
        before: padding goes before the items, not after.

    Returns:
        `(n, length)` int32.
    """
    margin = np.full(length, PADDING_ID, np.int32)
    padded = np.concatenate([margin, items, margin])
    begins = ends - length if before else np.maximum(ends - length, starts)
    # a window is one item of its own size, which NumPy copies faster than `length` of them
    window = np.dtype((np.void, padded.itemsize * length))
    every = np.ndarray(len(padded) - length + 1, window, padded, strides=padded.strides)
    windows = every[begins + length].view(np.int32).reshape(-1, length)
    short = np.flatnonzero(ends - starts < length)  # these reach into a neighbour's movies
    steps = begins[short, None] + np.arange(length)
    inside = (steps >= starts[short, None]) & (steps < ends[short, None])
    windows[short] = np.where(inside, windows[short], PADDING_ID)
    return windows


def _integer_weights(items: Ids, num_movies: int, alpha: float, num_rows: int) -> Integers:
    """`(num_movies,)` draw weights of movies 1 to `num_movies` as integers of at least 1.

    They are scaled so that `num_rows` times their sum fits a 64-bit integer.
    """
    if checks.number(alpha, "sample_negatives: alpha", -np.inf) == 0:
        return np.ones(num_movies, np.int64)
    watched = np.bincount(items, minlength=num_movies + 1)[1:]
    logs = alpha * np.log(np.maximum(watched, 1))
    shares = np.exp(logs - logs.max())
    shares /= shares.sum()
    scale = 2.0 ** min(50, 61 - num_rows.bit_length())
    return np.asarray(np.maximum(np.rint(shares * scale), 1), np.int64)


def _users(users: npt.ArrayLike | None, histories: Histories, place: str) -> Integers:
    """The user ids as int64, checked; all of them for None."""
    if users is None:
        return np.arange(histories.num_users + 1)
    return checks.integers(users, f"{place}: users", 0, histories.num_users)


def _is_before(padding: str, function: str) -> bool:
    return checks.choice(padding, f"{function}: padding", ("before", "after")) == "before"


def _offsets(counts: Integers) -> Integers:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _count_up(counts: Integers) -> Integers:
    """0, 1, ... for each count in turn: `[2, 3]` gives `[0, 1, 0, 1, 2]`."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
