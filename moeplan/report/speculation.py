"""The table of speculative decoding: a step and an accepted token beside plain decoding."""

from __future__ import annotations

from moeplan.estimation.estimate import Estimate
from moeplan.report.tables import Column, Table
from moeplan.units import fmt_bytes, fmt_flops, fmt_time

__all__ = ["speculation_table"]

_BOUNDS = ("lower", "sequential", "upper")


def speculation_table(e: Estimate) -> Table:
    """What a step costs and what a token of it does, or that no module can draft."""
    found = e.tree["speculation"]
    if found is None:
        note = "the config names no multi-token-prediction module that could draft"
        return Table("Speculative decoding: none", [], notes=[note])
    draft, accepted = found["draft"].value, found["tokens_per_step"].value
    words = f"{draft} drafted token" + ("s" if draft != 1 else "")
    table = Table(
        f"Speculative decoding, {words}, batch {e.scenario['batch']:,}, floor on {e.gpu.name}",
        [Column("", "left"), Column("FLOPs"), Column("bytes"), *(Column(b) for b in _BOUNDS)],
        values=[],
    )
    assert table.values is not None
    rows = {
        f"verify {1 + draft} new": found["verification"],
        f"draft {draft}": found["drafting"],
        "step": found["step"],
        "accepted token": found["per_token"],
        "undrafted token": found["per_token_without"],
    }
    for name, cost in rows.items():
        seconds = [cost[bound].value for bound in _BOUNDS]
        flops, moved = cost["flops"].value, cost["bytes"].value
        written = (fmt_flops(flops), fmt_bytes(moved), *(fmt_time(t) for t in seconds))
        table.rows.append((name, *written))
        table.values.append((name, flops, moved, *seconds))
    gain = [found["speedup"][bound].value for bound in _BOUNDS]
    table.rows.append(("faster by", "", "", *(f"{times:.2f}x" for times in gain)))
    table.values.append(("faster by", "", "", *gain))
    modules = found["modules"].value
    powers = ["1", "a", *(f"a^{n}" for n in range(2, draft + 1))][: draft + 1]
    series = " + ".join(powers if draft < 4 else [*powers[:2], "...", powers[-1]])
    again = " (its modules run again)" if draft > modules else ""
    table.notes = [
        f"{accepted:.4g} tokens a step and sequence: {series} with acceptance "
        f"a = {found['acceptance'].value:g}; a draft counts only where all before it were accepted",
        f"draft: as many passes over one token of each sequence{again}; what a module reads again "
        "to fill its own cache is left out",
    ]
    return table
