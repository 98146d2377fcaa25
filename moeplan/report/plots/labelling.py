"""Names beside points, placed so that none lies on another name, a marker or the frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moeplan.report.plots.sheet import renderer
from moeplan.report.style import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

__all__ = ["label_points"]

_ANGLES = (20, 160, -20, -160, 60, -60, 120, -120, 0, 180, 90, -90)
_DISTANCES = (9, 16, 26, 38, 52, 68, 86, 106, 128, 152, 180)  # points from marker to name
_MARKER = 6.0  # points from a marker's middle that names keep off
_GAP = 1.5  # points between names


def label_points(
    ax: Axes,
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    obstacles: Sequence[Bbox] = (),
    size: float = 8.5,
) -> list[Any]:
    """Write each name beside its point (data coordinates), with a line to it where it is far.

    The layout of the figure must be final. `obstacles` are boxes in pixels that names keep off.
    Names take the nearest free place around their point, the most crowded points first; where no
    place is free, the one that covers least. Returns the annotations in the order of the points.
    """
    scale = ax.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    middles = [tuple(ax.transData.transform(point)) for point in points]
    taken = [*obstacles, *(_around(x, y, _MARKER * scale) for x, y in middles)]
    out: list[Any] = [None] * len(names)
    for index in _crowded_first(middles):
        text = ax.annotate(
            names[index],
            points[index],
            (0, 0),
            textcoords="offset points",
            ha="left",
            va="bottom",
            size=size,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.3, "alpha": 0.85},
            arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.5, "shrinkB": 3},
        )
        text.set_in_layout(False)
        box = text.get_window_extent(renderer(ax))
        wide, tall = box.width / scale, box.height / scale
        offset = _place(ax, middles[index], (wide, tall), taken, scale)
        text.set_position(offset)
        assert text.arrow_patch is not None
        text.arrow_patch.set_visible(math.hypot(*_nearest((0, 0), offset, (wide, tall))) > 13)
        taken.append(_box(middles[index], offset, (wide, tall), scale))
        out[index] = text
    return out


def _crowded_first(middles: Sequence[Any]) -> list[int]:
    """Indices of the points, those with near neighbours first."""

    def nearest(index: int) -> float:
        others = (math.dist(middles[index], m) for i, m in enumerate(middles) if i != index)
        return min(others, default=0.0)

    return sorted(range(len(middles)), key=lambda i: (round(nearest(i), 3), i))


def _place(
    ax: Axes,
    middle: Any,
    extent: tuple[float, float],
    taken: Sequence[Bbox],
    scale: float,
) -> tuple[float, float]:
    """Offset in points of the name's lower left corner: the nearest free place, or the best."""
    best, least = (0.0, 0.0), math.inf
    for distance in _DISTANCES:
        for angle in _ANGLES:
            offset = _offset(distance, math.radians(angle), extent)
            box = _box(middle, offset, extent, scale)
            covered = _outside(box, ax.bbox) * 4 + sum(_common(box, other) for other in taken)
            if covered == 0:
                return offset
            if covered < least:
                best, least = offset, covered
    return best


def _offset(distance: float, angle: float, extent: tuple[float, float]) -> tuple[float, float]:
    """Lower left corner of a name whose near edge is `distance` from the point, at an angle."""
    wide, tall = extent
    x, y = distance * math.cos(angle), distance * math.sin(angle)
    return x - wide * (1 - math.cos(angle)) / 2, y - tall * (1 - math.sin(angle)) / 2


def _nearest(
    point: tuple[float, float], corner: tuple[float, float], extent: tuple[float, float]
) -> tuple[float, float]:
    """The vector from a point to the nearest place of a box."""
    return (
        max(corner[0] - point[0], 0, point[0] - corner[0] - extent[0]),
        max(corner[1] - point[1], 0, point[1] - corner[1] - extent[1]),
    )


def _box(
    middle: Any, offset: tuple[float, float], extent: tuple[float, float], scale: float
) -> Bbox:
    from matplotlib.transforms import Bbox

    x, y = middle[0] + (offset[0] - _GAP) * scale, middle[1] + (offset[1] - _GAP) * scale
    return Bbox.from_bounds(x, y, (extent[0] + 2 * _GAP) * scale, (extent[1] + 2 * _GAP) * scale)


def _around(x: float, y: float, half: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(x - half, y - half, x + half, y + half)


def _common(one: Bbox, other: Bbox) -> float:
    """Area that two boxes share."""
    wide = min(one.x1, other.x1) - max(one.x0, other.x0)
    tall = min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(max(0.0, wide) * max(0.0, tall))


def _outside(box: Bbox, frame: Bbox) -> float:
    """Area of a box that lies outside a frame."""
    return _common(box, box) - _common(box, frame)
