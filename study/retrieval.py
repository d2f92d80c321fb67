"""Retrieval: errors on ratings, softmax losses over samples and the catalogue, cold movies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from rectutor.evaluation import Trained, evaluate
from rectutor.splits import random_split
from study import protocol
from study.core import Comparison, Draw, Job, facts, ranked


def learned(draw: Draw, recommender: Any, frame: Any, **more: float) -> dict[str, Any]:
    """What a model that was trained on a frame reaches on the test part."""
    return ranked(evaluate(Trained(recommender, frame), draw.split), **more)


def on_ratings(draw: Draw) -> dict[str, Any]:
    """The losses that the documentation prints, on the random split; the same loss under AdamW."""
    code, found = draw.code, {}
    rated = random_split(draw.data, test_fraction=0.2, seed=42)
    asked = code.to_label(rated.test["rating"], draw.data.rating_scale), rated.test["user_id"]
    for name, adamw in code.RECIPES.items():
        model = code.fit_ratings(draw.data, rated.train, draw.settings, draw.seed, adamw)
        predicted = model.predict(code.pairs(rated.test), batch_size=1_000, verbose=0)
        error, loss = code.rmse(predicted, *asked).value, model.history.history["loss"][-1]
        found[f"random split: {name}"] = facts(loss=loss, val_loss=error**2, rmse=error)
    return found


def mse(draw: Draw) -> dict[str, Any]:
    """The mean squared error on ratings, ranked by."""
    code, found, train = draw.code, {}, draw.split.train
    for name, adamw in code.RECIPES.items():
        model = code.fit_ratings(draw.data, train, draw.settings, draw.seed, adamw)
        found[name] = learned(draw, code.by_tables(model), train)
    return found


def fresh(draw: Draw, kind: tuple[str, ...]) -> Any:
    """`Towers` for a step."""
    draw.code.keras.utils.set_random_seed(draw.seed)
    settings, data = draw.settings, draw.data
    sizes = (data.num_users, data.num_movies, settings.width, settings.dropout)
    return draw.code.Towers(*sizes, history="history" in kind)


def trained(draw: Draw, name: str) -> tuple[dict[str, Any], int]:
    """A step to its early stop, and the epochs that it took."""
    code, settings, split = draw.code, draw.settings, draw.split
    kind = code.STEPS[name]
    model = fresh(draw, kind)
    watch, stalled = code.train_until_stalled(model, split, settings, seed=draw.seed, kind=kind)
    of_training = {
        "epochs": watch.best_epoch,
        "validation_ndcg": max(float(look["ndcg"]) for look in watch.history),
        "stalled": float(stalled),
        "seconds": watch.history[-1]["seconds"],
    }
    found = learned(draw, code.by_towers(model), split.train, **of_training)
    return found, watch.best_epoch


def sampled(draw: Draw) -> dict[str, Any]:
    """A softmax over the batch: plain, repaired, and with movies drawn evenly."""
    kinds = draw.code.STEPS.items()
    return {name: trained(draw, name)[0] for name, kind in kinds if "all" not in kind}


def catalogue(draw: Draw) -> dict[str, Any]:
    """A softmax over the catalogue; with smoothing and history, trained anew at the end."""
    code, settings, split, found = draw.code, draw.settings, draw.split, {}
    epochs, kind = 0, ()
    for name, kind in code.STEPS.items():
        if "all" in kind:
            found[name], epochs = trained(draw, name)
    model, past = fresh(draw, kind), pd.concat([split.train, split.validation])
    code.train_towers(model, past, settings, draw.seed, kind, epochs=epochs)
    final = Trained(code.by_towers(model), past)
    found["made right"] = ranked(evaluate(final, split), epochs=epochs)
    return found | protocol.arms("made right", final, draw)


def cold(draw: Draw) -> dict[str, Any]:
    """Movies without a known rating, other ones in each run, among themselves and among all."""
    code, settings, data = draw.code, draw.settings, draw.data
    split, *rivals = code.hold_out_movies(data.ratings, data, settings, draw.seed)
    lots = np.random.default_rng(draw.seed).random((data.num_users + 1, data.num_movies + 1))
    models = {
        "random": lambda queries: lots[queries.user_ids],
        "popularity by genre": code.by_genre(data, split, draw.seed),
        "id tower": code.cold_tower(data, split, settings, draw.seed, False),
        "feature tower": code.cold_tower(data, split, settings, draw.seed, True),
    }
    return {
        f"{name}{kind}": ranked(evaluate(code.among(model, competes), split, num_resamples=1))
        for name, model in models.items()
        for kind, competes in zip((", all movies", ""), rivals, strict=True)
    }


JOBS = [
    Job("retrieval", "cold", cold, runs=5, seconds=30),
    Job("retrieval", "catalogue", catalogue, runs=5, seconds=70),
    Job("retrieval", "sampled", sampled, runs=5, seconds=100),
    Job("retrieval", "mse", mse, runs=10, seconds=10),
    Job("retrieval", "on_ratings", on_ratings, runs=10, seconds=10),
]

PLAIN, ONCE = "in-batch softmax", "in-batch, hits removed"
LOG_Q, MIXED, FULL = "in-batch, log-Q corrected", "mixed negatives", "full softmax"
SMOOTH, HISTORY, FINAL = "catalogue softmax", "catalogue softmax, history", "made right"
GENRE, IDS, FEATURES = "popularity by genre", "id tower", "feature tower"
COMPARISONS = [
    Comparison("retrieval", what, before, f"retrieval/{after}", correction=correction)
    for what, before, after, correction in (
        (
            "AdamW instead of Adagrad for the error on ratings",
            "retrieval/MSE, documented",
            "MSE, AdamW",
            "C7",
        ),
        ("a model of ratings instead of popularity", "baselines/popularity", "MSE, AdamW", "C7"),
        ("no movie a negative of itself", f"retrieval/{PLAIN}", ONCE, "C11"),
        ("the log-Q correction, hits removed", f"retrieval/{ONCE}", LOG_Q, "C11"),
        ("softmax over the batch instead of ratings", "retrieval/MSE, AdamW", LOG_Q, "C7"),
        ("the repaired softmax instead of popularity", "baselines/popularity", LOG_Q, ""),
        ("movies drawn evenly beside the batch's", f"retrieval/{LOG_Q}", MIXED, ""),
        ("all movies instead of the batch's, repaired", f"retrieval/{LOG_Q}", FULL, ""),
        ("all movies instead of mixed negatives", f"retrieval/{MIXED}", FULL, ""),
        ("smoothed labels", f"retrieval/{FULL}", SMOOTH, ""),
        ("the history besides the user's id", f"retrieval/{SMOOTH}", HISTORY, ""),
        ("made right instead of popularity", "baselines/popularity", FINAL, ""),
        ("made right instead of item kNN", "baselines/item kNN", FINAL, ""),
        ("made right instead of EASE", "baselines/EASE", FINAL, ""),
        ("made right instead of ALS", "baselines/ALS", FINAL, ""),
        ("made right instead of recency EASE", "baselines/EASE, recency", FINAL, ""),
    )
] + [
    Comparison("retrieval", what, f"retrieval/{before}", f"retrieval/{after}", metric="hit_rate")
    for what, before, after in (
        ("cold movies: features instead of ids", IDS, FEATURES),
        ("cold movies: features instead of popularity by genre", GENRE, FEATURES),
        (
            "cold movies among all: features instead of popularity by genre",
            f"{GENRE}, all movies",
            f"{FEATURES}, all movies",
        ),
    )
]
