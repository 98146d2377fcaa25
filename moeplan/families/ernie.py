"""ERNIE 4.5 (Baidu): softmax scores with a selection bias, shared experts in the smaller models.

The vision-language models have experts for images beside those for text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from moeplan.families.common import attention, decoder, layer_groups, pre_norm, selection
from moeplan.families.reader import Config, shown
from moeplan.families.stack import sparse_words, text_part
from moeplan.model.basic import Embedding, Head, Norm, Projection
from moeplan.model.ffn import DenseFFN, ExpertNames, MoE, Routing
from moeplan.model.modality_experts import ModalityMoE
from moeplan.model.ops import Block
from moeplan.model.spec import Group, ModelSpec
from moeplan.quantity import Quantity, Source

__all__ = ["ernie", "ernie4_5_moe", "ernie4_5_moe_vl", "ernie4_5_vl_moe"]

NAMES = ExpertNames(
    selection_bias="mlp.moe_statics.e_score_correction_bias", selection_dims=("1", "E")
)
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def _moe(c: Config, hidden: Quantity, bias: bool) -> MoE:
    experts = c.int("moe_num_experts", "num_experts", symbol="E")
    width = c.int("moe_intermediate_size", symbol="F")
    shared = c.int("moe_num_shared_experts", default=2, symbol="shared", least=0)
    return MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "moe_k", "num_experts_per_tok"),
        F=width,
        Fs=(shared * width).named("Fs") if shared.value else None,
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing("softmax", selection_bias=True, renormalise=True),
        shared_bias=bias,
        names=NAMES,
    )


def _sparse(c: Config, layers: int) -> list[bool]:
    """Which layers hold experts: every moe_layer_interval-th from the start to the end index."""
    every = int(c.int("moe_layer_interval", default=1).value)
    first = int(c.int("moe_layer_start_index", default=1, least=0).value)
    last = int(c.int("moe_layer_end_index", default=-1, least=-1).value)
    last = layers - 1 if last == -1 else last
    sparse = [(i + 1) % every == 0 and first <= i <= last for i in range(layers)]
    if not any(sparse):
        raise c.fail("moe_layer_start_index", f"is {first}: it leaves no layer with experts")
    return sparse


def _mtp(
    c: Config, hidden: Quantity, layer: tuple[Block, ...], *, bias: bool, tied: bool
) -> list[Group]:
    """Modules beside the stack: embedding and state are normalised, projected, run a dense layer.

    Names as in the released checkpoints, which keep these tensors under model.mtp_*.
    """
    count = c.int("num_nextn_predict_layers", default=0, symbol="modules", least=0)
    vocabulary = c.int("vocab_size", symbol="V")
    groups = []
    for i in range(int(count.value)):
        ins = (
            Embedding(vocabulary, hidden, f"mtp_embed.{i}.weight", tied=EMBED),
            Norm(hidden, f"mtp_emb_norm.{i}"),
            Norm(hidden, f"mtp_hidden_norm.{i}"),
            Projection(I=(2 * hidden).named("I"), O=hidden, name=f"mtp_linear_proj.{i}", bias=bias),
        )
        out = (Head(vocabulary, hidden, EMBED if tied else HEAD, name=f"mtp_head.{i}"),)
        groups += [
            Group("MTP input", ins, prefix="model.", role="mtp"),
            Group("MTP layer", layer, 1, (i,), "model.mtp_block.{i}.", "mtp"),
            Group("MTP output", out, prefix="model.", role="mtp"),
        ]
    return groups


def _read(
    c: Config,
    layers: Quantity,
    moe: MoE,
    sparse: Sequence[bool],
    *,
    tied: bool,
    name: str,
    **how: Any,
) -> ModelSpec:
    hidden = c.int("hidden_size", symbol="D")
    bias = c.flag("use_bias", default=False)
    mixer = attention(c, hidden, grouped=True, qkv_bias=bias, o_bias=bias)
    dense = DenseFFN(D=hidden, F=c.int("intermediate_size", symbol="F"), bias=bias)
    c.ignore("moe_norm_min")

    def build(kind: tuple[str, ...]) -> tuple[Block, ...]:
        return pre_norm(hidden, mixer, moe if "moe" in kind else dense)

    kinds = [("attention", "moe" if s else "dense") for s in sparse]
    return decoder(
        c,
        hidden,
        layer_groups(kinds, build, count=layers),
        name=name,
        tied_default=tied,
        head_bias=bias,
        mtp=_mtp(c, hidden, build(("attention", "dense")), bias=bias, tied=tied),
        **how,
    )


def _text(c: Config, layers: Quantity, *, tied: bool, name: str) -> ModelSpec:
    hidden = c.int("hidden_size", symbol="D")
    moe = _moe(c, hidden, c.flag("use_bias", default=False))
    return _read(c, layers, moe, _sparse(c, int(layers.value)), tied=tied, name=name)


def ernie4_5_moe(c: Config) -> ModelSpec:
    """Read an ERNIE-4.5 text config of a released checkpoint."""
    tied = c.flag("tie_word_embeddings", default=True)
    layers = c.int("num_hidden_layers", symbol="L")
    return _text(c, layers, tied=tied, name="ernie4_5_moe")


def _pair(c: Config, key: str, default: Any, *, least: int = 0) -> tuple[int, int]:
    """A number for text and one for images: a list of two, or one that holds for both."""
    _, value = c.raw(key, default=default)
    pair = value if isinstance(value, list) else [value, value]
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= least for n in pair)
    if len(pair) != 2 or not whole:
        raise c.fail(
            key, f"is {shown(value)}: a whole number for text and one for images is needed"
        )
    return pair[0], pair[1]


def _modality_moe(c: Config, hidden: Quantity) -> ModalityMoE:
    """Two sets of experts of equal number; shared experts are as wide as those of text."""
    number, beside = _pair(c, "moe_num_experts", 64, least=1)
    if number != beside:
        raise c.fail("moe_num_experts", "differs for text and images, which is not described")
    c.expect("use_bias", [False], "experts of two modalities have no biases here")
    width, narrow = _pair(c, "moe_intermediate_size", [1536, 512], least=1)

    def size(key: str, value: int, symbol: str) -> Quantity:
        known = Source("config", f"{c.prefix}{key}") if key in c else _DEFAULT
        return Quantity.given(value, symbol=symbol, source=known)

    experts = size("moe_num_experts", number, "E")
    wide = size("moe_intermediate_size", width, "F")
    shared = c.int("moe_num_shared_experts", default=2, symbol="shared", least=0)
    return ModalityMoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "moe_k", default=6),
        F=wide,
        Fv=size("moe_intermediate_size", narrow, "Fv"),
        Fs=(shared * wide).named("Fs") if shared.value else None,
        activation=c.choice("hidden_act", allowed=("silu",), default="silu"),
        routing=Routing("softmax", selection_bias=True, renormalise=True),
        names=NAMES._replace(selection_dims=("2", "E")),
    )


_DEFAULT = Source("assumed", "the key is absent: the family's default")
_IMAGES = "experts and router of images are in the total, and no text token touches them"


def _vision_language(c: Config, outer: Config, name: str, towers: tuple[str, ...]) -> ModelSpec:
    layers = c.int("num_hidden_layers", symbol="L")
    count = int(layers.value)
    moe = _modality_moe(c, c.int("hidden_size", symbol="D"))
    sparse = sparse_words(c, count, lambda: _sparse_pair(c, count))
    c.ignore("rope_3d", "freq_allocation", "multimodel_experts", "moe_use_aux_free")
    how = {"wrapper": outer, "not_counted": towers, "notes": (_IMAGES,)}
    return _read(c, layers, moe, sparse, tied=True, name=name, **how)


def _sparse_pair(c: Config, layers: int) -> list[bool]:
    """Which layers hold experts of both modalities, from keys that older files have."""
    every = int(c.int("moe_layer_interval", default=1).value)
    firsts = _pair(c, "moe_layer_start_index", 1)
    lasts = _pair(c, "moe_layer_end_index", -1, least=-1)
    text, images = (
        [
            (i + 1) % every == 0 and first <= i <= (layers - 1 if last == -1 else last)
            for i in range(layers)
        ]
        for first, last in zip(firsts, lasts, strict=True)
    )
    if text != images:
        raise c.fail("moe_layer_start_index", "gives text and images experts in different layers")
    return text


def ernie4_5_vl_moe(c: Config) -> ModelSpec:
    """Read an ERNIE 4.5 VL config: the text part with the experts of both modalities."""
    text, how = text_part(c, ["ernie4_5_vl_moe_text"], vision_config="vision tower and resampler")
    return _vision_language(text, c, "ernie4_5_vl_moe", how["not_counted"])


def ernie4_5_moe_vl(c: Config) -> ModelSpec:
    """Read the flat config with which ERNIE 4.5 VL was first released."""
    c.ignore("vision_config", "pixel_hidden_size", "spatial_conv_size", "temporal_conv_size")
    c.ignore("im_patch_id", "moe_gate", "use_temporal_conv", "modality_detach", "moe_group")
    c.ignore("moe_multimodal_dispatch_use_allgather")  # how tokens are sent in training
    return _vision_language(c, c, "ernie4_5_moe_vl", ("vision tower and resampler",))


def ernie(c: Config) -> ModelSpec:
    """Read a pre-training config of ERNIE 4.5; tensors get the released checkpoints' names.

    Pipelines are padded with layers that remove_tail_layer takes off again.
    """
    c.expect("use_rmsnorm", [True], "this family has RMS norms")
    c.expect("moe_gate", ["top2_fused", "topk"], "this gate is not described")
    c.ignore("moe_capacity", "use_recompute", "use_ep_comm_overlap", "moe_aux_loss_lambda")
    layers = c.int("num_hidden_layers", symbol="L")
    _, removed = c.raw("remove_tail_layer", default=0)
    if removed is not False and removed != 0:
        tail = 1 if removed is True else int(c.int("remove_tail_layer").value)
        if tail >= layers.value:
            raise c.fail("remove_tail_layer", f"is {tail}: the file has {layers.value} layers")
        layers = (layers - tail).named("L")
    spec = _text(c, layers, tied=False, name="ernie")
    return replace(spec, notes=(*spec.notes, "a pre-training file: names of the released model"))
