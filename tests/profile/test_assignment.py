"""Who gets which token: drawn loads follow their rule, recorded ones are read or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.errors import UserError
from moeplan.profile.assignment import Assignment, read_trace, rows_per_expert


@given(
    st.sampled_from(["uniform", "balanced", "zipf:0", "zipf:1.2", "zipf:10"]),
    st.integers(1, 300), st.integers(1, 40), st.integers(0, 5), st.data(),
)  # fmt: skip
def test_every_token_gets_k_different_experts(
    rule: str, tokens: int, experts: int, seed: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, experts))
    ids = Assignment.parse(rule).ids(tokens, experts, top_k, seed)
    assert ids.shape == (tokens, top_k)
    assert ids.min() >= 0
    assert ids.max() < experts
    assert all(len(set(row)) == top_k for row in ids.tolist())
    assert (ids == Assignment.parse(rule).ids(tokens, experts, top_k, seed)).all()
    assert sum(rows_per_expert(ids, experts)) == tokens * top_k


@given(st.integers(1, 200), st.integers(1, 40), st.data())
def test_balanced_loads_differ_by_one_row_at_most(
    tokens: int, experts: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, experts))
    rows = rows_per_expert(Assignment("balanced").ids(tokens, experts, top_k, 0), experts)
    assert max(rows) - min(rows) <= 1


def test_uniform_loads_are_those_of_chance() -> None:
    rows = np.array(rows_per_expert(Assignment("uniform").ids(20_000, 64, 8, 7), 64))
    mean, deviation = 20_000 * 8 / 64, (20_000 * (8 / 64) * (1 - 8 / 64)) ** 0.5
    assert (np.abs(rows - mean) < 4.5 * deviation).all()
    assert 0.6 < rows.std() / deviation < 1.4


def test_zipf_shares_are_proportional_to_one_over_rank() -> None:
    tokens, experts = 60_000, 20
    rows = sorted(rows_per_expert(Assignment("zipf", 1.2).ids(tokens, experts, 1, 3), experts))
    weights = np.arange(1, experts + 1) ** -1.2
    share = weights / weights.sum()
    deviation = np.sqrt(tokens * share * (1 - share))
    assert (np.abs(np.array(rows[::-1]) - tokens * share) < 5 * deviation + 30).all()


def test_a_larger_exponent_is_more_skewed_and_the_popular_experts_vary() -> None:
    def busiest(s: float, seed: int) -> int:
        return max(rows_per_expert(Assignment("zipf", s).ids(4000, 64, 4, seed), 64))

    assert busiest(0, 1) < busiest(0.6, 1) < busiest(1.2, 1)
    firsts = {
        int(np.argmax(rows_per_expert(Assignment("zipf", 2.0).ids(500, 64, 1, seed), 64)))
        for seed in range(6)
    }
    assert len(firsts) > 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("unifrom", "did you mean 'uniform'"),
        ("zipf", "exponent"),
        ("zipf:much", "exponent"),
        ("zipf:-1", "exponent"),
        ("zipf:nan", "exponent"),
        ("balanced:2", "allowed are uniform, balanced, zipf:EXPONENT"),
        ("trace", "go together"),
        ("", "allowed are"),
    ],
)
def test_a_rule_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Assignment.parse(text)


def test_a_rule_is_written_as_it_is_read() -> None:
    for text in ("uniform", "balanced", "zipf:1.2", "zipf:2"):
        assert Assignment.parse(text).text == text


# -------------------------------------------------------------------------------- traces
IDS = [[3, 1], [0, 2], [1, 0], [3, 2]]


@pytest.fixture(params=["npy", "jsonl"])
def trace(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"trace.{request.param}"
    if request.param == "npy":
        np.save(path, np.array(IDS, dtype=np.int32))
    else:
        path.write_text("".join(f"{json.dumps(ids)}\n" for ids in IDS) + "\n")
    return path


def test_a_trace_is_replayed_from_its_start(trace: Path) -> None:
    rule = Assignment.parse("trace", trace)
    assert rule.ids(3, 4, 2, seed=9).tolist() == IDS[:3]
    assert rule.ids(4, 4, 2, seed=0).dtype == np.int64


@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "said"),
    [
        (5, 4, 2, "holds 4 tokens, and a pass of 5"),
        (2, 3, 2, "names experts 0 to 3, and the layer has 0 to 2"),
        (2, 4, 1, "2 experts a token, and the layer uses 1"),
    ],
)
def test_a_trace_that_does_not_fit_the_layer_is_refused(
    trace: Path, tokens: int, experts: int, top_k: int, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        Assignment.parse("trace", trace).ids(tokens, experts, top_k, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]\n[1, 1]\n", "token 1 names an expert twice"),
        ("[1, 2]\n[1]\n", "line 2: 1 experts, and 2 in the lines before"),
        ("[1, 2]\n\n{}\n", "line 3: expected a list of expert ids"),
        ("[1, true]\n", "line 1: expected a list"),
        ("[1.5]\n", "line 1: expected a list"),
        ("[]\n", "line 1: expected a list"),
        ("nonsense\n", "line 1: expected a list"),
        ("[99999999999999999999999]\n", "exceeds 64 bits"),
        ("", "holds no token"),
    ],
)
def test_lines_that_are_no_trace_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_trace(path)


@pytest.mark.parametrize(
    "array", [np.array([1, 2]), np.array([[0.5, 1.0]]), np.empty((0, 2), dtype=np.int64)]
)
def test_arrays_that_are_no_trace_are_refused(tmp_path: Path, array: Any) -> None:
    np.save(tmp_path / "t.npy", array)
    with pytest.raises(UserError, match=r"expected whole numbers of shape \[tokens, k\]"):
        read_trace(tmp_path / "t.npy")


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_trace(tmp_path / "absent.npy")
    (tmp_path / "t.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"not a \.npy array"):
        read_trace(tmp_path / "t.npy")
    (tmp_path / "t.csv").write_text("1,2")
    with pytest.raises(UserError, match=r"a trace is a \.npy or a \.jsonl file"):
        read_trace(tmp_path / "t.csv")
    with pytest.raises(UserError, match="go together"):
        Assignment.parse("uniform", tmp_path / "t.npy")
