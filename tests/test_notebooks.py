"""Every chapter's script and notebook: the same cells, executed, tidy, complete."""

import ast
import functools
import re
import sys

import jupytext
import nbformat
import pytest
from chapters import NOTEBOOKS, ROOT, chapters, models, registry
from jupytext.cli import jupytext as run_jupytext

from rectutor import results
from tools import repository

CHAPTERS = chapters()
MODEL_CHAPTERS = models()
MARKED = "nbval-check-output"


EACH = pytest.mark.parametrize("name", CHAPTERS)
EACH_MODEL = pytest.mark.parametrize("name", MODEL_CHAPTERS)


@functools.cache
def read(path):
    """A script or a notebook as cells."""
    return jupytext.read(path) if path.suffix == ".py" else nbformat.read(path, as_version=4)


def source(name):
    return read(NOTEBOOKS / f"{name}.py")


def executed(name):
    return read(NOTEBOOKS / f"{name}.ipynb")


def tags(cell):
    return cell.metadata.get("tags", [])


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


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
    assert list(registry()) == CHAPTERS
    assert sorted(MODEL_CHAPTERS) == sorted(p.stem for p in (ROOT / "results").glob("*.json"))


@EACH
def test_script_and_notebook_hold_the_same_cells(name):
    script, notebook = (
        [(cell.cell_type, cell.source, dict(cell.metadata)) for cell in read(name).cells]
        for read in (source, executed)
    )
    assert script == notebook, f"{name}: run `make book` and `make record`"


@EACH
def test_writing_the_script_from_the_notebook_changes_nothing(name):
    script = (NOTEBOOKS / f"{name}.py").read_text(encoding="utf-8")
    again = jupytext.writes(executed(name), fmt="py:percent")
    body = re.compile(r"\A# ---\n.*?# ---\n", re.S)
    assert body.sub("", again).strip() == body.sub("", script).strip()


@EACH
def test_the_notebook_was_executed_from_top_to_bottom(name):
    counts = [cell.execution_count for cell in code_cells(executed(name)) if cell.source.strip()]
    assert counts == list(range(1, len(counts) + 1))


@EACH
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


@EACH
def test_every_figure_has_an_alternative_text(name):
    for number, cell in enumerate(code_cells(executed(name)), start=1):
        data = [output.get("data", {}) for output in cell.outputs]
        pictures = [kinds for kinds in data if any(kind.startswith("image/") for kind in kinds)]
        if pictures:
            alternative = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alternative) > 20, f"{name}, code cell {number}: say what the figure shows"
            assert "image/svg+xml" in pictures[0], f"{name}, code cell {number}: no SVG"


@EACH
def test_the_first_code_cell_makes_the_notebook_stand_alone(name):
    first = code_cells(source(name))[0]
    assert first.source == repository.bootstrap()
    assert "bootstrap" in tags(first)


@EACH
def test_facts_are_marked_for_exact_comparison(name):
    marked = [cell for cell in code_cells(executed(name)) if MARKED in tags(cell)]
    assert marked
    for cell in marked:
        assert "".join(texts(cell)).strip(), f"{name}: a marked cell without output checks nothing"


@EACH_MODEL
def test_exercises_are_graded_and_solved_by_code_that_ran(name):
    notebook = executed(name)
    exercises = re.findall(r":::+\{exercise\} (★+) .+\n:label: ([\w-]+)", prose(notebook))
    grades = [grade for grade, _ in exercises]
    assert len(grades) >= 2
    assert len({*grades}) >= 2
    assert grades == sorted(grades)
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


@EACH_MODEL
def test_an_exercise_stands_at_the_section_it_belongs_to(name):
    """Not all of them at the end: the first is met before the last third of the cells."""
    cells = source(name).cells
    first = next(i for i, cell in enumerate(cells) if ":::{exercise}" in cell.source)
    assert first < 2 / 3 * len(cells)


#: What stands on a folded cell, and on the same cell when it is open.
PROMPTS = {"code_prompt_show": "Show", "code_prompt_hide": "Hide"}


@EACH
def test_a_folded_cell_says_what_is_in_it(name):
    for number, cell in enumerate(code_cells(source(name)), start=1):
        for key, begins in PROMPTS.items():
            prompt = cell.metadata.get("mystnb", {}).get(key, "")
            told = re.fullmatch(f"{begins} the code: .{{5,}}", prompt)
            folded = {"hide-input", "hide-cell"}.intersection(tags(cell))
            needed = bool(folded) and "bootstrap" not in tags(cell)  # whose line _config.yml has
            assert bool(told) == needed, f"{name}, {number}: {prompt!r}"


@EACH
def test_headings_never_skip_a_level(name):
    level = 0
    text = re.sub(r"```.*?```", "", prose(source(name)), flags=re.S)
    for hashes in re.findall(r"^(#+) ", text, re.M):
        assert len(hashes) <= level + 1, f"{name}: {hashes} after level {level}"
        assert level == 0 or len(hashes) > 1, f"{name}: a second title"
        level = len(hashes)


@EACH_MODEL
def test_a_chapter_credits_its_source_and_ends_with_summary_and_references(name):
    for part in ("https://keras.io/keras_rs/examples/", "## Summary", "## References"):
        assert part in prose(source(name))


@EACH_MODEL
def test_the_stored_results_belong_to_the_committed_notebook(name):
    stored = results.read(ROOT / "results" / f"{name}.json")
    assert stored["chapter"] == name
    assert stored["data"]["name"] in ("100k", "1m")
    assert any(registry()[name]["metric"] in model["metrics"] for model in stored["models"])
    printed = "\n".join(text for cell in code_cells(executed(name)) for text in texts(cell))
    assert f"profile {stored['profile']}" in printed
    assert f"seed {stored['seed']}" in printed


def test_every_correction_is_shown_where_it_occurs_and_listed():
    """List C, chapter by chapter, has its boxes; each box is followed by a cell that proves it."""
    expected = {
        "ranking": [1, 2, 18, 30, 31],
        "retrieval": [6, 7, 11],
        "gru4rec": [6, 8, 9, 10, 11, 24, 29],
        "sasrec": [6, 12, 13, 14, 15, 16, 22, 23, 24, 25, 26, 27, 28],
        "multi_task": [2, 3, 4, 5, 6, 11, 19, 20, 21],
    }
    listed = (ROOT / "book" / "corrections.md").read_text(encoding="utf-8")
    on_the_page_of_the_data = (ROOT / "book" / "data.md").read_text(encoding="utf-8")
    _, box = on_the_page_of_the_data.split("(data-c17)=")
    assert "```{code-cell}" in box
    assert "data-c17" in listed
    shown = {number for numbers in expected.values() for number in numbers}
    assert {*range(1, 32)} == shown | {17}
    for name, numbers in expected.items():
        cells = source(name).cells
        for number in numbers:
            label = f"{name.replace('_', '-')}-c{number}"
            at = [i for i, cell in enumerate(cells) if f"({label})=" in cell.source]
            assert len(at) == 1, f"{name}: no box labelled {label}"
            assert any(cell.cell_type == "code" for cell in cells[at[0] + 1 : at[0] + 4]), label
            assert label in listed, f"book/corrections.md does not link to {label}"


@EACH
def test_jupytext_syncs_and_converts_the_pair_from_another_folder(name, tmp_path, monkeypatch):
    """`jupytext --sync` keeps the outputs, `jupytext --to py` gives the cells of the script."""
    (tmp_path / "notebooks").mkdir()
    for file in (NOTEBOOKS / f"{name}.py", NOTEBOOKS / f"{name}.ipynb", ROOT / "jupytext.toml"):
        target = tmp_path / ("." if file.suffix == ".toml" else "notebooks") / file.name
        target.write_bytes(file.read_bytes())
    pair = tmp_path / "notebooks" / f"{name}.ipynb"
    script = pair.with_suffix(".py")

    monkeypatch.chdir(tmp_path.parent)
    assert run_jupytext(["--sync", "--quiet", str(pair)]) == 0
    kept = nbformat.read(pair, as_version=4)
    assert any(cell.get("outputs") for cell in kept.cells)
    cells = [cell.source for cell in source(name).cells]
    assert [cell.source for cell in jupytext.read(script).cells] == cells
    again = tmp_path / "again.py"
    assert run_jupytext(["--to", "py:percent", "--quiet", "--output", str(again), str(pair)]) == 0
    assert [cell.source for cell in jupytext.read(again).cells] == cells


def test_a_cell_changed_on_one_side_is_noticed(tmp_path, monkeypatch):
    """The pairing test above can fail: plant a difference and see it."""
    name = CHAPTERS[0]
    for ending, more in [("py", "\n# %%\nprint('new')\n"), ("ipynb", "")]:
        text = (NOTEBOOKS / f"{name}.{ending}").read_text(encoding="utf-8")
        (tmp_path / f"{name}.{ending}").write_text(text + more, encoding="utf-8")
    monkeypatch.setattr(sys.modules[__name__], "NOTEBOOKS", tmp_path)
    with pytest.raises(AssertionError, match="make record"):
        test_script_and_notebook_hold_the_same_cells(name)


def lines_of_code(source):
    """No comments, none blank."""
    return len(re.findall(r"^[^\S\n]*[^\s#]", source, re.M))


@EACH
def test_no_cell_is_longer_than_a_screen(name):
    for number, cell in enumerate(code_cells(source(name)), start=1):
        body = ast.parse(cell.source).body
        limit = 60 if len(body) == 1 and isinstance(body[0], ast.ClassDef) else 40
        lines = lines_of_code(cell.source)
        assert lines <= limit, f"code cell {number}: {lines} lines of at most {limit}"


#: A chapter's lines of code (no comments, none blank) and words at most, and where it has limits
#: of its own.
LIMIT = (400, 2000)
OWN_LIMITS = {"sasrec": (350, 2000)}


@EACH
def test_a_chapter_is_no_longer_than_readers_finish(name):
    cells = source(name).cells
    code = "\n".join(cell.source for cell in code_cells(source(name)))
    lines = lines_of_code(code)
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    most_lines, most_words = OWN_LIMITS.get(name, LIMIT)
    assert lines <= most_lines
    assert words <= most_words


@EACH_MODEL
def test_a_model_stands_alone_in_its_cell(name):
    """A model is a class that derives from `keras.Model`."""
    beside = {}
    for cell in code_cells(source(name)):
        body = ast.parse(cell.source).body
        for node in body:
            bases = {ast.unparse(base) for base in getattr(node, "bases", ())}
            if bases & {"keras.Model", "Model", *beside}:
                beside[node.name] = len(body) - 1
    assert beside
    assert not any(beside.values()), beside


@EACH_MODEL
def test_results_are_saved_once_after_everything_was_measured(name):
    """So a chapter that is stopped on its way leaves the older results as they were."""
    cells = [cell.source for cell in code_cells(source(name))]
    (saving,) = (number for number, text in enumerate(cells) if "run.save(" in text)
    assert "\nrun.save()" in f"\n{cells[saving]}"
    later = "\n".join(cells[saving + 1 :])
    assert not re.search(r"\brun\.(record|fact|test)\(", later)
