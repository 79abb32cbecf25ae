"""What a run that observes text needs in order to go on after it was killed.

A hidden folder beside the output holds every finished block's weights and, now and then, what the next block is
given: the hidden states of all calibration tokens. `journal.json` says how far it may be trusted; it is replaced in
one step after all that it names is on the disk, so that a kill at any moment leaves the one before or the one after.

The hidden states are kept, not computed again from the finished blocks: kept ones are the same to the last bit
whatever made them (a fold's biases are rounded only in the artifact; blocks are passed over in parts), and running
the finished blocks again takes half of what GPTQ took. They are large, so they are written only when that has taken
less than `SHARE` of the time since; blocks finished after the last time are quantized again, to the same bytes.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from zeropoint.artifact import layout as layouts
from zeropoint.artifact import refuse_existing
from zeropoint.artifact.card import replace_text
from zeropoint.artifact.writer import lock, sync
from zeropoint.errors import ArtifactError, UsageError
from zeropoint.files import safetensors_file
from zeropoint.files.json_file import MAX_CARD_BYTES, json_digest, load_json
from zeropoint.quantization.layers import LayerError
from zeropoint.values.plan import Plan
from zeropoint.values.qtensor import QuantizedTensor, Weight
from zeropoint.values.scheme import parse

logger = logging.getLogger(__name__)

#: The run checkpoint's file; 1 is the version of what it holds.
NAME, VERSION = "journal.json", 1

#: The part of a run's time that keeping hidden states may take.
SHARE = 0.02

#: Nothing of an artifact is tied, looked up or transposed here: weights are stored as the stream gave them.
PLAIN = layouts.Layout()


class Made(NamedTuple):
    """One weight of the stream, and what was said of it."""

    weight: Weight
    error: LayerError | None = None
    warning: str = ""


class States(NamedTuple):
    """How many blocks are done, and what the next one is given, batch by batch: of the quantized model, and of the
    float one where that runs beside it. Both are empty after the last block."""

    done: int
    hidden: Sequence[torch.Tensor] = ()
    exact: Sequence[torch.Tensor] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """What decides the bytes of a run, as digests; `machine` may change them in the last digits only."""

    plan: str
    source: str
    calibration: str
    versions: str
    machine: str

    @classmethod
    def of(cls, plan: Plan, source: str, calibration: Any, versions: Mapping[str, str], machine: Any) -> Run:
        return cls(*map(json_digest, (plan.to_json(), source, calibration, versions, machine)))


def folder_of(out: Path) -> Path:
    """Where the unfinished run of an output is kept: hidden, and by its name no artifact."""
    return out.absolute().parent / f".{out.name}.unfinished"


def is_unfinished(out: Path) -> bool:
    """Whether finished blocks of an output are kept."""
    return (folder_of(out) / NAME).is_file()


def forget(out: Path) -> None:
    """Remove what is kept of an output that is finished."""
    shutil.rmtree(folder_of(out), ignore_errors=True)


def refuse_output(path: str | Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Raise `UsageError` where an output exists, or an unfinished run of it that nobody said what to do with."""
    out = Path(path).expanduser()
    if not resume:
        refuse_existing(out, overwrite=overwrite)
    if is_unfinished(out) and not resume and not overwrite:
        raise UsageError(
            f"{folder_of(out)} keeps an interrupted run of {out}: "
            "go on with it (--resume), or start again (--overwrite)"
        )


class RunCheckpoint:
    """The unfinished run of one output. `warning` is what must be said of going on with it, "" when nothing."""

    def __init__(self, out: Path, run: Run) -> None:
        self.folder = folder_of(out)
        self.warning = ""
        self.blocks = 0
        self._run = run
        self._made: dict[str, dict[str, Any]] = {}
        self._states: dict[str, Any] = {}
        self._file: safetensors_file.TensorFile | None = None
        self._pending: dict[str, Made] = {}
        self._new: list[Path] = []
        self._written, self._cost = time.monotonic(), 0.0

    @contextmanager
    def opened(self, *, resume: bool) -> Iterator[RunCheckpoint]:
        """Within, the run is kept, and with `resume` what was kept is taken up; afterwards it is removed.

        Where the run does not come to its end, finished blocks stay, and the log says so. Raises `UsageError` when
        what was kept is another command's or is being written by another process, `ArtifactError` when it is damaged
        or the folder cannot be written.
        """
        with self._locked():
            if resume and (self.folder / NAME).exists():
                self._read()
            self._remove_unnamed()
            try:
                yield self
                self._made.clear()
            finally:
                if self._made:
                    logger.warning(
                        "%s keeps %d finished blocks: the same command with --resume goes on from there",
                        self.folder,
                        self.blocks,
                    )
                else:
                    shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(exist_ok=True)
            held = lock(self.folder)
        except OSError as cause:
            raise ArtifactError(f"{self.folder} cannot be written ({cause.strerror or cause})") from cause
        if held is None:
            raise UsageError(
                f"another process is writing {self.folder}: wait for it, or choose another output"
            )
        try:
            yield
        finally:
            os.close(held)

    def get(self, name: str) -> Made | None:
        """A weight of a finished block, as it was made; None when it is still to be made."""
        entry = self._made.get(name)
        if entry is None:
            return None
        file, scheme = self._opened(self.folder / entry["file"]), entry["scheme"]
        error = None if entry["error"] is None else LayerError(**entry["error"])
        if scheme is None:
            return Made(file.read(name), error, entry["warning"])
        parsed = parse(scheme)
        keys = layouts.tensor_names(name, parsed, PLAIN)
        weight = layouts.decode(name, parsed, {key: file.read(key) for key in keys})
        return Made(weight, error, entry["warning"])

    def states(self) -> States:
        """What the first block that is still to be made is given."""
        if not self._states:
            return States(self.blocks)
        path = self.folder / self._states["file"]
        try:
            with path.open("rb") as file:
                arrays = [
                    # Into memory of torch's own, aligned as that of the undisturbed run.
                    torch.from_numpy(np.load(file, allow_pickle=False)).clone()
                    for _ in range(self._states["hidden"] + self._states["exact"])
                ]
        except (OSError, ValueError, EOFError) as cause:
            raise self._damaged(path, cause) from cause
        count = self._states["hidden"]
        return States(self.blocks, arrays[:count], arrays[count:])

    def add(self, name: str, made: Made) -> None:
        """A weight that was made now."""
        self._pending[name] = made

    def finish_blocks(self, states: States) -> None:
        """What was added, if anything, completes blocks; from there, a run goes on with `states`."""
        if not self._pending:
            return
        file = self.folder / f"weights-{len(self._made):07d}.safetensors"  # how many came before
        safetensors_file.write(file, dict(_stored(self._pending)))
        self._new.append(file)
        for name, made in self._pending.items():
            self._made[name] = {
                "file": file.name,
                "scheme": str(made.weight.scheme) if isinstance(made.weight, QuantizedTensor) else None,
                "error": None if made.error is None else made.error.to_json(),
                "warning": made.warning,
            }
        self._pending.clear()
        started = time.monotonic()
        if not states.hidden or SHARE * (started - self._written) >= self._cost:
            self._write(states)
            self._written = time.monotonic()
            self._cost = self._written - started

    def _write(self, states: States) -> None:
        """Make it so that a resume goes on from `states`."""
        old, self._states = self._states.get("file"), {}
        if states.hidden:
            path = self.folder / f"states-{states.done:05d}.npy"
            with path.open("wb") as file:
                for tensor in (*states.hidden, *states.exact):
                    np.save(file, tensor.numpy(), allow_pickle=False)
            self._states = {"file": path.name, "hidden": len(states.hidden), "exact": len(states.exact)}
            self._new.append(path)
        for path in (*self._new, self.folder):
            sync(path)
        self._new.clear()
        self.blocks = states.done
        content = {
            "version": VERSION,
            "run": asdict(self._run),
            "blocks": self.blocks,
            "states": self._states,
            "made": self._made,
        }
        replace_text(self.folder / NAME, json.dumps(content) + "\n")
        sync(self.folder)
        if old is not None:
            (self.folder / old).unlink(missing_ok=True)

    def _read(self) -> None:
        path = self.folder / NAME
        data = load_json(path, MAX_CARD_BYTES)
        try:
            if data["version"] != VERSION:
                raise ValueError(f"version {data['version']!r} is not {VERSION}")
            known = Run(**data["run"])
            self.blocks, self._states, self._made = (
                int(data["blocks"]),
                dict(data["states"]),
                dict(data["made"]),
            )
        except (KeyError, TypeError, ValueError) as cause:
            raise self._damaged(path, cause) from cause
        mine = asdict(self._run)
        others = [field for field, digest in asdict(known).items() if digest != mine[field]]
        if "machine" in others:
            others.remove("machine")
            self.warning = (
                "the run was begun on another machine or with other threads: its last digits may differ from those "
                "of an undisturbed one"
            )
        if others:
            raise UsageError(
                f"{self.folder} keeps a run of another command (not the same {', '.join(others)}): give that command, "
                "or start again (--overwrite)"
            )

    def _remove_unnamed(self) -> None:
        """What the run checkpoint does not name was being written when the run was killed, or is of no use any more."""
        named = {entry["file"] for entry in self._made.values()} | {NAME, self._states.get("file")}
        for file in self.folder.iterdir():
            if file.name not in named:
                file.unlink()
        if not self._made:
            (self.folder / NAME).unlink(missing_ok=True)

    def _opened(self, path: Path) -> safetensors_file.TensorFile:
        """A file of weights, one at a time."""
        if self._file is None or self._file.path != path:
            self._file = safetensors_file.TensorFile(path, ArtifactError)
        return self._file

    def _damaged(self, path: Path, cause: Exception) -> ArtifactError:
        return ArtifactError(f"{path} is damaged ({cause}): start again (--overwrite)")


def _stored(made: Mapping[str, Made]) -> Iterator[tuple[str, NDArray[Any]]]:
    """The tensors of a file of weights: those of an artifact, names tied to others left out."""
    for name, (weight, _, _) in made.items():
        if isinstance(weight, QuantizedTensor):
            yield from layouts.encode(name, weight, PLAIN)
        else:
            yield name, weight
