"""Saving a loaded model as an artifact: packed weights are unpacked one by one, other weights written as they are now.

A model is refused, before anything is written, if its weights are not the ones that were loaded, if a quantized weight
was replaced by one of another scheme, or if a value is not finite.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from zeropoint.artifact import Artifact, Card, update_card, write
from zeropoint.artifact.writer import SHARD_BYTES, as_artifact_error
from zeropoint.dtypes import BY_NAME
from zeropoint.errors import ArtifactError, UsageError
from zeropoint.files.json_file import CARD_NAME
from zeropoint.files.model_files import model_files
from zeropoint.runtime.torch_engine.half import HalfLinear
from zeropoint.runtime.torch_engine.packed import PackedTensor
from zeropoint.tensors import to_numpy, torch_dtype
from zeropoint.values.plan import Choice, Plan
from zeropoint.values.qtensor import Weight

#: Names of files that a model loader would take for weights.
WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth|gguf|onnx)|.*\.(safetensors|bin)\.index\.json")


#: Returns the tokenizer files and others to copy; temporary ones exist until the `ExitStack` closes.
Files = Callable[[ExitStack], list[Path]]


@dataclass(frozen=True, slots=True)
class Origin:
    """Everything an artifact contains besides the weights, recorded when the model is loaded.

    - `card`: the artifact's card;
    - `config`: config.json;
    - `dtypes`: the dtype in the source of each weight that is not quantized;
    - `settings`, `generation`: the model's configs when loaded, to detect later changes;
    - `files`: returns the tokenizer and other files to copy;
    - `quality`, `verdict`: the card's sections, which are valid while the weights have this `digest`.
    """

    card: Card
    config: Mapping[str, Any]
    dtypes: Mapping[str, np.dtype[Any]]
    settings: Mapping[str, Any]
    generation: Mapping[str, Any]
    files: Files
    quality: Mapping[str, Any] | None = None
    verdict: Mapping[str, Any] | None = None
    digest: str = ""

    @property
    def plan(self) -> Plan:
        """Return the plan in the card."""
        return self.card.plan

    def __deepcopy__(self, memo: dict[int, Any]) -> Origin:
        return self  # an origin is never changed, so copies share it

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        card: Card,
        config: Mapping[str, Any],
        dtypes: Mapping[str, np.dtype[Any]],
        files: Files,
        **sections: Any,
    ) -> Origin:
        """Return the origin of a newly loaded model."""
        settings, generation = _settings(model), _generation(model)
        return cls(
            card, config, dtypes, copy.deepcopy(settings), copy.deepcopy(generation), files, **sections
        )

    @classmethod
    def of_artifact(
        cls, model: PreTrainedModel, opened: Artifact, dtypes: Mapping[str, np.dtype[Any]]
    ) -> Origin:
        """Return the origin of a model newly loaded from an artifact."""
        card, path = opened.card, opened.path
        new_card = Card(
            plan=opened.plan,
            layout=opened.layout,
            source=card["source"],
            versions=card["versions"],
            machine=card["machine"],
            layer_errors=card["layer_errors"],
            notes=card["notes"],
            calibration=card.get("calibration"),
            engine=card.get("engine") or {},
            training=card.get("training"),
        )
        sections = {"quality": card["quality"], "verdict": card["verdict"]}
        origin = cls.of(model, new_card, opened.config, dtypes, TokenizerFiles(path), **sections)
        return replace(origin, digest=_digest(model, origin)) if any(sections.values()) else origin


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The files beside the weights in a folder, listed when called. Raises `ArtifactError` if the folder is gone."""

    folder: Path

    def __call__(self, stack: ExitStack) -> list[Path]:
        if not self.folder.is_dir():
            raise ArtifactError(
                f"{self.folder}, the folder with the model's tokenizer, is gone: put it back, or load the model "
                "from where it is now"
            )
        return model_files(self.folder)


@dataclass(frozen=True, slots=True)
class Contents:
    """Files held in memory, for a source (such as GGUF) that stores them inside another file."""

    contents: Mapping[str, bytes]

    @classmethod
    def of(cls, files: Sequence[Path]) -> Contents:
        return cls({file.name: file.read_bytes() for file in files})

    def __call__(self, stack: ExitStack) -> list[Path]:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zeropoint-")))
        for name, content in self.contents.items():
            (folder / name).write_bytes(content)
        return [folder / name for name in self.contents]


def save(
    model: PreTrainedModel, origin: Origin, folder: str | Path, *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write the model as an artifact into `folder`.

    An artifact in the folder is replaced; other files stay, so a tokenizer can be saved to the same folder. Raises
    `UsageError` if the folder holds another model, or if the model's weights are not those that were loaded;
    `ArtifactError` if the artifact cannot be written.
    """
    out = Path(folder).expanduser()
    refuse_destination(out)
    refuse_unknown(model, origin)
    changed = _changed(model, origin)
    plan = _with_changes(model, origin, changed)
    config = {**origin.config, **_differences(origin.settings, _settings(model))}
    with ExitStack() as stack:
        files = origin.files(stack)
        files = _with_generation(model, origin, files, stack)
        staged = out if not os.path.lexists(out) else out / f".zeropoint-{uuid.uuid4().hex[:12]}"
        stack.callback(_discard, staged, out)
        write(
            staged,
            _weights(model, plan, origin),
            plan=plan,
            layout=origin.card.layout,
            config=config,
            finish=lambda: replace(origin.card, plan=plan),
            files=files,
            shard_bytes=shard_bytes,
        )
        if origin.digest and _digest(model, origin) == origin.digest:
            update_card(staged, quality=origin.quality, verdict=origin.verdict)
        if staged != out:
            _move_in(staged, out)


def noting_dtypes(
    weights: Iterable[tuple[str, Weight]], dtypes: dict[str, np.dtype[Any]]
) -> Iterator[tuple[str, Weight]]:
    """Yield the stream unchanged, and record the dtypes of unquantized weights in `dtypes`."""
    for name, weight in weights:
        if isinstance(weight, np.ndarray):
            dtypes[name] = weight.dtype
        yield name, weight


def refuse_destination(out: Path) -> None:
    """Raise `UsageError` if `out` is a file, or a folder with a model that is not an artifact."""
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise UsageError(f"{out} exists and is not a folder: choose another name")
    others = sorted(file.name for file in out.iterdir() if WEIGHTS.fullmatch(file.name))
    if others and not (out / CARD_NAME).is_file():
        raise UsageError(
            f"{out} holds a model that is not a Zeropoint artifact ({others[0]}) and is not overwritten: choose "
            "another folder"
        )


def refuse_unknown(model: PreTrainedModel, origin: Origin) -> None:
    """Raise `UsageError` unless the model has exactly the parameters that it was loaded with."""
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UsageError(
            "the model has an adapter: save the adapter by itself, or remove it to save the model"
        )
    layout, choices = origin.card.layout, origin.plan.choices
    for name in choices:
        find(model, name, origin)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in choices:
            continue
        source = layout.tied.get(name)
        if source is None or source not in choices:
            raise UsageError(
                f"the model has the weight {name}, which it was not loaded with: only the loaded model can be saved"
            )
        if not _same(parameter, find(model, source, origin)):
            raise UsageError(
                f"{name} was tied to {source} and now differs from it: tie the two again to save the model"
            )


def find(model: PreTrainedModel, name: str, origin: Origin) -> torch.Tensor:
    """Return the tensor of a weight of the plan, in the shape that the checkpoint has.

    Raises `UsageError` if it is missing, or quantized otherwise than when it was loaded.
    """
    choice = origin.plan.choices[name]
    path, _, leaf = name.rpartition(".")
    try:
        owner = model.get_submodule(path)
    except AttributeError:
        owner = nn.Module()
    tensor: torch.Tensor | None = owner._parameters.get(leaf, owner._buffers.get(leaf))
    packed = isinstance(tensor, PackedTensor)
    if tensor is None or packed != (choice.scheme is not None and not choice.scheme.is_float):
        raise UsageError(f"{name} is not the weight that was loaded: only the loaded model can be saved")
    if isinstance(tensor, PackedTensor) and tensor.packed.scheme != choice.scheme:
        raise UsageError(
            f"{name} is now quantized as {tensor.packed.scheme}, but was loaded as {choice.scheme}"
        )
    if isinstance(owner, HalfLinear) and owner.transposed:
        return tensor.t()
    return tensor


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two weights are equal: the same packed weight, or the same values."""
    if isinstance(one, PackedTensor) or isinstance(other, PackedTensor):
        return (
            isinstance(one, PackedTensor) and isinstance(other, PackedTensor) and one.packed is other.packed
        )
    return one.shape == other.shape and torch.equal(one, other)


def _changed(model: PreTrainedModel, origin: Origin) -> set[str]:
    """Return the names of weights whose values no longer fit the dtype of the source; these are written in float32.

    Raises `UsageError` if a value is not finite.
    """
    changed = set()
    for name, dtype in origin.dtypes.items():
        tensor = find(model, name, origin).detach()
        if not tensor.is_floating_point():
            continue
        if not torch.isfinite(tensor).all():
            raise UsageError(f"{name} holds NaN or infinite values: the model is damaged and is not written")
        if not torch.equal(tensor.to(torch_dtype(BY_NAME[dtype.name])).to(tensor.dtype), tensor):
            changed.add(name)
    return changed


def _with_changes(model: PreTrainedModel, origin: Origin, changed: set[str]) -> Plan:
    """Return the plan, with the weights `changed` in float32."""
    if not changed:
        return origin.plan
    choices, nbytes = dict(origin.plan.choices), origin.plan.nbytes
    for name in changed:
        choices[name] = Choice(None, "rtn", {}, "changed after loading: kept in float32")
        nbytes += find(model, name, origin).numel() * (4 - origin.dtypes[name].itemsize)
    return replace(origin.plan, choices=choices, nbytes=nbytes)


def _weights(model: PreTrainedModel, plan: Plan, origin: Origin) -> Iterator[tuple[str, Weight]]:
    """Yield (name, weight) of the plan in order, with one packed weight unpacked at a time."""
    for name in plan.choices:
        tensor = find(model, name, origin)
        if isinstance(tensor, PackedTensor):
            yield name, tensor.packed.unpack()
            continue
        dtype = tensor.dtype
        if dtype.is_floating_point:
            same = plan.choices[name] is origin.plan.choices[name]
            dtype = torch_dtype(BY_NAME[origin.dtypes[name].name]) if same else torch.float32
        yield name, to_numpy(tensor.detach().to(dtype))


def _digest(model: PreTrainedModel, origin: Origin) -> str:
    """Return a digest that changes if a weight changes; of a packed weight, only whether it was replaced counts."""
    digest = hashlib.sha256()
    for name in origin.plan.choices:
        tensor = find(model, name, origin)
        if isinstance(tensor, PackedTensor):
            digest.update(b"replaced" if tensor.packed.replaced else b"as loaded")
        else:
            digest.update(to_numpy(tensor).tobytes())
    return digest.hexdigest()


def _settings(model: PreTrainedModel) -> dict[str, Any]:
    """Return the fields of the model's config, without the path and version that loading sets."""
    fields: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    return {
        key: value for key, value in fields.items() if key not in ("_name_or_path", "transformers_version")
    }


def _generation(model: PreTrainedModel) -> dict[str, Any]:
    """Return the fields of the model's generation config, empty if it has none."""
    config = getattr(model, "generation_config", None)
    return {} if config is None else json.loads(config.to_json_string(use_diff=False))


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `after` that are new or have another value in `before`."""
    return {key: value for key, value in after.items() if key not in before or before[key] != value}


def _with_generation(
    model: PreTrainedModel, origin: Origin, files: list[Path], stack: ExitStack
) -> list[Path]:
    """Return the files to copy; if the generation config was changed, with a new generation_config.json."""
    if _generation(model) == origin.generation:
        return files
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zeropoint-")))
    try:
        model.generation_config.save_pretrained(folder)
    except (ValueError, OSError) as cause:
        raise UsageError(
            f"the model's generation_config is not valid: {' '.join(str(cause).split())}"
        ) from cause
    written = folder / "generation_config.json"
    return [*(file for file in files if file.name != written.name), written]


def _move_in(staged: Path, out: Path) -> None:
    """Move the artifact `staged` into `out` and remove an older artifact's weights; the card comes last."""
    try:
        # without a card, the folder is no artifact until all files are moved
        (out / CARD_NAME).unlink(missing_ok=True)
        new = {file.relative_to(staged) for file in staged.rglob("*") if file.is_file()}
        for file in [*out.iterdir()]:
            if WEIGHTS.fullmatch(file.name) and Path(file.name) not in new:
                file.unlink()
        for name in sorted(new - {Path(CARD_NAME)}):
            (out / name).parent.mkdir(exist_ok=True)
            os.replace(staged / name, out / name)
        os.replace(staged / CARD_NAME, out / CARD_NAME)
    except OSError as cause:
        raise as_artifact_error(out, cause) from cause


def _discard(staged: Path, out: Path) -> None:
    """Remove the temporary folder `staged` inside `out`, if there is one."""
    if staged != out:
        shutil.rmtree(staged, ignore_errors=True)
