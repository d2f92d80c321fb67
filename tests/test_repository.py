"""The repository's own promises: names agree, workflows are valid, nothing private leaks."""

import functools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


YAML = {path.name: yaml.safe_load(path.read_text("utf-8")) for path in WORKFLOWS}
EACH_WORKFLOW = pytest.mark.parametrize("workflow", YAML)


def run(*command, folder=ROOT, **environment):
    return subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def run_module(folder, module, *arguments):
    """Run a module of the tree in that folder."""
    command = (sys.executable, "-m", module, *arguments)
    return run(*command, folder=folder, PYTHONPATH=str(folder))


def tracked():
    """The files git tracks, or every file where there is no git."""
    if shutil.which("git") and (ROOT / ".git").exists():
        done = run("git", "ls-files")
        assert done.returncode == 0, done.stderr
        return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts]


def test_every_file_names_the_same_repository():
    done = run_module(ROOT, "tools.repository", "check")
    assert done.returncode == 0, done.stderr


def copy_tree(target):
    """A copy of what git tracks."""
    for path in tracked():
        copy = target / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)


@pytest.fixture
def copy(tmp_path):
    """A copy of the tree, and a function that runs `tools.repository` in it."""
    copy_tree(tmp_path)
    return tmp_path, functools.partial(run_module, tmp_path, "tools.repository")


def read(folder, name):
    return (folder / name).read_text(encoding="utf-8")


def test_changing_the_repository_changes_it_everywhere(copy):
    folder, repository = copy
    done = repository("set", "someone/mybook", "trunk")
    assert done.returncode == 0, done.stderr
    assert "git+https://github.com/someone/mybook@trunk" in read(folder, "notebooks/ranking.py")
    assert "github.com/rectutor/rectutor" not in read(folder, "README.md")
    assert "edit_branch: trunk" in read(folder, "_config.yml")


def test_an_edition_names_its_tag_everywhere_and_development_the_branch_again(copy):
    folder, repository = copy
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = repository("edition", "9.8.7")
    assert done.returncode == 0, done.stderr
    for name in ("notebooks/ranking.py", "notebooks/ranking.ipynb"):
        assert "git+https://github.com/rectutor/rectutor@v9.8.7" in read(folder, name)
    assert "rectutor/rectutor/blob/v9.8.7/notebooks" in read(folder, "README.md")
    assert "  branch: v9.8.7\n" in read(folder, "_config.yml")
    assert "edit_branch: main\n" in read(folder, "_config.yml")
    assert '__version__ = "9.8.7"' in read(folder, "rectutor/__init__.py")
    assert "version: 9.8.7\n" in read(folder, "CITATION.cff")
    assert repository("tag", "v9.8.7").returncode == 0
    other = repository("tag", "v9.8.8")
    assert other.returncode == 1
    assert "the tag is v9.8.8, but the package is 9.8.7" in other.stderr

    assert repository("development").returncode == 0
    assert repository("tag", "v9.8.7").returncode == 1
    changed = {path.name for path, content in before.items() if path.read_bytes() != content}
    assert changed == {"__init__.py", "CITATION.cff"}


def test_an_edition_has_a_version_of_three_numbers(copy):
    _, repository = copy
    assert repository("edition", "v1").returncode == 2


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        ("README.md", "github.com/rectutor/", "github.com/other/", "README.md names other/"),
        ("notebooks/ranking.py", "rectutor@main", "rectutor@old", "ranking.py names ref old"),
        ("_config.yml", "  branch: main", "  branch: old", "_config.yml names branch old"),
        ("_config.yml", "edit_branch: main", "edit_branch: old", "names edit branch old"),
        ("CITATION.cff", "\nversion: ", "\nversion: 9", "CITATION.cff names another version"),
        ("pyproject.toml", 'ref = "main"', 'ref = "v9.9.9"', "names v9.9.9, but the package is"),
    ],
)
def test_a_file_that_disagrees_is_found(file, old, new, problem, copy):
    folder, repository = copy
    text = read(folder, file)
    assert old in text
    (folder / file).write_text(text.replace(old, new), encoding="utf-8")
    done = repository("check")
    assert done.returncode == 1
    assert problem in done.stderr


def test_workflows_fit_the_schema():
    schema = ("--builtin-schema", "vendor.github-workflows")
    done = run_module(ROOT, "check_jsonschema", *schema, *WORKFLOWS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_workflows_have_no_known_security_mistake():
    zizmor = Path(sys.executable).parent / "zizmor"
    done = run(zizmor, "--offline", "--quiet", ".github/workflows")
    assert done.returncode == 0, done.stdout + done.stderr


@EACH_WORKFLOW
def test_workflow_uses_least_permissions_and_pinned_actions(workflow):
    content = YAML[workflow]
    assert content["permissions"] == {}
    assert "concurrency" in content
    for job in content["jobs"].values():
        assert "permissions" in job
        assert ("timeout-minutes" in job) != (job.get("uses", "").startswith("./.github/"))
        for step in job.get("steps", ()):
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"]), step["uses"]


@EACH_WORKFLOW
def test_every_workflow_step_runs_a_command_of_the_tree(workflow):
    """A `run:` step is a make target that exists, `.ci/run`, or one of the two GPU lines."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    others = {
        "bash .ci/run",
        ".venv/bin/python -m pip install -r requirements-gpu.txt",
        ".venv/bin/python -c \"import jax; assert jax.devices()[0].platform == 'gpu'\"",
    }
    for job in YAML[workflow]["jobs"].values():
        for command in (step["run"] for step in job.get("steps", ()) if "run" in step):
            made = command.startswith("make ") and command.split()[1] in targets
            assert made or command in others


def test_an_edition_is_published_from_its_tag_after_the_tests():
    publish = YAML["publish.yml"]
    assert publish[True]["push"] == {"tags": ["v*"]}  # YAML reads the key `on` as true
    jobs = publish["jobs"]
    assert jobs["tests"]["uses"] == "./.github/workflows/tests.yml"
    assert (jobs["build"]["needs"], jobs["deploy"]["needs"]) == ("tests", "build")
    commands = [step["run"] for step in jobs["build"]["steps"] if "run" in step]
    assert commands == ["make edition-check", "make html"]


def test_the_python_versions_are_said_alike():
    bounds = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert bounds["requires-python"] == ">=3.11.5,<3.14"
    install = (ROOT / "tools" / "install.sh").read_text("utf-8")
    assert "(3, 11, 5) <= sys.version_info < (3, 14)" in install
    for page in ("README.md", "book/getting_started.md"):
        assert "Python 3.11 (from 3.11.5), 3.12 or 3.13" in (ROOT / page).read_text("utf-8")
    matrix = YAML["tests.yml"]["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13"]


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
@pytest.mark.parametrize("version", ["3, 10, 9", "3, 11, 4", "3, 14, 0"])
def test_another_python_is_refused_kindly_before_anything_is_made(version, tmp_path):
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nif [ "$1" = --version ]; then echo Python {version}; else\n'
        f'exec {sys.executable} -c "import sys; sys.version_info = ({version}); $2"; fi\n',
        encoding="utf-8",
    )
    python.chmod(0o755)
    done = run("sh", "tools/install.sh", PYTHON=str(python), VENV=str(tmp_path / "env"))
    assert done.returncode == 1
    assert "install on Python 3.11 (from 3.11.5), 3.12 and 3.13" in done.stderr
    assert not (tmp_path / "env").exists()


def test_the_pins_are_for_every_system():
    pins = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    marked = dict(line.split(" ; ") for line in pins if " ; " in line)
    assert "sys_platform == 'win32'" in marked["colorama==0.4.6"]
    assert any("sys_platform == 'darwin'" in marker for marker in marked.values())
    names = {line.split("==")[0] for line in pins if "==" in line}
    wanted = (ROOT / "requirements.in").read_text("utf-8")
    direct = re.findall(r"^([a-z][\w-]*)", wanted, re.MULTILINE)
    assert {name.replace("_", "-") for name in direct} <= {n.replace("_", "-") for n in names}


def test_ci_runs_the_test_command_strictly():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "set -euo pipefail" in script
    assert script.rstrip().endswith("make test")
    assert run("bash", "-n", ".ci/run").returncode == 0


def test_make_without_a_target_lists_the_targets():
    done = run("make")
    assert done.returncode == 0
    for target in ("book", "record", "check", "test", "html", "chapter", "clean"):
        assert f"make {target}" in done.stdout


def test_no_machine_path_is_committed():
    private = re.compile(rb"/(?:work|root|home/\w+|tmp)/[\w.]")
    allowed = {"tests/test_repository.py", ".ci/run"}
    for path in tracked():
        name = str(path.relative_to(ROOT))
        if name in allowed or path.suffix in {".png", ".ico", ".woff2"}:
            continue
        found = private.search(path.read_bytes())
        assert not found, f"{name} holds {found.group()!r}"


def test_no_rating_table_is_committed():
    allowed = {"rectutor/included/ml-latest-small.zip"}  # its licence allows it, and lies beside it
    for path in tracked():
        if path.relative_to(ROOT).as_posix() in allowed:
            assert (path.parent / "README.txt").is_file()
            continue
        assert path.suffix not in {".data", ".dat", ".zip", ".feather", ".parquet", ".inter"}, path
        assert path.stat().st_size < 1_500_000, f"{path} is large"
