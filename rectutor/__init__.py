"""Shared helpers of the rectutor book: data, fair evaluation, baselines, sequences, results.

Importing the package is cheap: submodules load when they are first used, and none of them
imports Keras, JAX, TensorFlow or PyTorch before it needs them.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

#: The id that stands for "no user" and "no movie"; real ids start at 1.
PADDING_ID = 0

_SUBMODULES = (
    "artefact",
    "baselines",
    "batches",
    "bucketing",
    "chapter",
    "chunked_softmax",
    "data",
    "display",
    "evaluation",
    "first_minute",
    "load",
    "own_table",
    "ratings",
    "repeats",
    "results",
    "sequences",
    "serve",
    "splits",
    "study",
    "training",
    "widget",
)

__all__ = ["PADDING_ID", "__version__"]


def __getattr__(name: str) -> ModuleType:
    """Import a submodule on first use, so that `rectutor.data` works after `import rectutor`."""
    if name in _SUBMODULES:
        return importlib.import_module(f"rectutor.{name}")
    raise AttributeError(f"module 'rectutor' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES])
