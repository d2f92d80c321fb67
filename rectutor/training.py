"""Keras callbacks the chapters share: one tidy line an epoch, and stopping by validation NDCG."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import keras

from rectutor import checks
from rectutor.environment import in_notebook

if TYPE_CHECKING:
    from rectutor.evaluation import Recommender
    from rectutor.splits import Split

__all__ = ["BestByNDCG", "EpochLog"]


class EpochLog(keras.callbacks.Callback):  # type: ignore[misc]
    """Print one line an epoch: its number, the losses and metrics, the seconds it took.

    In a script the line also says about how long the rest will take. Use it with
    `model.fit(..., verbose=0)`.

    Args:
        every: print the first, every `every`-th and the last epoch.

    Raises:
        ValueError: `every` is below 1.
    """

    def __init__(self, every: int = 1) -> None:
        super().__init__()
        self.every = checks.integer(every, "EpochLog: every", 1)
        self._start = self._epoch_start = 0.0

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Start the clock."""
        self._start = time.perf_counter()
        self._first: int | None = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Remember which epoch the training starts with, and when this one starts."""
        if self._first is None:
            self._first = epoch
        self._epoch_start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Print the epoch's line, if it is one of those to print."""
        total = int(self.params.get("epochs") or 0)
        done = epoch + 1
        last = done == total or self.model.stop_training
        if not (done == 1 or done % self.every == 0 or last):
            return
        now = time.perf_counter()
        width = len(str(total))
        line = f"epoch {done:{width}d}/{total}"
        for name, value in (logs or {}).items():
            line += f"  {name} {_short(value)}"
        line += f"  {now - self._epoch_start:.1f} s"
        if not in_notebook() and not last:
            ran = done - (self._first or 0)
            left = (now - self._start) / ran * (total - done)
            line += f"  (at most {left:.0f} s left)"
        print(line, flush=True)


def _short(value: Any) -> str:
    number = float(value)
    return f"{number:.4f}" if abs(number) < 1000 else f"{number:.1f}"


class BestByNDCG(keras.callbacks.Callback):  # type: ignore[misc]
    """Watch NDCG@k on the validation interactions, stop when it stalls, keep the best weights.

    Adds `val_ndcg` to the epoch's logs, so put it before `EpochLog` in the list of callbacks.
    When training ends, for whatever reason, the weights of the best epoch are put back.

    Args:
        recommender: maps `rectutor.evaluation.Queries` to scores; usually a function around the
            model that is being trained.
        split: its `validation` is what is ranked, with `train` as history.
        patience: stop after this many evaluations in a row without a better NDCG.
        every: evaluate every this many epochs.
        k: length of the recommended list.

    Attributes:
        history: one dict an evaluation: `epoch` (from 1), `seconds` (training time so far,
            evaluation left out), `ndcg`, `hit_rate`.
        best_epoch: the epoch whose weights were kept (from 1), 0 before the first evaluation.

    Raises:
        ValueError: `patience` or `every` is below 1.
    """

    def __init__(
        self,
        recommender: Recommender,
        split: Split,
        patience: int = 5,
        every: int = 1,
        k: int = 10,
    ) -> None:
        super().__init__()
        self.recommender = recommender
        self.split = split
        self.patience = checks.integer(patience, "BestByNDCG: patience", 1)
        self.every = checks.integer(every, "BestByNDCG: every", 1)
        self.k = k
        self.history: list[dict[str, float]] = []
        self.best_epoch = 0
        self._best = -1.0
        self._weights: list[Any] | None = None
        self._seconds = self._epoch_start = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Start the epoch's clock."""
        self._epoch_start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Evaluate, keep the weights if they are the best so far, stop if nothing improves."""
        self._seconds += time.perf_counter() - self._epoch_start
        if (epoch + 1) % self.every:
            return
        from rectutor.evaluation import evaluate

        result = evaluate(self.recommender, self.split, k=self.k, on="validation", num_resamples=1)
        self.history.append(
            {
                "epoch": epoch + 1,
                "seconds": self._seconds,
                "ndcg": result.ndcg,
                "hit_rate": result.hit_rate,
            }
        )
        if logs is not None:
            logs["val_ndcg"] = result.ndcg
        if result.ndcg > self._best:
            self._best = result.ndcg
            self.best_epoch = epoch + 1
            self._weights = self.model.get_weights()
        elif epoch + 1 - self.best_epoch >= self.patience * self.every:
            self.model.stop_training = True

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Put the best epoch's weights back."""
        if self._weights is not None:
            self.model.set_weights(self._weights)
