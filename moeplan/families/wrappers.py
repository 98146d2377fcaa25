"""Multimodal files that hold the config of any text model, of which some have experts.

The text part is read as a file of its own family, and its tensors get the prefix that they have in
the whole. Towers, projectors and whatever else is around it are not counted, and named so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, NamedTuple

from moeplan.errors import near_miss
from moeplan.families import FAMILIES, agree_on_class, family
from moeplan.families.reader import Config, shown
from moeplan.model.ops import Block
from moeplan.model.spec import Group, ModelSpec

__all__ = ["WRAPPERS", "wrapped"]


class Wrapper(NamedTuple):
    """Where a file keeps its text part, and what stands before the text part's tensors.

    inside: the text model's `model.` becomes `model.language_model.`, and its head stays.
    assumed: the text part's family where it does not say.
    """

    key: str = "text_config"
    prefix: str = "language_model."
    inside: bool = False
    assumed: str | None = None


INSIDE = Wrapper(inside=True)
WRAPPERS: dict[str, Wrapper] = {
    "deepseek_vl_v2": Wrapper("language_config", "language.", assumed="deepseek_v2"),
    "internvl": Wrapper(),
    "internvl_chat": Wrapper("llm_config"),
    "interns1": INSIDE,
    "kimi_k25": Wrapper(assumed="deepseek_v3"),
    "kimi_vl": Wrapper(assumed="deepseek_v3"),
    "lfm2_vl": INSIDE,
    "lfm3_vl": INSIDE,
    "llava": Wrapper(),
    "llava_next": Wrapper(),
    "llava_next_video": Wrapper(),
    "llava_onevision": Wrapper(),
    "minimax_vl_01": Wrapper(assumed="minimax_text_01"),
    "nemo_speechlm": Wrapper(prefix="llm.", assumed="nemotron_h"),
    "nemotron_h_omni": Wrapper(assumed="nemotron_h"),
    "ovis2": INSIDE,
    "vipllava": Wrapper(),
}


def wrapped(c: Config) -> ModelSpec:
    """Read a multimodal file by the family that its text part names."""
    model_type = str(c.raw("model_type")[1])
    how = WRAPPERS[model_type]
    text = c.sub(how.key)
    assert text is not None
    kind = _kind(text, how)
    agree_on_class(text, kind)
    text.outer = c
    c.ignore(*(key for key in c.data if key != "tie_word_embeddings"))
    spec = family(kind)(text)
    left = tuple(
        f"{key.removesuffix('_config').replace('_', ' ')} ({key})"
        for key, part in c.data.items()
        if isinstance(part, Mapping) and key.endswith("_config") and key not in (how.key, _FORMAT)
    )
    groups = tuple(_renamed(group, how) for group in spec.groups)
    what = (*spec.not_counted, *left)
    return replace(spec, name=model_type, family=model_type, groups=groups, not_counted=what)


_FORMAT = "quantization_config"


def _kind(text: Config, how: Wrapper) -> str:
    default = {} if how.assumed is None else {"default": how.assumed}
    _, kind = text.raw("model_type", **default)
    if not isinstance(kind, str) or kind not in FAMILIES or kind in WRAPPERS:
        hint = near_miss(kind, FAMILIES) if isinstance(kind, str) else ""
        problem = f"is {shown(kind)}, a text part that is not read{hint}"
        raise text.fail("model_type", f"{problem}; `moeplan families` lists all")
    if "text_config" in text:
        raise text.fail("text_config", "is a text part inside of a text part")
    return kind


def _renamed(group: Group, how: Wrapper) -> Group:
    """The group under the names of the whole; what it shares with others is renamed as well."""
    blocks = tuple(_shared(block, how) for block in group.blocks)
    if how.inside and not group.prefix:  # the embedding, the last norm, the head: whole names
        return replace(group, blocks=tuple(_inner(block) for block in blocks))
    return replace(group, blocks=blocks, prefix=_placed(group.prefix, how))


def _placed(name: str, how: Wrapper) -> str:
    if not how.inside:
        return how.prefix + name
    head, dot, rest = name.partition(".")
    return f"model.language_model.{rest}" if dot and head == "model" else name


def _shared(block: Block, how: Wrapper) -> Block:
    """The names of tensors elsewhere that a block refers to."""
    found: dict[str, Any] = {}
    for name in ("tied", "table"):
        value = getattr(block, name, None)
        if isinstance(value, str) and value:
            found[name] = _placed(value, how)
    return replace(block, **found) if found else block  # type: ignore[type-var]


def _inner(block: Block) -> Block:
    """A block whose own name is whole, under `model.language_model.`."""
    if "name" not in {f.name for f in fields(block)}:  # type: ignore[arg-type]
        return block
    return replace(block, name=_placed(getattr(block, "name"), INSIDE))  # type: ignore[type-var]  # noqa: B009
