"""Numbers as people read them: in the report, in tables of the command line, on axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

MISSING = "–"
_PREFIXES = dict(zip(range(-10, 11), "qryzafpnµm kMGTPEZYRQ", strict=True))
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def known(value: Any) -> bool:
    """Whether there is a finite number to show."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def exponent(value: float) -> int:
    """Power of ten of the first digit; value is not zero."""
    return int(f"{value:e}".partition("e")[2])


def count(value: Any) -> str:
    """A whole number in groups of three digits."""
    return _sign(f"{value:,}") if known(value) else MISSING


def si(value: Any, unit: str = "", digits: int = 3) -> str:
    """`digits` significant digits with an SI prefix: 182 k, 1.46 T."""
    if not known(value):
        return MISSING
    rounded = float(f"{value:.{digits - 1}e}")
    group = exponent(rounded) // 3 if rounded else 0
    if group not in _PREFIXES or not math.isfinite(rounded):
        return scientific(value) + (f"\u202f{unit}" if unit else "")
    scaled = rounded / 10.0 ** (3 * group)
    decimals = digits - 1 - exponent(scaled) if scaled else 0
    suffix = _PREFIXES[group].strip() + unit
    if not group and float(value).is_integer():
        decimals = 0
    return _sign(f"{scaled:.{max(decimals, 0)}f}") + (f"\u202f{suffix}" if suffix else "")


def scientific(value: float, digits: int = 2, trim: bool = True) -> str:
    """1.2×10⁻⁷; trim: 2×10⁻⁷ and 10⁻⁷ where nothing is lost by it."""
    mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
    tail = "10" + str(int(power)).translate(_SUPERSCRIPT)
    if trim and "." in mantissa:
        mantissa = mantissa.rstrip("0").removesuffix(".")
    if mantissa in ("1", "-1"):
        return _sign(mantissa[:-1] + tail)
    return _sign(f"{mantissa}×{tail}")


def short(value: float, digits: int = 4) -> str:
    """A number in a sentence or, with more digits, on an axis: no zeros at the end."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e4:
        return _sign(f"{value:.{digits}g}")
    if not 1 <= abs(value) < 1e15:
        return scientific(value, digits)
    group = exponent(value) // 3
    return _sign(f"{value / 10.0 ** (3 * group):.{digits}g}\u202f{_PREFIXES[group]}")


def fixed(values: Sequence[Any], most: int = 3) -> list[str]:
    """A column of numbers with equally many decimals, so that they align.

    The largest has three significant digits; the smallest too, as far as `most` decimals go. When
    all are tiny, each is written with its power of ten.
    """
    sizes = [exponent(v) for v in values if known(v) and v]
    if sizes and max(sizes) < -3:
        return [_power(value) for value in values]
    places = max(2 - max(sizes), min(2 - min(sizes), most)) if sizes else most
    places = max(places, 0)
    return [_fixed(value, places) for value in values]


def _power(value: Any) -> str:
    if not known(value):
        return MISSING
    return scientific(value, 3, trim=False) if value else "0"


def _fixed(value: Any, places: int) -> str:
    if not known(value):
        return MISSING
    text = f"{value:,.{places}f}"
    if value and (float(text.replace(",", "")) == 0 or abs(value) >= 1e9):
        return scientific(value)
    return _sign(text)


def _sign(text: str) -> str:
    return text.replace("-", "−")


def counted(number: int, one: str, many: str | None = None) -> str:
    """`1 expert`, `12 experts`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def speed(rate: float, unit: str) -> str:
    """`1,234 images/s`, `2.5 images/s`; below one a second `40 s/state`. unit: a plural."""
    if rate >= 1 or not rate:
        return f"{rate:,.0f} {unit}/s" if rate >= 9.95 or not rate else f"{rate:.1f} {unit}/s"
    one = unit.removesuffix("es") if unit.endswith("sses") else unit.removesuffix("s")
    return f"{si(1 / rate, digits=2)} s/{one}"


def duration(seconds: float) -> str:
    """`0 s`, `1.2 s`, `42 s`, `3:07 min`, `12:03 h`, `2.5 d`."""
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 10 or not seconds else f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
    if seconds < 48 * 3600:
        return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d} h"
    return f"{seconds / 86400:.1f} d"
