"""DeepSeek: MoE-16B (arXiv 2401.06066), V2 (2405.04434), V3 (2412.19437); Kimi-K2 is a V3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from moeplan.families.common import attention, decoder, layer_groups, pre_norm, routed_by, selection
from moeplan.families.mtp import mtp_modules
from moeplan.families.reader import Config
from moeplan.model.ffn import DenseFFN, MoE, Routing
from moeplan.model.latent_attention import LatentAttention
from moeplan.model.ops import Block
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity

__all__ = [
    "deepseek",
    "deepseek_v2",
    "deepseek_v3",
    "expert_groups",
    "latent_attention",
    "layer_kinds",
    "moe_model",
    "routed_experts",
    "sigmoid_routing",
]

EXPERTS = ("n_routed_experts", "num_routed_experts", "num_local_experts", "num_experts")
SHARED = ("n_shared_experts", "num_shared_experts")
M = TypeVar("M", bound=LatentAttention)


_NO_QUERY_LATENT = ("kimi_linear",)  # families whose class has no query latent by default


def latent_attention(c: Config, kind: type[M], **more: Any) -> M:
    """Multi-latent attention; `q_lora_rank: null` means queries without a latent.

    kind: a block that has the fields of multi-latent attention, and those in `more`.
    """
    heads = c.int("num_attention_heads", symbol="H")
    kv_heads = c.optional("num_key_value_heads")
    if kv_heads is not None and kv_heads.value != heads.value:
        c.note(
            f"num_key_value_heads {kv_heads.value} is not used: all {heads.value} heads share "
            "one latent"
        )
    absent = "q_lora_rank" not in c.data and c.data.get("model_type") in _NO_QUERY_LATENT
    direct = absent or ("q_lora_rank" in c.data and c.data["q_lora_rank"] is None)
    c.ignore("q_lora_rank", "head_dim")
    nope, rope = c.int("qk_nope_head_dim", symbol="dn"), c.int("qk_rope_head_dim", symbol="dr")
    both = nope.value + rope.value
    c.expect("qk_head_dim", [both], "it is qk_nope_head_dim + qk_rope_head_dim")
    return kind(
        D=c.int("hidden_size", symbol="D"),
        H=heads,
        rq=None if direct else c.int("q_lora_rank", default=1536, symbol="rq"),
        rkv=c.int("kv_lora_rank", symbol="rkv"),
        dn=nope,
        dr=rope,
        dv=c.int("v_head_dim", symbol="dv"),
        bias=c.flag("attention_bias", default=False),
        **more,
    )


def _shared_width(c: Config, width: Quantity, *, default: int | None) -> Quantity | None:
    """Width of the shared experts together; null or 0 means none, absent means `default`."""
    named = [key for key in SHARED if key in c.data]
    if not named and default is None:
        c.int(*SHARED)  # says that the key is missing
    if (named and c.optional(*SHARED) is None) or (not named and default == 0):
        return None
    return (c.int(*SHARED, default=default, symbol="shared") * width).named("Fs")


def routed_experts(c: Config, routing: Routing, *, shared: int | None) -> MoE:
    """The experts of a layer; `shared` is the class's default number of shared ones."""
    experts = c.int(*EXPERTS, symbol="E")
    width = c.int("moe_intermediate_size", symbol="F")
    return MoE(
        D=c.int("hidden_size", symbol="D"),
        E=experts,
        k=selection(c, experts, "num_experts_per_tok"),
        F=width,
        Fs=_shared_width(c, width, default=shared),
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=routing,
    )


def expert_groups(c: Config, *, default: tuple[int, int] = (1, 1)) -> dict[str, Any]:
    """n_group and topk_group; where the file has neither, the class's defaults, noted."""
    experts = c.int(*EXPERTS)
    k = selection(c, experts, "num_experts_per_tok")
    if "n_group" in c.data:
        return routed_by(c, experts, k)
    if c.optional("topk_group") is not None:
        raise c.fail("n_group", "is missing although topk_group is set")
    groups, limit = default
    if experts.value % groups or k.value > limit * (experts.value // groups):
        raise c.fail(
            "n_group",
            f"is missing: the family's default of {limit} of {groups} groups does not fit "
            f"{experts.value} experts of which {k.value} are chosen",
        )
    if groups > 1:
        c.note(f"n_group and topk_group are absent: {groups} and {limit}, the family's defaults")
    return {"groups": groups, "group_limit": limit}


def sigmoid_routing(
    c: Config,
    *,
    groups: tuple[int, int],
    scale: float,
    renormalise: bool = True,
    words: Sequence[str] = ("sigmoid",),
) -> Routing:
    """Sigmoid scores, selected with a bias that training moves without gradients (V3, GLM-4.5).

    groups, scale, renormalise: the class's defaults. words: what files call these scores.
    """
    c.expect("scoring_func", words, "this family scores with a sigmoid")
    c.expect("topk_method", ["noaux_tc"], "this family selects with a bias, without auxiliary loss")
    return Routing(
        "sigmoid",
        selection_bias=True,
        **expert_groups(c, default=groups),
        group_score="top2_sum",
        renormalise=c.flag("norm_topk_prob", default=renormalise),
        scale=c.number("routed_scaling_factor", default=scale),
    )


def layer_kinds(
    c: Config, layers: int, *, dense: int, typed: bool = False
) -> list[tuple[str, ...]]:
    """Which layers hold experts: from first_k_dense_replace on, every moe_layer_freq-th.

    typed: the class also takes a word per layer (mlp_layer_types), which then decides.
    """
    if typed and "mlp_layer_types" in c:
        words = c.list("mlp_layer_types", length=layers)
        if any(word not in ("dense", "sparse") for word in words) or "sparse" not in words:
            raise c.fail("mlp_layer_types", "needs 'dense' or 'sparse' for each layer, one sparse")
        c.ignore("first_k_dense_replace", "moe_layer_freq")
        return [("attention", "moe" if word == "sparse" else "dense") for word in words]
    first = int(c.int("first_k_dense_replace", default=dense, least=0).value)
    every = int(c.int("moe_layer_freq", default=1).value)
    if first > layers:
        raise c.fail("first_k_dense_replace", f"is {first}: the model has {layers} layers")
    moe = [i >= first and i % every == 0 for i in range(layers)]
    if not any(moe):
        raise c.fail("first_k_dense_replace", f"is {first}: it leaves no layer with experts")
    return [("attention", "moe" if here else "dense") for here in moe]


def moe_model(
    c: Config,
    name: str,
    mixer: Block | Mapping[str, Block],
    moe: MoE,
    *,
    dense: int,
    mtp: int = 0,
    typed: bool = False,
    mixer_kinds: Sequence[str] = (),
) -> ModelSpec:
    """A decoder whose first layers are dense; `dense` and `mtp` are the class's defaults.

    Where layers differ in their mixers, `mixer` holds them by name and `mixer_kinds` a name per
    layer; an MTP module has the first of `mixer`.
    """
    hidden = c.int("hidden_size", symbol="D")
    layers = c.int("num_hidden_layers", symbol="L")
    c.expect("mlp_bias", [False], "feed-forward biases are not described")
    kinds = layer_kinds(c, int(layers.value), dense=dense, typed=typed)
    mixers = mixer if isinstance(mixer, Mapping) else {"attention": mixer}
    if mixer_kinds:
        kinds = [(name, *rest) for name, (_, *rest) in zip(mixer_kinds, kinds, strict=True)]
    ffn = DenseFFN(D=hidden, F=c.int("intermediate_size", symbol="F"))

    def build(kind: tuple[str, ...]) -> tuple[Block, ...]:
        return pre_norm(hidden, mixers[kind[0]], moe if "moe" in kind else ffn)

    modules = c.int(
        "num_nextn_predict_layers", "num_mtp_layers", default=mtp, symbol="modules", least=0
    )
    return decoder(
        c,
        hidden,
        layer_groups(kinds, build, count=layers),
        name=name,
        mtp=mtp_modules(c, hidden, build((next(iter(mixers)), "moe")), layers, modules),
    )


def deepseek(c: Config) -> ModelSpec:
    """Read a DeepSeekMoE-16B config: multi-head attention, softmax scores, shared experts."""
    c.expect("scoring_func", ["softmax"], "this family scores with a softmax")
    c.expect("num_nextn_predict_layers", [0], "this family has no multi-token prediction")
    bias = c.flag("attention_bias", default=False)
    routing = Routing(renormalise=c.flag("norm_topk_prob", default=False))
    mixer = attention(c, c.int("hidden_size", symbol="D"), qkv_bias=bias, o_bias=bias)
    return moe_model(c, "deepseek", mixer, routed_experts(c, routing, shared=None), dense=0)


def deepseek_v2(c: Config) -> ModelSpec:
    """Read a DeepSeek-V2 config: multi-latent attention, groups ranked by their best expert."""
    c.expect("scoring_func", ["softmax"], "this family scores with a softmax")
    c.expect("num_nextn_predict_layers", [0], "this family has no multi-token prediction")
    limited = c.optional("n_group")
    several = limited is not None and limited.value > 1
    methods = ("greedy", "gready", "group_limited_greedy")  # "gready": the original's own default
    if "topk_method" not in c and several:
        c.note("topk_method is absent: n_group is set, so the selection is limited to groups")
    fallback = "group_limited_greedy" if several else "greedy"
    method = c.choice("topk_method", allowed=methods, default=fallback)
    groups = expert_groups(c) if method == "group_limited_greedy" else {}
    c.ignore("n_group", "topk_group")
    routing = Routing(
        **groups,
        renormalise=c.flag("norm_topk_prob", default=False),
        scale=c.number("routed_scaling_factor", default=1.0),
    )
    moe = routed_experts(c, routing, shared=None)
    return moe_model(c, "deepseek_v2", latent_attention(c, LatentAttention), moe, dense=0)


def deepseek_v3(c: Config) -> ModelSpec:
    """Read a DeepSeek-V3, DeepSeek-R1 or Kimi-K2 config."""
    routing = sigmoid_routing(c, groups=(8, 4), scale=2.5)
    c.ignore("rope_interleave")
    moe = routed_experts(c, routing, shared=1)
    return moe_model(c, "deepseek_v3", latent_attention(c, LatentAttention), moe, dense=3, mtp=1)
