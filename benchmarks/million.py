"""SASRec on a million ratings, to its early stop, over as many sessions as that takes.

usage: python -m benchmarks.million [--hours 6]
       python -m benchmarks.million --test       ask the test, once, and store what it says

The file `ml-1m-sequences.zip` in the folder `RECTUTOR_ARCHIVES` holds MovieLens 1M as the SASRec
paper prepared it: a line a user, the movies oldest first, those with fewer than five ratings left
out; of each line the last two movies are kept elsewhere. The last of what is there is the test, the
one before chooses the epoch.

Every epoch leaves a checkpoint under `_build/million`, so a run that was stopped goes on where it
was. It ends when validation has not risen for some epochs, or after so many hours of a processor's
time in all.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.measure import RESULTS, ROOT, machine, store
from rectutor import chapter
from rectutor.environment import write_text

ARCHIVE = "ml-1m-sequences.zip"
FOLDER = ROOT / "_build" / "million"
SEED = 42
PATIENCE = 5  # epochs without a better validation NDCG@10


def sequences() -> pd.DataFrame:
    """A row an interaction: `user`, `item`, and its place in the line as `timestamp`.

    Raises:
        SystemExit: the file is not there.
    """
    file = Path(os.environ.get("RECTUTOR_ARCHIVES", "")) / ARCHIVE
    if not file.is_file():
        raise SystemExit(f"error: there is no {file}; RECTUTOR_ARCHIVES names its folder")
    with zipfile.ZipFile(file) as archive:
        lines = archive.read("ml-1m-sequences.txt").decode().splitlines()
    users = [np.array(line.split(), np.int64) for line in lines]
    lengths = [len(each) for each in users]
    return pd.DataFrame(
        {
            "user": np.repeat(np.arange(1, len(users) + 1), lengths),
            "item": np.concatenate(users),
            "timestamp": np.concatenate([np.arange(length) for length in lengths]),
        }
    )


def leave_one_out() -> Any:
    """The book's split of it."""
    from rectutor import splits
    from rectutor.data import from_dataframe

    columns = {"user": "user", "item": "item", "timestamp": "timestamp"}
    return splits.leave_one_out(from_dataframe(sequences(), **columns, name="1m, sequences"))


def settings_of(code: Any) -> SimpleNamespace:
    """Those of the page of the levers, for MovieLens 1M."""
    return chapter.Run("sasrec_levers", "full", SEED, "", "").settings(**code.SETTINGS)


class Progress:
    """What was found epoch by epoch, in a file.

    Args:
        folder: where it is kept.
        settings: of the run; another run's are refused.

    Raises:
        SystemExit: the folder is of a run with other settings.
    """

    def __init__(self, folder: Path, settings: SimpleNamespace) -> None:
        self.file = folder / "epochs.json"
        self.kept: dict[str, Any] = {"settings": vars(settings), "epochs": []}
        if self.file.is_file():
            self.kept = json.loads(self.file.read_text(encoding="utf-8"))
            if self.kept["settings"] != json.loads(json.dumps(vars(settings))):
                raise SystemExit(f"error: {folder} is of a run with other settings; remove it")

    @property
    def epochs(self) -> list[dict[str, float]]:
        """One dict an epoch: `epoch`, `loss`, `ndcg`, `hit_rate`, `seconds` of a processor."""
        return list(self.kept["epochs"])

    def add(self, row: dict[str, float]) -> None:
        """Keep one more epoch."""
        self.kept["epochs"].append(row)
        self.write()

    def ask(self) -> None:
        """Keep after how many epochs the test is asked; a run that goes on is asked again."""
        self.kept["asked"] = [*self.kept.get("asked", []), len(self.epochs)]
        self.write()

    def write(self) -> None:
        """Write the file."""
        write_text(json.dumps(self.kept, indent=1) + "\n", self.file)

    @property
    def best(self) -> dict[str, float]:
        """The epoch with the highest NDCG@10 on validation."""
        return max(self.epochs, key=lambda row: row["ndcg"])

    def is_over(self, hours: float) -> bool:
        """Whether validation has stalled, or the time is up."""
        if not self.epochs:
            return False
        stalled = self.epochs[-1]["epoch"] - self.best["epoch"] >= PATIENCE
        return stalled or sum(row["seconds"] for row in self.epochs) >= hours * 3600


def train(split: Any, model: Any, scores: Any, progress: Progress, hours: float, code: Any) -> None:
    """Train from the last checkpoint on, until it stalls or the time is up."""
    import keras

    from rectutor.bucketing import Bucketed
    from rectutor.evaluation import Trained, evaluate

    settings, folder = SimpleNamespace(**progress.kept["settings"]), progress.file.parent
    asked = Trained(scores, split.train)

    class Look(keras.callbacks.Callback):
        """Ask validation after each epoch, and keep what it says and the best weights."""

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.start = time.process_time()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seconds = time.process_time() - self.start
            found = evaluate(asked, split, on="validation", num_resamples=1)
            row = {"epoch": epoch + 1, "loss": round(float(logs["loss"]), 4)}
            row |= {"ndcg": round(found.ndcg, 4), "hit_rate": round(found.hit_rate, 4)}
            progress.add(row | {"seconds": round(seconds, 1)})
            print(progress.epochs[-1], flush=True)
            if progress.best["epoch"] == epoch + 1:
                self.model.save_weights(folder / "best.weights.h5")
            self.model.stop_training = progress.is_over(hours)

    checkpoint, done = folder / "checkpoint.npz", len(progress.epochs)
    draw = code.with_ties(split.train, split.num_users, settings.context, SEED, shuffled=False)
    drawn = Bucketed(draw, settings.batch_size, SEED)
    if done:  # the batches of the epoch that comes now
        drawn.epoch = done - 1
        drawn.on_epoch_end()
    how = {"use_ema": True, "ema_momentum": settings.average}
    model.compile(optimizer=keras.optimizers.Adam(settings.learning_rate, **how))
    model.optimizer.build(model.trainable_variables)
    state = [*model.variables, *model.optimizer.variables]
    if done:
        with np.load(checkpoint) as kept:
            for number, variable in enumerate(state):
                variable.assign(kept[f"arr_{number}"])

    class Keep(keras.callbacks.Callback):
        """Keep everything that the next epoch begins with."""

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            half = checkpoint.with_suffix(".half.npz")
            np.savez(half, *(keras.ops.convert_to_numpy(each) for each in state))
            half.replace(checkpoint)

    # in this order: what is kept are the weights themselves, validation sees their average
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    how = {"initial_epoch": done, "epochs": 10_000, "verbose": 0, "shuffle": False}
    model.fit(drawn, **how, callbacks=[Keep(), swap, Look()])


def test(split: Any, model: Any, scores: Any, progress: Progress) -> Path:
    """Ask the test with the best weights, beside the baselines; the file it is stored in."""
    from rectutor import baselines
    from rectutor.evaluation import Trained, evaluate

    model.load_weights(progress.file.parent / "best.weights.h5")
    progress.ask()
    known = pd.concat([split.train, split.validation])
    asked = {"SASRec, levers": Trained(scores, split.train)}
    fitted = {
        "popularity": baselines.Popularity(),
        "EASE": baselines.EASE(1000.0),
        "EASE, recency": baselines.EASE(1000.0, 3.0),
    }
    for name, baseline in fitted.items():
        asked[name] = Trained(baseline.fit(split, include_validation=True), known)
    rows = []
    for name, recommender in asked.items():
        found = evaluate(recommender, split)
        row = {"model": name}
        for metric in ("hit_rate", "ndcg"):
            value = found.metrics[metric]
            row[metric] = [round(each, 4) for each in (value.value, value.low, value.high)]
        rows.append(row)
        print(row, flush=True)
    sizes = {"users": split.num_users, "movies": split.num_movies}
    sizes["interactions"] = sum(map(len, (split.train, split.validation, split.test)))
    run = {"machine": machine(), "seed": SEED, "data": sizes, **progress.kept}
    run |= {"patience": PATIENCE, "best": progress.best}
    today = datetime.date.today().isoformat()
    return store(run | {"test": rows}, RESULTS / f"million-{today}.json")


def arguments(doc: str, folder: Path) -> argparse.Namespace:
    """The command line of a run that goes on where it stopped; its folder is there afterwards.

    Args:
        doc: of the module; its first line describes the command.
        folder: where the run keeps its checkpoints, if nothing else is asked for.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--hours", type=float, default=6.0, help="of a processor's time, in all")
    parser.add_argument("--test", action="store_true", help="ask the test, once")
    parser.add_argument("--folder", type=Path, default=folder)
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    return chosen


def main() -> None:
    """Go on with the run, or ask the test."""
    chosen = arguments(__doc__, FOLDER)
    os.environ.setdefault("KERAS_BACKEND", "jax")
    from tools import book

    code = book.definitions("sasrec_levers")
    settings = settings_of(code)
    progress = Progress(chosen.folder, settings)
    split = leave_one_out()
    model = code.levers_model(split.num_movies, settings, SEED)
    model.build((None, settings.context))
    scores = code.lever_scores(model)
    if chosen.test:
        print(f"results: {test(split, model, scores, progress).name}")
    elif progress.is_over(chosen.hours):
        print(f"over: best {progress.best}; --test asks the test")
    else:
        train(split, model, scores, progress, chosen.hours, code)


if __name__ == "__main__":
    main()
