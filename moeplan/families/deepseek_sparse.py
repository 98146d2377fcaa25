"""DeepSeek-V3.2 and GLM-5: multi-latent attention over the tokens that an indexer picks (DSA)."""

from __future__ import annotations

from moeplan.families.deepseek import latent_attention, moe_model, routed_experts, sigmoid_routing
from moeplan.families.reader import Config, shown
from moeplan.model.sparse_attention import SparseLatentAttention
from moeplan.model.spec import ModelSpec

__all__ = ["deepseek_v32", "glm_moe_dsa", "indexer_kinds", "sparse_attention"]

FULL, SHARED = "sparse attention", "sparse attention (shared picks)"


def sparse_attention(c: Config, *, indexes: bool = True) -> SparseLatentAttention:
    """DSA; its indexer's queries come from the latent that the attention's queries come from."""
    if "q_lora_rank" in c.data and c.data["q_lora_rank"] is None:
        raise c.fail("q_lora_rank", "is null: the indexer's queries need a latent")
    return latent_attention(
        c,
        SparseLatentAttention,
        Hi=c.int("index_n_heads", symbol="Hi"),
        di=c.int("index_head_dim", symbol="di"),
        ki=c.int("index_topk", symbol="ki"),
        indexes=indexes,
    )


def deepseek_v32(c: Config) -> ModelSpec:
    """Read a DeepSeek-V3.2 config: V3 with a sparse attention in every layer."""
    routing = sigmoid_routing(c, groups=(8, 4), scale=2.5)
    c.expect("layer_types", [["indexed_attention"] * _layers(c)], "every layer is sparse here")
    c.ignore("rope_interleave", "indexer_rope_interleave")
    moe = routed_experts(c, routing, shared=1)
    mixer = sparse_attention(c)
    return moe_model(c, "deepseek_v32", mixer, moe, dense=3, mtp=1, typed=True)


def _layers(c: Config) -> int:
    return int(c.int("num_hidden_layers").value)


def indexer_kinds(c: Config, layers: int) -> list[str]:
    """Which layers run the indexer; the others take the picks of the last one that did.

    From indexer_types, or from the pattern, or from every index_topk_freq-th layer.
    """
    words = {"full": FULL, "shared": SHARED, "F": FULL, "S": SHARED}
    key, pattern = c.raw("indexer_types", "index_topk_pattern", default=None)
    freq = int(c.int("index_topk_freq", default=1).value)
    offset = int(c.int("index_skip_topk_offset", default=2, least=0).value)
    if pattern is None:
        return [SHARED if max(i - offset + 1, 0) % freq else FULL for i in range(layers)]
    if len(pattern) != layers or any(word not in words for word in pattern):
        raise c.fail(key, f"is {shown(pattern)}: 'full' or 'shared' is needed for each layer")
    if words[pattern[0]] == SHARED:
        raise c.fail(key, "starts with a layer that has no earlier picks to share")
    return [words[word] for word in pattern]


def glm_moe_dsa(c: Config) -> ModelSpec:
    """Read a GLM-5 config: DSA whose picks later layers may share."""
    routing = sigmoid_routing(c, groups=(1, 1), scale=2.5)
    c.ignore("rope_interleave", "indexer_rope_interleave")
    kinds = indexer_kinds(c, _layers(c))
    mixers = {FULL: sparse_attention(c)}
    if SHARED in kinds:
        mixers[SHARED] = sparse_attention(c, indexes=False)
    moe = routed_experts(c, routing, shared=1)
    return moe_model(c, "glm_moe_dsa", mixers, moe, dense=3, mtp=1, typed=True, mixer_kinds=kinds)
