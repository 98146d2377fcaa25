"""Tables of an all-to-all that was run: right or wrong, bytes, times by phase and by size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moeplan.report.tables import Column, Table
from moeplan.units import fmt_bytes, fmt_rate, fmt_time

__all__ = ["exchange_tables"]


def exchange_tables(document: Mapping[str, Any]) -> list[Table]:
    """What `exchange.run` found, for a reader; at most 80 columns wide."""
    tables = [_summary(document), _bytes(document), _phases(document)]
    if document["table"]:
        tables.append(_sizes(document))
    return tables


def _summary(document: Mapping[str, Any]) -> Table:
    check = document["check"]
    sizes = ", ".join(f"{symbol}={size:g}" for symbol, size in document["sizes"].items())
    lines = [
        f"{document['tokens_per_rank']:,} tokens a rank, {document['routing']} routing, "
        f"{document['dtype']}; {sizes}",
        f"{document['collectives']} on {document['device']}, torch {document['torch']}",
    ]
    if check is None:
        lines.append("not compared with the unsharded layer (--no-check)")
    else:
        verdict = "equal" if check["passed"] else "NOT EQUAL"
        error = check["relative_error"]
        error = "not finite" if error is None else f"{error:.0e}"
        lines.append(
            f"output against the unsharded layer: {verdict} "
            f"(relative L2 error {error}, allowed {check['tolerance']:.0e})"
        )
    return Table(f"{document['model']} over {document['ranks']} ranks", [], notes=lines)


def _bytes(document: Mapping[str, Any]) -> Table:
    traffic = document["traffic"]
    table = Table(
        "Bytes that left each rank",
        [Column("", "left"), Column("least"), Column("most"), Column("mean"), Column("estimate"),
         Column("as routed", "left")],
    )  # fmt: skip
    for phase in ("dispatch", "return"):
        found = traffic[phase]
        cells = (min(found["sent"]), max(found["sent"]), found["mean"], found["estimate"])
        agrees = "every byte" if found["equal"] else "NO"
        table.rows.append((phase, *(fmt_bytes(size) for size in cells), agrees))
    table.notes = [
        "estimate: the mean under uniform routing. As routed: what the experts that tokens chose "
        "say, rank by rank",
        f"beside these, counts of rows: {fmt_bytes(max(traffic['counts']))} a rank",
    ]
    return table


def _phases(document: Mapping[str, Any]) -> Table:
    table = Table("Time of the slowest rank, median", [Column("phase", "left"), Column("time")])
    layer = document["seconds"]["layer"]["slowest"]
    for phase, found in document["seconds"].items():
        if phase != "layer":
            table.rows.append((phase, fmt_time(found["slowest"])))
    table.total = ("layer", fmt_time(layer))
    return table


def _sizes(document: Mapping[str, Any]) -> Table:
    table = Table(
        "The bare all-to-all, even splits",
        [Column("leaves a rank"), Column("time"), Column("rate"), Column("fit")],
    )
    fit = document["fit"]
    errors = fit["relative_errors"] if fit else []
    for place, row in enumerate(document["table"]):
        size, seconds = row["bytes"], row["seconds"]
        off = f"{errors[place]:+.0%}" if fit else "–"
        table.rows.append((fmt_bytes(size), fmt_time(seconds), fmt_rate(size / seconds), off))
    if fit:
        rate = fit["bandwidth_Bps"]
        slope = "no growth with size" if rate is None else f"bytes / {fmt_rate(rate)}"
        table.notes.append(f"fit: {fmt_time(fit['latency_s'])} + {slope}; its error in each row")
    return table
