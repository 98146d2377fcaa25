"""Rows of a sweep against one evaluation a row, legal or not."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest

import moeplan
from moeplan.cluster.hardware import cluster
from moeplan.cluster.layout import Layout
from moeplan.errors import UserError
from moeplan.load import load_model
from moeplan.parallel import (
    BINDS,
    SERVING_BINDS,
    ServingJob,
    TrainingJob,
    evaluate_serving,
    evaluate_training,
)
from moeplan.presets import preset
from moeplan.sweeping import ask, estimates, layouts, run

PATHS = (
    "params.total", "flops.forward_per_token", "kv_cache.bytes", "memory.serving.gpus_at_least",
    "all_to_all.forward_step.dispatch.sent", "all_to_all.per_layer.combine.other_nodes",
    "all_to_all.ep", "time.prefill.lower", "time.decode.sequential",
    "cost.decode_dollars_per_million_tokens.upper", "memory.weights_format",
    "time.prefill.calibrated.expected", "time.decode.calibrated.tokens_per_second",
    "all_to_all.time.forward_step.expected", "all_to_all.time.origin",
    "cost.decode_dollars_per_million_tokens.expected",
)  # fmt: skip
MODELS = ("mixtral", "deepseek-v2-lite", "qwen3-next-80b", "llama-3.1-8b")


def same(found, expected):
    if expected is None or isinstance(expected, str):
        return found == expected or (expected is None and found != found)
    return found == pytest.approx(expected, rel=1e-12)


def drawn(rng, axes):
    """A few values of each axis, in a random order."""
    return {name: rng.sample(pool, min(len(pool), n)) for name, (pool, n) in axes.items()}


def assert_rows(columns, vary, show, scalar, sample):
    """Each sampled row is what `scalar` gives for it, or its refusal."""
    legal = 0
    for i in sample:
        point = {name: columns[name][i] for name in vary}
        point = {n: v.item() if hasattr(v, "item") else v for n, v in point.items()}
        reason = columns["reason"][i]
        refused = ""
        try:
            expected = scalar(point)
        except UserError as problem:
            refused = str(problem)
        if refused:
            assert reason, (point, refused)
            assert reason in refused
            held = [columns[path][i] for path in show]
            assert all(v is None or v != v for v in held)
            continue
        assert reason == "", point
        legal += 1
        for path in show:
            assert same(columns[path][i], expected[path]), (path, point)
    return legal


@pytest.mark.parametrize("seed", range(6))
def test_estimates_are_those_of_single_points(seed):
    rng = random.Random(seed)
    model = rng.choice(MODELS)
    show = [p for p in PATHS if "llama" not in model or "all_to_all" not in p]
    axes = {
        "context": ([1, 100, 5000, 65_537, 1_000_000], 2),
        "batch": ([1, 3, 64], 2),
        "tokens": ([1, 77, 4096], 2),
        "gpu": (["h100", "mi300x"], 1),
        "price": ([2, 3.5, "hyperscaler"], 2),
        "attention": (["causal", "full"], 1),
        "policy": (["copies", "per-node", "per-gpu"], 1),
        "imbalance": ([1, 1.3], 2),
        "ep": ([1, 2, 4, 8, 12, 32], 3),
        "node": ([1, 2, 8, 6], 2),
    }
    for name in rng.sample(["ep", "node", "gpu", "price"], 2):
        del axes[name]
    vary = drawn(rng, axes)
    columns = moeplan.sweep(model, vary=vary, show=show)
    count = len(columns["reason"])
    assert count == math.prod(map(len, vary.values()))
    sample = rng.sample(range(count), min(count, 12))

    def scalar(point):
        found = moeplan.estimate(model, **point)
        return {path: getattr(found[path], "value", found[path]) for path in show}

    assert assert_rows(columns, vary, show, scalar, sample)


def test_architectures_are_those_of_edited_files(tmp_path):
    vary = {"experts": [64, 96, 6], "top_k": [2, 8], "width": [512, 1408], "tokens": [64, 4096]}
    keys = ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")
    columns = moeplan.sweep("deepseek-moe-16b", vary=vary, show=PATHS)
    file = tmp_path / "config.json"

    def scalar(point):
        edits = dict(zip(keys, (point["experts"], point["top_k"], point["width"]), strict=True))
        file.write_text(json.dumps({**preset("deepseek-moe-16b").config, **edits}))
        try:
            found = moeplan.estimate(file, tokens=point["tokens"])
        except UserError as problem:
            raise UserError(str(problem).replace(str(file), "preset deepseek-moe-16b")) from None
        return {path: getattr(found[path], "value", found[path]) for path in PATHS}

    rows = range(0, 24, 2)
    legal = assert_rows(columns, vary, PATHS, scalar, rows)
    assert 0 < legal < len(rows)  # top-8 of 6 experts is nobody's


def test_granularity_keeps_the_active_size():
    """Experts 1/g as wide, g times as many, g times as many a token: only routing grows."""
    columns = moeplan.sweep(
        "mixtral",
        vary={"g": [1, 2, 4, 8]},
        set={"experts": "experts*g", "width": "width/g", "top_k": "top_k*g"},
        show=["params.by_component.routed_experts", "all_to_all.forward_step.dispatch.sent"],
    )
    assert columns["experts"].tolist() == [8, 16, 32, 64]
    assert columns["top_k"].tolist() == [2, 4, 8, 16]
    assert len(set(columns["params.by_component.routed_experts"].tolist())) == 1
    assert (np.diff(columns["all_to_all.forward_step.dispatch.sent"]) > 0).all()


def test_figures_of_the_gpu_scale_what_they_bound():
    columns = moeplan.sweep(
        "mixtral",
        vary={"f": [1, 2], "gpu": ["h100", "h200"]},
        set={"gpu.memory_bandwidth": "gpu.memory_bandwidth*f", "gpu.peak.bf16": "gpu.peak.bf16*f"},
        show=["time.decode.upper", "time.prefill.lower", "time.prefill.calibrated.expected"],
    )
    for path in ("time.decode.upper", "time.prefill.lower"):
        once, twice = columns[path].reshape(2, 2)
        assert once == pytest.approx(2 * twice)
        own = [moeplan.estimate("mixtral", gpu=g)[path].value for g in ("h100", "h200")]
        assert once.tolist() == pytest.approx(own)
    assert np.isnan(columns["time.prefill.calibrated.expected"]).all()  # nobody measured such a GPU


def test_whole_numbers_stay_exact():
    """FLOPs of a sequence are beyond what float64 holds; a point alone keeps its digits."""
    contexts = [4_000_001, 8_000_003]
    columns = moeplan.sweep(
        "deepseek-v3", vary={"attention": ["full"], "weights": ["bf16", "fp8"]},
        set={"context": contexts[0]}, show=["flops.prefill_per_sequence"],
    )  # fmt: skip
    expected = moeplan.estimate("deepseek-v3", attention="full", context=contexts[0])
    found = columns["flops.prefill_per_sequence"]
    assert found.tolist() == [expected["flops.prefill_per_sequence"].value] * 2


# ------------------------------------------------------------------------------------ layouts
@pytest.mark.parametrize("seed", range(4))
def test_training_layouts_are_those_of_single_points(seed):
    rng = random.Random(seed)
    vary = drawn(
        rng,
        {
            "tp": ([1, 2, 3, 4, 8], 2),
            "pp": ([1, 2, 4, 5], 2),
            "ep": ([1, 4, 8, 7], 2),
            "zero": ([0, 1, 3], 1),
            "schedule": (["1f1b", "zero-bubble", "interleaved"], 2),
            "recompute": (["none", "selective:norm", "full"], 1),
            "sequence": ([2048, 4096], 1),
            "gpus": ([16, 64], 2),
        },
    )
    show = ["memory", "step", "mfu", "fits", "binds", "params.total"]
    columns = moeplan.sweep(
        "mixtral", vary=vary, set={"batch": 1024}, show=show, cluster="h100", job="train"
    )
    total = moeplan.estimate("mixtral")["params.total"].value
    spec = load_model("mixtral")

    def scalar(point):
        kinds = f"schedule={point['schedule']},recompute={point['recompute']}"
        degrees = {name: point[name] for name in ("tp", "pp", "ep", "zero")}
        degrees["dp"] = max(1, point["gpus"] // (point["tp"] * point["pp"]))
        layout = Layout.parse(kinds).at({**degrees, "batch": 1024})
        machine = cluster(f"h100x{point['gpus']}")
        job = TrainingJob(sequence=point["sequence"])
        found = evaluate_training(spec, layout, machine, job)
        return {**found, "binds": BINDS[found["binds"]], "params.total": total}

    count = len(columns["reason"])
    assert_rows(columns, vary, show, scalar, rng.sample(range(count), min(count, 24)))


def test_serving_layouts_are_those_of_single_points():
    vary = {"ep": [8, 16, 3], "isl": [1000, 4000], "batch": [64, 512], "disaggregated": [False]}
    show = ["ttft", "tpot", "fits", "dollars_per_million_output", "binds"]
    columns = moeplan.sweep("deepseek-v3", vary=vary, show=show, cluster="h200x16", job="serve")
    spec, machine = load_model("deepseek-v3"), cluster("h200x16")

    def scalar(point):
        job = ServingJob(input=point["isl"], batch=point["batch"])
        found = evaluate_serving(spec, Layout(ep=point["ep"], dp=16), machine, job)
        return {**found, "binds": SERVING_BINDS[found["binds"]]}

    assert assert_rows(columns, vary, show, scalar, range(12)) == 8


def test_links_and_memory_of_a_cluster():
    """Twice the network halves its time but for fixed costs; more memory moves nothing else."""
    columns = moeplan.sweep(
        "mixtral", vary={"f": [1, 2], "m": [1, 8]}, cluster="h100x64", job="train",
        set={"ep": 8, "overlap": "none", "batch": 256, "gpu.memory_bytes": "gpu.memory_bytes*m",
             "stack": "kernels",
             "gpu.scale_up_bandwidth": "gpu.scale_up_bandwidth*f",
             "gpu.nic_bandwidth": "gpu.nic_bandwidth*f"},
        show=["step", "time_ep", "memory", "memory_free"],
    )  # fmt: skip
    step = columns["step"].reshape(2, 2)
    exchange = columns["time_ep"].reshape(2, 2)
    assert step[0, 0] == step[0, 1] > step[1, 0]
    assert 0.5 < exchange[1, 0] / exchange[0, 0] < 0.525
    free = columns["memory_free"].reshape(2, 2)
    assert free[0, 1] > free[0, 0]
    assert len(set(columns["memory"].tolist())) == 1


# ------------------------------------------------------------------------------------ running
KEPT = {
    "vary": {"experts": [8, 16], "width": [7168, 14336], "tokens": "64:8192:x2", "ep": [1, 4, 6]},
    "show": ("params.total", "all_to_all.forward_step.dispatch.sent", "model.name"),
}


def equal(one, other):
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert [repr(x) for x in one[name]] == [repr(x) for x in other[name]], name


def test_chunks_change_nothing(monkeypatch):
    whole = moeplan.sweep("mixtral", **KEPT)
    monkeypatch.setattr(estimates.Estimates, "chunk", 5)
    equal(moeplan.sweep("mixtral", **KEPT), whole)
    layout = {"vary": {"tp": [1, 2, 4], "pp": [1, 2, 3]}, "cluster": "h100x64", "job": "train"}
    whole = moeplan.sweep("mixtral", **layout)
    monkeypatch.setattr(layouts.Layouts, "chunk", 2)
    equal(moeplan.sweep("mixtral", **layout), whole)


def test_workers_change_nothing():
    equal(moeplan.sweep("mixtral", workers=2, **KEPT), moeplan.sweep("mixtral", **KEPT))


def test_progress_ends_with_every_point(monkeypatch):
    monkeypatch.setattr(estimates.Estimates, "chunk", 7)
    asked = ask("mixtral", KEPT["vary"], {}, KEPT["show"], None, "estimate", 1000)
    seen = []
    run(asked, progress=lambda done, of: seen.append((done, of)))
    assert seen[-1] == (96, 96)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_memory_grows_with_results_only(monkeypatch):
    """No pass sees more points than a chunk."""
    sizes = []
    evaluate = estimates.Estimates.evaluate

    def counted(self, prepared, points, numbers):
        sizes.append(points.size)
        return evaluate(self, prepared, points, numbers)

    monkeypatch.setattr(estimates.Estimates, "evaluate", counted)
    moeplan.sweep("mixtral", vary={"context": "1:20000"}, show=["kv_cache.bytes"])
    assert max(sizes) <= estimates.Estimates.chunk
    assert sum(sizes) == 20_001  # and one, to see that the path is there


def test_default_columns_are_those_that_differ():
    columns = moeplan.sweep("mixtral", vary={"batch": [1, 2]})
    assert "kv_cache.bytes" in columns
    assert "params.total" not in columns
    assert "cost.decode_dollars_per_million_tokens.expected" not in columns
    priced = moeplan.sweep("mixtral", vary={"price": ["$1/h", "$2/h"]})
    assert "cost.decode_dollars_per_million_tokens.expected" in priced
    own = moeplan.sweep("mixtral", vary={"gpu.memory_bandwidth": ["4 TB/s", "5 TB/s"]})
    assert "time.decode.sequential" in own
    assert "time.decode.calibrated.expected" not in own


def test_what_a_model_lacks_is_nothing():
    """Columns that some models have and others have not."""
    columns = moeplan.sweep(
        vary={"model": ["mixtral", "deepseek-v3", "llama-3.1-8b"]},
        show=["model.experts", "params.by_component.shared_experts", "all_to_all.ep"],
    )
    assert columns["params.by_component.shared_experts"].tolist()[0] != columns[
        "params.by_component.shared_experts"].tolist()[1]  # fmt: skip
    assert np.isnan(columns["params.by_component.shared_experts"][[0, 2]]).all()
    assert np.isnan(columns["all_to_all.ep"][2])


WRONG = [
    ({"vary": {"exprts": [1]}}, "no input 'exprts' (did you mean 'experts'?)"),
    ({"vary": {"gg": [1]}, "set": {"experts": "8*g"}}, "no input 'gg'"),
    ({"vary": {"g": [1]}, "set": {"experts": "8*g", "top_k": "h"}}, "'h' has no value here"),
    ({"vary": {"tp": [1]}}, "tp is an input of a layout: add --cluster"),
    ({"vary": {"experts": [8]}, "show": ["params.totl"]}, "(did you mean 'total'?)"),
    ({"vary": {"experts": [8]}, "show": ["total"]}, "did you mean 'params.total'?"),
    ({"vary": {"experts": [8]}, "show": ["params.active"]}, "it holds all, without_input_"),
    ({"vary": {"gpu": ["h1000"]}}, "no GPU 'h1000'"),
    ({"vary": {"dispatch": ["fp7"]}}, "(did you mean 'fp8'?)"),
    ({"vary": {"cache": ["fp9"]}}, "cache format 'fp9' is unknown"),
    ({"vary": {"optimizer": ["adam"]}}, "optimizer 'adam' is unknown"),
    ({"vary": {"price": ["retail"]}}, "(did you mean 'rental'?)"),
    ({"vary": {"tokens": [0]}}, "--tokens is 0: it must be at least 1"),
    ({"vary": {"shared": [1]}}, "shared: mixtral-8x7b has no key for it"),
    ({"vary": {"config:num_expert": [1]}}, "(did you mean 'config:num_local_experts'?)"),
    ({"vary": {"width": [8], "config:intermediate_size": [8]}}, "are the same key of mixtral"),
    ({"vary": {"experts": [8]}, "set": {"experts": 8}}, "both --vary and --set"),
    ({"vary": {"a": "1:2k", "b": "1:2k"}, "set": {"tokens": "a*b"}}, "4,000,000 points, more than"),
    ({"vary": {}}, "nothing to vary"),
    ({"vary": {"model": ["mixtral"]}}, "another one is given beside it"),
    ({"vary": {"gpu": ["h100"]}, "set": {"tokens": "8*gpu"}}, "'gpu' is not a number"),
    ({"vary": {"top_k": [9, 10]}}, "none of the 2 points is legal: preset mixtral-8x7b: num_exp"),
    ({"vary": {"g": [0]}, "set": {"experts": "8/g"}}, "experts = 8/g has no finite value"),
]
WRONG_LAYOUTS = [
    ({"vary": {"tp": [1]}, "show": ["stap"]}, "no column 'stap' (did you mean 'step'?)"),
    ({"vary": {"tp": [1]}, "show": ["flops.context"]}, "no column 'flops.context'"),
    ({"vary": {"schedule": ["2f2b"]}}, "schedule='2f2b' is not known"),
    ({"vary": {"stack": ["kernel"]}}, "(did you mean 'kernels'?)"),
    ({"vary": {"gbs": [64], "batch": [64]}}, "gbs and batch are the same input"),
    ({"vary": {"context": [1]}}, "context is an input of an estimate, without --cluster"),
    ({"vary": {"tp": [3]}}, "the point is not legal: tp*cp*pp*dp"),
    ({"vary": {"cluster": ["h1000x8"]}}, "h1000"),
]


@pytest.mark.parametrize(("asked", "said"), WRONG)
def test_mistakes_are_one_sentence(asked, said):
    with pytest.raises(UserError) as refused:
        moeplan.sweep("mixtral", **asked)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("asked", "said"), WRONG_LAYOUTS)
def test_mistakes_about_layouts_are_one_sentence(asked, said):
    with pytest.raises(UserError) as refused:
        moeplan.sweep("mixtral", cluster="h100x64", job="train", **asked)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
