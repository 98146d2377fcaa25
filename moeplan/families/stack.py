"""Decoders whose layers differ in what attention sees, and in dense or sparse feed-forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from moeplan.families.common import attention, decoder, layer_groups, layer_types, pre_norm
from moeplan.families.reader import Config
from moeplan.model.basic import Norm, Residual
from moeplan.model.ffn import DenseFFN, MoE
from moeplan.model.ops import Block
from moeplan.model.spec import Group, ModelSpec
from moeplan.quantity import Quantity

__all__ = [
    "FULL",
    "WINDOW",
    "WORDS",
    "Layer",
    "dense_first",
    "layered",
    "sandwich",
    "scoped_attention",
    "scopes",
    "sparse_words",
    "text_part",
    "turned_kinds",
    "unbounded",
]

FULL, WINDOW = "full attention", "sliding attention"
WORDS = {"full_attention": FULL, "sliding_attention": WINDOW}
Layer: TypeAlias = Callable[[Quantity, Block, Block], tuple[Block, ...]]


def scopes(c: Config, layers: int, *, full: Callable[[int], bool]) -> list[str]:
    """What each layer's attention sees: `layer_types`, or by default all where `full` says so."""
    return layer_types(c, layers, WORDS, [FULL if full(i) else WINDOW for i in range(layers)])


def scoped_attention(
    c: Config,
    hidden: Quantity,
    kinds: Sequence[str],
    *,
    window: int | None = None,
    turned: Sequence[str] = (FULL, WINDOW),
    **how: Any,
) -> dict[str, Block]:
    """Grouped-query attention for each scope in `kinds`.

    window: the class's default of `sliding_window`. turned: the scopes that rotate queries and keys
    by their position; the others have no positions at all.
    """
    mixers: dict[str, Block] = {}
    if WINDOW in kinds and unbounded(c):
        raise c.fail("sliding_window", "is null, but layers with windows are asked for")
    if WINDOW in kinds:
        default = {} if window is None else {"default": window}
        width = c.int("sliding_window", symbol="W", **default)
        mixers[WINDOW] = attention(c, hidden, W=width, scope="window", rope=WINDOW in turned, **how)
    if FULL in kinds:
        mixers[FULL] = attention(c, hidden, rope=FULL in turned, **how)
    c.ignore("sliding_window", "sliding_window_pattern")
    return mixers


def unbounded(c: Config) -> bool:
    """Whether the file says that there is no window (null); saying nothing is not that."""
    return "sliding_window" in c.data and c.data["sliding_window"] is None


def turned_kinds(c: Config, default: Sequence[str]) -> list[str]:
    """The scopes that `rope_parameters` gives a rotation (null: none), or `default`."""
    rope = c.data.get("rope_parameters")
    if not isinstance(rope, Mapping) or not set(rope) & set(WORDS):
        return list(default)
    return [kind for word, kind in WORDS.items() if rope.get(word) is not None]


def dense_first(c: Config, layers: int, key: str, default: int) -> list[bool]:
    """Which layers hold experts: all but the first few, counted by `key`."""
    first = c.int(key, default=default, least=0, most=layers)
    return [i >= first.value for i in range(layers)]


def sparse_words(
    c: Config, layers: int, default: Sequence[bool] | Callable[[], Sequence[bool]]
) -> list[bool]:
    """Which layers hold experts: `mlp_layer_types`, else `default`, read only where needed."""
    words = c.list("mlp_layer_types", length=layers, default=None)
    if words is None:
        sparse = list(default() if callable(default) else default)
    elif all(word in ("dense", "sparse") for word in words):
        sparse = [word == "sparse" for word in words]
        c.ignore("first_k_dense_replace", "moe_layer_freq")
    else:
        raise c.fail("mlp_layer_types", "needs 'dense' or 'sparse' for each layer")
    if not any(sparse):
        raise c.fail("mlp_layer_types", "leaves no layer with experts")
    return sparse


def sandwich(
    names: tuple[str, str, str, str],
) -> Callable[[Quantity, Block, Block], tuple[Block, ...]]:
    """A layer with a norm before and after its mixer, and before and after its feed-forward."""
    before, after, then, last = names

    def layer(hidden: Quantity, mixer: Block, ffn: Block) -> tuple[Block, ...]:
        return (
            Norm(hidden, before),
            mixer,
            Norm(hidden, after),
            Residual(hidden, "attention"),
            Norm(hidden, then),
            ffn,
            Norm(hidden, last),
            Residual(hidden, "routed_experts" if isinstance(ffn, MoE) else "dense_ffn"),
        )

    return layer


def layered(
    c: Config,
    name: str,
    hidden: Quantity,
    mixers: Mapping[str, Block],
    kinds: Sequence[str],
    moe: MoE,
    sparse: Sequence[bool],
    *,
    layer: Layer = pre_norm,
    dense: DenseFFN | None = None,
    text: str = "model.",
    last: Sequence[Group] = (),
    **how: Any,
) -> ModelSpec:
    """Close a decoder: a mixer of `kinds` and experts or a dense feed-forward for each layer.

    dense: the dense feed-forward, by default `intermediate_size` wide. text: prefix of the text
    model's tensors. last: what stands between the layers and the final norm.
    how: further arguments of `decoder`.
    """
    layers = c.int("num_hidden_layers", symbol="L")
    if dense is None and not all(sparse):
        dense = DenseFFN(D=hidden, F=c.int("intermediate_size", symbol="F"))
    c.ignore("intermediate_size")

    def build(kind: tuple[str, ...]) -> tuple[Block, ...]:
        return layer(hidden, mixers[kind[0]], moe if kind[1] == "moe" or dense is None else dense)

    places = [(k, "moe" if s else "dense") for k, s in zip(kinds, sparse, strict=True)]
    how = {"embed": f"{text}embed_tokens.weight", "norm": f"{text}norm", **how}
    groups = layer_groups(places, build, prefix=f"{text}layers.{{i}}.", count=layers)
    return decoder(c, hidden, [*groups, *last], name=name, **how)


def text_part(
    c: Config, words: Sequence[str], *, key: str = "text_config", **towers: str
) -> tuple[Config, dict[str, Any]]:
    """The text part of a multimodal file, and what `decoder` needs to know about the rest.

    words: what the part may call itself. towers: key of another part to what it is; these parts
    are not counted, and named so.
    """
    text = c.sub(key)
    assert text is not None
    text.expect("model_type", words, "the text part is of another family")
    c.ignore(*towers)
    left = tuple(f"{what} ({part})" for part, what in towers.items() if part in c)
    return text, {"wrapper": c, "not_counted": left}
