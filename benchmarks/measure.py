"""How the benchmarks measure: times with their spread, peak memory in a fresh process, rows."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rectutor.environment import write_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

#: The groups of rows, in the order they run and are shown.
GROUPS = ("preparation", "start-up", "throughput", "time to quality")

LIBRARIES = ("rectutor", "keras", "keras-rs", "keras-hub", "jax", "tensorflow", "torch")
LIBRARIES += ("numpy", "pandas")

#: Tells a child process where its payload goes.
_OUTPUT = "RECTUTOR_BENCH_OUTPUT"


@dataclass(frozen=True)
class Row:
    """One measured figure, what it is compared with, and what was aimed at.

    Attributes:
        group: one of `GROUPS`.
        case: what was measured, unique in its group.
        value: the figure (a median where there are several runs), in `unit`.
        unit: of `value`, `low`, `high` and `reference_value`.
        low: the lowest of the runs, or the lower end of the interval.
        high: the highest.
        runs: how many runs `value` is from.
        first: seconds of warm-up and compilation, which are not in `value`.
        peak_mib: peak memory of the process that measured.
        reference: what it is compared with.
        reference_value: the reference's figure.
        ratio: ours against the reference, always such that more is better for us.
        judged: whether a fall of the ratio fails a run. Not where the reference is the same model
            on our first backend, and not where it was measured on another day.
        target: what was aimed at, as `">= 100 times"`.
        met: whether it was reached.
        limit: one line that says what limits an unmet target, measured.

    Raises:
        ValueError: the group is unknown, `target` and `met` are not given together, or the target
            is unmet and `limit` does not say why.
    """

    group: str
    case: str
    value: float
    unit: str
    low: float
    high: float
    runs: int = 1
    first: float | None = None
    peak_mib: float | None = None
    reference: str | None = None
    reference_value: float | None = None
    ratio: float | None = None
    judged: bool = True
    target: str | None = None
    met: bool | None = None
    limit: str = ""

    def __post_init__(self) -> None:
        name = f"row {self.group!r}, {self.case!r}"
        if self.group not in GROUPS:
            raise ValueError(f"{name}: the group is unknown; choose from {', '.join(GROUPS)}")
        if (self.target is None) != (self.met is None):
            raise ValueError(f"{name}: target={self.target!r} and met={self.met!r}; give both")
        if self.met is False and not self.limit:
            raise ValueError(f"{name}: the target is unmet and limit does not say what limits it")

    @classmethod
    def of(cls, group: str, case: str, values: Sequence[float], unit: str, **more: Any) -> Row:
        """The row of some runs: their median, lowest, highest and number; `more` as for `Row`."""
        value, low, high = statistics.median(values), min(values), max(values)
        return cls(group, case, value, unit, low, high, runs=len(values), **more)

    @property
    def name(self) -> str:
        """Group and case, which together are unique."""
        return f"{self.group}: {self.case}"

    def as_dict(self) -> dict[str, Any]:
        """The row as it is stored."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Row:
        """The row that `as_dict` stored."""
        return cls(**stored)


def seconds_of(function: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def in_child(
    module: str,
    *arguments: object,
    environment: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> tuple[Any, float]:
    """Run `python -m module arguments` in a fresh process, from the root of the repository.

    Args:
        module: the module, as `"benchmarks.startup"`. It hands its figures back with `finish`.
        arguments: its command line.
        environment: variables to set besides those of this process.
        timeout: seconds after which the process is ended.

    Returns:
        What the child gave to `finish`, and the peak of its resident memory in MiB.

    Raises:
        RuntimeError: the child failed or handed nothing back; the message has its last lines.
        subprocess.TimeoutExpired: it took longer than `timeout`.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "payload.json"
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | dict(environment or {}) | {_OUTPUT: str(output)},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode or not output.is_file():
            last = "\n".join((done.stderr or done.stdout).splitlines()[-15:])
            raise RuntimeError(
                f"`python -m {' '.join(command[2:])}` ended with exit status {done.returncode} and "
                f"{'a' if output.is_file() else 'no'} payload:\n{last}"
            )
        stored = json.loads(output.read_text(encoding="utf-8"))
    return stored["payload"], stored["peak_mib"]


def in_turns(
    module: str, children: Mapping[str, Sequence[object]], rounds: int
) -> dict[str, list[tuple[Any, float]]]:
    """Run several children one after the other, again and again.

    A machine that is slow for a minute is then slow for all of them, and their ratio stays.

    Args:
        module: as for `in_child`.
        children: name to command line.
        rounds: how often each runs.

    Returns:
        Name to what `in_child` gave, round by round.
    """
    found: dict[str, list[tuple[Any, float]]] = {name: [] for name in children}
    for _ in range(rounds):
        for name, arguments in children.items():
            found[name].append(in_child(module, *arguments))
    return found


def by_round(found: Sequence[tuple[Any, float]], key: str) -> list[Any]:
    """What the payloads of `in_turns` hold under `key`, round by round."""
    return [payload[key] for payload, _ in found]


def ratio_of(theirs: Sequence[Sequence[float]], ours: Sequence[Sequence[float]]) -> float:
    """How many times as long theirs takes: the median over the rounds of `in_turns`.

    Args:
        theirs: the seconds of the reference's runs, round by round.
        ours: the same of ours.
    """
    rounds = zip(theirs, ours, strict=True)
    return statistics.median(statistics.median(one) / statistics.median(own) for one, own in rounds)


def finish(payload: Any) -> None:
    """Hand figures back to `in_child`, with this process's peak memory; call it last.

    A process that nobody waits for prints them.
    """
    text = json.dumps({"payload": payload, "peak_mib": peak_mib()}, indent=2)
    if output := os.environ.get(_OUTPUT):
        Path(output).write_text(text, encoding="utf-8")
    else:
        print(text)


def peak_mib() -> float:
    """The peak of this process's resident memory so far, in MiB.

    `ru_maxrss` would also count what the parent held when it started us, so Linux's own
    figure is read where there is one.
    """
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == "darwin" else 2**10
    )


def resident_mib() -> float:
    """What this process holds in memory now, in MiB; its peak where the system does not say."""
    return _status("VmRSS") or peak_mib()


def forget_peak() -> None:
    """Let `peak_mib` count from here on, where the system allows it (Linux).

    For a child whose input takes more memory to make than to hold.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _status(field: str) -> float | None:
    """A size in `/proc/self/status`, in MiB."""
    size = _told("/proc/self/status", field)
    return int(size.split()[0]) / 1024 if size else None


def _told(file: str, field: str) -> str | None:
    """What Linux writes behind a field of a file under `/proc`; None on other systems."""
    with contextlib.suppress(FileNotFoundError):
        for line in Path(file).read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return None


def store(stored: Mapping[str, Any], file: Path) -> Path:
    """Write a file that `newest` finds, in one step."""
    return write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", file)


def store_rows(rows: Sequence[Mapping[str, Any]], *files: Path) -> None:
    """Write a list, a row a line, to each of the files."""
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    for file in files:
        write_text(f"[\n{lines}\n]\n", file)


def newest(
    pattern: str, folder: Path = RESULTS, here: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """The newest stored file of a name, whose last part is its date.

    Args:
        pattern: of the names, as `"peers-*.json"`.
        folder: where the files are.
        here: what `machine` gives; then only files of a machine with the same processor and as
            many cores count.
    """
    for file in sorted(folder.glob(pattern), reverse=True):
        stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if here is None or all(stored["machine"][key] == here[key] for key in ("cpu", "cores")):
            return stored
    return None


def machine() -> dict[str, Any]:
    """What the figures were measured on: processor, cores, memory and versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": _told("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": cores,
        "memory_gib": round(memory, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
