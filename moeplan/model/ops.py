"""The rows in which a block describes itself: weights, operations, kept tensors, cache entries.

Every size is a formula in the field's symbols, evaluated over the block's own symbols and the
workload's (B, S, C, T = B·S). Parameters, FLOPs, bytes, activations, cache and time are folds over
these rows; nothing else in the package states a size of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache, cached_property
from typing import Literal, NamedTuple, TypeAlias

from moeplan.arrays import is_array
from moeplan.model.workload import Workload
from moeplan.quantity import Number, Quantity, evaluate, plain

__all__ = [
    "COMPONENTS",
    "Block",
    "CacheEntry",
    "Component",
    "Kept",
    "Op",
    "OpKind",
    "Size",
    "Weight",
    "linear",
    "pointwise",
]

Component: TypeAlias = Literal[
    "embedding",
    "attention",
    "router",
    "routed_experts",
    "shared_experts",
    "dense_ffn",
    "norms",
    "head",
]
COMPONENTS: tuple[Component, ...] = (
    "embedding",
    "attention",
    "router",
    "routed_experts",
    "shared_experts",
    "dense_ffn",
    "norms",
    "head",
)

OpKind: TypeAlias = Literal[
    "linear",  # dense matmul with a weight
    "grouped_linear",  # one matmul per expert over the rows routed to it
    "attention",  # scores and values, no weight
    "scan",  # recurrent or chunked linear attention, state space, convolution
    "pointwise",  # activation, residual, norm, scaling
    "gather",  # permute, combine, embedding look-up
    "select",  # scores, top-k, sort, histogram
    "exchange",  # all-to-all between ranks
]

Shard: TypeAlias = Literal["column", "row", "heads", "experts", "vocab", "tokens", "none"]
"""What divides a row or weight among ranks: a tensor-parallel column or row split, attention heads,
expert parallelism, the vocabulary, sequence-parallel tokens, or nothing (replicated)."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of the real checkpoint.

    name: as in the checkpoint, relative to its layer; `{e}` stands for the expert's index, `{e+}`
    for that of experts which are numbered from `first` (a formula) on, behind others.
    dims: one formula per dimension. copies: equal tensors in a layer (experts); active: how many
    of the copies one token touches. matmul: whether it is the weight of a linear layer (what
    quantisation converts). buffer: kept in the checkpoint but not trained by gradient.
    tied: name of the tensor elsewhere in the model that this one is (then it is not counted).
    stacked: the copies are one tensor [copies, *dims] (or flattened) in the checkpoint.
    transposed: dims are (in, out) instead of (out, in).
    """

    name: str
    dims: tuple[str, ...]
    component: Component
    copies: str = "1"
    active: str = "1"
    first: str = "0"
    matmul: bool = True
    buffer: bool = False
    tied: str | None = None
    stacked: bool = False
    transposed: bool = False
    shard: Shard = "none"

    @property
    def size(self) -> str:
        """Formula of the elements of one copy."""
        return _product(self.dims)

    @property
    def elements(self) -> str:
        """Formula of the elements of all copies."""
        return _product((self.copies, *self.dims))

    @property
    def active_elements(self) -> str:
        """Formula of the elements that one token touches."""
        return _product((self.active, *self.dims))


@dataclass(frozen=True, slots=True)
class Kept:
    """A tensor kept from the forward for the backward pass.

    elements: formula. bits: per element. drop: the group under which selective recomputation may
    leave it out ("norm", "activation", "up_projection", "attention", "router", "dispatch"), or
    None where only full recomputation drops it.
    """

    name: str
    elements: str
    bits: int = 16
    drop: str | None = None


@dataclass(frozen=True, slots=True)
class Op:
    """One operation of a block's forward pass.

    flops: forward FLOPs (2 per multiply-add), formula. gemm: (m, k, n) formulas of a matmul, for
    grouped ones m counts the rows of all groups and `groups` the groups. uses: copies of each
    weight that the pass reads, formula (expected distinct experts for a grouped matmul).
    read, write: activation elements, formulas. cached: elements of KV cache or state that are
    read.
    """

    name: str
    kind: OpKind
    component: Component
    flops: str = "0"
    gemm: tuple[str, str, str] | None = None
    groups: str = "1"
    weights: tuple[Weight, ...] = ()
    uses: str = "1"
    read: str = "0"
    write: str = "0"
    cached: str = "0"
    kept: tuple[Kept, ...] = ()
    shard: Shard = "none"


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """What a layer keeps per sequence between tokens.

    per_token: elements a token adds (formula). window: keep at most so many tokens (formula), or
    None. fixed: elements held whatever the length (recurrent or convolution state). bits: element
    size where it is fixed by the model; None takes the cache format that the user chose.
    """

    name: str
    per_token: str = "0"
    window: str | None = None
    fixed: str = "0"
    bits: int | None = None


@cache
def _product(terms: tuple[str, ...]) -> str:
    kept = [t if t.isalnum() else f"({t})" for t in terms if t != "1"]
    return "*".join(kept) or "1"


def linear(
    name: str,
    weight: Weight,
    *,
    bias: Weight | None = None,
    rows: str = "T",
    kept: tuple[Kept, ...] = (),
) -> Op:
    """A dense matmul [rows, k] x [k, n]; `weight.dims` is (n, k), or (k, n) where transposed."""
    n, k = weight.dims[::-1] if weight.transposed else weight.dims
    return Op(
        name=name,
        kind="linear",
        component=weight.component,
        flops=f"2*{_product((rows, k, n))}",
        gemm=(rows, k, n),
        weights=(weight,) if bias is None else (weight, bias),
        read=_product((rows, k)),
        write=_product((rows, n)),
        kept=kept,
        shard=weight.shard,
    )


def pointwise(
    name: str,
    component: Component,
    read: str,
    write: str,
    *,
    kept: tuple[Kept, ...] = (),
    weights: tuple[Weight, ...] = (),
    shard: Shard = "tokens",
) -> Op:
    """An element-wise or per-row operation: bytes, and no FLOPs by the field's convention."""
    return Op(
        name=name,
        kind="pointwise",
        component=component,
        read=read,
        write=write,
        kept=kept,
        weights=weights,
        shard=shard,
    )


class Size(NamedTuple):
    """A weight's numbers in one layer: elements of all copies, elements that a token touches,
    rows (outputs) and columns (inputs) of a copy, copies."""

    elements: Number
    active: Number
    rows: Number
    columns: Number
    copies: Number


def _size(weight: Weight, values: Mapping[str, Number]) -> Size:
    dims = [evaluate(d, values) for d in weight.dims]
    rows, columns = (1, dims[0]) if len(dims) == 1 else (dims[0], dims[-1])
    if weight.transposed:
        rows, columns = columns, rows
    return Size(
        evaluate(weight.elements, values),
        evaluate(weight.active_elements, values),
        rows,
        columns,
        evaluate(weight.copies, values),
    )


class Block:
    """Base of every block. A subclass is a frozen dataclass whose numeric fields are symbols.

    Numeric fields (Quantity, number or array) are named by the field's usual symbol, so they can
    stand in formulas; other fields (flags, names) choose between kinds.
    """

    @cached_property
    def symbols(self) -> Mapping[str, Quantity]:
        """Symbol to quantity, for every numeric field."""
        out: dict[str, Quantity] = {}
        for name in (f.name for f in fields(self)):  # type: ignore[arg-type]
            value = getattr(self, name)
            if isinstance(value, Quantity):
                out[name] = value
            elif (isinstance(value, (int, float, list)) or is_array(value)) and not isinstance(
                value, bool
            ):
                out[name] = Quantity.given(value, symbol=name)
        return out

    @cached_property
    def values(self) -> Mapping[str, Number]:
        """Symbol to plain number."""
        return {name: plain(q) for name, q in self.symbols.items()}

    def environment(self, work: Workload) -> dict[str, Number]:
        """All the numbers that this block's row formulas may use."""
        values = {**self.values, **work.values}
        for name, formula in self.locals(work).items():
            values[name] = evaluate(formula, values)
        return values

    @cached_property
    def tensors(self) -> tuple[Weight, ...]:
        """`weights()`, made once."""
        return self.weights()

    @cached_property
    def sizes(self) -> Mapping[str, Size]:
        """Weight name to its numbers in one layer."""
        return {w.name: _size(w, self.values) for w in self.tensors}

    @cached_property
    def _rows(self) -> dict[tuple[str, str], tuple[tuple[Op, ...], str]]:
        return {}

    def operations(self, work: Workload) -> tuple[tuple[Op, ...], str]:
        """`rows(work)` and one formula of all their numbers: (FLOPs, read, write, cached, uses).

        Made once for each phase and mask, which is all that rows may depend on.
        """
        key = (work.phase, work.mask)
        if key not in self._rows:
            ops = self.rows(work)
            numbers = (f"({o.flops},{o.read},{o.write},{o.cached},{o.uses})" for o in ops)
            self._rows[key] = ops, f"({','.join(numbers)},)" if ops else "()"
        return self._rows[key]

    @property
    def label(self) -> str:
        """What the field calls this kind of mixer or feed-forward; "" for norms and the like."""
        return ""

    def locals(self, work: Workload) -> Mapping[str, str]:
        """Further symbols of this block under a workload, each with its formula."""
        return {}

    def weights(self) -> tuple[Weight, ...]:
        """The block's tensors, each once."""
        raise NotImplementedError

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """The block's operations in order."""
        raise NotImplementedError

    def cache(self) -> tuple[CacheEntry, ...]:
        """What the block keeps per sequence between tokens."""
        return ()
