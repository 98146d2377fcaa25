"""GPUs, prices and named machines from the data files; every number keeps its source.

A user's own file has the fields of ``data/gpus.toml`` (docs/add-a-gpu.md) and is named by its path.
"""

from __future__ import annotations

import datetime as dt
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from moeplan.cluster.datafile import check_keys, datasheet, names, table
from moeplan.errors import UserError, near_miss
from moeplan.quantity import Quantity, Source
from moeplan.units import Kind, parse

__all__ = [
    "NUMBER_FORMATS",
    "PRICE_KINDS",
    "Cluster",
    "Fabric",
    "Gpu",
    "Price",
    "all_in_power",
    "cluster",
    "clusters",
    "describable",
    "gpu",
    "gpus",
    "price",
    "prices",
]

NUMBER_FORMATS = ("tf32", "bf16", "fp16", "fp8", "fp4", "int8")
"""Number formats that a GPU can have a peak for."""

PRICE_KINDS = ("rental", "list", "capacity-block", "paper", "neocloud", "hyperscaler")
"""Kinds of price, the one that `price` prefers first: what a customer pays, then costs."""

_VENDOR = re.compile(r"^(?:nvidia|tesla|geforce|amd|instinct|google|aws)-")


class _Figure(NamedTuple):
    kind: Kind
    unit: str


# Figures of a GPU: attribute, key in the file and symbol in formulas are one name.
_FIGURES = {
    "memory_bytes": _Figure("bytes", "B"),
    "memory_reported": _Figure("bytes", "B"),
    "memory_bandwidth": _Figure("bandwidth", "B/s"),
    "scale_up_bandwidth": _Figure("bandwidth", "B/s"),
    "scale_up_domain": _Figure("count", ""),
    "nic_bandwidth": _Figure("bandwidth", "B/s"),
    "watts": _Figure("power", "W"),
    "sm_count": _Figure("count", ""),
    "l2_bytes": _Figure("bytes", "B"),
}
_TEXTS = ("name", "vendor", "interconnect", "source", "note")
_KEYS = (*_TEXTS, "checked", "unverified", "verified", "peak", *_FIGURES)


@dataclass(frozen=True, eq=False)
class Gpu:
    """One accelerator as its vendor describes it; a figure that is not known is None.

    Bandwidths are per GPU and one way (B/s), peaks dense (FLOP/s). `memory_bytes` is the figure
    of the datasheet and `memory_reported` what the driver shows: an H200 of "141 GB" shows
    143771 MiB, which is 150.8e9 bytes. `scale_up_domain` counts the GPUs on one fast fabric.
    """

    id: str
    name: str
    vendor: str
    interconnect: str
    memory_bytes: Quantity
    memory_reported: Quantity | None
    memory_bandwidth: Quantity
    peaks: Mapping[str, Quantity]
    scale_up_bandwidth: Quantity | None
    scale_up_domain: Quantity | None
    nic_bandwidth: Quantity | None
    watts: Quantity | None
    sm_count: Quantity | None
    l2_bytes: Quantity | None
    source: str
    checked: dt.date | None
    note: str
    unverified: Mapping[str, str]

    def peak(self, number_format: str) -> Quantity:
        """The dense peak (FLOP/s) of a number format, or `UserError` where there is no unit."""
        found = self.peaks.get(number_format)
        if found is None:
            raise UserError(
                f"{self.id} has no peak for {number_format!r}, it has {', '.join(self.peaks)}"
                + near_miss(number_format, self.peaks)
            )
        return found


@dataclass(frozen=True, eq=False)
class Price:
    """Dollars per GPU-hour, and which kind of figure that is (`PRICE_KINDS`)."""

    gpu: str
    kind: str
    per_hour: Quantity


@dataclass(frozen=True, eq=False)
class Fabric:
    """Links that join GPUs: seconds for a small message, and across leaf switches."""

    id: str
    name: str
    latency: Quantity
    latency_far: Quantity | None


@dataclass(frozen=True, eq=False)
class Cluster:
    """`gpus` GPUs in domains of `domain_size` on the scale-up fabric, joined by scale-out.

    Bandwidths are per GPU and one way (B/s): the datasheets', and `_effective` those that somebody
    measured. What is not known is None.
    """

    id: str
    name: str
    gpu: Gpu
    gpus: Quantity
    domain_size: Quantity
    host_size: Quantity
    scale_up: Fabric
    scale_out: Fabric
    scale_up_bandwidth: Quantity | None
    scale_out_bandwidth: Quantity | None
    scale_up_effective: Quantity | None
    scale_out_effective: Quantity | None


def gpu(name: str) -> Gpu:
    """The GPU with this id, alias or driver name, or the one in a user's TOML file.

    A path ends with ``.toml``; where the file has several GPUs, add ``#id``.
    Raises `UserError` for an unknown name or a bad file.
    """
    if name.partition("#")[0].endswith(".toml"):
        return _gpu_from_file(name)
    key = _normal(name)
    found = key if key in _gpu_ids() else table("gpus", "aliases").get(key)
    if found is None:
        raise UserError(
            f"no GPU {name!r}: 'moeplan hardware' lists the known ones, and a path to a TOML file "
            f"describes another{near_miss(key, _gpu_names())}"
        )
    return _builtin(found)


def gpus() -> tuple[Gpu, ...]:
    """Every GPU of the data file, in its order."""
    return tuple(_builtin(name) for name in _gpu_ids())


def prices(gpu_id: str) -> tuple[Price, ...]:
    """All prices on file for a GPU, in the order of `PRICE_KINDS`; none for a user's own GPU."""
    row = _price_row(gpu_id)
    return tuple(
        Price(gpu_id, kind, _priced(row[kind], gpu_id, kind)) for kind in PRICE_KINDS if kind in row
    )


def price(gpu_id: str, kind: str | None = None) -> Price:
    """The price of a GPU of this kind, or the first there is in the order of `PRICE_KINDS`.

    `UserError` for a kind that is not known, and where no such price of the GPU is on file.
    """
    if kind is not None and kind not in PRICE_KINDS:
        raise UserError(
            f"no price kind {kind!r}: use one of {', '.join(PRICE_KINDS)}"
            + near_miss(kind, PRICE_KINDS)
        )
    known = prices(gpu_id)
    for found in known:
        if kind in (None, found.kind):
            return found
    have = f"only {', '.join(p.kind for p in known)}" if known else "give one, such as '$2/h'"
    wanted = f"{kind} price" if kind else "price"
    raise UserError(f"prices.toml has no {wanted} for {gpu_id!r}: {have}")


def all_in_power(gpu_id: str) -> Quantity | None:
    """Watts of one GPU with its share of host, network and cooling, where known."""
    row = _price_row(gpu_id).get("all_in_power")
    return _priced(row, gpu_id, "all_in_power") if row else None


def clusters() -> tuple[Cluster, ...]:
    """Every named machine of the data file."""
    return tuple(cluster(name) for name in names("clusters", "machine."))


@cache
def cluster(name: str) -> Cluster:
    """A named machine such as ``gb200-nvl72``, or ``<gpu>x<count>`` such as ``h800x2048``.

    A count may be less than one scale-up domain or a multiple of it. `UserError` for anything
    else; a GPU of a user's file works as ``PATH.tomlx16``.
    """
    key, listed = _normal(name), names("clusters", "machine.")
    if key in listed:
        row = table("clusters", f"machine.{key}")
        return _cluster(key, row, gpu(row["gpu"]), row["gpus"], datasheet(row))
    sized = re.fullmatch(r"(.+)x([1-9]\d*)", name.strip())
    if sized is None or key in _gpu_names():
        if re.fullmatch(r".+x0+", name.strip()):
            raise UserError(f"machine {name!r}: a count is 1 or more, such as {key.rstrip('0')}8")
        likely = (f"{key}x8",) if key in _gpu_names() else listed
        raise UserError(
            f"no machine {name!r}: write <gpu>x<count>, or one of {', '.join(listed)}"
            + near_miss(key, likely)
        )
    device, count = gpu(sized[1]), int(sized[2])
    rows = (table("clusters", f"machine.{machine}") for machine in listed)
    same = next((row for row in rows if row["gpu"] == device.id), None) or _unlisted(device)
    row = {**same, "name": f"{count} x {device.name}"}
    own = sized[1] if ".toml" in sized[1] else device.id  # so that the name is read back
    return _cluster(f"{own}x{count}", row, device, count, Source("user", name))


def describable(device: Gpu) -> bool:
    """Whether machines of a GPU can be described: a fabric on file joins its GPUs."""
    return device.interconnect in names("clusters", "fabric.")


def _unlisted(device: Gpu) -> Mapping[str, Any]:
    """A machine of a GPU that no row names: hosts of 8 on the GPU's own interconnect."""
    known = names("clusters", "fabric.")
    if device.id in _gpu_ids() and not describable(device):
        others = ", ".join(g.id for g in gpus() if not describable(g))
        raise UserError(
            f"{device.id} is on file with its figures only, and no machine of GPUs joined by "
            f"{device.interconnect} is described: every GPU of 'moeplan hardware' can be planned "
            f"for but {others}"
        )
    if not describable(device):
        raise UserError(
            f"{device.id}: machines joined by {device.interconnect!r} are not described, known "
            f"are {', '.join(known)}{near_miss(device.interconnect, known)}"
        )
    why = f"no machine with {device.id} is on file"
    plain = {"host_size": 8, "scale_up": device.interconnect, "scale_out": "infiniband"}
    return {**plain, "unverified": why}


def _cluster(
    name: str, row: Mapping[str, Any], device: Gpu, count: int, counted: Source
) -> Cluster:
    domain = device.scale_up_domain
    if domain is None:
        why = Source("assumed", f"{device.id} has no fast fabric: PCIe servers of 8 GPUs")
        domain = Quantity.given(8, "", "scale_up_domain", why)
    if count < domain.value:
        domain = Quantity.given(count, "", "scale_up_domain", counted)
    elif count % domain.value:
        raise UserError(
            f"machine {name!r}: {count} GPUs do not fill domains of {domain.value} ({device.id}); "
            f"use fewer than {domain.value} or a multiple of it"
        )

    def measured(key: str) -> Quantity | None:
        if key not in row:
            return None
        value = parse(row[key], "bandwidth", where=f"clusters.toml, {name}, {key}")
        return Quantity.given(value, "B/s", key, Source("measured", row["effective_source"]))

    return Cluster(
        id=name,
        name=row["name"],
        gpu=device,
        gpus=Quantity.given(count, "", "gpus", counted),
        domain_size=domain,
        host_size=Quantity.given(row["host_size"], "", "host_size", datasheet(row)),
        scale_up=_fabric(row["scale_up"]),
        scale_out=_fabric(row["scale_out"]),
        scale_up_bandwidth=device.scale_up_bandwidth,
        scale_out_bandwidth=device.nic_bandwidth,
        scale_up_effective=measured("scale_up_effective"),
        scale_out_effective=measured("scale_out_effective"),
    )


@cache
def _fabric(name: str) -> Fabric:
    row = table("clusters", f"fabric.{name}")

    def seconds(key: str) -> Quantity:
        value = parse(row[key], "time", where=f"clusters.toml, {name}, {key}")
        return Quantity.given(value, "s", key, datasheet(row, key))

    far = seconds("latency_far") if "latency_far" in row else None
    return Fabric(name, row["name"], seconds("latency"), far)


@cache
def _gpu_ids() -> tuple[str, ...]:
    return tuple(name for name in names("gpus") if name != "aliases")


def _gpu_names() -> tuple[str, ...]:
    return (*_gpu_ids(), *table("gpus", "aliases"))


def _normal(name: str) -> str:
    """'NVIDIA GeForce RTX 4090' and 'rtx_4090' are both written rtx-4090."""
    text = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    while (bare := _VENDOR.sub("", text)) != text:
        text = bare
    return text


@cache
def _builtin(name: str) -> Gpu:
    return _gpu_from_row(name, table("gpus", name), f"gpus.toml, {name}")


def _gpu_from_file(name: str) -> Gpu:
    path, _, wanted = name.partition("#")
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the GPU file {path!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    rows = {key: row for key, row in tables.items() if isinstance(row, dict) and key != "aliases"}
    if wanted and wanted not in rows:
        have = ", ".join(rows)
        raise UserError(f"{path}: no GPU {wanted!r}, it has {have}{near_miss(wanted, rows)}")
    if not wanted and len(rows) != 1:
        have = f"{len(rows)} tables ({', '.join(rows)})" if rows else "no table such as [my-gpu]"
        raise UserError(f"{path}: one GPU is needed and it has {have}; choose with '{path}#id'")
    chosen = wanted or next(iter(rows))
    return _gpu_from_row(chosen, rows[chosen], f"{path}, {chosen}", user=True)


def _gpu_from_row(name: str, row: Mapping[str, Any], where: str, *, user: bool = False) -> Gpu:
    _check_row(row, where, user=user)

    def read(key: str, text: Any, figure: _Figure, symbol: str) -> Quantity:
        value = parse(text, figure.kind, where=f"{where}, {key}")
        if user:
            source = Source("user", where)
        elif key == "memory_reported":
            source = Source("measured", "as the driver reports it")
        else:
            source = datasheet(row, key)
        return Quantity.given(value, figure.unit, symbol, source, row.get("note", ""))

    figures = {
        key: read(key, row[key], figure, key) if key in row else None
        for key, figure in _FIGURES.items()
    }
    peaks = {
        fmt: read(fmt, row["peak"][fmt], _Figure("flops", "FLOP/s"), f"peak_{fmt}")
        for fmt in NUMBER_FORMATS
        if fmt in row["peak"]
    }
    return Gpu(
        id=name,
        name=row.get("name", name),
        vendor=row.get("vendor", ""),
        interconnect=row.get("interconnect", "nvlink" if "scale_up_domain" in row else "pcie"),
        peaks=peaks,
        source=row.get("source", where),
        checked=row.get("checked"),
        note=row.get("note", ""),
        unverified=row.get("unverified", {}),
        **figures,  # type: ignore[arg-type]  # _check_row saw that the required ones are there
    )


def _check_row(row: Mapping[str, Any], where: str, *, user: bool) -> None:
    check_keys(row, _KEYS, where)
    needed = ["memory_bytes", "memory_bandwidth", "peak"]
    needed += [] if user else ["name", "vendor", "interconnect", "source", "checked"]
    for key in needed:
        if key not in row:
            raise UserError(f"{where}: the key {key!r} is missing")
    for key in _TEXTS:
        if not isinstance(row.get(key, ""), str):
            raise UserError(f"{where}, {key}: {row[key]!r} is given and a text is needed")
    if not isinstance(row["peak"], dict) or not row["peak"]:
        raise UserError(f"{where}, peak: give a table such as {{ bf16 = '989 TFLOP/s' }}")
    check_keys(row["peak"], NUMBER_FORMATS, f"{where}, peak")


def _price_row(gpu_id: str) -> Mapping[str, Any]:
    return table("prices", gpu_id) if gpu_id in names("prices") else {}


def _priced(row: Mapping[str, Any], gpu_id: str, key: str) -> Quantity:
    source = datasheet(table("prices", f"sources.{row['source']}"))
    where = f"prices.toml, {gpu_id}, {key}"
    if key == "all_in_power":
        return Quantity.given(
            parse(row["power"], "power", where=where), "W", "all_in_power", source
        )
    dollars = parse(row["per_hour"], "price", where=where)
    return Quantity.given(dollars, "$/h", "price_per_hour", source)
