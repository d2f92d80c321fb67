"""Mutation testing: does a test fail when splits, sequences or evaluation are changed?

usage: python tools/mutation.py run [--sample N] [--seed S] [--resume]
                                        mutate, test, write the report; go on with a stopped run
       python tools/mutation.py again   test again what was not killed
       python tools/mutation.py write   write the page from the figures

mutmut makes the mutants and runs the tests that reach each one; `[tool.mutmut]` in pyproject.toml
says which modules and tests. It works on a copy in `_build/mutation/`. The report is
`benchmarks/mutation.json` (the figures) and `benchmarks/mutation.md` (the page); what is known
about survivors that no test can kill is in `benchmarks/mutation_equivalent.toml`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import random
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "_build" / "mutation"
FIGURES = ROOT / "benchmarks" / "mutation.json"
PAGE = ROOT / "benchmarks" / "mutation.md"
EQUIVALENT = ROOT / "benchmarks" / "mutation_equivalent.toml"
MODULES = ("splits", "sequences", "evaluation")
WANTED = 0.85

#: The exit status of a mutant's tests; whatever else it is counts as a time-out.
STATUS = {0: "survived", 1: "killed", 3: "killed", 5: "survived", 33: "survived"}


def copy_sources() -> None:
    """Put what mutmut needs in a folder of its own, so that the checkout stays as it is."""
    WORK.mkdir(parents=True, exist_ok=True)
    for name in ("rectutor", "tests"):
        shutil.rmtree(WORK / name, ignore_errors=True)
        ignored = shutil.ignore_patterns("__pycache__", "browser", "acceptance", "test_book*")
        shutil.copytree(ROOT / name, WORK / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", WORK)
    # which tests reach which function: another source or another test may have changed that
    (WORK / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)


def mutmut(*arguments: str, profile: str = "default") -> None:
    """Run mutmut on the copy; it wants neither a terminal nor our process group.

    `profile` is that of hypothesis: `"mutation"` tries few examples, enough for most mutants.
    """
    done = subprocess.run(
        [str(Path(sys.executable).parent / "mutmut"), "run", *arguments],
        cwd=WORK,
        env={**os.environ, "RECTUTOR_HYPOTHESIS": profile},
        stdin=subprocess.DEVNULL,
        stdout=(WORK / "mutmut.log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"mutmut failed; the reason ends {WORK / 'mutmut.log'}")


def mutants_of(module: str) -> list[str]:
    """The names of all mutants of a module, without testing them."""
    from mutmut.mutation.file_mutation import mutate_file_contents
    from mutmut.utils.format_utils import get_mutant_name

    path = Path("rectutor") / f"{module}.py"
    mutated = mutate_file_contents(str(path), (WORK / path).read_text(encoding="utf-8"))
    return [get_mutant_name(path, name) for name in mutated.mutant_names]


def statuses(module: str) -> dict[str, str]:
    """What became of each mutant that was tested: killed, survived or timed out."""
    kept = json.loads((WORK / f"mutants/rectutor/{module}.py.meta").read_text(encoding="utf-8"))
    return {
        name: STATUS.get(code, "timed out")
        for name, code in kept["exit_code_by_key"].items()
        if code is not None
    }


def change(name: str) -> list[str]:
    """The lines a mutant takes out (`-`) and puts in (`+`), shortened."""
    shown = subprocess.run(
        [str(Path(sys.executable).parent / "mutmut"), "show", name],
        cwd=WORK,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [line for line in shown.splitlines() if line.startswith(("+", "-"))]
    lines = [line for line in lines if not line.startswith(("+++", "---"))]
    return [f"{line[0]} {line[1:].strip()[:160]}" for line in lines]


def digest(module: str) -> str:
    """A short hash of a module's source: the mutants' numbers hold for this source only."""
    return hashlib.sha256((WORK / "rectutor" / f"{module}.py").read_bytes()).hexdigest()[:16]


def figures(sample: int | None, seed: int, resume: bool) -> dict[str, Any]:
    """Test the mutants, those that are not killed a second time and thoroughly, and count."""
    if not resume:
        shutil.rmtree(WORK, ignore_errors=True)
    copy_sources()
    names = {module: mutants_of(module) for module in MODULES}
    chosen = {
        module: sorted(random.Random(seed).sample(all_names, min(sample, len(all_names))))
        if sample
        else all_names
        for module, all_names in names.items()
    }
    wanted = [name for module in MODULES for name in chosen[module]]
    if sample and resume:
        done = {name for module in MODULES for name in statuses(module)}
        wanted = [name for name in wanted if name not in done]
    mutmut(*(wanted if sample else ()), profile="mutation")
    left = {
        name: status
        for module in MODULES
        for name, status in statuses(module).items()
        if name in set(chosen[module]) and status != "killed"
    }
    late = sum(status == "timed out" for status in left.values())
    if left:
        mutmut(*left)
    found: dict[str, Any] = {
        "mutmut": version("mutmut"),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "pandas": version("pandas"),
        "sample": {"size": sample, "seed": seed} if sample else None,
        "timed_out_at_first": late,
        "modules": {},
    }
    for module in MODULES:
        status = statuses(module)
        tested = {name: status[name] for name in chosen[module]}
        found["modules"][module] = {
            "source": digest(module),
            "mutants": len(names[module]),
            "tested": len(tested),
            "left": {
                name: {"status": state, "change": change(name)}
                for name, state in tested.items()
                if state != "killed"
            },
        }
    return found


def tested_again(found: dict[str, Any]) -> dict[str, Any]:
    """The figures after the mutants that were left have met the tests as they are now."""
    left = [name for module in MODULES for name in found["modules"][module]["left"]]
    copy_sources()
    for module in MODULES:
        if digest(module) != found["modules"][module]["source"]:
            raise SystemExit(f"rectutor/{module}.py has changed since; use `run`")
    mutmut(*left)
    for module in MODULES:
        status = statuses(module)
        kept = found["modules"][module]["left"]
        found["modules"][module]["left"] = {
            name: {**what, "status": status[name]}
            for name, what in kept.items()
            if status[name] != "killed"
        }
    return found


def interval(killed: int, tested: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    z, share = 1.96, killed / tested
    middle = share + z * z / (2 * tested)
    spread = z * math.sqrt(share * (1 - share) / tested + z * z / (4 * tested * tested))
    return (middle - spread) / (1 + z * z / tested), (middle + spread) / (1 + z * z / tested)


def score(module: dict[str, Any]) -> float:
    """The share of the tested mutants that a test killed; a time-out is no kill."""
    return 1 - len(module["left"]) / module["tested"]


def reason(name: str, lines: list[str]) -> str | None:
    """Why no test can kill this mutant, where that is known."""
    function = name.rpartition("__mutmut_")[0].split(".", 2)[2]
    added = [line for line in lines if line.startswith("+")]
    for group in tomllib.loads(EQUIVALENT.read_text(encoding="utf-8")).get("group", []):
        for place, text in group["changes"]:
            if function.endswith(place) and any(text in line for line in added):
                return str(group["why"])
    return None


def page(found: dict[str, Any]) -> str:
    """The report as Markdown."""
    sample = found["sample"]
    how = (
        f"A uniform random sample of {sample['size']} mutants a module (seed {sample['seed']})."
        if sample
        else "Every mutant was tested."
    )
    text = [
        "# Mutation testing",
        "",
        "mutmut changes one small thing in a module at a time (a mutant) and runs the tests that",
        "reach it; a mutant that no test notices survives. Made by `make mutation`; the figures",
        "are in `mutation.json`, and nothing here is typed in by hand but the reasons of",
        "`mutation_equivalent.toml`.",
        "",
        f"{how} mutmut {found['mutmut']}, Python {found['python']}, NumPy {found['numpy']}, "
        f"pandas {found['pandas']}.",
        "What was not killed at first was tested again with more examples a property test; "
        f"{found['timed_out_at_first']} had timed out. What times out twice is not counted as "
        "killed.",
        "",
        "| module | mutants | tested | killed | survived | timed out | score | known equivalent |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, module in found["modules"].items():
        left = module["left"]
        survived = sum(what["status"] == "survived" for what in left.values())
        known = sum(reason(mutant, what["change"]) is not None for mutant, what in left.items())
        low, high = interval(module["tested"] - len(left), module["tested"])
        spread = f" [{low:.1%}, {high:.1%}]" if sample else ""
        text.append(
            f"| `rectutor/{name}.py` | {module['mutants']:,} | {module['tested']:,} | "
            f"{module['tested'] - len(left):,} | {survived} | {len(left) - survived} | "
            f"{score(module):.1%}{spread} | {known} |"
        )
    text += ["", "## What survived", ""]
    for name, module in found["modules"].items():
        groups: dict[str | None, list[tuple[str, dict[str, Any]]]] = {}
        for mutant, what in module["left"].items():
            groups.setdefault(reason(mutant, what["change"]), []).append((mutant, what))
        text += [f"### `rectutor/{name}.py`", ""]
        for why, members in sorted(groups.items(), key=lambda group: (group[0] is None, group[0])):
            text += [f"Equivalent: {why}" if why else "No test notices:", "", "```diff"]
            for mutant, what in members:
                late = ", timed out" if what["status"] != "survived" else ""
                text += [f"# {mutant.split('.', 2)[2]}{late}", *what["change"]]
            text += ["```", ""]
    return "\n".join(text).rstrip() + "\n"


def main() -> int:
    """Run the command line; 0 when every module reaches the wanted score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "again", "write"))
    parser.add_argument("--sample", type=int, help="test so many mutants a module, not all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--resume", action="store_true", help="keep what a stopped run found")
    given = parser.parse_args()
    if given.command == "run":
        found = figures(given.sample, given.seed, given.resume)
    else:
        found = json.loads(FIGURES.read_text(encoding="utf-8"))
        if given.command == "again":
            found = tested_again(found)
    if given.command != "write":
        FIGURES.parent.mkdir(exist_ok=True)
        FIGURES.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(found), encoding="utf-8")
    low = [name for name, module in found["modules"].items() if score(module) < WANTED]
    for name, module in found["modules"].items():
        print(f"rectutor/{name}.py: {score(module):.1%} of {module['tested']:,} mutants killed")
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
