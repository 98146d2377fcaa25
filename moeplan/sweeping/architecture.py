"""A model whose config is changed: by the keys that its family reads, so that its checks apply.

A *shape* is a short name (`experts`, `width`) for the key in which this model's family keeps it.
The key is not listed anywhere: it is where the number in the model's own blocks says it came from.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from moeplan.errors import UserError, near_miss
from moeplan.families import read_with_keys
from moeplan.load import config_data, load_model, looks_like_path
from moeplan.model.attention import Attention
from moeplan.model.basic import Embedding
from moeplan.model.ffn import DenseFFN, MoE
from moeplan.model.latent_attention import LatentAttention
from moeplan.model.spec import ModelSpec
from moeplan.presets import preset
from moeplan.quantity import Quantity, plain

__all__ = ["CONFIG", "SHAPES", "Architecture", "Shape"]

CONFIG = "config:"
"""What stands before a config key in the name of an input."""


class Shape(NamedTuple):
    """A number of an architecture: what it is, and where a model has it (None: it has none)."""

    about: str
    pick: Callable[[ModelSpec], Quantity | None]


def _symbol(name: str, *kinds: Any) -> Callable[[ModelSpec], Quantity | None]:
    """A symbol of the first block of these kinds that has it."""

    def pick(spec: ModelSpec) -> Quantity | None:
        for kind in kinds:
            for _, block in spec.blocks(kind):
                if name in block.symbols:
                    found: Quantity = block.symbols[name]
                    return found
        return None

    return pick


def _shared_experts(spec: ModelSpec) -> Quantity | None:
    """How many shared experts: what the shared width has beside an expert's own width."""
    moe = spec.moe
    if moe is None or "Fs" not in moe.symbols:
        return None
    own = {_key(q) for q in _leaves(moe.symbols["F"])}
    more = [q for q in _leaves(moe.symbols["Fs"]) if _key(q) not in own]
    return more[0] if len(more) == 1 and moe.symbols["Fs"].formula else None


def _shared_width(spec: ModelSpec) -> Quantity | None:
    """The width of the shared experts, where it is a key of its own."""
    moe = spec.moe
    if moe is None or "Fs" not in moe.symbols:
        return None
    found = moe.symbols["Fs"]
    own = {_key(q) for q in _leaves(moe.symbols["F"])}
    return None if found.formula or _key(found) in own else found


def _layers(spec: ModelSpec) -> Quantity:
    """The number of layers; it knows its key where all layers are alike."""
    counts = [g.quantity for g in spec.groups if g.is_layer and g.role == "model"]
    if len(counts) == 1 and counts[0].source is not None:
        return counts[0]
    return Quantity(spec.layers, "layers", symbol="layers")


SHAPES: Mapping[str, Shape] = {
    "experts": Shape("routed experts of a layer", _symbol("E", MoE)),
    "top_k": Shape("experts that a token gets", _symbol("k", MoE)),
    "width": Shape("width of an expert", _symbol("F", MoE)),
    "shared": Shape("shared experts of a layer", _shared_experts),
    "shared_width": Shape("width of the shared experts", _shared_width),
    "layers": Shape("layers of the stack", _layers),
    "hidden": Shape("width of the residual stream", _symbol("D", Embedding)),
    "heads": Shape("query heads", _symbol("H", Attention, LatentAttention)),
    "kv_heads": Shape("key-value heads", _symbol("G", Attention)),
    "dense_width": Shape("width of a dense FFN", _symbol("F", DenseFFN)),
    "vocabulary": Shape("tokens of the vocabulary", _symbol("V", Embedding)),
}
"""Names for numbers of an architecture, whatever a family calls their keys."""


class Architecture:
    """A model that the user named, and what it becomes when keys of its config are changed."""

    def __init__(self, model: str | Path | Mapping[str, Any] | ModelSpec) -> None:
        self.spec = load_model(model)
        self.data: Mapping[str, Any] | None = None
        self.path = "config"
        if isinstance(model, ModelSpec):
            pass
        elif isinstance(model, Mapping):
            self.data = model
        elif isinstance(model, Path) or looks_like_path(model):
            self.path = str(model)
            self.data = config_data(model)[1]
        else:
            found = preset(model)
            self.path, self.data = f"preset {found.name}", found.config
        self._specs: dict[str, ModelSpec | UserError] = {}

    @property
    def name(self) -> str:
        """The model's name."""
        return self.spec.name

    # ------------------------------------------------------------------------------- keys
    @cached_property
    def _read(self) -> tuple[ModelSpec, frozenset[str]]:
        if self.data is None:
            raise UserError(
                f"{self.name} was given as a model without its config, of which keys can be "
                "changed: give a preset or a config.json"
            )
        return read_with_keys(self.data, self.path)

    def key(self, shape: str) -> str:
        """The config key that holds a shape. `UserError` where there is none of its own."""
        found = SHAPES[shape].pick(self._read[0])
        if found is None:
            raise UserError(f"{shape}: {self.name} has no key for it{self._other(shape)}")
        if shape == "layers" and found.source is None:
            return self._layers_key(int(found.value))
        if found.source is None or found.source.kind != "config":
            how = found.source.where if found.source else f"computed as {found.formula}"
            raise UserError(f"{shape}: {self.name} has no key for it ({how})")
        return found.source.where

    def _other(self, shape: str) -> str:
        """What a model has in the place of a shape that it lacks."""
        twin = {"shared": "shared_width", "shared_width": "shared"}.get(shape)
        if twin is None or SHAPES[twin].pick(self._read[0]) is None:
            return ""
        return f", it has {twin} ({self.key(twin)})"

    def _layers_key(self, layers: int) -> str:
        """The key that changes the number of layers, found by changing it."""
        assert self.data is not None
        alike = [key for key, value in _numbers(self.data) if value == layers]
        for key in (key for key in alike if key in self._read[1]):
            for wanted in (layers - 1, layers + 1, 2 * layers, layers // 2):
                try:
                    changed = _with_layers(self.data, key, wanted)
                    if read_with_keys(changed, self.path)[0].layers == wanted:
                        return key
                except UserError:
                    continue
        raise UserError(f"layers: {self.name} has no single key for it; name one with {CONFIG}KEY")

    def check_key(self, key: str) -> None:
        """Refuse a config key that the family does not look at: nothing would change."""
        known = self._read[1]
        if key not in known:
            raise UserError(
                f"{CONFIG}{key}: the reader of {self.spec.family} does not look at it, so nothing "
                f"would change{near_miss(CONFIG + key, [CONFIG + name for name in known])}"
            )

    def value(self, name: str) -> Any:
        """The model's own value of a shape, or of a config key; None where it has none."""
        if name in SHAPES:
            found = SHAPES[name].pick(self.spec)
            return None if found is None else plain(found)
        here: Any = self.data
        for part in name.removeprefix(CONFIG).split("."):
            here = here.get(part) if isinstance(here, Mapping) else None
        return here

    # ------------------------------------------------------------------------------ changes
    def changed(self, changes: Mapping[str, Any]) -> ModelSpec:
        """The model with other values of shapes and `config:` keys.

        Raises what the family's reader raises for a config.json that was edited so.
        """
        if not changes:
            return self.spec
        known = repr(sorted(changes.items()))
        if known not in self._specs:
            if len(self._specs) > 256:
                self._specs.clear()
            try:
                self._specs[known] = self._changed(changes)
            except UserError as problem:
                self._specs[known] = problem
        found = self._specs[known]
        if isinstance(found, UserError):
            raise found
        return found

    def _changed(self, changes: Mapping[str, Any]) -> ModelSpec:
        assert self._read  # the model has a config
        data: Mapping[str, Any] = copy.deepcopy(dict(self.data or {}))
        for name, value in changes.items():
            if name == "layers":
                data = _with_layers(data, self.key(name), value)
            else:
                key = self.key(name) if name in SHAPES else name.removeprefix(CONFIG)
                _put(data, key, value)
        spec = read_with_keys(data, self.path)[0]
        for name, value in changes.items():
            found = SHAPES[name].pick(spec) if name in SHAPES else None
            if found is not None and plain(found) != value:
                raise UserError(
                    f"{name}: {self.key(name)} was set to {value}, and the model has {plain(found)}"
                )
        return replace(spec, name=self.spec.name, title=self.spec.title, source=self.spec.source)


def _leaves(quantity: Quantity) -> Iterator[Quantity]:
    if quantity.source is not None:
        yield quantity
    for below in quantity.inputs.values():
        yield from _leaves(below)


def _key(quantity: Quantity) -> str:
    return quantity.source.where if quantity.source is not None else ""


def _numbers(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number of a config, with its dotted key."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            yield f"{prefix}{key}", value


def _put(data: Any, key: str, value: Any) -> None:
    """Set a dotted key of a config that belongs to the caller."""
    *outer, last = key.split(".")
    for part in outer:
        if not isinstance(data.get(part), dict):
            data[part] = {}
        data = data[part]
    data[last] = value


def _with_layers(data: Mapping[str, Any], key: str, layers: Any) -> dict[str, Any]:
    """A config with another number of layers: lists of one entry a layer are cut or continued."""
    out = copy.deepcopy(dict(data))
    *outer, _ = key.split(".")
    here: Any = out
    for part in outer:
        here = here[part]
    if isinstance(layers, int) and 0 < layers <= 10_000:
        _resize(here, int(here[key.rsplit(".", 1)[-1]]), layers, key)
    _put(out, key, layers)
    return out


def _resize(here: Any, old: int, new: int, key: str) -> None:
    for name, value in here.items():
        if isinstance(value, dict):
            _resize(value, old, new, key)
        elif isinstance(value, list) and len(value) == old and _kinds(value) < old:
            if new > old and (period := _period(value)) is None:
                raise UserError(
                    f"{key} is {new}, and {name} lists {old} layers without a pattern to go on with"
                )
            here[name] = value[:new] if new <= old else _continued(value, new, period)


def _kinds(values: list[Any]) -> int:
    """How many different entries a list has: one of layers repeats some, one of names does not."""
    return len({repr(value) for value in values})


def _period(values: list[Any]) -> int | None:
    """The shortest pattern that a list repeats at least twice."""
    for period in range(1, len(values) // 2 + 1):
        if all(values[i] == values[i - period] for i in range(period, len(values))):
            return period
    return None


def _continued(values: list[Any], new: int, period: int | None) -> list[Any]:
    assert period is not None
    return [values[i] if i < len(values) else values[i % period] for i in range(new)]
