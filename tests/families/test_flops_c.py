"""FLOPs of whole small models against torch's counter over a run of transformers' classes.

torch counts every matmul and convolution that a forward pass makes, and multiplies whole
rectangles where a mask hides half of the pairs: `mask="full"`. Experts run in a loop over the
experts that got tokens, so their rows are counted exactly. Rotary tables are left out: transformers
makes them with a product of positions and frequencies.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moeplan.estimation.fold import Line, lines
from moeplan.families import read_config
from moeplan.model.ffn import MoE
from moeplan.model.latent_attention import LatentAttention
from moeplan.model.spec import ModelSpec
from moeplan.model.workload import Workload
from tests.families.cases_c import case
from tests.oracle import _build, oracle

pytestmark = pytest.mark.oracle

B, S, C = 2, 64, 41  # sequences, tokens of a prefill, context of a decoding step
EXACT = [
    ("deepseek_v32", 0),
    ("dots1", 1),
    ("ernie4_5_moe", -1),
    ("gemma4_text", -1),
    ("glm4_moe_lite", 0),
    ("glm_moe_dsa", 0),
    ("hunyuan_v1_moe", 0),
    ("mimo_v2_flash", 1),
    ("minimax", 0),
]


@pytest.fixture(autouse=True)
def _needs_transformers() -> None:
    oracle()


def model_of(config: dict[str, Any]) -> Any:
    import torch

    torch.manual_seed(0)
    model = _build(config).float().eval()
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._experts_implementation = "eager"
            module.config._attn_implementation = "eager"
    return model


def counted(model: Any, context: int, *, decode: bool) -> dict[str, int]:
    """Module to FLOPs of all below it, for a prefill or one decoding step; "" is the model."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.randint(0, 100, (B, context))
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        if decode:
            past = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
            ids, more = ids[:, -1:], {"past_key_values": past, "use_cache": True}
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids, **more)
    found = {
        name.partition(".")[2]: sum(by_kind.values())
        for name, by_kind in counter.get_flop_counts().items()
        if name != "Global"
    }
    found[""] = counter.get_total_flops()
    return found


def summed(counts: dict[str, int], *ends: str) -> int:
    return sum(n for name, n in counts.items() if name.endswith(ends))


def rows_of(spec: ModelSpec, work: Workload) -> list[Line]:
    """The rows of a pass in which latents are expanded in every phase, as transformers does."""
    groups = tuple(
        replace(
            group,
            blocks=tuple(
                replace(block, mode="expanded") if isinstance(block, LatentAttention) else block
                for block in group.blocks
            ),
        )
        for group in spec.groups
    )
    return lines(replace(spec, groups=groups), work)


def flops_of(rows: list[Line]) -> int:
    return sum(int(line.group.number * line.flops) for line in rows)


PREFILL = Workload("prefill", B=B, S=S, C=S, X=S, mask="full")
DECODE = Workload("decode", B=B, S=1, C=C, mask="full")


@pytest.mark.parametrize(("family", "i"), EXACT)
def test_prefill_and_decoding(family: str, i: int) -> None:
    config = case(family, i)
    spec, model = read_config(config, family), model_of(config)
    for work, context in ((PREFILL, S), (DECODE, C)):
        decode = work.phase == "decode"
        counts = counted(model, context, decode=decode)
        rotary = summed(counts, "rotary_emb")
        assert flops_of(rows_of(spec, work)) == counts[""] - rotary, work.phase


@pytest.mark.parametrize("i", [0, 1])
def test_compressed_attention(i: int) -> None:
    """transformers sums the indexer's heads element by element, V3.2's does it by a product."""
    config = case("deepseek_v4", i)
    spec, model = read_config(config, "v4"), model_of(config)
    for work, context in ((PREFILL, S), (DECODE, C)):
        counts = counted(model, context, decode=work.phase == "decode")
        rows = rows_of(spec, work)
        heads = sum(
            line.group.number * line.evaluate("2*B*Pi*Hi")
            for line in rows
            if line.op.name == "index_scores"
        )
        assert heads > 0
        assert flops_of(rows) - heads == counts[""] - summed(counts, "rotary_emb")


def test_encoder_decoder() -> None:
    """transformers' loop takes a 0/1 mask for expert numbers: it runs E experts a token, not 2."""
    config = case("nllb-moe", 1) | {"encoder_sparse_step": 3, "encoder_layers": 4}
    config |= {"num_hidden_layers": 4, "decoder_layers": 4, "num_experts": 5}
    counts = counted(model_of(config), S, decode=False)
    rows = rows_of(read_config(config, "nllb"), PREFILL)
    experts = flops_of([line for line in rows if line.op.kind == "grouped_linear"])
    assert flops_of(rows) + experts * 3 // 2 == counts[""]


def test_zero_computation_experts() -> None:
    """With r set to the experts that were in fact drawn, the count is exact."""
    import torch

    config = case("longcat_flash", 0)
    spec, model = read_config(config, "longcat"), model_of(config)
    drawn: list[Any] = []
    for name, module in model.named_modules():
        if name.endswith("mlp.router"):
            module.register_forward_hook(lambda _m, _i, out: drawn.append(out[2]))
    counts = counted(model, S, decode=False)
    real = (torch.stack(drawn) < config["n_routed_experts"]).sum().item()
    tokens = B * S * config["num_layers"]
    block = spec.first(MoE)
    assert block is not None
    assert block.values["r"] == pytest.approx(6 * 8 / 12)
    assert 0 < real < 6 * tokens
    exact = spec.vary(MoE, r=real / tokens)
    assert flops_of(rows_of(exact, PREFILL)) == pytest.approx(
        counts[""] - summed(counts, "rotary_emb"), abs=2
    )


def test_mamba_1() -> None:
    """Only C h is a product there (half of ours), and its convolution pads w - 1 more outputs."""
    config = case("jamba", 0)
    spec, model = read_config(config, "jamba"), model_of(config)
    counts = counted(model, S, decode=False)
    rows = rows_of(spec, PREFILL)
    scans = [line for line in rows if line.op.name == "selective_scan"]
    convs = [line for line in rows if line.op.name == "conv"]
    assert len(scans) == len(convs) > 0
    half = sum(line.group.number * line.flops // 2 for line in scans)
    padding = sum(line.group.number * line.evaluate("2*B*Di*w*(w - 1)") for line in convs)
    assert flops_of(rows) - half + padding == counts[""]


def own(counts: dict[str, int], module: str) -> int:
    """FLOPs of a module that are not of the modules in it."""
    inside = (n for name, n in counts.items() if name.rpartition(".")[0] == module)
    return counts[module] - sum(inside)


SCANS = [
    ("nemotron_h", 0, "in_proj"),
    ("nemotron_h", 1, "in_proj"),
    ("kimi_linear", -1, "forget_gate"),
    ("kimi_linear", 0, "forget_gate"),
]


@pytest.mark.parametrize(("family", "i", "child"), SCANS)
def test_all_but_the_scan(family: str, i: int, child: str) -> None:
    """transformers' fallbacks of these scans are element-wise: everything else is compared."""
    config = case(family, i)
    spec, model = read_config(config, family), model_of(config)
    for work, context in ((PREFILL, S), (DECODE, C)):
        counts = counted(model, context, decode=work.phase == "decode")
        mixers = [name for name in counts if f"{name}.{child}" in counts]
        scans = sum(own(counts, name) for name in mixers)
        rest = [line for line in rows_of(spec, work) if line.op.kind != "scan"]
        assert mixers
        assert flops_of(rest) == counts[""] - scans - summed(counts, "rotary_emb")


def test_short_convolution() -> None:
    """transformers pads w - 1 more outputs in a prefill, and computes one more in decoding."""
    config = case("lfm2_moe", 1)
    spec, model = read_config(config, "lfm2"), model_of(config)
    for work, context, extra in ((PREFILL, S, "w - 1"), (DECODE, C, "1")):
        counts = counted(model, context, decode=work.phase == "decode")
        rows = rows_of(spec, work)
        convs = [line for line in rows if line.op.name == "conv"]
        more = sum(line.group.number * line.evaluate(f"2*B*D*w*({extra})") for line in convs)
        assert more > 0
        assert flops_of(rows) + more == counts[""] - summed(counts, "rotary_emb")
