"""The benchmarks as text and as a page of the book, from what was stored.

usage: python -m benchmarks.report write   put the stored figures into book/benchmarks.md
       python -m benchmarks.report check   exit 1 if the page shows something else
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import pandas as pd
from tabulate import tabulate

from benchmarks.measure import GROUPS, ROOT, Row, newest

PAGE = ROOT / "book" / "benchmarks.md"

#: A dated run of `make bench`; those of other commands have a word before the date.
RUNS = "[0-9]*.json"

TITLES = {
    "preparation": "Preparation: ratings to training windows",
    "serving": "Serving: ten movies for one user, and for many",
    "start-up": "Start-up, and the whole book",
    "throughput": "Training throughput",
    "time to quality": "Time to quality",
}

EXPLANATIONS = {
    "preparation": """\
Tables of synthetic ratings, with as many users and movies as MovieLens has at that size, become
the windows the chapters train on. The reference does the same in plain Python, one row at a time,
as the documented recipes do ([C17](corrections.md)): both make the same windows, which is checked,
and negatives that no user has watched, which is checked too. Memory is what the process grows by
beyond the table, in multiples of the table.""",
    "serving": """\
Who is asked: "which ten movies, of those the user has not seen?" Vectors are 64 wide, movies and
users lie around 200 common tastes, and popular movies have longer vectors; a user has seen a
hundred. Brute force on JAX is one compiled call (product, mask, `top_k`); the reference is the
same in NumPy. The approximate index, FAISS's inverted file, looks only among the movies of the 16
nearest clusters; its *recall* is the share of the exact ten that it finds. We take FAISS because
it ranks by inner product, as our models do, builds an index of a million movies in seconds, and
installs as one wheel without a compiler.""",
    "start-up": """\
How long until something happens: a fresh process that imports the package, one that trains the
first step of a chapter's model (imports, data, building and compiling included), and the chapters
as `make book` last executed them.""",
    "throughput": """\
Steady state, after compiling; the seconds of the first call stand apart. A *position* is one
next-movie target of a window, a *pair* one user with one movie.""",
    "time to quality": """\
Wall seconds until the validation NDCG@10 first reaches 0.065 on `100k`: leave-one-out, all movies
compete, and seen movies are *not* left out, because the peer scores that way. RecBole runs in an
environment of its own (`make bench-peers`) and at most so long as the table below says; where that
was not enough, both are compared at the NDCG@10 it had reached as well. Note what helps our SASRec
here: watched movies take hardly any part in its loss (in the stored run through a learned bias, in
the [chapter](../notebooks/sasrec.ipynb) now not at all), and RecBole's model lets them compete.""",
}

INTRODUCTION = """\
# Benchmarks

This page sets the book beside what you would use instead: plain Python, NumPy, a hand-written loop,
another library. Ratios come first, because they mean something on your machine too; more is
better for us in every one of them. The absolute figures beside them are of the machine named
below. A figure is the median of its runs, with the lowest and the highest in brackets; warm-up and
compilation are apart. What was aimed at and not reached stays in the tables, with what limits it.

No figure here is typed in: `make bench` measures, stores a dated file in `benchmarks/results/`, and
writes this page. It fails where a ratio has fallen by more than 15 % since the last stored run on
the same kind of machine (not counting ratios to our own models on JAX and to RecBole's stored run).
`make bench-peers` measures the other library. How good the models are, over seeds and orders of
ties, is the study's matter (`make study`): see the [leaderboard](../notebooks/leaderboard.ipynb).
"""


def text_tables(rows: Iterable[Row]) -> str:
    """Rows as tables for a terminal, one a group, with the limits of unmet targets below."""
    parts = []
    for group, of_group in by_group(rows).items():
        parts += [
            f"\n{group}\n",
            tabulate(map(cells_of, of_group), headers="keys", disable_numparse=True),
        ]
        parts += [f"limits {row.case}: {row.limit}" for row in of_group if row.limit]
    return "\n".join(parts)


def markdown_table(rows: Iterable[Row]) -> str:
    """Rows as a Markdown table; columns that are empty for all of them are left out."""
    table = pd.DataFrame(map(cells_of, rows))
    return as_markdown(table.loc[:, (table != "").any()])


def as_markdown(table: pd.DataFrame) -> str:
    """A table of text as Markdown."""
    return tabulate(table, headers="keys", showindex=False, tablefmt="pipe", disable_numparse=True)


def cells_of(row: Row) -> dict[str, str]:
    """A row's cells, by the column's heading."""
    ours = with_unit(row.value, row.unit)
    if (row.low, row.high) != (row.value, row.value):
        ours = f"{ours} ({number(row.low)} to {number(row.high)})"
    reference = ""
    if row.reference is not None:
        reference = row.reference
        if row.reference_value is not None:
            reference = f"{with_unit(row.reference_value, row.unit)}, {row.reference}"
    return {
        "case": row.case,
        "ratio": "" if row.ratio is None else number(row.ratio),
        "ours": ours,
        "reference": reference,
        "target": row.target or "",
        "met": {None: "", True: "yes", False: "no"}[row.met],
        "first (s)": "" if row.first is None else number(row.first),
        "runs": str(row.runs),
        "peak (MiB)": "" if row.peak_mib is None else f"{row.peak_mib:,.0f}",
    }


def number(value: float) -> str:
    """Three digits that count: `0.0123`, `4.56`, `78.9`, `12,300`."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}"


def with_unit(value: float, unit: str) -> str:
    """A figure and its unit."""
    return f"{number(value)} {unit}".rstrip()


def by_group(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each group that has any, groups in their order."""
    rows = list(rows)
    groups = {group: [row for row in rows if row.group == group] for group in GROUPS}
    return {group: found for group, found in groups.items() if found}


def page(run: dict[str, Any], peers: dict[str, Any] | None) -> str:
    """The page of the book.

    Args:
        run: what `make bench` stored.
        peers: what `make bench-peers` stored, if it ever ran.
    """
    groups = by_group(map(Row.from_dict, run["rows"]))
    aimed = [row for of_group in groups.values() for row in of_group if row.target]
    met = sum(bool(row.met) for row in aimed)
    parts = [INTRODUCTION, described(run)]
    parts += [f"## Targets\n\n{met} of {len(aimed)} targets are met.\n"]
    if aimed:
        parts += [targets_table(aimed) + "\n"]
    for group, of_group in groups.items():
        parts += [f"## {TITLES[group]}\n\n{EXPLANATIONS[group]}\n", markdown_table(of_group) + "\n"]
        if group == "time to quality" and peers:
            parts += [peers_table(peers) + "\n"]
        limits = [f"- {row.case}: {row.limit}." for row in of_group if row.limit]
        if limits:
            parts += ["What limits the targets that are not met:\n\n" + "\n".join(limits) + "\n"]
    return "\n".join(parts)


def targets_table(rows: list[Row]) -> str:
    """Every target with what was reached."""
    lines = []
    for row in rows:
        reached = with_unit(row.value, row.unit)
        if row.ratio is not None and str(row.target).endswith("times"):
            reached = f"{number(row.ratio)} times"
        met = "yes" if row.met else "no"
        lines.append((row.group, row.case, row.target, reached, met))
    return as_markdown(pd.DataFrame(lines, columns=["what", "case", "target", "reached", "met"]))


def peers_table(peers: dict[str, Any]) -> str:
    """How the other library's trainings went."""
    table = pd.DataFrame(
        {
            "model": model["model"],
            "ended by": model["ended"],
            "epochs": str(model["curve"][-1]["epoch"]),
            "seconds": number(model["curve"][-1]["seconds"]),
            "best validation NDCG@10": f"{max(epoch['ndcg'] for epoch in model['curve']):.4f}",
        }
        for model in peers["models"]
    )
    return (
        f"How RecBole's trainings went (at most {peers['cap_minutes']:g} minutes each, on "
        f"{peers['machine']['cpu']}, {peers['machine']['cores']} cores):\n\n{as_markdown(table)}"
    )


def described(run: dict[str, Any]) -> str:
    """When and on what it was measured."""
    machine = run["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"Measured on {run['date']} on {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']:.0f} GiB of memory, {machine['system']}, in "
        f"{run['seconds'] / 60:.0f} minutes, with Python {machine['python']}, {versions}.\n"
    )


def wanted() -> str:
    """The page as the stored files have it.

    Raises:
        SystemExit: nothing was stored yet.
    """
    run = newest(RUNS)
    if run is None:
        raise SystemExit("benchmarks/results/ has no run: `make bench` stores one")
    return page(run, newest("peers-*.json"))


def main() -> int:
    """Run the command line; 0 when the page shows what was stored."""
    text = wanted()
    if sys.argv[1:] == ["write"]:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        print(
            "book/benchmarks.md shows other figures than benchmarks/results/ and results/: "
            "run `python -m benchmarks.report write`",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
