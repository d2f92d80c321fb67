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
# - see what a figure was measured on, and how often.
#
# ![Each model is trained several times; the last movie of each user asks every run; users and runs are drawn anew for an interval.](../book/_static/model-leaderboard.svg)
#
# No figure of ours is typed in on this page. The figures that count are those of the *[study](../book/glossary.md)*: every
# model trained several times, each time with another seed and another order of the ratings that carry
# the same second. How the chapters' own runs were made stands below; what they measured is on their pages. The models go back to
# the Keras Recommenders examples {cite}`sharma2025keras`; the protocol is that of
# [Evaluation](../book/evaluation.md).

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
import pandas as pd

from rectutor import chapter, results, study

run = chapter.start("leaderboard")

# %% [markdown]
# ## What was measured, on what

# %% mystnb={"code_prompt_hide": "Hide the code: what the study holds", "code_prompt_show": "Show the code: what the study holds"} tags=["hide-input"]
found = study.read()
made = found.made
print(f"the study: {made.get('trainings', 0):,} runs, ", end="")
print(f"{made.get('hours', 0)} hours on one core, ", end="")
print(f"{made.get('first', '')} to {made.get('last', '')}")
print(f"{len(found.effects)} comparisons; a verdict holds for all together (Holm)")
versions = made.get("versions", {})
print(", ".join(f"{name} {version}" for name, version in versions.items()))
unfinished = made.get("unfinished", [])
print(f"jobs that have not had all of their runs yet: {len(unfinished)}")
for key in unfinished:
    print("   ", key)

# %% [markdown]
# An interval of the study draws users *and* runs anew, so it covers both kinds of chance. The runs of
# the chapters, one seed each:

# %% mystnb={"code_prompt_hide": "Hide the code: the chapters' runs", "code_prompt_show": "Show the code: the chapters' runs"} tags=["hide-input"]
stored = results.read_all()
rows = []
for name, record in stored.items():
    data, backend = record["data"], record["backend"]
    limit = record["facts"].get(results.LIMIT)
    row = {"chapter": name, "data": f"{data['name']} from {data['source']}"}
    row["ratings"] = f"{data['num_ratings']:,}"
    row["run"] = f"{record['profile']}, seed {record['seed']}"
    row["run"] += f", at most {limit} epochs" if limit else ""
    version = record["versions"].get(backend, "")
    row["backend"] = f"{backend} {version}".strip()
    row["device"] = record["device"]
    rows.append(row)
conditions = pd.DataFrame(rows)
run.show_table(conditions)
own = [
    {"chapter": name, "model": entry["model"], "metric": study.METRICS[metric]}
    | {end: entry["metrics"][metric].get(end) for end in ("value", "low", "high")}
    for name, record in stored.items()
    for entry in record["models"]
    for metric in entry["metrics"]
    if metric in study.METRICS
]
if own and os.environ.get("RECTUTOR_DATA"):
    own = pd.DataFrame(own).sort_values(["metric", "value"], ascending=False)
    run.show_table(own.reset_index(drop=True), "What the chapters measured on your table")

# %% [markdown]
# ## Top-ten recommendation
#
# Each user's last movie is held out, all movies of the catalogue compete, those already seen are left
# out. Sorted by the mean over the runs; MovieLens 100K. Models of cold movies answer another question, and
# stand in the [retrieval chapter](retrieval.ipynb).


# %% mystnb={"code_prompt_hide": "Hide the code: the order", "code_prompt_show": "Show the code: the order"} tags=["hide-input"]
COLD = ("random", "popularity by genre", "id tower", "feature tower")


def standing(found, metric, lower_is_better=False):
    """A row for each of the study's models, the best mean first."""
    rows = []
    for name, arm in found.arms.items():
        if metric not in arm.metrics or "|" in name:  # |: under another protocol
            continue
        if name.removesuffix(", all movies").removeprefix("retrieval/") in COLD:
            continue
        of, _, model = name.partition("/")
        model = model.replace(" + EASE", " + EASE, recency (mixture)")
        rows.append({"chapter": of, "model": model, "figure": arm.metrics[metric], "arm": arm})
    sign = 1 if lower_is_better else -1
    return sorted(rows, key=lambda row: sign * row["figure"].value)


def as_table(rows, metric, digits):
    """The rows as a table of text, six columns wide."""
    table = []
    for row in rows:
        figure, arm = row["figure"], row["arm"]
        low, high = (f"{end:.{digits}f}" for end in (figure.low, figure.high))
        line = {"model": row["model"]}
        if metric == "ndcg":
            line["HR@10"] = f"{arm.metrics['hit_rate'].value:.{digits}f}"
        line[study.METRICS[metric]] = f"{figure.value:.{digits}f}"
        line["95 % interval"] = f"[{low}, {high}]"
        if metric != "ndcg":
            ends = figure.lowest, figure.highest
            ends = " to ".join(f"{end:.{digits}f}" for end in ends)
            line["lowest to highest"] = ends
        table.append(line | {"runs": arm.runs, "from": row["chapter"]})
    return pd.DataFrame(table)


# %% mystnb={"code_prompt_hide": "Hide the code: the picture", "code_prompt_show": "Show the code: the picture", "image": {"alt": "Dot plot of NDCG at 10 with 95 percent intervals over users and runs: the baselines, the documented recipes and the models made right, best at the top, coloured by the chapter they are from."}} tags=["hide-input"]
HEADLINES = {
    "retrieval": ("MSE, documented", "made right"),
    "gru4rec": ("as documented (leak)", "as documented, no leak", "made right"),
    "sasrec": ("as documented", "made right", "levers"),
    "multi_task": ("documented, multi-task", "joint", "history: next movie alone"),
    "serving": ("two stages",),
}
top = standing(found, "ndcg")
shown = [row for row in top if row["model"] in HEADLINES.get(row["chapter"], (row["model"],))]
names = [f"{row['chapter']}: {row['model']}" for row in shown]
rows = {name: row["figure"] for name, row in zip(names, shown, strict=True)}
kinds = {name: row["chapter"] for name, row in zip(names, shown, strict=True)}
label = "NDCG@10, mean over runs (higher is better)"
run.show_intervals(rows, label, "ndcg", kinds)

# %% [markdown]
# The picture has the baselines, and of each chapter its documented recipe and what became of it. All models:

# %% mystnb={"code_prompt_hide": "Hide the code: the table of all models", "code_prompt_show": "Show the code: the table of all models"} tags=["hide-input"]
run.show_table(as_table(top, "ndcg", 3))

# %% [markdown]
# Where two intervals overlap widely the order of the two is not settled by their rows; a paired
# comparison may still settle it. Those that the book makes are in the
# [table of the comparisons](#comparisons) below.

# %% [markdown]
# (comparisons)=
# ## Which differences hold up
#
# Every comparison that the book makes, paired by user and by run. The verdict is at 5 % after
# [Holm's correction](../book/glossary.md) {cite}`holm1979` for all of them together, and so is the $p$ beside it: of so many comparisons
# of equals, some would look clear by luck.

# %% mystnb={"code_prompt_hide": "Hide the code: the table of comparisons", "code_prompt_show": "Show the code: the table of comparisons"} tags=["hide-input"]
effects = pd.DataFrame(
    {
        "of": f"{effect.chapter} {effect.correction}".strip(),
        "before": effect.before.partition("/")[2],
        "after": effect.after.partition("/")[2],
        "metric": study.METRICS[effect.metric],
        "difference": f"{effect.value:+.4f} [{effect.low:+.4f}, {effect.high:+.4f}]",
        "verdict": f"{effect.verdict} (p\N{NO-BREAK SPACE}{effect.holm:.3f})",
    }
    for effect in found.effects
)
run.show_table(effects)

# %% [markdown]
# ## Beside published figures
#
# The literature reports SASRec and its relatives on the 1M data set, ranked against the full
# catalogue. These figures are typed in, each with its source; ours join them where a chapter ran on
# `1m` (the `full` profile).

# %% mystnb={"code_prompt_hide": "Hide the code: the published figures", "code_prompt_show": "Show the code: the published figures"} tags=["hide-input", "nbval-check-output"]
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

# %% mystnb={"code_prompt_hide": "Hide the code: our rows beside them", "code_prompt_show": "Show the code: our rows beside them"} tags=["hide-input"]
ours = [
    {
        "model": entry["model"],
        "HR@10": entry["metrics"]["hit_rate"]["value"],
        "NDCG@10": entry["metrics"]["ndcg"]["value"],
        "source": f"this book, {name}",
    }
    for name, record in stored.items()
    for entry in record["models"]
    if record["data"]["name"] == "1m" and entry["protocol"] == "leave-one-out"
]
if ours:
    both = pd.concat([PUBLISHED, pd.DataFrame(ours)])
    both = both.sort_values("NDCG@10", ascending=False, ignore_index=True)
    run.show_table(both, caption="Full ranking on MovieLens 1M")
else:
    print("no chapter ran on 1m here: RECTUTOR_PROFILE=full (with a GPU) adds our rows")

# %% [markdown]
# ## Rating prediction
#
# The other task: the error of predicted ratings, as labels from 0 to 1 (times four it is in stars). Lower
# is better. Three kinds of test stand here, so compare within a kind: "folds" are GroupLens's five folds, "history" each
# user's last fifth by time, and the others a random fifth (in ranking one for all runs, in multi-task another in each).

# %% mystnb={"code_prompt_hide": "Hide the code: the table", "code_prompt_show": "Show the code: the table"} tags=["hide-input"]
run.show_table(as_table(standing(found, "rmse", True), "rmse", 4))

# %% [markdown]
# ## Summary
#
# - One protocol, one table: a model is worth what it adds to the baselines under the same rules.
# - One run is a draw. A mean over seeds and orders of ties has an interval; a ranking without one is a
#   rumour.
# - With many comparisons, some look clear by luck: the verdicts here make up for that.
# - The figures of every user in every run are stored, so all of this can be checked, and made again.
#
# ## References
#
# All papers are in the [bibliography](../book/references.md).
