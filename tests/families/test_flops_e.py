"""FLOPs of the newest kinds of row against torch's counter over a run of transformers' classes.

Convolved keys, deep routers, gated residual streams, n-gram embeddings, picked blocks, relative
biases, encoders with windows on both sides.
"""

from __future__ import annotations

from typing import Any

import pytest

from moeplan.families import read_config
from moeplan.model.attention import Attention
from moeplan.model.ffn import MoE
from moeplan.model.pooled_block_attention import PooledBlockAttention
from moeplan.model.workload import Workload
from tests.families.cases_d import case
from tests.families.test_flops_c import (
    DECODE,
    PREFILL,
    B,
    C,
    S,
    counted,
    flops_of,
    model_of,
    own,
    rows_of,
    summed,
)
from tests.oracle import oracle

pytestmark = pytest.mark.oracle


@pytest.fixture(autouse=True)
def _needs_transformers() -> None:
    oracle()


def test_convolved_attention_and_a_deep_router() -> None:
    """transformers runs skipped tokens through an expert and weighs them by nothing: r is 1 there.

    Its depthwise convolution makes t1 - 1 more outputs, which the grouped one takes in, and a
    prefill projects one vector of zeros for the token before the first.
    """
    config = case("zaya", 1)
    spec, model = read_config(config, "zaya").vary(MoE, r=1), model_of(config)
    for work, context, before in ((PREFILL, S, 1), (DECODE, C, 0)):
        counts = counted(model, context, decode=work.phase == "decode")
        rows = rows_of(spec, work)
        convs = [line for line in rows if line.op.name == "conv"]
        extra = f"2*B*(H + G)*dh*t0*(t1 - 1) + {before}*B*D*G*dv"
        more = sum(line.group.number * line.evaluate(extra) for line in convs)
        assert more > 0
        assert flops_of(rows) + more == counts[""] - summed(counts, "rotary_emb"), work.phase


def _built(cls: str, config: dict[str, Any]) -> Any:
    """A class that no auto-class finds for a text part alone."""
    import torch
    import transformers

    torch.manual_seed(0)
    own = getattr(transformers, f"{cls}TextConfig")
    text = {key: value for key, value in config["text_config"].items() if key != "model_type"}
    model = getattr(transformers, f"{cls}ForCausalLM")(own(**text)).float().eval()
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._experts_implementation = "eager"
            module.config._attn_implementation = "eager"
    return model


@pytest.mark.parametrize(
    ("family", "cls"), [("inkling_mm_model", "Inkling"), ("inkling2", "Inkling2")]
)
def test_relative_attention(family: str, cls: str) -> None:
    """Convolutions are padded or element-wise there; torch does not count the residual's mixing."""
    config = case(family, 0)
    spec, model = read_config(config, family), _built(cls, config)
    for work, context in ((PREFILL, S), (DECODE, C)):
        counts = counted(model, context, decode=work.phase == "decode")
        convs = [n for n in counts if n.endswith(("sconv", "convolution"))]
        skipped = ("conv", "attn_sconv", "mlp_sconv")
        rest = [
            line
            for line in rows_of(spec, work)
            if line.op.name not in skipped and "residual_attention" not in line.op.name
        ]
        assert convs
        assert flops_of(rest) == counts[""] - sum(own(counts, name) for name in convs), work.phase


@pytest.mark.parametrize("span", [1, 2, 4, 9])
def test_mixed_states_are_those_of_the_blocks_so_far(span: int) -> None:
    """The states that a branch reads, kept as the layers go by."""
    config = case("inkling2", 0)
    config["text_config"] |= {"n_layers_per_attn_res_block": span}
    rows = [
        line
        for line in rows_of(read_config(config, "2"), PREFILL)
        if line.op.name.endswith("residual_attention")
    ]
    blocks, products = 0, 0
    for layer, kind in enumerate(config["text_config"]["layer_types"]):
        products += (blocks + 1) * (1 if "sliding" in kind else 3) if layer else 0
        blocks += layer % span == 0
        products += blocks + 1
    assert flops_of(rows) == 4 * 2 * S * 96 * (products + blocks + 1)


def test_gated_streams_n_grams_and_picked_blocks() -> None:
    """transformers multiplies all keys and masks what was not picked; its scan is element-wise."""
    config = case("qwen4_exp_text", 0) | {"num_hidden_layers": 4}
    spec, model = read_config(config, "qwen4"), model_of(config)
    for work, context in ((PREFILL, S), (DECODE, C)):
        counts = counted(model, context, decode=work.phase == "decode")
        mixers = [n for n in counts if n.endswith((".linear_attn", ".self_attn", ".indexer"))]
        rows = rows_of(spec, work)
        skipped = ("conv", "delta_rule", "attention", "index_scores")
        rest = [line for line in rows if line.op.name not in skipped]
        assert mixers
        assert flops_of(rest) == counts[""] - sum(own(counts, name) for name in mixers)
        if work.phase == "decode":  # a prefill scores complete blocks only: fewer than all pairs
            scores = [line for line in rows if line.op.name == "index_scores"]
            assert flops_of(scores) == own(counts, "model.layers.3.self_attn.indexer")


@pytest.mark.parametrize("context", [3, 16, 17, 22, 500])
def test_picked_blocks_by_counting(context: int) -> None:
    """Four complete blocks of four tokens at most, and what lies behind the last complete one."""
    block = read_config(case("qwen4_exp_text", -1), "qwen4").first(PooledBlockAttention)
    assert block is not None
    seen = [min(n // 4, 4) * 4 + n % 4 for n in range(1, context + 1)]
    step = block.environment(Workload("decode", B=1, S=1, C=context))
    assert step["P"] == step["K"] == seen[-1]
    assert step["Pi"] == context // 4
    whole = block.environment(Workload("prefill", B=1, S=context, C=context))
    assert whole["P"] == pytest.approx(sum(seen), abs=2 * context + 1)


def test_an_encoder_with_windows_on_both_sides() -> None:
    config = case("openai_privacy_filter", 0)
    counts = counted(model_of(config), S, decode=False)
    rows = rows_of(read_config(config, "filter"), PREFILL)
    assert flops_of(rows) == counts[""] - summed(counts, "rotary_emb")


@pytest.mark.parametrize("window", [1, 8, 64, 100])
def test_windows_on_both_sides_by_counting(window: int) -> None:
    """Of S x S places; causal counts take the query's own place half on either side."""
    spec = read_config(case("openai_privacy_filter", 0) | {"sliding_window": window}, "filter")
    block = spec.first(Attention)
    assert block is not None
    pairs = block.environment(Workload("prefill", B=1, S=S, C=S))["P"]
    seen = sum(abs(i - j) < window for i in range(S) for j in range(S))
    assert abs(pairs - seen) <= S


def test_a_prompt_and_a_step_of_denoising() -> None:
    """The prompt has no logits; the canvas attends to all of the prompt and of itself."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    config = case("diffusion_gemma", 0)
    spec, model = read_config(config, "diffusion"), model_of(config)
    prompt, canvas = torch.randint(3, 100, (B, S)), torch.randint(3, 100, (B, 16))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        logits = torch.zeros(B, 16, 320)
        model(input_ids=prompt, decoder_input_ids=canvas, self_conditioning_logits=logits)
    step = Workload("decode", B=B, S=16, C=S + 16, mask="full")
    rows = [line for line in rows_of(spec, PREFILL) if line.op.name != "lm_head"]
    assert flops_of([*rows, *rows_of(spec, step)]) == counter.get_total_flops()
