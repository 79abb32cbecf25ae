"""Reading config.json strictly: a field that changes what a model computes is understood or refused, never ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from zeropoint.errors import UnsupportedError

#: No dimension of a model is larger; a config that says so is damaged.
MAX_SIZE = 1 << 30

#: No number of a config is larger, nor a positive one smaller than its inverse.
MAX_NUMBER = 1e30


class Config:
    """The fields of one config.json. Every accessor raises `UnsupportedError`, naming field and value."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data
        self._read: set[str] = set()

    @property
    def asked(self) -> frozenset[str]:
        """The fields that some accessor asked for, present or not."""
        return frozenset(self._read)

    def has(self, name: str) -> bool:
        """Whether the field is there at all, null or not."""
        self._read.add(name)
        return name in self._data

    def get(self, name: str, default: Any = None) -> Any:
        """The value as it stands; null counts as absent."""
        self._read.add(name)
        value = self._data.get(name)
        return default if value is None else value

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number from 1 up."""
        value = self.get(name, default)
        if type(value) is not int or not 0 < value <= MAX_SIZE:
            self.refuse(name, value)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number that float32 holds."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_NUMBER:
            self.refuse(name, value)
        return float(value)

    def positive(self, name: str, default: float | None = None) -> float:
        value = self.number(name, default)
        if value < 1 / MAX_NUMBER:
            self.refuse(name, value)
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            self.refuse(name, value)
        return value

    def only(self, name: str, allowed: Any) -> None:
        """Refuse any other value than the allowed one (or none)."""
        value = self.get(name, allowed)
        if value != allowed or type(value) is not type(allowed):
            self.refuse(name, value)

    def softcap(self, name: str, default: float) -> float:
        """A positive cap; 0, meaning none, where the config says null."""
        if self.has(name) and self.get(name) is None:
            return 0.0
        return self.positive(name, default) if self.has(name) or default else 0.0

    def absent(self, name: str) -> None:
        """Refuse any value at all."""
        value = self.get(name)
        if value is not None:
            self.refuse(name, value)

    def ignore(self, *names: str) -> None:
        """Count fields as asked for whose values the family's code overwrites."""
        self._read.update(names)

    def unread(self, name: str) -> bool:
        """Whether the field is there and no accessor asked for it."""
        return name not in self._read and self._data.get(name) is not None

    def finish(self, reads: Mapping[str, Any]) -> None:
        """Refuse a field of `reads` (what the family's own code reads, with each default) that no accessor asked for
        and whose value is not the default: it changes what the model computes."""
        for name, default in reads.items():
            value = self._data.get(name)
            if self.unread(name) and (value != default or type(value) is not type(default)):
                self.refuse(name, value)

    def refuse(self, name: str, value: Any) -> NoReturn:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        if value is None:
            raise UnsupportedError(f"config.json lacks {name}, which the native engine needs")
        raise UnsupportedError(f"config.json has {name} = {shown}, which the native engine does not cover")
