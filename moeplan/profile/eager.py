"""The row operations of the measured layer in plain torch: on the CPU, and where Triton is absent.

`kernels` has the same functions as Triton kernels. Sums run in fp32. Shape suffixes: T tokens,
K experts a token, R = T·K rows, D hidden size, E experts, F expert width, H up-projection's width.
No function makes a temporary of R rows that it need not: loops run over the K choices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moeplan.profile.activations import Activation

__all__ = [
    "activate",
    "activate_gradient",
    "add_bias_",
    "gather_sum",
    "row_dots",
    "scatter_rows",
    "sum_bias",
]


def activate(h_RH: Tensor, how: Activation, gated: bool) -> Tensor:
    """The activation of each row, [R, F]."""
    return how.value(h_RH, gated)


def activate_gradient(d_RF: Tensor, h_RH: Tensor, how: Activation, gated: bool) -> Tensor:
    """The gradient of h_RH, given the activation's."""
    return how.gradient(d_RF, h_RH, gated)


def scatter_rows(x_TD: Tensor, weights_TK: Tensor | None, place_TK: Tensor) -> Tensor:
    """Copy each token to the rows of its K choices, times the choice's weight; [R, D]."""
    out_RD = x_TD.new_empty(place_TK.numel(), x_TD.shape[1])
    for k in range(place_TK.shape[1]):
        row_TD = x_TD
        if weights_TK is not None:
            row_TD = (x_TD * weights_TK[:, k : k + 1]).to(x_TD.dtype)
        out_RD.index_copy_(0, place_TK[:, k], row_TD)
    return out_RD


def gather_sum(y_RD: Tensor, weights_TK: Tensor | None, place_TK: Tensor) -> Tensor:
    """Sum the K rows of each token in fp32, times the choice's weight; [T, D] in y's dtype."""
    tokens, choices = place_TK.shape
    sum_TD = y_RD.new_zeros(tokens, y_RD.shape[1], dtype=torch.float32)
    for k in range(choices):
        row_TD = y_RD.index_select(0, place_TK[:, k])
        if weights_TK is None:
            sum_TD += row_TD
        else:
            sum_TD.addcmul_(row_TD.float(), weights_TK[:, k : k + 1])
        del row_TD  # before the next is made
    return sum_TD.to(y_RD.dtype)


def row_dots(x_TD: Tensor, y_RD: Tensor, place_TK: Tensor) -> Tensor:
    """Dot products of each token with the rows of its K choices, fp32 [T, K]."""
    wide_TD = x_TD.float()
    dots_TK = wide_TD.new_empty(place_TK.shape)
    for k in range(place_TK.shape[1]):
        row_TD = y_RD.index_select(0, place_TK[:, k]).float()
        torch.sum(row_TD.mul_(wide_TD), -1, out=dots_TK[:, k])
        del row_TD  # before the next is made
    return dots_TK


def add_bias_(h_RH: Tensor, bias_EH: Tensor, expert_R: Tensor) -> Tensor:
    """Add to each row, in place, its expert's bias."""
    return h_RH.add_(bias_EH.index_select(0, expert_R.int()))


def sum_bias(d_RH: Tensor, expert_R: Tensor, ends_E: Tensor) -> Tensor:
    """Sum the rows of each expert in fp32; [E, H]."""
    sum_EH = d_RH.new_zeros(ends_E.numel(), d_RH.shape[1], dtype=torch.float32)
    return sum_EH.index_add_(0, expert_R.int(), d_RH.float())
