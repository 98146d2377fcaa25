"""Further families, by sizes alone: the tensors that transformers builds by its defaults."""

from __future__ import annotations

from typing import Any

import pytest

from moeplan.families import read_config
from tests.families.cases_d import BASES, CASES, case
from tests.oracle import compare, oracle, their_config, theirs

pytestmark = pytest.mark.oracle


@pytest.fixture(autouse=True)
def _needs_transformers() -> None:
    oracle()


@pytest.mark.parametrize(("family", "i"), [(f, i) for f in BASES for i in range(-1, len(CASES[f]))])
def test_tensors_are_those_that_transformers_builds(family: str, i: int) -> None:
    data = case(family, i)
    assert compare(read_config(data, family), data) == []


@pytest.mark.parametrize("family", BASES)
def test_each_case_is_another_model(family: str) -> None:
    built = [theirs(case(family, i)) for i in range(-1, len(CASES[family]))]
    assert all(a != b for i, a in enumerate(built) for b in built[:i])
    assert len(CASES[family]) >= 2


# what transformers writes into a file beside the keys of a model, or under a name of its own
WRITTEN = frozenset(
    ("_name_or_path", "id2label", "label2id", "output_attentions", "problem_type", "return_dict")
)


def _kept(data: dict[str, Any]) -> dict[str, Any]:
    """A written file without its empty keys, save the null that says "no rotation"."""
    out = {}
    for key, value in data.items():
        if key not in WRITTEN and (value is not None or key.endswith("_attention")):
            out[key] = _kept(value) if isinstance(value, dict) else value
    return out


# a file that transformers writes has both keys for one number in these, or not the given one
UNWRITTEN = {
    "qwen3_omni_moe": "its talker's class does not write what it needs to be built again",
}


@pytest.mark.parametrize("family", sorted(set(BASES) - set(UNWRITTEN)))
def test_a_file_with_every_default_written_out(family: str) -> None:
    data = case(family, 0)
    full = _kept({**their_config(data).to_dict(), "model_type": family})
    assert compare(read_config(full, family), data) == []
