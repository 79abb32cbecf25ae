"""A plan: the number format and algorithm of each weight, with a reason. `to_json` and `from_json` are inverse.

A plan names every weight of the model exactly once, unquantized ones too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zeropoint.errors import UsageError, reason
from zeropoint.files.json_file import parse_json
from zeropoint.values.scheme import Scheme, parse

PLAN_VERSION = 1
MAX_PLAN_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Choice:
    """The decision for one weight: quantize to `scheme`, or keep the checkpoint's own dtype (`scheme is None`).

    `algorithm` and its `options` choose the codes; `reason` is a text shown to users.
    """

    scheme: Scheme | None
    algorithm: str = "rtn"
    options: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "scheme": None if self.scheme is None else str(self.scheme),
            "algorithm": self.algorithm,
            "options": dict(self.options),
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Choice:
        """Return the choice that `to_json` wrote. Raises `UsageError` or `SchemeError` if it is malformed."""
        if not isinstance(data, Mapping):
            raise UsageError(f"a plan's choice is an object, not a {type(data).__name__}")
        unknown = set(data) - {"scheme", "algorithm", "options", "reason"}
        if unknown:
            raise UsageError(f"a plan's choice has unknown fields {sorted(unknown)}")
        scheme = data.get("scheme")
        algorithm, options = data.get("algorithm", "rtn"), data.get("options", {})
        reason = data.get("reason", "")
        if not (scheme is None or isinstance(scheme, str)) or not isinstance(options, Mapping):
            raise UsageError(
                "a plan's choice names its scheme as text (or null) and its options as an object"
            )
        if not isinstance(algorithm, str) or not isinstance(reason, str):
            raise UsageError("a plan's choice names its algorithm and its reason as text")
        return cls(None if scheme is None else parse(scheme), algorithm, dict(options), reason)


@dataclass(frozen=True, slots=True)
class Plan:
    """A `Choice` for each weight, by parameter name (`model.layers.0.mlp.up_proj.weight`).

    `nbytes` is the exact size in bytes of all tensors of the artifact that the plan makes.
    """

    choices: Mapping[str, Choice]
    nbytes: int
    label: str = ""
    seed: int = 0

    @property
    def quantized(self) -> dict[str, Scheme]:
        """Return the scheme of each quantized weight, by parameter name."""
        schemes = {name: choice.scheme for name, choice in self.choices.items()}
        return {
            name: scheme for name, scheme in schemes.items() if scheme is not None and not scheme.is_float
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "plan_version": PLAN_VERSION,
            "label": self.label,
            "seed": self.seed,
            "nbytes": self.nbytes,
            "choices": {name: choice.to_json() for name, choice in self.choices.items()},
        }

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read a plan file. Raises `UsageError` if it cannot be read or is not a plan."""
        try:
            if path.stat().st_size > MAX_PLAN_BYTES:
                raise ValueError(f"it is larger than {MAX_PLAN_BYTES >> 20} MB")
            return cls.from_json(parse_json(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise UsageError(f"cannot read the plan {path}: {reason(error)}") from error
        except ValueError as error:
            raise UsageError(f"{path} is not a plan that --save-plan wrote: {reason(error)}") from error

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Return the plan that `to_json` wrote. Raises `UsageError` or `SchemeError` if it is malformed."""
        if not isinstance(data, Mapping) or "choices" not in data:
            raise UsageError("this is not a plan: it has no 'choices'")
        if data.get("plan_version") != PLAN_VERSION:
            raise UsageError(
                f"plan version {data.get('plan_version')!r} is not {PLAN_VERSION}, the one this release reads"
            )
        unknown = set(data) - {"plan_version", "label", "seed", "nbytes", "choices"}
        if unknown:
            raise UsageError(f"the plan has unknown fields {sorted(unknown)}")
        if not isinstance(data["choices"], Mapping):
            raise UsageError("a plan's choices map weight names to choices")
        choices = {str(name): Choice.from_json(choice) for name, choice in data["choices"].items()}
        nbytes, seed, label = data.get("nbytes"), data.get("seed", 0), data.get("label", "")
        if type(nbytes) is not int or nbytes < 0 or type(seed) is not int or not isinstance(label, str):
            raise UsageError("a plan's nbytes and seed are whole numbers and its label is text")
        return cls(choices, nbytes, label, seed)


def differences(first: Plan, second: Plan) -> list[tuple[str, str, str]]:
    """Return `(weight name, choice of the first plan, choice of the second)` for each weight that the plans treat
    differently. Choices are texts; "" for a weight that a plan does not name."""
    names = [*first.choices, *(name for name in second.choices if name not in first.choices)]
    pairs = [
        (name, _choice_text(first.choices.get(name)), _choice_text(second.choices.get(name)))
        for name in names
    ]
    return [(name, one, other) for name, one, other in pairs if one != other]


def _choice_text(choice: Choice | None) -> str:
    if choice is None:
        return ""
    if choice.scheme is None:
        return "kept"
    options = ", ".join(f"{key}={value}" for key, value in sorted(choice.options.items()))
    algorithm = "" if choice.scheme.is_float else f" by {choice.algorithm}"
    return f"{choice.scheme}{algorithm}" + (f" ({options})" if options else "")
