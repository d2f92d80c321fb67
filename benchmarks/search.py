"""What the search of a catalogue costs: exact, and by an approximate index.

usage: python -m benchmarks.search [ITEMS ...]      2,000, 20,000 and 100,000 when none is given

The vectors are made up, in clusters, as those of a trained model are; the queries lie near some of
them. An approximate index looks further and further, until it finds 95 % of what the exact search
does for one half of the queries; it is timed on the other half, one query at a time: the median of
the fastest of some rounds. Stored in `results/search.json`.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from benchmarks.measure import RESULTS, seconds_of, store_rows
from benchmarks.scaling import when_and_where
from rectutor import artefact, load

FILE = RESULTS / "search.json"
WIDTH = 64  # numbers a vector
FOUND = 50  # items a query asks for
QUERIES = 400
ROUNDS = 5
GOAL = 0.95  # of the exact answer
#: An index to what FAISS calls it, for a number of clusters, and to how its effort is set.
INDEXES = {
    "exact": ("Flat", ""),
    "clusters (IVF)": ("IVF{clusters},Flat", "nprobe"),
    "graph (HNSW)": ("HNSW32,Flat", "efSearch"),
}


def vectors(items: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Items `(items + 1, WIDTH)`, of which row 0 is padding, and queries `(QUERIES, WIDTH)`."""
    rng = np.random.default_rng([seed, items])
    centres = rng.normal(size=(math.isqrt(items), WIDTH))
    made = centres[rng.integers(len(centres), size=items + 1)]
    made = made + 0.7 * rng.normal(size=made.shape)
    queries = made[1 + rng.choice(items, QUERIES, replace=False)]
    queries = queries + 0.7 * rng.normal(size=queries.shape)
    return made.astype("float32"), queries.astype("float32")


def measured(name: str, items: np.ndarray, queries: np.ndarray) -> dict[str, Any]:
    """The row of one index.

    Raises:
        RuntimeError: it does not reach `GOAL`, however far it looks.
    """
    kind, effort = INDEXES[name]
    kind = kind.format(clusters=math.isqrt(len(items)))
    tried, asked = queries[::2], queries[1::2]
    parameters = ""
    index = None

    def build() -> None:
        nonlocal index
        index = artefact.build_index(items, kind)

    seconds = seconds_of(build)
    assert index is not None
    if effort:
        import faiss

        for power in range(12):
            parameters = f"{effort}={2**power}"
            faiss.ParameterSpace().set_index_parameters(index, parameters)
            if artefact.recall(index, items, tried, FOUND) >= GOAL:
                break
        else:
            raise RuntimeError(f"{name} does not find {GOAL:.0%} of what the exact search does")
    # the least disturbed round: others share the machine
    rounds = [
        load.milliseconds(lambda q: index.search(q, FOUND), asked[:, None]) for _ in range(ROUNDS)
    ]
    return {
        "items": len(items) - 1,
        "index": name,
        "setting": f"{kind} {parameters}".strip(),
        "recall": round(artefact.recall(index, items, asked, FOUND), 4),
        "ms": round(min(rounds), 4),
        "build_seconds": round(seconds, 2),
        "found": FOUND,
        "goal": GOAL,
    }


def main(arguments: list[str]) -> int:
    """Measure and store."""
    rows = []
    for size in map(int, arguments or ["2000", "20000", "100000"]):
        items, queries = vectors(size)
        for name in INDEXES:
            rows.append(measured(name, items, queries) | when_and_where())
            print(rows[-1], flush=True)
    store_rows(rows, FILE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
