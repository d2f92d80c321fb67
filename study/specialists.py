"""The rating specialists of the multi-task chapter's picture: the ranking chapter's ensembles.

One knows what the joint model knows, users, movies and the ratings shown; as in the ranking chapter
it may count who rated what among these, where validation finds that better. The other knows the
ranking chapter's features and times too. For each group of shares the first run tries every kind
and decay on validation, and all runs take its choice.

A module of its own, so that a change of the ranking chapter makes no other job stale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from rectutor.ratings import to_label, to_stars
from study import core
from study.core import Draw, rated
from tools import book

DECAYS = (0.8, 2.4, 7.2, 21.6)
#: The kinds that each specialist may be.
KINDS = {"specialist": ("ids", "who rated what"), "specialist with features": ("features",)}
#: Shares of the ratings, to the one whose choice they take.
GROUPS = {0.01: 0.01, 0.02: 0.01, 0.05: 0.05, 0.1: 0.05, 0.2: 0.2, 0.5: 0.2, 1.0: 1.0}
#: Steps an epoch at most: fewer ratings come in smaller batches.
STEPS = 40


def train_and_ask(draw: Draw, kind: str, decay: float, shown: Any, asked: Any) -> Any:
    """What an ensemble, trained on the ratings shown, says of others; `(n,)` labels."""
    ranking, scale = book.definitions("ranking"), draw.data.rating_scale
    settings = ranking.chapter.Run("ranking", draw.profile, draw.seed, "", "").settings(
        **ranking.SETTINGS
    )
    x, y = ranking.arrays(shown, scale)
    x_asked = ranking.arrays(asked, scale)[0]
    sizes = draw.data.num_users, draw.data.num_movies
    how = {"batch_size": settings.batch_size, "learning_rate": settings.learning_rate}
    if kind == "ids":
        size = {"members": settings.members, "dim": settings.rank}
        model = ranking.new_ensemble(y, sizes, **size, seed=draw.seed)
    else:
        known, how = list(ranking.all_features(draw.data, shown)), dict(ranking.TRAINED)
        if kind == "who rated what":  # the last columns, and the column of no one
            links = sizes[::-1]
            known = [each[:, -n - 1 :] for each, n in zip(known, links, strict=True)]
        else:
            x = (*x, *ranking.moments(shown, shown))
            x_asked = (*x_asked, *ranking.moments(asked, shown))
        model = ranking.new_feature_ensemble(y, known, **ranking.FEATURES, seed=draw.seed)
    how |= {"decay": decay, "batch_size": min(how["batch_size"], -(-len(y) // STEPS))}
    ranking.train(model, x, y, epochs=settings.epochs, seed=draw.seed, **how)
    return ranking.predict(model, x_asked)


def split_of(draw: Draw) -> Any:
    """The multi-task chapter's split for the stars."""
    rows = draw.shuffled.ratings
    rows = rows.assign(label=to_label(rows["rating"], draw.data.rating_scale))
    sizes = {"num_users": draw.data.num_users, "num_movies": draw.data.num_movies}
    return draw.code.split_for_stars(rows, draw.seed, **sizes)


def search(draw: Draw, name: str) -> dict[str, Any]:
    """What a specialist's kinds and decays make of validation: an arm of facts for each group."""
    found, split, scale = {}, split_of(draw), draw.data.rating_scale
    asked = split.validation
    actual = to_label(asked["rating"], scale)
    for share in sorted(set(GROUPS.values())):
        shown = draw.code.some_rated(split.train, share, draw.seed)
        errors = {
            f"{kind}, {decay}": float(np.sqrt(np.mean((predicted - actual) ** 2)))
            for kind in KINDS[name]
            for decay in DECAYS
            for predicted in [train_and_ask(draw, kind, decay, shown, asked)]
        }
        found[f"{name}, settings at {share:.0%}"] = core.facts(**errors)
    return found


def chosen(searched: dict[str, Any], name: str, share: float) -> tuple[str, float]:
    """The kind and the decay with the smallest error on validation."""
    errors = searched[f"{name}, settings at {GROUPS[share]:.0%}"]["facts"]
    kind, _, decay = min(errors, key=errors.get).rpartition(", ")
    return kind, float(decay)


def first_search(name: str) -> dict[str, Any]:
    """What the first run of a specialist found.

    Raises:
        RuntimeError: the first run is not stored, or not of this code.
    """
    job = next(each for each in core.jobs(["multi_task"]) if each.name == name)
    of_this = core.digest(job)
    for run in core.read(job)["runs"]:
        if run["run"] == 1 and run["digest"] == of_this:
            return dict(run["arms"])
    raise RuntimeError(f"run 1 of {job.key} chooses the settings, and is not stored; run it first")


def at_shares(draw: Draw, name: str) -> dict[str, Any]:
    """A specialist at every share of the ratings."""
    code, split = draw.code, split_of(draw)
    found = search(draw, name) if draw.number == 1 else {}
    searched = found or first_search(name)
    arms = dict(found)
    for share in code.SHARES:
        kind, decay = chosen(searched, name, share)
        shown = code.some_rated(code.known(split), share, draw.seed)
        predicted = train_and_ask(draw, kind, decay, shown, split.test)
        arm = code.of_share(name, share).partition("/")[2]
        more = {"share": share, "decay": decay}
        more |= {each: float(each == kind) for each in KINDS[name]}
        arms[arm] = rated(predicted, split.test["label"], split.test["user_id"], **more)
    return arms


def of_ids(draw: Draw) -> dict[str, Any]:
    """The one that knows what the joint model knows."""
    return at_shares(draw, "specialist")


def with_features(draw: Draw) -> dict[str, Any]:
    """The one that knows features and times too."""
    return at_shares(draw, "specialist with features")


def on_late(draw: Draw) -> dict[str, Any]:
    """The first with all ratings before each user's last fifth, asked for that."""
    code, rows = draw.code, draw.shuffled.ratings
    x, y, late = code.in_time(rows.assign(label=to_label(rows["rating"], draw.data.rating_scale)))
    scale = draw.data.rating_scale
    pairs = pd.DataFrame({name: x[name] for name in ("user_id", "movie_id")})
    pairs["rating"] = to_stars(y, scale)
    searched = search(draw, "specialist") if draw.profile == "smoke" else first_search("specialist")
    kind, decay = chosen(searched, "specialist", 1.0)
    predicted = train_and_ask(draw, kind, decay, pairs[~late], pairs[late])
    return {"history: ensemble": rated(predicted, y[late], pairs["user_id"][late])}
