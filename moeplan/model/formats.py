"""How a checkpoint stores its weights: element formats with their scales, and what is left out.

The bytes of a tensor are a formula over n elements in r rows (outputs) and c columns (inputs) of
each of its e copies, so block scales are counted whole, edge blocks included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

from moeplan.errors import UserError, near_miss
from moeplan.model.ops import Component, Weight

__all__ = [
    "FORMATS",
    "KEPT",
    "Checkpoint",
    "Format",
    "awq_int",
    "format_named",
    "gptq_int",
    "nvfp4",
    "packed_int",
    "scaled_8bit",
]


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
        hint = near_miss(name, FORMATS)
        raise UserError(f"{what} {name!r} is unknown: allowed are {allowed}{hint}")
    return FORMATS[name]


def scaled_8bit(
    kind: Literal["fp8", "int8"],
    scope: Literal["tensor", "channel", "group", "block"],
    *,
    size: tuple[int, ...] = (),
    scale: int = 4,
    more: str = "",
    weight_only: bool = False,
) -> Format:
    """8-bit elements with a scale of `scale` bytes per tensor, output row, group or block.

    size: (columns,) of a group, (rows, columns) of a block. more: further bytes, a formula over r,
    c, e (zero points, the input's static scale). weight_only: activations stay in 16 bits.
    """
    scales = {
        "tensor": "e",
        "channel": "e*r",
        "group": "e*r*ceil_div(c, {})",
        "block": "e*ceil_div(r, {})*ceil_div(c, {})",
    }[scope].format(*size)
    stored = f"n + {scale}*{scales}" if scale != 1 else f"n + {scales}"
    square = len(size) == 2 and size[0] == size[1]
    shape = str(size[0]) if square else "x".join(str(n) for n in size)
    usual = {"fp8": "tensor", "int8": "channel"}[kind]
    name = kind if scope == usual else f"{kind}-{scope}{shape}"
    standard = FORMATS.get(name)
    peak = "bf16" if weight_only else kind
    made = Format(
        name if standard is None else f"{name}, {8 * scale}-bit scales",
        8,
        stored + (f" + {more}" if more else ""),
        f"8-bit {'float' if kind == 'fp8' else 'integer'}, one {8 * scale}-bit scale per {scope}"
        + (f" of {' x '.join(str(n) for n in size)}" if size else ""),
        peak,
    )
    if standard is not None and (standard.bytes, standard.peak) == (made.bytes, peak):
        return standard
    return made


def nvfp4(group: int = 16, *, input_scale: bool = True) -> Format:
    """4-bit float with an fp8 scale per group, fp32 scales of the weight and of its input."""
    if group == 16 and input_scale:
        return FORMATS["nvfp4"]
    scalars = 8 if input_scale else 4
    return Format(
        "nvfp4" + ("" if group == 16 else f"-g{group}") + ("" if input_scale else "-weight-only"),
        4,
        f"ceil_div(n, 2) + e*r*ceil_div(c, {group}) + {scalars}*e",
        f"4-bit float, one fp8 scale per {group} elements, fp32 scales a tensor",
        "fp4" if input_scale else "bf16",
    )


def _groups(size: int | None) -> str:
    """Groups along the inputs of one output row; None is one group of all of them."""
    return "1" if size is None else f"ceil_div(c, {size})"


def _int_name(bits: int, group: int | None, how: str) -> str:
    return f"int{bits}-" + ("channel" if group is None else f"g{group}") + f" ({how})"


def gptq_int(bits: int, group: int | None) -> Format:
    """GPTQ's layout: words of 32 bits along the inputs, packed zeros, fp16 scales, g_idx."""
    per_group = f"(2*r + 4*ceil_div(r*{bits}, 32))"
    return Format(
        _int_name(bits, group, "GPTQ"),
        bits,
        f"4*e*r*ceil_div(c*{bits}, 32) + e*{_groups(group)}*{per_group} + 4*e*c",
        f"{bits}-bit integer, fp16 scale and {bits}-bit zero per group, a 32-bit index an input",
        "bf16",
    )


def awq_int(bits: int, group: int | None) -> Format:
    """AWQ's layout ("gemm"): words of 32 bits along the outputs, packed zeros, fp16 scales."""
    words = f"ceil_div(r*{bits}, 32)"
    return Format(
        _int_name(bits, group, "AWQ"),
        bits,
        f"4*e*c*{words} + e*{_groups(group)}*(2*r + 4*{words})",
        f"{bits}-bit integer, fp16 scale and {bits}-bit zero per group",
        "bf16",
    )


def packed_int(
    bits: int, group: int | None, *, scale: int = 2, zeros: bool = False, order: bool = False
) -> Format:
    """The "pack-quantized" layout of compressed-tensors.

    Words of 32 bits along the inputs, a scale per group, the shape in two 64-bit integers; packed
    zeros where the scheme is not symmetric, a 32-bit index an input where groups are reordered.
    """
    groups = _groups(group)
    text = f"4*e*r*ceil_div(c, {32 // bits}) + {scale}*e*r*{groups} + 16*e"
    text += f" + 4*e*ceil_div(r, {32 // bits})*{groups}" if zeros else ""
    text += " + 4*e*c" if order else ""
    about = f"{bits}-bit integer, one {8 * scale}-bit scale per group" + (" with zeros" * zeros)
    return Format(_int_name(bits, group, "compressed-tensors"), bits, text, about, "bf16")


# What quantisation leaves alone unless a method says otherwise: look-ups, norms, the router (its
# scores decide who computes) and the output head.
KEPT: frozenset[Component] = frozenset(("embedding", "norms", "router", "head"))


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The formats of a checkpoint's tensors.

    base: format of tensors that are not quantised. quantised: format of the others, None where
    nothing is. Names are those of modules (a tensor's name without `.weight`, the first expert
    standing for all of them). excluded_names: modules, or parts of their dotted names, that stay
    in `base`; excluded: the same as regular expressions, searched. only: regular expressions of
    the modules that are quantised, where not all are. named: format by module or by one of its
    parents, and `base` for others; rules: (regular expression, format), the first match counts,
    `quantised` for others. kept: components that stay in `base` by the method's own rule.
    buffers: format of selection-bias buffers. cache: format of keys and values that the file asks
    for. source: the keys this was read from.
    """

    base: Format = FORMATS["bf16"]
    quantised: Format | None = None
    excluded: tuple[str, ...] = ()
    excluded_names: frozenset[str] = frozenset()
    only: tuple[str, ...] = ()
    named: Mapping[str, Format] = field(default_factory=dict)
    rules: tuple[tuple[str, Format], ...] = ()
    kept: frozenset[Component] = KEPT
    buffers: Format = FORMATS["fp32"]
    cache: str | None = None
    source: str = "bf16 assumed: the config names no dtype"
    assumed: bool = True

    @cached_property
    def _excluded(self) -> tuple[re.Pattern[str], ...]:
        return tuple(re.compile(pattern) for pattern in self.excluded)

    @cached_property
    def _only(self) -> tuple[re.Pattern[str], ...]:
        return tuple(re.compile(pattern) for pattern in self.only)

    @cached_property
    def _rules(self) -> tuple[tuple[re.Pattern[str], Format], ...]:
        return tuple((re.compile(pattern), fmt) for pattern, fmt in self.rules)

    @cached_property
    def per_name(self) -> bool:
        """Whether equal layers may differ, so that the tensor of each layer must be asked.

        Only a pattern or name that mentions layers or an index can tell one layer from another.
        """
        texts = (*self.excluded, *self.excluded_names, *self.only, *self.named)
        texts += tuple(pattern for pattern, _ in self.rules)
        return self.quantised is not None and any(_LAYERED.search(text) for text in texts)

    def of(self, weight: Weight, full_name: str) -> Format:
        """The format of a tensor."""
        if weight.buffer:
            return self.buffers
        # a gate with one output has no row of blocks to scale: no method converts it
        single = weight.dims[0] == "1"
        if self.quantised is None or not weight.matmul or single or weight.component in self.kept:
            return self.base
        module = full_name.removesuffix(".weight").replace("{e}", "0").replace("{e+}", "0")
        if module not in self._asked:
            self._asked[module] = self._of_module(module, self.quantised)
        return self._asked[module]

    @cached_property
    def _asked(self) -> dict[str, Format]:
        return {}

    def _of_module(self, module: str, default: Format) -> Format:
        if self._is_excluded(module) or (self._only and not _found(self._only, module)):
            return self.base
        if self.named:
            return self._by_name(module)
        return next((fmt for rule, fmt in self._rules if rule.search(module)), default)

    def _is_excluded(self, module: str) -> bool:
        if _found(self._excluded, module):
            return True
        if not self.excluded_names:
            return False
        parts = module.split(".")
        ends = range(1, len(parts) + 1)
        return any(".".join(parts[i:j]) in self.excluded_names for j in ends for i in range(j))

    def _by_name(self, module: str) -> Format:
        while module:
            if module in self.named:
                return self.named[module]
            module = module.rpartition(".")[0]
        return self.base

    def stored_as(self, name: str) -> Checkpoint:
        """The same model with its weights in another format that the user chose."""
        chosen = format_named(name, "weight format")
        plain = replace(self, source="user", assumed=False, kept=KEPT, **_NO_NAMES)
        if chosen.bits >= 16:
            return replace(plain, base=chosen, quantised=None)
        return replace(plain, quantised=chosen)


_NO_NAMES: Mapping[str, Any] = {
    "excluded": (),
    "excluded_names": frozenset(),
    "only": (),
    "named": {},
    "rules": (),
}


_LAYERED = re.compile(r"[0-9]|layer|block|\\d|\\w|[^\\]\.[^*+]")


def _found(patterns: tuple[re.Pattern[str], ...], module: str) -> bool:
    return any(pattern.search(module) for pattern in patterns)
