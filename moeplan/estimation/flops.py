"""FLOPs: forward per token and per sequence, decoding at a context, training; by component.

One multiply-add is 2 FLOPs. Only matmuls, attention and scans count (norms, activations, softmax
and rotary embedding do not, as is the field's habit); the router and the output head do. Training
is exactly three times the forward pass: each matmul's backward holds two of its size. What a
kernel computes again (flash attention, recomputation) is not counted.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from moeplan.estimation.fold import MODEL, MTP, Part, by_component, lines
from moeplan.model.ops import Component
from moeplan.model.spec import ModelSpec, Role
from moeplan.model.workload import Mask, Workload
from moeplan.quantity import Number, Quantity, derive, total

__all__ = ["flops", "forward", "forward_by_component"]

UNIT = "FLOP"


def forward(spec: ModelSpec, work: Workload, roles: tuple[Role, ...] = MODEL) -> Number:
    """FLOPs of one forward pass, a bare number or array."""
    return sum(line.group.number * line.flops for line in lines(spec, work, roles))


def forward_by_component(
    spec: ModelSpec, work: Workload, roles: tuple[Role, ...] = MODEL
) -> dict[Component, Quantity]:
    """FLOPs of one forward pass per component, explained."""
    return by_component(
        (
            Part(
                line.group,
                line.op.component,
                line.op.name,
                line.flops,
                partial(line.quantity, line.op.flops, UNIT),
            )
            for line in lines(spec, work, roles)
            if line.op.flops != "0"
        ),
        UNIT,
    )


def _per_token(whole: Quantity, work: Workload) -> Quantity:
    B, S = work.symbols["B"], work.symbols["S"]
    tokens = derive("B*S", "tokens", symbol="T", B=B, S=S)
    return derive("per(pass_flops, T)", "FLOP/token", pass_flops=whole, T=tokens)


def _training(per_token: Quantity) -> Quantity:
    return derive(
        "3*forward", "FLOP/token", forward=per_token, note="backward is twice the forward"
    )


def _summed(parts: dict[Component, Quantity]) -> Quantity:
    return total(list(parts.items()), UNIT)


def _counted(
    spec: ModelSpec, work: Workload
) -> tuple[dict[str, Quantity], dict[Component, Quantity]]:
    """A pass per token and per sequence, and the FLOPs of the whole pass by component."""
    parts = forward_by_component(spec, work)
    whole = _summed(parts)
    per_token, B = _per_token(whole, work), work.symbols["B"]
    sums = {
        "forward_per_token": per_token,
        "training_per_token": _training(per_token),
        "forward_per_sequence": derive("per(pass_flops, B)", "FLOP", pass_flops=whole, B=B),
    }
    return sums, parts


def flops(spec: ModelSpec, context: Number | Quantity, mask: Mask = "causal") -> dict[str, Any]:
    """The FLOPs section of an estimate, for sequences of `context` tokens."""
    one = Quantity(1, "sequences", symbol="B", formula="1", note="one sequence")
    step = Quantity(1, "tokens", symbol="S", formula="1", note="one new token")
    sequence = Workload("train", B=one, S=context, C=context, mask=mask)
    other: Mask = "full" if mask == "causal" else "causal"
    decode = Workload("decode", B=one, S=step, C=context, mask=mask)
    main, parts = _counted(spec, sequence)
    decoding, decoding_parts = _counted(spec, decode)
    out: dict[str, Any] = {
        "context": context,
        "attention": mask,
        **main,
        "by_component": {name: _per_token(part, sequence) for name, part in parts.items()},
        other: _counted(spec, replace(sequence, mask=other))[0],
        "prefill_per_sequence": main["forward_per_sequence"],
        "decode_per_token": decoding["forward_per_token"],
        "decode_by_component": {n: _per_token(p, decode) for n, p in decoding_parts.items()},
    }
    if any(group.role == "mtp" for group in spec.groups):
        module = _per_token(_summed(forward_by_component(spec, sequence, MTP)), sequence)
        out["mtp_forward_per_token"] = module
        out["training_per_token_with_mtp"] = derive(
            "3*(forward + mtp)", "FLOP/token", forward=main["forward_per_token"], mtp=module
        )
    return out
