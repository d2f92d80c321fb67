"""Settings every test shares, and what becomes of tests whose library is missing."""

import importlib.util
import os
import shutil
import tempfile

import pytest
from hypothesis import HealthCheck, settings

# nothing a test does may touch the reader's own cache, results or environment choices
for name in ("COLUMNS", "DATA", "EXCLUDE_SEEN", "PROFILE", "STRICT"):
    os.environ.pop(f"RECTUTOR_{name}", None)
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


def pytest_unconfigure():
    if COMPILED:  # only in the process that made it: workers are told of it
        shutil.rmtree(COMPILED, ignore_errors=True)


def pytest_runtest_setup(item):
    """A test that needs PyTorch is skipped without it; where `CI` is set it fails."""
    if item.get_closest_marker("torch") and importlib.util.find_spec("torch") is None:
        reason = "NOT TESTED: PyTorch is missing; `make setup-test` says how to get it"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A folder with a made-up artefact, see `artefacts.parts`."""
    import artefacts

    from rectutor import artefact

    place = tmp_path_factory.mktemp("served")
    artefact.write(place, **artefacts.parts())
    return place
