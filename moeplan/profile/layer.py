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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moeplan.errors import UserError
from moeplan.model.ffn import MoE
from moeplan.model.workload import Workload
from moeplan.profile import functions
from moeplan.profile.activations import activation_named
from moeplan.profile.backends import Backend, Experts, backend_named
from moeplan.profile.phases import PhaseHook, Phases
from moeplan.profile.predict import phase_of
from moeplan.profile.routing import (
    Rows,
    Selected,
    check_known,
    rows_per_expert,
    select,
    sort_rows,
)
from moeplan.quantity import plain

__all__ = ["Layer", "phase_names"]

_KNOWN_FIELDS = {
    *("D", "E", "k", "F", "Fs", "Dl", "V", "gated", "activation", "routing", "shared_gate"),
    *("router_bias", "router_scales", "expert_bias", "shared_bias", "latent_bias"),
    *("stacked", "transposed", "down_transposed", "names"),  # how checkpoints store the weights
}


def phase_names(block: MoE, *, together: bool = False) -> tuple[str, ...]:
    """The rows of a block that run on one device: all but the exchanges between ranks.

    together: with those from permute to combine as one.
    """
    names = [op.name for op in block.rows(Workload("train")) if op.kind != "exchange"]
    return tuple(dict.fromkeys(phase_of(name, together=together) for name in names))


class Layer(nn.Module):
    """An MoE layer with random weights of the real shapes, scaled by (inputs)^-1/2.

    block: whose layer it is; its sizes must be numbers. backend: who runs the routed experts (see
    `backends`), by its name or itself. held: of how many experts the weights are here, all but in a
    shard of expert parallelism (see `exchange`). Raises UserError for what is not built here: an
    unknown activation or setting, or sizes that the backend cannot run.
    """

    selection_bias_E: Tensor | None
    table_VK: Tensor | None

    def __init__(
        self,
        block: MoE,
        *,
        backend: str | Backend = "torch",
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        seed: int = 0,
        held: int | None = None,
    ) -> None:
        super().__init__()
        _check_known(block)
        self.block = block
        self.backend = backend_named(backend) if isinstance(backend, str) else backend
        self.phase_names = phase_names(block, together=self.backend.together)
        self.activation = activation_named(block.activation)
        sizes = {name: int(value) for name, value in block.values.items()}
        sizes["held"] = sizes["E"] if held is None else held
        self.k, self.D = sizes["k"], sizes["D"]
        self._make_weights(sizes, torch.device(device), dtype, seed)
        unfit = self.backend.missing() or self.backend.unfit(self.experts)
        if unfit is not None:
            raise UserError(f"backend {self.backend.name!r} cannot run this layer: {unfit}")

    def _make_weights(
        self, sizes: dict[str, int], device: torch.device, dtype: torch.dtype, seed: int
    ) -> None:
        block, D, E, F_, held = self.block, *(sizes[name] for name in ("D", "E", "F", "held"))
        H, L, S = 2 * F_ if block.gated else F_, sizes.get("Dl", D), sizes.get("Fs", 0)
        G, latent, shared = 2 * S if block.gated else S, block.Dl is not None, block.Fs is not None
        generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)

        def random(*shape: int, fan_in: int = 0) -> nn.Parameter:
            made = torch.empty(shape, device=device, dtype=dtype)
            return nn.Parameter(made.normal_(0, (fan_in or shape[-1]) ** -0.5, generator=generator))

        def where(wanted: bool, *shape: int, fan_in: int = 0) -> nn.Parameter | None:
            return random(*shape, fan_in=fan_in) if wanted else None

        self.router_ED = random(E, D)
        self.router_bias_E = where(block.router_bias, E, fan_in=D)
        self.up_EHL, self.down_ELF = random(held, H, L), random(held, L, F_)
        self.up_bias_EH = where(block.expert_bias, held, H, fan_in=L)
        self.down_bias_EL = where(block.expert_bias, held, L, fan_in=F_)
        self.into_LD, self.out_of_DL = where(latent, L, D), where(latent, D, L)
        self.into_bias_L = where(latent and block.latent_bias, L, fan_in=D)
        self.out_of_bias_D = where(latent and block.latent_bias, D, fan_in=L)
        self.shared_up_GD, self.shared_down_DS = where(shared, G, D), where(shared, D, S)
        self.shared_up_bias_G = where(shared and block.shared_bias, G, fan_in=D)
        self.shared_down_bias_D = where(shared and block.shared_bias, D, fan_in=S)
        self.shared_gate_1D = where(block.shared_gate, 1, D)
        self.router_scale_D = where(block.router_scales, D, fan_in=1)
        self.expert_scale_E = where(block.router_scales, E, fan_in=1)
        self._make_buffers(sizes, device, generator)

    def _make_buffers(
        self, sizes: dict[str, int], device: torch.device, generator: torch.Generator | None
    ) -> None:
        """What decides beside the scores: a selection bias, or the table of hash routing."""
        selection_bias_E = table_VK = None
        if self.block.routing.selection_bias:
            selection_bias_E = torch.empty(sizes["E"], device=device, dtype=torch.float32)
            selection_bias_E.normal_(0, 0.01, generator=generator)
        if self.block.V is not None:  # any K distinct experts for a token: consecutive ones
            first_V1 = torch.empty((sizes["V"], 1), device=device, dtype=torch.int32)
            first_V1.random_(sizes["E"], generator=generator)
            step_K = torch.arange(self.k, device=device, dtype=torch.int32)
            table_VK = (first_V1 + step_K) % sizes["E"]
        self.register_buffer("selection_bias_E", selection_bias_E)
        self.register_buffer("table_VK", table_VK)

    @property
    def experts(self) -> Experts:
        """The routed experts, as backends take them."""
        return Experts(
            self.up_EHL,
            self.down_ELF,
            self.up_bias_EH,
            self.down_bias_EL,
            self.activation,
            self.block.gated,
            self.block.routing.weigh,
        )

    def as_reference(self) -> Layer:
        """The same layer in fp32 with the `reference` backend; a copy of all weights."""
        device = self.router_ED.device
        twin = Layer(self.block, backend="reference", dtype=torch.float32, device=device)
        twin.load_state_dict(self.state_dict())
        return twin

    def input(self, tokens: int, seed: int = 1) -> Tensor:
        """Random normal tokens x_TD on the layer's device."""
        x_TD = torch.empty(tokens, self.D, device=self.router_ED.device, dtype=self.router_ED.dtype)
        if x_TD.is_meta:
            return x_TD
        return x_TD.normal_(generator=torch.Generator(x_TD.device).manual_seed(seed))

    def route(self, x_TD: Tensor) -> Selected:
        """The router's choice and weights alone, in no phase."""
        return self._select(self._logits(x_TD), None)

    def _logits(self, x_TD: Tensor) -> Tensor:
        """The router's fp32 logits; with learned scales (Gemma 4), of its normalised input."""
        if self.router_scale_D is not None:
            x_TD = functions.router_input(x_TD, self.router_scale_D)
        return functions.router_logits(x_TD, self.router_ED, self.router_bias_E)

    def _select(self, logits_TE: Tensor, override_TK: Tensor | None) -> Selected:
        """The choice; hash routing looks it up, with positions in the place of tokens' ids."""
        if override_TK is None and self.table_VK is not None:
            position_T = torch.arange(len(logits_TE), device=logits_TE.device)
            override_TK = self.table_VK[position_T % len(self.table_VK)].long()
        rule, bias_E, scale_E = self.block.routing, self.selection_bias_E, self.expert_scale_E
        looked_up = self.table_VK is not None
        return select(logits_TE, rule, self.k, bias_E, override_TK, scale_E, looked_up=looked_up)

    def forward(
        self,
        x_TD: Tensor,
        phase_hook: PhaseHook | None = None,
        routing_override: Tensor | None = None,
    ) -> Tensor:
        """The layer's output, [T, D].

        phase_hook: told of every phase, forward and backward (see `phases`). routing_override:
        int64 expert ids [T, K], distinct in each token, to use in place of the router's choice;
        the router is computed all the same, and gives their weights.
        """
        return self._run(x_TD, phase_hook, routing_override)[0]

    def run(
        self,
        x_TD: Tensor,
        phase_hook: PhaseHook | None = None,
        routing_override: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The output as `forward` gives it, and the rows of each expert, int32 [E]."""
        y_TD, rows = self._run(x_TD, phase_hook, routing_override)
        return y_TD, rows_per_expert(rows)

    def _run(
        self, x_TD: Tensor, hook: PhaseHook | None, override_TK: Tensor | None
    ) -> tuple[Tensor, Rows]:
        phases = Phases(self.phase_names, hook)
        with phases("router"):
            logits_TE = self._logits(x_TD)
        with phases("select"):
            selected = self._select(logits_TE, override_TK)
            del logits_TE
            rows = sort_rows(selected.ids_TK, self.router_ED.shape[0])
        y_TD = self._routed(x_TD, selected, rows, phases)
        if self.block.Fs is not None:
            y_TD = self._with_shared(x_TD, y_TD, phases)
        phases.finish(y_TD)
        return y_TD, rows

    def _routed(self, x_TD: Tensor, selected: Selected, rows: Rows, phase: Phases) -> Tensor:
        """The routed experts, inside their latent where they have one."""
        if self.into_LD is None or self.out_of_DL is None:
            return self.backend.experts(x_TD, selected, rows, self.experts, phase)
        with phase("latent_down"):
            x_TL = F.linear(x_TD, self.into_LD, self.into_bias_L)
        y_TL = self.backend.experts(x_TL, selected, rows, self.experts, phase)
        del x_TL
        with phase("latent_up"):
            return F.linear(y_TL, self.out_of_DL, self.out_of_bias_D)

    def _with_shared(self, x_TD: Tensor, y_TD: Tensor, phase: Phases) -> Tensor:
        """Add the shared experts' output to the routed ones'."""
        assert self.shared_up_GD is not None
        assert self.shared_down_DS is not None
        with phase("shared_gate_up" if self.block.gated else "shared_up"):
            h_TG = F.linear(x_TD, self.shared_up_GD, self.shared_up_bias_G)
        with phase("shared_activation"):
            a_TS = functions.activate(h_TG, self.activation, self.block.gated)
        del h_TG
        with phase("shared_down"):
            shared_TD = F.linear(a_TS, self.shared_down_DS, self.shared_down_bias_D)
        del a_TS
        if self.shared_gate_1D is not None:
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
            value = plain(getattr(block, field.name))
            raise UserError(f"the measured layer does not build MoE.{field.name}={value!r}")
