"""Figures and tables: displayed in a notebook, a file and text in a script."""

import matplotlib as mpl
import pandas as pd
import pytest

from rectutor import display

FRAME = pd.DataFrame({"model": ["a"], "ndcg": [0.12345]})


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RECTUTOR_RESULTS", str(tmp_path / "results"))
    display.plot_style()
    return tmp_path / "results"


@pytest.fixture
def shown(monkeypatch):
    """What a notebook would display."""
    everything = []
    monkeypatch.setattr("IPython.display.display", everything.append)
    monkeypatch.setattr(display, "in_notebook", lambda: True)
    return everything


def line():
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    axes.plot([1, 2])
    return figure


def test_a_figure_of_a_script_goes_to_a_file_the_same_every_time(folder, capsys):
    files = [folder / "figures" / f"toy-{name}.svg" for name in ("one", "two")]
    for file in files:
        display.show(line(), file.stem)
    assert files[0].read_text(encoding="utf-8").lstrip().startswith("<?xml")
    assert files[0].read_bytes() == files[1].read_bytes()
    assert capsys.readouterr().out.splitlines()[0] == "figure: results/figures/toy-one.svg"
    assert not mpl.pyplot.get_fignums()


def test_tables_of_a_script_are_text(capsys):
    display.show_table(FRAME, caption="Two columns")
    display.show_table(pd.Series([0.5], index=["x"], name="value"))
    display.show_table("already text", caption="Above")
    assert capsys.readouterr().out.splitlines() == [
        "Two columns",
        "model   ndcg",
        "    a 0.1235",
        "    value",
        "x  0.5000",
        "Above",
        "already text",
    ]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([1000000.0, float("nan")], ["1,000,000", ""]),
        ([1994, 1995], ["1994", "1995"]),
        ([521.1976, 200.0, 98.9566], ["521.2", "200.0", "99.0"]),
        ([4.2728, 0.9093], ["4.273", "0.909"]),
        ([0.9999, 0.04139], ["0.9999", "0.0414"]),
        ([float("nan")] * 2, ["", ""]),
        (["0.12345", 0.5], ["0.12345", "0.5"]),
    ],
)
def test_numbers_have_the_digits_that_matter(values, shown, capsys):
    display.show_table(pd.DataFrame({"x": values}))
    assert [line.strip() for line in capsys.readouterr().out.splitlines()[1:]] == shown


def test_in_a_notebook_figures_and_tables_are_displayed(shown, folder, capsys):
    figure = line()
    display.show(figure, "line")
    display.show_table(FRAME, caption="One", number=1)
    display.show_table(FRAME.set_index("model"), number=2)
    display.show_table("text", caption="Above")
    assert shown[0] is figure
    assert "<caption>One</caption>" in shown[1].to_html()
    assert "table-2" in shown[2].to_html()
    assert ">a</th>" in shown[2].to_html()
    assert ">0</th>" not in shown[1].to_html()  # the number of the row says nothing
    assert shown[3] == "text"
    assert capsys.readouterr().out == "Above\n"
    assert not folder.exists()


def test_what_a_table_holds_is_neither_markup_nor_mathematics(shown):
    title = "<img src=x onerror=alert(1)> for $5 or $6"
    frame = pd.DataFrame({title: [title]}, index=pd.Index([title], name=title))
    display.show_table(frame, caption=title, number=1)
    page = shown[0].to_html()
    assert "<img" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt; for $5 or $6") == 5
    assert 'class="tex2jax_ignore mathjax_ignore"' in page  # MathJax leaves it alone


def test_a_price_in_a_figure_stays_one_and_a_formula_a_formula(folder):
    figure = line()
    price = figure.axes[0].set_title("From $5 to $6, _or_ ^^ $")
    formula = figure.axes[0].set_xlabel(r"$\alpha$")
    display.show(figure, "prices")
    assert (price.get_parse_math(), formula.get_parse_math()) == (False, True)
    assert (folder / "figures" / "prices.svg").is_file()


def test_in_a_notebook_figures_are_vectors(shown, monkeypatch):
    import matplotlib_inline.backend_inline as backend

    asked = []
    monkeypatch.setattr(backend, "set_matplotlib_formats", lambda kind, **_: asked.append(kind))
    display.plot_style()
    assert asked == ["svg"]


def test_a_flow_has_its_boxes_and_what_stands_beside_its_arrows():
    places = {"from": (0, 0.0), "by": (1, 1.0), "to": (2, 0.0)}
    figure = display.flow(places, [("from", "by", "up"), ("by", "to", "down")])
    (ax,) = figure.axes
    found = {text.get_text(): text.get_position() for text in ax.texts if text.get_text()}
    assert {name: found[name] for name in places} == places
    assert set(found) == {*places, "up", "down"}
    assert [found[name][0] for name in ("up", "down")] == [0.5, 1.5]
    low, high = ax.get_xlim()
    assert low < 0
    assert high > 2
