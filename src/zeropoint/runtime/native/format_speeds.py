"""The speeds of this machine's kernels in each weight format, measured once and kept in the user's cache.

`measure` multiplies one matrix in every format of `FORMATS`, for every number of input rows in `ROWS`, at every
instruction set level but `scalar`, and times it with `timing.product_seconds`. `doctor` shows the speeds, `quantize`
reads the kept ones, and `fit` reads them or measures.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from zeropoint.dtypes import BY_FORMAT
from zeropoint.errors import ArtifactError, UnsupportedError
from zeropoint.files.atomic import replace_text
from zeropoint.files.json_file import json_digest, parse_json
from zeropoint.files.user_folder import private_folder, read_own
from zeropoint.kernels import active_isa, isa_levels, library
from zeropoint.machine.detect import Machine
from zeropoint.machine.load import NOTABLE_CORES, OtherLoad
from zeropoint.progress import Progress, silent
from zeropoint.runtime.native import timing
from zeropoint.runtime.native.library import Weight, pack, view
from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.values.scheme import Scheme, parse

logger = logging.getLogger(__name__)

#: The format that ratios are relative to.
BASELINE = "fp16"
#: Each preset and its variants: formats of the same width with 8-bit inputs, by rising loss of accuracy.
VARIANTS: Mapping[str, Sequence[str]] = {
    "int8": ("int8:channel:sym:bf16:a8g32", "int8:channel:sym:bf16:a8token"),
    "int5": (),
    "int4": ("int4:g32:sym:bf16:a8g32", "int4:g32:sym:nested:a8token"),
}
FORMATS = (BASELINE, "bf16", *(f for preset, others in VARIANTS.items() for f in (preset, *others)))
#: Kinds of work, with their number of input rows (tokens): one sequence, sequences decoded together, a prompt.
ROWS = {"decode": 1, "batch 8": 8, "batch 32": 32, "prefill": 512}
#: Two speeds whose ratio is smaller than this count as equal, because timings are noisy.
TIE = 1.05

#: Shape `[out, in]` of the matrix, and the approximate bytes of its copies in each format. For few rows the copies take
#: turns: those of all formats together exceed the processor's caches, as a model's weights do.
_SHAPE, _BYTES = (2048, 2048), 24 << 20
#: A timing multiplies about this many rows, counted over all copies.
_ROW_COPIES = 64
#: Number of passes over all formats, by input rows. The fastest pass counts: other programs can only slow a pass down.
_PASSES = {1: 16, 8: 8, 32: 8, 512: 4}


@dataclass(frozen=True, slots=True)
class FormatSpeeds:
    """The speeds of one processor with `threads` threads.

    `levels[level][format][work]` is a speed in 10^9 multiply-adds (one weight times one input) a second; `work` is a
    key of `ROWS`. Formats that no kernel supports are left out. `measured` is the local time of the measurement,
    `other_cores` the mean number of cores that other programs kept busy meanwhile.
    """

    processor: str
    threads: int
    measured: str
    other_cores: float
    levels: Mapping[str, Mapping[str, Mapping[str, float]]]

    @property
    def is_quiet(self) -> bool:
        """Return whether other programs used so little of the processor that the speeds are reliable."""
        return self.other_cores <= max(NOTABLE_CORES, 0.05 * self.threads)

    def ratio(self, level: str, work: str, format: str, other: str = BASELINE) -> float:
        """Return how many times as fast as `other` `format` is. Raises `KeyError` if one was not measured."""
        return self.levels[level][format][work] / self.levels[level][other][work]

    def fastest(self, level: str, work: str, among: Sequence[str]) -> str:
        """Return the fastest of the formats `among`, of which at least one was measured."""
        return max((f for f in among if f in self.levels[level]), key=lambda f: self.levels[level][f][work])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measured(
    folder: Path | None, *, threads: int, fresh: bool = False, step: Progress = silent
) -> FormatSpeeds:
    """Return the speeds kept in `folder`; if there are none, measure and keep them, which takes seconds.

    `folder` None: nothing is read or kept. `fresh`: measure even if speeds are kept. Speeds that are not `is_quiet` are
    returned but not kept. Raises `UnsupportedError` without the native library.
    """
    found = None if fresh else kept(folder, threads=threads)
    if found is None:
        found = measure(threads=threads, step=step)
        if found.is_quiet:
            _keep(folder, found)
    return found


def kept(folder: Path | None, *, threads: int) -> FormatSpeeds | None:
    """Return the speeds kept in `folder` for this processor, this native library and `threads`; None without any."""
    if folder is None or library.missing() is not None:
        return None
    path = _path(folder, threads)
    try:
        return _parse(parse_json(read_own(path)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
        logger.warning("the kept speeds of the kernels, %s, are not used: %s", path, cause)
        return None


def measure(*, threads: int, step: Progress = silent) -> FormatSpeeds:
    """Time all formats at every level but `scalar`, which takes about three seconds a level on two cores."""
    active_isa()  # raises the error of a ZEROPOINT_ISA that cannot run here
    levels = [level for level in isa_levels() if level != "scalar"]
    copies = dict(_packed()) if levels else {}
    others = OtherLoad()
    speeds = {}
    for number, level in enumerate(levels):
        with library.level(level):
            speeds[level] = _level_speeds(
                copies, threads, step, f"timing {level} kernels", number, len(levels)
            )
    now = datetime.now().astimezone().isoformat(timespec="minutes")
    return FormatSpeeds(Machine.detect().processor, threads, now, others.cores(), speeds)


def _level_speeds(
    copies: Mapping[str, Sequence[Weight]], threads: int, step: Progress, what: str, done: int, total: int
) -> dict[str, dict[str, float]]:
    """Return the speed of each format and kind of work at the active instruction set level."""
    speeds: dict[str, dict[str, float]] = {format: {} for format in copies}
    for number, (work, rows) in enumerate(ROWS.items()):
        step(what, (done + number / len(ROWS)) / total)
        groups = [(weights[: max(1, _ROW_COPIES // rows)], rows) for weights in copies.values()]
        seconds = timing.product_seconds(groups, passes=_PASSES[rows], threads=threads).min(axis=0)
        for format, (weights, _), taken in zip(copies, groups, seconds, strict=True):
            products = rows * len(weights) * _SHAPE[0] * _SHAPE[1]
            speeds[format][work] = products / float(taken) / 1e9
    return speeds


def _packed() -> Iterator[tuple[str, list[Weight]]]:
    """Yield each format that the kernels support, with copies of the packed matrix."""
    rng = np.random.default_rng(0)
    for format in FORMATS:
        matrix = _matrix(parse(format), rng)
        try:
            first = pack(matrix)
        except UnsupportedError:
            continue
        yield format, [first, *(_copy(first) for _ in range(_BYTES // first.nbytes))]


def _copy(weight: Weight) -> Weight:
    """Return a copy of a packed weight. Copying takes a tenth of the time of packing."""
    space = np.empty(weight.nbytes + 64, np.uint8)
    start = -space.ctypes.data % 64  # `view` needs 64-byte alignment
    memory = space[start : start + weight.nbytes]
    memory[:] = weight.memory
    return view(weight.format, memory)


def _matrix(scheme: Scheme, rng: np.random.Generator) -> Any:
    """Return a random matrix `[out, in]` of the format."""
    if scheme.float_format is not None:
        values = rng.standard_normal(_SHAPE, np.float32)
        return values.astype(BY_FORMAT[scheme.float_format].numpy())
    codes = rng.integers(scheme.qmin, scheme.qmax + 1, _SHAPE, np.int8)
    return QuantizedTensor(scheme, codes, np.full(scheme.scale_shape(_SHAPE), 2.0**-7, np.float32))


def _path(folder: Path, threads: int) -> Path:
    """Return the path of the file for this processor, this native library and this number of threads."""
    key = [Machine.detect().processor, library.digest(), threads, FORMATS, ROWS]
    return folder / f"kernels-{json_digest(key)[:32]}.json"


def _keep(folder: Path | None, speeds: FormatSpeeds) -> None:
    """Write the speeds into the folder; a failure is logged, not raised."""
    if folder is None:
        return
    try:
        path = _path(private_folder(folder), speeds.threads)
        replace_text(path, json.dumps(speeds.to_json(), indent=1) + "\n")
    except (OSError, ArtifactError) as cause:
        logger.warning("the measured speeds of the kernels are not kept: %s", cause)


def _parse(data: Mapping[str, Any]) -> FormatSpeeds:
    """Return the speeds that `to_json` wrote. Raises `ValueError`, `KeyError` or `TypeError` for anything else."""
    levels = {
        level: {f: {work: float(speeds[work]) for work in ROWS} for f, speeds in formats.items()}
        for level, formats in data["levels"].items()
    }
    if not all(s > 0 for formats in levels.values() for speeds in formats.values() for s in speeds.values()):
        raise ValueError("a speed is not above zero")
    if not all(BASELINE in formats for formats in levels.values()):
        raise ValueError(f"a level lacks {BASELINE}")
    return FormatSpeeds(
        str(data["processor"]),
        int(data["threads"]),
        str(data["measured"]),
        float(data["other_cores"]),
        levels,
    )
