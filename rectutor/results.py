"""What a chapter measured, stored as JSON: written atomically, checked against one schema."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rectutor.environment import write_text

#: Version of the layout below; a file of another version is refused.
SCHEMA = 1

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


def folder() -> Path:
    """Where results are kept: `RECTUTOR_RESULTS`, or `results/` beside the notebooks.

    A chapter that runs outside the repository (in Colab, say) keeps them in `results/` of the
    working directory.
    """
    override = os.environ.get("RECTUTOR_RESULTS")
    if override:
        return Path(override)
    here = Path.cwd()
    for candidate in (here, here.parent, Path(__file__).resolve().parent.parent):
        if (candidate / "_toc.yml").is_file():
            return candidate / "results"
    return here / "results"


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
        _model(model, f"{place}: models[{index}]")
    for key, value in record["facts"].items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{place}: fact {key!r} is {value}; store a finite number")
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(
                f"{place}: fact {key!r} is {value!r}; store an int, a float or a short string"
            )
    return dict(record)


def _fields(value: Any, fields: Mapping[str, type | tuple[type, ...]], place: str) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{place}: expected an object with {sorted(fields)}, got {value!r}")
    for name, kind in fields.items():
        if name not in value:
            raise ValueError(f"{place}: field {name!r} is missing; run the chapter again")
        if not isinstance(value[name], kind) or isinstance(value[name], bool):
            raise ValueError(f"{place}: field {name!r} is {value[name]!r}, of the wrong type")


def _model(model: Any, place: str) -> None:
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


def read_all(chapters: Iterable[str], directory: Path | None = None) -> dict[str, dict[str, Any]]:
    """Read the results of several chapters; those that have not run yet are left out.

    Args:
        chapters: chapter names, in the order wanted.
        directory: where to look; `folder()` when omitted.
    """
    directory = folder() if directory is None else directory
    paths = {name: directory / f"{name}.json" for name in chapters}
    return {name: read(path) for name, path in paths.items() if path.is_file()}
