"""What the chapters reached when the notebooks ran, held against the study on MovieLens 100K.

`make test` runs the notebooks with `RECTUTOR_RESULTS` pointing to a fresh folder and then these
tests over what they stored. A chapter's run has a seed, a processor and versions of its own, so it
is one more draw: it has to lie where the study's draws do. On other data than 100K there is nothing
to hold it to, and the skip says so.
"""

import pytest

from rectutor import results, study
from tools import book

#: A run of a chapter, by the name it records, to the model of the study that it is a draw of.
DRAWS = {
    "ranking": {
        "as documented": "ranking/documented",
        "made right, ids only": "ranking/made right, ids only",
        "made right, with features": "ranking/made right, with features",
    },
    "retrieval": {
        "in-batch, log-Q corrected": "retrieval/in-batch, log-Q corrected",
        "made right": "retrieval/made right",
    },
    "gru4rec": {"GRU4Rec made right": "gru4rec/made right"},
    "sasrec": {"SASRec made right": "sasrec/made right"},
    "multi_task": {
        "documented, multi-task": "multi_task/documented, multi-task, stars",
        "joint": "multi_task/joint, hidden, 5%",
    },
    "serving": {"two stages": "serving/two stages"},
}
DRAWN = [(chapter, model) for chapter, models in DRAWS.items() for model in models]

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


def figures(record, model):
    """What a run recorded of a model, by metric."""
    found = [entry["metrics"] for entry in record["models"] if entry["model"] == model]
    assert found, f"{model} is not among the results of {record['chapter']}"
    return {name: metric["value"] for metrics in found for name, metric in metrics.items()}


def room(arm, metric):
    """Where a further draw of an arm may lie: the runs, and their spread once more on either side.

    The order of ties in the file is one draw too, and another processor may round otherwise, so a
    spread of a tenth of the mean is allowed where the runs happen to lie closer.
    """
    figure = arm.metrics[metric]
    spread = max(figure.highest - figure.lowest, (0.02 if metric == "rmse" else 0.1) * figure.value)
    return figure.lowest - spread, figure.highest + spread


@pytest.mark.parametrize(("chapter", "model"), DRAWN)
def test_a_run_lies_where_the_study_has_its_draws(stored, chapter, model):
    arm = study.read().arms[DRAWS[chapter][model]]
    run = figures(stored(chapter), model)
    asked = [metric for metric in arm.metrics if metric in run]
    assert asked
    for metric in asked:
        low, high = room(arm, metric)
        assert low <= run[metric] <= high, metric


@pytest.mark.parametrize("chapter", TOP_TEN)
def test_baselines_stand_beside_every_model(stored, chapter):
    baselines = [m for m in stored(chapter)["models"] if m["recipe"] == "baseline"]
    assert len([m for m in baselines if m["protocol"] == "leave-one-out"]) >= 5


@pytest.mark.parametrize("made_right", ["retrieval", "gru4rec", "sasrec"])
def test_the_study_has_the_model_made_right_ahead_of_popularity(made_right):
    found = [
        effect
        for effect in study.read().effects
        if (effect.before, effect.after) == ("baselines/popularity", f"{made_right}/made right")
    ]
    assert [effect.verdict for effect in found if effect.verdict != "too few runs"] in (
        ["improves"],
        [],
    )


def test_documented_figures_are_reproduced_or_said_not_to_be(stored):
    """A figure outside the runs has to be on the chapter's page, as the study words it."""
    for each in study.read().documented:
        if not each.is_within:
            source = book.NOTEBOOKS / f"{each.arm.partition('/')[0]}.py"
            assert "run.documented()" in source.read_text(encoding="utf-8"), str(each)
