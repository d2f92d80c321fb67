"""Small made-up files in the formats of MovieLens and of RecBole's copy, and servers for them."""

import contextlib
import dataclasses
import hashlib
import http.server
import io
import socket
import threading
import time
import zipfile
from pathlib import Path

import numpy as np

from rectutor import _sources, _tables

SHARED = Path(__file__).resolve().parents[2] / "shared"


def interactions(users: int, movies: list[int], rows: int, seed: int = 0) -> np.ndarray:
    """`(rows, 4)` user, movie, rating, timestamp: pairs that occur once, every id at least once."""
    rng = np.random.default_rng(seed)
    each = np.arange(max(users, len(movies)))
    every = (each % users) * len(movies) + each % len(movies)
    others = rng.permutation(users * len(movies))
    chosen = np.concatenate([every, others[~np.isin(others, every)]])[:rows]
    user, movie = chosen // len(movies) + 1, np.array(movies)[chosen % len(movies)]
    stars, seconds = rng.integers(1, 6, len(chosen)), rng.integers(0, 10_000, len(chosen))
    return np.column_stack([user, movie, stars, 874_000_000 + seconds])


def titles(count: int) -> list[str]:
    named = ["Toy Story (1995)", "Misérables, Les (1995)", "À köldum klaka (Cold Fever) (1994)"]
    return (named + [f"Movie Number {k} ({1930 + k % 69})" for k in range(count)])[:count]


def files_100k(users: int = 20, movies: int = 30, rows: int = 400) -> dict[str, bytes]:
    """The members of an archive like `ml-100k.zip`."""
    table = interactions(users, list(range(1, movies + 1)), rows)
    items = []
    for k, title in enumerate(titles(movies)):
        flags = ["1" if g in (k % 19, (k * 7) % 19) else "0" for g in range(19)]
        items.append("|".join([str(k + 1), title, "01-Jan-1995", "", "http://x", *flags]))
    people = [f"{k + 1}|{20 + k}|{'MF'[k % 2]}|writer|{k:05d}" for k in range(users)]
    return {
        "ml-100k/README": b"read me",
        "ml-100k/u.data": "".join("\t".join(map(str, row)) + "\n" for row in table).encode(),
        "ml-100k/u.item": ("\n".join(items) + "\n").encode("latin-1"),
        "ml-100k/u.user": ("\n".join(people) + "\n").encode("latin-1"),
    }


def files_recbole(members: dict[str, bytes]) -> dict[str, bytes]:
    """The same tables in RecBole's format, inside a wheel that pip accepts."""
    data = members["ml-100k/u.data"].decode()
    items = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    for line in members["ml-100k/u.item"].decode("latin-1").splitlines():
        number, title, _, _, _, *flags = line.split("|")
        names = " ".join(_tables.GENRES_100K[g] for g in range(19) if flags[g] == "1")
        items.append("\t".join([number, title[:-7], title[-5:-1], names]))
    people = members["ml-100k/u.user"].decode().replace("|", "\t")
    folder = "recbole/dataset_example/ml-100k/ml-100k"
    info = "recbole-1.2.1.dist-info"
    return {
        f"{folder}.inter": f"user_id:token\titem_id:token\trating:float\ttime\n{data}".encode(),
        f"{folder}.item": ("\n".join(items) + "\n").encode(),
        f"{folder}.user": f"user_id\tage\tgender\toccupation\tzip_code\n{people}".encode(),
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }


def files_1m(users: int = 20, rows: int = 300) -> dict[str, bytes]:
    """The members of an archive like `ml-1m.zip`: ids with gaps, some movies never rated."""
    rated = [1, 2, 3, 7, 11, 40, 41, 100, 3952, *range(200, 230)]
    table = interactions(users, rated, rows)
    listed = sorted([*rated, 5, 6, 3000])
    movies = [f"{m}::{t}::Action|Sci-Fi" for m, t in zip(listed, titles(99), strict=False)]
    people = [f"{k + 1}::{'MF'[k % 2]}::25::{k % 21}::{k:05d}-1234" for k in range(users)]
    return {
        "ml-1m/README": b"read me",
        "ml-1m/ratings.dat": "".join("::".join(map(str, row)) + "\n" for row in table).encode(),
        "ml-1m/movies.dat": ("\n".join(movies) + "\n").encode("latin-1"),
        "ml-1m/users.dat": ("\n".join(people) + "\n").encode("latin-1"),
    }


def files_1m_of_full_size() -> dict[str, bytes]:
    """The members of an archive like `ml-1m.zip`, with as many rows: all of them made up."""
    users, movies = 6_040, list(range(1, 3_707))
    table = interactions(users, movies, 1_000_209)
    text = ("%d::%d::%d::%d\n" * len(table)) % tuple(table.ravel().tolist())
    listed = [f"{m}::{title}::Drama" for m, title in zip(movies, titles(3_706), strict=True)]
    people = [f"{k + 1}::F::25::3::{k:05d}" for k in range(users)]
    return {
        "ml-1m/ratings.dat": text.encode(),
        "ml-1m/movies.dat": "\n".join(listed).encode("latin-1"),
        "ml-1m/users.dat": "\n".join(people).encode(),
    }


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip file of the members."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return stream.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def expect(monkeypatch, content, members, name="100k", source="grouplens", url=None):
    """Make the loader expect `content` where it expects the archive of a source."""
    real = _sources.ARCHIVES[source, name]
    by_member = {k: sha256(members[v]) for k, v in real.members.items() if k in real.member_sha256}
    known = {"url": url or real.url, "size": len(content), "sha256": sha256(content)}
    fake = dataclasses.replace(real, **known, member_sha256=by_member)
    monkeypatch.setitem(_sources.ARCHIVES, (source, name), fake)


@contextlib.contextmanager
def server(answer):
    """A web server on loopback; `answer(handler)` deals with each GET. Yields its address.

    The address has an attribute `requests`, the paths that were asked for.
    """

    class Address(str):
        requests: list

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            address.requests.append(self.path)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                answer(self)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        running.block_on_close = False
        address = Address(f"http://127.0.0.1:{running.server_address[1]}")
        address.requests = []
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield address
        finally:
            running.shutdown()


def send(handler, body: bytes, status: int = 200, length: int | None = None, **headers) -> None:
    """Answer with a body, whatever length is announced."""
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def stall(handler, body: bytes, seconds: float) -> None:
    """Answer with half of the body, and then nothing for a while."""
    send(handler, body[: len(body) // 2], length=len(body))
    handler.wfile.flush()
    time.sleep(seconds)


def closed_port() -> int:
    """A port on loopback where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
