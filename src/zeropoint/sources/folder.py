"""Opening of model folders (config.json and safetensors files) and GGUF files as a `Source`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from zeropoint.errors import CheckpointError
from zeropoint.files.json_file import load_json
from zeropoint.files.shards import INDEX, SINGLE, shard_files
from zeropoint.sources import quantized
from zeropoint.sources.location import locate
from zeropoint.sources.names import unwrap
from zeropoint.sources.source import Source, Tensor

if TYPE_CHECKING:
    from zeropoint.files.safetensors_file import TensorFile

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
ADAPTER = "adapter_config.json"


def open_source(source: str | Path, *, revision: str | None = None) -> Source:
    """Open a local folder, a GGUF file (or any of its parts) or a hub name. Reads headers only.

    Raises `CheckpointError` if the model does not exist, is damaged, or is a quantized folder.
    """
    path = locate(source, revision=revision)
    file = find_gguf(path)
    return open_folder(path, str(source)) if file is None else open_gguf(file, str(source))


def find_gguf(path: Path) -> Path | None:
    """Return `path` if it is a file, or the GGUF file in a folder without config.json; None if there is none.

    In a folder with a model in several parts, returns the first part. Raises `CheckpointError` if a folder holds
    several models.
    """
    if path.is_file():
        return path
    if (path / "config.json").exists() or not any(path.glob("*.gguf")):
        return None
    from zeropoint.gguf.file import first_parts

    files = first_parts(path.glob("*.gguf"))
    if len(files) > 1:
        raise CheckpointError(f"{path} holds {len(files)} GGUF files: give the path of one of them")
    return files[0] if files else None


def open_gguf(path: Path, name: str) -> Source:
    """Open a GGUF file, or any of its parts. Raises `CheckpointError` if the file is damaged or not GGUF."""
    from zeropoint.gguf.model import GgufModel, is_gguf

    if not is_gguf(path):
        raise CheckpointError(f"{path} is not a GGUF file: give a model folder, a .gguf file or a hub name")
    model = GgufModel(path)
    tensors = {key: Tensor(dtype, shape) for key, (dtype, shape) in model.tensors.items()}
    return Source(
        path,
        name,
        model.config,
        model.files,
        tensors,
        model.weight,
        tokenizer_files=model.write_tokenizer_files,
        stored_nbytes=model.nbytes,
    )


def open_folder(folder: Path, name: str) -> Source:
    """Open a model folder. Raises `CheckpointError` unless it holds an intact model with unquantized weights."""
    adapter = read_adapter(folder)
    config, paths = read_config(folder, adapter), weight_files(folder, adapter)
    files = open_files(paths)
    own, removed = unwrap(files, name)
    notes = []
    if removed is not None:
        notes.append(f"{name}: {removed} is left out of the tensors' names: a training tool put it there")
    if adapter is not None:
        notes.append(
            f"{name} holds an adapter ({adapter}) beside the weights, which is left out: to include it, merge it "
            "with PEFT's `model.merge_and_unload()` and save the merged model"
        )

    def read(key: str) -> NDArray[Any]:
        """Read a tensor by its name without wrapper parts."""
        stored = own[key]
        return files[stored].read(stored)

    tensors = {key: Tensor(*files[stored].info(stored)) for key, stored in own.items()}
    return Source(folder, name, config, tuple(paths), tensors, read, tuple(notes))


def open_files(paths: Iterable[Path]) -> dict[str, TensorFile]:
    """Return `tensor name -> the open file that holds it`. If two files hold a tensor, the later one wins, as in
    transformers."""
    from zeropoint.files.safetensors_file import TensorFile

    where: dict[str, TensorFile] = {}
    for path in paths:
        file = TensorFile(path)
        where.update(dict.fromkeys(file.names(), file))
    return where


def read_config(folder: Path, adapter: str | None = None) -> dict[str, Any]:
    """Return the folder's config.json. Raises `CheckpointError` if it is invalid or describes quantized weights."""
    if not any(folder.iterdir()):
        raise CheckpointError(f"{folder} is empty: give a folder with config.json and safetensors weights")
    if not (folder / "config.json").is_file():
        if adapter is not None:
            raise CheckpointError(_adapter_alone(folder, adapter))
        raise CheckpointError(f"{folder} has no config.json: it is not a Hugging Face model folder")
    config = load_json(folder / "config.json", error=CheckpointError)
    if (section := quantized.section_of(folder)) is not None:
        raise CheckpointError(quantized.already_quantized(folder, section))
    if (explicit := config.get("transformers_weights")) not in (None, SINGLE, INDEX):
        raise CheckpointError(
            f"{folder / 'config.json'} says that the weights are in {str(explicit)[:60]!r}: rename that file to "
            f"{SINGLE}, and take transformers_weights out"
        )
    return config


def read_adapter(folder: Path) -> str | None:
    """Return a description of the PEFT adapter in a folder (its type and base model); None if there is no adapter."""
    file = folder / ADAPTER
    if not file.is_file():
        return None
    try:
        settings = load_json(file, error=CheckpointError)
    except CheckpointError:
        settings = {}
    kind, base = settings.get("peft_type"), settings.get("base_model_name_or_path")
    words = str(kind)[:40] if isinstance(kind, str) else "PEFT"
    return f"{words}, trained on {base[:100]}" if isinstance(base, str) and base else words


def weight_files(folder: Path, adapter: str | None = None) -> list[Path]:
    """Return the safetensors files of a model folder, in shard order.

    Raises `CheckpointError` if the folder has no weights, only pickles, only an adapter, or lacks a shard.
    """
    if files := shard_files(folder, CheckpointError):
        return files
    if adapter is not None:
        raise CheckpointError(_adapter_alone(folder, adapter))
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} holds pickled weights only ({pickles[0]}), which can run code when opened: convert them where "
            "you trust them with `AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)`, "
            "which writes safetensors"
        )
    if others := sorted(path.name for path in folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} holds {others[0]}, and neither {SINGLE} nor {INDEX}, by which a model's weights are found: "
            "download the missing index, or rename the file"
        )
    raise CheckpointError(f"{folder} has a config.json but no weights: {SINGLE} or {INDEX} is missing")


def _adapter_alone(folder: Path, adapter: str) -> str:
    """Return the message for a folder with an adapter and no model."""
    return (
        f"{folder} holds an adapter ({adapter}) and no model: load it on its base model with PEFT, merge it with "
        "`model.merge_and_unload()`, save that model, and give its folder"
    )
