"""What the code runs in: a notebook or not, its error stream, what the variables ask for."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


def in_notebook() -> bool:
    """Whether the code runs in a Jupyter kernel (and not in a script or a plain shell)."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def asks_for(variable: str) -> bool:
    """Whether an environment variable such as `RECTUTOR_STRICT` is set, and not to 0."""
    return os.environ.get(variable, "") not in ("", "0")


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Send what is written to file descriptor 2 nowhere, for a while."""
    try:
        saved = os.dup(2)
    except OSError:  # a process without one
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 (a device, not a path)
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
