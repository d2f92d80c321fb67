"""Faults on the way to the data: each ends in the right table or in one clear error.

Nothing here leaves the machine: servers and the package index are on loopback, and production
code is told of them through its private settings.
"""

import errno
import json
import logging
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import movielens_files as files
import pandas as pd
import pytest

from rectutor import _cache, _sources, data

pytestmark = pytest.mark.fault

MEMBERS = files.files_100k()
CONTENT = files.zipped(MEMBERS)


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No source but those that a test sets up, a cache of its own, and short waits."""
    monkeypatch.setenv("RECTUTOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RECTUTOR_ARCHIVES", raising=False)
    monkeypatch.setenv("RECTUTOR_STRICT", "1")
    monkeypatch.setattr(_sources, "_CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(_sources, "_SCHEME", "http")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{files.closed_port()}/simple")
    files.expect(monkeypatch, CONTENT, MEMBERS, url=f"http://127.0.0.1:{files.closed_port()}/x")


@pytest.fixture(autouse=True)
def nothing_half_written(alone, tmp_path):
    """After each test: what is in the cache is whole, and nothing else is there but locks."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 30.0
    cache = tmp_path / "cache"
    if cache.is_dir():
        for file in cache.iterdir():
            assert file.suffix in (".arrow", ".lock"), file
            if file.suffix == ".arrow":
                _cache.decode(file.read_bytes())


def right(loaded):
    expected = _sources.parse_100k({k.split("/")[1]: v for k, v in MEMBERS.items()})
    pd.testing.assert_frame_equal(loaded.ratings, expected.ratings)
    pd.testing.assert_frame_equal(loaded.movies, expected.movies)
    return True


def serving(monkeypatch, answer, content=CONTENT, members=MEMBERS):
    """Serve GroupLens's archive; `answer` deals with the requests."""
    context = files.server(answer)
    address = context.__enter__()
    files.expect(monkeypatch, content, members, url=f"{address}/ml-100k.zip")
    return context, address


@pytest.fixture
def grouplens(monkeypatch):
    """Start a fake GroupLens with one way of answering."""
    opened = []

    def start(answer, **options):
        context, address = serving(monkeypatch, answer, **options)
        opened.append(context)
        return address

    yield start
    for context in opened:
        context.__exit__(None, None, None)


# --- the download -------------------------------------------------------------------------------


def test_a_sound_download_is_read_verified_and_kept(grouplens):
    address = grouplens(lambda handler: files.send(handler, CONTENT))
    assert right(data.load_movielens("100k"))
    assert right(data.load_movielens("100k"))
    assert address.requests == ["/ml-100k.zip"]


def test_connection_refused():
    with pytest.raises(RuntimeError, match=r"could not be had .*refused.*RECTUTOR_ARCHIVES"):
        data.load_movielens("100k", source="grouplens")


def test_a_second_try_is_made_after_a_broken_first_one(grouplens):
    def answer(handler):
        whole = len(address.requests) == 2
        files.send(handler, CONTENT if whole else CONTENT[:500], length=len(CONTENT))

    address = grouplens(answer)
    assert right(data.load_movielens("100k"))
    assert len(address.requests) == 2


def silent(handler):
    time.sleep(6)


def drip_header(handler):
    for letter in "HTTP/1.0 200 OK, as you will see in a while" * 3:
        handler.wfile.write(letter.encode())
        handler.wfile.flush()
        time.sleep(0.2)


def drip_body(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(CONTENT)))
    handler.end_headers()
    for k in range(60):
        handler.wfile.write(CONTENT[k : k + 1])
        handler.wfile.flush()
        time.sleep(0.1)


def elsewhere(location):
    return lambda handler: files.send(handler, b"", 302, Location=location)


FAULTS = {
    "no answer": (silent, "took more than 1 s|timed out"),
    "header in drops": (drip_header, "took more than 1 s"),
    "body in drops": (drip_body, "bytes a second"),
    "stalls in the body": (lambda h: files.stall(h, CONTENT, 6), "timed out"),
    "truncated body": (
        lambda h: files.send(h, CONTENT[:-700], length=len(CONTENT)),
        rf"ended after \d[\d,]* of {len(CONTENT):,} bytes",
    ),
    "truncated, and says so": (lambda h: files.send(h, CONTENT[:-700]), "ended after"),
    "empty body": (lambda h: files.send(h, b""), "ended after 0"),
    "too long": (lambda h: files.send(h, CONTENT + b"x" * 100_000), "longer than"),
    "wrong checksum": (
        lambda h: files.send(h, CONTENT[:300] + b"\0\0\0" + CONTENT[303:]),
        "not a sound zip|wrong checksum",
    ),
    "a page instead": (lambda h: files.send(h, b"<html>".ljust(len(CONTENT))), "not a sound zip"),
    "404": (lambda h: files.send(h, b"", 404), "404"),
    "500": (lambda h: files.send(h, b"", 500), "500"),
    "redirect loop": (elsewhere("/ml-100k.zip"), "redirect|302"),
    "redirect to a file": (
        elsewhere("file:///etc/hostname"),
        "redirects to file:.* not allowed|302",
    ),
    "redirect to another host": (elsewhere("http://example.com/a"), "redirects to .* not allowed"),
    "redirect to another scheme": (elsewhere("ftp://127.0.0.1/a"), "redirects to .* not allowed"),
    "no HTTP at all": (lambda h: h.wfile.write(b"\0\1\2 what?\n\n"), "could not be had"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_a_download_is_one_clear_error(grouplens, fault):
    answer, words = FAULTS[fault]
    address = grouplens(answer)
    with pytest.raises(RuntimeError, match=words) as caught:
        data.load_movielens("100k", source="grouplens")
    assert "put ml-100k.zip into a folder and name that in RECTUTOR_ARCHIVES" in str(caught.value)
    if fault in ("404", "500"):
        assert len(address.requests) == (1 if fault == "404" else 2)


def test_production_code_downloads_over_https_only(monkeypatch):
    monkeypatch.undo()
    for archive in (*_sources.GROUPLENS.values(), *_sources.PYPI.values()):
        assert archive.url.startswith(("https://files.grouplens.org/", "https://pypi.org/"))
        assert len(archive.sha256) == 64
    plain = _sources.Archive("f", "http://files.grouplens.org/x", 1, "0" * 64, {}, lambda _: None)
    with pytest.raises(_sources.SourceError, match="is not https"):
        _sources._download(plain, None)
    request = _sources.urllib.request.Request("https://files.grouplens.org/x")
    with pytest.raises(_sources.CorruptError, match="not allowed"):
        _sources._SameHost().redirect_request(
            request, None, 302, "", {}, "http://files.grouplens.org/x"
        )
    followed = _sources._SameHost().redirect_request(
        request, None, 302, "", {}, "https://files.grouplens.org/y"
    )
    assert followed.full_url == "https://files.grouplens.org/y"


def test_a_full_disk_while_downloading(grouplens, monkeypatch):
    grouplens(lambda handler: files.send(handler, CONTENT))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_sources.tempfile, "TemporaryFile", full)
    with pytest.raises(RuntimeError, match="No space left on device"):
        data.load_movielens("100k", source="grouplens")


# --- archives -----------------------------------------------------------------------------------


@pytest.fixture
def archive(monkeypatch, tmp_path):
    """Put an archive where `RECTUTOR_ARCHIVES` points."""
    folder = tmp_path / "archives"
    folder.mkdir()
    monkeypatch.setenv("RECTUTOR_ARCHIVES", str(folder))

    def no_index(_):
        raise _sources.SourceError("no package index")

    monkeypatch.setattr(_sources, "_pip_download", no_index)

    def put(content):
        (folder / "ml-100k.zip").write_bytes(content)
        return folder / "ml-100k.zip"

    return put


def test_an_archive_zipped_again_passes_by_its_members(archive):
    archive(files.zipped(MEMBERS, compression=0))
    assert right(data.load_movielens("100k"))


def test_extra_members_of_a_100k_archive_are_never_looked_at(archive, tmp_path):
    outside = "../../escaped.txt"
    archive(files.zipped(MEMBERS | {outside: b"boo", "/etc/escaped": b"boo", "big": b"0" * 10**7}))
    assert right(data.load_movielens("100k"))
    assert not list(tmp_path.rglob("escaped*"))


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


BAD_ARCHIVES = {
    "empty": (lambda: b"", "not a sound zip"),
    "no zip": (lambda: b"hello" * 100, "not a sound zip"),
    "truncated": (lambda: CONTENT[: len(CONTENT) // 2], "not a sound zip"),
    "flipped byte": (lambda: flipped(CONTENT, 1_000), "not a sound zip|wrong checksum"),
    "missing member": (
        lambda: files.zipped({k: v for k, v in MEMBERS.items() if k != "ml-100k/u.item"}),
        "has no member ml-100k/u.item",
    ),
    "other content": (
        lambda: files.zipped(
            MEMBERS | {"ml-100k/u.data": MEMBERS["ml-100k/u.data"] + b"1\t1\t1\t1"}
        ),
        "member ml-100k/u.data has the wrong checksum",
    ),
    "path traversal for a member": (
        lambda: files.zipped({f"../{k}": v for k, v in MEMBERS.items()}),
        "has no member ml-100k/u.data",
    ),
    "bomb": (
        lambda: files.zipped(MEMBERS | {"ml-100k/u.data": b"0" * (_sources._MEMBER_LIMIT + 1)}),
        "would unpack to",
    ),
    "bomb that lies about its size": (
        lambda: lying(files.zipped(MEMBERS | {"ml-100k/u.data": b"0" * 10**7})),
        "not a sound zip|wrong checksum",
    ),
    "far too large": (lambda: CONTENT + bytes(2**21 + 4 * len(CONTENT)), "far larger"),
    "encrypted": (lambda: encrypted(CONTENT), "not a sound zip"),
}


def lying(content):
    """The archive, with the size of every member in its directory set to 100 bytes."""
    result, start = bytearray(content), 0
    while (start := content.find(b"PK\x01\x02", start)) >= 0:
        result[start + 24 : start + 28] = (100).to_bytes(4, "little")
        start += 4
    return bytes(result)


def encrypted(content):
    """The archive, with every member marked as encrypted."""
    result = bytearray(content)
    for signature, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        start = 0
        while (start := content.find(signature, start)) >= 0:
            result[start + offset] |= 1
            start += 4
    return bytes(result)


@pytest.mark.parametrize("fault", BAD_ARCHIVES)
def test_each_fault_of_an_archive_is_said_and_passed_over(archive, caplog, fault):
    build, words = BAD_ARCHIVES[fault]
    file = archive(build())
    with pytest.raises(RuntimeError, match="MovieLens 100k could not be loaded"):
        data.load_movielens("100k")
    warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warned) == 1
    assert str(file) in warned[0].getMessage()
    assert pd.Series(warned[0].getMessage()).str.contains(words).all()


def test_an_archive_that_cannot_be_read_is_passed_over(archive, monkeypatch, grouplens, caplog):
    file = archive(CONTENT)
    grouplens(lambda handler: files.send(handler, CONTENT))
    original = Path.open

    def broken(self, *arguments, **options):
        if self == file:
            raise OSError(errno.EIO, "Input/output error")
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", broken)
    assert right(data.load_movielens("100k"))
    assert "Input/output error" in caplog.text


def test_a_1m_archive_must_be_the_published_one(monkeypatch, archive, tmp_path):
    members = files.files_1m()
    files.expect(
        monkeypatch, files.zipped(members), members, "1m", url=_sources.GROUPLENS["100k"].url
    )
    (tmp_path / "archives" / "ml-1m.zip").write_bytes(files.zipped(members | {"extra": b"x"}))
    with pytest.raises(
        _sources.CorruptError, match=r"has the wrong checksum.*remove it, or get it"
    ):
        _sources.from_archives("1m")


# --- the package index --------------------------------------------------------------------------

WHEEL = files.zipped(files.files_recbole(MEMBERS))
WHEEL_NAME = "recbole-1.2.1-py3-none-any.whl"


def index(wheel=WHEEL, page=None, wheel_answer=None):
    """How a package index answers."""

    def answer(handler):
        if handler.path.endswith(".whl"):
            (wheel_answer or (lambda h: files.send(h, wheel)))(handler)
        else:
            link = f'<a href="/files/{WHEEL_NAME}">{WHEEL_NAME}</a>'.encode()
            files.send(handler, link if page is None else page, **{"Content-Type": "text/html"})

    return answer


@pytest.fixture
def package_index(monkeypatch):
    opened = []

    def start(answer):
        context = files.server(answer)
        opened.append(context)
        address = context.__enter__()
        monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple")
        files.expect_wheel(monkeypatch, WHEEL)
        return address

    yield start
    for context in opened:
        context.__exit__(None, None, None)


def test_the_wheel_is_read_and_neither_installed_nor_left_behind(
    package_index, tmp_path, monkeypatch
):
    package_index(index())
    monkeypatch.setattr(_sources.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    assert right(data.load_movielens("100k"))
    assert data.load_movielens("100k").source == "pypi"
    assert not list((tmp_path / "temporary").iterdir())
    assert "recbole" not in sys.modules


INDEX_FAULTS = {
    "another wheel": (
        index(wheel=files.zipped(files.files_recbole(MEMBERS) | {"more": b"x"})),
        "the index's recbole.*bytes, not",
    ),
    "same size, other bytes": (
        index(wheel=files.zipped(files.files_recbole(MEMBERS) | {"a": b"b"})[: len(WHEEL)]),
        "pip download failed|wrong checksum|not",
    ),
    "no such package": (index(page=b"<html></html>"), "pip download failed: .*recbole"),
    "404": (lambda h: files.send(h, b"", 404), "pip download failed: .*recbole"),
    "truncated wheel": (
        index(wheel_answer=lambda h: files.send(h, WHEEL[:-900])),
        "pip download failed",
    ),
    "stalls in the wheel": (
        index(wheel_answer=lambda h: files.stall(h, WHEEL, 5)),
        "pip download failed|took more than",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", INDEX_FAULTS)
def test_each_fault_of_the_package_index_is_one_clear_error(package_index, monkeypatch, fault):
    monkeypatch.setattr(_sources, "_PIP_SECONDS", 12.0)
    answer, words = INDEX_FAULTS[fault]
    package_index(answer)
    with pytest.raises(RuntimeError, match=words):
        data.load_movielens("100k", source="pypi")


def test_a_wheel_of_the_right_size_and_the_wrong_bytes(monkeypatch):
    files.expect_wheel(monkeypatch, WHEEL)
    bad = flipped(WHEEL, len(WHEEL) // 2)
    monkeypatch.setattr(
        _sources, "_pip_download", lambda folder: Path(folder, WHEEL_NAME).write_bytes(bad)
    )
    with pytest.raises(RuntimeError, match=r"the package index's recbole.* has the wrong checksum"):
        data.load_movielens("100k", source="pypi")


def test_pip_that_brings_nothing_hangs_or_is_not_there(monkeypatch, tmp_path):
    def pip(code):
        return lambda: [sys.executable, "-c", code]

    monkeypatch.setattr(_sources, "_pip", pip("pass"))
    with pytest.raises(RuntimeError, match="pip download brought no recbole"):
        data.load_movielens("100k", source="pypi")
    monkeypatch.setattr(_sources, "_pip", pip("import time; time.sleep(60)"))
    monkeypatch.setattr(_sources, "_PIP_SECONDS", 0.5)
    with pytest.raises(RuntimeError, match="pip download took more than 0 s"):
        data.load_movielens("100k", source="pypi")
    monkeypatch.setattr(_sources, "_pip", lambda: [str(tmp_path / "no-pip")])
    with pytest.raises(RuntimeError, match="the wheel could not be fetched"):
        data.load_movielens("100k", source="pypi")


def test_where_this_environment_has_no_pip_the_one_on_the_path_serves(monkeypatch):
    monkeypatch.setattr(_sources.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(
        _sources.shutil, "which", lambda name: "/bin/pip" if name == "pip" else None
    )
    assert _sources._pip() == ["/bin/pip"]
    monkeypatch.setattr(_sources.shutil, "which", lambda name: None)
    with pytest.raises(_sources.SourceError, match="no pip to download with"):
        _sources._pip()


# --- the cache ----------------------------------------------------------------------------------


@pytest.fixture
def cached(archive):
    archive(CONTENT)
    assert right(data.load_movielens("100k"))
    return _cache.path("100k", "grouplens")


def test_every_flipped_byte_of_a_cache_file_is_found(cached):
    content = cached.read_bytes()
    places = {*range(120), *range(120, len(content), 97), len(content) - 1}
    for place in sorted(places):
        with pytest.raises(_cache.StaleCacheError):
            _cache.decode(flipped(content, place))


@pytest.mark.parametrize("keep", [0, 1, 20, 90, 200, 3_000, -1])
def test_a_truncated_cache_file_is_built_anew(cached, keep):
    content = cached.read_bytes()
    cached.write_bytes(content[:keep])
    assert right(data.load_movielens("100k"))
    assert cached.read_bytes() == content


def test_a_cache_file_of_an_older_schema_is_built_anew(cached, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "rectutor.data")
    new = cached.read_bytes()
    monkeypatch.setattr(_cache, "SCHEMA_VERSION", 0)
    cached.write_bytes(_cache.encode(_cache.Tables(*_sources.from_archives("100k"))))
    monkeypatch.setattr(_cache, "SCHEMA_VERSION", 1)
    assert right(data.load_movielens("100k"))
    assert "its schema is 0, this version writes 1" in caplog.text
    assert cached.read_bytes() == new


def test_a_cache_file_that_pyarrow_cannot_read_is_built_anew(cached):
    import hashlib

    body = b'{"sizes": [4, 4, 0]}\nnonsense'
    digest = hashlib.sha256(body).hexdigest()
    cached.write_bytes(f"rectutor-cache 1 {digest}\n".encode() + body)
    assert right(data.load_movielens("100k"))


def test_what_a_killed_process_left_is_cleared_away(archive):
    archive(CONTENT)
    file = _cache.path("100k", "grouplens")
    file.parent.mkdir(parents=True)
    file.with_name(f"{file.name}.99999.tmp").write_bytes(b"half")
    assert right(data.load_movielens("100k"))
    assert not list(file.parent.glob("*.tmp"))


def test_a_verified_archive_that_the_parser_refuses_is_an_error_too(monkeypatch, archive):
    members = MEMBERS | {"ml-100k/u.data": b"1\t1\tgood\t5\n"}
    files.expect(monkeypatch, files.zipped(members), members)
    archive(files.zipped(members))
    with pytest.raises(_sources.CorruptError, match=r"cannot be parsed: .*column 'rating'"):
        _sources.from_archives("100k")


def test_a_folder_without_the_archive_is_passed_over(grouplens, monkeypatch, tmp_path):
    monkeypatch.setenv("RECTUTOR_ARCHIVES", str(tmp_path))
    grouplens(lambda handler: files.send(handler, CONTENT))
    assert right(data.load_movielens("100k"))


def test_a_folder_in_the_place_of_the_cache_file(archive, caplog):
    archive(CONTENT)
    file = _cache.path("100k", "grouplens")
    file.mkdir(parents=True)
    assert right(data.load_movielens("100k"))
    assert "cannot be read" in caplog.text
    file.rmdir()


@pytest.mark.parametrize("place", ["/proc/rectutor", "a file"])
def test_a_cache_that_cannot_be_made_costs_one_warning_line(
    archive, monkeypatch, tmp_path, caplog, place
):
    archive(CONTENT)
    if place == "a file":
        place = str(tmp_path / "file")
        Path(place).write_text("in the way")
    monkeypatch.setenv("RECTUTOR_CACHE", place)
    assert right(data.load_movielens("100k"))
    warned = [record.getMessage() for record in caplog.records if record.levelno >= 30]
    assert len([text for text in warned if "cannot be written" in text]) == 1


@pytest.mark.parametrize("stage", ["open", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_cache_that_cannot_be_written_costs_one_warning_line(
    archive, monkeypatch, caplog, stage, code
):
    archive(CONTENT)
    original = Path.open

    def fails(*_, **__):
        raise OSError(code, os.strerror(code))

    def fails_to_write(self, mode="r", *arguments, **options):
        if "w" in mode:
            raise OSError(code, os.strerror(code))
        return original(self, mode, *arguments, **options)

    if stage == "open":
        monkeypatch.setattr(Path, "open", fails_to_write)
    elif stage == "fsync":
        monkeypatch.setattr(_cache.os, "fsync", fails)
    else:
        monkeypatch.setattr(Path, "replace", fails)
    assert right(data.load_movielens("100k"))
    warned = [record.getMessage() for record in caplog.records if record.levelno >= 30]
    assert len(warned) == 1
    assert os.strerror(code) in warned[0]
    assert "RECTUTOR_CACHE" in warned[0]


def test_a_lock_that_is_held_for_long_is_not_waited_for(archive, monkeypatch, caplog):
    import filelock

    archive(CONTENT)
    monkeypatch.setattr(_cache, "_LOCK_SECONDS", 0.3)
    file = _cache.path("100k", "grouplens")
    file.parent.mkdir(parents=True)
    with filelock.FileLock(f"{file}.lock"):
        assert right(data.load_movielens("100k"))
    assert "another process has held" in caplog.text
    assert not file.exists()


# Runs in a fresh process, so that forks are of one without threads.
ZYGOTE = """
import hashlib, json, os, random, signal, sys, time
sys.path.insert(0, {tests!r})
import movielens_files as files
import logging
from rectutor import _cache, _sources, data
import pyarrow.ipc, pandas as pd, filelock

members = files.files_100k(users=200, movies=300, rows=20_000)
content = files.zipped(members)
real = _sources.GROUPLENS["100k"]
_sources.GROUPLENS["100k"] = _sources.Archive(
    real.file, "https://x", len(content), files.sha256(content), real.members, real.parse
)
open(os.path.join(os.environ["RECTUTOR_ARCHIVES"], "ml-100k.zip"), "wb").write(content)


def digest(loaded):
    frames = (loaded.ratings, loaded.movies, loaded.users)
    return hashlib.sha256("".join(f.to_csv() for f in frames).encode()).hexdigest()


right = digest(data._as_dataset("100k", "grouplens", _sources.from_archives("100k")))
file = _cache.path("100k", "grouplens")
{body}
"""

KILLS = """
outcomes = []
random.seed(5)
started = time.perf_counter()
data.load_movielens("100k")
longest = 1.5 * (time.perf_counter() - started)
for trial in range(20):
    file.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            data.load_movielens("100k")
        finally:
            os._exit(0)
    time.sleep(random.random() * longest)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    whole = None
    if file.exists():
        whole = digest(data._as_dataset("100k", "x", _cache.decode(file.read_bytes()))) == right
    again = digest(data.load_movielens("100k")) == right
    left = [name for name in os.listdir(file.parent) if name.endswith(".tmp")]
    outcomes.append([whole, again, left])
print(json.dumps(outcomes))
"""

TOGETHER = """
import fcntl
log = os.path.join(os.environ["RECTUTOR_CACHE"] + ".log")
logging.basicConfig(filename=log, level=logging.INFO, format="%(message)s")
children = []
for number in range(8):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if digest(data.load_movielens("100k")) == right else 2
        finally:
            os._exit(status)
    children.append(child)
statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
steps = [line.split(":")[0] for line in open(log).read().splitlines()]
print(json.dumps([statuses, steps, sorted(os.listdir(file.parent))]))
"""

FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
same = digest(data.load_movielens("100k")) == right
print(json.dumps([same, sorted(os.listdir(file.parent))]))
"""


def run_zygote(tmp_path, body):
    (tmp_path / "archives").mkdir()
    environment = os.environ | {"RECTUTOR_ARCHIVES": str(tmp_path / "archives")}
    script = textwrap.dedent(ZYGOTE).format(tests=str(Path(__file__).parent), body=body)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.slow
def test_killed_at_twenty_moments_the_cache_is_whole_or_not_there(tmp_path):
    outcomes, _ = run_zygote(tmp_path, KILLS)
    assert len(outcomes) == 20
    for whole, again, left in outcomes:
        assert whole in (None, True)
        assert again is True
        assert left == []


@pytest.mark.slow
def test_eight_processes_at_once_parse_the_archive_once(tmp_path):
    (statuses, steps, names), _ = run_zygote(tmp_path, TOGETHER)
    assert statuses == [0] * 8
    assert steps.count("archives") == 1
    assert [name for name in names if not name.endswith(".lock")] == [
        "movielens-100k-grouplens.arrow"
    ]


@pytest.mark.slow
def test_a_disk_that_fills_up_while_the_cache_is_written(tmp_path):
    """The limit on file sizes makes the write fail half-way, as a full disk does."""
    (same, names), said = run_zygote(tmp_path, FULL)
    assert same is True
    assert [name for name in names if not name.endswith(".lock")] == []
    assert said.count("cannot be written") == 1
