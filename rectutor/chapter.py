"""What a chapter needs to run the same in the book, in Jupyter or Colab, and as a script."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import logging
import os
import platform
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from rectutor import results
from rectutor.environment import in_notebook, silent_stderr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rectutor.data import Dataset
    from rectutor.evaluation import Evaluation

#: The order of the values in `Run.settings`.
PROFILES = ("quick", "full", "smoke")

#: Size of the synthetic data set the smoke profile uses: users, movies, ratings.
SMOKE_SIZE = (300, 200, 12_000)


def prepare_process() -> None:
    """Set what makes NumPy and the memory fast, and must be set before they are used.

    Call it before NumPy and Keras are imported; what is there already keeps what it has. Nothing
    changes where the system, the processor or the C library is another one.

    - glibc hands large blocks of freed memory back to the system, which clears every page of them
      anew at the next training step; on a CPU that can take a third of a step. Here it keeps them.
      Source: `man 3 mallopt`.
    - On AMD's Zen 4 the AVX-512 instruction that NumPy sorts with is microcoded, and slower than
      AVX2 by a factor of five. There NumPy is told to leave AVX-512 alone, unless
      `NPY_DISABLE_CPU_FEATURES` is set already. Source:
      https://github.com/numpy/x86-simd-sort/issues/6.
    """
    _keep_freed_memory()
    if _is_zen_4(Path("/proc/cpuinfo")):
        version = tuple(map(int, importlib.metadata.version("numpy").split(".")[:2]))
        name = "X86_V4" if version >= (2, 4) else "AVX512F"  # the same, by its older name
        os.environ.setdefault("NPY_DISABLE_CPU_FEATURES", name)


def _keep_freed_memory() -> None:
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    libc = ctypes.CDLL(None)
    for option, value in ((trim_threshold, -1), (mmap_max, 0), (arena_max, 1)):
        libc.mallopt(option, value)


def _is_zen_4(cpuinfo: Path) -> bool:
    """Whether Linux's description of the processor is one of family 25 with AVX-512."""
    if not cpuinfo.is_file():
        return False
    processor = cpuinfo.read_text(encoding="utf-8").partition("\n\n")[0]
    fields = dict(re.findall(r"^(.*?)\s*: (.*)$", processor, flags=re.MULTILINE))
    return (
        fields.get("vendor_id") == "AuthenticAMD"
        and fields.get("cpu family") == "25"
        and "avx512f" in fields.get("flags", "").split()
    )


def load_quietly(package: str) -> None:
    """Import a package whose C++ parts chat past Python's streams, and drop what they say.

    Do this before the plain `import` of KerasHub: it loads TensorFlow, whose start-up messages
    would end up in the notebook.

    Args:
        package: the name to import.

    Raises:
        ImportError: there is no such package.
    """
    with silent_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as tqdm's, about widgets nobody asked for
        importlib.import_module(package)


def start(name: str) -> Run:
    """Begin a chapter: choose the profile, seed everything, set the plot style.

    Reads `RECTUTOR_PROFILE` (`quick`, `full` or `smoke`; by default `full` where the backend
    sees a GPU, else `quick`) and `RECTUTOR_SEED` (42). Prints one line that says what was chosen.

    Args:
        name: the chapter's name, that of its file in `notebooks/`.

    Raises:
        ValueError: an environment variable holds something else.
    """
    seed = _seed()
    wanted = os.environ.get("RECTUTOR_PROFILE", "")
    if wanted and wanted not in PROFILES:
        raise ValueError(
            f"RECTUTOR_PROFILE is {wanted!r}; set it to one of {', '.join(PROFILES)}, or unset it"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up chatter
    import keras

    backend = keras.backend.backend()
    with silent_stderr():  # both may load TensorFlow
        device, has_gpu = _device(backend)
        keras.utils.set_random_seed(seed)
    profile = wanted or ("full" if has_gpu else "quick")
    _plot_style()
    if not in_notebook():
        _log_to_terminal()
    print(f"chapter {name}: profile {profile}, backend {backend} on {device}, seed {seed}")
    return Run(name, profile, seed, backend, device)


class Run:
    """One run of a chapter: its settings, its figures, what it measured.

    Made by `start`.

    Attributes:
        name: the chapter's name.
        profile: `"quick"`, `"full"` or `"smoke"`.
        seed: the one seed of the run.
        backend: the Keras backend in use.
        device: what it computes on, in words.
    """

    def __init__(self, name: str, profile: str, seed: int, backend: str, device: str) -> None:
        self.name = name
        self.profile = profile
        self.seed = seed
        self.backend = backend
        self.device = device
        self._data: Dataset | None = None
        self._models: list[dict[str, Any]] = []
        self._facts: dict[str, int | float | str] = {}
        self._num_tables = 0

    def settings(self, **choices: Any) -> SimpleNamespace:
        """Choose this profile's value of every setting.

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
                chosen[name] = values[PROFILES.index(self.profile)]
            else:
                chosen[name] = values
        return SimpleNamespace(**chosen)

    def load_data(
        self,
        name: str,
        needs: tuple[str, ...] = (),
        min_users: int = 1,
        min_movies: int = 1,
    ) -> Dataset:
        """Load the chapter's data set and say in one line which source it came from.

        `RECTUTOR_DATA=table.csv` puts a table of your own in its place: a CSV file with columns
        `user` and `item` and, where you have them, `rating`, `timestamp` and `title`.

        Args:
            name: a data set of `rectutor.data.load_movielens`, or `"synthetic"`.
            needs: what the chapter cannot do without: `"ratings"`, `"timestamps"`.
            min_users: fewest users the chapter makes sense with.
            min_movies: fewest movies the chapter makes sense with.

        Raises:
            ValueError: the data set lacks something the chapter needs; the message says what.
        """
        from rectutor import data

        own = os.environ.get("RECTUTOR_DATA")
        if own:
            loaded = _own_table(own)
        elif name == "synthetic":
            loaded = data.synthetic(*SMOKE_SIZE, seed=self.seed)
        else:
            loaded = data.load_movielens(name)
        print(
            f"data {loaded.name} from {loaded.source}: {len(loaded.ratings):,} ratings, "
            f"{loaded.num_users:,} users, {loaded.num_movies:,} movies"
        )
        loaded.require(*needs, min_users=min_users, min_movies=min_movies)
        self._data = loaded
        return loaded

    def show(self, figure: Figure, name: str) -> None:
        """Show a figure: in the notebook, or as an SVG file beside the results in a script.

        Args:
            figure: the finished figure; it is closed afterwards.
            name: the file's name, without the chapter and the ending.
        """
        import matplotlib.pyplot as plt

        if in_notebook():
            from IPython.display import display

            display(figure)  # type: ignore[no-untyped-call]
        else:
            path = results.folder() / "figures" / f"{self.name}-{name}.svg"
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, metadata={"Date": None})
            print(f"figure: {_relative(path)}")
        plt.close(figure)

    def show_table(self, table: Any, caption: str | None = None) -> None:
        """Show a table: as HTML in a notebook, as text in a terminal.

        Args:
            table: a DataFrame, or anything that displays itself (`Evaluation`, `Comparison`).
            caption: one line above the table.
        """
        import pandas as pd

        if isinstance(table, pd.Series):
            table = table.to_frame()
        if in_notebook():
            from IPython.display import display

            if isinstance(table, pd.DataFrame):
                styled = table.style.format(precision=4, na_rep="")
                if isinstance(table.index, pd.RangeIndex):
                    styled = styled.hide(axis="index")
                self._num_tables += 1  # a name that does not change from run to run
                styled = styled.set_uuid(f"table-{self._num_tables}")
                table = styled.set_caption(caption) if caption else styled
            elif caption:
                print(caption)
            display(table)  # type: ignore[no-untyped-call]
            return
        if caption:
            print(caption)
        if isinstance(table, pd.DataFrame):
            shown = table.to_string(
                index=not isinstance(table.index, pd.RangeIndex),
                float_format=lambda number: f"{number:.4f}",
                na_rep="",
            )
            print(shown)
        else:
            print(table)

    def callbacks(self, name: str) -> list[Any]:
        """Extra Keras callbacks of a long `fit`: a checkpoint an epoch when resuming is wanted.

        With `RECTUTOR_RESUME=1` the model, its optimizer and the epoch are kept in
        `results/checkpoints/` after every epoch (`keras.callbacks.BackupAndRestore`); a run that
        was stopped goes on from there, and a finished one takes its checkpoint away.

        Args:
            name: tells the models of one chapter apart.
        """
        if os.environ.get("RECTUTOR_RESUME", "") not in ("1", "true", "yes"):
            return []
        import keras

        place = results.folder() / "checkpoints" / f"{self.name}-{name}-{self.profile}-{self.seed}"
        if place.exists():
            print(f"going on from the checkpoint in {_relative(place)}")
        return [keras.callbacks.BackupAndRestore(str(place))]

    def record(
        self,
        *,
        model: str,
        recipe: str,
        protocol: str,
        metrics: Evaluation | dict[str, Any],
        seconds: float | None = None,
    ) -> None:
        """Note what a model reached, for the results file and the leaderboard.

        Args:
            model: its name as the reader should see it.
            recipe: `"documented"`, `"made right"`, `"step"` (on the way) or `"baseline"`.
            protocol: `"leave-one-out"` (protocol P) or `"rating"` (random split, RMSE).
            metrics: an `Evaluation`, or a dict of numbers or `(value, low, high)` triples.
            seconds: training time, where it was measured.

        Raises:
            ValueError: the record does not fit the schema of `rectutor.results`.
        """
        named = metrics if isinstance(metrics, dict) else metrics.metrics
        entry = {
            "model": model,
            "recipe": recipe,
            "protocol": protocol,
            "metrics": {key: _interval(value) for key, value in named.items()},
            "seconds": None if seconds is None else round(float(seconds), 3),
        }
        results._model(entry, f"record(model={model!r})")
        self._models.append(entry)

    def fact(self, key: str, value: float | str) -> None:
        """Note one measured fact, such as the effect of a correction (`"c8_leaked_targets"`).

        Raises:
            ValueError: the value is neither a finite number nor a string.
        """
        if hasattr(value, "item"):
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(f"fact({key!r}, {value!r}): give a number or a short string")
        self._facts[key] = value

    def save(self) -> None:
        """Write everything recorded to `results/NAME.json`, atomically, and print where.

        Raises:
            RuntimeError: no data set was loaded with `load_data`.
        """
        if self._data is None:
            raise RuntimeError("save() before load_data(): the results name the data set; load it")
        data = self._data
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
                "facts": self._facts,
            },
            results.folder() / f"{self.name}.json",
        )
        print(f"results: {_relative(path)}")


def _interval(value: Any) -> dict[str, float | None]:
    if hasattr(value, "value"):
        low, high = value.low, value.high
        value = value.value
    elif isinstance(value, tuple):
        value, low, high = value
    else:
        low = high = None
    return {
        "value": float(value),
        "low": None if low is None else float(low),
        "high": None if high is None else float(high),
    }


def _seed() -> int:
    text = os.environ.get("RECTUTOR_SEED", "42")
    if not text.isdecimal() or int(text) >= 2**32:
        raise ValueError(f"RECTUTOR_SEED is {text!r}; set it to an integer from 0 to {2**32 - 1}")
    return int(text)


def _device(backend: str) -> tuple[str, bool]:
    """What the backend computes on, in words, and whether that is a GPU."""
    if backend == "jax":
        import jax

        device = jax.devices()[0]
        found, has_gpu = device.device_kind, device.platform == "gpu"
    elif backend == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        found, has_gpu = (gpus[0].name, True) if gpus else ("", False)
    else:
        import torch

        has_gpu = torch.cuda.is_available()
        found = torch.cuda.get_device_name() if has_gpu else ""
    if has_gpu:
        return found, True
    return f"CPU ({os.cpu_count()} cores)", False


def _log_to_terminal() -> None:
    """Show the steps of loading data on stderr, a line each; a notebook stays without them."""
    logger = logging.getLogger("rectutor.data")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def _own_table(file: str) -> Dataset:
    import pandas as pd

    from rectutor import data

    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(
            f"RECTUTOR_DATA is {file!r}, which is no file; give the path of a CSV table"
        )
    frame = pd.read_csv(path)
    missing = {"user", "item"} - set(frame.columns)
    if missing:
        raise ValueError(
            f"RECTUTOR_DATA={file}: no column {sorted(missing)} among {list(frame.columns)}; "
            "rename yours to user, item, rating, timestamp, title"
        )
    optional = {name: name for name in ("rating", "timestamp", "title") if name in frame.columns}
    return data.from_dataframe(frame, user="user", item="item", **optional)


def _relative(path: Path) -> Path:
    try:
        return path.resolve().relative_to(results.folder().resolve().parent)
    except ValueError:
        return Path(path.name)


def _plot_style() -> None:
    """Figures as crisp SVG, the same bytes for the same numbers, in colour-blind-safe colours."""
    import matplotlib as mpl
    from cycler import cycler

    if in_notebook():
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        svg = {"facecolor": "white", "metadata": {"Date": None}}
        set_matplotlib_formats("svg", **svg)  # type: ignore[no-untyped-call]
    else:
        mpl.use("agg")
    # Okabe and Ito's palette, in the order that keeps neighbours apart
    palette = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
    mpl.rcParams.update(
        {
            "axes.grid": True,
            "axes.prop_cycle": cycler(color=palette),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "figure.figsize": (7.0, 3.6),
            "font.size": 10.5,
            "grid.alpha": 0.25,
            "legend.frameon": False,
            "savefig.facecolor": "white",
            "svg.fonttype": "path",
            "svg.hashsalt": "rectutor",
        }
    )
