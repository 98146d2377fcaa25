"""LG's K-EXAONE: DeepSeek-V3's experts behind windows, and full layers without positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from moeplan.families.common import pre_norm
from moeplan.families.deepseek import routed_experts, sigmoid_routing
from moeplan.families.mtp import mtp_stack
from moeplan.families.reader import Config, shown
from moeplan.families.stack import (
    WINDOW,
    WORDS,
    dense_first,
    layered,
    scoped_attention,
    scopes,
    sparse_words,
)
from moeplan.model.ffn import DenseFFN, ExpertNames
from moeplan.model.ops import Block
from moeplan.model.spec import Group, ModelSpec
from moeplan.quantity import Quantity

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


def _mtp(c: Config, hidden: Quantity, mixers: Mapping[str, Block]) -> list[Group]:
    """Modules as vLLM loads them: layers with a dense feed-forward, one projection for all."""
    modules = c.int("num_nextn_predict_layers", default=0, symbol="modules", least=0)
    c.expect("mtp_share_layers", [False], "one layer that all modules share is not described")
    if not modules.value:
        return []
    words = c.list("mtp_layer_types", length=int(modules.value), default=None)
    if words is None:
        c.note("mtp_layer_types is absent: the prediction module is taken to see all tokens")
        words = ["full_attention"]
    kind = WORDS.get(words[0], "")
    if len(set(words)) > 1 or kind not in mixers:
        raise c.fail("mtp_layer_types", f"is {shown(words)}: one kind of the model's is described")
    dense = DenseFFN(D=hidden, F=c.int("intermediate_size", symbol="F"))
    return mtp_stack(c, hidden, pre_norm(hidden, mixers[kind], dense), modules)


def exaone_moe(c: Config) -> ModelSpec:
    """Read a K-EXAONE config; only windowed layers rotate."""
    hidden = c.int("hidden_size", symbol="D")
    layers = int(c.int("num_hidden_layers", symbol="L").value)
    kinds = windows_of_pattern(c, layers)
    c.ignore("mtp_loss_scaling_factor")
    moe = routed_experts(c, sigmoid_routing(c, groups=(1, 1), scale=2.5), shared=1)
    moe = replace(moe, names=NAMES)
    mixers = scoped_attention(
        c, hidden, kinds, window=4096, turned=(WINDOW,), grouped=True, qk_norm="head"
    )
    first = dense_first(c, layers, "first_k_dense_replace", 1)
    marks = c.list("is_moe_layer", length=layers, default=None)
    sparse = sparse_words(c, layers, first if marks is None else [m is True for m in marks])
    mtp = _mtp(c, hidden, mixers)
    return layered(c, "exaone_moe", hidden, mixers, kinds, moe, sparse, mtp=mtp)
