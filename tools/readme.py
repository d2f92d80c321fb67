"""Keep the README's table of chapters at what the chapters last measured.

usage: python tools/readme.py write   put the figures of results/*.json into README.md
       python tools/readme.py check   exit 1 if README.md shows other figures
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rectutor import results

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"

#: Chapter, its title, and the metric its headline is told in.
CHAPTERS = (
    ("ranking", "Ranking", "rmse_stars"),
    ("retrieval", "Retrieval", "ndcg"),
    ("gru4rec", "GRU4Rec", "ndcg"),
    ("sasrec", "SASRec", "ndcg"),
    ("multi_task", "Multi-task", "ndcg"),
)
UNITS = {"rmse_stars": "RMSE, stars (lower is better)", "ndcg": "NDCG@10 (higher is better)"}


def best(record: dict[str, Any], recipe: str, metric: str) -> str:
    """The best value of a metric among the models of one recipe, as the table shows it."""
    protocol = "rating" if metric.startswith("rmse") else "leave-one-out"
    values = [
        entry["metrics"][metric]
        for entry in record["models"]
        if (entry["recipe"], entry["protocol"]) == (recipe, protocol) and metric in entry["metrics"]
    ]
    if not values:
        return ""
    choose = min if metric.startswith("rmse") else max
    chosen = choose(values, key=lambda interval: interval["value"])
    if chosen["low"] is None:
        return f"{chosen['value']:.3f}"
    return f"{chosen['value']:.3f} [{chosen['low']:.3f}, {chosen['high']:.3f}]"


def table() -> str:
    """The table of chapters in Markdown, from the stored results."""
    stored = results.read_all([name for name, _, _ in CHAPTERS], ROOT / "results")
    lines = [
        "| Chapter | Measured in | As documented | Made right | Best baseline |",
        "|---|---|---|---|---|",
    ]
    for name, title, metric in CHAPTERS:
        if name not in stored:
            continue
        cells = [best(stored[name], recipe, metric) for recipe in ("documented", "made right")]
        cells.append(best(stored[name], "baseline", metric))
        lines.append(
            f"| [{title}](notebooks/{name}.ipynb) | {UNITS[metric]} | {' | '.join(cells)} |"
        )
    runs = sorted(
        {
            f"MovieLens {record['data']['name']} ({record['profile']} profile, {record['device']})"
            for record in stored.values()
        }
    )
    lines += ["", f"Measured on {'; '.join(runs)}; 95 % bootstrap intervals in brackets."]
    return "\n".join(lines)


def updated(text: str) -> str:
    """The README with the table in place."""
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"README.md lacks the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> int:
    """Run the command line; 0 when README.md shows what the results say."""
    text = README.read_text(encoding="utf-8")
    wanted = updated(text)
    if sys.argv[1:] == ["write"]:
        README.write_text(wanted, encoding="utf-8")
        return 0
    if text != wanted:
        print("README.md shows older figures: run `python tools/readme.py write`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
