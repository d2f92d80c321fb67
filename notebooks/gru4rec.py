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
# - train a recurrent network to name the next movie;
# - read an in-batch softmax loss, and know what chance is;
# - find a leak between training and test, count it, and have it refused;
# - train on every position of every history with a softmax over the catalogue;
# - compare the result, with intervals, to baselines that need no training.
#
# The documented half re-implements, in its own code, the Keras Recommenders example
# [Sequential retrieval (GRU4Rec)](https://keras.io/keras_rs/examples/sequential_retrieval/)
# {cite}`sharma2025keras`; the idea is that of Hidasi et al. {cite}`hidasi2016`, the recurrent unit
# that of Cho et al. {cite}`cho2014`.
#
# ![A GRU reads one movie a step.](../book/_static/model-gru4rec.svg)

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

import keras
import numpy as np
import pandas as pd
from keras import ops

from rectutor import PADDING_ID, chapter
from rectutor.baselines import EASE, Mixture
from rectutor.evaluation import Trained, compare, evaluate, queries_for
from rectutor.sequences import histories, sliding_windows, training_windows
from rectutor.splits import leave_one_out
from rectutor.training import EpochLog

run = chapter.start("gru4rec")

# %% [markdown]
# `quick` is for a laptop's processor, `full` is MovieLens 1M with a model of the literature's size, and
# `smoke` only proves that the chapter runs.

# %%
SETTINGS = dict(
    #     quick, full, smoke
    data=("100k", "1m", "synthetic"),  # which MovieLens
    # as documented
    context=10,  # movies read
    documented_width=32,  # numbers a movie
    documented_epochs=(5, 5, 1),  # passes over the examples
    documented_batch=(4096, 4096, 512),  # examples a training step
    validation_batch=(2048, 2048, 256),  # the same, for validation
    documented_rate=0.05,  # length of a step
    # made right
    length=(50, 200, 10),  # positions a window
    width=64,  # of a movie's vector
    units=(128, 256, 16),  # of the GRU
    dropout=(0.3, 0.2, 0.4),  # share of numbers that a step leaves out
    ahead=5,  # how many of the next movies are targets
    rate=(0.004, 0.001, 0.005),  # length of a step
    batch=(16, 128, 64),  # windows a step
    epochs=(12, 100, 2),  # passes, at most
    patience=(4, 10, 1),  # epochs without a better validation NDCG@10
    refresh_epochs=1,  # over both parts, once the weights are chosen
)
settings = run.settings(**SETTINGS)

# %%
enough = {"min_users": 20, "min_movies": 20, "min_likes": 5, "dense": True}
needs = {"needs": ("timestamps",), **enough}
data = run.load_data(settings.data, on_five_stars=True, **needs)
settings.length = run.length(settings.length)
split = leave_one_out(data)
print(split)

# %% [markdown]
# `split` is the book's one way to compare ([evaluation](../book/evaluation.md)): a user's last
# interaction is the test, the one before is for choosing, the rest is for training. The documented
# recipe splits otherwise.
#
# ## As documented
#
# ### The windows
#
# The recipe keeps ratings of two stars and more, sorts each user's movies by time, and makes one
# training row a position: the up to ten movies before it, and the movie itself as the label. Short
# rows are filled with zeros at the end; users with fewer than three movies are left out. (A table
# without ratings stays whole.)


# %%
def liked_rows(ratings, has_ratings=True):
    """The rows that the documented recipe keeps."""
    return ratings[ratings["rating"] >= 2] if has_ratings else ratings


liked = liked_rows(data.ratings, data.has_ratings)
contexts, labels, owners = sliding_windows(
    histories(liked, num_users=data.num_users),
    settings.context,
    return_users=True,
)
print(f"{len(liked):,} of {len(data.ratings):,} interactions stay")
print(f"contexts {contexts.shape}, labels {labels.shape}, such as")
for row in (0, 1, settings.context):
    print("   ", contexts[row], "->", labels[row])

# %% [markdown]
# (The documentation makes these rows one at a time, in Python: correction C17, [on the page of the data](../book/data.md).)
# Then all windows are shuffled; the first nine tenths train, the rest validates.

# %%
order = np.random.default_rng(run.seed).permutation(len(labels))
train_rows, held_out = np.split(order, [int(0.9 * len(order))])
print(f"{len(train_rows):,} windows train, {len(held_out):,} validate")

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
# of the others. (`log_q` is for correction C11; the documented model has none.)


# %%
@keras.saving.register_keras_serializable("rectutor")
class InBatchGRU4Rec(keras.Model):
    """GRU4Rec as the Keras Recommenders example sets it up.

    Args:
        num_movies: highest movie id.
        width: size of the vectors and of the GRU.
        log_q: None, or each id's log share of the labels, `num_movies + 1`:
            it is taken off the scores in training, and other rows of the
            same movie are no negatives.
    """

    def __init__(self, num_movies, width=32, log_q=None, **kwargs):
        super().__init__(**kwargs)
        self.config = {"num_movies": num_movies, "width": width}
        self.config["log_q"] = None if log_q is None else list(log_q)
        self.history_movies = keras.layers.Embedding(num_movies + 1, width)
        self.gru = keras.layers.GRU(width)
        self.movies = keras.layers.Embedding(num_movies + 1, width)

    def build(self, input_shape):
        self.history_movies.build(input_shape)
        self.gru.build((*input_shape, self.config["width"]))
        self.movies.build(input_shape)
        self.built = True

    def call(self, windows):
        return self.gru(self.history_movies(windows))  # (B, L) -> (B, d)

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        candidates = self.movies(y)  # (B, d)
        scores = ops.matmul(y_pred, ops.transpose(candidates))  # (B, B)
        own = ops.sum(y_pred * candidates, axis=-1)  # (B,), its diagonal
        if self.config["log_q"] is None:
            return ops.mean(ops.logsumexp(scores, axis=1) - own)
        table = ops.convert_to_tensor(self.config["log_q"], "float32")
        log_q = ops.take(table, y)
        scores, own = scores - log_q, own - log_q
        same = ops.equal(ops.expand_dims(y, 1), ops.expand_dims(y, 0))
        others = ops.logsumexp(ops.where(same, -1e9, scores), axis=1)
        return ops.mean(ops.logaddexp(others, own) - own)

    def score(self, windows):
        """Affinities of `(B, L)` windows, `(B, num_movies + 1)`."""
        queries = self.predict(windows, batch_size=1024, verbose=0)
        return queries @ ops.convert_to_numpy(self.movies.embeddings).T

    def get_config(self):
        return {**super().get_config(), **self.config}


# %%
def recommender_of(model, length, padding):
    """Answer queries from the latest `length` movies of each."""

    def recommender(queries):
        return model.score(queries.last(length, padding))

    return recommender


# %% [markdown]
# ### Training
#
# `AdamW` with the documented rate, and larger batches for training than for validation.
#
# (gru4rec-c24)=
# (gru4rec-c31)=
# :::{admonition} Corrections C24 and C31: batches that never change, and seeds
# C24: the example forms its batches before it caches them, so every epoch meets the same batches, and each window
# the same negatives. `shuffle=True` mixes the windows in every epoch. C31: the example seeds nothing, its shuffle neither;
# here one seed rules all, and the test part chooses nothing.
# :::


# %%
def train_as_documented(num_movies, contexts, labels, *, width, rate, seed, log_q=None, **fit):
    """The documented training.

    Args:
        num_movies: highest movie id.
        contexts: `(n, L)` windows, in the order of training.
        labels: `(n,)` the movie after each.
        width, rate, seed, log_q: of the model and its optimizer.
        fit: for `fit`; `shuffle=True` draws the batches anew.

    Returns:
        The model, and its losses by epoch.
    """
    keras.utils.set_random_seed(seed)
    model = InBatchGRU4Rec(num_movies, width, log_q)
    model.compile(optimizer=keras.optimizers.AdamW(rate))
    options = {"shuffle": False, "verbose": 0, **fit}
    return model, model.fit(contexts, labels, **options).history


# %%
width, rate = settings.documented_width, settings.documented_rate
recipe = {"width": width, "rate": rate, "seed": run.seed}
recipe |= {"batch_size": settings.documented_batch}
recipe |= {"epochs": settings.documented_epochs}
recipe |= {"callbacks": [EpochLog()]}
validation = contexts[held_out], labels[held_out]
documented, losses = train_as_documented(
    data.num_movies,
    *(each[train_rows] for each in (contexts, labels)),
    **recipe,
    validation_data=validation,
    validation_batch_size=settings.validation_batch,
)
run.fact("documented_loss", losses["loss"][-1])
run.fact("documented_val_loss", losses["val_loss"][-1])

# %% [markdown]
# On 1M the documentation ends at a loss of 6.5049 and a validation loss of 5.9625
# {cite}`sharma2025keras`, the lower of the two. **Guess first:** what would pure chance score?
#
# (gru4rec-c10)=
# :::{admonition} Correction C10: the validation loss is lower because its batches are smaller
# A model that knows nothing gives every candidate of a batch the same score, and its loss is
# $\ln B$. With half the batch the task is easier and chance is lower by $\ln 2$. Compare only losses of one batch
# size, or each with its own chance. (The next cells print the chance levels, and measure one model with several batch sizes.)
# :::


# %%
def chance(rows, batch):
    """The in-batch loss of a model that knows nothing, over the rows."""
    full, rest = divmod(rows, batch)
    known = full * batch * math.log(batch) + rest * math.log(max(rest, 1))
    return known / rows


# %% tags=["nbval-check-output"]
for batch in (2048, 4096):
    print(f"batch {batch}: chance is {chance(batch, batch):.3f}")

# %% mystnb={"code_prompt_hide": "Hide the code: the loss by size of the batch", "code_prompt_show": "Show the code: the loss by size of the batch"} tags=["hide-input"]
smaller, larger = settings.validation_batch, settings.documented_batch
by_size = pd.DataFrame({"batch": [smaller // 4, smaller, larger]})
for at, size in by_size["batch"].items():
    loss = documented.evaluate(*validation, batch_size=size, verbose=0)
    by_size.loc[at, ["loss", "chance"]] = loss, chance(len(held_out), size)
by_size["below chance"] = by_size["chance"] - by_size["loss"]
run.show_table(by_size, "The same weights and rows, batches of different size")

# %% [markdown]
# The loss moves with the batch; the last column is what can be compared.
#
# (gru4rec-c29)=
# :::{admonition} Correction C29: the last epoch is kept, whether or not it is the best
# The documentation's validation loss is lowest, 5.9451, before the last epoch, and the weights of the last (5.9625) are
# used {cite}`sharma2025keras`. The fix is to keep the weights of the best epoch. (The cell prints the best epoch of this
# run, and what the study found for a model without the leak of C8.)
# :::

# %% mystnb={"code_prompt_hide": "Hide the code: the best epoch", "code_prompt_show": "Show the code: the best epoch"} tags=["hide-input"]
best_loss = int(np.argmin(losses["val_loss"])) + 1
print(f"lowest val_loss after epoch {best_loss} of {len(losses['val_loss'])}")
run.effect("C29")

# %% [markdown]
# ### Ten movies
#
# The documented ending: the ten movies with the highest scores for one user, here of a middling history.

# %% mystnb={"code_prompt_hide": "Hide the code: ten movies for one user", "code_prompt_show": "Show the code: ten movies for one user"} tags=["hide-input"]
queries = queries_for(split)
chosen = np.argsort(queries.lengths, kind="stable")[len(queries) // 2]
reader = queries_for(split, user_ids=[int(queries.user_ids[chosen])])
watched = reader.history(0)
answer = recommender_of(documented, settings.context, padding="after")
print("watched last:", *data.titles[watched[-settings.context :]], sep="\n    ")
print("recommended:")
for movie in np.argsort(-answer(reader)[0], kind="stable")[:10]:
    note = "  <- seen" if movie in watched else ""
    note = "  <- not a movie" if movie == PADDING_ID else note
    print(f"    {data.titles[movie]}{note}")

# %% [markdown]
# (gru4rec-c6)=
# (gru4rec-c23)=
# :::{admonition} Correction C6 (and C23): lists with seen movies, padding, and movies that nobody rated
# The scores cover the whole table. Nothing takes out the movies of the history, which the example
# acknowledges, and nothing takes out id 0, which is no movie. C23: on 1M the table also has ids that no movie has. Under
# [protocol P](../book/glossary.md) the first two are excluded, and ids have no gaps. (The next cell counts over all users, and the
# movies that the filter of two stars and more leaves without a window.)
# :::

# %% mystnb={"code_prompt_hide": "Hide the code: seen movies and padding, counted", "code_prompt_show": "Show the code: seen movies and padding, counted"} tags=["hide-input"]
best = np.argsort(-answer(queries), axis=1, kind="stable")[:, :10]
seen = [np.isin(ids, queries.history(b)).sum() for b, ids in enumerate(best)]
seen, padded = np.mean(seen), np.mean((best == PADDING_ID).any(axis=1))
unrated = data.num_movies - liked["movie_id"].nunique()
run.fact("c6_seen_of_ten", seen)
run.fact("c6_lists_with_padding", padded)
print(f"of ten recommendations {seen:.1f} were seen, on average")
print(f"padding is among the ten for {padded:.1%} of the users")
print(f"{unrated:,} of {data.num_movies:,} movies are in no window")

# %% [markdown]
# From here on the exclusion is always on.
#
# ## What is wrong with it
#
# ### The leak
#
# (gru4rec-c8)=
# :::{admonition} Correction C8: the model has seen the answers
# All windows are shuffled before the split. A user's later movies train the model that is asked about the
# earlier ones, and many of the movies that protocol P holds out as test are the label of a training window.
# The fix is to split by time *first* and to make windows of the training part only. (The next cells count the
# leaked targets, have them refused, train once more without them, and compare.)
# :::
#
# `Trained` says what a model has learned from. Here that is the labels of the training windows.

# %%
learned = {"user_id": owners[train_rows], "movie_id": labels[train_rows]}
with_leak = "GRU4Rec as documented (leak)"
from_documented = Trained(answer, pd.DataFrame(learned), with_leak)
leaked = len(from_documented.leaked(split, "test"))
run.fact("c8_leaked_test_targets", leaked / len(split.test))
print(f"{leaked:,} of {len(split.test):,} test targets were labels")
try:
    evaluate(from_documented, split)
except ValueError as error:
    print(f"refused: {error}")

# %% [markdown]
# The same recipe again, on windows of the training part alone. Then both are measured, the first with `allow_leak=True`,
# because we want to see what a [leak](../book/glossary.md) does. **Guess first:** how much of the hit rate is left?
#
# :::{dropdown} Answer
# Less than popularity has, as the table under protocol P shows.
# :::

# %%
fair_rows = liked_rows(split.train, data.has_ratings)
fair_rows = histories(fair_rows, num_users=data.num_users)
fair_contexts, fair_labels = sliding_windows(fair_rows, settings.context)
order = np.random.default_rng(run.seed).permutation(len(fair_labels))
fair = data.num_movies, fair_contexts[order], fair_labels[order]
without_leak, _ = train_as_documented(*fair, **recipe)

no_leak = "GRU4Rec as documented, no leak"
from_fair = recommender_of(without_leak, settings.context, "after")
from_fair = Trained(from_fair, split.train)
results = {
    with_leak: run.evaluate(from_documented, split, allow_leak=True),
    no_leak: run.test(no_leak, from_fair, split),
}
row = {"model": "GRU4Rec as documented", "metrics": results[with_leak]}
run.record(**row, recipe="documented", protocol="leave-one-out")

# %% mystnb={"code_prompt_hide": "Hide the code: the comparison", "code_prompt_show": "Show the code: the comparison"} tags=["hide-input"]
run.fact("c8_hit_rate_with_leak", results[with_leak].hit_rate)
run.fact("c8_hit_rate_without_leak", results[no_leak].hit_rate)
run.show_table(compare(results))
print(compare(results).better(with_leak, no_leak, metric="hit_rate"))
run.effect("C8", "C24")

# %% [markdown]
# The sentence is about this run, the study's lines about many.
#
# ### The padding
#
# (gru4rec-c9)=
# :::{admonition} Correction C9: the GRU reads the padding
# Short windows end in zeros, and the embedding has no mask. The GRU takes each zero for one more movie, and the
# query is its state after the *last* of them: the answer to one history depends on how many zeros follow it. The fix
# is a mask, and padding before the movies. (The next cell asks with the same three movies and more and more zeros, and
# counts the queries of protocol P that have any.)
# :::

# %% mystnb={"code_prompt_hide": "Hide the code: the same three movies and more zeros", "code_prompt_show": "Show the code: the same three movies and more zeros"} tags=["hide-input"]
three = queries.last(3)
three = three[(three != PADDING_ID).all(axis=1)]


def ten_after(zeros):
    """The ten best ids after three movies and some zeros."""
    scores = without_leak.score(np.pad(three, ((0, 0), (0, zeros))))
    return np.argsort(-scores[:, 1:], axis=1)[:, :10]


for zeros in (1, 3, settings.context - 3):
    pairs = zip(ten_after(0), ten_after(zeros), strict=True)
    kept = np.mean([len(np.intersect1d(a, b)) for a, b in pairs])
    print(f"{zeros} zeros after the history: {kept:.1f} of ten movies stay")
run.fact("c9_of_ten_kept_after_padding", kept)
short = int((queries.lengths < settings.context).sum())
print(f"{short} of {len(queries):,} queries under P are padded")
run.fact("c9_padded_queries", short)

# %% [markdown]
# Where the last line says 0, C9 changes no figure under P.
#
# ### The other windows' labels
#
# (gru4rec-c11)=
# :::{admonition} Correction C11: a movie is counted as a negative of itself, and popular movies pay
# The negatives of a window are the labels of the other windows. When two windows of a batch have the same
# label, each is told that its own next movie is wrong: an *accidental hit*. And a movie is a negative as often
# as it is a label, so popular movies are pushed down. The fix is to leave accidental hits out and to take $\log p(i)$
# off the scores in training, where $p(i)$ is the movie's share of the labels (log-Q correction {cite}`yi2019`). (The next
# cells count the hits in one batch, and test two remedies.)
# :::
#
# **Guess first.** Can it help to *add* $\log p(i)$ to scores that are trained already?
#
# :::{dropdown} Answer
# In the study it helps about as much as training anew. At its optimum an in-batch softmax scores
# $s_{wi} = \log p(i \mid w) - \log p(i)$ plus a constant of the window: how much likelier a movie is after this window than
# anywhere. By that measure a rare movie that has become twice as likely goes before a hit that is as likely as ever. NDCG@10
# asks what comes next, which is to rank by $p(i \mid w)$; adding $\log p(i)$ turns the ratio back into it.
# :::


# %%
def log_share(movie_ids, num_movies):
    """Each id's log share of some movies, `(num_movies + 1,)`."""
    counts = np.bincount(movie_ids, minlength=num_movies + 1)
    return np.log(np.maximum(counts, 1) / counts.sum())


one_batch = np.bincount(fair[2][: settings.documented_batch])
hits_a_row = np.sum(one_batch * (one_batch - 1)) / one_batch.sum()
run.fact("c11_accidental_hits_a_row", hits_a_row)
print(f"a row has {hits_a_row:.1f} accidental hits, on average")

# %%
log_q = log_share(fair_labels, data.num_movies)
in_training, _ = train_as_documented(*fair, **recipe, log_q=log_q.tolist())
remedies = {
    "as it was": from_fair,
    "log-Q added": lambda queries: from_fair(queries) + log_q,
    "corrected": recommender_of(in_training, settings.context, "after"),
}
remedies = {n: Trained(each, split.train) for n, each in remedies.items()}
remedied = {n: run.evaluate(each, split) for n, each in remedies.items()}
remedied = compare(remedied)
ndcg = remedied.to_frame()["NDCG@10"]
run.fact("c11_ndcg_without_log_q", ndcg["as it was"])
run.fact("c11_ndcg_with_log_q", ndcg["log-Q added"])
run.show_table(remedied)
run.effect("C11")

# %% [markdown]
# Between the first two rows no weight was changed; the third has the correction in its training.
#
# ## Made right
#
# ### Every position of every history
#
# A window of ten movies with one label uses each movie as input ten times to learn from it once. A GRU has a state
# after *every* movie; so we cut the training part of each history into windows without overlap, from its end, and
# ask for the next movie at every position. Padding goes before the movies.

# %%
before_validation = split.histories(before="validation")
inputs, targets = training_windows(before_validation, settings.length)
real = inputs != PADDING_ID
print(f"inputs {inputs.shape}, {real.mean():.0%} of the positions real")

# %% [markdown]
# :::{exercise} ★ A better kind of chance
# :label: gru4rec-ex1
# A model that knows nothing at all scores $\ln N$ with a softmax over $N$ movies. A model that knows popularity and
# nothing of the user scores the entropy of popularity, $-\sum_i p(i) \ln p(i)$. Compute both for the training
# targets. How many nats (natural logarithms) does popularity alone save?
# :::

# %% [markdown]
# :::{solution-start} gru4rec-ex1
# :class: dropdown
# :::

# %%
share = np.bincount(targets[real]) / real.sum()
entropy = -np.sum(share[share > 0] * np.log(share[share > 0]))
print(f"knowing nothing {math.log(data.num_movies):.2f} nats,", end=" ")
print(f"knowing popularity {entropy:.2f}")
print(f"as if there were {math.exp(entropy):,.0f} equally popular movies")

# %% [markdown]
# :::{solution-end}
# :::

# %% [markdown]
# ### The model
#
# One table of movie vectors $e_i$ serves the input and the output (*[weight tying](../book/glossary.md)*). The
# GRU's states are projected to vectors $h_t$ of the same width, and each position gets a probability for the whole
# catalogue, so there are no sampled negatives, no accidental hits and nothing to correct for:
#
# $$p_t(i) = \frac{\exp(h_t^\top e_i + b_i)}{\sum_j \exp(h_t^\top e_j + b_j)}.$$
#
# The target of a position is the next movie, and, with falling weight, the few after it. Movies that carry the
# same second have no true order, and a loss that insists on the very next one would learn an accident. With $w_k = \gamma^k / \sum_{k'} \gamma^{k'}$ over the $K$ next movies that the window still holds,
#
# $$L_t = -\sum_{k=0}^{K-1} w_k \log p_t(i_{t+k}).$$
#
# The weights sum to 1, so this is the cross-entropy against a soft target spread over the next $K$ movies; $K = 1$ is the
# plain softmax loss. Dropout on the movie vectors and a mask over the padding (C9) complete the model.


# %%
@keras.saving.register_keras_serializable("rectutor")
class GRU4Rec(keras.Model):
    """A GRU over movie vectors, with a softmax over the catalogue.

    Args:
        num_movies: highest movie id.
        width: size of a movie's vector, `d`.
        units: size of the GRU's state.
        dropout: rate on the vectors that enter the GRU.
        ahead: how many of the next movies are targets of a position.
        decay: weight of a target relative to the one before it.
    """

    def __init__(
        self,
        num_movies,
        width=64,
        units=128,
        dropout=0.4,
        ahead=5,
        decay=0.6,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.config = {"num_movies": num_movies, "width": width, "units": units}
        self.config |= {"dropout": dropout, "ahead": ahead, "decay": decay}
        self.movies = keras.layers.Embedding(num_movies + 1, width)
        self.dropout = keras.layers.Dropout(dropout)
        self.gru = keras.layers.GRU(units, return_sequences=True)
        self.project = keras.layers.Dense(width)
        self.bias = self.add_weight((num_movies + 1,), "zeros", name="bias")

    def build(self, input_shape):
        self.movies.build(input_shape)
        self.gru.build((*input_shape, self.config["width"]))
        self.project.build((*input_shape, self.config["units"]))
        self.built = True

    def call(self, windows, training=False):
        mask = ops.not_equal(windows, PADDING_ID)  # (B, L)
        x = self.dropout(self.movies(windows), training=training)
        # (B, L, d)
        return self.project(self.gru(x, mask=mask, training=training))

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        table, places = self.movies.embeddings, ops.arange(y.shape[1])
        # (B * L, d), which is quicker to train
        flat = ops.reshape(y_pred, (-1, y_pred.shape[-1]))
        logits = ops.matmul(flat, ops.transpose(table)) + self.bias
        total = ops.reshape(ops.logsumexp(logits, axis=-1), ops.shape(y))
        # row 0, no movie, is in the sum, but never a target: it learns
        # to be low
        # own[b, t, s]: the logit at position t of the target of position s
        # rows (B, d, L), own and weights (B, L, L)
        rows = ops.transpose(ops.take(table, y, axis=0), (0, 2, 1))
        own = ops.matmul(y_pred, rows) + ops.take(self.bias, y)[:, None, :]
        # s - t
        steps = ops.cast(places[None, :] - places[:, None], "float32")
        ahead = (steps >= 0) & (steps < self.config["ahead"])  # (L, L)
        weights = ops.power(self.config["decay"], ops.maximum(steps, 0.0))
        real = ops.cast(ops.not_equal(y, PADDING_ID), "float32")  # (B, L)
        weights = ops.where(ahead, weights, 0.0)[None] * real[:, None, :]
        weights /= ops.maximum(ops.sum(weights, -1, keepdims=True), 1e-9)
        loss = total - ops.sum(weights * own, axis=-1)  # (B, L)
        return ops.sum(loss * real) / ops.maximum(ops.sum(real), 1.0)

    def score(self, windows):
        """Logits of the next movie, `(B, num_movies + 1)`."""
        # (B, d)
        state = self.predict(windows, batch_size=256, verbose=0)[:, -1]
        table = ops.convert_to_numpy(self.movies.embeddings)
        return state @ table.T + ops.convert_to_numpy(self.bias)

    def get_config(self):
        return {**super().get_config(), **self.config}


# %% [markdown]
# ### Training
#
# After each epoch NDCG@10 on validation decides: the best weights are kept, and training stops when they have not been
# beaten for a few epochs. The learning rate falls along a cosine. Eight settings were tried so.
#
# The baselines are fitted on both parts, so a copy of the model goes over the windows of both once more, at a tenth of
# the rate.


# %%
def train(model, inputs, targets, *, rate, epochs, falls=True, **fit):
    """Fit a `GRU4Rec` to `(n, L)` windows.

    `falls`: whether the rate falls along a cosine, or stays.
    """
    if falls:
        steps = math.ceil(len(inputs) / fit["batch_size"]) * epochs
        schedules = keras.optimizers.schedules
        rate = schedules.CosineDecay(rate, steps, alpha=0.02)
    model.compile(optimizer=keras.optimizers.Adam(rate))
    model.fit(inputs, targets, epochs=epochs, verbose=0, **fit)
    return model


def refreshed(model, inputs, targets, **how):
    """A copy of `model`, trained on the windows at a rate that stays."""
    copy = type(model).from_config(model.get_config())
    copy.build(inputs.shape)
    copy.set_weights(model.get_weights())
    return train(copy, inputs, targets, falls=False, **how)


# %%
keras.utils.set_random_seed(run.seed)
shape = settings.width, settings.units, settings.dropout, settings.ahead
model = GRU4Rec(data.num_movies, *shape)
from_model = recommender_of(model, settings.length, "before")
from_model = Trained(from_model, split.train)
best = run.best_by_ndcg(from_model, split, patience=settings.patience)
how = {"rate": settings.rate, "batch_size": settings.batch}
how |= {"epochs": settings.epochs, "callbacks": [best, EpochLog(every=2)]}
train(model, inputs, targets, **how)
print(f"the weights of epoch {best.best_epoch} are kept")

# %%
both_parts = training_windows(split.histories("test"), settings.length)
how = {"rate": settings.rate / 10, "batch_size": settings.batch}
how |= {"epochs": settings.refresh_epochs, "callbacks": [EpochLog()]}
final = refreshed(model, *both_parts, **how)
known = pd.concat([split.train, split.validation])
from_final = recommender_of(final, settings.length, "before")
from_final = Trained(from_final, known)

# %% [markdown]
# ### Do they know different things?
#
# Recency-weighted EASE counts which movies go together; the GRU reads an order. Where they err on different users, the
# sum of their scores, a [mixture](../book/glossary.md), may be better than both. Its weight is chosen on validation, with models that have not seen that part.

# %%
WEIGHTS = (0.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)


def choose_weight(first, second, split, weights):
    """The weight of `second` with the best validation NDCG@10, and all."""
    tried = {}
    for weight in weights:
        both = Mixture(first, second, weight)
        found = evaluate(both, split, on="validation", num_resamples=1)
        tried[weight] = found.ndcg
    return max(tried, key=tried.get), tried


ease = EASE(1000.0, tau=3.0).fit(split)
ease_weight, tried = choose_weight(from_model, ease, split, WEIGHTS)
tried = pd.DataFrame(tried.items(), columns=["weight", "NDCG@10"])
run.show_table(tried, "GRU4Rec plus weighted EASE, on validation")
print(f"weight {ease_weight:g} is best")

# %% [markdown]
# Weight 0 is the GRU alone; a weight at an edge of the grid would say that it is too narrow. For the test both are taken with the validation part learned.
#
# ### Under protocol P
#
# The test part is looked at once, with the baselines of every chapter beside the model.

# %%
baselines = run.baselines(split)
both = Mixture(from_final, baselines["EASE, recency"], ease_weight)
ours = {"GRU4Rec made right": from_final, "GRU4Rec + EASE, recency": both}
seconds = best.history[-1]["seconds"]
for name, scores in ours.items():
    results[name] = run.test(name, scores, split, "made right", seconds)
for name, baseline in baselines.items():
    results[name] = run.test(name, baseline, split, recipe="baseline")
comparison = compare(results)
run.show_table(comparison)

# %% mystnb={"code_prompt_hide": "Hide the code: the comparison in words", "code_prompt_show": "Show the code: the comparison in words"} tags=["hide-input"]
for name in ["popularity", "EASE", "item kNN, recency", "EASE, recency", no_leak]:
    print(comparison.better("GRU4Rec made right", name))
print(comparison.better("GRU4Rec + EASE, recency", "EASE, recency"))

# %% mystnb={"code_prompt_hide": "Hide the code: the picture", "code_prompt_show": "Show the code: the picture", "image": {"alt": "NDCG at 10 of every model and baseline, with 95 percent intervals"}} tags=["hide-input"]
shown = sorted(results.items(), key=lambda pair: -pair[1].ndcg)
shown = {name: found.metrics["ndcg"] for name, found in shown}
kinds = dict.fromkeys(ours, "made right")
kinds |= dict.fromkeys((with_leak, no_leak), "as documented")
label = "NDCG@10 on test, with 95 % interval"
run.show_intervals(shown, label, "comparison", kinds, rest="baselines")

# %% [markdown]
# The study repeats the training over seeds and over orders of the movies that carry the same second. It also has a model
# that is trained and asked on histories in random order: the difference is what the order was worth.

# %% mystnb={"code_prompt_hide": "Hide the code: the study's table", "code_prompt_show": "Show the code: the study's table"} tags=["hide-input"]
run.show_study(
    {
        with_leak: "gru4rec/as documented (leak)",
        no_leak: "gru4rec/as documented, no leak",
        "GRU4Rec made right": "gru4rec/made right",
        "shuffled histories": "gru4rec/made right, shuffled histories",
        "GRU4Rec + EASE, recency": "gru4rec/made right + EASE",
        "EASE, recency": "baselines/EASE, recency",
    },
    own={name: found.ndcg for name, found in results.items()},
    caption="The study, and this run",
)
run.effect()

# %% [markdown]
# ## Exercises
#
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
    asked = Trained(recommender_of(model, length, "before"), split.train)
    found = run.evaluate(asked, split, on="validation")
    rows.append({"movies read": length, "NDCG@10": found.ndcg})
run.show_table(pd.DataFrame(rows))

# %% [markdown]
# :::{solution-end}
# :::

# %%
run.save()

# %% [markdown]
# ## Summary
#
# - An in-batch loss is a loss against $\ln B$: compare it with its own chance level and with nothing else.
# - Split by time before you make windows; say what a model was trained on, and let the evaluation refuse a leak.
# - Mask the padding: the same history must give the same scores however it is padded.
# - Sampled negatives bend the scores by popularity; with a catalogue of this size a softmax over all of it is affordable.
# - A recurrent network can learn from every position at once.
#
# Next: [SASRec](sasrec.ipynb) reads the same windows with attention.
#
# ## References
#
# The recipe is that of the Keras Recommenders series {cite}`sharma2025keras`, the model that of Hidasi et al.
# {cite}`hidasi2016`, the correction of sampled softmax that of Yi et al. {cite}`yi2019`, EASE that of Steck
# {cite}`steck2019`. The full list is under [references](../book/references.md).
