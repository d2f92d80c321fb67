"""A table of one's own is read as it is meant, or the error says what to change in it."""

import csv
import gzip
import zipfile

import pandas as pd
import pytest

from rectutor import data, own_table, results

TABLE = (
    "user,item,rating,timestamp,title,shelf\n"
    "ann,tea,5,1600000020,Green tea,1\n"
    "ann,milk,3,1600000010,Mélange,2\n"
    "bob,tea,4,1600000030,Green tea,1\n"
)


@pytest.fixture
def read(tmp_path):
    """Write text or bytes to a file and read it as a table."""

    def write_and_read(content, name="mine.csv"):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return own_table.read(str(file))

    return write_and_read


def column(name, values, **others):
    """A table of one user for each value, with one column more."""
    rows = [f"u{k},tea,{value}" for k, value in enumerate(values)]
    return f"user,item,{name}\n" + "\n".join(rows) + "\n"


def times(read, values):
    return read(column("timestamp", values)).ratings["timestamp"].tolist()


def test_what_was_taken_for_what_is_said_in_a_line(read, capsys):
    found = read(TABLE)
    assert (found.name, found.num_users, found.num_movies) == ("mine", 2, 2)
    assert found.has_ratings
    assert found.has_timestamps
    assert sorted(found.titles[1:]) == ["Green tea", "Mélange"]
    assert capsys.readouterr().out == (
        "mine.csv (commas, UTF-8): user from 'user' (text), item from 'item' (text), rating from "
        "'rating' (from 1 to 5), time from 'timestamp' (seconds since 1970, 2020-09-13 to "
        "2020-09-13), title from 'title'; not used: shelf\n"
    )


@pytest.mark.parametrize(
    ("content", "how"),
    [
        (gzip.compress(TABLE.encode()), "gzip, commas, UTF-8"),
        (TABLE.replace(",", ";").encode(), "semicolons, UTF-8"),
        (TABLE.replace(",", "\t").encode(), "tabs, UTF-8"),
        (TABLE.replace(",", "|").replace("\n", "\r\n").encode(), "bars, UTF-8"),
        (TABLE.encode("utf-8-sig"), "commas, UTF-8"),
        (TABLE.encode("cp1252"), "commas, not UTF-8, so taken for Latin-1 as Windows writes it"),
        (
            TABLE.replace("ange", "\x81nge").encode("latin-1"),
            "commas, not UTF-8, so taken for Latin-1",
        ),
        (TABLE.encode("utf-16"), "commas, UTF-16"),
    ],
)
def test_what_the_file_is_decides_how_it_is_read(read, content, how, capsys):
    found = read(content)
    assert (found.num_users, found.num_movies, found.has_timestamps) == (2, 2, True)
    assert "M\xe9" in "".join(found.titles)
    assert f"({how}): user from" in capsys.readouterr().out


def test_parquet_is_read_with_its_types(tmp_path, capsys):
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame(
        {
            "uid": [1.0, 2.0, 2.0],  # as pandas keeps whole numbers once one was missing
            "product_id": ["012", "12", "12"],
            "stars": [True, False, True],
            "ts": pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-03"], utc=True),
            "title": ["a", None, "b"],
        }
    )
    frame.to_parquet(tmp_path / "mine.parquet")
    found = own_table.read(str(tmp_path / "mine.parquet"))
    assert "(Parquet): user from 'uid' (whole numbers)" in capsys.readouterr().out
    assert list(found.titles[1:]) == ["a", "b"]
    assert found.rating_scale == (0.0, 1.0)
    assert found.ratings["timestamp"].diff().tolist()[1:] == [86_400, 86_400]


@pytest.mark.parametrize(
    ("names", "roles"),
    [
        ("userId movieId rating timestamp", "userId movieId rating timestamp"),
        ("USER_ID:token ITEM_ID:token", "USER_ID:token ITEM_ID:token"),
        ("ts stars uid product_id date", "uid product_id stars ts"),
        ("Customer-ID sku title", "Customer-ID sku title"),
    ],
)
def test_usual_names_are_known_in_any_case(names, roles):
    assert list(own_table.columns(names.split()).values()) == roles.split()


def test_the_reader_decides_otherwise(read, monkeypatch):
    monkeypatch.setenv("RECTUTOR_COLUMNS", "user=shelf, item = user,rating=,title=")
    found = read(TABLE)
    assert (found.num_users, found.has_ratings, list(found.titles[1:])) == (
        2,
        False,
        ["ann", "bob"],
    )
    monkeypatch.setenv("RECTUTOR_COLUMNS", "")
    assert read(TABLE).has_ratings


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("user", "'user' is not understood; write role=column"),
        ("who=user", "'who=user' is not understood"),
        ("user=shelf,user=item", "each role once"),
        ("user=nobody", r"names 'nobody' and the columns are \['user'"),
        ("user=shelf,item=shelf", "names 'shelf' twice; name one column for each role"),
        ("user=,item=shelf", "known to be the user; say which is"),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused(read, wanted, message, monkeypatch):
    monkeypatch.setenv("RECTUTOR_COLUMNS", wanted)
    with pytest.raises(ValueError, match=message):
        read(TABLE)


def test_ids_are_one_only_where_they_are_written_alike(read):
    assert read("user,item\n012,a\n12,a\n").num_users == 2
    assert read("user,item\n0,a\n00,a\n1e3,a\n1000,a\n").num_users == 4
    numbers = read("user,item\n10,a\n9,a\n 9 ,a\n").ratings["original_user_id"]
    assert numbers.tolist() == [10, 9, 9]


@pytest.mark.long
def test_ids_are_one_wherever_in_a_long_file_they_stand(read):
    """Parsed in pieces with a type each, `0` would be a number above and text below."""
    rows = [f"{k % 50},a" for k in range(600_000)] + ["x,a", "0,a"]
    assert read("user,item\n" + "\n".join(rows)).num_users == 51


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ("1 3 5", (1, 5)),
        ("0.5 4 5", (0.5, 5)),
        ("3,5 4,0", (0.5, 5)),
        ("0 1 1", (0, 1)),
        ("True false", (0, 1)),
        ("0 3 5", (0, 5)),
        ("2 10 7", (1, 10)),
        ("0 10 7.5", (0, 10)),
        ("-3.5 9", (-3.5, 9)),
        ("12 4000", (12, 4000)),
    ],
)
def test_the_scale_of_ratings_is_taken_from_them_and_said(read, values, scale, capsys):
    found = read(column("rating", [f'"{each}"' for each in values.split()]))
    assert found.rating_scale == scale
    assert f"(from {scale[0]} to {scale[1]})" in capsys.readouterr().out


def test_ratings_that_are_all_equal_are_none(read, capsys):
    found = read(column("rating", [3, 3, 3]))
    assert not found.has_ratings
    assert found.ratings["rating"].unique().tolist() == [1]
    assert "all 3, so they count as no ratings" in capsys.readouterr().out
    with pytest.raises(ValueError, match="It needs ratings"):
        found.require("ratings")


DAY = 1_577_836_800  # 2020-01-01


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([DAY, DAY + 86_400], "seconds since 1970, 2020-01-01 to 2020-01-02"),
        ([f"{DAY}.0", DAY + 86_400], "seconds since 1970"),
        ([DAY * 10**3, (DAY + 86_400) * 10**3], "milliseconds since 1970"),
        ([DAY * 10**6, (DAY + 86_400) * 10**6], "microseconds since 1970"),
        ([DAY * 10**9, (DAY + 86_400) * 10**9], "nanoseconds since 1970"),
        (["20200101", "20200102"], "dates as 20200131, 2020-01-01 to"),
        (["202001010000", "202001020000"], "dates as 202001311830, 2020-01-01 to"),
        (["20200101000000", "20200102000000"], "dates as 20200131183000, 2020-01-01 to"),
        (["2020-01-01", "2020-01-02"], "dates, 2020-01-01 to"),
        (["2020-01-01 00:00:00 UTC", "2020-01-02 00:00:00 GMT"], "dates, 2020-01-01 to"),
        (["2020-01-01T02:00:00+02:00", "2020-01-02 00:00:00Z"], "dates, 2020"),
        (["01.01.2020", "02.01.2020", "31.01.2020"], "dates, day first, 2020"),
        (["01/01/2020 00:00", "01/02/2020 00:00", "01/31/2020 00:00"], "dates, month first"),
        (["1/1/2020 12:00 AM", "1/2/2020 12:00 AM", "1/31/2020 12:00 AM"], "dates, month first"),
    ],
)
def test_times_are_recognised(read, values, words, capsys):
    assert times(read, values)[:2] == [DAY, DAY + 86_400]
    assert words in capsys.readouterr().out


def test_a_counter_is_a_time_and_so_is_a_date_that_reads_alike_both_ways(read, capsys):
    assert times(read, [3, 1, 2]) == [3, 1, 2]
    assert "(a counter, not a date)" in capsys.readouterr().out
    assert times(read, ["01/01/2020", "02/02/2020"])[0] == DAY


def test_the_order_within_a_second_is_kept(read):
    late, early = DAY * 1000 + 900, DAY * 1000 + 100
    found = read(f"user,item,ts\nann,late,{late}\nann,early,{early}\n")
    assert found.titles[found.ratings["movie_id"]].tolist() == ["early", "late"]
    assert found.ratings["timestamp"].tolist() == [DAY, DAY]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("rating", [3, "1e300"], r"mine.csv: column 'rating': '1e300' in row 2 is no plausible"),
        ("rating", [3, "inf"], "'inf' in row 2 is no plausible rating"),
        (
            "rating",
            ["good", "", "bad", "1", "no"],
            "'good' in row 1, '' in row 2, .* and 1 more is",
        ),
        ("rating", [3, '"1,000"'], "'1,000' in row 2 is no number"),
        ("ts", [DAY, DAY, 0], "'0' in row 3 is no plausible time in seconds since 1970"),
        ("ts", [DAY, DAY, DAY * 1000], "in row 3 is no plausible time in seconds"),
        ("ts", [DAY, DAY, "soon"], "'soon' in row 3 is no number as the others"),
        ("ts", [DAY, ""], "'' in row 2 is missing"),
        ("ts", [-5, -6], "'-5' in row 1, '-6' in row 2 is no plausible time in seconds"),
        ("ts", ["20200101", "20201301", "20200102"], "'20201301' in row 2 is no date as 20200131"),
        ("ts", ["2020-01-01", "soon"], "'soon' in row 2 is no date as 2020-01-31"),
        ("ts", ["2020-01-01", "9999-12-31"], "'9999-12-31' in row 2 is no date .* 1901 to 2100"),
        ("ts", ["31.01.2020", "01.31.2020"], "'01.31.2020' in row 2 is no date as .* day first"),
        ("ts", ["01/02/2020", "03/04/2020"], "the day or the month may come first in '01/02/2020'"),
        ("ts", ["soon", "later"], "'soon' in row 1 is no time that is known; write 2020-01-31"),
    ],
)
def test_what_cannot_be_is_refused_with_its_row(read, name, values, message):
    with pytest.raises(ValueError, match=message):
        read(column(name, values))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user,movies\n1,2\n", r"no column of \['user', 'movies'\] is known to be the item; say"),
        ("196\t242\t3\n", r"the user or the item; .*first line of the file must be names"),
        ("userId,user_id,item\n1,2,3\n", r"\['userId', 'user_id'\] may all be the user; say which"),
        ("user ,user,item\n1,2,3\n", "have one name; rename one"),
        ("user,item,item\n1,2,3\n", "have one name; rename one"),
        ('user,item,title\nann,tea,"Loved it\nbob,tea,a 12" one\n', "quote opens .* line 2 "),
        ('user,item,title\nann,tea,mild\nbob,tea,"Loved it\ncid,tea,no\n', "after line 3 and"),
        ("user,item\n1,tea\nNA,milk\n", "column 'user': 'NA' in row 2 is missing"),
        ("user,item,date\nann,tea,today\n", "'today' in row 1 is no time"),
        (
            "user,item,date,time\nann,tea,2020-01-31,930\n",
            r"'time' holds no dates, and \['date'\] may be the time as well; .*timestamp=date",
        ),
        ("user,item,date,time\nann,tea,2020-01-31,18:30\n", "or say which .*timestamp=date"),
        ("user,item\n", "it has names and no rows"),
        ("", "it is empty; give a line of names"),
        ("user,item\nann,tea\nbob,tea,milk\n", "same number of fields"),
        ("user,item\nann,tea,milk\nbob,tea,milk\n", "same number of fields"),
        ("user,item\nann,tea\n,milk\n", "column 'user': '' in row 2 is missing"),
        ("user,item\nann\n", "column 'item': '' in row 1 is missing"),
        (b"\x1f\x8bnonsense", "gzip compression is damaged .*; copy it anew"),
        (b"PAR1nonsense", "damaged Parquet file .*; write it anew"),
        (b"PK\x03\x04", "zip archive or a spreadsheet; unpack it"),
        (TABLE.encode("utf-16-le"), "holds zero bytes .*; save it as UTF-8"),
        (b"\xef\xbb\xbfuser,item\n\xe9", "its mark says utf-8-sig, but .*; save it as UTF-8"),
    ],
)
def test_a_file_that_is_no_table_says_why(read, content, message):
    with pytest.raises(ValueError, match=rf"^mine\.csv: .*{message}"):
        read(content)


def test_a_field_of_several_lines_is_said(read, capsys):
    made = read('user,item,title\nann,tea,"Green\ntea"\nbob,tea,"A ""fine"" tea"\n')
    assert len(made.ratings) == 2
    assert "1 rows with a field of several lines, in quotes" in capsys.readouterr().out


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_quotes_are_read_with_any_end_of_a_line(read, end):
    made = read(end.join(["user,item,title", 'ann,tea,"Green, mild"', "bob,jam,x", ""]))
    assert set(made.movies["title"]) == {"Green, mild", "x"}


def test_a_word_for_what_is_missing_is_said_where_it_may_be_an_id(read, capsys):
    assert read("user,item\nann,tea\nNULL,tea\n").num_users == 2
    assert "text, 'NULL' among them: 1 rows are read as of such an id" in capsys.readouterr().out


def test_the_reader_says_which_column_is_the_time(read, monkeypatch):
    monkeypatch.setenv("RECTUTOR_COLUMNS", "timestamp=date")
    made = read("user,item,date,time\nann,tea,2020-01-31,930\nann,jam,2020-02-01,815\n")
    assert made.ratings["timestamp"].diff().iloc[1] == 86_400


def test_a_column_that_is_empty_by_name_stays(read):
    assert len(read("user,item,,\nann,tea,,\n").ratings) == 1


@pytest.mark.parametrize("name", ["sales.2023.csv", "sales.2023.CSV.gz", "sales.2023.parquet"])
def test_a_table_is_called_by_its_name_without_its_endings(name):
    assert results.own_name(f"x/{name}") == "sales.2023"


def test_a_file_that_may_not_be_read_says_so(read, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(ValueError, match=r"mine\.csv: it cannot be read \(Permission denied\)"):
        read(TABLE)


def test_an_index_that_is_called_as_a_column_is_refused(tmp_path):
    frame = pd.DataFrame({"user": [1], "item": [2]}, index=pd.Index([7], name="user"))
    frame.to_parquet(tmp_path / "mine.parquet")
    with pytest.raises(ValueError, match=r"its index and a column are both called 'user'; rename"):
        own_table.read(str(tmp_path / "mine.parquet"))


def test_two_columns_of_one_name_in_parquet_are_said(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table([[1], [2], [3]], names=["user", "item", "item"])
    parquet.write_table(table, tmp_path / "mine.parquet")
    with pytest.raises(ValueError, match=r"two of its columns have one name .*; rename one"):
        own_table.read(str(tmp_path / "mine.parquet"))


@pytest.mark.parametrize("name", ["PK", "PAR1"])
def test_a_column_called_as_another_kind_of_file_begins_is_a_column(read, name):
    assert len(read(f"{name},user,item\n1,ann,tea\n").ratings) == 1


def test_a_long_text_in_quotes_is_a_field(read):
    limit = csv.field_size_limit()
    long = "fine " * 30_000
    assert len(read(f'user,item,title\nann,tea,"{long}"\nbob,tea,"{long}"\n').ratings) == 2
    assert csv.field_size_limit() == limit


def test_milliseconds_of_twelve_digits_are_no_dates(read, capsys):
    seventies = [10**11 + k * 86_400_123 for k in range(20)]  # 1973
    assert times(read, seventies)[0] == 10**8
    assert "milliseconds since 1970" in capsys.readouterr().out


def test_no_file_is_said_and_home_may_be_a_tilde(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"RECTUTOR_DATA: .* is no file; give the path"):
        own_table.read(str(tmp_path / "nothing.csv"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.csv").write_text("user,item\nann,tea\nbob,tea\n", encoding="utf-8")
    found = own_table.read("~/mine.csv")
    assert not found.has_ratings
    assert not found.has_timestamps


def test_without_pyarrow_the_remedy_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise ImportError

    monkeypatch.setattr(pd, "read_parquet", refuse)
    (tmp_path / "mine.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="needs pyarrow: pip install pyarrow"):
        own_table.read(str(tmp_path / "mine.parquet"))


def test_repeats_are_noticed(read, capsys):
    found = read("user,item\nann,tea\nann,tea\nbob,tea\nann,tea\n")
    assert own_table.num_repeats(found.ratings) == 2
    assert "2 of 4 rows (50.0%) repeat a user and an item" in capsys.readouterr().out


def test_movielens_own_file_is_read_as_it_is(read, capsys):
    archive = own_table.Path(data.__file__).parent / "included" / "ml-latest-small.zip"
    with zipfile.ZipFile(archive) as opened:
        (member,) = [name for name in opened.namelist() if name.endswith("ratings.csv")]
        found = read(opened.read(member), "ratings.csv")
    known = data.load_movielens("latest-small")
    columns = ["user_id", "movie_id", "rating", "timestamp"]
    pd.testing.assert_frame_equal(found.ratings[columns], known.ratings[columns])
    assert found.rating_scale == known.rating_scale
    assert "rating from 'rating' (from 0.5 to 5)" in capsys.readouterr().out
