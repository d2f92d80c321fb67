"""Sphinx roles and a list that quote what the chapters measured: no page has a figure typed in.

The figures come from `results/NAME.json` (see `rectutor.results`). In a Markdown page:

- ``{result}`gru4rec:GRU4Rec made right:ndcg` `` writes a metric of a model,
- ``{interval}`gru4rec:GRU4Rec made right:ndcg` `` its 95 % interval ("0.091 to 0.131"),
- ``{fact}`gru4rec:c8_leaked_targets` `` a fact the chapter recorded, with an optional format as in
  ``{fact}`gru4rec:c8_leaked_share:.0%` ``,
- ``{run}`gru4rec:device` `` how the chapter ran: `profile`, `backend`, `device`, `seed` or `data`.

From the study (see `rectutor.study`), which has figures over seeds, tie orders and folds:

- ``{study}`gru4rec:made right:ndcg` `` a model's mean, with its interval and the number of runs,
- ``{effect}`gru4rec:C11` `` what a correction changes, with interval and verdict, a phrase a
  comparison.

The directive `{effects}` makes a table of the latter, over all corrections.

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

from rectutor import results, study

logger = logging.getLogger(__name__)

#: Decimals of a metric; a metric that is not here gets three.
DECIMALS = {"rmse": 4}

#: The data sets these pages are about. A chapter that ran on another table (say, a reader's) may
#: measure less, and that is no error.
BOOK_DATA = ("100k", "1m")

#: The headline metrics, with their unit and sense.
UNITS = {"rmse": "RMSE, labels 0 to 1 (lower is better)", "ndcg": "NDCG@10 (higher is better)"}

#: The columns of a list of chapters: heading to the entry of `chapters.toml` with its arms.
HEADLINES = {
    "As documented": "documented",
    "Made right": "made_right",
    "Best baseline": "baselines",
}

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


def format_study(found: study.Study, target: str) -> str:
    """Write a model's mean over runs: `chapter:model:metric`.

    Raises:
        ValueError: the study has no such model, or no such metric of it.
    """
    name, _, metric = target.rpartition(":")
    arm = found.arms.get(name.replace(":", "/", 1))
    if arm is None:
        raise ValueError(f"the study has no {name!r}; it has {', '.join(found.arms) or 'nothing'}")
    if metric not in arm.metrics:
        raise ValueError(f"{name!r} has no {metric!r}; it has {', '.join(arm.metrics)}")
    digits, figure = DECIMALS.get(metric, 3), arm.metrics[metric]
    ends = f"{figure.low:.{digits}f} to {figure.high:.{digits}f}"
    return f"{figure.value:.{digits}f} ({ends}, {arm.runs} runs)"


def format_effect(found: study.Study, target: str) -> str:
    """Write what a correction changes: `chapter:C12`.

    Raises:
        ValueError: the study has no comparison of it.
    """
    chapter, _, correction = target.partition(":")
    effects = found.of(chapter, correction)
    if not effects:
        raise ValueError(f"the study has no comparison of {correction!r} in {chapter!r}")
    return "; ".join(map(_phrase, effects))


def _phrase(effect: study.Effect) -> str:
    values, change, ends = _numbers(effect)
    return f"{effect.what}: {values} ({change}, {ends}; {effect.verdict})"


def _numbers(effect: study.Effect) -> tuple[str, str, str]:
    """The metric before and after, the change, and its interval."""
    digits = DECIMALS.get(effect.metric, 3)
    values = f"{effect.from_value:.{digits}f} to {effect.to_value:.{digits}f}"
    ends = f"{effect.low:+.{digits}f} to {effect.high:+.{digits}f}"
    return f"{study.METRICS[effect.metric]} {values}", f"{effect.value:+.{digits}f}", ends


def headline(found: study.Study, chapter: Mapping[str, Any]) -> dict[str, str]:
    """A chapter's figures in the study, as documented, made right and of the best baseline.

    Args:
        found: the study.
        chapter: its entry in `notebooks/chapters.toml`.

    Returns:
        Heading to a figure such as `0.131 [0.114, 0.149]`, for those that the study has; an RMSE is
        in labels from 0 to 1. The best baseline is the one with the best mean.
    """
    metric = chapter["metric"]
    digits = DECIMALS.get(metric, 3)
    texts = {}
    for heading, key in HEADLINES.items():
        names = chapter.get(key)
        if names is None:  # baselines alone may be left out
            names = [name for name in found.arms if name.startswith("baselines/")]
        arms = [found.arms[name] for name in names if name in found.arms and "|" not in name]
        arms = [arm for arm in arms if metric in arm.metrics]
        if arms:
            best_of = min if metric == "rmse" else max
            arm = best_of(arms, key=lambda each: each.metrics[metric].value)
            best = arm.metrics[metric]
            ends = f"[{best.low:.{digits}f}, {best.high:.{digits}f}]"
            texts[heading] = f"{best.value:.{digits}f} {ends}"
            if arm.runs < study.FEWEST_RUNS:
                texts[heading] += f" ({arm.runs} runs so far)"
    return texts


class ChapterList(SphinxDirective):
    """The chapters in reading order: title, promise, best figures."""

    def run(self) -> list[nodes.Node]:
        """Write the list as Markdown and have it parsed."""
        source = Path(self.env.srcdir)
        registry = source / "notebooks" / "chapters.toml"
        for file in (registry, source / "_toc.yml", study.FILE):
            self.env.note_dependency(str(file))
        known = tomllib.loads(registry.read_text(encoding="utf-8"))
        root = self.env.docname.count("/") * "../"
        lines: list[str] = []
        for page in self.env.external_site_map:  # of sphinx-external-toc
            folder, _, name = page.rpartition("/")
            if folder != "notebooks":
                continue
            chapter = known[name]
            text = f"**[{chapter['title']}]({root}{page}.ipynb).** {chapter['promise']}"
            if "metric" in chapter:
                text += self.figures(chapter)
            lines += [text, ""]
        container = nodes.Element()
        self.state.nested_parse(StringList(lines, source="chapters.toml"), 0, container)
        return container.children

    @staticmethod
    def figures(chapter: Mapping[str, Any]) -> str:
        """The chapter's figures in the study as a sentence; nothing where it has none."""
        found = headline(study.read(), chapter)
        parts = [f"{title.lower()} {text}" for title, text in found.items()]
        return f" {UNITS[chapter['metric']]}: {', '.join(parts)}." if parts else ""


class EffectTable(SphinxDirective):
    """What every correction changes: effect, interval and verdict, a row a comparison."""

    def run(self) -> list[nodes.Node]:
        """Write the table as Markdown and have it parsed."""
        self.env.note_dependency(str(study.FILE))
        lines = [
            "| | chapter | what changes | metric | effect | verdict | runs |",
            "|:--|:--|:--|:--|:--|:--|--:|",
        ]
        effects = [effect for effect in study.read().effects if effect.correction]
        effects.sort(key=lambda effect: (int(effect.correction[1:]), effect.chapter))
        for effect in effects:
            values, change, ends = _numbers(effect)
            label = f"{effect.chapter.replace('_', '-')}-{effect.correction.lower()}"
            cells = [
                f"{{ref}}`{effect.correction} <{label}>`",
                effect.chapter.replace("_", "-"),
                effect.what,
                values,
                f"{change} ({ends})",
                effect.verdict,
                str(effect.runs),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        container = nodes.Element()
        self.state.nested_parse(StringList(lines, source="study.json"), 0, container)
        return container.children


class FigureRole(SphinxRole):
    """A role that writes a measured figure.

    Args:
        write: makes the text from what was measured and from what the role holds.
    """

    def __init__(self, write: Callable[[Any, str], str]) -> None:
        super().__init__()
        self.write = write

    def found(self, text: str) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """The figure."""
        return [nodes.inline(text=text, classes=["measured"])], []

    def missing(self, error: Exception) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Warn, and write a mark that nobody overlooks."""
        logger.warning("{%s}`%s`: %s", self.name, self.text, error, location=self.get_location())
        return [nodes.strong(text="?")], []


class ResultRole(FigureRole):
    """A role that reads `results/CHAPTER.json`: `CHAPTER:` and what to write of it."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Write the figure, or say that it is missing."""
        record: Mapping[str, Any] | None = None
        try:
            chapter, rest = split_target(self.text)
            path = Path(self.env.srcdir) / "results" / f"{chapter}.json"
            self.env.note_dependency(str(path))
            record = results.read(path)
            return self.found(self.write(record, rest))
        except (FileNotFoundError, ValueError) as error:
            if record is not None and record["data"]["name"] not in BOOK_DATA:
                return [nodes.emphasis(text="not measured on this data")], []
            return self.missing(error)


class StudyRole(FigureRole):
    """A role that reads the study."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Write the figure, or say that it is missing."""
        self.env.note_dependency(str(study.FILE))
        try:
            return self.found(self.write(study.read(), self.text))
        except ValueError as error:
            return self.missing(error)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the roles and the directive."""
    app.add_directive("chapters", ChapterList)
    app.add_directive("effects", EffectTable)
    app.add_role("result", ResultRole(format_result))
    app.add_role("interval", ResultRole(format_interval))
    app.add_role("fact", ResultRole(format_fact))
    app.add_role("run", ResultRole(format_run))
    app.add_role("study", StudyRole(format_study))
    app.add_role("effect", StudyRole(format_effect))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
