"""Bytes and floor times of messages on a cluster's two link tiers.

A group of n GPUs lies with g of them in one scale-up domain (NVLink) and reaches the others over
its NICs. Ring collectives cross a domain's border once per ring and run one ring per NIC, so a
group's rate is the smaller of a GPU's scale-up rate and g NICs. Times are floors: bandwidth as
measured where the cluster names a measured figure, else the datasheet's, and one fabric latency
per step of a tree. Measured tables of collectives may take their place (`Collectives`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias

from moeplan.arrays import is_array, np
from moeplan.calc import calc
from moeplan.cluster.hardware import Cluster
from moeplan.cluster.layout import Order
from moeplan.errors import UserError
from moeplan.quantity import Number, Quantity, register

__all__ = ["Collective", "Collectives", "Network", "largest_part", "strides"]

Collective: TypeAlias = Literal["all_reduce", "all_gather", "reduce_scatter", "send"]

_SENT: dict[str, str] = {
    "all_reduce": "2*(n - 1)/n*size",
    "all_gather": "(n - 1)/n*size",
    "reduce_scatter": "(n - 1)/n*size",
    "send": "1*size",
}
"""Bytes that each of n GPUs sends for a buffer of `size` bytes (gathered size for gathers)."""


class Collectives(Protocol):
    """Measured times of collectives inside a domain, in the place of the floor."""

    @property
    def band(self) -> tuple[float, float]:
        """Factors on the expected time between which measured ones lie."""

    def seconds(self, op: str, size: Number, n: Number) -> Number:
        """Seconds for `size` bytes over n GPUs of one domain."""

    def exchange(self, name: str, sent: Number, inside: Number) -> Number:
        """Seconds of a dispatch or combine of `sent` bytes among `inside` GPUs of one domain."""

    def fixed(self, name: str) -> float:
        """Seconds that a dispatch or combine takes at least."""

    def sources(self) -> dict[str, str]:
        """What was measured or assumed, and where that is from."""


def largest_part(n: Number, most: Number) -> Number:
    """The largest divisor of n that is at most `most`: GPUs of a group in one domain."""
    if is_array(n) or is_array(most):
        n, most = np.broadcast_arrays(np.asarray(n, np.float64), np.asarray(most, np.float64))
        parts = np.ceil(n / np.maximum(most, 1))
        while (uneven := n % parts != 0).any():
            parts = np.where(uneven, parts + 1, parts)
        return n / parts
    parts = max(1, -(-int(n) // max(1, int(most))))
    while int(n) % parts:
        parts += 1
    return int(n) // parts


def _log2(n: Number) -> Number:
    if is_array(n):
        return np.ceil(np.log2(np.maximum(n, 1)))
    return math.ceil(math.log2(max(n, 1)))


def _pick(test: Number, yes: Number, no: Number) -> Number:
    if is_array(test):
        return np.where(test, yes, no)
    return yes if test else no


register("largest_part", largest_part)
register("steps", _log2)
register("pick", _pick)


def _first(*found: Quantity | None) -> Quantity | None:
    return next((q for q in found if q is not None), None)


def strides(order: Order, values: dict[str, Number]) -> dict[str, Number]:
    """Ranks between neighbours of each group, from the order of ranks.

    dense: the group over which dense weights are copied (cp and dp together).
    """
    tp, cp, dp, pp = (values[name] for name in ("tp", "cp", "dp", "pp"))
    outer = order == "tp-cp-ep-pp-dp"
    return {
        "tp": 1,
        "cp": tp,
        "etp": 1,
        "ep": values["etp"],
        "dense": tp,
        "edp": values["expert"] * (pp if outer else 1),
        "pp": tp * cp * (1 if outer else dp),
    }


@dataclass(frozen=True, eq=False)
class Network:
    """The two link tiers of a cluster, with floor times of messages on them."""

    domain: Quantity
    up: Quantity
    out: Quantity | None
    up_latency: Quantity
    out_latency: Quantity
    collectives: Collectives | None = None

    @classmethod
    def of(cls, cluster: Cluster, collectives: Collectives | None = None) -> Network:
        """The network of a cluster: measured bandwidths where it has them.

        Raises `UserError` where more than one domain is asked for and no NIC is known, and for
        several GPUs without a link.
        """
        up = _first(cluster.scale_up_effective, cluster.scale_up_bandwidth)
        out = _first(cluster.scale_out_effective, cluster.scale_out_bandwidth)
        many = cluster.gpus.value > cluster.domain_size.value
        if up is None and cluster.gpus.value == 1:
            up = cluster.gpu.memory_bandwidth  # one GPU: what it sends itself never counts
        if up is None:
            raise UserError(f"{cluster.id}: no bandwidth between its GPUs is on file")
        if out is None and many:
            raise UserError(
                f"{cluster.id}: {cluster.gpus.value} GPUs are more than one domain of "
                f"{cluster.domain_size.value}, and no NIC of {cluster.gpu.id} is on file"
            )
        return cls(
            cluster.domain_size,
            up,
            out,
            cluster.scale_up.latency,
            cluster.scale_out.latency,
            collectives,
        )

    def inside(self, n: Any, stride: Any) -> Any:
        """GPUs of a group of n, `stride` ranks apart, that lie in one domain."""
        domain = self._plain("domain", n)
        return calc("largest_part(n, domain//stride)", n=n, domain=domain, stride=stride)

    @property
    def band(self) -> tuple[float, float]:
        """Factors on a collective's time; none without measured tables."""
        return (1.0, 1.0) if self.collectives is None else self.collectives.band

    @property
    def line(self) -> Network:
        """The same without tables: for messages so large that only bandwidth counts."""
        return replace(self, collectives=None)

    def plain(self, name: str, bare: bool = True) -> Any:
        """An own figure: its bare number, or the quantity for explanations."""
        found = getattr(self, name)
        if found is None:
            found = self.up  # one domain only: never chosen
        return found.value if bare else found

    def _plain(self, name: str, like: Any) -> Any:
        return self.plain(name, not isinstance(like, Quantity))

    def sent(self, op: Collective, size: Any, n: Any) -> Any:
        """Bytes that each GPU sends."""
        return calc(_SENT[op], "B", size=size, n=n)

    def seconds(self, op: Collective, size: Any, n: Any, inside: Any) -> Any:
        """Seconds of one collective of `size` bytes over n GPUs; 0 for one GPU.

        Where there are measured tables, they answer inside a domain.
        """
        floor = self.floor(op, size, n, inside)
        if self.collectives is None or op == "send":
            return floor
        plain = [x.value if isinstance(x, Quantity) else x for x in (size, n, inside)]
        found: Any = self.collectives.seconds(op, *plain[:2])
        if isinstance(n, Quantity):
            found = Quantity(
                found, "s", formula=f"table of {op}", inputs={"size": size, "n": n},
                note="; ".join(next(iter(self.collectives.sources().items()))),
            )  # fmt: skip
        return calc(
            "pick(inside >= n, table, line)", "s", inside=inside, n=n, table=found, line=floor
        )

    def floor(self, op: Collective, size: Any, n: Any, inside: Any) -> Any:
        """Latency and bytes over the bandwidth of the links; 0 for one GPU, and for nothing."""
        rate = calc(
            "pick(inside >= n, up, min(up, inside*out))"
            if op != "send"
            else "pick(inside >= n, up, out)",
            "B/s",
            inside=inside,
            n=n,
            up=self._plain("up", n),
            out=self._plain("out", n),
        )
        latency = calc(
            "pick(inside >= n, near, far)*steps(n)",
            "s",
            inside=inside,
            n=n,
            near=self._plain("up_latency", n),
            far=self._plain("out_latency", n),
        )
        sent = self.sent(op, size, n)
        formula = "pick((n > 1) & (sent > 0), sent/rate + latency, 0)"
        if op == "send":
            formula = "sent/rate + latency"
        return calc(formula, "s", n=n, sent=sent, rate=rate, latency=latency)
