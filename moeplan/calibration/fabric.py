"""Times of collectives and of expert-parallel exchanges on the links of a GPU.

Inside a scale-up domain: NCCL's and DeepEP's measured tables of 8 H200 on NVLink. Another NVLink
GPU takes the same tables with bytes in proportion to its bandwidth: fixed costs stay, and the
origin is assumed. Across domains, where nobody measured a table of this project: the exchange
kernel's fixed cost, one fabric latency, and bytes over the bandwidth of the NIC, in parallel with
what moves inside the domains (the upper bound has one after the other).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from moeplan.arrays import is_array, larger, pick
from moeplan.calibration.collectives import ASSUMED_BAND, Network, network
from moeplan.cluster.hardware import Gpu
from moeplan.quantity import Number

__all__ = ["Fabric", "fabric_of"]

MEASURED = "h200-sxm"
NVLINK = 450e9  # B/s of the GPU that was measured, one way
GROUP = 8  # GPUs that were measured together


@dataclass(frozen=True)
class Fabric:
    """Measured tables, for a GPU whose links are `1 / ratio` times as fast as the measured one's.

    measured: the tables are this GPU's own.
    """

    ratio: Number
    measured: bool

    @cached_property
    def nccl(self) -> Network:
        """NCCL's collectives."""
        return network("h200-nccl")

    @cached_property
    def deepep(self) -> Network:
        """DeepEP's dispatch and combine."""
        return network("h200-deepep")

    @property
    def origin(self) -> str:
        """Measured, or assumed."""
        return "measured" if self.measured else "assumed"

    @property
    def band(self) -> tuple[float, float]:
        """Factors on the expected time: errors on sizes left out, or the assumed band."""
        return (self.nccl.low, self.nccl.high) if self.measured else ASSUMED_BAND

    def seconds(self, op: str, size: Number, n: Number) -> Number:
        """Seconds of a collective among n GPUs of one domain; bytes as NCCL's tests count them."""
        return self.nccl.seconds(op, n, size * self.ratio, "nvlink")

    def exchange(self, name: str, sent: Number, inside: Number) -> Number:
        """Seconds of a dispatch or combine: a GPU sends `sent` bytes to `inside` − 1 others.

        The table counts the rows that stay with a GPU too.
        """
        whole = sent * inside / larger(inside - 1, 1)
        took = self.deepep.seconds(name, GROUP, whole * self.ratio, "nvlink")
        return pick(sent > 0, took, 0.0 * took)

    def fixed(self, name: str) -> float:
        """Seconds that a dispatch or combine takes however little it moves."""
        return float(self.deepep.seconds(name, GROUP, 1.0, "nvlink"))

    def sources(self) -> dict[str, str]:
        """What the times come from."""
        low, high = self.band
        about = (
            f"collectives inside a domain: {self.nccl.name} and {self.deepep.name}, {self.origin}"
        )
        why = f"{self.nccl.source}; {self.deepep.source}"
        if not self.measured:
            times = "" if is_array(self.ratio) else f" times {self.ratio:.3g},"
            why += f"; bytes{times} by the ratio of link bandwidths"
        return {
            f"{about}, {low - 1:+.0%} to {high - 1:+.0%}": why,
            "messages across domains, assumed": "bytes over the NIC's bandwidth and one latency a "
            "step; exchanges with the fixed cost of DeepEP's kernels",
        }


def fabric_of(gpu: Gpu) -> Fabric | None:
    """The measured tables for a GPU; None where its links are no NVLink."""
    if gpu.interconnect != "nvlink" or gpu.scale_up_bandwidth is None:
        return None
    own = gpu.scale_up_bandwidth.value
    measured = gpu.id == MEASURED and not is_array(own) and own == NVLINK
    return Fabric(NVLINK / own, measured)
