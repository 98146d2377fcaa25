"""Blocks that every transformer has: embedding, norm, residual addition, output head."""

from __future__ import annotations

from dataclasses import dataclass

from moeplan.model.ops import Block, Component, Kept, Op, Weight, linear, pointwise
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = [
    "Affine",
    "Embedding",
    "GatedNorm",
    "GatedResidual",
    "Head",
    "Norm",
    "Projection",
    "Residual",
    "Scale",
    "Table",
]


@dataclass(frozen=True, eq=False)
class Embedding(Block):
    """A look-up table of V rows of D (tokens, or learned positions).

    `tied` names the table elsewhere in the model that this one is (an MTP module's), `aliases`
    are further checkpoint names of this one.
    """

    V: Number
    D: Number
    name: str = "model.embed_tokens.weight"
    tied: str | None = None
    aliases: tuple[str, ...] = ()

    def weights(self) -> tuple[Weight, ...]:
        """The table, under each of its names."""
        named = [(self.name, self.tied), *((alias, self.name) for alias in self.aliases)]
        return tuple(
            Weight(name, ("V", "D"), "embedding", matmul=False, tied=tied, shard="vocab")
            for name, tied in named
        )

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """One row read and written per token; no FLOPs."""
        return (Op("embed", "gather", "embedding", read="T*D", write="T*D", shard="vocab"),)


@dataclass(frozen=True, eq=False)
class Norm(Block):
    """RMSNorm (scale) or LayerNorm (scale, and shift where `bias`), or one without weights.

    suffix: what the checkpoint calls the scale.
    """

    D: Number
    name: str = "input_layernorm"
    bias: bool = False
    scale: bool = True
    suffix: str = ".weight"

    def weights(self) -> tuple[Weight, ...]:
        """Scale and shift vectors."""
        suffixes = ([self.suffix] if self.scale else []) + ([".bias"] if self.bias else [])
        return tuple(Weight(self.name + s, ("D",), "norms", matmul=False) for s in suffixes)

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """Reads and writes the hidden state; its input is kept for the backward pass."""
        op = self.name.rsplit(".", 1)[-1]
        kept = (Kept(f"{op}_input", "T*D"),)
        return (pointwise(op, "norms", "T*D", "T*D", weights=self.weights(), kept=kept),)


@dataclass(frozen=True, eq=False)
class Residual(Block):
    """The addition of a branch to the residual stream."""

    D: Number
    component: Component = "attention"

    def weights(self) -> tuple[Weight, ...]:
        """None."""
        return ()

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """Two reads and one write of the hidden state."""
        return (pointwise("residual", self.component, "2*T*D", "T*D"),)


@dataclass(frozen=True, eq=False)
class Projection(Block):
    """A plain linear map from I to O features per token (the MTP module's input projection).

    times: applied to so many vectors of each token (residual streams).
    """

    I: Number  # noqa: E741 - the field's usual letter for an input width
    O: Number  # noqa: E741
    name: str = "eh_proj"
    component: Component = "attention"
    bias: bool = False
    times: Number = 1

    def weights(self) -> tuple[Weight, ...]:
        """The matrix [O, I] and its bias."""
        weight = Weight(f"{self.name}.weight", ("O", "I"), self.component, shard="column")
        bias = Weight(f"{self.name}.bias", ("O",), self.component, matmul=False)
        return (weight, bias) if self.bias else (weight,)

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """One matmul."""
        weight, *bias = self.weights()
        kept = (Kept(f"{self.name}_input", "T*times*I"),)
        offset = bias[0] if bias else None
        return (linear(self.name, weight, bias=offset, rows="T*times", kept=kept),)


@dataclass(frozen=True, eq=False)
class Scale(Block):
    """A factor on the residual stream that is kept in the checkpoint and not trained (Gemma 4).

    twin: name of another, which takes its place in passes of another kind (DiffusionGemma).
    """

    D: Number
    name: str = "layer_scalar"
    twin: str = ""

    def weights(self) -> tuple[Weight, ...]:
        """One number, or two."""
        names = (self.name, self.twin) if self.twin else (self.name,)
        return tuple(Weight(n, ("1",), "norms", matmul=False, buffer=True) for n in names)

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """One read and one write of the hidden state."""
        return (pointwise("scale", "norms", "T*D", "T*D", weights=self.weights()),)


@dataclass(frozen=True, eq=False)
class GatedResidual(Block):
    """The addition of a branch to the residual stream with learned vectors on both.

    names: the vectors, each of D; a sum of a branch and the stream that they weigh element by
    element.
    """

    D: Number
    component: Component = "attention"
    names: tuple[str, ...] = ()

    def weights(self) -> tuple[Weight, ...]:
        """The vectors."""
        return tuple(Weight(name, ("D",), "norms", matmul=False) for name in self.names)

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """Two reads and one write of the hidden state; both inputs are kept for the vectors."""
        kept = (Kept("residual_inputs", "2*T*D"),)
        add = pointwise(
            "residual", self.component, "2*T*D", "T*D", weights=self.weights(), kept=kept
        )
        return (add,)


@dataclass(frozen=True, eq=False)
class Affine(Block):
    """A scale and a shift of the hidden state, both vectors of D (ZAYA1)."""

    D: Number
    names: tuple[str, str]

    def weights(self) -> tuple[Weight, ...]:
        """The two vectors."""
        return tuple(Weight(name, ("D",), "norms", matmul=False) for name in self.names)

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """One read and one write of the hidden state, which is kept for the vectors."""
        kept = (Kept("affine_input", "T*D"),)
        return (pointwise("affine", "norms", "T*D", "T*D", weights=self.weights(), kept=kept),)


@dataclass(frozen=True, eq=False)
class GatedNorm(Block):
    """An RMSNorm whose output is gated by two small projections of itself (A.X K2).

    r: rank between the projections. names: norm, down and up projection.
    """

    D: Number
    r: Number
    name: str = "input_layernorm"
    names: tuple[str, str, str] = ("norm", "W_down", "W_up")

    def _parts(self) -> tuple[Weight, Weight, Weight]:
        norm, down, up = (f"{self.name}.{name}.weight" for name in self.names)
        return (
            Weight(norm, ("D",), "norms", matmul=False),
            Weight(down, ("r", "D"), "norms"),
            Weight(up, ("D", "r"), "norms"),
        )

    def weights(self) -> tuple[Weight, ...]:
        """Scale, and the projections to r features and back."""
        return self._parts()

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """The norm, the two projections, the product with the gate."""
        norm, down, up = self._parts()
        op = self.name.rsplit(".", 1)[-1]
        normed = (Kept(f"{op}_normed", "T*D"),)
        gate = (Kept(f"{op}_gate", "T*D"),)
        kept = (Kept(f"{op}_input", "T*D"),)
        return (
            pointwise(op, "norms", "T*D", "T*D", weights=(norm,), kept=kept),
            linear(f"{op}_down", down, kept=normed),
            linear(f"{op}_up", up, kept=(Kept(f"{op}_rank", "T*r"),)),
            pointwise(f"{op}_gate", "norms", "2*T*D", "T*D", kept=gate),
        )


@dataclass(frozen=True, eq=False)
class Table(Block):
    """A vector of N numbers of the whole model that is kept in the checkpoint and not trained."""

    N: Number
    name: str

    def weights(self) -> tuple[Weight, ...]:
        """The vector."""
        return (Weight(self.name, ("N",), "norms", matmul=False, buffer=True),)

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """None: it is read where positions are rotated, once a pass."""
        return ()


@dataclass(frozen=True, eq=False)
class Head(Block):
    """The projection to V logits; `tied` names the embedding whose tensor it shares."""

    V: Number
    D: Number
    tied: str | None = None
    bias: bool = False
    name: str = "lm_head"

    def weights(self) -> tuple[Weight, ...]:
        """The matrix [V, D] (none of its own where tied) and its bias."""
        weight = Weight(f"{self.name}.weight", ("V", "D"), "head", tied=self.tied, shard="column")
        bias = Weight(f"{self.name}.bias", ("V",), "head", matmul=False, shard="column")
        return (weight, bias) if self.bias else (weight,)

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """Logits of every position of the pass; training keeps them in fp32 for the loss."""
        weight, *bias = self.weights()
        kept = (Kept("head_input", "T*D"), Kept("logits", "T*V", bits=32))
        return (linear("lm_head", weight, bias=bias[0] if bias else None, kept=kept),)
