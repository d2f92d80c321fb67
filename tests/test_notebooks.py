"""Every chapter's script and notebook: the same cells, executed, tidy, complete."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
from chapters import NOTEBOOKS, ROOT, names

from rectutor import results

sys.path.insert(0, str(ROOT / "tools"))
import repository

import book

CHAPTERS = names()
MODEL_CHAPTERS = [name for name in CHAPTERS if name != "leaderboard"]
MARKED = "nbval-check-output"


def source(name):
    return jupytext.read(NOTEBOOKS / f"{name}.py")


def executed(name):
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def tags(cell):
    return cell.metadata.get("tags", [])


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell):
    """What a code cell printed or displayed, as text."""
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.text
        elif "data" in output:
            yield output.data.get("text/plain", "")


def test_the_chapters_are_those_of_the_notebooks_folder():
    assert sorted(CHAPTERS) == sorted(path.stem for path in NOTEBOOKS.glob("*.py"))
    assert sorted(CHAPTERS) == sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("name", CHAPTERS)
def test_script_and_notebook_hold_the_same_cells(name):
    pair = [
        [(cell.cell_type, cell.source, dict(cell.metadata)) for cell in notebook.cells]
        for notebook in (source(name), executed(name))
    ]
    assert pair[0] == pair[1], f"run `make chapter NAME={name}`"


@pytest.mark.parametrize("name", CHAPTERS)
def test_writing_the_script_from_the_notebook_changes_nothing(name):
    script = (NOTEBOOKS / f"{name}.py").read_text(encoding="utf-8")
    again = jupytext.writes(executed(name), fmt="py:percent")
    body = re.compile(r"\A# ---\n.*?# ---\n", re.S)
    assert body.sub("", again).strip() == body.sub("", script).strip()


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_notebook_was_executed_from_top_to_bottom(name):
    counts = [cell.execution_count for cell in code_cells(executed(name)) if cell.source.strip()]
    assert counts == list(range(1, len(counts) + 1))


@pytest.mark.parametrize("name", CHAPTERS)
def test_no_error_no_warning_no_progress_bar_in_the_outputs(name):
    for number, cell in enumerate(code_cells(executed(name)), start=1):
        for output in cell.outputs:
            place = f"{name}, code cell {number}"
            assert output.output_type != "error", f"{place}: {output.get('evalue')}"
            if output.output_type == "stream":
                assert output.name != "stderr", f"{place} wrote to stderr: {output.text[:200]}"
                assert not re.search(r"[\r\b█━]|Warning:", output.text), f"{place}: {output.text}"
        lines = sum(len(text.splitlines()) for text in texts(cell))
        assert lines <= 80, f"{name}, code cell {number} prints {lines} lines"


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_figure_has_an_alternative_text(name):
    for number, cell in enumerate(code_cells(executed(name)), start=1):
        data = [output.get("data", {}) for output in cell.outputs]
        pictures = [kinds for kinds in data if any(kind.startswith("image/") for kind in kinds)]
        if pictures:
            alternative = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alternative) > 20, f"{name}, code cell {number}: say what the figure shows"
            assert "image/svg+xml" in pictures[0], f"{name}, code cell {number}: no SVG"


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_first_code_cell_makes_the_notebook_stand_alone(name):
    first = code_cells(source(name))[0]
    assert first.source == repository.bootstrap()
    assert "bootstrap" in tags(first)


@pytest.mark.parametrize("name", CHAPTERS)
def test_facts_are_marked_for_exact_comparison(name):
    marked = [cell for cell in code_cells(executed(name)) if MARKED in tags(cell)]
    assert len(marked) >= 2
    for cell in marked:
        assert "".join(texts(cell)).strip(), f"{name}: a marked cell without output checks nothing"


@pytest.mark.parametrize("name", MODEL_CHAPTERS)
def test_exercises_are_graded_and_solved_by_code_that_ran(name):
    notebook = executed(name)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    exercises = re.findall(r":::+\{exercise\} (★+) .+\n:label: ([\w-]+)", prose)
    assert len(exercises) >= 3
    assert len({grade for grade, _ in exercises}) >= 2
    assert [grade for grade, _ in exercises] == sorted(grade for grade, _ in exercises)
    solving, solved = None, {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            if start := re.search(r":::+\{solution-start\} ([\w-]+)", cell.source):
                solving = start.group(1)
                assert ":class: dropdown" in cell.source
            if ":::{solution-end}" in cell.source:
                solving = None
        elif solving:
            solved[solving] = cell.execution_count
    assert set(solved) == {label for _, label in exercises}
    assert all(solved.values())


@pytest.mark.parametrize("name", CHAPTERS)
def test_headings_never_skip_a_level(name):
    level = 0
    for cell in source(name).cells:
        if cell.cell_type != "markdown":
            continue
        for hashes in re.findall(
            r"^(#+) ", re.sub(r"```.*?```", "", cell.source, flags=re.S), re.M
        ):
            assert len(hashes) <= level + 1, f"{name}: {hashes} after level {level}"
            assert level == 0 or len(hashes) > 1, f"{name}: a second title"
            level = len(hashes)


@pytest.mark.parametrize("name", MODEL_CHAPTERS)
def test_a_chapter_credits_its_source_and_ends_with_summary_and_references(name):
    prose = "\n".join(cell.source for cell in source(name).cells if cell.cell_type == "markdown")
    assert "https://keras.io/keras_rs/examples/" in prose
    assert "## Summary" in prose
    assert "## References" in prose


@pytest.mark.parametrize("name", MODEL_CHAPTERS)
def test_the_stored_results_belong_to_the_committed_notebook(name):
    stored = results.read(ROOT / "results" / f"{name}.json")
    assert stored["chapter"] == name
    assert not stored["data"]["source"].startswith("synthetic")
    printed = "\n".join(text for cell in code_cells(executed(name)) for text in texts(cell))
    assert f"profile {stored['profile']}" in printed
    assert f"seed {stored['seed']}" in printed


def test_every_correction_is_shown_where_it_occurs_and_listed():
    """List C, chapter by chapter, has its boxes; each box is followed by a cell that proves it."""
    expected = {
        "ranking": ["c1", "c2", "c18"],
        "retrieval": ["c6", "c7", "c11"],
        "gru4rec": ["c6", "c8", "c9", "c10", "c11", "c17"],
        "sasrec": ["c6", "c12", "c13", "c14", "c15", "c16", "c17"],
        "multi_task": ["c2", "c3", "c4", "c5", "c6", "c11"],
    }
    listed = (ROOT / "book" / "corrections.md").read_text(encoding="utf-8")
    for name, numbers in expected.items():
        cells = source(name).cells
        for number in numbers:
            label = f"{name.replace('_', '-')}-{number}"
            at = [i for i, cell in enumerate(cells) if f"({label})=" in cell.source]
            assert len(at) == 1, f"{name}: no box labelled {label}"
            assert any(cell.cell_type == "code" for cell in cells[at[0] + 1 : at[0] + 4]), label
            assert label in listed, f"book/corrections.md does not link to {label}"


@pytest.mark.parametrize("name", CHAPTERS)
def test_jupytext_syncs_and_converts_the_pair_from_another_folder(name, tmp_path):
    """`jupytext --sync` keeps the outputs, `jupytext --to py` gives the cells of the script."""
    (tmp_path / "notebooks").mkdir()
    for file in (NOTEBOOKS / f"{name}.py", NOTEBOOKS / f"{name}.ipynb", ROOT / "jupytext.toml"):
        target = tmp_path / ("." if file.suffix == ".toml" else "notebooks") / file.name
        target.write_bytes(file.read_bytes())
    pair = tmp_path / "notebooks" / f"{name}.ipynb"
    script = pair.with_suffix(".py")

    def run_jupytext(*arguments):
        command = [sys.executable, "-m", "jupytext", *arguments]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run_jupytext("--sync", str(pair))
    kept = nbformat.read(pair, as_version=4)
    assert any(cell.get("outputs") for cell in kept.cells)
    cells = [cell.source for cell in source(name).cells]
    assert [cell.source for cell in jupytext.read(script).cells] == cells
    as_script = run_jupytext("--to", "py:percent", "--output", "-", str(pair))
    assert [cell.source for cell in jupytext.reads(as_script, "py:percent").cells] == cells


def test_a_cell_changed_on_one_side_is_noticed(tmp_path, monkeypatch):
    """The pairing test above can fail: plant a difference and see it."""
    name = CHAPTERS[0]
    for ending in ("py", "ipynb"):
        text = (NOTEBOOKS / f"{name}.{ending}").read_text(encoding="utf-8")
        (tmp_path / f"{name}.{ending}").write_text(text, encoding="utf-8")
    script = tmp_path / f"{name}.py"
    script.write_text(script.read_text("utf-8") + "\n# %%\nprint('new')\n", encoding="utf-8")
    monkeypatch.setattr(sys.modules[__name__], "NOTEBOOKS", tmp_path)
    with pytest.raises(AssertionError, match="make chapter"):
        test_script_and_notebook_hold_the_same_cells(name)


class TestRunner:
    """tools/book.py on a tiny tree of its own."""

    @pytest.fixture
    def tree(self, tmp_path, monkeypatch):
        (tmp_path / "notebooks").mkdir()
        (tmp_path / "rectutor").mkdir()
        (tmp_path / "rectutor" / "part.py").write_text("x = 1\n", encoding="utf-8")
        (tmp_path / "_toc.yml").write_text(
            "root: intro\nparts:\n- chapters:\n  - file: notebooks/one\n  - file: notebooks/two\n",
            encoding="utf-8",
        )
        for name in ("one", "two"):
            (tmp_path / "notebooks" / f"{name}.py").write_text(
                f"# %% [markdown]\n# # {name}\n\n# %%\nprint('{name}')\n", encoding="utf-8"
            )
        for attribute, path in {
            "ROOT": tmp_path,
            "NOTEBOOKS": tmp_path / "notebooks",
            "RESULTS": tmp_path / "results",
            "STAMPS": tmp_path / "_build" / "executed",
        }.items():
            monkeypatch.setattr(book, attribute, path)
        return tmp_path

    def test_chapters_run_in_reading_order_and_only_when_changed(self, tree, capsys):
        book.run([], force=False)
        lines = capsys.readouterr().out.splitlines()
        assert [line.split(":")[0] for line in lines] == ["[1/2] one"] * 2 + ["[2/2] two"] * 2
        assert re.search(r"done in \d+ s", lines[1])
        notebook = json.loads((tree / "notebooks" / "one.ipynb").read_text("utf-8"))
        assert notebook["cells"][1]["outputs"][0]["text"] == ["one\n"]
        book.run([], force=False)
        assert capsys.readouterr().out.count("unchanged") == 2
        script = tree / "notebooks" / "two.py"
        script.write_text(script.read_text("utf-8") + "print(2)\n", encoding="utf-8")
        book.run([], force=False)
        out = capsys.readouterr().out
        assert "one: unchanged" in out
        assert "two: done" in out

    def test_a_changed_package_makes_every_chapter_stale(self, tree, capsys):
        book.run(["one"], force=False)
        assert book.is_current("one")
        (tree / "rectutor" / "part.py").write_text("x = 2\n", encoding="utf-8")
        assert not book.is_current("one")

    def test_a_failing_chapter_names_chapter_cell_and_error_and_keeps_the_old_pair(self, tree):
        book.pair([])
        before = (tree / "notebooks" / "one.ipynb").read_text("utf-8")
        script = tree / "notebooks" / "one.py"
        script.write_text(
            script.read_text("utf-8") + "\n# %%\nscores = {}\nscores['x']\n", encoding="utf-8"
        )
        with pytest.raises(book.ChapterError) as failure:
            book.run([], force=False)
        assert "chapter one, code cell 2 of 2: KeyError: 'x'" in str(failure.value)
        assert "scores['x']" in str(failure.value)
        assert (tree / "notebooks" / "one.ipynb").read_text("utf-8") == before
        assert not (tree / "notebooks" / "two.ipynb").read_text("utf-8").count("stream")

    def test_an_unknown_chapter_is_named(self, tree):
        with pytest.raises(book.ChapterError, match="no chapter 'three'; choose from one, two"):
            book.run(["three"], force=False)

    def test_scripts_run_and_a_failing_one_stops(self, tree, capfd):
        book.run_scripts(["one"])
        assert "one" in capfd.readouterr().out
        (tree / "notebooks" / "one.py").write_text("raise SystemExit(3)\n", encoding="utf-8")
        with pytest.raises(book.ChapterError, match="exit status 3"):
            book.run_scripts([])

    def test_publishing_refuses_synthetic_results(self, tree):
        (tree / "results").mkdir()
        stored = {"data": {"source": "synthetic (seed 42)"}}
        (tree / "results" / "one.json").write_text(json.dumps(stored), encoding="utf-8")
        with pytest.raises(book.ChapterError, match="measured on synthetic data"):
            book.refuse_synthetic()


def test_paths_are_found_from_the_file_not_the_working_directory():
    assert Path(book.ROOT) == ROOT
