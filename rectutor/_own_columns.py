"""What the columns of anyone's table hold, out of their text: ids, ratings and times.

Nothing is guessed that the row would not bear out: what is implausible is refused with its row,
and each function returns beside the values what it took them for, in words.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt
import pandas as pd

#: Numbers of seconds that are times of interactions: from March 1973 to the year 2100.
_EARLIEST, _LATEST = 10**8, 4_102_444_800
_UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
#: A counter ends below; a date such as 20200101 is above.
_MOST_COUNTED = 10**7
_FIRST_YEAR, _LAST_YEAR = 1901, 2100

#: A rating beyond is a mistake: of float32 it would also be more than all digits.
_MOST_STARS = 1e6
#: Scales that ratings are given on: lowest, highest, step.
_SCALES = ((1, 5, 1), (0.5, 5, 0.5), (0, 1, 1), (0, 5, 0.5), (1, 10, 1), (0, 10, 0.5))

_DATES = {
    "day first": ("%d.%m.%Y", "%d/%m/%Y", "%d-%m-%Y"),
    "month first": ("%m/%d/%Y", "%m-%d-%Y"),
    "year first": ("%Y/%m/%d", "%Y.%m.%d"),
}
#: Dates in digits alone, by their form: an example.
_DIGITS = {"%Y%m%d": "20200131", "%Y%m%d%H%M": "202001311830", "%Y%m%d%H%M%S": "20200131183000"}
#: How tables write what is missing.
_MISSING = ("NA", "N/A", "NaN", "nan", "NULL", "null", "None", "\\N")
_CLOCKS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")


def ids(column: pd.Series[str]) -> tuple[pd.Series, str]:
    """Ids as int64 where all are whole numbers written alike, else as the text that they are.

    So `012` and `12` are two ids. Spaces around an id are no part of it. `NA`, `NULL` and the like
    are missing where all others are whole numbers; among ids of text the words name them.

    Args:
        column: `(n,)` text.

    Returns:
        `(n,)` ids, and words for what they are.

    Raises:
        ValueError: an id is missing.
    """
    text = column.str.strip()
    whole = text.str.fullmatch(r"0|-?[1-9][0-9]{0,17}").to_numpy(bool)
    named = text.isin(_MISSING).to_numpy(bool)
    missing = (text == "").to_numpy(bool)
    if whole.any() and (whole | named | missing).all():
        missing = missing | named
    _refuse(column, missing, "is missing; drop or fill these rows")
    if whole.all():
        return text.astype(np.int64), "whole numbers"
    if named.any():
        first = text.iloc[int(named.argmax())]
        return text, f"text, {first!r} among them: {named.sum():,} rows are read as of such an id"
    return text, "text"


def ratings(column: pd.Series[str]) -> tuple[np.ndarray, tuple[float, float]]:
    """Ratings, and the lowest and the highest rating that can be given.

    Args:
        column: `(n,)` text: numbers (also with a decimal comma), or true and false.

    Returns:
        `(n,)` float64, and the scale: the narrowest of those in use (1 to 5, half stars, likes
        of 0 and 1, 0 to 5, 1 to 10, 0 to 10) that has all of them, else from the lowest to the
        highest of the table.

    Raises:
        ValueError: one is no number, or beyond a million.
    """
    text = column.str.strip().str.lower().replace({"true": "1", "false": "0"})
    text = text.str.replace(r"^(-?\d+),(\d{1,2})$", r"\1.\2", regex=True)  # a decimal comma
    values = pd.to_numeric(text, errors="coerce").to_numpy(np.float64)
    _refuse(column, np.isnan(values), "is no number; drop or mend these rows")
    _refuse(column, np.abs(values) > _MOST_STARS, "is no plausible rating; mend these rows")
    low, high = float(values.min()), float(values.max())
    for least, most, step in _SCALES:
        if least <= low and high <= most and not (values % step).any():
            return values, (float(least), float(most))
    return values, (low, high)


def times(column: pd.Series[str]) -> tuple[np.ndarray, str]:
    """Times in seconds since 1970, from numbers or dates.

    Numbers are seconds, milliseconds, microseconds or nanoseconds since 1970, which their size
    tells; dates such as 20200131; or a counter (whole numbers below ten million). Dates in text
    are ISO 8601, or day, month and year in another order where all rows agree on one.

    Args:
        column: `(n,)` text.

    Returns:
        `(n,)` float64 seconds with their fractions, UTC where the text names a zone; and words
        for what they were.

    Raises:
        ValueError: one is missing, no time, or implausible, or the order of day and month cannot
            be told.
    """
    text = column.str.strip()
    _refuse(column, (text == "").to_numpy(), "is missing; drop or fill these rows")
    numbers = pd.to_numeric(text, errors="coerce").to_numpy(np.float64)
    if np.isnan(numbers).mean() > 0.5:
        return _dates(column, text)
    _refuse(column, np.isnan(numbers), "is no number as the others are; mend these rows")
    if (numbers >= 0).all() and (numbers < _MOST_COUNTED).all() and not (numbers % 1).any():
        return numbers, "a counter, not a date"
    for form, example in _DIGITS.items():
        if text.str.fullmatch(f"[12][0-9]{{{len(example) - 1}}}").mean() <= 0.5:
            continue
        read = pd.to_datetime(text, format=form, errors="coerce")
        off = _off_calendar(read)
        # milliseconds seldom have a month, an hour and a minute that exist
        if len(example) == 8 or off.mean() < 0.1:
            _refuse(column, off, f"is no date as {example}; mend these rows")
            return _seconds(read), f"dates as {example}"
    middle = float(np.median(np.abs(numbers)))
    unit = next((u for u, n in _UNITS.items() if _EARLIEST * n <= middle <= _LATEST * n), "")
    per_second = _UNITS.get(unit, 1)
    outside = ~((numbers >= _EARLIEST * per_second) & (numbers <= _LATEST * per_second))
    _refuse(
        column,
        outside,
        f"is no plausible time in {unit or 'seconds'} since 1970 (from 1973 to 2100 is); mend "
        "these rows",
    )
    return numbers / per_second, f"{unit} since 1970"


def _dates(column: pd.Series[str], text: pd.Series[str]) -> tuple[np.ndarray, str]:
    text = text.where(text.str.match(r"[+-]?\d"))  # pandas would also read "today"
    text = text.str.replace(r"\s*(UTC|GMT)$", "", regex=True)  # as all that names no zone
    found = pd.to_datetime(text, format="ISO8601", errors="coerce", utc=True)
    if not found.isna().all():
        _refuse(column, _off_calendar(found), _no_date("as 2020-01-31"))
        return _seconds(found), "dates"
    readings: dict[str, pd.Series] = {}
    for order, forms in _DATES.items():
        for form, clock in product(forms, _CLOCKS):
            if pd.to_datetime(text.iloc[:1], format=form + clock, errors="coerce").isna().all():
                continue
            read = pd.to_datetime(text, format=form + clock, errors="coerce")
            if order not in readings or read.isna().sum() < readings[order].isna().sum():
                readings[order] = read
    whole = {order: each for order, each in readings.items() if not each.isna().any()}
    if {"day first", "month first"} <= whole.keys():
        read = whole["day first"]
        if (read.dt.day == read.dt.month).all():
            return _seconds(read), "dates"
        row = int((read.dt.day != read.dt.month).to_numpy().argmax())
        raise ValueError(
            f"column {column.name!r}: the day or the month may come first in {text.iloc[row]!r} "
            "and in all rows; write dates as 2020-01-31"
        )
    if not readings:
        raise ValueError(
            f"column {column.name!r}: {column.iloc[0]!r} in row 1 is no time that is known; write "
            "2020-01-31, 2020-01-31 18:30:00 or seconds since 1970"
        )
    order = min(readings, key=lambda each: int(readings[each].isna().sum()))
    read = readings[order]
    _refuse(column, _off_calendar(read), _no_date(f"as the others are, {order}"))
    return _seconds(read), f"dates, {order}"


def _no_date(example: str) -> str:
    return f"is no date {example}, from {_FIRST_YEAR} to {_LAST_YEAR}; mend these rows"


def _off_calendar(times: pd.Series) -> npt.NDArray[np.bool_]:
    years = times.dt.year
    wrong: npt.NDArray[np.bool_] = ~years.between(_FIRST_YEAR, _LAST_YEAR).to_numpy(bool)
    return wrong


def _seconds(times: pd.Series) -> np.ndarray:
    naive = times.dt.tz_convert(None) if times.dt.tz is not None else times
    exact: np.ndarray = naive.to_numpy().astype("datetime64[us]").astype(np.int64) / 10**6
    return exact


def _refuse(column: pd.Series[str], wrong: npt.NDArray[np.bool_], words: str) -> None:
    """Raise a ValueError that names the first of the rows that are wrong, if any are."""
    rows = np.flatnonzero(wrong)
    if len(rows):
        shown = ", ".join(f"{column.iloc[k]!r} in row {k + 1}" for k in rows[:3].tolist())
        more = f" and {len(rows) - 3:,} more" if len(rows) > 3 else ""
        raise ValueError(
            f"column {column.name!r}: {shown}{more} {words} (row 1 is below the names; blank lines "
            "do not count)"
        )
