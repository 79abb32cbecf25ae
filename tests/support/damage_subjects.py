"""The files to fuzz, one of each kind that may come from an untrusted source, and their readers.

The functions `imported`, `checkpoint`, `own`, `running`, `vocabulary` and `planned` return a reader: a function that
reads a file and returns a digest of the result.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.importers.test_importers import quantized, write_gptq
from tests.support import tiny
from tests.support.damage import Subject
from tests.support.mutants import damage_gguf, damage_json, damage_packed, damage_safetensors
from zeropoint import artifact, exporters, importers
from zeropoint.checkpoint import open_checkpoint
from zeropoint.files import identity
from zeropoint.files.json_file import CARD_NAME
from zeropoint.files.model_files import model_files
from zeropoint.gguf.vocabulary import read_vocabulary
from zeropoint.models.families import derive
from zeropoint.originals import open_original
from zeropoint.quantization import quantize_checkpoint
from zeropoint.runtime.native import kept
from zeropoint.runtime.native.runner import NativeRunner
from zeropoint.values.plan import Plan
from zeropoint.values.qtensor import QuantizedTensor, Weight


def digest(parts: Iterable[Any]) -> str:
    """Return the sha256 of plain values, weights and bytes, in their order."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, QuantizedTensor):
            total.update(str(part.scheme).encode())
            part = part.dequantize()
        if isinstance(part, np.ndarray):
            total.update(f"{part.dtype} {part.shape}".encode())
            part = part.tobytes()
        total.update(part if isinstance(part, bytes) else repr(part).encode())
    return total.hexdigest()


def imported(path: Path) -> Callable[[], str]:
    """Return a reader that imports a model and asserts that nothing but the artifact is left behind."""

    def load() -> str:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            try:
                importers.import_model(path, out)
            finally:
                assert set(Path(folder).iterdir()) <= {out}
            return digest([own(out)(), *(file.read_bytes() for file in model_files(out))])

    return load


def checkpoint(path: Path) -> Callable[[], str]:
    """Return a reader of a source checkpoint: config, parameter headers and weights."""

    def parts() -> Iterator[Any]:
        opened = open_checkpoint(path)
        yield opened.config.to_json_string()
        for info in opened.parameters():
            yield info
            yield opened.read(info.name).float().numpy()

    return lambda: digest(parts())


def own(path: Path) -> Callable[[], str]:
    """Return a reader of an artifact: config, layout and weights."""

    def parts() -> Iterator[Any]:
        opened = artifact.open(path)
        opened.verify()
        yield sorted(opened.config.items())
        yield opened.plan.nbytes, opened.layout
        for name, weight in opened.stream():
            yield name
            yield sound(weight)

    return lambda: digest(parts())


def running(path: Path) -> Callable[[], str]:
    """Return a reader that runs an artifact in the native engine: logits, tokens, stop tokens, chat prompt."""

    def parts() -> Iterator[Any]:
        runner = NativeRunner.open(path, threads=1)
        with np.errstate(all="ignore"):
            yield runner.logits(np.arange(4))
        yield runner.encode("then"), sorted(runner.stop_tokens), runner.chat_prompt("hat")

    return lambda: digest(parts())


def vocabulary(folder: Path) -> Callable[[], str]:
    """Return a reader of a tokenizer's vocabulary, as the GGUF exporter reads it."""
    return lambda: digest([read_vocabulary(folder, {}, tiny.VOCABULARY)])


def planned(path: Path) -> Callable[[], str]:
    """Return a reader of a plan file."""
    return lambda: digest([Plan.read(path)])


def sound(weight: Weight) -> Weight:
    """Return the weight, after asserting that it is not empty and its values are finite."""
    values = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
    assert values.size
    assert values.dtype.kind not in "fV" or np.isfinite(values.astype(np.float32)).all()
    return weight


def exported(kind: str, scheme: str, folder: Path) -> Path:
    """Write the GGUF export of a tiny artifact and return the file."""
    folder.mkdir()
    exporters.export(artifact.open(quantized(kind, scheme, folder)), "gguf", folder / "m.gguf")
    return folder / "m.gguf"


def fitted(mix: str, folder: Path) -> Path:
    """Write a GGUF file of K-quants, which need rows of 256 weights, and return the file."""
    folder.mkdir()
    model = tiny.make_checkpoint("llama_untied", folder / "model", hidden_size=256, layers=1, outliers=False)
    tiny.write_tokenizer(model, merges=[("t", "h")])
    exporters.export_original(open_original(model, tokens=128), "gguf", mix, folder / "m.gguf")
    return folder / "m.gguf"


def gguf_subjects(folder: Path) -> Iterator[Subject]:
    files = {
        "Q4_0": exported("llama_tied", "int4", folder / "q4_0"),
        "Q5_0": exported("qwen2", "int4:g32:asym:bf16", folder / "q5_0"),
        "BF16": exported("gpt2", "bf16", folder / "bf16"),
        "Q4_K_M": fitted("Q4_K_M", folder / "q4_k_m"),
    }
    for name, file in files.items():
        yield Subject(f"GGUF {name}", file, damage_gguf, imported(file))
    yield Subject("GGUF source", files["Q4_0"], damage_gguf, checkpoint(files["Q4_0"]))


def safetensors_subjects(folder: Path) -> Iterator[Subject]:
    shards = tiny.make_checkpoint("llama_untied", folder / "shards", max_shard_size="100KB")
    yield Subject("shard", sorted(shards.glob("*.safetensors"))[1], damage_safetensors, checkpoint(shards))
    yield Subject("index", shards / "model.safetensors.index.json", damage_json, checkpoint(shards))
    yield Subject("checkpoint config", shards / "config.json", damage_json, checkpoint(shards))
    gptq = folder / "gptq"
    write_gptq(tiny.make_checkpoint("llama_untied", folder / "model"), gptq, symmetric=False)
    yield Subject("GPTQ tensors", gptq / "model.safetensors", damage_safetensors, imported(gptq))
    yield Subject("GPTQ config", gptq / "config.json", damage_json, imported(gptq))


def artifact_subjects(folder: Path) -> Iterator[Subject]:
    made = quantized("llama_tied", "int4:g32:asym:bf16:a8g32", folder)
    yield Subject("artifact tensors", made / "model.safetensors", damage_safetensors, own(made))
    yield Subject("card", made / CARD_NAME, damage_json, own(made))
    yield Subject("config", made / "config.json", damage_json, own(made))
    plan = folder / "plan.json"
    plan.write_text(json.dumps(artifact.open(made).plan.to_json()))
    yield Subject("plan", plan, damage_json, planned(plan))
    yield Subject("tokenizer", made / "tokenizer.json", damage_json, vocabulary(made))
    plain = folder / "plain"
    exporters.export(artifact.open(_plain(folder / "symmetric")), "transformers", plain)
    yield Subject("compressed-tensors config", plain / "config.json", damage_json, imported(plain))


def _plain(folder: Path) -> Path:
    folder.mkdir()
    return quantized("llama_untied", "int8", folder)


def engine_subjects(folder: Path) -> Iterator[Subject]:
    made = tiny.make_checkpoint("gpt_neox", folder / "model", layers=1)
    quantize_checkpoint(made, folder / "engine", format="int4")
    load = running(folder / "engine")
    load()
    key = kept.packed_key(
        artifact.open(folder / "engine").card,
        derive(artifact.open(folder / "engine").config),
        identity.tensors_digest(folder / "engine"),
    )
    file = kept.place(key)
    assert file is not None
    yield Subject("packed file", file, damage_packed, load, mended=True)
    yield Subject("engine config", folder / "engine" / "config.json", damage_json, load)
    settings = folder / "engine" / "tokenizer_config.json"
    yield Subject("engine tokenizer", settings, damage_json, load, mended=True)


KINDS = (gguf_subjects, safetensors_subjects, artifact_subjects, engine_subjects)
