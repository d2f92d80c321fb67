"""Which repository and branch the book is published from, said in one place.

usage: python tools/repository.py check                    does every file agree?
       python tools/repository.py set OWNER/NAME [BRANCH]  change it everywhere

The place is `[tool.rectutor]` in `pyproject.toml`. README, `_config.yml`, `CITATION.cff`, the pages
and the notebooks repeat it, since each must stand alone.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: Files that must name the repository.
REQUIRED = ("README.md", "_config.yml", "CITATION.cff", "notebooks/*.py", "notebooks/*.ipynb")
#: Files that may.
OPTIONAL = ("book/*.md", "book/**/*.py", "rectutor/*.py", "CONTRIBUTING.md", "SECURITY.md")

#: The first code cell of every chapter, after its cell marker.
BOOTSTRAP = """\
import importlib.util
import os
import subprocess
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported
if "ipykernel" in sys.modules and importlib.util.find_spec("rectutor") is None:
    package = "rectutor @ git+https://github.com/{slug}@{branch}"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

from rectutor import chapter

chapter.prepare_process()  # before NumPy and Keras are imported"""


def repository() -> tuple[str, str]:
    """The repository (`owner/name`) and its branch."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    chosen = settings["tool"]["rectutor"]
    return chosen["repository"], chosen["branch"]


def bootstrap() -> str:
    """The bootstrap cell as it stands in every chapter."""
    slug, branch = repository()
    return BOOTSTRAP.format(slug=slug, branch=branch)


def files(patterns: tuple[str, ...]) -> list[Path]:
    """The files of the tree that match, in a fixed order."""
    return sorted({path for pattern in patterns for path in ROOT.glob(pattern)})


def problems() -> list[str]:
    """What does not agree, one line each; empty when all is well."""
    slug, branch = repository()
    found = []
    for path in files(REQUIRED):
        if f"github.com/{slug}" not in path.read_text(encoding="utf-8"):
            found.append(f"{path.relative_to(ROOT)} does not name github.com/{slug}")
    name = slug.partition("/")[2]
    mention = re.compile(rf"github\.com/([\w.-]+/{re.escape(name)})(?![\w-])")
    blob = re.compile(rf"(?:github/{re.escape(slug)}/blob|{re.escape(slug)}/tree)/([\w.-]+)")
    install = re.compile(rf"git\+https://github\.com/{re.escape(slug)}@([\w./-]+)")
    for path in files(REQUIRED + OPTIONAL):
        text = path.read_text(encoding="utf-8")
        place = path.relative_to(ROOT)
        found += [f"{place} names {other}" for other in set(mention.findall(text)) if other != slug]
        branches = set(blob.findall(text)) | set(install.findall(text))
        found += [f"{place} names branch {other}" for other in branches if other != branch]
    return found


def change(slug: str, branch: str) -> list[Path]:
    """Put another repository and branch everywhere; returns the files that changed."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", slug):
        raise SystemExit(f"SLUG is {slug!r}; give owner/name, as in make repository SLUG=me/mybook")
    old_slug, old_branch = repository()
    old_owner, old_name = old_slug.split("/")
    owner, name = slug.split("/")
    changed = []
    for path in files((*REQUIRED, *OPTIONAL, "pyproject.toml")):
        text = path.read_text(encoding="utf-8")
        new = text
        new = new.replace(f"{old_slug}@{old_branch}", f"{slug}@{branch}")
        new = new.replace(f"{old_slug}/blob/{old_branch}", f"{slug}/blob/{branch}")
        new = new.replace(f"{old_slug}/tree/{old_branch}", f"{slug}/tree/{branch}")
        new = new.replace(f"github.com/{old_slug}", f"github.com/{slug}")
        new = new.replace(f"github/{old_slug}", f"github/{slug}")
        new = new.replace(f"{old_owner}.github.io/{old_name}", f"{owner}.github.io/{name}")
        if path.name == "pyproject.toml":
            new = new.replace(f'repository = "{old_slug}"', f'repository = "{slug}"')
            new = new.replace(f'branch = "{old_branch}"', f'branch = "{branch}"')
        if path.name == "_config.yml":
            new = re.sub(rf"(branch\s*:\s*){re.escape(old_branch)}\b", rf"\g<1>{branch}", new)
        if new != text:
            path.write_text(new, encoding="utf-8")
            changed.append(path)
    return changed


def main() -> int:
    """Run the command line; 0 when every file agrees."""
    command, *rest = sys.argv[1:] or ["check"]
    if command == "set" and rest:
        branch = rest[1] if len(rest) > 1 else repository()[1]
        for path in change(rest[0], branch):
            print(f"changed {path.relative_to(ROOT)}")
    elif command != "check":
        print(__doc__)
        return 2
    found = problems()
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
