"""Where people take the same thing again: what the chapters make of it, and what changes it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rectutor.environment import is_on
from rectutor.evaluation import Queries, Recommender, _check_recommender

if TYPE_CHECKING:
    from rectutor.splits import Split

#: The share of rows that repeat from which on repeats are many.
MANY = 0.05

#: What each chapter makes of rows that repeat a user and an item.
CHAPTERS = {
    "ranking": "every row is a rating of its own, so a pair may be learned from and asked about",
    "retrieval": "the softmax counts a pair once; the documented loss counts every row",
    "gru4rec": "every repeat stays in the order, to be read and to be guessed",
    "sasrec": "every repeat stays in the order and is read; the loss made right asks for no item "
    "that is earlier in its window, so repeats are for gru4rec to learn",
    "multi_task": "the model made right has a pair once, with its last rating; the documented "
    "one learns from every row",
}

#: Chapters that leave out what a user has had, whatever is set.
LEAVE_OUT = ("serving",)


def excluded(default: bool = True) -> bool:
    """Whether what a user has had is left out of the recommendations.

    `RECTUTOR_EXCLUDE_SEEN=no` lets it compete.

    Args:
        default: what holds where the variable is not set, or empty.

    Raises:
        ValueError: the variable is neither on nor off.
    """
    return is_on("RECTUTOR_EXCLUDE_SEEN", default=default)


def said(chapter: str, exclude_seen: bool) -> str:
    """What a chapter makes of repeats, in two lines.

    Args:
        chapter: its name.
        exclude_seen: whether what a user has had is left out.
    """
    lines = [f"    {CHAPTERS[chapter]}"] if chapter in CHAPTERS else []
    lines.append(
        "    what a user has had is not recommended again, so a repeated target is a miss; "
        "RECTUTOR_EXCLUDE_SEEN=no lets it compete"
        if exclude_seen
        else "    what a user has had competes; the baselines learn from a pair once and weigh it "
        "by its latest time"
    )
    return "\n".join(lines)


def own_history(num_movies: int) -> Recommender:
    """Recommend what a user has had most often, of equals the latest.

    Args:
        num_movies: the size of the catalogue.

    Returns:
        From `Queries` to scores, `(B, num_movies + 1)` float64.
    """

    def score(queries: Queries) -> np.ndarray:
        scores = np.zeros((len(queries), num_movies + 1))  # float32 would lose what is latest
        latest = np.zeros_like(scores)
        ages = queries.offsets[1:][queries.rows] - np.arange(len(queries.rows))  # the latest: 1
        np.add.at(scores, (queries.rows, queries.items), 1.0)
        np.maximum.at(latest, (queries.rows, queries.items), 1 / (1 + ages))
        return scores + latest

    return score


def competing(recommender: Recommender, split: Split) -> tuple[Recommender, Split]:
    """The validation question for what excludes seen items, so that they compete all the same.

    `rectutor.training.BestByNDCG` leaves out what the split's training part holds. The split
    given back holds nothing there, and the recommender is asked with the histories it has.

    Args:
        recommender: maps `Queries` to scores.
        split: the interactions.

    Raises:
        ValueError: the recommender says that it has learned the validation part.
    """
    _check_recommender(recommender, split, "validation")
    known = split.histories(before="validation")

    def asked(queries: Queries) -> object:
        return recommender(Queries(queries.user_ids, known))

    return asked, replace(split, train=split.train.iloc[:0], order=None)
