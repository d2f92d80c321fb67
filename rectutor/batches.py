"""Batches whose order NumPy decides, as a `tf.data.Dataset` or a `keras.utils.PyDataset`.

Importing this module imports no framework: that waits until there is a batch to make.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from rectutor import checks
from rectutor.environment import silent_stderr

__all__ = ["DrawnEachEpoch", "batches"]  # noqa: F822 (__getattr__ makes the class)


def batches(
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
) -> Any:
    """Cut arrays into batches for `fit`, `evaluate` and `predict` of a Keras model.

    A `tf.data.Dataset` (in memory, prefetched) where TensorFlow can be imported, else a
    `keras.utils.PyDataset`. The batches and their order are the same either way: NumPy draws the
    order of pass `p` from `(seed, p)`, so each pass has an order of its own, and the same one in
    each run. A pass counts when it begins: `fit` on a model that is not built yet reads a first
    batch to build it, and its first epoch is then pass 1.

    Args:
        x: an array of `n` rows, or a tuple or dict of such arrays.
        y: targets in the same forms, or None.
        sample_weight: weights in the same forms, or None; needs `y`.
        batch_size: how many rows a batch has; the last one has what is left.
        shuffle: whether to draw an order, or keep that of the rows.
        seed: a non-negative integer.

    Returns:
        An iterable of `(x,)`, `(x, y)` or `(x, y, sample_weight)` batches.

    Raises:
        TypeError: something is no array of numbers or text, or `batch_size` or `seed` no integer.
        ValueError: there are no rows, or not the same number everywhere, or a value is negative.
    """
    batch_size = checks.integer(batch_size, "batches: batch_size", 1)
    seed = checks.integer(seed, "batches: seed", 0)
    if not isinstance(shuffle, bool | np.bool_):
        raise TypeError(f"shuffle must be True or False, not {shuffle!r}")
    if sample_weight is not None and y is None:
        raise ValueError("sample_weight is given without y; give both")
    parts = {"x": x, "y": y, "sample_weight": sample_weight}
    arrays = {place: _arrays(part, place) for place, part in parts.items() if part is not None}
    if "x" not in arrays:
        raise TypeError("x is None; give an array, or a tuple or dict of arrays")
    rows = {place: len(array) for part in arrays.values() for place, array in part[1]}
    if len(set(rows.values())) != 1:
        raise ValueError(f"every array must have the same number of rows; there are {rows}")
    num_rows = next(iter(rows.values()))
    if num_rows == 0:
        raise ValueError("x has no rows; batches needs at least one")
    content = tuple(part[0] for part in arrays.values())
    plan = _Plan(num_rows, batch_size, bool(shuffle), seed)
    dataset = _with_tensorflow(content, plan)
    return _with_keras(content, plan) if dataset is None else dataset


def __getattr__(name: str) -> Any:
    if name == "DrawnEachEpoch":
        return _drawn_each_epoch()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _drawn_each_epoch() -> Any:
    """The class `DrawnEachEpoch`: what it derives from is in Keras, which is imported here."""
    keras: Any = importlib.import_module("keras")

    class DrawnEachEpoch(keras.utils.PyDataset):  # type: ignore[misc]
        """Training data that is drawn anew for each epoch, shuffled, in batches all of one size.

        A `keras.utils.PyDataset`. Which rows are together, NumPy draws from `(seed, e)` for the
        rows of `draw(e)`; `fit` takes the batches in an order of its own unless told
        `shuffle=False`. What is left over after the last whole batch waits for another epoch's
        order. On a model that is not built yet `fit` reads a batch of `draw(0)` to build it, and
        trains on `draw(1)` first.

        Args:
            draw: gives `(inputs, targets)` of an epoch, the first of which is number 0: an array
                of `n` rows, and an array or a dict of arrays of as many.
            batch_size: rows a batch; where there are fewer rows, all of them.
            seed: of the order, a non-negative integer.

        Raises:
            TypeError: `batch_size` or `seed` is no integer.
            ValueError: `batch_size` or `seed` is out of range, or `draw(0)` has no rows.

        Example:
            >>> drawn = DrawnEachEpoch(lambda epoch: (np.arange(5), np.arange(5)), 2, seed=0)
            >>> len(drawn)  # batches of two rows
            2
        """

        def __init__(
            self, draw: Callable[[int], tuple[Any, Any]], batch_size: int, seed: int
        ) -> None:
            super().__init__()
            batch_size = checks.integer(batch_size, "DrawnEachEpoch: batch_size", 1)
            self.seed = checks.integer(seed, "DrawnEachEpoch: seed", 0)
            self.draw, self.epoch = draw, -1
            self.on_epoch_end()
            if len(self.inputs) == 0:
                raise ValueError("DrawnEachEpoch: draw(0) gives no rows; give at least one")
            self.batch_size = min(batch_size, len(self.inputs))

        def __len__(self) -> int:
            return len(self.inputs) // self.batch_size

        def on_epoch_end(self) -> None:
            """Draw the next epoch's rows and their order."""
            self.epoch += 1
            self.inputs, self.targets = self.draw(self.epoch)
            generator = np.random.default_rng([self.seed, self.epoch])
            self.order = generator.permutation(len(self.inputs))

        def __getitem__(self, number: int) -> Any:
            rows = self.order[number * self.batch_size : (number + 1) * self.batch_size]
            return self.inputs[rows], _take(self.targets, rows)

    return DrawnEachEpoch


@dataclass
class _Plan:
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


def _take(arrays: Any, rows: np.ndarray) -> Any:
    """The given rows of an array, or of every array in a tuple or dict."""
    if isinstance(arrays, dict):
        return {name: _take(value, rows) for name, value in arrays.items()}
    if isinstance(arrays, tuple):
        return tuple(_take(value, rows) for value in arrays)
    return arrays[rows]


def _with_tensorflow(arrays: tuple[Any, ...], plan: _Plan) -> Any:
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


def _with_keras(arrays: tuple[Any, ...], plan: _Plan) -> Any:
    """The batches as a `keras.utils.PyDataset`."""
    keras: Any = importlib.import_module("keras")

    class Batches(keras.utils.PyDataset):  # type: ignore[misc]
        """The same batches, in the same order, as `_with_tensorflow` makes.

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
            return _take(arrays, plan.cut(self._order, batch))

        def __iter__(self) -> Iterator[Any]:
            order = plan.begin()
            for batch in range(len(plan)):
                yield _take(arrays, plan.cut(order, batch))

        def on_epoch_begin(self) -> None:
            self._order = plan.begin()
            self._next = 0

        def on_epoch_end(self) -> None:
            self._next = None

    return Batches()


def _arrays(value: Any, place: str) -> tuple[Any, list[tuple[str, np.ndarray]]]:
    """`value` with NumPy arrays in it, and a flat list of these with their places."""
    if isinstance(value, dict | tuple) and len(value) == 0:
        raise ValueError(f"{place} is empty; give at least one array")
    if isinstance(value, dict):
        inner = {key: _arrays(part, f"{place}[{key!r}]") for key, part in value.items()}
        return {key: part[0] for key, part in inner.items()}, [
            pair for part in inner.values() for pair in part[1]
        ]
    if isinstance(value, tuple):
        parts = [_arrays(part, f"{place}[{k}]") for k, part in enumerate(value)]
        return tuple(part[0] for part in parts), [pair for part in parts for pair in part[1]]
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise TypeError(f"{place} cannot be made an array ({error})") from error
    described = f"{value!r}" if array.ndim == 0 else f"{array.dtype} of shape {array.shape}"
    if array.ndim == 0 or array.dtype.kind not in "biufSU":
        raise TypeError(
            f"{place} must be an array with a row an example, of numbers or text, not {described}"
        )
    return array, [(place, array)]
