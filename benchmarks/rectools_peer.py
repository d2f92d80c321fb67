"""RecTools' SASRec with its documented settings, on the sequences of `benchmarks.million`.

usage: sh benchmarks/peers.sh million [--hours 6]
       sh benchmarks/peers.sh million --refit
       sh benchmarks/peers.sh million --test

It runs in an environment of its own and, like ours, over as many sessions as it takes: each epoch
leaves a checkpoint under `_build/rectools`, validation chooses the epoch, and a model that was
trained anew for as many is asked for the test. The epochs are ours to choose; all else is the
default of `SASRecModel` (https://rectools.readthedocs.io), as in its tutorial on transformers.
"""

from __future__ import annotations

import datetime
import time
import warnings
from collections.abc import Callable
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
Look = Callable[[Any, dict[str, float]], bool]
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


def train(history: pd.DataFrame, progress: Progress, look: Look) -> None:
    """Train from the last checkpoint on.

    Args:
        history: what is learned from.
        progress: tells what is done, and where the checkpoint is.
        look: called after each epoch with the model, the `epoch` and its `seconds`; keeps them,
            and says whether the run is over.
    """
    from pytorch_lightning import seed_everything
    from rectools.models import SASRecModel, load_model

    last, learn = progress.file.parent / "last.model", dataset_of(history)
    model = load_model(last) if progress.epochs else SASRecModel(epochs=EPOCHS)
    over = False
    while not over:
        done = len(progress.epochs) + 1
        seed_everything(SEED + done, verbose=False)
        start = time.process_time()
        model.fit_partial(learn, min_epochs=1, max_epochs=1)
        seconds = round(time.process_time() - start, 1)
        model.save(last)
        over = look(model, {"epoch": done, "seconds": seconds})
        print(progress.epochs[-1], flush=True)


def choose(rows: pd.DataFrame, progress: Progress, hours: float) -> None:
    """Train until validation stalls or the time is up, and keep the best model."""
    history, targets = held_out(rows, last=1)

    def look(model: Any, row: dict[str, float]) -> bool:
        found = asked(model, history, targets)
        progress.add(row | {name: round(float(each.mean()), 4) for name, each in found.items()})
        if progress.best["epoch"] == row["epoch"]:
            model.save(progress.file.parent / "best.model")
        return progress.is_over(hours)

    if not progress.is_over(hours):
        train(history, progress, look)


def refit(rows: pd.DataFrame, progress: Progress) -> None:
    """Train a new model on all but the test, for the epochs that validation chose."""
    again, epochs = progress.refit(), progress.best["epoch"]

    def look(model: Any, row: dict[str, float]) -> bool:
        again.add(row)
        return row["epoch"] >= epochs

    if len(again.epochs) < epochs:
        train(held_out(rows, last=0)[0], again, look)


def test(rows: pd.DataFrame, progress: Progress) -> Path:
    """Ask the test; the file it is stored in.

    The model is the one that was trained anew, or else that of the best epoch.
    """
    from rectools.models import load_model

    told = progress.ask()
    of, name = (progress.refit(), "last") if told["refit"] else (progress, "best")
    found = asked(load_model(of.file.parent / f"{name}.model"), *held_out(rows, last=0))
    row: dict[str, Any] = {"model": "RecTools, SASRec"}
    rng = np.random.default_rng(SEED)
    for metric, each in found.items():
        users = rng.integers(0, len(each), (1000, len(each)))
        ends = np.percentile(each[users].mean(axis=1), [2.5, 97.5])
        row[metric] = [round(float(end), 4) for end in (each.mean(), *ends)]
    print(row)
    here = machine() | {"versions": {name: metadata.version(name) for name in VERSIONS}}
    today = datetime.date.today().isoformat()
    run = {"date": today, "machine": here, "seed": SEED, **told, "test": [row]}
    return store(run, RESULTS / f"million-rectools-{today}.json")


def main() -> None:
    """Go on with the run, or ask the test."""
    chosen = arguments(__doc__).parse_args()
    warnings.filterwarnings("ignore")  # Lightning's advice on workers and logging
    settings = SimpleNamespace(model="SASRecModel()", patience=PATIENCE)
    progress = Progress(chosen.folder or FOLDER, settings)
    if chosen.test:
        print(f"results: {test(sequences(), progress).name}")
    elif chosen.refit:
        refit(sequences(), progress)
    else:
        choose(sequences(), progress, chosen.hours)


if __name__ == "__main__":
    main()
