"""What a chapter measured, stored as JSON: written atomically, checked against one schema."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rectutor import environment
from rectutor.environment import write_text

if TYPE_CHECKING:
    from rectutor.evaluation import Evaluation

#: Version of the layout below; a file of another version is refused.
SCHEMA = 1

#: The fact that a run was limited, and to how many epochs a training (`RECTUTOR_EPOCHS`).
LIMIT = "epochs_at_most"

RECIPES = ("documented", "made right", "step", "baseline")
PROTOCOLS = ("leave-one-out", "rating")

_TOP_LEVEL: dict[str, type | tuple[type, ...]] = {
    "schema": int,
    "chapter": str,
    "profile": str,
    "seed": int,
    "backend": str,
    "device": str,
    "versions": dict,
    "data": dict,
    "models": list,
    "facts": dict,
}
_DATA: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "source": str,
    "num_users": int,
    "num_movies": int,
    "num_ratings": int,
}
_VERSIONED = ("rectutor", "keras", "keras-rs", "keras-hub", "jax", "tensorflow", "torch", "numpy")


def checkout() -> Path | None:
    """The book's repository, known by its `_toc.yml`: around the working directory or the package.

    Returns:
        Its folder; None where there is none, as in Colab.
    """
    here = Path.cwd()
    for candidate in (here, here.parent, Path(__file__).resolve().parent.parent):
        if (candidate / "_toc.yml").is_file():
            return candidate
    return None


def folder() -> Path:
    """Where a run keeps its results and figures.

    That is `RECTUTOR_RESULTS`; without it `_build/results` of the repository, so that running a
    chapter leaves what is tracked alone, and outside a repository `results` of the working
    directory. What ran on a table of one's own (`RECTUTOR_DATA`) lies in a folder of the table's
    name in there, `own/NAME`, apart from the book's.
    """
    found, root = environment.folder("RECTUTOR_RESULTS"), checkout()
    if found is None:
        found = root / "_build" / "results" if root else Path.cwd() / "results"
    return of_table(found)


def of_table(found: Path) -> Path:
    """`found` itself, or its folder for the table of one's own that `RECTUTOR_DATA` names."""
    own = os.environ.get("RECTUTOR_DATA")
    return found / "own" / own_name(own) if own else found


def own_name(file: str) -> str:
    """What a table of one's own is called: the file's name without its endings.

    Example:
        >>> own_name("somewhere/loans.2024.csv.gz")
        'loans.2024'
    """
    name = Path(file).name
    return re.sub(r"(?<=.)(\.(csv|tsv|txt|dat|data|parquet|pq|gz))+$", "", name, flags=re.I)


def relative(path: Path) -> Path:
    """`path` as messages show it: from the repository, or else from beside `folder()`."""
    override = environment.folder("RECTUTOR_RESULTS")
    for base in (checkout(), override.parent if override else Path.cwd()):
        if base and path.resolve().is_relative_to(base.resolve()):
            return path.resolve().relative_to(base.resolve())
    return Path(path.name)


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that decide a chapter's figures."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def check(record: Any, place: str = "record") -> dict[str, Any]:
    """Check a results record against the schema.

    Args:
        record: what `json.load` gave, or what is about to be written.
        place: a file name or another hint for the error message.

    Returns:
        `record` itself.

    Raises:
        ValueError: a field is missing, of the wrong type, or out of its range. The message names
            the place, the field and the value.
    """
    _fields(record, _TOP_LEVEL, place)
    if record["schema"] != SCHEMA:
        raise ValueError(
            f"{place}: schema is {record['schema']}, this rectutor reads {SCHEMA}; "
            "run the chapter again to write the file anew"
        )
    _fields(record["data"], _DATA, f"{place}: data")
    for index, model in enumerate(record["models"]):
        _check_model(model, f"{place}: models[{index}]")
    for key, value in record["facts"].items():
        fact(key, value, place)
    return dict(record)


def fact(key: str, value: Any, place: str = "fact") -> int | float | str:
    """`value`, which can be stored as a fact: a finite number or a short string.

    Raises:
        ValueError: it is something else; the message names the place, the key and the value.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place}: fact {key!r} is {value}; store a finite number")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(
            f"{place}: fact {key!r} is {value!r}; store an int, a float or a short string"
        )
    return value


def entry(
    *,
    model: str,
    recipe: str,
    protocol: str,
    metrics: Evaluation | Mapping[str, Any],
    seconds: float | None = None,
) -> dict[str, Any]:
    """What a model reached, as one of a record's `models`.

    Args:
        model: its name as the reader should see it.
        recipe: `"documented"`, `"made right"`, `"step"` (on the way) or `"baseline"`.
        protocol: `"leave-one-out"` (protocol P) or `"rating"` (random split, RMSE).
        metrics: an `Evaluation`, or names to a number, an `Interval` or a `(value, low, high)`.
        seconds: training time, where it was measured.

    Raises:
        ValueError: it does not fit the schema.

    Example:
        >>> made = entry(model="mean", recipe="baseline", protocol="rating", metrics={"rmse": 0.28})
        >>> made["metrics"]
        {'rmse': {'value': 0.28, 'low': None, 'high': None}}
    """
    named = metrics if isinstance(metrics, Mapping) else metrics.metrics
    made = {
        "model": model,
        "recipe": recipe,
        "protocol": protocol,
        "metrics": {name: _interval(value) for name, value in named.items()},
        "seconds": None if seconds is None else round(float(seconds), 3),
    }
    _check_model(made, f"record(model={model!r})")
    return made


def _interval(value: Any) -> dict[str, float | None]:
    if hasattr(value, "low"):
        value = value.value, value.low, value.high
    elif not isinstance(value, tuple):
        value = value, None, None
    ends = zip(("value", "low", "high"), value, strict=True)
    return {end: None if number is None else float(number) for end, number in ends}


def _fields(value: Any, fields: Mapping[str, type | tuple[type, ...]], place: str) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{place}: expected an object with {sorted(fields)}, got {value!r}")
    for name, kind in fields.items():
        if name not in value:
            raise ValueError(f"{place}: field {name!r} is missing; run the chapter again")
        if not isinstance(value[name], kind) or isinstance(value[name], bool):
            raise ValueError(f"{place}: field {name!r} is {value[name]!r}, of the wrong type")


def _check_model(model: Any, place: str) -> None:
    _fields(
        model,
        {
            "model": str,
            "recipe": str,
            "protocol": str,
            "metrics": dict,
            "seconds": (int, float, type(None)),
        },
        place,
    )
    if model["recipe"] not in RECIPES:
        raise ValueError(f"{place}: recipe is {model['recipe']!r}, choose one of {RECIPES}")
    if model["protocol"] not in PROTOCOLS:
        raise ValueError(f"{place}: protocol is {model['protocol']!r}, choose one of {PROTOCOLS}")
    if not model["metrics"]:
        raise ValueError(f"{place}: metrics are empty; give at least one")
    for name, interval in model["metrics"].items():
        _fields(
            interval,
            {
                "value": (int, float),
                "low": (int, float, type(None)),
                "high": (int, float, type(None)),
            },
            f"{place}: metric {name!r}",
        )
        numbers = [v for v in (interval[k] for k in ("value", "low", "high")) if v is not None]
        if not all(math.isfinite(v) for v in numbers):
            raise ValueError(f"{place}: metric {name!r} is {interval}; it must be finite")


def write(record: Mapping[str, Any], path: Path) -> Path:
    """Check a record and write it as JSON in one step: the old file or the new one, never half.

    Args:
        record: see `check`.
        path: the file to write; its folder is made when missing.

    Returns:
        `path`.

    Raises:
        ValueError: the record does not fit the schema; nothing is written.
        OSError: the folder cannot be written; an older file stays as it was.
    """
    text = json.dumps(check(record, str(path.name)), indent=2, sort_keys=False, ensure_ascii=False)
    return write_text(text + "\n", path)


def read(path: Path) -> dict[str, Any]:
    """Read one results file and check it.

    Raises:
        FileNotFoundError: there is none; the message says which chapter writes it.
        ValueError: the file is not JSON or does not fit the schema.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; `make chapter NAME={path.stem}` writes it")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is not JSON ({error}); delete it and run the chapter again"
        ) from None
    return check(record, path.name)


def read_all(directory: Path | None = None) -> dict[str, dict[str, Any]]:
    """Read the results of all chapters that have any, sorted by the chapters' names.

    Args:
        directory: where to look. When omitted: `results/` of the repository, and over it what
            has run since, in `folder()`; with a table of one's own that folder alone.

    Raises:
        ValueError: a file is not JSON or does not fit the schema.
    """
    root = None if os.environ.get("RECTUTOR_DATA") else checkout()
    places = [directory] if directory else [*([root / "results"] if root else []), folder()]
    paths = {path.stem: path for place in places for path in place.glob("*.json")}
    return {name: read(paths[name]) for name in sorted(paths)}
