"""The independent oracle: the model that `transformers` builds, tensor by tensor.

Model classes are built on torch's meta device, which needs no memory, and their parameters are
named as in the hub's checkpoints with transformers' own conversion tables. Nothing here knows a
formula of moeplan: one side evaluates the rows of a ModelSpec, the other reads shapes of modules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple

import pytest

from moeplan.model.ops import Block, Weight
from moeplan.model.spec import ModelSpec
from moeplan.quantity import evaluate, plain

__all__ = [
    "Tensor",
    "compare",
    "differences",
    "is_built",
    "oracle",
    "ours",
    "their_config",
    "theirs",
]

# model_type in the file -> what transformers calls the same architecture
ALIASES: dict[str, str] = {"kimi_k2": "deepseek_v3"}
# Words that transformers uses for another architecture: "ernie" is a BERT, "git" reads images.
FOREIGN = frozenset(("ernie", "git"))
# Wrappers whose conversion table only fits the whole model; others build their text model.
WHOLE = frozenset(("gemma4", "llama4", "qwen4_exp"))
OTHER_PARTS = re.compile(
    r"(^|\.)(vision_model|vision_tower|vision_encoder|embed_vision|multi_modal_projector|visual|"
    r"audio_tower|talker|code2wav|vit_large_projector|patch_merge_mlp|projector|sam_model|"
    r"qwen2_model|patch_merger|pre_mm_projector_norm|vision_language_adapter|"
    r"vision_adapter|vision_projection|resampler_model|audio|mm_projector|mlp1|"
    r"perception|ctc_timestamp)\.|(^|\.)(image_newline|view_seperator)$"
)
# Prefixes of older files that the tables put before newer ones on the way back.
OLDER = ((r"^model\.language_model\.model\.", "model.language_model.", "an older file's prefix"),)
LLAVA = ((r"^language_model\.model\.model\.", "language_model.model.", "an older file's prefix"),)
THINKER = (
    (r"^thinker\.(thinker\.)?", "thinker.", "the same"),
    (r"^thinker\.model\.thinker\.language_model\.model\.", "thinker.model.", "the same"),
)
# What transformers' names become in the released checkpoint, where its conversion table does not
# lead back to them: (pattern, replacement or None for a tensor that no checkpoint has, reason).
CORRECTED: dict[str, tuple[tuple[str, str | None, str], ...]] = {
    "deepseek_v4": (
        (r"^model\.embed_tokens\.", "embed.", "the table is renamed before the prefix comes off"),
        (r"^model\.hc_head\.hc_", "hc_head_", "the same"),
        (r"^model\.", "", "released names have no prefix"),
        (r"\.attn\.norm\.", ".attn.kv_norm.", "two names become one, and one of them comes back"),
    ),
    "aria": LLAVA,
    "deepseek_ocr2": OLDER,
    "diffusion_gemma": (
        (
            r"^model\.encoder\.language_model\.(?!.*layer_scalar)",
            "model.decoder.",
            "the two share these tensors, and saved files have them once, as the decoder's",
        ),
    ),
    "ernie4_5_vl_moe": ((r"^model\.language_model\.model\.", "model.", "the same"),),
    "gemma4": OLDER,
    "glm4v_moe": OLDER,
    "glm5_next": OLDER,
    **dict.fromkeys(("internvl", "llava", "llava_next", "llava_onevision"), LLAVA),
    "kimi_k25": (
        *LLAVA,
        (
            r"^language_model\.model\.blocks\.",
            "language_model.model.layers.",
            "a word of the tower",
        ),
    ),
    **dict.fromkeys(("lfm2_vl", "lfm3_vl", "ovis2"), OLDER),
    "nemo_speechlm": (
        (r"^model\.language_model\.", "llm.", "a prefix that only the head has"),
        (r"\._fp32_params\.", ".", "a holder for what stays in fp32"),
    ),
    "inkling2": ((r"^model\.llm\.model\.llm\.", "model.llm.", "a prefix that comes twice"),),
    "inkling_mm_model": (
        (
            r"^model\.language_model\.model\.embed_tokens\.embed_norm\.",
            "model.llm.embed_norm.",
            "the same",
        ),
        (r"^model\.language_model\.model\.embed_tokens\.", "model.llm.embed.", "the same"),
        (r"^model\.language_model\.model\.", "model.llm.", "the same"),
    ),
    "minimax_m3_vl": LLAVA,
    "mistral3": LLAVA,
    "mistral_large4": (
        (r"^model\.language_model\.model\.embed_tokens\.", "tok_embeddings.", "the same"),
        (r"^model\.language_model\.model\.rotary_emb\.", "lerope.", "the same"),
        (r"^model\.language_model\.model\.", "", "the same"),
    ),
    "muse_spark": OLDER,
    "qwen3_omni_moe": THINKER,
    "qwen3_omni_moe_thinker": THINKER,
    "qwen3_vl_moe": OLDER,
    "qwen4_exp": (
        (r"^model\.language_model\.model\.language_model\.", "model.language_model.", "the same"),
    ),
    "unlimited_ocr": OLDER,
    "step3p7": ((r"^model\.language_model\.model\.", "model.", "the same"),),
    "kimi_linear": (
        (
            r"\.block_sparse_moe\.(gate|up|down)_proj\.",
            r".mlp.\1_proj.",
            "dense layers and experts share one module there",
        ),
    ),
    "minimax": (
        (r"\.(slope_rate|(query|key|diagonal)_decay)$", None, "decays follow from a layer's place"),
    ),
}
# Experts that transformers allocates and never reads: LongCat's zero-computation experts get gate
# and up projections (not down projections); the released checkpoint has none of them.
ALLOCATED = {"longcat_flash": (r"\.experts\.\{e\}\.(gate|up)_proj\.weight$", "n_routed_experts")}
# Stacked experts that the released files hold as [in, out]: the conversion table turns them when it
# reads such a file and does not turn them back.
TURNED = {"qwen3_vl_moe": r"\.experts\.(gate_up|down)_proj$"}
# Heads that transformers pads to the vocabulary, where a file says how many rows it holds.
PADDED = {"inkling_mm_model": "model.llm.unembed.weight"}
# Keys that say how weights are stored or loaded, not what they are.
STORAGE = (
    "quantization_config",
    "auto_map",
    "architectures",
    "torch_dtype",
    "dtype",
    "transformers_version",
)


class Tensor(NamedTuple):
    """A tensor of a checkpoint: shape of one copy, equal copies under `{e}`, trained or not.

    tied: the tensor elsewhere that this name stands for, or None. flat: a stacked tensor may also
    be stored with its first two dimensions in one.
    """

    shape: tuple[int, ...]
    copies: int = 1
    buffer: bool = False
    tied: str | None = None
    flat: bool = False

    @property
    def elements(self) -> int:
        """Elements of all copies."""
        total = self.copies
        for size in self.shape:
            total *= size
        return total


# ------------------------------------------------------------------------------------ our side
def ours(spec: ModelSpec, *, mtp: bool = False) -> tuple[dict[str, Tensor], list[str]]:
    """Full name to tensor of every row of weights, and what is wrong with the list itself."""
    found: dict[str, Tensor] = {}
    faults: list[str] = []
    for group in spec.groups:
        if group.role == "mtp" and not mtp:
            continue
        if group.is_layer and len(group.indices) != plain(group.count):
            faults.append(f"{group.name}: {group.indices} are not {plain(group.count)} layers")
        for block in group.blocks:
            for weight in block.weights():
                tensor = _evaluated(weight, block)
                if not tensor.copies:
                    continue
                for name in group.tensor_names(weight):
                    if name in found:
                        faults.append(f"{name} is listed twice")
                    found[name] = tensor
    return found, faults


def _evaluated(weight: Weight, block: Block) -> Tensor:
    shape = tuple(int(evaluate(dim, block.values)) for dim in weight.dims)
    copies = int(evaluate(weight.copies, block.values))
    if weight.stacked:
        shape, copies = (copies, *shape), 1
    return Tensor(shape, copies, weight.buffer, weight.tied, flat=weight.stacked)


# ---------------------------------------------------------------------------------- their side
def oracle() -> None:
    """Skip the test where transformers, torch or the conversion tables are not installed."""
    pytest.importorskip("torch", reason="needs torch's meta device")
    pytest.importorskip("transformers", reason="needs the model classes of transformers")
    pytest.importorskip(
        "transformers.core_model_loading", reason="needs transformers' names of hub checkpoints"
    )


def is_built(model_type: str) -> bool:
    """Whether transformers has model classes for a family."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return model_type not in FOREIGN and ALIASES.get(model_type, model_type) in CONFIG_MAPPING


def theirs(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Hub name to tensor of the model that transformers builds from `config`."""
    kept = {k: v for k, v in config.items() if k not in STORAGE and not k.startswith("_")}
    kept["model_type"] = ALIASES.get(kept["model_type"], kept["model_type"])
    return _theirs(json.dumps(kept, sort_keys=True))


def their_config(config: Mapping[str, Any]) -> Any:
    """The config object that transformers makes of `config`, with its defaults filled in."""
    from transformers import AutoConfig

    kept = {k: v for k, v in config.items() if k not in STORAGE}
    kept["model_type"] = ALIASES.get(kept["model_type"], kept["model_type"])
    return AutoConfig.for_model(**kept)


@cache
def _theirs(text: str) -> dict[str, Tensor]:
    import torch
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import revert_weight_conversion

    config = json.loads(text)
    with torch.device("meta"):
        model = _build(config)
    model._weight_conversions = get_model_conversion_mapping(model)
    first: dict[int, str] = {}
    kinds: dict[tuple[bool, str | None], dict[str, Any]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        twin = first.setdefault(id(value), name)
        tied = None if twin == name else next(iter(revert_weight_conversion(model, {twin: value})))
        kinds.setdefault((not value.requires_grad, tied), {})[name] = value
    out: dict[str, Tensor] = {}
    for (buffer, tied), values in kinds.items():
        for name, (shape, copies) in _named(model, values).items():
            if OTHER_PARTS.search(name) or (released := _released(config, name)) is None:
                continue
            of = tied and _released(config, tied)
            if of == released:  # one tensor under two names that the released files have once
                continue
            if re.search(TURNED.get(config["model_type"], "$^"), name):
                shape = (shape[0], shape[2], shape[1])
            if released == PADDED.get(config["model_type"]):
                rows = config["text_config"].get("unpadded_vocab_size", shape[0])
                shape = (rows, *shape[1:])
            out[released] = Tensor(shape, _copies(config, name, copies), buffer, of)
    return out


LAYER = re.compile(r"(.*?\.(?:layers|blocks|block)\.)(\d+)(\..+)")


def _named(model: Any, values: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], int]]:
    """Hub name to shape and copies. Of layers that hold the same, one is renamed and split.

    The conversion tables treat all layers of a stack alike, and splitting the experts of each takes
    most of the time. Where a name does not hold its layer's index, each layer is converted.
    """
    from transformers.core_model_loading import revert_weight_conversion

    stacks: dict[tuple[str, int], dict[str, Any]] = {}
    for name, value in values.items():
        stack, index, rest = found.groups() if (found := LAYER.match(name)) else ("", "-1", name)
        stacks.setdefault((stack, int(index)), {})[rest] = value
    alike: dict[Any, list[int]] = {}
    for (stack, index), held in stacks.items():
        shapes = frozenset((rest, tuple(value.shape)) for rest, value in held.items())
        alike.setdefault((stack, shapes), []).append(index)

    def converted(stack: str, index: int) -> dict[str, tuple[tuple[int, ...], int]]:
        at = f"{stack}{index}" if stack else ""
        one = {at + rest: value for rest, value in stacks[stack, index].items()}
        return _by_expert(revert_weight_conversion(model, one))

    out: dict[str, tuple[tuple[int, ...], int]] = {}
    for (stack, _), (first, *others) in alike.items():
        named = converted(stack, first)
        out |= named
        place = re.compile(rf"\.{first}(?=\.|$)")
        same = all(place.search(name) for name in named)
        for index in others:
            if same:
                out |= {place.sub(f".{index}", name, count=1): of for name, of in named.items()}
            else:
                out |= converted(stack, index)
    return out


def _released(config: Mapping[str, Any], name: str) -> str | None:
    """A tensor's name in the released checkpoint, None where it has no such tensor."""
    for pattern, replacement, _ in CORRECTED.get(config["model_type"], ()):
        if re.search(pattern, name):
            if replacement is None:
                return None
            name = re.sub(pattern, replacement, name)
    return name


def _copies(config: Mapping[str, Any], name: str, copies: int) -> int:
    pattern, key = ALLOCATED.get(config["model_type"], ("$^", ""))
    return int(config[key]) if re.search(pattern, name) else copies


def _build(config: dict[str, Any]) -> Any:
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMultimodalLM,
        AutoModelForSeq2SeqLM,
        AutoModelForTokenClassification,
    )

    read = their_config(config)
    kinds: tuple[Any, ...] = (AutoModelForCausalLM, AutoModelForImageTextToText)
    kinds = (*kinds, AutoModelForMultimodalLM, AutoModelForTokenClassification)
    if read.is_encoder_decoder:
        kinds = (AutoModelForSeq2SeqLM,)
    if config["model_type"] in WHOLE:
        kinds = kinds[1:]
    auto = next((kind for kind in kinds if type(read) in kind._model_mapping), kinds[0])
    return auto.from_config(read)


def _by_expert(tensors: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], int]]:
    """Fold the experts of a layer into one name with `{e}`; they must be equal and complete."""
    shapes: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, value in tensors.items():
        folded, expert = name, -1
        if match := re.search(r"(?:\bexperts\.(?:expert_)?|embedding\.shard_)(\d+)\.", name):
            folded = name[: match.start(1)] + "{e}" + name[match.end(1) :]
            expert = int(match[1])
        shapes.setdefault(folded, {})[expert] = tuple(value.shape)
    out = {}
    for name, by_expert in shapes.items():
        places = [0] if -1 in by_expert else sorted(by_expert)
        assert places == list(range(len(by_expert))), f"{name}: experts {sorted(by_expert)}"
        # experts of a second kind are numbered behind those of the first
        runs = [
            (shape, len(list(run)))
            for shape, run in groupby(by_expert[p] for p in sorted(by_expert))
        ]
        assert len(runs) <= 2, f"{name}: {runs}"
        for (shape, number), mark in zip(runs, ("{e}", "{e+}"), strict=False):
            out[name.replace("{e}", mark)] = shape, number
    return out


# ----------------------------------------------------------------------------------- comparison
# Tensors that one side may hold together and the other apart: (pattern, name of the whole).
TOGETHER = (
    (
        r"\.experts\.(?:\{e\}\.)?(?:gate_up_proj|gate_proj|up_proj)(?:\.weight)?$",
        ".experts[gate, up]",
    ),
    (r"\.experts\.(?:\{e\}\.)?down_proj(?:\.weight)?$", ".experts[down]"),
    (r"\.(?:q_proj|k_proj|v_proj|qkv_proj)\.weight$", "[q, k, v]"),
)


def differences(mine: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> list[str]:
    """What differs, one line a tensor; empty where the two agree."""
    lines = []
    rest_mine, rest_real = dict(mine), dict(real)
    for name in mine.keys() & real.keys():
        a, b = rest_mine.pop(name), rest_real.pop(name)
        if a.tied or b.tied:
            if a.tied != b.tied:
                lines.append(f"{name}: tied to {a.tied} here, to {b.tied} there")
            continue
        if a.buffer != b.buffer:
            lines.append(f"{name}: {_kind(a)} here, {_kind(b)} there")
        if not _fits(a, b):
            lines.append(f"{name}: {_shape(a)} here, {_shape(b)} there")
    lines += _together(rest_mine, rest_real)
    lines += [f"{name}: {_shape(t)} here, missing there" for name, t in rest_mine.items()]
    lines += [f"{name}: missing here, {_shape(t)} there" for name, t in rest_real.items()]
    return sorted(lines)


def _fits(a: Tensor, b: Tensor) -> bool:
    if (a.shape, a.copies) == (b.shape, b.copies):
        return True
    return a.flat and b.copies == 1 and (a.shape[0] * a.shape[1], *a.shape[2:]) == b.shape


def _together(mine: dict[str, Tensor], real: dict[str, Tensor]) -> list[str]:
    """Compare what is left by wholes; takes the tensors of equal wholes out of both sides."""
    wholes: dict[str, tuple[list[str], list[str]]] = {}
    for side, names in enumerate((mine, real)):
        for name in names:
            for pattern, whole in TOGETHER:
                if re.search(pattern, name):
                    unit = re.sub(pattern, whole, name)
                    wholes.setdefault(unit, ([], []))[side].append(name)
    lines = []
    for unit, (left, right) in wholes.items():
        if not (left and right):
            continue
        a, b = _rows(mine[n] for n in left), _rows(real[n] for n in right)
        if a != b:
            lines.append(f"{unit}: {a} here, {b} there (rows, then copies, columns, buffer)")
        for name in left:
            del mine[name]
        for name in right:
            del real[name]
    return lines


def _rows(tensors: Iterable[Tensor]) -> tuple[int, list[tuple[int, int, bool]]]:
    """Rows of all parts together, and (copies, columns, buffer) of the parts, once each."""
    rows, kinds = 0, set()
    for tensor in tensors:
        *stack, here, columns = tensor.shape
        rows += here
        kinds.add((tensor.copies * (stack[0] if stack else 1), columns, tensor.buffer))
    return rows, sorted(kinds)


def _shape(tensor: Tensor) -> str:
    times = f"{tensor.copies} x " if tensor.copies > 1 else ""
    return f"{times}{list(tensor.shape)} ({_kind(tensor)})"


def _kind(tensor: Tensor) -> str:
    return "buffer" if tensor.buffer else "parameter"


def compare(spec: ModelSpec, config: Mapping[str, Any]) -> list[str]:
    """Everything in which a ModelSpec differs from what transformers builds."""
    mine, faults = ours(spec)
    return faults + differences(mine, theirs(config))
