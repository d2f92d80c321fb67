"""Users' histories as flat arrays, and the windows that sequence models train on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rectutor import PADDING_ID


@dataclass(frozen=True)
class Histories:
    """Every user's movies in time order, stored as one flat array.

    The movies of user `u` are `items[offsets[u]:offsets[u + 1]]`, oldest first, which is also
    what `histories[u]` gives.

    Attributes:
        items: `(n,)` int32, the movies of all users, user after user.
        offsets: `(num_users + 2,)` int64, where each user's movies begin; row 0 is the padding
            user and is empty.
    """

    items: np.ndarray
    offsets: np.ndarray

    @property
    def num_users(self) -> int:
        """The highest user id."""
        return len(self.offsets) - 2

    @property
    def lengths(self) -> np.ndarray:
        """`(num_users + 1,)` how many movies each user has, by user id."""
        return np.diff(self.offsets)

    def __getitem__(self, user_id: int) -> np.ndarray:
        return self.items[self.offsets[user_id] : self.offsets[user_id + 1]]


def histories(ratings: pd.DataFrame, num_users: int | None = None) -> Histories:
    """Group interactions by user, in time order.

    Args:
        ratings: one row an interaction, with `user_id`, `movie_id` and `timestamp`. Rows of
            equal timestamp keep their order.
        num_users: the highest user id; the highest in `ratings` when omitted.

    Returns:
        The `Histories` of users 0 (padding, empty) to `num_users`.
    """
    users = ratings["user_id"].to_numpy()
    if num_users is None:
        num_users = int(users.max())
    order = np.lexsort((ratings["timestamp"].to_numpy(), users))
    items = ratings["movie_id"].to_numpy()[order].astype(np.int32)
    counts = np.bincount(users, minlength=num_users + 1)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Histories(items, offsets)


def last_window(histories: Histories, length: int, padding: str = "before") -> np.ndarray:
    """The most recent `length` movies of every user, as one padded array.

    Args:
        histories: the users' movies, oldest first.
        length: how many movies a row holds.
        padding: `"before"` puts `PADDING_ID` on the left of short histories, `"after"` on the right.

    Returns:
        `(len(histories.offsets) - 1, length)` int32, one row a user of `histories`, by position.
    """
    starts, ends = histories.offsets[:-1, None], histories.offsets[1:, None]
    steps = np.arange(length)
    if padding == "before":
        index = ends - length + steps
    else:
        index = np.maximum(ends - length, starts) + steps
    inside = (index >= starts) & (index < ends)
    safe = np.where(inside, index, 0)
    items = histories.items if len(histories.items) else np.zeros(1, np.int32)
    return np.where(inside, items[safe], PADDING_ID).astype(np.int32)
