"""Pick a few movies and get ten: a widget in Jupyter and Colab, a printed list elsewhere."""

from __future__ import annotations

import html
import importlib.util
from collections.abc import Iterable
from typing import Any

import numpy as np

from rectutor.environment import in_notebook, is_on
from rectutor.evaluation import Queries, Recommender, recommend
from rectutor.sequences import Histories


def ten_titles(recommender: Recommender, titles: np.ndarray, picked: Iterable[int]) -> None:
    """Say what a model recommends after some movies; in a notebook, let the reader pick others.

    The list is printed everywhere. The widget follows it in a notebook where `ipywidgets` is
    installed, and `RECTUTOR_WIDGETS=no` leaves it out, as building the book does.

    Args:
        recommender: maps `Queries` to scores; of the user it may know the history alone.
        titles: `(num_movies + 1,)` by movie id.
        picked: the movies to begin with, oldest first; the latest ten are shown.
    """
    picker = Picker(recommender, titles, picked)
    print("watched last", *picker.chosen()[-10:], sep="\n    ")
    print("recommended", *picker.ten(), sep="\n    ")
    if not in_notebook() or not is_on("RECTUTOR_WIDGETS", default=True):
        print("in Jupyter or Colab a field follows here, to pick movies of your own")
    elif importlib.util.find_spec("ipywidgets") is None:
        print("install ipywidgets and run this cell again, to pick movies of your own")
    else:
        from IPython.display import display

        display(PickerWidget(picker).box)  # type: ignore[no-untyped-call]


class Picker:
    """Some movies, and what a model recommends after them.

    Args:
        recommender: maps `Queries` to scores.
        titles: `(num_movies + 1,)` by movie id.
        picked: movie ids, oldest first.

    Attributes:
        picked: the movie ids so far.
    """

    def __init__(
        self, recommender: Recommender, titles: np.ndarray, picked: Iterable[int] = ()
    ) -> None:
        self.recommender = recommender
        self.titles = [str(title) for title in titles]
        self.picked = [int(movie) for movie in picked]
        self._ids = {title: movie for movie, title in reversed([*enumerate(self.titles)][1:])}

    def choices(self) -> list[str]:
        """The titles that can be picked."""
        return sorted(self._ids)

    def pick(self, title: str) -> bool:
        """Add the movie of that title as the latest; whether there is one that is not picked."""
        movie = self._ids.get(title)
        if movie is None or movie in self.picked:
            return False
        self.picked.append(movie)
        return True

    def chosen(self) -> list[str]:
        """The titles picked, oldest first."""
        return [self.titles[movie] for movie in self.picked]

    def ten(self) -> list[str]:
        """The ten best titles that are not picked, best first; none before something is picked."""
        if not self.picked:
            return []
        offsets = np.array([0, 0, len(self.picked)])  # user 1 and no other
        asked = Queries(np.array([1]), Histories(np.array(self.picked, np.int32), offsets))
        k = min(10, len(self.titles) - 1)
        best = recommend(self.recommender, asked, k)[0]
        return [self.titles[movie] for movie in best if movie]


class PickerWidget:
    """A `Picker` with a field to search and pick by.

    Args:
        picker: what it shows and changes.

    Attributes:
        search: the field; a title as its value is picked, and the field emptied.
        clear: the button that begins anew.
        answer: what is picked and what is recommended, as HTML.
        box: all of it, to be displayed.
    """

    def __init__(self, picker: Picker) -> None:
        import ipywidgets

        self.picker = picker
        self.search = ipywidgets.Combobox(
            options=picker.choices(),
            placeholder="a word of its title",
            description="Watched:",
            ensure_option=True,
        )
        self.clear = ipywidgets.Button(description="Begin anew")
        self.answer = ipywidgets.HTML()
        self.search.observe(self._pick, names="value")
        self.clear.on_click(self._clear)
        row = ipywidgets.HBox([self.search, self.clear])
        self.box = ipywidgets.VBox([row, self.answer])
        self._show()

    def _pick(self, change: dict[str, Any]) -> None:
        if self.picker.pick(change["new"]):
            self.search.value = ""
            self._show()

    def _clear(self, _: Any) -> None:
        self.picker.picked.clear()
        self._show()

    def _show(self) -> None:
        parts = [
            ("You watched last", "ul", self.picker.chosen()[-10:]),
            ("Recommended", "ol", self.picker.ten()),
        ]
        self.answer.value = "".join(
            f"<b>{heading}</b><{kind}>"
            + "".join(f"<li>{html.escape(title)}</li>" for title in titles)
            + f"</{kind}>"
            for heading, kind, titles in parts
            if titles
        )
