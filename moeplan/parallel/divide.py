"""One piece of a model on one GPU: its rows with the symbols that a layout divides.

A block under tensor parallelism is the same block with fewer heads, a narrower FFN, a part of the
vocabulary: the row formulas are evaluated over divided symbols, so that weights, FLOPs, bytes and
kept tensors all follow, and what no symbol divides (norms, routers, down-projections into a
latent) stays whole. Three scopes tell the rows apart:

  tensor   rows with a symbol that tp divides (H/tp, F/tp, V/tp, ...), over the tokens of b/cp
  tokens   all other rows; with sequence parallelism over 1/tp of those tokens
  experts  rows of routed experts: E/ep experts of width F/etp, over the (token, expert) pairs that
           a GPU gets when experts are equally loaded (k of each of its tokens, etp times)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from moeplan.calc import Scope, calc
from moeplan.model.ffn import MoE
from moeplan.model.ops import Block, Kept, Op, Weight
from moeplan.model.spec import Group
from moeplan.model.workload import Workload
from moeplan.parallel.account import Account
from moeplan.parallel.stages import Piece
from moeplan.quantity import compile_formula

__all__ = ["DIVIDED", "Degrees", "Divided", "OwnRow", "divides", "widths"]

DIVIDED = ("H", "G", "Hk", "Hv", "Hm", "Di", "Go", "F", "Fs", "V", "O")
"""Symbols that tensor parallelism divides, as the blocks name them: heads and groups of heads,
inner widths, FFN widths, the vocabulary, the output of MTP's projection. In an MoE block only the
shared experts' width is."""

_FEW = ("G",)  # where tp is larger, several ranks hold the same ones
_WHAT = {"H": "attention heads", "G": "key-value heads", "Hk": "key heads", "Hv": "value heads",
         "Hm": "state-space heads", "Di": "inner channels", "Go": "head groups", "F": "FFN width",
         "Fs": "width of the shared experts"}  # fmt: skip


def divides(block: Block) -> tuple[str, ...]:
    """Symbols of a block that tensor parallelism divides."""
    if isinstance(block, MoE):
        return ("Fs",) if block.Fs is not None else ()
    return tuple(name for name in DIVIDED if name in block.symbols)


def widths(pieces: tuple[Piece, ...]) -> dict[str, list[int]]:
    """What tp must divide, with the model's counts: for the rules of a layout."""
    found: dict[str, list[int]] = {}
    for piece in pieces:
        for group in piece.groups:
            for block in group.blocks:
                for name in divides(block):
                    counts = found.setdefault(_WHAT.get(name, ""), [])
                    if name in _WHAT and block.values[name] not in counts:
                        counts.append(block.values[name])
    found.pop("", None)
    return found


@dataclass(frozen=True, eq=False)
class Degrees:
    """The degrees that divide rows, with the workload; numbers, quantities or arrays.

    B: sequences of a microbatch. S: new tokens of each. C: its context. sp: sequence parallelism
    (kind). imbalance: (token, expert) pairs of the most loaded GPU over the mean, see
    `Divided.load`. explained: keep quantities. share: B/(cp·tp), where it is known to vary along
    fewer axes than these.
    """

    tp: Any
    cp: Any
    ep: Any
    etp: Any
    B: Any
    S: Any
    C: Any
    work: Workload
    sp: bool = True
    imbalance: Any = 1.0
    explained: bool = False
    share: Any = None


class OwnRow(NamedTuple):
    """An operation of a piece on one GPU, forward: its numbers for one layer and microbatch.

    scope: the numbers of its symbols. weight: elements of its weights that the GPU reads, with
    each weight's share; all: elements of its weights that the GPU holds.
    """

    op: Op
    block: Block
    group: Group
    scope: Scope
    kind: str
    flops: Any
    moved: Any
    cached: Any

    def weight_elements(self, weight: Weight) -> tuple[Any, Any]:
        """Elements of a weight that the pass reads, and that the GPU holds."""
        held = self.scope(weight.elements, "elements")
        read = calc(
            "held*uses/copies",
            "elements",
            held=held,
            uses=self.scope(self.op.uses, "copies"),
            copies=self.scope(weight.copies, "copies"),
        )
        return read, held


class Divided:
    """The pieces of a model under degrees of parallelism."""

    def __init__(self, degrees: Degrees, account: Account) -> None:
        self.degrees = degrees
        self.account = account
        self._scopes: dict[int, dict[str, Scope]] = {}

    # ------------------------------------------------------------------------------- symbols
    @cached_property
    def share(self) -> Any:
        """Sequences of a microbatch on a GPU, where tp and cp divide them."""
        d = self.degrees
        if d.share is not None:
            return d.share
        return calc("per(B, cp*tp)", "sequences", B=d.B, cp=d.cp, tp=d.tp)

    @cached_property
    def routed_tokens(self) -> Any:
        """Tokens whose (token, expert) pairs a GPU sends: those that it alone has."""
        return calc("share*S", "tokens", share=self.share, S=self.degrees.S)

    def scopes(self, block: Block) -> dict[str, Scope]:
        """The block's symbols in each of the three scopes."""
        if id(block) not in self._scopes:
            self._scopes[id(block)] = self._make(block)
        return self._scopes[id(block)]

    def _make(self, block: Block) -> dict[str, Scope]:
        d = self.degrees
        own: dict[str, Any] = dict(block.symbols if d.explained else block.values)
        spread = {"X": d.C, **own, "S": d.S, "C": d.C}
        tensor = {**spread, "B": calc("per(B, cp)", "sequences", B=d.B, cp=d.cp)}
        tokens = dict(tensor)
        if d.sp:
            tokens["B"] = self.share
        for name in divides(block):
            tensor[name] = self._divide(name, own[name])
        scopes = {"tensor": tensor, "tokens": tokens}
        if isinstance(block, MoE):
            scopes["experts"] = self._experts(block, {**spread, "B": tensor["B"]})
            if self.account.moe_group == "moe" and "Fs" in tensor:
                tensor["Fs"] = calc("per(Fs, etp)", "", Fs=own["Fs"], etp=d.etp)
        return {name: self._closed(block, symbols) for name, symbols in scopes.items()}

    def _divide(self, name: str, whole: Any) -> Any:
        tp = self.degrees.tp
        if name == "V":
            return calc("ceil_div(V, tp)", "", V=whole, tp=tp)
        if name in _FEW:
            return calc(f"max(1, per({name}, tp))", "", **{name: whole, "tp": tp})
        return calc(f"per({name}, tp)", "", **{name: whole, "tp": tp})

    def load(self, moe: MoE) -> Any:
        """(token, expert) pairs of the most loaded GPU over the mean: the given imbalance, as far
        as the tokens of all GPUs of a group can cause it. A GPU alone has its own tokens only.
        """
        d = self.degrees
        symbols = moe.symbols if d.explained else moe.values
        return calc("min(imbalance, ep, E/each)", "", imbalance=d.imbalance, ep=d.ep,
                    E=symbols["E"], each=symbols[moe.each])  # fmt: skip

    def _experts(self, block: MoE, symbols: dict[str, Any]) -> dict[str, Any]:
        d = self.degrees
        load = self.load(block)
        rows = calc("share*etp*load", "sequences", share=self.share, etp=d.etp, load=load)
        each = {"each": symbols[block.each], "E": symbols["E"], "ep": d.ep, "S": d.S, "B": rows}
        # the tokens of all GPUs of the group may meet a GPU's experts
        reached = calc("per(E, ep)*(1 - (1 - each/E)**(B*S*ep))", "experts", **each)
        local = calc("per(E, ep)", "experts", E=symbols["E"], ep=d.ep)
        width = calc("per(F, etp)", "", F=symbols["F"], etp=d.etp)
        return {**symbols, "E": local, "F": width, "B": rows, "A": reached}

    def _closed(self, block: Block, symbols: dict[str, Any]) -> Scope:
        """With T and the block's own local symbols."""
        symbols["T"] = calc("B*S", "tokens", B=symbols["B"], S=symbols["S"])
        for name, formula in block.locals(self.degrees.work).items():
            if not (name == "A" and "A" in symbols):
                symbols[name] = Scope(symbols)(formula)
        return Scope(symbols)

    # ---------------------------------------------------------------------------------- rows
    def kind(self, block: Block, shard: str, *formulas: str) -> str:
        """Which scope a row's formulas belong to."""
        if shard == "experts":
            return "experts"
        names = {name for formula in formulas for name in compile_formula(formula)[1]}
        local = block.locals(self.degrees.work)
        names |= {n for name in names & set(local) for n in compile_formula(local[name])[1]}
        return "tensor" if names & set(divides(block)) else "tokens"

    def rows(self, piece: Piece) -> Iterator[OwnRow]:
        """Every operation of a piece; messages are counted by `traffic`."""
        for group in piece.groups:
            for block in group.blocks:
                scopes = self.scopes(block)
                for op in block.operations(self.degrees.work)[0]:
                    if op.kind == "exchange":
                        continue
                    kind = self.kind(block, op.shard, op.flops, op.read, op.write)
                    scope = scopes[kind]
                    moved = scope(f"({op.read}) + ({op.write})", "elements")
                    flops = scope(op.flops, "FLOP")
                    cached = scope(op.cached, "elements")
                    yield OwnRow(op, block, group, scope, kind, flops, moved, cached)

    def kept(self, piece: Piece, eight_bits: bool = False) -> Iterator[tuple[Kept, Any]]:
        """Tensors kept for the backward pass, with their bytes.

        eight_bits: inputs of matmuls with weights and of activations are kept in 8 bits, with an
        fp32 scale for each 128 values.
        """
        for group in piece.groups:
            for block in group.blocks:
                scopes = self.scopes(block)
                for op in block.operations(self.degrees.work)[0]:
                    for kept in op.kept:
                        elements = kept.elements
                        if kept.name == "row_map" and self.account.row_map == "mask":
                            elements = elements.replace("T*k", "T*E")
                        kind = self.kind(block, op.shard, elements)
                        width = f"*{kept.bits // 8}"
                        if eight_bits and kept.bits == 16 and _quantised(op):
                            width = "*33/32"
                        yield kept, scopes[kind](f"({elements}){width}", "B")

    def parameters(self, piece: Piece) -> Iterator[tuple[Weight, str, Any]]:
        """Trained tensors with the group that shares them ("dense", "experts"), and elements.

        A copy of the embedding is listed although it is tied; other tied tensors are not.
        """
        for group in piece.groups:
            for block in group.blocks:
                scopes = self.scopes(block)
                for weight in block.tensors:
                    if weight.buffer or weight.tied is not None:
                        continue
                    if self.account.uncounted and weight.name.endswith(self.account.uncounted):
                        continue
                    experts = weight.shard == "experts"
                    scope = scopes["experts" if experts else "tensor"]
                    elements = scope(weight.elements, "parameters")
                    extra = self.account.replicated(weight.name)
                    if extra is not None:
                        elements = self._whole(block, scope, weight, extra)
                    if isinstance(block, MoE) and self.account.moe_group == "moe":
                        experts = True
                    yield weight, "experts" if experts else "dense", elements

    def _whole(self, block: Block, scope: Scope, weight: Weight, extra: str) -> Any:
        """Elements of a weight of which the part `extra` is held whole by every rank."""
        own = Scope(dict(block.symbols if self.degrees.explained else block.values))
        return calc(
            "divided - divided_part + part",
            "parameters",
            divided=scope(weight.elements, "parameters"),
            divided_part=scope(extra, "parameters"),
            part=own(extra, "parameters"),
        )

    # ------------------------------------------------------------------------------ messages
    def tensor_messages(self, piece: Piece) -> tuple[list[Any], list[Any]]:
        """Elements that tensor-parallel ranks gather before column-divided rows of a piece, and
        that they sum after row-divided ones; each of them over the tokens of all tp ranks.
        """
        gathered: list[Any] = []
        summed: list[Any] = []
        for group in piece.groups:
            for block in group.blocks:
                scope = self.scopes(block)["tensor"]
                columns: dict[str, None] = {}
                for op in block.operations(self.degrees.work)[0]:
                    weight = next((w for w in op.weights if w.matmul or w.shard == "vocab"), None)
                    if op.kind == "gather" and op.shard == "vocab":
                        summed.append(scope(op.write, "elements"))
                    elif weight is None or not op.gemm or op.shard == "experts":
                        continue
                    elif self.kind(block, "", op.gemm[1]) == "tensor" and op.groups == "1":
                        summed.append(scope(op.write, "elements"))
                    elif self.kind(block, "", op.gemm[2]) == "tensor":
                        columns[_tokens(f"({op.gemm[0]})*({op.gemm[1]})")] = None
                gathered += [scope(formula, "elements") for formula in columns]
        return gathered, summed

    def key_values(self, piece: Piece) -> list[Any]:
        """Elements of keys and values that context-parallel ranks pass on, of each attention."""
        out = []
        for group in piece.groups:
            for block in group.blocks:
                for op in block.operations(self.degrees.work)[0]:
                    if op.kind == "attention" and op.cached != "0":
                        kind = self.kind(block, op.shard, op.flops, op.read, op.write)
                        out.append(self.scopes(block)[kind](op.cached, "elements"))
        return out

    def moes(self, piece: Piece) -> list[MoE]:
        """The MoE blocks of a piece."""
        return [b for g in piece.groups for b in g.blocks if isinstance(b, MoE)]


def _quantised(op: Op) -> bool:
    """Whether an op's kept input may be in 8 bits: matmuls with weights, activations."""
    matmul = op.kind in ("linear", "grouped_linear") and op.component not in ("router", "head")
    return matmul or op.name.endswith("activation")


def _tokens(formula: str) -> str:
    """Rows N and B*C of keys are the tokens T themselves in training and prefill."""
    return re.sub(r"^\((?:N|B\*C)\)", "(T)", formula)
