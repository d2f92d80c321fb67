"""Serving: the ten best unseen movies for a user, by brute force and by an approximate index.

Brute force on JAX (one compiled call: product, mask, `top_k`) and FAISS's inverted file index
against brute force in NumPy, by the size of the catalogue.

FAISS (`faiss-cpu`) is the approximate index because it ranks by inner product as the models do,
builds an index of a million in seconds, and comes as one wheel for every Python from 3.10. Graph
indexes (usearch, FAISS's own HNSW) take many times as long to build on two cores for the same
recall, and hnswlib has no wheels.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks import report
from benchmarks.measure import Row, finish, in_child, timed

SIZES = (1_000, 10_000, 100_000, 1_000_000)
WIDTH = 64  # entries a vector
NUM_TASTES = 200  # clusters the movies and the users come from
K = 10
NUM_SEEN = 100  # movies a user has seen, about the mean of MovieLens 100K
QUERIES = 200  # single queries that are timed
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
    first = timed(lambda: serve(users[:1], seen[:1]), runs=10).first
    seconds = []
    for row in range(queries):
        started = time.perf_counter()
        serve(users[row : row + 1], seen[row : row + 1])
        seconds.append(time.perf_counter() - started)
    batches = timed(lambda: serve(users[:batch], seen[:batch]))
    finish(
        {
            "built": built,
            "first": first,
            "single": np.quantile(seconds, [0.5, 0.05, 0.95]).tolist(),
            "first_batch": batches.first,
            "batch": [batches.median, batches.low, batches.high],
            "ids": serve(users[:batch], seen[:batch]).tolist(),
        }
    )


def measure(quick: bool = False) -> list[Row]:
    """Latency, throughput and recall by the size of the catalogue."""
    rows = []
    for size in SIZES[:1] if quick else SIZES:
        batch = BATCH if size < 1_000_000 else BATCH // 10
        found = {
            way: in_child(__name__, way, size, 20 if quick else QUERIES, batch) for way in WAYS
        }
        reference = found["numpy"][0]
        for way in ("jax", "faiss"):
            ours, peak = found[way]
            recall = overlap(ours["ids"], reference["ids"])
            if way == "jax" and recall < 0.999:
                raise AssertionError(f"{size:,} movies: JAX and NumPy rank differently: {recall}")
            rows += rows_of(way, size, batch, ours, reference, peak)
            if way == "faiss":
                rows.append(
                    Row(
                        "serving",
                        f"{WAYS[way]}: recall@{K}; {size:,} movies",
                        recall,
                        "",
                        recall,
                        recall,
                        runs=batch,
                        first=ours["built"],
                    )
                )
    return rows


def overlap(found: list[list[int]], exact: list[list[int]]) -> float:
    """The share of the exact lists that was found."""
    hits = [len(set(ours) & set(best)) for ours, best in zip(found, exact, strict=True)]
    return sum(hits) / (K * len(exact))


def rows_of(way: str, size: int, batch: int, ours: dict, reference: dict, peak: float) -> list[Row]:
    """The row of the latency and the row of the throughput."""
    median, low, high = ours["single"]
    seconds, fast, slow = ours["batch"]
    return [
        Row(
            "serving",
            f"{WAYS[way]}: one user, median (5 % to 95 %); {size:,} movies",
            1e3 * median,
            "ms",
            1e3 * low,
            1e3 * high,
            runs=QUERIES,
            first=ours["built"] + ours["first"],
            peak_mib=peak,
            reference=WAYS["numpy"],
            reference_value=1e3 * reference["single"][0],
            ratio=reference["single"][0] / median,
        ),
        Row(
            "serving",
            f"{WAYS[way]}: {batch:,} users at once; {size:,} movies",
            batch / seconds,
            "users/s",
            batch / slow,
            batch / fast,
            runs=5,
            first=ours["first_batch"],
            peak_mib=peak,
            reference=WAYS["numpy"],
            reference_value=batch / reference["batch"][0],
            ratio=reference["batch"][0] / seconds,
        ),
    ]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(sys.argv[1], *map(int, sys.argv[2:]))
    else:
        print(report.text_tables(measure()))
