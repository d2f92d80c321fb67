"""Recommendations over HTTP from an artefact: `python -m rectutor.serve FOLDER`.

The service needs neither Keras nor JAX nor TensorFlow (`pip install rectutor[serve]`). Once a
second it looks whether `rectutor.artefact.write` has made another version the current one, loads
that beside the one in use, and then answers from it; a version that it refuses leaves the old one
in use, and `GET /health` says why.

A request is answered on the event loop's own thread: it takes less than handing it to another.
The page `/docs` brings its script along, and works where there is no internet.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

# read when NumPy and FAISS load: the products of one request are too small to share
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, ConfigDict, FailFast, Field

import rectutor
from rectutor.artefact import ArtefactError, Search, Service

#: The longest history, and the most ids to exclude.
MAX_IDS = 5_000

#: The largest body in bytes: two full lists of ids, each as long as a UUID.
MAX_BODY = 2 * MAX_IDS * 40 + 1024
#: Looks between two tries at a version that was refused, at most.
MOST_LOOKS = 64

_log = logging.getLogger("uvicorn.error")

Ids = Annotated[
    list[int | Annotated[str, Field(max_length=200)]], FailFast(), Field(max_length=MAX_IDS)
]


class Question(BaseModel):
    """A user's history, and what is wanted."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        json_schema_extra={"examples": [{"history": [50, 181, 172], "k": 5}]},
    )

    history: Ids = Field(description="ids of the movies watched, the latest last; may be empty")
    k: int = Field(10, ge=1, description="how many movies; at most `max_k` of GET /health")
    exclude: Ids = Field([], description="ids that must not be recommended, besides the history's")


class Movie(BaseModel):
    """One recommended movie."""

    model_config = ConfigDict(from_attributes=True)

    id: int | str
    title: str
    score: float = Field(allow_inf_nan=False, description="compares within one answer only")


class Answer(BaseModel):
    """Movies, best first; fewer than k only where no more are left."""

    recommendations: list[Movie]
    basis: Literal["history", "popularity"] = Field(
        description="popularity where there is no history"
    )
    artefact: str = Field(description="the version that answered")


class Health(BaseModel):
    """What is being served."""

    status: Literal["ok"] = "ok"
    artefact: str
    movies: int
    max_k: int
    searches: Search
    refused: str | None = Field(
        description="why a newer version was not taken over, if one was not"
    )


class Problem(BaseModel):
    """What is wrong with a request."""

    detail: str


def create_app(folder: str | Path, search: Search | None = None, every: float = 1.0) -> FastAPI:
    """The service, as an ASGI application, with the artefact loaded.

    Args:
        folder: where `rectutor.artefact.write` writes.
        search: see `rectutor.artefact.Service.load`.
        every: seconds between looks for another version.

    Raises:
        ArtefactError: there is nothing to serve.
    """
    stamp = _stamp(folder)
    taken = _Taken(Service.load(folder, search))

    @asynccontextmanager
    async def watched(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(_watch(taken, folder, search, every, stamp))
        gc.collect()
        gc.freeze()  # or every full collection looks at all the modules while requests wait
        yield
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching

    app = FastAPIOffline(
        redoc_url=None,
        title="rectutor",
        description="Movies for a history.",
        version=rectutor.__version__,
        lifespan=watched,
        max_body_size=MAX_BODY,
    )
    app.add_exception_handler(RequestValidationError, _refuse)

    @app.post(
        "/recommendations",
        summary="Recommend movies",
        responses={
            400: {"model": Problem, "description": "The body is no JSON text"},
            413: {"description": f"The body is above {MAX_BODY:,} bytes"},
            422: {"model": Problem, "description": "A value is wrong; `detail` says which"},
        },
    )
    async def recommendations(question: Question) -> Answer:
        service = taken.service
        try:
            found = service.recommend(question.history, question.k, question.exclude)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        return Answer(
            recommendations=[Movie.model_validate(movie) for movie in found],
            basis="history" if question.history else "popularity",
            artefact=service.id,
        )

    @app.get("/health", summary="Say what is served")
    async def health() -> Health:
        service = taken.service
        return Health(
            artefact=service.id,
            movies=service.num_movies,
            max_k=service.max_k,
            searches=service.searches,
            refused=taken.refused,
        )

    return app


class _Taken:
    """The version in use, and why a newer one is not."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.refused: str | None = None


async def _watch(
    taken: _Taken,
    folder: str | Path,
    search: Search | None,
    every: float,
    stamp: object,
) -> None:
    """Take over what `write` makes current, loaded on another thread; never stops by itself.

    What is refused is tried again, after 1, 2, 4 and so on looks: the disk may have been to blame.
    """
    refused: object = stamp
    looks = wait = 0
    while True:
        await asyncio.sleep(every)
        if (now := _stamp(folder)) == stamp:
            continue
        if now == refused and (looks := looks - 1) > 0:
            continue
        try:
            taken.service = await asyncio.to_thread(Service.load, folder, search)
            taken.refused, stamp = None, now
            _log.info("serving artefact %s", taken.service.id)
        except Exception as error:
            wait = min(2 * wait, MOST_LOOKS) if now == refused else 1
            refused, looks, before = now, wait, taken.refused
            taken.refused = f"{type(error).__name__}: {error}"
            if taken.refused != before:
                _log.error("still serving artefact %s: %s", taken.service.id, taken.refused)


def _stamp(folder: str | Path) -> object:
    """Differs whenever `current` has been written."""
    try:
        found = (Path(folder) / "current").stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


async def _refuse(request: Request, error: Exception) -> Response:
    """Say what is wrong without repeating what was sent, which may be no JSON (NaN) or long."""
    assert isinstance(error, RequestValidationError)
    found: Sequence[Any] = error.errors()
    problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in found[:5]]
    return Response(
        json.dumps({"detail": "; ".join(problems)[:2000]}), 422, None, "application/json"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; says on its output where, as soon as requests are taken."""
    parser = argparse.ArgumentParser(prog="python -m rectutor.serve", description=__doc__)
    parser.add_argument("folder", help="where rectutor.artefact.write wrote")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=_port, default=8000, help="0 takes any free one")
    parser.add_argument("--search", choices=("exact", "index"))
    parser.add_argument("--every", type=_seconds, default=1.0, help="seconds between looks")
    options = parser.parse_args(arguments)
    try:
        app = create_app(options.folder, options.search, options.every)
        listener = socket.create_server((options.host, options.port), backlog=2048)
    except (ArtefactError, OSError) as error:
        print(f"rectutor.serve: {error}", file=sys.stderr)
        return 1
    host, port = listener.getsockname()[:2]
    print(f"serving on http://{host}:{port} (its page: /docs)", flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False)
    with suppress(KeyboardInterrupt):  # Ctrl-C, once every request has its answer
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def _port(text: str) -> int:
    """A port's number, for the command line."""
    if not 0 <= (port := int(text)) <= 65_535:
        raise argparse.ArgumentTypeError(f"{text} is no port; give 0 to 65535")
    return port


def _seconds(text: str) -> float:
    """A time that something takes, for the command line."""
    if not 0 < (seconds := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no time; give seconds above 0")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
