"""What the study found: figures over seeds, tie orders and folds, and which differences hold up.

The study (`make study` in the repository) trains every model of the book several times on MovieLens
100K. Its summary travels with the package, so that a chapter can show its own run beside it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rectutor import checks

FILE = Path(__file__).parent / "included" / "study.json"

#: How metrics are called, and how many decimals their intervals on 943 users bear.
METRICS = {"ndcg": "NDCG@10", "hit_rate": "HR@10", "rmse": "RMSE"}
_DECIMALS = {"ndcg": 3, "hit_rate": 3, "rmse": 4}


#: A verdict rests on so many runs at least.
FEWEST_RUNS = 5


@dataclass(frozen=True)
class Figure:
    """A mean over runs, and its 95 % interval over users and runs.

    Attributes:
        value: the mean over the runs.
        low: the lower end of the interval; None where users were not kept.
        high: the upper end.
        lowest: the lowest of the runs.
        highest: the highest of the runs.
    """

    value: float
    low: float | None
    high: float | None
    lowest: float
    highest: float


@dataclass(frozen=True)
class Arm:
    """One model of the study.

    Attributes:
        name: `chapter/name`.
        runs: how many there are.
        metrics: `"ndcg"`, `"hit_rate"` or `"rmse"` (labels from 0 to 1) to its `Figure`.
        facts: other numbers, such as `"epochs"` or a loss, likewise without an interval.
        seconds: the median of its job on one core, which may train several arms.
    """

    name: str
    runs: int
    metrics: dict[str, Figure]
    facts: dict[str, Figure]
    seconds: float


@dataclass(frozen=True)
class Effect:
    """What one change does to a metric, paired by user and run.

    Attributes:
        chapter: where it is claimed.
        correction: `"C12"`, or empty.
        what: what `after` has that `before` has not.
        before: an arm.
        after: likewise.
        metric: `"ndcg"`, `"hit_rate"` (higher is better) or `"rmse"` (lower is better).
        runs: how many were compared.
        from_value: the mean of `before` over those runs.
        to_value: that of `after`.
        value: the difference, `after` minus `before`.
        low: the lower end of its 95 % interval over users and runs.
        high: the upper end.
        p: how often a difference of the other sign, or none, comes up in the resamples, two-sided.
        holm: `p` after Holm's correction for all comparisons of the study.
    """

    chapter: str
    correction: str
    what: str
    before: str
    after: str
    metric: str
    runs: int
    from_value: float
    to_value: float
    value: float
    low: float
    high: float
    p: float
    holm: float

    @property
    def verdict(self) -> str:
        """`"improves"` or `"makes worse here"`, at 5 % after Holm; else `"no effect here"`.

        It is `"not settled here"` where the interval by itself excludes 0 and Holm's correction
        does not, and with fewer than five runs `"too few runs"`: what seeds do is not in the
        interval then.
        """
        if self.runs < FEWEST_RUNS:
            return "too few runs"
        if self.holm >= 0.05:
            return "not settled here" if self.low > 0 or self.high < 0 else "no effect here"
        return "improves" if (self.value > 0) == (self.metric != "rmse") else "makes worse here"


@dataclass(frozen=True)
class Documented:
    """A figure that the documentation prints, and what repeating its recipe gave.

    Attributes:
        arm: the model of the study that repeats it.
        what: what it is called.
        values: digit for digit as documented; several where published copies differ.
        runs: the study's own.
    """

    arm: str
    what: str
    values: tuple[str, ...]
    runs: Figure

    @property
    def is_within(self) -> bool:
        """Whether one of the values, as printed, is from the lowest to the highest run's."""
        for value in self.values:
            digits = len(value.partition(".")[2])
            low, high = (round(end, digits) for end in (self.runs.lowest, self.runs.highest))
            if low <= float(value) <= high:
                return True
        return False

    @property
    def verdict(self) -> str:
        """Whether the documented value is among the runs, and if not how far from the nearest."""
        if self.is_within:
            return "within the runs"
        ends = self.runs.lowest, self.runs.highest
        off = min(abs(float(value) - end) for value in self.values for end in ends)
        return f"not reproduced, {off:.4f} from the nearest run"


@dataclass(frozen=True)
class Study:
    """The study's summary.

    Attributes:
        made: the conditions: dates of the `first` and the `last` run, how many `trainings` were
            run and the `hours` on one core, `versions`, `comparisons`, and the jobs `unfinished` on
            the code of this edition.
        arms: by name.
        effects: every comparison, in the order of the chapters.
        documented: the documentation's figures, and where the runs lie.
    """

    made: dict[str, Any]
    arms: dict[str, Arm]
    effects: list[Effect]
    documented: list[Documented]

    def of(self, chapter: str, correction: str = "") -> list[Effect]:
        """The effects that a chapter claims, of one correction or of all."""
        return [
            effect
            for effect in self.effects
            if effect.chapter == chapter and correction in ("", effect.correction)
        ]

    def table(self, arms: dict[str, str], metric: str = "ndcg", own: Any = None) -> pd.DataFrame:
        """Some arms side by side.

        Args:
            arms: what to call each, to its name in the study.
            metric: which figure is shown.
            own: what a run of yours measured, by the same names; stands beside it.

        Returns:
            One row an arm that the study has: runs, mean, interval and range.

        Raises:
            ValueError: there is no such metric.
        """
        checks.choice(metric, "Study.table: metric", METRICS)
        digits, rows = _DECIMALS[metric], []
        for label, name in arms.items():
            found = self.arms[name].metrics.get(metric) if name in self.arms else None
            if found is None:
                continue
            row: dict[str, Any] = {"model": label, "runs": self.arms[name].runs}
            row[METRICS[metric]] = f"{found.value:.{digits}f}"
            row["95 % interval"] = (
                "" if found.low is None else f"[{found.low:.{digits}f}, {found.high:.{digits}f}]"
            )
            row["lowest to highest run"] = (
                f"{found.lowest:.{digits}f} to {found.highest:.{digits}f}"
            )
            if own is not None:
                row["this run"] = f"{own[label]:.{digits}f}" if label in own else ""
            rows.append(row)
        return pd.DataFrame(rows)


def compared(effects: Iterable[Effect]) -> dict[str, pd.DataFrame]:
    """Comparisons as tables.

    Args:
        effects: such as `read().of("sasrec")`.

    Returns:
        What a metric is called to a table of its comparisons, one row each: what the second model
        has that the first has not, the figures of both, the effect with its interval, the runs
        and the verdict.
    """
    tables: dict[str, list[dict[str, Any]]] = {}
    for each in effects:
        digits, name = _DECIMALS[each.metric], METRICS[each.metric]
        ends = f"[{each.low:+.{digits}f}, {each.high:+.{digits}f}]"
        tables.setdefault(name, []).append(
            {
                "what": f"{each.correction}: {each.what}".removeprefix(": "),
                name: f"{each.from_value:.{digits}f} → {each.to_value:.{digits}f}",
                "effect": f"{each.value:+.{digits}f} {ends}",
                "runs": each.runs,
                "verdict": each.verdict,
            }
        )
    return {name: pd.DataFrame(rows) for name, rows in tables.items()}


def placed(figures: Iterable[Documented]) -> pd.DataFrame:
    """Documented figures beside the study's, one row each.

    Args:
        figures: such as `read().documented`.
    """
    return pd.DataFrame(
        {
            "model": each.arm.partition("/")[2],
            "figure": each.what,
            "documented": " or ".join(each.values),
            "study, mean": f"{each.runs.value:.4f}",
            "lowest to highest": f"{each.runs.lowest:.4f} to {each.runs.highest:.4f}",
            "verdict": each.verdict,
        }
        for each in figures
    )


@functools.cache
def read(file: Path = FILE) -> Study:
    """The summary that came with the package, or another.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a summary that this version reads.
    """
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        arms = {
            arm["name"]: Arm(
                arm["name"],
                arm["runs"],
                {name: Figure(*figure) for name, figure in arm["metrics"].items()},
                {name: Figure(*figure) for name, figure in arm["facts"].items()},
                arm["seconds"],
            )
            for arm in stored["arms"]
        }
        effects = [Effect(**effect) for effect in stored["effects"]]
        documented = [
            Documented(each["arm"], each["what"], tuple(each["documented"]), Figure(*each["runs"]))
            for each in stored["documented"]
        ]
        return Study(stored["made"], arms, effects, documented)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{file.name} is no summary of the study that this rectutor reads ({error!r}); "
            "write it anew with `make study`"
        ) from error
