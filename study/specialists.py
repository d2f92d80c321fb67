"""The rating specialist of the multi-task chapter's picture: the ranking chapter's ensemble.

A module of its own, so that a change of the ranking chapter makes no other job stale.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from rectutor.ratings import to_label, to_stars
from study.core import Draw, rated
from tools import book

#: Decay by share: of 0.8, 2.4 and 7.2 the best on validation at 1, 5 and 20 %; for all ratings the
#: ranking chapter's own.
DECAYS = {0.01: 2.4, 0.02: 2.4, 0.05: 2.4, 0.1: 2.4, 0.2: 0.8, 0.5: 0.8, 1.0: 0.8}
#: Steps an epoch at most: fewer ratings come in smaller batches.
STEPS = 40


def train_and_ask(draw: Draw, share: float, shown: Any, asked: Any, decay: float) -> Any:
    """What the ensemble, trained on the ratings shown, says of others; `(n,)` labels."""
    ranking, scale = book.definitions("ranking"), draw.data.rating_scale
    settings = ranking.chapter.Run("ranking", draw.profile, draw.seed, "", "").settings(
        **ranking.SETTINGS
    )
    x, y = ranking.arrays(shown, scale)
    sizes = draw.data.num_users, draw.data.num_movies
    size = {"members": settings.members, "dim": settings.rank}
    model = ranking.new_ensemble(y, sizes, **size, seed=draw.seed)
    ranking.train(
        model,
        x,
        y,
        epochs=settings.epochs,
        batch_size=min(settings.batch_size, -(-len(y) // STEPS)),
        learning_rate=settings.learning_rate,
        decay=decay,
        seed=draw.seed,
    )
    return ranking.predict(model, ranking.arrays(asked, scale)[0])


def at_shares(draw: Draw) -> dict[str, Any]:
    """The specialist at every share of the ratings."""
    code, rows, found = draw.code, draw.shuffled.ratings, {}
    rows = rows.assign(label=to_label(rows["rating"], draw.data.rating_scale))
    sizes = {"num_users": draw.data.num_users, "num_movies": draw.data.num_movies}
    split = code.split_for_stars(rows, draw.seed, **sizes)
    for share in code.SHARES:
        shown = code.some_rated(code.known(split), share, draw.seed)
        predicted = train_and_ask(draw, share, shown, split.test, DECAYS[share])
        name = code.of_share("specialist", share).partition("/")[2]
        more = {"share": share, "decay": DECAYS[share]}
        found[name] = rated(predicted, split.test["label"], split.test["user_id"], **more)
    return found


def on_late(draw: Draw) -> dict[str, Any]:
    """The specialist with all ratings before each user's last fifth, asked for that."""
    code, rows = draw.code, draw.shuffled.ratings
    x, y, late = code.in_time(rows.assign(label=to_label(rows["rating"], draw.data.rating_scale)))
    scale = draw.data.rating_scale
    pairs = pd.DataFrame({name: x[name] for name in ("user_id", "movie_id")})
    pairs["rating"] = to_stars(y, scale)
    predicted = train_and_ask(draw, 1.0, pairs[~late], pairs[late], DECAYS[1.0])
    return {"history: ensemble": rated(predicted, y[late], pairs["user_id"][late])}
