"""Ratings as tables: MovieLens, made-up data, or your own frame."""

from __future__ import annotations

import html
import logging
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from rectutor import _sources, _synthetic, checks
from rectutor._tables import Tables, movies_table, ratings_table
from rectutor.environment import in_notebook, is_on

__all__ = [
    "Dataset",
    "FallbackDataWarning",
    "from_dataframe",
    "load_movielens",
    "synthetic",
    "synthetic_oracle",
]

logger = logging.getLogger("rectutor.data")

_NAMES = ("100k", "1m", "latest-small")
_SOURCES = ("auto", "grouplens", "pypi", "tfds", "included")


class FallbackDataWarning(UserWarning):
    """Another data set was asked for, and the one that the package brings is what there is."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Who rated what, when, and what it is called; one schema whatever the source.

    Attributes:
        name: what it is called: `"100k"`, `"1m"`, `"latest-small"`, `"synthetic"` or a name of
            your own.
        source: where it came from: `"grouplens"`, `"pypi"`, `"tfds"`, `"included"`,
            `"synthetic"` or `"dataframe"`.
        ratings: one row an interaction, in the order of the source: `user_id`, `movie_id` (int32,
            from 1), `rating` (stars; int8 where they are whole, else float32), `timestamp` (int64,
            seconds since 1970), `original_user_id`, `original_movie_id`.
        movies: one row a movie of the catalogue: `movie_id`, `title` (with the year), `year`
            (Int16, may be missing), `genres` ("Action|Sci-Fi"), `original_movie_id`.
        users: one row a user (`user_id`, `age`, `gender`, `occupation`, `zip_code`,
            `original_user_id`), or None where the source has none.
        num_users: how many users there are, which is the highest `user_id`.
        num_movies: how many movies there are, which is the highest `movie_id`.
        has_ratings: whether `rating` was given; without, it is 1 throughout.
        has_timestamps: whether `timestamp` was given; without, it is the row's number.
        rating_scale: the lowest and the highest rating that can be given, in stars.
    """

    name: str
    source: str
    ratings: pd.DataFrame
    movies: pd.DataFrame
    users: pd.DataFrame | None
    num_users: int
    num_movies: int
    has_ratings: bool = True
    has_timestamps: bool = True
    rating_scale: tuple[float, float] = (1.0, 5.0)

    @cached_property
    def titles(self) -> np.ndarray:
        """`(num_movies + 1,)` titles by `movie_id`: `titles[ids]` has the shape of `ids`."""
        result = np.empty(self.num_movies + 1, dtype=object)
        result[0] = "(padding)"
        result[1:] = self.movies["title"].to_numpy(dtype=object)
        return result

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r} from {self.source!r}: {len(self.ratings):,} interactions,"
            f" {self.num_users:,} users, {self.num_movies:,} movies)"
        )

    def require(
        self, *what: str, min_users: int = 0, min_movies: int = 0, min_interactions: int = 0
    ) -> Dataset:
        """Say at once, and in words, when the data cannot serve.

        Args:
            *what: `"ratings"`, `"timestamps"`, `"genres"` or `"users"`.
            min_users: how many users there must be.
            min_movies: how many movies there must be.
            min_interactions: how many rows `ratings` must have.

        Returns:
            This data set, so that the call can be chained.

        Raises:
            ValueError: the data lacks one of them (the message lists all that is lacking, with
                the remedy), or `what` is not a name above.
        """
        remedies = {
            "ratings": (self.has_ratings, "ratings: name their column, from_dataframe(rating=...)"),
            "timestamps": (
                self.has_timestamps,
                "timestamps: name their column, from_dataframe(timestamp=...)",
            ),
            "genres": (
                bool((self.movies["genres"] != "").any()),
                "genres: fill the column `genres` of `movies`, or use MovieLens",
            ),
            "users": (self.users is not None, "user features: use MovieLens"),
        }
        lacking = []
        for name in what:
            if name not in remedies:
                raise ValueError(f"require({name!r}): choose from {', '.join(remedies)}")
            present, remedy = remedies[name]
            if not present:
                lacking.append(remedy)
        counts = (
            ("users", self.num_users, min_users),
            ("movies", self.num_movies, min_movies),
            ("interactions", len(self.ratings), min_interactions),
        )
        for name, found, least in counts:
            if found < least:
                lacking.append(f"at least {least:,} {name}: there are {found:,}; use more data")
        if lacking:
            raise ValueError(f"{self!r} cannot serve here. It needs " + "; and ".join(lacking))
        return self


def load_movielens(name: str = "100k", source: str = "auto") -> Dataset:
    """Load MovieLens 100K, 1M or latest-small.

    `latest-small` travels with the package. For the others `source="auto"` tries, in this order:
    an archive in the folder that the environment variable `RECTUTOR_ARCHIVES` names; the archive
    that an earlier load downloaded; a download from GroupLens; and for `100k`, the copy in the
    RecBole wheel of the package index. Where none of them works it gives latest-small, with a
    warning, or with `RECTUTOR_STRICT=1` an error. Each step is one line of the logger
    `rectutor.data`. All of it is verified by checksum; the table is the same from each source.

    The data is GroupLens's (Harper and Konstan, 2015): cite it, and do not redistribute 100K
    and 1M.

    Args:
        name: `"100k"`, `"1m"` or `"latest-small"`.
        source: `"auto"`, or the one source to use: `"grouplens"` (its archive at hand, or its
            download), `"pypi"`, `"included"` (latest-small only) or `"tfds"` (the real
            `tfds.load`, whose rows come sorted by time because it forgets the file's order).

    Returns:
        The `Dataset`. User and movie ids count from 1 in the order of the original ids, and the
        catalogue is the movies that are rated.

    Raises:
        TypeError: `name` or `source` is no string.
        ValueError: `name` or `source` is none of these.
        RuntimeError: the source that was forced cannot give the data, or no source can and
            `RECTUTOR_STRICT` is set; the message has each source's reason.
    """
    for argument, value, choices in (("name", name, _NAMES), ("source", source, _SOURCES)):
        if not isinstance(value, str):
            raise TypeError(f"{argument} must be a string, not {value!r}")
        if value not in choices:
            raise ValueError(f"{argument}={value!r}: choose from {', '.join(map(repr, choices))}")
    reasons = []
    for each in _sources.order(name) if source == "auto" else [source]:
        try:
            tables = _sources.load(name, each)
        except _sources.SourceError as error:
            level = logging.WARNING if isinstance(error, _sources.CorruptError) else logging.INFO
            logger.log(level, "%s: %s", each, error)
            reasons.append(f"{each}: {error}")
        else:
            scale = (0.5, 5.0) if name == "latest-small" else (1.0, 5.0)
            return _as_dataset(name, each, tables, scale)
    report = f"MovieLens {name} could not be loaded. " + ". ".join(reasons)
    if source != "auto" or name == "latest-small" or is_on("RECTUTOR_STRICT"):
        raise RuntimeError(report)
    _warn_of_fallback(name, report)
    return load_movielens("latest-small")


def _as_dataset(
    name: str, source: str, tables: Tables, scale: tuple[float, float] = (1.0, 5.0)
) -> Dataset:
    return Dataset(
        name=name,
        source=source,
        ratings=tables.ratings,
        movies=tables.movies,
        users=tables.users,
        num_users=int(tables.ratings["user_id"].max()),
        num_movies=len(tables.movies),
        rating_scale=scale,
    )


def _warn_of_fallback(name: str, report: str) -> None:
    """Say which data this is where it cannot be overlooked: in the page or the terminal."""
    title = f"THIS IS NOT MOVIELENS {name.upper()}: the data is MovieLens latest-small"
    advice = (
        "It is real, and another data set: no figure below can be compared with those of"
        f" {name}. Connect to the internet, or put the archive into a folder and name that in"
        " RECTUTOR_ARCHIVES."
    )
    if in_notebook():
        from IPython.display import HTML, display

        display(  # type: ignore[no-untyped-call]
            HTML(  # type: ignore[no-untyped-call]
                '<div role="alert" style="border: 4px solid #b00020; padding: 0.8em; '
                'background: #fff3f3; color: #5c0011"><strong style="font-size: 1.3em">'
                f"{html.escape(title)}</strong><p>{html.escape(advice)}</p>"
                f"<p><small>{html.escape(report)}</small></p></div>"
            )
        )
        return
    rule = "!" * 88
    text = f"\n{rule}\n{title}\n{advice}\n{report}\n{rule}"
    warnings.warn(text, FallbackDataWarning, stacklevel=3)


def synthetic(num_users: int, num_movies: int, num_ratings: int, seed: int = 0) -> Dataset:
    """Make a data set with structure to learn; the same one for the same arguments.

    The model. Users belong to one of 8 groups; movies to one of 8 genres. A group chooses movies
    with probability proportional to popularity, which falls as a power of the rank, times
    exp(liking). Each movie has 6 successors. The next movie of a user is, with probability 0.6,
    a successor of the one before (the first of them most often), and else chosen as the group
    chooses; a movie that the user has seen is drawn again, so nobody sees a movie twice. A rating
    is 3.5 + user's bias + movie's bias + liking + noise of 0.7 stars, rounded into 1 to 5. So a
    sequence model beats popularity, and a model of tastes beats the biases, each by much.
    `synthetic_oracle` tells what the generator itself would predict.

    Args:
        num_users: at least 1; each has at least one rating.
        num_movies: at least 1. All are in the catalogue, also those that nobody rated.
        num_ratings: from `num_users` to `num_users * num_movies`.
        seed: a non-negative integer.

    Returns:
        The `Dataset`; rows in order of time. A million ratings take about a second.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is out of its range.
    """
    num_users = checks.integer(num_users, "synthetic: num_users", 1)
    num_movies = checks.integer(num_movies, "synthetic: num_movies", 1)
    num_ratings = checks.integer(num_ratings, "synthetic: num_ratings", 1)
    seed = checks.integer(seed, "synthetic: seed", 0)
    if not num_users <= num_ratings <= num_users * num_movies:
        raise ValueError(
            f"synthetic: num_ratings is {num_ratings}; {num_users} users and {num_movies} movies"
            f" have room for {num_users} to {num_users * num_movies}, one or more a user"
        )
    tables = _synthetic.generate(num_users, num_movies, num_ratings, seed)
    return _as_dataset("synthetic", "synthetic", tables)


def synthetic_oracle(num_users: int, num_movies: int, seed: int = 0) -> _synthetic.World:
    """The laws from which `synthetic` with the same arguments drew its data.

    Its `probabilities(user_ids, last_movie_ids)` are those of the next movie: with the movies
    already seen ruled out, no recommender ranks better. Its `stars(user_ids, movie_ids)` are the
    ratings before noise and rounding.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is out of its range.
    """
    return _synthetic.world(
        checks.integer(num_users, "synthetic_oracle: num_users", 1),
        checks.integer(num_movies, "synthetic_oracle: num_movies", 1),
        checks.integer(seed, "synthetic_oracle: seed", 0),
    )


def from_dataframe(
    frame: pd.DataFrame,
    *,
    user: str,
    item: str,
    rating: str | None = None,
    timestamp: str | None = None,
    title: str | None = None,
    name: str = "your data",
) -> Dataset:
    """Make a data set of anyone's table.

    Args:
        frame: one row an interaction. Rows keep their order; a pair that occurs twice is kept
            twice, as two interactions.
        user: the column of user ids, of any hashable type.
        item: the column of item ids, of any hashable type.
        rating: the column of ratings, finite numbers; without it every rating is 1.
        timestamp: the column of times, datetimes or numbers of seconds (fractions are cut off, and
            rows of one second keep the order that they have);
            without it the time is the row's number, so rows should be in order.
        title: the column of the items' titles; the first one of an item counts, and where there
            is none the item's id is its title.
        name: what to call the data set.

    Returns:
        The `Dataset`, with ids from 1 in the order of the originals (of their text, where they
        cannot be compared). Its rating scale is 1 to 5 where all ratings are whole and within
        it, else from the lowest to the highest rating of the table.

    Raises:
        TypeError: `frame` is no DataFrame, a column's name no string, or the ids of a column
            cannot be told apart.
        ValueError: the frame is empty; or a column is missing, or holds something it must not:
            the message names the column and the first such rows.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"who": ["ann", "bob", "ann"], "what": ["tea", "tea", "jam"]})
        >>> data = from_dataframe(frame, user="who", item="what")
        >>> data.ratings[["user_id", "movie_id", "rating", "timestamp"]].values.tolist()
        [[1, 2, 1, 0], [2, 2, 1, 1], [1, 1, 1, 2]]
        >>> list(data.titles)
        ['(padding)', 'jam', 'tea']
    """
    checks.frame(frame, "from_dataframe")
    columns = {"user": user, "item": item, "rating": rating, "timestamp": timestamp, "title": title}
    for argument, column in columns.items():
        if column is None and argument not in ("user", "item"):
            continue
        if not isinstance(column, str):
            raise TypeError(f"{argument} must be the name of a column, a string, not {column!r}")
        found = int((frame.columns == column).sum())
        if found != 1:
            raise ValueError(
                f"{argument}={column!r}: the frame has {found} columns of that name;"
                f" its columns are {list(frame.columns)}"
            )
        if argument in ("user", "item", "timestamp"):
            wrong = frame[column].isna().to_numpy()
            _refuse(frame[column], argument, wrong, "is missing; drop or fill these rows")
    if len(frame) == 0:
        raise ValueError("frame has no rows; from_dataframe needs at least one interaction")
    count = len(frame)
    stars = np.ones(count, dtype=np.int8) if rating is None else _numbers(frame[rating])
    times = np.arange(count) if timestamp is None else _seconds(frame[timestamp])
    ratings, user_values, movie_values = ratings_table(frame[user], frame[item], stars, times)
    texts = np.array([str(value) for value in movie_values], dtype=object)
    if title is not None:
        given = frame[title].to_numpy(dtype=object)
        named = pd.Series(given, index=ratings["movie_id"], dtype="object").dropna()
        named = named[~named.index.duplicated()]  # an item's first title counts
        texts[named.index - 1] = [str(text) for text in named]
    titles = _text(pd.Series(texts, dtype="object"))
    whole_stars = stars.dtype == np.int8 and stars.min() >= 1 and stars.max() <= 5
    return Dataset(
        name=str(name),
        source="dataframe",
        ratings=ratings,
        movies=movies_table(movie_values, titles, [""] * len(movie_values)),
        users=None,
        num_users=len(user_values),
        num_movies=len(movie_values),
        has_ratings=rating is not None,
        has_timestamps=timestamp is not None,
        rating_scale=(1.0, 5.0) if whole_stars else (float(stars.min()), float(stars.max())),
    )


def _refuse(column: pd.Series[Any], role: str, wrong: np.ndarray, words: str) -> None:
    """Raise a ValueError that names the first of the rows that are wrong, if any are."""
    rows = np.flatnonzero(wrong)
    if len(rows):
        shown = ", ".join(f"row {k}: {column.iloc[k]!r}" for k in rows[:3].tolist())
        more = ", ..." if len(rows) > 3 else ""
        raise ValueError(
            f"from_dataframe: column {column.name!r} ({role}) {words}: {shown}{more}"
            f" ({len(rows):,} in all)"
        )


def _numbers(column: pd.Series[Any]) -> np.ndarray:
    """A column of finite numbers, int8 where that loses nothing, else float32."""
    try:
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    wrong = ~np.isfinite(values) | (column.dtype.kind in "mM")
    _refuse(column, "rating", wrong, "is no finite number; drop or mend these rows")
    _refuse(column, "rating", np.abs(values) > 2**24, "is more than float32 can tell apart")
    if ((values == np.rint(values)) & (np.abs(values) < 128)).all():
        return values.astype(np.int8)
    return values.astype(np.float32)


def _seconds(column: pd.Series[Any]) -> np.ndarray:
    """A column of times, none missing, as whole seconds since 1970."""
    if column.dtype.kind == "M":
        zoned = getattr(column.dtype, "tz", None) is not None
        utc = column.dt.tz_convert(None) if zoned else column
        return utc.to_numpy().astype("datetime64[s]").astype(np.int64)
    if column.dtype.kind not in "iuf":
        raise ValueError(
            f"from_dataframe: column {column.name!r} (timestamp) holds {column.dtype} values, such"
            f" as {column.iloc[0]!r}; make it datetimes with pd.to_datetime, or numbers of seconds"
        )
    values = column.to_numpy()
    wrong = ~np.isfinite(values) | (np.abs(values.astype(np.float64)) >= 2.0**62)
    _refuse(column, "timestamp", wrong, "is out of range; make it seconds since 1970")
    whole: np.ndarray = np.floor(values).astype(np.int64)
    return whole


def _text(values: pd.Series[Any]) -> pd.Series[Any]:
    """Strings as pandas' text where it can hold them, else (lone surrogates) as objects."""
    try:
        return values.astype("str")
    except UnicodeError:
        return values
