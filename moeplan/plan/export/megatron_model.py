"""A model's shape as arguments of Megatron-LM's pretrain_gpt.py."""

from __future__ import annotations

from typing import Any

from moeplan.model.attention import Attention
from moeplan.model.basic import Embedding, Head, Norm, Projection, Residual
from moeplan.model.dense_ffn import DenseFFN
from moeplan.model.ffn import MoE
from moeplan.model.latent_attention import LatentAttention
from moeplan.model.spec import ModelSpec
from moeplan.plan.export.engine import Arguments, Refusals
from moeplan.quantity import plain

__all__ = ["model_arguments"]

_KNOWN = (Attention, LatentAttention, DenseFFN, MoE, Norm, Residual, Embedding, Head, Projection)
_BIASED = ("sigmoid", "sqrtsoftplus")
"""Scores that an expert's bias may be added to (TransformerConfig of release 0.19.2)."""


def model_arguments(spec: ModelSpec, args: Arguments, no: Refusals, *, mtp: bool) -> list[str]:
    """Add the arguments of a model's shape; what cannot be said goes to `no`. Returns notes."""
    others = {type(b).__name__ for g in spec.groups for b in g.blocks if type(b) not in _KNOWN}
    no.unless(not others, f"the model has {', '.join(sorted(others))}, for which no arguments "
              "are known")  # fmt: skip
    if not others:
        _structure(spec, no)
    args.group("model")
    args.add("--num-layers", int(spec.layers))
    args.add("--hidden-size", int(spec.hidden.value))
    _attention(spec, args, no)
    _ffn(spec, args, no)
    args.add("--normalization", "RMSNorm")
    args.add("--disable-bias-linear")
    args.add("--position-embedding-type", "rope")
    args.flag(not spec.tied, "--untie-embeddings-and-output-weights")
    args.add("--hidden-dropout", 0)
    args.add("--attention-dropout", 0)
    modules = int(sum(g.number for g in spec.groups if g.role == "mtp"))
    args.flag(mtp and modules > 0, "--mtp-num-layers", modules)
    apart = [f"not part of it: {', '.join(spec.not_counted)}"] if spec.not_counted else []
    return [
        *apart,
        f"yours to add, as MORE: the vocabulary of {spec.vocabulary.value:,} tokens, what has no "
        "weights (rotary base and scaling, norm epsilon, multipliers; norms are written as "
        "RMSNorm), learning rate, data, tokenizer and checkpoints",
    ]


def _structure(spec: ModelSpec, no: Refusals) -> None:
    """A layer is norm, attention, norm, FFN, with a residual around each pair; ends are plain."""
    for group in spec.groups:
        if not group.is_layer or group.role != "model":
            continue
        kinds = [type(b) for b in group.blocks]
        mixer = Attention if Attention in kinds else LatentAttention
        ffn = MoE if MoE in kinds else DenseFFN
        usual = kinds == [Norm, mixer, Residual, Norm, ffn, Residual]
        listed = ", ".join(kind.__name__ for kind in kinds)
        no.unless(usual, f"a layer is {listed}, not norm, attention, norm, FFN")
    norms = [b for g in spec.groups for b in g.blocks if isinstance(b, Norm)]
    no.unless(not any(b.bias for b in norms) and all(b.scale for b in norms), "norms have biases, "
              "or no scale")  # fmt: skip
    heads = [b for _, b in spec.blocks(Head)]
    no.unless(not any(b.bias for b in heads), "the head has a bias")


def _same(blocks: list[Any], names: tuple[str, ...], no: Refusals, what: str) -> Any:
    """The first of some blocks, where all are alike in the named fields."""
    first = blocks[0]
    for name in names:
        alike = all(plain_or(getattr(b, name)) == plain_or(getattr(first, name)) for b in blocks)
        no.unless(alike, f"{what} of its layers differ in {name}")
    return first


def plain_or(value: Any) -> Any:
    """The bare number of a quantity, or the value itself."""
    return plain(value) if hasattr(value, "value") else value


def _attention(spec: ModelSpec, args: Arguments, no: Refusals) -> None:
    kinds = {type(b) for _, b in spec.blocks(Attention)} | {
        type(b) for _, b in spec.blocks(LatentAttention)
    }
    if len(kinds) != 1:
        no.unless(False, f"its layers have {len(kinds)} kinds of attention")
        return
    if kinds == {LatentAttention}:
        _latent(spec, args, no)
    elif kinds == {Attention}:
        _grouped(spec, args, no)


def _grouped(spec: ModelSpec, args: Arguments, no: Refusals) -> None:
    blocks = [b for _, b in spec.blocks(Attention)]
    names = ("H", "G", "dh", "dv", "dr", "scope", "qk_norm", "gate", "sinks", "shares_kv", "rope",
             "qkv_bias")  # fmt: skip
    a = _same(blocks, names, no, "attention")
    no.unless(plain(a.dh) == plain(a.dv), "keys and values have different widths")
    no.unless(a.scope == "full", f"attention sees a {a.scope} only")
    plainly = not (a.gate or a.sinks or a.shares_kv or a.o_bias) and a.own_gate == "none"
    no.unless(plainly and a.rq is None, "attention has gates, sinks, a bias or shared keys")
    no.unless(a.qk_norm in ("none", "head"), f"queries are normalised ({a.qk_norm})")
    args.add("--num-attention-heads", plain(a.H))
    args.flag(plain(a.G) != plain(a.H), "--group-query-attention")
    args.flag(plain(a.G) != plain(a.H), "--num-query-groups", plain(a.G))
    args.add("--kv-channels", plain(a.dh))
    args.flag(a.qk_norm == "head", "--qk-layernorm")
    args.flag(a.qkv_bias, "--add-qkv-bias")
    no.unless(a.rope and a.causal, "attention has no rotary positions, or no causal mask")
    if a.dr is not None:
        args.add("--rotary-percent", f"{plain(a.dr) / plain(a.dh):g}")


def _latent(spec: ModelSpec, args: Arguments, no: Refusals) -> None:
    blocks = [b for _, b in spec.blocks(LatentAttention)]
    a = _same(blocks, ("H", "rq", "rkv", "dn", "dr", "dv"), no, "latent attention")
    plainly = a.W is None and a.own_gate == "none" and not (a.bias or a.sinks or a.shares_kv)
    no.unless(plainly, "latent attention has a window, gates, sinks or a bias")
    no.unless(
        a.rope and not (a.scales_queries or a.k_rope_norm),
        "latent attention has no rotary positions, scaled queries or a norm of the rotary keys",
    )
    args.add("--multi-latent-attention")
    args.add("--num-attention-heads", plain(a.H))
    # latent attention has no use for it, but the width of a head is checked where it is left out
    args.flag(int(spec.hidden.value) % plain(a.H) != 0, "--kv-channels", plain(a.dn))
    args.flag(a.rq is not None, "--q-lora-rank", 0 if a.rq is None else plain(a.rq))
    args.add("--kv-lora-rank", plain(a.rkv))
    args.add("--qk-head-dim", plain(a.dn))
    args.add("--qk-pos-emb-head-dim", plain(a.dr))
    args.add("--v-head-dim", plain(a.dv))
    args.add("--qk-layernorm")


def _ffn(spec: ModelSpec, args: Arguments, no: Refusals) -> None:
    dense = [b for _, b in spec.blocks(DenseFFN)]
    experts = [b for _, b in spec.blocks(MoE)]
    kinds = {(b.gated, b.activation) for b in dense} | {(b.gated, b.activation) for b in experts}
    others = {activation for gated, activation in kinds if not gated or activation != "silu"}
    no.unless(not any(b.bias for b in dense), "dense FFNs have biases")
    no.unless(not others, f"an FFN is not SwiGLU ({', '.join(sorted(others))})")
    args.add("--swiglu")
    if dense:
        args.add("--ffn-hidden-size", plain(_same(dense, ("F",), no, "dense FFNs").F))
    elif experts:
        args.add("--ffn-hidden-size", plain(experts[0].F))
    if experts:
        _moe(spec, experts, args, no)


def _moe(spec: ModelSpec, experts: list[MoE], args: Arguments, no: Refusals) -> None:
    moe = _same(experts, ("E", "k", "F", "Fs", "Z", "Dl", "routing"), no, "MoE blocks")
    usual = moe.Z is None and moe.Dl is None and moe.V is None and not moe.router_scales
    no.unless(moe.routing.weigh == "output", "tokens are weighed before their experts")
    biased = moe.shared_bias or moe.expert_bias or moe.router_bias or moe.output_bias
    no.unless(
        usual and not biased,
        "experts have biases, a latent, zero-computation experts or hashed routing",
    )
    args.group("experts")
    args.add("--num-experts", plain(moe.E))
    args.add("--moe-ffn-hidden-size", plain(moe.F))
    args.add("--moe-router-topk", plain(moe.k))
    pattern = _frequency(spec, no)
    args.flag(pattern != "1", "--moe-layer-freq", pattern)
    if moe.Fs is not None:
        args.add("--moe-shared-expert-intermediate-size", plain(moe.Fs))
        args.flag(moe.shared_gate, "--moe-shared-expert-gate")
    _routing(moe, args, no)
    args.add("--moe-grouped-gemm")
    args.add("--moe-permute-fusion")


def _routing(moe: MoE, args: Arguments, no: Refusals) -> None:
    r = moe.routing
    if r.groups > 1:
        args.add("--moe-router-num-groups", r.groups)
        args.add("--moe-router-group-topk", r.group_limit)
    no.unless(r.score != "sparsemixer", "its router is a sparse mixer")
    score = "softmax" if r.score in ("softmax", "softmax_topk") else r.score
    args.add("--moe-router-score-function", score)
    before = r.score == "softmax" and not r.renormalise  # softmax over all experts, then top-k
    args.flag(before, "--moe-router-pre-softmax")
    args.flag(r.scale != 1, "--moe-router-topk-scaling-factor", r.scale)
    no.unless(
        not r.selection_bias or score in _BIASED,
        f"its router adds a bias to {score} scores, which only {' and '.join(_BIASED)} may have",
    )
    args.flag(r.selection_bias, "--moe-router-enable-expert-bias")
    args.add("--moe-router-dtype", "fp32")


def _frequency(spec: ModelSpec, no: Refusals) -> str:
    """Which layers hold experts, as Megatron-LM reads it: "1", or a list in Python's words."""
    flags: dict[int, int] = {}
    for group in spec.groups:
        if group.is_layer and group.role == "model":
            held = int(any(isinstance(b, MoE) for b in group.blocks))
            flags |= dict.fromkeys(group.indices, held)
    order = [flags[i] for i in sorted(flags)]
    if all(order):
        return "1"
    no.unless(len(order) == int(spec.layers), "the order of its layers is not known")
    runs: list[list[int]] = []
    for held in order:
        if runs and runs[-1][0] == held:
            runs[-1][1] += 1
        else:
            runs.append([held, 1])
    return f"({'+'.join(f'[{held}]*{count}' for held, count in runs)})"
