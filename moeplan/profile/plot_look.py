"""How plots of records look: one colour and marker per op, sheets with a footer of devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from moeplan._version import __version__
from moeplan.profile.record import Case, Record
from moeplan.report.plots.sheet import Sheet

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

__all__ = [
    "OpLook",
    "RecordSheet",
    "count_of",
    "handle",
    "measured_cases",
    "numbered",
    "op_look",
    "patch",
]


class OpLook(NamedTuple):
    """Colour and hatch of an op's bars, and its marker."""

    colour: str
    hatch: str
    marker: str


# the palette of the components (Okabe and Ito); a hatch tells shared from routed experts
OPS: dict[str, OpLook] = {
    "router": OpLook("#CC79A7", "", "X"),
    "select": OpLook("#F0E442", "", "v"),
    "permute": OpLook("#56B4E9", "", "<"),
    "latent_down": OpLook("#FFFFFF", "....", "h"),
    "experts_gate_up": OpLook("#E69F00", "", "s"),
    "experts_up": OpLook("#E69F00", "", "s"),
    "experts_activation": OpLook("#999999", "", "o"),
    "experts_down": OpLook("#D55E00", "", "D"),
    "experts": OpLook("#E69F00", "\\\\\\\\", "8"),  # of a backend that runs them as one
    "latent_up": OpLook("#FFFFFF", "xxxx", "H"),
    "combine": OpLook("#0072B2", "", ">"),
    "shared_gate_up": OpLook("#E69F00", "////", "P"),
    "shared_up": OpLook("#E69F00", "////", "P"),
    "shared_activation": OpLook("#999999", "////", "p"),
    "shared_down": OpLook("#D55E00", "////", "d"),
    "shared_gate": OpLook("#009E73", "////", "*"),
    "shared_add": OpLook("#009E73", "", "^"),
}
OTHER = OpLook("#000000", "", ".")


def op_look(name: str) -> OpLook:
    """The look of an op; one without its own is a black dot."""
    return OPS.get(name, OTHER)


class RecordSheet(Sheet):
    """A sheet whose footer names records instead of estimates."""

    def __init__(self, records: Sequence[Record], width: float, height: float) -> None:
        from matplotlib.figure import Figure

        self.records = records
        self.figure: Figure = Figure(figsize=(width, height), layout="constrained")
        self._body = height

    def _footer(self) -> str:
        devices = " / ".join(dict.fromkeys(_device(record) for record in self.records))
        torch = " / ".join(dict.fromkeys(f"torch {r.versions.torch}" for r in self.records))
        dates = sorted({record.started[:10] for record in self.records})
        when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        return f"{devices} · {torch} · measured {when} · moeplan {__version__}"


def _device(record: Record) -> str:
    units = "thread" if record.device.kind == "cpu" else "multiprocessor"
    return f"{record.device.name} ({count_of(record.device.units, units)})"


def count_of(number: int, thing: str) -> str:
    """A number of things, in words."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def measured_cases(records: Sequence[Record]) -> list[Case]:
    """The cases with figures, record by record."""
    return [case for record in records for case in record.measured()]


def numbered(records: Sequence[Record]) -> str:
    """Which record a number in the plot stands for; empty where there is but one."""
    if len(records) == 1:
        return ""
    runs = (f"{n} {record.name} ({record.started[:10]})" for n, record in enumerate(records, 1))
    return f" Numbers: {', '.join(runs)}."


def handle(label: str, **how: Any) -> Artist:
    """An entry of a legend: a line or marker."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **how)


def patch(label: str, look_: OpLook) -> Artist:
    """An entry of a legend: a filled field."""
    from matplotlib.patches import Patch

    return Patch(
        facecolor=look_.colour, hatch=look_.hatch, edgecolor="#222222", linewidth=0.4, label=label
    )
