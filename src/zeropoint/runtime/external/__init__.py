"""External runtimes: other tools' model files run by llama.cpp, onnxruntime or transformers, to compare with Zeropoint.

There is one module per runtime, found by name; `engine.py` makes one engine of them. Each module provides:

- `RUNTIME`: the runtime's name in reports;
- `EXACT`: the dtype in which the runtime computes with the stored weights without further rounding;
- `recognizes(path)`: whether the runtime runs this path, which need not exist; reads config.json at most;
- `label(path)`: the file's number format in a few words;
- `prepare(path)`: import the runtime; raises `UnsupportedError` saying what to install;
- `open(path, threads=, dtype=)`: return a `Runner`; raises `CheckpointError` if the runtime cannot load the file.

The runtimes' packages are imported only when needed.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, cast

from zeropoint.errors import UnsupportedError, shorten
from zeropoint.files.json_file import CARD_NAME

if TYPE_CHECKING:
    from zeropoint.runtime.protocol import Runner

__all__ = ["ExternalModel", "identify"]


class Runtime(Protocol):
    """The interface of a module of this package."""

    RUNTIME: str
    EXACT: str

    def recognizes(self, path: Path) -> bool: ...
    def label(self, path: Path) -> str: ...
    def prepare(self, path: Path) -> None: ...
    def open(self, path: Path, *, threads: int, dtype: str) -> Runner: ...


@dataclass(frozen=True, slots=True)
class ExternalModel:
    """A model file or folder, and the module of the runtime that runs it."""

    path: Path
    module: Runtime

    @property
    def runtime(self) -> str:
        return self.module.RUNTIME

    @property
    def exact_dtype(self) -> str:
        return self.module.EXACT

    @property
    def format(self) -> str:
        return self.module.label(self.path)

    @property
    def installed(self) -> bool:
        """Return whether the runtime can be imported here."""
        try:
            self.prepare()
        except UnsupportedError:
            return False
        return True

    def prepare(self) -> None:
        """Import the runtime. Raises `UnsupportedError` if it is not installed."""
        self.module.prepare(self.path)

    def open(self, *, threads: int, dtype: str = "auto") -> Runner:
        """Load the model. Raises `CheckpointError` if the runtime cannot load it."""
        return self.module.open(self.path, threads=threads, dtype=dtype)


def identify(path: str | Path) -> ExternalModel | None:
    """Return the external model at `path`; None for an artifact, a float checkpoint or an unknown format."""
    where = Path(path).expanduser()
    if (where / CARD_NAME).is_file():
        return None
    names = {each.name for each in pkgutil.iter_modules(__path__) if each.name[0] != "_"} - {"engine"}
    for name in sorted(names):
        module = cast(Runtime, importlib.import_module(f"{__name__}.{name}"))
        if module.recognizes(where):
            return ExternalModel(where, module)
    return None


def require(package: str, install: str, what: str) -> ModuleType:
    """Import and return a package. Raises `UnsupportedError` saying how to install it; `what` begins the message."""
    try:
        return importlib.import_module(package)
    except ImportError as cause:
        missing = isinstance(cause, ModuleNotFoundError) and cause.name == package
        state = "is not installed" if missing else f"does not load ({cause})"
        raise UnsupportedError(f"{what}, which {state}: pip install {install}") from cause


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error message, or the error's type if it has no message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shorten(lines[0], 300) if lines else type(error).__name__
