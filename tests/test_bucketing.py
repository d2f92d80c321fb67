"""Batches as wide as their longest window: nothing is lost but padding."""

import keras
import numpy as np
import pytest
from chapters import definitions
from numpy.testing import assert_array_equal

from benchmarks import padding
from rectutor import PADDING_ID
from rectutor.batches import DrawnEachEpoch
from rectutor.bucketing import Bucketed, widths_of
from rectutor.sequences import training_windows

NUM_MOVIES, CONTEXT = 30, 16


@pytest.fixture(scope="module")
def windows():
    """Forty windows of 1 to 16 movies, and any targets, padded before."""
    rng = np.random.default_rng(0)
    lengths = np.concatenate([np.arange(1, 17), rng.integers(1, 17, 24)])
    real = np.arange(CONTEXT) >= CONTEXT - lengths[:, None]
    drawn = rng.integers(1, NUM_MOVIES + 1, (2, *real.shape))
    return tuple(np.where(real, movies, PADDING_ID).astype(np.int32) for movies in drawn)


def rows_of(dataset):
    """The epoch's rows, with their padding again, sorted."""
    rows = []
    for number in range(len(dataset)):
        inputs, targets = dataset[number]
        wide = ((0, 0), (CONTEXT - inputs.shape[1], 0))
        both = np.concatenate([np.pad(inputs, wide), np.pad(targets, wide)], axis=1)
        rows += both.tolist()
    return sorted(rows)


@pytest.mark.parametrize("batch_size", [4, 7, 100])
def test_an_epoch_has_the_rows_of_the_plain_batches(windows, batch_size):
    plain = DrawnEachEpoch(lambda epoch: windows, batch_size, seed=3)
    bucketed = Bucketed(lambda epoch: windows, batch_size, seed=3)
    assert len(bucketed) == len(plain)
    for _ in range(2):
        assert rows_of(bucketed) == rows_of(plain)
        for dataset in (plain, bucketed):
            dataset.on_epoch_end()


def test_no_row_is_much_wider_than_its_movies(windows):
    lengths = (windows[0] != PADDING_ID).sum(axis=1)
    widths = widths_of(windows[0])
    assert {*widths} == {4, 6, 8, 12, 16}
    assert (widths >= lengths).all()
    assert (widths <= np.maximum(1.5 * lengths, 4)).all()
    assert widths_of(np.ones((1, 50), int)).tolist() == [50]
    assert widths_of(np.zeros((1, 3), int)).tolist() == [3]


def test_the_longest_rows_are_not_always_what_is_left_over(windows):
    bucketed, met = Bucketed(lambda epoch: windows, 7, seed=0), set()
    for _ in range(8):
        met |= {tuple(row) for row in rows_of(bucketed)}
        bucketed.on_epoch_end()
    assert len(met) == len(windows[0])


def test_batches_come_in_another_order_each_epoch_and_the_same_each_run(windows):
    first, again = (Bucketed(lambda epoch: windows, 4, seed=1) for _ in range(2))
    assert_array_equal(first.batches, again.batches)
    widths = [[dataset[n][0].shape[1] for n in range(len(dataset))] for dataset in (first, again)]
    assert widths[0] != sorted(widths[0])
    again.on_epoch_end()
    assert not np.array_equal(first.batches, again.batches)


def test_targets_with_negatives_are_cut_alike(windows):
    inputs, targets = windows
    negatives = np.arange(targets.size * 2).reshape(*targets.shape, 2)
    both = {"targets": targets, "negatives": negatives}
    bucketed = Bucketed(lambda epoch: (inputs, both), 4, seed=0)
    for number in range(len(bucketed)):
        rows, found = bucketed[number]
        for at, row in enumerate(bucketed.batches[number]):
            assert_array_equal(found["targets"][at], targets[row, -rows.shape[1] :])
            assert_array_equal(found["negatives"][at], negatives[row, -rows.shape[1] :])


@pytest.mark.parametrize("kind", ["SASRec", "LeverSASRec"])
def test_the_loss_of_a_batch_is_that_with_all_its_padding(windows, kind):
    code = definitions("sasrec" if kind == "SASRec" else "sasrec_levers")
    keras.utils.set_random_seed(2)
    more = {} if kind == "SASRec" else {"ahead": 3, "direct": 4}
    model = getattr(code, kind)(NUM_MOVIES, CONTEXT, width=16, dropout=0.0, **more)
    bucketed = Bucketed(lambda epoch: windows, 10, seed=0)
    for number in range(len(bucketed)):
        inputs, targets = bucketed[number]
        rows = bucketed.batches[number]
        full = [each[rows] for each in windows]
        losses = [
            float(keras.ops.convert_to_numpy(model.compute_loss(x, y, model(x))))
            for x, y in [(inputs, targets), full]
        ]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_four_fifths_of_the_positions_of_a_shop_are_real():
    """Of users with 5 to 10 interactions each, which full windows leave mostly empty."""
    shop = training_windows(padding.short_histories(2_000), 50)
    shares = [
        padding.real_share(kind(lambda epoch: shop, 64, seed=0))
        for kind in (Bucketed, DrawnEachEpoch)
    ]
    assert shares[0] >= 0.8
    assert shares[1] < 0.15


def test_a_backend_that_cannot_have_widths_apart_is_refused(windows, monkeypatch):
    drawn = Bucketed(lambda epoch: windows, 4, 0)
    drawn.on_epoch_begin()
    monkeypatch.setattr("keras.backend.backend", lambda: "tensorflow")
    with pytest.raises(ValueError, match=r"widths.*; set KERAS_BACKEND to jax or torch"):
        drawn.on_epoch_begin()


def test_no_rows_are_refused():
    none = np.zeros((0, 5), np.int32)
    with pytest.raises(ValueError, match="gives no rows"):
        Bucketed(lambda epoch: (none, none), 4, seed=0)
