"""Request bodies as dataclasses: a `Kind` reads one JSON value and describes it in JSON Schema; `parse` reads a body.

`/openapi.json` is made from the same dataclasses, so the document and the checks cannot differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from zeropoint.serve.http.errors import ApiError

T = TypeVar("T")

_KIND, _ABOUT = "kind", "about"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of JSON value.

    `read(value, param)` checks and returns a value of the request; it raises `ApiError`, which names `param`, for a
    wrong value. `schema` is the JSON Schema of right values.
    """

    read: Callable[[Any, str], Any]
    schema: Mapping[str, Any]


def option(kind: Kind, about: str, default: Any = None) -> Any:
    """Return a dataclass field that a request may leave out, or give as null."""
    return dataclasses.field(default=default, metadata={_KIND: kind, _ABOUT: about})


def required(kind: Kind, about: str) -> Any:
    """Return a dataclass field that a request must have."""
    return dataclasses.field(metadata={_KIND: kind, _ABOUT: about})


def parse(cls: type[T], body: Any, param: str = "") -> T:
    """Return a `cls` made from a JSON object. Unknown keys are ignored.

    `param` is the object's path in the request, for messages. Raises `ApiError` (400) that names the wrong parameter.
    """
    if not isinstance(body, dict):
        raise invalid(param, "an object", body)
    values = {}
    for each in dataclasses.fields(cls):  # type: ignore[arg-type]
        name = f"{param}.{each.name}" if param else each.name
        value = body.get(each.name)
        if value is not None:
            values[each.name] = each.metadata[_KIND].read(value, name)
        elif each.default is dataclasses.MISSING:
            raise missing(name)
    return cls(**values)


def schema_of(cls: type) -> dict[str, Any]:
    """Return the JSON Schema of the objects that `parse` reads as `cls`."""
    properties, needed = {}, []
    for each in dataclasses.fields(cls):
        schema = dict(each.metadata[_KIND].schema)
        if each.default is dataclasses.MISSING:
            needed.append(each.name)
        else:
            schema = {"anyOf": [schema, {"type": "null"}]}
            if each.default is not None:
                schema["default"] = each.default
        properties[each.name] = {**schema, "description": each.metadata[_ABOUT]}
    return {"type": "object", "properties": properties, **({"required": needed} if needed else {})}


def missing(name: str, *, param: str | None = None) -> ApiError:
    """Return the error for a missing parameter. `param` replaces `name` in the error object's `param`."""
    return ApiError(
        400, f"Missing required parameter: '{name}'.", param=param or name, code="missing_required_parameter"
    )


def invalid(param: str, what: str, value: Any) -> ApiError:
    """Return the error for a wrong value; `what` says in words what the value must be."""
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    where = f"Invalid value for '{param}'" if param else "Invalid request body"
    return ApiError(400, f"{where}: must be {what}, got {shown}.", param=param or None, code="invalid_value")


# -- kinds ----------------------------------------------------------------------------------------


def boolean() -> Kind:
    """Return the kind of true and false."""

    def read(value: Any, param: str) -> bool:
        if not isinstance(value, bool):
            raise invalid(param, "true or false", value)
        return value

    return Kind(read, {"type": "boolean"})


def number(low: float | None = None, high: float | None = None, *, above: float | None = None) -> Kind:
    """Return the kind of numbers from `low` (or above `above`) to `high`."""
    schema: dict[str, Any] = {"type": "number"}
    bounds = []
    for key, bound, words in (
        ("minimum", low, "at least"),
        ("exclusiveMinimum", above, "above"),
        ("maximum", high, "at most"),
    ):
        if bound is not None:
            schema[key] = bound
            bounds.append(f"{words} {bound:g}")
    what = " ".join(["a number", *([" and ".join(bounds)] if bounds else [])])

    def read(value: Any, param: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid(param, what, value)
        if (
            (low is not None and value < low)
            or (above is not None and value <= above)
            or (high is not None and value > high)
        ):
            raise invalid(param, what, value)
        try:
            return float(value)
        except OverflowError:
            raise invalid(param, "a number that a float holds", value) from None

    return Kind(read, schema)


def whole(low: int, high: int | None = None) -> Kind:
    """Return the kind of whole numbers from `low` to `high`."""
    what = f"a whole number, at least {low}" + (f" and at most {high}" if high is not None else "")
    schema = {"type": "integer", "minimum": low, **({"maximum": high} if high is not None else {})}

    def read(value: Any, param: str) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or value < low
            or (high is not None and value > high)
        ):
            raise invalid(param, what, value)
        return value

    return Kind(read, schema)


def string(*, empty: bool = True) -> Kind:
    """Return the kind of texts; `empty` allows the empty text."""

    def read(value: Any, param: str) -> str:
        if not isinstance(value, str) or not (value or empty):
            raise invalid(param, "a text" if empty else "a text that is not empty", value)
        return value

    return Kind(read, {"type": "string", **({} if empty else {"minLength": 1})})


def one_of(*names: str) -> Kind:
    """Return the kind of texts that are one of `names`."""

    def read(value: Any, param: str) -> str:
        if not isinstance(value, str) or value not in names:
            raise invalid(param, " or ".join(f"'{name}'" for name in names), value)
        return value

    return Kind(read, {"type": "string", "enum": list(names)})


def listing(kind: Kind, low: int = 0, high: int | None = None) -> Kind:
    """Return the kind of lists of `kind` with `low` to `high` entries."""
    limits = {"minItems": low} if low else {}
    limits |= {"maxItems": high} if high is not None else {}

    def read(value: Any, param: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise invalid(param, "a list", value)
        if len(value) < low or (high is not None and len(value) > high):
            many = f"at least {low}" if len(value) < low else f"at most {high}"
            raise ApiError(
                400, f"Invalid value for '{param}': must have {many} entries, has {len(value)}.", param=param
            )
        return tuple(kind.read(each, f"{param}[{place}]") for place, each in enumerate(value))

    return Kind(read, {"type": "array", "items": dict(kind.schema), **limits})


def token_list() -> Kind:
    """Return the kind of lists of token ids, at least one. Faster than `listing` for long lists."""
    token = whole(0, (1 << 31) - 1)

    def read(value: Any, param: str) -> tuple[int, ...]:
        if not isinstance(value, list) or not value:
            raise invalid(param, "a list of token ids that is not empty", value)
        if all(type(each) is int and 0 <= each < 1 << 31 for each in value):
            return tuple(value)
        return tuple(token.read(each, f"{param}[{place}]") for place, each in enumerate(value))

    items = {"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1}
    return Kind(read, {"type": "array", "items": items, "minItems": 1})


def mapping(kind: Kind) -> Kind:
    """Return the kind of objects with any keys and values of `kind`."""

    def read(value: Any, param: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise invalid(param, "an object", value)
        return {key: kind.read(each, f"{param}.{key[:60]}") for key, each in value.items()}

    return Kind(read, {"type": "object", "additionalProperties": dict(kind.schema)})


def anything() -> Kind:
    """Return the kind of all values."""
    return Kind(lambda value, param: value, {})


def record(cls: type) -> Kind:
    """Return the kind of objects that `parse` reads as `cls`."""
    return Kind(lambda value, param: parse(cls, value, param), schema_of(cls))


def either(*kinds: Kind) -> Kind:
    """Return the kind of values that are of one of `kinds`.

    If none fits, the error is that of the last kind with the value's JSON type, else that of the first kind.
    """

    def read(value: Any, param: str) -> Any:
        error = None
        for kind in kinds:
            try:
                return kind.read(value, param)
            except ApiError as cause:
                error = cause if error is None or _type(value) == kind.schema.get("type") else error
        assert error is not None
        raise error

    return Kind(read, {"anyOf": [dict(kind.schema) for kind in kinds]})


def _type(value: Any) -> str | None:
    """Return the JSON Schema name of a value's type."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}
    return names.get(type(value))
