# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Leaderboard: every model under one protocol
#
# After this page you will be able to
#
# - read off how far each documented recipe, each model made right and each baseline gets,
# - tell a difference from noise with the interval beside every figure,
# - see what a figure was measured on: data, source, device, versions, seed.
#
# No figure of ours is typed in on this page. Each chapter stores what it measured in
# a results file, and the cells below read those files: the ones of your own runs where there are any,
# else those that come with the book. The models go back to the Keras
# Recommenders examples {cite}`sharma2025keras`; the protocol is that of [Evaluation](../book/evaluation.md).

# %% tags=["bootstrap", "hide-cell"]
import importlib.util
import os
import subprocess
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported
if "ipykernel" in sys.modules and importlib.util.find_spec("rectutor") is None:
    package = "rectutor @ git+https://github.com/rectutor/rectutor@main"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %%
import matplotlib.pyplot as plt
import pandas as pd

from rectutor import chapter, results

run = chapter.start("leaderboard")

# %% [markdown]
# ## What was measured, on what
#
# First the conditions. Figures may be compared where the data set agrees; the seconds also depend on
# the device.

# %%
stored = results.read_all()
conditions = pd.DataFrame(
    {
        "chapter": name,
        "profile": record["profile"],
        "data": record["data"]["name"],
        "source": record["data"]["source"],
        "ratings": f"{record['data']['num_ratings']:,}",
        "backend": f"{record['backend']} {record['versions'].get(record['backend'], '')}".strip(),
        "keras": record["versions"]["keras"],
        "device": record["device"],
        "seed": record["seed"],
    }
    for name, record in stored.items()
)
run.show_table(conditions)

# %% [markdown]
# A file of another layout is refused rather than misread. Here is one that claims a recipe the
# schema does not know:

# %% tags=["nbval-check-output"]
odd = {"model": "Oracle", "recipe": "magic", "protocol": "leave-one-out", "metrics": {"ndcg": 1.0}}
empty = {"schema": results.SCHEMA, "chapter": "toy", "profile": "quick", "seed": 42, "facts": {}}
empty |= {"backend": "jax", "device": "CPU", "versions": {}, "models": [odd | {"seconds": 0.0}]}
empty["data"] = {"name": "toy", "source": "here", "num_users": 1, "num_movies": 1, "num_ratings": 1}
try:
    results.check(empty, "toy.json")
except ValueError as error:
    print(error)

# %% [markdown]
# ## Top-ten recommendation
#
# All models and baselines under the same rules: each user's last movie held out, all movies of the
# catalogue competing, those already seen left out, 95 % bootstrap intervals over users. Every
# chapter measures the same baselines; they stand here once.


# %%
def entries(stored, protocol):
    """One row a model and data set: chapter, recipe, metrics, seconds; baselines once."""
    rows = []
    for name, record in stored.items():
        for entry in record["models"]:
            if entry["protocol"] == protocol:
                data = record["data"]["name"]
                rows.append({"chapter": name, "data": data, "device": record["device"], **entry})
    frame = pd.DataFrame(
        rows, columns=["chapter", "data", "device", "model", "recipe", "metrics", "seconds"]
    )
    repeated = (frame["recipe"] == "baseline") & frame.duplicated(["data", "model", "recipe"])
    return frame[~repeated].reset_index(drop=True)


def with_interval(metric):
    """`0.208 [0.183, 0.234]`, or the value alone where no interval was stored."""
    if not isinstance(metric, dict):
        return ""
    if metric["low"] is None:
        return f"{metric['value']:.3f}"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


top = entries(stored, "leave-one-out")
top["ndcg"] = [metrics["ndcg"]["value"] for metrics in top["metrics"]]
top = top.sort_values(["data", "ndcg"], ascending=[True, False], ignore_index=True)
table = top[["data", "model", "recipe", "chapter"]].copy()
for key, title in {
    "hit_rate": "HR@10",
    "ndcg": "NDCG@10",
    "mrr": "MRR@10",
    "coverage": "coverage@10",
}.items():
    table[title] = [with_interval(metrics.get(key)) for metrics in top["metrics"]]
table["seconds"] = [f"{s:.0f}" if pd.notna(s) else "" for s in top["seconds"]]
run.show_table(table)

# %% [markdown]
# The picture shows the same NDCG@10 with its interval. Where two intervals overlap widely, the order
# of the two is not settled by this data; the chapters test the pairs that matter.

# %% mystnb={"image": {"alt": "Dot plot of NDCG at 10 with 95 percent intervals, one row a model, best at the top, coloured by whether the model is documented, made right, a step between or a baseline."}}
shown = top.iloc[::-1].reset_index(drop=True)
figure, axes = plt.subplots(figsize=(7.0, 0.9 + 0.27 * len(shown)))
colours = {"documented": "C1", "made right": "C0", "step": "C5", "baseline": "0.35"}
for recipe, colour in colours.items():
    rows = shown[shown["recipe"] == recipe]
    if rows.empty:
        continue
    ends = [
        [m["ndcg"][end] or m["ndcg"]["value"] for m in rows["metrics"]] for end in ("low", "high")
    ]
    spread = [rows["ndcg"] - ends[0], ends[1] - rows["ndcg"]]
    axes.errorbar(
        rows["ndcg"], rows.index, xerr=spread, fmt="o", color=colour, label=recipe, capsize=2
    )
several = shown["data"].nunique() > 1
labels = [
    f"{m} ({d})" if several else m for m, d in zip(shown["model"], shown["data"], strict=True)
]
axes.set_yticks(range(len(shown)), labels)
axes.set(xlabel="NDCG@10 (higher is better)", ylim=(-0.7, len(shown) - 0.3), xlim=(0, None))
axes.legend(loc="lower right")
run.show(figure, "ndcg")

# %% [markdown]
# ## Beside published figures
#
# The literature reports SASRec and its relatives on the 1M data set, ranked against the full
# catalogue. These figures are typed in, each with its source; ours join them where a chapter ran on
# `1m` (the `full` profile).

# %% tags=["nbval-check-output"]
PUBLISHED = pd.DataFrame(
    [
        ("SASRec, binary cross-entropy", 0.2500, 0.1341, "Klenitskiy and Vasilev, RecSys 2023"),
        (
            "SASRec, softmax over the catalogue",
            0.3152,
            0.1821,
            "Klenitskiy and Vasilev, RecSys 2023",
        ),
        ("SASRec, 3,000 sampled negatives", 0.3159, 0.1857, "Klenitskiy and Vasilev, RecSys 2023"),
        ("gSASRec", 0.3000, None, "Petrov and Macdonald, RecSys 2023"),
        ("eSASRec", 0.3133, 0.1772, "Tikhonovich et al., RecSys 2025"),
        ("HSTU", 0.3097, 0.1720, "Tikhonovich et al., RecSys 2025"),
        ("FuXi-alpha", 0.3164, 0.1813, "Tikhonovich et al., RecSys 2025"),
    ],
    columns=["model", "HR@10", "NDCG@10", "source"],
)
print(PUBLISHED.to_string(index=False, na_rep=""))

# %% [markdown]
# The papers are {cite:t}`klenitskiy2023`, {cite:t}`petrov2023` and {cite:t}`tikhonovich2025`.

# %%
ours = top[top["data"] == "1m"]
if ours.empty:
    print("no chapter ran on 1m here: RECTUTOR_PROFILE=full (with a GPU) adds our rows")
else:
    mine = pd.DataFrame(
        {
            "model": ours["model"],
            "HR@10": [metrics["hit_rate"]["value"] for metrics in ours["metrics"]],
            "NDCG@10": ours["ndcg"],
            "source": "this book, " + ours["chapter"],
        }
    )
    both = pd.concat([PUBLISHED, mine]).sort_values("NDCG@10", ascending=False, ignore_index=True)
    run.show_table(both, caption="Full ranking on MovieLens 1M")

# %% [markdown]
# ## Rating prediction
#
# The other task: the error of predicted ratings on a random fifth of the data, in the unit of the
# documentation (ratings rescaled to 0 to 1) and in stars. Lower is better.

# %%
rating = entries(stored, "rating")
rating["rmse"] = [metrics["rmse"]["value"] for metrics in rating["metrics"]]
rating = rating.sort_values(["data", "rmse"], ignore_index=True)
table = rating[["data", "model", "recipe", "chapter"]].copy()
for key, title in {"rmse": "RMSE (0 to 1)", "rmse_stars": "RMSE (stars)"}.items():
    table[title] = [with_interval(metrics.get(key)) for metrics in rating["metrics"]]
table["seconds"] = [f"{s:.0f}" if pd.notna(s) else "" for s in rating["seconds"]]
run.show_table(table)

# %% [markdown]
# ## Summary
#
# - One protocol, one table: a model is worth what it adds to the baselines under the same rules.
# - An interval stands beside every figure; a ranking without one is a rumour.
# - The conditions are stored with the result, so a figure can be checked, and made again.
#
# ## References
#
# All papers are in the [bibliography](../book/references.md).
