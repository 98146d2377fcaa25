"""What a pass over the model processes, in the symbols that the rows use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from moeplan.quantity import Number, Quantity, plain

__all__ = ["Mask", "Phase", "Workload"]

Phase: TypeAlias = Literal["train", "prefill", "decode"]
Mask: TypeAlias = Literal["causal", "full"]


@dataclass(frozen=True, eq=False)
class Workload:
    """One forward pass (a training step adds its backward): B sequences of S new tokens.

    B: sequences. S: new tokens per sequence. C: context, the tokens a sequence holds after the
    pass (S <= C; S = C without a cached prefix, S = 1 in plain decoding). X: source tokens per
    sequence of an encoder-decoder model. `mask` says whether attention scores above the diagonal
    are counted: "causal" counts the half that a causal kernel computes, "full" ignores masks and
    windows and counts the whole S x C rectangle.
    """

    phase: Phase
    B: Number = 1
    S: Number = 1
    C: Number = 1
    X: Number | None = None
    mask: Mask = "causal"

    @cached_property
    def symbols(self) -> Mapping[str, Quantity]:
        """Symbol to quantity: B, S, C, X."""
        source = self.C if self.X is None else self.X
        given = {"B": self.B, "S": self.S, "C": self.C, "X": source}
        return {
            name: value if isinstance(value, Quantity) else Quantity.given(value, symbol=name)
            for name, value in given.items()
        }

    @cached_property
    def values(self) -> Mapping[str, Number]:
        """Symbol to plain number; T = B·S is the number of tokens in the pass."""
        values = {name: plain(value) for name, value in self.symbols.items()}
        values["T"] = values["B"] * values["S"]
        return values
