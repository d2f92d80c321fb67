"""What every chapter shares: profile, seed, settings, figures, tables, records."""

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from rectutor import chapter, results


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("RECTUTOR_RESULTS", str(tmp_path / "results"))
    return chapter.Run("toy", "quick", 42, "jax", "CPU")


def test_settings_choose_the_profile(run):
    assert run.settings(epochs=(5, 50, 1), width=32) == SimpleNamespace(epochs=5, width=32)
    run.profile = "full"
    assert run.settings(epochs=(5, 50, 1)).epochs == 50
    run.profile = "smoke"
    assert run.settings(epochs=(5, 50, 1)).epochs == 1


def test_a_setting_without_a_value_for_each_profile_is_refused(run):
    with pytest.raises(ValueError, match=r"epochs=\(5, 50\).*quick, full, smoke"):
        run.settings(epochs=(5, 50))


@pytest.mark.parametrize("seed", ["x", "-1", "1.5", "", "4294967296"])
def test_a_bad_seed_is_refused(seed, monkeypatch):
    monkeypatch.setenv("RECTUTOR_SEED", seed)
    with pytest.raises(ValueError, match="RECTUTOR_SEED is"):
        chapter.start("toy")


def test_a_bad_profile_is_refused(monkeypatch):
    monkeypatch.setenv("RECTUTOR_PROFILE", "quickly")
    with pytest.raises(ValueError, match="'quickly'; set it to one of quick, full, smoke"):
        chapter.start("toy")


def test_start_says_what_was_chosen_and_seeds_everything(monkeypatch, capsys):
    monkeypatch.setenv("RECTUTOR_PROFILE", "smoke")
    monkeypatch.setenv("RECTUTOR_SEED", "7")
    run = chapter.start("toy")
    first = np.random.default_rng(run.seed).random(), np.random.random()
    run = chapter.start("toy")
    assert (np.random.default_rng(run.seed).random(), np.random.random()) == first
    assert "profile smoke" in capsys.readouterr().out
    assert (run.profile, run.seed) == ("smoke", 7)


def test_without_a_gpu_the_profile_is_quick(monkeypatch):
    monkeypatch.delenv("RECTUTOR_PROFILE", raising=False)
    monkeypatch.setattr(chapter, "_device", lambda backend: ("CPU", False))
    assert chapter.start("toy").profile == "quick"
    monkeypatch.setattr(chapter, "_device", lambda backend: ("GPU", True))
    assert chapter.start("toy").profile == "full"


@pytest.mark.parametrize("backend", ["jax", "tensorflow", "torch"])
def test_the_device_of_every_backend_is_named(backend):
    assert chapter._device(backend) == (f"CPU ({os.cpu_count()} cores)", False)


def test_a_figure_of_a_script_goes_to_a_file(run, capsys):
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    axes.plot([1, 2])
    run.show(figure, "line")
    file = results.folder() / "figures" / "toy-line.svg"
    assert file.read_text(encoding="utf-8").lstrip().startswith("<?xml")
    assert "results/figures/toy-line.svg" in capsys.readouterr().out
    assert not plt.get_fignums()


def test_a_table_of_a_script_is_text(run, capsys):
    run.show_table(pd.DataFrame({"model": ["a"], "ndcg": [0.12345]}), caption="Two columns")
    run.show_table(pd.Series([0.5], index=["x"], name="value"))
    run.show_table("already text", caption="Above")
    assert capsys.readouterr().out.splitlines() == [
        "Two columns",
        "model   ndcg",
        "    a 0.1235",
        "   value",
        "x 0.5000",
        "Above",
        "already text",
    ]


def test_in_a_notebook_figures_and_tables_are_displayed(run, monkeypatch):
    import IPython.display
    import matplotlib.pyplot as plt

    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    monkeypatch.setattr(chapter, "in_notebook", lambda: True)
    figure = plt.figure()
    run.show(figure, "empty")
    run.show_table(pd.DataFrame({"a": [1.0]}), caption="One")
    run.show_table(pd.DataFrame({"a": [1.0]}, index=["x"]))
    run.show_table("text", caption="Above")
    assert shown[0] is figure
    assert "<caption>One</caption>" in shown[1].to_html()
    assert "table-2" in shown[2].to_html()
    assert shown[3] == "text"


def test_loading_synthetic_data_says_where_it_came_from(run, capsys):
    data = run.load_data("synthetic", needs=("ratings", "timestamps"))
    assert data.num_users == 300
    assert "from synthetic" in capsys.readouterr().out


def test_a_table_of_your_own_takes_the_place_of_the_data_set(run, tmp_path, monkeypatch):
    table = tmp_path / "mine.csv"
    table.write_text("user,item,rating\nann,tea,5\nann,milk,3\nbob,tea,4\n", encoding="utf-8")
    monkeypatch.setenv("RECTUTOR_DATA", str(table))
    data = run.load_data("100k", needs=("ratings",))
    assert (data.num_users, data.num_movies, data.has_timestamps) == (2, 2, False)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "which is no file"), ("user,movie\n1,2\n", r"no column \['item'\]")],
)
def test_a_table_that_cannot_be_used_says_why(run, tmp_path, monkeypatch, content, message):
    table = tmp_path / "mine.csv"
    if content:
        table.write_text(content, encoding="utf-8")
    monkeypatch.setenv("RECTUTOR_DATA", str(table))
    with pytest.raises(ValueError, match=message):
        run.load_data("100k")


def test_a_chapter_without_what_it_needs_says_so_at_once(run, tmp_path, monkeypatch):
    table = tmp_path / "mine.csv"
    table.write_text("user,item\nann,tea\nbob,tea\n", encoding="utf-8")
    monkeypatch.setenv("RECTUTOR_DATA", str(table))
    with pytest.raises(ValueError, match="timestamp"):
        run.load_data("100k", needs=("timestamps",))


def test_what_is_recorded_is_saved(run):
    run.load_data("synthetic")
    run.record(
        model="Mean",
        recipe="baseline",
        protocol="rating",
        metrics={"rmse": 0.281, "rmse_stars": (1.12, 1.10, 1.14)},
        seconds=0.5,
    )
    run.fact("c1_raises", "ValueError")
    run.fact("c2_stars_off", np.float32(0.5))
    run.save()
    saved = results.read(results.folder() / "toy.json")
    assert saved["models"][0]["metrics"]["rmse_stars"] == {"value": 1.12, "low": 1.10, "high": 1.14}
    assert saved["models"][0]["metrics"]["rmse"]["low"] is None
    assert saved["facts"] == {"c1_raises": "ValueError", "c2_stars_off": 0.5}
    assert saved["data"]["num_movies"] == 200


def test_records_that_do_not_fit_are_refused(run):
    with pytest.raises(ValueError, match="recipe is 'best'"):
        run.record(model="x", recipe="best", protocol="rating", metrics={"rmse": 1.0})
    with pytest.raises(ValueError, match="give a number or a short string"):
        run.fact("c1", [1, 2])


def test_saving_without_data_is_refused(run):
    with pytest.raises(RuntimeError, match="load_data"):
        run.save()


def test_checkpoints_only_when_resuming_is_asked_for(run, monkeypatch, capsys):
    assert run.callbacks("model") == []
    monkeypatch.setenv("RECTUTOR_RESUME", "1")
    (callback,) = run.callbacks("model")
    assert type(callback).__name__ == "BackupAndRestore"
    (results.folder() / "checkpoints" / "toy-model-quick-42").mkdir(parents=True)
    run.callbacks("model")
    assert "going on from the checkpoint" in capsys.readouterr().out


def test_importing_the_package_is_light():
    """`import rectutor` takes under a second and brings no framework along."""
    script = (
        "import time; start = time.perf_counter()\n"
        "import rectutor; seconds = time.perf_counter() - start\n"
        "import rectutor.data, rectutor.splits, rectutor.evaluation, rectutor.baselines\n"
        "import rectutor.sequences, rectutor.results, rectutor.chapter, sys\n"
        "heavy = {'keras', 'jax', 'tensorflow', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert seconds < 1, seconds\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_an_unknown_attribute_of_the_package_is_an_attribute_error():
    import rectutor

    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = rectutor.missing
    assert "evaluation" in dir(rectutor)


FREED_AND_TAKEN_AGAIN = """
import resource, threading
from rectutor import chapter
{call}
def fill():
    for _ in range(20):
        b"x" * 64_000_000  # more than glibc keeps by itself
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
threads = [threading.Thread(target=fill) for _ in range(2)]
for thread in threads:
    thread.start()
    thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that gives back")
def test_freed_memory_is_kept_for_the_next_step_in_every_thread():
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}

    def faults(call):
        command = [sys.executable, "-c", FREED_AND_TAKEN_AGAIN.format(call=call)]
        return int(subprocess.check_output(command, env=environment, text=True))

    pages = 64_000_000 / 4_096
    assert faults("") > 20 * pages
    assert faults("chapter.prepare_process()") < 3 * pages


ZEN_4 = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
flags\t\t: fpu avx2 avx512f avx512bw

processor\t: 1
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ZEN_4, True),
        (ZEN_4.replace("AuthenticAMD", "GenuineIntel"), False),
        (ZEN_4.replace(": 25", ": 26"), False),  # Zen 5, where it is fast
        (ZEN_4.replace("avx512f", "avx"), False),  # Zen 3 has none
        ("", False),
    ],
)
def test_zen_4_is_told_from_other_processors(text, expected, tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    assert chapter._is_zen_4(file) is expected
    assert chapter._is_zen_4(tmp_path / "missing") is False


@pytest.mark.parametrize(
    ("zen_4", "version", "already", "expected"),
    [
        (True, "2.4.6", None, "X86_V4"),
        (True, "2.3.5", None, "AVX512F"),
        (True, "2.4.6", "AVX512_ICL", "AVX512_ICL"),
        (False, "2.4.6", None, None),
    ],
)
def test_numpy_leaves_avx_512_alone_where_it_is_slow(
    monkeypatch, zen_4, version, already, expected
):
    environment = {"NPY_DISABLE_CPU_FEATURES": already} if already else {}
    monkeypatch.setattr(chapter.os, "environ", environment)
    monkeypatch.setattr(chapter, "_is_zen_4", lambda _: zen_4)
    monkeypatch.setattr(chapter, "_keep_freed_memory", lambda: None)
    monkeypatch.setattr(chapter.importlib.metadata, "version", lambda _: version)
    chapter.prepare_process()
    assert environment.get("NPY_DISABLE_CPU_FEATURES") == expected


def test_the_process_is_prepared_before_numpy_is_there():
    program = "import sys; from rectutor import chapter; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
