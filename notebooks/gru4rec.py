# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # GRU4Rec: what comes next, read in order
#
# After this chapter you will be able to
#
# - cut histories into windows and train a recurrent network to name the next movie;
# - read an in-batch softmax loss: what chance is, and what it must not be compared with;
# - find a leak between training and test, count it, and measure what it pretends to be worth;
# - mask padding, so that a history gives the same answer however it is padded;
# - train on every position of every history with a softmax over the catalogue;
# - compare the result, with intervals, to baselines that need no training.
#
# The documented half re-implements, in its own code, the Keras Recommenders example
# [Sequential retrieval (GRU4Rec)](https://keras.io/keras_rs/examples/sequential_retrieval/)
# {cite}`sharma2025keras`; the idea is that of Hidasi et al. {cite}`hidasi2016`, the recurrent unit
# that of Cho et al. {cite}`cho2014`.

# %% tags=["bootstrap", "hide-cell"]
import importlib.util
import os
import subprocess
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported
if "ipykernel" in sys.modules and importlib.util.find_spec("rectutor") is None:
    package = "rectutor @ git+https://github.com/rectutor/rectutor@main"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %%
import math
import tempfile
import time
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from keras import ops

from rectutor import PADDING_ID, chapter
from rectutor.baselines import EASE, Mixture, standard_baselines
from rectutor.evaluation import compare, evaluate, queries_for, recommend
from rectutor.sequences import Histories, histories, sliding_windows, training_windows
from rectutor.splits import leave_one_out
from rectutor.training import BestByNDCG, EpochLog

run = chapter.start("gru4rec")

# %% [markdown]
# Everything a profile changes is in this cell. `quick` is for a laptop's processor, `full` is MovieLens
# 1M with the documented settings and then a model of the literature's size, and `smoke` only proves
# that the chapter runs.

# %%
SETTINGS = dict(
    #     quick, full, smoke
    data=("100k", "1m", "synthetic"),
    # as documented
    context=10,
    documented_width=32,
    documented_epochs=(5, 5, 1),
    documented_batch=(4096, 4096, 512),
    validation_batch=(2048, 2048, 256),
    documented_rate=0.05,
    # made right
    length=(50, 200, 10),  # positions a window
    width=64,  # of a movie's vector
    units=(128, 256, 16),  # of the GRU
    dropout=(0.4, 0.2, 0.4),
    ahead=5,  # how many of the next movies are targets
    rate=(0.005, 0.001, 0.005),
    batch=(64, 128, 64),
    epochs=(24, 100, 2),
    patience=(4, 10, 1),  # epochs without a better validation NDCG@10
    refresh_epochs=1,  # over both parts, once the weights are chosen
)
settings = run.settings(**SETTINGS)

# %%
data = run.load_data(settings.data, needs=("timestamps",), min_users=20, min_movies=20)
split = leave_one_out(data)
print(split)

# %% [markdown]
# `split` is the book's one way to compare ([evaluation](../book/evaluation.md)): a user's last
# interaction is the test, the one before is for choosing, the rest is for training. The documented
# recipe does not use it; we come back to that.
#
# ## As documented
#
# ### The windows
#
# The documented recipe keeps ratings of two stars and more, sorts each user's movies by time, and
# makes one training row a position: the up to ten movies before it, and the movie itself as the
# label. Short rows are filled with zeros at the end; users with fewer than three movies are left
# out. Where a table has no ratings, all interactions stay.

# %%
liked = data.ratings[data.ratings["rating"] >= 2] if data.has_ratings else data.ratings
liked_histories = histories(liked, num_users=data.num_users)
contexts, labels, owners = sliding_windows(
    liked_histories, settings.context, min_length=3, return_users=True
)
print(f"{len(liked):,} of {len(data.ratings):,} interactions stay")
print(f"contexts {contexts.shape}, labels {labels.shape}")

# %% [markdown]
# The same on a toy: one user with the movies 4, 5, 6, 7, and a context of three.

# %% tags=["nbval-check-output"]
toy = Histories(np.array([4, 5, 6, 7], np.int32), np.array([0, 0, 4]))
for context, label in zip(*sliding_windows(toy, length=3), strict=True):
    print(context, "->", label)

# %% [markdown]
# (gru4rec-c17)=
# :::{admonition} Correction C17: preparing the data one row at a time
# The documented preparation walks over the table in Python: a dictionary for each rating, a list for
# each window, a loop for each zero. Histories as one flat array with offsets need a sort and a few
# array operations. (The next cell runs both on at most 100,000 rows.)
# :::


# %%
def windows_row_by_row(ratings, length):
    """The documented windows in plain Python: two lists, one entry a position."""
    watched = {}
    for row in ratings.to_dict("records"):
        watched.setdefault(row["user_id"], []).append((row["timestamp"], row["movie_id"]))
    rows, targets = [], []
    for user in sorted(watched):
        movies = [int(movie) for _, movie in sorted(watched[user], key=lambda pair: pair[0])]
        for place in range(1, len(movies)):
            row = movies[max(0, place - length) : place]
            while len(row) < length:
                row.append(PADDING_ID)
            rows.append(row)
            targets.append(movies[place])
    return rows, targets


sample = liked.head(100_000)
start = time.perf_counter()
by_row = windows_row_by_row(sample, settings.context)
seconds_by_row = time.perf_counter() - start
start = time.perf_counter()
as_arrays = sliding_windows(histories(sample), settings.context, min_length=2)
seconds_as_arrays = time.perf_counter() - start

assert all(np.array_equal(loop, array) for loop, array in zip(by_row, as_arrays, strict=True))
run.fact("c17_times_faster", round(seconds_by_row / seconds_as_arrays, 1))
print(f"row by row {seconds_by_row:.2f} s, arrays {seconds_as_arrays:.3f} s")
print(f"{seconds_by_row / seconds_as_arrays:.0f} times faster, and the same windows")

# %% [markdown]
# Then all windows are shuffled; the first nine tenths train, the rest validates.

# %%
order = np.random.default_rng(run.seed).permutation(len(labels))
train_rows, validation_rows = np.split(order, [int(0.9 * len(order))])
print(f"{len(train_rows):,} windows to train, {len(validation_rows):,} to validate")

# %% [markdown]
# ### The model
#
# Two towers. The query tower reads a window $w$ with an embedding and a [GRU](../book/glossary.md) and
# ends in a vector $q_w$; the candidate tower gives each movie $i$ a vector $c_i$ of its own. Their
# affinity is $s_{wi} = q_w^\top c_i$. The loss takes the labels of the batch as the only candidates: with
# windows $w = 1 \dots B$ and their labels $i_1 \dots i_B$,
#
# $$L = -\frac{1}{B} \sum_{w=1}^{B} \log \frac{\exp s_{w i_w}}{\sum_{v=1}^{B} \exp s_{w i_v}}.$$
#
# This is the [in-batch softmax](../book/glossary.md): each window has to find its own label among those
# of the others.


# %%
@keras.saving.register_keras_serializable("rectutor")
class InBatchGRU4Rec(keras.Model):
    """GRU4Rec as the Keras Recommenders example sets it up.

    Args:
        num_movies: highest movie id.
        width: size of the vectors and of the GRU.
    """

    def __init__(self, num_movies, width=32, **kwargs):
        super().__init__(**kwargs)
        self.config = {"num_movies": num_movies, "width": width}
        self.history_movies = keras.layers.Embedding(num_movies + 1, width)
        self.gru = keras.layers.GRU(width)
        self.movies = keras.layers.Embedding(num_movies + 1, width)

    def build(self, input_shape):
        self.history_movies.build(input_shape)
        self.gru.build((*input_shape, self.config["width"]))
        self.movies.build(input_shape)
        self.built = True

    def call(self, windows):
        return self.gru(self.history_movies(windows))  # (B, length) -> (B, d)

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        candidates = self.movies(y)  # (B, d)
        scores = ops.matmul(y_pred, ops.transpose(candidates))  # (B, B), own label on the diagonal
        return ops.mean(ops.logsumexp(scores, axis=1) - ops.diagonal(scores))

    def score(self, windows):
        """Affinity of `(B, length)` windows and every id of the table: `(B, num_movies + 1)`."""
        queries = self.predict(windows, batch_size=1024, verbose=0)
        return queries @ ops.convert_to_numpy(self.movies.embeddings).T

    def get_config(self):
        return {**super().get_config(), **self.config}


# %%
def recommender_of(model, length, padding):
    """Let `model` answer the protocol's queries from the latest `length` movies of each."""

    def recommender(queries):
        return model.score(queries.last(length, padding))

    return recommender


# %% [markdown]
# ### Training
#
# `AdamW` with the documented rate, the batches in the same order in every epoch, and larger batches for
# training than for validation.


# %%
def train_as_documented(
    num_movies,
    contexts,
    labels,
    *,
    width,
    rate,
    batch,
    epochs,
    seed,
    validation=None,
    validation_batch=None,
    callbacks=(),
):
    """The documented training.

    Args:
        num_movies: highest movie id.
        contexts: `(n, length)` windows, in the order of training.
        labels: `(n,)` the movie after each.
        width, rate, batch, epochs, seed: of the recipe.
        validation: `(contexts, labels)` for a loss, or None.
        validation_batch, callbacks: for `fit`.

    Returns:
        The model, and its losses by epoch.
    """
    keras.utils.set_random_seed(seed)
    model = InBatchGRU4Rec(num_movies, width)
    model.compile(optimizer=keras.optimizers.AdamW(rate))
    log = model.fit(
        contexts,
        labels,
        batch_size=batch,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
        validation_data=validation,
        validation_batch_size=validation_batch,
    )
    return model, log.history


# %%
recipe = {
    "width": settings.documented_width,
    "rate": settings.documented_rate,
    "batch": settings.documented_batch,
    "epochs": settings.documented_epochs,
    "seed": run.seed,
}
validation = contexts[validation_rows], labels[validation_rows]
start = time.perf_counter()
documented, losses = train_as_documented(
    data.num_movies,
    contexts[train_rows],
    labels[train_rows],
    **recipe,
    validation=validation,
    validation_batch=settings.validation_batch,
    callbacks=[EpochLog()],
)
documented_seconds = time.perf_counter() - start
run.fact("documented_loss", losses["loss"][-1])
run.fact("documented_val_loss", losses["val_loss"][-1])

# %% [markdown]
# On 1M the documentation ends at a loss of 6.5049 and a validation loss of 5.9625
# {cite}`sharma2025keras`. The loss on data the model has not seen is the lower of the two, from the
# first epoch on. Before we celebrate: what would pure chance score?
#
# (gru4rec-c10)=
# :::{admonition} Correction C10: the validation loss is lower because its batches are smaller
# A model that knows nothing gives every candidate of a batch the same score, and its loss is
# $\ln B$. With half the batch the task is easier and chance is lower by $\ln 2$. A validation loss below
# the training loss is an artefact of the two batch sizes. Compare only losses of one batch size, or each
# with its own chance. (The next cells draw the chance levels, and measure the same weights on the
# same rows with several batch sizes.)
# :::


# %%
def chance(rows, batch):
    """The in-batch loss of a model that knows nothing: ln B, averaged over the rows."""
    full, rest = divmod(rows, batch)
    return (full * batch * math.log(batch) + rest * math.log(max(rest, 1))) / rows


# %% tags=["nbval-check-output"]
for batch in (2048, 4096):
    print(f"batch {batch}: chance is {chance(batch, batch):.3f}")

# %% mystnb={"image": {"alt": "Training and validation loss per epoch, each with its chance level"}}
chances = {
    "training": chance(len(train_rows), settings.documented_batch),
    "validation": chance(len(validation_rows), settings.validation_batch),
}
fig, ax = plt.subplots()
epochs = np.arange(1, len(losses["loss"]) + 1)
for color, (name, key) in enumerate([("training", "loss"), ("validation", "val_loss")]):
    ax.plot(epochs, losses[key], marker="o", color=f"C{color}", label=f"{name} loss")
    ax.axhline(chances[name], ls="--", color=f"C{color}", label=f"chance, {name} batches")
ax.set(xlabel="epoch", ylabel="in-batch loss (nats)", xticks=epochs)
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
run.show(fig, "in-batch-loss")

# %% [markdown]
# See the gap between each curve and its own dashed line, not the gap between the curves: the chance
# levels are as far apart as the curves are. Now one model, one set of rows, and only the batch size
# varies.

# %%
sizes = [settings.validation_batch // 4, settings.validation_batch, settings.documented_batch]
by_size = []
for size in sizes:
    loss = documented.evaluate(*validation, batch_size=size, verbose=0)
    level = chance(len(validation_rows), size)
    by_size.append({"batch": size, "loss": loss, "chance": level, "below chance": level - loss})
by_size = pd.DataFrame(by_size)
run.fact("c10_loss_gap_of_batch_sizes", by_size["loss"].iloc[-1] - by_size["loss"].iloc[1])
run.show_table(by_size, caption="The same weights and rows, batches of different size")

# %% [markdown]
# The loss moves with the batch and the distance from chance hardly does: that last column is what can be
# compared.
#
# ### Ten movies
#
# The documented ending: take the history of one user, and list the ten movies with the highest
# scores. We take a user whose history is of middling length.

# %%
queries = queries_for(split)
chosen = int(np.argsort(queries.lengths, kind="stable")[len(queries) // 2])
reader = queries_for(split, user_ids=[int(queries.user_ids[chosen])])
watched = reader.history(0)
from_documented = recommender_of(documented, settings.context, padding="after")
ten = np.argsort(-from_documented(reader)[0], kind="stable")[:10]
print("watched last:")
for movie in watched[-settings.context :]:
    print(f"    {data.titles[movie]}")
print("recommended:")
for movie in ten:
    note = "  <- not a movie" if movie == PADDING_ID else "  <- seen" if movie in watched else ""
    print(f"    {data.titles[movie]}{note}")

# %% [markdown]
# (gru4rec-c6)=
# :::{admonition} Correction C6: the ten movies include what the user has seen, and padding
# The scores cover the whole embedding table. Nothing takes out the movies of the history, and nothing takes
# out id 0, which fills short windows and is no movie. Under protocol P both are excluded before the ten are
# chosen. (The next cell counts over all users.)
# :::


# %%
def wasted_places(recommender, queries, k=10):
    """Without any exclusion, averaged over queries: how many of the `k` best ids are seen, how
    often one of them is padding, and which share of the movies padding is ranked above."""
    seen, padding, below = [], [], []
    for batch in queries.batches(512):
        scores = np.asarray(recommender(batch))
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        below.extend((scores[:, 1:] < scores[:, [PADDING_ID]]).mean(axis=1))
        for row, ids in enumerate(best):
            seen.append(np.isin(ids, batch.history(row)).sum())
            padding.append(PADDING_ID in ids)
    return float(np.mean(seen)), float(np.mean(padding)), float(np.mean(below))


seen_of_ten, padded_lists, below_padding = wasted_places(from_documented, queries)
run.fact("c6_seen_of_ten", seen_of_ten)
run.fact("c6_lists_with_padding", padded_lists)
run.fact("c6_movies_ranked_below_padding", below_padding)
print(f"of ten recommendations {seen_of_ten:.1f} were seen already, on average")
print(f"the padding id is ranked above {below_padding:.0%} of the movies, on average,")
print(f"and is among the ten for {padded_lists:.1%} of the users")

# %% [markdown]
# Each place that goes to a movie already seen is lost for a new one, and whether padding makes it into the ten is a matter
# of luck: it competes. From here on the exclusion is always on.
#
# ## What is wrong with it
#
# ### The leak
#
# (gru4rec-c8)=
# :::{admonition} Correction C8: the model has seen the answers
# All windows are shuffled before the split. A user's later movies train the model that is asked about the
# earlier ones, and of the movies that protocol P holds out as test, most are the label of a training window.
# The fix is to split by time *first* and to make windows of the training part only. (The next cells count the
# leaked targets, train once more without them, and compare.)
# :::

# %%
test_of = np.full(data.num_users + 1, -1)
test_of[split.test["user_id"]] = split.test["movie_id"]
as_label = np.zeros(data.num_users + 1, bool)
rows = train_rows[labels[train_rows] == test_of[owners[train_rows]]]
as_label[owners[rows]] = True
run.fact("c8_leaked_test_targets", as_label.sum() / len(split.test))

latest_trained = np.zeros(data.num_users + 1, int)  # a user's windows are in order of time
np.maximum.at(latest_trained, owners[train_rows], train_rows)
from_the_future = np.mean(latest_trained[owners[validation_rows]] > validation_rows)
run.fact("c8_windows_validated_on_the_past", from_the_future)
print(f"{as_label.sum():,} of {len(split.test):,} test targets are the label of a training window")
print(
    f"for {from_the_future:.1%} of the validation windows, later movies of the user are trained on"
)

# %% [markdown]
# A random nine tenths of all windows must hold about nine tenths of the test targets (a few are missing because their
# rating is low). The same recipe again, on windows of the training part alone:

# %%
train_ratings = split.train[split.train["rating"] >= 2] if data.has_ratings else split.train
fair_contexts, fair_labels = sliding_windows(
    histories(train_ratings, num_users=data.num_users), settings.context
)
order = np.random.default_rng(run.seed).permutation(len(fair_labels))
start = time.perf_counter()
without_leak, _ = train_as_documented(
    data.num_movies,
    fair_contexts[order],
    fair_labels[order],
    **recipe,
    callbacks=[EpochLog()],
)
without_leak_seconds = time.perf_counter() - start
from_without_leak = recommender_of(without_leak, settings.context, padding="after")

# %%
results = {
    "GRU4Rec as documented (leak)": evaluate(from_documented, split),
    "GRU4Rec as documented, no leak": evaluate(from_without_leak, split),
}
leak = compare(results)
run.fact("c8_hit_rate_with_leak", results["GRU4Rec as documented (leak)"].hit_rate)
run.fact("c8_hit_rate_without_leak", results["GRU4Rec as documented, no leak"].hit_rate)
run.show_table(leak)
print(leak.better(*results, metric="hit_rate"))

# %% [markdown]
# The difference is what the leak is worth here, and the sentence says whether it stands out of the noise. The first row is no
# measurement of anything a user would meet, so the second is the one to beat. Compare both with the popularity list in the
# table at the end of the chapter.
#
# ### The padding
#
# (gru4rec-c9)=
# :::{admonition} Correction C9: the GRU reads the padding
# Short windows end in zeros, and the embedding has no mask. The GRU takes each zero for one more movie, and the
# query is its state after the *last* of them. The answer to one and the same history depends on how many
# zeros follow it. The fix is `mask_zero=True`, and padding before the movies. (The next cell asks with the same
# three movies and more and more zeros.)
# :::

# %%
three = queries.last(3)
three = three[(three != PADDING_ID).all(axis=1)]
alone = np.argsort(-without_leak.score(three)[:, 1:], axis=1)[:, :10]
kept = {}
for zeros in (1, 3, settings.context - 3):
    padded = np.pad(three, ((0, 0), (0, zeros)))
    best = np.argsort(-without_leak.score(padded)[:, 1:], axis=1)[:, :10]
    kept[zeros] = np.mean([len(np.intersect1d(a, b)) for a, b in zip(alone, best, strict=True)])
run.fact("c9_of_ten_kept_after_padding", kept[settings.context - 3])
for zeros, same in kept.items():
    print(f"{zeros} zeros after the history: {same:.1f} of the ten movies are still the same")

# %% [markdown]
# Nothing about the users changed, and their lists did.
#
# ### The other windows' labels
#
# (gru4rec-c11)=
# :::{admonition} Correction C11: a movie is counted as a negative of itself, and popular movies pay
# The negatives of a window are the labels of the other windows. When two windows of a batch have the same
# label, each is told that its own next movie is wrong: an *accidental hit*. And a movie is a negative as often
# as it is a label, so popular movies are pushed down: at its optimum an in-batch softmax scores
# $s_{wi} = \log p(i \mid w) - \log p(i)$ plus a constant of the window {cite}`yi2019`, where $p(i)$ is how often
# the movie is drawn. The fix is to mask accidental hits and to add $\log p(i)$ to the scores while training
# (log-Q correction), or to use no sampled negatives at all. (The next cells count the hits in one batch, and add
# the missing term to the trained scores.)
# :::

# %%
one_batch = np.bincount(fair_labels[order][: settings.documented_batch])
batch_size = one_batch.sum()
hits_a_row = float((one_batch * (one_batch - 1)).sum() / batch_size)
run.fact("c11_accidental_hits_a_row", hits_a_row)
print(f"{batch_size:,} labels in the batch, {np.count_nonzero(one_batch):,} different movies")
print(f"a row has {hits_a_row:.1f} accidental hits among its negatives, on average")

# %%
watched_count = np.bincount(fair_labels, minlength=data.num_movies + 1)
log_q = np.log(np.maximum(watched_count, 1) / watched_count.sum())


def corrected(queries):
    """The scores of the model without leak, with the log-Q term put back."""
    return from_without_leak(queries) + log_q


results["GRU4Rec as documented, no leak, log-Q"] = evaluate(corrected, split)
rows = []
for name in ["GRU4Rec as documented, no leak", "GRU4Rec as documented, no leak, log-Q"]:
    found = results[name]
    typical = float(np.median(watched_count[found.recommendations]))
    rows.append({"": name, "HR@10": found.hit_rate, "NDCG@10": found.ndcg, "watched by": typical})
run.fact("c11_ndcg_without_log_q", rows[0]["NDCG@10"])
run.fact("c11_ndcg_with_log_q", rows[1]["NDCG@10"])
run.show_table(pd.DataFrame(rows), caption="'watched by': of the recommended movies, the median")

# %% [markdown]
# No weight was changed between the two rows. The correction moves the recommendations towards movies that more
# people watch, and the two metrics say what that is worth.

# %% [markdown]
# ## Made right
#
# ### Every position of every history
#
# A window of ten movies with one label uses each movie as input ten times to learn from it once. A GRU has a state
# after *every* movie; so we cut the training part of each history into windows without overlap, from its end, and
# ask for the next movie at every position. Padding goes before the movies.

# %%
inputs, targets = training_windows(split.histories(before="validation"), settings.length)
real = inputs != PADDING_ID
print(f"inputs {inputs.shape}, targets {targets.shape}, {real.mean():.0%} of the positions real")

# %% [markdown]
# The toy user again, in windows of two:

# %% tags=["nbval-check-output"]
for row, target in zip(*training_windows(toy, length=2), strict=True):
    print(row, "->", target)

# %% [markdown]
# ### The model
#
# One table of movie vectors $e_i$ serves the input and the output (*[weight tying](../book/glossary.md)*). The
# GRU's states are projected to vectors $h_t$ of the same width, and each position gets a probability for the whole
# catalogue, so there are no sampled negatives, no accidental hits and nothing to correct for:
#
# $$p_t(i) = \frac{\exp(h_t^\top e_i + b_i)}{\sum_j \exp(h_t^\top e_j + b_j)}.$$
#
# The bias $b_i$ learns popularity. The target of a position is the next movie $i_{t}$, and, with less weight,
# the few after it: people rate in sittings, and within a sitting the order means little. With
# $w_k = \gamma^k / \sum_{k'} \gamma^{k'}$ over the $K$ next movies that the window still holds,
#
# $$L_t = -\sum_{k=0}^{K-1} w_k \log p_t(i_{t+k}).$$
#
# $K = 1$ is the plain softmax loss. Dropout on the movie vectors keeps the model from learning histories by
# heart, and the mask keeps the GRU's state where it is as long as it reads padding.


# %%
@keras.saving.register_keras_serializable("rectutor")
class GRU4Rec(keras.Model):
    """A GRU over movie vectors, trained with a softmax over the catalogue at every position.

    Args:
        num_movies: highest movie id.
        width: size of a movie's vector.
        units: size of the GRU's state.
        dropout: rate on the vectors that enter the GRU.
        ahead: how many of the next movies are targets of a position.
        decay: weight of a target relative to the one before it.
    """

    def __init__(self, num_movies, width=64, units=128, dropout=0.4, ahead=5, decay=0.6, **kwargs):
        super().__init__(**kwargs)
        self.config = {"num_movies": num_movies, "width": width, "units": units}
        self.config |= {"dropout": dropout, "ahead": ahead, "decay": decay}
        self.movies = keras.layers.Embedding(num_movies + 1, width)
        self.dropout = keras.layers.Dropout(dropout)
        self.gru = keras.layers.GRU(units, return_sequences=True)
        self.project = keras.layers.Dense(width)
        self.bias = self.add_weight(shape=(num_movies + 1,), initializer="zeros", name="bias")

    def build(self, input_shape):
        width, units = self.config["width"], self.config["units"]
        self.movies.build(input_shape)
        self.gru.build((*input_shape, width))
        self.project.build((*input_shape, units))
        self.built = True

    def call(self, windows, training=False):
        mask = ops.not_equal(windows, PADDING_ID)  # (B, L)
        x = self.dropout(self.movies(windows), training=training)  # (B, L, d)
        return self.project(self.gru(x, mask=mask, training=training))  # (B, L, d)

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        table, length = self.movies.embeddings, y.shape[1]
        logits = ops.matmul(y_pred, ops.transpose(table)) + self.bias  # (B, L, num_movies + 1)
        # own[b, t, s]: the logit at position t of the target of position s
        own = ops.matmul(y_pred, ops.transpose(ops.take(table, y, axis=0), (0, 2, 1)))
        own = own + ops.take(self.bias, y, axis=0)[:, None, :]  # (B, L, L)
        steps = ops.arange(length)[None, :] - ops.arange(length)[:, None]  # (L, L), s - t
        weights = ops.power(self.config["decay"], ops.cast(ops.maximum(steps, 0), "float32"))
        weights = ops.where((steps >= 0) & (steps < self.config["ahead"]), weights, 0.0)
        real = ops.cast(ops.not_equal(y, PADDING_ID), "float32")  # (B, L)
        weights = weights[None] * real[:, None, :]  # (B, L, L)
        weights = weights / ops.maximum(ops.sum(weights, axis=-1, keepdims=True), 1e-9)
        loss = ops.logsumexp(logits, axis=-1) - ops.sum(weights * own, axis=-1)  # (B, L)
        return ops.sum(loss * real) / ops.maximum(ops.sum(real), 1.0)

    def score(self, windows):
        """Log-odds of the next movie after `(B, L)` windows: `(B, num_movies + 1)`."""
        state = self.predict(windows, batch_size=256, verbose=0)[:, -1]  # (B, d)
        table = ops.convert_to_numpy(self.movies.embeddings)
        return state @ table.T + ops.convert_to_numpy(self.bias)

    def get_config(self):
        return {**super().get_config(), **self.config}


# %% [markdown]
# ### What a step must cost
#
# Before the training, the arithmetic. A position costs the GRU's three gates, the projection and one product with
# each movie's vector; a multiplication with an addition counts as two operations, and the backward pass takes twice
# the forward pass.


# %%
def step_operations(positions, length, num_movies, width, units):
    """Floating-point operations of one training step on that many positions."""
    gates = 3 * units * (width + units)
    output = units * width + width * (num_movies + 1) + width * length
    return 3 * 2 * positions * (gates + output)


# %% tags=["nbval-check-output"]
share = step_operations(1, 50, 1682, 64, 128) - step_operations(1, 50, 0, 64, 128)
print(f"{step_operations(64 * 50, 50, 1682, 64, 128) / 1e9:.2f} billion operations a step")
print(f"{share / step_operations(1, 50, 1682, 64, 128):.0%} of them for scoring the catalogue")

# %% [markdown]
# That is for MovieLens 100K and the `quick` settings; the softmax over the catalogue that replaces the sampled one is
# the larger part, and still cheap.
#
# ### Training
#
# After each epoch NDCG@10 on validation decides: the best weights are kept, and training stops when they have not been
# beaten for a few epochs. The learning rate falls along a cosine.


# %%
def train(model, inputs, targets, *, rate, batch, epochs, callbacks=()):
    """Fit a `GRU4Rec` to `(n, L)` windows with a rate that falls along a cosine."""
    steps = math.ceil(len(inputs) / batch) * epochs
    falling = keras.optimizers.schedules.CosineDecay(rate, steps, alpha=0.02)
    model.compile(optimizer=keras.optimizers.Adam(falling))
    model.fit(
        inputs,
        targets,
        batch_size=batch,
        epochs=epochs,
        verbose=0,
        callbacks=list(callbacks),
    )
    return model


# %%
keras.utils.set_random_seed(run.seed)
model = GRU4Rec(
    data.num_movies,
    settings.width,
    settings.units,
    settings.dropout,
    settings.ahead,
)
from_model = recommender_of(model, settings.length, padding="before")
best = BestByNDCG(from_model, split, patience=settings.patience)
train(
    model,
    inputs,
    targets,
    rate=settings.rate,
    batch=settings.batch,
    epochs=settings.epochs,
    callbacks=[best, EpochLog(every=2)],
)
print(f"the weights of epoch {best.best_epoch} are kept")

# %%
first, last = best.history[0], best.history[-1]
model_seconds = last["seconds"]
steps = math.ceil(len(inputs) / settings.batch)
step_seconds = last["seconds"] - first["seconds"]
step_seconds /= steps * (last["epoch"] - first["epoch"])
operations = step_operations(
    settings.batch * settings.length,
    settings.length,
    data.num_movies,
    settings.width,
    settings.units,
)
run.fact("operations_a_step", operations)
run.fact("operations_a_second", operations / step_seconds)
run.fact("positions_a_second", settings.batch * settings.length / step_seconds)
print(f"{operations / 1e9:.2f} billion operations a step, {step_seconds * 1e3:.0f} ms measured:")
print(f"{operations / step_seconds / 1e9:.0f} billion operations a second,", end=" ")
print(f"{settings.batch * settings.length / step_seconds:,.0f} positions a second")
print("(the first epoch, in which the step is compiled, is left out)")

# %% mystnb={"image": {"alt": "Validation NDCG at 10 against seconds of training"}}
curve = pd.DataFrame(best.history)
fig, ax = plt.subplots()
ax.plot(curve["seconds"], curve["ndcg"], marker="o")
ax.axvline(curve["seconds"][best.best_epoch - 1], ls="--", color="C1", label="weights kept")
ax.set(xlabel="training time (s)", ylabel="NDCG@10 on validation")
ax.legend()
run.show(fig, "ndcg-over-time")

# %% [markdown]
# Most of the gain comes early; the dashed line marks the epoch whose weights we keep.
#
# ### Padding no longer matters
#
# The three movies of before, with zeros before them, after them, or none:

# %%
plain = model.score(three)
for name, margins in {"before": (4, 0), "after": (0, 4)}.items():
    change = np.abs(model.score(np.pad(three, ((0, 0), margins))) - plain).max()
    print(f"four zeros {name} the history change a score by at most {change:.0e}")
    assert change < 1e-3

# %% [markdown]
# What is left is rounding.
#
# ### The newest movies, too
#
# When the test movie is asked for, the validation movie is the past: the baselines of the comparison are fitted on both
# parts. Our model reads the validation movie as the last of the history, but has never learned from one. So a copy of it
# goes over the windows of both parts once more, at a tenth of the rate. How long and at which rate was settled one step
# earlier in time: trained without each user's last *training* movie, refreshed with it, measured on validation.


# %%
def refreshed(model, inputs, targets, *, rate, batch, epochs, callbacks=()):
    """A copy of `model`, trained for a few more epochs on the windows."""
    copy = type(model).from_config(model.get_config())
    copy.build(inputs.shape)
    copy.set_weights(model.get_weights())
    copy.compile(optimizer=keras.optimizers.Adam(rate))
    copy.fit(
        inputs,
        targets,
        batch_size=batch,
        epochs=epochs,
        verbose=0,
        callbacks=list(callbacks),
    )
    return copy


# %%
start = time.perf_counter()
final = refreshed(
    model,
    *training_windows(split.histories(before="test"), settings.length),
    rate=settings.rate / 10,
    batch=settings.batch,
    epochs=settings.refresh_epochs,
    callbacks=[EpochLog()],
)
model_seconds += time.perf_counter() - start
from_final = recommender_of(final, settings.length, padding="before")

# %% [markdown]
# ### Do they know different things?
#
# Recency-weighted EASE is a closed form that counts which movies go together. The GRU reads an order. If they err on
# different users, the sum of their scores is better than both. The weight of the sum is chosen on validation, with models
# that have not seen the validation part: an EASE that had would recognise its targets, and the weight would trust it too
# much.

# %%
ease = EASE(1000.0, tau=3.0).fit(split)
rows = []
for weight in (0.0, 10.0, 20.0, 40.0, 80.0):
    sum_of_both = Mixture(from_model, ease, weight)
    found = evaluate(sum_of_both, split, on="validation", num_resamples=1)
    rows.append({"weight": weight, "HR@10": found.hit_rate, "NDCG@10": found.ndcg})
rows = pd.DataFrame(rows)
ease_weight = float(rows.loc[rows["NDCG@10"].idxmax(), "weight"])
run.show_table(rows, caption="GRU4Rec plus weighted EASE, on validation")
print(f"weight {ease_weight:.0f} is best")

# %% [markdown]
# Weight 0 is the GRU alone. For the test both are taken with the validation part learned.
#
# ### Under protocol P
#
# The test part is looked at once, with the baselines of every chapter beside the model.

# %%
newest_ease = EASE(1000.0, tau=3.0).fit(split, include_validation=True)
results["GRU4Rec made right"] = evaluate(from_final, split)
results["GRU4Rec + EASE"] = evaluate(Mixture(from_final, newest_ease, ease_weight), split)
for name, baseline in standard_baselines(split).items():
    results[name] = run.test(name, baseline, split, recipe="baseline")
comparison = compare(results)
run.show_table(comparison)

# %%
for name in ["popularity", "EASE", "item kNN, recency", "EASE, recency"]:
    print(comparison.better("GRU4Rec made right", name))
print(comparison.better("GRU4Rec made right", "GRU4Rec as documented, no leak"))
print(comparison.better("GRU4Rec + EASE", "EASE, recency"))

# %% mystnb={"image": {"alt": "NDCG at 10 of every model and baseline, with 95 percent intervals"}}
shown = sorted(results.items(), key=lambda pair: pair[1].ndcg)
fig, ax = plt.subplots(figsize=(7.0, 4.2))
for place, (name, result) in enumerate(shown):
    ndcg = result.metrics["ndcg"]
    color = "C2" if "documented" in name else "C0"
    if name in ("GRU4Rec made right", "GRU4Rec + EASE"):
        color = "C1"
    ax.plot([ndcg.low, ndcg.high], [place, place], color=color, lw=3, alpha=0.5)
    ax.plot(ndcg.value, place, marker="o", color=color)
ax.set(yticks=range(len(shown)), yticklabels=[name for name, _ in shown])
ax.set(xlabel="NDCG@10 on the test interactions, with 95 % interval", xlim=(0, None))
run.show(fig, "comparison")

# %% [markdown]
# Read the intervals before the order: where two lines overlap a lot, the paired sentences above decide. What the order
# in time is worth shows in the gap between plain EASE and everything that looks at the latest movies first.

# %%
with_leak, no_leak = "GRU4Rec as documented (leak)", "GRU4Rec as documented, no leak"
trained = [
    ("GRU4Rec as documented", "documented", with_leak, documented_seconds),
    (no_leak, "step", no_leak, without_leak_seconds),
    ("GRU4Rec", "made right", "GRU4Rec made right", model_seconds),
    ("GRU4Rec + EASE, recency", "made right", "GRU4Rec + EASE", model_seconds),
]
for name, recipe, result, seconds in trained:
    run.record(
        model=name,
        recipe=recipe,
        protocol="leave-one-out",
        metrics=results[result],
        seconds=seconds,
    )

# %% [markdown]
# ### Ten movies, again
#
# The same user as before, the history up to the movie to be guessed, and ten movies from the model made right: none of
# them seen, none of them padding.

# %%
test_movie = int(split.test.set_index("user_id")["movie_id"].loc[int(reader.user_ids[0])])
print("watched last:")
for movie in watched[-10:]:
    print(f"    {data.titles[movie]}")
print("recommended:")
for movie in recommend(from_final, reader)[0]:
    print(f"    {data.titles[movie]}{'  <- watched next' if movie == test_movie else ''}")
print(f"watched next: {data.titles[test_movie]}")

# %% [markdown]
# ### One file
#
# The model saves as one file, and what comes back recommends the same.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "gru4rec.keras"
    final.save(path)
    loaded = keras.saving.load_model(path)
same = recommend(recommender_of(loaded, settings.length, "before"), queries)
assert (same == recommend(from_final, queries)).all()
print(f"{len(same):,} users, the same ten movies each")

# %% [markdown]
# ## Exercises
#
# :::{exercise} ★ A better kind of chance
# :label: gru4rec-ex1
# A model that knows nothing at all scores $\ln N$ with a softmax over $N$ movies. A model that knows popularity and
# nothing of the user scores the entropy of popularity, $-\sum_i p(i) \ln p(i)$. Compute both for the training
# targets. How much of the way from one to the other does popularity alone go?
# :::

# %% [markdown]
# :::{solution-start} gru4rec-ex1
# :class: dropdown
# :::

# %%
popularity = np.bincount(targets[real], minlength=data.num_movies + 1)[1:] / real.sum()
entropy = -np.sum(popularity[popularity > 0] * np.log(popularity[popularity > 0]))
print(f"knowing nothing {math.log(data.num_movies):.2f} nats, knowing popularity {entropy:.2f}")
print(f"as if there were {math.exp(entropy):,.0f} equally popular movies")

# %% [markdown]
# :::{solution-end}
# :::

# %% [markdown]
# :::{exercise} ★★ How far back does it look?
# :label: gru4rec-ex2
# Ask the model with the latest 1, 3, 10 and all movies of the window, on validation. How much does the history beyond
# the last few movies help?
# :::

# %% [markdown]
# :::{solution-start} gru4rec-ex2
# :class: dropdown
# :::

# %%
rows = []
for length in sorted({1, 3, min(10, settings.length), settings.length}):
    found = evaluate(recommender_of(model, length, "before"), split, on="validation")
    rows.append({"movies read": length, "HR@10": found.hit_rate, "NDCG@10": found.ndcg})
run.show_table(pd.DataFrame(rows))

# %% [markdown]
# :::{solution-end}
# :::

# %% [markdown]
# :::{exercise} ★★★ The order, or the set?
# :label: gru4rec-ex3
# Write a recommender that shuffles each window before the model reads it, and one that shuffles all but the latest movie.
# Measure both on validation. How much of the model's NDCG@10 hangs on the order, and how much on the latest movie alone?
# :::

# %% [markdown]
# :::{solution-start} gru4rec-ex3
# :class: dropdown
# :::


# %%
def shuffled(model, length, keep, seed):
    """Ask `model` with windows whose movies, but for the latest `keep`, are in random order."""

    def recommender(queries):
        rng = np.random.default_rng(seed)
        windows = queries.last(length)
        for row in windows:
            older = np.flatnonzero(row)[: np.count_nonzero(row) - keep]
            row[older] = rng.permutation(row[older])
        return model.score(windows)

    return recommender


rows = []
for name, recommender in {
    "as it was": from_model,
    "shuffled but for the latest": shuffled(model, settings.length, 1, run.seed),
    "all shuffled": shuffled(model, settings.length, 0, run.seed),
}.items():
    found = evaluate(recommender, split, on="validation", num_resamples=1)
    rows.append({"order": name, "HR@10": found.hit_rate, "NDCG@10": found.ndcg})
run.show_table(pd.DataFrame(rows))

# %% [markdown]
# The set of movies stays the same in all three rows; what is lost from row to row is what the order was worth.
#
# :::{solution-end}
# :::

# %%
run.save()

# %% [markdown]
# ## Summary
#
# - An in-batch loss is a loss against $\ln B$: compare it with its own chance level and with nothing else.
# - Split by time before you make windows; count the test targets among the training labels, the count must be zero.
# - Mask the padding, and prove it: the same history must give the same scores however it is padded.
# - Sampled negatives bend the scores by popularity; with a catalogue of this size a softmax over all of it is affordable.
# - A recurrent network can learn from every position at once, and sequences beat popularity and plain EASE; whether they
#   beat a closed form that weighs recent movies more is for the intervals to say.
#
# Next: [SASRec](sasrec.ipynb) reads the same windows with attention.
#
# ## References
#
# The recipe is that of the Keras Recommenders series {cite}`sharma2025keras`, the model that of Hidasi et al.
# {cite}`hidasi2016`, the correction of sampled softmax that of Yi et al. {cite}`yi2019`, EASE that of Steck
# {cite}`steck2019`. The full list is under [references](../book/references.md).
