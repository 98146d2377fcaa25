"""vLLM and SGLang: the same layout when their options are read back as the engines read them."""

import itertools
import json

import pytest

from moeplan.cluster.datafile import table
from moeplan.cluster.hardware import cluster as cluster_named
from moeplan.cluster.layout import Layout
from moeplan.errors import UserError
from moeplan.load import load_model
from moeplan.parallel import ServingJob
from moeplan.plan.chosen import Chosen
from moeplan.plan.export import export
from moeplan.plan.export.engine import Subject
from moeplan.plan.export.serving import MOST_ROWS
from moeplan.plan.export.sglang import sglang
from moeplan.plan.export.vllm import vllm
from tests.exported import commands, read, served

WRITERS = {"vllm": vllm, "sglang": sglang}


def vllm_layout(got, *, moe=True):
    """Degrees as vLLM 0.33 takes them: experts over tp*dp, whole or in width."""
    tp, pp, dp = (int(got.get(f"--{n}-parallel-size", 1)) for n in ("tensor", "pipeline", "data"))
    whole = "--enable-expert-parallel" in got
    pool = tp * dp if moe else 1
    return {"tp": tp, "pp": pp, "dp": dp, "ep": pool if whole else 1, "etp": 1 if whole else pool}


def sglang_layout(got, *, moe=True):
    """Degrees as SGLang 0.5.23 takes them: tp-size holds the groups of attention."""
    size, pp, groups, ep = (
        int(got.get(f"--{n}-size", 1)) for n in ("tp", "pp", "attn-dp", "ep")
    )  # fmt: skip
    replicas = int(got.get("--dp-size", 1))
    assert 1 in (replicas, groups)  # SGLang refuses both
    assert size % groups == 0
    assert size % ep == 0
    if got.get("--moe-a2a-backend") == "deepep":
        assert ep == size  # or SGLang makes it so
    etp = size // ep if moe else 1
    return {"tp": size // groups, "pp": pp, "dp": groups * replicas, "ep": ep, "etp": etp}


READERS = {"vllm": vllm_layout, "sglang": sglang_layout}


def all_layouts(gpus):
    """Every layout of a MoE model on so many GPUs, with experts that fill whole groups."""
    sizes = [n for n in range(1, gpus + 1) if gpus % n == 0]
    for tp, pp in itertools.product(sizes, sizes):
        if gpus % (tp * pp) == 0:
            pool = gpus // pp
            for ep, etp in itertools.product(sizes, sizes):
                if pool % (ep * etp) == 0:
                    yield Layout(tp=tp, pp=pp, dp=pool // tp, ep=ep, etp=etp)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_every_layout_is_read_back_or_refused(engine):
    """Of all layouts of Mixtral on 8 GPUs: copies of experts become instances of their own."""
    job = ServingJob(input=512, output=64)
    seen = {"same": 0, "copies": 0, "refused": 0}
    known = set(table("engines", f"options.{engine}"))
    spec, cluster = load_model("mixtral"), cluster_named("h200x8")
    for layout in all_layouts(8):
        plan = Chosen("mixtral", "h200x8", layout, job)
        want = {n: getattr(layout, n) for n in ("tp", "pp", "dp", "ep", "etp")}
        groups_split = (layout.ep * layout.etp) % layout.tp != 0
        mixed = engine == "vllm" and layout.ep > 1 and layout.etp > 1
        subject = Subject(plan, spec, cluster)
        if groups_split or mixed:
            with pytest.raises(UserError, match="cannot express"):
                WRITERS[engine](subject)
            seen["refused"] += 1
            continue
        found = WRITERS[engine](subject)
        got = read(found.arguments["both"])
        assert set(got) <= known
        back = READERS[engine](got)
        copies = layout.tp * layout.dp // (layout.ep * layout.etp)
        assert back == {**want, "dp": layout.dp // copies}, layout
        assert back["tp"] * back["pp"] * back["dp"] * copies == 8
        text = "\n".join(found.script)
        assert f"{copies} instance" in text
        assert (f"edp={copies}" in " ".join(found.notes)) == (copies > 1)
        seen["copies" if copies > 1 else "same"] += 1
    assert min(seen.values()) > 3, seen


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("degrees", ["tp=2,dp=4", "tp=8", "tp=4,pp=2", "dp=8"])
def test_a_dense_model_keeps_its_replicas(engine, degrees):
    plan = served("llama-3.1-8b", degrees, "h100x8")
    [words] = commands(export(engine, plan).text())
    back = READERS[engine](read(words), moe=False)
    assert back == {n: getattr(plan.layout, n) for n in ("tp", "pp", "dp", "ep", "etp")}


def test_replicas_of_a_dense_model_on_several_hosts_are_servers_of_their_own_in_sglang():
    plan = served("llama-3.1-8b", "tp=2,dp=8", "h100x16")
    with pytest.raises(UserError, match="start that many"):
        export("sglang", plan)
    assert len(commands(export("vllm", plan).text())) == 2


# --------------------------------------------------------------------------------------- hosts
def test_vllm_starts_its_data_parallel_ranks_host_by_host():
    plan = served("deepseek-v3", "tp=2,dp=16,ep=32", "h800x32")
    first, other = map(read, commands(export("vllm", plan).text()))
    local = int(first["--data-parallel-size-local"])
    assert local * 2 == 8  # GPUs of a host
    assert local * 4 == int(first["--data-parallel-size"])
    assert "--headless" not in first
    assert "--headless" in other
    assert int(other["--data-parallel-start-rank"]) == 1 * local  # NODE_RANK is 1
    extra = {"--headless", "--data-parallel-start-rank"}
    assert {k: v for k, v in other.items() if k not in extra} == first


def test_an_engine_of_vllm_that_spans_hosts_names_its_nodes():
    plan = served("deepseek-v3", "tp=16,pp=2,ep=16", "h800x32")
    first, other = map(read, commands(export("vllm", plan).text()))
    assert (first["--nnodes"], first["--node-rank"], other["--node-rank"]) == ("4", "0", "1")
    assert "--data-parallel-size" not in first


def test_sglang_runs_one_command_on_each_host():
    plan = served("deepseek-v3", "ep=32", "h800x32")
    [words] = commands(export("sglang", plan).text())
    got = read(words)
    assert (got["--nnodes"], got["--node-rank"]) == ("4", "1")
    assert int(got["--nnodes"]) * 8 == int(got["--tp-size"]) * int(got.get("--pp-size", 1))


# -------------------------------------------------------------------------------------- pools
JOB = ServingJob(input=4000, output=1000, disaggregated=True, draft=1, overlap=0.5)
POOLS = Chosen(
    "deepseek-v3", "h800x192", Layout(dp=128, ep=128), JOB, Layout(tp=4, dp=8, ep=32), 1, 2
)  # fmt: skip


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_prefill_and_decoding_have_layouts_of_their_own(engine):
    found = export(engine, POOLS)
    back = {role: READERS[engine](read(found.arguments[role])) for role in ("prefill", "decode")}
    assert back["prefill"] == {"tp": 4, "pp": 1, "dp": 8, "ep": 32, "etp": 1}
    assert back["decode"] == {"tp": 1, "pp": 1, "dp": 128, "ep": 128, "etp": 1}
    text = found.text()
    assert "# Prefill: 2 instances of 32 GPUs on 4 hosts of 8." in text
    assert "# Decoding: 1 instance of 128 GPUs on 16 hosts of 8." in text
    assert "router" in " ".join(found.notes)
    assert max(map(len, text.splitlines())) <= 100


def test_vllm_hands_the_cache_from_prefill_to_decoding():
    found = export("vllm", POOLS)
    prefill, decode = (read(found.arguments[role]) for role in ("prefill", "decode"))
    roles = [json.loads(x["--kv-transfer-config"])["kv_role"] for x in (prefill, decode)]
    assert roles == ["kv_producer", "kv_consumer"]
    kernels = [x["--all2all-backend"] for x in (prefill, decode)]
    assert kernels == ["deepep_high_throughput", "deepep_low_latency"]
    guess = {"method": "mtp", "num_speculative_tokens": 1}
    assert json.loads(decode["--speculative-config"]) == guess
    assert "--enable-dbo" in decode
    rows = 2 * int(decode["--max-num-seqs"])  # a guess is a row too
    assert int(decode["--max-num-batched-tokens"]) == rows <= MOST_ROWS
    assert prefill["--max-num-batched-tokens"] == "4000"


def test_sglang_has_modes_and_kernels_for_each_pool():
    found = export("sglang", POOLS)
    prefill, decode = (read(found.arguments[role]) for role in ("prefill", "decode"))
    assert [x["--disaggregation-mode"] for x in (prefill, decode)] == ["prefill", "decode"]
    assert [x["--deepep-mode"] for x in (prefill, decode)] == ["normal", "low_latency"]
    assert (decode["--speculative-num-steps"], decode["--speculative-num-draft-tokens"]) == (
        "1", "2")  # fmt: skip
    assert int(prefill["--chunked-prefill-size"]) == 4000 * 8  # divided by the groups again
    sequences = int(decode["--max-running-requests"]) // 128
    room = f"SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK={2 * sequences} "
    assert room in found.text()


def test_a_pool_of_prefill_that_is_not_counted_says_so():
    plan = Chosen("deepseek-v3", "h800x32", Layout(dp=32, ep=32), JOB)
    for engine in READERS:
        found = export(engine, plan)
        assert (
            "# Prefill: as many instances of 32 GPUs on 4 hosts of 8 as are needed." in found.text()
        )
        assert "does not say how many" in " ".join(found.notes)


# ------------------------------------------------------------------------------------ the rest
def test_listed_stages_are_a_variable_of_the_environment():
    plan = served("deepseek-v3", "pp=2,ep=8,layers=31+30", "h200x16")
    assert "VLLM_PP_LAYER_PARTITION=31,30 " in export("vllm", plan).text()
    assert "SGLANG_PP_LAYER_PARTITION=31,30 " in export("sglang", plan).text()
    assert len(commands(export("vllm", plan).text())) == 2


def test_kernels_of_low_latency_bound_the_sequences_of_a_rank():
    job = ServingJob(input=64, output=64)
    plan = Chosen("qwen3-30b", "h200x8", Layout(dp=8, ep=8), job)
    found = export("vllm", plan)
    got = read(found.arguments["both"])
    assert int(got["--max-num-seqs"]) == MOST_ROWS
    assert "1,024 rows" in " ".join(found.notes)
    fewer = Chosen("qwen3-30b", "h200x8", Layout(dp=8, ep=8), ServingJob(batch=800))
    assert read(export("vllm", fewer).arguments["both"])["--max-num-seqs"] == "100"
    assert read(export("sglang", fewer).arguments["both"])["--max-running-requests"] == "800"


def test_what_differs_from_the_plan_is_said():
    def notes(engine, degrees, cluster="h100x8", model="mixtral", **job):
        return " ".join(export(engine, served(model, degrees, cluster, **job)).notes)

    assert "all-reduce" in notes("vllm", "tp=8,ep=8")
    assert "stages of a data-parallel rank" in notes("vllm", "pp=2,dp=4,ep=4")
    assert "one kind of exchange" in notes("vllm", "dp=8,ep=8")
    assert "dispatched bf16 with experts in bf16" in notes("vllm", "dp=8,ep=8", dispatch="fp8")
    assert "dispatched" not in notes("vllm", "dp=8,ep=8", dispatch="bf16")
    assert "the plan counts fp8" in notes("sglang", "dp=8,ep=8", combine="fp8")
    assert "all-gather" in notes("sglang", "tp=4,dp=2,ep=4,etp=2")
    assert "divides by tp" in notes("sglang", "tp=2,dp=4,ep=8", model="deepseek-v3")
    assert "DOES NOT FIT" in notes("sglang", "dp=8,ep=8", model="deepseek-v3")
    assert "30% of the input" in notes("vllm", "tp=8,ep=8", cached=0.3)
    assert "raise it for longer" in notes("sglang", "tp=8,ep=8")


@pytest.mark.parametrize(
    ("engine", "degrees", "job", "said"),
    [
        ("vllm", "tp=4,ep=2,etp=2", {}, "not both ways"),
        ("vllm", "tp=4", {}, "copies of experts"),
        ("sglang", "tp=4", {}, "copies of experts"),
        ("vllm", "tp=4,ep=4", {"cache": "int8"}, "cache=int8: key-value caches are bf16, fp16"),
        ("sglang", "tp=4,ep=4", {"weights": "int8"}, "weights=int8: quantised while loading are"),
        ("sglang", "tp=4,ep=4", {"dispatch": "mxfp8"}, "dispatch=mxfp8: DeepEP sends"),
        ("vllm", "pp=4,layers=full", {}, "write the stages as a list"),
    ],
)
def test_what_an_engine_has_no_options_for_is_refused(engine, degrees, job, said):
    with pytest.raises(UserError) as caught:
        export(engine, served("mixtral", degrees, "h200x4", **job))
    assert said in str(caught.value)
    assert str(caught.value).startswith({"vllm": "vLLM", "sglang": "SGLang"}[engine])


def test_weights_are_quantised_only_from_a_checkpoint_that_is_not():
    for engine, name in (("vllm", "fp8_per_tensor"), ("sglang", "fp8")):
        got = read(export(engine, served("mixtral", "tp=4,ep=4", "h200x4", weights="fp8"))
                   .arguments["both"])  # fmt: skip
        assert got["--quantization"] == name
        own = served("deepseek-v3", "ep=8", "h200x8", weights="fp8-block128")
        assert "--quantization" not in read(export(engine, own).arguments["both"])
        with pytest.raises(UserError, match="only bf16 weights"):
            export(engine, served("deepseek-v3", "ep=8", "h200x8", weights="bf16"))
