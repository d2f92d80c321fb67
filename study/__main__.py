"""Run the study.

usage: python -m study run [NAME ...]       run what is missing, of all chapters or of some
       python -m study smoke [NAME ...]     one run of every job on synthetic data; nothing is kept
       python -m study status               what is stored, what is missing
       python -m study summary              write rectutor/included/study.json from what is stored
       python -m study check                is that file what the stored figures give?

Each core takes one training at a time, on one thread: small models hardly gain from a second one.
Stop it whenever you like (Ctrl-C): what has ended is kept, and `run` goes on from there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from study import core, runner, summary


def main(arguments: Sequence[str]) -> None:
    """Do what the command line asks."""
    action, names = (arguments[0] if arguments else ""), arguments[1:]
    if action in ("run", "smoke"):
        os.environ.update(runner.ONE_THREAD)
        runner.run(names, smoke=action == "smoke")
    elif action == "status":
        status()
    elif action in ("summary", "check"):
        summary.write() if action == "summary" else summary.check()
    else:
        raise SystemExit(__doc__)


def status() -> None:
    """Print a line a job."""
    for job in core.jobs():
        done = job.runs - len(core.missing(job, core.digest(job)))
        each = runner.seconds_of(job)
        print(f"{job.key:40} {done:2d} of {job.runs} runs, {each:.0f} s each")


if __name__ == "__main__":
    main(sys.argv[1:])
