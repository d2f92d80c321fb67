"""What the code runs in: a notebook or not, and what the environment variables ask for."""

from __future__ import annotations

import os
import sys


def in_notebook() -> bool:
    """Whether the code runs in a Jupyter kernel (and not in a script or a plain shell)."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def asks_for(variable: str) -> bool:
    """Whether an environment variable such as `RECTUTOR_STRICT` is set, and not to 0."""
    return os.environ.get(variable, "") not in ("", "0")
