"""Records for tests, made by hand: their figures are chosen, not measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from moeplan.presets import preset
from moeplan.profile.record import (
    Case,
    Clocks,
    Device,
    Direction,
    Measurement,
    OpPrediction,
    Phase,
    Prediction,
    Record,
    Roof,
    Settings,
    Timing,
    Versions,
)

CLOCKS = Clocks(source="made up")
CPU = Device(
    kind="cpu", name="Test CPU", memory_bytes=1 << 34, cache_bytes=1 << 20,
    cache_source="made up", units=1, clocks=CLOCKS,
)  # fmt: skip
VERSIONS = Versions(moeplan="0", python="3", torch="2")


def roofs(gemm: float = 1e12, bandwidth: float = 1e10, launch: float = 1e-6) -> list[Roof]:
    """The four roofs with values that are easy to divide by."""
    return [
        Roof(name="gemm", unit="FLOP/s", value=gemm, amount=gemm, samples=[1.0]),
        Roof(name="copy", unit="B/s", value=bandwidth / 2, amount=bandwidth, samples=[2.0]),
        Roof(name="reduce", unit="B/s", value=bandwidth, amount=bandwidth, samples=[1.0]),
        Roof(name="launch", unit="s", value=launch, samples=[launch]),
    ]


def host_roofs(fresh: float = 1e9, small: float = 0.0, **rates: float) -> list[Roof]:
    """Those of a CPU: r1=1e9 is the rate of matmuls of one row."""
    made = [
        Roof(name=f"rows {name[1:]}", unit="FLOP/s", value=rate, amount=rate, samples=[1.0])
        for name, rate in rates.items()
    ]
    made.append(Roof(name="fresh", unit="B/s", value=fresh, amount=fresh, samples=[1.0]))
    return [*made, Roof(name="small", unit="s", value=small, samples=[small])]


def settings(tokens: Sequence[int] = (4,), seed: int = 0, samples: int = 3) -> Settings:
    """Settings of a small run."""
    return Settings(
        tokens=list(tokens), routing="uniform", backends=["torch"], dtype="fp32",
        directions=["forward"], seed=seed, samples=samples, quick=True,
    )  # fmt: skip


def op(name: str, expected: float, flops: int = 100, moved: int = 10) -> OpPrediction:
    """A row whose floor is half of what is expected."""
    return OpPrediction(
        name=name, stage="forward", flops=flops, bytes=moved, compute=expected / 2,
        memory=expected / 4, launch=0.0, expected=expected,
    )  # fmt: skip


def case(
    ops: Sequence[tuple[str, float, float]],
    tokens: int = 4,
    layer: float | None = None,
    subject: str = "model",
    direction: Direction = "forward",
    peaks: tuple[int, int] = (100, 100),
) -> Case:
    """A measured case of (name, predicted, measured) ops; peaks: predicted and measured bytes."""
    prediction = Prediction(
        made="2026-01-01T00:00:00Z",
        method="by hand",
        ops=[op(name, expected) for name, expected, _ in ops],
        expected=sum(expected for _, expected, _ in ops),
        peak_bytes=peaks[0],
    )
    whole = sum(seconds for *_, seconds in ops) if layer is None else layer
    measured = Measurement(
        phase_clock="wall",
        phases=[Phase(name=name, stage="forward", samples=[t]) for name, _, t in ops],
        kernels=Timing(absent="made up"),
        graph=Timing(absent="made up"),
        eager=Timing(samples=[0.9 * whole, whole, 1.1 * whole]),
        peak_bytes=peaks[1],
        peak_source="made up",
        rotations=1,
        warmup=1,
        before=CLOCKS,
        after=CLOCKS,
    )
    return Case(
        subject=subject, tokens=tokens, routing="uniform", rows_per_expert=[tokens, 0],
        backend="torch", dtype="fp32", direction=direction, state="measured",
        prediction=prediction, measured=measured,
    )  # fmt: skip


def record(cases: Sequence[Case] = (), name: str = "model") -> Record:
    """A finished record."""
    return Record(
        name=name, started="2026-01-01T00:00:00Z", updated="2026-01-01T00:00:00Z",
        state="finished", device=CPU, versions=VERSIONS, settings=settings(), roofs=roofs(),
        cases=list(cases),
    )  # fmt: skip


def tiny_config(folder: Path) -> Path:
    """A config.json of OLMoE's kind, small enough to run in milliseconds."""
    sizes = {
        "hidden_size": 64, "intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
        "vocab_size": 128,
    }  # fmt: skip
    file = folder / "config.json"
    file.write_text(json.dumps({**preset("olmoe").config, **sizes}))
    return file
