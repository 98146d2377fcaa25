"""Degrees of many layouts on three axes, and numbers that vary along some of them.

What a row of a model costs depends on a few degrees: that of a dense row on (tp, cp, B), that of an
expert's row on (B/(cp·tp), ep, etp). With B/(cp·tp), (tp, cp) and (ep, etp) as axes, numpy's
broadcasting works each cost out once for each different value of what it depends on; sums of costs
stay apart by what they vary along (`Terms`) until they are looked up for some layouts (`Located`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moeplan.arrays import is_array, np

__all__ = ["DEGREES", "Axes", "Located", "Terms", "different"]

DEGREES = ("tp", "cp", "ep", "etp", "microbatch")
"""What a piece's cost depends on."""

_FEW = 1 << 14  # cells of axes that cost little, however few layouts there are
_TABLE = 1 << 22  # numbers up to which a table finds them faster than sorting
_DENSE = 4  # cells for each layout from which axes are no shorter way


class Terms:
    """A sum of numbers and arrays, one of each shape, that numbers may multiply."""

    __slots__ = ("arrays",)
    __array_ufunc__ = None  # an array leaves the sum with one to it

    def __init__(self, arrays: Mapping[tuple[int, ...], Any]) -> None:
        self.arrays = arrays

    @classmethod
    def of(cls, *parts: Any) -> Terms:
        """The sum of some parts, each a number, an array or itself a sum."""
        out: dict[tuple[int, ...], Any] = {}
        for part in parts:
            arrays = part.arrays if type(part) is Terms else {np.shape(part): part}
            for shape, array in arrays.items():
                out[shape] = out[shape] + array if shape in out else array
        return cls(out)

    def __add__(self, other: Any) -> Terms:
        return Terms.of(self, other)

    __radd__ = __add__

    def __mul__(self, factor: float) -> Terms:
        if is_array(factor):  # whose axes would be taken for the sum's
            return NotImplemented
        return Terms({shape: factor * array for shape, array in self.arrays.items()})

    __rmul__ = __mul__

    def __neg__(self) -> Terms:
        return -1 * self

    def __sub__(self, other: Any) -> Terms:
        return Terms.of(self, -other)


@dataclass(frozen=True, eq=False)
class Located:
    """Where some layouts lie on axes: their place on each."""

    at: tuple[Any, Any, Any]
    _flat: dict[tuple[int, ...], Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many layouts there are."""
        return len(self.at[0])

    def rows(self, some: Any) -> Located:
        """Some of the layouts."""
        first, second, third = (places.take(some) for places in self.at)
        return Located((first, second, third))

    def take(self, array: Any) -> Any:
        """The layouts' elements of an array over axes."""
        shape = array.shape
        if shape not in self._flat:
            place: Any = 0
            for size, at in zip(shape, self.at, strict=True):
                place = place * size + (at if size > 1 else 0)
            self._flat[shape] = place if is_array(place) else np.zeros(self.size, np.int64)
        return array.ravel().take(self._flat[shape])

    def wide(self, number: Any) -> Any:
        """A number for each layout: of sums and arrays over axes; others are what they are."""
        if type(number) is Terms:
            first, *others = map(self.wide, number.arrays.values() or (0,))
            for other in others:
                first = first + other
            return first
        return self.take(number) if is_array(number) and number.ndim == len(self.at) else number

    def together(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Sums as numbers and arrays of one shape: over axes where all vary along the same ones,
        else for each layout.
        """
        shapes = {
            shape
            for number in numbers.values()
            if type(number) is Terms
            for shape, array in number.arrays.items()
            if is_array(array)
        }
        if len(shapes) > 1:
            return {name: self.wide(number) for name, number in numbers.items()}
        return {
            name: sum(number.arrays.values()) if type(number) is Terms else number
            for name, number in numbers.items()
        }


@dataclass(frozen=True, eq=False)
class Axes:
    """Each different B/(cp·tp), (tp, cp) and (ep, etp) of some layouts, and where these lie.

    degrees: DEGREES and `share`, B/(cp·tp), as arrays of three dimensions. Where few of the axes'
    cells are layouts, every different layout has a place of its own on the first axis instead.
    """

    degrees: dict[str, Any]
    located: Located

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> Axes:
        """The axes of layouts with these DEGREES, arrays of one length."""
        tp, cp, ep, etp, batch = (np.asarray(columns[name], np.float64) for name in DEGREES)
        pairs, place = different(np.stack([batch, tp * cp]))
        share, first = np.unique(pairs[0] / pairs[1], return_inverse=True)
        share, first = _long(share), first[place]
        tensor, second = different(np.stack([tp, cp]))
        expert, third = different(np.stack([ep, etp]))
        tensor, expert = _long(tensor), _long(expert)
        cells = share.size * (tensor.shape[1] + expert.shape[1])
        if cells > max(_FEW, _DENSE * tp.size):
            return cls._alone(np.stack([tp, cp, ep, etp, batch]))
        tp, cp = tensor[:, None, :, None]
        ep, etp = expert[:, None, None, :]
        share = share.reshape(-1, 1, 1)
        whole = share * (tp * cp)
        whole[first, second, 0] = batch
        found = dict(zip((*DEGREES, "share"), (tp, cp, ep, etp, whole, share), strict=True))
        return cls(found, Located((first, second, third)))

    @classmethod
    def _alone(cls, keys: Any) -> Axes:
        found, place = different(keys)
        degrees = {
            name: column.reshape(-1, 1, 1) for name, column in zip(DEGREES, found, strict=True)
        }
        degrees["share"] = degrees["microbatch"] / (degrees["tp"] * degrees["cp"])
        zeros = np.zeros(place.size, np.int64)
        return cls(degrees, Located((place, zeros, zeros)))


def _long(values: Any) -> Any:
    """At least two of them, so that shapes tell what varies: sums are added up in one order."""
    return values if values.shape[-1] > 1 else np.repeat(values, 2, axis=-1)


def different(keys: Any) -> tuple[Any, Any]:
    """Different columns of whole numbers, and the place of each column among them."""
    code = np.zeros(keys.shape[1], dtype=np.int64)
    for row in keys:
        values, at = _places(row.astype(np.int64))
        code = code * len(values) + at
    codes, place = _places(code)
    first = np.empty(codes.size, dtype=np.int64)
    first[place[::-1]] = np.arange(code.size)[::-1]  # of equal ones the first stays
    return keys[:, first], place


def _places(numbers: Any) -> tuple[Any, Any]:
    """Different whole numbers from 0 on, in order, and the place of each among them."""
    most = int(numbers.max(initial=0))
    if most > _TABLE:
        values, at = np.unique(numbers, return_inverse=True)
        return values, at
    there = np.zeros(most + 1, dtype=bool)
    there[numbers] = True
    return np.flatnonzero(there), (np.cumsum(there) - 1)[numbers]
