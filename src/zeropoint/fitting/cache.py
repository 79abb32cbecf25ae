"""What was measured of a model is kept, so that another budget for it costs no measuring.

A folder of files named by the digest of all that they depend on: a change of the model, the text, the processor or
the program is another name, and nothing stale is ever read. Cost tables are JSON; candidates, and the logits that
losses are measured against, are packed files, mapped when they are used. The files used longest ago make room. A cache
that cannot be written or is damaged costs time, not the answer: that is said in the log.
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

from zeropoint.artifact.card import replace_text
from zeropoint.errors import ArtifactError
from zeropoint.files.json_file import json_digest, parse_json
from zeropoint.files.user_folder import read_own
from zeropoint.fitting.loss import Loss
from zeropoint.planning.solver import QUANTITIES, CostTable
from zeropoint.runtime.native import store
from zeropoint.runtime.native.packed_weights import Packed, PackedWeights, collect

logger = logging.getLogger(__name__)

#: Packed files are kept below this: candidates of models above it are made each time.
MOST_BYTES = 4 << 30


@dataclass(slots=True)
class Known:
    """The tables, and the losses of plans that were run, by the plan's format numbers. `margin`: the part of the loss
    asked for that may be planned, by what the last trial said."""

    table: CostTable
    losses: dict[bytes, Loss] = field(default_factory=dict)
    margin: float = 1.0


class Cache:
    """`folder` None keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def packed_weights(
        self, key: Mapping[str, Any], nbytes: float, make: Callable[[], Iterable[Packed]]
    ) -> PackedWeights:
        """The kept packed weights, else what `make` gives, kept for the next time if there is room for `nbytes`."""
        path = self._path(key, "packed")
        if path is None or nbytes > MOST_BYTES:
            return collect(make())
        try:
            return self._read(path)
        except FileNotFoundError:
            pass
        except (OSError, store.StoreError) as cause:
            logger.warning("the kept file %s is made again: it %s", path, cause)
        try:
            self._make_room(nbytes)
            store.write(path, path.stem, make())
            return self._read(path)
        except (OSError, store.StoreError) as cause:
            logger.warning("packed files are not kept in %s: %s", path.parent, cause)
            return collect(make())

    def read(self, key: Mapping[str, Any]) -> Known | None:
        """The kept tables, if there are any."""
        path = self._path(key, "json")
        if path is None:
            return None
        try:
            return _read_tables(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
            logger.warning("the kept costs %s are measured again: %s", path, cause)
            return None

    def write(self, key: Mapping[str, Any], known: Known) -> None:
        path = self._path(key, "json")
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(path, json.dumps(_plain(key, known), indent=1) + "\n")
        except (OSError, ArtifactError) as cause:
            logger.warning("measured costs are not kept: %s", cause)

    def _path(self, key: Mapping[str, Any], kind: str) -> Path | None:
        return None if self._folder is None else self._folder / f"fit-{json_digest(dict(key))[:32]}.{kind}"

    def _read(self, path: Path) -> PackedWeights:
        packed_weights = store.read(path, path.stem)
        os.utime(path)
        return packed_weights

    def _make_room(self, nbytes: float) -> None:
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        files = sorted(self._folder.glob("fit-*.packed"), key=lambda file: file.stat().st_mtime)
        room = MOST_BYTES - nbytes - sum(file.stat().st_size for file in files)
        for file in files:
            if room >= 0:
                break
            room += file.stat().st_size
            file.unlink()


def _read_tables(path: Path) -> Known:
    return _parse(parse_json(read_own(path)))


def _plain(key: Mapping[str, Any], known: Known) -> dict[str, Any]:
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
    arrays = {name: np.array(data["costs"][name], np.float64) for name in QUANTITIES}
    groups, formats = tuple(data["groups"]), tuple(data["formats"])
    if any(array.shape != (len(groups), len(formats)) for array in arrays.values()):
        raise ValueError("its arrays do not fit its groups and formats")
    losses = {}
    for plan in data["plans"]:
        picks = np.array(plan.pop("picks"), np.int64)
        if picks.shape != (len(groups),):
            raise ValueError("a plan of it does not fit its groups")
        losses[picks.tobytes()] = Loss(**plan)
    table = CostTable(groups, formats, **arrays, fixed_nbytes=float(data["fixed_nbytes"]))
    return Known(table, losses, margin=float(data["margin"]))
