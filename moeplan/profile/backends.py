"""Backends of the routed experts: who runs permute, matmuls, activation and combine.

A backend is any object with the members of `Backend`; `register` makes it known by its name.
`torch` is the default. `reference` loops over the experts in fp32 and shares nothing with it but
the router's choice. `comparisons` holds those of other libraries. A fused Triton backend is not
among them: it would have to be faster than `torch` on a GPU to be worth its code, and none has been
measured. Shape suffixes as in `layer`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from moeplan.errors import UserError, near_miss
from moeplan.profile import functions
from moeplan.profile.activations import Activation
from moeplan.profile.comparisons import LigerBackend, TransformersBackend
from moeplan.profile.routing import Rows, Selected

__all__ = [
    "Backend",
    "Experts",
    "PhaseScope",
    "ReferenceBackend",
    "TorchBackend",
    "backend_named",
    "backends",
    "register",
]

PhaseScope: TypeAlias = Callable[[str], AbstractContextManager[Any]]


class Experts(NamedTuple):
    """The routed experts' weights and what they compute.

    up_EHL: gate over up where gated ([E, 2F, L]), else up ([E, F, L]). weigh: whether a choice's
    weight multiplies the expert's output or, as in Llama 4, its input.
    """

    up_EHL: Tensor
    down_ELF: Tensor
    up_bias_EH: Tensor | None
    down_bias_EL: Tensor | None
    activation: Activation
    gated: bool
    weigh: Literal["output", "input"] = "output"

    @property
    def up_phase(self) -> str:
        """The row name of the first matmul."""
        return "experts_gate_up" if self.gated else "experts_up"


class Backend(Protocol):
    """What runs the routed experts.

    `experts` opens the phases permute, experts_gate_up (experts_up where not gated),
    experts_activation, experts_down and combine, or the phase `experts` alone where they run
    `together`; and returns [T, L] in x's dtype.
    """

    @property
    def name(self) -> str:
        """By what name users call it."""

    @property
    def about(self) -> str:
        """One line on how it works."""

    @property
    def together(self) -> bool:
        """Whether permute to combine are one call, and so one phase."""

    def missing(self) -> str | None:
        """What has to be installed for it beside torch, or None."""

    def unfit(self, experts: Experts) -> str | None:
        """Why it cannot run these experts where they are, or None."""

    def experts(
        self, x_TL: Tensor, selected: Selected, rows: Rows, experts: Experts, phase: PhaseScope
    ) -> Tensor:
        """The weighted sum of each token's experts."""


class TorchBackend:
    """Stable sort, grouped GEMMs, own activation and combine."""

    name = "torch"
    about = "torch.nn.functional.grouped_mm, with Triton kernels for rows on CUDA"
    together = False

    def missing(self) -> str | None:
        """It needs torch alone."""
        return None

    def unfit(self, experts: Experts) -> str | None:
        """Grouped GEMMs need 16-byte strides, and have no fp64."""
        dtype = experts.up_EHL.dtype
        if dtype not in (torch.bfloat16, torch.float16, torch.float32):
            return f"grouped GEMMs do not run in {dtype}"
        unit = 16 // dtype.itemsize
        sizes = {"width": experts.up_EHL.shape[2], "expert width": experts.down_ELF.shape[2]}
        for what, size in sizes.items():
            if size % unit:
                return (
                    f"its matmuls need strides of 16 bytes: {what} {size} is no multiple of {unit}"
                )
        return None

    def experts(
        self, x_TL: Tensor, selected: Selected, rows: Rows, experts: Experts, phase: PhaseScope
    ) -> Tensor:
        """Run the experts over rows sorted by expert, all in one grouped matmul each."""
        at_input = experts.weigh == "input"
        inside = selected.weights_TK if at_input else None
        # no name here holds the rows, so that without a backward pass each dies with its last use
        y_RL = self.rows(_permuted(x_TL, inside, rows, phase), rows, experts, phase)
        with phase("combine"):
            outside = None if at_input else selected.weights_TK
            return functions.combine(y_RL, outside, rows.place_TK)

    def rows(self, x_RL: Tensor, rows: Rows, experts: Experts, phase: PhaseScope) -> Tensor:
        """Each row through its expert; rows are sorted by expert."""
        with phase(experts.up_phase):
            h_RH = functions.grouped_linear(x_RL, experts.up_EHL, rows.ends_E)
            if experts.up_bias_EH is not None:
                h_RH = functions.add_bias(h_RH, experts.up_bias_EH, rows.expert_R, rows.ends_E)
        del x_RL
        with phase("experts_activation"):
            a_RF = functions.activate(h_RH, experts.activation, experts.gated)
        del h_RH
        with phase("experts_down"):
            y_RL = functions.grouped_linear(a_RF, experts.down_ELF, rows.ends_E)
            if experts.down_bias_EL is not None:
                y_RL = functions.add_bias(y_RL, experts.down_bias_EL, rows.expert_R, rows.ends_E)
        return y_RL


def _permuted(x_TL: Tensor, weights_TK: Tensor | None, rows: Rows, phase: PhaseScope) -> Tensor:
    with phase("permute"):
        return functions.permute(x_TL, weights_TK, rows.place_TK)


class ReferenceBackend:
    """A loop over the experts in fp32: slow, and plain to see through."""

    name = "reference"
    about = "a loop over the experts in fp32, for correctness"
    together = False

    def missing(self) -> str | None:
        """It needs torch alone."""
        return None

    def unfit(self, experts: Experts) -> str | None:
        """Runs everything but tensors without data, since it reads the choices back."""
        return "the loop reads the choices back" if experts.up_EHL.is_meta else None

    def experts(
        self, x_TL: Tensor, selected: Selected, rows: Rows, experts: Experts, phase: PhaseScope
    ) -> Tensor:
        """Run each expert over its tokens, one after the other."""
        out_TL = torch.zeros_like(x_TL, dtype=torch.float32)
        at_input = experts.weigh == "input"
        with phase(experts.up_phase):  # unbound once: indexing makes a whole gradient each time
            up_HL = experts.up_EHL.unbind()
        with phase("experts_down"):
            down_LF = experts.down_ELF.unbind()
        for e in range(len(up_HL)):
            with phase("permute"):
                token_m, choice_m = torch.where(selected.ids_TK == e)
                weight_m1 = selected.weights_TK[token_m, choice_m, None]
                x_mL = x_TL[token_m].float()
                if at_input:
                    x_mL = x_mL * weight_m1
            with phase(experts.up_phase):
                h_mH = F.linear(x_mL, up_HL[e].float(), _bias(experts.up_bias_EH, e))
            with phase("experts_activation"):
                a_mF = _plain_activation(h_mH, experts.activation, experts.gated)
            with phase("experts_down"):
                y_mL = F.linear(a_mF, down_LF[e].float(), _bias(experts.down_bias_EL, e))
            with phase("combine"):
                weighed_mL = y_mL if at_input else y_mL * weight_m1
                out_TL = out_TL.index_add(0, token_m, weighed_mL)
        return out_TL.to(x_TL.dtype)


def _bias(bias_EN: Tensor | None, e: int) -> Tensor | None:
    return None if bias_EN is None else bias_EN[e].float()


def _plain_activation(h: Tensor, how: Activation, gated: bool) -> Tensor:
    """The activation from torch's own functions, differentiated by autograd."""
    gate, up = h.chunk(2, -1) if gated else (h, None)
    if how.limit is not None and up is not None:
        gate, up = gate.clamp(max=how.limit), up.clamp(-how.limit, how.limit)
    curves: dict[str, Callable[[Tensor], Tensor]] = {
        "silu": lambda g: g * torch.sigmoid(how.slope * g),
        "gelu": F.gelu,
        "gelu_tanh": lambda g: F.gelu(g, approximate="tanh"),
        "relu": F.relu,
        "relu2": lambda g: F.relu(g) ** 2,
    }
    curve = curves[how.curve](gate)
    return curve if up is None else curve * (up + how.shift)


_BACKENDS: dict[str, Backend] = {}


def register(backend: Backend) -> None:
    """Make a backend known by its name. Raises ValueError for a name that is taken."""
    if backend.name in _BACKENDS:
        raise ValueError(f"backend {backend.name!r} is registered already")
    _BACKENDS[backend.name] = backend


def backends() -> tuple[Backend, ...]:
    """All backends, the default first."""
    return tuple(_BACKENDS.values())


def backend_named(name: str) -> Backend:
    """The backend of that name. Raises UserError with a near miss."""
    if name not in _BACKENDS:
        raise UserError(
            f"backend {name!r} is unknown: allowed are {', '.join(_BACKENDS)}"
            f"{near_miss(name, _BACKENDS)}"
        )
    return _BACKENDS[name]


register(TorchBackend())
register(ReferenceBackend())
register(TransformersBackend("transformers", "grouped_mm"))
register(TransformersBackend("transformers-eager", "eager"))
register(LigerBackend())
