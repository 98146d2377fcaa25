"""The formats of a checkpoint, from `torch_dtype` and `quantization_config`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from moeplan.errors import UserError
from moeplan.families import compressed_tensors, modelopt
from moeplan.families.compressed_tensors import cache_format
from moeplan.families.module_names import compiled, modules
from moeplan.families.reader import Config, shown
from moeplan.model.formats import (
    FORMATS,
    KEPT,
    Checkpoint,
    Format,
    awq_int,
    gptq_int,
    scaled_8bit,
)

__all__ = ["merge_quant_config", "read_checkpoint"]

_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_KEYS = ("quantization_config", "compression_config")  # the second is its name in older files

# Unread keys of these names may change what is stored: they are refused, others are reported.
_STORED = re.compile(
    r"bits|group|block|scale|zero|dtype|format|pack|layer|module|lm_head|sym|act|spars|transform"
    r"|rank|lora|outlier|algo|scheme|target|ignore|exclude|weight|embed|expert|dynamic|version"
)


def read_checkpoint(*configs: Config) -> Checkpoint:
    """The formats that the outermost config with the keys names."""
    base, source, assumed = FORMATS["bf16"], "bf16 assumed: the config names no dtype", True
    for c in configs:
        key, dtype = c.raw("torch_dtype", "dtype", default=None)
        if dtype is not None:
            if not isinstance(dtype, str) or dtype not in _DTYPES:
                raise c.fail(key, f"is {shown(dtype)}: allowed are {', '.join(_DTYPES)}")
            base, source, assumed = FORMATS[_DTYPES[dtype]], key, False
            break
    checkpoint = Checkpoint(base=base, source=source, assumed=assumed)
    found: list[tuple[Config, str]] = []
    for c in configs:
        c.expect("quantization", [False, {}], "quantised MLX weights are not described")
        for key in _KEYS:
            if c.raw(key, default=None)[1] not in (None, False, {}):
                found.append((c, key))
    return _quantised(*found[0], checkpoint, configs) if found else checkpoint


def merge_quant_config(data: Mapping[str, Any], quant: Any, path: str) -> dict[str, Any]:
    """A config.json's keys with those of the `hf_quant_config.json` that lies beside it.

    NVIDIA's modelopt writes that file; newer versions also write its content, renamed, into
    config.json. `path` names the second file in messages. Raises UserError where it is not such a
    file or where both files disagree about the format.
    """
    inner = quant.get("quantization") if isinstance(quant, Mapping) else None
    if not isinstance(inner, Mapping):
        raise UserError(f"{path}: key quantization is missing or not an object")
    own = data.get("quantization_config") or {}
    if not isinstance(own, Mapping):
        raise UserError(f"{path}: config.json's quantization_config is {shown(own)}, not an object")
    algo, theirs = inner.get("quant_algo"), own.get("quant_algo")
    if theirs is not None and theirs != algo:
        raise UserError(
            f"{path}: quantization.quant_algo is {algo!r} but config.json's "
            f"quantization_config.quant_algo is {theirs!r}: they must agree"
        )
    renamed = {"ignore": "exclude_modules", "kv_cache_scheme": "kv_cache_quant_algo"}
    covered = {old for new, old in renamed.items() if new in own}
    added = {k: v for k, v in inner.items() if k not in covered}
    return {**data, "quantization_config": {"quant_method": "modelopt", **added, **own}}


def _quantised(c: Config, key: str, plain: Checkpoint, configs: tuple[Config, ...]) -> Checkpoint:
    q = c.sub(key)
    assert q is not None
    default = "modelopt" if "quant_algo" in q or "quantization" in q else None
    how = {} if default is None else {"default": default}
    method = q.choice("quant_method", allowed=sorted(_METHODS), **how)
    made = _METHODS[method](q, plain.base, _experts(configs))
    for name, value in q.data.items():
        inert = value is None or value is False or value in ([], {}, "")
        if name not in q.read and not inert and _STORED.search(name):
            raise q.fail(name, f"is {shown(value)}: quantisation by {method} does not read it")
    return replace(plain, source=key, assumed=False, **made)


def _experts(configs: Iterable[Config]) -> int | None:
    """Experts of a layer, to tell whether a list names all of them."""
    keys = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
    found = [c.data[key] for c in configs for key in keys if isinstance(c.data.get(key), int)]
    return found[0] if found else None


def _left_out(q: Config, experts: int | None, *keys: str) -> dict[str, Any]:
    """The checkpoint's fields for a list of modules that stay as they are."""
    key, _ = q.raw(*keys, default=[])
    found = modules(q, key, q.list(*keys, default=[]), experts)
    return {"excluded": found.patterns, "excluded_names": found.names}


def _fp8(q: Config, base: Format, experts: int | None) -> dict[str, Any]:
    """FP8 as DeepSeek-V3 stores it, and its kin with one scale per tensor.

    An MTP module's input projection (`eh_proj`) is left alone, as in DeepSeek's checkpoints.
    """
    q.ignore("fmt", "scale_fmt")
    scheme = q.choice("activation_scheme", allowed=("dynamic", "static"), default="dynamic")
    more = "4*e" if scheme == "static" else ""
    size = q.list("weight_block_size", length=2, default=None)
    left = _left_out(q, experts, "modules_to_not_convert", "ignored_layers")
    left["excluded_names"] |= {"eh_proj"}
    left["cache"] = cache_format(q, "kv_cache_scheme")
    if size is None:
        if "weight_block_size" not in q.data:
            q.note("weight_block_size is absent: one scale per tensor")
        return {"quantised": scaled_8bit("fp8", "tensor", more=more), **left}
    rows, columns = (_positive(q, "weight_block_size", n) for n in size)
    q.note("block scales are counted as fp32; some checkpoints (Qwen's) store them in bf16")
    return {"quantised": scaled_8bit("fp8", "block", size=(rows, columns), more=more), **left}


def _fbgemm_fp8(q: Config, base: Format, experts: int | None) -> dict[str, Any]:
    """FP8 with one scale per output row."""
    q.ignore("activation_scale_ub")
    left = _left_out(q, experts, "modules_to_not_convert")
    return {"quantised": scaled_8bit("fp8", "channel"), **left}


def _mxfp4(q: Config, base: Format, experts: int | None) -> dict[str, Any]:
    """gpt-oss: only the experts' matrices; their biases stay as they are."""
    left = _left_out(q, experts, "modules_to_not_convert")
    return {"quantised": FORMATS["mxfp4"], "only": (r"(^|\.)experts(\.|$)",), **left}


def _bits(q: Config, *keys: str, allowed: tuple[int, ...]) -> int:
    bits = int(q.int(*keys).value)
    if bits not in allowed:
        raise q.fail(keys[0], f"is {bits}: understood is {', '.join(map(str, allowed))}")
    return bits


def _group_size(q: Config, *keys: str) -> int | None:
    """Inputs that share a scale; -1 means all of them."""
    size = int(q.int(*keys, default=128, least=-1).value)
    if size == 0:
        raise q.fail(keys[0], "is 0: it must be -1 or at least 1")
    return None if size == -1 else size


# how the weights were found, and which kernels run them
_GPTQ_INERT = (
    "desc_act",
    "sym",
    "static_groups",
    "true_sequential",
    "damp_percent",
    "damp_auto_increment",
    "model_file_base_name",
    "block_name_to_quantize",
    "module_name_preceding_first_block",
    "exllama_config",
    "use_cuda_fp16",
    "cache_block_outputs",
    "version",
    "meta",
    "model_name_or_path",
    "batch_size",
    "dataset",
    "tokenizer",
    "model_seqlen",
    "max_input_length",
    "pad_token_id",
    "use_exllama",
    "disable_exllama",
    "backend",
    "hyb_act",
)


def _gptq(q: Config, base: Format, experts: int | None) -> dict[str, Any]:
    """GPTQ: the linear layers of the decoder's layers; the head only where `lm_head` says so."""
    q.ignore(*_GPTQ_INERT)
    q.expect("pack_dtype", ["int32"], "another layout of the words")
    for key in ("checkpoint_format", "format"):
        q.expect(key, ["gptq", "gptq_v2"], "another layout of the words")
    q.expect("is_marlin_format", [False], "another layout of the words")
    bits, size = _bits(q, "bits", allowed=(2, 3, 4, 8)), _group_size(q, "group_size")
    excluded, rules = _dynamic(q, bits, size)
    blocks = q.list("modules_in_block_to_quantize", default=None)
    only = modules(q, "modules_in_block_to_quantize", _flat(blocks or []), experts)
    kept = KEPT - {"head"} if q.flag("lm_head", default=False) else KEPT
    if "meta" not in q:  # where GPTQModel names itself
        q.note("the zero biases that AutoGPTQ stores, 2 bytes an output, are not counted")
    return {
        "quantised": gptq_int(bits, size),
        "only": only.as_patterns(),
        "excluded": excluded,
        "rules": rules,
        "kept": kept,
    }


def _flat(entries: list[Any]) -> list[Any]:
    return [x for entry in entries for x in (entry if isinstance(entry, list) else [entry])]


def _dynamic(
    q: Config, bits: int, size: int | None
) -> tuple[tuple[str, ...], tuple[tuple[str, Format], ...]]:
    """GPTQModel's `dynamic`: "-:regex" leaves modules alone, others change bits or group size."""
    dynamic = q.sub("dynamic", required=False)
    if dynamic is None:
        return (), ()
    excluded: list[str] = []
    rules: list[tuple[str, Format]] = []
    for key in dynamic.data:
        dynamic.ignore(key)
        text = key.removeprefix("-:").removeprefix("+:")
        pattern = compiled(dynamic, key, f"^(?:{text})")
        if key.startswith("-:"):
            excluded.append(pattern)
            continue
        own = Config(dynamic.data[key], q.path, prefix=f"{q.prefix}dynamic.{key}.")
        own_bits = _bits(own, "bits", allowed=(2, 3, 4, 8)) if "bits" in own else bits
        own_size = _group_size(own, "group_size") if "group_size" in own else size
        rules.append((pattern, gptq_int(own_bits, own_size)))
    return tuple(excluded), tuple(rules)


def _awq(q: Config, base: Format, experts: int | None) -> dict[str, Any]:
    """AWQ: every linear layer but the head and those listed."""
    q.ignore("zero_point", "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "exllama_config")
    q.ignore("backend", "format")
    q.expect("version", ["gemm", "GEMM"], "another layout of the words")
    bits = _bits(q, "bits", "w_bit", allowed=(4, 8))
    size = _group_size(q, "group_size", "q_group_size")
    return {"quantised": awq_int(bits, size), **_left_out(q, experts, "modules_to_not_convert")}


def _positive(q: Config, key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise q.fail(key, f"holds {shown(value)}: positive whole numbers are needed")
    return value


_Method = Callable[[Config, Format, "int | None"], dict[str, Any]]
_METHODS: dict[str, _Method] = {
    "awq": _awq,
    "compressed-tensors": compressed_tensors.read,
    "fbgemm_fp8": _fbgemm_fp8,
    "fp8": _fp8,
    "gptq": _gptq,
    "modelopt": modelopt.read,
    "modelopt_fp4": modelopt.read,
    "mxfp4": _mxfp4,
}
