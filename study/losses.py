"""SASRec's losses, each with a learning rate of its own, chosen on validation.

All train the chapter's model made right with its settings, but for the loss, its rate and the
patience, to the early stop on validation; watched movies take part in a softmax as they do in the
literature. The first run of a loss tries three rates, and further ones while the best of them on
validation is the lowest or the highest; that is the one that all runs train with, so a rate is
chosen once, before any of them is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from study import core
from study.core import Comparison, Draw, Job, ranked
from tools import book

#: Rates in order, of which the three in the middle are tried first.
RATES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
#: Epochs at most, and epochs without a better one: more than the chapter's, as rates are slow too.
LIMITS = {"quick": (300, 10), "smoke": (2, 1)}
#: What ranks, and what is kept of its training.
Outcome = tuple[Any, dict[str, float]]
#: Negatives of a loss that looks at many, out of 1,682 movies.
MANY = 256


def with_shared_negatives(code: Any) -> Any:
    """`LeverSASRec` whose negatives, `(B, K)`, are shared by all positions of a row.

    With hundreds of them, a vector for each at each position would be gigabytes.
    """
    from keras import ops

    from rectutor import PADDING_ID

    class SharedNegatives(code.LeverSASRec):  # type: ignore[misc]
        """BCE or gBCE: what `two_way_loss` gives when the negatives of a row's positions agree."""

        def compute_loss(
            self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None, training: bool = True
        ) -> Any:
            """Of states `(B, L, d)`, targets `(B, L)` and negatives `(B, K)`."""
            table = self.movies.embeddings
            positive = ops.sum(y_pred * ops.take(table, y["targets"], axis=0), axis=-1)  # (B, L)
            vectors = ops.take(table, y["negatives"], axis=0)  # (B, K, d)
            negative = ops.matmul(y_pred, ops.transpose(vectors, (0, 2, 1)))  # (B, L, K)
            loss = self.config["beta"] * ops.softplus(-positive)
            loss = loss + ops.sum(ops.softplus(negative), axis=-1)
            real = ops.cast(ops.not_equal(y["targets"], PADDING_ID), "float32")
            return ops.sum(loss * real) / (2.0 * ops.maximum(ops.sum(real), 1.0))

    return SharedNegatives


def trained(
    draw: Draw, rate: float, negatives: int = 0, of_row: int = 0, **network: Any
) -> Outcome:
    """A network trained with one loss and one rate, at its best epoch on validation.

    Args:
        draw: the run.
        rate: Adam's.
        negatives: drawn anew each epoch for every position.
        of_row: drawn anew each epoch for every row, and shared by its positions.
        network: what the model is told beside its sizes.

    Returns:
        What ranks, and `rate`, `epochs`, `validation_ndcg` and `seconds` of training.
    """
    import keras

    from rectutor.evaluation import Trained
    from rectutor.sequences import sample_negatives, training_windows
    from rectutor.training import BestByNDCG

    code, split, settings = book.definitions("sasrec_levers"), draw.split, draw.settings
    known = split.histories(before="validation")
    windows = training_windows(known, settings.context, return_users=True)
    inputs, targets, users = windows

    def shared(epoch: int) -> Any:
        seeds = [draw.seed, epoch]
        drawn = sample_negatives(known, split.num_movies, of_row, seeds, users=users)
        return inputs, {"targets": targets, "negatives": drawn}

    drawn = shared
    if not of_row:
        # nothing to draw is the loss of a softmax
        apart = code.with_negatives(windows, known, split.num_movies, negatives, draw.seed)
        drawn = apart if negatives else lambda epoch: (inputs, targets)
    keras.utils.set_random_seed(draw.seed)
    kind = with_shared_negatives(code) if of_row else code.LeverSASRec
    sizes = {name: getattr(settings, name) for name in ("width", "blocks", "heads", "dropout")}
    model = kind(split.num_movies, settings.context, **sizes, watched=True, **network)
    model.draws = keras.random.SeedGenerator(draw.seed)
    scores = Trained(code.lever_scores(model), split.train)
    epochs, patience = LIMITS[draw.profile]
    best = BestByNDCG(scores, split, patience=patience)
    how = {"batch_size": settings.batch_size, "epochs": epochs, "seed": draw.seed}
    code.train_levers(model, drawn, learning_rate=rate, **how, callbacks=[best])
    top = max(each["ndcg"] for each in best.history)
    found = {"rate": rate, "epochs": best.best_epoch, "validation_ndcg": top}
    return scores, found | {"seconds": best.history[-1]["seconds"]}


def tuned(draw: Draw, loss: str, gbce: bool = False, **how: Any) -> dict[str, Any]:
    """A loss at the rate that the first run found best for it; the test is asked once.

    Args:
        draw: the run.
        loss: its name; the job's is `loss, NAME`.
        gbce: whether the positive has the exponent of gBCE.
        how: what `trained` is told.
    """
    from rectutor.evaluation import evaluate

    if gbce:
        beta = book.definitions("sasrec_levers").gbce_beta(how["of_row"], draw.split.num_movies)
        how["beta"] = beta
    if draw.number > 1:
        scores, kept = trained(draw, rate_of(loss), **how)
        return {f"loss: {loss}": ranked(evaluate(scores, draw.split, num_resamples=1), **kept)}
    tried = search(partial(trained, draw, **how))
    scores, kept = max(tried, key=_good)
    arms = {f"loss: {loss}": ranked(evaluate(scores, draw.split, num_resamples=1), **kept)}
    return arms | {f"loss: {loss}, rate {of['rate']}": core.facts(**of) for _, of in tried}


def search(train: Callable[[float], Outcome]) -> list[Outcome]:
    """What `train` makes of each rate tried, the lowest first.

    The next lower, or higher, is tried while the best on validation is at that end of those tried.
    """
    low, high = 2, 4
    tried = [train(rate) for rate in RATES[low : high + 1]]
    while True:
        best = tried.index(max(tried, key=_good))
        if best == 0 and low > 0:
            low -= 1
            tried.insert(0, train(RATES[low]))
        elif best == len(tried) - 1 and high < len(RATES) - 1:
            high += 1
            tried.append(train(RATES[high]))
        else:
            return tried


def _good(outcome: Outcome) -> float:
    return outcome[1]["validation_ndcg"]


def rate_of(loss: str) -> float:
    """The rate that the first run of a loss chose.

    Raises:
        RuntimeError: the first run is not stored, or not of this code.
    """
    job = next(each for each in JOBS if each.name == f"loss, {loss}")
    of_this = core.digest(job)
    for run in core.read(job)["runs"]:
        if run["run"] == 1 and run["digest"] == of_this:
            return float(run["arms"][f"loss: {loss}"]["facts"]["rate"])
    raise RuntimeError(f"run 1 of {job.key} chooses the rate, and is not stored; run it first")


def one_negative(draw: Draw) -> dict[str, Any]:
    """BCE with one negative a position."""
    return tuned(draw, "BCE, 1 negative", negatives=1)


def sixteen_negatives(draw: Draw) -> dict[str, Any]:
    """BCE with 16."""
    return tuned(draw, "BCE, 16 negatives", negatives=16)


def many_negatives(draw: Draw) -> dict[str, Any]:
    """BCE with 256, shared by a row's positions."""
    return tuned(draw, "BCE, 256 negatives", of_row=MANY)


def calibrated(draw: Draw) -> dict[str, Any]:
    """The same with the exponent of gBCE."""
    return tuned(draw, "gBCE, 256 negatives", gbce=True, of_row=MANY)


def sampled(draw: Draw) -> dict[str, Any]:
    """A softmax over the target and 256 movies that a step's positions share."""
    return tuned(draw, "sampled softmax, 256 negatives", shared=MANY)


def all_movies(draw: Draw) -> dict[str, Any]:
    """A softmax over the catalogue."""
    return tuned(draw, "softmax")


_job = partial(Job, "sasrec")
JOBS = [
    _job("loss, BCE, 1 negative", one_negative, seconds=60.0),
    _job("loss, BCE, 16 negatives", sixteen_negatives, seconds=60.0),
    _job("loss, BCE, 256 negatives", many_negatives, seconds=60.0),
    _job("loss, gBCE, 256 negatives", calibrated, seconds=60.0),
    _job("loss, sampled softmax, 256 negatives", sampled, seconds=60.0),
    _job("loss, softmax", all_movies, seconds=60.0),
]

COMPARISONS = [
    Comparison("sasrec", f"own rates: {what}", f"sasrec/loss: {before}", f"sasrec/loss: {after}")
    for what, before, after in [
        ("softmax instead of BCE, 1 negative", "BCE, 1 negative", "softmax"),
        ("softmax instead of BCE, 16 negatives", "BCE, 16 negatives", "softmax"),
        ("softmax instead of BCE, 256 negatives", "BCE, 256 negatives", "softmax"),
        ("softmax instead of gBCE, 256 negatives", "gBCE, 256 negatives", "softmax"),
        ("softmax instead of a sampled one", "sampled softmax, 256 negatives", "softmax"),
        ("gBCE instead of BCE, 256 negatives", "BCE, 256 negatives", "gBCE, 256 negatives"),
    ]
]
