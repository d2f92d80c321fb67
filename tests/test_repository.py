"""The repository's own promises: names agree, workflows are valid, nothing private leaks."""

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


def run(*command, **options):
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False, **options
    )


def tracked():
    """The files git tracks, or every file where there is no git."""
    if shutil.which("git") and (ROOT / ".git").exists():
        names = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        return [ROOT / name for name in names if (ROOT / name).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts]


def test_every_file_names_the_same_repository():
    done = run("-m", "tools.repository", "check")
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

    def repository(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "tools.repository", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )

    return tmp_path, repository


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
        (
            "README.md",
            "github.com/rectutor/",
            "github.com/other/",
            "README.md names other/",
        ),
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


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_fits_the_schema(workflow):
    done = run("-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", workflow)
    assert done.returncode == 0, done.stdout + done.stderr


def test_workflows_have_no_known_security_mistake():
    zizmor = Path(sys.executable).parent / "zizmor"
    done = subprocess.run(
        [str(zizmor), "--offline", "--quiet", ".github/workflows"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_uses_least_permissions_and_pinned_actions(workflow):
    content = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    assert content["permissions"] == {}
    assert "concurrency" in content
    for job in content["jobs"].values():
        assert "permissions" in job
        assert ("timeout-minutes" in job) != (job.get("uses", "").startswith("./.github/"))
        for step in job.get("steps", ()):
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"]), step["uses"]


def test_every_workflow_step_runs_a_command_of_the_tree():
    """A `run:` step is a make target that exists, `.ci/run`, or one of the two GPU lines."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    gpu_only = {
        ".venv/bin/python -m pip install -r requirements-gpu.txt",
        ".venv/bin/python -c \"import jax; assert jax.devices()[0].platform == 'gpu'\"",
    }
    for workflow in WORKFLOWS:
        for job in yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values():
            for command in (step["run"] for step in job.get("steps", ()) if "run" in step):
                if command.startswith("make "):
                    assert command.split()[1] in targets, f"{workflow.name}: {command}"
                else:
                    assert command in gpu_only | {"bash .ci/run"}, f"{workflow.name}: {command}"


def test_an_edition_is_published_from_its_tag_after_the_tests():
    publish = yaml.safe_load((ROOT / ".github/workflows/publish.yml").read_text("utf-8"))
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
    tests = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text("utf-8"))
    assert tests["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]


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
    done = subprocess.run(
        ["sh", "tools/install.sh"],
        cwd=ROOT,
        env=os.environ | {"PYTHON": str(python), "VENV": str(tmp_path / "env")},
        capture_output=True,
        text=True,
        check=False,
    )
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
    done = subprocess.run(["bash", "-n", ".ci/run"], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_make_without_a_target_lists_the_targets():
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=False)
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
