"""The job of the serving chapter: two stages, and a ranker that met random rivals."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pandas as pd

from rectutor.evaluation import Trained, evaluate
from rectutor.splits import leave_one_out
from study.core import Comparison, Draw, Job, ranked


def two_stages(draw: Draw) -> dict[str, Any]:
    """As the chapter does it: rankers on the earlier cut, their depths on validation, then test."""
    code, settings, split = draw.code, draw.settings, draw.split
    data = draw.data
    known = code.without(split, np.arange(10, data.num_users + 1, 10))
    earlier = leave_one_out(known.train, num_users=data.num_users, num_movies=data.num_movies)
    keras.utils.set_random_seed(draw.seed)
    model = code.next_movie(settings, data.num_movies)
    code.fit(model, earlier.histories(before="validation"), settings, settings.epochs)
    sequence, ease = code.recommender_of(model), code.ease_of(settings, earlier)
    counts = code.popularity_of(earlier.train, data.num_movies)
    rankers = {}
    for kind in ("retrieved", "random"):
        rng = np.random.default_rng(draw.seed) if kind == "random" else None
        made = code.examples(sequence, ease, earlier, counts, settings.depths, rng)
        for depth, learn in made.items():
            rankers[kind, depth] = code.train_ranker(*learn, settings.ranker_epochs, draw.seed)

    code.fit(model, known.histories(before="validation"), settings, epochs=1)
    ease = code.ease_of(settings, known)
    counts = code.popularity_of(known.train, data.num_movies)

    def on_validation(kind: str, depth: int) -> float:
        whole = code.two_stages(sequence, ease, rankers[kind, depth], counts, depth)
        asked = Trained(whole, known.train)
        return evaluate(asked, split, on="validation", num_resamples=1).ndcg

    tried = {pair: on_validation(*pair) for pair in rankers}
    depths = {
        kind: max(settings.depths, key=lambda depth: tried[kind, depth])
        for kind in ("retrieved", "random")
    }

    code.fit(model, split.histories(before="test"), settings, epochs=1)
    ease = code.ease_of(settings, split, include_validation=True)
    learned = pd.concat([split.train, split.validation])
    counts = code.popularity_of(learned, data.num_movies)

    def tested(recommender: Any, **facts: float) -> dict[str, Any]:
        asked = Trained(recommender, learned)
        return ranked(evaluate(asked, split, num_resamples=1), **facts)

    def whole(kind: str) -> dict[str, Any]:
        depth = depths[kind]
        stages = code.two_stages(sequence, ease, rankers[kind, depth], counts, depth)
        return tested(stages, depth=depth, validation_ndcg=tried[kind, depth])

    in_turns = code.two_stages(sequence, ease, None, counts, depths["retrieved"])
    return {
        "GRU": tested(sequence),
        "candidates in turns": tested(in_turns),
        "two stages": whole("retrieved"),
        "two stages, random rivals": whole("random"),
    }


JOBS = [Job("serving", "two stages", two_stages, seconds=150)]

_WHOLE = "serving/two stages"
COMPARISONS = [
    Comparison("serving", "two stages instead of the GRU alone", "serving/GRU", _WHOLE),
    Comparison(
        "serving",
        "two stages instead of EASE with recency alone",
        "baselines/EASE, recency",
        _WHOLE,
    ),
    Comparison(
        "serving",
        "a ranker that met retrieved rivals instead of random ones",
        "serving/two stages, random rivals",
        _WHOLE,
    ),
    Comparison(
        "serving",
        "a ranker instead of the candidates in turns",
        "serving/candidates in turns",
        _WHOLE,
    ),
]
