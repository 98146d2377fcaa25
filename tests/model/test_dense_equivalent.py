"""The dense model beside an MoE: as large as it says, and alike in everything else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moeplan.api import estimate
from moeplan.errors import UserError
from moeplan.load import load_model
from moeplan.model.dense_equivalent import dense_equivalent
from moeplan.model.ffn import DenseFFN, MoE
from moeplan.model.spec import ModelSpec
from moeplan.quantity import plain

MODELS = ("mixtral-8x7b", "deepseek-v3", "gpt-oss-20b", "qwen3-next-80b-a3b", "switch-base-8")


def new_widths(spec: ModelSpec, dense: ModelSpec) -> list[DenseFFN]:
    """The FFNs that stand where MoE blocks stood."""
    old = {id(block) for _, block in spec.blocks(DenseFFN)}
    return [block for _, block in dense.blocks(DenseFFN) if id(block) not in old]


@pytest.mark.parametrize(
    ("name", "match", "width"),
    [
        # k experts and the shared one are one wider FFN; the router's E x D are E/3 of width
        ("mixtral-8x7b", "active", 2 * 14336 + 3),  # 8/3
        ("mixtral-8x7b", "total", 8 * 14336 + 3),
        ("deepseek-v3", "active", 8 * 2048 + 2048 + 85),  # 256/3 = 85.33
        ("deepseek-v3", "total", 256 * 2048 + 2048 + 85),
        # a T5 FFN has two matrices: 8 experts of 3072 and a router of 8 x D, which is 4 of width
        ("switch-base-8", "active", 3072 + 4),
        ("switch-base-8", "total", 8 * 3072 + 4),
    ],
)
def test_width_is_that_of_the_experts_together(name: str, match: str, width: int) -> None:
    spec = load_model(name)
    dense = dense_equivalent(spec, match)  # type: ignore[arg-type]
    assert dense is not None
    assert {plain(block.F) for block in new_widths(spec, dense)} == {width}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("match", ["active", "total"])
def test_size_is_met_to_within_one_unit_of_width(name: str, match: str) -> None:
    moe = estimate(name)
    dense = estimate(dense_equivalent(moe.spec, match))  # type: ignore[arg-type]
    wanted = moe["params.active.all" if match == "active" else "params.total"].value
    matrices = 3 if moe.spec.moe.gated else 2
    unit = moe.spec.moe_layers * matrices * (moe.spec.hidden.value + 1)  # + 1: a bias
    assert abs(dense["params.total"].value - wanted) <= unit / 2
    # a dense model touches all it has, so every definition of active agrees at once
    assert dense["params.active.all"].value == dense["params.total"].value
    if match == "active":
        for definition in ("without_input_embedding", "without_embeddings"):
            path = f"params.active.{definition}"
            assert abs(dense[path].value - moe[path].value) <= unit / 2


@pytest.mark.parametrize("name", MODELS)
def test_all_else_is_alike(name: str) -> None:
    moe = estimate(name)
    dense = estimate(dense_equivalent(moe.spec, "active"))
    assert dense.spec.moe is None
    assert dense["all_to_all"] is None
    for path in ("model.layers", "kv_cache.bytes", "model.vocabulary", "model.hidden_size"):
        assert plain(dense[path]) == plain(moe[path]), path
    for part in ("attention", "head"):
        path = f"flops.by_component.{part}"
        assert dense[path].value == moe[path].value, path
    assert not {"router", "routed_experts"} & set(dense["flops.by_component"])


def test_equal_active_size_does_equal_work() -> None:
    moe = estimate("mixtral-8x7b")
    dense = estimate(dense_equivalent(moe.spec, "active"))
    work = (e["flops.forward_per_token"].value for e in (dense, moe))
    assert next(work) == pytest.approx(next(work), rel=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_stored_in_the_format_of_the_experts(name: str) -> None:
    spec = load_model(name)
    dense = dense_equivalent(spec, "active")
    assert dense is not None
    exchanged = {id(block) for block in new_widths(spec, dense)}

    def formats(model: ModelSpec, kind: type, component: str) -> set[tuple[str, int, str]]:
        return {
            (group.prefix, index, model.checkpoint.of(weight, full.replace("{e}", "0")).name)
            for group, block in model.blocks(kind)
            if kind is MoE or id(block) in exchanged
            for weight in block.weights()
            if weight.component == component and weight.matmul
            for index, full in zip(group.indices, group.tensor_names(weight), strict=True)
        }

    experts = formats(spec, MoE, "routed_experts")
    assert len(experts) == spec.moe_layers
    assert formats(dense, DenseFFN, "dense_ffn") == experts


def test_explains_its_width() -> None:
    spec = load_model("mixtral-8x7b")
    dense = dense_equivalent(spec, "total")
    assert dense is not None
    width = new_widths(spec, dense)[0].F
    experts = 8 * 3 * 4096 * 14336 + 8 * 4096
    assert width.inputs["wanted"].value == 32 * experts
    assert width.inputs["per_unit"].value == 32 * 3 * 4096


def test_dense_models_have_no_equivalent() -> None:
    assert dense_equivalent(load_model("llama-3.1-8b"), "active") is None


def test_unknown_match_is_refused_with_a_near_miss() -> None:
    with pytest.raises(UserError, match=r"'totl'.*active or total.*did you mean 'total'"):
        dense_equivalent(load_model("mixtral-8x7b"), "totl")  # type: ignore[arg-type]


def test_arrays_give_what_numbers_give_one_by_one() -> None:
    spec = load_model("mixtral-8x7b")

    def with_k(k: object) -> ModelSpec:
        def exchange(block: object) -> object:
            return replace(block, k=k) if isinstance(block, MoE) else block

        groups = (replace(g, blocks=tuple(exchange(b) for b in g.blocks)) for g in spec.groups)
        return replace(spec, groups=tuple(groups))  # type: ignore[arg-type]

    def width(model: ModelSpec) -> object:
        dense = dense_equivalent(model, "active")
        assert dense is not None
        return plain(new_widths(model, dense)[0].F)

    many = width(with_k(np.array([1.0, 2.0, 4.0])))
    assert list(many) == [width(with_k(k)) for k in (1, 2, 4)]  # type: ignore[call-overload]
