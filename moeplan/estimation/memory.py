"""Memory: weights as stored, cache, training state, activations kept for the backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from moeplan.errors import UserError, near_miss
from moeplan.estimation.fold import (
    MODEL,
    Line,
    Part,
    Tensor,
    by_component,
    group_label,
    layer_count,
    lines,
    over_layers,
    tensors,
)
from moeplan.model.formats import Format, format_named
from moeplan.model.ops import CacheEntry, Component, Kept
from moeplan.model.spec import Group, ModelSpec, Role
from moeplan.model.workload import Workload
from moeplan.quantity import (
    Number,
    Quantity,
    Source,
    compile_formula,
    derive,
    evaluate,
    total,
)

__all__ = [
    "OPTIMIZERS",
    "SELECTIVE",
    "LayerBytes",
    "Optimizer",
    "Stored",
    "StoredTensors",
    "activations",
    "kv_cache",
    "layer_bytes",
    "optimizer_named",
    "stored_tensors",
    "training_state",
    "weight_bytes",
    "weights_by_component",
]

UNIT = "B"


# ---------------------------------------------------------------------------------- weights
def _symbols(tensor: Tensor) -> dict[str, Number]:
    """The symbols of a format's formula: n, r, c, e (elements, rows, columns, copies)."""
    n, _, r, c, e = tensor.size
    return {"n": n, "r": r, "c": c, "e": e}


def _formats(spec: ModelSpec, tensor: Tensor) -> dict[Format, Number]:
    """Format of a tensor to the number of equal layers that store it so."""
    checkpoint, group, weight = spec.checkpoint, tensor.group, tensor.weight
    count = group.number
    if not checkpoint.per_name or not group.indices or not weight.matmul:
        name = next(group.tensor_names(weight), group.prefix + weight.name)
        return {checkpoint.of(weight, name): count}
    out: dict[Format, Number] = {}
    for name in group.tensor_names(weight):
        fmt = checkpoint.of(weight, name)
        out[fmt] = out.get(fmt, 0) + 1
    return out


def _explained(tensor: Tensor, fmt: Format, size: Number) -> Quantity:
    def inputs() -> Mapping[str, Quantity]:
        w = tensor.weight
        rows, columns = (w.dims[-1], w.dims[0]) if w.transposed else (w.dims[0], w.dims[-1])
        own = {"n": w.elements, "r": rows if len(w.dims) > 1 else "1", "c": columns, "e": w.copies}
        return {
            name: tensor.quantity(formula, "").named(name)
            for name, formula in own.items()
            if name in fmt.bytes
        }

    return Quantity(size, UNIT, formula=fmt.bytes, inputs=inputs, note=fmt.name)


class Stored(NamedTuple):
    """A tensor in one layer of its group: bytes (the mean over the layers where they differ), the
    peak rate that its matmul runs at, and (format, layers that store it so, bytes of one)."""

    bytes: Number
    peak: str
    kinds: tuple[tuple[Format, Number, Number], ...]


Place: TypeAlias = tuple[int, int, str]
"""(id of a group, id of a block, weight name): groups may share a block."""
StoredTensors: TypeAlias = dict[Place, Stored]
LayerBytes: TypeAlias = dict[Place, Number]


def stored_tensors(spec: ModelSpec) -> StoredTensors:
    """What is stored of each tensor in one layer; the peak is that of the group's first layer."""
    return {
        (id(group), id(block), weight.name): _stored(spec, Tensor(group, block, weight))
        for group in spec.groups
        for block in group.blocks
        for weight in block.tensors
    }


def _stored(spec: ModelSpec, tensor: Tensor) -> Stored:
    sizes = _symbols(tensor)
    kinds = tuple((f, n, evaluate(f.bytes, sizes)) for f, n in _formats(spec, tensor).items())
    first, _, stored = kinds[0]
    if len(kinds) > 1:
        stored = sum(n * size for _, n, size in kinds) / sum(n for _, n, _ in kinds)
    return Stored(stored, first.peak, kinds)


def layer_bytes(spec: ModelSpec) -> LayerBytes:
    """Bytes of each tensor in one layer, the mean over the layers of its group."""
    return {place: stored.bytes for place, stored in stored_tensors(spec).items()}


def weight_bytes(spec: ModelSpec, roles: tuple[Role, ...] = MODEL) -> Number:
    """Bytes of all tensors as stored, a bare number or array."""
    stored: Number = 0
    for tensor in tensors(spec, roles):
        sizes = _symbols(tensor)
        for fmt, count in _formats(spec, tensor).items():
            stored = stored + count * evaluate(fmt.bytes, sizes)
    return stored


def weights_by_component(
    spec: ModelSpec, roles: tuple[Role, ...] = MODEL, stored: StoredTensors | None = None
) -> dict[Component, Quantity]:
    """Bytes of the weights as stored, per component, buffers included, explained."""
    known = stored_tensors(spec) if stored is None else stored

    def parts() -> Iterable[Part]:
        for tensor in tensors(spec, roles):
            group, weight = tensor.group, tensor.weight
            kinds = known[id(group), id(tensor.block), weight.name].kinds
            for fmt, count, size in kinds:
                # part of the layers: a group of its own in the sum
                own = group if len(kinds) == 1 else _part(group, count)
                explain = partial(_explained, tensor, fmt, size)
                yield Part(own, weight.component, weight.name, size, explain)

    return by_component(parts(), UNIT)


def _part(group: Group, count: Number) -> Group:
    return Group(f"{group.name}, {count} of its layers", (), count, (), group.prefix, group.role)


# ------------------------------------------------------------------------------------ cache
def _entry_bytes(entry: CacheEntry, fmt: Format) -> float:
    return (fmt.bits if entry.bits is None else entry.bits) / 8


def _cache_part(
    group: Group, block: Any, entry: CacheEntry, formula: str, fmt: Format, **more: Quantity
) -> Quantity:
    values = {**block.values, **{name: q.value for name, q in more.items()}}
    text = f"({formula})*{_bytes_text(entry, fmt)}"

    def inputs() -> Mapping[str, Quantity]:
        symbols = {**block.symbols, **more}
        return {name: symbols[name] for name in compile_formula(text)[1]}

    per_layer = Quantity(evaluate(text, values), UNIT, formula=text, inputs=inputs, note=entry.name)
    return over_layers(group, per_layer, UNIT)


def _bytes_text(entry: CacheEntry, fmt: Format) -> str:
    size = _entry_bytes(entry, fmt)
    return str(int(size)) if size.is_integer() else str(size)


def kv_cache(
    spec: ModelSpec, fmt: str, batch: Number | Quantity, context: Number | Quantity
) -> dict[str, Any]:
    """Cache of keys and values, latents and recurrent state.

    bytes_per_token: what one token writes in all layers. bytes_per_token_beyond_windows: what a
    long sequence still grows by (layers with a window have stopped). fixed_bytes: state per
    sequence whatever its length. bytes: for `batch` sequences of `context` tokens.
    """
    form = format_named(fmt, "cache format")
    entries = list(spec.cache())
    c = context if isinstance(context, Quantity) else Quantity.given(context, "tokens", "C")
    x = {"C": c, "X": c.named("X")}

    def summed(pick: Any, unit: str) -> Quantity:
        parts = []
        for group, block, entry in entries:
            formula = pick(entry)
            if formula != "0":
                label = f"{entry.name}, {group_label(group)}"
                parts.append((label, _cache_part(group, block, entry, formula, form, **x)))
        return total(parts, unit)

    def held(entry: CacheEntry) -> str:
        tokens = "C" if entry.window is None else f"min(C, {entry.window})"
        grown = "0" if entry.per_token == "0" else f"({entry.per_token})*{tokens}"
        terms = [t for t in (grown, entry.fixed) if t != "0"]
        return " + ".join(terms) or "0"

    one = summed(held, UNIT)
    return {
        "format": fmt,
        "bytes_per_token": summed(lambda e: e.per_token, "B/token"),
        "bytes_per_token_beyond_windows": summed(
            lambda e: "0" if e.window else e.per_token, "B/token"
        ),
        "fixed_bytes": summed(lambda e: e.fixed, UNIT),
        "batch": batch,
        "context": c,
        "bytes_per_sequence": one,
        "bytes": derive("B*sequence", UNIT, B=batch, sequence=one),
    }


# --------------------------------------------------------------------------- training state
class Optimizer(NamedTuple):
    """Bytes per parameter of training state besides the weights, and what they are."""

    name: str
    weights: int
    gradients: int
    main: int
    moments: int
    about: str


OPTIMIZERS: dict[str, Optimizer] = {
    o.name: o
    for o in (
        Optimizer("adamw-fp32", 2, 4, 4, 8, "bf16 weights, fp32 gradients, main and moments"),
        Optimizer("adamw-bf16-grads", 2, 2, 4, 8, "bf16 weights and gradients, fp32 main, moments"),
        Optimizer("adamw-bf16-moments", 2, 4, 4, 4, "bf16 weights, moments; fp32 gradients, main"),
        Optimizer("adamw-8bit", 2, 2, 4, 2, "bf16 weights, gradients; fp32 main; 8-bit moments"),
        Optimizer("adamw-pure-bf16", 2, 2, 0, 4, "bf16 weights, gradients and moments, no main"),
        Optimizer("adamw-full-fp32", 4, 4, 0, 8, "fp32 weights, gradients and moments"),
        Optimizer("sgd-momentum", 2, 4, 4, 4, "bf16 weights, fp32 gradients, main and momentum"),
        Optimizer("muon", 2, 4, 4, 4, "bf16 weights, fp32 gradients, main and one momentum"),
    )
}


def optimizer_named(name: str) -> Optimizer:
    """The optimizer setting of that name, or an error with a near miss."""
    if name not in OPTIMIZERS:
        allowed = ", ".join(OPTIMIZERS)
        hint = near_miss(name, OPTIMIZERS)
        raise UserError(f"optimizer {name!r} is unknown: allowed are {allowed}{hint}")
    return OPTIMIZERS[name]


def training_state(parameters: Quantity, setting: str) -> dict[str, Any]:
    """Weights, gradients, main parameters and moments of all `parameters`, undivided."""
    o = optimizer_named(setting)

    def part(symbol: str, size: int) -> Quantity:
        source = Source("assumed", f"optimizer setting {o.name}: {o.about}")
        each = Quantity.given(size, "B/parameter", symbol, source)
        inputs: dict[str, Any] = {symbol: each, "N": parameters}
        return derive(f"{symbol}*N", UNIT, **inputs)

    parts = {
        "weights": part("weight_bytes", o.weights),
        "gradients": part("gradient_bytes", o.gradients),
        "main_parameters": part("main_bytes", o.main),
        "moments": part("moment_bytes", o.moments),
    }
    return {
        "optimizer": o.name,
        "bytes_per_parameter": o.weights + o.gradients + o.main + o.moments,
        **parts,
        "total": total(list(parts.items()), UNIT),
    }


# ------------------------------------------------------------------------------- activations
# cheap to compute again, large to keep: norm outputs, activation outputs, latents' expansions
SELECTIVE = frozenset(("norm", "activation", "up_projection"))


def _kept_bytes(line: Line, kept: Kept) -> Quantity:
    return line.quantity(f"({kept.elements})*{kept.bits // 8}", UNIT)


def activations(
    spec: ModelSpec, work: Workload, roles: tuple[Role, ...] = MODEL
) -> list[dict[str, Any]]:
    """Tensors kept for the backward pass in one layer of each kind, for a microbatch.

    Each entry: the layer's name and count, the kept tensors by row, and totals with no, selective
    (norms, activation outputs and latent expansions are computed again) and full recomputation
    (only the layer's input is kept).
    """
    rows: dict[int, tuple[Group, list[tuple[Kept, Line]]]] = {}
    for line in lines(spec, work, roles):
        if line.group.is_layer:
            kept = rows.setdefault(id(line.group), (line.group, []))[1]
            kept += [(k, line) for k in line.op.kept]
    return [_activations(group, _unique(kept)) for group, kept in rows.values()]


def _activations(group: Group, rows: list[tuple[Kept, Line]]) -> dict[str, Any]:
    sizes = [(kept, _kept_bytes(line, kept)) for kept, line in rows]
    named = [(kept.name, size) for kept, size in sizes]
    chosen = [(kept.name, size) for kept, size in sizes if kept.drop not in SELECTIVE]
    return {
        "name": group.name,
        "layers": layer_count(group),
        "by_row": dict(named),
        "none": total(named, UNIT),
        "selective": total(chosen, UNIT),
        "full": named[0][1] if named else total([], UNIT),
    }


def _unique(rows: list[tuple[Kept, Line]]) -> list[tuple[Kept, Line]]:
    """Rows with equal names told apart, so that none hides another in a mapping."""
    seen: dict[str, int] = {}
    out = []
    for kept, line in rows:
        n = seen[kept.name] = seen.get(kept.name, 0) + 1
        out.append((kept if n == 1 else replace(kept, name=f"{kept.name}_{n}"), line))
    return out
