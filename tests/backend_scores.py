"""The scores of every chapter's models with given weights, on the backend of this process.

usage: KERAS_BACKEND=torch python tests/backend_scores.py OUT.npz

One process scores all chapters, since loading a backend takes longer than the scores do.
"""

import sys

import numpy as np
import pandas as pd
from chapters import definitions
from keras import ops


def give_weights(model, scale=1.0):
    """Weights that are the same on every backend."""
    rng = np.random.default_rng(0)
    for weight in sorted(model.trainable_weights, key=lambda weight: weight.path):
        weight.assign(rng.normal(0.0, scale, weight.shape).astype("float32"))


def ranking():
    from test_chapter_ranking import KINDS, inputs, make, scores

    found = {}
    for kind in KINDS:
        model, x = make(definitions("ranking"), kind), inputs(kind)
        model(x)
        give_weights(model, 0.25)
        found[kind] = scores(model, x)
    return found


def retrieval():
    chapter, rng = definitions("retrieval"), np.random.default_rng(0)
    watched = (rng.random((4, 11)) < 0.3).astype(np.int8)
    watched[:, 0], watched[:, 5] = 0, 1
    users, movies = np.array([1, 2, 3, 4], np.int32), np.array([5, 6, 5, 7], np.int32)
    features = rng.random((11, 3)).astype(np.float32)
    rows = {"user_id": users, "watched": watched}
    found = {}
    for name, model, x in (
        (
            "documented",
            chapter.DocumentedRetrieval(5, 10, 8),
            {"user_id": users, "movie_id": movies},
        ),
        ("towers of ids", chapter.Towers(5, 10, 8), rows),
        ("towers of features", chapter.Towers(5, 10, 8, ids=False, features=features), rows),
    ):
        model(x)
        give_weights(model)
        found[name] = model(x)
    y = np.stack([watched, rng.integers(0, 3, watched.shape)], axis=1)
    log_q, competes = rng.normal(size=11), np.arange(11) > 0
    for name, kind in chapter.STEPS.items():
        loss = chapter.softmax_loss(kind, log_q, competes, 0.1)
        found[f"{name} loss"] = loss(ops.convert_to_tensor(y), found["towers of ids"])
    return found


def multi_task():
    chapter, found = definitions("multi_task"), {}
    rng = np.random.default_rng(0)
    x = {"user_id": rng.integers(1, 13, 16), "movie_id": rng.integers(1, 21, 16)}
    label = rng.random(16).astype("float32")
    documented = chapter.DocumentedMultiTask(12, 20, width=4, hidden=(6, 5))
    table = pd.DataFrame(x | {"label": label})
    for name, model, (rows, y) in (
        ("documented", documented, (x, label)),
        ("joint", chapter.JointModel(12, 20, 2, 4), chapter.rows_of_users(table, table, 12, 20)),
    ):
        give_weights(model)
        rows = {key: ops.convert_to_tensor(value) for key, value in rows.items()}
        outputs = model(rows)
        found |= {f"{name} {key}": value for key, value in outputs.items()}
        found[f"{name} loss"] = model.compute_loss(rows, ops.convert_to_tensor(y), outputs)
    found["documented affinities"] = documented.affinities(x["user_id"])
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
