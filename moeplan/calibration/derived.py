"""Calibrations for GPUs and number formats without measurements, carried over by datasheet rates.

Rates of the tensor cores and of the caches beside them go with the peak rate, memory rates and the
bytes in flight with the memory bandwidth; fixed costs stay. The result is labelled assumed, and
its band is that of the origin squared (to the power of 1.5 for another number format): kernels that
are tuned for one chip reach less on another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from moeplan.calibration.optime import Device, device_of
from moeplan.calibration.store import Calibration, OpFit, calibration, names
from moeplan.cluster.hardware import Gpu, gpu
from moeplan.errors import UserError

__all__ = ["VENDORS", "carried", "for_gpu", "in_format", "of_gpu", "weight_only"]

VENDORS = ("NVIDIA", "AMD")
"""Whose GPUs run kernels in tiles as those that were measured do; others have no calibration."""

WIDER, FORMAT_WIDER = 2.0, 1.5
"""Exponents on the band: for another GPU, and for another number format."""
BITS = {"bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "fp4": 4}


def carried(found: Calibration, device: Device) -> Calibration:
    """A calibration for another device, by the ratio of the datasheets' rates."""
    why = f"{found.name}, times the ratio of datasheet rates of {device.id} and {found.device.id}"
    matrix, memory = device.matrix / found.device.matrix, device.memory / found.device.memory
    moved = _scaled(found, matrix, memory, WIDER, why)
    return replace(moved, name=f"{device.id} from {found.name}", device=device)


def in_format(found: Calibration, peak: float, bits: int) -> Calibration:
    """A matmul calibration for operands of `bits` bits at a peak of `peak` FLOP/s.

    Matrix rates, and those at which operands come from cache, grow with the peak. What a weight
    takes in memory is the points' to say (`weight_bytes`).
    """
    why = f"{found.name}, at a peak of {peak:.4g} FLOP/s and with operands of {bits} bits"
    moved = _scaled(found, peak / found.device.matrix, 1.0, FORMAT_WIDER, why)
    device = replace(found.device, matrix=peak)
    return replace(moved, name=f"{found.name} in {bits} bits", device=device)


def weight_only(found: Calibration, number_format: str) -> Calibration:
    """A matmul calibration where only weights are stored in fewer bits, which the GPU has no units
    for: kernels widen them and multiply as before."""
    why = f"{found.name}, with weights in {number_format} that are widened to bf16 on the way"
    moved = _scaled(found, 1.0, 1.0, FORMAT_WIDER, why)
    return replace(moved, name=f"{found.name}, {number_format} weights")


def _scaled(
    found: Calibration, matrix: float, memory: float, wider: float, why: str
) -> Calibration:
    ratio = {"matrix": matrix, "memory": memory, "none": 1.0}

    def scaled(fit: OpFit) -> OpFit:
        known = fit.model.constants
        constants = {n: v * ratio[known[n].scale] for n, v in fit.constants.items()}
        return replace(
            fit, constants=constants, origin="assumed", widen=fit.widen * wider, note=why
        )

    fits = {kind: scaled(fit) for kind, fit in found.fits.items()}
    return replace(found, fits=fits, source=why)


def for_gpu(name: str, number_format: str = "bf16") -> Mapping[str, Calibration]:
    """`of_gpu` of the GPU that `--gpu` takes by this name. Raises UserError for an unknown one."""
    return of_gpu(gpu(name), number_format)


def of_gpu(card: Gpu, number_format: str = "bf16") -> Mapping[str, Calibration]:
    """For each kind of op the calibration of a GPU: its own, or one carried over from another.

    number_format: of the matmuls' operands, of their weights only where the GPU has no unit for
    it. One with other rates than were measured gets its own by their ratio. Raises UserError for
    one of a vendor to whose GPUs nothing that was measured can be carried over.
    """
    if card.vendor not in VENDORS:
        raise UserError(
            f"{card.name} ({card.id}): no calibration is on file, and none can be carried over to "
            f"it, because only GPUs of {' and '.join(VENDORS)} run kernels like those measured; "
            "`moeplan estimate` gives the datasheet's floor"
        )
    peak = card.peaks[number_format].value if number_format in card.peaks else None
    return _derived(device_of(card), number_format, None if peak is None else float(peak))


@cache
def _derived(device: Device, number_format: str, peak: float | None) -> Mapping[str, Calibration]:
    """For a device with this peak of matmuls in a format, None where it has no unit for it."""
    shipped = [c for c in map(calibration, names()) if c.device.kind == "gpu"]
    own = [_at(c, device) for c in shipped if c.device.id == device.id]
    others = [carried(c, device) for c in shipped if c.device.id != device.id]
    out: dict[str, Calibration] = {}
    for found in (*own, *others):
        for kind in found.fits:
            out.setdefault(kind, found)
    bits = BITS.get(number_format, 16)
    for kind in ("moe", "gemm", "grouped"):
        if kind in out and bits < 16:
            if peak is None:
                out[kind] = weight_only(out[kind], number_format)
            else:
                out[kind] = in_format(out[kind], peak, bits)
    return out


def _at(found: Calibration, device: Device) -> Calibration:
    """A GPU's own calibration, if it had these rates: what if, with the band that was measured."""
    matrix, memory = device.matrix / found.device.matrix, device.memory / found.device.memory
    if matrix == memory == 1:
        return found
    why = (f"{found.name}, at {matrix:.3g} times the matmul peak and {memory:.3g} times the memory "
           "bandwidth")  # fmt: skip
    return replace(_scaled(found, matrix, memory, 1.0, why), device=device)
