"""numpy, loaded when somebody brings an array: the estimate of one design starts without it.

Importing numpy takes longer than everything else in a small command together.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
else:

    class _Numpy:
        """Stands for the module until one of its names is used."""

        def __getattr__(self, name: str) -> Any:
            found = getattr(import_module("numpy"), name)
            setattr(self, name, found)  # found without this function from now on
            return found

    np = _Numpy()

__all__ = ["is_array", "np"]


def is_array(value: Any) -> bool:
    """Whether a value is a numpy array; without numpy loaded, nothing is."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)
