"""Quantities: what is computed is what is written, for numbers and for arrays."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.quantity import (
    Later,
    Quantity,
    Source,
    compile_formula,
    derive,
    evaluate,
    plain,
    register,
    total,
)

CONFIG = Source("config", "hidden_size")
D = Quantity.given(7168, symbol="D", source=CONFIG)
H = Quantity.given(128, symbol="H", source=Source("assumed", "no reason"))
whole = st.integers(-(10**30), 10**30)
positive = st.integers(1, 10**30)


# --------------------------------------------------------------------------------- arithmetic
@given(a=whole, b=whole, c=positive)
def test_arithmetic_is_that_of_python(a: int, b: int, c: int) -> None:
    A, B, C = (Quantity.given(v, symbol=s) for v, s in ((a, "A"), (b, "B"), (c, "C")))
    assert (A + B).value == a + b
    assert (A - B).value == a - b
    assert (A * B).value == a * b
    assert (A // C).value == a // c
    assert (A + 3).value == (3 + A).value == a + 3
    assert (3 - A).value == 3 - a
    assert (2 * A).value == 2 * a
    assert (A / C).value == a / c
    assert ((A + B) * C - A // C).value == (a + b) * c - a // c


@given(a=whole, b=whole, c=positive)
def test_a_composed_formula_gives_its_value_again(a: int, b: int, c: int) -> None:
    """Brackets stand where they must, and every number that it needs is among its inputs."""
    A, B, C = (Quantity.given(v, symbol=s) for v, s in ((a, "A"), (b, "B"), (c, "C")))
    for q in ((A + B) * C, A * (B + C), A - (B - C), (A + 2) // C, 5 * (A - 1), (A + B) - (A - B)):
        assert evaluate(q.formula, {name: x.value for name, x in q.inputs.items()}) == q.value


def test_two_quantities_of_one_symbol_do_not_mix() -> None:
    one, two = (Quantity.given(v, symbol="n") for v in (3, 5))
    assert (one * two).value == 15
    assert sorted(x.value for x in (one * two).inputs.values()) == [3, 5]
    both = (one + 1) * (two + 1)
    assert both.value == 24
    assert evaluate(both.formula, {n: x.value for n, x in both.inputs.items()}) == 24


def test_a_symbol_that_is_no_name() -> None:
    q = Quantity.given(4, symbol="hidden size") * 2
    assert q.value == 8
    assert all(name.isidentifier() for name in q.inputs)


def test_a_quantity_is_no_truth_value_but_a_number() -> None:
    with pytest.raises(TypeError, match=r"compare its \.value"):
        bool(D)
    assert (int(D), float(D), plain(D)) == (7168, 7168.0, 7168)


# ------------------------------------------------------------------------------------ formulas
@given(a=st.integers(-(10**20), 10**20), b=st.integers(1, 10**20))
def test_functions_of_formulas(a: int, b: int) -> None:
    values = {"a": a, "b": b}
    assert evaluate("ceil_div(a, b)", values) == math.ceil(Fraction(a, b))
    assert evaluate("min(a, b)", values) == min(a, b)
    assert evaluate("max(a, b)", values) == max(a, b)
    half = evaluate("half(a)", values)
    assert type(half) is (int if a % 2 == 0 else float)
    if a % 2 == 0 or abs(a) < 2**53:
        assert half * 2 == a
    exact = evaluate("per(a, b)", values)
    assert (type(exact) is int) == (a % b == 0)
    assert exact == pytest.approx(float(Fraction(a, b)))


points_of_two = st.tuples(st.integers(-(10**6), 10**6), st.integers(1, 10**6))


@given(st.lists(points_of_two, min_size=1, max_size=9))
def test_functions_of_arrays_are_those_of_numbers(points: list[tuple[int, int]]) -> None:
    columns = {"a": plain([a for a, _ in points]), "b": plain([b for _, b in points])}
    texts = ("ceil_div(a, b)", "min(a, b, 7)", "max(a, b)", "half(a)", "per(a, b)", "ceil(a/b)")
    for text in texts:
        together = evaluate(text, columns)
        apart = [evaluate(text, {"a": a, "b": b}) for a, b in points]
        assert together == pytest.approx([float(x) for x in apart], rel=1e-15), text


@pytest.mark.parametrize("text", ["__import__('os')", "open('x')", "print(1)", "len"])
def test_a_formula_reaches_no_builtin(text: str) -> None:
    """Formulas are our own text; still, a slip must not do anything."""
    with pytest.raises(NameError):
        evaluate(text, {})


def test_symbols_come_in_order_of_appearance() -> None:
    assert compile_formula("2*T*D + min(T, W)*D")[1] == ("T", "D", "W")


def test_a_function_name_is_taken_once() -> None:
    def twice(x: Any) -> Any:
        return 2 * x

    register("twice_in_a_test", twice)
    register("twice_in_a_test", twice)
    assert evaluate("twice_in_a_test(21)", {}) == 42
    with pytest.raises(ValueError, match="registered already"):
        register("twice_in_a_test", lambda x: x)


# ------------------------------------------------------------------------------ derive and total
def test_derive_keeps_formula_and_inputs() -> None:
    q = derive("2*D*H + n", "B", D=D, H=H, n=5, note="why")
    assert (q.value, q.unit, q.formula, q.note) == (2 * 7168 * 128 + 5, "B", "2*D*H + n", "why")
    assert list(q.inputs) == ["D", "H", "n"]
    assert q.inputs["D"] is D
    assert q.inputs["n"].value == 5


def test_derive_leaves_out_what_the_formula_does_not_use() -> None:
    assert list(derive("2*D", D=D, H=H).inputs) == ["D"]


def test_an_unknown_symbol_is_our_mistake() -> None:
    with pytest.raises(NameError, match="Q"):
        derive("2*Q", D=D)


def test_inputs_are_made_when_somebody_asks_and_once() -> None:
    calls = []

    def inputs() -> dict[str, Quantity]:
        calls.append(1)
        return {"D": D}

    q = Quantity(1, formula="D", inputs=inputs)
    assert calls == []
    assert q.inputs is q.inputs
    assert calls == [1]


def test_later_is_made_once() -> None:
    calls = []
    later = Later(lambda: calls.append(1) or [len(calls)])
    assert calls == []
    assert later() is later()
    assert calls == [1]


@given(st.lists(whole, max_size=12))
def test_a_total_is_the_sum_of_its_inputs(values: list[int]) -> None:
    """All of them, though names repeat."""
    parts = [(f"part{i % 3}", Quantity.given(v)) for i, v in enumerate(values)]
    q = total(parts, "B")
    assert q.value == sum(values)
    assert len(q.inputs) == len(values)
    assert sum(x.value for x in q.inputs.values()) == q.value
    assert q.formula


def test_named_is_the_same_number() -> None:
    q = derive("2*D", "B", D=D).named("bytes")
    assert (q.symbol, q.value, q.unit, q.formula) == ("bytes", 14336, "B", "2*D")
    assert q.inputs["D"] is D
    assert D.named("X").source is CONFIG
    assert D.named("X", "m").unit == "m"


def test_assumptions_are_found_at_any_depth_and_once() -> None:
    q = derive("a + b", a=derive("2*H", H=H), b=derive("D*H", D=D, H=H))
    assert q.assumptions() == [H]
    assert D.assumptions() == []


# -------------------------------------------------------------------------------------- values
@pytest.mark.parametrize(
    ("given_value", "kind", "value"),
    [
        (3, int, 3),
        (3.5, float, 3.5),
        (np.int64(3), int, 3),
        (np.float32(0.5), float, 0.5),
        (np.int8(-3), int, -3),
    ],
)
def test_numbers_of_numpy_become_pythons(given_value: Any, kind: type, value: Any) -> None:
    q = Quantity.given(given_value)
    assert type(q.value) is kind
    assert q.value == value
    assert type(plain(given_value)) is kind


@pytest.mark.parametrize("values", [[1, 2], (1, 2), np.array([1, 2], dtype=np.int32)])
def test_arrays_are_float64(values: Any) -> None:
    assert Quantity.given(values).value.dtype == np.float64
    assert plain(values).dtype == np.float64


def test_without_a_source_a_given_number_is_the_users() -> None:
    q = Quantity.given(3, symbol="k")
    assert q.source == Source("user", "k")
    assert "user k" in repr(q)
    assert "2*D" in repr(derive("2*D", D=D))
