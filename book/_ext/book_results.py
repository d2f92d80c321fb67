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

A chapter's figures stand as a picture under the diagram of its model.

The directive `{corrections}` makes a table of the latter, over all corrections that its page has
sections of.

The directive `{chapters}` lists the chapters in reading order, each with what it promises
(`notebooks/chapters.toml`) and its best figures.

A figure that is not there is a build warning, and so, with ``-W``, an error: it names the file,
what was asked for and what there is.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
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


def headline_arms(found: study.Study, chapter: Mapping[str, Any]) -> dict[str, study.Arm]:
    """A chapter's models in the study, as documented, made right and the best baseline.

    Args:
        found: the study.
        chapter: its entry in `notebooks/chapters.toml`.

    Returns:
        Heading to model, for those that the study has. The best baseline is the one with the best
        mean.
    """
    metric = chapter["metric"]
    best_of = min if metric == "rmse" else max
    best = {}
    for heading, key in HEADLINES.items():
        names = chapter.get(key)
        if names is None:  # baselines alone may be left out
            names = [name for name in found.arms if name.startswith("baselines/")]
        arms = [found.arms[name] for name in names if name in found.arms and "|" not in name]
        arms = [arm for arm in arms if metric in arm.metrics]
        if arms:
            best[heading] = best_of(arms, key=lambda each: each.metrics[metric].value)
    return best


def headline(found: study.Study, chapter: Mapping[str, Any]) -> dict[str, str]:
    """A chapter's figures in the study, see `headline_arms`.

    Returns:
        Heading to a figure such as `0.131 [0.114, 0.149]`; an RMSE is in labels from 0 to 1.
    """
    metric = chapter["metric"]
    digits = DECIMALS.get(metric, 3)
    texts = {}
    for heading, arm in headline_arms(found, chapter).items():
        best = arm.metrics[metric]
        ends = f"[{best.low:.{digits}f}, {best.high:.{digits}f}]"
        texts[heading] = f"{best.value:.{digits}f} {ends}"
        if arm.runs < study.FEWEST_RUNS:
            texts[heading] += f" ({arm.runs} runs so far)"
    return texts


def headline_picture(found: study.Study, chapter: Mapping[str, Any]) -> str:
    """A chapter's figures in the study as SVG: a dot and an interval a model."""
    metric = chapter["metric"]
    arms = {
        heading: (arm, arm.metrics[metric])
        for heading, arm in headline_arms(found, chapter).items()
    }
    if any(figure.low is None or figure.high is None for _, figure in arms.values()) or not arms:
        return ""
    first = 0.0 if metric == "ndcg" else min(figure.low for _, figure in arms.values())
    last = max(figure.high for _, figure in arms.values())
    scale = 300 / (last - first)
    told = "; ".join(f"{name.lower()} {text}" for name, text in headline(found, chapter).items())
    lines = [
        '<svg class="rd-diagram rh-picture" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 480 '
        f'{30 * len(arms) + 40}" role="img" aria-label="{told}">'
    ]
    for row, (heading, (arm, figure)) in enumerate(arms.items()):
        y = 22 + 30 * row
        low, middle, high = (
            148 + (each - first) * scale for each in (figure.low, figure.value, figure.high)
        )
        kind = HEADLINES[heading]
        value = f"{figure.value:.{DECIMALS.get(metric, 3)}f}"
        lines += [
            f'<text class="rh-text" x="134" y="{y + 5}" text-anchor="end">{heading}</text>',
            f'<line class="rh-{kind}" x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}"/>',
            f'<circle class="rh-{kind}" cx="{middle:.1f}" cy="{y}" r="5"/>',
            f'<text class="rh-text" x="{middle:.1f}" y="{y - 9}" text-anchor="middle">'
            f"{value}</text>",
        ]
        if kind == "baselines":
            name = arm.name.partition("/")[2]
            lines.append(
                f'<text class="rh-note" x="134" y="{y + 20}" text-anchor="end">{name}</text>'
            )
    bottom = 30 * len(arms) + 32
    note = f"{UNITS[metric]}; 95 % intervals, from the study"
    lines += [
        f'<text class="rh-note" x="472" y="{bottom}" text-anchor="end">{note}</text>',
        "</svg>",
    ]
    return "\n".join(lines)


def add_headline(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put a chapter's figures under the diagram of its model."""
    folder, _, name = docname.rpartition("/")
    registry = Path(app.srcdir) / "notebooks" / "chapters.toml"
    if folder != "notebooks" or not registry.is_file():
        return
    chapter = tomllib.loads(registry.read_text(encoding="utf-8")).get(name, {})
    for image in doctree.findall(nodes.image):
        if "metric" in chapter and Path(image["uri"]).name.startswith("model-"):
            block = image.parent
            picture = nodes.raw("", headline_picture(study.read(), chapter), format="html")
            block.parent.insert(block.parent.index(block) + 1, picture)
            return


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


@dataclass(frozen=True)
class Correction:
    """What the page of corrections says of one.

    Attributes:
        title: what is wrong.
        proofs: labels of the boxes that prove it, to what the page calls their chapters.
    """

    title: str
    proofs: dict[str, str]


def corrections_of(page: str) -> dict[str, Correction]:
    """The corrections that a page in Markdown has sections of, by name: `"C12"`.

    Args:
        page: its text. A section begins `### C12: what is wrong`, and its boxes are what it links
            to by a label that ends in `-c12`.
    """
    _, *parts = re.split(r"^### (C\d+): (.+)$", page, flags=re.MULTILINE)
    found = {}
    for name, title, section in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        links = re.findall(rf"{{ref}}`([^<`]+) <([\w-]+-{name.lower()})>`", section)
        found[name] = Correction(title, {label: text for text, label in links})
    return found


def severities_of(lines: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """How bad each correction is, worst first.

    Args:
        lines: a line a kind, such as `wrong model: C4, C6`; blank ones are left out.
        known: the corrections that there are.

    Raises:
        ValueError: they do not name every correction once.
    """
    pairs = [
        (name.strip(), kind.strip())
        for kind, _, names in (line.partition(":") for line in lines if line.strip())
        for name in names.split(",")
    ]
    told = sorted(name for name, _ in pairs)
    if told != sorted(known):
        odd = {name for name in told if told.count(name) > 1} | {*told} ^ {*known}
        raise ValueError(f"named not at all, twice or without a section: {', '.join(sorted(odd))}")
    return dict(pairs)


def correction_rows(
    corrections: Mapping[str, Correction],
    severities: Mapping[str, str],
    effects: Iterable[study.Effect],
) -> list[list[str]]:
    """The rows of the table of corrections, in Markdown.

    Args:
        corrections: by name.
        severities: how bad each is; their order is that of the rows.
        effects: what the study compared.

    Returns:
        A row a comparison, and one for each correction that the study has none of: name, what is
        wrong, how bad, the fix's effect with its interval, verdict, chapter.
    """
    compared = list(effects)
    rows = []
    for name, kind in severities.items():
        correction = corrections[name]
        about = [name, correction.title, kind]
        proofs = {label: f"{{ref}}`{text} <{label}>`" for label, text in correction.proofs.items()}
        own = [effect for effect in compared if effect.correction == name]
        for effect in own:
            _, change, ends = _numbers(effect)
            told = f"{change} ({ends}) {study.METRICS[effect.metric]}: {effect.what}"
            label = f"{effect.chapter.replace('_', '-')}-{name.lower()}"
            rows.append([*about, told, effect.verdict, proofs[label]])
        if not own:
            rows.append([*about, "", "", ", ".join(proofs.values())])
    return rows


class CorrectionTable(SphinxDirective):
    """All corrections of the page: what is wrong, how bad, the fix's effect, verdict, chapter."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Write the table as Markdown and have it parsed."""
        self.env.note_dependency(str(study.FILE))
        page = Path(self.env.doc2path(self.env.docname)).read_text(encoding="utf-8")
        corrections = corrections_of(page)
        try:
            severities = severities_of(self.content, corrections)
        except ValueError as error:
            logger.warning("{corrections}: %s", error, location=self.get_location())
            return []
        headings = ["no.", "what is wrong", "how bad", "effect of the fix", "verdict", "chapter"]
        rows = correction_rows(corrections, severities, study.read().effects)
        lines = [f"| {' | '.join(cells)} |" for cells in (headings, [":--"] * 6, *rows)]
        container = nodes.Element()
        self.state.nested_parse(StringList(lines, source="study.json"), 0, container)
        for table in container.findall(nodes.table):
            table["classes"].append("sortable")
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
    app.connect("doctree-resolved", add_headline)
    app.add_directive("chapters", ChapterList)
    app.add_directive("corrections", CorrectionTable)
    app.add_role("result", ResultRole(format_result))
    app.add_role("interval", ResultRole(format_interval))
    app.add_role("fact", ResultRole(format_fact))
    app.add_role("run", ResultRole(format_run))
    app.add_role("study", StudyRole(format_study))
    app.add_role("effect", StudyRole(format_effect))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
