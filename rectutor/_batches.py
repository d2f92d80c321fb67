"""Batches whose order NumPy decides, as a `tf.data.Dataset` or a `keras.utils.PyDataset`."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from rectutor.environment import silent_stderr


@dataclass
class Plan:
    """Which rows are in which batch of which pass over the data.

    Attributes:
        num_rows: how many rows there are.
        batch_size: rows a batch; the last one may be smaller.
        shuffle: whether each pass has an order of its own.
        seed: what decides the orders.
        begun: how many passes have begun.
    """

    num_rows: int
    batch_size: int
    shuffle: bool
    seed: int
    begun: int = 0

    def __len__(self) -> int:
        return -(-self.num_rows // self.batch_size)

    def begin(self) -> np.ndarray:
        """`(num_rows,)` int64, the rows in the order of the pass that begins now."""
        order = self.order(self.begun)
        self.begun += 1
        return order

    def order(self, number: int) -> np.ndarray:
        """`(num_rows,)` int64, the rows in the order of a pass, the first of which is number 0."""
        if not self.shuffle:
            return np.arange(self.num_rows)
        return np.random.default_rng([self.seed, number]).permutation(self.num_rows)

    def cut(self, order: np.ndarray, batch: int) -> np.ndarray:
        """`(B,)` int64, the rows of one batch."""
        return order[batch * self.batch_size : (batch + 1) * self.batch_size]


def take(arrays: Any, rows: np.ndarray) -> Any:
    """The given rows of an array, or of every array in a tuple or dict."""
    if isinstance(arrays, dict):
        return {name: take(value, rows) for name, value in arrays.items()}
    if isinstance(arrays, tuple):
        return tuple(take(value, rows) for value in arrays)
    return arrays[rows]


def with_tensorflow(arrays: tuple[Any, ...], plan: Plan) -> Any:
    """The batches as a `tf.data.Dataset`, or None where TensorFlow cannot be imported."""
    tf = _tensorflow()
    if tf is None:
        return None
    # Keras says that it will not shuffle such a data set. It need not: the order is drawn here.
    warnings.filterwarnings("ignore", message="`shuffle=True` was passed, but will be ignored")
    with tf.device("CPU:0"):
        tensors = tf.nest.map_structure(tf.constant, arrays)
        starts = tf.data.Dataset.range(0, plan.num_rows, plan.batch_size)

        def batches_of(order: Any) -> Any:
            return starts.map(lambda start: order[start : start + plan.batch_size])

        def gather(rows: Any) -> Any:
            return tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), tensors)

        orders: Any = tf.data.Dataset.from_generator(
            lambda: iter([plan.begin()]), output_signature=tf.TensorSpec([plan.num_rows], tf.int64)
        )
        rows = orders.flat_map(batches_of)
        rows = rows.apply(tf.data.experimental.assert_cardinality(len(plan)))
        return rows.map(gather).prefetch(tf.data.AUTOTUNE)  # of tensors that are in memory


def _tensorflow() -> Any:
    """TensorFlow, or None where it cannot be imported."""
    if "tensorflow" in sys.modules:
        tf: Any = sys.modules["tensorflow"]  # None where somebody has blocked it
    else:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        with silent_stderr():  # its C++ parts chat past Python's streams, into notebooks
            try:
                tf = importlib.import_module("tensorflow")
            except ImportError:
                return None
    keras: Any = importlib.import_module("keras")
    if tf is not None and keras.backend.backend() != "tensorflow":
        # Only an input pipeline here: it must not claim the memory of the accelerator.
        with contextlib.suppress(RuntimeError), silent_stderr():
            tf.config.set_visible_devices([], "GPU")
    return tf


def with_keras(arrays: tuple[Any, ...], plan: Plan) -> Any:
    """The batches as a `keras.utils.PyDataset`."""
    keras: Any = importlib.import_module("keras")

    class Batches(keras.utils.PyDataset):  # type: ignore[misc]
        """The same batches, in the same order, as `with_tensorflow` makes.

        `fit` asks for batches in an order of its own drawing unless told `shuffle=False`. Within
        an epoch they are therefore served in the plan's order, whichever number is asked for.
        """

        def __init__(self) -> None:
            super().__init__()
            self._order = plan.order(0)
            self._next: int | None = None  # the batch to serve; None outside epochs

        def __len__(self) -> int:
            return len(plan)

        def __getitem__(self, batch: int) -> Any:
            if not 0 <= batch < len(plan):
                raise IndexError(f"batch {batch} of {len(plan)}")
            if self._next is not None and self._next < len(plan):
                batch = self._next
                self._next += 1
            return take(arrays, plan.cut(self._order, batch))

        def __iter__(self) -> Iterator[Any]:
            order = plan.begin()
            for batch in range(len(plan)):
                yield take(arrays, plan.cut(order, batch))

        def on_epoch_begin(self) -> None:
            self._order = plan.begin()
            self._next = 0

        def on_epoch_end(self) -> None:
            self._next = None

    return Batches()
