"""Requests to the measuring process and their results, which `client.py` and `process.py` share.

Between the two processes a message is JSON: `to_json` writes it, `from_json` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, Self, TypeVar

from zeropoint.evaluate.speed.measure import Rate, Speed
from zeropoint.evaluate.statistics.bootstrap import RESAMPLES
from zeropoint.runtime.engine import Memory

R_co = TypeVar("R_co", covariant=True)


class Request(Protocol[R_co]):
    """A request. `TASK` is its name in JSON."""

    TASK: ClassVar[str]

    def to_json(self) -> dict[str, Any]: ...

    def result(self, data: Mapping[str, Any]) -> R_co:
        """Return the result that the process sent as JSON."""
        ...


@dataclass(frozen=True, slots=True)
class ModelToOpen:
    """A model as the arguments of `zeropoint.runtime.open_runner`."""

    path: str
    dtype: str = "auto"
    engine: str = "auto"


@dataclass(frozen=True, slots=True)
class PerformanceRequest:
    """Load `model` and measure its memory and speed, with a prompt from the file `text` (None: the built-in text)."""

    TASK: ClassVar[str] = "performance"
    model: ModelToOpen
    prompt_tokens: int
    new_tokens: int
    threads: int
    batch: int
    repeats: int
    text: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"task": self.TASK, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(**{**data, "model": ModelToOpen(**data["model"])})

    def result(self, data: Mapping[str, Any]) -> PerformanceResult:
        return PerformanceResult.from_json(data)


@dataclass(frozen=True, slots=True)
class PerformanceResult:
    """The cost of one model. `weights_bytes`: its tensors on disk; `packed_bytes`: its weights in memory.

    Memory: `baseline` before the load (libraries and tokenizer are loaded), `mapped` after the load, `loaded` after the
    first step, `after` at the end. `ready_seconds`: load and first step together.
    """

    engine: str
    engine_reason: str
    weights_bytes: int
    packed_bytes: int
    load_seconds: float
    ready_seconds: float
    baseline: Memory
    mapped: Memory
    loaded: Memory
    after: Memory
    speed: Speed
    other_load_cores: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        memory = {name: Memory(**data[name]) for name in ("baseline", "mapped", "loaded", "after")}
        speed = Speed(**{kind: Rate(**rate) for kind, rate in data["speed"].items()})
        return cls(**{**data, **memory, "speed": speed})


@dataclass(frozen=True, slots=True)
class QualityRequest:
    """Measure `candidates` (by name) against `reference` on windows of a text, and let models answer prompts.

    `speakers` are the names of the candidates that answer `prompts`; "" is the reference model. `keep` is the cache
    folder of `reference_cache.py`, None for no cache; it needs empty `speakers`. With `streamed`, the reference model
    runs block by block (`streamed_reference.py`); its cache is the user's folder if `keep` is None.
    """

    TASK: ClassVar[str] = "quality"
    reference: ModelToOpen
    candidates: Mapping[str, ModelToOpen]
    threads: int
    text: str | None
    tokens: int
    context: int
    seed: int
    resamples: int = RESAMPLES
    prompts: Sequence[str] = ()
    answer_tokens: int = 0
    speakers: Sequence[str] = ()
    keep: str | None = None
    streamed: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"task": self.TASK, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        candidates = {name: ModelToOpen(**model) for name, model in data["candidates"].items()}
        return cls(**{**data, "reference": ModelToOpen(**data["reference"]), "candidates": candidates})

    def result(self, data: Mapping[str, Any]) -> QualityResult:
        return QualityResult.from_json(data)


@dataclass(frozen=True, slots=True)
class Run:
    """How a candidate ran: its engine, and the bytes of its tensors on disk.

    `reason` says why the preferred engine did not run the candidate ("" if it did).
    """

    engine: str
    reason: str
    weights_bytes: int


@dataclass(frozen=True, slots=True)
class QualityResult:
    """The quality of candidates, as the JSON of `quality.token_scores.Quality` by name, and the marked answers.

    `runs` are those of the candidates that were opened, without those whose quality was in the cache.
    """

    runs: Mapping[str, Run]
    reference_perplexity: Mapping[str, Any]
    candidates: Mapping[str, Mapping[str, Any]]
    scored_tokens: int
    context: int
    units: int
    unit_kind: str
    text: str
    text_digest: str
    seed: int
    resamples: int
    answers: Sequence[Mapping[str, Any]] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(**{**data, "runs": {name: Run(**run) for name, run in data["runs"].items()}})


@dataclass(frozen=True, slots=True)
class AccuracyRequest:
    """Load `model` and let it answer the first `limit` items (None: all) of the task files `files`."""

    TASK: ClassVar[str] = "accuracy"
    model: ModelToOpen
    threads: int
    files: Sequence[str]
    allow_code: bool = False
    limit: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {"task": self.TASK, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(**{**data, "model": ModelToOpen(**data["model"])})

    def result(self, data: Mapping[str, Any]) -> AccuracyResult:
        return AccuracyResult(**data)


@dataclass(frozen=True, slots=True)
class AccuracyResult:
    """The result of `tasks.task_files.answer`: metric, items and correctness by task name."""

    tasks: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


REQUESTS: Mapping[str, type[PerformanceRequest | QualityRequest | AccuracyRequest]] = {
    PerformanceRequest.TASK: PerformanceRequest,
    QualityRequest.TASK: QualityRequest,
    AccuracyRequest.TASK: AccuracyRequest,
}


def read_request(data: Mapping[str, Any]) -> PerformanceRequest | QualityRequest | AccuracyRequest:
    """Return the request in JSON. Raises `KeyError` for an unknown task, `TypeError` for unknown fields."""
    fields = dict(data)
    return REQUESTS[fields.pop("task")].from_json(fields)
