"""Keep book/reliability.md at what the tests counted.

usage: python tools/reliability.py write   put the counts of _build/reliability.json into the page
       python tools/reliability.py check   exit 1 if the page shows other counts

`make unit` (and so `make test`) writes `_build/reliability.json` as it runs.
"""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "book" / "reliability.md"
COUNTS = ROOT / "_build" / "reliability.json"
BEGIN, END = "<!-- counts: begin -->", "<!-- counts: end -->"

KINDS = {
    "fault": ("Faults injected", "fault", "times injected"),
    "bad_input": ("Bad and odd inputs", "what must hold", "cases"),
    "property_test": ("Laws on generated examples", "law", "tests"),
}


def sentence(test: str) -> str:
    """A test's name as words."""
    words = test.removeprefix("test_").replace("_", " ")
    return words[:1].upper() + words[1:]


def tables(rows: list[dict[str, object]]) -> str:
    """The counts as one Markdown table a kind of test."""
    parts = []
    for kind, (title, what, unit) in KINDS.items():
        chosen = sorted(
            (row for row in rows if row["kind"] == kind), key=lambda row: str(row["module"])
        )
        total = sum(int(str(row["passed"])) + int(str(row["failed"])) for row in chosen)
        failed = sum(int(str(row["failed"])) for row in chosen)
        parts += [f"## {title}", ""]
        parts += [f"{total:,} in all, of which {failed:,} failed.", ""]
        parts += [f"| where | {what} | {unit} |", "|---|---|---|"]
        for module, group in groupby(chosen, key=lambda row: str(row["module"])):
            for number, row in enumerate(sorted(group, key=lambda row: str(row["test"]))):
                count = int(str(row["passed"])) + int(str(row["failed"]))
                place = f"`tests/{module}.py`" if number == 0 else ""
                parts.append(f"| {place} | {sentence(str(row['test']))} | {count} |")
        parts.append("")
    return "\n".join(parts)


def main() -> int:
    """Run the command line; 0 when the page shows what the tests counted."""
    if not COUNTS.is_file():
        print(f"{COUNTS.relative_to(ROOT)} is missing: `make unit` writes it", file=sys.stderr)
        return 1
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    counted = tables(json.loads(COUNTS.read_text(encoding="utf-8")))
    wanted = f"{before}{BEGIN}\n\n{counted}\n{END}{after}"
    if sys.argv[1:] == ["write"]:
        PAGE.write_text(wanted, encoding="utf-8")
    elif text != wanted:
        print(
            "book/reliability.md shows other counts than this run: "
            "`python tools/reliability.py write` puts them in",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
