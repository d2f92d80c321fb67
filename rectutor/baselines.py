"""Recommenders that every model has to beat: popularity, kNN, EASE, ALS and sequential rules.

None of them trains by gradient: `fit` counts or solves linear equations, and calling the baseline
looks at a query's history alone. Nothing of the size users × movies is ever dense; the item-item
matrix is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd

from rectutor import checks
from rectutor.evaluation import Evaluation, Queries, Recommender, evaluate, name_of, to_numpy
from rectutor.splits import Split

if TYPE_CHECKING:
    from scipy.sparse import csr_array

#: The item-item matrix is dense: 3.2 GB in float64 at this many movies.
_MOST_MOVIES = 20_000


class Baseline:
    """What the baselines share: fitting to a split, and being called with `Queries`.

    Attributes:
        name: what it is called in tables.
        knows_validation: whether it was fitted on the validation part as well; `evaluate` then
            refuses to measure it there.
    """

    name = "baseline"
    knows_validation = False
    _num_movies: int | None = None

    @property
    def settings(self) -> dict[str, float | None]:
        """What may be tuned, by name."""
        return {}

    def fit(self, split: Split, include_validation: bool = False) -> Self:
        """Count the interactions of `split.train`.

        Args:
            split: the interactions.
            include_validation: count those of `split.validation` as well. Do so for the test
                figure, once the settings are chosen: at that moment they are the past.

        Returns:
            The baseline itself.

        Raises:
            TypeError: `split` is no `Split`.
            ValueError: there is nothing to fit on, or the catalogue is too large for a dense
                item-item matrix.
        """
        return self._fit_counts(_Counts(split, include_validation))

    def __call__(self, queries: Queries) -> np.ndarray:
        """Score the catalogue, `(B, num_movies + 1)` float32, higher is better."""
        if self._num_movies is None:
            raise ValueError(
                f"{self.name} is not fitted; call fit(split) before asking it for scores"
            )
        highest = queries.items.max(initial=0)
        if highest > self._num_movies:
            raise ValueError(
                f"{self.name} was fitted on {self._num_movies} movies, but a history holds movie "
                f"{highest}; fit it on the split the queries come from"
            )
        return self._score(queries, self._num_movies)

    def __repr__(self) -> str:
        return self.name

    def _fit_counts(self, counts: _Counts) -> Self:
        self._fit(counts)
        self._num_movies = counts.num_movies
        self.knows_validation = counts.knows_validation
        return self

    def _fit(self, counts: _Counts) -> None:
        raise NotImplementedError

    def _score(self, queries: Queries, num_movies: int) -> np.ndarray:
        raise NotImplementedError


class Popularity(Baseline):
    """Recommend to everybody what most users have watched.

    Source: the non-personalised baseline of Cremonesi, Koren and Turrin, "Performance of
    recommender algorithms on top-N recommendation tasks" (RecSys 2010).
    """

    name = "popularity"

    def _fit(self, counts: _Counts) -> None:
        self.counts = np.asarray(counts.interactions.sum(axis=0), np.float32)

    def _score(self, queries: Queries, num_movies: int) -> np.ndarray:
        scores: np.ndarray = np.broadcast_to(self.counts, (len(queries), num_movies + 1))
        return scores


class _ItemBased(Baseline):
    """Scores are the history, weighted, times an item-item matrix."""

    weights: np.ndarray

    def __init__(self, tau: float | None = None) -> None:
        self.tau = None if tau is None else checks.number(tau, "tau, in interactions,", 0)

    def _score(self, queries: Queries, num_movies: int) -> np.ndarray:
        history = weighted_histories(queries, num_movies, self.tau)
        scores: np.ndarray = history @ self.weights
        return scores

    @property
    def settings(self) -> dict[str, float | None]:
        """What may be tuned, by name."""
        return {"tau": self.tau}

    def _fitted_by(self) -> tuple[object, ...]:
        """What fitting depends on; two baselines with the same may share their weights."""
        fitting = {name: value for name, value in self.settings.items() if name != "tau"}
        return (type(self), *fitting.items())

    def _share(self, fitted: _ItemBased) -> Self:
        """Use what `fitted`, which differs in `tau` alone, has counted."""
        self.weights = fitted.weights
        self._num_movies = fitted._num_movies
        self.knows_validation = fitted.knows_validation
        return self


class ItemKNN(_ItemBased):
    r"""Score a movie by its cosine similarity to the movies of the history.

    With $X$ the binary users × movies matrix of the interactions, the similarity of movies $i$
    and $j$ is $s_{ij} = x_i^\top x_j / (\lVert x_i \rVert \lVert x_j \rVert)$, and 0 for $i = j$.
    All movies count as neighbours.

    Source: Sarwar, Karypis, Konstan and Riedl, "Item-based collaborative filtering recommendation
    algorithms" (WWW 2001), with the whole catalogue as neighbourhood.

    Args:
        tau: how fast the history fades: a movie watched `age` interactions ago weighs
            $\exp(-age / \tau)$. `None` weighs all alike.

    Attributes:
        weights: `(num_movies + 1, num_movies + 1)` float32, after `fit`.
    """

    def __init__(self, tau: float | None = None) -> None:
        super().__init__(tau)
        self.name = "item kNN" if tau is None else f"item kNN, recency {tau:g}"

    def _fit(self, counts: _Counts) -> None:
        gram = counts.gram.copy()
        norms = np.sqrt(np.maximum(np.diag(gram), 1.0))
        gram /= norms[:, None]
        gram /= norms
        np.fill_diagonal(gram, 0.0)
        self.weights = gram.astype(np.float32)


class EASE(_ItemBased):
    r"""A linear model of a user's movies by the user's other movies, in closed form.

    With $G = X^\top X$ and $P = (G + \lambda I)^{-1}$ the weights are $B_{ij} = -P_{ij} / P_{jj}$
    off the diagonal and 0 on it, so that no movie explains itself.

    Source: Steck, "Embarrassingly shallow autoencoders for sparse data" (WWW 2019).

    Args:
        regularization: $\lambda$, in interactions; more pulls the weights towards 0.
        tau: how fast the history fades: a movie watched `age` interactions ago weighs
            $\exp(-age / \tau)$. `None` weighs all alike.

    Attributes:
        weights: `(num_movies + 1, num_movies + 1)` float32, after `fit`.
    """

    def __init__(self, regularization: float = 200.0, tau: float | None = None) -> None:
        super().__init__(tau)
        self.regularization = checks.number(regularization, "EASE: regularization", 0)
        self.name = f"EASE {regularization:g}" + ("" if tau is None else f", recency {tau:g}")

    @property
    def settings(self) -> dict[str, float | None]:
        """What may be tuned, by name."""
        return {"regularization": self.regularization, "tau": self.tau}

    def _fit(self, counts: _Counts) -> None:
        from scipy.linalg import lapack

        gram = counts.gram.copy()
        gram[np.diag_indices_from(gram)] += self.regularization
        # G + lambda I is symmetric and positive definite: Cholesky, then the inverse from it.
        factor, failed = lapack.dpotrf(gram, lower=True, overwrite_a=True)
        inverse, failed_too = lapack.dpotri(factor, lower=True, overwrite_c=True)
        if failed or failed_too:
            raise ValueError(
                f"EASE could not invert with regularization={self.regularization}; raise it"
            )
        inverse = np.tril(inverse)
        inverse += np.tril(inverse, -1).T
        weights = inverse / -np.diag(inverse)
        np.fill_diagonal(weights, 0.0)
        self.weights = weights.astype(np.float32)


class SequentialRules(_ItemBased):
    r"""Score a movie by how often, and how soon, it came after the movies of the history.

    The rule from movie $a$ to movie $b$ weighs the sum of $1 / g$ over all times that $b$ was
    watched $g$ movies after $a$ by the same user, $g$ at most `steps`.

    Source: Ludewig and Jannach, "Evaluation of session-based recommendation algorithms" (User
    Modeling and User-Adapted Interaction 2018). There the latest movie alone is asked; here the
    whole history, fading.

    Args:
        steps: how far apart, in interactions, two movies may be.
        tau: how fast the history fades: a movie watched `age` interactions ago weighs
            $\exp(-age / \tau)$. `None` weighs all alike.

    Attributes:
        weights: `(num_movies + 1, num_movies + 1)` float32, from row to column, after `fit`.
    """

    def __init__(self, steps: int = 10, tau: float | None = 3.0) -> None:
        super().__init__(tau)
        self.steps = checks.integer(steps, "SequentialRules: steps", 1)
        self.name = f"sequential rules {steps}" + ("" if tau is None else f", recency {tau:g}")

    @property
    def settings(self) -> dict[str, float | None]:
        """What may be tuned, by name."""
        return {"steps": self.steps, "tau": self.tau}

    def _fit(self, counts: _Counts) -> None:
        size = counts.item_item_size()
        rows = counts.histories
        users = np.repeat(np.arange(len(rows.lengths)), rows.lengths)
        weights = np.zeros(size * size, np.float32)
        for gap in range(1, min(self.steps, len(users) - 1) + 1):
            together = users[gap:] == users[:-gap]
            before, after = rows.items[:-gap][together], rows.items[gap:][together]
            rules, often = np.unique(before.astype(np.int64) * size + after, return_counts=True)
            weights[rules] += often / gap
        self.weights = weights.reshape(size, size)


class ALS(Baseline):
    r"""Factors of users and movies by alternating least squares, made for clicks.

    With $p_{ui}$ 1 where user $u$ has watched movie $i$ and 0 elsewhere, and a confidence
    $c_{ui} = 1 + \alpha p_{ui}$, the factors minimise
    $\sum_{ui} c_{ui} (p_{ui} - x_u^\top y_i)^2 + \lambda (\sum_u \lVert x_u \rVert^2 +
    \sum_i \lVert y_i \rVert^2)$. With the movies fixed each user is a small least-squares problem,
    and the other way round; a sweep solves both. A query's factor is solved from its history, so
    that a user who was not there in training gets one, too; an empty history gets zeros.

    Source: Hu, Koren and Volinsky, "Collaborative filtering for implicit feedback datasets" (ICDM
    2008).

    Args:
        factors: the length of a factor.
        regularization: $\lambda$.
        alpha: $\alpha$, how much more sure we are of what was watched.
        sweeps: how many times both sides are solved.
        seed: of the movies' first factors.

    Attributes:
        movies: `(num_movies + 1, factors)` float64, after `fit`; zeros for what nobody watched.
    """

    def __init__(
        self,
        factors: int = 32,
        regularization: float = 10.0,
        alpha: float = 2.0,
        sweeps: int = 10,
        seed: int = 0,
    ) -> None:
        self.factors = checks.integer(factors, "ALS: factors", 1)
        self.regularization = checks.number(regularization, "ALS: regularization", 0)
        self.alpha = checks.number(alpha, "ALS: alpha", 0)
        self.sweeps = checks.integer(sweeps, "ALS: sweeps", 1)
        self.seed = checks.integer(seed, "ALS: seed", 0)
        self.name = f"ALS {factors}, regularization {regularization:g}, alpha {alpha:g}"

    @property
    def settings(self) -> dict[str, float | None]:
        """What may be tuned, by name."""
        return {
            "factors": self.factors,
            "regularization": self.regularization,
            "alpha": self.alpha,
        }

    def _fit(self, counts: _Counts) -> None:
        watched, by = counts.interactions, counts.interactions.T.tocsr()
        rng = np.random.default_rng(self.seed)
        movies = rng.normal(0, self.factors**-0.5, (counts.num_movies + 1, self.factors))
        for _ in range(self.sweeps):
            movies = self._solve(by, self._solve(watched, movies))
        self.movies = movies

    def _score(self, queries: Queries, num_movies: int) -> np.ndarray:
        users = self._solve(weighted_histories(queries, num_movies), self.movies)
        scores: np.ndarray = (users @ self.movies.T).astype(np.float32)
        return scores

    def _solve(self, watched: csr_array, other: np.ndarray) -> np.ndarray:
        """The factors of one side, given those of the other: `(rows, factors)`."""
        everybody = other.T @ other + self.regularization * np.eye(self.factors)
        solved = np.zeros((watched.shape[0], self.factors))
        for row in np.flatnonzero(np.diff(watched.indptr)):
            own = other[watched.indices[watched.indptr[row] : watched.indptr[row + 1]]]
            solved[row] = np.linalg.solve(
                everybody + self.alpha * own.T @ own, (1 + self.alpha) * own.sum(axis=0)
            )
        return solved


class Mixture:
    """Two recommenders that know different things: the one's scores plus a multiple of the other's.

    Choose the weight on validation, with both fitted on `train` alone.

    Args:
        first: maps `Queries` to scores.
        second: likewise. With weight 0 it is not asked.
        weight: how much a score of `second` counts beside one of `first`.

    Attributes:
        name: what it is called in tables.
        parts: the two; `evaluate` asks each what it was trained on.
    """

    def __init__(self, first: Recommender, second: Recommender, weight: float) -> None:
        self.first, self.second = self.parts = first, second
        self.weight = checks.number(weight, "Mixture: weight", -np.inf)
        self.name = f"{name_of(first)} + {self.weight:g} * {name_of(second)}"

    def __call__(self, queries: Queries) -> np.ndarray:
        """Score the catalogue, `(B, num_movies + 1)`: `first + weight * second`."""
        scores = to_numpy(self.first(queries), name_of(self.first))
        if self.weight:
            scores = scores + self.weight * to_numpy(self.second(queries), name_of(self.second))
        return scores


def standard_baselines(split: Split) -> dict[str, Baseline]:
    """The five rows that every chapter prints beside its model, ready for the test part.

    The settings are fixed, so that all chapters print the same rows: kNN and EASE with recency
    take tau 3, EASE takes lambda 200, and with tau 3 lambda 1,000, which is what `choose` finds
    on the validation part of MovieLens 100K for that tau. The baselines are fitted on `train` and
    `validation`, all there is before the test interaction; `evaluate(..., on="validation")`
    therefore refuses them.

    Args:
        split: the interactions, with their times for the recency rows.

    Returns:
        Name to fitted recommender: popularity, item kNN and EASE, the last two also with recency
        weights.
    """
    counts = _Counts(split, include_validation=True)
    neighbours = ItemKNN()._fit_counts(counts)
    return {
        "popularity": Popularity()._fit_counts(counts),
        "item kNN": neighbours,
        "item kNN, recency": ItemKNN(tau=3.0)._share(neighbours),
        "EASE": EASE(200.0)._fit_counts(counts),
        "EASE, recency": EASE(1000.0, tau=3.0)._fit_counts(counts),
    }


@dataclass(frozen=True, eq=False)
class Choice:
    """What `choose` found.

    Attributes:
        best: the candidate with the highest metric on validation, fitted on `train`.
        table: one row a candidate, in the order given: `candidate`, its settings, its metrics.
        evaluation: the validation `Evaluation` of `best`.
    """

    best: Baseline
    table: pd.DataFrame
    evaluation: Evaluation


def choose(
    split: Split,
    candidates: Iterable[Baseline] | None = None,
    *,
    metric: str = "ndcg",
    k: int = 10,
) -> Choice:
    """Pick the best of several baselines on the validation part; the test part is not looked at.

    Args:
        split: each candidate is fitted on its `train` and measured on its `validation`.
        candidates: the baselines to try, of one kind or of several, not fitted yet; `ease_grid()`
            by default, and `grids()` has them for every kind. Those that differ in `tau` alone are
            fitted once.
        metric: `"hit_rate"`, `"ndcg"`, `"mrr"` or `"coverage"`.
        k: how many movies are recommended.

    Returns:
        The `Choice`; among equals the first.

    Raises:
        ValueError: no candidates, no such metric, or an empty validation part.
    """
    tried = list(ease_grid() if candidates is None else candidates)
    if not tried:
        raise ValueError("choose got no candidates; give at least one baseline")
    counts = _Counts(split)
    fitted: dict[tuple[object, ...], _ItemBased] = {}
    results = []
    for candidate in tried:
        if not isinstance(candidate, _ItemBased):
            candidate._fit_counts(counts)
        elif candidate._fitted_by() in fitted:
            candidate._share(fitted[candidate._fitted_by()])
        else:
            fitted[candidate._fitted_by()] = candidate._fit_counts(counts)
        results.append(evaluate(candidate, split, k, on="validation", num_resamples=1))
    checks.choice(metric, "choose: metric", results[0].metrics)
    table = pd.DataFrame(
        [
            {
                "candidate": candidate.name,
                **candidate.settings,
                **{name: interval.value for name, interval in result.metrics.items()},
            }
            for candidate, result in zip(tried, results, strict=True)
        ]
    )
    winner = int(table[metric].to_numpy().argmax())
    return Choice(tried[winner], table, evaluate(tried[winner], split, k, on="validation"))


def ease_grid(
    regularizations: Sequence[float] = (100.0, 200.0, 500.0, 1000.0, 2000.0),
    taus: Sequence[float | None] = (None, 1.0, 2.0, 3.0, 5.0, 10.0),
) -> list[Baseline]:
    """Every `EASE(regularization, tau)` of the two lists, for `choose`."""
    return [EASE(regularization, tau) for regularization in regularizations for tau in taus]


def grids(seed: int = 0) -> dict[str, list[Baseline]]:
    """What `choose` may try for each kind of baseline, by the name that tables use.

    Args:
        seed: of those that begin at random, which is ALS.

    Returns:
        Name to candidates. On MovieLens 100K the best lies inside, over most orders of the ties;
        that of ALS came to an edge (64 factors, alpha 0.1) for one order seen.
    """
    taus = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 15.0, 30.0)
    lambdas = (20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)
    als = product((16, 32, 64), (3.0, 10.0, 30.0), (0.1, 0.2, 0.5, 1.0, 2.0))
    return {
        "popularity": [Popularity()],
        "item kNN": [ItemKNN()],
        "item kNN, recency": [ItemKNN(tau) for tau in taus],
        "EASE": ease_grid(lambdas, (None,)),
        "EASE, recency": ease_grid(lambdas, taus),
        "ALS": [ALS(*settings, seed=seed) for settings in als],
        "sequential rules": [
            SequentialRules(*settings) for settings in product((1, 2, 5, 10, 20, 50, 100), taus)
        ],
    }


def weighted_histories(queries: Queries, num_movies: int, tau: float | None = None) -> csr_array:
    r"""The histories as a sparse matrix: what each query has watched, the latest weighing most.

    Args:
        queries: the histories, oldest first.
        num_movies: the size of the catalogue.
        tau: a movie watched `age` interactions ago (0: the latest) weighs $\exp(-age / \tau)$;
            `None` weighs every movie 1. A movie watched twice keeps the weight of the latest time.

    Returns:
        `(B, num_movies + 1)` float32.
    """
    from scipy.sparse import csr_array

    offsets, items, rows = queries.offsets, queries.items, queries.rows
    # From the latest to the oldest, so that the first time we meet a movie is its latest.
    keys = rows * (num_movies + 1) + items
    distinct, first = np.unique(keys[::-1], return_index=True)
    at = len(items) - 1 - first
    ages = offsets[1:][rows[at]] - 1 - at
    weights = np.ones(len(at)) if tau is None else np.exp(-ages / tau)
    bounds = np.searchsorted(distinct, np.arange(len(queries) + 1) * (num_movies + 1))
    return csr_array(
        (weights.astype(np.float32), distinct % (num_movies + 1), bounds),
        shape=(len(queries), num_movies + 1),
    )


class _Counts:
    """What the baselines count, once for all that are fitted to the same interactions.

    Attributes:
        interactions: the binary users × movies matrix, sparse, `(num_users + 1, num_movies + 1)`.
        histories: the same in order of time, repeats included.
        num_movies: the size of the catalogue.
        knows_validation: whether the validation part is counted as well.
    """

    def __init__(self, split: Split, include_validation: bool = False) -> None:
        from scipy.sparse import csr_array

        if not isinstance(split, Split):
            raise TypeError(
                f"a baseline got a {type(split).__name__} to fit; give a Split, as "
                "rectutor.splits.leave_one_out(ratings)"
            )
        parts = [split.train, split.validation] if include_validation else [split.train]
        users = np.concatenate([part["user_id"].to_numpy(np.int64) for part in parts])
        movies = np.concatenate([part["movie_id"].to_numpy(np.int64) for part in parts])
        if len(users) == 0:
            raise ValueError("a baseline got a split whose train part is empty; give more data")
        self.interactions = csr_array(
            (np.ones(len(users)), (users, movies)),
            shape=(split.num_users + 1, split.num_movies + 1),
        )
        self.interactions.sum_duplicates()
        self.interactions.data[:] = 1.0
        self.histories = split.histories(before="test" if include_validation else "validation")
        self.num_movies = split.num_movies
        self.knows_validation = include_validation and len(split.validation) > 0

    @cached_property
    def gram(self) -> np.ndarray:
        """How many users have watched both movies, for every two; dense."""
        self.item_item_size()
        gram: np.ndarray = (self.interactions.T @ self.interactions).toarray()
        return gram

    def item_item_size(self) -> int:
        """How many rows an item-item matrix has, if that is not too many."""
        size = self.num_movies + 1
        if self.num_movies > _MOST_MOVIES:
            raise ValueError(
                f"{self.num_movies:,} movies need a dense item-item matrix of "
                f"{size**2 * 8 / 1e9:.0f} GB; keep at most {_MOST_MOVIES:,}, say the most "
                "watched, or use Popularity or ALS"
            )
        return size
