"""Read and write quantities at the door; inside, everything is in SI base units.

Bytes, bytes/second, FLOP/s, seconds, watts, dollars and plain counts come in as text such as
``"4.8 TB/s"`` and go out as short text of four significant digits. Units are case-exact, because
case is all that tells GB (1e9 bytes) from Gb (1e9 bits), and GB is not GiB (2**30 bytes). A number
without a unit is refused unless it is a count.
"""

from __future__ import annotations

import math
import re
from difflib import get_close_matches
from typing import Literal, TypeAlias

from moeplan.errors import UserError

__all__ = [
    "Kind",
    "fmt_bytes",
    "fmt_count",
    "fmt_flops",
    "fmt_gib",
    "fmt_money",
    "fmt_rate",
    "fmt_time",
    "parse",
]

Kind: TypeAlias = Literal["bytes", "bandwidth", "flops", "time", "count", "money", "price", "power"]

_DECIMAL = ("", "k", "M", "G", "T", "P", "E", "Z", "Y", "R", "Q")  # SI prefixes, 1000**i
_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")  # IEC prefixes, 1024**i
_SHORT_SCALE = ("", "k", "M", "B", "T")  # counts: B is 1e9 (billion), T is 1e12 (trillion)

# A unit is (numerator, denominator): factors stay integers, so "141 GB" is exactly an int.
_Factor: TypeAlias = tuple[int, int]


def _scaled(suffixes: tuple[str, ...], den: int = 1) -> dict[str, _Factor]:
    return {p + s: (1000**i, den) for i, p in enumerate(_DECIMAL[:8]) for s in suffixes}


def _binary(suffix: str, den: int = 1) -> dict[str, _Factor]:
    return {p + suffix: (1024**i, den) for i, p in enumerate(_BINARY) if i}


_BYTES = _scaled(("B",)) | _binary("B")
_BITS = _scaled(("b", "bit")) | _binary("bit")
_UNITS: dict[str, dict[str, _Factor]] = {
    "bytes": _BYTES,
    "bandwidth": (
        {f"{unit}/s": factor for unit, factor in _BYTES.items()}
        | {f"{unit}/s": (num, 8) for unit, (num, _) in _BITS.items()}
        | _scaled(("bps",), 8)
    ),
    "flops": _scaled(("FLOP/s", "FLOPS", "OP/s", "OPS")),
    "time": {
        "ns": (1, 10**9),
        "us": (1, 10**6),
        "µs": (1, 10**6),  # U+00B5, the micro sign
        "μs": (1, 10**6),  # U+03BC, the Greek letter
        "ms": (1, 1000),
        "s": (1, 1),
        "min": (60, 1),
        "h": (3600, 1),
        "d": (86400, 1),
    },
    "count": {p: (1000**i, 1) for i, p in enumerate(_SHORT_SCALE)}
    | {"K": (1000, 1), "Ki": (1024, 1), "Mi": (1024**2, 1)},
    "money": {p: (1000**i, 1) for i, p in enumerate(_SHORT_SCALE)},
    "power": _scaled(("W",)),
}
_EXAMPLES: dict[str, str] = {
    "bytes": "'141 GB' or '80 GiB'",
    "bandwidth": "'4.8 TB/s' or '400 Gb/s' (bits)",
    "flops": "'989 TFLOP/s'",
    "time": "'2 s', '50 ms' or '3.7 d'",
    "count": "'14.8T', '4096' or '128Ki'",
    "money": "'$5.576M' or '$2/h'",
    "price": "'$2/h'",
    "power": "'700 W' or '1.73 kW'",
}
_NUMBER = re.compile(
    r"(?P<whole>\d{1,3}(?:,\d{3})+|\d+(?:_\d+)*)?(?:\.(?P<part>\d+))?(?:[eE](?P<exp>[+-]?\d{1,4}))?",
    re.ASCII,
)
_MOST_DIGITS = 60  # more is not a quantity, and int() refuses very long texts
_PER_HOUR = re.compile(r"\s*/\s*(?:GPU[- ]?)?(?:h|hr|hour)$", re.IGNORECASE)


def parse(text: str | float, kind: Kind, *, where: str = "") -> int | float:
    """Read one quantity and return it in SI base units, as an int when it is a whole number.

    `kind` is what is expected: ``bytes`` (B), ``bandwidth`` (B/s; bits are divided by 8),
    ``flops`` (FLOP/s), ``time`` (s), ``count`` (a whole number; k, M, B, T are powers of 1000 and
    Ki, Mi of 1024), ``money`` ($, or $ per hour where '/h' is written), ``price`` ($ per hour,
    '/h' required) or ``power`` (W). A Python number is taken as it is where no unit could be
    meant: counts and dollars. `where` names the file and key, or the option, in messages.
    Raises `UserError` for anything else; nothing is guessed.
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        dollars = "$" if kind in ("money", "price") else ""
        if kind == "count" or dollars:
            text = f"{dollars}{text!r}{'/h' if kind == 'price' else ''}"
    if not isinstance(text, str):
        raise UserError(_message(text, kind, "a quoted text with a unit is needed", where))
    body = text.strip()
    if kind in ("money", "price"):
        body = _strip_money(text, body, kind, where)
    found = _NUMBER.match(body)
    digits = (found["whole"] or "") + (found["part"] or "") if found else ""
    if not found or not 0 < len(digits) <= _MOST_DIGITS:
        raise UserError(_message(text, kind, "it does not start with a number of 0 or more", where))
    unit = body[found.end() :].strip()
    if unit.startswith(","):
        raise UserError(_message(text, kind, "the decimal point is '.', not ','", where))
    num, den = _factor(text, unit, kind, where)
    power = int(found["exp"] or 0) - len(found["part"] or "")
    num *= int(digits.replace(",", "").replace("_", "")) * int(10 ** max(power, 0))
    den *= int(10 ** max(-power, 0))
    if num % den == 0:
        return num // den
    if kind == "count":
        raise UserError(_message(text, kind, "a count is a whole number", where))
    return num / den  # integers divide with correct rounding


def _strip_money(text: object, body: str, kind: Kind, where: str) -> str:
    if not body.startswith("$"):
        raise UserError(_message(text, kind, "dollars start with '$'", where))
    bare = _PER_HOUR.sub("", body)
    if kind == "price" and bare == body:
        raise UserError(_message(text, kind, "a price is per hour: end it with '/h'", where))
    return bare[1:].strip()


def _factor(text: object, unit: str, kind: Kind, where: str) -> _Factor:
    allowed = _UNITS["money" if kind == "price" else kind]
    if unit in allowed:
        return allowed[unit]
    why = _why_not(unit, kind, allowed) if unit else "the unit is missing"
    raise UserError(_message(text, kind, why, where))


def _why_not(unit: str, kind: Kind, allowed: dict[str, _Factor]) -> str:
    """Say what is wrong with a unit: a bit/byte or case trap first, then the closest spelling."""
    if kind == "bytes" and unit in _BITS:
        meant = unit.removesuffix("it")[:-1] + "B"
        return f"{unit!r} is bits, and a size is in bytes (did you mean {meant!r}?)"
    for tail in ("", "ps", "S", "s"):  # TB for TB/s, GBps for GB/s, TFLOPs for TFLOP/s
        meant = unit.removesuffix(tail) + "/s"
        if meant in allowed and unit.endswith(tail):
            return f"{unit!r} is not a rate (did you mean {meant!r}?)"
    alike = [known for known in allowed if known.lower() == unit.lower()]
    if alike and kind in ("bytes", "bandwidth"):
        options = " or ".join(f"{known!r} ({_meaning(known)})" for known in alike)
        return f"case matters, write {options}"
    if alike:
        return f"case matters, write {' or '.join(map(repr, alike))}"
    close = get_close_matches(unit, filter(None, allowed), n=1)
    return f"unknown unit {unit!r}" + (f" (did you mean {close[0]!r}?)" if close else "")


def _meaning(unit: str) -> str:
    stem = unit.removesuffix("/s").removesuffix("ps")
    num, _ = _BYTES.get(stem) or _BITS[stem]
    size = f"2**{num.bit_length() - 1}" if "i" in stem[:2] else f"1e{len(str(num)) - 1}"
    return f"{size} {'bytes' if stem in _BYTES else 'bits'}"


def _message(text: object, kind: Kind, why: str, where: str) -> str:
    prefix = f"{where}: " if where else ""
    noun = {"flops": "FLOP/s", "price": "price per hour"}.get(kind, kind)
    return f"{prefix}cannot read {text!r} as {noun}: {why}; write it like {_EXAMPLES[kind]}"


def fmt_bytes(value: float, *, binary: bool = False) -> str:
    """Write bytes with four digits: ``141.0 GB``, or ``131.3 GiB`` with `binary`."""
    if binary:
        return _write(value, _BINARY, "B", base=1024)
    return _write(value, _DECIMAL, "B")


def fmt_gib(size: float, digits: int = 1) -> str:
    """Bytes in GiB, without the unit, which a column or a sentence has."""
    return f"{size / 2**30:,.{digits}f}"


def fmt_count(value: float, *, full: bool = False) -> str:
    """Write a count: ``46.70 B`` (k, M, B, T), or ``46,702,792,704`` with `full`."""
    if full:
        whole = value if isinstance(value, int) else float(value)
        return f"{int(whole):,}" if whole == int(whole) else f"{whole:,.2f}"
    return _write(value, _SHORT_SCALE, "")


def fmt_flops(value: float) -> str:
    """Write an amount of work in FLOPs: ``3.300 ZFLOP``. Speeds are `fmt_rate(x, "FLOP")`."""
    return _write(value, _DECIMAL, "FLOP")


def fmt_rate(value: float, unit: str = "B") -> str:
    """Write something per second: ``4.800 TB/s``, ``989.0 TFLOP/s``, ``14.80 k token/s``.

    `unit` is B or FLOP, which take SI prefixes, or the name of a thing that is counted.
    """
    if unit in ("B", "FLOP"):
        return _write(value, _DECIMAL, f"{unit}/s")
    return f"{_write(value, _SHORT_SCALE, '')} {unit}/s"


def fmt_time(seconds: float) -> str:
    """Write seconds: ``121.0 µs``, ``14.76 ms``, ``2.500 s``, ``15.00 min``, ``3.700 d``."""
    size = _rounded(seconds)
    if not math.isfinite(size) or size == 0:
        return f"{seconds:.0f} s"
    name, unit = next(
        (name, unit) for name, unit, least in _TIME_STEPS if size >= least or name == "ns"
    )
    return f"{_digits(seconds / unit)} {name}"


# Name, length in seconds, and the least time written with it.
_TIME_STEPS = (
    ("d", 86_400.0, 172_800.0),
    ("h", 3600.0, 3600.0),
    ("min", 60.0, 120.0),
    ("s", 1.0, 1.0),
    ("ms", 1e-3, 1e-3),
    ("µs", 1e-6, 1e-6),
    ("ns", 1e-9, 0.0),
)


def fmt_money(dollars: float, *, per: str = "") -> str:
    """Write dollars: ``$2.00/h`` with `per="h"`, ``$55,760``, ``$5.576 M``, ``$0.001234``."""
    size = abs(dollars)
    if _rounded(size) >= 1e6 or not math.isfinite(size):
        text = _write(size, _SHORT_SCALE, "")
    elif round(size, 2) >= 1000:
        text = f"{size:,.0f}"
    elif size >= 0.01 or not size:
        text = f"{size:.2f}"
    else:
        text = _digits(size)
    return f"{'-' if dollars < 0 else ''}${text}{'/' + per if per else ''}"


def _rounded(value: float) -> float:
    """The size to four digits: rounding comes before the choice of a unit, so that 999.96 µs is
    1.000 ms and never 1000 µs."""
    return float(f"{abs(value):.3e}")


def _digits(value: float) -> str:
    """Four significant digits, plainly written where that is short."""
    places = 3 - int(f"{abs(value):.3e}".partition("e")[2]) if value else 0
    if not -6 <= places <= 9:
        return f"{value:.3e}"
    return f"{value:{',' if abs(value) >= 10_000 else ''}.{max(places, 0)}f}"


def _write(value: float, prefixes: tuple[str, ...], unit: str, base: int = 1000) -> str:
    if not math.isfinite(value):
        return f"{value} {unit}".strip()
    step = 0
    while step < len(prefixes) - 1 and _rounded(value / base**step) >= base:
        step += 1
    plain = step == 0 and float(value) == int(value)
    number = f"{int(value)}" if plain else _digits(value / base**step)
    return f"{number} {prefixes[step]}{unit}".strip()
