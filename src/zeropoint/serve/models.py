"""The models of a server. A model is loaded when it is first needed, and unloaded when another needs its memory."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from zeropoint.dtypes import BY_NAME
from zeropoint.errors import ArtifactError, BusyError, UnsupportedError, UsageError
from zeropoint.files.json_file import CARD_NAME, MAX_CARD_BYTES, json_digest, load_json, short_sha256
from zeropoint.files.model_files import model_file_name, model_files
from zeropoint.machine.heap import trim
from zeropoint.runtime.native import loading
from zeropoint.serve.engine import ClosedError, Engine, EngineOptions, Room
from zeropoint.serve.request import EngineStats, Listener, Request, Ticket
from zeropoint.sources.folder import find_gguf
from zeropoint.sources.texts import text_folder
from zeropoint.tokenizer import Tokenizer, load_tokenizer

logger = logging.getLogger(__name__)

#: The numbers of `EngineStats` that only grow.
_COUNTS = tuple(
    field.name
    for field in fields(EngineStats)
    if field.name not in ("running", "waiting", "pages", "free_pages")
)
#: Fields of config.json on which no tokenizer depends.
_WEIGHTS_ONLY = frozenset(
    {"quantization_config", "dtype", "torch_dtype", "transformers_version", "_name_or_path"}
)


def open_models(
    folders: Mapping[str, Path], options: EngineOptions, *, memory_bytes: int | None = None
) -> ServedModels:
    """Return the models in these folders by name; no weights are read.

    `memory_bytes`: the most memory of all loaded weights and key-value caches together, None for no limit. Raises
    `UsageError` if one model alone needs more, `UnsupportedError` for a model that the native engine does not run, and
    `ArtifactError` or `CheckpointError` if a model is damaged.
    """
    return ServedModels(folders, options, memory_bytes)


class ServedModel:
    """A `zeropoint.serve.request.Model`: one folder or GGUF file."""

    def __init__(self, name: str, folder: Path, options: EngineOptions, models: ServedModels) -> None:
        self.name, self._folder, self._options, self._models = name, folder, options, models
        try:
            description = loading.describe(folder)
        except UnsupportedError as cause:
            raise UnsupportedError(f"{folder}: the server needs the native engine, and {cause}") from cause
        self.format = _format(folder, description.config)
        self.weights_bytes = description.stored_bytes
        self.vocab_size = description.record.config.vocab
        room = Room.of(description.record, options)
        self.max_positions = room.max_positions
        #: The bytes that the weights and the key-value cache take when loaded. Until the first load this is an estimate
        #: from the stored bytes.
        self.needed_bytes = description.stored_bytes + room.nbytes
        texts = text_folder(folder)
        self.tokenizer: Tokenizer = models.tokenizer(texts, description.config)
        self._files = (*description.files, *(model_files(texts) if texts == folder else ()))
        self._state = _state(self._files)
        self._engine: Engine | None = None
        self._past = EngineStats()  # the counts of unloaded engines
        self.last_used = 0.0

    @property
    def loaded(self) -> bool:
        """Return whether the weights are in memory."""
        return self._engine is not None

    @property
    def memory_bytes(self) -> int:
        """Return the bytes of the loaded weights and the key-value cache; 0 while the model is not loaded."""
        return self.needed_bytes if self.loaded else 0

    def load(self) -> None:
        """Load the weights now, as `zeropoint.serve.request.Model.load` says."""
        self._open()

    def submit(self, request: Request, listener: Listener, *, client: str = "") -> Ticket:
        """Queue a request, as `zeropoint.serve.request.Model.submit` says."""
        self._check_files()
        while True:
            engine = self._engine or self._open()
            self.last_used = time.monotonic()
            try:
                return engine.submit(request, listener, client=client)
            except ClosedError:
                if self._models.draining:
                    raise
                with self._models.lock:  # the model is being unloaded: wait, and load it again
                    pass

    def stats(self) -> EngineStats:
        """Return the engine's state. The counts continue when the model is unloaded and loaded again."""
        engine = self._engine
        now = EngineStats() if engine is None else engine.stats()
        return replace(now, **{name: getattr(now, name) + getattr(self._past, name) for name in _COUNTS})

    def drain(self, seconds: float) -> None:
        """Drain the engine if there is one."""
        if self._engine is not None:
            self._engine.drain(seconds)

    def unload(self) -> None:
        """Unload the weights unless a request runs or waits."""
        engine = self._engine
        if engine is None or not engine.close_if_idle():
            return
        self._past, self._engine = self.stats(), None
        del engine
        trim()
        logger.info("unloaded %s", self.name)

    def _open(self) -> Engine:
        """Return the engine. Load the weights first if they are not loaded."""
        with self._models.lock:
            if self._engine is not None:
                return self._engine
            self._check_files()
            self._models.make_room(self)
            started = time.monotonic()
            loaded = loading.load(self._folder)
            self._check_files()  # again: they might have changed while they were read
            engine = Engine(loaded.decoder, self._options)
            self.needed_bytes = loaded.weights_bytes + engine.cache_bytes
            self._engine, self.last_used = engine, time.monotonic()
            trim()
            logger.info("loaded %s in %.1f s", self.name, time.monotonic() - started)
            return engine

    def _check_files(self) -> None:
        """Raise `ArtifactError` if a file of the model changed since the server started."""
        if _state(self._files) != self._state:
            raise ArtifactError(
                f"the files of the model {self.name} changed since the server started: start the server again"
            )


class ServedModels:
    """The `zeropoint.serve.request.Models` of a server, within a memory budget."""

    def __init__(self, folders: Mapping[str, Path], options: EngineOptions, memory_bytes: int | None) -> None:
        self.lock = threading.RLock()  # one model is loaded or unloaded at a time
        self._memory_bytes = memory_bytes
        self._tokenizers: dict[str, Tokenizer] = {}
        self.draining = False
        self.by_name = {name: ServedModel(name, folder, options, self) for name, folder in folders.items()}
        for model in self.by_name.values():
            if memory_bytes is not None and model.needed_bytes > memory_bytes:
                raise UsageError(
                    f"{model.name} needs {_mib(model.needed_bytes)} MiB for its weights and key-value cache, and the "
                    f"limit is {_mib(memory_bytes)} MiB: raise the limit, or give the cache fewer tokens"
                )

    def tokenizer(self, folder: Path, config: Mapping[str, Any]) -> Tokenizer:
        """Return the tokenizer of a folder. Folders with equal tokenizer files share one."""
        parts = [
            (str(model_file_name(file)), short_sha256(file.read_bytes())) for file in model_files(folder)
        ]
        own = {name: value for name, value in config.items() if name not in _WEIGHTS_ONLY}
        key = json_digest([parts, own])
        if key not in self._tokenizers:
            self._tokenizers[key] = load_tokenizer(folder)
        return self._tokenizers[key]

    def make_room(self, model: ServedModel) -> None:
        """Unload models that no request uses, the one unused for the longest time first, until `model` fits.

        Raises `BusyError` if `model` still does not fit, or if the server is shutting down (`ClosedError`).
        """
        if self.draining:
            raise ClosedError("the server is shutting down: send the request to another one")
        if self._memory_bytes is None:
            return
        others = sorted((m for m in self.by_name.values() if m.loaded), key=lambda m: m.last_used)
        for other in others:
            if self._fits(model):
                return
            other.unload()
        if not self._fits(model):
            busy = ", ".join(m.name for m in others if m.loaded)
            raise BusyError(f"there is no memory for {model.name} while {busy} is in use: try again later")

    def drain(self, seconds: float) -> None:
        """Drain every engine, within `seconds` in all."""
        with self.lock:  # a model that is being loaded now is drained too
            self.draining = True
        threads = [threading.Thread(target=m.drain, args=(seconds,)) for m in self.by_name.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _fits(self, model: ServedModel) -> bool:
        """Return whether a model that is not loaded fits in the memory that the loaded ones leave."""
        used = sum(other.memory_bytes for other in self.by_name.values())
        return self._memory_bytes is None or used + model.needed_bytes <= self._memory_bytes


def _format(folder: Path, config: Mapping[str, Any]) -> str:
    """Return a model's number format in words: the label of the plan, "GGUF", or the name of the dtype."""
    if (folder / CARD_NAME).is_file():
        card = load_json(folder / CARD_NAME, MAX_CARD_BYTES)
        plan = card.get("plan")
        label = plan.get("label") if isinstance(plan, Mapping) else None
        return str(label or card.get("format") or "quantized")
    if find_gguf(folder) is not None:
        return "GGUF"
    dtype = BY_NAME.get(str(config.get("dtype", config.get("torch_dtype", "float32"))))
    return (dtype.format.upper() if dtype is not None else "") or "FP32"


def _state(files: Iterable[Path]) -> list[tuple[int, ...]]:
    """Return device, inode, size and times of each file, which change with the file; [] if one cannot be read."""
    state = list[tuple[int, ...]]()
    for file in files:
        try:
            s = file.stat()
        except OSError:
            return []
        state.append((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns))
    return state


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.0f}"
