"""Sources: the order they are tried in, and that they all give the same tables."""

import importlib.resources
import logging
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import movielens_files as files
import numpy as np
import pandas as pd
import pytest

from rectutor import _sources, _tables, data, environment

TOOLS = files.SHARED / "tools"
MEMBERS = files.files_100k()


def cut_off(monkeypatch):
    """Neither GroupLens nor the package index answers."""

    def refuse(words):
        def action(*_):
            raise _sources.SourceError(words)

        return action

    monkeypatch.setattr(_sources, "_received", refuse("no network"))
    monkeypatch.setattr(_sources, "_pip_download", refuse("no package index"))


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path, caplog):
    """No source but those that a test sets up, and a cache of its own."""
    caplog.set_level(logging.INFO, "rectutor.data")
    monkeypatch.setenv("RECTUTOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RECTUTOR_ARCHIVES", raising=False)
    monkeypatch.delenv("RECTUTOR_STRICT", raising=False)
    cut_off(monkeypatch)


@pytest.fixture
def archives(monkeypatch, tmp_path):
    """A folder of archives with small files in MovieLens's formats."""
    folder = tmp_path / "archives"
    folder.mkdir()
    monkeypatch.setenv("RECTUTOR_ARCHIVES", str(folder))
    for name, members in (("100k", MEMBERS), ("1m", files.files_1m())):
        content = files.zipped(members)
        files.expect(monkeypatch, content, members, name)
        (folder / _sources.ARCHIVES["grouplens", name].file).write_bytes(content)
    return folder


def serve_wheel(monkeypatch):
    content = files.zipped(files.files_recbole(MEMBERS))
    files.expect(monkeypatch, content, {}, source="pypi")
    name = _sources.ARCHIVES["pypi", "100k"].file
    bring = lambda folder: Path(folder, name).write_bytes(content)  # noqa: E731
    monkeypatch.setattr(_sources, "_pip_download", bring)


def serve_grouplens(monkeypatch):
    content = files.zipped(MEMBERS)
    files.expect(monkeypatch, content, MEMBERS)
    monkeypatch.setattr(_sources, "_received", lambda archive: content)


def assert_same(one, other):
    for name in ("ratings", "movies", "users"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name))


def steps(caplog):
    return [record.getMessage().split(":")[0] for record in caplog.records]


# --- the order ----------------------------------------------------------------------------------


def test_an_archive_at_hand_comes_first(archives, caplog):
    assert data.load_movielens("100k").source == "grouplens"
    assert steps(caplog) == ["archives"]


@pytest.mark.parametrize(
    ("serve", "source"), [(serve_grouplens, "grouplens"), (serve_wheel, "pypi")]
)
def test_a_download_is_kept_and_comes_before_the_network(
    monkeypatch, caplog, tmp_path, serve, source
):
    serve(monkeypatch)
    first = data.load_movielens("100k")
    asked = caplog.text
    cut_off(monkeypatch)
    caplog.clear()
    second = data.load_movielens("100k")
    assert first.source == second.source == source
    assert_same(first, second)
    assert "downloading https://files.grouplens.org" in asked
    assert ("grouplens: failed: no network" in asked) == (source == "pypi")
    assert steps(caplog) == ["cache"]
    kept = tmp_path / "cache" / _sources.ARCHIVES[source, "100k"].file
    assert list((tmp_path / "cache").iterdir()) == [kept]


def test_the_cache_is_where_the_platform_or_the_reader_wants_it(monkeypatch, tmp_path):
    assert _sources.cache() == tmp_path / "cache"
    monkeypatch.delenv("RECTUTOR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert "rectutor" in str(_sources.cache())
    monkeypatch.setenv("RECTUTOR_CACHE", "~/here")
    assert _sources.cache() == Path("~/here").expanduser()


def test_the_last_resort_is_latest_small_with_a_loud_warning(tmp_path):
    with pytest.warns(data.FallbackDataWarning, match="THIS IS NOT MOVIELENS 100K") as caught:
        loaded = data.load_movielens("100k")
    for words in ("no network", "no package index", f"\n{'!' * 88}\n"):
        assert words in str(caught[0].message)
    assert caught[0].filename == __file__
    assert (loaded.name, loaded.source) == ("latest-small", "included")
    pd.testing.assert_frame_equal(loaded.ratings, data.load_movielens("latest-small").ratings)
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())


def test_the_warning_is_a_box_on_the_page_in_a_notebook(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setattr("IPython.display.display", shown.append)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.load_movielens("1m").name == "latest-small"
    assert "THIS IS NOT MOVIELENS 1M" in shown[0].data
    assert 'role="alert"' in shown[0].data


def test_strict_turns_the_last_resort_into_an_error(monkeypatch):
    monkeypatch.setenv("RECTUTOR_STRICT", "1")
    with pytest.raises(RuntimeError, match=r"MovieLens 100k could not be loaded.*no network.*pypi"):
        data.load_movielens("100k")
    with pytest.raises(RuntimeError, match=r"put ml-1m\.zip into a folder and name that in RECT"):
        data.load_movielens("1m")


@pytest.mark.parametrize(
    ("name", "source", "words"),
    [
        ("100k", "grouplens", "grouplens: .*no network"),
        ("100k", "pypi", "pypi: no package index"),
        ("1m", "pypi", "pypi: it has no copy of '1m', only of '100k'"),
        ("100k", "included", "included: it has no copy of '100k', only of 'latest-small'"),
        ("latest-small", "grouplens", "no copy of 'latest-small', only of '100k' and '1m'"),
        ("latest-small", "tfds", "another edition of 'latest-small'"),
    ],
)
def test_a_source_that_is_forced_has_no_substitute(name, source, words):
    with pytest.raises(RuntimeError, match=words):
        data.load_movielens(name, source=source)


def test_tfds_that_is_not_installed_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(RuntimeError, match=r"pip install \"rectutor\[tensorflow\]\""):
        data.load_movielens("100k", source="tfds")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("10m",), ValueError, "name='10m': choose from '100k', '1m', 'latest-small'"),
        (("100K",), ValueError, "name='100K'"),
        (("",), ValueError, "name=''"),
        ((None,), TypeError, "name must be a string, not None"),
        ((100_000,), TypeError, "name must be a string, not 100000"),
        (("100k", "web"), ValueError, "source='web': choose from 'auto', 'grouplens', 'pypi'"),
        (("100k", "synthetic"), ValueError, "source='synthetic': choose from"),
        (("100k", None), TypeError, "source must be a string, not None"),
        (("../100k",), ValueError, "choose from"),
    ],
)
def test_load_movielens_names_what_it_knows(arguments, error, words):
    with pytest.raises(error, match=words):
        data.load_movielens(*arguments)


# --- the tables ---------------------------------------------------------------------------------


def test_100k_is_parsed_into_the_schema(archives):
    loaded = data.load_movielens("100k")
    rows = [list(map(int, r.split("\t"))) for r in MEMBERS["ml-100k/u.data"].decode().splitlines()]
    columns = ["user_id", "movie_id", "rating", "timestamp"]
    assert loaded.ratings[columns].to_numpy().tolist() == rows  # in the file's order
    kinds = ["int32", "int32", "int8", "int64", "int64", "int64"]
    assert loaded.ratings.dtypes.astype(str).tolist() == kinds
    assert list(loaded.titles[[1, 2, 3]]) == files.titles(3)
    assert loaded.movies["year"].tolist()[:2] == [1995, 1995]
    assert "|" in loaded.movies["genres"][1]
    assert loaded.users.iloc[0].tolist() == [1, 20, "M", "writer", "00000", 1]
    assert (loaded.has_ratings, loaded.has_timestamps) == (True, True)
    assert loaded.rating_scale == (1, 5)


def test_1m_is_parsed_into_the_same_schema_and_rated_movies_alone_count(archives):
    loaded, hundred = data.load_movielens("1m"), data.load_movielens("100k")
    for name in ("ratings", "movies", "users"):
        one, other = getattr(loaded, name), getattr(hundred, name)
        assert one.dtypes.astype(str).to_dict() == other.dtypes.astype(str).to_dict()
    originals = loaded.movies["original_movie_id"].tolist()
    assert loaded.num_movies == len(originals) == 39
    assert originals == sorted(originals)
    assert 5 not in originals  # listed, never rated
    assert originals[-1] == 3952
    back = np.array([0, *originals])[loaded.ratings["movie_id"]]
    assert back.tolist() == loaded.ratings["original_movie_id"].tolist()
    assert loaded.titles[[1, 2]].tolist() == ["Toy Story (1995)", "Misérables, Les (1995)"]
    assert loaded.users["occupation"].tolist()[:2] == ["other", "academic/educator"]
    assert loaded.users["zip_code"].iloc[0] == "00000-1234"


def test_latest_small_travels_along_with_half_stars_and_its_licence(archives):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = data.load_movielens("latest-small")
    assert (loaded.name, loaded.source, loaded.users) == ("latest-small", "included", None)
    assert (loaded.num_users, loaded.num_movies, len(loaded.ratings)) == (671, 9_066, 100_004)
    assert loaded.rating_scale == (0.5, 5)
    kinds = ["int32", "int32", "float32", "int64", "int64", "int64"]
    assert loaded.ratings.dtypes.astype(str).tolist() == kinds
    assert set(loaded.ratings["rating"] * 2) == set(range(1, 11))
    first = ["user_id", "original_movie_id", "rating", "timestamp"]
    assert loaded.ratings[first].iloc[0].tolist() == [1, 31, 2.5, 1_260_759_144]
    assert loaded.titles[1] == "Toy Story (1995)"
    assert "Misérables, Les (1995)" in loaded.titles
    assert "Comedy|Fantasy" in loaded.movies["genres"][0]
    assert "Children's" in loaded.movies["genres"][0]  # spelled as in 100K
    assert loaded.movies["original_movie_id"].is_monotonic_increasing
    missing = loaded.movies.loc[loaded.movies["year"].isna(), "title"].tolist()
    assert "Big Bang Theory, The (2007-)" in missing
    loaded.require("ratings", "timestamps", "genres")
    folder = importlib.resources.files("rectutor") / "included"
    assert "may redistribute the data set" in (folder / "README.txt").read_text(encoding="utf-8")


def test_an_included_archive_that_was_changed_is_refused(monkeypatch):
    files.expect(monkeypatch, b"other", {}, "latest-small", "included")
    with pytest.raises(RuntimeError, match=r"ml-latest-small\.zip has the wrong checksum"):
        data.load_movielens("latest-small")


def test_the_wheel_and_the_archive_give_the_same_tables(monkeypatch, archives):
    serve_wheel(monkeypatch)
    from_wheel = data.load_movielens("100k", source="pypi")
    assert_same(from_wheel, data.load_movielens("100k", source="grouplens"))


@pytest.mark.parametrize(
    ("parse", "changed", "words"),
    [
        ("1m", {"movies.dat": b"1::Toy Story\n"}, "line 1 has 2 fields"),
        ("1m", {"movies.dat": b"1::Toy Story (1995)::Action\n"}, "movies .* are rated but not"),
        ("1m", {"ratings.dat": b"1::1::good::5\n"}, "column 'rating' holds .* not an integer"),
        ("latest", {"ratings.csv": b"a,b,c,d\n1,1,good,5\n"}, "'rating' holds .* not a number"),
        ("latest", {"ratings.csv": b"a,b,c,d\n1,1.5,4.5,5\n"}, "'movie' holds .* not an integer"),
    ],
)
def test_parsers_say_what_is_wrong(parse, changed, words):
    members = {k.split("/")[1]: v for k, v in files.files_1m().items()}
    members |= {"movies.csv": b"movieId,title,genres\n1,Toy Story (1995),Comedy\n"}
    with pytest.raises(ValueError, match=words):
        getattr(_tables, f"parse_{parse}")(members | changed)


def test_records_of_tfds_become_the_same_tables_sorted_by_time(archives):
    """TFDS forgets the file's order, which is therefore time, user, movie."""
    whole = data.load_movielens("100k")
    shuffled = whole.ratings.sample(frac=1.0, random_state=0)
    people = whole.users.set_index("user_id").loc[shuffled["user_id"]]
    spelling = {"Children's": "Children", "unknown": "Unknown"}
    encoded = lambda texts: np.array([t.encode() for t in texts], dtype=object)  # noqa: E731
    tables = _tables.parse_tfds(
        {
            "user_id": encoded(shuffled["original_user_id"].astype(str)),
            "movie_id": encoded(shuffled["original_movie_id"].astype(str)),
            "user_rating": shuffled["rating"].to_numpy().astype(np.float32),
            "timestamp": shuffled["timestamp"].to_numpy(),
            "raw_user_age": people["age"].to_numpy(),
            "user_gender": (people["gender"] == "M").to_numpy(),
            "user_occupation_text": encoded(people["occupation"]),
            "user_zip_code": encoded(people["zip_code"]),
        },
        [
            {
                "movie_id": str(row.original_movie_id).encode(),
                "movie_title": row.title.encode(),
                "movie_genres": [_tables.GENRES_100K.index(g) for g in row.genres.split("|")],
            }
            for row in whole.movies.itertuples()
        ],
        lambda k: spelling.get(_tables.GENRES_100K[k], _tables.GENRES_100K[k]),
    )
    order = ["timestamp", "user_id", "movie_id"]
    ordered = whole.ratings.sort_values(order, ignore_index=True)
    assert_same(tables, SimpleNamespace(ratings=ordered, movies=whole.movies, users=whole.users))


def test_loading_is_quick(monkeypatch, tmp_path):
    """The archive is parsed at each load: 1M's size costs about what its bytes cost pandas.

    Both are timed in turn, because how fast a machine is changes from one to the next.
    """

    def seconds(work, *arguments, **keywords):
        started = time.process_time()
        work(*arguments, **keywords)
        return time.process_time() - started

    members = files.files_1m_of_full_size()
    content = files.zipped(members, compression=0)
    files.expect(monkeypatch, content, members, "1m")
    (tmp_path / "ml-1m.zip").write_bytes(content)
    monkeypatch.setenv("RECTUTOR_ARCHIVES", str(tmp_path))
    (tmp_path / "ratings.csv").write_bytes(members["ml-1m/ratings.dat"])
    once = {"sep": ":", "header": None}
    loading, reading = [], []
    for _ in range(3):
        loading.append(seconds(data.load_movielens, "1m"))
        reading.append(seconds(pd.read_csv, tmp_path / "ratings.csv", **once))
    assert min(loading) < 6 * min(reading)


# --- the real 100K, where it is at hand ---------------------------------------------------------

REAL = Path(os.environ.get("RECTUTOR_ARCHIVES") or files.SHARED / "data")
needs_the_archive = pytest.mark.skipif(
    not (REAL / "ml-100k.zip").is_file(),
    reason="NOT CHECKED HERE: the real MovieLens 100K is not in RECTUTOR_ARCHIVES",
)


@pytest.fixture
def real(monkeypatch):
    monkeypatch.setenv("RECTUTOR_ARCHIVES", str(REAL))


@needs_the_archive
def test_the_real_100k_has_the_published_counts(real):
    loaded = data.load_movielens("100k", source="grouplens")
    assert (loaded.num_users, loaded.num_movies, len(loaded.ratings)) == (943, 1_682, 100_000)
    assert (loaded.movies["movie_id"] == loaded.movies["original_movie_id"]).all()
    assert (loaded.ratings["user_id"] == loaded.ratings["original_user_id"]).all()
    assert loaded.ratings.iloc[0, :4].tolist() == [196, 242, 3, 881250949]
    assert loaded.titles[[50, 543]].tolist() == ["Star Wars (1977)", "Misérables, Les (1995)"]
    assert loaded.movies.loc[loaded.movies["year"].isna(), "title"].tolist() == ["unknown"]


@needs_the_archive
@pytest.mark.long
def test_the_package_index_has_the_same_tables_as_the_real_archive(monkeypatch, real):
    monkeypatch.undo()
    try:
        wheel = _sources.load("100k", "pypi")
    except _sources.CorruptError:
        raise
    except _sources.SourceError as error:
        pytest.skip(f"NOT CHECKED HERE: the package index cannot be reached ({error})")
    monkeypatch.setenv("RECTUTOR_ARCHIVES", str(REAL))
    assert_same(wheel, _sources.load("100k", "grouplens"))


TFDS_SCRIPT = """
import pandas as pd
from rectutor import data

local = data.load_movielens("100k", source="grouplens")
tfds = data.load_movielens("100k", source="tfds")
assert tfds.source == "tfds"
order = ["timestamp", "user_id", "movie_id"]  # TFDS forgets the order of the file
pd.testing.assert_frame_equal(tfds.ratings, local.ratings.sort_values(order, ignore_index=True))
pd.testing.assert_frame_equal(tfds.movies, local.movies)
pd.testing.assert_frame_equal(tfds.users, local.users)
print("the same")
"""


@needs_the_archive
@pytest.mark.long
def test_tfds_gives_the_same_tables_as_the_real_archive(real, tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="NOT CHECKED HERE: no TensorFlow Datasets")
    prime = TOOLS / "prime_tfds.py"
    if not prime.is_file():
        pytest.skip("NOT CHECKED HERE: ../shared/tools/prime_tfds.py is not at hand")
    environment = os.environ | {"TFDS_DATA_DIR": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": "3"}
    for command in ([prime, REAL / "ml-100k.zip", tmp_path], ["-c", TFDS_SCRIPT]):
        command = [sys.executable, *map(str, command)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("the same")


@pytest.mark.parametrize("name", ["RECTUTOR_CACHE", "RECTUTOR_ARCHIVES"])
def test_a_home_that_nobody_has_is_named(name, monkeypatch):
    monkeypatch.setenv(name, "~nobody-at-all/archives")
    with pytest.raises(ValueError, match=f"{name} is '~nobody-at-all/archives': .*; give a folder"):
        environment.folder(name)
    monkeypatch.setenv(name, "~/archives")
    assert environment.folder(name) == Path.home() / "archives"
    monkeypatch.delenv(name)
    assert environment.folder(name) is None
