"""The benchmarks of training: a bare loop that is the chapter's model, and rows that are true."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from chapters import ROOT, definitions

sys.path.insert(0, str(ROOT))

from benchmarks import throughput, time_to_quality
from benchmarks.measure import in_child

PEER = {
    "machine": {"cpu": "some", "cores": 2},
    "goal": 0.065,
    "models": [
        {
            "model": "SASRec",
            "curve": [
                {"epoch": 1, "seconds": 100.0, "training_seconds": 90.0, "ndcg": 0.05},
                {"epoch": 2, "seconds": 200.0, "training_seconds": 180.0, "ndcg": 0.07},
                {"epoch": 3, "seconds": 300.0, "training_seconds": 270.0, "ndcg": 0.06},
            ],
        },
        {
            "model": "GRU4Rec",
            "curve": [{"epoch": 1, "seconds": 50.0, "training_seconds": 40.0, "ndcg": 0.01}],
        },
    ],
}


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="the bare loop is JAX's")
def test_the_bare_loop_takes_the_same_steps_as_keras():
    from benchmarks.bare_loop import BareLoop

    chapter = definitions("sasrec")
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(1, 40, (2, 32, 8)).astype(np.int32)
    inputs[:8, :3] = targets[:8, :3] = 0  # padding before
    keras.utils.set_random_seed(1)
    model = chapter.SASRec(
        39, 8, width=16, blocks=2, heads=2, dropout=0.0, ahead=3, direct=4, repeat_bias=True
    )
    model.build((None, 8))
    model.repeat_bias.assign(-1.0)
    bare = BareLoop(model, inputs, targets, batch_size=8, rate=0.01, average=0.9)
    model.compile(optimizer=chapter.made_right_adam(0.01, 0.9))
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


def test_a_quick_throughput_has_positive_rates():
    found, peak = in_child(
        "benchmarks.throughput",
        "multi-task",
        2,
        0,
        "smoke",
        environment={"KERAS_BACKEND": "jax"},
    )
    assert len(found["rates"]) == 2
    assert min(found["rates"]) > 0
    assert found["first"] > 0
    assert peak > 50
    row = throughput.row_of("multi-task", "jax", found, peak, None)
    assert row.low <= row.value <= row.high
    assert row.unit == "pairs/s"


def test_the_fit_is_compared_with_the_bare_loop_round_by_round():
    bare = [1.0, 100, 50, 100]  # the machine was busy in the third round
    rates = {
        "chapter": {"fit": [1.0, 90, 45, 80], "bare": bare},
        "defaults": {"fit": [1.0, 60, 30, 60], "bare": bare},
    }
    chapter, defaults = throughput.beside_rows(rates, peak=100.0)
    assert chapter.ratio == pytest.approx(0.9)
    assert chapter.met
    assert defaults.ratio == pytest.approx(0.6)
    assert defaults.met is None  # shown beside, no target
    rates["chapter"]["fit"] = [1.0, 70, 35, 70]
    slow, _ = throughput.beside_rows(rates, peak=100.0)
    assert slow.met is False
    assert slow.limit


@pytest.mark.parametrize(
    ("ndcg", "epoch"), [([0.1, 0.2], 1), ([0.01, 0.065, 0.2], 2), ([0.01, 0.0649], None)]
)
def test_first_reaches(ndcg, epoch):
    curve = [{"epoch": number, "ndcg": value} for number, value in enumerate(ndcg, start=1)]
    found = time_to_quality.first_reaches(curve, 0.065)
    assert (found and found["epoch"]) == epoch


def test_the_newest_peers_file_of_this_machine_is_read(tmp_path):
    here = {"cpu": "some", "cores": 2}
    assert time_to_quality.newest_peers(tmp_path, here) == {}
    (tmp_path / "peers-2026-01-01.json").write_text(json.dumps(PEER))
    other = PEER | {"machine": {"cpu": "other", "cores": 2}, "models": []}
    (tmp_path / "peers-2026-02-02.json").write_text(json.dumps(other))
    found = time_to_quality.newest_peers(tmp_path, here)
    assert found == {model["model"]: model["curve"] for model in PEER["models"]}


def test_rows_against_a_peer(tmp_path):
    (tmp_path / "peers-2026-01-01.json").write_text(json.dumps(PEER))
    peers = time_to_quality.newest_peers(tmp_path, {"cpu": "some", "cores": 2})
    curve = [
        {"epoch": 1, "seconds": 8.0, "training_seconds": 7.0, "ndcg": 0.03},
        {"epoch": 2, "seconds": 10.0, "training_seconds": 8.0, "ndcg": 0.07},
    ]
    whole, alone = time_to_quality.rows_of("SASRec", [curve], 1.0, peers["SASRec"])
    assert (whole.value, whole.ratio, whole.met) == (10.0, 20.0, True)
    assert alone.ratio == pytest.approx(180 / 8)
    assert alone.met is None
    # 50 s were not enough for the peer: a bound, and not yet ten times
    whole, _, to_theirs, _ = time_to_quality.rows_of("GRU4Rec", [curve], 1.0, peers["GRU4Rec"])
    assert whole.ratio == 5.0
    assert whole.met is False
    assert "more than" in whole.reference
    assert "lower bound" in whole.limit
    # what it did reach, both reached
    best = max(point["ndcg"] for point in peers["GRU4Rec"])
    assert f"{best:.4f}" in to_theirs.case
    assert to_theirs.met is None
    assert "more than" not in to_theirs.reference
    ours = next(point["seconds"] for point in curve if point["ndcg"] >= best)
    theirs = next(point["seconds"] for point in peers["GRU4Rec"] if point["ndcg"] == best)
    assert to_theirs.ratio == pytest.approx(theirs / ours)
    # a run of ours that never got there cannot meet the target
    whole, _ = time_to_quality.rows_of("SASRec", [curve, curve[:1]], 1.0, peers["SASRec"])
    assert whole.met is False
    assert "1 of 2 runs" in whole.case
    assert "1 of 2 runs ended at 0.0300 at best" in whole.limit
    # without a peer there is nothing to meet
    assert time_to_quality.rows_of("SASRec", [curve], 1.0, None)[0].met is None


def test_a_chapters_own_cell_trains(tmp_path):
    code = (
        "from benchmarks.time_to_quality import curve_of\n"
        "curve, source = curve_of('GRU4Rec', 42, 9.0, profile='smoke')\n"
        "assert source == 'synthetic', source\n"
        "assert [point['epoch'] for point in curve] == [1, 2], curve\n"
        "assert 0 < curve[0]['training_seconds'] < curve[0]['seconds'] < curve[1]['seconds']\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"KERAS_BACKEND": "jax", "RECTUTOR_RESULTS": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
