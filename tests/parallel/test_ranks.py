"""Parameters on every rank, against tensors cut and dealt out one by one."""

from __future__ import annotations

import itertools
import math

import pytest

from moeplan.cluster.hardware import cluster
from moeplan.cluster.layout import Layout
from moeplan.estimation.parameters import count
from moeplan.load import load_preset
from moeplan.model.ffn import MoE
from moeplan.parallel import Overheads, TrainingJob, TrainingPlan
from moeplan.parallel.divide import divides
from moeplan.presets import presets
from moeplan.quantity import compile_formula

NONE = Overheads(framework=0, fragmentation=0)


def deepseek_tensors(layers: range, *, dense: int = 3) -> list[tuple[str, int, str, int]]:
    """(name, elements, how tp cuts it, expert number or -1) of DeepSeek-V3's layers, by hand.

    Megatron Core: query and key-value up-projections, the output projection, dense and shared
    FFNs are cut; down-projections into latents, norms and the router are copied.
    """
    D, H, rq, rkv, dn, dr, dv = 7168, 128, 1536, 512, 128, 64, 128
    out = []
    for i in layers:
        out += [
            (f"{i}.norm1", D, "copy", -1), (f"{i}.norm2", D, "copy", -1),
            (f"{i}.q_a", rq * D, "copy", -1), (f"{i}.q_norm", rq, "copy", -1),
            (f"{i}.q_b", H * (dn + dr) * rq, "cut", -1),
            (f"{i}.kv_a", (rkv + dr) * D, "copy", -1), (f"{i}.kv_norm", rkv, "copy", -1),
            (f"{i}.kv_b", H * (dn + dv) * rkv, "cut", -1), (f"{i}.o", D * H * dv, "cut", -1),
        ]  # fmt: skip
        if i < dense:
            out.append((f"{i}.ffn", 3 * D * 18432, "cut", -1))
            continue
        out += [(f"{i}.router", 256 * D, "copy", -1), (f"{i}.shared", 3 * D * 2048, "cut", -1)]
        out += [(f"{i}.expert{e}", 3 * D * 2048, "expert", e) for e in range(256)]
    return out


def brute_force(pp: int, tp: int, dp: int, ep: int, etp: int, zero: int) -> list[list[float]]:
    """Bytes of state of every rank of every stage: 2 B weights, 4 B gradients, 12 B optimizer."""
    stages = [range(s * 61 // pp, (s + 1) * 61 // pp) for s in range(pp)]
    out = []
    for s, layers in enumerate(stages):
        tensors = deepseek_tensors(layers)
        vocabulary = 129280 * 7168
        if s == 0:
            tensors.append(("embedding", vocabulary, "cut", -1))
        if s == pp - 1:
            tensors += [("head", vocabulary, "cut", -1), ("norm", 7168, "copy", -1)]
        ranks = []
        pool = tp * dp
        for rank in range(pool):
            expert_rank = rank % (ep * etp) // etp
            owned = {"dense": 0.0, "experts": 0.0}
            for _, elements, how, expert in tensors:
                if how == "expert":
                    if expert // (256 // ep) == expert_rank:
                        owned["experts"] += elements / etp
                else:
                    owned["dense"] += elements / (tp if how == "cut" else 1)
            copies = {"dense": dp, "experts": pool // (ep * etp)}
            ranks.append(
                sum(
                    n * bytes_ / (copies[group] if zero >= least else 1)
                    for group, n in owned.items()
                    for least, bytes_ in ((3, 2), (2, 4), (1, 12))
                )
            )
        out.append(ranks)
    return out


@pytest.mark.parametrize(
    ("pp", "tp", "dp", "ep", "etp", "zero"),
    [(1, 2, 4, 4, 2, 0), (4, 2, 4, 8, 1, 1), (3, 1, 8, 4, 1, 2), (2, 4, 4, 8, 2, 3)],
)
def test_state_of_every_stage_is_that_of_tensors_dealt_out(pp, tp, dp, ep, etp, zero):
    bounds = [s * 61 // pp for s in range(pp + 1)]
    split = tuple(b - a for a, b in itertools.pairwise(bounds))
    layout = Layout(tp=tp, pp=pp, dp=dp, ep=ep, etp=etp, zero=zero, split=split, batch=dp * pp)
    job = TrainingJob(overheads=NONE, mtp=False)
    plan = TrainingPlan(load_preset("deepseek-v3"), cluster("h100x64"), job)
    found = plan.by_rank(layout, gpus=pp * tp * dp)
    for rank, want in zip(found, brute_force(pp, tp, dp, ep, etp, zero), strict=True):
        state = sum(rank[f"memory_{n}"] for n in ("weights", "gradients", "optimizer"))
        assert min(want) == max(want)  # ranks of a stage hold equal shares
        assert state == pytest.approx(want[0], rel=1e-12)


def test_undivided_ranks_hold_the_models_parameters():
    for name in (
        "mixtral-8x7b",
        "qwen3-30b-a3b",
        "deepseek-v2-lite",
        "gpt-oss-20b",
        "llama-3.2-1b",
    ):
        spec = load_preset(name)
        plan = TrainingPlan(spec, cluster("h100x8"), TrainingJob(overheads=NONE, mtp=False))
        (rank,) = plan.by_rank(Layout(), gpus=1)
        assert rank["dense"] + rank["experts"] == count(spec), name


def test_a_tied_head_and_mtp_need_a_second_embedding_behind_the_first_stage():
    plan = TrainingPlan(load_preset("llama-3.2-1b"), cluster("h100x8"), TrainingJob())
    assert "embedding copy" not in plan.by_rank(Layout(), gpus=1)[-1]["held"]
    assert "embedding copy" in plan.by_rank(Layout(pp=2), gpus=2)[-1]["held"]
    plan = TrainingPlan(load_preset("deepseek-v3"), cluster("h100x8"), TrainingJob())
    last = plan.by_rank(Layout(pp=4), gpus=4)[-1]["held"]
    assert last["MTP"] == last["embedding copy"] == last["head"] == 1


# --------------------------------------------------------------------- rows against shard marks
@pytest.mark.parametrize("name", sorted(p.name for p in presets()))
def test_divided_symbols_agree_with_the_shard_marks_of_weights(name):
    """A matrix that is marked as cut has a symbol that tp divides, and one that has is marked."""
    spec = load_preset(name)
    for group in spec.groups:
        for block in group.blocks:
            symbols = set(divides(block))
            for weight in block.tensors:
                if weight.shard == "experts" or not weight.matmul:
                    continue
                has = bool(symbols & {n for d in weight.dims for n in compile_formula(d)[1]})
                marked = weight.shard in ("column", "row", "heads", "vocab")
                if isinstance(block, MoE) and weight.component == "router":
                    assert not has
                assert has == marked, (group.name, weight.name, weight.shard)


@pytest.mark.parametrize("tp", [2, 4])
def test_activations_with_and_without_sequence_parallelism(tp):
    """Without it, what tp does not divide stays whole: attention input, norms, router input."""
    job = TrainingJob(overheads=NONE, mtp=False)
    plan = TrainingPlan(load_preset("qwen3-30b-a3b"), cluster("h100x8"), job)
    sizes = {
        sp: plan.costs(layout, layout.values, explained=False)[1].numbers["kept"]
        for sp in (True, False)
        for layout in (Layout(tp=tp, sp=sp),)
    }
    T, D, E = 4096, 2048, 128
    one = plan.costs(Layout(), Layout().values, explained=False)[1].numbers["kept"]
    # two norm inputs and their outputs, in bf16; the router's probabilities, and its row map
    whole = 4 * T * D * 2 + T * E * 2 + T * 8 * 8
    assert sizes[True] == pytest.approx(one / tp, rel=1e-12)
    assert sizes[False] == pytest.approx((one - whole) / tp + whole, rel=1e-12)


def test_context_parallelism_divides_tokens_and_expert_parallelism_does_not():
    plan = TrainingPlan(load_preset("qwen3-30b-a3b"), cluster("h100x8"), TrainingJob(mtp=False))

    def kept(**degrees):
        layout = Layout(**degrees)
        return plan.costs(layout, layout.values, explained=False)[1].numbers["kept"]

    assert kept(cp=4) == kept() / 4
    assert kept(ep=8) == kept()
    assert kept(microbatch=3) == 3 * kept()


def test_imbalance_widens_the_experts_rows_only():
    spec = load_preset("qwen3-30b-a3b")
    plain, skewed = (
        TrainingPlan(spec, cluster("h100x8"), TrainingJob(mtp=False, imbalance=x)) for x in (1, 1.5)
    )
    a, b = (
        p.costs(Layout(ep=8), Layout(ep=8).values, explained=False)[1].numbers["kept"]
        for p in (plain, skewed)
    )
    T, k, D, F = 4096, 8, 2048, 768
    expert_rows = 2 * T * k * (D + 2 * F + F + D)
    assert b - a == pytest.approx(0.5 * expert_rows)
    assert math.isclose(b / a, 1 + 0.5 * expert_rows / a)
