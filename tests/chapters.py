"""The chapters as the tests see them: their files, and their classes and functions."""

import ast
import functools
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"

sys.path.insert(0, str(ROOT / "tools"))
import book  # noqa: E402

_DEFINITIONS = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef)


def names() -> list[str]:
    """Every chapter, in the order of the table of contents."""
    return book.chapters()


@functools.cache
def definitions(name: str) -> types.SimpleNamespace:
    """A chapter's imports, classes, functions and upper-case constants, without the rest of it.

    The model contracts run on these, so a class or function of a chapter may lean on its
    arguments, on imports and on such constants only.
    """
    source = NOTEBOOKS / f"{name}.py"
    tree = ast.parse(source.read_text(encoding="utf-8"), filename=str(source))
    tree.body = [node for node in tree.body if isinstance(node, _DEFINITIONS) or _is_constant(node)]
    # a real module, so that Keras can save and load the chapter's classes by name
    module = types.ModuleType(f"chapter_{name}")
    module.__file__ = str(source)
    sys.modules[module.__name__] = module
    exec(compile(tree, str(source), "exec"), module.__dict__)
    return types.SimpleNamespace(**module.__dict__)


def _is_constant(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and all(
        isinstance(target, ast.Name) and target.id.isupper() for target in node.targets
    )
