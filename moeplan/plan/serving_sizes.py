"""Sizes of instances that are searched: within a domain, and whole domains where NICs join them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from moeplan.cluster.hardware import Gpu
from moeplan.errors import UserError
from moeplan.plan.grid import domain_of
from moeplan.plan.options import gpus_of

__all__ = ["Sizes", "instance_sizes", "sizes_of", "within_domain"]


@dataclass(frozen=True)
class Sizes:
    """GPUs of the instances that are searched, and in sentences what was left out, and why."""

    searched: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @property
    def most(self) -> int:
        """GPUs of the largest."""
        return max(self.searched)


def sizes_of(device: Gpu, asked: Sequence[int] | None, largest: int | None, usual: int) -> Sizes:
    """Sizes that --instance (`asked`) or --largest name, else all up to `usual` and a domain.

    `UserError` for a size that is no machine, and where none of those asked for can be searched.
    """
    domain = domain_of(device)
    if device.scale_up_bandwidth is None:
        return _alone(device, asked)
    if asked is None:
        return _up_to(device, domain, largest, usual)
    if bad := [n for n in asked if n > domain and n % domain]:
        raise UserError(
            f"--instance is {bad[0]}, and must be at most a domain of {domain} GPUs or a "
            "multiple of it"
        )
    wide = [n for n in sorted(asked) if n > domain and device.nic_bandwidth is None]
    if not wide:
        return Sizes(tuple(sorted(asked)))
    given = f"--instance {','.join(map(str, wide))}"
    kept = tuple(n for n in sorted(asked) if n <= domain)
    if not kept:
        raise UserError(
            f"{given}: {within_domain(device)}, so that an instance has at most {gpus_of(domain)}; "
            f"a larger one needs nic_bandwidth in a TOML file of the GPU"
        )
    return Sizes(kept, (f"left out of {given}: {within_domain(device)}",))


def _up_to(device: Gpu, domain: int, largest: int | None, usual: int) -> Sizes:
    most = max(domain, usual) if largest is None else largest
    if device.nic_bandwidth is not None or most <= domain:
        return Sizes(tuple(instance_sizes(domain, most)))
    note = f"instances of at most {gpus_of(domain)}: {within_domain(device)}"
    return Sizes(tuple(instance_sizes(domain, domain)), (note,))


def _alone(device: Gpu, asked: Sequence[int] | None) -> Sizes:
    """One GPU, where nothing is known that would join several."""
    why = f"no bandwidth between GPUs of {device.id} is on file"
    if asked is not None and 1 not in asked:
        raise UserError(
            f"--instance {','.join(map(str, asked))}: {why}, so that an instance has one GPU; a "
            "larger one needs scale_up_bandwidth in a TOML file of the GPU"
        )
    return Sizes((1,), (f"instances of one GPU: {why}",))


def within_domain(device: Gpu) -> str:
    """Why an instance of this GPU stays in one domain."""
    return f"no NIC of {device.id} is on file that would join domains of {domain_of(device)}"


def instance_sizes(domain: int, most: int) -> Iterator[int]:
    """Sizes of instances up to `most`: any within a domain, then whole domains."""
    yield from range(1, min(domain, most + 1))
    yield from range(domain, most + 1, domain)
