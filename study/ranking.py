"""Ranking: the documented recipe, its network trained well, and the models made right."""

from __future__ import annotations

from typing import Any

import numpy as np

from rectutor.splits import random_split
from study.core import Comparison, Draw, Job, rated

#: What validation chose in the chapter's own run; choosing anew in each run would cost four times
#: as much. (For the folds too: some of a fold's test part is what the choice was made on.)
DECAYS = {"documented network, AdamW": 3.0, "made right, ids only": 1.0}
#: How the two parts are called: as an arm begins.
RANDOM, FOLDS = "", "folds: "


def parts(draw: Draw, prefix: str) -> tuple[Any, Any, Any, Any, Any]:
    """Inputs and labels to learn from, inputs, labels and users to test on."""
    if prefix == FOLDS:
        learn, test = draw.folds()
    else:
        split = random_split(draw.data, test_fraction=0.2, seed=42)
        learn, test = split.train, split.test
    scale = draw.data.rating_scale
    x, y = draw.code.arrays(learn, scale)
    x_test, y_test = draw.code.arrays(test, scale)
    return x, y, x_test, y_test.astype(np.float64), x_test[0]


def sizes(draw: Draw) -> tuple[int, int]:
    """The highest ids."""
    return draw.data.num_users, draw.data.num_movies


def recipe(draw: Draw, arm: str) -> dict[str, Any]:
    """What `train` of the chapter takes, with the decay of an arm."""
    names = ("epochs", "batch_size", "learning_rate")
    of_chapter = {name: getattr(draw.settings, name) for name in names}
    return {**of_chapter, "seed": draw.seed, "decay": DECAYS[arm]}


def documented(draw: Draw, prefix: str = RANDOM) -> dict[str, Any]:
    """The documented recipe, with the figures that its documentation prints; and the biases."""
    code, settings = draw.code, draw.settings
    x, y, x_test, y_test, users = parts(draw, prefix)
    model, _ = code.documented(
        x,
        y,
        sizes(draw),
        dim=settings.dim,
        epochs=settings.documented_epochs,
        batch_size=settings.batch_size,
        seed=draw.seed,
    )
    predicted = code.predict(model, x_test)
    found = code.error_parts(predicted, y_test)
    mean, of_users, of_movies = code.fit_biases(x, y, sizes(draw))
    biases = np.clip(mean + of_users[x_test[0]] + of_movies[x_test[1]], 0, 1)
    learned = code.error_parts(code.predict(model, x), y)["RMSE"]
    more = {"test_loss": found["RMSE"] ** 2, "offset": found["offset"], "training_rmse": learned}
    return {
        f"{prefix}documented": rated(predicted, y_test, users, **more),
        f"{prefix}user and movie bias": rated(biases, y_test, users),
    }


def network(draw: Draw, prefix: str = RANDOM) -> dict[str, Any]:
    """The documented network under AdamW and a falling rate."""
    arm = "documented network, AdamW"
    x, y, x_test, y_test, users = parts(draw, prefix)
    model = draw.code.new_documented_model(sizes(draw), dim=draw.settings.dim, seed=draw.seed)
    history, _ = draw.code.train(model, x, y, **recipe(draw, arm))
    predicted = draw.code.predict(model, x_test)
    more = {"training_rmse": history["rmse"][-1], "decay": DECAYS[arm]}
    return {prefix + arm: rated(predicted, y_test, users, **more)}


def ids_only(draw: Draw, prefix: str = RANDOM) -> dict[str, Any]:
    """Biases, a dot product and a small network."""
    arm = "made right, ids only"
    x, y, x_test, y_test, users = parts(draw, prefix)
    size = {"dim": draw.settings.dim, "dropout": draw.settings.dropout}
    model = draw.code.new_biased_model(y, sizes(draw), **size, seed=draw.seed)
    draw.code.train(model, x, y, **recipe(draw, arm))
    predicted = draw.code.predict(model, x_test)
    return {prefix + arm: rated(predicted, y_test, users, decay=DECAYS[arm])}


def features(draw: Draw, prefix: str = RANDOM) -> dict[str, Any]:
    """The same with features and with who rated what in training."""
    code, data = draw.code, draw.data
    x, y, x_test, y_test, users = parts(draw, prefix)
    of_users = code.user_features(data.users, data.num_users)
    of_movies = code.movie_features(data.movies)
    size = {"dim": draw.settings.wide, "dropout": draw.settings.dropout}
    model = code.new_feature_model(x, y, of_users, of_movies, **size, seed=draw.seed)
    code.train(model, x, y, **recipe(draw, "made right, ids only"))
    return {f"{prefix}made right, with features": rated(code.predict(model, x_test), y_test, users)}


def folds(draw: Draw) -> dict[str, Any]:
    """All of them on one of GroupLens's folds."""
    found: dict[str, Any] = {}
    for each in (documented, network, ids_only, features):
        found |= each(draw, FOLDS)
    return found


JOBS = [
    Job("ranking", "documented", documented, runs=10, seconds=10),
    Job("ranking", "network", network, runs=10, seconds=15),
    Job("ranking", "ids_only", ids_only, runs=10, seconds=15),
    Job("ranking", "features", features, runs=10, seconds=25),
    Job("ranking", "folds", folds, runs=5, seconds=65),
]

STEPS = (
    ("AdamW and a falling rate for the same network", "documented", "documented network, AdamW"),
    ("two averages instead of the documented network", "documented", "user and movie bias"),
    (
        "AdamW's network instead of two averages",
        "user and movie bias",
        "documented network, AdamW",
    ),
    ("all of the changes with the same two ids", "documented", "made right, ids only"),
    (
        "biases, a dot product and dropout, trained alike",
        "documented network, AdamW",
        "made right, ids only",
    ),
    ("features and who rated what", "made right, ids only", "made right, with features"),
)
COMPARISONS = [
    Comparison(
        "ranking",
        f"{where}{what}",
        f"ranking/{prefix}{before}",
        f"ranking/{prefix}{after}",
        metric="rmse",
    )
    for prefix, where in ((RANDOM, ""), (FOLDS, "on the five folds, "))
    for what, before, after in STEPS
]
