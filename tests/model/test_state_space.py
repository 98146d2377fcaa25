"""State spaces and linear attention: FLOPs of chunked runs that are checked to be right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.model.kimi_delta_attention import KimiDeltaAttention
from moeplan.model.lightning_attention import LightningAttention
from moeplan.model.ops import Block, Op
from moeplan.model.short_convolution import ShortConvolution
from moeplan.model.state_space import Mamba1, Mamba2
from moeplan.model.workload import Phase, Workload
from moeplan.quantity import evaluate

MAMBA1 = Mamba1(D=4096, Di=8192, N=16, R=256, w=4, norms=True)  # Jamba's
MAMBA2 = Mamba2(D=2688, Hm=64, dm=64, N=128, G=8, w=4, chunk=128)  # Nemotron 3 Nano's
LIGHTNING = LightningAttention(D=6144, H=64, dh=128)  # MiniMax-Text-01's
KDA = KimiDeltaAttention(D=2304, H=32, dk=128, w=4)  # Kimi Linear's
CONV = ShortConvolution(D=2048, w=3)  # LFM2's
ALL: tuple[Block, ...] = (MAMBA1, MAMBA2, LIGHTNING, KDA, CONV)
SCANS = {"selective_scan", "ssd", "lightning", "delta_rule"}
PHASES: tuple[Phase, ...] = ("train", "prefill", "decode")


def scan(block: Block, work: Workload) -> Op:
    (found,) = [op for op in block.rows(work) if op.name in SCANS]
    return found


def flops(block: Block, work: Workload, name: str = "") -> Any:
    rows = [scan(block, work)] if not name else [o for o in block.rows(work) if o.name == name]
    return sum(evaluate(op.flops, block.environment(work)) for op in rows)


class Counting:
    """Matrix products that count 2·m·k·n FLOPs."""

    def __init__(self) -> None:
        self.flops = 0

    def __call__(self, a: Any, b: Any) -> Any:
        self.flops += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        return a @ b


def recurrence(decay: Any, key: Any, value: Any, query: Any) -> Any:
    """M = a·M + k vᵀ, output Mᵀ q, token by token, for one head."""
    state = np.zeros((key.shape[1], value.shape[1]))
    out = []
    for a, k, v, q in zip(decay, key, value, query, strict=True):
        state = a * state + np.outer(k, v)
        out.append(state.T @ q)
    return np.array(out)


def chunked(dot: Any, decay: Any, key: Any, value: Any, scores: Any, query: Any, Q: int) -> Any:
    """The same by chunks; `scores(i)` gives a chunk's query-key products."""
    state, out = np.zeros((key.shape[1], value.shape[1])), []
    for i in range(0, len(key), Q):
        k, v, q = key[i : i + Q], value[i : i + Q], query[i : i + Q]
        total = np.cumprod(decay[i : i + Q])
        mask = np.tril(total[:, None] / total[None, :])
        old = dot(q * total[:, None], state)
        out.append(dot(scores(i) * mask, v) + old)
        state = total[-1] * state + dot((k * (total[-1] / total)[:, None]).T, v)
    return np.concatenate(out)


@pytest.mark.parametrize(("S", "Q", "heads", "groups"), [(12, 4, 3, 1), (16, 8, 4, 2)])
def test_state_space_duality(S: int, Q: int, heads: int, groups: int) -> None:
    N, dm = 5, 7
    random = np.random.default_rng(0)
    B, C = random.normal(size=(2, groups, S, N))
    x, a = random.normal(size=(heads, S, dm)), random.uniform(0.5, 1, size=(heads, S))
    dot, shared = Counting(), {}
    for h in range(heads):
        g = h * groups // heads

        def scores(i: int, g: int = g) -> Any:  # one product a group, shared by its heads
            if (g, i) not in shared:
                shared[g, i] = dot(C[g, i : i + Q], B[g, i : i + Q].T)
            return shared[g, i]

        found = chunked(dot, a[h], B[g], x[h], scores, C[g], Q)
        np.testing.assert_allclose(found, recurrence(a[h], B[g], x[h], C[g]))
    block = Mamba2(D=8, Hm=heads, dm=dm, N=N, G=groups, w=4, chunk=Q)
    assert flops(block, Workload("prefill", S=S, C=S)) == dot.flops


@pytest.mark.parametrize(("S", "Q", "heads", "dh"), [(12, 4, 2, 6), (32, 16, 3, 8)])
def test_lightning_blocks(S: int, Q: int, heads: int, dh: int) -> None:
    random = np.random.default_rng(0)
    q, k, v = random.normal(size=(3, heads, S, dh))
    dot = Counting()
    for h in range(heads):
        decay = np.full(S, 0.5 + 0.1 * h)

        def scores(i: int, h: int = h) -> Any:
            return dot(q[h, i : i + Q], k[h, i : i + Q].T)

        found = chunked(dot, decay, k[h], v[h], scores, q[h], Q)
        np.testing.assert_allclose(found, recurrence(decay, k[h], v[h], q[h]))
    block = LightningAttention(D=8, H=heads, dh=dh, chunk=Q)
    assert flops(block, Workload("prefill", S=S, C=S)) == dot.flops


def test_delta_rule_with_a_decay_per_channel() -> None:
    S, Q, heads, dk = 12, 4, 2, 5
    random = np.random.default_rng(0)
    q, k, v = random.normal(size=(3, heads, S, dk)) / 2
    a, b = random.uniform(0.5, 1, size=(heads, S, dk)), random.uniform(0, 1, size=(heads, S))
    dot, inverses = Counting(), 0
    for h in range(heads):
        state, expected = np.zeros((dk, dk)), []
        for t in range(S):  # the recurrence
            state = a[h, t][:, None] * state
            state = state + np.outer(k[h, t], b[h, t] * (v[h, t] - state.T @ k[h, t]))
            expected.append(state.T @ q[h, t])
        state, found = np.zeros((dk, dk)), []
        for i in range(0, S, Q):  # its chunks
            decay = np.cumprod(a[h, i : i + Q], axis=0)
            keys, strength = k[h, i : i + Q], b[h, i : i + Q, None]
            far, near = keys * decay, keys / decay
            inverse = np.linalg.inv(np.eye(Q) + np.tril(strength * dot(far, near.T), -1))
            inverses += Q * (Q - 1) * (Q - 2) // 3
            new = dot(inverse, strength * v[h, i : i + Q])
            new = new - dot(dot(inverse, strength * far), state)
            read = q[h, i : i + Q] * decay
            found.append(dot(read, state) + dot(np.tril(dot(read, near.T)), new))
            state = decay[-1][:, None] * state + dot((near * decay[-1]).T, new)
        np.testing.assert_allclose(np.concatenate(found), expected)
    block = KimiDeltaAttention(D=8, H=heads, dk=dk, w=4, chunk=Q)
    assert flops(block, Workload("prefill", S=S, C=S)) == dot.flops + inverses


def test_decoding_is_an_outer_product_and_a_product_with_the_state() -> None:
    work = Workload("decode", B=3, S=1, C=1000)
    assert flops(MAMBA1, work) == 3 * (2 + 2) * 8192 * 16
    assert flops(MAMBA2, work) == 3 * (2 + 2) * 64 * 64 * 128
    assert flops(LIGHTNING, work) == 3 * (2 + 2) * 64 * 128 * 128
    assert flops(KDA, work) == 3 * (2 + 2 + 2) * 32 * 128 * 128  # and a product to correct values


@pytest.mark.parametrize("block", ALL)
def test_decoding_costs_the_same_at_any_context(block: Block) -> None:
    short, long = (Workload("decode", B=4, S=1, C=c) for c in (10, 1_000_000))
    for op in block.rows(short):
        assert flops(block, short, op.name) == flops(block, long, op.name)
        assert op.cached == "0"


@pytest.mark.parametrize(
    ("block", "elements", "bits"),
    [
        (MAMBA1, 8192 * 16, 32),
        (MAMBA2, 64 * 64 * 128, 32),
        (LIGHTNING, 64 * 128 * 128, 32),
        (KDA, 32 * 128 * 128, 32),
    ],
)
def test_state_is_fixed_and_decoding_reads_and_writes_it(
    block: Block, elements: int, bits: int
) -> None:
    state = block.cache()[0]
    assert (state.per_token, evaluate(state.fixed, block.values)) == ("0", elements)
    assert state.bits == bits
    one, two = (Workload("decode", B=b, S=1, C=9) for b in (1, 2))
    op = scan(block, one)
    for formula in (op.read, op.write):
        moved = [evaluate(formula, block.environment(w)) * 2 for w in (one, two)]
        assert moved[0] >= elements * bits // 8
        assert moved[1] == 2 * moved[0]


def test_convolutions_keep_their_last_inputs() -> None:
    channels = ((MAMBA1, 8192), (MAMBA2, 64 * 64 + 2 * 8 * 128), (KDA, 3 * 32 * 128))
    for block, wide in channels:
        conv = block.cache()[1]
        assert evaluate(conv.fixed, block.values) == wide * 3
    assert evaluate(CONV.cache()[0].fixed, CONV.values) == 2048 * 2


@pytest.mark.parametrize("block", ALL)
def test_every_weight_is_used_and_every_matrix_multiplied_once(block: Block) -> None:
    for phase in PHASES:
        work = Workload(phase, B=1, S=1 if phase == "decode" else 256, C=256)
        rows = block.rows(work)
        assert {w.name for op in rows for w in op.weights} == {w.name for w in block.weights()}
        matrices = sum(evaluate(w.elements, block.values) for w in block.weights() if w.matmul)
        linear = sum(flops(block, work, op.name) for op in rows if op.kind == "linear")
        assert linear == 2 * work.values["T"] * matrices


@given(chunks=st.integers(1, 500), batch=st.integers(1, 4))
def test_whole_chunks_cost_the_same_each(chunks: int, batch: int) -> None:
    for block, Q in ((MAMBA2, 128), (LIGHTNING, 256), (KDA, 64), (MAMBA1, 1)):
        one = Workload("prefill", B=1, S=Q, C=Q)
        many = Workload("prefill", B=batch, S=Q * chunks, C=Q * chunks)
        assert flops(block, many) == batch * chunks * flops(block, one)


def test_arrays_agree_with_scalars() -> None:
    lengths = [16, 100, 4096]
    for block in ALL:
        for phase in PHASES:
            many = Workload(phase, B=2, S=lengths, C=lengths)
            for op in block.rows(many):
                ones = [flops(block, Workload(phase, B=2, S=s, C=s), op.name) for s in lengths]
                found = evaluate(op.flops, block.environment(many))
                np.testing.assert_allclose(np.broadcast_to(found, 3), ones)
