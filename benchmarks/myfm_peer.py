"""myFM's factorization machine, sampled by Gibbs, on the splits of the ranking chapter's study.

Runs in an environment of its own, see `peers.sh`. Two ids are all it is given; rank, samples and
priors are those of myFM's own first example (https://myfm.readthedocs.io).
"""

from __future__ import annotations

import argparse
import datetime
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS, machine, store
from rectutor.data import load_movielens
from rectutor.ratings import rmse
from rectutor.splits import random_split

RANK, SAMPLES, RUNS = 10, 200, 5
VERSIONS = ("myfm", "numpy", "pandas", "scipy")


def stars_off(learn: Any, test: Any, sizes: tuple[int, int], seed: int) -> dict[str, float]:
    """RMSE in stars on `test` of a machine that learned from `learn`, and the seconds it took."""
    import myfm
    from scipy import sparse

    def one_hot(frame: Any) -> Any:
        columns = zip(("user_id", "movie_id"), sizes, strict=True)
        parts = [sparse.eye(size + 1, format="csr")[frame[name]] for name, size in columns]
        return sparse.hstack(parts, format="csr")

    started = time.perf_counter()
    model = myfm.MyFMRegressor(rank=RANK, random_seed=seed)
    ratings = learn["rating"].to_numpy(float)
    model.fit(one_hot(learn), ratings, n_iter=SAMPLES, n_kept_samples=SAMPLES)
    said = model.predict(one_hot(test)).clip(1, 5)
    seconds = time.perf_counter() - started
    error = rmse(said, test["rating"], test["user_id"]).value
    return {"seed": seed, "rmse": round(error, 4), "seconds": round(seconds, 1)}


def main() -> None:
    """Learn on the random split with several seeds, and once on each of GroupLens's folds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    data = load_movielens("100k")
    if data.name != "100k":
        raise SystemExit(f"error: MovieLens 100K is needed; there is only {data.name}")
    sizes = data.num_users, data.num_movies
    split = random_split(data, test_fraction=0.2, seed=42)
    found: dict[str, list[dict[str, float]]] = {"random split": [], "five folds": []}
    fifth = len(data.ratings) // 5
    for number in range(1, RUNS + 1):
        test = data.ratings.iloc[fifth * (number - 1) : fifth * number]
        whole = {"random split": (split.train, split.test)}
        whole["five folds"] = (data.ratings.drop(test.index), test)
        for name, parts in whole.items():
            found[name].append(stars_off(*parts, sizes, number))
            print(name, found[name][-1], flush=True)
    run = {
        "machine": machine() | {"versions": {name: metadata.version(name) for name in VERSIONS}},
        "rank": RANK,
        "samples": SAMPLES,
        "runs": found,
    }
    file = store(run, chosen.output / f"myfm-{datetime.date.today().isoformat()}.json")
    print(f"results: {file.name}")


if __name__ == "__main__":
    main()
