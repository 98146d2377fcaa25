"""Formulas of users: the arithmetic of Python, and nothing else of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from moeplan.errors import UserError
from moeplan.sweeping.formula import Formula

NAMES = {"g": 4.0, "width": 14336.0, "x": 0.75}
LEAVES = st.one_of(st.sampled_from(sorted(NAMES)), st.integers(1, 99).map(str))


def _joined(below):
    return st.one_of(
        st.tuples(below, st.sampled_from(["+", "-", "*", "/", "//", "%"]), below).map(
            lambda t: f"({t[0]} {t[1]} {t[2]})"
        ),
        below.map(lambda b: f"-{b}"),
        st.tuples(st.sampled_from(["min", "max"]), below, below).map(
            lambda t: f"{t[0]}({t[1]}, {t[2]})"
        ),
    )


@given(st.recursive(LEAVES, _joined, max_leaves=8))
def test_arithmetic_is_pythons(text):
    try:
        expected = eval(text, {"min": min, "max": max}, NAMES)
    except ZeroDivisionError:
        assume(False)
    formula = Formula.of(text, "--set y")
    assert set(formula.names) <= set(NAMES)
    assert formula.over(NAMES) == pytest.approx(expected, rel=1e-12, abs=1e-9)


def test_arrays_and_dotted_names():
    formula = Formula.of("sqrt(gpu.memory_bandwidth)*2**g", "--set y")
    assert formula.names == ("gpu.memory_bandwidth", "g")
    found = formula.over({"gpu.memory_bandwidth": np.array([4.0, 9.0]), "g": 3})
    assert found.tolist() == [16.0, 24.0]


def test_no_formula_runs_for_ever():
    assert math.isinf(Formula.of("9**9**9**9", "--set y").over({}))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("__import__('os')", "no function '__import__'"),
        ("().__class__", "more than a formula"),
        ("[g for g in (1, 2)]", "more than a formula"),
        ("(lambda: 1)()", "more than a formula"),
        ("g if g else 1", "more than a formula"),
        ("'a'*8", "more than a formula"),
        ("sqr(g)", "no function 'sqr' (did you mean 'sqrt'?)"),
        ("sqrt(g, 2)", "takes one value"),
        ("min(g)", "takes two values or more"),
        ("8*", "cannot read the formula '8*'"),
        ("g:2", "cannot read"),
        ("(" * 300 + "g" + ")" * 300, "at most 400 letters"),
        ("1e999", "too large"),
        ("True", "more than a formula"),
    ],
)
def test_what_is_refused(text, said):
    with pytest.raises(UserError) as refused:
        Formula.of(text, "--set y")
    assert said in str(refused.value)
    assert str(refused.value).startswith("--set y: ")
