"""Tensors as an estimate expects them, and as a checkpoint stores them.

A quantised weight is several tensors in a file: its elements, often packed, and their scales.
`stored` puts them back together under the name of the one weight that they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import prod
from typing import NamedTuple

from moeplan.model.formats import Format
from moeplan.model.ops import Block, Weight
from moeplan.model.spec import ModelSpec, Role
from moeplan.quantity import evaluate

__all__ = ["BITS", "Entry", "Expected", "Stored", "expected", "short", "stored"]

# safetensors' words for element types, and their bits
BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip


class Entry(NamedTuple):
    """A tensor as a source lists it; None where the source does not say.

    buffer: whether no gradient trains it, which only a model knows and a file does not.
    """

    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    size: int | None = None
    buffer: bool | None = None


class Expected(NamedTuple):
    """A tensor of the estimate: shape, bytes with its scales, format; `tied` to another or None.

    stacked: also stored with its first two dimensions in one.
    """

    shape: tuple[int, ...]
    size: int
    format: Format
    buffer: bool = False
    tied: str | None = None
    stacked: bool = False
    role: Role = "model"

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


class Stored(NamedTuple):
    """A weight of a source: shapes that its elements may stand for, the likeliest first.

    size: bytes of elements and scales together. parts: names of the tensors that it is made of.
    packed: several elements share a stored one.
    """

    shapes: tuple[tuple[int, ...], ...] | None
    dtype: str | None
    size: int | None
    parts: tuple[str, ...]
    buffer: bool | None = None
    packed: bool = False

    @property
    def elements(self) -> int | None:
        """Number of elements, scales left out."""
        return None if self.shapes is None else prod(self.shapes[0])


# ------------------------------------------------------------------------------- the estimate
def expected(spec: ModelSpec) -> dict[str, Expected]:
    """Full name to tensor of every row of weights, each layer and expert by itself.

    Tied tensors are among them: a checkpoint may hold them again.
    """
    out: dict[str, Expected] = {}
    for group in spec.groups:
        for block in group.blocks:
            for weight in block.tensors:
                for name in group.tensor_names(weight):
                    fmt = spec.checkpoint.of(weight, name)
                    one = _expected(weight, block, fmt, group.role)
                    if found := re.search(r"\{e\+?\}", name):
                        first = int(evaluate(weight.first, block.values))
                        experts = range(first, first + int(block.sizes[weight.name].copies))
                        out |= {name.replace(found[0], str(e)): one for e in experts}
                    else:
                        out[name] = one
    return out


def _expected(weight: Weight, block: Block, fmt: Format, role: Role) -> Expected:
    shape = tuple(int(evaluate(dim, block.values)) for dim in weight.dims)
    size = block.sizes[weight.name]
    copies = int(size.copies) if weight.stacked else 1
    elements = prod(shape) * copies
    numbers = {"n": elements, "r": size.rows, "c": size.columns, "e": copies}
    return Expected(
        (copies, *shape) if weight.stacked else shape,
        int(evaluate(fmt.bytes, numbers)),
        fmt,
        weight.buffer,
        weight.tied,
        weight.stacked,
        role,
    )


# ------------------------------------------------------------------------------- the checkpoint
# The last word of a tensor that holds the elements of `<module>.weight` in a packed layout.
_PACKED = frozenset(("weight_packed", "qweight"))
# The last word of one that scales or unpacks them. It is a part of `<module>.weight` only where
# the elements are there too: elsewhere the same word names a tensor of its own.
_SCALES = frozenset(
    ("weight_scale", "weight_scale_inv", "weight_scale_2", "weight_global_scale", "scale",
     "weight_zero_point", "weight_shape", "weight_g_idx", "input_scale", "input_global_scale",
     "input_zero_point", "activation_scale", "scales", "qzeros", "g_idx")
)  # fmt: skip
# The same for a tensor of stacked experts, which has no last word of its own (`down_proj_blocks`).
_STACKED = re.compile(
    r"^(?P<base>.+?)_(?P<part>blocks|packed|scales|scale|scale_inv|scale_2|weight_scale"
    r"|weight_scale_inv|weight_scale_2|input_scale|global_scale|input_global_scale)$"
)
_ELEMENTS = frozenset(("blocks", "packed"))


def stored(entries: Mapping[str, Entry], bits: Iterable[int] = ()) -> dict[str, Stored]:
    """Name of a weight to what a source holds of it.

    bits: of the integers that a config says are packed into words, which no header tells.
    """
    owners = _owners(entries)
    parts: dict[str, list[str]] = {}
    for name, owner in owners.items():
        parts.setdefault(owner, []).append(name)
    wide = tuple(bits) or (4,)
    return {owner: _together(owner, names, entries, wide) for owner, names in parts.items()}


def _owners(entries: Mapping[str, Entry]) -> dict[str, str]:
    """Tensor to the weight that it is a part of, itself where it is whole."""
    held = {name: owner for name in entries if (owner := _of_elements(name)) is not None}
    weights = set(entries) | set(held.values())
    out = {}
    for name in entries:
        owner = held.get(name) or _of_scale(name)
        out[name] = owner if owner is not None and owner in weights else name
    return out


def _of_elements(name: str) -> str | None:
    module, _, last = name.rpartition(".")
    if last in _PACKED:
        return f"{module}.weight"
    found = _STACKED.match(name)
    return found["base"] if found and found["part"] in _ELEMENTS else None


def _of_scale(name: str) -> str | None:
    module, _, last = name.rpartition(".")
    if last in _SCALES:
        return f"{module}.weight"
    found = _STACKED.match(name)
    return found["base"] if found else None


def _together(
    owner: str, names: list[str], entries: Mapping[str, Entry], bits: tuple[int, ...]
) -> Stored:
    elements = [n for n in names if n == owner or _of_elements(n) == owner]
    first = entries[elements[0]]
    sizes = [entries[n].size for n in names]
    size = sum(s for s in sizes if s is not None) if None not in sizes else None
    parts = tuple(sorted(names))
    if first.shape is None:
        return Stored(None, first.dtype, size, parts, first.buffer)
    kind = "weight" if elements[0] == owner else re.split(r"[._]", elements[0])[-1]
    shapes = _shapes(kind, first.shape, first.dtype, bits, scaled=len(names) > 1)
    packed = shapes[0] != first.shape
    return Stored(shapes, first.dtype, size, parts, first.buffer, packed)


def _shapes(
    kind: str, shape: tuple[int, ...], dtype: str | None, bits: tuple[int, ...], *, scaled: bool
) -> tuple[tuple[int, ...], ...]:
    """Shapes that stored elements may stand for.

    Bytes with scales hold two 4-bit elements each, or one of 8 bits. 32-bit words hold the
    integers of a row (compressed-tensors), of a column (GPTQ) or of several columns (AWQ; these
    two store a matrix as [inputs, outputs]).
    """
    if kind == "blocks" and len(shape) > 1:  # [.., rows, groups, bytes of a group]
        *outer, rows, groups, inner = shape
        columns = groups * inner * 2
        return (*outer, rows, columns), (*outer, columns, rows)
    if dtype in ("U8", "I8") and scaled and shape:
        wide = (*shape[:-1], shape[-1] * 2)
        return (wide, shape) if dtype == "U8" else (shape, wide)
    if dtype == "I32" and kind == "qweight" and len(shape) == 2:
        a, b = shape
        pairs = [((b, a * 32 // n), (b * 32 // n, a)) for n in bits]
        return tuple(one for pair in pairs for one in pair)
    if dtype == "I32" and kind == "packed" and shape:
        return tuple((*shape[:-1], shape[-1] * 32 // n) for n in bits)
    return (shape,)


# ------------------------------------------------------------------------------------ names
_WRAPPERS = frozenset(
    ("base_model", "language_model", "llm", "model", "module", "text_model", "transformer")
)


def short(name: str) -> str:
    """A name without the leading words that only say what wraps the language model.

    `model.language_model.layers.0.x` and `language_model.model.layers.0.x` are both `layers.0.x`.
    """
    words = name.split(".")
    while len(words) > 1 and words[0] in _WRAPPERS:
        words.pop(0)
    return ".".join(words)
