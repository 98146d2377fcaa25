"""Formulas that users write, over arrays: numbers, names, + - * / // % **, and some functions.

They are walked, never executed: what is not listed here is refused by name. (`quantity.evaluate`
executes, and is for this package's own formulas.)
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from moeplan.arrays import np
from moeplan.errors import UserError, near_miss

__all__ = ["FUNCTIONS", "Formula"]

_OPERATORS: dict[type[ast.AST], str] = {
    ast.Add: "add",
    ast.Sub: "subtract",
    ast.Mult: "multiply",
    ast.Div: "divide",
    ast.FloorDiv: "floor_divide",
    ast.Mod: "remainder",
    ast.Pow: "power",
}
FUNCTIONS: Mapping[str, tuple[str, int]] = {
    "ceil": ("ceil", 1),
    "floor": ("floor", 1),
    "log2": ("log2", 1),
    "max": ("maximum", 2),
    "min": ("minimum", 2),
    "round": ("rint", 1),
    "sqrt": ("sqrt", 1),
}
"""Functions by name: numpy's name, and how many arguments at least (min and max take more)."""

_LONGEST = 400
_MOST = 1e300


class Formula(NamedTuple):
    """A formula, and the names in it: `g`, `width`, `gpu.memory_bandwidth`."""

    text: str
    names: tuple[str, ...]
    tree: ast.expr

    @classmethod
    def of(cls, text: str, where: str) -> Formula:
        """Read a formula; `UserError` for anything but arithmetic."""
        if len(text) > _LONGEST:
            raise UserError(f"{where}: a formula has at most {_LONGEST} letters")
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise UserError(
                f"{where}: cannot read the formula {text!r}; write it like 14336/g"
            ) from None
        names: dict[str, None] = {}
        _check(tree, text, where, names)
        return cls(text, tuple(names), tree)

    def over(self, values: Mapping[str, Any]) -> Any:
        """The formula as float64 numbers or arrays; not finite where it has no value."""
        with np.errstate(all="ignore"):
            return _walk(self.tree, values)


def _check(node: ast.AST, text: str, where: str, names: dict[str, None]) -> None:
    below: list[ast.AST] = []
    match node:
        case ast.BinOp(left, operator, right) if type(operator) in _OPERATORS:
            below = [left, right]
        case ast.UnaryOp(ast.USub() | ast.UAdd(), operand):
            below = [operand]
        case ast.Constant(int() | float() as value) if not isinstance(value, bool):
            if abs(value) > _MOST:
                raise UserError(f"{where}: a number in {text!r} is too large")
        case ast.Call(ast.Name(name), arguments, []):
            if name not in FUNCTIONS:
                known = ", ".join(FUNCTIONS)
                hint = near_miss(name, FUNCTIONS)
                raise UserError(f"{where}: no function {name!r}{hint}; there are {known}")
            least = FUNCTIONS[name][1]
            if len(arguments) < least or (least == 1 and len(arguments) > 1):
                needed = "one value" if least == 1 else "two values or more"
                raise UserError(f"{where}: {name}() in {text!r} takes {needed}")
            below = list(arguments)
        case _ if (dotted := _dotted(node)) is not None:
            names[dotted] = None
        case _:
            raise UserError(
                f"{where}: {text!r} is more than a formula of numbers, names, + - * / // % ** and "
                f"{', '.join(FUNCTIONS)}"
            )
    for part in below:
        _check(part, text, where, names)


def _dotted(node: ast.AST) -> str | None:
    """`a.b.c` as a name, or None."""
    match node:
        case ast.Name(name):
            return name
        case ast.Attribute(value, name) if (base := _dotted(value)) is not None:
            return f"{base}.{name}"
    return None


def _walk(node: ast.AST, values: Mapping[str, Any]) -> Any:
    def apply(name: str, *parts: ast.AST) -> Any:
        function: Callable[..., Any] = getattr(np, name)
        found = [_walk(part, values) for part in parts]
        out = found[0] if len(found) > 1 else function(found[0])
        for more in found[1:]:
            out = function(out, more)
        return out

    match node:
        case ast.BinOp(left, operator, right):
            return apply(_OPERATORS[type(operator)], left, right)
        case ast.UnaryOp(operator, operand):
            return apply("negative" if isinstance(operator, ast.USub) else "positive", operand)
        case ast.Constant(value):
            return np.float64(value)  # type: ignore[arg-type]
        case ast.Call(ast.Name(name), arguments):
            return apply(FUNCTIONS[name][0], *arguments)
    used = _dotted(node)
    assert used is not None
    return np.asarray(values[used], np.float64)
