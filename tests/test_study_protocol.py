"""The other protocols of the study ask what they say they ask."""

import numpy as np
import pandas as pd
import pytest

from rectutor.baselines import Popularity, grids
from rectutor.evaluation import Trained, evaluate, queries_for
from rectutor.splits import leave_one_out
from study import baselines, core, protocol


@pytest.fixture(scope="module")
def draw():
    return core.Draw("baselines", 1, "smoke")


@pytest.fixture(scope="module")
def model(draw):
    return Popularity().fit(draw.split, include_validation=True)


def test_a_target_is_ranked_among_99_movies_that_its_user_has_not_seen(draw, model):
    split = draw.split
    sampled = protocol.Sampled(model, split, seed=3)
    target = split.test.set_index("user_id")["movie_id"]
    queries = queries_for(split)
    scores = sampled(queries)
    for row, user in enumerate(queries.user_ids):
        competing = np.flatnonzero(np.isfinite(scores[row]))
        rivals = set(competing) - {target[user]}
        unseen = set(range(1, split.num_movies + 1)) - {*queries.history(row), target[user]}
        assert target[user] in competing
        assert rivals <= unseen
        assert len(rivals) == min(99, len(unseen))
    expected = []
    for row, user in enumerate(queries.user_ids):
        own = scores[row, target[user]]
        place = 1 + (scores[row] >= own).sum() - 1  # the target comes last among equals
        expected.append(1 / np.log2(place + 1) if place <= 10 else 0.0)
    found = evaluate(sampled, split, num_resamples=1).per_user["ndcg"]
    np.testing.assert_allclose(found, expected)


def test_the_rivals_are_drawn_once_a_seed_for_all_models_and_uniformly(draw, model):
    first, same, other = (protocol.Sampled(model, draw.split, seed).competes for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    row = queries_for(draw.split, user_ids=[5])
    times = sum(protocol.Sampled(model, draw.split, seed).competes[5] for seed in range(60))
    target = draw.split.targets()[5]
    free = np.setdiff1d(np.arange(1, draw.split.num_movies + 1), [*row.history(0), *target])
    assert times[free].sum() == 60 * min(99, len(free))
    share = min(99, len(free)) / len(free)
    spread = np.sqrt(60 * share * (1 - share))
    assert np.abs(times[free] - 60 * share).max() <= 5 * spread


def test_a_leak_is_refused_under_99_negatives_too(draw, model):
    leaking = Trained(model, draw.split.test)
    with pytest.raises(ValueError, match="was trained on the test target"):
        evaluate(protocol.Sampled(leaking, draw.split, 0), draw.split)


def test_tied_users_are_those_whose_last_two_share_a_second():
    rows = [(2, 1, 10), (2, 2, 20), (2, 3, 20), (1, 1, 5), (1, 2, 6), (1, 3, 7), (3, 1, 1)]
    ratings = pd.DataFrame(rows, columns=["user_id", "movie_id", "timestamp"])
    assert protocol.tied(leave_one_out(ratings)).tolist() == [2]


def test_the_arms_are_the_same_model_asked_otherwise(draw, model):
    ties = core.Draw("baselines", 1, "smoke")
    ratings = ties.shuffled.ratings
    odd = ratings["user_id"] % 2 == 1
    ratings.loc[odd, "timestamp"] = 0  # every second of an odd user is the same
    split = ties.split
    model = Popularity().fit(split, include_validation=True)
    arms = protocol.arms("mine", model, ties)
    assert [*arms] == [f"mine | {kind}" for kind in ("99 negatives", "seen kept", "tied", "untied")]
    whole = core.ranked(evaluate(model, split))
    assert arms["mine | tied"]["users"] == list(range(1, split.num_users + 1, 2))
    assert arms["mine | tied"]["ndcg"] == whole["ndcg"][::2]
    assert arms["mine | untied"]["ndcg"] == whole["ndcg"][1::2]
    kept = evaluate(model, split, exclude_seen=False)
    assert arms["mine | seen kept"]["ndcg"] == core.ranked(kept)["ndcg"]


def test_one_moment_asks_about_known_users_after_it(draw):
    to_choose, split = protocol.one_moment(draw)
    assert to_choose.train is split.train
    assert split.train["timestamp"].max() < split.validation["timestamp"].min()
    assert split.validation["timestamp"].max() < split.test["timestamp"].min()
    assert (split.histories().lengths[split.test["user_id"]] > 0).all()
    known = to_choose.histories("validation").lengths
    assert (known[to_choose.validation["user_id"]] > 0).all()
    assert len(to_choose.validation) < len(split.validation)


def test_a_baseline_is_chosen_on_validation_and_fitted_with_it(draw):
    model, facts = baselines.fitted("item kNN, recency", 1, draw.split, draw.split)
    assert model.knows_validation
    assert facts["settings_tried"] == len(grids()["item kNN, recency"])
    assert facts["tau"] == model.settings["tau"]
    assert {comparison.before for comparison in baselines.COMPARISONS} <= {
        f"baselines/{name}" for name in grids()
    }
