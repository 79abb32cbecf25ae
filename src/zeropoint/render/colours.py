"""Colour classes: one CSS class per model, the same in every chart. The template defines the colours.

The palette is Okabe and Ito's, made for colour-blind readers, slightly changed for contrast. The reference model is
grey, so that colour always means "quantized".
"""

from __future__ import annotations

from zeropoint.render.summary import format_of, ordered_models
from zeropoint.values.report import Report

REFERENCE_CLASS = "c-ref"
# Common formats have the same colour on every page.
_PREFERRED = {"int8": "c-blue", "int4": "c-orange", "fp16": "c-green", "bf16": "c-green"}
_OTHERS = ("c-purple", "c-green", "c-gold", "c-blue", "c-orange", "c-pink")


def colour_classes(report: Report) -> dict[str, str]:
    """Return the CSS class of each model by name."""
    names = ordered_models(report)
    classes = {names[0]: REFERENCE_CLASS} if names else {}
    for name in names[1:]:
        words = f"{format_of(report, name)} {name}".lower()
        choice = next((css for key, css in _PREFERRED.items() if key in words), None)
        free = [css for css in _OTHERS if css not in classes.values()]
        if choice is None or choice in classes.values():
            choice = free[0] if free else _OTHERS[len(classes) % len(_OTHERS)]
        classes[name] = choice
    return classes
