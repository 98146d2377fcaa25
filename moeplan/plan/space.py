"""What a search covers: degrees that may be pinned, and kinds that are looped over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from moeplan.cluster.layout import Layout, Order, Overlap, Recompute, Schedule, Split
from moeplan.errors import UserError, near_miss

__all__ = ["PINNED", "SERVED", "Space"]

PINNED = ("tp", "cp", "pp", "vpp", "dp", "ep", "etp", "zero", "microbatch")
"""Degrees of training layouts that may be pinned."""

SERVED = ("tp", "pp", "dp", "ep", "etp")
"""Degrees of serving instances that may be pinned."""

_NATURAL: dict[str, tuple[Overlap, ...]] = {"dualpipe": ("dualpipe",)}


@dataclass(frozen=True)
class Space:
    """Degrees' allowed values (all legal ones where a degree is not named), and kinds.

    overlaps: assumptions about messages under compute, all of them tried with every schedule;
    None: "usual", and "dualpipe" for DualPipe, which is made for it. recompute: "none",
    "selective", "selective:norm+activation", "full".
    """

    pins: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    schedules: Sequence[Schedule] = get_args(Schedule)
    recompute: Sequence[str] = get_args(Recompute)
    overlaps: Sequence[Overlap] | None = None
    sp: Sequence[bool] = (True,)
    orders: Sequence[Order] = get_args(Order)[:1]
    splits: Sequence[Split] = ("even",)

    def __post_init__(self) -> None:
        for name, values in self.pins.items():
            if name not in PINNED:
                raise UserError(
                    f"{name!r} cannot be pinned: it is one of {', '.join(PINNED)}"
                    f"{near_miss(name, PINNED)}"
                )
            if not values:
                raise UserError(f"{name} is pinned to nothing: give values such as 1,2,4")

    def allows(self, name: str, number: int) -> bool:
        """Whether a degree may have this value."""
        return name not in self.pins or number in self.pins[name]

    def overlaps_of(self, schedule: Schedule) -> Sequence[Overlap]:
        """Overlap assumptions that are tried with a schedule."""
        if self.overlaps is not None:
            return self.overlaps
        return _NATURAL.get(schedule, ("usual",))

    def kinds(self) -> Iterator[Layout]:
        """Layouts with every combination of kinds, and degrees that mean nothing."""
        for sp in self.sp:
            for order in self.orders:
                for split in self.splits:
                    for schedule in self.schedules:
                        for overlap in self.overlaps_of(schedule):
                            yield from self._recomputed(sp, order, split, schedule, overlap)

    def _recomputed(
        self, sp: bool, order: Order, split: Split, schedule: Schedule, overlap: Overlap
    ) -> Iterator[Layout]:
        for word in self.recompute:
            layout = Layout.parse(f"recompute={word}")
            yield Layout(
                sp=sp, order=order, split=split, schedule=schedule, overlap=overlap,
                recompute=layout.recompute, selective=layout.selective,
            )  # fmt: skip
