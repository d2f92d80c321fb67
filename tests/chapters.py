"""The chapters as the tests see them: their files, and their classes and functions."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # a script beside this file, and not pytest
    sys.path.insert(0, str(ROOT))

from tools.book import NOTEBOOKS, chapters, definitions, models, registry  # noqa: E402

__all__ = ["NOTEBOOKS", "ROOT", "chapters", "definitions", "models", "names", "registry"]

names = chapters
