"""Parsers of option values. A wrong value gets one sentence: what the option takes, what it got, and an example.

argparse puts the option's name in front. Each parser needs no model, so a typo is told before a model is opened.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from zeropoint.errors import ZeropointError, reason
from zeropoint.values.budget import parse_bytes, parse_rate, parse_share

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """A kind of option value: `read` turns a text into the value, or raises `ValueError` or a `ZeropointError`."""

    what: str
    example: str
    read: Callable[[str], T]
    within: Callable[[T], bool] = lambda value: True

    def __call__(self, text: str) -> T:
        """Return the value of a text. Raises `argparse.ArgumentTypeError` if the option does not take it."""
        try:
            value = self.read(text)
            if self.within(value):
                return value
        except (ValueError, ZeropointError):
            pass
        raise argparse.ArgumentTypeError(f"must be {self.what}, got {text!r}: give e.g. {self.example}")


def whole(minimum: int, example: int) -> Kind[int]:
    """Return the kind of whole numbers from `minimum` up."""
    return Kind(f"a whole number, at least {minimum}", str(example), _whole, lambda value: value >= minimum)


def above_zero(what: str, example: str) -> Kind[float]:
    """Return the kind of numbers above zero; `what` names the quantity in the message."""
    return Kind(f"{what} above 0", example, _number, lambda value: value > 0)


def at_least_zero(example: str) -> Kind[float]:
    """Return the kind of numbers from zero up."""
    return Kind("a number, at least 0", example, _number, lambda value: value >= 0)


def probability(example: str, *, zero: bool) -> Kind[float]:
    """Return the kind of numbers up to 1, from zero (`zero`) or above zero."""
    what = "a number from 0 to 1" if zero else "a number above 0, at most 1"
    return Kind(what, example, _number, lambda value: 0 <= value <= 1 and (zero or value > 0))


def _whole(text: str) -> int:
    if not text.strip().lstrip("+-").isdecimal():  # int() also takes 1_000
        raise ValueError
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or "_" in text:
        raise ValueError
    return value


SEED = whole(0, 1)
#: A share of a whole, such as of the tokens or of the parameters.
SHARE = Kind("a share from 0 to 1 or a percentage", "95% or 0.95", parse_share, lambda share: 0 <= share <= 1)
#: A rise or fall relative to the original model's value.
CHANGE = Kind("a share or a percentage above 0", "1% or 0.01", parse_share, lambda change: change > 0)
DROP = Kind("a share between 0 and 1 or a percentage", "2% or 0.02", parse_share, lambda drop: 0 < drop < 1)
MEMORY = Kind("an amount of memory with its unit", "110MB or 1.5GB", parse_bytes, lambda size: size > 0)
RATE = Kind("tokens per second, above 0", "100tok/s", parse_rate, lambda rate: rate > 0)
KL = above_zero("a number of nats per token", "0.02")
SECONDS = above_zero("a number of seconds", "300")


def input_file(text: str) -> str:
    """Return the path of a file to read, unchanged. Raises `argparse.ArgumentTypeError` if it cannot be read."""
    try:
        os.stat(text)
    except (OSError, ValueError) as cause:
        raise argparse.ArgumentTypeError(f"cannot read {text}: {reason(cause)}") from None
    if os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"cannot read {text}: it is a folder, not a file")
    if not os.access(text, os.R_OK):
        raise argparse.ArgumentTypeError(f"cannot read {text}: permission denied")
    return text


def plain_file(text: str) -> str:
    """Return the path of a file that several processes read, so it must not be a pipe; see `input_file`."""
    if not os.path.isfile(input_file(text)):
        raise argparse.ArgumentTypeError(f"cannot read {text} twice: save it as a plain file")
    return text


def format_name(text: str) -> str:
    """Return the name of a number format. Raises `argparse.ArgumentTypeError` for an unknown one."""
    from zeropoint.values.scheme import parse

    return _checked(text, parse)


def format_or_keep(text: str) -> str:
    """Return the name of a number format, or "keep". Raises `argparse.ArgumentTypeError` for another text."""
    return text if text == "keep" else format_name(text)


def algorithm_name(text: str) -> str:
    """Return the name of an algorithm or composition. Raises `argparse.ArgumentTypeError` for an unknown one."""
    from zeropoint import algorithms

    return _checked(text, algorithms.check_name)


def _checked(text: str, check: Callable[[str], object]) -> str:
    try:
        check(text)
    except ZeropointError as cause:
        raise argparse.ArgumentTypeError(str(cause)) from None
    return text
