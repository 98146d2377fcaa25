"""The row operations of the measured layer as Triton kernels, forward and backward.

The same functions as in `eager`, one pass over memory each: values are read in their own type,
computed in fp32 and written once. Nothing is autotuned: block sizes follow from the shapes. With
TRITON_INTERPRET=1 set before this module is imported they run on a CPU, right in fp32 and fp16
(the interpreter is silently wrong in bf16). They compile for sm_90; they have not been run on a
GPU yet.

Shape suffixes: T tokens, K experts a token, R = T·K rows, D hidden size, E experts, F expert width,
H up-projection's width.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Triton reads the kernels' own annotations, and takes none but constexpr.
from __future__ import annotations

import torch
import triton
import triton.language as tl
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

_CURVES = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "relu2": 4}
_TILE = 4096  # elements of a two-dimensional tile: 32 per thread of four warps
_WIDEST = 1024


@triton.jit
def _gelu_tanh_inner(x):
    """tanh of the usual cubic, by way of the sigmoid."""
    return 2 * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x)) - 1


@triton.jit
def _curve(x, slope, CURVE: tl.constexpr):
    """The curve of an activation; CURVE as in `_CURVES`."""
    if CURVE == 0:
        return x * tl.sigmoid(slope * x)
    elif CURVE == 1:
        return 0.5 * x * (1 + tl.math.erf(x * 0.7071067811865476))
    elif CURVE == 2:
        return 0.5 * x * (1 + _gelu_tanh_inner(x))
    elif CURVE == 3:
        return tl.maximum(x, 0.0)
    else:
        return tl.maximum(x, 0.0) * tl.maximum(x, 0.0)


@triton.jit
def _slope(x, slope, CURVE: tl.constexpr):
    """The derivative of the curve."""
    if CURVE == 0:
        s = tl.sigmoid(slope * x)
        return s * (1 + slope * x * (1 - s))
    elif CURVE == 1:
        density = tl.exp(-0.5 * x * x) * 0.3989422804014327
        return 0.5 * (1 + tl.math.erf(x * 0.7071067811865476)) + x * density
    elif CURVE == 2:
        t = _gelu_tanh_inner(x)
        inner = 0.7978845608028654 * (1 + 3 * 0.044715 * x * x)
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner
    elif CURVE == 3:
        return tl.where(x > 0, 1.0, 0.0)
    else:
        return 2 * tl.maximum(x, 0.0)


@triton.jit
def _tile(rows, columns, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Row and column indices of this program's tile, and which of them exist."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    return row, column, (row < rows) & (column < columns)


@triton.jit
def activate_kernel(
    h_ptr, out_ptr, rows, F, slope, limit, shift,
    CURVE: tl.constexpr, GATED: tl.constexpr, CLAMPED: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out[r, f] = curve(gate)·(up + shift), gate and up being the halves of row r of h."""
    row, f, real = _tile(rows, F, BLOCK_R, BLOCK_C)
    start = row * F * 2 if GATED else row * F
    gate = tl.load(h_ptr + start + f, mask=real, other=0.0).to(tl.float32)
    if CLAMPED:
        gate = tl.minimum(gate, limit)
    out = _curve(gate, slope, CURVE)
    if GATED:
        up = tl.load(h_ptr + start + F + f, mask=real, other=0.0).to(tl.float32)
        if CLAMPED:
            up = tl.minimum(tl.maximum(up, -limit), limit)
        out = out * (up + shift)
    tl.store(out_ptr + row * F + f, out.to(out_ptr.dtype.element_ty), mask=real)


@triton.jit
def activate_gradient_kernel(
    d_ptr, h_ptr, out_ptr, rows, F, slope, limit, shift,
    CURVE: tl.constexpr, GATED: tl.constexpr, CLAMPED: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradient of h from d, the gradient of the activation; computes the activation again."""
    row, f, real = _tile(rows, F, BLOCK_R, BLOCK_C)
    start = row * F * 2 if GATED else row * F
    d = tl.load(d_ptr + row * F + f, mask=real, other=0.0).to(tl.float32)
    raw = tl.load(h_ptr + start + f, mask=real, other=0.0).to(tl.float32)
    gate = tl.minimum(raw, limit) if CLAMPED else raw
    d_gate = d * _slope(gate, slope, CURVE)
    if GATED:
        raw_up = tl.load(h_ptr + start + F + f, mask=real, other=0.0).to(tl.float32)
        up = tl.minimum(tl.maximum(raw_up, -limit), limit) if CLAMPED else raw_up
        d_up = d * _curve(gate, slope, CURVE)
        d_gate = d_gate * (up + shift)
        if CLAMPED:
            d_up = tl.where(tl.abs(raw_up) > limit, 0.0, d_up)
        tl.store(out_ptr + start + F + f, d_up.to(out_ptr.dtype.element_ty), mask=real)
    if CLAMPED:
        d_gate = tl.where(raw > limit, 0.0, d_gate)
    tl.store(out_ptr + start + f, d_gate.to(out_ptr.dtype.element_ty), mask=real)


@triton.jit
def scatter_rows_kernel(
    x_ptr, weight_ptr, place_ptr, out_ptr, D,
    K: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write token t to the rows of its K choices: read once, written K times."""
    t = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = d < D
    x = tl.load(x_ptr + t * D + d, mask=real, other=0.0).to(tl.float32)
    for k in tl.static_range(K):
        row = tl.load(place_ptr + t * K + k)
        value = x * tl.load(weight_ptr + t * K + k) if WEIGHTED else x
        tl.store(out_ptr + row * D + d, value.to(out_ptr.dtype.element_ty), mask=real)


@triton.jit
def gather_sum_kernel(
    y_ptr, weight_ptr, place_ptr, out_ptr, D,
    K: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sum the rows of token t's K choices in their order: deterministic, no atomics."""
    t = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = d < D
    total = tl.zeros([BLOCK_C], dtype=tl.float32)
    for k in tl.static_range(K):
        row = tl.load(place_ptr + t * K + k)
        value = tl.load(y_ptr + row * D + d, mask=real, other=0.0).to(tl.float32)
        if WEIGHTED:
            value = value * tl.load(weight_ptr + t * K + k)
        total += value
    tl.store(out_ptr + t * D + d, total.to(out_ptr.dtype.element_ty), mask=real)


@triton.jit
def row_dots_kernel(x_ptr, y_ptr, place_ptr, out_ptr, D, K: tl.constexpr, BLOCK_C: tl.constexpr):
    """The dot product of token t with the row of its choice k."""
    pair = tl.program_id(0).to(tl.int64)
    t = pair // K
    row = tl.load(place_ptr + pair)
    total = tl.zeros([BLOCK_C], dtype=tl.float32)
    for start in range(0, D, BLOCK_C):
        d = start + tl.arange(0, BLOCK_C)
        x = tl.load(x_ptr + t * D + d, mask=d < D, other=0.0).to(tl.float32)
        y = tl.load(y_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
        total += x * y
    tl.store(out_ptr + pair, tl.sum(total, axis=0))


@triton.jit
def add_bias_kernel(
    h_ptr, bias_ptr, expert_ptr, rows, H, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Add to each row, in place, the bias of its expert."""
    row, h, real = _tile(rows, H, BLOCK_R, BLOCK_C)
    expert = tl.load(expert_ptr + row, mask=row < rows, other=0).to(tl.int64)
    value = tl.load(h_ptr + row * H + h, mask=real, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + expert * H + h, mask=real, other=0.0).to(tl.float32)
    tl.store(h_ptr + row * H + h, (value + bias).to(h_ptr.dtype.element_ty), mask=real)


@triton.jit
def sum_bias_kernel(d_ptr, ends_ptr, out_ptr, H, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sum the rows of expert e, which stand together; one program per expert and columns."""
    e = tl.program_id(0)
    h = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    end = tl.load(ends_ptr + e).to(tl.int64)
    first = tl.load(ends_ptr + e - 1, mask=e > 0, other=0).to(tl.int64)
    total = tl.zeros([BLOCK_R, BLOCK_C], dtype=tl.float32)
    for start in range(first, end, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R).to(tl.int64)[:, None]
        real = (row < end) & (h < H)
        total += tl.load(d_ptr + row * H + h, mask=real, other=0.0).to(tl.float32)
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    tl.store(out_ptr + e.to(tl.int64) * H + column, tl.sum(total, axis=0), mask=column < H)


# ----------------------------------------------------------------------------------- launchers
def _width(columns: int) -> int:
    """Columns of a block: a power of two that divides them where one of 128 and more does."""
    dividing = columns & -columns
    widest = min(_WIDEST, int(triton.next_power_of_2(columns)))
    return min(widest, dividing) if dividing >= 128 else min(widest, 256)


def _tiles(rows: int, columns: int) -> tuple[tuple[int, int], dict[str, int]]:
    width = _width(columns)
    height = max(1, _TILE // width)
    grid = (triton.cdiv(rows, height), triton.cdiv(columns, width))
    return grid, {"BLOCK_R": height, "BLOCK_C": width}


def _how(how: Activation, gated: bool) -> dict[str, float | bool]:
    return {
        "slope": how.slope,
        "limit": how.limit or 0.0,
        "shift": how.shift,
        "CURVE": _CURVES[how.curve],
        "GATED": gated,
        "CLAMPED": gated and how.limit is not None,
    }


def activate(h_RH: Tensor, how: Activation, gated: bool) -> Tensor:
    """The activation of each row, [R, F]."""
    h_RH = h_RH.contiguous()
    rows, width = h_RH.shape
    out_RF = h_RH.new_empty(rows, width // 2 if gated else width)
    grid, blocks = _tiles(*out_RF.shape)
    activate_kernel[grid](h_RH, out_RF, *out_RF.shape, **_how(how, gated), **blocks)
    return out_RF


def activate_gradient(d_RF: Tensor, h_RH: Tensor, how: Activation, gated: bool) -> Tensor:
    """The gradient of h_RH, given the activation's."""
    d_RF, h_RH = d_RF.contiguous(), h_RH.contiguous()
    out_RH = torch.empty_like(h_RH)
    grid, blocks = _tiles(*d_RF.shape)
    activate_gradient_kernel[grid](d_RF, h_RH, out_RH, *d_RF.shape, **_how(how, gated), **blocks)
    return out_RH


def scatter_rows(x_TD: Tensor, weights_TK: Tensor | None, place_TK: Tensor) -> Tensor:
    """Copy each token to the rows of its K choices, times the choice's weight; [R, D]."""
    (tokens, choices), D = place_TK.shape, x_TD.shape[1]
    out_RD = x_TD.new_empty(place_TK.numel(), D)
    width = _width(D)
    scatter_rows_kernel[(tokens, triton.cdiv(D, width))](
        x_TD.contiguous(), _weights(weights_TK, place_TK), place_TK.contiguous(), out_RD, D,
        K=choices, WEIGHTED=weights_TK is not None, BLOCK_C=width,
    )  # fmt: skip
    return out_RD


def gather_sum(y_RD: Tensor, weights_TK: Tensor | None, place_TK: Tensor) -> Tensor:
    """Sum the K rows of each token in fp32, times the choice's weight; [T, D] in y's dtype."""
    (tokens, choices), D = place_TK.shape, y_RD.shape[1]
    out_TD = y_RD.new_empty(tokens, D)
    width = _width(D)
    gather_sum_kernel[(tokens, triton.cdiv(D, width))](
        y_RD.contiguous(), _weights(weights_TK, place_TK), place_TK.contiguous(), out_TD, D,
        K=choices, WEIGHTED=weights_TK is not None, BLOCK_C=width,
    )  # fmt: skip
    return out_TD


def _weights(weights_TK: Tensor | None, place_TK: Tensor) -> Tensor:
    """The weights, or any pointer where the kernel reads none."""
    return place_TK if weights_TK is None else weights_TK.contiguous()


def row_dots(x_TD: Tensor, y_RD: Tensor, place_TK: Tensor) -> Tensor:
    """Dot products of each token with the rows of its K choices, fp32 [T, K]."""
    D = x_TD.shape[1]
    dots_TK = torch.empty(place_TK.shape, dtype=torch.float32, device=x_TD.device)
    row_dots_kernel[(place_TK.numel(),)](
        x_TD.contiguous(), y_RD.contiguous(), place_TK.contiguous(), dots_TK, D,
        K=place_TK.shape[1], BLOCK_C=_width(D),
    )  # fmt: skip
    return dots_TK


def add_bias_(h_RH: Tensor, bias_EH: Tensor, expert_R: Tensor) -> Tensor:
    """Add to each row, in place, its expert's bias. Raises ValueError for rows that are a view."""
    if not h_RH.is_contiguous():
        raise ValueError("a bias is added in place, to rows that are contiguous")
    grid, blocks = _tiles(*h_RH.shape)
    add_bias_kernel[grid](h_RH, bias_EH.contiguous(), expert_R.contiguous(), *h_RH.shape, **blocks)
    return h_RH


def sum_bias(d_RH: Tensor, expert_R: Tensor, ends_E: Tensor) -> Tensor:
    """Sum the rows of each expert in fp32; [E, H]."""
    experts, H = ends_E.numel(), d_RH.shape[1]
    sum_EH = torch.empty(experts, H, dtype=torch.float32, device=d_RH.device)
    sum_bias_kernel[(experts, triton.cdiv(H, 64))](
        d_RH.contiguous(), ends_E, sum_EH, H, BLOCK_R=32, BLOCK_C=64
    )
    return sum_EH
