"""`ToolParser` finds the tool calls in a model's answer while the answer is generated.

Model families write calls in different formats, and a chat template shows the format of its model:

- `hermes` (Hermes, Qwen, SmolLM3): `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`;
- `mistral`: `[TOOL_CALLS][{"name": ..., "arguments": {...}}]`, or the named form
  `[TOOL_CALLS]name[ARGS]{...}`, in which `[CALL_ID]id` may follow the name and `[ARGS]` may be missing;
- `llama` (Llama 3): `{"name": ..., "parameters": {...}}`, several with a semicolon between them;
- `json` (any other model): the JSON of Hermes, with nothing around it.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zeropoint.runtime.streaming import overlap
from zeropoint.serve.json_scan import Scanner

#: The formats of tool calls, which the module's docstring shows.
HERMES, MISTRAL, LLAMA, JSON = "hermes", "mistral", "llama", "json"

#: The text before a tool call in each format that has one.
_MARKERS = {HERMES: "<tool_call>", MISTRAL: "[TOOL_CALLS]", LLAMA: "<|python_tag|>"}
_END = "</tool_call>"
#: A call in Mistral's named form, up to the arguments.
_NAMED = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\w*\s*)?(?:\[ARGS\]\s*)?(?={)")


@dataclass(frozen=True, slots=True)
class CallPart:
    """A fragment of a tool call, as in a streamed answer of OpenAI's API.

    `index` counts the calls of an answer from 0. The first fragment of a call has the `id` and the `name`. Each later
    fragment has the next characters of `arguments`, which is JSON.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


def format_of(template: str | None) -> str:
    """Return the format in which a model with this chat template writes tool calls."""
    text = template or ""
    if "<tool_call>" in text:
        return HERMES
    if "[TOOL_CALLS]" in text:
        return MISTRAL
    if "<|python_tag|>" in text or ('"parameters"' in text and "<|eot_id|>" in text):
        return LLAMA
    return JSON


def call_schema(functions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the JSON Schema of a call of one of these functions, for answers that must be a call."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": each["name"]},
                "arguments": each.get("parameters") or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for each in functions
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


class ToolParser:
    """Splits an answer into text and tool calls.

    `format`: the format of the calls, HERMES, ...; `names`: the functions that the model may call.
    """

    def __init__(self, format: str, names: Collection[str]) -> None:
        self._marker = _MARKERS.get(format)
        self._bare = format in (LLAMA, JSON)  # an answer that begins with a call needs no marker
        self._names = names
        self._rest = ""  # text that is not parsed yet
        self._raw = ""  # the text of the call being read, to show it as text if it is no call
        self._inside = False  # after a marker, where calls are expected
        self._scanner: Scanner | None = None
        self._first = True  # neither text nor a call was parsed yet
        self._announced = False  # the fragment with the call's name was returned
        self.calls = 0

    def push(self, text: str) -> tuple[str, list[CallPart]]:
        """Add text of the answer; return new plain text, and new fragments of calls."""
        self._rest += text
        shown: list[str] = []
        parts: list[CallPart] = []
        while self._step(shown, parts):
            pass
        return "".join(shown), parts

    def finish(self) -> str:
        """End the answer; return the plain text that was held back because it might have become a call."""
        rest, self._rest = self._rest, ""
        if self._scanner is not None and not self._announced:
            rest = self._raw + rest
        elif self._scanner is not None or (self._inside and not rest.strip(" \n\r\t;,[]")):
            rest = ""
        self._scanner = None
        return rest

    def _step(self, shown: list[str], parts: list[CallPart]) -> bool:
        """Parse the next part of the text; return whether more can be parsed now."""
        if not self._rest:
            return False
        if self._scanner is not None:
            return self._in_call(shown, parts)
        return self._between(shown, parts) if self._inside else self._in_text(shown)

    def _in_text(self, shown: list[str]) -> bool:
        """Take plain text, up to the place where calls begin."""
        if self._first and self._bare:
            start = self._rest.lstrip()
            if not start:
                return False
            if start[0] in "{[":
                self._inside, self._first = True, False
                return True
        at = self._rest.find(self._marker) if self._marker else -1
        if at >= 0:
            assert self._marker is not None
            shown.append(self._rest[:at])
            self._rest = self._rest[at + len(self._marker) :]
            self._inside, self._first = True, False
            return True
        held = overlap(self._rest, self._marker) if self._marker else 0
        out = self._rest[: len(self._rest) - held]
        self._rest = self._rest[len(self._rest) - held :]
        self._first = self._first and not out
        shown.append(out)
        return False

    def _between(self, shown: list[str], parts: list[CallPart]) -> bool:
        """Skip brackets, commas and markers before the next call. Return to plain text if no call follows."""
        rest = self._rest.lstrip(" \n\r\t;,]")
        for marker in (_END, self._marker):
            if marker and rest.startswith(marker):
                self._rest = rest[len(marker) :]
                return True
            if marker and rest and marker.startswith(rest):
                return False
        rest = rest.lstrip(
            " \n\r\t["
        )  # a list of calls; after the check for markers, which may begin with [, too
        if not rest:
            self._raw += self._rest
            self._rest = ""
            return False
        if rest[0] == "{":
            self._begin(len(self._rest) - len(rest), Scanner())
            return True
        return self._named_call(parts) or self._leave_calls(shown)

    def _begin(self, skipped: int, scanner: Scanner) -> None:
        """Begin to read a call's JSON after `skipped` characters."""
        self._raw += self._rest[:skipped]
        self._rest = self._rest[skipped:]
        self._scanner, self._announced = scanner, False

    def _named_call(self, parts: list[CallPart]) -> bool:
        """Begin a call in Mistral's named form, if the text is one; return whether it is."""
        match = _NAMED.match(self._rest) if self._marker == _MARKERS[MISTRAL] else None
        if match is None:
            return False
        self._begin(match.end(), Scanner(arguments_only=True))
        self._announced = True
        parts.append(self._new_call(match.group(1)))
        return True

    def _leave_calls(self, shown: list[str]) -> bool:
        """Return to plain text; return False if the text may still become a call's name."""
        if self._marker == _MARKERS[MISTRAL] and re.fullmatch(r"\s*[\w.\-\[\]]*\s*", self._rest):
            return False  # the name may be incomplete
        self._inside = False
        shown.append(self._raw)
        self._raw = ""
        return True

    def _in_call(self, shown: list[str], parts: list[CallPart]) -> bool:
        """Take the JSON of a call."""
        scanner = self._scanner
        assert scanner is not None
        used = scanner.feed(self._rest)
        self._raw += self._rest[:used]
        self._rest = self._rest[used:]
        if not self._announced and scanner.name is not None and (scanner.begun or scanner.complete):
            if self._bare and scanner.name not in self._names:
                return self._show_as_text(shown)
            self._announced = True
            parts.append(self._new_call(scanner.name))
        if self._announced:
            fragment = scanner.take()
            if fragment:
                parts.append(CallPart(self.calls - 1, arguments=fragment))
        if scanner.complete or scanner.failed:
            if not self._announced:
                return self._show_as_text(shown)
            if not scanner.begun and not scanner.failed:
                parts.append(CallPart(self.calls - 1, arguments="{}"))
            self._scanner, self._raw = None, ""
        return bool(self._rest)

    def _show_as_text(self, shown: list[str]) -> bool:
        """Show what looked like a call as plain text; return whether more can be parsed now."""
        self._scanner, self._inside, self._first = None, False, False
        shown.append(self._raw)
        self._raw = ""
        return bool(self._rest)

    def _new_call(self, name: str) -> CallPart:
        """Return the first fragment of a new call."""
        self.calls += 1
        return CallPart(self.calls - 1, id=f"call_{secrets.token_hex(12)}", name=name)


def with_objects(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return earlier tool calls of a conversation with their arguments as objects, which chat templates expect."""
    out = []
    for call in calls:
        function = dict(call["function"])
        try:
            arguments = json.loads(function.get("arguments") or "{}")
        except ValueError:
            arguments = function["arguments"]
        out.append({**call, "function": {**function, "arguments": arguments}})
    return out
