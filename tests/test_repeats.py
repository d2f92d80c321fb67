"""Where people buy the same thing again: said at load, and let in on request."""

import numpy as np
import pandas as pd
import pytest

from rectutor import chapter, data, evaluation, first_minute, repeats, results
from rectutor.baselines import EASE, Popularity
from rectutor.evaluation import Trained, evaluate
from rectutor.sequences import Histories
from rectutor.splits import leave_one_out
from rectutor.training import BestByNDCG


def grocery(num_users=200, num_items=120, purchases=30):
    """Who buys what: mostly of a basket of one's own, which is of a taste that some share."""
    rng = np.random.default_rng(7)
    tastes = [rng.choice(num_items, 20, replace=False) for _ in range(6)]
    rows = []
    for user in range(num_users):
        basket = rng.choice(tastes[user % 6], 8, replace=False)
        often = rng.dirichlet(np.full(8, 0.7))
        for time in range(purchases):
            known = rng.random() < 0.85
            item = rng.choice(basket, p=often) if known else rng.integers(num_items)
            rows.append((f"u{user}", f"i{item}", 1_600_000_000 + 86_400 * time + user))
    return pd.DataFrame(rows, columns=["user", "item", "timestamp"])


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The path of the grocery's table."""
    file = tmp_path_factory.mktemp("shop") / "grocery.csv"
    grocery().to_csv(file, index=False)
    return str(file)


@pytest.fixture
def begin(shop, tmp_path, monkeypatch):
    """Begin a chapter with the grocery, and load it."""

    def start(name="gru4rec", exclude_seen=None):
        monkeypatch.setenv("RECTUTOR_DATA", shop)
        monkeypatch.setenv("RECTUTOR_RESULTS", str(tmp_path / "results"))
        if exclude_seen is not None:
            monkeypatch.setenv("RECTUTOR_EXCLUDE_SEEN", exclude_seen)
        run = chapter.start(name)
        return run, run.load_data("100k", on_five_stars=True)

    return start


def test_serving_refuses_to_let_what_was_had_compete(begin):
    with pytest.raises(ValueError, match="the chapter serving always leaves out what a user has"):
        begin("serving", exclude_seen="no")
    assert begin("serving", exclude_seen="yes")


def test_at_a_grocery_all_stand_at_nothing_until_repeats_are_let_in(begin):
    run, loaded = begin(exclude_seen="no")
    split = leave_one_out(loaded)
    fitted = run.baselines(split)
    own = first_minute.OWN_HISTORY
    without = {name: evaluate(each, split).hit_rate for name, each in fitted.items()}
    found = {name: run.test(name, each, split).hit_rate for name, each in fitted.items()}
    assert max(without.values()) < 0.1
    assert found["EASE"] > without["EASE"] + 0.3
    assert found[own] > found["EASE"] + 0.1
    assert found[own] == max(found.values())
    run.save()
    stored = results.read(results.folder() / "gru4rec.json")
    assert stored["facts"] == {"exclude_seen": "no"}


def test_repeats_are_said_at_load_with_what_the_chapter_makes_of_them(begin, capsys):
    run, _ = begin("sasrec")
    out = capsys.readouterr().out
    assert "rows (" in out
    assert "repeat a user and an item" in out
    assert "asks for no item that is earlier in its window" in out
    assert "a repeated target is a miss; RECTUTOR_EXCLUDE_SEEN=no lets it compete" in out
    assert run.exclude_seen
    begin("gru4rec", exclude_seen="no")
    out = capsys.readouterr().out
    assert "every repeat stays in the order" in out
    assert "what a user has had competes" in out
    assert "is a miss" not in out


def test_a_table_without_repeats_has_nothing_to_say_of_them(tmp_path, monkeypatch, capsys):
    once = tmp_path / "once.csv"
    once.write_text("user,item,rating,time\nann,tea,5,1\nann,milk,3,2\nbob,tea,4,3\n", "utf-8")
    monkeypatch.setenv("RECTUTOR_DATA", str(once))
    monkeypatch.setenv("RECTUTOR_RESULTS", str(tmp_path))
    chapter.Run("gru4rec", "quick", 42, "jax", "CPU").load_data("100k")
    assert "again" not in capsys.readouterr().out


def test_without_ratings_and_times_it_is_said_which_chapters_are_left(begin, capsys):
    begin()
    out = capsys.readouterr().out
    assert "no ratings: every interaction counts as a like; retrieval, multi_task, ranking" in out
    assert "no timestamps" not in out
    assert "6,000 interactions, 200 users" in out


@pytest.mark.parametrize("text", ["perhaps", "2"])
def test_a_switch_that_is_neither_is_refused_at_once(begin, text):
    with pytest.raises(ValueError, match=r"RECTUTOR_EXCLUDE_SEEN is .* neither on nor off"):
        begin(exclude_seen=text)


@pytest.mark.parametrize(("text", "excluded"), [("", True), ("yes", True), ("no", False)])
def test_nothing_set_is_yes(begin, text, excluded):
    assert begin(exclude_seen=text)[0].exclude_seen is excluded


def test_epochs_are_chosen_by_the_question_that_the_test_asks(begin):
    run, loaded = begin(exclude_seen="no")
    split = leave_one_out(loaded)
    own = repeats.own_history(split.num_movies)
    asked = run.best_by_ndcg(own, split, patience=3)
    assert asked.patience == 3
    let_in = evaluate(asked.recommender, asked.split, on="validation")
    assert let_in.ndcg == evaluate(own, split, exclude_seen=False, on="validation").ndcg > 0.3
    run.exclude_seen = True
    left_out = run.best_by_ndcg(own, split)
    assert isinstance(left_out, BestByNDCG)
    assert (left_out.recommender, left_out.split) == (own, split)


def test_a_leak_is_refused_with_repeats_as_without(begin):
    run, loaded = begin(exclude_seen="no")
    split = leave_one_out(loaded)
    with pytest.raises(ValueError, match="fitted on train and validation"):
        run.best_by_ndcg(EASE().fit(split, include_validation=True), split)
    leaking = Trained(Popularity().fit(split), pd.concat([split.train, split.validation]))
    with pytest.raises(ValueError, match="was trained on the validation target"):
        run.best_by_ndcg(leaking, split)
    run.best_by_ndcg(Trained(Popularity().fit(split), split.train), split)


def test_the_first_minute_lets_repeats_in_where_they_are_many(shop, monkeypatch, capsys):
    found = first_minute.report(shop).to_frame()["HR@10"]
    assert found[first_minute.OWN_HISTORY] == found.max()
    out = capsys.readouterr().out
    assert "with RECTUTOR_EXCLUDE_SEEN=no RECTUTOR_DATA=" in out
    assert "worth running first: gru4rec; also possible: sasrec" in out
    monkeypatch.setenv("RECTUTOR_EXCLUDE_SEEN", "yes")
    found = first_minute.report(shop).to_frame()["HR@10"]
    assert first_minute.OWN_HISTORY not in found
    assert found.max() < 0.1
    out = capsys.readouterr().out
    assert "is not recommended again (RECTUTOR_EXCLUDE_SEEN=no" in out
    assert "worth running first: sasrec; also possible: gru4rec" in out


def test_the_latest_is_ahead_of_equals_in_a_long_history():
    items = np.array([2, 3] * 1000 + [1] * 600, np.int32)
    known = Histories(items, np.array([0, 0, len(items)]))
    scores = repeats.own_history(3)(evaluation.Queries(np.array([1]), known))
    assert np.argsort(-scores[0]).tolist()[:2] == [3, 2]


def test_the_own_history_is_counted_and_the_latest_is_ahead_of_equals():
    frame = pd.DataFrame({"user": [1] * 6, "item": list("bacabd")})
    split = leave_one_out(data.from_dataframe(frame, user="user", item="item"))
    scores = repeats.own_history(split.num_movies)(evaluation.queries_for(split))
    assert scores.shape == (1, 5)
    assert np.argsort(-scores[0]).tolist() == [2, 1, 3, 0, 4]
