"""Ratings as tables: MovieLens, made-up data, or your own frame; and batches of arrays."""

from __future__ import annotations

import html
import logging
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from rectutor import _batches, _cache, _sources, _synthetic
from rectutor._tables import Tables, release_year
from rectutor.environment import in_notebook, is_on

__all__ = [
    "Dataset",
    "SyntheticDataWarning",
    "batches",
    "from_dataframe",
    "load_movielens",
    "synthetic",
    "synthetic_oracle",
]

logger = logging.getLogger("rectutor.data")

_SIZES = {"100k": (943, 1_682, 100_000), "1m": (6_040, 3_706, 1_000_209)}
_SOURCES = ("auto", "grouplens", "pypi", "tfds", "synthetic")


class SyntheticDataWarning(UserWarning):
    """Real data was asked for and made-up data is what there is."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Who rated what, when, and what it is called; one schema whatever the source.

    Attributes:
        name: what it is called: `"100k"`, `"1m"`, `"synthetic"` or a name of your own.
        source: where it came from: `"grouplens"`, `"pypi"`, `"tfds"`, `"synthetic"` or
            `"dataframe"`.
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
        self,
        *what: str,
        min_users: int = 0,
        min_movies: int = 0,
        min_interactions: int = 0,
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
    """Load MovieLens 100K or 1M.

    `source="auto"` tries, in this order: the cache; an archive in the folder that the environment
    variable `RECTUTOR_ARCHIVES` names; a download from GroupLens; for `100k`, the copy in the
    RecBole wheel of the package index; and then gives synthetic data of the same size, with a
    warning, or with `RECTUTOR_STRICT=1` an error. Each step is one line of the logger
    `rectutor.data`. All of it is verified by checksum; the table is the same from each source.

    The data is GroupLens's (Harper and Konstan, 2015): cite it, do not redistribute it.

    Args:
        name: `"100k"` or `"1m"`.
        source: `"auto"`, or the one source to use: `"grouplens"` (its archive at hand, or its
            download), `"pypi"`, `"tfds"` (the real `tfds.load`, whose rows come sorted by time
            because it forgets the file's order; never cached here) or `"synthetic"`.

    Returns:
        The `Dataset`. User and movie ids count from 1 in the order of the original ids, and the
        catalogue is the movies that are rated.

    Raises:
        ValueError: `name` or `source` is none of these.
        RuntimeError: the source that was forced cannot give the data, or no source can and
            `RECTUTOR_STRICT` is set; the message has each source's reason.
    """
    for argument, value, choices in (("name", name, _SIZES), ("source", source, _SOURCES)):
        if not isinstance(value, str):
            raise TypeError(f"{argument} must be a string, not {value!r}")
        if value not in choices:
            raise ValueError(f"{argument}={value!r}: choose from {', '.join(map(repr, choices))}")
    if source == "synthetic":
        return _as_dataset(name, "synthetic", _synthetic.generate(*_SIZES[name], seed=0))
    if source == "tfds":
        try:
            return _as_dataset(name, "tfds", _sources.from_tfds(name))
        except _sources.SourceError as error:
            raise RuntimeError(f"load_movielens({name!r}, source='tfds'): {error}") from error
    wanted = ["grouplens", "pypi"] if source == "auto" else [source]
    wanted = [each for each in wanted if each != "pypi" or name in _sources.PYPI or source == each]
    for each in wanted:
        tables = _cache.load(_cache.path(name, each))
        if tables is not None:
            logger.info("cache: read %s", _cache.path(name, each))
            return _as_dataset(name, each, tables)
    reasons = []
    for each in wanted:
        try:
            return _as_dataset(name, each, _filled(name, each))
        except _sources.SourceError as error:
            level = logging.WARNING if isinstance(error, _sources.CorruptError) else logging.INFO
            logger.log(level, "%s: %s", each, error)
            reasons.append(f"{each}: {error}")
    report = f"MovieLens {name} could not be loaded. " + ". ".join(reasons)
    if source != "auto" or is_on("RECTUTOR_STRICT"):
        raise RuntimeError(report)
    _warn_of_synthetic(name, report)
    return _as_dataset(name, "synthetic", _synthetic.generate(*_SIZES[name], seed=0))


def _filled(name: str, source: str) -> Tables:
    """Load from one source and leave the tables in the cache; one process does, others wait."""
    file = _cache.path(name, source)
    with _cache.locked(file) as may_write:
        if may_write:  # another process may have filled it while this one waited
            tables = _cache.load(file)
            if tables is not None:
                return tables
        tables = _fetched(name, source)
        if may_write:
            _cache.store(file, tables)
        return tables


def _fetched(name: str, source: str) -> Tables:
    """Load from one source, past the cache."""
    if source == "pypi":
        return _sources.from_pypi(name)
    try:
        tables = _sources.from_archives(name)
    except _sources.SourceError as error:
        logger.warning("archives: %s; trying the next source", error)
        tables = None
    return _sources.from_grouplens(name) if tables is None else tables


def _as_dataset(name: str, source: str, tables: Tables) -> Dataset:
    return Dataset(
        name=name,
        source=source,
        ratings=tables.ratings,
        movies=tables.movies,
        users=tables.users,
        num_users=int(tables.ratings["user_id"].max()),
        num_movies=len(tables.movies),
    )


def _warn_of_synthetic(name: str, report: str) -> None:
    """Say that the data is made up where it cannot be overlooked: in the page or the terminal."""
    title = f"THIS IS NOT MOVIELENS: the data is SYNTHETIC, in the size of {name}"
    advice = (
        "Models run, but no figure below says anything about MovieLens. Connect to the internet,"
        " or put the archive into a folder and name that in RECTUTOR_ARCHIVES."
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
    warnings.warn(
        f"\n{rule}\n{title}\n{advice}\n{report}\n{rule}",
        SyntheticDataWarning,
        stacklevel=3,
    )


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
    num_users = _integer("num_users", num_users, 1)
    num_movies = _integer("num_movies", num_movies, 1)
    num_ratings = _integer("num_ratings", num_ratings, 1)
    seed = _integer("seed", seed, 0)
    if not num_users <= num_ratings <= num_users * num_movies:
        raise ValueError(
            f"num_ratings={num_ratings}: {num_users} users and {num_movies} movies have room for"
            f" {num_users} to {num_users * num_movies} ratings, one or more a user"
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
        _integer("num_users", num_users, 1),
        _integer("num_movies", num_movies, 1),
        _integer("seed", seed, 0),
    )


def _integer(name: str, value: Any, least: int) -> int:
    """`value` as an int, or an error that names it."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if value < least:
        raise ValueError(f"{name}={value}: it must be at least {least}")
    if value > 2**31 - 2:
        raise ValueError(f"{name}={value}: it must be at most {2**31 - 2}, ids are int32")
    return int(value)


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
        timestamp: the column of times, datetimes or numbers of seconds (fractions are cut off);
            without it the time is the row's number, so rows should be in order.
        title: the column of the items' titles; the first one of an item counts, and where there
            is none the item's id is its title.
        name: what to call the data set.

    Returns:
        The `Dataset`, with ids from 1 in the order of the originals (of their text, where they
        cannot be compared).

    Raises:
        TypeError: `frame` is no DataFrame, or a column's name no string.
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
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"frame must be a pandas DataFrame, not {type(frame).__name__}")
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
    if len(frame) == 0:
        raise ValueError("frame has no rows; from_dataframe needs at least one interaction")
    user_id, user_values = _ids(frame[user], "user")
    movie_id, movie_values = _ids(frame[item], "item")
    ratings = pd.DataFrame(
        {
            "user_id": user_id,
            "movie_id": movie_id,
            "rating": (
                np.ones(len(frame), dtype=np.int8) if rating is None else _numbers(frame[rating])
            ),
            "timestamp": (
                np.arange(len(frame), dtype=np.int64)
                if timestamp is None
                else _seconds(frame[timestamp])
            ),
            "original_user_id": frame[user].reset_index(drop=True),
            "original_movie_id": frame[item].reset_index(drop=True),
        }
    )
    texts = np.array([str(value) for value in movie_values], dtype=object)
    if title is not None:
        # backwards, so that an item's first title is the last to be written
        rows = np.flatnonzero(frame[title].notna().to_numpy())[::-1]
        given = np.full(len(texts), None, dtype=object)
        given[movie_id[rows] - 1] = frame[title].to_numpy(dtype=object)[rows]
        named = np.unique(movie_id[rows]) - 1
        texts[named] = [str(text) for text in given[named]]
    titles = _text(pd.Series(texts, dtype="object"))
    movies = pd.DataFrame(
        {
            "movie_id": np.arange(1, len(movie_values) + 1, dtype=np.int32),
            "title": titles,
            "year": release_year(titles),
            "genres": pd.Series([""] * len(movie_values), dtype="str"),
            "original_movie_id": pd.Series(movie_values, dtype=movie_values.dtype),
        }
    )
    return Dataset(
        name=str(name),
        source="dataframe",
        ratings=ratings,
        movies=movies,
        users=None,
        num_users=len(user_values),
        num_movies=len(movie_values),
        has_ratings=rating is not None,
        has_timestamps=timestamp is not None,
    )


def _offending(column: pd.Series[Any], wrong: np.ndarray) -> str:
    """The first rows of a column that are wrong, as text for an error."""
    rows = np.flatnonzero(wrong)
    shown = ", ".join(f"row {k}: {column.iloc[k]!r}" for k in rows[:3].tolist())
    return f"{shown}{', ...' if len(rows) > 3 else ''} ({len(rows):,} in all)"


def _ids(column: pd.Series[Any], role: str) -> tuple[np.ndarray, Any]:
    """Number the values of a column from 1, in their order."""
    missing = column.isna().to_numpy()
    if missing.any():
        raise ValueError(
            f"column {column.name!r} ({role}) has missing ids: {_offending(column, missing)};"
            " drop or fill these rows"
        )
    try:
        codes, values = pd.factorize(column)
    except TypeError as error:
        raise TypeError(
            f"column {column.name!r} ({role}) holds ids that cannot be told apart ({error});"
            " make them numbers or strings"
        ) from error
    try:
        order = np.asarray(values.argsort())
    except TypeError:  # numbers beside strings
        order = np.argsort(np.array([str(value) for value in values], dtype=object), kind="stable")
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(1, len(order) + 1)
    return rank[codes], values.take(order)


def _numbers(column: pd.Series[Any]) -> np.ndarray:
    """A column of finite numbers, int8 where that loses nothing, else float32."""
    try:
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    if column.dtype.kind in "mM" or not np.isfinite(values).all():
        wrong = np.ones(len(column), bool) if column.dtype.kind in "mM" else ~np.isfinite(values)
        raise ValueError(
            f"column {column.name!r} (rating) holds what is no finite number:"
            f" {_offending(column, wrong)}; drop or mend these rows"
        )
    if ((values == np.rint(values)) & (np.abs(values) < 128)).all():
        return values.astype(np.int8)
    return values.astype(np.float32)


def _seconds(column: pd.Series[Any]) -> np.ndarray:
    """A column of times as whole seconds since 1970."""
    kind = column.dtype.kind
    missing = column.isna().to_numpy()
    if missing.any():
        raise ValueError(
            f"column {column.name!r} (timestamp) has missing times:"
            f" {_offending(column, missing)}; drop these rows"
        )
    if kind == "M":
        utc = column.dt.tz_convert("UTC").dt.tz_localize(None) if _has_zone(column) else column
        return utc.to_numpy().astype("datetime64[s]").astype(np.int64)
    if kind not in "iuf":
        raise ValueError(
            f"column {column.name!r} (timestamp) holds {column.dtype} values, such as"
            f" {column.iloc[0]!r}; make it datetimes with pd.to_datetime, or numbers of seconds"
        )
    values = column.to_numpy()
    wrong = ~np.isfinite(values) | (np.abs(values.astype(np.float64)) >= 2.0**62)
    if wrong.any():
        raise ValueError(
            f"column {column.name!r} (timestamp) holds times that are out of range:"
            f" {_offending(column, wrong)}; make them seconds since 1970"
        )
    whole: np.ndarray = np.floor(values).astype(np.int64)
    return whole


def _has_zone(column: pd.Series[Any]) -> bool:
    return getattr(column.dtype, "tz", None) is not None


def _text(values: pd.Series[Any]) -> pd.Series[Any]:
    """Strings as pandas' text where it can hold them, else (lone surrogates) as objects."""
    try:
        return values.astype("str")
    except UnicodeError:
        return values


def batches(
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
) -> Any:
    """Cut arrays into batches for `fit`, `evaluate` and `predict` of a Keras model.

    A `tf.data.Dataset` (in memory, prefetched) where TensorFlow can be imported, else a
    `keras.utils.PyDataset`. The batches and their order are the same either way: NumPy draws the
    order of pass `p` from `(seed, p)`, so each pass has an order of its own, and the same one in
    each run. A pass counts when it begins: `fit` on a model that is not built yet reads a first
    batch to build it, and its first epoch is then pass 1.

    Args:
        x: an array of `n` rows, or a tuple or dict of such arrays.
        y: targets in the same forms, or None.
        sample_weight: weights in the same forms, or None; needs `y`.
        batch_size: how many rows a batch has; the last one has what is left.
        shuffle: whether to draw an order, or keep that of the rows.
        seed: a non-negative integer.

    Returns:
        An iterable of `(x,)`, `(x, y)` or `(x, y, sample_weight)` batches.

    Raises:
        TypeError: something is no array of numbers or text, or `batch_size` or `seed` no integer.
        ValueError: there are no rows, or not the same number everywhere, or a value is negative.
    """
    batch_size = _integer("batch_size", batch_size, 1)
    seed = _integer("seed", seed, 0)
    if not isinstance(shuffle, bool | np.bool_):
        raise TypeError(f"shuffle must be True or False, not {shuffle!r}")
    if sample_weight is not None and y is None:
        raise ValueError("sample_weight is given without y; give both")
    parts = {"x": x, "y": y, "sample_weight": sample_weight}
    arrays = {place: _arrays(part, place) for place, part in parts.items() if part is not None}
    if "x" not in arrays:
        raise TypeError("x is None; give an array, or a tuple or dict of arrays")
    rows = {place: len(array) for part in arrays.values() for place, array in part[1]}
    if len(set(rows.values())) != 1:
        raise ValueError(f"every array must have the same number of rows; there are {rows}")
    num_rows = next(iter(rows.values()))
    if num_rows == 0:
        raise ValueError("x has no rows; batches needs at least one")
    content = tuple(part[0] for part in arrays.values())
    plan = _batches.Plan(num_rows, batch_size, bool(shuffle), seed)
    dataset = _batches.with_tensorflow(content, plan)
    return _batches.with_keras(content, plan) if dataset is None else dataset


def _arrays(value: Any, place: str) -> tuple[Any, list[tuple[str, np.ndarray]]]:
    """`value` with NumPy arrays in it, and a flat list of these with their places."""
    if isinstance(value, dict | tuple) and len(value) == 0:
        raise ValueError(f"{place} is empty; give at least one array")
    if isinstance(value, dict):
        inner = {key: _arrays(part, f"{place}[{key!r}]") for key, part in value.items()}
        return {key: part[0] for key, part in inner.items()}, [
            pair for part in inner.values() for pair in part[1]
        ]
    if isinstance(value, tuple):
        parts = [_arrays(part, f"{place}[{k}]") for k, part in enumerate(value)]
        return tuple(part[0] for part in parts), [pair for part in parts for pair in part[1]]
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise TypeError(f"{place} cannot be made an array ({error})") from error
    if array.ndim == 0 or array.dtype.kind not in "biufSU":
        raise TypeError(
            f"{place} must be an array with a row an example, of numbers or text,"
            f" not {_described(value, array)}"
        )
    return array, [(place, array)]


def _described(value: Any, array: np.ndarray) -> str:
    return f"{value!r}" if array.ndim == 0 else f"{array.dtype} of shape {array.shape}"
