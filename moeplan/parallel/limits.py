"""Limits and mixes of serving: the speed limit of decoding that an interconnect sets (DeepSeek-V3,
arXiv 2505.09343, 2.3.2), and prefill and decoding on layouts of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moeplan.calc import calc, value
from moeplan.cluster.network import Network
from moeplan.model.spec import ModelSpec
from moeplan.parallel.jobs import ServingJob
from moeplan.quantity import Quantity, Source, derive, plain

__all__ = [
    "cache_transfer",
    "decode_speed_limit",
    "disaggregate",
    "model_speed_limit",
    "paper_speed_limit",
]


def decode_speed_limit(
    tokens: Any,
    experts: Any,
    hidden: Any,
    layers: Any,
    bandwidth: Any,
    *,
    dispatch: Any = 1,
    combine: Any = 2,
    microbatches: Any = 2,
) -> dict[str, Quantity]:
    """The least time per output token where nothing but the exchange takes time.

    tokens: a GPU's, per microbatch. experts: rows that a token sends (k, and the shared expert
    where it is sent to like the others). hidden: values of a row. bandwidth: B/s. dispatch,
    combine: bytes a value. microbatches: two, of which one's exchange runs under the other's
    compute, so that both exchanges follow each other. Returns exchange (s, of a layer), step (s),
    rate (tokens/s).
    """
    given = {
        "tokens": tokens, "experts": experts, "hidden": hidden, "layers": layers,
        "bandwidth": bandwidth, "dispatch": dispatch, "combine": combine,
        "microbatches": microbatches,
    }  # fmt: skip
    q = {n: x if isinstance(x, Quantity) else Quantity.given(x, symbol=n) for n, x in given.items()}
    exchange = derive(
        "(dispatch + combine)*tokens*experts*hidden/bandwidth",
        "s",
        dispatch=q["dispatch"],
        combine=q["combine"],
        tokens=q["tokens"],
        experts=q["experts"],
        hidden=q["hidden"],
        bandwidth=q["bandwidth"],
    )
    step = derive(
        "microbatches*layers*exchange", "s", microbatches=q["microbatches"], layers=q["layers"],
        exchange=exchange,
    )  # fmt: skip
    return {
        "exchange": exchange,
        "step": step,
        "rate": derive("1/step", "tokens/s", step=step),
    }


def paper_speed_limit(bandwidth: Any = 50e9) -> dict[str, Quantity]:
    """The paper's own example: 32 tokens, 8 routed and 1 shared expert, 7000 values, 61 layers."""
    source = Source("datasheet", "arXiv 2505.09343, 2.3.2")
    figures = {"tokens": 32, "experts": 9, "hidden": 7000, "layers": 61}
    given = {name: Quantity.given(x, "", name, source) for name, x in figures.items()}
    return decode_speed_limit(**given, bandwidth=bandwidth)


def model_speed_limit(
    spec: ModelSpec, tokens: Any, bandwidth: Any, **more: Any
) -> dict[str, Quantity]:
    """The same for a model's real numbers: its width, its k routed experts, its MoE layers.

    more: dispatch, combine and microbatches of `decode_speed_limit`.
    """
    moe = spec.moe
    assert moe is not None
    return decode_speed_limit(
        tokens, moe.symbols["k"], moe.symbols[moe.width], spec.moe_layers, bandwidth, **more
    )


def cache_transfer(net: Network, cache: Any) -> Any:
    """Seconds at most in which a GPU sends its part of a request's cache (bytes) to another pool:
    over the scale-out link, or the scale-up one where there is no other.
    """
    return calc(
        "cache/bandwidth", "s", cache=cache, bandwidth=value(net.up if net.out is None else net.out)
    )


def by_turns(step: Any, prefill: Any, batch: Any, gpus: Any, output: Any) -> Any:
    """Seconds per output token where an instance's decoding waits for prefill in between.

    step: seconds of a decoding step of `batch` sequences on its GPUs. prefill: GPU-seconds of a
    request's, which comes once for `output` tokens of each sequence.
    """
    return step + prefill * batch / (gpus * output)


def disaggregate(
    prefill: Mapping[str, Any], decode: Mapping[str, Any], job: ServingJob, transfer: Any = 0
) -> dict[str, Any]:
    """Prefill on one layout and decoding on another, in the ratio in which neither waits.

    Takes two results of `evaluate_serving` (numbers or arrays that broadcast, so that all pairs of
    two lists of layouts are one call). transfer: seconds in which a request's cache is sent between
    them (`cache_transfer`), which TTFT includes. prefill_share: part of the GPUs that prefill
    needs.
    """
    new = plain(job.input) * (1 - plain(job.cached))
    first = new / prefill["prefill_tokens_per_second_per_gpu"]
    then = plain(job.output) / decode["decode_tokens_per_second_per_gpu"]
    rate = 1 / (first + then)
    return {
        "fits": prefill["fits"] & decode["fits"],
        "ttft": prefill["ttft"] + transfer,
        "tpot": decode["tpot"],
        "prefill_share": first * rate,
        "requests_per_second_per_gpu": rate,
        "input_tokens_per_second_per_gpu": rate * plain(job.input),
        "output_tokens_per_second_per_gpu": rate * plain(job.output),
    }
