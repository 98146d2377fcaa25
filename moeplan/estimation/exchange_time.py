"""Expected time of an expert-parallel exchange: measured kernels inside a node, the NIC across.

Dispatch and combine follow each other and nothing else runs meanwhile; what a framework hides under
compute is a layout's to say (`moeplan layout --overlap`).
"""

from __future__ import annotations

from typing import Any

from moeplan.arrays import anywhere
from moeplan.calibration.collectives import ASSUMED_BAND
from moeplan.calibration.fabric import Fabric, fabric_of
from moeplan.cluster.hardware import Gpu
from moeplan.estimation.all_to_all import AllToAll, Traffic
from moeplan.quantity import Number, Quantity, Source, derive, plain

__all__ = ["exchange_time"]

LATENCY = 3.33e-6  # seconds; NVLink, 64 bytes (arXiv 2505.09343)


def exchange_time(
    gpu: Gpu, result: AllToAll, node: Number, layers: Quantity, *, kernels: bool
) -> dict[str, Any] | None:
    """Bounds of the seconds of dispatch and combine in one MoE layer, and of all layers.

    node: GPUs of one node. kernels: measured kernels send each row once to a GPU or node; without
    them every copy travels, and the links' rates are all that is known. None where a link that is
    needed has no bandwidth on file.
    """
    fabric = fabric_of(gpu) if kernels else None
    across = anywhere(result.dispatch.other_nodes.value > 0)
    if gpu.scale_up_bandwidth is None or (across and gpu.nic_bandwidth is None):
        return None
    out: dict[str, Any] = {
        name: _seconds(gpu, fabric, name, traffic, node)
        for name, traffic in (("dispatch", result.dispatch), ("combine", result.combine))
    }
    for name, passes in (("forward_step", 1), ("training_step", 2)):
        out[name] = {
            bound: derive(
                f"{passes}*layers*(dispatch + combine)", "s", layers=layers,
                dispatch=out["dispatch"][bound], combine=out["combine"][bound],
            )
            for bound in ("lower", "expected", "upper")
        }  # fmt: skip
    measured = fabric is not None and fabric.measured and not across
    return {**out, "origin": "measured" if measured else "assumed", "source": _source(fabric)}


def _seconds(
    gpu: Gpu, fabric: Fabric | None, name: str, traffic: Traffic, node: Number
) -> dict[str, Quantity]:
    """Bounds of one direction: bytes at the links' full rates, and by kernels' tables."""
    up, nic = gpu.scale_up_bandwidth, gpu.nic_bandwidth
    assert up is not None
    nic = up if nic is None else nic  # without a NIC nothing goes there
    near, far = traffic.in_node, traffic.other_nodes
    lower = derive("max(near/up, far/nic)", "s", near=near, far=far, up=up, nic=nic)
    if fabric is None:
        start = Quantity.given(LATENCY, "s", "latency", Source("assumed", "one fabric latency"))
        low, high = ASSUMED_BAND
        inside, outside = derive("near/up", "s", near=near, up=up), derive(
            "far/nic", "s", far=far, nic=nic)  # fmt: skip
    else:
        about, why = next(iter(fabric.sources().items()))
        where = Source("measured" if fabric.measured else "assumed", f"{about} ({why})")
        start = Quantity.given(fabric.fixed(name), "s", "fixed", where)
        low, high = ASSUMED_BAND if anywhere(far.value > 0) else fabric.band
        took = fabric.exchange(name, near.value, plain(node))
        rate = Quantity.given(fabric.ratio, "", "ratio", where)
        inside = Quantity(took, "s", formula=f"table of {name} at bytes*ratio",
                          inputs={"bytes": near, "ratio": rate})  # fmt: skip
        outside = derive("far/nic + fixed*min(1, far)", "s", far=far, nic=nic, fixed=start)
    given: dict[str, Any] = {"inside": inside, "outside": outside, "slowest": traffic.slowest}
    more = " + latency" if fabric is None else ""
    if more:
        given["latency"] = start
    expected = derive(f"max(inside, outside)*slowest{more}", "s", **given)
    return {
        "lower": derive("max(floor, low*expected)", "s", floor=lower, low=_factor(low),
                        expected=expected),
        "expected": expected,
        "upper": derive(f"high*((inside + outside)*slowest{more})", "s", high=_factor(high),
                        **given),
    }  # fmt: skip


def _factor(value: float) -> Quantity:
    text = f"{value:.4g}"
    return Quantity(float(text), "", formula=text, note="edge of the band")


def _source(fabric: Fabric | None) -> str:
    if fabric is None:
        return "links' bandwidths in full and one latency: no kernel was measured for this"
    return "; ".join(f"{about} ({why})" for about, why in fabric.sources().items())
