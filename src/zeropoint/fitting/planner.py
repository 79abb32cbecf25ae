"""The planner: builds the cost tables of one model on one machine, and turns measured plans into answers of `fit`.

What decides that a group of layers gets 8 bits, say: `candidates.py` packs the model in every format on offer,
`planning/solver.py` (`optimize`) proposes plans, and `search.py` (`Search.best`) measures them and takes the best.
Each candidate is a uniform plan (`planning/uniform.py`) with one rule overridden: the embedding, or the tied pair of
embedding and head, takes the candidate's format. An untied head keeps its rule, 8 bits in every quantized format.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import numpy as np

from zeropoint.calibrate import Calibration
from zeropoint.calibrate.text import DEFAULT_TOKENS
from zeropoint.checkpoint import Checkpoint
from zeropoint.errors import UsageError
from zeropoint.evaluate.quality.windows import EvaluationText, Windows, load_text, make_windows
from zeropoint.fitting.cache import Cache, Known
from zeropoint.fitting.candidates import WIDE, Candidates, read_record
from zeropoint.fitting.loss import LossMeter
from zeropoint.fitting.offered import offered
from zeropoint.fitting.refusals import check_sizes
from zeropoint.fitting.result import OBJECTIVES, Fit, Prediction, Settings
from zeropoint.fitting.search import Point, Search, group_losses
from zeropoint.fitting.speed import Seconds, measure_seconds, measured_again, plan_seconds
from zeropoint.fitting.target import Target
from zeropoint.kernels import active_isa, library
from zeropoint.machine.detect import Machine
from zeropoint.planning import uniform_plan
from zeropoint.planning.solver import CostTable, Picks, Quantity, solve
from zeropoint.progress import Progress
from zeropoint.quantization import read_calibration
from zeropoint.quantization.streaming import needs_calibration
from zeropoint.runtime.native import store
from zeropoint.sources.texts import text_folder
from zeropoint.tokenizer import load_tokenizer
from zeropoint.values.budget import Budget

#: Maximum number of tokens of a window for measuring losses. Short windows keep the cost of attention low.
WINDOW = 257
#: Number of windows for measuring the loss of one group.
SENSITIVITY_WINDOWS = 4


class Planner:
    """The cost tables of one model, and the search for plans over them."""

    def __init__(self, checkpoint: Checkpoint, budget: Budget, settings: Settings, step: Progress) -> None:
        """Measure the cost tables, or read them from the cache, and measure every uniform plan.

        Raises `GateError` before any weight is read if the sizes alone rule out every plan, or if memory is too small.
        """
        self.settings = settings
        record = read_record(checkpoint)
        machine = settings.machine
        threads = settings.threads
        self.target = Target.here(threads) if machine is None else Target.of(machine, threads)
        self.budget = budget = self.target.within(budget)
        self.offered = offered(budget, settings, self.target, step)
        self.candidates = Candidates(
            checkpoint, record, self.offered.formats, algorithm=settings.algorithm, seed=settings.seed
        )
        check_sizes(self.candidates, budget)
        self.planning_text, self.trial_text, self.gate_text = split(
            load_text(settings.text), self._observed()
        )
        length = min(WINDOW, record.config.max_positions)
        reader = load_tokenizer(text_folder(checkpoint.path))
        windows = make_windows(self.planning_text, reader, tokens=settings.tokens, context=length)
        self.calibration = self._observe(checkpoint)
        candidates_key, logits_key, self.key = self._keys(checkpoint, windows)
        tokens = None if self.calibration is None else self.calibration.tokens
        self.cache = Cache(settings.cache)
        self.candidates.make(tokens, step, self.cache, candidates_key)
        wide = self.candidates.decoder(np.zeros(len(self.candidates.groups), np.int64))
        meter = LossMeter(
            wide,
            windows.tokens,
            threads=settings.threads,
            keep=lambda nbytes, make: self.cache.packed_weights(logits_key, nbytes, make),
        )
        cached = self.cache.read(self.key)
        self.known = cached or Known(self._measure(meter, step))
        table = self.known.table if cached is None else self._as_of_now(cached.table, step)
        self.table = replace(table, decode=table.decode * self.target.decode_scale)
        scaled = Known(self.table, self.known.losses)
        self.search = Search(scaled, self.candidates, meter, step=step)
        for format in self.candidates.formats:
            self.search.measure(self.table.uniform(format))
        self.keep()

    def keep(self) -> None:
        """Write all measurements so far into the cache."""
        self.cache.write(self.key, self.known)

    def _observe(self, checkpoint: Checkpoint) -> Calibration | None:
        """Return the calibration text if the algorithm needs one, else None."""
        settings = self.settings
        plan = uniform_plan(checkpoint, self.offered.formats[-1], algorithm=settings.algorithm)
        if not needs_calibration(plan):
            return None
        tokens = settings.calibration_tokens or DEFAULT_TOKENS
        return read_calibration(checkpoint, settings.calibration, tokens=tokens, seed=settings.seed)

    def _observed(self) -> list[str]:
        """Return the documents of the calibration file; none without such a file."""
        if self.settings.calibration is None:
            return []
        return list(load_text(self.settings.calibration).documents)

    def _measure(self, meter: LossMeter, step: Progress) -> CostTable:
        """Return the cost table: exact bytes, measured seconds per token, measured losses."""
        candidates = self.candidates
        nbytes, fixed = candidates.nbytes()
        with self.target.kernels():
            seconds = measure_seconds(candidates, threads=self.target.threads, step=step)
        losses = group_losses(candidates, meter, windows=SENSITIVITY_WINDOWS, step=step)
        names = tuple(group.name for group in candidates.groups)
        return CostTable(names, candidates.formats, nbytes, seconds.decode, seconds.prefill, losses, fixed)

    def _as_of_now(self, table: CostTable, step: Progress) -> CostTable:
        """Return a table from the cache with its speeds scaled to the machine's speed now."""
        before = Seconds(table.decode, table.prefill)
        with self.target.kernels():
            now = measured_again(self.candidates, before, threads=self.target.threads, step=step)
        return replace(table, decode=now.decode, prefill=now.prefill)

    def _keys(
        self, checkpoint: Checkpoint, windows: Windows
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Return the cache keys of the candidates, of the 16-bit model's logits, and of the cost tables.

        Each key holds everything that the cached values depend on.
        """
        settings, observed = self.settings, self.calibration
        source = {
            "model": checkpoint.source_digest(),
            "config": dict(checkpoint.source.config),
            "zeropoint": f"{version('zeropoint')}, {store.NAME}",
        }
        candidates_with = {
            "calibration": None if observed is None else observed.to_json()["tokens_sha256"],
            "seed": settings.seed,
        }
        logits_with = {
            "text": self.planning_text.digest,
            **windows.key,
            "kernels": library.digest(),
            "machine": [Machine.detect().processor, active_isa(), settings.threads],
        }
        tables_with = {
            "formats": list(self.candidates.formats),
            "algorithm": settings.algorithm,
            "timed": [self.target.isa, self.target.threads],
        }
        return (
            source | candidates_with,
            source | logits_with,
            source | candidates_with | logits_with | tables_with,
        )

    @property
    def minimize(self) -> dict[Quantity, float]:
        """The weights of the objective: "balanced" by default, "quality" if the budget does not bound the loss."""
        default = "balanced" if self.budget.bounds_loss else "quality"
        return OBJECTIVES[self.settings.objective or default]

    def best(self, margin: float, *, again: bool = False) -> Point | None:
        """Return the best measured plan within the budget, for `margin` times the planned loss; None if there is none.

        `again` is for the search after a failed trial: it measures a third of the exchanges, because it starts near
        plans that were measured already.
        """
        target = self.search.target(self.budget)
        return self.search.best(
            self.budget,
            self.minimize,
            None if target is None else target * margin,
            evaluations=self.settings.evaluations // (3 if again else 1),
        )

    def uniform_points(self) -> dict[str, Point]:
        """Return the measured plan of each format alone, by format."""
        return {f: self.search.measure(self.table.uniform(f)) for f in self.candidates.formats}

    def nothing_found(self) -> str:
        """Return the refusal for a search that found no plan, with the measured plan that came closest."""
        limits = self.search.limits(self.budget).items()
        within = [p for p in self.search.measured if all(getattr(p, name) <= most for name, most in limits)]
        closest = min(within or self.search.measured, key=lambda p: (p.loss.kl, p.nbytes))
        reserve = " with a reserve of loss for the gate's interval" if self.budget.bounds_loss else ""
        return (
            f"no plan was found that meets every bound of the budget{reserve}: the closest measured plan takes "
            f"{closest.nbytes / 1e6:.1f} MB, decodes {1 / closest.decode:.0f} tokens/s and has a mean KL of "
            f"{closest.loss.kl:.4f}"
        )

    def answer(self, point: Point | None) -> Fit:
        """Return the answer of `fit` before a plan is carried out; for `point` None, an answer without a plan."""
        answer = Fit(
            self.budget,
            None,
            front=self._front(),
            measured=[_prediction("", p) for p in self.search.measured],
            uniform=[_prediction(name, p) for name, p in self.uniform_points().items()],
            notes=self._notes(),
        )
        if point is None:
            return answer
        names = self.candidates.formats
        reasons = [self._reason(row, int(pick)) for row, pick in enumerate(point.picks)]
        plan = self.candidates.plan(point.picks, reasons, "fit", self.settings.seed)
        narrow = int(point.picks.max())
        fragile = np.argsort(-self.table.loss[:, narrow], kind="stable")
        wider = [self.table.groups[row] for row in fragile if point.picks[row] < narrow]
        return replace(
            answer,
            plan=plan,
            predicted=_prediction("fit", point),
            formats={name: int((point.picks == i).sum()) for i, name in enumerate(names)},
            wider=wider,
        )

    def timed(self, answer: Fit, point: Point) -> Fit:
        """Return `answer` with the speed of the whole plan `point`, timed now, in place of the sum over its groups."""
        with self.target.kernels():
            decode, prefill = plan_seconds(self.candidates, point.picks, threads=self.target.threads)
        timed = replace(point, decode=decode * self.target.decode_scale, prefill=prefill)
        return replace(answer, predicted=_prediction("fit", timed))

    def _notes(self) -> list[str]:
        """Return notes on the target, on added formats, on an unfinished search, and on formats that are not faster."""
        formats, table = self.candidates.formats, self.table
        decode = [1 / table.total("decode", table.uniform(f)) for f in formats]
        prefill = [1 / table.total("prefill", table.uniform(f)) for f in formats]
        avoid = "" if self.budget.min_prefill else "; --min-prefill RATE finds a plan that is fast enough"
        unproven = (
            "the search for a plan was cut short: the plan keeps to the budget, and a better one may exist"
        )
        return [
            *self.target.notes,
            *self.offered.notes,
            *([unproven] if self.search.unproven else []),
            *(
                f"{name} decodes no faster than {before} on this machine: {rate:.0f} against {least:.0f} tokens/s"
                for (before, least), (name, rate) in pairwise(zip(formats, decode, strict=True))
                if rate <= least
            ),
            *(
                f"{name} reads a prompt no faster than {formats[0]} on this machine: {rate:.0f} against "
                f"{prefill[0]:.0f} tokens/s{avoid}"
                for name, rate in zip(formats[1:], prefill[1:], strict=True)
                if rate <= prefill[0]
            ),
        ]

    def _reason(self, row: int, pick: int) -> str:
        """Return the reason for a group's format, with the group's loss in every format."""
        costs = ", ".join(
            f"{name} {self.table.loss[row, i]:.2g}" for i, name in enumerate(self.candidates.formats) if i
        )
        return f"{self.table.groups[row]} as {self.candidates.formats[pick]}: mean KL alone {costs}"

    def _front(self) -> list[Prediction]:
        """Return the plans of lowest expected loss at a dozen sizes between the smallest and the 16-bit plan."""
        total = self.table.total
        return [
            Prediction(
                "",
                total("nbytes", picks),
                1 / total("decode", picks),
                1 / total("prefill", picks),
                self.search.predict(picks),
            )
            for picks in self._least_losses
        ]

    @cached_property
    def _least_losses(self) -> list[Picks]:
        """The plan with the lowest sum of losses at each of a dozen sizes."""
        low = self.table.nbytes.min(axis=1).sum() + self.table.fixed_nbytes
        high = self.table.total("nbytes", self.table.uniform(WIDE))
        plans = [
            solve(self.table, {"nbytes": float(size) * (1 + 1e-9)}, {"loss": 1.0})
            for size in np.geomspace(low, high, 12)
        ]
        return [picks for picks in plans if picks is not None]


#: Parts of the text and their relative numbers of characters: the cost tables need the fewest, the gate the most.
SHARES = {"planning": 2, "trials": 3, "the gate": 4}


def split(text: EvaluationText, seen: Iterable[str] = ()) -> list[EvaluationText]:
    """Split the documents of `text` into three disjoint texts: for planning, for trials, and for the gate.

    In order, each document goes to the part that is furthest below its share. A repeated document is used once; a
    document of `seen` (the calibration text) is not used. Raises `UsageError` if fewer than three documents are left.
    """
    used = {" ".join(document.split()) for document in seen}
    parts: dict[str, list[str]] = {name: [] for name in SHARES}
    sizes = dict.fromkeys(SHARES, 0.0)
    for document in text.documents:
        words = " ".join(document.split())
        if words in used:
            continue
        used.add(words)
        least = min(SHARES, key=lambda name: (bool(parts[name]), sizes[name], -SHARES[name]))
        parts[least].append(document)
        sizes[least] += len(document) / SHARES[least]
    if not all(parts.values()):
        raise UsageError(
            f"the text {text.source} has {sum(map(len, parts.values()))} different documents outside the "
            "calibration text, and fit needs at least three: for planning, for trials and for the gate"
        )
    return [
        EvaluationText(tuple(group), f"{text.source}, documents for {name}") for name, group in parts.items()
    ]


def _prediction(name: str, point: Point) -> Prediction:
    return Prediction(name, point.nbytes, 1 / point.decode, 1 / point.prefill, point.loss.kl)
