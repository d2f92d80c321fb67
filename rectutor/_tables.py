"""The one schema of the book's tables, and the parsers that bring each source's files to it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

#: Raised by one whenever a column, its type or its meaning changes: older cache files are rebuilt.
SCHEMA_VERSION = 1

_GENRES_100K = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)

# MovieLens 1M stores an index; these are the words its README gives.
_OCCUPATIONS_1M = (
    "other",
    "academic/educator",
    "artist",
    "clerical/admin",
    "college/grad student",
    "customer service",
    "doctor/health care",
    "executive/managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales/marketing",
    "scientist",
    "self-employed",
    "technician/engineer",
    "tradesman/craftsman",
    "unemployed",
    "writer",
)

_TEXT = {"title", "genres", "year", "gender", "occupation", "zip_code"}
_YEAR = re.compile(r"\(([0-9]{4})\)(?:\s*\([A-Z]+\))?\s*$")


class Tables(NamedTuple):
    """The three tables of a data set, in the book's schema (`book/data.md` lists the columns)."""

    ratings: pd.DataFrame
    movies: pd.DataFrame
    users: pd.DataFrame | None


def relabel(original: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number ids from 1 in the order of the originals.

    Args:
        original: `(n,)` ids as the source has them.

    Returns:
        `(n,)` int32 ids from 1, and the sorted original ids: id `k` stands for entry `k - 1`.
    """
    values, inverse = np.unique(original, return_inverse=True)
    return (inverse + 1).astype(np.int32), values


def release_year(titles: Iterable[str]) -> pd.Series[Any]:
    """The year in brackets at the end of a title, as nullable Int16."""
    found = (_YEAR.search(title) for title in titles)
    years = [int(match.group(1)) if match else None for match in found]
    return pd.Series(pd.array(years, dtype="Int16"))


def build(
    interactions: dict[str, np.ndarray],
    movies: dict[str, Any],
    users: dict[str, Any] | None,
) -> Tables:
    """Bring a source's columns to the schema: contiguous ids, rated movies only.

    Args:
        interactions: `(n,)` arrays `user`, `movie` (original ids), `rating`, `timestamp` (seconds).
        movies: columns `movie` (original id), `title` (with the year) and `genres`.
        users: columns `user` (original id) and whatever else is known, or None.

    Raises:
        ValueError: a rated movie or a user has no row of its own.
    """
    user_id, user_values = relabel(interactions["user"])
    movie_id, movie_values = relabel(interactions["movie"])
    ratings = pd.DataFrame(
        {
            "user_id": user_id,
            "movie_id": movie_id,
            "rating": interactions["rating"].astype(np.int8),
            "timestamp": interactions["timestamp"].astype(np.int64),
            "original_user_id": interactions["user"].astype(np.int64),
            "original_movie_id": interactions["movie"].astype(np.int64),
        }
    )
    listed = _rows_of(pd.DataFrame(movies), "movie", movie_values)
    titles = listed["title"].astype("str").str.strip()
    movie_frame = pd.DataFrame(
        {
            "movie_id": np.arange(1, len(movie_values) + 1, dtype=np.int32),
            "title": titles,
            "year": release_year(titles),
            "genres": listed["genres"].astype("str"),
            "original_movie_id": movie_values.astype(np.int64),
        }
    )
    user_frame = None
    if users is not None:
        known = _rows_of(pd.DataFrame(users), "user", user_values).drop(columns="user")
        user_frame = pd.concat(
            [
                pd.DataFrame({"user_id": np.arange(1, len(user_values) + 1, dtype=np.int32)}),
                known,
                pd.DataFrame({"original_user_id": user_values.astype(np.int64)}),
            ],
            axis=1,
        )
    return Tables(ratings, movie_frame, user_frame)


def _rows_of(frame: pd.DataFrame, key: str, values: np.ndarray) -> pd.DataFrame:
    """The rows of `frame` whose `key` is in `values`, in that order."""
    position = pd.Index(frame[key]).get_indexer(pd.Index(values))
    if (position < 0).any():
        missing = values[position < 0][:5].tolist()
        raise ValueError(f"the {key}s {missing} are rated but not listed; get the archive anew")
    found: pd.DataFrame = frame.iloc[position].reset_index(drop=True)
    return found


def _read(text: bytes, names: list[str], *, separator: str, header: int | None = None) -> Any:
    """Parse delimited text; fields of `_TEXT` stay as they are written, leading zeros and all."""
    return pd.read_csv(
        io.BytesIO(text),
        sep=separator,
        header=header,
        names=names,
        quoting=3,
        keep_default_na=False,
        dtype={name: "str" for name in names if name in _TEXT},
        encoding="latin-1" if header is None else "utf-8",
    )


def _interactions(text: bytes, *, header: int | None = None) -> dict[str, np.ndarray]:
    """Parse tab-separated `user, movie, rating, timestamp` lines of whole numbers."""
    names = ["user", "movie", "rating", "timestamp"]
    frame = _read(text, names, separator="\t", header=header)
    for name in names:
        if frame[name].dtype.kind != "i":
            raise ValueError(f"the ratings' column {name!r} holds something that is not an integer")
    return {name: frame[name].to_numpy() for name in names}


def parse_100k(members: dict[str, bytes]) -> Tables:
    """Parse MovieLens 100K: `u.data`, `u.item` (latin-1, `|` between fields) and `u.user`."""
    flags = [f"genre {genre}" for genre in _GENRES_100K]
    names = ["movie", "title", "released", "video", "url", *flags]
    items = _read(members["u.item"], names, separator="|")
    items["genres"] = _join_genres(items[flags].to_numpy())
    users = _read(
        members["u.user"], ["user", "age", "gender", "occupation", "zip_code"], separator="|"
    )
    return build(
        _interactions(members["u.data"]),
        {name: items[name] for name in ("movie", "title", "genres")},
        _user_columns(users),
    )


def _join_genres(flags: np.ndarray) -> list[str]:
    """`(movies, 19)` zeros and ones to "Action|Sci-Fi"."""
    return ["|".join(_GENRES_100K[k] for k in np.flatnonzero(row)) for row in flags]


def _user_columns(users: pd.DataFrame) -> dict[str, Any]:
    """The users' columns with the types of the schema."""
    return {
        "user": users["user"].to_numpy(),
        "age": users["age"].to_numpy().astype(np.int16),
        "gender": users["gender"].astype("str"),
        "occupation": users["occupation"].astype("str"),
        "zip_code": users["zip_code"].astype("str"),
    }


def parse_1m(members: dict[str, bytes]) -> Tables:
    """Parse MovieLens 1M: latin-1 files `ratings.dat`, `movies.dat`, `users.dat`, `::` between."""
    movies = _double_colon(members["movies.dat"], ["movie", "title", "genres"])
    movies["movie"] = movies["movie"].astype(np.int64)
    users = _double_colon(members["users.dat"], ["user", "gender", "age", "occupation", "zip_code"])
    for name in ("user", "age", "occupation"):
        users[name] = users[name].astype(np.int64)
    users["occupation"] = [_OCCUPATIONS_1M[k] for k in users["occupation"]]
    # pandas' fast reader knows separators of one character only.
    interactions = _interactions(members["ratings.dat"].replace(b"::", b"\t"))
    return build(
        interactions,
        {name: movies[name] for name in ("movie", "title", "genres")},
        _user_columns(users),
    )


def _double_colon(text: bytes, names: list[str]) -> pd.DataFrame:
    """Parse lines of fields with `::` between them."""
    rows = [line.split("::") for line in text.decode("latin-1").split("\n") if line.strip()]
    wrong = next((k for k, row in enumerate(rows) if len(row) != len(names)), None)
    if wrong is not None:
        raise ValueError(f"line {wrong + 1} has {len(rows[wrong])} fields, not {names}")
    return pd.DataFrame([[field.strip() for field in row] for row in rows], columns=names)


def parse_recbole(members: dict[str, bytes]) -> Tables:
    """Parse RecBole's copy of MovieLens 100K, whose titles have lost their year to a column."""
    items = _read(
        members["ml-100k.item"], ["movie", "title", "year", "genres"], separator="\t", header=0
    )
    titles = items["title"].astype("str").str.strip()
    years = items["year"].astype("str").str.strip()
    # One movie has neither title nor year; RecBole spells the placeholder its own way. The last
    # brackets of another hold no year but "V", for video.
    titles = (titles + " (" + years + ")").replace({"unkonwn (unkonwn)": "unknown"})
    users = _read(
        members["ml-100k.user"],
        ["user", "age", "gender", "occupation", "zip_code"],
        separator="\t",
        header=0,
    )
    return build(
        _interactions(members["ml-100k.inter"], header=0),
        {
            "movie": items["movie"],
            "title": titles,
            "genres": items["genres"].astype("str").str.replace(" ", "|"),
        },
        _user_columns(users),
    )


def parse_tfds(
    ratings: dict[str, np.ndarray], movies: dict[str, Any], users: dict[str, np.ndarray]
) -> Tables:
    """Bring the records of TensorFlow Datasets to the schema.

    TFDS stores its records in a shuffled order and forgets the file's: rows come back sorted by
    time, then user, then movie.

    Args:
        ratings: `(n,)` arrays `user`, `movie`, `rating`, `timestamp`.
        movies: `movie`, `title` and `genres` (TFDS's spelling, a list of names each).
        users: one entry a rating: `age`, `gender` (True for M), `occupation`, `zip_code`.
    """
    order = np.lexsort((ratings["movie"], ratings["user"], ratings["timestamp"]))
    _, first = np.unique(ratings["user"], return_index=True)
    spelling = {"Children": "Children's", "Unknown": "unknown"}
    return build(
        {name: column[order] for name, column in ratings.items()},
        {
            "movie": movies["movie"],
            "title": movies["title"],
            "genres": ["|".join(spelling.get(g, g) for g in row) for row in movies["genres"]],
        },
        _user_columns(
            pd.DataFrame(
                {
                    "user": ratings["user"][first],
                    "age": users["age"][first],
                    "gender": np.where(users["gender"][first], "M", "F"),
                    "occupation": users["occupation"][first],
                    "zip_code": users["zip_code"][first],
                }
            )
        ),
    )
