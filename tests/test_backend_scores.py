"""The same weights give the same scores on jax, tensorflow and torch, to 1e-4."""

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent / "backend_scores.py"

pytestmark = pytest.mark.long


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


@pytest.mark.parametrize("backend", ["tensorflow", pytest.param("torch", marks=pytest.mark.torch)])
def test_the_same_weights_give_the_same_scores(backend):
    expected, found = scores_on("jax"), scores_on(backend)
    assert len(expected) >= 10
    assert found.keys() == expected.keys()
    for what, scores in expected.items():
        assert np.abs(scores).max() > 0.01, what
        np.testing.assert_allclose(found[what], scores, atol=1e-4, rtol=1e-4, err_msg=what)
