"""Ranking: the documented recipe, its network trained well, and averages of small models."""

from __future__ import annotations

from typing import Any

import numpy as np

from rectutor.splits import random_split
from study.core import Comparison, Draw, Job, rated

#: What validation chose for the network in an earlier edition; choosing anew in each run would cost
#: four times as much.
NETWORK_DECAY = 3.0
#: How the two parts are called: as an arm begins.
RANDOM, FOLDS = "", "folds: "


def parts(draw: Draw, prefix: str) -> tuple[Any, Any]:
    """The ratings to learn from and those to test on."""
    if prefix == FOLDS:
        return draw.folds()
    split = random_split(draw.data, test_fraction=0.2, seed=42)
    return split.train, split.test


def arrays(draw: Draw, prefix: str) -> tuple[Any, Any, Any, Any]:
    """Inputs and labels to learn from, inputs and labels to test on."""
    learn, test = (draw.code.arrays(each, draw.data.rating_scale) for each in parts(draw, prefix))
    return *learn, test[0], test[1].astype(np.float64)


def sizes(draw: Draw) -> tuple[int, int]:
    """The highest ids."""
    return draw.data.num_users, draw.data.num_movies


def recipe(draw: Draw, decay: float) -> dict[str, Any]:
    """What `train` of the chapter takes."""
    names = ("epochs", "batch_size", "learning_rate")
    of_chapter = {name: getattr(draw.settings, name) for name in names}
    return {**of_chapter, "seed": draw.seed, "decay": decay}


def documented(draw: Draw, prefix: str = RANDOM) -> dict[str, Any]:
    """The documented recipe, with the figures that its documentation prints; and the biases."""
    code, settings = draw.code, draw.settings
    x, y, x_test, y_test = arrays(draw, prefix)
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
    miss = predicted - y_test
    mean, of_users, of_movies = code.fit_biases(x, y, sizes(draw))
    biases = np.clip(mean + of_users[x_test[0]] + of_movies[x_test[1]], 0, 1)
    learned = np.sqrt(np.mean((code.predict(model, x) - y) ** 2))
    more = {"test_loss": np.mean(miss**2), "offset": miss.mean(), "training_rmse": learned}
    return {
        f"{prefix}documented": rated(predicted, y_test, x_test[0], **more),
        f"{prefix}user and movie bias": rated(biases, y_test, x_test[0]),
    }


def network(draw: Draw, prefix: str = RANDOM) -> dict[str, Any]:
    """The documented network under AdamW and a falling rate."""
    x, y, x_test, y_test = arrays(draw, prefix)
    model = draw.code.new_documented_model(sizes(draw), dim=draw.settings.dim, seed=draw.seed)
    history, _ = draw.code.train(model, x, y, **recipe(draw, NETWORK_DECAY))
    outcome = rated(
        draw.code.predict(model, x_test),
        y_test,
        x_test[0],
        training_rmse=history["loss"][-1] ** 0.5,
        decay=NETWORK_DECAY,
    )
    return {f"{prefix}documented network, AdamW": outcome}


def ids_only(draw: Draw, prefix: str = RANDOM) -> dict[str, Any]:
    """One factor model, and an average of many."""
    settings, found = draw.settings, {}
    x, y, x_test, y_test = arrays(draw, prefix)
    for name, members in (("one member", 1), ("made right, ids only", settings.members)):
        model = draw.code.new_ensemble(
            y, sizes(draw), members=members, dim=settings.rank, seed=draw.seed
        )
        draw.code.train(model, x, y, **recipe(draw, settings.decay))
        found[prefix + name] = rated(draw.code.predict(model, x_test), y_test, x_test[0])
    return found


def features(draw: Draw, prefix: str = RANDOM) -> dict[str, Any]:
    """The same with features, with the time, and with who rated what in training."""
    code, seed = draw.code, draw.seed
    learn, test = parts(draw, prefix)
    x, y, x_test, y_test = arrays(draw, prefix)
    known = list(code.all_features(draw.data, learn))
    model = code.new_feature_ensemble(y, known, **code.FEATURES, seed=seed)
    how = {"epochs": draw.settings.epochs, "seed": seed, **code.TRAINED}
    code.train(model, (*x, *code.moments(learn, learn)), y, **how)
    predicted = code.predict(model, (*x_test, *code.moments(test, learn)))
    return {f"{prefix}made right, with features": rated(predicted, y_test, x_test[0])}


def links(draw: Draw) -> dict[str, Any]:
    """The same with who rated what alone: two ids are all it needs."""
    code, seed = draw.code, draw.seed
    x, y, x_test, y_test = arrays(draw, RANDOM)
    known = code.all_features(draw.data, parts(draw, RANDOM)[0])
    last = [each[:, -size - 1 :] for each, size in zip(known, sizes(draw)[::-1], strict=True)]
    model = code.new_feature_ensemble(y, last, **code.FEATURES, seed=seed)
    how = {"epochs": draw.settings.epochs, "seed": seed, **code.TRAINED}
    code.train(model, x, y, **how)
    return {"who rated what": rated(code.predict(model, x_test), y_test, x_test[0])}


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
    Job("ranking", "features", features, runs=5, seconds=50),
    Job("ranking", "links", links, runs=5, seconds=50),
    Job("ranking", "folds", folds, runs=5, seconds=100),
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
    ("one factor model instead of AdamW's network", "documented network, AdamW", "one member"),
    ("averaging over members", "one member", "made right, ids only"),
    ("features, time and who rated what", "made right, ids only", "made right, with features"),
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
COMPARISONS += [
    Comparison("ranking", what, f"ranking/{before}", f"ranking/{after}", metric="rmse")
    for what, before, after in (
        ("who rated what", "made right, ids only", "who rated what"),
        ("features and the time of a rating", "who rated what", "made right, with features"),
    )
]
