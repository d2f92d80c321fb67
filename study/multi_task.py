"""The jobs of the multi-task chapter: documented models, corrections, joint or specialist."""

from __future__ import annotations

from typing import Any

import pandas as pd

from rectutor.evaluation import Trained, evaluate
from rectutor.ratings import to_label
from rectutor.splits import Split, leave_one_out
from study.core import Comparison, Draw, Job, facts, ranked, rated


def sizes_of(draw: Draw) -> dict[str, int]:
    """The highest ids."""
    return {"num_users": draw.data.num_users, "num_movies": draw.data.num_movies}


def labelled(draw: Draw) -> pd.DataFrame:
    """The ratings, in this run's order, with their labels."""
    rows = draw.shuffled.ratings
    return rows.assign(label=to_label(rows["rating"], draw.data.rating_scale))


def splits(draw: Draw) -> tuple[Split, Split]:
    """The chapter's two: leave-one-out, and at random for the stars."""
    rows, sizes = labelled(draw), sizes_of(draw)
    stars = draw.code.split_for_stars(rows, **sizes, seed=draw.seed)
    return leave_one_out(rows, **sizes), stars


def documented_recipe(draw: Draw) -> dict[str, Any]:
    """What the documented trainings share."""
    return {
        **sizes_of(draw),
        "seed": draw.seed,
        "batch_size": draw.settings.documented_batch,
        "epochs": draw.settings.documented_epochs,
    }


def documented_arms(draw: Draw) -> dict[str, tuple[float, float]]:
    """The documented models and, C4, the joint one with the retrieval loss as a mean."""
    one_scale = 1 / draw.settings.documented_batch, 1.0
    return {f"documented, {name}": weights for name, weights in draw.code.DOCUMENTED.items()} | {
        "documented, multi-task + C4": one_scale
    }


def of_stars(draw: Draw, model: Any, test: pd.DataFrame, **more: float) -> dict[str, Any]:
    """A model's errors on the test fifth."""
    predicted = draw.code.predicted_labels(model, test)
    rmse = draw.code.root_mean_square(model, test)
    return rated(predicted, test["label"].to_numpy(), test["user_id"], rmse=rmse, **more)


def under_p(draw: Draw, model: Any, watches: Split, **more: float) -> dict[str, Any]:
    """A model that was trained on all before the test, asked for the test."""
    asked = Trained(draw.code.by_affinity(model), draw.code.known(watches))
    return ranked(evaluate(asked, watches, num_resamples=1), **more)


def documented_stars(draw: Draw) -> dict[str, Any]:
    """The documented models on the random split: RMSE, and the documented accuracy."""
    code, (_, stars) = draw.code, splits(draw)
    found = {}
    for name, weights in documented_arms(draw).items():
        model, _ = code.train_documented(code.known(stars), weights, **documented_recipe(draw))
        lists = code.top_movies(model, stars.test["user_id"].to_numpy())
        accuracy = code.documented_accuracy(lists, stars.test)
        found[f"{name}, stars"] = of_stars(draw, model, stars.test, accuracy=accuracy)
    return found


def documented_watches(draw: Draw) -> dict[str, Any]:
    """The documented models under P, and the joint one with each correction."""
    code, (watches, _) = draw.code, splits(draw)
    known = code.known(watches)
    log_q = code.log_share(known["movie_id"], draw.data.num_movies)
    asked = {name: (weights, {}) for name, weights in documented_arms(draw).items()}
    asked["documented, multi-task + C11"] = (1.0, 1.0), {"log_q": log_q}
    found = {}
    for name, (weights, more) in asked.items():
        model, _ = code.train_documented(known, weights, **documented_recipe(draw), **more)
        found[name] = under_p(draw, model, watches)
    return found


def joint(draw: Draw) -> dict[str, Any]:
    """The joint model, its balance chosen on validation, and both specialists."""
    code, settings = draw.code, draw.settings
    watches, stars = splits(draw)
    recipe = {
        "sizes": {**sizes_of(draw), "width": settings.width},
        "rate": settings.learning_rate,
        "decay": settings.weight_decay,
        "seed": draw.seed,
        "epochs": settings.epochs,
        "batch_size": settings.batch,
    }
    sweep, alpha = code.sweep_alphas(settings.alphas, watches, stars, recipe)
    chosen = sweep[sweep["alpha"] == alpha].iloc[0]
    found = {
        "balance": facts(
            alpha=alpha,
            at_edge=alpha in (settings.alphas[0], settings.alphas[-1]),
            validation_ndcg=chosen["NDCG@10"],
            validation_rmse=chosen["RMSE"],
        )
    }
    for name, balance in {"retrieval specialist": 0.0, "joint": alpha}.items():
        model, _ = code.train_joint(code.known(watches), balance, **recipe)
        found[name] = under_p(draw, model, watches, alpha=balance, epochs=settings.epochs)
    for name, balance in {"rating specialist, stars": 1.0, "joint, stars": alpha}.items():
        model, _ = code.train_joint(code.known(stars), balance, **recipe)
        found[name] = of_stars(draw, model, stars.test, alpha=balance, epochs=settings.epochs)
    return found


JOBS = [
    Job("multi_task", "documented-stars", documented_stars, seconds=30),
    Job("multi_task", "documented-watches", documented_watches, seconds=40),
    Job("multi_task", "joint", joint, seconds=90),
]

_DOCUMENTED = "multi_task/documented, multi-task"
_JOINT = "multi_task/joint"
_MEAN = "the retrieval loss as a mean"
COMPARISONS = [
    Comparison("multi_task", _MEAN, _DOCUMENTED, f"{_DOCUMENTED} + C4", "ndcg", "C4"),
    Comparison(
        "multi_task", _MEAN, f"{_DOCUMENTED}, stars", f"{_DOCUMENTED} + C4, stars", "rmse", "C4"
    ),
    Comparison(
        "multi_task",
        "accidental hits left out and log-Q taken off in training",
        _DOCUMENTED,
        f"{_DOCUMENTED} + C11",
        "ndcg",
        "C11",
    ),
    Comparison(
        "multi_task",
        "the rating task beside retrieval, made right",
        "multi_task/retrieval specialist",
        _JOINT,
    ),
    Comparison(
        "multi_task",
        "the retrieval task beside rating, made right",
        "multi_task/rating specialist, stars",
        f"{_JOINT}, stars",
        "rmse",
    ),
    Comparison("multi_task", "the joint model made right", _DOCUMENTED, _JOINT),
    Comparison(
        "multi_task",
        "the joint model made right",
        f"{_DOCUMENTED}, stars",
        f"{_JOINT}, stars",
        "rmse",
    ),
    Comparison(
        "multi_task",
        "the retrieval task beside rating, as documented",
        "multi_task/documented, rating-specialised, stars",
        f"{_DOCUMENTED}, stars",
        "rmse",
    ),
    Comparison(
        "multi_task", "the joint model instead of popularity", "baselines/popularity", _JOINT
    ),
    Comparison("multi_task", "the joint model instead of EASE", "baselines/EASE", _JOINT),
]
