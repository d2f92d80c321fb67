"""The softmax a part at a time: the same loss and the same gradients as all at once."""

import keras
import numpy as np
import pytest
from keras import ops
from numpy.testing import assert_allclose

from rectutor.chunked_softmax import chunked_log_z, chunked_softmax_loss

NUM_ITEMS, WIDTH, POSITIONS = 53, 8, 20


def full_loss(states, table, targets):
    scores = ops.matmul(states, ops.transpose(table[1:]))
    own = ops.sum(states * ops.take(table, targets, axis=0), axis=-1)
    return ops.mean(ops.logsumexp(scores, axis=-1) - own)


class Scorer(keras.Model):
    """Two tables, one for the states; the loss is given."""

    def __init__(self, loss):
        super().__init__()
        keras.utils.set_random_seed(3)
        start = keras.initializers.RandomNormal(stddev=1.0)
        self.of_loss = loss
        self.states = keras.layers.Embedding(POSITIONS, WIDTH, embeddings_initializer=start)
        self.items = keras.layers.Embedding(NUM_ITEMS + 1, WIDTH, embeddings_initializer=start)
        for layer in (self.states, self.items):
            layer.build(())

    def call(self, x):
        return self.states(x)

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        return self.of_loss(y_pred, self.items.embeddings, y)


def step(loss):
    """The loss, and both tables after a step of gradient descent with rate 1."""
    model = Scorer(loss)
    model.compile(optimizer=keras.optimizers.SGD(1.0))
    targets = np.random.default_rng(0).integers(1, NUM_ITEMS + 1, POSITIONS)
    value = model.train_on_batch(np.arange(POSITIONS), targets)
    return float(value), model.get_weights()


@pytest.mark.parametrize("chunk", [1, 10, 53, 4096])
def test_loss_and_gradients_are_those_of_the_full_softmax(chunk):
    expected, weights = step(full_loss)
    found, ours = step(lambda *tensors: chunked_softmax_loss(*tensors, chunk=chunk))
    assert found == pytest.approx(expected, abs=1e-5)
    start = Scorer(full_loss).get_weights()
    for own, full, before in zip(ours, weights, start, strict=True):
        assert np.abs(full - before).max() > 0.01  # there is a gradient
        assert_allclose(own, full, atol=1e-5)


def test_padding_takes_no_part():
    rng = np.random.default_rng(0)
    states, table = rng.normal(size=(6, 4)).astype("float32"), rng.normal(size=(9, 4))
    table = ops.convert_to_tensor(table, "float32")
    targets = np.array([0, 3, 0, 8, 1, 0], "int32")
    real = targets > 0
    found = chunked_softmax_loss(ops.convert_to_tensor(states), table, targets, 4)
    told = full_loss(ops.convert_to_tensor(states[real]), table, targets[real])
    assert_allclose(ops.convert_to_numpy(found), ops.convert_to_numpy(told), rtol=1e-5)


def test_large_scores_do_not_overflow():
    states = np.full((2, 4), 100.0, "float32")
    table = np.random.default_rng(1).normal(0, 10, (30, 4)).astype("float32")
    scores = states @ table.T
    top = scores.max(axis=1)
    expected = top + np.log(np.exp(scores - top[:, None]).sum(axis=1))
    found = chunked_log_z(ops.convert_to_tensor(states), ops.convert_to_tensor(table), 7)
    assert_allclose(ops.convert_to_numpy(found), expected, rtol=1e-5)


def test_a_chunk_of_nothing_is_refused():
    table = ops.ones((3, 2))
    with pytest.raises(ValueError, match="chunk"):
        chunked_log_z(table, table, chunk=0)
