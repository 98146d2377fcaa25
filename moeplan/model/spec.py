"""What a model is: groups of equal layers, each a list of blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias, TypeVar

from moeplan.errors import UserError
from moeplan.model.basic import Embedding, Head
from moeplan.model.ffn import MoE
from moeplan.model.formats import Checkpoint
from moeplan.model.ops import Block, CacheEntry, Weight
from moeplan.quantity import Number, Quantity, plain

__all__ = ["Group", "ModelSpec", "Role"]

Role: TypeAlias = Literal["model", "mtp", "encoder"]
B = TypeVar("B", bound=Block)


@dataclass(frozen=True, eq=False)
class Group:
    """Equal layers: what one of them holds, and how many there are.

    name: shown in tables. blocks: in order of execution. count: number of layers. indices: their
    places in the checkpoint (empty where a sweep varies the count). prefix: checkpoint prefix with
    `{i}` for the layer's index. role: "model", "mtp" (multi-token prediction, counted apart) or
    "encoder" (runs over source tokens).
    """

    name: str
    blocks: tuple[Block, ...]
    count: Number = 1
    indices: tuple[int, ...] = ()
    prefix: str = ""
    role: Role = "model"

    @cached_property
    def quantity(self) -> Quantity:
        """The number of layers, with its origin."""
        if isinstance(self.count, Quantity):
            return self.count
        return Quantity(plain(self.count), "layers", symbol="layers", note=self.name)

    @cached_property
    def number(self) -> Number:
        """The number of layers, bare."""
        return plain(self.count)

    @cached_property
    def is_layer(self) -> bool:
        """Whether this is a layer of the stack (not an embedding, final norm or head)."""
        return "{i}" in self.prefix

    def tensor_names(self, weight: Weight) -> Iterator[str]:
        """Full checkpoint names of a weight in every layer; experts keep their `{e}`.

        A weight whose own name holds `{i}`, or `{i-1}` for the place before, lies elsewhere: its
        name is whole.
        """
        if not self.is_layer:
            yield self.prefix + weight.name
            return
        name = weight.name if "{i" in weight.name else self.prefix + weight.name
        for index in self.indices:
            yield name.replace("{i}", str(index)).replace("{i-1}", str(index - 1))


@dataclass(frozen=True, eq=False)
class ModelSpec:
    """A model: its groups in order, its checkpoint's formats, and what the reader noted.

    not_counted: parts of the file that are not in the figures (vision towers). unread: keys that
    were not read and are not known to be irrelevant. notes: assumptions of the reader in words.
    """

    name: str
    family: str
    groups: tuple[Group, ...]
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    max_context: Number | None = None
    source: str = ""
    title: str = ""
    not_counted: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    origin: str = ""

    def blocks(self, kind: type[B], *, mtp: bool = False) -> Iterator[tuple[Group, B]]:
        """Every block of a kind with the group that holds it."""
        for group in self.groups:
            if group.role == "mtp" and not mtp:
                continue
            for block in group.blocks:
                if isinstance(block, kind):
                    yield group, block

    def first(self, kind: type[B]) -> B | None:
        """The first block of a kind, or None."""
        return next((block for _, block in self.blocks(kind)), None)

    @property
    def moe(self) -> MoE | None:
        """The first MoE block, or None for a dense model."""
        return self.first(MoE)

    @property
    def hidden(self) -> Quantity:
        """D, the width of the residual stream."""
        embedding = self.first(Embedding)
        assert embedding is not None
        return embedding.symbols["D"]

    @property
    def vocabulary(self) -> Quantity:
        """V, the number of tokens."""
        embedding = self.first(Embedding)
        assert embedding is not None
        return embedding.symbols["V"]

    @property
    def tied(self) -> bool:
        """Whether the output head shares the input embedding's tensor."""
        head = self.first(Head)
        return head is not None and head.tied is not None

    @property
    def layers(self) -> Number:
        """Number of layers without MTP modules."""
        return sum(plain(g.count) for g in self.groups if g.is_layer and g.role != "mtp")

    @property
    def moe_layers(self) -> Number:
        """Number of layers that hold an MoE block, without MTP modules."""
        return sum(plain(g.count) for g, _ in self.blocks(MoE))

    def vary(self, kind: type[Block], **symbols: Any) -> ModelSpec:
        """The same model with symbols of every block of a kind set to other numbers or arrays.

        Arrays broadcast against each other and give arrays in every answer: one call for a sweep.
        Nothing is checked here: a design that no model could have (k above E) is the caller's.
        """
        unknown = set(symbols) - {f.name for f in fields(kind)}  # type: ignore[arg-type]
        if unknown:
            raise UserError(f"{kind.__name__} has no symbol {', '.join(sorted(unknown))}")
        groups = tuple(
            replace(
                group,
                blocks=tuple(
                    replace(block, **symbols) if isinstance(block, kind) else block  # type: ignore[type-var]
                    for block in group.blocks
                ),
            )
            for group in self.groups
        )
        return replace(self, groups=groups)

    def cache(self) -> Iterator[tuple[Group, Block, CacheEntry]]:
        """Every cache entry with its block and group; encoders keep none."""
        for group in self.groups:
            if group.role != "model":
                continue
            for block in group.blocks:
                for entry in block.cache():
                    yield group, block, entry
