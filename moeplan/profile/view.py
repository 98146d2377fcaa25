"""Tables of records and of their errors: at most 80 columns wide, several where one is not enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moeplan.profile.record import Case, OpPrediction, Phase, Record, Roof, quantile
from moeplan.profile.validate import SHARE, Errors, Validation
from moeplan.report.tables import Column, Table
from moeplan.units import fmt_bytes, fmt_flops, fmt_rate, fmt_time

__all__ = ["case_tables", "error_tables", "record_tables", "summary"]

WORD = Column("", "left")


def record_tables(record: Record, *, detail: bool = False) -> list[Table]:
    """What a record says: device and roofs, layers, and the ops of its cases.

    The ops of the largest case of each direction are shown; `detail` shows those of every case.
    """
    tables = [_device(record), _roofs(record)]
    if record.checks:
        tables.append(_checks(record))
    cases = list(record.measured())
    if cases:
        tables += [_layers(record, cases), _speed(cases)]
        for case in cases if detail else _largest(cases):
            tables += case_tables(case)
    left = [case for case in record.cases if case.state != "measured"]
    if left:
        tables.append(_left_out(left))
    return tables


def _device(record: Record) -> Table:
    device, versions, clocks = record.device, record.versions, record.device.clocks
    units = "threads" if device.kind == "cpu" else "multiprocessors"
    lines = [
        f"{device.name}, {device.units} {units}, {fmt_bytes(device.memory_bytes, binary=True)} "
        f"memory, {fmt_bytes(device.cache_bytes, binary=True)} cache ({device.cache_source})",
        ", ".join(
            f"{name} {value}"
            for name, value in versions.model_dump().items()
            if value is not None
        ),
    ]
    known = {
        "clock": (clocks.clock_mhz, "MHz"),
        "memory clock": (clocks.memory_mhz, "MHz"),
        "power": (clocks.power_w, "W"),
        "power limit": (clocks.power_limit_w, "W"),
    }
    shown = [f"{name} {value:g} {unit}" for name, (value, unit) in known.items() if value]
    if clocks.load is not None:
        shown.append(f"load {clocks.load:g}")
    lines.append(f"{', '.join(shown) or 'clocks unknown'} (from {clocks.source})")
    state = record.state if record.state != "running" else "interrupted (no end was written)"
    lines.append(f"started {record.started}, {state}" + (f": {record.reason}" if record.reason else ""))
    settings = record.settings
    lines.append(
        f"{settings.samples} samples a case, seed {settings.seed}, {settings.dtype}, "
        f"backend {', '.join(settings.backends)}"
    )
    return Table(f"{record.name} on {device.name}", [], notes=lines + [f"note: {n}" for n in record.notes])


def _roofs(record: Record) -> Table:
    table = Table("Roofs, measured in the same run", [WORD, Column("median"), Column("p10 to p90"),
                                                      Column("", "left")])  # fmt: skip
    for roof in record.current_roofs():
        low, high = (_roof_value(roof, quantile(roof.samples, q)) for q in (0.9, 0.1))
        if roof.amount is None:
            low, high = high, low
        table.rows.append((roof.name, _roof(roof, roof.value), f"{low} to {high}", roof.note))
    return table


def _roof(roof: Roof, value: float) -> str:
    if roof.unit == "s":
        return fmt_time(value)
    return fmt_rate(value, "FLOP" if roof.unit == "FLOP/s" else "B")


def _roof_value(roof: Roof, sample: float) -> str:
    return _roof(roof, sample if roof.amount is None else roof.amount / sample)


def _checks(record: Record) -> Table:
    table = Table(
        "Correctness against the fp32 reference, before timing",
        [Column("subject", "left"), Column("backend", "left"), Column("sizes", "left"),
         Column("output"), Column("gradients"), Column("allowed")],
    )  # fmt: skip
    for check in record.checks:
        worst = max(check.gradient_errors.values(), default=None)
        table.rows.append(
            (
                check.subject,
                check.backend,
                f"{check.sizes}{'' if check.passed else ': FAILED'}",
                f"{check.output_error:.0e}",
                "–" if worst is None else f"{worst:.0e}",
                f"{check.tolerance:.0e}",
            )
        )
    return table


def _largest(cases: Sequence[Case]) -> list[Case]:
    """The case with most tokens of each direction."""
    best: dict[str, Case] = {}
    for case in cases:
        if case.direction not in best or case.tokens > best[case.direction].tokens:
            best[case.direction] = case
    return list(best.values())


def _percent(value: float | None, signed: bool = False) -> str:
    if value is None:
        return "–"
    if abs(value) >= 9.995:
        return f"{value + (0 if not signed else 1):,.0f}x"
    return f"{value:+.0%}" if signed else f"{value:.0%}"


def _error(predicted: float, measured: float) -> float | None:
    return predicted / measured - 1 if measured > 0 else None


def _share(floor: float, measured: float) -> float | None:
    return floor / measured if measured > 0 else None


def _passes(case: Case) -> str:
    return "fwd" if case.direction == "forward" else "fwd+bwd"


def _names_subjects(cases: Sequence[Case]) -> bool:
    return len({case.subject for case in cases}) > 1


def _layers(record: Record, cases: Sequence[Case]) -> Table:
    table = Table(
        "Layers: predicted before the run, measured, and the share of the roof that was reached",
        [Column("tokens"), Column("pass", "left"), Column("routing", "left"), Column("predicted"),
         Column("measured"), Column("p10 to p90"), Column("error"), Column("roof")],
    )  # fmt: skip
    many = _names_subjects(cases)
    for case in cases:
        prediction, found = case.prediction, case.measured
        assert prediction is not None
        assert found is not None
        time, samples = found.layer.median, found.layer.samples
        low, high = (fmt_time(quantile(samples, q)) for q in (0.1, 0.9))
        table.rows.append(
            (
                f"{case.tokens:,}",
                _passes(case),
                case.routing if not many else f"{case.subject}, {case.routing}",
                fmt_time(prediction.expected),
                fmt_time(time),
                _range(low, high),
                _percent(_error(prediction.expected, time), signed=True),
                _percent(_share(prediction.floor, time)),
            )
        )
    clocks = sorted({case.measured.clock for case in cases if case.measured is not None})
    table.notes.append(f"measured: {' or '.join(_CLOCKS[c] for c in clocks)}, median; {_ROOF}")
    table.notes += list(dict.fromkeys(c.prediction.note for c in cases if c.prediction and c.prediction.note))
    table.notes += _flags(cases)
    return table


def _range(low: str, high: str) -> str:
    """Two quantities with their unit once where it is the same."""
    first, unit = low.rsplit(" ", 1)
    return f"{first} to {high}" if high.endswith(f" {unit}") else f"{low} to {high}"


_CLOCKS = {
    "graph": "replay of a CUDA graph",
    "kernels": "sum of kernel times",
    "eager": "wall clock of a plain call",
}
_ROOF = "roof: floor at the measured roofs over measured"


def _flags(cases: Sequence[Case]) -> list[str]:
    """The flags of all cases, equal kinds together."""
    kinds: dict[str, list[Case]] = {}
    for case in cases:
        for flag in case.measured.flags if case.measured is not None else ():
            kinds.setdefault(flag.partition(":")[0], []).append(case)
    out = []
    for kind, flagged in kinds.items():
        where = ", ".join(f"{c.tokens:,} {_passes(c)}" for c in flagged[:8])
        more = f" and {len(flagged) - 8} more" if len(flagged) > 8 else ""
        out.append(f"flagged {kind}: {where}{more}")
    return out


def _speed(cases: Sequence[Case]) -> Table:
    table = Table(
        "Layers: work, other clocks and memory",
        [Column("tokens"), Column("pass", "left"), Column("FLOPs"), Column("FLOP/s"),
         Column("experts"), Column("most rows"), Column("peak predicted"), Column("measured")],
    )  # fmt: skip
    for case in cases:
        prediction, found = case.prediction, case.measured
        assert prediction is not None
        assert found is not None
        flops = sum(op.flops for op in prediction.ops)
        peak = "–" if found.peak_bytes is None else fmt_bytes(found.peak_bytes)
        table.rows.append(
            (
                f"{case.tokens:,}",
                _passes(case),
                fmt_flops(flops).removesuffix("FLOP").strip(),
                fmt_rate(flops / found.layer.median, "FLOP").removesuffix("FLOP/s").strip(),
                f"{sum(1 for rows in case.rows_per_expert if rows)} of {len(case.rows_per_expert)}",
                f"{max(case.rows_per_expert):,}",
                fmt_bytes(prediction.peak_bytes),
                peak,
            )
        )
    sources = sorted({c.measured.peak_source for c in cases if c.measured is not None})
    table.notes.append(f"experts: those that got a row; peak measured: {', '.join(sources)}")
    table.notes += _other_clocks(cases)
    return table


def _other_clocks(cases: Sequence[Case]) -> list[str]:
    """Launch cost where both times are there, and why a time is absent."""
    out: dict[str, None] = {}
    for case in cases:
        found = case.measured
        if found is None:
            continue
        if found.graph.samples:
            cost = found.eager.median - found.graph.median
            out[f"launch cost (eager − graph) at {case.tokens:,} {_passes(case)}: {fmt_time(cost)}"] = None
        for name in ("kernels", "graph"):
            if (absent := getattr(found, name).absent):
                out[f"no {name} time: {absent}"] = None
    return list(out)


def case_tables(case: Case) -> list[Table]:
    """Two tables of a case's ops: times, then work and memory."""
    assert case.prediction is not None
    assert case.measured is not None
    joined, layer = case.joined(), case.measured.layer.median
    times = Table(
        f"Ops of {case.label}",
        [Column("op", "left"), Column("predicted"), Column("measured"), Column("error"),
         Column("roof"), Column("bound", "left")],
    )  # fmt: skip
    work = Table(
        "",
        [Column("op", "left"), Column("FLOPs"), Column("bytes"), Column("FLOP/s"), Column("B/s")],
    )
    for op, phase in joined:
        times.rows.append(_times(_op_name(case, op), op, phase))
        work.rows.append(_work(_op_name(case, op), op, phase))
    between = layer - sum(phase.median for _, phase in joined)
    prediction = case.prediction
    times.total = (
        "layer",
        fmt_time(prediction.expected),
        fmt_time(layer),
        _percent(_error(prediction.expected, layer), signed=True),
        _percent(_share(prediction.floor, layer)),
        "",
    )
    flops, moved = (sum(getattr(op, what) for op, _ in joined) for what in ("flops", "bytes"))
    work.total = ("layer", fmt_flops(flops), fmt_bytes(moved), fmt_rate(flops / layer, "FLOP"), fmt_rate(moved / layer))  # fmt: skip
    times.notes.append(f"ops by {case.measured.phase_clock}; layer − ops: {fmt_time(between)}; {_ROOF}")
    work.title = "Work of the same ops"
    work.notes.append(
        f"peak memory: predicted {fmt_bytes(prediction.peak_bytes)}, measured "
        + ("–" if case.measured.peak_bytes is None else fmt_bytes(case.measured.peak_bytes))
        + f" ({case.measured.peak_source}); method: {prediction.method}"
    )
    return [times, work]


def _op_name(case: Case, op: OpPrediction) -> str:
    return op.name if case.direction == "forward" or op.stage == "forward" else f"{op.name} bwd"


def _times(name: str, op: OpPrediction, phase: Phase) -> Sequence[str]:
    time = phase.median
    return (
        name,
        fmt_time(op.expected),
        fmt_time(time),
        _percent(_error(op.expected, time), signed=True),
        _percent(_share(op.floor, time)),
        op.bound,
    )


def _work(name: str, op: OpPrediction, phase: Phase) -> Sequence[str]:
    time = phase.median
    speeds = ("–", "–") if time <= 0 else (fmt_rate(op.flops / time, "FLOP"), fmt_rate(op.bytes / time))
    return (
        name,
        fmt_flops(op.flops) if op.flops else "0",
        fmt_bytes(op.bytes) if op.bytes else "0",
        speeds[0] if op.flops else "–",
        speeds[1] if op.bytes else "–",
    )


def _left_out(cases: Sequence[Case]) -> Table:
    table = Table("Not measured", [Column("case", "left"), Column("state", "left"), Column("why", "left")])
    for case in cases:
        state = "interrupted" if case.state == "running" else case.state
        table.rows.append((case.label, state, case.reason or "the run ended here"))
    return table


# --------------------------------------------------------------------------------- errors
def error_tables(found: Validation) -> list[Table]:
    """Errors per op and per layer, and the verdict."""
    columns = [Column("", "left"), Column("points"), Column("mean"), Column("median"),
               Column("p90"), Column("bias")]  # fmt: skip
    ops = Table("Ops: error of the prediction (predicted/measured − 1)", columns)
    for (name, stage), errors in found.ops.items():
        label = name if stage == "forward" else f"{name} bwd"
        ops.rows.append((label, *_cells(errors)))
    ops.total = ("all ops", *_cells(found.all_ops))
    if found.left_out:
        ops.notes.append(
            f"{found.left_out} points below {SHARE:.0%} of their layer count in the layer alone"
        )
    layers = Table("Layers", columns)
    for subject, errors in found.layers.items():
        layers.rows.append((subject, *_cells(errors)))
    layers.total = ("all layers", *_cells(found.whole))
    if found.peak is not None:
        layers.notes.append(
            f"peak memory: mean error {found.peak.mean:.2%}, bias {found.peak.bias:+.2%} "
            f"over {found.peak.count} cases"
        )
    layers.notes.append(f"spread of samples within a case, p10 to p90: {found.spread:.0%} (median)")
    if found.between is not None:
        layers.notes.append(f"spread of medians between runs: {found.between:.0%} (median)")
    devices = ", ".join(dict.fromkeys(record.device.name for record in found.records))
    methods = dict.fromkeys(c.prediction.method for r in found.records for c in r.measured() if c.prediction)
    verdict = Table(
        "Verdict",
        [],
        notes=[
            f"{len(found.records)} record{'s' if len(found.records) != 1 else ''} on {devices}; "
            f"predictions: {', '.join(methods)}",
            *(f"PAST THE BAND: {breach}" for breach in found.breaches),
        ],
    )
    if not found.breaches:
        verdict.notes.append("all figures keep the band")
    return [ops, layers, verdict]


def _cells(errors: Errors) -> tuple[str, ...]:
    return (
        str(errors.count),
        _percent(errors.mean),
        _percent(errors.median),
        _percent(errors.p90),
        _percent(errors.bias, signed=True),
    )


def summary(record: Record) -> dict[str, Any]:
    """A record in short, for --json: its cases with medians and errors."""
    cases = []
    for case in record.cases:
        row: dict[str, Any] = {
            "subject": case.subject, "tokens": case.tokens, "routing": case.routing,
            "backend": case.backend, "dtype": case.dtype, "direction": case.direction,
            "state": case.state, "reason": case.reason,
        }  # fmt: skip
        if case.state == "measured":
            assert case.prediction is not None
            assert case.measured is not None
            time = case.measured.layer.median
            row |= {
                "predicted_s": case.prediction.expected,
                "floor_s": case.prediction.floor,
                "measured_s": time,
                "error": _error(case.prediction.expected, time),
                "clock": case.measured.clock,
                "peak_predicted_bytes": case.prediction.peak_bytes,
                "peak_measured_bytes": case.measured.peak_bytes,
                "flags": case.measured.flags,
            }
        cases.append(row)
    return {"name": record.name, "device": record.device.name, "state": record.state, "cases": cases}
