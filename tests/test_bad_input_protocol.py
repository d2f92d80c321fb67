"""Bad input to splits, evaluation and baselines ends in one error that names value and remedy."""

import numpy as np
import pandas as pd
import pytest

from rectutor.baselines import EASE, ItemKNN, Popularity, choose, standard_baselines
from rectutor.evaluation import Queries, compare, evaluate, queries_for, recommend
from rectutor.sequences import Histories
from rectutor.splits import Split, leave_one_out, random_split, temporal_split

pytestmark = pytest.mark.bad_input


def ratings(**columns):
    table = {
        "user_id": [1, 1, 1, 1, 2],
        "movie_id": [1, 2, 3, 4, 1],
        "timestamp": [1, 2, 3, 4, 5],
    }
    return pd.DataFrame({**table, **columns})


SPLIT = leave_one_out(ratings(), num_movies=6)
QUERIES = queries_for(SPLIT)


def zeros(queries):
    return np.zeros((len(queries), 7))


def by_time(frame, **settings):
    return temporal_split(frame, **(settings or {"cutoff": 3}))


SPLITTERS = pytest.mark.parametrize("split", [random_split, leave_one_out, by_time])

FRAMES = {
    "a list": ([(1, 2, 3)], TypeError, "got a list; give a pandas DataFrame"),
    "an array": (np.ones((3, 3)), TypeError, "got a ndarray; give a pandas DataFrame"),
    "None": (None, TypeError, "got a NoneType; give a pandas DataFrame"),
    "no rows": (ratings().iloc[:0], ValueError, "without rows; give at least one"),
    "no users": (ratings().drop(columns="user_id"), ValueError, "no column 'user_id' among"),
    "no movies": (ratings().drop(columns="movie_id"), ValueError, "no column 'movie_id' among"),
    "user 0": (ratings(user_id=[0, 1, 1, 1, 2]), ValueError, "user_id 0 is no id; ids run from 1"),
    "movie -7": (ratings(movie_id=[1, 2, -7, 3, 4]), ValueError, "movie_id -7 is no id"),
    "huge id": (ratings(movie_id=[1, 2, 3, 4, 2**40]), ValueError, f"movie_id {2**40} is no id"),
    "id text": (ratings(user_id=list("abcde")), ValueError, "'a'; ids are integers from 1"),
    "id text, odd": (ratings(user_id=["\u202e\U0001f4a9"] * 5), ValueError, "ids are integers"),
    "id 1.5": (ratings(movie_id=[1.5, 2, 3, 4, 5]), ValueError, r"1\.5.*; ids are integers"),
    "id NaN": (ratings(user_id=[1, 1, np.nan, 1, 2]), ValueError, r"missing in row 2 \(1 in all\)"),
    "id missing": (
        ratings(user_id=pd.array([1, None, None, 1, 2], dtype="Int64")),
        ValueError,
        r"user_id is missing in row 1 \(2 in all\); fill it in or drop the rows",
    ),
    "id bool": (ratings(user_id=[True] * 5), ValueError, "user_id is bool"),
}


@SPLITTERS
@pytest.mark.parametrize("case", FRAMES)
def test_no_split_takes(split, case):
    frame, error, message = FRAMES[case]
    with pytest.raises(error, match=message):
        split(frame)


TIMES = {
    "no column": (ratings().drop(columns="timestamp"), "without times use random_split"),
    "text": (ratings(timestamp=["1997-12-04"] * 5), "give seconds: rectutor.data.from_dataframe"),
    "dates": (ratings(timestamp=pd.to_datetime(["1997-12-04"] * 5)), "timestamp is datetime64"),
    "bool": (ratings(timestamp=[True] * 5), "timestamp is bool"),
    "NaN": (ratings(timestamp=[1, 2, np.nan, 4, 5]), "timestamp is missing in row 2"),
    "inf": (ratings(timestamp=[1, 2, 3, np.inf, 5]), "timestamp inf in row 3 is no time"),
}


@pytest.mark.parametrize("split", [leave_one_out, by_time])
@pytest.mark.parametrize("case", TIMES)
def test_no_split_by_time_takes(split, case):
    frame, message = TIMES[case]
    with pytest.raises(ValueError, match=message):
        split(frame)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test_fraction": 0}, "test_fraction=0 is no share; give a number between 0 and 1"),
        ({"test_fraction": 1}, "test_fraction=1 is no share"),
        ({"test_fraction": 1.0}, r"test_fraction=1\.0 is no share"),
        ({"test_fraction": -0.1}, r"test_fraction=-0\.1 is no share"),
        ({"test_fraction": float("nan")}, "test_fraction=nan is no share"),
        ({"test_fraction": "a fifth"}, "test_fraction='a fifth' is no share"),
        ({"test_fraction": 0.01}, "would make train 5 and test 0 rows of 5"),
        ({"test_fraction": 0.99}, "would make train 0 and test 5 rows of 5"),
        ({"test_fraction": 0.2, "sizes": (4, 1)}, "both test_fraction=0.2 and sizes="),
        ({"sizes": (80_000, 20_000)}, r"100,000 rows in all, for 5 ratings"),
        ({"sizes": (4, 2)}, "add up to the number of rows"),
        ({"sizes": (6, -1)}, "are not negative and add up"),
        ({"sizes": (5, 0)}, "would make train 5 and test 0"),
        ({"sizes": (0, 5)}, "would make train 0 and test 5"),
        ({"sizes": (5,)}, r"sizes=\(5,\); give \(train, test\)"),
        ({"sizes": (1, 1, 1, 2)}, r"give \(train, test\) or \(train, validation, test\)"),
        ({"sizes": (2.5, 2.5)}, "whole numbers of rows"),
    ],
)
def test_random_split_does_not_take(settings, message):
    with pytest.raises(ValueError, match=message):
        random_split(ratings(), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cutoff": None}, "cutoff=None and fraction=None; give exactly one of them"),
        ({"cutoff": 3, "fraction": 0.5}, "cutoff=3 and fraction=0.5; give exactly one"),
        ({"cutoff": float("nan")}, "cutoff=nan; give a moment"),
        ({"cutoff": 1}, "leaves train empty: the timestamps run from 1 to 5"),
        ({"cutoff": 6}, "leaves test empty: the timestamps run from 1 to 5"),
        ({"fraction": 1.5}, r"fraction=1\.5 is no share"),
        ({"fraction": 0.01}, r"fraction=0\.01 asks for 0 of 5 rows"),
        ({"fraction": 0.99}, "leaves train empty"),
        ({"cutoff": 3, "validation_fraction": 0.4}, "validation_fraction=0.4 leaves train empty"),
        ({"cutoff": 3, "validation_fraction": 0.8}, "asks for 4 of 2 rows"),
        ({"cutoff": 3, "validation_fraction": -1}, "validation_fraction=-1 is no share"),
    ],
)
def test_temporal_split_does_not_take(settings, message):
    with pytest.raises(ValueError, match=message):
        temporal_split(ratings(), **settings)


def test_one_moment_for_all_cannot_be_cut():
    with pytest.raises(ValueError, match="leaves train empty: the timestamps run from 9 to 9"):
        temporal_split(ratings(timestamp=[9] * 5), fraction=0.4)


def nan_for_user_1(queries):
    scores = zeros(queries)
    scores[:, 5] = np.nan
    return scores


@pytest.mark.parametrize(
    ("recommender", "error", "message"),
    [
        ("a name", TypeError, "recommender is a str, which cannot be called"),
        (None, TypeError, "recommender is a NoneType"),
        (nan_for_user_1, ValueError, "nan_for_user_1 scored movie 5 NaN for user 1; look for"),
        (
            lambda q: np.zeros((len(q), 6)),
            ValueError,
            r"\(1, 6\) for 1 queries; expected \(1, 6 \+",
        ),
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
    ],
)
def test_evaluate_does_not_take_scores(recommender, error, message):
    with pytest.raises(error, match=message):
        evaluate(recommender, SPLIT, k=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k=0; give a whole number from 1 to 6, the size of the catalogue"),
        ({"k": -1}, "k=-1; give a whole number"),
        ({"k": 7}, "k=7; give a whole number from 1 to 6"),
        ({"k": 2.5}, r"k=2\.5; give a whole number"),
        ({"k": None}, "k=None; give a whole number"),
        ({"on": "train"}, "on='train'; evaluate on 'test' or on 'validation'"),
        ({"batch_size": 0}, "batch_size=0; give a whole number from 1"),
        ({"num_resamples": 0}, "num_resamples=0; give a whole number from 1"),
        ({"num_resamples": "many"}, "num_resamples='many'; give a whole number"),
    ],
)
def test_evaluate_does_not_take_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        evaluate(zeros, SPLIT, **{"k": 3, **settings})


def test_evaluate_needs_a_split_with_targets():
    with pytest.raises(TypeError, match="evaluate got a DataFrame for split; give a Split"):
        evaluate(zeros, ratings(), k=3)
    with pytest.raises(ValueError, match=r"split\.validation has no interactions"):
        evaluate(zeros, random_split(ratings()), k=1, on="validation")
    with pytest.raises(ValueError, match="nobody to ask about"):
        queries_for(leave_one_out(ratings(user_id=[1, 1, 2, 2, 3])))


@pytest.mark.parametrize(
    ("user_ids", "message"),
    [
        ([0], "user_ids has 0; users of this split run from 1 to 2"),
        ([1, 3], "user_ids has 3; users of this split run from 1 to 2"),
        ([-1], "user_ids has -1"),
        ([1.0], r"user_ids=\[1\.0\]; give integers"),
        (["you"], r"user_ids=\['you'\]; give integers"),
        ([[1, 2]], r"user_ids=\[\[1, 2\]\]; give integers"),
    ],
)
def test_queries_for_does_not_take_users(user_ids, message):
    with pytest.raises(ValueError, match=message):
        queries_for(SPLIT, user_ids=user_ids)


def test_queries_hold_one_history_each():
    histories = Histories(np.array([1, 2], np.int32), np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="3 user_ids and 3 history offsets; histories go by"):
        Queries(np.array([1, 2, 3], np.int32), histories)


@pytest.mark.parametrize(
    ("recommender", "k", "message"),
    [
        (zeros, 9, "k=9; give a whole number from 1 to 6"),
        (nan_for_user_1, 3, "NaN for user 1"),
        (lambda q: np.zeros((1, 3)), 1, r"a history holds movie 3, but .* scores movies 1 to 2"),
        (lambda q: np.zeros((1, 1)), 1, r"\(1, 1\) for 1 queries; expected \(1, num_movies \+ 1\)"),
    ],
)
def test_recommend_does_not_take(recommender, k, message):
    with pytest.raises(ValueError, match=message):
        recommend(recommender, QUERIES, k)


def test_padding_in_a_history_is_no_movie():
    query = Queries(np.array([1]), knows(0, 2))
    assert recommend(zeros, query, 5).tolist() == [[1, 3, 4, 5, 6]]


def test_recommend_refuses_a_negative_movie_and_takes_no_queries():
    odd = Queries(np.array([1], np.int32), Histories(np.array([-2], np.int32), np.array([0, 1])))
    with pytest.raises(ValueError, match="a history holds movie -2"):
        recommend(zeros, odd, 3)
    nobody = Queries(np.zeros(0, np.int32), Histories(np.zeros(0, np.int32), np.array([0])))
    assert recommend(zeros, nobody, 3).shape == (0, 3)


def results():
    return {"a": evaluate(zeros, SPLIT, k=3), "b": evaluate(zeros, SPLIT, k=3)}


def test_compare_does_not_take_what_is_not_comparable():
    good = evaluate(zeros, SPLIT, k=3, name="good")
    with pytest.raises(ValueError, match="got no evaluation; give at least one"):
        compare([])
    with pytest.raises(TypeError, match="got a float for 'x'; give what evaluate"):
        compare({"x": 0.5})
    with pytest.raises(TypeError, match="got a str for ''"):
        compare(["good"])
    with pytest.raises(ValueError, match=r"names \['good', 'good'\], some twice"):
        compare([good, good])
    with pytest.raises(ValueError, match="'a' has k=3 and 'b' k=2; evaluate both"):
        compare({"a": good, "b": evaluate(zeros, SPLIT, k=2)})
    with pytest.raises(ValueError, match="1 users of test and 'b' on 1 users of validation"):
        compare({"a": good, "b": evaluate(zeros, SPLIT, k=3, on="validation")})
    other = leave_one_out(ratings(user_id=[2, 2, 2, 2, 1]), num_movies=6)
    with pytest.raises(ValueError, match="they are not the same; evaluate both on one split"):
        compare({"a": good, "b": evaluate(zeros, other, k=3)})


def test_better_does_not_take_what_it_does_not_know():
    table = compare(results())
    with pytest.raises(ValueError, match="no model 'c' here; there are"):
        table.better("a", "c")
    with pytest.raises(ValueError, match="no model 'c' here"):
        table.better("c", "a")
    with pytest.raises(ValueError, match="metric='coverage'; compare by one of"):
        table.better("a", "b", metric="coverage")
    with pytest.raises(ValueError, match="num_resamples=0; give a whole number"):
        table.better("a", "b", num_resamples=0)


def scored(k=3, name="good", **settings):
    return evaluate(zeros, SPLIT, k=k, name=name, **settings)


def knows(*movies):
    return Histories(np.array(movies, np.int32), np.array([0, len(movies)]))


WHOLE_MESSAGES = [
    (
        lambda: random_split([1]),
        "random_split got a list; give a pandas DataFrame, as the ratings of "
        "rectutor.data.load_movielens()",
    ),
    (
        lambda: leave_one_out(None),
        "leave_one_out got a NoneType; give a pandas DataFrame, as the ratings of "
        "rectutor.data.load_movielens()",
    ),
    (
        lambda: by_time(ratings().iloc[:0]),
        "temporal_split got a frame without rows; give at least one interaction",
    ),
    (
        lambda: random_split(ratings().drop(columns="user_id")),
        "random_split: no column 'user_id' among ['movie_id', 'timestamp']; rename yours, or "
        "use rectutor.data.from_dataframe",
    ),
    (
        lambda: by_time(ratings().drop(columns="timestamp")),
        "temporal_split: no column 'timestamp' among ['user_id', 'movie_id']; without times use "
        "random_split",
    ),
    (
        lambda: leave_one_out(ratings(movie_id=[1, 2, -7, 3, 4])),
        "leave_one_out: movie_id -7 is no id; ids run from 1 (0 is padding) to 2,147,483,647: "
        "number them with rectutor.data.from_dataframe",
    ),
    (
        lambda: random_split(ratings(movie_id=[1, 2, 3, 4, 2**31])),
        "random_split: movie_id 2147483648 is no id; ids run from 1 (0 is padding) to "
        "2,147,483,647: number them with rectutor.data.from_dataframe",
    ),
    (
        lambda: random_split(ratings(user_id=list("abcde"))),
        "random_split: column user_id is str, as in 'a'; ids are integers from 1: number them "
        "with rectutor.data.from_dataframe",
    ),
    (
        lambda: leave_one_out(ratings(timestamp=[1, 2, np.nan, 4, 5])),
        "leave_one_out: timestamp is missing in row 2 (1 in all); fill it in or drop the rows",
    ),
    (
        lambda: by_time(ratings(timestamp=list("abcde"))),
        "temporal_split: column timestamp is str, as in 'a'; give seconds: "
        "rectutor.data.from_dataframe converts dates",
    ),
    (
        lambda: by_time(ratings(timestamp=[1, 2, 3, np.inf, np.inf])),
        "temporal_split: timestamp inf in row 3 is no time; fill it in or drop the row",
    ),
    (
        lambda: random_split(ratings(), 0.2, (4, 1)),
        "random_split got both test_fraction=0.2 and sizes=(4, 1); give one of them",
    ),
    (
        lambda: random_split(ratings(), 1),
        "test_fraction=1 is no share; give a number between 0 and 1, as 0.2",
    ),
    (
        lambda: random_split(ratings(), sizes=(5, 0)),
        "random_split would make train 5 and test 0 rows of 5; each needs at least one: change "
        "test_fraction or sizes, or give more rows",
    ),
    (
        lambda: random_split(ratings(), sizes=(5,)),
        "random_split got sizes=(5,); give (train, test) or (train, validation, test), whole "
        "numbers of rows",
    ),
    (
        lambda: random_split(ratings(), sizes=(4000, 2)),
        "random_split got sizes=(4000, 2), 4,002 rows in all, for 5 ratings; the sizes are not "
        "negative and add up to the number of rows",
    ),
    (
        lambda: by_time(ratings(), cutoff=1),
        "temporal_split at 1 leaves train empty: the timestamps run from 1 to 5; choose a "
        "moment after the first and not after the last",
    ),
    (
        lambda: by_time(ratings(), cutoff=6),
        "temporal_split at 6 leaves test empty: the timestamps run from 1 to 5; choose a "
        "moment after the first and not after the last",
    ),
    (
        lambda: by_time(ratings(), cutoff=float("inf")),
        "temporal_split got cutoff=inf; give a moment in the unit of timestamp",
    ),
    (
        lambda: by_time(ratings(), fraction=0.01),
        "temporal_split with fraction=0.01 asks for 0 of 5 rows; each part needs at least one",
    ),
    (
        lambda: by_time(ratings(), fraction=1.5),
        "fraction=1.5 is no share; give a number between 0 and 1, as 0.2",
    ),
    (
        lambda: by_time(ratings(), cutoff=3, validation_fraction=0.8),
        "temporal_split with validation_fraction=0.8 asks for 4 of 2 rows; each part needs at "
        "least one",
    ),
    (
        lambda: by_time(ratings(), cutoff=3, validation_fraction=2),
        "validation_fraction=2 is no share; give a number between 0 and 1, as 0.2",
    ),
    (
        lambda: by_time(ratings(), cutoff=3, validation_fraction=0.4),
        "temporal_split with validation_fraction=0.4 leaves train empty; lower it",
    ),
    (
        lambda: Split([], ratings(), ratings(), 2, 4),
        "Split(train=...) is a list; give a pandas DataFrame with the columns user_id and movie_id",
    ),
    (
        lambda: Split(ratings(), ratings(), ratings(), 1, 4),
        "Split.train has user_id 2, but the split is said to have only 1; raise num_users or "
        "num_movies",
    ),
    (
        lambda: Queries(np.array([1, 2], np.int32), QUERIES.histories),
        "Queries got 2 user_ids and 2 history offsets; histories go by position, so give one "
        "offset more than users",
    ),
    (lambda: evaluate(zeros, SPLIT, 3, on="x"), "on='x'; evaluate on 'test' or on 'validation'"),
    (
        lambda: queries_for(random_split(ratings()), "validation"),
        "split.validation has no interactions, so there is nobody to ask about; give user_ids, "
        "or more data",
    ),
    (lambda: queries_for(SPLIT, user_ids=["a"]), "user_ids=['a']; give integers, as [42]"),
    (
        lambda: queries_for(SPLIT, user_ids=[1, 3]),
        "user_ids has 3; users of this split run from 1 to 2",
    ),
    (
        lambda: evaluate(zeros, ratings(), 3),
        "evaluate got a DataFrame for split; give a Split, as rectutor.splits.leave_one_out"
        "(ratings)",
    ),
    (
        lambda: evaluate("a name", SPLIT, 3),
        "recommender is a str, which cannot be called; give a function of queries, or a fitted "
        "baseline",
    ),
    (
        lambda: evaluate(Popularity().fit(SPLIT, True), SPLIT, 3, on="validation"),
        "popularity was fitted on train and validation, so it has seen the validation targets; "
        "fit it with include_validation=False",
    ),
    (
        lambda: evaluate(zeros, SPLIT, 3, num_resamples=0),
        "num_resamples=0; give a whole number from 1",
    ),
    (lambda: evaluate(zeros, SPLIT, 3, batch_size=0), "batch_size=0; give a whole number from 1"),
    (
        lambda: evaluate(zeros, SPLIT, 7),
        "k=7; give a whole number from 1 to 6, the size of the catalogue",
    ),
    (
        lambda: evaluate(nan_for_user_1, SPLIT, 3),
        "nan_for_user_1 scored movie 5 NaN for user 1; look for a division by zero or a "
        "diverged training",
    ),
    (
        lambda: evaluate(lambda q: np.zeros((1, 6)), SPLIT, 3, name="no matter"),
        "<lambda> returned scores of shape (1, 6) for 1 queries; expected (1, 6 + 1): one row a "
        "query, one column a movie id, column 0 for padding",
    ),
    (
        lambda: recommend(lambda q: np.zeros(7), QUERIES, 3),
        "<lambda> returned scores of shape (7,) for 1 queries; expected (1, num_movies + 1): "
        "one row a query, one column a movie id, column 0 for padding",
    ),
    (
        lambda: recommend(lambda q: np.zeros((1, 3)), QUERIES, 1),
        "a history holds movie 3, but <lambda> scores movies 1 to 2; give one column for each "
        "movie of the catalogue",
    ),
    (
        lambda: recommend(zeros, Queries(np.array([1]), knows(-2, 3)), 3),
        "a history holds movie -2, but zeros scores movies 1 to 6; give one column for each "
        "movie of the catalogue",
    ),
    (
        lambda: recommend(zeros, Queries(np.array([1]), knows(0, 9)), 3),
        "a history holds movie 9, but zeros scores movies 1 to 6; give one column for each "
        "movie of the catalogue",
    ),
    (
        lambda: Split(ratings().drop(columns="movie_id"), ratings(), ratings(), 2, 4),
        "Split.train: no column 'movie_id' among ['user_id', 'timestamp']; rename yours, or use "
        "rectutor.data.from_dataframe",
    ),
    (
        lambda: evaluate(lambda q: None, SPLIT, 3),
        "<lambda> returned a NoneType that is no table of scores (dtype object); return floats "
        "(B, num_movies + 1)",
    ),
    (lambda: compare([]), "compare got no evaluation; give at least one"),
    (
        lambda: compare({"x": 0.5}),
        "compare got a float for 'x'; give what evaluate() returns",
    ),
    (
        lambda: compare([scored(), scored()]),
        "compare got the names ['good', 'good'], some twice; give evaluate(..., name=...) or a "
        "dict",
    ),
    (
        lambda: compare({"a": scored(), "b": scored(k=2)}),
        "'a' has k=3 and 'b' k=2; evaluate both with the same k",
    ),
    (
        lambda: compare({"a": scored(), "b": scored(on="validation")}),
        "'a' is on 1 users of test and 'b' on 1 users of validation, and they are not the same; "
        "evaluate both on one split",
    ),
    (
        lambda: compare(results()).better("a", "c"),
        "no model 'c' here; there are ['a', 'b']",
    ),
    (
        lambda: compare(results()).better("a", "b", "coverage"),
        "metric='coverage'; compare by one of ['hit_rate', 'ndcg', 'mrr']",
    ),
    (
        lambda: compare(results()).better("a", "b", num_resamples=0),
        "num_resamples=0; give a whole number from 1",
    ),
]


@pytest.mark.parametrize(("call", "message"), WHOLE_MESSAGES, ids=range(len(WHOLE_MESSAGES)))
def test_an_error_names_place_value_and_remedy(call, message):
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EASE(0), "regularization=0; give a positive number"),
        (lambda: EASE(-5.0), r"regularization=-5\.0"),
        (lambda: EASE(float("nan")), "regularization=nan"),
        (lambda: EASE(float("inf")), "regularization=inf"),
        (lambda: EASE("200"), "regularization='200'"),
        (lambda: EASE(True), "regularization=True"),
        (lambda: EASE(tau=0), "tau=0; give a positive number of interactions, or None"),
        (lambda: ItemKNN(tau=-1), "tau=-1"),
        (lambda: ItemKNN(tau="soon"), "tau='soon'"),
        (lambda: ItemKNN(tau=float("inf")), "tau=inf"),
    ],
)
def test_baselines_do_not_take(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [Popularity, ItemKNN, EASE])
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


def test_choose_needs_candidates_and_a_known_metric():
    with pytest.raises(ValueError, match="got no candidates"):
        choose(SPLIT, [])
    with pytest.raises(ValueError, match=r"metric='auc'; choose by one of \['hit_rate'"):
        choose(SPLIT, [Popularity()], metric="auc", k=2)
    with pytest.raises(ValueError, match=r"split\.validation has no interactions"):
        choose(random_split(ratings()), [Popularity()], k=2)


def test_one_user_and_one_movie_are_enough():
    one = leave_one_out(ratings(user_id=[1] * 5, movie_id=[1] * 5))
    for model in standard_baselines(one).values():
        result = evaluate(model, one, k=1)
        assert (result.hit_rate, result.num_seen_targets, result.coverage) == (0.0, 1, 0.0)
        assert evaluate(model, one, k=1, exclude_seen=False).hit_rate == 1.0
