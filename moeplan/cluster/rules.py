"""What a layout must satisfy: rules as rows, for one layout's messages or an array's mask.

A rule is a predicate over the symbols of a layout and of a model, and a message that shows the
numbers. One layout gives the messages of all rules that it breaks; arrays give a mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from moeplan.arrays import np
from moeplan.cluster.layout import NUMBERS, Layout, Schedule, quiet
from moeplan.errors import UserError
from moeplan.quantity import Number, evaluate

__all__ = ["Rule", "broken_count", "broken_rules", "check", "legal", "rules"]


class Rule(NamedTuple):
    """name; formula that is true where it holds; what to say where it does not (over symbols)."""

    name: str
    holds: str
    message: str

    def said(self, values: Mapping[str, Number]) -> str:
        """The message with numbers in it."""
        return self.message.format(**{name: _shown(number) for name, number in values.items()})


_WHOLE = tuple(
    Rule(
        f"{name} is whole",
        f"({name} % 1 == 0) & ({name} >= {0 if name == 'zero' else 1})"
        + (" & (zero <= 3)" if name == "zero" else ""),
        f"{name}={{{name}}} must be "
        + ("0, 1, 2 or 3" if name == "zero" else "a whole number of at least 1"),
    )
    for name in NUMBERS
)
_ALWAYS = (
    *_WHOLE,
    Rule(
        "world",
        "world == gpus",
        "tp*cp*pp*dp = {tp}*{cp}*{pp}*{dp} = {world} must be the {gpus} GPUs",
    ),
    Rule(
        "accumulation",
        "batch % replica == 0",
        "microbatch*dp = {microbatch}*{dp} = {replica} does not divide batch={batch}",
    ),
    Rule(
        "stages",
        "pp*vpp <= L",
        "pp*vpp = {pp}*{vpp} stages are more than the {L} layers",
    ),
)
_EXPERTS = (
    Rule("ep", "E % ep == 0", "ep={ep} does not divide the {E} experts"),
    Rule("etp", "F % etp == 0", "etp={etp} does not divide the expert width {F}"),
    Rule(
        "expert group",
        "pool % expert == 0",
        "ep*etp = {ep}*{etp} = {expert} does not divide tp*cp*dp = {tp}*{cp}*{dp} = {pool}",
    ),
)
_NO_EXPERTS = (
    Rule("ep", "ep*etp == 1", "ep*etp = {ep}*{etp} = {expert}, and the model has no experts"),
)
_SCHEDULES: dict[Schedule, tuple[Rule, ...]] = {
    "1f1b": (Rule("vpp", "vpp == 1", "vpp={vpp} needs schedule=interleaved"),),
    "interleaved": (
        Rule("interleaving", "(pp > 1) & (vpp > 1)", "interleaved needs pp={pp} and vpp={vpp} > 1"),
        Rule(
            "rounds",
            "m % pp == 0",
            "interleaved needs pp={pp} to divide the {m} microbatches "
            "(batch/(microbatch*dp) = {batch}/({microbatch}*{dp}))",
        ),
    ),
    "zero-bubble": (
        Rule("vpp", "vpp == 1", "vpp={vpp} needs schedule=interleaved"),
        Rule("pipeline", "pp > 1", "schedule zero-bubble needs pp={pp} above 1"),
        Rule("filled", "m >= pp", "zero-bubble needs {m} microbatches to be at least pp={pp}"),
    ),
    "dualpipe": (
        Rule("vpp", "vpp == 1", "vpp={vpp} needs schedule=interleaved"),
        Rule("even", "(pp > 1) & (pp % 2 == 0)", "dualpipe needs pp={pp} to be even"),
        Rule(
            "filled",
            "(m >= 2*pp) & (m % 2 == 0)",
            "dualpipe needs an even number of microbatches, {m}, of at least 2*pp = 2*{pp}",
        ),
    ),
}
_FULL_SPLIT = Rule(
    "layers",
    "(pp*vpp - 1)*ceil_div(L, pp*vpp) <= L",
    "split=full: {pp}*{vpp} stages leave some without layers, of {L}; use split=even",
)
_PP_BEFORE_DP = Rule(
    "order",
    "(pp == 1) | (expert == tp*cp)",
    "order tp-cp-ep-pp-dp needs etp*ep = {etp}*{ep} = {expert} to be tp*cp = {tp}*{cp}",
)


def rules(layout: Layout, widths: Mapping[str, Iterable[int]], *, experts: bool) -> list[Rule]:
    """The rules of a layout's kinds and of a model.

    widths: what tensor parallelism divides ("attention heads", ...), each with the model's counts;
    key-value heads fewer than tp are held by several ranks.
    """
    out = [*_ALWAYS, *(_EXPERTS if experts else _NO_EXPERTS), *_SCHEDULES[layout.schedule]]
    if layout.split == "full":
        out.append(_FULL_SPLIT)
    if layout.order == "tp-cp-ep-pp-dp":
        out.append(_PP_BEFORE_DP)
    for what, counts in widths.items():
        for n in counts:
            holds = f"{n} % tp == 0" if what != "key-value heads" else f"({n} % tp)*(tp % {n}) == 0"
            out.append(Rule(what, holds, f"tp={{tp}} does not divide the {n} {what}"))
    parts = "2*cp" if not layout.sp else "2*cp*tp"
    shown = "2*{cp}" if not layout.sp else "2*{cp}*{tp}"
    out.append(
        Rule(
            "sequence",
            f"((cp == 1) & ({'tp == 1' if layout.sp else 'True'})) | (S % ({parts}) == 0)",
            f"{parts} = {shown} does not divide the {{S}} tokens of a sequence",
        )
    )
    if isinstance(layout.split, tuple):
        stages, given = len(layout.split), sum(layout.split)
        listed = "+".join(map(str, layout.split))
        out += [
            Rule(
                "list of stages",
                f"{stages} == pp*vpp",
                f"layers={listed} are {stages} stages, and pp*vpp = {{pp}}*{{vpp}}",
            ),
            Rule("list of layers", f"L == {given}", f"layers={listed} are {given}, not {{L}}"),
            Rule(
                "no empty stage",
                str(all(layout.split[1:-1])),
                f"layers={listed}: only the first and the last stage may be without layers",
            ),
        ]
    return out


def legal(layout: Layout, found: Iterable[Rule], **facts: Number) -> Any:
    """Whether all rules hold: a bool, or a bool array of the broadcast shape."""
    values = {**layout.values, **facts}
    out: Any = True
    with quiet(layout.is_many):
        for rule in found:
            out = out & evaluate(rule.holds, values)
    return out


def broken_count(layout: Layout, found: Iterable[Rule], **facts: Number) -> Any:
    """How many rules each layout of arrays breaks."""
    values = {**layout.values, **facts}
    with quiet(layout.is_many):
        return sum(1 - np.asarray(evaluate(rule.holds, values), np.int64) for rule in found)


def broken_rules(layout: Layout, found: Iterable[Rule], **facts: Number) -> list[str]:
    """Messages of the rules that one layout breaks, in order."""
    values = {**layout.values, **facts}
    return [r.said(values) for r in found if not evaluate(r.holds, values)]


def _shown(number: Number) -> Number | str:
    """A number for a message: a part of a microbatch needs no sixteen digits."""
    return f"{number:.4g}" if isinstance(number, float) and number % 1 else number


def check(layout: Layout, found: Iterable[Rule], **facts: Number) -> None:
    """Raise one `UserError` that lists everything wrong with one layout."""
    broken = broken_rules(layout, found, **facts)
    if broken:
        raise UserError(f"layout {layout}: " + "; ".join(broken))
