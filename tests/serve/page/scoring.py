"""Fake models that also return logits, which differ from model to model, and the scores expected of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.serve.http.fake import FakeModel, FakeTicket
from zeropoint.kernels.divergence import Divergence, plain
from zeropoint.serve.request import LENGTH, Finished, Listener, PromptRead, Request
from zeropoint.values.arrays import Logits

NAMES = ("fp16", "int8", "int4", "int3", "int2")


@dataclass
class ScoringModel(FakeModel):
    """A fake model whose logits depend on the last token and its position. `seed` 0 is the reference model; another
    seed adds noise to its logits.

    `most_rows`: the most rows of logits that one request asked for. `holds`: hold requests for logits
    until they are cancelled, at most 5 seconds.
    """

    seed: int = 0
    most_rows: int = 0
    holds: bool = False

    def logits(self, tokens: Sequence[int]) -> Logits:
        """Return the logits `[tokens, vocab]` after each token."""
        base = np.random.default_rng(0).normal(size=(self.vocab_size, self.vocab_size))
        change = np.random.default_rng(self.seed).normal(size=base.shape) * 0.3 * (self.seed > 0)
        places = np.arange(len(tokens))[:, None] * 0.01
        logits: Logits = ((base + change)[list(tokens)] * (1 + places)).astype(np.float32)
        return logits

    def _answer(self, request: Request, text: str, listener: Listener, ticket: FakeTicket) -> None:
        if not request.prompt_logits or self.fails_after is not None:
            super()._answer(request, text, listener, ticket)
            return
        self.most_rows = max(self.most_rows, request.prompt_logits)
        if self.holds:
            ticket.event.wait(5)
        rows = self.logits(request.prompt)[-request.prompt_logits :]
        self.running -= 1
        listener([PromptRead(0, (), rows), Finished(LENGTH)])


def make_models(folder: Path, count: int = 3, **options: Any) -> list[ScoringModel]:
    """Return models named fp16, int8, int4 and so on, with the tokenizer of `folder`."""
    return [ScoringModel(folder, name, seed=seed, **options) for seed, name in enumerate(NAMES[:count])]


def expected(
    models: Sequence[ScoringModel], prompt: Sequence[int], answer: Sequence[int]
) -> list[Divergence]:
    """Return the scores of the answer by each model but the first, computed without parts in float64."""
    text = [*prompt, *answer[:-1]]
    reference, *others = (model.logits(text)[-len(answer) :] for model in models)
    return [plain(reference, each, np.array(answer)) for each in others]
