"""Tencent Hunyuan: Large (arXiv 2411.02265), with keys shared between layers, and A13B."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from moeplan.families.common import attention, decoder, layer_groups, pre_norm
from moeplan.families.reader import Config
from moeplan.model.attention import Attention
from moeplan.model.ffn import DenseFFN, ExpertNames, MoE, Routing
from moeplan.model.ops import Block
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity

__all__ = ["hunyuan", "hunyuan_v1_moe"]

OWN, SHARED = "attention", "attention (shared keys)"
NAMES = ExpertNames(router="mlp.gate.wg", shared="mlp.shared_mlp.")
_ABSENT = (  # parts of the class that these files switch off
    ("use_mla", [False], "multi-latent attention is not described for this family"),
    ("group_limited_greedy", [False], "selection in groups is not described for this family"),
    ("mlp_bias", [False], "feed-forward biases are not described"),
    ("norm_type", ["rms", "hf_rms", "fused"], "this family has RMS norms"),
    ("use_rotary_pos_emb", [True], "this family rotates queries and keys"),
    ("position_embedding_xdrope", [False], "this rotation is not described"),
    ("add_classification_head", [False], "a classification head is not described"),
)


class _Layer(NamedTuple):
    """What one layer's mixture of experts has; layers may differ."""

    E: Quantity
    k: Quantity
    F: Quantity
    shared: Quantity

    @property
    def name(self) -> str:
        return f"top-{self.k.value} of {self.E.value} x {self.F.value} + {self.shared.value}"


def _layers(c: Config, count: int, *, mixed: bool) -> list[_Layer]:
    """Experts, top-k, width and shared experts of each layer, from numbers or lists."""
    wide = c.int("intermediate_size", symbol="F")
    none = Quantity.given(0, "experts", "shared")
    layers = [
        _Layer(*values)
        for values in zip(
            c.per_layer("num_experts", "num_local_experts", layers=count, symbol="E"),
            c.per_layer("moe_topk", "num_experts_per_tok", layers=count, default=1, symbol="k"),
            c.per_layer("moe_intermediate_size", layers=count, default=wide, symbol="F"),
            c.per_layer("num_shared_expert", layers=count, default=1, symbol="shared")
            if mixed
            else (none,) * count,
            strict=True,
        )
    ]
    for layer in layers:
        if layer.k.value > layer.E.value:
            problem = f"holds {layer.k.value}: it must be at most the {layer.E.value} experts"
            raise c.fail("moe_topk", problem)
    return layers


def _mixers(
    c: Config, hidden: Quantity, count: int, *, norms: bool
) -> tuple[dict[str, Block], list[str]]:
    """Attention by kind, and the kind of each layer.

    With `use_cla` the first of every cla_share_factor layers projects keys and values, which the
    others read; each normalises them with a vector of its own.
    """
    bias = c.flag("attention_bias", default=False)
    own: Attention = attention(
        c,
        hidden,
        head_dim=_head_dim(c),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm="head" if norms else "none",
        norm_names=("query_layernorm", "key_layernorm"),
    )
    c.ignore("attention_head_dim")
    mixers: dict[str, Block] = {OWN: own}
    share = int(c.int("cla_share_factor", default=1).value)
    if not c.flag("use_cla", default=False) or share == 1:
        return mixers, [OWN] * count
    mixers[SHARED] = replace(own, shares_kv=True, norms_shared_keys=norms)
    return mixers, [SHARED if i % share else OWN for i in range(count)]


def _head_dim(c: Config) -> int | None:
    _, width = c.raw("attention_head_dim", default=None)
    return None if width is None else int(c.int("attention_head_dim").value)


def hunyuan(c: Config) -> ModelSpec:
    """Read a config of the model's own class (Hunyuan-Large, Hunyuan-A13B)."""
    mixed = c.flag("use_mixed_mlp_moe", default=False)
    return _read(c, mixed=mixed, norms=c.flag("use_qk_norm", default=False))


def hunyuan_v1_moe(c: Config) -> ModelSpec:
    """Read a config of transformers' class, which always has a shared expert and norms."""
    c.expect("use_mixed_mlp_moe", [True], "this class has a shared expert")
    c.expect("use_qk_norm", [True], "this class normalises queries and keys")
    return _read(c, mixed=True, norms=True)


def _read(c: Config, *, mixed: bool, norms: bool) -> ModelSpec:
    for key, allowed, why in _ABSENT:
        c.expect(key, allowed, why)
    c.ignore(*_OTHER)
    hidden = c.int("hidden_size", symbol="D")
    layers = c.int("num_hidden_layers", symbol="L")
    count = int(layers.value)
    wide = c.int("intermediate_size", symbol="F")
    activation = c.choice("hidden_act", allowed=("silu",), default="silu")
    mixers, scopes = _mixers(c, hidden, count, norms=norms)
    skipped = int(c.int("moe_layer_num_skipped", default=0, least=0).value)
    described = _layers(c, count, mixed=mixed)
    by_name = {layer.name: layer for layer in described}
    renormalise = c.flag("norm_topk_prob", default=True)

    def ffn(kind: tuple[str, ...]) -> Block:
        if kind[1] == "dense":
            return DenseFFN(D=hidden, F=wide, activation=activation)
        layer = by_name[kind[2]]
        return MoE(
            D=hidden,
            E=layer.E,
            k=layer.k,
            F=layer.F,
            Fs=(layer.shared * wide).named("Fs") if layer.shared.value else None,
            activation=activation,
            routing=Routing("softmax", renormalise=renormalise and layer.k.value > 1),
            names=NAMES,
        )

    kinds = [
        (scope, "moe", layer.name) if i >= skipped else (scope, "dense")
        for i, (scope, layer) in enumerate(zip(scopes, described, strict=True))
    ]
    groups = layer_groups(kinds, lambda k: pre_norm(hidden, mixers[k[0]], ffn(k)), count=layers)
    return decoder(c, hidden, groups, name="hunyuan")


# classification, image and video parts of the class, and keys that repeat others
_OTHER = (
    "org_vocab_size",
    "dense_list",
    "pool_type",
    "class_num",
    "skip_cls_token",
    "num_media_embeds",
    "anyres_pooling_size",
    "anyres_vit_max_image_size",
    "anyres_vit_two_views",
    "moe_random_routing_dropped_token",
    "routed_scaling_factor",
    "xdrope_section",
    "kv_lora_rank",
    "q_lora_rank",
    "qk_rope_head_dim",
    "qk_nope_head_dim",
    "v_head_dim",
    "n_group",
    "topk_group",
    *(f"{what}_{at}_id" for what in ("image", "video", "text", "im") for at in ("start", "end")),
    "image_token_id",
    "im_newline_id",
    "mask_init_id",
    "pad_id",
    *(
        f"vit_{what}"
        for what in (
            "add_patchemb_bias",
            "input_resolution",
            "mapping_type",
            "norm_type",
            "patch",
            "path",
            "remove_prenorm",
            "token",
            "type",
            "used_rms_norm",
        )
    ),
)
