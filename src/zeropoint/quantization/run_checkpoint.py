"""Run checkpoints: the state on disk from which an interrupted run with calibration text continues.

A hidden folder beside the output holds the weights of every finished block and, from time to time, the hidden states of
all calibration tokens (the next block's input). `journal.json` lists the valid files. The journal is replaced
atomically, after all files that it lists are on the disk. So a kill at any moment leaves either the old or the new
state.

The hidden states are stored, not recomputed from the finished blocks, for two reasons. A recomputation would not give
the same bits (a fold's biases are rounded only in the artifact, and runs skip parts of blocks), and would take half as
long as GPTQ took. Hidden states are large, so they are written only if writing takes less than `SHARE` of the time
since the last write. Blocks finished after the last write are quantized again on resume, to the same bytes.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from zeropoint.artifact import layout as layouts
from zeropoint.artifact import refuse_existing
from zeropoint.artifact.writer import lock
from zeropoint.errors import ArtifactError, UsageError, reason
from zeropoint.files import safetensors_file
from zeropoint.files.atomic import replace_text, sync
from zeropoint.files.json_file import MAX_CARD_BYTES, json_digest, load_json
from zeropoint.quantization.block_runner import States
from zeropoint.quantization.layers import LayerError
from zeropoint.values.plan import Plan
from zeropoint.values.qtensor import QuantizedTensor, Weight
from zeropoint.values.scheme import parse

logger = logging.getLogger(__name__)

#: The journal's file name and format version.
NAME, VERSION = "journal.json", 1

#: The share of a run's time that writing hidden states may take.
SHARE = 0.02

#: A layout without ties, embeddings and transposed weights: weights are stored as the stream yields them.
PLAIN = layouts.Layout()


class Made(NamedTuple):
    """One weight of the stream, its rounding error (None if kept) and its warning ("" for none)."""

    weight: Weight
    error: LayerError | None = None
    warning: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """Digests of everything that affects a run's bytes; another `machine` changes the last digits of numbers only."""

    plan: str
    source: str
    calibration: str
    versions: str
    machine: str

    @classmethod
    def of(cls, plan: Plan, source: str, calibration: Any, versions: Mapping[str, str], machine: Any) -> Run:
        """Return the digests of these values, which must be plain JSON values or a `Plan`."""
        return cls(*map(json_digest, (plan.to_json(), source, calibration, versions, machine)))


def folder_of(out: Path) -> Path:
    """Return the hidden folder of an output's run checkpoint; its name cannot be taken for an artifact."""
    return out.absolute().parent / f".{out.name}.unfinished"


def is_unfinished(out: Path) -> bool:
    """Return whether an output has a run checkpoint with finished blocks."""
    return (folder_of(out) / NAME).is_file()


def forget(out: Path) -> None:
    """Remove the run checkpoint of a finished output."""
    shutil.rmtree(folder_of(out), ignore_errors=True)


def refuse_output(path: str | Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Raise `UsageError` if the output exists, or its run checkpoint does, without `resume` or `overwrite`."""
    out = Path(path).expanduser()
    if not resume:
        refuse_existing(out, overwrite=overwrite)
    if is_unfinished(out) and not resume and not overwrite:
        raise UsageError(
            f"{folder_of(out)} keeps an interrupted run of {out}: "
            "continue it (--resume), or start again (--overwrite)"
        )


class RunCheckpoint:
    """The run checkpoint of one output; `blocks` is the number of finished blocks.

    `warning` is a note for the user on a resumed run ("" for none).
    """

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
        """Open the run checkpoint inside the context, with `resume` at its stored state; remove it at the end.

        If the run fails, finished blocks stay on disk, and the log says so. Raises `UsageError` if the stored run
        belongs to another command or another process is writing it, `ArtifactError` if the stored run is damaged or
        the folder cannot be written.
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
                        "%s keeps %d finished blocks: the same command with --resume continues from there",
                        self.folder,
                        self.blocks,
                    )
                else:
                    shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Create the folder and hold its lock inside the context."""
        try:
            self.folder.mkdir(exist_ok=True)
            descriptor = lock(self.folder)
        except OSError as cause:
            raise ArtifactError(f"{self.folder} cannot be written ({reason(cause)})") from cause
        if descriptor is None:
            raise UsageError(
                f"another process is writing {self.folder}: wait for it, or choose another output"
            )
        try:
            yield
        finally:
            os.close(descriptor)

    def get(self, name: str) -> Made | None:
        """Return a stored weight, or None if the weight is still to be quantized."""
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
        """Return the stored number of finished blocks and the next block's input.

        Raises `ArtifactError` if the file is damaged.
        """
        if not self._states:
            return States(self.blocks)
        path = self.folder / self._states["file"]
        try:
            with path.open("rb") as file:
                arrays = [
                    # `clone` copies into memory aligned like that of an uninterrupted run, for the same bits.
                    torch.from_numpy(np.load(file, allow_pickle=False)).clone()
                    for _ in range(self._states["hidden"] + self._states["exact"])
                ]
        except (OSError, ValueError, EOFError) as cause:
            raise self._damaged(path, cause) from cause
        count = self._states["hidden"]
        return States(self.blocks, arrays[:count], arrays[count:])

    def add(self, name: str, made: Made) -> None:
        """Add a weight that was just quantized; `finish_blocks` writes it."""
        self._pending[name] = made

    def finish_blocks(self, states: States) -> None:
        """Write the added weights, which complete one or more blocks; write `states` if that does not take too long.

        Do nothing if no weight was added.
        """
        if not self._pending:
            return
        file = (
            self.folder / f"weights-{len(self._made):07d}.safetensors"
        )  # the number of weights stored before
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
        """Write `states` and the journal, so that a resumed run continues from `states`."""
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
        """Read the journal and compare its run with this one."""
        path = self.folder / NAME
        data = load_json(path, MAX_CARD_BYTES)
        try:
            if data["version"] != VERSION:
                raise ValueError(f"version {data['version']!r} is not {VERSION}")
            stored_run = Run(**data["run"])
            self.blocks, self._states, self._made = (
                int(data["blocks"]),
                dict(data["states"]),
                dict(data["made"]),
            )
        except (KeyError, TypeError, ValueError) as cause:
            raise self._damaged(path, cause) from cause
        own_run = asdict(self._run)
        differences = [field for field, digest in asdict(stored_run).items() if digest != own_run[field]]
        if "machine" in differences:
            differences.remove("machine")
            self.warning = (
                "the run was started on another machine or with another number of threads: last digits may differ from "
                "those of an uninterrupted run"
            )
        if differences:
            raise UsageError(
                f"{self.folder} keeps a run of another command (not the same {', '.join(differences)}): "
                "give that command, or start again (--overwrite)"
            )

    def _remove_unnamed(self) -> None:
        """Remove files that the journal does not list: incomplete ones from a killed run, and outdated ones."""
        named = {entry["file"] for entry in self._made.values()} | {NAME, self._states.get("file")}
        for file in self.folder.iterdir():
            if file.name not in named:
                file.unlink()
        if not self._made:
            (self.folder / NAME).unlink(missing_ok=True)

    def _opened(self, path: Path) -> safetensors_file.TensorFile:
        """Return an open file of weights; the last one stays open."""
        if self._file is None or self._file.path != path:
            self._file = safetensors_file.TensorFile(path, ArtifactError)
        return self._file

    def _damaged(self, path: Path, cause: Exception) -> ArtifactError:
        """Return the error for a damaged file."""
        return ArtifactError(f"{path} is damaged ({cause}): start again (--overwrite)")


def _stored(made: Mapping[str, Made]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield `(name, tensor)` of a file of weights, encoded as in an artifact with the layout `PLAIN`."""
    for name, (weight, _, _) in made.items():
        if isinstance(weight, QuantizedTensor):
            yield from layouts.encode(name, weight, PLAIN)
        else:
            yield name, weight
