"""What the tests need besides: found or named, never gigabytes, never a hang."""

import json
import subprocess

import pytest

from tools import extras


@pytest.fixture
def pip(monkeypatch):
    """Stands in for pip; `plans` are the reports of dry runs by place, None where it fails."""
    calls, plans = [], {}

    def run(*arguments):
        calls.append(arguments)
        place = "index" if extras.CPU_INDEX in arguments else "found"
        wanted = plans.get(place)
        if wanted is None:
            return subprocess.CompletedProcess([], 1, "", "no such package")
        report = json.dumps({"install": [{"metadata": {"name": name}} for name in wanted]})
        return subprocess.CompletedProcess([], 0, report, "")

    monkeypatch.setattr(extras, "pip", run)
    run.calls, run.plans = calls, plans
    return run


def installs(pip):
    return [call for call in pip.calls if "--dry-run" not in call]


@pytest.mark.parametrize(
    ("reachable", "plans", "installed"),
    [
        (True, {"index": ["torch", "sympy"]}, [("--extra-index-url", extras.CPU_INDEX)]),
        (True, {"index": ["torch", "nvidia-cublas"], "found": ["torch"]}, [()]),
        (True, {"index": ["torch", "triton"], "found": ["torch", "cuda-bindings"]}, []),
        (False, {"found": ["torch"]}, [()]),
        (False, {"found": ["torch", "NVIDIA-nccl"]}, []),
        (False, {}, []),
    ],
    ids=["own index", "index with CUDA", "CUDA everywhere", "found", "found with CUDA", "nowhere"],
)
def test_torch_comes_without_cuda_or_not_at_all(reachable, plans, installed, pip, monkeypatch):
    monkeypatch.setattr(extras, "answers", lambda url: reachable)
    pip.plans |= plans
    assert extras.install_torch() == bool(installed)
    assert installs(pip) == installed


def test_an_index_that_cannot_be_reached_does_not_answer():
    assert not extras.answers("http://127.0.0.1:9/torch/")


@pytest.mark.parametrize(("root", "asked"), [(True, "sh"), (False, "playwright")])
def test_a_browser_is_announced_and_never_asks_for_a_password(root, asked, monkeypatch, capsys):
    commands = []

    def run(command, **options):
        assert "OUTSIDE THIS FOLDER" in capsys.readouterr().out
        assert options["stdin"] == subprocess.DEVNULL
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(extras.os, "geteuid", lambda: 0 if root else 1000, raising=False)
    monkeypatch.setattr(extras.shutil, "which", lambda name: name)
    monkeypatch.setattr(extras.subprocess, "run", run)
    assert extras.install_browser()
    assert len(commands) == 1
    assert asked in commands[0]
    assert "sudo" not in str(commands)


@pytest.mark.parametrize("command", ["install", "missing"])
@pytest.mark.parametrize("strict", [True, False], ids=["CI", "at home"])
def test_what_is_missing_is_named_and_an_error_only_on_ci(command, strict, monkeypatch, capsys):
    there = (lambda: True, None, "")
    gone = (lambda: False, lambda: False, "pip install it")
    monkeypatch.setattr(extras, "EXTRAS", {"PyTorch": gone, "a browser": there})
    monkeypatch.setattr(extras.sys, "argv", ["extras", command])
    monkeypatch.setenv("CI", "true" if strict else "")
    assert extras.main() == int(strict)
    out = capsys.readouterr().out
    assert "NOT TESTED: PyTorch is missing" in out
    assert "To get it: pip install it" in out
    assert "browser" not in out
