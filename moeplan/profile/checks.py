"""Correct before fast: a backend against the fp32 reference, on the device, on fresh random data.

Memory is poisoned with NaN first, so that a result which reads what nobody wrote shows it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from moeplan.model.ffn import MoE
from moeplan.profile.assignment import Assignment
from moeplan.profile.bench import DTYPES
from moeplan.profile.layer import Layer
from moeplan.profile.numerics import relative_error
from moeplan.profile.record import Check

__all__ = ["TOLERANCE", "check_backend", "check_layer", "reduced"]

TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 1e-2}
"""Relative L2 error that a backend may have against the reference."""

_CANCELLING = ("router", "shared_gate")
"""Weights whose gradient from one token is a difference of nearly equal sums: not judged there."""

_SLACK = {"relu": 3.0}
"""Factor on the tolerance of gradients: where a rounded input of ReLU changes its sign, its whole
gradient comes or goes. Other curves bend smoothly."""

_WIDTHS = {"D": 64, "F": 32, "Fs": 48, "Dl": 32}


def reduced(block: MoE) -> MoE:
    """The block with narrow layers: its experts, routing and settings, in little memory."""
    small = {name: size for name, size in _WIDTHS.items() if block.values.get(name, 0) > size}
    return replace(block, **small)  # type: ignore[arg-type]


def check_backend(
    block: MoE, subject: str, backend: str, dtype: str, device: torch.device, seed: int
) -> list[Check]:
    """Forward and gradients of the block at reduced widths, as routed, on one expert, on one token.

    Routings: uniform, one token, and the fewest experts (every token the same), so that most are
    empty.
    """
    layer = Layer(reduced(block), backend=backend, dtype=DTYPES[dtype], device=device, seed=seed)
    experts, top_k = layer.router_ED.shape[0], layer.k
    uniform = torch.from_numpy(Assignment("uniform").ids(48, experts, top_k, seed))
    cases = {
        "narrow, uniform": uniform,
        "narrow, one token": uniform[:1],
        "narrow, all on the same experts": uniform[:1].expand(48, -1),
    }
    out = []
    for sizes, ids_TK in cases.items():
        ids = ids_TK.contiguous().to(device)
        out.append(_check(layer, ids, f"{subject}", backend, dtype, sizes, seed, gradients=True))
    return out


def check_layer(layer: Layer, subject: str, dtype: str, tokens: int, seed: int) -> Check:
    """The forward pass of a layer at its full size; takes an fp32 copy of it."""
    ids = Assignment("uniform").ids(tokens, layer.router_ED.shape[0], layer.k, seed)
    ids_TK = torch.from_numpy(ids).to(layer.router_ED.device)
    backend = layer.backend.name
    return _check(layer, ids_TK, subject, backend, dtype, "full, uniform", seed, gradients=False)


def _check(
    layer: Layer,
    ids_TK: Tensor,
    subject: str,
    backend: str,
    dtype: str,
    sizes: str,
    seed: int,
    *,
    gradients: bool,
) -> Check:
    reference = layer.as_reference()
    x_TD = layer.input(len(ids_TK), seed=seed + 1)
    d_TD = layer.input(len(ids_TK), seed=seed + 2)
    _poison(x_TD, ids_TK.shape[1])
    got = _results(layer, x_TD, ids_TK, d_TD if gradients else None)
    wanted = _results(reference, x_TD.float(), ids_TK, d_TD.float() if gradients else None)
    judged = [n for n in wanted if len(ids_TK) > 1 or not n.startswith(_CANCELLING)]
    errors = {name: relative_error(got[name], wanted[name]) for name in judged}
    tolerance = TOLERANCE[dtype]
    allowed = tolerance * _SLACK.get(layer.activation.curve, 1.0)
    output = errors.pop("output")
    return Check(
        subject=subject,
        backend=backend,
        dtype=dtype,
        tokens=len(ids_TK),
        sizes=sizes,
        output_error=output,
        gradient_errors=errors,
        tolerance=tolerance,
        gradient_tolerance=allowed,
        passed=output <= tolerance and all(error <= allowed for error in errors.values()),
    )


def _poison(like: Tensor, top_k: int) -> None:
    """Fill memory of the sizes at hand with NaN and free it, to be handed out again."""
    held = [
        torch.full((like.shape[0] * rows, like.shape[1] * wide), torch.nan, dtype=like.dtype,
                   device=like.device)
        for rows in (1, top_k) for wide in (1, 2)
    ]  # fmt: skip
    del held


def _results(layer: Layer, x_TD: Tensor, ids_TK: Tensor, d_TD: Tensor | None) -> dict[str, Tensor]:
    """The output, and the gradients of the input and of every weight, by name."""
    if d_TD is None:
        with torch.no_grad():
            return {"output": layer(x_TD, routing_override=ids_TK)}
    x_TD = x_TD.detach().clone().requires_grad_()
    y_TD = layer(x_TD, routing_override=ids_TK)
    named = dict(layer.named_parameters())
    found = torch.autograd.grad(y_TD, [x_TD, *named.values()], d_TD)
    return {"output": y_TD.detach(), "x_TD": found[0], **dict(zip(named, found[1:], strict=True))}
