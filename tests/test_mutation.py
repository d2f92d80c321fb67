"""The kept report of the mutation testing says what its figures say, and they are good enough."""

import json

import chapters  # noqa: F401  (puts tools/ on the path)
import mutation
import pytest

FIGURES = json.loads(mutation.FIGURES.read_text(encoding="utf-8"))


def test_the_page_is_made_from_the_figures():
    assert mutation.PAGE.read_text(encoding="utf-8") == mutation.page(FIGURES)


@pytest.mark.parametrize("module", mutation.MODULES)
def test_enough_mutants_are_killed(module):
    found = FIGURES["modules"][module]
    assert found["tested"] >= 250
    assert mutation.score(found) >= mutation.WANTED


def test_a_reason_is_given_for_the_function_and_the_change_it_names(monkeypatch, tmp_path):
    known = tmp_path / "known.toml"
    known.write_text('[[group]]\nwhy = "clipped"\nchanges = [["rank", "k + 2"]]\n')
    monkeypatch.setattr(mutation, "EQUIVALENT", known)
    change, other = ["- return k + 1", "+ return k + 2"], ["- return k + 2", "+ return k"]
    assert mutation.reason("rectutor.evaluation.x_rank__mutmut_3", change) == "clipped"
    assert mutation.reason("rectutor.evaluation.x_rank__mutmut_4", other) is None
    assert mutation.reason("rectutor.evaluation.x_other__mutmut_3", change) is None


def test_the_interval_of_a_share_is_wilsons():
    assert mutation.interval(90, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)
