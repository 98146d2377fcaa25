"""What a run measures, and in which order: cases of one model, or a suite of many.

The suite `gpu` brings home what one card can tell in at most 12 minutes, the most valuable first:
the five presets forward, then the calibration grid, then backward, then other backends, then other
routings. A run that ends early has lost the least valuable part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from moeplan.errors import UserError, near_miss
from moeplan.load import load_preset
from moeplan.model.ffn import MoE
from moeplan.model.spec import ModelSpec
from moeplan.presets import presets
from moeplan.profile.assignment import Assignment
from moeplan.profile.record import Direction

__all__ = ["FIVE", "GRID", "SIZES", "SUITES", "Job", "Part", "block_of_model", "one_model", "suite"]

SIZES = {
    "cuda": (1, 16, 64, 512, 4096, 16384),
    "cpu": (1, 16, 64, 256),
}
"""Tokens of a pass that are measured where nobody asks for others."""

QUICK_SIZES = {"cuda": (1, 64, 4096), "cpu": (1, 8)}

FIVE = ("qwen3-30b-a3b", "olmoe-1b-7b", "mixtral-8x7b", "gpt-oss-120b", "deepseek-v3")

GRID = (
    # D, F, E, k: apart from the five presets, which are what a calibration is tested on
    (1024, 512, 32, 8),
    (2048, 1408, 64, 6),
    (2560, 1536, 64, 6),
    (3072, 1024, 256, 8),
    (4096, 1536, 128, 8),
    (4096, 6400, 16, 2),
    (5120, 1536, 160, 6),
    (5120, 8192, 16, 1),
    (7168, 2048, 64, 8),
)
GRID_SIZES = (1, 8, 32, 128, 512, 2048, 8192)
CPU_GRID = (
    (512, 256, 32, 8),
    (768, 384, 16, 4),
    (1024, 768, 8, 2),
    (1024, 2048, 8, 2),
    (1280, 640, 64, 6),
    (1536, 512, 16, 2),
    (2048, 512, 32, 4),
    (2048, 768, 8, 1),
)
"""Shapes that one core computes within the seconds of a grid; no preset is among them."""
CPU_GRID_SIZES = (1, 4, 16, 64, 256)
GRID_SECONDS = 120.0  # of wall time; the GPU itself works for less than 90 of them
OTHER_SECONDS = 20.0  # of another backend on one model
GPU_SECONDS = 660.0  # of 12 minutes; the rest is for starting torch and building layers


@dataclass(frozen=True, eq=False)
class Job:
    """A case to measure."""

    subject: str
    source: str
    block: MoE
    tokens: int
    routing: Assignment
    backend: str
    dtype: str
    direction: Direction

    @property
    def key(self) -> tuple[str, int, str, str, str, str]:
        """The key of the case in a record."""
        return (
            self.subject, self.tokens, self.routing.text, self.backend, self.dtype, self.direction,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Part:
    """The jobs of one record. seconds: at most so long, whatever is left of the whole."""

    name: str
    jobs: tuple[Job, ...]
    seconds: float | None = None
    notes: tuple[str, ...] = field(default=())


def block_of_model(spec: ModelSpec) -> tuple[MoE, tuple[str, ...]]:
    """The MoE block that is measured, and what to say where a model has several kinds.

    Raises UserError for a dense model.
    """
    kinds = [(group, block) for group, block in spec.blocks(MoE)]
    if not kinds:
        raise UserError(f"{spec.name}: a dense model has no MoE layer to measure")
    group, block = kinds[0]
    same = (block.values, block.routing)
    others = [g.name for g, b in kinds[1:] if (b.values, b.routing) != same]
    if not others:
        return block, ()
    return block, (f"measured: {group.name}; not measured: {', '.join(others)}",)


def one_model(
    spec: ModelSpec,
    tokens: Sequence[int],
    routing: Assignment,
    backends: Sequence[str],
    dtype: str,
    directions: Sequence[Direction],
) -> Part:
    """The cases of one model: forward before backward, small sizes before large ones."""
    block, notes = block_of_model(spec)
    jobs = tuple(
        Job(spec.name, spec.source or spec.name, block, size, routing, backend, dtype, direction)
        for direction in directions
        for backend in backends
        for size in tokens
    )
    return Part(spec.name, jobs, notes=notes)


Plan = Callable[[Sequence[int], Sequence[str], str, Sequence[Direction]], list[Part]]


def _named(
    names: Iterable[str],
    tokens: Sequence[int],
    routing: Assignment,
    backends: Sequence[str],
    dtype: str,
    directions: Sequence[Direction],
    seconds: float | None = None,
) -> list[Part]:
    parts = (
        one_model(load_preset(name), tokens, routing, backends, dtype, directions) for name in names
    )
    return [replace(part, seconds=seconds) for part in parts]


def _gpu(
    tokens: Sequence[int], backends: Sequence[str], dtype: str, directions: Sequence[Direction]
) -> list[Part]:
    """Five presets and the grid on the default backend, then the others where there are any.

    The reference, against which each backend is checked before it is timed, is not timed itself.
    """
    main, *others = backends
    others = [name for name in others if name != "reference"]
    uniform = Assignment("uniform")
    large, few = [s for s in tokens if s >= 64], [s for s in tokens if s in (64, 4096)]
    parts = _named(FIVE, tokens, uniform, [main], dtype, ["forward"])
    parts.append(_grid(main, dtype))
    if "forward+backward" in directions:
        parts += _named(FIVE, tokens, uniform, [main], dtype, ["forward+backward"])
    for other in others:  # one that does not run or is slow takes nothing from the next
        parts += _named(FIVE, few, uniform, [other], dtype, ["forward"], seconds=OTHER_SECONDS)
    for routing in (Assignment("zipf", 1.2), Assignment("balanced")):
        parts += _named(FIVE, large, routing, [main], dtype, ["forward"])
    return parts


def _grid(
    backend: str,
    dtype: str,
    shapes: Sequence[tuple[int, int, int, int]] = GRID,
    sizes: Sequence[int] = GRID_SIZES,
    skew: int = 512,
) -> Part:
    """The calibration grid. skew: the size that is routed unevenly, so that a fit sees that."""
    jobs = []
    for d, f, e, k in shapes:
        name = f"grid-d{d}-f{f}-e{e}-k{k}"
        block = MoE(D=d, E=e, k=k, F=f)
        for size in sizes:
            skewed = size == skew
            routing = Assignment("zipf", 1.2) if skewed else Assignment("uniform")
            jobs.append(
                Job(name, "calibration grid", block, size, routing, backend, dtype, "forward")
            )
    return Part("calibration-grid", tuple(jobs), seconds=GRID_SECONDS)


def _all(
    tokens: Sequence[int], backends: Sequence[str], dtype: str, directions: Sequence[Direction]
) -> list[Part]:
    """Every preset with an MoE layer, the five first."""
    moe = [p.name for p in presets() if load_preset(p.name).moe is not None]
    names = [*(n for n in FIVE if n in moe), *(n for n in moe if n not in FIVE)]
    return _named(names, tokens, Assignment("uniform"), backends, dtype, directions)


def _grid_alone(
    tokens: Sequence[int], backends: Sequence[str], dtype: str, directions: Sequence[Direction]
) -> list[Part]:
    return [_grid(backends[0], dtype)]


def _grid_cpu(
    tokens: Sequence[int], backends: Sequence[str], dtype: str, directions: Sequence[Direction]
) -> list[Part]:
    return [_grid(backends[0], dtype, CPU_GRID, CPU_GRID_SIZES, skew=64)]


SUITES: dict[str, Plan] = {"gpu": _gpu, "all": _all, "grid": _grid_alone, "grid-cpu": _grid_cpu}
"""gpu: five presets, calibration grid, backward, other routings. all: every preset. grid: what
`moeplan calibrate` fits to, on a GPU; grid-cpu: the same at a CPU's sizes."""


def suite(
    name: str,
    tokens: Sequence[int],
    backends: Sequence[str],
    dtype: str,
    directions: Sequence[Direction],
) -> list[Part]:
    """The parts of a suite in order. Raises UserError for an unknown one."""
    if name not in SUITES:
        allowed = ", ".join(SUITES)
        raise UserError(f"--suite {name!r}: allowed are {allowed}{near_miss(name, SUITES)}")
    return SUITES[name](tokens, backends, dtype, directions)
