"""numpy, loaded when somebody brings an array: the estimate of one design starts without it.

Importing numpy takes longer than everything else in a small command together. What numbers and
arrays call by different names has one name here, so that a formula is written once for both.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections.abc import Collection, Sequence
from importlib import import_module
from operator import itemgetter
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

__all__ = [
    "anywhere",
    "ceil",
    "exp",
    "floor",
    "is_array",
    "is_one_of",
    "larger",
    "log2",
    "np",
    "pick",
    "real",
    "root",
    "smaller",
    "stretch",
]


def is_array(value: Any) -> bool:
    """Whether a value is a numpy array; without numpy loaded, nothing is."""
    if type(value) is float or type(value) is int:  # by far the most, and this is called a lot
        return False
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def real(x: Any) -> Any:
    """A number or array as float64."""
    return x.astype(np.float64) if is_array(x) else float(x)


def larger(a: Any, b: Any) -> Any:
    """Element by element the larger of two."""
    if is_array(a) or is_array(b):
        return np.maximum(a, b)
    return a if a > b else b


def smaller(a: Any, b: Any) -> Any:
    """Element by element the smaller of two."""
    if is_array(a) or is_array(b):
        return np.minimum(a, b)
    return a if a < b else b


def pick(test: Any, yes: Any, no: Any) -> Any:
    """`yes` where the test holds, else `no`; both have been worked out."""
    return np.where(test, yes, no) if is_array(test) else (yes if test else no)


def anywhere(test: Any) -> bool:
    """Whether a test holds for any element."""
    return bool(test.any()) if is_array(test) else bool(test)


def is_one_of(x: Any, values: Collection[Any]) -> Any:
    """Element by element, whether x is among the values."""
    return np.isin(x, list(values)) if is_array(x) else x in values


def stretch(rows: Sequence[tuple[float, ...]], x: Any) -> Any:
    """Of rows that each begin with the start of a stretch, in rising order, the one that holds x.

    Returns its numbers; for an array x an array for each of them. Before the first counts as in it.
    """
    if not is_array(x):
        return rows[max(bisect_right(rows, x, key=itemgetter(0)) - 1, 0)]
    columns = np.array(rows).T
    return columns[:, np.maximum(np.searchsorted(columns[0], x, side="right") - 1, 0)]


def ceil(x: Any) -> Any:
    """Rounded up."""
    return np.ceil(x) if is_array(x) else math.ceil(x)


def floor(x: Any) -> Any:
    """Rounded down."""
    return np.floor(x) if is_array(x) else math.floor(x)


def root(x: Any) -> Any:
    """The square root."""
    return np.sqrt(x) if is_array(x) else math.sqrt(x)


def exp(x: Any) -> Any:
    """e to the power of x."""
    return np.exp(x) if is_array(x) else math.exp(x)


def log2(x: Any) -> Any:
    """The logarithm to base 2."""
    return np.log2(x) if is_array(x) else math.log2(x)
