"""Quality over three seeds, from what the chapters measured.

usage: python -m benchmarks.quality                   print the table
       python -m benchmarks.quality seeds [NAME ...]  run chapters with the other seeds and keep
                                                      a summary (`make bench-seeds`)

Seed 42 is that of `results/*.json`; the summary of the others is
`benchmarks/results/seeds-YYYY-MM-DD.json`.
"""

from __future__ import annotations

import concurrent.futures
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS, ROOT, Row, machine, newest, store

CHAPTER_RESULTS = ROOT / "results"
CHAPTERS = ("ranking", "retrieval", "gru4rec", "sasrec", "multi_task")
OTHER_SEEDS = (1, 2)
METRICS = {"leave-one-out": {"hit_rate": "HR@10", "ndcg": "NDCG@10"}, "rating": {"rmse": "RMSE"}}
SHOWN = ("made right", "step")

#: Chapter, model, metric and data set: what is aimed at.
TARGETS = {
    ("ranking", "made right, with features", "rmse", "100k"): 0.225,
    ("sasrec", "SASRec made right", "hit_rate", "100k"): 0.215,
    ("sasrec", "SASRec made right", "ndcg", "100k"): 0.115,
    ("sasrec", "SASRec made right", "hit_rate", "1m"): 0.316,
    ("sasrec", "SASRec made right", "ndcg", "1m"): 0.182,
}


def read_seed_42(folder: Path = CHAPTER_RESULTS) -> dict[str, dict[str, Any]]:
    """The chapters' stored results, by chapter; those that have not run are left out."""
    files = {chapter: folder / f"{chapter}.json" for chapter in CHAPTERS}
    return {
        chapter: json.loads(file.read_text(encoding="utf-8"))
        for chapter, file in files.items()
        if file.is_file()
    }


def read_summary(folder: Path = RESULTS) -> dict[str, Any]:
    """The newest summary of the other seeds; without chapters if there is none."""
    return newest("seeds-*.json", folder) or {"chapters": {}}


def summary_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """What is kept of one run of a chapter."""
    return [
        {
            "model": entry["model"],
            "recipe": entry["recipe"],
            "protocol": entry["protocol"],
            "metrics": {name: metric["value"] for name, metric in entry["metrics"].items()},
        }
        for entry in record["models"]
    ]


def measure(quick: bool = False) -> list[Row]:
    """The rows of the group; `quick` changes nothing, because nothing is trained here."""
    summary = read_summary()["chapters"]
    rows = []
    for chapter, record in read_seed_42().items():
        runs = [summary_of(record), *summary.get(chapter, {}).values()]
        rows += chapter_rows(chapter, record, runs)
    return rows


def chapter_rows(
    chapter: str, record: dict[str, Any], runs: list[list[dict[str, Any]]]
) -> list[Row]:
    """A chapter's rows.

    Args:
        chapter: its name.
        record: its stored results (seed 42).
        runs: the summary of each seed; that of `record` first.
    """
    first = runs[0]
    values: dict[tuple[str, str, str, str], list[float]] = {}
    for run in runs:
        for entry in run:
            for metric, value in entry["metrics"].items():
                name = (entry["recipe"], entry["model"], entry["protocol"], metric)
                values.setdefault(name, []).append(value)
    data = record["data"]["name"]
    for of_chapter, model, metric, name in TARGETS:
        if (of_chapter, name) == (chapter, data) and model not in {e["model"] for e in first}:
            raise ValueError(
                f"results/{chapter}.json has no {model!r}, whose {metric} has a target"
            )
    rows = []
    for entry in first:
        if entry["recipe"] not in SHOWN:
            continue
        for metric, heading in METRICS[entry["protocol"]].items():
            found = values[entry["recipe"], entry["model"], entry["protocol"], metric]
            if len(found) < len(runs):
                print(f"{chapter}: not every seed has {entry['model']!r}", file=sys.stderr)
            value, lower = statistics.mean(found), metric == "rmse"
            reference = reference_for(first, entry["protocol"], metric)
            wanted = TARGETS.get((chapter, entry["model"], metric, data))
            met = None if wanted is None else value <= wanted if lower else value >= wanted
            ratio = None
            if reference:
                ratio = reference[1] / value if lower else value / reference[1]
            rows.append(
                Row(
                    "quality",
                    f"{chapter}, {data}: {entry['model']}, {heading}",
                    value,
                    "",
                    min(found),
                    max(found),
                    runs=len(found),
                    reference=reference[0] if reference else None,
                    reference_value=reference[1] if reference else None,
                    ratio=ratio,
                    target=None if wanted is None else f"{'<=' if lower else '>='} {wanted}",
                    met=met,
                    limit=limit_of(record, entry, metric, wanted) if met is False else "",
                )
            )
    return rows


def reference_for(
    entries: list[dict[str, Any]], protocol: str, metric: str
) -> tuple[str, float] | None:
    """The best baseline under a protocol, or else the best documented model."""
    best = min if metric == "rmse" else max
    for recipe in ("baseline", "documented"):
        found = [
            (entry["model"], entry["metrics"][metric])
            for entry in entries
            if (entry["recipe"], entry["protocol"]) == (recipe, protocol)
            and metric in entry["metrics"]
        ]
        if found:
            return best(found, key=lambda pair: pair[1])
    return None


def limit_of(record: dict[str, Any], entry: dict[str, Any], metric: str, wanted: float) -> str:
    """What the chapter's own figures say about an unmet target."""
    stored = next(
        model["metrics"][metric]
        for model in record["models"]
        if all(model[field] == entry[field] for field in ("model", "recipe", "protocol"))
    )
    best = (min if metric == "rmse" else max)(
        (model["metrics"][metric]["value"], model["model"])
        for model in record["models"]
        if model["protocol"] == entry["protocol"] and metric in model["metrics"]
    )
    line = f"seed {record['seed']} gives {stored['value']:.4f}"
    if stored["low"] is not None:
        inside = stored["low"] <= wanted <= stored["high"]
        line += f"; its 95 % interval over users, {stored['low']:.3f} to {stored['high']:.3f}, "
        line += "has the target in it" if inside else "leaves the target out"
    if best[1] != entry["model"]:
        line += f"; {best[1]!r} of the same chapter reaches {best[0]:.3f}"
    return line


def run_seeds(names: list[str]) -> Path:
    """Run chapters with the other seeds, two at a time, and keep what `summary_of` keeps.

    What an older summary holds of other chapters stays. The file is written after every run, so
    that a run that is stopped is not lost.

    Raises:
        RuntimeError: a chapter failed; what the others gave is written first.
    """
    summary = read_summary(RESULTS)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    summary |= {"date": today, "machine": machine(), "profile": "quick"}
    file = RESULTS / f"seeds-{today}.json"
    failed = []
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        runs = {
            pool.submit(run_chapter, chapter, seed): (chapter, seed)
            for chapter in names or CHAPTERS
            for seed in OTHER_SEEDS
        }
        for run in concurrent.futures.as_completed(runs):
            chapter, seed = runs[run]
            if run.exception():
                failed.append(str(run.exception()))
                continue
            summary["chapters"].setdefault(chapter, {})[str(seed)] = summary_of(run.result())
            store(summary, file)
            print(f"{chapter}, seed {seed}: done", flush=True)
    if failed:
        raise RuntimeError("\n".join(failed))
    return file


def run_chapter(chapter: str, seed: int) -> dict[str, Any]:
    """Run a chapter as a script and return what it stored."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, str(ROOT / "notebooks" / f"{chapter}.py")],
            cwd=ROOT,
            env=os.environ
            | {
                "RECTUTOR_SEED": str(seed),
                "RECTUTOR_RESULTS": folder,
                "RECTUTOR_PROFILE": "quick",
                "KERAS_BACKEND": "jax",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{chapter}, seed {seed}, failed:\n{done.stderr[-2000:]}")
        stored = Path(folder) / f"{chapter}.json"
        return dict(json.loads(stored.read_text(encoding="utf-8")))


if __name__ == "__main__":
    if sys.argv[1:2] == ["seeds"]:
        print(f"kept in {run_seeds(sys.argv[2:]).relative_to(ROOT)}")
    else:
        from benchmarks import report

        print(report.text_tables(measure()))
