# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Retrieval: from a whole catalogue to ten titles
#
# After this chapter you will be able to
#
# - build a two-tower model in Keras, train it as documented, and reproduce its error;
# - say why a good error on ratings is no retrieval, and show it on your own run;
# - train with a softmax over the batch, and repair its two flaws;
# - train with a softmax over the whole catalogue, cheaper than it sounds;
# - compare all of them with baselines under one fair protocol, with intervals;
# - find movies that resemble a movie, and draw a map of them;
# - predict what a query costs from 1,000 to 1,000,000 movies, and then measure it.
#
# The first part follows the
# [retrieval example of the Keras Recommenders series](https://keras.io/keras_rs/examples/basic_retrieval/)
# {cite}`sharma2025keras`, in our own words and code. The rest makes it right.

# %% tags=["bootstrap", "hide-cell"]
import importlib.util
import os
import subprocess
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported
if "ipykernel" in sys.modules and importlib.util.find_spec("rectutor") is None:
    package = "rectutor @ git+https://github.com/rectutor/rectutor@main"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

from rectutor import chapter

chapter.prepare_process()  # before NumPy and Keras are imported

# %%
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from keras import layers, ops

from rectutor import PADDING_ID, chapter
from rectutor.baselines import standard_baselines
from rectutor.data import batches
from rectutor.evaluation import compare, evaluate, queries_for, recommend
from rectutor.splits import leave_one_out, random_split
from rectutor.training import BestByNDCG, EpochLog

run = chapter.start("retrieval")
chapter.load_quietly("keras_rs")  # TensorFlow, which it loads, has much to say

# %%
import keras_rs

# %% [markdown]
# One cell holds every setting. Each value that differs is given three times: for a laptop, for a
# machine with a GPU, and for the tests.

# %%
settings = run.settings(
    #                quick   full   smoke
    data=("100k", "1m", "synthetic"),
    batch_size=1_000,  # pairs in a batch
    documented_epochs=(50, 50, 2),
    in_batch_epochs=(14, 30, 1),
    catalogue_epochs=(120, 200, 4),
    rating_epochs=(10, 10, 2),
    catalogue_every=(5, 5, 2),  # epochs between two looks at the validation part
    users_per_batch=(94, 256, 94),
    width=64,  # of the embeddings made right; the documented ones have 32
    learning_rate=0.005,
    weight_decay=0.1,
    dropout=0.5,
    smoothing=0.1,  # of the labels
    catalogue_sizes=(
        tuple(int(10 ** (exponent / 2)) for exponent in range(6, 13)),  # 1,000 to 1,000,000
        tuple(int(10 ** (exponent / 2)) for exponent in range(6, 13)),
        (1_000, 10_000),
    ),
    stream_floats=(2**25, 2**27, 2**20),  # the array that measures the memory's speed
    repeats=(15, 30, 2),
)

# %% [markdown]
# ## The task
#
# *Retrieval* is the first stage of a recommender: out of the whole catalogue, pick the few movies
# that somebody might watch. [Ranking](ranking.ipynb) them comes after. The catalogue is large, so
# the score of a movie has to be cheap, and the usual form is the
# [two-tower model](../book/glossary.md): a vector for the user, the *query* $q_u$, one for the
# movie, the *candidate* $c_i$, and the affinity
#
# $$s_{ui} = q_u^\top c_i.$$
#
# The candidates can be computed before anybody asks. What is left at query time is one
# matrix-vector product and the choice of the ten highest.

# %%
data = run.load_data(settings.data, needs=("ratings", "timestamps"), min_users=10, min_movies=40)
titles = data.titles
reader = min(42, data.num_users)  # user 42 of the documentation
k = 10

# %% [markdown]
# ## As documented
#
# Two embedding tables and a dot product. The model learns the rating of a pair, rescaled to
# $[0, 1]$, by mean squared error:
#
# $$L = \frac{1}{B} \sum_{b=1}^{B} \left(q_{u_b}^\top c_{i_b} - y_b\right)^2, \qquad y = \frac{r - 1}{4}.$$


# %%
@keras.saving.register_keras_serializable(package="retrieval")
class DocumentedRetrieval(keras.Model):
    """Two embedding tables; the affinity of a pair is the dot product of its two rows.

    Args:
        num_users: highest user id.
        num_movies: highest movie id.
        width: of the embeddings.
    """

    def __init__(self, num_users, num_movies, width=32, **kwargs):
        super().__init__(**kwargs)
        self.num_users, self.num_movies, self.width = num_users, num_movies, width
        # ids start at 1, so both tables have a row 0 that stands for nobody
        self.user_embedding = layers.Embedding(num_users + 1, width)
        self.movie_embedding = layers.Embedding(num_movies + 1, width)

    def call(self, inputs):
        queries = self.user_embedding(inputs["user_id"])  # (B, d)
        candidates = self.movie_embedding(inputs["movie_id"])  # (B, d)
        return ops.sum(queries * candidates, axis=-1, keepdims=True)  # (B, 1)

    def queries(self, user_ids):
        """The vectors of users, `(B, d)`."""
        return self.user_embedding(ops.convert_to_tensor(user_ids, "int32"))

    def candidates(self):
        """The vectors of all movies, `(num_movies + 1, d)`; row 0 is the padding."""
        return self.movie_embedding(ops.arange(self.num_movies + 1, dtype="int32"))

    def get_config(self):
        sizes = {"num_users": self.num_users, "num_movies": self.num_movies, "width": self.width}
        return {**super().get_config(), **sizes}


# %% [markdown]
# The documented split deals the ratings out at random, 80 to 20. `Adagrad` with a rate of 0.1
# {cite}`duchi2011` goes over them 50 times, a thousand at a time, and looks at the held-out part
# every five epochs.


# %%
def pairs(frame):
    """The model's inputs: who, and what."""
    return {
        "user_id": frame["user_id"].to_numpy(np.int32),
        "movie_id": frame["movie_id"].to_numpy(np.int32),
    }


def to_label(stars):
    """Map stars, 1 to 5, to labels `(n, 1)` in [0, 1]."""
    return (np.asarray(stars, np.float32)[:, None] - 1) / 4


def train_documented(model, frame, held_out=None, *, epochs, batch_size, seed, callbacks=()):
    """The documented training; returns the seconds it took."""
    model.compile(
        optimizer=keras.optimizers.Adagrad(0.1),
        loss="mean_squared_error",
        metrics=[keras.metrics.RootMeanSquaredError(name="rmse")],
    )
    validation = {}
    if held_out is not None:
        labelled = batches(pairs(held_out), to_label(held_out["rating"]), batch_size=batch_size)
        validation = {"validation_data": labelled, "validation_freq": 5}
    start = time.perf_counter()
    model.fit(
        batches(
            pairs(frame),
            to_label(frame["rating"]),
            batch_size=batch_size,
            shuffle=True,
            seed=seed,
        ),
        epochs=epochs,
        verbose=0,
        callbacks=list(callbacks),
        **validation,
    )
    return time.perf_counter() - start


rated = random_split(
    data.ratings,
    test_fraction=0.2,
    seed=run.seed,
    num_users=data.num_users,
    num_movies=data.num_movies,
)
keras.utils.set_random_seed(run.seed)
documented = DocumentedRetrieval(data.num_users, data.num_movies)
seconds = train_documented(
    documented,
    rated.train,
    rated.test,
    epochs=settings.documented_epochs,
    batch_size=settings.batch_size,
    seed=run.seed,
    callbacks=[EpochLog(every=10), *run.callbacks("documented")],
)

# %% [markdown]
# The documentation prints a loss of 0.4669 and a validation loss of 0.4743 after epoch 50
# {cite}`sharma2025keras`; on the same data, `100k`, that is what you see here. Is it good? An error says
# little without another one beside it, so we put the average rating next to it: of everything, and of
# each movie.


# %%
def rmse(predicted, label):
    """Root of the mean squared error."""
    return float(np.sqrt(np.mean((np.ravel(predicted) - np.ravel(label)) ** 2)))


label, known = to_label(rated.test["rating"]), to_label(rated.train["rating"])[:, 0]
watched_movie = rated.train["movie_id"].to_numpy()
size = data.num_movies + 1
mean_of_movie = (np.bincount(watched_movie, known, size) + known.mean()) / (
    np.bincount(watched_movie, minlength=size) + 1
)
documented_rmse = rmse(
    documented.predict(pairs(rated.test), batch_size=settings.batch_size, verbose=0), label
)
errors = pd.DataFrame(
    {
        "RMSE, label": {
            "the average rating": rmse(known.mean(), label),
            "the movie's average": rmse(mean_of_movie[rated.test["movie_id"]], label),
            "documented model": documented_rmse,
        }
    }
)
errors["RMSE, stars"] = 4 * errors["RMSE, label"]
run.show_table(errors)
run.record(
    model="two towers, MSE (documented)",
    recipe="documented",
    protocol="rating",
    metrics={"rmse": documented_rmse, "rmse_stars": 4 * documented_rmse},
    seconds=seconds,
)

# %% [markdown]
# On `100k` the documented training has hardly begun when it ends: even one number for all movies is
# closer. The loss is a *mean* over a thousand pairs and the tables start near zero, so the gradient of a
# row is tiny, and `Adagrad` divides it by the root of a sum that starts at 0.1. We come back to this.
# First, the documented way to retrieve: hand all rows of the movie table to
# `keras_rs.layers.BruteForceRetrieval`, which multiplies and keeps the ten best.

# %%
index = keras_rs.layers.BruteForceRetrieval(k=k)
index.update_candidates(documented.candidates())
_, ids = index(documented.queries([reader]))
documented_list = ops.convert_to_numpy(ids)[0]
run.show_table(
    pd.DataFrame({"place": range(1, k + 1), "title": titles[documented_list]}),
    caption=f"Ten movies for user {reader}, as documented",
)

# %% [markdown]
# (retrieval-c6)=
# :::{admonition} Correction C6: movies already seen, and a movie that does not exist
# The documented list comes from *all* rows of the table. Among them are the movies the user has
# rated already (on those the model was trained, so it is surest of them), and row 0, the padding,
# which is no movie. The fix: the index holds real movies only, we ask it for as many more as the
# user has seen, and drop those. (The next cell proves it.)
# :::


# %%
def top_of_table(queries, candidates, k):
    """The documented way: the `k` highest rows of the table for each query, `(B, k)`."""
    scores = ops.convert_to_numpy(queries) @ ops.convert_to_numpy(candidates).T
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


seen = data.ratings.groupby("user_id")["movie_id"].agg(set)
everybody = np.sort(data.ratings["user_id"].unique())
lists = top_of_table(documented.queries(everybody), documented.candidates(), k)
seen_in_list = np.array(
    [len(seen[user].intersection(row)) for user, row in zip(everybody, lists, strict=True)]
)
of_reader = len(seen[reader].intersection(documented_list.tolist()))
with_padding = int((lists == PADDING_ID).any(axis=1).sum())
print(f"candidates: {documented.candidates().shape[0]:,} rows for {data.num_movies:,} movies")
print(f"user {reader}: {of_reader} of {k} recommended movies were rated before")
print(f"all users, on average: {seen_in_list.mean():.1f} of {k}")
print(f"users whose list holds the padding id: {with_padding:,} of {len(everybody):,}")
run.fact("c6_seen_of_ten_user_42", of_reader)
run.fact("c6_seen_of_ten_mean", float(seen_in_list.mean()))
run.fact("c6_users_with_padding", with_padding)

# %% [markdown]
# Every place that a seen movie takes is a place lost. Whether the padding turns up in a list is a
# matter of luck: its row was never trained, but it competes. Here is the fix, with the layer itself:


# %%
def retrieve_unseen(index, query, seen, k):
    """The `k` best movies of an index that are not in `seen`.

    Args:
        index: a `BruteForceRetrieval` over real movies, with their ids, that returns at least
            `k + len(seen)` of them.
        query: `(1, d)`.
        seen: ids of the movies to leave out.
        k: how many to return.

    Returns:
        `(k,)` movie ids, best first; fewer where the index has no more.
    """
    _, ids = index(query)
    ids = ops.convert_to_numpy(ids)[0]
    return ids[~np.isin(ids, list(seen))][:k]


def movie_index(candidates, k):
    """A `BruteForceRetrieval` over `candidates` without the padding row."""
    candidates = ops.convert_to_tensor(candidates)[1:]
    count = candidates.shape[0]
    index = keras_rs.layers.BruteForceRetrieval(k=min(k, count))
    index.update_candidates(candidates, ops.arange(1, count + 1, dtype="int32"))
    return index


index = movie_index(documented.candidates(), k + len(seen[reader]))
unseen_list = retrieve_unseen(index, documented.queries([reader]), seen[reader], k)
run.show_table(
    pd.DataFrame({"place": range(1, len(unseen_list) + 1), "title": titles[unseen_list]}),
    caption=f"Ten movies that user {reader} has not seen, same model",
)

# %% [markdown]
# ## A good error is no retrieval
#
# Is the corrected list any good? A random split cannot tell: it says nothing about what the user
# watches *next*. So from here on everything is measured under the book's one protocol
# ([P](../book/evaluation.md)): hold out each user's last movie, rank the whole catalogue without
# padding and seen movies, see whether the held-out movie is among the ten.

# %%
split = leave_one_out(data.ratings, num_users=data.num_users, num_movies=data.num_movies)
baselines = standard_baselines(split)
results = {name: evaluate(model, split, name=name) for name, model in baselines.items()}


def by_towers(model):
    """A recommender for `evaluate`: the affinities of a two-tower model, `(B, num_movies + 1)`."""

    def scores(queries):
        return ops.matmul(model.queries(queries.user_ids), ops.transpose(model.candidates()))

    return scores


def put_to_test(name, recommender, seconds, recipe="step"):
    """Ask the test part how good a trained model is, and store the answer under its name."""
    results[name] = evaluate(recommender, split, name=name)
    run.record(
        model=name,
        recipe=recipe,
        protocol="leave-one-out",
        metrics=results[name],
        seconds=seconds,
    )


# %% [markdown]
# The documented model, trained again on the training part of this split, in the same way:

# %%
keras.utils.set_random_seed(run.seed)
documented = DocumentedRetrieval(data.num_users, data.num_movies)
seconds = train_documented(
    documented,
    split.train,
    epochs=settings.documented_epochs,
    batch_size=settings.batch_size,
    seed=run.seed,
    callbacks=run.callbacks("documented-leave-one-out"),
)
name = "MSE, documented"
results[name] = evaluate(by_towers(documented), split, name=name)
run.record(
    model="two towers, MSE (documented)",
    recipe="documented",
    protocol="leave-one-out",
    metrics=results[name],
    seconds=seconds,
)

# %% [markdown]
# It might do better with a training that works. So we take the same model and the same loss, and let
# `AdamW` {cite}`loshchilov2019` with strong decay minimise it: once on the random split for the error,
# once on this split for the retrieval.


# %%
def train_ratings(model, frame, *, epochs, batch_size, seed):
    """The documented loss with an optimizer that minimises it; returns the seconds it took."""
    model.compile(optimizer=keras.optimizers.AdamW(0.005, weight_decay=1.0), loss="mse")
    start = time.perf_counter()
    model.fit(
        batches(
            pairs(frame),
            to_label(frame["rating"]),
            batch_size=batch_size,
            shuffle=True,
            seed=seed,
        ),
        epochs=epochs,
        verbose=0,
    )
    return time.perf_counter() - start


raters = []
for frame in (rated.train, split.train):
    keras.utils.set_random_seed(run.seed)
    raters.append(DocumentedRetrieval(data.num_users, data.num_movies))
    seconds = train_ratings(
        raters[-1],
        frame,
        epochs=settings.rating_epochs,
        batch_size=settings.batch_size,
        seed=run.seed,
    )
on_random_split, rater = raters
good_rmse = rmse(
    on_random_split.predict(pairs(rated.test), batch_size=settings.batch_size, verbose=0), label
)
errors.loc["same loss, AdamW"] = (good_rmse, 4 * good_rmse)
run.show_table(errors)
results["MSE, good error"] = evaluate(by_towers(rater), split, name="MSE, good error")
run.record(
    model="two towers, MSE, AdamW",
    recipe="step",
    protocol="rating",
    metrics={"rmse": good_rmse, "rmse_stars": 4 * good_rmse},
    seconds=seconds,
)
run.record(
    model="two towers, MSE, AdamW",
    recipe="step",
    protocol="leave-one-out",
    metrics=results["MSE, good error"],
    seconds=seconds,
)

# %%
comparison = compare([results["popularity"], results[name], results["MSE, good error"]])
run.show_table(comparison)
print(comparison.better("popularity", "MSE, good error"))

# %% [markdown]
# (retrieval-c7)=
# :::{admonition} Correction C7: the loss never sees what nobody watched
# Mean squared error is taken over pairs that were rated, and people rate what they chose to watch.
# Which movies a user would *not* watch, the model is never told; but that is what retrieval has to
# know. So a good error on ratings is no retrieval. The fix: a loss in which the other movies
# compete. (The table above and the next cell prove the point, the rest of the chapter is the fix.)
# :::


# %%
def ahead_of_random(scores, target, excluded, seed):
    """How often the target scores higher than a random movie nobody excluded, from 0 to 1.

    Args:
        scores: `(B, num_movies + 1)`.
        target: `(B,)` movie ids.
        excluded: one array of movie ids a row.
        seed: of the draw of 100 movies a row.
    """
    rng = np.random.default_rng(seed)
    wins = []
    for row, movie, out in zip(scores, target, excluded, strict=True):
        others = rng.integers(1, scores.shape[1], 100)
        others = others[~np.isin(others, out) & (others != movie)]
        wins.append(np.mean(row[movie] > row[others]) if len(others) else 0.5)
    return float(np.mean(wins))


queries = queries_for(split)
target = split.test.set_index("user_id")["movie_id"].loc[queries.user_ids].to_numpy()
histories = [queries.histories[row] for row in range(len(queries))]
trained_on = split.train["movie_id"].to_numpy()
share = len(split.train) / (data.num_users * data.num_movies)
print(f"pairs of a user and a movie that the loss has seen: {share:.1%} of all")
print(f"RMSE on held-out ratings: {4 * good_rmse:.3f} stars with AdamW")
ahead = {}
ways = {
    "popularity": baselines["popularity"],
    "MSE, documented": by_towers(documented),
    "MSE, good error": by_towers(rater),
}
for shown, recommender in ways.items():
    scores = ops.convert_to_numpy(recommender(queries))
    ahead[shown] = ahead_of_random(scores, target, histories, run.seed)
    print(f"the movie watched next beats a random unseen one: {ahead[shown]:.1%}  ({shown})")
run.fact("c7_rmse_stars_documented", 4 * documented_rmse)
run.fact("c7_rmse_stars_good", 4 * good_rmse)
run.fact("c7_ndcg_good_error", results["MSE, good error"].ndcg)
run.fact("c7_ndcg_documented", results[name].ndcg)
run.fact("c7_ndcg_popularity", results["popularity"].ndcg)
run.fact("c7_next_beats_random_good_error", ahead["MSE, good error"])

# %% [markdown]
# Read the two together: the model that knows how many stars a movie gets if it is watched knows less
# about *whether* it is watched than a list that is the same for all. "Would you like it?" and "will you
# watch it?" are different questions, and the stars only answer the first.
#
# ## In-batch softmax: the other movies of the batch compete
#
# Forget the stars and keep the fact: user $u_b$ watched movie $i_b$ ([implicit
# feedback](../book/glossary.md)). With a batch of $B$ pairs, one matrix product gives the affinity of
# every user with every movie of the batch. The diagonal holds what was really watched; the rest serve
# as negatives. The loss asks the diagonal to win its row:
#
# $$L = -\frac{1}{B} \sum_{b=1}^{B} \log \frac{e^{s_{bb}}}{\sum_{j=1}^{B} e^{s_{bj}}},
# \qquad s_{bj} = q_{u_b}^\top c_{i_j}.$$
#
# (retrieval-c11)=
# :::{admonition} Correction C11: a movie as its own negative, and popular movies pushed down
# A movie that stands twice in a batch is a negative of itself. And movies enter the batch as often as
# they are watched, so a popular movie is a negative far more often than others: the softmax learns
# $s_{ui} \approx \log p(i \mid u) - \log p(i)$ and popularity is divided out. `RemoveAccidentalHits`
# repairs the first. `SamplingProbabilityCorrection` repairs the second: with $q_j$ the chance that
# a place of the batch holds movie $j$, it uses $s_{bj} - \log q_j$ in training {cite}`yi2019`.
# (The cells below prove it: the counts first, then the effect on the lists.)
# :::

# %%
chance = np.bincount(trained_on, minlength=size) / len(trained_on)  # (num_movies + 1,)
rng = np.random.default_rng(run.seed)
batch = rng.choice(trained_on, min(settings.batch_size, len(trained_on)), replace=False)
twice = np.bincount(batch, minlength=size)[batch] > 1
often = int(np.argmax(chance))
rows_against = len(batch) - int((batch == often).sum())
print(
    f"a batch of {len(batch):,} pairs: {twice.mean():.0%} of its movies stand in it more than once"
)
print(f"most watched: {titles[often]}, {int((batch == often).sum())} times in this batch,")
print(f"each time as a negative of {rows_against:,} other pairs")
print(f"a movie of median popularity: {len(batch) * np.median(chance[1:]):.2f} times, on average")
run.fact("c11_share_of_batch_repeated", float(twice.mean()))

# %% [markdown]
# Both repairs are layers of `keras_rs`. Before we build on them, we try them on a batch small enough to
# check by hand: three pairs, the first and the last of the same movie, 7, all affinities 0.

# %%
movie_ids = ops.convert_to_tensor([7, 8, 7], "int32")
zeros, diagonal = ops.zeros((3, 3)), ops.eye(3)
removed = keras_rs.layers.RemoveAccidentalHits()(zeros, diagonal, movie_ids)
layer_works = bool(ops.convert_to_numpy(removed)[0, 2] < -1e3)
print(f"keras_rs {keras_rs.__version__}: what the layer makes of the three rows of zeros")
print(ops.convert_to_numpy(removed))
print(f"accidental hit of row 0, column 2 removed: {layer_works}")
run.fact("c11_keras_rs_layer_removes_hits", str(layer_works))

# %% [markdown]
# Column 2 of row 0 is the accidental hit, and should be far below zero. In keras_rs 0.4.0 it is not: the layer
# adds the *smallest* float there is, about $10^{-40}$, where it should add the lowest. It
# removes nothing, silently ([a fix is
# proposed](https://github.com/keras-team/keras-rs/pull/206)). So we write the mask ourselves; it is one
# line, and does not mind which version you have.


# %%
def without_accidental_hits(scores, diagonal, movie_ids):
    """The scores `(B, B)`, very low where a pair meets its own movie off the diagonal.

    Args:
        scores: `(B, B)` affinity of each pair's user with each pair's movie.
        diagonal: `(B, B)` bool, where the pair meets itself.
        movie_ids: `(B,)`.
    """
    same = ops.equal(movie_ids[:, None], movie_ids[None, :])
    return ops.where(ops.logical_and(same, ops.logical_not(diagonal)), -1e9, scores)


# %% [markdown]
# The same three pairs, with our mask, and then with the layer for the sampling probability. Say movie 7
# makes up half of what is watched, and movie 8 a tenth.

# %% tags=["nbval-check-output"]
removed = without_accidental_hits(zeros, ops.cast(diagonal, "bool"), movie_ids)
corrected = keras_rs.layers.SamplingProbabilityCorrection()(
    removed, ops.convert_to_tensor([0.5, 0.1, 0.5], "float32")
)
print("chance that each pair wins its row")
steps = {"plain": zeros, "hits removed": removed, "and corrected": corrected}
for step, scores in steps.items():
    of_the_diagonal = np.diag(ops.convert_to_numpy(ops.softmax(scores)))
    print(f"{step:14}", " ".join(f"{chance_of:.3f}" for chance_of in of_the_diagonal))

# %% [markdown]
# With the hits removed, movie 7 no longer fights itself. With the correction, the rare movie 8 gets
# more of every row than movie 7, at equal affinity: to win its row now, the popular movie has to
# *earn* the affinity that plain training denies it.
#
# The model is the same pair of tables. What changes is the loss, so it lives in `compute_loss`, and
# two switches turn the two repairs on.


# %%
@keras.saving.register_keras_serializable(package="retrieval")
class InBatchRetrieval(keras.Model):
    """Two towers, trained with a softmax over the movies of the batch.

    Args:
        num_users: highest user id.
        num_movies: highest movie id.
        width: of the embeddings.
        dropout: share of a query's entries that training drops.
        remove_hits: whether a movie may not be a negative of itself.
        correct: whether to subtract the log of the sampling probability.
    """

    def __init__(
        self,
        num_users,
        num_movies,
        width=32,
        dropout=0.5,
        remove_hits=False,
        correct=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_users, self.num_movies, self.width = num_users, num_movies, width
        self.dropout_rate, self.remove_hits, self.correct = dropout, remove_hits, correct
        self.user_embedding = layers.Embedding(num_users + 1, width)
        self.movie_embedding = layers.Embedding(num_movies + 1, width)
        self.dropout = layers.Dropout(dropout)
        self.correct_sampling = keras_rs.layers.SamplingProbabilityCorrection()

    def call(self, inputs, training=False):
        queries = self.dropout(self.user_embedding(inputs["user_id"]), training=training)  # (B, d)
        candidates = self.movie_embedding(inputs["movie_id"])  # (B, d)
        return ops.matmul(queries, ops.transpose(candidates))  # (B, B)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        scores, movie_ids = y_pred, x["movie_id"]
        place = ops.cumsum(ops.ones_like(movie_ids))  # 1, 2, ..., B
        diagonal = ops.equal(place[:, None], place[None, :])  # (B, B)
        if self.correct:
            scores = self.correct_sampling(scores, x["chance"])
        if self.remove_hits:
            scores = without_accidental_hits(scores, diagonal, movie_ids)
        log_p = ops.log_softmax(scores, axis=-1)
        return -ops.mean(ops.sum(ops.where(diagonal, log_p, 0.0), axis=-1))

    def queries(self, user_ids):
        """The vectors of users, `(B, d)`."""
        return self.user_embedding(ops.convert_to_tensor(user_ids, "int32"))

    def candidates(self):
        """The vectors of all movies, `(num_movies + 1, d)`; row 0 is the padding."""
        return self.movie_embedding(ops.arange(self.num_movies + 1, dtype="int32"))

    def get_config(self):
        return {
            **super().get_config(),
            "num_users": self.num_users,
            "num_movies": self.num_movies,
            "width": self.width,
            "dropout": self.dropout_rate,
            "remove_hits": self.remove_hits,
            "correct": self.correct,
        }


# %% [markdown]
# Now three trainings that differ in nothing but the loss. `AdamW` {cite}`loshchilov2019` shrinks
# the weights a little each step, and dropout {cite}`srivastava2014` hides half of a query's
# entries; both keep tables of this size from learning the training pairs by heart. The epoch is
# chosen on the validation part.


# %%
def train_in_batch(model, frame, *, epochs, batch_size, optimizer, seed, callbacks=()):
    """Fit an in-batch softmax on the pairs of a frame; returns the seconds it took."""
    inputs = pairs(frame)
    counts = np.bincount(inputs["movie_id"])
    inputs["chance"] = (counts / counts.sum()).astype(np.float32)[inputs["movie_id"]]
    model.compile(optimizer=optimizer)
    start = time.perf_counter()
    model.fit(
        batches(inputs, batch_size=batch_size, shuffle=True, seed=seed),
        epochs=epochs,
        verbose=0,
        callbacks=list(callbacks),
    )
    return time.perf_counter() - start


variants = {
    "in-batch softmax": {},
    "in-batch, hits removed": {"remove_hits": True},
    "in-batch, log-Q corrected": {"remove_hits": True, "correct": True},
}
towers = {"MSE, documented": documented, "MSE, good error": rater}
for name, switches in variants.items():
    print(name)
    keras.utils.set_random_seed(run.seed)
    model = InBatchRetrieval(
        data.num_users, data.num_movies, settings.width, settings.dropout, **switches
    )
    watch = BestByNDCG(by_towers(model), split, patience=4)
    train_in_batch(
        model,
        split.train,
        epochs=settings.in_batch_epochs,
        batch_size=settings.batch_size,
        optimizer=keras.optimizers.AdamW(
            settings.learning_rate, weight_decay=settings.weight_decay
        ),
        seed=run.seed,
        callbacks=[watch, EpochLog(every=5), *run.callbacks(name)],
    )
    towers[name] = model
    put_to_test(name, by_towers(model), watch.history[-1]["seconds"])

# %%
comparison = compare([results["popularity"], *(results[name] for name in towers)])
run.show_table(comparison)
print(comparison.better("in-batch, hits removed", "in-batch softmax"))
print(comparison.better("in-batch, log-Q corrected", "in-batch softmax"))
print(comparison.better("in-batch, log-Q corrected", "popularity"))
run.fact("c11_ndcg_plain", results["in-batch softmax"].ndcg)
run.fact("c11_ndcg_hits_removed", results["in-batch, hits removed"].ndcg)
run.fact("c11_ndcg_corrected", results["in-batch, log-Q corrected"].ndcg)

# %% [markdown]
# The effect on popular movies can be seen in what is recommended. For each recommender we take the
# places of all lists and count how often the movie in it was watched in the training part; the dashed
# line does the same for the movies that were really watched next.


# %%
def draw_popularity(lists, target, counts):
    """Share of recommended places by the popularity of the movie in them, one line a recommender.

    Args:
        lists: name to `(num_users, k)` recommended movie ids.
        target: `(num_users,)` movies watched next.
        counts: `(num_movies + 1,)` how often each movie was watched.

    Returns:
        The figure.
    """
    fig, ax = plt.subplots(figsize=(7.5, 4.5))
    edges = np.unique(np.geomspace(1, counts.max(), 200).astype(int))
    for name, movies in lists.items():
        watched = np.sort(counts[np.ravel(movies)])
        share = np.searchsorted(watched, edges, side="right") / len(watched)
        ax.plot(edges, 100 * share, label=name)
    watched = np.sort(counts[target])
    share = np.searchsorted(watched, edges, side="right") / len(watched)
    ax.plot(edges, 100 * share, color="black", linestyle="--", label="really watched next")
    ax.set(
        xscale="log",
        xlabel="popularity: times watched in the training part",
        ylabel="recommended places at or below (%)",
        title="How popular are the recommended movies?",
    )
    ax.legend(fontsize=9)
    return fig


# %% mystnb={"image": {"alt": "Cumulative share of recommended places by popularity of the movie, one line a loss, with the movies really watched next as a dashed line."}}
fig = draw_popularity(
    {name: results[name].recommendations for name in towers},
    target,
    np.bincount(trained_on, minlength=size),
)
run.show(fig, "popularity")

# %% [markdown]
# The further right a line rises, the more popular are the movies. The line of the uncorrected in-batch
# softmax lies to the left: it fills lists with movies that few people watch, because the popular ones were
# negatives all the time. The correction moves it to the right of the dashed line. That is no mistake:
# the ten *likeliest* movies are more popular than a typical one. The documented training has moved the
# rows of popular movies most, simply because they were in more batches; that, and not taste, is
# what retrieval it can do. Trained to a good error, it follows the stars instead.
#
# ## Softmax over the whole catalogue
#
# The batch was a stand-in for the catalogue. Must it be? Let the softmax run over all $M$ movies:
#
# $$L = -\frac{1}{|D|} \sum_{(u, i) \in D} \log \frac{e^{s_{ui}}}{\sum_{j=1}^{M} e^{s_{uj}}}.$$
#
# No sampling, so nothing to correct. But what does it cost? The pairs of one user
# share the denominator. So we need not go pair by pair. One row a user holds all $M$ affinities, and
# with $n_u$ movies watched and $x_{ui} = 1$ for those,
#
# $$L = \frac{1}{|D|} \sum_{u} n_u \left(-\sum_{i=1}^{M} \frac{x_{ui}}{n_u} \log p_{ui}\right):$$
#
# the same number, from a batch of *users*. A worked example, with two users and four movies:

# %% tags=["nbval-check-output"]
affinities = np.array([[0.0, 1.0, 2.0, 0.5], [1.0, 0.0, 0.0, 3.0]])
log_p = affinities - np.log(np.exp(affinities).sum(axis=1, keepdims=True))
watched = np.array([[1, 1, 0, 1], [0, 0, 0, 1]])  # five cells of the book's smallest data set
pair_by_pair = -np.mean([log_p[user, movie] for user, movie in np.argwhere(watched)])
counts = watched.sum(axis=1)
row_by_row = (counts * -(watched / counts[:, None] * log_p).sum(axis=1)).sum() / counts.sum()
print(f"pair by pair {pair_by_pair:.6f}, row by row {row_by_row:.6f}")

# %% [markdown]
# And the arithmetic: a multiplication and an addition for each of $d$ entries of each affinity, and
# twice that again for the gradients.

# %%
flops = {
    "in-batch": len(split.train) * settings.batch_size,
    "catalogue, pair by pair": len(split.train) * size,
    "catalogue, row by row": data.num_users * size,
}
for way, affinities in flops.items():
    print(f"{way:24} {6 * settings.width * affinities / 1e9:8.2f} GFLOP an epoch")

# %% [markdown]
# Row by row the exact loss is cheaper than its in-batch approximation. (With a million movies or
# users this changes: then sampling is worth its corrections.)
#
# While we are at it, the user tower gets a second source. A user is more than a row of a table: they
# are what they have watched. So the query is the user's own vector plus the scaled sum of the
# vectors of their movies, in no order:
#
# $$q_u = e_u + \frac{1}{\sqrt{n_u}} \sum_{j \in H_u} c_j, \qquad s_{ui} = q_u^\top c_i + b_i.$$
#
# The bias $b_i$ takes care of popularity, so that the vectors need not. (It is still one product: append
# $b_i$ to $c_i$ and a 1 to $q_u$.)
#
# In training a movie of the history is also a target, and a movie is a fine hint at itself. Dropout
# on the history breaks that: half of the movies are hidden from the query each time, and have to be
# predicted from the other half.


# %%
@keras.saving.register_keras_serializable(package="retrieval")
class CatalogueRetrieval(keras.Model):
    """Two towers whose scores cover the whole catalogue; a user is an id and a bag of movies.

    Args:
        num_users: highest user id.
        num_movies: highest movie id.
        width: of the embeddings.
        dropout: share of a query's entries, and of a history's movies, that training drops.
        use_history: whether the query sees the movies watched, or the user's id alone.
    """

    def __init__(self, num_users, num_movies, width=64, dropout=0.5, use_history=True, **kwargs):
        super().__init__(**kwargs)
        self.num_users, self.num_movies, self.width = num_users, num_movies, width
        self.dropout_rate, self.use_history = dropout, use_history
        self.user_embedding = layers.Embedding(num_users + 1, width)
        self.movie_embedding = layers.Embedding(num_movies + 1, width)
        self.movie_bias = self.add_weight((num_movies + 1,), initializer="zeros", name="movie_bias")
        self.history_dropout = layers.Dropout(dropout)
        self.query_dropout = layers.Dropout(dropout)

    def call(self, inputs, training=False):
        candidates = self.candidates()  # (M + 1, d)
        queries = self.user_embedding(inputs["user_id"])  # (B, d)
        if self.use_history:
            watched = ops.cast(inputs["watched"], candidates.dtype)  # (B, M + 1), 1 where watched
            watched = self.history_dropout(watched, training=training)
            count = ops.maximum(ops.sum(watched, axis=-1, keepdims=True), 1.0)
            queries = queries + ops.matmul(watched, candidates) / ops.sqrt(count)
        queries = self.query_dropout(queries, training=training)
        return ops.matmul(queries, ops.transpose(candidates)) + self.movie_bias  # (B, M + 1)

    def candidates(self):
        """The vectors of all movies, `(num_movies + 1, d)`; row 0 is the padding."""
        return self.movie_embedding(ops.arange(self.num_movies + 1, dtype="int32"))

    def get_config(self):
        return {
            **super().get_config(),
            "num_users": self.num_users,
            "num_movies": self.num_movies,
            "width": self.width,
            "dropout": self.dropout_rate,
            "use_history": self.use_history,
        }


@keras.saving.register_keras_serializable(package="retrieval")
class CatalogueSoftmax(keras.losses.Loss):
    """Cross-entropy between what a user watched and the softmax over all movies.

    Args:
        smoothing: share of the target that is spread evenly over the catalogue.
    """

    def __init__(self, smoothing=0.1, name="catalogue_softmax", **kwargs):
        super().__init__(name=name, **kwargs)
        self.smoothing = smoothing

    def call(self, y_true, y_pred):
        watched = ops.cast(y_true, y_pred.dtype)  # (B, M + 1)
        share = watched / ops.maximum(ops.sum(watched, axis=-1, keepdims=True), 1.0)
        is_movie = ops.cast(ops.arange(y_pred.shape[-1]) > 0, y_pred.dtype)  # 0 for the padding
        target = (1 - self.smoothing) * share + self.smoothing * is_movie / ops.sum(is_movie)
        return -ops.sum(target * ops.log_softmax(y_pred - 1e9 * (1 - is_movie)), axis=-1)  # (B,)

    def get_config(self):
        return {**super().get_config(), "smoothing": self.smoothing}


# %% [markdown]
# Label smoothing spreads a tenth of the target evenly: the movies a user has *not* watched include those
# they will watch, so no movie's probability should go to nothing. The rest of the cell turns a frame
# into rows, and the model into a recommender.


# %%
def watched_rows(user_ids, movie_ids, rows, num_movies):
    """1 where a user has watched a movie: `(rows, num_movies + 1)` int8, a row a user."""
    watched = np.zeros((rows, num_movies + 1), np.int8)
    watched[user_ids, movie_ids] = 1
    return watched


def by_catalogue(model):
    """A recommender for `evaluate`: what the model scores for users and their histories."""

    def scores(queries):
        rows = np.repeat(np.arange(len(queries)), queries.lengths)
        watched = watched_rows(rows, queries.histories.items, len(queries), model.num_movies)
        user_ids = np.asarray(queries.user_ids, np.int32)
        return model({"user_id": user_ids, "watched": watched}, training=False)

    return scores


def train_catalogue(
    model, frame, *, epochs, users_per_batch, optimizer, smoothing, seed, callbacks=()
):
    """Fit a softmax over the catalogue, one row a user; returns the seconds it took."""
    watched = watched_rows(
        frame["user_id"], frame["movie_id"], model.num_users + 1, model.num_movies
    )
    user_ids = np.flatnonzero(watched.any(axis=1)).astype(np.int32)
    watched = watched[user_ids]
    weight = watched.sum(axis=1, dtype=np.float32)  # each pair counts the same
    model.compile(optimizer=optimizer, loss=CatalogueSoftmax(smoothing))
    start = time.perf_counter()
    model.fit(
        batches(
            {"user_id": user_ids, "watched": watched},
            watched,
            weight / weight.mean(),
            batch_size=users_per_batch,
            shuffle=True,
            seed=seed,
        ),
        epochs=epochs,
        verbose=0,
        callbacks=list(callbacks),
    )
    return time.perf_counter() - start


# %% [markdown]
# First the user's id alone, so that only the loss is new; then with the history.

# %%
watches = {}
for name, use_history in (("catalogue softmax", False), ("catalogue softmax, history", True)):
    print(name)
    keras.utils.set_random_seed(run.seed)
    model = CatalogueRetrieval(
        data.num_users, data.num_movies, settings.width, settings.dropout, use_history
    )
    watch = watches[name] = BestByNDCG(
        by_catalogue(model), split, patience=8, every=settings.catalogue_every
    )
    train_catalogue(
        model,
        split.train,
        epochs=settings.catalogue_epochs,
        users_per_batch=settings.users_per_batch,
        optimizer=keras.optimizers.AdamW(
            settings.learning_rate, weight_decay=settings.weight_decay
        ),
        smoothing=settings.smoothing,
        seed=run.seed,
        callbacks=[watch, EpochLog(every=20), *run.callbacks(name)],
    )
    towers[name] = model
    put_to_test(name, by_catalogue(model), watch.history[-1]["seconds"])
    print(f"best on validation: epoch {watch.best_epoch}")

# %%
best = {name: max(one["ndcg"] for one in watch.history) for name, watch in watches.items()}
chosen_model = max(best, key=best.get)
for name, value in best.items():
    print(f"validation NDCG@10 {value:.4f}  {name}{' (chosen)' if name == chosen_model else ''}")

# %% [markdown]
# Validation chooses between the two, and has told us how many epochs to train. One thing is left:
# the validation movies are the past now, like all others. The baselines were fitted on them, so in
# fairness our model is too: the same training once more, from scratch, for the chosen number of epochs,
# on training and validation part together. The test part has had no say in any of this.

# %%
past = pd.concat([split.train, split.validation])
name = "catalogue softmax, refitted"
keras.utils.set_random_seed(run.seed)
retriever = CatalogueRetrieval(
    data.num_users,
    data.num_movies,
    settings.width,
    settings.dropout,
    use_history=towers[chosen_model].use_history,
)
seconds = train_catalogue(
    retriever,
    past,
    epochs=watches[chosen_model].best_epoch,
    users_per_batch=settings.users_per_batch,
    optimizer=keras.optimizers.AdamW(settings.learning_rate, weight_decay=settings.weight_decay),
    smoothing=settings.smoothing,
    seed=run.seed,
    callbacks=[EpochLog(every=20), *run.callbacks("refitted")],
)
towers[name] = retriever
put_to_test(name, by_catalogue(retriever), seconds, recipe="made right")
for baseline in baselines:
    run.record(
        model=baseline, recipe="baseline", protocol="leave-one-out", metrics=results[baseline]
    )

# %% [markdown]
# ## The whole table
#
# All steps and all baselines, under P. The two baselines with *recency* know something that no model
# of this chapter may know: the order in which the movies were watched.

# %%
comparison = compare(results)
run.show_table(comparison)

# %%
for baseline in ("popularity", *(other for other in baselines if other != "popularity")):
    print(comparison.better(name, baseline))

# %%
orderless = max(("popularity", "item kNN", "EASE"), key=lambda baseline: results[baseline].ndcg)
ordered = max(baselines, key=lambda baseline: results[baseline].ndcg)
made_right = results[name].ndcg
if made_right > results[orderless].ndcg:
    print(f"Among those that ignore the order, ours is ahead of the best baseline, {orderless}.")
else:
    print(f"Even among those that ignore the order, {orderless} wins: on data this small a closed")
    print("form finds its optimum exactly, while ours has to be stopped before it overfits.")
if ordered != orderless and results[ordered].ndcg > made_right:
    print(f"The winner is {ordered}: what was watched last says most about what comes next,")
    print("and no model of this chapter sees the order. The next two chapters do.")

# %% [markdown]
# Look at the intervals before you believe a winner. Popularity is beaten clearly; between models a few
# thousandths apart, this many users cannot decide.
#
# ## Ten titles again
#
# Beside what the documented recipe would have shown, which is what we started from:

# %%
asked = queries_for(split, user_ids=[reader])
made_right_list = recommend(by_catalogue(retriever), asked, k)[0]
history = set(asked.histories[0].tolist())
documented_list = top_of_table(documented.queries([reader]), documented.candidates(), k)[0]
marked = [titles[movie] + (" (seen)" if movie in history else "") for movie in documented_list]
run.show_table(
    pd.DataFrame(
        {"place": range(1, k + 1), "as documented": marked, "made right": titles[made_right_list]}
    ),
    caption=f"User {reader}, who has watched {len(history)} movies",
)

# %% [markdown]
# The left list is sure of its stars and holds what the user knows already, or what hardly anybody
# has seen. The right one is what people with this history go on to watch.
#
# ## Movies like this one
#
# The candidates are useful without any user. Two movies are alike when their vectors point in the
# same direction: *item-to-item* retrieval is a search for the nearest by cosine,
#
# $$\cos(c_i, c_j) = \frac{c_i^\top c_j}{\lVert c_i \rVert \, \lVert c_j \rVert}.$$


# %%
def nearest(candidates, movie, k, among=None):
    """The `k` movies whose vectors point most nearly the same way.

    Args:
        candidates: `(num_movies + 1, d)`.
        movie: id of the movie to start from.
        k: how many neighbours.
        among: ids of the movies that may be neighbours; by default all.

    Returns:
        `(k,)` movie ids, nearest first, and their cosines.
    """
    directions = candidates / np.linalg.norm(candidates, axis=1, keepdims=True)
    cosines = directions @ directions[movie]
    allowed = np.arange(1, len(candidates)) if among is None else np.asarray(among)
    allowed = allowed[allowed != movie]
    best = allowed[np.argsort(-cosines[allowed], kind="stable")[:k]]
    return best, cosines[best]


candidates = ops.convert_to_numpy(retriever.candidates())
popularity = np.bincount(past["movie_id"], minlength=size)
by_popularity = np.argsort(-popularity[1:], kind="stable") + 1
well_known = by_popularity[: max(10, data.num_movies // 4)]
wanted = ("Star Wars (1977)", "Silence of the Lambs, The (1991)", "Toy Story (1995)")
chosen = [int(np.flatnonzero(titles == title)[0]) for title in wanted if (titles == title).any()]
chosen += [movie for movie in by_popularity.tolist() if movie not in chosen][: 3 - len(chosen)]
neighbours = {
    titles[movie]: titles[nearest(candidates, movie, 8, well_known)[0]] for movie in chosen
}
run.show_table(pd.DataFrame(neighbours), caption="Nearest movies, among the most watched quarter")

# %% [markdown]
# Nobody told the model about genres, series or directors; it has seen who watched what. (Rare movies
# are left out of the search: their vectors rest on a handful of people.)
#
# To see more than a list we press the vectors flat. Take the most watched movies, make their vectors
# unit length, and keep the plane in which they differ most: the first two principal components.


# %%
def flat_map(candidates, movies):
    """Two coordinates a movie: the first two principal components of the unit vectors.

    Args:
        candidates: `(num_movies + 1, d)`.
        movies: `(n,)` ids of the movies to place.

    Returns:
        `(n, 2)`, and the share of the variance that the plane holds.
    """
    directions = candidates[movies]
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    left, spread, right = np.linalg.svd(directions - directions.mean(axis=0), full_matrices=False)
    signs = np.sign(right[:2, np.argmax(np.abs(right[:2]), axis=1)].diagonal())
    return left[:, :2] * spread[:2] * signs, float((spread[:2] ** 2).sum() / (spread**2).sum())


def era(year):
    """When a movie came out, in one of six groups."""
    if pd.isna(year):
        return "year unknown"
    if year < 1970:
        return "before 1970"
    if year < 1990:
        return f"{int(year) // 10 * 10}s"
    return "1990 to 1995" if year < 1996 else "1996 and later"


def short_title(title):
    """`Godfather, The (1972)` as people say it: `The Godfather`."""
    title = title.rsplit(" (", 1)[0]
    for article in ("The", "A", "An"):
        if title.endswith(f", {article}"):
            title = f"{article} {title.removesuffix(f', {article}')}"
    return title if len(title) <= 30 else title[:28] + "…"


def draw_map(places, names, groups, labels=32):
    """A scatter plot of movies with as many titles as fit without overlap.

    Args:
        places: `(n, 2)`, the movies that should be labelled first in front.
        names: `n` short titles.
        groups: `n` names of groups, which decide colour and marker.
        labels: how many titles at most.

    Returns:
        The figure.
    """
    fig, ax = plt.subplots(figsize=(10.5, 8))
    for group, marker in zip(
        sorted(set(groups), key=lambda group: (group[:1] == "y", "before" not in group, group)),
        "osD^vPX",
        strict=False,
    ):
        of_it = np.array([one == group for one in groups])
        ax.scatter(*places[of_it].T, s=34, marker=marker, label=group, alpha=0.75, linewidth=0)
    ax.set(
        xlabel="first principal component (no unit)",
        ylabel="second principal component (no unit)",
        title="The most watched movies, by who watched them",
    )
    ax.margins(0.06)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=4, frameon=False)
    fig.canvas.draw()
    points = ax.transData.transform(places)  # pixels
    frame, taken = ax.get_window_extent(), []
    for place, name in zip(places, names, strict=True):
        if len(taken) == labels:
            break
        for dx, dy, align in (
            (6, -3, "left"),
            (-6, -3, "right"),
            (0, 7, "center"),
            (0, -13, "center"),
        ):
            text = ax.annotate(
                name, place, (dx, dy), textcoords="offset points", ha=align, fontsize=9
            )
            box = text.get_window_extent().padded(1)
            inside = frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0
            crowd = (np.abs(points - box.get_points().mean(axis=0)) < [box.width / 2, 6]).all(
                axis=1
            )
            if inside and box.y1 < frame.y1 and not crowd.any() and not box.count_overlaps(taken):
                taken.append(box)
                break
            text.remove()
    return fig


# %% mystnb={"image": {"alt": "Map of the most watched movies: movies that the same people watched lie close together; colours and markers show the years they came out, about thirty are labelled."}}
mapped = by_popularity[: min(150, data.num_movies)]
places, kept = flat_map(candidates, mapped)
years = data.movies.set_index("movie_id")["year"].reindex(mapped)
fig = draw_map(
    places, [short_title(titles[movie]) for movie in mapped], [era(year) for year in years]
)
run.show(fig, "map")

# %%
print(f"the plane holds {kept:.0%} of the variance of {len(mapped)} movies")

# %% [markdown]
# Movies that the same people watch lie together. Nobody gave the model a year, and yet movies of one time
# cluster: some people watch what is new in the cinema, others the classics. Look for a favourite of
# yours. The plane keeps but a part of the variance, so neighbours on the map may be far apart in the
# full space; the table above used all of it.
#
# ## What does a query cost?
#
# Brute force compares the query with every candidate. Is that a problem? Arithmetic first. For $M$
# candidates of $d$ float32 entries a query reads $4dM$ bytes, writes and reads again the $M$ scores,
# and takes $2dM$ operations:

# %% tags=["nbval-check-output"]
d = 32
for candidates_asked in (1_000, 1_000_000):
    megabytes = (4 * d + 8) * candidates_asked / 1e6
    megaflops = 2 * d * candidates_asked / 1e6
    print(f"{candidates_asked:>9,} candidates: {megabytes:8.3f} MB, {megaflops:7.3f} MFLOP")

# %% [markdown]
# What can this machine do? One long copy tells how fast memory streams, one large matrix
# product how fast it multiplies, and a query to a tiny index what a call costs whatever its size.


# %%
def seconds_of(call, repeats):
    """The median time of a call that returns a tensor, in seconds, after a first one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        ops.convert_to_numpy(call())
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def compiled_index(candidates, k):
    """A model that maps queries `(B, d)` to ids `(B, k)`: brute force, compiled by the backend."""
    index = keras_rs.layers.BruteForceRetrieval(k=k, return_scores=False)
    index.update_candidates(ops.convert_to_tensor(candidates))
    return keras.Sequential([keras.Input((candidates.shape[1],)), index])


if run.device.startswith("CPU"):
    source, sink = np.ones((2, settings.stream_floats), np.float32)

    def stream():
        """Read and write each float once."""
        np.copyto(sink, source)
        return sink[:1]
else:
    source = ops.ones((settings.stream_floats,))

    def stream():
        """Read and write each float once."""
        return ops.add(source, 1.0)[:1]


square = ops.ones((2_048, 2_048) if run.profile != "smoke" else (256, 256))
bytes_a_second = 8 * settings.stream_floats / seconds_of(stream, settings.repeats)
flops_a_second = (
    2 * square.shape[0] ** 3 / seconds_of(lambda: ops.matmul(square, square)[:1], settings.repeats)
)
rng = np.random.default_rng(run.seed)
query = rng.normal(size=(1, d)).astype(np.float32)
catalogue = rng.normal(size=(max(settings.catalogue_sizes), d)).astype(np.float32)
tiny = compiled_index(catalogue[:k], k)
seconds_a_call = seconds_of(lambda: tiny.predict_on_batch(query), settings.repeats)
print(f"memory   {bytes_a_second / 1e9:8.1f} GB/s")
print(f"products {flops_a_second / 1e9:8.1f} GFLOP/s")
print(f"a call   {seconds_a_call * 1e3:8.2f} ms")

# %% [markdown]
# A query uses each byte once, so memory and not arithmetic sets the pace. The prediction is the
# call plus the larger of the two times. Then we measure.

# %%
measured = []
for count in settings.catalogue_sizes:
    model = compiled_index(catalogue[:count], k)
    taken = seconds_of(lambda model=model: model.predict_on_batch(query), settings.repeats)
    traffic = (4 * d + 8) * count / bytes_a_second
    arithmetic = 2 * d * count / flops_a_second
    predicted = seconds_a_call + max(traffic, arithmetic)
    measured.append((count, 1e3 * traffic, 1e3 * arithmetic, 1e3 * predicted, 1e3 * taken))
costs = pd.DataFrame(
    measured,
    columns=["candidates", "memory (ms)", "products (ms)", "predicted (ms)", "measured (ms)"],
)
costs["measured / predicted"] = costs["measured (ms)"] / costs["predicted (ms)"]
run.show_table(costs)
run.fact("brute_force_largest_ms", float(costs["measured (ms)"].iloc[-1]))

# %% mystnb={"image": {"alt": "Time of one brute-force query against the number of candidates on logarithmic axes: predicted and measured, with the lines of memory and arithmetic."}}
fig, ax = plt.subplots()
ax.loglog(costs["candidates"], costs["measured (ms)"], "o-", label="measured")
ax.loglog(costs["candidates"], costs["predicted (ms)"], "s--", label="predicted")
ax.loglog(costs["candidates"], costs["memory (ms)"], ":", label="memory alone")
ax.loglog(costs["candidates"], costs["products (ms)"], ":", label="products alone")
ax.set(
    xlabel="candidates", ylabel="time of one query (ms)", title="Brute force: what one query costs"
)
ax.legend()
run.show(fig, "brute-force")

# %% [markdown]
# Flat at first, where the call itself is all the cost; then a straight line, where it grows with the
# catalogue. What lies between the predicted line and the measured one is what our arithmetic left out: the
# search for the ten best among the scores makes a query slower, the processor's caches make it faster
# while the catalogue fits in them. For a catalogue of thousands, an index
# cleverer than brute force would save nothing. From a million on, or with many queries a second, it
# is time for *approximate* nearest neighbours, which trade a little recall for not reading everything.

# %% [markdown]
# ## Exercises
#
# :::{exercise} ★ What if seen movies stayed in?
# :label: retrieval-ex1
# Take the model made right and do *not* exclude what a user has seen. How many of the ten places go
# to seen movies, on average over all users? Evaluate it so, with `exclude_seen=False`.
# :::

# %% [markdown]
# :::{solution-start} retrieval-ex1
# :class: dropdown
# :::

# %%
kept_in = recommend(by_catalogue(retriever), queries, k, exclude_seen=False)
repeats = [np.isin(row, history).sum() for row, history in zip(kept_in, histories, strict=True)]
print(f"seen movies among the ten: {np.mean(repeats):.1f} on average")
with_seen = evaluate(by_catalogue(retriever), split, exclude_seen=False, name="seen kept")
print(f"NDCG@10 {with_seen.ndcg:.4f}, with seen movies excluded {results[name].ndcg:.4f}")

# %% [markdown]
# The model was trained to give what was watched a high score, so seen movies come first. In this data
# nobody watches the same movie twice, and every such place is lost.
#
# :::{solution-end}
# :::

# %% [markdown]
# :::{exercise} ★★ Somebody new
# :label: retrieval-ex2
# A visitor has no row in the user table, but tells you three movies they like: those of the
# nearest-neighbour table. Recommend ten movies to them without any training, with the model that sees
# histories. (Which user id is nobody's?)
# :::

# %% [markdown]
# :::{solution-start} retrieval-ex2
# :class: dropdown
# :::

# %%
watched = watched_rows(0, np.array(chosen), 1, data.num_movies)
with_history = towers["catalogue softmax, history"]
scores = with_history({"user_id": np.array([PADDING_ID], np.int32), "watched": watched})
scores = ops.convert_to_numpy(scores)[0].copy()
scores[[PADDING_ID, *chosen]] = -np.inf
run.show_table(
    pd.DataFrame({"title": titles[np.argsort(-scores, kind="stable")[:k]]}),
    caption="For somebody who likes " + ", ".join(titles[chosen]),
)

# %% [markdown]
# Row 0 of the user table belongs to nobody: weight decay has kept it near zero, and the query is the
# history alone. A model that knows users by id only would have nothing to say.
#
# :::{solution-end}
# :::

# %% [markdown]
# :::{exercise} ★★★ Less popular, please
# :label: retrieval-ex3
# A shop wants its lists to show more of the catalogue. Subtract $\alpha \log n_i$ from the score of a
# movie watched $n_i$ times, for a few $\alpha$ from 0 to 1, and look at NDCG and coverage *on the
# validation part* (so with a model that has not seen it). What does coverage cost?
# :::

# %% [markdown]
# :::{solution-start} retrieval-ex3
# :class: dropdown
# :::

# %%
of_movie = np.log(np.maximum(np.bincount(trained_on, minlength=size), 1))
scored = by_catalogue(towers["catalogue softmax, history"])
trade = []
for alpha in (0.0, 0.25, 0.5, 0.75, 1.0):
    result = evaluate(
        lambda asked, alpha=alpha: ops.convert_to_numpy(scored(asked)) - alpha * of_movie,
        split,
        on="validation",
        num_resamples=1,
    )
    trade.append((alpha, result.ndcg, result.coverage))
run.show_table(pd.DataFrame(trade, columns=["alpha", "NDCG@10", "coverage"]))

# %% [markdown]
# With $\alpha = 1$ you undo what the log-Q correction did: the score becomes
# $\log p(i \mid u) - \log p(i)$, the very thing the uncorrected in-batch softmax learns. In
# between there is often room for more coverage at little cost.
#
# :::{solution-end}
# :::

# %% [markdown]
# ## Summary
#
# - Two towers and a dot product make retrieval one matrix product and a top ten.
# - A model that is good at stars can be bad at retrieval: its loss never compares what was watched with
#   what was not (C7). Exclude the padding and what the user has seen (C6).
# - The in-batch softmax lets the movies of a batch compete. Remove accidental hits and subtract
#   $\log q$, or popular movies are pushed down (C11).
# - On a catalogue of thousands the exact softmax, a row a user, is both cheaper and better than its
#   approximation.
# - Measure under one protocol, beside baselines, with intervals; choose on validation, and fit once
#   more on everything before the test.
# - Brute force is limited by memory: bytes over bandwidth predicts it.
#
# ## References
#
# The documented model: {cite}`sharma2025keras`. The data: {cite}`harper2015`. Sampling-bias corrected
# softmax: {cite}`yi2019`. EASE: {cite}`steck2019`. A softmax over the catalogue with a user as a bag
# of movies is the idea of the variational autoencoder of {cite:t}`liang2018`, here without the
# variational part.

# %%
run.save()
