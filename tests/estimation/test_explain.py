"""Every number of a result can say where it comes from, and what it says is true."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from moeplan.api import estimate, explain
from moeplan.errors import UserError
from moeplan.estimation.estimate import Estimate
from moeplan.quantity import Later, Quantity, evaluate
from moeplan.report.explanation import explain_lines, pretty
from tests.reading import ONE_OF_EACH_FAMILY

# Fields of blocks that no file gives and no user: sizes that a kernel or a format fixes.
OWN_CONSTANTS = {
    "chunk": "tokens of a chunk of the delta rule",
    "times": "how often a projection is applied to a token",
    "state_bits": "element size of a recurrent state",
}


# A calibrated time is the answer of a fit or of a table of measured messages, which is more than a
# formula; constants and bytes are its inputs.
FITTED = re.compile(r"(lower|expected|upper) of the \w+ model|table of \w+ at bytes\*ratio")


def leaves(here: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, quantity or plain value) of every leaf of the document."""
    here = here() if isinstance(here, Later) else here
    if isinstance(here, Mapping):
        for key, below in here.items():
            yield from leaves(below, f"{path}.{key}" if path else key)
    elif isinstance(here, list):
        for i, below in enumerate(here):
            yield from leaves(below, f"{path}.{i}")
    else:
        yield path, here


def quantities(e: Estimate) -> dict[int, tuple[str, Quantity]]:
    """Every quantity that stands in the document or behind it, with a path to it."""
    seen: dict[int, tuple[str, Quantity]] = {}
    stack = [(path, q) for path, q in leaves(e.tree) if isinstance(q, Quantity)]
    while stack:
        path, here = stack.pop()
        if id(here) not in seen:
            seen[id(here)] = path, here
            stack += [(f"{path} < {name}", below) for name, below in here.inputs.items()]
    return seen


def is_sum(q: Quantity) -> bool:
    """Whether the formula only lists what is summed, by names that may hold any sign."""
    names = list(q.inputs)
    bare = [name.split(" (")[0] if name.endswith(")") else name for name in names]
    return q.formula.startswith("sum ") or q.formula in (" + ".join(names), " + ".join(bare))


Known = tuple[Estimate, dict[int, tuple[str, Quantity]]]


@pytest.fixture(scope="module", params=ONE_OF_EACH_FAMILY)
def known(request: pytest.FixtureRequest) -> Known:
    """An estimate of each family, and every quantity of it."""
    e = estimate(request.param)
    return e, quantities(e)


def test_every_number_has_an_origin_that_gives_it(known: Known) -> None:
    _, found = known
    assert len(found) > 1000
    for path, q in found.values():
        assert isinstance(q.value, (int, float)), path
        assert not isinstance(q.value, bool), path
        if q.source is not None:
            assert q.source.where, path
            assert not q.inputs, path
            continue
        assert q.formula, f"{path} has neither formula nor source"
        assert "lambda" not in q.formula, path
        for below in q.inputs.values():
            assert isinstance(below, Quantity), path
        values = {symbol: below.value for symbol, below in q.inputs.items()}
        try:
            again = evaluate(q.formula, values)
        except (NameError, SyntaxError):
            if FITTED.fullmatch(q.formula):
                assert values, path
                continue
            assert is_sum(q), f"{path}: {q.formula} cannot be evaluated from {list(values)}"
            again = sum(values.values())
        assert math.isclose(again, q.value, rel_tol=1e-9), (path, q.formula, again, q.value)


def test_assumptions_are_exactly_what_the_figures_rest_on(known: Known) -> None:
    e, found = known
    reached = {
        q.source.where
        for _, q in found.values()
        if q.source is not None and q.source.kind == "assumed"
    }
    listed = [a["why"] for a in e.assumptions]
    assert len(listed) == len(set(listed))
    assert {a["why"] for a in e.assumptions if a["symbol"]} == reached
    words = [a["why"] for a in e.assumptions if not a["symbol"]]
    assert set(words) >= set(e.spec.notes)


def test_nothing_is_put_down_to_a_user_who_gave_nothing(known: Known) -> None:
    for path, q in known[1].values():
        if q.source is not None and q.source.kind == "user":
            assert q.symbol in OWN_CONSTANTS, f"{path}: {q!r}"


def test_what_the_user_gives_is_no_assumption() -> None:
    given = {
        "context": 1000,
        "batch": 2,
        "microbatch": 3,
        "tokens": 100,
        "ep": 4,
        "node": 4,
        "imbalance": 1.2,
        "attention": "full",
        "cache": "fp8",
        "dispatch": "bf16",
        "combine": "bf16",
        "policy": "copies",
        "gpu": "h100",
    }
    e = estimate("mixtral", **given)
    assert [a["symbol"] for a in e.assumptions] == ["weight_bytes"]  # the optimizer's
    users = {
        q.source.where for _, q in quantities(e).values() if q.source and q.source.kind == "user"
    }
    numbers = [name for name, value in given.items() if not isinstance(value, str)]
    assert users == {f"--{name}" for name in numbers}


def test_a_default_of_the_family_is_an_assumption() -> None:
    config = {
        "model_type": "qwen3",
        "hidden_size": 256,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 100,
        "torch_dtype": "bfloat16",
    }
    with_key, without = estimate(config | {"head_dim": 128}), estimate(config)
    assert without["params.total"].value == with_key["params.total"].value
    added = {a["why"] for a in without.assumptions} - {a["why"] for a in with_key.assumptions}
    (why,) = added
    assert "head_dim" in why


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("params.by_component.routed_experts", "num_local_experts"),
        ("params.active.by_component.routed_experts", "num_experts_per_tok"),
        ("params.by_component.embedding", "vocab_size"),
        ("kv_cache.bytes_per_token", "num_key_value_heads"),
        ("flops.by_component.attention", "num_attention_heads"),
        ("all_to_all.per_layer.dispatch.sent", "hidden_size"),
        ("memory.training.total", "num_hidden_layers"),
        ("time.decode.lower", "intermediate_size"),
    ],
)
def test_numbers_lead_to_the_keys_that_they_depend_on(path: str, key: str) -> None:
    text = "\n".join(explain_lines(path, explain("mixtral", path)))
    assert f"config: {key}" in text


def test_hardware_leads_to_its_datasheet() -> None:
    text = "\n".join(explain_lines("t", explain("mixtral", "time.prefill.lower")))
    assert "peak = 989,000,000,000,000 FLOP/s   [datasheet: " in text
    price = "\n".join(explain_lines("c", explain("mixtral", "cost.dollars_per_gpu_hour")))
    assert "SemiAnalysis" in price


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v3", "gpt-oss-120b", "llama-3.1-8b"])
def test_every_path_of_the_document_can_be_asked(name: str) -> None:
    e = estimate(name)
    document = e.to_dict()
    for path, found in leaves(e.tree):
        here: Any = document
        for part in path.split("."):
            here = here[int(part)] if isinstance(here, list) else here[part]
        assert e[path] is found
        assert here == (found.value if isinstance(found, Quantity) else found)
        (first, *_) = explain_lines(path, found, 0)
        assert first.startswith(path)


def test_lines_of_an_explanation_are_text_alone() -> None:
    lines = list(explain_lines("params.total", explain("deepseek-v3", "params.total")))
    assert all("lambda" not in line and "Quantity(" not in line for line in lines)
    assert any("[config: n_routed_experts" in line for line in lines)
    assert len(lines) < 200


def test_depth_cuts_the_tree() -> None:
    found = explain("deepseek-v3", "params.total")
    sizes = [len(list(explain_lines("n", found, depth))) for depth in range(6)]
    assert sizes[0] == 1
    assert sizes == sorted(set(sizes))


def test_an_unknown_path_says_what_there_is() -> None:
    with pytest.raises(UserError, match=r"did you mean 'active'.*it holds total, active"):
        explain("mixtral", "params.actve")
    with pytest.raises(UserError, match="nothing below it"):
        explain("mixtral", "params.total.more")
    with pytest.raises(UserError, match="has no '9'"):
        explain("mixtral", "params.by_layer.9")


@pytest.mark.parametrize(
    ("formula", "shown"),
    [
        ("2*T*D", "2·T·D"),
        ("half(S**2)", "half(S²)"),
        ("E*(1 - (1 - k/E)**T)", "E·(1 - (1 - k/E)^T)"),
        ("layers * per_layer", "layers·per_layer"),
    ],
)
def test_formulas_are_written_as_the_field_does(formula: str, shown: str) -> None:
    assert pretty(formula) == shown
