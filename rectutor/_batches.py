"""Batches whose order NumPy decides, as a `tf.data.Dataset` or a `keras.utils.PyDataset`."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Plan:
    """Which rows are in which batch of which pass.

    Attributes:
        num_rows: how many rows there are.
        batch_size: rows a batch; the last one may be smaller.
        shuffle: whether each pass has an order of its own.
        seed: what decides the orders.
        passes: how many passes have ended.
    """

    num_rows: int
    batch_size: int
    shuffle: bool
    seed: int
    passes: int = 0
    _order: tuple[int, np.ndarray] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return -(-self.num_rows // self.batch_size)

    def rows(self, batch: int) -> np.ndarray:
        """`(B,)` int64, the rows of one batch of the pass that is under way."""
        if self._order is None or (self.shuffle and self._order[0] != self.passes):
            order = np.arange(self.num_rows)
            if self.shuffle:
                order = np.random.default_rng([self.seed, self.passes]).permutation(self.num_rows)
            self._order = (self.passes, order)
        start = batch * self.batch_size
        return self._order[1][start : start + self.batch_size]

    def one_pass(self) -> Iterator[np.ndarray]:
        """Yield the rows of each batch; a pass that is read to its end makes way for the next."""
        current = self.passes
        for batch in range(len(self)):
            yield self.rows(batch)
        self.passes = current + 1


def take(arrays: Any, rows: np.ndarray) -> Any:
    """The given rows of an array, or of every array in a tuple or dict."""
    if isinstance(arrays, dict):
        return {name: take(value, rows) for name, value in arrays.items()}
    if isinstance(arrays, tuple):
        return tuple(take(value, rows) for value in arrays)
    return arrays[rows]


def with_tensorflow(arrays: tuple[Any, ...], plan: Plan) -> Any:
    """The batches as a `tf.data.Dataset`, or None where TensorFlow cannot be imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        tf: Any = importlib.import_module("tensorflow")
    except ImportError:
        return None
    keras: Any = importlib.import_module("keras")
    if keras.backend.backend() != "tensorflow":
        # Only an input pipeline here: it must not claim the memory of the accelerator.
        with contextlib.suppress(RuntimeError):
            tf.config.set_visible_devices([], "GPU")
    with tf.device("CPU:0"):
        tensors = tf.nest.map_structure(tf.constant, arrays)

        def gather(rows: Any) -> Any:
            return tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), tensors)

        index: Any = tf.data.Dataset.from_generator(
            plan.one_pass, output_signature=tf.TensorSpec([None], tf.int64)
        )
        index = index.apply(tf.data.experimental.assert_cardinality(len(plan)))
        batches = index.map(gather)
        if not plan.shuffle:
            batches = batches.cache()  # every pass is the same
        return batches.prefetch(tf.data.AUTOTUNE)


def with_keras(arrays: tuple[Any, ...], plan: Plan) -> Any:
    """The batches as a `keras.utils.PyDataset`."""
    keras: Any = importlib.import_module("keras")

    class Batches(keras.utils.PyDataset):  # type: ignore[misc]
        """The same batches as `with_tensorflow` makes."""

        def __len__(self) -> int:
            return len(plan)

        def __getitem__(self, batch: int) -> Any:
            if not 0 <= batch < len(plan):
                raise IndexError(f"batch {batch} of {len(plan)}")
            return take(arrays, plan.rows(batch))

        def __iter__(self) -> Iterator[Any]:
            for rows in plan.one_pass():
                yield take(arrays, rows)

        def on_epoch_end(self) -> None:
            plan.passes += 1

    return Batches()
