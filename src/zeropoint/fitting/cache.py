"""The cache of `fit`: measurements and packed candidates of a model, so that another budget needs no new measurements.

The cache is a folder of files. A file's name is the digest of everything that its content depends on (model, text,
processor, program), so stale content is never read. Cost tables are JSON. Candidates, and the 16-bit model's logits,
are packed files, which are memory-mapped. The least recently used files make room for new ones. A damaged or read-only
cache costs time and a warning in the log, never the answer.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zeropoint.errors import ArtifactError
from zeropoint.files.atomic import replace_text
from zeropoint.files.json_file import json_digest, parse_json
from zeropoint.files.user_folder import read_own, remove_old
from zeropoint.fitting.loss import Loss
from zeropoint.planning.solver import QUANTITIES, CostTable
from zeropoint.runtime.native import store
from zeropoint.runtime.native.packed_weights import Packed, PackedWeights, collect

logger = logging.getLogger(__name__)

#: Maximum number of bytes of packed files in the cache. Larger candidates are not cached.
MOST_BYTES = 4 << 30


@dataclass(slots=True)
class Known:
    """The measurements of one model: its cost table, and the loss of each measured plan by the bytes of its `picks`.

    `margin` is the factor on the planned loss that the last trial of `fit` set.
    """

    table: CostTable
    losses: dict[bytes, Loss] = field(default_factory=dict)
    margin: float = 1.0


class Cache:
    """The cache in `folder`; with None nothing is cached."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def packed_weights(
        self, key: Mapping[str, Any], nbytes: float, make: Callable[[], Iterable[Packed]]
    ) -> PackedWeights:
        """Return the cached packed weights; else call `make`, and cache the result if `nbytes` bytes fit."""
        path = self._path(key, "packed")
        if path is None or nbytes > MOST_BYTES:
            return collect(make())
        try:
            return self._read(path)
        except FileNotFoundError:
            pass
        except (OSError, store.StoreError) as cause:
            logger.warning("the cached file %s is made again: it %s", path, cause)
        try:
            self._make_room(nbytes)
            store.write(path, path.stem, make())
            return self._read(path)
        except (OSError, store.StoreError) as cause:
            logger.warning("packed files are not cached in %s: %s", path.parent, cause)
            return collect(make())

    def read(self, key: Mapping[str, Any]) -> Known | None:
        """Return the cached tables, or None."""
        path = self._path(key, "json")
        if path is None:
            return None
        try:
            return _read_tables(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
            logger.warning("the cached costs %s are measured again: %s", path, cause)
            return None

    def write(self, key: Mapping[str, Any], known: Known) -> None:
        """Write the tables; a failure is logged, not raised."""
        path = self._path(key, "json")
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(path, json.dumps(_plain(key, known), indent=1) + "\n")
        except (OSError, ArtifactError) as cause:
            logger.warning("measured costs are not cached: %s", cause)

    def _path(self, key: Mapping[str, Any], kind: str) -> Path | None:
        return None if self._folder is None else self._folder / f"fit-{json_digest(dict(key))[:32]}.{kind}"

    def _read(self, path: Path) -> PackedWeights:
        packed_weights = store.read(path, path.stem)
        os.utime(path)
        return packed_weights

    def _make_room(self, nbytes: float) -> None:
        """Delete the least recently used packed files until `nbytes` more fit into `MOST_BYTES`."""
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        remove_old(self._folder.glob("fit-*.packed"), most_bytes=MOST_BYTES - nbytes)


def _read_tables(path: Path) -> Known:
    return _parse(parse_json(read_own(path)))


def _plain(key: Mapping[str, Any], known: Known) -> dict[str, Any]:
    """Return the tables as JSON values."""
    table = known.table
    return {
        "measured_with": dict(key),
        "groups": table.groups,
        "formats": table.formats,
        "fixed_nbytes": table.fixed_nbytes,
        "margin": known.margin,
        "costs": {name: getattr(table, name).tolist() for name in QUANTITIES},
        "plans": [
            {"picks": np.frombuffer(picks, np.int64).tolist(), **asdict(loss)}
            for picks, loss in known.losses.items()
        ],
    }


def _parse(data: Mapping[str, Any]) -> Known:
    """Return the tables of a JSON file. Raises `ValueError` if arrays do not match the groups and formats."""
    arrays = {name: np.array(data["costs"][name], np.float64) for name in QUANTITIES}
    groups, formats = tuple(data["groups"]), tuple(data["formats"])
    if any(array.shape != (len(groups), len(formats)) for array in arrays.values()):
        raise ValueError("its arrays do not match its groups and formats")
    losses = {}
    for plan in data["plans"]:
        picks = np.array(plan.pop("picks"), np.int64)
        if picks.shape != (len(groups),):
            raise ValueError("one of its plans does not match its groups")
        losses[picks.tobytes()] = Loss(**plan)
    table = CostTable(groups, formats, **arrays, fixed_nbytes=float(data["fixed_nbytes"]))
    return Known(table, losses, margin=float(data["margin"]))
