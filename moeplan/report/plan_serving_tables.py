"""The tables of a serving plan, from the tree that `moeplan.report.plan_serving` makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

from moeplan.plan.options import gpus_of, requests_of
from moeplan.report.layout_tables import assumption_table
from moeplan.report.plan_tables import of_ops_alone, within
from moeplan.report.tables import Column, Table
from moeplan.units import fmt_count, fmt_gib, fmt_time

__all__ = ["decodes", "serving_plan_tables"]

_FRONT_ROWS = 12
Answer = Mapping[str, Any]


def serving_plan_tables(a: Answer) -> list[Table]:
    """All tables of a serving plan."""
    if not a["best"]:
        return [_head(a), _space(a)]
    tables = [_head(a), _best(a), _pools(a), *([_changes(a)] if a["sensitivity"] else [])]
    return [*tables, *([_front(a)] if a["front"] else []), _space(a), assumption_table(a)]


def _head(a: Answer) -> Table:
    want, space = a["demand"], a["space"]
    limits = [f"{word} at most {fmt_time(want[name])}"
              for name, word in (("ttft", "TTFT"), ("tpot", "TPOT")) if want[name]]  # fmt: skip
    cached = f" ({want['cached']:.0%} of it cached)" if want["cached"] else ""
    notes = [
        f"{requests_of(want['requests_per_second'])} of {fmt_count(want['input'])} input tokens"
        f"{cached} and {fmt_count(want['output'])} output tokens"
        + (f"; {', '.join(limits)}" if limits else ""),
        f"{space['combinations']:,} combination{'' if space['combinations'] == 1 else 's'}; "
        + "; ".join(
            f"{mode}: {c['legal']:,} legal, all evaluated, {c['fit']:,} fit, {c['meet']:,} in time"
            for mode, c in space["counts"].items()
        ),
    ]
    notes += a.get("notes", ())
    if a["best"]:
        best = a["best"][0]
        cost = best["dollars_per_hour"]
        notes.append(
            f"best: {gpus_of(best['gpus'])}, {_ways(best)}: TTFT {_banded(best, 'ttft')}, TPOT "
            f"{_banded(best, 'tpot')}, by the band of the ops"
            + (f"; ${cost:,.2f} an hour" if cost is not None else "")
            + f"; binds: {best['binds']}"
        )
        for name, word in (("ttft", "TTFT"), ("tpot", "TPOT")):
            shares = [end / best[name] for end in best["band"][name]]
            notes += within(f"{word} limit", want[name], best[name], shares, fmt_time)
        notes += of_ops_alone(a["stack"], training=False)
    else:
        notes += a["nothing"]["said"]
    return Table(f"{a['model']}: serving on {a['cluster']['gpu']}", [], notes=notes)


def _banded(row: Mapping[str, Any], name: str) -> str:
    """A time with its band."""
    fast, slow = row["band"][name]
    return f"{fmt_time(row[name])} ({fmt_time(fast)} to {fmt_time(slow)})"


def _ways(option: Mapping[str, Any]) -> str:
    """The pools of an option in words."""
    parts = []
    for pool in option["pools"]:
        role = "" if pool["role"] == "both" else f"{pool['role']} "
        parts.append(f"{role}{pool['instances']} x ({pool['layout']})")
    return ", ".join(parts)


def _best(a: Answer) -> Table:
    priced = a["best"][0]["dollars_per_hour"] is not None
    columns = [Column("#", fixed=True), Column("GPUs", fixed=True),
               Column("instances and their layout", "left"), Column("TTFT", fixed=True),
               Column("TPOT", fixed=True), Column("load", fixed=True)]  # fmt: skip
    columns += [Column("$/M in", fixed=True), Column("out", fixed=True)] if priced else []
    table = Table(f"The best {len(a['best'])}, by {a['by']}", columns, values=[])
    assert table.values is not None
    formats = [n for n, words in a["space"]["formats"].items() if len(words) > 1]
    for number, row in enumerate(a["best"], 1):
        ways = _ways(row)
        more = prod(1 + len(pool["alike"]) for pool in row["pools"]) - 1 + row["others"]
        ways += f" (+{more} alike)" if more else ""
        for name in formats:
            ways += f" {name} {row['pools'][0][name]}"
        cells = [f"{number}", f"{row['gpus']:,}", ways, fmt_time(row["ttft"]),
                 fmt_time(row["tpot"]), f"{row['load']:.0%}"]  # fmt: skip
        bare = [number, row["gpus"], ways, row["ttft"], row["tpot"], row["load"]]
        if priced:
            each = row["dollars_per_million"]
            cells += [f"{each['input']:.3g}", f"{each['output']:.3g}"]
            bare += [each["input"], each["output"]]
        table.rows.append(cells)
        table.values.append(bare)
    table.notes = [
        "TPOT at the load, which is in % of the requests that these instances could carry",
        *_money(a["best"][0], priced),
        *_following(a),
    ]
    for mode, row in a["by_mode"].items():
        if row is None:
            table.notes.append(f"{mode}: no layout carries the requests within the limits")
        elif row != a["best"][0]:
            table.notes.append(
                f"the best {mode}: {gpus_of(row['gpus'])}, {_ways(row)}: TTFT "
                f"{fmt_time(row['ttft'])}, TPOT {fmt_time(row['tpot'])}"
            )
    if a["best"][0]["others"]:
        table.notes.append("alike: the same decoding on as many GPUs, by other prefill instances")
    for pool in a["best"][0]["pools"]:
        if pool["alike"]:
            others = "; ".join(pool["alike"][:3]) + ("; ..." if len(pool["alike"]) > 3 else "")
            role = "" if pool["role"] == "both" else f"{pool['role']}, "
            table.notes.append(f"alike ({role}as many GPUs, as fast): {others}")
        table.commands.append(pool["command"])
    table.notes.append("the first in full:")
    return table


def _money(best: Mapping[str, Any], priced: bool) -> list[str]:
    if not priced:
        return []
    whole = best["dollars_per_million_output"]
    return ["$/M in, out: cost of the GPUs (or of their time) that prefill, and that decode; all "
            f"of it over the output alone is ${whole:.3g}"]  # fmt: skip


def _following(a: Answer) -> list[str]:
    """How far the next are: the second row, and the first that takes more GPUs."""
    first, *others = a["best"]
    out = []
    if others:
        slower = others[0]["tpot"] / first["tpot"] - 1
        more = others[0]["gpus"] - first["gpus"]
        gpus = f"{more:+,} GPUs, " if more else ""
        out.append(f"the second: {gpus}TPOT {slower:+.1%}")
    return out


def _pools(a: Answer) -> Table:
    pools = a["best"][0]["pools"]
    table = Table(
        "An instance of the best",
        [Column("", "left"), *(Column(p["role"] if len(pools) > 1 else "") for p in pools)],
        values=[],
    )
    assert table.values is not None
    decodes = [p["role"] != "prefill" for p in pools]
    prefills = [p["role"] != "decode" for p in pools]
    every = [True] * len(pools)
    fine = partial(fmt_gib, digits=3)
    rows: list[tuple[str, str, Any, Sequence[bool]]] = [
        ("instances", "instances", "{:,}".format, every),
        ("GPUs of each", "instance_gpus", "{:,}".format, every),
        ("layout", "layout", str, every),
        ("weights, GiB", "memory_weights", fmt_gib, every),
        ("overhead, GiB", "memory_overhead", fmt_gib, every),
        ("cache of a sequence, GiB", "memory_cache_per_sequence", fine, every),
        ("batch at the load", "batch", "{:,.0f}".format, decodes),
        ("largest batch in time", "largest_batch", "{:,.0f}".format, decodes),
        ("largest batch that fits", "max_batch", "{:,.0f}".format, decodes),
        ("decoding alone, tokens/s/GPU", "decode_tokens_per_second_per_gpu", "{:,.0f}".format,
         decodes),
        ("prefill alone, tokens/s/GPU", "prefill_tokens_per_second_per_gpu", "{:,.0f}".format,
         prefills),
        ("cache sent to decoding, at most", "transfer", fmt_time, prefills),
        ("requests/s of the pool", "carries", "{:,.2f}".format, every),
        ("binds decoding", "binds", str, decodes),
    ]  # fmt: skip
    for label, name, write, shown in rows:
        picked = [p[name] if on else None for p, on in zip(pools, shown, strict=True)]
        if any(x is not None for x in picked):
            table.rows.append((label, *("" if x is None else write(x) for x in picked)))
            unit = 2**30 if label.endswith("GiB") else 1
            table.values.append((label, *("" if x is None else x / unit if unit > 1 else x
                                          for x in picked)))  # fmt: skip
    return table


def _changes(a: Answer) -> Table:
    table = Table(
        "If one input changes, searched again",
        [Column("input", "left"), Column("GPUs", fixed=True), Column("change", fixed=True),
         Column("TPOT", fixed=True), Column("winner", "left")],
        values=[],
    )  # fmt: skip
    assert table.values is not None
    now = _ways(a["best"][0])
    for row in a["sensitivity"]:
        if row["gpus"] is None:
            table.rows.append((row["change"], "", "", "", "nothing carries the requests"))
            table.values.append((row["change"], "", "", "", ""))
            continue
        roles = ("both",) if len(row["pools"]) == 1 else ("prefill", "decode")
        pools = [{**p, "role": role} for p, role in zip(row["pools"], roles, strict=True)]
        ways = _ways({"pools": pools})
        shown = "the same" if ways == now else ways
        more = f"{row['more']:+d}" if row["more"] else ""
        table.rows.append((row["change"], f"{row['gpus']:,}", more, fmt_time(row["tpot"]), shown))
        table.values.append((row["change"], row["gpus"], row["more"], row["tpot"], ways))
    table.notes = ["another price per GPU-hour changes all costs alike, and no rank"]
    return table


def _front(a: Answer) -> Table:
    points = a["front"]
    table = Table(
        "Speed for a user against output of a GPU: batches that no other beats in both",
        [Column("tokens/s/user", fixed=True), Column("tokens/s/GPU", fixed=True),
         Column("TTFT", fixed=True), Column("batch", fixed=True), Column("GPUs", fixed=True),
         Column("layout", "left")],
        values=[],
    )  # fmt: skip
    assert table.values is not None
    shown = {round(i * (len(points) - 1) / max(1, _FRONT_ROWS - 1)) for i in range(_FRONT_ROWS)}
    for i, p in enumerate(points):
        user, rate = p["tokens_per_second_per_user"], p["output_tokens_per_second_per_gpu"]
        table.values.append((user, rate, p["ttft"], p["batch"], p["gpus"], decodes(p)))
        if i in shown or len(points) <= _FRONT_ROWS:
            star = "" if p["meets"] else "*"
            table.rows.append((f"{user:,.1f}{star}", f"{rate:,.1f}", fmt_time(p["ttft"]),
                               f"{p['batch']:,}", f"{p['gpus']:,}", decodes(p)))  # fmt: skip
    table.notes = ["batches of powers of two, whatever the requests; GPUs: of an instance"]
    if any(p["prefill"] for p in points):
        table.notes.append("disagg.: with instances of their own that prefill, in the ratio in "
                           "which neither waits")  # fmt: skip
    if len(points) > _FRONT_ROWS:
        table.notes.append(f"{len(table.rows)} of {len(points)}; --csv, --json and --plot have all")
    if any(not p["meets"] for p in points):
        table.notes.append("* slower than the TPOT that was asked for")
    return table


def decodes(point: Mapping[str, Any]) -> str:
    """The layout of a point, and whether others prefill for it."""
    return f"{point['layout']}{' (disagg.)' if point['prefill'] else ''}"


def _space(a: Answer) -> Table:
    space = a["space"]
    table = Table("What was searched", [Column("", "left"), Column("", "left")])
    table.rows.append(("GPUs of an instance", _listed(space["sizes"])))
    for name, values in space["degrees"].items():
        note = " (pinned)" if name in space["pinned"] else ""
        table.rows.append((name, _listed(values) + note))
    words = {"weights": "as stored", "cache": "as stored", "draft": "0"}
    for name, values in space["formats"].items():
        listed = ", ".join(words[name] if v is None else str(v) for v in values)
        table.rows.append((name, listed))
    table.rows.append(("modes", ", ".join(space["modes"])))
    table.rows.append(("batch", "the least that carries the load, up to the largest in time"))
    table.rows.append(("instances", "as many as carry the requests"))
    table.notes = [
        "all products that fill an instance; those that break a rule of layouts are not legal",
        "disaggregated: every prefill layout with every decoding layout, in whole instances",
    ]
    return table


def _listed(values: Sequence[int]) -> str:
    """Numbers in short: runs of the same distance as `8 to 64 by 8`."""
    if not values:
        return "none"
    out: list[str] = []
    at = 0
    while at < len(values):
        end = at + 1
        if end < len(values):
            by = values[end] - values[at]
            while end + 1 < len(values) and values[end + 1] - values[end] == by:
                end += 1
            if end - at >= 3:
                out.append(f"{values[at]} to {values[end]}" + (f" by {by}" if by != 1 else ""))
                at = end + 1
                continue
        out.append(str(values[at]))
        at += 1
    return ", ".join(out)
