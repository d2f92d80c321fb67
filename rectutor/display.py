"""Figures and tables as a notebook shows them or a script prints them, and how figures look."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rectutor import results
from rectutor.environment import in_notebook

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def show(figure: Figure, name: str) -> None:
    """Show a figure: in the notebook, or as an SVG file beside the results in a script.

    Args:
        figure: the finished figure; it is closed afterwards.
        name: the file's name, without the ending.
    """
    import matplotlib.pyplot as plt
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if "$" in text.get_text() and "\\" not in text.get_text():
            text.set_parse_math(False)  # a price in a title, and no formula
    if in_notebook():
        from IPython.display import display

        display(figure)  # type: ignore[no-untyped-call]
    else:
        path = results.folder() / "figures" / f"{name}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        print(f"figure: {results.relative(path)}")
    plt.close(figure)


def show_table(table: Any, caption: str | None = None, number: int = 0) -> None:
    """Show a table: as HTML in a notebook, as text in a terminal.

    What a table holds is text, never markup or mathematics: titles come from anybody's data.

    Args:
        table: a DataFrame or a Series, or anything that displays itself (`Evaluation`,
            `Comparison`).
        caption: one line above the table.
        number: tells the tables of one page apart, and is the same from run to run.
    """
    import pandas as pd

    if isinstance(table, pd.Series):
        table = table.to_frame()
    is_frame = isinstance(table, pd.DataFrame)
    has_index = is_frame and not isinstance(table.index, pd.RangeIndex)
    if is_frame and len(table):
        table = table.apply(_readable)
    if is_frame and in_notebook():
        table = table.rename_axis(index=_escaped, columns=_escaped)
        style = table.style.format(na_rep="", escape="html")
        style = style.format_index(escape="html").format_index(escape="html", axis="columns")
        style = style.set_uuid(f"table-{number}")
        table = style.set_table_attributes('class="tex2jax_ignore mathjax_ignore"')
        if not has_index:
            table = table.hide(axis="index")
        if caption:
            table = table.set_caption(html.escape(caption))
    elif caption:
        print(caption)
    if in_notebook():
        from IPython.display import display

        display(table)  # type: ignore[no-untyped-call]
    elif is_frame:
        print(table.to_string(index=has_index, na_rep=""))
    else:
        print(table)


def _readable(column: pd.Series) -> pd.Series:
    """Numbers as text: whole ones as such, others with four digits of the largest one."""
    import numpy as np

    if column.dtype.kind not in "if":
        return column
    finite = column[np.isfinite(column)]
    largest = float(finite.abs().max()) if len(finite) else 0.0
    if (finite % 1 == 0).all():
        form = "{:,.0f}" if largest >= 10_000 else "{:.0f}"  # years have no comma
    else:
        form = f"{{:.{min(max(3 - math.floor(math.log10(largest)), 0), 4)}f}}"
    return column.map(form.format, na_action="ignore").astype(object)


def intervals(
    rows: Mapping[str, Any],
    label: str,
    kinds: Mapping[str, str] | None = None,
    rest: str = "others",
    zero: bool = False,
) -> Figure:
    """Draw values with their intervals, a line a row, the first at the top.

    Args:
        rows: what to call each, to something with `value`, `low` and `high`.
        label: of the horizontal axis, with the unit.
        kinds: what each row is, which decides its colour and stands in the legend.
        rest: the kind of rows that `kinds` does not have.
        zero: a line at zero, in place of an axis that starts there.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 1.0 + 0.27 * max(len(rows), 1)))
    of = {name: (kinds or {}).get(name, rest) for name in rows}
    for number, kind in enumerate(dict.fromkeys(of.values())):
        places = [place for place, name in enumerate(rows) if of[name] == kind]
        shown = [list(rows.values())[place] for place in places]
        colour = f"C{number}"
        ends = [row.low for row in shown], [row.high for row in shown]
        axes.hlines(places, *ends, color=colour, linewidth=2.5, alpha=0.5)
        axes.plot([row.value for row in shown], places, "o", color=colour, label=kind)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=9)
    axes.set(xlabel=label, ylim=(len(rows) - 0.4, -0.6))
    if zero:
        axes.axvline(0.0, color="0.4", linewidth=1)
    else:
        axes.set_xlim(0, None)
    if kinds:
        axes.legend(loc="best")
    return figure


def flow(
    places: Mapping[str, tuple[float, float]], arrows: Iterable[tuple[str, str, str]]
) -> Figure:
    """Draw boxes and labelled arrows between them.

    Args:
        places: what stands in a box, and where its middle is: a column and a row apart is 1.
        arrows: from which box to which, and what stands beside the arrow.
    """
    import matplotlib.pyplot as plt

    columns, rows = zip(*places.values(), strict=True)
    size = 1.8 * (max(columns) - min(columns) + 0.8), 1.6 * (max(rows) - min(rows) + 0.6)
    figure, ax = plt.subplots(figsize=size)
    for name, (x, y) in places.items():
        box = {"boxstyle": "round,pad=0.4", "fc": "#e8f1f8", "ec": "C0"}
        ax.text(x, y, name, bbox=box, ha="center", va="center")
    for begin, end, text in arrows:
        style = {"arrowstyle": "->", "shrinkA": 36, "shrinkB": 36}
        ax.annotate("", places[end], places[begin], arrowprops=style)
        x, y = ((a + b) / 2 for a, b in zip(places[begin], places[end], strict=True))
        side = 0.26 if y >= sum(rows) / len(rows) else -0.26
        ax.text(x, y + side, text, fontsize=9, ha="center", va="center")
    ax.set(xlim=(min(columns) - 0.4, max(columns) + 0.4), ylim=(min(rows) - 0.3, max(rows) + 0.3))
    ax.axis("off")
    return figure


def _escaped(name: object) -> str | None:
    """The name of an index as HTML; none stays none."""
    return None if name is None else html.escape(str(name))


def plot_style() -> None:
    """Figures as crisp SVG, the same bytes for the same numbers, in colour-blind-safe colours."""
    import matplotlib as mpl
    from cycler import cycler

    if in_notebook():
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        svg = {"facecolor": "white", "metadata": {"Date": None}}
        set_matplotlib_formats("svg", **svg)  # type: ignore[no-untyped-call]
    else:
        mpl.use("agg")
    # Okabe and Ito's palette, in the order that keeps neighbours apart
    palette = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
    mpl.rcParams.update(
        {
            "axes.grid": True,
            "axes.prop_cycle": cycler(color=palette),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "figure.figsize": (7.0, 3.6),
            "font.size": 10.5,
            "grid.alpha": 0.25,
            "legend.frameon": False,
            "savefig.facecolor": "white",
            "svg.fonttype": "path",
            "svg.hashsalt": "rectutor",
        }
    )
