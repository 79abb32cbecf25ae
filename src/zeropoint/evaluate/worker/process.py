"""The measuring process: `python -m zeropoint.evaluate.worker`, one JSON request in, JSON lines out.

Standard output carries only the protocol: lines `{"progress": 0.5, "what": "..."}`, then one last line
`{"result": {...}}` or `{"error": {"type": "ArtifactError", "message": "..."}}`. `messages.py` has the types of results.
Output of libraries goes to standard error.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import IO, Any

import numpy as np

from zeropoint.errors import OUT_OF_MEMORY, ZeropointError, is_out_of_memory
from zeropoint.evaluate import tasks
from zeropoint.evaluate.quality.greedy_answers import answer, mark
from zeropoint.evaluate.quality.token_scores import measure_quality
from zeropoint.evaluate.quality.windows import EvaluationText, load_text
from zeropoint.evaluate.speed.measure import measure_speed
from zeropoint.evaluate.worker.messages import (
    AccuracyRequest,
    AccuracyResult,
    ModelToOpen,
    PerformanceRequest,
    PerformanceResult,
    QualityRequest,
    QualityResult,
    Run,
    read_request,
)
from zeropoint.evaluate.worker.paired_models import pair
from zeropoint.machine.load import OtherLoad
from zeropoint.runtime import open_runner, prepare
from zeropoint.runtime.protocol import Runner

logger = logging.getLogger(__name__)

Open = Callable[..., Runner]
Tell = Callable[[str, float], None]
#: Opens a model; a GGUF file opens in llama.cpp if that is installed.
OPEN: Open = partial(open_runner, prefer_llama_cpp=True)
_PR_SET_PDEATHSIG = 1
_FIRST_STEP_TOKENS = 8
# Shares of a quality run's time, for the progress bar: answering prompts, and running the reference model's blocks.
_ANSWERS_SHARE, _STREAMED_SHARE = 0.25, 0.7


def performance(request: PerformanceRequest, opener: Open, tell: Tell) -> PerformanceResult:
    """Load one model and return its load time, its memory (before, after, peak) and its speed."""
    model = request.model
    memory = prepare(model.path, engine=model.engine, dtype=model.dtype)
    baseline = memory.measure()
    memory.reset_peak()
    tell("load", 0.0)
    start = time.perf_counter()
    runner = _open(model, request.threads, opener)
    load_seconds = time.perf_counter() - start
    mapped = memory.measure()
    # A loader that memory-maps files has read nothing yet; one short step reads nearly all weights.
    start = time.perf_counter()
    runner.logits(np.arange(_FIRST_STEP_TOKENS) % runner.vocab_size)
    first_seconds = time.perf_counter() - start
    loaded = memory.measure()
    memory.reset_peak()
    prompt = _prompt(runner, load_text(request.text), request.prompt_tokens)
    others = OtherLoad()
    speed = measure_speed(
        runner,
        prompt,
        new_tokens=request.new_tokens,
        batch=request.batch,
        repeats=request.repeats,
        progress=lambda done: tell("speed", done),
    )
    return PerformanceResult(
        engine=runner.engine,
        engine_reason=runner.engine_reason,
        weights_bytes=runner.artifact_bytes,  # this field is named after the report's metric: the tensors on disk
        packed_bytes=runner.weights_bytes,  # the weights in memory
        load_seconds=load_seconds,
        ready_seconds=load_seconds + first_seconds,
        baseline=baseline,
        mapped=mapped,
        loaded=loaded,
        after=memory.measure(),
        speed=speed,
        other_load_cores=others.cores(),
    )


def quality(request: QualityRequest, opener: Open, tell: Tell) -> QualityResult:
    """Return each candidate's quality, and the answers to the prompts.

    Loads the reference model and the candidates, except those whose results the reference cache has.
    """
    text = load_text(request.text)
    tell("load", 0.0)
    answers_from = 1 - _ANSWERS_SHARE if request.prompts else 1.0
    scores_from = _STREAMED_SHARE if request.streamed else 0.0
    pairing = pair(
        request,
        text,
        lambda model: _open(model, request.threads, opener),
        lambda what, done, total=1.0: tell(what, scores_from * done / total),
    )
    windows = pairing.windows
    run = measure_quality(
        pairing.reference,
        pairing.candidates,
        windows=windows,
        seed=request.seed,
        resamples=request.resamples,
        progress=lambda done: tell("quality", scores_from + (answers_from - scores_from) * done),
    )
    entries = {name: quality.to_json() for name, quality in run.candidates.items()}
    pairing.keep(entries)
    # The name "" in `request.speakers` means the reference model.
    runners = {**pairing.candidates} if pairing.runner is None else {**pairing.candidates, "": pairing.runner}
    for name in request.speakers if request.prompts else ():
        if name not in runners:  # the original model, whose quality was measured block by block
            runners[name] = _open(request.candidates[name], request.threads, opener)
    return QualityResult(
        runs={
            **pairing.runs,
            **{
                name: Run(runner.engine, runner.engine_reason, runner.artifact_bytes)
                for name, runner in pairing.candidates.items()
            },
        },
        reference_perplexity=run.reference_perplexity.to_json(),
        candidates={**pairing.known, **entries},
        scored_tokens=run.scored_tokens,
        context=int(windows.tokens.shape[1]),
        units=run.units,
        unit_kind=run.unit_kind,
        text=text.source,
        text_digest=text.digest,
        seed=request.seed,
        resamples=request.resamples,
        answers=_answers(request, {n: runners[n] for n in request.speakers if n in runners}, tell),
    )


def _answers(request: QualityRequest, runners: Mapping[str, Runner], tell: Tell) -> list[dict[str, Any]]:
    """Return every runner's answer to every prompt, split where the answer first differs from the first runner's.

    All runners get the first runner's prompt tokens, because files of external runtimes have their own chat template
    or none.
    """
    prompts = request.prompts
    if not prompts or not runners:
        return []
    leader = next(iter(runners.values()))
    asked, stop = [leader.chat_prompt(prompt) for prompt in prompts], leader.stop_tokens
    ids = {}
    for index, (name, runner) in enumerate(runners.items()):
        tell("answers", 1 - _ANSWERS_SHARE * (1 - index / len(runners)))
        ids[name] = answer(runner, asked, max_new_tokens=request.answer_tokens, stop=stop)
    first = next(iter(ids.values()))
    return [
        {
            "prompt": prompt,
            "answers": [mark(n, runners[n], ids[n][i], first[i]).to_json() for n in runners],
        }
        for i, prompt in enumerate(prompts)
    ]


def accuracy(request: AccuracyRequest, opener: Open, tell: Tell) -> AccuracyResult:
    """Load one model, let it answer tasks, and return which items it got right."""
    tell("tasks", 0.0)
    loaded = tasks.load(request.files, allow_code=request.allow_code)
    runner = _open(request.model, request.threads, opener)
    answers = tasks.answer(runner, loaded, limit=request.limit, progress=lambda done: tell("tasks", done))
    return AccuracyResult(answers)


Result = PerformanceResult | QualityResult | AccuracyResult
TASKS: dict[str, Callable[[Any, Open, Tell], Result]] = {
    PerformanceRequest.TASK: performance,
    QualityRequest.TASK: quality,
    AccuracyRequest.TASK: accuracy,
}


def main(opener: Open = OPEN) -> int:
    """Answer the request on standard input. Return the exit code: 0, 1 after an error, 130 after Ctrl-C."""
    with _protocol_channel() as out:

        def send(message: dict[str, Any]) -> None:
            out.write(json.dumps(message) + "\n")
            out.flush()

        _die_with_parent()
        try:
            request = read_request(json.load(sys.stdin))
            task = TASKS[request.TASK]
            result = task(request, opener, lambda what, done: send({"progress": done, "what": what}))
        except KeyboardInterrupt:
            return 130
        except ZeropointError as error:
            message = OUT_OF_MEMORY if is_out_of_memory(error.__cause__) else str(error)
            send({"error": {"type": type(error).__name__, "message": message}})
            return 1
        except Exception as error:
            if is_out_of_memory(error):
                send({"error": {"type": ZeropointError.__name__, "message": OUT_OF_MEMORY}})
                return 1
            logger.exception("measuring failed")
            send({"error": {"type": "", "message": f"{type(error).__name__}: {error}"}})
            return 1
        send({"result": result.to_json()})
        return 0


def _open(model: ModelToOpen, threads: int, opener: Open) -> Runner:
    return opener(model.path, threads=threads, dtype=model.dtype, engine=model.engine)


def _prompt(runner: Runner, text: EvaluationText, tokens: int) -> list[int]:
    """Return `tokens` token ids of the text, repeated if the text is shorter."""
    ids: list[int] = []
    for document in text.documents:
        ids += runner.encode(document)
        if len(ids) >= tokens:
            break
    if not ids:
        raise ZeropointError("the evaluation text encodes to no tokens")
    return (ids * -(-tokens // len(ids)))[:tokens]


@contextlib.contextmanager
def _protocol_channel() -> Iterator[IO[str]]:
    """Yield the real standard output for the protocol, and point file descriptor 1 at standard error."""
    sys.stdout.flush()
    private = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(private, "w", encoding="utf-8") as out:
        try:
            yield out
        finally:
            sys.stdout.flush()


def _die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends. On other systems the process runs to its end."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
