"""LG's K-EXAONE: DeepSeek-V3's experts behind windows, and full layers without positions."""

from __future__ import annotations

from dataclasses import replace

from moeplan.families.deepseek import routed_experts, sigmoid_routing
from moeplan.families.reader import Config, shown
from moeplan.families.stack import (
    WINDOW,
    dense_first,
    layered,
    scoped_attention,
    scopes,
    sparse_words,
)
from moeplan.model.ffn import ExpertNames
from moeplan.model.spec import ModelSpec

__all__ = ["exaone_moe", "windows_of_pattern"]

NAMES = ExpertNames(selection_bias="mlp.e_score_correction_bias")


def windows_of_pattern(c: Config, layers: int) -> list[str]:
    """A full layer after so many windows: a number, or a word of one letter a layer (LLLG)."""
    _, pattern = c.raw("sliding_window_pattern", default=4)
    if isinstance(pattern, str):
        if not pattern or set(pattern) - set("LG"):
            raise c.fail("sliding_window_pattern", f"is {shown(pattern)}: L and G are understood")
        word = pattern
        return scopes(c, layers, full=lambda i: word[i % len(word)] == "G" or i == layers - 1)
    every = int(c.int("sliding_window_pattern", default=4).value)
    return scopes(c, layers, full=lambda i: (i + 1) % every == 0)


def exaone_moe(c: Config) -> ModelSpec:
    """Read a K-EXAONE config; only windowed layers rotate."""
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    kinds = windows_of_pattern(c, layers)
    modules = c.optional("num_nextn_predict_layers")
    if modules is not None:
        c.note("the multi-token-prediction modules that the file names are not counted")
    c.ignore("mtp_share_layers", "mtp_loss_scaling_factor")
    moe = routed_experts(c, sigmoid_routing(c, groups=(1, 1), scale=2.5), shared=1)
    moe = replace(moe, names=NAMES)
    mixers = scoped_attention(
        c, hidden, kinds, window=4096, turned=(WINDOW,), grouped=True, qk_norm="head"
    )
    first = dense_first(c, layers, "first_k_dense_replace", 1)
    marks = c.list("is_moe_layer", length=layers, default=None)
    sparse = sparse_words(c, layers, first if marks is None else [m is True for m in marks])
    return layered(c, "exaone_moe", hidden, mixers, kinds, moe, sparse)
