"""FLOPs of the families that came last against torch's counter over a run of transformers' classes.

A prefill, its backward pass and a decoding step of a small model of each text family: windows with
sizes of their own, sinks, gates of attention's output, indexers, routed heads, gated norms. The
multimodal classes would really allocate their towers.
"""

from __future__ import annotations

from typing import Any

import pytest

from moeplan.families import read_config
from tests.families import cases_d, oracle_cases
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

EXACT = [
    ("afmoe", 0),
    ("aria_text", 0),
    ("axk1", 1),
    ("axk2", 0),
    ("beam", 0),
    ("cohere2_moe", 1),
    ("doge", 0),
    ("dots3_note_text", 0),
    ("exaone_moe", 0),
    ("flex_olmo", 0),
    ("flint", 0),
    ("granitemoe_swa", 0),
    ("granitemoeshared", 0),
    ("hy_v3", 1),
    ("hy_v4", 1),
    ("jetmoe", 1),
    ("kolibri1", 0),
    ("laguna", 1),
    ("mellum", 0),
    ("mistral4", 1),
    ("mistral_large4", 1),
    ("solar_open", 1),
]
# classes that allocate small towers beside the text model
MULTIMODAL = [
    ("minimax_m3_vl", 1),
    ("muse_spark", 1),
    ("qwen3_vl_moe", 1),
    ("step3p7", 1),
]
SCANS = [
    ("bailing_hybrid", 0, "forget_gate"),
    ("glm5_next", 1, "forget_gate"),
    ("granitemoehybrid", 0, "in_proj"),
    ("qwen3_5_moe_text", 0, "in_proj_z"),
]


@pytest.fixture(autouse=True)
def _needs_transformers() -> None:
    oracle()


def _trained(model: Any) -> int:
    """FLOPs of a forward and a backward pass."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.randint(0, 100, (B, S)), use_cache=False).logits.sum().backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(("family", "i"), EXACT)
def test_prefill_training_and_decoding(family: str, i: int) -> None:
    """No gradient passes a top-k: an indexer learns by a loss of its own, which is not built."""
    config = cases_d.case(family, i)
    spec, model = read_config(config, family), model_of(config)
    counts = counted(model, C, decode=True)
    assert flops_of(rows_of(spec, DECODE)) == counts[""] - summed(counts, "rotary_emb")
    counts, rows = counted(model, S, decode=False), rows_of(spec, PREFILL)
    rotary = summed(counts, "rotary_emb")
    assert flops_of(rows) == counts[""] - rotary
    indexer = [line for line in rows if line.op.name.startswith("index_")]
    assert _trained(model) - rotary == 3 * flops_of(rows) - 2 * flops_of(indexer)


@pytest.mark.parametrize(("family", "i", "child"), SCANS)
def test_all_but_the_scan(family: str, i: int, child: str) -> None:
    """transformers' fallbacks of these scans are another algorithm: all the rest is compared."""
    cases = cases_d.case if family in cases_d.BASES else oracle_cases.altered
    config = cases(family, i)
    spec, model = read_config(config, family), model_of(config)
    for work, context in ((PREFILL, S), (DECODE, C)):
        counts = counted(model, context, decode=work.phase == "decode")
        mixers = [name for name in counts if f"{name}.{child}" in counts]
        scans = sum(own(counts, name) for name in mixers)
        rest = [line for line in rows_of(spec, work) if line.op.kind != "scan"]
        assert mixers
        assert flops_of(rest) == counts[""] - scans - summed(counts, "rotary_emb")


@pytest.mark.slow
@pytest.mark.parametrize(("family", "i"), MULTIMODAL)
def test_text_of_multimodal_models(family: str, i: int) -> None:
    """As above; images and sounds are not in the inputs."""
    test_prefill_training_and_decoding(family, i)
