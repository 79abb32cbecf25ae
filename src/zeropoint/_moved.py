"""Old names of modules and of their classes: using one warns, and gives what took its place."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

#: Old name under `zeropoint.` -> new name. Submodules of a package that moved follow it.
MOVED = {
    "allocator": "machine.heap",
    "budget": "values.budget",
    "companions": "files.model_files",
    "documents": "files.documents",
    "evaluate.accuracy": "evaluate.tasks.accuracy",
    "evaluate.agreement": "evaluate.gate.export_agreement",
    "evaluate.answers": "evaluate.quality.greedy_answers",
    "evaluate.client": "evaluate.worker.client",
    "evaluate.harness": "evaluate.tasks.lm_eval_model",
    "evaluate.memory": "runtime.host_memory",
    "evaluate.models": "evaluate.model_description",
    "evaluate.paired": "evaluate.statistics.paired_accuracy",
    "evaluate.pairing": "evaluate.worker.paired_models",
    "evaluate.progress": "progress",
    "evaluate.references": "evaluate.worker.reference_cache",
    "evaluate.settings": "evaluate.speed.settings",
    "evaluate.windows": "evaluate.quality.windows",
    "files.gguf_file": "gguf.file",
    "gguf.blocks": "gguf.types.blocks",
    "gguf.configs": "gguf.architecture.to_config",
    "gguf.families": "gguf.architecture.families",
    "gguf.graphs": "gguf.architecture.description",
    "gguf.headers": "gguf.architecture.to_header",
    "gguf.placements": "gguf.architecture.tensors",
    "gguf.recipes": "gguf.types.mixes",
    "gguf.rotations": "gguf.architecture.rotations",
    "gguf.sentencepiece": "gguf.vocabulary.sentencepiece",
    "gguf.splits": "gguf.vocabulary.splits",
    "gguf.superblocks": "gguf.types.superblocks",
    "gguf.tokenizer": "gguf.vocabulary.to_tokenizer",
    "ggufile": "gguf.file",
    "identity": "files.identity",
    "jsonfile": "files.json_file",
    "models.record": "models.spec",
    "outfile": "files.atomic",
    "plan": "values.plan",
    "qtensor": "values.qtensor",
    "quantization.blocks": "quantization.block_runner",
    "quantization.calibrated": "quantization.calibrated_blocks",
    "quantization.journal": "quantization.run_checkpoint",
    "quantization.pipeline": "quantization.to_artifact",
    "quantization.precision": "quantization.product_precision",
    "quantization.replay": "quantization.stages",
    "quantization.taps": "quantization.hooks",
    "quantization.tuning": "quantization.block_tuning",
    "reference.packing": "artifact.packing",
    "report": "values.report",
    "runtime.foreign": "runtime.external",
    "runtime.native.architectures": "models.families",
    "runtime.native.config": "models.config",
    "runtime.native.parcel": "runtime.native.packed_weights",
    "runtime.native.parts": "models.parts",
    "runtime.native.record": "models.spec",
    "runtime.native.rope": "models.rope",
    "runtime.native.tokenizer": "tokenizer",
    "runtime.universal": "runtime.torch_engine",
    "scheme": "values.scheme",
    "sensitivity": "values.sensitivity",
    "shards": "files.shards",
    "stats": "values.stats",
    "tensordigest": "files.tensor_digest",
    "tensorfile": "files.safetensors_file",
    "userfolder": "files.user_folder",
}

#: New name of a module under `zeropoint.` -> old name of a class or function in it -> new name, with a dot if it moved
#: to a submodule (`detect.Machine`). `old_attributes` resolves these names. A module whose name is unchanged has it as
#: `__getattr__`; a renamed module gets it when it is imported by its old name.
RENAMED = {
    "machine": {"Machine": "detect.Machine", "LEVEL_FLAGS": "detect.LEVEL_FLAGS", "CGROUP": "cores.CGROUP"},
    "files.model_files": {"COMPANIONS": "MODEL_FILES", "companion_files": "model_files"},
    "models.spec": {"DecoderRecord": "ModelSpec"},
    "quantization.hooks": {"Seen": "InputHook"},
    "quantization": {"Progress": "WeightDone"},
    "quantization.run_checkpoint": {"Journal": "RunCheckpoint"},
    "runtime.external": {"Foreign": "ExternalModel"},
    "quantization.streaming": {"Progress": "WeightDone"},
    "runtime.native.packed_weights": {"Parcel": "PackedWeights", "Part": "Key"},
}


class OldNames(MetaPathFinder, Loader):
    """Finds modules by their old names. It comes first, or a submodule of a moved package would be loaded twice."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of an old name, None for any other name."""
        return None if _new_name(fullname) is None else ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Warn, and return the module under its new name."""
        new = _new_name(spec.name)
        assert new is not None
        warnings.warn(f"{spec.name} is now {new}", DeprecationWarning, stacklevel=2)
        module = import_module(new)
        if new.removeprefix("zeropoint.") in RENAMED:
            vars(module).setdefault("__getattr__", old_attributes(new))
        spec.loader_state = module.__spec__  # the import system replaces it by `spec`
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its own spec back. Its code ran when it was imported under its new name."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def _new_name(name: str) -> str | None:
    """Return the new full name of a module with an old name, None for any other name."""
    if not name.startswith("zeropoint."):
        return None
    parts = name.removeprefix("zeropoint.").split(".")
    for count in range(len(parts), 0, -1):
        if new := MOVED.get(".".join(parts[:count])):
            return ".".join(["zeropoint", new, *parts[count:]])
    return None


def old_attributes(module: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module: it warns about an old name, and returns the object with the new name.

    The import of a submodule asks for its name here first, so a name that is not in `RENAMED` must import nothing.
    """

    def get(name: str) -> Any:
        new = RENAMED[module.removeprefix("zeropoint.")].get(name)
        if new is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        path, _, leaf = f"{module}.{new}".rpartition(".")
        home = "" if path == module else f"{path}."
        warnings.warn(f"{name} of {module} is now {home}{leaf}", DeprecationWarning, stacklevel=2)
        return getattr(import_module(path), leaf)

    return get


def install() -> None:
    """Answer imports of old names from now on."""
    sys.meta_path.insert(0, OldNames())
