"""The real MoE layer, built from the block that the estimate is made of.

Tensors carry their shape as a suffix:

    T tokens                  D hidden size
    K experts a token (top-k) F width of a routed expert
    R = T·K rows              H what an expert's first matmul gives: 2F gated (gate, up), else F
    E experts                 S width of the shared experts together; G as H, for them
    L width in which experts work: D, or a latent's that every token is projected into

Each phase runs in a scope with the name of its row in `MoE.rows`. Weights are in one dtype
whatever the checkpoint's format is; the router, the scores and the sums of the combine are fp32.
The CUDA paths (Triton kernels, fp32 output of the bf16 router matmul) are written from their
documentation and compile for sm_90; they have not been run on a GPU yet.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeplan.errors import UserError
from moeplan.model.ffn import MoE, Routing
from moeplan.model.workload import Workload
from moeplan.profile import functions
from moeplan.profile.activations import activation_named
from moeplan.profile.backends import Experts, backend_named
from moeplan.profile.phases import PhaseHook, Phases
from moeplan.profile.routing import check_known, rows_per_expert, select, sort_rows

__all__ = ["Layer", "phase_names"]

_KNOWN_FIELDS = frozenset(
    "D E k F Fs Dl gated activation routing shared_gate router_bias expert_bias shared_bias "
    "latent_bias stacked transposed down_transposed names".split()
)


def phase_names(block: MoE) -> tuple[str, ...]:
    """The rows of a block that run on one device: all but the exchanges between ranks."""
    return tuple(op.name for op in block.rows(Workload("train")) if op.kind != "exchange")


class Layer(nn.Module):
    """An MoE layer with random weights of the real shapes, scaled by (inputs)^-1/2.

    block: whose layer it is; its sizes must be numbers. backend: who runs the routed experts (see
    `backends`). Raises UserError for what is not built here: an unknown activation or setting, or
    sizes that the backend cannot run.
    """

    def __init__(
        self,
        block: MoE,
        *,
        backend: str = "torch",
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_known(block)
        self.block = block
        self.backend = backend_named(backend)
        self.phase_names = phase_names(block)
        self.activation = activation_named(block.activation)
        sizes = block.values
        self.k, self.D = int(sizes["k"]), int(sizes["D"])
        self._make_weights(torch.device(device), dtype, seed)
        unfit = self.backend.unfit(self.experts)
        if unfit is not None:
            raise UserError(f"backend {backend!r} cannot run this layer: {unfit}")

    def _make_weights(self, device: torch.device, dtype: torch.dtype, seed: int) -> None:
        block, values = self.block, self.block.values
        D, E, F_ = (int(values[name]) for name in ("D", "E", "F"))
        H, L = 2 * F_ if block.gated else F_, int(values.get("Dl", D))
        generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)

        def weight(*shape: int, fan_in: int = 0, wanted: bool = True) -> nn.Parameter | None:
            if not wanted:
                return None
            made = torch.empty(shape, device=device, dtype=dtype)
            made.normal_(0, (fan_in or shape[-1]) ** -0.5, generator=generator)
            return nn.Parameter(made)

        self.router_ED = weight(E, D)
        self.router_bias_E = weight(E, fan_in=D, wanted=block.router_bias)
        self.up_EHL, self.down_ELF = weight(E, H, L), weight(E, L, F_)
        self.up_bias_EH = weight(E, H, fan_in=L, wanted=block.expert_bias)
        self.down_bias_EL = weight(E, L, fan_in=F_, wanted=block.expert_bias)
        latent, shared, S = block.Dl is not None, block.Fs is not None, int(values.get("Fs", 0))
        self.into_LD = weight(L, D, wanted=latent)
        self.into_bias_L = weight(L, fan_in=D, wanted=latent and block.latent_bias)
        self.out_of_DL = weight(D, L, wanted=latent)
        self.out_of_bias_D = weight(D, fan_in=L, wanted=latent and block.latent_bias)
        G = 2 * S if block.gated else S
        self.shared_up_GD = weight(G, D, wanted=shared)
        self.shared_up_bias_G = weight(G, fan_in=D, wanted=shared and block.shared_bias)
        self.shared_down_DS = weight(D, S, wanted=shared)
        self.shared_down_bias_D = weight(D, fan_in=S, wanted=shared and block.shared_bias)
        self.shared_gate_1D = weight(1, D, wanted=block.shared_gate)
        selection_bias_E = None
        if block.routing.selection_bias:
            selection_bias_E = torch.empty(E, device=device, dtype=torch.float32)
            selection_bias_E.normal_(0, 0.01, generator=generator)
        self.register_buffer("selection_bias_E", selection_bias_E)

    @property
    def experts(self) -> Experts:
        """The routed experts, as backends take them."""
        return Experts(
            self.up_EHD,
            self.down_EDF,
            self.up_bias_EH,
            self.down_bias_ED,
            self.activation,
            self.block.gated,
            getattr(self.block.routing, "weigh", "output"),
        )

    def as_reference(self) -> Layer:
        """The same layer in fp32 with the `reference` backend; a copy of all weights."""
        twin = Layer(self.block, backend="reference", dtype=torch.float32, device=self.router_ED.device)
        twin.load_state_dict({name: value.float() for name, value in self.state_dict().items()})
        return twin

    def input(self, tokens: int, seed: int = 1) -> Tensor:
        """Random normal tokens x_TD on the layer's device."""
        x_TD = torch.empty(tokens, self.D, device=self.router_ED.device, dtype=self.router_ED.dtype)
        if x_TD.is_meta:
            return x_TD
        return x_TD.normal_(generator=torch.Generator(x_TD.device).manual_seed(seed))

    @overload
    def forward(
        self,
        x_TD: Tensor,
        phase_hook: PhaseHook | None = ...,
        routing_override: Tensor | None = ...,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        x_TD: Tensor,
        phase_hook: PhaseHook | None = ...,
        routing_override: Tensor | None = ...,
        *,
        return_rows: bool,
    ) -> tuple[Tensor, Tensor]: ...

    def forward(
        self,
        x_TD: Tensor,
        phase_hook: PhaseHook | None = None,
        routing_override: Tensor | None = None,
        *,
        return_rows: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The layer's output [T, D]; with return_rows also the rows per expert, int32 [E].

        phase_hook: told of every phase, forward and backward (see `phases`). routing_override:
        int64 expert ids [T, K], distinct in each token, to use in place of the router's choice;
        the router is computed all the same, and gives their weights.
        """
        phases = Phases(self.phase_names, phase_hook)
        rule: Routing = self.block.routing
        with phases("router"):
            logits_TE = functions.router_logits(x_TD, self.router_ED, self.router_bias_E)
        with phases("select"):
            selected = select(logits_TE, rule, self.k, self.selection_bias_E, routing_override)
            del logits_TE
            rows = sort_rows(selected.ids_TK, self.router_ED.shape[0])
        y_TD = self.backend.experts(x_TD, selected, rows, self.experts, phases)
        if self.block.Fs is not None:
            y_TD = self._with_shared(x_TD, y_TD, phases)
        phases.finish(y_TD)
        return (y_TD, rows_per_expert(rows)) if return_rows else y_TD

    def _with_shared(self, x_TD: Tensor, y_TD: Tensor, phase: Phases) -> Tensor:
        """Add the shared experts' output to the routed ones'."""
        with phase("shared_gate_up" if self.block.gated else "shared_up"):
            h_TG = F.linear(x_TD, self.shared_up_GD)
        with phase("shared_activation"):
            a_TS = functions.activate(h_TG, self.activation, self.block.gated)
        del h_TG
        with phase("shared_down"):
            shared_TD = F.linear(a_TS, self.shared_down_DS)
        del a_TS
        if self.block.shared_gate:
            with phase("shared_gate"):
                gate_T1 = F.linear(x_TD, self.shared_gate_1D).sigmoid()
                shared_TD = shared_TD * gate_T1
        with phase("shared_add"):
            return y_TD + shared_TD


def _check_known(block: MoE) -> None:
    """Raise UserError where a block has a setting that this layer would leave out."""
    check_known(block.routing)
    for field in fields(block):
        if field.name in _KNOWN_FIELDS:
            continue
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if getattr(block, field.name) != default:
            value = getattr(block, field.name)
            raise UserError(f"the measured layer does not build MoE.{field.name}={value!r}")
