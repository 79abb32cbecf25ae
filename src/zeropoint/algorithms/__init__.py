"""Ways to choose the numbers. One file per algorithm; the file's name is the algorithm's name.

A module here has a docstring (idea, paper, cost), `NEEDS` (the statistics it asks for), a frozen dataclass
`Options`, and exactly one of the functions in `KINDS`:

- `rotate(width, seed) -> matrix`: an orthogonal one, by which spaces of the model are turned before anything else;
- `fold(group, stats, scheme, options) -> Fold`: a scale for each channel that a group of layers is given, divided out
  of what makes it and multiplied into their weights, before any is quantized;
- `quantize(weight, stats, scheme, options) -> QuantizedTensor`: one layer, with `needs(scheme, options)`;
- `quantize_block(layers, loss, batches, options, seed) -> Tuned`: the layers of one block together, after each was
  quantized;
- `tune_model(student, options, seed)`: what is not codes, over the whole quantized model.

It is pure: same inputs, same codes, no files, no global state. There is no registry: `load("rtn")` imports
`zeropoint.algorithms.rtn`. Algorithms of different kinds are composed by name, `awq+gptq+rounding`, and carried
out in the order of `KINDS` however they are written; where none quantizes layers, `rtn` does.
"""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from zeropoint.errors import UsageError
from zeropoint.values.scheme import Scheme

#: The function that makes a module an algorithm of a kind, in the order in which a composition is carried out.
KINDS = ("rotate", "fold", "quantize", "quantize_block", "tune_model")

#: What quantizes the layers of a composition that names nothing for it.
DEFAULT_QUANTIZER = "rtn"

Composition = tuple[str, Mapping[str, Any]]

_SWEPT: Composition = ("gptq", {"sweeps": 2})

#: What a name stands for where groups share a scale, and where a whole channel does, which an AWQ fold makes coarser.
#: `best` lost least of what was measured (benchmarks/results/quality.md), `good` of what takes a fifth of its time.
STANDS_FOR: Mapping[str, tuple[Composition, Composition]] = {
    "good": (("awq+gptq", {"gptq": {"sweeps": 2}}), _SWEPT),
    "best": (("awq+gptq+rounding", {}), _SWEPT),
}

#: Names that stand for a composition and its options.
SHORTHANDS = (*STANDS_FOR, "auto")


def resolve(
    algorithm: str, options: Mapping[str, Any], scheme: Scheme | None = None
) -> tuple[str, dict[str, Any]]:
    """The algorithm and options that a name a user gave stands for, for weights of this scheme (None: of groups).

    Raises `UsageError` for `good` or `best` with options, and for `auto`, which is chosen for a model
    (`quantization.auto`).
    """
    if algorithm == "auto":
        raise UsageError("auto is chosen for one model and time budget: name an algorithm here")
    if algorithm not in STANDS_FOR:
        return algorithm, dict(options)
    grouped, whole = STANDS_FOR[algorithm]
    name, own = grouped if scheme is None or scheme.granularity == "group" else whole
    if options:
        raise UsageError(f"{algorithm} has options of its own: name the algorithm ({name}) to give others")
    return name, dict(own)


def names(kind: str | None = None) -> list[str]:
    """The algorithms of this release, all or those of one kind."""
    return [name for name in _modules() if kind is None or kind_of(name) == kind]


@cache
def _modules() -> list[str]:
    """The folder read once: every weight of a plan is asked for its algorithm's needs."""
    modules = pkgutil.iter_modules(__path__)
    return sorted(module.name for module in modules if not module.name.startswith("_"))


def load(name: str) -> ModuleType:
    """The module of an algorithm. Raises `UsageError` for an unknown name."""
    if name not in names():
        raise UsageError(f"there is no algorithm {name!r}: use {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def summary(name: str) -> str:
    """The first line of a module's docstring, read without importing it (it may want torch)."""
    text = (Path(__path__[0]) / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def kind_of(name: str) -> str:
    """The one of `KINDS` that a module provides."""
    module = importlib.import_module(f"{__name__}.{name}")
    return next(kind for kind in KINDS if hasattr(module, kind))


def parts(algorithm: str) -> dict[str, str]:
    """The algorithms of a composition such as `gptq+rounding` by kind, in the order in which they are carried out.

    Raises `UsageError` for an unknown name, or when two are of the same kind.
    """
    found: dict[str, str] = {}
    for name in algorithm.split("+"):
        load(name)
        kind = kind_of(name)
        if kind in found:
            raise UsageError(f"{algorithm}: {found[kind]} and {name} do the same work; take one of them")
        found[kind] = name
    found.setdefault("quantize", DEFAULT_QUANTIZER)
    return {kind: found[kind] for kind in KINDS if kind in found}


def part_options(algorithm: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The `Options` of each algorithm of a composition, by name.

    `values` are those of the algorithm; of a composition, `{name: values}`. Raises `UsageError` for a wrong one.
    """
    named = parts(algorithm)
    if "+" not in algorithm:
        return {name: make_options(name, values if name == algorithm else {}) for name in named.values()}
    for name, given in values.items():
        if name not in named.values() or not isinstance(given, Mapping):
            raise UsageError(
                f"the options of {algorithm} are an object for each algorithm, such as "
                f'{{"{next(iter(named.values()))}": {{...}}}}, not {name}: {given!r}'
            )
    return {name: make_options(name, values.get(name, {})) for name in named.values()}


def read_options(algorithm: str, texts: Iterable[str]) -> dict[str, Any]:
    """Options written as `damping=0.05`, or `gptq.damping=0.05`, in the form that `part_options` takes.

    Raises `UsageError` when one is written otherwise, or names an algorithm that is not part of the composition, or
    when `algorithm` is a shorthand, which has options of its own.
    """
    found: dict[str, Any] = {}
    texts = list(texts)
    if algorithm in SHORTHANDS:
        if texts:
            raise UsageError(f"{algorithm} has options of its own: name the algorithm to give others")
        return found
    named = parts(algorithm).values()
    for text in texts:
        path, equals, value = text.partition("=")
        name, dot, option = path.rpartition(".")
        if not equals or not option or (not dot and "+" in algorithm):
            raise UsageError(
                f"an option of {algorithm} is written {next(iter(named))}.NAME=VALUE, not {text!r}"
            )
        if dot and name not in named:
            raise UsageError(
                f"option {text!r} is not for {algorithm}, which is carried out as {'+'.join(named)}"
            )
        owner = found.setdefault(name, {}) if "+" in algorithm else found
        owner[option] = _value(value)
    part_options(algorithm, found)
    return found


def _value(text: str) -> Any:
    """A number, true, false or text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def make_options(name: str, values: Mapping[str, Any]) -> Any:
    """The algorithm's `Options` from plain values. Raises `UsageError` for an unknown or mistyped one."""
    options = load(name).Options
    known = {field.name for field in fields(options)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UsageError(
            f"algorithm {name} has no option {unknown[0]!r}: it takes {', '.join(sorted(known))}"
        )
    default = options()
    for key, value in values.items():
        wanted = type(getattr(default, key))
        if not isinstance(value, wanted) and not (wanted is float and isinstance(value, int)):
            raise UsageError(f"option {key} of algorithm {name} is a {wanted.__name__}, not {value!r}")
    return options(**values)
