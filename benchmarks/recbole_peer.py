"""RecBole's sequential models on MovieLens 100K: seconds until validation NDCG@10 reaches a goal.

Runs in an environment of its own, see `peers.sh`. Data, model and training settings are those that
RecBole 1.2.1 ships; `SETTINGS` is what has to be said besides.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS, ROOT, finish, in_child, machine, store

GOAL = 0.065  # validation NDCG@10, seen movies not excluded; ours is timed to the same
MODELS = ("SASRec", "GRU4Rec")
VERSIONS = ("recbole", "torch", "numpy", "pandas", "scipy")

SETTINGS = {
    # the catalogue is ranked for each user's last but one interaction; the last one is the test
    "eval_args": {
        "split": {"LS": "valid_and_test"},
        "order": "TO",
        "group_by": "user",
        "mode": "full",
    },
    "repeatable": True,  # seen movies compete, RecBole's own setting for sequential models
    "metrics": ["NDCG", "Hit"],
    "topk": [10],
    "valid_metric": "NDCG@10",
    "metric_decimal_place": 6,
    "train_neg_sample_args": None,  # the default loss is a softmax over the catalogue
    "show_progress": False,
    "use_gpu": False,
}
#: The defaults that decide the cost, told in the results.
TOLD = (
    "loss_type",
    "train_batch_size",
    "eval_batch_size",
    "MAX_ITEM_LIST_LENGTH",
    "learner",
    "learning_rate",
    "epochs",
    "eval_step",
    "stopping_step",
    "seed",
    "n_layers",
    "n_heads",
    "hidden_size",
    "inner_size",
    "embedding_size",
    "hidden_dropout_prob",
    "attn_dropout_prob",
    "dropout_prob",
)


class EnoughError(Exception):
    """The goal is reached or the time is up."""


def train(name: str, cap_seconds: float) -> dict[str, Any]:
    """Train one model until the goal or the cap; what happened, epoch by epoch."""
    import recbole
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    logging.getLogger().setLevel(logging.WARNING)
    folder = Path(recbole.__file__).parent / "dataset_example"
    config = Config(
        model=name, dataset="ml-100k", config_dict={**SETTINGS, "data_path": str(folder)}
    )
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train_data, valid_data, _ = data_preparation(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, train_data.dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)

    curve: list[dict[str, float]] = []
    evaluating = 0.0
    evaluate = trainer._valid_epoch
    started = time.perf_counter()

    def evaluate_and_note(*arguments: Any, **named: Any) -> Any:
        nonlocal evaluating
        began = time.perf_counter()
        score, result = evaluate(*arguments, **named)
        now = time.perf_counter()
        evaluating += now - began
        curve.append(
            {
                "epoch": len(curve) + 1,
                "seconds": round(now - started, 2),
                "training_seconds": round(now - started - evaluating, 2),
                "ndcg": float(result["ndcg@10"]),
                "hit_rate": float(result["hit@10"]),
            }
        )
        print(name, curve[-1], flush=True)
        if score >= GOAL or now - started >= cap_seconds:
            raise EnoughError
        return score, result

    trainer._valid_epoch = evaluate_and_note
    ended = "stopped by itself"
    try:
        trainer.fit(train_data, valid_data, saved=False, show_progress=False, verbose=False)
    except EnoughError:
        ended = "goal" if curve[-1]["ndcg"] >= GOAL else "cap"
    return {
        "model": name,
        "ended": ended,
        "settings": {key: config[key] for key in TOLD if config[key] is not None},
        "training_rows": len(train_data.dataset),
        "curve": curve,
    }


def main() -> None:
    """Train the models, each in a process of its own, and write the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cap-minutes", type=float, default=15, help="a model may take (15)")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--child", choices=MODELS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)  # RecBole leaves logs and checkpoints where it runs
            found = train(chosen.child, 60 * chosen.cap_minutes)
            os.chdir(ROOT)
        finish(found)
        return
    found = []
    for name in chosen.models:
        print(f"{name}: until validation NDCG@10 is {GOAL}, or {chosen.cap_minutes:g} minutes")
        one, peak = in_child(
            "benchmarks.recbole_peer",
            "--child",
            name,
            "--cap-minutes",
            chosen.cap_minutes,
            timeout=60 * chosen.cap_minutes + 600,
        )
        found.append({**one, "peak_mib": peak})
        last = one["curve"][-1]
        print(
            f"  ended by: {one['ended']}; epoch {last['epoch']}, {last['seconds']:.0f} s, "
            f"NDCG@10 {last['ndcg']:.4f}"
        )
    results = {
        "machine": machine() | {"versions": {name: metadata.version(name) for name in VERSIONS}},
        "goal": GOAL,
        "cap_minutes": chosen.cap_minutes,
        "told": {key: value for key, value in SETTINGS.items() if key != "show_progress"},
        "models": found,
    }
    file = store(results, chosen.output / f"peers-{datetime.date.today().isoformat()}.json")
    print(f"results: {file.name}")


if __name__ == "__main__":
    main()
