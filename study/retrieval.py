"""Retrieval: errors on ratings, softmax over the batch and over the catalogue, made right."""

from __future__ import annotations

from typing import Any

import pandas as pd

from rectutor.evaluation import Trained, evaluate
from rectutor.splits import random_split
from study import protocol
from study.core import Comparison, Draw, Job, facts, ranked


def learned(draw: Draw, recommender: Any, frame: Any, **more: float) -> dict[str, Any]:
    """What a model that was trained on a frame reaches on the test part."""
    return ranked(evaluate(Trained(recommender, frame), draw.split), **more)


def documented_model(draw: Draw) -> Any:
    """A fresh documented model."""
    draw.code.keras.utils.set_random_seed(draw.seed)
    return draw.code.DocumentedRetrieval(draw.data.num_users, draw.data.num_movies)


def how(draw: Draw) -> dict[str, Any]:
    """What the trainings on ratings take."""
    of_chapter = {"batch_size": draw.settings.batch_size, "seed": draw.seed}
    return {**of_chapter, "scale": draw.data.rating_scale}


def adamw_for_ratings(draw: Draw) -> Any:
    """The optimizer that lowers the error on ratings."""
    settings = draw.settings
    return draw.code.keras.optimizers.AdamW(
        settings.learning_rate, weight_decay=settings.rating_decay
    )


def on_ratings(draw: Draw) -> dict[str, Any]:
    """The losses that the documentation prints, on the random split; the same loss under AdamW."""
    code, settings = draw.code, draw.settings
    rated = random_split(draw.data, test_fraction=0.2, seed=42)
    model, scale = documented_model(draw), draw.data.rating_scale
    code.train_documented(model, rated.train, epochs=settings.documented_epochs, **how(draw))
    loss = model.history.history["loss"][-1]
    error = code.predicted_error(model, rated.test, scale)["rmse"].value
    found = {"random split: MSE, documented": facts(loss=loss, val_loss=error**2, rmse=error)}
    model = documented_model(draw)
    more = {"optimizer": adamw_for_ratings(draw), "epochs": settings.rating_epochs}
    code.train_ratings(model, rated.train, **more, **how(draw))
    error = code.predicted_error(model, rated.test, scale)["rmse"].value
    return found | {"random split: MSE, AdamW": facts(val_loss=error**2, rmse=error)}


def mse(draw: Draw) -> dict[str, Any]:
    """The mean squared error on ratings, ranked by."""
    code, settings, train = draw.code, draw.settings, draw.split.train
    model = documented_model(draw)
    code.train_documented(model, train, epochs=settings.documented_epochs, **how(draw))
    found = {"MSE, documented": learned(draw, code.by_towers(model), train)}
    model = documented_model(draw)
    more = {"optimizer": adamw_for_ratings(draw), "epochs": settings.rating_epochs}
    code.train_ratings(model, train, **more, **how(draw))
    return found | {"MSE, AdamW": learned(draw, code.by_towers(model), train)}


def until_stalled(draw: Draw, train: Any, model: Any, scores: Any, **more: Any) -> Any:
    """Train by the chapter's rule; what watched, and facts of it."""
    settings = draw.settings
    watch, stalled = draw.code.train_until_stalled(
        train,
        model,
        scores,
        draw.split,
        optimizer=draw.code.adamw(settings),
        patience=settings.patience,
        seed=draw.seed,
        **more,
    )
    best = max(float(look["ndcg"]) for look in watch.history)
    return watch, {
        "epochs": watch.best_epoch,
        "validation_ndcg": best,
        "stalled": float(stalled),
        "seconds": watch.history[-1]["seconds"],
    }


def sizes(draw: Draw) -> tuple[Any, ...]:
    """Of the models made right."""
    settings, data = draw.settings, draw.data
    return data.num_users, data.num_movies, settings.width, settings.dropout


def in_batch(draw: Draw) -> dict[str, Any]:
    """A softmax over the batch: plain, without accidental hits, with the log-Q correction too."""
    code, settings, found = draw.code, draw.settings, {}
    for name, switches in code.IN_BATCH.items():
        draw.code.keras.utils.set_random_seed(draw.seed)
        model = code.InBatchRetrieval(*sizes(draw), **switches)
        scores = code.by_towers(model)
        more = {"batch_size": settings.batch_size, "epochs": settings.in_batch_epochs, "every": 1}
        _, of_training = until_stalled(draw, code.train_in_batch, model, scores, **more)
        found[name] = learned(draw, scores, draw.split.train, **of_training)
    return found


def catalogue(draw: Draw) -> dict[str, Any]:
    """A softmax over the catalogue; what validation chooses, trained anew."""
    code, settings, split = draw.code, draw.settings, draw.split
    of_rows = {"users_per_batch": settings.users_per_batch, "smoothing": settings.smoothing}
    found, reached = {}, {}
    for name, use_history in code.CATALOGUE.items():
        draw.code.keras.utils.set_random_seed(draw.seed)
        model = code.CatalogueRetrieval(*sizes(draw), use_history)
        scores = code.by_catalogue(model)
        more = {"epochs": settings.catalogue_epochs, "every": settings.catalogue_every, **of_rows}
        watch, of_training = until_stalled(draw, code.train_catalogue, model, scores, **more)
        found[name] = learned(draw, scores, split.train, **of_training)
        reached[name] = (of_training["validation_ndcg"], watch.best_epoch)
    chosen = max(reached, key=lambda name: reached[name][0])
    past = pd.concat([split.train, split.validation])
    draw.code.keras.utils.set_random_seed(draw.seed)
    model = code.CatalogueRetrieval(*sizes(draw), code.CATALOGUE[chosen])
    epochs = reached[chosen][1]
    optimizer = code.adamw(settings)
    code.train_catalogue(model, past, optimizer, seed=draw.seed, epochs=epochs, **of_rows)
    kept = {"epochs": epochs, "with_history": float(code.CATALOGUE[chosen])}
    final = Trained(code.by_catalogue(model), past)
    found |= {"made right": ranked(evaluate(final, split), **kept)}
    return found | protocol.arms("made right", final, draw)


JOBS = [
    Job("retrieval", "on_ratings", on_ratings, runs=10, seconds=25),
    Job("retrieval", "mse", mse, runs=10, seconds=25),
    Job("retrieval", "in_batch", in_batch, runs=5, seconds=100),
    Job("retrieval", "catalogue", catalogue, runs=5, seconds=100),
]

PLAIN, MASKED = "in-batch softmax", "in-batch, hits removed"
LOG_Q, EXACT = "in-batch, log-Q corrected", "catalogue softmax"
HISTORY, FINAL = "catalogue softmax, history", "made right"
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
        ("no movie a negative of itself", f"retrieval/{PLAIN}", MASKED, "C11"),
        ("the log-Q correction, hits removed", f"retrieval/{MASKED}", LOG_Q, "C11"),
        ("softmax over the batch instead of ratings", "retrieval/MSE, AdamW", LOG_Q, "C7"),
        ("the repaired softmax instead of popularity", "baselines/popularity", LOG_Q, ""),
        (
            "the catalogue (with biases and smoothing) instead of the repaired batch",
            f"retrieval/{LOG_Q}",
            EXACT,
            "",
        ),
        ("the history besides the user's id", f"retrieval/{EXACT}", HISTORY, ""),
        ("made right instead of popularity", "baselines/popularity", FINAL, ""),
        ("made right instead of item kNN", "baselines/item kNN", FINAL, ""),
        ("made right instead of EASE", "baselines/EASE", FINAL, ""),
        ("made right instead of recency EASE", "baselines/EASE, recency", FINAL, ""),
    )
]
