"""Bad input to splits, evaluation and baselines ends in one error that names value and remedy."""

import numpy as np
import pandas as pd
import pytest

from rectutor.baselines import (
    ALS,
    EASE,
    ItemKNN,
    Mixture,
    Popularity,
    SequentialRules,
    choose,
    standard_baselines,
)
from rectutor.evaluation import (
    Queries,
    Trained,
    compare,
    evaluate,
    queries_for,
    recommend,
    win_rate,
)
from rectutor.sequences import Histories
from rectutor.splits import Split, leave_one_out, random_split, temporal_split


def ratings(**columns):
    table = {"user_id": [1, 1, 1, 1, 2], "movie_id": [1, 2, 3, 4, 1], "timestamp": [1, 2, 3, 4, 5]}
    return pd.DataFrame({**table, **columns})


SPLIT = leave_one_out(ratings(), num_movies=6)
QUERIES = queries_for(SPLIT)


def zeros(queries):
    return np.zeros((len(queries), 7))


def by_time(frame):
    return temporal_split(frame, cutoff=3)


def refused(*cases):
    """A test of what is given, the error it ends in, and what that says."""
    return pytest.mark.parametrize(("given", "error", "message"), cases)


@pytest.mark.parametrize("split", [random_split, leave_one_out, by_time])
@refused(
    ([(1, 2, 3)], TypeError, "got a list; give a pandas DataFrame"),
    (None, TypeError, "got a NoneType; give a pandas DataFrame"),
    (ratings().iloc[:0], ValueError, "without rows; give at least one"),
    (ratings().drop(columns="user_id"), ValueError, "no column 'user_id' among"),
    (ratings().drop(columns="movie_id"), ValueError, "no column 'movie_id' among"),
    (ratings(user_id=[0, 1, 1, 1, 2]), ValueError, "user_id 0 in row 0 is no id"),
    (ratings(movie_id=[1, 2, -7, 3, 4]), ValueError, "movie_id -7 in row 2 is no id"),
    (ratings(movie_id=[1, 2, 3, 4, 2**40]), ValueError, f"movie_id {2**40} in row 4"),
    (ratings(user_id=list("abcde")), TypeError, "'a'; ids are integers from 1"),
    (ratings(user_id=["\u202e\U0001f4a9"] * 5), TypeError, "ids are integers"),
    (ratings(movie_id=[1.5, 2, 3, 4, 5]), TypeError, r"1\.5.*; ids are integers"),
    (ratings(user_id=[1, 1, np.nan, 1, 2]), ValueError, r"missing in row 2 \(1 in all\)"),
    (
        ratings(user_id=pd.array([1, None, None, 1, 2], dtype="Int64")),
        ValueError,
        r"user_id is missing in row 1 \(2 in all\); fill it in or drop the rows",
    ),
    (ratings(user_id=[True] * 5), TypeError, "user_id is bool"),
)
def test_no_split_takes(split, given, error, message):
    with pytest.raises(error, match=message):
        split(given)


TIMES = [
    (ratings(timestamp=["1997-12-04"] * 5), TypeError, "give seconds: rectutor.data"),
    (ratings(timestamp=[True] * 5), TypeError, "timestamp is bool"),
    (ratings(timestamp=[1, 2, np.nan, 4, 5]), ValueError, "timestamp is missing in row 2"),
    (ratings(timestamp=[1, 2, 3, np.inf, 5]), ValueError, "timestamp inf in row 3 is no"),
]


@pytest.mark.parametrize("split", [leave_one_out, by_time])
@refused(
    (ratings().drop(columns="timestamp"), ValueError, "no column 'timestamp' among"),
    *TIMES,
)
def test_no_split_by_time_takes(split, given, error, message):
    with pytest.raises(error, match=message):
        split(given)


@refused(*TIMES)
def test_a_split_made_by_hand_looks_at_its_times_when_asked(given, error, message):
    with pytest.raises(error, match=rf"Split\.train: .*{message}"):
        Split(given, ratings(), ratings(), 2, 4).histories()


@refused(
    ({"test_fraction": 0}, ValueError, "test_fraction is 0; it must be between 0 and 1"),
    ({"test_fraction": 1.0}, ValueError, r"test_fraction is 1\.0; it must be between"),
    ({"test_fraction": float("nan")}, ValueError, "test_fraction is nan; it must be"),
    ({"test_fraction": "a fifth"}, TypeError, "test_fraction is 'a fifth'; give a number"),
    ({"test_fraction": 0.01}, ValueError, "would make train 5 and test 0 rows of 5"),
    ({"test_fraction": 0.99}, ValueError, "would make train 0 and test 5 rows of 5"),
    ({"test_fraction": 0.2, "sizes": (4, 1)}, ValueError, "both test_fraction=0.2 and sizes="),
    ({"sizes": (80_000, 20_000)}, ValueError, r"100,000 rows in all, for 5 ratings"),
    ({"sizes": (4, 2)}, ValueError, "add up to the number of rows"),
    ({"sizes": (6, -1)}, ValueError, "sizes holds -1; each must be from 0"),
    ({"sizes": (5, 0)}, ValueError, "would make train 5 and test 0"),
    ({"sizes": (0, 5)}, ValueError, "would make train 0 and test 5"),
    ({"sizes": (5,)}, ValueError, r"sizes=\(5,\); give \(train, test\)"),
    ({"sizes": (1, 1, 1, 2)}, ValueError, r"give \(train, test\) or \(train, validation, test"),
    ({"sizes": (2.5, 2.5)}, TypeError, "sizes has .* dtype float64; give .* whole numbers"),
)
def test_random_split_does_not_take(given, error, message):
    with pytest.raises(error, match=message):
        random_split(ratings(), **given)


@refused(
    ({"cutoff": None}, ValueError, "cutoff=None and fraction=None; give exactly one of them"),
    ({"cutoff": 3, "fraction": 0.5}, ValueError, "cutoff=3 and fraction=0.5; give exactly one"),
    ({"cutoff": float("nan")}, ValueError, "cutoff, a moment in the unit .* is nan; .*finite"),
    ({"cutoff": "1997"}, TypeError, "cutoff, a moment .* is '1997'; give a number"),
    ({"cutoff": 1}, ValueError, "leaves train empty: the timestamps run from 1 to 5; choose"),
    ({"cutoff": 6}, ValueError, "leaves test empty: the timestamps run from 1 to 5; choose"),
    ({"fraction": 1.5}, ValueError, r"fraction is 1\.5; it must be between 0 and 1"),
    ({"fraction": 0.01}, ValueError, r"fraction=0\.01 asks for 0 of 5 rows"),
    ({"fraction": 0.99}, ValueError, "leaves train empty"),
    ({"cutoff": 3, "validation_fraction": 0.4}, ValueError, "=0.4 leaves train empty; lower it"),
    ({"cutoff": 3, "validation_fraction": 0.8}, ValueError, "asks for 4 of 2 rows"),
    ({"cutoff": 3, "validation_fraction": -1}, ValueError, "validation_fraction is -1; it"),
)
def test_temporal_split_does_not_take(given, error, message):
    with pytest.raises(error, match=message):
        temporal_split(ratings(), **given)


def nan_for_user_1(queries):
    scores = zeros(queries)
    scores[:, 5] = np.nan
    return scores


@refused(
    ("a name", TypeError, "recommender is a str, which cannot be called"),
    (None, TypeError, "recommender is a NoneType"),
    (nan_for_user_1, ValueError, "nan_for_user_1 scored movie 5 NaN for user 1; look for"),
    (lambda q: np.zeros((1, 6)), ValueError, r"\(1, 6\) for 1 queries; expected \(1, 6 \+"),
    (lambda q: np.zeros((len(q), 8)), ValueError, r"expected \(1, 6 \+ 1\): one row a query"),
    (lambda q: np.zeros((3, 7)), ValueError, r"scores of shape \(3, 7\) for 1 queries"),
    (lambda q: np.zeros(7), ValueError, r"scores of shape \(7,\)"),
    (lambda q: np.zeros((len(q), 7, 1)), ValueError, r"scores of shape \(1, 7, 1\)"),
    (lambda q: 3.0, ValueError, r"scores of shape \(\)"),
    (lambda q: None, TypeError, "returned a NoneType that is no table of scores"),
    (lambda q: [["1"] * 7], TypeError, "dtype <U1"),
    (lambda q: np.zeros((1, 7), complex), TypeError, "dtype complex128"),
    (lambda q: [[1.0, 2.0], [3.0]], TypeError, "returned a list that is no table of scores"),
    (Popularity(), ValueError, "popularity is not fitted; call fit"),
)
def test_evaluate_does_not_take_scores(given, error, message):
    with pytest.raises(error, match=message):
        evaluate(given, SPLIT, k=3)


@refused(
    ({"k": 0}, ValueError, "k, the movies recommended .* is 0; it must be at least 1"),
    ({"k": 7}, ValueError, "out of the catalogue, is 7; it must be at most 6"),
    ({"k": 2.5}, TypeError, r"is 2\.5; give a whole number"),
    ({"k": None}, TypeError, "is None; give a whole number"),
    ({"on": "train"}, ValueError, r"on is 'train'; choose from \['test', 'validation'\]"),
    ({"batch_size": 0}, ValueError, "batch_size is 0; it must be at least 1"),
    ({"num_resamples": 0}, ValueError, "num_resamples is 0; it must be at least 1"),
    ({"num_resamples": "many"}, TypeError, "num_resamples is 'many'; give a whole number"),
)
def test_evaluate_does_not_take_settings(given, error, message):
    with pytest.raises(error, match=message):
        evaluate(zeros, SPLIT, **{"k": 3, **given})


@refused(
    ([0], ValueError, "user_ids holds 0; each must be from 1 to 2"),
    ([1, 3], ValueError, "user_ids holds 3; each must be from 1 to 2"),
    ([-1], ValueError, "user_ids holds -1"),
    ([1.0], TypeError, r"dtype float64; give a flat array of whole numbers, as \[42\]"),
    (["you"], TypeError, "user_ids has .* dtype <U3; give"),
    ([[1, 2]], TypeError, r"user_ids has shape \(1, 2\)"),
)
def test_queries_for_does_not_take_users(given, error, message):
    with pytest.raises(error, match=message):
        queries_for(SPLIT, user_ids=given)


def few(columns):
    return lambda queries: np.zeros((1, columns))


def knows(*movies):
    """A query of user 1, who has watched these."""
    items = np.array(movies, np.int32)
    return Queries(np.array([1]), Histories(items, np.array([0, 0, len(items)])))


def test_recommend_takes_padding_in_a_history_and_no_queries():
    assert recommend(zeros, knows(0, 2), 5).tolist() == [[1, 3, 4, 5, 6]]
    nobody = Queries(np.zeros(0, np.int32), SPLIT.histories())
    assert recommend(zeros, nobody, 3).shape == (0, 3)


def test_what_has_seen_the_validation_part_is_not_measured_there():
    seen = Popularity().fit(SPLIT, include_validation=True)
    for recommender in (seen, Mixture(zeros, seen, 1.0), Mixture(seen, zeros, 1.0)):
        for measure in (evaluate, win_rate):
            with pytest.raises(ValueError, match=r"seen the validation .*_validation=False"):
                measure(recommender, SPLIT, on="validation")


GOOD = evaluate(zeros, SPLIT, k=3, name="good")
TABLE = compare({"a": GOOD, "b": GOOD})
PART = ratings()
DEALT = random_split(PART)
EQUAL = ratings(timestamp=[9] * 5)
EMPTY = "leaves train empty: the timestamps run from 9 to 9"


def with_good(split, k=3, on="test"):
    return compare({"a": GOOD, "b": evaluate(zeros, split, k, on=on)})


VALUES = [
    (lambda: temporal_split(EQUAL, fraction=0.4), EMPTY),
    (lambda: SPLIT.histories("train"), r"is 'train'; choose from \['validation', 'test'\]"),
    (lambda: SPLIT.targets("train"), r"is 'train'; choose from \['validation', 'test'\]"),
    (
        lambda: Split(PART[["user_id"]], PART, PART, 2, 4),
        r"Split\.train: no column 'movie_id' among",
    ),
    (lambda: Split(PART, PART, PART, 1, 4), r"user_id 2, but .* only 1; raise num_users"),
    (
        lambda: Split(PART, PART, PART, 2, 4, order=range(5)),
        "an order of 5 rows for 15; leave it out",
    ),
    (lambda: evaluate(zeros, DEALT, 1, on="validation"), r"split\.validation has no interactions"),
    (lambda: queries_for(leave_one_out(ratings(user_id=[1, 1, 2, 2, 3]))), "nobody to ask about"),
    (lambda: Queries([1, 3], SPLIT.histories()), "user_ids holds 3; each must be from 0 to 2"),
    (lambda: recommend(zeros, QUERIES, 9), "is 9; it must be at most 6"),
    (lambda: recommend(nan_for_user_1, QUERIES, 3), "NaN for user 1"),
    (lambda: recommend(few(3), QUERIES, 1), "a history holds movie 3, but .* scores movies 1 to 2"),
    (
        lambda: recommend(few(1), QUERIES, 1),
        r"\(1, 1\) for 1 queries; expected \(1, num_movies \+ 1\)",
    ),
    (lambda: recommend(zeros, knows(-2, 3), 3), "a history holds movie -2"),
    (lambda: compare([]), "got no evaluation; give at least one"),
    (lambda: compare([GOOD, GOOD]), r"names \['good', 'good'\], some twice"),
    (lambda: with_good(SPLIT, k=2), "'a' has k=3 and 'b' k=2; evaluate both"),
    (lambda: with_good(SPLIT, on="validation"), "1 users of test and 'b' on 1 users of validation"),
    (
        lambda: with_good(leave_one_out(ratings(user_id=[2, 2, 2, 2, 1]), num_movies=6)),
        "they are not the same; evaluate both on one split",
    ),
    (lambda: TABLE.better("a", "c"), r"a model is 'c'; choose from \['a', 'b'\]"),
    (lambda: TABLE.better("c", "a"), "a model is 'c'"),
    (
        lambda: TABLE.better("a", "b", metric="coverage"),
        r"metric is 'coverage'; choose from \['hit_rate', 'ndcg', 'mrr'\]",
    ),
    (lambda: TABLE.better("a", "b", num_resamples=0), "num_resamples is 0; it must be at least 1"),
    (lambda: EASE(0), "regularization is 0; it must be above 0"),
    (lambda: EASE(float("nan")), "regularization is nan"),
    (lambda: EASE(float("inf")), "regularization is inf"),
    (lambda: EASE(tau=0), "tau, in interactions, is 0; it must be above 0"),
    (lambda: ItemKNN(tau=float("inf")), "is inf"),
    (lambda: ALS(0), "ALS: factors is 0; it must be at least 1"),
    (lambda: ALS(regularization=0), "ALS: regularization is 0; it must be above 0"),
    (lambda: ALS(alpha=float("nan")), "ALS: alpha is nan; it must be above 0"),
    (lambda: ALS(sweeps=0), "ALS: sweeps is 0; it must be at least 1"),
    (lambda: ALS(seed=-1), "ALS: seed is -1; it must be at least 0"),
    (lambda: SequentialRules(0), "SequentialRules: steps is 0; it must be at least 1"),
    (lambda: SequentialRules(tau=-1), "tau, in interactions, is -1; it must be above 0"),
    (lambda: Trained(zeros, PART[["user_id"]]), "Trained: interactions: no column 'movie_id'"),
    (lambda: Trained(zeros, ratings(user_id=[0, 1, 1, 1, 2])), "user_id 0 in row 0 is no id"),
    (lambda: Mixture(zeros, zeros, np.nan), "weight is nan; it must be finite"),
    (lambda: choose(SPLIT, []), "got no candidates"),
    (
        lambda: choose(SPLIT, [Popularity()], metric="auc", k=2),
        r"metric is 'auc'; choose from \['hit_rate'",
    ),
    (lambda: choose(DEALT, [Popularity()], k=2), r"split\.validation has no interactions"),
]


@pytest.mark.parametrize(("call", "message"), VALUES)
def test_no_call_takes_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


KINDS = [
    (
        lambda: Split([], PART, PART, 2, 4),
        r"Split\(train=\.\.\.\) got a list; give a pandas DataFrame",
    ),
    (lambda: evaluate(zeros, PART, k=3), "evaluate got a DataFrame for split; give a Split"),
    (lambda: compare({"x": 0.5}), "got a float for 'x'; give what evaluate"),
    (lambda: compare(["good"]), "got a str for ''"),
    (lambda: EASE("200"), "regularization is '200'; give a number"),
    (lambda: EASE(True), "regularization is True"),
    (lambda: ItemKNN(tau="soon"), "tau, in interactions, is 'soon'"),
    (lambda: ALS(8.0), r"ALS: factors is 8\.0; give a whole number"),
    (lambda: ALS(alpha="40"), "ALS: alpha is '40'; give a number"),
    (lambda: SequentialRules(True), "SequentialRules: steps is True; give a whole number"),
    (lambda: SequentialRules(tau="soon"), "tau, in interactions, is 'soon'"),
    (lambda: Trained(zeros, [(1, 2)]), "Trained: interactions got a list; give a pandas"),
    (lambda: Mixture(zeros, zeros, "1"), "weight is '1'; give a number"),
]


@pytest.mark.parametrize(("call", "message"), KINDS)
def test_no_call_takes_the_kind(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize("make", [Popularity, ItemKNN, EASE, ALS, SequentialRules])
def test_baselines_fit_to_splits_only(make):
    with pytest.raises(TypeError, match="got a DataFrame to fit; give a Split"):
        make().fit(ratings())
    nothing = Split(ratings().iloc[:0], ratings().iloc[:0], ratings(), 2, 4)
    with pytest.raises(ValueError, match="train part is empty"):
        make().fit(nothing)
    with pytest.raises(ValueError, match="is not fitted"):
        make()(QUERIES)
    small = leave_one_out(ratings(movie_id=[1, 2, 1, 2, 1]))
    with pytest.raises(ValueError, match="fitted on 2 movies, but a history holds movie 3"):
        make().fit(small)(QUERIES)


def test_one_user_and_one_movie_are_enough():
    one = leave_one_out(ratings(user_id=[1] * 5, movie_id=[1] * 5))
    for model in standard_baselines(one).values():
        result = evaluate(model, one, k=1)
        assert (result.hit_rate, result.num_seen_targets, result.coverage) == (0.0, 1, 0.0)
        assert evaluate(model, one, k=1, exclude_seen=False).hit_rate == 1.0
