"""The first minute with a table: what it holds, what counting reaches, what is worth running."""

import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from rectutor import chapter, data, evaluation, first_minute
from rectutor.__main__ import main
from rectutor.baselines import standard_baselines
from rectutor.splits import leave_one_out

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def table(tmp_path):
    """Write made-up interactions, changed by a function, and give the file's path."""

    def write(change=lambda frame: frame):
        made = data.synthetic(60, 50, 1500, seed=1).ratings
        columns = {"user_id": "user", "movie_id": "item"}
        frame = made.drop(columns=["original_user_id", "original_movie_id"])
        change(frame.rename(columns=columns)).to_csv(tmp_path / "mine.csv", index=False)
        return str(tmp_path / "mine.csv")

    return write


def test_the_report_has_the_figures_of_the_book_and_says_what_to_run(table, capsys):
    file = table()
    found = first_minute.report(file).to_frame()
    split = leave_one_out(
        data.from_dataframe(
            pd.read_csv(file), user="user", item="item", rating="rating", timestamp="timestamp"
        )
    )
    for name, baseline in standard_baselines(split).items():
        assert found.loc[name, "NDCG@10"] == evaluation.evaluate(baseline, split).ndcg
    out = capsys.readouterr().out
    assert "1,500 interactions of 60 users with 50 items" in out
    assert re.search(r"EASE, recency +0\.\d{3} \[0\.\d{3}, 0\.\d{3}\] +0\.\d{3} \[", out)
    assert re.search(r"order (matters|is not seen to matter): on validation kNN's NDCG@10", out)
    assert re.search("worth running first: (sasrec|retrieval); also possible: .*ranking", out)
    assert f"RECTUTOR_DATA={file} python notebooks/NAME.py" in out


def test_what_a_table_lacks_is_said_for_each_chapter(table, capsys):
    first_minute.report(table(lambda frame: frame[["user", "item"]]))
    out = capsys.readouterr().out
    assert "there are no times; the order of the rows stands for them" in out
    assert "sasrec needs timestamps" in out
    assert "retrieval needs ratings and timestamps" in out
    assert "worth running" not in out
    first_minute.report(table(lambda frame: frame[frame["item"] < 15]))
    assert "retrieval needs 10 users and 40 items" in capsys.readouterr().out


def test_where_people_buy_again_their_own_history_is_a_baseline(table, capsys):
    def again(frame):
        frame["item"] = frame["item"] % 3 + 5 * (frame["user"] % 9)
        return frame

    found = first_minute.report(table(again)).to_frame()["HR@10"]
    assert found["own history, counted"] == found.max() > 0.9
    out = capsys.readouterr().out
    assert "repeat a user and an item" in out
    assert "what a user has had may be recommended again" in out


def test_too_many_items_leave_the_matrices_out_in_words(table, monkeypatch, capsys):
    monkeypatch.setattr(first_minute, "_MOST_MOVIES", 20)
    found = first_minute.report(table())
    assert list(found.evaluations) == ["popularity", "ALS"]
    assert "item kNN and EASE are left out: 50 items make" in capsys.readouterr().out
    split = leave_one_out(data.synthetic(60, 50, 1500, seed=1))
    assert list(first_minute.affordable_baselines(split)[0]) == ["popularity", "ALS"]
    monkeypatch.undo()
    fitted, left_out = first_minute.affordable_baselines(split)
    assert (len(fitted), left_out) == (5, "")
    monkeypatch.setattr(first_minute, "_memory", lambda: 1e5)
    assert "left out" in first_minute.affordable_baselines(split)[1]


def test_a_catalogue_below_ten_is_ranked_whole(tmp_path, capsys):
    rows = [f"u{user},i{item}" for user in range(5) for item in range(6)]
    (tmp_path / "few.csv").write_text("user,item\n" + "\n".join(rows) + "\n")
    first_minute.report(str(tmp_path / "few.csv"))
    assert "HR@6" in capsys.readouterr().out


def test_short_histories_and_matrices_are_asked_for_before_a_chapter_is_named(monkeypatch):
    rows = [(user, 3 * user + k, 5, k) for user in range(1, 31) for k in range(3)]
    frame = pd.DataFrame(rows, columns=["user", "item", "rating", "timestamp"])
    names = {name: name for name in frame}
    short = data.from_dataframe(frame, **names)
    assert first_minute._lacking(short, "gru4rec").endswith(
        "a user with 5 interactions of two stars and more"
    )
    assert first_minute._lacking(short, "sasrec")
    assert not first_minute._lacking(short, "ranking")
    with pytest.raises(ValueError, match=r"a user with 5 .* the longest such history has 3; give"):
        first_minute.check_history(short, 5)
    monkeypatch.setattr(first_minute, "_too_large", lambda num_movies: "18 GB")
    assert "an item-item matrix, which does not fit" in first_minute._lacking(short, "gru4rec")


def test_users_times_items_are_asked_for_before_a_chapter_is_named(monkeypatch):
    data_of_both = SimpleNamespace(num_users=99_999, num_movies=19_999)
    monkeypatch.setattr(first_minute, "_memory", lambda: 24e9)
    with pytest.raises(ValueError, match="99,999 users and 19,999 items make 80 GB; keep the most"):
        first_minute.check_pairs_fit("ranking", data_of_both)
    first_minute.check_pairs_fit("sasrec", data_of_both)  # nothing of users times items there
    frame = pd.DataFrame({"user": [1, 1, 2], "item": [1, 2, 1], "rating": [5, 3, 4]})
    loaded = data.from_dataframe(frame, **{name: name for name in frame})
    assert first_minute._lacking(loaded, "ranking") == ""
    monkeypatch.setattr(first_minute, "_memory", lambda: 500.0)
    assert first_minute._lacking(loaded, "ranking").endswith("users and items, which does not fit")


@pytest.mark.parametrize("name", first_minute.PAIRS)
def test_a_chapter_says_that_users_times_items_do_not_fit_before_it_trains(name, monkeypatch):
    run = chapter.Run(name, "smoke", 0, "jax", "CPU")
    assert run.load_data("synthetic").num_users == 300
    monkeypatch.setattr(first_minute, "_memory", lambda: 1e6)
    with pytest.raises(ValueError, match="300 users and 200 items make 0 GB"):
        run.load_data("synthetic")


def test_the_command_to_run_keeps_the_columns(table, monkeypatch, capsys):
    monkeypatch.setenv("RECTUTOR_COLUMNS", "user=user,item=item")
    first_minute.report(table())
    assert "RECTUTOR_COLUMNS=user=user,item=item RECTUTOR_DATA=" in capsys.readouterr().out


def test_a_table_too_thin_to_ask_says_so(table, capsys):
    assert first_minute.report(table(lambda frame: frame.drop_duplicates("user"))) is None
    assert "no user has three interactions" in capsys.readouterr().out


def test_the_command_prints_the_report_or_one_line_of_what_is_wrong(table, tmp_path, capsys):
    main([table()])
    assert "worth running first" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "nothing.csv")])
    assert ended.value.code == 2
    assert re.fullmatch(r"RECTUTOR_DATA: .* is no file; .*\n", capsys.readouterr().err)


@pytest.mark.parametrize("name", first_minute.NEEDS)
def test_the_needs_are_those_of_the_chapters(name):
    needs, users, movies, likes = first_minute.NEEDS[name]
    text = (ROOT / "notebooks" / f"{name}.py").read_text("utf-8")
    for least, value in (("min_users", users), ("min_movies", movies), ("min_likes", likes)):
        assert re.search(rf'{least}"?[=:] ?{value}\b', text) or value == 1
    assert (name in first_minute.DENSE) == bool(re.search(r'dense"?[=:] ?True', text))
    assert re.search(r"(needs|data)\W+(needs\W+)?" + r"\W+".join(needs) + r'"', text)
