"""What a denoising step is told of the step before it, as rows (DiffusionGemma).

The last step's logits become probabilities, their mean of the embedding table a soft token; a
normalised gated FFN of it is added to the canvas' own embeddings. It runs where a canvas is
denoised, which is what decoding means here, and not where a prompt is read. Symbols: F width of the
FFN, V tokens of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from moeplan.model.dense_ffn import DenseFFN
from moeplan.model.ops import Kept, Op, Weight, linear, pointwise
from moeplan.model.workload import Workload
from moeplan.quantity import Number

__all__ = ["SelfConditioning"]


@dataclass(frozen=True, eq=False, kw_only=True)
class SelfConditioning(DenseFFN):
    """A gated FFN over soft tokens; `table` is the embedding whose rows they are means of."""

    V: Number
    table: str = ""

    def _norm(self) -> Weight:
        return Weight(f"{self.prefix}pre_norm.weight", ("D",), "norms", matmul=False)

    def weights(self) -> tuple[Weight, ...]:
        """The FFN's matrices and the scale of the norm before it."""
        return (self._norm(), *super().weights())

    def rows(self, work: Workload) -> tuple[Op, ...]:
        """Soft tokens, norm, FFN, and the normalised sum with the embeddings."""
        if work.phase == "prefill":
            return ()
        table = Weight(self.table, ("V", "D"), "dense_ffn", matmul=False, transposed=True)
        wide = "T*D"
        return (
            linear("soft_tokens", table, kept=(Kept("probabilities", "T*V"),)),
            pointwise(
                "soft_norm",
                "norms",
                wide,
                wide,
                weights=(self._norm(),),
                kept=(Kept("soft_tokens", wide),),
            ),
            *super().rows(work),
            pointwise("soft_add", "norms", f"2*{wide}", wide, kept=(Kept("canvas", wide),)),
        )
