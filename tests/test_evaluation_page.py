"""The numbers of the book's evaluation page are recomputed from the page itself."""

import contextlib
import io
import math
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rectutor.data import load_movielens
from rectutor.evaluation import evaluate
from rectutor.splits import leave_one_out

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "book" / "evaluation.md").read_text(encoding="utf-8")
FIGURE = (ROOT / "book" / "_static" / "timelines.svg").read_text(encoding="utf-8")
PROSE = " ".join(PAGE.split())
IDS = {letter: number for number, letter in enumerate("ABCDEF", start=1)}
USERS = ["Ann", "Ben", "Cem"]


def table(first_cell):
    """The Markdown table whose header begins with `first_cell`, as a list of columns of cells."""
    lines = PAGE.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {first_cell} |"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip(" *") for cell in line.strip("|").split("|")])
    return [list(column) for column in zip(rows[0], *rows[2:], strict=True)]


def timelines():
    """What the figure says each user watched, from its alternative text."""
    label = re.search(r'aria-label="([^"]*)"', FIGURE)[1]
    return {
        name: re.findall(r"\b[A-F]\b", text)
        for name, text in re.findall(r"(Ann|Ben|Cem|Dia)(?::| has)([^.]*)\.", label)
    }


@pytest.fixture(scope="module")
def split():
    watched = enumerate(timelines().values(), start=1)
    rows = [(user, IDS[movie]) for user, movies in watched for movie in movies]
    ratings = pd.DataFrame(rows, columns=["user_id", "movie_id"])
    return leave_one_out(ratings.assign(timestamp=np.arange(len(rows))))


@pytest.fixture(scope="module")
def recommender():
    scores = np.zeros((4, 7))
    for row, cells in enumerate(table("scores")[1:], start=1):
        scores[row, 1:] = [float(cell) for cell in cells[1:7]]
    return lambda queries: scores[queries.user_ids]


def test_the_figure_the_table_and_the_code_tell_the_same_story(split):
    watched = timelines()
    assert list(watched) == [*USERS, "Dia"]
    drawn = re.findall(r'class="rp-name"[^>]*>(\w+)<', FIGURE)
    assert drawn == [word for name, movies in watched.items() for word in (name, *movies)]
    for row in table("scores")[1:]:
        *seen, target = watched[row[0]]
        assert (row[7].split(), row[8]) == (sorted(seen), target)
    in_code = eval(re.search(r"watched = (\{.*?\})", PAGE)[1])
    assert list(in_code.values()) == [[IDS[m] for m in movies] for movies in watched.values()]
    assert split.test["user_id"].tolist() == [1, 2, 3]


def test_the_table_of_lists_follows_from_the_table_of_scores(recommender, split):
    """By the page's own words: cross out the seen, sort, the target last among equals."""
    cells = {row[0]: row for row in table("scores")[1:]}
    result = evaluate(recommender, split, k=2)
    rows = table("user")[1:]
    columns = {"hit": "hit_rate", "NDCG": "ndcg", "MRR": "mrr"}
    for place, (name, rest, best, rank, *metrics) in enumerate(rows[:-1]):
        scores = dict(zip("ABCDEF", map(float, cells[name][1:7]), strict=True))
        seen, target = cells[name][7].split(), cells[name][8]
        left = [movie for movie in "ABCDEF" if movie not in seen]
        ordered = sorted(left, key=lambda m: (-scores[m], m == target, m))
        assert rest.split() == ordered
        assert best.split() == ordered[:2]
        assert [IDS[movie] for movie in best.split()] == result.recommendations[place].tolist()
        r = ordered.index(target) + 1
        assert int(rank) == r
        expected = (int(r <= 2), (r <= 2) / math.log2(r + 1), (r <= 2) / r)
        assert [float(cell) for cell in metrics] == [round(value, 3) for value in expected]
        for value, key in zip(expected, columns.values(), strict=True):
            assert result.per_user[key][place] == pytest.approx(value)
    means = [float(cell) for cell in rows[-1][4:]]
    assert means == [round(getattr(result, key), 3) for key in columns.values()]
    coverage = re.search(r"four different movies of six: (\d\.\d+)", PROSE)[1]
    assert float(coverage) == round(result.coverage, 3)


def test_the_lists_with_seen_movies(recommender, split):
    result = evaluate(recommender, split, k=2, exclude_seen=False)
    sentence = r"Ann's list would be (\w \w), Ben's (\w \w) and Cem's (\w \w): one hit"
    lists = [[IDS[m] for m in row.split()] for row in re.search(sentence, PROSE).groups()]
    assert lists == result.recommendations.tolist()
    assert result.per_user["hit_rate"].sum() == 1


def test_the_interval_of_three_users(recommender, split):
    interval = evaluate(recommender, split, k=2).metrics["hit_rate"]
    assert "the interval of the hit rate is 0 to 1." in PROSE
    assert (interval.low, interval.high) == (0.0, 1.0)


def test_the_code_on_the_page_runs_and_agrees_with_its_table():
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    printed = io.StringIO()
    names: dict = {}
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "book/evaluation.md", "exec"), names)
    for cells, row in zip(table("scores")[1:], names["scores"], strict=True):
        assert [float(cell) for cell in cells[1:7]] == row[1:].tolist()
    for heading, mean in zip(("HR@2", "NDCG@2", "MRR@2"), table("user")[-1][4:], strict=True):
        assert re.search(rf"{heading}\s+{mean} \[", printed.getvalue())


def test_the_arithmetic_in_the_prose():
    numbers = re.search(r"place (\d+) of ([\d,]+) movies.* But of (\d+) random", PROSE).groups()
    place, movies, rivals = (int(number.replace(",", "")) for number in numbers)
    ahead = float(re.search(r"rivals only (\d\.\d) are expected", PROSE)[1])
    assert ahead == round((place - 1) * rivals / (movies - 1), 1)
    p = float(re.search(r"At \$p = (0\.\d+)\$", PROSE)[1])
    for half, users in re.findall(r"± (0\.\d+) for the ([\d,]+)", PROSE):
        users = int(users.replace(",", ""))
        assert float(half) == round(1.96 * math.sqrt(p * (1 - p) / users), 3)


def test_the_shares_of_ties_are_those_of_movielens_100k():
    if not (Path(os.environ.get("RECTUTOR_ARCHIVES", "?")) / "ml-100k.zip").exists():
        pytest.skip("needs ml-100k.zip in RECTUTOR_ARCHIVES")
    ratings = load_movielens("100k").ratings.sort_values(["user_id", "timestamp"])
    gaps = ratings.groupby("user_id")["timestamp"].diff().dropna()
    last = ratings.groupby("user_id")["timestamp"].apply(lambda times: times.diff().iloc[-1] == 0)
    sentence = r"(\d+) % carry the same second, and for (\d+) % of the users the last movie ties"
    consecutive, users = re.search(sentence, PROSE).groups()
    assert float(consecutive) == round(100 * (gaps == 0).mean())
    assert float(users) == round(100 * last.mean())


def test_the_page_names_the_protocols_that_the_study_asks_under():
    for kind in ("tied and untied", "one moment", "99 negatives", "seen kept"):
        assert f"- **{kind}**" in PAGE
