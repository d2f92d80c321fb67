"""The benchmarks of training: a bare loop that is the chapter's model, and rows that are true."""

import json

import keras
import numpy as np
import pytest
from chapters import definitions

from benchmarks import throughput, time_to_quality
from benchmarks.measure import in_child


def curve_of(*points):
    """A curve of (seconds, training seconds, NDCG) an epoch."""
    keys = ("epoch", "seconds", "training_seconds", "ndcg")
    return [dict(zip(keys, (n, *point), strict=True)) for n, point in enumerate(points, start=1)]


PEERS = {
    "SASRec": curve_of((100.0, 90.0, 0.05), (200.0, 180.0, 0.07), (300.0, 270.0, 0.06)),
    "GRU4Rec": curve_of((50.0, 40.0, 0.01)),
}


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="the bare loop is JAX's")
def test_the_bare_loop_takes_the_same_steps_as_keras():
    from benchmarks.bare_loop import BareLoop

    chapter = definitions("sasrec")
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(1, 40, (2, 32, 8)).astype(np.int32)
    inputs[:8, :3] = targets[:8, :3] = 0  # padding before
    keras.utils.set_random_seed(1)
    model = chapter.SASRec(39, 8, width=16, blocks=2, heads=2, dropout=0.0)
    model.build((None, 8))
    bare = BareLoop(model, inputs, targets, batch_size=8, rate=0.01, average=0.9)
    model.compile(optimizer=keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9))
    for number in range(5):
        rows = np.arange(8) + 8 * (number % 4)
        ours = float(model.train_on_batch(inputs[rows], targets[rows]))
        assert float(bare.step(rows)) == pytest.approx(ours, abs=1e-4)
    model.optimizer.finalize_variable_values(model.trainable_variables)  # the running average
    averaged = bare.averaged()
    assert np.allclose(averaged["movies"], model.movies.embeddings, atol=1e-4)


def test_the_bare_loop_refuses_a_network_it_does_not_know():
    pytest.importorskip("jax")
    from benchmarks.bare_loop import weights_of

    class Extended(definitions("sasrec").SASRec):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.extra = self.add_weight(shape=(3,), name="extra")

    model = Extended(9, 4, width=8, blocks=1, heads=1)
    model.build((None, 4))
    with pytest.raises(ValueError, match="no longer is the chapter's network"):
        weights_of(model)


@pytest.mark.long
def test_a_quick_throughput_has_positive_rates():
    (row,) = throughput.measure(quick=True)
    assert (row.case, row.unit, row.runs) == ("multi-task, jax", "pairs/s", 2)
    assert 0 < row.low <= row.value <= row.high
    assert row.first > 0
    assert row.peak_mib > 50


def test_the_fit_is_compared_with_the_bare_loop_round_by_round():
    bare = [1.0, 100, 50, 100]  # the machine was busy in the third round
    defaults = {"fit": [1.0, 60, 30, 60], "bare": bare}
    for fit, ratio, met in [([1.0, 90, 45, 80], 0.9, True), ([1.0, 70, 35, 70], 0.7, False)]:
        rates = {"chapter": {"fit": fit, "bare": bare}, "defaults": defaults}
        row, beside = throughput.beside_rows(rates, peak=100.0)
        assert row.ratio == pytest.approx(ratio)
        assert (row.met, bool(row.limit)) == (met, not met)
        assert beside.ratio == pytest.approx(0.6)
        assert beside.met is None  # shown beside, no target


@pytest.mark.parametrize(
    ("ndcg", "epoch"), [([0.1, 0.2], 1), ([0.01, 0.065, 0.2], 2), ([0.01, 0.0649], None)]
)
def test_first_reaches(ndcg, epoch):
    found = time_to_quality.first_reaches(curve_of(*((1.0, 1.0, each) for each in ndcg)), 0.065)
    assert (found and found["epoch"]) == epoch


def test_the_newest_peers_file_of_this_machine_is_read(tmp_path):
    here = {"cpu": "some", "cores": 2}
    assert time_to_quality.newest_peers(tmp_path, here) == {}
    models = [{"model": model, "curve": curve} for model, curve in PEERS.items()]
    stored = {"machine": here, "goal": 0.065, "models": models}
    (tmp_path / "peers-2026-01-01.json").write_text(json.dumps(stored))
    other = stored | {"machine": here | {"cpu": "other"}, "models": []}
    (tmp_path / "peers-2026-02-02.json").write_text(json.dumps(other))
    assert time_to_quality.newest_peers(tmp_path, here) == PEERS


def test_rows_against_a_peer():
    curve = curve_of((8.0, 7.0, 0.03), (10.0, 8.0, 0.07))
    whole, alone = time_to_quality.rows_of("SASRec", [curve], 1.0, PEERS["SASRec"])
    assert (whole.value, whole.ratio, whole.met) == (10.0, 20.0, True)
    assert alone.ratio == pytest.approx(180 / 8)
    assert alone.met is None
    # 50 s were not enough for the peer: a bound, and not yet ten times
    whole, _, to_theirs, _ = time_to_quality.rows_of("GRU4Rec", [curve], 1.0, PEERS["GRU4Rec"])
    assert (whole.ratio, whole.met) == (5.0, False)
    assert "more than" in whole.reference
    assert "lower bound" in whole.limit
    # what it did reach, both reached
    assert "0.0100" in to_theirs.case
    assert to_theirs.met is None
    assert "more than" not in to_theirs.reference
    assert to_theirs.ratio == pytest.approx(50 / 8)
    # a run of ours that never got there cannot meet the target
    whole, _ = time_to_quality.rows_of("SASRec", [curve, curve[:1]], 1.0, PEERS["SASRec"])
    assert whole.met is False
    assert "1 of 2 runs" in whole.case
    assert "1 of 2 runs ended at 0.0300 at best" in whole.limit
    # without a peer there is nothing to meet
    assert time_to_quality.rows_of("SASRec", [curve], 1.0, None)[0].met is None


@pytest.mark.long
def test_a_chapters_own_training_gives_a_curve():
    environment = {"KERAS_BACKEND": "jax"}
    arguments = ("GRU4Rec", 42, "smoke", 9.0)
    found, _ = in_child("benchmarks.time_to_quality", *arguments, environment=environment)
    assert found["source"] == "synthetic"
    first, second = found["curve"]
    assert (first["epoch"], second["epoch"]) == (1, 2)
    assert 0 < first["training_seconds"] < first["seconds"] < second["seconds"]
