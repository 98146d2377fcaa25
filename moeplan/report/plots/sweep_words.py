"""What a sweep's plot says in words: its columns, the least and the most, and what else varies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moeplan.report.plots.sheet import brief
from moeplan.report.sweep import too_large, unit_shown, written
from moeplan.sweeping import Sweep

__all__ = ["SAID", "conditions", "finding", "in_words", "label", "value_text"]

_LINE = 58  # characters of an axis' label, before its column's name gets a line of its own

SAID = {
    "step": "step time", "mfu": "model FLOP utilisation", "memory": "memory of the fullest GPU",
    "tokens_per_second": "throughput", "tokens_per_second_per_gpu": "throughput of a GPU",
    "output_tokens_per_second_per_gpu": "output tokens of a GPU",
    "time_ep": "time of the all-to-all", "time_bubble": "time of the pipeline's bubble",
    "sent_scale_up": "bytes sent inside domains", "sent_scale_out": "bytes sent between domains",
    "ttft": "time to first token", "tpot": "time per output token",
    "dollars_per_million_output": "dollars for a million output tokens",
    "tp": "tensor parallelism", "pp": "pipeline stages", "cp": "context parallelism",
    "dp": "data parallelism", "ep": "expert parallelism", "etp": "parallelism inside experts",
    "vpp": "chunks of a stage", "batch": "batch size", "microbatch": "microbatch size",
    "context": "context length", "tokens": "tokens of a GPU in an exchange",
    "top_k": "experts of a token", "width": "width of an expert", "gpu": "GPU", "gpus": "GPUs",
    "shared": "shared experts", "heads": "query heads", "kv_heads": "key-value heads",
    "gpu.memory_bandwidth": "memory bandwidth of the GPU", "gpu.memory_bytes": "memory of the GPU",
    "params.total": "parameters", "params.active.all": "active parameters",
    "kv_cache.bytes": "KV cache", "flops.forward_per_token": "forward FLOPs per token",
    "all_to_all.forward_step.dispatch.sent": "bytes dispatched in a forward step",
    "all_to_all.forward_step.combine.sent": "bytes combined in a forward step",
    "all_to_all.time.forward_step.expected": "expected time of the all-to-all",
}  # fmt: skip
"""What names of columns stand for, where a title or an axis would not say it."""

_PASSES = {"prefill": "prefill time", "decode": "decode step time", "training": "training time"}
_TIMES = {
    "lower": "floor of the {}, all overlaps",
    "sequential": "floor of the {}",
    "upper": "floor of the {}, no overlap",
    "calibrated.expected": "expected {}",
    "calibrated.lower": "lower bound of the {}",
    "calibrated.upper": "upper bound of the {}",
    "calibrated.band": "half the error band of the {}",
    "calibrated.tokens_per_second": "tokens per second at the expected {}",
}


def in_words(name: str) -> str:
    """A column in words: `time.decode.sequential` is `floor of the decode step time`."""
    if name in SAID:
        return SAID[name]
    section, _, rest = name.partition(".")
    which, _, rest = rest.partition(".")
    if section == "time" and which in _PASSES and rest in _TIMES:
        return _TIMES[rest].format(_PASSES[which])
    if section == "cost" and which.endswith("_dollars_per_million_tokens"):
        work = which.partition("_")[0]
        return f"dollars per million tokens of {work}{f' ({rest})' if rest else ''}"
    if not which:
        return name
    return ": ".join(" ".join(part) for part in _parts(name))


def _parts(name: str) -> tuple[list[str], list[str]]:
    """A path's section, and the words below it."""
    first, *others = name.split(".")
    return first.split("_"), [word for part in others for word in part.split("_")]


def label(found: Sweep, name: str) -> str:
    """An axis' label: the words, and the column's name or what formulas make of it."""
    words = in_words(name)
    users = [n for n, formula in found.links.items() if name in formula.names and name != n]
    if users and words == name:
        return f"{name}, which sets {_listed(users)}"
    if words == name:
        return name
    gap = " " if len(words) + len(name) <= _LINE else "\n"
    return f"{words}{gap}({name})"


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def value_text(found: Sweep, name: str, value: Any) -> str:
    """A value with its column's short name: `batch 8`, `ep 4`, `parameters 30.5 B`."""
    given = name in found.inputs
    text = brief(written(value, unit_shown(found, name), given=given))
    return f"{name if given else in_words(name)} {text}"


# -------------------------------------------------------------------------------- the finding
def finding(found: Sweep, data: Mapping[str, Sequence[Any]], hollow: Any) -> str:
    """The least and the most of what was worked out, and where; of points that fit, if some do."""
    text = too_large(found)
    note = f" Hollow: {text}." if text else ""
    names = list(data)
    about = _quantity(found, data)
    some = bool(text and not hollow.all())
    keep = [i for i, left in enumerate(hollow.tolist()) if not (some and left)]
    if about is None:
        return f"{_points(len(hollow))}.{note}"
    values = [data[about][i] for i in keep]
    others = [n for n in names if n != about]
    start = "" if about == names[1] else f"{in_words(about)}: "
    start = f"Of those that fit, {start}" if some and start else start
    start = "Of those that fit: " if some and not start else start
    least, most = min(values), max(values)
    if least == most:
        where = _where(found, data, others, keep) if len(keep) == 1 else f"all {len(keep):,} points"
        return _sentence(f"{start}{_number(found, about, data[about][keep[0]])} at {where}") + note
    said = []
    for word, value in (("least", least), ("most", most)):
        at = [i for i in keep if data[about][i] == value]
        where = _where(found, data, others, at) or f"{len(at):,} points"
        said.append(f"{word} {_number(found, about, data[about][at[0]])} at {where}")
    if least > 0:
        said.append(f"{most / least:.3g} times")
    return _sentence(f"{start}{'; '.join(said)}") + note


def _quantity(found: Sweep, data: Mapping[str, Sequence[Any]]) -> str | None:
    """The column to speak of: the one up, or the colour where the one up was put in."""
    _, y, *colour = data
    numbers = [n for n in (y, *colour) if not any(isinstance(v, (str, bool)) for v in data[n])]
    return next((n for n in numbers if n not in found.inputs), y if y in numbers else None)


def _number(found: Sweep, name: str, value: Any) -> str:
    return brief(written(value, unit_shown(found, name), given=name in found.inputs))


def _where(
    found: Sweep, data: Mapping[str, Sequence[Any]], names: Sequence[str], at: Sequence[int]
) -> str:
    """What some points have in common of the columns that place them."""
    said = []
    for place, name in enumerate(names):
        values = {data[name][i] for i in at}
        if len(values) == 1 and (name in found.inputs or not place):
            said.append(value_text(found, name, values.pop()))
    return ", ".join(said)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _points(count: int) -> str:
    return f"{count:,} point{'s' * (count != 1)}"


# ----------------------------------------------------------------------------- the conditions
def conditions(found: Sweep, data: Mapping[str, Sequence[Any]]) -> str:
    """Points drawn, formulas, and inputs that vary without being shown apart."""
    drawn, illegal = len(next(iter(data.values()))), found.points - int(found.legal.sum())
    out = [_points(drawn) if drawn == found.points else f"{drawn:,} of {_points(found.points)}"]
    if illegal:
        out.append(f"{illegal:,} {'is' if illegal == 1 else 'are'} not legal")
    if found.points - illegal - drawn:
        out.append(f"{found.points - illegal - drawn:,} without a value")
    out += _formulas(found)
    hidden = [n for n in found.inputs if n not in data and len(set(found.columns[n].tolist())) > 1]
    free = [n for n in hidden if n not in found.links and not _follows(found, n, data)]
    alike = [n for n in hidden if n not in found.links and n not in free]
    if alike:
        out.append(f"{', '.join(alike)} {'go' if len(alike) > 1 else 'goes'} with them")
    if free:
        out.append(f"{', '.join(free)} {'vary' if len(free) > 1 else 'varies'} between points")
    out += [
        f"{n} {written(found.columns[n].tolist()[0], found.units.get(n, ''), given=True)}"
        for n in found.inputs
        if n not in data and n not in hidden
    ]
    return "; ".join(out)


def _formulas(found: Sweep) -> list[str]:
    """Formulas as they were given; a name in its own formula is the model's value."""
    if not found.links:
        return []
    said = ", ".join(f"{name} = {formula.text}" for name, formula in found.links.items())
    own = [name for name, formula in found.links.items() if name in formula.names]
    return [f"{said}{f' ({_listed(own)} on the right: as they were)' if own else ''}"]


def _follows(found: Sweep, name: str, data: Mapping[str, Sequence[Any]]) -> bool:
    """Whether an input has one value at each combination of the inputs that are drawn."""
    drawn = [found.columns[n].tolist() for n in data if n in found.inputs]
    if not drawn:
        return False
    seen: dict[tuple[Any, ...], Any] = {}
    places = zip(*drawn, strict=True)
    values = found.columns[name].tolist()
    return all(seen.setdefault(at, v) == v for at, v in zip(places, values, strict=True))
