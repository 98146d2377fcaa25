"""What a user writes: values of an axis, and formulas that link inputs."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moeplan.errors import UserError, near_miss
from moeplan.units import parse

__all__ = ["Axis", "Formula"]

_MOST = 10**6  # values of one axis
Value = int | float | str


@dataclass(frozen=True)
class Axis:
    """A name and its values: numbers, or words."""

    name: str
    values: tuple[Value, ...]

    @classmethod
    def parse(cls, text: str) -> Axis:
        """Read ``experts=64,128``, ``ep=1:64:x2`` (by factors) or ``tokens=1:9:+4`` (steps)."""
        name, equals, listed = (part.strip() for part in text.partition("="))
        if not equals or not name or not listed:
            raise UserError(f"--vary {text!r} must be NAME=VALUES, such as ep=1,2,4 or ep=1:64:x2")
        values = [x for item in listed.split(",") for x in _values(item.strip(), f"--vary {name}")]
        repeated = [x for x in dict.fromkeys(values) if values.count(x) > 1] if (
            len(values) < 1000) else []  # fmt: skip
        if repeated:
            raise UserError(f"--vary {name}: {repeated[0]} is given twice")
        if len({isinstance(x, str) for x in values}) > 1:
            raise UserError(f"--vary {name}: numbers and words are mixed in {listed!r}")
        return cls(name, tuple(values))

    @property
    def numeric(self) -> bool:
        """Whether the values are numbers."""
        return not isinstance(self.values[0], str)


def _values(item: str, where: str) -> list[Value]:
    if ":" in item and "/" not in item:
        return list(_range(item, where))
    return [_value(item, where)]


def _value(item: str, where: str) -> Value:
    """A number, a count such as 4k or 128Ki, or a word."""
    if not item:
        raise UserError(f"{where}: a value is missing between two commas")
    for read in (int, float):
        try:
            found = read(item.replace("_", ""))
        except ValueError:
            continue
        if not math.isfinite(found):
            raise UserError(f"{where}: {item!r} must be a finite number")
        return found
    if item[0].isdigit():
        try:
            return parse(item, "count", where=where)
        except UserError:
            return item
    return item


def _range(item: str, where: str) -> list[float]:
    parts = item.split(":")
    wrong = UserError(
        f"{where}: {item!r} must be FIRST:LAST:xFACTOR or FIRST:LAST:+STEP, such as 1:64:x2"
    )
    if len(parts) not in (2, 3):
        raise wrong
    first, last = (_value(p, where) for p in parts[:2])
    step = parts[2] if len(parts) == 3 else "+1"
    by = _value(step[1:], where) if step[:1] in ("x", "+") else None
    if isinstance(first, str) or isinstance(last, str) or by is None or isinstance(by, str):
        raise wrong
    grows = by > 1 and first > 0 if step[0] == "x" else by > 0
    if not grows or last < first:
        raise UserError(f"{where}: {item!r} never reaches {last} from {first}")
    whole = all(isinstance(x, int) for x in (first, last, by))
    if step[0] == "x":
        count = int(math.log(last / first) / math.log(by) + 1e-9) + 1
        found = [first * by**i for i in range(min(count, _MOST + 1))]
    else:
        count = int((last - first) / by + 1e-9) + 1
        found = [first + by * i for i in range(min(count, _MOST + 1))]
    if len(found) > _MOST:
        raise UserError(f"{where}: {item!r} has more than {_MOST:,} values")
    return [int(x) for x in found] if whole else [float(x) for x in found]


# ---------------------------------------------------------------------------------- formulas
_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": np.minimum,
    "max": np.maximum,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.round,
    "sqrt": np.sqrt,
    "log2": np.log2,
}
_TWO = ("min", "max")


@dataclass(frozen=True)
class Formula:
    """An input that follows from others: arithmetic over names, evaluated over numbers or arrays.

    The text is the user's, so it is walked as a tree of arithmetic; nothing of it is executed.
    """

    name: str
    text: str

    @classmethod
    def parse(cls, text: str) -> Formula:
        """Read ``width=14336/g``."""
        name, equals, body = (part.strip() for part in text.partition("="))
        if not equals or not name or not body:
            raise UserError(f"--set {text!r} must be NAME=FORMULA, such as width=14336/g")
        found = cls(name, body)
        _check(found._tree(), found)
        return found

    def _tree(self) -> ast.expr:
        try:
            return ast.parse(self.text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise UserError(f"--set {self.name}: {self.text!r} is not a formula") from None

    @property
    def names(self) -> tuple[str, ...]:
        """What it uses."""
        tree = self._tree()
        calls = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
        found = (n for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in calls)
        return tuple(dict.fromkeys(n.id for n in found))

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """The value over numbers or float64 arrays (nan or inf where it has none)."""
        with np.errstate(all="ignore"):
            return _walk(self._tree(), values)


def _check(node: ast.AST, formula: Formula) -> None:
    kind = type(node)
    if kind is ast.BinOp and type(node.op) in _OPERATORS:  # type: ignore[attr-defined]
        below: list[ast.AST] = [node.left, node.right]  # type: ignore[attr-defined]
    elif kind is ast.UnaryOp and type(node.op) in _OPERATORS:  # type: ignore[attr-defined]
        below = [node.operand]  # type: ignore[attr-defined]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        if node.func.id not in _FUNCTIONS:
            raise UserError(
                f"--set {formula.name}: no function {node.func.id!r}, there are "
                f"{', '.join(_FUNCTIONS)}{near_miss(node.func.id, _FUNCTIONS)}"
            )
        if len(node.args) != (2 if node.func.id in _TWO else 1):
            raise UserError(f"--set {formula.name}: {node.func.id} takes another number of values")
        below = list(node.args)
    elif isinstance(node, ast.Name) or (
        isinstance(node, ast.Constant) and type(node.value) in (int, float)
    ):
        below = []
    else:
        raise UserError(
            f"--set {formula.name}: {formula.text!r} may hold numbers, names, + - * / // % ** and "
            f"{', '.join(_FUNCTIONS)}"
        )
    for one in below:
        _check(one, formula)


def _walk(node: ast.AST, values: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_walk(node.left, values), _walk(node.right, values))
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)](_walk(node.operand, values))
    if isinstance(node, ast.Call):
        assert isinstance(node.func, ast.Name)
        return _FUNCTIONS[node.func.id](*(_walk(arg, values) for arg in node.args))
    if isinstance(node, ast.Name):
        return values[node.id]
    assert isinstance(node, ast.Constant)
    return np.float64(node.value)  # type: ignore[arg-type]  # no exponent grows without end
