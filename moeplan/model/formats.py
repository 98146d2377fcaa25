"""How a checkpoint stores its weights: element formats with their scales, and what is left out.

The bytes of a tensor are a formula over n elements in r rows (outputs) and c columns (inputs) of
each of its e copies, so block scales are counted whole, edge blocks included.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from moeplan.errors import UserError, near_miss
from moeplan.model.ops import Component, Weight

__all__ = ["FORMATS", "Checkpoint", "Format", "block_fp8", "format_named"]


class Format(NamedTuple):
    """name; bits of one element without scales; formula of the bytes over n, r, c, e; what it is.

    peak: which peak rate of a GPU a matmul in this format runs at when activations follow it.
    """

    name: str
    bits: float
    bytes: str
    about: str
    peak: str


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("fp32", 32, "4*n", "IEEE single", "tf32"),
        Format("bf16", 16, "2*n", "bfloat16", "bf16"),
        Format("fp16", 16, "2*n", "IEEE half", "bf16"),
        Format("fp8", 8, "n + 4*e", "8-bit float, one fp32 scale a tensor", "fp8"),
        Format("int8", 8, "n + 4*e*r", "8-bit integer, one fp32 scale a row", "int8"),
        Format(
            "fp8-block128",
            8,
            "n + 4*e*ceil_div(r, 128)*ceil_div(c, 128)",
            "8-bit float, one fp32 scale per 128 x 128 block (DeepSeek-V3, arXiv 2412.19437)",
            "fp8",
        ),
        Format(
            "mxfp8",
            8,
            "n + e*r*ceil_div(c, 32)",
            "8-bit float, one 8-bit exponent per 32 elements (OCP MX 1.0)",
            "fp8",
        ),
        Format(
            "mxfp4",
            4,
            "ceil_div(n, 2) + e*r*ceil_div(c, 32)",
            "4-bit float, one 8-bit exponent per 32 elements (OCP MX 1.0)",
            "fp4",
        ),
        Format(
            "nvfp4",
            4,
            "ceil_div(n, 2) + e*r*ceil_div(c, 16) + 8*e",
            "4-bit float, one fp8 scale per 16 elements, fp32 weight and input scales a tensor",
            "fp4",
        ),
        Format(
            "int4-g128",
            4,
            "ceil_div(n, 2) + e*r*ceil_div(c, 128)*5//2",
            "4-bit integer, fp16 scale and 4-bit zero point per 128 elements (GPTQ, AWQ)",
            "bf16",
        ),
        Format(
            "int4-g32",
            4,
            "ceil_div(n, 2) + 2*e*r*ceil_div(c, 32)",
            "4-bit integer, symmetric, one bf16 scale per 32 elements (compressed-tensors)",
            "bf16",
        ),
    )
}


def format_named(name: str, what: str = "format") -> Format:
    """The format of that name, or an error with a near miss."""
    if name not in FORMATS:
        allowed = ", ".join(FORMATS)
        raise UserError(f"{what} {name!r} is unknown: allowed are {allowed}{near_miss(name, FORMATS)}")
    return FORMATS[name]


def block_fp8(rows: int, columns: int) -> Format:
    """FP8 with one fp32 scale per block of that size."""
    if (rows, columns) == (128, 128):
        return FORMATS["fp8-block128"]
    return Format(
        f"fp8-block{rows}x{columns}",
        8,
        f"n + 4*e*ceil_div(r, {rows})*ceil_div(c, {columns})",
        f"8-bit float, one fp32 scale per {rows} x {columns} block",
        "fp8",
    )


# What every quantisation method leaves alone unless it says otherwise: look-ups, norms, biases,
# the router (its scores decide who computes) and the output head.
_KEPT: frozenset[Component] = frozenset(("embedding", "norms", "router", "head"))


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The formats of a checkpoint's tensors.

    base: format of tensors that are not quantised. quantised: format of the others, None where
    nothing is. excluded: regular expressions, searched in the full tensor name without its last
    part, of modules that stay in `base`. kept: components that stay in `base` by the method's own
    rule. buffers: format of selection-bias buffers. source: the keys this was read from.
    """

    base: Format = FORMATS["bf16"]
    quantised: Format | None = None
    excluded: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    kept: frozenset[Component] = _KEPT
    buffers: Format = FORMATS["fp32"]
    source: str = "bf16 assumed: the config names no dtype"
    assumed: bool = True

    @cached_property
    def _excluded(self) -> re.Pattern[str] | None:
        return re.compile("|".join(f"(?:{p})" for p in self.excluded)) if self.excluded else None

    @cached_property
    def _only(self) -> re.Pattern[str] | None:
        return re.compile("|".join(f"(?:{p})" for p in self.only)) if self.only else None

    @property
    def per_name(self) -> bool:
        """Whether equal layers may differ, so that each tensor's name must be asked."""
        return self.quantised is not None and bool(self.excluded or self.only)

    def of(self, weight: Weight, full_name: str) -> Format:
        """The format of a tensor."""
        if weight.buffer:
            return self.buffers
        if self.quantised is None or not weight.matmul or weight.component in self.kept:
            return self.base
        module = full_name.removesuffix(".weight")
        if self._excluded is not None and self._excluded.search(module):
            return self.base
        if self._only is not None and not self._only.search(module):
            return self.base
        return self.quantised

    def stored_as(self, name: str) -> Checkpoint:
        """The same model with its weights in another format that the user chose."""
        chosen = format_named(name, "weight format")
        if chosen.bits >= 16:
            return replace(
                self, base=chosen, quantised=None, excluded=(), only=(), source="user", assumed=False
            )
        return replace(
            self, quantised=chosen, excluded=(), only=(), source="user", assumed=False
        )
