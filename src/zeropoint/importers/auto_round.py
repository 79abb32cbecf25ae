"""AutoRound folders: the tensors of GPTQ or of AWQ, said to be so by `packing_format`, each layer with its own bits.

`extra_config` names the layers whose bits or group size are not the model's.
"""

from __future__ import annotations

from pathlib import Path

from zeropoint.importers import Source, awq, gptq
from zeropoint.importers._folders import configured, refuse_config
from zeropoint.sources import quantized

METHOD = quantized.AUTO_ROUND


def recognizes(path: Path) -> bool:
    return configured(path, METHOD) is not None


def open(path: Path) -> Source:
    section = configured(path, METHOD)
    assert section is not None
    refuse_config(path, section)
    packing = quantized.auto_round_packing(section)
    if packing in quantized.AWQ_PACKINGS:
        return awq.open_packed(path, section, METHOD)
    return gptq.open_packed(path, section, METHOD, less_one=quantized.GPTQ_PACKINGS[packing])
