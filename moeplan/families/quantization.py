"""The formats of a checkpoint, from `torch_dtype` and `quantization_config`."""

from __future__ import annotations

import re

from moeplan.families.reader import Config
from moeplan.model.formats import FORMATS, Checkpoint, Format, block_fp8

__all__ = ["read_checkpoint"]

_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def read_checkpoint(*configs: Config) -> Checkpoint:
    """The formats that the outermost config with the keys names."""
    base, source, assumed = FORMATS["bf16"], "bf16 assumed: the config names no dtype", True
    for c in configs:
        _, dtype = c.raw("torch_dtype", "dtype", default=None)
        if dtype is not None:
            if dtype not in _DTYPES:
                raise c.fail("torch_dtype", f"is {dtype!r}: allowed are {', '.join(_DTYPES)}")
            base, source, assumed = FORMATS[_DTYPES[dtype]], "torch_dtype", False
            break
    for c in configs:
        if c.data.get("quantization_config"):
            return _quantised(c, base)
        c.ignore("quantization_config")
    return Checkpoint(base=base, source=source, assumed=assumed)


def _quantised(c: Config, base: Format) -> Checkpoint:
    q = c.sub("quantization_config")
    assert q is not None
    method = q.choice("quant_method", allowed=("fp8", "mxfp4"))
    excluded = q.list("modules_to_not_convert", default=[])
    q.ignore("activation_scheme", "fmt", "scale_fmt")
    if method == "mxfp4":
        fmt, only = FORMATS["mxfp4"], (r"experts",)
    else:
        size = q.list("weight_block_size", default=None)
        fmt, only = (block_fp8(*size) if size else FORMATS["fp8"]), ()
    return Checkpoint(
        base=base,
        quantised=fmt,
        excluded=tuple(_pattern(e) for e in excluded),
        only=only,
        source="quantization_config",
        assumed=False,
    )


def _pattern(name: str) -> str:
    """A module name as written in the file, with its wildcards, as a regular expression."""
    return "(^|\\.)" + re.escape(name).replace("\\*", "[^.]*") + "(\\.|$)"
