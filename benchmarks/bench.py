"""Measure the book beside its peers: `make bench`.

usage: python -m benchmarks.bench [--only GROUP ...] [--quick] [--no-store]

A whole run without a regression is stored as `benchmarks/results/YYYY-MM-DD.json` and becomes the
reference of the next one. Any other run (with options, with a group that failed, or with a ratio
that fell) leaves the reference alone and writes its figures to `_build/bench/`.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import report
from benchmarks.measure import GROUPS, RESULTS, ROOT, Row, machine, newest, store

MODULES = {
    "preparation": "preparation",
    "start-up": "startup",
    "throughput": "throughput",
    "time to quality": "time_to_quality",
}
ASIDE = ROOT / "_build" / "bench"

#: A ratio may fall by this share of its stored value.
TOLERANCE = 0.15
#: No group is measured again that would end after so many seconds.
LAST_REPEAT = 24 * 60


class Group(NamedTuple):
    """The rows of a group, the seconds they took, and whether it failed."""

    rows: list[Row]
    seconds: float
    failed: bool = False


def last_run(here: dict[str, Any], folder: Path = RESULTS) -> dict[str, Any] | None:
    """The newest stored run of a machine like this one."""
    return newest(report.RUNS, folder, here)


def regressions(rows: list[Row], stored: list[Row]) -> dict[str, str]:
    """The judged rows whose ratio fell by more than `TOLERANCE`: name to a sentence.

    Rows without a ratio, and rows that are in one of the runs only, are not judged.
    """
    before = {row.name: row for row in stored}
    return {
        row.name: f"{row.name}: the ratio fell from {report.number(old.ratio)} to "
        f"{report.number(row.ratio)}"
        for row in rows
        if (old := before.get(row.name))
        and row.judged
        and None not in (row.ratio, old.ratio)
        and row.ratio < (1 - TOLERANCE) * old.ratio
    }


def measure_group(group: str, quick: bool) -> list[Row]:
    """The rows of a group."""
    rows: list[Row] = importlib.import_module(f"benchmarks.{MODULES[group]}").measure(quick=quick)
    return rows


def measure_groups(groups: list[str], quick: bool, stored: list[Row]) -> dict[str, Group]:
    """Measure groups, and print the table of each.

    A group in which a ratio fell is measured once more at the end, for a machine has its moments,
    if the time allows it; the rows in which fewer fell then count.
    """
    began = time.perf_counter()
    groups_measured = {group: _measured(group, quick) for group in groups}
    by_length = sorted(groups_measured.items(), key=lambda item: item[1].seconds)
    for group, first in by_length:
        fallen = regressions(first.rows, stored)
        late = time.perf_counter() - began + first.seconds > LAST_REPEAT
        if not fallen or late:
            continue
        print(f"\n{group}: {len(fallen)} ratios fell, measuring the group again", flush=True)
        again = _measured(group, quick)
        if not again.failed and len(regressions(again.rows, stored)) < len(fallen):
            groups_measured[group] = Group(again.rows, first.seconds + again.seconds)
    return groups_measured


def _measured(group: str, quick: bool) -> Group:
    began = time.perf_counter()
    try:
        rows = measure_group(group, quick)
    except Exception:
        traceback.print_exc()
        return Group([], 0.0, failed=True)
    seconds = time.perf_counter() - began
    print(f"{report.text_tables(rows)}\n({seconds:.0f} s)", flush=True)
    return Group(rows, seconds)


def write(run: dict[str, Any], folder: Path) -> Path:
    """Write a run in one step, under its date."""
    return store(run, folder / f"{run['date']}.json")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 when every group ran and no ratio fell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=GROUPS, metavar="GROUP", default=GROUPS)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for the tests")
    parser.add_argument("--no-store", action="store_true", help="leave the stored run alone")
    chosen = parser.parse_args(arguments)

    here, started = machine(), time.perf_counter()
    last = None if chosen.quick else last_run(here)
    stored = [Row.from_dict(row) for row in last["rows"]] if last else []
    groups = measure_groups(
        [group for group in GROUPS if group in chosen.only], chosen.quick, stored
    )
    rows = [row for measured in groups.values() for row in measured.rows]
    failed = [group for group, measured in groups.items() if measured.failed]

    fallen = regressions(rows, stored)
    run = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": here,
        "seconds": round(time.perf_counter() - started, 1),
        "group_seconds": {group: round(one.seconds, 1) for group, one in groups.items()},
        "rows": [row.as_dict() for row in rows],
    }
    aimed = [row for row in rows if row.target]
    print(f"\n{sum(bool(row.met) for row in aimed)} of {len(aimed)} targets met", end="")
    print(f" in {run['seconds'] / 60:.1f} minutes")
    if last is None:
        print("no earlier run of such a machine to compare with")
    for sentence in fallen.values():
        print(f"error: {sentence} (since {last['date'] if last else ''})", file=sys.stderr)
    for group in failed:
        print(f"error: {group} did not run; its error is above", file=sys.stderr)

    partial = chosen.quick or chosen.no_store or set(chosen.only) != set(GROUPS)
    if fallen or failed or partial:
        file = write(run, ASIDE)
        print(f"figures in {file.relative_to(ROOT)}; the stored run is as it was")
    else:
        file = write(run, RESULTS)
        report.write()
        print(f"stored {file.relative_to(ROOT)} and wrote {report.PAGE.relative_to(ROOT)}")
    return 1 if fallen or failed else 0


if __name__ == "__main__":
    sys.exit(main())
