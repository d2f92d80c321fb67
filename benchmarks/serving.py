"""Serving: the ten best unseen movies for a user, by brute force and by an approximate index.

Brute force on JAX (one compiled call: product, mask, `top_k`) and FAISS's inverted file index
against brute force in NumPy, by the size of the catalogue.

FAISS (`faiss-cpu`) is the approximate index because it ranks by inner product as the models do,
builds an index of a million in seconds, and comes as one wheel for every Python from 3.10. Graph
indexes (usearch, FAISS's own HNSW) take many times as long to build on two cores for the same
recall, and hnswlib has no wheels.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks import report
from benchmarks.measure import Row, by_round, finish, in_turns, ratio_of, seconds_of

SIZES = (1_000, 10_000, 100_000, 1_000_000)
WIDTH = 64  # entries a vector
NUM_TASTES = 200  # clusters the movies and the users come from
K = 10
NUM_SEEN = 100  # movies a user has seen, about the mean of MovieLens 100K
ROUNDS = 3  # of all ways in turns
QUERIES = 70  # single queries that are timed, a round
BATCHES = 2  # batches that are timed, a round
BATCH = 1_000  # users a batch; 100 for a million movies, whose scores would fill 4 GB otherwise
PROBES = 16  # lists the inverted file looks into

WAYS = {"jax": "brute force, JAX", "faiss": "FAISS, inverted file", "numpy": "brute force, NumPy"}

#: Maps users `(B, 64)` and what they have seen `(B, 100)` to ids `(B, 10)`, best first.
Serve = Callable[[np.ndarray, np.ndarray], np.ndarray]


def catalogue(num_movies: int, num_users: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors with structure: movies and users around common tastes, popular movies longer.

    A movie is a taste plus noise as large, with a log-normal length (0.3); a user is the sum of
    two tastes plus noise. Seen movies are drawn at random.

    Returns:
        `(num_movies, 64)` and `(num_users, 64)` float32, and `(num_users, 100)` int32 seen ids.
    """
    rng = np.random.default_rng(0)
    tastes = rng.standard_normal((NUM_TASTES, WIDTH), np.float32)
    movies = tastes[rng.integers(0, NUM_TASTES, num_movies)]
    movies += rng.standard_normal((num_movies, WIDTH), np.float32)
    movies /= np.linalg.norm(movies, axis=1, keepdims=True)
    movies *= rng.lognormal(0, 0.3, (num_movies, 1)).astype(np.float32)
    users = tastes[rng.integers(0, NUM_TASTES, (num_users, 2))].sum(axis=1)
    users += rng.standard_normal((num_users, WIDTH), np.float32)
    seen = rng.integers(0, num_movies, (num_users, NUM_SEEN), dtype=np.int32)
    return movies, users, seen


def numpy_way(movies: np.ndarray) -> Serve:
    """Product, mask, partition, and a sort of the ten."""

    def serve(users: np.ndarray, seen: np.ndarray) -> np.ndarray:
        scores = users @ movies.T
        np.put_along_axis(scores, seen, -np.inf, axis=1)
        best = np.argpartition(scores, len(movies) - K, axis=1)[:, -K:]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        return np.take_along_axis(best, order, axis=1)

    return serve


def jax_way(movies: np.ndarray) -> Serve:
    """The same as one compiled function."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def best(candidates: jax.Array, users: jax.Array, seen: jax.Array) -> jax.Array:
        scores = users @ candidates.T
        scores = scores.at[jnp.arange(len(users))[:, None], seen].set(-jnp.inf)
        return jax.lax.top_k(scores, K)[1]

    placed = jax.device_put(movies)
    return lambda users, seen: np.asarray(best(placed, users, seen))


def faiss_way(movies: np.ndarray) -> Serve:
    """An inverted file: tastes by k-means, and exact products with the movies of the nearest.

    As many more movies are asked for as a user has seen, and those are dropped.
    """
    import faiss

    lists = int(len(movies) ** 0.5)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(WIDTH), WIDTH, lists, faiss.METRIC_INNER_PRODUCT)
    sample = np.random.default_rng(0).permutation(len(movies))[: 64 * lists]
    index.train(movies[sample])
    index.add(movies)
    index.nprobe = PROBES

    def serve(users: np.ndarray, seen: np.ndarray) -> np.ndarray:
        ids = index.search(users, K + NUM_SEEN)[1]
        own = np.arange(len(users))[:, None] * len(movies)  # a number for each user and movie
        dropped = np.isin(own + ids, own + seen)
        unseen = np.argsort(dropped, axis=1, kind="stable")[:, :K]
        return np.take_along_axis(ids, unseen, axis=1)

    return serve


def child(way: str, num_movies: int, queries: int, batch: int) -> None:
    """Measure one way in this process, and hand the figures back."""
    movies, users, seen = catalogue(num_movies, max(queries, batch))
    started = time.perf_counter()
    serve = {"numpy": numpy_way, "jax": jax_way, "faiss": faiss_way}[way](movies)
    built = time.perf_counter() - started
    first, *_ = (seconds_of(lambda: serve(users[:1], seen[:1])) for _ in range(11))
    seconds = [
        seconds_of(lambda row=row: serve(users[row : row + 1], seen[row : row + 1]))
        for row in range(queries)
    ]
    first_batch, *batches = (
        seconds_of(lambda: serve(users[:batch], seen[:batch])) for _ in range(1 + BATCHES)
    )
    finish(
        {
            "built": built,
            "first": first,
            "single": seconds,
            "first_batch": first_batch,
            "batch": batches,
            "ids": serve(users[:batch], seen[:batch]).tolist(),
        }
    )


def measure(quick: bool = False) -> list[Row]:
    """Latency, throughput and recall by the size of the catalogue."""
    rows = []
    for size in SIZES[:1] if quick else SIZES:
        batch = BATCH if size < 1_000_000 else BATCH // 10
        children = {way: [way, size, 20 if quick else QUERIES, batch] for way in WAYS}
        found = in_turns(__name__, children, 1 if quick else ROUNDS)
        for way in ("jax", "faiss"):
            recall = overlap(found[way][0][0]["ids"], found["numpy"][0][0]["ids"])
            if way == "jax" and recall < 0.999:
                raise AssertionError(f"{size:,} movies: JAX and NumPy rank differently: {recall}")
            rows += rows_of(way, size, batch, found[way], found["numpy"])
        case, first = f"{WAYS[way]}: recall@{K}; {size:,} movies", median_of(found[way], "built")
        rows.append(Row("serving", case, recall, "", recall, recall, runs=batch, first=first))
    return rows


def overlap(found: list[list[int]], exact: list[list[int]]) -> float:
    """The share of the exact lists that was found."""
    hits = [len(set(ours) & set(best)) for ours, best in zip(found, exact, strict=True)]
    return sum(hits) / (K * len(exact))


def median_of(found: list[tuple[dict, float]], key: str) -> float:
    """The median over the rounds."""
    return statistics.median(by_round(found, key))


def rows_of(
    way: str,
    size: int,
    batch: int,
    ours: list[tuple[dict, float]],
    reference: list[tuple[dict, float]],
) -> list[Row]:
    """The row of the latency and the row of the throughput, from the rounds of both."""
    peak = max(peak for _, peak in ours)
    single = 1e3 * np.concatenate(by_round(ours, "single"))
    median, low, high = np.quantile(single, [0.5, 0.05, 0.95]).tolist()
    rates = batch / np.concatenate(by_round(ours, "batch"))
    return [
        Row(
            "serving",
            f"{WAYS[way]}: one user, median (5 % to 95 %); {size:,} movies",
            median,
            "ms",
            low,
            high,
            runs=len(single),
            first=median_of(ours, "built") + median_of(ours, "first"),
            peak_mib=peak,
            reference=WAYS["numpy"],
            reference_value=1e3 * float(np.median(np.concatenate(by_round(reference, "single")))),
            ratio=ratio_of(by_round(reference, "single"), by_round(ours, "single")),
        ),
        Row.of(
            "serving",
            f"{WAYS[way]}: {batch:,} users at once; {size:,} movies",
            rates.tolist(),
            "users/s",
            first=median_of(ours, "first_batch"),
            peak_mib=peak,
            reference=WAYS["numpy"],
            reference_value=batch / float(np.median(np.concatenate(by_round(reference, "batch")))),
            ratio=ratio_of(by_round(reference, "batch"), by_round(ours, "batch")),
        ),
    ]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(sys.argv[1], *map(int, sys.argv[2:]))
    else:
        print(report.text_tables(measure()))
