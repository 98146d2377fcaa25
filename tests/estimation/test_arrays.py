"""One code path: every preset as arrays of three against three scalar runs, number by number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from moeplan.api import estimate
from moeplan.estimation.flops import forward
from moeplan.estimation.memory import weight_bytes
from moeplan.estimation.parameters import count
from moeplan.model.ffn import MoE
from moeplan.model.workload import Workload
from moeplan.quantity import Later, Quantity, derive
from tests.reading import ONE_OF_EACH_FAMILY, READABLE, spec_of

# Different in each place, off any round number, below and above windows, chunks and top-k limits.
VARIED: dict[str, list[int]] = {
    "context": [100, 5000, 40_000],
    "batch": [1, 3, 17],
    "microbatch": [2, 1, 4],
    "tokens": [1, 700, 9000],
}


def numbers(here: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every number and word of a tree."""
    here = here() if isinstance(here, Later) else here
    if isinstance(here, Quantity):
        yield path, here.value
    elif isinstance(here, Mapping):
        for key, below in here.items():
            yield from numbers(below, f"{path}.{key}")
    elif isinstance(here, (list, tuple)):
        if path.endswith((".bound", ".outside")):
            yield path, here
        else:
            for i, below in enumerate(here):
                yield from numbers(below, f"{path}.{i}")
    else:
        yield path, here


def picked(value: Any, i: int) -> Any:
    """The i-th point of an array; what does not vary is the same at all of them."""
    if isinstance(value, np.ndarray):
        return value[i].item() if value.ndim else value.item()
    return value[i] if isinstance(value, list) else value


def _words(value: Any) -> list[str]:
    return value.split() if isinstance(value, str) else list(value)


def agree(arrays: Any, scalars: list[Any]) -> int:
    """Compare three scalar trees with one of arrays; return how many numbers were arrays."""
    vectors = dict(numbers(arrays))
    varied = sum(isinstance(value, np.ndarray) for value in vectors.values())
    for i, tree in enumerate(scalars):
        single = dict(numbers(tree))
        assert single.keys() == vectors.keys()
        for path, value in single.items():
            if path.endswith(".outside"):  # words: those of any point
                assert set(_words(value)) <= set(_words(vectors[path])), path
                continue
            vector = picked(vectors[path], i)
            if isinstance(value, int) and abs(value) < 2**53:
                assert vector == value, path
            elif isinstance(value, (int, float)) and not isinstance(value, bool):
                assert math.isclose(vector, value, rel_tol=1e-12), (path, vector, value)
            else:
                assert vector == value, path
    return varied


def fixed(name: str) -> dict[str, Any]:
    """A legal expert-parallel group, given because an array of E has no default."""
    moe = spec_of(name).moe
    if moe is None:
        return {}
    experts = moe.values["E"]
    return {"ep": math.gcd(experts, 16), "node": math.gcd(experts, 4), "imbalance": 1.5}


@pytest.mark.parametrize("name", READABLE)
def test_whole_document(name: str) -> None:
    spec, layout = spec_of(name), fixed(name)
    arrays = estimate(spec, **{k: np.array(v) for k, v in VARIED.items()}, **layout)
    scalars = [estimate(spec, **{k: v[i] for k, v in VARIED.items()}, **layout) for i in range(3)]
    varied = agree(arrays.tree, [e.tree for e in scalars])
    assert varied > 100  # most of what depends on a length does vary
    assert isinstance(arrays.to_dict()["kv_cache"]["bytes"], list)


@pytest.mark.parametrize("name", [n for n in ONE_OF_EACH_FAMILY if spec_of(n).moe is not None])
def test_whole_document_over_experts(name: str) -> None:
    """Experts, top-k and expert width of every MoE block varied at once, with the tokens."""
    spec = spec_of(name)
    moe = spec.moe
    assert moe is not None
    E, k, F = moe.values["E"], moe.values["k"], moe.values["F"]
    points = {"E": [E, 2 * E, 4 * E], "k": [k, 1, min(k + 1, E)], "F": [F, 64, 3 * F]}
    tokens, layout = [1, 700, 9000], fixed(name)
    arrays = estimate(
        spec.vary(MoE, **{s: np.array(v) for s, v in points.items()}),
        tokens=np.array(tokens),
        **layout,
    )
    scalars = [
        estimate(spec.vary(MoE, **{s: v[i] for s, v in points.items()}), tokens=tokens[i], **layout)
        for i in range(3)
    ]
    assert agree(arrays.tree, [e.tree for e in scalars]) > 100


def test_arrays_broadcast_against_each_other() -> None:
    """Three contexts in a row, two batches in a column: six estimates."""
    contexts, batches = np.array([[1000, 2000, 4000]]), np.array([[1], [8]])
    e = estimate("mixtral", context=contexts, batch=batches)
    held = e.tree["kv_cache"]["bytes"].value
    assert held.shape == (2, 3)
    for i, B in enumerate((1, 8)):
        for j, C in enumerate((1000, 2000, 4000)):
            assert (
                held[i, j]
                == estimate("mixtral", context=C, batch=B).tree["kv_cache"]["bytes"].value
            )


# --------------------------------------------------------------------------- exact and unbounded
@pytest.mark.parametrize("name", READABLE)
def test_counts_of_one_design_are_exact_whole_numbers(name: str) -> None:
    """No float slips into a scalar count, whatever its size.

    What a token touches is an expectation where it gets part of an expert on average (ZAYA1).
    """
    e = estimate(spec_of(name), context=1_000_003, batch=7)
    for path in ("params.total", "params.active.all", "params.mtp", "params.buffers"):
        if path == "params.active.all" and name == "zaya1-8b":
            continue
        assert type(e[path].value) is int, path
    assert all(type(q.value) is int for q in e.tree["params"]["by_component"].values())
    assert type(e["kv_cache.bytes"].value) is int
    assert type(e["memory.training.total"].value) is int


def test_exact_beyond_what_a_float_holds() -> None:
    spec = spec_of("mixtral-8x7b").vary(MoE, E=10**15 + 1)
    expert = 3 * 4096 * 14336
    layer = (10**15 + 1) * (expert + 4096)
    rest = count(spec_of("mixtral-8x7b")) - 32 * 8 * (expert + 4096)
    assert count(spec) == 32 * layer + rest
    assert int(float(count(spec))) != count(spec)


def test_training_flops_of_a_run_do_not_overflow() -> None:
    """6·N·tokens of 1.5 T parameters and 10¹⁶ tokens is beyond int64, whose arithmetic wraps."""
    N, tokens = 1_500_000_000_000, 10_000_000_000_000_000
    exact = 6 * N * tokens
    assert exact > 2**63
    scalar = derive("6*N*tokens", N=N, tokens=tokens)
    array = derive("6*N*tokens", N=np.array([N, N]), tokens=np.array([tokens, 1], dtype=np.int64))
    assert scalar.value == exact
    assert array.value[0] == float(exact)
    assert array.value.dtype == np.float64


def test_integer_arrays_do_not_overflow_in_the_folds() -> None:
    spec = spec_of("deepseek-v3")
    lengths = [2**20, 2**31]
    many = np.array(lengths, dtype=np.int64)
    found = forward(spec, Workload("prefill", B=np.array([2**20]), S=many, C=many))
    exact = [forward(spec, Workload("prefill", B=2**20, S=n, C=n)) for n in lengths]
    assert exact[1] > 2**63
    assert found == pytest.approx([float(n) for n in exact], rel=1e-12)
    wide = spec.vary(MoE, E=np.array([2**40], dtype=np.int64))
    assert weight_bytes(wide)[0] > 2**63


def test_no_scalar_of_numpy_makes_a_count_wrap() -> None:
    """A numpy integer is taken for the number that it is."""
    e = estimate("mixtral", context=np.int32(2**30), batch=np.int64(2**20))
    assert e["kv_cache.bytes"].value == 131_072 * 2**50
    assert type(e["kv_cache.bytes"].value) is int
