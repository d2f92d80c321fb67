"""Sphinx roles and a list that quote what the chapters measured: no page has a figure typed in.

The figures come from `results/NAME.json` (see `rectutor.results`). In a Markdown page:

- ``{result}`gru4rec:GRU4Rec made right:ndcg` `` writes a metric of a model,
- ``{interval}`gru4rec:GRU4Rec made right:ndcg` `` its 95 % interval ("0.091 to 0.131"),
- ``{fact}`gru4rec:c8_leaked_targets` `` a fact the chapter recorded, with an optional format as in
  ``{fact}`gru4rec:c8_leaked_share:.0%` ``,
- ``{run}`gru4rec:device` `` how the chapter ran: `profile`, `backend`, `device`, `seed` or `data`.

The directive `{chapters}` lists the chapters in reading order, each with what it promises
(`notebooks/chapters.toml`) and its best figures.

A figure that is not there is a build warning, and so, with ``-W``, an error: it names the file,
what was asked for and what there is.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

from rectutor import results

logger = logging.getLogger(__name__)

#: Decimals of a metric; a metric that is not here gets three.
DECIMALS = {"rmse": 4}

#: The data sets these pages are about. A chapter that ran on another table (say, a reader's) may
#: measure less, and that is no error.
BOOK_DATA = ("100k", "1m")

#: The headline metrics, with their unit and sense.
UNITS = {"rmse_stars": "RMSE, stars (lower is better)", "ndcg": "NDCG@10 (higher is better)"}

#: The columns of a list of chapters: the best model of each of these recipes.
BEST = {"As documented": "documented", "Made right": "made right", "Best baseline": "baseline"}

#: What `{run}` can say of a chapter.
RUN_FIELDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "profile": lambda record: str(record["profile"]),
    "backend": lambda record: str(record["backend"]),
    "device": lambda record: str(record["device"]),
    "seed": lambda record: str(record["seed"]),
    "data": lambda record: str(record["data"]["name"]),
}


def split_target(text: str) -> tuple[str, str]:
    """Split `chapter:rest` at its first colon.

    Raises:
        ValueError: there is no colon, or nothing on one side of it.
    """
    chapter, _, rest = (part.strip() for part in text.partition(":"))
    if not chapter or not rest:
        raise ValueError(f"{text!r} does not read 'chapter:what'")
    return chapter, rest


def find_metric(record: Mapping[str, Any], target: str) -> dict[str, float | None]:
    """Find `model:metric` in a results record.

    Args:
        record: a record that `rectutor.results.check` accepts.
        target: the model's name as stored, a colon, and the metric's name.

    Returns:
        The metric's `value`, `low` and `high`.

    Raises:
        ValueError: no such model, no such metric of it, or more than one; the message lists what
            there is.
    """
    model, _, metric = (part.strip() for part in target.rpartition(":"))
    named = [entry for entry in record["models"] if entry["model"] == model]
    if not named:
        known = ", ".join(repr(entry["model"]) for entry in record["models"]) or "none"
        raise ValueError(f"no model {model!r}; the models are {known}")
    found = [entry["metrics"][metric] for entry in named if metric in entry["metrics"]]
    if len(found) != 1:
        known = ", ".join(sorted({name for entry in named for name in entry["metrics"]}))
        many = f"{len(found)} values" if found else "no metric"
        raise ValueError(f"{many} {metric!r} of {model!r}; its metrics are {known}")
    return dict(found[0])


def format_result(record: Mapping[str, Any], target: str) -> str:
    """Write the value of a model's metric (see `find_metric`)."""
    value = find_metric(record, target)["value"]
    return f"{value:.{DECIMALS.get(target.rpartition(':')[2].strip(), 3)}f}"


def format_interval(record: Mapping[str, Any], target: str) -> str:
    """Write the 95 % interval of a model's metric (see `find_metric`) as "low to high"."""
    metric = find_metric(record, target)
    if metric["low"] is None or metric["high"] is None:
        raise ValueError(f"{target!r} was recorded without an interval; quote it with 'result'")
    decimals = DECIMALS.get(target.rpartition(":")[2].strip(), 3)
    return f"{metric['low']:.{decimals}f} to {metric['high']:.{decimals}f}"


def format_fact(record: Mapping[str, Any], target: str) -> str:
    """Write a recorded fact: `key`, or `key:format` with a format of Python's `format`.

    Raises:
        ValueError: there is no such fact, or the format does not suit it.
    """
    key, _, specification = target.partition(":")
    facts = record["facts"]
    if key.strip() not in facts:
        known = ", ".join(sorted(facts)) or "none"
        raise ValueError(f"no fact {key.strip()!r}; the facts are {known}")
    value = facts[key.strip()]
    if specification:
        return format(value, specification.strip())
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def format_run(record: Mapping[str, Any], target: str) -> str:
    """Write how the chapter ran: one of `RUN_FIELDS`.

    Raises:
        ValueError: there is no such field.
    """
    if target not in RUN_FIELDS:
        raise ValueError(f"no field {target!r}; the fields are {', '.join(RUN_FIELDS)}")
    return RUN_FIELDS[target](record)


def format_best(record: Mapping[str, Any], recipe: str, metric: str) -> str:
    """Write the best value of a metric among the models of one recipe, with its interval.

    Returns:
        Such as `0.131 [0.114, 0.149]`; nothing where no model of the recipe has the metric.
    """
    lower = metric.startswith("rmse")
    protocol = "rating" if lower else "leave-one-out"
    values = [
        entry["metrics"][metric]
        for entry in record["models"]
        if (entry["recipe"], entry["protocol"]) == (recipe, protocol) and metric in entry["metrics"]
    ]
    if not values:
        return ""
    best = (min if lower else max)(values, key=lambda interval: interval["value"])
    if best["low"] is None:
        return f"{best['value']:.3f}"
    return f"{best['value']:.3f} [{best['low']:.3f}, {best['high']:.3f}]"


class ChapterList(SphinxDirective):
    """The chapters in reading order: title, promise, best figures."""

    def run(self) -> list[nodes.Node]:
        """Write the list as Markdown and have it parsed."""
        source = Path(self.env.srcdir)
        registry = source / "notebooks" / "chapters.toml"
        for file in (registry, source / "_toc.yml"):
            self.env.note_dependency(str(file))
        known = tomllib.loads(registry.read_text(encoding="utf-8"))
        root = self.env.docname.count("/") * "../"
        lines: list[str] = []
        for page in self.env.external_site_map:  # of sphinx-external-toc
            folder, _, name = page.rpartition("/")
            if folder != "notebooks":
                continue
            chapter, file = known[name], source / "results" / f"{name}.json"
            text = f"**[{chapter['title']}]({root}{page}.ipynb).** {chapter['promise']}"
            self.env.note_dependency(str(file))
            if "metric" in chapter and file.is_file():
                text += self.figures(results.read(file), chapter["metric"])
            lines += [text, ""]
        container = nodes.Element()
        self.state.nested_parse(StringList(lines, source="chapters.toml"), 0, container)
        return container.children

    @staticmethod
    def figures(record: Mapping[str, Any], metric: str) -> str:
        """The chapter's best figures as a sentence; nothing where it has none."""
        found = {title: format_best(record, recipe, metric) for title, recipe in BEST.items()}
        parts = [f"{title.lower()} {text}" for title, text in found.items() if text]
        return f" {UNITS[metric]}: {', '.join(parts)}." if parts else ""


class ResultRole(SphinxRole):
    """A role that reads `results/CHAPTER.json` and writes one of its figures.

    Args:
        write: makes the text from the record and what follows the chapter's name.
    """

    def __init__(self, write: Callable[[Mapping[str, Any], str], str]) -> None:
        super().__init__()
        self.write = write

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Write the figure, or warn and write a mark that nobody overlooks."""
        record: Mapping[str, Any] | None = None
        try:
            chapter, rest = split_target(self.text)
            path = Path(self.env.srcdir) / "results" / f"{chapter}.json"
            self.env.note_dependency(str(path))
            record = results.read(path)
            text = self.write(record, rest)
        except (FileNotFoundError, ValueError) as error:
            if record is not None and record["data"]["name"] not in BOOK_DATA:
                return [nodes.emphasis(text="not measured on this data")], []
            logger.warning(
                "{%s}`%s`: %s", self.name, self.text, error, location=self.get_location()
            )
            return [nodes.strong(text="?")], []
        return [nodes.inline(text=text, classes=["measured"])], []


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the roles and the directive."""
    app.add_directive("chapters", ChapterList)
    app.add_role("result", ResultRole(format_result))
    app.add_role("interval", ResultRole(format_interval))
    app.add_role("fact", ResultRole(format_fact))
    app.add_role("run", ResultRole(format_run))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
