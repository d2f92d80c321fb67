"""Execute the chapters and render the book.

usage: python tools/book.py run [--force] [NAME ...]   execute chapters that changed, in order
       python tools/book.py render                     render _build/html from what was executed
       python tools/book.py pair [NAME ...]            write missing .ipynb files, without outputs
       python tools/book.py scripts [NAME ...]         run chapters as plain scripts
       python tools/book.py list                       print the notebooks in reading order

Each chapter's source is `notebooks/NAME.py`; executing it writes `notebooks/NAME.ipynb`, the same
cells with their outputs, which is what the book renders and what Colab opens.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jupytext
import nbformat
import yaml

from rectutor.environment import is_on, write_text

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
RESULTS = ROOT / "results"
STAMPS = ROOT / "_build" / "executed"
RENDERED = ROOT / "_build" / "rendered.json"

#: What decides a chapter's outputs besides its source and the package.
ENVIRONMENT = ("KERAS_BACKEND", "RECTUTOR_DATA", "RECTUTOR_PROFILE", "RECTUTOR_SEED")

#: The chapter that reads what the others stored.
LEADERBOARD = "leaderboard"


class ChapterError(Exception):
    """A chapter failed; the message names the chapter, the cell and the error."""


def chapters() -> list[str]:
    """The chapters in reading order, as `_toc.yml` lists them."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed: list[str] = []

    def walk(node: object) -> None:
        if isinstance(node, dict):
            file = node.get("file")
            if isinstance(file, str) and file.startswith("notebooks/"):
                listed.append(Path(file).stem)
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(contents)
    return listed


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


def write_notebook(notebook: nbformat.NotebookNode, name: str) -> None:
    """Write the pair in one step."""
    nbformat.validate(notebook)
    write_text(nbformat.writes(notebook) + "\n", NOTEBOOKS / f"{name}.ipynb")


def digest(name: str) -> str:
    """What the chapter's outputs depend on, in one hash."""
    files = [NOTEBOOKS / f"{name}.py", *sorted((ROOT / "rectutor").glob("*.py"))]
    if name == LEADERBOARD:
        files += sorted(RESULTS.glob("*.json"))
    content = hashlib.sha256()
    for file in files:
        content.update(f"\0{file.name}\0".encode() + file.read_bytes())
    for variable in ENVIRONMENT:
        content.update(f"\0{variable}={os.environ.get(variable, '')}".encode())
    return content.hexdigest()


def is_current(name: str) -> bool:
    """Whether the chapter was executed here from just this source, package and environment."""
    stamp = STAMPS / f"{name}.json"
    if not stamp.is_file() or not (NOTEBOOKS / f"{name}.ipynb").is_file():
        return False
    try:
        known = json.loads(stamp.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return bool(known.get("digest") == digest(name))


def execute(name: str) -> float:
    """Execute one chapter and write its notebook; returns the seconds it took."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook = read_source(name)
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=40"],  # errors only
        resources={"metadata": {"path": str(NOTEBOOKS)}},
    )
    started = time.perf_counter()
    before = digest(name)
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise ChapterError(describe_failure(name, notebook, error)) from None
    seconds = time.perf_counter() - started
    write_notebook(notebook, name)
    STAMPS.mkdir(parents=True, exist_ok=True)
    stamp = {"digest": before, "seconds": round(seconds, 1)}
    (STAMPS / f"{name}.json").write_text(json.dumps(stamp), encoding="utf-8")
    return seconds


def describe_failure(name: str, notebook: nbformat.NotebookNode, error: Exception) -> str:
    """Chapter, cell and error of a failed run, with the cell's source."""
    code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code_cells, start=1):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                source = "\n".join(f"    {line}" for line in cell.source.splitlines())
                return (
                    f"chapter {name}, code cell {number} of {len(code_cells)}: "
                    f"{output.ename}: {output.evalue}\n{source}"
                )
    return f"chapter {name}: {type(error).__name__}: {error}"


def chosen(names: list[str]) -> list[str]:
    """The named chapters in reading order; all of them when none is named."""
    listed = chapters()
    unknown = [name for name in names if name not in listed]
    if unknown:
        raise ChapterError(f"no chapter {unknown[0]!r}; choose from {', '.join(listed)}")
    return [name for name in listed if not names or name in names]


def run(names: list[str], force: bool) -> None:
    """Execute the named chapters (all when none is named), those that changed only."""
    wanted = chosen(names)
    for number, name in enumerate(wanted, start=1):
        place = f"[{number}/{len(wanted)}] {name}"
        if not force and is_current(name):
            print(f"{place}: unchanged since it was last executed", flush=True)
            continue
        print(f"{place}: executing ...", flush=True)
        seconds = execute(name)
        print(f"{place}: done in {seconds:.0f} s", flush=True)


def run_scripts(names: list[str]) -> None:
    """Run the named chapters (all when none is named) as scripts, stopping at the first failure."""
    for name in chosen(names):
        print(f"--- python notebooks/{name}.py", flush=True)
        script = NOTEBOOKS / f"{name}.py"
        done = subprocess.run([sys.executable, str(script)], cwd=ROOT, check=False)
        if done.returncode:
            raise ChapterError(f"notebooks/{name}.py ended with exit status {done.returncode}")


def pair(names: list[str]) -> None:
    """Write a notebook without outputs for each chapter that has none, so the book can render."""
    for name in names or chapters():
        if not (NOTEBOOKS / f"{name}.ipynb").is_file():
            write_notebook(read_source(name), name)
            print(f"wrote notebooks/{name}.ipynb without outputs")


def refuse_synthetic() -> None:
    """Raise if a chapter ran on synthetic data; for publishing, where `RECTUTOR_STRICT` is set."""
    for file in sorted(RESULTS.glob("*.json")):
        source = json.loads(file.read_text(encoding="utf-8"))["data"]["source"]
        if source.startswith("synthetic"):
            raise ChapterError(
                f"{file.relative_to(ROOT)} was measured on synthetic data and RECTUTOR_STRICT is "
                "set; run the chapter again where MovieLens can be had"
            )


def render() -> None:
    """Render the book; any warning is an error."""
    if is_on("RECTUTOR_STRICT"):
        refuse_synthetic()
    program = Path(sys.executable).with_name("jupyter-book")
    command = [str(program), "build", "-W", "--keep-going", str(ROOT)]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    if done.returncode:
        raise ChapterError("the book did not render without warnings; the first one is above")
    seconds = round(time.perf_counter() - started, 1)
    RENDERED.write_text(json.dumps({"seconds": seconds}), encoding="utf-8")
    print("\nThe book is in _build/html: open _build/html/index.html in a browser.")


def main() -> int:
    """Run the command line; 0 when all went well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="execute chapters that changed")
    running.add_argument("--force", action="store_true", help="execute unchanged ones too")
    running.add_argument("names", nargs="*")
    commands.add_parser("render", help="render _build/html")
    commands.add_parser("list", help="print the notebooks in reading order")
    commands.add_parser("scripts", help="run as scripts").add_argument("names", nargs="*")
    commands.add_parser("pair", help="write missing notebooks").add_argument("names", nargs="*")
    arguments = parser.parse_args()
    try:
        if arguments.command == "run":
            run(arguments.names, arguments.force)
        elif arguments.command == "list":
            print(*(f"notebooks/{name}.ipynb" for name in chapters()), sep="\n")
        elif arguments.command == "scripts":
            run_scripts(arguments.names)
        elif arguments.command == "pair":
            pair(arguments.names)
        else:
            render()
    except ChapterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what was executed before is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
