"""Keep the README's table of chapters at what the chapters last measured.

usage: python -m tools.readme write   put the figures of results/*.json into README.md
       python -m tools.readme check   exit 1 if README.md shows other figures
"""

from __future__ import annotations

import sys

from rectutor import results
from tools import book

sys.path.insert(0, str(book.ROOT / "book" / "_ext"))
from book_results import BEST, UNITS, format_best

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def table() -> str:
    """The table of chapters in Markdown, from the stored results."""
    lines = [
        f"| Chapter | Measured in | {' | '.join(BEST)} |",
        f"|---|---|{'---|' * len(BEST)}",
    ]
    runs = set()
    for name, chapter in book.registry().items():
        file = book.RESULTS / f"{name}.json"
        if chapter.get("reads") or not file.is_file():
            continue
        record, metric = results.read(file), chapter["metric"]
        cells = [format_best(record, recipe, metric) for recipe in BEST.values()]
        title = f"[{chapter['title']}](notebooks/{name}.ipynb)"
        lines.append(f"| {title} | {UNITS[metric]} | {' | '.join(cells)} |")
        data, profile, device = record["data"]["name"], record["profile"], record["device"]
        runs.add(f"MovieLens {data} ({profile} profile, {device})")
    lines += ["", f"Measured on {'; '.join(sorted(runs))}; 95 % bootstrap intervals in brackets."]
    return "\n".join(lines)


def main() -> int:
    """Run the command line; 0 when README.md shows what the results say."""
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
