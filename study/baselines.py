"""The study of the baselines: each tuned on validation by one routine, under every protocol."""

from __future__ import annotations

from typing import Any

from rectutor.baselines import Baseline, choose, grids
from rectutor.evaluation import evaluate
from rectutor.splits import Split
from study import protocol
from study.core import Comparison, Draw, Job, ranked


def tuned(draw: Draw) -> dict[str, dict[str, Any]]:
    """The baselines under the book's protocol, and the same models under others."""
    arms = {}
    for name in grids():
        model, facts = fitted(name, draw.seed, draw.split, draw.split)
        arms[name] = ranked(evaluate(model, draw.split, num_resamples=1), **facts)
        arms |= protocol.arms(name, model, draw)
    return arms


def temporal(draw: Draw) -> dict[str, dict[str, Any]]:
    """The baselines where all users are cut at one moment, tuned there as well."""
    to_choose, split = protocol.one_moment(draw)
    arms = {}
    for name in grids():
        model, facts = fitted(name, draw.seed, to_choose, split)
        found = evaluate(model, split, num_resamples=1)
        arms[f"{name} | temporal"] = ranked(found, **facts)
    return arms


def fitted(
    name: str, seed: int, to_choose: Split, split: Split
) -> tuple[Baseline, dict[str, float]]:
    """A baseline ready for the test part, and how it was chosen.

    Args:
        name: of `grids()`.
        seed: where it begins at random.
        to_choose: its validation part decides the settings.
        split: what the model then learns from, validation part included.

    Returns:
        The best of its grid, and `settings_tried`, `validation_ndcg` and the settings chosen.
    """
    grid = grids(seed)[name]
    choice = choose(to_choose, grid)
    facts = {"settings_tried": len(grid), "validation_ndcg": choice.evaluation.ndcg}
    facts |= {key: value for key, value in choice.best.settings.items() if value is not None}
    return choice.best.fit(split, include_validation=True), facts


JOBS = [
    Job("baselines", "tuned", tuned, runs=10, seconds=55),
    Job("baselines", "temporal", temporal, runs=5, seconds=40),
]


def _against(before: str, after: str, what: str) -> Comparison:
    return Comparison("baselines", what, f"baselines/{before}", f"baselines/{after}")


COMPARISONS = [
    _against("EASE", "EASE, recency", "EASE whose history fades instead of EASE"),
    _against("EASE, recency", "sequential rules", "sequential rules instead of EASE, recency"),
    _against("EASE", "ALS", "ALS instead of EASE"),
    _against("EASE, recency", "item kNN, recency", "item kNN instead of EASE, both with recency"),
    *(
        _against("popularity", name, f"{name} instead of popularity")
        for name in grids()
        if name != "popularity"
    ),
]
