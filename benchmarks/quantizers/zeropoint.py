"""Zeropoint itself, as `zeropoint quantize` works; measured on the integer kernels, activations quantized too."""

from __future__ import annotations

from pathlib import Path

from quantizer import Calibration as Text

SCHEMES = {
    "int8": ("8 bits", "int8"),
    "int8-a8": ("8 bits, activations 8 bits", "int8:channel:sym:bf16:a8token"),
    "int4": ("4 bits, groups of 32", "int4"),
    "int4-g128": ("4 bits, groups of 128", "int4:g128:sym:bf16:a16token"),
    "int4-channel": ("4 bits, per channel", "int4:channel:sym:bf16:a16token"),
    "int3-g32": ("3 bits, groups of 32", "int3:g32:sym:nested:a16token"),
}
ALGORITHMS = {
    "rtn": ("rtn", {}, "without text"),
    "gptq": ("gptq", {}, ""),
    "gptq-sweeps": ("gptq", {"sweeps": 2}, "2 sweeps"),
}
FORMATS = {
    f"{scheme}/{algorithm}": (kind, "; ".join(filter(None, (note, "embedding = head int8"))))
    for scheme, (kind, _) in SCHEMES.items()
    for algorithm, (_, _, note) in ALGORITHMS.items()
}


def quantize(model: Path, out: Path, fmt: str, calibration: Text) -> int:
    from zeropoint.calibrate import Calibration
    from zeropoint.quantization import quantize_checkpoint

    scheme, algorithm = fmt.split("/")
    name, options, _ = ALGORITHMS[algorithm]
    text = None if name == "rtn" else Calibration(calibration.tokens, "calibration text", "")
    made = quantize_checkpoint(
        model, out / "model", format=SCHEMES[scheme][1], algorithm=name, options=options, calibration=text
    )
    return made.tensor_bytes
