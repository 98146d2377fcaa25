"""Tables of the documentation that are made from the package itself.

`<!-- generated: NAME -->` and `<!-- end generated -->` in a document stand around the text that
`SECTIONS[NAME]()` returns. To add one, write a function here that returns Markdown and give it a
name with `@section`; then `python docs/check.py --write` fills it in.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

__all__ = ["SECTIONS", "section", "table"]

ROOT = Path(__file__).resolve().parents[1]

SECTIONS: dict[str, Callable[[], str]] = {}


def section(name: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Register the function that writes the generated section `name`."""

    def register(function: Callable[[], str]) -> Callable[[], str]:
        if name in SECTIONS:
            raise ValueError(f"two functions write the generated section {name!r}")
        SECTIONS[name] = function
        return function

    return register


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@section("extras")
def extras() -> str:
    """Return what each optional extra of the package adds, from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    rows = [
        [f"`{name}`", ", ".join(f"`{requirement}`" for requirement in requirements)]
        for name, requirements in project["optional-dependencies"].items()
    ]
    return table(["extra", "adds"], rows)


@section("engines")
def engines() -> str:
    """Return where the options of each engine were read."""
    from moeplan.cluster.datafile import table as fact
    from moeplan.plan.export import ENGINES

    rows = []
    for name, does in ENGINES.items():
        about, known = fact("engines", f"source.{name}"), fact("engines", f"options.{name}")
        for short, where in about["files"].items():
            count = sum(file == short for file in known.values())
            title = f"[{about['title']}]({about['repository']})"
            path, _, at = where.partition(" ")
            at = at[:15] if at.startswith("at ") else at  # of a commit its first 12 digits
            if count:
                place = f"`{path}` {at}".rstrip()
                rows.append([title, does, place, str(count), str(about["checked"])])
    return table(["engine", "for", "read in", "names", "on"], rows)


@section("backends")
def backends() -> str:
    """Return the backends of the measured layer, and what each is for."""
    from moeplan.profile.backends import backends as known

    return table(["backend", "runs"], [[f"`{b.name}`", b.about] for b in known()])


@section("cpu-layers")
def cpu_layers() -> str:
    """Return every layer that the records of a CPU hold, newest way of predicting only."""
    from moeplan.profile.store import find_records, load_record
    from moeplan.profile.view import percent
    from moeplan.units import fmt_bytes, fmt_rate, fmt_time

    rows = []
    for path in find_records([ROOT / "profiles"]):
        record = load_record(path)
        for case in record.measured() if record.device.kind == "cpu" else ():
            made, found = case.prediction, case.measured
            if made is None or found is None or not made.method.endswith("small matmuls"):
                continue
            took, flops = found.layer.median, sum(op.flops for op in made.ops)
            peak = "–" if found.peak_bytes is None else fmt_bytes(found.peak_bytes)
            rows.append(
                [case.subject, f"{case.tokens:,}", case.direction, case.routing,
                 fmt_time(made.expected), fmt_time(took),
                 percent(made.expected / took - 1, signed=True),
                 fmt_rate(flops / took, "FLOP"), peak]
            )  # fmt: skip
    return table(["model", "tokens", "pass", "routing", "predicted", "measured", "error",
                  "reached", "peak memory"], rows)  # fmt: skip


@section("families")
def families() -> str:
    """Return the model types: kinds of block, sizes, what they were checked against."""
    from moeplan.families import FAMILIES, read_config
    from moeplan.report.families import family_rows, kinds
    from moeplan.units import fmt_count
    from tests.families.checked import flops_checked, small_config, tensors_checked

    rows = []
    for row in family_rows():
        name = row["model_type"]
        sizes = [fmt_count(row[key]) if key in row else "" for key in ("total", "active")]
        parts = row["mixers"], row["feed_forward"]
        if FAMILIES[name] == "wrappers.wrapped":
            parts = ["of the text part"], ["of the text part"]
        elif not row["preset"] and (small := small_config(name)):
            parts = kinds(read_config(small, name))
        words = ["; ".join(part) for part in parts]
        checks = [tensors_checked(name), flops_checked(name)]
        rows.append([f"`{name}`", *words, row["preset"], *sizes, *checks])
    header = ["model type", "mixers", "feed-forward", "preset", "total", "active"]
    return table([*header, "tensors", "FLOPs"], rows)


@section("differences")
def differences() -> str:
    """Return where transformers differs from the published model, with the reason."""
    from tests.families.checked import DIFFERENCES

    rows = [[f"`{name}`", words] for name, words in sorted(DIFFERENCES.items())]
    return table(["model type", "what differs"], rows)


# One preset of each kind of mixer, with the kind in words.
LONG_CONTEXT = {
    "qwen3-235b-a22b": "grouped-query attention",
    "deepseek-v3": "multi-latent attention",
    "gpt-oss-120b": "grouped-query, every other layer a window of 128",
    "deepseek-v3.2": "multi-latent, 2,048 keys picked by an indexer",
    "deepseek-v4-flash": "compressed keys, windows, an indexer",
    "qwen3-next-80b-a3b": "gated delta rule, 1 layer in 4 grouped-query",
    "nemotron-3-nano": "Mamba-2, 6 of 52 layers grouped-query",
    "minimax-01": "lightning attention, 1 layer in 8 grouped-query",
}
CONTEXTS = {"4K": 4096, "128K": 131_072, "1M": 1_048_576}


@section("long-context")
def long_context() -> str:
    """Return FLOPs of a decoded and of a prefilled token, and cache, at three contexts."""
    from moeplan import api
    from moeplan.units import fmt_bytes, fmt_flops

    rows = []
    for name, kind in LONG_CONTEXT.items():
        found = [api.estimate(name, context=context) for context in CONTEXTS.values()]
        figures = [
            [write(e[path].value) for e in found]
            for path, write in (
                ("flops.decode_per_token", fmt_flops),
                ("flops.forward_per_token", fmt_flops),
                ("kv_cache.bytes_per_sequence", fmt_bytes),
            )
        ]
        rows.append((name, kind, figures))
    parts = []
    for place, words in enumerate(
        ("FLOPs per decoded token", "FLOPs per prefilled token", "cache")
    ):
        first = ["model", "mixers"] if not place else ["model"]
        header = [*first, *(f"{words} at {context}" for context in CONTEXTS)]
        lines = [
            [f"`{name}`", *([kind] if not place else []), *figures[place]]
            for name, kind, figures in rows
        ]
        parts.append(table(header, lines))
    return "\n\n".join(parts)


# Cache bytes that a token adds in bf16, as factors that can be checked by hand, and in words.
CACHES = {
    "deepseek-v3": ((61, 576, 2), "layers, a latent of 512 and a rotary key of 64"),
    "kimi-k2": ((61, 576, 2), "the same"),
    "longcat-flash": ((28, 2, 576, 2), "layers, two latents in each"),
    "llama-3.1-405b": ((126, 2, 8, 128, 2), "layers, keys and values, 8 heads of 128"),
    "mixtral-8x7b": ((32, 2, 8, 128, 2), "layers, keys and values, 8 heads of 128"),
    "qwen3-30b-a3b": ((48, 2, 4, 128, 2), "layers, keys and values, 4 heads of 128"),
    "gpt-oss-120b": (
        (36, 2, 8, 64, 2),
        "layers, keys and values, 8 heads of 64, windows not yet full",
    ),
    "hunyuan-large": ((32, 2, 8, 80, 2), "of 64 layers, which share in pairs"),
    "step3": ((61, 2, 256, 2), "layers, one head of 256 for keys, one for values"),
    "qwen3-next-80b-a3b": ((12, 2, 2, 256, 2), "of 48 layers; the others hold a state"),
    "minimax-01": ((10, 2, 8, 128, 2), "of 80 layers; the others hold a state"),
    "nemotron-3-nano": ((6, 2, 2, 128, 2), "of 52 layers; the others hold a state or nothing"),
}
PRINTED = {"deepseek-v3": "70.272 KB", "llama-3.1-405b": "516.096 KB"}  # arXiv 2505.09343, table 1


@section("long-context-caches")
def long_context_caches() -> str:
    """Return the cache bytes of a token beside the product that gives them, which must agree."""
    from math import prod

    from moeplan import api

    rows = []
    for name, (factors, words) in CACHES.items():
        cache = api.estimate(name)["kv_cache"]
        found, state = cache["bytes_per_token"].value, cache["fixed_bytes"].value
        if found != prod(factors):
            raise ValueError(f"{name}: {found} B a token, by hand {prod(factors)}")
        product = f"{' x '.join(map(str, factors))}: {words}"
        fixed = f"{state / 1e6:,.1f} MB" if state else ""
        rows.append([f"`{name}`", f"{found:,} B", product, fixed, PRINTED.get(name, "")])
    return table(["model", "a token adds", "by hand", "whatever the length", "printed"], rows)


import accuracy_tables  # noqa: E402, F401 - it registers the sections of accuracy.md
import cluster_tables  # noqa: E402, F401 - it registers the sections of cluster.md
