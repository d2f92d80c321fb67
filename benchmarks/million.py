"""SASRec on a million ratings, to its early stop, over as many sessions as that takes.

usage: python -m benchmarks.million [--hours 6]
       python -m benchmarks.million --refit      train anew with the movies that validation held
       python -m benchmarks.million --test       ask the test, once, and store what it says
       python -m benchmarks.million --baselines  choose those on validation, ask, and store likewise

`--chapter sasrec` does so with the first page's SASRec, `--chapter sasrec_levers` (what happens
unless it is given) with the levers' best combination.

The file `ml-1m-sequences.zip` in the folder `RECTUTOR_ARCHIVES` holds MovieLens 1M as the SASRec
paper prepared it: a line a user, the movies oldest first, those with fewer than five ratings left
out; of each line the last two movies are kept elsewhere. The last of what is there is the test, the
one before chooses the epoch.

Every epoch leaves a checkpoint under `_build/million`, so a run that was stopped goes on where it
was. It ends when validation has not risen for some epochs, or after so many hours of a processor's
time in all. Then a new model may be trained on all but the test, for as many epochs as validation
chose.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks.measure import RESULTS, ROOT, machine, store
from rectutor import chapter
from rectutor.environment import write_text

if TYPE_CHECKING:
    from rectutor.splits import Split

ARCHIVE = "ml-1m-sequences.zip"
FOLDER = ROOT / "_build" / "million"
SEED = 42
PATIENCE = 5  # epochs without a better validation NDCG@10
Look = Callable[[dict[str, float]], bool]
#: What a chapter's model is called here, and what its functions are called there.
CHAPTERS = {
    "sasrec_levers": ("SASRec, levers", "levers_model", "lever_scores", "with_ties"),
    "sasrec": ("SASRec", "made_right", "sasrec_scores", "windows_with_shuffled_ties"),
}


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


def leave_one_out() -> Split:
    """The book's split of it."""
    from rectutor import splits
    from rectutor.data import from_dataframe

    columns = {"user": "user", "item": "item", "timestamp": "timestamp"}
    return splits.leave_one_out(from_dataframe(sequences(), **columns, name="1m, sequences"))


def code_of(name: str) -> SimpleNamespace:
    """A chapter's `settings` for MovieLens 1M, its `model`, its `scores` and its `windows`."""
    from tools import book

    defined = book.definitions(name)
    called, *functions = CHAPTERS[name]
    parts = zip(("model", "scores", "windows"), functions, strict=True)
    settings = chapter.Run(name, "full", SEED, "", "").settings(**defined.SETTINGS)
    made = {part: getattr(defined, function) for part, function in parts}
    return SimpleNamespace(chapter=name, called=called, settings=settings, **made)


class Progress:
    """What was found epoch by epoch, in a file.

    Args:
        folder: where it is kept; made if it is not there.
        settings: of the run; another run's are refused.

    Raises:
        SystemExit: the folder is of a run with other settings.
    """

    def __init__(self, folder: Path, settings: SimpleNamespace) -> None:
        folder.mkdir(parents=True, exist_ok=True)
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

    def refit(self) -> Progress:
        """That of the model that is trained anew, in a folder below.

        Raises:
            SystemExit: validation has chosen no epochs yet.
        """
        if not self.epochs:
            raise SystemExit("error: train first, without --refit: validation chooses the epochs")
        settings = SimpleNamespace(**self.kept["settings"])
        return Progress(self.file.parent / "refit", settings)

    def ask(self) -> dict[str, Any]:
        """All that is told of the run, with how often the test is asked, this time included.

        Raises:
            SystemExit: it was to be trained anew, and is not yet.
        """
        again = self.refit().epochs
        if len(again) not in (0, epochs := self.best["epoch"]):
            raise SystemExit(f"error: trained anew for {len(again)} of {epochs} epochs: go on")
        asked = f"after {len(self.epochs)} epochs"
        if again:
            asked += f", of a model trained anew for {len(again)}"
        self.kept["asked"] = [*self.kept.get("asked", []), asked]
        self.write()
        return {**self.kept, "best": self.best, "refit": again}

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


def train(
    rows: pd.DataFrame, split: Split, model: Any, progress: Progress, look: Look, code: Any
) -> None:
    """Train from the last checkpoint on.

    Args:
        rows: what is learned from.
        split: whose users they are of.
        model: not compiled.
        progress: tells the settings, what is done, and where the checkpoint is.
        look: called after each epoch with its `epoch`, `loss` and `seconds`, the averaged weights
            (if there are any) in the model; says whether the run is over.
        code: the chapter's, as `code_of` gives it.
    """
    import keras

    from rectutor.bucketing import Bucketed

    settings, folder = SimpleNamespace(**progress.kept["settings"]), progress.file.parent

    class Told(keras.callbacks.Callback):
        """Tell `look` what an epoch came to."""

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.start = time.process_time()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seconds = round(time.process_time() - self.start, 1)
            row = {"epoch": epoch + 1, "loss": round(float(logs["loss"]), 4), "seconds": seconds}
            self.model.stop_training = look(row)

    checkpoint, done = folder / "checkpoint.npz", len(progress.epochs)
    draw = code.windows(rows, split.num_users, settings.context, SEED)
    drawn = Bucketed(draw, settings.batch_size, SEED)
    if done:  # the batches of the epoch that comes now
        drawn.epoch = done - 1
        drawn.on_epoch_end()
    averaged = "average" in progress.kept["settings"]
    how = {"use_ema": True, "ema_momentum": settings.average} if averaged else {}
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

    # in this order: what is kept are the weights themselves, `look` sees their average
    swap = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)] * averaged
    how = {"initial_epoch": done, "epochs": 10_000, "verbose": 0, "shuffle": False}
    model.fit(drawn, **how, callbacks=[Keep(), *swap, Told()])


def choose(split: Split, model: Any, progress: Progress, hours: float, code: Any) -> None:
    """Train until validation stalls or the time is up, and keep the best weights."""
    from rectutor.evaluation import Trained, evaluate

    scores = Trained(code.scores(model), split.train)

    def look(row: dict[str, float]) -> bool:
        found = evaluate(scores, split, on="validation", num_resamples=1)
        row |= {"ndcg": round(found.ndcg, 4), "hit_rate": round(found.hit_rate, 4)}
        progress.add(row)
        print(row, flush=True)
        if progress.best["epoch"] == row["epoch"]:
            model.save_weights(progress.file.parent / "best.weights.h5")
        return progress.is_over(hours)

    train(split.train, split, model, progress, look, code)


def known(split: Split) -> pd.DataFrame:
    """What is before the test."""
    return pd.concat([split.train, split.validation])


def refit(split: Split, model: Any, progress: Progress, code: Any) -> None:
    """Train a new model on all but the test, for the epochs that validation chose."""
    again, epochs = progress.refit(), progress.best["epoch"]

    def look(row: dict[str, float]) -> bool:
        again.add(row)
        print(row, flush=True)
        model.save_weights(again.file.parent / "best.weights.h5")
        return row["epoch"] >= epochs

    if len(again.epochs) < epochs:
        train(known(split), split, model, again, look, code)


def test(split: Split, model: Any, progress: Progress, code: Any) -> Path:
    """Ask the test; the file it is stored in.

    The model is the one that was trained anew, or else that of the best epoch.
    """
    from rectutor.evaluation import Trained

    told = progress.ask()
    folder = (progress.refit() if told["refit"] else progress).file.parent
    model.load_weights(folder / "best.weights.h5")
    learned = known(split) if told["refit"] else split.train
    row = {"model": code.called} | asked(Trained(code.scores(model), learned), split)
    name = "million" if code.chapter == "sasrec_levers" else f"million-{code.chapter}"
    return keep(name, split, told | {"chapter": code.chapter, "patience": PATIENCE, "test": [row]})


def baselines(split: Split) -> Path:
    """Baselines in closed form, chosen on validation; the file they are stored in."""
    from rectutor.baselines import grids
    from study.baselines import fitted

    rows = []
    for name in grids():
        if name != "ALS":  # learned by iteration
            model, facts = fitted(name, SEED, split, split)
            row = {"model": name, "settings_tried": facts["settings_tried"]}
            rows.append(row | asked(model, split))
            print(rows[-1], facts, flush=True)
    return keep("million-baselines", split, {"test": rows})


def asked(recommender: Any, split: Split) -> dict[str, list[float]]:
    """`hit_rate` and `ndcg` on the test, each with the ends of its interval over users."""
    from rectutor.evaluation import evaluate

    found = evaluate(recommender, split).metrics
    return {
        name: [round(end, 4) for end in (found[name].value, found[name].low, found[name].high)]
        for name in ("hit_rate", "ndcg")
    }


def keep(name: str, split: Split, told: dict[str, Any]) -> Path:
    """Store it under that name and today's date, with the machine and the size of the data."""
    today = datetime.date.today().isoformat()
    sizes = {"users": split.num_users, "movies": split.num_movies}
    sizes["interactions"] = sum(map(len, (split.train, split.validation, split.test)))
    run = {"date": today, "machine": machine(), "seed": SEED, "data": sizes, **told}
    return store(run, RESULTS / f"{name}-{today}.json")


def arguments(doc: str) -> argparse.ArgumentParser:
    """The command line of a run that goes on where it stopped.

    Args:
        doc: of the module; its first line describes the command.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--hours", type=float, default=6.0, help="of a processor's time, in all")
    parser.add_argument("--refit", action="store_true", help="train anew, with validation's movies")
    parser.add_argument("--test", action="store_true", help="ask the test, once")
    parser.add_argument("--folder", type=Path, help="where the checkpoints are kept")
    return parser


def main() -> None:
    """Go on with the run, or ask the test."""
    parser = arguments(__doc__)
    parser.add_argument("--chapter", choices=CHAPTERS, default="sasrec_levers")
    parser.add_argument("--baselines", action="store_true", help="those, chosen on validation")
    chosen = parser.parse_args()
    if chosen.baselines:
        print(f"results: {baselines(leave_one_out()).name}")
        return
    os.environ.setdefault("KERAS_BACKEND", "jax")
    code = code_of(chosen.chapter)
    progress = Progress(chosen.folder or FOLDER / chosen.chapter, code.settings)
    split = leave_one_out()
    model = code.model(split.num_movies, code.settings, SEED)
    model.build((None, code.settings.context))
    if chosen.test:
        print(f"results: {test(split, model, progress, code).name}")
    elif chosen.refit:
        refit(split, model, progress, code)
    elif progress.is_over(chosen.hours):
        print(f"over: best {progress.best}; --refit trains anew, --test asks the test")
    else:
        choose(split, model, progress, chosen.hours, code)


if __name__ == "__main__":
    main()
