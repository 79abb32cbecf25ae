"""`Engine`: the interface of the module `engine.py` in each engine's folder, and the types that the interface uses.

`zeropoint.runtime` finds the folders, and asks the modules which engine runs a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zeropoint.runtime.protocol import Runner


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """The options of opening a model; `zeropoint.runtime.open_runner` explains them.

    `engine` is the name that the user gave, or `auto`. An engine ignores options that it has no use for.
    """

    engine: str = "auto"
    dtype: str = "auto"
    threads: int = 2
    cache_type: str = "float16"
    draft_tokens: int = 0
    theirs: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """The bytes of memory in use now, and their peak since `MemoryMeter.reset_peak` or the start of the process.

    `anonymous_bytes` are allocated, `file_bytes` are those of mapped files. 0 means that the system gives no number.
    """

    resident_bytes: int
    anonymous_bytes: int
    file_bytes: int
    peak_bytes: int

    def to_json(self) -> dict[str, int]:
        return asdict(self)


class MemoryMeter(Protocol):
    """Measures the memory in which an engine holds its models. `host_memory` does so for engines on the CPU."""

    def measure(self) -> Memory:
        """Return the memory now."""
        ...

    def reset_peak(self) -> None:
        """Let the peak start again from the present bytes."""
        ...


class Timing(Protocol):
    """Times the kernels of an engine for `fit`. Decoders and packed weights are the engine's own types."""

    def token_seconds(self, decoder: Any, *, prompt: int, steps: int, threads: int) -> tuple[float, float]:
        """Return the seconds per token of prefill and of decode.

        Prefill runs over at most `prompt` tokens, decode over at most `steps` steps.
        """
        ...

    def product_seconds(
        self, groups: Sequence[tuple[Sequence[Any], int]], *, passes: int, threads: int
    ) -> NDArray[np.float64]:
        """Return the seconds of the products of each group `(packed weights, input rows)`: `[passes, groups]`."""
        ...


class Engine(Protocol):
    """A module `zeropoint.runtime.<folder>.engine`: one engine, as the rest of Zeropoint asks for it.

    The module is imported on every start, so it imports its libraries inside functions only.
    """

    NAME: str
    """The name on the command line and in cards."""
    ORDER: int
    """`auto` asks the engines in ascending order."""
    EXCLUSIVE: bool
    """Whether this engine's models run in this engine only. Users cannot ask for such an engine by name."""
    REFERENCE: bool
    """Whether comparisons run the original checkpoint in this engine, in any dtype. True for exactly one engine."""
    DTYPES: Sequence[str]
    """The dtypes, of `zeropoint.runtime.DTYPES`, that this engine computes in; `auto` is the model's own types."""
    SUMMARY: str
    """A few words for the help of `--engine`."""
    FALLBACK: str
    """Said of this engine when it runs a model that the preferred engine refused: "MODEL runs ..."."""
    LABELS: Mapping[str, str]
    """Maps `Runner.engine` to the words after "Run by" in a report. A name without an entry is shown as it is."""

    def refusal(self, path: Path, options: OpenOptions) -> str:
        """Return why this engine does not run the model at `path`, "" if it does; reads no weights.

        Also return "" if files are missing or damaged, because `open` raises that error.
        """
        ...

    def prepare(self, path: Path, options: OpenOptions) -> None:
        """Import the libraries and read the tokenizer, which do not count as memory of the model."""
        ...

    def open(self, path: Path, options: OpenOptions) -> Runner:
        """Make what the model needs first, such as a file of packed weights, then load the model.

        Raises `UnsupportedError` if only the weights show that the engine does not run the model, `ArtifactError` or
        `CheckpointError` if the files are damaged, `UsageError` for a wrong option.
        """
        ...

    def memory(self) -> MemoryMeter:
        """Return the meter of the memory that holds this engine's models."""
        ...

    def timing(self) -> Timing | None:
        """Return the timing of this engine's kernels, None if `fit` cannot plan for this engine."""
        ...
