"""Layouts: reading them, what is legal, and what an error says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeplan.cluster.hardware import cluster
from moeplan.cluster.layout import NUMBERS, Layout
from moeplan.cluster.rules import broken_rules, legal
from moeplan.errors import UserError
from moeplan.load import load_preset
from moeplan.parallel import TrainingJob, TrainingPlan


@pytest.fixture(scope="module")
def plan():
    return TrainingPlan(load_preset("deepseek-v3"), cluster("h800x2048"), TrainingJob())


class TestParse:
    def test_the_documented_form(self):
        layout = Layout.parse("tp=1,pp=16,ep=64,gbs=15360,schedule=dualpipe", gpus=2048)
        assert (layout.tp, layout.pp, layout.ep, layout.dp) == (1, 16, 64, 128)
        assert layout.values["m"] == 120
        assert layout.values["edp"] == 2

    @pytest.mark.parametrize(
        "text",
        [
            "tp=2,pp=4,dp=8,batch=64",
            "tp=2,sp=0,pp=4,vpp=2,dp=8,ep=4,schedule=interleaved,batch=64",
            "pp=3,dp=2,batch=12,recompute=selective:norm+permute,split=8+9+7",
        ],
    )
    def test_what_is_written_is_read_back(self, text):
        layout = Layout.parse(text)
        again = Layout.parse(str(layout))
        for name in (*NUMBERS, "sp", "schedule", "recompute", "selective", "split"):
            assert getattr(layout, name) == getattr(again, name)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("tpp=2", "did you mean"),
            ("tp", "name=value"),
            ("tp=2,tp=4", "given twice"),
            ("tp=two", "whole number"),
            ("tp=0", "at least 1"),
            ("zero=4", "0, 1, 2 or 3"),
            ("schedule=1f1", "did you mean '1f1b'"),
            ("recompute=selective:norms", "did you mean 'norm'"),
            ("split=evn", "did you mean 'even'"),
            ("split=8+x", "a list such as"),
            ("sp=maybe", "0 or 1"),
            ("pp=3", "does not divide the 16 GPUs"),
        ],
    )
    def test_mistakes_are_one_sentence(self, text, said):
        with pytest.raises(UserError, match=said.replace("'", "'")) as caught:
            Layout.parse(text, gpus=16)
        assert "\n" not in str(caught.value)


class TestRules:
    def test_all_violations_are_reported_together(self, plan):
        layout = Layout(tp=3, pp=16, dp=7, ep=48, vpp=2, batch=100, microbatch=3)
        with pytest.raises(UserError) as caught:
            plan.evaluate(layout)
        said = str(caught.value)
        for part in (
            "tp*cp*pp*dp = 3*1*16*7 = 336 must be the 2048 GPUs",
            "microbatch*dp = 3*7 = 21 does not divide batch=100",
            "ep=48 does not divide the 256 experts",
            "ep*etp = 48*1 = 48 does not divide tp*cp*dp = 3*1*7 = 21",
            "tp=3 does not divide the 128 attention heads",
            "vpp=2 needs schedule=interleaved",
        ):
            assert part in said

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"schedule": "dualpipe", "pp": 4, "dp": 512, "batch": 512 * 6}, "at least 2*pp"),
            ({"schedule": "zero-bubble", "pp": 1, "dp": 2048}, "above 1"),
            ({"schedule": "interleaved", "pp": 4, "vpp": 2, "dp": 512, "batch": 512 * 6}, "rounds"),
            ({"pp": 32, "vpp": 2, "schedule": "interleaved", "dp": 64, "batch": 2048}, "61 layers"),
            ({"cp": 3, "dp": 2048 // 3}, "2*cp"),
            ({"order": "tp-cp-ep-pp-dp", "pp": 2, "dp": 1024, "ep": 4}, "order"),
            ({"split": (30, 30), "pp": 2, "dp": 1024}, "60, not 61"),
            ({"split": (31, 30), "pp": 4, "dp": 512}, "2 stages"),
        ],
    )
    def test_rules_of_schedules_orders_and_splits(self, plan, given, said):
        broken = broken_rules(Layout(**given), plan.rules(Layout(**given)), **plan.facts())
        names = [r.name for r in plan.rules(Layout(**given))]
        assert any(said in text for text in broken) or said in names
        assert broken

    def test_experts_need_a_model_with_experts(self):
        dense = TrainingPlan(load_preset("llama-3.1-8b"), cluster("h100x8"), TrainingJob())
        with pytest.raises(UserError, match="no experts"):
            dense.evaluate(Layout(dp=8, ep=2))

    def test_few_key_value_heads_may_be_shared(self):
        """Qwen3-235B has 4 key-value heads: 8 ranks hold each twice."""
        plan = TrainingPlan(load_preset("qwen3-235b-a22b"), cluster("h100x8"), TrainingJob())
        assert plan.legal(Layout(tp=8, ep=8))
        assert not plan.legal(Layout(tp=3))

    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(
            st.tuples(*(st.sampled_from((1, 2, 3, 4, 8, 16, 64)) for _ in range(8))),
            min_size=1,
            max_size=6,
        )
    )
    def test_a_mask_says_what_single_layouts_say(self, plan, rows):
        names = ("tp", "pp", "vpp", "dp", "cp", "ep", "etp", "microbatch")
        columns = {
            n: np.array(c, float) for n, c in zip(names, zip(*rows, strict=True), strict=True)
        }
        for schedule in ("1f1b", "interleaved", "dualpipe"):
            many = Layout(**columns, batch=960, schedule=schedule)
            mask = legal(many, plan.rules(many), **plan.facts())
            for i, row in enumerate(rows):
                one = Layout(**dict(zip(names, row, strict=True)), batch=960, schedule=schedule)
                assert bool(mask[i]) == (not broken_rules(one, plan.rules(one), **plan.facts()))

    def test_zero_in_an_array_is_a_point_that_is_not_legal(self, plan):
        many = Layout(tp=[0, 1], dp=2048, batch=2048)
        assert legal(many, plan.rules(many), **plan.facts()).tolist() == [False, True]


def test_a_layout_without_a_batch_fills_the_pipeline():
    assert Layout(pp=4, dp=8, microbatch=2).batch == 64
    assert replace(Layout(pp=4, dp=8), batch=32).values["m"] == 4


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("recompute=selective:norm+activation+up_projection", "recompute=selective"),
        ("recompute=selective", "recompute=selective"),
        ("recompute=selective:up_projection", "recompute=selective:up_projection"),
    ],
)
def test_usual_groups_of_recomputation_are_not_repeated(given, shown):
    layout = Layout.parse(f"{given},batch=8")
    assert str(layout) == f"batch=8,{shown}"
    assert Layout.parse(str(layout)).selective == layout.selective
