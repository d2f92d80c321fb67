"""Sphinx extension: the model behind the page "Try it on yourself", made when the book is built.

It is EASE on MovieLens latest-small, which travels with the package and may be passed on. Only what
the page needs is written, as a script, so that the page also works from a disk without a server.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from sphinx.application import Sphinx

#: A movie with fewer ratings has nothing to go by, and a movie keeps its strongest neighbours.
LEAST_RATINGS, NEIGHBOURS = 20, 64

#: The strength of EASE's penalty, the default of the package; nothing was tried here.
REGULARIZATION = 200.0


def model() -> dict[str, Any]:
    """What the page needs of EASE.

    Returns:
        `titles`, the movies by number of ratings, and for each of them its `neighbours` (numbers
        of movies) with their `weights`, the strongest first.
    """
    from rectutor.baselines import EASE
    from rectutor.data import load_movielens
    from rectutor.splits import Split

    data = load_movielens("latest-small")
    counts = data.ratings["movie_id"].value_counts(sort=True)
    kept = counts.index[counts >= LEAST_RATINGS].to_numpy()
    ratings = data.ratings[data.ratings["movie_id"].isin(kept)]
    number = np.zeros(data.num_movies + 1, np.int32)
    number[kept] = np.arange(1, len(kept) + 1)
    ratings = ratings.assign(movie_id=number[ratings["movie_id"]])
    everything = Split(ratings, ratings[:0], ratings[:0], data.num_users, len(kept))
    weights = EASE(REGULARIZATION).fit(everything).weights[1:, 1:]
    strongest = np.argsort(-weights, axis=1, kind="stable")[:, :NEIGHBOURS]
    shares = np.take_along_axis(weights, strongest, axis=1)
    return {
        "titles": data.titles[kept].tolist(),
        "neighbours": strongest.tolist(),
        "weights": [[round(float(each), 4) for each in row] for row in shares],
    }


def write_model(app: Sphinx, exception: Exception | None) -> None:
    """Write the model beside the page, once."""
    if exception is not None or app.builder.format != "html":
        return
    target = Path(app.outdir) / "_static" / "try_it_model.js"
    if not target.is_file():
        text = json.dumps(model(), separators=(",", ":"))
        target.write_text(f"window.tryItModel = {text};\n", encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to Sphinx."""
    app.connect("build-finished", write_model)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
