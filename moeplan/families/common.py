"""What families share: the frame of a decoder, the usual checks, the checkpoint's formats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from moeplan.errors import near_miss
from moeplan.families.quantization import read_checkpoint
from moeplan.families.reader import Config, shown
from moeplan.model.attention import Attention
from moeplan.model.basic import Embedding, Head, Norm, Residual
from moeplan.model.ffn import MoE
from moeplan.model.ops import Block, Component
from moeplan.model.spec import Group, ModelSpec, Role
from moeplan.quantity import Quantity, Source

__all__ = [
    "attention",
    "decoder",
    "layer_groups",
    "layer_types",
    "pre_norm",
    "rotated",
    "routed_by",
    "selection",
]


def attention(
    c: Config,
    hidden: Quantity,
    *,
    grouped: bool = False,
    head_dim: int | None = None,
    **how: Any,
) -> Attention:
    """Grouped-query attention from the usual keys, with their consistency checked.

    grouped: the family's class groups heads unless told otherwise, so num_key_value_heads must be
    given (absent, it means one key-value head per query head elsewhere). head_dim: the class's
    default; None where it is hidden_size / num_attention_heads.
    """
    heads = c.int("num_attention_heads", symbol="H")
    if grouped:
        kv_heads = c.int("num_key_value_heads", symbol="G")
    else:
        kv_heads = c.int("num_key_value_heads", default=heads, symbol="G")
    if heads.value % kv_heads.value:
        raise c.fail(
            "num_key_value_heads",
            f"is {kv_heads.value}: it must divide num_attention_heads ({heads.value})",
        )
    _, given = c.raw("head_dim", default=head_dim)
    if given is not None:
        width = c.int("head_dim", default=head_dim, symbol="dh")
    else:
        if hidden.value % heads.value:
            raise c.fail(
                "num_attention_heads",
                f"is {heads.value}: it must divide hidden_size ({hidden.value}) "
                "where head_dim is absent",
            )
        width = (hidden // heads).named("dh")
    return Attention(D=hidden, H=heads, G=kv_heads, dh=width, dv=width, **how)


def selection(c: Config, experts: Quantity, *keys: str, **how: Any) -> Quantity:
    """Top-k, at most the number of experts."""
    k = c.int(*keys, symbol="k", **how)
    if k.value > experts.value:
        raise c.fail(keys[0], f"is {k.value}: it must be at most the {experts.value} experts")
    return k


def rotated(c: Config, mixer: Attention, default: float) -> Attention:
    """`mixer` with dr, the rotated dimensions of a head, from partial_rotary_factor.

    The key stands in `rope_parameters` or beside it; `default` is the class's.
    """
    rope = c.sub("rope_parameters", required=False)
    if rope is not None:
        rope.ignore(*rope.data)
    place = rope if rope is not None and _ROTATED in rope else c
    factor = place.number(_ROTATED, default=default)
    if not 0 < factor <= 1:
        raise place.fail(_ROTATED, f"is {factor}: it must be above 0 and at most 1")
    source = Source("config", f"{place.prefix}{_ROTATED} of head_dim")
    if _ROTATED not in place:
        source = Source("assumed", f"{_ROTATED} is absent: {default}, the family's default")
    width = int(mixer.values["dh"] * factor)
    return replace(mixer, dr=Quantity.given(width, symbol="dr", source=source))


_ROTATED = "partial_rotary_factor"


def layer_types(
    c: Config, layers: int, kinds: Mapping[str, str], default: Sequence[str]
) -> list[str]:
    """A kind per layer: the words of `layer_types` in our terms, `default` where it is absent."""
    words = c.list("layer_types", length=layers, default=None)
    if words is None:
        return list(default)
    for word in words:
        if not isinstance(word, str) or word not in kinds:
            hint = near_miss(word, kinds) if isinstance(word, str) else ""
            allowed = ", ".join(repr(kind) for kind in kinds)
            raise c.fail("layer_types", f"holds {shown(word)}: allowed are {allowed}{hint}")
    return [kinds[word] for word in words]


def routed_by(c: Config, experts: Quantity, k: Quantity) -> dict[str, int]:
    """n_group and topk_group of group-limited routing, checked against E and k."""
    groups = c.optional("n_group")
    limit = c.optional("topk_group")
    if groups is None or groups.value == 1:
        return {"groups": 1, "group_limit": 1}
    if experts.value % groups.value:
        raise c.fail("n_group", f"is {groups.value}: it must divide the {experts.value} experts")
    if limit is None:
        raise c.fail("topk_group", "is missing although n_group is set")
    if limit.value > groups.value:
        raise c.fail("topk_group", f"is {limit.value}: it must be at most n_group ({groups.value})")
    if k.value > limit.value * (experts.value // groups.value):
        raise c.fail(
            "topk_group", f"is {limit.value}: its groups hold fewer than {k.value} experts"
        )
    return {"groups": int(groups.value), "group_limit": int(limit.value)}


def pre_norm(
    hidden: Quantity,
    mixer: Block,
    ffn: Block,
    names: tuple[str, str] = ("input_layernorm", "post_attention_layernorm"),
    *,
    bias: bool = False,
) -> tuple[Block, ...]:
    """A layer in the usual order: norm, mixer, residual, norm, feed-forward, residual."""
    part: Component = "routed_experts" if isinstance(ffn, MoE) else "dense_ffn"
    return (
        Norm(hidden, names[0], bias=bias),
        mixer,
        Residual(hidden, "attention"),
        Norm(hidden, names[1], bias=bias),
        ffn,
        Residual(hidden, part),
    )


def layer_groups(
    kinds: Sequence[tuple[str, ...]],
    build: Callable[[tuple[str, ...]], tuple[Block, ...]],
    *,
    prefix: str = "model.layers.{i}.",
    role: Role = "model",
    count: Quantity | None = None,
    first: int = 0,
) -> list[Group]:
    """Gather equal layers: `kinds` holds a key per layer, `build` makes the blocks of a key.

    `count` (the number of layers with its origin) is used where all layers are equal.
    """
    places: dict[tuple[str, ...], list[int]] = {}
    for index, kind in enumerate(kinds):
        places.setdefault(kind, []).append(index + first)
    single = len(places) == 1
    return [
        Group(
            name=" + ".join(kind),
            blocks=build(kind),
            count=count if single and count is not None else len(indices),
            indices=tuple(indices),
            prefix=prefix,
            role=role,
        )
        for kind, indices in places.items()
    ]


def decoder(
    c: Config,
    hidden: Quantity,
    groups: Iterable[Group],
    *,
    name: str,
    tied_default: bool | None = False,
    head_bias: bool = False,
    norm_bias: bool = False,
    norm_suffix: str = ".weight",
    embed: str = "model.embed_tokens.weight",
    norm: str = "model.norm",
    head: str = "lm_head",
    outputs: Quantity | None = None,
    mtp: Iterable[Group] = (),
    wrapper: Config | None = None,
    not_counted: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> ModelSpec:
    """Close a decoder-only model: embedding, the layers, final norm, head, formats, unread keys.

    `wrapper` is the outer config of a multimodal model, whose text part `c` is. outputs: of the
    head, where they are not the vocabulary. norm: name of the last norm, "" where there is none.
    """
    outer = (wrapper if wrapper is not c else None) or c.outer or c
    vocabulary = c.int("vocab_size", symbol="V")
    shared = embed if _tied(c, outer, tied_default) else None
    last = Norm(hidden, norm, bias=norm_bias, suffix=norm_suffix)
    final = (Group("final norm", (last,)),) if norm else ()
    rows = vocabulary if outputs is None else outputs
    context = c.optional(
        "max_position_embeddings", "max_sequence_length", "max_seq_len", symbol="max_context"
    )
    checkpoint = read_checkpoint(outer, c)
    spec_groups = (
        Group("embedding", (Embedding(vocabulary, hidden, embed),)),
        *groups,
        *final,
        Group("head", (Head(rows, hidden, shared, head_bias, head),)),
        *mtp,
    )
    unread = outer.finish()
    return ModelSpec(
        name=name,
        family=str(c.data.get("model_type", name)),
        groups=spec_groups,
        checkpoint=checkpoint,
        max_context=context,
        source=outer.path,
        not_counted=not_counted,
        unread=unread,
        notes=(*notes, *outer.notes),
    )


def _tied(c: Config, outer: Config, default: bool | None) -> bool:
    """Whether the head shares the embedding; a wrapper and its text part must agree."""
    if outer is not c and "tie_word_embeddings" in outer:
        tied = outer.flag("tie_word_embeddings")
        if "tie_word_embeddings" in c and c.flag("tie_word_embeddings") is not tied:
            raise c.fail(
                "tie_word_embeddings", f"is {not tied} but {tied} outside: they must agree"
            )
        c.ignore("tie_word_embeddings")
        return tied
    if default is None:
        return c.flag("tie_word_embeddings")
    return c.flag("tie_word_embeddings", default=default)
