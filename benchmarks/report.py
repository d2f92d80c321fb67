"""The benchmarks as text, as a page of the book with its pictures, and as tables in a file.

usage: python -m benchmarks.report write   put the stored figures into `book/benchmarks.md`, its
                                           pictures and `benchmarks/tables.md`
       python -m benchmarks.report check   exit 1 if one of them shows something else
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
from tabulate import tabulate

from benchmarks import pictures
from benchmarks.measure import GROUPS, RESULTS, ROOT, Row, newest
from rectutor import results as stored_results
from rectutor import study
from rectutor.environment import write_text
from tools import book, repository

PAGE = ROOT / "book" / "benchmarks.md"
MILLION = ROOT / "book" / "million.md"
TABLES = ROOT / "benchmarks" / "tables.md"
PICTURES = ROOT / "book" / "_static"
PROMISES = ROOT / "benchmarks" / "promises.md"
TIMES = ROOT / "notebooks" / "times.json"
SEARCH = RESULTS / "search.json"

#: How the backends beside JAX are called.
BACKENDS = {"tensorflow": "TensorFlow", "torch": "PyTorch"}

#: A dated run of `make bench`; those of other commands have a word before the date.
RUNS = "[0-9]*.json"

TITLES = {
    "preparation": "Preparation: ratings to training windows",
    "start-up": "Start-up, and the whole book",
    "throughput": "Training throughput",
    "time to quality": "Time to quality",
}

EXPLANATIONS = {
    "preparation": """\
Tables of synthetic ratings, with as many users and movies as MovieLens has at that size, become
the windows the chapters train on. The reference does the same in plain Python, one row at a time,
as the documented recipes do ([C17](../book/corrections.md)): both make the same windows, which is
checked, and negatives that no user has watched, which is checked too. Memory is what the process
grows by beyond the table, in multiples of the table.""",
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
# The benchmarks' tables

These tables set the book beside what you would use instead: plain Python, a hand-written loop,
another library. Ratios come first, because they mean something on your machine too; more is
better for us in every one of them. The absolute figures beside them are of the machine named
below. A figure is the median of its runs, with the lowest and the highest in brackets; warm-up and
compilation are apart. What was aimed at and not reached stays in the tables, with what limits it.

No figure here is typed in: `make bench` measures, stores a dated file in `benchmarks/results/`, and
writes this file and [the book's page](../book/benchmarks.md). It fails where a ratio has fallen by
more than 15 % since the last stored run on the same kind of machine (not counting ratios to our own
models on JAX and to RecBole's stored run). `make bench-peers` measures the other libraries.
"""

PAGE_TEXT = """\
# Benchmarks and reliability

What this book costs to run, beside what you would use instead, and what you may rely on. No figure
here is typed in: `make bench` and `make record` measure, and write this page. The rest is in [the
large tables]({tables}). How good the models are is another matter: see the
[leaderboard](../notebooks/leaderboard.ipynb) and [a million ratings](million.md).

## What a chapter costs

```{{raw}} html
:file: _static/bench-chapters.svg
```

Minutes that each notebook took when the outputs you see were made, on {device}, most of them two
at a time, as `make book` runs them; alone a chapter takes less. Most of it is training; with
`RECTUTOR_PROFILE=smoke` a chapter trains for a moment only.

## Backends

```{{raw}} html
:file: _static/bench-backends.svg
```

Keras runs on JAX, TensorFlow and PyTorch. A bar is how fast the same model trains on the other two,
in steady state, where JAX is 1. {machine}

## Exact against approximate search

```{{raw}} html
:file: _static/bench-search.svg
```

Milliseconds to find the {found} best of a catalogue for one query, one thread. The approximate
indexes look only as far as they must to find {goal:.0%} of the exact answer, on other queries than
those that are timed. The vectors are made up, in clusters ({where});
[serving](../notebooks/serving.ipynb) asks the same of a trained model's.

## Beside what you would use instead

{ratios}

{met} of {aimed} targets are met, those of memory and start-up included. {said}

"""

MILLION_TEXT = """\
# A million ratings

How good is the book's [SASRec](../notebooks/sasrec.ipynb) on ten times as many ratings? No
measurement here is typed in: {commands}, with `--refit` and then `--test`, and
`python -m benchmarks.report write` writes this page.

```{{raw}} html
:file: _static/bench-million.svg
```

{table}

The file is MovieLens 1M as the SASRec paper prepared it: {users:,} users, {movies:,} movies,
{interactions:,} interactions, *without* the last two movies of each user, on which the papers
choose and test. So the movie asked for here is two before the one they test on, and [their
figures](../notebooks/leaderboard.ipynb) tell how good is good, not who is ahead. All else is [the
book's protocol](evaluation.md): all movies compete, those seen are left out, in brackets is the
95 % interval over users.

With [levers](../notebooks/sasrec_levers.ipynb) it is their best combination, with the settings of
`full`. {tried} Validation chose
the epoch, {best} of {epochs}; {end}. Its NDCG@10 on validation was {half:.3f} after half
of the epochs and {top:.3f} after the best. {anew}
The test was asked {asked}. Hours are those of one core, for both
trainings; it was measured on {when}. {aim}

{beside}"""

#: What a row's reference says where the peer was stopped before it was as good.
MORE = "more than"
#: NDCG@10 that was aimed at on the last movie of this file.
MILLION_AIM = 0.205


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


def tables(
    run: dict[str, Any],
    peers: dict[str, Any] | None = None,
    sampled: dict[str, Any] | None = None,
) -> str:
    """The file with every figure.

    Args:
        run: what `make bench` stored.
        peers: what `make bench-peers` stored of RecBole, if it ever ran.
        sampled: what it stored of myFM, likewise.
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
    if sampled:
        parts += [sampled_table(sampled) + "\n"]
    return "\n".join(parts)


def page(run: dict[str, Any], peers: dict[str, Any], search: list[dict[str, Any]]) -> str:
    """The page of the book, without its pictures.

    Args:
        run: what `make bench` stored.
        peers: what `make bench-peers` stored.
        search: what `python -m benchmarks.search` stored.
    """
    here = repository.settings()
    rows = [Row.from_dict(row) for row in run["rows"]]
    aimed = [row for row in rows if row.target]
    compared = [row for row in aimed if row.ratio is not None and "times" in str(row.target)]
    shown = pd.DataFrame(
        {
            "what": f"{row.group}: {row.case}",
            "beside": str(row.reference).partition(",")[0],
            "times as fast": "> " * (MORE in str(row.reference)) + number(row.ratio or 0),
            "aim": str(row.target).replace(" times", ""),
        }
        for row in compared
    )
    said = [f"Not met: {row.name} ({row.limit})." for row in aimed if not row.met]
    if any(MORE in str(row.reference) for row in compared):
        minutes = f"{peers['cap_minutes']:g} minutes"
        said += [f'"> ": RecBole was stopped after {minutes} a model, before it was as good.']
    return PAGE_TEXT.format(
        tables=f"https://github.com/{here['repository']}/blob/{here['ref']}/benchmarks/tables.md",
        machine=described(run).partition(", with")[0] + ".",
        found=search[0]["found"],
        goal=search[0]["goal"],
        where=f"{search[0]['date']}, {search[0]['machine']}",
        ratios=as_markdown(shown),
        met=sum(bool(row.met) for row in aimed),
        aimed=len(aimed),
        said=" ".join(said),
        device=stored_results.read(ROOT / "results" / "sasrec.json")["device"],
    ) + PROMISES.read_text(encoding="utf-8")


def drawn(run: dict[str, Any], search: list[dict[str, Any]]) -> dict[str, str]:
    """The pictures, by file name."""
    times = json.loads(TIMES.read_text(encoding="utf-8"))
    minutes = {
        entry["title"]: sum(times[name]) / 60
        for name, entry in book.registry().items()
        if name in times
    }
    rows = [Row.from_dict(row) for row in run["rows"] if row["group"] == "throughput"]
    speed = {
        name: {
            row.case.removesuffix(f", {other}"): row.ratio or 0.0
            for row in rows
            if row.reference == "jax" and row.case.endswith(f", {other}")
        }
        for other, name in BACKENDS.items()
    }
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in search:
        curves.setdefault(row["index"], []).append((row["items"], row["ms"]))
    return {
        "bench-chapters.svg": pictures.bars({"": minutes}, "minutes", "{:.1f}"),
        "bench-backends.svg": pictures.bars(speed, "times the speed of JAX", "{:.2f}", line=1.0),
        "bench-search.svg": pictures.curves(curves, "items", "ms"),
    }


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


#: Whose stars stand beside a sampled machine's: arms of the study that are given two ids.
TWO_IDS = ("one member", "made right, ids only", "who rated what")


def sampled_table(sampled: dict[str, Any]) -> str:
    """A factorization machine sampled by Gibbs, beside models of the ranking chapter's study."""
    whose = f"myFM, rank {sampled['rank']}, {sampled['samples']} samples"
    means = {name: fmean(each["rmse"] for each in runs) for name, runs in sampled["runs"].items()}
    rows = [(whose, *(f"{mean:.3f}" for mean in means.values()))]
    arms = study.read().arms
    for name in TWO_IDS:
        found = [arms.get(f"ranking/{part}{name}") for part in ("", "folds: ")]
        stars = [f"{4 * arm.metrics['rmse'].value:.3f}" if arm else "not run" for arm in found]
        rows.append((f"ranking chapter: {name}", *stars))
    seconds = [each["seconds"] for runs in sampled["runs"].values() for each in runs]
    machine = sampled["machine"]
    return (
        "## Ranking beside a sampled factorization machine\n\n"
        "RMSE in stars on 100K, lower is better, from the two ids alone: the random split of the "
        "ranking chapter, mean over seeds, and the mean of GroupLens's five folds. myFM's runs "
        f"took {min(seconds):.0f} to {max(seconds):.0f} s each on {machine['cpu']}, "
        f"{machine['cores']} cores.\n\n"
        + as_markdown(pd.DataFrame(rows, columns=["model", *means]))
    )


def million_rows(runs: Iterable[dict[str, Any] | None]) -> list[dict[str, Any]]:
    """What was measured on MovieLens 1M, best first, each with its training if it had one.

    Args:
        runs: what was stored, `None` for what never ran.
    """
    told: list[dict[str, Any]] = []
    for of in filter(None, runs):
        if "epochs" not in of:  # baselines
            told += of["test"]
            continue
        seconds = sum(epoch["seconds"] for epoch in [*of["epochs"], *of.get("refit", [])])
        trained = {"epochs": len(of["epochs"]), "hours": seconds / 3600}
        (row,) = (row for row in of["test"] if "SASRec" in row["model"])
        wide = f", {of['settings']['width']} wide" if "width" in of["settings"] else ""
        told.append(row | trained | {"model": row["model"] + wide})
    return sorted(told, key=lambda row: -row["ndcg"][0])


def trained_anew(run: dict[str, Any]) -> str:
    """Whether it was, and how often the test was asked, in the words of the page."""
    too = "" if run["refit"] else "not "
    return f"{too}trained anew, and the test was asked {'; '.join(run['asked'])}"


def million_page(
    run: dict[str, Any],
    peer: dict[str, Any] | None = None,
    earlier: dict[str, Any] | None = None,
    plain: dict[str, Any] | None = None,
    baselines: dict[str, Any] | None = None,
) -> str:
    """The page of MovieLens 1M, without its picture.

    Args:
        run: what `python -m benchmarks.million --test` stored.
        peer: what `sh benchmarks/peers.sh million --test` stored, if it ever ran.
        earlier: what the former stored with other settings.
        plain: what it stored of the model without levers.
        baselines: what it stored of those.
    """

    def cell(ends: list[float]) -> str:
        return "{:.3f} [{:.3f}, {:.3f}]".format(*ends)

    rows = million_rows((run, peer, earlier, plain, baselines))
    shown = pd.DataFrame(
        {
            "model": row["model"],
            "HR@10": cell(row["hit_rate"]),
            "NDCG@10": cell(row["ndcg"]),
            "epochs": str(row.get("epochs", "")),
            "hours": f"{row['hours']:.1f}" if "hours" in row else "",
        }
        for row in rows
    )
    ours = [row for of in (run, plain) if of for row in of["test"] if "SASRec" in row["model"]]
    reached = max(row["ndcg"][0] for row in ours)
    verdict = "reached" if reached >= MILLION_AIM else "not reached"
    tried = "They were decided before the run; two other sets had been looked at in earlier runs."
    if earlier:
        tried = f"""Four sets have been tried: two in runs that were not
finished, one that is {earlier["settings"]["width"]} wide and reached
{earlier["best"]["ndcg"]:.3f} on validation, and this one. The two
that were finished were both tested, the other without training anew."""
    first = ""
    if plain:
        first = f"""The model of [the first page](../notebooks/sasrec.ipynb), with its settings of
`full` and without any lever, reached {plain["best"]["ndcg"]:.3f} on validation
in epoch {plain["best"]["epoch"]} of {len(plain["epochs"])}.
It was {trained_anew(plain)}."""
    anew = "It was not trained anew, so it has not learned from validation's movies."
    if run["refit"]:
        anew = """Then a new model was trained for as many epochs,
with validation's movies as well."""
    end = "the run was stopped before validation stood still"
    if len(run["epochs"]) - run["best"]["epoch"] >= run["patience"]:
        end = f"""the end came when {run["patience"]} epochs brought nothing
better ({run["settings"]["patience"]} in a notebook)"""
    chosen = ""
    if baselines:
        tries = sum(row["settings_tried"] for row in baselines["test"])
        chosen = f"""The baselines are those that have a closed form; validation chose their
settings, of {tries:.0f} tried in all, and they know its movies as well."""
    beside, commands = "", "`python -m benchmarks.million` measures"
    if peer:
        commands = """`python -m benchmarks.million` and `sh benchmarks/peers.sh million`
measure"""
        version = peer["machine"]["versions"]["RecTools"]
        beside = f"""RecTools' SASRec has the defaults of version {version} (wider, on each user's
latest hundred movies), the same stopping rule and the same split;
it was {trained_anew(peer)}."""
    return (
        MILLION_TEXT.format(
            table=as_markdown(shown),
            **run["data"],
            best=run["best"]["epoch"],
            top=run["best"]["ndcg"],
            half=run["epochs"][len(run["epochs"]) // 2]["ndcg"],
            epochs=len(run["epochs"]),
            end=end,
            commands=commands,
            tried=tried,
            anew=anew,
            asked="; ".join(run["asked"]),
            aim=f"We aimed at an NDCG@10 of {MILLION_AIM}: {verdict}.",
            beside="\n\n".join(filter(None, (first, beside, chosen))),
            when=f"{run['date']} on {run['machine']['cpu']}",
        ).rstrip()
        + "\n"
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


def wanted() -> dict[Path, str]:
    """What the files should hold, as the stored figures have it.

    Raises:
        SystemExit: something was not stored yet.
    """
    run, peers, sampled = (newest(names) for names in (RUNS, "peers-*.json", "myfm-*.json"))
    if run is None or peers is None or sampled is None or not SEARCH.is_file():
        raise SystemExit(
            "benchmarks/results/ lacks a run: `make bench`, `make bench-peers` and "
            "`python -m benchmarks.search` store one each"
        )
    search = json.loads(SEARCH.read_text(encoding="utf-8"))
    pages = {PAGE: page(run, peers, search), TABLES: tables(run, peers, sampled)}
    pages |= {PICTURES / name: text for name, text in drawn(run, search).items()}
    if million := newest("million-[0-9]*.json"):
        peer = newest("million-rectools-*.json")
        earlier = newest("million-earlier-*.json")
        plain, known = newest("million-sasrec-*.json"), newest("million-baselines-*.json")
        rows = million_rows((million, peer, earlier, plain, known))
        ndcg = {row["model"]: row["ndcg"][0] for row in rows}
        pages[MILLION] = million_page(million, peer, earlier, plain, known)
        pages[PICTURES / "bench-million.svg"] = pictures.bars({"": ndcg}, "NDCG@10", "{:.3f}")
    return pages


def write() -> None:
    """Write the page, its pictures and the tables."""
    for path, text in wanted().items():
        write_text(text, path)


def main() -> int:
    """Run the command line; 0 when the files show what was stored."""
    if sys.argv[1:] == ["write"]:
        write()
        return 0
    status = 0
    for path, text in wanted().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(
                f"{path.relative_to(ROOT)} shows other figures than benchmarks/results/ and "
                "notebooks/times.json: run `python -m benchmarks.report write`",
                file=sys.stderr,
            )
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
