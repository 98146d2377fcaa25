"""Tables of a record: at most 80 columns wide, several where one is not enough."""

from __future__ import annotations

from collections.abc import Sequence

from moeplan.profile.record import Case, Check, OpPrediction, Phase, Record, Roof, quantile
from moeplan.report.tables import Column, Table
from moeplan.units import fmt_bytes, fmt_flops, fmt_rate, fmt_time

__all__ = ["case_tables", "percent", "record_tables"]

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
        tables += [_layers(cases), _speed(cases), _rows(cases)]
        for case in cases if detail else _largest(cases):
            tables += case_tables(case)
    left = [case for case in record.cases if case.state != "measured"]
    if left:
        tables.append(_left_out(left))
    return tables


def _device(record: Record) -> Table:
    device, versions, clocks = record.device, record.versions, record.device.clocks
    units = "thread" if device.kind == "cpu" else "multiprocessor"
    memory, cache = (
        fmt_bytes(size, binary=True) for size in (device.memory_bytes, device.cache_bytes)
    )
    lines = [
        f"{device.name}, {device.units} {units}{'s' if device.units != 1 else ''}, "
        f"{memory} memory, {cache} cache ({device.cache_source})",
        ", ".join(
            f"{name} {value}" for name, value in versions.model_dump().items() if value is not None
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
    why = f": {record.reason}" if record.reason else ""
    lines.append(f"started {record.started}, {state}{why}")
    settings = record.settings
    lines.append(
        f"{settings.samples} samples a case, seed {settings.seed}, {settings.dtype}, "
        f"backend {', '.join(settings.backends)}"
    )
    lines += [f"note: {note}" for note in record.notes]
    return Table(f"{record.name} on {device.name}", [], notes=lines)


def _roofs(record: Record) -> Table:
    columns = [WORD, Column("median"), Column("p10 to p90")]
    table = Table("Roofs, measured in the same run", columns)
    for roof in record.current_roofs():
        low, high = (_roof_value(roof, quantile(roof.samples, q)) for q in (0.9, 0.1))
        if roof.amount is None:
            low, high = high, low
        table.rows.append((roof.name, _roof(roof, roof.value), f"{low} to {high}"))
        if roof.note:
            table.notes.append(f"{roof.name}: {roof.note}")
    return table


def _roof(roof: Roof, value: float) -> str:
    if roof.unit == "s":
        return fmt_time(value)
    return fmt_rate(value, "FLOP" if roof.unit == "FLOP/s" else "B")


def _roof_value(roof: Roof, sample: float) -> str:
    return _roof(roof, sample if roof.amount is None else roof.amount / sample)


def _checks(record: Record) -> Table:
    table = Table(
        "Correctness against the fp32 reference, before timing: largest relative L2 error",
        [Column("backend", "left"), Column("checks"), Column("output"), Column("gradients"),
         Column("allowed"), Column("", "left")],
    )  # fmt: skip
    groups: dict[tuple[str, str], list[Check]] = {}
    for check in record.checks:
        groups.setdefault((check.subject, check.backend), []).append(check)
    for (subject, backend), checks in groups.items():
        allowed = [f"{checks[0].tolerance:.0e}", f"{checks[0].gradient_tolerance:.0e}"]
        gradients = [max(c.gradient_errors.values()) for c in checks if c.gradient_errors]
        wrong = [c.sizes for c in checks if not c.passed]
        table.rows.append(
            (
                backend if len(record.subjects) == 1 else f"{subject}, {backend}",
                str(len(checks)),
                f"{max(c.output_error for c in checks):.0e}",
                f"{max(gradients):.0e}" if gradients else "–",
                " / ".join(dict.fromkeys(allowed)),
                f"FAILED: {', '.join(wrong)}" if wrong else "passed",
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


def percent(value: float | None, signed: bool = False) -> str:
    """A share in percent; from tenfold on as a factor."""
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


def _varying(cases: Sequence[Case]) -> list[str]:
    """The fields that tell these cases apart, beside tokens and direction."""
    names = ("subject", "routing", "backend", "dtype")
    return [name for name in names if len({getattr(case, name) for case in cases}) > 1]


def _who(case: Case, varying: Sequence[str]) -> list[str]:
    """The first cells of a case's row."""
    return [*(getattr(case, name) for name in varying), f"{case.tokens:,}", _passes(case)]


def _who_columns(varying: Sequence[str]) -> list[Column]:
    return [*(Column(name, "left") for name in varying), Column("tokens"), Column("pass", "left")]


def _same(cases: Sequence[Case], varying: Sequence[str]) -> str:
    """What all cases have in common, for a title."""
    names = ("routing", "backend", "dtype")
    return ", ".join(getattr(cases[0], name) for name in names if name not in varying)


def _layers(cases: Sequence[Case]) -> Table:
    varying = _varying(cases)
    table = Table(
        f"Layer ({_same(cases, varying)}): predicted before the run, and measured",
        [*_who_columns(varying), Column("predicted"), Column("measured"),
         *([] if varying else [Column("p10"), Column("p90")]), Column("error"), Column("roof")],
    )  # fmt: skip
    for case in cases:
        prediction, found = case.prediction, case.measured
        assert prediction is not None
        assert found is not None
        time, samples = found.layer.median, found.layer.samples
        low, high = (fmt_time(quantile(samples, q)) for q in (0.1, 0.9))
        table.rows.append(
            (
                *_who(case, varying),
                fmt_time(prediction.expected),
                fmt_time(time),
                *([] if varying else [low, high]),
                percent(_error(prediction.expected, time), signed=True),
                percent(_share(prediction.floor, time)),
            )
        )
    clocks = sorted({case.measured.clock for case in cases if case.measured is not None})
    table.notes.append(f"measured: {' or '.join(_CLOCKS[c] for c in clocks)}, median. {_ROOF}")
    notes = (case.prediction.note for case in cases if case.prediction is not None)
    table.notes += [note for note in dict.fromkeys(notes) if note]
    table.notes += _flags(cases)
    return table


def _bound(ops: Sequence[OpPrediction]) -> str:
    """What takes longest in all rows together."""
    times = {name: sum(getattr(op, name) for op in ops) for name in ("compute", "memory", "launch")}
    return max(times, key=lambda name: times[name])


_CLOCKS = {
    "graph": "replay of a CUDA graph",
    "kernels": "sum of kernel times",
    "eager": "wall clock of a plain call",
}
_ROOF = "Roof: the least time that the measured roofs allow, over the measured time."


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
    varying = _varying(cases)
    table = Table(
        "Layer: work, and peak memory",
        [*_who_columns(varying), *([] if varying else [Column("FLOPs"), Column("bytes")]),
         Column("FLOP/s"), Column("bound", "left"), Column("memory"), Column("error")],
    )  # fmt: skip
    for case in cases:
        prediction, found = case.prediction, case.measured
        assert prediction is not None
        assert found is not None
        flops, moved = (sum(getattr(op, n) for op in prediction.ops) for n in ("flops", "bytes"))
        peak, amounts = found.peak_bytes, [_short(fmt_flops(flops)), fmt_bytes(moved)]
        table.rows.append(
            (
                *_who(case, varying),
                *([] if varying else amounts),
                _short(fmt_rate(flops / found.layer.median, "FLOP")),
                _bound(prediction.ops),
                "–" if peak is None else fmt_bytes(peak),
                "–" if peak is None else f"{prediction.peak_bytes / peak - 1:+.2%}",
            )
        )
    sources = sorted({c.measured.peak_source for c in cases if c.measured is not None})
    table.notes.append(f"memory: measured peak ({', '.join(sources)}); error: of the predicted one")
    table.notes += _other_clocks(cases)
    return table


def _short(text: str) -> str:
    """A quantity without the unit that stands in the heading."""
    return text.removesuffix("/s").removesuffix("FLOP").strip()


def _rows(cases: Sequence[Case]) -> Table:
    """The histogram of rows per expert in a few figures, once for each way of routing."""
    varying = [name for name in _varying(cases) if name in ("subject", "routing")]
    table = Table(
        "Rows per expert, as run",
        [*(Column(name, "left") for name in varying), Column("tokens"), Column("experts used"),
         Column("mean"), Column("median"), Column("p90"), Column("most")],
    )  # fmt: skip
    for case in {(c.subject, c.tokens, c.routing): c for c in cases}.values():
        rows = case.rows_per_expert
        table.rows.append(
            (
                *(getattr(case, name) for name in varying),
                f"{case.tokens:,}",
                f"{sum(1 for n in rows if n)} of {len(rows)}",
                f"{sum(rows) / len(rows):,.2f}",
                f"{quantile(rows, 0.5):,.0f}",
                f"{quantile(rows, 0.9):,.0f}",
                f"{max(rows):,}",
            )
        )
    return table


def _other_clocks(cases: Sequence[Case]) -> list[str]:
    """Launch cost where both times are there, and why a time is absent."""
    out: dict[str, None] = {}
    for case in cases:
        found = case.measured
        if found is None:
            continue
        if found.graph.samples:
            cost = fmt_time(found.eager.median - found.graph.median)
            out[f"launch cost (eager − graph) at {case.tokens:,} {_passes(case)}: {cost}"] = None
        for name in ("kernels", "graph"):
            if absent := getattr(found, name).absent:
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
        percent(_error(prediction.expected, layer), signed=True),
        percent(_share(prediction.floor, layer)),
        "",
    )
    flops, moved = (sum(getattr(op, what) for op, _ in joined) for what in ("flops", "bytes"))
    speeds = fmt_rate(flops / layer, "FLOP"), fmt_rate(moved / layer)
    work.total = ("layer", fmt_flops(flops), fmt_bytes(moved), *speeds)
    clock = case.measured.phase_clock
    times.notes.append(f"ops by {clock}; layer − ops: {fmt_time(between)}. {_ROOF}")
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
        percent(_error(op.expected, time), signed=True),
        percent(_share(op.floor, time)),
        op.bound,
    )


def _work(name: str, op: OpPrediction, phase: Phase) -> Sequence[str]:
    time = phase.median
    speeds = ("–", "–")
    if time > 0:
        speeds = (fmt_rate(op.flops / time, "FLOP"), fmt_rate(op.bytes / time))
    return (
        name,
        fmt_flops(op.flops) if op.flops else "0",
        fmt_bytes(op.bytes) if op.bytes else "0",
        speeds[0] if op.flops else "–",
        speeds[1] if op.bytes else "–",
    )


def _left_out(cases: Sequence[Case]) -> Table:
    varying = _varying(cases)
    table = Table("Not measured", [*_who_columns(varying), Column("why", "left")])
    for case in cases:
        why = "interrupted: the run ended here" if case.state == "running" else case.reason
        table.rows.append((*_who(case, varying), why or case.state))
    return table
