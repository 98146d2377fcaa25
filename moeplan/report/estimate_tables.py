"""The tables of one estimate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moeplan.estimation.estimate import Estimate
from moeplan.quantity import Quantity
from moeplan.report.expected_tables import dollars, exchange_note, expected_tables, floor_notes
from moeplan.report.speculation import speculation_table
from moeplan.report.tables import Column, Table
from moeplan.units import fmt_bytes, fmt_count, fmt_flops, fmt_money, fmt_rate, fmt_time

__all__ = ["estimate_tables"]

LABELS = {
    "embedding": "embedding",
    "attention": "attention",
    "router": "router",
    "routed_experts": "routed experts",
    "shared_experts": "shared experts",
    "dense_ffn": "dense FFN",
    "norms": "norms",
    "head": "output head",
}
WORD = Column("", "left")
PASSES = ("prefill", "decode", "training")
FLOOR_NOTE = "A floor, not a prediction: the datasheet's peak and bandwidth, reached in full."


def estimate_tables(e: Estimate, *, detail: bool = False) -> list[Table]:
    """All tables of an estimate; `detail` adds layers, kept activations and the op rows' times."""
    tables = [_model(e), _parameters(e), _flops(e), _cache(e), _weights(e), _training(e)]
    if detail:
        tables += [_layers(e), *_activations(e)]
    if e.tree["all_to_all"] is not None:
        tables.append(_exchange(e))
    tables += [*expected_tables(e), _time(e)]
    if "draft" in e.scenario.given:
        tables.append(speculation_table(e))
    if detail:
        tables += [_ops(e, name) for name in PASSES]
    tables.append(_assumptions(e))
    return tables


def _model(e: Estimate) -> Table:
    m = e.to_model()
    lines = [
        f"{m['layers']} layers, hidden size {m['hidden_size']:,}, vocabulary {m['vocabulary']:,}"
    ]
    if m.get("experts"):
        shared = f", shared width {m['shared_width']:,}" if m.get("shared_width") else ""
        groups = f", {m['topk_group']} of {m['n_group']} groups" if m["n_group"] > 1 else ""
        lines.append(
            f"{m['moe_layers']} MoE layers: {m['experts']} experts, top-{m['top_k']}{groups}, "
            f"width {m['expert_width']:,}{shared}"
        )
    else:
        lines.append("dense: no MoE layer")
    lines.append(f"family {m['family']}, from {m['source']}")
    if m["not_counted"]:
        lines.append(f"NOT COUNTED: {'; '.join(m['not_counted'])}")
    if m["unread_keys"]:
        lines.append(f"keys not read: {', '.join(m['unread_keys'])}")
    p = e.tree["params"]
    total, active = (fmt_count(_value(n)) for n in (p["total"], p["active"]["all"]))
    size = f"{total} parameters" + (f", {active} active" if m.get("experts") else "")
    return Table(f"{m['title']}: {size}", [], notes=lines)


def _value(q: Any) -> Any:
    return q.value if isinstance(q, Quantity) else q


def _parameters(e: Estimate) -> Table:
    p = e.tree["params"]
    whole, active = _value(p["total"]), p["active"]
    table = Table(
        "Parameters",
        [WORD, Column("total"), Column("share"), Column("active per token")],
        values=[],
    )
    assert table.values is not None
    for name, part in p["by_component"].items():
        touched = _value(active["by_component"][name])
        table.rows.append(
            (
                LABELS[name],
                fmt_count(part.value, full=True),
                f"{part.value / whole:.1%}",
                fmt_count(touched, full=True),
            )
        )
        table.values.append((name, part.value, part.value / whole, touched))
    table.total = (
        "total",
        fmt_count(whole, full=True),
        "100.0%",
        fmt_count(_value(active["all"]), full=True),
    )
    table.values.append(("total", whole, 1, _value(active["all"])))
    definitions = {
        "all": "all touched",
        "without_input_embedding": "without input embedding",
        "without_embeddings": "without input embedding and output head",
    }
    for key, words in definitions.items():
        count = _value(active[key])
        span = ""
        if (ends := p["active_range"]) is not None:
            low, high = (fmt_count(_value(ends[end][key])) for end in ("fewest", "most"))
            span = f"; {low} to {high} by token"
        written, share = fmt_count(count, full=True), f"{count / whole:.1%} of the total"
        table.notes.append(f"active, {words}: {written} ({share}){span}")
        table.values.append((f"active {key}", "", "", count))
    if _value(p["buffers"]):
        table.notes.append(f"apart: {_value(p['buffers']):,} selection-bias values (buffers)")
    if _value(p["mtp"]):
        table.notes.append(
            f"apart: multi-token prediction {_value(p['mtp']):,}, "
            f"{_value(p['mtp_active']):,} active; {_value(p['mtp_active_with_shared']):,} with the "
            "embedding and head of the model"
        )
    return table


def _layers(e: Estimate) -> Table:
    table = Table(
        "Parameters of one layer", [WORD, Column("layers"), Column("total"), Column("active")]
    )
    for layer in e.tree["params"]["by_layer"]:
        table.rows.append(
            (
                layer["name"],
                f"{_value(layer['layers'])}",
                f"{layer['total'].value:,}",
                f"{layer['active'].value:,}",
            )
        )
        table.rows += [
            (f"  {LABELS[name]}", "", f"{part.value:,}", "")
            for name, part in layer["by_component"].items()
        ]
    return table


def _flops(e: Estimate) -> Table:
    f = e.tree["flops"]
    context, mask = _value(f["context"]), f["attention"]
    other = "full" if mask == "causal" else "causal"
    table = Table(
        f"FLOPs per token at {context:,} tokens of context, {mask} attention",
        [WORD, Column("forward"), Column("training"), Column("decode")],
        values=[],
    )
    assert table.values is not None
    decode = f["decode_by_component"]
    for name, part in f["by_component"].items():
        n, d = part.value, decode[name].value
        table.rows.append((LABELS[name], fmt_flops(n), fmt_flops(3 * n), fmt_flops(d)))
        table.values.append((name, n, 3 * n, d))
    sums = [_value(f[k]) for k in ("forward_per_token", "training_per_token", "decode_per_token")]
    table.total = ("total", *(fmt_flops(n) for n in sums))
    table.values.append(("total", *sums))
    table.notes.append(
        f"{other} attention: forward {fmt_flops(f[other]['forward_per_token'].value)}, "
        f"training {fmt_flops(f[other]['training_per_token'].value)}"
    )
    if "training_per_token_with_mtp" in f:
        with_mtp = fmt_flops(f["training_per_token_with_mtp"].value)
        table.notes.append(f"training with the multi-token-prediction module: {with_mtp}")
    prefill = fmt_flops(f["prefill_per_sequence"].value)
    table.notes.append(f"prefill of one sequence of {context:,} tokens: {prefill}")
    return table


def _cache(e: Estimate) -> Table:
    c = e.tree["kv_cache"]
    context, batch = _value(c["context"]), _value(c["batch"])
    table = Table(f"Cache of keys, values and states ({c['format']})", [WORD, Column("")])
    rows = [("a token adds", f"{c['bytes_per_token'].value:,} B")]
    beyond = c["bytes_per_token_beyond_windows"]
    if beyond.value != c["bytes_per_token"].value:
        rows.append(("a token adds once windows are full", f"{beyond.value:,} B"))
    if c["fixed_bytes"].value:
        rows.append(("fixed state of a sequence", fmt_bytes(c["fixed_bytes"].value)))
    rows.append((f"{batch:,} x {context:,} tokens", fmt_bytes(c["bytes"].value)))
    table.rows = list(rows)
    return table


def _weights(e: Estimate) -> Table:
    m = e.tree["memory"]
    held = m["serving"]
    table = Table(
        f"Weights ({m['weights_format']})", [WORD, Column("bytes"), Column("B/parameter")]
    )
    counts = e.tree["params"]["by_component"]
    for name, part in m["weights_by_component"].items():
        share = f"{part.value / counts[name].value:.3f}" if name in counts else ""
        table.rows.append((LABELS[name], fmt_bytes(part.value), share))
    whole = m["weights"].value
    table.total = ("total", fmt_bytes(whole), f"{whole / _value(e.tree['params']['total']):.3f}")
    capacity, least = held["gpu_memory"].value, held["gpus_at_least"].value
    table.notes.append(
        f"with the cache {fmt_bytes(held['total'].value)}: at least {least:,} x {e.gpu.name} "
        f"({fmt_bytes(capacity)} each, datasheet)"
    )
    if m["weights_mtp"].value:
        table.notes.append(f"apart: multi-token prediction {fmt_bytes(m['weights_mtp'].value)}")
    return table


def _training(e: Estimate) -> Table:
    t = e.tree["memory"]["training"]
    table = Table(
        f"Training state, undivided ({t['optimizer']}, {t['bytes_per_parameter']} B/parameter)",
        [WORD, Column("bytes")],
    )
    for name in ("weights", "gradients", "main_parameters", "moments"):
        table.rows.append((name.replace("_", " "), fmt_bytes(t[name].value)))
    table.total = ("total", fmt_bytes(t["total"].value))
    context, batch = _value(e.tree["flops"]["context"]), _value(t["microbatch"])
    table.notes.append(f"kept activations of one layer, {batch} x {context:,} tokens:")
    for layer in t["activations_per_layer"]:
        kept = ", ".join(
            f"{fmt_bytes(layer[key].value, binary=True)} {words}"
            for key, words in (
                ("none", "kept in full"),
                ("selective", "selective recomputation"),
                ("full", "full recomputation"),
            )
        )
        table.notes.append(f"  {layer['name']}: {kept}")
    return table


def _activations(e: Estimate) -> list[Table]:
    out = []
    for layer in e.tree["memory"]["training"]["activations_per_layer"]:
        table = Table(f"Kept activations of one layer: {layer['name']}", [WORD, Column("MiB")])
        for name, size in layer["by_row"].items():
            table.rows.append((name.replace("_", " "), f"{size.value / 2**20:,.1f}"))
        table.total = ("total", f"{layer['none'].value / 2**20:,.1f}")
        out.append(table)
    return out


def _exchange(e: Estimate) -> Table:
    a = e.tree["all_to_all"]
    tokens, ep, node = (_value(a[k]) for k in ("tokens", "ep", "node"))
    time = e["all_to_all.time"]
    heads = ("same node", "forwarded", "other nodes", "sent", *(("time",) if time else ()))
    table = Table(
        f"All-to-all of one MoE layer: {tokens:,} tokens a GPU, EP {ep} in nodes of {node}",
        [WORD, *(Column(head) for head in heads)],
    )
    keys = ("same_node", "forwarded", "other_nodes", "sent")

    def taken(part: str) -> tuple[str, ...]:
        return (fmt_time(time[part]["expected"].value),) if time else ()

    for name in ("dispatch", "combine"):
        part = a["per_layer"][name]
        label = f"{name} ({a[f'{name}_format']})"
        table.rows.append((label, *(fmt_bytes(part[key].value) for key in keys), *taken(name)))
    for step, words in (
        ("forward_step", "layers, forward"),
        ("training_step", "layers, training"),
    ):
        both = [a[step]["dispatch"][key].value + a[step]["combine"][key].value for key in keys]
        table.rows.append((words, *(fmt_bytes(n) for n in both), *taken(step)))
    table.notes = [
        f"bytes that a GPU sends, {a['policy']}: a token reaches {a['expected_gpus'].value:.2f} "
        f"GPUs and {a['expected_nodes'].value:.2f} nodes on average",
    ]
    if time:
        table.notes.append(exchange_note(time))
    if _value(a["imbalance"]) != 1:
        busiest = fmt_bytes(a["per_layer"]["dispatch"]["busiest"].value)
        table.notes.append(f"the fullest GPU receives up to {busiest} in a dispatch")
    return table


def _time(e: Estimate) -> Table:
    t, cost = e.tree["time"], e.tree["cost"]
    table = Table(
        f"Floor of the time on one {e.gpu.name}, memory capacity aside",
        [
            WORD,
            Column("tokens"),
            Column("lower"),
            Column("sequential"),
            Column("upper"),
            Column("tokens/s"),
            Column("$/M"),
        ],
    )
    for name in PASSES:
        part = t[name]
        amount = cost[f"{name}_dollars_per_million_tokens"]["sequential"].value if cost else None
        table.rows.append(
            (
                name,
                f"{part['tokens'].value:,}",
                *(fmt_time(part[k].value) for k in ("lower", "sequential", "upper")),
                fmt_rate(part["sequential_tokens_per_second"].value, "").removesuffix(" /s"),
                dollars(amount) if amount is not None else "no price",
            )
        )
    table.notes = [
        *floor_notes(e, FLOOR_NOTE),
        "lower: all overlaps; sequential: op after op; upper: nothing overlaps.",
    ]
    if cost:
        hourly = cost["dollars_per_gpu_hour"]
        table.notes.append(
            f"tokens/s and $ per million tokens are the sequential ones, at "
            f"{fmt_money(hourly.value, per='h')} ({cost['price_kind']}; {_origin(hourly)})"
        )
    return table


def _origin(q: Quantity) -> str:
    return q.source.where if q.source else ""


def _ops(e: Estimate, name: str) -> Table:
    table = Table(
        f"Times of one layer's rows, {name}",
        [
            WORD,
            Column("row", "left"),
            Column("FLOPs"),
            Column("bytes"),
            Column("floor"),
            Column("expected"),
            Column("bound", "left"),
        ],
    )
    found = e[f"time.{name}.calibrated"]
    expected = {(r["layer"], r["op"]): r["expected"].value for r in found["rows"]} if found else {}
    shown = ""
    for row in e[f"time.{name}.rows"]:
        label = row["layer"] if row["layer"] != shown else ""
        shown = row["layer"]
        table.rows.append(
            (
                label,
                row["op"],
                fmt_flops(row["flops"].value),
                fmt_bytes(row["bytes"].value),
                fmt_time(row["lower"].value),
                fmt_time(expected[row["layer"], row["op"]]) if expected else "",
                row["bound"],
            )
        )
    return table


def _assumptions(e: Estimate) -> Table:
    found = e.assumptions
    table = Table(f"Assumptions behind these figures ({len(found)})", [])
    for entry in found:
        name = f"{entry['symbol']}: " if entry["symbol"] else ""
        if entry["value"] is not None:
            name = f"{entry['symbol']} = {_short(entry)}: "
        table.notes.append(f"- {name}{entry['why']}")
    return table


def _short(entry: Mapping[str, Any]) -> str:
    value = entry["value"]
    text = f"{value:,}" if isinstance(value, (int, float)) else str(value)
    return f"{text} {entry['unit']}".rstrip()
