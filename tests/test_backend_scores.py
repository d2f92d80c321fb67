"""The same weights give the same scores on jax, tensorflow and torch, to 1e-4."""

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from chapters import names

SCRIPT = Path(__file__).parent / "backend_scores.py"

pytestmark = pytest.mark.slow


@functools.cache
def scores_on(backend):
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "scores.npz"
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(out)],
            env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        with np.load(out) as found:
            return dict(found)


def of(name, backend):
    return {what: x for what, x in scores_on(backend).items() if what.startswith(f"{name}: ")}


@pytest.mark.parametrize("name", [name for name in names() if name != "leaderboard"])
@pytest.mark.parametrize("backend", ["tensorflow", "torch"])
def test_the_same_weights_give_the_same_scores(name, backend):
    expected, found = of(name, "jax"), of(name, backend)
    assert len(expected) >= 2
    assert found.keys() == expected.keys()
    for what, scores in expected.items():
        assert np.abs(scores).max() > 0.01, what
        np.testing.assert_allclose(found[what], scores, atol=1e-4, rtol=1e-4, err_msg=what)
