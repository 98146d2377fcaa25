from __future__ import annotations

import math
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.errors import UserError
from moeplan.units import (
    fmt_bytes,
    fmt_count,
    fmt_flops,
    fmt_money,
    fmt_rate,
    fmt_time,
    parse,
)

# What four significant digits may lose, with room for halfway cases.
FOUR_DIGITS = 0.000501

READ = [
    ("141 GB", "bytes", 141_000_000_000),
    ("141GB", "bytes", 141_000_000_000),
    ("80 GiB", "bytes", 85_899_345_920),
    ("1 TiB", "bytes", 1024**4),
    ("512 B", "bytes", 512),
    ("1.5 kB", "bytes", 1500),
    ("4.8 TB/s", "bandwidth", 4_800_000_000_000),
    ("3,350 GB/s", "bandwidth", 3_350_000_000_000),
    ("400 Gb/s", "bandwidth", 50_000_000_000),
    ("400 Gbit/s", "bandwidth", 50_000_000_000),
    ("400 Gbps", "bandwidth", 50_000_000_000),
    ("800 GiB/s", "bandwidth", 858_993_459_200),
    ("989 TFLOP/s", "flops", 989_000_000_000_000),
    ("494.5 TFLOP/s", "flops", 494_500_000_000_000),
    ("1.979 PFLOPS", "flops", 1_979_000_000_000_000),
    ("624 TOP/s", "flops", 624_000_000_000_000),
    ("2s", "time", 2),
    ("50ms", "time", 0.05),
    ("3.33 us", "time", 3.33e-6),
    ("3.33 µs", "time", 3.33e-6),
    ("3.33 \N{GREEK SMALL LETTER MU}s", "time", 3.33e-6),
    ("3.7 d", "time", 319_680),
    ("1.5 h", "time", 5400),
    ("14.8T", "count", 14_800_000_000_000),
    ("671B", "count", 671_000_000_000),
    ("32k", "count", 32_000),
    ("128Ki", "count", 131_072),
    ("4096", "count", 4096),
    ("46,702,792,704", "count", 46_702_792_704),
    ("1e12", "count", 10**12),
    ("2.788e6", "count", 2_788_000),
    ("$2/h", "money", 2),
    ("$2.50 / GPU-hour", "price", 2.5),
    ("$5.576M", "money", 5_576_000),
    ("$1,300", "money", 1300),
    ("700 W", "power", 700),
    ("1.73 kW", "power", 1730),
]


@pytest.mark.parametrize(("text", "kind", "value"), READ)
def test_reads_a_quantity_into_si(text, kind, value):
    got = parse(text, kind)
    assert got == value
    assert type(got) is type(value)  # whole numbers stay exact ints


def test_a_gib_is_seven_percent_more_than_a_gb():
    assert Fraction(parse("1 GiB", "bytes"), parse("1 GB", "bytes")) == Fraction(1024**3, 1000**3)


def test_eight_bits_are_a_byte():
    assert 8 * parse("1 Gb/s", "bandwidth") == parse("1 GB/s", "bandwidth")


def test_a_python_number_is_a_count_or_dollars_and_never_bytes():
    assert parse(4096, "count") == 4096
    assert parse(2.5, "price") == 2.5
    for value in (math.nan, math.inf, -1):
        with pytest.raises(UserError, match="0 or more"):
            parse(value, "count")
    for kind in ("bytes", "bandwidth", "flops", "time", "power"):
        with pytest.raises(UserError, match="a quoted text with a unit"):
            parse(80, kind)


REFUSED = [
    # text, kind, what the message must say
    ("80 gb", "bytes", "'GB' (1e9 bytes)"),
    ("80 Gb", "bytes", "bits, and a size is in bytes (did you mean 'GB'?)"),
    ("80 Gibit", "bytes", "did you mean 'GiB'?"),
    ("80 gib", "bytes", "'GiB' (2**30 bytes)"),
    ("80 KB", "bytes", "'kB' (1e3 bytes)"),
    ("80", "bytes", "the unit is missing"),
    ("80G", "bytes", "did you mean 'GB'?"),
    ("80 GB/s", "bytes", "unknown unit 'GB/s'"),
    ("4.8 tb/s", "bandwidth", "'TB/s' (1e12 bytes) or 'Tb/s' (1e12 bits)"),
    ("4.8 TB", "bandwidth", "did you mean 'TB/s'?"),
    ("400 GBps", "bandwidth", "did you mean 'GB/s'?"),
    ("400 gbps", "bandwidth", "'Gbps' (1e9 bits)"),
    ("4,8 TB/s", "bandwidth", "the decimal point is '.'"),
    ("989 TFLOP", "flops", "did you mean 'TFLOP/s'?"),
    ("989 TFLOPs", "flops", "did you mean 'TFLOP/s'?"),
    ("989 Tflop/s", "flops", "'TFLOP/s'"),
    ("989 TB/s", "flops", "unknown unit 'TB/s'"),
    ("5 M", "time", "unknown unit 'M'"),
    ("5 Min", "time", "'min'"),
    ("7 b", "count", "'B'"),
    ("1.5", "count", "a whole number"),
    ("0.5k5", "count", "unknown unit 'k5'"),
    ("-3 GB", "bytes", "0 or more"),
    ("nan GB", "bytes", "0 or more"),
    ("inf s", "time", "0 or more"),
    ("", "count", "0 or more"),
    (".", "count", "0 or more"),
    ("9" * 100, "count", "0 or more"),
    ("\N{ARABIC-INDIC DIGIT FIVE} GB", "bytes", "0 or more"),
    ("2", "price", "dollars start with '$'"),
    ("$2", "price", "end it with '/h'"),
    ("$2/s", "money", "unknown unit '/s'"),
    ("\N{EURO SIGN}2/h", "price", "dollars start with '$'"),
    (True, "count", "a quoted text"),
    (None, "count", "a quoted text"),
]


@pytest.mark.parametrize(("text", "kind", "says"), REFUSED)
def test_refuses_what_is_not_plain_and_says_what_to_write(text, kind, says):
    with pytest.raises(UserError) as error:
        parse(text, kind, where="gpus.toml, h100, memory_bytes")
    message = str(error.value)
    assert message.startswith(f"gpus.toml, h100, memory_bytes: cannot read {text!r} as ")
    assert says in message
    assert re.search(r"; write it like '.+'", message)
    assert "\n" not in message


@given(st.text(max_size=12), st.sampled_from(["bytes", "bandwidth", "time", "count", "money"]))
def test_any_text_is_read_or_refused_in_one_sentence(text, kind):
    try:
        value = parse(text, kind)
    except UserError:
        return
    assert value >= 0
    assert any(digit in text for digit in "0123456789")


@given(
    st.decimals(min_value=0, max_value=10**9, places=4, allow_nan=False, allow_infinity=False),
    st.sampled_from(["B", "kB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB"]),
)
def test_reading_is_exact(number, unit):
    steps = "kMGT".find(unit[0]) + 1 if unit[0] in "kMGT" else 1 if unit[0] == "K" else 0
    exact = Fraction(number) * (1024 if "i" in unit else 1000) ** steps
    got = parse(f"{number:f} {unit}", "bytes")
    assert got == (int(exact) if exact.denominator == 1 else float(exact))
    assert isinstance(got, int) == (exact.denominator == 1)


sizes = st.floats(min_value=1.0, max_value=1e20) | st.integers(min_value=1, max_value=10**20)


@given(sizes)
def test_bytes_round_trip(value):
    assert parse(fmt_bytes(value), "bytes") == pytest.approx(value, rel=FOUR_DIGITS)
    assert parse(fmt_bytes(value, binary=True), "bytes") == pytest.approx(value, rel=FOUR_DIGITS)


@given(sizes)
def test_rates_round_trip(value):
    assert parse(fmt_rate(value), "bandwidth") == pytest.approx(value, rel=FOUR_DIGITS)
    assert parse(fmt_rate(value, "FLOP"), "flops") == pytest.approx(value, rel=FOUR_DIGITS)


@given(st.floats(min_value=1e-9, max_value=1e11))
def test_times_round_trip(value):
    assert parse(fmt_time(value), "time") == pytest.approx(value, rel=FOUR_DIGITS)


@given(st.floats(min_value=1e-4, max_value=1e12))
def test_money_round_trips_to_four_digits_or_a_cent(value):
    assert parse(fmt_money(value, per="h"), "price") == pytest.approx(value, rel=0.001, abs=0.0051)


@given(st.integers(min_value=0, max_value=10**30))
def test_full_counts_round_trip_exactly(value):
    assert parse(fmt_count(value, full=True), "count") == value


@given(st.integers(min_value=1, max_value=10**17))
def test_short_counts_round_trip_to_four_digits(value):
    assert parse(fmt_count(value), "count") == pytest.approx(value, rel=FOUR_DIGITS)


@given(st.floats(min_value=1e-9, max_value=1e17))
def test_a_written_number_has_at_most_four_digits_before_its_unit(value):
    for text in (fmt_bytes(value), fmt_bytes(value, binary=True), fmt_rate(value), fmt_time(value)):
        number, _ = text.split(" ")
        whole = number.partition(".")[0]
        assert float(number.replace(",", "")) < 1024 or text.endswith(("PB", " d"))
        assert len(whole) <= 4 or text.endswith(" d")


WRITTEN = [
    (fmt_bytes(141e9), "141.0 GB"),
    (fmt_bytes(141e9, binary=True), "131.3 GiB"),
    (fmt_bytes(80 * 2**30, binary=True), "80.00 GiB"),
    (fmt_bytes(512), "512 B"),
    (fmt_bytes(0), "0 B"),
    (fmt_bytes(-2e9), "-2.000 GB"),
    (fmt_bytes(999_960), "1.000 MB"),  # rounding carries into the next unit
    (fmt_bytes(1023.996 * 2**30, binary=True), "1.000 TiB"),
    (fmt_bytes(1010 * 2**20, binary=True), "1010 MiB"),
    (fmt_count(46_702_792_704), "46.70 B"),
    (fmt_count(46_702_792_704, full=True), "46,702,792,704"),
    (fmt_count(14.8e12), "14.80 T"),
    (fmt_count(256), "256"),
    (fmt_count(3.61), "3.610"),  # expected nodes of a token
    (fmt_count(3.614, full=True), "3.61"),
    (fmt_flops(3.3e24), "3.300 YFLOP"),
    (fmt_rate(4.8e12), "4.800 TB/s"),
    (fmt_rate(989e12, "FLOP"), "989.0 TFLOP/s"),
    (fmt_rate(14_800, "token"), "14.80 k token/s"),
    (fmt_rate(67, "token"), "67 token/s"),
    (fmt_time(120.96e-6), "121.0 µs"),
    (fmt_time(14.76e-3), "14.76 ms"),
    (fmt_time(999.96e-6), "1.000 ms"),
    (fmt_time(75), "75.00 s"),
    (fmt_time(900), "15.00 min"),
    (fmt_time(3.7 * 86400), "3.700 d"),
    (fmt_time(0), "0 s"),
    (fmt_time(-0.002), "-2.000 ms"),  # signed errors are times too
    (fmt_time(math.inf), "inf s"),
    (fmt_time(math.nan), "nan s"),
    (fmt_money(2, per="h"), "$2.00/h"),
    (fmt_money(5_576_000), "$5.576 M"),
    (fmt_money(55_760), "$55,760"),
    (fmt_money(999.999), "$1,000"),
    (fmt_money(0.001234), "$0.001234"),
    (fmt_money(-3), "-$3.00"),
    (fmt_money(0), "$0.00"),
]


@pytest.mark.parametrize(("text", "expected"), WRITTEN)
def test_writes_short_fixed_text(text, expected):
    assert text == expected


def test_numpy_numbers_are_written_like_python_ones():
    np = pytest.importorskip("numpy")
    assert fmt_bytes(np.float64(141e9)) == fmt_bytes(141e9)
    assert fmt_count(np.int64(46_702_792_704), full=True) == "46,702,792,704"
