"""About how long GRU4Rec and SASRec take on a table of one's own, said before they begin.

The costs of MovieLens 100K and of latest-small, which has five times the items, were measured in
the `quick` profile on two cores. So it is an estimate: a busy or an older machine takes longer.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Cost(NamedTuple):
    """What a chapter costs in the `quick` profile, in seconds on two cores.

    Attributes:
        fixed: imports, compiling, tests.
        matrix: baselines, for a thousand items; it grows with their cube.
        row: the documented training, a row (an interaction, or a user) and epoch.
        by_user: whether a row of that is a user.
        epochs: of all documented trainings, and of each of them.
        position: the model made right, a position and epoch.
        score: the same, for each item of the catalogue that the position is compared with.
        right_epochs: likewise, of all trainings and of each.
    """

    fixed: float
    matrix: float
    row: float
    by_user: bool
    epochs: tuple[int, int]
    position: float
    score: float
    right_epochs: tuple[int, int]


#: Positions a window in the `quick` profile, at most.
LENGTH = 50

COSTS = {
    "gru4rec": Cost(40, 0.10, 28e-6, False, (15, 5), 5e-6, 5.3e-9, (13, 12)),
    "sasrec": Cost(40, 0.07, 4e-3, True, (10, 10), 10e-6, 0.7e-9, (48, 24)),
}


def window(counts: np.ndarray, most: int) -> tuple[int, float]:
    """How long a window has to be for nine histories in ten, `most` at most.

    Args:
        counts: how many interactions each user has; those with none are left out.
        most: what the profile says.

    Returns:
        The length, a multiple of 5 where it is less than `most`; and what nine in ten have.
    """
    covers = float(np.quantile(counts[counts > 0], 0.9))
    return min(most, 5 * math.ceil(covers / 5)), covers


def minutes(
    chapter: str, counts: np.ndarray, num_items: int, most_epochs: int | None = None
) -> float:
    """How many minutes a chapter takes at most, on two cores.

    Args:
        chapter: one of `COSTS`.
        counts: how many interactions each user has.
        num_items: the size of the catalogue.
        most_epochs: a limit to the epochs of each training.
    """
    cost = COSTS[chapter]
    most = most_epochs or max(*cost.epochs, *cost.right_epochs)
    documented, right = (
        total * min(each, most) / each for total, each in (cost.epochs, cost.right_epochs)
    )
    length, _ = window(counts, LENGTH)
    positions = length * np.ceil(counts / length).sum()
    rows = np.count_nonzero(counts) if cost.by_user else counts.sum()
    seconds = (
        cost.fixed
        + cost.matrix * (num_items / 1000) ** 3
        + documented * rows * cost.row
        + right * positions * (cost.position + cost.score * num_items)
    )
    return float(seconds / 60)


def said(chapter: str, counts: np.ndarray, num_items: int, most_epochs: int | None = None) -> str:
    """The minutes in a line or two; empty for a chapter of which they are not known.

    Without a limit the line names the switch that sets one. See `minutes` for the arguments.
    """
    if chapter not in COSTS:
        return ""
    found = _about(minutes(chapter, counts, num_items, most_epochs))
    told = f"expected: {found} on two cores, less where it stops early"
    if most_epochs:
        return told
    few = _about(minutes(chapter, counts, num_items, 5))
    return (
        f"{told}\n    RECTUTOR_EPOCHS=5 ends each training after 5 epochs, for a first look "
        f"({few}); few epochs can leave a model below popularity"
    )


def _about(found: float) -> str:
    whole = max(round(found), 1)
    return f"about {whole} minute{'s' * (whole > 1)}"
