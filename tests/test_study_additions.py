"""The study's levers on a GRU."""

import numpy as np
from keras import ops

from study import additions
from tools import book


def test_a_gru_in_the_place_of_the_blocks_sees_no_later_movie_and_no_padding():
    code = book.definitions("sasrec_levers")
    model = additions.with_gru(code)(20, 6, width=8, heads=1)
    rows = np.array([[0, 0, 3, 4, 5, 6], [0, 0, 3, 4, 5, 9]])
    states = ops.convert_to_numpy(model(rows))
    assert states.shape == (2, 6, 8)
    np.testing.assert_allclose(states[0, 2:5], states[1, 2:5], atol=1e-6)
    assert np.abs(states[0, 5] - states[1, 5]).max() > 1e-3
    np.testing.assert_allclose(
        ops.convert_to_numpy(model(rows[:, 2:]))[0], states[0, 2:], atol=1e-5
    )
