"""Batches: the same ones in the same order with TensorFlow and without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rectutor.batches import DrawnEachEpoch, batches


def as_lists(dataset):
    """The batches of one pass, as plain lists."""

    def plain(part):
        if isinstance(part, dict):
            return {name: plain(value) for name, value in part.items()}
        if isinstance(part, tuple):
            return [plain(value) for value in part]
        return np.asarray(part).tolist()

    return [plain(batch) for batch in dataset]


X = np.arange(10)


def test_batches_keep_the_order_of_the_rows_and_the_last_one_is_short():
    made = batches(X, X * 2, batch_size=4)
    assert len(made) == 3
    assert as_lists(made) == [
        [[0, 1, 2, 3], [0, 2, 4, 6]],
        [[4, 5, 6, 7], [8, 10, 12, 14]],
        [[8, 9], [16, 18]],
    ]
    assert as_lists(made) == as_lists(made)


def test_tuples_dicts_and_weights_are_cut_alike_and_x_alone_is_a_tuple_of_one():
    x = {"user": X, "pair": (X + 1, np.stack([X, X], axis=1))}
    (batch,) = as_lists(batches(x, X * 0.5, X * 3, batch_size=20))
    assert batch[0]["user"] == X.tolist()
    assert batch[0]["pair"] == [(X + 1).tolist(), [[k, k] for k in range(10)]]
    assert batch[1:] == [(X * 0.5).tolist(), (X * 3).tolist()]
    assert as_lists(batches(X, batch_size=10)) == [[X.tolist()]]


def test_every_row_comes_once_a_pass_with_its_own_target():
    made = batches(X, X * 2, batch_size=3, shuffle=True, seed=1)
    for _ in range(3):
        rows = [(a, b) for x, y in as_lists(made) for a, b in zip(x, y, strict=True)]
        assert sorted(rows) == [(k, 2 * k) for k in range(10)]


def test_each_pass_has_an_order_of_its_own_that_the_seed_decides():
    def passes(seed):
        made = batches(X, batch_size=5, shuffle=True, seed=seed)
        return [as_lists(made) for _ in range(3)]

    assert passes(1) == passes(1)
    assert passes(1) != passes(2)
    first, second, third = passes(1)
    assert first != second != third != first


def test_the_arrays_are_not_changed_and_lists_and_columns_serve():
    frame = pd.DataFrame({"a": X, "b": X / 2})
    made = batches((frame["a"], [str(k) for k in X]), frame["b"], batch_size=10)
    (batch,) = as_lists(made)
    assert batch[0][0] == X.tolist()
    assert batch[1] == (X / 2).tolist()


SCRIPT = """
import json, sys
if "{block}":
    sys.modules["tensorflow"] = None
sys.path.insert(0, {tests!r})
import numpy as np
import keras
from rectutor.batches import batches
from test_batches import as_lists

keras.utils.set_random_seed(0)


class Spy(keras.layers.Layer):
    "Remembers, as a weight, a number that depends on the order of the rows."

    def build(self, shape):
        self.state = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.kernel = self.add_weight(shape=(1,), initializer="zeros")

    def call(self, x, training=False):
        if training:
            place = keras.ops.cast(keras.ops.arange(keras.ops.shape(x)[0]), "float32")
            self.state.assign(self.state * 0.5 + keras.ops.sum(x[:, 0] * (place + 1.0)))
        return x * self.kernel


n = 23
x = {{"a": np.arange(n), "b": (np.arange(n) / 2, np.arange(2 * n).reshape(n, 2))}}
passes = batches(x, np.arange(n), np.ones(n), batch_size=5, shuffle=True, seed=3)
listed = [as_lists(passes) for _ in range(3)]
fixed = as_lists(batches(x, batch_size=7))

model = keras.Sequential([Spy()])
model.compile("sgd", "mse")
rows = np.arange(n, dtype="float32")[:, None]
train = batches(rows, rows, batch_size=5, shuffle=True, seed=3)
model.fit(train, epochs=3, validation_data=batches(rows, rows, batch_size=9), verbose=0)
state = float(model.layers[0].state)
predicted = model.predict(batches(rows, batch_size=4), verbose=0)[:, 0].tolist()
print(json.dumps([type(train).__name__, keras.backend.backend(), listed, fixed, state, predicted]))
"""


def run_script(backend, block):
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    script = SCRIPT.format(block="yes" if block else "", tests=str(Path(__file__).parent))
    command = [sys.executable, "-W", "error:.*shuffle.*:UserWarning", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def with_tensorflow():
    pytest.importorskip("tensorflow")
    return run_script("jax", block=False)


@pytest.mark.long
def test_without_tensorflow_the_batches_and_their_order_are_the_same(with_tensorflow):
    """Read directly, and by `fit` on an unbuilt model, which asks in an order of its own."""
    kind, _, *without = run_script("jax", block=True)
    assert kind == "Batches"
    assert with_tensorflow[0] != kind
    assert without[:2] == with_tensorflow[2:4]
    assert without[2] == pytest.approx(with_tensorflow[4], rel=1e-6)
    assert without[3] == pytest.approx(with_tensorflow[5], rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("backend", ["tensorflow", pytest.param("torch", marks=pytest.mark.torch)])
def test_the_batches_are_the_same_on_every_backend(with_tensorflow, backend):
    _, name, *found = run_script(backend, block=False)
    assert name == backend
    assert found[:2] == with_tensorflow[2:4]
    if backend == "torch":  # Keras on TensorFlow begins another number of passes before it trains
        assert found[2] == pytest.approx(with_tensorflow[4], rel=1e-6)


def test_without_tensorflow_batches_have_numbers_and_an_epoch_is_served_in_order(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    made = batches(X, batch_size=4)
    expected = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(made) == 3
    assert [made[k][0].tolist() for k in range(3)] == expected
    for k, words in ((3, "batch 3 of 3"), (-1, None)):
        with pytest.raises(IndexError, match=words):
            made[k]
    made.on_epoch_begin()
    served = [made[k][0].tolist() for k in (2, 0, 1)]  # whatever is asked
    made.on_epoch_end()
    assert served == expected
    assert made[2][0].tolist() == [8, 9]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((None,), {}, TypeError, "x is None"),
        ((np.zeros((0, 3)),), {}, ValueError, "x has no rows"),
        ((5,), {}, TypeError, "x must be an array with a row an example.*not 5"),
        (("text",), {}, TypeError, "x must be an array.*'text'"),
        (([[1, 2], [3]],), {}, TypeError, "x cannot be made an array"),
        ((np.array([{}, {}], dtype=object),), {}, TypeError, r"object of shape \(2,\)"),
        ((({"a": X, "b": None},)), {}, TypeError, r"x\['b'\] must be an array.*None"),
        (((X, (X, object())),), {}, TypeError, r"x\[1\]\[1\]"),
        (((),), {}, ValueError, "x is empty"),
        (({},), {}, ValueError, "x is empty"),
        ((X, X[:-1]), {}, ValueError, r"same number of rows; there are \{'x': 10, 'y': 9\}"),
        ((({"a": X, "b": X[:2]}),), {}, ValueError, r"\"x\['a'\]\": 10, \"x\['b'\]\": 2"),
        ((X, X, X[:3]), {}, ValueError, "'sample_weight': 3"),
        ((X, None, X), {}, ValueError, "sample_weight is given without y"),
        ((X,), {"batch_size": 0}, ValueError, "batch_size is 0; it must be at least 1"),
        ((X,), {"batch_size": -4}, ValueError, "batch_size is -4"),
        ((X,), {"batch_size": 2.5}, TypeError, "batch_size is 2.5; give a whole"),
        ((X,), {"batch_size": "8"}, TypeError, "batch_size is '8'; give a whole"),
        ((X,), {"seed": -1}, ValueError, "seed is -1"),
        ((X,), {"seed": None}, TypeError, "seed is None; give a whole"),
        ((X,), {"shuffle": 1}, TypeError, "shuffle must be True or False, not 1"),
    ],
)
def test_batches_refuse_what_they_cannot_cut(arguments, options, error, words):
    with pytest.raises(error, match=words):
        batches(*arguments, **({"batch_size": 4} | options))


def test_importing_tensorflow_for_batches_writes_nothing():
    pytest.importorskip("tensorflow")
    code = (
        "import numpy as np; from rectutor.batches import batches\n"
        "print(len(list(batches(np.arange(9), batch_size=4, shuffle=True))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("3\n", "")


# --- drawn each epoch ---------------------------------------------------------------------------


def rows_of(epoch):
    """Five rows an epoch, and targets that tell which row and epoch they belong to."""
    inputs = np.arange(5) + 10 * epoch
    return inputs, {"next": inputs + 1, "last": inputs * 2}


def test_an_epoch_has_its_own_rows_in_an_order_that_seed_and_epoch_decide():
    drawn = DrawnEachEpoch(rows_of, batch_size=2, seed=3)
    for epoch in range(3):
        assert (len(drawn), drawn.epoch) == (2, epoch)
        order = np.random.default_rng([3, epoch]).permutation(5)[:4] + 10 * epoch
        (x, y), (more, z) = drawn[0], drawn[1]
        assert [*x, *more] == order.tolist()
        assert [*y["next"], *z["next"]] == (order + 1).tolist()
        assert [*y["last"], *z["last"]] == (order * 2).tolist()
        drawn.on_epoch_end()


def test_targets_may_be_one_array_and_a_batch_larger_than_the_data_is_all_of_it():
    drawn = DrawnEachEpoch(lambda epoch: (X, X + 1), batch_size=99, seed=0)
    inputs, targets = drawn[0]
    assert (len(drawn), drawn.batch_size) == (1, 10)
    assert sorted(inputs.tolist()) == X.tolist()
    assert targets.tolist() == (inputs + 1).tolist()


def test_fit_draws_once_an_epoch():
    import keras

    asked = []

    def draw(epoch):
        asked.append(epoch)
        return np.ones((6, 1), "float32") * epoch, np.zeros((6, 1), "float32")

    drawn = DrawnEachEpoch(draw, batch_size=2, seed=0)
    assert isinstance(drawn, keras.utils.PyDataset)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(drawn, epochs=3, verbose=0)
    assert asked == list(range(len(asked)))
    assert len(asked) >= 4  # one an epoch, and the next one when the last has ended


@pytest.mark.parametrize(
    ("batch_size", "seed", "rows", "error", "words"),
    [
        (0, 0, 3, ValueError, "DrawnEachEpoch: batch_size is 0"),
        (2.0, 0, 3, TypeError, "DrawnEachEpoch: batch_size is 2.0"),
        (2, -1, 3, ValueError, "DrawnEachEpoch: seed is -1"),
        (2, None, 3, TypeError, "DrawnEachEpoch: seed is None"),
        (2, 0, 0, ValueError, r"draw\(0\) gives no rows"),
    ],
)
def test_drawn_each_epoch_names_what_is_wrong(batch_size, seed, rows, error, words):
    with pytest.raises(error, match=words):
        DrawnEachEpoch(lambda epoch: (np.arange(rows), np.arange(rows)), batch_size, seed)
