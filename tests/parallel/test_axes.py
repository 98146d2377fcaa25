"""Degrees on axes: what they give for each layout is what the layout itself says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.parallel import axes
from moeplan.parallel.axes import DEGREES, Axes, Terms

LAYOUTS = st.lists(st.tuples(*[st.integers(1, 97)] * len(DEGREES)), min_size=1, max_size=40)


def columns(rows):
    """Layouts as DEGREES by name."""
    return dict(zip(DEGREES, np.array(rows, float).T, strict=True))


@pytest.fixture(params=["axes", "alone"])
def few(request, monkeypatch):
    """With axes whatever they hold, or with a place of its own for each layout."""
    monkeypatch.setattr(axes, "_FEW", 10**9 if request.param == "axes" else 0)
    monkeypatch.setattr(axes, "_DENSE", 0)
    return request.param


@pytest.mark.parametrize("few", ["axes", "alone"], indirect=True)
def test_layouts_find_their_degrees(few):
    @given(LAYOUTS)
    def check(rows):
        given_ = columns(rows)
        found = Axes.of(given_)
        for name in DEGREES:
            assert np.array_equal(found.located.take(found.degrees[name]), given_[name]), name
        share = given_["microbatch"] / (given_["tp"] * given_["cp"])
        assert np.array_equal(found.located.take(found.degrees["share"]), share)

    check()


@pytest.mark.parametrize("few", ["axes", "alone"], indirect=True)
def test_sums_are_those_of_each_layout(few):
    @given(LAYOUTS, st.integers(0, 39))
    def check(rows, first):
        v = columns(rows)
        found = Axes.of(v)
        d = found.degrees
        dense = Terms.of(d["tp"] * d["microbatch"], d["cp"], 3.0)
        experts = Terms.of(d["share"] * d["ep"], 0 * d["etp"])
        every = v["tp"] * v["microbatch"] + v["cp"] + 3
        others = v["microbatch"] / (v["tp"] * v["cp"]) * v["ep"]
        wide = found.located.wide(2 * dense + experts * 0.5 - 1)
        assert np.allclose(wide, 2 * every + others / 2 - 1, rtol=1e-12)
        some = np.arange(first % len(rows), len(rows))
        part = found.located.rows(some)
        assert np.allclose(part.wide(dense - experts), (every - others)[some], rtol=1e-12)
        # a product of sums must not be taken along axes that only one of them has
        both = part.together({"a": dense, "b": experts, "c": 7})
        assert np.allclose(
            part.wide(both["a"] * both["b"] + both["c"]), (every * others + 7)[some], rtol=1e-12
        )

    check()


def test_an_array_beside_a_sum_is_kept_apart():
    assert {(2,), (1, 2, 1)} == set((np.ones(2) + Terms.of(np.ones((1, 2, 1)))).arrays)
    for product in (lambda x: np.ones(2) * x, lambda x: x * np.ones(2), lambda x: x * x):
        with pytest.raises(TypeError):
            product(Terms.of(np.ones((1, 2, 1))))
