"""How a model is laid out on GPUs: degrees of parallelism, what is legal, and what an error says.

Degrees (GPUs that share one copy of something):
  tp   tensor parallel: heads, FFN widths and the vocabulary are divided (with `sp`, what it
       cannot divide is divided by tokens)
  cp   context parallel: the tokens of a sequence are divided
  pp   pipeline parallel: layers are divided; `vpp` chunks of them on each rank (interleaving)
  dp   data parallel: sequences are divided
  ep   expert parallel: whole experts are divided; etp: each expert's width is divided
  edp  expert data parallel: copies of an expert; it follows from the others
Attention and everything dense fill the cluster as tp·cp·dp·pp, experts as etp·ep·edp·pp: the two
share pp only (Megatron Core's parallel folding).

What is legal is in `moeplan.cluster.rules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

from moeplan.arrays import is_array, np
from moeplan.errors import UserError, near_miss
from moeplan.quantity import Number, Quantity, Source, plain

__all__ = [
    "DROPS",
    "NUMBERS",
    "Layout",
    "Order",
    "Overlap",
    "Recompute",
    "Schedule",
    "Split",
    "quiet",
]

Schedule: TypeAlias = Literal["1f1b", "interleaved", "zero-bubble", "dualpipe"]
"""Order of forward and backward passes: PipeDream-flush, its interleaved form (Megatron-LM),
ZB-H1 (arXiv 2401.10241), DualPipe (DeepSeek-V3, arXiv 2412.19437)."""

Recompute: TypeAlias = Literal["none", "selective", "full"]
"""What the backward pass computes again: nothing, the cheap rows (norms, activations, latents'
expansions), or whole layers from their inputs. "selective" may name groups: selective:norm+..."""

Overlap: TypeAlias = Literal["none", "usual", "all-to-all", "dualpipe"]
"""Which messages run under compute; see `moeplan.parallel.costs.HIDDEN`."""

Order: TypeAlias = Literal["tp-cp-ep-dp-pp", "tp-cp-ep-pp-dp"]
"""Ranks from the fastest varying degree to the slowest, as Megatron-LM names them."""

Split: TypeAlias = "str | tuple[int, ...]"
"""Layers of the (virtual) stages: "even" (they differ by one at most, the ends get fewer), "full"
(as many as the largest needs, from the front; the last takes what is left), "balanced" (even, with
the embedding and the head counted as a layer each), or a list."""

NUMBERS = ("tp", "pp", "vpp", "dp", "cp", "ep", "etp", "zero", "microbatch", "batch")
_SPLITS = ("even", "full", "balanced")
_KINDS: dict[str, tuple[str, ...]] = {
    "schedule": get_args(Schedule),
    "recompute": get_args(Recompute),
    "overlap": get_args(Overlap),
    "order": get_args(Order),
}
_ALIASES = {
    "mbs": "microbatch",
    "gbs": "batch",
    "vp": "vpp",
    "global_batch": "batch",
    "micro_batch": "microbatch",
    "layers": "split",
}
# What selective recomputation may leave out, as the rows name it (`Kept.drop`).
DROPS = ("norm", "activation", "up_projection", "dispatch", "permute")
_DROPPED = DROPS[:3]  # where nobody says which


@dataclass(frozen=True, eq=False)
class Layout:
    """Degrees and choices of one layout, or of many (numeric fields may be float64 arrays).

    zero: 0 every data-parallel rank holds all state, 1 divides optimizer and main parameters
    (the distributed optimizer), 2 also gradients, 3 also weights. microbatch: sequences of a
    microbatch on one data-parallel rank. batch: sequences of a step on all GPUs; gradient
    accumulation follows from both. selective: groups that selective recomputation drops.
    """

    tp: Any = 1
    pp: Any = 1
    vpp: Any = 1
    dp: Any = 1
    cp: Any = 1
    ep: Any = 1
    etp: Any = 1
    zero: Any = 1
    microbatch: Any = 1
    batch: Any = None
    sp: bool = True
    schedule: Schedule = "1f1b"
    recompute: Recompute = "none"
    selective: tuple[str, ...] = _DROPPED
    overlap: Overlap = "usual"
    order: Order = "tp-cp-ep-dp-pp"
    split: Split = "even"

    def __post_init__(self) -> None:
        wrong = [said for name in NUMBERS if (said := self._wrong_number(name))]
        wrong += filter(None, (_wrong_word(n, getattr(self, n), few) for n, few in _KINDS.items()))
        wrong += filter(None, (_wrong_word("recompute=selective", g, DROPS)
                               for g in self.selective))  # fmt: skip
        if isinstance(self.split, str) and (said := _wrong_word("split", self.split, _SPLITS)):
            wrong.append(said)
        if wrong:
            raise UserError(f"layout: {'; '.join(wrong)}")
        if self.batch is None:  # one microbatch for each stage of the pipeline
            per_rank = plain(self.microbatch) * plain(self.dp) * plain(self.pp)
            object.__setattr__(self, "batch", per_rank)

    def _wrong_number(self, name: str) -> str | None:
        """What is wrong with a single number; arrays become arrays of float64."""
        value = getattr(self, name)
        if isinstance(value, (list, tuple)) or is_array(value):
            object.__setattr__(self, name, np.asarray(value, dtype=np.float64))
            return None
        return None if value is None or isinstance(value, Quantity) else _wrong(name, value)

    @classmethod
    def parse(cls, text: str, *, gpus: int | None = None) -> Layout:
        """Read ``tp=2,pp=8,ep=64,schedule=interleaved,recompute=selective:norm,layers=8+8``.

        dp is what the other degrees leave of `gpus`, where it is not given. Raises `UserError`.
        """
        given: dict[str, Any] = {}
        for item in filter(None, (part.strip() for part in text.split(","))):
            key, equals, value = (s.strip() for s in item.partition("="))
            name = _ALIASES.get(key, key)
            known = {*_field_names(), *_ALIASES}
            if not equals or not value:
                raise UserError(f"--layout: {item!r} must be written name=value, such as tp=8")
            if name not in _field_names():
                raise UserError(
                    f"--layout: unknown name {key!r}{near_miss(key, known)}; known are "
                    f"{', '.join(sorted(known))}"
                )
            if name in given:
                raise UserError(f"--layout: {key!r} is given twice")
            given |= _parsed(name, value)
        if "dp" not in given and gpus is not None:
            others = 1
            for name in ("tp", "cp", "pp"):
                others *= given.get(name, 1)
            if others and gpus % others:
                raise UserError(
                    f"--layout: tp*cp*pp = {given.get('tp', 1)}*{given.get('cp', 1)}*"
                    f"{given.get('pp', 1)} = {others} does not divide the {gpus} GPUs"
                )
            given["dp"] = gpus // others if others else 1
        return cls(**given)

    def __str__(self) -> str:
        """The layout as `parse` reads it, without values that are the defaults."""
        parts = []
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Quantity):
                value = value.value
            shown = field.name == "batch" or is_array(value) or value != field.default
            if field.name == "selective" or not shown:
                continue
            if field.name == "recompute" and value == "selective" and self.selective != _DROPPED:
                value = f"selective:{'+'.join(self.selective)}"
            if isinstance(value, tuple):
                value = "+".join(map(str, value))
            parts.append(f"{field.name}={value if not isinstance(value, bool) else int(value)}")
        return ",".join(parts)

    @cached_property
    def values(self) -> dict[str, Number]:
        """Bare numbers by name, with what follows from them.

        world: GPUs. pool: GPUs of one pipeline stage (tp·cp·dp). edp: copies of an expert.
        m: microbatches of a step on one data-parallel rank (gradient accumulation).
        """
        v = {name: plain(getattr(self, name)) for name in NUMBERS}
        v["pool"] = v["tp"] * v["cp"] * v["dp"]
        v["world"] = v["pool"] * v["pp"]
        v["expert"] = v["ep"] * v["etp"]
        v["replica"] = v["microbatch"] * v["dp"]
        with quiet(self.is_many):
            v["edp"] = _divided(v["pool"], v["expert"])
            v["m"] = _divided(v["batch"], v["replica"])
        return v

    @property
    def is_many(self) -> bool:
        """Whether any field is an array."""
        return any(is_array(plain(getattr(self, name))) for name in NUMBERS)

    def at(self, numbers: Mapping[str, Any]) -> Layout:
        """The same kinds with other numbers."""
        return replace(self, **numbers)

    @property
    def explained(self) -> Layout:
        """The same with each number as a quantity of its own, for explanations."""
        given: dict[str, Any] = {}
        for name in NUMBERS:
            value = getattr(self, name)
            if not isinstance(value, Quantity):
                source = Source("user", f"layout, {name}")
                given[name] = Quantity.given(value, symbol=name, source=source)
        return self.at(given)


def quiet(many: bool) -> AbstractContextManager[Any]:
    """Arrays hold points that are not legal: what they divide by is nobody's concern."""
    return np.errstate(all="ignore") if many else nullcontext()


def _divided(a: Number, b: Number) -> Number:
    if is_array(a) or is_array(b):
        return a / b
    return a // b if b and a % b == 0 else a / b if b else float("nan")


def _field_names() -> tuple[str, ...]:
    return tuple(f.name for f in fields(Layout) if f.name != "selective")


def _parsed(name: str, value: str) -> dict[str, Any]:
    if name in NUMBERS:
        try:
            return {name: int(value.replace("_", ""))}
        except ValueError:
            raise UserError(f"--layout: {name}={value!r} must be a whole number") from None
    if name == "sp":
        if value.lower() not in ("0", "1", "true", "false", "on", "off"):
            raise UserError(f"--layout: sp={value!r} must be 0 or 1")
        return {"sp": value.lower() in ("1", "true", "on")}
    if name == "recompute" and value.startswith("selective:"):
        groups = tuple(value.partition(":")[2].split("+"))
        return {"recompute": "selective", "selective": groups}
    if name == "split" and value[:1].isdigit():
        try:
            return {"split": tuple(int(n) for n in value.split("+"))}
        except ValueError:
            raise UserError(
                f"--layout: layers={value!r} must be a list such as 8+8+7, or one of "
                f"{', '.join(_SPLITS)}"
            ) from None
    return {name: value}


def _wrong(name: str, value: Any) -> str | None:
    least = 0 if name == "zero" else 1
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
        return f"{name}={value!r} must be a whole number of at least {least}"
    if value < least or (name == "zero" and value > 3):
        allowed = "0, 1, 2 or 3" if name == "zero" else "a whole number of at least 1"
        return f"{name}={value!r} must be {allowed}"
    return None


def _wrong_word(name: str, word: str, allowed: tuple[str, ...]) -> str | None:
    if word in allowed:
        return None
    near = near_miss(str(word), allowed)
    return f"{name}={word!r} is not known, it is one of {', '.join(allowed)}{near}"
