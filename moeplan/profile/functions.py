"""The measured layer's own autograd functions: what each keeps is what `MoE.rows` says it keeps.

On CUDA they run as Triton kernels where Triton can be imported, elsewhere in plain torch. Shape
suffixes as in `layer`.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from moeplan.profile import eager
from moeplan.profile.activations import Activation

__all__ = [
    "activate",
    "add_bias",
    "combine",
    "grouped_linear",
    "kernels_missing",
    "permute",
    "router_input",
    "router_logits",
    "uses_kernels",
]


@cache
def kernels_missing(device: str) -> str | None:
    """Why row operations on a device of this type do not run as Triton kernels, or None.

    Triton compiles for the card at hand, with a C compiler that it may not find: one kernel is
    tried, and where that fails rows run in plain torch.
    """
    if device != "cuda":
        return "Triton kernels are for CUDA"
    if find_spec("triton") is None:
        return "Triton is not installed"
    try:
        _try_kernel(device)
    except Exception as problem:  # whatever a compiler or driver says
        said = next(iter(str(problem).splitlines()), "")
        return f"Triton failed: {type(problem).__name__}: {said}"
    return None


def _try_kernel(device: str) -> None:
    """Sum two rows on the device. Raises ValueError where the sum is wrong."""
    from moeplan.profile import kernels

    rows_RD = torch.ones(2, 128, device=device)
    place_TK = torch.tensor([[1, 0]], device=device)
    if kernels.gather_sum(rows_RD, None, place_TK).tolist() != [[2.0] * 128]:
        raise ValueError("one and one are not two")


def uses_kernels(device: str) -> bool:
    """Whether row operations on a device of this type run as Triton kernels."""
    return kernels_missing(device) is None


def _rows(tensor: Tensor) -> ModuleType:
    """The module of row operations for a tensor's device."""
    if not uses_kernels(tensor.device.type):
        return eager
    from moeplan.profile import kernels

    return kernels


def _apply(function: type[torch.autograd.Function], *args: Any) -> Tensor:
    return cast(Tensor, function.apply(*args))  # type: ignore[no-untyped-call]


def grouped_linear(x_RK: Tensor, w_ENK: Tensor, ends_E: Tensor) -> Tensor:
    """One matmul per expert over its rows: [R, K] x [E, N, K] to [R, N], rows sorted by expert."""
    return F.grouped_mm(x_RK, w_ENK.transpose(-2, -1), offs=ends_E)


class _Router(torch.autograd.Function):
    """fp32 logits from operands of any type, keeping the operands and no fp32 copy of them.

    Products of two bf16 numbers are exact in fp32, so a matmul on tensor cores with fp32 sums and
    an fp32 result equals one on upcast operands, up to the order of its sums.
    """

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, w_ED: Tensor, bias_E: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_TD, w_ED)
        if x_TD.is_cuda and x_TD.dtype != torch.float32:
            logits_TE = torch.mm(x_TD, w_ED.t(), out_dtype=torch.float32)
        else:
            logits_TE = F.linear(x_TD.float(), w_ED.float())
        return logits_TE if bias_E is None else logits_TE.add_(bias_E)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_TE: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, w_ED = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        bias_E = d_TE.sum(0).to(w_ED.dtype) if wanted[2] else None
        if x_TD.is_cuda:
            d_TE = d_TE.to(x_TD.dtype)
            wide = [x_TD, w_ED]
        else:
            wide = [x_TD.float(), w_ED.float()]
        d_x_TD = (d_TE @ wide[1]).to(x_TD.dtype) if wanted[0] else None
        d_w_ED = (d_TE.t() @ wide[0]).to(w_ED.dtype) if wanted[1] else None
        return d_x_TD, d_w_ED, bias_E


class _RouterInput(torch.autograd.Function):
    """Tokens over their root mean square, times a learned scale and D^-1/2; keeps the operands."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, scale_D: Tensor) -> Tensor:
        ctx.save_for_backward(x_TD, scale_D)
        factor_D = scale_D.float() * x_TD.shape[1] ** -0.5
        scaled_TD: Tensor = _normal(x_TD)[0] * factor_D
        return scaled_TD.to(x_TD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_TD: Tensor) -> tuple[Tensor, Tensor]:
        x_TD, scale_D = ctx.saved_tensors
        root, (normal_TD, inverse_T1) = x_TD.shape[1] ** -0.5, _normal(x_TD)
        d_normal_TD = d_TD.float() * scale_D.float() * root
        along_T1 = (d_normal_TD * normal_TD).mean(-1, keepdim=True)
        d_x_TD = (d_normal_TD - normal_TD * along_T1) * inverse_T1
        d_scale_D = (d_TD.float() * normal_TD).sum(0) * root
        return d_x_TD.to(x_TD.dtype), d_scale_D.to(scale_D.dtype)


def _normal(x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens over their root mean square in fp32, and what each was multiplied with."""
    wide_TD = x_TD.float()
    inverse_T1 = wide_TD.square().mean(-1, keepdim=True).add_(1e-6).rsqrt_()
    return wide_TD * inverse_T1, inverse_T1


class _Permute(torch.autograd.Function):
    """Tokens to rows sorted by expert; with weights, each row times its choice's weight."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weights_TK: Tensor | None, place_TK: Tensor) -> Tensor:
        kept = (place_TK,) if weights_TK is None else (place_TK, weights_TK, x_TD)
        ctx.save_for_backward(*kept)
        return cast(Tensor, _rows(x_TD).scatter_rows(x_TD, weights_TK, place_TK))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_RD: Tensor) -> tuple[Tensor | None, ...]:
        place_TK, *weighed = ctx.saved_tensors
        rows, d_RD = _rows(d_RD), d_RD.contiguous()
        if not weighed:
            return rows.gather_sum(d_RD, None, place_TK), None, None
        weights_TK, x_TD = weighed
        d_x_TD = rows.gather_sum(d_RD, weights_TK, place_TK) if ctx.needs_input_grad[0] else None
        d_w_TK = rows.row_dots(x_TD, d_RD, place_TK) if ctx.needs_input_grad[1] else None
        return d_x_TD, d_w_TK, None


class _Combine(torch.autograd.Function):
    """Rows back to tokens: the sum of each token's rows, times the choice's weight, in fp32."""

    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, weights_TK: Tensor | None, place_TK: Tensor) -> Tensor:
        kept = (place_TK,) if weights_TK is None else (place_TK, weights_TK, y_RD)
        ctx.save_for_backward(*kept)
        return cast(Tensor, _rows(y_RD).gather_sum(y_RD, weights_TK, place_TK))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_TD: Tensor) -> tuple[Tensor | None, ...]:
        place_TK, *weighed = ctx.saved_tensors
        rows, d_TD = _rows(d_TD), d_TD.contiguous()
        if not weighed:
            return rows.scatter_rows(d_TD, None, place_TK), None, None
        weights_TK, y_RD = weighed
        d_w_TK = rows.row_dots(d_TD, y_RD, place_TK) if ctx.needs_input_grad[1] else None
        return rows.scatter_rows(d_TD, weights_TK, place_TK), d_w_TK, None


class _Activate(torch.autograd.Function):
    """The activation, keeping its input alone."""

    @staticmethod
    def forward(ctx: Any, h_RH: Tensor, how: Activation, gated: bool) -> Tensor:
        ctx.save_for_backward(h_RH)
        ctx.how, ctx.gated = how, gated
        return cast(Tensor, _rows(h_RH).activate(h_RH, how, gated))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_RF: Tensor) -> tuple[Tensor, None, None]:
        (h_RH,) = ctx.saved_tensors
        d_RF = d_RF.contiguous()
        return _rows(h_RH).activate_gradient(d_RF, h_RH, ctx.how, ctx.gated), None, None


class _AddBias(torch.autograd.Function):
    """Each row plus its expert's bias, in place."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, h_RH: Tensor, bias_EH: Tensor, expert_R: Tensor, ends_E: Tensor
    ) -> Tensor:
        ctx.mark_dirty(h_RH)
        ctx.save_for_backward(expert_R, ends_E)
        return cast(Tensor, _rows(h_RH).add_bias_(h_RH, bias_EH, expert_R))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_RH: Tensor) -> tuple[Tensor | None, ...]:
        expert_R, ends_E = ctx.saved_tensors
        d_RH, d_bias_EH = d_RH.contiguous(), None
        if ctx.needs_input_grad[1]:
            d_bias_EH = _rows(d_RH).sum_bias(d_RH, expert_R, ends_E).to(d_RH.dtype)
        return d_RH, d_bias_EH, None, None


def router_logits(x_TD: Tensor, w_ED: Tensor, bias_E: Tensor | None = None) -> Tensor:
    """The router's logits in fp32, [T, E]."""
    return _apply(_Router, x_TD, w_ED, bias_E)


def router_input(x_TD: Tensor, scale_D: Tensor) -> Tensor:
    """Normalised and scaled tokens, as Gemma 4's router reads them; [T, D] in x's dtype."""
    return _apply(_RouterInput, x_TD, scale_D)


def permute(x_TD: Tensor, weights_TK: Tensor | None, place_TK: Tensor) -> Tensor:
    """Copy tokens to the rows of their choices, sorted by expert; [R, D]."""
    return _apply(_Permute, x_TD, weights_TK, place_TK)


def combine(y_RD: Tensor, weights_TK: Tensor | None, place_TK: Tensor) -> Tensor:
    """Sum each token's rows, weighted, in fp32; [T, D] in y's dtype."""
    return _apply(_Combine, y_RD, weights_TK, place_TK)


def activate(h_RH: Tensor, how: Activation, gated: bool) -> Tensor:
    """The activation of each row, [R, F]."""
    return _apply(_Activate, h_RH, how, gated)


def add_bias(h_RH: Tensor, bias_EH: Tensor, expert_R: Tensor, ends_E: Tensor) -> Tensor:
    """Add to each row, in place, its expert's bias."""
    return _apply(_AddBias, h_RH, bias_EH, expert_R, ends_E)
