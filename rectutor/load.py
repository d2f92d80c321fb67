"""Start the service beside this process, and put it under load: `python -m rectutor.load FOLDER`.

The requests are written by hand: a general HTTP client takes more time for a request than the
service does, and would measure itself.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from rectutor.artefact import Service


@dataclass(frozen=True)
class Running:
    """A service in a process of its own.

    Attributes:
        url: where it answers.
        pid: its process.
        seconds: from its start to its first answer.
    """

    url: str
    pid: int
    seconds: float

    def memory(self) -> float:
        """What it holds in memory now, in MB (resident set size)."""
        import psutil

        return float(psutil.Process(self.pid).memory_info().rss) / 1e6

    def processor_seconds(self) -> float:
        """How long it has computed since its start, on all its threads."""
        import psutil

        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)


@dataclass(frozen=True)
class Load:
    """What a service did under load.

    Attributes:
        clients: connections; each sends its next request when it has its answer, or, with a
            `rate`, when one is due.
        rate: requests a second that were due, or `None`.
        requests: answered with 200.
        failed: answered with anything else, or not at all.
        per_second: of the answered.
        p50: milliseconds that half of the answers took. With a `rate` they count from when the
            request was due, so that waiting for a slow one before it is not left out.
        p99: the same for 99 %.
        slowest: the same for all.
    """

    clients: int
    rate: float | None
    requests: int
    failed: int
    per_second: float
    p50: float
    p99: float
    slowest: float


#: Of a table for readers: what is shown of a `Load`, to how it is called.
HEADERS = {
    "clients": "clients",
    "rate": "due a second",
    "failed": "failed",
    "per_second": "answers a second",
    "p50": "p50, ms",
    "p99": "p99, ms",
}


@contextmanager
def started(
    folder: str | os.PathLike[str], *arguments: str, timeout: float = 60
) -> Iterator[Running]:
    """Run the service on a free port of this machine, and stop it at the end.

    Args:
        folder: where `rectutor.artefact.write` wrote.
        *arguments: more for `python -m rectutor.serve`, such as `"--search", "index"`.
        timeout: seconds it may take to start.

    Raises:
        RuntimeError: it does not start; the error has its output.
    """
    paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "rectutor.serve", os.fspath(folder), "--port", "0", *arguments]
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        try:
            while " on http://" not in (said := _all_of(output)):
                if process.poll() is not None or time.perf_counter() - begun > timeout:
                    raise RuntimeError(f"the service did not start within {timeout} s: {said}")
                time.sleep(0.01)
            url = said.split(" on ", 1)[1].split()[0]
            with urllib.request.urlopen(f"{url}/health", timeout=timeout):
                seconds = time.perf_counter() - begun
            yield Running(url, process.pid, seconds)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def measure(
    url: str,
    questions: Iterable[dict[str, Any]],
    clients: int = 1,
    rate: float | None = None,
    seconds: float = 5.0,
) -> Load:
    """Ask for recommendations for a while, and take the time of every answer.

    Args:
        url: of the service, such as `"http://127.0.0.1:8000"`.
        questions: bodies such as `{"history": [50, 181], "k": 10}`, asked in turns.
        clients: connections at once.
        rate: requests a second, evenly spaced, whether or not those before are answered; `None`
            for as many as come.
        seconds: for how long.

    Raises:
        ValueError: there are no questions, or clients, seconds or rate is not above 0.
        OSError: nothing answers there.
    """
    place = urlsplit(url)
    heads = (
        f"POST /recommendations HTTP/1.1\r\nhost: {place.netloc}\r\ncontent-type: application/json"
    )
    bodies = [json.dumps(question).encode() for question in questions]
    requests = [
        f"{heads}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body for body in bodies
    ]
    if not requests or clients < 1 or not seconds > 0 or (rate is not None and not rate > 0):
        raise ValueError(
            f"load.measure: {len(requests)} questions, clients={clients}, rate={rate},"
            f" seconds={seconds}; each must be above 0"
        )
    asking = _ask_for(str(place.hostname), place.port or 80, requests, clients, rate, seconds)
    with ThreadPoolExecutor(1) as thread:  # a notebook's own thread runs an event loop already
        took, failed, elapsed = thread.submit(asyncio.run, asking).result()
    found = 1e3 * np.array(took or [np.nan])
    p50, p99 = np.quantile(found, [0.5, 0.99]).tolist()
    per_second = len(took) / elapsed
    return Load(clients, rate, len(took), failed, per_second, p50, p99, float(found.max()))


def measure_each(
    url: str, questions: Sequence[dict[str, Any]], seconds: float = 5.0
) -> Iterator[Load]:
    """`measure` 1, 8 and 64 clients, and 64 with 200 requests a second, one after the other.

    The last takes so many seconds, 1,000 requests in 5; each of the others a third of that.
    """
    for clients in (1, 8, 64):
        yield measure(url, questions, clients, None, seconds / 3)
    yield measure(url, questions, 64, 200.0, seconds)


def milliseconds(work: Callable[[Any], object], given: Iterable[Any]) -> float:
    """The median time of a call over what it is given."""
    took = []
    for each in given:
        start = time.perf_counter()
        work(each)
        took.append(time.perf_counter() - start)
    return 1e3 * float(np.median(took))


async def _ask_for(
    host: str,
    port: int,
    requests: Sequence[bytes],
    clients: int,
    rate: float | None,
    seconds: float,
) -> tuple[list[float], int, float]:
    """Seconds of each good answer, how many were none, and how long it all took."""
    took: list[float] = []
    failed = 0
    turns = itertools.cycle(requests)
    connections = [await asyncio.open_connection(host, port) for _ in range(clients)]
    for reader, writer in connections:  # what only a first request costs is not counted
        await _answer(reader, writer, next(turns))
    begun = time.perf_counter()
    due = _due(begun, rate, seconds)

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal failed
        for moment in due:
            if (early := moment - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            try:
                good = await _answer(reader, writer, next(turns)) == 200
            except (OSError, EOFError):
                good = False
                reader, writer = await asyncio.open_connection(host, port)
            if good:
                took.append(time.perf_counter() - moment)
            else:
                failed += 1
        writer.close()

    await asyncio.gather(*(client(*connection) for connection in connections))
    return took, failed, time.perf_counter() - begun


def _due(begun: float, rate: float | None, seconds: float) -> Iterator[float]:
    """When the requests are due, for all clients together."""
    if rate is not None:
        yield from (begun + number / rate for number in range(max(1, round(rate * seconds))))
        return
    while (now := time.perf_counter()) < begun + seconds:
        yield now


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> int:
    """Send one request, read all of its answer, and return the status."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    size = head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]
    await reader.readexactly(int(size))
    return int(head.split(b" ", 2)[1])


def _all_of(stream: Any) -> str:
    stream.seek(0)
    return str(stream.read())


def random_questions(folder: str | os.PathLike[str], count: int = 500) -> list[dict[str, Any]]:
    """Made-up histories of 1 to 200 movies, the popular ones more often (seed 1)."""
    service = Service.load(folder)
    rng = np.random.default_rng(1)
    shares = service.counts[1:] + 1.0
    shares /= shares.sum()
    longest = min(200, service.num_movies // 2)
    drawn = (
        rng.choice(service.num_movies, rng.integers(1, longest + 1), replace=False, p=shares)
        for _ in range(count)
    )
    return [{"history": [service.ids[movie + 1] for movie in movies], "k": 10} for movies in drawn]


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the service, and print what it does at 1, 8 and 64 clients, and at 200 a second."""
    parser = argparse.ArgumentParser(prog="python -m rectutor.load", description=main.__doc__)
    parser.add_argument("folder", help="where rectutor.artefact.write wrote")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="at 200 a second; a third for the others"
    )
    parser.add_argument("--search", choices=("exact", "index"), default="exact")
    options = parser.parse_args(arguments)
    questions = random_questions(options.folder)
    with started(options.folder, "--search", options.search) as running:
        print(f"first answer after {running.seconds:.2f} s, {running.memory():.0f} MB")
        print("clients  due/s     requests  failed  requests/s  p50 ms  p99 ms  slowest  CPU ms")
        before = running.processor_seconds()
        for found in measure_each(running.url, questions, options.seconds):
            cost = 1e3 * (running.processor_seconds() - before) / max(1, found.requests)
            before = running.processor_seconds()
            print(
                f"{found.clients:7}  {found.rate or 'any'!s:8}  {found.requests:8}"
                f"  {found.failed:6}  {found.per_second:10.0f}  {found.p50:6.2f}  {found.p99:6.2f}"
                f"  {found.slowest:7.2f}  {cost:6.2f}"
            )
        print(f"{running.memory():.0f} MB at the end")
    return 0


if __name__ == "__main__":
    sys.exit(main())
