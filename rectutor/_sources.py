"""Where the data comes from: archives at hand, GroupLens, the package index, TensorFlow Datasets.

Everything is verified against a pinned sha256 before it is parsed, archives are read member by
member under a size limit, and nothing is extracted to disk, installed, imported or unpickled.
What is downloaded is an archive, and `pooch` keeps it: it checks the file at each load, writes a
new one under a temporary name and moves it into place when its checksum is right, so that of
several processes each reads a whole archive.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib
import importlib.resources
import importlib.util
import io
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
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rectutor import _tables, environment
from rectutor._tables import Tables

logger = logging.getLogger("rectutor.data")

_T = TypeVar("_T")

_SCHEME = "https"  # the only one a download may have
_CONNECT_SECONDS = 10.0
_TRIES = 2
_SLOWEST = 16_384  # bytes a second, judged after the first ten seconds: 6 MB have six minutes
_PIP_SECONDS = 90.0
_MEMBER_LIMIT = 64 * 2**20
_CHUNK = 2**16
_RECBOLE = "recbole==1.2.1"


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
        parse: from the members' bytes to tables.
        member_sha256: their checksums, where known: a re-zipped archive is verified by these.
    """

    file: str
    url: str
    size: int
    sha256: str
    members: dict[str, str]
    parse: Callable[[dict[str, bytes]], Tables]
    member_sha256: dict[str, str] = field(default_factory=dict)


#: The archives that a data set can be read from, by the source and the data set's name.
ARCHIVES = {
    ("grouplens", "100k"): Archive(
        file="ml-100k.zip",
        url="https://files.grouplens.org/datasets/movielens/ml-100k.zip",
        size=4_924_029,
        sha256="50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        members={name: f"ml-100k/{name}" for name in ("u.data", "u.item", "u.user")},
        parse=_tables.parse_100k,
        member_sha256={
            "u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
            "u.item": "553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701",
            "u.user": "f120e114da2e8cf314fd28f99417c94ae9ddf1cb6db8ce0e4b5995d40e90e62c",
        },
    ),
    ("grouplens", "1m"): Archive(
        file="ml-1m.zip",
        url="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
        size=5_917_549,
        sha256="a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
        members={name: f"ml-1m/{name}" for name in ("ratings.dat", "movies.dat", "users.dat")},
        parse=_tables.parse_1m,
    ),
    ("pypi", "100k"): Archive(
        file="recbole-1.2.1-py3-none-any.whl",
        url="https://pypi.org/project/recbole/1.2.1/",
        size=2_130_151,
        sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        members={
            name: f"recbole/dataset_example/ml-100k/{name}"
            for name in ("ml-100k.inter", "ml-100k.item", "ml-100k.user")
        },
        parse=_tables.parse_recbole,
    ),
    ("included", "latest-small"): Archive(
        file="ml-latest-small.zip",
        url="https://grouplens.org/datasets/movielens/latest/",
        size=818_582,
        sha256="a0b729758899b154b4ef4b0968f082eb854dd1558fd6c7e481dc75680965bc88",
        members={name: f"ml-latest-small/{name}" for name in ("ratings.csv", "movies.csv")},
        parse=_tables.parse_latest,
    ),
}


def order(name: str) -> Iterator[str]:
    """The sources to try for a data set: first those that need no network this time.

    One that is given or included comes before the cache is looked for, which loads pooch.
    """

    def is_given(source: str) -> bool:
        archive = ARCHIVES[source, name]
        return source == "included" or (source == "grouplens" and _at_hand(archive) is not None)

    def is_kept(source: str) -> bool:
        try:
            return (cache() / ARCHIVES[source, name].file).is_file()
        except OSError:  # `kept` says so
            return False

    left = [source for source, known in ARCHIVES if known == name]
    for is_near in (is_given, is_kept, bool):
        near = [source for source in left if is_near(source)]
        left = [source for source in left if source not in near]
        yield from near


def load(name: str, source: str) -> Tables:
    """The tables of a data set from one source.

    Raises:
        SourceError: it has no such data set, or cannot give it.
    """
    if source == "tfds":
        return from_tfds(name)
    archive = ARCHIVES.get((source, name))
    if archive is None:
        known = [repr(other) for each, other in ARCHIVES if each == source]
        raise SourceError(f"it has no copy of {name!r}, only of {' and '.join(known)}")
    if source == "included":
        place = importlib.resources.files("rectutor") / "included" / archive.file
        return read_archive(archive, place.read_bytes(), where=str(place))
    if source == "pypi":
        return read_archive(archive, kept(archive, _wheel), where=f"the index's {archive.file}")
    if file := _at_hand(archive):
        try:
            return _read(archive, file)
        except SourceError as error:
            logger.warning("archives: %s; trying the next source", error)
    return read_archive(archive, kept(archive, download), where=archive.url)


def _at_hand(archive: Archive) -> Path | None:
    """The file in `RECTUTOR_ARCHIVES`, where there is one."""
    folder = environment.folder("RECTUTOR_ARCHIVES")
    file = folder / archive.file if folder else None
    return file if file is not None and file.is_file() else None


def _read(archive: Archive, file: Path) -> Tables:
    """The tables from an archive at hand."""
    try:
        if file.stat().st_size > 4 * archive.size + 2**20:
            raise CorruptError(f"{file} is far larger than {archive.file}; remove it")
        content = file.read_bytes()
    except OSError as error:
        raise SourceError(f"{file} cannot be read ({error})") from error
    tables = read_archive(archive, content, where=str(file))
    logger.info("archives: read %s", file)
    return tables


def read_archive(archive: Archive, content: bytes, *, where: str) -> Tables:
    """Verify an archive and parse its members.

    Args:
        archive: what it must be.
        content: the bytes of the zip file.
        where: what to call it in errors.

    Raises:
        CorruptError: neither the archive nor, where known, its members have the right checksum;
            or a member is missing, too large or damaged.
    """
    whole = hashlib.sha256(content).hexdigest() == archive.sha256
    if not whole and not archive.member_sha256:
        raise CorruptError(
            f"{where} has the wrong checksum: it is damaged or not {archive.file} as published;"
            f" remove it, or get it anew from {archive.url}"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as opened:
            members = {
                name: _member(opened, member, where) for name, member in archive.members.items()
            }
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError) as error:
        raise CorruptError(
            f"{where} is not a sound zip file ({error}); get it anew from {archive.url}"
        ) from error
    for name, text in members.items() if not whole else ():
        if hashlib.sha256(text).hexdigest() != archive.member_sha256[name]:
            raise CorruptError(
                f"{where}: member {archive.members[name]} has the wrong checksum;"
                f" get the archive anew from {archive.url}"
            )
    try:
        return archive.parse(members)
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


def _pooch() -> Any:
    """pooch, without what tqdm, which it loads, says about widgets that nobody asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("pooch")


def cache() -> Path:
    """The cache folder: `RECTUTOR_CACHE`, or the platform's cache folder for rectutor."""
    return environment.folder("RECTUTOR_CACHE") or Path(_pooch().os_cache("rectutor"))


def kept(archive: Archive, fetch: Callable[[Archive], bytes]) -> bytes:
    """The bytes of an archive out of the cache, which `fetch` fills where it has no sound one.

    A cache that cannot be used costs the next load its speed, never this load its data: the
    reason is one warning line.

    Raises:
        SourceError: `fetch` could not bring the archive, or brought another one.
    """
    pooch = _pooch()
    pooch.get_logger().setLevel(logging.WARNING)  # what there is to say is said by our own logger
    fetched: list[bytes] = []

    def bring(url: str, file: str, _: Any) -> None:
        fetched.append(fetch(archive))
        Path(file).write_bytes(fetched[0])

    try:
        file = pooch.retrieve(archive.url, archive.sha256, archive.file, cache(), downloader=bring)
        content = Path(file).read_bytes()
    except ValueError as error:  # pooch's word for a wrong checksum
        raise CorruptError(f"{archive.file} has the wrong checksum ({error})") from error
    except OSError as error:
        logger.warning(
            "cache: %s cannot be used (%s); set RECTUTOR_CACHE to a folder with room",
            cache(),
            error,
        )
        return fetched[0] if fetched else fetch(archive)
    if not fetched:
        logger.info("cache: read %s", file)
    return content


def download(archive: Archive) -> bytes:
    """Download an archive, exactly as many bytes as it has.

    pooch's own downloader has no limit of size nor of time, and follows redirects to any host.

    Raises:
        SourceError: two tries failed; the message has the last reason.
    """
    reason: Exception | None = None
    for attempt in range(1, _TRIES + 1):
        logger.info("grouplens: downloading %s (try %d of %d)", archive.url, attempt, _TRIES)
        try:
            content = _received(archive)
            if hashlib.sha256(content).hexdigest() == archive.sha256:
                return content
            raise CorruptError("what came has the wrong checksum")
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


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The pinned addresses are where the files are: no answer may send the reader elsewhere."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        raise CorruptError(f"{req.full_url} redirects to {newurl}, which is not allowed")


def _received(archive: Archive) -> bytes:
    """The answer to one request.

    Raises:
        SourceError: longer, shorter or slower than it may be.
        OSError: no connection, or the connection broke.
    """
    if urllib.parse.urlsplit(archive.url).scheme != _SCHEME:
        raise SourceError(f"{archive.url} is not {_SCHEME}")
    opener = urllib.request.build_opener(_NoRedirect)
    request = urllib.request.Request(archive.url, headers={"User-Agent": "rectutor"})
    response = within(
        _CONNECT_SECONDS, lambda: opener.open(request, timeout=_CONNECT_SECONDS), "connecting"
    )
    started = time.monotonic()
    received = bytearray()
    with response:
        # read1 gives what has arrived, so that a trickle cannot hold the loop
        while chunk := response.read1(_CHUNK):
            received += chunk
            elapsed = time.monotonic() - started
            if len(received) > archive.size:
                raise CorruptError(f"{archive.url} is longer than {archive.size:,} bytes")
            if elapsed > _CONNECT_SECONDS and len(received) < elapsed * _SLOWEST:
                speed = len(received) / elapsed
                raise SourceError(f"{archive.url} came at {speed:.0f} bytes a second")
    if len(received) != archive.size:
        raise CorruptError(f"{archive.url} ended after {len(received):,} of {archive.size:,} bytes")
    return bytes(received)


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


def _wheel(archive: Archive) -> bytes:
    """The bytes of the RecBole wheel, fetched with pip and never installed.

    Raises:
        SourceError: no pip, no index, no wheel, or another one.
    """
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
            return file.read_bytes()
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
    """Prepare and read `100k` or `1m` with the real `tfds.load`.

    Rows come back sorted by time, user and movie, because TFDS does not keep the file's order.

    Raises:
        SourceError: TensorFlow Datasets is not installed, or could not prepare the data.
    """
    if name not in ("100k", "1m"):
        raise SourceError(f"it has another edition of {name!r}; only '100k' and '1m' are the same")
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
        ratings = tfds.load(f"movielens/{name}-ratings", split="train", batch_size=-1)
        movies, info = tfds.load(f"movielens/{name}-movies", split="train", with_info=True)
        genre_name = info.features["movie_genres"].feature.int2str
        return _tables.parse_tfds(tfds.as_numpy(ratings), list(tfds.as_numpy(movies)), genre_name)
    except Exception as error:  # whatever TFDS and TensorFlow raise
        raise SourceError(f"TensorFlow Datasets failed: {type(error).__name__}: {error}") from error
