"""`NativeRunner`: the C++ decoder behind the `Runner` protocol, without torch."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import UsageError
from zeropoint.machine.cores import MAX_THREADS
from zeropoint.runtime.generation import OnToken, generate
from zeropoint.runtime.native.batch import generate_batch
from zeropoint.runtime.native.library import CACHE_TYPES, Decoder
from zeropoint.runtime.native.loading import Loaded, load
from zeropoint.runtime.native.lookup import generate_with_lookup
from zeropoint.runtime.native.session import Session, read, token_array
from zeropoint.runtime.sampling import Sampling
from zeropoint.runtime.text import Reads
from zeropoint.sources.texts import text_folder
from zeropoint.tokenizer import Tokenizer, load_tokenizer
from zeropoint.values.arrays import Logits, Tokens

logger = logging.getLogger(__name__)


class NativeRunner(Reads):
    """The `zeropoint.runtime.protocol.Runner` of the native engine.

    `generate` keeps the key-value cache of its last call. If the next prompt starts with the same tokens, as the next
    turn of a conversation does, only the tokens after the common prefix are read.
    """

    engine = "native"
    engine_reason = ""

    def __init__(
        self,
        loaded: Loaded,
        tokenizer: Tokenizer,
        *,
        name: str,
        threads: int,
        cache_type: str = "float16",
        draft_tokens: int = 0,
    ) -> None:
        self.name = name
        self.decoder: Decoder = loaded.decoder
        self.tokenizer = tokenizer
        self.threads = threads
        self.vocab_size = loaded.decoder.record.config.vocab
        self.max_positions = loaded.decoder.record.config.max_positions
        self.weights_bytes = loaded.weights_bytes
        self.artifact_bytes = loaded.stored_bytes
        self.stop_tokens = tokenizer.stop_tokens()
        self.draft_tokens = draft_tokens
        self._cache_type = cache_type
        self._session = Session(self.decoder, threads=threads, cache_type=cache_type)
        self._session_lock = threading.Lock()

    @classmethod
    def open(
        cls, path: str | Path, *, threads: int, cache_type: str = "float16", draft_tokens: int = 0
    ) -> NativeRunner:
        """Open an artifact, checkpoint folder or GGUF file.

        `draft_tokens` above 0: greedy generation uses prompt lookup with drafts of at most that many tokens. Raises
        `UnsupportedError` if the engine does not support the model, `UsageError` for a bad option, `ArtifactError` or
        `CheckpointError` if the files are damaged.
        """
        if threads < 1:
            raise UsageError(f"threads must be at least 1, not {threads}")
        if cache_type not in CACHE_TYPES:
            raise UsageError(f"unknown key-value cache {cache_type!r}: use {', '.join(CACHE_TYPES)}")
        folder = Path(path).expanduser()
        loaded = load(folder)
        name = folder.resolve().name
        return cls(
            loaded,
            load_tokenizer(text_folder(folder)),
            name=name,
            threads=min(threads, MAX_THREADS),
            cache_type=cache_type,
            draft_tokens=draft_tokens,
        )

    def logits(self, tokens: Tokens) -> Logits:
        """Return float32 logits `[T, vocab]` for ids `[T]`, `[B, T, vocab]` for ids `[B, T]`."""
        rows = _batch(tokens)
        batch, length = rows.shape
        out = np.empty((batch, length, self.vocab_size), np.float32)
        self._check_length(length)
        cache = self.decoder.cache(length, type=self._cache_type)
        for row in range(batch):
            cache.truncate(0)
            ids = token_array(rows[row], self.vocab_size)
            read(self.decoder, cache, ids, threads=self.threads, out=out[row])
        return out[0] if np.ndim(tokens) == 1 else out

    def generate(
        self,
        tokens: Sequence[int],
        *,
        max_new_tokens: int,
        on_token: OnToken | None = None,
        stop: Container[int] = (),
        sampling: Sampling | None = None,
    ) -> list[int]:
        tokens = token_array(tokens, self.vocab_size).tolist()
        if max_new_tokens < 0:
            raise UsageError(f"the number of new tokens is 0 or above, not {max_new_tokens}")
        room = self.max_positions - len(tokens)
        self._check_length(len(tokens) + 1)
        session = self._session if self._session_lock.acquire(blocking=False) else None
        try:
            target = session or Session(self.decoder, threads=self.threads, cache_type=self._cache_type)
            out = self._continue(target, tokens, min(max_new_tokens, room), on_token, stop, sampling)
        finally:
            if session is not None:
                self._session_lock.release()
        if len(out) == room < max_new_tokens and out[-1] not in stop:
            logger.warning("the text ends where the model's context does, at %d tokens", self.max_positions)
        return out

    def _continue(
        self,
        session: Session,
        tokens: Sequence[int],
        max_new_tokens: int,
        on_token: OnToken | None,
        stop: Container[int],
        sampling: Sampling | None,
    ) -> list[int]:
        """Return the new tokens after `tokens`; read only those tokens that `session` has not read before."""
        read_before = session.restart(tokens)
        session.reserve(len(tokens) + max_new_tokens)

        sampling = sampling or Sampling()
        if self.draft_tokens and sampling.greedy and sampling.repetition_penalty == 1 and max_new_tokens:
            return generate_with_lookup(
                session,
                tokens,
                tokens[read_before:],
                max_new_tokens=max_new_tokens,
                draft_tokens=self.draft_tokens,
                stop=stop,
                on_token=on_token,
            )

        def step(fed: Sequence[int]) -> Logits:
            return session.feed(fed[read_before:] if fed is tokens else fed)

        return generate(
            step,
            tokens,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=stop,
            on_token=on_token,
        )

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop: Container[int] = (),
        sampling: Sampling | None = None,
    ) -> list[list[int]]:
        """Return the new tokens of each prompt. Prompts are read one by one, then decoded together in one batch."""
        return generate_batch(
            self.decoder,
            prompts,
            max_new_tokens=max_new_tokens,
            stop=stop,
            sampling=sampling or Sampling(),
            cache_type=self._cache_type,
            threads=self.threads,
        )

    def prefill_decode(self, tokens: Tokens, new_tokens: int) -> tuple[float, float]:
        prompts = _batch(tokens)
        batch, length = prompts.shape
        self._check_length(length + new_tokens)
        cache = self.decoder.cache(batch * (length + new_tokens), sequences=batch, type=self._cache_type)
        logits = np.empty((batch, self.vocab_size), np.float32)
        rows = [token_array(row, self.vocab_size) for row in prompts]
        start = time.perf_counter()
        for number, ids in enumerate(rows):
            last = logits[number : number + 1]
            read(self.decoder, cache, ids, sequence=number, threads=self.threads, out=last)
        prefilled = time.perf_counter()
        sequences = np.arange(batch, dtype=np.int32)
        for position in range(length, length + new_tokens):
            step = logits.argmax(-1).astype(np.int32)
            positions = np.full(batch, position, np.int32)
            logits = self.decoder.forward(cache, step, sequences, positions, threads=self.threads, out=logits)
        return prefilled - start, time.perf_counter() - prefilled

    def _check_length(self, tokens: int) -> None:
        if tokens > self.max_positions:
            raise UsageError(
                f"the text takes {tokens} tokens, and the model's context ends at {self.max_positions}: shorten it"
            )


def _batch(tokens: Tokens) -> NDArray[Any]:
    """Return token ids as an array `[B, T]`.

    Raises `UsageError` if there are no tokens, or if they are not one list of ids or several lists of equal length.
    """
    try:
        ids = np.atleast_2d(np.asarray(tokens))
    except ValueError as cause:
        raise UsageError("the texts of a batch must have the same number of tokens") from cause
    if ids.ndim != 2:
        raise UsageError(f"token ids must be [T] or [B, T], not of shape {ids.shape}")
    if not ids.size:
        raise UsageError("there are no tokens to read")
    return ids
