"""The synthetic data set's generator: who likes what, what follows what, and how it is rated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rectutor._tables import Tables, movies_table

_TASTES = 8  # groups of users, and of movies
_SUCCESSORS = 6  # movies that tend to follow a movie
_FOLLOW = 0.6  # how often the next movie is one of them
_SKEW = 1.2  # popularity of the movie of rank r is (r + 10)^-skew
_LIKING = 1.3  # how much a group prefers its own genre when it chooses (log scale)
_STARS = 0.8  # how much liking moves the stars
_NOISE = 0.7  # standard deviation of a rating, in stars, before rounding
_SEEN_CELLS = 2**26  # how many (user, movie) cells are held at once
_GENRES = ("Action", "Comedy", "Drama", "Horror", "Musical", "Romance", "Sci-Fi", "Western")
_OCCUPATIONS = ("student", "educator", "engineer", "artist", "writer", "lawyer", "other", "retired")
_EPOCH = 883_612_800  # 1998-01-01, in seconds


@dataclass(frozen=True)
class World:
    """What the generator knows: the laws that the interactions are drawn from.

    Attributes:
        taste: `(num_users + 1,)` each user's group; row 0 is padding.
        choice: `(groups, num_movies + 1)` how each group chooses when it follows nothing; rows
            sum to 1 and column 0 is 0.
        successors: `(num_movies + 1, s)` the movies that tend to follow each movie.
        weights: `(s,)` with which probability, given that one of them follows.
        user_bias: `(num_users + 1,)` in stars.
        movie_bias: `(num_movies + 1,)` in stars.
        liking: `(groups, num_movies + 1)` in stars.
        genre: `(num_movies + 1,)` each movie's genre.
    """

    taste: np.ndarray
    choice: np.ndarray
    successors: np.ndarray
    weights: np.ndarray
    user_bias: np.ndarray
    movie_bias: np.ndarray
    liking: np.ndarray
    genre: np.ndarray

    def probabilities(self, user_ids: np.ndarray, last_movie_ids: np.ndarray) -> np.ndarray:
        """The law of the next movie, before the movies already seen are ruled out.

        Args:
            user_ids: `(B,)`.
            last_movie_ids: `(B,)` the movie before; 0 where there is none.

        Returns:
            `(B, num_movies + 1)`, rows sum to 1, column 0 is 0.
        """
        user_ids, last = np.asarray(user_ids), np.asarray(last_movie_ids)
        follow = np.where(last > 0, _FOLLOW, 0.0)[:, None]
        result: np.ndarray = (1.0 - follow) * self.choice[self.taste[user_ids]]
        np.add.at(
            result,
            (np.arange(len(last))[:, None], self.successors[last]),
            follow * self.weights,
        )
        return result

    def stars(self, user_ids: np.ndarray, movie_ids: np.ndarray) -> np.ndarray:
        """The rating before noise and rounding, in stars, of `(B,)` users and `(B,)` movies."""
        user_ids, movie_ids = np.asarray(user_ids), np.asarray(movie_ids)
        liking = self.liking[self.taste[user_ids], movie_ids]
        expected = 3.5 + self.user_bias[user_ids] + self.movie_bias[movie_ids] + liking
        stars: np.ndarray = np.clip(expected, 1.0, 5.0)
        return stars


def world(num_users: int, num_movies: int, seed: int) -> World:
    """Draw the laws of a synthetic data set."""
    rng = np.random.default_rng([seed, 0])
    taste = rng.integers(0, _TASTES, num_users + 1)
    genre = rng.integers(0, _TASTES, num_movies + 1)
    popularity = (rng.permutation(num_movies) + 10.0) ** -_SKEW
    centres = rng.normal(size=(_TASTES, _TASTES)) / 2 + 1.5 * np.eye(_TASTES)
    affinity = centres[:, genre] + rng.normal(size=(_TASTES, num_movies + 1)) / 3
    affinity -= affinity.mean()
    affinity /= affinity.std() + 1e-9
    choice = np.exp(_LIKING * affinity)
    choice[:, 0] = 0.0
    choice[:, 1:] *= popularity
    choice /= choice.sum(axis=1, keepdims=True)
    count = min(_SUCCESSORS, num_movies)
    cumulative = np.cumsum(popularity**0.7)
    picks = np.searchsorted(cumulative, rng.random((num_movies + 1, count)) * cumulative[-1]) + 1
    successors = np.minimum(picks, num_movies)
    weights = 0.7 ** np.arange(count)
    return World(
        taste=taste,
        choice=choice,
        successors=successors,
        weights=weights / weights.sum(),
        user_bias=rng.normal(0.0, 0.4, num_users + 1),
        movie_bias=rng.normal(0.0, 0.4, num_movies + 1),
        liking=_STARS * affinity,
        genre=genre,
    )


def generate(num_users: int, num_movies: int, num_ratings: int, seed: int) -> Tables:
    """Draw a synthetic data set from its world; see `rectutor.data.synthetic`."""
    laws = world(num_users, num_movies, seed)
    rng = np.random.default_rng([seed, 1])
    lengths = _lengths(num_users, num_movies, num_ratings, rng)
    user_id = np.repeat(np.arange(1, num_users + 1, dtype=np.int32), lengths)
    movie_id = _sequences(laws, lengths, rng)
    stars = laws.stars(user_id, movie_id) + rng.normal(0.0, _NOISE, num_ratings)
    begin = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    gaps = 1 + rng.exponential(600.0, num_ratings).astype(np.int64)
    gaps[begin] = rng.integers(0, 200 * 86_400, num_users)
    elapsed = np.cumsum(gaps)
    # a user's clock starts at the first rating: take away what earlier users have used up
    timestamp = _EPOCH + elapsed - np.repeat(elapsed[begin] - gaps[begin], lengths)
    order = np.lexsort((user_id, timestamp))
    ratings = pd.DataFrame(
        {
            "user_id": user_id[order],
            "movie_id": movie_id[order],
            "rating": np.clip(np.rint(stars), 1, 5).astype(np.int8)[order],
            "timestamp": timestamp[order],
            "original_user_id": user_id[order].astype(np.int64),
            "original_movie_id": movie_id[order].astype(np.int64),
        }
    )
    return Tables(ratings, _movies(laws, rng), _users(laws, rng))


def _lengths(
    num_users: int, num_movies: int, num_ratings: int, rng: np.random.Generator
) -> np.ndarray:
    """`(num_users,)` how many movies each user rates: skewed, at least one, at most all."""
    mean = num_ratings / num_users
    least = min(20, max(1, int(mean / 3)))
    most = max(int(np.ceil(mean)), min(num_movies, int(num_movies * 0.6), int(mean * 12)))
    share = rng.lognormal(0.0, 0.9, num_users)
    lengths: np.ndarray = np.clip(share / share.mean() * mean, least, most).astype(np.int64)
    while (rest := num_ratings - int(lengths.sum())) != 0:  # a few rounds of corrections
        room = np.flatnonzero(lengths < most) if rest > 0 else np.flatnonzero(lengths > least)
        chosen = rng.permutation(room)[: abs(rest)]
        lengths[chosen] += 1 if rest > 0 else -1
    return lengths


def _sequences(laws: World, lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`(lengths.sum(),)` int32: every user's movies in order of time, user after user.

    All users take their k-th step together. A movie is drawn from the user's law until it is one
    the user has not seen, which is the law given that it is new.
    """
    num_users, num_movies = len(lengths), laws.choice.shape[1] - 1
    begin = np.concatenate([[0], np.cumsum(lengths)])
    result = np.zeros(begin[-1], dtype=np.int32)
    # One sorted table for all groups: group g's share of the line is [g, g + 1].
    line = (np.cumsum(laws.choice, axis=1) + np.arange(_TASTES)[:, None]).ravel()
    cumulative_weights = np.cumsum(laws.weights)
    block = max(1, _SEEN_CELLS // (num_movies + 1))
    for first in range(0, num_users, block):
        # the longest first, so that the users still active are always a prefix
        users = first + np.argsort(-lengths[first : first + block], kind="stable")
        steps = lengths[users]
        seen = np.zeros((len(users), num_movies + 1), dtype=bool)
        last = np.zeros(len(users), dtype=np.int64)
        group = laws.taste[users + 1]
        for step in range(int(steps[0])):
            active = int(np.searchsorted(-steps, -step, side="left"))
            waiting = np.arange(active)
            drawn = np.zeros(active, dtype=np.int64)
            for _ in range(24):
                previous = last[waiting]
                movie = _draw(laws, line, cumulative_weights, group[waiting], previous, rng)
                fresh = ~seen[waiting, movie]
                drawn[waiting[fresh]] = movie[fresh]
                waiting = waiting[~fresh]
                if len(waiting) == 0:
                    break
            if len(waiting):  # nearly everything is seen: draw from what is left
                left = laws.probabilities(users[waiting] + 1, last[waiting])
                left = np.where(seen[waiting], 0.0, left + 1e-12)
                left[:, 0] = 0.0
                keys = rng.random(left.shape) ** (1.0 / np.maximum(left, 1e-300))
                keys[left == 0.0] = -1.0
                drawn[waiting] = keys.argmax(axis=1)
            seen[np.arange(active), drawn] = True
            last[:active] = drawn
            result[begin[users[:active]] + step] = drawn
    return result


def _draw(
    laws: World,
    line: np.ndarray,
    cumulative_weights: np.ndarray,
    group: np.ndarray,
    previous: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """`(B,)` one movie each from the law of the next movie."""
    follow = (rng.random(len(group)) < _FOLLOW) & (previous > 0)
    uniform = rng.random(len(group))
    rank = np.minimum(
        np.searchsorted(cumulative_weights, uniform, side="right"), len(cumulative_weights) - 1
    )
    width = laws.choice.shape[1]
    movie: np.ndarray = laws.successors[previous, rank]
    own = ~follow
    place = np.searchsorted(line, group[own] + uniform[own], side="right") - group[own] * width
    movie[own] = np.clip(place, 1, width - 1)
    return movie


def _movies(laws: World, rng: np.random.Generator) -> pd.DataFrame:
    """The catalogue: every movie, rated or not."""
    ids = np.arange(1, len(laws.genre), dtype=np.int32)
    years = rng.integers(1950, 1999, len(ids))
    titles = [f"Synthetic {k:04d} ({year})" for k, year in zip(ids, years, strict=True)]
    genres = np.array(_GENRES, dtype=object)[laws.genre[1:]]
    return movies_table(ids.astype(np.int64), pd.Series(titles, dtype="str"), genres)


def _users(laws: World, rng: np.random.Generator) -> pd.DataFrame:
    """The users: age and occupation lean with taste."""
    taste = laws.taste[1:]
    ids = np.arange(1, len(taste) + 1, dtype=np.int32)
    occupation = (taste + rng.integers(0, 3, len(ids))) % len(_OCCUPATIONS)
    return pd.DataFrame(
        {
            "user_id": ids,
            "age": np.clip(rng.normal(20 + 5 * taste, 6.0), 7, 80).astype(np.int16),
            "gender": np.where(rng.random(len(ids)) < 0.5, "F", "M"),
            "occupation": np.array(_OCCUPATIONS, dtype=object)[occupation],
            "zip_code": [f"{k:05d}" for k in rng.integers(0, 100_000, len(ids))],
            "original_user_id": ids.astype(np.int64),
        }
    ).astype({"gender": "str", "occupation": "str", "zip_code": "str"})
