"""The jobs of the multi-task chapter: documented models, and joint or not at shares of ratings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from rectutor.evaluation import Trained, evaluate
from rectutor.ratings import to_label
from rectutor.splits import Split, leave_one_out
from study import histories, joint_variants, specialists
from study.core import Comparison, Draw, Job, ranked, rated


def sizes_of(draw: Draw) -> dict[str, int]:
    """The highest ids."""
    return {"num_users": draw.data.num_users, "num_movies": draw.data.num_movies}


def labelled(draw: Draw) -> pd.DataFrame:
    """The ratings, in this run's order, with their labels."""
    rows = draw.shuffled.ratings
    return rows.assign(label=to_label(rows["rating"], draw.data.rating_scale))


def of_stars(draw: Draw) -> Split:
    """The chapter's split for the stars."""
    split: Split = draw.code.split_for_stars(labelled(draw), draw.seed, **sizes_of(draw))
    return split


def of_watches(draw: Draw) -> Split:
    """Leave-one-out."""
    return leave_one_out(labelled(draw), **sizes_of(draw))


# --- as documented


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


def documented_stars(draw: Draw) -> dict[str, Any]:
    """The documented models on the random split: RMSE, and the documented accuracy."""
    code, split, found = draw.code, of_stars(draw), {}
    test = split.test
    for name, weights in documented_arms(draw).items():
        model, _ = code.train_documented(code.known(split), weights, **documented_recipe(draw))
        lists = code.top_movies(model, test["user_id"].to_numpy())
        accuracy = code.documented_accuracy(lists, test)
        predicted = code.predicted_labels(model, test)
        rmse = float(np.sqrt(np.mean((predicted - test["label"]) ** 2)))
        more = {"rmse": rmse, "accuracy": accuracy}
        found[f"{name}, stars"] = rated(predicted, test["label"], test["user_id"], **more)
    return found


def log_share(movie_ids: Any, num_movies: int) -> list[float]:
    """Each id's log share of some movies, `num_movies + 1` numbers."""
    counts = np.bincount(movie_ids, minlength=num_movies + 1)
    shares: list[float] = np.log(np.maximum(counts, 1) / counts.sum()).tolist()
    return shares


def by_affinity(model: Any) -> Any:
    """A recommender: the documented retrieval head's scores."""
    return lambda queries: model.affinities(queries.user_ids)


def documented_watches(draw: Draw) -> dict[str, Any]:
    """The documented models under P, and the joint one with each correction."""
    code, split = draw.code, of_watches(draw)
    known = code.known(split)
    log_q = log_share(known["movie_id"], draw.data.num_movies)
    asked: dict[str, Any] = {name: (arm, {}) for name, arm in documented_arms(draw).items()}
    asked["documented, multi-task + C11"] = (1.0, 1.0), {"log_q": log_q}
    found = {}
    for name, (weights, more) in asked.items():
        model, _ = code.train_documented(known, weights, **documented_recipe(draw), **more)
        asked_of = Trained(by_affinity(model), known)
        found[name] = ranked(evaluate(asked_of, split, num_resamples=1))
    return found


# --- made right


def new_model(draw: Draw) -> Any:
    """A fresh joint model."""
    settings = draw.settings
    draw.code.keras.utils.set_random_seed(draw.seed)
    return draw.code.JointModel(**sizes_of(draw), members=settings.members, dim=settings.dim)


def shares(draw: Draw) -> list[tuple[float, pd.DataFrame, Split]]:
    """Each share, the ratings that it shows, and the split."""
    code, split = draw.code, of_stars(draw)
    known = code.known(split)
    return [(each, code.some_rated(known, each, draw.seed), split) for each in code.SHARES]


def watches_known(draw: Draw, split: Split, kind: str) -> pd.DataFrame:
    """The watches that a kind of model learns from."""
    known: pd.DataFrame = draw.code.known(split)
    return pd.concat([known, split.test]) if "visible" in kind else known


def arm(draw: Draw, kind: str, share: float, split: Split, predicted: Any) -> dict[str, Any]:
    """A model's errors on the test fifth, under the name the chapter has for it."""
    name = draw.code.of_share(kind, share).partition("/")[2]
    return {name: rated(predicted, split.test["label"], split.test["user_id"], share=share)}


def from_both(draw: Draw, kind: str) -> dict[str, Any]:
    """The joint model at every share."""
    found: dict[str, Any] = {}
    for share, shown, split in shares(draw):
        model, watched = new_model(draw), watches_known(draw, split, kind)
        draw.code.train_joint(model, watched, shown, (1, 1), draw.settings, draw.seed)
        predicted = draw.code.joint_labels(model, split.test)
        found |= arm(draw, kind, share, split, predicted)
    return found


def joint_hidden(draw: Draw) -> dict[str, Any]:
    """Nothing is known of a test pair."""
    return from_both(draw, "joint, hidden")


def joint_visible(draw: Draw) -> dict[str, Any]:
    """That the test pairs were watched is known."""
    return from_both(draw, "joint, visible")


def pretrained_hidden(draw: Draw) -> dict[str, Any]:
    """First the watches alone, then at every share the ratings alone."""
    kind = "pretrained, hidden"
    found: dict[str, Any] = {}
    model, learned = new_model(draw), None
    for share, shown, split in shares(draw):
        watched = watches_known(draw, split, kind)
        if learned is None:
            draw.code.train_joint(model, watched, shown, (1, 0), draw.settings, draw.seed)
            for weight, centre, _ in model.priors:  # what was learned is what is expected
                centre.assign(np.array(weight))
            learned = model.get_weights()
        model.set_weights(learned)
        draw.code.train_joint(model, watched, shown, (0, 1), draw.settings, draw.seed)
        predicted = draw.code.joint_labels(model, split.test)
        found |= arm(draw, kind, share, split, predicted)
    return found


def by_watches(model: Any) -> Any:
    """A recommender: what the members' watch heads say, averaged."""

    def scores(queries: Any) -> np.ndarray:
        watch = np.asarray(model({"user_id": queries.user_ids})["watch"])
        mean: np.ndarray = np.mean(watch, axis=0)
        return mean

    return scores


def look_at_cosines(code: Any, probe: Any, rows: Any) -> Any:
    """A Keras callback that notes the cosine between the tasks' gradients after some epochs."""

    class Looks(code.keras.callbacks.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.found: dict[int, float] = {}

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch + 1 in (1, 10, 20, 30):
                probe.set_weights(self.model.get_weights())
                self.found[epoch + 1] = code.cosine(probe, *rows)

    return Looks()


def ranking(draw: Draw) -> dict[str, Any]:
    """Under P, the joint model with all ratings, and the same with the watches alone."""
    code, split, found = draw.code, of_watches(draw), {}
    known = code.known(split)
    for name, weights in {"joint": (1, 1), "retrieval specialist": (1, 0)}.items():
        model, looks = new_model(draw), None
        if name == "joint":
            rows = code.rows_of_users(known, known, **sizes_of(draw))
            looks = look_at_cosines(code, new_model(draw), rows)
        callbacks = [looks] if looks else []
        settings = draw.settings
        code.train_joint(model, known, known, weights, settings, draw.seed, callbacks=callbacks)
        more = {f"cosine after epoch {n}": each for n, each in looks.found.items()} if looks else {}
        asked = Trained(by_watches(model), known)
        found[name] = ranked(evaluate(asked, split, num_resamples=1), **more)
    return found


JOBS = [
    Job("multi_task", "joint-hidden", joint_hidden, seconds=70),
    Job("multi_task", "specialist", specialists.of_ids, seconds=240),
    Job("multi_task", "specialist with features", specialists.with_features, seconds=240),
    Job("multi_task", "joint-visible", joint_visible, seconds=70),
    Job("multi_task", "documented-stars", documented_stars, seconds=30),
    Job("multi_task", "documented-watches", documented_watches, seconds=40),
    Job("multi_task", "watches", ranking, seconds=40),
    Job("multi_task", "pretrained-hidden", pretrained_hidden, seconds=70),
    Job("multi_task", "history-ratings", histories.ratings_alone, seconds=40),
    Job("multi_task", "history-both", histories.both_heads, seconds=70),
    Job("multi_task", "history-next", histories.next_movie, seconds=60),
    Job("multi_task", "history-ensemble", specialists.on_late, seconds=15),
    Job("multi_task", "history-projected", histories.projected, seconds=45),
    Job("multi_task", "joint-variants", joint_variants.at_shares, seconds=120),
]

_DOCUMENTED = "multi_task/documented, multi-task"
_JOINT = "multi_task/joint"
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_MEAN = "the retrieval loss as a mean"
_HISTORY = "multi_task/history: "
_KINDS = {
    "joint, hidden": "watches and ratings together",
    "pretrained, hidden": "first the watches, then the ratings",
    "joint, visible": "together, the test pairs' watches too",
}
_VARIANTS = {
    "joint with experts": "two experts of half the width, a gate for each task",
    "joint, projected": "gradients projected, watches and ratings together",
}
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
        "the retrieval task beside rating, as documented",
        "multi_task/documented, rating-specialised, stars",
        f"{_DOCUMENTED}, stars",
        "rmse",
    ),
    *(
        Comparison(
            "multi_task",
            f"{what}, with {share:.0%} of the ratings",
            f"multi_task/specialist, {share:.0%}",
            f"multi_task/{kind}, {share:.0%}",
            "rmse",
        )
        for kind, what in _KINDS.items()
        for share in _SHARES
    ),
    *(
        Comparison(
            "multi_task",
            f"together, not a specialist with features, with {share:.0%} of the ratings",
            f"multi_task/specialist with features, {share:.0%}",
            f"multi_task/joint, hidden, {share:.0%}",
            "rmse",
        )
        for share in _SHARES
    ),
    *(
        Comparison(
            "multi_task",
            f"{what}, with {share:.0%} of the ratings",
            f"multi_task/joint, hidden, {share:.0%}",
            f"multi_task/{kind}, {share:.0%}",
            "rmse",
        )
        for kind, what in _VARIANTS.items()
        for share in joint_variants.SHARES
    ),
    Comparison(
        "multi_task", "the ratings besides the watches", "multi_task/retrieval specialist", _JOINT
    ),
    Comparison("multi_task", "the joint model made right", _DOCUMENTED, _JOINT),
    Comparison(
        "multi_task", "the joint model instead of retrieval's", "retrieval/made right", _JOINT
    ),
    Comparison(
        "multi_task", "the joint model instead of popularity", "baselines/popularity", _JOINT
    ),
    *(
        Comparison("multi_task", what, f"{_HISTORY}{before}", f"{_HISTORY}{after}", "rmse")
        for what, before, after in (
            ("a history, ratings alone", "ratings, nothing", "ratings, order"),
            ("its order, ratings alone", "ratings, mean", "ratings, order"),
            ("a history, both heads", "both, nothing", "both, order"),
            ("its order, both heads", "both, mean", "both, order"),
            ("the next-movie head, no history", "ratings, nothing", "both, nothing"),
            ("the next-movie head beside the rating", "ratings, order", "both, order"),
            ("both heads instead of ranking's ensemble", "ensemble", "both, order"),
            ("gradients projected", "both, order", "both, order, projected"),
        )
    ),
    Comparison(
        "multi_task",
        "the rating head beside the next movie",
        f"{_HISTORY}next movie alone",
        f"{_HISTORY}next movie and rating",
    ),
    Comparison(
        "multi_task",
        "a history instead of none, the next movie",
        _JOINT,
        f"{_HISTORY}next movie and rating",
    ),
]
