"""Keep the README's table of chapters at what the study found.

usage: python -m tools.readme write   put the figures of the study into README.md
       python -m tools.readme check   exit 1 if README.md shows other figures
"""

from __future__ import annotations

import sys

from rectutor import study
from tools import book

sys.path.insert(0, str(book.ROOT / "book" / "_ext"))
from book_results import HEADLINES, UNITS, headline

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def table() -> str:
    """The table of chapters in Markdown, from the study."""
    found = study.read()
    lines = [
        f"| Chapter | Measured in | {' | '.join(HEADLINES)} |",
        f"|---|---|{'---|' * len(HEADLINES)}",
    ]
    for name, chapter in book.registry().items():
        if chapter.get("reads"):
            continue
        figures = headline(found, chapter)
        cells = [figures.get(heading, "") for heading in HEADLINES]
        title = f"[{chapter['title']}](notebooks/{name}.ipynb)"
        lines.append(f"| {title} | {UNITS[chapter['metric']]} | {' | '.join(cells)} |")
    lines += [
        "",
        "Means over the runs of the study on MovieLens 100K (`make study`), each with its seed and "
        "its order of ties in time; in brackets 95 % intervals over users and runs.",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the command line; 0 when README.md shows what the study says."""
    readme = book.ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"README.md lacks the lines {BEGIN} and {END}")
    wanted = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if sys.argv[1:] == ["write"]:
        readme.write_text(wanted, encoding="utf-8", newline="\n")
        return 0
    if text != wanted:
        print("README.md shows older figures: run `python -m tools.readme write`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
