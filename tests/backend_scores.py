"""The scores of every chapter's models with given weights, on the backend of this process.

usage: KERAS_BACKEND=torch python tests/backend_scores.py OUT.npz

One process scores all chapters, since loading a backend takes longer than the scores do.
"""

import sys

import numpy as np
from chapters import definitions
from keras import ops


def give_weights(model, scale=1.0):
    """Weights that are the same on every backend."""
    rng = np.random.default_rng(0)
    for weight in sorted(model.trainable_weights, key=lambda weight: weight.path):
        weight.assign(rng.normal(0.0, scale, weight.shape).astype("float32"))


def ranking():
    from test_chapter_ranking import make, scores, some_pairs

    found = {}
    for kind in ("documented", "biased", "features"):
        model = make(definitions("ranking"), kind)
        model(some_pairs())
        give_weights(model, 0.25)
        found[kind] = scores(model, some_pairs())
    return found


def retrieval():
    chapter, rng = definitions("retrieval"), np.random.default_rng(0)
    watched = (rng.random((4, 11)) < 0.3).astype(np.int8)
    watched[:, 0] = 0
    users, movies = np.array([1, 2, 3, 4], np.int32), np.array([5, 6, 5, 7], np.int32)
    chance = np.array([0.5, 0.3, 0.5, 0.2], np.float32)
    pairs = {"user_id": users, "movie_id": movies}
    documented = chapter.DocumentedRetrieval(5, 10, 8)
    in_batch = chapter.InBatchRetrieval(5, 10, 8, remove_hits=True, correct=True)
    catalogue = chapter.CatalogueRetrieval(5, 10, 8)
    rows = {"user_id": users, "watched": watched}
    found = {}
    for name, model, x in (
        ("documented", documented, pairs),
        ("in-batch", in_batch, {**pairs, "chance": chance}),
        ("catalogue", catalogue, rows),
    ):
        model(x)
        give_weights(model)
        found[name] = scores = model(x)
        if name == "in-batch":
            found["in-batch loss"] = model.compute_loss(x=x, y_pred=scores)
    found["catalogue loss"] = chapter.CatalogueSoftmax(0.1)(watched, found["catalogue"])
    return found


def multi_task():
    chapter, found = definitions("multi_task"), {}
    sizes = {"num_users": 12, "num_movies": 20, "width": 4, "seed": 1}
    for name, model in (
        ("documented", chapter.DocumentedMultiTask(hidden=(6, 5), **sizes)),
        ("joint", chapter.JointModel(hidden=6, **sizes)),
    ):
        give_weights(model)
        rng = np.random.default_rng(0)
        x = {"user_id": rng.integers(1, 13, 16), "movie_id": rng.integers(1, 21, 16)}
        y = rng.random(16).astype("float32")
        outputs = model(x)
        found |= {f"{name} {key}": value for key, value in outputs.items()}
        found[f"{name} affinities"] = model.affinities(x["user_id"])
        found[f"{name} loss"] = model.compute_loss(x, y, outputs)
    return found


def gru4rec():
    chapter, found = definitions("gru4rec"), {}
    rows = np.array([[0, 0, 4, 5, 6, 7], [1, 2, 3, 4, 9, 0]], np.int32)
    for name, model in (
        ("documented", chapter.InBatchGRU4Rec(30, width=8)),
        ("made right", chapter.GRU4Rec(30, width=8, units=12, dropout=0.3)),
    ):
        model.build((None, 6))
        give_weights(model, 0.5)
        found[name] = model.score(rows)
    return found


def sasrec():
    from test_chapter_sasrec import make

    chapter, found = definitions("sasrec"), {}
    rows = np.array([[0, 0, 0, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 9]], np.int32)
    for kind in ("DocumentedSASRec", "SASRec"):
        model = make(chapter, kind)
        give_weights(model, 0.2)
        states = model.predict(rows, verbose=0)[:, -1]
        found[kind] = states @ ops.convert_to_numpy(model.movies.embeddings).T
    return found


CHAPTERS = {one.__name__: one for one in (ranking, retrieval, multi_task, gru4rec, sasrec)}


if __name__ == "__main__":
    np.savez(
        sys.argv[1],
        **{
            f"{name}: {what}": ops.convert_to_numpy(scores)
            for name, score in CHAPTERS.items()
            for what, scores in score().items()
        },
    )
