"""Top-k and compressed attention: pairs against a walk over the queries, and where cost stops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.model.compressed_attention import CompressedAttention
from moeplan.model.latent_attention import LatentAttention
from moeplan.model.masks import compressed_pairs, selected_pairs, visible_pairs
from moeplan.model.ops import Block
from moeplan.model.sparse_attention import SparseLatentAttention
from moeplan.model.workload import Phase, Workload
from moeplan.quantity import evaluate

SIZES = {"D": 7168, "H": 128, "rq": 1536, "rkv": 512, "dn": 128, "dr": 64, "dv": 128}
DSA = SparseLatentAttention(**SIZES, Hi=64, di=128, ki=2048)  # DeepSeek-V3.2's
MLA = LatentAttention(**SIZES, mode="absorbed")
V4_SIZES = {"D": 4096, "H": 64, "dh": 512, "dr": 64, "rq": 1024, "W": 128, "Go": 8, "ro": 1024}
WINDOW = CompressedAttention(**V4_SIZES)
CSA = CompressedAttention(**V4_SIZES, kind="csa", m=4, Hi=64, di=128, ki=512)
HCA = CompressedAttention(**V4_SIZES, kind="hca", m=128)
ALL: tuple[Block, ...] = (DSA, WINDOW, CSA, HCA)
PHASES: tuple[Phase, ...] = ("train", "prefill", "decode")


def flops(block: Block, work: Workload, *names: str) -> Any:
    values = block.environment(work)
    return sum(
        evaluate(op.flops, values) for op in block.rows(work) if not names or op.name in names
    )


def work(phase: Phase, S: Any, C: Any, **how: Any) -> Workload:
    return Workload(phase, B=1, S=S, C=C, **how)


# --------------------------------------------------------------------------------- pairs by a walk
@given(C=st.integers(1, 400), new=st.integers(1, 400), top=st.integers(1, 200), m=st.integers(1, 9))
def test_pairs_of_a_walk_over_the_queries(C: int, new: int, top: int, m: int) -> None:
    """A query at position t sees t earlier keys and half of itself, as the causal count has it."""
    S = min(new, C)
    seen = np.arange(C - S, C) + 0.5
    env = {"S": S, "C": C, "top": top, "m": m}
    pass_ = work("prefill", S, C)
    assert evaluate(visible_pairs(pass_), env) == seen.sum()
    # a query between two whole numbers of keys is exact, since limits are whole numbers
    assert evaluate(selected_pairs(pass_, "top"), env) == np.minimum(seen, top).sum()
    found = evaluate(compressed_pairs(pass_, "m"), env)
    assert found == pytest.approx((seen / m).sum())
    found = evaluate(compressed_pairs(pass_, "m", top="top"), env)
    assert found == pytest.approx(np.minimum(seen / m, top).sum())


@given(C=st.integers(1, 10_000), top=st.integers(1, 300), m=st.integers(1, 130))
def test_pairs_of_a_decoding_step(C: int, top: int, m: int) -> None:
    env = {"S": 1, "C": C, "top": top, "m": m}
    step = work("decode", 1, C)
    assert evaluate(selected_pairs(step, "top"), env) == min(C, top)
    assert evaluate(compressed_pairs(step, "m"), env) == C // m
    assert evaluate(compressed_pairs(step, "m", top="top"), env) == min(C // m, top)


# --------------------------------------------------------------------------- what grows, what stops
def test_picked_keys_bound_the_attention_and_not_the_indexer() -> None:
    far, farther = work("decode", 1, 100_000), work("decode", 1, 200_000)
    assert flops(DSA, far, "attention") == flops(DSA, farther, "attention")
    assert flops(DSA, far, "attention") == 2 * 2048 * 128 * (2 * 512 + 64)
    assert flops(DSA, farther, "index_scores") == 2 * flops(DSA, far, "index_scores")
    assert flops(DSA, far, "index_scores") == 2 * 100_000 * 64 * (128 + 1)


@pytest.mark.parametrize("phase", PHASES)
def test_short_contexts_attend_to_all(phase: Phase) -> None:
    """Up to ki tokens the attention is that of plain multi-latent attention."""
    here = work(phase, 1 if phase == "decode" else 2048, 2048)
    assert flops(DSA, here, "attention") == flops(MLA, here, "attention")
    longer = work(phase, 1 if phase == "decode" else 4096, 4096)
    assert flops(DSA, longer, "attention") < flops(MLA, longer, "attention")


def test_the_picks_pay_from_some_context_on() -> None:
    """The indexer costs 64 · 258 a pair, plain attention 128 · 2176."""
    for C, pays in ((2048, False), (131_072, True)):
        here = work("decode", 1, C)
        assert (flops(DSA, here) < flops(MLA, here)) is pays


def test_layers_that_share_picks_have_no_indexer() -> None:
    shared = SparseLatentAttention(**SIZES, Hi=64, di=128, ki=2048, indexes=False)
    assert {w.name for w in shared.weights()} == {w.name for w in MLA.weights()}
    assert [e.name for e in shared.cache()] == ["latent"]
    here = work("decode", 1, 50_000)
    assert flops(shared, here, "attention") == flops(DSA, here, "attention")
    assert flops(shared, here, "index_scores") == 0


def test_compressed_kinds_at_long_context() -> None:
    """A million tokens: windows stop at 128 keys, picks at 512 entries, the rest grows by C/128."""
    each = 4 * 64 * 512  # FLOPs of a key in all heads
    for C in (131_072, 1_048_576):
        here = work("decode", 1, C)
        assert flops(WINDOW, here, "attention") == each * 128
        assert flops(CSA, here, "attention") == each * (128 + 512)
        assert flops(HCA, here, "attention") == each * (128 + C // 128)
        assert flops(CSA, here, "index_scores") == 2 * (C // 4) * 64 * 129


@pytest.mark.parametrize("block", ALL)
def test_every_weight_is_used_and_every_matrix_multiplied_once(block: Block) -> None:
    for phase in PHASES:
        here = work(phase, 1 if phase == "decode" else 512, 512)
        rows = block.rows(here)
        assert {w.name for op in rows for w in op.weights} == {w.name for w in block.weights()}
        matrices = sum(evaluate(w.elements, block.values) for w in block.weights() if w.matmul)
        linear = flops(block, here, *(op.name for op in rows if op.kind == "linear"))
        assert linear == 2 * here.values["T"] * matrices


def test_cache_of_entries() -> None:
    held = {e.name: evaluate(e.per_token, CSA.values) for e in CSA.cache() if e.per_token != "0"}
    assert held == {"window_kv": 512, "compressed_kv": 128, "index_keys": 32}
    state = {e.name: evaluate(e.fixed, CSA.values) for e in CSA.cache() if e.fixed != "0"}
    # values and gates of two blocks of 4 tokens, two series wide
    assert state == {"compressor_state": 2 * 8 * 2 * 512, "index_state": 2 * 8 * 2 * 128}
    assert [e.name for e in WINDOW.cache()] == ["window_kv"]


@pytest.mark.parametrize("block", ALL)
def test_arrays_agree_with_scalars(block: Block) -> None:
    contexts = [100, 3000, 200_000]
    for phase in PHASES:
        many = work(phase, 1 if phase == "decode" else contexts, contexts)
        for op in block.rows(many):
            ones = [
                flops(block, work(phase, 1 if phase == "decode" else c, c), op.name)
                for c in contexts
            ]
            found = evaluate(op.flops, block.environment(many))
            np.testing.assert_allclose(np.broadcast_to(found, 3), ones)
