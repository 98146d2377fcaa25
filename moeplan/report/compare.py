"""Models side by side: one column a model, each number with its ratio to the first model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from moeplan.errors import UserError
from moeplan.estimation.estimate import Estimate
from moeplan.estimation.scenario import DEFAULTS
from moeplan.quantity import Later, Number, plain
from moeplan.report.beside import NOTES, beside_tables
from moeplan.report.columns import Row, side_by_side
from moeplan.report.tables import Table
from moeplan.units import fmt_bytes, fmt_count, fmt_flops, fmt_money, fmt_time

__all__ = ["compare_tables", "labels", "per_token", "setting", "single"]


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


def per_token(all_to_all: Mapping[str, Any]) -> tuple[Number, Number]:
    """Bytes a token sends in a forward pass of all MoE layers: in its node, to other nodes.

    Of an estimate's all-to-all section: dispatch and combine together; what is forwarded inside a
    node for other nodes is in-node traffic.
    """
    ways, tokens = all_to_all["forward_step"].values(), all_to_all["tokens"].value
    inside = sum(way["same_node"].value + way["forwarded"].value for way in ways)
    return inside / tokens, sum(way["other_nodes"].value for way in ways) / tokens


# ------------------------------------------------------------------------------------- the rows
def _at(path: str) -> Callable[[Estimate], Any]:
    def pick(e: Estimate) -> Any:
        here: Any = e.tree
        for part in path.split("."):
            if here is None or part not in here:
                return None
            here = here[part]
            here = here() if isinstance(here, Later) else here
        return plain(here) if here is not None else None

    return pick


def _cost(name: str) -> Callable[[Estimate], Any]:
    """Dollars per million tokens at the expected time, else at the floor."""
    path = f"cost.{name}_dollars_per_million_tokens"

    def pick(e: Estimate) -> Any:
        found = _at(f"{path}.expected")(e)
        return _at(f"{path}.lower")(e) if found is None else found

    return pick


def _share(e: Estimate) -> float:
    p = e.tree["params"]
    return float(p["active"]["all"].value / p["total"].value)


def _way(index: int) -> Callable[[Estimate], Any]:
    def pick(e: Estimate) -> Any:
        section = e.tree["all_to_all"]
        return None if section is None else per_token(section)[index]

    return pick


def _whole(value: int) -> str:
    return f"{value:,}"


def _flops(value: float) -> str:
    """FLOPs without their unit, which the row's label says: `26.57 G`."""
    return fmt_flops(value).removesuffix("FLOP")


def _dollars(value: float) -> str:
    """Dollars of a comparison: cents are too coarse for a million tokens."""
    return fmt_money(value) if value >= 1 else f"${value:#.{3 if value >= 1e-3 else 2}g}"


def _short(words: str) -> str:
    """A format without its details, which `moeplan estimate` shows."""
    return words.partition(",")[0]


def _gpus(value: int) -> str:
    return f"{value:,} GPU" if value == 1 else f"{value:,} GPUs"


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
    Row("forward FLOPs/token", _at("flops.forward_per_token"), _flops),
    Row("training FLOPs/token", _at("flops.training_per_token"), _flops),
    Row("decoding FLOPs/token", _at("flops.decode_per_token"), _flops),
    Row("KV cache a token", _at("kv_cache.bytes_per_token"), fmt_bytes),
    Row("KV cache in all", _at("kv_cache.bytes"), fmt_bytes),
    Row("weights", _at("memory.weights"), fmt_bytes),
    Row("weight format", _at("memory.weights_format"), _short, compared=False),
    Row("weights + cache need", _at("memory.serving.gpus_at_least"), _gpus, compared=False),
    Row("training state", _at("memory.training.total"), fmt_bytes),
    Row("expert parallelism", _at("all_to_all.ep"), _gpus, compared=False),
    Row("all-to-all in node", _way(0), fmt_bytes),
    Row("all-to-all other nodes", _way(1), fmt_bytes),
    Row("prefill, expected", _at("time.prefill.calibrated.expected"), fmt_time),
    Row("prefill, band", _at("time.prefill.calibrated.band"), "±{:.0%}".format),
    Row("prefill, floor", _at("time.prefill.lower"), fmt_time),
    Row("decode step, expected", _at("time.decode.calibrated.expected"), fmt_time),
    Row("decode step, band", _at("time.decode.calibrated.band"), "±{:.0%}".format),
    Row("decode step, floor", _at("time.decode.lower"), fmt_time),
    Row("prefill $/M tokens", _cost("prefill"), _dollars),
    Row("decode $/M tokens", _cost("decode"), _dollars),
)


def compare_tables(estimates: Sequence[Estimate], width: int | None = None) -> list[Table]:
    """Tables of models side by side, then each MoE beside its dense equivalents.

    One column a model, each number with its ratio to the first model. `width` is that of the
    console in characters: with more models than fit, the table is split and each part starts with
    the first model again (80 columns hold 3 models, 120 hold 5). Without `width` all models stand
    in one table. Raises UserError for no model, and for sweeps.
    """
    single(estimates)
    names = labels(estimates)
    tables = side_by_side("Models side by side", names, ROWS, estimates, width)
    tables[-1].notes += _notes(estimates, names)
    for name, e in zip(names, estimates, strict=True):
        tables += beside_tables(name, e, width)
    if any(e.spec.moe is not None for e in estimates):
        tables[-1].notes += NOTES
    return tables


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
        return " / ".join(dict.fromkeys(setting(e, name) for e in estimates))

    text = (
        f"Context of {used('context')} tokens, batch {used('batch')}, {used('attention')} "
        f"attention, cache in {used('cache')}, training state {used('optimizer')}. Times are "
        f"those of one {used('gpu')} with no exchange between GPUs: expected ones of its "
        "operations by calibration, with their band, and floors, the datasheet reached in full. "
        "Costs are at the expected time, or at the floor where there is none."
    )
    if any(e.tree["all_to_all"] is not None for e in estimates):
        text += (
            " All-to-all: what a token sends in all MoE layers of a forward pass, dispatch and "
            f"combine, in {used('dispatch')} and {used('combine')}, nodes of {used('node')} GPUs, "
            f"{used('policy')} policy; rows forwarded inside a node count as in node."
        )
    return text


def setting(e: Estimate, name: str) -> str:
    """A setting in force, as text: the GPU by its full id, the cache in the format it has."""
    resolved = {"gpu": e.gpu.id, "cache": e.tree["kv_cache"]["format"]}
    value = resolved.get(name, plain(e.scenario[name]))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _differences(pairs: list[tuple[str, Estimate]]) -> list[str]:
    """Where columns differ in what they mean, not only in size."""
    out = []
    differing = [n for n in DEFAULTS if len({setting(e, n) for _, e in pairs}) > 1]
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
    """Parts of a model that its column leaves out or counts in another way."""
    out = []
    for name, e in pairs:
        params, cache = e.tree["params"], e.tree["kv_cache"]
        left_out = list(e.spec.not_counted)
        if params["mtp"].value:
            left_out.append(f"multi-token prediction ({fmt_count(params['mtp'].value)} parameters)")
        if params["buffers"].value:
            left_out.append(f"{params['buffers'].value:,} selection-bias values, which are buffers")
        if left_out:
            out.append(f"{name}, not counted: {'; '.join(left_out)}.")
        later = cache["bytes_per_token_beyond_windows"].value
        if later != cache["bytes_per_token"].value:
            out.append(f"{name}: beyond its windows the cache grows by {fmt_bytes(later)} a token.")
        if cache["fixed_bytes"].value:
            state = fmt_bytes(cache["fixed_bytes"].value)
            out.append(f"{name}: a sequence holds {state} of state whatever its length.")
        if any(group.role == "encoder" for group in e.spec.groups):
            out.append(f"{name}: its encoder reads as many tokens as the context.")
    return out
