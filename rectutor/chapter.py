"""What a chapter needs to run the same in the book, in Jupyter or Colab, and as a script."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rectutor import checks, display, results
from rectutor.environment import check_writable, in_notebook, silent_stderr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rectutor.data import Dataset
    from rectutor.evaluation import Evaluation, Recommender
    from rectutor.splits import Split
    from rectutor.study import Effect
    from rectutor.training import BestByNDCG

#: What tables of the study are called, also beside a table of one's own.
STUDY = "The study, of MovieLens 100K"
#: The order of the values in `Run.settings`.
PROFILES = ("quick", "full", "smoke")

#: The Keras backends that a chapter may run on.
BACKENDS = ("jax", "tensorflow", "torch")

#: The settings that `RECTUTOR_EPOCHS` limits.
LIMITED = re.compile(r"(^|_)epochs$|^every$")

#: Size of the synthetic data set the smoke profile uses: users, movies, ratings.
SMOKE_SIZE = (300, 200, 12_000)


def start(name: str, quietly: Iterable[str] = (), backends: Iterable[str] = BACKENDS) -> Run:
    """Begin a chapter: choose the profile, seed everything, set the plot style.

    Reads `RECTUTOR_PROFILE` (`quick`, `full` or `smoke`; by default `full` where the backend
    sees a GPU, else `quick`), `RECTUTOR_SEED` (42), `RECTUTOR_EXCLUDE_SEEN` (yes) and, for a
    table of one's own, `RECTUTOR_EPOCHS` (as many as the profile says). Prints one line that says
    what was chosen.

    Args:
        name: the chapter's name, that of its file in `notebooks/`.
        quietly: packages to import without their chatter, such as `("keras_hub",)`: it loads
            TensorFlow, whose start-up messages would end up in the notebook.
        backends: the Keras backends that the chapter can use.

    Raises:
        ValueError: an environment variable holds something else, `KERAS_BACKEND` a backend or
            `RECTUTOR_EXCLUDE_SEEN` a rule that the chapter cannot use, or `RECTUTOR_EPOCHS` a limit
            for the book's own data.
        ImportError: there is no such package.
    """
    from rectutor import repeats

    seed, exclude_seen, most_epochs = _seed(), repeats.excluded(), _most_epochs()
    wanted = os.environ.get("RECTUTOR_PROFILE", "")
    if wanted and wanted not in PROFILES:
        raise ValueError(
            f"RECTUTOR_PROFILE is {wanted!r}; set it to one of {', '.join(PROFILES)}, or unset it"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up chatter
    import keras

    if not exclude_seen and name in repeats.LEAVE_OUT:
        raise ValueError(
            f"RECTUTOR_EXCLUDE_SEEN is no, and the chapter {name} always leaves out what a user "
            "has had; unset it, or run another chapter"
        )
    backend, usable = keras.backend.backend(), tuple(backends)
    if backend not in usable:
        raise ValueError(
            f"KERAS_BACKEND is {backend!r}, which the chapter {name} cannot use; set it to "
            f"{' or '.join(usable)}, and begin anew"
        )
    if backend == "jax":
        _keep_compiled()
    with silent_stderr(), warnings.catch_warnings():
        device, has_gpu = _device(backend)  # may load TensorFlow, and so may seeding
        keras.utils.set_random_seed(seed)
        warnings.simplefilter("ignore")  # such as tqdm's, about widgets nobody asked for
        for package in quietly:
            importlib.import_module(package)
    profile = wanted or ("full" if has_gpu else "quick")
    display.plot_style()
    if not in_notebook():
        _log_to_terminal()
    print(f"chapter {name}: profile {profile}, backend {backend} on {device}, seed {seed}")
    return Run(name, profile, seed, backend, device, exclude_seen, most_epochs)


def _keep_compiled() -> None:
    """Let JAX find a program that it compiled before in this process.

    A model that is built and trained anew has the program of the first, and compiling it takes
    seconds. JAX looks in a folder; ours goes with the process, one of your own is left alone.
    """
    import jax

    if jax.config.jax_compilation_cache_dir:
        return
    folder = tempfile.TemporaryDirectory(prefix="rectutor-", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    jax.config.update("jax_compilation_cache_dir", folder.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


class Run:
    """One run of a chapter: its settings, its figures, what it measured.

    Made by `start`.

    Attributes:
        name: the chapter's name.
        profile: `"quick"`, `"full"` or `"smoke"`.
        seed: the one seed of the run.
        backend: the Keras backend in use.
        device: what it computes on, in words.
        exclude_seen: whether what a user has had is not recommended again.
        most_epochs: how many epochs a training may have; None for as many as the profile says.
    """

    def __init__(
        self,
        name: str,
        profile: str,
        seed: int,
        backend: str,
        device: str,
        exclude_seen: bool = True,
        most_epochs: int | None = None,
    ) -> None:
        self.name = name
        self.profile = profile
        self.seed = seed
        self.backend = backend
        self.device = device
        self.exclude_seen = exclude_seen
        self.most_epochs = most_epochs
        self._data: Dataset | None = None
        self._own = False
        self._models: list[dict[str, Any]] = []
        self._facts: dict[str, int | float | str] = {}
        self._num_tables = 0

    def settings(self, **choices: Any) -> SimpleNamespace:
        """Choose this profile's value of every setting.

        Where the epochs are limited (`most_epochs`), `epochs` and whatever ends in `_epochs` are
        no more than that, nor is `every`, the epochs from one look at validation to the next.

        Args:
            choices: `name=(quick, full, smoke)`, or `name=value` where all profiles agree.

        Returns:
            A namespace with one attribute a setting.

        Raises:
            ValueError: a tuple does not hold one value for each profile.

        Example:
            >>> run = Run("toy", "quick", 42, "jax", "CPU")
            >>> run.settings(epochs=(5, 50, 1), width=32)
            namespace(epochs=5, width=32)
        """
        chosen = {}
        for name, values in choices.items():
            if isinstance(values, tuple):
                if len(values) != len(PROFILES):
                    raise ValueError(
                        f"settings({name}={values!r}): give one value for each of "
                        f"{', '.join(PROFILES)}, or a single value that is not a tuple"
                    )
                values = values[PROFILES.index(self.profile)]
            if self.most_epochs and LIMITED.search(name):
                values = min(values, self.most_epochs)
            chosen[name] = values
        return SimpleNamespace(**chosen)

    def load_data(
        self,
        name: str,
        needs: tuple[str, ...] = (),
        min_users: int = 1,
        min_movies: int = 1,
        min_likes: int = 0,
        on_five_stars: bool = False,
        dense: bool = False,
    ) -> Dataset:
        """Load the chapter's data set and say in one line which source it came from.

        `RECTUTOR_DATA=table.csv` puts a table of your own in its place, see `rectutor.own_table`.
        Whether the results can be written is found out here, before anything is trained.

        Args:
            name: a data set of `rectutor.data.load_movielens`, or `"synthetic"`.
            needs: what the chapter cannot do without: `"ratings"`, `"timestamps"`.
            min_users: fewest users the chapter makes sense with.
            min_movies: fewest movies the chapter makes sense with.
            min_likes: fewest interactions, of two stars and more, that one user must have.
            on_five_stars: stretch ratings of any other scale onto 1 to 5, for a chapter that
                only asks which have two stars and more; see `own_table.on_five_stars`.
            dense: whether the chapter needs a dense item-item matrix, beyond its baselines.

        Raises:
            ValueError: the data set lacks something the chapter needs, or is too large for a
                matrix; the message says what.
            OSError: the results could not be written.
        """
        from rectutor import data, first_minute, own_table

        check_writable(results.folder(), "RECTUTOR_RESULTS")
        own = os.environ.get("RECTUTOR_DATA")
        if own:
            loaded = own_table.read(own)
        elif name == "synthetic":
            loaded = data.synthetic(*SMOKE_SIZE, seed=self.seed)
        else:
            loaded = data.load_movielens(name)
        rows = "ratings" if loaded.has_ratings else "interactions"
        print(
            f"data {loaded.name} from {loaded.source}: {len(loaded.ratings):,} {rows}, "
            f"{loaded.num_users:,} users, {loaded.num_movies:,} movies"
        )
        if own:
            self._say_what_it_replaces(loaded)
            self._say_what_it_does_with(loaded)
            self._say_how_long(loaded)
        loaded.require(*needs, min_users=min_users, min_movies=min_movies)
        if min_likes:
            first_minute.check_history(loaded, min_likes)
        if dense:
            first_minute.check_matrix_fits(loaded.num_movies)
        first_minute.check_pairs_fit(self.name, loaded)
        if on_five_stars:
            loaded = own_table.on_five_stars(loaded)
        self._data, self._own = loaded, bool(own)
        return loaded

    def length(self, most: int) -> int:
        """How many of the latest items a sequence model reads.

        Args:
            most: the setting of the profile, which holds for the book's data.

        Returns:
            For a table of one's own, where it is less, what nine histories in ten fit into (a
            multiple of 5), with a line that says so: longer windows would mostly be padding.
        """
        from rectutor import durations

        if self._data is None or not self._own:
            return most
        counts = np.bincount(self._data.ratings["user_id"])[1:]
        found, covers = durations.window(counts, most)
        if found < most:
            print(
                f"windows of {found} instead of {most}: nine histories in ten have at most "
                f"{covers:.0f}"
            )
        return found

    def _say_what_it_replaces(self, own: Dataset) -> None:
        """Where the results of a table of the same name are, of another one."""
        path = results.folder() / f"{self.name}.json"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            before = json.loads(path.read_text("utf-8"))["data"]["num_ratings"]
            if before != len(own.ratings):
                print(
                    f"this run replaces {results.relative(path)}, of a table of the same name with "
                    f"{before:,} interactions; RECTUTOR_RESULTS=FOLDER keeps it"
                )

    def _say_what_it_does_with(self, own: Dataset) -> None:
        """What is missing in a table of one's own, or there twice, and what becomes of it."""
        from rectutor import repeats
        from rectutor.first_minute import NEEDS
        from rectutor.own_table import num_repeats

        for what, present, instead in (
            ("ratings", own.has_ratings, "every interaction counts as a like"),
            ("timestamps", own.has_timestamps, "the order of the rows stands for it"),
        ):
            if not present:
                need = [name for name, (needs, *_) in NEEDS.items() if what in needs]
                print(f"no {what}: {instead}; {', '.join(need)} cannot be used")
        if num_repeats(own.ratings):
            print(repeats.said(self.name, self.exclude_seen))
        elif not self.exclude_seen:
            print("no user has an item twice; what a user has had competes all the same")

    def _say_how_long(self, own: Dataset) -> None:
        """What a table of one's own will cost, where that is known, and the limit to it."""
        from rectutor import durations

        if self.profile == "quick":
            counts = np.bincount(own.ratings["user_id"])[1:]
            said = durations.said(self.name, counts, own.num_movies, self.most_epochs)
            if said:
                print(said)
        if self.most_epochs:
            print(
                f"RECTUTOR_EPOCHS={self.most_epochs}: no training has more epochs, so these are no "
                "figures of what a model can reach; the results file says so"
            )

    def show(self, figure: Figure, name: str) -> None:
        """Show a figure, as `CHAPTER-name`; see `rectutor.display.show`."""
        display.show(figure, f"{self.name}-{name}")

    def show_intervals(
        self,
        rows: Mapping[str, Any],
        label: str,
        name: str,
        kinds: Mapping[str, str] | None = None,
        **how: Any,
    ) -> None:
        """Show values with their intervals as a figure; see `rectutor.display.intervals`."""
        self.show(display.intervals(rows, label, kinds, **how), name)

    def show_table(self, table: Any, caption: str | None = None) -> None:
        """Show a table; see `rectutor.display.show_table`."""
        self._num_tables += 1
        display.show_table(table, caption, self._num_tables)

    def baselines(self, split: Split) -> dict[str, Recommender]:
        """The baselines of a table this size, fitted; prints what is left out, and why.

        See `standard_baselines`; of a catalogue whose item-item matrix does not fit in memory
        they are popularity and ALS. Where what a user has had competes, it is counted, too.
        """
        from rectutor import first_minute

        fitted, left_out = first_minute.affordable_baselines(split, self.exclude_seen)
        if left_out:
            print(left_out)
        return fitted

    def evaluate(self, recommender: Recommender, split: Split, **how: Any) -> Evaluation:
        """`rectutor.evaluation.evaluate`; whether seen items compete is the run's to say."""
        from rectutor.evaluation import evaluate

        return evaluate(recommender, split, exclude_seen=self.exclude_seen, **how)

    def best_by_ndcg(self, recommender: Recommender, split: Split, **how: Any) -> BestByNDCG:
        """`rectutor.training.BestByNDCG`; whether seen items compete is the run's to say."""
        from rectutor import repeats
        from rectutor.training import BestByNDCG

        if not self.exclude_seen:
            recommender, split = repeats.competing(recommender, split)
        return BestByNDCG(recommender, split, **how)

    def test(
        self,
        name: str,
        recommender: Recommender,
        split: Split,
        recipe: str = "step",
        seconds: float | None = None,
    ) -> Evaluation:
        """Ask the test part of a leave-one-out split how good a model is, and note the answer.

        See `rectutor.evaluation.evaluate` and, for the recipe and the seconds,
        `rectutor.results.entry`.
        """
        found = self.evaluate(recommender, split, name=name)
        self.record(
            model=name, recipe=recipe, protocol="leave-one-out", metrics=found, seconds=seconds
        )
        return found

    def record(
        self,
        *,
        model: str,
        recipe: str,
        protocol: str,
        metrics: Evaluation | Mapping[str, Any],
        seconds: float | None = None,
    ) -> None:
        """Note what a model reached, for the results file; see `rectutor.results.entry`."""
        self._models.append(
            results.entry(
                model=model, recipe=recipe, protocol=protocol, metrics=metrics, seconds=seconds
            )
        )

    def fact(self, key: str, value: float | str) -> None:
        """Note one measured fact, such as the effect of a correction (`"c8_leaked_targets"`).

        Raises:
            ValueError: the value is neither a finite number nor a string.
        """
        plain = value.item() if hasattr(value, "item") else value  # out of a NumPy number
        self._facts[key] = results.fact(key, plain)

    def effect(self, *corrections: str) -> None:
        """Show what the study found of some corrections of this chapter, a row a comparison.

        Args:
            corrections: such as `"C12"`; none for every comparison of the chapter.
        """
        from rectutor import study

        found = []
        for correction in corrections or ("",):
            effects = study.read().of(self.name, correction)
            found += effects
            if not effects:
                print(f"the study has no comparison of {correction or self.name}")
        self.show_effects(found)

    def show_effects(self, effects: Iterable[Effect], caption: str = STUDY) -> None:
        """Show comparisons of the study, a table a metric."""
        from rectutor import study

        for table in study.compared(effects).values():
            self.show_table(table, caption)

    def documented(self) -> None:
        """Show the figures that the documentation has, and where the study's runs lie."""
        from rectutor import study

        found = [each for each in study.read().documented if each.arm.startswith(f"{self.name}/")]
        if found:
            self.show_table(study.placed(found), "Documented figures beside the study's")
        else:
            print(f"the study has no documented figure of {self.name}")

    def show_study(
        self,
        arms: Mapping[str, str],
        metric: str = "ndcg",
        own: Mapping[str, float] | None = None,
        caption: str | None = None,
    ) -> None:
        """Show models of the study side by side, and this run beside them.

        On a table of one's own this run stands by itself, since the study is of MovieLens.

        Args:
            arms: what to call each, to its name in the study, `chapter/name`.
            metric: `"ndcg"`, `"hit_rate"` or `"rmse"`.
            own: what this run measured, by the same names.
            caption: of the table.
        """
        from rectutor import study

        if self._own and own:
            found = {
                "model": list(own),
                study.METRICS[metric]: [f"{value:.3f}" for value in own.values()],
            }
            self.show_table(pd.DataFrame(found), "This run, on the table of yours")
            own, caption = None, caption or STUDY
        self.show_table(study.read().table(dict(arms), metric, own), caption)

    def _departures(self) -> dict[str, int | str]:
        """What of the run was chosen otherwise than the book has it."""
        found: dict[str, int | str] = {} if self.exclude_seen else {"exclude_seen": "no"}
        return found | ({results.LIMIT: self.most_epochs} if self.most_epochs else {})

    def save(self) -> None:
        """Write everything recorded to `NAME.json` in `results.folder()`, and print where.

        Raises:
            RuntimeError: no data set was loaded with `load_data`.
        """
        data = self._data
        if data is None:
            raise RuntimeError("save() before load_data(): the results name the data set; load it")
        path = results.write(
            {
                "schema": results.SCHEMA,
                "chapter": self.name,
                "profile": self.profile,
                "seed": self.seed,
                "backend": self.backend,
                "device": self.device,
                "versions": results.versions(),
                "data": {
                    "name": data.name,
                    "source": data.source,
                    "num_users": int(data.num_users),
                    "num_movies": int(data.num_movies),
                    "num_ratings": len(data.ratings),
                },
                "models": self._models,
                "facts": self._facts | self._departures(),
            },
            results.folder() / f"{self.name}.json",
        )
        print(f"results: {results.relative(path)}")


def _most_epochs() -> int | None:
    text = os.environ.get("RECTUTOR_EPOCHS", "").strip()
    if not text:
        return None
    if not text.isdecimal() or len(text) > 20 or not 1 <= int(text) <= checks.MAX_ID:
        raise ValueError(
            f"RECTUTOR_EPOCHS is {text[:40]!r}; set it to the most epochs that a training may "
            "have, 1 or more, or unset it"
        )
    if not os.environ.get("RECTUTOR_DATA"):
        raise ValueError(
            f"RECTUTOR_EPOCHS is {text!r}, and RECTUTOR_DATA is not set: the book's own data is "
            "trained on for as long as the chapter says; unset RECTUTOR_EPOCHS, or set "
            "RECTUTOR_DATA to a table of yours"
        )
    return int(text)


def _seed() -> int:
    # the highest one leaves room: chapters also use the seeds that follow
    text = os.environ.get("RECTUTOR_SEED") or "42"
    if not text.isdecimal() or len(text) > 20 or int(text) > checks.MAX_ID:
        raise ValueError(
            f"RECTUTOR_SEED is {text[:40]!r}; set it to an integer from 0 to {checks.MAX_ID}"
        )
    return int(text)


def _device(backend: str) -> tuple[str, bool]:
    """What the backend computes on, in words, and whether that is a GPU."""
    if backend == "jax":
        import jax

        gpus = [each.device_kind for each in jax.devices() if each.platform == "gpu"]
    elif backend == "tensorflow":
        import tensorflow as tf

        gpus = [each.name for each in tf.config.list_physical_devices("GPU")]
    else:
        import torch

        gpus = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return (gpus[0], True) if gpus else (f"CPU ({os.cpu_count()} cores)", False)


def _log_to_terminal() -> None:
    """Show the steps of loading data on stderr, a line each; a notebook stays without them."""
    logger = logging.getLogger("rectutor.data")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
