"""Where the data comes from: archives at hand, GroupLens, the package index, TensorFlow Datasets.

Everything is verified against a pinned sha256 before it is parsed, archives are read member by
member under a size limit, and nothing is extracted to disk, installed, imported or unpickled.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from rectutor._tables import Tables, parse_1m, parse_100k, parse_recbole, parse_tfds

logger = logging.getLogger("rectutor.data")

_T = TypeVar("_T")

_SCHEME = "https"  # the only one a download or a redirect may have
_CONNECT_SECONDS = 10.0
_TRIES = 2
_SLOWEST = 16_384  # bytes a second, judged after the first ten seconds
_PIP_SECONDS = 90.0
_MEMBER_LIMIT = 64 * 2**20
_CHUNK = 2**16


class SourceError(Exception):
    """One source cannot give the data; the message says why and what to do."""


class CorruptError(SourceError):
    """What a source gave is not what it must be."""


@dataclass(frozen=True)
class Archive:
    """A zip file whose content is known.

    Attributes:
        file: its name.
        url: where it is published.
        size: its length in bytes.
        sha256: its checksum.
        members: the files that are read, by the name the parser knows them under.
        member_sha256: their checksums, where known: a re-zipped archive is verified by these.
        parse: from the members' bytes to tables.
    """

    file: str
    url: str
    size: int
    sha256: str
    members: dict[str, str]
    parse: Callable[[dict[str, bytes]], Tables]
    member_sha256: dict[str, str] = field(default_factory=dict)


GROUPLENS = {
    "100k": Archive(
        file="ml-100k.zip",
        url="https://files.grouplens.org/datasets/movielens/ml-100k.zip",
        size=4_924_029,
        sha256="50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        members={name: f"ml-100k/{name}" for name in ("u.data", "u.item", "u.user")},
        parse=parse_100k,
        member_sha256={
            "u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
            "u.item": "553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701",
            "u.user": "f120e114da2e8cf314fd28f99417c94ae9ddf1cb6db8ce0e4b5995d40e90e62c",
        },
    ),
    "1m": Archive(
        file="ml-1m.zip",
        url="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
        size=5_917_549,
        sha256="a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
        members={name: f"ml-1m/{name}" for name in ("ratings.dat", "movies.dat", "users.dat")},
        parse=parse_1m,
    ),
}

_RECBOLE = "recbole==1.2.1"
PYPI = {
    "100k": Archive(
        file="recbole-1.2.1-py3-none-any.whl",
        url="https://pypi.org/project/recbole/1.2.1/",
        size=2_130_151,
        sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        members={
            name: f"recbole/dataset_example/ml-100k/{name}"
            for name in ("ml-100k.inter", "ml-100k.item", "ml-100k.user")
        },
        parse=parse_recbole,
    ),
}


def from_archives(name: str) -> Tables | None:
    """The tables from an archive in `RECTUTOR_ARCHIVES`, or None where there is none.

    Raises:
        CorruptError: the archive is there and is not what GroupLens published.
    """
    chosen = os.environ.get("RECTUTOR_ARCHIVES")
    if not chosen:
        return None
    archive = GROUPLENS[name]
    file = Path(chosen).expanduser() / archive.file
    if not file.is_file():
        logger.info("archives: no %s in RECTUTOR_ARCHIVES", archive.file)
        return None
    try:
        if file.stat().st_size > 4 * archive.size + 2**20:
            raise CorruptError(f"{file} is far larger than {archive.file}; remove it")
        with file.open("rb") as stream:
            tables = read_archive(archive, stream, where=str(file))
    except OSError as error:
        raise SourceError(f"{file} cannot be read ({error})") from error
    logger.info("archives: read %s", file)
    return tables


def read_archive(archive: Archive, stream: Any, *, where: str) -> Tables:
    """Verify an archive and parse its members.

    Args:
        archive: what it must be.
        stream: the archive, a binary file opened for reading.
        where: what to call it in errors.

    Raises:
        CorruptError: neither the archive nor, where known, its members have the right checksum;
            or a member is missing, too large or damaged.
    """
    whole = hashlib.file_digest(stream, "sha256").hexdigest() == archive.sha256
    if not whole and not archive.member_sha256:
        raise CorruptError(
            f"{where} has the wrong checksum: it is damaged or not {archive.file} as published;"
            f" remove it, or get it anew from {archive.url}"
        )
    stream.seek(0)
    contents = {}
    try:
        with zipfile.ZipFile(stream) as opened:
            for name, member in archive.members.items():
                contents[name] = _member(opened, member, where)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        OSError,
    ) as error:
        raise CorruptError(
            f"{where} is not a sound zip file ({error}); get it anew from {archive.url}"
        ) from error
    if not whole:
        for name, content in contents.items():
            if hashlib.sha256(content).hexdigest() != archive.member_sha256[name]:
                raise CorruptError(
                    f"{where}: member {archive.members[name]} has the wrong checksum;"
                    f" get the archive anew from {archive.url}"
                )
    try:
        return archive.parse(contents)
    except (ValueError, KeyError, IndexError) as error:
        raise CorruptError(f"{where} cannot be parsed: {error}") from error


def _member(opened: zipfile.ZipFile, name: str, where: str) -> bytes:
    """One member's bytes, by its exact name, never more than `_MEMBER_LIMIT`."""
    try:
        info = opened.getinfo(name)
    except KeyError:
        raise CorruptError(f"{where} has no member {name}; get the archive anew") from None
    if info.file_size > _MEMBER_LIMIT:
        raise CorruptError(
            f"{where}: member {name} would unpack to {info.file_size:,} bytes,"
            f" more than the {_MEMBER_LIMIT:,} allowed"
        )
    with opened.open(info) as stream:
        return stream.read(_MEMBER_LIMIT)


def from_grouplens(name: str) -> Tables:
    """Download an archive from GroupLens and parse it.

    `keras.utils.get_file` would do with one line, but it has no time-out, follows redirects to
    any host, reads bodies of any length and verifies only what it has already written under the
    final name; and it imports Keras.

    Raises:
        SourceError: two tries failed; the message has the last reason.
    """
    archive = GROUPLENS[name]
    reason: Exception | None = None
    for attempt in range(1, _TRIES + 1):
        logger.info("grouplens: downloading %s (try %d of %d)", archive.url, attempt, _TRIES)
        try:
            with tempfile.TemporaryFile() as stream:  # has no name: nothing is left behind
                _download(archive, stream)
                stream.seek(0)
                return read_archive(archive, stream, where=archive.url)
        except (OSError, http.client.HTTPException, SourceError, ValueError) as error:
            reason = error
            logger.info("grouplens: failed: %s", error)
            if isinstance(error, urllib.error.HTTPError):
                error.close()
                if error.code < 500:
                    break  # asking again would be answered the same
    raise SourceError(
        f"{archive.url} could not be had ({reason}); put {archive.file} into a folder and name"
        " that in RECTUTOR_ARCHIVES"
    )


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follow a redirect only to the same host and over `_SCHEME`."""

    max_redirections = 5

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        target = urllib.parse.urlsplit(newurl)
        if target.scheme != _SCHEME or target.netloc != urllib.parse.urlsplit(req.full_url).netloc:
            raise CorruptError(f"{req.full_url} redirects to {newurl}, which is not allowed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(archive: Archive, stream: IO[bytes]) -> None:
    """Stream an archive's bytes into `stream`, exactly as many as it has.

    Raises:
        SourceError: longer, shorter or slower than it may be.
        OSError: no connection, or the connection broke.
    """
    if urllib.parse.urlsplit(archive.url).scheme != _SCHEME:
        raise SourceError(f"{archive.url} is not {_SCHEME}")
    opener = urllib.request.build_opener(_SameHost)
    request = urllib.request.Request(archive.url, headers={"User-Agent": "rectutor"})
    response = within(
        _CONNECT_SECONDS, lambda: opener.open(request, timeout=_CONNECT_SECONDS), "connecting"
    )
    started = time.monotonic()
    received = 0
    with response:
        # read1 gives what has arrived, so that a trickle cannot hold the loop
        while chunk := response.read1(_CHUNK):
            received += len(chunk)
            elapsed = time.monotonic() - started
            if received > archive.size:
                raise CorruptError(f"{archive.url} is longer than {archive.size:,} bytes")
            if elapsed > _CONNECT_SECONDS and received < elapsed * _SLOWEST:
                raise SourceError(f"{archive.url} came at {received / elapsed:.0f} bytes a second")
            stream.write(chunk)
    if received != archive.size:
        raise CorruptError(f"{archive.url} ended after {received:,} of {archive.size:,} bytes")


def within(seconds: float, action: Callable[[], _T], what: str) -> _T:
    """Run `action`, and give up waiting for it after `seconds`.

    Time-outs of sockets do not cover looking a name up, nor a header that arrives in drops.

    Raises:
        TimeoutError: it took longer; whatever `action` raises otherwise.
    """
    outcome: list[_T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(action())
        except BaseException as error:  # handed to the caller's thread below
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not outcome:
        raise TimeoutError(f"{what} took more than {seconds:.0f} s")
    return outcome[0]


def from_pypi(name: str) -> Tables:
    """Read MovieLens 100K out of the RecBole wheel, fetched with pip and never installed.

    Raises:
        SourceError: no such data set there, no pip, no index, no wheel, or another one.
    """
    if name not in PYPI:
        raise SourceError(f"the package index has no copy of {name!r}, only of '100k'")
    archive = PYPI[name]
    try:
        with tempfile.TemporaryDirectory(prefix="rectutor-") as folder:
            file = Path(folder) / archive.file
            _pip_download(folder)
            if not file.is_file():
                raise SourceError(f"pip download brought no {archive.file}")
            if file.stat().st_size != archive.size:
                raise CorruptError(
                    f"the index's {archive.file} has {file.stat().st_size:,} bytes,"
                    f" not {archive.size:,}"
                )
            with file.open("rb") as stream:
                return read_archive(archive, stream, where=f"the package index's {archive.file}")
    except OSError as error:  # no room, no pip
        raise SourceError(f"the wheel could not be fetched ({error})") from error


def _pip_download(folder: str) -> None:
    """Let pip fetch the RecBole wheel into `folder`, from the index it is set up for.

    Raises:
        SourceError: there is no pip, or it failed, or it took too long.
    """
    logger.info("pypi: pip download --no-deps %s", _RECBOLE)
    options = "--no-deps --only-binary=:all: --no-input --disable-pip-version-check --quiet"
    limits = f"--timeout {max(_CONNECT_SECONDS, 1):.0f} --retries {_TRIES - 1}"
    command = [*_pip(), "download", *options.split(), *limits.split(), "-d", folder, _RECBOLE]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PIP_SECONDS,
            check=False,
            cwd=folder,
        )
    except subprocess.TimeoutExpired:
        raise SourceError(f"pip download took more than {_PIP_SECONDS:.0f} s") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise SourceError(f"pip download failed: {said[-1] if said else done.returncode}")


def _pip() -> list[str]:
    """The command that runs pip: this environment's, or where it has none, the one on the path."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip3") or shutil.which("pip")
    if found is None:
        raise SourceError("there is no pip to download with; `python -m ensurepip` installs it")
    return [found]


def from_tfds(name: str) -> Tables:
    """Prepare and read the data set with the real `tfds.load`.

    Rows come back sorted by time, user and movie, because TFDS does not keep the file's order.

    Raises:
        SourceError: TensorFlow Datasets is not installed, or could not prepare the data.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        tfds: Any = importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise SourceError(
            f"TensorFlow Datasets cannot be imported ({error});"
            ' pip install "rectutor[tensorflow]" (version 4.9.10 needs importlib_resources'
            " without asking for it)"
        ) from error
    logger.info("tfds: loading movielens/%s-ratings and movielens/%s-movies", name, name)
    try:
        return parse_tfds(*_tfds_columns(tfds, name))
    except Exception as error:  # whatever TFDS and TensorFlow raise
        raise SourceError(f"TensorFlow Datasets failed: {type(error).__name__}: {error}") from error


def _tfds_columns(
    tfds: Any, name: str
) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, np.ndarray]]:
    """The columns of both TFDS data sets, as `parse_tfds` takes them."""
    age = "raw_user_age" if name == "100k" else "bucketized_user_age"
    wanted = {
        "user": "user_id",
        "movie": "movie_id",
        "rating": "user_rating",
        "timestamp": "timestamp",
        "age": age,
        "gender": "user_gender",
        "occupation": "user_occupation_text",
        "zip_code": "user_zip_code",
    }
    ratings = tfds.load(f"movielens/{name}-ratings", split="train")
    # Batches of thousands instead of single records: a pass takes seconds, not half a minute.
    ratings = ratings.map(lambda record: {k: record[v] for k, v in wanted.items()}).batch(8192)
    batches = list(tfds.as_numpy(ratings))
    columns = {k: np.concatenate([batch[k] for batch in batches]) for k in wanted}
    for key in ("user", "movie", "rating", "timestamp", "age"):
        columns[key] = columns[key].astype(np.int64)
    for key in ("occupation", "zip_code"):
        columns[key] = np.array([text.decode() for text in columns[key]], dtype=object)
    listing, info = tfds.load(f"movielens/{name}-movies", split="train", with_info=True)
    genre_name = info.features["movie_genres"].feature.int2str
    records = list(tfds.as_numpy(listing))
    movies = {
        "movie": np.array([int(record["movie_id"]) for record in records]),
        "title": [record["movie_title"].decode() for record in records],
        "genres": [[genre_name(g) for g in record["movie_genres"]] for record in records],
    }
    split = ("user", "movie", "rating", "timestamp")
    return (
        {k: columns[k] for k in split},
        movies,
        {k: v for k, v in columns.items() if k not in split},
    )
