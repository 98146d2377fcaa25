"""Nemotron-H and Nemotron 3 (arXiv 2504.03624): a layer is Mamba-2, attention, an FFN or an MoE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moeplan.errors import near_miss
from moeplan.families.common import attention, decoder, layer_groups
from moeplan.families.deepseek import expert_groups
from moeplan.families.reader import Config, shown
from moeplan.model.basic import Embedding, Head, Norm, Projection, Residual
from moeplan.model.ffn import DenseFFN, ExpertNames, MoE, Routing
from moeplan.model.ops import Block, Component
from moeplan.model.spec import Group, ModelSpec
from moeplan.model.state_space import Mamba2
from moeplan.quantity import Quantity

__all__ = ["nemotron_h"]

MAMBA, ATTENTION, EXPERTS, DENSE = "mamba", "attention", "moe", "dense"
LETTERS = {"M": MAMBA, "*": ATTENTION, "E": EXPERTS, "-": DENSE}
WORDS = {
    "linear_attention": MAMBA,
    "mamba": MAMBA,
    "full_attention": ATTENTION,
    "attention": ATTENTION,
    "moe": EXPERTS,
    "mlp": DENSE,
}
EMBED = "backbone.embeddings.weight"
NAMES = ExpertNames(
    router="mixer.gate",
    experts="mixer.experts.{e}.",
    shared="mixer.shared_experts.",
    selection_bias="mixer.gate.e_score_correction_bias",
    latent=("mixer.fc1_latent_proj", "mixer.fc2_latent_proj"),
)


def _kinds(c: Config, words: Sequence[str], letters: str, default: Sequence[str]) -> list[str]:
    """The mixer of each layer, from a list of words or a pattern of letters."""
    key, given = c.raw(*words, letters, default=list(default))
    names: Mapping[str, str] = LETTERS if key == letters else WORDS
    if not isinstance(given, (list, str)) or not given:
        raise c.fail(key, f"is {shown(given)}: a mixer for each layer is needed")
    for word in given:
        if not isinstance(word, str) or word not in names:
            hint = near_miss(word, names) if isinstance(word, str) else ""
            allowed = ", ".join(repr(name) for name in names)
            raise c.fail(key, f"holds {shown(word)}: allowed are {allowed}{hint}")
    return [names[word] for word in given]


def _mamba(c: Config, hidden: Quantity) -> Mamba2:
    bits = {"float32": 32, "bfloat16": 16, "float16": 16}
    kind = c.choice("mamba_ssm_cache_dtype", allowed=bits, default="float32")
    c.expect("mamba_proj_bias", [c.flag("use_bias", default=False)], "use_bias decides")
    c.expect("mamba_hidden_act", ["silu"], "other activations are not described")
    c.ignore("expand", "use_mamba_kernels", "residual_in_fp32", "num_logits_to_keep")
    c.ignore(*(f"time_step_{what}" for what in ("min", "max", "floor", "limit")))
    return Mamba2(
        D=hidden,
        Hm=c.int("mamba_num_heads", symbol="Hm"),
        dm=c.int("mamba_head_dim", symbol="dm"),
        N=c.int("ssm_state_size", default=128, symbol="N"),
        G=c.int("n_groups", "mamba_n_groups", default=8, symbol="G"),
        w=c.int("conv_kernel", "mamba_d_conv", default=4, symbol="w"),
        chunk=c.int("chunk_size", "mamba_chunk_size", default=128, symbol="chunk"),
        conv_bias=c.flag("use_conv_bias", "mamba_conv_bias", default=True),
        bias=c.flag("use_bias", default=False),
        state_bits=bits[kind],
        prefix="mixer.",
    )


def _moe(c: Config, hidden: Quantity, activation: str, bias: bool) -> MoE:
    """Experts without gates and one shared expert; where asked for, in a latent."""
    c.expect("n_shared_experts", [1], "this family has one shared expert")
    c.ignore("moe_shared_expert_overlap")
    return MoE(
        D=hidden,
        E=c.int("n_routed_experts", "num_local_experts", symbol="E"),
        k=c.int("num_experts_per_tok", symbol="k"),
        F=c.int("moe_intermediate_size", symbol="F"),
        Fs=c.int("moe_shared_expert_intermediate_size", symbol="Fs"),
        Dl=c.optional("moe_latent_size", symbol="Dl"),
        gated=False,
        activation=activation,
        routing=Routing(
            "sigmoid",
            selection_bias=True,
            **expert_groups(c),
            group_score="top2_sum",
            renormalise=c.flag("norm_topk_prob", default=True),
            scale=c.number("routed_scaling_factor", default=1.0),
        ),
        shared_bias=bias,
        latent_bias=bias,
        names=NAMES,
    )


def _mixers(c: Config, hidden: Quantity, kinds: set[str]) -> dict[str, Block]:
    bias = c.flag("mlp_bias", default=False)
    activation = c.choice("mlp_hidden_act", allowed=("relu2", "silu", "gelu"), default="relu2")
    why = "the versions of this family disagree about it"
    c.expect("attention_bias", [False], why)
    c.expect("tie_word_embeddings", [False], why)
    c.expect("sliding_window", [0], "this family has no sliding windows")
    mixers: dict[str, Block] = {
        ATTENTION: attention(
            c,
            hidden,
            grouped=True,
            head_dim=128,
            rope=False,
            prefix="mixer.",
        ),
        MAMBA: _mamba(c, hidden),
    }
    if EXPERTS in kinds:
        mixers[EXPERTS] = _moe(c, hidden, activation, bias)
    if DENSE in kinds:
        mixers[DENSE] = DenseFFN(
            D=hidden,
            F=c.int("intermediate_size", symbol="F"),
            gated=False,
            bias=bias,
            activation=activation,
            prefix="mixer.",
        )
    c.ignore("intermediate_size")
    return mixers


PARTS: Mapping[str, Component] = {
    MAMBA: "attention",
    ATTENTION: "attention",
    EXPERTS: "routed_experts",
    DENSE: "dense_ffn",
}


def _mtp(
    c: Config, hidden: Quantity, kinds: Sequence[str], layers: Mapping[str, tuple[Block, ...]]
) -> list[Group]:
    """One module of several layers: the first takes the projected input, the last has a norm.

    Names as serving engines load them (mtp.layers.{i}); embedding and head are the model's own.
    """
    vocabulary = c.int("vocab_size", symbol="V")
    ins = (
        Embedding(vocabulary, hidden, "embeddings.weight", tied=EMBED),
        Norm(hidden, "enorm"),
        Norm(hidden, "hnorm"),
        Projection(I=(2 * hidden).named("I"), O=hidden, name="eh_proj"),
    )
    out = (Norm(hidden, "final_layernorm"), Head(vocabulary, hidden, "lm_head.weight", name="head"))
    groups = []
    for i, kind in enumerate(kinds):
        blocks = (*(ins if i == 0 else ()), *layers[kind], *(out if i == len(kinds) - 1 else ()))
        groups.append(Group(f"MTP {kind}", blocks, 1, (i,), "mtp.layers.{i}.", "mtp"))
    return groups


def nemotron_h(c: Config) -> ModelSpec:
    """Read a Nemotron-H or Nemotron 3 config; the pattern has a letter per layer."""
    hidden = c.int("hidden_size", symbol="D")
    kinds = _kinds(c, ("layers_block_type", "layer_types"), "hybrid_override_pattern", ())
    key = "num_hidden_layers"
    count = c.int(key, default=len(kinds), symbol="L")
    if count.value != len(kinds):
        raise c.fail(key, f"is {count.value}: the layers' pattern names {len(kinds)}")
    modules = c.int("num_nextn_predict_layers", default=0, least=0, most=1)
    ahead: list[str] = []
    words, pattern = ("mtp_layers_block_type",), "mtp_hybrid_override_pattern"
    if modules.value:
        ahead = _kinds(c, words, pattern, ["full_attention", "moe"])
    c.ignore(*words, pattern)
    mixers = _mixers(c, hidden, {*kinds, *ahead})
    layers = {
        kind: (Norm(hidden, "norm"), mixer, Residual(hidden, PARTS[kind]))
        for kind, mixer in mixers.items()
    }
    return decoder(
        c,
        hidden,
        layer_groups(
            [(kind,) for kind in kinds],
            lambda kind: layers[kind[0]],
            prefix="backbone.layers.{i}.",
            count=count,
        ),
        name="nemotron_h",
        embed=EMBED,
        norm="backbone.norm_f",
        mtp=_mtp(c, hidden, ahead, layers),
    )
