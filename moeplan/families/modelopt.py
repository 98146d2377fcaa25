"""Checkpoints written by NVIDIA's modelopt: NVFP4, FP8 and mixtures of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

from moeplan.families.compressed_tensors import cache_format
from moeplan.families.module_names import modules
from moeplan.families.reader import Config
from moeplan.model.formats import FORMATS, KEPT, Format, nvfp4, scaled_8bit

__all__ = ["read"]

_ALGORITHMS = (
    "FP8",
    "FP8_PB_WO",
    "FP8_PER_CHANNEL_PER_TOKEN",
    "MXFP8",
    "NVFP4",
    "W4A16_NVFP4",
)


def read(q: Config, base: Format, experts: int | None) -> dict[str, Any]:
    """The checkpoint's fields; the scalars of a quantised cache (8 bytes a layer) are left out."""
    inner = q.sub("quantization", required=False)
    if inner is not None:
        q.ignore(*q.data)
        q = inner
    q.ignore("producer", "quant_library", "quant_method", "packed_modules_mapping")
    keys = ("ignore", "exclude_modules")
    key, _ = q.raw(*keys, default=[])
    left = modules(q, key, q.list(*keys, default=[]), experts)
    shared = {
        "excluded": left.patterns,
        "excluded_names": left.names,
        "kept": KEPT - {"head"},
        "cache": cache_format(q, "kv_cache_scheme", "kv_cache_quant_algo"),
    }
    algorithm = q.choice("quant_algo", allowed=(*_ALGORITHMS, "MIXED_PRECISION"))
    size = _group_size(q)
    if algorithm != "MIXED_PRECISION":
        q.expect("quantized_layers", [{}], f"{algorithm} holds for every layer")
        return {"quantised": _format(q, algorithm, size), **shared}
    named = _named(q, size, experts)
    (most, _), *_ = Counter(named.values()).most_common(1)
    return {"quantised": most, "named": named, **shared}


def _group_size(q: Config) -> int | None:
    """Inputs that share a scale, from `group_size` or from the groups that repeat it."""
    size = q.optional("group_size")
    groups = q.sub("config_groups", required=False)
    found = [] if size is None else [int(size.value)]
    for name in groups.data if groups is not None else ():
        assert groups is not None
        group = groups.sub(name)
        if group is None:
            continue
        group.ignore(*group.data)
        weights = group.sub("weights", required=False)
        if weights is not None:
            weights.ignore(*weights.data)
            own = weights.optional("group_size")
            found += [] if own is None else [int(own.value)]
    if len(set(found)) > 1 and q.data.get("quant_algo") != "MIXED_PRECISION":
        raise q.fail("group_size", f"is given as {sorted(set(found))}: it must be one number")
    return found[0] if found else None


def _format(q: Config, algorithm: str, size: int | None) -> Format:
    if algorithm in ("NVFP4", "W4A16_NVFP4"):
        return nvfp4(size or 16, input_scale=algorithm == "NVFP4")
    if algorithm == "FP8":
        return scaled_8bit("fp8", "tensor", more="4*e")  # the input's static scale
    if algorithm == "FP8_PER_CHANNEL_PER_TOKEN":
        return scaled_8bit("fp8", "channel")
    if algorithm == "FP8_PB_WO":
        block = size or 128
        return scaled_8bit("fp8", "block", size=(block, block), weight_only=True)
    return FORMATS["mxfp8"]


def _named(q: Config, size: int | None, experts: int | None) -> dict[str, Format]:
    """Format by module: in a mixture only the listed modules are quantised."""
    layers = q.sub("quantized_layers")
    assert layers is not None
    formats: dict[Format, list[str]] = {}
    for name in layers.data:
        entry = layers.sub(name)
        if entry is None:
            raise layers.fail(name, "is null: an object with quant_algo is needed")
        entry.ignore("has_zero_point")
        entry.expect("pre_quant_scale", [False], "scales of inputs are not described")
        own = entry.optional("group_size")
        algorithm = entry.choice("quant_algo", allowed=_ALGORITHMS)
        fmt = _format(entry, algorithm, size if own is None else int(own.value))
        formats.setdefault(fmt, []).append(name)
    out: dict[str, Format] = {}
    for fmt, names in formats.items():
        for name in modules(q, "quantized_layers", names, experts).names:
            out[name] = fmt
    if not out:
        raise q.fail("quantized_layers", "names no module")
    return out
