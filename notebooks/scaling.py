# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Scaling: beyond one table in memory, beyond one machine
#
# After this chapter you will be able to
#
# - say by arithmetic what ends first when users, items and interactions grow: the table, the model, or the scores;
# - prepare training windows from more interactions than memory holds, with SQL that also runs in a warehouse;
# - train one unchanged model on several devices and in several processes, its table cut over them, with the same losses;
# - start the same script on a cluster, see it end when a machine dies, and go on from a checkpoint;
# - rank a catalogue of which no device holds the whole, and say when all this is not worth it.
#
# ![A log is cut into parts of users, each becomes a file of windows; devices train one model on them, the table cut in two; each part ranks its own best.](../book/_static/model-scaling.svg)
#
# The engines exist: [DuckDB](https://duckdb.org) {cite}`raasveldt2019` prepares, `keras.distribution` places arrays on
# devices, [Orbax](https://orbax.readthedocs.io) writes [checkpoints](../book/glossary.md). The model is the [SASRec](sasrec.ipynb) of this book, which
# began with the [Keras Recommenders examples](https://keras.io/keras_rs/examples/) {cite}`sharma2025keras`.

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
# A notebook that stands alone, as in Colab, gets the chapter's own needs here. One processor pretends to be four devices: what
# happens to the arrays is the same on four GPUs, only the speed is not. The compiler leaves the programs it makes of training steps in a folder.

# %% mystnb={"code_prompt_hide": "Hide the code: what this chapter needs besides", "code_prompt_show": "Show the code: what this chapter needs besides"} tags=["hide-cell"]
import tempfile
from pathlib import Path

needs = {"duckdb": "duckdb", "orbax": "orbax-checkpoint"}
absent = [needs[n] for n in needs if importlib.util.find_spec(n) is None]
if absent:
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *absent], check=True)
os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
dumped = Path(tempfile.mkdtemp())  # compiled steps, to look at
dump = "--xla_dump_hlo_as_text --xla_dump_hlo_module_re=.*train_step.*"
dump += f" --xla_dump_to={dumped} "
os.environ["XLA_FLAGS"] = dump + os.environ.get("XLA_FLAGS", "")

# %%
import functools
import inspect
import itertools
import json
import math
import re
import socket
import time
from types import SimpleNamespace

import duckdb
import jax
import keras
import keras_rs
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jax.sharding import PartitionSpec as P
from keras import layers, ops

from rectutor import chapter, study
from rectutor.sequences import training_windows
from rectutor.splits import leave_one_out

run = chapter.start("scaling", backends=("jax",))

# %%
SETTINGS = dict(
    #     quick, full, smoke
    data=("100k", "1m", "synthetic"),  # which MovieLens
    parts=(4, 8, 3),  # of the users, in the preparation
    context=(20, 50, 6),  # movies a window
    width=(32, 64, 8),  # numbers a movie
    batch=(32, 256, 16),  # windows a step
    steps=(6, 100, 2),  # an epoch
    epochs=(4, 5, 4),
)
settings = run.settings(**SETTINGS)

# %% [markdown]
# ## The answer in one picture
#
# Guess first: a log of interactions grows tenfold, and tenfold again. Of which way to prepare it does the memory grow as well?

# %% mystnb={"code_prompt_hide": "Hide the code: the picture", "code_prompt_show": "Show the code: the picture", "image": {"alt": "Two panels over the number of interactions, from a million to a billion, for DuckDB, pandas and Polars. Left: the most memory used. Right: seconds for a million interactions"}} tags=["hide-input"]
stored = pd.read_json(study.FILE.with_name("scaling.json"))
stored["seconds a million"] = stored["seconds"] / stored["rows"] * 1e6
stored["memory, GB"] = stored["peak_gb"]
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.6))
for axis, what in zip(axes, ("memory, GB", "seconds a million"), strict=True):
    lines = stored.pivot(index="rows", columns="engine", values=what)
    lines.plot(ax=axis, style="o-", logx=True, ylabel=what, ylim=(0, None))
run.show(fig, "preparation")
print(stored["machine"].iloc[-1], stored["date"].max().date())

# %% [markdown]
# Measured by `python -m benchmarks.scaling` in the repository with made-up logs, in processes of their own, 1 GB for DuckDB. Memory that does not grow
# is a matter of cutting the work, and so is the rest of this chapter: first the log, then the model, then the scores.
#
# ## What outgrows what
#
# Four things grow, each with something else: the *log* with the interactions, the *windows* as well, the *table* of vectors with the items,
# the *scores* with the items times the users that are ranked at once. With Adam a row of the table is held three times: its values and two
# averages; a step that trains needs a gradient as well. Where does a memory end?


# %% tags=["nbval-check-output"]
def ends(gigabytes, width=64, context=50, batch=1024):
    """How much fits in so many GB, if nothing else is there."""
    row = 8 + 4 + 8 + 8  # user, movie, time, number in the log
    bytes_each = {
        "interactions, sorted in pandas": 3 * row,  # log, order, copy
        "interactions, as windows": 4 + 4,  # input and target
        "items, table and Adam": 4 * 4 * width,  # two averages, gradient
        "items, softmax over all": 4 * batch * context,  # each position
        "items, scores of 1,000 users": 4 * 1000,
        "items, served": 4 * width,
    }
    return {name: gigabytes * 1e9 / b for name, b in bytes_each.items()}


limits = pd.DataFrame({f"{gb} GB": ends(gb) for gb in (16, 64, 512)})
print(limits.map("{:,.0f}".format))

# %% [markdown]
# In training the scores of a softmax over all items end long before the table does, so a large catalogue wants sampled negatives
# ([levers](sasrec_levers.ipynb)) before it wants machines. Users cost nothing in a model that reads histories: it has no table of
# them.
#
# ## Preparation out of memory
#
# Every step of the preparation looks at one user at a time. So the log is cut once, in one pass, into parts of *users*
# small enough for memory; then each part is sorted by user and time and becomes windows, as a file of its own. Those
# files, called *[shards](../book/glossary.md)*, are also what training reads. A table in SQL has no order, so the number of the row in the log is
# a column, `event`, which decides ties in time. `age` counts back from a user's latest interaction: 0 is for test, 1 for
# validation, the rest is for training.


# %%
SPLIT_SQL = """
COPY (
    SELECT user_id, movie_id, timestamp, event,
           user_id // {users} AS part
    FROM read_parquet('{source}')
) TO '{folder}' (FORMAT parquet, PARTITION_BY (part))
"""
AGED_SQL = """
CREATE OR REPLACE TEMP TABLE aged AS
SELECT user_id, movie_id,
       lead(movie_id) OVER by_time AS target,
       count(*) OVER of_user AS num,
       num - row_number() OVER by_time AS age,
       CASE WHEN num > 2 THEN 2 ELSE 0 END AS held_out
FROM read_parquet('{part}')
WINDOW of_user AS (PARTITION BY user_id),
       by_time AS (PARTITION BY user_id ORDER BY timestamp, event)
"""
WINDOWS_SQL = """
COPY (
    SELECT user_id, (age - held_out - 1) // {length} AS back,
           list_resize([]::INTEGER[], {length} - count(*), 0) AS padding,
           padding || list(movie_id ORDER BY age DESC) AS inputs,
           padding || list(target ORDER BY age DESC) AS targets
    FROM aged WHERE age > held_out
    GROUP BY user_id, back ORDER BY user_id, back DESC
) TO '{file}' (FORMAT parquet)
"""
HELD_OUT_SQL = """
COPY (
    SELECT user_id, movie_id, age = 0 AS is_test
    FROM aged WHERE age < held_out ORDER BY user_id, age DESC
) TO '{file}' (FORMAT parquet)
"""


# %%
def prepare(source, folder, num_users, parts, length, memory):
    """Write windows and held-out movies to a new folder, part by part.

    Args:
        source: Parquet files of the log (a pattern).
        num_users, parts: highest user id; a part must fit in `memory`.
        length: positions a window.
    """
    folder = Path(folder)
    folder.mkdir(parents=True)
    engine = duckdb.connect(config={"memory_limit": memory})
    engine.execute(f"SET temp_directory = '{folder / 'spilled'}'")
    engine.execute("SET preserve_insertion_order = false")
    users = num_users // parts + 1
    split = {"users": users, "source": source, "folder": folder / "parts"}
    engine.execute(SPLIT_SQL.format(**split))
    written = {"windows": WINDOWS_SQL, "held_out": HELD_OUT_SQL}
    for part in sorted(folder.glob("parts/part=*")):
        number = int(part.name.removeprefix("part="))
        engine.execute(AGED_SQL.format(part=part / "*.parquet"))
        for name, sql in written.items():
            file = folder / f"{name}-{number:05d}.parquet"
            engine.execute(sql.format(length=length, file=file))


def read_windows(file, length):
    """One file of windows: inputs and targets, `(n, length)` each."""
    sql = "SELECT unnest(inputs) AS x, unnest(targets) AS y FROM '{}'"
    found = duckdb.connect().sql(sql.format(file)).fetchnumpy()
    return [np.asarray(found[n]).reshape(-1, length) for n in "xy"]


# %% [markdown]
# Where the log is in a warehouse already, the same SQL runs there, and windows travel in place of the log. `CASE`, `GROUP BY` and the window functions
# are standard. What is DuckDB's way of saying it: `read_parquet(...)` is the name of the table, `COPY ... TO` the warehouse's
# export, `//` is `div`, `list(x ORDER BY ...)` is `array_agg(x ORDER BY ...)`, and `num` and `padding`, which
# are used beside where they are made, go into a subquery. There, no parts are needed.
#
# Is it the same as in memory? The [protocol](../book/evaluation.md)'s own functions answer, row for row.

# %%
data = run.load_data(settings.data, needs=("timestamps",), min_users=20)
place = Path(tempfile.mkdtemp())
log = data.ratings.reset_index(names="event")
duckdb.from_df(log).write_parquet(str(place / "log.parquet"))
how = settings.parts, settings.context, "512MB"
prepare(place / "log.parquet", place / "out", data.num_users, *how)
files = sorted(map(str, place.glob("out/windows-*.parquet")))
shards = [read_windows(file, settings.context) for file in files]
inputs, targets = map(np.concatenate, zip(*shards, strict=True))

known = leave_one_out(data).histories(before="validation")
in_memory = training_windows(known, settings.context)
same = np.array_equal([inputs, targets], in_memory)
print(f"{len(inputs):,} windows in {len(files)} shards, identical: {same}")
assert same

# %% [markdown]
# The picture at the top is of these steps, in Polars too, and in pandas with the package's own functions. Of a million rows DuckDB takes about as long in each log:
# time grows as the log does, up to a billion rows. From ten million rows on memory stays near DuckDB's limit, because a part has the same size from there. DuckDB and
# Polars take about the same time, DuckDB less memory; it also has a limit that one line sets, and its SQL runs elsewhere. So
# this chapter uses it. Where pandas fits it is the fastest of the three, because it does not write the log a second time; it ends
# where its memory does (sooner than the three copies above say: it makes more), here at 14 GiB (`LIMITS` in the benchmark). Polars was not given the two largest logs.
#
# ## One model, several devices
#
# A short SASRec {cite}`kang2018`: attention that looks back, a softmax over the catalogue, one table for input and output. Nothing in it
# knows of devices.


# %%
def sasrec(rows, context, width):
    """A model: scores of the next movie at every position, `(B, L, rows)`.

    Args:
        rows: of the table; row 0 is padding.
        context: `L`, movies a window.
        width: of a movie's vector.
    """
    history = keras.Input((context,), dtype="int32")
    real = ops.not_equal(history, 0)  # (B, L)
    place = ops.cumsum(ops.cast(real, "int32"), axis=1)
    movies = layers.ReversibleEmbedding(rows, width, name="movies")
    x = movies(history) + layers.Embedding(context + 2, width)(place)
    mask = ops.expand_dims(real, 1)  # (B, 1, L)
    y = layers.LayerNormalization()(x)  # one block: less to compile
    look = layers.MultiHeadAttention(1, width, dropout=0.2)
    x = x + look(y, y, attention_mask=mask, use_causal_mask=True)
    y = layers.LayerNormalization()(x)
    y = layers.Dense(width, activation="relu")(y)
    x = x + layers.Dropout(0.2)(layers.Dense(width)(y))
    states = layers.LayerNormalization(name="states")(x)  # (B, L, d)
    return keras.Model(history, movies(states, reverse=True))


# %% [markdown]
# `keras.distribution` says where arrays lie; the compiler adds what has to travel. Two ways:
#
# - **[Data parallel](../book/glossary.md)**: each device has the whole model and a share of each batch. Once a step the gradients are summed over
#   the devices: 4 bytes a weight, whatever the batch.
# - **The table cut by rows** over some devices, the rest of the model copied. Adam's averages are cut with it. The vectors
#   that a batch looks up travel.
#
# ```text
#                 first half of   second half of
#                 the table       the table
# half the batch  device 0        device 2        gradients are summed
# the other half  device 1        device 3        down each column
#                 a row holds the whole table together
# ```
#
# Rows must be cut into equal parts, so the table gets a few at its end that are no movie; they only ever learn to be last.


# %%
def distribution(table_over):
    """How all devices share the work.

    `table_over` of them hold a part of each table; 1: all a copy; 0: one
    device does all.
    """
    if table_over == 0:
        return None
    devices = np.array(keras.distribution.list_devices())
    own = {"auto_shard_dataset": False}  # each process feeds its share
    if table_over == 1:
        devices = devices.tolist()
        return keras.distribution.DataParallel(devices=devices, **own)
    devices = devices.reshape(table_over, -1).T
    mesh = devices.shape, ["batch", "table"], devices
    mesh = keras.distribution.DeviceMesh(*mesh)
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*movies.*"] = ("table", None)  # the rows, of Adam's too
    own |= {"layout_map": layout, "batch_dim_name": "batch"}
    return keras.distribution.ModelParallel(**own)


def batches(job, epochs, part, parts):
    """The same batches in every run; a process feeds its part of each."""
    own = slice(part * job.batch // parts, (part + 1) * job.batch // parts)
    for epoch in epochs:
        rng = np.random.default_rng([job.seed, epoch])
        steps = 0
        for file in itertools.cycle(rng.permutation(job.files)):
            inputs, targets = read_windows(file, job.context)
            order = rng.permutation(len(inputs))
            for rows in np.array_split(order, -(-len(order) // job.batch)):
                rows = np.resize(rows, job.batch)  # the last is filled up
                if steps < job.steps:
                    yield inputs[rows[own]], targets[rows[own]]
                steps += 1
            if steps >= job.steps:
                break


# %%
def kept_epochs(folder):
    """Epochs of which there is a complete checkpoint."""
    return [int(p.name) for p in Path(folder).glob("*") if p.name.isdigit()]


def train(job):
    """Train; go on where a checkpoint is.

    Returns:
        The model; the loss of each epoch trained here; seconds a step.
    """
    keras.distribution.set_distribution(distribution(job.table_over))
    first = max(kept_epochs(job.checkpoints), default=-1) + 1
    keras.utils.set_random_seed(job.seed)
    model = sasrec(job.rows, job.context, job.width)
    how = {"from_logits": True, "ignore_class": 0}
    loss = keras.losses.SparseCategoricalCrossentropy(**how)
    model.compile(keras.optimizers.Adam(0.002), loss)
    if first:  # Adam's averages and the seeds of dropout come back too
        model.optimizer.build(model.trainable_variables)
        model.load_weights(job.checkpoints)
    parts = max(jax.process_count() // max(job.table_over, 1), 1)
    share = jax.process_index() % parts, parts
    begun, watch = [], keras.callbacks.LambdaCallback()
    watch.on_epoch_begin = lambda *_: begun.append(time.perf_counter())
    callbacks = [watch]
    if job.save:
        save = keras.callbacks.OrbaxCheckpoint
        callbacks.append(save(job.checkpoints, save_on_background=False))
    feed = batches(job, range(first, job.epochs), *share)
    epochs = {"initial_epoch": first, "epochs": job.epochs}
    steps = {"steps_per_epoch": job.steps, "verbose": 0, "shuffle": False}
    log = model.fit(feed, callbacks=callbacks, **epochs, **steps)
    seconds = min(np.diff(begun), default=0) / job.steps
    return model, log.history["loss"], seconds


# %%
job = SimpleNamespace(files=files, seed=run.seed, **vars(settings))
job.rows = 4 * -(-(data.num_movies + 1) // 4)
job.save, job.checkpoints = False, str(place / "checkpoints")
losses, seconds, programs = {}, {}, {}  # programs: compiled steps
ways = {"one device": 0, "data parallel": 1, "table cut in two": 2}
for name, job.table_over in ways.items():
    model, losses[name], seconds[f"{name}, here"] = train(job)
    print(f"{name:18}", *(f"{loss:.6f}" for loss in losses[name]))
    texts = dumped.glob("*train_step.cpu_after_optimizations.txt")
    programs[name] = max(texts, key=os.path.getmtime).read_text()
apart = np.ptp(list(losses.values()), axis=0).max()
print(f"largest difference of the losses {apart:.1e}")
assert apart < 1e-4

# %% [markdown]
# What lies where? And what travels in a step? Guess first, from shapes alone: the gradients of what a device holds, and, with the table cut,
# the vectors that its batch looks up. Then read the compiled programs.


# %% mystnb={"code_prompt_hide": "Hide the code: what travels, read from the compiled programs", "code_prompt_show": "Show the code: what travels, read from the compiled programs"} tags=["hide-input"]
def received(program):
    """MB that each kind of collective in a program gives a device."""
    kinds = r" = (.*) (all-[a-z]+|collective-permute)\("
    sizes = dict.fromkeys(["all-reduce", "all-gather"], 0.0)
    for shapes, kind in re.findall(kinds, program):
        for shape in re.findall(r"\[([\d,]*)\]", shapes):
            numbers = math.prod(int(n) for n in shape.split(",") if n)
            sizes[kind] = sizes.get(kind, 0) + 4e-6 * numbers
    return sizes


table = model.get_layer("movies").embeddings.value
for shard in table.addressable_shards:
    print(shard.device, "rows", *shard.index[0].indices(job.rows)[:2])
size, rest = table.size, model.count_params() - table.size
looked_up = job.batch // 2 * job.context * job.width
guess = [0, rest + size, rest + size / 2 + looked_up]
moved = pd.DataFrame({name: received(programs[name]) for name in ways})
moved = moved.T.assign(guess=np.multiply(4e-6, guess))
run.show_table(moved, "MB a step for a device")

# %% [markdown]
# More than we guessed. The table is used twice, to look up and to score, and the program sums each use's gradient by itself. And to score,
# it fetches the rows it lacks (the gather) instead of sending partial scores: the table is cut at rest, not at work. It also exchanges
# vectors between pairs of devices (the permutes). So cutting makes room for Adam's averages and for more rows, but a table that does not fit
# once on a device needs a loss that looks up the rows of sampled negatives.
#
# ## Several processes
#
# On several machines there is one process each, and all run the same script. Ours is made of the cells above, so that nothing is
# written twice; it needs no package of this book. `initialize` makes the processes one: afterwards
# `list_devices` names the devices of all. The seed is set before it, so that all draw the same weights.


# %%
def main():
    """Train what a file describes, as one of several processes."""
    job = SimpleNamespace(**json.loads(Path(sys.argv[1]).read_text()))
    keras.utils.set_random_seed(job.seed)
    join = jax.distributed.initialize  # who is silent for 10 s is dead
    join = functools.partial(join, heartbeat_timeout_seconds=10)
    jax.distributed.initialize = join
    keras.distribution.initialize()
    try:
        model, losses, seconds = train(job)
    except Exception as error:  # such as: another process is gone
        print("ended by", repr(error)[:200], flush=True)
        os._exit(1)  # a usual exit waits for the others, five minutes
    shards = model.get_layer("movies").embeddings.value.addressable_shards
    own = {shard.index[0].indices(job.rows)[:2] for shard in shards}
    found = {"losses": losses, "seconds": seconds, "rows": sorted(own)}
    print("found", json.dumps(found), flush=True)


IMPORTS = """\
import functools, itertools, json, os, sys, time
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("KERAS_BACKEND", "jax")
sys.modules["tensorflow"] = None  # Keras would import it, for nothing
import duckdb, jax, keras, numpy as np
from keras import layers, ops
"""


def write_script(file):
    """Put the cells above into a file."""
    parts = [read_windows, sasrec, distribution, batches]
    parts += [kept_epochs, train, main]
    texts = [IMPORTS, *map(inspect.getsource, parts), "main()\n"]
    file.write_text("\n\n\n".join(texts), encoding="utf-8")


# %%
def start(script, job, folder, number=2):
    """Start it on this machine; the processes, and what they print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    folder.mkdir()
    told = folder / "job.json"
    told.write_text(json.dumps(vars(job)))
    name = "KERAS_DISTRIBUTION_"
    env = os.environ | {"JAX_NUM_CPU_DEVICES": str(4 // number)}
    env |= {"XLA_FLAGS": "", f"{name}JOB_ADDRESSES": address}
    env |= {f"{name}NUM_PROCESSES": str(number)}
    env["JAX_COMPILATION_CACHE_DIR"] = str(folder.parent / "compiled")
    children, logs = [], []
    for process in range(number):
        env[f"{name}PROCESS_ID"] = str(process)
        logs.append(folder / f"process-{process}.log")
        command = [sys.executable, script, told]
        with logs[-1].open("w") as log:
            how = {"stdout": log, "stderr": subprocess.STDOUT}
            children.append(subprocess.Popen(command, env=env, **how))
    return children, logs


def finish(children, logs, limit=240):
    """Wait, `limit` seconds at most; what each process found."""
    end = time.monotonic() + limit
    try:
        for child in children:
            child.wait(max(end - time.monotonic(), 0.1))
    finally:
        for child in children:
            child.kill()
            child.wait()
    said = [log.read_text().partition("\nfound ")[2] for log in logs]
    return [json.loads(each.splitlines()[0]) for each in said if each]


# %%
script = place / "train.py"
write_script(script)
job.table_over = 1
found = finish(*start(script, job, place / "data parallel"))
print(*found, sep="\n")
seconds["data parallel, two processes"] = found[0]["seconds"]
apart = [np.subtract(e["losses"], losses["one device"]) for e in found]
print(f"losses differ from one device's by {np.abs(apart).max():.1e}")
assert np.abs(apart).max() < 1e-5

# %% [markdown]
# Each process fed half of each batch, and holds all rows of the table.
#
# ### A process dies
#
# Now the table is cut over the two, so that neither has the whole, and each is fed the whole batch. (On machines with several GPUs
# cut it over those of one machine, as long as it fits there: the links inside are faster than those between.) After every epoch
# there is a checkpoint. Orbax writes it, as Keras offers it: each process its own part. As soon as there is one, we kill the
# second process. What do you expect of the first?

# %%
job.table_over, job.save, job.epochs = 2, True, 500
children, logs = start(script, job, place / "killed")
try:
    end = time.monotonic() + 240
    while not kept_epochs(job.checkpoints) and time.monotonic() < end:
        time.sleep(0.02)
    children[1].kill()
    killed = time.monotonic()
    children[0].wait(60)
finally:
    finish(children, logs, 1)
print(f"the first ended {time.monotonic() - killed:.1f} s later,", end=" ")
print(f"with exit status {children[0].returncode}")
print(*logs[0].read_text().splitlines()[-1:])

# %% [markdown]
# (An exit status below 0 is a signal: -6 is an abort, by JAX's own watch.) No hang: the sum that waits for the dead process fails, and whoever waits for something else is ended after ten seconds of silence (`main`). But see `os._exit` in `main`: a script that only lets the error
# through would wait for the other at its end, until it is declared dead after minutes. Whoever started the job (Slurm, Kubernetes) starts it again, with the same
# command; `train` finds the checkpoint, and JAX the
# compiled program, in the folder that `start` names.

# %%
kept = max(kept_epochs(job.checkpoints))
job.epochs = settings.epochs
found = finish(*start(script, job, place / "again"))
print(f"on from epoch {kept}:", *found, sep="\n")
whole = losses["table cut in two"][kept + 1 :]  # without a stop
apart = [np.subtract(each["losses"], whole) for each in found]
print(f"differs from a run without a stop by {np.abs(apart).max():.1e}")
assert np.abs(apart).max() < 1e-5

# %% [markdown]
# ### On a cluster
#
# `train.py` and `job.json` are what a cluster needs, in a folder that all machines see, with the shards and the checkpoints. Only how a process
# learns its number and the first one's address differs. By Keras' own variables, as above, on any machines:
#
# ```sh
# export KERAS_DISTRIBUTION_JOB_ADDRESSES=FIRST_MACHINE:1234
# export KERAS_DISTRIBUTION_NUM_PROCESSES=2
# KERAS_DISTRIBUTION_PROCESS_ID=0 python train.py job.json  # the second has 1
# ```
#
# On Slurm `initialize` needs none of them: JAX reads `SLURM_JOB_ID` (the port follows from it), `SLURM_STEP_NODELIST`,
# `SLURM_NTASKS`, `SLURM_PROCID` and `SLURM_LOCALID`, and gives each process one GPU. The book's tests start two processes that way.
#
# ```sh
# srun --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --requeue \
#     python train.py job.json
# ```
#
# On Kubernetes an indexed Job numbers its pods, and a headless service names them; in the container of a Job `train` with two pods:
#
# ```sh
# export KERAS_DISTRIBUTION_JOB_ADDRESSES=train-0.train:1234
# export KERAS_DISTRIBUTION_NUM_PROCESSES=2
# export KERAS_DISTRIBUTION_PROCESS_ID=$JOB_COMPLETION_INDEX
# python train.py job.json
# ```
#
# On a pod of cloud TPUs the runtime tells all, and every worker runs the same line:
#
# ```sh
# gcloud compute tpus tpu-vm ssh NAME --worker=all \
#     --command="python train.py job.json"
# ```
#
# The last two could not be tried here. JAX's page on
# [several processes](https://docs.jax.dev/en/latest/multi_process.html) says what else they read.
#
# ## Ranking a catalogue that is cut
#
# Each device scores its own rows and keeps the best $k$; the best $k$ of all are among those. So what travels is $k$ scores and
# rows for each user and part, not the scores of the catalogue. We say so with `shard_map`, whose function sees one device's part; left to itself
# the compiler may gather all scores first. (`predict` gathers its outputs, which it cannot across processes.) The last lines are what a device gets in the compiled program.


# %%
def top_of_parts(states, table, mesh, k):
    """The best rows of each device's part, then of their union."""

    def own(states, part):
        best, at = ops.top_k(states @ ops.transpose(part), k)
        return best, at + len(part) * jax.lax.axis_index("table")

    rows = P(None, "table")
    how = {"in_specs": (P(), P("table")), "out_specs": (rows, rows)}
    best, rows = jax.shard_map(own, mesh=mesh, **how)(states, table)
    return ops.take_along_axis(rows, ops.top_k(best, k)[1], axis=1)


states = keras.Model(model.input, model.get_layer("states").output)
states = np.asarray(states(inputs[:32])[:, -1])
table = model.get_layer("movies").embeddings.value  # cut over the devices
ranked = jax.jit(top_of_parts, static_argnums=(2, 3))
compiled = ranked.lower(states, table, table.sharding.mesh, 10).compile()
_, plain = ops.top_k(ops.matmul(states, np.asarray(table).T), 10)
print("the same ten:", np.array_equal(compiled(states, table), plain))
for kind, size in received(compiled.as_text()).items():
    print(f"{kind}: {size:.4f} MB for a device")

# %% [markdown]
# For large tables Keras Recommenders has `DistributedEmbedding`, which cuts them over the SparseCores of TPUs. Elsewhere
# it works on the default device and gives the numbers of `EmbedReduce`:

# %% tags=["nbval-check-output"]
keras.distribution.set_distribution(None)
config = keras_rs.layers.TableConfig("movies", 100, 8)
feature = keras_rs.layers.FeatureConfig("history", config, (32, 6), (32, 8))
there = keras_rs.layers.DistributedEmbedding(feature)
ids = np.arange(192, dtype="int32").reshape(32, 6) % 100
vectors = there(ids)
here = keras_rs.layers.EmbedReduce(100, 8)  # both give the mean
here.build(ids.shape)
here.set_weights(there.get_weights())
print("differ by", np.abs(np.subtract(here(ids), vectors)).max())

# %% [markdown]
# ## When not to
#
# On the processor all devices share the same cores, so no way has more of them than the first. What does each cost?

# %% mystnb={"code_prompt_hide": "Hide the code: the table", "code_prompt_show": "Show the code: the table"} tags=["hide-input"]
run.show_table(pd.DataFrame({"s a step": seconds}), "On the same cores")

# %% [markdown]
# Small shares of a batch may even use the cores better than one program does; a table that is cut, and a second process, cost time.
#
# And with GPUs? A second machine halves the computing and adds a sum of gradients, in which each weight travels about twice, in 4 bytes.
# Computing costs some 6 operations for a weight and a position, with a softmax over all items. So the size of the model drops out, and what
# decides is how many windows each machine has in a step. We assume a speed that a GPU keeps up, and three links.

# %% tags=["nbval-check-output"]
speed, positions = 1e14, 50  # operations a second; a window's
links = {"10 Gbit/s": 1.25e9, "400 Gbit/s": 50e9, "inside": 450e9}
for name, bytes_a_second in links.items():
    windows = 2 * 4 / bytes_a_second * speed / (6 * positions)
    print(f"{name:10}: travels as long as {windows:,.0f} windows compute")

# %% [markdown]
# A machine pays when its share of the batch is well above that number. With sampled negatives the table's rows are computed on less and
# travel as before, unless only the rows that were touched do, and the number grows. Before a second machine, then: a larger batch, half precision,
# sampled negatives, a narrower table. It is worth it when table and Adam's averages do not fit, or when an epoch takes longer than you
# can wait *and* the batch may be large.
#
# ## Summary
#
# - Ask what ends first: scores, then the log, then the table. Users cost nothing.
# - Preparation looks at one user at a time, so parts of users make any log fit; time grows as the log, memory does not.
# - A model says nothing of devices; a distribution does, and the losses stay.
# - A script that goes on from its checkpoint, and a starter that starts it again, are what makes a long run safe.
# - Rank each part, then the union.
# - Measure before you buy the second machine.
#
# Next: the [leaderboard](leaderboard.ipynb) puts the models of all chapters side by side.
#
# ## References
#
# The model is that of Kang and McAuley {cite}`kang2018`. DuckDB is by Raasveldt and Mühleisen {cite}`raasveldt2019`. How programs are cut over devices is
# described by Xu et al. {cite}`xu2021`. The examples this book follows are Sharma and Hertschuh's {cite}`sharma2025keras`. The full list is under
# [references](../book/references.md).
