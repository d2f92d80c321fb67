"""Seconds until validation NDCG@10 first reaches a goal on MovieLens 100K, ours and RecBole's.

The clock starts with the chapter's training and stops after the evaluation that reaches the
goal, so building, compiling and evaluating once an epoch are in it. As RecBole scores, seen movies
compete: the figures are lower than the chapters', which leave them out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import throughput
from benchmarks.measure import RESULTS, Row, by_round, finish, in_child, machine, newest
from benchmarks.recbole_peer import GOAL

TARGET_TIMES = 10
SEEDS = (42, 43, 44)

MODELS = ("SASRec", "GRU4Rec")


def first_reaches(curve: Sequence[dict[str, float]], goal: float) -> dict[str, float] | None:
    """The first point of a curve whose `ndcg` is at least `goal`, or None."""
    return next((point for point in curve if point["ndcg"] >= goal), None)


def curve_of(model: str, seed: int, goal: float, **how: Any) -> tuple[list[dict[str, float]], str]:
    """Train a chapter's model until it reaches the goal, or ends: one dict an evaluation.

    Args:
        model: one of `MODELS`.
        seed: of the run.
        goal: validation NDCG@10 at which to stop.
        how: for `throughput.Chapter`.

    Returns:
        The curve, and the source of the data. A point has `epoch`, `seconds` since the training
        began, `training_seconds`, which is that without the evaluations, `ndcg` and
        `hit_rate`.
    """
    import keras

    from rectutor.evaluation import evaluate

    curve: list[dict[str, float]] = []
    evaluating = 0.0
    started = 0.0

    class UntilGoal(keras.callbacks.Callback):
        """Stands where the chapter has `BestByNDCG`; seen movies compete here."""

        def __init__(self, recommender: Any, split: Any) -> None:
            super().__init__()
            self.recommender, self.split = recommender, split

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            nonlocal evaluating
            float(logs["loss"])  # waits until the last step is done
            began = time.perf_counter()
            result = evaluate(
                self.recommender, self.split, exclude_seen=False, on="validation", num_resamples=1
            )
            now = time.perf_counter()
            evaluating += now - began
            curve.append(
                {
                    "epoch": epoch + 1,
                    "seconds": now - started,
                    "training_seconds": now - started - evaluating,
                    "ndcg": result.ndcg,
                    "hit_rate": result.hit_rate,
                }
            )
            self.model.stop_training = result.ndcg >= goal

    name, train, _ = throughput.MODELS[model]
    chapter = throughput.Chapter(name, seed=seed, **how)
    started = time.perf_counter()
    train(chapter, None, lambda *given: [UntilGoal(*given)])
    return curve, chapter.data.source


def newest_peers(
    folder: Path = RESULTS, here: dict[str, Any] | None = None
) -> dict[str, list[dict[str, float]]]:
    """RecBole's curves by model, from the newest `peers-*.json` of this machine.

    Args:
        folder: where the files are.
        here: this machine; `machine()` when omitted.

    Returns:
        `{"SASRec": curve, ...}` with points as in `curve_of`; empty without a file.
    """
    stored = newest("peers-*.json", folder, here or machine())
    return {one["model"]: one["curve"] for one in stored["models"]} if stored else {}


def measure(quick: bool = False) -> list[Row]:
    """Seconds to the goal of both models: with everything, and of the training alone."""
    rows = []
    peers = {} if quick else newest_peers()
    for model in ["GRU4Rec"] if quick else MODELS:
        seeds, profile, goal = (SEEDS[:1], "smoke", 0.01) if quick else (SEEDS, "quick", GOAL)
        found = [in_child(__name__, model, seed, profile, goal) for seed in seeds]
        curves, peak = by_round(found, "curve"), max(peak for _, peak in found)
        if {"synthetic", "included"} & {*by_round(found, "source")}:
            rows += rows_of(f"{model} on other data than 100K", curves, peak, None)
        else:
            rows += rows_of(model, curves, peak, peers.get(model))
    return rows


def rows_of(
    model: str,
    curves: list[list[dict[str, float]]],
    peak: float,
    peer: list[dict[str, float]] | None,
) -> list[Row]:
    """The row of the whole time, which has the target, and the row of the training alone.

    A run that ended before the goal counts with all its time, and unmet. A peer that was stopped
    before the goal gives a bound; what it did reach is then a second goal, for both.
    """
    rows = _rows_to(GOAL, f"{model}, {{}}", curves, peak, peer)
    if peer and not first_reaches(peer, GOAL):
        best = max(point["ndcg"] for point in peer)
        rows += _rows_to(best, f"{model}, {{}}, to RecBole's {best:.4f}", curves, peak, peer)
    whole = rows[0]
    if whole.ratio is not None:
        met = whole.ratio >= TARGET_TIMES and all(first_reaches(curve, GOAL) for curve in curves)
        limit = "" if met else _limit(curves, peer)
        rows[0] = dataclasses.replace(
            whole, target=f">= {TARGET_TIMES} times", met=met, limit=limit
        )
    return rows


def _rows_to(
    goal: float,
    case: str,
    curves: list[list[dict[str, float]]],
    peak: float,
    peer: list[dict[str, float]] | None,
) -> list[Row]:
    """The two rows for one goal; `case` has a place for what was timed."""
    reached = [first_reaches(curve, goal) for curve in curves]
    points = [point or curve[-1] for point, curve in zip(reached, curves, strict=True)]
    missed = reached.count(None)
    if missed:
        case += f" ({missed} of {len(curves)} runs ended before it)"
    peer_reached = first_reaches(peer, goal) if peer else None
    rows = []
    for key, what in [("seconds", "in all"), ("training_seconds", "training alone")]:
        taken = [point[key] for point in points]
        theirs = (peer_reached or peer[-1])[key] if peer else None
        rows.append(
            Row.of(
                "time to quality",
                case.format(what),
                taken,
                "s",
                peak_mib=peak,
                reference="RecBole" + ("" if peer_reached else ", more than") if peer else None,
                reference_value=theirs,
                ratio=theirs / statistics.median(taken) if theirs else None,
                judged=False,
            )
        )
    return rows


def _limit(curves: list[list[dict[str, float]]], peer: list[dict[str, float]]) -> str:
    """Why the target is not met."""
    parts = []
    ended = [curve for curve in curves if not first_reaches(curve, GOAL)]
    if ended:
        best = ", ".join(f"{max(point['ndcg'] for point in curve):.4f}" for curve in ended)
        parts.append(f"{len(ended)} of {len(curves)} runs ended at {best} at best")
    points = [first_reaches(curve, GOAL) or curve[-1] for curve in curves]
    evaluating = statistics.median(p["seconds"] - p["training_seconds"] for p in points)
    epochs = statistics.median(point["epoch"] for point in points)
    first = statistics.median(curve[0]["training_seconds"] for curve in curves)
    parts.append(
        f"{epochs:g} epochs; the first, compiling included, takes {first:.1f} s, the evaluations "
        f"{evaluating:.1f} s"
    )
    if not first_reaches(peer, GOAL):
        parts.append("RecBole was stopped before the goal, so the ratio is a lower bound")
    return "; ".join(parts)


if __name__ == "__main__":
    os.environ.setdefault("KERAS_BACKEND", "jax")
    if len(sys.argv) > 1:
        name, seed, profile, goal = sys.argv[1:]
        with contextlib.redirect_stdout(sys.stderr):
            curve, source = curve_of(name, int(seed), float(goal), profile=profile)
        finish({"curve": curve, "source": source})
    else:
        from benchmarks import report

        print(report.text_tables(measure()))
