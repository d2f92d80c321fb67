"""Which repository the book is published from, and which edition this tree is: said in one place.

usage: python -m tools.repository check                    does every file agree?
       python -m tools.repository set OWNER/NAME [BRANCH]  publish from elsewhere
       python -m tools.repository edition X.Y.Z            name the tag vX.Y.Z everywhere
       python -m tools.repository development              name the branch again
       python -m tools.repository tag vX.Y.Z               is this tree that tag's edition?

The place is `[tool.rectutor]` in `pyproject.toml`: `repository`, the `branch` that development
happens on, and the `ref` (that branch, or an edition's tag) that installs, links and the book's
buttons name. README, `_config.yml`, `CITATION.cff`, the pages and the notebooks repeat it, since
each must stand alone. None of it changes what a chapter computes, so nothing is executed again.
"""

from __future__ import annotations

import datetime
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: Files that must name the repository.
REQUIRED = ("README.md", "_config.yml", "CITATION.cff", "notebooks/*.py", "notebooks/*.ipynb")
#: Files that may.
OPTIONAL = (
    "book/*.md",
    "book/**/*.py",
    "rectutor/*.py",
    "colab/*.ipynb",
    "CONTRIBUTING.md",
    "SECURITY.md",
)

#: The first code cell of every chapter, after its cell marker.
BOOTSTRAP = """\
import importlib.util
import os
import subprocess
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported
if "ipykernel" in sys.modules and importlib.util.find_spec("rectutor") is None:
    package = "rectutor @ git+https://github.com/{slug}@{ref}"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)"""


def settings() -> dict[str, str]:
    """`repository` (`owner/name`), `branch` and `ref`."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return dict(tomllib.loads(text)["tool"]["rectutor"])


def version() -> str:
    """The package's version."""
    text = (ROOT / "rectutor" / "__init__.py").read_text(encoding="utf-8")
    return re.findall(r'^__version__ = "(.+)"', text, re.MULTILINE)[0]


def bootstrap() -> str:
    """The bootstrap cell as it stands in every chapter."""
    here = settings()
    return BOOTSTRAP.format(slug=here["repository"], ref=here["ref"])


def files(*patterns: str) -> list[Path]:
    """The files of the tree that match, in a fixed order."""
    return sorted({path for pattern in patterns for path in ROOT.glob(pattern)})


def problems() -> list[str]:
    """What does not agree, one line each; empty when all is well."""
    here = settings()
    slug, ref = here["repository"], here["ref"]
    found = [
        f"{path.relative_to(ROOT)} does not name github.com/{slug}"
        for path in files(*REQUIRED)
        if f"github.com/{slug}" not in path.read_text(encoding="utf-8")
    ]
    if ref not in (here["branch"], f"v{version()}"):
        found.append(f"pyproject.toml names {ref}, but the package is {version()}")
    mentions = {
        "": re.compile(rf"github\.com/([\w.-]+/{re.escape(slug.partition('/')[2])})(?![\w-])"),
        "ref ": re.compile(
            rf"(?:github/{re.escape(slug)}/blob/|{re.escape(slug)}/tree/"
            rf"|git\+https://github\.com/{re.escape(slug)}@)([\w.-]+)"
        ),
        "branch ": re.compile(r"^  branch: (\S+)", re.MULTILINE),
        "edit branch ": re.compile(r"^    edit_branch: (\S+)", re.MULTILINE),
    }
    wanted = {"": slug, "ref ": ref, "branch ": ref, "edit branch ": here["branch"]}
    for path in files(*REQUIRED, *OPTIONAL):
        text = path.read_text(encoding="utf-8")
        for kind, pattern in mentions.items():
            if kind.endswith("branch ") and path.name != "_config.yml":
                continue
            others = {*pattern.findall(text)} - {wanted[kind]}
            found += [f"{path.relative_to(ROOT)} names {kind}{other}" for other in sorted(others)]
    if f"version: {version()}\n" not in (ROOT / "CITATION.cff").read_text(encoding="utf-8"):
        found.append(f"CITATION.cff names another version than the package's {version()}")
    return found


def change(new: dict[str, str], new_version: str | None = None) -> list[Path]:
    """Put another repository, branch, ref or version everywhere.

    Args:
        new: see `settings`; what it lacks stays as it is.
        new_version: the package's version, if that changes too.

    Returns:
        The files that changed.
    """
    old = settings()
    new = old | new
    (owner, name), (old_owner, old_name) = (one["repository"].split("/") for one in (new, old))
    slug, old_slug, ref, old_ref = new["repository"], old["repository"], new["ref"], old["ref"]
    replaced = {
        f"{old_slug}@{old_ref}": f"{slug}@{ref}",
        f"{old_slug}/blob/{old_ref}": f"{slug}/blob/{ref}",
        f"{old_slug}/tree/{old_ref}": f"{slug}/tree/{ref}",
        f"github.com/{old_slug}": f"github.com/{slug}",
        f"github/{old_slug}": f"github/{slug}",
        f"{old_owner}.github.io/{old_name}": f"{owner}.github.io/{name}",
    }
    special = {
        "pyproject.toml": {f'\n{key} = "{old[key]}"': f'\n{key} = "{new[key]}"' for key in old},
        "_config.yml": {
            f"\n  branch: {old_ref}\n": f"\n  branch: {ref}\n",
            f" edit_branch: {old['branch']}\n": f" edit_branch: {new['branch']}\n",
        },
    }
    if new_version:
        special["__init__.py"] = {f'__version__ = "{version()}"': f'__version__ = "{new_version}"'}
        special["CITATION.cff"] = {f"version: {version()}\n": f"version: {new_version}\n"}
    changed = []
    for path in files(*REQUIRED, *OPTIONAL, "pyproject.toml"):
        text = before = path.read_text(encoding="utf-8")
        for this, that in (replaced | special.get(path.name, {})).items():
            text = text.replace(this, that)
        if path.name == "CITATION.cff" and new_version:
            today = datetime.date.today().isoformat()
            text = re.sub(r"(?m)^(date-released: ).*", rf"\g<1>{today}", text)
        if text != before:
            path.write_text(text, encoding="utf-8", newline="\n")
            changed.append(path)
    return changed


def main() -> int:
    """Run the command line; 0 when every file agrees."""
    command, *rest = sys.argv[1:] or ["check"]
    found: list[str] = []
    if command == "set" and rest and re.fullmatch(r"[\w.-]+/[\w.-]+", rest[0]):
        branch = rest[1] if len(rest) > 1 else settings()["branch"]
        changed = change({"repository": rest[0], "branch": branch, "ref": branch})
    elif command == "edition" and rest and re.fullmatch(r"\d+\.\d+\.\d+", rest[0]):
        changed = change({"ref": f"v{rest[0]}"}, rest[0])
    elif command == "development":
        changed = change({"ref": settings()["branch"]})
    elif command == "tag" and rest:
        changed = []
        if rest[0] != f"v{version()}" or rest[0] != settings()["ref"]:
            found.append(
                f"the tag is {rest[0]}, but the package is {version()} and the pages name "
                f"{settings()['ref']}: `make edition VERSION=x.y.z` before tagging vx.y.z"
            )
    elif command == "check":
        changed = []
    else:
        print(__doc__)
        return 2
    for path in changed:
        print(f"changed {path.relative_to(ROOT)}")
    found += problems()
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
