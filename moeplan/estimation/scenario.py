"""What the user asks about a model: lengths, formats, GPU, expert parallelism; and its defaults.

A value that the user did not give is an assumption, and is reported as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from moeplan.cluster.hardware import Gpu
from moeplan.errors import UserError, near_miss
from moeplan.estimation.all_to_all import ROW_FORMATS, Policy
from moeplan.model.workload import Mask
from moeplan.quantity import Number, Quantity, Source, plain

__all__ = ["DEFAULTS", "Default", "Scenario"]


@dataclass(frozen=True, slots=True)
class Default:
    """A scenario value where the user gives none: value, unit, symbol and what it stands for."""

    value: Any
    unit: str
    symbol: str
    about: str


DEFAULTS: dict[str, Default] = {
    "context": Default(4096, "tokens", "C", "tokens of a sequence"),
    "batch": Default(1, "sequences", "B", "sequences decoded or prefilled together"),
    "microbatch": Default(1, "sequences", "b", "sequences of a training microbatch"),
    "tokens": Default(4096, "tokens", "T", "tokens a GPU brings to an expert-parallel exchange"),
    "ep": Default(
        None,
        "GPUs",
        "n",
        "GPUs that share the experts: the largest divisor of E up to 64 that fills whole nodes or "
        "lies inside one",
    ),
    "node": Default(8, "GPUs", "g", "GPUs of a node, within the expert-parallel group"),
    "imbalance": Default(1.0, "", "imbalance", "load of the fullest GPU over the mean"),
    "attention": Default("causal", "", "", "attention scores that count: causal or full"),
    "weights": Default(None, "", "", "weight format: the checkpoint's own"),
    "cache": Default(None, "", "", "format of the key-value cache: the checkpoint's, else bf16"),
    "dispatch": Default("fp8", "", "", "format of dispatched rows"),
    "combine": Default("bf16", "", "", "format of combined rows"),
    "policy": Default("per-node", "", "", "what an exchange sends once"),
    "optimizer": Default("adamw-fp32", "", "", "training state"),
    "gpu": Default("h200", "", "", "GPU of the time floor"),
    "price": Default(None, "", "", "price list: the first that knows the GPU"),
    "draft": Default(None, "tokens", "N", "tokens drafted a step of speculative decoding: none"),
    "acceptance": Default(
        0.85, "", "a", "share of drafted tokens accepted: DeepSeek-V3 reports 85 to 90 %"
    ),
}


# Words that no data file adds to; other settings are looked up where they are used.
WORDS: dict[str, tuple[str, ...]] = {
    "attention": get_args(Mask),
    "dispatch": tuple(ROW_FORMATS),
    "combine": tuple(ROW_FORMATS),
    "policy": get_args(Policy),
}
# Numbers of other bounds than "at least 1".
_BOUNDS: dict[str, tuple[int, int]] = {"draft": (0, 64), "acceptance": (0, 1)}
_FRACTIONS = ("imbalance", "acceptance")
_MOST = 10**15  # far above any run, and far below what a float cannot hold


@dataclass(frozen=True)
class Scenario:
    """The values in force; `given` holds those that the user named."""

    given: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, **given: Any) -> Scenario:
        """Check names and plain values; None means not given."""
        named = {name: value for name, value in given.items() if value is not None}
        for name, value in named.items():
            if name not in DEFAULTS:
                hint = near_miss(name, DEFAULTS)
                raise UserError(f"unknown setting {name!r}{hint}: known are {', '.join(DEFAULTS)}")
            _check(name, value)
        if "acceptance" in named and "draft" not in named:
            raise UserError("--acceptance needs --draft: how many tokens are drafted a step")
        return cls(named)

    def __getitem__(self, name: str) -> Any:
        """The bare value in force."""
        return self.given.get(name, DEFAULTS[name].value)

    def quantity(self, name: str, default: Number | None = None) -> Quantity:
        """The value with its origin: the user, or an assumption that says what it stands for."""
        known = DEFAULTS[name]
        if name in self.given:
            value, source = self.given[name], Source("user", f"--{name}")
        else:
            value = known.value if default is None else default
            source = Source("assumed", f"{known.about} (default of --{name})")
        if isinstance(value, Quantity):
            return value
        return Quantity.given(value, known.unit, known.symbol, source)


def _check(name: str, value: Any) -> None:
    numeric = isinstance(DEFAULTS[name].value, (int, float)) or name in ("ep", "price", "draft")
    if isinstance(value, str):
        if numeric and name != "price":
            raise UserError(f"--{name} is {value!r}: a number is needed")
        if name in WORDS and value not in WORDS[name]:
            allowed = ", ".join(WORDS[name])
            hint = near_miss(value, WORDS[name])
            raise UserError(f"--{name} is {value!r}: allowed are {allowed}{hint}")
        return
    if name == "gpu" and isinstance(value, Gpu):
        return
    number = plain(value)
    if not numeric:
        raise UserError(f"--{name} is {number!r}: a word is needed")
    if isinstance(number, bool):
        raise UserError(f"--{name} is {number!r}: a number is needed")
    if name == "price":
        return  # an amount, read where it is used
    least, most = _BOUNDS.get(name, (1, _MOST))
    if isinstance(number, (int, float)) and not number >= least:
        raise UserError(f"--{name} is {number}: it must be at least {least}")
    if isinstance(number, (int, float)) and number > most:
        bound = f"{most:.0e}" if most == _MOST else str(most)
        raise UserError(f"--{name} is too large: it must be at most {bound}")
    if name not in _FRACTIONS and isinstance(number, float) and not number.is_integer():
        raise UserError(f"--{name} is {number}: a whole number is needed")
