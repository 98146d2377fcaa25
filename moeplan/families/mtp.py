"""Multi-token prediction (MTP) modules as DeepSeek-V3 lays them out (arXiv 2412.19437, 2.2)."""

from __future__ import annotations

from moeplan.families.reader import Config
from moeplan.model.basic import Embedding, Head, Norm, Projection
from moeplan.model.ops import Block
from moeplan.model.spec import Group
from moeplan.quantity import Quantity

__all__ = ["mtp_modules"]

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def mtp_modules(
    c: Config,
    hidden: Quantity,
    layer: tuple[Block, ...],
    layers: Quantity,
    count: Quantity,
    *,
    embedding: str = EMBEDDING,
    last: str = "shared_head.norm",
) -> list[Group]:
    """The modules behind the last of `layers` layers, each with a decoder layer of its own.

    A module normalises the hidden state and the next token's embedding, projects both together
    from 2·D to D, runs `layer`, a norm and the model's output head. Embedding and head are the
    model's own tensors: they are computed with, not counted (some checkpoints store them again).
    embedding: the model's table. last: what the checkpoint calls the module's last norm.
    """
    if not count.value:
        return []
    vocabulary = c.int("vocab_size", symbol="V")
    head = embedding if c.data.get("tie_word_embeddings") is True else HEAD
    blocks = (
        Embedding(vocabulary, hidden, "embed_tokens.weight", tied=embedding),
        Norm(hidden, "enorm"),
        Norm(hidden, "hnorm"),
        Projection(I=(2 * hidden).named("I"), O=hidden, name="eh_proj"),
        *layer,
        Norm(hidden, last),
        Head(vocabulary, hidden, tied=head, name="shared_head.head"),
    )
    first = int(layers.value)
    return [
        Group(
            name="MTP module",
            blocks=blocks,
            count=count,
            indices=tuple(range(first, first + int(count.value))),
            prefix="model.layers.{i}.",
            role="mtp",
        )
    ]
