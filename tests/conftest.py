"""Settings every test shares, and the counts that book/reliability.md shows."""

import json
import os
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path

from hypothesis import HealthCheck, is_hypothesis_test, settings

# nothing a test does may touch the reader's own cache, results or environment choices
for name in ("RECTUTOR_DATA", "RECTUTOR_PROFILE", "RECTUTOR_RESUME", "RECTUTOR_STRICT"):
    os.environ.pop(name, None)
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two tests run at once: more would only wait

PROFILE = os.environ.get("RECTUTOR_HYPOTHESIS", "default")

COMPILED = None
if PROFILE != "nightly" and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Most of a short run is compiling: compile a function once a session, and without the passes
    # that pay only in a long run. The nightly tests compile as a reader's runs do.
    COMPILED = tempfile.mkdtemp(prefix="rectutor-jax-")
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": COMPILED,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }

_slow_is_fine = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("default", max_examples=50, deadline=None, derandomize=True)
settings.register_profile(
    "nightly", max_examples=1_000, deadline=None, suppress_health_check=_slow_is_fine
)
settings.register_profile("mutation", max_examples=10, deadline=None, derandomize=True)
settings.load_profile(PROFILE)

#: Markers whose tests the reliability page counts; property tests are found by themselves.
COUNTED = ("fault", "bad_input", "property_test")


def pytest_addoption(parser):
    parser.addoption(
        "--reliability", metavar="FILE", help="write the counts of the reliability page to FILE"
    )


def pytest_unconfigure():
    if COMPILED:  # only in the process that made it: workers are told of it
        shutil.rmtree(COMPILED, ignore_errors=True)


def pytest_collection_modifyitems(items):
    for item in items:
        if is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker("property_test")


def pytest_runtest_makereport(item, call):
    """Tell the process that counts which marked test this was (workers report to it)."""
    if call.when == "call":
        kinds = [kind for kind in COUNTED if item.get_closest_marker(kind)]
        if kinds:
            item.user_properties.append(("reliability", [kinds[0], Path(item.path).stem]))


class Counter:
    """Counts marked tests in the one process that sees every report."""

    def __init__(self, config):
        self.counts = defaultdict(lambda: {"passed": 0, "failed": 0})
        self.file = Path(config.getoption("--reliability"))

    def pytest_runtest_logreport(self, report):
        if report.when != "call" or report.skipped:
            return
        for name, value in report.user_properties:
            if name == "reliability":
                kind, module = value
                test = report.nodeid.split("::")[-1].split("[")[0]
                self.counts[kind, module, test]["passed" if report.passed else "failed"] += 1

    def pytest_sessionfinish(self):
        rows = [
            {"kind": kind, "module": module, "test": test, **count}
            for (kind, module, test), count in sorted(self.counts.items())
        ]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def pytest_sessionstart(session):
    config = session.config
    if config.getoption("--reliability") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Counter(config))
