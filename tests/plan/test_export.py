"""Launch arguments: real names, the same layout when read back, and refusals by name."""

import re
import sys
import types
from types import SimpleNamespace

import pytest

from moeplan.cluster.datafile import table
from moeplan.cluster.layout import Layout
from moeplan.errors import UserError
from moeplan.load import load_model
from moeplan.plan.export import ENGINES, export
from tests.commands import runner
from tests.exported import chosen, commands, read, served
from tests.reading import ONE_OF_EACH_FAMILY


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command in this process."""
    return runner(monkeypatch, capsys)


# ---------------------------------------------------------------------------------- the tables
@pytest.mark.parametrize("engine", ENGINES)
def test_every_option_names_the_file_that_it_was_read_in(engine):
    about, options = table("engines", f"source.{engine}"), table("engines", f"options.{engine}")
    assert set(options.values()) <= set(about["files"])
    assert about["checked"].year >= 2026
    source = [x for x in about["files"].values() if "docs." not in x and "imported" not in x]
    read_in = r"\S+ (at [0-9a-f]{40}|of release [0-9.]+)"
    assert all(re.fullmatch(read_in, where) for where in source)


MEGATRON = [
    ("mixtral", "tp=2,pp=4,ep=4,batch=64", "h100x64", {}),
    ("mixtral", "tp=2,pp=4,cp=2,ep=8,etp=2,batch=64,mbs=2,zero=0", "h100x64", {}),
    ("qwen3-30b", "pp=4,vpp=3,ep=8,batch=128,schedule=interleaved,overlap=none", "h100x32", {}),
    ("qwen3-30b", "pp=2,layers=23+25,ep=8,batch=64,recompute=full", "h100x16",
     {"policy": "copies"}),
    ("deepseek-v3", "pp=16,ep=64,batch=2048,layers=full,recompute=selective", "h800x2048",
     {"tokens": 14_800_000_000_000, "precision": "fp8", "optimizer": "adamw-bf16-moments"}),
    ("llama-3.1-8b", "tp=4,zero=3,batch=64", "h100x32", {}),
]  # fmt: skip


def megatron_layout(got):
    """The layout that Megatron-LM would run, from its arguments alone."""
    size = {n: int(got.get(f"--{k}-parallel-size", 1)) for n, k in (
        ("tp", "tensor-model"), ("pp", "pipeline-model"), ("cp", "context"),
        ("ep", "expert-model"), ("etp", "expert-tensor"))}  # fmt: skip
    world = int(got["--nnodes"]) * int(got["--nproc-per-node"])
    stages = got.get("--pipeline-model-parallel-layout", "").split("|")
    spelt = [re.sub(r"(\w)\*(\d+)", lambda m: m[1] * int(m[2]), stage) for stage in stages]
    assert [s for s in spelt if "E" in s] == spelt[:1] or len(spelt) == 1
    assert [s for s in spelt if "L" in s] == spelt[-1:] or len(spelt) == 1
    sharding = {"optim_grads": 2, "optim_grads_params": 3}
    zero = sharding.get(got.get("--data-parallel-sharding-strategy"), 1)
    return Layout(
        **size,
        dp=world // (size["tp"] * size["pp"] * size["cp"]),
        vpp=len(stages) // size["pp"],
        zero=zero if "--use-distributed-optimizer" in got else 0,
        microbatch=int(got["--micro-batch-size"]),
        batch=int(got["--global-batch-size"]),
        split=tuple(s.count("t") for s in spelt),
        recompute=got.get("--recompute-granularity", "none"),
    )


@pytest.mark.parametrize(("model", "degrees", "cluster", "job"), MEGATRON)
def test_megatron_reads_the_same_layout(model, degrees, cluster, job):
    plan = chosen(model, degrees, cluster, **job)
    [words] = commands(export("megatron-lm", plan).text())
    got = read(words)
    launch = {"--nnodes", "--nproc-per-node", "--node-rank", "--master-addr", "--master-port"}
    assert set(got) - launch <= set(table("engines", "options.megatron-lm"))
    back = megatron_layout(got)
    want = plan.layout
    for name in ("tp", "pp", "vpp", "dp", "cp", "ep", "etp", "zero", "microbatch", "batch",
                 "recompute"):  # fmt: skip
        assert getattr(back, name) == getattr(want, name), name
    assert back.values["world"] == plan.gpus
    if want.pp > 1:
        layers = int(got["--num-layers"])
        assert sum(back.split) == layers
        if isinstance(want.split, tuple):
            assert back.split == want.split
        else:
            assert max(back.split) - min(back.split) <= 1 or want.split == "full"
    assert ("--sequence-parallel" in got) == (want.tp > 1)


def test_megatron_arguments_describe_models_to_the_last_parameter():
    """Of every family, each model that is not refused."""
    from moeplan import api

    written = []
    for model in sorted({*ONE_OF_EACH_FAMILY, "llama-3.1-8b", "glm-4.5", "qwen1.5-moe-a2.7b"}):
        plan, refused = chosen(model, "batch=8", "h100x8", mtp=False), ""
        try:
            got = read(export("megatron-lm", plan).arguments["train"])
        except UserError as problem:
            refused = str(problem)
        if refused:
            assert refused.startswith("Megatron-LM cannot express this")
            continue
        written.append(model)
        assert megatron_parameters(model, got) == api.estimate(model)["params.total"].value, model
    assert len(written) > 12


def megatron_parameters(model, got):
    """Parameters counted from the arguments as Megatron-LM builds its layers."""

    def n(option, default=0):
        return int(got.get(f"--{option}", default))

    width, heads, layers = n("hidden-size"), n("num-attention-heads"), n("num-layers")
    if "--multi-latent-attention" in got:
        rq, rkv, dn, dr, dv = (n(o) for o in ("q-lora-rank", "kv-lora-rank", "qk-head-dim",
                                              "qk-pos-emb-head-dim", "v-head-dim"))  # fmt: skip
        attention = width * (rkv + dr) + rkv + (rq or width) * heads * (dn + dr)
        attention += width * rq + rq
        attention += rkv * heads * (dn + dv) + heads * dv * width
    else:
        each, groups = n("kv-channels"), n("num-query-groups", heads)
        attention = 2 * width * heads * each + 2 * width * groups * each
        attention += 2 * each * ("--qk-layernorm" in got)
        attention += (heads + 2 * groups) * each * ("--add-qkv-bias" in got)
    dense = 3 * width * n("ffn-hidden-size")
    experts = n("num-experts")
    moe = experts * (3 * width * n("moe-ffn-hidden-size") + width)  # the expert bias is a buffer
    moe += 3 * width * n("moe-shared-expert-intermediate-size")
    moe += width * ("--moe-shared-expert-gate" in got)
    where = eval(got["--moe-layer-freq"]) if "--moe-layer-freq" in got else [experts > 0] * layers
    assert len(where) == layers
    total = layers * (attention + 2 * width) + width
    total += sum(moe if held else dense for held in where)
    vocabulary = int(load_model(model).vocabulary.value) * width
    return total + vocabulary * (1 + ("--untie-embeddings-and-output-weights" in got))


@pytest.mark.parametrize(
    ("degrees", "line"),
    [("ep=8,batch=64", "export CUDA_DEVICE_MAX_CONNECTIONS=1"),
     ("ep=8,zero=2,batch=64", "unset CUDA_DEVICE_MAX_CONNECTIONS"),
     ("ep=8,overlap=all-to-all,batch=64", "export CUDA_DEVICE_MAX_CONNECTIONS=32"),
     ("tp=2,ep=8,overlap=all-to-all,batch=64", "export CUDA_DEVICE_MAX_CONNECTIONS=1")],
)  # fmt: skip
def test_megatron_has_as_many_work_queues_as_it_asks_for(degrees, line):
    """validate_args of release 0.19.2: Megatron-FSDP refuses 1, tp and cp ask for it."""
    found = export("megatron-lm", chosen("mixtral", degrees, "h100x8"))
    assert found.script[0] == line
    assert ("--ckpt-format" in found.arguments["train"]) == ("zero=2" in degrees)


def test_megatron_is_told_a_width_of_heads_that_do_not_divide_the_model():
    """validate_args of release 0.19.2 asserts that they do, unless --kv-channels is given."""
    plan = chosen("glm-4.7-flash", "ep=8,batch=64", "h100x8")
    got = read(export("megatron-lm", plan).arguments["train"])
    assert int(got["--hidden-size"]) % int(got["--num-attention-heads"])
    assert got["--kv-channels"] == got["--qk-head-dim"]


def test_megatron_recomputes_activations_of_experts_only():
    plan = chosen("llama-3.1-8b", "recompute=selective,batch=64", "h100x8")
    got = read(export("megatron-lm", plan).arguments["train"])
    assert got["--recompute-modules"] == "layernorm"
    assert "is kept" in " ".join(export("megatron-lm", plan).notes)


# ---------------------------------------------------------------------------------- torchtitan
def torchtitan_config(text):
    """Run the exported configuration against stand-ins for torchtitan's modules."""
    body = text.partition("<<'END'\n")[2].partition("\nEND")[0]
    base = SimpleNamespace(parallelism=SimpleNamespace(), training=SimpleNamespace())
    for path, name in re.findall(r"^from (\S+) import (\S+)", body, re.MULTILINE):
        module = types.ModuleType(path)
        setattr(module, name, lambda name=name: base if name.islower() else name)
        sys.modules[path] = module
    try:
        space = {}
        exec(body, space)
        return space["moeplan_plan"]()
    finally:
        for path in re.findall(r"^from (\S+) import", body, re.MULTILINE):
            del sys.modules[path]


@pytest.mark.parametrize(
    ("degrees", "kinds"),
    [
        ("tp=2,ep=8,batch=64,mbs=2,zero=3,recompute=full", {}),
        ("pp=4,cp=2,ep=8,batch=64,zero=2,recompute=selective", {}),
        ("pp=4,vpp=3,ep=8,batch=64,schedule=interleaved", {}),
    ],
)
def test_torchtitan_reads_the_same_layout(degrees, kinds):
    plan = chosen("qwen3-30b", degrees, "h100x32", tokens=10**12, **kinds)
    text = export("torchtitan", plan).text()
    config = torchtitan_config(text)
    p, t, want = config.parallelism, config.training, plan.layout
    dp = p.data_parallel_replicate_degree * p.data_parallel_shard_degree
    back = {"tp": p.tensor_parallel_degree, "pp": p.pipeline_parallel_degree, "dp": dp,
            "cp": p.context_parallel_degree, "ep": p.expert_parallel_degree}  # fmt: skip
    assert back == {name: getattr(want, name) for name in back}
    assert back["tp"] * back["pp"] * back["cp"] * dp == plan.gpus
    [words] = commands(text.replace("cat > moeplan_plan.py <<'END'", "cat > /dev/null <<'END'"))
    got = read(words)
    assert int(got["--nnodes"]) * int(got["--nproc-per-node"]) == plan.gpus
    assert t.num_tokens_per_microbatch_per_dp_rank == want.microbatch * 4096
    assert t.num_tokens_per_train_step == want.batch * 4096
    assert (t.steps - 1) * t.num_tokens_per_train_step < 10**12
    assert t.steps * t.num_tokens_per_train_step >= 10**12
    assert (p.fsdp_reshard_after_forward == "always") == (want.zero == 3)
    if want.pp > 1:
        less = p.pipeline_parallel_first_stage_less_layers
        less += p.pipeline_parallel_last_stage_less_layers
        stages = (48 + less) / p.pipeline_parallel_layers_per_stage
        assert stages == want.pp * want.vpp
        assert p.num_pp_microbatches == want.values["m"]
    assert (config.activation_checkpoint is None) == (want.recompute == "none")


@pytest.mark.parametrize(("pp", "vpp"), [(16, 1), (4, 3), (60, 1)])
def test_torchtitan_is_told_uneven_stages_by_name(pp, vpp):
    """Modules as torchtitan's ParallelismConfig names them: each once, in order."""
    kinds = "interleaved" if vpp > 1 else "1f1b"
    degrees = f"pp={pp},vpp={vpp},ep=16,batch=2048,schedule={kinds}"
    plan = chosen("deepseek-v3", degrees, f"h800x{pp * 16}")
    p = torchtitan_config(export("torchtitan", plan).text()).parallelism
    assert p.pipeline_parallel_layers_per_stage is None
    parts = p.pipeline_parallel_module_fqns_per_model_part
    assert len(parts) == pp * vpp
    layers = [f"layers.{i}" for i in range(61)]
    every = [name for part in parts for name in part]
    assert every == ["tok_embeddings", *layers, "norm", "lm_head"]
    sizes = [sum(name.startswith("layers.") for name in part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_torchtitan_starts_from_a_named_configuration():
    plan = chosen("mixtral", "ep=8,batch=64", "h100x8")
    with pytest.raises(UserError, match="--base MODULE:FUNCTION"):
        export("torchtitan", plan)
    assert "from mine.runs import big" in export("torchtitan", plan, base="mine.runs:big").text()
    with pytest.raises(UserError, match="must be MODULE:FUNCTION"):
        export("torchtitan", plan, base="mine.runs")


# ---------------------------------------------------------------------------------- refusals
REFUSED = [
    ("megatron-lm", chosen("mixtral", "pp=4,ep=8,batch=256,schedule=dualpipe", "h100x32"),
     "schedule dualpipe"),
    ("megatron-lm", chosen("mixtral", "pp=4,ep=8,batch=256,schedule=zero-bubble", "h100x32"),
     "schedule zero-bubble"),
    ("megatron-lm", chosen("arctic", "ep=8,batch=64", "h200x8"), "not norm, attention, norm, FFN"),
    ("megatron-lm", chosen("hunyuan-large", "ep=8,batch=64", "h200x8"), "differ in shares_kv"),
    ("megatron-lm", chosen("gpt-oss-120b", "ep=8,batch=64", "h100x8"), "clamped_swiglu"),
    ("megatron-lm", chosen("qwen3-next", "ep=8,batch=64", "h100x8"), "GatedDeltaNet"),
    ("megatron-lm", chosen("mixtral", "tp=2,sp=0,ep=8,batch=64", "h100x8"), "sequence parallelism"),
    ("megatron-lm", chosen("mixtral", "ep=8,batch=64,recompute=selective:norm+dispatch", "h100x8"),
     "recomputing dispatch"),
    ("megatron-lm", chosen("ernie-4.5", "ep=8,batch=64", "h100x8"),
     "adds a bias to softmax scores"),
    ("megatron-lm", chosen("mixtral", "ep=8,zero=3,batch=64", "h100x8", optimizer="muon"),
     "zero=3 with muon"),
    ("megatron-lm", chosen("llama-3.1-8b", "recompute=selective:activation,batch=64", "h100x8"),
     "activation of dense FFNs alone"),
    ("torchtitan", chosen("qwen3-30b", "ep=4,etp=2,batch=64", "h100x8"), "etp=2"),
    ("torchtitan", chosen("qwen3-30b", "pp=4,ep=8,batch=256,schedule=dualpipe", "h100x32"),
     "DualPipeV"),
    ("vllm", chosen("mixtral", "ep=8,batch=64", "h100x8"), "vllm is for serving"),
    ("vlm", served("mixtral", "ep=8", "h100x8"), "did you mean 'vllm'?"),
    ("megatron-lm", chosen("mixtral", "tp=3,pp=5,batch=64", "h100x120"), "tp=3 does not divide"),
]  # fmt: skip


@pytest.mark.parametrize(("engine", "plan", "said"), REFUSED)
def test_what_an_engine_cannot_express_is_refused_by_name(engine, plan, said):
    with pytest.raises(UserError) as caught:
        export(engine, plan)
    assert said in str(caught.value)


def test_what_differs_is_said():
    plan = chosen("qwen3-30b", "ep=8,batch=64,recompute=selective", "h100x8", dispatch="fp8",
                  kept="fp8", optimizer="adamw-pure-bf16")  # fmt: skip
    said = " ".join(export("megatron-lm", plan).notes)
    for word in ("moe_act", "dispatched in fp8", "kept=fp8", "adamw-pure-bf16"):
        assert word in said
    assert "zero=1 is written as FSDP" in " ".join(export("torchtitan", plan).notes)


def test_the_command_takes_a_layout_or_a_plan_file(run, tmp_path):
    file = tmp_path / "plan.toml"
    plan = served("mixtral", "ep=8", "h100x8")
    plan.save(file)
    direct = run("export", "vllm", "mixtral", "--layout", "ep=8", "--cluster", "h100x8",
                 "--isl", "4000").out  # fmt: skip
    assert direct == run("export", "vllm", "--plan", str(file)).out
    assert direct == export("vllm", plan).text()
    assert run("export", "vllm", "mixtral").code == 2
    assert "did you mean 'vllm'?" in run("export", "vlm", "mixtral").err
    assert direct == run("export", "vllm", "--preset", "mixtral", "--layout", "ep=8", "--cluster",
                         "h100x8", "--serve", "--isl", "4000").out  # fmt: skip
