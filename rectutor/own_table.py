"""A table of one's own in the place of a chapter's data set (`RECTUTOR_DATA`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rectutor.data import Dataset


def read(file: str) -> Dataset:
    """Read a CSV file with the columns `user` and `item` and any of the optional ones.

    Args:
        file: its path, the value of `RECTUTOR_DATA`. Optional columns: `rating`, `timestamp`
            (seconds) and `title`.

    Raises:
        ValueError: there is no such file, or a column is missing or holds what it cannot.
    """
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
