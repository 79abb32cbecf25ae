"""The `quantization_config` section of compressed-tensors in config.json, made from a plan."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from zeropoint.artifact.layout import Layout, copies_scale, module_of
from zeropoint.values.plan import Plan
from zeropoint.values.scheme import Scheme

Shape = tuple[int, ...]

INT, PACKED, MIXED = "int-quantized", "pack-quantized", "mixed-precision"

#: A field unknown to compressed-tensors, which refuses such a section and shows the field's value: the reason. Without
#: the field, transformers would load such an artifact with a warning and compute wrong numbers.
REFUSAL = "not_loadable_by_transformers"


def loader_problems(plan: Plan, layout: Layout, shapes: Mapping[str, Shape]) -> list[str]:
    """Return the reasons why transformers cannot load an artifact of this plan; an empty list if it can.

    `shapes` has the shape `[out, in]` of every weight of the plan.
    """
    quantized = plan.quantized
    problems = []
    if any(name in quantized for name in layout.experts):
        problems.append("stacked expert weights are stored one expert at a time")
    if any(name in quantized for name in layout.transposed if name not in layout.experts):
        problems.append(
            "Conv1D weights are stored as [out, in], and compressed-tensors supports Linear and Embedding only"
        )
    if any(s.granularity == "group" and shapes[n][1] % s.group_size for n, s in quantized.items()):
        problems.append("a row's last group is short")
    if any(not copies_scale(s) and layout.aliases(n) for n, s in quantized.items()):
        problems.append("a tied embedding of less than 8 bits is stored once")
    if any(name in quantized for name in layout.buffered):
        problems.append("a quantized module has a buffer of its own, which compressed-tensors loses")
    if any(s.is_packed and not s.symmetric and s.granularity != "tensor" for s in quantized.values()):
        problems.append(
            "transformers (5.23, compressed-tensors 0.20) does not load packed zero points; vLLM does"
        )
    return problems


def quantization_config(plan: Plan, layout: Layout, shapes: Mapping[str, Shape]) -> dict[str, Any] | None:
    """Return the config section, or None for a plan without integer formats.

    `shapes` has the shape `[out, in]` of every weight of the plan, unquantized ones too. If `loader_problems` finds
    reasons that concern every loader, each group has them as `REFUSAL`.
    """
    groups: dict[tuple[str, bool], list[str]] = {}
    for name, choice in plan.choices.items():
        if choice.scheme is None or choice.scheme.is_float:
            continue
        lookup = name in layout.embeddings
        weights_only = str(choice.scheme.without_activation() if lookup else choice.scheme)
        groups.setdefault((weights_only, lookup), []).append(module_of(name))
        for alias in layout.aliases(name):  # the tied head multiplies, so its inputs are quantized
            groups.setdefault((str(choice.scheme), False), []).append(module_of(alias))
    if not groups:
        return None
    schemes = {name: c.scheme for name, c in plan.choices.items()}
    everything = {module_of(name) for name in schemes} | {module_of(alias) for alias in layout.tied}
    by_text = {str(s): s for c in schemes.values() if c is not None for s in (c, c.without_activation())}
    sections = {
        f"group_{index}": _group(by_text[text], targets(modules, everything))
        for index, ((text, _), modules) in enumerate(groups.items())
    }
    formats = {section["format"] for section in sections.values()}
    unquantized = [
        n for n, s in schemes.items() if s is None and n.endswith(".weight") and len(shapes.get(n, ())) == 2
    ]
    problems = loader_problems(plan, layout, shapes)
    everywhere = [problem for problem in problems if "vLLM" not in problem]
    if everywhere:
        for section in sections.values():
            section[REFUSAL] = "; ".join(everywhere)
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else MIXED,
        "quantization_status": "compressed",
        "config_groups": sections,
        "ignore": [module_of(name) for name in unquantized],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        **({REFUSAL: problems} if problems else {}),
    }


def _group(scheme: Scheme, modules: list[str]) -> dict[str, Any]:
    return {
        "targets": modules,
        "weights": _weights(scheme),
        "input_activations": _activations(scheme),
        "output_activations": None,
        "format": PACKED if scheme.is_packed else INT,
    }


def _weights(scheme: Scheme) -> dict[str, Any]:
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": scheme.granularity,
        "group_size": scheme.group_size or None,
        "dynamic": False,
    }


def _activations(scheme: Scheme) -> dict[str, Any] | None:
    """Return the section of quantized inputs, None for float inputs.

    16-bit inputs are written as float inputs: compressed-tensors has no 16-bit inputs, and the loss of 16 bits is only
    1e-5 nats per token.
    """
    if scheme.activation is None or scheme.activation.bits == 16:
        return None
    group = scheme.activation.group_size
    return {
        "num_bits": scheme.activation.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group" if group else "token",
        "group_size": group or None,
        "dynamic": True,
    }


def targets(modules: Iterable[str], everything: Iterable[str]) -> list[str]:
    """Return names and regular expressions that match exactly `modules` among `everything`.

    Names that differ only in numbers become one expression with `\\d+`, unless it would match other modules too.
    """
    names = list(dict.fromkeys(modules))
    members = set(names)
    by_pattern: dict[str, list[str]] = {}
    for module in names:
        parts = [r"\d+" if part.isdigit() else re.escape(part) for part in module.split(".")]
        by_pattern.setdefault(r"\.".join(parts), []).append(module)
    compact: list[str] = []
    for pattern, matches in by_pattern.items():
        compiled = re.compile(pattern)
        strays = len(matches) > 1 and any(m not in members and compiled.fullmatch(m) for m in everything)
        if len(matches) == 1 or strays:
            compact += matches
        else:
            compact.append(f"re:^{pattern}$")
    return compact
