"""The floor of the time: bytes and FLOPs that other sections count, over the datasheet's rates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moeplan.api import estimate
from moeplan.cluster.hardware import gpu
from moeplan.estimation.flops import forward
from moeplan.estimation.memory import kv_cache, weight_bytes
from moeplan.estimation.parameters import active
from moeplan.estimation.timing import Floor, floor
from moeplan.model.basic import Embedding
from moeplan.model.latent_attention import LatentAttention
from moeplan.model.spec import Group, ModelSpec
from moeplan.model.workload import Phase, Workload
from tests.reading import READABLE, spec_of

H200 = gpu("h200")
PHASES: tuple[Phase, ...] = ("prefill", "decode", "train")


def work(phase: Phase, context: int = 2048, batch: int = 1) -> Workload:
    """A pass over `batch` sequences of `context` tokens."""
    return Workload(phase, B=batch, S=1 if phase == "decode" else context, C=context)


def seconds(spec: ModelSpec, load: Workload, device: Any = H200) -> dict[str, float]:
    """The five figures of a floor."""
    found = floor(spec, load, device)
    keys = ("lower", "sequential", "upper", "compute", "memory")
    return {key: found[key].value for key in keys}


# ---------------------------------------------------------------------- against other sections
UNQUANTISED = ["mixtral-8x7b", "llama-3.1-8b", "qwen3-30b-a3b", "olmoe-1b-7b", "dbrx"]


@pytest.mark.parametrize("name", UNQUANTISED)
def test_compute_is_the_flops_over_the_peak(name: str) -> None:
    spec = spec_of(name)
    for phase in ("prefill", "decode"):
        load = work(phase)
        assert seconds(spec, load)["compute"] == pytest.approx(forward(spec, load) / 989e12)


@pytest.mark.parametrize("name", UNQUANTISED)
def test_decoding_one_sequence_reads_active_weights_and_cache(name: str) -> None:
    """Activations of one token are nothing beside them; the embedding gives one row."""
    spec = spec_of(name)
    read = 2 * active(spec)["without_input_embedding"].value
    read += kv_cache(spec, "bf16", 1, 2048)["bytes"].value
    assert seconds(spec, work("decode"))["memory"] == pytest.approx(read / 4.8e12, rel=0.01)


@pytest.mark.parametrize("name", READABLE)
def test_a_large_batch_reads_every_weight_once(name: str) -> None:
    """As stored in its own layer: a scheme may convert a block in one layer and not in another."""
    spec = spec_of(name)
    if any(group.role == "encoder" for group in spec.groups):
        load = Workload("prefill", B=100_000, S=1, C=1)
    else:
        load = Workload("decode", B=100_000, S=1, C=1)
    roofline = Floor(spec, load, H200)
    read = 0.0
    for line in roofline.lines:
        parts = roofline.explain(line)["bytes"].inputs
        names = {weight.name for weight in line.op.weights}
        read += line.count * sum(parts[name].value for name in names)
    looked_up = _tables(spec)
    assert read == pytest.approx(weight_bytes(spec) - looked_up, rel=1e-6)


def _tables(spec: ModelSpec) -> float:
    """Bytes of what is looked up and not multiplied (a tied head multiplies), of buffers, and of
    weights that no text token touches.
    """
    total = 0.0
    for group in spec.groups:
        if group.role == "mtp":
            continue
        for block in group.blocks:
            for weight in block.weights():
                name = next(iter(group.tensor_names(weight)), weight.name)
                stored = (
                    spec.checkpoint.of(weight, name).bits / 8 * block.sizes[weight.name].elements
                )
                if weight.buffer or weight.active == "0":
                    total += group.number * stored
                elif isinstance(block, Embedding) and weight.tied is None and not spec.tied:
                    total += stored
    return total


@pytest.mark.parametrize("name", READABLE)
def test_bounds_are_ordered(name: str) -> None:
    spec = spec_of(name)
    for phase in PHASES:
        t = seconds(spec, work(phase))
        assert t["lower"] == max(t["compute"], t["memory"])
        assert t["upper"] == pytest.approx(t["compute"] + t["memory"], rel=1e-12)
        assert 0 < t["lower"] <= t["sequential"] * (1 + 1e-12)
        assert t["sequential"] < t["upper"]


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v3", "gpt-oss-120b", "qwen3-8b"])
def test_rows_of_the_layers_make_the_floor(name: str) -> None:
    spec = spec_of(name)
    for phase in PHASES:
        found = floor(spec, work(phase), H200)
        rows = found["rows"]()
        for key, of_all in (("compute", "compute"), ("memory", "memory"), ("lower", "sequential")):
            total = sum(row["layers"].value * row[key].value for row in rows)
            assert total == pytest.approx(found[of_all].value, rel=1e-12)
        for row in rows:
            assert row["bytes"].value / 4.8e12 == pytest.approx(row["memory"].value)
            bound = "compute" if row["compute"].value >= row["memory"].value else "memory"
            assert row["bound"] == bound
        assert not {"dispatch", "return"} & {row["op"] for row in rows}  # one GPU exchanges nothing


def test_decoding_is_bound_by_memory_and_prefill_by_compute() -> None:
    """Each expert matmul of Mixtral: 2 FLOPs per weight and token against 2 bytes per weight."""
    spec = spec_of("mixtral-8x7b")
    for phase, bound in (("decode", "memory"), ("prefill", "compute")):
        rows = floor(spec, work(phase, 4096), H200)["rows"]()
        found = {row["op"]: row["bound"] for row in rows}
        assert found["experts_gate_up"] == found["lm_head"] == bound


# ------------------------------------------------------------------------------------ relations
@pytest.mark.parametrize("name", READABLE)
def test_training_computes_three_times_the_forward(name: str) -> None:
    spec = spec_of(name)
    forward_pass, step = seconds(spec, work("prefill")), seconds(spec, work("train"))
    assert step["compute"] == pytest.approx(3 * forward_pass["compute"], rel=1e-12)
    assert 2 * forward_pass["memory"] < step["memory"]


@pytest.mark.parametrize("name", READABLE)
def test_more_work_takes_no_less_time(name: str) -> None:
    spec = spec_of(name)
    for phase in PHASES:
        small, large = (seconds(spec, work(phase, 512, batch)) for batch in (1, 7))
        assert all(small[key] <= large[key] for key in small)
        # batching reads the weights once: less than seven times as long
        assert large["upper"] < 7 * small["upper"]


def test_the_rates_of_the_gpu_scale_the_floor() -> None:
    spec = spec_of("mixtral-8x7b")
    for phase in PHASES:
        h100, h200 = (seconds(spec, work(phase), gpu(name)) for name in ("h100", "h200"))
        assert h100["compute"] == h200["compute"]  # the same chip
        assert h100["memory"] / h200["memory"] == pytest.approx(4.8 / 3.35)
        a100 = seconds(spec, work(phase), gpu("a100-80"))
        assert a100["compute"] / h200["compute"] == pytest.approx(989 / 312)


def test_fp8_matmuls_run_at_the_fp8_peak_where_there_is_one() -> None:
    """DeepSeek-V3 stores FP8 blocks; scores, router and head stay in 16 bits."""
    load = work("prefill", 4096)
    spec = spec_of("deepseek-v3")
    rates = {}
    for name in ("h200", "a100-80"):
        rows = floor(spec, load, gpu(name))["rows"]()
        rates[name] = {
            row["op"]: row["flops"].value / row["compute"].value / 1e12
            for row in rows
            if row["flops"].value
        }
    assert rates["h200"]["experts_gate_up"] == pytest.approx(1979)
    assert rates["h200"]["o_proj"] == pytest.approx(1979)
    for op in ("attention", "router", "lm_head"):
        assert rates["h200"][op] == pytest.approx(989)
    assert all(rate == pytest.approx(312) for rate in rates["a100-80"].values())


def test_absorbed_latent_attention_reads_its_expansion_once() -> None:
    """Queries take the keys' part of one matrix, outputs the values' part, of unequal sizes."""
    block = LatentAttention(D=256, H=4, rq=None, rkv=64, dn=32, dr=16, dv=96)
    spec = ModelSpec("mla", "mla", (Group("layer", (block,), prefix="{i}."),))
    roofline = Floor(spec, Workload("decode", B=1, S=1, C=1), H200)
    read = {}
    for line in roofline.lines:
        parts = roofline.explain(line)["bytes"].inputs
        read |= {(line.op.name, w.name): parts[w.name].value for w in line.op.weights}
    name = "self_attn.kv_b_proj.weight"
    assert read["q_absorb", name] == 2 * 4 * 32 * 64
    assert read["v_expand", name] == 2 * 4 * 96 * 64


def test_only_the_experts_that_are_hit_are_read() -> None:
    """One token of Mixtral reads 2 of 8 experts; 64 tokens, nearly all of them."""
    spec = spec_of("mixtral-8x7b")

    def read(batch: int) -> float:
        rows = floor(spec, work("decode", 1, batch), H200)["rows"]()
        (row,) = [row for row in rows if row["op"] == "experts_down"]
        expert = 2 * 4096 * 14336
        moved = 2 * (batch * 2 * (4096 + 14336))
        return float((row["bytes"].value - moved) / expert)

    assert read(1) == pytest.approx(2)
    rng = np.random.default_rng(0)
    for batch in (2, 5, 64):
        draws = rng.random((4000, batch, 8)).argsort(axis=2)[:, :, :2]
        hit = [len(set(draw.ravel())) for draw in draws]
        assert read(batch) == pytest.approx(np.mean(hit), abs=0.05)


def test_tokens_per_second_and_dollars_follow_from_the_floor() -> None:
    e = estimate("mixtral", batch=4, price="$2/h")
    for name, tokens in (("prefill", 4 * 4096), ("decode", 4), ("training", 4096)):
        part = e.tree["time"][name]
        dollars = e.tree["cost"][f"{name}_dollars_per_million_tokens"]
        assert part["tokens"].value == tokens
        for bound in ("lower", "sequential", "upper"):
            rate = part[f"{bound}_tokens_per_second"].value
            assert rate == pytest.approx(tokens / part[bound].value)
            assert dollars[bound].value == pytest.approx(2 / 3600 * 1e6 / rate)
