"""Models of transformers on torch's meta device, and torch's FLOP counter over them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from moeplan.presets import preset
from tests.families.oracle_cases import merged
from tests.oracle import their_config

__all__ = ["MODELS", "TWO", "Counts", "counted", "grouped", "meta_model", "shortened", "tokens"]

Counts = dict[tuple[str, int, str], int]
"""(encoder or decoder, layer or -1, class of operation) to FLOPs."""

# Few layers, all other sizes as they are: the meta device needs no memory.
TWO = {"num_hidden_layers": 2}
MODELS: dict[str, dict[str, Any]] = {
    "deepseek-v2": TWO,
    "deepseek-v2-lite": TWO,
    "deepseek-v3": TWO | {"first_k_dense_replace": 1},
    "dots.llm1": TWO,
    "ernie-4.5-21b-a3b": TWO,
    "gemma-4-26b-a4b": {
        "text_config": TWO | {"layer_types": ["sliding_attention", "full_attention"]}
    },
    "glm-4.5-air": TWO,
    "glm-4.7-flash": TWO,
    "gpt-oss-120b": TWO | {"layer_types": ["sliding_attention", "full_attention"]},
    "granite-3.1-1b-a400m": TWO,
    "kimi-k2": TWO,
    "llama-3.1-8b": TWO,
    "llama-3.2-1b": TWO,
    "llama4-scout": {"text_config": TWO},
    "llama4-maverick": {"text_config": {"num_hidden_layers": 4}},
    "mimo-v2-flash": TWO,
    "minimax-m2": TWO,
    "mistral-7b": TWO,
    "mixtral-8x7b": TWO,
    "olmoe-1b-7b": TWO,
    "phi-3.5-moe": TWO,
    "qwen1.5-moe-a2.7b": TWO,
    "qwen3-30b-a3b": TWO,
    "qwen3-8b": TWO,
    "qwen3-next-80b-a3b": {"num_hidden_layers": 4},
    "qwen3.5-35b-a3b": {
        "text_config": {
            "num_hidden_layers": 2,
            "full_attention_interval": 2,
            "layer_types": ["linear_attention", "full_attention"],
        }
    },
}


def shortened(name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's config with `changes`; lists with an entry a layer are cut to the new number."""
    config = preset(name).config
    before, after = config.get("num_hidden_layers"), changes.get("num_hidden_layers")
    lists = {k: v for k, v in config.items() if isinstance(v, list) and len(v) == before}
    return merged(config, {k: v[:after] for k, v in lists.items()} | dict(changes))


def meta_model(config: Mapping[str, Any]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            their_config(config.get("text_config", config)),
            attn_implementation="eager",
            dtype=torch.bfloat16,
        )
    if getattr(model, "_can_set_experts_implementation", lambda: False)():
        model.set_experts_implementation("grouped_mm")
    return model


def tokens(batch: int, length: int, seen: int) -> dict[str, Any]:
    """Inputs on the meta device; the mask is given, because making one would look at values."""
    import torch

    meta = torch.device("meta")
    return {
        "input_ids": torch.zeros(batch, length, dtype=torch.long, device=meta),
        "attention_mask": torch.zeros(batch, 1, length, seen, dtype=torch.bfloat16, device=meta),
    }


def grouped(a: tuple[int, ...], b: tuple[int, ...], *_: Any, **__: Any) -> int:
    """A grouped matmul: rows [m, k] by experts [E, k, n], or the gradient [m, k] x [k, n]."""
    return 2 * a[-2] * a[-1] * b[-1]


def counted(model: Any, **inputs: Any) -> tuple[Counts, int]:
    """FLOPs by (stack, layer, class) of one forward pass, and their sum."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    # torch counts a grouped matmul as nothing unless it is told how
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._grouped_mm: grouped})
    with counter:
        model.requires_grad_(False)(**inputs)
    counts = {name: dict(ops) for name, ops in counter.get_flop_counts().items()}
    found: dict[tuple[str, int, str], int] = defaultdict(int)
    for name, ops in counts.items():
        for op, number in ops.items():
            inner = sum(counts[child].get(op, 0) for child in _children(name, counts))
            if number != inner and name != "Global":
                found[_place(name, str(op))] += number - inner
    return dict(found), counter.get_total_flops()


def _children(name: str, counts: Mapping[str, Any]) -> list[str]:
    """The nearest modules below a module that counted anything."""
    below = [other for other in counts if other.startswith(f"{name}.")]
    return [a for a in below if not any(a.startswith(f"{b}.") for b in below if a != b)]


CLASSES = (  # the first pattern that a module's name holds
    (r"lm_head", "head"),
    (r"shared_expert", "shared_experts"),
    (r"router|(mlp|block_sparse_moe)\.gate$", "router"),
    (r"experts", "routed_experts"),
    (r"attn|attention|Attention", "attention"),
    (r"mlp|ffn|feed_forward|Dense", "dense_ffn"),
)
MATMULS = ("aten.mm", "aten.addmm")


def _place(name: str, op: str) -> tuple[str, int, str]:
    kind = next(word for pattern, word in CLASSES if re.search(pattern, name))
    if kind == "attention" and op not in MATMULS:
        kind = "scan" if "linear_attn" in name else "scores"
    stack = "encoder" if ".encoder." in name else "decoder"
    layer = re.search(r"\.(?:layers|blocks|block)\.(\d+)", name)
    return stack, int(layer[1]) if layer else -1, kind
