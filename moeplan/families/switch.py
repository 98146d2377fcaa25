"""Switch Transformers (arXiv 2101.03961): a T5 encoder and decoder with top-1 experts."""

from __future__ import annotations

from dataclasses import replace

from moeplan.families.common import layer_groups
from moeplan.families.quantization import read_checkpoint
from moeplan.families.reader import Config
from moeplan.model.attention import Attention
from moeplan.model.basic import Embedding, Head, Norm, Residual
from moeplan.model.ffn import DenseFFN, ExpertNames, MoE, Routing
from moeplan.model.ops import Block
from moeplan.model.spec import Group, ModelSpec, Role
from moeplan.quantity import Quantity

__all__ = ["switch_transformers"]

SHARED = "shared.weight"
PROJECTIONS = ("q", "k", "v", "o")


def _sparse_layers(c: Config, side: str, layers: Quantity, layers_key: str) -> list[bool]:
    """Which layers hold experts: with a step of layers // sparse layers, each step's second.

    The step of 1 makes every layer sparse. The file's own `*_sparse_step` is derived from the two
    counts by the model's class; a file whose counts do not give what it says is refused.
    """
    key = f"num_sparse_{side}_layers"
    sparse, total = int(c.int(key, default=3).value), int(layers.value)
    if sparse > total:
        raise c.fail(key, f"is {sparse}, but {layers_key} is {total}: the file contradicts itself")
    step = total // sparse
    c.expect(f"{side}_sparse_step", [step], f"{layers_key} {total} // {key} {sparse} gives {step}")
    chosen = [step == 1 or i % step == 1 for i in range(total)]
    if sum(chosen) != sparse:
        raise c.fail(
            key,
            f"is {sparse} of {total} layers: a step of {step} makes {sum(chosen)} layers sparse",
        )
    return chosen


def _norm(hidden: Quantity, place: int) -> Norm:
    return Norm(hidden, f"layer.{place}.layer_norm")


def _feed_forward(c: Config, hidden: Quantity, place: int) -> tuple[DenseFFN, MoE]:
    """The dense and the sparse feed-forward block of a side, at its place in the layer."""
    width = c.int("d_ff", symbol="F")
    activation = c.choice("dense_act_fn", allowed=("relu", "gelu", "gelu_new"), default="relu")
    at = f"layer.{place}.mlp."
    dense = DenseFFN(
        D=hidden,
        F=width,
        gated=False,
        activation=activation,
        prefix=at,
        names=("", "wi", "wo"),
    )
    moe = MoE(
        D=hidden,
        E=c.int("num_experts", symbol="E"),
        k=c.int("num_selected_experts", default=1, symbol="k", most=1),
        F=width,
        gated=False,
        activation=activation,
        routing=Routing("softmax"),
        router_bias=c.flag("router_bias", default=False),
        names=ExpertNames(
            router=f"{at}router.classifier",
            experts=f"{at}experts.expert_{{e}}.",
            up="wi",
            down="wo",
        ),
    )
    return dense, moe


def _stack(
    c: Config, hidden: Quantity, side: str, layers: Quantity, layers_key: str
) -> list[Group]:
    """The layers of the encoder or decoder; the first holds the relative position table."""
    decoding = side == "decoder"
    width = c.int("d_kv", symbol="dh")
    heads = c.int("num_heads", symbol="H")
    mixer = Attention(
        D=hidden,
        H=heads,
        G=heads,
        dh=width,
        dv=width,
        causal=decoding,
        rope=False,
        prefix="layer.0.SelfAttention.",
        names=PROJECTIONS,
    )
    first = replace(mixer, position_buckets=c.int("relative_attention_num_buckets", default=32))
    crossing = replace(mixer, causal=False, cross=True, prefix="layer.1.EncDecAttention.")
    last = 2 if decoding else 1
    dense, moe = _feed_forward(c, hidden, last)
    cross = (_norm(hidden, 1), crossing, Residual(hidden, "attention")) if decoding else ()

    def build(kind: tuple[str, ...]) -> tuple[Block, ...]:
        sparse = "moe" in kind
        return (
            _norm(hidden, 0),
            first if "position table" in kind else mixer,
            Residual(hidden, "attention"),
            *cross,
            _norm(hidden, last),
            moe if sparse else dense,
            Residual(hidden, "routed_experts" if sparse else "dense_ffn"),
        )

    kinds = [
        (side, *(("position table",) if i == 0 else ()), "moe" if sparse else "dense")
        for i, sparse in enumerate(_sparse_layers(c, side, layers, layers_key))
    ]
    role: Role = "model" if decoding else "encoder"
    return layer_groups(kinds, build, prefix=f"{side}.block.{{i}}.", role=role, count=layers)


def _final_norm(hidden: Quantity, side: str) -> Group:
    norm = (Norm(hidden, f"{side}.final_layer_norm"),)
    return Group(f"{side} final norm", norm, role="model" if side == "decoder" else "encoder")


def switch_transformers(c: Config) -> ModelSpec:
    """Read a Switch Transformers config; one table serves encoder, decoder and output."""
    c.expect("is_encoder_decoder", [True], "only the encoder-decoder is described")
    c.expect("is_gated_act", [False], "experts of this family are not gated")
    c.expect("feed_forward_proj", ["relu", "gelu"], "experts of this family are not gated")
    c.ignore("router_dtype", "router_ignore_padding_tokens", "relative_attention_max_distance")
    hidden = c.int("d_model", "hidden_size", symbol="D")
    vocabulary = c.int("vocab_size", symbol="V")
    encoder = c.int("num_layers", "num_hidden_layers", symbol="L")
    symmetric = "num_decoder_layers" in c.data and c.data["num_decoder_layers"] is None
    decoder_key = "num_layers" if symmetric else "num_decoder_layers"
    c.ignore("num_decoder_layers")
    decoder = encoder if symmetric else c.int("num_decoder_layers", symbol="L")
    # transformers 4 then unties the head alone, transformers 5 every table
    c.expect("tie_word_embeddings", [True], "which tables are then apart is not agreed on")
    tables = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    groups = (
        Group("embedding", (Embedding(vocabulary, hidden, SHARED, aliases=(tables[1],)),)),
        Group(
            "encoder embedding", (Embedding(vocabulary, hidden, tables[0], SHARED),), role="encoder"
        ),
        *_stack(c, hidden, "encoder", encoder, "num_layers"),
        _final_norm(hidden, "encoder"),
        *_stack(c, hidden, "decoder", decoder, decoder_key),
        _final_norm(hidden, "decoder"),
        Group("head", (Head(vocabulary, hidden, tied=SHARED),)),
    )
    _full_sparse(c, groups)
    checkpoint = read_checkpoint(c)
    unread = c.finish()
    return ModelSpec(
        name="switch_transformers",
        family="switch_transformers",
        groups=groups,
        checkpoint=checkpoint,
        source=c.path,
        unread=unread,
        notes=tuple(c.notes),
    )


def _full_sparse(c: Config, groups: tuple[Group, ...]) -> None:
    """`is_full_sparse` must not contradict what the counts say."""
    full = all("moe" in g.name for g in groups if g.is_layer)
    if c.flag("is_full_sparse", default=full) and not full:
        raise c.fail("is_full_sparse", "is true, but the layer counts leave some layers dense")
