"""Training text: windows of tokens from a file, or from texts that the model writes itself.

The windows are cut from one stream of documents (`zeropoint.calibrate`). The last ones are held out of training, to
find out when training stops helping. No training document may be in the evaluation text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.calibrate import calibration
from zeropoint.calibrate.text import INVALID_RECORD, contents_of
from zeropoint.errors import UsageError
from zeropoint.evaluate.quality.windows import EvaluationText
from zeropoint.files import documents
from zeropoint.files.json_file import parse_json
from zeropoint.progress import Progress, silent
from zeropoint.runtime import open_runner
from zeropoint.runtime.protocol import Runner
from zeropoint.runtime.sampling import Sampling

#: The value of `--data` for texts that the model writes itself.
SELF = "self"
BUILT_IN = "built-in"

#: One window in `HELD_OUT` is held out, but at least `FEWEST_HELD_OUT` and at most `MOST_HELD_OUT` in all.
HELD_OUT, FEWEST_HELD_OUT, MOST_HELD_OUT = 16, 2, 16

#: Temperatures at which the model writes, in turn: likely texts, and varied ones.
TEMPERATURES = (0.6, 0.8, 1.0)

#: Texts that are written at once.
TEXTS_AT_ONCE = 32

#: A text with fewer different tokens than this share repeats itself and is left out.
LEAST_VARIETY = 0.2


@dataclass(frozen=True, slots=True)
class TrainingText:
    """Windows int64 `[windows, length]`, of which the last `held_out` ones are held out.

    `source` names the text, `sha256` is its hash.
    """

    windows: NDArray[np.int64]
    held_out: int
    source: str
    sha256: str

    @property
    def training_windows(self) -> NDArray[np.int64]:
        """Return the windows to train on."""
        return self.windows[: len(self.windows) - self.held_out]

    @property
    def held_out_windows(self) -> NDArray[np.int64]:
        """Return the windows that are not trained on."""
        return self.windows[len(self.windows) - self.held_out :]

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the card."""
        return {
            "source": self.source,
            "sha256": self.sha256,
            "windows": len(self.windows),
            "length": int(self.windows.shape[1]),
            "held_out_windows": self.held_out,
        }


def read_training_text(
    tokenizer: Any,
    path: str | Path | None,
    *,
    tokens: int,
    length: int,
    seed: int,
    evaluation: EvaluationText,
) -> TrainingText:
    """Return the windows of a text or chat `.jsonl` file (None: the built-in sample).

    Raises `UsageError` if the file cannot be read, is too short, or has a document of the `evaluation` text.
    """
    if path is not None:
        refuse_contaminated(_documents(path), evaluation, str(path))
    text = calibration(tokenizer, path, tokens=tokens, length=length, seed=seed)
    return _split(text.tokens, text.source, text.sha256)


def write_training_text(
    model: str | Path, *, tokens: int, length: int, seed: int, threads: int, progress: Progress = silent
) -> TrainingText:
    """Return windows of texts that the model `model` writes itself, at the temperatures `TEMPERATURES`.

    The first token of a text is drawn from the model's predictions after its start token (from all tokens alike, if the
    tokenizer has no start token). A text ends where the model ends it, or after `length` tokens. Equal texts and texts
    that repeat themselves are left out. (Data-free training on generated text: LLM-QAT, Liu et al., arXiv:2305.17888.)
    """
    runner = open_runner(model, threads=threads)
    rng = np.random.default_rng(seed)
    first = _first_tokens(runner, rng)
    stream: list[int] = []
    written: set[tuple[int, ...]] = set()
    rounds = idle = 0
    while len(stream) < tokens:
        progress("writing the training text", len(stream), tokens)
        prompts = [next(first) for _ in range(TEXTS_AT_ONCE)]
        sampling = Sampling(
            temperature=TEMPERATURES[rounds % len(TEMPERATURES)], seed=int(rng.integers(2**63))
        )
        rounds += 1
        before = len(stream)
        for prompt, text in zip(prompts, _continue(runner, prompts, length, sampling), strict=True):
            ids = (*prompt, *text)
            if ids not in written and len(set(ids)) >= LEAST_VARIETY * len(ids):
                written.add(ids)
                stream += ids
        idle = idle + 1 if len(stream) == before else 0
        if idle == 8:
            raise UsageError(
                f"{model} writes only texts that repeat themselves: give a training text (--data FILE)"
            )
    windows = np.asarray(stream[: tokens // length * length], np.int64).reshape(-1, length)
    digest = hashlib.sha256(windows.astype("<i8").tobytes()).hexdigest()
    return _split(windows, f"written by the model itself, seed {seed}", digest)


def refuse_contaminated(training: Sequence[str], evaluation: EvaluationText, name: str) -> None:
    """Raise `UsageError` if a training document has the same words as a document of the evaluation text."""
    digests = {_digest(document): document for document in evaluation.documents}
    shared = [digests[each] for each in map(_digest, training) if each in digests]
    if shared:
        raise UsageError(
            f"{len(shared)} documents of the training text {name} are also in the evaluation text {evaluation.source} "
            f"(the first begins {' '.join(shared[0].split())[:60]!r}): the result would say nothing about other text; "
            "remove them, or evaluate on another text (--text)"
        )


def _documents(path: str | Path) -> list[str]:
    """Return the documents of a text file, or the contents of all records of a .jsonl file."""
    content = documents.read_text(path, "the training text")
    if Path(path).suffix.lower() != ".jsonl":
        return documents.split(content)
    found: list[str] = []
    for line in filter(str.strip, content.split("\n")):
        with suppress(*INVALID_RECORD):  # `calibration` says what is wrong with the line
            found += contents_of(parse_json(line))
    return [each for each in found if each.strip()]


def _digest(document: str) -> str:
    """Return the sha256 of a document's words, the same for all white space between them."""
    return hashlib.sha256(" ".join(document.split()).encode()).hexdigest()


def _split(windows: NDArray[np.int64], source: str, sha256: str) -> TrainingText:
    """Return the text with some windows held out. Raises `UsageError` if there are too few windows."""
    held_out = min(max(len(windows) // HELD_OUT, FEWEST_HELD_OUT), MOST_HELD_OUT)
    if len(windows) <= held_out:
        raise UsageError(
            f"the training text {source} has {windows.size} tokens, {len(windows)} windows: training needs at least "
            f"{FEWEST_HELD_OUT + 1}, give a longer text"
        )
    return TrainingText(windows, held_out, source, sha256)


def _first_tokens(runner: Runner, rng: np.random.Generator) -> Iterator[list[int]]:
    """Yield beginnings of texts: the start token, if there is one, and a random first token."""
    start = runner.start_token
    if start is None:
        while True:
            yield [int(rng.integers(runner.vocab_size))]
    logits = runner.logits(np.array([start]))[-1].astype(np.float64)
    while True:  # the largest logit plus Gumbel noise is a sample of the distribution
        yield [start, int(np.argmax(logits + rng.gumbel(size=len(logits))))]


def _continue(
    runner: Runner, prompts: Sequence[list[int]], length: int, sampling: Sampling
) -> list[list[int]]:
    """Return the new tokens of each prompt; prompt and new tokens together are at most `length`."""
    new = length - max(map(len, prompts))
    batch = getattr(runner, "generate_batch", None)
    if batch is not None:
        texts: list[list[int]] = batch(
            prompts, max_new_tokens=new, stop=runner.stop_tokens, sampling=sampling
        )
        return texts
    return [
        runner.generate(p, max_new_tokens=new, stop=runner.stop_tokens, sampling=sampling) for p in prompts
    ]
