"""Numbers that know how they came about.

A `Quantity` is either *given* (a config key, a datasheet, a measurement, an assumption, the user)
or *derived* by a formula from other quantities. The formula text is what is evaluated, so what
`explain` prints is what was computed. Values are Python numbers (ints stay exact) or numpy arrays
that broadcast; integer arrays become float64, because 6·N·tokens of a real run overflows int64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from types import CodeType
from typing import Any, Literal, NamedTuple, TypeAlias

from moeplan.arrays import is_array, np

__all__ = [
    "Inputs",
    "Later",
    "Number",
    "Quantity",
    "Source",
    "compile_formula",
    "derive",
    "evaluate",
    "plain",
    "register",
    "sum_formula",
    "total",
]

Number: TypeAlias = Any  # int | float | numpy array of float64: one code path serves them all
SourceKind = Literal["config", "datasheet", "measured", "assumed", "user"]


class Source(NamedTuple):
    """Where a given number comes from: its kind, and the key, document or reason."""

    kind: SourceKind
    where: str


def _ceil(x: Number) -> Number:
    return np.ceil(x) if is_array(x) else math.ceil(x)


def _ceil_div(a: Number, b: Number) -> Number:
    return -(-a // b)


def _minimum(*xs: Number) -> Number:
    if any(is_array(x) for x in xs):
        out = xs[0]
        for x in xs[1:]:
            out = np.minimum(out, x)
        return out
    return min(xs)


def _maximum(*xs: Number) -> Number:
    if any(is_array(x) for x in xs):
        out = xs[0]
        for x in xs[1:]:
            out = np.maximum(out, x)
        return out
    return max(xs)


def _per(a: Number, b: Number) -> Number:
    """a / b, kept a whole number where it is one."""
    if isinstance(a, int) and isinstance(b, int) and b and a % b == 0:
        return a // b
    return a / b


def _half(x: Number) -> Number:
    return _per(x, 2)


_FUNCTIONS: dict[str, Any] = {
    "__builtins__": {},
    "ceil": _ceil,
    "ceil_div": _ceil_div,
    "half": _half,
    "max": _maximum,
    "min": _minimum,
    "per": _per,
}


def register(name: str, function: Callable[..., Number]) -> None:
    """Let formulas call `function` by `name`; a name is taken once."""
    if _FUNCTIONS.setdefault(name, function) is not function:
        raise ValueError(f"formula function {name!r} is registered already")


@cache
def compile_formula(formula: str) -> tuple[CodeType, tuple[str, ...]]:
    """Compile a formula once; return its code and the symbols it uses, in order of appearance."""
    code = compile(formula, f"<formula {formula}>", "eval")
    return code, tuple(n for n in code.co_names if n not in _FUNCTIONS)


def evaluate(formula: str, values: Mapping[str, Number]) -> Number:
    """Evaluate a formula written in this package (never user text) over plain values."""
    return eval(compile_formula(formula)[0], _FUNCTIONS, values)  # our own text


class Later:
    """A part of a result that is made when somebody looks at it, and then kept."""

    __slots__ = ("_made", "_make")

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make: Callable[[], Any] | None = make
        self._made: Any = None

    @property
    def made(self) -> bool:
        """Whether somebody has looked at it."""
        return self._make is None

    def __call__(self) -> Any:
        """The part itself."""
        if self._make is not None:
            self._made, self._make = self._make(), None
        return self._made


Inputs: TypeAlias = "Mapping[str, Quantity] | Callable[[], Mapping[str, Quantity]]"


class Quantity:
    """A number with its unit, its formula and inputs, or its source.

    `inputs` may be a function: explanations are built only when somebody asks for them.
    """

    __slots__ = ("_inputs", "formula", "note", "source", "symbol", "unit", "value")

    def __init__(
        self,
        value: Number,
        unit: str = "",
        *,
        symbol: str = "",
        formula: str = "",
        inputs: Inputs | None = None,
        source: Source | None = None,
        note: str = "",
    ) -> None:
        self.value = value
        self.unit = unit
        self.symbol = symbol
        self.formula = formula
        self._inputs: Inputs = inputs if inputs is not None else {}
        self.source = source
        self.note = note

    @classmethod
    def given(
        cls,
        value: Number,
        unit: str = "",
        symbol: str = "",
        source: Source | None = None,
        note: str = "",
    ) -> Quantity:
        """A number that comes from outside; without a source it is the user's."""
        return cls(
            _as_number(value),
            unit,
            symbol=symbol,
            source=source or Source("user", symbol or "argument"),
            note=note,
        )

    @property
    def inputs(self) -> Mapping[str, Quantity]:
        """Symbol to quantity, for each symbol of the formula."""
        if callable(self._inputs):
            self._inputs = self._inputs()
        return self._inputs

    def named(self, symbol: str, unit: str | None = None) -> Quantity:
        """The same quantity under another symbol."""
        return Quantity(
            self.value,
            self.unit if unit is None else unit,
            symbol=symbol,
            formula=self.formula,
            inputs=self._inputs,
            source=self.source,
            note=self.note,
        )

    def assumptions(self, visited: set[int] | None = None) -> list[Quantity]:
        """Every assumed input below this quantity, each once.

        visited: quantities (by id) that are left out, and to which those of this walk are added.
        """
        seen: dict[tuple[str, Source], Quantity] = {}
        visited = set() if visited is None else visited
        stack = [self]
        while stack:
            here = stack.pop()
            if id(here) in visited:
                continue
            visited.add(id(here))
            if here.source is not None and here.source.kind == "assumed":
                seen.setdefault((here.symbol, here.source), here)
            stack.extend(here.inputs.values())
        return list(seen.values())

    # Arithmetic composes formulas, so that a reader can write width * count and keep both keys.
    def _combine(self, operator: str, other: Any, swapped: bool = False) -> Quantity:
        left, right = (other, self) if swapped else (self, other)
        inputs: dict[str, Quantity] = {}
        texts = [_operand(side, inputs) for side in (left, right)]
        formula = f" {operator} ".join(texts)
        values = {name: q.value for name, q in inputs.items()}
        return Quantity(evaluate(formula, values), self.unit, formula=formula, inputs=inputs)

    def __add__(self, other: Any) -> Quantity:
        return self._combine("+", other)

    def __radd__(self, other: Any) -> Quantity:
        return self._combine("+", other, swapped=True)

    def __sub__(self, other: Any) -> Quantity:
        return self._combine("-", other)

    def __rsub__(self, other: Any) -> Quantity:
        return self._combine("-", other, swapped=True)

    def __mul__(self, other: Any) -> Quantity:
        return self._combine("*", other)

    def __rmul__(self, other: Any) -> Quantity:
        return self._combine("*", other, swapped=True)

    def __floordiv__(self, other: Any) -> Quantity:
        return self._combine("//", other)

    def __truediv__(self, other: Any) -> Quantity:
        return self._combine("/", other)

    def __int__(self) -> int:
        return int(self.value)

    def __float__(self) -> float:
        return float(self.value)

    def __bool__(self) -> bool:
        raise TypeError("a Quantity has no truth value: compare its .value")

    def __repr__(self) -> str:
        origin = self.formula or (f"{self.source.kind} {self.source.where}" if self.source else "")
        return f"Quantity({self.value!r} {self.unit}, {self.symbol or '-'}: {origin})"


def _operand(side: Any, inputs: dict[str, Quantity]) -> str:
    if not isinstance(side, Quantity):
        return repr(side)
    if side.symbol or not side.formula:
        name = side.symbol if side.symbol.isidentifier() else f"x{len(inputs) + 1}"
        while name in inputs and inputs[name] is not side:
            name += "_"
        inputs[name] = side
        return name
    for name, quantity in side.inputs.items():
        if inputs.setdefault(name, quantity) is not quantity:
            return _operand(side.named(f"x{len(inputs) + 1}"), inputs)
    return f"({side.formula})"


def _as_number(value: Any) -> Number:
    if isinstance(value, (list, tuple)) or is_array(value):
        return np.asarray(value, dtype=np.float64)
    # a numpy scalar; asked without loading numpy
    return value.item() if hasattr(value, "item") else value


def plain(value: Any) -> Number:
    """The bare number of a Quantity, or the number itself (lists become float64 arrays)."""
    kind = type(value)
    if kind is Quantity:
        return value.value
    return value if kind is int or kind is float else _as_number(value)


def derive(
    formula: str, unit: str = "", *, symbol: str = "", note: str = "", **inputs: Any
) -> Quantity:
    """Evaluate `formula` over `inputs` (quantities or numbers) and keep how it was done."""
    values = {name: plain(given) for name, given in inputs.items()}

    def quantities() -> dict[str, Quantity]:
        return {
            name: inputs[name]
            if isinstance(inputs[name], Quantity)
            else Quantity.given(values[name], symbol=name)
            for name in compile_formula(formula)[1]
        }

    value = evaluate(formula, values)
    return Quantity(value, unit, symbol=symbol, formula=formula, inputs=quantities, note=note)


def total(parts: Iterable[tuple[str, Quantity]], unit: str, *, note: str = "") -> Quantity:
    """Sum named parts; the formula lists them (or says how many), the inputs hold them all.

    Equal names are told apart by a number: a layer has two residual additions.
    """
    parts = list(parts)
    value = sum(part.value for _, part in parts)
    seen: dict[str, int] = {}
    names = []
    for name, _ in parts:
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")

    def inputs() -> dict[str, Quantity]:
        return {name: part for name, (_, part) in zip(names, parts, strict=True)}

    return Quantity(value, unit, formula=sum_formula(names), inputs=inputs, note=note)


_LISTED = 8  # more parts than this are not repeated in the text of a sum


def sum_formula(names: list[str]) -> str:
    """The text of a sum: its parts, or how many there are."""
    if len(names) > _LISTED:
        return f"sum of {len(names)} parts"
    return " + ".join(names) or "0"
