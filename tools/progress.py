"""How far the execution of the chapters is: a line rewritten on a terminal, rare lines in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TextIO

#: Seconds between two updates on a terminal, and between two lines in a log.
TERMINAL_INTERVAL, LOG_INTERVAL = 1.0, 60.0


class Progress:
    """Tells which cell of which chapter runs, and about how long the rest will take.

    Use it as a context manager, call `start` with every chapter and `cell` with every cell.

    Args:
        expected: the seconds that each code cell took the last time, for every chapter that is
            to run, in order; an empty list where that is not known.
        out: where the lines go; by default to standard output.
        clock: tells the time in seconds.
    """

    def __init__(
        self,
        expected: Mapping[str, Sequence[float]],
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.expected = dict(expected)
        self.out = out or sys.stdout
        self.clock = clock
        self.on_terminal = self.out.isatty()
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._name, self._cell, self._cells, self._cell_start = "", 0, 0, clock()
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
            known = list(self.expected.get(name, ()))
            if known and len(known) != cells:  # cells were added or taken out: spread the time
                known = [sum(known) / cells] * cells
            self.expected[name] = known
            self._name, self._cell, self._cells, self._cell_start = name, 0, cells, self.clock()
        self.show()

    def cell(self, index: int) -> None:
        """The code cell of that index (from 0) is done."""
        with self._lock:
            now = self.clock()
            if self.expected[self._name]:
                self._took += now - self._cell_start
                self._should_have_taken += self.expected[self._name][index]
            self._cell, self._cell_start = index + 1, now
        self.show()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        with self._lock:
            self._wipe()
            print(line, file=self.out, flush=True)

    def show(self) -> None:
        """Show where it is: at once on a terminal, once a minute in a log."""
        with self._lock:
            if not self._name or self._cell == self._cells:
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
        place = f"[{names.index(self._name) + 1}/{len(names)}] {self._name}"
        return f"{place}: cell {self._cell + 1} of {self._cells}{in_words(self.seconds_left())}"

    def seconds_left(self) -> float | None:
        """About how long the rest takes, at the pace of what is done; None if not known."""
        names = list(self.expected)
        here = self.expected[self._name]
        later = [self.expected[name] for name in names[names.index(self._name) + 1 :]]
        if not here or not all(later):
            return None
        pace = self._took / self._should_have_taken if self._should_have_taken > 10 else 1.0
        running = max(0.0, pace * here[self._cell] - (self.clock() - self._cell_start))
        return running + pace * (sum(here[self._cell + 1 :]) + sum(map(sum, later)))

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
