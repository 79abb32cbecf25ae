"""Reading and validating an artifact folder. Opening reads card, config and headers; `read` reads one weight."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from zeropoint.artifact import layout as layouts
from zeropoint.artifact.card import check_card, read_card
from zeropoint.artifact.layout import Layout
from zeropoint.errors import ArtifactError, CheckpointError, UnsupportedError, ZeropointError
from zeropoint.files.json_file import CARD_NAME, load_json
from zeropoint.files.safetensors_file import TensorFile
from zeropoint.files.shards import SINGLE, shard_files
from zeropoint.sources import quantized
from zeropoint.values.plan import Plan
from zeropoint.values.qtensor import Weight


class Artifact:
    """An opened artifact.

    `config` is the content of config.json, `card` that of zeropoint.json; `plan` and `layout` are parsed from the card.
    Raises `ArtifactError` if the folder is malformed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: dict[str, Any] = load_json(path / "config.json")
        if not isinstance(self.config.get("model_type"), str):
            raise ArtifactError(f"{path / 'config.json'} names no model_type: make the artifact again")
        self.card: dict[str, Any] = read_card(path)
        self.plan: Plan
        self.layout: Layout
        self.plan, self.layout = check_card(self.card)
        self._where = _open_files(path)
        self._check_names()

    def names(self) -> list[str]:
        """Return the weight names in the order in which they were written; a tied weight appears once."""
        return list(self.plan.choices)

    def read(self, name: str) -> Weight:
        """Return one weight: a `QuantizedTensor`, or an unquantized tensor as a numpy array. Raises `ArtifactError`."""
        choice = self.plan.choices.get(name)
        if choice is None:
            raise ArtifactError(f"{self.path} holds no weight {name}")
        if choice.scheme is None or choice.scheme.is_float:
            return self._where[name].read(name)
        keys = layouts.tensor_names(name, choice.scheme, self.layout)
        own = [key for key in keys if key.startswith(layouts.module_of(name) + ".")]
        try:
            return layouts.decode(name, choice.scheme, {key: self._where[key].read(key) for key in own})
        except ZeropointError as cause:
            raise ArtifactError(f"{self.path}: {name}: {cause}") from cause

    def stream(self) -> Iterator[tuple[str, Weight]]:
        """Yield the name and value of every weight, in the order of `names()`."""
        for name in self.names():
            yield name, self.read(name)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight, `[out, in]` of quantized ones, without reading the weights."""
        return {name: self._shape(name) for name in self.plan.choices}

    def _shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one weight: its tensor's, or the value of `weight_shape` if its codes are packed."""
        scheme = self.plan.choices[name].scheme
        if scheme is None or scheme.is_float:
            return self._where[name].info(name)[1]
        key = layouts.tensor_names(name, scheme, self.layout)[1 if scheme.is_packed else 0]
        if scheme.is_packed:
            rows, columns = self._where[key].read(key)
            return int(rows), int(columns)
        return self._where[key].info(key)[1]

    @property
    def nbytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(file.nbytes(name) for name, file in self._where.items())

    def verify(self) -> None:
        """Read every tensor and check every value, and every shape against config.json. Raises `ArtifactError`.

        Shapes are those of the native engine's model spec. Of a model that this engine does not support, the shapes are
        not checked here: the torch runtime checks them when it loads the artifact.
        """
        shapes = self._expected_shapes()
        if missing := sorted(set(shapes) - set(self.plan.choices)):
            raise ArtifactError(
                f"{self.path} lacks {missing[0]}, which its config.json asks for: the two belong to different models"
            )
        for name, weight in self.stream():
            if weight.shape != shapes.get(name, weight.shape):
                raise ArtifactError(
                    f"{self.path}: {name} has the shape {weight.shape} but its config.json implies {shapes[name]}: the "
                    "two belong to different models"
                )
            if isinstance(weight, np.ndarray) and weight.dtype.kind in "fV" and not np.isfinite(weight).all():
                raise ArtifactError(
                    f"{self.path}: {name} holds NaN or infinite values: make the artifact again"
                )

    def _expected_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return {weight name: shape} that config.json implies; empty if the native engine does not support the model.

        A quantized weight has the shape `[out, in]`, also if checkpoints store it transposed.
        """
        from zeropoint.sources.records import (
            derive_stored,  # on demand: opening an artifact needs no model families
        )

        try:
            record = derive_stored(self.config, self.plan.choices)
        except UnsupportedError:
            return {}
        shapes, transposed = record.shapes(), set(self.layout.transposed)
        for name in transposed & set(shapes):
            scheme = self.plan.choices[name].scheme if name in self.plan.choices else None
            if scheme is not None and not scheme.is_float:
                shapes[name] = shapes[name][::-1]
        return shapes

    def _check_names(self) -> None:
        """Raise `ArtifactError` unless the files have exactly the tensors, and the bytes, that the plan implies."""
        expected: set[str] = set()
        for name, choice in self.plan.choices.items():
            integer = choice.scheme is not None and not choice.scheme.is_float
            expected.update(
                layouts.tensor_names(name, choice.scheme, self.layout)
                if integer and choice.scheme
                else [name]
            )
        missing, unknown = expected - set(self._where), set(self._where) - expected
        if missing:
            raise ArtifactError(
                f"{self.path} lacks the tensor {min(missing)}, which its card names: make the artifact again"
            )
        if unknown:
            raise ArtifactError(f"{self.path} holds the tensor {min(unknown)}, which its card does not name")
        if self.nbytes != self.plan.nbytes:
            raise ArtifactError(
                f"{self.path} holds {self.nbytes} bytes of tensors, its card says {self.plan.nbytes}"
            )


def is_artifact(path: str | Path) -> bool:
    """Return whether the folder has a quality card, which makes it an artifact."""
    return (Path(path) / CARD_NAME).is_file()


def open(path: str | Path) -> Artifact:
    """Open an artifact folder: check card, config and tensor headers, but read no tensor data.

    Raises `ArtifactError` if the folder is missing or malformed.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ArtifactError(
            f"{folder} is not a folder: give an artifact's folder, which `zeropoint quantize MODEL -o FOLDER` makes"
        )
    if not is_artifact(folder) and (folder / "config.json").is_file():
        raise ArtifactError(_not_an_artifact(folder))
    return Artifact(folder)


def _not_an_artifact(folder: Path) -> str:
    """Return the message for a model folder without a card, with the command that makes an artifact of the model."""
    try:
        is_float = quantized.section_of(folder) is None
    except CheckpointError:  # a damaged config.json, which the command will refuse
        is_float = True
    command = "quantize" if is_float else "import"
    return (
        f"{folder} is not an artifact: it has no {CARD_NAME}; "
        f"`zeropoint {command} {folder} -o OUT` makes an artifact of this model"
    )


def _open_files(folder: Path) -> dict[str, TensorFile]:
    """Open the files of weights; return each tensor's file by the tensor's name."""
    where: dict[str, TensorFile] = {}
    files = shard_files(folder, ArtifactError)
    if not files:
        raise ArtifactError(f"{folder} holds no weights ({SINGLE} is missing): make the artifact again")
    for path in files:
        file = TensorFile(path, ArtifactError)
        for tensor in file.names():
            if tensor in where:
                raise ArtifactError(f"{folder} holds the tensor {tensor} twice")
            where[tensor] = file
    return where
