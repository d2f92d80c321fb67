"""How far the execution of the chapters is: a line rewritten on a terminal, rare lines in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, TextIO

#: Seconds between two updates on a terminal, and between two lines in a log.
TERMINAL_INTERVAL, LOG_INTERVAL = 1.0, 60.0


class _Place(NamedTuple):
    """Where a chapter is: the cell that runs, of how many, and since when."""

    cell: int
    cells: int
    since: float


class Progress:
    """Tells which cells of which chapters run, and about how long the rest will take.

    Use it as a context manager, call `start` with every chapter and `cell` with every cell; each
    may come from a thread of its own.

    Args:
        expected: the seconds that each code cell took the last time, for every chapter that is
            to run, in order; an empty list where that is not known.
        out: where the lines go; by default to standard output.
        clock: tells the time in seconds.
        jobs: how many chapters run at once.
    """

    def __init__(
        self,
        expected: Mapping[str, Sequence[float]],
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        jobs: int = 1,
    ) -> None:
        self.expected = {name: list(seconds) for name, seconds in expected.items()}
        self.out = out or sys.stdout
        self.clock = clock
        self.jobs = jobs
        self.on_terminal = self.out.isatty()
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._running: dict[str, _Place] = {}
        self._done: set[str] = set()
        self._took = self._should_have_taken = 0.0
        self._last_log: float | None = None
        self._width = 0

    def __enter__(self) -> Progress:
        """Begin to tell the time."""
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType
    ) -> None:
        """Stop, and leave the terminal's line empty."""
        self._over.set()
        self._ticker.join()
        self._wipe()

    def start(self, name: str, cells: int) -> None:
        """A chapter with so many code cells begins."""
        with self._lock:
            known = self.expected.get(name, [])
            if known and len(known) != cells:  # cells were added or taken out: spread the time
                known = [sum(known) / cells] * cells
            self.expected[name] = known
            self._running[name] = _Place(0, cells, self.clock())
        self.show()

    def cell(self, name: str, index: int) -> None:
        """The code cell of that index (from 0) of that chapter is done."""
        with self._lock:
            place, now = self._running[name], self.clock()
            if self.expected[name]:
                self._took += now - place.since
                self._should_have_taken += self.expected[name][index]
            self._running[name] = _Place(index + 1, place.cells, now)
            if index + 1 == place.cells:
                del self._running[name]
                self._done.add(name)
        self.show()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        with self._lock:
            self._wipe()
            print(line, file=self.out, flush=True)

    def show(self) -> None:
        """Show where it is: at once on a terminal, once a minute in a log."""
        with self._lock:
            if not self._running:
                return
            if self.on_terminal:
                line = self.line()
                print(f"\r{line:<{self._width}}", end="", file=self.out, flush=True)
                self._width = len(line)
            elif self._last_log is None or self.clock() - self._last_log >= LOG_INTERVAL:
                self._last_log = self.clock()
                print(self.line(), file=self.out, flush=True)

    def line(self) -> str:
        """Where it is, in words."""
        names = list(self.expected)
        places = [
            f"[{names.index(name) + 1}/{len(names)}] {name}: cell {at.cell + 1} of {at.cells}"
            for name, at in self._running.items()
        ]
        return f"{', '.join(places)}{in_words(self.seconds_left())}"

    def seconds_left(self) -> float | None:
        """About how long the rest takes, at the pace of what is done; None if not known."""
        rest = {name: self.expected[name] for name in self.expected if name not in self._done}
        if not all(rest.values()):
            return None
        pace = self._took / self._should_have_taken if self._should_have_taken > 10 else 1.0
        left = {name: pace * sum(seconds) for name, seconds in rest.items()}
        for name, at in self._running.items():
            here, *later = rest[name][at.cell :]
            left[name] = max(0.0, pace * here - (self.clock() - at.since)) + pace * sum(later)
        return max(*left.values(), sum(left.values()) / self.jobs, 0.0)

    def _tick(self) -> None:
        while not self._over.wait(TERMINAL_INTERVAL):
            self.show()

    def _wipe(self) -> None:
        if self._width:
            print(f"\r{'':<{self._width}}\r", end="", file=self.out, flush=True)
            self._width = 0


def in_words(seconds: float | None) -> str:
    """`, about 4 min left`; nothing where it is not known."""
    if seconds is None:
        return ""
    if seconds < 60:
        return ", less than a minute left"
    return f", about {seconds / 60:.0f} min left"
