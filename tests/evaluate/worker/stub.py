"""A tiny bigram model over bytes behind the runner's protocol, and a worker that opens it: no torch.

A model's path is `NAME` or `NAME+NOISE`: its logits are a seeded table, and NOISE is added to them. A
path that starts with `missing`, `broken` or `crash` fails in that way.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Container, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import ArtifactError
from zeropoint.evaluate.tasks.lm_eval_model import Scorer
from zeropoint.evaluate.worker import process as worker
from zeropoint.evaluate.worker.messages import AccuracyRequest, AccuracyResult


class StubRunner:
    engine = "stub"
    engine_reason = ""
    vocab_size = 256
    stop_tokens: frozenset[int] = frozenset()
    start_token = None

    def __init__(self, path: str, dtype: str) -> None:
        self.name, _, noise = Path(path).name.partition("+")
        rng = np.random.default_rng(0)
        table = rng.normal(0, 2, (256, 256)) + float(noise or 0) * rng.normal(0, 1, (256, 256))
        self.table = table.astype(np.float32)
        if dtype == "bfloat16":  # the upper half of each float
            self.table = (self.table.view(np.uint32) & 0xFFFF0000).view(np.float32)
        self.weights_bytes = self.artifact_bytes = self.table.nbytes

    def logits(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.table[tokens]

    def generate(
        self,
        tokens: Sequence[int],
        *,
        max_new_tokens: int,
        on_token: Callable[[int], None] | None = None,
        stop: Container[int] = (),
    ) -> list[int]:
        ids = list(tokens)
        for _ in range(max_new_tokens):
            ids.append(int(self.logits(np.asarray(ids)[-64:])[-1].argmax()))
        return ids[len(tokens) :]

    def prefill_decode(self, tokens: NDArray[np.int64], new_tokens: int) -> tuple[float, float]:
        start = time.perf_counter()
        self.logits(tokens)
        return time.perf_counter() - start, 0.001 * new_tokens

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_prompt(self, text: str) -> list[int]:
        return self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")

    def chat_prompt(self, user_text: str) -> list[int]:
        return self.encode(user_text)


def open_stub(path: str, *, threads: int = 2, dtype: str = "auto", engine: str = "universal") -> StubRunner:
    name = Path(path).name
    if name.startswith("missing"):
        raise ArtifactError(f"{name} has no weights")
    if name.startswith("broken"):
        raise RuntimeError("a bug")
    if name.startswith("crash"):
        sys.stderr.write("last words\n")
        sys.stderr.flush()
        os._exit(3)
    sys.stdout.write("a library that prints\n")
    return StubRunner(path, dtype)


def answer_items(
    request: AccuracyRequest, opener: Callable[..., StubRunner], tell: Callable[[str, float], None]
) -> AccuracyResult:
    """The worker's `accuracy` without lm-eval: each task file's items lie beside it, in JSON lines."""
    model = request.model
    scorer = Scorer(opener(model.path, dtype=model.dtype), max_length=64)  # type: ignore[arg-type]
    found = {}
    for index, file in enumerate(map(Path, request.files)):
        items = [json.loads(line) for line in file.with_suffix(".jsonl").read_text().splitlines()]
        items = items[: request.limit]
        correct = []
        for item in items:
            chances = [scorer.loglikelihood(item["context"], " " + choice)[0] for choice in item["choices"]]
            correct.append(int(chances.index(max(chances)) == item["answer"]))
            tell("tasks", (index + len(correct) / len(items)) / len(request.files))
        found[file.stem] = {"metric": "acc", "items": [i["context"] for i in items], "correct": correct}
    return AccuracyResult(found)


if __name__ == "__main__":
    if "without-lm-eval" in sys.argv:
        worker.TASKS["accuracy"] = answer_items  # type: ignore[assignment]
    sys.exit(worker.main(open_stub))  # type: ignore[arg-type]
