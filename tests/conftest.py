"""Settings every test shares."""

import os

from hypothesis import HealthCheck, settings

# nothing a test does may touch the reader's own cache, results or environment choices
for name in ("RECTUTOR_DATA", "RECTUTOR_PROFILE", "RECTUTOR_RESUME", "RECTUTOR_STRICT"):
    os.environ.pop(name, None)
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

_slow_is_fine = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("default", max_examples=50, deadline=None, derandomize=True)
settings.register_profile(
    "nightly", max_examples=1_000, deadline=None, suppress_health_check=_slow_is_fine
)
settings.load_profile(os.environ.get("RECTUTOR_HYPOTHESIS", "default"))
