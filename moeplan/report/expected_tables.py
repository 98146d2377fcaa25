"""The table of expected times: one pass a row, with its band and what it comes from."""

from __future__ import annotations

from typing import Any

from moeplan.estimation.estimate import Estimate
from moeplan.report.tables import Column, Table
from moeplan.units import fmt_money, fmt_rate, fmt_time

__all__ = ["dollars", "exchange_note", "expected_tables", "floor_notes"]

PASSES = ("prefill", "decode", "training")


def expected_tables(e: Estimate) -> list[Table]:
    """Lower, expected and upper time of each pass; nothing where no calibration knows the GPU."""
    found = {name: e[f"time.{name}.calibrated"] for name in PASSES}
    if found["prefill"] is None:
        return []
    columns = ("tokens", "lower", "expected", "upper", "band", "tokens/s", "$/M")
    table = Table(
        f"Expected time on one {e.gpu.name}, memory capacity aside",
        [Column("", "left"), *(Column(title) for title in columns)],
    )
    for name in PASSES:
        table.rows.append(_row(e, name, found[name]))
    table.notes = [_origin(e, found), *_outside(found), _reading(e)]
    return [table]


def exchange_note(time: dict[str, Any]) -> str:
    """The bounds of a layer's exchange, and what its times come from."""
    low, high = (
        sum(time[name][bound].value for name in ("dispatch", "combine"))
        for bound in ("lower", "upper")
    )
    return (
        f"time: nothing under compute, {time['origin']}; dispatch and combine "
        f"{fmt_time(low)} to {fmt_time(high)}"
    )


def floor_notes(e: Estimate, floor: str) -> list[str]:
    """What a floor is; without a calibration, also how far off it is where that was measured."""
    if e["time.prefill.calibrated"] is not None:
        return [floor]
    from moeplan.calibration.store import bias_sentence

    return [floor, bias_sentence()]


def dollars(amount: float) -> str:
    """Dollars in few digits."""
    return fmt_money(amount) if amount >= 0.995 else f"${amount:.2g}"


def _row(e: Estimate, name: str, found: dict[str, Any]) -> tuple[str, ...]:
    cost = e.tree["cost"]
    money = "no price"
    if cost:
        money = dollars(e[f"cost.{name}_dollars_per_million_tokens.expected"].value)
    return (
        name,
        f"{e[f'time.{name}.tokens'].value:,}",
        *(fmt_time(found[bound].value) for bound in ("lower", "expected", "upper")),
        f"±{found['band'].value:.0%}",
        fmt_rate(found["tokens_per_second"].value, "").removesuffix(" /s"),
        money,
    )


def _origin(e: Estimate, found: dict[str, Any]) -> str:
    """Which part of the times rests on measurements of this GPU."""
    shares = [found[name]["measured"].value for name in PASSES]
    if not any(shares):
        return (
            f"assumed: nothing was measured on this GPU; constants of the H200 by the ratio of "
            f"datasheet rates ({', '.join(found['prefill']['calibrations'])})"
        )
    parts = ", ".join(f"{name} {share:.0%}" for name, share in zip(PASSES, shares, strict=True))
    names = sorted({c for name in PASSES for c in found[name]["calibrations"]})
    return f"from ops measured on this GPU: {parts}; the rest assumed ({', '.join(names)})"


def _outside(found: dict[str, Any]) -> list[str]:
    words = sorted({word for name in PASSES for word in found[name]["outside"]})
    if not words:
        return []
    return [f"beyond the calibrated range, so the band is wider: {', '.join(words)}"]


def _reading(e: Estimate) -> str:
    return (
        "band: of errors on held-out points, as if all had one sign. Operations only: what a "
        "framework does between them comes on top (docs/accuracy.md)."
    )
