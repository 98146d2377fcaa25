"""The roofs come from real runs: amounts, samples and values belong together."""

from __future__ import annotations

from statistics import median

import pytest
import torch

from moeplan.profile.roofs import Sizes, measure_roofs, sizes_for

SMALL = Sizes(gemm=96, stream=1 << 20, matrices=2, samples=3, launches=20, side=64)
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_roofs_of_a_cpu(dtype: str) -> None:
    roofs = {roof.name: roof for roof in measure_roofs(CPU, dtype, sizes=SMALL)}
    by_rows = {f"rows {n}": 2 * n * 64 * 64 * max(16 // n, 1) for n in (1, 4, 16, 64, 256)}
    assert list(roofs) == ["gemm", "copy", "reduce", "launch", *by_rows, "fresh", "small"]
    units = ["FLOP/s", "B/s", "B/s", "s", *["FLOP/s"] * 5, "B/s", "s"]
    assert [roof.unit for roof in roofs.values()] == units
    # 2·96³ FLOPs; a copy reads and writes, a sum reads; new memory is half a stream
    amounts = [1769472, 2 << 20, 1 << 20, None, *by_rows.values(), 1 << 19, None]
    assert [roof.amount for roof in roofs.values()] == amounts
    for roof in roofs.values():
        assert len(roof.samples) == 3
        assert min(roof.samples) > 0
        amount = roof.amount
        wanted = median(roof.samples) if amount is None else amount / median(roof.samples)
        assert roof.value == pytest.approx(wanted)
    assert 1e-8 < roofs["launch"].value < 1e-3  # a call is neither free nor a millisecond


def test_quick_is_smaller_and_streams_exceed_caches() -> None:
    full, quick = sizes_for(CPU), sizes_for(CPU, quick=True)
    assert quick.gemm < full.gemm
    assert quick.samples < full.samples
    assert quick.stream >= 1 << 27
