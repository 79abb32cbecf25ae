"""A model in memory as an artifact: its packed weights unpacked one by one, exactly, its other weights as they are now.

What may not be written is refused before anything is: weights that the model was not loaded with, quantized ones that
were replaced, values that are not finite.
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
from zeropoint.errors import ArtifactError, UsageError
from zeropoint.files.json_file import CARD_NAME
from zeropoint.files.model_files import model_files
from zeropoint.runtime.torch_engine.half import HalfLinear
from zeropoint.runtime.torch_engine.packed import PackedTensor, to_numpy
from zeropoint.values.plan import Choice, Plan
from zeropoint.values.qtensor import Weight

#: What may lie in a folder that a model is saved to, beside files that no loader takes for weights.
WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth|gguf|onnx)|.*\.(safetensors|bin)\.index\.json")


#: Gives the tokenizer's and other files to copy, which may last until the stack ends.
Files = Callable[[ExitStack], list[Path]]


@dataclass(frozen=True, slots=True)
class Origin:
    """What an artifact of a model says besides its weights, kept since the model was loaded.

    - `config`: config.json; `settings`, `generation`: the model's own configs as they were, to tell what changed;
    - `dtypes`: of each weight that is not quantized, its type in the source;
    - `quality`, `verdict`: an artifact's sections of these names, which hold as long as its weights have this `digest`.
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
        return self.card.plan

    def __deepcopy__(self, memo: dict[int, Any]) -> Origin:
        return self  # nothing in it changes

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
        """Remember what a model just loaded is made of."""
        settings, generation = _settings(model), _generation(model)
        return cls(
            card, config, dtypes, copy.deepcopy(settings), copy.deepcopy(generation), files, **sections
        )

    @classmethod
    def of_artifact(
        cls, model: PreTrainedModel, opened: Artifact, dtypes: Mapping[str, np.dtype[Any]]
    ) -> Origin:
        card, path = opened.card, opened.path
        made = Card(
            plan=opened.plan,
            layout=opened.layout,
            source=card["source"],
            versions=card["versions"],
            machine=card["machine"],
            layer_errors=card["layer_errors"],
            notes=card["notes"],
            calibration=card.get("calibration"),
            engine=card.get("engine") or {},
        )
        sections = {"quality": card["quality"], "verdict": card["verdict"]}
        origin = cls.of(model, made, opened.config, dtypes, TokenizerFiles(path), **sections)
        return replace(origin, digest=_digest(model, origin)) if any(sections.values()) else origin


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The files that lie beside a folder's weights. Raises `ArtifactError` when the folder is gone since."""

    folder: Path

    def __call__(self, stack: ExitStack) -> list[Path]:
        if not self.folder.is_dir():
            raise ArtifactError(
                f"{self.folder}, which the model was loaded from and whose tokenizer belongs to it, is gone: "
                "put it back, or load the model from where it is now"
            )
        return model_files(self.folder)


@dataclass(frozen=True, slots=True)
class Contents:
    """Files kept by their bytes, for a source that holds them inside another file."""

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
    """Write the artifact of a model into `folder`.

    An artifact there is replaced; other files are left alone, so that a tokenizer may be saved to the same folder.
    Raises `UsageError` for a folder that holds another model, and for a model that is not the one that was loaded;
    `ArtifactError` when the artifact cannot be written. In either case nothing is written.
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
    """Pass a stream on, and write the types of the weights that are not quantized into `dtypes`."""
    for name, weight in weights:
        if isinstance(weight, np.ndarray):
            dtypes[name] = weight.dtype
        yield name, weight


def refuse_destination(out: Path) -> None:
    """Raise `UsageError` where a model may not be saved: a file, or a folder that holds another model's weights."""
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise UsageError(f"{out} exists and is not a folder: choose another name")
    others = sorted(file.name for file in out.iterdir() if WEIGHTS.fullmatch(file.name))
    if others and not (out / CARD_NAME).is_file():
        raise UsageError(
            f"{out} holds a model that is not a Zeropoint artifact ({others[0]}), and is not overwritten: choose "
            "another folder"
        )


def refuse_unknown(model: PreTrainedModel, origin: Origin) -> None:
    """Raise `UsageError` unless the model holds exactly the weights that it was loaded with."""
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
                f"the model holds {name}, which it was not loaded with: an artifact is written of the loaded model only"
            )
        if not _same(parameter, find(model, source, origin)):
            raise UsageError(f"{name} was tied to {source} and is another weight now: that cannot be written")


def find(model: PreTrainedModel, name: str, origin: Origin) -> torch.Tensor:
    """Return a weight of the plan as the model holds it. Raises `UsageError` when it is not what was loaded."""
    choice = origin.plan.choices[name]
    path, _, leaf = name.rpartition(".")
    try:
        owner = model.get_submodule(path)
    except AttributeError:
        owner = nn.Module()
    held: torch.Tensor | None = owner._parameters.get(leaf, owner._buffers.get(leaf))
    packed = isinstance(held, PackedTensor)
    if held is None or packed != (choice.scheme is not None and not choice.scheme.is_float):
        raise UsageError(
            f"{name} is not the weight that was loaded: an artifact is written of the loaded model only"
        )
    if isinstance(held, PackedTensor) and held.packed.scheme != choice.scheme:
        raise UsageError(
            f"{name} is quantized as {held.packed.scheme} now, and was loaded as {choice.scheme}"
        )
    if isinstance(owner, HalfLinear) and owner.transposed:
        return held.t()
    return held


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if isinstance(one, PackedTensor) or isinstance(other, PackedTensor):
        return (
            isinstance(one, PackedTensor) and isinstance(other, PackedTensor) and one.packed is other.packed
        )
    return one.shape == other.shape and torch.equal(one, other)


def _changed(model: PreTrainedModel, origin: Origin) -> set[str]:
    """Names of weights that the type they were stored in does not hold any more: they are written in float32.

    Raises `UsageError` for a value that is not finite.
    """
    changed = set()
    for name, dtype in origin.dtypes.items():
        held = find(model, name, origin).detach()
        if not held.is_floating_point():
            continue
        if not torch.isfinite(held).all():
            raise UsageError(f"{name} holds NaN or infinite values: the model is damaged and is not written")
        if not torch.equal(held.to(_torch_dtype(dtype)).to(held.dtype), held):
            changed.add(name)
    return changed


def _with_changes(model: PreTrainedModel, origin: Origin, changed: set[str]) -> Plan:
    """Return the plan of the weights as they are now."""
    if not changed:
        return origin.plan
    choices, nbytes = dict(origin.plan.choices), origin.plan.nbytes
    for name in changed:
        choices[name] = Choice(None, "rtn", {}, "changed after loading: kept in float32")
        nbytes += find(model, name, origin).numel() * (4 - origin.dtypes[name].itemsize)
    return replace(origin.plan, choices=choices, nbytes=nbytes)


def _weights(model: PreTrainedModel, plan: Plan, origin: Origin) -> Iterator[tuple[str, Weight]]:
    """Yield each weight of the plan, one unpacked at a time."""
    for name in plan.choices:
        held = find(model, name, origin)
        if isinstance(held, PackedTensor):
            yield name, held.packed.unpack()
            continue
        dtype = held.dtype
        if dtype.is_floating_point:
            same = plan.choices[name] is origin.plan.choices[name]
            dtype = _torch_dtype(origin.dtypes[name]) if same else torch.float32
        yield name, to_numpy(held.detach().to(dtype))


def _digest(model: PreTrainedModel, origin: Origin) -> str:
    """Return a digest of the weights as they are now. A packed one counts as itself until another is loaded into it."""
    made = hashlib.sha256()
    for name in origin.plan.choices:
        held = find(model, name, origin)
        if isinstance(held, PackedTensor):
            made.update(b"replaced" if held.packed.replaced else b"as loaded")
        else:
            made.update(to_numpy(held).tobytes())
    return made.hexdigest()


def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    made: torch.dtype = getattr(torch, dtype.name)
    return made


def _settings(model: PreTrainedModel) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    return {key: value for key, value in made.items() if key not in ("_name_or_path", "transformers_version")}


def _generation(model: PreTrainedModel) -> dict[str, Any]:
    config = getattr(model, "generation_config", None)
    return {} if config is None else json.loads(config.to_json_string(use_diff=False))


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in after.items() if key not in before or before[key] != value}


def _with_generation(
    model: PreTrainedModel, origin: Origin, files: list[Path], stack: ExitStack
) -> list[Path]:
    """Return the files to copy, generation_config.json among them as the model has it now where it was changed."""
    if _generation(model) == origin.generation:
        return files
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zeropoint-")))
    try:
        model.generation_config.save_pretrained(folder)
    except (ValueError, OSError) as cause:
        raise UsageError(
            f"the model's generation_config is not valid: {' '.join(str(cause).split())}"
        ) from cause
    made = folder / "generation_config.json"
    return [*(file for file in files if file.name != made.name), made]


def _move_in(staged: Path, out: Path) -> None:
    """Move an artifact's files into the folder above it, in place of an older artifact's; its card comes last."""
    try:
        (out / CARD_NAME).unlink(missing_ok=True)  # from here on the folder is no artifact until it is whole
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
    """Remove what was staged inside an existing folder."""
    if staged != out:
        shutil.rmtree(staged, ignore_errors=True)
