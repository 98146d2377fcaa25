"""FLOPs of the families that came last against torch's counter over a run of transformers' classes.

One family for each kind of row: gates of attention's output, sinks, windows with sizes of their
own, indexers, routed heads, gated norms, residual streams.
"""

from __future__ import annotations

import pytest

from moeplan.families import read_config
from tests.families.cases_d import case
from tests.families.test_flops_c import DECODE, PREFILL, C, S, _counted, _flops, _model, _rows, _sum
from tests.oracle import oracle

pytestmark = pytest.mark.oracle

# of text models only: a multimodal class would really allocate its towers
EXACT = [
    ("axk2", -1),
    ("beam", -1),
    ("dots3_note_text", -1),
    ("hy_v4", -1),
    ("jetmoe", -1),
    ("laguna", -1),
]


@pytest.fixture(autouse=True)
def _needs_transformers() -> None:
    oracle()


@pytest.mark.parametrize(("family", "i"), EXACT)
def test_prefill_and_decoding(family: str, i: int) -> None:
    config = case(family, i)
    spec, model = read_config(config, family), _model(config)
    for work, context in ((PREFILL, S), (DECODE, C)):
        counts = _counted(model, context, decode=work.phase == "decode")
        rotary = _sum(counts, "rotary_emb")
        assert _flops(_rows(spec, work)) == counts[""] - rotary, work.phase
