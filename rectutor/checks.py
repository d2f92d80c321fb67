"""What an integer, a share, an id and a time are: checked in one place, for every function.

Each check returns the value in the one form the package works with, or raises an error that names
the value, the place and the remedy: `TypeError` for a value of the wrong kind, `ValueError` for
one of the right kind that cannot be.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

#: The highest id and count: ids are int32.
MAX_ID = 2**31 - 2


def integer(value: Any, name: str, least: int, most: int = MAX_ID) -> int:
    """`value` as a Python int from `least` to `most`; `name` is what an error calls it.

    Raises:
        TypeError: it is no integer (True and False are none).
        ValueError: it is out of range.

    Example:
        >>> integer(np.int64(3), "evaluate: k", 1)
        3
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}; give a whole number")
    if not least <= value <= most:
        limit = f"at least {least}" if value < least else f"at most {most}"
        raise ValueError(f"{name} is {value}; it must be {limit}")
    return int(value)


def number(value: Any, name: str, low: float, high: float = np.inf) -> float:
    """`value` as a float strictly between `low` and `high`.

    Raises:
        TypeError: it is no number (True and False are none).
        ValueError: it is NaN or out of range.

    Example:
        >>> number(0.2, "random_split: test_fraction", 0, 1)
        0.2
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{name} is {value!r}; give a number")
    if not low < value < high:
        bounds = f"above {low:g}" if high == np.inf else f"between {low:g} and {high:g}"
        bounds = "finite" if low == -np.inf else bounds
        raise ValueError(f"{name} is {value}; it must be {bounds}")
    return float(value)


def choice(value: Any, name: str, choices: Iterable[str]) -> str:
    """`value`, which must be one of `choices`.

    Raises:
        ValueError: it is something else.

    Example:
        >>> choice("test", "evaluate: on", ("validation", "test"))
        'test'
    """
    names = list(choices)
    if value not in names:
        raise ValueError(f"{name} is {value!r}; choose from {names}")
    return str(value)


def integers(values: Any, name: str, least: int, most: int = MAX_ID) -> np.ndarray:
    """`values`, a flat array of whole numbers or one of them, as int64 from `least` to `most`.

    Raises:
        TypeError: they are no integers, or not flat.
        ValueError: one is out of range.

    Example:
        >>> integers([7, 8], "queries_for: user_ids", 1)
        array([7, 8])
    """
    array = np.atleast_1d(np.asarray(values))
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise TypeError(
            f"{name} has shape {np.shape(values)} and dtype {array.dtype}; give a flat array of "
            "whole numbers, as [42]"
        )
    outside = array[(array < least) | (array > most)] if array.size else array
    if outside.size:
        raise ValueError(f"{name} holds {outside[0]}; each must be from {least} to {most}")
    return array.astype(np.int64)


def frame(value: Any, place: str) -> pd.DataFrame:
    """`value`, which must be a DataFrame.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, pd.DataFrame):
        raise TypeError(
            f"{place} got a {type(value).__name__}; give a pandas DataFrame, as the ratings of "
            "rectutor.data.load_movielens()"
        )
    return value


def column(table: pd.DataFrame, name: str, place: str) -> pd.Series[Any]:
    """One column without missing values.

    Raises:
        ValueError: there is no such column, or a value is missing.
    """
    if name not in table.columns:
        raise ValueError(
            f"{place}: no column {name!r} among {[str(each) for each in table.columns]}; rename "
            "yours, or use rectutor.data.from_dataframe"
        )
    values = table[name]
    missing = values.isna().to_numpy()
    if missing.any():
        raise ValueError(
            f"{place}: {name} is missing in row {int(missing.argmax())} "
            f"({int(missing.sum())} in all); fill it in or drop the rows"
        )
    return values


def ids(table: pd.DataFrame, name: str, place: str) -> np.ndarray:
    """A column of ids as int64, each from 1 to `MAX_ID`; 0 is padding.

    Raises:
        TypeError: the column holds something else than integers.
        ValueError: there is no such column, a value is missing or out of range.
    """
    values = column(table, name, place)
    if not pd.api.types.is_integer_dtype(values.dtype):
        example = f", as in {values.iloc[0]!r}" if len(values) else ""
        raise TypeError(
            f"{place}: column {name} is {values.dtype}{example}; ids are integers from 1: number "
            "them with rectutor.data.from_dataframe"
        )
    numbers = values.to_numpy(dtype=np.int64)
    wrong = (numbers < 1) | (numbers > MAX_ID)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{place}: {name} {numbers[row]} in row {row} is no id; ids run from 1 (0 is padding) "
            f"to {MAX_ID:,}: number them with rectutor.data.from_dataframe"
        )
    return numbers


def times(table: pd.DataFrame, place: str, name: str = "timestamp") -> np.ndarray:
    """A column of times: finite numbers as they are, dates as int64 microseconds.

    Raises:
        TypeError: the column holds neither numbers nor dates.
        ValueError: there is no such column, or a value is missing or not finite.
    """
    values = column(table, name, place)
    if values.dtype.kind == "M":
        naive = values.dt.tz_convert(None) if getattr(values.dtype, "tz", None) else values
        return naive.to_numpy().astype("datetime64[us]").astype(np.int64)
    if values.dtype.kind not in "iuf":
        example = f", as in {values.iloc[0]!r}" if len(values) else ""
        raise TypeError(
            f"{place}: column {name} is {values.dtype}{example}; give seconds: "
            "rectutor.data.from_dataframe converts dates"
        )
    numbers = values.to_numpy()
    finite = np.isfinite(numbers)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ValueError(
            f"{place}: {name} {numbers[row]} in row {row} is no time; fill it in or drop the row"
        )
    return numbers
