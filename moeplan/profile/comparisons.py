"""Experts of other libraries, to be measured beside the layer's own: transformers, Liger-Kernel.

Each runs everything from permute to combine as one call, so that it is one phase, `experts`. They
take the layer's weights as they are, without a copy, and refuse experts that their own code stores
or computes in another way. Their libraries are imported when a layer is built on them. Shape
suffixes as in `layer`.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from moeplan.profile.predict import TOGETHER

if TYPE_CHECKING:
    from moeplan.profile.backends import Experts, PhaseScope
    from moeplan.profile.routing import Rows, Selected

__all__ = ["LigerBackend", "TransformersBackend"]

Implementation: TypeAlias = Literal["grouped_mm", "eager"]


def _plain(experts: Experts, whose: str) -> str | None:
    """Why experts are not the plain kind that other libraries run as it is stored, or None."""
    how = experts.activation
    if experts.up_bias_EH is not None:
        return f"{whose} are built without biases here"
    if how.limit is not None or how.slope != 1 or how.shift:
        return f"{whose} are built without clamps here, and {how.name} has them"
    if experts.weigh == "input":
        return f"{whose} weigh outputs, and this model weighs inputs"
    return None


class TransformersBackend:
    """The expert classes of transformers: its loop over experts, or its grouped matmuls.

    MixtralExperts, whose layout most models share, for gated experts; NemotronHExperts for the
    others. Both dispatch to the implementation of that name (transformers' `integrations/moe.py`).
    """

    together = True

    def __init__(self, name: str, implementation: Implementation) -> None:
        self.name, self.implementation = name, implementation
        self.about = f"transformers' experts ({implementation}), for comparison"

    def missing(self) -> str | None:
        """It needs transformers."""
        if find_spec("transformers") is None:
            return "transformers is not installed: pip install 'moeplan[check]'"
        return None

    def unfit(self, experts: Experts) -> str | None:
        """Runs plain experts; its grouped matmuls need strides of 16 bytes."""
        if experts.up_EHL.is_meta:
            return "its loop and sort read the choices back"
        unit = 16 // experts.up_EHL.dtype.itemsize
        widths = (experts.up_EHL.shape[2], experts.down_ELF.shape[2])
        if self.implementation == "grouped_mm" and any(width % unit for width in widths):
            return f"its matmuls need widths that are multiples of {unit}"
        return _plain(experts, "transformers' experts")

    def experts(
        self, x_TL: Tensor, selected: Selected, rows: Rows, experts: Experts, phase: PhaseScope
    ) -> Tensor:
        """One call of the experts' module, on this layer's weights."""
        count, width, narrow = experts.down_ELF.shape
        module = _module(
            self.implementation, experts.gated, experts.activation.name, count, width, narrow
        )
        weights = {
            "gate_up_proj" if experts.gated else "up_proj": experts.up_EHL,
            "down_proj": experts.down_ELF,
        }
        with phase(TOGETHER):
            out = functional_call(module, weights, (x_TL, *selected))
            return cast(Tensor, out).to(x_TL.dtype)


@cache
def _module(
    implementation: Implementation,
    gated: bool,
    activation: str,
    count: int,
    width: int,
    narrow: int,
) -> nn.Module:
    """The experts' module without weights of its own (on the meta device)."""
    from transformers import MixtralConfig, NemotronHConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

    config: Any
    with torch.device("meta"):
        if gated:
            config = MixtralConfig(
                hidden_size=width, intermediate_size=narrow, num_local_experts=count,
                hidden_act=activation,
            )  # fmt: skip
        else:
            config = NemotronHConfig(
                hidden_size=width, moe_intermediate_size=narrow, n_routed_experts=count,
                mlp_hidden_act=activation, moe_latent_size=None,
            )  # fmt: skip
        config._experts_implementation = implementation
        made: nn.Module = (MixtralExperts if gated else NemotronHExperts)(config)
    return made


class LigerBackend:
    """Liger-Kernel's fused experts: gather and SwiGLU inside its Triton matmuls.

    Its kernels tune themselves on first use, which takes the warm-up longer. Not run on a GPU yet.
    """

    name = "liger"
    about = "Liger-Kernel's fused experts, for comparison; needs a GPU"
    together = True

    def missing(self) -> str | None:
        """It needs Liger-Kernel."""
        if find_spec("liger_kernel") is None:
            return "Liger-Kernel is not installed: pip install liger-kernel"
        return None

    def unfit(self, experts: Experts) -> str | None:
        """Runs plain gated SiLU experts on CUDA."""
        if not experts.up_EHL.is_cuda:
            return "Liger-Kernel's kernels run on CUDA alone"
        if not experts.gated or experts.activation.curve != "silu":
            return f"Liger-Kernel's experts are SwiGLU, and these are {experts.activation.name}"
        return _plain(experts, "Liger-Kernel's experts")

    def experts(
        self, x_TL: Tensor, selected: Selected, rows: Rows, experts: Experts, phase: PhaseScope
    ) -> Tensor:
        """One call of its autograd function."""
        from liger_kernel.ops import LigerFusedMoEFunction

        ids_TK, weights_TK = selected.ids_TK.int(), selected.weights_TK
        with phase(TOGETHER):
            out = LigerFusedMoEFunction.apply(
                x_TL, experts.up_EHL, experts.down_ELF, ids_TK, weights_TK
            )
            return cast(Tensor, out)
