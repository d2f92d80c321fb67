"""What only some tests need: PyTorch's CPU build, and a Chromium.

usage: python -m tools.extras install   install what is missing, where that is simple
       python -m tools.extras missing   say what is missing and which tests were left out for it

What cannot be had is named with the command to get it, and its tests are skipped; with `CI` set, it
is an error. PyTorch goes into this environment, and only a build without CUDA, which would be
gigabytes. A browser lies outside the tree: it is announced, and installed without a password only.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIN = ROOT / "requirements-torch.txt"

#: Where PyTorch keeps its own wheels without CUDA.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
#: Seconds to wait for it to answer.
PATIENCE = 5
#: How the names of the libraries begin that a CUDA build asks for.
CUDA = ("nvidia", "cuda", "triton")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def pinned() -> str:
    """The version of PyTorch that the tests are for."""
    return PIN.read_text(encoding="utf-8").split("torch==")[1].split()[0]


def has_torch() -> bool:
    """Whether that version is installed, in whichever build."""
    try:
        return importlib.metadata.version("torch").split("+")[0] == pinned()
    except importlib.metadata.PackageNotFoundError:
        return False


def has_browser() -> bool:
    """Whether there is a Chromium: the system's, or Playwright's own."""
    if any(map(shutil.which, BROWSERS)):
        return True
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        return Path(playwright.chromium.executable_path).is_file()


def answers(url: str) -> bool:
    """Whether a server answers soon."""
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE):
            return True
    except (OSError, ValueError):
        return False


def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pip with the pins as constraints; what it prints is kept."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--timeout", "15"]
    command += ["--retries", "1", "-c", str(ROOT / "requirements.txt"), "-r", str(PIN)]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


def brings_cuda(report: str) -> bool:
    """Whether pip's report of what it would install names CUDA libraries."""
    wanted = [item["metadata"]["name"].lower() for item in json.loads(report)["install"]]
    return any(name.startswith(CUDA) for name in wanted)


def install_torch() -> bool:
    """Install PyTorch's CPU build, from its own index or from wherever pip finds one."""
    places = [("--extra-index-url", CPU_INDEX)] if answers(f"{CPU_INDEX}/torch/") else []
    for place in (*places, ()):
        planned = pip("--dry-run", "--report", "-", *place)
        if planned.returncode == 0 and not brings_cuda(planned.stdout):
            print("installing PyTorch, a build without CUDA", flush=True)
            if pip(*place).returncode == 0:
                return True
    return False


def install_browser() -> bool:
    """Install Debian's Chromium where we are root, else let Playwright download its own."""
    if os.name == "posix" and os.geteuid() == 0 and shutil.which("apt-get"):
        print("OUTSIDE THIS FOLDER: apt-get installs chromium for the browser tests", flush=True)
        install = "apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium"
        done = subprocess.run(
            ["sh", "-c", install],
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode == 0:
            return True
    print("OUTSIDE THIS FOLDER: Playwright downloads its Chromium to its cache folder", flush=True)
    command = [sys.executable, "-m", "playwright", "install", "chromium"]
    return subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode == 0


#: What, whether it is there, how it is installed, and what to do where that does not work.
EXTRAS: dict[str, tuple[Callable[[], bool], Callable[[], bool], str]] = {
    "PyTorch": (
        has_torch,
        install_torch,
        f"{Path(sys.executable)} -m pip install -r {PIN.name} --extra-index-url {CPU_INDEX}",
    ),
    "a browser": (
        has_browser,
        install_browser,
        "sudo apt-get install chromium (Debian, Ubuntu), or install Chrome or Chromium as usual",
    ),
}


def main() -> int:
    """Run the command line; 1 where something is missing and `CI` is set."""
    if sys.argv[1:] not in (["install"], ["missing"]):
        print(__doc__)
        return 2
    missing = False
    for name, (is_there, install, remedy) in EXTRAS.items():
        if is_there() or (sys.argv[1] == "install" and install()):
            continue
        missing = True
        print(f"*** NOT TESTED: {name} is missing, and every test that needs it is skipped.")
        print(f"*** To get it: {remedy}", flush=True)
    return int(missing and bool(os.environ.get("CI")))


if __name__ == "__main__":
    sys.exit(main())
