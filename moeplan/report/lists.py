"""What the package knows: presets with their sizes, GPUs with their figures and prices."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from moeplan.cluster.hardware import Gpu, all_in_power, gpu, gpus, prices
from moeplan.errors import UserError, near_miss
from moeplan.estimation.parameters import active, count
from moeplan.load import load_preset
from moeplan.presets import Preset, names, presets
from moeplan.quantity import Quantity
from moeplan.report.families import kinds
from moeplan.report.tables import Column, Table
from moeplan.units import fmt_bytes, fmt_count, fmt_money, fmt_rate

__all__ = ["hardware_rows", "hardware_tables", "preset_rows", "preset_table"]


def preset_rows(search: str = "") -> list[dict[str, Any]]:
    """Every preset that `search` finds: name, aliases, family, sizes, source and date.

    Words are looked for in `Preset.words`, the family and the kinds of mixers and feed-forwards.
    Raises UserError, with a near miss, where no preset holds them all.
    """
    rows = []
    for entry in _found(search):
        spec = load_preset(entry.name)
        rows.append(
            {
                "name": entry.name,
                "aliases": list(entry.aliases),
                "title": entry.title,
                "organisation": entry.organisation,
                "family": spec.family,
                "total": count(spec),
                "active": active(spec)["all"].value,
                "published": entry.published,
                "source": entry.source,
                "checked": entry.checked,
                "notes": entry.notes,
            }
        )
    return rows


def _found(search: str) -> list[Preset]:
    wanted = search.lower().split()
    if not wanted:
        return presets()
    texts = {entry: f"{entry.words} {_kinds(entry)}" for entry in presets()}
    found = [entry for entry, text in texts.items() if all(word in text for word in wanted)]
    if found:
        return found
    every = " ".join(texts.values())
    missing = next((word for word in wanted if word not in every), "")
    hint = near_miss(missing, [*names(), *re.findall(r"[^\s,;()]+", every)]) if missing else ""
    raise UserError(f"no preset holds {search!r}{hint}; `moeplan presets` lists all {len(texts)}")


def _kinds(entry: Preset) -> str:
    spec = load_preset(entry.name)
    mixers, feed = kinds(spec)
    return " ".join((spec.family, *mixers, *feed)).lower()


def preset_table(rows: list[dict[str, Any]], search: str = "") -> Table:
    """The presets as a table."""
    columns = [
        Column("preset", "left", fixed=True),
        Column("also", "left"),
        Column("family", "left"),
        Column("total", fixed=True),
        Column("active", fixed=True),
    ]
    found = f" with {search!r}" if search else ""
    table = Table(f"Presets{found} ({len(rows)})", columns, values=[])
    assert table.values is not None
    for row in rows:
        also = min(row["aliases"], key=len, default="")
        sizes = (fmt_count(row["total"]), fmt_count(row["active"]))
        table.rows.append((row["name"], also, row["family"], *sizes))
        table.values.append((row["name"], also, row["family"], row["total"], row["active"]))
    table.notes.append("active: every parameter that a token touches; sources: presets --json")
    return table


def _figure(q: Quantity | None) -> dict[str, Any] | None:
    if q is None:
        return None
    source = q.source
    return {
        "value": q.value,
        "unit": q.unit,
        "kind": source.kind if source else "",
        "source": source.where if source else "",
    }


def hardware_rows(name: str | None = None) -> list[dict[str, Any]]:
    """Every GPU, or the one named, with each figure's unit and source."""
    chosen = gpus() if name is None else (gpu(name),)
    return [_hardware_row(g) for g in chosen]


def _hardware_row(g: Gpu) -> dict[str, Any]:
    return {
        "id": g.id,
        "name": g.name,
        "vendor": g.vendor,
        "memory": _figure(g.memory_bytes),
        "bandwidth": _figure(g.memory_bandwidth),
        "peaks": {fmt: _figure(q) for fmt, q in g.peaks.items()},
        "scale_up_bandwidth": _figure(g.scale_up_bandwidth),
        "scale_up_domain": _figure(g.scale_up_domain),
        "nic_bandwidth": _figure(g.nic_bandwidth),
        "watts": _figure(g.watts),
        "all_in_watts": _figure(all_in_power(g.id)),
        "sm_count": _figure(g.sm_count),
        "l2": _figure(g.l2_bytes),
        "prices": [{"price": p.kind, **(_figure(p.per_hour) or {})} for p in prices(g.id)],
        "source": g.source,
        "checked": str(g.checked) if g.checked else "",
        "note": g.note,
    }


def hardware_tables(rows: list[dict[str, Any]], *, single: bool = False) -> list[Table]:
    """All GPUs in one table, or one GPU with the source of each figure."""
    return [_one_gpu(rows[0])] if single else [_all_gpus(rows)]


def _tera(figure: dict[str, Any] | None) -> str:
    """Four digits at most: a table of all GPUs is 80 columns wide; one alone has every digit."""
    if figure is None:
        return ""
    value = figure["value"] / 1e12
    return _whole(value) if value >= 100 else f"{value:.4g}"


def _whole(value: float) -> str:
    """A whole number, parted by a comma from five digits on: columns of four are narrower."""
    return f"{value:{',' if value >= 10_000 else ''}.0f}"


def _all_gpus(rows: list[dict[str, Any]]) -> Table:
    titles = ("GB", "TB/s", "bf16", "fp8", "fp4", "link", "GPUs", "$/h")
    table = Table(
        f"GPUs ({len(rows)})",
        [Column("gpu", "left", fixed=True), *(Column(t, fixed=True) for t in titles)],
        values=[],
    )
    assert table.values is not None
    for row in rows:
        peaks, link, domain = row["peaks"], row["scale_up_bandwidth"], row["scale_up_domain"]
        bf16 = peaks.get("bf16") or peaks.get("fp16")
        price = row["prices"][0]["value"] if row["prices"] else None
        table.rows.append(
            (
                row["id"],
                f"{row['memory']['value'] / 1e9:,.4g}",
                _tera(row["bandwidth"]),
                _tera(bf16),
                _tera(peaks.get("fp8")),
                _tera(peaks.get("fp4")),
                _whole(link["value"] / 1e9) if link else "",
                _whole(domain["value"]) if domain else "",
                f"{price:.2f}" if price is not None else "",
            )
        )
        numbers = (row["bandwidth"], bf16, peaks.get("fp8"), peaks.get("fp4"), link, domain)
        table.values.append(
            (
                row["id"],
                row["memory"]["value"],
                *("" if f is None else f["value"] for f in numbers),
                "" if price is None else price,
            )
        )
    table.notes += [
        "peaks: dense TFLOP/s, rounded; link: scale-up GB/s of a GPU, one way;",
        "GPUs: how many share its fabric; $/h: the first price on file",
        "one GPU with the source of each figure: moeplan hardware --gpu h200",
    ]
    return table


_WRITERS: dict[str, Callable[[float], str]] = {
    "B": fmt_bytes,
    "B/s": fmt_rate,
    "FLOP/s": lambda v: fmt_rate(v, "FLOP"),
    "W": lambda v: f"{v:,.0f} W",
    "$/h": lambda v: fmt_money(v, per="h"),
}


def _one_gpu(row: dict[str, Any]) -> Table:
    table = Table(row["name"], [Column("", "left"), Column("value"), Column("source", "left")])

    def line(label: str, figure: dict[str, Any] | None) -> None:
        if figure is not None:
            write = _WRITERS.get(figure["unit"])
            text = write(figure["value"]) if write else f"{figure['value']:,}"
            origin = figure["source"]
            if figure["kind"] == "assumed":
                origin = f"assumed: {origin}"
            elif row["source"] and origin.startswith(row["source"]):
                origin = "datasheet"
            table.rows.append((label, text, origin))

    line("memory", row["memory"])
    line("bandwidth", row["bandwidth"])
    for fmt, figure in row["peaks"].items():
        line(f"peak {fmt}", figure)
    for label in ("scale_up_bandwidth", "scale_up_domain", "nic_bandwidth", "watts"):
        line(label.replace("_", " "), row[label])
    line("all-in power", row["all_in_watts"])
    line("multiprocessors", row["sm_count"])
    line("L2 cache", row["l2"])
    for price in row["prices"]:
        line(f"price, {price['price']}", price)
    if row["source"]:
        table.notes.append(f"datasheet: {row['source']}, checked {row['checked']}")
    if row["note"]:
        table.notes.append(row["note"])
    return table
