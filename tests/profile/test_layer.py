"""The `torch` backend computes what the fp32 loop over experts does, for every kind of layer."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from moeplan.errors import UserError
from moeplan.load import load_preset
from moeplan.model.ffn import MoE, Routing
from moeplan.presets import presets
from moeplan.profile.backends import backend_named, register
from moeplan.profile.layer import Layer, phase_names
from moeplan.profile.phases import Phases
from tests.profile.cases import errors, is_built, kinds, small

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
NAMES = sorted(kinds())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_output_and_gradients_equal_the_reference(name: str, dtype: torch.dtype) -> None:
    layer = Layer(kinds()[name], dtype=dtype)
    found = errors(layer, tokens=24)
    assert max(found.values()) < TOLERANCE[dtype], found


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_one_token(name: str, dtype: torch.dtype) -> None:
    layer = Layer(kinds()[name], dtype=dtype)
    found = errors(layer, tokens=1)
    if dtype == torch.bfloat16:
        _without_router(found)
    assert max(found.values()) < TOLERANCE[dtype], found


def _without_router(found: dict[str, float]) -> None:
    """Take the router's gradients out, where rounding cancels them.

    Weights that sum to one make them differences of nearly equal numbers, and one token, or tokens
    that all choose alike, give no others to average with.
    """
    for name in [name for name in found if name.startswith(("router", "expert_scale"))]:
        assert found.pop(name) < 0.1


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_all_tokens_on_the_same_experts(name: str, dtype: torch.dtype) -> None:
    layer = Layer(kinds()[name], dtype=dtype)
    ids_TK = torch.arange(layer.k).expand(17, -1)
    found = errors(layer, 17, ids_TK)
    if dtype == torch.bfloat16:
        _without_router(found)
    assert max(found.values()) < TOLERANCE[dtype], found


def test_empty_experts_get_no_gradient() -> None:
    layer = Layer(small(_moe("olmoe"), experts=24))
    x_TD = layer.input(9)
    ids_TK = torch.arange(layer.k).expand(9, -1) + 2
    y_TD, rows_E = layer.run(x_TD, routing_override=ids_TK)
    y_TD.backward(torch.ones_like(y_TD))
    used = set(range(2, 2 + layer.k))
    assert layer.up_EHL.grad is not None
    for e in range(len(rows_E)):
        assert int(rows_E[e]) == (9 if e in used else 0)
        assert bool(layer.up_EHL.grad[e].any()) == (e in used)


def _moe(name: str) -> MoE:
    block = load_preset(name).moe
    assert block is not None
    return block


def test_rows_per_expert_are_the_routers_choices() -> None:
    layer = Layer(small(_moe("deepseek-v3")), dtype=torch.float32)
    x_TD = layer.input(33)
    chosen = Counter(layer.route(x_TD).ids_TK.flatten().tolist())
    rows_E = layer.run(x_TD)[1]
    assert rows_E.tolist() == [chosen[e] for e in range(len(rows_E))]
    assert int(rows_E.sum()) == 33 * layer.k


def test_group_limit_holds() -> None:
    block = small(_moe("deepseek-v3"))
    layer = Layer(block, dtype=torch.float32)
    size = int(block.values["E"]) // block.routing.groups
    groups = layer.route(layer.input(64)).ids_TK // size
    assert max(len(set(row)) for row in groups.tolist()) == block.routing.group_limit


def test_selection_bias_moves_the_choice_and_not_the_weights() -> None:
    layer = Layer(small(_moe("minimax-m2")), dtype=torch.float32)
    assert layer.selection_bias_E is not None
    x_TD = layer.input(20)
    before = layer.route(x_TD)
    layer.selection_bias_E[3] += 10
    after = layer.route(x_TD)
    assert bool((after.ids_TK == 3).any(1).all())
    # a token whose choice did not change keeps its weights
    same = [t for t in range(20) if set(before.ids_TK[t].tolist()) == set(after.ids_TK[t].tolist())]
    for t in same:
        torch.testing.assert_close(before.weights_TK[t].sort()[0], after.weights_TK[t].sort()[0])


def test_doubling_scale_doubles_the_routed_output() -> None:
    block = small(_moe("qwen3-30b"))
    x_TD = Layer(block, dtype=torch.float32).input(8)
    outputs = []
    for scale in (1.0, 2.0):
        scaled = replace(block, routing=block.routing._replace(scale=scale))
        outputs.append(Layer(scaled, dtype=torch.float32)(x_TD))
    torch.testing.assert_close(outputs[1], 2 * outputs[0])


# ------------------------------------------------------------------------------------- phases
@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_phases_are_the_rows(name: str, backend: str) -> None:
    block = kinds()[name]
    layer = Layer(block, backend=backend, dtype=torch.float32)
    opened: dict[str, list[str]] = {"forward": [], "backward": []}

    @contextmanager
    def hook(phase: str, stage: str) -> Iterator[None]:
        opened[stage].append(phase)
        yield

    x_TD = layer.input(5).requires_grad_()
    layer(x_TD, phase_hook=hook).backward(torch.ones(5, layer.D))
    wanted = set(phase_names(block))
    assert set(opened["forward"]) == wanted
    if backend == "torch":
        assert opened["forward"] == list(phase_names(block))
        # a sum hands its gradient on, so its backward does nothing; all the others do something
        assert set(opened["backward"]) >= wanted - {"shared_add"}


def test_a_phase_without_a_row_is_an_error() -> None:
    with pytest.raises(ValueError, match="'sort' has no row"), Phases(["select"])("sort"):
        pass


def test_a_row_without_a_phase_is_an_error() -> None:
    with pytest.raises(ValueError, match="no phase ran for the rows"):
        Phases(["select"]).finish(torch.zeros(1))


def test_the_hook_changes_no_number() -> None:
    layer = Layer(small(_moe("qwen1.5-moe")), dtype=torch.float32)
    grads = []

    @contextmanager
    def hook(_phase: str, _stage: str) -> Iterator[None]:
        yield

    for given in (None, hook):
        x_TD = layer.input(6).requires_grad_()
        layer(x_TD, phase_hook=given).sum().mul(2).backward()
        grads.append(x_TD.grad)
    assert torch.equal(grads[0], grads[1])


# ------------------------------------------------------------------------------------- errors
NOT_BUILT = {
    "Z": "experts without computation: their rows are random numbers, so that neither FLOPs nor "
    "sizes would be what is estimated",
    "Es": "shared experts that take part in the router's softmax",
    "Fv": "experts of a second width for another kind of token",
}


def test_what_is_not_built_is_refused_by_the_setting_that_is_missing() -> None:
    blocks = {(preset.name, id(block)): block for preset in presets()
              for _, block in load_preset(preset.name).blocks(MoE)}  # fmt: skip
    for (name, _), block in blocks.items():
        missing = [field for field in NOT_BUILT if getattr(block, field, None) is not None]
        assert is_built(block) == (not missing), name
        if missing:
            with pytest.raises(UserError, match=rf"does not build MoE\.({'|'.join(missing)})="):
                Layer(block, device="meta")


def test_settings_that_are_not_built_are_refused_by_name() -> None:
    block = small(_moe("mixtral"))
    with pytest.raises(UserError, match=r"does not build MoE\.Z=256"):
        Layer(replace(block, Z=256, r=1), device="meta")
    with pytest.raises(UserError, match=r"activation 'sillu'.*did you mean 'silu'"):
        Layer(replace(block, activation="sillu"), device="meta")
    with pytest.raises(UserError, match=r"backend 'touch' is unknown.*did you mean 'torch'"):
        Layer(block, backend="touch", device="meta")


def test_widths_that_grouped_matmuls_cannot_run_are_refused() -> None:
    block = replace(small(_moe("mixtral")), F=20)
    with pytest.raises(UserError, match="expert width 20 is no multiple of 8"):
        Layer(block)
    Layer(block, dtype=torch.float32)  # 20 floats are 80 bytes


def test_fp64_is_refused() -> None:
    with pytest.raises(UserError, match=r"do not run in torch\.float64"):
        Layer(small(_moe("mixtral")), dtype=torch.float64)


def test_a_backend_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="'torch' is registered already"):
        register(backend_named("torch"))


def test_unknown_routing_settings_are_refused() -> None:
    class Other(Routing):
        _fields = (*Routing._fields, "jitter")
        jitter = 0.1

    with pytest.raises(UserError, match=r"routing with jitter=0\.1"):
        Layer(replace(small(_moe("mixtral")), routing=Other()), device="meta")


def test_without_torch_one_sentence_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import importlib.util as u; found = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else found(name, *rest)\n"
        "import moeplan.profile as p\n"
        "try: p.require_torch()\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("UserError measuring needs PyTorch")
    assert "pip install 'moeplan[profile]'" in run.stdout


def test_nothing_but_the_measuring_package_imports_torch() -> None:
    program = "import sys, moeplan, moeplan.api, moeplan.profile; print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "False"
