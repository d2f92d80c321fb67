"""Training throughput: every chapter's model on every backend, and SASRec beside a bare JAX loop.

A model trains as in its chapter: the functions that compile and fit are the chapter's own, called
with its `quick` settings. Epochs are the stretches that are timed; the first one, in which the
step is compiled, stands apart. What padding and large catalogues cost is in `benchmarks.padding`.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from benchmarks import padding
from benchmarks.measure import Row, finish, in_child
from rectutor.ratings import to_label
from rectutor.sequences import training_windows
from rectutor.splits import Split, leave_one_out, random_split
from tools import book

BACKENDS = ("jax", "tensorflow", "torch")
STRETCHES = 5
#: The chapters' `fit` may take this many times as long as the bare loop.
TARGET_SLOWDOWN = 1.25

#: Makes the callbacks of a `fit`, of a model of sequences from its recommender and the split.
Callbacks = Callable[..., list[Any]]


class Stopwatch:
    """The seconds of each epoch of a `fit`, taken by the callback that `callback` makes.

    Args:
        beside: functions to call, untimed, after each epoch.
    """

    def __init__(self, *beside: Callable[[], object]) -> None:
        self.seconds: list[float] = []
        self.beside = beside

    def callback(self) -> Any:
        """A Keras callback; put it last."""
        import keras

        watch = self

        class Epochs(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                self.began = time.perf_counter()

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                float(logs["loss"])  # waits until the last step is done
                watch.seconds.append(time.perf_counter() - self.began)
                for function in watch.beside:
                    function()

        return Epochs()


class Chapter:
    """A chapter's functions and settings, and the data it would load.

    Args:
        name: of the chapter.
        seed: of the run.
        profile: whose settings are used.
        max_users: how many users' ratings are kept; all of them if 0.

    Attributes:
        code: the chapter's imports, classes, functions and constants.
        settings: the profile's settings.
        data: the data set.
        ratings: its ratings, those of `max_users` users.
        seed: of the run.
    """

    def __init__(
        self, name: str, *, seed: int = 42, profile: str = "quick", max_users: int = 0
    ) -> None:
        import keras

        from rectutor import chapter

        self.code = book.definitions(name)
        run = chapter.Run(name, profile, seed, keras.backend.backend(), "")
        self.seed = seed
        self.settings: SimpleNamespace = run.settings(**self.code.SETTINGS)
        self.data = run.load_data(self.settings.data)
        self.ratings = self.data.ratings
        if max_users:
            self.ratings = self.ratings[self.ratings["user_id"] <= max_users]
        keras.utils.set_random_seed(seed)

    def split(self) -> Split:
        """Protocol P's split of the ratings, in the catalogue of the whole data set."""
        return leave_one_out(self.ratings, num_movies=self.data.num_movies)

    def random_part(self) -> Any:
        """The training part of the ranking and the retrieval chapter's random split."""
        return random_split(self.ratings, test_fraction=0.2, seed=42).train

    def fit(self, epochs: int, callbacks: Callbacks) -> dict[str, Any]:
        """What the chapters' training functions take alike."""
        return {"epochs": epochs, "seed": self.seed, "callbacks": callbacks()}


# What trains a model gets its chapter, how many epochs (None: the profile's; sequences only) and
# what makes the callbacks, and returns how much an epoch has of what `MODELS` counts.


def ranking_documented(chapter: Chapter, epochs: int, callbacks: Callbacks) -> int:
    """Train the documented ranking model."""
    settings, data = chapter.settings, chapter.data
    x, y = chapter.code.arrays(chapter.random_part(), data.rating_scale)
    sizes, fit = (data.num_users, data.num_movies), chapter.fit(epochs, callbacks)
    chapter.code.documented(x, y, sizes, dim=settings.dim, batch_size=settings.batch_size, **fit)
    return len(y)


def ranking_features(chapter: Chapter, epochs: int, callbacks: Callbacks) -> int:
    """Train the ranking chapter's ensemble, with features."""
    code, train = chapter.code, chapter.random_part()
    x, y = code.arrays(train, chapter.data.rating_scale)
    features = list(code.all_features(chapter.data, train))
    model = code.new_feature_ensemble(y, features, **code.FEATURES, seed=chapter.seed)
    x = (*x, *code.moments(train, train))
    code.train(model, x, y, **code.TRAINED, **chapter.fit(epochs, callbacks))
    return len(y)


def retrieval_documented(chapter: Chapter, epochs: int, callbacks: Callbacks) -> int:
    """Train the documented retrieval model."""
    train, fit = chapter.random_part(), chapter.fit(epochs, callbacks)
    chapter.code.fit_ratings(chapter.data, train, chapter.settings, **fit)
    return len(train)


def retrieval_softmax(chapter: Chapter, epochs: int, callbacks: Callbacks) -> int:
    """Train the retrieval model made right, a softmax over the catalogue."""
    code, settings, data = chapter.code, chapter.settings, chapter.data
    model = code.Towers(data.num_users, data.num_movies, settings.width, settings.dropout)
    how = {"kind": code.STEPS["catalogue softmax, history"], **chapter.fit(epochs, callbacks)}
    code.train_towers(model, chapter.ratings, settings, **how)
    return chapter.ratings["user_id"].nunique()


def multi_task_joint(chapter: Chapter, epochs: int, callbacks: Callbacks) -> int:
    """Train the joint model made right."""
    code, settings, data = chapter.code, chapter.settings, chapter.data
    table = chapter.ratings.assign(label=to_label(chapter.ratings["rating"], data.rating_scale))
    sizes = data.num_users, data.num_movies
    model = code.JointModel(*sizes, settings.members, settings.dim)
    fit = chapter.fit(epochs, callbacks)
    code.train_joint(model, table, table, (1, 1), settings, fit.pop("seed"), **fit)
    return len(table)


def gru4rec(chapter: Chapter, epochs: int | None, callbacks: Callbacks) -> int:
    """Train GRU4Rec made right."""
    code, settings, split = chapter.code, chapter.settings, chapter.split()
    inputs, targets = training_windows(split.histories(before="validation"), settings.length)
    model = code.GRU4Rec(
        chapter.data.num_movies, settings.width, settings.units, settings.dropout, settings.ahead
    )
    recommender = code.recommender_of(model, settings.length, "before")
    code.train(
        model,
        inputs,
        targets,
        rate=settings.rate,
        batch_size=settings.batch,
        epochs=epochs or settings.epochs,
        callbacks=callbacks(recommender, split),
    )
    return inputs.size


def sasrec(chapter: Chapter, epochs: int | None, callbacks: Callbacks) -> int:
    """Train SASRec made right."""
    code, settings, split = chapter.code, chapter.settings, chapter.split()
    model = new_sasrec(chapter)
    draw = code.windows_with_shuffled_ties(
        split.train, split.num_users, settings.context, chapter.seed
    )
    code.train_sasrec(
        model,
        draw,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        epochs=epochs or settings.epochs,
        seed=chapter.seed,
        callbacks=callbacks(code.sasrec_scores(model), split),
    )
    rows = len(draw(0)[0])
    size = min(settings.batch_size, rows)
    return rows // size * size * settings.context


def new_sasrec(chapter: Chapter) -> Any:
    """The chapter's SASRec with the settings of the model made right."""
    return chapter.code.made_right(chapter.data.num_movies, chapter.settings, chapter.seed)


#: Case: its chapter, what trains it, and what its throughput is counted in.
MODELS: dict[str, tuple[str, Callable[[Chapter, Any, Callbacks], int], str]] = {
    "ranking, documented": ("ranking", ranking_documented, "ratings/s"),
    "ranking, with features": ("ranking", ranking_features, "ratings/s"),
    "retrieval, documented": ("retrieval", retrieval_documented, "ratings/s"),
    "retrieval, softmax": ("retrieval", retrieval_softmax, "users/s"),
    "GRU4Rec": ("gru4rec", gru4rec, "positions/s"),
    "SASRec": ("sasrec", sasrec, "positions/s"),
    "multi-task": ("multi_task", multi_task_joint, "pairs/s"),
}
SEQUENCE_USERS = 400  # whose histories GRU4Rec and SASRec train on here


def train(case: str, watch: Any, epochs: int, **how: Any) -> int:
    """Train a case of `MODELS` with `watch.callback()`; `how` is for `Chapter`."""
    name, trains, _ = MODELS[case]
    return trains(Chapter(name, **how), epochs, lambda *_: [watch.callback()])


def sasrec_beside_bare_loop(epochs: int, **how: Any) -> dict[str, dict[str, list[float]]]:
    """SASRec by `fit` and, after each of its epochs, by an epoch of the bare loop.

    Returns:
        `fit` and `bare`, positions a second of each epoch, for `chapter`, the chapter's own `fit`,
        and for `defaults`, `model.fit(x, y)` on arrays with what Keras does unasked. The first
        epoch compiles.
    """
    from benchmarks.bare_loop import BareLoop

    bare_seconds: list[float] = []
    watch = Stopwatch(lambda: bare_seconds.append(bare.epoch()[1]))
    chapter = Chapter("sasrec", **how)
    code, settings, split = chapter.code, chapter.settings, chapter.split()
    inputs, targets = code.windows_with_shuffled_ties(
        split.train, split.num_users, settings.context, chapter.seed
    )(0)
    batch_size = min(settings.batch_size, len(inputs))
    full = len(inputs) // batch_size * batch_size
    inputs, targets = inputs[:full], targets[:full]
    plain = new_sasrec(chapter)
    plain.build((None, settings.context))
    rate = settings.learning_rate
    bare = BareLoop(plain, inputs, targets, batch_size=batch_size, rate=rate)

    def rates() -> dict[str, list[float]]:
        taken = {"fit": watch.seconds.copy(), "bare": bare_seconds.copy()}
        watch.seconds.clear()
        bare_seconds.clear()
        positions = full * settings.context
        return {name: [positions / each for each in seconds] for name, seconds in taken.items()}

    sasrec(chapter, epochs, lambda *_: [watch.callback()])
    of_chapter = rates()
    plain.compile(optimizer=code.keras.optimizers.Adam(rate))
    own = {"batch_size": batch_size, "epochs": epochs, "callbacks": [watch.callback()]}
    plain.fit(inputs, targets, verbose=0, **own)
    return {"chapter": of_chapter, "defaults": rates()}


def child(case: str, stretches: int, max_users: int, profile: str) -> None:
    """Measure one case in this process, and hand the figures back."""
    how = {"max_users": max_users, "profile": profile}
    began = time.perf_counter()
    if case == "bare":
        finish({"rates": sasrec_beside_bare_loop(1 + stretches, **how)})
        return
    watch = Stopwatch()
    an_epoch = train(case, watch, 1 + stretches, **how)
    first, *seconds = watch.seconds
    rates = [an_epoch / each for each in seconds]
    finish({"first": first, "rates": rates, "whole": time.perf_counter() - began})


def measure(quick: bool = False) -> list[Row]:
    """The throughput of every model on every backend, and of SASRec beside the bare loop."""
    stretches, profile = (2, "smoke") if quick else (STRETCHES, "quick")

    def measured(case: str, users: int, backend: str) -> tuple[Any, float]:
        environment = {"KERAS_BACKEND": backend}
        return in_child(__name__, case, stretches, users, profile, environment=environment)

    rows = []
    for case in ["multi-task"] if quick else MODELS:
        users = SEQUENCE_USERS if MODELS[case][2] == "positions/s" else 0
        reference = None
        for backend in BACKENDS[:1] if quick else BACKENDS:
            rows.append(row_of(case, backend, *measured(case, users, backend), reference))
            reference = reference or rows[-1].value
    if not quick:
        found, peak = measured("bare", SEQUENCE_USERS, "jax")
        rows += beside_rows(found["rates"], peak)
        rows += padding.measure()
    return rows


def row_of(case: str, backend: str, found: dict, peak: float, reference: float | None) -> Row:
    """The row of one model on one backend; `reference` is the rate on JAX."""
    rates = found["rates"]
    return Row.of(
        "throughput",
        f"{case}, {backend}",
        rates,
        MODELS[case][2],
        first=found["first"],
        peak_mib=peak,
        reference="jax" if reference else None,
        reference_value=reference,
        ratio=statistics.median(rates) / reference if reference else None,
        judged=False,
    )


def beside_rows(rates: dict[str, dict[str, list[float]]], peak: float) -> list[Row]:
    """The rows of SASRec's `fit` beside the bare loop, from what `sasrec_beside_bare_loop` gave."""
    rows = []
    for name, case in [
        ("chapter", "SASRec, the chapter's fit"),
        ("defaults", "SASRec, fit on arrays with Keras's defaults"),
    ]:
        fit, loop = rates[name]["fit"][1:], rates[name]["bare"][1:]  # the first ones compile
        value, bare = statistics.median(fit), statistics.median(loop)
        # the epochs of a pair follow each other, so what else the machine does weighs on both
        ratio = statistics.median(ours / theirs for ours, theirs in zip(fit, loop, strict=True))
        aim: dict[str, Any] = {}
        if name == "chapter":
            times, met = 1 / TARGET_SLOWDOWN, ratio >= 1 / TARGET_SLOWDOWN
            limit = f"fit takes {1e6 / value:.1f} us a position, the bare loop {1e6 / bare:.1f}"
            aim = {"target": f">= {times:g} times", "met": met, "limit": "" if met else limit}
        rows.append(
            Row.of(
                "throughput",
                case,
                fit,
                "positions/s",
                peak_mib=peak,
                reference="bare JAX loop",
                reference_value=bare,
                ratio=ratio,
                **aim,
            )
        )
    return rows


if __name__ == "__main__":
    os.environ.setdefault("KERAS_BACKEND", "jax")
    if len(sys.argv) > 1:
        child(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    else:
        from benchmarks import report

        print(report.text_tables(measure()))
