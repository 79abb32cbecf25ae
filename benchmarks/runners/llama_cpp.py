"""llama.cpp running a GGUF file, for `exports.py`: run in llama.cpp's own environment.

    build/peers/llama_cpp/bin/python benchmarks/runners/llama_cpp.py FILE REQUEST.npz RESULT.npz

REQUEST holds `windows` int64 `[n, length]`, `prompt` int64 `[p]`, `new_tokens`, `text` (UTF-8 bytes), `floats`:
whether llama.cpp first turns the file's weights into float32, which it multiplies without rounding inputs, and maybe
`plain`: whether attention is computed in steps instead of by llama.cpp's fused kernel. RESULT gets `logits` float32
`[n, length, vocabulary]`, `greedy` int64 `[new_tokens]`, and `ids`, llama.cpp's tokens of the text.
"""

from __future__ import annotations

import os
import sys
import tempfile
from ctypes import c_char_p, c_void_p
from pathlib import Path

import llama_cpp as lc
import numpy as np


class Engine:
    def __init__(self, path: str, context: int, *, plain: bool = False) -> None:
        self._silence = lc.llama_log_callback(lambda *_: None)
        lc.llama_log_set(self._silence, c_void_p(0))
        lc.llama_backend_init()
        self._model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"llama.cpp does not load {path}")
        params = lc.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, context, context
        params.n_threads = params.n_threads_batch = len(os.sched_getaffinity(0))
        if plain:
            params.flash_attn_type = lc.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = lc.llama_init_from_model(self._model, params)
        self._vocabulary = lc.llama_model_get_vocab(self._model)
        self._size = lc.llama_vocab_n_tokens(self._vocabulary)
        self._batch = lc.llama_batch_init(context, 0, 1)

    def logits(self, tokens: np.ndarray, past: int = 0) -> np.ndarray:
        """float32 `[length, vocabulary]` after each of the tokens at positions from `past`."""
        if past == 0:
            lc.llama_memory_clear(lc.llama_get_memory(self._context), True)
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens.tolist()):
            batch.token[i], batch.pos[i], batch.logits[i] = token, past + i, True
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        if lc.llama_decode(self._context, batch):
            raise SystemExit("llama.cpp could not decode")
        return np.ctypeslib.as_array(lc.llama_get_logits(self._context), (len(tokens), self._size)).copy()

    def greedy(self, prompt: np.ndarray, count: int) -> list[int]:
        found, tokens, past = [], prompt, 0
        for _ in range(count):
            found.append(int(self.logits(tokens, past)[-1].argmax()))
            past, tokens = past + len(tokens), np.array(found[-1:])
        return found

    def tokenize(self, text: bytes) -> np.ndarray:
        """Ids of plain text, without special tokens."""
        ids = (lc.llama_token * (len(text) + 8))()
        count = lc.llama_tokenize(self._vocabulary, c_char_p(text), len(text), ids, len(ids), False, False)
        return np.array(ids[:count], np.int64)


def write_floats(file: str, out: str) -> None:
    """The file with its weights in float32, dequantized by llama.cpp itself."""
    params = lc.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = lc.LLAMA_FTYPE_ALL_F32, True
    if lc.llama_model_quantize(file.encode(), out.encode(), params):
        raise SystemExit(f"llama.cpp could not dequantize {file}")


def main() -> None:
    file, request, result = sys.argv[1:]
    asked = np.load(request)
    if not asked["floats"]:
        return answer(file, asked, result)
    with tempfile.TemporaryDirectory() as folder:
        floats = str(Path(folder) / "floats.gguf")
        write_floats(file, floats)
        return answer(floats, asked, result)


def answer(file: str, asked: np.lib.npyio.NpzFile, result: str) -> None:
    windows, prompt, count = asked["windows"], asked["prompt"], int(asked["new_tokens"])
    plain = "plain" in asked and bool(asked["plain"])
    engine = Engine(file, max(windows.shape[1], len(prompt) + count), plain=plain)
    np.savez(
        result,
        logits=np.stack([engine.logits(window) for window in windows]),
        greedy=np.array(engine.greedy(prompt, count), np.int64),
        ids=engine.tokenize(asked["text"].tobytes()),
    )


if __name__ == "__main__":
    main()
