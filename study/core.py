"""What a job of the study is given, what it gives back, and where that is kept."""

from __future__ import annotations

import ast
import dataclasses
import datetime
import functools
import hashlib
import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from rectutor import chapter, results
from rectutor.data import Dataset, load_movielens
from rectutor.environment import write_text
from rectutor.evaluation import Evaluation
from rectutor.splits import Split, leave_one_out
from tools import book

RAW = book.RESULTS / "study"
#: Modules with jobs; each is `study/NAME.py`.
MODULES = ("baselines", "ranking", "retrieval", "gru4rec", "sasrec", "multi_task", "serving")
#: Modules of the package that decide a figure. A job is stale when one of them changes.
MATTER = (
    "baselines",
    "batches",
    "data",
    "evaluation",
    "ratings",
    "sequences",
    "splits",
    "training",
)


@dataclasses.dataclass(frozen=True)
class Job:
    """Trainings that share their work, repeated over runs.

    Attributes:
        chapter: whose definitions and settings it uses; `"baselines"` for those of the package.
        name: what it is called; with the chapter the name of its file.
        function: maps a `Draw` to the outcome of each arm: name to `ranked`, `rated` or `facts`.
        runs: how many times; run `r` has seed `r`, tie order `r` and fold `(r - 1) % 5 + 1`.
        seconds: about how long a run takes on one core, until one is stored.
    """

    chapter: str
    name: str
    function: Callable[[Draw], dict[str, dict[str, Any]]]
    runs: int = 5
    seconds: float = 60.0

    @property
    def key(self) -> str:
        """`chapter/name`."""
        return f"{self.chapter}/{self.name}"

    @property
    def file(self) -> Path:
        """Where its runs are kept."""
        return RAW / self.chapter / f"{self.name}.json"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two arms of the study, and what is claimed of them.

    Attributes:
        chapter: the chapter that claims it.
        what: what `after` has that `before` has not, as a reader would say it.
        before: an arm, `chapter/name`.
        after: likewise; runs of both with the same number are compared, user by user.
        metric: `"ndcg"`, `"hit_rate"` (higher is better) or `"rmse"` (lower is better).
        correction: `"C12"`, where it is the effect of one.
    """

    chapter: str
    what: str
    before: str
    after: str
    metric: str = "ndcg"
    correction: str = ""


class Draw:
    """What one run of a job is given: a seed, an order of the ties, a fold, the chapter's code.

    Args:
        of: the chapter.
        number: of the run, from 1.
        profile: whose settings are used.
    """

    def __init__(self, of: str, number: int, profile: str = "quick") -> None:
        self.chapter, self.number, self.profile = of, number, profile
        self.seed = number
        self.fold = (number - 1) % 5 + 1

    @cached_property
    def code(self) -> SimpleNamespace:
        """The chapter's classes, functions and constants."""
        return book.definitions(self.chapter)

    @cached_property
    def settings(self) -> SimpleNamespace:
        """The chapter's settings."""
        run = chapter.Run(self.chapter, self.profile, self.seed, "", "")
        return run.settings(**self.code.SETTINGS)

    @cached_property
    def data(self) -> Dataset:
        """MovieLens 100K in the order of its file (synthetic data in the `smoke` profile)."""
        return _data(self.profile)

    @cached_property
    def shuffled(self) -> Dataset:
        """The same rows in an order of this run's: ties in time fall as they happen to."""
        order = np.random.default_rng([self.number, 7]).permutation(len(self.data.ratings))
        rows = self.data.ratings.iloc[order].reset_index(drop=True)
        return dataclasses.replace(self.data, ratings=rows)

    @cached_property
    def split(self) -> Split:
        """Leave-one-out over this run's order of the ties."""
        return leave_one_out(self.shuffled)

    def folds(self) -> tuple[Any, Any]:
        """GroupLens's fold of this run: the ratings to learn from and those to test on.

        Fold K's test part is rows `20,000 (K - 1)` to `20,000 K` of the file.
        """
        ratings = self.data.ratings
        fifth = len(ratings) // 5
        start = fifth * (self.fold - 1)
        test = ratings.iloc[start : start + fifth]
        return ratings.drop(test.index), test


@functools.cache
def _data(profile: str) -> Dataset:
    if profile == "smoke":
        from rectutor.data import synthetic

        return synthetic(*chapter.SMOKE_SIZE, seed=0)
    data = load_movielens("100k")
    if data.name != "100k":
        raise RuntimeError(
            f"the study is of MovieLens 100K, and only {data.name} from {data.source} can be had; "
            "put ml-100k.zip into RECTUTOR_ARCHIVES"
        )
    return data


def ranked(found: Evaluation, **more: float) -> dict[str, Any]:
    """The outcome of an arm that ranks: each user's NDCG@10.

    Args:
        found: on the test part.
        more: numbers to keep beside it, such as `epochs=`, `seconds=`, `validation_ndcg=`.

    Returns:
        `users` (left out where they are 1, 2, 3 ...), `ndcg` to four decimals, and `facts`.
    """
    users = found.user_ids.tolist()
    kept: dict[str, Any] = {}
    if users != list(range(1, len(users) + 1)):
        kept["users"] = users
    # a user with a hit has a gain above 0, so the hit rate need not be kept beside it
    kept["ndcg"] = [round(float(gain), 4) or 0 for gain in found.per_user["ndcg"]]
    return kept | {"facts": {"coverage": found.coverage} | _plain(more)}


def rated(predicted: Any, actual: Any, user_ids: Any, **more: float) -> dict[str, Any]:
    """The outcome of an arm that predicts labels from 0 to 1: each user's squared errors.

    Args:
        predicted: `(n,)` labels.
        actual: `(n,)` likewise.
        user_ids: `(n,)` whose they are.
        more: numbers to keep beside it.

    Returns:
        `users`, the `count` of ratings of each and the sum of their `squared` errors, and `facts`.
    """
    errors = (np.ravel(np.asarray(predicted, np.float64)) - np.ravel(actual)) ** 2
    users, rows = np.unique(np.asarray(user_ids), return_inverse=True)
    return {
        "users": users.tolist(),
        "count": np.bincount(rows).tolist(),
        "squared": [float(f"{each:.5g}") for each in np.bincount(rows, errors)],
        "facts": _plain(more),
    }


def facts(**more: float) -> dict[str, Any]:
    """The outcome of an arm of which only some numbers are of interest."""
    return {"facts": _plain(more)}


def _plain(numbers: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(f"{float(value):.6g}") for name, value in numbers.items()}


def modules(names: Sequence[str] = ()) -> dict[str, Any]:
    """The modules with jobs, by name; all of them when none is named."""
    return {name: importlib.import_module(f"study.{name}") for name in names or MODULES}


def jobs(names: Sequence[str] = ()) -> list[Job]:
    """The jobs of some chapters, or of all.

    Raises:
        SystemExit: there is no chapter of that name.
    """
    wrong = [name for name in names if name not in MODULES]
    if wrong:
        raise SystemExit(f"the study has no {wrong[0]!r}; choose of {', '.join(MODULES)}")
    found = [job for module in modules(names).values() for job in module.JOBS]
    keys = [job.key for job in found]
    if len(set(keys)) < len(keys):
        raise RuntimeError(f"two jobs share a name: {sorted(keys)}")
    return found


def comparisons() -> list[Comparison]:
    """What is claimed, chapter by chapter."""
    return [each for module in modules().values() for each in module.COMPARISONS]


# --- what is kept


def read(job: Job) -> dict[str, Any]:
    """A job's file; one without runs if there is none."""
    if not job.file.is_file():
        return {"job": job.key, "runs": []}
    return dict(json.loads(job.file.read_text(encoding="utf-8")))


def keep(job: Job, number: int, arms: Mapping[str, Any], seconds: float, digest: str) -> None:
    """Add a run to a job's file, in place of an older one of that number."""
    stored = read(job)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    run = {"run": number, "date": today, "digest": digest, "seconds": round(seconds, 1)}
    run |= {"versions": results.versions(), "arms": dict(arms)}
    runs = [each for each in stored["runs"] if each["run"] != number] + [run]
    stored["runs"] = sorted(runs, key=lambda each: int(each["run"]))
    job.file.parent.mkdir(parents=True, exist_ok=True)
    write_text(_text(stored), job.file)


def _text(stored: Mapping[str, Any]) -> str:
    """JSON in which a list of numbers takes one line."""
    kept: list[str] = []

    def park(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: park(each) for name, each in value.items()}
        if isinstance(value, list) and value and not isinstance(value[0], Mapping):
            kept.append(json.dumps(value, separators=(",", ":")))
            return f"\0{len(kept) - 1}\0"
        return [park(each) for each in value] if isinstance(value, list) else value

    text = json.dumps(park(stored), indent=1)
    for index, line in enumerate(kept):
        text = text.replace(json.dumps(f"\0{index}\0"), line)
    return text + "\n"


def missing(job: Job, code: str) -> list[int]:
    """The numbers of the runs that are not stored, or were made by other code."""
    made = {run["run"] for run in read(job)["runs"] if run["digest"] == code}
    return [number for number in range(1, job.runs + 1) if number not in made]


def digest(job: Job) -> str:
    """What decides a job's figures, in 16 letters.

    That is its own code, what it uses of its chapter, the settings that these read, in the profile
    that the study has, and the modules of the package that they import. Comments, docstrings and
    the layout of the code take no part.
    """
    module = inspect.getmodule(job.function)
    assert module is not None
    source = inspect.getsource(module)
    own = _used(source, {job.function.__name__})
    code, whole, sources = [*own], list[str](), [source]
    if re.search(r"^from study import .*\bprotocol\b", source, re.MULTILINE):
        sources.append((Path(__file__).parent / "protocol.py").read_text("utf-8"))
        whole.append(_whole(sources[-1]))
    for name, used in re.findall(r"^from study\.(?!core)(\w+) import (.+)$", source, re.MULTILINE):
        sources.append((Path(__file__).parent / f"{name}.py").read_text("utf-8"))
        code += _used(sources[-1], set(used.split(", ")))
    asked = {node.attr for node in _nodes(code) if isinstance(node, ast.Attribute)}
    settings = list[ast.stmt]()
    for name in sorted({job.chapter, *re.findall(r'definitions\("(\w+)"\)', source)}):
        file = book.NOTEBOOKS / f"{name}.py"
        if file.is_file():
            sources.append(file.read_text("utf-8"))
            code += _used(sources[-1], asked - {"SETTINGS"}, of_chapter=True)
            settings += _used(sources[-1], {"SETTINGS"}, of_chapter=True)
    read = _settings_read(code)
    texts = [_text_of(code), *(_quick(each, read) for each in settings)]
    texts += [*whole, *map(_whole, _imported(sources))]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _used(source: str, names: set[str], of_chapter: bool = False) -> list[ast.stmt]:
    """The functions, classes and constants of those names, and whatever they lean on.

    Of a chapter, that is what `book.definitions` gives: no variable of a cell.
    """
    own: dict[str, ast.stmt] = {}
    for node in ast.parse(source).body:
        if of_chapter and not book.is_definition(node):
            continue
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            own |= {each.id: node for each in targets if isinstance(each, ast.Name)}
    wanted, found = list(names), dict[str, ast.stmt]()
    while wanted:
        at = wanted.pop()
        if at in own and at not in found and at not in ("JOBS", "COMPARISONS"):
            found[at] = own[at]
            wanted += [node.id for node in _nodes([own[at]]) if isinstance(node, ast.Name)]
    return [found[each] for each in sorted(found)]


def _settings_read(code: Sequence[ast.stmt]) -> set[str] | None:
    """The names of the settings that code reads; None where it may be any of them.

    What holds settings has that word in its name: `settings.width`, `settings_of(draw).width`.
    """

    def holds(node: ast.AST) -> bool:
        return "settings" in ast.unparse(node).partition("(")[0].rpartition(".")[2]

    read = set[str]()
    for node in _nodes(code):
        if isinstance(node, ast.Attribute) and holds(node.value):
            read.add(node.attr)
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if called in ("getattr", "vars") and holds(node.args[0]):
            return None
    return read


def _quick(statement: ast.stmt, read: set[str] | None) -> str:
    """A chapter's settings in the profile `quick`, those that are read alone; None: all."""
    assert isinstance(statement, ast.Assign)
    assert isinstance(statement.value, ast.Call)
    at, texts = chapter.PROFILES.index("quick"), list[str]()
    for setting in statement.value.keywords:
        if read is None or setting.arg in read:
            value = setting.value
            value = value.elts[at] if isinstance(value, ast.Tuple) else value
            texts.append(f"{setting.arg}={ast.dump(value)}")
    return "\n".join(texts)


def _imported(sources: Sequence[str]) -> list[str]:
    """The modules of `MATTER` that they import, and those that these import."""
    package, found = Path(results.__file__).parent, dict[str, str]()
    waiting = list(sources)
    while waiting:
        for name in re.findall(r"from rectutor\.(\w+) import", waiting.pop()):
            if name in MATTER and name not in found:
                found[name] = (package / f"{name}.py").read_text("utf-8")
                waiting.append(found[name])
    return [found[name] for name in sorted(found)]


def _nodes(statements: Sequence[ast.stmt]) -> list[ast.AST]:
    return [node for each in statements for node in ast.walk(each)]


@functools.cache
def _whole(source: str) -> str:
    """A module of which all counts; many jobs share it."""
    return _text_of(ast.parse(source).body)


def _text_of(statements: Iterable[ast.stmt]) -> str:
    return "\n".join(ast.dump(_bare(each)) for each in statements)


def _bare(tree: ast.AST) -> ast.AST:
    """Without docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return tree
