"""The study: what is kept, what is run again, and that its summary is what the figures give."""

from __future__ import annotations

import ast
import dataclasses
import json
import sys
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rectutor import study as reader
from rectutor.evaluation import evaluate
from study import core, summary

ROOT = Path(__file__).resolve().parent.parent
TOY = '''
"""A chapter of one job."""
from study.core import Comparison, Job, facts

SCALE = 2.0

def double(value):
    """Twice."""
    return SCALE * value

def train(draw):
    return {"one": facts(value=double(draw.seed))}

JOBS = [Job("toy", "train", train, runs=3)]
COMPARISONS = [Comparison("toy", "more", "toy/one", "toy/two")]
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> core.Job:
    """The job of a module of its own, its figures kept in a folder of its own."""
    return made(TOY, tmp_path, monkeypatch)


def made(source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> core.Job:
    file = folder / "toy.py"
    file.write_text(source)
    module = types.ModuleType("study.toy")
    module.__file__ = str(file)
    exec(compile(source, str(file), "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, "study.toy", module)
    monkeypatch.setattr(core, "MODULES", ("toy",))
    monkeypatch.setattr(core, "RAW", folder / "raw")
    import linecache

    linecache.checkcache()
    return core.jobs()[0]


def test_what_has_ended_is_kept_and_not_run_again(toy: core.Job) -> None:
    code = core.digest(toy)
    assert core.missing(toy, code) == [1, 2, 3]
    core.keep(toy, 2, {"one": core.facts(value=4.0)}, 1.5, code)
    assert core.missing(toy, code) == [1, 3]
    core.keep(toy, 2, {"one": core.facts(value=5.0)}, 1.5, code)
    kept = core.read(toy)["runs"]
    assert [run["arms"]["one"]["facts"]["value"] for run in kept] == [5.0]


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (("SCALE = 2.0", "SCALE = 3.0"), True),
        (("return SCALE * value", "return SCALE + value"), True),
        (('"""Twice."""', '"""Two times."""'), False),
        (("runs=3", "runs=4"), False),
        (('"more"', '"much more"'), False),
    ],
)
def test_code_that_decides_a_figure_makes_it_stale(
    toy: core.Job,
    change: tuple[str, str],
    counts: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = core.digest(toy)
    other = made(TOY.replace(*change), tmp_path, monkeypatch)
    assert (core.digest(other) != before) == counts


def test_a_list_of_figures_takes_one_line(toy: core.Job) -> None:
    outcome = {"ndcg": [0.5, 0, 1], "facts": {"epochs": 3.0}}
    core.keep(toy, 1, {"one": outcome}, 1.0, "x")
    text = toy.file.read_text()
    assert "[0.5,0,1]" in text
    assert json.loads(text)["runs"][0]["arms"]["one"] == outcome


def test_ties_fall_anew_in_every_run_and_nothing_else_changes() -> None:
    first, second = core.Draw("ranking", 1, "smoke"), core.Draw("ranking", 2, "smoke")
    assert not first.shuffled.ratings.equals(second.shuffled.ratings)
    columns = ["user_id", "movie_id"]
    tables = [draw.shuffled.ratings.sort_values(columns)[columns] for draw in (first, second)]
    assert np.array_equal(*(table.to_numpy() for table in tables))
    assert first.split.test["timestamp"].to_numpy().sum() == (
        second.split.test["timestamp"].to_numpy().sum()
    )


def test_fold_k_is_the_kth_fifth_of_the_file() -> None:
    draw = core.Draw("ranking", 7, "smoke")
    train, test = draw.folds()
    fifth = len(draw.data.ratings) // 5
    assert test.index.tolist() == list(range(fifth, 2 * fifth))
    assert len(train) + len(test) == len(draw.data.ratings)


def test_what_is_kept_of_a_ranking_gives_its_metrics_again() -> None:
    split = core.Draw("ranking", 1, "smoke").split
    rng = np.random.default_rng(0)
    found = evaluate(lambda q: rng.random((len(q), split.num_movies + 1)), split)
    users, gains, _ = summary.per_user(core.ranked(found), "ndcg")
    _, hits, _ = summary.per_user(core.ranked(found), "hit_rate")
    assert users.tolist() == found.user_ids.tolist()
    assert gains.mean() == pytest.approx(found.ndcg, abs=1e-4)
    assert hits.mean() == pytest.approx(found.hit_rate)


def arm(values: np.ndarray) -> dict[int, dict[str, object]]:
    return {run: {"ndcg": row.tolist(), "facts": {}} for run, row in enumerate(values, start=1)}


@pytest.fixture
def bootstrap() -> summary.Bootstrap:
    return summary.Bootstrap(200, 4000)


def interval(values: np.ndarray, bootstrap: summary.Bootstrap) -> tuple[float, float]:
    _, drawn = summary.Figures(arm(values), bootstrap).of("ndcg")
    low, high = np.quantile(bootstrap.over_runs(drawn), summary.LEVEL)
    return float(low), float(high)


def test_an_interval_has_both_sources_of_chance(bootstrap: summary.Bootstrap) -> None:
    rng = np.random.default_rng(1)
    users = rng.random(200)
    of_users = interval(np.tile(users, (5, 1)), bootstrap)
    expected = 1.96 * users.std() / np.sqrt(200)
    assert (of_users[1] - of_users[0]) / 2 == pytest.approx(expected, rel=0.1)
    shifts = np.array([0.0, 0.1, 0.2, 0.3, 0.4])
    of_runs = interval(np.tile(shifts[:, None], (1, 200)), bootstrap)
    expected = 1.96 * shifts.std() / np.sqrt(5)
    assert (of_runs[1] - of_runs[0]) / 2 == pytest.approx(expected, rel=0.1)


def compared(before: np.ndarray, after: np.ndarray, bootstrap: summary.Bootstrap) -> reader.Effect:
    figures = {
        name: summary.Figures(arm(values), bootstrap)
        for name, values in (("toy/one", before), ("toy/two", after))
    }
    one = core.Comparison("toy", "more", "toy/one", "toy/two", correction="C1")
    return reader.Effect(**summary.effects(figures, [one], bootstrap)[0])


def test_a_comparison_is_paired(bootstrap: summary.Bootstrap) -> None:
    rng = np.random.default_rng(2)
    hard = rng.random((5, 200))  # users differ far more than the two models do
    effect = compared(hard, hard + 0.01 + 0.001 * rng.random((5, 200)), bootstrap)
    assert effect.verdict == "improves"
    assert 0.01 < effect.low < effect.high < 0.012
    worse = compared(hard, hard - 0.01, bootstrap)
    assert worse.verdict == "makes worse here"
    assert compared(hard, hard, bootstrap).verdict == "no effect here"


def test_noise_is_no_effect(bootstrap: summary.Bootstrap) -> None:
    rng = np.random.default_rng(3)
    assert compared(*rng.random((2, 5, 200)), bootstrap).verdict == "no effect here"


def test_an_interval_clear_of_zero_that_holm_does_not_pass_is_not_settled() -> None:
    effect = reader.Effect(
        *("toy", "C1", "more", "toy/one", "toy/two", "ndcg"),
        **{"runs": 5, "from_value": 0.1, "to_value": 0.11, "value": 0.01, "p": 0.01},
        **{"low": 0.001, "high": 0.02, "holm": 0.2},
    )
    assert effect.verdict == "not settled here"
    assert dataclasses.replace(effect, low=-0.001).verdict == "no effect here"
    assert dataclasses.replace(effect, holm=0.04).verdict == "improves"


def test_holm_makes_up_for_the_number_of_comparisons() -> None:
    assert summary.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert summary.holm([0.6, 0.9]) == [1.0, 1.0]
    assert summary.holm([]) == []


def test_an_rmse_is_of_all_ratings_of_the_drawn_users() -> None:
    outcome = core.rated([0.5, 0.5, 1.0], [0.0, 0.5, 0.5], [7, 7, 9])
    assert outcome["users"] == [7, 9]
    assert outcome["count"] == [2, 1]
    figures = summary.Figures({1: outcome}, summary.Bootstrap(10, 50))
    assert figures.of("rmse")[0] == pytest.approx([np.sqrt(0.5 / 3)])


# --- the study that is stored


def test_the_summary_has_what_the_stored_figures_give() -> None:
    """Two figures, computed again in plain Python from `results/study`."""
    stored = reader.read()
    raw = summary.outcomes(core.jobs())
    assert set(stored.arms) == set(raw)
    ranked = [name for name, each in stored.arms.items() if "ndcg" in each.metrics]
    name = ranked[len(ranked) // 2]
    means = [sum(one["ndcg"]) / len(one["ndcg"]) for one in raw[name].values()]
    value = stored.arms[name].metrics["ndcg"].value
    assert value == pytest.approx(sum(means) / len(means), abs=1e-5)
    effect = next(each for each in stored.effects if each.metric == "ndcg")
    runs = set(raw[effect.before]) & set(raw[effect.after])
    gaps = [
        sum(raw[effect.after][run]["ndcg"]) / len(raw[effect.after][run]["ndcg"])
        - sum(raw[effect.before][run]["ndcg"]) / len(raw[effect.before][run]["ndcg"])
        for run in runs
    ]
    assert effect.value == pytest.approx(sum(gaps) / len(gaps), abs=1e-5)
    assert effect.low <= effect.value <= effect.high


def test_every_arm_that_is_compared_is_trained() -> None:
    raw = set(summary.outcomes(core.jobs()))
    asked = {name for each in core.comparisons() for name in (each.before, each.after)}
    assert asked <= raw


def test_the_summary_is_of_these_figures() -> None:
    summary.check()


def test_runs_are_numbered_from_one_and_what_is_unfinished_is_said() -> None:
    unfinished = reader.read().made["unfinished"]
    for job in core.jobs():
        numbers = [run["run"] for run in core.read(job)["runs"]]
        assert numbers == list(range(1, len(numbers) + 1)), job.key
        assert job.runs >= 5
        assert len(numbers) == job.runs or job.key in unfinished, job.key


@pytest.mark.long
@pytest.mark.parametrize("name", core.MODULES)
def test_every_job_runs(name: str) -> None:
    for job in core.jobs([name]):
        arms = job.function(core.Draw(job.chapter, 1, "smoke"))
        assert arms, job.key
        for outcome in arms.values():
            json.dumps(outcome, allow_nan=False)


def test_a_broken_summary_is_named(tmp_path: Path) -> None:
    file = tmp_path / "study.json"
    file.write_text('{"made": {}}')
    with pytest.raises(ValueError, match=r"study\.json is no summary"):
        reader.read(file)


@pytest.mark.parametrize(
    ("values", "within", "text"),
    [
        (("0.256",), True, "within the runs"),
        (("0.25",), True, "within the runs"),  # as rounded as it is printed
        (("0.250",), True, "within the runs"),
        (("0.240",), False, "not reproduced, 0.0101 from the nearest run"),  # its zero counts
        (("0.249",), False, "not reproduced, 0.0011 from the nearest run"),
        (("0.21", "0.27"), False, "not reproduced, 0.0100 from the nearest run"),
    ],
)
def test_a_documented_figure_lies_within_the_runs_or_so_far_off(
    values: tuple[str, ...], within: bool, text: str
) -> None:
    runs = reader.Figure(0.255, None, None, 0.2501, 0.26)
    documented = reader.Documented("toy/plain", "RMSE", values, runs)
    assert documented.is_within == within
    assert documented.verdict == text
    shown = reader.placed([documented]).iloc[0]
    assert shown[["model", "lowest to highest"]].tolist() == ["plain", "0.2501 to 0.2600"]


def test_a_verdict_takes_five_runs(bootstrap: summary.Bootstrap) -> None:
    hard = np.random.default_rng(4).random((4, 200))
    assert compared(hard, hard + 0.1, bootstrap).verdict == "too few runs"


def test_a_summary_that_was_changed_by_hand_is_noticed() -> None:
    stored = {"arms": [{"name": "toy/one", "metrics": {"ndcg": [0.1, 0.08]}}]}
    rounded = {"arms": [{"name": "toy/one", "metrics": {"ndcg": [0.10001, 0.08]}}]}
    changed = {"arms": [{"name": "toy/one", "metrics": {"ndcg": [0.11, 0.08]}}]}
    assert summary._apart(stored, rounded) == ""
    assert summary._apart(stored, changed) == "/arms/0/metrics/ndcg/0"


def test_of_a_chapter_what_is_defined_counts_and_variables_of_cells_do_not() -> None:
    source = "RATE = 1\nbest = 2\n\ndef train(x):\n    best = x * RATE\n    return best\n"
    used = core._used(source, {"train"}, of_chapter=True)
    assert [getattr(each, "name", "RATE") for each in used] == ["RATE", "train"]


def test_of_the_settings_those_that_are_read_count_in_the_profile_that_the_study_has() -> None:
    def text(source: str, read: set[str] | None = None) -> str:
        return core._quick(ast.parse(source).body[0], read)

    settings = "SETTINGS = dict(epochs=({}, {}, 1), pairs=((1, 2), (3, 4), (5,)), width=8)\n"
    assert text(settings.format(5, 100)) == text(settings.format(5, 200))
    assert text(settings.format(5, 100)) != text(settings.format(6, 100))
    assert text(settings.format(5, 100)) != text(settings.format(5, 100).replace("8", "9"))
    assert text(settings.format(5, 100)) != text(settings.format(5, 100).replace("(1, 2)", "(1,)"))
    other = settings.format(5, 100).replace("8", "9")
    assert text(other, {"epochs"}) == text(settings.format(5, 100), {"epochs"})
    assert text(other, {"width"}) != text(settings.format(5, 100), {"width"})


@pytest.mark.parametrize(
    ("code", "read"),
    [
        ("model(settings.width, draw.settings.rate, self.blocks)", {"width", "rate"}),
        ("settings_of(draw).context // 2", {"context"}),
        ("[getattr(settings, name) for name in names]", None),
        ("vars(draw.settings)", None),
        ("getattr(each, 'embeddings')", set()),
    ],
)
def test_which_settings_code_reads(code: str, read: set[str] | None) -> None:
    assert core._settings_read(ast.parse(code).body) == read


def test_as_many_settings_are_told_as_were_tried() -> None:
    searched = json.loads((ROOT / "study" / "searches.json").read_text("utf-8"))
    tried = [each for each in searched if "edition" not in each]
    assert len({json.dumps(each["settings"], sort_keys=True) for each in tried}) == len(tried)
    counts = Counter(each["chapter"] for each in tried)
    assert counts == {"sasrec": 41, "sasrec_levers": 10, "gru4rec": 8}
    told = {
        "notebooks/sasrec.py": "Of 41 settings tried",
        "notebooks/sasrec_levers.py": "Ten settings were",
        "notebooks/gru4rec.py": "Eight settings were tried",
        "book/evaluation.md": "dropout of SASRec (41), the levers' best combination (10)",
    }
    for file, words in told.items():
        assert words in " ".join((ROOT / file).read_text("utf-8").split()), file
    text = (ROOT / "notebooks" / "sasrec_levers.py").read_text("utf-8")
    asked = [each["test_ndcg"] for each in searched if "test_ndcg" in each]
    assert len(asked) == 3
    assert f"({asked[0]:.3f})" in text
    assert f"({asked[1]:.3f}, less than the 0.130 that we aim at)" in text
    whole = [each for each in tried if len(each["validation_ndcg"]) == 5]
    assert len(whole) == 5
    best = max(whole, key=lambda each: float(np.mean([*each["validation_ndcg"].values()])))
    assert best["test_ndcg"] == asked[2]


def test_every_lever_came_to_its_early_stop() -> None:
    """No best epoch is so late that the limit ended the training, not the patience."""
    from study import additions, losses, sasrec

    settings = core.Draw("sasrec", 1, "quick").settings
    own = settings.epochs, 1, settings.patience
    limits = {job.key: own for job in additions.JOBS} | {"sasrec/made right": own}
    limits["sasrec/levers"] = own
    names = ("documented, converged", "latest movies")
    limits |= {f"sasrec/{name}": sasrec.DOCUMENTED_LIMITS["quick"] for name in names}
    most, patience = losses.LIMITS["quick"]
    limits |= {job.key: (most, 1, patience) for job in losses.JOBS}
    for job in sasrec.JOBS:
        limits.setdefault(job.key, sasrec.LIMITS["quick"])
    del limits["sasrec/documented"]  # of as many epochs as the documentation has
    assert len(limits) == 29
    for job in sasrec.JOBS:
        epochs, every, patience = limits.get(job.key, (10**9, 0, 0))
        for run in core.read(job)["runs"]:
            for arm in run["arms"].values():
                latest = arm.get("facts", {}).get("epochs", 0) + every * patience
                assert latest <= epochs, (job.key, run["run"])
