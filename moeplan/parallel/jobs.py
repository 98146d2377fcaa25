"""What is run: a training run, or a stream of requests; with what a plan assumes about both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from moeplan.quantity import Quantity, Source

__all__ = ["Overheads", "ServingJob", "TrainingJob"]


def _assumed(value: Any, unit: str, symbol: str, why: str) -> Quantity:
    return Quantity.given(value, unit, symbol, Source("assumed", why))


@dataclass(frozen=True, eq=False)
class Overheads:
    """Memory that no tensor of the model explains.

    framework: bytes of context, libraries and communication buffers on each GPU. fragmentation:
    share of the other bytes that an allocator cannot use.
    """

    framework: Any = field(
        default_factory=lambda: _assumed(
            2e9, "B", "framework", "communication buffers take 0.8 to 2 GB (arXiv 2502.07846, 6)"
        )
    )
    fragmentation: Any = field(
        default_factory=lambda: _assumed(
            0.05,
            "",
            "fragmentation",
            "5 to 30 % are lost (arXiv 2502.07846, 6); the least is taken",
        )
    )


@dataclass(frozen=True, eq=False)
class TrainingJob:
    """A training run.

    sequence: tokens of a sequence. tokens: of the whole run (None: no bill). optimizer: a key of
    `moeplan.estimation.memory.OPTIMIZERS`. precision: number format of the matmuls with weights.
    dispatch, combine, policy, imbalance: see `moeplan.estimation.all_to_all`. mtp: train the
    model's MTP modules. kept: format in which inputs of matmuls and of activations are kept for
    the backward pass ("fp8": with one fp32 scale for each 128 values, as DeepSeek-V3 did). stack:
    a key of `moeplan.parallel.optime.STACKS` (None: calibrated ops, "kernels" where no calibration
    knows the GPU). account: one of `moeplan.parallel.account.ACCOUNTS`.
    price: dollars per GPU-hour, a kind of price or "$2/h" (None: the first on file). power: all-in
    watts per GPU (None: that of the data files).
    """

    sequence: Any = 4096
    tokens: Any = None
    optimizer: str = "adamw-fp32"
    precision: Literal["bf16", "fp8"] = "bf16"
    dispatch: str = "bf16"
    combine: str = "bf16"
    policy: Literal["copies", "per-gpu", "per-node"] = "per-node"
    imbalance: Any = 1.0
    mtp: bool = True
    kept: Literal["bf16", "fp8"] = "bf16"
    stack: str | None = None
    account: str = "index-map"
    price: Any = None
    power: Any = None
    overheads: Overheads = field(default_factory=Overheads)


@dataclass(frozen=True, eq=False)
class ServingJob:
    """A stream of requests with lengths `input` and `output`, of whose input `cached` is a share.

    batch: sequences that an instance decodes together (None: the most that fit, and that meet
    `tpot`). prefill_batch: requests prefilled together. tpot: seconds per output token to meet
    (None: no limit). disaggregated: prefill and decoding on GPUs of their own, else they take
    turns. draft: tokens guessed ahead by MTP, each accepted with probability `acceptance` if the
    one before it was. weights: format (None: the checkpoint's). cache: format of the key-value
    cache (None: the checkpoint's, else bf16). queueing: TTFT over the prefill's own time.
    overlap: share of the exchange that is hidden under compute of another microbatch. policies:
    what the exchanges send once (decoding: low-latency kernels send every copy).
    """

    input: Any = 4096
    output: Any = 1024
    cached: Any = 0.0
    batch: Any = None
    prefill_batch: Any = 1
    tpot: Any = None
    disaggregated: bool = False
    draft: Any = 0
    acceptance: Any = 0.85
    weights: str | None = None
    cache: str | None = None
    dispatch: str = "fp8"
    combine: str = "bf16"
    decode_policy: Literal["copies", "per-gpu", "per-node"] = "copies"
    prefill_policy: Literal["copies", "per-gpu", "per-node"] = "per-node"
    imbalance: Any = 1.0
    overlap: Any = 0.0
    queueing: Any = 1.0
    stack: str | None = None
    price: Any = None
    overheads: Overheads = field(default_factory=Overheads)
