"""Records of measured layers become points, and a calibration answers for a layer's rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moeplan.calibration import for_profile
from moeplan.calibration.records import (
    ProfileTimes,
    calibrate_records,
    layer_times,
    points_of_records,
)
from moeplan.calibration.store import calibration
from moeplan.errors import UserError
from moeplan.model.ffn import MoE
from moeplan.model.workload import Workload
from moeplan.profile.predict import Shape, predict, subject_of
from moeplan.profile.record import (
    Case,
    Clocks,
    Device,
    Measurement,
    Phase,
    Record,
    Roof,
    Settings,
    Timing,
    Versions,
)
from moeplan.profile.store import load_record, save_record

ROOFS = [
    Roof(name="gemm", unit="FLOP/s", value=6e14, samples=[6e14]),
    Roof(name="copy", unit="B/s", value=4e12, samples=[4e12]),
    Roof(name="reduce", unit="B/s", value=4e12, samples=[4e12]),
    Roof(name="launch", unit="s", value=3e-6, samples=[3e-6]),
]
CLOCKS = Clocks(source="nobody")


def case(name: str, block: MoE, tokens: int, slower: float) -> Case:
    rows = np.random.default_rng(tokens).multinomial(
        tokens * block.k, [1 / block.E] * block.E
    ).tolist()  # fmt: skip
    shape = Shape(block, tokens, rows, "bf16", "forward")
    predicted = predict(shape, ROOFS, peak_bytes=0)
    phases = [
        Phase(name=o.name, stage=o.stage, samples=[slower * o.expected]) for o in predicted.ops
    ]
    absent = Timing(absent="not taken")
    return Case(
        subject=name, tokens=tokens, routing="uniform", rows_per_expert=rows, backend="torch",
        dtype="bf16", direction="forward", state="measured", prediction=predicted,
        measured=Measurement(
            phase_clock="kernels", phases=phases, kernels=absent, graph=absent,
            eager=Timing(samples=[1.0]), peak_bytes=None, peak_source="", rotations=1, warmup=0,
            before=CLOCKS, after=CLOCKS,
        ),
    )  # fmt: skip


def record(device: str = "NVIDIA H200") -> Record:
    blocks = {
        "small": MoE(D=2048, E=64, k=8, F=1024, Fs=1024),
        "large": MoE(D=4096, E=8, k=2, F=14336, Fs=2048),
        "wide": MoE(D=7168, E=32, k=4, F=2048, Fs=2048),
    }
    return Record(
        name="made up", started="2026-01-01T00:00:00Z", updated="2026-01-02T00:00:00Z",
        device=Device(
            kind="cuda", name=device, memory_bytes=1, cache_bytes=1, cache_source="", units=132,
            clocks=CLOCKS,
        ),
        versions=Versions(moeplan="0", python="3", torch="2"),
        settings=Settings(
            tokens=[1], routing="uniform", backends=["torch"], dtype="bf16",
            directions=["forward"], seed=0, samples=1,
        ),
        roofs=ROOFS,
        subjects={name: subject_of(block, name) for name, block in blocks.items()},
        cases=[
            case(name, block, tokens, 1.5)
            for name, block in blocks.items()
            for tokens in (1, 16, 64, 512, 4096, 16384)
        ],
    )  # fmt: skip


def test_rows_become_points_of_their_kinds():
    points = {p.kind: p for p in points_of_records([record()], "torch")}
    assert set(points) == {"gemm", "grouped", "bytes"}
    grouped = points["grouped"]
    assert len(grouped) == 3 * 6 * 2
    assert set(zip(grouped["n"].tolist(), grouped["k"].tolist(), strict=True)) >= {
        (2 * 14336, 4096), (4096, 14336),
    }  # fmt: skip
    assert (grouped.loads.rows == grouped["rows"]).all()
    assert (points["gemm"].seconds > 0).all()


def test_the_shipped_calibration_of_a_cpu_holds_for_a_model_that_it_did_not_see(root):
    times = for_profile("AMD EPYC", "torch", "fp32")
    assert times is not None
    folder = root / "profiles" / "cpu-amd-epyc"
    rows = layer_times(load_record(folder / "granite-3.1-1b-a400m_2026-11-22.json"), times)
    assert len(rows) == 8
    errors = [abs(row.expected / row.measured - 1) for row in rows]
    roofs = [abs(row.roofs / row.measured - 1) for row in rows]
    assert sum(errors) / 8 < 0.1
    assert sum(roofs) > 4 * sum(errors)
    assert for_profile("AMD EPYC", "torch", "bf16") is None


def test_records_are_calibrated_and_answer_for_a_layer(tmp_path: Path):
    save_record(record(), tmp_path / "r.json")
    found = calibrate_records([tmp_path / "r.json"])
    assert (found.device.id, found.backend) == ("h200-sxm", "torch")
    assert found.date >= "2026-01-02"
    assert found.versions["torch"] == "2"
    *_, every = found.fits["grouped"].errors
    assert every.mean < 0.35
    times = ProfileTimes(found)
    block = MoE(D=2048, E=64, k=8, F=1024)
    work = Workload("train", B=1, S=2048, C=2048)
    env = {**block.environment(work), "A": 64}
    rows = [256] * 64
    shape = Shape(block, 2048, rows, "bf16", "forward+backward")
    made = {(o.name, o.stage): o for o in predict(shape, ROOFS, 0).ops}
    for op in block.rows(work):
        if op.kind == "exchange":
            continue
        forward, backward = (
            times.seconds(op, made[op.name, stage], rows, env) for stage in ("forward", "backward")
        )
        assert forward > 0
        assert backward == 2 * forward if op.gemm else backward > 0
    assert times.seconds(block.rows(work)[0], made["router", "forward"], rows) is None


def test_a_device_that_is_no_gpu_of_the_data_takes_its_roofs(tmp_path: Path):
    save_record(record("Some CPU"), tmp_path / "c.json")
    found = calibrate_records([tmp_path / "c.json"])
    assert (found.device.id, found.device.matrix, found.device.memory) == ("Some CPU", 6e14, 4e12)


def test_records_of_two_devices_or_without_cases_are_refused(tmp_path: Path):
    save_record(record(), tmp_path / "a.json")
    save_record(record("Some CPU"), tmp_path / "b.json")
    with pytest.raises(UserError, match="2 devices"):
        calibrate_records([tmp_path / "a.json", tmp_path / "b.json"])
    with pytest.raises(UserError, match="backend 'triton'"):
        points_of_records([record()], "triton")


def test_a_shipped_calibration_is_found_by_the_drivers_name():
    assert for_profile("NVIDIA H200", "cublas", "bf16").name == "h200-cublas"
    assert for_profile("NVIDIA H200", "cublas", "fp16") is None
    assert for_profile("Some CPU", "torch", "bf16") is None
    assert calibration("h200-cublas").device.id == "h200-sxm"
