"""Quantization algorithms: one file per algorithm, and the file's name is the algorithm's canonical name.

An algorithm's module has a docstring (idea, paper, cost), `NEEDS` (the input statistics that it uses), a frozen
dataclass `Options`, and exactly one of the functions in `KINDS`:

- `rotate(width, seed) -> matrix`: return an orthogonal matrix; the model is rotated before anything else happens;
- `fold(group, stats, scheme, options) -> Fold`: return one scale per input channel of a group of layers; the scales
  are divided out of the module that produces the input and multiplied into the group's weights, before quantization;
- `quantize(weight, stats, scheme, options) -> QuantizedTensor`: quantize one layer; `needs(scheme, options)` in the
  same module returns the statistics that `quantize` uses;
- `quantize_block(layers, loss, batches, options, seed) -> Tuned`: improve the codes of all layers of one transformer
  block together, after each layer was quantized;
- `tune_model(student, tokens, options, seed) -> Tuned`: train scales, norms and biases of the whole quantized model.

These functions are pure: the same inputs give the same codes, and they touch no files and no global state.
There is no registry: `load("rtn")` imports `zeropoint.algorithms.rtn`. Algorithms of different kinds are composed by
name, such as `awq+gptq+rounding`, and run in the order of `KINDS`, whatever the order of the names. A composition
without a `quantize` algorithm uses `rtn`. Users may also type the names in `ALIASES`.
"""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from zeropoint.errors import UsageError
from zeropoint.values.scheme import Scheme

#: The kinds of algorithms, named by the function that the module provides, in the order in which they run.
KINDS = ("rotate", "fold", "quantize", "quantize_block", "tune_model")

#: The algorithm that quantizes the layers of a composition without a `quantize` algorithm.
DEFAULT_QUANTIZER = "rtn"

#: Other names that users may type for an algorithm. Plans and cards store canonical names only.
ALIASES: Mapping[str, str] = {"autoround": "rounding", "quarot": "rotation"}

Composition = tuple[str, Mapping[str, Any]]

_SWEPT: Composition = ("gptq", {"sweeps": 2})

#: What a shorthand stands for: first with one scale per group, then with one scale per channel, where an AWQ fold
#: would make the grid coarser. `best` had the lowest loss of all that were measured (benchmarks/results/quality.md),
#: `good` the lowest of those that take at most a fifth of the time of `best`.
STANDS_FOR: Mapping[str, tuple[Composition, Composition]] = {
    "good": (("awq+gptq", {"gptq": {"sweeps": 2}}), _SWEPT),
    "best": (("awq+gptq+rounding", {}), _SWEPT),
}

#: Names that stand for a composition and its options.
SHORTHANDS = (*STANDS_FOR, "auto")


def canonical(algorithm: str) -> str:
    """Return an algorithm or composition with each name of `ALIASES` replaced by its canonical name."""
    return "+".join(ALIASES.get(name, name) for name in algorithm.split("+"))


def resolve(
    algorithm: str, options: Mapping[str, Any], scheme: Scheme | None = None
) -> tuple[str, dict[str, Any]]:
    """Return the canonical algorithm and its options for an algorithm, alias or shorthand that a user typed.

    `scheme` is the scheme of the weights (None: one with groups); a shorthand depends on its granularity. Raises
    `UsageError` for `good` or `best` with options, and for `auto`, which needs a model (`quantization.auto`).
    """
    if algorithm == "auto":
        raise UsageError("auto is chosen for one model and time budget: name an algorithm here")
    check_name(algorithm)
    if algorithm not in STANDS_FOR:
        algorithm = canonical(algorithm)
        if "+" in algorithm:  # the keys are names of algorithms
            return algorithm, {canonical(name): values for name, values in options.items()}
        return algorithm, dict(options)
    grouped, per_channel = STANDS_FOR[algorithm]
    name, own_options = grouped if scheme is None or scheme.granularity == "group" else per_channel
    if options:
        raise UsageError(f"{algorithm} has options of its own: name the algorithm ({name}) to give others")
    return name, dict(own_options)


def check_name(algorithm: str) -> None:
    """Raise `UsageError` unless users may type this algorithm, alias, shorthand or composition.

    Imports no algorithm, so the kinds of a composition's algorithms are not compared here (`parts` does).
    """
    if algorithm in SHORTHANDS:
        return
    for name in algorithm.split("+"):
        if name in SHORTHANDS:
            stands_for = "chooses" if name == "auto" else f"stands for {STANDS_FOR[name][0][0]},"
            raise UsageError(
                f"{algorithm!r}: {name} {stands_for} a whole combination of algorithms: give {name} alone, or name "
                "the algorithms to combine, such as awq+gptq"
            )
        if name not in names() and name not in ALIASES:
            raise UsageError(_unknown(name, [*names(), *SHORTHANDS, *ALIASES]))


def _unknown(name: str, known: Sequence[str]) -> str:
    """Return the message for an algorithm that does not exist, with the name that was probably meant."""
    from difflib import get_close_matches  # only a message needs it

    close = get_close_matches(name.lower(), known, 1)
    return f"there is no algorithm {name!r}{f' (did you mean {close[0]}?)' if close else ''}: use {', '.join(known)}"


def names(kind: str | None = None) -> list[str]:
    """Return the canonical names of all algorithms, or of those of one kind, sorted."""
    return [name for name in _modules() if kind is None or kind_of(name) == kind]


@cache
def _modules() -> list[str]:
    """List the algorithm modules of this folder; cached, because every weight of a plan asks for them."""
    modules = pkgutil.iter_modules(__path__)
    return sorted(module.name for module in modules if not module.name.startswith("_"))


def load(name: str) -> ModuleType:
    """Import and return the module of an algorithm. Raises `UsageError` for a name that `names()` lacks."""
    if name not in names():
        raise UsageError(_unknown(name, names()))
    return importlib.import_module(f"{__name__}.{name}")


def summary(name: str) -> str:
    """Return the first line of an algorithm's docstring, without importing the module (it may import torch)."""
    text = (Path(__path__[0]) / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def kind_of(name: str) -> str:
    """Return the kind (one of `KINDS`) of an algorithm."""
    module = importlib.import_module(f"{__name__}.{name}")
    return next(kind for kind in KINDS if hasattr(module, kind))


def parts(algorithm: str) -> dict[str, str]:
    """Return kind -> algorithm for a composition such as `gptq+rounding`, in the order in which they run.

    Takes canonical names. Raises `UsageError` for an unknown name, or if two algorithms are of the same kind.
    """
    by_kind: dict[str, str] = {}
    for name in algorithm.split("+"):
        load(name)
        kind = kind_of(name)
        if kind in by_kind:
            raise UsageError(f"{algorithm}: {by_kind[kind]} and {name} do the same work; take one of them")
        by_kind[kind] = name
    by_kind.setdefault("quantize", DEFAULT_QUANTIZER)
    return {kind: by_kind[kind] for kind in KINDS if kind in by_kind}


def part_options(algorithm: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return name -> `Options` for each algorithm of a composition.

    `values` is `{option: value}` for a single algorithm, and `{name: {option: value}}` for a composition. Raises
    `UsageError` for an unknown name or option, or a value of the wrong type.
    """
    algorithms = parts(algorithm)
    if "+" not in algorithm:
        return {name: make_options(name, values if name == algorithm else {}) for name in algorithms.values()}
    for name, own_values in values.items():
        if name not in algorithms.values() or not isinstance(own_values, Mapping):
            raise UsageError(
                f"the options of {algorithm} are an object for each algorithm, such as "
                f'{{"{next(iter(algorithms.values()))}": {{...}}}}, not {name}: {own_values!r}'
            )
    return {name: make_options(name, values.get(name, {})) for name in algorithms.values()}


def read_options(algorithm: str, texts: Iterable[str]) -> dict[str, Any]:
    """Parse options written `damping=0.05` or `gptq.damping=0.05` into the mapping that `part_options` takes.

    Aliases are accepted in `algorithm` and before the dot. Raises `UsageError` for an option that is not written so,
    for an algorithm outside the composition, and for any option of a shorthand.
    """
    values: dict[str, Any] = {}
    texts = list(texts)
    if algorithm in SHORTHANDS:
        if texts:
            raise UsageError(f"{algorithm} has options of its own: name the algorithm to give others")
        return values
    check_name(algorithm)
    algorithm = canonical(algorithm)
    algorithms = parts(algorithm).values()
    for text in texts:
        path, equals, value = text.partition("=")
        name, dot, option = path.rpartition(".")
        name = canonical(name)
        if not equals or not option or (not dot and "+" in algorithm):
            raise UsageError(
                f"an option of {algorithm} is written {next(iter(algorithms))}.NAME=VALUE, not {text!r}"
            )
        if dot and name not in algorithms:
            raise UsageError(f"option {text!r} is not for {algorithm}, which runs as {'+'.join(algorithms)}")
        owner = values.setdefault(name, {}) if "+" in algorithm else values
        owner[option] = _value(value)
    part_options(algorithm, values)
    return values


def _value(text: str) -> Any:
    """Return the value of JSON text (a number, `true`, `false`); return text that is not JSON unchanged."""
    try:
        return json.loads(text)
    except ValueError:
        return text


#: Type of an option's default -> the option's values in words.
_TYPES: Mapping[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a name"}


def make_options(name: str, values: Mapping[str, Any]) -> Any:
    """Return the algorithm's `Options` with these values. Raises `UsageError` for an unknown option or a wrong type."""
    options = load(name).Options
    field_names = {field.name for field in fields(options)}
    unknown = sorted(set(values) - field_names)
    if unknown:
        raise UsageError(
            f"algorithm {name} has no option {unknown[0]!r}: it takes {', '.join(sorted(field_names))}"
        )
    default = options()
    for key, value in values.items():
        type_expected = type(getattr(default, key))
        if not isinstance(value, type_expected) and not (type_expected is float and isinstance(value, int)):
            raise UsageError(f"option {key} of algorithm {name} takes {_TYPES[type_expected]}, not {value!r}")
    return options(**values)
