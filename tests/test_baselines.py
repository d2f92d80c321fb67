"""The baselines compute what their papers say, from the past only."""

import os
import tracemalloc
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given

from rectutor import baselines
from rectutor.baselines import (
    ALS,
    EASE,
    ItemKNN,
    Mixture,
    Popularity,
    SequentialRules,
    choose,
    ease_grid,
    grids,
    standard_baselines,
    weighted_histories,
)
from rectutor.data import load_movielens, synthetic
from rectutor.evaluation import Queries, compare, evaluate, queries_for
from rectutor.sequences import Histories
from rectutor.splits import Split, leave_one_out


def frame(rows):
    ratings = pd.DataFrame(rows, columns=["user_id", "movie_id"]).astype(np.int32)
    return ratings.assign(timestamp=np.arange(len(rows)))


def queries_of(*rows):
    items = np.array([movie for row in rows for movie in row], np.int32)
    offsets = np.cumsum([0, 0, *(len(row) for row in rows)])
    return Queries(np.arange(1, len(rows) + 1, dtype=np.int32), Histories(items, offsets))


@pytest.fixture(scope="module")
def made_up():
    return leave_one_out(synthetic(120, 60, 3_000, seed=0))


@st.composite
def splits(draw):
    pairs = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 7)), min_size=1, max_size=25))
    train = frame(pairs)
    return Split(train, train.iloc[:0], train.iloc[:0], num_users=5, num_movies=8)


def binary(split):
    matrix = np.zeros((split.num_users + 1, split.num_movies + 1))
    matrix[split.train["user_id"], split.train["movie_id"]] = 1.0
    return matrix


histories = st.lists(st.lists(st.integers(1, 8), max_size=6), min_size=1, max_size=4)


def test_popularity_counts_users_and_not_repeats():
    split = Split(frame([(1, 2), (1, 2), (2, 2), (2, 3)]), *[frame([])] * 2, 2, 4)
    scores = Popularity().fit(split)(queries_of([1], []))
    assert scores.tolist() == [[0, 0, 2, 1, 0]] * 2


@given(splits(), histories)
def test_item_knn_is_the_cosine_of_the_definition(split, rows):
    interactions = binary(split)
    expected = np.zeros((9, 9))
    for i in range(9):
        for j in range(9):
            a, b = interactions[:, i], interactions[:, j]
            if i != j and a.any() and b.any():
                expected[i, j] = a @ b / np.sqrt((a @ a) * (b @ b))
    model = ItemKNN().fit(split)
    np.testing.assert_allclose(model.weights, expected, atol=1e-6)
    history = np.zeros((len(rows), 9))
    for row, movies in enumerate(rows):
        history[row, movies] = 1.0
    np.testing.assert_allclose(model(queries_of(*rows)), history @ expected, atol=1e-5)


@given(splits(), st.sampled_from([0.5, 10.0, 200.0]))
def test_ease_is_the_closed_form_of_the_paper(split, regularization):
    interactions = binary(split)
    inverse = np.linalg.inv(interactions.T @ interactions + regularization * np.eye(9))
    expected = inverse / -np.diag(inverse)
    np.fill_diagonal(expected, 0.0)
    weights = EASE(regularization).fit(split).weights
    np.testing.assert_allclose(weights, expected, atol=1e-5)


def test_ease_solves_its_least_squares_problem():
    """Each column is ridge regression on the other movies: its gradient there is zero."""
    rng = np.random.default_rng(0)
    train = frame([(u, m + 1) for u in range(1, 30) for m in rng.permutation(8)[:4]])
    split = Split(train, frame([]), frame([]), num_users=30, num_movies=8)
    interactions = binary(split)
    weights = EASE(5.0).fit(split).weights.astype(float)
    gradient = interactions.T @ (interactions @ weights - interactions) + 5.0 * weights
    np.fill_diagonal(gradient, 0.0)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-4)


@given(splits(), st.sampled_from([1, 2, 30]))
def test_sequential_rules_count_what_follows_and_how_soon(split, steps):
    expected = np.zeros((9, 9))
    for _, movies in split.train.groupby("user_id")["movie_id"]:
        for later, after in enumerate(movies):
            for earlier, before in enumerate(movies[:later]):
                if later - earlier <= steps:
                    expected[before, after] += 1 / (later - earlier)
    model = SequentialRules(steps).fit(split)
    assert model.weights.dtype == np.float32
    np.testing.assert_allclose(model.weights, expected, rtol=1e-5)
    scores = model(queries_of([4, 2, 7], []))
    fading = expected[7] + np.exp(-1 / 3) * expected[2] + np.exp(-2 / 3) * expected[4]
    np.testing.assert_allclose(scores, [fading, np.zeros(9)], rtol=1e-5)


def test_sequential_rules_go_by_time_and_learn_from_validation_when_asked():
    ratings = frame([(1, 1), (1, 2), (1, 3), (1, 4), (1, 5)]).iloc[[4, 2, 0, 3, 1]]
    split = leave_one_out(ratings)
    known = SequentialRules(1).fit(split).weights
    assert np.argwhere(known).tolist() == [[1, 2], [2, 3]]
    more = SequentialRules(1).fit(split, include_validation=True).weights
    assert np.argwhere(more).tolist() == [[1, 2], [2, 3], [3, 4]]


def als_loss(model, interactions, users):
    confidence = 1 + model.alpha * interactions
    errors = confidence * (interactions - users @ model.movies.T) ** 2
    size = (users**2).sum() + (model.movies**2).sum()
    return errors.sum() + model.regularization * size


@given(splits(), st.sampled_from([0.5, 8.0]), st.sampled_from([0.2, 20.0]))
def test_als_solves_each_side_of_the_loss_of_the_paper(split, regularization, alpha):
    """No small step of the factors of a query makes the loss lower, and sweeps never raise it."""
    interactions = binary(split)
    rows = [[*np.flatnonzero(row)] for row in interactions]
    losses = []
    for sweeps in (1, 2, 6):
        model = ALS(3, regularization, alpha, sweeps).fit(split)
        users = np.zeros((len(rows), 3))
        for user, row in enumerate(interactions):
            weighted = model.movies * (1 + alpha * row)[:, None]
            to_solve = weighted.T @ model.movies + regularization * np.eye(3)
            users[user] = np.linalg.solve(to_solve, weighted.T @ row)
        losses.append(als_loss(model, interactions, users))
        expected = users @ model.movies.T
        np.testing.assert_allclose(model(queries_of(*rows)), expected, atol=1e-5)
    assert losses[2] <= losses[1] + 1e-9 <= losses[0] + 2e-9


def test_als_has_movies_that_are_the_solution_for_their_users():
    """One sweep by the equations of the paper, written densely."""
    split = Split(frame([(1, 1), (1, 2), (2, 2), (2, 3), (3, 1)]), *[frame([])] * 2, 3, 4)
    model, interactions = ALS(2, 1.5, 4.0, sweeps=1, seed=3).fit(split), binary(split)
    movies = np.random.default_rng(3).normal(0, 2**-0.5, (5, 2))

    def solve(matrix, other):
        return np.stack(
            [
                np.linalg.inv(other.T @ np.diag(1 + 4.0 * row) @ other + 1.5 * np.eye(2))
                @ (other.T @ (5.0 * row))
                for row in matrix
            ]
        )

    expected = solve(interactions.T, solve(interactions, movies))
    np.testing.assert_allclose(model.movies, expected, atol=1e-12)
    assert not model.movies[[0, 4]].any()
    assert not model(queries_of([])).any()


def test_als_gives_the_same_for_the_same_seed(made_up):
    first, same, other = (ALS(4, seed=seed).fit(made_up).movies for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 1e-6


@given(histories, st.sampled_from([None, 0.5, 3.0]))
def test_a_history_weighs_by_how_long_ago(rows, tau):
    expected = np.zeros((len(rows), 9))
    for row, movies in enumerate(rows):
        for age, movie in enumerate(reversed(movies)):
            weight = 1.0 if tau is None else np.exp(-age / tau)
            expected[row, movie] = max(expected[row, movie], weight)
    actual = weighted_histories(queries_of(*rows), 8, tau)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual.toarray(), expected, rtol=1e-6)


@pytest.mark.parametrize("make", [Popularity, ItemKNN, EASE, ALS, SequentialRules])
def test_scores_fit_the_protocol(make, made_up):
    model = make().fit(made_up)
    queries = queries_for(made_up)
    scores = model(queries)
    assert scores.shape == (len(queries), 61)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    parts = [model(part) for part in queries.batches(7)]
    np.testing.assert_allclose(np.concatenate(parts), scores, rtol=1e-5)


def test_fit_learns_from_train_and_from_validation_only_when_asked():
    split = leave_one_out(frame([(1, 1), (1, 2), (1, 3), (2, 1)]))
    query = queries_of([])
    assert Popularity().fit(split)(query).tolist() == [[0, 2, 0, 0]]
    model = Popularity().fit(split, include_validation=True)
    assert model(query).tolist() == [[0, 2, 1, 0]]
    assert model.knows_validation
    assert not model.fit(split).knows_validation


def test_a_baseline_that_knows_validation_is_not_measured_there(made_up):
    for name, model in standard_baselines(made_up).items():
        with pytest.raises(ValueError, match="was fitted on train and validation"):
            evaluate(model, made_up, on="validation", name=name)


def test_the_test_part_changes_nothing(made_up):
    other = Split(made_up.train, made_up.validation, made_up.test.iloc[:1], 120, 60)
    queries = queries_for(made_up)
    others = standard_baselines(other)
    for name, model in standard_baselines(made_up).items():
        np.testing.assert_array_equal(model(queries), others[name](queries))


def test_the_five_rows_are_those_of_the_protocol(made_up):
    rows = standard_baselines(made_up)
    assert [(name, repr(row)) for name, row in rows.items()] == [
        ("popularity", "popularity"),
        ("item kNN", "item kNN"),
        ("item kNN, recency", "item kNN, recency 3"),
        ("EASE", "EASE 200"),
        ("EASE, recency", "EASE 1000, recency 3"),
    ]
    queries = queries_for(made_up)
    alone = ItemKNN(tau=3.0).fit(made_up, include_validation=True)
    np.testing.assert_array_equal(rows["item kNN, recency"](queries), alone(queries))


def test_choosing_looks_at_validation_and_takes_the_best(made_up):
    rules = [SequentialRules(2), SequentialRules(2, 1.0), SequentialRules(3)]
    ease = ease_grid((10.0, 100.0), (None, 3.0))
    candidates = [Popularity(), *ease, ItemKNN(), *rules, ALS(4), ALS(2, 30.0, 1.0)]
    choice = choose(made_up, candidates)
    assert choice.table["candidate"].tolist() == [candidate.name for candidate in candidates]
    assert choice.best.name == choice.table.loc[choice.table["ndcg"].idxmax(), "candidate"]
    assert choice.evaluation.ndcg == choice.table["ndcg"].max()
    assert choice.evaluation.on == "validation"
    for candidate, ndcg in zip(candidates, choice.table["ndcg"], strict=True):
        again = type(candidate)(**candidate.settings)
        assert again.name == candidate.name
        assert evaluate(again.fit(made_up), made_up, on="validation").ndcg == ndcg
    by_hits = choose(made_up, candidates, metric="hit_rate", k=5)
    assert by_hits.evaluation.hit_rate == by_hits.table["hit_rate"].max()
    assert by_hits.evaluation.k == 5
    without_test = Split(made_up.train, made_up.validation, made_up.test.iloc[:0], 120, 60)
    pd.testing.assert_frame_equal(choose(without_test, candidates).table, choice.table)


def test_the_default_grid_spans_lambda_and_tau():
    grid = ease_grid()
    assert len(grid) == 30
    assert {model.regularization for model in grid} == {100.0, 200.0, 500.0, 1000.0, 2000.0}
    assert {model.tau for model in grid} == {None, 1.0, 2.0, 3.0, 5.0, 10.0}


def test_there_is_a_grid_for_every_row_and_for_two_more():
    found = grids()
    assert [*found] == [*standard_names(), "ALS", "sequential rules"]
    for name, grid in found.items():
        assert len({type(model) for model in grid}) == 1
        assert len({model.name for model in grid}) == len(grid)
        assert all(model.settings.get("tau") for model in grid) == (name in WITH_RECENCY)
    assert {model.seed for model in grids(seed=7)["ALS"]} == {7}


WITH_RECENCY = ("item kNN, recency", "EASE, recency", "sequential rules")


def standard_names():
    return [*standard_baselines(leave_one_out(frame([(1, 1), (1, 2), (1, 3)])))]


def test_the_table_of_a_choice_has_a_column_for_each_setting(made_up):
    table = choose(made_up, [ALS(2, sweeps=1), SequentialRules(2)]).table
    settings = ["factors", "regularization", "alpha", "steps", "tau"]
    assert table.columns.tolist()[:2] == ["candidate", "factors"]
    assert set(settings) < set(table.columns)
    assert table["steps"].dropna().tolist() == [2]


@pytest.mark.parametrize("weight", [0, 0.5, -3.0, 40.0])
def test_a_mixture_adds_a_multiple_of_the_other_scores(made_up, weight):
    first, second = ItemKNN().fit(made_up), EASE().fit(made_up)
    mixture, queries = Mixture(first, second, weight), queries_for(made_up)
    expected = first(queries) + weight * second(queries)
    np.testing.assert_array_equal(mixture(queries), expected)
    assert mixture(queries).dtype == np.float32
    assert mixture.name == f"item kNN + {weight:g} * EASE 200"
    assert mixture.parts == (first, second)
    wide = Mixture(lambda q: np.asarray(first(q), np.float64), second, weight)
    assert wide(queries).dtype == np.float64


def test_nothing_of_users_times_movies_is_dense():
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(1, 50_001), 4)
    rows = np.stack([users, rng.integers(1, 301, len(users))], axis=1)
    split = leave_one_out(frame(rows), num_movies=300)
    tracemalloc.start()
    standard_baselines(split)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000 * 300 * 4 / 2


# MovieLens 100K -------------------------------------------------------------------------------

_ARCHIVES = os.environ.get("RECTUTOR_ARCHIVES")


@pytest.fixture(scope="module")
def movielens():
    if not _ARCHIVES or not (Path(_ARCHIVES) / "ml-100k.zip").exists():
        pytest.skip("needs ml-100k.zip in RECTUTOR_ARCHIVES")
    return leave_one_out(load_movielens("100k"))


def test_the_protocol_table_is_reached_on_movielens_100k(movielens):
    """HR@10 and NDCG@10 of the book's protocol, each within 0.005."""
    rows = standard_baselines(movielens).items()
    results = {name: evaluate(model, movielens, num_resamples=100) for name, model in rows}
    table = compare(results).to_frame()
    expected = {
        "popularity": (0.086, 0.045),
        "item kNN": (0.109, 0.056),
        "item kNN, recency": (0.173, 0.097),
        "EASE": (0.143, 0.073),
        "EASE, recency": (0.208, 0.110),
    }
    for name, (hit_rate, ndcg) in expected.items():
        assert table.loc[name, "HR@10"] == pytest.approx(hit_rate, abs=0.005), name
        assert table.loc[name, "NDCG@10"] == pytest.approx(ndcg, abs=0.005), name


def test_validation_picks_lambda_for_the_tau_of_the_standard_row(movielens):
    choice = choose(movielens, ease_grid(taus=(3.0,)))
    assert (choice.best.regularization, choice.best.tau) == (1000.0, 3.0)


def test_a_catalogue_too_large_for_a_dense_matrix_is_refused(monkeypatch, made_up):
    monkeypatch.setattr(baselines, "_MOST_MOVIES", 59)
    for model in (Popularity(), ALS()):
        assert model.fit(made_up)(queries_of([1])).shape == (1, 61)
    for model in (ItemKNN(), EASE(), SequentialRules()):
        with pytest.raises(ValueError, match="60 movies need a dense item-item matrix of 0 GB"):
            model.fit(made_up)
