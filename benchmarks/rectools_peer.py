"""RecTools' SASRec with its documented settings, on the sequences of `benchmarks.million`.

usage: sh benchmarks/peers.sh million [--hours 6]
       sh benchmarks/peers.sh million --test

It runs in an environment of its own and, like ours, over as many sessions as it takes: each epoch
leaves a checkpoint under `_build/rectools`, validation chooses the epoch, and the test is asked
once. The epochs are ours to choose; all else is the default of `SASRecModel`
(https://rectools.readthedocs.io), as in its tutorial on transformers.
"""

from __future__ import annotations

import datetime
import time
import warnings
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.measure import RESULTS, ROOT, machine, store
from benchmarks.million import PATIENCE, SEED, Progress, arguments, sequences

FOLDER = ROOT / "_build" / "rectools"
#: More than a run has: RecTools reads no checkpoint of a later epoch than its model may have.
EPOCHS = 1000
VERSIONS = ("RecTools", "torch", "pytorch-lightning", "numpy", "pandas")


def held_out(rows: pd.DataFrame, last: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What lies before each user's interaction that is so many from the end, and that one."""
    left = rows.groupby("user").cumcount(ascending=False)
    return rows[left > last], rows[left == last]


def dataset_of(rows: pd.DataFrame) -> Any:
    """RecTools' data set of them; the place in the line becomes a day."""
    from rectools.dataset import Dataset

    columns = {"user": "user_id", "item": "item_id"}
    table = rows.rename(columns=columns).assign(weight=1.0)
    table["datetime"] = pd.Timestamp("2000-01-01") + pd.to_timedelta(table["timestamp"], "D")
    return Dataset.construct(table.drop(columns="timestamp"))


def asked(model: Any, history: pd.DataFrame, targets: pd.DataFrame) -> dict[str, np.ndarray]:
    """`hit_rate` and `ndcg` at 10 of every user, the catalogue ranked without what was seen."""
    users = targets["user"].to_numpy()
    said = model.recommend(users, dataset_of(history), k=10, filter_viewed=True)
    both = said.merge(targets, left_on=["user_id", "item_id"], right_on=["user", "item"])
    gains = pd.Series(0.0, index=users)
    gains[both["user"]] = 1 / np.log2(both["rank"].to_numpy() + 1)
    return {"hit_rate": (gains > 0).to_numpy(float), "ndcg": gains.to_numpy()}


def train(rows: pd.DataFrame, progress: Progress, hours: float) -> None:
    """Train epoch by epoch from the last checkpoint on, until it stalls or the time is up."""
    from pytorch_lightning import seed_everything
    from rectools.models import SASRecModel, load_model

    folder, done = progress.file.parent, len(progress.epochs)
    history, targets = held_out(rows, last=1)
    learn = dataset_of(history)
    model = load_model(folder / "last.model") if done else SASRecModel(epochs=EPOCHS)
    while not progress.is_over(hours):
        done += 1
        seed_everything(SEED + done, verbose=False)
        start = time.process_time()
        model.fit_partial(learn, min_epochs=1, max_epochs=1)
        row = {"epoch": done, "seconds": round(time.process_time() - start, 1)}
        found = asked(model, history, targets)
        row |= {name: round(float(each.mean()), 4) for name, each in found.items()}
        if done == 1 or row["ndcg"] > progress.best["ndcg"]:
            model.save(folder / "best.model")
        model.save(folder / "last.model")
        progress.add(row)
        print(row, flush=True)


def test(rows: pd.DataFrame, progress: Progress) -> Path:
    """Ask the test with the best epoch's model; the file it is stored in."""
    from rectools.models import load_model

    found = asked(load_model(progress.file.parent / "best.model"), *held_out(rows, last=0))
    row: dict[str, Any] = {"model": "RecTools, SASRec"}
    rng = np.random.default_rng(SEED)
    for name, each in found.items():
        users = rng.integers(0, len(each), (1000, len(each)))
        ends = np.percentile(each[users].mean(axis=1), [2.5, 97.5])
        row[name] = [round(float(end), 4) for end in (each.mean(), *ends)]
    print(row)
    here = machine() | {"versions": {name: metadata.version(name) for name in VERSIONS}}
    run = {"machine": here, "seed": SEED, **progress.kept, "best": progress.best, "test": [row]}
    return store(run, RESULTS / f"million-rectools-{datetime.date.today().isoformat()}.json")


def main() -> None:
    """Go on with the run, or ask the test."""
    chosen = arguments(__doc__, FOLDER)
    warnings.filterwarnings("ignore")  # Lightning's advice on workers and logging
    settings = SimpleNamespace(model="SASRecModel()", patience=PATIENCE)
    progress = Progress(chosen.folder, settings)
    if chosen.test:
        print(f"results: {test(sequences(), progress).name}")
    elif not progress.is_over(chosen.hours):
        train(sequences(), progress, chosen.hours)


if __name__ == "__main__":
    main()
