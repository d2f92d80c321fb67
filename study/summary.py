"""From each user's figure in each run to means, intervals and verdicts.

A mean over runs has two sources of chance: which users there are, and which seed and order of ties
a run had. The bootstrap draws both anew: users and runs, with replacement. A comparison draws the
same users and runs for both sides, so what is hard for both cancels out.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from rectutor.environment import write_text
from rectutor.study import FILE
from study import core, documented

RESAMPLES = 10_000
LEVEL = (0.025, 0.975)
#: Arms are of users 1, 2, ... of MovieLens 100K.
NUM_USERS = 943


class Bootstrap:
    """Draws of users and of runs, the same for every arm.

    Args:
        num_users: the highest user id.
        resamples: how many.
    """

    def __init__(self, num_users: int = NUM_USERS, resamples: int = RESAMPLES) -> None:
        rng = np.random.default_rng(0)
        even = np.full(num_users, 1 / num_users)
        self.users = rng.multinomial(num_users, even, resamples).astype(np.float32)
        self.resamples = resamples

    def means(self, sums: np.ndarray, counts: np.ndarray, root: bool) -> np.ndarray:
        """The figure of each run in each draw of users, `(resamples, runs)`.

        Args:
            sums: `(runs, num_users)` what is added up.
            counts: `(runs, num_users)` over how many.
            root: whether a figure is the root of its mean, as the RMSE is.
        """
        total = self.users @ sums.T.astype(np.float32)
        found: np.ndarray = total / np.maximum(self.users @ counts.T.astype(np.float32), 1e-9)
        return np.sqrt(found) if root else found

    def over_runs(self, means: np.ndarray) -> np.ndarray:
        """The mean over drawn runs, `(resamples,)`; runs are drawn alike for equally many."""
        runs = means.shape[1]
        rng = np.random.default_rng([1, runs])
        drawn = rng.multinomial(runs, np.full(runs, 1 / runs), self.resamples)
        result: np.ndarray = (drawn * means).sum(axis=1) / runs
        return result


class Figures:
    """An arm's figure in each run, and in each draw of users.

    Args:
        outcomes: run number to what `core.ranked` or `core.rated` gave.
        bootstrap: the draws.
    """

    def __init__(self, outcomes: dict[int, dict[str, Any]], bootstrap: Bootstrap) -> None:
        self.outcomes, self.bootstrap = outcomes, bootstrap
        self.runs = sorted(outcomes)
        first = outcomes[self.runs[0]]
        self.metrics = ("ndcg", "hit_rate") if "ndcg" in first else ()
        if "squared" in first:
            self.metrics = ("rmse",)
        self._known: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def of(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """`(runs,)` the figures as measured, and `(resamples, runs)` over drawn users."""
        if metric not in self._known:
            size = self.bootstrap.users.shape[1]
            sums, counts = np.zeros((2, len(self.runs), size))
            for row, run in enumerate(self.runs):
                users, total, count = per_user(self.outcomes[run], metric)
                sums[row, users - 1], counts[row, users - 1] = total, count
            root = metric == "rmse"
            measured = sums.sum(axis=1) / counts.sum(axis=1)
            measured = np.sqrt(measured) if root else measured
            self._known[metric] = measured, self.bootstrap.means(sums, counts, root)
        return self._known[metric]


def per_user(outcome: dict[str, Any], metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of one run: the users, what each adds to the sum, and to the count."""
    if metric == "rmse":
        count = np.array(outcome["count"], float)
        return np.array(outcome["users"]), np.array(outcome["squared"]), count
    gains = np.array(outcome["ndcg"], float)
    users = np.array(outcome.get("users", range(1, len(gains) + 1)))
    return users, gains if metric == "ndcg" else (gains > 0) * 1.0, np.ones(len(gains))


def outcomes(jobs: Sequence[core.Job]) -> dict[str, dict[int, dict[str, Any]]]:
    """What is stored, by arm (`chapter/name`) and run."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for job in jobs:
        for run in core.read(job)["runs"]:
            for name, outcome in run["arms"].items():
                found.setdefault(f"{job.chapter}/{name}", {})[run["run"]] = outcome
    return found


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values, in their order.

    Source: Holm, "A simple sequentially rejective multiple test procedure" (Scandinavian Journal of
    Statistics 1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = highest
    return adjusted


def effects(
    figures: dict[str, Figures], comparisons: Sequence[core.Comparison], bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """Every comparison of which both sides are stored, as `rectutor.study.Effect` has it."""
    found = []
    for each in comparisons:
        sides = [figures.get(name) for name in (each.before, each.after)]
        if sides[0] is None or sides[1] is None:
            continue
        common = sorted(set(sides[0].runs) & set(sides[1].runs))
        if not common:
            continue
        measured, drawn = [], []
        for side in sides:
            rows = [side.runs.index(run) for run in common]
            value, draws = side.of(each.metric)
            measured.append(value[rows])
            drawn.append(draws[:, rows])
        gaps = bootstrap.over_runs(drawn[1] - drawn[0])
        gaps[np.abs(gaps) < 1e-9] = 0.0
        low, high = np.quantile(gaps, LEVEL)
        p = 2 * min(np.mean(gaps <= 0), np.mean(gaps >= 0))
        before, after = (float(value.mean()) for value in measured)
        found.append(
            {
                "chapter": each.chapter,
                "correction": each.correction,
                "what": each.what,
                "before": each.before,
                "after": each.after,
                "metric": each.metric,
                "runs": len(common),
                "from_value": before,
                "to_value": after,
                "value": after - before,
                "low": float(low),
                "high": float(high),
                "p": float(min(1.0, max(p, 1 / bootstrap.resamples))),
            }
        )
    for effect, p in zip(found, holm([effect["p"] for effect in found]), strict=True):
        effect["holm"] = p
    return found


def summarise() -> dict[str, Any]:
    """The summary of all that is stored."""
    jobs, bootstrap = core.jobs(), Bootstrap()
    seconds, runs, stale, dates = {}, [], [], []
    for job in jobs:
        stored = core.read(job)["runs"]
        runs += stored
        dates += [run["date"] for run in stored]
        if core.missing(job, core.digest(job)):
            stale.append(job.key)
        for name in {name for run in stored for name in run["arms"]}:
            seconds[f"{job.chapter}/{name}"] = statistics.median(run["seconds"] for run in stored)
    figures = {name: Figures(each, bootstrap) for name, each in outcomes(jobs).items()}
    arms = []
    for name, each in figures.items():
        arm: dict[str, Any] = {"name": name, "runs": len(each.runs), "metrics": {}, "facts": {}}
        for metric in each.metrics:
            measured, drawn = each.of(metric)
            low, high = np.quantile(bootstrap.over_runs(drawn), LEVEL)
            ends = [measured.min(), measured.max()]
            arm["metrics"][metric] = _rounded([measured.mean(), low, high, *ends])
        for fact in each.outcomes[each.runs[0]]["facts"]:
            all_of = [one["facts"][fact] for one in each.outcomes.values() if fact in one["facts"]]
            ends = [min(all_of), max(all_of)]
            arm["facts"][fact] = _rounded([statistics.fmean(all_of), None, None, *ends])
        arms.append(arm | {"seconds": seconds[name]})
    known = {arm["name"]: arm["metrics"] | arm["facts"] for arm in arms}
    repeated = [
        {"arm": each.arm, "what": each.what, "documented": list(each.value)}
        | {"runs": known[each.arm][each.key]}
        for each in documented.FIGURES
        if each.key in known.get(each.arm, {})
    ]
    compared = effects(figures, core.comparisons(), bootstrap)
    for effect in compared:
        names = [name for name, value in effect.items() if isinstance(value, float)]
        effect |= dict(zip(names, _rounded([effect[name] for name in names]), strict=True))
    return {
        "made": {
            "first": min(dates, default=""),
            "last": max(dates, default=""),
            "trainings": len(runs),
            "hours": round(sum(run["seconds"] for run in runs) / 3600, 1),
            "versions": runs[-1]["versions"] if runs else {},
            "comparisons": len(compared),
            "unfinished": stale,
        },
        "arms": sorted(arms, key=lambda arm: str(arm["name"])),
        "effects": compared,
        "documented": repeated,
    }


def _rounded(values: Sequence[Any]) -> list[float | None]:
    return [None if value is None else float(f"{float(value):.5g}") for value in values]


def text() -> str:
    """The summary as the text of its file: a line an arm, a line a comparison."""
    made = summarise()
    lines = [f'{{"made": {json.dumps(made["made"])},']
    for part in ("arms", "effects", "documented"):
        rows = ",\n ".join(json.dumps(row) for row in made[part])
        lines.append(f'"{part}": [\n {rows}\n]' + ("}" if part == "documented" else ","))
    return "\n".join(lines) + "\n"


def write() -> None:
    """Write `rectutor/included/study.json`, and say what is not finished."""
    write_text(text(), FILE)
    made = json.loads(FILE.read_text(encoding="utf-8"))["made"]
    print(f"{made['trainings']} runs, {made['hours']} hours, {made['comparisons']} comparisons")
    for key in made["unfinished"]:
        print(f"not finished on this code: {key}")


def check() -> None:
    """Fail where the summary is not what the stored figures give.

    Another processor adds up in another order, so a resampled end may differ in its last digits and
    a share of the resamples by a few of them.

    Raises:
        SystemExit: it is not.
    """
    stored, made = (json.loads(each) for each in (FILE.read_text(encoding="utf-8"), text()))
    place = _apart(stored, made)
    if place:
        raise SystemExit(
            f"{FILE.name} is not what results/study gives, at {place}; run "
            "`python -m study summary`"
        )


def _apart(one: Any, other: Any, place: str = "") -> str:
    """Where two summaries differ; empty where they agree."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return next(filter(None, (_apart(one[k], other[k], f"{place}/{k}") for k in one)), "")
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = zip(one, other, strict=True)
        found = (_apart(a, b, f"{place}/{i}") for i, (a, b) in enumerate(pairs))
        return next(filter(None, found), "")
    if isinstance(one, float) and isinstance(other, int | float):
        room = 0.03 if place.endswith(("/p", "/holm")) else 2e-4 + 2e-3 * abs(one)
        return "" if abs(one - other) <= room else place
    return "" if one == other else place
