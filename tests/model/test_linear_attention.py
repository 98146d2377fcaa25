"""The gated delta rule: its FLOPs against a run of transformers' reference, its state, its rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.model.linear_attention import GatedDeltaNet
from moeplan.model.ops import Op
from moeplan.model.workload import Phase, Workload
from moeplan.quantity import evaluate


def block(**changes: Any) -> GatedDeltaNet:
    """Qwen3-Next's mixer."""
    sizes = {"D": 2048, "Hk": 16, "Hv": 32, "dk": 128, "dv": 128, "w": 4} | changes
    return GatedDeltaNet(**sizes)


def row(mixer: GatedDeltaNet, name: str, work: Workload) -> tuple[Op, dict[str, Any]]:
    (found,) = [op for op in mixer.rows(work) if op.name == name]
    return found, mixer.environment(work)


def flops(mixer: GatedDeltaNet, name: str, work: Workload) -> Any:
    op, values = row(mixer, name, work)
    return evaluate(op.flops, values)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("B", "S", "Hk", "Hv", "dk", "dv"),
    [(1, 64, 2, 2, 16, 16), (2, 256, 2, 4, 16, 8), (1, 192, 3, 6, 8, 24)],
)
def test_matmuls_of_the_chunked_form(
    B: int, S: int, Hk: int, Hv: int, dk: int, dv: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    from torch.utils.flop_counter import FlopCounterMode

    # this branch multiplies by the inverse, as GPU kernels do; it builds the inverse from sums of
    # products, which the counter does not see: Q(Q-1)(Q-2)/3 FLOPs a chunk and head are ours alone
    monkeypatch.setattr(module, "is_torchdynamo_exporting", lambda: True)
    query, key = (torch.randn(B, S, Hk, dk) for _ in range(2))
    value = torch.randn(B, S, Hv, dv)
    decay, beta = -torch.rand(B, S, Hv), torch.rand(B, S, Hv)
    with FlopCounterMode(display=False) as counter:
        module.torch_chunk_gated_delta_rule(query, key, value, decay, beta)
    inverse = B * Hv * (S // 64) * 64 * 63 * 62 // 3
    mixer = block(Hk=Hk, Hv=Hv, dk=dk, dv=dv)
    work = Workload("prefill", B=B, S=S, C=S)
    assert flops(mixer, "delta_rule", work) == counter.get_total_flops() + inverse


def test_inverse_of_a_chunk_by_counting_its_multiplications() -> None:
    n, count = 9, 0
    for i in range(n):  # row i of the inverse: for each column j, products over j < l < i
        for j in range(i):
            count += max(0, i - j - 1)
    mixer = block(chunk=n)
    whole = flops(mixer, "delta_rule", Workload("prefill", S=n, C=n))
    matmuls = n * 32 * (2 * n * 5 * 128 + 6 * 128 * 128)
    assert whole - matmuls == 32 * 2 * count


@pytest.mark.oracle
def test_convolution_as_torch_counts_it() -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    mixer = block(Hk=2, Hv=4, dk=8, dv=6, w=4)
    channels, S = 2 * 2 * 8 + 4 * 6, 50
    conv = torch.nn.Conv1d(channels, channels, 4, groups=channels, bias=False)
    with FlopCounterMode(display=False) as counter:
        conv(torch.randn(3, channels, S + 3))
    work = Workload("prefill", B=3, S=S, C=S)
    assert flops(mixer, "conv", work) == counter.get_total_flops()


def test_decoding_costs_the_same_at_any_context() -> None:
    mixer = block()
    short, long = (Workload("decode", B=4, S=1, C=c) for c in (10, 1_000_000))
    for op in mixer.rows(short):
        assert flops(mixer, op.name, short) == flops(mixer, op.name, long)
    # three products of a 128 x 128 state in each of 32 heads and 4 sequences
    assert flops(mixer, "delta_rule", short) == 3 * 2 * 128 * 128 * 32 * 4


def test_decoding_reads_and_writes_the_fp32_state_once() -> None:
    mixer, work = block(), Workload("decode", B=4, S=1, C=100)
    op, values = row(mixer, "delta_rule", work)
    assert op.cached == "0"
    state_bytes = 4 * 32 * 128 * 128 * 4  # fp32, 32 heads, 4 sequences
    for formula in (op.read, op.write):
        assert 2 * evaluate(formula, values) == pytest.approx(state_bytes, rel=0.02)


def test_state_does_not_grow() -> None:
    state, conv = block().cache()
    assert state.per_token == conv.per_token == "0"
    values = block().values
    assert evaluate(state.fixed, values) == 32 * 128 * 128
    assert state.bits == 32
    assert evaluate(conv.fixed, values) == (2 * 16 * 128 + 32 * 128) * 3


def test_layouts_hold_the_same_weights() -> None:
    def sizes(mixer: GatedDeltaNet) -> int:
        return sum(int(evaluate(w.elements, mixer.values)) for w in mixer.weights())

    assert sizes(block(layout="paired")) == sizes(block(layout="split"))
    for layout in ("paired", "split"):
        mixer = block(layout=layout)
        work = Workload("train", B=1, S=64, C=64)
        matmuls = sum(flops(mixer, op.name, work) for op in mixer.rows(work) if op.kind == "linear")
        held = sum(int(evaluate(w.elements, mixer.values)) for w in mixer.weights() if w.matmul)
        assert matmuls == 2 * 64 * held


def test_every_weight_is_used_by_a_row() -> None:
    for layout in ("paired", "split"):
        mixer = block(layout=layout)
        for phase in ("train", "prefill", "decode"):
            used = {w.name for op in mixer.rows(Workload(phase)) for w in op.weights}
            assert used == {w.name for w in mixer.weights()}


PHASES: tuple[Phase, ...] = ("train", "prefill", "decode")


@given(
    phase=st.sampled_from(PHASES),
    batch=st.integers(1, 8),
    chunks=st.integers(1, 50),
    heads=st.integers(1, 4),
)
def test_doubling_sequences_doubles_flops(
    phase: Phase, batch: int, chunks: int, heads: int
) -> None:
    mixer = block(Hk=heads, Hv=2 * heads)
    S = 1 if phase == "decode" else 64 * chunks
    once, twice = (Workload(phase, B=b, S=S, C=64 * chunks) for b in (batch, 2 * batch))
    for op in mixer.rows(once):
        assert flops(mixer, op.name, twice) == 2 * flops(mixer, op.name, once)


@given(chunks=st.integers(1, 1000))
def test_chunked_flops_grow_linearly(chunks: int) -> None:
    mixer = block()
    one, many = (Workload("prefill", S=64 * n, C=64 * n) for n in (1, chunks))
    assert flops(mixer, "delta_rule", many) == chunks * flops(mixer, "delta_rule", one)


def test_arrays_agree_with_scalars() -> None:
    lengths = [16, 64, 4096]
    for phase in PHASES:
        many = Workload(phase, B=2, S=lengths, C=lengths)
        for op in block().rows(many):
            expected = [flops(block(), op.name, Workload(phase, B=2, S=s, C=s)) for s in lengths]
            found = evaluate(op.flops, block().environment(many))
            np.testing.assert_allclose(np.broadcast_to(found, 3), expected)
