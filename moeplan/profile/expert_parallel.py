"""One MoE layer over several ranks: each holds a share of the experts and sends rows to the others.

Shape suffixes as in `layer`; R rows that a rank sends, Q rows that come to it, n ranks, e experts
that a rank holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moeplan.errors import UserError
from moeplan.model.ffn import MoE
from moeplan.model.routing import nearest_divisor
from moeplan.model.workload import Workload
from moeplan.profile import functions
from moeplan.profile.backends import Experts, PhaseScope, TorchBackend
from moeplan.profile.layer import Layer
from moeplan.profile.routing import Rows, Selected, rows_per_expert, sort_rows

__all__ = ["ExpertParallel", "sharded_layer", "unsharded_layer"]

_SHARDED = ("up_EHL", "down_ELF", "up_bias_EH", "down_bias_EL")


@dataclass
class ExpertParallel:
    """A backend that sends each row to the rank of its expert, and the result back.

    Rank i of the default group holds the i-th E/n experts. Every choice of a token is a row of its
    own (plain all-to-all). sent: bytes that left this rank in the last pass, by phase; what it
    kept for itself is not among them. counts: bytes of row counts sent before, to know the splits.
    """

    ranks: int
    rank: int
    name: str = "expert-parallel"
    about: str = "torch, its rows exchanged between ranks by all-to-all"
    together: bool = False
    sent: dict[str, int] = field(default_factory=dict)

    def missing(self) -> str | None:
        """It needs torch alone."""
        return None

    def unfit(self, experts: Experts) -> str | None:
        """As the `torch` backend, which runs the experts that a rank holds."""
        return TorchBackend().unfit(experts)

    def experts(
        self, x_TL: Tensor, selected: Selected, rows: Rows, experts: Experts, phase: PhaseScope
    ) -> Tensor:
        """Dispatch, this rank's experts over all rows that came, and the way back."""
        at_input = experts.weigh == "input"
        self.sent = {}
        with phase("dispatch"):
            inside = selected.weights_TK if at_input else None
            x_RL = functions.permute(x_TL, inside, rows.place_TK)  # by expert, so by rank as well
            leaving_ne = rows_per_expert(rows).view(self.ranks, -1)
            arriving_ne = torch.empty_like(leaving_ne)
            self._send("counts", arriving_ne, leaving_ne)
            # all-to-all takes the splits from the host: the one wait for the device
            leaving, arriving = leaving_ne.sum(1).tolist(), arriving_ne.sum(1).tolist()
            x_QL = x_RL.new_empty(sum(arriving), x_RL.shape[1])
            self._send("dispatch", x_QL, x_RL, arriving, leaving)
        with phase("permute"):
            local = _regrouped(arriving_ne)
            x_QL = functions.permute(x_QL, None, local.place_TK)
        y_QL = _through(x_QL, local, experts, phase)
        with phase("return"):
            y_QL = y_QL.index_select(0, local.place_TK[:, 0])
            y_RL = torch.empty_like(x_RL)
            self._send("return", y_RL, y_QL, leaving, arriving)
        with phase("combine"):
            outside = None if at_input else selected.weights_TK
            return functions.combine(y_RL, outside, rows.place_TK)

    def _send(
        self,
        what: str,
        into: Tensor,
        out_of: Tensor,
        arriving: list[int] | None = None,
        leaving: list[int] | None = None,
    ) -> None:
        """Exchange rows; count the bytes of those that are for another rank."""
        dist.all_to_all_single(into, out_of, arriving, leaving)
        rows = len(out_of) if leaving is None else sum(leaving)
        own = len(out_of) // self.ranks if leaving is None else leaving[self.rank]
        row = out_of.element_size() * out_of[:1].numel() if len(out_of) else 0
        self.sent[what] = (rows - own) * row


def _regrouped(arriving_ne: Tensor) -> Rows:
    """The order by expert of rows that came ordered by rank and, from each rank, by expert."""
    ranks, held = arriving_ne.shape
    expert_ne = torch.arange(held, device=arriving_ne.device).repeat(ranks)
    return sort_rows(torch.repeat_interleave(expert_ne, arriving_ne.flatten())[:, None], held)


def _through(x_QL: Tensor, rows: Rows, experts: Experts, phase: PhaseScope) -> Tensor:
    """The rows through this rank's experts; a rank may be left without any."""
    if len(x_QL):
        return TorchBackend().rows(x_QL, rows, experts, phase)
    for name in (experts.up_phase, "experts_activation", "experts_down"):
        with phase(name):
            pass
    return x_QL


def sharded_layer(
    block: MoE, ranks: int, rank: int, dtype: torch.dtype, device: torch.device, seed: int
) -> Layer:
    """This rank's part of a layer: its experts, and what every rank has (router, shared experts).

    Raises UserError where the ranks do not divide the experts.
    """
    experts = int(block.values["E"])
    if experts % ranks:
        raise UserError(
            f"{ranks} ranks do not divide the {experts} experts: every rank holds the same number "
            f"(the nearest that divides is {nearest_divisor(experts, ranks)})"
        )
    layer = Layer(
        block,
        backend=ExpertParallel(ranks, rank),
        dtype=dtype,
        device=device,
        seed=seed,
        held=experts // ranks,
    )
    layer.phase_names = tuple(op.name for op in block.rows(Workload("train")))
    generator = torch.Generator(device).manual_seed(seed + 1 + rank)
    with torch.no_grad():
        for weight in _shards(layer).values():
            weight.normal_(0, weight.shape[-1] ** -0.5, generator=generator)
    return layer


def unsharded_layer(layer: Layer) -> Layer:
    """The whole layer with the experts of all ranks, gathered on each of them."""
    whole = Layer(layer.block, dtype=layer.router_ED.dtype, device=layer.router_ED.device)
    own = layer.state_dict()
    shards = _shards(layer)
    with torch.no_grad():
        for name, value in whole.state_dict().items():
            if name in shards:
                parts = list(value.chunk(dist.get_world_size()))
                dist.all_gather(parts, shards[name].data)
            else:
                value.copy_(own[name])
    return whole


def _shards(layer: Layer) -> dict[str, nn.Parameter]:
    """The weights of which each rank holds its part."""
    return {name: weight for name, weight in layer.named_parameters() if name in _SHARDED}
