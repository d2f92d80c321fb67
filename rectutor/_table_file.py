"""From a file of anyone's to a frame of text: gzip, encodings, separators, Parquet."""

from __future__ import annotations

import csv
import gzip
import io
import warnings
import zlib
from pathlib import Path
from typing import Any

import pandas as pd

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_AFTER = [name.encode() for name in _SEPARATORS]
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def read(path: Path) -> tuple[pd.DataFrame, str]:
    """Read a CSV or a Parquet file.

    What it is, is seen from what is in it, not from its name. Text without a byte-order mark is
    UTF-8, or if that is impossible Windows-1252, or if that is impossible Latin-1.

    Args:
        path: the file.

    Returns:
        A frame of strings, one row an interaction, in which `""` is what is missing; and in words
        how the file was read.

    Raises:
        ValueError: it is no table that can be read; the message says what to do.
    """
    content = path.read_bytes()
    words = ""
    if content.startswith(b"\x1f\x8b"):
        try:
            content, words = gzip.decompress(content), "gzip, "
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"its gzip compression is damaged ({error}); copy it anew") from None
    if content.startswith(b"PAR1") and content[4:5] not in _AFTER:  # no name of a column
        return _parquet(content), words + "Parquet"
    if content.startswith((b"PK\3\4", b"PK\5\6")):
        raise ValueError("it is a zip archive or a spreadsheet; unpack it, or save it as CSV")
    text, encoding = _decode(content)
    first = next((line for line in io.StringIO(text) if line.strip()), "")
    separator = max(_SEPARATORS, key=first.count)
    frame, words = _csv(text, separator), f"{words}{_SEPARATORS[separator]}, {encoding}"
    if '"' in text:
        over = frame.apply(lambda column: column.str.contains("\n", regex=False)).any(axis=1)
        if over.any():
            words += f", {over.sum():,} rows with a field of several lines, in quotes"
    return frame, words


def _decode(content: bytes) -> tuple[str, str]:
    """The text, and the name of its encoding."""
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            try:
                return content.decode(encoding), encoding.upper().replace("-SIG", "")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"its mark says {encoding}, but {error.reason} at byte {error.start}; save it "
                    "as UTF-8"
                ) from None
    if b"\0" in content[:4096]:
        raise ValueError(
            "it holds zero bytes and is no text that can be told; save it as UTF-8 (UTF-16 needs "
            "a byte-order mark)"
        )
    for encoding, words in (
        ("utf-8", "UTF-8"),
        ("cp1252", "not UTF-8, so taken for Latin-1 as Windows writes it"),
    ):
        try:
            return content.decode(encoding), words
        except UnicodeError:
            continue
    return content.decode("latin-1"), "not UTF-8, so taken for Latin-1"


def _csv(text: str, separator: str) -> pd.DataFrame:
    if '"' in text:
        _check_quotes(text, separator)
    how: dict[str, Any] = {"sep": separator, "dtype": str, "skipinitialspace": True}
    how |= {"keep_default_na": False, "index_col": False}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
            frame = pd.read_csv(io.StringIO(text), **how)
            names = pd.read_csv(io.StringIO(text), **how, header=None, nrows=1).iloc[0]
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise ValueError(
            f"its lines have not all the same number of fields ({error}); put quotes around "
            "fields that hold the separator"
        ) from None
    except pd.errors.EmptyDataError:
        raise ValueError("it is empty; give a line of names and a line an interaction") from None
    # pandas gives a second column of one name another; a name that is empty keeps pandas' own
    given = names.fillna("").str.strip()
    frame.columns = given.where(given != "", pd.Series(frame.columns)).tolist()
    filled: pd.DataFrame = frame.fillna("")  # fields that a short line lacks
    return filled


def _check_quotes(text: str, separator: str) -> None:
    """Refuse a quote that opens a field and does not end it: what follows would be swallowed."""
    lines = io.StringIO(text, newline="")  # a line may also end with "\r" alone
    rows = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)
    line, limit = 0, csv.field_size_limit(len(text))
    try:
        for _ in rows:
            line = rows.line_num
    except csv.Error as error:
        raise ValueError(
            f"a quote opens a field in or after line {line + 1} and does not end it ({error}, line "
            f"{rows.line_num}); write a quote inside a field twice, in quotes, or drop it"
        ) from None
    finally:
        csv.field_size_limit(limit)


def _parquet(content: bytes) -> pd.DataFrame:
    try:
        frame = pd.read_parquet(io.BytesIO(content))
    except ImportError:
        raise ValueError("Parquet needs pyarrow: pip install pyarrow, or save it as CSV") from None
    except (OSError, ValueError) as error:
        if "uplicate column" in str(error) or "Multiple matches" in str(error):
            said = str(error).partition("\n")[0]
            raise ValueError(f"two of its columns have one name ({said}); rename one") from None
        raise ValueError(f"it is a damaged Parquet file ({error}); write it anew") from None
    twice = [name for name in frame.index.names if name in frame.columns]
    if twice:
        raise ValueError(f"its index and a column are both called {twice[0]!r}; rename one")
    frame = frame.reset_index(drop=isinstance(frame.index, pd.RangeIndex))
    return pd.DataFrame({str(name): _as_text(frame[name]) for name in frame.columns})


def _as_text(column: pd.Series) -> pd.Series:
    missing = column.isna()
    if pd.api.types.is_float_dtype(column.dtype):
        present = column[~missing]
        if (present % 1 == 0).all() and (present.abs() < 2**53).all():
            column = column.astype("Float64").astype("Int64")  # integers beside missing values
    return column.astype(str).mask(missing, "")
