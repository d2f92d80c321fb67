"""Installing the package into a runtime like Colab's leaves what is there as it is."""

import json
import os
import subprocess
import sys
import types
import venv
from pathlib import Path

import nbformat
import pytest

from tools import repository

ROOT = Path(__file__).resolve().parent.parent

#: What a Colab runtime brings, at fixed versions older than the book's pins. What pip sees of an
#: installed package is its metadata, so stand-ins with nothing else in them are enough here.
RUNTIME = {
    "absl-py": "1.4.0",
    "filelock": "3.19.1",
    "h5py": "3.14.0",
    "jax": "0.7.2",
    "jaxlib": "0.7.2",
    "keras": "3.10.0",
    "keras-hub": "0.21.1",
    "matplotlib": "3.10.0",
    "ml-dtypes": "0.5.3",
    "namex": "0.1.0",
    "numpy": "2.0.2",
    "optree": "0.17.0",
    "packaging": "25.0",
    "pandas": "2.2.2",
    "platformdirs": "4.5.0",
    "pyarrow": "18.1.0",
    "requests": "2.32.4",
    "rich": "13.9.4",
    "scipy": "1.16.3",
    "tensorflow": "2.19.0",
    "tensorflow-datasets": "4.9.9",
    "torch": "2.8.0",
}


def pip(python, *arguments):
    done = subprocess.run(
        [python, "-m", "pip", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def installed(python):
    return {
        package["name"].lower().replace("_", "-"): package["version"]
        for package in json.loads(pip(python, "list", "--format=json"))
    }


@pytest.mark.long
def test_installing_the_wheel_changes_nothing_a_runtime_already_has(tmp_path):
    wheels = tmp_path / "wheels"
    pip(sys.executable, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(ROOT))
    (wheel,) = wheels.glob("rectutor-*.whl")

    venv.create(tmp_path / "runtime", with_pip=True)
    python = str(tmp_path / "runtime" / "bin" / "python")
    (site,) = (tmp_path / "runtime" / "lib").glob("python*/site-packages")
    for name, version in RUNTIME.items():
        folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8"
        )
        (folder / "INSTALLER").write_text("stand-in\n", encoding="utf-8")
        (folder / "RECORD").write_text("", encoding="utf-8")
    before = installed(python)
    assert before.items() >= RUNTIME.items()

    pip(python, "install", "--quiet", str(wheel))

    after = installed(python)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"rectutor", "keras-rs", "pooch"}


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path):
    import zipfile

    pip(sys.executable, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("rectutor-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "rectutor/evaluation.py" in names
    assert "rectutor/py.typed" in names
    assert all(name.startswith(("rectutor/", "rectutor-")) for name in names)


@pytest.mark.long
def test_the_notebook_for_ones_own_table_reads_it_and_runs_a_chapter(tmp_path, monkeypatch, capsys):
    """Cell by cell as Colab would, with an upload and a chapter that are stand-ins."""
    notebook = nbformat.read(ROOT / "colab" / "your_data.ipynb", as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert cells[0] == repository.bootstrap()
    assert not any(cell.get("outputs") for cell in notebook.cells)
    rows = [f"u{user},i{(user * item) % 13}" for user in range(1, 13) for item in range(1, 8)]
    monkeypatch.chdir(tmp_path)
    for name in ("RECTUTOR_DATA", "RECTUTOR_COLUMNS"):
        monkeypatch.setenv(name, "")
    (tmp_path / "loans.csv").write_text("\n".join(["user,item", *rows]))
    files = types.SimpleNamespace(upload=lambda: {"loans.csv": b""})
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(files=files))
    asked, ran = [], []
    monkeypatch.setattr("urllib.request.urlretrieve", lambda *where: asked.append(where))
    shell = types.SimpleNamespace(run_line_magic=lambda *line: ran.append(line))
    names = {"get_ipython": lambda: shell}
    for cell in cells:
        exec(cell, names)
    assert "12 users" in capsys.readouterr().out
    assert os.environ["RECTUTOR_DATA"] == str(tmp_path / "loans.csv")
    ((address, script),) = asked
    assert (ROOT / "notebooks" / script).is_file()
    assert f"/notebooks/{script}?raw=true" in address
    assert ran == [("run", script)]
