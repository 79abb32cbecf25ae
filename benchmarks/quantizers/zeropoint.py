"""Zeropoint itself, as `zeropoint quantize` works; measured on the integer kernels, activations quantized too.

A row is `FORMAT/ALGORITHM`. Algorithms are those of docs/algorithms.md, joined by "+". `fit-103MB` is a plan
for the reference model, a format for each layer, found on other text than the rows are measured on; the row's algorithm
carries it out. Likewise `fit-96MB` and `fit-109MB`, of 96.6 and 109.8 MB; these are the sizes of llama.cpp's Q4_1,
Q4_K_M and Q5_1:

    zeropoint fit build/reference-model --plan-only --save-plan benchmarks/plans/fit-103MB.json --max-memory 103.7MB \\
        --formats int8 int5:g32:sym:bf16:a16token int4:g32:asym:bf16:a16token
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantizer import Calibration as Text

if TYPE_CHECKING:
    from zeropoint.values.plan import Plan

PLANS = Path(__file__).parents[1] / "plans"
SCHEMES = {
    "int8": ("8 bits", "int8"),
    "int8-g32": ("8 bits", "int8:g32:sym:bf16:a16token"),
    "int8-a8": ("8 bits, activations 8 bits", "int8:channel:sym:bf16:a8token"),
    "int5": ("5 bits, groups of 32", "int5"),
    "int5-g32": ("5 bits, groups of 32", "int5:g32:sym:bf16:a16token"),
    "int4": ("4 bits, groups of 32", "int4"),
    "int4-asym": ("4 bits, groups of 32", "int4:g32:asym:bf16:a16token"),
    "int4-g128": ("4 bits, groups of 128", "int4:g128:sym:bf16:a16token"),
    "int4-channel": ("4 bits, per channel", "int4:channel:sym:bf16:a16token"),
    "int3-g32": ("3 bits, groups of 32", "int3:g32:sym:nested:a16token"),
    "fit-96MB": ("4 bits, mixed with wider", PLANS / "fit-96MB.json"),
    "fit-103MB": ("4 bits, mixed with wider", PLANS / "fit-103MB.json"),
    "fit-109MB": ("5 bits, mixed with wider", PLANS / "fit-109MB.json"),
}
WITHOUT_TEXT = {"rtn", "hqq", "rotation"}
EVERYWHERE = ["rtn", "hqq", "awq", "gptq", "awq+gptq", "gptq+rounding", "gptq+distill", "best"]
MORE = {
    "int8-a8": ["smoothquant", "smoothquant+gptq", "rotation", "rotation+gptq"],
    "int4": ["distill", "rotation+gptq"],
}
ALGORITHMS = {
    fmt: [*EVERYWHERE, *MORE.get(fmt, []), *(["good"] if "groups" in kind or "mixed" in kind else [])]
    for fmt, (kind, _) in SCHEMES.items()
}


def remarks(algorithm: str) -> list[str]:
    said = ["without text"] if algorithm in WITHOUT_TEXT else []
    return said + (["values of attention turned alone"] if "rotation" in algorithm else [])


NOTES = {fmt: "embedding = head int8" for fmt in SCHEMES}
# 576 is no multiple of 128
NOTES["int4-g128"] += "; rows of 576 in groups of 96"
# the reference model's embedding is tied to its head, so that its hidden states cannot be turned
_TURNED = {"residual": False}
OPTIONS = {"rotation": _TURNED, "rotation+gptq": {"rotation": _TURNED}}
FORMATS = {
    f"{fmt}/{algorithm}": (kind, "; ".join([*remarks(algorithm), NOTES[fmt]]))
    for fmt, (kind, _) in SCHEMES.items()
    for algorithm in ALGORITHMS[fmt]
}


def quantize(model: Path, out: Path, fmt: str, calibration: Text) -> int:
    from zeropoint.calibrate import Calibration
    from zeropoint.quantization import quantize_checkpoint

    scheme, algorithm = fmt.split("/")
    text = None if algorithm in WITHOUT_TEXT else Calibration(calibration.tokens, "calibration text", "")
    plan = make_plan(model, SCHEMES[scheme][1], algorithm)
    return quantize_checkpoint(model, out / "model", plan=plan, calibration=text).tensor_bytes


def make_plan(model: Path, scheme: str | Path, algorithm: str) -> Plan:
    """One format for all layers, or those of a plan file."""
    from zeropoint.checkpoint import open_checkpoint
    from zeropoint.planning import uniform_plan
    from zeropoint.values.plan import Plan

    checkpoint = open_checkpoint(model)
    options = OPTIONS.get(algorithm, {})
    uniform = uniform_plan(
        checkpoint, scheme if isinstance(scheme, str) else "int4", algorithm=algorithm, options=options
    )
    if isinstance(scheme, str):
        return uniform
    fitted = Plan.read(scheme)
    mixed = {name: replace(uniform.choices[name], scheme=c.scheme) for name, c in fitted.choices.items()}
    return replace(fitted, choices=mixed)
