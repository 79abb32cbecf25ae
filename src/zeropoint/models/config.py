"""Strict reading of config.json: a field that changes what the model computes is either supported or refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from zeropoint.errors import UnsupportedError

#: Upper limit of any model dimension: a larger value means that the config is damaged.
MAX_SIZE = 1 << 30

#: Upper limit of any number in a config; its inverse is the lower limit of positive numbers.
MAX_NUMBER = 1e30


class Config:
    """The fields of one config.json.

    An accessor raises `UnsupportedError`, naming the field and its value, if the value is not acceptable.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data
        self._read: set[str] = set()

    @property
    def asked(self) -> frozenset[str]:
        """Return the fields that some accessor has read, present in the config or not."""
        return frozenset(self._read)

    def has(self, name: str) -> bool:
        """Return whether the field is present, even if its value is null."""
        self._read.add(name)
        return name in self._data

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value, or `default` if the field is absent or null."""
        self._read.add(name)
        value = self._data.get(name)
        return default if value is None else value

    def size(self, name: str, default: int | None = None) -> int:
        """Return an integer from 1 to `MAX_SIZE`."""
        value = self.get(name, default)
        if type(value) is not int or not 0 < value <= MAX_SIZE:
            self.refuse(name, value)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number of absolute value at most `MAX_NUMBER`, which float32 can represent."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_NUMBER:
            self.refuse(name, value)
        return float(value)

    def positive(self, name: str, default: float | None = None) -> float:
        """Return a number from 1 / `MAX_NUMBER` to `MAX_NUMBER`."""
        value = self.number(name, default)
        if value < 1 / MAX_NUMBER:
            self.refuse(name, value)
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Return a boolean."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            self.refuse(name, value)
        return value

    def only(self, name: str, allowed: Any) -> None:
        """Raise `UnsupportedError` unless the field is absent, null or equal to `allowed`."""
        value = self.get(name, allowed)
        if value != allowed or type(value) is not type(allowed):
            self.refuse(name, value)

    def softcap(self, name: str, default: float) -> float:
        """Return a positive cap, or 0 (no cap) if the value is null. A `default` of 0 means no cap."""
        if self.has(name) and self.get(name) is None:
            return 0.0
        return self.positive(name, default) if self.has(name) or default else 0.0

    def absent(self, name: str) -> None:
        """Raise `UnsupportedError` unless the field is absent or null."""
        value = self.get(name)
        if value is not None:
            self.refuse(name, value)

    def ignore(self, *names: str) -> None:
        """Mark fields as read whose values have no effect in this family, so that `finish` accepts any value."""
        self._read.update(names)

    def unread(self, name: str) -> bool:
        """Return whether the field has a value that no accessor has read."""
        return name not in self._read and self._data.get(name) is not None

    def finish(self, reads: Mapping[str, Any]) -> None:
        """Raise `UnsupportedError` for a field of `reads` with a non-default value that no accessor has read.

        `reads` maps the fields that transformers' code of the family reads to their defaults, so such a field would
        change what the model computes.
        """
        for name, default in reads.items():
            value = self._data.get(name)
            if self.unread(name) and (value != default or type(value) is not type(default)):
                self.refuse(name, value)

    def refuse(self, name: str, value: Any) -> NoReturn:
        """Raise `UnsupportedError` naming the field and its value."""
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        if value is None:
            raise UnsupportedError(f"config.json lacks {name}, which the native engine needs")
        raise UnsupportedError(f"config.json has {name} = {shown}, which the native engine does not cover")
