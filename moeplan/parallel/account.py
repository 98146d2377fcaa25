"""Conventions in which engines and papers count memory differently, each by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moeplan.errors import UserError, near_miss

__all__ = ["ACCOUNTS", "Account", "account_named"]


@dataclass(frozen=True)
class Account:
    """What an engine holds where the field does not agree.

    row_map: the map of routed rows that permutation keeps: an index for each of a token's k rows
    ("index"), or an [experts, tokens] mask ("mask", Transformer Engine's mask kernels).
    moe_group: what belongs to the experts' own groups: the routed experts ("routed"), or the whole
    MoE block with router and shared experts, which then tp does not divide ("moe").
    whole: ends of weight names, with a formula of elements that every tp rank holds whole.
    uncounted: ends of weight names that an account leaves out.
    """

    name: str
    about: str
    row_map: Literal["index", "mask"] = "index"
    moe_group: Literal["routed", "moe"] = "routed"
    whole: tuple[tuple[str, str], ...] = ()
    uncounted: tuple[str, ...] = ()

    def replicated(self, weight: str) -> str | None:
        """Formula of the elements of a weight that tensor parallelism does not divide here."""
        return next((part for end, part in self.whole if weight.endswith(end)), None)


ACCOUNTS: dict[str, Account] = {
    a.name: a
    for a in (
        Account("index-map", "as the rows say: a permutation keeps one index per routed row"),
        Account("megatron-core", "Megatron Core with mask-based fused permutation", row_map="mask"),
        Account(
            "arxiv-2502.07846",
            "that paper's: the MoE block is one unit of etp and expert data parallelism, and the "
            "rotary part of the query up-projection is on every tp rank, as in no engine we know",
            moe_group="moe",
            whole=(("q_b_proj.weight", "H*dr*rq"),),
        ),
        Account(
            "arxiv-2603.07685",
            "that paper's: megatron-core, and the router's weights are not in the sum",
            row_map="mask",
            uncounted=("mlp.gate.weight",),
        ),
    )
}


def account_named(name: str) -> Account:
    """The conventions of that name, or an error with a near miss."""
    if name not in ACCOUNTS:
        raise UserError(
            f"account {name!r} is unknown: allowed are {', '.join(ACCOUNTS)}"
            f"{near_miss(name, ACCOUNTS)}"
        )
    return ACCOUNTS[name]
