"""The sheet that every plot stands on: title, what it says, legend, conditions, footer."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moeplan._version import __version__
from moeplan.estimation.estimate import Estimate
from moeplan.report.compare import labels, setting, single
from moeplan.report.style import INK, RC

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["Page", "Sheet", "brief", "few", "log_axis", "look", "renderer", "short_names", "used"]

_LINE = 0.17  # inches of a line of small text
_SMALL = 7.5
_LONGEST = 30  # characters of a name at an axis or in a legend


@contextmanager
def look() -> Iterator[None]:
    """Draw in this project's style, whatever the user's matplotlib settings are."""
    import matplotlib.style

    with matplotlib.style.context(["default", dict(RC)]):
        yield


def renderer(drawn: Axes | Figure) -> Any:
    """What measures text on the figure that holds an artist."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = drawn.get_figure(root=True)
    assert figure is not None
    return FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]


def used(estimates: Sequence[Estimate], name: str) -> str:
    """A setting's value, or its values where the estimates differ."""
    return " / ".join(dict.fromkeys(setting(e, name) for e in estimates))


def short_names(estimates: Sequence[Estimate]) -> list[str]:
    """Names as they stand at axes and in legends: long ones without their middle, if that tells
    them apart; the footer has them in full."""
    names = [_drawable(name) for name in labels(single(estimates))]
    cut = [n if len(n) <= _LONGEST else f"{n[: _LONGEST - 12]}…{n[-11:]}" for n in names]
    return cut if len(set(cut)) == len(set(names)) else names


def _drawable(name: str) -> str:
    """A name in letters that the font has, and not taken for a hidden one by legends."""
    known = "".join(c if ord(c) < 0x2E80 and c.isprintable() else "?" for c in name)
    return f" {known}" if known.startswith("_") else known


def few(found: Sequence[tuple[float, str]]) -> str:
    """Texts with their numbers: all of them up to three, else those of least and most."""
    if len(found) <= 3:
        return "; ".join(text for _, text in found)
    least, most = min(found), max(found)
    return f"least {least[1]}; most {most[1]}"


def log_axis(
    axis: Axis,
    values: Sequence[float],
    write: Callable[[float], str],
    margin: float = 1.6,
    most: int = 4,
) -> None:
    """A logarithmic axis around the values, with at most `most` named ticks at round numbers."""
    from matplotlib.axis import XAxis
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    low, high = min(values) / margin, max(values) * margin
    if isinstance(axis, XAxis):
        axis.axes.set_xscale("log")
        axis.axes.set_xlim(low, high)
    else:
        axis.axes.set_yscale("log")
        axis.axes.set_ylim(low, high)
    axis.set_major_locator(FixedLocator(_ticks(low, high, most)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(lambda value, _: brief(write(value)))


def _ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers between low and high, evenly spread over the decades."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        found = [d * 10.0**e for e in decades for d in digits if low <= d * 10.0**e <= high]
        if len(found) <= most:
            return found
    step = math.ceil(len(found) / most)
    return found[::step]


def brief(text: str) -> str:
    """A written number without trailing zeros: `100.0 GB` is `100 GB`."""
    number, _, unit = text.partition(" ")
    if "." in number:
        number = number.rstrip("0").rstrip(".")
    return f"{number} {unit}".strip()


def _dashed(keys: Sequence[Artist]) -> bool:
    """Whether a legend needs room for a line's gaps on both sides of its marker."""
    styles = (getattr(key, "get_linestyle", lambda: "")() for key in keys)
    return any(style not in ("", "-", "None", "none") for style in styles)


class Page:
    """A figure in the making: make axes on `figure`, then `finish` it.

    Height is that of the axes in inches; title, legend and footer get their own room besides.
    """

    def __init__(self, width: float, height: float, footer: str = "") -> None:
        from matplotlib.figure import Figure

        self.figure: Figure = Figure(figsize=(width, height), layout="constrained")
        self._body = height
        self._foot = footer

    def finish(
        self, title: str, finding: str, conditions: str = "", keys: Sequence[Artist] = ()
    ) -> Figure:
        """Write title, finding, legend of `keys` and footer around the axes, and fix the layout."""
        figure, width = self.figure, float(self.figure.get_figwidth())
        said = self._wrapped(finding, 8.5)
        foot = self._wrapped(conditions, _SMALL) + self._wrapped(self._footer(), _SMALL)
        legend, tall = self._legend(keys)
        above = 0.45 + _LINE * len(said)
        below = 0.1 + _LINE * 0.85 * len(foot)
        height = above + self._body + tall + below
        figure.set_size_inches(width, height)
        left = 0.12 / width
        figure.text(left, 1 - 0.1 / height, title, va="top", weight="bold", size=11.5, gid="title")
        text: dict[str, Any] = {"va": "top", "color": INK, "linespacing": 1.3}
        figure.text(left, 1 - 0.36 / height, "\n".join(said), size=8.5, gid="finding", **text)
        figure.text(left, below / height, "\n".join(foot), size=_SMALL, gid="footer", **text)
        if legend is not None:
            legend.set_bbox_to_anchor((left, (below + tall) / height), figure.transFigure)
        engine = figure.get_layout_engine()
        assert engine is not None
        bottom = (below + tall) / height
        engine.set(rect=(0, bottom, 1, 1 - bottom - above / height))  # type: ignore[call-arg]
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        return figure

    def _legend(self, keys: Sequence[Artist]) -> tuple[Any, float]:
        """The legend in as many columns as the width holds, and its height in inches."""
        if not keys:
            return None, 0.0
        room = self.figure.bbox.width * 0.97
        for columns in range(len(keys), 0, -1):
            legend = self.figure.legend(
                handles=list(keys),
                loc="upper left",
                ncols=columns,
                borderaxespad=0,
                columnspacing=1.6,
                handlelength=4.4 if _dashed(keys) else 3.0,
                handleheight=1.1,
            )
            legend.set_in_layout(False)
            box = legend.get_window_extent(renderer(self.figure))
            if box.width <= room or columns == 1:
                return legend, box.height / self.figure.dpi + 0.05
            legend.remove()
        raise AssertionError("a legend of one column always ends the loop")

    def _wrapped(self, text: str, size: float) -> list[str]:
        """Text in lines that the sheet's width holds (DejaVu Sans is about 0.55 em wide)."""
        return textwrap.wrap(text, int(self.figure.get_figwidth() * 72 / (size * 0.545)) - 4)

    def _footer(self) -> str:
        """What stands at the bottom: what the figures are of, and the version."""
        return f"{self._foot} · moeplan {__version__}"


class Sheet(Page):
    """A page about estimates, which its names and its footer are of."""

    def __init__(self, estimates: Sequence[Estimate], width: float, height: float) -> None:
        super().__init__(width, height)
        self.estimates = single(estimates)
        self.names = short_names(estimates)

    def _footer(self) -> str:
        """Models, hardware, version, and how many inputs were assumed."""
        gpus = " / ".join(dict.fromkeys(f"{e.gpu.name} ({e.gpu.id})" for e in self.estimates))
        assumed = " + ".join(str(len(e.assumptions)) for e in self.estimates)
        models = ", ".join(_drawable(name) for name in labels(self.estimates))
        return f"{models} · {gpus} · moeplan {__version__} · assumed inputs: {assumed}"
