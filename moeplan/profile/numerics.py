"""How far a result is from what it should be."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["relative_error"]


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """‖got − wanted‖ / ‖wanted‖, in fp64; 1e30 where something is not finite.

    A gradient that is nought up to rounding (one expert a token, renormalised: the router's) is
    compared with the rounding of its dtype.
    """
    wanted64 = wanted.double()
    difference = float((got.double() - wanted64).norm())
    scale = max(float(wanted64.norm()), torch.finfo(got.dtype).eps * wanted.numel() ** 0.5)
    error = difference / scale
    return error if error == error and error < 1e30 else 1e30
