"""One contestant of `quality.py`, in its own environment and process: quantizes a model, and says what that cost.

    python -P benchmarks/quantizer.py benchmarks/quantizers/hqq.py MODEL OUT FORMAT CALIBRATION

A driver is one file with `FORMATS`, which maps a format's name to the kind of rows it stands among and a note, and

    quantize(model: Path, out: Path, fmt: str, calibration: Calibration) -> Iterable[(name, weight, stored_bytes)] | int

It has quantized when it returns: then the clock stops. The weights are what the numbers stand for, float32 `[out, in]`
by their names in the checkpoint; whatever it does not name is kept. `stored_bytes` counts codes, scales and zero
points. A driver that wrote a model folder of ours into `out` returns the bytes of its tensors instead.

`OUT/made.json` then holds the seconds, the peak resident bytes and the stored bytes, `OUT/made.safetensors` the
weights. `-P` keeps a driver's folder off the import path, where `hqq.py` would hide the package.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
from contestant import import_driver, peak_rss_bytes


@dataclass(frozen=True)
class Calibration:
    """`tokens` int64 `[windows, length]` of a text; `moments` maps each layer's name to the mean squares `[in]` of its
    input channels over them, in the float model."""

    tokens: NDArray[np.int64]
    moments: dict[str, NDArray[np.float32]]


def read_calibration(path: Path) -> Calibration:
    arrays = dict(np.load(path))
    return Calibration(arrays.pop("tokens"), arrays)


def stored_bytes(
    shape: tuple[int, int], bits: int, groups: int, *, zero_points: bool, scale_bytes: int = 2
) -> int:
    """Bytes of a weight `[out, in]` whose codes are packed densely, and of its `groups` scales and zero points."""
    rows, columns = shape
    packed_zeros = groups * bits if zero_points else 0
    return (rows * columns * bits + packed_zeros + 7) // 8 + groups * scale_bytes


def as_array(weight: Any) -> NDArray[np.float32]:
    """A numpy array or torch tensor as contiguous float32."""
    if hasattr(weight, "detach"):
        weight = weight.detach().float().cpu().numpy()
    return np.ascontiguousarray(weight, np.float32)


def linear_layers(module: Any) -> dict[str, Any]:
    """The linear layers of a torch model's blocks, by their weight's name; the head stays as it is."""
    import torch

    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)}
    return {f"{name}.weight": layer for name, layer in layers.items() if name != "lm_head"}


def main() -> None:
    driver_path, model, out, fmt, calibration_path = sys.argv[1:]
    folder = Path(out)
    calibration = read_calibration(Path(calibration_path))
    sys.modules["quantizer"] = sys.modules["__main__"]  # drivers use the helpers above
    driver = import_driver(Path(driver_path))
    os.dup2(2, 1)  # libraries print to stdout
    started = time.perf_counter()
    made = driver.quantize(Path(model), folder, fmt, calibration)
    cost: dict[str, Any] = {"seconds": time.perf_counter() - started, "peak_rss_bytes": peak_rss_bytes()}
    if isinstance(made, int):
        cost["tensor_bytes"] = made
    else:
        from safetensors.numpy import save_file

        weights, cost["stored_bytes"] = {}, {}
        for name, weight, nbytes in made:
            weights[name], cost["stored_bytes"][name] = as_array(weight), nbytes
        save_file(weights, folder / "made.safetensors")
    (folder / "made.json").write_text(json.dumps(cost))


if __name__ == "__main__":
    main()
