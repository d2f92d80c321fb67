"""The book's one protocol: rank the whole catalogue, measure, and say how sure we are.

A recommender is anything that maps `Queries` to scores over the catalogue, `(B, num_movies + 1)`.
Here the padding id and the movies a user has seen are excluded, the best `k` are kept, and the
metrics come with 95 % bootstrap intervals over users.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from rectutor import PADDING_ID, checks
from rectutor.sequences import Histories, last_window
from rectutor.splits import Split

#: The metrics of an `Evaluation`, with the way each is called in a table.
METRICS = {"hit_rate": "HR", "ndcg": "NDCG", "mrr": "MRR", "coverage": "coverage"}

_LEVEL = (0.025, 0.975)
_RESAMPLES_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Queries:
    """Whom to recommend to, and what a recommender may know about them.

    Attributes:
        user_ids: `(B,)` int32, the user of each query.
        histories: the movies that everybody has watched, by user id and oldest first.

    Raises:
        TypeError: `user_ids` are no integers.
        ValueError: a user is not in `histories`.
    """

    user_ids: np.ndarray
    histories: Histories

    def __post_init__(self) -> None:
        users = checks.integers(self.user_ids, "Queries: user_ids", 0, self.histories.num_users)
        object.__setattr__(self, "user_ids", users.astype(np.int32))

    def __len__(self) -> int:
        return len(self.user_ids)

    def __repr__(self) -> str:
        return f"Queries({len(self):,} users, {self.lengths.sum():,} movies known)"

    @property
    def lengths(self) -> np.ndarray:
        """`(B,)` how many movies each query knows."""
        offsets = self.histories.offsets
        lengths: np.ndarray = offsets[self.user_ids + 1] - offsets[self.user_ids]
        return lengths

    @cached_property
    def offsets(self) -> np.ndarray:
        """`(B + 1,)` where the movies of each query begin in `items`."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @cached_property
    def rows(self) -> np.ndarray:
        """`(n,)` which query each of `items` belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @cached_property
    def items(self) -> np.ndarray:
        """`(n,)` int32, the movies known, query after query, oldest first."""
        begins = self.histories.offsets[self.user_ids] - self.offsets[:-1]
        items: np.ndarray = self.histories.items[begins[self.rows] + np.arange(len(self.rows))]
        return items

    def history(self, b: int) -> np.ndarray:
        """The movies that query `b`, counted from 0, knows, oldest first."""
        return self.histories[self.user_ids[b]]

    def last(self, length: int, padding: str = "before") -> np.ndarray:
        """The latest `length` movies of each query, `(B, length)` int32.

        Args:
            length: how many movies a row holds.
            padding: `"before"` puts `PADDING_ID` on the left of short histories, `"after"` on
                the right.
        """
        return last_window(self.histories, length, padding, self.user_ids)

    def batches(self, batch_size: int) -> Iterator[Queries]:
        """The same queries, at most `batch_size` at a time."""
        size = checks.integer(batch_size, "batch_size", 1)
        for start in range(0, len(self), size):
            yield Queries(self.user_ids[start : start + size], self.histories)


#: Maps `Queries` to scores `(B, num_movies + 1)`: a NumPy array or a tensor of any backend.
Recommender = Callable[[Queries], Any]


@dataclass(frozen=True, eq=False)
class Trained:
    """A recommender that says what it was trained on, so that `evaluate` can refuse a leak.

    Args:
        recommender: maps `Queries` to scores.
        interactions: what it was trained on, `user_id` and `movie_id`, a row an interaction.
        name: what it is called in tables.

    Raises:
        TypeError: `interactions` is no frame.
        ValueError: a column is missing, or an id is below 1.
    """

    recommender: Recommender
    interactions: pd.DataFrame
    name: str = ""

    def __post_init__(self) -> None:
        frame = checks.frame(self.interactions, "Trained: interactions")
        for column in ("user_id", "movie_id"):
            checks.ids(frame, column, "Trained: interactions")
        object.__setattr__(self, "name", self.name or name_of(self.recommender))

    def __call__(self, queries: Queries) -> Any:
        """What the recommender says."""
        return self.recommender(queries)

    def leaked(self, split: Split, on: str) -> np.ndarray:
        """The users whose target it has learned from, ascending.

        A pair counts as often as it occurs: what a user did again, and what was known before the
        part is asked about, is no leak. So `interactions` hold each row once.
        """
        width = split.num_movies + 1
        asked = np.unique(_pairs(split.targets(on), width))
        if not len(asked):
            return asked
        rows = self.interactions[self.interactions["movie_id"] < width]
        learned = rows["user_id"].to_numpy(np.int64) * width + rows["movie_id"].to_numpy(np.int64)
        known = _pairs(split.histories(before=on), width)
        more = _how_often(learned, asked) > _how_often(known, asked)
        users: np.ndarray = np.unique(asked[more] // width)
        return users


def _pairs(rows: Histories, width: int) -> np.ndarray:
    """A number for each user and movie, `(n,)`."""
    users = np.repeat(np.arange(len(rows.lengths)), rows.lengths)
    numbers: np.ndarray = users * width + rows.items
    return numbers


def _how_often(numbers: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """How often each of `asked`, which ascend, is among `numbers`."""
    at = np.searchsorted(asked, numbers).clip(max=len(asked) - 1)
    counts: np.ndarray = np.bincount(at[asked[at] == numbers], minlength=len(asked))
    return counts


@dataclass(frozen=True)
class Interval:
    """A measured value and its 95 % interval; without one where `low` and `high` are None."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """How well one recommender did, user by user and on average.

    In a notebook it displays as a table, and so does `print(evaluation)` in a terminal.

    Attributes:
        name: what the recommender is called in tables.
        k: how many movies were recommended to each user.
        metrics: `"hit_rate"`, `"ndcg"`, `"mrr"` and `"coverage"` to their `Interval`; that of
            coverage is the value alone.
        user_ids: `(num_users,)` the users, ascending.
        per_user: `"hit_rate"`, `"ndcg"` and `"mrr"` to a `(num_users,)` float array.
        recommendations: `(num_users, k)` int32 movie ids, best first, as the metrics saw them:
            on a tie the target comes last. `PADDING_ID` fills the list of a user who has fewer
            than `k` unseen movies.
        num_seen_targets: targets that were in the user's history already. With
            `exclude_seen` no recommender can hit them.
        on: the part of the split it was measured on, `"test"` or `"validation"`.
    """

    name: str
    k: int
    metrics: dict[str, Interval]
    user_ids: np.ndarray
    per_user: dict[str, np.ndarray]
    recommendations: np.ndarray
    num_seen_targets: int = 0
    on: str = "test"

    @property
    def num_users(self) -> int:
        """How many users were evaluated: those with a target."""
        return len(self.user_ids)

    @property
    def hit_rate(self) -> float:
        """The share of users with at least one target among their `k` recommendations."""
        return self.metrics["hit_rate"].value

    @property
    def ndcg(self) -> float:
        """The mean over users of the discounted gain, 1 when all targets are on top."""
        return self.metrics["ndcg"].value

    @property
    def mrr(self) -> float:
        """The mean over users of 1 / the place of the first target, 0 beyond place `k`."""
        return self.metrics["mrr"].value

    @property
    def coverage(self) -> float:
        """The share of the catalogue that is recommended to at least one user."""
        return self.metrics["coverage"].value

    def to_frame(self) -> pd.DataFrame:
        """The metrics as a table: one row a metric, columns `value`, `low` and `high`."""
        rows = {
            _heading(metric, self.k): (interval.value, interval.low, interval.high)
            for metric, interval in self.metrics.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"])

    def note(self) -> str:
        """What the table's reader should know: whom it is about, and what its intervals are."""
        note = f"{self.num_users:,} users, {self.on}; 95 % bootstrap intervals over users"
        if self.num_seen_targets:
            note += (
                f"; {self.num_seen_targets:,} targets were seen before and count as misses "
                "(exclude_seen=False lets them compete)"
            )
        return note

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return f"{compare(self).intervals().T.to_string(index_names=False)}\n{self.note()}"

    def _repr_html_(self) -> str:
        return _to_html(compare(self).intervals().T, self.note())


@dataclass(frozen=True)
class Difference:
    """How much better one model is than another on the same users.

    Attributes:
        better: the model that is claimed to be better.
        other: the model it is compared with.
        metric: the metric compared, as it is called in a table.
        value: the measured difference, `better` minus `other`.
        low: the lower end of its 95 % paired bootstrap interval.
        high: the upper end.
        probability: the share of the resamples in which `better` is ahead (a tie counts half).
    """

    better: str
    other: str
    metric: str
    value: float
    low: float
    high: float
    probability: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes a tie."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        verdict = "beats" if self.low > 0 else "loses to" if self.high < 0 else "is not told from"
        return (
            f"{self.better} {verdict} {self.other}: {self.metric} differs by {self.value:+.3f} "
            f"[{self.low:+.3f}, {self.high:+.3f}], and {self.better} is ahead in "
            f"{self.probability:.1%} of the resamples"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Several evaluations on the same users, side by side; made by `compare`.

    The best value of each column is bold in a notebook and marked `*` in a terminal.

    Attributes:
        evaluations: name to `Evaluation`, in the order of the table.
    """

    evaluations: dict[str, Evaluation]

    def to_frame(self) -> pd.DataFrame:
        """One row a model, one column a metric: the values as floats."""
        return self._frame(lambda interval: interval.value)

    def intervals(self) -> pd.DataFrame:
        """One row a model, one column a metric: the `Interval` of each."""
        return self._frame(lambda interval: interval)

    def _frame(self, cell: Callable[[Interval], object]) -> pd.DataFrame:
        k = next(iter(self.evaluations.values())).k
        rows = [
            {_heading(metric, k): cell(interval) for metric, interval in one.metrics.items()}
            for one in self.evaluations.values()
        ]
        return pd.DataFrame(rows, index=pd.Index(list(self.evaluations), name="model"))

    def better(
        self,
        a: str,
        b: str,
        metric: str = "ndcg",
        *,
        num_resamples: int = 1000,
        seed: int = 0,
    ) -> Difference:
        """Is model `a` better than model `b`? A paired bootstrap over the users they share.

        Args:
            a: the name of the one.
            b: the name of the other.
            metric: `"hit_rate"`, `"ndcg"` or `"mrr"`.
            num_resamples: how many times the users are drawn again.
            seed: of the draw.

        Returns:
            The `Difference`, whose text is a sentence.

        Raises:
            ValueError: no model of that name, no such metric, or one that is not a mean over users
                (coverage).
        """
        num_resamples = checks.integer(num_resamples, "Comparison.better: num_resamples", 1)
        for name in (a, b):
            checks.choice(name, "Comparison.better: a model", self.evaluations)
        first, second = self.evaluations[a], self.evaluations[b]
        checks.choice(metric, "Comparison.better: metric", first.per_user)
        gaps = first.per_user[metric] - second.per_user[metric]
        resampled = _resampled_means(gaps[:, None], num_resamples, seed)[:, 0]
        resampled[np.abs(resampled) < 1e-12] = 0.0  # what is left of rounding is a tie
        low, high = np.quantile(resampled, _LEVEL)
        ahead = float(np.mean(resampled > 0) + np.mean(resampled == 0) / 2)
        return Difference(
            a, b, _heading(metric, first.k), gaps.mean().item(), float(low), float(high), ahead
        )

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        table = self._marked("{}*", "{} ")
        return f"{table.to_string(index_names=False)}\n{self._note('* best of its column')}"

    def _repr_html_(self) -> str:
        table = self._marked("<strong>{}</strong>", "{}")
        return _to_html(table, self._note("bold: best of its column"))

    def _marked(self, best: str, other: str) -> pd.DataFrame:
        """The intervals as text, those that look best in their column by another template."""
        shown = self.to_frame().round(3)
        table = self.intervals()
        return table.map(best.format).where(shown == shown.max(), table.map(other.format))

    def _note(self, marking: str) -> str:
        return f"{next(iter(self.evaluations.values())).note()}; {marking}"


def queries_for(split: Split, on: str = "test", user_ids: Any = None) -> Queries:
    """What is known about users at the moment a part of the split asks about.

    Args:
        split: the interactions.
        on: `"test"` (a history is what `train` and `validation` hold) or `"validation"` (only
            `train`); see `Split.histories`.
        user_ids: the users to ask about, in the order wanted. By default those who have a target
            in that part, ascending. A user without interactions gets an empty history.

    Returns:
        The `Queries`, one a user.

    Raises:
        TypeError: `user_ids` are no integers.
        ValueError: `on` is something else, the part has no interactions, or a user id is not
            between 1 and `split.num_users`.
    """
    checks.choice(on, "on", ("test", "validation"))
    if user_ids is None:
        wanted = np.flatnonzero(split.targets(on).lengths)
        if len(wanted) == 0:
            raise ValueError(
                f"split.{on} has no interactions, so there is nobody to ask about; give "
                "user_ids, or more data"
            )
    else:
        wanted = checks.integers(user_ids, "queries_for: user_ids", 1, split.num_users)
    return Queries(wanted, split.histories(before=on))


def recommend(
    recommender: Recommender,
    queries: Queries,
    k: int = 10,
    exclude_seen: bool = True,
    *,
    batch_size: int = 1024,
) -> np.ndarray:
    """The `k` best movies for each query.

    Args:
        recommender: maps `Queries` to scores, `(B, num_movies + 1)`.
        queries: whom to recommend to.
        k: how many movies a list holds.
        exclude_seen: whether the movies of a query's history are left out.
        batch_size: how many queries are scored at a time.

    Returns:
        `(len(queries), k)` int32 movie ids, best first; on a tie the lower id first. `PADDING_ID`
        fills the list of a query with fewer than `k` movies to choose from.

    Raises:
        ValueError: the scores have the wrong shape or a NaN, or `k` is no number from 1 to
            `num_movies`.
    """
    lists = [
        _top_k(_allowed_scores(recommender, batch, k, exclude_seen), k)
        for batch in queries.batches(batch_size)
    ]
    return np.concatenate(lists) if lists else np.zeros((0, k), np.int32)


def evaluate(
    recommender: Recommender,
    split: Split,
    k: int = 10,
    exclude_seen: bool = True,
    *,
    on: str = "test",
    batch_size: int = 1024,
    num_resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
    allow_leak: bool = False,
) -> Evaluation:
    """Rank the whole catalogue for every user with a target, and measure where the targets land.

    Each user is one query: everything known before the target. All movies compete, except the
    padding id and, with `exclude_seen`, the movies of the query's history. A tie counts
    against the model: among equal scores the targets come last, so a constant scorer gets no
    hit while at least `k` other movies are left.

    With several targets a user (random and temporal splits) a hit is any target among the `k`,
    NDCG divides by the gain of the best possible list, and MRR looks at the first target only.
    A target that the user has seen before is excluded like any seen movie and so is a miss for
    every model: letting it compete would tell the model, by what is *not* excluded, which seen
    movie comes back. Where users do watch things again, evaluate with `exclude_seen=False`.

    Memory goes with `batch_size` × `num_movies`, not with the number of users.

    Args:
        recommender: maps `Queries` to scores, `(B, num_movies + 1)`, higher is better; column 0
            is padding and is ignored. NumPy or a tensor of any backend.
        split: what is known and what is asked.
        k: how many movies are recommended, at most `split.num_movies`.
        exclude_seen: whether the movies of the history are left out.
        on: `"test"` (history: train and validation) or `"validation"` (history: train).
        batch_size: how many users are scored at a time.
        num_resamples: how often users are drawn again for the intervals.
        seed: of those draws; the same seed gives the same interval.
        name: what to call the recommender; its own `name`, or that of its class, by default.
        allow_leak: whether a model may be measured on what it has learned from, to show what a
            leak does.

    Returns:
        The `Evaluation`. The interval of a mean runs between the 2.5 and 97.5 % quantiles of the
        means over resampled users. Coverage has none: it is no mean over users, and a resample,
        which holds fewer distinct users, always covers less.

    Raises:
        ValueError: a score is NaN (the message names the user), the scores have another shape, `k`
            is larger than the catalogue or below 1, `on` is something else, the part has no
            interactions, or the recommender was trained on what it is asked, as far as it says
            so (a baseline says whether it knows validation, not of which split; see `Trained` for
            a model of your own).
        TypeError: `recommender` cannot be called.
    """
    if not isinstance(split, Split):
        raise TypeError(
            f"evaluate got a {type(split).__name__} for split; give a Split, as "
            "rectutor.splits.leave_one_out(ratings)"
        )
    _check_recommender(recommender, split, on, allow_leak)
    num_resamples = checks.integer(num_resamples, "evaluate: num_resamples", 1)
    queries = queries_for(split, on)
    lists, hits, num_targets, num_seen = [], [], [], 0
    for batch in queries.batches(batch_size):
        scores = _allowed_scores(recommender, batch, k, exclude_seen, split.num_movies)
        asked = Queries(batch.user_ids, split.targets(on))
        places = np.unique(asked.rows * scores.shape[1] + asked.items)  # a repeat counts once
        is_target = np.zeros(scores.shape, bool)
        is_target.flat[places] = True
        best = _top_k(scores, k, is_target)
        lists.append(best)
        hits.append(np.take_along_axis(is_target, best, axis=1))
        num_targets.append(np.bincount(places // scores.shape[1], minlength=len(batch)))
        num_seen += int(np.isneginf(scores.flat[places]).sum())
    per_user = _metrics(np.concatenate(hits), np.concatenate(num_targets))
    recommendations = np.concatenate(lists)
    means = _intervals(np.stack(list(per_user.values()), axis=1), num_resamples, seed)
    recommended = np.unique(recommendations[recommendations != PADDING_ID])
    coverage = Interval(len(recommended) / split.num_movies)
    return Evaluation(
        name=name_of(recommender) if name is None else name,
        k=k,
        metrics={**dict(zip(per_user, means, strict=True)), "coverage": coverage},
        user_ids=queries.user_ids,
        per_user=per_user,
        recommendations=recommendations,
        num_seen_targets=num_seen,
        on=on,
    )


def win_rate(
    recommender: Recommender, split: Split, on: str = "test", *, batch_size: int = 512
) -> float:
    """How often a target is scored above one random movie that its user has not watched.

    This is what a loss with one negative sees. It is counted against all such movies and not
    drawn, a tie counting half, so there is no chance in it.

    Args:
        recommender: maps `Queries` to scores, `(B, num_movies + 1)`.
        split: what is known and what is asked.
        on: `"test"` or `"validation"`.
        batch_size: how many users are scored at a time.

    Returns:
        The mean over the targets, from 0 to 1; 0 for a target that was seen before.

    Raises:
        TypeError: `recommender` cannot be called or gives no scores.
        ValueError: as `evaluate`.
    """
    _check_recommender(recommender, split, on)
    rates = []
    for batch in queries_for(split, on).batches(batch_size):
        scores = _allowed_scores(recommender, batch, 1, True, split.num_movies)
        asked = Queries(batch.user_ids, split.targets(on))
        allowed = ~np.isneginf(scores)
        allowed[asked.rows, asked.items] = False
        scores, allowed = scores[asked.rows], allowed[asked.rows]
        own = scores[np.arange(len(scores)), asked.items, None]
        ahead = (own > scores) + 0.5 * (own == scores)
        rates.append((ahead * allowed).sum(axis=1) / np.maximum(allowed.sum(axis=1), 1))
    return float(np.mean(np.concatenate(rates)))


def compare(results: Mapping[str, Evaluation] | Sequence[Evaluation] | Evaluation) -> Comparison:
    """Put several evaluations in one table.

    Args:
        results: the evaluations, as a list (each with its own name) or by the name to show; or one.

    Returns:
        The `Comparison`; `better` answers whether one is better than another.

    Raises:
        ValueError: there are none, two share a name, or they are not on the same users with the
            same `k`.
        TypeError: one is no `Evaluation`.
    """
    if isinstance(results, Evaluation):
        results = [results]
    pairs = (
        list(results.items())
        if isinstance(results, Mapping)
        else [(getattr(result, "name", ""), result) for result in results]
    )
    if not pairs:
        raise ValueError("compare got no evaluation; give at least one")
    for name, result in pairs:
        if not isinstance(result, Evaluation):
            raise TypeError(
                f"compare got a {type(result).__name__} for {name!r}; give what evaluate() returns"
            )
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(
            f"compare got the names {names}, some twice; give evaluate(..., name=...) or a dict"
        )
    first_name, first = pairs[0]
    for name, result in pairs[1:]:
        if result.k != first.k:
            raise ValueError(
                f"{first_name!r} has k={first.k} and {name!r} k={result.k}; evaluate both with "
                "the same k"
            )
        if result.on != first.on or not np.array_equal(result.user_ids, first.user_ids):
            raise ValueError(
                f"{first_name!r} is on {first.num_users} users of {first.on} and {name!r} on "
                f"{result.num_users} users of {result.on}, and they are not the same; evaluate "
                "both on one split"
            )
    return Comparison(dict(pairs))


def _check_recommender(recommender: Any, split: Split, on: str, allow_leak: bool = False) -> None:
    if not callable(recommender):
        raise TypeError(
            f"recommender is a {type(recommender).__name__}, which cannot be called; give a "
            "function of queries, or a fitted baseline"
        )
    checks.choice(on, "on", ("test", "validation"))
    if allow_leak:
        return
    for part in _parts(recommender):
        if on == "validation" and getattr(part, "knows_validation", False):
            raise ValueError(
                f"{name_of(part)} was fitted on train and validation, so it has seen the "
                "validation targets; fit it with include_validation=False"
            )
        if isinstance(part, Trained):
            users = part.leaked(split, on)
            if len(users):
                raise ValueError(
                    f"{name_of(part)} was trained on the {on} target of {len(users):,} of "
                    f"{np.count_nonzero(split.targets(on).lengths):,} users, user {users[0]} "
                    f"first; train it on what comes before, or say allow_leak=True to show the "
                    "leak"
                )


def _parts(recommender: Any) -> Iterator[Any]:
    """What a recommender is mixed of, and what these are mixed of; itself, if it is no mixture."""
    mixed = getattr(recommender, "parts", None)
    if mixed is None:
        yield recommender
    else:
        for part in mixed:
            yield from _parts(part)


def _allowed_scores(
    recommender: Recommender,
    queries: Queries,
    k: int,
    exclude_seen: bool,
    num_movies: int | None = None,
) -> np.ndarray:
    """Scores as floats `(B, num_movies + 1)` of our own, -inf only for what may not be chosen.

    Without `num_movies` the recommender decides how many columns there are.
    """
    name = name_of(recommender)
    scores = to_numpy(recommender(queries), name)
    width = "num_movies + 1" if num_movies is None else f"{num_movies} + 1"
    if (
        scores.ndim != 2
        or len(scores) != len(queries)
        or scores.shape[1] < 2
        or (num_movies is not None and scores.shape[1] != num_movies + 1)
    ):
        raise ValueError(
            f"{name} returned scores of shape {scores.shape} for {len(queries)} queries; expected "
            f"({len(queries)}, {width}): one row a query, one column a movie id, column 0 for "
            "padding"
        )
    catalogue = scores.shape[1] - 1
    checks.integer(k, "k, the movies recommended out of the catalogue,", 1, catalogue)
    scores[:, PADDING_ID] = 0.0
    undefined = np.isnan(scores.max(axis=1))
    if undefined.any():
        row = int(undefined.argmax())
        raise ValueError(
            f"{name} scored movie {int(np.isnan(scores[row]).argmax())} NaN for user "
            f"{queries.user_ids[row]}; look for a division by zero or a diverged training"
        )
    np.maximum(scores, np.finfo(scores.dtype).min, out=scores)
    scores[:, PADDING_ID] = -np.inf
    if exclude_seen:
        seen = queries.items
        if len(seen) and not 0 <= seen.min() <= seen.max() <= catalogue:
            raise ValueError(
                f"a history holds movie {seen.min() if seen.min() < 0 else seen.max()}, but {name} "
                f"scores movies 1 to {catalogue}; give one column for each movie of the catalogue"
            )
        scores[queries.rows, seen] = -np.inf
    return scores


def to_numpy(scores: Any, name: str) -> np.ndarray:
    """A float array that we may write to, from an array or a tensor of any backend."""
    if hasattr(scores, "detach"):  # PyTorch: off the graph and the accelerator
        scores = scores.detach().cpu()
        scores = scores if scores.element_size() > 2 else scores.float()  # NumPy has no bfloat16
    try:
        array = np.asarray(scores)
        if array.dtype.kind not in "fiubV":  # V: JAX's and TensorFlow's bfloat16
            raise TypeError(f"dtype {array.dtype}")
        if array.dtype in (np.float32, np.float64):
            return np.array(array)
        return array.astype(np.float64 if array.dtype.kind in "iub" else np.float32)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} returned a {type(scores).__name__} that is no table of scores ({error}); "
            "return floats (B, num_movies + 1)"
        ) from error


def _top_k(scores: np.ndarray, k: int, put_last: np.ndarray | None = None) -> np.ndarray:
    """The `k` best columns of each row, best first.

    Among equal scores those marked in `put_last` come last, then the lower id comes first.
    Columns of -inf are never chosen; `PADDING_ID` fills up.
    """
    width = scores.shape[1]
    threshold = _kth_best(scores, k)
    chosen = scores >= threshold
    crowded = np.flatnonzero(chosen.sum(axis=1) > k)
    if len(crowded):  # more than k at or above the k-th score: a tie at the boundary
        level, tied = threshold[crowded], scores[crowded] == threshold[crowded]
        last = np.zeros_like(tied) if put_last is None else put_last[crowded] & tied
        first = tied & ~last
        place = np.cumsum(first, axis=1, dtype=np.int32)
        behind = place[:, -1:] + np.cumsum(last, axis=1, dtype=np.int32)
        above = scores[crowded] > level
        room = k - above.sum(axis=1, keepdims=True)
        chosen[crowded] = above | (first & (place <= room)) | (last & (behind <= room))
    ids = np.flatnonzero(chosen).reshape(len(scores), k) % width
    values = np.take_along_axis(scores, ids, axis=1)
    late = np.zeros_like(ids) if put_last is None else np.take_along_axis(put_last, ids, axis=1)
    order = np.lexsort((ids, late, -values), axis=1)
    ids = np.where(np.isneginf(values), PADDING_ID, ids)
    return np.take_along_axis(ids, order, axis=1).astype(np.int32)


def _kth_best(scores: np.ndarray, k: int) -> np.ndarray:
    """The `k`-th best score of each row, `(B, 1)`, which may be -inf.

    The best of each of several groups of movies are quickly found. The `k`-th best of these is at
    most the `k`-th best of all, so only the few movies that reach it are sorted out.
    """
    groups = 16 * k
    width = scores.shape[1] // groups * groups
    if width:
        tops = scores[:, :width].reshape(len(scores), -1, groups).max(axis=1)
        bound = np.partition(tops, groups - k, axis=1)[:, groups - k, None]
        places = np.flatnonzero(scores >= bound)
        rows = places // scores.shape[1]
        counts = np.bincount(rows, minlength=len(scores))
        few = np.full((len(scores), counts.max()), -np.inf, scores.dtype)
        few[rows, np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]] = scores.flat[places]
        scores = few
    at = scores.shape[1] - k
    threshold: np.ndarray = np.partition(scores, at, axis=1)[:, at, None]
    return threshold


def discounts(k: int) -> np.ndarray:
    """What a target is worth at each place of a list: `1 / log2(place + 1)`, `(k,)`.

    Source: Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques" (ACM TOIS
    2002).

    Example:
        >>> discounts(3).round(3).tolist()
        [1.0, 0.631, 0.5]
    """
    places = np.arange(1, k + 1)
    weights: np.ndarray = 1 / np.log2(places + 1)
    return weights


def _metrics(hits: np.ndarray, num_targets: np.ndarray) -> dict[str, np.ndarray]:
    """Hit rate, NDCG and MRR of each user, `(U,)`, from who is a target in the lists `(U, k)`."""
    k = hits.shape[1]
    gains = discounts(k)
    best = np.cumsum(gains)[np.minimum(num_targets, k) - 1]
    any_hit = hits.any(axis=1)
    return {
        "hit_rate": any_hit.astype(float),
        "ndcg": (hits @ gains) / best,
        "mrr": np.where(any_hit, 1 / (hits.argmax(axis=1) + 1), 0.0),
    }


def _resample_counts(num_users: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each user is drawn, `(R, num_users)`, a chunk of resamples at a time."""
    rng = np.random.default_rng(seed)
    for start in range(0, num_resamples, _RESAMPLES_AT_ONCE):
        size = min(_RESAMPLES_AT_ONCE, num_resamples - start)
        drawn = rng.integers(num_users, size=(size, num_users))
        drawn += np.arange(size)[:, None] * num_users
        counts = np.bincount(drawn.ravel(), minlength=size * num_users)
        yield counts.reshape(size, num_users)


def _resampled_means(values: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    """The means of the columns of `values` `(U, M)` over resampled users, `(R, M)`."""
    num_users = len(values)
    chunks = _resample_counts(num_users, num_resamples, seed)
    return np.concatenate([counts @ values / num_users for counts in chunks])


def _intervals(values: np.ndarray, num_resamples: int, seed: int) -> list[Interval]:
    low, high = np.quantile(_resampled_means(values, num_resamples, seed), _LEVEL, axis=0)
    return [Interval(*map(float, row)) for row in zip(values.mean(axis=0), low, high, strict=True)]


def name_of(recommender: Any) -> str:
    """What tables call a recommender: its `name`, its `__name__` or that of its class."""
    for name in (getattr(recommender, "name", None), getattr(recommender, "__name__", None)):
        if isinstance(name, str):
            return name
    return type(recommender).__name__


def _heading(metric: str, k: int) -> str:
    return f"{METRICS[metric]}@{k}"


def _to_html(table: pd.DataFrame, note: str) -> str:
    """A table whose cells are markup already; its names are not."""
    table = table.rename(index=html.escape, columns=html.escape)
    with pd.option_context("display.max_colwidth", None):
        page = table.to_html(escape=False, border=0, index_names=False)
    return page.replace(">", f"><caption>{html.escape(note)}</caption>", 1)
