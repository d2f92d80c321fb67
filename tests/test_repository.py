"""The repository's own promises: names agree, workflows are valid, nothing private leaks."""

import re
import shutil
import subprocess
import sys
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
    done = run("tools/repository.py", "check")
    assert done.returncode == 0, done.stderr


def test_changing_the_repository_changes_it_everywhere(tmp_path):
    for path in tracked():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    done = subprocess.run(
        [sys.executable, "tools/repository.py", "set", "someone/mybook", "trunk"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    named = (tmp_path / "notebooks" / "ranking.py").read_text(encoding="utf-8")
    assert "git+https://github.com/someone/mybook@trunk" in named
    assert "github.com/rectutor/rectutor" not in (tmp_path / "README.md").read_text("utf-8")


def test_a_file_that_disagrees_is_found(tmp_path):
    for path in tracked():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    readme = tmp_path / "README.md"
    readme.write_text(
        readme.read_text("utf-8").replace("github.com/rectutor/", "github.com/other/"), "utf-8"
    )
    done = subprocess.run(
        [sys.executable, "tools/repository.py", "check"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "README.md" in done.stderr


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
        assert "timeout-minutes" in job
        for step in job["steps"]:
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
            for command in (step["run"] for step in job["steps"] if "run" in step):
                if command.startswith("make "):
                    assert command.split()[1] in targets, f"{workflow.name}: {command}"
                else:
                    assert command in gpu_only | {"bash .ci/run"}, f"{workflow.name}: {command}"


def test_ci_runs_the_test_command_strictly():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "set -euo pipefail" in script
    assert script.rstrip().endswith("make test")
    done = subprocess.run(["bash", "-n", ".ci/run"], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_make_without_a_target_lists_the_targets():
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for target in ("book", "test", "html", "chapter", "clean"):
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
    for path in tracked():
        assert path.suffix not in {".data", ".dat", ".zip", ".feather", ".parquet", ".inter"}, path
        assert path.stat().st_size < 1_500_000, f"{path} is large"
