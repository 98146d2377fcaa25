"""What the experts' activations compute, in plain torch and by name.

Shape suffixes: R rows, F an expert's width, H what the up-projection gives (2F gated: gate before
up; else F).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from moeplan.errors import UserError, near_miss

__all__ = ["ACTIVATIONS", "Activation", "Curve", "activation_named"]

Curve: TypeAlias = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """curve(gate)·(up + shift), or curve(x) where there is no gate.

    slope: s in silu's g·sigmoid(s·g). limit: gate is clamped from above, up from both sides.
    """

    name: str
    curve: Curve
    slope: float = 1.0
    limit: float | None = None
    shift: float = 0.0

    def value(self, h_RH: Tensor, gated: bool) -> Tensor:
        """The activation, [R, F], in h's dtype."""
        if not gated:
            return self._curve(h_RH)
        gate_RF, up_RF = self._clamped(h_RH)
        return self._curve(gate_RF).mul_(up_RF)

    def gradient(self, d_RF: Tensor, h_RH: Tensor, gated: bool) -> Tensor:
        """The gradient of h_RH, given the activation's."""
        if not gated:
            return self._slope(d_RF, h_RH)
        gate_RF, up_RF = self._clamped(h_RH)
        d_gate_RF = self._slope(d_RF * up_RF, gate_RF)
        d_up_RF = self._curve(gate_RF).mul_(d_RF)
        if self.limit is not None:
            raw_gate_RF, raw_up_RF = h_RH.chunk(2, -1)
            d_gate_RF.masked_fill_(raw_gate_RF > self.limit, 0)
            d_up_RF.masked_fill_(raw_up_RF.abs() > self.limit, 0)
        return torch.cat((d_gate_RF, d_up_RF), -1)

    def _clamped(self, h_RH: Tensor) -> tuple[Tensor, Tensor]:
        gate_RF, up_RF = h_RH.chunk(2, -1)
        if self.limit is not None:
            gate_RF = gate_RF.clamp(max=self.limit)
            up_RF = up_RF.clamp(-self.limit, self.limit)
        return gate_RF, up_RF + self.shift if self.shift else up_RF

    def _curve(self, x: Tensor) -> Tensor:
        if self.curve == "silu":
            return F.silu(x) if self.slope == 1 else (x * self.slope).sigmoid_().mul_(x)
        if self.curve == "relu":
            return F.relu(x)
        if self.curve == "relu2":
            return F.relu(x).square_()
        return F.gelu(x, approximate=self._approximate)

    def _slope(self, d: Tensor, x: Tensor) -> Tensor:
        """The gradient of the curve at x, times d."""
        if self.curve == "silu":
            if self.slope == 1:
                return cast(Tensor, aten.silu_backward(d, x))
            s = (x * self.slope).sigmoid_()
            return (1 - s).mul_(x).mul_(self.slope).add_(1).mul_(s).mul_(d)
        if self.curve == "relu":
            return cast(Tensor, aten.threshold_backward(d, x, 0))
        if self.curve == "relu2":
            return F.relu(x).mul_(d).mul_(2)
        return cast(Tensor, aten.gelu_backward(d, x, approximate=self._approximate))

    @property
    def _approximate(self) -> str:
        return "tanh" if self.curve == "gelu_tanh" else "none"


ACTIVATIONS: dict[str, Activation] = {
    "silu": Activation("silu", "silu"),
    "swish": Activation("swish", "silu"),
    "gelu": Activation("gelu", "gelu"),
    "gelu_new": Activation("gelu_new", "gelu_tanh"),
    "gelu_pytorch_tanh": Activation("gelu_pytorch_tanh", "gelu_tanh"),
    "relu": Activation("relu", "relu"),
    "relu2": Activation("relu2", "relu2"),
    # gpt-oss: clamped, with a sigmoid of slope 1.702 and one added to up (arXiv 2508.10925)
    "clamped_swiglu": Activation("clamped_swiglu", "silu", slope=1.702, limit=7.0, shift=1.0),
    "swigluoai": Activation("swigluoai", "silu", slope=1.702, limit=7.0, shift=1.0),
    # DeepSeek-V4: the same clamp, further out, around the plain gate
    "clamped_silu": Activation("clamped_silu", "silu", limit=10.0),
}
"""By the names that config files use (`hidden_act`)."""


def activation_named(name: str) -> Activation:
    """The activation of that name. Raises UserError, with a near miss, for one not built here."""
    if name not in ACTIVATIONS:
        raise UserError(
            f"activation {name!r} is not built by the measured layer: allowed are "
            f"{', '.join(ACTIVATIONS)}{near_miss(name, ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]
