"""`Scanner` parses a tool call, `{"name": ..., "arguments": {...}}`, while the model writes it."""

from __future__ import annotations

import json

_ARGUMENTS = ("arguments", "parameters")


class Scanner:
    """Parses one JSON object, character by character. `arguments_only`: the whole object is the arguments of a call.

    `name` is the value of "name" once it is complete. `begun`: the arguments have begun. `complete`: the object has
    ended. `failed`: the text is no JSON object.
    """

    def __init__(self, *, arguments_only: bool = False) -> None:
        self.name: str | None = None
        self.begun = arguments_only
        self.complete = self.failed = False
        self._whole = arguments_only
        self._depth = 0
        self._in_string = self._escaped = False
        self._key: str | None = None  # the key of the outermost object whose value is being read
        self._next_key: str | None = None  # a key before its colon
        self._string: list[str] = []  # the string being read, at depth 1
        self._value: list[str] = []  # the arguments not yet taken
        self._quoted = False  # the arguments are JSON inside a string

    def feed(self, text: str) -> int:
        """Read text up to the end of the object; return how many characters were read."""
        for place, character in enumerate(text):
            self._read(character)
            if self.complete or self.failed:
                return place + 1
        return len(text)

    def take(self) -> str:
        """Return the text of the arguments that was read since `take` was last called."""
        if self._quoted and not (self.complete or self.failed):
            return ""
        text = "".join(self._value)
        self._value.clear()
        if self._quoted and text:
            try:
                return str(json.loads(text))
            except ValueError:
                return text
        return text

    def _read(self, character: str) -> None:
        """Read one character."""
        inside = self._whole or self._key in _ARGUMENTS
        if self._in_string:
            self._in_text(character, inside)
        elif character == '"':
            self._in_string = True
            self._string = []
            if inside:
                self._add_argument(character)
        else:
            self._structure(character, inside)

    def _in_text(self, character: str, inside: bool) -> None:
        """Read a character of a string."""
        ends = character == '"' and not self._escaped
        self._escaped = character == "\\" and not self._escaped
        if inside:
            self._value.append(character)
        elif not ends:
            self._string.append(character)
        if ends:
            self._in_string = False
            if self._depth == 1 and not inside:
                self._string_ended()

    def _string_ended(self) -> None:
        """Store the string that has ended: a key of the outermost object, or the value of "name"."""
        try:
            text = str(json.loads('"' + "".join(self._string) + '"', strict=False))
        except ValueError:
            self.failed = True
            return
        if self._key == "name":
            self.name = text
        elif self._key is None:
            self._next_key = text

    def _structure(self, character: str, inside: bool) -> None:
        """Read a character outside strings."""
        if self._depth == 0 and character != "{":
            self.failed = not character.isspace()
            return
        if character in "{[":
            self._depth += 1
            if inside:
                self._add_argument(character)
        elif character in "}]":
            self._depth -= 1
            if inside and (self._depth >= 1 or self._whole):
                self._value.append(character)
            self.complete = self._depth == 0
        elif self._depth == 1 and not self._whole and character == ":" and self._key is None:
            self._key = self._next_key
        elif self._depth == 1 and not self._whole and character == ",":
            self._key = self._next_key = None
        elif inside and (self._whole or self._depth > 1 or not character.isspace()):
            self._add_argument(character)

    def _add_argument(self, character: str) -> None:
        """Add a character to the arguments."""
        if not self.begun:
            self.begun = True
            self._quoted = character == '"'
        self._value.append(character)
