"""Preparation beyond memory: windows and held-out movies from a log of many interactions.

usage: python -m benchmarks.scaling [MILLIONS ...]       1, 10 and 100 when none is given
       python -m benchmarks.scaling 1000                 the billion: an hour, and 40 GB of disk

Compares DuckDB with the SQL of the chapter `scaling`, the same job in Polars, and pandas with the
package's own functions. The log is made up in pieces and in the order of time, as a service would
write it. Every row runs in a process of its own and is stored in `results/scaling.json` as soon as
it is measured; what is stored is not measured again, so a run that was stopped goes on. A copy
travels with the package, for the chapter. Polars is measured where it is installed.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import resource
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import ROOT, finish, in_child, machine, store_rows

RESULTS = Path(__file__).parent / "results" / "scaling.json"
INCLUDED = ROOT / "rectutor" / "included" / "scaling.json"
MILLION = 1_000_000
LENGTH = 50  # positions a window
PIECE = 5 * MILLION  # interactions that are made up at once
PART = 5 * MILLION  # interactions in a part of the users, about
A_USER = 100  # interactions, on average
MOVIES = 100_000
MEMORY = "1GB"  # DuckDB's own limit; the process needs some more
ENGINES = ("duckdb", "polars", "pandas")
#: Millions of interactions from which on an engine is left out.
TOO_MANY = {"duckdb": 10_000, "polars": 1_000, "pandas": 1_000}
#: Bytes of address space an engine may take: what does not fit there is told as not fitting.
LIMITS = {"pandas": 14 * 2**30}
PATIENCE = 8 * 3600  # seconds for one row


def piece(rows: int, first: int, seed: int = 1) -> dict[str, np.ndarray]:
    """`PIECE` rows of a log of `rows`: skewed users and movies, three events a second."""
    users, count = rows // A_USER, min(PIECE, rows - first)
    rng = np.random.default_rng([seed, first])
    event = np.arange(first, first + count)
    active = (users * rng.random(count) ** 1.5).astype(np.int64)
    return {
        "user_id": active * 7_919 % users + 1,  # a busy user's id says nothing
        "movie_id": (MOVIES * rng.random(count) ** 3).astype(np.int32) + 1,
        "timestamp": 1_600_000_000 + event // 3,
        "event": event,
    }


def make_log(rows: int, folder: Path) -> float:
    """Write the log as Parquet, what is missing of it; the seconds it took."""
    import duckdb
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    for number, first in enumerate(range(0, rows, PIECE)):
        file = folder / f"{number:05d}.parquet"
        if not file.is_file():
            half = file.with_suffix(".half")
            duckdb.from_df(pd.DataFrame(piece(rows, first))).write_parquet(str(half))
            half.rename(file)
    return time.perf_counter() - start


def chapter_functions() -> dict[str, Any]:
    """The SQL and the functions of the chapter's preparation, without what else it imports."""
    import duckdb

    tree = ast.parse((ROOT / "notebooks" / "scaling.py").read_text(encoding="utf-8"))

    def wanted(node: ast.stmt) -> bool:
        if isinstance(node, ast.Assign):
            return ast.unparse(node.targets[0]).endswith("_SQL")
        return isinstance(node, ast.FunctionDef) and node.name in ("prepare", "read_windows")

    tree.body = [node for node in tree.body if wanted(node)]
    space: dict[str, Any] = {"duckdb": duckdb, "Path": Path, "np": np}
    exec(compile(tree, "scaling", "exec"), space)
    return space


def by_duckdb(log: Path, folder: Path, rows: int) -> None:
    """The chapter's own way."""
    parts = max(rows // PART, 1)
    prepare = chapter_functions()["prepare"]
    prepare(log / "*.parquet", folder, rows // A_USER, parts, LENGTH, MEMORY)


def by_polars(log: Path, folder: Path, rows: int) -> None:
    """The same steps in Polars: parts on disk, then a part at a time."""
    import polars as pl

    width = rows // A_USER // max(rows // PART, 1) + 1
    folder.mkdir(parents=True)
    part = (pl.col("user_id") // width).alias("part")
    scheme = pl.PartitionBy(folder / "parts", key=part)
    pl.scan_parquet(log / "*.parquet").sink_parquet(scheme, mkdir=True, compression="snappy")
    num = pl.len().over("user_id")
    age = pl.int_range(pl.len()).reverse().over("user_id")
    held_out = pl.when(num > 2).then(2).otherwise(0)
    back = ((pl.col("age") - pl.col("held_out") - 1) // LENGTH).alias("back")
    empty = pl.lit(0, pl.Int32).repeat_by(LENGTH - pl.len())
    for place in sorted((folder / "parts").iterdir(), key=lambda p: int(p.name.split("=")[1])):
        number = int(place.name.split("=")[1])
        aged = (
            pl.scan_parquet(place / "*.parquet", hive_partitioning=False)
            .sort("user_id", "timestamp", "event")
            .with_columns(
                pl.col("movie_id").shift(-1).over("user_id").alias("target"),
                age.alias("age"),
                held_out.alias("held_out"),
            )
            .collect()
        )
        windows = (
            aged.lazy()
            .filter(pl.col("age") > pl.col("held_out"))
            .group_by("user_id", back, maintain_order=True)
            .agg(
                empty.first().alias("padding"),
                pl.col("movie_id").alias("inputs"),
                pl.col("target").alias("targets"),
            )
            .select(
                "user_id",
                pl.concat_list("padding", "inputs").alias("inputs"),
                pl.concat_list("padding", "targets").alias("targets"),
            )
        )
        file = folder / f"windows-{number:05d}.parquet"
        windows.sink_parquet(file, compression="snappy")  # as DuckDB does
        kept = aged.lazy().filter(pl.col("age") < pl.col("held_out"))
        kept = kept.select("user_id", "movie_id", (pl.col("age") == 0).alias("is_test"))
        file = folder / f"held_out-{number:05d}.parquet"
        kept.sink_parquet(file, compression="snappy")


def by_pandas(log: Path, folder: Path, rows: int) -> None:
    """The whole table in memory, and the package's functions."""
    import pandas as pd

    from rectutor.sequences import training_windows
    from rectutor.splits import leave_one_out

    table = pd.concat([pd.read_parquet(file) for file in sorted(log.glob("*.parquet"))])
    split = leave_one_out(table.drop(columns="event"), num_users=rows // A_USER, num_movies=MOVIES)
    folder.mkdir(parents=True)
    inputs, targets = training_windows(split.histories(before="validation"), LENGTH)
    np.savez(folder / "windows.npz", inputs=inputs, targets=targets)
    for name in ("validation", "test"):
        getattr(split, name).to_parquet(folder / f"{name}.parquet")


WAYS = {"duckdb": by_duckdb, "polars": by_polars, "pandas": by_pandas}


def child(engine: str, rows: int, log: Path, folder: Path) -> None:
    """One row in a process of its own."""
    if limit := LIMITS.get(engine):
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    start = time.perf_counter()
    WAYS[engine](log, folder, rows)
    finish({"seconds": time.perf_counter() - start})


def size_of(folder: Path) -> float:
    """GB of the files below a folder."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return round(sum(file.stat().st_size for file in files) / 1e9, 3)


def measured(engine: str, rows: int, log: Path, folder: Path) -> dict[str, Any]:
    """One row, measured in a child."""
    shutil.rmtree(folder, ignore_errors=True)
    row: dict[str, Any] = {"rows": rows, "engine": engine}
    try:
        arguments = ("--child", engine, rows, log, folder)
        found, peak = in_child("benchmarks.scaling", *arguments, timeout=PATIENCE)
    except RuntimeError as error:
        if "emory" not in str(error):
            raise
        row |= {"seconds": None, "peak_gb": None, "log_gb": size_of(log), "written_gb": None}
        return row | when_and_where()
    row |= {"seconds": round(found["seconds"], 1), "peak_gb": round(peak * 2**20 / 1e9, 2)}
    row |= {"log_gb": size_of(log), "written_gb": size_of(folder)}
    return row | when_and_where()


def when_and_where() -> dict[str, str]:
    """The day, and what a row was measured on in words."""
    here = machine()
    cores = "1 core" if here["cores"] == 1 else f"{here['cores']} cores"
    where = f"{here['cpu']}, {cores}, {here['memory_gib']} GiB, {here['system']}"
    return {"date": datetime.date.today().isoformat(), "machine": where}


def stored() -> list[dict[str, Any]]:
    """The rows of earlier runs."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []


def store(row: dict[str, Any]) -> None:
    """Add one row to those of earlier runs."""
    rows = [*stored(), row]
    rows.sort(key=lambda each: (each["rows"], ENGINES.index(each["engine"])))
    store_rows(rows, RESULTS, INCLUDED)


def main() -> int:
    """Measure what is asked for and not stored yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("millions", nargs="*", type=int, default=[1, 10, 100])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--folder", type=Path, default=ROOT / "_build" / "scaling")
    arguments = parser.parse_args()
    known = {(row["rows"], row["engine"]) for row in stored()}
    for millions in arguments.millions:
        rows, log = millions * MILLION, arguments.folder / f"log-{millions}"
        engines = [e for e in arguments.engines if (rows, e) not in known]
        engines = [e for e in engines if millions < TOO_MANY[e] and find_spec(e)]
        if engines:
            print(f"{rows:,} interactions: log made in {make_log(rows, log):.0f} s", flush=True)
        for engine in engines:
            row = measured(engine, rows, log, arguments.folder / f"{engine}-{millions}")
            store(row)
            print(row, flush=True)
            shutil.rmtree(arguments.folder / f"{engine}-{millions}", ignore_errors=True)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]))
    else:
        sys.exit(main())
