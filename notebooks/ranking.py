# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Ranking: predict how many stars
#
# After this chapter you will be able to
#
# - say what the two stages of a recommender do, and what a *ranking* model is for;
# - look at a table of ratings and see what will make it hard to learn from;
# - build, train and evaluate a neural rating model in Keras, as documented, and reproduce its figure;
# - read an error in stars, beside two baselines and with an interval;
# - find out why the documented model loses to arithmetic, and build one that does not;
# - rank named movies for one user.
#
# The first half follows the
# [ranking example of the Keras Recommenders series](https://keras.io/keras_rs/examples/basic_ranking/)
# {cite}`sharma2025keras`, in our own words and code. The second half makes it right.

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
import tempfile
import time
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from keras import layers, ops

from rectutor import chapter
from rectutor.data import batches, load_movielens
from rectutor.splits import random_split
from rectutor.training import EpochLog

run = chapter.start("ranking")

# %% [markdown]
# One cell holds every setting. Each value is given three times: for a laptop, for a machine with a
# GPU, and for the tests.

# %%
settings = run.settings(
    #                 quick   full    smoke
    data=("100k", "1m", "synthetic"),
    dim=32,  # width of the embeddings
    batch_size=1_000,
    documented_epochs=(5, 5, 1),
    documented_seeds=(5, 5, 2),
    epochs=(30, 30, 1),
    decays=((0.0, 0.1, 1.0), (0.0, 0.1, 1.0), (0.0, 1.0)),
    learning_rate=0.01,
    dropout=0.5,
)

# %% [markdown]
# ## Two stages
#
# A large shop of movies cannot run its best model on every movie for every visitor. So most
# recommenders work in two stages {cite}`covington2016`:
#
# 1. **Retrieve.** A fast model picks, from the whole catalogue, some hundred movies that might do.
#    That is the next chapter, [retrieval](retrieval.ipynb).
# 2. **Rank.** A slower, more careful model looks at each of those few and sorts them. That is this one.
#
# Our ranking model answers one question: *how many stars will user $u$ give to movie $i$?* Sorted by
# the answer, the movies are ranked.
#
# ## A look at the data
#
# MovieLens is a table of ratings that visitors of a movie site gave {cite}`harper2015`. We load it
# before anything else, and stop at once if the table at hand has no ratings to learn from.

# %%
data = run.load_data(settings.data, needs=("ratings",), min_users=2, min_movies=2)
run.show_table(data.ratings[["user_id", "movie_id", "rating", "timestamp"]].head(3))

# %% [markdown]
# One row is one rating: who, what, how many stars, and when (in seconds since 1970). Ids count from 1;
# id 0 stands for padding and is no movie and no user. First, how are the stars spread?

# %% mystnb={"image": {"alt": "Bar chart: how many ratings each number of stars received."}}
stars = data.ratings["rating"].to_numpy(np.float32)
values, counts = np.unique(stars, return_counts=True)
fig, ax = plt.subplots()
ax.bar([f"{value:g}" for value in values], counts / 1_000)
ax.set(xlabel="rating (stars)", ylabel="ratings (thousands)", title="Ratings by number of stars")
run.show(fig, "stars")

# %% [markdown]
# People rate what they chose to watch, so high ratings are more frequent than low ones. A model that
# always says the average is not as bad as it sounds: we keep it as our first baseline. Next, how
# often is each movie rated?

# %% mystnb={"image": {"alt": "Line chart on logarithmic axes: ratings per movie, by rank of popularity, and ratings per user."}}
per_movie = np.sort(np.bincount(data.ratings["movie_id"], minlength=data.num_movies + 1)[1:])[::-1]
per_user = np.sort(np.bincount(data.ratings["user_id"], minlength=data.num_users + 1)[1:])[::-1]
fig, ax = plt.subplots()
for label, count in (("movies", per_movie), ("users", per_user)):
    ax.loglog(np.arange(1, len(count) + 1), count, label=label)
ax.set(xlabel="rank, most ratings first", ylabel="ratings", title="The long tail")
ax.legend()
run.show(fig, "long-tail")

# %% [markdown]
# The line for movies falls off a cliff: a few movies have hundreds of ratings, and many have a
# handful. For those the model has almost nothing to go by, and the art is in *not* learning
# their few ratings by heart. Keep this picture in mind; it explains most of this chapter.
#
# ## From stars to labels, and a fair split
#
# The documented label squeezes the stars into $[0, 1]$:
#
# $$y = \frac{r - 1}{4}, \qquad r = 1 + 4\,y.$$


# %%
def to_label(stars):
    """Map stars, 1 to 5, to labels in [0, 1]."""
    return (np.asarray(stars, np.float32) - 1) / 4


def to_stars(label):
    """Map labels or predictions in [0, 1] back to stars."""
    return 1 + 4 * np.asarray(label, np.float32)


# %% [markdown]
# A worked example, there and back:

# %% tags=["nbval-check-output"]
print("stars ", [1, 2, 3, 4, 5])
print("labels", to_label([1, 2, 3, 4, 5]).tolist())
print("back  ", to_stars(to_label([1, 2, 3, 4, 5])).tolist())

# %% [markdown]
# To know how good a model is on ratings it has not seen, we put a fifth of the table aside: the
# *test* part. Everything else may be used for learning. The seed of the split is always the same, so
# that every run of every model faces the same test.


# %%
def arrays(frame):
    """The inputs `(users, movies)`, each (n,) int32, and the labels, (n,) float32, of ratings."""
    inputs = tuple(frame[column].to_numpy(np.int32) for column in ("user_id", "movie_id"))
    return inputs, to_label(frame["rating"])


split = random_split(
    data.ratings, test_fraction=0.2, seed=42, num_users=data.num_users, num_movies=data.num_movies
)
x_train, y_train = arrays(split.train)
x_test, y_test = arrays(split.test)
print(f"{len(y_train):,} ratings to learn from, {len(y_test):,} to be tested on")

# %% [markdown]
# ## The model, as documented
