"""ERNIE 4.5 (Baidu): softmax scores with a selection bias, shared experts in the smaller models."""

from __future__ import annotations

from dataclasses import replace

from moeplan.families.common import attention, decoder, layer_groups, pre_norm, selection
from moeplan.families.reader import Config
from moeplan.model.basic import Embedding, Head, Norm, Projection
from moeplan.model.ffn import DenseFFN, ExpertNames, MoE, Routing
from moeplan.model.ops import Block
from moeplan.model.spec import Group, ModelSpec
from moeplan.quantity import Quantity

__all__ = ["ernie", "ernie4_5_moe"]

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


def _read(c: Config, layers: Quantity, *, tied: bool, name: str) -> ModelSpec:
    hidden = c.int("hidden_size", symbol="D")
    bias = c.flag("use_bias", default=False)
    mixer = attention(c, hidden, grouped=True, qkv_bias=bias, o_bias=bias)
    dense = DenseFFN(D=hidden, F=c.int("intermediate_size", symbol="F"), bias=bias)
    moe = _moe(c, hidden, bias)
    c.ignore("moe_norm_min")

    def build(kind: tuple[str, ...]) -> tuple[Block, ...]:
        return pre_norm(hidden, mixer, moe if "moe" in kind else dense)

    kinds = [("attention", "moe" if s else "dense") for s in _sparse(c, int(layers.value))]
    return decoder(
        c,
        hidden,
        layer_groups(kinds, build, count=layers),
        name=name,
        tied_default=tied,
        head_bias=bias,
        mtp=_mtp(c, hidden, build(("attention", "dense")), bias=bias, tied=tied),
    )


def ernie4_5_moe(c: Config) -> ModelSpec:
    """Read an ERNIE-4.5 text config of a released checkpoint."""
    tied = c.flag("tie_word_embeddings", default=True)
    layers = c.int("num_hidden_layers", symbol="L")
    return _read(c, layers, tied=tied, name="ernie4_5_moe")


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
    spec = _read(c, layers, tied=False, name="ernie")
    return replace(spec, notes=(*spec.notes, "a pre-training file: names of the released model"))
