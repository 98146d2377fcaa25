"""The router of the measured layer: scores, choice and weights of experts, and the rows' order.

Shape suffixes: T tokens, E experts, K experts a token (top-k), R = T·K rows, G groups of experts.
Nothing here waits for the device: no value is read back to the host.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moeplan.errors import UserError
from moeplan.model.ffn import Routing

__all__ = [
    "SPARSEMIXER_JITTER",
    "Rows",
    "Selected",
    "check_known",
    "rows_per_expert",
    "select",
    "sort_rows",
]

SPARSEMIXER_JITTER = 0.01
"""router_jitter_noise of Phi-3.5-MoE (transformers' PhimoeConfig): SparseMixer drops experts whose
logit is further than twice this share below the best one (arXiv 2409.12136)."""

_KNOWN = {
    "score", "selection_bias", "groups", "group_limit", "group_score", "renormalise", "scale",
    "weigh",
}  # fmt: skip


class Selected(NamedTuple):
    """The experts of each token, int64 ids_TK, and what their outputs count: fp32 weights_TK."""

    ids_TK: Tensor
    weights_TK: Tensor


class Rows(NamedTuple):
    """The order of (token, choice) rows once they are sorted by expert.

    place_TK: int64, the row of a token's choice. ends_E: int32, where each expert's rows end.
    expert_R: int16, the expert of each row, ascending.
    """

    place_TK: Tensor
    ends_E: Tensor
    expert_R: Tensor


def check_known(rule: Routing) -> None:
    """Raise UserError where a rule has a setting that this router does not build."""
    for name in set(rule._fields) - _KNOWN:
        if getattr(rule, name) != Routing._field_defaults.get(name):
            raise UserError(
                f"the measured layer does not build routing with {name}={getattr(rule, name)!r}"
            )


def select(
    logits_TE: Tensor,
    rule: Routing,
    k: int,
    bias_E: Tensor | None = None,
    override_TK: Tensor | None = None,
    expert_scale_E: Tensor | None = None,
    *,
    looked_up: bool = False,
) -> Selected:
    """Choose k experts for each token from fp32 logits.

    bias_E moves the choice and not the weights (DeepSeek-V3, arXiv 2412.19437, 2.1.2).
    override_TK: choices to take instead; their weights still come from the scores, and the choice
    is made all the same, since its time is part of the layer's, unless the layer itself has
    `looked_up` the experts. expert_scale_E: a learned factor on each expert's weights (Gemma 4).
    Gradients flow through the weights alone.
    """
    if rule.score == "sparsemixer":
        return _sparsemixer(logits_TE, k, override_TK)
    scores_TE = _scores(logits_TE, rule)
    choice_TE = scores_TE.detach() if bias_E is None else scores_TE.detach() + bias_E
    if override_TK is None or not looked_up:
        ids_TK = _limited(choice_TE, rule).topk(k, dim=-1).indices
    if override_TK is not None:
        ids_TK = override_TK
    weights_TK = scores_TE.gather(1, ids_TK)
    if rule.score == "softmax_topk":
        weights_TK = weights_TK.softmax(-1)
    elif rule.renormalise:
        weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
    if rule.scale != 1.0:
        weights_TK = weights_TK * rule.scale
    if expert_scale_E is not None:
        weights_TK = weights_TK * expert_scale_E[ids_TK]
    return Selected(ids_TK, weights_TK)


def _scores(logits_TE: Tensor, rule: Routing) -> Tensor:
    if rule.score == "softmax":
        return logits_TE.softmax(-1)
    if rule.score == "sigmoid":
        return logits_TE.sigmoid()
    if rule.score == "sqrtsoftplus":
        return F.softplus(logits_TE).sqrt()
    return logits_TE  # softmax_topk ranks by the logits and normalises the chosen ones


def _limited(choice_TE: Tensor, rule: Routing) -> Tensor:
    """Bar the experts outside each token's best groups."""
    if rule.groups == 1 or rule.group_limit == rule.groups:
        return choice_TE
    choice_TGe = choice_TE.view(len(choice_TE), rule.groups, -1)
    if rule.group_score == "top2_sum":
        rank_TG = choice_TGe.topk(2, dim=-1).values.sum(-1)
    else:
        rank_TG = choice_TGe.amax(-1)
    best_TM = rank_TG.topk(rule.group_limit, dim=-1).indices
    barred_TG = torch.ones_like(rank_TG, dtype=torch.bool).scatter_(1, best_TM, False)
    return choice_TGe.masked_fill(barred_TG.unsqueeze(-1), float("-inf")).flatten(1)


def _sparsemixer(logits_TE: Tensor, k: int, override_TK: Tensor | None) -> Selected:
    """SparseMixer as it runs in inference: k times the best expert, among those close to it.

    Each round's weight is the softmax over the experts that were not chosen yet and whose logit
    is within twice the jitter of the chosen one's, relative to the larger of the two.
    """
    remaining_TE, magnitude_TE = logits_TE, logits_TE.detach().abs()
    ids, weights = [], []
    for i in range(k):
        id_T1 = remaining_TE.detach().argmax(-1, keepdim=True)
        if override_TK is not None:
            id_T1 = override_TK[:, i : i + 1]
        best_T1 = logits_TE.detach().gather(1, id_T1)
        gap_TE = (best_T1 - logits_TE.detach()) / magnitude_TE.clamp(min=best_T1)
        close_TE = remaining_TE.masked_fill(gap_TE > 2 * SPARSEMIXER_JITTER, float("-inf"))
        weights.append(close_TE.softmax(-1).gather(1, id_T1))
        ids.append(id_T1)
        remaining_TE = remaining_TE.scatter(1, id_T1, float("-inf"))
    return Selected(torch.cat(ids, 1), torch.cat(weights, 1))


def sort_rows(ids_TK: Tensor, experts: int) -> Rows:
    """Order the rows by expert, and by token within an expert (a stable sort).

    Keys are 16 bits wide: a radix sort then takes a quarter of the passes.
    """
    expert_R, order_R = ids_TK.flatten().to(torch.int16).sort(stable=True)
    index_R = torch.arange(order_R.numel(), device=order_R.device)
    place_TK = torch.empty_like(order_R).scatter_(0, order_R, index_R).view_as(ids_TK)
    every_E = torch.arange(experts, dtype=torch.int16, device=ids_TK.device)
    ends_E = torch.searchsorted(expert_R, every_E, right=True, out_int32=True)
    return Rows(place_TK, ends_E, expert_R)


def rows_per_expert(rows: Rows) -> Tensor:
    """Rows that each expert gets, int32 [E], on the device."""
    return torch.diff(rows.ends_E, prepend=rows.ends_E.new_zeros(1))
