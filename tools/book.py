"""Execute the chapters, render the book, and record what was executed.

usage: python -m tools.book run [--force] [NAME ...]   execute chapters that changed
       python -m tools.book render [--builder NAME]    render the book to _build/html
       python -m tools.book record                     take what was executed over into the tree
       python -m tools.book scripts [NAME ...]         run chapters as plain scripts
       python -m tools.book list [--models|--readers]  print the notebooks in reading order

A chapter's source is `notebooks/NAME.py`. Executing it writes `_build/executed/NAME.ipynb`, the
same cells with their outputs, and `_build/results/NAME.json`, what it measured. The book is
rendered from `_build/source`, which mirrors the tree: with what was executed where that is current,
else with what is committed. Only `record` writes to files that git tracks.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import concurrent.futures
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jupytext
import nbformat
import yaml

from rectutor import results
from rectutor.environment import is_on, write_text
from tools.progress import Progress

if TYPE_CHECKING:
    from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
RESULTS = ROOT / "results"
BUILD = ROOT / "_build"

#: What decides a chapter's outputs besides source, package, libraries and data.
ENVIRONMENT = (
    "KERAS_BACKEND",
    "RECTUTOR_COLUMNS",
    "RECTUTOR_DATA",
    "RECTUTOR_EPOCHS",
    "RECTUTOR_EXCLUDE_SEEN",
    "RECTUTOR_PROFILE",
    "RECTUTOR_SEED",
)

#: What names the edition in a chapter and in the package, and changes nothing that they compute.
EDITION = re.compile(rb'git\+https://[^"\s]+|(?<=^__version__ = )".*"', re.MULTILINE)

#: The data sets whose results may be recorded.
BOOK_DATA = ("100k", "1m")

#: How the source begins of data that stands in where those cannot be had.
STAND_INS = ("synthetic", "included")


class ChapterError(Exception):
    """A chapter failed or is not ready; the message names the chapter and what is wrong."""


def chapters() -> list[str]:
    """The chapters in reading order, as `_toc.yml` lists them."""

    def walk(node: object) -> Iterator[str]:
        if isinstance(node, dict):
            file = node.get("file", "")
            if str(file).startswith("notebooks/"):
                yield Path(file).stem
        for value in node.values() if isinstance(node, dict) else node:
            if isinstance(value, dict | list):
                yield from walk(value)

    return list(walk(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))))


def pages() -> list[str]:
    """The book's pages in reading order, as `_toc.yml` lists them."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    parts = [page["file"] for part in contents["parts"] for page in part["chapters"]]
    return [contents["root"], *parts]


def registry() -> dict[str, dict[str, Any]]:
    """What `notebooks/chapters.toml` says of each chapter, in reading order.

    Returns:
        By name: `title`, `promise` (a sentence), and either `metric`, the one its headline is told
        in, with the study's arms that it is told of (`documented`, `made_right`), or
        `reads = true` for a chapter that only reads what the others measured; and `alone = true`
        for one that measures times, which needs the cores for itself.

    Raises:
        ChapterError: the registry and `_toc.yml` do not name the same chapters, or an entry lacks
            something.
    """
    file = NOTEBOOKS / "chapters.toml"
    known = tomllib.loads(file.read_text(encoding="utf-8"))
    listed = chapters()
    for name in {*known} ^ {*listed}:
        there, lacking = ("_toc.yml", file.name) if name in listed else (file.name, "_toc.yml")
        raise ChapterError(f"chapter {name!r} is in {there} and not in {lacking}: add it there")
    for name, entry in known.items():
        missing = {"title", "promise"} - entry.keys()
        headline = {"metric", "documented", "made_right"}
        told = headline <= entry.keys()
        if missing or told == bool(entry.get("reads")):
            told_of = ", ".join(sorted(headline))
            raise ChapterError(
                f"{file.name}, [{name}]: give title, promise, and either {told_of} or reads = true"
            )
    return {name: known[name] for name in listed}


def models() -> list[str]:
    """The chapters that measure models of their own, in reading order."""
    return [name for name, entry in registry().items() if not entry.get("reads")]


def chosen(names: list[str]) -> list[str]:
    """The named chapters in reading order; all of them when none is named."""
    listed = list(registry())
    unknown = [name for name in names if name not in listed]
    if unknown:
        raise ChapterError(f"no chapter {unknown[0]!r}; choose from {', '.join(listed)}")
    return [name for name in listed if not names or name in names]


@functools.cache
def definitions(name: str) -> types.SimpleNamespace:
    """The imports, classes, functions and constants of a chapter, without running the rest of it.

    A class or function of a chapter may lean on its arguments, on imports and on constants only. A
    constant has a name in capitals, as `SETTINGS`.
    """
    source = NOTEBOOKS / f"{name}.py"
    tree = ast.parse(source.read_text(encoding="utf-8"), filename=str(source))
    tree.body = [node for node in tree.body if is_definition(node)]
    # a real module, so that Keras can save and load the chapter's classes by name
    module = types.ModuleType(f"chapter_{name}")
    module.__file__ = str(source)
    sys.modules[module.__name__] = module
    exec(compile(tree, str(source), "exec"), module.__dict__)
    return types.SimpleNamespace(**module.__dict__)


def is_definition(node: ast.stmt) -> bool:
    """Whether `definitions` keeps a statement of a chapter."""
    if isinstance(node, ast.Assign):
        return all(isinstance(each, ast.Name) and each.id.isupper() for each in node.targets)
    return isinstance(node, (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef))


# --- executing


def read_source(name: str) -> nbformat.NotebookNode:
    """The chapter's cells from its percent script, with ids that depend on nothing but position."""
    source = NOTEBOOKS / f"{name}.py"
    if not source.is_file():
        raise ChapterError(f"there is no chapter {name!r}: {source.relative_to(ROOT)} is missing")
    notebook = jupytext.read(source)
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"{name.replace('_', '-')}-{index:03d}"
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    return notebook


def write(notebook: nbformat.NotebookNode) -> str:
    """A valid notebook as the text of its file."""
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


@functools.cache
def libraries() -> bytes:
    """The installed version of every library that the book pins, and of the backend in use."""
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    names = {*re.findall(r"^([\w.-]+)==", pins, re.MULTILINE), os.environ.get("KERAS_BACKEND")}
    found = []
    for name in sorted(filter(None, names)):
        try:
            found.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue  # another system's, or a test's
    return "\n".join(found).encode()


def package_files() -> list[Path]:
    """The files of the package, the study's summary among them."""
    files = (path for path in (ROOT / "rectutor").rglob("*") if path.is_file())
    return sorted(path for path in files if "__pycache__" not in path.parts)


def digest(name: str) -> str:
    """What the chapter's outputs depend on, in one hash."""
    files = [NOTEBOOKS / f"{name}.py", *package_files()]
    if registry()[name].get("reads"):
        fresh = {other: measured_file(other) for other in models()}
        files += [path if path.is_file() else RESULTS / path.name for path in fresh.values()]
    own = os.environ.get("RECTUTOR_DATA")
    if own:
        files.append(Path(own))
    content = hashlib.sha256(libraries() + platform.python_version().encode())
    for file in files:
        text = file.read_bytes() if file.is_file() else b""
        content.update(f"\0{file.name}\0".encode() + EDITION.sub(b"", text))
    for variable in ENVIRONMENT:
        content.update(f"\0{variable}={os.environ.get(variable, '')}".encode())
    return content.hexdigest()


def stamp(name: str) -> dict[str, Any]:
    """What is known of the last execution here; empty when there was none."""
    try:
        return dict(json.loads((BUILD / "executed" / f"{name}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def measured_file(name: str) -> Path:
    """Where a chapter's results lie when it has run here."""
    return results.of_table(BUILD / "results") / f"{name}.json"


def results_hash(name: str) -> str:
    """Tells one results file of this build from another; empty where there is none."""
    file = measured_file(name)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def is_current(name: str) -> bool:
    """Whether the chapter was executed here as it would be now, and its results are still there."""
    known = stamp(name)
    return (
        (BUILD / "executed" / f"{name}.ipynb").is_file()
        and known.get("digest") == digest(name)
        and known.get("results") == results_hash(name)
    )


def cell_seconds(name: str) -> list[float]:
    """How long each code cell took the last time, here or when the book was recorded."""
    profile = os.environ.get("RECTUTOR_PROFILE", "")
    known = stamp(name)
    if known and known.get("profile") == profile:
        return list(known["cells"])
    recorded = NOTEBOOKS / "times.json"
    if profile in ("", "quick") and recorded.is_file():
        return list(json.loads(recorded.read_text(encoding="utf-8")).get(name, []))
    return []


def execute(name: str, progress: Progress, running: dict[str, NotebookClient]) -> float:
    """Execute one chapter into `_build`; returns the seconds it took.

    It is in `running` meanwhile.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook = read_source(name)
    seconds: list[float] = []

    def executed(cell: object, cell_index: int, execute_reply: object) -> None:
        seconds.append(time.perf_counter() - started - sum(seconds))
        progress.cell(name, len(seconds) - 1)

    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=40"],  # errors only
        resources={"metadata": {"path": str(NOTEBOOKS)}},
        on_cell_executed=executed,
    )
    running[name] = client
    before = digest(name)
    progress.start(name, sum(is_code(cell) for cell in notebook.cells))
    started = time.perf_counter()
    try:
        own = {"RECTUTOR_RESULTS": str(BUILD / "results"), "RECTUTOR_WIDGETS": "no"}
        client.execute(env=os.environ | own)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise ChapterError(describe_failure(name, notebook, error)) from None
    finally:
        del running[name]
    took = time.perf_counter() - started
    write_text(write(notebook), BUILD / "executed" / f"{name}.ipynb")
    known = {
        "digest": before,
        "results": results_hash(name),
        "profile": os.environ.get("RECTUTOR_PROFILE", ""),
        "seconds": round(took, 1),
        "cells": [round(one, 2) for one in seconds],
    }
    write_text(json.dumps(known), BUILD / "executed" / f"{name}.json")
    return took


def is_code(cell: nbformat.NotebookNode) -> bool:
    """Whether a cell is executed."""
    return bool(cell.cell_type == "code" and cell.source.strip())


def describe_failure(name: str, notebook: nbformat.NotebookNode, error: Exception) -> str:
    """Chapter, cell and error of a failed run, with the cell's source."""
    code_cells = [cell for cell in notebook.cells if is_code(cell)]
    for number, cell in enumerate(code_cells, start=1):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                source = "\n".join(f"    {line}" for line in cell.source.splitlines())
                return (
                    f"chapter {name}, code cell {number} of {len(code_cells)}: "
                    f"{output.ename}: {output.evalue}\n{source}"
                )
    return f"chapter {name}: {type(error).__name__}: {error}"


def run(names: list[str], force: bool, jobs: int = 1) -> None:
    """Execute the named chapters (all when none is named), those that changed only.

    Args:
        names: chapters.
        force: execute unchanged ones too.
        jobs: how many run at once; they share the cores, since a chapter that is given one of two
            adds numbers up in another order and prints other last digits. Those that measure times
            run by themselves.
    """
    reads = [name for name, entry in registry().items() if entry.get("reads")]
    alone = [name for name, entry in registry().items() if entry.get("alone")]
    wanted = sorted(chosen(names), key=lambda name: name in reads)  # what reads comes last
    stale = [name for name in wanted if force or not is_current(name)]
    # what is measured anew makes the chapters stale that read it
    stale = [name for name in wanted if name in stale or (name in reads and stale)]
    with Progress({name: cell_seconds(name) for name in stale}, jobs=jobs) as progress:
        for reading in (False, True):
            ready = []
            for name in [name for name in wanted if (name in reads) == reading]:
                if not force and is_current(name):
                    progress.say(f"{name}: unchanged since it was last executed")
                else:
                    ready.append(name)
            for measures_times in (False, True):
                these = [name for name in ready if (name in alone) == measures_times]
                execute_side_by_side(these, progress, 1 if measures_times else jobs)


def execute_side_by_side(names: list[str], progress: Progress, jobs: int) -> None:
    """Execute chapters, the longest first where several run at once; a failure ends all."""
    if jobs > 1:
        names = sorted(names, key=lambda name: -sum(progress.expected[name]))
    running: dict[str, NotebookClient] = {}

    def one(name: str) -> None:
        seconds = execute(name, progress, running)
        progress.say(f"{name}: done in {seconds:.0f} s")

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        tasks = [pool.submit(one, name) for name in names]
        try:
            for task in concurrent.futures.as_completed(tasks):
                task.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for client in list(running.values()):
                if client.km and client.km.provisioner:
                    asyncio.run(client.km.provisioner.kill())
            raise


def jobs_here() -> int:
    """How many chapters may run at once: two, or one where there is a GPU to share."""
    return 1 if shutil.which("nvidia-smi") or os.cpu_count() == 1 else 2


def run_scripts(names: list[str]) -> None:
    """Run the named chapters (all when none is named) as scripts, stopping at the first failure."""
    environment = {"RECTUTOR_RESULTS": str(BUILD / "scripts")} | os.environ
    for name in chosen(names):
        print(f"--- python notebooks/{name}.py", flush=True)
        command = [sys.executable, str(NOTEBOOKS / f"{name}.py")]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        if done.returncode:
            raise ChapterError(f"notebooks/{name}.py ended with exit status {done.returncode}")


# --- rendering


def executed_notebook(name: str) -> str:
    """The text of what was executed, with the cells as the script has them now.

    They differ at most in the edition that the first cell names.
    """
    notebook = nbformat.read(BUILD / "executed" / f"{name}.ipynb", as_version=4)
    for cell, current in zip(notebook.cells, read_source(name).cells, strict=True):
        cell.source = current.source
    return write(notebook)


def stage() -> Path:
    """Mirror in `_build/source` what the book is rendered from; returns that folder.

    A file is written only if it changed, since Sphinx reads again what is newer.
    """
    source = BUILD / "source"
    files = [ROOT / "_config.yml", ROOT / "_toc.yml", NOTEBOOKS / "chapters.toml"]
    files += [path for path in (ROOT / "book").rglob("*") if path.is_file()]
    wanted = {
        source / path.relative_to(ROOT): path.read_bytes()
        for path in files
        if "__pycache__" not in path.parts
    }
    for name in chapters():
        current, committed = is_current(name), NOTEBOOKS / f"{name}.ipynb"
        if current:
            text = executed_notebook(name).encode()
        elif committed.is_file():
            text = committed.read_bytes()
        else:
            text = write(read_source(name)).encode()
        wanted[source / "notebooks" / f"{name}.ipynb"] = text
        wanted[source / "notebooks" / f"{name}.py"] = (NOTEBOOKS / f"{name}.py").read_bytes()
        measured = measured_file(name) if current else RESULTS / f"{name}.json"
        if measured.is_file():
            wanted[source / "results" / measured.name] = measured.read_bytes()
    times = {name: cell_seconds(name) for name in chapters()}
    wanted[source / "notebooks" / "times.json"] = json.dumps(times).encode()
    for path, content in wanted.items():
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for path in source.rglob("*"):
        if path.is_file() and path not in wanted and "__pycache__" not in path.parts:
            path.unlink()
    return source


def render(builder: str = "html") -> None:
    """Render the book; a warning is an error, and so, under `RECTUTOR_STRICT`, is made-up data."""
    source = stage()
    for file in sorted((source / "results").glob("*.json")) if is_on("RECTUTOR_STRICT") else ():
        data = json.loads(file.read_text(encoding="utf-8"))["data"]
        if data["source"].startswith(STAND_INS):
            raise ChapterError(
                f"chapter {file.stem} ran on {data['name']} from {data['source']} and "
                "RECTUTOR_STRICT is set; run it again where MovieLens can be had"
            )
    forget_pages()
    program = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", program, "build", "-W", "--keep-going", str(source)]
    command += ["--path-output", str(ROOT), "--builder", builder]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    if done.returncode:
        raise ChapterError("the book did not render without warnings; the first one is above")
    seconds = round(time.perf_counter() - started, 1)
    if builder == "html":
        write_text(json.dumps({"seconds": seconds}), BUILD / "rendered.json")
        print("\nThe book is in _build/html: open _build/html/index.html in a browser.")


def forget_pages() -> None:
    """Drop what earlier builds remember of pages when the package has changed, study included.

    Pages with code run with the package, and their cache goes by their own text alone.
    """
    content = hashlib.sha256()
    for file in package_files():
        content.update(file.read_bytes())
    known = BUILD / "package.txt"
    if known.is_file() and known.read_text(encoding="utf-8") == content.hexdigest():
        return
    for folder in (".jupyter_cache", ".doctrees"):
        shutil.rmtree(BUILD / folder, ignore_errors=True)
    write_text(content.hexdigest(), known)


# --- recording


def why_not(name: str) -> str:
    """Why what was executed of a chapter cannot be recorded; empty when it can."""
    if not stamp(name):
        return "has not been executed here: run `make book`"
    if not is_current(name):
        return "has changed since it was executed, or its surroundings have: run `make book`"
    entry = registry()[name]
    if entry.get("reads"):
        return ""
    try:
        measured = results.read(measured_file(name))
    except (OSError, ValueError) as error:
        return f"is incomplete: {error}"
    data = measured["data"]
    if data["name"] not in BOOK_DATA or data["source"].startswith(STAND_INS):
        return f"ran on {data['name']} from {data['source']}, not on MovieLens 100k or 1m"
    if results.LIMIT in measured["facts"]:
        return f"was limited to {measured['facts'][results.LIMIT]} epochs (RECTUTOR_EPOCHS)"
    if not any(entry["metric"] in model["metrics"] for model in measured["models"]):
        return f"is incomplete: no model of it has the metric {entry['metric']!r}"
    return ""


def record() -> None:
    """Take the executed chapters over into the tree, with all that shows what they measured.

    Raises:
        ChapterError: something is not fit to be recorded; then nothing is changed.
    """
    found = {name: why_not(name) for name in registry()}
    reasons = [f"chapter {name} {reason}" for name, reason in found.items() if reason]
    if reasons:
        raise ChapterError("\n       ".join(["nothing was recorded", *reasons]))
    for name in registry():
        write_text(executed_notebook(name), NOTEBOOKS / f"{name}.ipynb")
        measured = measured_file(name)
        if name in models():
            write_text(measured.read_text(encoding="utf-8"), RESULTS / measured.name)
    lines = [f'"{name}": {json.dumps(stamp(name)["cells"])}' for name in registry()]
    write_text("{\n" + ",\n".join(lines) + "\n}\n", NOTEBOOKS / "times.json")
    pages = ["tools.readme"]
    if (ROOT / "benchmarks" / "report.py").is_file():
        pages.append("benchmarks.report")
    for page in pages:
        done = subprocess.run([sys.executable, "-m", page, "write"], cwd=ROOT, check=False)
        if done.returncode:
            raise ChapterError(f"`python -m {page} write` failed; what it says is above")
    print(f"recorded {', '.join(registry())}; `git diff --stat` shows what changed")


def main() -> int:
    """Run the command line; 0 when all went well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="execute chapters that changed")
    running.add_argument("--force", action="store_true", help="execute unchanged ones too")
    running.add_argument("--jobs", type=int, default=jobs_here(), help="how many run at once")
    running.add_argument("names", nargs="*")
    rendering = commands.add_parser("render", help="render _build/html")
    rendering.add_argument("--builder", default="html")
    commands.add_parser("record", help="take what was executed over into the tree")
    commands.add_parser("scripts", help="run as scripts").add_argument("names", nargs="*")
    listing = commands.add_parser("list", help="print the notebooks in reading order")
    listing.add_argument("--models", action="store_true", help="not those that only read")
    listing.add_argument("--readers", action="store_true", help="those that only read")
    arguments = parser.parse_args()
    try:
        if arguments.command == "run":
            run(arguments.names, arguments.force, arguments.jobs)
        elif arguments.command == "render":
            render(arguments.builder)
        elif arguments.command == "record":
            record()
        elif arguments.command == "scripts":
            run_scripts(arguments.names)
        else:
            names = models() if arguments.models else list(registry())
            if arguments.readers:
                names = [name for name in names if name not in models()]
            print(*(f"notebooks/{name}.ipynb" for name in names), sep="\n")
    except ChapterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what was executed before is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
