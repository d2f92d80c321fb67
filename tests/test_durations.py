"""The minutes that a chapter says it takes come from the table's size, and from the limit."""

import math

import numpy as np
import pytest

from rectutor import durations

EACH = pytest.mark.parametrize("name", sorted(durations.COSTS))
#: Users of MovieLens 100K, about: many with few interactions, few with many.
COUNTS = np.repeat([20, 60, 150, 350], [300, 330, 200, 113])


@EACH
def test_the_data_of_the_book_takes_about_what_it_took(name):
    """SASRec took 110 seconds; no training is stopped early in the estimate."""
    assert 1.5 < durations.minutes(name, COUNTS, 1682) < 4


@EACH
def test_more_of_anything_takes_longer(name):
    base = durations.minutes(name, COUNTS, 1682)
    assert durations.minutes(name, COUNTS, 9066) > 1.5 * base
    assert durations.minutes(name, np.tile(COUNTS, 3), 1682) > 2 * base
    limited = [durations.minutes(name, COUNTS, 1682, most) for most in (1, 5, 24, 1000)]
    assert limited[0] < limited[1] < limited[2] == limited[3] == base


@EACH
def test_users_without_interactions_cost_nothing(name):
    padded = np.concatenate([COUNTS, np.zeros(5000, int)])
    assert durations.minutes(name, padded, 1682) == durations.minutes(name, COUNTS, 1682)


def test_short_histories_take_short_windows():
    assert durations.window(np.array([0, 6, 6, 6]), 50) == (10, 6.0)
    assert durations.window(np.array([70, 80]), 50)[0] == 50


def test_the_line_names_minutes_and_the_switch_or_nothing():
    told = durations.said("sasrec", COUNTS, 1682)
    most, few = (durations.minutes("sasrec", COUNTS, 1682, each) for each in (None, 5))
    assert f"about {round(most)} minutes on two cores" in told
    assert (
        f"RECTUTOR_EPOCHS=5 ends each training after 5 epochs, for a first look (about {round(few)}"
        in told
    )
    assert "RECTUTOR_EPOCHS" not in durations.said("sasrec", COUNTS, 1682, 5)
    assert durations.said("ranking", COUNTS, 1682) == ""
    assert math.isfinite(durations.minutes("gru4rec", np.array([3]), 2))
