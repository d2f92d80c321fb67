"""Start-up: the package's import, the first trained step of each chapter, the whole book."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.measure import ROOT, Row, finish, in_child

IMPORT_RUNS = 5
STEP_RUNS = 3  # each is a fresh process of several seconds
IMPORT_TARGET = 1.0  # s
BOOK_TARGET = 20.0  # min

#: Chapter: its model, by its name in `throughput.MODELS`.
FIRST_STEPS = {
    "ranking": "ranking, with features",
    "retrieval": "retrieval, softmax",
    "gru4rec": "GRU4Rec",
    "sasrec": "SASRec",
    "multi_task": "multi-task",
}


class FirstStep:
    """Stands where `throughput.Stopwatch` does, and ends the process when a step is done.

    Args:
        started: `time.time()` when the process was started; the seconds since are handed back.
    """

    def __init__(self, started: float) -> None:
        self.started = started

    def callback(self) -> Any:
        """A Keras callback."""
        import keras

        started = self.started

        class Stop(keras.callbacks.Callback):
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                float(logs["loss"])  # waits until the step is done
                finish({"seconds": time.time() - started})
                raise SystemExit

        return Stop()


def import_seconds() -> float:
    """Seconds that `import rectutor` takes in a fresh interpreter that has imported nothing."""
    program = (
        "import time; began = time.perf_counter(); import rectutor; "
        "print(time.perf_counter() - began)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def measure(quick: bool = False) -> list[Row]:
    """The rows of the group; those of the book are of the last `make book` on this machine."""
    seconds = [import_seconds() for _ in range(IMPORT_RUNS)]
    met = statistics.median(seconds) < IMPORT_TARGET
    rows = [
        Row.of(
            "start-up",
            "import rectutor",
            seconds,
            "s",
            target=f"< {IMPORT_TARGET:g} s",
            met=met,
            limit="" if met else f"the fastest of {IMPORT_RUNS} imports took {min(seconds):.2f} s",
        )
    ]
    if not quick:
        rows += [first_step_row(chapter, case) for chapter, case in FIRST_STEPS.items()]
    return rows + book_rows()


def first_step_row(chapter: str, case: str) -> Row:
    """From the start of a fresh process to the end of the first trained step."""
    found = [
        in_child(__name__, case, time.time(), environment={"KERAS_BACKEND": "jax"})
        for _ in range(STEP_RUNS)
    ]
    return Row.of(
        "start-up",
        f"first trained step: {chapter}",
        [payload["seconds"] for payload, _ in found],
        "s",
        peak_mib=max(peak for _, peak in found),
    )


def book_rows() -> list[Row]:
    """The chapters, the rendering and the whole book, as `make book` last recorded them.

    Nothing where it has not run here.
    """
    build = ROOT / "_build"
    files = {f"make book: {file.stem}": file for file in sorted(build.glob("executed/*.json"))}
    if not files:
        return []
    files["make book: rendering"] = build / "rendered.json"
    seconds = {
        case: float(json.loads(file.read_text(encoding="utf-8"))["seconds"])
        for case, file in files.items()
        if file.is_file()
    }
    longest = max(seconds, key=lambda case: seconds[case])
    total = sum(seconds.values()) / 60
    met = total < BOOK_TARGET
    limit = f"{longest.removeprefix('make book: ')} alone takes {seconds[longest] / 60:.1f} min"
    return [
        *(Row.of("start-up", case, [took], "s") for case, took in seconds.items()),
        Row.of(
            "start-up",
            "make book: all of it",
            [total],
            "min",
            target=f"< {BOOK_TARGET:g} min",
            met=met,
            limit="" if met else limit,
        ),
    ]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        from benchmarks import throughput

        throughput.train(sys.argv[1], FirstStep(float(sys.argv[2])), 1)
    else:
        from benchmarks import report

        print(report.text_tables(measure()))
