"""Checkpoints written by compressed-tensors (llm-compressor, Kimi-K2-Thinking and others)."""

from __future__ import annotations

from typing import Any, NamedTuple

from moeplan.families.module_names import Modules, modules
from moeplan.families.reader import Config, shown
from moeplan.model.formats import (
    FORMATS,
    KEPT,
    Format,
    nvfp4,
    packed_int,
    scaled_8bit,
)

__all__ = ["cache_format", "read"]

_SCALES = {
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "float8_e4m3fn": 1,
    "uint8": 1,
}
_LAYOUTS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "mixed-precision",
)
# words for the format of keys and values; "static" is AutoFP8's for fp8 with fixed scales
_CACHES = {"fp8": "fp8", "int8": "int8", "nvfp4": "nvfp4", "static": "fp8", "none": None}
_ORDERS = (True, False, "group", "weight", "static", "dynamic")
_UNSET: tuple[Any, ...] = (None, False, {}, [])


class _Weights(NamedTuple):
    """What a group says about its weights."""

    bits: int
    kind: str
    scope: str
    group: int | None
    block: tuple[int, ...]
    symmetric: bool
    reordered: bool
    scale: int


def read(q: Config, base: Format, experts: int | None) -> dict[str, Any]:
    """The checkpoint's fields: each group of modules in its format, `ignore` left as it is."""
    q.ignore("quantization_status", "global_compression_ratio", "version")
    q.expect("transform_config", _UNSET, "transformed weights are not described")
    sparsity = q.sub("sparsity_config", required=False)
    if sparsity is not None:
        sparsity.expect("format", ["dense"], "sparse weights are not described")
        sparsity.ignore(*sparsity.data)
    layout = q.choice("format", allowed=_LAYOUTS)
    left = modules(q, "ignore", q.list("ignore", default=[]), experts)
    groups = q.sub("config_groups")
    assert groups is not None
    default: list[Format] = []
    rules: list[tuple[str, Format]] = []
    for name in groups.data:
        fmt, targets = _group(groups, name, layout, base, experts)
        if targets is None:
            default.append(fmt)
        else:
            rules += [(pattern, fmt) for pattern in targets.as_patterns()]
    if len(default) > 1:
        raise q.fail("config_groups", "has several groups that target every Linear")
    if not default and not rules:
        raise q.fail("config_groups", "targets nothing")
    return {
        "quantised": default[0] if default else rules[0][1],
        "only": () if default else tuple(pattern for pattern, _ in rules),
        "rules": tuple(rules),
        "excluded": left.patterns,
        "excluded_names": left.names,
        "kept": KEPT - {"head"},
        "cache": cache_format(q, "kv_cache_scheme"),
    }


def cache_format(q: Config, *keys: str) -> str | None:
    """The format of keys and values: a word, or a scheme of bits and type."""
    for key in keys:
        scheme = q.data.get(key)
        q.ignore(key)
        if isinstance(scheme, str):
            if scheme.lower() not in _CACHES:
                raise q.fail(key, f"is {shown(scheme)}: allowed are {', '.join(_CACHES)}")
            return _CACHES[scheme.lower()]
        if scheme:
            child = q.sub(key)
            assert child is not None
            child.ignore(*child.data)
            bits = int(child.int("num_bits").value)
            kind = child.choice("type", allowed=("float", "int"), default="float")
            if (bits, kind) not in ((8, "float"), (8, "int")):
                raise child.fail("num_bits", f"is {bits} ({kind}): 8 is understood")
            return "fp8" if kind == "float" else "int8"
    return None


def _group(
    groups: Config, name: str, layout: str, base: Format, experts: int | None
) -> tuple[Format, Modules | None]:
    """A group's format and its modules, None for every linear layer."""
    group = groups.sub(name)
    if group is None or not group.data:
        raise groups.fail(name, "is empty: a group of weights and targets is needed")
    group.expect("output_activations", _UNSET, "scales of outputs are not described")
    if "format" in group or layout == "mixed-precision":
        layout = group.choice("format", allowed=_LAYOUTS[:-1])
    scheme = group.sub("weights")
    assert scheme is not None
    weights = _weights(scheme, int(base.bits) // 8)
    inputs = group.sub("input_activations", required=False)
    static, asymmetric = False, False
    if inputs is not None:
        inputs.ignore(*inputs.data)
        static = inputs.data.get("dynamic") in (None, False)
        asymmetric = not inputs.flag("symmetric", default=True)
    more = ""
    if static:
        more = f"{weights.scale + asymmetric}*e"
    fmt = _format(scheme, weights, layout, more=more, weight_only=inputs is None)
    targets = group.list("targets", default=["Linear"])
    if "Linear" in targets:
        return fmt, None
    found = modules(group, "targets", targets, experts)
    classes = [n for n in found.names if "." not in n and n[:1].isupper()]
    if classes or not targets:
        raise group.fail(
            "targets", f"is {shown(targets)}: Linear or names of modules are understood"
        )
    return fmt, found


def _weights(w: Config, base_bytes: int) -> _Weights:
    w.ignore("observer", "observer_kwargs", "dynamic", "zp_dtype", "scale_format")
    kind = w.choice("type", allowed=("int", "float"), default="int")
    bits = int(w.int("num_bits", default=8, most=8).value)
    size = w.optional("group_size", least=-1)
    group = None if size is None or size.value == -1 else int(size.value)
    block = _block(w)
    inferred = "block" if block else "group" if group else "channel" if size else "tensor"
    scopes = ("tensor", "channel", "group", "block", "tensor_group")
    scope = w.choice("strategy", allowed=scopes, default=inferred)
    if scope in ("group", "tensor_group") and group is None:
        raise w.fail("group_size", f"is missing: the strategy {scope} needs it")
    if scope == "block" and not block:
        raise w.fail("block_structure", "is missing: the strategy block needs it")
    order = w.raw("actorder", default=False)[1]
    if order not in _ORDERS:
        raise w.fail("actorder", f"is {shown(order)}: allowed are group, weight, static, dynamic")
    _, dtype = w.raw("scale_dtype", default=None)
    word = str(dtype).removeprefix("torch.")
    if dtype is not None and word not in _SCALES:
        raise w.fail("scale_dtype", f"is {shown(dtype)}: allowed are {', '.join(_SCALES)}")
    return _Weights(
        bits,
        kind,
        scope,
        group if scope in ("group", "tensor_group") else None,
        block,
        w.flag("symmetric", default=True),
        order in (True, "group", "dynamic"),
        base_bytes if dtype is None else _SCALES[word],
    )


def _block(w: Config) -> tuple[int, ...]:
    key, value = w.raw("block_structure", default=None)
    if isinstance(value, str):
        value = [int(n) if n.isdecimal() else n for n in value.split("x")]
    if value is None:
        return ()
    sizes = isinstance(value, list) and len(value) == 2 and all(type(n) is int for n in value)
    if not sizes or min(value) < 1:
        raise w.fail(key, f"is {shown(w.data[key])}: two positive whole numbers are needed")
    return tuple(value)


def _format(w: Config, s: _Weights, layout: str, *, more: str, weight_only: bool) -> Format:
    """The stored format of a group's weights in a layout; what is not described is refused."""
    if layout == "pack-quantized" and s.kind == "int" and s.scope in ("group", "channel"):
        if s.bits not in (2, 3, 4, 8):
            raise w.fail("num_bits", f"is {s.bits}: 2, 3, 4 or 8 are packed")
        zeros = not s.symmetric
        return packed_int(s.bits, s.group, scale=s.scale, zeros=zeros, order=s.reordered)
    if s.kind == "float" and not s.symmetric:
        raise w.fail("symmetric", "is false: zero points of floats are not described")
    if layout == "nvfp4-pack-quantized" and (s.kind, s.bits) == ("float", 4) and s.group:
        return nvfp4(s.group, input_scale=not weight_only)
    if layout == "mxfp4-pack-quantized" and (s.kind, s.bits, s.group) == ("float", 4, 32):
        return FORMATS["mxfp4"]
    if layout == "mxfp8-quantized" and (s.kind, s.bits, s.group) == ("float", 8, 32):
        return FORMATS["mxfp8"]
    plain = {"int": "int-quantized", "float": "float-quantized"}[s.kind]
    if s.bits != 8 or layout not in (plain, "naive-quantized"):
        raise w.fail(
            "num_bits", f"is {s.bits} ({s.kind}, {s.scope}): not described in the format {layout}"
        )
    size = s.block if s.scope == "block" else (s.group,) if s.group else ()
    scope = "group" if s.group else s.scope
    points = {"tensor": "e", "channel": "e*r", "group": f"e*r*ceil_div(c, {s.group})"}
    if not s.symmetric:
        if scope not in points:
            raise w.fail("symmetric", "is false: zero points of blocks are not described")
        more = f"{points[scope]} + {more}" if more else points[scope]
    return scaled_8bit(
        "fp8" if s.kind == "float" else "int8",
        scope,  # type: ignore[arg-type]
        size=tuple(int(n) for n in size),
        scale=s.scale,
        more=more,
        weight_only=weight_only,
    )
