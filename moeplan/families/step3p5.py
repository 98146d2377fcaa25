"""StepFun's Step-3.5 and 3.7: gates per head, more heads in windowed layers, stacked experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moeplan.families.common import pre_norm, selection
from moeplan.families.mtp import mtp_modules
from moeplan.families.reader import Config, shown
from moeplan.families.stack import WINDOW, WORDS, layered, scopes, sparse_words, text_part
from moeplan.model.attention import Attention
from moeplan.model.ffn import DenseFFN, ExpertNames, MoE, Routing
from moeplan.model.ops import Block
from moeplan.model.spec import Group, ModelSpec
from moeplan.quantity import Quantity, Source

__all__ = ["step3p5", "step3p7"]

NAMES = ExpertNames(
    router="moe.gate", experts="moe.", shared="share_expert.", selection_bias="moe.router_bias"
)
# of rotation, clamping and loading: no tensor counted follows from them
OTHER = (
    "partial_rotary_factors",
    "per_layer_config",
    "query_pre_attn_scalar",
    "rope_theta",
    "swiglu_limits",
    "swiglu_limits_shared",
    "yarn_only_types",
    "need_fp32_gate",
    "sink",
    "zero_centered",
)


def _expert_layers(c: Config, layers: int) -> list[bool]:
    """Those in moe_layers_enum, which counts MTP layers too, or all from the fourth on."""
    _, given = c.raw("moe_layers_enum", default=None)
    if given is None:
        return [i > 2 for i in range(layers)]
    try:
        words = given.split(",") if isinstance(given, str) else given
        places = {int(word) for word in words if str(word).strip()}
    except (TypeError, ValueError):
        raise c.fail("moe_layers_enum", "needs places of layers") from None
    return [i in places for i in range(layers)]


def _window_heads(c: Config, heads: Quantity) -> Quantity:
    """Query heads of windowed layers: as many as elsewhere unless the file says otherwise."""
    other = c.sub("attention_other_setting", required=False)
    if other is None:
        return c.int("num_sliding_attention_heads", default=heads, symbol="H")
    other.expect("attention_type", ["sliding_attention"], "only windowed layers may differ")
    groups = c.int("num_attention_groups", "num_key_value_heads").value
    other.expect("num_attention_groups", [groups], "key-value heads are the same in all layers")
    width = c.int("head_dim").value
    other.expect("head_dim", [width], "head dimensions are the same in all layers")
    other.expect("true_head_dim", [width], "head dimensions are the same in all layers")
    c.ignore("num_sliding_attention_heads")
    return other.int("num_attention_heads", symbol="H")


def _mixers(c: Config, hidden: Quantity, kinds: Sequence[str]) -> dict[str, Block]:
    heads = c.int("num_attention_heads", symbol="H")
    c.expect("use_head_wise_attn_gate", [True], "this family gates each head's output")
    bias = c.flag("attention_bias", default=False)
    groups = c.int("num_key_value_heads", "num_attention_groups", symbol="G")
    width = c.int("head_dim", default=128, symbol="dh")
    window = c.int("sliding_window", symbol="W") if WINDOW in kinds else None
    c.ignore("sliding_window")

    def one(count: Quantity, at: Quantity | None) -> Attention:
        if count.value % groups.value:
            raise c.fail("num_attention_heads", f"is {count.value}: {groups.value} must divide it")
        return Attention(
            D=hidden,
            H=count,
            G=groups,
            dh=width,
            dv=width,
            W=at,
            scope="full" if at is None else "window",
            qkv_bias=bias,
            o_bias=bias,
            qk_norm="head",
            own_gate="head",
            gate_names=("g_proj.weight", ""),
        )

    wide = _window_heads(c, heads)
    return {kind: one(wide, window) if kind == WINDOW else one(heads, None) for kind in set(kinds)}


def _experts(c: Config, hidden: Quantity) -> MoE:
    experts = c.int("n_routed_experts", "moe_num_experts", symbol="E")
    c.expect("moe_every_n_layer", [1], "moe_layers_enum names the layers with experts")
    c.expect("use_moe", [True], "this family has experts")
    c.expect("use_moe_router_bias", [True], "this family selects with a bias")
    c.expect("moe_router_activation", ["sigmoid"], "this family scores with a sigmoid")
    c.expect("norm_expert_weight", [True], "this family's chosen weights sum to one")
    c.expect("mlp_bias", [False], "feed-forward biases are not described")
    return MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "num_experts_per_tok", "moe_top_k"),
        F=c.int("moe_intermediate_size", symbol="F"),
        Fs=c.int("share_expert_dim", "share_expert_dims", symbol="Fs"),
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing(
            "sigmoid",
            selection_bias=True,
            renormalise=True,
            scale=c.number("moe_router_scaling_factor", default=1.0),
        ),
        stacked=True,
        names=NAMES,
    )


def _within(c: Config, layers: int, modules: int) -> Config:
    """The same file with per-layer lists cut to the layers, where they count MTP layers too."""
    long = {
        key: value[:layers]
        for key, value in c.data.items()
        if key in ("layer_types", "mlp_layer_types")
        and isinstance(value, list)
        and len(value) == layers + modules
    }
    if long:
        c.data = {**c.data, **long}
    return c


def _ahead(c: Config, layers: int, modules: int) -> list[tuple[str, bool]]:
    """Scope, and whether it holds experts, of each MTP layer.

    Files name them behind the layers of the model, in the same lists, or in lists of their own.
    """
    found: dict[str, list[Any]] = {}
    for key in ("layer_types", "mlp_layer_types"):
        both = c.data.get(key)
        long = isinstance(both, list) and len(both) == layers + modules
        own = c.list(f"mtp_{key}", length=modules, default=None)
        found[key] = list(both[layers:]) if long and own is None else own or []  # type: ignore[index]
    scope = found["layer_types"]
    if not scope and c.data.get("layer_types") is not None:
        raise c.fail("mtp_layer_types", "is missing: the kinds of the prediction layers")
    scope = scope or ["full_attention"] * modules
    if unknown := [word for word in scope if word not in WORDS]:
        raise c.fail("mtp_layer_types", f"holds {shown(unknown[0])}")
    sparse = [word == "sparse" for word in found["mlp_layer_types"]]
    sparse = sparse or _expert_layers(c, layers + modules)[layers:]
    return [(WORDS[word], experts) for word, experts in zip(scope, sparse, strict=True)]


def _mtp(
    c: Config,
    hidden: Quantity,
    layers: int,
    ahead: Sequence[tuple[str, bool]],
    mixers: Mapping[str, Block],
    moe: MoE,
) -> list[Group]:
    """A module for each entry of `ahead`, behind the model's layers in the checkpoint."""
    groups: list[Group] = []
    for i, (scope, experts) in enumerate(ahead):
        wide = c.int("intermediate_size", symbol="F") if not experts else None
        ffn: Block = moe if wide is None else DenseFFN(D=hidden, F=wide)
        one = Quantity.given(1, "modules", "modules", Source("config", "num_nextn_predict_layers"))
        groups += mtp_modules(
            c,
            hidden,
            pre_norm(hidden, mixers[scope], ffn),
            one,
            one,
            last="transformer.shared_head.norm",
            head="transformer.shared_head.output",
            first=layers + i,
        )
    return groups


def _text(c: Config, name: str, **how: Any) -> ModelSpec:
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    modules = int(c.int("num_nextn_predict_layers", default=0, least=0).value)
    ahead = _ahead(c, layers, modules) if modules else []
    c.ignore("mtp_layer_types", "mtp_mlp_layer_types")
    _within(c, layers, modules)
    c.ignore(*OTHER)
    kinds = scopes(c, layers, full=lambda i: True)
    mixers = _mixers(c, hidden, [*kinds, *(scope for scope, _ in ahead)])
    sparse = sparse_words(c, layers, lambda: _expert_layers(c, layers))
    c.ignore("moe_layers_enum")
    moe = _experts(c, hidden)
    mtp = _mtp(c, hidden, layers, ahead, mixers, moe)
    return layered(c, name, hidden, mixers, kinds, moe, sparse, mtp=mtp, **how)


def step3p5(c: Config) -> ModelSpec:
    """Read a Step-3.5 config: text only."""
    return _text(c, "step3p5")


def step3p7(c: Config) -> ModelSpec:
    """Read a Step-3.7 config: the text part; the vision tower is not counted."""
    text, how = text_part(c, ["step3p5"], vision_config="vision tower and projector")
    c.ignore("projector_bias", "understand_projector_stride", "vision_select_layer")
    return _text(text, "step3p7", **how)
