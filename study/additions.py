"""What SASRec made right is worth without a part, in other sizes, and with the levers' additions.

Each is compared with the model made right at the early stop, as levers are. A GRU takes the place
of the Transformer blocks in the best combination; all else, settings included, stays.
"""

from __future__ import annotations

from typing import Any

from study.core import Draw, Job, ranked
from tools import book

#: Units of the GRU for each number of a vector, as in the GRU4Rec chapter.
UNITS = 2
#: Targets of the lever on its own; the best combination does without.
AHEAD = 5


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
    """A model with the chapter's settings, not trained yet.

    Args:
        draw: the run.
        gru: whether a GRU is in the place of the blocks.
        network: what the model is told beside its sizes.
    """
    import keras

    code, settings = book.definitions("sasrec_levers"), draw.settings
    sizes = ("context", "width", "blocks", "heads", "dropout")
    keras.utils.set_random_seed(draw.seed)
    kind = with_gru(code) if gru else code.LeverSASRec
    return kind(draw.split.num_movies, **{n: getattr(settings, n) for n in sizes} | network)


def settings_of(draw: Draw) -> Any:
    """Those of the page of levers."""
    return Draw("sasrec_levers", draw.number, draw.profile).settings


def train(draw: Draw, model: Any, rows: Any, shuffled: bool = True, **how: Any) -> None:
    """Train with the chapter's settings.

    Args:
        draw: the run.
        model: is trained.
        rows: the ratings to learn from.
        shuffled: whether their ties come in a new order each epoch.
        how: `epochs`, `average` and `callbacks`.
    """
    code, settings = book.definitions("sasrec_levers"), draw.settings
    sizes = (draw.split.num_users, model.config["context"], draw.seed, shuffled)
    recipe = {"learning_rate": settings.learning_rate, "batch_size": settings.batch_size}
    code.train_levers(model, code.with_ties(rows, *sizes), **recipe, seed=draw.seed, **how)


def stopped(
    draw: Draw, average: float = 0.0, shuffled: bool = True, **network: Any
) -> tuple[dict[str, Any], Any]:
    """A model at its early stop: what the test says of it, and what stopped it."""
    from rectutor.evaluation import Trained, evaluate
    from rectutor.training import BestByNDCG

    code, settings = book.definitions("sasrec_levers"), draw.settings
    model = built(draw, **network)
    scores = Trained(code.lever_scores(model), draw.split.train)
    best = BestByNDCG(scores, draw.split, patience=settings.patience)
    how = {"epochs": settings.epochs, "average": average, "callbacks": [best]}
    train(draw, model, draw.split.train, shuffled, **how)
    top = max(each["ndcg"] for each in best.history)
    kept = {"epochs": best.best_epoch, "validation_ndcg": top}
    return ranked(evaluate(scores, draw.split, num_resamples=1), **kept), best


def no_blocks(draw: Draw) -> dict[str, Any]:
    """The latest movie and its place alone."""
    return {"made right, no blocks": stopped(draw, blocks=0)[0]}


def ties_as_they_are(draw: Draw) -> dict[str, Any]:
    """The order of the ties stays that of the run's table."""
    return {"shuffled ties off": stopped(draw, shuffled=False)[0]}


def watched_compete(draw: Draw) -> dict[str, Any]:
    """A softmax in which the movies watched take part."""
    return {"made right, the watched compete": stopped(draw, watched=True)[0]}


def half_the_context(draw: Draw) -> dict[str, Any]:
    """Windows of half the length."""
    return {"made right, half the context": stopped(draw, context=draw.settings.context // 2)[0]}


def twice_the_width(draw: Draw) -> dict[str, Any]:
    """Vectors of twice the length."""
    return {"made right, twice the width": stopped(draw, width=draw.settings.width * 2)[0]}


def one_block(draw: Draw) -> dict[str, Any]:
    """One Transformer block."""
    return {"made right, one block": stopped(draw, blocks=1)[0]}


def targets(draw: Draw) -> dict[str, Any]:
    """More than the next movie."""
    return {"made right, 5 targets": stopped(draw, ahead=AHEAD)[0]}


def direct_way(draw: Draw) -> dict[str, Any]:
    """The latest movies reach the output."""
    return {"made right, direct way": stopped(draw, direct=settings_of(draw).direct)[0]}


def averaged(draw: Draw) -> dict[str, Any]:
    """The weights are averaged over the latest steps."""
    return {"made right, averaged weights": stopped(draw, settings_of(draw).average)[0]}


def on_a_gru(draw: Draw) -> dict[str, Any]:
    """The best combination on a GRU: early stop, trained anew with validation, tested once."""
    import pandas as pd

    from rectutor.evaluation import Trained, evaluate

    settings = settings_of(draw)
    names = ("width", "ahead", "direct")
    network = {"gru": True} | {name: getattr(settings, name) for name in names}
    early, best = stopped(draw, settings.average, **network)
    known = pd.concat([draw.split.train, draw.split.validation])
    model = built(draw, **network)
    train(draw, model, known, epochs=best.best_epoch, average=settings.average)
    scores = Trained(book.definitions("sasrec_levers").lever_scores(model), known)
    anew = ranked(evaluate(scores, draw.split, num_resamples=1), epochs=best.best_epoch)
    return {"levers on a GRU, early stop": early, "levers on a GRU": anew}


JOBS = [
    Job("sasrec", "made right, no blocks", no_blocks, seconds=30.0),
    Job("sasrec", "shuffled ties off", ties_as_they_are, seconds=50.0),
    Job("sasrec", "made right, the watched compete", watched_compete, seconds=50.0),
    Job("sasrec", "half the context", half_the_context, seconds=50.0),
    Job("sasrec", "twice the width", twice_the_width, seconds=80.0),
    Job("sasrec", "one block", one_block, seconds=80.0),
    Job("sasrec", "5 targets", targets, seconds=120.0),
    Job("sasrec", "direct way", direct_way, seconds=120.0),
    Job("sasrec", "averaged weights", averaged, seconds=120.0),
    Job("sasrec", "levers on a GRU", on_a_gru, seconds=230.0),
]
