"""Ratings to training windows: `rectutor.sequences` against plain Python, one row at a time.

The tables are synthetic, with as many users and movies as MovieLens has at that size. The loops
are what the documented recipes do, written plainly for this comparison: they go over the rows of
the table, keep a list a user, and slice lists into windows.
"""

from __future__ import annotations

import hashlib
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from benchmarks import report
from benchmarks.measure import (
    Row,
    by_round,
    finish,
    forget_peak,
    in_turns,
    peak_mib,
    ratio_of,
    resident_mib,
    seconds_of,
)
from rectutor import PADDING_ID
from rectutor.sequences import histories, sample_negatives, sliding_windows, training_windows

#: Ratings: users, movies; those of MovieLens 100K, 1M and 10M, and a tiny one for the tests.
SHAPES = {
    2_000: (20, 100),
    100_000: (943, 1_682),
    1_000_000: (6_040, 3_706),
    10_000_000: (69_878, 10_677),
}

CONTEXT = 10  # movies a window of the documented GRU4Rec
LENGTH = 50  # positions a training window of the chapters
TARGET_SIZE = 1_000_000
TARGET_TIMES = 100
TARGET_MEMORY = 6
ROUNDS = 3  # ours and the loop in turns
RUNS = 2  # of each, a round
LARGEST_LOOP_SECONDS = 50  # what the loop may take at the largest size, where it runs once


def ratings_of(count: int, seed: int = 0) -> pd.DataFrame:
    """A table of `count` ratings in the book's schema, rows in no order.

    Users differ in how much they rate (log-normal), movies in how often they are rated.
    """
    num_users, num_movies = SHAPES[count]
    rng = np.random.default_rng(seed)
    activity = rng.lognormal(0, 1, num_users).clip(0.1, 8)
    popularity = 1 / (np.arange(num_movies) + 20)
    return pd.DataFrame(
        {
            "user_id": _draw(rng, activity, count),
            "movie_id": _draw(rng, popularity, count),
            "rating": rng.integers(1, 6, count, dtype=np.int8),
            "timestamp": rng.integers(950_000_000, 1_050_000_000, count),
        }
    )


def _draw(rng: np.random.Generator, weights: np.ndarray, count: int) -> np.ndarray:
    """`(count,)` int32 ids from 1, each as often as its weight says."""
    edges = np.cumsum(weights) / weights.sum()
    return (np.searchsorted(edges[:-1], rng.random(count)) + 1).astype(np.int32)


def loop_histories(ratings: pd.DataFrame) -> dict[int, list[int]]:
    """Each user's movies in time order, by user id."""
    watched: dict[int, list[tuple[int, int]]] = {}
    for row in ratings.itertuples():
        watched.setdefault(row.user_id, []).append((row.timestamp, row.movie_id))
    return {
        user: [movie for _, movie in sorted(watched[user], key=lambda pair: pair[0])]
        for user in sorted(watched)
    }


def loop_sliding_windows(ratings: pd.DataFrame, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The same as `sliding_windows(histories(ratings), length)`."""
    contexts, targets = [], []
    for movies in loop_histories(ratings).values():
        if len(movies) < 3:
            continue
        for place in range(1, len(movies)):
            context = movies[max(0, place - length) : place]
            context += [PADDING_ID] * (length - len(context))
            contexts.append(context)
            targets.append(movies[place])
    return np.array(contexts, np.int32), np.array(targets, np.int32)


def loop_training_windows(
    ratings: pd.DataFrame, length: int, num_movies: int = 0, seed: int = 0
) -> tuple[np.ndarray, ...]:
    """The same as `training_windows(histories(ratings), length)`.

    With `num_movies` also one negative for every target: a movie that the user has not watched,
    drawn again while it is in the user's list.
    """
    draw = random.Random(seed)
    inputs, targets, negatives = [], [], []
    for movies in loop_histories(ratings).values():
        for end in reversed(range(len(movies) - 1, 0, -length)):
            start = max(0, end - length)
            padding = [PADDING_ID] * (length - (end - start))
            inputs.append(padding + movies[start:end])
            targets.append(padding + movies[start + 1 : end + 1])
            if num_movies:
                drawn = []
                for _ in range(end - start):
                    movie = draw.randint(1, num_movies)
                    while movie in movies:
                        movie = draw.randint(1, num_movies)
                    drawn.append(movie)
                negatives.append(padding + drawn)
    arrays = [inputs, targets, negatives] if num_movies else [inputs, targets]
    return tuple(np.array(rows, np.int32).reshape(-1, length) for rows in arrays)


def our_negatives(ratings: pd.DataFrame, num_movies: int) -> tuple[np.ndarray, ...]:
    """The windows of the SASRec chapter, and one negative a position."""
    known = histories(ratings)
    inputs, targets, users = training_windows(known, LENGTH, return_users=True)
    return inputs, targets, sample_negatives(known, num_movies, LENGTH, seed=0, users=users)


class Recipe(NamedTuple):
    """One way to prepare data, ours and as a loop: `(ratings, num_movies)` to arrays.

    The first two arrays must be equal; a third one is of random negatives.
    """

    case: str
    ours: Callable[[pd.DataFrame, int], tuple[np.ndarray, ...]]
    loop: Callable[[pd.DataFrame, int], tuple[np.ndarray, ...]]


RECIPES = {
    "sliding": Recipe(
        f"GRU4Rec, documented: sliding windows of {CONTEXT}",
        lambda ratings, _: sliding_windows(histories(ratings), CONTEXT),
        lambda ratings, _: loop_sliding_windows(ratings, CONTEXT),
    ),
    "windows": Recipe(
        f"GRU4Rec, made right: training windows of {LENGTH}",
        lambda ratings, _: training_windows(histories(ratings), LENGTH),
        lambda ratings, _: loop_training_windows(ratings, LENGTH),
    ),
    "negatives": Recipe(
        f"SASRec: training windows of {LENGTH}, a negative a position",
        our_negatives,
        lambda ratings, num_movies: loop_training_windows(ratings, LENGTH, num_movies),
    ),
}


def check_negatives(ratings: pd.DataFrame, arrays: tuple[np.ndarray, ...], num_movies: int) -> None:
    """Check that no negative was watched by its window's user.

    Raises:
        AssertionError: one was, or one is no movie.
    """
    _, targets, negatives = arrays
    known = histories(ratings)
    users = training_windows(known, LENGTH, return_users=True)[2]
    real = targets != PADDING_ID
    drawn = negatives[real]
    owners = np.repeat(users, real.sum(axis=1)).astype(np.int64)
    watched = ratings["user_id"].to_numpy().astype(np.int64) * (num_movies + 1)
    watched += ratings["movie_id"].to_numpy()
    assert drawn.min() >= 1
    assert drawn.max() <= num_movies
    assert not np.isin(owners * (num_movies + 1) + drawn, watched).any()


def child(recipe: str, which: str, count: int, runs: int) -> None:
    """Measure one recipe in this process, and hand the figures back.

    Memory is that of the first call. For ours this call is the warm-up, and `runs` follow it;
    for the loop, which has nothing to warm up, it is one of the `runs`.

    Args:
        recipe: a key of `RECIPES`.
        which: `"ours"` or `"loop"`.
        count: ratings.
        runs: runs to time.
    """
    chosen, num_movies = RECIPES[recipe], SHAPES[count][1]
    work = chosen.ours if which == "ours" else chosen.loop
    ratings = ratings_of(count)
    forget_peak()
    before, started = resident_mib(), time.perf_counter()
    arrays = work(ratings, num_movies)
    seconds = [time.perf_counter() - started] if which == "loop" else []
    growth, output = peak_mib() - before, sum(array.nbytes for array in arrays)
    content = hashlib.sha256(b"".join(array.tobytes() for array in arrays[:2]))
    if len(arrays) > 2 and count <= TARGET_SIZE:
        check_negatives(ratings, arrays, num_movies)
    del arrays
    parts: dict[str, list[float]] = {"histories_seconds": [], "sort_seconds": []}
    keys = np.random.default_rng(0).integers(0, 2**60, count)
    while len(seconds) < runs:
        seconds.append(seconds_of(lambda: work(ratings, num_movies)))
        if which == "ours":  # what an unmet target is put down to
            parts["histories_seconds"].append(seconds_of(lambda: histories(ratings)))
            parts["sort_seconds"].append(seconds_of(lambda: np.sort(keys)))
    finish(
        {
            "seconds": seconds,
            "growth_mib": growth,
            "output_mib": output / 2**20,
            "input_mib": ratings.memory_usage(index=False).sum() / 2**20,
            **parts,
            "digest": content.hexdigest(),
        }
    )


def measure(quick: bool = False) -> list[Row]:
    """Time and memory of every recipe at every size."""
    rows = []
    loop_seconds = dict.fromkeys(RECIPES, 0.0)
    for count in [2_000] if quick else [size for size in SHAPES if size > 2_000]:
        large = count > TARGET_SIZE
        rounds, runs = (1, 5) if large else (ROUNDS, RUNS)
        for name, recipe in RECIPES.items():
            children = {"ours": [name, "ours", count, runs]}
            if 10 * loop_seconds[name] < LARGEST_LOOP_SECONDS:
                children["loop"] = [name, "loop", count, 1 if large else runs]
            found = in_turns(__name__, children, rounds)
            ours, loop = found["ours"], found.get("loop", [])
            if len({payload["digest"] for payload, _ in ours + loop}) > 1:
                raise AssertionError(f"{recipe.case}, {count:,}: the loop's windows differ")
            if loop:
                loop_seconds[name] = statistics.median(pooled(loop, "seconds"))
            rows += rows_of(recipe.case, count, ours, loop)
    return rows


def pooled(found: list[tuple[dict, float]], key: str) -> list[float]:
    """The figures of all rounds together."""
    return [value for values in by_round(found, key) for value in values]


def rows_of(
    case: str, count: int, ours: list[tuple[dict, float]], loop: list[tuple[dict, float]]
) -> list[Row]:
    """The row of the times and the row of the memory, from the rounds of both."""
    seconds, peak = pooled(ours, "seconds"), max(peak for _, peak in ours)
    times, slow = None, pooled(loop, "seconds")
    if loop:
        times = ratio_of(by_round(loop, "seconds"), by_round(ours, "seconds"))
    size = f"{count:,} ratings"
    wanted = count == TARGET_SIZE
    met = times >= TARGET_TIMES if wanted and times else None
    limit = ""
    if met is False:
        value, grouping, sorting = (
            1000 * statistics.median(pooled(ours, key))
            for key in ("seconds", "histories_seconds", "sort_seconds")
        )
        limit = (
            f"of {value:.0f} ms, {grouping:.0f} group the ratings by user and time; to sort as "
            f"many 64-bit integers alone takes NumPy {sorting:.0f} ms"
        )
    share, loop_share = (
        statistics.median(p["growth_mib"] / p["input_mib"] for p, _ in found) if found else None
        for found in (ours, loop)
    )
    fits = share < TARGET_MEMORY
    rows = [
        Row.of(
            "preparation",
            f"{case}; {size}" + ("" if loop else " (the loop would take minutes)"),
            seconds,
            "s",
            peak_mib=peak,
            reference=f"Python loop, {len(slow)} runs" if loop else None,
            reference_value=statistics.median(slow) if loop else None,
            ratio=times,
            target=f">= {TARGET_TIMES} times" if met is not None else None,
            met=met,
            limit=limit,
        )
    ]
    if count < TARGET_SIZE:  # there the memory of the process itself weighs too much
        return rows
    windows = ours[0][0]["output_mib"] / ours[0][0]["input_mib"]
    memory = Row.of(
        "preparation",
        f"{case}; {size}, memory",
        [share],
        "x input",
        peak_mib=peak,
        reference="Python loop" if loop else None,
        reference_value=loop_share,
        ratio=loop_share / share if loop_share else None,
        target=f"< {TARGET_MEMORY} x input",
        met=fits,
        limit="" if fits else f"the arrays it returns are {windows:.1f} times the input",
    )
    return [*rows, memory]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        name, which, *numbers = sys.argv[1:]
        child(name, which, *map(int, numbers))
    else:
        print(report.text_tables(measure()))
