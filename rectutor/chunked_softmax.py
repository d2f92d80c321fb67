"""A softmax over a large catalogue that never holds a score for every position and every item.

The scores of 10,000 positions over 100,000 items are 4 GB, and training keeps them for the backward
pass. Here they are made for a part of the catalogue at a time, and made again when the gradient
is asked for: one more matrix product, for scores that do not grow with the catalogue.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from rectutor import PADDING_ID, checks

__all__ = ["chunked_log_z", "chunked_softmax_loss"]


def chunked_log_z(states: Any, table: Any, chunk: int = 4096) -> Any:
    """The logarithm of the softmax's sum: `logsumexp(states @ table.T)`, a part at a time.

    Args:
        states: `(N, d)`.
        table: `(V, d)` vectors of the items.
        chunk: how many items' scores are held at once.

    Returns:
        `(N,)`. Its gradients are those of the plain formula.

    Raises:
        ValueError: `chunk` is below 1.
    """
    chunk = min(checks.integer(chunk, "chunked_log_z: chunk", 1), table.shape[0])
    num_items, width = table.shape
    count = -(-num_items // chunk)
    padded = ops.pad(table, ((0, count * chunk - num_items), (0, 0)))
    parts = ops.reshape(padded, (count, chunk, width))  # (C, chunk, d)
    absent = np.where(np.arange(count * chunk) < num_items, 0.0, -1e9)
    absent = ops.convert_to_tensor(absent.reshape(count, chunk).astype("float32"))

    def of_part(states: Any, vectors: Any, absent: Any) -> Any:
        scores = ops.matmul(states, ops.transpose(vectors)) + absent  # (N, chunk)
        return ops.logsumexp(scores, axis=-1)  # (N,)

    again = keras.remat(of_part)  # the scores are not kept for the backward pass
    if keras.backend.backend() == "jax":  # one part after the other, also when compiled
        each = ops.map(lambda part: again(states, *part), (parts, absent))  # (C, N)
    else:
        each = ops.stack([again(states, parts[n], absent[n]) for n in range(count)])
    return ops.logsumexp(each, axis=0)


def chunked_softmax_loss(states: Any, table: Any, targets: Any, chunk: int = 4096) -> Any:
    """Cross-entropy of the next item over the catalogue, a mean over the real positions.

    Args:
        states: `(N, d)`, such as the windows of a batch, `(B, L, d)`, flattened.
        table: `(V + 1, d)` vectors of the items; row 0 is no item.
        targets: `(N,)` the item after each position, 0 where there is none.
        chunk: how many items' scores are held at once.
    """
    own = ops.sum(states * ops.take(table, targets, axis=0), axis=-1)  # (N,)
    real = ops.cast(ops.not_equal(targets, PADDING_ID), own.dtype)  # (N,)
    loss = ops.sum((chunked_log_z(states, table[1:], chunk) - own) * real)
    return loss / ops.maximum(ops.sum(real), 1.0)
