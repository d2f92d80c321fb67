"""What the code runs in: a notebook or not, its error stream, its variables, its files."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_ON = ("1", "true", "yes", "on")
_OFF = ("0", "false", "no", "off")


def in_notebook() -> bool:
    """Whether the code runs in a Jupyter kernel (and not in a script or a plain shell)."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def is_on(variable: str, default: bool = False) -> bool:
    """Whether an environment variable such as `RECTUTOR_STRICT` is switched on.

    `1`, `true`, `yes` and `on` switch it on, in any case; `0`, `false`, `no` and `off` switch it
    off.

    Args:
        variable: its name.
        default: what holds where it is unset or empty.

    Raises:
        ValueError: it holds something else.
    """
    text = os.environ.get(variable, "").strip().lower()
    if not text:
        return default
    if text in _ON:
        return True
    if text in _OFF:
        return False
    raise ValueError(
        f"{variable} is {os.environ[variable]!r}, which is neither on nor off; set it to 1 or 0, "
        "or unset it"
    )


def folder(variable: str) -> Path | None:
    """The folder that an environment variable names, `~` being one's home; None where it is unset.

    Raises:
        ValueError: it names the home of nobody.
    """
    text = os.environ.get(variable)
    try:
        return Path(text).expanduser() if text else None
    except RuntimeError as error:
        raise ValueError(f"{variable} is {text!r}: {error}; give a folder's path") from None


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


def check_writable(folder: Path, variable: str) -> None:
    """Make a folder, and say at once if nothing can be written to it.

    Args:
        folder: the folder.
        variable: the environment variable that names another.

    Raises:
        OSError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"nothing can be written to {folder} ({error.strerror}); set {variable} to a folder "
            "that can be written to"
        ) from None


def write_text(text: str, path: Path) -> Path:
    """Write a text file in one step, the old file or the new one, and make its folder.

    Raises:
        OSError: the folder cannot be written; an older file stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-", suffix=path.suffix)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
