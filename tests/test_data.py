"""The data set: its schema, the synthetic one, and the ones made of anyone's table."""

import math
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectutor import data

RATINGS_COLUMNS = {
    "user_id": "int32",
    "movie_id": "int32",
    "rating": "int8",
    "timestamp": "int64",
    "original_user_id": "int64",
    "original_movie_id": "int64",
}


def table(**columns):
    base = {
        "who": ["ann", "bob", "ann", "cy"],
        "what": ["tea", "tea", "jam", "ale"],
        "stars": [5, 4, 3, 1],
        "when": [30, 10, 20, 40],
        "name": ["Tea (1990)", "Other Tea (1991)", "Jam", "Ale (2001)"],
    }
    return pd.DataFrame(base | columns)


def load(frame, **changes):
    arguments = {"user": "who", "item": "what", "rating": "stars", "timestamp": "when"} | changes
    return data.from_dataframe(frame, **arguments)


# --- the data set itself ------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["data", "batches"])
def test_importing_it_imports_no_framework(module):
    code = (
        f"import sys, rectutor.{module}\n"
        "heavy = {'tensorflow', 'jax', 'keras', 'torch', 'scipy', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        f"assert not hasattr(rectutor.{module}, 'Other')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_data_set_is_fixed_and_looks_titles_up_by_arrays_of_any_shape():
    small = data.synthetic(5, 4, 12, seed=0)
    assert small.titles[0] == "(padding)"
    assert small.titles[np.array([[1, 2], [0, 4]])].shape == (2, 2)
    assert len(small.titles) == 5
    size = "12 interactions, 5 users, 4 movies"
    assert repr(small) == f"Dataset('synthetic' from 'synthetic': {size})"
    with pytest.raises(AttributeError):
        small.name = "other"


def test_require_returns_the_data_set_that_has_what_is_asked():
    made = data.synthetic(5, 4, 12, seed=0)
    what = ("ratings", "timestamps", "genres", "users")
    assert made.require(*what, min_users=5, min_movies=4, min_interactions=12) is made


def test_require_names_everything_that_is_lacking_and_the_remedy():
    plain = data.from_dataframe(table(), user="who", item="what")
    with pytest.raises(ValueError, match="cannot serve here") as caught:
        plain.require("ratings", "timestamps", "genres", "users", min_users=50, min_movies=9)
    message = str(caught.value)
    few = ("at least 50 users: there are 3", "at least 9 movies: there are 3")
    columns = ("from_dataframe(rating=...)", "from_dataframe(timestamp=...)", "genres", "users")
    assert [words for words in (*columns, *few) if words not in message] == []
    assert "interactions;" not in message


def test_require_knows_its_words():
    with pytest.raises(ValueError, match=r"require\('stars'\).*ratings, timestamps"):
        data.synthetic(5, 4, 12, seed=0).require("stars")


# --- synthetic ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made():
    return data.synthetic(300, 200, 12_000, seed=7)


def test_synthetic_data_has_the_schema_of_movielens(made):
    assert dict(made.ratings.dtypes.astype(str)) == RATINGS_COLUMNS
    assert list(made.movies) == ["movie_id", "title", "year", "genres", "original_movie_id"]
    assert made.movies["year"].dtype == "Int16"
    assert made.users["user_id"].tolist() == list(range(1, 301))
    assert made.movies["movie_id"].tolist() == list(range(1, 201))
    assert (made.num_users, made.num_movies, len(made.ratings)) == (300, 200, 12_000)
    assert made.rating_scale == (1, 5)
    assert set(made.ratings["rating"]) == {1, 2, 3, 4, 5}
    assert made.ratings["timestamp"].is_monotonic_increasing
    assert not made.ratings.duplicated(["user_id", "timestamp"]).any()


def test_synthetic_data_depends_on_the_seed_alone(made):
    again = data.synthetic(300, 200, 12_000, seed=7)
    other = data.synthetic(300, 200, 12_000, seed=8)
    for name in ("ratings", "movies", "users"):
        pd.testing.assert_frame_equal(getattr(made, name), getattr(again, name))
    assert not made.ratings["movie_id"].equals(other.ratings["movie_id"])


def hits_at_10(made, score):
    """How often the last movie of a user is among the ten with the highest scores, unseen ones."""
    ordered = made.ratings.sort_values(["user_id", "timestamp"])
    last = ordered.groupby("user_id").tail(1)
    rest = ordered.drop(last.index)
    before = rest.groupby("user_id").tail(1)["movie_id"].to_numpy()
    users, targets = last["user_id"].to_numpy(), last["movie_id"].to_numpy()
    scores = score(rest, users, before).astype(float)
    seen = np.zeros((made.num_users + 1, made.num_movies + 1), dtype=bool)
    seen[rest["user_id"], rest["movie_id"]] = True
    scores[seen[users]] = -np.inf
    scores[:, 0] = -np.inf
    return ((scores > scores[np.arange(len(users)), targets][:, None]).sum(axis=1) < 10).mean()


def test_order_matters_in_synthetic_data(made):
    """Counting what follows what comes near the generator's own knowledge, far above popularity."""

    def popularity(rest, users, before):
        counts = np.bincount(rest["movie_id"], minlength=made.num_movies + 1)
        return np.tile(counts, (len(users), 1))

    def followers(rest, users, before):
        same = rest["user_id"].to_numpy()[1:] == rest["user_id"].to_numpy()[:-1]
        counts = np.zeros((made.num_movies + 1, made.num_movies + 1))
        movies = rest["movie_id"].to_numpy()
        np.add.at(counts, (movies[:-1][same], movies[1:][same]), 1.0)
        return counts[before] + 1e-3 * popularity(rest, users, before)

    def oracle(rest, users, before):
        return data.synthetic_oracle(300, 200, seed=7).probabilities(users, before)

    popular, counted, best = (hits_at_10(made, s) for s in (popularity, followers, oracle))
    assert popular < 0.35
    assert counted > popular + 0.25
    assert counted < best + 0.03


def test_the_oracle_gives_probabilities_that_sum_to_one_and_none_to_padding():
    oracle = data.synthetic_oracle(20, 30, seed=1)
    law = oracle.probabilities(np.array([1, 2, 20]), np.array([0, 5, 30]))
    assert law.shape == (3, 31)
    np.testing.assert_allclose(law.sum(axis=1), 1.0)
    assert (law[:, 0] == 0).all()
    assert (law[:, 1:] > 0).all()


def test_transitions_of_synthetic_data_follow_the_oracle():
    """How often each movie follows another is what the law says, where little is ruled out."""
    made = data.synthetic(20_000, 60, 60_000, seed=3)
    oracle = data.synthetic_oracle(20_000, 60, seed=3)
    ordered = made.ratings.sort_values(["user_id", "timestamp"])
    first = ordered.groupby("user_id").nth(0)
    second = ordered.groupby("user_id").nth(1)
    both = first["user_id"].isin(second["user_id"]).to_numpy()
    before = first["movie_id"].to_numpy()[both]
    law = oracle.probabilities(second["user_id"], before)
    law[np.arange(len(before)), before] = 0.0  # nothing is seen twice
    law /= law.sum(axis=1, keepdims=True)
    expected = law.sum(axis=0)
    counted = np.bincount(second["movie_id"], minlength=61)
    spread = np.sqrt((law * (1 - law)).sum(axis=0)) + 1e-9
    assert np.abs((counted - expected) / spread)[1:].max() < 4.5


def test_tastes_matter_in_synthetic_ratings(made):
    """The biases leave much that a model of tastes can explain."""
    ratings = made.ratings
    oracle = data.synthetic_oracle(300, 200, seed=7)
    error = ratings["rating"] - oracle.stars(ratings["user_id"], ratings["movie_id"])
    stars = ratings["rating"] - ratings["rating"].mean()
    stars -= stars.groupby(ratings["movie_id"]).transform("mean")
    stars -= stars.groupby(ratings["user_id"]).transform("mean")
    assert math.sqrt((error**2).mean()) < 0.75
    assert math.sqrt((stars**2).mean()) > 0.9


@pytest.mark.parametrize(
    ("users", "movies", "ratings"),
    [(1, 1, 1), (1, 7, 7), (9, 1, 9), (5, 4, 20), (3, 100, 3), (40, 5, 111), (2, 3, 5)],
)
def test_synthetic_data_of_any_size_is_whole(users, movies, ratings):
    made = data.synthetic(users, movies, ratings, seed=2)
    assert len(made.ratings) == ratings
    assert not made.ratings.duplicated(["user_id", "movie_id"]).any()
    assert made.ratings["user_id"].nunique() == users
    assert made.ratings["movie_id"].between(1, movies).all()
    assert made.num_movies == movies


def test_a_million_synthetic_ratings_take_seconds_and_are_skewed_to_the_popular():
    started = time.process_time()
    made = data.synthetic(6_040, 3_706, 1_000_209, seed=0)
    assert time.process_time() - started < 8.0  # about 1.2 s where the machine is free
    assert made.ratings["movie_id"].value_counts().iloc[:371].sum() > 0.3 * 1_000_209


def test_synthetic_users_are_made_in_blocks_of_bounded_memory(monkeypatch):
    from rectutor import _synthetic

    monkeypatch.setattr(_synthetic, "_SEEN_CELLS", 1_000)
    made = data.synthetic(50, 40, 600, seed=0)
    assert not made.ratings.duplicated(["user_id", "movie_id"]).any()
    assert made.ratings["user_id"].value_counts().sum() == 600


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((0, 5, 5), ValueError, "num_users is 0; it must be at least 1"),
        ((5, 0, 5), ValueError, "num_movies is 0"),
        ((5, 5, 0), ValueError, "num_ratings is 0"),
        ((-3, 5, 5), ValueError, "num_users is -3"),
        ((5, 5, 4), ValueError, "num_ratings is 4; 5 users and 5 movies have room for 5 to 25"),
        ((5, 5, 26), ValueError, "num_ratings is 26"),
        ((5, 5, 20, -1), ValueError, "seed is -1"),
        ((5.0, 5, 20), TypeError, "num_users is 5.0; give a whole number"),
        ((5, "5", 20), TypeError, "num_movies is '5'; give a whole number"),
        ((5, 5, None), TypeError, "num_ratings is None; give a whole number"),
        ((5, 5, True), TypeError, "num_ratings is True; give a whole number"),
        ((5, 5, 20, 1.5), TypeError, "seed is 1.5"),
        ((2**40, 5, 2**41), ValueError, "it must be at most"),
    ],
)
def test_synthetic_refuses_what_it_cannot_make(arguments, error, words):
    with pytest.raises(error, match=words.replace("(", r"\(")):
        data.synthetic(*arguments)


# --- from_dataframe -----------------------------------------------------------------------------


def test_a_frame_becomes_a_data_set_of_the_same_schema():
    made = load(table(), title="name")
    assert made.ratings["user_id"].tolist() == [1, 2, 1, 3]
    assert made.ratings["movie_id"].tolist() == [3, 3, 2, 1]  # ale, jam, tea
    assert made.ratings["rating"].tolist() == [5, 4, 3, 1]
    assert made.ratings["timestamp"].tolist() == [30, 10, 20, 40]
    assert made.ratings["original_movie_id"].tolist() == ["tea", "tea", "jam", "ale"]
    assert list(made.ratings) == list(RATINGS_COLUMNS)
    kinds = made.ratings.dtypes.astype(str).tolist()
    assert kinds[:4] == list(RATINGS_COLUMNS.values())[:4]
    assert list(made.titles) == ["(padding)", "Ale (2001)", "Jam", "Tea (1990)"]
    assert made.movies["year"].tolist()[0] == 2001
    assert pd.isna(made.movies["year"].iloc[1])
    assert (made.source, made.has_ratings, made.has_timestamps) == ("dataframe", True, True)
    assert (made.num_users, made.num_movies, made.users) == (3, 3, None)
    assert made.rating_scale == (1, 5)


def test_without_ratings_and_times_they_are_one_and_the_row_number():
    made = data.from_dataframe(table(), user="who", item="what", name="drinks")
    assert made.ratings["rating"].tolist() == [1, 1, 1, 1]
    assert made.ratings["timestamp"].tolist() == [0, 1, 2, 3]
    assert (made.has_ratings, made.has_timestamps) == (False, False)
    assert list(made.titles[1:]) == ["ale", "jam", "tea"]
    assert made.name == "drinks"


def test_numeric_ids_are_numbered_in_their_own_order():
    made = load(table(who=[10, 9, 10, -1], what=[100, 100, 20, 3]))
    assert made.ratings["user_id"].tolist() == [3, 2, 3, 1]
    assert made.movies["original_movie_id"].tolist() == [3, 20, 100]
    assert list(made.titles[1:]) == ["3", "20", "100"]


@pytest.mark.parametrize(
    "ids",
    [
        ["b", "a", "b", "c"],
        [2**62, -5, 2**62, 7],
        [2.5, 0.5, 2.5, 9.0],
        ["x", 1, "x", (2, 3)],
        pd.to_datetime(["2020-01-02", "2020-01-01", "2020-01-02", "2021-01-01"]),
        pd.Categorical(["b", "a", "b", "c"]),
        pd.array([5, 3, 5, 9], dtype="Int64"),
        [True, False, True, True],
        ["", " ", "", "\u200b"],
        pd.Series(["\ud800", "a", "\ud800", "é"], dtype=object),
    ],
    ids=str,
)
def test_ids_of_any_kind_are_numbered_from_one(ids):
    made = load(table(who=ids, what=ids))
    first = made.ratings["user_id"].tolist()
    assert first[0] == first[2] != first[1]
    assert set(first) == set(range(1, made.num_users + 1))
    assert made.ratings["movie_id"].tolist() == first
    texts = [str(value) for value in pd.Series(ids)]
    assert made.titles[made.ratings["movie_id"]].tolist() == texts


def test_rows_keep_their_order_and_the_frame_is_left_alone_whatever_its_index():
    frame = pd.concat([table().set_index(pd.Index([9, 9, 4, 1]))] * 2)  # duplicates stay
    copy = frame.copy(deep=True)
    made = load(frame, title="name")
    pd.testing.assert_frame_equal(frame, copy)
    assert made.ratings.index.tolist() == list(range(8))
    assert made.ratings["rating"].tolist() == [5, 4, 3, 1] * 2
    assert made.ratings["timestamp"].tolist() == frame["when"].tolist()


@pytest.mark.parametrize(
    ("stars", "kind", "expected", "scale"),
    [
        ([5, 4, 3, 1], "int8", [5, 4, 3, 1], (1, 5)),
        ([5.0, 4.0, 3.0, 1.0], "int8", [5, 4, 3, 1], (1, 5)),
        ([4.5, 4.0, 3.0, 1.0], "float32", [4.5, 4.0, 3.0, 1.0], (1, 4.5)),
        ([500, 4, 3, 1], "float32", [500, 4, 3, 1], (1, 500)),
        ([-1, 0, 1, 2], "int8", [-1, 0, 1, 2], (-1, 2)),
        ([True, False, True, True], "int8", [1, 0, 1, 1], (0, 1)),
        (pd.array([5, 4, 3, 1], dtype="Int16"), "int8", [5, 4, 3, 1], (1, 5)),
        (["5", "4", "3", "1"], "int8", [5, 4, 3, 1], (1, 5)),
    ],
)
def test_ratings_take_the_smallest_type_that_keeps_them(stars, kind, expected, scale):
    made = load(table(stars=stars))
    assert made.ratings["rating"].dtype == kind
    assert made.ratings["rating"].tolist() == expected
    assert made.rating_scale == scale


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (pd.to_datetime(["1970-01-02"] * 4), [86_400] * 4),
        (pd.to_datetime(["1970-01-02"] * 4, utc=True), [86_400] * 4),
        (pd.to_datetime(["1970-01-02 01:00"] * 4).tz_localize("Europe/Paris"), [86_400] * 4),
        (pd.to_datetime(["1969-12-31"] * 4).astype("datetime64[ms]"), [-86_400] * 4),
        ([1.9, 1.1, 2.0, -0.5], [1, 1, 2, -1]),
        (np.array([1, 2, 3, 4], dtype=np.uint32), [1, 2, 3, 4]),
        (pd.array([1, 2, 3, 4], dtype="Int64"), [1, 2, 3, 4]),
    ],
)
def test_times_become_whole_seconds(when, expected):
    assert load(table(when=when)).ratings["timestamp"].tolist() == expected


UNICODE_TROUBLE = [
    "Amélie",
    "Ame\u0301lie",  # the same to the eye
    "\u202eright to left\u202c",
    "\U0001f3ac\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "tab\tnew\nline\r\x00null",
    "\ufeffmark",
    "a" * 10_000,
    "<b>&amp;</b> $x$ | * _ `",
    "七人の侍 (1954)",
    "\ud800 alone",
]


def test_titles_with_every_unicode_trouble_are_kept():
    titles = pd.Series(UNICODE_TROUBLE, dtype=object)
    frame = pd.DataFrame({"u": 1, "m": range(len(titles)), "t": titles})
    made = data.from_dataframe(frame, user="u", item="m", title="t")
    assert made.titles[1:].tolist() == UNICODE_TROUBLE
    assert made.movies["year"].dropna().tolist() == [1954]


def test_missing_titles_are_the_ids_and_others_are_text():
    made = load(table(name=pd.Series([None, 7, np.nan, None], dtype=object)), title="name")
    assert list(made.titles[1:]) == ["ale", "jam", "7"]


@pytest.mark.parametrize(
    ("frame", "changes", "error", "words"),
    [
        (None, {}, TypeError, "from_dataframe got a NoneType; give a pandas DataFrame"),
        ([1, 2], {}, TypeError, "got a list"),
        (table().iloc[:0], {}, ValueError, "frame has no rows"),
        (table(), {"user": "nobody"}, ValueError, r"user='nobody': the frame has 0 columns"),
        (table(), {"item": "nothing"}, ValueError, r"item='nothing'.*'who', 'what'"),
        (table(), {"rating": "x"}, ValueError, "rating='x'"),
        (table(), {"timestamp": "x"}, ValueError, "timestamp='x'"),
        (table(), {"title": "x"}, ValueError, "title='x'"),
        (table(), {"user": None}, TypeError, "user must be the name of a column"),
        (table(), {"rating": 3}, TypeError, "rating must be the name of a column.* not 3"),
        (table()[[*table(), "who"]], {}, ValueError, "user='who': the frame has 2 columns"),
        (table(what=[[1], [2], [3], [4]]), {}, TypeError, r"'what' \(item\) holds ids that cannot"),
    ],
)
def test_from_dataframe_names_what_is_wrong(frame, changes, error, words):
    with pytest.raises(error, match=words):
        load(frame, **changes)


nan, inf = math.nan, math.inf
A_DAY = pd.to_datetime(["2020-01-01"] * 4)


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("who", ["a", None, "b", None], r" \(user\) is missing; .*row 1: .*row 3: .*\(2 in all\)"),
        ("what", [1.0, nan, 2.0, 3.0], r" \(item\).*row 1: .*nan"),
        ("stars", [5, nan, 3, 1], r" \(rating\).*row 1: .*nan"),
        ("stars", [5, inf, 3, 1], r" \(rating\).*row 1: .*inf"),
        ("stars", [5, 1e300, 3, 1], r" \(rating\) is more than float32 can tell .*row 1: .*1e"),
        ("stars", ["5", "good", "3", "1"], r".*row 1: 'good' \(1 in all"),
        ("stars", A_DAY, r" \(rating\) is no finite number.*, \.\.\. \(4 in all\)"),
        ("when", [1.0, nan, 2.0, 3.0], r" \(timestamp\) is missing"),
        ("when", [1.0, inf, 2.0, 3.0], r".*is out of range; .*row 1: .*inf"),
        ("when", [1, 2**63, 2, 3], ".*is out of range; .*row 1"),
        ("when", ["2020-01-01"] * 4, r".*'2020-01-01'.*pd.to_datetime"),
        ("when", A_DAY.where([True, False, True, True]), ".*is missing; .*row 1: NaT"),
    ],
)
def test_from_dataframe_names_the_rows_that_are_wrong(column, values, words):
    with pytest.raises(ValueError, match=f"column '{column}'{words}"):
        load(table(**{column: values}))


NUMBERS = st.integers(-(2**40), 2**40)
ROWS = st.tuples(st.text(max_size=3), NUMBERS, st.integers(1, 5), NUMBERS)


@given(st.lists(ROWS, min_size=1, max_size=30))
def test_nothing_of_a_frame_is_lost(rows):
    """Every interaction can be read back from the data set."""
    frame = pd.DataFrame(rows, columns=["u", "m", "r", "t"])
    made = data.from_dataframe(frame, user="u", item="m", rating="r", timestamp="t")
    assert made.ratings["original_user_id"].tolist() == frame["u"].tolist()
    ids = made.movies["original_movie_id"].to_numpy()
    assert ids[made.ratings["movie_id"] - 1].tolist() == frame["m"].tolist()
    assert made.ratings[["rating", "timestamp"]].to_numpy().tolist() == [[r[2], r[3]] for r in rows]
    assert sorted(set(made.ratings["user_id"])) == list(range(1, made.num_users + 1))
    assert np.all(np.diff(ids) > 0)


def test_ten_million_rows_are_fine():
    rng = np.random.default_rng(0)
    size = 10_000_000
    users, movies = rng.integers(0, 100_000, size), rng.integers(0, 20_000, size)
    stars = rng.integers(1, 6, size, dtype=np.int8)
    frame = pd.DataFrame({"u": users, "m": movies, "r": stars, "t": np.arange(size)})
    started = time.process_time()
    made = data.from_dataframe(frame, user="u", item="m", rating="r", timestamp="t")
    assert time.process_time() - started < 30.0  # about 2 s where the machine is free
    assert (made.num_users, made.num_movies, len(made.ratings)) == (100_000, 20_000, size)
