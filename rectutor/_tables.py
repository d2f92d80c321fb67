"""The one schema of the book's tables, and the parsers that bring each source's files to it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

GENRES_100K = (  # noqa: SIM905 (a list of a name a line is no easier to read)
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|"
    "Film-Noir|Horror|Musical|Mystery|Romance|Sci-Fi|Thriller|War|Western"
).split("|")

# MovieLens 1M stores an index; these are the words its README gives.
_OCCUPATIONS_1M = (  # noqa: SIM905
    "other|academic/educator|artist|clerical/admin|college/grad student|customer service|"
    "doctor/health care|executive/managerial|farmer|homemaker|K-12 student|lawyer|programmer|"
    "retired|sales/marketing|scientist|self-employed|technician/engineer|tradesman/craftsman|"
    "unemployed|writer"
).split("|")

# How MovieLens 100K and 1M spell what others spell their own way.
_SPELLING = {"Children": "Children's", "Unknown": "unknown", "(no genres listed)": "unknown"}

_TEXT = {"title", "genres", "year", "gender", "occupation", "zip_code"}
_YEAR = re.compile(r"\(([0-9]{4})\)(?:\s*\([A-Z]+\))?\s*$")


class Tables(NamedTuple):
    """The three tables of a data set, in the book's schema (`book/data.md` lists the columns)."""

    ratings: pd.DataFrame
    movies: pd.DataFrame
    users: pd.DataFrame | None


def number_ids(original: pd.Series[Any], role: str) -> tuple[np.ndarray, Any]:
    """Number ids from 1 in the order of the originals (of their text, where they have none).

    Args:
        original: `(n,)` ids as the source has them, none missing.
        role: what an error calls them.

    Returns:
        `(n,)` int32 ids from 1, and the sorted original ids: id `k` stands for entry `k - 1`.

    Raises:
        TypeError: the ids cannot be told apart (lists, for example).
    """
    try:
        codes, values = pd.factorize(original)
    except TypeError as error:
        raise TypeError(
            f"column {original.name!r} ({role}) holds ids that cannot be told apart ({error});"
            " make them numbers or strings"
        ) from error
    try:
        order = np.asarray(values.argsort())
    except TypeError:  # numbers beside strings
        order = np.argsort(np.array([str(value) for value in values], dtype=object), kind="stable")
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(1, len(order) + 1)
    return rank[codes], values.take(order)


def ratings_table(
    users: pd.Series[Any], movies: pd.Series[Any], rating: np.ndarray, timestamp: np.ndarray
) -> tuple[pd.DataFrame, Any, Any]:
    """The ratings in the book's schema, and the sorted original ids of users and of movies."""
    user_id, user_values = number_ids(users, "user")
    movie_id, movie_values = number_ids(movies, "item")
    ratings = pd.DataFrame(
        {
            "user_id": user_id,
            "movie_id": movie_id,
            "rating": rating,
            "timestamp": timestamp,
            "original_user_id": users.reset_index(drop=True),
            "original_movie_id": movies.reset_index(drop=True),
        }
    )
    return ratings, user_values, movie_values


def movies_table(original: Any, titles: pd.Series[Any], genres: Iterable[str]) -> pd.DataFrame:
    """The catalogue in the book's schema, in the order of the sorted original ids."""
    found = (_YEAR.search(title) for title in titles)
    years = [int(match.group(1)) if match else None for match in found]
    return pd.DataFrame(
        {
            "movie_id": np.arange(1, len(original) + 1, dtype=np.int32),
            "title": titles,
            "year": pd.array(years, dtype="Int16"),
            "genres": pd.Series(genres, dtype="str"),
            "original_movie_id": pd.Series(original, dtype=original.dtype),
        }
    )


def _build(
    interactions: pd.DataFrame,
    movies: pd.DataFrame,
    users: pd.DataFrame | None = None,
    stars: type[np.number[Any]] = np.int8,
) -> Tables:
    """Bring a source's columns to the schema: contiguous ids, rated movies only.

    Args:
        interactions: columns `user`, `movie` (original ids), `rating`, `timestamp` (seconds).
        movies: columns `movie` (original id), `title` (with the year) and `genres`.
        users: columns `user` (original id), `age`, `gender`, `occupation`, `zip_code`, or None.
        stars: the type of the ratings.

    Raises:
        ValueError: a rated movie or a user has no row of its own.
    """
    ratings, user_values, movie_values = ratings_table(
        interactions["user"].astype(np.int64),
        interactions["movie"].astype(np.int64),
        interactions["rating"].to_numpy().astype(stars),
        interactions["timestamp"].to_numpy().astype(np.int64),
    )
    listed = _rows_of(movies, "movie", movie_values)
    titles = listed["title"].astype("str").str.strip()
    movie_frame = movies_table(movie_values, titles, listed["genres"])
    user_frame = None
    if users is not None:
        known = _rows_of(users, "user", user_values)
        user_frame = pd.DataFrame(
            {
                "user_id": np.arange(1, len(user_values) + 1, dtype=np.int32),
                "age": known["age"].astype(np.int16),
                "gender": known["gender"].astype("str"),
                "occupation": known["occupation"].astype("str"),
                "zip_code": known["zip_code"].astype("str"),
                "original_user_id": user_values,
            }
        )
    return Tables(ratings, movie_frame, user_frame)


def _rows_of(frame: pd.DataFrame, key: str, values: Any) -> pd.DataFrame:
    """The rows of `frame` whose `key` is in `values`, in that order."""
    position = pd.Index(frame[key]).get_indexer(values)
    if (position < 0).any():
        missing = values[position < 0][:5].tolist()
        raise ValueError(f"the {key}s {missing} are rated but not listed; get the archive anew")
    found: pd.DataFrame = frame.iloc[position].reset_index(drop=True)
    return found


def _read(text: bytes, names: str, *, separator: str = "\t", **how: Any) -> Any:
    """Parse delimited text; fields of `_TEXT` stay as they are written, leading zeros and all.

    `how` goes to pandas; with `header=0` the first line is dropped.
    """
    columns = names.split()
    options = {"header": None, "quoting": 3, "encoding": "utf-8"} | how
    return pd.read_csv(
        io.BytesIO(text),
        sep=separator,
        names=columns,
        keep_default_na=False,
        dtype={name: "str" for name in columns if name in _TEXT},
        **options,
    )


def _interactions(text: bytes, *, separator: str = "\t", half: bool = False, **how: Any) -> Any:
    """Parse `user, movie, rating, timestamp` lines of whole numbers; stars may be `half` ones."""
    frame = _read(text, "user movie rating timestamp", separator=separator, **how)
    for name in frame:
        if frame[name].dtype.kind != "i" and not (
            half and name == "rating" and frame[name].dtype.kind == "f"
        ):
            kind = "a number" if half and name == "rating" else "an integer"
            raise ValueError(f"the ratings' column {name!r} holds something that is not {kind}")
    return frame


def _respelled(genres: Iterable[Iterable[str]]) -> list[str]:
    """Lists of names to "Action|Children's"."""
    return ["|".join(_SPELLING.get(name, name) for name in row) for row in genres]


def parse_100k(members: dict[str, bytes]) -> Tables:
    """Parse MovieLens 100K: `u.data`, `u.item` (latin-1, `|` between fields) and `u.user`."""
    flags = [f"genre{k}" for k in range(len(GENRES_100K))]
    names = " ".join(["movie title released video url", *flags])
    items = _read(members["u.item"], names, separator="|", encoding="latin-1")
    items["genres"] = [
        "|".join(GENRES_100K[k] for k in np.flatnonzero(row)) for row in items[flags].to_numpy()
    ]
    names = "user age gender occupation zip_code"
    users = _read(members["u.user"], names, separator="|", encoding="latin-1")
    return _build(_interactions(members["u.data"]), items, users)


def parse_1m(members: dict[str, bytes]) -> Tables:
    """Parse MovieLens 1M: latin-1 files `ratings.dat`, `movies.dat`, `users.dat`, `::` between."""
    movies = _double_colon(members["movies.dat"], "movie title genres")
    movies["movie"] = movies["movie"].astype(np.int64)
    users = _double_colon(members["users.dat"], "user gender age occupation zip_code")
    users = users.astype({"user": np.int64, "age": np.int64, "occupation": np.int64})
    users["occupation"] = [_OCCUPATIONS_1M[k] for k in users["occupation"]]
    # pandas' fast reader knows separators of one character only.
    return _build(_interactions(members["ratings.dat"].replace(b"::", b"\t")), movies, users)


def _double_colon(text: bytes, names: str) -> pd.DataFrame:
    """Parse lines of fields with `::` between them."""
    columns = names.split()
    rows = [line.split("::") for line in text.decode("latin-1").split("\n") if line.strip()]
    wrong = next((k for k, row in enumerate(rows) if len(row) != len(columns)), None)
    if wrong is not None:
        raise ValueError(f"line {wrong + 1} has {len(rows[wrong])} fields, not {columns}")
    return pd.DataFrame([[field.strip() for field in row] for row in rows], columns=columns)


def parse_latest(members: dict[str, bytes]) -> Tables:
    """Parse MovieLens latest-small: `ratings.csv` with half stars, `movies.csv`, both UTF-8."""
    movies = _read(members["movies.csv"], "movie title genres", separator=",", header=0, quoting=0)
    movies["genres"] = _respelled(movies["genres"].str.split("|"))
    ratings = _interactions(members["ratings.csv"], separator=",", header=0, half=True)
    return _build(ratings, movies, stars=np.float32)


def parse_recbole(members: dict[str, bytes]) -> Tables:
    """Parse RecBole's copy of MovieLens 100K, whose titles have lost their year to a column."""
    items = _read(members["ml-100k.item"], "movie title year genres", header=0)
    # One movie has neither title nor year; RecBole spells the placeholder its own way. The last
    # brackets of another hold no year but "V", for video.
    titles = items["title"].str.strip() + " (" + items["year"].str.strip() + ")"
    items["title"] = titles.replace({"unkonwn (unkonwn)": "unknown"})
    items["genres"] = items["genres"].str.replace(" ", "|")
    users = _read(members["ml-100k.user"], "user age gender occupation zip_code", header=0)
    return _build(_interactions(members["ml-100k.inter"], header=0), items, users)


def parse_tfds(
    ratings: dict[str, np.ndarray],
    movies: list[dict[str, Any]],
    genre_name: Callable[[int], str],
) -> Tables:
    """Bring the records of TensorFlow Datasets to the schema.

    TFDS stores its records in a shuffled order and forgets the file's: rows come back sorted by
    time, then user, then movie.

    Args:
        ratings: `(n,)` arrays by TFDS's names, texts as bytes.
        movies: one record a movie by TFDS's names.
        genre_name: from TFDS's number of a genre to its name.
    """
    age = "raw_user_age" if "raw_user_age" in ratings else "bucketized_user_age"
    names = {
        "user": "user_id",
        "movie": "movie_id",
        "rating": "user_rating",
        "timestamp": "timestamp",
        "age": age,
        "gender": "user_gender",
        "occupation": "user_occupation_text",
        "zip_code": "user_zip_code",
    }
    table = pd.DataFrame({name: ratings[key] for name, key in names.items()})
    table = table.astype(dict.fromkeys(("user", "movie", "rating", "timestamp"), np.int64))
    table["gender"] = np.where(table["gender"], "M", "F")
    users = table.drop_duplicates("user").copy()
    for name in ("occupation", "zip_code"):
        users[name] = [text.decode() for text in users[name]]
    catalogue = pd.DataFrame(
        {
            "movie": [int(record["movie_id"]) for record in movies],
            "title": [record["movie_title"].decode() for record in movies],
            "genres": _respelled(map(genre_name, record["movie_genres"]) for record in movies),
        }
    )
    order = ["timestamp", "user", "movie"]
    return _build(table.sort_values(order, ignore_index=True), catalogue, users)
