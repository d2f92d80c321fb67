"""What the chapters reached when the notebooks ran: the book's promises on MovieLens 100K.

`make test` runs the notebooks with `RECTUTOR_RESULTS` pointing to a fresh folder and then these
tests over what they stored. On other data than 100K there is nothing to hold to these figures, and
the skip says so.
"""

import pytest

from rectutor import results
from tools import book

#: The chapters whose headline is a list of ten movies.
TOP_TEN = [name for name, chapter in book.registry().items() if chapter.get("metric") == "ndcg"]


@pytest.fixture(scope="module")
def stored():
    def read(name):
        record = results.read(results.folder() / f"{name}.json")
        if record["data"]["name"] != "100k":
            pytest.skip(f"{name} ran on {record['data']['name']}: these are for 100k")
        return record

    return read


def metric(record, model, protocol, name):
    found = [
        entry["metrics"][name]
        for entry in record["models"]
        if entry["model"] == model and entry["protocol"] == protocol
    ]
    assert len(found) == 1, f"{model} ({protocol}) is not among the results of {record['chapter']}"
    return found[0]


def best(record, recipe, protocol, name, lower=False):
    values = [
        entry["metrics"][name]["value"]
        for entry in record["models"]
        if (entry["recipe"], entry["protocol"]) == (recipe, protocol) and name in entry["metrics"]
    ]
    assert values, f"no {recipe} model with {name} under {protocol} in {record['chapter']}"
    return min(values) if lower else max(values)


def test_ranking_reaches_the_documented_figure_and_the_one_made_right(stored):
    record = stored("ranking")
    assert 0.251 <= best(record, "documented", "rating", "rmse", lower=True) <= 0.262
    assert best(record, "made right", "rating", "rmse", lower=True) <= 0.225


def test_retrieval_made_right_beats_popularity_without_using_order(stored):
    record = stored("retrieval")
    assert best(record, "made right", "leave-one-out", "ndcg") >= 0.068


def test_gru4rec_made_right(stored):
    record = stored("gru4rec")
    assert best(record, "made right", "leave-one-out", "hit_rate") >= 0.205
    assert best(record, "made right", "leave-one-out", "ndcg") >= 0.108


def test_sasrec_made_right(stored):
    record = stored("sasrec")
    assert best(record, "made right", "leave-one-out", "hit_rate") >= 0.195
    assert best(record, "made right", "leave-one-out", "ndcg") >= 0.095


@pytest.mark.parametrize("chapter", TOP_TEN)
def test_baselines_stand_beside_every_model(stored, chapter):
    baselines = [m for m in stored(chapter)["models"] if m["recipe"] == "baseline"]
    assert len([m for m in baselines if m["protocol"] == "leave-one-out"]) >= 5


@pytest.mark.parametrize("chapter", TOP_TEN)
def test_the_model_made_right_beats_popularity_beyond_the_interval(stored, chapter):
    record = stored(chapter)
    popularity = [
        m["metrics"]["ndcg"]
        for m in record["models"]
        if m["recipe"] == "baseline" and m["model"].lower().startswith("popularity")
    ]
    assert len(popularity) == 1
    made_right = [
        m["metrics"]["ndcg"]
        for m in record["models"]
        if m["recipe"] == "made right" and m["protocol"] == "leave-one-out"
    ]
    assert max(entry["low"] for entry in made_right) > popularity[0]["value"]


def test_multi_task_reaches_the_documented_figures(stored):
    record = stored("multi_task")
    documented = [m for m in record["models"] if m["recipe"] == "documented"]
    rmse = [m["metrics"]["rmse"]["value"] for m in documented if "rmse" in m["metrics"]]
    assert any(0.255 <= value <= 0.265 for value in rmse)
    assert any(0.245 <= value <= 0.256 for value in rmse)
