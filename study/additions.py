"""SASRec's sizes halved, and what the page of levers adds: one by one, and all of it on a GRU.

Each is compared with the model made right at the early stop, as levers are. The GRU takes the place
of the Transformer blocks in the best combination; all else, settings included, stays.
"""

from __future__ import annotations

from typing import Any

from study.core import Draw, Job, ranked
from tools import book

#: Units of the GRU for each number of a vector, as in the GRU4Rec chapter.
UNITS = 2


def with_gru(code: Any) -> Any:
    """`LeverSASRec` with a GRU in the place of its blocks."""
    import keras

    class Recurrent(keras.layers.Layer):  # type: ignore[misc]
        """Maps `(B, L, d)` to `(B, L, d)`; a position sees itself and what is before."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.gru = keras.layers.GRU(UNITS * width, return_sequences=True)
            self.project = keras.layers.Dense(width)

        def build(self, input_shape: Any) -> None:
            """Build both layers."""
            self.gru.build(input_shape)
            self.project.build((*input_shape[:-1], self.gru.units))

        def call(self, x: Any, decoder_padding_mask: Any, training: bool = False) -> Any:
            """Padding, which comes first, leaves the state as it is."""
            return self.project(self.gru(x, mask=decoder_padding_mask, training=training))

    class LeverGRU(code.LeverSASRec):  # type: ignore[misc]
        """All that the levers' model has, around a GRU."""

        def __init__(self, num_movies: int, context: int, **more: Any) -> None:
            super().__init__(num_movies, context, **more)
            self.blocks = [Recurrent(self.config["width"])]

    return LeverGRU


def built(draw: Draw, gru: bool = False, **network: Any) -> Any:
    """A model with the settings of the page of levers, not trained yet.

    Args:
        draw: the run.
        gru: whether a GRU is in the place of the blocks.
        network: what the model is told beside its sizes.
    """
    import keras

    code, settings = book.definitions("sasrec_levers"), settings_of(draw)
    sizes = ("context", "width", "blocks", "heads", "dropout")
    keras.utils.set_random_seed(draw.seed)
    kind = with_gru(code) if gru else code.LeverSASRec
    return kind(draw.split.num_movies, **{n: getattr(settings, n) for n in sizes} | network)


def settings_of(draw: Draw) -> Any:
    """Those of the page of levers."""
    return Draw("sasrec_levers", draw.number, draw.profile).settings


def train(draw: Draw, model: Any, rows: Any, **how: Any) -> None:
    """Train with the settings of the page of levers.

    Args:
        draw: the run.
        model: is trained.
        rows: the ratings to learn from; their ties come in a new order each epoch.
        how: `epochs`, `average` and `callbacks`.
    """
    code, settings = book.definitions("sasrec_levers"), settings_of(draw)
    sizes = (draw.split.num_users, model.config["context"], draw.seed)
    recipe = {"learning_rate": settings.learning_rate, "batch_size": settings.batch_size}
    code.train_levers(model, code.with_ties(rows, *sizes), **recipe, seed=draw.seed, **how)


def stopped(draw: Draw, average: float = 0.0, **network: Any) -> tuple[dict[str, Any], Any]:
    """A model at its early stop: what the test says of it, and what stopped it."""
    from rectutor.evaluation import Trained, evaluate
    from rectutor.training import BestByNDCG

    code, settings = book.definitions("sasrec_levers"), settings_of(draw)
    model = built(draw, **network)
    scores = Trained(code.lever_scores(model), draw.split.train)
    best = BestByNDCG(scores, draw.split, patience=settings.patience)
    how = {"epochs": settings.epochs, "average": average, "callbacks": [best]}
    train(draw, model, draw.split.train, **how)
    top = max(each["ndcg"] for each in best.history)
    kept = {"epochs": best.best_epoch, "validation_ndcg": top}
    return ranked(evaluate(scores, draw.split, num_resamples=1), **kept), best


def half_the_context(draw: Draw) -> dict[str, Any]:
    """Windows of half the length."""
    return {
        "made right, half the context": stopped(draw, context=settings_of(draw).context // 2)[0]
    }


def half_the_width(draw: Draw) -> dict[str, Any]:
    """Vectors of half the length."""
    return {"made right, half the width": stopped(draw, width=settings_of(draw).width // 2)[0]}


def one_block(draw: Draw) -> dict[str, Any]:
    """One Transformer block."""
    return {"made right, one block": stopped(draw, blocks=1)[0]}


def targets(draw: Draw) -> dict[str, Any]:
    """More than the next movie."""
    return {"made right, 5 targets": stopped(draw, ahead=settings_of(draw).ahead)[0]}


def direct_way(draw: Draw) -> dict[str, Any]:
    """The latest movies reach the output."""
    return {"made right, direct way": stopped(draw, direct=settings_of(draw).direct)[0]}


def averaged(draw: Draw) -> dict[str, Any]:
    """The weights are averaged over the latest steps."""
    return {"made right, averaged weights": stopped(draw, settings_of(draw).average)[0]}


def on_a_gru(draw: Draw) -> dict[str, Any]:
    """All three on a GRU: early stop, trained anew with validation, tested once."""
    import pandas as pd

    from rectutor.evaluation import Trained, evaluate

    settings = settings_of(draw)
    network = {"gru": True, "ahead": settings.ahead, "direct": settings.direct}
    early, best = stopped(draw, settings.average, **network)
    known = pd.concat([draw.split.train, draw.split.validation])
    model = built(draw, **network)
    train(draw, model, known, epochs=best.best_epoch, average=settings.average)
    scores = Trained(book.definitions("sasrec_levers").lever_scores(model), known)
    anew = ranked(evaluate(scores, draw.split, num_resamples=1), epochs=best.best_epoch)
    return {"levers on a GRU, early stop": early, "levers on a GRU": anew}


JOBS = [
    Job("sasrec", "half the context", half_the_context, seconds=80.0),
    Job("sasrec", "half the width", half_the_width, seconds=80.0),
    Job("sasrec", "one block", one_block, seconds=80.0),
    Job("sasrec", "5 targets", targets, seconds=120.0),
    Job("sasrec", "direct way", direct_way, seconds=120.0),
    Job("sasrec", "averaged weights", averaged, seconds=120.0),
    Job("sasrec", "levers on a GRU", on_a_gru, seconds=230.0),
]
