"""The tables of a training plan, from the tree that `moeplan.report.plan_training` makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moeplan.report.layout_tables import STEP, assumption_table
from moeplan.report.tables import Column, Table
from moeplan.units import fmt_count, fmt_gib, fmt_money, fmt_time

__all__ = ["plan_tables", "size_table"]

WORD = Column("", "left")
DEGREES = ("tp", "cp", "pp", "vpp", "dp", "ep", "etp", "zero", "microbatch")
SHORT = {"microbatch": "mb"}
_ALWAYS = ("dp", "zero")
_FRONT_ROWS = 12

Answer = Mapping[str, Any]


def plan_tables(a: Answer) -> list[Table]:
    """All tables of a training plan."""
    if not a["best"]:
        return [_head(a), _space(a)]
    tables = [_head(a), _best(a), _parts(a), _kinds(a), _changes(a), _front(a), _space(a)]
    if "sizing" in a:
        tables.insert(1, size_table(a["sizing"]["sizes"]))
    return [*tables, assumption_table(a)]


def degrees(entry: Mapping[str, Any]) -> str:
    """The degrees of a layout that say something, such as `pp=16 dp=128 ep=64 zero=1`."""
    return " ".join(
        f"{SHORT.get(name, name)}={entry[name]}"
        for name in DEGREES
        if entry[name] != 1 or name in _ALWAYS
    )


def kind(entry: Mapping[str, Any], varied: Sequence[str] = ()) -> str:
    """The schedule and recomputation, and other kinds where they were varied."""
    recompute = entry["recompute"]
    words = [entry["schedule"]]
    if recompute != "none":
        words.append("selective" if recompute.startswith("selective:") else recompute)
    for name in varied:
        words.append(f"{name} {_word(entry[name])}")
    return " ".join(words)


def _word(given: Any) -> str:
    if isinstance(given, bool):
        return "on" if given else "off"
    return "+".join(map(str, given)) if isinstance(given, list) else str(given)


def _varied(a: Answer) -> list[str]:
    """Kinds besides schedule and recomputation that were searched over."""
    kinds = a["space"]["kinds"]
    found = [n for n in ("sp", "order", "split") if len(kinds[n]) > 1]
    overlaps = {k for k in kinds["overlap"] if k not in ("usual", "dualpipe")}
    return [*found, *(["overlap"] if overlaps else [])]


def _days(seconds: float) -> str:
    days = seconds / 86400
    return f"{days:,.1f}" if days >= 1 else f"{days:.2g}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _behind(share: float) -> str:
    return "" if share == 0 else f"+{share:.1%}"


# ----------------------------------------------------------------------------------------- head
def _head(a: Answer) -> Table:
    machine, job, space = a["cluster"], a["job"], a["space"]
    tokens = f"{fmt_count(job['tokens'])} tokens in " if job["tokens"] else ""
    notes = [
        f"{tokens}steps of {_counted(a['batch'], 'sequence')} of {job['sequence']:,} tokens "
        f"({fmt_count(a['batch'] * job['sequence'])} a step), {job['precision']}, "
        f"{job['optimizer']}",
        f"{space['combinations']:,} combinations, {space['legal']:,} of them legal, all "
        f"evaluated; {space['fit']:,} fit in {fmt_gib(machine['memory'])} GiB",
    ]
    if a["best"]:
        best = a["best"][0]
        run = f", {_days(best['seconds'])} days" if job["tokens"] else ""
        if job["tokens"] and best["dollars"] is not None:
            run += f", {fmt_money(best['dollars'])}"
        fast, slow = best["band"]
        notes += [
            f"best: {degrees(best)}, {kind(best)}: {fmt_time(best['step'])} a step "
            f"({fmt_time(fast)} to {fmt_time(slow)} by the band of the ops), MFU "
            f"{best['mfu']:.1%}{run}; binds: {best['binds']}",
            *_near_limits(a),
            *of_ops_alone(a["stack"], training=True),
        ]
    else:
        notes += _nothing(a)
    if "sizing" in a:
        notes.append(a["sizing"]["said"])
    return Table(f"{a['model']}: training on {machine['name']}", [], notes=notes)


def _near_limits(a: Answer) -> list[str]:
    """A deadline and a budget that lie within the band: days and cost go with the step."""
    best, sizing = a["best"][0], a.get("sizing", {})
    shares = [end / best["step"] for end in best["band"]]
    return [
        *within("deadline", sizing.get("deadline"), best["seconds"], shares, fmt_time),
        *within("budget", sizing.get("budget"), best["dollars"], shares, fmt_money),
    ]


def within(
    what: str,
    limit: float | None,
    found: float | None,
    shares: Sequence[float],
    write: Callable[[float], str],
) -> list[str]:
    """A line where a limit lies within a figure's band: the figure times both shares."""
    if limit is None or found is None:
        return []
    fast, slow = (found * share for share in shares)
    if not fast < limit < slow:
        return []
    return [f"the {what} of {write(limit)} lies within the band: {write(fast)} to {write(slow)}"]


def of_ops_alone(stack: str, *, training: bool) -> list[str]:
    """What times leave out, where a stack adds nothing for the software around the ops."""
    if stack not in ("calibrated", "kernels"):
        return []
    said = "times are of the ops alone: whole published runs took longer (docs/accuracy.md)"
    if training and stack == "calibrated":
        said += "; --stack megatron-bridge includes what that software adds"
    return [said]


def _nothing(a: Answer) -> list[str]:
    found = a["nothing"]
    if not found["legal"]:
        return ["NOTHING IS LEGAL: " + "; ".join(found["why"])]
    need, cap = fmt_gib(found["least_memory"]), fmt_gib(a["cluster"]["memory"])
    return [
        f"NOTHING FITS: the layout that needs least takes {need} GiB of {cap} GiB, "
        f"{fmt_gib(found['missing'])} GiB too much",
        f"it is {degrees(found)}, {kind(found)}",
        *found.get("would", []),
    ]


# ------------------------------------------------------------------------------------ best rows
def _best(a: Answer) -> Table:
    billed = a["job"]["tokens"] is not None
    priced = billed and a["best"][0]["dollars"] is not None
    sized = len(a["sizes"]) > 1
    columns = [Column("#", fixed=True), *([Column("GPUs", fixed=True)] if sized else []),
               Column("layout", "left"), Column("GiB", fixed=True),
               Column("step", fixed=True)]  # fmt: skip
    columns += [Column("days", fixed=True)] if billed else []
    columns += [Column("cost", fixed=True)] if priced else []
    columns.append(Column("behind", fixed=True))
    rows = a["best"]
    many = f" {len(rows)}" if len(rows) > 1 else ""
    table = Table(f"The best{many}, by {a['by']}", columns, values=[])
    assert table.values is not None
    varied = _varied(a)
    for number, entry in enumerate(rows, 1):
        layout = f"{degrees(entry)} {kind(entry, varied)}"
        if entry["alike"]:
            layout += f" (+{len(entry['alike'])} alike)"
        count = [f"{entry['gpus']:,}"] if sized else []
        cells = [f"{number}", *count, layout, fmt_gib(entry["memory"]), fmt_time(entry["step"])]
        bare = [number, *([entry["gpus"]] if sized else []), entry["layout"],
                entry["memory"] / 2**30, entry["step"]]  # fmt: skip
        if billed:
            cells.append(_days(entry["seconds"]))
            bare.append(entry["seconds"] / 86400)
        if priced:
            cells.append(fmt_money(entry["dollars"]))
            bare.append(entry["dollars"])
        table.rows.append((*cells, _behind(entry["behind"])))
        table.values.append((*bare, entry["behind"]))
    table.notes = [
        "degrees that are 1 are left out; alike: the same step and memory, listed by --json",
        "the first in full:",
    ]
    table.commands = [rows[0]["command"]]
    if left := a["left_out"]:
        table.notes.insert(
            1,
            f"left out: {left} {'rows' if left > 1 else 'row'} that differ from one above in vpp "
            "alone, and take less than 1% longer",
        )
    alike = rows[0]["alike"]
    if alike:
        listed = "; ".join(degrees(other) for other in alike[:4])
        table.notes.insert(1, f"alike to the first: {listed}{'; ...' if len(alike) > 4 else ''}")
    following = a["next"]
    if following is not None:
        changed = ", ".join(
            f"{SHORT.get(n, n)} {_word(x)} -> {_word(y)}"
            for n, (x, y) in following["differs"].items()
        )
        table.notes.insert(-1, f"the second is {following['behind']:.1%} behind: {changed}")
    return table


_WORTH_SAYING = 0.02  # of a step


def _parts(a: Answer) -> Table:
    best = a["best"][0]
    table = Table("What binds: the best layout's step", [WORD, Column("time"), Column("share")],
                  values=[])  # fmt: skip
    assert table.values is not None
    for name, label in STEP.items():
        seconds = best["parts"][name]
        if seconds:
            table.rows.append((label, fmt_time(seconds), f"{seconds / best['step']:.1%}"))
            table.values.append((label, seconds, seconds / best["step"]))
    table.total = ("step", fmt_time(best["step"]), "100.0%")
    table.values.append(("step", best["step"], 1))
    table.notes = [
        f"bounds: {fmt_time(best['step_lower'])} (all ops at the fast end of their bands, every "
        f"message under compute) to {fmt_time(best['step_upper'])} (at the slow end, none under "
        "compute)",
        f"memory: {fmt_gib(best['memory_free'])} GiB free",
    ]
    hidden = best["dp_seconds"] - best["parts"]["dp"]
    if hidden > _WORTH_SAYING * best["step"]:
        said = f"data parallelism sends for {fmt_time(best['dp_seconds'])}, {fmt_time(hidden)} of "
        outlast = ", and outlasts it" if best["parts"]["dp"] else ""
        table.notes.append(f"{said}it under compute{outlast}")
    return table


def _kinds(a: Answer) -> Table:
    varied = _varied(a)
    table = Table(
        "The best of each kind",
        [Column("schedule", "left"), Column("layout", "left"), Column("step", fixed=True),
         Column("behind", fixed=True)],
        values=[],
    )  # fmt: skip
    assert table.values is not None
    for entry in a["by_kind"]:
        cells = (kind(entry, varied), degrees(entry), fmt_time(entry["step"]))
        table.rows.append((*cells, _behind(entry["behind"])))
        table.values.append((cells[0], entry["layout"], entry["step"], entry["behind"]))
    selected = [k for k in a["space"]["kinds"]["recompute"] if k.startswith("selective:")]
    if len(selected) == 1:
        words = selected[0].partition(":")[2].replace("+", ", ")
        table.notes.append(f"selective recomputation: {words}")
    return table


def _changes(a: Answer) -> Table:
    table = Table(
        "If one input changes, searched again",
        [Column("input", "left"), Column("step", fixed=True), Column("speed", fixed=True),
         Column("winner", "left")],
        values=[],
    )  # fmt: skip
    assert table.values is not None
    for entry in a["sensitivity"]:
        name = entry["change"]
        if entry["step"] is None:
            table.rows.append((name, "", "", "nothing fits"))
            table.values.append((name, "", "", ""))
            continue
        winner = "the same" if entry["same_winner"] else _short(entry["layout"])
        if not entry["same_winner"] and entry["old_winner_step"] is not None:
            lost = entry["old_winner_step"] / entry["step"] - 1
            winner += f" ({lost:.1%} ahead)" if lost >= 0.0005 else " (equally fast)"
        table.rows.append((name, fmt_time(entry["step"]), f"{entry['faster']:+.1%}", winner))
        table.values.append((name, entry["step"], entry["faster"], entry["layout"]))
    table.notes = [
        "ahead: of the present winner under that change; other GPU memory is read off the front",
        "another price per GPU-hour changes all costs alike, and no rank",
    ]
    return table


def _short(text: str) -> str:
    """A layout's text without what a row need not repeat."""
    kept = []
    for part in text.split(","):
        name, _, given = part.partition("=")
        if name in ("batch", "overlap"):
            continue
        if name == "schedule":
            kept.append(given)
        elif name == "recompute":
            kept.append(given.partition(":")[0])
        else:
            kept.append(f"{SHORT.get(name, name)}={given}")
    return " ".join(kept)


def _front(a: Answer) -> Table:
    points = a["front"]
    table = Table(
        "Memory against time: layouts that no other beats in both",
        [Column("GiB", fixed=True), Column("step", fixed=True), Column("layout", "left"),
         Column("schedule", "left")],
        values=[],
    )  # fmt: skip
    assert table.values is not None
    shown = {round(i * (len(points) - 1) / max(1, _FRONT_ROWS - 1)) for i in range(_FRONT_ROWS)}
    varied = _varied(a)
    for i, entry in enumerate(points):
        word = kind(entry, varied)
        size = fmt_gib(entry["memory"]) + ("" if entry["fits"] else "*")
        if i in shown or len(points) <= _FRONT_ROWS:
            table.rows.append((size, fmt_time(entry["step"]), degrees(entry), word))
        table.values.append((entry["memory"] / 2**30, entry["step"], entry["layout"], word))
    if len(points) > _FRONT_ROWS:
        table.notes.append(f"{len(table.rows)} of {len(points)}; --csv, --json and --plot have all")
    if any(not entry["fits"] for entry in points):
        table.notes.append("* more than this GPU has: what a larger one would allow")
    return table


def _space(a: Answer) -> Table:
    space = a["space"]
    table = Table("What was searched", [WORD, Column("", "left")])
    for name, values in space["degrees"].items():
        note = " (pinned)" if name in space["pinned"] else ""
        table.rows.append((name, _listed(values) + note))
    for name, words in space["kinds"].items():
        table.rows.append((name, ", ".join(_word(w) for w in words)))
    table.notes = [
        "all combinations of these that fill the GPUs and divide the batch; those that break a "
        "rule of layouts are not legal",
    ]
    if space["kinds"]["overlap"] == ["usual", "dualpipe"]:
        table.notes.append("overlap dualpipe with schedule dualpipe, usual with the others")
    return table


def _listed(values: Sequence[int]) -> str:
    """Numbers in short: `1, 2, 4, 8`, or `1 to 30` where none is left out."""
    if len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values)) or "none"


# --------------------------------------------------------------------------------------- sizing
def size_table(sizes: Sequence[Mapping[str, Any]], rows: int = 12) -> Table:
    """Numbers of GPUs that were searched, with the best of each."""
    table = Table(
        "Clusters that were searched",
        [Column("GPUs", fixed=True), Column("days", fixed=True), Column("cost", fixed=True),
         Column("layout", "left")],
        values=[],
    )  # fmt: skip
    assert table.values is not None
    for i, entry in enumerate(sizes):
        days = None if entry["seconds"] is None else entry["seconds"] / 86400
        table.values.append(
            (entry["gpus"], days or "", entry["dollars"] or "", entry["layout"] or "")
        )
        if i < len(sizes) - rows:
            continue
        if days is None:
            why = "nothing fits" if entry["legal"] else "nothing is legal"
            table.rows.append((f"{entry['gpus']:,}", "", "", why))
            continue
        cost = "" if entry["dollars"] is None else fmt_money(entry["dollars"])
        shown = _days(entry["seconds"])
        table.rows.append((f"{entry['gpus']:,}", shown, cost, _short(entry["layout"])))
    if len(sizes) > rows:
        table.notes.append(f"the last {rows} of {len(sizes)}; --csv and --json have all")
    return table
