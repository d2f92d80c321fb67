"""The jobs of the multi-task chapter's last section: does knowing the order help the rating?

A module of its own, so that a change here makes no other job of the chapter stale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from rectutor.evaluation import Trained, evaluate
from rectutor.ratings import to_label
from rectutor.splits import leave_one_out
from study.core import Draw, ranked, rated


def labelled(draw: Draw) -> pd.DataFrame:
    """The ratings, in this run's order, with their labels."""
    rows = draw.shuffled.ratings
    return rows.assign(label=to_label(rows["rating"], draw.data.rating_scale))


def sizes_of(draw: Draw) -> dict[str, int]:
    """The highest ids."""
    return {"num_users": draw.data.num_users, "num_movies": draw.data.num_movies}


def projecting(code: Any, kind: Any) -> Any:
    """A kind of model of the chapter's that takes the conflict out of its gradients (JAX alone)."""
    import jax
    import jax.numpy as jnp

    class Projecting(kind):  # type: ignore[misc]
        def train_step(self, state: Any, data: Any) -> Any:
            values, others, slots, metrics = state
            x, y, _ = code.keras.utils.unpack_x_y_sample_weight(data)
            differentiate = jax.value_and_grad(self.compute_loss_and_updates, has_aux=True)
            at = [weight is self.task_weights for weight in self.non_trainable_variables].index(
                True
            )

            def pull(task: int) -> Any:
                weights = jnp.eye(3)[task] * others[at]
                given = [*others[:at], weights, *others[at + 1 :]]
                how = {"training": True, "optimizer_variables": slots}
                return differentiate(values, given, metrics, x, y, None, **how)

            (first, aux), watch = pull(0)
            (second, _), rating = pull(1)
            (third, _), prior = pull(2)
            known = {id(weight) for weight in (self.user_table, self.movie_table)}
            if isinstance(self, code.HistoryModel):
                known |= {id(weight) for weight in (self.turn, *self.gru.trainable_weights)}
            rows = [i for i, each in enumerate(self.trainable_variables) if id(each) in known]
            flat = [jnp.concatenate([g[i].ravel() for i in rows]) for g in (watch, rating)]
            total = sum(code.without_conflict(*flat))
            pulls = [sum(each) for each in zip(watch, rating, prior, strict=True)]
            ends = np.cumsum([0, *(watch[i].size for i in rows)])
            for i, begin, end in zip(rows, ends[:-1], ends[1:], strict=True):
                pulls[i] = total[begin:end].reshape(watch[i].shape) + prior[i]
            values, slots = self.optimizer.stateless_apply(slots, pulls, values)
            _, predicted, after, metrics = aux
            after = [*after[:at], others[at], *after[at + 1 :]]
            logs, metrics = self._update_metrics_variables(
                metrics, first + second + third, x, y, predicted, None
            )
            return logs, (values, after, slots, metrics)

    return Projecting


def without_order(code: Any) -> Any:
    """The chapter's model, which reads the mean of the ten movies."""

    class Mean(code.HistoryModel):  # type: ignore[misc]
        def read(self, rows: Any, known: Any) -> Any:
            part = code.ops.cast(known, "float32")[..., None]
            return code.ops.sum(part * rows, 1) / code.ops.maximum(code.ops.sum(part, 1), 1)

    return Mean


def without_history(code: Any) -> Any:
    """The chapter's model, which reads nothing."""

    class Nothing(code.HistoryModel):  # type: ignore[misc]
        def user_vectors(self, x: Any, training: bool = False) -> Any:
            return code.ops.take(self.user_table[0], x["user_id"], axis=0)

    return Nothing


#: What a model reads, to its class.
READS = {
    "nothing": without_history,
    "mean": without_order,
    "order": lambda code: code.HistoryModel,
    "order, projected": lambda code: projecting(code, code.HistoryModel),
}
#: Chosen on validation, with both heads and for ratings alone.
EPOCHS, ALONE = 10, 5


def new_model(draw: Draw, x: Any, y: Any, reads: str = "order") -> Any:
    """A fresh model of the chapter."""
    draw.code.keras.utils.set_random_seed(draw.seed)
    return READS[reads](draw.code)(x, y, **sizes_of(draw))


def look_at_cosines(code: Any, probe: Any, x: Any, y: Any) -> Any:
    """A Keras callback that notes the cosine between the tasks' gradients after some epochs."""

    class Looks(code.keras.callbacks.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.found: dict[str, float] = {}

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch + 1 in (1, 5, 10):
                probe.set_weights(self.model.get_weights())
                self.found[f"cosine after epoch {epoch + 1}"] = code.cosine(probe, x, y)

    return Looks()


def on_late(draw: Draw, heads: str, reads: str) -> dict[str, Any]:
    """Trained before each user's last fifth of the ratings, asked for its stars."""
    code, epochs, callbacks = draw.code, EPOCHS, []
    x, y, late = code.in_time(labelled(draw))
    learn, asked = code.some_rows(x, ~late), code.some_rows(x, late)
    model = new_model(draw, learn, y[~late], reads)
    if heads == "ratings":
        epochs = ALONE
    elif "order" in reads:
        some = np.random.default_rng(0).permutation(len(y[~late]))[:4000]
        probe = new_model(draw, learn, y[~late])
        callbacks = [look_at_cosines(code, probe, code.some_rows(learn, some), y[~late][some])]
    weights = int(heads == "both"), 1
    how = {"epochs": epochs, "callbacks": callbacks}
    code.train_history(model, learn, y[~late], weights, draw.seed, **how)
    found = callbacks[0].found if callbacks else {}
    predicted = code.labels_in_time(model, asked)
    return {f"history: {heads}, {reads}": rated(predicted, y[late], asked["user_id"], **found)}


def ratings_alone(draw: Draw) -> dict[str, Any]:
    """One head: no history, the mean of ten movies, and a GRU over them."""
    found: dict[str, Any] = {}
    for reads in ("nothing", "mean", "order"):
        found |= on_late(draw, "ratings", reads)
    return found


def both_heads(draw: Draw) -> dict[str, Any]:
    """Two heads: the same three."""
    found: dict[str, Any] = {}
    for reads in ("nothing", "mean", "order"):
        found |= on_late(draw, "both", reads)
    return found


def projected(draw: Draw) -> dict[str, Any]:
    """Two heads and the GRU, the gradients projected."""
    return on_late(draw, "both", "order, projected")


def by_history(model: Any, length: int = 10) -> Any:
    """A recommender: what the watch head says after the latest movies."""

    def scores(queries: Any) -> Any:
        x = {"user_id": queries.user_ids, "history": queries.last(length)}
        return model(x | {"movie_id": queries.user_ids * 0})["watch"]

    return scores


def next_movie(draw: Draw) -> dict[str, Any]:
    """Under P: the next movie alone, and with the rating beside it."""
    code, found = draw.code, {}
    split = leave_one_out(labelled(draw), **sizes_of(draw))
    known = code.known(split)
    x, y, _ = code.in_time(known)
    for name, weights in {"next movie alone": (1, 0), "next movie and rating": (1, 1)}.items():
        model = new_model(draw, x, y)
        code.train_history(model, x, y, weights, draw.seed, epochs=EPOCHS)
        asked = Trained(by_history(model), known)
        found[f"history: {name}"] = ranked(evaluate(asked, split, num_resamples=1))
    return found
