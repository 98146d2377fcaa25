"""Values of axes as users write them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.errors import UserError
from moeplan.sweeping.syntax import axis_values

NUMBERS = st.integers(0, 10**9)


def values(text, kind="count", most=10_000):
    return axis_values("--vary n", text, kind, most)


@given(st.lists(NUMBERS, min_size=1, max_size=8))
def test_a_list_is_read_as_it_stands_each_value_once(numbers):
    assert values(",".join(map(str, numbers))) == list(dict.fromkeys(numbers))


@given(st.integers(0, 1000), st.integers(0, 500), st.integers(1, 60))
def test_a_range_is_pythons_with_its_end(first, length, step):
    assert values(f"{first}:{first + length}:{step}") == list(
        range(first, first + length + 1, step)
    )
    assert values(f"{first}:{first + length}") == list(range(first, first + length + 1))


@given(st.integers(1, 50), st.integers(2, 9), st.integers(0, 9), st.integers(0, 10**6))
def test_factors_multiply_until_they_pass_the_end(first, factor, steps, more):
    last = first * factor**steps + more
    found, here = [], first
    while here <= last:
        found.append(here)
        here *= factor
    assert values(f"{first}:{last}:x{factor}") == found


@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(1, 30))
def test_parts_of_lists_and_ranges_go_together(numbers, last):
    text = ",".join(map(str, numbers)) + f",1:{last}"
    assert values(text) == list(dict.fromkeys([*numbers, *range(1, last + 1)]))


@given(st.text(max_size=20), st.sampled_from(["count", "number", "json", "word", "bandwidth"]))
def test_any_text_is_values_or_one_sentence(text, kind):
    refused = ""
    try:
        found = axis_values("--vary n", text, kind, 100)
    except UserError as problem:
        refused = str(problem)
    if refused:
        assert "--vary n" in refused
    else:
        assert 1 <= len(found) <= 100


@pytest.mark.parametrize(
    ("text", "kind", "found"),
    [
        ("1k:64k:x2", "count", [1000, 2000, 4000, 8000, 16000, 32000, 64000]),
        ("1Ki:4Ki:x2", "count", [1024, 2048, 4096]),
        ("1:1.5:0.1", "number", pytest.approx([1, 1.1, 1.2, 1.3, 1.4, 1.5])),
        ("3.35 TB/s:7 TB/s:x2", "bandwidth", [3_350_000_000_000, 6_700_000_000_000]),
        ("1 TB/s:2 TB/s:500 GB/s", "bandwidth", [10**12, 1.5e12, 2 * 10**12]),
        ("$2/h,$3.5/h,rental", "amount", [2, 3.5, "rental"]),
        ("none,selective:norm+activation", "word", ["none", "selective:norm+activation"]),
        ("[1, 2],[3]", "json", [[1, 2], [3]]),
        ('true,null,"a,b",8,silu', "json", [True, None, "a,b", 8, "silu"]),
        ("0,true", "flag", [False, True]),
        ("1:4:x1.5", "count", [1, 2, 3]),
        ([64, "1k:2k:500"], "count", [64, 1000, 1500, 2000]),
        (np.array([1.0, 2.0]), "count", [1, 2]),
        (8, "count", [8]),
    ],
)
def test_what_is_meant(text, kind, found):
    assert values(text, kind) == found


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("64,,128", "count", "a value is missing"),
        ("8:4", "count", "write 4:8"),
        ("1:8:0", "count", "the step 0 must be more than 0"),
        ("1:8:x1", "count", "a factor is more than 1"),
        ("0:8:x2", "count", "what it multiplies more than 0"),
        ("1:10M", "count", "more than 10,000; --max-points"),
        ("64q", "count", "unknown unit 'q'"),
        ("4800", "bandwidth", "the unit is missing"),
        ("maybe", "flag", "0 or 1 is needed"),
        ([], "count", "no values"),
        ("inf", "number", "a finite number is needed"),
    ],
)
def test_what_is_refused(text, kind, said):
    with pytest.raises(UserError, match=said.replace("'", ".")):
        values(text, kind)
