"""What an expert-parallel exchange sends: bytes of dispatch and combine per MoE layer and GPU.

Symbols: T tokens that a GPU starts with, H hidden size, E experts, k experts a token (top-k), r
of them that hold weights (all but the zero-computation ones), n GPUs of the expert-parallel group
(ep), g of them in one node, N nodes of the group (n = g·N), D distinct GPUs and D_N distinct nodes
that a token reaches. GPU i holds the i-th E/n experts, node j the GPUs j·g to (j+1)·g − 1. Shared
experts are on every GPU and send nothing. Bytes are a GPU's own, averaged over the GPUs of the
group, each sent byte counted once (sent = received).

Arguments are numbers, quantities or numpy arrays that broadcast; everything is elementwise, so a
long sweep may be cut into pieces. Illegal numbers raise UserError; illegal points of an array
become nan in every result that depends on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

from moeplan.arrays import is_array, np
from moeplan.errors import UserError, near_miss
from moeplan.model.routing import GroupRule, expected_distinct, nearest_divisor
from moeplan.quantity import Number, Quantity, Source, derive, plain, register

__all__ = ["ROW_FORMATS", "AllToAll", "Policy", "Rows", "Traffic", "all_to_all"]

Policy: TypeAlias = Literal["copies", "per-gpu", "per-node"]
"""What is sent once: every copy of a token, one for each of its k experts (plain all-to-all); a
token for each GPU it reaches; a token for each other node it reaches, and from the GPU where it
lands on to the others over the node's own links (DeepEP's normal mode)."""

ROW_FORMATS: dict[str, str] = {
    "bf16": "2*H",
    "fp16": "2*H",
    "fp32": "4*H",
    "fp8": "H + 4*ceil_div(H, 128)",
    "fp8_unscaled": "1*H",
    "mxfp8": "H + ceil_div(H, 32)",
    "nvfp4": "ceil_div(H, 2) + ceil_div(H, 16)",
}
"""Bytes of a row of H values. fp8: one fp32 scale for each 128 values (DeepSeek-V3, arXiv
2412.19437, 3.3). fp8_unscaled: the bare bytes, as papers' estimates take them. mxfp8: one scale
byte per 32 values (OCP MX 1.0). nvfp4: half a byte a value, one scale byte per 16."""

_RULE_NOTES: dict[GroupRule, str] = {
    "uniform": "any M of them",
    "max": "those of its best experts",
    "top2_sum": "those of its best experts, in place of the largest sums of two (up to 2.8 % off)",
}
_BALANCED = Quantity.given(
    1.0, symbol="imbalance", source=Source("assumed", "every GPU gets the mean load")
)
_ID_BYTES, _WEIGHT_BYTES = 4, 4  # int32 expert id and fp32 gate weight, as DeepEP sends them


@dataclass(frozen=True)
class Rows:
    """Rows that one token sends, by where they go; see `Traffic` for the four kinds."""

    local: Quantity
    same_node: Quantity
    other_nodes: Quantity
    forwarded: Quantity

    @property
    def sent(self) -> Quantity:
        """Rows a token that leave a GPU: all but the local ones."""
        return _sent(self, "rows/token")


@dataclass(frozen=True)
class Traffic:
    """Bytes of one direction that a GPU sends (dispatch) or that come back to it (combine).

    local: to itself, not sent. same_node: to GPUs of its node. other_nodes: over the network.
    forwarded: what a GPU passes on inside its node for rows that came, or will leave, by network.
    metadata: expert ids and gate weights, counted within the four. slowest: an upper bound on the
    busiest GPU's bytes over the mean, for the load imbalance that was given.
    """

    local: Quantity
    same_node: Quantity
    other_nodes: Quantity
    forwarded: Quantity
    metadata: Quantity
    slowest: Quantity

    @property
    def in_node(self) -> Quantity:
        """Bytes over the links inside the node: same_node + forwarded."""
        return derive(
            "same_node + forwarded", "B", same_node=self.same_node, forwarded=self.forwarded
        )

    @property
    def total_sent(self) -> Quantity:
        """All bytes that leave a GPU: same_node + other_nodes + forwarded."""
        return _sent(self, "B")

    @property
    def busiest(self) -> Quantity:
        """Most bytes that one GPU receives in a dispatch, or sends in a combine: upper bound."""
        return derive("slowest*total", "B", slowest=self.slowest, total=self.total_sent)


@dataclass(frozen=True)
class AllToAll:
    """The exchange of one MoE layer, forward; `backward` and `per_step` build on it.

    dispatch: from the tokens' GPUs to the experts'. combine: back. expected_gpus, expected_nodes:
    distinct GPUs and nodes that a token reaches, its own included. rows: rows a token, both ways.
    """

    dispatch: Traffic
    combine: Traffic
    expected_gpus: Quantity
    expected_nodes: Quantity
    rows: Rows
    _gradients: Callable[[], tuple[Traffic, Traffic]]  # built only where a backward pass is asked

    def backward(self) -> AllToAll:
        """The exchange of the backward pass, where dispatch and combine swap roles.

        The gradient of a combine travels like a dispatch and in its format, the gradient of a
        dispatch like a combine (arXiv 2412.19437, 3.3). No expert ids are sent again; with
        metadata, the gate weights' gradients come back with the rows.
        """
        dispatch, combine = self._gradients()
        forward = (self.dispatch, self.combine)
        return replace(self, dispatch=dispatch, combine=combine, _gradients=lambda: forward)

    def per_step(self, moe_layers: Number, *, backward: bool = False) -> AllToAll:
        """The same for all MoE layers of a step, with the backward pass where asked (training).

        dispatch then holds every message towards the experts, combine every message from them.
        Recomputed layers send their dispatch once more; that is not counted here.
        """
        if not is_array(plain(moe_layers)):
            _check_whole("moe_layers", plain(moe_layers), least=0)
        layers = _quantity(moe_layers, "L", "moe_layers")
        forward, gradients = (self.dispatch, self.combine), self._gradients
        passes = (forward, gradients()) if backward else (forward,)
        dispatch, combine = (_sum(layers, traffics) for traffics in zip(*passes, strict=True))

        def all_gradients() -> tuple[Traffic, Traffic]:
            dispatch, combine = gradients()
            return _sum(layers, (dispatch,)), _sum(layers, (combine,))

        return replace(self, dispatch=dispatch, combine=combine, _gradients=all_gradients)


def all_to_all(
    tokens: Any,
    hidden: Any,
    experts: Any,
    top_k: Any,
    ep: Any,
    node: Any,
    *,
    real: Any = None,
    n_group: Any = 1,
    topk_group: Any = 1,
    rule: GroupRule = "uniform",
    dispatch: str = "fp8",
    combine: str = "bf16",
    policy: Policy = "per-node",
    imbalance: Any = _BALANCED,
    metadata: bool = False,
) -> AllToAll:
    """Count one MoE layer's exchange for `tokens` T a GPU over `ep` GPUs in nodes of `node` GPUs.

    real: of a token's k experts so many hold weights, in expectation; nothing is sent for the
    others (zero-computation experts). n_group, topk_group: groups of experts, and how many a
    token may use; rule: how they are picked (see
    `moeplan.model.routing.expected_distinct`). dispatch, combine: keys of ROW_FORMATS.
    imbalance: most loaded GPU's (token, expert) rows over the mean, at least 1. metadata: count
    each dispatched row's expert ids and gate weights (k of each; one of each for "copies") of
    4 bytes. Raises UserError for numbers that no layout has.
    """
    for name, word in (("dispatch", dispatch), ("combine", combine)):
        _check_word(f"{name} format", word, tuple(ROW_FORMATS))
    _check_word("all-to-all policy", policy, get_args(Policy))
    _check_word("group rule", rule, get_args(GroupRule))
    given = {
        "T": _quantity(tokens, "T", "tokens"),
        "H": _quantity(hidden, "H", "hidden"),
        "E": _quantity(experts, "E", "experts"),
        "k": _quantity(top_k, "k", "top_k"),
        "n": _quantity(ep, "n", "ep"),
        "node": _quantity(node, "node", "node"),
        "G": _quantity(n_group, "G", "n_group"),
        "M": _quantity(topk_group, "M", "topk_group"),
        "imbalance": _quantity(imbalance, "imbalance", "imbalance"),
    }
    if real is not None:
        given["r"] = _quantity(real, "r", "real")
    place = _place(given, rule)
    rows = _rows(given, place, policy)
    slowest = _slowest(given, place, policy)
    each = (
        derive("k", k=given.get("r", given["k"]))
        if policy != "copies"
        else _quantity(1, "k", "one a row")
    )

    def traffic(row_format: str, entry: int) -> Traffic:
        meta = derive("k*entry", "B", symbol="meta", k=each, entry=entry) if metadata else None
        return _traffic(given, rows, slowest, row_format, meta)

    return AllToAll(
        dispatch=traffic(dispatch, _ID_BYTES + _WEIGHT_BYTES),
        combine=traffic(combine, 0),
        expected_gpus=place["D"],
        expected_nodes=place["D_N"],
        rows=rows,
        _gradients=lambda: (traffic(dispatch, 0), traffic(combine, _WEIGHT_BYTES)),
    )


def _place(given: dict[str, Quantity], rule: GroupRule) -> dict[str, Quantity]:
    """How the group lies in nodes, and how many GPUs and nodes a token reaches."""
    routing: dict[str, Any] = {name: given[name] for name in ("E", "k", "G", "M")}
    note = (
        "n*(1 - C(E - E/n, k)/C(E, k)) for one group; with G groups, of which a token uses M, "
        f"{_RULE_NOTES[rule]}"
    )
    formula = f"distinct_{rule}(E, k, {{}}, G, M)"
    if "r" in given:
        routing["r"] = given["r"]
        note = "n*(1 - C(P - E/n, k)/C(P, k)): k drawn of P = E*k/r, of which E hold weights"
        formula = f"distinct_{rule}(E, k, {{}}, G, M, r)"
    n, node = _legal_ep(given), given["node"]
    gpus = derive(formula.format("n"), symbol="D", note=note, n=n, **routing)
    if is_array(gpus.value):  # routing knows more illegal points
        n = _masked(n, np.isfinite(gpus.value))
    nodes = derive("max(1, n//node)", symbol="N", note="nodes of the group", n=n, node=node)
    inside = derive("min(n, node)", symbol="g", note="its GPUs in one node", n=n, node=node)
    reached = derive(formula.format("N"), symbol="D_N", note=note, N=nodes, **routing)
    return {"n": n, "N": nodes, "g": inside, "D": gpus, "D_N": reached}


def _rows(given: dict[str, Quantity], place: dict[str, Quantity], policy: Policy) -> Rows:
    """Rows a token, by where they go; by symmetry a GPU is its own target in 1 of n cases."""
    copies = {"r": given["r"]} if "r" in given else {"k": given["k"]}
    reach: dict[str, Any] = copies if policy == "copies" else {"D": place["D"]}
    (symbol,) = reach
    n, g, N, D_N = (place[name] for name in ("n", "g", "N", "D_N"))
    local = derive(f"{symbol}/n", "rows/token", **reach, n=n)
    same_node = derive(f"{symbol}*(g - 1)/n", "rows/token", **reach, g=g, n=n)
    if policy != "per-node":
        other_nodes = derive(f"{symbol}*(n - g)/n", "rows/token", **reach, n=n, g=g)
        none = derive("0*n", "rows/token", note="every row goes straight to its GPU", n=n)
        return Rows(local, same_node, other_nodes, forwarded=none)
    return Rows(
        local,
        same_node,
        other_nodes=derive("D_N*(N - 1)/N", "rows/token", D_N=D_N, N=N),
        forwarded=derive(
            "D*(N - 1)*(g - 1)/n",
            "rows/token",
            note="the GPU on which a row lands keeps its own copy and sends g - 1 others theirs",
            **reach,
            N=N,
            g=g,
            n=n,
        ),
    )


def _slowest(given: dict[str, Quantity], place: dict[str, Quantity], policy: Policy) -> Quantity:
    """Upper bound on the busiest GPU's bytes over the mean.

    De-duplication makes a preferred GPU milder: with x times the mean (token, expert) rows it gets
    at most x times the mean distinct tokens, and never more tokens than there are (or E/n rows of
    each). A router that deliberately sends it single copies of tokens could exceed that.
    """
    note = "the given imbalance, limited by what all tokens together can send to one GPU"
    imbalance, n = given["imbalance"], place["n"]
    if policy == "copies":
        E, k = given["E"], given.get("r", given["k"])
        return derive("min(imbalance, n, E/k)", note=note, imbalance=imbalance, n=n, E=E, k=k)
    return derive("min(imbalance, n/D)", note=note, imbalance=imbalance, n=n, D=place["D"])


def _traffic(
    given: dict[str, Quantity],
    rows: Rows,
    slowest: Quantity,
    row_format: str,
    meta: Quantity | None,
) -> Traffic:
    """Bytes of one direction: tokens x rows a token x bytes a row."""
    T, H = given["T"], given["H"]
    row = derive(ROW_FORMATS[row_format], "B", symbol="row", note=f"{row_format} values", H=H)
    metadata = Quantity(0, "B", symbol="metadata", source=Source("assumed", "metadata not counted"))
    if meta is not None:
        metadata = derive("T*sent*meta", "B", T=T, sent=rows.sent, meta=meta)
        row = derive("payload + meta", "B", symbol="row", payload=row, meta=meta)
    parts = {
        kind.name: derive("T*rows*row", "B", T=T, rows=getattr(rows, kind.name), row=row)
        for kind in fields(Rows)
    }
    return Traffic(**parts, metadata=metadata, slowest=slowest)


def _sum(layers: Quantity, traffics: tuple[Traffic, ...]) -> Traffic:
    """All layers' bytes of one direction: forward, or forward and backward."""
    names = [field.name for field in fields(Traffic) if field.name != "slowest"]
    passes = ("forward", "backward")[: len(traffics)]
    formula = "L*forward" if len(traffics) == 1 else "L*(forward + backward)"
    sums = {}
    for name in names:
        inputs: dict[str, Any] = {
            word: getattr(traffic, name) for word, traffic in zip(passes, traffics, strict=True)
        }
        sums[name] = derive(formula, "B", L=layers, **inputs)
    return Traffic(**sums, slowest=traffics[0].slowest)


def _sent(parts: Rows | Traffic, unit: str) -> Quantity:
    return derive(
        "same_node + other_nodes + forwarded",
        unit,
        same_node=parts.same_node,
        other_nodes=parts.other_nodes,
        forwarded=parts.forwarded,
    )


def _quantity(value: Any, symbol: str, name: str) -> Quantity:
    if isinstance(value, Quantity):
        return value
    return Quantity.given(value, symbol=symbol, source=Source("user", name))


def _legal_ep(given: dict[str, Quantity]) -> Quantity:
    """Return n after the checks: numbers raise, arrays make n, and all that follows, nan."""
    v = {name: quantity.value for name, quantity in given.items()}
    if not any(is_array(value) for value in v.values()):
        _check(v)
        return given["n"]
    n, node = v["n"], v["node"]
    legal = np.asarray((v["T"] >= 0) & (v["imbalance"] >= 1))
    for value in (v["H"], n, node):
        legal = legal & (value >= 1) & (value == np.floor(value))
    with np.errstate(divide="ignore", invalid="ignore"):
        larger, smaller = np.maximum(n, node), np.minimum(n, node)
        whole = larger / smaller
    return _masked(given["n"], legal & (whole == np.floor(whole)))


def _masked(n: Quantity, legal: Any) -> Quantity:
    note = "nan where the point is not a legal layout"
    value = np.where(legal, n.value, np.nan)
    return Quantity.given(value, symbol="n", source=n.source, note=note)


def _check(v: dict[str, Number]) -> None:
    """Raise UserError for what no layout has; routing's own checks cover E, k, G and M."""
    names = {"H": "hidden", "E": "experts", "k": "top_k", "n": "ep", "node": "node"}
    for symbol, name in names.items():
        _check_whole(name, v[symbol], least=1)
    for name, value, least in (("tokens", v["T"], 0), ("imbalance", v["imbalance"], 1)):
        if not least <= value < float("inf"):
            raise UserError(f"{name}={value!r} must be a finite number of at least {least}")
    E, n, node = v["E"], v["n"], v["node"]
    if E % n:
        raise UserError(
            f"ep={n} does not divide experts={E}; every GPU holds the same number of experts "
            f"(the nearest ep that divides is {nearest_divisor(int(E), n)})"
        )
    if n % node and node % n:
        raise UserError(
            f"ep={n} and node={node} do not fit; ep must divide the GPUs of a node or be a "
            f"multiple of them (for example ep={max(1, n // node) * node})"
        )


def _check_whole(name: str, value: Number, least: int) -> None:
    if not least <= value < float("inf") or value % 1:
        raise UserError(f"{name}={value!r} must be a whole number of at least {least}")


def _check_word(what: str, word: str, allowed: tuple[str, ...]) -> None:
    if word not in allowed:
        raise UserError(
            f"{what} {word!r} is not known; it is one of {', '.join(allowed)}"
            f"{near_miss(word, allowed)}"
        )


for _rule in get_args(GroupRule):
    register(
        f"distinct_{_rule}",
        partial(
            lambda rule, E, k, n, G, M, r=None: expected_distinct(E, k, n, G, M, rule, r), _rule
        ),
    )
