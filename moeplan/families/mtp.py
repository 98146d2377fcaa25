"""Multi-token prediction (MTP) modules, in the two ways in which checkpoints lay them out.

A module normalises the hidden state and the next token's embedding, projects both together from
2·D to D, and runs a decoder layer and a norm (DeepSeek-V3, arXiv 2412.19437, section 2.2). The
embedding and the output head are the model's own tensors: they are computed with, not counted
(some checkpoints store them again).
"""

from __future__ import annotations

from moeplan.families.reader import Config
from moeplan.model.basic import Embedding, Head, Norm, Projection
from moeplan.model.ops import Block
from moeplan.model.spec import Group
from moeplan.quantity import Quantity

__all__ = ["mtp_modules", "mtp_stack", "released_modules"]

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def released_modules(c: Config, count: int) -> Quantity:
    """The number of modules: the file's, else those that the released checkpoints hold."""
    if "num_nextn_predict_layers" not in c:
        c.note(
            "the file names no multi-token-prediction modules; the released checkpoints hold "
            f"{count}, counted apart"
        )
    return c.int("num_nextn_predict_layers", default=count, symbol="modules", least=0)


def _shared(
    c: Config, hidden: Quantity, embedding: str, head: str, tied: bool | None = None
) -> tuple[Block, Block]:
    """The model's embedding and output head, under a module's own names."""
    vocabulary = c.int("vocab_size", symbol="V")
    if tied is None:
        tied = c.data.get("tie_word_embeddings") is True
    return (
        Embedding(vocabulary, hidden, "embed_tokens.weight", tied=embedding),
        Head(vocabulary, hidden, tied=embedding if tied else HEAD, name=head),
    )


def mtp_modules(
    c: Config,
    hidden: Quantity,
    layer: tuple[Block, ...],
    layers: Quantity,
    count: Quantity,
    *,
    embedding: str = EMBEDDING,
    last: str = "shared_head.norm",
    head: str = "shared_head.head",
    norms: tuple[str, str] = ("enorm", "hnorm"),
    prefix: str = "model.layers.{i}.",
    first: int | None = None,
) -> list[Group]:
    """`count` modules, each with norms, a projection and a decoder layer of its own.

    embedding: the model's table. last, head, norms: what the checkpoint calls the module's last
    norm, its copy of the output head, and the norms of embedding and state. prefix: of a module's
    tensors; first: the first module's index there, by default the one behind the last of `layers`.
    """
    if not count.value:
        return []
    table, output = _shared(c, hidden, embedding, head)
    blocks = (
        table,
        *(Norm(hidden, name) for name in norms),
        Projection(I=(2 * hidden).named("I"), O=hidden, name="eh_proj"),
        *layer,
        Norm(hidden, last),
        output,
    )
    at = int(layers.value) if first is None else first
    places = tuple(range(at, at + int(count.value)))
    return [Group("MTP module", blocks, count, places, prefix, "mtp")]


def mtp_stack(
    c: Config,
    hidden: Quantity,
    layer: tuple[Block, ...],
    count: Quantity,
    *,
    embedding: str = EMBEDDING,
    tied: bool | None = None,
) -> list[Group]:
    """`count` decoder layers that share one projection, its two norms and the last norm.

    Names as in Qwen's checkpoints, which keep these tensors under `mtp.`. tied: whether the head
    is the embedding, where a file says so elsewhere.
    """
    if not count.value:
        return []
    table, output = _shared(c, hidden, embedding, "lm_head", tied)
    ins = (
        table,
        Norm(hidden, "pre_fc_norm_embedding"),
        Norm(hidden, "pre_fc_norm_hidden"),
        Projection(I=(2 * hidden).named("I"), O=hidden, name="fc"),
    )
    places = tuple(range(int(count.value)))
    return [
        Group("MTP input", ins, prefix="mtp.", role="mtp"),
        Group("MTP layer", layer, count, places, "mtp.layers.{i}.", "mtp"),
        Group("MTP output", (Norm(hidden, "norm"), output), prefix="mtp.", role="mtp"),
    ]
