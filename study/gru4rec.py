"""The jobs of the GRU4Rec chapter: the documented recipe, its corrections, the model made right."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pandas as pd

from rectutor.baselines import EASE, Mixture
from rectutor.evaluation import Queries, Trained, evaluate, queries_for
from rectutor.sequences import Histories, histories, sliding_windows, training_windows
from rectutor.training import BestByNDCG
from study import protocol
from study.core import Comparison, Draw, Job, ranked


class EveryEpoch(keras.callbacks.Callback):  # type: ignore[misc]
    """Keep the weights of every epoch."""

    def on_train_begin(self, logs: Any = None) -> None:
        """Begin with none."""
        self.weights: list[Any] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Keep those of this one."""
        self.weights.append(self.model.get_weights())


def recipe(draw: Draw) -> dict[str, Any]:
    """What the documented trainings share."""
    settings = draw.settings
    return {
        "width": settings.documented_width,
        "rate": settings.documented_rate,
        "seed": draw.seed,
        "batch_size": settings.documented_batch,
        "epochs": settings.documented_epochs,
    }


def windows(draw: Draw, ratings: pd.DataFrame) -> tuple[Any, ...]:
    """The documented windows of some rows, their labels and their users."""
    rows = histories(draw.code.liked_rows(ratings), num_users=draw.data.num_users)
    return sliding_windows(rows, draw.settings.context, return_users=True)


def asked(draw: Draw, model: Any, interactions: pd.DataFrame) -> Trained:
    """A documented model, and what it was trained on."""
    return Trained(draw.code.recommender_of(model, draw.settings.context, "after"), interactions)


def leaking(draw: Draw) -> dict[str, Any]:
    """As documented: all windows shuffled, nine tenths to train on."""
    contexts, labels, owners = windows(draw, draw.shuffled.ratings)
    order = np.random.default_rng(draw.seed).permutation(len(labels))
    rows, held_out = np.split(order, [int(0.9 * len(order))])
    model, losses = draw.code.train_as_documented(
        draw.data.num_movies,
        contexts[rows],
        labels[rows],
        **recipe(draw),
        validation_data=(contexts[held_out], labels[held_out]),
        validation_batch_size=draw.settings.validation_batch,
    )
    learned = pd.DataFrame({"user_id": owners[rows], "movie_id": labels[rows]})
    recommender = asked(draw, model, learned)
    found = ranked(
        evaluate(recommender, draw.split, num_resamples=1, allow_leak=True),
        loss=losses["loss"][-1],
        val_loss=losses["val_loss"][-1],
        best_val_loss=min(losses["val_loss"]),
        best_val_epoch=int(np.argmin(losses["val_loss"])) + 1,
        leaked_share=len(recommender.leaked(draw.split, "test")) / len(draw.split.test),
    )
    return {"as documented (leak)": found}


def fair_windows(draw: Draw) -> tuple[Any, Any]:
    """The windows of the training part, in this run's order."""
    contexts, labels, _ = windows(draw, draw.split.train)
    order = np.random.default_rng(draw.seed).permutation(len(labels))
    return contexts[order], labels[order]


def without_leak(draw: Draw) -> dict[str, Any]:
    """The same on windows of the training part: the last epoch, the best, log-Q added."""
    code, split = draw.code, draw.split
    contexts, labels = fair_windows(draw)
    kept = EveryEpoch()
    # the loss of finding each user's validation movie tells which epoch is best
    queries = queries_for(split, "validation")
    asks = queries.last(draw.settings.context, "after")
    movies = split.validation.set_index("user_id")["movie_id"].loc[queries.user_ids]
    model, losses = code.train_as_documented(
        draw.data.num_movies,
        contexts,
        labels,
        **recipe(draw),
        callbacks=[kept],
        validation_data=(asks, movies.to_numpy("int32")),
        validation_batch_size=draw.settings.validation_batch,
    )
    recommender = asked(draw, model, split.train)
    log_q = code.log_share(labels, draw.data.num_movies)
    added = Trained(lambda queries: recommender(queries) + log_q, split.train)
    best = int(np.argmin(losses["val_loss"]))
    found = {
        "as documented, no leak": ranked(
            evaluate(recommender, split, num_resamples=1),
            loss=losses["loss"][-1],
            val_loss=losses["val_loss"][-1],
            best_val_epoch=best + 1,
        ),
        "as documented, no leak, log-Q": ranked(evaluate(added, split, num_resamples=1)),
    }
    model.set_weights(kept.weights[best])
    found["as documented, no leak, best epoch"] = ranked(
        evaluate(recommender, split, num_resamples=1), epochs=best + 1
    )
    return found


def drawn_anew(draw: Draw) -> dict[str, Any]:
    """Without the leak, and with other batches in every epoch."""
    model, losses = draw.code.train_as_documented(
        draw.data.num_movies, *fair_windows(draw), **recipe(draw), shuffle=True
    )
    found = evaluate(asked(draw, model, draw.split.train), draw.split, num_resamples=1)
    return {"no leak, batches drawn anew": ranked(found, loss=losses["loss"][-1])}


def corrected_in_training(draw: Draw) -> dict[str, Any]:
    """Without the leak, accidental hits left out and log-Q taken off in training."""
    contexts, labels = fair_windows(draw)
    log_q = draw.code.log_share(labels, draw.data.num_movies).tolist()
    model, _ = draw.code.train_as_documented(
        draw.data.num_movies, contexts, labels, **recipe(draw), log_q=log_q
    )
    found = evaluate(asked(draw, model, draw.split.train), draw.split, num_resamples=1)
    return {"no leak, hits masked and log-Q in training": ranked(found)}


def trained(draw: Draw, change: Any = lambda rows: rows) -> tuple[Any, Any, BestByNDCG]:
    """The model made right, early-stopped and refreshed, each ready to be asked.

    `change` is done to the histories, in training and in asking.
    """
    code, settings, split = draw.code, draw.settings, draw.split
    keras.utils.set_random_seed(draw.seed)
    shape = settings.width, settings.units, settings.dropout, settings.ahead
    model = code.GRU4Rec(draw.data.num_movies, *shape)

    def answers(which: Any, interactions: pd.DataFrame) -> Trained:
        inner = code.recommender_of(which, settings.length, "before")

        def recommender(queries: Queries) -> Any:
            return inner(Queries(queries.user_ids, change(queries.histories)))

        return Trained(recommender, interactions)

    early = answers(model, split.train)
    best = BestByNDCG(early, split, patience=settings.patience)
    code.train(
        model,
        *training_windows(change(split.histories(before="validation")), settings.length),
        rate=settings.rate,
        batch_size=settings.batch,
        epochs=settings.epochs,
        callbacks=[best],
    )
    final = code.refreshed(
        model,
        *training_windows(change(split.histories(before="test")), settings.length),
        rate=settings.rate / 10,
        batch_size=settings.batch,
        epochs=settings.refresh_epochs,
    )
    return early, answers(final, pd.concat([split.train, split.validation])), best


def made_right(draw: Draw) -> dict[str, Any]:
    """The model made right, alone and with recency-weighted EASE."""
    split, code = draw.split, draw.code
    early, final, best = trained(draw)
    ease = EASE(1000.0, tau=3.0)
    weight, tried = code.choose_weight(early, ease.fit(split), split, code.WEIGHTS)
    both = Mixture(final, EASE(1000.0, tau=3.0).fit(split, include_validation=True), weight)
    validation = max(each["ndcg"] for each in best.history)
    return protocol.arms("made right", final, draw) | {
        "made right": ranked(
            evaluate(final, split, num_resamples=1),
            epochs=best.best_epoch,
            validation_ndcg=validation,
        ),
        "made right, early-stopped": ranked(
            evaluate(early, split, num_resamples=1), epochs=best.best_epoch
        ),
        "made right + EASE": ranked(
            evaluate(both, split, num_resamples=1),
            weight=weight,
            validation_ndcg=tried[weight],
            at_edge=weight in (code.WEIGHTS[0], code.WEIGHTS[-1]),
        ),
    }


def without_order(draw: Draw) -> dict[str, Any]:
    """The model made right, trained and asked on histories in random order."""

    def change(rows: Histories) -> Histories:
        rng = np.random.default_rng([draw.seed, len(rows.items)])
        users = np.repeat(np.arange(len(rows.lengths)), rows.lengths)
        order = np.lexsort((rng.random(len(users)), users))
        return Histories(rows.items[order], rows.offsets)

    _, final, best = trained(draw, change)
    return {
        "made right, shuffled histories": ranked(
            evaluate(final, draw.split, num_resamples=1),
            epochs=best.best_epoch,
            validation_ndcg=max(each["ndcg"] for each in best.history),
        )
    }


JOBS = [
    Job("gru4rec", "leaking", leaking, seconds=45),
    Job("gru4rec", "without-leak", without_leak, seconds=45),
    Job("gru4rec", "drawn-anew", drawn_anew, seconds=40),
    Job("gru4rec", "corrected-in-training", corrected_in_training, seconds=45),
    Job("gru4rec", "made-right", made_right, seconds=150),
    Job("gru4rec", "without-order", without_order, seconds=150),
]

_FAIR = "gru4rec/as documented, no leak"
_RIGHT = "gru4rec/made right"
_BOTH = "gru4rec/made right + EASE"
COMPARISONS = [
    Comparison(
        "gru4rec",
        "the test targets no longer among the training labels",
        "gru4rec/as documented (leak)",
        _FAIR,
        "hit_rate",
        "C8",
    ),
    Comparison(
        "gru4rec", "log-Q added to the trained scores", _FAIR, f"{_FAIR}, log-Q", "ndcg", "C11"
    ),
    Comparison(
        "gru4rec",
        "accidental hits left out and log-Q taken off in training",
        _FAIR,
        "gru4rec/no leak, hits masked and log-Q in training",
        "ndcg",
        "C11",
    ),
    Comparison(
        "gru4rec",
        "batches drawn anew in every epoch",
        _FAIR,
        "gru4rec/no leak, batches drawn anew",
        "ndcg",
        "C24",
    ),
    Comparison(
        "gru4rec",
        "the weights of the epoch with the lowest validation loss instead of the last",
        _FAIR,
        f"{_FAIR}, best epoch",
        "ndcg",
        "C29",
    ),
    Comparison("gru4rec", "histories in their order", f"{_RIGHT}, shuffled histories", _RIGHT),
    Comparison("gru4rec", "a GRU made right instead of popularity", "baselines/popularity", _RIGHT),
    Comparison("gru4rec", "a GRU made right instead of EASE", "baselines/EASE", _RIGHT),
    Comparison(
        "gru4rec",
        "a GRU made right instead of EASE with recency",
        "baselines/EASE, recency",
        _RIGHT,
    ),
    Comparison(
        "gru4rec",
        "a GRU made right instead of kNN with recency",
        "baselines/item kNN, recency",
        _RIGHT,
    ),
    Comparison("gru4rec", "the GRU made right instead of the documented one", _FAIR, _RIGHT),
    Comparison("gru4rec", "EASE with recency added to the GRU", _RIGHT, _BOTH),
    Comparison("gru4rec", "the GRU added to EASE with recency", "baselines/EASE, recency", _BOTH),
]
