"""Step-3 (arXiv 2507.19427): queries from a latent over one key-value head, a shared expert."""

from __future__ import annotations

from typing import Any

from moeplan.families.common import decoder, layer_groups, pre_norm, selection
from moeplan.families.reader import Config
from moeplan.model.attention import Attention
from moeplan.model.ffn import DenseFFN, ExpertNames, MoE, Routing
from moeplan.model.ops import Block
from moeplan.model.spec import ModelSpec
from moeplan.quantity import Quantity

__all__ = ["step3_text", "step3_vl"]

NAMES = ExpertNames(router="moe.gate", experts="moe.", shared="share_expert.")


def _attention(c: Config, hidden: Quantity) -> Attention:
    """Multi-matrix factorisation attention: queries are projected twice, with a norm between."""
    width = c.int("head_dim", symbol="dh")
    return Attention(
        D=hidden,
        H=c.int("num_attention_heads", symbol="H"),
        G=c.int("num_attention_groups", symbol="G", most=1),
        dh=width,
        dv=width,
        rq=c.int("share_q_dim", symbol="rq"),
    )


def _sparse(c: Config, layers: int) -> list[bool]:
    """Which layers hold experts: those in moe_layers_enum, or all but the first."""
    _, text = c.raw("moe_layers_enum", default=None)
    if text is None:
        return [i > 0 for i in range(layers)]
    try:
        places = {int(word) for word in text.split(",")} if isinstance(text, str) else set(text)
    except (TypeError, ValueError):
        places = {-1}
    if not places <= set(range(layers)):
        raise c.fail("moe_layers_enum", f"needs places of layers from 0 to {layers - 1}")
    return [i in places for i in range(layers)]


def _text(c: Config, **how: Any) -> ModelSpec:
    hidden = c.int("hidden_size", symbol="D")
    layers = c.int("num_hidden_layers", symbol="L")
    experts = c.int("moe_num_experts", symbol="E")
    c.expect("moe_every_n_layer", [1], "moe_layers_enum names the layers with experts")
    c.expect("use_moe", [True], "this family has experts")
    c.ignore("max_position_embedding", "allgather_dtype", "norm_eps", "use_im_start_end")
    mixer = _attention(c, hidden)
    moe = MoE(
        D=hidden,
        E=experts,
        k=selection(c, experts, "moe_top_k"),
        F=c.int("moe_intermediate_size", symbol="F"),
        Fs=c.int("share_expert_dim", symbol="Fs"),
        routing=Routing("softmax", renormalise=c.flag("norm_expert_weight", default=True)),
        stacked=True,
        names=NAMES,
    )
    dense = DenseFFN(D=hidden, F=c.int("intermediate_size", symbol="F"))

    def build(kind: tuple[str, ...]) -> tuple[Block, ...]:
        return pre_norm(hidden, mixer, moe if "moe" in kind else dense)

    kinds = [("attention", "moe" if s else "dense") for s in _sparse(c, int(layers.value))]
    return decoder(c, hidden, layer_groups(kinds, build, count=layers), **how)


def step3_text(c: Config) -> ModelSpec:
    """Read the text part of Step-3 as a model of its own."""
    return _text(c, name="step3_text")


def step3_vl(c: Config) -> ModelSpec:
    """Read a Step-3 config: the text part; the vision tower is not counted."""
    text = c.sub("text_config")
    assert text is not None
    text.expect("model_type", ["step3_text"], "the text part is of another family")
    c.ignore("vision_config", "understand_projector_stride", "projector_bias")
    c.ignore("vision_select_layer", "image_token_len", "patch_token_len", "image_token_id")
    return _text(
        text, name="step3", wrapper=c, not_counted=("vision tower and projector (vision_config)",)
    )
