"""FLOPs: torch's own counter on real models, explicit masks, published rows, relations."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.cluster.hardware import gpu
from moeplan.estimation.flops import flops, forward, forward_by_component
from moeplan.estimation.fold import lines
from moeplan.estimation.parameters import active, parameters
from moeplan.families import read_config
from moeplan.model.attention import Attention
from moeplan.model.ffn import MoE
from moeplan.model.latent_attention import LatentAttention
from moeplan.model.masks import visible_keys, visible_pairs
from moeplan.model.spec import Group, ModelSpec
from moeplan.model.workload import Workload
from moeplan.quantity import evaluate
from tests.reading import READABLE, digits, spec_of


# ------------------------------------------------------------------------------ published rows
def training(name: str, mask: Any = "causal") -> tuple[float, float]:
    """Training FLOPs per token at 4096 tokens, with and without the router's."""
    section = flops(spec_of(name), 4096, mask)
    router = 3 * section["by_component"]["router"].value
    whole = section["training_per_token"].value
    return whole, whole - router


# arXiv 2505.09343 table 2 prints 250; Megatron-Bridge's pages 23.0 for Qwen3 and 204.4 for Kimi-K2;
# Megatron-LM's own function, which has no router, gives 79.7; gpt-oss is recounted from its sizes.
@pytest.mark.parametrize(
    ("name", "with_router", "without"),
    [
        ("deepseek-v3", "250.4", "249.8"),
        ("mixtral-8x7b", None, "79.7"),
        ("qwen3-30b-a3b", "23.08", None),
        ("kimi-k2", "205.5", "204.5"),
        ("gpt-oss-120b", "32.7", None),
    ],
)
def test_published_training_flops(name: str, with_router: str | None, without: str | None) -> None:
    whole, no_router = training(name)
    if with_router is not None:
        assert digits(whole, with_router) == with_router
    if without is not None:
        assert digits(no_router, without) == without


@pytest.mark.parametrize(
    ("name", "heads", "widths", "printed"),
    [
        ("deepseek-v3", 128, 192 + 128, "250.46"),
        ("qwen3-30b-a3b", 32, 128 + 128, "23.08"),
        ("kimi-k2", 64, 192 + 128, "205.47"),
    ],
)
def test_six_times_the_active_parameters_and_attention(
    name: str, heads: int, widths: int, printed: str
) -> None:
    """The field's recipe is 6N + 3·L·s·heads·(d_qk + d_v); its N holds the norms, ours does not."""
    spec = spec_of(name)
    N = active(spec)["without_input_embedding"].value
    recipe = 6 * N + 3 * spec.layers * 4096 * heads * widths
    assert digits(recipe, printed) == printed
    norms = parameters(spec)["by_component"]["norms"].value
    assert training(name)[0] == recipe - 6 * norms


def test_published_training_flops_with_the_mtp_module() -> None:
    """Megatron-Bridge's pages print 260.0; the recipe gives 260.65 with the norms' 6 MFLOP."""
    found = flops(spec_of("deepseek-v3"), 4096)["training_per_token_with_mtp"].value
    assert found / 1e9 == pytest.approx(260.65, abs=0.01)
    assert found / 260.0e9 == pytest.approx(1, abs=0.003)


@pytest.mark.parametrize(("mask", "published"), [("causal", "38.94"), ("full", "43.73")])
def test_published_utilisation_of_deepseek_v3(mask: str, published: str) -> None:
    """arXiv 2505.09343 table 4: 1541.7 tokens a second and H800, without the router."""
    rate = training("deepseek-v3", mask)[1] * 1541.7
    share = rate / gpu("h800").peak("bf16").value
    assert 100 * share == pytest.approx(float(published), abs=0.02)


# ------------------------------------------------------------------ pairs, against explicit masks
lengths = st.integers(1, 200)


@given(S=lengths, before=st.integers(0, 200), W=st.integers(1, 90))
@pytest.mark.parametrize("scope", ["full", "window", "chunk"])
def test_causal_pairs_against_an_explicit_mask(scope: str, S: int, before: int, W: int) -> None:
    """The diagonal's half token is left out by convention: S/2 pairs a sequence at most."""
    C = before + S
    query, key = np.arange(before, C)[:, None], np.arange(C)[None, :]
    mask = key <= query
    if scope == "window":
        mask &= key > query - W
    if scope == "chunk":
        mask &= key // W == query // W
    scoped = {"full": {}, "window": {"window": "W"}, "chunk": {"chunk": "W"}}[scope]
    formula = visible_pairs(Workload("prefill"), **scoped)
    found = evaluate(formula, {"S": S, "C": C, "W": W})
    missing = int(mask.sum()) - found
    assert 0 <= missing <= S / 2
    if scope != "window":  # every query has a diagonal; beyond a window the half is cut off too
        assert missing == S / 2
    over = evaluate(formula, {"S": np.array([S, S]) * 1.0, "C": C, "W": W})
    assert list(over) == [found, found]
    read = evaluate(visible_keys(**scoped), {"S": S, "C": C, "W": W})
    assert read == mask.any(axis=0).sum()


@given(S=lengths, before=st.integers(0, 200), W=st.integers(1, 90))
@pytest.mark.parametrize("scope", ["full", "window", "chunk"])
def test_the_full_mask_counts_the_rectangle(scope: str, S: int, before: int, W: int) -> None:
    scoped = {"full": {}, "window": {"window": "W"}, "chunk": {"chunk": "W"}}[scope]
    formula = visible_pairs(Workload("train", mask="full"), **scoped)
    assert evaluate(formula, {"S": S, "C": before + S, "W": W}) == np.ones((S, before + S)).sum()


@given(C=lengths, W=st.integers(1, 90))
@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize("scope", ["full", "window", "chunk"])
def test_decoding_sees_exactly_its_keys(scope: str, mask: Any, C: int, W: int) -> None:
    keys = np.arange(C)
    seen = {"full": keys >= 0, "window": keys > C - 1 - W, "chunk": keys // W == (C - 1) // W}
    scoped = {"full": {}, "window": {"window": "W"}, "chunk": {"chunk": "W"}}[scope]
    formula = visible_pairs(Workload("decode", mask=mask), **scoped)
    assert evaluate(formula, {"S": 1, "C": C, "W": W}) == seen[scope].sum()


@pytest.mark.parametrize("scope", ["full", "window", "chunk"])
def test_the_attention_row_counts_its_pairs(scope: Any) -> None:
    """Two matmuls a pair and head: queries with keys (dh), scores with values (dv)."""
    block = Attention(D=64, H=6, G=2, dh=10, dv=12, W=5, scope=scope)
    spec = ModelSpec("a", "a", (Group("layer", (block,), prefix="{i}."),))
    work = Workload("decode", B=3, S=1, C=17)
    (row,) = [line for line in lines(spec, work) if line.op.kind == "attention"]
    pairs = {"full": 17, "window": 5, "chunk": 2}[scope]  # the third chunk of 5 holds tokens 15, 16
    assert row.flops == 3 * pairs * 6 * (2 * 10 + 2 * 12)


# ------------------------------------------------------------------------------------ relations
@pytest.mark.parametrize("name", READABLE)
def test_section_is_consistent(name: str) -> None:
    section = flops(spec_of(name), 2048)
    forward_pass = section["forward_per_token"].value
    assert section["training_per_token"].value == 3 * forward_pass
    assert section["prefill_per_sequence"].value == 2048 * forward_pass
    parts = sum(part.value for part in section["by_component"].values())
    assert parts == pytest.approx(forward_pass, rel=1e-12)
    decoded = sum(part.value for part in section["decode_by_component"].values())
    assert decoded == section["decode_per_token"].value
    whole = flops(spec_of(name), 2048, "full")
    for key, found in section["full"].items():  # each mask is told beside the other
        assert found.value == whole[key].value
        assert section[key].value == whole["causal"][key].value
    assert whole["forward_per_token"].value > forward_pass
    assert set(section["by_component"]) >= {"attention", "head"}


@pytest.mark.parametrize("name", READABLE)
def test_twice_the_sequences_cost_twice(name: str) -> None:
    spec = spec_of(name)
    for phase in ("train", "prefill", "decode"):
        new = 1 if phase == "decode" else 512
        one, two = (forward(spec, Workload(phase, B=B, S=new, C=512)) for B in (3, 6))
        assert two == 2 * one


@pytest.mark.parametrize("name", READABLE)
def test_twice_the_tokens_double_every_matmul_with_weights(name: str) -> None:
    spec = spec_of(name)

    def matmuls(length: int) -> dict[str, int]:
        work = Workload("prefill", B=1, S=length, C=length)
        found: dict[str, int] = defaultdict(int)
        for line in lines(spec, work):
            if line.op.kind in ("linear", "grouped_linear"):
                found[line.op.name] += line.count * line.flops
        return found

    short, long = matmuls(640), matmuls(1280)
    assert short.keys() == long.keys()
    assert {name: 2 * n for name, n in short.items()} == long


@pytest.mark.parametrize("name", READABLE)
def test_decoding_at_a_longer_context_is_never_cheaper(name: str) -> None:
    spec = spec_of(name)
    contexts = [1, 7, 128, 129, 4096, 70_000]
    chunks = [block.values["W"] for _, block in spec.blocks(Attention) if block.scope == "chunk"]
    if chunks:  # the token that opens a new chunk sees itself alone, and is cheaper
        contexts = [C for C in contexts if min(chunks) >= C]
    steps = [forward(spec, Workload("decode", B=1, S=1, C=C)) for C in contexts]
    assert len(steps) > 3
    assert steps == sorted(steps)


@pytest.mark.parametrize("name", ["mixtral-8x7b", "gpt-oss-20b", "deepseek-v3", "llama-3.1-8b"])
def test_a_cached_prefix_saves_what_the_prefix_cost(name: str) -> None:
    """Prefilling 300 tokens and then 200 more computes the scores of 500 at once."""
    spec = spec_of(name)

    def scores(S: int, C: int) -> float:
        work = Workload("prefill", B=1, S=S, C=C)
        rows = (line for line in lines(spec, work) if line.op.kind == "attention")
        return sum(line.count * line.flops for line in rows)

    assert scores(300, 300) + scores(200, 500) == scores(500, 500)


def test_one_expert_costs_a_dense_layer_and_a_router() -> None:
    shape = {
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 500,
    }
    experts = {"num_local_experts": 1, "num_experts_per_tok": 1}
    one = read_config(shape | experts | {"model_type": "mixtral"}, "one expert")
    dense = read_config(shape | {"model_type": "mistral"}, "dense")
    work = Workload("prefill", B=1, S=64, C=64)
    router = 64 * 3 * 2 * 96  # a dot product of D for each token and layer
    assert forward(one, work) == forward(dense, work) + router


def test_compute_grows_with_k_and_not_with_experts() -> None:
    spec = spec_of("mixtral-8x7b")
    work = Workload("prefill", B=1, S=64, C=64)

    def parts(**symbols: int) -> dict[str, Any]:
        return {
            k: q.value for k, q in forward_by_component(spec.vary(MoE, **symbols), work).items()
        }

    few, many, wide = parts(E=8, k=2), parts(E=64, k=2), parts(E=8, k=4)
    assert many["routed_experts"] == few["routed_experts"]
    assert many["router"] == 8 * few["router"]
    assert wide["routed_experts"] == 2 * few["routed_experts"]
    assert {k: n for k, n in many.items() if k != "router"} == {
        k: n for k, n in few.items() if k != "router"
    }


def test_the_two_forms_of_latent_attention_agree_on_weights_only() -> None:
    """Absorbed decoding reads the latents of all heads once and computes more for it."""
    block = LatentAttention(D=7168, H=128, rq=1536, rkv=512, dn=128, dr=64, dv=128)
    forms = {}
    for mode in ("absorbed", "expanded"):
        one = LatentAttention(**{n: block.values[n] for n in block.values}, mode=mode)  # type: ignore[arg-type]
        spec = ModelSpec(mode, mode, (Group("layer", (one,), prefix="{i}."),))
        forms[mode] = forward(spec, Workload("decode", B=1, S=1, C=4096))
        assert [w.name for w in one.weights()] == [w.name for w in block.weights()]
    # expanding the whole context anew for one token is what absorbing saves
    assert forms["absorbed"] < forms["expanded"] / 50
