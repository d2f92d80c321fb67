"""What every chapter shares: profile, seed, settings, figures, tables, records."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from rectutor import chapter, first_minute, results
from rectutor.baselines import Popularity
from rectutor.evaluation import evaluate
from rectutor.splits import leave_one_out


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("RECTUTOR_RESULTS", str(tmp_path / "results"))
    return chapter.Run("toy", "quick", 42, "jax", "CPU")


@pytest.mark.parametrize(("profile", "epochs"), [("quick", 5), ("full", 50), ("smoke", 1)])
def test_settings_choose_the_profile(run, profile, epochs):
    run.profile = profile
    assert vars(run.settings(epochs=(5, 50, 1), width=32)) == {"epochs": epochs, "width": 32}


def test_a_setting_without_a_value_for_each_profile_is_refused(run):
    with pytest.raises(ValueError, match=r"epochs=\(5, 50\).*quick, full, smoke"):
        run.settings(epochs=(5, 50))


BAD_SEEDS = ("x", "-1", "1.5", " ", "2147483647", "4294967296")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *(("SEED", seed, r"RECTUTOR_SEED is .* from 0 to 2147483646") for seed in BAD_SEEDS),
        ("PROFILE", "quickly", "'quickly'; set it to one of quick, full, smoke"),
    ],
)
def test_a_bad_seed_or_profile_is_refused_at_once(name, value, message, monkeypatch):
    monkeypatch.setenv(f"RECTUTOR_{name}", value)
    with pytest.raises(ValueError, match=message):
        chapter.start("toy")


@pytest.mark.parametrize("value", ["0", "-1", "2.5", "few", "2147483647"])
def test_a_bad_limit_of_the_epochs_is_refused_at_once(value, monkeypatch):
    monkeypatch.setenv("RECTUTOR_DATA", "mine.csv")
    monkeypatch.setenv("RECTUTOR_EPOCHS", value)
    with pytest.raises(ValueError, match=f"RECTUTOR_EPOCHS is '{value}'; set it to .* or unset it"):
        chapter.start("toy")


@pytest.mark.parametrize("profile", chapter.PROFILES)
def test_the_epochs_on_the_data_of_the_book_cannot_be_limited(profile, monkeypatch):
    monkeypatch.setenv("RECTUTOR_PROFILE", profile)
    monkeypatch.setenv("RECTUTOR_EPOCHS", "5")
    with pytest.raises(ValueError, match=r"'5', and RECTUTOR_DATA is not set.*unset RECTUTOR_EPO"):
        chapter.start("toy")


def test_no_limit_of_the_epochs_is_the_default(run, tmp_path, monkeypatch):
    (tmp_path / "mine.csv").write_text("user,item\nann,tea\n", encoding="utf-8")
    monkeypatch.setenv("RECTUTOR_DATA", str(tmp_path / "mine.csv"))
    for value in ("", " "):
        monkeypatch.setenv("RECTUTOR_EPOCHS", value)
        run = chapter.start("toy")
        assert run.most_epochs is None
        assert run.settings(epochs=(24, 100, 2)).epochs == 24
        run.load_data("100k")
        run.save()
        assert results.LIMIT not in results.read(results.folder() / "toy.json")["facts"]


def test_limited_epochs_on_a_table_of_your_own_are_said_and_recorded(
    run, tmp_path, monkeypatch, capsys
):
    (tmp_path / "mine.csv").write_text("user,item\nann,tea\n", encoding="utf-8")
    monkeypatch.setenv("RECTUTOR_DATA", str(tmp_path / "mine.csv"))
    monkeypatch.setenv("RECTUTOR_EPOCHS", "3")
    run = chapter.start("toy")
    settings = {"epochs": (24, 100, 2), "documented_epochs": 5, "refresh_epochs": 1, "every": 5}
    found = run.settings(**settings, patience=5, ranker_epochs=9)
    assert vars(found) == {
        "epochs": 3,
        "documented_epochs": 3,
        "refresh_epochs": 1,
        "every": 3,
        "patience": 5,
        "ranker_epochs": 3,
    }
    run.load_data("100k")
    assert "RECTUTOR_EPOCHS=3: no training has more epochs" in capsys.readouterr().out
    run.save()
    assert results.read(results.folder() / "toy.json")["facts"] == {"epochs_at_most": 3}


@pytest.mark.parametrize("name", ["gru4rec", "sasrec"])
def test_the_first_lines_say_how_long_a_table_of_your_own_takes(
    name, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("RECTUTOR_RESULTS", str(tmp_path))
    rows = [f"u{k},i{at}" for k in range(20) for at in range(20)]
    (tmp_path / "mine.csv").write_text("user,item\n" + "\n".join(rows), encoding="utf-8")
    monkeypatch.setenv("RECTUTOR_DATA", str(tmp_path / "mine.csv"))
    chapter.Run(name, "quick", 42, "jax", "CPU").load_data("100k")
    said = capsys.readouterr().out
    assert "expected: about 1 minute on two cores" in said
    assert "RECTUTOR_EPOCHS=5 ends each training after 5 epochs" in said
    for other, profile in ((name, "full"), (name, "smoke"), ("ranking", "quick")):
        chapter.Run(other, profile, 42, "jax", "CPU").load_data("100k")
        assert "expected" not in capsys.readouterr().out
    monkeypatch.delenv("RECTUTOR_DATA")
    chapter.Run(name, "quick", 42, "jax", "CPU").load_data("synthetic")
    assert "expected" not in capsys.readouterr().out


@pytest.mark.parametrize("seed", [0, 2147483646])
def test_the_lowest_and_the_highest_seed_do_all_that_chapters_do_with_them(seed, monkeypatch):
    import keras

    monkeypatch.setenv("RECTUTOR_SEED", str(seed))
    run = chapter.start("toy")
    keras.utils.set_random_seed(run.seed + 10)  # chapters use the seeds that follow, too
    drawn = keras.initializers.GlorotUniform(run.seed + 10)
    keras.layers.Dense(2, kernel_initializer=drawn)(np.ones((1, 2)))
    keras.layers.Dropout(0.5, seed=run.seed + 10)(np.ones((1, 2)), training=True)
    assert run.load_data("synthetic").num_users == 300


def test_an_empty_variable_is_an_unset_one(monkeypatch):
    for name in ("SEED", "PROFILE", "DATA", "EPOCHS", "RESULTS", "STRICT"):
        monkeypatch.setenv(f"RECTUTOR_{name}", "")
    run = chapter.start("toy")
    assert (run.seed, run.profile) == (42, "quick")
    assert run.load_data("synthetic").source == "synthetic"
    assert results.folder().is_absolute()


def test_start_says_what_was_chosen_and_seeds_everything(monkeypatch, capsys):
    monkeypatch.setenv("RECTUTOR_PROFILE", "smoke")
    monkeypatch.setenv("RECTUTOR_SEED", "7")
    run = chapter.start("toy")
    first = np.random.default_rng(run.seed).random(), np.random.random()
    run = chapter.start("toy")
    assert (np.random.default_rng(run.seed).random(), np.random.random()) == first
    assert "profile smoke" in capsys.readouterr().out
    assert (run.profile, run.seed) == ("smoke", 7)


def test_packages_are_imported_quietly(tmp_path, monkeypatch, capfd):
    monkeypatch.syspath_prepend(tmp_path)
    chatter = "import os, warnings; os.write(2, b'chatter'); warnings.warn('more of it')\n"
    (tmp_path / "talkative.py").write_text(chatter, encoding="utf-8")
    chapter.start("toy", quietly=("talkative",))
    assert "talkative" in sys.modules
    assert "chatter" not in capfd.readouterr().err
    with pytest.raises(ImportError, match="no_such_package"):
        chapter.start("toy", quietly=("no_such_package",))


def test_without_a_gpu_the_profile_is_quick(monkeypatch):
    monkeypatch.delenv("RECTUTOR_PROFILE", raising=False)
    for device, profile in [(("CPU", False), "quick"), (("GPU", True), "full")]:
        monkeypatch.setattr(chapter, "_device", lambda backend, found=device: found)
        assert chapter.start("toy").profile == profile


@pytest.mark.parametrize(
    "backend", ["jax", "tensorflow", pytest.param("torch", marks=pytest.mark.torch)]
)
def test_the_device_of_every_backend_is_named(backend):
    assert chapter._device(backend) == (f"CPU ({os.cpu_count()} cores)", False)


def test_a_table_of_your_own_takes_the_place_of_the_data_set(run, tmp_path, monkeypatch):
    table = tmp_path / "mine.csv"
    table.write_text("user,item,rating\nann,tea,5\nann,milk,3\nbob,tea,4\n", encoding="utf-8")
    monkeypatch.setenv("RECTUTOR_DATA", str(table))
    data = run.load_data("100k", needs=("ratings",))
    assert (data.num_users, data.num_movies, data.has_timestamps) == (2, 2, False)
    with pytest.raises(ValueError, match="timestamp"):
        run.load_data("100k", needs=("timestamps",))


@pytest.mark.parametrize(
    ("values", "stars"), [("0 1 1", [1, 5, 5]), ("0.5 5 2.75", [1, 5, 3]), ("2 5 1", [2, 5, 1])]
)
def test_ratings_of_any_scale_can_be_had_on_five_stars(run, values, stars, tmp_path, monkeypatch):
    table = tmp_path / "mine.csv"
    rows = [f"u{k},tea,{value}" for k, value in enumerate(values.split())]
    table.write_text("user,item,rating\n" + "\n".join(rows), encoding="utf-8")
    monkeypatch.setenv("RECTUTOR_DATA", str(table))
    data = run.load_data("100k", on_five_stars=True)
    assert data.ratings["rating"].tolist() == stars
    assert data.rating_scale == (1, 5)


def test_without_ratings_no_row_is_below_two_stars(run, tmp_path, monkeypatch):
    (tmp_path / "mine.csv").write_text("user,item\nann,tea\n", encoding="utf-8")
    monkeypatch.setenv("RECTUTOR_DATA", str(tmp_path / "mine.csv"))
    data = run.load_data("100k", on_five_stars=True)
    assert data.ratings["rating"].tolist() == [5]
    assert not data.has_ratings


@pytest.mark.parametrize(
    ("counts", "most", "length"),
    [([3] * 9 + [90], 50, 15), ([6] * 10, 50, 10), ([5] * 10, 50, 5), ([70] * 10, 50, 50)],
)
def test_lengths_come_from_a_table_of_your_own(
    run, counts, most, length, tmp_path, monkeypatch, capsys
):
    rows = [f"u{k},i{at}" for k, count in enumerate(counts) for at in range(count)]
    (tmp_path / "mine.csv").write_text("user,item\n" + "\n".join(rows), encoding="utf-8")
    monkeypatch.setenv("RECTUTOR_DATA", str(tmp_path / "mine.csv"))
    run.load_data("100k")
    capsys.readouterr()
    assert run.length(most) == length
    said = f"windows of {length} instead of 50: nine histories in ten have at most"
    assert (said in capsys.readouterr().out) == (length < most)


def test_the_lengths_of_the_data_of_the_book_are_the_settings(run, capsys):
    assert run.load_data("synthetic").num_users == 300  # 40 movies a user
    capsys.readouterr()
    assert run.length(200) == 200
    assert capsys.readouterr().out == ""


def test_a_catalogue_too_large_for_the_matrix_is_refused_where_it_is_needed(run, monkeypatch):
    assert run.load_data("synthetic", dense=True).num_movies == 200
    monkeypatch.setattr(first_minute, "_MOST_MOVIES", 20)
    assert run.load_data("synthetic").num_movies == 200
    with pytest.raises(ValueError, match="needs an item-item matrix, and 200 movies make"):
        run.load_data("synthetic", dense=True)


def test_results_that_cannot_be_written_are_said_before_training(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("RECTUTOR_RESULTS", str(tmp_path / "file" / "results"))
    with pytest.raises(OSError, match=r"nothing can be written to .*; set RECTUTOR_RESULTS to"):
        run.load_data("synthetic")


def test_a_backend_that_the_chapter_cannot_use_is_refused_at_once():
    with pytest.raises(ValueError, match=r"KERAS_BACKEND is '\w+', which the chapter toy cannot"):
        chapter.start("toy", backends=("openvino",))


def test_baselines_that_do_not_fit_are_left_out_in_words(run, monkeypatch, capsys):
    split = leave_one_out(run.load_data("synthetic"))
    assert "EASE, recency" in run.baselines(split)
    assert "left out" not in capsys.readouterr().out
    monkeypatch.setattr(first_minute, "_MOST_MOVIES", 20)
    assert "EASE" not in run.baselines(split)
    assert "item kNN and EASE are left out: 200 items" in capsys.readouterr().out


def test_what_is_recorded_is_saved(run, capsys):
    assert run.load_data("synthetic", needs=("ratings", "timestamps")).num_users == 300
    assert "from synthetic" in capsys.readouterr().out
    metrics = {"rmse": 0.281, "rmse_stars": (1.12, 1.10, 1.14)}
    run.record(model="Mean", recipe="baseline", protocol="rating", metrics=metrics, seconds=0.5)
    run.fact("c1_raises", "ValueError")
    run.fact("c2_stars_off", np.float32(0.5))
    run.save()
    saved = results.read(results.folder() / "toy.json")
    assert saved["models"][0]["metrics"]["rmse_stars"] == {"value": 1.12, "low": 1.10, "high": 1.14}
    assert saved["models"][0]["metrics"]["rmse"]["low"] is None
    assert saved["facts"] == {"c1_raises": "ValueError", "c2_stars_off": 0.5}
    assert saved["data"]["num_movies"] == 200


def test_a_figure_and_tables_are_of_the_chapter(run, monkeypatch):
    asked = []
    monkeypatch.setattr(chapter.display, "show", lambda *given: asked.append(given))
    monkeypatch.setattr(chapter.display, "show_table", lambda *given: asked.append(given))
    run.show("figure", "line")
    run.show_table("table", "caption")
    run.show_table("table")
    assert asked == [("figure", "toy-line"), ("table", "caption", 1), ("table", None, 2)]


def test_on_a_table_of_your_own_the_run_stands_apart_from_the_study(run, monkeypatch):
    shown = []
    monkeypatch.setattr(chapter.display, "show_table", lambda table, *_: shown.append(table))
    arms, own = {"EASE": "baselines/EASE"}, {"EASE": 0.25, "own history, counted": 0.5}
    run.show_study(arms, own=own)
    assert shown.pop()["this run"].tolist() == ["0.250"]
    run._own = True
    run.show_study(arms, own=own)
    mine, study = shown
    assert mine.to_numpy().tolist() == [["EASE", "0.250"], ["own history, counted", "0.500"]]
    assert "this run" not in study


def test_comparisons_and_documented_figures_are_tables_that_name_their_data(run, monkeypatch):
    shown = []
    monkeypatch.setattr(chapter.display, "show_table", lambda *given: shown.append(given))
    run.name = "retrieval"
    run.effect("C7", "C11")
    table, caption, _ = shown.pop()
    assert list(table) == ["what", "NDCG@10", "effect", "runs", "verdict"]
    assert table["what"].str.contains("C7|C11").all()
    assert not shown
    assert caption == "The study, of MovieLens 100K"
    run.effect()
    assert [list(table)[1] for table, *_ in shown[:2]] == ["NDCG@10", "HR@10"]
    shown.clear()
    run.documented()
    assert set(shown[0][0]["figure"]) == {"loss after epoch 50", "validation loss"}


def test_a_chapter_without_comparisons_says_so(run, capsys):
    run.effect("C99")
    run.documented()
    assert capsys.readouterr().out.splitlines() == [
        "the study has no comparison of C99",
        "the study has no documented figure of toy",
    ]


def test_a_model_put_to_the_test_is_evaluated_and_recorded(run):
    split = leave_one_out(run.load_data("synthetic"))
    popularity = Popularity().fit(split)
    found = run.test("popular", popularity, split, recipe="baseline", seconds=1.23456)
    assert found.on == "test"
    assert found.metrics == evaluate(popularity, split).metrics
    run.save()
    (saved,) = results.read(results.folder() / "toy.json")["models"]
    names = tuple(saved[name] for name in ("model", "recipe", "protocol", "seconds"))
    assert names == ("popular", "baseline", "leave-one-out", 1.235)
    assert saved["metrics"]["ndcg"]["value"] == found.ndcg


def test_what_does_not_fit_or_has_no_data_is_refused(run):
    with pytest.raises(ValueError, match="recipe is 'best'"):
        run.record(model="x", recipe="best", protocol="rating", metrics={"rmse": 1.0})
    with pytest.raises(ValueError, match="store an int, a float or a short string"):
        run.fact("c1", [1, 2])
    with pytest.raises(RuntimeError, match="load_data"):
        run.save()


TWICE = """
import os, jax, keras, numpy as np
from rectutor import chapter
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name))
chapter.start("toy")
for _ in range(2):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.layers.GRU(8), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    model.fit(np.ones((4, 3, 2)), np.ones((4, 1)), verbose=0)
    print(found.count("/jax/compilation_cache/cache_hits"), jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX alone compiles a model anew")
@pytest.mark.parametrize("own", [True, False])
def test_a_model_that_is_built_again_is_not_compiled_again(own, tmp_path):
    folder = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    given = folder | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"} if own else {}
    given |= {name: text for name, text in os.environ.items() if not name.startswith("JAX_")}
    command = [sys.executable, "-c", TWICE]
    told = subprocess.run(command, env=given, capture_output=True, text=True, check=True)
    (before, folder), (after, _) = map(str.split, told.stdout.splitlines()[-2:])
    assert int(after) > int(before)
    assert (folder == str(tmp_path)) == own
    assert Path(folder).exists() == own  # ours goes with the process


def test_importing_the_package_is_light():
    """`import rectutor` takes under a second and brings no framework along."""
    script = (
        "import time; start = time.perf_counter()\n"
        "import rectutor; seconds = time.perf_counter() - start\n"
        "import rectutor.data, rectutor.splits, rectutor.evaluation, rectutor.baselines\n"
        "import rectutor.sequences, rectutor.results, rectutor.chapter, rectutor.ratings, sys\n"
        "heavy = {'keras', 'jax', 'tensorflow', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert seconds < 1, seconds\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_unknown_attribute_of_the_package_is_an_attribute_error():
    import rectutor

    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = rectutor.missing
    assert "evaluation" in dir(rectutor)


def test_intervals_are_drawn_in_order_with_a_colour_and_a_legend_entry_a_kind():
    import matplotlib.pyplot as plt
    from matplotlib.colors import to_rgb

    from rectutor import display
    from rectutor.evaluation import Interval

    rows = {"best": Interval(0.3, 0.2, 0.4), "second": Interval(0.2, 0.1, 0.3)}
    figure = display.intervals(rows, "NDCG@10", kinds={"best": "ours"}, rest="baselines")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["best", "second"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first at the top
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["ours", "baselines"]
    points = [(*line.get_xdata(), *line.get_ydata()) for line in axes.lines]
    assert points == [(0.3, 0), (0.2, 1)]
    assert to_rgb(axes.lines[0].get_color()) != to_rgb(axes.lines[1].get_color())
    ends = [path.vertices[:, 0].tolist() for each in axes.collections for path in each.get_paths()]
    assert ends == [[0.2, 0.4], [0.1, 0.3]]
    plt.close(figure)
    without = display.intervals({}, "effect", zero=True)
    assert without.axes[0].get_legend() is None
    plt.close(without)
