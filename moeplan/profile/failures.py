"""What an error of torch means for a run: memory is out, the device is lost, or neither."""

from __future__ import annotations

import torch

__all__ = ["DeviceLost", "is_device_lost", "is_out_of_memory"]


class DeviceLost(Exception):
    """The device does not answer any more: a new process is needed."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator" in text
        or "can't allocate memory" in text
        or "out of memory" in text
        or "CUBLAS_STATUS_ALLOC_FAILED" in text
    )


def is_device_lost(error: BaseException) -> bool:
    """Whether an error leaves the CUDA context unusable; a library's refusal (cuBLAS) does not."""
    lost = getattr(torch, "AcceleratorError", None)
    if lost is not None and isinstance(error, lost):
        return True
    text = str(error)
    if "CUBLAS_STATUS_" in text and "EXECUTION_FAILED" not in text:
        return False
    return isinstance(error, RuntimeError) and ("CUDA error" in text or "CUDA driver error" in text)
