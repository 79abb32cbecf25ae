"""Models in other runtimes' files, run by those runtimes: to be measured beside ours.

One module per runtime; each has

- `RUNTIME`: its name, as reports say it, and `EXACT`, the dtype in which it rounds nothing beyond what the file says;
- `recognizes(path)`: whether a path, which need not exist, is its to run. Reads config.json at most;
- `label(path)`: the file's number format in a few words;
- `prepare(path)`: imports the runtime. Raises `UnsupportedError` that says what to install;
- `open(path, threads=, dtype=)`: a `Runner`. Raises `CheckpointError` for what the runtime does not load.

Nothing is imported before a path asks for it.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, cast

from zeropoint.errors import UnsupportedError
from zeropoint.files.json_file import CARD_NAME

if TYPE_CHECKING:
    from zeropoint.runtime.protocol import Runner

__all__ = ["ExternalModel", "identify"]


class Runtime(Protocol):
    """What a module of this package provides."""

    RUNTIME: str
    EXACT: str

    def recognizes(self, path: Path) -> bool: ...
    def label(self, path: Path) -> str: ...
    def prepare(self, path: Path) -> None: ...
    def open(self, path: Path, *, threads: int, dtype: str) -> Runner: ...


@dataclass(frozen=True, slots=True)
class ExternalModel:
    """A model that another runtime runs."""

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
        """Whether the runtime can be imported here."""
        try:
            self.prepare()
        except UnsupportedError:
            return False
        return True

    def prepare(self) -> None:
        self.module.prepare(self.path)

    def open(self, *, threads: int, dtype: str = "auto") -> Runner:
        return self.module.open(self.path, threads=threads, dtype=dtype)


def identify(path: str | Path) -> ExternalModel | None:
    """The runtime of a file or folder; None for an artifact, a float checkpoint, and what nobody knows."""
    where = Path(path).expanduser()
    if (where / CARD_NAME).is_file():
        return None
    for name in sorted(each.name for each in pkgutil.iter_modules(__path__) if each.name[0] != "_"):
        module = cast(Runtime, importlib.import_module(f"{__name__}.{name}"))
        if module.recognizes(where):
            return ExternalModel(where, module)
    return None


def require(package: str, install: str, what: str) -> ModuleType:
    """Import a runtime. Raises `UnsupportedError` that says how to get it."""
    try:
        return importlib.import_module(package)
    except ImportError as cause:
        missing = isinstance(cause, ModuleNotFoundError) and cause.name == package
        state = "is not installed" if missing else f"does not load ({cause})"
        raise UnsupportedError(f"{what}, which {state}: pip install {install}") from cause


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
