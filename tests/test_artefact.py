"""The artefact: what it answers, what it refuses, and what a killed writer leaves."""

import json

import artefacts
import numpy as np
import pytest

from rectutor import artefact
from rectutor.artefact import ArtefactError, Service, UnknownMovies, write
from rectutor.baselines import weighted_histories
from rectutor.evaluation import Queries
from rectutor.sequences import Histories


@pytest.fixture(scope="module")
def service(served):
    return Service.load(served)


def by_hand(parts, history, k, exclude=()):
    """What should come out, computed movie by movie."""
    numbers = [movie // 10 for movie in history]
    state = parts["items"][numbers[-artefacts.CONTEXT :]].sum(axis=0)
    model = parts["items"] @ state
    near = sum(
        np.exp(-age / parts["decay"]) * parts["neighbours"][number]
        for age, number in enumerate(reversed(numbers))
    )
    unseen = set(range(1, artefacts.SIZE + 1)) - {movie // 10 for movie in [*history, *exclude]}
    lists = [sorted(unseen, key=lambda movie: -scores[movie]) for scores in (model, near)]
    found = list(dict.fromkeys(movie for pair in zip(*lists, strict=True) for movie in pair))
    found = np.array(found[: artefacts.CANDIDATES])
    counts = np.array([0, *parts["catalogue"]["count"]])
    told = artefact.features(model[found], near[found], counts[found])
    scores = told @ artefacts.ranker_weights()
    return [10 * movie for movie in found[np.argsort(-scores, kind="stable")][:k]]


@pytest.mark.parametrize(
    ("history", "exclude"),
    [([10], []), ([600, 20, 50], [30]), ([10 * n for n in range(1, 31)], [310, 320])],
    ids=["one movie", "three", "more than the context"],
)
def test_two_stages_come_out_as_by_hand(history, exclude, service):
    wanted = by_hand(artefacts.parts(), history, 10, exclude)
    found = service.recommend(history, 10, exclude)
    assert [movie.id for movie in found] == wanted
    assert found[0].title == f"Movie {wanted[0] // 10} (1999)"
    assert [movie.score for movie in found] == sorted((m.score for m in found), reverse=True)


def test_seen_and_excluded_movies_never_come_back(service):
    everything = [10 * number for number in range(1, artefacts.SIZE + 1)]
    history, exclude = everything[:40], everything[40:57]
    for search in ("exact", "index"):
        found = service.retrieve(
            service.numbers(history), 20, service.numbers(exclude), search=search
        )
        assert set(found.movies.tolist()) == {58, 59, 60}
    assert {movie.id for movie in service.recommend(history, 10, exclude)} == {580, 590, 600}
    assert service.recommend(everything, 10) == []


def test_without_a_history_the_popular_ones_come(service):
    table = artefacts.parts()["catalogue"].sort_values("count", ascending=False, kind="stable")
    wanted = table["id"].tolist()
    assert [movie.id for movie in service.recommend([], 3)] == wanted[:3]
    assert [movie.id for movie in service.recommend([], 3, wanted[:2])] == wanted[2:5]


def test_a_wide_index_finds_what_exact_search_finds(served, tmp_path):
    write(
        tmp_path, **artefacts.parts() | {"index_kind": "IVF4,Flat", "index_parameters": "nprobe=4"}
    )
    exact, index = Service.load(tmp_path, "exact"), Service.load(tmp_path, "index")
    for history in ([10], [20, 30, 40], [600, 590]):
        assert exact.recommend(history) == index.recommend(history)
    assert (exact.searches, index.searches, Service.load(tmp_path).searches) == (
        "exact",
        "index",
        "exact",
    )


def test_int8_is_an_index_like_any_other(tmp_path):
    write(tmp_path, **artefacts.parts() | {"index_kind": "SQ8"})
    assert len(Service.load(tmp_path, "index").recommend([10, 20])) == 10


def test_recall_is_the_share_of_the_best_that_an_index_finds():
    parts = artefacts.parts()
    states = parts["items"][1:9]
    whole = artefact.build_index(parts["items"], "Flat")
    assert artefact.recall(whole, parts["items"], states, 10) == 1.0
    half = parts["items"].copy()
    half[31:] = -half[31:]  # an index that is wrong about half of the items
    found = artefact.recall(artefact.build_index(half, "Flat"), parts["items"], states, 10)
    assert 0.1 < found < 0.9


def test_scores_are_those_of_the_candidates_alone(service):
    history = np.array([1, 2, 3])
    found = service.retrieve(history, 5)
    scores = service.scores(history, 5)
    np.testing.assert_array_equal(scores[found.movies], service.rank(found))
    assert np.isneginf(np.delete(scores, found.movies)).all()


@pytest.mark.parametrize("decay", [None, 0.3], ids=["no decay", "fast decay"])
def test_the_old_end_of_a_history_is_left_out_only_where_it_weighs_nothing(decay, tmp_path):
    parts = artefacts.parts() | {"decay": decay}
    write(tmp_path, **parts)
    history = np.arange(1, 51)
    ages = np.arange(49, -1, -1)
    weights = np.ones(50) if decay is None else np.exp(-ages / decay)
    wanted = weights @ parts["neighbours"][history]
    found = Service.load(tmp_path).neighbour_scores(history)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decay", [None, 3.0])
def test_a_movie_watched_again_counts_as_the_retriever_has_it(decay, tmp_path):
    parts = artefacts.parts() | {"decay": decay}
    write(tmp_path, **parts)
    history = np.random.default_rng(0).integers(1, 20, 90).astype(np.int32)
    queries = Queries(np.array([1]), Histories(history, np.array([0, 0, 90])))
    weights = weighted_histories(queries, artefacts.SIZE, decay)
    found = Service.load(tmp_path).neighbour_scores(history)
    wanted = (weights @ parts["neighbours"])[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [3, artefacts.CONTEXT, artefacts.CONTEXT + 1])
def test_a_catalogue_may_be_as_short_as_the_context(size, tmp_path):
    write(tmp_path, **artefacts.parts(size=size) | {"candidates": 2})
    assert len(Service.load(tmp_path).recommend([10], 2)) == 2


def test_features_tell_distances_ranks_and_popularity():
    told = artefact.features(np.array([1.0, 3.0, 2.0]), np.array([5.0, 5.0, 6.0]), np.arange(3))
    assert told.shape == (3, len(artefact.FEATURES))
    assert told.dtype == np.float32
    assert told[:, 0].tolist() == [-2, 0, -1]
    assert told[:, 1].tolist() == [-1, -1, 0]
    np.testing.assert_allclose(told[:, 2], np.log1p([2, 0, 1]), rtol=1e-6)
    np.testing.assert_allclose(told[:, 3], np.log1p([1, 2, 0]), rtol=1e-6)
    np.testing.assert_allclose(told[:, 4], np.log1p([0, 1, 2]), rtol=1e-6)
    both = artefact.features(*np.ones((3, 2, 7)))
    assert both.shape == (2, 7, len(artefact.FEATURES))


def test_unknown_ids_are_named(service):
    with pytest.raises(
        UnknownMovies, match=r"history has ids .* catalogue: 7, '10'; leave"
    ) as said:
        service.recommend([10, 7, "10"])
    assert said.value.ids == [7, "10"]
    with pytest.raises(UnknownMovies, match="exclude has"):
        service.recommend([10], exclude=[1])
    with pytest.raises(UnknownMovies, match=r"9, \.\.\.;"):
        service.recommend(list(range(100)))


@pytest.mark.parametrize("k", [0, -1, artefacts.CANDIDATES + 1])
def test_k_has_its_limits(k, service):
    with pytest.raises(ValueError, match=f"k is {k}; it must be from 1 to 20"):
        service.recommend([10], k)


def test_ids_may_be_strings(tmp_path):
    parts = artefacts.parts()
    parts["catalogue"]["id"] = [f"tt{number:03}" for number in range(1, 61)]
    write(tmp_path, **parts)
    found = Service.load(tmp_path).recommend(["tt001", "tt060"], 3)
    assert {type(movie.id) for movie in found} == {str}


def changed(**changes):
    """A function that changes a copy of the parts."""
    return lambda parts: (
        parts
        | {
            name: change(parts[name]) if callable(change) else change
            for name, change in changes.items()
        }
    )


def with_column(name, value):
    return changed(catalogue=lambda table: table.assign(**{name: value}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed(items=lambda items: items[:-1]), "items.npy has shape .59|60, 8.*61 rows"),
        (changed(items=lambda items: items[:, :5]), "do not fit|width"),
        (changed(items=lambda items: items * np.nan), "not finite"),
        (changed(neighbours=lambda rows: rows[:, :-1]), "neighbours.npy has shape .61, 60"),
        (changed(neighbours=lambda rows: np.where(rows > 2, np.inf, rows)), "not finite"),
        (changed(decay=0.0), "decay is 0.0; give interactions above 0"),
        (changed(candidates=61), "candidates is 61 .* from 1 to 60"),
        (changed(candidates=0), "candidates is 0 "),
        (changed(context=0), "context is 0; "),
        (changed(context=4), "do not fit each other"),
        (changed(index_kind="HSNW"), "no index of kind='HSNW'"),
        (changed(index_parameters="nporbe=3"), "parameters='nporbe=3'"),
        (changed(encoder=b"no model"), "onnxruntime cannot read encoder.onnx"),
        (
            changed(encoder=lambda _: artefacts.ranker([1] * 5)),
            "encoder.onnx has inputs .*features",
        ),
        (
            changed(encoder=lambda _: artefacts.encoder(np.ones((61, 3), np.float32))),
            "do not fit|width",
        ),
        (
            changed(encoder=lambda _: artefacts.encoder(np.ones((61, 8), np.float32), kind=7)),
            "encoder.onnx has inputs .*int64",
        ),
        (changed(ranker=lambda _: artefacts.ranker([1, 2])), "do not fit each other"),
        (
            changed(ranker=lambda _: artefacts.ranker([np.nan] * len(artefact.FEATURES))),
            "not finite",
        ),
        (with_column("id", [1] * 60), "59 of them repeated"),
        (with_column("id", [1, "2"] * 30), "whole numbers or all strings"),
        (with_column("title", 3), "titles that are no strings"),
        (with_column("count", -1), "counts that are negative"),
        (changed(catalogue=lambda table: table.drop(columns="count")), "has no column 'count'"),
        (changed(metrics={"NDCG@10": np.float32(0.1)}), "what JSON can hold .*float32"),
        (changed(decay=np.inf), "what JSON can hold"),
    ],
)
def test_what_does_not_fit_is_not_written(change, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        write(tmp_path, **change(artefacts.parts()))
    assert not list(tmp_path.iterdir())


def test_nothing_there_says_what_to_do(tmp_path):
    with pytest.raises(ArtefactError, match=r"current cannot be read .* `make book`"):
        Service.load(tmp_path)
    (tmp_path / "current").write_text("../elsewhere")
    with pytest.raises(ArtefactError, match="names no version"):
        Service.load(tmp_path)
    (tmp_path / "current").write_text("abc")
    with pytest.raises(ArtefactError, match="cannot be read as an artefact"):
        Service.load(tmp_path)
    with pytest.raises(ValueError, match="search is 'guess'"):
        Service.load(tmp_path, "guess")


FILES = [*artefact._FILES, "manifest.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_refused(name, tmp_path):
    file = write(tmp_path, **artefacts.parts()) / name
    blob = file.read_bytes()
    for place in (0, len(blob) // 2, len(blob) - 2):
        file.write_bytes(blob[:place] + bytes([blob[place] ^ 1]) + blob[place + 1 :])
        with pytest.raises(ArtefactError, match=r"damaged|changed|cannot be read|of format"):
            Service.load(tmp_path)
    file.unlink()
    with pytest.raises(ArtefactError):
        Service.load(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_artefact_is_refused(name, tmp_path):
    one, other = (write(tmp_path / str(seed), **artefacts.parts(seed)) for seed in (1, 2))
    (one / name).write_bytes((other / name).read_bytes())
    with pytest.raises(ArtefactError, match=r"of another artefact"):
        Service.load(one)


@pytest.mark.parametrize("name", [name for name in artefact._FILES if name != "catalogue.json"])
def test_so_it_is_where_the_hashes_were_made_to_fit(name, tmp_path):
    one, other = (write(tmp_path / str(seed), **artefacts.parts(seed)) for seed in (1, 2))
    (one / name).write_bytes((other / name).read_bytes())
    manifest = json.loads((one / "manifest.json").read_text())
    manifest["files"][name] = json.loads((other / "manifest.json").read_text())["files"][name]
    manifest["id"] = artefact._id_of(manifest)
    (one / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match=r"not built from these items|answer other than"):
        Service.load(one)


def test_another_format_is_refused(tmp_path, monkeypatch):
    write(tmp_path, **artefacts.parts())
    monkeypatch.setattr(artefact, "FEATURES", (*artefact.FEATURES, "mood"))
    with pytest.raises(ArtefactError, match=r"is of format 1 with features .* Write it anew"):
        Service.load(tmp_path)


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_writer_killed_anywhere_leaves_a_whole_version(tmp_path, monkeypatch):
    old = write(tmp_path, **artefacts.parts(1)).name
    steps = {"left": 10**9}

    def counted(function):
        def step(*arguments, **named):
            steps["left"] -= 1
            if steps["left"] < 0:
                raise Killed
            return function(*arguments, **named)

        return step

    for module, name in (
        (artefact.os, "fsync"),
        (artefact.Path, "rename"),
        (artefact.Path, "replace"),
        (artefact.Path, "mkdir"),
        (artefact.shutil, "rmtree"),
    ):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    seen = []
    for number in range(100):
        steps["left"] = number
        try:
            write(tmp_path, **artefacts.parts(2))
        except Killed:
            pass
        else:
            break
        finally:
            steps["left"] = 10**9
        seen.append(Service.load(tmp_path).id)
    new = Service.load(tmp_path).id
    assert len(seen) > 10
    assert set(seen) <= {old, new}
    assert old in seen
    assert new != old
    assert {path.name for path in tmp_path.iterdir()} <= {"current", old, new}


def test_the_version_before_stays_and_older_ones_go(tmp_path):
    names = [write(tmp_path, **artefacts.parts(seed)).name for seed in (1, 2, 3)]
    assert {path.name for path in tmp_path.iterdir()} == {"current", *names[1:]}
    assert artefact.current(tmp_path) == names[2]


def test_what_is_somebody_elses_is_left_alone(tmp_path):
    for name in ("thesis", ".git", "0123456789abcdef"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "one.txt").write_text("mine")
    names = [write(tmp_path, **artefacts.parts(seed)).name for seed in (1, 2, 3)]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"current", *names[1:], "thesis", ".git", "0123456789abcdef"}
    assert (tmp_path / "thesis" / "one.txt").read_text() == "mine"


def test_writing_the_same_again_keeps_the_version_before(tmp_path):
    names = [write(tmp_path, **artefacts.parts(seed)).name for seed in (1, 2, 2)]
    assert {path.name for path in tmp_path.iterdir()} == {"current", *names[:2]}


def test_writing_mends_a_damaged_current(tmp_path):
    write(tmp_path, **artefacts.parts(1))
    (tmp_path / "current").write_text("")
    new = write(tmp_path, **artefacts.parts(2))
    assert Service.load(tmp_path).id == new.name


def test_what_json_makes_of_the_data_is_what_is_named(tmp_path):
    parts = artefacts.parts() | {"data": {"by k": {5: 0.1, 10: 0.2}}}
    write(tmp_path, **parts)
    assert Service.load(tmp_path).manifest["data"] == {"by k": {"5": 0.1, "10": 0.2}}


def test_the_same_contents_have_the_same_id_and_writing_repairs(tmp_path):
    version = write(tmp_path, **artefacts.parts())
    (version / "items.npy").write_bytes(b"damaged")
    assert write(tmp_path, **artefacts.parts()) == version
    assert Service.load(tmp_path).id == version.name
    before = (version / "items.npy").stat().st_mtime_ns
    assert write(tmp_path, **artefacts.parts()) == version
    assert (version / "items.npy").stat().st_mtime_ns == before


def test_the_manifest_tells_what_it_was_told(served, service):
    told = json.loads((served / service.id / "manifest.json").read_text())
    assert told["metrics"] == {"NDCG@10": 0.1}
    assert told["data"]["name"] == "made up"
    assert set(told["versions"]) == {"numpy", "onnxruntime", "faiss-cpu"}
