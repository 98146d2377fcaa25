"""The two published accounts of DeepSeek-V3's training memory, and its speed limit of decoding."""

from __future__ import annotations

import pytest

from moeplan.cluster.hardware import cluster
from moeplan.cluster.layout import Layout
from moeplan.load import load_preset
from moeplan.parallel import (
    Overheads,
    TrainingJob,
    TrainingPlan,
    model_speed_limit,
    paper_speed_limit,
)

GIB, MIB = 2**30, 2**20
NO_OVERHEADS = Overheads(framework=0, fragmentation=0)


def printed(gib: float) -> float:
    """As arXiv 2502.07846 prints parts: two decimals of small figures, one of large ones."""
    return round(gib, 2 if gib < 20 else 1)


class TestFirstAccount:
    """arXiv 2502.07846: PP16 TP2 EP8 ETP1 DP32 on 1,024 GPUs, one of the middle stages."""

    def rank(self, account="arxiv-2502.07846", **more):
        job = TrainingJob(
            account=account, optimizer="adamw-bf16-moments", overheads=NO_OVERHEADS, mtp=False
        )
        plan = TrainingPlan(load_preset("deepseek-v3"), cluster("h800x1024"), job)
        layout = Layout(tp=2, pp=16, ep=8, dp=32, batch=1024, split="full", **more)
        return plan.by_rank(layout)[1]

    def test_parameters_are_exact(self):
        middle = self.rank()
        assert middle["held"] == {"attention + moe": 4}
        assert middle["dense"] == 65_536 + 429_654_016
        assert middle["experts"] == 5_820_645_376
        assert middle["dense"] + middle["experts"] == 6_250_364_928

    @pytest.mark.parametrize(("zero", "total"), [(0, 81.54), (1, 40.46), (2, 19.92), (3, 9.66)])
    def test_state_to_the_printed_digit(self, zero, total):
        """The paper adds printed parts, and calls GiB GB."""
        middle = self.rank(zero=zero)
        parts = [middle[f"memory_{p}"] / GIB for p in ("weights", "gradients", "optimizer")]
        assert round(sum(map(printed, parts)), 2) == total

    def test_full_recomputation_keeps_the_layers_inputs(self):
        middle = self.rank(recompute="full", sp=False)
        alive = middle["alive"]["attention + moe"]
        one_layer = 4096 * 7168 * 2
        assert alive == 15 * 4
        workspace = middle["memory_activations"] - alive * one_layer
        assert 4 * one_layer == 224 * MIB
        assert 0 < workspace < 2.5 * 1024 * MIB  # one layer's tensors, computed again

    def test_what_an_engine_holds_instead(self):
        """Megatron divides W^QR and the shared expert by tp: exactly so much less."""
        paper, engine = self.rank(), self.rank(account="megatron-core")
        rotary_queries, shared_expert = 128 * 64 * 1536, 3 * 7168 * 2048
        fewer = sum(paper[g] - engine[g] for g in ("dense", "experts"))
        assert fewer == 4 * (rotary_queries + shared_expert) // 2


class TestSecondAccount:
    """arXiv 2603.07685, table 3: 256 GPUs, TP1 PP4 VPP4 EP64, microbatch 1 of 4096 tokens."""

    def plan(self, account="arxiv-2603.07685", **more):
        job = TrainingJob(account=account, overheads=NO_OVERHEADS)
        plan = TrainingPlan(load_preset("deepseek-v3"), cluster("h100x256"), job)
        layout = Layout(
            pp=4, vpp=4, dp=64, ep=64, schedule="interleaved", batch=4096, split="full", **more
        )
        return plan.by_rank(layout)

    def parts(self, rank):
        state = rank["memory_weights"] + rank["memory_gradients"]
        sizes = (state, rank["memory_optimizer"], rank["memory_activations"])
        return [size / GIB for size in sizes]

    def test_gigabytes_to_the_printed_digit(self):
        rank = self.plan()[2]
        assert rank["held"] == {"attention + moe": 16}
        assert rank["alive"] == {"attention + moe": 60}
        parts = [round(size, 1) for size in self.parts(rank)]
        assert parts == [36.4, 32.1, 131.0]
        assert round(sum(parts), 1) == 199.5

    def test_a_layer_keeps_2236_mib(self):
        rank = self.plan()[2]
        assert rank["memory_activations"] == 60 * 2236 * MIB

    def test_full_recomputation_leaves_56_mib_a_layer(self):
        rank = self.plan(recompute="full")[2]
        assert rank["memory_activations"] == 60 * 56 * MIB + (2236 - 56) * MIB

    def test_memory_efficient_permutation_saves_26_gb(self):
        saved = [
            self.plan(recompute=how, selective=("permute",))[2]["memory_activations"]
            for how in ("none", "selective")
        ]
        workspace = 448 * MIB  # the row computed again, of one layer
        assert round((saved[0] - saved[1] + workspace) / GIB, 2) == 26.25

    def test_the_router_and_the_row_map_are_the_only_differences_from_the_rows(self):
        paper, rows = self.plan()[2], self.plan(account="index-map")[2]
        assert rows["dense"] - paper["dense"] == 16 * 256 * 7168
        row_maps = 4096 * (256 - 8) * 8
        assert paper["memory_activations"] - rows["memory_activations"] == 60 * row_maps

    def test_other_ranks_hold_more_than_the_one_in_the_paper(self):
        """Its rank is the third; the first two keep more microbatches in flight."""
        ranks = self.plan()
        assert [sum(r["alive"].values()) - r["alive"].get("embedding", 0) for r in ranks[:3]] == [
            76, 68, 60,
        ]  # fmt: skip
        assert max(ranks, key=lambda r: r["memory"])["rank"] in (0, 1)
        assert ranks[1]["memory"] > ranks[2]["memory"]


class TestSpeedLimit:
    """arXiv 2505.09343, 2.3.2."""

    def test_with_the_papers_inputs(self):
        found = paper_speed_limit()
        assert found["exchange"].value == pytest.approx(120.96e-6, rel=1e-12)
        assert round(found["step"].value * 1e3, 2) == 14.76
        assert int(found["rate"].value) == 67

    def test_at_900_gigabytes_per_second(self):
        found = paper_speed_limit(900e9)
        assert found["exchange"].value == pytest.approx(6.72e-6)
        assert round(found["step"].value * 1e3, 2) == 0.82
        assert found["rate"].value == pytest.approx(1200, rel=0.02)

    def test_with_the_models_own_numbers(self):
        """8 routed experts of 7168 values in 58 layers; the shared expert is not sent to."""
        found = model_speed_limit(load_preset("deepseek-v3"), 32, 50e9)
        assert found["exchange"].value == pytest.approx(3 * 32 * 8 * 7168 / 50e9)
        assert found["step"].value == pytest.approx(2 * 58 * 3 * 32 * 8 * 7168 / 50e9)

    def test_it_is_explained(self):
        step = paper_speed_limit()["step"]
        assert step.inputs["exchange"].inputs["hidden"].value == 7000
        assert "2505.09343" in step.inputs["layers"].source.where
