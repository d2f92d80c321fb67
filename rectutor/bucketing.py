"""Batches as wide as their longest window, so that short histories do not pay for padding.

A window of a user with seven movies has seven real positions, and in a batch of windows of 50
costs as much as one of 50. Here rows of like length share a batch, and padding that all of them
have is cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from rectutor import PADDING_ID, checks

__all__ = ["Bucketed", "widths_of"]


class Bucketed(keras.utils.PyDataset):  # type: ignore[misc]
    """Training data that is drawn anew for each epoch, each batch as wide as its longest window.

    It takes the place of `rectutor.batches.DrawnEachEpoch`: the same rows an epoch, as many to a
    batch. Rows are sorted by their width, and the batches come in an order that NumPy draws from
    `(seed, epoch)`. A loss that is a mean over real positions is, for a batch, the same as with all
    its padding. A model is compiled once for each width that occurs; they are few (`widths_of`).
    As with `DrawnEachEpoch`, `fit` shuffles the batches itself unless told `shuffle=False`. It is
    for JAX and PyTorch: on TensorFlow Keras compiles one program for windows of unknown length,
    which a model that needs the length cannot have.

    Args:
        draw: gives `(inputs, targets)` of an epoch, the first of which is number 0: `(n, L)`
            windows padded before, and an array, or a dict of arrays, with a column a position.
        batch_size: rows a batch; where there are fewer rows, all of them.
        seed: of the order, a non-negative integer.

    Raises:
        TypeError: `batch_size` or `seed` is no integer.
        ValueError: `batch_size` or `seed` is out of range, or `draw(0)` has no rows; or, when an
            epoch begins, the backend is TensorFlow.

    Example:
        >>> windows = np.array([[0, 0, 0, 0, 0, 0, 1, 2], [1, 2, 3, 4, 5, 6, 7, 8]])
        >>> drawn = Bucketed(lambda epoch: (windows, windows), 1, seed=0)
        >>> sorted(drawn[number][0].shape for number in range(len(drawn)))
        [(1, 4), (1, 8)]
    """

    def __init__(self, draw: Callable[[int], tuple[Any, Any]], batch_size: int, seed: int) -> None:
        super().__init__()
        self.most = checks.integer(batch_size, "Bucketed: batch_size", 1)
        self.seed = checks.integer(seed, "Bucketed: seed", 0)
        self.draw, self.epoch = draw, -1
        self.on_epoch_end()

    def __len__(self) -> int:
        return len(self.batches)

    def on_epoch_begin(self) -> None:
        """Refuse a backend that would fail with less clear words."""
        if keras.backend.backend() == "tensorflow":
            raise ValueError(
                "Bucketed gives batches of several widths, which Keras does not compile apart on "
                "TensorFlow; set KERAS_BACKEND to jax or torch, or use DrawnEachEpoch"
            )

    def on_epoch_end(self) -> None:
        """Draw the next epoch's rows, and which of them are together."""
        self.epoch += 1
        self.inputs, self.targets = self.draw(self.epoch)
        if len(self.inputs) == 0:
            raise ValueError("Bucketed: draw(0) gives no rows; give at least one")
        size = min(self.most, len(self.inputs))
        self.widths = widths_of(self.inputs)
        generator = np.random.default_rng([self.seed, self.epoch])
        # what is left over is drawn before the sorting, or it would always be the longest
        rows = generator.permutation(len(self.inputs))[: len(self.inputs) // size * size]
        rows = rows[np.argsort(self.widths[rows], kind="stable")].reshape(-1, size)
        self.batches = generator.permutation(rows)  # (batches, size)

    def __getitem__(self, number: int) -> Any:
        rows = self.batches[number]
        width = self.widths[rows].max()
        parts = (self.inputs, self.targets)
        return keras.tree.map_structure(lambda array: array[rows, -width:], parts)


def widths_of(windows: np.ndarray) -> np.ndarray:
    """How wide a batch must be for each window: its length, rounded up.

    Args:
        windows: `(n, L)` movies, padded before.

    Returns:
        `(n,)` of 4, 6, 8, 12, 16, 24, 32, 48, 64 ... and L, so that a long table is compiled for
        few widths and no row is more than a half wider than its movies, from 4 on.
    """
    length = windows.shape[1]
    steps = [width << power for power in range(length.bit_length()) for width in (4, 6)]
    sizes = np.array([*(step for step in steps if step < length), length])
    real = windows != PADDING_ID
    lengths = np.where(real.any(axis=1), length - real.argmax(axis=1), 0)
    return np.asarray(sizes[np.searchsorted(sizes, lengths)])
