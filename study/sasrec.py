"""The jobs of the SASRec chapter and of its levers.

Levers are compared at their early stop on validation, without the training anew that the model made
right has. Every draw of a run (weights, negatives, order of the ties) comes from its number.
"""

from __future__ import annotations

from typing import Any

from study import additions, losses, protocol
from study.core import Comparison, Draw, Job, ranked
from tools import book

#: The base that the levers change: the documented settings on windows over the whole history.
BASE = {"width": 50, "blocks": 2, "heads": 1, "dropout": 0.0, "scaled": False, "watched": True}
RECIPE = {"learning_rate": 0.001, "beta_2": 0.98, "batch_size": 128}
CONTEXT = 50
#: Epochs at most, epochs between evaluations, and evaluations without a better one.
LIMITS = {"quick": (150, 3, 4), "smoke": (2, 1, 1)}
DOCUMENTED_LIMITS = {"quick": (60, 5, 3), "smoke": (2, 1, 1)}


def levers() -> Any:
    """The definitions of the page of the levers."""
    return book.definitions("sasrec_levers")


# --- the documented recipe


def documented_model(draw: Draw) -> Any:
    """A fresh one, seeded with the run's number."""
    import keras

    keras.utils.set_random_seed(draw.seed)
    sizes = {"width": draw.settings.documented_width, "blocks": draw.settings.documented_blocks}
    context = draw.settings.documented_context
    return draw.code.DocumentedSASRec(draw.split.num_movies, context, **sizes)


def documented(draw: Draw) -> dict[str, Any]:
    """As documented, in data, epochs and place of reading; and the same weights read rightly."""
    from rectutor.evaluation import Trained, evaluate
    from rectutor.sequences import histories

    code, settings, ratings = draw.code, draw.settings, draw.shuffled.ratings
    sequences = histories(code.liked_rows(ratings), num_users=draw.split.num_users)
    sizes = (draw.split.num_movies, settings.documented_context)
    train, validation = code.documented_arrays(sequences, *sizes, draw.seed)
    model = documented_model(draw)
    log = code.train_documented(
        model,
        train,
        settings.documented_batch,
        settings.documented_epochs,
        validation_data=validation,
    )
    last = {name: values[-1] for name, values in log.history.items()}
    learned = code.learned_by_documented(ratings)
    found = {
        place.__name__: evaluate(
            Trained(code.documented_scores(model, place), learned), draw.split, num_resamples=1
        )
        for place in (code.documented_place, code.last_real_place)
    }
    return {
        "as documented": ranked(found["documented_place"], **last),
        "as documented, right position": ranked(found["last_real_place"]),
    }


def converged(draw: Draw, latest: bool) -> dict[str, Any]:
    """The documented recipe to its early stop, on the first or on the latest movies.

    It learns from what lies before validation, ratings of 2 stars and more. The epoch is chosen
    with the state read at the right place; the same weights are then read at both.
    """
    from rectutor import PADDING_ID
    from rectutor.evaluation import Trained, evaluate
    from rectutor.sequences import histories, last_window
    from rectutor.training import BestByNDCG

    code, settings, split = draw.code, draw.settings, draw.split
    rows = code.liked_rows(split.train)
    sequences = histories(rows, num_users=split.num_users)
    negatives = code.one_negative_each(sequences, split.num_movies, draw.seed)

    def after(sequences: Any, length: int) -> Any:
        return last_window(sequences, length, padding="after")

    window = after if latest else code.first_window
    context = settings.documented_context
    movies, others = (window(each, context + 1)[1:] for each in (sequences, negatives))
    targets = {"positives": movies[:, 1:], "negatives": others[:, 1:]}
    targets["weights"] = (targets["positives"] != PADDING_ID).astype("float32")
    model = documented_model(draw)
    scores = {
        place.__name__: Trained(code.documented_scores(model, place, window), rows)
        for place in (code.documented_place, code.last_real_place)
    }
    epochs, every, patience = DOCUMENTED_LIMITS[draw.profile]
    best = BestByNDCG(scores["last_real_place"], split, patience=patience, every=every)
    data = (movies[:, :-1], targets)
    code.train_documented(model, data, settings.documented_batch, epochs, callbacks=[best])
    kept = chosen(best)
    right = ranked(evaluate(scores["last_real_place"], split, num_resamples=1), **kept)
    if latest:
        return {"latest movies": right}
    wrong = ranked(evaluate(scores["documented_place"], split, num_resamples=1), **kept)
    return {"converged, documented place": wrong, "converged, right place": right}


def first_movies(draw: Draw) -> dict[str, Any]:
    """The documented recipe to its early stop."""
    return converged(draw, latest=False)


def latest_movies(draw: Draw) -> dict[str, Any]:
    """The same on the latest movies."""
    return converged(draw, latest=True)


def chosen(best: Any) -> dict[str, float]:
    """What is kept of an early stop."""
    top = max(row["ndcg"] for row in best.history)
    return {
        "epochs": best.best_epoch,
        "validation_ndcg": top,
        "seconds": best.history[-1]["seconds"],
    }


# --- the levers, one at a time


def lever(
    draw: Draw,
    count: int = 1,
    fresh: bool = True,
    answer: bool = True,
    same_batches: bool = False,
    softmax: bool = False,
    **network: Any,
) -> dict[str, Any]:
    """The base with something changed, at its early stop.

    Args:
        draw: the run.
        count: negatives a position.
        fresh: whether they are drawn anew each epoch.
        answer: whether the held-out movies may be negatives.
        same_batches: whether batches hold the same rows each epoch.
        softmax: over the catalogue, in place of negatives.
        network: what the model is told beside the base.
    """
    import keras

    from rectutor.batches import DrawnEachEpoch
    from rectutor.evaluation import Trained, evaluate
    from rectutor.sequences import histories, training_windows
    from rectutor.training import BestByNDCG

    code, split = levers(), draw.split
    known = split.histories(before="validation")
    windows = training_windows(known, CONTEXT, return_users=True)
    seen = known if answer else histories(draw.shuffled.ratings, num_users=split.num_users)
    drawn = code.with_negatives(windows, seen, split.num_movies, count, draw.seed, fresh)
    keras.utils.set_random_seed(draw.seed)
    model = code.LeverSASRec(split.num_movies, CONTEXT, **BASE | network)
    scores = Trained(code.lever_scores(model), split.train)
    epochs, every, patience = LIMITS[draw.profile]
    best = BestByNDCG(scores, split, patience=patience, every=every)
    code.train_levers(
        model,
        (lambda epoch: windows[:2]) if softmax else drawn,
        **RECIPE,
        epochs=epochs,
        seed=draw.seed,
        batches=code.SameBatches if same_batches else DrawnEachEpoch,
        callbacks=[best],
    )
    return ranked(evaluate(scores, split, num_resamples=1), **chosen(best))


def windows(draw: Draw) -> dict[str, Any]:
    """The base: one negative a position, drawn once."""
    return {"windows": lever(draw, fresh=False)}


def fresh_negatives(draw: Draw) -> dict[str, Any]:
    """Drawn anew each epoch (C14); every job below changes one thing of it."""
    return {"fresh negatives": lever(draw)}


def l2_penalty(draw: Draw) -> dict[str, Any]:
    """With the penalty that the documentation asks for (C15)."""
    return {"L2 penalty": lever(draw, l2=0.001)}


def answer_never_negative(draw: Draw) -> dict[str, Any]:
    """The held-out movies are never negatives, as documented (C22)."""
    return {"answer never a negative": lever(draw, answer=False)}


def same_batches(draw: Draw) -> dict[str, Any]:
    """Batches of the same rows each epoch, as documented (C24)."""
    return {"same batches": lever(draw, same_batches=True)}


def scaled_initialisation(draw: Draw) -> dict[str, Any]:
    """Tables that start alike, movies scaled by the root of the width (C27)."""
    return {"scaled initialisation": lever(draw, scaled=True)}


def active_dropout(draw: Draw) -> dict[str, Any]:
    """The documented dropout, active (C28)."""
    return {"active dropout": lever(draw, dropout=0.2)}


def catalogue_softmax(draw: Draw) -> dict[str, Any]:
    """A softmax over the catalogue (C16)."""
    return {"softmax over the catalogue": lever(draw, softmax=True)}


def many_negatives(draw: Draw) -> dict[str, Any]:
    """Sixteen negatives a position."""
    return {"16 negatives": lever(draw, count=16)}


# --- the model made right


def made_right(draw: Draw) -> dict[str, Any]:
    """The chapter's model: early stop, trained anew with validation, tested once."""
    import pandas as pd

    from rectutor.evaluation import Trained, evaluate
    from rectutor.training import BestByNDCG

    code, settings, split = draw.code, draw.settings, draw.split
    recipe = {"learning_rate": settings.learning_rate, "batch_size": settings.batch_size}
    recipe["seed"] = draw.seed
    sizes = (split.num_users, settings.context, draw.seed)
    model = code.made_right(split.num_movies, settings, draw.seed)
    scores = Trained(code.sasrec_scores(model), split.train)
    best = BestByNDCG(scores, split, patience=settings.patience)
    drawn = code.windows_with_shuffled_ties(split.train, *sizes)
    code.train_sasrec(model, drawn, **recipe, epochs=settings.epochs, callbacks=[best])
    stopped = ranked(evaluate(scores, split, num_resamples=1), **chosen(best))
    known = pd.concat([split.train, split.validation])
    model = code.made_right(split.num_movies, settings, draw.seed)
    drawn = code.windows_with_shuffled_ties(known, *sizes)
    code.train_sasrec(model, drawn, **recipe, epochs=best.best_epoch)
    scores = Trained(code.sasrec_scores(model), known)
    anew = ranked(evaluate(scores, split, num_resamples=1), epochs=best.best_epoch)
    others = protocol.arms("made right", scores, draw)
    return others | {"made right, early stop": stopped, "made right": anew}


def best_combination(draw: Draw) -> dict[str, Any]:
    """Made right with what validation chose of the levers, trained anew likewise."""
    from rectutor.evaluation import evaluate

    settings = Draw("sasrec_levers", draw.number, draw.profile).settings
    recommender, best = levers().train_best(draw.split, settings, draw.seed)
    found = ranked(evaluate(recommender, draw.split, num_resamples=1), **chosen(best))
    return {"levers": found}


JOBS = [
    Job("sasrec", "documented", documented, seconds=60.0),
    Job("sasrec", "documented, converged", first_movies, seconds=280.0),
    Job("sasrec", "latest movies", latest_movies, seconds=280.0),
    Job("sasrec", "windows", windows, seconds=80.0),
    Job("sasrec", "fresh negatives", fresh_negatives, seconds=80.0),
    Job("sasrec", "L2 penalty", l2_penalty, seconds=80.0),
    Job("sasrec", "answer never a negative", answer_never_negative, seconds=80.0),
    Job("sasrec", "same batches", same_batches, seconds=80.0),
    Job("sasrec", "scaled initialisation", scaled_initialisation, seconds=80.0),
    Job("sasrec", "active dropout", active_dropout, seconds=80.0),
    Job("sasrec", "softmax over the catalogue", catalogue_softmax, seconds=120.0),
    Job("sasrec", "16 negatives", many_negatives, seconds=110.0),
    Job("sasrec", "made right", made_right, seconds=200.0),
    Job("sasrec", "levers", best_combination, seconds=260.0),
    *additions.JOBS,
    *losses.JOBS,
]


def _compared(what: str, before: str, after: str, correction: str = "") -> Comparison:
    names = [each if "/" in each else f"sasrec/{each}" for each in (before, after)]
    return Comparison("sasrec", what, *names, correction=correction)


STOPPED = "made right, early stop"
COMPARISONS = [
    _compared(
        "the state of the last movie, not of an arbitrary place",
        "converged, documented place",
        "converged, right place",
        "C13",
    ),
    _compared(
        "the latest movies instead of the first", "converged, right place", "latest movies", "C12"
    ),
    _compared("windows of 50 over the whole history", "latest movies", "windows"),
    _compared("negatives drawn each epoch", "windows", "fresh negatives", "C14"),
    _compared("the L2 penalty of 0.001", "fresh negatives", "L2 penalty", "C15"),
    _compared(
        "a softmax over the catalogue instead of one negative",
        "fresh negatives",
        "softmax over the catalogue",
        "C16",
    ),
    _compared(
        "negatives that may be the held-out movie",
        "answer never a negative",
        "fresh negatives",
        "C22",
    ),
    _compared("new batches each epoch", "same batches", "fresh negatives", "C24"),
    _compared("a scaled initialisation", "fresh negatives", "scaled initialisation", "C27"),
    _compared("active dropout of 0.2", "fresh negatives", "active dropout", "C28"),
    _compared("16 negatives instead of one", "fresh negatives", "16 negatives"),
    _compared(
        "the chapter's start, dropout, batches, rate and width",
        "softmax over the catalogue",
        "made right, the watched compete",
    ),
    _compared("watched movies left out of the softmax", "made right, the watched compete", STOPPED),
    _compared("two Transformer blocks instead of none", "made right, no blocks", STOPPED),
    _compared("ties in a new order each epoch", "shuffled ties off", STOPPED),
    _compared("training anew with the validation movie", STOPPED, "made right"),
    _compared("the direct way, averaged weights, vectors of 64", "made right", "levers"),
    _compared("SASRec made right, not popularity", "baselines/popularity", "made right"),
    _compared(
        "SASRec made right, not item kNN with recency", "baselines/item kNN, recency", "made right"
    ),
    _compared("SASRec made right, not EASE with recency", "baselines/EASE, recency", "made right"),
    _compared("a context of 50 instead of 25", "made right, half the context", STOPPED),
    _compared("vectors of 64 instead of 32", STOPPED, "made right, twice the width"),
    _compared("two Transformer blocks instead of one", "made right, one block", STOPPED),
    _compared("5 targets alone", STOPPED, "made right, 5 targets"),
    _compared("the direct way alone", STOPPED, "made right, direct way"),
    _compared("averaged weights alone", STOPPED, "made right, averaged weights"),
    _compared("Transformer blocks instead of a GRU, all else alike", "levers on a GRU", "levers"),
    *losses.COMPARISONS,
]
