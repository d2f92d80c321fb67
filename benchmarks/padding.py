"""What padding and a large catalogue cost: SASRec on short histories, and its softmax by itself.

The table is that of a shop: 20,000 users with 5 to 10 interactions each. The chapter's model trains
on it with batches of full windows, as the chapter does, and with `rectutor.bucketing`; what counts
is how many *real* positions a second enter the loss. The softmax over 100,000 items is computed
with its gradients for 10,000 positions, whole and with `rectutor.chunked_softmax`; what counts is
the memory that the process grows by.
"""

from __future__ import annotations

import os
import statistics
import sys
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.measure import (
    Row,
    finish,
    forget_peak,
    in_child,
    peak_mib,
    resident_mib,
    seconds_of,
)
from rectutor import PADDING_ID
from rectutor.sequences import Histories, training_windows

USERS, ITEMS = 20_000, 1_000
SHORTEST, LONGEST = 5, 10  # interactions a user
CONTEXT = 50
BATCH = 64
#: Batches of the plain epochs; of the bucketed ones, all: `fit` is compiled for every width.
PLAIN_BATCHES = 12
TARGET_REAL, TARGET_TIMES = 0.8, 3

POSITIONS, CATALOGUE, WIDTH = 10_000, 100_000, 64


def short_histories(num_users: int = USERS, seed: int = 0) -> Histories:
    """The shop's: lengths and items are drawn evenly."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(SHORTEST, LONGEST + 1, num_users)
    offsets = np.concatenate([[0, 0], np.cumsum(lengths)])
    items = rng.integers(1, ITEMS + 1, offsets[-1])
    return Histories(items.astype(np.int32), offsets)


def real_share(batches: Any) -> float:
    """The share of the positions of an epoch's batches that hold an item."""
    real = [(batches[number][0] != PADDING_ID) for number in range(len(batches))]
    return sum(int(each.sum()) for each in real) / sum(each.size for each in real)


def train(bucketed: bool, epochs: int) -> dict[str, Any]:
    """Train the chapter's SASRec; the share of real positions, and how many a second."""
    from benchmarks.throughput import Stopwatch
    from rectutor.batches import DrawnEachEpoch
    from rectutor.bucketing import Bucketed
    from tools import book

    code = book.definitions("sasrec")
    inputs, targets = training_windows(short_histories(), CONTEXT)
    if not bucketed:
        rows = np.random.default_rng(0).permutation(len(inputs))[: PLAIN_BATCHES * BATCH]
        inputs, targets = inputs[rows], targets[rows]
    code.keras.utils.set_random_seed(0)
    model = code.SASRec(ITEMS, CONTEXT)
    model.compile(optimizer=code.keras.optimizers.Adam(0.001))
    kind = Bucketed if bucketed else DrawnEachEpoch
    batches, watch = kind(lambda epoch: (inputs, targets), BATCH, seed=0), Stopwatch()
    share, real = real_share(batches), (inputs != PADDING_ID).sum() * (len(batches) * BATCH)
    model.fit(batches, epochs=1 + epochs, verbose=0, callbacks=[watch.callback()])
    first, *seconds = watch.seconds
    rates = [int(real) / len(inputs) / each for each in seconds]
    return {"share": share, "rates": rates, "first": first}


def softmax(chunked: bool, positions: int, items: int) -> dict[str, float]:
    """A softmax and its gradients; MiB that the process grows by, and seconds."""
    import jax

    from rectutor.chunked_softmax import chunked_softmax_loss

    def whole(states: Any, table: Any, targets: Any) -> Any:
        scores = states @ table[1:].T
        own = (states * table[targets]).sum(axis=-1)
        return (jax.nn.logsumexp(scores, axis=-1) - own).mean()

    rng = np.random.default_rng(0)
    states = rng.normal(0, 1, (positions, WIDTH)).astype("float32")
    table = rng.normal(0, 0.1, (items + 1, WIDTH)).astype("float32")
    targets = rng.integers(1, items + 1, positions)
    loss = chunked_softmax_loss if chunked else whole
    inputs = [jax.numpy.asarray(each) for each in (states, table, targets)]
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*inputs).compile()
    forget_peak()
    before = resident_mib()
    seconds = seconds_of(lambda: jax.block_until_ready(step(*inputs)))
    return {"mib": peak_mib() - before, "seconds": seconds, "loss": float(step(*inputs)[0])}


def measure() -> list[Row]:
    """The row of the padding, and the row of the catalogue."""
    return [padding_row(), catalogue_row()]


def padding_row() -> Row:
    """Real positions a second, bucketed beside full windows."""
    environment = {"KERAS_BACKEND": "jax"}
    plain, _ = in_child("benchmarks.padding", "train", 0, 3, environment=environment)
    ours, peak = in_child("benchmarks.padding", "train", 1, 2, environment=environment)
    reference = statistics.median(plain["rates"])
    times = statistics.median(ours["rates"]) / reference
    shares = f"{ours['share']:.0%} of the positions are real, of full windows {plain['share']:.0%}"
    met = times >= TARGET_TIMES and ours["share"] >= TARGET_REAL
    return Row.of(
        "throughput",
        f"SASRec, {USERS:,} users with {SHORTEST} to {LONGEST} interactions, bucketed: {shares}",
        ours["rates"],
        "real positions/s",
        first=ours["first"],
        peak_mib=peak,
        reference=f"windows of {CONTEXT}",
        reference_value=reference,
        ratio=times,
        target=f">= {TARGET_TIMES} times and {TARGET_REAL:.0%} real",
        met=met,
        limit="" if met else f"{shares}; {times:.1f} times the real positions a second",
    )


def catalogue_row() -> Row:
    """Memory of a softmax over a large catalogue, in parts beside whole."""
    environment = {"KERAS_BACKEND": "jax"}
    ours, peak = in_child(
        "benchmarks.padding", "softmax", 1, POSITIONS, CATALOGUE, environment=environment
    )
    # whole it takes gigabytes: a fifth of the positions, and five times what they grow it by
    part, _ = in_child(
        "benchmarks.padding", "softmax", 0, POSITIONS // 5, CATALOGUE, environment=environment
    )
    whole = 5 * part["mib"]
    return Row.of(
        "throughput",
        f"softmax over {CATALOGUE:,} items in parts, {POSITIONS:,} positions, with gradients: "
        f"memory ({ours['seconds']:.1f} s)",
        [ours["mib"]],
        "MiB",
        peak_mib=peak,
        reference="whole, 5 times that of a fifth",
        reference_value=whole,
        ratio=whole / ours["mib"],
    )


if __name__ == "__main__":
    os.environ.setdefault("KERAS_BACKEND", "jax")
    if len(sys.argv) > 1:
        what, *numbers = sys.argv[1:]
        one, *more = map(int, numbers)
        finish({"train": train, "softmax": softmax}[what](bool(one), *more))
    else:
        print(report.text_tables(measure()))
