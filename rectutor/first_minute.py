"""The first minute with a table of one's own: what it holds, what counting reaches, what to run.

`python -m rectutor table.csv` prints it. Nothing is trained and nothing is tuned: the settings of
the baselines are those of the book, and whether order matters is asked of the validation part.
"""

from __future__ import annotations

import copy
import functools
import os
import shlex
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from rectutor import own_table, repeats
from rectutor.baselines import _MOST_MOVIES, ALS, EASE, ItemKNN, Popularity, standard_baselines
from rectutor.evaluation import Comparison, Recommender, compare, evaluate
from rectutor.splits import Split, leave_one_out

if TYPE_CHECKING:
    from rectutor.data import Dataset

#: What each chapter needs: ratings, timestamps; users, movies, and of one user likes, at least.
NEEDS: dict[str, tuple[tuple[str, ...], int, int, int]] = {
    "sasrec": (("timestamps",), 20, 20, 4),
    "gru4rec": (("timestamps",), 20, 20, 5),
    "retrieval": (("ratings", "timestamps"), 10, 40, 1),
    "multi_task": (("ratings",), 20, 20, 1),
    "ranking": (("ratings",), 2, 2, 1),
}
#: Chapters that need an item-item matrix.
DENSE = ("gru4rec",)
#: Bytes that a chapter holds at once for every pair of a user and an item, where it does.
PAIRS = {"ranking": 40, "multi_task": 24, "retrieval": 16}

#: What tables call the baseline that counts what each user has had.
OWN_HISTORY = "own history, counted"
#: Item-item matrices in float64 that EASE holds at once, the one that is kept among them.
_MATRICES = 5


def report(file: str) -> Comparison | None:
    """Print what a table holds, what the baselines reach on it, and which chapter to run.

    Args:
        file: the path of the table, see `rectutor.own_table.read`.

    Returns:
        The baselines on the test part of the leave-one-out split; None where no user has the
        three interactions that it takes.

    Raises:
        ValueError: the table cannot be read.
    """
    data = own_table.read(file)
    print(holds(data))
    split = leave_one_out(data)
    if not len(split.test):
        print("no user has three interactions, so there is nothing to learn from and to ask about")
        return None
    again = own_table.num_repeats(data.ratings)
    exclude_seen = repeats.excluded(default=again < repeats.MANY * len(data.ratings))
    if not exclude_seen:
        print("what a user has had may be recommended again (RECTUTOR_EXCLUDE_SEEN=yes: not)")
    elif again:
        print("what a user has had is not recommended again (RECTUTOR_EXCLUDE_SEEN=no: it is)")
    if not data.has_timestamps:
        print("there are no times; the order of the rows stands for them")
    print(f"\n{len(split.test):,} users' last items, among all {data.num_movies:,} (one test, no")
    print("setting tried), with 95 % intervals over users")
    k = min(10, data.num_movies)
    print(f"{'':22}{f'HR@{k}':22}{f'NDCG@{k}':22}seconds")
    results, (recommenders, left_out) = {}, _candidates(split)
    if not exclude_seen:
        recommenders[OWN_HISTORY] = lambda: repeats.own_history(split.num_movies)
    for name, made in recommenders.items():
        start = time.perf_counter()
        found = evaluate(made(), split, k=k, exclude_seen=exclude_seen, name=name)
        took = time.perf_counter() - start
        results[name] = found
        hit_rate, ndcg = str(found.metrics["hit_rate"]), str(found.metrics["ndcg"])
        print(f"{name:22}{hit_rate:22}{ndcg:22}{took:.1f}", flush=True)
    if left_out:
        print(left_out)
    print()
    for line in advice(data, split, fits=not left_out, exclude_seen=exclude_seen):
        print(line)
    switch = "" if exclude_seen else "RECTUTOR_EXCLUDE_SEEN=no "
    if wanted := os.environ.get("RECTUTOR_COLUMNS"):
        switch += f"RECTUTOR_COLUMNS={shlex.quote(wanted)} "
    shown = shlex.quote(file)
    print(f"run a chapter with {switch}RECTUTOR_DATA={shown} python notebooks/NAME.py")
    return compare(results)


def holds(data: Dataset) -> str:
    """What a data set holds, in two lines."""
    counts = np.bincount(data.ratings["user_id"])[1:]
    taken = np.sort(np.bincount(data.ratings["movie_id"], minlength=data.num_movies + 1)[1:])
    tenth = taken[-max(1, data.num_movies // 10) :].sum() / len(data.ratings)
    return (
        f"{len(data.ratings):,} interactions of {data.num_users:,} users with "
        f"{data.num_movies:,} items; a user has {np.median(counts):.0f} in the middle, and nine in "
        f"ten have at most {np.quantile(counts, 0.9):.0f}\n"
        f"the most taken tenth of the items has {tenth:.0%} of the interactions"
    )


def affordable_baselines(
    split: Split, exclude_seen: bool = True
) -> tuple[dict[str, Recommender], str]:
    """The book's baselines, or those that do without an item-item matrix where it does not fit.

    Args:
        split: the interactions; the baselines are fitted on `train` and `validation`.
        exclude_seen: whether what a user has had is left out; where it competes, what a user
            has had most often is a baseline.

    Returns:
        Name to fitted recommender, as `standard_baselines` has them; and what
        is left out and why, empty where nothing is.
    """
    left_out = _does_not_fit(split.num_movies)
    fitted: dict[str, Recommender] = (
        {name: made() for name, made in _candidates(split)[0].items()}
        if left_out
        else dict(standard_baselines(split))
    )
    if not exclude_seen:
        fitted[OWN_HISTORY] = repeats.own_history(split.num_movies)
    return fitted, left_out


def advice(data: Dataset, split: Split, *, fits: bool, exclude_seen: bool) -> list[str]:
    """Which chapters the table can serve, and which is worth running, a line each.

    Args:
        data: the table.
        split: its leave-one-out split, of which the validation part is asked.
        fits: whether an item-item matrix fits in memory.
        exclude_seen: whether what a user has had may not be recommended.
    """
    lines, matters = [], None
    if data.has_timestamps and fits:
        plain = ItemKNN().fit(split)
        asked = {"plain": plain, "recency": _fading(plain)}
        k = min(10, data.num_movies)
        how: dict[str, Any] = {"on": "validation", "k": k, "exclude_seen": exclude_seen}
        found = compare(
            {name: evaluate(each, split, **how, name=name) for name, each in asked.items()}
        ).better("recency", "plain")
        matters = found.low > 0
        verdict = "order matters" if matters else "order is not seen to matter"
        lines.append(
            f"{verdict}: on validation kNN's NDCG@{k} changes by {found.value:+.3f} "
            f"[{found.low:+.3f}, {found.high:+.3f}]\n    when the latest items weigh most"
        )
    possible = [name for name in NEEDS if not _lacking(data, name)]
    if not exclude_seen:  # SASRec's loss leaves out what comes again
        possible.sort(key=lambda name: name == "sasrec")
    if matters is False:  # those that need no order first
        possible.sort(key=lambda name: name in ("sasrec", "gru4rec"))
    if possible:
        others = ", ".join(possible[1:]) or "none"
        lines.append(f"worth running first: {possible[0]}; also possible: {others}")
    lines += [f"{name} {why}" for name in NEEDS if (why := _lacking(data, name))]
    return lines


def check_matrix_fits(num_movies: int) -> None:
    """Refuse a catalogue whose item-item matrix does not fit.

    Raises:
        ValueError: it does not; the message says how large it would be.
    """
    needed = _too_large(num_movies)
    if needed:
        raise ValueError(
            f"the chapter needs an item-item matrix, and {num_movies:,} movies make matrices of "
            f"{needed}; keep the most taken items"
        )


def check_pairs_fit(name: str, data: Dataset) -> None:
    """Refuse a table whose users times items do not fit, for a chapter that has a number of each.

    Args:
        name: of the chapter.
        data: the table.

    Raises:
        ValueError: it does not fit; the message says how large it would be.
    """
    needed = _too_many_pairs(name, data)
    if needed:
        raise ValueError(
            f"the chapter holds numbers of every pair of a user and an item: {data.num_users:,} "
            f"users and {data.num_movies:,} items make {needed}; keep the most active users or "
            "the most taken items"
        )


def check_history(data: Dataset, least: int) -> None:
    """Refuse data in which no history is long enough for a window.

    Raises:
        ValueError: no user has so many interactions of two stars and more.
    """
    most = most_likes(data)
    if most < least:
        raise ValueError(
            f"the chapter needs a user with {least} interactions of two stars and more, and the "
            f"longest such history has {most}; give longer histories, or run the "
            "chapter on ranking or retrieval"
        )


def most_likes(data: Dataset) -> int:
    """How many interactions, of two stars and more of five, the user has who has most."""
    ratings = own_table.on_five_stars(data).ratings
    return int(np.bincount(ratings["user_id"][ratings["rating"] >= 2], minlength=1).max())


def _lacking(data: Dataset, name: str) -> str:
    """Why a chapter cannot use the data; empty where it can."""
    needs, users, movies, likes = NEEDS[name]
    has = {"ratings": data.has_ratings, "timestamps": data.has_timestamps}
    lacking = [each for each in needs if not has[each]]
    if data.num_users < users or data.num_movies < movies:
        lacking.append(f"{users} users and {movies} items")
    if most_likes(data) < likes:
        lacking.append(f"a user with {likes} interactions of two stars and more")
    if name in DENSE and _too_large(data.num_movies):
        lacking.append("an item-item matrix, which does not fit")
    if _too_many_pairs(name, data):
        lacking.append("a matrix of users and items, which does not fit")
    return f"needs {' and '.join(lacking)}" if lacking else ""


def _candidates(split: Split) -> tuple[dict[str, Callable[[], Recommender]], str]:
    """Name to what makes the fitted recommender; and what is left out and why."""
    left_out = _does_not_fit(split.num_movies)
    if left_out:
        return {
            "popularity": lambda: Popularity().fit(split, include_validation=True),
            "ALS": lambda: ALS().fit(split, include_validation=True),
        }, left_out
    neighbours = functools.cache(lambda: ItemKNN().fit(split, include_validation=True))
    return {
        "popularity": lambda: Popularity().fit(split, include_validation=True),
        "item kNN": neighbours,
        "item kNN, recency": lambda: _fading(neighbours()),
        "EASE": lambda: EASE(200.0).fit(split, include_validation=True),
        "EASE, recency": lambda: EASE(1000.0, tau=3.0).fit(split, include_validation=True),
    }, ""


def _fading(fitted: ItemKNN) -> ItemKNN:
    """The same neighbours, asked with recency weights."""
    found = copy.copy(fitted)
    found.tau = 3.0
    return found


def _does_not_fit(num_movies: int) -> str:
    """Why item-item matrices are left out; empty where they fit."""
    needed = _too_large(num_movies)
    if not needed:
        return ""
    return (
        f"item kNN and EASE are left out: {num_movies:,} items make item-item matrices of "
        f"{needed}; keep the most taken items to have them"
    )


def _too_large(num_movies: int) -> str:
    """How large item-item matrices would be; empty where they fit."""
    needed = _MATRICES * 8 * (num_movies + 1) ** 2
    if num_movies <= _MOST_MOVIES and needed <= _memory() / 2:
        return ""
    return f"{needed / 1e9:.0f} GB"


def _too_many_pairs(name: str, data: Dataset) -> str:
    """How large a chapter's matrices of users and items would be; empty where they fit."""
    needed = PAIRS.get(name, 0) * (data.num_users + 1) * (data.num_movies + 1)
    return f"{needed / 1e9:.0f} GB" if needed > _memory() / 2 else ""


def _memory() -> float:
    """Bytes of memory that the machine has; without end where it does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return float("inf")
