"""The cache of parsed tables: one verified file a data set, written whole or not at all.

A cache file is one text line `rectutor-cache SCHEMA SHA256`, then what the checksum covers: one
JSON line that says how many bytes each table has, then the tables as Arrow IPC (Feather) streams.
Nothing in it is ever executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from rectutor._tables import SCHEMA_VERSION, Tables

logger = logging.getLogger("rectutor.data")

_MAGIC = "rectutor-cache"
_LOCK_SECONDS = 25.0


class StaleCacheError(Exception):
    """The file is not a whole cache file of this schema."""


def folder() -> Path:
    """The cache folder: `RECTUTOR_CACHE`, or the platform's cache folder for rectutor."""
    chosen = os.environ.get("RECTUTOR_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("rectutor", appauthor=False))


def path(name: str, source: str) -> Path:
    """Where the tables of a data set from one source are kept."""
    return folder() / f"movielens-{name}-{source}.arrow"


def load(file: Path) -> Tables | None:
    """The tables in a cache file, or None where there is none that can be used."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("cache: %s cannot be read (%s); loading from the source", file, error)
        return None
    try:
        return decode(content)
    except StaleCacheError as error:
        logger.info("cache: %s is not usable (%s); building it anew", file.name, error)
        return None


def store(file: Path, tables: Tables) -> None:
    """Write a cache file: under a temporary name, flushed, then moved into place.

    A cache that cannot be written costs the next load its speed, never this load its tables: the
    reason is one warning line. Call it under `locked`.
    """
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        for left_over in file.parent.glob(f"{file.name}.*.tmp"):  # of a process that was killed
            left_over.unlink(missing_ok=True)
        try:
            with temporary.open("wb") as stream:
                stream.write(encode(tables))
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(file)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        logger.warning(
            "cache: %s cannot be written (%s); set RECTUTOR_CACHE to a folder with room",
            file,
            error,
        )


@contextlib.contextmanager
def locked(file: Path) -> Iterator[bool]:
    """Hold the lock of a cache file while filling it, so that one process does and others wait.

    Yields:
        Whether the cache may be written: False where the folder cannot be used (one warning
        line) or another process holds the lock for longer than `_LOCK_SECONDS`.
    """
    import filelock

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(f"{file}.lock")
        lock.acquire(timeout=_LOCK_SECONDS)
    except filelock.Timeout:
        logger.warning(
            "cache: another process has held %s.lock for %.0f s; loading without the cache",
            file,
            _LOCK_SECONDS,
        )
        yield False
        return
    except (OSError, NotImplementedError) as error:
        logger.warning(
            "cache: %s cannot be written (%s); set RECTUTOR_CACHE to a folder with room",
            file.parent,
            error,
        )
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def encode(tables: Tables) -> bytes:
    """The bytes of a cache file."""
    import pyarrow as pa

    parts: list[bytes] = []
    for frame in tables:
        if frame is None:
            parts.append(b"")
            continue
        table = pa.Table.from_pandas(frame, preserve_index=False)
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_file(sink, table.schema, options=options) as writer:
            writer.write_table(table)
        parts.append(sink.getvalue().to_pybytes())
    sizes = json.dumps({"sizes": [len(part) for part in parts]}).encode()
    body = b"\n".join([sizes, b"".join(parts)])
    digest = hashlib.sha256(body).hexdigest()
    return f"{_MAGIC} {SCHEMA_VERSION} {digest}\n".encode() + body


def decode(content: bytes) -> Tables:
    """The tables in the bytes of a cache file.

    Raises:
        StaleCacheError: another schema, or a byte is not what was written.
    """
    import pyarrow as pa

    first = content[:128].split(b"\n", 1)[0]
    fields = first.decode("ascii", errors="replace").split(" ")
    if len(fields) != 3 or fields[0] != _MAGIC:
        raise StaleCacheError("it has no cache header")
    if fields[1] != str(SCHEMA_VERSION):
        raise StaleCacheError(f"its schema is {fields[1]}, this version writes {SCHEMA_VERSION}")
    body = memoryview(content)[len(first) + 1 :]
    if hashlib.sha256(body).hexdigest() != fields[2]:
        raise StaleCacheError("its checksum does not match its content")
    line = content[len(first) + 1 : len(first) + 512].split(b"\n", 1)[0]
    start = len(line) + 1
    frames = []
    try:
        for size in json.loads(line)["sizes"]:
            part = pa.py_buffer(body[start : start + size])
            start += size
            frames.append(pa.ipc.open_file(part).read_all().to_pandas() if size else None)
    except (pa.ArrowException, ValueError, KeyError) as error:  # written by another pyarrow
        raise StaleCacheError(f"pyarrow {pa.__version__} cannot read it: {error}") from error
    ratings, movies, users = frames
    assert ratings is not None
    assert movies is not None
    return Tables(ratings, movies, users)
