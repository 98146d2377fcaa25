"""The tables of an instance that serves, and of all instances of a plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moeplan.report.layout_parts import Answer, capacity, gib, listed, ops_alone, with_band
from moeplan.report.tables import Table
from moeplan.units import fmt_gib, fmt_money, fmt_rate, fmt_time

__all__ = ["exchange_limit", "instance_table", "latency_table", "pool_table", "throughput_table"]


def instance_table(a: Answer) -> Table:
    """What a GPU holds, and how many sequences that leaves room for."""
    job = a["job"]
    tokens = f"{job['input'] + job['output']:,}"
    whole, share = a["cluster"]["memory"], job["fragmentation"]
    room = whole - a["memory_weights"] - a["memory_overhead"]
    each = (1 + share) * a["memory_cache_per_sequence"]
    rows: dict[str, tuple[Any, Callable[[Any], str]]] = {
        "memory of a GPU": (whole, _in_gib),
        "weights": (a["memory_weights"], _in_gib),
        "framework, buffers, fragmentation of weights": (a["memory_overhead"], _in_gib),
        "left for the cache": (room, _in_gib),
        f"cache of a sequence of {tokens} tokens": (a["memory_cache_per_sequence"], _fine),
        f"the same with fragmentation, {share:.0%} more": (each, _fine),
        "sequences that fit on the instance": (a["max_batch"], "{:,.0f}".format),
    }
    table = listed("Memory of the most loaded GPU", a, rows)
    dp = a["layout"]["dp"]
    copies = f", times {dp:,} copies of attention (dp)" if dp > 1 else ""
    table.notes = [
        f"sequences: what is left over a sequence's cache with fragmentation, rounded down{copies}",
        capacity(a),
        "an instance is all GPUs of the layout; dp copies of attention share its batch",
    ]
    return table


def _fine(size: float) -> str:
    return f"{fmt_gib(size, 4)} GiB"


def _in_gib(size: float) -> str:
    return f"{gib(size)} GiB"


def latency_table(a: Answer) -> Table:
    """Times that a user sees; of a layout that only decodes none of prefill."""
    job = a["job"]
    rows: dict[str, tuple[Any, Callable[[Any], str]]] = {
        "batch, sequences": (a["batch"], "{:,.0f}".format),
        "TTFT (band of the ops)": (a["ttft"], lambda _: with_band(a, "ttft")),
        "TPOT (band of the ops)": (a["tpot"], lambda _: with_band(a, "tpot")),
        "TPOT, lower bound": (a["tpot_lower"], fmt_time),
        "TPOT, upper bound": (a["tpot_upper"], fmt_time),
        "output tokens/s of one sequence": (a["tpot"] and 1 / a["tpot"], "{:,.1f}".format),
    }
    if "prefill" in a:  # this layout prefills nothing
        del rows["TTFT (band of the ops)"]
    table = listed(f"Latency of {job['input']:,} in, {job['output']:,} out", a, rows)
    ends = ("with ops at the fast end of their bands", ", ops at the slow end")
    fast, slow = ends if a["band"]["tpot"][0] != a["band"]["tpot"][1] else ("with", "")
    table.notes.append(
        f"bounds: {fast}{' and' if slow else ''} messages and compute at the same time; none under "
        f"compute{slow}"
    )
    table.notes += ops_alone(a, "sglang")
    if job["tpot"] is not None and a["tpot"] is not None:
        meets = "is met" if a["tpot"] <= job["tpot"] else "IS NOT MET"
        table.notes.append(f"the TPOT limit of {fmt_time(job['tpot'])} {meets}")
    if job["disaggregated"]:
        table.notes.append("prefill and decoding have GPUs of their own: neither waits")
    else:
        table.notes.append("prefill and decoding take turns, so TPOT holds prefill's turns")
    return table


def exchange_limit(a: Answer) -> list[Table]:
    """The least time of a decoding step where only the exchange takes time, and its inputs."""
    limit = a.get("speed_limit")
    if limit is None:
        return []
    rows: dict[str, tuple[Any, Callable[[Any], str]]] = {
        "exchange of a layer": (limit["layer"], fmt_time),
        "decoding step": (limit["step"], fmt_time),
        "steps/s": (1 / limit["step"], "{:,.1f}".format),
    }
    table = listed("Speed limit of the exchange", a, rows)
    table.notes = [
        f"({limit['dispatch']:g} B + {limit['combine']:g} B) x {limit['tokens']:,.4g} tokens of a "
        f"GPU x {limit['experts']} experts x {limit['hidden']:,} values / "
        f"{fmt_rate(limit['bandwidth'], 'B')} ({limit['link']}), in {limit['layers']} MoE layers",
        "nothing but the exchange takes time, and every token goes to each of its experts over "
        "that link (arXiv 2505.09343, 2.3.2); policies that send a token once to a GPU send less",
    ]
    return [table]


def throughput_table(a: Answer) -> Table:
    """Rates of an instance that prefills and decodes, and what tokens cost."""
    rate, instances = a["requests_per_second"], a["pool"]["instances"] if "pool" in a else 1
    rows: dict[str, tuple[Any, Callable[[Any], str]]] = {
        "output tokens/s/GPU": (a["output_tokens_per_second_per_gpu"], "{:,.0f}".format),
        "input tokens/s/GPU": (a["input_tokens_per_second_per_gpu"], "{:,.0f}".format),
        "decoding alone, tokens/s/GPU": (
            a["decode_tokens_per_second_per_gpu"],
            "{:,.0f}".format,
        ),
        "prefill alone, tokens/s/GPU": (a["prefill_tokens_per_second_per_gpu"], "{:,.0f}".format),
        "prefill's share": (a["prefill_share"], "{:.1%}".format),
        "requests/s of an instance": (rate and rate / instances, _requests),
        "dollars per million input tokens": (a["dollars_per_million_input"], _dollars),
        "dollars per million output tokens": (a["dollars_per_million_output"], _dollars),
    }
    return listed("Throughput and cost", a, rows)


def pool_table(a: Answer) -> Table:
    """All instances together; of two pools, the slower one decides."""
    pool = a["pool"]
    rows: dict[str, tuple[Any, Callable[[Any], str]]] = {
        "GPUs": (pool["gpus"], "{:,}".format),
        "instances": (pool["instances"], "{:,}".format),
    }
    if "prefill" in a:
        each = "prefill_tokens_per_second_per_gpu"
        rows |= {
            "prefill instances": (pool["prefill_instances"], "{:,}".format),
            "TTFT, sending the cache included": (a["ttft"], lambda _: with_band(a, "ttft")),
            "sending a request's cache": (pool["transfer"], fmt_time),
            "prefill, tokens/s/GPU": (a["prefill"][each], "{:,.0f}".format),
            "decoding, tokens/s/GPU": (a["decode_tokens_per_second_per_gpu"], "{:,.0f}".format),
            "requests/s that prefill serves": (pool["prefill_requests_per_second"], _requests),
            "requests/s that decoding serves": (pool["decode_requests_per_second"], _requests),
        }
    rows["requests/s together"] = (pool["requests_per_second"], _requests)
    return listed("All instances", a, rows)


def _requests(rate: float) -> str:
    return fmt_rate(rate, "").removesuffix(" /s")


def _dollars(amount: float) -> str:
    return fmt_money(amount) if amount >= 0.995 else f"${amount:.2g}"
