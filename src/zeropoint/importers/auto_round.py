"""Import of AutoRound folders. `packing_format` states whether the tensors have GPTQ's or AWQ's layout.

`extra_config` lists layers whose bits or group size differ from the rest of the model.
"""

from __future__ import annotations

from pathlib import Path

from zeropoint.importers import Source, awq, gptq
from zeropoint.importers._folders import configured, refuse_config
from zeropoint.sources import quantized

METHOD = quantized.AUTO_ROUND


def recognizes(path: Path) -> bool:
    """Return whether `path` is an AutoRound folder."""
    return configured(path, METHOD) is not None


def open(path: Path) -> Source:
    """Open an AutoRound folder. Raises `UnsupportedError` for a form that is not read."""
    section = configured(path, METHOD)
    assert section is not None
    refuse_config(path, section)
    packing = quantized.auto_round_packing(section)
    if packing in quantized.AWQ_PACKINGS:
        return awq.open_packed(path, section, METHOD)
    return gptq.open_packed(path, section, METHOD, less_one=quantized.GPTQ_PACKINGS[packing])
