"""Serving: what fits, what a token takes, and money; against loops and published figures."""

from __future__ import annotations

import numpy as np
import pytest

from moeplan.cluster.hardware import cluster
from moeplan.cluster.layout import NUMBERS, Layout
from moeplan.errors import UserError
from moeplan.estimation.memory import weight_bytes
from moeplan.load import load_preset
from moeplan.parallel import (
    Overheads,
    ServingJob,
    ServingPlan,
    TrainingJob,
    disaggregate,
    evaluate_serving,
    evaluate_training,
    explain_serving,
)
from moeplan.quantity import Quantity

NONE = Overheads(framework=0, fragmentation=0)
QWEN = "qwen3-30b-a3b"


def serve(name, layout, machine="h200x8", gpus=None, **job):
    return evaluate_serving(load_preset(name), layout, cluster(machine), ServingJob(**job), gpus)


class TestMemory:
    def test_one_gpu_holds_the_stored_weights(self):
        for name in (QWEN, "deepseek-v2-lite", "gpt-oss-20b", "llama-3.1-8b"):
            found = serve(name, Layout(), gpus=1)
            assert found["memory_weights"] == pytest.approx(weight_bytes(load_preset(name))), name

    def test_attention_and_experts_are_divided_apart(self):
        """DeepSeek-V3 as stored on 8 GPUs, attention copied, experts 32 to a GPU: bytes by hand."""
        spec = load_preset("deepseek-v3")
        found = serve("deepseek-v3", Layout(dp=8, ep=8))
        scales = (2048 // 128) * (7168 // 128) * 4
        expert = 3 * (2048 * 7168 + scales)  # fp8 with an fp32 scale per 128 x 128 block
        experts = 58 * 256 * expert
        assert found["memory_weights"] == pytest.approx(
            weight_bytes(spec) - experts + experts / 8, rel=1e-12
        )

    def test_latents_are_copied_and_heads_divided_by_tp(self):
        tokens = 4096 + 1024
        one = serve("deepseek-v3", Layout(dp=8, ep=8))
        eight = serve("deepseek-v3", Layout(tp=8, ep=8))
        assert one["memory_cache_per_sequence"] == 70_272 * tokens
        assert eight["memory_cache_per_sequence"] == 70_272 * tokens
        per_tp = [serve(QWEN, Layout(tp=t, ep=t), gpus=t)["memory_cache_per_sequence"]
                  for t in (1, 2, 4, 8)]  # fmt: skip
        assert per_tp[0] == 98_304 * tokens
        assert [p / per_tp[0] for p in per_tp] == [1, 1 / 2, 1 / 4, 1 / 4]  # 4 key-value heads

    def test_windows_stop_growing(self):
        """gpt-oss-120b: 18 of 36 layers keep 128 tokens; 73,728 bytes a token of all."""
        found = serve("gpt-oss-120b", Layout(), gpus=1, input=4000, output=96)
        assert found["memory_cache_per_sequence"] == 73_728 // 2 * (4096 + 128)

    def test_the_largest_batch_fills_the_memory(self):
        found = serve(QWEN, Layout(dp=8, ep=8), overheads=NONE)
        capacity = cluster("h200x8").gpu.memory_reported.value
        free = capacity - found["memory_weights"] - found["memory_overhead"]
        assert found["max_batch"] == 8 * (free // found["memory_cache_per_sequence"])
        assert found["batch"] == found["max_batch"]

    def test_what_does_not_fit_has_no_numbers(self):
        found = serve("deepseek-v3", Layout(), "h200x8", gpus=1)
        assert not found["fits"]
        assert found["max_batch"] == 0
        assert np.isnan(found["tpot"])
        assert found["memory_weights"] > 600e9

    def test_a_batch_too_large_does_not_fit(self):
        """Of arrays the layouts that hold it have the numbers they had; one layout is refused."""
        layouts = Layout(dp=np.array([1, 2, 4, 8]), ep=np.array([1, 2, 4, 8]))
        most = serve(QWEN, layouts, gpus=layouts.dp)["max_batch"]
        wanted = int(most[1]) + 1
        found = serve(QWEN, layouts, gpus=layouts.dp, batch=wanted)
        assert found["fits"].tolist() == [False, False, True, True]
        assert np.isnan(found["tpot"]).tolist() == [True, True, False, False]
        assert found["batch"][2:].tolist() == [wanted, wanted]
        one = serve(QWEN, Layout(dp=4, ep=4), gpus=4, batch=wanted)
        assert one["tpot"] == pytest.approx(found["tpot"][2])
        with pytest.raises(UserError, match=f"batch is {wanted:,}, .* at most {most[1]:,.0f} seq"):
            serve(QWEN, Layout(dp=2, ep=2), gpus=2, batch=wanted)

    def test_quantised_formats(self):
        plain_, small = (serve(QWEN, Layout(), gpus=1, weights=w) for w in (None, "fp8"))
        assert small["memory_weights"] / plain_["memory_weights"] == pytest.approx(0.5, rel=0.03)
        assert small["max_batch"] > plain_["max_batch"]
        half = serve(QWEN, Layout(), gpus=1, cache="fp8")
        assert half["memory_cache_per_sequence"] == plain_["memory_cache_per_sequence"] / 2


class TestTimes:
    def test_a_decoding_step_is_no_faster_than_reading_its_weights_and_cache(self):
        found = serve("llama-3.1-8b", Layout(), gpus=1, stack="datasheet", batch=32,
                      disaggregated=True)  # fmt: skip
        weights = found["memory_weights"] - 128_256 * 4096 * 2  # the embedding is only looked up
        cache = 32 * 131_072 * (4096 + 512)
        assert found["tpot"] == pytest.approx((weights + cache) / 4.8e12, rel=0.02)
        assert found["tpot"] > (weights + cache) / 4.8e12

    def test_prefill_takes_its_flops(self):
        """Forward FLOPs of 4096 tokens at the peak: 8B model, attention included, causal."""
        found = serve("llama-3.1-8b", Layout(), gpus=1, stack="datasheet")
        matrices = 2 * 7_504_924_672 * 4096  # without the embedding
        attention = 32 * 2 * 2 * 4096 * 4096 * 4096 / 2
        floor = (matrices + attention) / 989e12
        assert floor < found["prefill_seconds"] < 1.1 * floor

    def test_cached_input_is_not_computed(self):
        none, half = (
            serve(QWEN, Layout(dp=8, ep=8), cached=c, input=8192, stack="datasheet")
            for c in (0, 0.5)
        )
        assert 0.4 < half["prefill_seconds"] / none["prefill_seconds"] < 0.7
        assert half["dollars_per_million_input"] < 0.7 * none["dollars_per_million_input"]

    @pytest.mark.parametrize("disaggregated", [False, True])
    @pytest.mark.parametrize("tpot", [0.012, 0.03])
    def test_the_batch_is_the_largest_that_meets_the_tpot(self, tpot, disaggregated):
        """Against a loop over batches."""
        layout = Layout(dp=8, ep=8)
        more = {"input": 2000, "output": 500, "disaggregated": disaggregated}
        found = serve(QWEN, layout, tpot=tpot, **more)
        batches = range(1, 4000, 1)
        low, high = 1, int(found["max_batch"])
        while low < high:  # bisection over single evaluations
            middle = (low + high + 1) // 2
            good = serve(QWEN, layout, batch=middle, **more)["tpot"] <= tpot
            low, high = (middle, high) if good else (low, middle - 1)
        assert low in batches or low == found["max_batch"]
        assert found["tpot"] <= tpot
        assert found["batch"] == pytest.approx(low, abs=max(1, 0.002 * low))

    def test_speculation_by_enumeration(self):
        """Two drafted tokens, each accepted with 0.8 if the one before was: mean by cases."""
        plan = ServingPlan(
            load_preset("deepseek-v3"), cluster("h200x8"), ServingJob(draft=2, acceptance=0.8)
        )
        v = dict(Layout(dp=8, ep=8).values)
        step = plan._decode(v, 64, lambda x: x)
        cases = [(1, 0.2), (2, 0.8 * 0.2), (3, 0.64)]
        assert step["accepted"] == pytest.approx(sum(n * p for n, p in cases))

    def test_speculation_gains_less_than_the_tokens_it_guesses_right(self):
        def gain(batch):
            plain_, drafted = (
                serve("deepseek-v3", Layout(dp=8, ep=8), batch=batch, draft=d, disaggregated=True)
                for d in (0, 1)
            )
            return plain_["tpot"] / drafted["tpot"]

        for batch in (8, 64, 512):
            assert 1 < gain(batch) < 1.85

    def test_a_model_without_mtp_cannot_draft(self):
        with pytest.raises(UserError, match="no MTP module"):
            serve(QWEN, Layout(dp=8, ep=8), draft=1)

    def test_prefill_takes_turns_unless_it_has_gpus_of_its_own(self):
        together, apart = (
            serve(QWEN, Layout(dp=8, ep=8), batch=256, disaggregated=d) for d in (False, True)
        )
        assert together["tpot"] == pytest.approx(apart["tpot"] / (1 - apart["prefill_share"]))
        assert together["requests_per_second"] == apart["requests_per_second"]

    def test_hidden_exchange_is_not_waited_for(self):
        none, half, all_ = (
            serve("deepseek-v3", Layout(dp=32, ep=32), "h800x32", batch=2048, overlap=o)["tpot"]
            for o in (0, 0.5, 1)
        )
        assert none > half > all_


class TestMoney:
    def test_dollars_and_rates_are_one_account(self):
        """A request's dollars are those of its input and its output tokens."""
        found = serve(QWEN, Layout(dp=8, ep=8), input=4000, output=1000, price="$2/h", batch=512)
        request = 4000 * found["dollars_per_million_input"] / 1e6
        request += 1000 * found["dollars_per_million_output"] / 1e6
        assert request == pytest.approx(2 / 3600 / found["requests_per_second_per_gpu"])
        assert found["requests_per_second"] == pytest.approx(
            8 * found["requests_per_second_per_gpu"]
        )
        assert found["output_tokens_per_second_per_gpu"] == pytest.approx(
            1000 * found["requests_per_second_per_gpu"]
        )

    def test_the_same_layout_for_both_is_what_one_evaluation_says(self):
        job = ServingJob(input=3000, output=700, cached=0.3, batch=256, disaggregated=True)
        found = evaluate_serving(load_preset(QWEN), Layout(dp=8, ep=8), cluster("h200x8"), job)
        pair = disaggregate(found, found, job)
        for key in ("prefill_share", "requests_per_second_per_gpu", "tpot"):
            assert pair[key] == pytest.approx(found[key])


class TestArrays:
    names = ("tp", "pp", "dp", "ep", "etp")
    rows = ((1, 1, 8, 8, 1), (2, 1, 4, 8, 1), (8, 1, 1, 1, 8), (8, 1, 1, 8, 1), (1, 2, 4, 4, 1),
            (3, 1, 1, 1, 1), (2, 4, 1, 2, 1), (1, 8, 1, 1, 1))  # fmt: skip

    @pytest.mark.parametrize(
        ("name", "job"),
        [
            ("deepseek-v3", {"draft": 1, "disaggregated": True}),
            ("qwen3-235b-a22b", {"tpot": 0.04, "imbalance": 1.3, "overlap": 0.4}),
            ("qwen3-next-80b-a3b", {"batch": 64, "cached": 0.5}),
        ],
    )
    def test_arrays_say_what_scalars_and_explanations_say(self, name, job):
        columns = dict(zip(self.names, np.array(self.rows, float).T, strict=True))
        spec, machine = load_preset(name), cluster("h200x8")
        found = evaluate_serving(spec, Layout(**columns), machine, ServingJob(**job))
        assert found["legal"].tolist() == [True] * 5 + [False] + [True] * 2
        for i, row in enumerate(self.rows):
            if not found["legal"][i]:
                assert np.isnan(found["tpot"][i])
                continue
            layout = Layout(**dict(zip(self.names, row, strict=True)))
            scalar = evaluate_serving(spec, layout, machine, ServingJob(**job))
            assert set(scalar) == set(found)
            for key, number in scalar.items():
                assert found[key][i] == pytest.approx(number, rel=1e-9, nan_ok=True), (key, row)
            if not scalar["fits"]:
                continue
            explained = explain_serving(spec, layout, machine, ServingJob(**job))
            for key, number in scalar.items():
                value = explained[key]
                bare = value.value if isinstance(value, Quantity) else value
                assert bare == pytest.approx(number, rel=1e-9, nan_ok=True), (key, row)

    def test_training_degrees_are_refused(self):
        for more in ({"cp": 2}, {"vpp": 2}):
            with pytest.raises(UserError, match="for training"):
                serve(QWEN, Layout(dp=4, **more))

    def test_all_violations_at_once(self):
        with pytest.raises(UserError) as caught:
            serve(QWEN, Layout(tp=3, ep=7))
        assert "does not divide the 128 experts" in str(caught.value)
        assert "must be the 8 GPUs" in str(caught.value)


@pytest.mark.parametrize(
    ("input_", "output", "layout", "gpus", "key", "published"),
    [
        # DeepSeek's V3/R1 serving: per 8-GPU H800 node 73.7 K input token/s, 56.3 % of them cache
        # hits, in prefill units of EP32; 14.8 K output token/s in decoding units of EP144 with
        # redundant experts (EP128 is the nearest that divides 256)
        (4989, 1, Layout(dp=32, ep=32), 32, "prefill", 73_700 * (1 - 0.563) / 8),
        (4989, 1000, Layout(dp=128, ep=128), 128, "decode", 14_800 / 8),
    ],
)
def test_published_serving_within_a_factor_of_two(input_, output, layout, gpus, key, published):
    job = {"input": input_, "output": output, "disaggregated": True, "prefill_batch": 4}
    if key == "decode":
        job |= {"tpot": 0.05, "draft": 1}
    else:
        job |= {"cached": 0.563}
    found = serve("deepseek-v3", layout, f"h800x{gpus}", **job)
    ratio = found[f"{key}_tokens_per_second_per_gpu"] / published
    assert 0.5 < ratio < 2.5


def test_numbers_of_training_and_serving_are_of_one_spec():
    """A forward pass of training at the floor is a prefill, but for logits and the last layer."""
    spec, machine = load_preset("llama-3.1-8b"), cluster("h100x8")
    train = evaluate_training(spec, Layout(zero=0), machine, TrainingJob(stack="datasheet"), gpus=1)
    prefill = serve("llama-3.1-8b", Layout(), "h100x8", gpus=1, stack="datasheet")
    assert prefill["prefill_seconds"] == pytest.approx(train["time_compute"] / 3, rel=0.1)


def test_every_layout_number_is_known_to_both():
    assert set(NUMBERS) >= set(TestArrays.names)


class TestBands:
    def test_a_calibrated_time_has_a_band_and_a_floor_below_it(self):
        spec, machine = load_preset("qwen3-30b-a3b"), cluster("h200x8")
        layout = Layout(dp=8, ep=8)
        found = {s: evaluate_serving(spec, layout, machine, ServingJob(batch=256, stack=s))
                 for s in ("calibrated", "datasheet")}  # fmt: skip
        for name in ("ttft", "tpot"):
            own = [found["calibrated"][key] for key in (f"{name}_lower", name, f"{name}_upper")]
            assert own == sorted(own)
            assert found["datasheet"][name] < found["calibrated"][name]

    def test_the_default_is_calibrated_where_a_calibration_knows_the_gpu(self):
        spec, layout = load_preset("qwen3-30b-a3b"), Layout(dp=8, ep=8)
        for gpu, stack in (("h200", "calibrated"), ("h100", "calibrated")):
            one, other = (
                evaluate_serving(spec, layout, cluster(f"{gpu}x8"), ServingJob(batch=64, stack=s))
                for s in (None, stack)
            )
            assert one["tpot"] == other["tpot"]

    def test_one_row_takes_as_long_in_a_layout_as_in_an_estimate(self):
        """The same calibration answers in both places: a dense model on one GPU, prefill."""
        from moeplan.api import estimate

        spec = load_preset("llama-3.1-8b")
        job = ServingJob(input=4096, output=1, stack="calibrated")
        found = evaluate_serving(spec, Layout(), cluster("h200x8"), job, gpus=1)
        expected = estimate("llama-3.1-8b", context=4096)["time.prefill.calibrated.expected"].value
        assert found["ttft"] == pytest.approx(expected, rel=0.03)
