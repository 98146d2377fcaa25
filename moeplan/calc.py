"""One formula, evaluated over bare numbers and arrays, or over quantities that stay explained."""

from __future__ import annotations

from typing import Any

from moeplan.quantity import Quantity, compile_formula, derive, evaluate

__all__ = ["Scope", "add", "calc", "value"]


def calc(formula: str, unit: str = "", **inputs: Any) -> Any:
    """`derive` where an input is a `Quantity`, else the bare number or array."""
    for given in inputs.values():
        if type(given) is Quantity:
            return derive(formula, unit, **inputs)
    return evaluate(formula, inputs)


def value(given: Any) -> Any:
    """The bare number of a quantity, or the number itself."""
    return given.value if type(given) is Quantity else given


def add(parts: dict[str, Any], unit: str) -> Any:
    """The sum of named parts, explained where they are quantities."""
    found = list(parts.values())
    if any(type(part) is Quantity for part in found):
        from moeplan.quantity import total

        named = [
            (name, part if type(part) is Quantity else Quantity(part, unit, formula=str(part)))
            for name, part in parts.items()
        ]
        return total(named, unit)
    if not found:
        return 0
    out = found[0]
    for part in found[1:]:
        out = out + part
    return out


class Scope:
    """Symbols with their numbers, in which row formulas are evaluated."""

    __slots__ = ("symbols", "values")

    def __init__(self, symbols: dict[str, Any]) -> None:
        self.symbols = symbols
        self.values = {name: value(given) for name, given in symbols.items()}

    def __call__(self, formula: str, unit: str = "") -> Any:
        """A formula over the symbols; a quantity where one of its symbols is."""
        names = compile_formula(formula)[1]
        number = evaluate(formula, self.values)
        if not any(type(self.symbols[name]) is Quantity for name in names):
            return number
        symbols = self.symbols

        def inputs() -> dict[str, Quantity]:
            return {
                name: s if type(s) is Quantity else Quantity.given(s, symbol=name)
                for name, s in ((name, symbols[name]) for name in names)
            }

        return Quantity(number, unit, formula=formula, inputs=inputs)
