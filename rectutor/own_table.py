"""A table of one's own in the place of a chapter's data set (`RECTUTOR_DATA`)."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from rectutor import _own_columns, _table_file, results
from rectutor.ratings import to_label, to_stars

if TYPE_CHECKING:
    from rectutor.data import Dataset

#: The names by which each column is known, in small letters without anything between them; where
#: a table has several for one role, the first of the list counts.
NAMES = {
    "user": "user userid uid customer customerid clientid member memberid visitor visitorid "
    "account accountid reader readerid listener reviewer reviewerid card cardid",
    "item": "item itemid iid movie movieid product productid sku asin book bookid isbn track "
    "trackid song songid artist artistid article articleid anime animeid game gameid business "
    "businessid parentasin",
    "rating": "rating ratings stars score overall userrating bookrating like liked likes",
    "timestamp": "timestamp ts time unixtime unixreviewtime datetime date day createdat reviewtime",
    "title": "title itemtitle movietitle booktitle producttitle itemname productname moviename",
}


def read(file: str) -> Dataset:
    """Read anyone's table, and say in a line or two what was taken for what.

    The file is CSV (with commas, semicolons, tabs or bars; plain or gzip; UTF-8, UTF-16 with its
    mark, else Latin-1) or Parquet, one row an interaction below a line of names. `NAMES` lists
    the names that are known, `userId` as well as `user_id`; `RECTUTOR_COLUMNS`, such as
    `user=card,item=signature`, decides otherwise, and `rating=` says that there is none.

    Ids are text unless all of a column are whole numbers written alike. Times are seconds to
    nanoseconds since 1970, a counter, or dates. Ratings that are all equal tell nothing apart,
    and count as no ratings. Rows keep their order, but those whose times differ by less than a
    second, which the data set does not keep, are put into the order of their times.

    Args:
        file: its path, the value of `RECTUTOR_DATA`.

    Returns:
        The `Dataset`, with the file's name and with the rating scale of its ratings.

    Raises:
        ValueError: there is no such file, it is no table, a column is missing, or a value cannot
            be what its column holds; the message names the file, and the rows.
    """
    try:
        path = Path(file).expanduser()
        is_file = path.is_file()
    except (OSError, RuntimeError):  # no such home, or no path at all
        is_file = False
    if not is_file:
        raise ValueError(
            f"RECTUTOR_DATA: {file!r} is no file; give the path of a CSV or Parquet table"
        )
    try:
        return _read(path)
    except OSError as error:
        raise ValueError(f"{path.name}: it cannot be read ({error.strerror}); mend that") from None
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def columns(names: list[str], wanted: str = "") -> dict[str, str]:
    """Which column plays which role.

    Args:
        names: the columns of a table.
        wanted: as `RECTUTOR_COLUMNS` has it, `role=column` between commas.

    Returns:
        Role (`"user"`, `"item"`, and where there are such columns `"rating"`, `"timestamp"`,
        `"title"`) to column.

    Raises:
        ValueError: there is no column for users or for items, two could be meant, or `wanted`
            names what is not there.

    Example:
        >>> columns(["userId", "Product ID", "stars"])
        {'user': 'userId', 'item': 'Product ID', 'rating': 'stars'}
    """
    chosen = _wanted(names, wanted)
    free = [name for name in names if name not in chosen.values()]
    for role, known in NAMES.items():
        if role in chosen:
            continue
        for alias in known.split():
            found = [name for name in free if _plain(name) == alias]
            if len(found) > 1:
                raise ValueError(
                    f"columns {found} may all be the {role}; say which: "
                    f'RECTUTOR_COLUMNS="{role}={found[0]}"'
                )
            if found:
                chosen[role] = found[0]
                free.remove(found[0])
                break
    lacking = [role for role in ("user", "item") if not chosen.get(role)]
    if lacking:
        example = ",".join(f"{role}=..." for role in lacking)
        raise ValueError(
            f"no column of {names} is known to be the {' or the '.join(lacking)}; say which is: "
            f'RECTUTOR_COLUMNS="{example}" (the first line of the file must be names)'
        )
    return {role: chosen[role] for role in NAMES if chosen.get(role)}


def num_repeats(ratings: pd.DataFrame) -> int:
    """How many rows are of a user and an item that an earlier row has already."""
    return int(ratings.duplicated(["user_id", "movie_id"]).sum())


def on_five_stars(data: Dataset) -> Dataset:
    """The same interactions with ratings from 1 to 5, for recipes that keep "2 stars and more".

    Ratings of another scale are stretched onto it: 0 and 1 become 1 and 5, and of half stars the
    same rows stay. Where there are no ratings all rows have 5, so that all of them stay.

    Args:
        data: any data set; one on the scale of 1 to 5 is returned as it is.
    """
    if not data.has_ratings:
        ratings = data.ratings.assign(rating=np.int8(5))
    elif data.rating_scale == (1, 5):
        return data
    else:
        labels = to_label(data.ratings["rating"], data.rating_scale)
        ratings = data.ratings.assign(rating=to_stars(labels))
    return replace(data, ratings=ratings, rating_scale=(1.0, 5.0))


def _wanted(names: list[str], wanted: str) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for part in filter(None, map(str.strip, wanted.split(","))):
        role, equals, name = (each.strip() for each in part.partition("="))
        place = f"RECTUTOR_COLUMNS={wanted!r}"
        if not equals or role not in NAMES or role in chosen:
            raise ValueError(
                f"{place}: {part!r} is not understood; write role=column between commas, each "
                f"role once: {', '.join(NAMES)}"
            )
        if name and (name not in names or name in chosen.values()):
            why = "twice" if name in names else f"and the columns are {names}"
            raise ValueError(
                f"{place} names {name!r} {why}; name one column for each role (rename a column "
                "that has a comma in its name)"
            )
        chosen[role] = name
    return chosen


def _plain(name: str) -> str:
    """`User_ID` and `user_id:token` as `userid`."""
    return re.sub(r"[\W_]", "", name.partition(":")[0]).casefold()


def _times(table: pd.DataFrame, role: dict[str, str], wanted: str) -> tuple[np.ndarray, str]:
    """The seconds of the column taken for the time, and what they are; refused where in doubt."""
    known, taken = NAMES["timestamp"].split(), role["timestamp"]
    others = [name for name in map(str, table) if _plain(name) in known]
    others = [name for name in others if name not in role.values()]
    if not others or "timestamp" in _wanted(list(table.columns), wanted):
        return _own_columns.times(table[taken])
    either = f'say which is the time, such as RECTUTOR_COLUMNS="timestamp={others[0]}"'
    try:
        found = _own_columns.times(table[taken])
    except ValueError as error:
        raise ValueError(f"{error}; or {either}") from None
    if found[1] == "a counter, not a date":
        raise ValueError(
            f"{taken!r} holds no dates, and {others} may be the time as well; {either}"
        )
    return found


def _read(path: Path) -> Dataset:
    from rectutor import data

    table, how = _table_file.read(path)
    if len(set(table.columns)) < len(table.columns):
        raise ValueError(f"two columns of {list(table.columns)} have one name; rename one")
    wanted = os.environ.get("RECTUTOR_COLUMNS", "")
    role = columns(list(table.columns), wanted)
    if table.empty:
        raise ValueError("it has names and no rows; give a row an interaction")
    frame, said = pd.DataFrame(index=table.index), []
    for each in ("user", "item"):
        frame[each], words = _own_columns.ids(table[role[each]])
        said.append(f"{each} from {role[each]!r} ({words})")
    scale = (1.0, 5.0)
    if "rating" in role:
        stars, scale = _own_columns.ratings(table[role["rating"]])
        words = f"from {scale[0]:g} to {scale[1]:g}"
        if (stars == stars[0]).all():
            words, scale = f"all {stars[0]:g}, so they count as no ratings", (1.0, 5.0)
        else:
            frame["rating"] = stars
        said.append(f"rating from {role['rating']!r} ({words})")
    if "timestamp" in role:
        seconds, words = _times(table, role, wanted)
        frame["timestamp"] = np.floor(seconds).astype(np.int64)
        if words != "a counter, not a date":
            days = pd.to_datetime([seconds.min(), seconds.max()], unit="s").strftime("%Y-%m-%d")
            words = f"{words}, {days[0]} to {days[1]}"
        said.append(f"time from {role['timestamp']!r} ({words})")
        if (seconds % 1).any():
            frame = frame.iloc[np.argsort(seconds, kind="stable")]
    if "title" in role:
        text = table[role["title"]].str.strip()
        frame["title"] = text.where(text != "", None)
        said.append(f"title from {role['title']!r}")
    optional = {name: name for name in ("rating", "timestamp", "title") if name in frame}
    loaded = data.from_dataframe(
        frame, user="user", item="item", name=results.own_name(path.name), **optional
    )
    left = [name for name in table.columns if name not in role.values()]
    print(f"{path.name} ({how}): {', '.join(said)}; not used: {', '.join(left) or 'nothing'}")
    repeats = num_repeats(loaded.ratings)
    if repeats:
        share = repeats / len(frame)
        print(f"{repeats:,} of {len(frame):,} rows ({share:.1%}) repeat a user and an item")
    return replace(loaded, rating_scale=scale)
