"""tools/book.py: what is executed, what it says meanwhile, what is rendered, what is recorded."""

import functools
import io
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from test_repository import copy_tree, run_module

from rectutor import study
from tools import book
from tools.progress import Progress

#: A results file of the shape that `rectutor.results` checks.
RECORD = {
    "schema": 1,
    "chapter": "one",
    "profile": "quick",
    "seed": 42,
    "backend": "jax",
    "device": "CPU",
    "versions": {},
    "data": {"name": "100k", "source": "x", "num_users": 2, "num_movies": 3, "num_ratings": 4},
    "models": [
        {"model": "Toy", "recipe": "made right", "protocol": "leave-one-out", "seconds": 1.0}
        | {"metrics": {"ndcg": {"value": 0.25, "low": 0.2, "high": 0.3}}}
    ],
    "facts": {},
}

ONE = """\
# %% [markdown]
# # one

# %%
import json, os, pathlib
print("package @ git+https://github.com/owner/name@main")

# %%
folder = pathlib.Path(os.environ["RECTUTOR_RESULTS"])
folder.mkdir(parents=True, exist_ok=True)
_ = (folder / "one.json").write_text(pathlib.Path("record.json").read_text())
"""

TWO = '# %% [markdown]\n# # two\n\n# %%\nprint("two")\n'


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A book of a chapter `one` that measures and a chapter `two` that reads."""
    files = {
        "notebooks/one.py": ONE,
        "notebooks/two.py": TWO,
        "notebooks/record.json": json.dumps(RECORD),
        "notebooks/chapters.toml": '[one]\ntitle = "One"\npromise = "It."\nmetric = "ndcg"\n'
        "documented = []\nmade_right = []\n"
        '[two]\ntitle = "Two"\npromise = "It."\nreads = true\n',
        "rectutor/__init__.py": '__version__ = "1.0.0"\nx = 1\n',
        "requirements.txt": "keras==3.0\nnot-there==1.0\n",
        "_config.yml": "",
        "_toc.yml": "root: intro\nparts:\n- chapters:\n"
        "  - file: notebooks/one\n  - file: notebooks/two\n",
    }
    for name, text in files.items():
        put(tmp_path / name, text)
    places = {"ROOT": "", "NOTEBOOKS": "notebooks", "RESULTS": "results", "BUILD": "_build"}
    for attribute, place in places.items():
        monkeypatch.setattr(book, attribute, tmp_path / place)
    monkeypatch.setattr(book, "libraries", functools.cache(book.libraries.__wrapped__))
    return tmp_path


def put(path, content):
    """Write a text, or else what is to be JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")


def append(path, text):
    put(path, path.read_text("utf-8") + text)


def replace(path, old, new):
    text = path.read_text("utf-8")
    assert old in text
    put(path, text.replace(old, new))


def pretend(tree, record=RECORD):
    """What executing both chapters leaves, without a kernel."""
    put(tree / "_build" / "results" / "one.json", record)
    for name in book.chapters():
        file = tree / "_build" / "executed" / f"{name}.ipynb"
        put(file, book.write(book.read_source(name)))
        stamp = {"digest": book.digest(name), "results": book.results_hash(name)}
        put(file.with_suffix(".json"), stamp | {"profile": "", "seconds": 3.0, "cells": [1.0, 2.0]})


def tracked_files(tree):
    return {
        str(path.relative_to(tree)): path.read_bytes()
        for path in tree.rglob("*")
        if path.is_file() and not {"_build", "__pycache__"} & {*path.parts}
    }


def list_third(tree, more=""):
    """Name a chapter `three`, before `two`, wherever chapters are named."""
    entry = '[three]\ntitle = "Three"\npromise = "It."\nmetric = "ndcg"\n'
    entry += "documented = []\nmade_right = []\n" + more
    append(tree / "notebooks" / "chapters.toml", entry)
    two = "  - file: notebooks/two"
    replace(tree / "_toc.yml", two, two.replace("two", "three") + "\n" + two)


class TestRun:
    def test_chapters_run_in_order_under_build_and_only_when_changed(self, tree, capsys):
        before = tracked_files(tree)
        book.run([], force=False)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "[1/2] one: cell 1 of 2"
        assert [line.split(":")[0] for line in lines if "done in" in line] == ["one", "two"]
        notebook = nbformat.read(tree / "_build" / "executed" / "two.ipynb", as_version=4)
        assert notebook.cells[1].outputs[0].text == "two\n"
        assert (tree / "_build" / "results" / "one.json").is_file()
        assert len(book.stamp("one")["cells"]) == 2
        assert tracked_files(tree) == before
        append(tree / "notebooks" / "two.py", "print(2)\n")
        book.run([], force=False)
        out = capsys.readouterr().out
        assert "one: unchanged" in out
        assert "two: done" in out
        book.run([], force=False)
        assert capsys.readouterr().out.count("unchanged") == 2

    def test_two_run_side_by_side_and_what_reads_waits(self, tree, monkeypatch):
        wait = """
import pathlib, time
pathlib.Path("NAME.started").touch()
while not pathlib.Path("OTHER.started").exists():
    time.sleep(0.1)
"""
        for name, other in [("one", "three"), ("three", "one")]:
            text = ONE.replace("one.json", f"{name}.json")
            text += wait.replace("NAME", name).replace("OTHER", other)
            put(tree / "notebooks" / f"{name}.py", text)
        append(tree / "notebooks" / "two.py", "print(pathlib.Path('three.started').exists())\n")
        replace(tree / "notebooks" / "two.py", "# %%\n", "# %%\nimport pathlib\n")
        list_third(tree)
        book.run([], force=False, jobs=2)
        notebook = nbformat.read(tree / "_build" / "executed" / "two.ipynb", as_version=4)
        assert notebook.cells[1].outputs[0].text == "two\nTrue\n"
        assert all(map(book.is_current, ["one", "three", "two"]))

    def test_what_measures_times_runs_by_itself(self, tree):
        late = "import pathlib, time\ntime.sleep(3)\npathlib.Path('one.ended').touch()\n"
        append(tree / "notebooks" / "one.py", late)
        text = ONE.replace("one.json", "three.json")
        ask = "\n# %%\nimport pathlib\nprint('after one:', pathlib.Path('one.ended').exists())\n"
        put(tree / "notebooks" / "three.py", text + ask)
        list_third(tree, "alone = true\n")
        book.run([], force=False, jobs=2)
        notebook = nbformat.read(tree / "_build" / "executed" / "three.ipynb", as_version=4)
        assert notebook.cells[-1].outputs[0].text == "after one: True\n"

    def test_a_failure_ends_what_runs_beside_it(self, tree):
        append(tree / "notebooks" / "one.py", "\n# %%\nimport time\ntime.sleep(600)\n")
        put(tree / "notebooks" / "two.py", TWO + "\n# %%\nscores['x']\n")
        replace(
            tree / "notebooks" / "chapters.toml",
            "reads = true",
            'metric = "ndcg"\ndocumented = []\nmade_right = []',
        )
        started = time.monotonic()
        with pytest.raises(book.ChapterError, match="chapter two, code cell 2 of 2: NameError"):
            book.run([], force=False, jobs=2)
        assert time.monotonic() - started < 60
        assert not book.is_current("one")

    def test_a_failing_chapter_names_chapter_cell_and_error_and_keeps_the_older_one(self, tree):
        pretend(tree)
        kept = (tree / "_build" / "executed" / "one.ipynb").read_bytes()
        append(tree / "notebooks" / "one.py", "\n# %%\nscores = {}\nscores['x']\n")
        with pytest.raises(book.ChapterError) as failure:
            book.run(["one"], force=False)
        assert "chapter one, code cell 3 of 3: KeyError: 'x'" in str(failure.value)
        assert "scores['x']" in str(failure.value)
        assert (tree / "_build" / "executed" / "one.ipynb").read_bytes() == kept
        assert not book.is_current("one")

    def test_an_unknown_chapter_is_named(self, tree):
        with pytest.raises(book.ChapterError, match="no chapter 'three'; choose from one, two"):
            book.run(["three"], force=False)

    def test_scripts_run_and_a_failing_one_stops(self, tree, capfd):
        book.run_scripts(["two"])
        assert "two" in capfd.readouterr().out
        put(tree / "notebooks" / "one.py", "raise SystemExit(3)\n")
        with pytest.raises(book.ChapterError, match="exit status 3"):
            book.run_scripts([])


class TestWhatDecides:
    @pytest.mark.parametrize(
        "change",
        [
            lambda tree, patch: append(tree / "notebooks" / "one.py", "# more\n"),
            lambda tree, patch: replace(tree / "rectutor" / "__init__.py", "x = 1", "x = 2"),
            lambda tree, patch: patch.setenv("RECTUTOR_SEED", "7"),
            lambda tree, patch: patch.setattr(book.platform, "python_version", lambda: "3.99"),
            lambda tree, patch: patch.setattr(book, "libraries", lambda: b"keras==99"),
            lambda tree, patch: put(tree / "_build" / "results" / "one.json", {}),
            lambda tree, patch: (tree / "_build" / "executed" / "one.ipynb").unlink(),
        ],
        ids=["source", "package", "setting", "python", "libraries", "results", "notebook"],
    )
    def test_a_change_makes_the_chapter_stale(self, change, tree, monkeypatch):
        pretend(tree)
        assert book.is_current("one")
        change(tree, monkeypatch)
        assert not book.is_current("one")

    def test_the_content_of_an_own_table_decides(self, tree, monkeypatch):
        table = tree / "own.csv"
        put(table, "user,item\n1,1\n")
        monkeypatch.setenv("RECTUTOR_DATA", str(table))
        pretend(tree)
        assert book.is_current("one")
        append(table, "1,2\n")
        assert not book.is_current("one")

    def test_results_of_an_own_table_are_looked_for_in_its_folder(self, tree, monkeypatch):
        assert book.measured_file("one") == tree / "_build" / "results" / "one.json"
        monkeypatch.setenv("RECTUTOR_DATA", "some/where/loans.csv")
        assert (
            book.measured_file("one") == tree / "_build" / "results" / "own" / "loans" / "one.json"
        )

    def test_the_libraries_are_the_pinned_ones_that_are_installed(self, tree):
        assert re.fullmatch(rb"jax==[\w.]+\nkeras==[\w.]+", book.libraries())

    def test_what_reads_is_stale_when_what_it_reads_has_changed(self, tree):
        pretend(tree)
        assert book.is_current("two")
        append(tree / "_build" / "results" / "one.json", "\n")
        assert not book.is_current("two")

    def test_an_edition_needs_no_execution_and_is_what_is_shown(self, tree):
        pretend(tree)
        replace(tree / "notebooks" / "one.py", "owner/name@main", "owner/name@v2.0.0")
        replace(tree / "rectutor" / "__init__.py", "1.0.0", "2.0.0")
        assert book.is_current("one")
        assert "owner/name@v2.0.0" in book.executed_notebook("one")


class TestStage:
    def test_what_is_current_is_rendered_and_else_what_is_committed(self, tree):
        put(tree / "book" / "intro.md", "# Book\n")
        source = book.stage()
        notebook, results = source / "notebooks" / "one.ipynb", source / "results" / "one.json"
        assert "outputs" in notebook.read_text("utf-8")  # none yet
        for staged in (notebook, results):
            put(tree / staged.relative_to(source), "committed")
        book.stage()
        assert notebook.read_text("utf-8") == results.read_text("utf-8") == "committed"
        pretend(tree)
        book.stage()
        assert notebook.read_text("utf-8") != "committed"
        assert json.loads(results.read_text("utf-8")) == RECORD

    def test_pages_are_forgotten_when_the_package_has_changed(self, tree):
        remembered = tree / "_build" / ".jupyter_cache" / "page"
        for change, stays in (("", False), ("", True), ("y = 2\n", False)):
            put(remembered, "output")
            file = tree / "rectutor" / "__init__.py"
            put(file, file.read_text("utf-8") + change)
            book.forget_pages()
            assert remembered.exists() == stays

    def test_only_what_changed_is_written_and_what_went_is_removed(self, tree):
        for name in ("stays", "goes"):
            put(tree / "book" / f"{name}.md", f"# {name}\n")
        source = book.stage()
        page = source / "book" / "stays.md"
        os.utime(page, (1, 1))
        (tree / "book" / "goes.md").unlink()
        book.stage()
        assert page.stat().st_mtime == 1
        assert not (source / "book" / "goes.md").exists()

    def test_publishing_refuses_data_that_stands_in(self, tree, monkeypatch):
        monkeypatch.setenv("RECTUTOR_STRICT", "1")
        stored = RECORD | {"data": RECORD["data"] | {"source": "synthetic (seed 42)"}}
        put(tree / "results" / "one.json", stored)
        with pytest.raises(book.ChapterError, match="chapter one ran on 100k from synthetic"):
            book.render()


#: What a run leaves that `RECTUTOR_EPOCHS` has limited.
LIMITED = {"epochs_at_most": 5}


class TestRecord:
    @pytest.fixture(autouse=True)
    def _pages(self, monkeypatch):
        """Writing the pages is tested with them."""
        done = subprocess.CompletedProcess([], 0)
        monkeypatch.setattr(book.subprocess, "run", lambda *args, **options: done)

    def test_everything_is_taken_over(self, tree):
        pretend(tree)
        before = tracked_files(tree)
        book.record()
        new = tracked_files(tree)
        assert {*new} - {*before} == {
            *(f"notebooks/{name}" for name in ("one.ipynb", "two.ipynb", "times.json")),
            "results/one.json",
        }
        assert json.loads(new["notebooks/times.json"]) == {"one": [1.0, 2.0], "two": [1.0, 2.0]}
        assert json.loads(new["results/one.json"]) == RECORD

    @pytest.mark.parametrize(
        ("spoil", "reason"),
        [
            (lambda tree: shutil.rmtree(tree / "_build"), "chapter one has not been executed"),
            (lambda tree: append(tree / "notebooks" / "one.py", "1\n"), "chapter one has changed"),
            (lambda tree: store(tree, data={"name": "toy"}), "chapter one ran on toy from x, not"),
            (lambda tree: store(tree, data={"source": "included"}), "one ran on 100k from incl"),
            (lambda tree: store(tree, facts=LIMITED), "one was limited to 5 epochs"),
            (lambda tree: store(tree, models=[]), "one is incomplete: no model .* 'ndcg'"),
            (lambda tree: store(tree, schema=0), "one is incomplete: .*schema is 0"),
        ],
        ids=[
            "not executed",
            "not current",
            "own data",
            "stand-in",
            "limited",
            "no models",
            "old schema",
        ],
    )
    def test_what_is_not_fit_is_named_and_nothing_changes(self, spoil, reason, tree):
        pretend(tree)
        spoil(tree)
        before = tracked_files(tree)
        with pytest.raises(book.ChapterError, match=reason):
            book.record()
        assert tracked_files(tree) == before


def store(tree, data=None, **changes):
    """Change the results of chapter one as if it had been executed to them."""
    pretend(tree, RECORD | changes | {"data": RECORD["data"] | (data or {})})


class TestRegistry:
    def test_it_is_in_reading_order(self, tree):
        assert list(book.registry()) == ["one", "two"]
        assert book.models() == ["one"]

    @pytest.mark.parametrize(
        ("file", "old", "new", "reason"),
        [
            ("_toc.yml", "  - file: notebooks/two\n", "", "'two' is in chapters.toml and not in"),
            ("notebooks/chapters.toml", "[two]", "[three]", "'t.*' is in .* add it there"),
            (
                "notebooks/chapters.toml",
                'metric = "ndcg"',
                "",
                r"\[one\]: give .* either documented",
            ),
            ("notebooks/chapters.toml", 'title = "Two"', "", r"\[two\]: give title"),
        ],
    )
    def test_what_does_not_agree_is_named(self, file, old, new, reason, tree):
        replace(tree / file, old, new)
        with pytest.raises(book.ChapterError, match=reason):
            book.registry()


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


class TestProgress:
    """Without the ticking thread: the clock is ours."""

    def test_a_log_gets_a_line_a_minute_at_most(self):
        clock, out = Clock(), io.StringIO()
        progress = Progress({"one": []}, out, clock)
        progress.start("one", 500)
        for cell in range(300):
            clock.now += 1
            progress.cell("one", cell)
        lines = out.getvalue().splitlines()
        assert lines[:2] == ["[1/1] one: cell 1 of 500", "[1/1] one: cell 61 of 500"]
        assert len(lines) == 6

    def test_a_terminal_has_one_line_that_is_rewritten(self):
        clock, out = Clock(), Terminal()
        progress = Progress({"one": [60.0, 120.0], "two": [60.0]}, out, clock)
        progress.start("one", 2)
        clock.now += 60
        progress.cell("one", 0)
        assert "\n" not in out.getvalue()
        shown = [line.strip() for line in out.getvalue().split("\r")[1:]]
        assert shown == [
            "[1/2] one: cell 1 of 2, about 4 min left",
            "[1/2] one: cell 2 of 2, about 3 min left",
        ]

    @pytest.mark.parametrize(
        ("pace", "left"), [(1.0, 190.0), (2.0, 380.0)], ids=["as before", "half as fast"]
    )
    def test_the_time_left_follows_the_pace(self, pace, left):
        clock = Clock()
        progress = Progress({"one": [20.0, 100.0, 30.0], "two": [60.0]}, io.StringIO(), clock)
        progress.start("one", 3)
        clock.now += pace * 20
        progress.cell("one", 0)
        assert progress.seconds_left() == pytest.approx(left)
        clock.now += pace * 60
        assert progress.seconds_left() == pytest.approx(left - pace * 60)
        clock.now += pace * 600  # longer than it ever took
        assert progress.seconds_left() == pytest.approx(pace * 90)

    def test_chapters_side_by_side_share_a_line_and_the_time(self):
        clock, out = Clock(), io.StringIO()
        times = {"one": [60.0, 60.0], "two": [60.0], "three": [300.0]}
        progress = Progress(times, out, clock, jobs=2)
        progress.start("one", 2)
        assert progress.seconds_left() == pytest.approx(300.0)  # of the longest
        progress.start("three", 1)
        clock.now += 60
        progress.cell("one", 0)
        assert progress.line() == (
            "[1/3] one: cell 2 of 2, [3/3] three: cell 1 of 1, about 4 min left"
        )
        clock.now += 60
        progress.cell("one", 1)
        assert progress.line().startswith("[3/3] three: cell 1 of 1, ")

    def test_a_chapter_with_other_cells_keeps_its_whole_time(self):
        progress = Progress({"one": [10.0, 20.0]}, io.StringIO(), Clock())
        progress.start("one", 3)
        assert progress.seconds_left() == pytest.approx(30.0)

    def test_the_recorded_times_serve_the_first_build(self, tree, monkeypatch):
        put(tree / "notebooks" / "times.json", {"one": [7.0]})
        assert book.cell_seconds("one") == [7.0]
        monkeypatch.setenv("RECTUTOR_PROFILE", "smoke")
        assert book.cell_seconds("one") == []
        monkeypatch.delenv("RECTUTOR_PROFILE")
        pretend(tree)
        assert book.cell_seconds("one") == [1.0, 2.0]


TOY = """\
# %% [markdown]
# # Toy: the smallest chapter

# %%
import json
import os
from pathlib import Path

record = json.loads({record!r})
folder = Path(os.environ["RECTUTOR_RESULTS"])
folder.mkdir(parents=True, exist_ok=True)
_ = (folder / "toy.json").write_text(json.dumps(record), encoding="utf-8")
print("measured")
"""


@pytest.mark.long
def test_a_chapter_is_added_with_a_script_a_line_and_an_entry_and_taken_out_again(tmp_path):
    copy_tree(tmp_path)

    def run(module, *arguments):
        done = run_module(tmp_path, module, *arguments)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    def page(name):
        html = (tmp_path / "_build" / "html" / f"{name}.html").read_text("utf-8")
        return BeautifulSoup(html, "html.parser").get_text()

    before = tracked_files(tmp_path)
    record, results = json.dumps(RECORD | {"chapter": "toy"}), tmp_path / "results" / "toy.json"
    script = tmp_path / "notebooks" / "toy.py"
    put(script, TOY.format(record=record))
    line = "      - file: notebooks/leaderboard\n"
    replace(tmp_path / "_toc.yml", line, f"      - file: notebooks/toy\n{line}")
    entry = '\n[toy]\ntitle = "Toy"\nmetric = "ndcg"\npromise = "It is small."\n'
    entry += 'documented = []\nmade_right = ["baselines/EASE"]\nbaselines = []\n'
    append(tmp_path / "notebooks" / "chapters.toml", entry)
    ours = {"notebooks/toy.py", "_toc.yml", "notebooks/chapters.toml"}

    run("tools.book", "run", "toy")
    run("tools.book", "render")
    added = tracked_files(tmp_path)
    assert {name for name in added if added[name] != before.get(name)} == ours
    assert "measured" in page("notebooks/toy")
    ease = study.read().arms["baselines/EASE"].metrics["ndcg"]
    figure = f"{ease.value:.3f} [{ease.low:.3f}, {ease.high:.3f}]"
    told = f"Toy. It is small. NDCG@10 (higher is better): made right {figure}."
    assert told in page("book/intro")
    shutil.copy(tmp_path / "_build" / "results" / "toy.json", results)
    run("tools.readme", "write")
    row = f"| [Toy](notebooks/toy.ipynb) | NDCG@10 (higher is better) |  | {figure} |  |"
    assert row in (tmp_path / "README.md").read_text("utf-8")

    script.unlink()
    results.unlink()
    replace(tmp_path / "_toc.yml", "      - file: notebooks/toy\n", "")
    replace(tmp_path / "notebooks" / "chapters.toml", entry, "")
    run("tools.readme", "write")
    run("tools.book", "render")
    assert tracked_files(tmp_path) == before
    assert not (tmp_path / "_build" / "source" / "notebooks" / "toy.ipynb").exists()
    assert "Toy" not in page("book/intro")


def test_paths_are_found_from_the_file_not_the_working_directory():
    assert Path(__file__).resolve().parent.parent == book.ROOT
