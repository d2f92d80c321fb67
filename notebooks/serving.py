# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Serving: two stages, one folder, and an answer over HTTP
#
# After this chapter you will be able to
#
# - put two retrievers and a ranker together, and measure each stage by itself and the whole;
# - train a ranker on what the retrievers really find, and without a look at the answers;
# - say what each step from a notebook to a service costs in quality;
# - pack models, index and catalogue into one folder that is verified when it is read;
# - serve it without Keras, and compare its speed with arithmetic.
#
# ![Two retrievers name candidates, what was seen goes, a ranker sorts the rest, and ten titles are the answer.](../book/_static/model-serving.svg)
#
# A service answers in four steps. *Retrieve*: each of two fast models names some hundred
# {term}`candidates <candidate>` of the whole {term}`catalogue`. *Filter*: what the user has seen goes. *Rank*: a
# slower model, which is told more, sorts the few that are left. *Answer*: the first ten, with their titles. Covington et al.
# describe YouTube's two stages {cite}`covington2016`; the
# [Keras Recommenders examples](https://keras.io/keras_rs/examples/) {cite}`sharma2025keras` have one for each stage and
# end where this chapter begins. The picture with measured times stands [near the end](serving-picture).

# %% tags=["bootstrap", "hide-cell"]
import importlib.util
import os
import subprocess
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported
if "ipykernel" in sys.modules and importlib.util.find_spec("rectutor") is None:
    package = "rectutor @ git+https://github.com/rectutor/rectutor@main"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %% [markdown]
# The service has needs of its own; a notebook that stands alone, as in Colab, gets them here.

# %% mystnb={"code_prompt_hide": "Hide the code: what this chapter needs besides", "code_prompt_show": "Show the code: what this chapter needs besides"} tags=["hide-cell"]
if importlib.util.find_spec("jax2onnx") is None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "rectutor[serve]", "jax2onnx"], check=True)

# %%
import logging
import math
import tempfile
from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import requests
from keras import layers, ops
from keras.optimizers.schedules import CosineDecay

from rectutor import PADDING_ID, artefact, chapter, display, load, results
from rectutor.baselines import EASE, Popularity
from rectutor.evaluation import Trained, compare, evaluate, queries_for
from rectutor.sequences import training_windows
from rectutor.splits import Split, leave_one_out
from rectutor.training import EpochLog

logging.disable(logging.WARNING)  # the export's remarks
run = chapter.start("serving")

# %% [markdown]
# Everything a profile changes is in this cell; a triple is for a laptop, for MovieLens 1M on a GPU, and for the tests.

# %%
SETTINGS = dict(
    #     quick, full, smoke
    data=("100k", "1m", "synthetic"),  # which MovieLens
    # the sequence model
    context=(50, 100, 10),  # movies it reads
    width=(64, 128, 16),  # of a movie's vector
    units=(128, 256, 16),  # of the GRU
    dropout=(0.4, 0.2, 0.4),  # share of numbers that a step leaves out
    rate=0.005,  # length of a step
    batch=64,  # windows a step
    epochs=(8, 30, 1),  # passes
    # EASE, as on all pages
    regularization=1000.0,  # ridge: what is added to the diagonal
    tau=3.0,  # movies until a watch weighs a third
    # the ranker
    depths=((50, 100, 200), (50, 100, 200), (20, 40)),  # candidates
    recall_at=((50, 100, 500), (50, 100, 500), (10, 20, 50)),  # lengths
    ranker_epochs=(20, 20, 2),  # passes
    # the load
    seconds=(5.0, 5.0, 0.5),  # at 200 a second; a third for other rows
)
settings = run.settings(**SETTINGS)

# %% [markdown]
# ## Two stages
#
# ### Who may learn from what
#
# A ranker learns which of the retrieved candidates was really watched next. If its retrievers were fitted on that very
# movie, they put it near the top, and the ranker learns to trust them more than they deserve. So time is cut three times:
#
# 1. the retrievers are fitted on the training part but for each user's last two movies, and the *ranker* learns from those two;
# 2. the retrievers learn the two as well, and *validation* chooses how many candidates the ranker gets;
# 3. they learn the validation movie as well, and *test* is asked, once.
#
# Every tenth user is kept out of the first two: they are the newcomers of the cold start below.

# %%
least = {"min_users": 50, "min_movies": 50, "dense": True}
data = run.load_data(settings.data, needs=("timestamps",), **least)
half = data.num_movies // 2  # in a small catalogue more is no choice
settings.depths = sorted({min(half, depth) for depth in settings.depths})
split = leave_one_out(data)


def without(split, user_ids):
    """The same split, its training part without some users."""
    kept = ~split.train["user_id"].isin(user_ids)
    return replace(split, train=split.train[kept], order=None)


newcomers = np.arange(10, data.num_users + 1, 10)
known = without(split, newcomers)
sizes = {"num_users": data.num_users, "num_movies": data.num_movies}
earlier = leave_one_out(known.train, **sizes)
print(earlier, known, split, sep="\n")

# %% [markdown]
# In the first line `validation` and `test` are what the ranker learns from.
#
# ### The first retriever reads the order
#
# A [GRU](gru4rec.ipynb) over the vectors of the latest movies ends in a state $h$; one table of vectors $e_i$ serves the input and
# the output, and the loss is a softmax over the catalogue at every position. Without a bias the score
# $s_i = h^\top e_i$ is an inner product, and that is what an index searches for. `encoder` is the part that the service needs.


# %%
@keras.saving.register_keras_serializable("rectutor")
class NextMovie(keras.Model):
    """A GRU; `encoder` maps `(B, L)` movies to the last states `(B, d)`."""

    def __init__(self, num_movies, context, width, units, dropout):
        history = keras.Input((context,), dtype="int32", name="history")
        size = num_movies + 1
        movies = layers.ReversibleEmbedding(size, width, mask_zero=True)
        x = layers.Dropout(dropout)(movies(history))  # (B, L, d)
        x = layers.GRU(units, return_sequences=True)(x)
        states = layers.Dense(width)(x)  # (B, L, d)
        scores = movies(ops.reshape(states, (-1, width)), reverse=True)
        # scores is (B * L, num_movies + 1): of rank 3 it trains slower
        super().__init__(history, ops.reshape(scores, (-1, context, size)))
        self.encoder = keras.Model(history, states[:, -1])
        self.movies = movies

    def items(self):
        """The vectors of all movies, `(num_movies + 1, d)`."""
        return ops.convert_to_numpy(self.movies.embeddings)


# %%
def next_movie(settings, num_movies):
    """A `NextMovie` of the chapter's size."""
    shape = settings.width, settings.units, settings.dropout
    return NextMovie(num_movies, settings.context, *shape)


def whole_batches(arrays, size):
    """The first rows once more: batches of one size are compiled once."""
    count = math.ceil(len(arrays[0]) / size) * size
    return [np.resize(each, (count, *each.shape[1:])) for each in arrays]


def fit(model, histories, settings, epochs, **more):
    """Train on all windows; the rate falls to a tenth and stays there."""
    pair = training_windows(histories, settings.context)
    pair = whole_batches(pair, settings.batch)
    if not model.compiled:  # a later fit goes on, with what is compiled
        steps = len(pair[0]) // settings.batch * epochs
        rate = CosineDecay(settings.rate, steps, alpha=0.1)
        how = {"from_logits": True, "ignore_class": PADDING_ID}
        loss = keras.losses.SparseCategoricalCrossentropy(**how)
        model.compile(keras.optimizers.Adam(rate), loss)
    model.fit(*pair, settings.batch, epochs, verbose=0, **more)


def recommender_of(model):
    """Score the catalogue by the states after each query's history."""
    context = model.input_shape[1]

    def recommender(queries):
        windows = queries.last(context)
        states = model.encoder.predict(windows, batch_size=1024, verbose=0)
        return states @ model.items().T  # (B, num_movies + 1)

    return recommender


# %%
keras.utils.set_random_seed(run.seed)
model = next_movie(settings, data.num_movies)
before = earlier.histories(before="validation")
fit(model, before, settings, settings.epochs, callbacks=[EpochLog(2)])
sequence = recommender_of(model)

# %% [markdown]
# So few epochs keep this page short: of 4, 8, 12 and 16, tried once on validation while the rate still fell further, each was a little better than the one before.
#
# ### The second retriever counts
#
# [EASE](../book/glossary.md) with recency {cite}`steck2019` scores by a weighted sum of the history's rows of one matrix. It knows no
# order but the age of a movie. Where its list and the GRU's differ, one of them may be right.
#
# ### The candidates
#
# The two lists are taken in turns, the GRU's best first, until there are $K$ different movies. Those that have been seen are
# put last before that. Each candidate keeps both scores.


# %%
def retrieve(first, second, queries, count):
    """The first stage: `(B, count)` movies, and both scores of each."""
    scores, places = [first(queries), second(queries)], []
    every = np.arange(scores[0].shape[1])[None]  # movies or places
    for found in scores:
        fresh = np.array(found, copy=True)  # what is not seen yet
        fresh[queries.rows, queries.items] = fresh[:, PADDING_ID] = -np.inf
        best_first = np.argsort(-fresh, axis=1, kind="stable")
        places.append(np.empty_like(best_first))
        np.put_along_axis(places[-1], best_first, every, axis=1)
    turns = np.minimum(2 * places[0], 2 * places[1] + 1)
    slots = np.full((len(turns), 2 * every.size), -1)  # one for each turn
    np.put_along_axis(slots, turns, every, axis=1)
    movies = slots[slots >= 0].reshape(turns.shape)[:, :count]
    return movies, *(np.take_along_axis(s, movies, axis=1) for s in scores)


def target_movies(split, on):
    """The one movie that each user is asked for, by the order of ids."""
    asked = split.targets(on)
    return asked.items[asked.offsets[queries_for(split, on).user_ids]]


# %% [markdown]
# :::{exercise} ★ In turns
# :label: serving-ex1
# Two retrievers name the movies 1, 2, 3 and 3, 4, 1, best first. Which four candidates do they give in turns? Have
# `retrieve` say it.
# :::

# %% [markdown]
# :::{solution-start} serving-ex1
# :class: dropdown
# :::

# %% tags=["nbval-check-output"]
toy = Split(*[pd.DataFrame({"user_id": [1], "movie_id": [5]})] * 3, 1, 5)
scores = np.array([[0, 3, 2, 1, 0, 0]]), np.array([[0, 1, 0, 3, 2, 0]])
first, second = (lambda queries, s=s: s.astype(float) for s in scores)
print(retrieve(first, second, queries_for(toy, user_ids=[1]), 4)[0])

# %% [markdown]
# :::{solution-end}
# :::

# %% [markdown]
# ### The ranker
#
# Of each candidate the ranker is told five things: how far each retriever's score lies below its best
# candidate's, the logarithm of its place by either, and of its popularity. `artefact.features` computes them, here and in the
# service: one function, so that training and serving cannot drift apart. A small network makes a score of the five, and the loss is a
# softmax over the candidates *of one user*, with the movie that was really watched as the label.
#
# A user whose movie is not among the candidates teaches nothing. Could we do without retrieval, and let the movie
# compete with *random* movies? That is easier to set up, and we train a second ranker that way.


# %%
def examples(first, second, split, counts, depths, rng=None):
    """By depth: features `(n, depth, 5)`, and the movie's place, `(n,)`."""
    made = {depth: ([], []) for depth in depths}
    for on in ("validation", "test"):
        queries, targets = queries_for(split, on), target_movies(split, on)
        found = retrieve(first, second, queries, split.num_movies)
        hits = found[0] == targets[:, None]
        order = np.broadcast_to(np.arange(hits.shape[1]), hits.shape)
        if rng is not None:  # rivals at random, after the target itself
            lots = rng.random(hits.shape)
            num_unseen = split.num_movies - queries.lengths
            lots[order >= num_unseen[:, None]] = np.inf
            lots[hits] = -1.0
            order = np.argsort(lots, axis=1)
        for depth, (told, labels) in made.items():
            cut = order[:, :depth]
            movies, *scores = (np.take_along_axis(a, cut, 1) for a in found)
            hits = movies == targets[:, None]
            has = hits.any(axis=1)
            told.append(artefact.features(*scores, counts[movies])[has])
            labels.append(hits.argmax(axis=1)[has])
    return {k: tuple(map(np.concatenate, each)) for k, each in made.items()}


# %%
def train_ranker(told, labels, epochs, seed):
    """A network from features `(B, K, 5)` to scores `(B, K)`."""
    keras.utils.set_random_seed(seed)
    scale = layers.Normalization()
    scale.adapt(told)
    given = keras.Input((None, told.shape[-1]), name="features")
    x = layers.Dense(32, activation="relu")(scale(given))
    ranker = keras.Model(given, ops.squeeze(layers.Dense(1)(x), axis=-1))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    ranker.compile(keras.optimizers.Adam(0.005), loss)
    ranker.fit(*whole_batches((told, labels), 64), 64, epochs, verbose=0)
    return ranker


def popularity_of(ratings, num_movies):
    """How often each movie occurs, `(num_movies + 1,)`."""
    return np.bincount(ratings["movie_id"], minlength=num_movies + 1)


# %%
def ease_of(settings, split, **how):
    """EASE with recency, fitted."""
    return EASE(settings.regularization, settings.tau).fit(split, **how)


ease = ease_of(settings, earlier)
counts = popularity_of(earlier.train, data.num_movies)
both, rankers = (sequence, ease), {}
rivals = {"retrieved": None, "random": np.random.default_rng(run.seed)}
for kind, rng in rivals.items():
    made = examples(*both, earlier, counts, settings.depths, rng)
    for depth, learn in made.items():
        how = settings.ranker_epochs, run.seed
        rankers[kind, depth] = train_ranker(*learn, *how)
        print(f"{len(learn[1]):,} movies among {depth} {kind} rivals")

# %% [markdown]
# ### How many candidates?
#
# More candidates hold the right movie more often, and more that are wrong. The two retrievers learn the two movies that the
# ranker learned from (one more epoch of the GRU at a tenth of its rate), and validation decides, for either ranker. Whoever has no history gets the popular movies. **Guess first:** which does
# better, the one that met retrieved rivals or the one that met random ones?


# %%
def two_stages(first, second, ranker, counts, depth):
    """Candidates, features, scores; without a ranker in turns."""

    def recommender(queries):
        movies, *scores = retrieve(first, second, queries, depth)
        ranked = np.broadcast_to(-np.arange(float(depth)), movies.shape)
        if ranker is not None:
            told = artefact.features(*scores, counts[movies])
            ranked = ops.convert_to_numpy(ranker(told))
        answer = np.full((len(queries), len(counts)), -np.inf)
        np.put_along_axis(answer, movies, ranked, axis=1)
        answer[queries.lengths == 0] = counts  # newcomers: the popular
        return answer

    return recommender


# %%
fit(model, known.histories(before="validation"), settings, epochs=1)
ease = ease_of(settings, known)
counts = popularity_of(known.train, data.num_movies)

both, tried = (sequence, ease), {}
for (kind, depth), ranker in rankers.items():
    asked = Trained(two_stages(*both, ranker, counts, depth), known.train)
    found = evaluate(asked, split, on="validation", num_resamples=1)
    tried[depth, kind] = found.ndcg
tried = pd.Series(tried).unstack().rename_axis("candidates")
run.show_table(tried.reset_index(), "NDCG@10 on validation, by rivals")
best = tried.idxmax()
print("most with so many candidates:", best.to_dict())
depth = int(best["retrieved"])
ranker = rankers["retrieved", depth]

# %% [markdown]
# ### Newcomers
#
# The newcomers were in nobody's training so far. Their next ten movies are asked for twice: of a service that knows nothing of
# them, and of one that knows their first three movies. A hit is at least one of the ten.


# %%
def first_steps(split, user_ids, num_known, num_asked=10):
    """What some users did first: so many movies known, the next asked."""
    rows = pd.concat([split.train, split.validation, split.test])
    rows = rows[rows["user_id"].isin(user_ids)].sort_index()
    rows = rows.sort_values(["user_id", "timestamp"], kind="stable")
    place = rows.groupby("user_id").cumcount()
    asked = (place >= num_known) & (place < num_known + num_asked)
    others = split.train[~split.train["user_id"].isin(user_ids)]
    sizes = split.num_users, split.num_movies
    return Split(others, rows[place < num_known], rows[asked], *sizes)


whole = two_stages(sequence, ease, ranker, counts, depth)
ways = {"popularity": Popularity().fit(known), "two stages": whole}
rows = []
for num_known in (0, 3):
    steps = first_steps(split, newcomers, num_known)
    for name, way in ways.items():
        found = evaluate(way, steps)
        row = {"known": num_known, "model": name, "HR@10": found.hit_rate}
        rows.append(row | {"NDCG@10": str(found.metrics["ndcg"])})
run.show_table(pd.DataFrame(rows), f"{len(newcomers)} newcomers")

# %% [markdown]
# With no history there is one list for all, the popular movies, and the first two rows are the same. The rows with three movies say
# whether so little is enough to be better than that. One hit among ten movies is easy, so look at NDCG@10, which asks for many hits near the top.
#
# ### Under protocol P
#
# Last, both retrievers learn all that is known before the test movie, from all users. The ranker stays as it is. The test part is
# asked once: each retriever alone, their candidates in turns, and either ranker.

# %%
fit(model, split.histories(before="test"), settings, epochs=1)
ease = ease_of(settings, split, include_validation=True)
learned = pd.concat([split.train, split.validation])
counts = popularity_of(learned, data.num_movies)

tested = {}
for name, baseline in run.baselines(split).items():
    tested[name] = run.test(name, baseline, split, recipe="baseline")
both, other = (sequence, ease), int(best["random"])
by_random = rankers["random", other], counts, other
stages = {
    "GRU": sequence,
    "candidates in turns": two_stages(*both, None, counts, depth),
    "two stages": two_stages(*both, ranker, counts, depth),
    "two stages, random rivals": two_stages(*both, *by_random),
}
for name, stage in stages.items():
    recipe = "made right" if name == "two stages" else "step"
    tested[name] = run.test(name, Trained(stage, learned), split, recipe)
comparison = compare(tested)
run.show_table(comparison)
for name in ("EASE, recency", "GRU", "two stages, random rivals"):
    print(comparison.better("two stages", name))

# %% [markdown]
# The sentences are of this run: two stages beside each single model, and what it was worth to meet the rivals that a
# service meets. The study repeats both over seeds and over orders of ties. In its table the GRU of this page, which is trained for few
# epochs, stands beside the one that its own chapter trains to its early stop, and the two stages beside the simplest way to join two
# models: a sum of scores with one weight.

# %%
run.show_study(
    {
        "GRU": "serving/GRU",
        "GRU4Rec, its chapter's": "gru4rec/made right",
        "EASE, recency": "baselines/EASE, recency",
        "GRU4Rec + EASE": "gru4rec/made right + EASE",
        "two stages": "serving/two stages",
        "two stages, random rivals": "serving/two stages, random rivals",
    },
    own={name: found.ndcg for name, found in tested.items()},
    caption="The study, and this run",
)
run.effect()

# %% [markdown]
# How much does the first stage let through? No ranker can bring back a movie that is not among the candidates.


# %%
def recall_at(counts, ordered, targets):
    """The share of targets among the first so many, for each count."""
    hits = ordered == targets[:, None]
    return {f"{k}": hits[:, :k].any(axis=1).mean() for k in counts}


queries, targets = queries_for(split), target_movies(split, "test")
ways = {"GRU": (sequence,) * 2, "EASE": (ease,) * 2, "both, in turns": both}
rows = {}
for name, pair in ways.items():
    found = retrieve(*pair, queries, max(settings.recall_at))[0]
    rows[name] = recall_at(settings.recall_at, found, targets)
run.show_table(pd.DataFrame(rows).T, "Recall of the first stage on test")

# %% [markdown]
# ## From Keras to a folder
#
# The service shall need neither Keras nor JAX. [ONNX](https://onnx.ai) is a format of computations that onnxruntime
# runs on its own. `artefact.to_onnx` has Keras write it with `model.export`, and `artefact.in_int8` makes its matrices smaller.
# From JAX a GRU comes out as a loop of some forty small operations a movie. ONNX has one operator that does the same, and
# `artefact.gru_to_onnx` puts the trained matrices into that. Which of the two is faster?
#
# ### Which index?
#
# Exact search multiplies the state with every movie. An approximate {term}`index <approximate index>` looks at some of them only:
# *HNSW* walks along a graph of neighbours {cite}`malkov2020`, *IVF* looks into the few nearest of many clusters
# {cite}`douze2024`, *SQ8* looks at all in int8.
#
# **Guess first.** With a catalogue of this size, will any be faster than exact search? And with one ten times as large?
#
# :::{dropdown} Answer
# Clusters may be, by thousandths of a millisecond, which a request hardly notices. On larger
# tables they pull away ([benchmarks](../book/benchmarks.md)).
# :::


# %%
vectors = model.items()
encoded = model.encoder.predict(queries.last(settings.context), verbose=0)
rng = np.random.default_rng(run.seed)
noise = vectors.std() * rng.normal(size=(9, *vectors.shape))
more = np.concatenate([vectors, *(vectors + noise)]).astype("float32")
lists = max(data.num_movies // 40, 1)  # clusters
kinds = {"Flat": "", "HNSW32,Flat": "efSearch=256", "SQ8": ""}
kinds[f"IVF{lists},Flat"] = f"nprobe={math.ceil(lists / 3)}"
rows, asked, each = [], encoded[:200], encoded[:200, None]
for table in (vectors, more):
    for kind, parameters in kinds.items():
        index = artefact.build_index(table, kind, parameters)
        kept = artefact.recall(index, table, asked, depth)
        ms = load.milliseconds(lambda s, i=index: i.search(s, depth), each)
        rows.append((len(table) - 1, f"{kind} {parameters}", kept, ms))
searched = pd.DataFrame(rows, columns=["movies", "index", "recall", "ms"])
run.show_table(searched, f"Search for {depth} movies; Flat is exact")
good = searched.iloc[len(kinds) + 1 :].query("recall >= 0.95")  # no Flat
kind, _, parameters = good.loc[good["ms"].idxmin(), "index"].partition(" ")
print(f"the artefact gets {kind} {parameters}")

# %% [markdown]
# The column of the times decides, among those that find at least 95 % in the larger table; the row of Flat says whether an
# index is worth its while.
#
# ### One folder
#
# `artefact.write` puts all that an answer needs side by side, with a manifest of hashes, versions, data and what the models were
# measured to do. It tries the models before it names them the current ones, and it does so in one step: whoever reads finds the old
# version or the new one. An index of other movies, or one flipped byte, is refused. Do the models in it answer as Keras does?

# %%
movies = pd.DataFrame({"count": counts[1:], "title": data.titles[1:]})
weights = model.encoder.get_weights()
parts = {
    "encoder": artefact.gru_to_onnx(*weights, context=settings.context),
    "items": vectors,
    "neighbours": ease.weights,
    "decay": settings.tau,
    "ranker": artefact.to_onnx(ranker),
    "catalogue": movies.assign(id=movies.index + 1),
    "context": settings.context,
    "candidates": depth,
    "index_kind": kind,
    "index_parameters": parameters,
    "metrics": {"NDCG@10": tested["two stages"].ndcg},
    "data": {"name": data.name, "source": data.source, "seed": run.seed},
}
place = results.folder() / "serving"
artefact.write(place, **parts)
service = artefact.Service.load(place)

histories = [queries.history(row) for row in range(len(queries))]
states = np.stack([service.encode(history) for history in histories])
apart = np.abs(states @ vectors.T - sequence(queries)).max()
print(f"scores of Keras and of onnxruntime differ by at most {apart:.1e}")
assert apart < 1e-4

# %% [markdown]
# ### What each step costs
#
# The reference is the whole in Keras, with exact search. Each row changes one thing; the last has what goes together: items
# (SQ8) and models in int8, and fewer candidates. All answer for the same users, so the differences are paired. **Guess first:** which step costs most?


# %%
def variant(search="exact", first=0, **changes):
    """An artefact with other parts: on test, and milliseconds a user."""
    with tempfile.TemporaryDirectory() as folder:
        artefact.write(folder, **parts | changes)
        service = artefact.Service.load(folder)

    said = []

    def one_user(history):
        said.append(service.scores(history, first or depth, search))

    ms = load.milliseconds(one_user, histories)  # all users of test
    asked = Trained(lambda queries: np.stack(said), learned)
    return evaluate(asked, split, num_resamples=1, batch_size=len(said)), ms


# %%
int8 = {k: artefact.in_int8(parts[k]) for k in ("encoder", "ranker")}
sq8 = {"index_kind": "SQ8", "index_parameters": ""}
few = max(depth // 2, 10)
steps = {
    "Keras, exact": (tested["two stages"], np.nan),
    "ONNX": variant(),
    "ONNX, exported loop": variant(encoder=artefact.to_onnx(model.encoder)),
    f"ONNX, index {kind}": variant("index"),
    "ONNX, items in int8": variant("index", **sq8),
    "ONNX, models in int8": variant(**int8),
    f"ONNX, first {few} candidates": variant(first=few),
    "all of it": variant("index", few, **sq8, **int8),
}
budget, rows = compare({name: step[0] for name, step in steps.items()}), {}
for name, (found, ms) in steps.items():
    lost = budget.better(name, "Keras, exact")
    rows[name] = found.ndcg, lost.value, lost.low, lost.high, ms
table = pd.DataFrame(rows, ["NDCG@10", "difference", "from", "to", "ms"]).T
run.show_table(table, "The loss budget, on test")

# %% [markdown]
# A row whose interval holds 0 costs nothing that these users could show. The last column is what a user takes: the exported loop
# computes the same as the operator, only longer. What was chosen stays as it was: the table
# reports, and the number of candidates came from validation.
#
# ## The service
#
# `python -m rectutor.serve FOLDER` answers from the folder; after `make book`, `make serve` does so with the one that this page
# has written. We start it as a process of its own, and ask.


# %%
watched = histories[0][-5:].tolist()
questions = [{"history": watched, "k": 5}, {"history": [], "k": 5}]
questions += [{"history": [0]}, {"history": watched, "k": 10_000}]
with load.started(place) as running:
    print(f"after {running.seconds:.1f} s, with {running.memory():.0f} MB")
    url = f"{running.url}/recommendations"
    answers = [requests.post(url, json=q, timeout=10) for q in questions]
print("watched:", *data.titles[watched], sep="\n    ")
for said in (answer.json() for answer in answers[:2]):
    titles = [movie["title"] for movie in said["recommendations"]]
    print(f"by {said['basis']}:", *titles, sep="\n    ")
for answer in answers[2:]:
    print(answer.status_code, answer.json()["detail"])

# %% [markdown]
# By hand, in a shell, while `make serve` runs:
#
# ```sh
# curl http://127.0.0.1:8000/recommendations -H 'content-type: application/json' \
#     -d '{"history": [50, 181, 172], "k": 5}'
# ```
#
# `http://127.0.0.1:8000/docs` is its page (it needs no internet), `GET /health` says what is served. When a chapter writes the folder anew, the service takes the
# new version over while it answers from the old.
#
# ### What must a request cost?
#
# First the arithmetic. The GRU multiplies its input and its state by three gates' matrices at each of $L$ positions; search reads
# the items once, EASE a row for each movie that still weighs something; the ranker has 32 units a candidate. A multiplication and an addition are two
# operations. We time one large product and one large copy to see what one core can do.


# %%
units, width = settings.units, settings.width
gru = 2 * settings.context * 3 * units * (width + units)
operations = gru + 2 * vectors.size + 2 * depth * 32 * 6
rows_read = int(16 * settings.tau) + 1  # older ones weigh nothing
moved = 4 * (vectors.size + rows_read * len(vectors))  # bytes
square = rng.normal(size=(512, 512)).astype("float32")
rate = 2 * 512**3 / load.milliseconds(lambda a: a @ a, [square] * 20)
copied = 2 * vectors.nbytes / load.milliseconds(np.copy, [vectors] * 20)
must = operations / rate + moved / copied  # milliseconds
print(f"{operations:,} operations, {moved / 1e6:.2f} MB: {must:.2f} ms")

# %% [markdown]
# Now the stages by themselves, and the service under load: by 1, 8 and 64 clients that each ask again when they have their answer, and
# by 200 requests a second that come whether or not the ones before are answered. The times of the last count from when a request
# was due. We aim, on two cores and for this catalogue, at a [p99](../book/glossary.md) below ten milliseconds there, with a start within two seconds and
# less than 300 MB of memory. Which will be hardest?

# %%
questions = [{"history": each.tolist(), "k": 10} for each in histories]
with load.started(place) as running:
    asked = running.url, questions, settings.seconds
    loads = pd.DataFrame(vars(found) for found in load.measure_each(*asked))
    table = loads[[*load.HEADERS]].rename(columns=load.HEADERS)
    run.show_table(table, f"Load; then {running.memory():.0f} MB")
run.fact("p99_ms_at_200_a_second", loads["p99"].iloc[-1])

# %% [markdown]
# With more clients than cores, answers a second stay and the waiting grows. The arithmetic above is a bound from below:
# fifty positions one after the other are many small products, and what each costs beside its operations is most of it.
# Pauses make the tail. Python's garbage collector now and then looks through all that is alive, while every request waits;
# so `rectutor.serve` takes what was there before the first request out of its sight (`gc.freeze`).
#
# (serving-picture)=
# ### The picture


# %%
sample = histories[:100]
steps = {
    "encode": (service.encode, sample),
    "EASE": (service.neighbour_scores, sample),
    "filter": (lambda h: service.retrieve(h, depth), sample),
    "rank": (service.rank, [service.retrieve(h, depth) for h in sample]),
    "HTTP": (service.recommend, sample),
}
ms = {name: load.milliseconds(*step) for name, step in steps.items()}
ms["filter"] -= ms["encode"] + ms["EASE"]
ms["HTTP"] = loads["p50"].iloc[0] - ms["HTTP"]

# %% mystnb={"image": {"alt": "A request from left to right: retrieved by the GRU and by EASE, filtered, ranked and answered, with measured milliseconds on the arrows"}}
places = {"history": (0, 0.5), "GRU": (1, 1), "EASE": (1, 0)}
places |= {"unseen": (2, 0.5), "ranked": (3, 0.5), "answer": (4, 0.5)}
arrows = [("history", "GRU", "encode"), ("history", "EASE", "EASE")]
arrows += [("GRU", "unseen", "filter"), ("EASE", "unseen", "filter")]
arrows += [("unseen", "ranked", "rank"), ("ranked", "answer", "HTTP")]
arrows = [(*ends, f"{name}\n{ms[name]:.2f} ms") for *ends, name in arrows]
run.show(display.flow(places, arrows), "picture")

# %% [markdown]
# The milliseconds are medians, in this process for the stages; HTTP is the rest of what one client waited. "Filter" holds the search. Where
# there is time to save is easy to see.
#
# ## Exercises
#
# :::{exercise} ★★ A perfect ranker
# :label: serving-ex2
# What HR@10 would a ranker reach on test that always puts the right movie first, and how far from it is ours? Say first what bounds it.
# :::

# %% [markdown]
# :::{solution-start} serving-ex2
# :class: dropdown
# :::

# %%
found = recall_at([depth], retrieve(*both, queries, depth)[0], targets)
print(f"{found[str(depth)]:.3f} beside {tested['two stages'].hit_rate:.3f}")

# %% [markdown]
# :::{solution-end}
# :::

# %%
run.save()

# %% [markdown]
# ## Summary
#
# - Retrieve, filter, rank, answer: the first stage bounds the second, so measure its recall.
# - A ranker learns from what retrievers find for movies that *they have not learned*; cut the time once more for it.
# - One function makes the features for training and for the service.
# - Every step to production gets a row with a paired interval; most cost less than the users can show.
# - One folder, verified when it is read and replaced in one step, is what is served.
# - Do the arithmetic of a request before you measure it, and measure an [open loop](../book/glossary.md) for the tail.
#
# Next: [scaling](scaling.ipynb), for more than one machine holds.
#
# ## References
#
# The two stages are those of Covington et al. {cite}`covington2016`, the GRU those of Hidasi et al. {cite}`hidasi2016`, EASE that of
# Steck {cite}`steck2019`. The graph index is by Malkov and Yashunin {cite}`malkov2020`, FAISS by Douze et al. {cite}`douze2024`. The
# examples this book follows are Sharma and Hertschuh's {cite}`sharma2025keras`. The full list is under
# [references](../book/references.md).
