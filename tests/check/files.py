"""Checkpoints that tests write: a small Mixtral, listed by hand, and a writer of safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

# name -> (element type, shape)
Tensors = dict[str, tuple[str, tuple[int, ...]]]

BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1, "I8": 1, "I32": 4, "I64": 8, "F16": 2}

LAYERS, HIDDEN, WIDTH, EXPERTS, HEADS, KV, VOCAB = 3, 256, 384, 4, 4, 2, 512
HEAD = HIDDEN // HEADS

MIXTRAL: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": HIDDEN,
    "intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "vocab_size": VOCAB,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def mixtral(dtype: str = "BF16") -> Tensors:
    """Every tensor of a checkpoint of MIXTRAL, as the hub's files name and shape them."""
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        out[f"{at}input_layernorm.weight"] = (HIDDEN,)
        out[f"{at}self_attn.q_proj.weight"] = (HIDDEN, HIDDEN)
        out[f"{at}self_attn.k_proj.weight"] = (KV * HEAD, HIDDEN)
        out[f"{at}self_attn.v_proj.weight"] = (KV * HEAD, HIDDEN)
        out[f"{at}self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        out[f"{at}post_attention_layernorm.weight"] = (HIDDEN,)
        out[f"{at}block_sparse_moe.gate.weight"] = (EXPERTS, HIDDEN)
        for e in range(EXPERTS):
            expert = f"{at}block_sparse_moe.experts.{e}."
            out[f"{expert}w1.weight"] = (WIDTH, HIDDEN)
            out[f"{expert}w2.weight"] = (HIDDEN, WIDTH)
            out[f"{expert}w3.weight"] = (WIDTH, HIDDEN)
    out["model.norm.weight"] = (HIDDEN,)
    out["lm_head.weight"] = (VOCAB, HIDDEN)
    return {name: (dtype, shape) for name, shape in out.items()}


def matrices(tensors: Tensors) -> list[str]:
    """The weights that quantisation converts: matrices of attention and experts."""
    kept = ("embed_tokens", "lm_head", "norm", "gate.weight")
    return [name for name in tensors if not any(word in name for word in kept)]


def write(path: Path, tensors: Tensors, *, short: int = 0, header: bytes | None = None) -> None:
    """A safetensors file of zeros; `short` bytes are left out, `header` replaces the right one."""
    places, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = prod(shape) * BYTES[dtype]
        places[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **places}).encode()
    text = text if header is None else header
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(at - short))


def folder(
    path: Path, tensors: Tensors | None = None, config: Mapping[str, Any] = MIXTRAL, **more: Any
) -> Path:
    """A folder with a config and, where tensors are given, one file of them."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({**config, **more}))
    if tensors is not None:
        write(path / "model.safetensors", tensors)
    return path


def sharded(path: Path, tensors: Tensors, shards: int = 3, *, index: bool = True) -> list[Path]:
    """The same tensors over several files, in turns; returns the files."""
    names = [f"model-{n:05}-of-{shards:05}.safetensors" for n in range(1, shards + 1)]
    own: list[Tensors] = [{} for _ in names]
    where = {}
    for place, (name, tensor) in enumerate(tensors.items()):
        own[place % shards][name] = tensor
        where[name] = names[place % shards]
    for name, part in zip(names, own, strict=True):
        write(path / name, part)
    if index:
        write_index(path, tensors, where)
    return [path / name for name in names]


def write_index(path: Path, tensors: Tensors, where: Mapping[str, str] | None = None) -> None:
    """An index of the tensors with their bytes together."""
    size = sum(prod(shape) * BYTES[dtype] for dtype, shape in tensors.values())
    files = where or dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    text = json.dumps({"metadata": {"total_size": size}, "weight_map": files})
    (path / "model.safetensors.index.json").write_text(text)
