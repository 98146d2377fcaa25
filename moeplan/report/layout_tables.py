"""The tables of one layout, from the tree that `moeplan.report.layout_answer` makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moeplan.report.layout_parts import (
    WORD,
    Answer,
    capacity,
    gib,
    listed,
    ops_alone,
)
from moeplan.report.layout_serving import (
    exchange_limit,
    instance_table,
    latency_table,
    pool_table,
    throughput_table,
)
from moeplan.report.tables import Column, Table
from moeplan.units import fmt_bytes, fmt_count, fmt_flops, fmt_money, fmt_time

__all__ = ["STEP", "assumption_table", "layout_tables"]

MEMORY = ("weights", "gradients", "optimizer", "activations", "buffers", "framework",
          "fragmentation")  # fmt: skip
STEP = {
    "compute": "compute",
    "recompute": "recomputation",
    "tp": "tensor parallel",
    "ep": "all-to-all",
    "cp": "context parallel",
    "pp": "pipeline sends",
    "dp": "data parallel",
    "bubble": "bubble",
    "optimizer": "optimizer",
}
_EVEN = 0.04  # sides of a band that differ by less are one figure
GROUPS = {"dense": "dp", "edp": "edp"}


def layout_tables(a: Answer) -> list[Table]:
    """All tables of an answer, of training or of serving."""
    if a["kind"] == "serving":
        tables = [_head(a), _degrees(a), instance_table(a)]
        if a["fits"]:
            tables += [latency_table(a), *exchange_limit(a)]
        if "prefill" in a:  # rates of an instance that does both would mislead
            tables += [_head(a["prefill"], "prefill, "), *(f(a["prefill"]) for f in _OF_PREFILL)]
        elif a["fits"]:
            tables.append(throughput_table(a))
        return [*tables, *([pool_table(a)] if "pool" in a else []), assumption_table(a)]
    tables = [_head(a), _degrees(a), _memory(a)]
    if len(a["by_rank"]) > 1:
        tables.append(_ranks(a))
    return [*tables, _traffic(a), _step(a), _speed(a), assumption_table(a)]


def _head(a: Answer, part: str = "") -> Table:
    machine = a["cluster"]
    notes = [
        f"{machine['gpus']:,} GPU{'s' if machine['gpus'] > 1 else ''}, {machine['domain']} in a "
        "scale-up domain",
        f"layout {a['layout']['text'].replace(',', ', ') or 'of one GPU'}",
    ]
    if not a["fits"]:
        if a["kind"] == "training":
            over = f"the most loaded GPU is {gib(-a['memory_free'])} GiB over its memory"
            notes.append(f"DOES NOT FIT: {over}; times below leave that aside")
        else:
            notes.append("DOES NOT FIT: weights and one sequence exceed the memory of a GPU")
    if not (part and a["fits"]):  # a prefill layout decodes nothing that could bind
        notes.append(f"what binds: {a['binds']}")
    notes += a["notes"]
    title = f"{a['model']['name']}: {part}{a['kind']} on {machine['name']}"
    return Table(title, [], notes=notes)


# --------------------------------------------------------------------------------------- layout
def _degrees(a: Answer) -> Table:
    table = Table("Layout", [WORD, Column("degree"), Column("what it divides", "left")], values=[])
    assert table.values is not None
    words = _divides(a)
    for name, x in a["layout"].items():
        if name in words:
            table.rows.append((name, f"{x:,}", words[name]))
            table.values.append((name, x, words[name]))
    if a["kind"] == "training":
        lay = a["layout"]
        chosen = f"schedule {lay['schedule']}, recomputation {lay['recompute']}"
        if "selective" in lay:
            chosen += f" ({', '.join(lay['selective'])})"
        table.notes = [f"{chosen}, overlap {lay['overlap']}, ranks in the order {lay['order']}"]
    return table


def _divides(a: Answer) -> dict[str, str]:
    lay, model = a["layout"], a["model"]
    tp = "; ".join(
        f"{what} ({', '.join(f'{n:,}' for n in counts)})"
        for what, counts in model["divided_by_tp"].items()
    )
    if lay.get("sp") and lay["tp"] > 1:
        tp += "; tokens of the rest (sp)"
    stages = lay["pp"] * lay.get("vpp", 1)
    split = lay.get("split", "even")
    each = f" of {_spread(model['layers'], stages)}" if split == "even" else f", split {split}"
    each = f"in {stages} stages{each}" if stages > 1 else "in one stage"
    experts = model["experts"]
    out = {
        "tp": tp,
        "cp": "the tokens of a sequence",
        "pp": f"{model['layers']} layers, {each}",
        "vpp": "a rank's layers, in chunks",
        "dp": "the sequences of a step" if a["kind"] == "training" else "the sequences",
        "ep": f"{experts} experts, {(experts or 0) // lay['ep']} a GPU",
        "etp": "an expert's width",
        "edp": "copies of an expert: tp*cp*dp/(ep*etp)",
        "zero": _zero(int(lay.get("zero", 0))),
        "microbatch": "sequences of a microbatch, on one rank",
        "batch": "sequences of a step, on all GPUs",
        "m": "microbatches of a step, on one rank: batch/(microbatch*dp)",
    }
    if experts is None:
        out = {name: text for name, text in out.items() if name not in ("ep", "etp", "edp")}
    elif lay["etp"] > 1:
        out["etp"] = f"an expert's width, {model['expert_width']:,}"
    if isinstance(split, list):
        out["pp"] = f"{model['layers']} layers: {'+'.join(map(str, split))}"
    return out


def _zero(stage: int) -> str:
    shared = ("nothing", "optimizer state", "optimizer state and gradients",
              "optimizer state, gradients and weights")[stage]  # fmt: skip
    return f"{shared}, over the copies" if stage else "nothing: every copy holds all state"


def _spread(count: int, parts: int) -> str:
    least, more = divmod(count, parts)
    return f"{least}" if not more else f"{least} or {least + 1}"


# --------------------------------------------------------------------------------------- memory
def _memory(a: Answer) -> Table:
    whole = a["memory"]
    where = f" (pipeline rank {a['stage']})" if a["layout"]["pp"] > 1 else ""
    table = Table(
        f"Memory of the most loaded GPU{where}",
        [WORD, Column("GiB"), Column("share")],
        values=[],
    )
    assert table.values is not None
    for name in MEMORY:
        size = a[f"memory_{name}"]
        table.rows.append((name, gib(size), f"{size / whole:.1%}"))
        table.values.append((name, size / 2**30, size / whole))
    table.total = ("total", gib(whole), "100.0%")
    table.values.append(("total", whole / 2**30, 1))
    free = a["memory_free"]
    left = f"{gib(free)} GiB free" if free >= 0 else f"{gib(-free)} GiB too much"
    table.notes = [f"of {gib(a['cluster']['memory'])} GiB: {left}", capacity(a)]
    return table


def _ranks(a: Answer) -> Table:
    parts = ("weights", "gradients", "optimizer", "activations")
    titles = ("layers", "in flight", "weights", "grads", "optim.", "activ.", "other", "total")
    table = Table(
        "Memory by pipeline rank, GiB", [Column("rank"), *(Column(t) for t in titles)], values=[]
    )
    assert table.values is not None
    for row in a["by_rank"]:
        sizes = [row[f"memory_{part}"] for part in parts]
        sizes += [row["memory"] - sum(sizes), row["memory"]]
        counts = (row["layers"], row["layers_in_flight"])
        table.rows.append(
            (f"{row['rank']}", *(f"{n:g}" for n in counts), *(f"{x / 2**30:.1f}" for x in sizes))
        )
        table.values.append((row["rank"], *counts, *(x / 2**30 for x in sizes)))
    table.notes = [
        "in flight: layers times microbatches whose activations are alive at the peak",
        "The first stage holds the embedding, the last the head and MTP modules",
    ]
    if a["layout"]["schedule"] == "dualpipe":
        table.notes.append("each rank holds two stages, one of each direction")
    return table


# -------------------------------------------------------------------------------------- traffic
def _traffic(a: Answer) -> Table:
    table = Table(
        "Messages of a step, on the rank that takes longest",
        [
            WORD,
            Column("GPUs", fixed=True),
            Column("buffer", fixed=True),
            Column("times", fixed=True),
            Column("scale-up", fixed=True),
            Column("scale-out", fixed=True),
            Column("time", fixed=True),
        ],
        values=[],
    )
    assert table.values is not None
    for row in a["traffic"]:
        label = f"{GROUPS.get(row['group'], row['group'])} {row['op'].replace('_', '-')}"
        n, inside = row["n"], min(row["inside"], row["n"])
        sizes = (row["bytes"], row["up"], row["out"])
        buffer, up, out = (fmt_bytes(x) for x in sizes)
        spread = f"{n:g}" if inside >= n else f"{n / inside:g}x{inside:g}"
        table.rows.append(
            (label, spread, buffer, f"{row['times']:,g}", up, out, fmt_time(row["seconds"]))
        )
        table.values.append((label, n, row["bytes"], row["times"], *sizes[1:], row["seconds"]))
    up, out = fmt_bytes(a["sent_scale_up"]), fmt_bytes(a["sent_scale_out"])
    table.notes = [
        f"the busiest GPU sends {up} over scale-up and {out} over scale-out links in a step",
        "GPUs of the group, as domains x GPUs in a domain where it spans several; time before any "
        "overlap; "
        + (f"under compute: {', '.join(a['hidden'])}" if a["hidden"] else "nothing is overlapped"),
    ]
    if not table.rows:
        table.columns, table.notes = [], ["none: one GPU holds everything"]
    return table


# ----------------------------------------------------------------------------------------- time
def _step(a: Answer) -> Table:
    step = a["step"]
    table = Table("Time of a step", [WORD, Column("time"), Column("share")], values=[])
    assert table.values is not None
    for name, label in STEP.items():
        seconds = a[f"time_{name}"]
        table.rows.append((label, fmt_time(seconds), f"{seconds / step:.1%}"))
        table.values.append((label, seconds, seconds / step))
    table.total = ("step", fmt_time(step), "100.0%")
    fast, slow = a["band"]["step"]
    bounds = {
        "ops at the fast end of their band": fast,
        "ops at the slow end of their band": slow,
        "lower bound": a["step_lower"],
        "upper bound": a["step_upper"],
    }
    table.values.append(("step", step, 1.0))
    table.values += [(label, x, x / step) for label, x in bounds.items()]
    table.notes = [
        _ends(step, fast, slow),
        _bounds(a, banded=fast != slow),
        *_hidden(a),
        *ops_alone(a, "megatron-bridge"),
    ]
    if a["traffic"]:
        table.notes.insert(2, "of messages, what the overlap leaves to be waited for")
    return table


def _ends(expected: float, fast: float, slow: float) -> str:
    """What the band of the ops' calibration makes of a time."""
    if fast == slow:
        return "ops at a fixed part of the datasheet's peaks: no measured band"
    below, above = (expected - fast) / expected, (slow - expected) / expected
    even = abs(above - below) <= _EVEN
    wide = f"±{(below + above) / 2:.0%}" if even else f"-{below:.0%} / +{above:.0%}"
    return f"band of the ops: {wide}, from {fmt_time(fast)} to {fmt_time(slow)}"


def _bounds(a: Answer, *, banded: bool) -> str:
    """Both bounds of a step with all that they assume."""
    fast, slow = ["ops at the fast end of their bands"], ["ops at the slow end"]
    if not banded:
        fast, slow = [], []
    if a["traffic"]:
        fast.append(
            "messages of a layer and its compute at the same time; sends, data parallelism and "
            "the optimizer not counted"
        )
        slow.append("no message under compute")
    else:
        fast.append("the optimizer not counted")
    if a["layout"]["schedule"] in ("zero-bubble", "dualpipe"):
        slow.append("the bubble of 1f1b")
    low, high = fmt_time(a["step_lower"]), fmt_time(a["step_upper"])
    last = f" ({', '.join(slow)})" if slow else ""
    return f"bounds: from {low} ({', '.join(fast)}) to {high}{last}"


def _hidden(a: Answer) -> list[str]:
    """Messages that are assumed to cost nothing, and what they cost where they are hidden."""
    parts = []
    for name, seconds in a["hidden_seconds"].items():
        text = f"{STEP[name]} {fmt_time(seconds)}"
        if name == "dp" and a["hidden_dp_cover"]:
            text += f" ({seconds / a['hidden_dp_cover']:.0%} of the time that can hide them)"
        parts.append(text)
    out = [f"hidden under compute: {', '.join(parts)}"] if parts else []
    if "ep" in a["hidden"] and any(row["group"] == "ep" for row in a["traffic"]):
        out.append(
            "an exchange under compute takes 20 of 132 multiprocessors from it: compute is slower "
            "by that, in the bounds too"
        )
    return out


def _speed(a: Answer) -> Table:
    rows: dict[str, tuple[Any, Callable[[Any], str]]] = {
        "MFU, causal attention": (a["mfu"], "{:.1%}".format),
        "MFU, full attention": (a["mfu_full"], "{:.1%}".format),
        "model FLOPs of a step, causal": (a["step_flops"], fmt_flops),
        "tokens/s": (a["tokens_per_second"], fmt_count),
        "tokens/s/GPU": (a["tokens_per_second_per_gpu"], "{:,.0f}".format),
    }
    title = "Speed"
    if a["job"]["tokens"] is not None:
        title = f"Speed, and the bill of {fmt_count(a['job']['tokens'])} tokens"
        rows |= {
            "days": (a["seconds"] / 86400, "{:,.1f}".format),
            "GPU-hours": (a["gpu_hours"], fmt_count),
            "dollars": (a["dollars"], fmt_money),
            "energy": (a["energy"] and a["energy"] / 3.6e6, _energy),
        }
    table = listed(title, a, rows)
    table.notes = ["MFU is of the bf16 peak (fp16 where a GPU has no bf16)"]
    return table


def _energy(kwh: float) -> str:
    return f"{kwh / 1e6:,.3f} GWh" if kwh >= 1e5 else f"{kwh:,.1f} kWh"


_OF_PREFILL = (_degrees, instance_table)


# ---------------------------------------------------------------------------------- assumptions
def assumption_table(a: Answer) -> Table:
    """What an answer's figures assume, as notes."""
    table = Table(f"Assumptions behind these figures ({len(a['assumptions'])})", [])
    for entry in a["assumptions"]:
        name = ""
        if entry["symbol"]:
            shown = fmt_bytes(entry["value"]) if entry["unit"] == "B" else f"{entry['value']:g}"
            name = f"{entry['symbol']} = {shown}: "
        table.notes.append(f"- {name}{entry['why']}")
    return table
