"""Faults on the way to the data: each ends in the right table or in one clear error.

Nothing here leaves the machine: servers and the package index are on loopback, and production
code is told of them through its private settings.
"""

import contextlib
import errno
import hashlib
import logging
import os
import re
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import movielens_files as files
import pandas as pd
import pytest

from rectutor import _sources, data

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
    proxies = ("http_proxy", "https_proxy", "all_proxy")
    for name in [n for n in os.environ if n.startswith("PIP_") or n.lower() in proxies]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{files.closed_port()}/simple")
    files.expect(monkeypatch, CONTENT, MEMBERS, url=f"http://127.0.0.1:{files.closed_port()}/x")


@pytest.fixture(autouse=True)
def nothing_half_written(alone, tmp_path):
    """After each test: what is in the cache is a whole archive, and nothing else is there."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 30.0
    cache = tmp_path / "cache"
    sound = {archive.sha256 for archive in _sources.ARCHIVES.values()}
    for file in cache.iterdir() if cache.is_dir() else ():
        assert hashlib.sha256(file.read_bytes()).hexdigest() in sound, file


def right(loaded):
    expected = _sources.ARCHIVES["grouplens", "100k"].parse(
        {k.split("/")[1]: v for k, v in MEMBERS.items()}
    )
    pd.testing.assert_frame_equal(loaded.ratings, expected.ratings)
    pd.testing.assert_frame_equal(loaded.movies, expected.movies)
    return True


def warned(caplog):
    """The lines of warning."""
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.fixture
def serve():
    """Start a web server on loopback with one way of answering; gives its address."""
    with contextlib.ExitStack() as running:
        yield lambda answer: running.enter_context(files.server(answer))


@pytest.fixture
def grouplens(monkeypatch, serve):
    """Start a fake GroupLens with one way of answering."""

    def start(answer):
        address = serve(answer)
        files.expect(monkeypatch, CONTENT, MEMBERS, url=f"{address}/ml-100k.zip")
        return address

    return start


def body(content, status=200, **how):
    return lambda handler: files.send(handler, content, status, **how)


sound = body(CONTENT)


# --- the download -------------------------------------------------------------------------------


def test_a_sound_download_is_read_verified_and_kept(grouplens):
    address = grouplens(sound)
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
    return body(b"", 302, Location=location)


FAULTS = {
    "no answer": (lambda _: time.sleep(6), "took more than 1 s|timed out"),
    "header in drops": (drip_header, "took more than 1 s"),
    "body in drops": (drip_body, "bytes a second"),
    "stalls in the body": (lambda h: files.stall(h, CONTENT, 6), "timed out"),
    "truncated body": (
        body(CONTENT[:-700], length=len(CONTENT)),
        rf"ended after \d[\d,]* of {len(CONTENT):,} bytes",
    ),
    "truncated, and says so": (body(CONTENT[:-700]), "ended after"),
    "empty body": (body(b""), "ended after 0"),
    "too long": (body(CONTENT + b"x" * 100_000), "longer than"),
    "wrong checksum": (body(CONTENT[:300] + b"\0\0\0" + CONTENT[303:]), "wrong checksum"),
    "a page instead": (body(b"<html>".ljust(len(CONTENT))), "wrong checksum"),
    "404": (body(b"", 404), "404"),
    "500": (body(b"", 500), "500"),
    "redirect to itself": (elsewhere("/ml-100k.zip"), "redirects to .* not allowed"),
    "to a file": (elsewhere("file:///etc/hostname"), "redirects to file:.* not allowed|302"),
    "to another host": (elsewhere("http://example.com/a"), "redirects to .* not allowed"),
    "to another scheme": (elsewhere("ftp://127.0.0.1/a"), "redirects to .* not allowed"),
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
    for archive in _sources.ARCHIVES.values():
        assert archive.url.startswith("https://")
        assert len(archive.sha256) == 64
    plain = _sources.Archive("f", "http://files.grouplens.org/x", 1, "0" * 64, {}, lambda _: None)
    with pytest.raises(_sources.SourceError, match="is not https"):
        _sources.download(plain)


# --- archives -----------------------------------------------------------------------------------


@pytest.fixture
def no_index(monkeypatch):
    def refuse(_):
        raise _sources.SourceError("no package index")

    monkeypatch.setattr(_sources, "_pip_download", refuse)


@pytest.fixture
def archive(monkeypatch, tmp_path, no_index):
    """Put an archive where `RECTUTOR_ARCHIVES` points."""
    folder = tmp_path / "archives"
    folder.mkdir()
    monkeypatch.setenv("RECTUTOR_ARCHIVES", str(folder))

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


def rezipped(**changed):
    """The archive with other tables."""
    return files.zipped(MEMBERS | {f"ml-100k/u.{name}": text for name, text in changed.items()})


def patched(content, signature, offset, new):
    """The archive, with `new` at an offset in each record that begins with a signature."""
    head, *records = content.split(signature)
    at = offset - len(signature)
    return signature.join([head, *(r[:at] + new + r[at + len(new) :] for r in records)])


HEADER, DIRECTORY = b"PK\3\4", b"PK\1\2"
UNSOUND = "not a sound zip"

BAD_ARCHIVES = {
    "empty": (lambda: b"", UNSOUND),
    "no zip": (lambda: b"hello" * 100, UNSOUND),
    "truncated": (lambda: CONTENT[: len(CONTENT) // 2], UNSOUND),
    "flipped byte": (lambda: flipped(CONTENT, 1_000), "not a sound zip|wrong checksum"),
    "missing member": (
        lambda: files.zipped({k: v for k, v in MEMBERS.items() if k != "ml-100k/u.item"}),
        "has no member ml-100k/u.item",
    ),
    "other content": (
        lambda: rezipped(data=MEMBERS["ml-100k/u.data"] + b"1\t1\t1\t1"),
        "member ml-100k/u.data has the wrong checksum",
    ),
    "path traversal for a member": (
        lambda: files.zipped({f"../{k}": v for k, v in MEMBERS.items()}),
        "has no member ml-100k/u.data",
    ),
    "bomb": (lambda: rezipped(data=b"0" * (_sources._MEMBER_LIMIT + 1)), "would unpack to"),
    "bomb that lies about its size": (
        lambda: patched(rezipped(data=b"0" * 10**7), DIRECTORY, 24, (100).to_bytes(4, "little")),
        "not a sound zip|wrong checksum",
    ),
    "far too large": (lambda: CONTENT + bytes(2**21 + 4 * len(CONTENT)), "far larger"),
    "encrypted": (
        lambda: patched(patched(CONTENT, DIRECTORY, 8, b"\1"), HEADER, 6, b"\1"),
        UNSOUND,
    ),
}


@pytest.mark.parametrize("fault", BAD_ARCHIVES)
def test_each_fault_of_an_archive_is_said_and_passed_over(archive, caplog, fault):
    build, words = BAD_ARCHIVES[fault]
    file = archive(build())
    with pytest.raises(RuntimeError, match="MovieLens 100k could not be loaded"):
        data.load_movielens("100k")
    (line,) = warned(caplog)
    assert str(file) in line
    assert re.search(words, line)


def test_an_archive_that_cannot_be_read_is_passed_over(archive, monkeypatch, grouplens, caplog):
    file = archive(CONTENT)
    grouplens(sound)
    original = Path.read_bytes

    def broken(self):
        if self == file:
            raise OSError(errno.EIO, "Input/output error")
        return original(self)

    monkeypatch.setattr(Path, "read_bytes", broken)
    assert right(data.load_movielens("100k"))
    assert "Input/output error" in caplog.text


def test_a_1m_archive_must_be_the_published_one(monkeypatch, archive, tmp_path, caplog):
    members = files.files_1m()
    nowhere = _sources.ARCHIVES["grouplens", "100k"].url
    files.expect(monkeypatch, files.zipped(members), members, "1m", url=nowhere)
    (tmp_path / "archives" / "ml-1m.zip").write_bytes(files.zipped(members | {"extra": b"x"}))
    with pytest.raises(RuntimeError, match="1m could not be loaded"):
        data.load_movielens("1m")
    assert "ml-1m.zip has the wrong checksum" in warned(caplog)[0]
    assert "remove it, or get it anew" in warned(caplog)[0]


def test_a_verified_archive_that_the_parser_refuses_is_passed_over(monkeypatch, archive, caplog):
    members = MEMBERS | {"ml-100k/u.data": b"1\t1\tgood\t5\n"}
    content = files.zipped(members)
    files.expect(monkeypatch, content, members, url=_sources.ARCHIVES["grouplens", "100k"].url)
    archive(content)
    with pytest.raises(RuntimeError, match="100k could not be loaded"):
        data.load_movielens("100k")
    assert "ml-100k.zip cannot be parsed: the ratings' column 'rating'" in warned(caplog)[0]


def test_a_folder_without_the_archive_is_passed_over(grouplens, monkeypatch, tmp_path):
    monkeypatch.setenv("RECTUTOR_ARCHIVES", str(tmp_path))
    grouplens(sound)
    assert right(data.load_movielens("100k"))


# --- the package index --------------------------------------------------------------------------

WHEEL = files.zipped(files.files_recbole(MEMBERS))
WHEEL_NAME = "recbole-1.2.1-py3-none-any.whl"


LINK = f'<a href="/files/{WHEEL_NAME}">{WHEEL_NAME}</a>'.encode()


def index(wheel=body(WHEEL), page=LINK):  # noqa: B008
    """How a package index answers."""
    listing = body(page, **{"Content-Type": "text/html"})
    return lambda handler: (wheel if handler.path.endswith(".whl") else listing)(handler)


def another(**more):
    """A wheel with more in it."""
    return files.zipped(files.files_recbole(MEMBERS) | more)


@pytest.fixture
def package_index(monkeypatch, serve):
    def start(answer):
        monkeypatch.setenv("PIP_INDEX_URL", f"{serve(answer)}/simple")
        files.expect(monkeypatch, WHEEL, {}, source="pypi")

    return start


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
    "another wheel": (index(body(another(more=b"x"))), "the index's recbole.*bytes, not"),
    "same size, other bytes": (
        index(body(another(a=b"b")[: len(WHEEL)])),
        "pip download failed|wrong checksum|not",
    ),
    "no such package": (index(page=b"<html></html>"), "pip download failed: .*recbole"),
    "404": (body(b"", 404), "pip download failed: .*recbole"),
    "truncated wheel": (index(body(WHEEL[:-900])), "pip download failed"),
    "stalls in the wheel": (
        index(lambda h: files.stall(h, WHEEL, 5)),
        "pip download failed|took more than",
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("fault", INDEX_FAULTS)
def test_each_fault_of_the_package_index_is_one_clear_error(package_index, monkeypatch, fault):
    monkeypatch.setattr(_sources, "_PIP_SECONDS", 12.0)
    answer, words = INDEX_FAULTS[fault]
    package_index(answer)
    with pytest.raises(RuntimeError, match=words):
        data.load_movielens("100k", source="pypi")


def test_a_wheel_of_the_right_size_and_the_wrong_bytes(monkeypatch):
    files.expect(monkeypatch, WHEEL, {}, source="pypi")
    bad = flipped(WHEEL, len(WHEEL) // 2)
    monkeypatch.setattr(
        _sources, "_pip_download", lambda folder: Path(folder, WHEEL_NAME).write_bytes(bad)
    )
    with pytest.raises(RuntimeError, match=r"recbole.* has the wrong checksum"):
        data.load_movielens("100k", source="pypi")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([sys.executable, "-c", "pass"], "pip download brought no recbole"),
        ([sys.executable, "-c", "import time; time.sleep(60)"], "pip download took more than 0 s"),
        (["/no-pip"], "the wheel could not be fetched"),
    ],
)
def test_pip_that_brings_nothing_hangs_or_is_not_there(monkeypatch, command, words):
    monkeypatch.setattr(_sources, "_pip", lambda: command)
    if "more than" in words:
        monkeypatch.setattr(_sources, "_PIP_SECONDS", 0.5)
    with pytest.raises(RuntimeError, match=words):
        data.load_movielens("100k", source="pypi")


def test_where_this_environment_has_no_pip_the_one_on_the_path_serves(monkeypatch):
    monkeypatch.setattr(_sources.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(_sources.shutil, "which", {"pip": "/bin/pip"}.get)
    assert _sources._pip() == ["/bin/pip"]
    monkeypatch.setattr(_sources.shutil, "which", lambda name: None)
    with pytest.raises(_sources.SourceError, match="no pip to download with"):
        _sources._pip()


# --- the cache ----------------------------------------------------------------------------------


@pytest.fixture
def cached(grouplens, no_index, tmp_path):
    """The archive in the cache, and the address of the server it came from."""
    address = grouplens(sound)
    assert right(data.load_movielens("100k"))
    return tmp_path / "cache" / "ml-100k.zip", address


@pytest.mark.parametrize(
    "damage",
    [
        *(lambda content, k=k: content[:k] for k in (0, 1, 3_000, -1)),
        *(lambda content, k=k: flipped(content, k) for k in (0, 500, 2_000, len(CONTENT) - 1)),
        lambda content: content + b"more",
    ],
)
def test_a_damaged_archive_in_the_cache_is_fetched_anew(cached, damage):
    file, address = cached
    file.write_bytes(damage(CONTENT))
    assert right(data.load_movielens("100k"))
    assert file.read_bytes() == CONTENT
    assert len(address.requests) == 2


def test_a_damaged_archive_that_cannot_be_fetched_anew_is_an_error(cached, monkeypatch):
    file, _ = cached
    file.write_bytes(CONTENT[:-9])
    monkeypatch.setattr(_sources, "_SCHEME", "https")
    with pytest.raises(RuntimeError, match="is not https"):
        data.load_movielens("100k")
    file.unlink()


def test_what_a_killed_process_left_counts_for_nothing(cached):
    file, address = cached
    half = file.with_name("tmp1234abcd")
    file.rename(half)
    half.write_bytes(CONTENT[:900])
    assert right(data.load_movielens("100k"))
    assert len(address.requests) == 2
    half.unlink()


def at(place):
    """The cache is somewhere in the test's folder, where a file and a folder are in the way."""

    def arrange(tmp_path, monkeypatch):
        (tmp_path / "file").write_text("in the way")
        (tmp_path / "other" / "ml-100k.zip").mkdir(parents=True)
        monkeypatch.setenv("RECTUTOR_CACHE", str(tmp_path / place))

    return arrange


def failing(where, name, code):
    def arrange(tmp_path, monkeypatch):
        def fails(*_, **__):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(where, name, fails)

    return arrange


@pytest.mark.parametrize(
    ("arrange", "warnings"),
    [
        (at("file"), 1),
        (at("/proc/rectutor"), 1),
        (at("other"), 1),
        (failing(os, "makedirs", errno.EACCES), 1),
        (failing(os, "makedirs", errno.EROFS), 1),
        (failing(Path, "write_bytes", errno.ENOSPC), 1),
        (failing(Path, "write_bytes", errno.EROFS), 1),
        (failing(os, "rename", errno.EXDEV), 0),  # the archive is copied
        (failing(Path, "is_file", errno.EACCES), 0),  # it is looked for
    ],
)
def test_a_cache_that_cannot_be_used_costs_one_warning_line_and_one_that_knows_less_none(
    grouplens, monkeypatch, tmp_path, caplog, arrange, warnings
):
    address = grouplens(sound)
    arrange(tmp_path, monkeypatch)
    assert right(data.load_movielens("100k"))
    assert len(address.requests) == 1
    lines = warned(caplog)
    assert len(lines) == warnings
    assert all("cannot be used" in line and "RECTUTOR_CACHE" in line for line in lines)


# Runs in fresh processes, that are told where the fake GroupLens is.
CHILD = """
import hashlib, logging, os, sys
sys.path.insert(0, {tests!r})
import movielens_files as files
import pytest
from rectutor import _sources, data

logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
members = files.files_100k()
files.expect(pytest.MonkeyPatch(), files.zipped(members), members, url={url!r})
_sources._SCHEME = "http"
{more}
loaded = data.load_movielens("100k", source="grouplens")
frames = (loaded.ratings, loaded.movies, loaded.users)
print(hashlib.sha256("".join(f.to_csv() for f in frames).encode()).hexdigest())
"""


def child(address, more=""):
    script = textwrap.dedent(CHILD).format(
        tests=str(Path(__file__).parent), url=f"{address}/ml-100k.zip", more=more
    )
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.long
def test_several_processes_at_once_all_have_the_data_and_leave_one_archive(serve, tmp_path):
    def slowly(handler):
        time.sleep(0.5)  # so that they meet
        sound(handler)

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(child, [serve(slowly)] * 4))
    assert [each.returncode for each in done] == [0] * 4, done
    assert len({each.stdout for each in done}) == 1
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["ml-100k.zip"]
    assert (tmp_path / "cache" / "ml-100k.zip").read_bytes() == CONTENT


KILLS = {
    "while it waits for the answer": "_sources._received = lambda _: os.kill(os.getpid(), 9)",
    "while it writes": (
        "write = _sources.Path.write_bytes\n"
        "def half(self, content):\n"
        "    write(self, content[:700])\n"
        "    os.kill(os.getpid(), 9)\n"
        "_sources.Path.write_bytes = half"
    ),
    "before it is moved": "os.rename = lambda *_: os.kill(os.getpid(), 9)",
}


@pytest.mark.long
@pytest.mark.parametrize("moment", KILLS)
def test_killed_half_way_it_leaves_nothing_that_counts(serve, tmp_path, moment):
    address = serve(sound)
    assert child(address, KILLS[moment]).returncode == -9
    assert not (tmp_path / "cache" / "ml-100k.zip").exists()
    for left in (tmp_path / "cache").glob("tmp*"):
        left.unlink()
    again = child(address)
    assert (again.returncode, len(again.stdout.strip())) == (0, 64), again.stderr
    assert "cannot be used" not in again.stderr


@pytest.mark.long
def test_a_disk_that_fills_up_while_the_archive_is_written(serve, tmp_path):
    """The limit on file sizes makes the write fail half-way, as a full disk does."""
    limit = (
        "import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
    )
    full = child(serve(sound), limit)
    assert full.returncode == 0, full.stderr
    assert full.stderr.count("cannot be used") == 1
    assert list((tmp_path / "cache").iterdir()) == []
