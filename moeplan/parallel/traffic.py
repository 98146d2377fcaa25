"""Messages of one layer and microbatch: operation, group, bytes, times, and seconds on the links.

Tensor parallel, Megatron style: with sequence parallelism the input of column-divided rows is
gathered and the output of row-divided ones is reduce-scattered; the backward pass mirrors both and
gathers the input once more for the weight gradient. Without it one all-reduce follows the
row-divided rows, and one their gradients. Context parallel: keys and values go round a ring, with
their gradients backwards. Expert parallel: `moeplan.estimation.all_to_all`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from moeplan.calc import calc, value
from moeplan.cluster.network import Collective, Network
from moeplan.estimation.all_to_all import Traffic, all_to_all
from moeplan.model.ffn import MoE
from moeplan.parallel.divide import Divided
from moeplan.parallel.stages import Piece
from moeplan.quantity import Quantity, Source

__all__ = ["ExchangeFormats", "Message", "collective", "messages"]

ACTIVATION_BYTES = 2


class ExchangeFormats(NamedTuple):
    """How rows travel to experts and back."""

    dispatch: str
    combine: str
    policy: Any
    imbalance: Any


@dataclass(frozen=True)
class Message:
    """One kind of message of a layer: forward and backward times, per microbatch.

    group: tp, cp, ep, etp, pp, dense or edp. size: bytes of the buffer; sent: bytes that a GPU
    sends, and how many of them over each link tier. lower, seconds, upper: of one message.
    """

    op: str
    group: str
    size: Any
    n: Any
    inside: Any
    up: Any
    out: Any
    lower: Any
    seconds: Any
    upper: Any
    forward: Any = 1
    backward: Any = 1


def collective(
    net: Network,
    op: Collective,
    group: str,
    size: Any,
    n: Any,
    inside: Any,
    forward: Any,
    backward: Any,
    *,
    tiers: bool = True,
) -> Message:
    """A collective, or a message to the next rank of a group. tiers: count bytes by link tier."""
    up: Any = 0
    out: Any = 0
    if tiers:
        sent = net.sent(op, size, n)
        # of a ring, one hop in `inside` leaves the domain
        out = calc("pick(inside >= n, 0, sent/inside)", "B", inside=inside, n=n, sent=sent)
        up = calc("sent - out", "B", sent=sent, out=out)
    seconds = net.seconds(op, size, n, inside)
    low, high = (
        seconds if factor == 1 else calc(f"{factor:.4g}*seconds", "s", seconds=seconds)
        for factor in net.band
    )
    return Message(op, group, size, n, inside, up, out, low, seconds, high, forward,
                   backward)  # fmt: skip


def messages(
    own: Divided, piece: Piece, net: Network, formats: ExchangeFormats, *, training: bool
) -> list[Message]:
    """All messages of one layer of a piece and one microbatch; counts are 0 where n is 1."""
    return [
        *_tensor(own, piece, net),
        *(_context(own, piece, net) if training else ()),
        *(m for moe in own.moes(piece) for m in _experts(own, moe, net, formats)),
    ]


def _tensor(own: Divided, piece: Piece, net: Network) -> list[Message]:
    d = own.degrees
    inside = net.inside(d.tp, 1)
    gathered, summed = own.tensor_messages(piece)
    out = []

    def add(op: Collective, elements: Any, forward: int, backward: int) -> None:
        size = calc("width*elements", "B", width=ACTIVATION_BYTES, elements=elements)
        out.append(collective(net, op, "tp", size, d.tp, inside, forward, backward))

    for elements in gathered:
        if d.sp:
            add("all_gather", elements, 1, 1)
            add("reduce_scatter", elements, 0, 1)
        else:
            add("all_reduce", elements, 0, 1)
    for elements in summed:
        if d.sp:
            add("reduce_scatter", elements, 1, 0)
            add("all_gather", elements, 0, 1)
        else:
            add("all_reduce", elements, 1, 0)
    return out


def _context(own: Divided, piece: Piece, net: Network) -> list[Message]:
    d = own.degrees
    inside = net.inside(d.cp, d.tp)
    hops = calc("cp - 1", "", cp=d.cp)
    back = calc("2*(cp - 1)", "", cp=d.cp)
    out = []
    for elements in own.key_values(piece):
        size = calc("width*elements", "B", width=ACTIVATION_BYTES, elements=elements)
        out.append(collective(net, "send", "cp", size, d.cp, inside, hops, back))
    return out


def _experts(own: Divided, moe: MoE, net: Network, formats: ExchangeFormats) -> list[Message]:
    d = own.degrees
    inside = net.inside(d.ep, d.etp)
    symbols = dict(moe.symbols if d.explained else moe.values)
    found = all_to_all(
        own.routed_tokens,
        symbols[moe.width],
        symbols["E"],
        symbols["k"],
        d.ep,
        inside,
        real=symbols.get("r"),
        n_group=moe.routing.groups,
        topk_group=moe.routing.group_limit,
        rule=moe.routing.group_score if moe.routing.groups > 1 else "uniform",
        dispatch=formats.dispatch,
        combine=formats.combine,
        policy=formats.policy,
        imbalance=formats.imbalance,
    )
    back = found.backward()
    plain = not d.explained
    out = [
        _exchange(
            net,
            name,
            getattr(result, name),
            d.ep,
            inside,
            plain,
            forward,
            backward,
            low_latency=formats.policy == "copies",
        )
        for result, forward, backward in ((found, 1, 0), (back, 0, 1))
        for name in ("dispatch", "combine")
    ]
    return out + _expert_tensor(own, moe, net, symbols)


def _expert_tensor(own: Divided, moe: MoE, net: Network, symbols: dict[str, Any]) -> list[Message]:
    """What the GPUs of an expert's parts share, gathered and then summed: tokens where experts
    are whole on the group (ep = 1), else the (token, expert) rows that the exchange brought.
    """
    d = own.degrees
    size = calc(
        "width*T*D*etp*pick(ep > 1, each, 1)",
        "B",
        ep=d.ep,
        width=ACTIVATION_BYTES,
        T=own.routed_tokens,
        each=symbols[moe.each],
        D=symbols[moe.width],
        etp=d.etp,
    )
    inside = net.inside(d.etp, 1)
    return [
        collective(net, op, "etp", size, d.etp, inside, 1, 1)
        for op in ("all_gather", "reduce_scatter")
    ]


def _by_kernel(
    net: Network, name: str, links: dict[str, Any], inside: Any, slowest: Any
) -> tuple[Any, Any]:
    """Expected and most seconds of an exchange by measured kernels: inside the domain by their
    table, across domains by the NIC with the kernel's fixed cost; the fullest GPU counts.
    """
    assert net.collectives is not None
    found: Any = net.collectives.exchange(name, value(links["a"]), value(inside))
    fixed: Any = net.collectives.fixed(name)
    if isinstance(links["a"], Quantity):
        note = "; ".join(next(iter(net.collectives.sources().items())))
        found = Quantity(found, "s", formula=f"table of {name}", inputs={"bytes": links["a"]},
                         note=note)  # fmt: skip
        fixed = Quantity.given(fixed, "s", "fixed", Source("measured", note))
    across = calc("pick(b > 0, fixed + latency + b/out, 0*b)", "s", fixed=fixed,
                  b=links["b"], out=links["out"], latency=links["latency"])  # fmt: skip
    given = {"near": found, "across": across, "slowest": slowest}
    return (
        calc("max(near, across)*slowest", "s", **given),
        calc(f"{net.band[1]:.4g}*(near + across)*slowest", "s", **given),
    )


def _exchange(
    net: Network,
    name: str,
    traffic: Traffic,
    n: Any,
    inside: Any,
    plain: bool,
    *times: int,
    low_latency: bool = False,
) -> Message:
    def bare(quantity: Quantity) -> Any:
        return quantity.value if plain else quantity

    up, out, slowest = bare(traffic.in_node), bare(traffic.other_nodes), bare(traffic.slowest)
    rates = {name: net.plain(name, plain) for name in ("up", "out", "up_latency", "out_latency")}
    latency = calc(
        "pick(n > 1, pick(inside >= n, near, far), 0)",
        "s",
        n=n,
        inside=inside,
        near=rates["up_latency"],
        far=rates["out_latency"],
    )
    links = {"a": up, "b": out, "up": rates["up"], "out": rates["out"], "latency": latency}
    lower = calc("max(a/up, b/out) + latency", "s", **links)
    size = bare(traffic.total_sent)
    if net.collectives is not None and not low_latency:
        seconds, upper = _by_kernel(net, name, links, inside, slowest)
        return Message(name, "ep", size, n, inside, up, out, lower, seconds, upper, *times)
    seconds = calc("max(a/up, b/out)*slowest + latency", "s", slowest=slowest, **links)
    upper = calc("(a/up + b/out)*slowest + latency", "s", slowest=slowest, **links)
    return Message(name, "ep", size, n, inside, up, out, lower, seconds, upper, *times)
