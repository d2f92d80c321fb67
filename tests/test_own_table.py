"""A table of one's own is read, or the error says what to change in it."""

import pytest

from rectutor import own_table


def test_columns_are_found_by_their_names(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text(
        "user,item,rating,timestamp,title,shelf\n"
        "ann,tea,5,20,Green tea,1\nann,milk,3,10,Milk,2\nbob,tea,4,30,Green tea,1\n",
        encoding="utf-8",
    )
    data = own_table.read(str(file))
    assert (data.num_users, data.num_movies) == (2, 2)
    assert data.has_ratings
    assert data.has_timestamps
    assert sorted(data.titles[1:]) == ["Green tea", "Milk"]


def test_ratings_and_times_may_be_missing_and_home_may_be_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.csv").write_text("user,item\nann,tea\nbob,tea\n", encoding="utf-8")
    data = own_table.read("~/mine.csv")
    assert not data.has_ratings
    assert not data.has_timestamps


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "RECTUTOR_DATA is .* which is no file; give the path"),
        ("user,movie\n1,2\n", r"no column \['item'\] among .*; rename yours"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path, content, message):
    file = tmp_path / "mine.csv"
    if content:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        own_table.read(str(file))
