"""Pick a few movies and get ten, with and without a front end."""

import re

import numpy as np
import pytest

from rectutor import widget

TITLES = np.array(["(padding)", *(f"Film {n} <b>" for n in range(1, 31)), "Film 3 <b>"])


def next_ones(queries):
    """Recommends what follows the latest movie."""
    ids = np.arange(len(TITLES))
    return -np.abs(ids[None] - queries.last(1) - 0.4)


@pytest.fixture
def picker():
    return widget.Picker(next_ones, TITLES, [4, 5])


def test_ten_that_are_not_picked_best_first(picker):
    assert picker.chosen() == ["Film 4 <b>", "Film 5 <b>"]
    ten = picker.ten()
    assert len(set(ten)) == 10
    assert ten[:4] == ["Film 6 <b>", "Film 7 <b>", "Film 3 <b>", "Film 8 <b>"]
    assert not {*ten} & {*picker.chosen()}
    assert "(padding)" not in ten


def test_a_title_is_picked_once_and_must_be_one(picker):
    assert picker.pick("Film 20 <b>")
    assert not picker.pick("Film 20 <b>")
    assert not picker.pick("no such film")
    assert not picker.pick("(padding)")
    assert picker.picked == [4, 5, 20]
    assert picker.ten()[0] == "Film 21 <b>"
    assert picker.pick("Film 3 <b>")  # two movies have the title: the first
    assert picker.picked[-1] == 3
    assert len(picker.choices()) == 30


def test_nothing_picked_and_a_small_catalogue():
    assert widget.Picker(next_ones, TITLES).ten() == []
    few = widget.Picker(lambda queries: np.zeros((1, 4)), TITLES[:4], [2])
    assert few.ten() == ["Film 1 <b>", "Film 3 <b>"]


@pytest.mark.parametrize(
    ("notebook", "switch", "said"),
    [
        (False, "", "in Jupyter or Colab a field follows here"),
        (True, "no", "in Jupyter or Colab a field follows here"),
        (True, "", "install ipywidgets and run this cell again"),
    ],
)
def test_without_a_front_end_there_is_a_list(notebook, switch, said, monkeypatch, capsys):
    monkeypatch.setattr(widget, "in_notebook", lambda: notebook)
    monkeypatch.setattr(widget.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("RECTUTOR_WIDGETS", switch)
    widget.ten_titles(next_ones, TITLES, [4, 5])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == ["watched last", "    Film 4 <b>", "    Film 5 <b>", "recommended"]
    assert len(lines) == 15
    assert said in lines[-1]


class TestWidget:
    @pytest.fixture
    def shown(self, picker, monkeypatch, capsys):
        """What a notebook displays."""
        pytest.importorskip("ipywidgets")
        import IPython.display

        displayed = []
        monkeypatch.setattr(widget, "in_notebook", lambda: True)
        monkeypatch.setattr(IPython.display, "display", displayed.append)
        widget.ten_titles(next_ones, TITLES, [4, 5])
        assert "install" not in capsys.readouterr().out
        assert len(displayed) == 1
        return widget.PickerWidget(picker)

    def items(self, shown, kind):
        (found,) = re.findall(rf"<{kind}>(.*?)</{kind}>", shown.answer.value) or ("",)
        return re.findall("<li>(.*?)</li>", found)

    def test_a_title_in_the_field_is_picked_and_ten_unseen_follow(self, shown):
        for title in ("Film 9 <b>", "Film 12 <b>", "Film 20 <b>"):
            shown.search.value = title
            assert shown.search.value == ""
        picked, ten = self.items(shown, "ul"), self.items(shown, "ol")
        assert picked == [f"Film {n} &lt;b&gt;" for n in (4, 5, 9, 12, 20)]
        assert len(set(ten)) == 10
        assert not {*picked} & {*ten}
        assert ten[0] == "Film 21 &lt;b&gt;"

    def test_the_button_begins_anew(self, shown):
        shown.clear.click()
        assert shown.answer.value == ""
        shown.search.value = "Film 9 <b>"
        assert self.items(shown, "ul") == ["Film 9 &lt;b&gt;"]
        assert len(self.items(shown, "ol")) == 10

    def test_what_is_picked_already_stays_in_the_field(self, shown):
        shown.search.value = "Film 5 <b>"
        assert self.items(shown, "ul") == ["Film 4 &lt;b&gt;", "Film 5 &lt;b&gt;"]
