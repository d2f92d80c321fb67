"""The study's rating specialists, and its variants of the joint model."""

import keras
import numpy as np
import pytest
from keras import ops

from study import core, joint_variants, specialists
from tools import book

USERS, MOVIES = 30, 40


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Trainings that say how well each kind and decay does; nothing is stored."""
    calls = []
    best = {"ids": 2.4, "who rated what": 7.2, "features": 0.8}

    def train_and_ask(draw, kind, decay, shown, asked):
        calls.append((draw.number, kind, decay, len(shown)))
        few = len(shown) < 0.03 * len(draw.data.ratings)
        miss = abs(np.log(decay / best[kind])) + 0.1 * (few == (kind == "who rated what"))
        labels = asked["label"].to_numpy()
        return labels + 0.01 * (1 + miss)

    monkeypatch.setattr(specialists, "train_and_ask", train_and_ask)
    monkeypatch.setattr(core, "RAW", tmp_path)
    return calls


def job_named(name):
    return next(each for each in core.jobs(["multi_task"]) if each.name == name)


def test_the_first_run_of_a_specialist_chooses_on_validation_and_the_others_take_it(asked):
    job = job_named("specialist")
    arms = job.function(core.Draw("multi_task", 1, "smoke"))
    tried = [each for each in arms if "settings at" in each]
    assert tried == [f"specialist, settings at {share}" for share in ("1%", "5%", "20%", "100%")]
    assert len(arms[tried[0]]["facts"]) == 2 * len(specialists.DECAYS)
    of_few, of_all = (arms[f"specialist, {share}"]["facts"] for share in ("2%", "100%"))
    assert (of_few["ids"], of_few["decay"]) == (1.0, 2.4)
    assert (of_all["who rated what"], of_all["decay"]) == (1.0, 7.2)
    with pytest.raises(RuntimeError, match=r"run 1 of multi_task/specialist .* run it first"):
        job.function(core.Draw("multi_task", 2, "smoke"))
    core.keep(job, 1, arms, 1.0, core.digest(job))
    asked.clear()
    again = job.function(core.Draw("multi_task", 2, "smoke"))
    assert not any("settings" in each for each in again)
    assert [call[1] for call in asked] == ["ids"] * 2 + ["who rated what"] * 5


def test_settings_are_searched_without_the_test_part(asked):
    draw = core.Draw("multi_task", 1, "smoke")
    split = specialists.split_of(draw)
    specialists.search(draw, "specialist with features")
    assert max(number for *_, number in asked) == len(split.train)


def test_each_kind_reads_what_it_says():
    """One of features answers otherwise at another time; one of links, not."""
    draw = core.Draw("multi_task", 1, "smoke")
    split = specialists.split_of(draw)
    some = split.validation.head(50)
    later = some.assign(timestamp=some["timestamp"] + 400 * 86_400)
    for kind in ("ids", "who rated what", "features"):
        now, then = (
            specialists.train_and_ask(draw, kind, 0.8, split.train, rows) for rows in (some, later)
        )
        assert now.shape == (50,)
        assert (np.abs(now - then).max() > 1e-6) == (kind == "features"), kind


@pytest.fixture(scope="module")
def models():
    code = book.definitions("multi_task")
    keras.utils.set_random_seed(0)
    plain = code.JointModel(USERS, MOVIES, members=2, dim=8)
    return plain, joint_variants.with_experts(code)(USERS, MOVIES, members=2, dim=8)


def numbers(model, names):
    return sum(np.prod(each.shape) for name in names for each in model_weights(model, name))


def model_weights(model, name):
    found = getattr(model, name)
    return found if isinstance(found, list) else [found]


def test_two_experts_have_the_size_of_one_table_of_twice_their_width(models):
    plain, experts = models
    tables = ("user_table", "movie_table")
    assert numbers(plain, tables) == numbers(experts, (*tables, "second"))
    x = {"user_id": np.array([1, 5, 7])}
    for name, values in experts(x).items():
        assert values.shape == (2, 3, MOVIES + 1), name


def test_each_task_has_a_gate_of_its_own(models):
    _, experts = models
    x = {"user_id": np.array([1, 5, 7])}
    before = {name: ops.convert_to_numpy(each) for name, each in experts(x).items()}
    gates = np.zeros((2, 2, 2), "float32")
    gates[1, :, 0] = 20.0  # the rating head now reads the first expert alone
    experts.gates.assign(gates)
    after = {name: ops.convert_to_numpy(each) for name, each in experts(x).items()}
    np.testing.assert_allclose(after["watch"], before["watch"], atol=1e-6)
    assert np.abs(after["rating"] - before["rating"]).max() > 1e-4
    users, _ = experts.mixed(1)
    np.testing.assert_allclose(ops.convert_to_numpy(users), experts.user_table.numpy(), atol=1e-6)
