"""Numbers and foreign text as a reader of the report should see them."""

import math
import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeGuard

import numpy as np

from vae_anomaly.metrics import Interval

__all__ = [
    "as_figure",
    "as_number",
    "as_numbers",
    "as_percent",
    "as_signed",
    "as_text",
    "as_value",
    "confidence_of",
    "is_finite",
    "range_of",
]

# Control characters would make the file invalid HTML; lone surrogates come from file names that are not UTF-8.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def as_value(value: object) -> str:
    """Any value as a reader would write it."""
    if value is None:
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, Real):
        return as_number(float(value))
    if isinstance(value, Mapping):
        return as_text("\n".join(f"{name}: {as_value(entry)}" for name, entry in value.items()))
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        entries = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return as_text(", ".join(as_value(entry) for entry in entries))
    return as_text(value)


def as_text(value: object, limit: int = 1000) -> str:
    """Text that is safe to show: of limited length, without characters that no page may hold."""
    text = UNPRINTABLE.sub("\ufffd", str(value))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def is_finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, Real) and math.isfinite(value)


def as_number(value: float | None, digits: int = 5) -> str:
    """A number with as many digits as help; a dash where there is none."""
    if value is None or np.isnan(value):
        return "–"
    if np.isinf(value):
        return "∞" if value > 0 else "−∞"
    if 1 <= abs(value) < 1e7:
        text = f"{value:,.{max(digits - len(str(int(abs(value)))), 0)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        text = f"{value:.{digits - 1}g}"
    return text.replace("-", "−")


def as_numbers(values: Sequence[float | None], digits: int = 5) -> list[str]:
    """Numbers with as many decimals each, so that they can be compared down a column."""
    largest = max((abs(value) for value in values if is_finite(value)), default=0)
    if not 1e-3 <= largest < 1e7:
        return [as_number(value, digits) for value in values]
    decimals = max(digits - len(str(int(largest))), 0)
    return [f"{v:,.{decimals}f}".replace("-", "−") if is_finite(v) else as_number(v) for v in values]


def as_figure(value: float | None) -> str:
    """A figure between 0 and 1 with three decimals, or more where three would round it to 0 or 1."""
    return "–" if value is None else _rounded(value, 3)


def as_percent(value: float | None) -> str:
    """A share in percent with one decimal, or more where one would round it to 0 or 100 %."""
    return "–" if value is None else f"{_rounded(100 * value, 1, whole=100)}\u00a0%"


def as_signed(value: float | None) -> str:
    """A difference with three decimals, or more where three would round it to 0."""
    if value is None:
        return "–"
    decimals = 3
    while decimals < 6 and value != 0 and round(value, decimals) == 0:
        decimals += 1
    return f"{value:+.{decimals}f}".replace("-", "−")


def range_of(figure: Interval) -> str:
    """Ends of an interval of a share, in percent."""
    return "" if figure.low is None else f"{as_percent(figure.low)[:-2]}–\u2060{as_percent(figure.high)}"


def confidence_of(figure: Interval) -> str:
    """The confidence that the method of an interval ends with."""
    return figure.method.rpartition(", ")[2].replace(" ", "\u00a0")


def _rounded(value: float, decimals: int, whole: float = 1) -> str:
    if value in (0, whole) and whole == 100:
        return f"{value:.0f}"
    while decimals < 8 and value not in (0, whole) and round(value, decimals) in (0, whole):
        decimals += 1
    return f"{value:.{decimals}f}"
