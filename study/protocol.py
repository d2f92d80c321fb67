"""The same fitted model under other protocols, for any job of the study to add to its arms."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from rectutor import PADDING_ID
from rectutor.evaluation import Queries, Recommender, evaluate, queries_for, to_numpy
from rectutor.splits import Split, temporal_split
from study.core import Draw, ranked

#: How many movies a target is ranked among, where they are drawn.
NEGATIVES = 99


def arms(name: str, recommender: Recommender, draw: Draw) -> dict[str, dict[str, Any]]:
    """What other protocols say of a model that is ready for the test part of `draw.split`.

    Args:
        name: the arm's, under the book's protocol.
        recommender: fitted as for that arm.
        draw: the run.

    Returns:
        `NAME | 99 negatives`: the target among movies drawn at random that the user has not
        seen; `NAME | seen kept`: movies seen before compete; `NAME | tied` and `NAME | untied`:
        the book's protocol for the users whose last two movies carry the same second, and for
        the others. An arm without users is left out.
    """
    split = draw.split
    sampled = Sampled(recommender, split, draw.seed)
    found = {
        f"{name} | 99 negatives": ranked(evaluate(sampled, split, num_resamples=1)),
        f"{name} | seen kept": ranked(
            evaluate(recommender, split, exclude_seen=False, num_resamples=1)
        ),
    }
    whole = evaluate(recommender, split, num_resamples=1)
    gains = ranked(whole)["ndcg"]
    is_tied = np.isin(whole.user_ids, tied(split))
    for kind, chosen in (("tied", is_tied), ("untied", ~is_tied)):
        rows = np.flatnonzero(chosen)
        if len(rows):
            users = whole.user_ids[rows].tolist()
            outcome = {"users": users, "ndcg": [gains[row] for row in rows], "facts": {}}
            found[f"{name} | {kind}"] = outcome
    return found


class Sampled:
    """A recommender that ranks each target of the test part among movies drawn at random.

    Args:
        recommender: gives the scores.
        split: the test part is asked; rivals are drawn from what its users have not seen.
        seed: of the draw; the same for all models that are compared.

    Attributes:
        competes: `(num_users + 1, num_movies + 1)` whether a movie is ranked for a user.
        parts: what it leans on, so that `evaluate` refuses a leak of it.
    """

    def __init__(self, recommender: Recommender, split: Split, seed: int) -> None:
        self.recommender, self.parts = recommender, (recommender,)
        queries = queries_for(split)
        asked = Queries(queries.user_ids, split.targets())
        shape = (split.num_users + 1, split.num_movies + 1)
        lots = np.random.default_rng([seed, NEGATIVES]).random(shape)
        lots[:, PADDING_ID] = np.inf
        for known in (queries, asked):
            lots[known.user_ids[known.rows], known.items] = np.inf
        last = np.sort(lots, axis=1)[:, min(NEGATIVES, split.num_movies) - 1, None]
        self.competes = (lots <= last) & np.isfinite(lots)
        self.competes[asked.user_ids[asked.rows], asked.items] = True

    def __call__(self, queries: Queries) -> np.ndarray:
        """The scores of those drawn and of the target; minus infinity for all others."""
        scores = to_numpy(self.recommender(queries), "the model")
        drawn: np.ndarray = np.where(self.competes[queries.user_ids], scores, -np.inf)
        return drawn


def tied(split: Split) -> np.ndarray:
    """The users whose test and validation movie carry the same second, ascending.

    Which of the two is the test was decided by the order of the rows.
    """
    last = split.test.set_index("user_id")["timestamp"].sort_index()
    before = split.validation.set_index("user_id")["timestamp"].reindex(last.index)
    users: np.ndarray = last.index[(last == before).to_numpy()].to_numpy()
    return users


def one_moment(draw: Draw) -> tuple[Split, Split]:
    """All users cut at the same moments: the latest tenth of the ratings is test.

    The tenth before is validation. Only users who are known by then are asked about: of a new
    one there is no history, and a model that goes by histories says nothing.

    Returns:
        Two splits of the same training part: one to choose settings by its validation part, and
        one to fit on and to test.
    """
    split = temporal_split(draw.shuffled, fraction=0.1, validation_fraction=0.1)
    asked = {}
    for on, part in (("validation", split.validation), ("test", split.test)):
        known = split.histories(before=on).lengths > 0
        rows = part[known[part["user_id"].to_numpy()]]
        asked[on] = dataclasses.replace(split, order=None, **{on: rows})
    return asked["validation"], asked["test"]
