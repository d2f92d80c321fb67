"""One folder that answers: encoder, items, index, neighbours, ranker, catalogue and a manifest.

`write` makes it from what a chapter has trained, `Service` reads it and recommends. Neither needs
Keras, JAX, TensorFlow or pandas: NumPy, onnxruntime and FAISS do (`pip install rectutor[serve]`).

Versions lie side by side in `FOLDER/<id>/`, and the small file `FOLDER/current` names the one in
use. It is replaced in one step, so a reader finds the old version or the new one, whole.

A movie has two names: the *id* that the outside knows it by, and its *number*, from 1, which is its
row in `items` and 1 more than its row in the catalogue. Number 0 is padding.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rectutor import environment

if TYPE_CHECKING:
    import faiss
    import pandas as pd

#: What an id may be. All ids of a catalogue are of one kind.
Id = int | str

#: How the first retriever looks for movies: all of them, or by the index.
Search = Literal["exact", "index"]

#: Raised whenever an older reader could no longer read what is written.
FORMAT = 1

#: What the ranker knows of a candidate, in the order of its inputs; see `features`.
FEATURES = ("model score", "neighbour score", "model rank", "neighbour rank", "popularity")

#: Catalogues up to here are searched exactly: one product takes less than a search of the index.
EXACT_UP_TO = 10_000

_FILES = (
    "encoder.onnx",
    "items.npy",
    "index.faiss",
    "neighbours.npy",
    "ranker.onnx",
    "catalogue.json",
)
_LIBRARIES = ("numpy", "onnxruntime", "faiss-cpu")


class ArtefactError(Exception):
    """An artefact is missing, damaged, of another format, or put together from two."""


class UnknownMovies(ValueError):  # noqa: N818 (says what was asked for, as a service answers it)
    """Ids that are not in the catalogue.

    Attributes:
        ids: which, in the order of the request.
    """

    def __init__(self, ids: Sequence[Id], place: str) -> None:
        self.ids = list(ids)
        shown = [ascii(each) for each in self.ids[:10]]
        shown = [each if len(each) <= 60 else f"{each[:57]}..." for each in shown]
        named = ", ".join(shown) + (", ..." if len(self.ids) > 10 else "")
        super().__init__(f"{place} has ids that are not in the catalogue: {named}; leave them out")


@dataclass(frozen=True)
class Recommendation:
    """One movie of an answer; `score` compares within one answer only."""

    id: Id
    title: str
    score: float


@dataclass(frozen=True)
class Candidates:
    """What the first stage found, best first: `(K,)` numbers and each retriever's `(K,)` scores."""

    movies: np.ndarray
    model_scores: np.ndarray
    neighbour_scores: np.ndarray


def features(
    model_scores: np.ndarray, neighbour_scores: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """What the ranker is told of each candidate; training and service call this one function.

    Scores are told as distances to the best candidate's, ranks (among the candidates) and
    popularity as logarithms.

    Args:
        model_scores: `(..., K)` of the first retriever.
        neighbour_scores: `(..., K)` of the second.
        counts: `(..., K)` interactions of the movies.

    Returns:
        `(..., K, 5)` float32, in the order of `FEATURES`.
    """
    columns = [
        scores - scores.max(-1, keepdims=True) for scores in (model_scores, neighbour_scores)
    ]
    for scores in (model_scores, neighbour_scores):
        places = np.argsort(np.argsort(-scores, axis=-1, kind="stable"), axis=-1)
        columns.append(np.log1p(places))
    columns.append(np.log1p(counts))
    return np.stack(columns, axis=-1).astype(np.float32)


def build_index(items: np.ndarray, kind: str = "HNSW32,Flat", parameters: str = "") -> faiss.Index:
    """An approximate index over the rows from 1 on, by inner product.

    Args:
        items: `(V + 1, d)` float32; row 0 is padding and not indexed.
        kind: FAISS's name of the index, such as `"HNSW32,Flat"`, `"IVF40,Flat"`, or `"SQ8"` for
            int8.
        parameters: those of the search, such as `"nprobe=8"` or `"efSearch=64"`.

    Raises:
        ValueError: FAISS knows no such index or parameter.
    """
    import faiss

    faiss.omp_set_num_threads(1)  # a query is too small to share
    try:
        index = faiss.index_factory(items.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
        rows = np.ascontiguousarray(items[1:], np.float32)
        index.train(rows)
        index.add(rows)
        if parameters:
            faiss.ParameterSpace().set_index_parameters(index, parameters)  # type: ignore[arg-type]
    except RuntimeError as error:
        raise ValueError(
            f"build_index: FAISS makes no index of kind={kind!r} with parameters={parameters!r}"
            f" over {len(items) - 1} items ({error}); see FAISS's list of factory strings"
        ) from error
    return index


def recall(index: faiss.Index, items: np.ndarray, states: np.ndarray, k: int) -> float:
    """The share of the k best items of each state `(B, d)` that the index finds."""
    exact = np.argsort(-(states @ items[1:].T), axis=1)[:, :k]
    found = index.search(states, k)[1]
    return float(np.mean([np.isin(*each).mean() for each in zip(exact, found, strict=True)]))


#: Exports a saved model from JAX, whose exporter needs the fewest libraries.
_ON_JAX = """
import sys, keras, numpy as np
sys.modules["equinox"] = None  # see _without_equinox
model = keras.saving.load_model(sys.argv[1])
model(np.ones([size or 1 for size in model.input_shape], model.input.dtype))
model.export(sys.argv[2], format="onnx", verbose=False)
"""


def to_onnx(model: Any) -> bytes:
    """A Keras model of one input as an ONNX file, whichever backend it runs on.

    Args:
        model: a functional model; sizes that it leaves open stay open.
    """
    import keras

    (given,) = model.inputs
    model(np.ones([size or 1 for size in given.shape], given.dtype))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        if keras.backend.backend() == "jax":
            with _without_equinox():
                model.export(path, format="onnx", verbose=False)
        else:
            saved = path.with_suffix(".keras")
            model.save(saved)
            python = [sys.executable, "-c", _ON_JAX, str(saved), str(path)]
            jax = os.environ | {"KERAS_BACKEND": "jax"}
            subprocess.run(python, env=jax, check=True, capture_output=True)
        return path.read_bytes()


@contextmanager
def _without_equinox() -> Iterator[None]:
    """Let the exporter start without what it knows of Equinox's layers.

    At its first use jax2onnx loads that as well, and traces each layer: several times as long as
    all the rest. What cannot be imported it skips, with a remark.
    """
    if "equinox" in sys.modules:
        yield
        return
    remarks = logging.getLogger("jax2onnx.plugins.plugin_system")
    before, remarks.disabled = remarks.disabled, True
    sys.modules["equinox"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["equinox"]
        remarks.disabled = before


def gru_to_onnx(
    movies: np.ndarray,
    kernel: np.ndarray,
    recurrent: np.ndarray,
    biases: np.ndarray,
    dense: np.ndarray,
    bias: np.ndarray,
    context: int,
) -> bytes:
    """An encoder of embedding, GRU and a dense layer by ONNX's own operator for a GRU.

    `to_onnx` writes a GRU as a loop of forty small operations a movie, which takes several times as
    long as this one. The arrays are those of Keras, in the order of `Model.get_weights`.

    Args:
        movies: `(V + 1, d)` vectors; row 0 is padding.
        kernel: `(d, 3 * units)`.
        recurrent: `(units, 3 * units)`.
        biases: `(2, 3 * units)`, with `reset_after=True`, as is Keras's own choice.
        dense: `(units, d)`.
        bias: `(d,)`.
        context: L, movies a window, of which padding stands before the others.

    Returns:
        A model from `history` int32 `(B, L)` to float32 `(B, d)`.
    """
    from onnx import TensorProto, helper, numpy_helper

    # The latest movie first, and the GRU backwards: so padding is last, where a length cuts it off.
    steps: list[tuple[str, str, str, dict[str, Any]]] = [
        ("Slice", "history first last columns backwards", "latest_first", {}),
        ("Cast", "latest_first", "seen", {"to": TensorProto.BOOL}),
        ("Cast", "seen", "ones", {"to": TensorProto.INT32}),
        ("ReduceSum", "ones columns", "lengths", {"keepdims": 0}),
        ("Gather", "movies latest_first", "rows", {}),
        ("Transpose", "rows", "inputs", {"perm": [1, 0, 2]}),
        (
            "GRU",
            "inputs kernel recurrent biases lengths",
            "all_states states",
            {"hidden_size": len(recurrent), "linear_before_reset": 1, "direction": "reverse"},
        ),
        ("Squeeze", "states direction", "state", {}),
        ("Gemm", "state dense bias", "encoded", {}),
    ]
    arrays = {
        "movies": movies,
        "kernel": kernel.T[None],
        "recurrent": recurrent.T[None],
        "biases": biases.reshape(1, -1),
        "dense": dense,
        "bias": bias,
    }
    places = {"first": -1, "last": -(2**62), "columns": 1, "backwards": -1, "direction": 0}
    constants = {name: np.array([place], np.int64) for name, place in places.items()}
    constants |= {name: np.ascontiguousarray(a, np.float32) for name, a in arrays.items()}
    graph = helper.make_graph(
        [helper.make_node(kind, a.split(), b.split(), **more) for kind, a, b, more in steps],
        "encoder",
        [helper.make_tensor_value_info("history", TensorProto.INT32, ["B", context])],
        [helper.make_tensor_value_info("encoded", TensorProto.FLOAT, ["B", dense.shape[1]])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    model: bytes = helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    return model


def in_int8(onnx: bytes) -> bytes:
    """An ONNX model with its matrices in int8, and what they multiply as well when it runs."""
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(onnx)
        quantize_dynamic(path, path.with_name("int8.onnx"))
        return path.with_name("int8.onnx").read_bytes()


def write(
    folder: str | os.PathLike[str],
    *,
    encoder: bytes,
    items: np.ndarray,
    neighbours: np.ndarray,
    decay: float | None,
    ranker: bytes,
    catalogue: pd.DataFrame,
    context: int,
    candidates: int,
    index_kind: str = "HNSW32,Flat",
    index_parameters: str = "",
    metrics: Mapping[str, float],
    data: Mapping[str, Any],
) -> Path:
    r"""Write a version, try it, and make it the current one; the one before it stays beside it.

    Older versions are removed; whatever else lies in the folder is left alone.

    A process that is killed half way leaves the version in use as it was. One process writes at a
    time.

    Args:
        folder: made where there is none.
        encoder: ONNX; `history` int32 `(B, context)`, padded before with 0 and the latest movie
            last, to float32 `(B, d)`.
        items: `(V + 1, d)` float32. The first retriever scores a movie by its row times the state.
        neighbours: `(V + 1, V + 1)` float32, the second retriever's item-to-item weights. It scores
            by the sum of the history's rows, each weighed by $\exp(-age / decay)$, where a movie
            watched twice has the age of the latest time.
        decay: in interactions; `None` weighs all alike.
        ranker: ONNX; `features` float32 `(B, K, 5)` to float32 `(B, K)`, for any K.
        catalogue: V rows in the order of the numbers: `id` (whole numbers or strings), `title`, and
            `count`, the interactions, by which a user without a history is served.
        context: the movies that the encoder reads, from the end of the history.
        candidates: the movies that the ranker gets, and the most that can be asked for.
        index_kind: see `build_index`.
        index_parameters: see `build_index`.
        metrics: what the models were measured to do, such as `{"NDCG@10": 0.11}`; kept as told.
        data: data set, source, and what else tells where the models come from; kept as told.

    Returns:
        The version's own folder.

    Raises:
        ValueError: these do not fit together.
        OSError: the folder cannot be written.
    """
    import faiss

    items = np.ascontiguousarray(items, np.float32)
    index = faiss.serialize_index(build_index(items, index_kind, index_parameters))
    if missing := {"id", "title", "count"} - {*catalogue}:
        raise ValueError(f"artefact.write: the catalogue has no column {min(missing)!r}; give it")
    columns = {name: catalogue[name].tolist() for name in ("id", "title", "count")}
    contents = {
        "encoder.onnx": encoder,
        "items.npy": _packed(items),
        "index.faiss": index.tobytes(),
        "neighbours.npy": _packed(np.asarray(neighbours, np.float32)),
        "ranker.onnx": ranker,
        "catalogue.json": json.dumps(columns, ensure_ascii=False).encode(),
    }
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "context": int(context),
        "candidates": int(candidates),
        "decay": None if decay is None else float(decay),
        "features": list(FEATURES),
        "index": {"kind": index_kind, "parameters": index_parameters},
        "metrics": dict(metrics),
        "data": dict(data),
        "versions": {name: metadata.version(name) for name in _LIBRARIES},
        "files": {name: hashlib.sha256(blob).hexdigest() for name, blob in contents.items()},
        "id": "unnamed",
    }
    try:  # as it will be read: keys become strings
        manifest = json.loads(json.dumps(manifest, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"artefact.write: metrics, data and decay must be what JSON can hold ({error}); give"
            " strings, finite numbers, and lists and dicts of these"
        ) from error
    try:
        tried = Service(manifest, contents, "index")
    except ArtefactError as error:
        raise ValueError(f"artefact.write: {error}") from error
    manifest["trial"] = tried.trial(tried.max_k).tolist()
    manifest["id"] = _id_of(manifest)
    contents["manifest.json"] = json.dumps(manifest, indent=1, ensure_ascii=False).encode()
    return _publish(Path(folder), manifest["id"], contents)


class Service:
    """A loaded artefact, which recommends for one user at a time; safe to share between threads.

    Make one with `Service.load`.

    Attributes:
        id: the version's, which its contents decide.
        manifest: what `write` was told, with hashes and versions.
        num_movies: V, the size of the catalogue.
        ids: `V + 1` by number; the first is none.
        titles: the same.
        counts: `(V + 1,)` float32, the interactions of each.
        searches: `"exact"` or `"index"`, how the first retriever looks for movies.
        max_k: the most movies that can be asked for.
    """

    def __init__(
        self, manifest: Mapping[str, Any], contents: Mapping[str, bytes], search: Search | None
    ) -> None:
        self.id: str = manifest["id"]
        self.manifest = manifest
        self._context: int = manifest["context"]
        self._decay: float | None = manifest["decay"]
        self.max_k: int = manifest["candidates"]
        self._read_catalogue(json.loads(contents["catalogue.json"]))
        size = self.num_movies + 1
        if not 1 <= self.max_k < size or self._context < 1:
            raise ArtefactError(
                f"candidates is {self.max_k} and context is {self._context}; give from 1 to"
                f" {size - 1} (the catalogue) and from 1"
            )
        self._items = _array(contents, "items.npy", (size, None))
        self._neighbours = _array(contents, "neighbours.npy", (size, size))
        self._depth: int | None = None
        if self._decay is not None:
            if not self._decay > 0:
                raise ArtefactError(f"decay is {self._decay}; give interactions above 0, or None")
            self._depth = int(16 * self._decay) + 1  # what is older weighs less than 1e-7
        self._index = _index(contents["index.faiss"], self._items)
        self._encoder = _session(contents, "encoder.onnx", "history", "tensor(int32)")
        self._ranker = _session(contents, "ranker.onnx", "features", "tensor(float)")
        self.searches: Search = search or ("exact" if size <= EXACT_UP_TO else "index")
        self._check_trial()

    @classmethod
    def load(cls, folder: str | os.PathLike[str], search: Search | None = None) -> Service:
        """Read and verify the current version, or the one whose own folder is given.

        Args:
            folder: where `write` wrote.
            search: `"exact"`, `"index"`, or `None`: exact up to `EXACT_UP_TO` movies.

        Raises:
            ArtefactError: there is none, or it is not what `write` wrote: a byte has changed, a
                file is of another artefact, or its models answer other than when it was written.
            ValueError: there is no such search.
        """
        if search not in (None, "exact", "index"):
            raise ValueError(f"Service.load: search is {search!r}; give 'exact', 'index' or None")
        place = Path(folder)
        try:
            if not (place / "manifest.json").exists():
                place /= current(place)
            manifest = json.loads((place / "manifest.json").read_bytes())
            if manifest["format"] != FORMAT or tuple(manifest["features"]) != FEATURES:
                raise ArtefactError(
                    f"{place} is of format {manifest['format']} with features"
                    f" {manifest['features']}; this version reads {FORMAT} and {FEATURES}. Write it"
                    " anew"
                )
            if manifest["id"] != _id_of(manifest):
                raise ArtefactError(f"{place}: the manifest has been changed; write it anew")
            contents = {name: (place / name).read_bytes() for name in _FILES}
            for name, blob in contents.items():
                if hashlib.sha256(blob).hexdigest() != manifest["files"][name]:
                    raise ArtefactError(
                        f"{place / name} is damaged or of another artefact: its SHA-256 is not the"
                        " manifest's; write the artefact anew"
                    )
            return cls(manifest, contents, search)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtefactError(
                f"{place} cannot be read as an artefact ({type(error).__name__}: {error}); write it"
                " with rectutor.artefact.write"
            ) from error

    def recommend(
        self, history: Sequence[Id], k: int = 10, exclude: Iterable[Id] = ()
    ) -> list[Recommendation]:
        """The k best movies, best first, without those of the history and of `exclude`.

        Without a history these are the most popular ones, scored by their interactions. There are
        fewer than k only where no more movies are left.

        Args:
            history: ids, the latest last.
            k: from 1 to `max_k`.
            exclude: ids that the answer must not hold.

        Raises:
            ValueError: k is out of range.
            UnknownMovies: (a ValueError) ids that are not in the catalogue.
        """
        if not 1 <= k <= self.max_k:
            raise ValueError(f"k is {k}; it must be from 1 to {self.max_k}")
        watched = self.numbers(history, "history")
        hidden = self.numbers(list(exclude), "exclude")
        if watched.size == 0:
            movies = self._popular[~np.isin(self._popular, hidden)][:k]
            scores = self.counts[movies]
        else:
            found = self.retrieve(watched, self.max_k, hidden)
            scores = self.rank(found)
            best = np.argsort(-scores, kind="stable")[:k]
            movies, scores = found.movies[best], scores[best]
        return [
            Recommendation(self.ids[movie], self.titles[movie], score)
            for movie, score in zip(movies.tolist(), scores.tolist(), strict=True)
        ]

    def numbers(self, ids: Sequence[Id], place: str = "history") -> np.ndarray:
        """`(n,)` numbers of movies by their ids; `place` is what an error calls them.

        Raises:
            UnknownMovies: some are not in the catalogue.
        """
        try:
            return np.array([self._numbers[movie] for movie in ids], np.int32)
        except KeyError:
            unknown = [movie for movie in ids if movie not in self._numbers]
            raise UnknownMovies(unknown, place) from None

    def encode(self, history: np.ndarray) -> np.ndarray:
        """The model's state `(d,)` after a history of numbers, of which it reads the last."""
        padded = np.zeros((1, self._context), np.int32)
        latest = history[-self._context :]
        padded[0, self._context - len(latest) :] = latest
        state: np.ndarray = self._encoder.run(None, {"history": padded})[0][0]
        return state

    def neighbour_scores(self, history: np.ndarray) -> np.ndarray:
        """The second retriever's scores `(V + 1,)` after a history of numbers.

        A movie watched twice counts once, the latest time, as in `weighted_histories`.
        """
        latest = history[::-1][: self._depth]  # the latest first
        ages = np.sort(np.unique(latest, return_index=True)[1])[::-1]  # of each movie, once
        weights = np.ones(len(ages), np.float32)
        if self._decay is not None:
            weights = np.exp(-ages.astype(np.float32) / np.float32(self._decay))
        scores: np.ndarray = weights @ self._neighbours[latest[ages]]
        return scores

    def retrieve(
        self,
        history: np.ndarray,
        count: int,
        exclude: np.ndarray | None = None,
        search: Search | None = None,
    ) -> Candidates:
        """The first stage: both retrievers' best unseen movies, in turns, until there are `count`.

        Args:
            history: numbers, the latest last, at least one.
            count: how many candidates.
            exclude: numbers that are no candidates.
            search: `"exact"`, `"index"`, or `None` for how this service `searches`.
        """
        seen = history if exclude is None else np.concatenate([history, exclude])
        state = self.encode(history)
        neighbour_scores = self.neighbour_scores(history)
        if (search or self.searches) == "exact":
            ours = _best(self._items @ state, seen, count)
        else:
            ours = self._search(state, seen, count)
        theirs = _best(neighbour_scores.copy(), seen, count)
        movies = _in_turns(ours, theirs)[:count]
        return Candidates(movies, self._items[movies] @ state, neighbour_scores[movies])

    def rank(self, found: Candidates) -> np.ndarray:
        """The second stage: `(K,)` scores of the candidates."""
        if found.movies.size == 0:
            return np.zeros(0, np.float32)
        told = features(found.model_scores, found.neighbour_scores, self.counts[found.movies])
        scores: np.ndarray = self._ranker.run(None, {"features": told[None]})[0][0]
        return scores

    def scores(self, history: np.ndarray, count: int, search: Search | None = None) -> np.ndarray:
        """Both stages for a history of numbers: `(V + 1,)`, minus infinity but for `count`."""
        answer = np.full(self.num_movies + 1, -np.inf, np.float32)
        found = self.retrieve(history, count, search=search)
        answer[found.movies] = self.rank(found)
        return answer

    def trial(self, count: int) -> np.ndarray:
        """Scores of `count` candidates for whoever has watched the most popular movies.

        Of a catalogue no longer than the context some are left unwatched, for there to be any.
        """
        watched = self._context
        if self.num_movies <= watched:
            watched = max(1, self.num_movies - count)
        return self.rank(self.retrieve(self._popular[:watched], count, search="index"))

    def _search(self, state: np.ndarray, seen: np.ndarray, count: int) -> np.ndarray:
        """The same as `_best`, by the index: as many more as have been seen, and those dropped."""
        wanted = min(count + len(np.unique(seen)), self.num_movies)
        found: np.ndarray = self._index.search(state[None], wanted)[1][0] + 1
        found = found[(found > 0) & ~np.isin(found, seen)]  # FAISS says -1 for "no more"
        return found[:count]

    def _read_catalogue(self, columns: Mapping[str, list[Any]]) -> None:
        ids, titles, counts = (columns[name] for name in ("id", "title", "count"))
        kinds = {type(movie) for movie in ids}
        if len(kinds) != 1 or not kinds <= {int, str} or len(set(ids)) < len(ids):
            raise ArtefactError(
                "the catalogue's ids must be all whole numbers or all strings, each once, at least"
                f" one; they are of {sorted(kind.__name__ for kind in kinds)},"
                f" {len(ids) - len(set(ids))} of them repeated"
            )
        if not all(isinstance(title, str) for title in titles):
            raise ArtefactError("the catalogue has titles that are no strings; give each movie one")
        self.num_movies = len(ids)
        self.ids: list[Id] = [kinds.pop()(), *ids]
        self.titles: list[str] = ["", *titles]
        self.counts = np.array([0, *counts], np.float32)
        if not (np.isfinite(self.counts).all() and (self.counts >= 0).all()):
            raise ArtefactError("the catalogue has counts that are negative or missing; give each")
        self._numbers = {movie: number for number, movie in enumerate(ids, 1)}
        self._popular = np.argsort(-self.counts[1:], kind="stable").astype(np.int32) + 1

    def _check_trial(self) -> None:
        """Do the models fit each other, and answer what they answered when they were written?"""
        try:
            state = self.encode(self._popular[:1])
            one, scores = self.trial(1), self.trial(self.max_k)
        except Exception as error:  # onnxruntime's own errors have no common base but this
            raise ArtefactError(f"the models do not fit each other: {error}") from error
        if state.shape != self._items.shape[1:] or one.shape != (1,):
            raise ArtefactError(
                f"the encoder's state is {state.shape} and an item {self._items.shape[1:]}; give"
                f" them one width. The ranker's scores of one candidate are {one.shape}; give (1,)"
            )
        told = np.array(self.manifest.get("trial", scores))
        if told.shape != scores.shape or not np.allclose(told, scores, rtol=1e-3, atol=1e-3):
            raise ArtefactError(
                "the models answer other than when they were written, or with numbers that are not"
                " finite: files of several artefacts, or a broken model; write the artefact anew"
            )


def current(folder: str | os.PathLike[str]) -> str:
    """The id of the version in use in a folder that `write` wrote.

    Raises:
        ArtefactError: there is none.
    """
    file = Path(folder) / "current"
    try:
        name = file.read_text("utf-8").strip()
    except OSError as error:
        raise ArtefactError(
            f"{file} cannot be read ({error.strerror}): there is no artefact yet; run `make book`,"
            " or write one with rectutor.artefact.write"
        ) from error
    if not name.isalnum():
        raise ArtefactError(f"{file} names no version but {name!r}; write the artefact anew")
    return name


def _publish(folder: Path, name: str, contents: Mapping[str, bytes]) -> Path:
    """Put a version beside the others, whole or not at all, and name it in `current`."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        before = current(folder)
    except ArtefactError:  # there is none yet, or what names it is damaged
        before = name
    temporary, version = folder / ".writing", folder / name
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    temporary.mkdir()
    for file, blob in contents.items():
        with (temporary / file).open("wb") as stream:
            stream.write(blob)
            stream.flush()
            os.fsync(stream.fileno())
    if _holds(version, contents):
        shutil.rmtree(temporary)
    else:
        shutil.rmtree(version, ignore_errors=True)  # was damaged
        temporary.rename(version)
    if os.name == "posix":  # the version is on the disk before it is named
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    environment.write_text(name + "\n", folder / "current")
    if before != name:
        for other in folder.iterdir():
            if other.name not in (before, name) and _is_version(other):
                shutil.rmtree(other, ignore_errors=True)
    return version


def _is_version(folder: Path) -> bool:
    """Whether `write` made it: what else lies there is somebody's own."""
    named = re.fullmatch("[0-9a-f]{16}", folder.name)
    return named is not None and (folder / "manifest.json").is_file()


def _holds(version: Path, contents: Mapping[str, bytes]) -> bool:
    """Whether a version is there already, whole."""
    files = {file: version / file for file in contents}
    return all(
        path.is_file() and path.read_bytes() == contents[file] for file, path in files.items()
    )


def _id_of(manifest: Mapping[str, Any]) -> str:
    """A version's name, from all that its manifest says."""
    said = {key: value for key, value in manifest.items() if key != "id"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _packed(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _array(contents: Mapping[str, bytes], name: str, shape: tuple[int, int | None]) -> np.ndarray:
    array: np.ndarray = np.load(io.BytesIO(contents[name]), allow_pickle=False)
    fits = array.ndim == 2 and array.shape[0] == shape[0] and shape[1] in (None, array.shape[1])
    if not fits or not np.isfinite(array).all():
        raise ArtefactError(
            f"{name} has shape {array.shape} or numbers that are not finite; the catalogue needs"
            f" {shape[0]} rows (row 0 is padding) and {shape[1] or 'any number of'} columns"
        )
    return array


def _index(blob: bytes, items: np.ndarray) -> faiss.Index:
    """FAISS's index, if the scores that it finds are those of these items."""
    import faiss

    try:
        index = faiss.deserialize_index(np.frombuffer(blob, np.uint8))
    except RuntimeError as error:
        raise ArtefactError(f"FAISS cannot read the index: {error}") from error
    if (index.ntotal, index.d) == (len(items) - 1, items.shape[1]):
        asked = items[1:101]
        scores, found = index.search(asked, 1)
        exact = (asked * items[found[:, 0] + 1]).sum(axis=1)
        if np.abs(scores[:, 0] - exact).max() <= 0.1 * np.abs(exact).max():  # int8 is 0.01 off
            return index
    raise ArtefactError("the index was not built from these items; write the artefact anew")


def _session(contents: Mapping[str, bytes], name: str, given: str, kind: str) -> Any:
    """An ONNX model that computes on the calling thread: a request is too small to share."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # what an exporter left unused is no matter
    try:
        session = onnxruntime.InferenceSession(
            contents[name], options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's own errors have no common base but this
        raise ArtefactError(f"onnxruntime cannot read {name}: {error}") from error
    inputs = [(node.name, node.type) for node in session.get_inputs()]
    if inputs != [(given, kind)]:
        raise ArtefactError(f"{name} has inputs {inputs}; it must have [({given!r}, {kind!r})]")
    return session


def _best(scores: np.ndarray, seen: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` unseen numbers by score, best first; overwrites the scores."""
    scores[0] = scores[seen] = -np.inf
    best = np.argpartition(-scores, min(count, len(scores)) - 1)[:count]
    best = best[np.argsort(-scores[best], kind="stable")]
    return best[scores[best] > -np.inf]


def _in_turns(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Both lists in turns, each number once."""
    places = np.concatenate([2 * np.arange(len(ours)), 2 * np.arange(len(theirs)) + 1])
    both = np.concatenate([ours, theirs])[np.argsort(places)]
    return both[np.sort(np.unique(both, return_index=True)[1])]
