"""Runs jobs, one training a core, each on one thread."""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import gc
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from study import core

#: What keeps a worker's libraries to one thread; read by them when they are loaded.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "KERAS_BACKEND": "jax",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def run(names: Sequence[str], smoke: bool = False) -> None:
    """Run what is missing, one training a core, and keep each as it ends.

    Raises:
        SystemExit: a job failed; what the others gave is kept.
    """
    jobs = {job.key: job for job in core.jobs(names)}
    digests = {key: core.digest(job) for key, job in jobs.items()}
    todo = [
        (key, number)
        for key, job in jobs.items()
        for number in ([1] if smoke else core.missing(job, digests[key]))
    ]
    # the first run of every job before the second of any: stopped early, all arms have a figure
    todo.sort(key=lambda pair: pair[1])
    expected = {key: seconds_of(job) for key, job in jobs.items()}
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0, 1]
    print(f"{len(todo)} runs to do, {len(cores)} at a time", flush=True)
    context = multiprocessing.get_context("spawn")
    free = context.Queue()
    for each in cores:
        free.put(each)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: workers must end too
    failed, began, done = [], time.monotonic(), 0.0
    total = sum(expected[key] for key, _ in todo)
    with concurrent.futures.ProcessPoolExecutor(
        len(cores), context, initializer=settle, initargs=(free,)
    ) as pool:
        waiting = {
            pool.submit(work, jobs[key].chapter, key, number, smoke): (key, number)
            for key, number in todo
        }
        try:
            for count, future in enumerate(concurrent.futures.as_completed(waiting), 1):
                key, number = waiting[future]
                done += expected[key]
                if isinstance(future.exception(), concurrent.futures.process.BrokenProcessPool):
                    raise SystemExit("a worker died; what has ended is kept")
                if future.exception():
                    failed.append(f"{key}, run {number}: {future.exception()!r}")
                    print(f"FAILED {failed[-1]}", flush=True)
                    continue
                arms, seconds = future.result()
                if not smoke:
                    core.keep(jobs[key], number, arms, seconds, digests[key])
                left = (time.monotonic() - began) * (total / done - 1)
                print(
                    f"[{count}/{len(todo)}] {key}, run {number}: {seconds:.0f} s, "
                    f"about {left / 60:.0f} min left",
                    flush=True,
                )
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise SystemExit("stopped; what has ended is kept") from None
    if failed:
        raise SystemExit("\n".join(failed))


def seconds_of(job: Any) -> float:
    """How long a run of a job takes: the median of those stored, or its own guess."""
    stored = [run["seconds"] for run in core.read(job)["runs"]]
    return statistics.median(stored) if stored else job.seconds


def settle(free: Any) -> None:
    """Begin a worker: take a core for its own."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {free.get()})


def work(module: str, key: str, number: int, smoke: bool) -> tuple[dict[str, Any], float]:
    """One run of a job, in a worker: the outcome of its arms, and the seconds on its core."""
    job = next(job for job in core.jobs([module]) if job.key == key)
    start = time.process_time()  # a pause, or other work on the machine, takes no part
    arms = job.function(core.Draw(job.chapter, number, "smoke" if smoke else "quick"))
    seconds = time.process_time() - start
    if "keras" in sys.modules:
        sys.modules["keras"].utils.clear_session()
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()
    return arms, seconds
