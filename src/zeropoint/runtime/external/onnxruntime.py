"""ONNX decoders in onnxruntime: folders written by Zeropoint, optimum or onnxruntime-genai.

The graphs share these inputs: `input_ids`, `attention_mask`, optionally `position_ids`, and the key-value cache as
`past_key_values.N.key` and `.value` `[batch, heads, past, channels]`. The outputs are `logits` and the grown cache,
`present.N.key` and `.value`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zeropoint.errors import CheckpointError, UnsupportedError, UsageError
from zeropoint.files.json_file import load_json
from zeropoint.runtime.external import first_line, require
from zeropoint.runtime.external._cached import CachedRunner
from zeropoint.tokenizer import load_tokenizer
from zeropoint.values.arrays import Logits, Tokens

RUNTIME, EXACT = "onnxruntime", "auto"

MODEL = "model.onnx"
TYPES: Mapping[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
PAST, PRESENT = "past_key_values.", "present."


def recognizes(path: Path) -> bool:
    return path.suffix == ".onnx" or ((path / MODEL).is_file() and not any(path.glob("*.safetensors")))


def label(path: Path) -> str:
    return "ONNX"


def prepare(path: Path) -> None:
    _import()
    load_tokenizer(_graph(path).parent)


def open(path: Path, *, threads: int, dtype: str) -> CachedRunner:
    """Load an ONNX graph and the tokenizer beside it (see `zeropoint.runtime.external`)."""
    if dtype != "auto":
        raise UsageError(f"{RUNTIME} runs a file in its own types, not in {dtype}")
    graph = _graph(path)
    if not (graph.parent / "tokenizer.json").is_file():
        raise UnsupportedError(f"{graph} cannot be given text: copy its model's tokenizer.json beside it")
    engine = OnnxEngine(graph, threads)
    return CachedRunner(
        engine,
        load_tokenizer(graph.parent),
        name=path.resolve().name,
        runtime=RUNTIME,
        artifact_bytes=sum(file.stat().st_size for file in graph.parent.glob(f"{graph.name}*")),
    )


def _import() -> Any:
    return require("onnxruntime", "onnxruntime", "ONNX models are run by onnxruntime")


def _graph(path: Path) -> Path:
    graph = path / MODEL if path.is_dir() else path
    if not graph.is_file():
        raise CheckpointError(f"{graph} does not exist")
    return graph


class OnnxEngine:
    """An onnxruntime session and the key-value cache between its steps."""

    def __init__(self, graph: Path, threads: int) -> None:
        ort = self._ort = _import()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # only fatal messages, which are raised as errors too
        try:
            self._session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        except Exception as cause:  # onnxruntime's errors have no common base class
            raise CheckpointError(f"onnxruntime does not load {graph}: {first_line(cause)}") from cause
        self._inputs = {each.name: each for each in self._session.get_inputs()}
        self._outputs = [each.name for each in self._session.get_outputs()]
        self._check(graph)
        self.vocab_size = self._vocabulary(graph)
        self._past: dict[str, Any] = {}
        self._read = 0

    def _check(self, graph: Path) -> None:
        """Raise `UnsupportedError` if the graph is not a decoder with a key-value cache."""
        past = {name for name in self._inputs if name.startswith(PAST)}
        names = past | {"input_ids", "attention_mask", "position_ids"}
        if unknown := set(self._inputs) - names:
            raise UnsupportedError(
                f"{graph} has the input {min(unknown)}, which Zeropoint does not know how to fill"
            )
        grown = {name.replace(PRESENT, PAST) for name in self._outputs}
        if "logits" not in self._outputs or "input_ids" not in self._inputs or not past or past - grown:
            raise UnsupportedError(f"{graph} is not a decoder with a cache (past_key_values to present)")
        for name in past:
            shape, kind = self._inputs[name].shape, self._inputs[name].type
            if len(shape) != 4 or not all(isinstance(shape[axis], int) for axis in (1, 3)):
                raise UnsupportedError(f"{graph}: {name} is not [batch, heads, past, channels] but {shape}")
            if kind not in TYPES:
                raise UnsupportedError(f"{graph}: the cache {name} is a {kind}")

    def _vocabulary(self, graph: Path) -> int:
        """Return the vocabulary size from the shape of `logits`, or from config.json if the shape is symbolic."""
        logits = next(each for each in self._session.get_outputs() if each.name == "logits")
        if isinstance(logits.shape[-1], int):
            return logits.shape[-1]
        return int(load_json(graph.parent / "config.json", error=CheckpointError)["vocab_size"])

    def start(self, sequences: int, length: int) -> None:
        self._read = 0
        for name, each in self._inputs.items():
            if name.startswith(PAST):
                empty = np.zeros((sequences, each.shape[1], 0, each.shape[3]), TYPES[each.type])
                self._past[name] = self._ort.OrtValue.ortvalue_from_numpy(empty)

    def feed(self, tokens: Tokens, *, last: bool) -> Logits:
        batch, length = tokens.shape
        total = self._read + length
        positions = np.broadcast_to(np.arange(self._read, total), tokens.shape)
        inputs = {
            "input_ids": tokens,
            "attention_mask": np.ones((batch, total), np.int64),
            "position_ids": positions,
        }
        feeds = {
            name: self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values, np.int64))
            for name, values in inputs.items()
            if name in self._inputs
        }
        values_out = self._session.run_with_ort_values(self._outputs, feeds | self._past)
        outputs = dict(zip(self._outputs, values_out, strict=True))
        logits: Logits = outputs.pop("logits").numpy()[:, -1:] if last else outputs.pop("logits").numpy()
        self._past = {
            past: outputs[name] for name in outputs if (past := name.replace(PRESENT, PAST)) in self._inputs
        }
        self._read = total
        return logits.astype(np.float32, copy=False)
