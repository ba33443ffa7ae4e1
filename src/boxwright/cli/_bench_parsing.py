"""What the options of `boxwright bench` are given as text."""

from __future__ import annotations

import os

from boxwright.core.errors import InputError

_PRECISIONS = ("fp32", "bf16", "fp16", "int8")


def parse_names(text: str | None) -> tuple[str, ...]:
    """Names with commas; none for None."""
    return () if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def parse_precisions(text: str) -> tuple[str, ...]:
    """Precisions with commas.

    Raises:
        InputError: where one is unknown, or there is none.
    """
    names = parse_names(text)
    unknown = [name for name in names if name not in _PRECISIONS]
    if unknown or not names:
        got = ", ".join(map(repr, unknown)) or "none"
        raise InputError("--precisions", expected="some of " + ", ".join(_PRECISIONS), got=got, fix="pass these")
    return names


def parse_cores(text: str | None) -> tuple[int, ...]:
    """The cores of `--cores`: numbers and ranges with commas; none for None.

    Raises:
        InputError: where it is not of that form, or this process may not use one of them.
    """
    if text is None:
        return ()
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    cores: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InputError("--cores", expected="numbers such as 0,1 or 0-3", got=repr(text), fix="pass such numbers")
        cores.update(range(int(first), int(last or first) + 1))
    if not cores or not cores <= usable:
        known = ", ".join(map(str, sorted(usable))) or "none: this system cannot pin"
        raise InputError("--cores", expected=f"some of {known}", got=repr(text), fix="pass cores that are there")
    return tuple(sorted(cores))


def parse_share(option: str, text: str) -> float:
    """A share such as "5%" or "0.05".

    Raises:
        InputError: where it is neither, or negative.
    """
    number = _number(option, text.strip().removesuffix("%"), "a share such as 5% or 0.05", text)
    return number / 100 if text.strip().endswith("%") else number


def parse_points(option: str, text: str) -> float:
    """Points of 100, such as "0.3".

    Raises:
        InputError: where it is no number, or negative.
    """
    return _number(option, text, "points of AP such as 0.3", text)


def _number(option: str, digits: str, expected: str, text: str) -> float:
    try:
        number = float(digits)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise InputError(option, expected=expected, got=repr(text), fix="pass such a number")
    return number
