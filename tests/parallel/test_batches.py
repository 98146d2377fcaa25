"""The border of a batch against a walk over all batches."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moeplan.parallel.batches import border, least_carrying

CURVES = st.tuples(
    st.floats(0.01, 10), st.floats(0.2, 3), st.floats(0, 1e4), st.integers(1, 400)
)  # slope, power, limit, most


def over(batch, slope, power, limit):
    return slope * batch**power - limit


def walk(slope, power, limit, most):
    """The last of the batches before the first that is over the limit, one by one."""
    best = 1
    for batch in range(1, most + 1):
        if over(float(batch), slope, power, limit) > 0:
            break
        best = batch
    return best


@given(CURVES)
def test_numbers(curve):
    slope, power, limit, most = curve
    found = border(lambda batch, at: over(batch, slope, power, limit), float(most))
    assert found == walk(*curve)


@given(st.lists(CURVES, min_size=1, max_size=30))
def test_arrays_are_asked_about_the_rows_that_are_left(curves):
    slope, power, limit, most = (np.array(column, float) for column in zip(*curves, strict=True))
    asked = []

    def here(batch, at):
        asked.append(batch.size)
        blocks = batch.size // at.size
        return over(batch, *(np.tile(x[at], blocks) for x in (slope, power, limit)))

    found = border(here, most)
    assert found.tolist() == [walk(*curve) for curve in curves]
    assert len(asked) <= 25  # rounds, whatever the number of rows


def test_steps_in_a_curve_do_not_stop_it():
    """Times rise in steps of tiles; of the plateau at the limit the end is found."""
    for most in (1, 2, 3, 1000, 10**6):
        found = border(lambda batch, at: float(batch // 128) - 3, float(most))
        assert found == min(most, 511)


def test_the_least_batch_that_carries_is_before_a_dip():
    """Output rises to 100 at a batch of 50, dips, and comes back: 50 is enough for 99."""

    def step(batch, at):
        output = np.where(batch <= 50, 2 * batch, np.where(batch < 400, 60 + batch / 10, batch / 2))
        return batch / output

    for rate, least in ((99, 50), (10, 5), (100.5, 400), (1, 1)):
        found = least_carrying(
            step, np.array([1000.0, 1000.0]), rate=np.full(2, float(rate)), prefill=0.0,
            gpus=np.ones(2), output=1,
        )  # fmt: skip
        assert found.tolist() == [least, least]
