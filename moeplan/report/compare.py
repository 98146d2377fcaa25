"""Models side by side, and each MoE beside the dense models of equal active and total size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np

from moeplan.errors import UserError
from moeplan.estimate.estimate import Estimate
from moeplan.estimate.scenario import DEFAULTS
from moeplan.estimate.timing import floor
from moeplan.model.dense_equivalent import Match, dense_equivalent
from moeplan.model.ffn import DenseFFN
from moeplan.model.workload import Workload
from moeplan.quantity import Number, plain
from moeplan.report.tables import Column, Table
from moeplan.units import fmt_bytes, fmt_count, fmt_flops, fmt_money, fmt_time

__all__ = [
    "Beside",
    "beside_dense",
    "compare_tables",
    "decode_batches",
    "exchange_per_token",
    "labels",
    "ratio",
    "single",
]

SERVING_BATCH = 64  # where the user names no batch, dense and MoE decoding are also shown at this


# ------------------------------------------------------------------------------ what is compared
def labels(estimates: Sequence[Estimate]) -> list[str]:
    """One name a model; equal names are numbered."""
    names = [e.spec.name for e in estimates]
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(f"{name} #{seen[name]}" if names.count(name) > 1 else name)
    return out


def single(estimates: Sequence[Estimate]) -> Sequence[Estimate]:
    """The same estimates, or UserError where there is none or one is a sweep over arrays."""
    if not estimates:
        raise UserError("nothing to compare: at least one model is needed")
    for e in estimates:
        for name, value in e.scenario.given.items():
            if isinstance(plain(value), np.ndarray):
                raise UserError(f"--{name} holds several values: a comparison needs one of each")
        if isinstance(e.tree["params"]["total"].value, np.ndarray):
            raise UserError(f"{e.spec.name} has a size that is an array: one number is needed")
    return estimates


def exchange_per_token(e: Estimate) -> tuple[Number, Number] | None:
    """Bytes a token sends in a forward pass of all MoE layers: in its node, to other nodes.

    Dispatch and combine together; what is forwarded inside the node for other nodes is in-node
    traffic. None for a dense model. Arrays where the scenario's ep is one.
    """
    section = e.tree["all_to_all"]
    if section is None:
        return None
    ways = section["forward_step"].values()
    tokens = section["tokens"].value
    inside = sum(way["same_node"].value + way["forwarded"].value for way in ways)
    return inside / tokens, sum(way["other_nodes"].value for way in ways) / tokens


def ratio(value: Number, reference: Number) -> str:
    """How many times the reference, to three digits: `14.4x`, `0.276x`, `1,234x`; else empty."""
    if not reference or value is None:
        return ""
    times = value / reference
    if times >= 1000:
        return f"{times:,.0f}x" if times < 999_999.5 else f"{times:.1e}x"
    if 0 < times < 0.001:
        return f"{times:.0e}x"
    digits = 0 if times >= 99.95 else 1 if times >= 9.995 else 2 if times >= 0.9995 else 3
    return f"{times:.{digits}f}x"


# ------------------------------------------------------------------------------------- the rows
class Row(NamedTuple):
    """A line of the comparison: what it is called, its number and how the number is written.

    compared: whether the ratio to the first model says something.
    """

    label: str
    pick: Callable[[Estimate], Any]
    write: Callable[[Any], str]
    compared: bool = True


def _at(path: str) -> Callable[[Estimate], Any]:
    def pick(e: Estimate) -> Any:
        here: Any = e.tree
        for part in path.split("."):
            if here is None or part not in here:
                return None
            here = here[part]
        return plain(here) if here is not None else None

    return pick


def _share(e: Estimate) -> float:
    p = e.tree["params"]
    return float(p["active"]["all"].value / p["total"].value)


def _way(index: int) -> Callable[[Estimate], Any]:
    def pick(e: Estimate) -> Any:
        ways = exchange_per_token(e)
        return None if ways is None else ways[index]

    return pick


def _whole(value: Any) -> str:
    return f"{value:,}"


def _dollars(value: Any) -> str:
    return fmt_money(value)


ROWS: tuple[Row, ...] = (
    Row("parameters", _at("params.total"), fmt_count),
    Row("active: all touched", _at("params.active.all"), fmt_count),
    Row("active: no input table", _at("params.active.without_input_embedding"), fmt_count),
    Row("active: no embeddings", _at("params.active.without_embeddings"), fmt_count),
    Row("active share (all)", _share, lambda x: f"{x:.1%}", compared=False),
    Row("layers", _at("model.layers"), _whole, compared=False),
    Row("MoE layers", _at("model.moe_layers"), _whole, compared=False),
    Row("experts", _at("model.experts"), _whole, compared=False),
    Row("top-k", _at("model.top_k"), _whole, compared=False),
    Row("expert width", _at("model.expert_width"), _whole, compared=False),
    Row("shared expert width", _at("model.shared_width"), _whole, compared=False),
    Row("forward a token", _at("flops.forward_per_token"), fmt_flops),
    Row("training a token", _at("flops.training_per_token"), fmt_flops),
    Row("decoding a token", _at("flops.decode_per_token"), fmt_flops),
    Row("KV cache a token", _at("kv_cache.bytes_per_token"), fmt_bytes),
    Row("KV cache in all", _at("kv_cache.bytes"), fmt_bytes),
    Row("weights", _at("memory.weights"), fmt_bytes),
    Row("weight format", _at("memory.weights_format"), str, compared=False),
    Row("weights + cache need", _at("memory.serving.gpus_at_least"), lambda x: f"{x:,} GPUs"),
    Row("training state", _at("memory.training.total"), fmt_bytes),
    Row("expert parallelism", _at("all_to_all.ep"), lambda x: f"{x:,} GPUs", compared=False),
    Row("sent in node a token", _way(0), fmt_bytes),
    Row("sent beyond a token", _way(1), fmt_bytes),
    Row("prefill floor", _at("time.prefill.lower"), fmt_time),
    Row("decode step floor", _at("time.decode.lower"), fmt_time),
    Row("prefill $/M tokens", _at("cost.prefill_dollars_per_million_tokens.lower"), _dollars),
    Row("decode $/M tokens", _at("cost.decode_dollars_per_million_tokens.lower"), _dollars),
)

NONE = "–"


def compare_tables(estimates: Sequence[Estimate], width: int | None = None) -> list[Table]:
    """Tables of models side by side, then MoE models beside their dense equivalents.

    One column a model, each number with its ratio to the first model. `width` is that of the
    console in characters: with more models than fit, the table is split and each part starts with
    the first model again (at 80 columns it holds 3 models, at 120 five). Without `width` all
    models stand in one table. Raises UserError for no model, and for sweeps.
    """
    single(estimates)
    names = labels(estimates)
    cells = [_cells(row, estimates) for row in ROWS]
    chunks = _chunks(len(estimates), cells, width)
    tables = []
    for number, chunk in enumerate(chunks, start=1):
        part = f", part {number} of {len(chunks)}" if len(chunks) > 1 else ""
        title = f"Models side by side{part}" + (
            f" (x: times {names[0]})" if len(estimates) > 1 else ""
        )
        tables.append(_side_by_side(title, chunk, names, cells, estimates, width))
    tables[-1].notes += _notes(estimates, names)
    beside = _beside_table(estimates, names)
    return [*tables, beside] if beside is not None else tables


def _cells(row: Row, estimates: Sequence[Estimate]) -> list[str]:
    """A row's cells: the number, and for all but the first model its ratio."""
    values = [row.pick(e) for e in estimates]
    texts = [NONE if value is None else row.write(value) for value in values]
    if not row.compared or len(values) == 1:
        return texts
    times = ["" if v is None else ratio(v, values[0]) for v in values[1:]]
    return [texts[0], *(f"{text} {t}".rstrip() for text, t in zip(texts[1:], times, strict=True))]


def _chunks(models: int, cells: list[list[str]], width: int | None) -> list[list[int]]:
    """Which models share a table: as many as the width holds, the first model in each."""
    if width is None or models == 1:
        return [list(range(models))]
    label = max(len(row.label) for row in ROWS)
    widest = max(len(cell) for row in cells for cell in row)
    most = max(2, (width - label) // (widest + COLUMN_GAP))
    others = list(range(1, models))
    return [[0, *others[i : i + most - 1]] for i in range(0, models - 1, most - 1)]


COLUMN_GAP = 3  # what the drawn table puts between two columns


def _side_by_side(
    title: str,
    chunk: list[int],
    names: list[str],
    cells: list[list[str]],
    estimates: Sequence[Estimate],
    width: int | None,
) -> Table:
    heads = names
    if width is not None:
        label = max(len(row.label) for row in ROWS)
        room = (width - label) // len(chunk) - COLUMN_GAP
        heads = [_folded(name, room) for name in names]
    table = Table(title, [Column("", "left"), *(Column(heads[i]) for i in chunk)], values=[])
    assert table.values is not None
    for row, texts in zip(ROWS, cells, strict=True):
        if all(texts[i] == NONE for i in range(len(names))):
            continue
        table.rows.append((row.label, *(texts[i] for i in chunk)))
        picked = [row.pick(estimates[i]) for i in chunk]
        table.values.append((row.label, *("" if v is None else v for v in picked)))
    return table


def _folded(name: str, room: int) -> str:
    """A name broken at its hyphens and blanks into lines of at most `room`, where it can be."""
    pieces = name.replace("-", "-\n").replace(" ", " \n").split("\n")
    lines = [""]
    for piece in pieces:
        if lines[-1] and len((lines[-1] + piece).rstrip()) > room:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


# ------------------------------------------------------------------------------------ the notes
def _notes(estimates: Sequence[Estimate], names: list[str]) -> list[str]:
    """Conditions, assumptions, and where a row does not mean the same in every column."""
    pairs = list(zip(names, estimates, strict=True))
    counts = ", ".join(f"{name} {len(e.assumptions)}" for name, e in pairs)
    return [
        _conditions(estimates),
        "Active parameters: all tensors that a token touches; without the input embedding table "
        "(a tied table is also the output head and stays); without table and output head.",
        *_differences(pairs),
        f"Assumed inputs: {counts}; `moeplan estimate` lists them.",
    ]


def _conditions(estimates: Sequence[Estimate]) -> str:
    def used(name: str) -> str:
        return " / ".join(dict.fromkeys(_setting(e, name) for e in estimates))

    text = (
        f"Context {used('context')}, batch {used('batch')}, {used('attention')} attention, cache "
        f"in {used('cache')}, training state {used('optimizer')}. Times and costs are floors of "
        f"one {used('gpu')}, the datasheet reached in full, with no exchange between GPUs."
    )
    if any(e.tree["all_to_all"] is not None for e in estimates):
        text += (
            " Sent: all MoE layers forward, dispatch and combine, in "
            f"{used('dispatch')} and {used('combine')}, nodes of {used('node')} GPUs, "
            f"{used('policy')} policy; what a node forwards inside counts as in node."
        )
    return text


def _setting(e: Estimate, name: str) -> str:
    value = e.gpu.id if name == "gpu" else plain(e.scenario[name])
    return f"{value:,}" if isinstance(value, int) else str(value)


def _differences(pairs: list[tuple[str, Estimate]]) -> list[str]:
    """Where columns differ in what they mean, not only in size."""
    out = []
    differing = [n for n in DEFAULTS if len({_setting(e, n) for _, e in pairs}) > 1]
    if differing:
        out.append(f"The models were estimated with different settings: {', '.join(differing)}.")
    formats = {name: e.tree["memory"]["weights_format"] for name, e in pairs}
    if len(set(formats.values())) > 1:
        out.append(
            "Weights are compared as each checkpoint stores them, so formats bear on the ratios; "
            "--weights puts all in one."
        )
    groups = {e.tree["all_to_all"]["ep"].value for _, e in pairs if e.tree["all_to_all"]}
    if len(groups) > 1:
        out.append("Expert-parallel groups differ in size; --ep sets one for all.")
    out += _apart(pairs)
    return out


def _apart(pairs: Iterable[tuple[str, Estimate]]) -> list[str]:
    """Parts of a model that its columns leave out or count in another way."""
    out = []
    for name, e in pairs:
        params, spec = e.tree["params"], e.spec
        if params["mtp"].value:
            count = fmt_count(params["mtp"].value)
            out.append(f"{name}: its multi-token prediction module ({count}) is not in the figures.")
        if params["buffers"].value:
            count = fmt_count(params["buffers"].value)
            out.append(f"{name}: {count} selection-bias values are a buffer, not parameters.")
        cache = e.tree["kv_cache"]
        later = cache["bytes_per_token_beyond_windows"].value
        if later != cache["bytes_per_token"].value:
            out.append(f"{name}: beyond its windows the cache grows by {fmt_bytes(later)} a token.")
        if cache["fixed_bytes"].value:
            state = fmt_bytes(cache["fixed_bytes"].value)
            out.append(f"{name}: holds {state} of state a sequence whatever its length.")
        if any(group.role == "encoder" for group in spec.groups):
            out.append(f"{name}: an encoder-decoder; its encoder reads as many tokens as the context.")
        out += [f"{name}: not counted: {part}." for part in spec.not_counted]
    return out


# ---------------------------------------------------------------------- beside the dense models
@dataclass(frozen=True)
class Beside:
    """One model of the dense comparison: the MoE itself, or a dense model of equal size.

    kind: "moe", "active" or "total". width: FFN width in the exchanged layers (None for the MoE).
    parameters, flops a token (forward), weights (bytes). decode: floor of one step (s) at each of
    `batches`.
    """

    kind: str
    width: int | None
    parameters: Number
    flops: Number
    weights: Number
    batches: tuple[int, int]
    decode: tuple[float, float]


def decode_batches(e: Estimate) -> tuple[int, int]:
    """Batch 1, and the scenario's batch; 64 where that is 1 too."""
    batch = int(plain(e.scenario["batch"]))
    return (1, batch if batch > 1 else SERVING_BATCH)


def beside_dense(e: Estimate) -> list[Beside]:
    """An MoE, the dense model of equal active and that of equal total size; empty if dense."""
    if e.spec.moe is None:
        return []
    out = [_beside("moe", e, None)]
    for match in get_args(Match):
        spec = dense_equivalent(e.spec, match)
        assert spec is not None
        old = {id(block) for _, block in e.spec.blocks(DenseFFN)}
        width = next(b.F for _, b in spec.blocks(DenseFFN) if id(b) not in old)
        out.append(_beside(match, Estimate(spec, e.scenario), int(plain(width))))
    return out


def _beside(kind: str, e: Estimate, width: int | None) -> Beside:
    batches = decode_batches(e)
    work = Workload("decode", B=np.asarray(batches, dtype=np.float64), S=1, C=e.scenario["context"])
    slowest = floor(e.spec, work, e.gpu, e.scenario["cache"])["lower"].value
    return Beside(
        kind,
        width,
        e.tree["params"]["total"].value,
        e.tree["flops"]["forward_per_token"].value,
        e.tree["memory"]["weights"].value,
        batches,
        (float(slowest[0]), float(slowest[1])),
    )


KINDS = {"moe": "", "active": "  dense, equal active", "total": "  dense, equal total"}


def _beside_table(estimates: Sequence[Estimate], names: list[str]) -> Table | None:
    """Rows of three a model: the MoE, then the dense models with their ratios to it."""
    found = [(n, beside_dense(e)) for n, e in zip(names, estimates, strict=True)]
    found = [(name, rows) for name, rows in found if rows]
    if not found:
        return None
    one, many = (sorted({rows[0].batches[i] for _, rows in found}) for i in (0, 1))
    at = "/".join(f"{batch:,}" for batch in many)
    titles = ("FFN width", "params", "forward/token", "weights", f"decode at {one[0]}", f"at {at}", "")
    table = Table(
        "Each MoE beside dense models with the same layers and attention",
        [Column("", "left"), *(Column(title) for title in titles)],
        values=[],
    )
    assert table.values is not None
    for name, rows in found:
        for row in rows:
            label = KINDS[row.kind] or name
            table.rows.append((label, *_beside_cells(row, rows[0])))
            numbers = (row.parameters, row.flops, row.weights, *row.decode)
            table.values.append((f"{name}{KINDS[row.kind]}", row.width, *numbers))
    table.notes += _beside_notes(found)
    return table


def _beside_cells(row: Beside, moe: Beside) -> tuple[str, ...]:
    return (
        NONE if row.width is None else f"{row.width:,}",
        fmt_count(row.parameters),
        fmt_flops(row.flops),
        fmt_bytes(row.weights),
        fmt_time(row.decode[0]),
        fmt_time(row.decode[1]),
        ratio(row.decode[1], moe.decode[1]),
    )


def _beside_notes(found: list[tuple[str, list[Beside]]]) -> list[str]:
    out = [
        "Decode: floor of one step on one GPU that holds all weights, at two batch sizes. The last "
        "column is the second batch's floor over the MoE's."
    ]
    for name, (moe, active, total) in found:
        batch = moe.batches[1]
        faster = moe.decode[1] / active.decode[1]
        out.append(
            f"{name}: at batch {batch:,} a dense model of its active size decodes "
            f"{faster:.1f} times as fast on one device, which need hold "
            f"{active.weights / moe.weights:.0%} of its weights; for its size in parameters it "
            f"does {moe.flops / total.flops:.1%} of the dense model's FLOPs a token."
        )
    return out
