"""Texts that say the same: readers write whole numbers, truth values and times in ways of their own."""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["merged", "places", "spelling"]

_WHOLE = re.compile(r"-?(?:0|[1-9]\d*)\.0+")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d)(:\d\d)?(\.\d+)?(Z|\+00:00)?")


def spelling(text: str) -> str:
    """The one way in which all texts that say the same are compared.

    Examples
    --------
    >>> [spelling(text) for text in ("1.0", "007", "1.50", "True", "2024-01-02 00:00", "2024-01-02 12:30:00.50Z")]
    ['1', '007', '1.50', 'true', '2024-01-02', '2024-01-02T12:30:00.5Z']
    """
    if text[:1].isdigit() or text[:1] == "-":
        if _WHOLE.fullmatch(text):
            return text.partition(".")[0]
        time = _TIME.fullmatch(text)
        return _time(*time.groups(default="")) if time else text
    lower = text.lower()
    return lower if lower in ("true", "false") else text


def _time(day: str, minute: str, second: str, fraction: str, zone: str) -> str:
    fraction = fraction.rstrip("0").rstrip(".")
    second = "" if second == ":00" and not fraction else second
    zone = "Z" if zone else ""
    return f"{day}{zone}" if minute == "00:00" and not second else f"{day}T{minute}{second}{fraction}{zone}"


def merged(counts: Mapping[str, int]) -> dict[str, int]:
    """How often each text occurs, those that say the same under the most frequent of them.

    Examples
    --------
    >>> merged({"1": 3, "1.0": 2, "x": 1})
    {'1': 5, 'x': 1}
    """
    shown: dict[str, str] = {}
    found: dict[str, int] = {}
    for text in sorted(counts, key=lambda text: (-counts[text], text)):
        first = shown.setdefault(spelling(text), text)
        found[first] = found.get(first, 0) + counts[text]
    return found


def places(names: Sequence[str], texts: Iterable[str]) -> NDArray[np.intp]:
    """Place of each of the texts among the names, however it is written; -1 where it is none of them.

    Examples
    --------
    >>> places(["1", "x"], ["1.0", "x", "y"]).tolist()
    [0, 1, -1]
    """
    exact = {name: place for place, name in enumerate(names)}
    alike = {spelling(name): place for name, place in exact.items()}
    found = (exact[text] if text in exact else alike.get(spelling(text), -1) for text in texts)
    return np.fromiter(found, dtype=np.intp)
