"""GGUF files in llama.cpp, through llama-cpp-python's C interface, with llama.cpp's tokenizer, kernels and defaults.

With quantized weights, llama.cpp rounds the activations of each layer to 8 bits. With dtype `float32`, llama.cpp first
dequantizes the weights to float32 and rounds no activations.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_void_p, create_string_buffer
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from zeropoint.errors import CheckpointError, UsageError
from zeropoint.runtime.external import require
from zeropoint.runtime.external._cached import CachedRunner
from zeropoint.tokenizer import Text
from zeropoint.tokenizer.templates import ChatTemplates
from zeropoint.values.arrays import Logits, Tokens

RUNTIME, EXACT = "llama.cpp", "float32"

#: Most tokens of one `llama_decode` call; longer inputs take several calls.
BATCH = 512
#: The cache's capacity per sequence is a multiple of this many tokens.
CACHE_STEP = 256
ERROR_LEVEL = 4


def recognizes(path: Path) -> bool:
    return path.suffix == ".gguf"


def label(path: Path) -> str:
    """Return "GGUF" and the file's main quantization type according to its metadata, such as "GGUF Q4_K_M"."""
    try:
        from gguf import LlamaFileType

        from zeropoint.gguf.file import GgufFile
    except ImportError:
        return "GGUF"
    file_type = GgufFile(path).metadata.get("general.file_type")
    names = {each.value: each.name.removeprefix("MOSTLY_").removeprefix("ALL_") for each in LlamaFileType}
    return f"GGUF {names[file_type]}" if isinstance(file_type, int) and file_type in names else "GGUF"


def prepare(path: Path) -> None:
    _import()


def open(path: Path, *, threads: int, dtype: str) -> CachedRunner:
    """Load a GGUF file (see `zeropoint.runtime.external`)."""
    if dtype not in ("auto", "float32"):
        raise UsageError(f"{RUNTIME} runs a file in its own types or in float32, not in {dtype}")
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    engine = LlamaEngine(path, threads, floats=dtype == "float32")
    return CachedRunner(
        engine,
        Vocabulary(engine),
        name=path.name,
        runtime=RUNTIME,
        artifact_bytes=engine.nbytes,
        weights_bytes=engine.nbytes,
    )


def _import() -> Any:
    return require("llama_cpp", "llama-cpp-python", "GGUF files are run by llama.cpp")


class LlamaEngine:
    """A loaded GGUF file and a llama.cpp context, which is created again if it is too small.

    With `floats`, llama.cpp writes the weights as float32 to a temporary file and runs that file.
    """

    def __init__(self, path: Path, threads: int, *, floats: bool = False) -> None:
        lc = self.library = _import()
        self._path, self._threads = path, threads
        self._complaints: list[str] = []
        self._log = lc.llama_log_callback(self._listen)  # an attribute, because C holds no reference
        lc.llama_log_set(self._log, c_void_p(0))
        lc.llama_backend_init()
        self.model = self._load_floats() if floats else self._load(path)
        weakref.finalize(self, lc.llama_model_free, self.model)
        self.vocabulary = lc.llama_model_get_vocab(self.model)
        self.vocab_size = int(lc.llama_vocab_n_tokens(self.vocabulary))
        self.nbytes = int(lc.llama_model_size(self.model))
        # A separate thread: llama.cpp configures AMX tiles once per thread, and other engines release them after use.
        self._thread = ThreadPoolExecutor(1, "llama.cpp")
        weakref.finalize(self, self._thread.shutdown)
        self._batch = lc.llama_batch_init(BATCH, 0, 1)
        weakref.finalize(self, lc.llama_batch_free, self._batch)
        self._context: Any = None
        self._free_context: Any = None
        self._room = (0, 0)
        self._read = 0

    def _listen(self, level: int, text: bytes, _: Any) -> None:
        if level == ERROR_LEVEL:
            self._complaints.append(text.decode("utf-8", "replace").strip())

    def _complaint(self) -> str:
        return (self._complaints or ["it gives no reason"])[0]

    def _load(self, path: Path) -> Any:
        lc = self.library
        model = lc.llama_model_load_from_file(str(path).encode(), lc.llama_model_default_params())
        if not model:
            raise CheckpointError(f"llama.cpp does not load {self._path}: {self._complaint()}")
        return model

    def _load_floats(self) -> Any:
        lc = self.library
        params = lc.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize, params.nthread = lc.LLAMA_FTYPE_ALL_F32, True, self._threads
        with tempfile.TemporaryDirectory(prefix="zeropoint-", ignore_cleanup_errors=True) as folder:
            floats = Path(folder) / "floats.gguf"
            if lc.llama_model_quantize(str(self._path).encode(), str(floats).encode(), params):
                raise CheckpointError(
                    f"llama.cpp does not turn {self._path} into floats in {folder}: {self._complaint()}"
                )
            return self._load(floats)

    def start(self, sequences: int, length: int) -> None:
        lc, room = self.library, -(-length // CACHE_STEP) * CACHE_STEP
        self._read = 0
        if self._room[0] == sequences and self._room[1] >= room:
            lc.llama_memory_clear(lc.llama_get_memory(self._context), True)
            return
        if self._free_context is not None:
            self._free_context()
        params = lc.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = sequences * room, BATCH, BATCH
        params.n_seq_max, params.kv_unified = sequences, False
        params.n_threads = params.n_threads_batch = self._threads
        self._room = (0, 0)
        self._context = lc.llama_init_from_model(self.model, params)
        if not self._context:
            raise CheckpointError(f"llama.cpp cannot run {self._path}: {self._complaint()}")
        self._free_context = weakref.finalize(self, lc.llama_free, self._context)
        self._room = (sequences, room)

    def feed(self, tokens: Tokens, *, last: bool) -> Logits:
        sequences, length = tokens.shape
        flat = tokens.ravel().tolist()
        wanted = [not last or (i + 1) % length == 0 for i in range(len(flat))]
        out = np.empty((sum(wanted), self.vocab_size), np.float32)
        rows_done = 0
        for first in range(0, len(flat), BATCH):
            chosen = range(first, min(first + BATCH, len(flat)))
            count = sum(wanted[i] for i in chosen)
            self._decode([(flat[i], *divmod(i, length), wanted[i]) for i in chosen])
            if count:
                rows = self.library.llama_get_logits(self._context)
                out[rows_done : rows_done + count] = np.ctypeslib.as_array(rows, (count, self.vocab_size))
            rows_done += count
        self._read += length
        return out.reshape(sequences, -1, self.vocab_size)

    def _decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> None:
        """Run one batch of (token, sequence, position after the tokens already read, whether to return logits)."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, sequence, position, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, self._read + position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if self._thread.submit(self.library.llama_decode, self._context, batch).result():
            raise CheckpointError(f"llama.cpp cannot run {self._path}: {self._complaint()}")


class Vocabulary(Text):
    """The tokenizer and the chat template of a GGUF file, through llama.cpp."""

    def __init__(self, engine: LlamaEngine) -> None:
        self._engine = engine
        self._library, self._vocabulary = engine.library, engine.vocabulary
        get = {"bos_token": self._library.llama_vocab_bos, "eos_token": self._library.llama_vocab_eos}
        self._ids = {name: i for name in get if (i := int(get[name](self._vocabulary))) >= 0}
        self.special = {name: self.decode([i]) for name, i in self._ids.items()}

    @cached_property
    def templates(self) -> ChatTemplates:
        text = self._library.llama_model_chat_template(self._engine.model, None)
        return ChatTemplates.of(None if text is None else text.decode("utf-8", "replace"))

    def encode(self, text: str) -> list[int]:
        return self._tokens(text, special=False)

    def encode_whole(self, text: str) -> list[int]:
        return self._tokens(text, special=True)

    def _tokens(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of a text. Special tokens written in it are recognized, as in Hugging Face tokenizers."""
        data = text.encode()
        ids = (self._library.llama_token * (len(data) + 8))()
        count = self._library.llama_tokenize(self._vocabulary, data, len(data), ids, len(ids), special, True)
        return list(ids[:count])

    def decode(self, ids: Sequence[int]) -> str:
        tokens, size = (self._library.llama_token * len(ids))(*ids), 16 * len(ids) + 16
        while True:
            text = create_string_buffer(size)
            count = self._library.llama_detokenize(
                self._vocabulary, tokens, len(ids), text, size, False, True
            )
            if count >= 0:
                return text.raw[:count].decode("utf-8", "replace")
            size = -count

    def token_id(self, token: str) -> int | None:
        return next((self._ids[name] for name, text in self.special.items() if text == token), None)

    def stop_tokens(self) -> frozenset[int]:
        ends = self._library.llama_vocab_is_eog
        return frozenset(i for i in range(self._engine.vocab_size) if ends(self._vocabulary, i))
