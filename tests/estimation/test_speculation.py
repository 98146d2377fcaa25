"""Speculative decoding: accepted tokens by enumeration and by lot, costs by hand, relations."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.api import estimate, explain
from moeplan.errors import UserError
from moeplan.estimation.estimate import Estimate
from moeplan.quantity import evaluate
from moeplan.report.estimate_tables import estimate_tables
from moeplan.report.schema import EstimateDocument

BOUNDS = ("lower", "sequential", "upper")
COSTS = ("flops", "bytes", *BOUNDS)


def section(model: str, **scenario: Any) -> Any:
    found = estimate(model, **scenario).tree["speculation"]
    assert found is not None
    return found


def tokens(acceptance: Any, draft: Any) -> Any:
    return evaluate("tokens_per_step(a, N)", {"a": acceptance, "N": draft})


# ---------------------------------------------------------------------------- accepted tokens
@given(st.floats(0, 1), st.integers(0, 7))
def test_tokens_of_a_step_are_the_mean_over_all_outcomes(a: float, draft: int) -> None:
    """Each draft is right or wrong; a step keeps those before the first wrong one, and one more."""
    mean = 0.0
    for right in product((True, False), repeat=draft):
        chance = np.prod([a if ok else 1 - a for ok in right])
        kept = right.index(False) if False in right else draft
        mean += float(chance) * (1 + kept)
    assert tokens(a, draft) == pytest.approx(mean)


@pytest.mark.parametrize(("a", "draft"), [(0.85, 1), (0.6, 3), (0.95, 6)])
def test_tokens_of_a_step_by_lot(a: float, draft: int) -> None:
    drawn = np.random.default_rng(7).random((200_000, draft)) < a
    kept = 1 + np.cumprod(drawn, axis=1).sum(axis=1)
    assert tokens(a, draft) == pytest.approx(kept.mean(), rel=0.01)


def test_ends() -> None:
    assert tokens(0, 5) == 1
    assert tokens(1, 5) == 6
    assert tokens(0.5, 0) == 1


def test_the_published_speed_of_deepseek_v3() -> None:
    """Second tokens are accepted at 85 to 90 %, which gave 1.8 times the tokens per second
    (arXiv 2412.19437, section 5.4.3): steps become fewer by 1 + a, a little more than that."""
    for a in (0.85, 0.90):
        steps = section("deepseek-v3", draft=1, acceptance=a)["tokens_per_step"].value
        assert steps == pytest.approx(1 + a)
        assert 1.8 <= steps < 1.8 * 1.06


# ---------------------------------------------------------------------------------------- costs
def test_a_pass_of_the_module_by_hand() -> None:
    """Twice the module's active matrices and the shared head, and absorbed attention over C."""
    context = 10_000
    e = estimate("deepseek-v3", draft=1, context=context)
    norms = 5 * 7168 + 1536 + 512
    matrices = e["params.mtp_active"].value - norms + 7168 * 129_280
    attention = 2 * context * 128 * (512 + 64 + 512)
    assert e["speculation.drafting.flops"].value == 2 * matrices + attention


def test_verification_is_a_pass_over_more_tokens() -> None:
    """Per token the same FLOPs as decoding; attention reads the cache once for all of them."""
    plain = estimate("deepseek-v3", batch=4)
    found = section("deepseek-v3", draft=3, batch=4)
    per_token = plain["flops.decode_per_token"].value
    assert found["verification"]["flops"].value == 4 * 4 * per_token
    assert found["per_token_without"]["flops"].value == per_token
    read, once = found["verification"]["bytes"].value, found["per_token_without"]["bytes"].value * 4
    assert once < read < 4 * once


@pytest.mark.parametrize("model", ["deepseek-v3", "qwen3.5-35b-a3b", "glm-4.5-air"])
def test_without_drafts_it_is_plain_decoding(model: str) -> None:
    e = estimate(model, draft=0, batch=3)
    found = e.tree["speculation"]
    for name in COSTS:
        assert found["per_token"][name].value == found["per_token_without"][name].value, name
        assert found["drafting"][name].value == 0
    for bound in BOUNDS:
        assert found["step"][bound].value == e[f"time.decode.{bound}"].value
        assert found["speedup"][bound].value == 1


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("model", ["deepseek-v3", "qwen3.5-35b-a3b"])
def test_drafts_that_are_never_right_only_cost(model: str, batch: int) -> None:
    found = section(model, draft=2, acceptance=0.0, batch=batch)
    assert found["tokens_per_step"].value == 1
    for name in COSTS:
        assert found["per_token"][name].value > found["per_token_without"][name].value, name


@pytest.mark.parametrize("batch", [1, 16, 256])
def test_speed_is_below_the_ratio_of_steps(batch: int) -> None:
    found = section("deepseek-v3", draft=1, acceptance=0.9, batch=batch)
    for bound in BOUNDS:
        assert found["speedup"][bound].value < 1.9
    assert found["speedup"]["lower"].value > 1


def test_a_step_is_its_parts_and_costs_the_same_at_any_acceptance() -> None:
    low, high = (section("deepseek-v3", draft=2, acceptance=a) for a in (0.1, 0.9))
    for name in COSTS:
        parts = low["verification"][name].value + low["drafting"][name].value
        assert low["step"][name].value == pytest.approx(parts)
        assert low["step"][name].value == high["step"][name].value
        ratio = high["tokens_per_step"].value / low["tokens_per_step"].value
        gain = low["per_token"][name].value / high["per_token"][name].value
        assert gain == pytest.approx(ratio)


def test_twice_the_passes_cost_twice() -> None:
    once, twice = (section("deepseek-v3", draft=n)["drafting"] for n in (1, 2))
    for name in COSTS:
        assert twice[name].value == pytest.approx(2 * once[name].value)


def test_one_of_several_modules_drafts() -> None:
    """A config with three modules has three times the parameters, and passes of the same cost."""
    from moeplan.presets import preset

    config = dict(preset("deepseek-v3").config)
    one, three = (estimate(config | {"num_nextn_predict_layers": n}, draft=2) for n in (1, 3))
    assert three["speculation.parameters"].value == 3 * one["speculation.parameters"].value
    assert three["speculation.modules"].value == 3
    for name in COSTS:
        path = f"speculation.drafting.{name}"
        assert three[path].value == pytest.approx(one[path].value)


def test_arrays_are_single_estimates() -> None:
    drafts, rates = np.array([0, 1, 4]), np.array([0.3, 0.85, 1.0])
    swept = section("deepseek-v3", draft=drafts, acceptance=rates)
    for place in range(3):
        one = section("deepseek-v3", draft=int(drafts[place]), acceptance=float(rates[place]))
        for name in COSTS:
            at = swept["per_token"][name].value[place]
            assert at == pytest.approx(one["per_token"][name].value), name


# -------------------------------------------------------------------------- asked for, and shown
def test_nothing_where_it_is_not_asked_for_or_no_module_drafts() -> None:
    assert estimate("deepseek-v3").to_dict()["speculation"] is None
    assert estimate("mixtral", draft=1).to_dict()["speculation"] is None
    tables = estimate_tables(estimate("mixtral", draft=1))
    (table,) = (t for t in tables if t.title.startswith("Speculative"))
    assert "no multi-token-prediction module" in table.notes[0]
    titles = [t.title for t in estimate_tables(estimate("deepseek-v3"))]
    assert not any("Speculative" in title for title in titles)


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    e = estimate("deepseek-v3", draft=1, acceptance=0.9, batch=32)
    (table,) = (t for t in estimate_tables(e) if t.title.startswith("Speculative"))
    assert table.values is not None
    by_name = {row[0]: row[1:] for row in table.values}
    assert by_name["step"][0] == e["speculation.step.flops"].value
    assert by_name["faster by"][2] == e["speculation.speedup.lower"].value
    assert "1.9 tokens a step" in table.notes[0]


def test_the_document_and_its_explanation() -> None:
    e = estimate("deepseek-v3", draft=2)
    EstimateDocument.model_validate_json(e.to_json(), strict=True)
    assert json.loads(e.to_json())["speculation"]["modules"] == 1
    (rate,) = (a for a in e.assumptions if a["symbol"] == "a")
    assert rate["value"] == 0.85
    found = explain("deepseek-v3", "speculation.per_token.sequential", draft=2)
    assert list(found.inputs) == ["step", "B", "tokens"]
    assert found.inputs["tokens"].inputs["N"].source.kind == "user"
    assert found.inputs["tokens"].formula == "tokens_per_step(a, N)"


@pytest.mark.parametrize(
    ("scenario", "problem"),
    [
        ({"acceptance": 0.9}, "--acceptance needs --draft"),
        ({"draft": -1}, "--draft is -1: it must be at least 0"),
        ({"draft": 65}, "at most 64"),
        ({"draft": 1.5}, "a whole number"),
        ({"draft": "one"}, "a number is needed"),
        ({"draft": 1, "acceptance": 1.1}, "at most 1"),
        ({"draft": 1, "acceptance": -0.1}, "at least 0"),
        ({"draft": 1, "acceptance": float("nan")}, "at least 0"),
    ],
)
def test_mistakes(scenario: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        estimate("deepseek-v3", **scenario)


def test_every_model_with_modules(models_with_modules: list[Estimate]) -> None:
    assert len(models_with_modules) > 8
    for e in models_with_modules:
        found = e.tree["speculation"]
        assert found["parameters"].value == e["params.mtp"].value > 0, e.spec.name
        assert 0 < found["drafting"]["flops"].value < found["verification"]["flops"].value


@pytest.fixture(scope="module")
def models_with_modules() -> list[Estimate]:
    from moeplan.load import load_preset
    from moeplan.presets import presets

    specs = [load_preset(p.name) for p in presets()]
    return [estimate(s, draft=1) for s in specs if any(g.role == "mtp" for g in s.groups)]
